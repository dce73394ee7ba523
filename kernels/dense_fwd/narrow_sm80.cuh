// dense_fwd 192x128 and 128x128, portable target: one block of threads serves 128 queries of one head.
//
// Every warp owns 16 queries and goes through the keys alone: S = Q K^T, online softmax in registers, P stays in
// registers as the A operand of P V. Q is in registers too. Warps meet only where a stage of K and V changes hands.
//
// Shared memory, bytes (two stages of 64 keys):   | 192x128 | 128x128
//   stage   K 64 x d_qk, then V 64 x 128, swizzled | 40960   | 32768, twice
//   Q comes in through the stages before the first copy of keys, out leaves through them after the last.
//
// Barriers: one per block of keys, after its copies have landed and before the other stage is written again.
// Constraints (checked in op.cpp): h_q a multiple of h_kv, rows on 16 bytes.
#pragma once

#include "../planted.h"
#include "sequences.cuh"

namespace flash_dsa::sm80 {

template <int kDqk_>
struct NarrowTile {
  static constexpr int kDqk = kDqk_;
  static constexpr int kDv = 128;
  static constexpr int kWarps = 8;  // the registers of an SM hold no ninth
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kM = 16 * kWarps;
  static constexpr int kN = 64;  // two stages fit the 99 KiB of the smallest family
  static constexpr int kKSteps = kDqk / 16;
  static constexpr int kScoreTiles = kN / 8;
  static constexpr int kOutTiles = kDv / 8;

  static constexpr int kKBytes = kN * kDqk * 2;
  static constexpr int kStageBytes = kKBytes + kN * kDv * 2;
  static constexpr int kSharedBytes = 2 * kStageBytes;
  static_assert(kM * kDqk * 2 <= kSharedBytes && kM * kDv * 2 <= kSharedBytes, "Q and out pass through the stages");
};

// One tile of queries of one head.
template <class Tile>
class NarrowAttention {
 public:
  __device__ NarrowAttention(const DenseFwdParams& params, const SequenceTile& tile, int head,
                             unsigned char* shared_memory)
      : params_(params), tile_(tile), head_(head), memory_(shared_memory), shared_(shared_address(shared_memory)) {
    const int kv_head = head / (params.h_q / params.h_kv);
    k_ = static_cast<const bf16*>(params.k) + tile.first_key * params.k_stride_s + kv_head * params.k_stride_h;
    v_ = static_cast<const bf16*>(params.v) + tile.first_key * params.v_stride_s + kv_head * params.v_stride_h;
  }

  __device__ void run() {
    load_queries();
    const int blocks = tile_.blocks(Tile::kN, params_.causal);
    if (blocks > 0) copy_block(0);
    copy_async_commit();
    for (int block = 0; block < blocks; ++block) {
      copy_async_wait<0>();
      __syncthreads();
      planted_sync();
      if (block + 1 < blocks) copy_block(block + 1);
      copy_async_commit();
      float score[Tile::kScoreTiles][4] = {};
      multiply_scores(score, stage(block));
      // Only the blocks at the diagonal and at the end hold keys that some row of the tile must not see.
      if ((block + 1) * Tile::kN > tile_.keys_seen(0, params_.causal)) mask(score, block);
      uint32_t p[Tile::kN / 16][4];
      softmax(p, score);
      multiply_values(p, stage(block) + Tile::kKBytes);
    }
    finish();
  }

 private:
  __device__ uint32_t stage(int block) const { return shared_ + block % 2 * Tile::kStageBytes; }

  __device__ void load_queries() {
    const bf16* q = static_cast<const bf16*>(params_.q) + query_ * params_.q_stride_s + head_ * params_.q_stride_h;
    copy_rows<Tile::kM, Tile::kDqk, Tile::kThreads>(shared_, q, params_.q_stride_s,
                                                    [&](int row) { return row < tile_.rows ? row : -1; });
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < Tile::kKSteps; ++step) {
      load_matrix_x4(q_[step], shared_ + swizzled<Tile::kDqk * 2>(warp_ * 16 + lane_ % 16, step * 2 + lane_ / 16));
    }
    __syncthreads();  // the stages are free
  }

  __device__ void copy_block(int block) const {
    const auto number = [&](int row) {
      const int key = block * Tile::kN + row;
      return key < tile_.s_kv ? key : -1;
    };
    copy_rows<Tile::kN, Tile::kDqk, Tile::kThreads>(stage(block), k_, params_.k_stride_s, number);
    copy_rows<Tile::kN, Tile::kDv, Tile::kThreads>(stage(block) + Tile::kKBytes, v_, params_.v_stride_s, number);
  }

  __device__ void multiply_scores(float (&score)[Tile::kScoreTiles][4], uint32_t k_tile) const {
#pragma unroll
    for (int step = 0; step < Tile::kKSteps; ++step) {
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; n += 2) {
        uint32_t k[4];
        const int key = n * 8 + lane_ % 8 + lane_ / 16 * 8;
        load_matrix_x4(k, k_tile + swizzled<Tile::kDqk * 2>(key, step * 2 + lane_ / 8 % 2));
        mma(score[n], q_[step], k[0], k[1]);
        mma(score[n + 1], q_[step], k[2], k[3]);
      }
    }
  }

  __device__ void mask(float (&score)[Tile::kScoreTiles][4], int block) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int seen = tile_.keys_seen(row_ + i / 2 * 8, params_.causal) - block * Tile::kN;
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; ++n) {
        if (n * 8 + lane_ % 4 * 2 + i % 2 >= seen) score[n][i] = -kInfinity;
      }
    }
  }

  // Online softmax. P comes out as the A operand of P V: two n8 tiles of an accumulator are laid out as one k16 step.
  __device__ void softmax(uint32_t (&p)[Tile::kN / 16][4], const float (&score)[Tile::kScoreTiles][4]) {
    const float scale_log2 = params_.softmax_scale * kLog2e;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float block_max = -kInfinity;
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; ++n) {
        block_max = fmaxf(block_max, fmaxf(score[n][h * 2], score[n][h * 2 + 1]));
      }
      const float new_max = fmaxf(maximum_[h], row_max(block_max));
      const auto [shift, rescale] = rescale_to(maximum_[h], new_max, scale_log2);
      maximum_[h] = new_max;
      float block_sum = 0.0f;
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; ++n) {
        const float p0 = exp2_approx(fmaf(score[n][h * 2], scale_log2, -shift));
        const float p1 = exp2_approx(fmaf(score[n][h * 2 + 1], scale_log2, -shift));
        block_sum += p0 + p1;
        p[n / 2][n % 2 * 2 + h] = pack_bf16(p0, p1);
      }
      sum_[h] = planted_spill(sum_[h] * rescale + block_sum);
#pragma unroll
      for (int n = 0; n < Tile::kOutTiles; ++n) {
        out_[n][h * 2] *= rescale;
        out_[n][h * 2 + 1] *= rescale;
      }
    }
  }

  __device__ void multiply_values(const uint32_t (&p)[Tile::kN / 16][4], uint32_t v_tile) {
#pragma unroll
    for (int step = 0; step < Tile::kN / 16; ++step) {
#pragma unroll
      for (int n = 0; n < Tile::kOutTiles; n += 2) {
        uint32_t v[4];
        load_matrix_x4_transposed(v, v_tile + swizzled<Tile::kDv * 2>(step * 16 + lane_ % 16, n + lane_ / 16));
        mma(out_[n], p[step], v[0], v[1]);
        mma(out_[n + 1], p[step], v[2], v[3]);
      }
    }
  }

  // Epilogue: out goes through shared memory for whole-row stores, once all copies and reads of it are done.
  __device__ void finish() {
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row_ + h * 8;
      const RowResult result = finish_row(maximum_[h], row_sum(sum_[h]), params_.softmax_scale);
      if (lane_ % 4 == 0 && row < tile_.rows) {
        params_.lse[(query_ + row) * params_.lse_stride_s + head_ * params_.lse_stride_h] = result.lse;
      }
#pragma unroll
      for (int n = 0; n < Tile::kOutTiles; ++n) {
        *reinterpret_cast<uint32_t*>(memory_ + swizzled<Tile::kDv * 2>(row, n) + lane_ % 4 * 4) =
            pack_bf16(scaled(out_[n][h * 2], result.factor), scaled(out_[n][h * 2 + 1], result.factor));
      }
    }
    __syncthreads();
    bf16* out = static_cast<bf16*>(params_.out) + query_ * params_.out_stride_s + head_ * params_.out_stride_h;
    store_rows<Tile::kDv, Tile::kThreads>(out, params_.out_stride_s, tile_.rows, memory_);
  }

  const DenseFwdParams& params_;
  const SequenceTile& tile_;
  const int head_;
  unsigned char* const memory_;
  const uint32_t shared_;
  const bf16 *k_, *v_;

  const int lane_ = threadIdx.x % kWarp, warp_ = threadIdx.x / kWarp;
  const int row_ = warp_ * 16 + lane_ / 4;                 // the first of this lane's two rows, within the tile
  const int64_t query_ = tile_.first_query + tile_.start;  // row of q and out where the tile starts

  uint32_t q_[Tile::kKSteps][4];
  float out_[Tile::kOutTiles][4] = {};
  float maximum_[2] = {-kInfinity, -kInfinity};
  float sum_[2] = {0.0f, 0.0f};
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) dense_narrow_kernel(const DenseFwdParams params) {
  [[maybe_unused]] PlantedDelay delay;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const SequenceTile tile = find_tile(params, static_cast<int>(blockIdx.x), Tile::kM);
  const int head = head_of_block();
  if (tile.rows <= 0 || head >= params.h_q) return;
  NarrowAttention<Tile>(params, tile, head, shared_memory).run();
}

}  // namespace flash_dsa::sm80
