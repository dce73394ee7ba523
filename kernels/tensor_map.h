// Tensor maps, from which TMA copies. The driver makes them; its function is asked for at run time, so that the library
// is not linked with the driver's.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "launch.h"

namespace flash_dsa {

// A bf16 tensor [rows, heads, columns] as TMA sees it; strides in elements, columns contiguous.
struct MappedTensor {
  const void* data;
  int64_t rows, heads;
  int columns;
  int64_t row_stride, head_stride;
};

// Strides are multiples of 16 bytes (op.cpp) and have to be below 2^40. A stride of a dimension of one is of no use and
// may be anything; rows or heads that overlap are not for TMA.
inline bool can_be_mapped(const MappedTensor& tensor) {
  const auto fits = [&](int64_t size, int64_t stride) {
    return size <= 1 || (stride >= tensor.columns && stride < int64_t{1} << 39);
  };
  return fits(tensor.rows, tensor.row_stride) && fits(tensor.heads, tensor.head_stride);
}

// Boxes of `box_rows` rows of `box_heads` heads x 64 columns, with the 128-byte swizzle. The rows of a head follow each
// other in the box where box_heads is 1; otherwise the heads of a row do, and coordinates are (column, head, row).
inline CUtensorMap tensor_map(const MappedTensor& tensor, int box_rows, int box_heads, const char* name) {
  static const auto encode = [name] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
               name);
#else
    check_cuda(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result), name);
#endif
    if (found == nullptr || result != cudaDriverEntryPointSuccess) {
      throw std::runtime_error(std::string(name) +
                               ": the driver has no cuTensorMapEncodeTiled, CUDA 12.0 or newer has");
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  const auto dimension = [](int64_t size) { return static_cast<cuuint64_t>(size > 1 ? size : 1); };
  const auto bytes = [&](int64_t size, int64_t stride) {
    return static_cast<cuuint64_t>(size > 1 ? stride : tensor.columns) * 2;
  };
  const cuuint64_t rows = dimension(tensor.rows), heads = dimension(tensor.heads);
  const cuuint64_t row_bytes = bytes(tensor.rows, tensor.row_stride),
                   head_bytes = bytes(tensor.heads, tensor.head_stride);
  const bool by_head = box_heads > 1;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(tensor.columns), by_head ? heads : rows, by_head ? rows : heads};
  const cuuint64_t strides[] = {by_head ? head_bytes : row_bytes, by_head ? row_bytes : head_bytes};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(by_head ? box_heads : box_rows),
                            static_cast<cuuint32_t>(by_head ? box_rows : 1)};
  const cuuint32_t steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(tensor.data), sizes,
                                 strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error(std::string(name) + ": cuTensorMapEncodeTiled says " +
                             std::to_string(static_cast<int>(status)) + " to a tensor of " + std::to_string(rows) +
                             " rows, " + std::to_string(heads) + " heads, " + std::to_string(tensor.columns) +
                             " columns, strides of " + std::to_string(row_bytes) + " and " +
                             std::to_string(head_bytes) + " bytes");
  }
  return map;
}

}  // namespace flash_dsa
