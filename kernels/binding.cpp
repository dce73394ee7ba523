// The whole C++ surface: op schemas and what serves them. Checks live in each op.cpp, kernels behind them.
#include <torch/csrc/stable/library.h>

#include "op.h"

STABLE_TORCH_LIBRARY(flash_dsa, m) {
  m.def(
      "sparse_fwd(Tensor q, Tensor kv, Tensor indices, float sm_scale, int d_v, Tensor? attn_sink, "
      "Tensor? topk_length) -> (Tensor out, Tensor max_logits, Tensor lse)");
  m.def(
      "sparse_fwd_out(Tensor q, Tensor kv, Tensor indices, float sm_scale, int d_v, Tensor? attn_sink, "
      "Tensor? topk_length, Tensor(a!) out, Tensor(b!) max_logits, Tensor(c!) lse) -> ()");
  m.def(
      "dense_fwd(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_qo, Tensor cu_seqlens_kv, SymInt max_seqlen_qo, "
      "SymInt max_seqlen_kv, float softmax_scale, bool causal) -> (Tensor out, Tensor lse)");
  m.def(
      "dense_fwd_out(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_qo, Tensor cu_seqlens_kv, SymInt max_seqlen_qo, "
      "SymInt max_seqlen_kv, float softmax_scale, bool causal, Tensor(a!) out, Tensor(b!) lse) -> ()");
}

#define FLASH_DSA_REGISTER(m)                                      \
  m.impl("sparse_fwd", TORCH_BOX(&flash_dsa::sparse_fwd));         \
  m.impl("sparse_fwd_out", TORCH_BOX(&flash_dsa::sparse_fwd_out)); \
  m.impl("dense_fwd", TORCH_BOX(&flash_dsa::dense_fwd));           \
  m.impl("dense_fwd_out", TORCH_BOX(&flash_dsa::dense_fwd_out));

STABLE_TORCH_LIBRARY_IMPL(flash_dsa, CPU, m){FLASH_DSA_REGISTER(m)} STABLE_TORCH_LIBRARY_IMPL(flash_dsa, CUDA, m) {
  FLASH_DSA_REGISTER(m)
}
