// What one call of sparse_fwd asks for. Plain data, no torch: host checks fill it, every target reads it.
#pragma once

#include <cstdint>

#include "../cpu.h"

struct CUstream_st;

namespace flash_dsa {

struct SparseFwdParams {
  int64_t s_q, s_kv;   // queries, KV rows
  int h_q, d_qk, d_v;  // at most kMaxSize; 576 or 512; 512
  int topk;            // index slots per query, at most kMaxSize
  float sm_scale;      // > 0 and finite

  // Strides are in elements; the last dimension of every tensor is contiguous.
  const void* q;  // [s_q, h_q, d_qk]
  int64_t q_stride_s, q_stride_h;
  const void* kv;  // [s_kv, 1, d_qk]
  int64_t kv_stride_s;
  const int32_t* indices;  // [s_q, 1, topk]
  int64_t indices_stride_s;
  const float* attn_sink;      // [h_q] or null
  const int32_t* topk_length;  // [s_q] or null

  void* out;  // [s_q, h_q, d_v], the dtype of q
  int64_t out_stride_s, out_stride_h;
  float* max_logits;  // [s_q, h_q] contiguous, natural log
  float* lse;         // [s_q, h_q] contiguous, natural log
};

void sparse_fwd_cpu(const SparseFwdParams& params, CpuDtype dtype);
// Picks its tile by `shared_memory`, the bytes one block may use.
void sparse_fwd_sm80(const SparseFwdParams& params, int shared_memory, CUstream_st* stream);
// Compute capability 9.0 alone.
void sparse_fwd_sm90(const SparseFwdParams& params, CUstream_st* stream);

}  // namespace flash_dsa
