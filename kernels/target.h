// Which compiled target serves a device, and the limits that pick its tiles.
#pragma once

#include <string>

namespace flash_dsa {

enum class Target { kCpu, kSm80 };

// The target for CUDA device `index`. Throws "unsupported here: ..." naming the device and what was compiled.
Target cuda_target(int index);

// Shared memory one block may use on CUDA device `index`, bytes. FLASH_DSA_TEST_SMEM_KB lowers it, so that the tiles
// of smaller GPU families are tested on a larger one.
int shared_memory_limit(int index);

// "cpu" or "cpu, sm80 (80 90 100 120)": what this library holds.
std::string compiled_targets();

}  // namespace flash_dsa
