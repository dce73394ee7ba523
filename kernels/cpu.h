// The cpu target as the rest of the library sees it: element types, and which SIMD level serves.
#pragma once

namespace flash_dsa {

// What the cpu target reads and writes.
enum class CpuDtype { kBFloat16, kFloat32 };

// The SIMD level in use: generic, avx2, avx512 or avx512_bf16. It is the highest this CPU and its operating system run,
// unless the environment variable FLASH_DSA_CPU_LEVEL names a lower one (for tests; read once per process).
// Throws std::runtime_error when that variable names no level, or one that cannot run here.
const char* cpu_level();

}  // namespace flash_dsa
