// What tests call, by ctypes. Both return null, or what has gone wrong.
#include <string>

#include "dense_fwd/params.h"
#include "emulator.h"
#include "sparse_fwd/params.h"

namespace {

template <class Params, class Launch>
const char* emulate(const Params& params, uint64_t seed, int multiprocessors, const Launch& launch) {
  static std::string error;
  emulator::seed(seed, multiprocessors);
  try {
    launch(params, nullptr);
    return nullptr;
  } catch (const std::exception& caught) {
    error = caught.what();
    return error.c_str();
  }
}

}  // namespace

extern "C" {

const char* emulate_sparse_fwd(const flash_dsa::SparseFwdParams* params, uint64_t seed, int multiprocessors) {
  return emulate(*params, seed, multiprocessors, flash_dsa::sparse_fwd_sm90);
}

const char* emulate_dense_fwd(const flash_dsa::DenseFwdParams* params, uint64_t seed, int multiprocessors) {
  if (!flash_dsa::dense_fwd_sm90_serves(*params)) return "dense_fwd_sm90 does not serve this call";
  return emulate(*params, seed, multiprocessors, flash_dsa::dense_fwd_sm90);
}
}
