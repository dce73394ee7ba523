// What both ops share on SM90 where d_v is 512: roles that compute, and how they meet. The producers, the masks and
// what is written at the end are the ops' own; kernels/sparse_fwd/sm90.cuh documents algorithm, memory and barriers.
#pragma once

#include <cfloat>

#include "planted.h"
#include "sm90.cuh"

namespace flash_dsa::sm90 {

constexpr int kThreads = 4 * kWarpgroup;
constexpr int kWarps = kWarpgroup / kWarp;  // of a role
constexpr int kScoreRegisters = 160, kValueRegisters = 160, kProducerRegisters = 32;
static_assert(kScoreRegisters + 2 * kValueRegisters + kProducerRegisters == 4 * 128);

constexpr int kM = 64, kN = 64;       // rows of a tile, keys of a block
constexpr int kQuarters = 4;          // of a block of keys, 128 columns each
constexpr int kRegisterQuarters = 3;  // whose Q is in registers: 96 of them
constexpr int kMessages = 4;
constexpr int kSlots = 4;  // of what scores hands over; P of every other one is in the same place
constexpr int kBlock = 0, kRescaled = 1, kEnd = 2;  // what a slot holds
constexpr int kLast = 4;                            // with the first two, where kSeparateValues: the tile's last block
// P is held back where the quarters of the next block up to this one are there. A later one would hardly ever be: its
// slot is one that only an earlier PV frees.
constexpr int kLandedQuarter = 1;
static_assert(kLandedQuarter >= 1, "where P is held, the second quarter of the next block is not waited for");
// It is handed over before so many of the 36 or 32 wgmmas of the next scores are issued, which waits for those before
// them: by the time left and right have come to know, the tensor cores are free.
constexpr int kLastSteps = 4;

constexpr int kQuarterBytes = 2 * kTileBytes;

// First column of a quarter: left and right take turns.
__host__ __device__ constexpr int first_column(int quarter) { return quarter % 2 * 256 + quarter / 2 * 128; }
// Values of their own are in the ring as quarters 0, 1, 3, 2: of a place the quarter, and the other way round. A ring
// of 11 puts the last where the first of the block before was; with both of one side, who waits for it has seen that
// one land. The parity of a barrier tells a round from the one before alone.
__host__ __device__ constexpr int value_quarter(int place) { return place ^ place >> 1; }

// What is known of a plan when it is compiled. An op derives its Plan from it and adds
//   Launch               of which Scores and Values need: tiles, scale_log2, slack, place(tile), end_row(),
//                        write_row(), output_row()
//   mask(), last()       how a message hides scores; kLast or 0
// kSeparateValues: V is not in K's storage. Its quarters are in the ring, too, each block's behind the keys of the next
// block if there is one; scores frees keys, left and right free values.
// kTold: what a tile is travels with its end, as a Place, instead of being worked out from its number.
// kCluster: blocks of threads that take tiles of the same keys side by side, and get each other's copies.
// kCopyArrivals, kSenders: arrivals at a barrier for copies, and at one for messages.
template <int kDqk_, bool kSeparateValues_ = false, bool kTold_ = false, int kCluster_ = 1>
struct WidePlan {
  static constexpr int kDqk = kDqk_;
  static constexpr bool kSeparateValues = kSeparateValues_;
  static constexpr bool kTold = kTold_;
  static constexpr int kCluster = kCluster_;
  static constexpr int kCopyArrivals = kTold ? 1 : kWarpgroup;
  static constexpr int kSenders = kTold ? 1 : kWarps;
  static constexpr bool kHasRope = kDqk > 512;
  static constexpr int kRing = kHasRope ? 11 : 12;

  static constexpr int kRingOffset = 0;
  static constexpr int kQ = kRingOffset + kRing * kQuarterBytes;
  static constexpr int kRope = kQ + (kHasRope ? 3 : 2) * kTileBytes;
  static constexpr int kP = kRope + (kHasRope ? kTileBytes : 0);
  static constexpr int kFactors = kP + 2 * kTileBytes;
  static constexpr int kKinds = kFactors + kSlots * kM * 4;
  static constexpr int kMessageOffset = kKinds + kSlots * kWarps * 4;
  static constexpr int kPlaces = kMessageOffset + kMessages * 8;  // of messages, of slots, the producer's
  static constexpr int kBarriers = kPlaces + (kTold ? (kMessages + kSlots + 1) * 16 : 0);

  // Barriers, 8 bytes each.
  static constexpr int kRingFull = kBarriers;
  static constexpr int kRingEmpty = kRingFull + kRing * 8;
  static constexpr int kRopeFull = kRingEmpty + kRing * 8;
  static constexpr int kRopeEmpty = kRopeFull + 8;
  static constexpr int kMessageFull = kRopeEmpty + 8;
  static constexpr int kMessageEmpty = kMessageFull + kMessages * 8;
  static constexpr int kQFull = kMessageEmpty + kMessages * 8;
  static constexpr int kQEmpty = kQFull + 8;
  static constexpr int kPFull = kQEmpty + 8;
  static constexpr int kPEmpty = kPFull + kSlots * 8;
  static constexpr int kTail = kPEmpty + kSlots * 8;
  static constexpr int kSharedBytes = kTail + (kTold ? 8 : 0);

  static_assert(kBarriers % 8 == 0 && kMessageOffset % 8 == 0 && kPlaces % 16 == 0);
  static_assert(2 * kQuarters <= kRing, "scores of a block and PV of the one before need both in the ring");
};

// A tile, where it is told.
struct Place {
  int query, head;     // row of q and its head that row 0 of the tile is
  int queries, heads;  // that exist, from there on
};

// What all roles know.
struct Shared {
  unsigned char* memory;
  uint32_t base;  // the same as an address in shared memory, on 1024 bytes

  __device__ float* factors(int kFactors, int slot) const {
    return reinterpret_cast<float*>(memory + kFactors) + slot * kM;
  }

  __device__ Place* places(int kPlaces) const { return reinterpret_cast<Place*>(memory + kPlaces); }

  // One lane of a warp tells the producers of the cluster that it has read a slot.
  template <int kCluster>
  __device__ void release(int barrier) const {
    if constexpr (kCluster == 1) {
      if (lane() == 0) barrier_arrive(base + barrier);
    } else {
      if (lane() < kCluster) barrier_arrive_at(base + barrier, lane());
    }
  }
};

// ---- Scores: QK, softmax, statistics.

template <class Plan>
class Scores {
  using Launch = typename Plan::Launch;

 public:
  __device__ Scores(const Launch& launch, const Shared& shared) : launch_(launch), shared_(shared) {}

  __device__ void run() {
    uint32_t tile = blockIdx.x;
#pragma unroll 1
    for (; tile < launch_.tiles; tile += gridDim.x) attend(tile);
  }

 private:
  __device__ void attend(uint32_t tile) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      maximum_[h] = limit_[h] = -sm80::kInfinity;
      reference_[h] = sum_[h] = 0.0f;
    }
    if (await_message()) {
      load_queries();
      // Its keys come to where values of the last block but one were, of which scores know only that PV is over.
      if constexpr (Plan::kSeparateValues) await_p();
      attend_blocks();
    }
    if constexpr (Plan::kTold) place_ = shared_.places(Plan::kPlaces)[message_.slot()];
    message_read();
    finish(tile);
  }

  // All blocks of a tile.
  __device__ void attend_blocks() {
    bool first = true, held = false;  // the P written last has not been handed over; each warp arrives for itself
    for (;; first = false) {
      float score[32];
      multiply_first(score, held);
      if (held) publish();
      multiply_rest(score, first, held, rest_landed());
      // While the tensor cores are at it:
      const auto coming = message_.after(1);
      const bool ahead = there(shared_.base + Plan::kMessageFull + coming.slot() * 8, coming.full_parity());
      const bool last = ahead && !is_block(coming.slot());
      const uint2 mask = this->mask();
      await_p();
      wgmma_wait<0>();
      pin(score);
      if constexpr (Plan::kHasRope) shared_.release<Plan::kCluster>(Plan::kRopeEmpty);
      if constexpr (Plan::kSeparateValues) keys_read(first);
      if (last && lane() == 0) barrier_arrive(shared_.base + Plan::kQEmpty);
      message_read();
      const bool next = softmax(score, mask);
      p_.advance();
      held = ahead && !last && next;
      if (held) continue;
      publish();
      hand_over();
      if (ahead ? !last : await_message()) continue;
      if (!ahead && lane() == 0) barrier_arrive(shared_.base + Plan::kQEmpty);
      break;
    }
    if constexpr (Plan::kSeparateValues) ring_.advance(kQuarters);  // values of the last block
  }

  // Whether a message that is there announces a block, and not the end of a tile.
  __device__ bool is_block(int slot) const {
    const uint2 mask = reinterpret_cast<const uint2*>(shared_.memory + Plan::kMessageOffset)[slot];
    return __any_sync(~0u, (mask.x | mask.y) != 0);
  }

  // Frees the keys that have been multiplied; values of the block before, if any, follow them.
  __device__ void keys_read(bool first) {
    Cursor<Plan::kRing> read = keys_;
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      shared_.release<Plan::kCluster>(Plan::kRingEmpty + read.slot() * 8);
      read.advance();
    }
    if (!first) ring_.advance(kQuarters);
  }

  // Waits for the next message; whether it is a block.
  __device__ bool await_message() {
    barrier_wait(shared_.base + Plan::kMessageFull + message_.slot() * 8, message_.full_parity());
    return is_block(message_.slot());
  }

  // A vote, so that the compiler sees that warps do not diverge and counts slots in uniform registers.
  __device__ static bool there(uint32_t barrier, uint32_t parity) {
    return __all_sync(~0u, barrier_test(barrier, parity));
  }

  // Which slots of a block count.
  __device__ uint2 mask() const {
    return reinterpret_cast<const uint2*>(shared_.memory + Plan::kMessageOffset)[message_.slot()];
  }

  __device__ void message_read() {
    __syncwarp();
    if (lane() == 0) barrier_arrive(shared_.base + Plan::kMessageEmpty + message_.slot() * 8);
    message_.advance();
  }

  // Where this lane's row begins in a tile of which a warp takes 16 rows, for loads and stores of four 8 x 8 matrices:
  // two of rows, two of columns.
  __device__ static uint32_t matrices() {
    return sm80::swizzled<128>(static_cast<int>(thread() / kWarp * 16 + lane() % 16), static_cast<int>(lane() / 16));
  }

  __device__ void load_queries() {
#pragma unroll
    for (int quarter = 0; quarter < kRegisterQuarters; ++quarter) {
      barrier_wait(shared_.base + Plan::kRingFull + ring_.slot() * 8, ring_.full_parity());
      const uint32_t tiles = shared_.base + Plan::kRingOffset + ring_.slot() * kQuarterBytes + matrices();
#pragma unroll
      for (int step = 0; step < 8; ++step) {
        sm80::load_matrix_x4(q_[quarter][step], (tiles + step / 4 * kTileBytes) ^ (step % 4 * 32));
      }
      __syncwarp();
      shared_.release<Plan::kCluster>(Plan::kRingEmpty + ring_.slot() * 8);
      ring_.advance();
    }
  }

  // Whether the quarters up to kLandedQuarter of the next block are there.
  __device__ bool landed() const {
    bool all = true;
#pragma unroll
    for (int quarter = 0; quarter <= kLandedQuarter; ++quarter) {
      const auto at = ring_.after(quarter);
      all &= barrier_test(shared_.base + Plan::kRingFull + at.slot() * 8, at.full_parity());
    }
    return __all_sync(~0u, all);
  }

  // Starts S = Q K^T with the first quarter, which has `landed` or is waited for.
  __device__ void multiply_first(float (&score)[32], bool landed) {
    if constexpr (Plan::kSeparateValues) keys_ = ring_;
    if (!landed) barrier_wait(shared_.base + Plan::kRingFull + ring_.slot() * 8, ring_.full_parity());
    multiply_quarter<0>(score);
  }

  // Whether everything after the first two quarters is there.
  __device__ bool rest_landed() const {
    bool all = !Plan::kHasRope || barrier_test(shared_.base + Plan::kRopeFull, rope_.full_parity());
#pragma unroll
    for (int quarter = 2; quarter < kQuarters; ++quarter) {
      const auto at = ring_.after(quarter - 1);
      all &= barrier_test(shared_.base + Plan::kRingFull + at.slot() * 8, at.full_parity());
    }
    return __all_sync(~0u, all);
  }

  // The rest of S. `held`: P of the block before is handed over on the way, and the second quarter has landed;
  // `others`: those after it have, and need not be waited for.
  __device__ void multiply_rest(float (&score)[32], bool first, bool held, bool others) {
    if (!held) barrier_wait(shared_.base + Plan::kRingFull + ring_.slot() * 8, ring_.full_parity());
    multiply_quarter<1>(score);
    if (!others) barrier_wait(shared_.base + Plan::kRingFull + ring_.slot() * 8, ring_.full_parity());
    multiply_quarter<2>(score);
    if (first) {
      barrier_wait(shared_.base + Plan::kQFull, last_q_.full_parity());
      last_q_.advance();
    }
    if (!others) barrier_wait(shared_.base + Plan::kRingFull + ring_.slot() * 8, ring_.full_parity());
    multiply_quarter<3>(score, held);
    if constexpr (Plan::kHasRope) {
      if (!others) barrier_wait(shared_.base + Plan::kRopeFull, rope_.full_parity());
      wgmma_begin();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        multiply_64(score, further(k_major(shared_.base + Plan::kQ), 2 * kTileBytes + step * 32),
                    further(k_major(shared_.base + Plan::kRope), step * 32), 1);
      }
      rope_.advance();
    }
    wgmma_commit();
  }

  template <int kQuarter>
  __device__ void multiply_quarter(float (&score)[32], bool held = false) {
    constexpr int kHandOver = Plan::kDqk / 16 - kLastSteps;
    static_assert(kHandOver > 24 && kHandOver <= 32, "it is the last quarter that hands over");
    wgmma_begin();
    const uint64_t keys = k_major(shared_.base + Plan::kRingOffset + ring_.slot() * kQuarterBytes);
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      const int offset = step / 4 * kTileBytes + step % 4 * 32;
      if constexpr (kQuarter < kRegisterQuarters) {
        multiply_64(score, q_[kQuarter][step], further(keys, offset), kQuarter + step > 0);
      } else {
        multiply_64(score, further(k_major(shared_.base + Plan::kQ), offset), further(keys, offset), 1);
      }
      if (kQuarter * 8 + step + 1 == kHandOver && held) hand_over();
    }
    ring_.advance();
  }

  // P and row sums. The scores of a row lie in four lanes; a lane has rows accumulator_row() and accumulator_row() + 8.
  // Whether a score has outgrown its row's reference is asked by a vote: hardly ever, but in a tile's first block.
  // Whether the next block has landed is asked on the way, so that the answer is there at the end.
  __device__ bool softmax(float (&score)[32], uint2 mask) {
    Plan::mask(launch_, score, mask);
    float highest[2];
    bool beyond = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      highest[h] = this->highest(score, h);
      maximum_[h] = fmaxf(maximum_[h], highest[h]);
      beyond |= highest[h] > limit_[h];
    }
    const bool grown = __any_sync(~0u, beyond);
    if (grown) move_references(highest);
    if (lane() == 0) kinds()[thread() / kWarp] = (grown ? kRescaled : kBlock) | Plan::last(mask);
    const bool landed = write_p(score);
    planted_sync(1, kWarpgroup);
    return landed;
  }

  // This lane's.
  __device__ static float highest(const float (&score)[32], int h) {
    float pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      pairs[j] = fmaxf(fmaxf(score[j * 8 + h * 2], score[j * 8 + h * 2 + 1]),
                       fmaxf(score[j * 8 + 4 + h * 2], score[j * 8 + 5 + h * 2]));
    }
    return fmaxf(fmaxf(pairs[0], pairs[1]), fmaxf(pairs[2], pairs[3]));
  }

  // Products and differences stay apart, as everywhere: P and the factors then refer to the same rounded shift.
  __device__ float shift(int h) const { return __fmul_rn(reference_[h], launch_.scale_log2); }

  __device__ void move_references(const float (&highest)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float highest_of_row = sm80::row_max(highest[h]), before = shift(h);
      const bool moves = highest_of_row > limit_[h], seen = limit_[h] != -sm80::kInfinity;
      if (moves) {
        reference_[h] = highest_of_row;
        limit_[h] = fminf(highest_of_row + launch_.slack, FLT_MAX);  // +inf exceeds any
      }
      const float factor = moves && seen ? sm80::exp2_approx(__fsub_rn(before, shift(h))) : 1.0f;
      sum_[h] *= factor;
      if (lane() % 4 == 0) shared_.factors(Plan::kFactors, p_.slot())[accumulator_row() + h * 8] = factor;
    }
  }

  // P = exp2(S - reference) to the P slot, and this lane's part of the row sums. Whether the next block has landed.
  __device__ bool write_p(const float (&score)[32]) {
    const float shifts[2] = {shift(0), shift(1)};
    float sums[2] = {0.0f, 0.0f};
    bool landed = false;
    const uint32_t p = shared_.base + Plan::kP + p_.slot() % 2 * kTileBytes + matrices();
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int h = i % 2, at = (j + i / 2) * 4 + h * 2;
        const float p0 = sm80::exp2_approx(fmaf(score[at], launch_.scale_log2, -shifts[h]));
        const float p1 = sm80::exp2_approx(fmaf(score[at + 1], launch_.scale_log2, -shifts[h]));
        sums[h] += p0 + p1;
        words[i] = sm80::pack_bf16(p0, p1);
      }
      if (j == 6) landed = this->landed();
      store_matrix_x4(p ^ (j * 16), words);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) sum_[h] = planted_spill(sum_[h] + sums[h]);
    return landed;
  }

  // PV of the block before the last is over: its P has been read, and its keys.
  __device__ void await_p() const {
    const auto before = p_.before(2);
    barrier_wait(shared_.base + Plan::kPEmpty + before.slot() * 8, before.full_parity());
  }

  // Of the P slot being written, by warp.
  __device__ int* kinds() const { return reinterpret_cast<int*>(shared_.memory + Plan::kKinds) + p_.slot() * kWarps; }

  // This warp's part of the P slot written last may be read. The fence waits for what has been stored: where P is held,
  // that is beside the next scores.
  __device__ void publish() const {
    proxy_fence();
    __syncwarp();
  }

  // Tells the readers.
  __device__ void hand_over() const {
    if (lane() == 0) barrier_arrive(shared_.base + Plan::kPFull + p_.before(1).slot() * 8);
  }

  // Ends a tile. Its statistics are written when left and right have what they wait for.
  __device__ void finish(uint32_t tile) {
    barrier_wait(shared_.base + Plan::kPEmpty + p_.slot() * 8, p_.empty_parity());
    const auto place = [&] {
      if constexpr (Plan::kTold) {
        return place_;
      } else {
        return launch_.place(tile);
      }
    }();
    typename Launch::RowEnd ends[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = accumulator_row() + h * 8;
      const float sum = sm80::row_sum(sum_[h]), maximum = sm80::row_max(maximum_[h]);
      ends[h] = launch_.end_row(place, row, sum, maximum, reference_[h]);
      if (lane() % 4 == 0) shared_.factors(Plan::kFactors, p_.slot())[row] = ends[h].factor;
    }
    if constexpr (Plan::kTold) {
      if (thread() == 0) shared_.places(Plan::kPlaces)[kMessages + p_.slot()] = place;
    }
    if (lane() == 0) kinds()[thread() / kWarp] = kEnd;
    p_.advance();
    __syncwarp();
    hand_over();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (lane() % 4 == 0) launch_.write_row(place, accumulator_row() + h * 8, ends[h]);
    }
  }

  const Launch& launch_;
  const Shared shared_;
  uint32_t q_[kRegisterQuarters][8][4];
  float maximum_[2];          // of this lane's scores
  float reference_[2];        // of the row; 0 where nothing has been seen
  float limit_[2];            // what a score has to exceed for the reference to move
  float sum_[2];              // of this lane's part
  Place place_;               // where kTold: of the tile that has ended last
  Cursor<Plan::kRing> ring_;  // the quarter that is next
  Cursor<Plan::kRing> keys_;  // where kSeparateValues: the first of the block being multiplied
  Cursor<1> rope_, last_q_;
  Cursor<kMessages> message_;
  Cursor<kSlots> p_;
};

// ---- Values: PV of 256 columns, epilogue.

template <class Plan, int kSide>
class Values {
  using Launch = typename Plan::Launch;

 public:
  __device__ Values(const Launch& launch, const Shared& shared) : launch_(launch), shared_(shared) {}

  __device__ void run() {
    for (uint32_t tile = blockIdx.x; tile < launch_.tiles; tile += gridDim.x) {
#pragma unroll
      for (int i = 0; i < 64; ++i) out_[0][i] = out_[1][i] = 0.0f;
      for (bool first = true;; first = false) {
        const int kind = next();
        const bool plain = !__any_sync(~0u, kind != kBlock);  // one vote for most blocks
        if (!plain && __any_sync(~0u, kind == kEnd)) break;
        if (first) ring_.advance(kRegisterQuarters);  // Q
        if constexpr (Plan::kSeparateValues) {
          if (first) ring_.advance(kQuarters);                                    // keys of this block
          if (plain || !__any_sync(~0u, kind & kLast)) ring_.advance(kQuarters);  // and of the next
        }
        if (!plain && __any_sync(~0u, (kind & ~kLast) == kRescaled)) rescale();
        multiply();
      }
      finish(tile);
    }
  }

 private:
  // Waits for the next P slot; what it holds in the rows of this warp. Votes decide on it, so that the compiler sees
  // that warps do not diverge and keeps what counts slots, and with it the descriptors, in uniform registers.
  __device__ int next() {
    barrier_wait(shared_.base + Plan::kPFull + p_.slot() * 8, p_.full_parity());
    return reinterpret_cast<const int*>(shared_.memory + Plan::kKinds)[p_.slot() * kWarps + thread() / kWarp];
  }

  __device__ float factor(int h) const { return shared_.factors(Plan::kFactors, p_.slot())[accumulator_row() + h * 8]; }

  __device__ void rescale() {
    const float factors[2] = {factor(0), factor(1)};
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      out_[0][i] *= factors[i / 2 % 2];
      out_[1][i] *= factors[i / 2 % 2];
    }
  }

  __device__ void multiply() {
    const uint64_t p = k_major(shared_.base + Plan::kP + p_.slot() % 2 * kTileBytes);
    const auto first = ring_.after(kSide);
    const auto second = ring_.after(Plan::kSeparateValues ? value_quarter(kSide + 2) : kSide + 2);
    await(first);
    pin(out_[0]);
    pin(out_[1]);
    wgmma_begin();
    multiply_quarter(out_[0], p, first.slot());
    if constexpr (Plan::kSeparateValues) {
      await(second);
      wgmma_begin();
    }
    multiply_quarter(out_[1], p, second.slot());
    wgmma_wait<1>();
    shared_.release<Plan::kCluster>(Plan::kRingEmpty + first.slot() * 8);
    wgmma_wait<0>();
    pin(out_[0]);
    pin(out_[1]);
    shared_.release<Plan::kCluster>(Plan::kRingEmpty + second.slot() * 8);
    ring_.advance(kQuarters);
    release();
  }

  __device__ void multiply_quarter(float (&out)[64], uint64_t p, int slot) const {
    const uint64_t values = mn_major(shared_.base + Plan::kRingOffset + slot * kQuarterBytes);
#pragma unroll
    for (int step = 0; step < kN / 16; ++step) {
      multiply_128(out, further(p, step * 32), further(values, step * 16 * 128));
    }
    wgmma_commit();
  }

  // Values of their own are not seen through the scores: they are waited for here.
  __device__ void await(const Cursor<Plan::kRing>& quarter) const {
    if constexpr (Plan::kSeparateValues) {
      barrier_wait(shared_.base + Plan::kRingFull + quarter.slot() * 8, quarter.full_parity());
    }
  }

  // This warp has read all it needs of the P slot.
  __device__ void release() {
    if (lane() == 0) barrier_arrive(shared_.base + Plan::kPEmpty + p_.slot() * 8);
    p_.advance();
  }

  // Out = O x factor. Four lanes hold two columns each of every eight of a row: they transpose four words of four
  // lanes, so that a lane stores 16 bytes and the four 64 bytes in a row.
  __device__ void finish(uint32_t tile) {
    const float factors[2] = {factor(0), factor(1)};
    const auto place = [&] {
      if constexpr (Plan::kTold) {
        return shared_.places(Plan::kPlaces)[kMessages + p_.slot()];
      } else {
        return launch_.place(tile);
      }
    }();
    __syncwarp();
    release();
    // Rows without a key: O may be anything.
    if (__any_sync(~0u, factors[0] == 0.0f || factors[1] == 0.0f)) {
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        if (factors[i / 2 % 2] == 0.0f) out_[0][i] = out_[1][i] = 0.0f;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = accumulator_row() + h * 8;
      bf16* const out = launch_.output_row(place, row);
      bf16* const at = out + lane() % 4 * sm80::kChunk;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < 16; j += 4) {
          uint32_t words[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float* pair = &out_[half][(j + i) * 4 + h * 2];
            words[i] = sm80::pack_bf16(pair[0] * factors[h], pair[1] * factors[h]);
          }
          transpose(words);
          if (out != nullptr) {
            // Written once and not read here: keys are worth more in L2.
            __stcs(reinterpret_cast<uint4*>(at + kSide * 256 + half * 128 + j * 8),
                   make_uint4(words[0], words[1], words[2], words[3]));
          }
        }
      }
    }
  }

  const Launch& launch_;
  const Shared shared_;
  float out_[2][64];  // columns 128 half + 8 j + 2 (lane % 4) + i of this side in out_[half][4 j + 2 h + i]
  Cursor<Plan::kRing> ring_;
  Cursor<kSlots> p_;
};

// ---- What a kernel does. The producer takes all of its warpgroup, or its first warp where kTold.

template <class Plan, class Producer>
__device__ inline void run_roles(const typename Plan::Launch& launch, unsigned char* shared_memory) {
  const Shared shared{shared_memory, sm80::shared_address(shared_memory)};
  // Descriptors would read another swizzle than the copies write, and copies would go astray (ring_place).
  if (shared.base % 1024 != 0 || in_window(shared.base) >= kTileBytes) __trap();
#ifdef FLASH_DSA_BOUNDED_WAIT
  wait_base = in_window(shared.base);
#endif
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    const auto init = [&](int first, int slots, int arrivals) {
      for (int slot = 0; slot < slots; ++slot) barrier_init(shared.base + first + slot * 8, arrivals);
    };
    init(Plan::kRingFull, Plan::kRing, Plan::kCopyArrivals);
    init(Plan::kRingEmpty, Plan::kRing, kWarps * Plan::kCluster);
    init(Plan::kRopeFull, 1, Plan::kCopyArrivals);
    init(Plan::kRopeEmpty, 1, kWarps * Plan::kCluster);
    init(Plan::kMessageFull, kMessages, Plan::kSenders);
    init(Plan::kMessageEmpty, kMessages, kWarps);
    init(Plan::kQFull, 1, Plan::kCopyArrivals);
    init(Plan::kQEmpty, 1, kWarps);
    init(Plan::kPFull, kSlots, kWarps);
    init(Plan::kPEmpty, kSlots, 2 * kWarps);
    if (Plan::kTold) init(Plan::kTail, 1, 1);
    barrier_init_fence();
  }
  if constexpr (Plan::kCluster > 1) {
    cluster_sync();  // copies of the other block arrive at these barriers
  } else {
    __syncthreads();
  }
  if (role == 0) {
    grow_registers<kScoreRegisters>();
    Scores<Plan>(launch, shared).run();
  } else if (role == 3) {
    shrink_registers<kProducerRegisters>();
    if (!Plan::kTold || thread() < kWarp) Producer(launch, shared).run();
  } else {
    grow_registers<kValueRegisters>();
    if (role == 1) {
      Values<Plan, 0>(launch, shared).run();
    } else {
      Values<Plan, 1>(launch, shared).run();
    }
  }
  if constexpr (Plan::kCluster > 1) cluster_sync();  // what the other block frees is freed here, too
}

}  // namespace flash_dsa::sm90
