// sparse_fwd, portable target: one block of threads serves a tile of heads of one query.
//
// The algorithm, the shared memory and the barriers are those of wide_sm80.cuh; this file gathers the keys.
// One gathered row is key and value at once: the NoPE part of block i+1 goes to the wide tile that block i does not
// use as soon as block i starts, its RoPE part to the one RoPE tile once the scores of block i are done.
// The indices of a block travel two blocks ahead: global memory -> a register -> shared memory -> the copies.
// A masked slot (index out of range, or past topk_length) has the index -1 in shared memory: zeros are written in its
// place, nothing is read, and its score is -inf.
// Constraints (checked in op.cpp): h_kv 1, d_qk 576 or 512, d_v 512, rows on 16 bytes.
#pragma once

#include "../planted.h"
#include "../wide_sm80.cuh"
#include "params.h"

namespace flash_dsa::sm80 {

template <class Tile>
class GatheredKeys {
 public:
  __device__ GatheredKeys(const SparseFwdParams& params, int64_t query, unsigned char* shared_memory)
      : kv_(static_cast<const bf16*>(params.kv)),
        stride_(params.kv_stride_s),
        s_kv_(params.s_kv),
        row_(params.indices + query * params.indices_stride_s),
        length_(params.topk),
        shared_(shared_address(shared_memory)),
        indices_(reinterpret_cast<int*>(shared_memory + Tile::kIndices)) {
    if (params.topk_length != nullptr) length_ = min(max(params.topk_length[query], 0), params.topk);
  }

  __device__ int blocks() const { return (length_ + Tile::kN - 1) / Tile::kN; }
  __device__ int nope(int block) const { return block % 2; }
  __device__ int values(int block) const { return block % 2; }

  __device__ void prologue() {
    store_indices(0, fetch_index(0));
    store_indices(1, fetch_index(1));
    __syncthreads();
    copy_nope(0);
    copy_rope(0);
    copy_async_commit();
  }

  __device__ void at_top(int block) {
    next_index_ = fetch_index(block + 2);
    if (block + 1 < blocks()) copy_nope(block + 1);
    copy_async_commit();
  }

  __device__ void before_p(int) {}

  __device__ void after_p(int block) {
    if (block + 1 < blocks()) copy_rope(block + 1);
    copy_async_commit();
    store_indices(block, next_index_);  // block + 2 shares the slot of this one, whose scores are done
  }

  __device__ bool visible(int block, int, int key) const { return indices_[block % 2 * Tile::kN + key] >= 0; }

 private:
  // The index of slot threadIdx.x of a block, -1 when it does not count.
  __device__ int fetch_index(int block) const {
    const int slot = block * Tile::kN + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= Tile::kN || slot >= length_) return -1;
    const int index = __ldg(row_ + slot);
    return index >= 0 && index < s_kv_ ? index : -1;
  }

  __device__ void store_indices(int block, int index) {
    if (threadIdx.x < Tile::kN) indices_[block % 2 * Tile::kN + threadIdx.x] = index;
  }

  __device__ void copy_nope(int block) const {
    const int* indices = indices_ + block % 2 * Tile::kN;
    copy_rows<Tile::kN, kValueDim, Tile::kThreads>(shared_ + Tile::kWide + nope(block) * Tile::kWideBytes, kv_, stride_,
                                                   [&](int row) { return indices[row]; });
  }

  __device__ void copy_rope(int block) const {
    if constexpr (Tile::kHasRope) {
      const int* indices = indices_ + block % 2 * Tile::kN;
      copy_rows<Tile::kN, kRopeDim, Tile::kThreads>(shared_ + Tile::kRope, kv_ + kValueDim, stride_,
                                                    [&](int row) { return indices[row]; });
    }
  }

  const bf16* kv_;
  int64_t stride_, s_kv_;
  const int32_t* row_;
  int length_;
  uint32_t shared_;
  int* indices_;
  int next_index_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) sparse_fwd_kernel(const SparseFwdParams params) {
  [[maybe_unused]] PlantedDelay delay;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  // Tiles of one query follow each other, so that the second finds the gathered rows in L2.
  const int tiles = (params.h_q + Tile::kM - 1) / Tile::kM;
  const int64_t query = blockIdx.x / tiles;
  const int head = static_cast<int>(blockIdx.x % tiles) * Tile::kM;

  TileRows rows;
  rows.rows = min(Tile::kM, params.h_q - head);
  rows.q = static_cast<const bf16*>(params.q) + query * params.q_stride_s + head * params.q_stride_h;
  rows.q_stride = params.q_stride_h;
  rows.out = static_cast<bf16*>(params.out) + query * params.out_stride_s + head * params.out_stride_h;
  rows.out_stride = params.out_stride_h;
  rows.lse = params.lse + query * params.h_q + head;
  rows.max_logits = params.max_logits + query * params.h_q + head;
  rows.stats_stride = 1;
  rows.attn_sink = params.attn_sink == nullptr ? nullptr : params.attn_sink + head;

  GatheredKeys<Tile> keys(params, query, shared_memory);
  WideAttention<Tile>(shared_memory, params.sm_scale).run(rows, keys);
}

}  // namespace flash_dsa::sm80
