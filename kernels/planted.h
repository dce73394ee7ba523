// Slowdowns that drills plant, to see that the judge finds them. Built only with FLASH_DSA_PLANT (setup.py): without it
// nothing of them is compiled.
//   delay:SHARE  every block of threads waits for a share of its time; with a share of 0 it is the same code without
//                the wait, to compare with
//   stage        copies are waited for as soon as they are started: the pipeline has lost the stage that hides them
//   sync         one more barrier of all threads per block of keys; of a role's where roles take turns
//   spill        two registers of a thread go through local memory per block of keys
#pragma once

#ifdef __CUDACC__
#define FLASH_DSA_DEVICE __device__ __forceinline__
#else
#include <chrono>
#endif

namespace flash_dsa {

#ifdef FLASH_DSA_PLANTED_DELAY  // parts per million

#ifdef __CUDACC__
// At the end of its scope a thread waits for a share of the SM cycles it spent there: a block takes that much longer.
class PlantedDelay {
 public:
  FLASH_DSA_DEVICE PlantedDelay() : begun_(now()) {}
  FLASH_DSA_DEVICE ~PlantedDelay() {
    int share;  // hidden from the compiler, which would leave out a wait of 0
    asm volatile("mov.s32 %0, %1;" : "=r"(share) : "n"(FLASH_DSA_PLANTED_DELAY));
    const long long until = begun_ + (now() - begun_) * (1000000LL + share) / 1000000LL;
    while (now() < until) {
    }
  }

 private:
  static FLASH_DSA_DEVICE long long now() {
    long long cycles;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles));
    return cycles;
  }

  long long begun_;
};
#else
// The same on a CPU, around all threads of a call.
class PlantedDelay {
 public:
  ~PlantedDelay() {
    const auto spent = std::chrono::steady_clock::now() - begun_;
    while (std::chrono::steady_clock::now() - begun_ < spent * (1000000LL + FLASH_DSA_PLANTED_DELAY) / 1000000LL) {
    }
  }

 private:
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
};
#endif

#else

class PlantedDelay {};

#endif

#ifdef __CUDACC__

#ifdef FLASH_DSA_PLANTED_STAGE
constexpr bool kPlantedStage = true;
#else
constexpr bool kPlantedStage = false;
#endif

FLASH_DSA_DEVICE void planted_sync() {
#ifdef FLASH_DSA_PLANTED_SYNC
  __syncthreads();
#endif
}

// Among `threads` of named barrier `id`, which nothing else uses.
FLASH_DSA_DEVICE void planted_sync([[maybe_unused]] int id, [[maybe_unused]] int threads) {
#ifdef FLASH_DSA_PLANTED_SYNC
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#endif
}

template <class T>
FLASH_DSA_DEVICE T planted_spill(T value) {
#ifdef FLASH_DSA_PLANTED_SPILL
  volatile T spilled = value;
  return spilled;
#else
  return value;
#endif
}

#endif

}  // namespace flash_dsa
