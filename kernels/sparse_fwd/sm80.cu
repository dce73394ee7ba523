// Host launcher of sparse_fwd, portable target: the tile by heads and by shared memory.
#include "../launch.h"
#include "../target.h"
#include "sm80.cuh"

namespace flash_dsa {

namespace {

template <class Tile>
void launch_tile(const SparseFwdParams& params, CUstream_st* stream) {
  const int64_t tiles = (params.h_q + Tile::kM - 1) / Tile::kM;
  const int64_t blocks = params.s_q * tiles;
  if (blocks > INT32_MAX) {
    throw std::runtime_error("sparse_fwd: `q` expected s_q * h_q / " + std::to_string(Tile::kM) +
                             " of at most 2^31 - 1, got s_q = " + std::to_string(params.s_q));
  }
  launch(sm80::sparse_fwd_kernel<Tile>, params, dim3(static_cast<unsigned>(blocks)), Tile::kThreads, Tile::kSharedBytes,
         stream, "sparse_fwd sm80");
}

// Widest tile that fits: 64 heads share one gather, 64 keys share one pass over Q.
template <int kDqk>
void choose_tile(const SparseFwdParams& params, int shared_memory, CUstream_st* stream) {
  using Tile64x64 = sm80::WideTile<2, 64, kDqk>;  // 227 KiB: SM90, SM100
  using Tile64x32 = sm80::WideTile<2, 32, kDqk>;  // 163 KiB: SM80
  using Tile32x32 = sm80::WideTile<1, 32, kDqk>;  // few heads; two blocks share an SM of 227 KiB
  using Tile32x16 = sm80::WideTile<1, 16, kDqk>;  // 99 KiB: SM86, SM89, SM120
  static_assert(Tile64x64::kSharedBytes <= kSharedMemorySm90);
  static_assert(Tile64x32::kSharedBytes <= kSharedMemorySm80 && Tile32x32::kSharedBytes <= kSharedMemorySm80);
  static_assert(Tile32x16::kSharedBytes <= kSharedMemorySm86);
  static_assert(2 * (Tile32x32::kSharedBytes + 1024) <= 228 * 1024, "an SM has 228 KiB, and keeps one for each block");
  const bool few_heads = params.h_q <= 32;
  if (!few_heads && shared_memory >= Tile64x64::kSharedBytes) return launch_tile<Tile64x64>(params, stream);
  if (!few_heads && shared_memory >= Tile64x32::kSharedBytes) return launch_tile<Tile64x32>(params, stream);
  if (shared_memory >= Tile32x32::kSharedBytes) return launch_tile<Tile32x32>(params, stream);
  launch_tile<Tile32x16>(params, stream);
}

}  // namespace

void sparse_fwd_sm80(const SparseFwdParams& params, int shared_memory, CUstream_st* stream) {
  if (params.d_qk == 576) return choose_tile<576>(params, shared_memory, stream);
  choose_tile<512>(params, shared_memory, stream);
}

}  // namespace flash_dsa
