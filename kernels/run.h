// How an op reaches its kernel: the device guard, the stream and the target, once for all ops.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "cpu.h"
#include "target.h"

struct CUstream_st;

// torch's headers declare it for CUDA builds only, and only a CUDA torch defines it: weak, so that the same library
// loads on a CPU torch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace flash_dsa {

inline CpuDtype cpu_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float ? CpuDtype::kFloat32 : CpuDtype::kBFloat16;
}

// Where a call runs: the device of `q` is current.
struct CudaCall {
  int index;
  CUstream_st* stream;
  Target target;  // the device's best: an op without a kernel for it takes sm80's, after require_sm80()
};

inline void require_sm80(const CudaCall& call, const char* op) {
  if (!sm80_serves(call.index)) {
    fail(kUnsupported, op, " on cuda:", call.index, " needs the sm80 target; compiled: ", compiled_targets());
  }
}

// Runs `on_cpu(dtype)` or `on_cuda(call)`.
template <class OnCpu, class OnCuda>
void run_on_target(const Tensor& q, OnCpu on_cpu, [[maybe_unused]] OnCuda on_cuda) {
  if (q.is_cpu()) {
    on_cpu(cpu_dtype(q));
    return;
  }
  const int32_t index = q.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(index);
  [[maybe_unused]] const Target target = cuda_target(index);
#if defined(FLASH_DSA_SM80_ARCHS) || defined(FLASH_DSA_SM90A)
  void* stream = nullptr;
  const bool found = aoti_torch_get_current_cuda_stream != nullptr &&
                     aoti_torch_get_current_cuda_stream(index, &stream) == AOTI_TORCH_SUCCESS;
  if (!found) fail("torch gave no current stream for cuda:", index);
  on_cuda(CudaCall{index, static_cast<CUstream_st*>(stream), target});
#endif
}

inline Tensor empty_on(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

}  // namespace flash_dsa
