// Thin wrappers of the instructions the portable target is made of, and the shared-memory swizzle all its tiles use.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "planted.h"

namespace flash_dsa::sm80 {

using bf16 = __nv_bfloat16;

constexpr int kWarp = 32;
constexpr int kChunk = 8;  // bf16 elements of one 16-byte access
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kInfinity = __builtin_huge_valf();

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile whose rows are `kRowBytes` long, a multiple of 128.
// XOR with the row makes eight rows of one column fall on eight different bank groups, which is what ldmatrix reads.
template <int kRowBytes>
__device__ inline uint32_t swizzled(int row, int chunk) {
  static_assert(kRowBytes % 128 == 0);
  return static_cast<uint32_t>(row * kRowBytes + ((chunk ^ (row & 7)) << 4));
}

// The same address `chunks` further along its row. The address must have been built from a chunk number that shares no
// bit with `chunks`; then the swizzle moves with it and only constants remain to be added in an unrolled loop.
__device__ inline uint32_t advanced(uint32_t address, int chunks) {
  return (address ^ static_cast<uint32_t>((chunks & 7) << 4)) + static_cast<uint32_t>((chunks & ~7) << 4);
}

// 16 bytes from global to shared memory; `bytes` = 0 writes zeros and reads nothing.
__device__ inline void copy_async(uint32_t destination, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(destination), "l"(source), "r"(bytes));
}

template <int kPending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ inline void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
  if constexpr (kPlantedStage) copy_async_wait<0>();
}

// Copies `kRows` rows of `kColumns` bf16 to a swizzled tile. `number_of(row)` is the number of the row at `base` to
// copy, or negative for a row of zeros, which reads nothing.
template <int kRows, int kColumns, int kThreads, class NumberOf>
__device__ inline void copy_rows(uint32_t tile, const bf16* base, int64_t stride, NumberOf number_of) {
  constexpr int kChunks = kColumns / kChunk, kPasses = kRows * kChunks / kThreads;
  static_assert(kRows * kChunks % kThreads == 0);
  const auto copy = [&](int number, int chunk, uint32_t destination) {
    copy_async(destination, base + max(number, 0) * stride + chunk * kChunk, number >= 0 ? 16 : 0);
  };
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kThreads % kChunks == 0 && (kPasses & (kPasses - 1)) == 0) {
    // A thread copies one chunk of kPasses rows in a row. Their addresses differ by constants, where the compiler would
    // otherwise keep each in a register, and their numbers are fetched together, before the first is waited for.
    const int first_row = thread / kChunks * kPasses, chunk = thread % kChunks;
    const uint32_t first = tile + swizzled<kColumns * 2>(first_row, chunk);
    int numbers[kPasses];
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) numbers[pass] = number_of(first_row + pass);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      copy(numbers[pass], chunk, (first ^ static_cast<uint32_t>((pass & 7) << 4)) + pass * kColumns * 2);
    }
  } else {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int i = pass * kThreads + thread;
      const int row = i / kChunks, chunk = i % kChunks;
      copy(number_of(row), chunk, tile + swizzled<kColumns * 2>(row, chunk));
    }
  }
}

// Stores `rows` rows of `kColumns` bf16 from a swizzled tile, 16 bytes at a time.
template <int kColumns, int kThreads>
__device__ inline void store_rows(bf16* base, int64_t stride, int rows, const unsigned char* tile) {
  constexpr int kChunks = kColumns / kChunk;
  for (int i = threadIdx.x; i < rows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    *reinterpret_cast<uint4*>(base + row * stride + chunk * kChunk) =
        *reinterpret_cast<const uint4*>(tile + swizzled<kColumns * 2>(row, chunk));
  }
}

// Barrier `id` (1..15) among `threads` threads, whole warps.
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void load_matrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// The same, as the operands of two n8 tiles.
__device__ inline void load_matrix_x4(uint32_t (&low)[2], uint32_t (&high)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(low[0]), "=r"(low[1]), "=r"(high[0]), "=r"(high[1])
               : "r"(address));
}

__device__ inline void load_matrix_x2(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(address));
}

__device__ inline void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// d[16x8] += a[16x16] * b[16x8], bf16 in, fp32 out. Lane l holds rows l/4 and l/4 + 8, columns 2*(l%4) and the next.
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// Online softmax, in base 2: scores are shifted by the new maximum, and what was summed before shrinks by `factor`.
struct Rescale {
  float shift, factor;
};

__device__ inline Rescale rescale_to(float old_max, float new_max, float scale_log2) {
  // A row that has seen nothing keeps -inf; 0 in its place lets exp2(-inf) give the zeros it should.
  const float shift = new_max == -kInfinity ? 0.0f : __fmul_rn(new_max, scale_log2);
  // Product and difference stay apart: fused, an unchanged maximum would give 2^(rounding of the product) instead of 1,
  // block after block.
  return {shift, exp2_approx(__fsub_rn(__fmul_rn(old_max, scale_log2), shift))};
}

// What a row ends with. Nothing seen: out 0, max_logit -inf, lse +inf. NaN among the scores makes all three NaN, though
// the running maximum has lost it.
struct RowResult {
  float factor, max_logit, lse;
};

// A factor of 0 gives 0 even where NaN in V that the row does not see has reached its sum.
__device__ inline float scaled(float value, float factor) { return factor == 0.0f ? 0.0f : value * factor; }

__device__ inline RowResult finish_row(float maximum, float sum, float scale) {
  if (sum == 0.0f) return {0.0f, -kInfinity, kInfinity};
  const float max_logit = isnan(sum) && maximum != kInfinity ? sum : maximum * scale;
  return {1.0f / sum, max_logit, max_logit == kInfinity ? kInfinity : max_logit + logf(sum)};
}

__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Over the four lanes that share an mma row.
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

}  // namespace flash_dsa::sm80
