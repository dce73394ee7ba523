// Thin wrappers of the instructions of SM90 that the portable target lacks: mbarriers, wgmma and its descriptors,
// setmaxnreg, proxy fences; and the one way in which phases of barriers are counted. No CuTe: a kernel here needs a
// dozen instructions.
//
// FLASH_DSA_BOUNDED_WAIT (a build for debugging) gives every wait for an mbarrier a limit. A wait that reaches it
// leaves a report in the host's memory, gives the other roles time to do the same, and traps; the launcher reads the
// reports and throws. Nothing is printed on the device: a call to printf would undo setmaxnreg and serialise wgmma.
#pragma once

#include <cuda.h>

#include "sm80.cuh"

namespace flash_dsa::sm90 {

using sm80::bf16;
using sm80::kWarp;

constexpr int kWarpgroup = 128;

__device__ inline uint32_t thread() { return threadIdx.x % kWarpgroup; }  // within its warpgroup
__device__ inline uint32_t lane() { return threadIdx.x % kWarp; }
// Of an accumulator: a lane has two rows of 64, this one and the eighth after it.
__device__ inline int accumulator_row() { return static_cast<int>(thread() / kWarp * 16 + lane() / 4); }

// An address in shared memory without what the compiler's has from bit 24 on: the number of the block in its cluster.
// Of use where addresses are compared or become part of something else; instructions want them as they are.
__device__ inline uint32_t in_window(uint32_t address) { return address & 0x3ffff; }

// a / b to two units in the last place, 0 where b is past 2^126. The exact quotient has a call in it, for which
// registers would have to be kept free.
__device__ inline float quotient(float a, float b) { return __fdividef(a, b); }

// ---- mbarriers. `barrier` is an address in shared memory.

__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes inits visible to the asynchronous arrivals of copies; a barrier of the block of threads has to follow.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

// Releases what this thread, and what it has synchronised with, has written.
__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}\n" ::"r"(barrier) : "memory");
}

// The same at the barrier in the same place of block `rank` of the cluster. For slots that have been read: with a
// release for the cluster, ptxas would put a membar of the whole GPU before it.
__device__ inline void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// All threads of the cluster.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}

// Arrives once all earlier copy_async of this thread have landed. It counts as one of the arrivals of barrier_init.
__device__ inline void barrier_arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
  if constexpr (kPlantedStage) {
    sm80::copy_async_commit();
    sm80::copy_async_wait<0>();
  }
}

// Whether the phase of this parity has ended. A fresh barrier is in phase 0: parity 0 is false, parity 1 true.
__device__ inline bool barrier_test(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done != 0;
}

// The same, but the hardware may suspend the thread for a while.
__device__ inline bool barrier_try(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done != 0;
}

#ifdef FLASH_DSA_BOUNDED_WAIT
struct WaitReport {
  uint32_t made;     // 1 where there is one
  uint32_t barrier;  // its offset in the kernel's shared memory
  uint32_t parity;
  int block, thread;
};
constexpr int kWaitReports = 64;
constexpr long long kWaitLimit = 1LL << 30;  // SM cycles, about 0.6 s
static __device__ WaitReport* wait_reports;  // kWaitReports of them, pinned memory of the host
static __device__ unsigned wait_reports_made;
static __device__ uint32_t wait_base;  // where the kernel's shared memory begins, in_window

__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  const long long begun = clock64();
  while (!barrier_try(barrier, parity)) {
    if (clock64() - begun < kWaitLimit) continue;
    const unsigned slot = threadIdx.x % kWarp == 0 ? atomicAdd(&wait_reports_made, 1u) : kWaitReports;
    if (slot < kWaitReports) {
      volatile WaitReport* report = wait_reports + slot;
      report->barrier = in_window(barrier) - wait_base;
      report->parity = parity;
      report->block = static_cast<int>(blockIdx.x);
      report->thread = static_cast<int>(threadIdx.x);
      report->made = 1;
    }
    __threadfence_system();
    while (clock64() - begun < kWaitLimit + kWaitLimit / 4) {
    }
    __trap();
  }
}
#else
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  while (!barrier_try(barrier, parity)) {
  }
}
#endif

// Where a role stands in a ring of kSlots slots: use number n of the ring is slot n % kSlots in round n / kSlots.
// Every role counts its own position with it. A slot has two barriers, `full` and `empty`, each ending one phase a
// round: a consumer waits for full with full_parity(), a producer for empty with empty_parity(), which is true at once
// in round 0.
template <int kSlots>
class Cursor {
 public:
  __device__ int slot() const {
    if constexpr (kPowerOfTwo) return use_ % kSlots;
    return use_ < kSlots ? use_ : use_ - kSlots;
  }
  __device__ uint32_t full_parity() const {
    if constexpr (kPowerOfTwo) return use_ / kSlots;
    return use_ < kSlots ? 0 : 1;
  }
  __device__ uint32_t empty_parity() const { return full_parity() ^ 1; }
  __device__ void advance(int by = 1) {
    use_ += by;
    if constexpr (kPowerOfTwo) {
      use_ %= 2 * kSlots;
    } else if (use_ >= 2 * kSlots) {
      use_ -= 2 * kSlots;
    }
  }
  __device__ Cursor after(int by) const {
    Cursor later = *this;
    later.advance(by);
    return later;
  }
  __device__ Cursor before(int by) const { return after(2 * kSlots - by); }

 private:
  static constexpr bool kPowerOfTwo = (kSlots & (kSlots - 1)) == 0;

  uint32_t use_ = 0;  // the number of the use, modulo two rounds: one register
};

// ---- Softmax. A row's exponentials are relative to its reference, which moves only when a score has outgrown it by
// kSlack powers of two: bf16 is as exact at 2^8 as at 1, and sums of 2^30 such terms stay finite.
constexpr float kSlack = 8.0f;

// ---- Proxies and registers.

// Orders this thread's view of shared memory: what ordinary instructions and cp.async wrote, before what wgmma reads.
__device__ inline void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

template <int kRegisters>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// ---- Copies that stay in L2 as long as they can.

__device__ inline uint64_t keep_in_l2() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

// For what is read once.
__device__ inline uint64_t leave_l2_soon() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

// 16 bytes from global to shared memory; `bytes` = 0 writes zeros and reads nothing.
__device__ inline void copy_async(uint32_t destination, const void* source, int bytes, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;\n" ::"r"(destination),
               "l"(source), "r"(bytes), "l"(policy));
}

// Four 8 x 8 matrices of 16-bit values from registers as mma has them: lane l of matrix i's eight, 8 i to 8 i + 7, says
// where a row goes.
__device__ inline void store_matrix_x4(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// ---- Copies by TMA. A tensor map (tensor_map.h) says where a tensor lies and how large a box is; what lies outside
// the tensor arrives as zeros, and counts as bytes all the same. One thread asks.

// Arrives, and holds the phase until `bytes` more have landed.
__device__ inline void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}\n" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}

__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

// The box that begins at `column` of row `row` of head `head`, to `destination` on 1024 bytes.
__device__ inline void copy_box(uint32_t destination, const CUtensorMap& map, int column, int row, int head,
                                uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%2, %3, %4}], [%5], %6;\n" ::"r"(destination),
      "l"(&map), "r"(column), "r"(row), "r"(head), "r"(barrier), "l"(policy)
      : "memory");
}

// The same to every block of the cluster whose bit is set in `blocks`: to the same place in its memory, and its barrier
// in the same place counts the bytes.
__device__ inline void copy_box_to_all(uint32_t destination, const CUtensorMap& map, int column, int row, int head,
                                       uint32_t barrier, uint16_t blocks, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6, %7;\n" ::"r"(destination),
      "l"(&map), "r"(column), "r"(row), "r"(head), "r"(barrier), "h"(blocks), "l"(policy)
      : "memory");
}

// ---- wgmma. Operands in shared memory are tiles of 64 rows x 64 bf16, rows of 128 bytes, eight-row groups of 1024
// bytes with the 128-byte swizzle (chunk of 16 bytes c of row r lies at chunk c ^ r % 8), on 1024 bytes.

constexpr int kTileBytes = 64 * 128;

// The address field of a descriptor.
__device__ inline uint64_t descriptor_address(uint32_t address) { return in_window(address) >> 4; }

// Operand whose k runs along the rows of a tile: A = Q or P, B = K. Eight-row groups are 1024 bytes apart (stride
// offset); the leading offset is not used. A step of k16 is 32 bytes.
__device__ inline uint64_t k_major(uint32_t address) {
  constexpr uint64_t kFixed = (1ull << 62) | (uint64_t{1024 >> 4} << 32) | (1ull << 16);
  return kFixed | descriptor_address(address);
}

// Operand whose k runs down the rows: B = V, columns contiguous. 64 columns further is the next tile (leading offset:
// the bytes of a tile, which may have more than 64 rows), eight rows further 1024 bytes (stride offset). A step of k16
// is 2048 bytes.
template <int kLeadingBytes = kTileBytes>
__device__ inline uint64_t mn_major(uint32_t address) {
  constexpr uint64_t kFixed = (1ull << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{kLeadingBytes >> 4} << 16);
  return kFixed | descriptor_address(address);
}

// The same operand `bytes` further on; the address field does not overflow within 227 KiB.
__device__ inline uint64_t further(uint64_t descriptor, int bytes) { return descriptor + (bytes >> 4); }

// Before the first wgmma that touches registers ordinary instructions have touched.
__device__ inline void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// Of four lanes that share a row: words[i] of lane l becomes words[l % 4] of lane l - l % 4 + i.
__device__ inline void exchange(uint32_t& low, uint32_t& high, int distance) {
  const bool upper = lane() & distance;
  const uint32_t got = __shfl_xor_sync(~0u, upper ? low : high, distance);
  (upper ? low : high) = got;
}

__device__ inline void transpose(uint32_t (&words)[4]) {
  exchange(words[0], words[1], 1);
  exchange(words[2], words[3], 1);
  exchange(words[0], words[2], 2);
  exchange(words[1], words[3], 2);
}

// Keeps the compiler from moving uses of accumulators over the instructions between begin and wait.
template <int kN>
__device__ inline void pin(float (&d)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The same for operands in registers.
template <int kSteps>
__device__ inline void pin(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[step][i])::"memory");
  }
}

// S: d[64x64] = a[64x16] b[16x64], added to d where `accumulate` is not 0; a in registers as for mma.sync (warp w of
// the warpgroup holds rows 16 w to 16 w + 15), b K-major in shared memory. `accumulate` is a constant once inlined.
// Lane l of warp w holds in d[4 j + 2 h + i] row 16 w + l / 4 + 8 h, column 8 j + 2 (l % 4) + i.
__device__ inline void multiply_64(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31}, {%32, %33, %34, %35}, %36, accumulate, 1, 1, 0;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

// The same with a K-major in shared memory.
__device__ inline void multiply_64(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31}, %32, %33, accumulate, 1, 1, 0, 0;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(accumulate));
}

// O: d[64x128] += a[64x16] b[16x128], a K-major, b MN-major (its 128 columns contiguous), both in shared memory.
__device__ inline void multiply_128(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
      "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, accumulate, 1, 1, 0, 1;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "l"(a), "l"(b), "r"(1));
}

// S: d[64x128] = a[64x16] b[16x128], both K-major in shared memory.
__device__ inline void multiply_keys(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
      "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, accumulate, 1, 1, 0, 0;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "l"(a), "l"(b), "r"(accumulate));
}

// S: d[64x176] = a[64x16] b[16x176], both K-major in shared memory.
__device__ inline void multiply_keys(float (&d)[88], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %90, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n176k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
      "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, "
      "%71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87}, %88, %89, "
      "accumulate, 1, 1, 0, 0;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]),
        "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]),
        "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]),
        "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
      : "l"(a), "l"(b), "r"(accumulate));
}

// O: d[64x128] += a[64x16] b[16x128], a in registers, b MN-major.
__device__ inline void multiply_values(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
      "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, "
      "accumulate, 1, 1, 1;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

}  // namespace flash_dsa::sm90
