// Slowdowns that drills plant, to see that the judge finds them. Built only with FLASH_DSA_PLANT (setup.py): without it
// these types are empty and nothing of them is compiled.
#pragma once

#ifdef __CUDACC__
#define FLASH_DSA_DEVICE __device__ __forceinline__
#else
#include <chrono>
#endif

namespace flash_dsa {

#ifdef FLASH_DSA_PLANTED_DELAY_PPM

#ifdef __CUDACC__
// At the end of its scope a thread waits for a share of the SM cycles it spent there: a block takes that much longer.
class PlantedDelay {
 public:
  FLASH_DSA_DEVICE PlantedDelay() : begun_(clock64()) {}
  FLASH_DSA_DEVICE ~PlantedDelay() {
    const long long until = begun_ + (clock64() - begun_) * (1000000LL + FLASH_DSA_PLANTED_DELAY_PPM) / 1000000LL;
    while (clock64() < until) {
    }
  }

 private:
  long long begun_;
};
#else
// The same on a CPU, around all threads of a call.
class PlantedDelay {
 public:
  ~PlantedDelay() {
    const auto spent = std::chrono::steady_clock::now() - begun_;
    while (std::chrono::steady_clock::now() - begun_ < spent * (1000000LL + FLASH_DSA_PLANTED_DELAY_PPM) / 1000000LL) {
    }
  }

 private:
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
};
#endif

#else

class PlantedDelay {};

#endif

}  // namespace flash_dsa
