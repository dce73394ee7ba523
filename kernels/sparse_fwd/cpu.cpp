// sparse_fwd on the CPU. A tile is up to 64 heads of one query: they all attend the same KV rows.
//
// For each tile: walk the query's indices, collect pointers to the rows that are valid until a block is full, and give
// the block to the engine. So masked slots cost nothing, rows they name are never touched, and no list of a query's
// indices is ever built. A value row is the first d_v elements of its KV row.
#include <algorithm>
#include <limits>
#include <utility>

#include "../cpu_driver.h"
#include "params.h"

namespace flash_dsa {

namespace {

struct Sparse {
  const SparseFwdParams& params;
  const CpuDtype dtype;
  const CpuEngine& engine;
  const RowTiles heads;

  // A tile of the launch: some heads of one query.
  struct Place {
    int64_t query;
    int first_head, count;
  };

  Place place(int64_t tile) const {
    const int first_head = static_cast<int>(tile % heads.count) * heads.height;
    return {tile / heads.count, first_head, std::min(heads.height, params.h_q - first_head)};
  }

  const void* query_row(const Place& at, int row) const {
    return element(params.q, at.query * params.q_stride_s + (at.first_head + row) * params.q_stride_h, dtype);
  }

  // Fills `keys` with the next valid rows of the query's slots from `slot` on; returns the slot after them.
  int gather(int64_t query, int slot, CpuKeys& keys) const {
    const int32_t* indices = params.indices + query * params.indices_stride_s;
    const int slots = params.topk_length == nullptr ? params.topk : std::min(params.topk_length[query], params.topk);
    keys.count = 0;
    keys.visible = nullptr;
    for (; slot < slots && keys.count < kCpuBlockKeys; ++slot) {
      const int64_t index = indices[slot];
      if (index < 0 || index >= params.s_kv) continue;
      keys.k[keys.count] = keys.v[keys.count] = element(params.kv, index * params.kv_stride_s, dtype);
      ++keys.count;
    }
    return slot;
  }

  // Hints for the work that follows a tile's last block: the next tile's queries and its first block.
  void look_ahead(int64_t tile, CpuKeys& keys, CpuAhead& ahead) const {
    const Place at = place(tile);
    gather(at.query, 0, keys);
    for (int row = 0; row < at.count; ++row) ahead.row[ahead.count++] = query_row(at, row);
    for (int key = 0; key < keys.count; ++key) ahead.row[ahead.count++] = keys.k[key];
  }

  void operator()(int64_t tile_index, int64_t upcoming, CpuScratch& scratch) const {
    const Place at = place(tile_index);
    CpuTile tile;
    tile.rows = at.count;
    tile.d_qk = params.d_qk;
    tile.d_v = params.d_v;
    tile.scale = params.sm_scale;
    for (int row = 0; row < at.count; ++row) tile.q[row] = query_row(at, row);

    engine.begin(tile, scratch);
    CpuKeys blocks[2];
    CpuKeys *keys = &blocks[0], *following = &blocks[1];
    for (int slot = gather(at.query, 0, *keys); keys->count > 0; std::swap(keys, following)) {
      slot = gather(at.query, slot, *following);
      CpuAhead ahead;
      ahead.count = 0;
      if (following->count > 0) {
        ahead.count = following->count;
        std::copy_n(following->k, following->count, ahead.row);
      } else if (upcoming >= 0) {
        look_ahead(upcoming, *following, ahead);
        following->count = 0;
      }
      engine.block(tile, *keys, ahead, scratch);
    }
    finish(at, tile, scratch);
  }

  void finish(const Place& at, const CpuTile& tile, const CpuScratch& scratch) const {
    float factor[kCpuTileRows];
    void* out[kCpuTileRows];
    for (int row = 0; row < at.count; ++row) {
      const int64_t head = at.first_head + row, result_at = at.query * params.h_q + head;
      const float sink = params.attn_sink == nullptr ? -std::numeric_limits<float>::infinity() : params.attn_sink[head];
      const RowResult result = finish_row(scratch, row, sink);
      factor[row] = result.factor;
      params.max_logits[result_at] = result.max_logit;
      params.lse[result_at] = result.lse;
      out[row] = element(params.out, at.query * params.out_stride_s + head * params.out_stride_h, dtype);
    }
    engine.store(tile, factor, out, scratch);
  }
};

}  // namespace

void sparse_fwd_cpu(const SparseFwdParams& params, CpuDtype dtype) {
  const Sparse sparse{params, dtype, cpu_engine(dtype), RowTiles(params.h_q)};
  for_each_tile(params.s_q * sparse.heads.count, sparse);
}

}  // namespace flash_dsa
