// In place of the instructions that kernels/sm80.cuh wraps and kernels of SM90 use.
#pragma once

#include "emulator.h"

namespace flash_dsa::sm80 {

inline uint32_t shared_address(const void* pointer) {
  const auto& block = *emulator::current().block;
  const auto offset = static_cast<const unsigned char*>(pointer) - block.memory;
  if (offset < 0 || offset >= emulator::kWindow) emulator::fail("shared_address(): not in shared memory");
  return static_cast<uint32_t>(offset) | static_cast<uint32_t>(block.rank) << 24;
}

inline void copy_async(uint32_t, const void*, int) { emulator::fail("copy_async() of sm80"); }

inline void named_barrier(int id, int threads) {
  emulator::meet(emulator::current().block->named[id], threads, "bar.sync");
}

// Four 8 x 8 matrices between registers and shared memory: lanes 8 i to 8 i + 7 say where the rows of matrix i are.
struct Matrices {
  uint32_t address;
  uint32_t r[4];
};
template <class Move>
Matrices move_matrices(const char* instruction, const Matrices& mine, const Move& move) {
  return emulator::in_warp(instruction, mine, [&](emulator::Warp& warp, Matrices** lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < 32; ++lane) {
        const uint32_t row = lanes[8 * matrix + lane / 4]->address;
        if (row % 16 != 0) emulator::fail(std::string(instruction) + ": a row not on 16 bytes");
        move(&lanes[lane]->r[matrix], emulator::at(*warp.block, row + lane % 4 * 4));
      }
    }
  });
}

inline void load_matrix_x4(uint32_t (&r)[4], uint32_t address) {
  const auto got = move_matrices("ldmatrix", {address, {}},
                                 [](uint32_t* r, const unsigned char* memory) { std::memcpy(r, memory, 4); });
  std::copy_n(got.r, 4, r);
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return std::fabs(y) < 0x1p-126f ? 0.0f : y;
}

}  // namespace flash_dsa::sm80
