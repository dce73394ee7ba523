// dense_fwd 576x512, SM90: the schedule of sparse_fwd over keys that lie next to each other, copied by TMA.
//
// Scores, values, shared memory and most barriers are those of kernels/wide_sm90.cuh, which sparse_fwd/sm90.cuh
// explains. What differs:
//   - a tile is 64 rows of queries of one key head: with one head a key head (MHA) 64 queries, with 64 or more (MQA) 64
//     heads of one query, in between both (DenseLaunch); row r is query r / tile_heads, head r % tile_heads;
//   - the producer is one warp: it finds the tile, copies Q and keys by TMA, and clears values past the end of a
//     sequence which another one follows (narrow_sm90.cuh says why);
//   - a message is how many keys of its block the tile's first query sees, and how many there are; the end of a tile
//     carries what the tile is, for the lse and the output;
//   - V in K's storage is not loaded again. Otherwise (kSeparateValues) V has quarters of its own in the ring, in the
//     order K0 K1 V0 K2 V1 .. V of the last block: scores frees K, left and right wait for V and free it. A message
//     says which block is the last, and P slots pass it on. A quarter of V is seen by one side alone, so that a role
//     may come to a slot whose round before it has not seen land: value_quarter() and a wait of scores at the start of
//     a tile exclude it;
//   - a cluster of two blocks of threads takes tiles of the same keys, and each copies half of them to both, by
//     multicast: with one key head 64 of 128 heads each, otherwise 64 of 128 queries. Both then see the same blocks,
//     those of the later queries, and use their rings alike.
//
// Roles, 512 threads: scores, left, right 160 registers, producer 32 (its first warp; the others wait for the end).
//
// Shared memory, bytes: as for d_qk 576 of sparse_fwd, and places of tiles 144, a barrier: 230984 in all.
//
// Barriers that differ. Bytes: the barrier has one arrival of the producer and waits for the bytes of the copies.
//   barrier        slots  arrivals                                        waits
//   ring full      11     1 producer, and the bytes, from both producers  scores; of V left, right
//   ring empty     11     4 warps of each block of the cluster: left or   producer, before it copies to both
//                         right, PV done; scores, Q in registers, and S
//                         done where V is not in K's storage
//   rope full      1      1 producer, and the bytes (one of the two       scores
//                         copies, by turns)
//   rope empty     1      4 warps of scores of each block                 producer
//   q full         1      1 producer, and the bytes                       scores, in a tile's first block
//   message full   4      1 producer                                      scores
//   tail           1      1 producer, and the bytes                       producer: values whose last rows it clears
// Bytes may arrive before the producer has said how many: the phase still lacks its arrival. No block of the cluster
// ends before the other (cluster_sync): what is freed is freed in both.
//
// Constraints: as in narrow_sm90.cuh.
#pragma once

#include "../wide_sm90.cuh"
#include "sequences.cuh"

namespace flash_dsa::sm90 {

// Tiles are numbered so that blocks of a cluster, `rank`, have consecutive ones; without `rank` it is a unit's number.
// The others of a number, from the fastest: group of heads of a key head (chunk), tile of queries of all sequences
// (find_tile), key head.
struct DenseLaunch {
  CUtensorMap q, k, v;
  DenseFwdParams call;
  uint32_t tiles;                // of all blocks
  uint32_t tiles_per_head;       // the host does not see how many there are: at most this many
  uint32_t chunks;               // of the heads of a key head
  int tile_heads, tile_queries;  // of 64 rows; tile_heads * tile_queries <= 64
  int chunk_heads;               // of all ranks
  int rank_heads, rank_queries;  // by which the second block of a cluster is further on: one of them is 0
  float scale_log2;              // softmax_scale x log2(e)
  float slack;                   // kSlack in units of scores
  uint32_t reciprocal;           // row / tile_heads is row * reciprocal >> 16
  int k_heads, v_heads;          // 0 where all heads lie in one place, else 1: factors of a coordinate

  __device__ int query_of(int row) const { return static_cast<int>(static_cast<uint32_t>(row) * reciprocal >> 16); }

  // Row `row` of a tile, if there is one.
  struct Row {
    int64_t query;
    int head;
    bool valid;
  };
  __device__ Row row_of(const Place& place, int row) const {
    const int query = query_of(row), head = row - query * tile_heads;
    return {static_cast<int64_t>(place.query) + query, place.head + head, query < place.queries && head < place.heads};
  }

  struct RowEnd {
    float factor;  // that makes O the output
    float lse;
  };

  // As finish_row of the portable target, but the sum is relative to the reference.
  __device__ RowEnd end_row(const Place&, int, float sum, float maximum, float reference) const {
    if (sum == 0.0f || maximum == sm80::kInfinity) return {sum != 0.0f ? quotient(1.0f, sum) : 0.0f, sm80::kInfinity};
    return {quotient(1.0f, sum), isnan(sum) ? sum : reference * call.softmax_scale + logf(sum)};
  }

  __device__ void write_row(const Place& place, int row, const RowEnd& end) const {
    const Row at = row_of(place, row);
    if (at.valid) call.lse[at.query * call.lse_stride_s + at.head * call.lse_stride_h] = end.lse;
  }

  __device__ bf16* output_row(const Place& place, int row) const {
    const Row at = row_of(place, row);
    if (!at.valid) return nullptr;
    return static_cast<bf16*>(call.out) + at.query * call.out_stride_s + at.head * call.out_stride_h;
  }
};

template <bool kSeparateValues, int kCluster>
struct DensePlan : WidePlan<576, kSeparateValues, true, kCluster> {
  using Launch = DenseLaunch;

  // Of a message: the tile's last block. The other bits count keys.
  static constexpr uint32_t kLastBit = 1u << 31;
  __device__ static int last(uint2 message) { return kSeparateValues && (message.y & kLastBit) != 0 ? kLast : 0; }

  // `message`: how many keys from the block's first on the tile's first query sees, and how many there are.
  __device__ static void mask(const DenseLaunch& launch, float (&score)[32], uint2 message) {
    const int seen = static_cast<int>(message.x), keys = static_cast<int>(message.y & ~kLastBit);
    if (min(seen, keys) >= kN) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int query = launch.call.causal ? launch.query_of(accumulator_row() + h * 8) : 0;
      const int limit = min(seen + query, keys) - static_cast<int>(lane() % 4 * 2);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (j * 8 + i >= limit) score[j * 4 + h * 2 + i] = -sm80::kInfinity;
        }
      }
    }
  }
};

// One warp.
template <class Plan>
class DenseProducer {
 public:
  __device__ DenseProducer(const DenseLaunch& launch, const Shared& shared) : launch_(launch), shared_(shared) {}

  __device__ void run() {
#pragma unroll 1
    for (uint32_t tile = blockIdx.x; tile < launch_.tiles; tile += gridDim.x) copy_tile(tile);
  }

 private:
  __device__ static int rank() { return Plan::kCluster == 1 ? 0 : static_cast<int>(cluster_rank()); }

  // Clusters take the units of a round there, those of the next back: who had the longest of a causal sequence gets the
  // shortest, whatever the round has in common with the sequence's length.
  __device__ uint32_t unit_of(uint32_t tile) const {
    const uint32_t clusters = gridDim.x / Plan::kCluster, unit = tile / Plan::kCluster, round = unit / clusters;
    const bool back = round % 2 == 1 && (round + 1) * gridDim.x <= launch_.tiles;  // a last one is not a whole one
    return back ? (2 * round + 1) * clusters - 1 - unit : unit;
  }

  __device__ void copy_tile(uint32_t tile) {
    const uint32_t unit = unit_of(tile);
    const int chunk = static_cast<int>(unit % launch_.chunks);
    const int number = static_cast<int>(unit / launch_.chunks % launch_.tiles_per_head);
    const int kv_head = static_cast<int>(unit / launch_.chunks / launch_.tiles_per_head);
    const int unit_queries = launch_.tile_queries + launch_.rank_queries * (Plan::kCluster - 1);
    const sm80::SequenceTile found = sm80::find_tile(launch_.call, number, unit_queries);
    const int group = launch_.call.h_q / launch_.call.h_kv;
    const int first_head = chunk * launch_.chunk_heads + rank() * launch_.rank_heads;
    const int further = rank() * launch_.rank_queries;
    if (lane() == 0) {
      place() = {static_cast<int>(found.first_query) + found.start + further, kv_head * group + first_head,
                 min(max(found.rows - further, 0), launch_.tile_queries), min(launch_.tile_heads, group - first_head)};
    }
    int blocks = found.rows > 0 ? found.blocks(kN, launch_.call.causal) : 0;
    int row = static_cast<int>(found.first_key), keys = found.s_kv;  // of the next block, and all from there on
    const int unseen = launch_.call.causal ? found.s_q - found.start - further - 1 : 0;  // of all, by the first query
    // Another sequence follows the keys of this one.
    const bool followed = row + keys < launch_.call.tot_kv;
    bool first = true;
    const auto more = [&] { return __any_sync(~0u, blocks > 0 || (Plan::kSeparateValues && !first && blocks == 0)); };
#pragma unroll 1
    for (; more(); --blocks) {
      if (__any_sync(~0u, blocks > 0)) {
        send(static_cast<uint32_t>(keys - unseen), static_cast<uint32_t>(keys) | (blocks == 1 ? Plan::kLastBit : 0));
        if (first) copy_queries();
        copy_block(launch_.k, 0, row, kv_head * launch_.k_heads, Plan::kSeparateValues || !followed ? kN : keys);
        if constexpr (Plan::kHasRope) copy_rope(row, kv_head * launch_.k_heads);
        if (first) copy_last_queries();
      }
      // Values come behind the keys of the next block: these are needed first, and their places are free first.
      if (Plan::kSeparateValues && !first) {
        copy_block(launch_.v, 1, row - kN, kv_head * launch_.v_heads, followed ? keys + kN : kN);
      }
      first = false;
      row += kN;
      keys -= kN;
    }
    send(0, 0);
  }

  __device__ void send(uint32_t seen, uint32_t keys) {
    const int slot = message_.slot();
    barrier_wait(shared_.base + Plan::kMessageEmpty + slot * 8, message_.empty_parity());
    if (lane() == 0) {
      reinterpret_cast<uint2*>(shared_.memory + Plan::kMessageOffset)[slot] = make_uint2(seen, keys);
      if (keys == 0) shared_.places(Plan::kPlaces)[slot] = place();
      barrier_arrive(shared_.base + Plan::kMessageFull + slot * 8);
    }
    __syncwarp();
    message_.advance();
  }

  // The tile's, known to lane 0: registers are few.
  __device__ Place& place() const { return shared_.places(Plan::kPlaces)[kMessages + kSlots]; }

  // 64 columns of the tile's queries.
  __device__ void copy_query_box(uint32_t destination, int column, uint32_t full) const {
    const bool by_head = launch_.tile_heads > 1;  // how the box was made (tensor_map.h)
    copy_box(destination, launch_.q, column, by_head ? place().head : place().query,
             by_head ? place().query : place().head, full, leave_l2_soon());
  }

  __device__ int query_box_bytes() const { return launch_.tile_heads * launch_.tile_queries * 128; }

  // The quarters of Q that become registers travel through the ring; they are not shared. Rows of a box that is not
  // whole keep what was there: their results are not stored.
  __device__ void copy_queries() {
#pragma unroll 1
    for (int quarter = 0; quarter < kRegisterQuarters; ++quarter) {
      barrier_wait(shared_.base + Plan::kRingEmpty + ring_.slot() * 8, ring_.empty_parity());
      if (lane() == 0) {
        const uint32_t full = shared_.base + Plan::kRingFull + ring_.slot() * 8;
        const uint32_t destination = shared_.base + Plan::kRingOffset + ring_.slot() * kQuarterBytes;
        barrier_expect(full, 2 * query_box_bytes());
        copy_query_box(destination, first_column(quarter), full);
        copy_query_box(destination + kTileBytes, first_column(quarter) + 64, full);
      }
      __syncwarp();
      ring_.advance();
    }
  }

  // The rest of Q stays in shared memory until the scores of the tile's last block are there.
  __device__ void copy_last_queries() {
    barrier_wait(shared_.base + Plan::kQEmpty, q_.empty_parity());
    if (lane() == 0) {
      constexpr int kBoxes = Plan::kHasRope ? 3 : 2;
      const uint32_t full = shared_.base + Plan::kQFull;
      barrier_expect(full, kBoxes * query_box_bytes());
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        const int column = box < 2 ? first_column(kRegisterQuarters) + box * 64 : 512;
        copy_query_box(shared_.base + Plan::kQ + box * kTileBytes, column, full);
      }
    }
    __syncwarp();
    q_.advance();
  }

  // Four quarters of a block, whose rows from `rows` on, if there are any, become zeros; of keys (value 0) or values
  // (1).
  __device__ void copy_block(const CUtensorMap& map, int value, int row, int head, int rows) {
#pragma unroll 1
    for (int place = 0; place < kQuarters; ++place) {
      const int column = first_column(place ^ place >> 1 & value);
      const int slot = ring_.slot();
      barrier_wait(shared_.base + Plan::kRingEmpty + slot * 8, ring_.empty_parity());
      const bool cut = __any_sync(~0u, rows < kN);
      const uint32_t full = shared_.base + Plan::kRingFull + slot * 8;
      const uint32_t landed = cut ? shared_.base + Plan::kTail : full;
      const int offset = Plan::kRingOffset + slot * kQuarterBytes;
      if (lane() == 0) {
        const uint32_t destination = shared_.base + offset;
        barrier_expect(landed, kQuarterBytes);
        if (Plan::kCluster == 1 || cut) {  // the tail barrier takes no bytes of others: they could be a quarter ahead
          copy_box(destination, map, column, row, head, landed, keep_in_l2());
          copy_box(destination + kTileBytes, map, column + 64, row, head, landed, keep_in_l2());
        } else {
          copy_box_to_all(destination + rank() * kTileBytes, map, column + rank() * 64, row, head, full, kEveryone,
                          keep_in_l2());
        }
      }
      __syncwarp();
      if (cut) {
        barrier_wait(landed, tail_.full_parity());
        tail_.advance();
        clear(offset, rows);
        if (lane() == 0) barrier_arrive(full);
      }
      if constexpr (kPlantedStage) barrier_wait(full, ring_.full_parity());
      ring_.advance();
    }
  }

  // Rows are contiguous whatever the swizzle: a lane clears 16 bytes, a warp four rows of both tiles.
  __device__ void clear(int offset, int rows) const {
#pragma unroll 1
    for (int r = rows + static_cast<int>(lane()) / 8; r < kN; r += 4) {
      uint4* const at = reinterpret_cast<uint4*>(shared_.memory + offset + r * 128) + lane() % 8;
      at[0] = at[kTileBytes / 16] = uint4{};
    }
    proxy_fence();
    __syncwarp();
  }

  __device__ void copy_rope(int row, int head) {
    barrier_wait(shared_.base + Plan::kRopeEmpty, rope_.empty_parity());
    if (lane() == 0) {
      const uint32_t full = shared_.base + Plan::kRopeFull;
      barrier_expect(full, kTileBytes);
      if constexpr (Plan::kCluster == 1) {
        copy_box(shared_.base + Plan::kRope, launch_.k, 512, row, head, full, keep_in_l2());
      } else if (rope_.full_parity() == cluster_rank()) {
        copy_box_to_all(shared_.base + Plan::kRope, launch_.k, 512, row, head, full, kEveryone, keep_in_l2());
      }
    }
    __syncwarp();
    rope_.advance();
  }

  static constexpr uint16_t kEveryone = (1 << Plan::kCluster) - 1;

  const DenseLaunch& launch_;
  const Shared shared_;
  Cursor<Plan::kRing> ring_;
  Cursor<1> rope_, q_, tail_;
  Cursor<kMessages> message_;
};

template <class Plan>
__global__ void __launch_bounds__(kThreads, 1) dense_wide_kernel(const __grid_constant__ DenseLaunch launch) {
  [[maybe_unused]] PlantedDelay delay;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  run_roles<Plan, DenseProducer<Plan>>(launch, shared_memory);
}

}  // namespace flash_dsa::sm90
