// The host's side of the cpu target's engine: picks the SIMD level, hands out tiles to torch's threads, ends rows.
// This file and the drivers are compiled for the baseline CPU; only cpu_simd.cpp is not.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "cpu_driver.h"
#include "planted.h"

namespace flash_dsa {

namespace {

// Levels that run here, lowest first. The builtin asks the operating system too: wide registers must be saved by it.
std::vector<const CpuLevel*> runnable_levels() {
  std::vector<const CpuLevel*> levels = {&cpu_level_generic};
#ifdef __x86_64__
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return levels;
  levels.push_back(&cpu_level_avx2);
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return levels;
  levels.push_back(&cpu_level_avx512);
  if (__builtin_cpu_supports("avx512bf16")) levels.push_back(&cpu_level_avx512_bf16);
#endif
  return levels;
}

const CpuLevel& choose_level() {
  const std::vector<const CpuLevel*> levels = runnable_levels();
  const char* wanted = std::getenv("FLASH_DSA_CPU_LEVEL");
  if (wanted == nullptr || *wanted == '\0') return *levels.back();
  std::string names;
  for (const CpuLevel* level : levels) {
    if (std::string(wanted) == level->name) return *level;
    names += (names.empty() ? "" : ", ") + std::string(level->name);
  }
  fail("FLASH_DSA_CPU_LEVEL expected one of the levels this CPU runs (", names, "), got ", wanted);
}

const CpuLevel& level_in_use() {
  static const CpuLevel& level = choose_level();
  return level;
}

}  // namespace

const char* cpu_level() { return level_in_use().name; }

const CpuEngine& cpu_engine(CpuDtype dtype) {
  return dtype == CpuDtype::kFloat32 ? level_in_use().fp32 : level_in_use().bf16;
}

RowTiles::RowTiles(int64_t rows) {
  constexpr int64_t kVector = 16;  // the widest level's
  const int64_t fewest = (rows + kCpuTileRows - 1) / kCpuTileRows;
  const int64_t even = fewest == 0 ? kVector : (rows + fewest - 1) / fewest;
  height = static_cast<int>((even + kVector - 1) / kVector * kVector);
  count = (rows + height - 1) / height;
}

void for_each_tile(int64_t tiles, const std::function<void(int64_t, int64_t, CpuScratch&)>& body) {
  [[maybe_unused]] PlantedDelay delay;
  std::atomic<int64_t> next{0};
  std::atomic<bool> served{false};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tiles);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    // An exception would not cross the thread pool. A thread without memory leaves the work to the others.
    const std::unique_ptr<CpuScratch> scratch(new (std::nothrow) CpuScratch);
    if (scratch == nullptr) return;
    served = true;
    for (int64_t begin = next; begin < tiles; begin = next) {
      // An eighth of a thread's share of what is left: few enough to end together.
      const int64_t end = begin + std::max<int64_t>(1, (tiles - begin) / (8 * threads));
      if (!next.compare_exchange_weak(begin, end)) continue;
      for (int64_t tile = begin; tile < end; ++tile) body(tile, tile + 1 < end ? tile + 1 : -1, *scratch);
    }
  });
  if (tiles > 0 && !served) fail("out of memory: no thread got its ", sizeof(CpuScratch), " bytes of scratch");
}

RowResult finish_row(const CpuScratch& scratch, int row, float sink) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float sum = scratch.row_sum[row];
  float max_logit = scratch.row_max[row];
  if (sum == 0.0f) return {0.0f, -kInfinity, kInfinity};
  // A score of +inf, or NaN, made the sum NaN; the running maximum lost the NaN and kept the infinity.
  if (std::isnan(sum) && max_logit != kInfinity) max_logit = sum;
  const float lse = max_logit == kInfinity ? kInfinity : static_cast<float>(max_logit + std::log(double{sum}));
  const float factor = 1.0f / (sum * (1.0f + std::exp(sink - lse)));
  // A NaN in the sink may have any bits: rounding to bfloat16 would carry those of the lower half into 0 or -0, and the
  // sign would be another than a GPU's, whose NaNs are positive.
  return {std::isnan(factor) ? std::numeric_limits<float>::quiet_NaN() : factor, max_logit, lse};
}

}  // namespace flash_dsa
