#include "target.h"

#include <cstdlib>
#include <cstring>

#include "check.h"
#include "cpu.h"

#if defined(FLASH_DSA_SM80_ARCHS) || defined(FLASH_DSA_SM90A)
#define FLASH_DSA_CUDA
#include <cuda_runtime_api.h>
#endif

namespace flash_dsa {

std::string compiled_targets() {
  std::string targets = "cpu";
#ifdef FLASH_DSA_SM80_ARCHS
  targets += ", sm80 (" FLASH_DSA_SM80_ARCHS ")";
#endif
#ifdef FLASH_DSA_SM90A
  targets += ", sm90a";
#endif
  return targets;
}

#ifdef FLASH_DSA_CUDA

namespace {

int device_attribute(cudaDeviceAttr attribute, int index) {
  int value = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&value, attribute, index);
  if (status != cudaSuccess) fail("cannot query cuda:", index, ": ", cudaGetErrorString(status));
  return value;
}

// Machine code runs on later minor versions of its major; PTX, kept for 80 and 120, on everything later.
bool compiled_for([[maybe_unused]] int major, [[maybe_unused]] int minor) {
#ifdef FLASH_DSA_SM80_ARCHS
  std::istringstream archs(FLASH_DSA_SM80_ARCHS);
  for (int arch; archs >> arch;) {
    const bool has_ptx = arch == 80 || arch == 120;
    if (arch <= major * 10 + minor && (arch / 10 == major || has_ptx)) return true;
  }
#endif
  return false;
}

bool sm90a_serves([[maybe_unused]] int major, [[maybe_unused]] int minor) {
#ifdef FLASH_DSA_SM90A
  const char* asked = std::getenv("FLASH_DSA_TEST_TARGET");
  if (asked != nullptr && *asked != '\0' && std::strcmp(asked, "sm80") != 0) {
    fail("FLASH_DSA_TEST_TARGET expected sm80, got '", asked, "'");
  }
  return major == 9 && minor == 0 && (asked == nullptr || *asked == '\0');
#else
  return false;
#endif
}

}  // namespace

bool sm80_serves(int index) {
  return compiled_for(device_attribute(cudaDevAttrComputeCapabilityMajor, index),
                      device_attribute(cudaDevAttrComputeCapabilityMinor, index));
}

Target cuda_target(int index) {
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor, index);
  const int minor = device_attribute(cudaDevAttrComputeCapabilityMinor, index);
  if (major < 8) {
    fail(kUnsupported, "cuda:", index, " has compute capability ", major, ".", minor,
         ", the CUDA targets need 8.0 or newer; compiled: ", compiled_targets());
  }
  if (sm90a_serves(major, minor)) return Target::kSm90a;
  if (!compiled_for(major, minor)) {
    fail(kUnsupported, "cuda:", index, " has compute capability ", major, ".", minor,
         ", for which nothing was compiled: ", compiled_targets(), ". Rebuild with FLASH_DSA_TARGETS=auto");
  }
  return Target::kSm80;
}

int shared_memory_limit(int index) {
  constexpr long kLeast = kSharedMemorySm86 / 1024;
  const char* cap = std::getenv("FLASH_DSA_TEST_SMEM_KB");
  const bool capped = cap != nullptr && *cap != '\0';
  char* end = nullptr;
  const long kilobytes = capped ? std::strtol(cap, &end, 10) : kLeast;
  if (capped && (*end != '\0' || kilobytes < kLeast)) {
    fail("FLASH_DSA_TEST_SMEM_KB expected a number of KiB >= ", kLeast, ", got '", cap, "'");
  }
  const int limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (limit < kSharedMemorySm86) {
    fail(kUnsupported, "cuda:", index, " gives a block ", limit, " bytes of shared memory, kernels need ",
         kSharedMemorySm86);
  }
  return capped && kilobytes < limit / 1024 ? static_cast<int>(kilobytes * 1024) : limit;
}

#else

bool sm80_serves(int) { return false; }

Target cuda_target(int index) {
  fail(kUnsupported, "cuda:", index, " needs a CUDA target; compiled: ", compiled_targets(),
       ". Rebuild where nvcc is found");
}

#endif

}  // namespace flash_dsa

// For flash_dsa/library.py, through ctypes. An answer is text and 0, or the reason there is none and 1.
namespace {

template <class Ask>
int answer(char* text, int size, Ask ask) {
  std::string found;
  int status = 0;
  try {
    found = ask();
  } catch (const std::exception& error) {
    found = error.what();
    status = 1;
  }
  std::strncpy(text, found.c_str(), static_cast<size_t>(size) - 1);
  text[size - 1] = '\0';
  return status;
}

}  // namespace

#define FLASH_DSA_EXPORT extern "C" __attribute__((visibility("default")))

FLASH_DSA_EXPORT int flash_dsa_compiled_targets(char* text, int size) {
  return answer(text, size, flash_dsa::compiled_targets);
}

FLASH_DSA_EXPORT int flash_dsa_cpu_level(char* text, int size) { return answer(text, size, flash_dsa::cpu_level); }

FLASH_DSA_EXPORT int flash_dsa_cuda_target(int index, char* text, int size) {
  return answer(text, size,
                [index] { return flash_dsa::cuda_target(index) == flash_dsa::Target::kSm90a ? "sm90a" : "sm80"; });
}
