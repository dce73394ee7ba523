// Host side of dense_fwd: every check of its arguments, once, then the target.
#include "../op.h"
#include "../run.h"
#include "params.h"

namespace flash_dsa {

namespace {

constexpr Checker check{"dense_fwd"};

void check_cu_seqlens(const char* name, const Tensor& cu_seqlens, const Tensor& q) {
  check.rank(name, cu_seqlens, "[batch + 1]", 1);
  check.at_most_max_size(name, cu_seqlens, 0, "batch + 1");
  if (cu_seqlens.size(0) < 1) fail(check.op, ": `", name, "` expected shape [batch + 1], got [0]");
  check.dtype(name, cu_seqlens, ScalarType::Int);
  check.device(name, cu_seqlens, q);
  check.contiguous(name, cu_seqlens);
}

DenseFwdParams checked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_qo,
                       const Tensor& cu_seqlens_kv, int64_t max_seqlen_qo, int64_t max_seqlen_kv, double softmax_scale,
                       bool causal) {
  check.rank("q", q, "[tot_q, h_q, d_qk]", 3);
  check.rank("k", k, "[tot_kv, h_kv, d_qk]", 3);
  check.rank("v", v, "[tot_kv, h_kv, d_v]", 3);
  const int64_t d_qk = q.size(2), d_v = v.size(2), h_q = q.size(1), h_kv = k.size(1);
  const bool known = (d_qk == 192 && d_v == 128) || (d_qk == 128 && d_v == 128) || (d_qk == 576 && d_v == 512);
  if (!known) {
    fail(check.op, ": `q` and `v` expected (d_qk, d_v) = (192, 128), (128, 128) or (576, 512), got (", d_qk, ", ", d_v,
         ")");
  }
  check.at_most_max_size("q", q, 0, "tot_q");
  check.at_most_max_size("q", q, 1, "h_q");
  check.at_most_max_size("k", k, 0, "tot_kv");
  check.at_most_max_size("k", k, 1, "h_kv");
  check.size("k", k, 2, d_qk, "d_qk");
  check.size("v", v, 0, k.size(0), "tot_kv");
  check.size("v", v, 1, h_kv, "h_kv");
  if (h_q < 1 || h_kv < 1 || h_q % h_kv != 0) {
    fail(check.op, ": `q` expected h_q to be a multiple of h_kv, both >= 1, got h_q = ", h_q, ", h_kv = ", h_kv);
  }
  if (max_seqlen_qo < 0) fail(check.op, ": `max_seqlen_qo` expected a number >= 0, got ", max_seqlen_qo);
  if (max_seqlen_kv < 0) fail(check.op, ": `max_seqlen_kv` expected a number >= 0, got ", max_seqlen_kv);
  check.scale("softmax_scale", softmax_scale);

  check.attention_dtype("q", q);
  for (const auto& [name, tensor] : {std::pair{"k", &k}, std::pair{"v", &v}}) {
    check.dtype(name, *tensor, q.scalar_type());
    check.device(name, *tensor, q);
    check.rows_aligned(name, *tensor);
  }
  check.rows_aligned("q", q);
  check_cu_seqlens("cu_seqlens_qo", cu_seqlens_qo, q);
  check_cu_seqlens("cu_seqlens_kv", cu_seqlens_kv, q);
  check.size("cu_seqlens_kv", cu_seqlens_kv, 0, cu_seqlens_qo.size(0), "batch + 1");

  DenseFwdParams params{};
  params.batch = static_cast<int>(cu_seqlens_qo.size(0)) - 1;
  params.tot_q = q.size(0);
  params.tot_kv = k.size(0);
  params.h_q = static_cast<int>(h_q);
  params.h_kv = static_cast<int>(h_kv);
  params.d_qk = static_cast<int>(d_qk);
  params.d_v = static_cast<int>(d_v);
  params.softmax_scale = static_cast<float>(softmax_scale);
  params.causal = causal;
  params.q = q.const_data_ptr();
  params.q_stride_s = q.stride(0);
  params.q_stride_h = q.stride(1);
  params.k = k.const_data_ptr();
  params.k_stride_s = k.stride(0);
  params.k_stride_h = k.stride(1);
  params.v = v.const_data_ptr();
  params.v_stride_s = v.stride(0);
  params.v_stride_h = v.stride(1);
  params.cu_seqlens_qo = cu_seqlens_qo.const_data_ptr<int32_t>();
  params.cu_seqlens_kv = cu_seqlens_kv.const_data_ptr<int32_t>();
  return params;
}

void run(DenseFwdParams params, const Tensor& q, Tensor& out, Tensor& lse) {
  if (params.tot_q == 0) return;
  params.out = out.mutable_data_ptr();
  params.out_stride_s = out.stride(0);
  params.out_stride_h = out.stride(1);
  params.lse = lse.mutable_data_ptr<float>();
  params.lse_stride_s = lse.stride(0);
  params.lse_stride_h = lse.stride(1);
  run_on_target(
      q, [&](CpuDtype dtype) { dense_fwd_cpu(params, dtype); },
      [&]([[maybe_unused]] const CudaCall& call) {
#ifdef FLASH_DSA_SM90A
        // A cap on shared memory stands for a smaller GPU, which has the portable target.
        if (call.target == Target::kSm90a && shared_memory_limit(call.index) >= kSharedMemorySm90 &&
            dense_fwd_sm90_serves(params)) {
          Tensor next_tile = empty_on(q, {1}, ScalarType::Int);
          params.next_tile = static_cast<uint32_t*>(next_tile.mutable_data_ptr());
          return dense_fwd_sm90(params, call.stream);
        }
#endif
        require_sm80(call, check.op);
#ifdef FLASH_DSA_SM80_ARCHS
        dense_fwd_sm80(params, shared_memory_limit(call.index), call.stream);
#endif
      });
}

}  // namespace

std::tuple<Tensor, Tensor> dense_fwd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_qo,
                                     const Tensor& cu_seqlens_kv, int64_t max_seqlen_qo, int64_t max_seqlen_kv,
                                     double softmax_scale, bool causal) {
  const DenseFwdParams params =
      checked(q, k, v, cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, max_seqlen_kv, softmax_scale, causal);
  Tensor out = empty_on(q, {params.tot_q, params.h_q, params.d_v}, q.scalar_type());
  // Contiguous along the queries of a head, as upstream lays it out.
  Tensor lse = torch::stable::transpose(empty_on(q, {params.h_q, params.tot_q}, ScalarType::Float), 0, 1);
  run(params, q, out, lse);
  return {out, lse};
}

void dense_fwd_out(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_qo,
                   const Tensor& cu_seqlens_kv, int64_t max_seqlen_qo, int64_t max_seqlen_kv, double softmax_scale,
                   bool causal, Tensor out, Tensor lse) {
  const DenseFwdParams params =
      checked(q, k, v, cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, max_seqlen_kv, softmax_scale, causal);
  check.shape("out", out, "[tot_q, h_q, d_v]", {params.tot_q, params.h_q, params.d_v});
  check.dtype("out", out, q.scalar_type());
  check.device("out", out, q);
  check.rows_aligned("out", out);
  check.writable("out", out);
  check.shape("lse", lse, "[tot_q, h_q]", {params.tot_q, params.h_q});
  check.dtype("lse", lse, ScalarType::Float);
  check.device("lse", lse, q);
  check.writable("lse", lse);
  for (const auto& [name, tensor] : {std::pair{"out", &out}, std::pair{"lse", &lse}}) {
    check.apart(
        name, *tensor,
        {{"q", &q}, {"k", &k}, {"v", &v}, {"cu_seqlens_qo", &cu_seqlens_qo}, {"cu_seqlens_kv", &cu_seqlens_kv}});
  }
  check.apart("out", out, {{"lse", &lse}});
  run(params, q, out, lse);
}

}  // namespace flash_dsa
