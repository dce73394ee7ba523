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
//   row statistics and indices                  | 2048   | 1792  | 1024  | 896
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

template <class Tile>
__device__ inline void load_queries(uint32_t shared, const TileRows& io) {
  const auto number = [&](int row) { return row < io.rows ? row : -1; };
  copy_rows<Tile::kM, kValueDim, Tile::kThreads>(shared + Tile::kQ, io.q, io.q_stride, number);
  if constexpr (Tile::kHasRope) {
    copy_rows<Tile::kM, kRopeDim, Tile::kThreads>(shared + Tile::kQRope, io.q + kValueDim, io.q_stride, number);
  }
}

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

// Runs the tile over `keys.blocks()` blocks. Keys supplies the data:
//   prologue()          starts the copies of block 0 (and of what it needs to know about block 1)
//   at_top(i)           after the top barrier of block i: start what may overwrite the tiles of block i-1
//   before_p(i)         before the P barrier: wait for what PV of block i needs
//   after_p(i)          after the P barrier: start what may overwrite K of block i
//   nope(i), values(i)  which of the two wide tiles holds them
//   visible(i, row, key) whether the score counts
template <class Tile, class Keys>
__device__ inline void attend(const TileRows& rows, float scale, unsigned char* shared_memory, Keys& keys) {
  constexpr int kM = Tile::kM;
  const uint32_t shared = shared_address(shared_memory);
  float* row_max_of = reinterpret_cast<float*>(shared_memory + Tile::kRowMax);
  float* row_scale = reinterpret_cast<float*>(shared_memory + Tile::kRowScale);
  float* row_sum_of = reinterpret_cast<float*>(shared_memory + Tile::kRowSum);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int k_half = warp % 2, n_half = warp / 2 % 2, group = warp / 4;
  // The 16 rows x half the keys that this warp finishes, and the first of this lane's two rows in them.
  const int finish_row = group * 32 + k_half * 16;
  const int my_row = finish_row + lane / 4;
  const float scale_log2 = scale * kLog2e;

  // This lane's part of the operands: for ldmatrix lanes 0-15 name 16 rows of Q, two groups of 8 name keys.
  const int q_row = group * 32 + lane % 16, q_chunk = k_half * 2 + lane / 16;
  const int k_row = n_half * Tile::kHalfN + lane % 8 + (Tile::kScoreTiles > 1 ? lane / 16 * 8 : 0);
  const int k_chunk = k_half * 2 + lane / 8 % 2;
  const uint32_t q_address = shared + Tile::kQ + swizzled<kValueDim * 2>(q_row, q_chunk);
  const uint32_t q_rope_address = shared + Tile::kQRope + swizzled<kRopeDim * 2>(q_row, q_chunk);
  const uint32_t k_offset = swizzled<kValueDim * 2>(k_row, k_chunk);
  const uint32_t k_rope_address = shared + Tile::kRope + swizzled<kRopeDim * 2>(k_row, k_chunk);
  const uint32_t p_address = shared + Tile::kSwap + probability_offset<Tile>(lane % 16, lane / 16);
  const uint32_t v_offset = swizzled<kValueDim * 2>(lane % 16, warp * (Tile::kOutColumns / kChunk) + lane / 16);
  constexpr int kNopeSteps = kValueDim / 16 / 2;

  // The epilogue reads where the rows live from shared memory: registers are what the loop is short of.
  if (threadIdx.x == 0) *reinterpret_cast<TileRows*>(shared_memory + Tile::kRows) = rows;
  load_queries<Tile>(shared, rows);
  keys.prologue();

  float out[Tile::kRowTiles][Tile::kOutTiles][4] = {};
  float maximum[2] = {-kInfinity, -kInfinity};
  float sum[2] = {0.0f, 0.0f};

  const int blocks = keys.blocks();
  for (int block = 0; block < blocks; ++block) {
    copy_async_wait<0>();
    __syncthreads();
    keys.at_top(block);

    float s[2][Tile::kScoreTiles][4] = {};
    const uint32_t nope = shared + Tile::kWide + keys.nope(block) * Tile::kWideBytes;
    // The halves of d_qk take turns by k16 steps (two chunks), so that both have as many of NoPE and of RoPE.
    // Operands are loaded ahead, so that the tensor cores do not wait for shared memory: K one step, each row tile of Q
    // as soon as its registers are free, which is what the registers beside `out` have room for.
    uint32_t q[2][4], k[2][Tile::kScoreTiles][2];
    const auto load_q = [&](int step, int m) {
      if (Tile::kHasRope && step >= kNopeSteps) {
        load_matrix_x4(q[m], advanced(q_rope_address, (step - kNopeSteps) * 4) + m * 16 * kRopeDim * 2);
      } else {
        load_matrix_x4(q[m], advanced(q_address, step * 4) + m * 16 * kValueDim * 2);
      }
    };
    const auto load_k = [&](int step) {
      if (Tile::kHasRope && step >= kNopeSteps) {
        load_keys<Tile, kRopeDim * 2>(k[step % 2], advanced(k_rope_address, (step - kNopeSteps) * 4));
      } else {
        load_keys<Tile, kValueDim * 2>(k[step % 2], advanced(nope + k_offset, step * 4));
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
        for (int n = 0; n < Tile::kScoreTiles; ++n) mma(s[m][n], q[m], k[step % 2][n][0], k[step % 2][n][1]);
        if (more) load_q(step + 1, m);
      }
    }

    // Swap halves of d_qk: this warp keeps row tile k_half, its partner the other.
    const auto piece = [&](int row_tile) {
      return reinterpret_cast<float4*>(shared_memory + Tile::kSwap +
                                       ((group * 2 + n_half) * 2 + row_tile) * Tile::kPieceBytes) +
             lane;
    };
    // Selected value by value: a reference to either tile would put both into local memory.
    const auto part = [&](int row_tile, int n, int i) { return row_tile ? s[1][n][i] : s[0][n][i]; };
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
      const int give = 1 - k_half;
      piece(give)[n * kWarp] = make_float4(part(give, n, 0), part(give, n, 1), part(give, n, 2), part(give, n, 3));
    }
    named_barrier(1 + group * 2 + n_half, 2 * kWarp);
    float score[Tile::kScoreTiles][4];
    float block_max[2] = {-kInfinity, -kInfinity};
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
      const float4 other = piece(k_half)[n * kWarp];
      const float total[4] = {part(k_half, n, 0) + other.x, part(k_half, n, 1) + other.y, part(k_half, n, 2) + other.z,
                              part(k_half, n, 3) + other.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = n_half * Tile::kHalfN + n * 8 + lane % 4 * 2 + i % 2;
        score[n][i] = keys.visible(block, my_row + i / 2 * 8, key) ? total[i] : -kInfinity;
        block_max[i / 2] = fmaxf(block_max[i / 2], score[n][i]);
      }
    }

    // The row maximum over both halves of the keys.
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      block_max[h] = row_max(block_max[h]);
      if (lane % 4 == 0) row_max_of[n_half * kM + my_row + h * 8] = block_max[h];
    }
    named_barrier(5 + group * 2 + k_half, 2 * kWarp);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = my_row + h * 8;
      const float new_max = fmaxf(maximum[h], fmaxf(block_max[h], row_max_of[(1 - n_half) * kM + row]));
      // A row that has seen nothing keeps -inf; 0 in its place lets exp2(-inf) give the zeros it should.
      const float shift = new_max == -kInfinity ? 0.0f : new_max * scale_log2;
      const float rescale = exp2_approx(maximum[h] * scale_log2 - shift);
      if (n_half == 0 && lane % 4 == 0) row_scale[row] = rescale;
      maximum[h] = new_max;
      float block_sum = 0.0f;
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; ++n) {
        float& p0 = score[n][h * 2];
        float& p1 = score[n][h * 2 + 1];
        p0 = exp2_approx(fmaf(p0, scale_log2, -shift));
        p1 = exp2_approx(fmaf(p1, scale_log2, -shift));
        block_sum += p0 + p1;
        const uint32_t offset = probability_offset<Tile>(row, n_half * (Tile::kHalfN / kChunk) + n);
        *reinterpret_cast<uint32_t*>(shared_memory + Tile::kSwap + offset + lane % 4 * 4) = pack_bf16(p0, p1);
      }
      sum[h] = sum[h] * rescale + block_sum;
    }

    keys.before_p(block);
    __syncthreads();
    keys.after_p(block);

    bool rescaled = false;
    float factor[Tile::kRowTiles][2];
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        factor[m][h] = row_scale[m * 16 + h * 8 + lane / 4];
        rescaled |= factor[m][h] != 1.0f;
      }
    }
    if (__any_sync(0xffffffff, rescaled)) {
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < Tile::kOutTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[m][n][i] *= factor[m][i / 2];
        }
      }
    }
    const uint32_t values = shared + Tile::kWide + keys.values(block) * Tile::kWideBytes;
    // As for S, operands are loaded one step ahead: P by k16 steps, V by pairs of n8 tiles within them.
    constexpr int kSteps = Tile::kN / 16, kPairs = Tile::kOutTiles / 2;
    uint32_t p[2][Tile::kRowTiles][4], v[2][4];
    const auto load_p = [&](int step) {
      constexpr int kPieceChunks = Tile::kHalfN / kChunk;
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        const int piece = (m / 2 * 2 + step * 2 / kPieceChunks) * 2 + m % 2;
        load_matrix_x4(p[step % 2][m], advanced(p_address, step * 2 % kPieceChunks) + piece * Tile::kPieceBytes);
      }
    };
    const auto load_v = [&](int pair) {
      load_matrix_x4_transposed(v[pair % 2],
                                advanced(values + v_offset, pair % kPairs * 2) + pair / kPairs * 16 * kValueDim * 2);
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
        mma(out[m][n], p[step % 2][m], v[pair % 2][0], v[pair % 2][1]);
        mma(out[m][n + 1], p[step % 2][m], v[pair % 2][2], v[pair % 2][3]);
      }
    }
  }

  // Epilogue: row sums of both key halves meet in shared memory, out goes through Q's tile for whole-row stores.
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float total = row_sum(sum[h]);
    if (lane % 4 == 0) {
      row_sum_of[n_half * kM + my_row + h * 8] = total;
      row_max_of[my_row + h * 8] = maximum[h];  // both key halves hold the same maximum
    }
  }
  copy_async_wait<0>();
  __syncthreads();
  const TileRows io = *reinterpret_cast<const TileRows*>(shared_memory + Tile::kRows);
  for (int row = threadIdx.x; row < kM; row += Tile::kThreads) {
    const float total = row_sum_of[row] + row_sum_of[kM + row];
    const float highest = row_max_of[row] * scale;
    const bool empty = row_max_of[row] == -kInfinity;
    const float lse = empty ? kInfinity : highest + logf(total);
    float factor = empty ? 0.0f : 1.0f / total;
    if (row < io.rows) {
      if (io.attn_sink != nullptr && !empty) factor *= 1.0f / (1.0f + expf(io.attn_sink[row] - lse));
      io.lse[row * io.stats_stride] = lse;
      if (io.max_logits != nullptr) io.max_logits[row * io.stats_stride] = empty ? -kInfinity : highest;
    }
    row_scale[row] = factor;
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = m * 16 + h * 8 + lane / 4;
      const float factor = row_scale[row];
#pragma unroll
      for (int n = 0; n < Tile::kOutTiles; ++n) {
        const uint32_t offset = swizzled<kValueDim * 2>(row, warp * (Tile::kOutColumns / kChunk) + n) + lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(shared_memory + Tile::kQ + offset) =
            pack_bf16(out[m][n][h * 2] * factor, out[m][n][h * 2 + 1] * factor);
      }
    }
  }
  __syncthreads();
  constexpr int kChunks = kValueDim / kChunk;
  for (int i = threadIdx.x; i < io.rows * kChunks; i += Tile::kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    *reinterpret_cast<uint4*>(io.out + row * io.out_stride + chunk * kChunk) =
        *reinterpret_cast<const uint4*>(shared_memory + Tile::kQ + swizzled<kValueDim * 2>(row, chunk));
  }
}

}  // namespace flash_dsa::sm80
