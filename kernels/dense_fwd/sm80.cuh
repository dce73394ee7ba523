// dense_fwd 576x512, portable target: one block of threads serves a tile of queries of one head.
//
// The algorithm, the shared memory and the barriers are those of wide_sm80.cuh; this file brings the keys. K (its first
// 512 columns) and V take one wide tile each: V of block i is copied while its scores are computed, K of block i+1
// while PV of block i is. Queries past the end of the sequence are computed on zeros and not written; keys past it are
// zeros and masked.
// Constraints (checked in op.cpp): h_q a multiple of h_kv, rows on 16 bytes.
#pragma once

#include "../planted.h"
#include "../wide_sm80.cuh"
#include "sequences.cuh"

namespace flash_dsa::sm80 {

template <class Tile>
class SequentialKeys {
 public:
  __device__ SequentialKeys(const DenseFwdParams& params, const SequenceTile& tile, int head,
                            unsigned char* shared_memory)
      : tile_(tile),
        causal_(params.causal),
        k_stride_(params.k_stride_s),
        v_stride_(params.v_stride_s),
        shared_(shared_address(shared_memory)) {
    const int kv_head = head / (params.h_q / params.h_kv);
    k_ = static_cast<const bf16*>(params.k) + tile.first_key * k_stride_ + kv_head * params.k_stride_h;
    v_ = static_cast<const bf16*>(params.v) + tile.first_key * v_stride_ + kv_head * params.v_stride_h;
  }

  __device__ int blocks() const { return tile_.blocks(Tile::kN, causal_); }
  __device__ int nope(int) const { return 0; }
  __device__ int values(int) const { return 1; }

  __device__ void prologue() {
    copy_keys(0);
    copy_async_commit();
  }

  __device__ void at_top(int block) {
    copy_rows<Tile::kN, kValueDim, Tile::kThreads>(shared_ + Tile::kWide + Tile::kWideBytes, v_, v_stride_,
                                                   number(block));
    copy_async_commit();
  }

  __device__ void before_p(int) { copy_async_wait<0>(); }

  __device__ void after_p(int block) {
    if (block + 1 < blocks()) copy_keys(block + 1);
    copy_async_commit();
  }

  __device__ bool visible(int block, int row, int key) const {
    return block * Tile::kN + key < tile_.keys_seen(row, causal_);
  }

 private:
  __device__ void copy_keys(int block) const {
    copy_rows<Tile::kN, kValueDim, Tile::kThreads>(shared_ + Tile::kWide, k_, k_stride_, number(block));
    copy_rows<Tile::kN, kRopeDim, Tile::kThreads>(shared_ + Tile::kRope, k_ + kValueDim, k_stride_, number(block));
  }

  __device__ auto number(int block) const {
    return [this, block](int row) {
      const int key = block * Tile::kN + row;
      return key < tile_.s_kv ? key : -1;
    };
  }

  SequenceTile tile_;
  bool causal_;
  const bf16 *k_, *v_;
  int64_t k_stride_, v_stride_;
  uint32_t shared_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) dense_wide_kernel(const DenseFwdParams params) {
  [[maybe_unused]] PlantedDelay delay;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const SequenceTile tile = find_tile(params, static_cast<int>(blockIdx.x), Tile::kM);
  const int head = head_of_block();
  if (tile.rows <= 0 || head >= params.h_q) return;
  const int64_t query = tile.first_query + tile.start;

  TileRows rows;
  rows.rows = tile.rows;
  rows.q = static_cast<const bf16*>(params.q) + query * params.q_stride_s + head * params.q_stride_h;
  rows.q_stride = params.q_stride_s;
  rows.out = static_cast<bf16*>(params.out) + query * params.out_stride_s + head * params.out_stride_h;
  rows.out_stride = params.out_stride_s;
  rows.lse = params.lse + query * params.lse_stride_s + head * params.lse_stride_h;
  rows.max_logits = nullptr;
  rows.stats_stride = params.lse_stride_s;
  rows.attn_sink = nullptr;

  SequentialKeys<Tile> keys(params, tile, head, shared_memory);
  WideAttention<Tile>(shared_memory, params.softmax_scale).run(rows, keys);
}

}  // namespace flash_dsa::sm80
