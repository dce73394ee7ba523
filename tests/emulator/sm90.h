// In place of the instructions that kernels/sm90.cuh wraps.
#pragma once

#include "sm80.h"

namespace flash_dsa::sm90 {

// ---- mbarriers. Warps are converged where they ask one: there is one answer for all lanes.

inline emulator::Barrier& barrier_of_block(uint32_t barrier) {
  auto& block = *emulator::current().block;
  if (static_cast<int>(barrier >> 24) != block.rank) emulator::fail("mbarrier: an address of another block");
  return emulator::barrier_at(block, barrier);
}

inline std::string name_of_wait(uint32_t barrier, uint32_t parity) {
  return "mbarrier at offset " + std::to_string(barrier % emulator::kWindow - emulator::kBase) + ", parity " +
         std::to_string(parity);
}

inline void barrier_init(uint32_t barrier, int arrivals) {
  barrier_of_block(barrier) = {.arrivals = arrivals, .left = arrivals};
}
inline void barrier_init_fence() {}

inline void barrier_arrive(uint32_t barrier) {
  emulator::pause();
  emulator::arrive(barrier_of_block(barrier));
}

inline void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  emulator::pause();
  emulator::arrive(emulator::barrier_at(*emulator::current().block->cluster->blocks.at(rank), barrier));
}

inline void barrier_expect(uint32_t barrier, int bytes) {
  barrier_of_block(barrier).bytes += bytes;
  emulator::arrive(barrier_of_block(barrier));
}

struct Asked {
  uint32_t barrier, parity;
  bool ended;
};
inline void check_same(void** lanes) {
  const auto& first = *static_cast<Asked*>(lanes[0]);
  for (int lane = 1; lane < 32; ++lane) {
    const auto& other = *static_cast<Asked*>(lanes[lane]);
    if (other.barrier != first.barrier || other.parity != first.parity)
      emulator::fail("mbarrier: lanes ask two things");
  }
}

inline bool barrier_test(uint32_t barrier, uint32_t parity) {
  emulator::Barrier& asked = barrier_of_block(barrier);
  return emulator::in_warp("mbarrier.test_wait", Asked{barrier, parity, false},
                           [&](emulator::Warp&, Asked** lanes) {
                             check_same(reinterpret_cast<void**>(lanes));
                             for (int lane = 0; lane < 32; ++lane)
                               lanes[lane]->ended = emulator::has_ended(asked, parity);
                           })
      .ended;
}

// Comes back when it is so.
inline bool barrier_try(uint32_t barrier, uint32_t parity) {
  emulator::Barrier& asked = barrier_of_block(barrier);
  Asked mine{barrier, parity, true};
  const auto together = [&](emulator::Warp& warp, void** lanes) {
    check_same(lanes);
    if (emulator::has_ended(asked, parity)) return true;
    asked.waiting.insert(asked.waiting.end(), warp.waiting.begin(), warp.waiting.end());
    asked.waiting.push_back(&emulator::current());
    warp.waiting.clear();
    return false;
  };
  emulator::meet_in_warp("mbarrier.try_wait", &mine, together, name_of_wait(barrier, parity));
  return true;
}

// ---- Other barriers, proxies, registers.

inline void cluster_sync() {
  auto& cluster = *emulator::current().block->cluster;
  emulator::meet(cluster.all, cluster.threads, "barrier.cluster");
}

inline uint32_t cluster_rank() { return static_cast<uint32_t>(emulator::current().block->rank); }
inline void proxy_fence() { emulator::pause(); }
template <int kRegisters>
void grow_registers() {}
template <int kRegisters>
void shrink_registers() {}

// ---- Copies.

inline uint64_t keep_in_l2() { return 0; }
inline uint64_t leave_l2_soon() { return 0; }
inline void prefetch_map(const CUtensorMap&) {}

inline void copy_async(uint32_t destination, const void* source, int bytes, uint64_t) {
  if (destination % 16 != 0 || reinterpret_cast<uintptr_t>(source) % 16 != 0)
    emulator::fail("cp.async: not on 16 bytes");
  auto& thread = emulator::current();
  unsigned char* const to = emulator::at(*thread.block, destination);
  thread.copies.push_back([=] {
    if (bytes == 0) {
      std::memset(to, 0, 16);
    } else {
      std::memcpy(to, source, 16);
    }
  });
}

inline void barrier_arrive_after_copies(uint32_t barrier) {
  auto& thread = emulator::current();
  emulator::later(&thread, [copies = std::move(thread.copies), &barrier = barrier_of_block(barrier)] {
    for (const auto& copy : copies) copy();
    emulator::arrive(barrier);
  });
  thread.copies.clear();
}

inline void store_matrix_x4(uint32_t address, const uint32_t (&r)[4]) {
  sm80::move_matrices("stmatrix", {address, {r[0], r[1], r[2], r[3]}},
                      [](const uint32_t* r, unsigned char* memory) { std::memcpy(memory, r, 4); });
}

// The 128-byte swizzle, of an address.
inline uint32_t swizzled(uint32_t address) { return address ^ (address / 128 % 8 * 16); }

inline void copy_box_to_all(uint32_t destination, const CUtensorMap& map, int column, int row, int head,
                            uint32_t barrier, uint16_t blocks, uint64_t) {
  emulator::TensorMap tensor;
  std::memcpy(&tensor, &map, sizeof(tensor));
  if (tensor.data == nullptr) emulator::fail("TMA: a tensor map that was not made");
  if (destination % 1024 != 0) emulator::fail("TMA: a box not on 1024 bytes");
  const auto& all = emulator::current().block->cluster->blocks;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    emulator::later(nullptr, [=, block = all[rank]] {
      uint32_t to = destination;
      for (uint32_t z = 0; z < tensor.box[2]; ++z) {
        for (uint32_t y = 0; y < tensor.box[1]; ++y) {
          for (int x = 0; x < 64; ++x, to += 2) {
            const int64_t at[3] = {column + x, int64_t{row} + y, int64_t{head} + z};
            bool inside = true;
            for (int i = 0; i < 3; ++i) inside &= at[i] >= 0 && at[i] < static_cast<int64_t>(tensor.sizes[i]);
            uint16_t value = 0;
            if (inside) {
              const char* const from = static_cast<const char*>(tensor.data) + at[0] * 2;
              std::memcpy(&value, from + at[1] * tensor.strides[0] + at[2] * tensor.strides[1], 2);
            }
            std::memcpy(emulator::at(*block, swizzled(to)), &value, 2);
          }
        }
      }
      emulator::land(emulator::barrier_at(*block, barrier), int64_t{128} * tensor.box[1] * tensor.box[2]);
    });
  }
}

inline void copy_box(uint32_t destination, const CUtensorMap& map, int column, int row, int head, uint32_t barrier,
                     uint64_t policy) {
  copy_box_to_all(destination, map, column, row, head, barrier, static_cast<uint16_t>(1 << cluster_rank()), policy);
}

// ---- wgmma.

inline void wgmma_begin() { emulator::vote("wgmma.fence", false); }

inline void wgmma_commit() {
  emulator::in_warp("wgmma.commit_group", 0, [](emulator::Warp& warp, int**) { emulator::commit(warp); });
}

template <int kPending>
void wgmma_wait() {
  emulator::in_warp("wgmma.wait_group", 0,
                    [](emulator::Warp& warp, int**) { emulator::compute_until(warp, kPending); });
}

template <int kN>
void pin(float (&)[kN]) {}
template <int kSteps>
void pin(uint32_t (&)[kSteps][4]) {}

inline float from_bf16(uint32_t bits) {
  const uint32_t wide = bits << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

struct Operand {
  const unsigned char* memory;
  uint32_t start, leading, stride;

  Operand(const emulator::Block& block, uint64_t descriptor)
      : memory(block.memory),
        start(descriptor % (1 << 14) * 16),
        leading((descriptor >> 16) % (1 << 14) * 16),
        stride((descriptor >> 32) % (1 << 14) * 16) {
    if (descriptor >> 62 != 1) emulator::fail("wgmma: a descriptor without the 128-byte swizzle");
  }

  float at(uint32_t offset) const {
    uint16_t bits;
    std::memcpy(&bits, memory + swizzled(start + offset) % emulator::kWindow, 2);
    return from_bf16(bits);
  }
  float k_major(int row, int k) const { return at(row / 8 * stride + row % 8 * 128 + k * 2); }
  float mn_major(int n, int k) const { return at(n / 64 * leading + k / 8 * stride + k % 8 * 128 + n % 64 * 2); }
};

// What a lane brings to a wgmma: accumulators, and A in registers or none.
struct Multiplied {
  float* d;
  const uint32_t* a;
};

// A warp's 16 rows of d[64 x kN] = a[64 x 16] b[16 x kN].
template <int kN, bool kMnMajor>
void compute(const emulator::Warp& warp, const std::vector<Multiplied>& lanes, uint64_t a, uint64_t b,
             bool accumulate) {
  float left[16][16], right[16][kN], sum[16][kN] = {};
  if (lanes[0].a != nullptr) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const int r = i / 2;
        const float value = from_bf16(lanes[lane].a[r] >> i % 2 * 16 & 0xffff);
        left[lane / 4 + 8 * (r % 2)][2 * (lane % 4) + 8 * (r / 2) + i % 2] = value;
      }
    }
  } else {
    const Operand operand(*warp.block, a);
    for (int i = 0; i < 256; ++i) left[i / 16][i % 16] = operand.k_major(warp.number % 4 * 16 + i / 16, i % 16);
  }
  const Operand operand(*warp.block, b);
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < kN; ++n) right[k][n] = kMnMajor ? operand.mn_major(n, k) : operand.k_major(n, k);
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < kN; ++n) sum[row][n] += left[row][k] * right[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < kN / 2; ++i) {
      float& d = lanes[lane].d[i];
      d = (accumulate ? d : 0.0f) + sum[lane / 4 + 8 * (i / 2 % 2)][i / 4 * 8 + 2 * (lane % 4) + i % 2];
    }
  }
}

template <bool kMnMajor, int kCount>
void multiply(float (&d)[kCount], const uint32_t* registers, uint64_t a, uint64_t b, bool accumulate) {
  emulator::in_warp("wgmma", Multiplied{d, registers}, [&](emulator::Warp& warp, Multiplied** lanes) {
    std::vector<Multiplied> all;
    for (int lane = 0; lane < 32; ++lane) all.push_back(*lanes[lane]);
    emulator::issue(warp, [=, &warp] { compute<kCount * 2, kMnMajor>(warp, all, a, b, accumulate); });
  });
}

inline void multiply_64(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  multiply<false>(d, a, 0, b, accumulate != 0);
}
inline void multiply_64(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
  multiply<false>(d, nullptr, a, b, accumulate != 0);
}
inline void multiply_128(float (&d)[64], uint64_t a, uint64_t b) { multiply<true>(d, nullptr, a, b, true); }
template <int kCount>
void multiply_keys(float (&d)[kCount], uint64_t a, uint64_t b, int accumulate) {
  multiply<false>(d, nullptr, a, b, accumulate != 0);
}
inline void multiply_values(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  multiply<true>(d, a, 0, b, accumulate != 0);
}

}  // namespace flash_dsa::sm90
