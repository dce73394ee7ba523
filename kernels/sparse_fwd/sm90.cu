// Host launcher of sparse_fwd, SM90.
#include <string>

#include "../launch.h"
#include "../target.h"
#include "../wait_reports.h"
#include "sm90.cuh"

namespace flash_dsa {

namespace {

template <class Plan>
void launch_plan(const SparseFwdParams& params, CUstream_st* stream) {
  static_assert(Plan::kSharedBytes <= kSharedMemorySm90);
  const auto kernel = sm90::sparse_fwd_kernel<Plan>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kSharedBytes),
             "sparse_fwd sm90a");
  // Two tiles of a query in one cluster gather the same rows at about the same time, which L2 answers faster.
  const int64_t per_query = (params.h_q + sm90::kM - 1) / sm90::kM;
  const unsigned cluster = per_query % 2 == 0 ? 2 : 1;
  const int64_t tiles = params.s_q * per_query, blocks = multiprocessors("sparse_fwd sm90a") / cluster * cluster;
  if (tiles > INT32_MAX - blocks) {
    throw std::runtime_error("sparse_fwd: `q` expected s_q * h_q / 64 below 2^31 - " + std::to_string(blocks) +
                             ", got s_q = " + std::to_string(params.s_q));
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(tiles < blocks ? tiles : blocks));
  config.blockDim = dim3(sm90::kThreads);
  config.dynamicSmemBytes = Plan::kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  constexpr int64_t kMostRows = int64_t{1} << 31;
  const int64_t kv_stride = params.kv_stride_s / sm80::kChunk;
  if (params.s_kv > 1 && kv_stride > UINT32_MAX) {
    throw std::runtime_error("sparse_fwd: `kv` expected rows less than 64 GiB apart, got a stride of " +
                             std::to_string(params.kv_stride_s));
  }
  const int64_t q_stride = params.q_stride_h / sm80::kChunk;
  if (params.h_q > 1 && q_stride > UINT32_MAX) {
    throw std::runtime_error("sparse_fwd: `q` expected heads less than 64 GiB apart, got a stride of " +
                             std::to_string(params.q_stride_h));
  }
  const float scale_log2 = params.sm_scale * sm80::kLog2e;
  const sm90::Launch launch{params,
                            static_cast<uint32_t>(tiles),
                            static_cast<uint32_t>(per_query),
                            static_cast<uint32_t>(kv_stride),
                            static_cast<uint32_t>(q_stride),
                            static_cast<uint32_t>(params.s_kv < kMostRows ? params.s_kv : kMostRows),
                            scale_log2,
                            sm90::kSlack / scale_log2};
#ifdef FLASH_DSA_BOUNDED_WAIT
  const sm90::WaitReport* reports = wait_reports("sparse_fwd sm90a");
#endif
  check_cuda(cudaLaunchKernelEx(&config, kernel, launch), "sparse_fwd sm90a");
#ifdef FLASH_DSA_BOUNDED_WAIT
  report_waits("sparse_fwd sm90a", reports, wide_barrier_name<Plan>, stream);
#endif
}

}  // namespace

void sparse_fwd_sm90(const SparseFwdParams& params, CUstream_st* stream) {
  if (params.d_qk == 576) return launch_plan<sm90::Plan<576>>(params, stream);
  launch_plan<sm90::Plan<512>>(params, stream);
}

}  // namespace flash_dsa
