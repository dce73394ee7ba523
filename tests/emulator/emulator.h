// Runs kernels of SM90 on a CPU, a fiber for a thread, from the kernels' own sources: functions stand in for the
// instructions (sm80.h, sm90.h), and for what the kernels ask of CUDA (here).
//
// Threads run in random order between the points where they meet. What is asynchronous is late, and how late is random:
// copies land when the scheduler picks them, wgmmas of a warp are computed between their issue and the wait for them. A
// slot that is overwritten too early, an accumulator that is touched too early or a barrier that counts wrongly thus
// shows in results, as a failure or as a deadlock, which says who waits for what.
//
// Not modelled: fences between proxies and the order of memory; lanes of a warp that come apart at a barrier; time,
// registers and everything else that only makes a kernel slow.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#undef __grid_constant__
#define __grid_constant__
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace emulator {

struct Block;
struct Cluster;
struct Warp;

struct Thread {
  Block* block;
  Warp* warp;
  int lane;
  uint3 index;
  std::string waits;                          // for what, where it does
  std::vector<std::function<void()>> copies;  // cp.async since the last arrival
};

// An mbarrier.
struct Barrier {
  int arrivals = 0, left = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  std::vector<Thread*> waiting;
};

// bar.sync, and barriers of all threads.
struct Meeting {
  int arrived = 0;
  std::vector<Thread*> waiting;
};

struct Warp {
  Block* block;
  int number;
  // Where lanes are meeting: the instruction, and what each has brought.
  const char* instruction = nullptr;
  int arrived = 0;
  void* brought[32];
  std::vector<Thread*> waiting;
  // wgmmas that have not been computed: of groups that are committed, and of the one that is not.
  std::deque<std::deque<std::function<void()>>> groups;
  std::deque<std::function<void()>> open;
};

constexpr uint32_t kWindow = 1 << 18;  // of addresses in shared memory; the block's number in its cluster is above 2^24
constexpr uint32_t kBase = 1024;       // where a kernel's begins

struct Block {
  uint3 index;
  int rank, threads;
  Cluster* cluster;
  unsigned char* memory;  // the window
  std::vector<Barrier> barriers = std::vector<Barrier>(kWindow / 8);
  Meeting named[16], all;
};

struct Cluster {
  std::vector<Block*> blocks;
  int threads = 0;
  Meeting all;
};

// Runs a grid. Throws what fail() says, and what has come to a standstill.
void run(unsigned blocks, int threads, int shared_bytes, unsigned cluster, const std::function<void()>& kernel);
void seed(uint64_t seed, int multiprocessors);

Thread& current();
unsigned char* shared_memory();
[[noreturn]] void fail(const std::string& what);
bool by_chance(double probability);
void pause();  // the thread goes on later, perhaps
void wait(const std::string& what);
void wake(std::vector<Thread*>& waiting);
void meet(Meeting& meeting, int threads, const char* what);
// At a random time; operations of one owner, if there is one, in their order.
void later(const Thread* owner, std::function<void()> operation);

Barrier& barrier_at(Block& block, uint32_t address);
void arrive(Barrier& barrier);
void land(Barrier& barrier, int64_t bytes);
bool has_ended(const Barrier& barrier, uint32_t parity);

void issue(Warp& warp, std::function<void()> wgmma);
void commit(Warp& warp);
void compute_until(Warp& warp, size_t pending_groups);

// The lanes of a warp meet in an instruction. The last one calls `together` with what each has brought; where it says
// no, it has seen to it that all are woken.
void meet_in_warp(const char* instruction, void* brought, const std::function<bool(Warp&, void**)>& together,
                  const std::string& what);

// The same where they go on at once: what the lane has brought as `together(warp, lanes)` has left it.
template <class T, class Together>
T in_warp(const char* instruction, T brought, const Together& together) {
  meet_in_warp(
      instruction, &brought,
      [&](Warp& warp, void** lanes) {
        together(warp, reinterpret_cast<T**>(lanes));
        return true;
      },
      instruction);
  return brought;
}

inline unsigned char* at(Block& block, uint32_t address) { return block.memory + address % kWindow; }

struct Vote {
  bool mine;
  uint32_t all;
};
inline uint32_t vote(const char* instruction, bool mine) {
  return in_warp(instruction, Vote{mine, 0},
                 [](Warp&, Vote** lanes) {
                   uint32_t all = 0;
                   for (int lane = 0; lane < 32; ++lane) all |= static_cast<uint32_t>(lanes[lane]->mine) << lane;
                   for (int lane = 0; lane < 32; ++lane) lanes[lane]->all = all;
                 })
      .all;
}

template <class T>
struct Shuffled {
  T mine;
  int from;
  T got;
};
template <class T>
T shuffle(T mine, int from) {
  return in_warp("shfl", Shuffled<T>{mine, from, mine},
                 [](Warp&, Shuffled<T>** lanes) {
                   for (int lane = 0; lane < 32; ++lane) lanes[lane]->got = lanes[lanes[lane]->from]->mine;
                 })
      .got;
}

// What a CUtensorMap holds here.
struct TensorMap {
  const void* data;
  uint64_t sizes[3], strides[2];
  uint32_t box[3];
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

}  // namespace emulator

// ---- What CUDA gives to a kernel.

extern uint3 threadIdx, blockIdx;  // of the thread that runs
extern dim3 gridDim;

using std::isnan;

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return std::min<T>(a, b);
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return std::max<T>(a, b);
}

inline float __fmul_rn(float a, float b) { return a * b; }  // nothing is fused: -ffp-contract=off
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdividef(float a, float b) { return std::isfinite(b) && std::fabs(b) > 0x1p126f ? a * 0.0f : a / b; }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at += value;
  return before;
}
template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T value) {
  *at = value;
}
[[noreturn]] inline void __trap() { emulator::fail("__trap()"); }

inline bool __any_sync(uint32_t, bool mine) { return emulator::vote("vote", mine) != 0; }
inline bool __all_sync(uint32_t, bool mine) { return emulator::vote("vote", mine) == ~0u; }
inline uint32_t __ballot_sync(uint32_t, bool mine) { return emulator::vote("vote", mine); }
inline void __syncwarp() { emulator::vote("syncwarp", false); }
template <class T>
T __shfl_sync(uint32_t, T mine, int from) {
  return emulator::shuffle(mine, from);
}
template <class T>
T __shfl_xor_sync(uint32_t, T mine, int distance) {
  return emulator::shuffle(mine, emulator::current().lane ^ distance);
}
template <class T>
T __shfl_up_sync(uint32_t, T mine, int distance) {
  const int lane = emulator::current().lane;
  return emulator::shuffle(mine, lane < distance ? lane : lane - distance);
}
inline uint32_t __reduce_add_sync(uint32_t, uint32_t mine) {
  for (int distance = 1; distance < 32; distance *= 2) mine += __shfl_xor_sync(~0u, mine, distance);
  return mine;
}
inline void __syncthreads() {
  auto& block = *emulator::current().block;
  emulator::meet(block.all, block.threads, "__syncthreads()");
}
