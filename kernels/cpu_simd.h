// What differs between the SIMD levels of cpu_simd.cpp: vector width, register blocking, multiply-add. All else is
// written once with the compilers' vector extensions (GCC and Clang), which serve any width.
// FLASH_DSA_CPU_LEVEL names the level; the compiler flags that go with it are in setup.py.
#pragma once

#include <cstdint>

#define FLASH_DSA_LEVEL_generic 0
#define FLASH_DSA_LEVEL_avx2 1
#define FLASH_DSA_LEVEL_avx512 2
#define FLASH_DSA_LEVEL_avx512_bf16 3
#define FLASH_DSA_PASTE_(a, b) a##b
#define FLASH_DSA_PASTE(a, b) FLASH_DSA_PASTE_(a, b)
#define FLASH_DSA_LEVEL FLASH_DSA_PASTE(FLASH_DSA_LEVEL_, FLASH_DSA_CPU_LEVEL)

#if FLASH_DSA_LEVEL > 0
#include <immintrin.h>
#endif

#define FLASH_DSA_INLINE inline __attribute__((always_inline))

// Internal linkage throughout: no name here may be shared between levels.
namespace flash_dsa {
namespace {

// Accumulators of a micro-kernel are rows x columns of vectors held in registers. kRowVectors vectors of query rows by
// kScoreKeys keys serve the scores; kOutRows rows by kOutVectors vectors of columns serve the output.
#if FLASH_DSA_LEVEL >= 2  // 32 registers of 16 floats: 24 accumulators, 4 operands, 1 broadcast
constexpr int kLanes = 16, kRowVectors = 4, kScoreKeys = 6, kNarrowScoreKeys = 8, kOutRows = 6, kOutVectors = 4;
#elif FLASH_DSA_LEVEL == 1  // 16 registers of 8 floats: 12 accumulators, 2 operands, 1 broadcast
constexpr int kLanes = 8, kRowVectors = 2, kScoreKeys = 6, kNarrowScoreKeys = 8, kOutRows = 6, kOutVectors = 2;
#else  // SSE2 or NEON, 4 floats; SSE2 multiplies into a register of its own: 8 accumulators of its 16
constexpr int kLanes = 4, kRowVectors = 2, kScoreKeys = 4, kNarrowScoreKeys = 4, kOutRows = 4, kOutVectors = 2;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));

typedef uint32_t Quad __attribute__((vector_size(16)));

// Four lanes by number; those of `b` are 4 to 7. GCC has clang's builtin from 12 on.
template <int i, int j, int k, int l>
FLASH_DSA_INLINE Quad shuffled(Quad a, Quad b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, i, j, k, l);
#else
  return __builtin_shuffle(a, b, Quad{i, j, k, l});
#endif
}

template <class V>
FLASH_DSA_INLINE V load(const void* source) {
  V value;
  __builtin_memcpy(&value, source, sizeof(V));
  return value;
}

template <class V>
FLASH_DSA_INLINE void store(void* target, V value) {
  __builtin_memcpy(target, &value, sizeof(V));
}

FLASH_DSA_INLINE Vec splat(float value) { return value - Vec{}; }
FLASH_DSA_INLINE UVec splat_word(const uint32_t* word) { return load<uint32_t>(word) + UVec{}; }
FLASH_DSA_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

FLASH_DSA_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if FLASH_DSA_LEVEL >= 2
  return _mm512_fmadd_ps(a, b, c);
#elif FLASH_DSA_LEVEL == 1
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// bfloat16 bits in the low halves of words.
FLASH_DSA_INLINE UVec load_bf16(const void* source) { return __builtin_convertvector(load<HalfVec>(source), UVec); }

// Round to nearest even, as bits in the upper halves; the lower halves are rubbish. Overflows to infinity as it should,
// and a NaN stays one: payloads come from bfloat16 or finish_row (cpu.cpp), so their lower halves are 0.
FLASH_DSA_INLINE UVec round_bf16(Vec value) {
  const UVec bits = (UVec)value;
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

// e^x for x <= 0 with a relative error below 2e-7; 0 below the smallest normal number. e^x = 2^n e^r, |r| <= ln(2)/2,
// where e^r is a minimax polynomial of degree 6 (fitted for this file; its own relative error is 2e-9).
FLASH_DSA_INLINE Vec exp_nonpositive(Vec x) {
  const Vec shifter = splat(0x1.8p23f);  // added and subtracted, it rounds to an integer
  const Vec shifted = multiply_add(x, splat(0x1.715476p0f), shifter);
  const Vec n = shifted - shifter;
  // ln(2) in two parts; the first has trailing zeros, so n times it is exact.
  const Vec r = multiply_add(n, splat(-1.42860682e-6f), multiply_add(n, splat(-0x1.62e4p-1f), x));
  Vec p = splat(0x1.6ab96ep-10f);
  p = multiply_add(p, r, splat(0x1.126d1ep-7f));
  p = multiply_add(p, r, splat(0x1.55589ap-5f));
  p = multiply_add(p, r, splat(0x1.55540ap-3f));
  p = multiply_add(p, r, splat(0x1.fffffap-2f));
  p = multiply_add(p, r, splat(1.0f));
  p = multiply_add(p, r, splat(1.0f));
  const Vec power = (Vec)(((UVec)shifted << 23) + 0x3f800000u);  // the low bits of `shifted` are n
  return x < -87.3f ? Vec{} : p * power;                         // false for NaN, which stays
}

// How words of two operands are multiplied and summed. F32: a word is a float.
struct DotF32 {
  static constexpr int kPerWord = 1;
  static FLASH_DSA_INLINE Vec add(Vec sum, UVec a, UVec b) { return multiply_add((Vec)a, (Vec)b, sum); }
};

#if FLASH_DSA_LEVEL == 3
// A word is a pair of bfloat16; products and sums are fp32 (subnormal ones flush to 0).
struct DotBf16 {
  static constexpr int kPerWord = 2;
  static FLASH_DSA_INLINE Vec add(Vec sum, UVec a, UVec b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
};
#else
using DotBf16 = DotF32;  // bfloat16 is widened when it is packed
#endif

template <int I>
struct Index {
  static constexpr int value = I;
};

// Calls body(Index<0>{}) to body(Index<Count - 1>{}): unrolled by the language, so accumulators stay in registers
// whatever the optimiser thinks of the loop.
template <int Count, int I = 0, class Body>
FLASH_DSA_INLINE void unroll(Body&& body) {
  if constexpr (I < Count) {
    body(Index<I>{});
    unroll<Count, I + 1>(body);
  }
}

}  // namespace
}  // namespace flash_dsa
