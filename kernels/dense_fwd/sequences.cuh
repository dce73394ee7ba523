// Packed sequences on the device: which queries and keys a block of threads serves.
#pragma once

#include "../sm80.cuh"
#include "params.h"

namespace flash_dsa::sm80 {

struct SequenceTile {
  int64_t first_query;  // row of q where the sequence starts
  int64_t first_key;    // row of k and v where it starts
  int s_q, s_kv;        // its lengths
  int start;            // first query of this tile, within the sequence
  int rows;             // queries of this tile, 0 when there is no such tile

  // One past the last key that query `row` of the tile sees; may be <= 0.
  __device__ int keys_seen(int row, bool causal) const {
    return causal ? min(s_kv, s_kv - s_q + start + row + 1) : s_kv;  // in this order no sum passes 2^31
  }

  __device__ int blocks(int block_keys, bool causal) const {
    return (max(keys_seen(rows - 1, causal), 0) + block_keys - 1) / block_keys;
  }
};

// Query head that this block of threads serves; the last layer of the grid may hold some that do not exist.
__device__ inline int head_of_block() { return static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y); }

// Bounds outside the tensors, which the host cannot see without waiting for the device, are clamped to them.
__device__ inline int clamped_bound(int value, int64_t limit) {
  return static_cast<int>(min(static_cast<int64_t>(max(value, 0)), limit));
}

// How many tiles of `rows` queries all sequences have.
__device__ inline int count_tiles(const DenseFwdParams& params, int rows) {
  int tiles = 0;
  for (int sequence = threadIdx.x % kWarp; sequence < params.batch; sequence += kWarp) {
    const int begin = clamped_bound(params.cu_seqlens_qo[sequence], params.tot_q);
    const int length = clamped_bound(params.cu_seqlens_qo[sequence + 1], params.tot_q) - begin;
    tiles += (max(length, 0) + rows - 1) / rows;
  }
  return static_cast<int>(__reduce_add_sync(0xffffffff, tiles));
}

// Number `tile` of the tiles of `rows` queries of all sequences; there are at most tot_q / rows + batch of them.
// Every warp scans the lengths by itself, 32 sequences at a time. Within a causal sequence long tiles come first.
__device__ inline SequenceTile find_tile(const DenseFwdParams& params, int tile, int rows) {
  const int lane = threadIdx.x % kWarp;
  int before = 0;
  for (int first = 0; first < params.batch; first += kWarp) {
    const int sequence = first + lane;
    int begin = 0, length = 0;
    if (sequence < params.batch) {
      begin = clamped_bound(params.cu_seqlens_qo[sequence], params.tot_q);
      length = max(clamped_bound(params.cu_seqlens_qo[sequence + 1], params.tot_q) - begin, 0);
    }
    const int tiles = (length + rows - 1) / rows;
    int through = tiles;  // inclusive prefix sum over the lanes
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int below = __shfl_up_sync(0xffffffff, through, distance);
      if (lane >= distance) through += below;
    }
    const unsigned holds = __ballot_sync(0xffffffff, tile < before + through);
    if (holds != 0) {
      const int owner = __ffs(holds) - 1;
      const int skipped = before + __shfl_sync(0xffffffff, through - tiles, owner);
      const int owner_tiles = __shfl_sync(0xffffffff, tiles, owner);
      SequenceTile found;
      found.first_query = __shfl_sync(0xffffffff, begin, owner);
      found.s_q = __shfl_sync(0xffffffff, length, owner);
      const int key_begin = clamped_bound(params.cu_seqlens_kv[first + owner], params.tot_kv);
      found.first_key = key_begin;
      found.s_kv = max(clamped_bound(params.cu_seqlens_kv[first + owner + 1], params.tot_kv) - key_begin, 0);
      const int index = tile - skipped;
      found.start = (params.causal ? owner_tiles - 1 - index : index) * rows;
      found.rows = min(rows, found.s_q - found.start);
      return found;
    }
    before += __shfl_sync(0xffffffff, through, kWarp - 1);
  }
  return SequenceTile{};
}

}  // namespace flash_dsa::sm80
