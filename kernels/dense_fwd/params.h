// What one call of dense_fwd asks for. Plain data, no torch: host checks fill it, every target reads it.
#pragma once

#include <cstdint>

#include "../cpu.h"

struct CUstream_st;

namespace flash_dsa {

struct DenseFwdParams {
  // Sizes are at most kMaxSize (check.h).
  int batch;              // sequences packed into tot_q and tot_kv
  int64_t tot_q, tot_kv;  // rows of all sequences
  int h_q, h_kv;          // h_q is a multiple of h_kv
  int d_qk, d_v;          // (192, 128), (128, 128) or (576, 512)
  float softmax_scale;    // > 0 and finite
  bool causal;            // query i of a sequence sees keys j <= i + s_kv - s_q

  // Strides are in elements; the last dimension of q, k, v and out is contiguous.
  const void* q;  // [tot_q, h_q, d_qk]
  int64_t q_stride_s, q_stride_h;
  const void* k;  // [tot_kv, h_kv, d_qk]
  int64_t k_stride_s, k_stride_h;
  const void* v;  // [tot_kv, h_kv, d_v]
  int64_t v_stride_s, v_stride_h;
  const int32_t* cu_seqlens_qo;  // [batch + 1] contiguous, from 0 up to tot_q
  const int32_t* cu_seqlens_kv;  // [batch + 1] contiguous, from 0 up to tot_kv

  void* out;  // [tot_q, h_q, d_v], the dtype of q
  int64_t out_stride_s, out_stride_h;
  float* lse;  // [tot_q, h_q], natural log
  int64_t lse_stride_s, lse_stride_h;

  uint32_t* next_tile;  // [1] scratch of the sm90a target, null for the others
};

void dense_fwd_cpu(const DenseFwdParams& params, CpuDtype dtype);
// Picks its tile by `shared_memory`, the bytes one block may use.
void dense_fwd_sm80(const DenseFwdParams& params, int shared_memory, CUstream_st* stream);
// Compute capability 9.0 alone. Whether it serves these strides and sizes; then the other. `next_tile` is not looked
// at.
bool dense_fwd_sm90_serves(const DenseFwdParams& params);
void dense_fwd_sm90(const DenseFwdParams& params, CUstream_st* stream);

}  // namespace flash_dsa
