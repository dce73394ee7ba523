// The joint between the drivers of the cpu target and its engine: a tile of query rows meets a block of KV rows.
//
// A driver (sparse_fwd/cpu.cpp, dense_fwd/cpu.cpp) says which rows meet: begin(tile), block(keys) as often as there
// are keys, store(...). The engine (cpu_simd.cpp) computes scores, online softmax and output, and exists once per SIMD
// level. Code of different levels meets in this header only, so it holds plain data and function pointers: an inline
// function here could be emitted by the AVX-512 build and then be linked into, and crash, a machine without it.
#pragma once

#include <cstdint>

namespace flash_dsa {

// 64 rows are four 16-float vectors: with 6 keys they fill 24 of AVX-512's 32 registers with accumulators. They also
// set how far the packing of a KV block is amortised, and keep the float output of a tile (128 KiB) inside L2.
constexpr int kCpuTileRows = 64;
// A multiple of all the groups of keys in cpu_simd.h, and even. Longer blocks rescale the output less often; 96 rows of
// bfloat16 (108 KiB), their packed values (96 KiB), the packed queries (72 KiB) and the output are 404 KiB, which
// leaves room in an L2 of 1 MiB.
constexpr int kCpuBlockKeys = 96;
constexpr int kCpuMaxQkDim = 576;
constexpr int kCpuMaxVDim = 512;

// Query rows that see the same KV rows: heads of one query, or consecutive queries of one KV head.
struct CpuTile {
  int rows;                     // 1 to kCpuTileRows
  int d_qk, d_v;                // multiples of 64, at most kCpuMaxQkDim and kCpuMaxVDim
  float scale;                  // of the scores
  const void* q[kCpuTileRows];  // [rows] of [d_qk]
};

// KV rows that meet the tile in one step.
struct CpuKeys {
  int count;           // 1 to kCpuBlockKeys
  const int* visible;  // [rows]: a row sees the first visible[row] keys of the block, 0 to count; null: all of them
  const void* k[kCpuBlockKeys];  // [count] of [d_qk]
  const void* v[kCpuBlockKeys];  // [count] of [d_v]
};

// Rows of [d_qk] that are read soon: the engine asks for their cache lines while it multiplies. Hints only.
struct CpuAhead {
  int count;
  const void* row[kCpuTileRows + kCpuBlockKeys];
};

// Everything a thread needs beside its arguments. A word is 4 bytes: a float, or two neighbouring bfloat16 along the
// dimension that is summed over. Words are kept as bits, in uint32_t, whatever they hold.
struct alignas(64) CpuScratch {
  uint32_t q[kCpuMaxQkDim * kCpuTileRows];     // 144 KiB  [word of d_qk][row]: query words, transposed
  uint32_t k[kCpuBlockKeys * kCpuMaxQkDim];    // 216 KiB  [key][word of d_qk]: only where K must be widened
  uint32_t v[kCpuBlockKeys * kCpuMaxVDim];     // 192 KiB  [panel of columns][word of keys][column]
  float scores[kCpuBlockKeys * kCpuTileRows];  //  24 KiB  [key][row], then the weights as words in its place
  float out[kCpuTileRows * kCpuMaxVDim];       // 128 KiB  [row][d_v], unnormalised
  float row_max[kCpuTileRows];                 // largest scaled score so far, -inf before the first
  float row_sum[kCpuTileRows];                 // sum of exp(score - row_max)
  float rescale[kCpuTileRows];                 // exp(old row_max - new row_max) of the current block
  bool empty;                                  // no block yet: `out` is not initialised
};

struct CpuEngine {
  // Packs the queries and resets the softmax.
  void (*begin)(const CpuTile& tile, CpuScratch& scratch);
  // Adds one block of keys.
  void (*block)(const CpuTile& tile, const CpuKeys& keys, const CpuAhead& ahead, CpuScratch& scratch);
  // Writes factor[row] times the unnormalised output to out[row]; a factor of 0 writes 0 whatever it multiplies.
  void (*store)(const CpuTile& tile, const float* factor, void* const* out, const CpuScratch& scratch);
};

struct CpuLevel {
  const char* name;
  CpuEngine bf16, fp32;
};

// One per compilation of cpu_simd.cpp. Only generic exists on other machines than x86-64.
extern const CpuLevel cpu_level_generic, cpu_level_avx2, cpu_level_avx512, cpu_level_avx512_bf16;

}  // namespace flash_dsa
