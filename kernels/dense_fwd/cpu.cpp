// dense_fwd on the CPU. A tile is up to 64 rows of one sequence and KV head; a row is a (query, head of the group)
// pair, queries outermost, so grouped heads share the KV rows they load.
//
// For each tile: blocks of consecutive KV rows go to the engine, up to the last key that any row of the tile sees. When
// causal, blocks that end beyond the first key hidden from the tile's first query carry a limit for each row.
#include <algorithm>
#include <limits>
#include <vector>

#include "../check.h"
#include "../cpu_driver.h"
#include "params.h"

namespace flash_dsa {

namespace {

void check_cu_seqlens_values(const char* name, const int32_t* cu_seqlens, int batch, int64_t total,
                             const char* total_name) {
  if (cu_seqlens[0] != 0) fail("dense_fwd: `", name, "` expected to start at 0, got ", cu_seqlens[0]);
  for (int i = 0; i < batch; ++i) {
    if (cu_seqlens[i + 1] < cu_seqlens[i]) {
      fail("dense_fwd: `", name, "` expected non-decreasing entries, got ", cu_seqlens[i], " at ", i, " before ",
           cu_seqlens[i + 1]);
    }
  }
  if (cu_seqlens[batch] > total) {
    fail("dense_fwd: `", name, "` expected to end at or before ", total_name, " = ", total, ", got ",
         cu_seqlens[batch]);
  }
}

// Consecutive rows, block after block: the hardware sees them coming.
constexpr CpuAhead kNoHints = {};

struct Sequence {
  int64_t q_start, q_len, kv_start, kv_len;
};

// The tiles of all sequences, numbered through: each sequence has h_kv times the tiles of its rows.
struct Schedule {
  explicit Schedule(const DenseFwdParams& params) : params(params), group(params.h_q / params.h_kv) {
    for (int i = 0; i < params.batch; ++i) {
      end.push_back(total() + RowTiles(sequence(i).q_len * group).count * params.h_kv);
    }
  }

  int64_t total() const { return end.empty() ? 0 : end.back(); }

  Sequence sequence(int64_t i) const {
    const int32_t *q = params.cu_seqlens_qo + i, *kv = params.cu_seqlens_kv + i;
    return {q[0], q[1] - q[0], kv[0], kv[1] - kv[0]};
  }

  const DenseFwdParams& params;
  const int64_t group;       // query heads of a KV head
  std::vector<int64_t> end;  // [batch] tiles up to and with this sequence
};

// The rows of one tile: `count` from `first` of the sequence's (query, head of the group) pairs.
struct Rows {
  int64_t kv_head, first;
  int count;
};

void attend(const DenseFwdParams& params, CpuDtype dtype, const CpuEngine& engine, const Sequence& sequence,
            const Rows& rows, CpuScratch& scratch) {
  const int64_t group = params.h_q / params.h_kv;
  CpuTile tile;
  tile.rows = rows.count;
  tile.d_qk = params.d_qk;
  tile.d_v = params.d_v;
  tile.scale = params.softmax_scale;
  void* out[kCpuTileRows];
  float* lse[kCpuTileRows];
  int64_t sees[kCpuTileRows];  // keys of the sequence that the row sees; grows with the row
  for (int row = 0; row < rows.count; ++row) {
    const int64_t in_sequence = (rows.first + row) / group, query = sequence.q_start + in_sequence;
    const int64_t head = rows.kv_head * group + (rows.first + row) % group;
    tile.q[row] = element(params.q, query * params.q_stride_s + head * params.q_stride_h, dtype);
    out[row] = element(params.out, query * params.out_stride_s + head * params.out_stride_h, dtype);
    lse[row] = params.lse + query * params.lse_stride_s + head * params.lse_stride_h;
    const int64_t causal_limit = std::max<int64_t>(0, in_sequence + 1 + sequence.kv_len - sequence.q_len);
    sees[row] = params.causal ? std::min(causal_limit, sequence.kv_len) : sequence.kv_len;
  }

  engine.begin(tile, scratch);
  int visible[kCpuTileRows];
  CpuKeys keys;
  for (int64_t start = 0; start < sees[rows.count - 1]; start += kCpuBlockKeys) {
    keys.count = static_cast<int>(std::min<int64_t>(kCpuBlockKeys, sees[rows.count - 1] - start));
    for (int key = 0; key < keys.count; ++key) {
      const int64_t kv_row = sequence.kv_start + start + key;
      keys.k[key] = element(params.k, kv_row * params.k_stride_s + rows.kv_head * params.k_stride_h, dtype);
      keys.v[key] = element(params.v, kv_row * params.v_stride_s + rows.kv_head * params.v_stride_h, dtype);
    }
    keys.visible = sees[0] < start + keys.count ? visible : nullptr;
    for (int row = 0; keys.visible != nullptr && row < rows.count; ++row) {
      visible[row] = static_cast<int>(std::clamp<int64_t>(sees[row] - start, 0, keys.count));
    }
    engine.block(tile, keys, kNoHints, scratch);
  }

  float factor[kCpuTileRows];
  for (int row = 0; row < rows.count; ++row) {
    const RowResult result = finish_row(scratch, row, -std::numeric_limits<float>::infinity());
    factor[row] = result.factor;
    *lse[row] = result.lse;
  }
  engine.store(tile, factor, out, scratch);
}

}  // namespace

void dense_fwd_cpu(const DenseFwdParams& params, CpuDtype dtype) {
  check_cu_seqlens_values("cu_seqlens_qo", params.cu_seqlens_qo, params.batch, params.tot_q, "tot_q");
  check_cu_seqlens_values("cu_seqlens_kv", params.cu_seqlens_kv, params.batch, params.tot_kv, "tot_kv");
  const CpuEngine& engine = cpu_engine(dtype);
  const Schedule schedule(params);
  for_each_tile(schedule.total(), [&](int64_t taken, int64_t /*upcoming*/, CpuScratch& scratch) {
    // From the end: when causal, later rows see more keys, and long tiles taken last would leave threads idle.
    const int64_t tile = schedule.total() - 1 - taken;
    const int64_t i = std::upper_bound(schedule.end.begin(), schedule.end.end(), tile) - schedule.end.begin();
    const Sequence sequence = schedule.sequence(i);
    const RowTiles tiles(sequence.q_len * schedule.group);
    // Heads outermost, so that consecutive tiles share KV rows.
    const int64_t in_sequence = tile - (i == 0 ? 0 : schedule.end[i - 1]);
    const int64_t first = in_sequence % tiles.count * tiles.height;
    const int count = static_cast<int>(std::min<int64_t>(tiles.height, sequence.q_len * schedule.group - first));
    attend(params, dtype, engine, sequence, {in_sequence / tiles.count, first, count}, scratch);
  });
}

}  // namespace flash_dsa
