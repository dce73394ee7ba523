// Host launcher of dense_fwd, portable target: the tile by head sizes and by shared memory.
#include "../launch.h"
#include "../target.h"
#include "narrow_sm80.cuh"
#include "sm80.cuh"

namespace flash_dsa {

namespace {

// One block per tile of queries and head; heads are the slow axes, so that blocks in flight share K and V in L2. Sizes
// are at most 2^30 (op.cpp), so the tiles fit the first axis and the heads the other two, of 65535 each.
template <class Tile>
void launch_tile(void (*kernel)(DenseFwdParams), const DenseFwdParams& params, CUstream_st* stream) {
  constexpr unsigned kAxis = 65535;
  const int64_t tiles = params.tot_q / Tile::kM + params.batch;
  if (tiles == 0) return;
  const unsigned heads = static_cast<unsigned>(params.h_q);
  const unsigned layers = (heads + kAxis - 1) / kAxis;
  const dim3 grid(static_cast<unsigned>(tiles), (heads + layers - 1) / layers, layers);
  launch(kernel, params, grid, Tile::kThreads, Tile::kSharedBytes, stream, "dense_fwd sm80");
}

void launch_wide(const DenseFwdParams& params, int shared_memory, CUstream_st* stream) {
  using Tile64x64 = sm80::WideTile<2, 64, 576>;  // 227 KiB: SM90, SM100
  using Tile64x32 = sm80::WideTile<2, 32, 576>;  // 163 KiB: SM80
  using Tile32x16 = sm80::WideTile<1, 16, 576>;  // 99 KiB: SM86, SM89, SM120
  static_assert(Tile64x64::kSharedBytes <= kSharedMemorySm90);
  static_assert(Tile64x32::kSharedBytes <= kSharedMemorySm80);
  static_assert(Tile32x16::kSharedBytes <= kSharedMemorySm86);
  if (shared_memory >= Tile64x64::kSharedBytes) {
    return launch_tile<Tile64x64>(sm80::dense_wide_kernel<Tile64x64>, params, stream);
  }
  if (shared_memory >= Tile64x32::kSharedBytes) {
    return launch_tile<Tile64x32>(sm80::dense_wide_kernel<Tile64x32>, params, stream);
  }
  launch_tile<Tile32x16>(sm80::dense_wide_kernel<Tile32x16>, params, stream);
}

template <int kDqk>
void launch_narrow(const DenseFwdParams& params, CUstream_st* stream) {
  using Tile = sm80::NarrowTile<kDqk>;  // 80 KiB at most: every family
  static_assert(Tile::kSharedBytes <= kSharedMemorySm86);
  launch_tile<Tile>(sm80::dense_narrow_kernel<Tile>, params, stream);
}

}  // namespace

void dense_fwd_sm80(const DenseFwdParams& params, int shared_memory, CUstream_st* stream) {
  if (params.d_qk == 576) return launch_wide(params, shared_memory, stream);
  if (params.d_qk == 192) return launch_narrow<192>(params, stream);
  launch_narrow<128>(params, stream);
}

}  // namespace flash_dsa
