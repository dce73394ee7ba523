// Launching a kernel and reporting what the CUDA runtime says about it; no torch here.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace flash_dsa {

inline void check_cuda(cudaError_t status, const char* doing) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(doing) + ": " + cudaGetErrorString(status));
}

// Of the current device.
inline int multiprocessors(const char* doing) {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), doing);
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), doing);
  return count;
}

template <class Params>
void launch(void (*kernel)(Params), const Params& params, dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
            const char* name) {
  // Before every launch: it holds for the current device alone, and costs less than a look-up of what has been set.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
  kernel<<<grid, threads, shared_bytes, stream>>>(params);
  check_cuda(cudaGetLastError(), name);
}

}  // namespace flash_dsa
