// What the drivers of both ops share on the host's side of the engine: its choice, the threads, the end of a row.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu.h"
#include "cpu_engine.h"

namespace flash_dsa {

// The engine of the level in use; throws as cpu_level() does.
const CpuEngine& cpu_engine(CpuDtype dtype);

inline int64_t element_size(CpuDtype dtype) { return dtype == CpuDtype::kFloat32 ? 4 : 2; }

// Address of element `offset` of a tensor.
inline const void* element(const void* base, int64_t offset, CpuDtype dtype) {
  return static_cast<const char*>(base) + offset * element_size(dtype);
}
inline void* element(void* base, int64_t offset, CpuDtype dtype) {
  return static_cast<char*>(base) + offset * element_size(dtype);
}

// How `rows` are cut into tiles: as few as possible, of equal whole vectors, so that no tile is a sliver.
struct RowTiles {
  explicit RowTiles(int64_t rows);
  int64_t count;
  int height;
};

// Calls body(tile, upcoming, scratch) for each tile of 0 to tiles - 1 on torch's threads; upcoming is the tile that the
// same thread does next, or -1. Threads take runs of tiles, which shorten towards the end, since tiles differ in their
// number of keys. `body` must not throw.
void for_each_tile(int64_t tiles, const std::function<void(int64_t, int64_t, CpuScratch&)>& body);

// What becomes of a row after its last block. Natural logarithms.
struct RowResult {
  float factor;     // of the unnormalised output; 0 when the row saw nothing
  float max_logit;  // -inf when the row saw nothing
  float lse;        // +inf when the row saw nothing
};
// `sink` enters the factor as one more key without value; -inf is no sink.
RowResult finish_row(const CpuScratch& scratch, int row, float sink);

}  // namespace flash_dsa
