// sparse_fwd, SM90: one persistent block of threads per SM takes tiles of 64 heads of one query, one after the other.
//
// The algorithm, per block of 64 keys of a tile:
//   1. the producer gathers the 64 rows, key and value at once, into a ring, and says which slots count;
//   2. scores S = Q K^T (m64n64k16; six of Q's nine column tiles are register operands, which came through the ring);
//   3. masks, P = exp2(S - reference) in bf16, row sums. The reference of a row moves only when a score has outgrown it
//      by 2^8: O is rarely rescaled;
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
//   factors  float [4][64], row factors that travel with a P                | 1024   | 1024
//   kinds    int [4][4], what a slot holds; messages uint2 [4]; barriers    | 432    | 448
//   sum                                                                     | 230832 | 230848
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
//   p full         4         4 warps of scores, P written               left, right
//   p empty        4         8 warps of left and right                  scores
// A message is the mask of one block's slots, never zero, or zero: the tile has no more blocks. A slot of P stands, for
// each warp of scores, for P of a block (kBlock), the same with factors by which O shrinks first (kRescaled), or the
// end of a tile (kEnd): then the factors are what makes O the output. There are four, of which every other one has its
// P in the same place: P waits for the slot before the last to be read, the end of a tile hardly ever for anything.
// Each role walks the same tiles in the same order, so nothing else has to be agreed upon, and the producer runs ahead
// into the next tile. Nobody waits in a circle: what a producer waits for needs only earlier blocks, except that PV of
// block i may be held until the scores of block i+1, whose keys need at most 8 quarters of the ring together with those
// of block i.
//
// Constraints (checked in op.cpp): h_kv 1, d_qk 576 or 512, d_v 512, rows on 16 bytes.
#pragma once

#include "../wide_sm90.cuh"
#include "params.h"

namespace flash_dsa::sm90 {

// A launch. What can be worked out on the host lies in constant memory and takes no registers.
struct Launch {
  SparseFwdParams call;
  uint32_t tiles, tiles_per_query;  // the launcher has checked that `tiles` and a grid more fit into 31 bits
  uint32_t kv_stride, q_stride;     // of rows, of heads, in chunks of 16 bytes
  uint32_t kv_rows;                 // at most 2^31: as unsigned numbers, valid indices are those below
  float scale_log2;                 // sm_scale x log2(e)
  float slack;                      // kSlack in units of scores

  // Tiles of one query follow each other: a cluster of two takes both halves of 128 heads, and gathers the same rows.
  __device__ int64_t query(uint32_t tile) const { return tile / tiles_per_query; }
  __device__ int head(uint32_t tile) const { return static_cast<int>(tile % tiles_per_query) * kM; }

  struct Place {
    int64_t query;
    int head;
  };
  __device__ Place place(uint32_t tile) const { return {query(tile), head(tile)}; }

  struct RowEnd {
    float factor;  // that makes O the output
    float max_logit, lse;
  };

  // As finish_row of the portable target, but the sum is relative to the reference.
  __device__ RowEnd end_row(const Place& place, int row, float sum, float maximum, float reference) const {
    if (sum == 0.0f) return {0.0f, -sm80::kInfinity, sm80::kInfinity};
    RowEnd end;
    end.max_logit = isnan(sum) && maximum != sm80::kInfinity ? sum : maximum * call.sm_scale;
    end.lse = end.max_logit == sm80::kInfinity ? sm80::kInfinity : reference * call.sm_scale + logf(sum);
    end.factor = quotient(1.0f, sum);
    const int head = place.head + row;
    if (call.attn_sink != nullptr && head < call.h_q && end.factor != 0.0f) {
      end.factor = quotient(end.factor, 1.0f + expf(__ldg(call.attn_sink + head) - end.lse));
    }
    return end;
  }

  __device__ void write_row(const Place& place, int row, const RowEnd& end) const {
    const int head = place.head + row;
    if (head >= call.h_q) return;
    call.max_logits[place.query * call.h_q + head] = end.max_logit;
    call.lse[place.query * call.h_q + head] = end.lse;
  }

  // Null where there is no such head.
  __device__ bf16* output_row(const Place& place, int row) const {
    if (place.head + row >= call.h_q) return nullptr;
    return static_cast<bf16*>(call.out) + place.query * call.out_stride_s + (place.head + row) * call.out_stride_h;
  }
};

template <int kDqk>
struct Plan : WidePlan<kDqk> {
  using Launch = flash_dsa::sm90::Launch;

  __device__ static int last(uint2) { return 0; }

  // `mask` has a bit for every slot of a block.
  __device__ static void mask(const Launch&, float (&score)[32], uint2 mask) {
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
  }
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

  // Where a thread's four rows begin, at its chunk, and the bytes of each copy from them: none where a row does not
  // count, which then becomes zeros and is not read. Kept from quarter to quarter, so that nothing stands between
  // copies.
  struct Rows {
    const unsigned char* at[4];
    int bytes[4];
  };

  // Rows past the last head repeat it; they are computed and not written.
  __device__ Rows queries(uint32_t tile, const Place& place) const {
    const int head = launch_.head(tile), last = min(kM, launch_.call.h_q - head) - 1;
    const uint4* const q =
        reinterpret_cast<const uint4*>(static_cast<const bf16*>(launch_.call.q) +
                                       launch_.query(tile) * launch_.call.q_stride_s + head * launch_.call.q_stride_h) +
        place.chunk;
    Rows rows;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint64_t row = static_cast<uint32_t>(min(place.row + 16 * k, last));
      rows.at[k] = reinterpret_cast<const unsigned char*>(q + row * launch_.q_stride);
      rows.bytes[k] = 16;
    }
    return rows;
  }

  __device__ Rows keys(int2 index, const Place& place) const {
    Rows rows;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int row = __shfl_sync(~0u, k < 2 ? index.x : index.y, place.row + k % 2 * 16);
      rows.bytes[k] = valid(row) ? 16 : 0;
      const uint64_t chunks = static_cast<uint64_t>(valid(row) ? row : 0) * launch_.kv_stride;
      rows.at[k] =
          reinterpret_cast<const unsigned char*>(static_cast<const uint4*>(launch_.call.kv) + chunks + place.chunk);
    }
    return rows;
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
    const Rows rows = queries(tile, at);
#pragma unroll
    for (int quarter = 0; quarter < kRegisterQuarters; ++quarter) copy_quarter(rows, at, quarter, leave_l2_soon());
  }

  // The rest of Q stays in shared memory until the scores of the tile's last block are there.
  __device__ void copy_last_queries(uint32_t tile) {
    const Place at = place();
    const Rows rows = queries(tile, at);
    const uint64_t policy = leave_l2_soon();
    barrier_wait(shared_.base + Plan::kQEmpty, q_.empty_parity());
    copy<2>(shared_.base + Plan::kQ + at.offset, rows, first_column(kRegisterQuarters), policy);
    if constexpr (Plan::kHasRope) copy<1>(shared_.base + Plan::kQ + 2 * kTileBytes + at.offset, rows, 512, policy);
    barrier_arrive_after_copies(shared_.base + Plan::kQFull);
    q_.advance();
  }

  __device__ void gather_block(int2 index) {
    const Place at = place();
    const Rows rows = keys(index, at);
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; ++quarter) copy_quarter(rows, at, quarter, policy_);
    if constexpr (Plan::kHasRope) {
      barrier_wait(shared_.base + Plan::kRopeEmpty, rope_.empty_parity());
      copy<1>(shared_.base + Plan::kRope + at.offset, rows, 512, policy_);
      barrier_arrive_after_copies(shared_.base + Plan::kRopeFull);
      rope_.advance();
    }
  }

  __device__ void copy_quarter(const Rows& rows, const Place& at, int quarter, uint64_t policy) {
    barrier_wait(shared_.base + Plan::kRingEmpty + ring_.slot() * 8, ring_.empty_parity());
    copy<2>(ring_place(at.offset), rows, first_column(quarter), policy);
    barrier_arrive_after_copies(shared_.base + Plan::kRingFull + ring_.slot() * 8);
    ring_.advance();
  }

  // 16 bytes of each row, in kTiles tiles next to each other.
  template <int kTiles>
  __device__ static void copy(uint32_t destination, const Rows& rows, int column, uint64_t policy) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        copy_async(destination + tile * kTileBytes + k * 16 * 128, rows.at[k] + column * 2 + tile * 128, rows.bytes[k],
                   policy);
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

template <class Plan>
__global__ void __launch_bounds__(kThreads, 1) sparse_fwd_kernel(const __grid_constant__ Launch launch) {
  [[maybe_unused]] PlantedDelay delay;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  run_roles<Plan, Producer<Plan>>(launch, shared_memory);
}

}  // namespace flash_dsa::sm90
