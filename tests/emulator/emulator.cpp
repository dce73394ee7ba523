// Fibers, their scheduler, barriers; what launchers ask of the CUDA runtime and the driver.
#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <stdexcept>

uint3 threadIdx, blockIdx;
dim3 gridDim;

namespace emulator {

namespace {

constexpr size_t kStack = 256 << 10;

struct Fiber : Thread {
  ucontext_t begin;
  jmp_buf context;  // once it has begun: unlike swapcontext, jumps make no system calls
  bool begun = false, ended = false;
};

// Of the run in progress.
jmp_buf scheduler;
Fiber* running;
std::vector<Fiber*> ready;
std::vector<std::function<void()>> unordered;
std::map<const Thread*, std::deque<std::function<void()>>> ordered;
std::vector<const Thread*> owners;  // of `ordered`, to pick one
std::string failure;
double lateness, pauses;  // how probable it is that a copy lands before a thread goes on, and that a thread pauses
const std::function<void()>* kernel_of_fibers;

std::mt19937_64 engine;
int multiprocessors = 1;

void leave() {
  if (_setjmp(running->context) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  (*kernel_of_fibers)();
  running->ended = true;
  leave();
}

size_t pick(size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(engine); }

template <class T>
T take(std::vector<T>& from, size_t at) {
  T taken = std::move(from[at]);
  from[at] = std::move(from.back());
  from.pop_back();
  return taken;
}

void run_operation() {
  const size_t at = pick(unordered.size() + owners.size());
  if (at < unordered.size()) {
    take(unordered, at)();
    return;
  }
  const size_t owner = at - unordered.size();
  auto& operations = ordered[owners[owner]];
  const auto operation = std::move(operations.front());
  operations.pop_front();
  if (operations.empty()) {
    ordered.erase(owners[owner]);
    take(owners, owner);
  }
  operation();
}

void go_on(Fiber* fiber) {
  running = fiber;
  threadIdx = fiber->index;
  blockIdx = fiber->block->index;
  if (_setjmp(scheduler) == 0) {
    if (fiber->begun) _longjmp(fiber->context, 1);
    fiber->begun = true;
    setcontext(&fiber->begin);
  }
  running = nullptr;
}

void end_phase(Barrier& barrier) {
  if (barrier.left != 0 || barrier.bytes != 0) return;
  barrier.left = barrier.arrivals;
  ++barrier.phase;
  wake(barrier.waiting);
}

void compute_one(std::deque<std::function<void()>>& wgmmas) {
  const auto wgmma = std::move(wgmmas.front());
  wgmmas.pop_front();
  wgmma();
}

void compute_oldest(Warp& warp) {
  while (!warp.groups.empty() && warp.groups.front().empty()) warp.groups.pop_front();
  if (!warp.groups.empty()) return compute_one(warp.groups.front());
  if (!warp.open.empty()) compute_one(warp.open);
}

// All threads of a grid, and the memory they need.
class Grid {
 public:
  Grid(unsigned blocks, unsigned threads, unsigned cluster)
      : stacks_(kStack * threads * blocks), memory_(size_t{kWindow} * blocks) {
    std::memset(memory_.bytes, 0xff, memory_.size);  // NaN
    for (unsigned number = 0; number < blocks; ++number) {
      if (number % cluster == 0) clusters_.emplace_back();
      add_block(number, threads, cluster);
    }
  }

  void run() {
    while (failure.empty()) {
      const bool operations = !unordered.empty() || !owners.empty();
      if (operations && (ready.empty() || by_chance(lateness))) {
        run_operation();
      } else if (!ready.empty()) {
        go_on(take(ready, pick(ready.size())));
      } else {
        break;
      }
    }
    if (failure.empty()) look_back();
  }

 private:
  struct Mapped {
    explicit Mapped(size_t wanted) : size(wanted) {
      void* const got = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (got == MAP_FAILED) throw std::runtime_error("mmap: no memory for the threads");
      bytes = static_cast<unsigned char*>(got);
    }
    ~Mapped() { munmap(bytes, size); }
    Mapped(const Mapped&) = delete;
    size_t size;
    unsigned char* bytes;
  };

  void add_block(unsigned number, unsigned threads, unsigned cluster) {
    Block& block = blocks_.emplace_back();
    block.index = {number, 0, 0};
    block.rank = static_cast<int>(number % cluster);
    block.threads = static_cast<int>(threads);
    block.cluster = &clusters_.back();
    block.cluster->blocks.push_back(&block);
    block.cluster->threads += block.threads;
    block.memory = memory_.bytes + size_t{kWindow} * number;
    for (unsigned thread = 0; thread < threads; ++thread) {
      if (thread % 32 == 0) {
        warps_.emplace_back();
        warps_.back().block = &block;
        warps_.back().number = static_cast<int>(thread / 32);
      }
      Fiber& fiber = fibers_.emplace_back();
      fiber.block = &block;
      fiber.warp = &warps_.back();
      fiber.lane = static_cast<int>(thread % 32);
      fiber.index = {thread, 0, 0};
      getcontext(&fiber.begin);
      fiber.begin.uc_stack.ss_sp = stacks_.bytes + kStack * (fibers_.size() - 1);
      fiber.begin.uc_stack.ss_size = kStack;
      fiber.begin.uc_link = nullptr;
      makecontext(&fiber.begin, fiber_main, 0);
      ready.push_back(&fiber);
    }
  }

  // Nothing can go on: because all is done?
  void look_back() const {
    std::map<std::string, int> waits;
    for (const Fiber& fiber : fibers_) {
      if (fiber.ended) continue;
      ++waits["block " + std::to_string(fiber.block->index.x) + " warp " + std::to_string(fiber.warp->number) + ": " +
              fiber.waits];
    }
    if (!waits.empty()) failure = "deadlock";
    for (const auto& [wait, lanes] : waits) failure += "\n  " + wait + " (" + std::to_string(lanes) + " lanes)";
    for (const Warp& warp : warps_) {
      if (failure.empty() && !(warp.groups.empty() && warp.open.empty())) failure = "the end, with wgmmas in flight";
    }
  }

  Mapped stacks_, memory_;
  std::deque<Cluster> clusters_;
  std::deque<Block> blocks_;
  std::deque<Warp> warps_;
  std::deque<Fiber> fibers_;
};

}  // namespace

void seed(uint64_t seed, int multiprocessors) {
  engine.seed(seed);
  emulator::multiprocessors = multiprocessors;
}

void run(unsigned blocks, int threads, int shared_bytes, unsigned cluster, const std::function<void()>& kernel) {
  if (shared_bytes > 227 * 1024) throw std::runtime_error("launch: more shared memory than an SM has");
  if (blocks % cluster != 0) throw std::runtime_error("launch: a grid that is no multiple of its clusters");
  running = nullptr;
  ready.clear();
  unordered.clear();
  ordered.clear();
  owners.clear();
  failure.clear();
  constexpr double kLateness[] = {0.02, 0.2, 0.8};
  lateness = kLateness[pick(3)];
  pauses = by_chance(0.5) ? 0.05 : 0.0;
  gridDim = dim3(blocks);
  kernel_of_fibers = &kernel;
  Grid(blocks, static_cast<unsigned>(threads), cluster).run();
  if (!failure.empty()) throw std::runtime_error(failure);
}

Thread& current() { return *running; }

unsigned char* shared_memory() { return running->block->memory + kBase; }

void fail(const std::string& what) {
  failure = what;
  if (running == nullptr) throw std::runtime_error(what);
  failure += " (block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(threadIdx.x) + ")";
  leave();
  std::abort();  // the scheduler does not come back to it
}

bool by_chance(double probability) { return std::uniform_real_distribution<>()(engine) < probability; }

void pause() {
  if (!by_chance(pauses)) return;
  ready.push_back(running);
  leave();
}

void wait(const std::string& what) {
  running->waits = what;
  leave();
}

void wake(std::vector<Thread*>& waiting) {
  for (Thread* thread : waiting) ready.push_back(static_cast<Fiber*>(thread));
  waiting.clear();
}

void meet(Meeting& meeting, int threads, const char* what) {
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    wake(meeting.waiting);
  } else {
    meeting.waiting.push_back(running);
    wait(what);
  }
}

void later(const Thread* owner, std::function<void()> operation) {
  if (owner == nullptr) {
    unordered.push_back(std::move(operation));
    return;
  }
  auto& operations = ordered[owner];
  if (operations.empty()) owners.push_back(owner);
  operations.push_back(std::move(operation));
}

void meet_in_warp(const char* instruction, void* brought, const std::function<bool(Warp&, void**)>& together,
                  const std::string& what) {
  Warp& warp = *running->warp;
  if (warp.arrived > 0 && std::strcmp(warp.instruction, instruction) != 0) {
    fail("lanes of a warp are at " + std::string(warp.instruction) + " and at " + instruction);
  }
  warp.instruction = instruction;
  warp.brought[running->lane] = brought;
  if (++warp.arrived < 32) {
    warp.waiting.push_back(running);
    return wait(what);
  }
  warp.arrived = 0;
  if (!together(warp, warp.brought)) return wait(what);
  wake(warp.waiting);
}

// ---- mbarriers.

Barrier& barrier_at(Block& block, uint32_t address) {
  if (address % 8 != 0) fail("mbarrier: an address not on 8 bytes");
  return block.barriers[address % kWindow / 8];
}

void arrive(Barrier& barrier) {
  if (barrier.left == 0) fail("mbarrier: an arrival more than a phase has, or none was made there");
  --barrier.left;
  end_phase(barrier);
}

void land(Barrier& barrier, int64_t bytes) {
  barrier.bytes -= bytes;
  end_phase(barrier);
}

bool has_ended(const Barrier& barrier, uint32_t parity) {
  if (barrier.arrivals == 0) fail("mbarrier: none was made there");
  return barrier.phase % 2 != parity;
}

// ---- wgmma.

void issue(Warp& warp, std::function<void()> wgmma) {
  warp.open.push_back(std::move(wgmma));
  while (by_chance(0.4)) compute_oldest(warp);
}

void commit(Warp& warp) {
  warp.groups.push_back(std::move(warp.open));
  warp.open.clear();
}

void compute_until(Warp& warp, size_t pending_groups) {
  while (warp.groups.size() > pending_groups) {
    if (warp.groups.front().empty()) {
      warp.groups.pop_front();
    } else {
      compute_one(warp.groups.front());
    }
  }
}

}  // namespace emulator

// ---- The CUDA runtime and the driver, as far as launchers ask them.

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMultiProcessorCount) return cudaErrorNotSupported;
  *value = emulator::multiprocessors;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "not emulated"; }

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
}

namespace {

// Refuses what the driver refuses.
CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  emulator::TensorMap tensor{};
  tensor.data = data;
  bool fits = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 && swizzle == CU_TENSOR_MAP_SWIZZLE_128B && rank == 3 &&
              box[0] == 64 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (int i = 0; i < 3; ++i) {
    fits &= sizes[i] >= 1 && sizes[i] <= 1ull << 32 && box[i] >= 1 && box[i] <= 256 && steps[i] == 1;
    tensor.sizes[i] = sizes[i];
    tensor.box[i] = box[i];
  }
  for (int i = 0; i < 2; ++i) {
    fits &= strides[i] % 16 == 0 && strides[i] < 1ull << 40;
    tensor.strides[i] = strides[i];
  }
  if (!fits) return CUDA_ERROR_INVALID_VALUE;
  *map = {};
  std::memcpy(map, &tensor, sizeof(tensor));
  return CUDA_SUCCESS;
}

cudaError_t entry_point(void** found, cudaDriverEntryPointQueryResult* result) {
  *found = reinterpret_cast<void*>(&encode);
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // namespace

extern "C" {

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  return entry_point(found, result);
}
#else
cudaError_t cudaGetDriverEntryPoint(const char*, void** found, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
  return entry_point(found, result);
}
#endif
}
