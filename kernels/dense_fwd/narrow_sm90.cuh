// dense_fwd 192x128 and 128x128, SM90: one persistent block of threads per SM takes tiles of 128 queries of one head.
//
// The algorithm, per tile; blocks of kN keys from the last one that a query of the tile sees down to the first, so that
// masks come first:
//   1. the producer copies Q, and K and V of every block by TMA, K one block ahead of V;
//   2. a consumer has 64 queries. S = Q K^T (m64nNk16) of a block is started, then O += P V of the block before it,
//   with
//      P in registers; while PV runs, softmax of S: P = exp2(S - reference) stays in registers for the next PV;
//   3. the reference of a row moves only when a score has outgrown it by 2^8: O is rarely rescaled (after PV has
//   ended);
//   4. O / row sum and lse are stored from registers, and the producer is already in the next tile.
//
// Tiles are handed out by a counter in global memory, in an order that keeps the keys of a few heads in L2 and takes
// long tiles of a causal sequence first (NarrowLaunch). Who computes a tile does not change its result.
//
// Keys past the end of a sequence are those of the next one, or zeros past the tensor's end. Their scores are masked.
// Their values could be NaN, which a P of 0 does not hide: where the last block is cut short by another sequence, the
// producer waits for its values, and clears those rows, before it passes them on.
//
// Roles, 384 threads; registers by setmaxnreg, 64512 in all:
//   warpgroup 0     producer   40   step 1, by its first warp; the others leave
//   warpgroup 1, 2  consumers  232  steps 2 to 4, 64 queries each
//
// Shared memory, bytes:                                              | 192x128 | 128x128
//   q        128 queries, tiles of 64 rows x 64 columns                | 49152  | 32768
//   k        two blocks of 128, 176 keys, tiles of kN x 64 columns    | 98304  | 90112
//   v        the same                                                  | 65536  | 90112
//   work     two descriptions of a tile; barriers                      | 184    | 184
//   sum                                                                | 213176 | 213176
// Rows of a tile are 128 bytes with the 128-byte swizzle, which TMA writes and wgmma reads.
//
// Barriers. A slot's pair is full / empty; parities come from a Cursor that every role advances alike.
//   barrier      slots    arrivals                              waits
//   q full       1        1 producer, and the bytes             consumers, at a tile's first block
//   q empty      1        8 warps of consumers, last S done     producer
//   k full       2        1 producer, and the bytes             consumers
//   k empty      2        8 warps of consumers, S done          producer
//   v full       2        1 producer, and the bytes             consumers
//   v empty      2        8 warps of consumers, PV done         producer
//   work full    2        1 producer                            consumers
//   work empty   2        8 warps of consumers, read            producer
//   tail         1        1 producer, and the bytes             producer: values whose last rows it clears
// Nobody waits in a circle: the producer waits only for what consumers free without it, and consumers do not wait for
// each other. (Turns, so that one's softmax would fall into the other's wgmmas, cost more than they brought.)
//
// Constraints: h_q a multiple of h_kv, rows on 16 bytes (op.cpp); tensors that can be mapped, tiles below 2^31
// (sm90.cu).
#pragma once

#include "../planted.h"
#include "../sm90.cuh"
#include "sequences.cuh"

namespace flash_dsa::sm90 {

template <int kDqk_, int kN_>
struct NarrowPlan {
  static constexpr int kDqk = kDqk_;
  static constexpr int kDv = 128;
  static constexpr int kM = 128;  // two consumers; three would have 160 registers each, and O, S and P are 160
  static constexpr int kN = kN_;
  static constexpr int kStages = 2;
  static constexpr int kThreads = 3 * kWarpgroup;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 65536 / kThreads / 8 * 8 * 3);

  static constexpr int kQTiles = kDqk / 64;                // of 64 columns
  static constexpr int kColumnBytes = kN * 128;            // a tile of kN keys
  static constexpr int kSideBytes = kQTiles * kTileBytes;  // Q of a consumer
  static constexpr int kKBytes = kQTiles * kColumnBytes;
  static constexpr int kVBytes = kDv / 64 * kColumnBytes;
  static_assert(kN % 16 == 0 && kN <= 256 && kColumnBytes % 1024 == 0);

  static constexpr int kQ = 0;
  static constexpr int kK = kQ + 2 * kSideBytes;
  static constexpr int kV = kK + kStages * kKBytes;
  static constexpr int kWork = kV + kStages * kVBytes;

  // Barriers, 8 bytes each.
  static constexpr int kQFull = kWork + 2 * 32;
  static constexpr int kQEmpty = kQFull + 8;
  static constexpr int kKFull = kQEmpty + 8;
  static constexpr int kKEmpty = kKFull + kStages * 8;
  static constexpr int kVFull = kKEmpty + kStages * 8;
  static constexpr int kVEmpty = kVFull + kStages * 8;
  static constexpr int kWorkFull = kVEmpty + kStages * 8;
  static constexpr int kWorkEmpty = kWorkFull + 2 * 8;
  static constexpr int kTail = kWorkEmpty + 2 * 8;
  static constexpr int kSharedBytes = kTail + 8;
};

struct NarrowLaunch {
  CUtensorMap q, k, v;
  DenseFwdParams call;
  // Tiles are taken head group by head group: `heads_at_once` heads whose keys fit into L2 together. Within a group,
  // the tiles of all sequences (find_tile); within a tile, the heads.
  uint32_t heads_at_once;
  uint32_t most_tiles;   // of one head: the host does not see how many there are
  int k_heads, v_heads;  // 0 where all heads lie in one place, else 1: factors of a coordinate
};

// What consumers have to know of a tile; rows = 0: there are no more.
struct NarrowWork {
  int64_t query;  // row of q and out
  int head, rows;
  int blocks;  // of keys, that some row sees
  int seen;    // query r of the tile sees keys below min(seen + r, s_kv)
  int s_kv;
  int unused;
};
static_assert(sizeof(NarrowWork) == 32);

struct NarrowShared {
  unsigned char* memory;
  uint32_t base;  // the same as an address in shared memory, on 1024 bytes
};

// ---- Producer: one warp.

template <class Plan>
class NarrowProducer {
 public:
  __device__ NarrowProducer(const NarrowLaunch& launch, const NarrowShared& shared)
      : launch_(launch), shared_(shared), policy_(keep_in_l2()) {}

  __device__ void run() {
    if (lane() == 0 && launch_.call.tot_kv > 0) {
      prefetch_map(launch_.q);
      prefetch_map(launch_.k);
      prefetch_map(launch_.v);
    }
    const uint32_t tiles = min(static_cast<uint32_t>(sm80::count_tiles(launch_.call, Plan::kM)), launch_.most_tiles);
    const uint32_t all = tiles * static_cast<uint32_t>(launch_.call.h_q);
    uint32_t number = blockIdx.x;
#pragma unroll 1
    while (__any_sync(~0u, number < all)) {
      const uint32_t group = number / (launch_.heads_at_once * tiles), rest = number % (launch_.heads_at_once * tiles);
      const uint32_t first_head = group * launch_.heads_at_once;
      const uint32_t heads = min(launch_.heads_at_once, static_cast<uint32_t>(launch_.call.h_q) - first_head);
      number = take();  // its latency passes while this tile is copied
      copy_tile(static_cast<int>(rest / heads), static_cast<int>(first_head + rest % heads));
      number = __shfl_sync(~0u, number, 0);
    }
    send(NarrowWork{});
  }

 private:
  // Of lane 0.
  __device__ uint32_t take() const { return lane() == 0 ? atomicAdd(launch_.call.next_tile, 1u) + gridDim.x : 0; }

  __device__ void copy_tile(int number, int head) {
    const sm80::SequenceTile tile = sm80::find_tile(launch_.call, number, Plan::kM);
    if (!__any_sync(~0u, tile.rows > 0)) return;  // cu_seqlens that shrink
    const int blocks = tile.blocks(Plan::kN, launch_.call.causal);
    const int64_t query = tile.first_query + tile.start;
    const int seen = launch_.call.causal ? tile.s_kv - tile.s_q + tile.start + 1 : tile.s_kv;
    send(NarrowWork{query, head, tile.rows, blocks, seen, tile.s_kv, 0});
    if (!__any_sync(~0u, blocks > 0)) return;

    const int kv_head = head / (launch_.call.h_q / launch_.call.h_kv);
    const int first_key = static_cast<int>(tile.first_key);
    const int k_head = kv_head * launch_.k_heads, v_head = kv_head * launch_.v_heads;
    copy_keys(first_key + (blocks - 1) * Plan::kN, k_head);  // while Q of the tile before is still in use
    copy_queries(static_cast<int>(query), head);
#pragma unroll 1
    for (int block = blocks - 1; __any_sync(~0u, block >= 0); --block) {
      if (__any_sync(~0u, block > 0)) copy_keys(first_key + (block - 1) * Plan::kN, k_head);
      // Rows of this block that belong to the sequence; another follows it where the tensor does not end there.
      const int rows = tile.s_kv - block * Plan::kN;
      const bool cut = rows < Plan::kN && tile.first_key + tile.s_kv < launch_.call.tot_kv;
      copy_values(first_key + block * Plan::kN, v_head, __any_sync(~0u, cut) ? rows : Plan::kN);
    }
  }

  __device__ void copy_queries(int query, int head) {
    barrier_wait(shared_.base + Plan::kQEmpty, q_.empty_parity());
    if (lane() == 0) {
      const uint32_t full = shared_.base + Plan::kQFull;
      barrier_expect(full, 2 * Plan::kSideBytes);
#pragma unroll
      for (int piece = 0; piece < 2 * Plan::kQTiles; ++piece) {
        copy_box(shared_.base + Plan::kQ + piece * kTileBytes, launch_.q, piece % Plan::kQTiles * 64,
                 query + piece / Plan::kQTiles * 64, head, full, leave_l2_soon());
      }
    }
    __syncwarp();
    q_.advance();
  }

  __device__ void send(const NarrowWork& work) {
    barrier_wait(shared_.base + Plan::kWorkEmpty + work_.slot() * 8, work_.empty_parity());
    if (lane() == 0) {
      reinterpret_cast<NarrowWork*>(shared_.memory + Plan::kWork)[work_.slot()] = work;
      barrier_arrive(shared_.base + Plan::kWorkFull + work_.slot() * 8);
    }
    __syncwarp();
    work_.advance();
  }

  __device__ void copy_keys(int row, int head) {
    barrier_wait(shared_.base + Plan::kKEmpty + k_.slot() * 8, k_.empty_parity());
    if (lane() == 0) {
      const uint32_t full = shared_.base + Plan::kKFull + k_.slot() * 8;
      barrier_expect(full, Plan::kKBytes);
      copy_columns<Plan::kQTiles>(shared_.base + Plan::kK + k_.slot() * Plan::kKBytes, launch_.k, row, head, full);
    }
    __syncwarp();
    if constexpr (kPlantedStage) barrier_wait(shared_.base + Plan::kKFull + k_.slot() * 8, k_.full_parity());
    k_.advance();
  }

  // Of which the rows from `rows` on become zeros.
  __device__ void copy_values(int row, int head, int rows) {
    barrier_wait(shared_.base + Plan::kVEmpty + v_.slot() * 8, v_.empty_parity());
    const bool cut = __any_sync(~0u, rows < Plan::kN);
    const uint32_t full = shared_.base + Plan::kVFull + v_.slot() * 8;
    const uint32_t landed = cut ? shared_.base + Plan::kTail : full;
    const int offset = Plan::kV + v_.slot() * Plan::kVBytes;
    if (lane() == 0) {
      barrier_expect(landed, Plan::kVBytes);
      copy_columns<Plan::kDv / 64>(shared_.base + offset, launch_.v, row, head, landed);
    }
    __syncwarp();
    if (cut) {
      barrier_wait(landed, tail_.full_parity());
      tail_.advance();
      // Rows are contiguous whatever the swizzle: a lane clears 16 bytes, a warp four rows of a tile.
#pragma unroll 1
      for (int r = rows + static_cast<int>(lane()) / 8; r < Plan::kN; r += 4) {
#pragma unroll
        for (int column = 0; column < Plan::kDv / 64; ++column) {
          *reinterpret_cast<uint4*>(shared_.memory + offset + column * Plan::kColumnBytes + r * 128 + lane() % 8 * 16) =
              uint4{};
        }
      }
      proxy_fence();
      __syncwarp();
      if (lane() == 0) barrier_arrive(full);
    }
    if constexpr (kPlantedStage) barrier_wait(full, v_.full_parity());
    v_.advance();
  }

  template <int kColumns>
  __device__ void copy_columns(uint32_t destination, const CUtensorMap& map, int row, int head, uint32_t full) const {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      copy_box(destination + column * Plan::kColumnBytes, map, column * 64, row, head, full, policy_);
    }
  }

  const NarrowLaunch& launch_;
  const NarrowShared shared_;
  const uint64_t policy_;
  Cursor<Plan::kStages> k_, v_;
  Cursor<2> work_;
  Cursor<1> q_, tail_;
};

// ---- Consumer: 64 queries.

template <class Plan>
class NarrowConsumer {
 public:
  __device__ NarrowConsumer(const NarrowLaunch& launch, const NarrowShared& shared, int side)
      : launch_(launch), shared_(shared), side_(side), scale_log2_(launch.call.softmax_scale * sm80::kLog2e) {}

  __device__ void run() {
    for (NarrowWork work = next(); __any_sync(~0u, work.rows > 0); work = next()) {
      attend(work);
      finish(work);
    }
  }

 private:
  static constexpr int kScores = Plan::kN / 2, kOut = Plan::kDv / 2, kSteps = Plan::kN / 16;

  __device__ NarrowWork next() {
    barrier_wait(shared_.base + Plan::kWorkFull + work_.slot() * 8, work_.full_parity());
    const NarrowWork work = reinterpret_cast<const NarrowWork*>(shared_.memory + Plan::kWork)[work_.slot()];
    __syncwarp();
    release(Plan::kWorkEmpty + work_.slot() * 8);
    work_.advance();
    return work;
  }

  // This warp needs a slot no more.
  __device__ void release(int barrier) const {
    if (lane() == 0) barrier_arrive(shared_.base + barrier);
  }

  // The row of the tile that accumulators with h have in this lane.
  __device__ int row(int h) const { return side_ * 64 + accumulator_row() + h * 8; }

  __device__ void attend(const NarrowWork& work) {
#pragma unroll
    for (int i = 0; i < kOut; ++i) out_[i] = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      reference_[h] = -sm80::kInfinity;
      sum_[h] = 0.0f;
    }
    int block = work.blocks - 1;
    if (!__any_sync(~0u, block >= 0)) return;
    barrier_wait(shared_.base + Plan::kQFull, q_.full_parity());
    q_.advance();
    float score[kScores];
    uint32_t p[kSteps][4];
    await_keys();
    start_scores(score);
    wgmma_wait<0>();
    scores_done(score, block);
    softmax(score, work, block);
    if (__any_sync(~0u, block > 0)) await_keys();
    pack(p, score);
    while (__any_sync(~0u, block > 0)) {
      --block;
      start_scores(score);
      start_values(p);
      wgmma_wait<1>();
      scores_done(score, block);
      const bool grown = softmax(score, work, block);
      // As a branch, and here: within one basic block ptxas 13.0 puts the exponentials behind the wait for O, beside
      // which they are meant to run.
      pin(score);
      pin(sum_);
      if (__any_sync(~0u, block > 0)) await_keys();
      wgmma_wait<0>();
      pin(score);  // P is made of them only now: the registers it goes to are in use until here
      values_done(p);
      if (grown) rescale();
      pack(p, score);
    }
    start_values(p);
    wgmma_wait<0>();
    values_done(p);
  }

  __device__ void await_keys() const { barrier_wait(shared_.base + Plan::kKFull + k_.slot() * 8, k_.full_parity()); }

  __device__ void start_scores(float (&score)[kScores]) {
    pin(score);
    wgmma_begin();
    const uint64_t queries = k_major(shared_.base + Plan::kQ + side_ * Plan::kSideBytes);
    const uint64_t keys = k_major(shared_.base + Plan::kK + k_.slot() * Plan::kKBytes);
#pragma unroll
    for (int step = 0; step < Plan::kDqk / 16; ++step) {
      multiply_keys(score, further(queries, step / 4 * kTileBytes + step % 4 * 32),
                    further(keys, step / 4 * Plan::kColumnBytes + step % 4 * 32), step > 0);
    }
    wgmma_commit();
  }

  __device__ void scores_done(float (&score)[kScores], int block) {
    pin(score);
    release(Plan::kKEmpty + k_.slot() * 8);
    k_.advance();
    if (__any_sync(~0u, block == 0)) release(Plan::kQEmpty);
  }

  __device__ void start_values(const uint32_t (&p)[kSteps][4]) {
    barrier_wait(shared_.base + Plan::kVFull + v_.slot() * 8, v_.full_parity());
    pin(out_);
    wgmma_begin();
    const uint64_t values = mn_major<Plan::kColumnBytes>(shared_.base + Plan::kV + v_.slot() * Plan::kVBytes);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) multiply_values(out_, p[step], further(values, step * 16 * 128), 1);
    wgmma_commit();
  }

  __device__ void values_done(uint32_t (&p)[kSteps][4]) {
    pin(out_);
    pin(p);
    release(Plan::kVEmpty + v_.slot() * 8);
    v_.advance();
  }

  // Scores become their exponentials, relative to the reference. Whether O has to be rescaled by factor_.
  __device__ bool softmax(float (&score)[kScores], const NarrowWork& work, int block) {
    // Blocks at the diagonal and at the end hold keys that some row must not see.
    if (__any_sync(~0u, (block + 1) * Plan::kN > min(work.seen + side_ * 64, work.s_kv))) mask(score, work, block);
    float highest[2];
    bool beyond = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      highest[h] = maximum(score, h);
      beyond |= outgrown(highest[h], h);
    }
    const bool grown = __any_sync(~0u, beyond);
    if (grown) move_references(highest);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float shift = reference_[h] == -sm80::kInfinity ? 0.0f : this->shift(h);
      float sums[2] = {0.0f, 0.0f};
#pragma unroll
      for (int j = 0; j < Plan::kN / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& at = score[j * 4 + h * 2 + i];
          at = sm80::exp2_approx(fmaf(at, scale_log2_, -shift));
          sums[i] += at;
        }
      }
      sum_[h] = planted_spill(sum_[h] + (sums[0] + sums[1]));
    }
    planted_sync(1 + side_, kWarpgroup);
    return grown;
  }

  __device__ void mask(float (&score)[kScores], const NarrowWork& work, int block) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int limit =
          min(launch_.call.causal ? work.seen + row(h) : work.s_kv, work.s_kv) - block * Plan::kN - lane() % 4 * 2;
#pragma unroll
      for (int j = 0; j < Plan::kN / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (j * 8 + i >= limit) score[j * 4 + h * 2 + i] = -sm80::kInfinity;
        }
      }
    }
  }

  // This lane's, of a row.
  __device__ static float maximum(const float (&score)[kScores], int h) {
    float highest[4];
#pragma unroll
    for (int j = 0; j < Plan::kN / 8; ++j) {
      const float pair = fmaxf(score[j * 4 + h * 2], score[j * 4 + h * 2 + 1]);
      highest[j % 4] = j < 4 ? pair : fmaxf(highest[j % 4], pair);
    }
    return fmaxf(fmaxf(highest[0], highest[1]), fmaxf(highest[2], highest[3]));
  }

  // Products and differences stay apart, as everywhere: P and the factors then refer to the same rounded shift.
  __device__ float shift(int h) const { return __fmul_rn(reference_[h], scale_log2_); }
  // Any score outgrows a reference of -inf, where nothing has been seen; one of -inf, or NaN, outgrows none.
  __device__ bool outgrown(float highest, int h) const { return __fmul_rn(highest, scale_log2_) > shift(h) + kSlack; }

  __device__ void move_references(const float (&highest)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float highest_of_row = sm80::row_max(highest[h]);
      const bool moves = outgrown(highest_of_row, h);
      const float before = shift(h);
      reference_[h] = moves ? highest_of_row : reference_[h];
      const float factor = sm80::exp2_approx(__fsub_rn(before, shift(h)));  // 0 where nothing has been seen
      factor_[h] = moves ? factor : 1.0f;
      sum_[h] *= factor_[h];
    }
  }

  __device__ void rescale() {
#pragma unroll
    for (int i = 0; i < kOut; ++i) out_[i] *= factor_[i / 2 % 2];
  }

  // An accumulator of 16 columns is laid out as an operand of k16.
  __device__ static void pack(uint32_t (&p)[kSteps][4], const float (&score)[kScores]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[step][i] = sm80::pack_bf16(score[step * 8 + i * 2], score[step * 8 + i * 2 + 1]);
    }
  }

  // Four lanes hold two columns each of every eight of a row: they transpose four words of four lanes, so that a lane
  // stores 16 bytes and the four 64 bytes in a row.
  __device__ void finish(const NarrowWork& work) const {
    bf16* const out = static_cast<bf16*>(launch_.call.out) + work.query * launch_.call.out_stride_s +
                      work.head * launch_.call.out_stride_h;
    float* const lse =
        launch_.call.lse + work.query * launch_.call.lse_stride_s + work.head * launch_.call.lse_stride_h;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = sm80::row_sum(sum_[h]);
      const bool valid = row(h) < work.rows;
      const float factor = sum == 0.0f ? 0.0f : quotient(1.0f, sum);
      if (lane() % 4 == 0 && valid) lse[row(h) * launch_.call.lse_stride_s] = log_sum_exp(sum, h);
      bf16* const at = out + row(h) * launch_.call.out_stride_s + lane() % 4 * sm80::kChunk;
#pragma unroll
      for (int j = 0; j < Plan::kDv / 8; j += 4) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &out_[(j + i) * 4 + h * 2];
          words[i] = sm80::pack_bf16(sm80::scaled(pair[0], factor), sm80::scaled(pair[1], factor));
        }
        transpose(words);
        // Written once and not read here: keys are worth more in L2.
        if (valid) __stcs(reinterpret_cast<uint4*>(at + j * 8), make_uint4(words[0], words[1], words[2], words[3]));
      }
    }
  }

  // As finish_row of the portable target, but the sum is relative to the reference.
  __device__ float log_sum_exp(float sum, int h) const {
    if (sum == 0.0f || reference_[h] == sm80::kInfinity) return sm80::kInfinity;
    return isnan(sum) ? sum : reference_[h] * launch_.call.softmax_scale + logf(sum);
  }

  const NarrowLaunch& launch_;
  const NarrowShared shared_;
  const int side_;
  const float scale_log2_;
  float out_[kOut];  // columns 8 j + 2 (lane % 4) + i of row(h) in out_[4 j + 2 h + i]
  float reference_[2], sum_[2], factor_[2];
  Cursor<Plan::kStages> k_, v_;
  Cursor<2> work_;
  Cursor<1> q_;
};

template <class Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) dense_narrow_kernel(const __grid_constant__ NarrowLaunch launch) {
  [[maybe_unused]] PlantedDelay delay;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const NarrowShared shared{shared_memory, sm80::shared_address(shared_memory)};
  if (shared.base % 1024 != 0) __trap();  // descriptors would read another swizzle than TMA writes
#ifdef FLASH_DSA_BOUNDED_WAIT
  wait_base = in_window(shared.base);
#endif
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    constexpr int kWarps = 2 * kWarpgroup / kWarp;  // of consumers
    const auto init = [&](int first, int slots, int arrivals) {
      for (int slot = 0; slot < slots; ++slot) barrier_init(shared.base + first + slot * 8, arrivals);
    };
    init(Plan::kQFull, 1, 1);
    init(Plan::kQEmpty, 1, kWarps);
    init(Plan::kKFull, Plan::kStages, 1);
    init(Plan::kKEmpty, Plan::kStages, kWarps);
    init(Plan::kVFull, Plan::kStages, 1);
    init(Plan::kVEmpty, Plan::kStages, kWarps);
    init(Plan::kWorkFull, 2, 1);
    init(Plan::kWorkEmpty, 2, kWarps);
    init(Plan::kTail, 1, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (role == 0) {
    shrink_registers<Plan::kProducerRegisters>();
    if (thread() < kWarp) NarrowProducer<Plan>(launch, shared).run();
  } else {
    grow_registers<Plan::kConsumerRegisters>();
    NarrowConsumer<Plan>(launch, shared, role - 1).run();
  }
}

}  // namespace flash_dsa::sm90
