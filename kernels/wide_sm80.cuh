// Attention of a tile of query rows over blocks of keys for d_v = 512, shared by sparse_fwd (rows are the heads of one
// query) and dense_fwd 576x512 (rows are queries of one head). The output tile, 512 columns wide, fills the registers
// of the block, so all warps work on the same rows:
//   1. scores S = Q K^T: warp (m, n, k) multiplies 32 rows x half the keys x half of d_qk;
//   2. the two warps that share rows and keys swap halves of their partial S through shared memory; each finishes 16
//      rows x half the keys: mask, row maximum (swapped between the two key halves), P = exp2, row sums;
//   3. P goes to shared memory in bf16; every warp multiplies all rows by its own columns of V.
// Per key this reads shared memory (32 + 32 rows)/(32 x 32) as often as it multiplies in step 1, the least that eight
// warps can with Q too large for registers.
//
// Roles: none; every warp copies, multiplies and does softmax. 4 warps per 32 rows.
//
// Shared memory, bytes (M rows, N keys):        | 64x64  | 64x32 | 32x32 | 32x16
//   q        M x d_qk, swizzled; out at the end | 73728  | 73728 | 36864 | 36864
//   wide     two tiles N x 512, swizzled        | 131072 | 65536 | 65536 | 32768
//   rope     N x 64, swizzled                   | 8192   | 4096  | 4096  | 2048
//   swap     M x N fp32 partial S, then P       | 16384  | 8192  | 4096  | 2048
//   row statistics, indices, TileRows           | 1872   | 1616  | 976   | 848
//
// Barriers of block i:
//   top (all)              K of block i has landed; PV of block i-1 is done, so its tiles and P may be overwritten
//   partial S (64 threads) both halves of d_qk are in `swap`
//   row maximum (64)       both halves of the keys are in `row_max`
//   P (all)                P and the row scales are written, scores no longer need K
#pragma once

#include "sm80.cuh"

namespace flash_dsa::sm80 {

constexpr int kValueDim = 512;
constexpr int kRopeDim = 64;

template <int kRowGroups_, int kN_, int kDqk_>
struct WideTile {
  static constexpr int kRowGroups = kRowGroups_;  // of 32 rows, one mma pair of m16 tiles: the A fragments of a warp
  static constexpr int kM = 32 * kRowGroups;
  static constexpr int kN = kN_;
  static constexpr int kDqk = kDqk_;
  static constexpr bool kHasRope = kDqk > kValueDim;
  static constexpr int kWarps = 4 * kRowGroups;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kHalfN = kN / 2;
  static constexpr int kScoreTiles = kHalfN / 8;          // n8 tiles of S per warp
  static constexpr int kOutColumns = kValueDim / kWarps;  // of V and out per warp
  static constexpr int kOutTiles = kOutColumns / 8;
  static constexpr int kRowTiles = kM / 16;
  static constexpr int kKSteps = kDqk / 16 / 2;        // k16 steps of one half of d_qk
  static constexpr int kPieceBytes = 16 * kHalfN * 4;  // one warp's share of `swap`

  // Byte offsets into dynamic shared memory.
  static constexpr int kQ = 0;
  static constexpr int kQRope = kQ + kM * kValueDim * 2;
  static constexpr int kWide = kQRope + (kHasRope ? kM * kRopeDim * 2 : 0);
  static constexpr int kWideBytes = kN * kValueDim * 2;
  static constexpr int kRope = kWide + 2 * kWideBytes;
  static constexpr int kSwap = kRope + (kHasRope ? kN * kRopeDim * 2 : 0);
  static constexpr int kRowMax = kSwap + kM * kN * 4;     // float [2][kM]
  static constexpr int kRowScale = kRowMax + 2 * kM * 4;  // float [kM]
  static constexpr int kRowSum = kRowScale + kM * 4;      // float [2][kM]
  static constexpr int kIndices = kRowSum + 2 * kM * 4;   // int [2][kN], sparse only
  static constexpr int kRows = kIndices + 2 * kN * 4;     // TileRows
  static constexpr int kSharedBytes = kRows + 80;
};

// Where the rows of a tile live. Rows past `rows` are computed on zeros and not written.
struct TileRows {
  int rows;
  const bf16* q;
  int64_t q_stride;
  bf16* out;
  int64_t out_stride;
  float* lse;
  float* max_logits;  // or null
  int64_t stats_stride;
  const float* attn_sink;  // per row, or null
};
static_assert(sizeof(TileRows) <= 80);

// One k16 step of K for a warp: half the keys of a tile whose rows are kRowBytes long.
template <class Tile, int kRowBytes>
__device__ inline void load_keys(uint32_t (&k)[Tile::kScoreTiles][2], uint32_t address) {
  if constexpr (Tile::kScoreTiles == 1) {
    load_matrix_x2(k[0], address);
  } else {
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; n += 2) load_matrix_x4(k[n], k[n + 1], address + n * 8 * kRowBytes);
  }
}

// Offset in `swap` of 8 keys (16 bytes of bf16) of one row of P. A piece is 16 rows x half the keys, where the warp
// that computed it had read its partner's partial S; its rows are shorter than 128 bytes, hence a swizzle of its own.
template <class Tile>
__device__ inline uint32_t probability_offset(int row, int key_chunk) {
  constexpr int kChunks = Tile::kHalfN / kChunk;
  const int half = key_chunk / kChunks;
  const int chunk = key_chunk % kChunks ^ (row / (8 / kChunks) & (kChunks - 1));
  const int piece = (row / 32 * 2 + half) * 2 + row / 16 % 2;
  return static_cast<uint32_t>(piece * Tile::kPieceBytes + (row % 16 * kChunks + chunk) * 16);
}

// One tile's attention. Keys supplies the data:
//   blocks()             how many blocks of keys there are
//   prologue()           starts the copies of block 0 (and of what it needs to know about block 1)
//   at_top(i)            after the top barrier of block i: start what may overwrite the tiles of block i-1
//   before_p(i)          before the P barrier: wait for what PV of block i needs
//   after_p(i)           after the P barrier: start what may overwrite K of block i
//   nope(i), values(i)   which of the two wide tiles holds them
//   visible(i, row, key) whether the score counts
template <class Tile>
class WideAttention {
 public:
  __device__ WideAttention(unsigned char* shared_memory, float scale)
      : memory_(shared_memory), shared_(shared_address(shared_memory)), scale_(scale) {
    // For ldmatrix, lanes 0-15 name 16 rows of Q, P or V; groups of 8 lanes name 8 keys of K.
    const int q_row = group_ * 32 + lane_ % 16, q_chunk = k_half_ * 2 + lane_ / 16;
    const int k_row = n_half_ * Tile::kHalfN + lane_ % 8 + (Tile::kScoreTiles > 1 ? lane_ / 16 * 8 : 0);
    const int k_chunk = k_half_ * 2 + lane_ / 8 % 2;
    q_address_ = shared_ + Tile::kQ + swizzled<kValueDim * 2>(q_row, q_chunk);
    q_rope_address_ = shared_ + Tile::kQRope + swizzled<kRopeDim * 2>(q_row, q_chunk);
    k_offset_ = swizzled<kValueDim * 2>(k_row, k_chunk);
    k_rope_address_ = shared_ + Tile::kRope + swizzled<kRopeDim * 2>(k_row, k_chunk);
    p_address_ = shared_ + Tile::kSwap + probability_offset<Tile>(lane_ % 16, lane_ / 16);
    v_offset_ = swizzled<kValueDim * 2>(lane_ % 16, warp_ * (Tile::kOutColumns / kChunk) + lane_ / 16);
  }

  template <class Keys>
  __device__ void run(const TileRows& rows, Keys& keys) {
    // The epilogue reads where the rows live from shared memory: registers are what the loop is short of.
    if (threadIdx.x == 0) *reinterpret_cast<TileRows*>(memory_ + Tile::kRows) = rows;
    load_queries(rows);
    keys.prologue();
    const int blocks = keys.blocks();
    for (int block = 0; block < blocks; ++block) {
      copy_async_wait<0>();
      __syncthreads();
      planted_sync();
      keys.at_top(block);
      float partial[2][Tile::kScoreTiles][4] = {};
      multiply_scores(partial, wide_tile(keys.nope(block)));
      float score[Tile::kScoreTiles][4];
      swap_partials(score, partial);
      softmax(score, [&](int row, int key) { return keys.visible(block, row, key); });
      keys.before_p(block);
      __syncthreads();
      keys.after_p(block);
      rescale_out();
      multiply_values(wide_tile(keys.values(block)));
    }
    finish();
  }

 private:
  __device__ uint32_t wide_tile(int which) const { return shared_ + Tile::kWide + which * Tile::kWideBytes; }
  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(memory_ + offset); }

  // Where a warp of this pair finds the partial S of row tile `row_tile`, and then writes its P.
  __device__ float4* piece(int row_tile) const {
    const int number = (group_ * 2 + n_half_) * 2 + row_tile;
    return reinterpret_cast<float4*>(memory_ + Tile::kSwap + number * Tile::kPieceBytes) + lane_;
  }

  __device__ void load_queries(const TileRows& rows) const {
    const auto number = [&](int row) { return row < rows.rows ? row : -1; };
    copy_rows<Tile::kM, kValueDim, Tile::kThreads>(shared_ + Tile::kQ, rows.q, rows.q_stride, number);
    if constexpr (Tile::kHasRope) {
      copy_rows<Tile::kM, kRopeDim, Tile::kThreads>(shared_ + Tile::kQRope, rows.q + kValueDim, rows.q_stride, number);
    }
  }

  // Partial S: 32 rows x half the keys over half of d_qk. The halves of d_qk take turns by k16 steps (two chunks), so
  // that both have as many of NoPE and of RoPE. Operands are loaded ahead, so that the tensor cores do not wait for
  // shared memory: K one step, each row tile of Q as soon as its registers are free, which is what the registers beside
  // `out_` have room for.
  __device__ void multiply_scores(float (&partial)[2][Tile::kScoreTiles][4], uint32_t nope) const {
    constexpr int kNopeSteps = kValueDim / 16 / 2;
    uint32_t q[2][4], k[2][Tile::kScoreTiles][2];
    const auto load_q = [&](int step, int m) {
      if (Tile::kHasRope && step >= kNopeSteps) {
        load_matrix_x4(q[m], advanced(q_rope_address_, (step - kNopeSteps) * 4) + m * 16 * kRopeDim * 2);
      } else {
        load_matrix_x4(q[m], advanced(q_address_, step * 4) + m * 16 * kValueDim * 2);
      }
    };
    const auto load_k = [&](int step) {
      if (Tile::kHasRope && step >= kNopeSteps) {
        load_keys<Tile, kRopeDim * 2>(k[step % 2], advanced(k_rope_address_, (step - kNopeSteps) * 4));
      } else {
        load_keys<Tile, kValueDim * 2>(k[step % 2], advanced(nope + k_offset_, step * 4));
      }
    };
    load_k(0);
    load_q(0, 0);
    load_q(0, 1);
#pragma unroll
    for (int step = 0; step < Tile::kKSteps; ++step) {
      const bool more = step + 1 < Tile::kKSteps;
      if (more) load_k(step + 1);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < Tile::kScoreTiles; ++n) mma(partial[m][n], q[m], k[step % 2][n][0], k[step % 2][n][1]);
        if (more) load_q(step + 1, m);
      }
    }
  }

  // The pair of warps with the same rows and keys adds its halves of d_qk: this warp keeps row tile k_half_, its
  // partner the other.
  __device__ void swap_partials(float (&score)[Tile::kScoreTiles][4],
                                const float (&partial)[2][Tile::kScoreTiles][4]) const {
    // Selected value by value: a reference to either tile would put both into local memory.
    const auto part = [&](int row_tile, int n, int i) { return row_tile ? partial[1][n][i] : partial[0][n][i]; };
    const int give = 1 - k_half_;
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
      piece(give)[n * kWarp] = make_float4(part(give, n, 0), part(give, n, 1), part(give, n, 2), part(give, n, 3));
    }
    named_barrier(1 + group_ * 2 + n_half_, 2 * kWarp);
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
      const float4 other = piece(k_half_)[n * kWarp];
      const float others[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) score[n][i] = part(k_half_, n, i) + others[i];
    }
  }

  // Online softmax of 16 rows x half the keys: masks, agrees on the row maximum with the warp of the other keys, writes
  // P and, once per row, the factor by which `out_` has to shrink.
  template <class Visible>
  __device__ void softmax(float (&score)[Tile::kScoreTiles][4], Visible visible) {
    float block_max[2] = {-kInfinity, -kInfinity};
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = n_half_ * Tile::kHalfN + n * 8 + lane_ % 4 * 2 + i % 2;
        if (!visible(row_ + i / 2 * 8, key)) score[n][i] = -kInfinity;
        block_max[i / 2] = fmaxf(block_max[i / 2], score[n][i]);
      }
    }
    float* row_maxima = floats(Tile::kRowMax);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      block_max[h] = row_max(block_max[h]);
      if (lane_ % 4 == 0) row_maxima[n_half_ * Tile::kM + row_ + h * 8] = block_max[h];
    }
    named_barrier(5 + group_ * 2 + k_half_, 2 * kWarp);
    const float scale_log2 = scale_ * kLog2e;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row_ + h * 8;
      const float new_max = fmaxf(maximum_[h], fmaxf(block_max[h], row_maxima[(1 - n_half_) * Tile::kM + row]));
      const auto [shift, rescale] = rescale_to(maximum_[h], new_max, scale_log2);
      if (n_half_ == 0 && lane_ % 4 == 0) floats(Tile::kRowScale)[row] = rescale;
      maximum_[h] = new_max;
      float block_sum = 0.0f;
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; ++n) {
        const float p0 = exp2_approx(fmaf(score[n][h * 2], scale_log2, -shift));
        const float p1 = exp2_approx(fmaf(score[n][h * 2 + 1], scale_log2, -shift));
        block_sum += p0 + p1;
        const uint32_t offset = probability_offset<Tile>(row, n_half_ * (Tile::kHalfN / kChunk) + n);
        *reinterpret_cast<uint32_t*>(memory_ + Tile::kSwap + offset + lane_ % 4 * 4) = pack_bf16(p0, p1);
      }
      sum_[h] = planted_spill(sum_[h] * rescale + block_sum);
    }
  }

  __device__ void rescale_out() {
    bool needed = false;
    float factor[Tile::kRowTiles][2];
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        factor[m][h] = floats(Tile::kRowScale)[m * 16 + h * 8 + lane_ / 4];
        needed |= factor[m][h] != 1.0f;
      }
    }
    if (!__any_sync(0xffffffff, needed)) return;
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Tile::kOutTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out_[m][n][i] *= factor[m][i / 2];
      }
    }
  }

  // All rows x this warp's columns of V. As for S, operands are loaded one step ahead: P by k16 steps, V by pairs of n8
  // tiles within them.
  __device__ void multiply_values(uint32_t values) {
    constexpr int kSteps = Tile::kN / 16, kPairs = Tile::kOutTiles / 2, kPieceChunks = Tile::kHalfN / kChunk;
    uint32_t p[2][Tile::kRowTiles][4], v[2][4];
    const auto load_p = [&](int step) {
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        const int number = (m / 2 * 2 + step * 2 / kPieceChunks) * 2 + m % 2;
        load_matrix_x4(p[step % 2][m], advanced(p_address_, step * 2 % kPieceChunks) + number * Tile::kPieceBytes);
      }
    };
    const auto load_v = [&](int pair) {
      load_matrix_x4_transposed(v[pair % 2],
                                advanced(values + v_offset_, pair % kPairs * 2) + pair / kPairs * 16 * kValueDim * 2);
    };
    load_p(0);
    load_v(0);
#pragma unroll
    for (int pair = 0; pair < kSteps * kPairs; ++pair) {
      const int step = pair / kPairs, n = pair % kPairs * 2;
      if (pair % kPairs == 0 && step + 1 < kSteps) load_p(step + 1);
      if (pair + 1 < kSteps * kPairs) load_v(pair + 1);
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        mma(out_[m][n], p[step % 2][m], v[pair % 2][0], v[pair % 2][1]);
        mma(out_[m][n + 1], p[step % 2][m], v[pair % 2][2], v[pair % 2][3]);
      }
    }
  }

  // Epilogue: row sums of both key halves meet in shared memory, out goes through Q's tile for whole-row stores.
  __device__ void finish() {
    float *row_maxima = floats(Tile::kRowMax), *row_sums = floats(Tile::kRowSum);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = row_sum(sum_[h]);
      if (lane_ % 4 == 0) {
        row_sums[n_half_ * Tile::kM + row_ + h * 8] = total;
        row_maxima[row_ + h * 8] = maximum_[h];  // both key halves hold the same maximum
      }
    }
    copy_async_wait<0>();
    __syncthreads();
    const TileRows rows = *reinterpret_cast<const TileRows*>(memory_ + Tile::kRows);
    for (int row = threadIdx.x; row < Tile::kM; row += Tile::kThreads) {
      floats(Tile::kRowScale)[row] =
          write_statistics(rows, row, row_maxima[row], row_sums[row] + row_sums[Tile::kM + row]);
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = m * 16 + h * 8 + lane_ / 4;
        const float factor = floats(Tile::kRowScale)[row];
#pragma unroll
        for (int n = 0; n < Tile::kOutTiles; ++n) {
          const int chunk = warp_ * (Tile::kOutColumns / kChunk) + n;
          *reinterpret_cast<uint32_t*>(memory_ + Tile::kQ + swizzled<kValueDim * 2>(row, chunk) + lane_ % 4 * 4) =
              pack_bf16(scaled(out_[m][n][h * 2], factor), scaled(out_[m][n][h * 2 + 1], factor));
        }
      }
    }
    __syncthreads();
    store_rows<kValueDim, Tile::kThreads>(rows.out, rows.out_stride, rows.rows, memory_ + Tile::kQ);
  }

  // Writes the statistics of a row and returns the factor that makes its sum of P V the output.
  __device__ float write_statistics(const TileRows& rows, int row, float maximum, float sum) const {
    const RowResult result = finish_row(maximum, sum, scale_);
    if (row >= rows.rows) return 0.0f;
    rows.lse[row * rows.stats_stride] = result.lse;
    if (rows.max_logits != nullptr) rows.max_logits[row * rows.stats_stride] = result.max_logit;
    if (rows.attn_sink == nullptr || result.factor == 0.0f) return result.factor;
    return result.factor / (1.0f + expf(rows.attn_sink[row] - result.lse));
  }

  // Warp (group_, n_half_, k_half_): 32 rows, half the keys, half of d_qk. row_ is the first of the two rows of this
  // lane among the 16 that the warp finishes.
  const int lane_ = threadIdx.x % kWarp, warp_ = threadIdx.x / kWarp;
  const int k_half_ = warp_ % 2, n_half_ = warp_ / 2 % 2, group_ = warp_ / 4;
  const int row_ = group_ * 32 + k_half_ * 16 + lane_ / 4;

  unsigned char* memory_;
  uint32_t shared_;
  float scale_;
  uint32_t q_address_, q_rope_address_, k_offset_, k_rope_address_, p_address_, v_offset_;

  float out_[Tile::kRowTiles][Tile::kOutTiles][4] = {};
  float maximum_[2] = {-kInfinity, -kInfinity};
  float sum_[2] = {0.0f, 0.0f};
};

}  // namespace flash_dsa::sm80
