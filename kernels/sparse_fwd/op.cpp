// Host side of sparse_fwd: every check of its arguments, once, then the target.
#include "../op.h"
#include "../run.h"
#include "params.h"

namespace flash_dsa {

namespace {

constexpr Checker check{"sparse_fwd"};

SparseFwdParams checked(const Tensor& q, const Tensor& kv, const Tensor& indices, double sm_scale, int64_t d_v,
                        const std::optional<Tensor>& attn_sink, const std::optional<Tensor>& topk_length) {
  check.rank("q", q, "[s_q, h_q, d_qk]", 3);
  check.rank("kv", kv, "[s_kv, h_kv, d_qk]", 3);
  check.rank("indices", indices, "[s_q, h_kv, topk]", 3);
  const int64_t s_q = q.size(0), h_q = q.size(1), d_qk = q.size(2), topk = indices.size(2);
  if (d_qk != 576 && d_qk != 512) fail(check.op, ": `q` expected d_qk 576 or 512, got ", d_qk);
  if (d_v != 512) fail(check.op, ": `d_v` expected 512, got ", d_v);
  if (h_q < 1) fail(check.op, ": `q` expected h_q >= 1, got shape ", shape_of(q));
  if (topk < 1) fail(check.op, ": `indices` expected topk >= 1, got shape ", shape_of(indices));
  check.at_most_max_size("q", q, 1, "h_q");
  check.at_most_max_size("indices", indices, 2, "topk");
  check.size("kv", kv, 1, 1, "h_kv");
  check.size("kv", kv, 2, d_qk, "d_qk");
  check.size("indices", indices, 0, s_q, "s_q");
  check.size("indices", indices, 1, 1, "h_kv");
  check.scale("sm_scale", sm_scale);

  check.attention_dtype("q", q);
  check.dtype("kv", kv, q.scalar_type());
  check.dtype("indices", indices, ScalarType::Int);
  check.device("kv", kv, q);
  check.device("indices", indices, q);
  check.rows_aligned("q", q);
  check.rows_aligned("kv", kv);
  if (indices.numel() > 0 && topk > 1 && indices.stride(2) != 1) {
    fail(check.op, ": `indices` expected stride 1 in its last dimension, got ", indices.stride(2));
  }
  if (attn_sink) {
    check.shape("attn_sink", *attn_sink, "[h_q]", {h_q});
    check.dtype("attn_sink", *attn_sink, ScalarType::Float);
    check.device("attn_sink", *attn_sink, q);
    check.contiguous("attn_sink", *attn_sink);
  }
  if (topk_length) {
    check.shape("topk_length", *topk_length, "[s_q]", {s_q});
    check.dtype("topk_length", *topk_length, ScalarType::Int);
    check.device("topk_length", *topk_length, q);
    check.contiguous("topk_length", *topk_length);
  }

  SparseFwdParams params{};
  params.s_q = s_q;
  params.s_kv = kv.size(0);
  params.h_q = static_cast<int>(h_q);
  params.d_qk = static_cast<int>(d_qk);
  params.d_v = static_cast<int>(d_v);
  params.topk = static_cast<int>(topk);
  params.sm_scale = static_cast<float>(sm_scale);
  params.q = q.const_data_ptr();
  params.q_stride_s = q.stride(0);
  params.q_stride_h = q.stride(1);
  params.kv = kv.const_data_ptr();
  params.kv_stride_s = kv.stride(0);
  params.indices = indices.const_data_ptr<int32_t>();
  params.indices_stride_s = indices.stride(0);
  params.attn_sink = attn_sink ? attn_sink->const_data_ptr<float>() : nullptr;
  params.topk_length = topk_length ? topk_length->const_data_ptr<int32_t>() : nullptr;
  return params;
}

void run(SparseFwdParams params, const Tensor& q, Tensor& out, Tensor& max_logits, Tensor& lse) {
  if (params.s_q == 0) return;
  params.out = out.mutable_data_ptr();
  params.out_stride_s = out.stride(0);
  params.out_stride_h = out.stride(1);
  params.max_logits = max_logits.mutable_data_ptr<float>();
  params.lse = lse.mutable_data_ptr<float>();
  run_on_target(
      q, [&](CpuDtype dtype) { sparse_fwd_cpu(params, dtype); },
      [&]([[maybe_unused]] const CudaCall& call) {
#ifdef FLASH_DSA_SM90A
        // A cap on shared memory stands for a smaller GPU, which has the portable target.
        if (call.target == Target::kSm90a && shared_memory_limit(call.index) >= kSharedMemorySm90) {
          return sparse_fwd_sm90(params, call.stream);
        }
#endif
        require_sm80(call, check.op);
#ifdef FLASH_DSA_SM80_ARCHS
        sparse_fwd_sm80(params, shared_memory_limit(call.index), call.stream);
#endif
      });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> sparse_fwd(const Tensor& q, const Tensor& kv, const Tensor& indices, double sm_scale,
                                              int64_t d_v, const std::optional<Tensor>& attn_sink,
                                              const std::optional<Tensor>& topk_length) {
  const SparseFwdParams params = checked(q, kv, indices, sm_scale, d_v, attn_sink, topk_length);
  Tensor out = empty_on(q, {params.s_q, params.h_q, params.d_v}, q.scalar_type());
  Tensor max_logits = empty_on(q, {params.s_q, params.h_q}, ScalarType::Float);
  Tensor lse = empty_on(q, {params.s_q, params.h_q}, ScalarType::Float);
  run(params, q, out, max_logits, lse);
  return {out, max_logits, lse};
}

void sparse_fwd_out(const Tensor& q, const Tensor& kv, const Tensor& indices, double sm_scale, int64_t d_v,
                    const std::optional<Tensor>& attn_sink, const std::optional<Tensor>& topk_length, Tensor out,
                    Tensor max_logits, Tensor lse) {
  const SparseFwdParams params = checked(q, kv, indices, sm_scale, d_v, attn_sink, topk_length);
  check.shape("out", out, "[s_q, h_q, d_v]", {params.s_q, params.h_q, params.d_v});
  check.dtype("out", out, q.scalar_type());
  check.device("out", out, q);
  check.rows_aligned("out", out);
  check.writable("out", out);
  for (const auto& [name, tensor] : {std::pair{"max_logits", &max_logits}, std::pair{"lse", &lse}}) {
    check.shape(name, *tensor, "[s_q, h_q]", {params.s_q, params.h_q});
    check.dtype(name, *tensor, ScalarType::Float);
    check.device(name, *tensor, q);
    check.contiguous(name, *tensor);
  }
  const Tensor* sink = attn_sink ? &*attn_sink : nullptr;
  const Tensor* length = topk_length ? &*topk_length : nullptr;
  for (const auto& [name, tensor] :
       {std::pair{"out", &out}, std::pair{"max_logits", &max_logits}, std::pair{"lse", &lse}}) {
    check.apart(name, *tensor,
                {{"q", &q}, {"kv", &kv}, {"indices", &indices}, {"attn_sink", sink}, {"topk_length", length}});
  }
  check.apart("out", out, {{"max_logits", &max_logits}, {"lse", &lse}});
  check.apart("max_logits", max_logits, {{"lse", &lse}});
  run(params, q, out, max_logits, lse);
}

}  // namespace flash_dsa
