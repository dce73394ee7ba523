// sparse_fwd on the CPU. A tile is up to 64 heads of one query: they all attend the same KV rows.
//
// For each tile: walk the query's indices, collect pointers to the rows that are valid until a block is full, and give
// the block to the engine. So masked slots cost nothing, rows they name are never touched, and no list of a query's
// indices is ever built. A value row is the first d_v elements of its KV row.
#include <algorithm>
#include <limits>

#include "../cpu_driver.h"
#include "params.h"

namespace flash_dsa {

namespace {

// Fills `keys` with the next valid rows of the slots from `slot` on, and moves `slot` behind them.
void gather(const SparseFwdParams& params, CpuDtype dtype, const int32_t* indices, int slots, int& slot,
            CpuKeys& keys) {
  keys.count = 0;
  for (; slot < slots && keys.count < kCpuBlockKeys; ++slot) {
    const int64_t index = indices[slot];
    if (index < 0 || index >= params.s_kv) continue;
    keys.k[keys.count] = keys.v[keys.count] = element(params.kv, index * params.kv_stride_s, dtype);
    ++keys.count;
  }
}

void attend(const SparseFwdParams& params, CpuDtype dtype, const CpuEngine& engine, int64_t query, int first_head,
            int heads, CpuScratch& scratch) {
  CpuTile tile;
  tile.rows = heads;
  tile.d_qk = params.d_qk;
  tile.d_v = params.d_v;
  tile.scale = params.sm_scale;
  void* out[kCpuTileRows];
  for (int row = 0; row < heads; ++row) {
    const int64_t head = first_head + row;
    tile.q[row] = element(params.q, query * params.q_stride_s + head * params.q_stride_h, dtype);
    out[row] = element(params.out, query * params.out_stride_s + head * params.out_stride_h, dtype);
  }

  engine.begin(tile, scratch);
  const int32_t* indices = params.indices + query * params.indices_stride_s;
  const int slots = params.topk_length == nullptr ? params.topk : std::min(params.topk_length[query], params.topk);
  int slot = 0;
  CpuKeys keys;
  keys.visible = nullptr;
  for (gather(params, dtype, indices, slots, slot, keys); keys.count > 0;
       gather(params, dtype, indices, slots, slot, keys)) {
    engine.block(tile, keys, scratch);
  }

  float factor[kCpuTileRows];
  for (int row = 0; row < heads; ++row) {
    const int64_t head = first_head + row, result_at = query * params.h_q + head;
    const float sink =
        params.attn_sink == nullptr ? -std::numeric_limits<float>::infinity() : params.attn_sink[head];
    const RowResult result = finish_row(scratch, row, sink);
    factor[row] = result.factor;
    params.max_logits[result_at] = result.max_logit;
    params.lse[result_at] = result.lse;
  }
  engine.store(tile, factor, out, scratch);
}

}  // namespace

void sparse_fwd_cpu(const SparseFwdParams& params, CpuDtype dtype) {
  const CpuEngine& engine = cpu_engine(dtype);
  const RowTiles heads(params.h_q);
  for_each_tile(params.s_q * heads.count, [&](int64_t tile, CpuScratch& scratch) {
    const int first_head = static_cast<int>(tile % heads.count) * heads.height;
    attend(params, dtype, engine, tile / heads.count, first_head, std::min(heads.height, params.h_q - first_head),
           scratch);
  });
}

}  // namespace flash_dsa
