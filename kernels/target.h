// Which compiled target serves a device, and the limits that pick its tiles.
#pragma once

#include <string>

namespace flash_dsa {

enum class Target { kCpu, kSm80, kSm90a };

// The best target for CUDA device `index`; an op without a kernel for it falls back to sm80. FLASH_DSA_TEST_TARGET=sm80
// asks for that one, so that both are compared in one process. Throws "unsupported here: ..." naming the device and
// what was compiled.
Target cuda_target(int index);

// Shared memory one block may use, bytes, by GPU family. Tiles are planned for these.
constexpr int kSharedMemorySm86 = 99 * 1024;   // and SM89, SM120: the least of all that are served
constexpr int kSharedMemorySm80 = 163 * 1024;  // and SM87
constexpr int kSharedMemorySm90 = 227 * 1024;  // and SM100

// The same for CUDA device `index`, never below kSharedMemorySm86. FLASH_DSA_TEST_SMEM_KB lowers it, so that the tiles
// of smaller families are tested on a larger GPU. Throws where the variable, or the device, offers less than any tile
// needs.
int shared_memory_limit(int index);

// Whether the portable target was compiled for CUDA device `index`.
bool sm80_serves(int index);

// "cpu" or "cpu, sm80 (80 90 100 120), sm90a": what this library holds.
std::string compiled_targets();

}  // namespace flash_dsa
