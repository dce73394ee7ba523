// dense_fwd 192x128 and 128x128, portable target: one block of threads serves a tile of queries of one head.
//
// Every warp owns 16 * kRowTiles queries and goes through the keys alone: S = Q K^T, online softmax in registers, P
// stays in registers as the A operand of P V. Warps meet only where a stage of K and V changes hands.
//
// Shared memory, bytes (two stages of kN keys):
//   q       M x d_qk, swizzled; out at the end   kRowTiles 2 only; else Q is read once, through the stages
//   stage   K N x d_qk, then V N x 128, swizzled, twice
//
// Barriers: one per block of keys, after its copies have landed and before the other stage is written again.
// Constraints (checked in op.cpp): h_q a multiple of h_kv, rows on 16 bytes.
#pragma once

#include "sequences.cuh"

namespace flash_dsa::sm80 {

template <int kDqk_, int kRowTiles_, int kWarps_, int kN_>
struct NarrowTile {
  static constexpr int kDqk = kDqk_;
  static constexpr int kDv = 128;
  static constexpr int kRowTiles = kRowTiles_;  // m16 tiles per warp
  static constexpr int kWarps = kWarps_;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kM = 16 * kRowTiles * kWarps;
  static constexpr int kN = kN_;
  static constexpr int kKSteps = kDqk / 16;
  static constexpr int kScoreTiles = kN / 8;
  static constexpr int kOutTiles = kDv / 8;
  // With one row tile per warp, Q fits into registers beside the accumulators and needs no place of its own.
  static constexpr bool kQInRegisters = kRowTiles == 1;

  static constexpr int kQBytes = kM * kDqk * 2;
  static constexpr int kKBytes = kN * kDqk * 2;
  static constexpr int kStageBytes = kKBytes + kN * kDv * 2;
  static constexpr int kStages = kQInRegisters ? 0 : kQBytes;  // offset
  static constexpr int kSharedBytes = kStages + 2 * kStageBytes;
  static_assert(!kQInRegisters || kQBytes <= 2 * kStageBytes, "Q is read through the stages");
};

template <class Tile>
__device__ inline void load_q_fragment(uint32_t (&a)[4], uint32_t q, int row_tile, int step) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row = (warp * Tile::kRowTiles + row_tile) * 16 + lane % 16;
  load_matrix_x4(a, q + swizzled<Tile::kDqk * 2>(row, step * 2 + lane / 16));
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 256 / Tile::kThreads)
    dense_narrow_kernel(const DenseFwdParams params) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const SequenceTile tile = find_tile<Tile::kM>(params, static_cast<int>(blockIdx.x));
  if (tile.rows <= 0) return;
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / (params.h_q / params.h_kv);
  const int64_t query = tile.first_query + tile.start;
  const bf16* q_rows = static_cast<const bf16*>(params.q) + query * params.q_stride_s + head * params.q_stride_h;
  const bf16* k_rows =
      static_cast<const bf16*>(params.k) + tile.first_key * params.k_stride_s + kv_head * params.k_stride_h;
  const bf16* v_rows =
      static_cast<const bf16*>(params.v) + tile.first_key * params.v_stride_s + kv_head * params.v_stride_h;

  const uint32_t shared = shared_address(shared_memory);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float scale_log2 = params.softmax_scale * kLog2e;
  const int blocks = tile.blocks(Tile::kN, params.causal);

  const auto copy_block = [&](int block) {
    const uint32_t stage = shared + Tile::kStages + block % 2 * Tile::kStageBytes;
    const auto number = [&](int row) {
      const int key = block * Tile::kN + row;
      return key < tile.s_kv ? key : -1;
    };
    copy_rows<Tile::kN, Tile::kDqk, Tile::kThreads>(stage, k_rows, params.k_stride_s, number);
    copy_rows<Tile::kN, Tile::kDv, Tile::kThreads>(stage + Tile::kKBytes, v_rows, params.v_stride_s, number);
  };

  copy_rows<Tile::kM, Tile::kDqk, Tile::kThreads>(shared, q_rows, params.q_stride_s,
                                                  [&](int row) { return row < tile.rows ? row : -1; });
  copy_async_commit();
  uint32_t q_registers[Tile::kQInRegisters ? Tile::kKSteps : 1][4];
  if constexpr (Tile::kQInRegisters) {
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < Tile::kKSteps; ++step) load_q_fragment<Tile>(q_registers[step], shared, 0, step);
    __syncthreads();
  }
  if (blocks > 0) copy_block(0);
  copy_async_commit();

  float out[Tile::kRowTiles][Tile::kOutTiles][4] = {};
  float maximum[Tile::kRowTiles][2], sum[Tile::kRowTiles][2];
#pragma unroll
  for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      maximum[m][h] = -kInfinity;
      sum[m][h] = 0.0f;
    }
  }
  const int first_row = warp * Tile::kRowTiles * 16 + lane / 4;  // of this lane, within the tile

  for (int block = 0; block < blocks; ++block) {
    copy_async_wait<0>();
    __syncthreads();
    if (block + 1 < blocks) copy_block(block + 1);
    copy_async_commit();
    const uint32_t k_tile = shared + Tile::kStages + block % 2 * Tile::kStageBytes;
    const uint32_t v_tile = k_tile + Tile::kKBytes;

    float s[Tile::kRowTiles][Tile::kScoreTiles][4] = {};
#pragma unroll
    for (int step = 0; step < Tile::kKSteps; ++step) {
      uint32_t a[Tile::kRowTiles][4];
      if constexpr (!Tile::kQInRegisters) {
#pragma unroll
        for (int m = 0; m < Tile::kRowTiles; ++m) load_q_fragment<Tile>(a[m], shared, m, step);
      }
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; n += 2) {
        uint32_t b[4];
        load_matrix_x4(b, k_tile + swizzled<Tile::kDqk * 2>(n * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < Tile::kRowTiles; ++m) {
          const auto& q = Tile::kQInRegisters ? q_registers[Tile::kQInRegisters ? step : 0] : a[m];
          mma(s[m][n], q, b[0], b[1]);
          mma(s[m][n + 1], q, b[2], b[3]);
        }
      }
    }

    // Only the blocks at the diagonal and at the end hold keys that some row of the tile must not see.
    if ((block + 1) * Tile::kN > tile.keys_seen(0, params.causal)) {
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int seen = tile.keys_seen(first_row + m * 16 + i / 2 * 8, params.causal) - block * Tile::kN;
#pragma unroll
          for (int n = 0; n < Tile::kScoreTiles; ++n) {
            if (n * 8 + lane % 4 * 2 + i % 2 >= seen) s[m][n][i] = -kInfinity;
          }
        }
      }
    }

    uint32_t p[Tile::kRowTiles][Tile::kN / 16][4];
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float block_max = -kInfinity;
#pragma unroll
        for (int n = 0; n < Tile::kScoreTiles; ++n)
          block_max = fmaxf(block_max, fmaxf(s[m][n][h * 2], s[m][n][h * 2 + 1]));
        const float new_max = fmaxf(maximum[m][h], row_max(block_max));
        // A row that has seen nothing keeps -inf; 0 in its place lets exp2(-inf) give the zeros it should.
        const float shift = new_max == -kInfinity ? 0.0f : new_max * scale_log2;
        const float rescale = exp2_approx(maximum[m][h] * scale_log2 - shift);
        maximum[m][h] = new_max;
        float block_sum = 0.0f;
#pragma unroll
        for (int n = 0; n < Tile::kScoreTiles; ++n) {
          const float p0 = exp2_approx(fmaf(s[m][n][h * 2], scale_log2, -shift));
          const float p1 = exp2_approx(fmaf(s[m][n][h * 2 + 1], scale_log2, -shift));
          block_sum += p0 + p1;
          // An accumulator's layout is an A operand's: two n8 tiles make one k16 step.
          p[m][n / 2][n % 2 * 2 + h] = pack_bf16(p0, p1);
        }
        sum[m][h] = sum[m][h] * rescale + block_sum;
#pragma unroll
        for (int n = 0; n < Tile::kOutTiles; ++n) {
          out[m][n][h * 2] *= rescale;
          out[m][n][h * 2 + 1] *= rescale;
        }
      }
    }

#pragma unroll
    for (int step = 0; step < Tile::kN / 16; ++step) {
#pragma unroll
      for (int n = 0; n < Tile::kOutTiles; n += 2) {
        uint32_t v[4];
        load_matrix_x4_transposed(v, v_tile + swizzled<Tile::kDv * 2>(step * 16 + lane % 16, n + lane / 16));
#pragma unroll
        for (int m = 0; m < Tile::kRowTiles; ++m) {
          mma(out[m][n], p[m][step], v[0], v[1]);
          mma(out[m][n + 1], p[m][step], v[2], v[3]);
        }
      }
    }
  }

  // Epilogue: out goes through shared memory for whole-row stores; all copies and reads of it are done.
  copy_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first_row + m * 16 + h * 8;
      const float total = row_sum(sum[m][h]);
      const bool empty = maximum[m][h] == -kInfinity;
      const float factor = empty ? 0.0f : 1.0f / total;
      if (lane % 4 == 0 && row < tile.rows) {
        params.lse[(query + row) * params.lse_stride_s + head * params.lse_stride_h] =
            empty ? kInfinity : maximum[m][h] * params.softmax_scale + logf(total);
      }
#pragma unroll
      for (int n = 0; n < Tile::kOutTiles; ++n) {
        *reinterpret_cast<uint32_t*>(shared_memory + swizzled<Tile::kDv * 2>(row, n) + lane % 4 * 4) =
            pack_bf16(out[m][n][h * 2] * factor, out[m][n][h * 2 + 1] * factor);
      }
    }
  }
  __syncthreads();
  bf16* out_rows = static_cast<bf16*>(params.out) + query * params.out_stride_s + head * params.out_stride_h;
  constexpr int kChunks = Tile::kDv / kChunk;
  for (int i = threadIdx.x; i < tile.rows * kChunks; i += Tile::kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    *reinterpret_cast<uint4*>(out_rows + row * params.out_stride_s + chunk * kChunk) =
        *reinterpret_cast<const uint4*>(shared_memory + swizzled<Tile::kDv * 2>(row, chunk));
  }
}

}  // namespace flash_dsa::sm80
