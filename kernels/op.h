// The ops as torch sees them; binding.cpp registers these, each op.cpp defines its own.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "check.h"

namespace flash_dsa {

std::tuple<Tensor, Tensor, Tensor> sparse_fwd(const Tensor& q, const Tensor& kv, const Tensor& indices, double sm_scale,
                                              int64_t d_v, const std::optional<Tensor>& attn_sink,
                                              const std::optional<Tensor>& topk_length);

void sparse_fwd_out(const Tensor& q, const Tensor& kv, const Tensor& indices, double sm_scale, int64_t d_v,
                    const std::optional<Tensor>& attn_sink, const std::optional<Tensor>& topk_length, Tensor out,
                    Tensor max_logits, Tensor lse);

std::tuple<Tensor, Tensor> dense_fwd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_qo,
                                     const Tensor& cu_seqlens_kv, int64_t max_seqlen_qo, int64_t max_seqlen_kv,
                                     double softmax_scale, bool causal);

void dense_fwd_out(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_qo,
                   const Tensor& cu_seqlens_kv, int64_t max_seqlen_qo, int64_t max_seqlen_kv, double softmax_scale,
                   bool causal, Tensor out, Tensor lse);

}  // namespace flash_dsa
