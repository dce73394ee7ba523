// Host side of bounded waits (sm90.cuh): included by launchers of SM90, each of which has its own reports.
#pragma once

#ifdef FLASH_DSA_BOUNDED_WAIT

#include <string>

#include "launch.h"
#include "sm90.cuh"

namespace flash_dsa {

namespace {

// Pinned memory for the reports, for as long as the process lives.
sm90::WaitReport* wait_reports(const char* doing) {
  static sm90::WaitReport* reports = nullptr;
  if (reports == nullptr) {
    check_cuda(cudaHostAlloc(&reports, sm90::kWaitReports * sizeof(*reports), cudaHostAllocDefault), doing);
  }
  check_cuda(cudaMemcpyToSymbol(sm90::wait_reports, &reports, sizeof(reports)), doing);  // of the current device
  for (int i = 0; i < sm90::kWaitReports; ++i) reports[i].made = 0;
  return reports;
}

// Waits for the kernel; throws what it has reported. `name_of(offset)` names a barrier by its offset in shared memory.
template <class NameOf>
void report_waits(const char* doing, const sm90::WaitReport* reports, NameOf name_of, CUstream_st* stream) {
  const cudaError_t status = cudaStreamSynchronize(stream);
  if (status == cudaSuccess) return;
  std::string text = doing + (": " + std::string(cudaGetErrorString(status))) + "; waits that gave up:";
  for (int i = 0; i < sm90::kWaitReports; ++i) {
    const volatile sm90::WaitReport& report = reports[i];
    if (report.made == 0) continue;
    text += "\n  block " + std::to_string(report.block) + " thread " + std::to_string(report.thread) + ": " +
            name_of(static_cast<int>(report.barrier)) + ", parity " + std::to_string(report.parity);
  }
  throw std::runtime_error(text);
}

// Which barrier of a wide kernel (wide_sm90.cuh), by its offset in shared memory.
template <class Plan>
std::string wide_barrier_name(int offset) {
  const std::pair<int, const char*> names[] = {{Plan::kTail, "tail"},
                                               {Plan::kPEmpty, "p empty"},
                                               {Plan::kPFull, "p full"},
                                               {Plan::kQEmpty, "q empty"},
                                               {Plan::kQFull, "q full"},
                                               {Plan::kMessageEmpty, "message empty"},
                                               {Plan::kMessageFull, "message full"},
                                               {Plan::kRopeEmpty, "rope empty"},
                                               {Plan::kRopeFull, "rope full"},
                                               {Plan::kRingEmpty, "ring empty"},
                                               {Plan::kRingFull, "ring full"}};
  for (const auto& [first, name] : names) {
    if (offset >= first) return name + (" " + std::to_string((offset - first) / 8));
  }
  return "offset " + std::to_string(offset);
}

}  // namespace

}  // namespace flash_dsa

#endif
