// Host launcher of dense_fwd, SM90.
#include <algorithm>
#include <string>

#include "../launch.h"
#include "../target.h"
#include "../tensor_map.h"
#include "../wait_reports.h"
#include "narrow_sm90.cuh"
#include "sm90.cuh"

namespace flash_dsa {

namespace {

constexpr const char* kName = "dense_fwd sm90a";

// Blocks of threads that share the keys of 576x512.
constexpr int kCluster = 2;

MappedTensor queries_of(const DenseFwdParams& params) {
  return {params.q, params.tot_q, params.h_q, params.d_qk, params.q_stride_s, params.q_stride_h};
}

// Keys and values may be the same for all heads (expanded): then there is one, and its coordinate stays 0.
MappedTensor of_heads(const void* data, const DenseFwdParams& params, int columns, int64_t stride_s, int64_t stride_h) {
  return {data, params.tot_kv, stride_h == 0 ? 1 : params.h_kv, columns, stride_s, stride_h};
}

MappedTensor keys_of(const DenseFwdParams& params) {
  return of_heads(params.k, params, params.d_qk, params.k_stride_s, params.k_stride_h);
}

MappedTensor values_of(const DenseFwdParams& params) {
  return of_heads(params.v, params, params.d_v, params.v_stride_s, params.v_stride_h);
}

// Query heads whose keys and values stay in L2 together, while tiles of different lengths go through them: half of its
// 50 MB. Sequences are taken to be of one length: the host does not see them.
int heads_at_once(const DenseFwdParams& params) {
  constexpr int64_t kBytes = int64_t{25} << 20;
  const int64_t rows = params.tot_kv / std::max(params.batch, 1) + 1;
  const int64_t kv_heads = std::clamp<int64_t>(kBytes / (rows * (params.d_qk + params.d_v) * 2), 1, params.h_kv);
  return static_cast<int>(kv_heads * (params.h_q / params.h_kv));
}

// The most tiles of `rows` queries that all sequences can have: the host does not see where they begin.
int64_t most_tiles(const DenseFwdParams& params, int rows) {
  const int64_t sequences = std::min<int64_t>(params.batch, params.tot_q);
  return (params.tot_q - sequences) / rows + sequences;
}

#ifdef FLASH_DSA_BOUNDED_WAIT
template <class Plan>
std::string narrow_barrier_name(int offset) {
  const std::pair<int, const char*> names[] = {
      {Plan::kTail, "tail"},      {Plan::kWorkEmpty, "work empty"}, {Plan::kWorkFull, "work full"},
      {Plan::kVEmpty, "v empty"}, {Plan::kVFull, "v full"},         {Plan::kKEmpty, "k empty"},
      {Plan::kKFull, "k full"},   {Plan::kQEmpty, "q empty"},       {Plan::kQFull, "q full"}};
  for (const auto& [first, name] : names) {
    if (offset >= first) return name + (" " + std::to_string((offset - first) / 8));
  }
  return "offset " + std::to_string(offset);
}
#endif

template <class Plan>
void launch_narrow(const DenseFwdParams& params, CUstream_st* stream) {
  static_assert(Plan::kSharedBytes <= kSharedMemorySm90);
  const auto kernel = sm90::dense_narrow_kernel<Plan>;
  // First of all: it binds the device's context to this thread, which the driver asks for where it makes tensor maps.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kSharedBytes), kName);
  const int64_t tiles = most_tiles(params, Plan::kM);
  const int64_t blocks = std::min<int64_t>(multiprocessors(kName), tiles * params.h_q);
  if (blocks == 0) return;
  sm90::NarrowLaunch launch{};
  launch.q = tensor_map(queries_of(params), 64, 1, kName);
  // Without keys there is nothing to map, and nothing is copied.
  if (params.tot_kv > 0) {
    launch.k = tensor_map(keys_of(params), Plan::kN, 1, kName);
    launch.v = tensor_map(values_of(params), Plan::kN, 1, kName);
  }
  launch.call = params;
  launch.heads_at_once = static_cast<uint32_t>(heads_at_once(params));
  launch.most_tiles = static_cast<uint32_t>(tiles);
  launch.k_heads = params.k_stride_h == 0 ? 0 : 1;
  launch.v_heads = params.v_stride_h == 0 ? 0 : 1;
  check_cuda(cudaMemsetAsync(params.next_tile, 0, sizeof(*params.next_tile), stream), kName);
#ifdef FLASH_DSA_BOUNDED_WAIT
  const sm90::WaitReport* reports = wait_reports(kName);
#endif
  kernel<<<static_cast<unsigned>(blocks), Plan::kThreads, Plan::kSharedBytes, stream>>>(launch);
  check_cuda(cudaGetLastError(), kName);
#ifdef FLASH_DSA_BOUNDED_WAIT
  report_waits(kName, reports, narrow_barrier_name<Plan>, stream);
#endif
}

// Sets the tiles of 64 rows, and how blocks of a cluster share keys.
template <class Plan>
void set_tiles(sm90::DenseLaunch& launch) {
  const DenseFwdParams& params = launch.call;
  const int group = params.h_q / params.h_kv;
  launch.tile_heads = std::min(group, sm90::kM);
  launch.tile_queries = sm90::kM / launch.tile_heads;
  launch.reciprocal = 65536 / launch.tile_heads + 1;
  const int chunks = (group + sm90::kM - 1) / sm90::kM;
  const bool by_heads = Plan::kCluster == 2 && chunks % 2 == 0;
  launch.rank_heads = by_heads ? sm90::kM : 0;
  launch.rank_queries = Plan::kCluster == 2 && !by_heads ? launch.tile_queries : 0;
  launch.chunks = static_cast<uint32_t>(by_heads ? chunks / 2 : chunks);
  launch.chunk_heads = by_heads ? 2 * sm90::kM : sm90::kM;
  const int unit_queries = launch.tile_queries + launch.rank_queries;
  launch.tiles_per_head = static_cast<uint32_t>(most_tiles(params, unit_queries));
  launch.tiles = launch.tiles_per_head * launch.chunks * static_cast<uint32_t>(params.h_kv) * Plan::kCluster;
}

template <class Plan>
void launch_wide(const DenseFwdParams& params, CUstream_st* stream) {
  static_assert(Plan::kSharedBytes <= kSharedMemorySm90);
  const auto kernel = sm90::dense_wide_kernel<Plan>;
  // As above.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kSharedBytes), kName);
  sm90::DenseLaunch launch{};
  launch.call = params;
  launch.scale_log2 = params.softmax_scale * sm80::kLog2e;
  launch.slack = sm90::kSlack / launch.scale_log2;
  set_tiles<Plan>(launch);
  if (launch.tiles == 0) return;
  const unsigned blocks = static_cast<unsigned>(multiprocessors(kName) / Plan::kCluster * Plan::kCluster);
  launch.q = tensor_map(queries_of(params), launch.tile_queries, launch.tile_heads, kName);
  // Without keys there is nothing to map, and nothing is copied.
  if (params.tot_kv > 0) {
    launch.k = tensor_map(keys_of(params), sm90::kN, 1, kName);
    launch.v = tensor_map(values_of(params), sm90::kN, 1, kName);
  }
  launch.k_heads = params.k_stride_h == 0 ? 0 : 1;
  launch.v_heads = params.v_stride_h == 0 ? 0 : 1;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = Plan::kCluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min(launch.tiles, blocks));
  config.blockDim = dim3(sm90::kThreads);
  config.dynamicSmemBytes = Plan::kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
#ifdef FLASH_DSA_BOUNDED_WAIT
  const sm90::WaitReport* reports = wait_reports(kName);
#endif
  check_cuda(cudaLaunchKernelEx(&config, kernel, launch), kName);
#ifdef FLASH_DSA_BOUNDED_WAIT
  report_waits(kName, reports, wide_barrier_name<Plan>, stream);
#endif
}

}  // namespace

bool dense_fwd_sm90_serves(const DenseFwdParams& params) {
  constexpr int64_t kMostTiles = (int64_t{1} << 31) - (1 << 16);  // and a number past the last for every SM
  return can_be_mapped(queries_of(params)) && can_be_mapped(keys_of(params)) && can_be_mapped(values_of(params)) &&
         params.tot_q + 2 * int64_t{params.batch} < kMostTiles / params.h_q;
}

void dense_fwd_sm90(const DenseFwdParams& params, CUstream_st* stream) {
  if (params.d_qk == 576) {
    const bool values_in_keys = params.v == params.k && (params.h_kv == 1 || params.v_stride_h == params.k_stride_h) &&
                                (params.tot_kv <= 1 || params.v_stride_s == params.k_stride_s);
    if (values_in_keys) return launch_wide<sm90::DensePlan<false, kCluster>>(params, stream);
    return launch_wide<sm90::DensePlan<true, kCluster>>(params, stream);
  }
  if (params.d_qk == 192) return launch_narrow<sm90::NarrowPlan<192, 128>>(params, stream);
  launch_narrow<sm90::NarrowPlan<128, 176>>(params, stream);
}

}  // namespace flash_dsa
