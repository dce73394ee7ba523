// sparse_fwd, SM90: one persistent block of threads per SM takes tiles of 64 heads of one query, one after the other.
//
// The algorithm, per block of 64 keys of a tile:
//   1. the producer gathers the 64 rows, key and value at once, into a ring, and says which slots count;
//   2. scores S = Q K^T (m64n64k16; six of Q's nine column tiles are register operands, which came through the ring);
//   3. masks, P = exp2(S - reference) in bf16, row sums. The reference of a row moves only when its maximum has grown
//   by
//      more than 2^8: P stays below 2^8, and O is rarely rescaled;
//   4. O += P V (m64n128k16), left and right half of the columns in a warpgroup each.
// P of block i is handed over only when the scores of block i+1 are nearly done, if half the columns of its keys are
// there: then the softmax of block i+1 runs beside PV of block i, and the tensor cores always have one of the two. Keys
// that are late are not waited for: P is handed over at once, which frees the ring.
// Blocks without a slot that counts are dropped by the producer: nobody else sees them.
//
// Roles, 512 threads; registers by setmaxnreg, 65536 in all:
//   warpgroup 0  scores    160  steps 2, 3; lse, max_logits; decides when P is handed over
//   warpgroup 1  left      160  step 4 for columns 0..255 and their epilogue
//   warpgroup 2  right     160  the same for columns 256..511
//   warpgroup 3  producer   32  step 1; each warp its own rows, all warps from the same indices
//
// Shared memory, bytes:                                                     | d_qk 576 | 512
//   ring     quarter blocks of 64 keys x 128 columns, 16 KiB each: 11, 12   | 180224 | 196608
//   q        64 heads x columns 384..511 and RoPE, tiles of 64 columns      | 24576  | 16384
//   rope     64 keys x 64 columns                                           | 8192   | 0
//   p        two P, 64 x 64                                                 | 16384  | 16384
//   factors  float [2][64], row factors that travel with a P                | 512    | 512
//   kinds    int [2][4], what a P slot holds; messages uint2 [4]; barriers  | 368    | 384
//   sum                                                                     | 230256 | 230272
// Every tile is 64 rows of 128 bytes with the 128-byte swizzle. Quarters travel in the order left, right, left, right,
// so that they are freed in the order in which they were filled.
//
// Barriers. A slot's pair is full / empty; parities come from a Cursor that every role advances alike.
//   barrier        slots     arrivals                                   waits
//   ring full      kRing     128 copies of the producer                 scores
//   ring empty     kRing     4 warps of left or right, PV done; of      producer
//                            scores, Q in registers
//   rope full      1         128 copies of the producer                 scores
//   rope empty     1         4 warps of scores, QK done                 producer
//   q full         1         128 copies of the producer                 scores, in a tile's first block
//   q empty        1         4 warps of scores, the tile's QK done      producer
//   message full   4         4 warps of the producer                    scores
//   message empty  4         4 warps of scores, message read            producer
//   p full         2         4 warps of scores, P written               left, right
//   p empty        2         8 warps of left and right                  scores
// A message is the mask of one block's slots, never zero, or zero: the tile has no more blocks. A P slot holds, for
// each warp of scores, P of a block (kBlock), the same with factors by which O shrinks first (kRescaled), or the end of
// a tile (kEnd): then the factors are what makes O the output. Each role walks the same tiles in the same order, so
// nothing else has to be agreed upon, and the producer runs ahead into the next tile. Nobody waits in a circle: what a
// producer waits for needs only earlier blocks, except that PV of block i may be held until the scores of block i+1,
// whose keys need at most 8 quarters of the ring together with those of block i.
//
// Constraints (checked in op.cpp): h_kv 1, d_qk 576 or 512, d_v 512, rows on 16 bytes.
#pragma once

#include "../planted.h"
#include "../sm90.cuh"
#include "params.h"

namespace flash_dsa::sm90 {

constexpr int kThreads = 4 * kWarpgroup;
constexpr int kWarps = kWarpgroup / kWarp;  // of a role
constexpr int kScoreRegisters = 160, kValueRegisters = 160, kProducerRegisters = 32;
static_assert(kScoreRegisters + 2 * kValueRegisters + kProducerRegisters == 4 * 128);

constexpr int kM = 64, kN = 64;       // heads of a tile, keys of a block
constexpr int kQuarters = 4;          // of a block of keys, 128 columns each
constexpr int kRegisterQuarters = 3;  // whose Q is in registers: 96 of them
constexpr int kMessages = 4;
constexpr int kBlock = 0, kRescaled = 1, kEnd = 2;  // what a P slot holds
// P is held back where this quarter of the next block is there. With a later one it would hardly ever be: its slot is
// one that only an earlier PV frees.
constexpr int kLandedQuarter = 1;

constexpr int kQuarterBytes = 2 * kTileBytes;

// First column of a quarter: left and right take turns.
__host__ __device__ constexpr int first_column(int quarter) { return quarter % 2 * 256 + quarter / 2 * 128; }

template <int kDqk_>
struct Plan {
  static constexpr int kDqk = kDqk_;
  static constexpr bool kHasRope = kDqk > 512;
  static constexpr int kRing = kHasRope ? 11 : 12;

  static constexpr int kRingOffset = 0;
  static constexpr int kQ = kRingOffset + kRing * kQuarterBytes;
  static constexpr int kRope = kQ + (kHasRope ? 3 : 2) * kTileBytes;
  static constexpr int kP = kRope + (kHasRope ? kTileBytes : 0);
  static constexpr int kFactors = kP + 2 * kTileBytes;
  static constexpr int kKinds = kFactors + 2 * kM * 4;
  static constexpr int kMessageOffset = kKinds + 2 * kWarps * 4;
  static constexpr int kBarriers = kMessageOffset + kMessages * 8;

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
  static constexpr int kPEmpty = kPFull + 2 * 8;
  static constexpr int kSharedBytes = kPEmpty + 2 * 8;

  static_assert(kBarriers % 8 == 0 && kMessageOffset % 8 == 0);
  static_assert(2 * kQuarters <= kRing, "scores of a block and PV of the one before need both in the ring");
};

// What all roles know.
struct Shared {
  unsigned char* memory;
  uint32_t base;  // the same as an address in shared memory, on 1024 bytes

  __device__ float* factors(int kFactors, int slot) const {
    return reinterpret_cast<float*>(memory + kFactors) + slot * kM;
  }
};

// A launch. What can be worked out on the host lies in constant memory and takes no registers.
struct Launch {
  SparseFwdParams call;
  uint32_t tiles, tiles_per_query;  // the launcher has checked that `tiles` and a grid more fit into 31 bits
  uint32_t kv_stride, q_stride;     // of rows, of heads, in chunks of 16 bytes
  uint32_t kv_rows;                 // at most 2^31: as unsigned numbers, valid indices are those below
  float scale_log2;                 // sm_scale x log2(e)

  // Tiles of one query follow each other: a cluster of two takes both halves of 128 heads, and gathers the same rows.
  __device__ int64_t query(uint32_t tile) const { return tile / tiles_per_query; }
  __device__ int head(uint32_t tile) const { return static_cast<int>(tile % tiles_per_query) * kM; }
};

// ---- Producer: gathers rows, drops blocks without a valid slot.

template <class Plan>
class Producer {
 public:
  __device__ Producer(const Launch& launch, const Shared& shared)
      : launch_(launch), shared_(shared), policy_(keep_in_l2()) {}

  __device__ void run() {
#pragma unroll 1
    for (uint32_t tile = blockIdx.x; tile < launch_.tiles; tile += gridDim.x) {
      gather_tile(tile);
    }
  }

 private:
  // Every warp sees all indices of a block, lane l slots l and l + 32, and comes to the same decisions.
  __device__ void gather_tile(uint32_t tile) {
    if (tile + gridDim.x < launch_.tiles) prefetch(tile + gridDim.x);
    const int64_t query = launch_.query(tile);
    int length = launch_.call.topk;
    if (launch_.call.topk_length != nullptr) length = min(max(__ldg(launch_.call.topk_length + query), 0), length);
    at_ = launch_.call.indices + query * launch_.call.indices_stride_s + lane();
    left_ = length - static_cast<int>(lane());
    int2 next = fetch(0);
    bool first = true;
#pragma unroll 1
    while (__any_sync(~0u, left_ > 0)) {
      const int2 index = next;
      at_ += kN;
      left_ -= kN;
      const bool empty = !__any_sync(~0u, valid(index.x) || valid(index.y));
      if (empty) skip_empty();
      next = fetch(0);  // a block ahead: its latency passes while this one is copied
      if (empty) continue;
      send(__ballot_sync(~0u, valid(index.x)), __ballot_sync(~0u, valid(index.y)));
      if (first) copy_queries(tile);
      gather_block(index);
      if (first) copy_last_queries(tile);
      first = false;
    }
    send(0, 0);
  }

  // This lane's slots of a block, counted from the next one; what lies past the length does not count and is not read.
  __device__ int2 fetch(int block) const {
    return {left_ > block * kN ? __ldg(at_ + block * kN) : -1,
            left_ > block * kN + 32 ? __ldg(at_ + block * kN + 32) : -1};
  }

  __device__ bool valid(int index) const { return static_cast<uint32_t>(index) < launch_.kv_rows; }

  // On to the first block that may hold a valid slot. Four blocks at a time: padding costs a latency for each step.
  __device__ void skip_empty() {
    constexpr int kAtOnce = 4;
#pragma unroll 1
    while (__any_sync(~0u, left_ > 0)) {
      bool any = false;
#pragma unroll
      for (int block = 0; block < kAtOnce; ++block) {
        const int2 index = fetch(block);
        any |= valid(index.x) || valid(index.y);
      }
      if (__any_sync(~0u, any)) return;
      at_ += kAtOnce * kN;
      left_ -= kAtOnce * kN;
    }
  }

  // All warps wait and arrive, although one writes: none falls behind by a round of a barrier, and the compiler sees
  // that warps do not diverge.
  __device__ void send(uint32_t low, uint32_t high) {
    barrier_wait(shared_.base + Plan::kMessageEmpty + message_.slot() * 8, message_.empty_parity());
    if (thread() == 0) {
      reinterpret_cast<uint2*>(shared_.memory + Plan::kMessageOffset)[message_.slot()] = make_uint2(low, high);
    }
    if (lane() == 0) barrier_arrive(shared_.base + Plan::kMessageFull + message_.slot() * 8);
    message_.advance();
  }

  // A thread copies one chunk of every 128 bytes of rows place().row + 16 k, k = 0..3: eight threads share 128 bytes.
  struct Place {
    int row, chunk;
    uint32_t offset;  // in a tile
  };
  __device__ static Place place() {
    int thread;  // volatile, or what follows from it would stay in registers from block to block
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
    const int row = thread % kWarpgroup / 8, chunk = thread % 8;
    return {row, chunk, sm80::swizzled<128>(row, chunk)};
  }

  // Where the queries of a tile begin, in chunks of 16 bytes, and which of its rows this thread copies. Rows past the
  // last head repeat it; they are computed and not written.
  __device__ const uint4* queries(uint32_t tile, const Place& place, int (&number)[4]) const {
    const int head = launch_.head(tile), last = min(kM, launch_.call.h_q - head) - 1;
#pragma unroll
    for (int k = 0; k < 4; ++k) number[k] = min(place.row + 16 * k, last);
    return reinterpret_cast<const uint4*>(static_cast<const bf16*>(launch_.call.q) +
                                          launch_.query(tile) * launch_.call.q_stride_s +
                                          head * launch_.call.q_stride_h) +
           place.chunk;
  }

  // Where in the ring, by OR: ptxas 13.0 leaves the sum of a uniform and another register to the copy, and with a cache
  // policy that is an illegal instruction.
  __device__ uint32_t ring_place(uint32_t offset) const {
    static_assert(Plan::kRingOffset == 0 && kQuarterBytes == 1 << 14);
    return (shared_.base + offset) | ring_.slot() << 14;
  }

  // The quarters of Q that become registers travel through the ring.
  __device__ void copy_queries(uint32_t tile) {
    const Place at = place();
    int number[4];
    const uint4* source = queries(tile, at, number);
    const uint64_t policy = leave_l2_soon();
#pragma unroll
    for (int quarter = 0; quarter < kRegisterQuarters; ++quarter) {
      barrier_wait(shared_.base + Plan::kRingEmpty + ring_.slot() * 8, ring_.empty_parity());
      copy<2>(ring_place(at.offset), source, first_column(quarter) / sm80::kChunk, launch_.q_stride, number, policy);
      barrier_arrive_after_copies(shared_.base + Plan::kRingFull + ring_.slot() * 8);
      ring_.advance();
    }
  }

  // The rest of Q stays in shared memory until the scores of the tile's last block are there.
  __device__ void copy_last_queries(uint32_t tile) {
    const Place at = place();
    int number[4];
    const uint4* source = queries(tile, at, number);
    const uint64_t policy = leave_l2_soon();
    barrier_wait(shared_.base + Plan::kQEmpty, q_.empty_parity());
    copy<2>(shared_.base + Plan::kQ + at.offset, source, first_column(kRegisterQuarters) / sm80::kChunk,
            launch_.q_stride, number, policy);
    if constexpr (Plan::kHasRope) {
      copy<1>(shared_.base + Plan::kQ + 2 * kTileBytes + at.offset, source, 512 / sm80::kChunk, launch_.q_stride,
              number, policy);
    }
    barrier_arrive_after_copies(shared_.base + Plan::kQFull);
    q_.advance();
  }

  // What a tile begins with, into L2: by the time it is copied hardly anything is left to compute.
  __device__ void prefetch(uint32_t tile) const {
    const Place at = place();
    const int head = launch_.head(tile), heads = min(kM, launch_.call.h_q - head);
    const bf16* queries = static_cast<const bf16*>(launch_.call.q) + launch_.query(tile) * launch_.call.q_stride_s;
#pragma unroll 1
    for (int row = at.row; row < heads; row += 16) {
      const bf16* columns = queries + (head + row) * launch_.call.q_stride_h + at.chunk * 64;
      prefetch_l2(columns);
      if (Plan::kHasRope && at.chunk == 0) prefetch_l2(columns + 512);
    }
    if (at.chunk == 0 && at.row < 2 && at.row * 32 < launch_.call.topk) {
      prefetch_l2(launch_.call.indices + launch_.query(tile) * launch_.call.indices_stride_s + at.row * 32);
    }
  }

  __device__ void gather_block(int2 index) {
    const Place at = place();
    int number[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      number[k] = __shfl_sync(~0u, k < 2 ? index.x : index.y, at.row + k % 2 * 16);
      if (!valid(number[k])) number[k] = -1;
    }
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      barrier_wait(shared_.base + Plan::kRingEmpty + ring_.slot() * 8, ring_.empty_parity());
      copy<2>(ring_place(at.offset), launch_.call.kv, at.chunk + first_column(quarter) / sm80::kChunk,
              launch_.kv_stride, number, policy_);
      barrier_arrive_after_copies(shared_.base + Plan::kRingFull + ring_.slot() * 8);
      ring_.advance();
    }
    if constexpr (Plan::kHasRope) {
      barrier_wait(shared_.base + Plan::kRopeEmpty, rope_.empty_parity());
      copy<1>(shared_.base + Plan::kRope + at.offset, launch_.call.kv, at.chunk + 512 / sm80::kChunk, launch_.kv_stride,
              number, policy_);
      barrier_arrive_after_copies(shared_.base + Plan::kRopeFull);
      rope_.advance();
    }
  }

  // 16 bytes of four rows, in kTiles tiles next to each other. A row of -1 becomes zeros and is not read.
  template <int kTiles>
  __device__ static void copy(uint32_t destination, const void* source, uint32_t chunk, uint32_t stride,
                              int (&number)[4], uint64_t policy) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      asm volatile("" : "+r"(number[k]));  // addresses are cheap, and registers for four of them are not
      const uint64_t chunks = static_cast<uint64_t>(static_cast<uint32_t>(max(number[k], 0))) * stride + chunk;
      const uint4* row = static_cast<const uint4*>(source) + chunks;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        copy_async(destination + tile * kTileBytes + k * 16 * 128, row + tile * 8, number[k] >= 0 ? 16 : 0, policy);
      }
    }
  }

  const Launch& launch_;
  const Shared shared_;
  const uint64_t policy_;
  const int32_t* at_;  // this lane's first slot of the next block
  int left_;           // slots from there on that count
  Cursor<Plan::kRing> ring_;
  Cursor<1> rope_, q_;
  Cursor<kMessages> message_;
};

// ---- Scores: QK, softmax, statistics.

template <class Plan>
class Scores {
 public:
  __device__ Scores(const Launch& launch, const Shared& shared) : launch_(launch), shared_(shared) {}

  __device__ void run() {
    uint32_t tile = blockIdx.x;
#pragma unroll 1
    for (; tile < launch_.tiles; tile += gridDim.x) attend(tile);
    finish(tile - gridDim.x);
  }

 private:
  // The tile before gets its results, and nothing has been seen of this one.
  __device__ void begin(uint32_t tile) {
    if (tile != blockIdx.x) finish(tile - gridDim.x);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      maximum_[h] = reference_[h] = -sm80::kInfinity;
      sum_[h] = 0.0f;
    }
  }

  // All blocks of a tile.
  __device__ void attend(uint32_t tile) {
    bool first = true, held = false;  // the P written last has not been handed over; each warp arrives for itself
    for (bool more = await_message(); more;) {
      if (first) load_queries();
      float score[32];
      multiply(score, first);
      // While the tensor cores are at it:
      const auto coming = message_.after(1);
      const bool ahead = there(shared_.base + Plan::kMessageFull + coming.slot() * 8, coming.full_parity());
      const bool last = ahead && !is_block(coming.slot());
      const uint2 mask = this->mask();
      if (first) begin(tile);
      barrier_wait(shared_.base + Plan::kPEmpty + p_.slot() * 8, p_.empty_parity());
      // P of the block before is handed over when only the last group is left: by the time left and right have seen it,
      // the tensor cores are free.
      wgmma_wait<1>();
      if (held) hand_over();
      wgmma_wait<0>();
      pin(score);
      if (Plan::kHasRope && lane() == 0) barrier_arrive(shared_.base + Plan::kRopeEmpty);
      if (last && lane() == 0) barrier_arrive(shared_.base + Plan::kQEmpty);
      message_read();
      softmax(score, mask, first);
      first = false;
      // Asked for here and used below, after the fence.
      const auto quarter = ring_.after(kLandedQuarter);
      const bool landed = barrier_test(shared_.base + Plan::kRingFull + quarter.slot() * 8, quarter.full_parity());
      written();
      held = ahead && !last && __any_sync(~0u, landed);
      if (!held) hand_over();
      more = ahead ? !last : await_message();
      if (!ahead && !more && lane() == 0) barrier_arrive(shared_.base + Plan::kQEmpty);
    }
    message_read();
    if (first) begin(tile);
  }

  // Whether a message that is there announces a block, and not the end of a tile.
  __device__ bool is_block(int slot) const {
    const uint2 mask = reinterpret_cast<const uint2*>(shared_.memory + Plan::kMessageOffset)[slot];
    return __any_sync(~0u, (mask.x | mask.y) != 0);
  }

  // Waits for the next message; whether it is a block.
  __device__ bool await_message() {
    barrier_wait(shared_.base + Plan::kMessageFull + message_.slot() * 8, message_.full_parity());
    return is_block(message_.slot());
  }

  // A vote, so that the compiler sees that warps do not diverge and counts slots in uniform registers.
  __device__ static bool there(uint32_t barrier, uint32_t parity) {
    return __any_sync(~0u, barrier_test(barrier, parity));
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
      if (lane() == 0) barrier_arrive(shared_.base + Plan::kRingEmpty + ring_.slot() * 8);
      ring_.advance();
    }
  }

  // Starts S = Q K^T, in two groups.
  __device__ void multiply(float (&score)[32], bool first) {
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      if (first && quarter == kRegisterQuarters) {
        barrier_wait(shared_.base + Plan::kQFull, last_q_.full_parity());
        last_q_.advance();
      }
      barrier_wait(shared_.base + Plan::kRingFull + ring_.slot() * 8, ring_.full_parity());
      wgmma_begin();
      const uint64_t keys = k_major(shared_.base + Plan::kRingOffset + ring_.slot() * kQuarterBytes);
#pragma unroll
      for (int step = 0; step < 8; ++step) {
        const int offset = step / 4 * kTileBytes + step % 4 * 32;
        if (quarter < kRegisterQuarters) {
          multiply_64(score, q_[quarter][step], further(keys, offset), quarter + step > 0);
        } else {
          multiply_64(score, further(k_major(shared_.base + Plan::kQ), offset), further(keys, offset), 1);
        }
        if (!Plan::kHasRope && quarter == kQuarters - 1 && step == 3) wgmma_commit();
      }
      ring_.advance();
    }
    if constexpr (Plan::kHasRope) {
      wgmma_commit();
      barrier_wait(shared_.base + Plan::kRopeFull, rope_.full_parity());
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

  // P and row sums. The scores of a row lie in four lanes; a lane has rows accumulator_row() and accumulator_row() + 8.
  // P is made with the reference there is while the lanes look whether a score has outgrown it: hardly ever, but in a
  // tile's first block. Then the warp moves its references and makes P again.
  __device__ void softmax(float (&score)[32], uint2 mask, bool first) {
    if ((mask.x & mask.y) != ~0u) {
      const int shift = lane() % 4 * 2;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const uint32_t bits = (j < 4 ? mask.x : mask.y) >> (j % 4 * 8 + shift);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if ((bits >> (i % 2) & 1) == 0) score[j * 4 + i] = -sm80::kInfinity;
        }
      }
    }
    float sums[2];
    bool grown = true;
    if (!first) {
      write_p(score, sums);
      float highest[2];
      maxima(score, highest);
      bool beyond = false;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        maximum_[h] = fmaxf(maximum_[h], highest[h]);
        beyond |= outgrown(h);
      }
      grown = __any_sync(~0u, beyond);
    }
    if (grown) {
      float highest[2];
      maxima(score, highest);
      move_references(highest);
      write_p(score, sums);
    }
    if (lane() == 0) kinds()[thread() / kWarp] = grown ? kRescaled : kBlock;
#pragma unroll
    for (int h = 0; h < 2; ++h) sum_[h] = planted_spill(sum_[h] + sums[h]);
    planted_sync(1, kWarpgroup);
  }

  // This lane's.
  __device__ static void maxima(const float (&score)[32], float (&highest)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        pairs[j] = fmaxf(fmaxf(score[j * 8 + h * 2], score[j * 8 + h * 2 + 1]),
                         fmaxf(score[j * 8 + 4 + h * 2], score[j * 8 + 5 + h * 2]));
      }
      highest[h] = fmaxf(fmaxf(pairs[0], pairs[1]), fmaxf(pairs[2], pairs[3]));
    }
  }

  // Products and differences stay apart, as everywhere: P and the factors then refer to the same rounded shift.
  __device__ float shift(int h) const { return __fmul_rn(reference_[h], launch_.scale_log2); }
  // Where nothing has been seen any score outgrows the reference.
  __device__ bool outgrown(int h) const {
    return maximum_[h] != -sm80::kInfinity &&
           (reference_[h] == -sm80::kInfinity || __fmul_rn(maximum_[h], launch_.scale_log2) > shift(h) + kSlack);
  }

  __device__ void move_references(const float (&highest)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      maximum_[h] = sm80::row_max(fmaxf(maximum_[h], highest[h]));
      const bool moves = outgrown(h), seen = reference_[h] != -sm80::kInfinity;
      const float before = shift(h);
      reference_[h] = moves ? maximum_[h] : reference_[h];
      const float factor = moves && seen ? sm80::exp2_approx(__fsub_rn(before, shift(h))) : 1.0f;
      sum_[h] *= factor;
      if (lane() % 4 == 0) shared_.factors(Plan::kFactors, p_.slot())[accumulator_row() + h * 8] = factor;
    }
  }

  // P = exp2(S - reference) to the P slot, and this lane's part of the row sums.
  __device__ void write_p(const float (&score)[32], float (&sums)[2]) {
    float shifts[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      shifts[h] = reference_[h] == -sm80::kInfinity ? 0.0f : shift(h);
      sums[h] = 0.0f;
    }
    const uint32_t p = shared_.base + Plan::kP + p_.slot() * kTileBytes + matrices();
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
      store_matrix_x4(p ^ (j * 16), words);
    }
  }

  // Of the P slot being written, by warp.
  __device__ int* kinds() const { return reinterpret_cast<int*>(shared_.memory + Plan::kKinds) + p_.slot() * kWarps; }

  // This thread has written its part of the P slot; hand_over() tells the readers.
  __device__ void written() {
    proxy_fence();
    p_.advance();
  }

  __device__ void hand_over() {
    __syncwarp();
    const int slot = p_.slot() ^ 1;  // the one written last
    if (lane() == 0) barrier_arrive(shared_.base + Plan::kPFull + slot * 8);
  }

  // Ends a tile, while the scores of the next are being computed: left and right are at its last blocks until then.
  __device__ void finish(uint32_t tile) {
    const int64_t query = launch_.query(tile);
    const int head = launch_.head(tile);
    barrier_wait(shared_.base + Plan::kPEmpty + p_.slot() * 8, p_.empty_parity());
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = accumulator_row() + h * 8;
      const float sum = sm80::row_sum(sum_[h]), maximum = sm80::row_max(maximum_[h]);
      if (lane() % 4 != 0) continue;
      float factor = 0.0f, max_logit = -sm80::kInfinity, lse = sm80::kInfinity;
      if (sum != 0.0f) {
        // As finish_row of the portable target, but the sum is relative to the reference.
        max_logit = isnan(sum) && maximum != sm80::kInfinity ? sum : maximum * launch_.call.sm_scale;
        lse = max_logit == sm80::kInfinity ? sm80::kInfinity : reference_[h] * launch_.call.sm_scale + logf(sum);
        factor = 1.0f / sum;
      }
      if (head + row < launch_.call.h_q) {
        launch_.call.max_logits[query * launch_.call.h_q + head + row] = max_logit;
        launch_.call.lse[query * launch_.call.h_q + head + row] = lse;
        if (launch_.call.attn_sink != nullptr && factor != 0.0f) {
          factor /= 1.0f + expf(__ldg(launch_.call.attn_sink + head + row) - lse);
        }
      }
      shared_.factors(Plan::kFactors, p_.slot())[row] = factor;
    }
    if (lane() == 0) kinds()[thread() / kWarp] = kEnd;
    written();
    hand_over();
  }

  const Launch& launch_;
  const Shared shared_;
  uint32_t q_[kRegisterQuarters][8][4];
  float maximum_[2], reference_[2], sum_[2];
  Cursor<Plan::kRing> ring_;
  Cursor<1> rope_, last_q_;
  Cursor<kMessages> message_;
  Cursor<2> p_;
};

// ---- Values: PV of 256 columns, epilogue.

template <class Plan>
class Values {
 public:
  __device__ Values(const Launch& launch, const Shared& shared, int side)
      : launch_(launch), shared_(shared), side_(side) {}

  __device__ void run() {
    for (uint32_t tile = blockIdx.x; tile < launch_.tiles; tile += gridDim.x) {
#pragma unroll
      for (int i = 0; i < 64; ++i) out_[0][i] = out_[1][i] = 0.0f;
      bool first = true;
      for (int kind = next(); !__any_sync(~0u, kind == kEnd); kind = next()) {
        if (first) ring_.advance(kRegisterQuarters);  // Q
        first = false;
        if (__any_sync(~0u, kind == kRescaled)) rescale();
        multiply();
      }
      finish(launch_.query(tile), launch_.head(tile));
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
    const uint64_t p = k_major(shared_.base + Plan::kP + p_.slot() * kTileBytes);
    const auto first = ring_.after(side_), second = ring_.after(side_ + 2);
    pin(out_[0]);
    pin(out_[1]);
    wgmma_begin();
    multiply_quarter(out_[0], p, first.slot());
    multiply_quarter(out_[1], p, second.slot());
    wgmma_wait<1>();
    if (lane() == 0) barrier_arrive(shared_.base + Plan::kRingEmpty + first.slot() * 8);
    wgmma_wait<0>();
    pin(out_[0]);
    pin(out_[1]);
    if (lane() == 0) barrier_arrive(shared_.base + Plan::kRingEmpty + second.slot() * 8);
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

  // This warp has read all it needs of the P slot.
  __device__ void release() {
    if (lane() == 0) barrier_arrive(shared_.base + Plan::kPEmpty + p_.slot() * 8);
    p_.advance();
  }

  // Out = O x factor. Four lanes hold two columns each of every eight of a row: they transpose four words of four
  // lanes, so that a lane stores 16 bytes and the four 64 bytes in a row.
  __device__ void finish(int64_t query, int head) {
    const float factors[2] = {factor(0), factor(1)};
    __syncwarp();
    release();
    bf16* out =
        static_cast<bf16*>(launch_.call.out) + query * launch_.call.out_stride_s + head * launch_.call.out_stride_h;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = accumulator_row() + h * 8;
      bf16* at = out + row * launch_.call.out_stride_h + lane() % 4 * sm80::kChunk;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < 16; j += 4) {
          uint32_t words[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float* pair = &out_[half][(j + i) * 4 + h * 2];
            words[i] = sm80::pack_bf16(sm80::scaled(pair[0], factors[h]), sm80::scaled(pair[1], factors[h]));
          }
          transpose(words);
          if (head + row < launch_.call.h_q) {
            // Written once and not read here: keys are worth more in L2.
            __stcs(reinterpret_cast<uint4*>(at + side_ * 256 + half * 128 + j * 8),
                   make_uint4(words[0], words[1], words[2], words[3]));
          }
        }
      }
    }
  }

  const Launch& launch_;
  const Shared shared_;
  const int side_;
  float out_[2][64];  // columns 128 half + 8 j + 2 (lane % 4) + i of this side in out_[half][4 j + 2 h + i]
  Cursor<Plan::kRing> ring_;
  Cursor<2> p_;
};

template <class Plan>
__global__ void __launch_bounds__(kThreads, 1) sparse_fwd_kernel(const __grid_constant__ Launch launch) {
  [[maybe_unused]] PlantedDelay delay;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const Shared shared{shared_memory, sm80::shared_address(shared_memory)};
  // Descriptors would read another swizzle than the copies write, and copies would go astray (ring_place).
  if (shared.base % 1024 != 0 || in_window(shared.base) >= kTileBytes) __trap();
#ifdef FLASH_DSA_BOUNDED_WAIT
  wait_base = shared.base;
#endif
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    const auto init = [&](int first, int slots, int arrivals) {
      for (int slot = 0; slot < slots; ++slot) barrier_init(shared.base + first + slot * 8, arrivals);
    };
    init(Plan::kRingFull, Plan::kRing, kWarpgroup);
    init(Plan::kRingEmpty, Plan::kRing, kWarps);
    init(Plan::kRopeFull, 1, kWarpgroup);
    init(Plan::kRopeEmpty, 1, kWarps);
    init(Plan::kMessageFull, kMessages, kWarps);
    init(Plan::kMessageEmpty, kMessages, kWarps);
    init(Plan::kQFull, 1, kWarpgroup);
    init(Plan::kQEmpty, 1, kWarps);
    init(Plan::kPFull, 2, kWarps);
    init(Plan::kPEmpty, 2, 2 * kWarps);
    barrier_init_fence();
  }
  __syncthreads();
  if (role == 0) {
    grow_registers<kScoreRegisters>();
    Scores<Plan>(launch, shared).run();
  } else if (role == 3) {
    shrink_registers<kProducerRegisters>();
    Producer<Plan>(launch, shared).run();
  } else {
    grow_registers<kValueRegisters>();
    Values<Plan>(launch, shared, role - 1).run();
  }
}

}  // namespace flash_dsa::sm90
