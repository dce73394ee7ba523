"""The definition of both ops in plain torch: what the kernels must compute, at float32 or float64, on any device.

Nothing here is fast. A few rows of a large problem are checked by slicing the queries before the call.
"""

from __future__ import annotations

import torch

# Gathered KV rows are [queries, topk, d_qk]; this many elements at a time keep them within a few hundred megabytes.
_GATHER_ELEMENTS = 1 << 25


def _softmax_statistics(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, maximum and log-sum-exp over the last dimension; a row of -inf has weights 0, -inf and +inf."""
    max_logits = scores.amax(dim=-1)
    lse = torch.logsumexp(scores, dim=-1)
    empty = max_logits == float("-inf")
    weights = torch.exp(scores - lse.masked_fill(empty, 0.0).unsqueeze(-1))
    return weights, max_logits, lse.masked_fill(empty, float("inf"))


def sparse_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Define `flash_mla_sparse_fwd`.

    Args:
        q: ``[s_q, h_q, d_qk]``, any floating dtype.
        kv: ``[s_kv, 1, d_qk]``.
        indices: ``[s_q, 1, topk]`` integer; < 0 or >= s_kv is masked.
        sm_scale: factor of the scores.
        d_v: width of the values.
        attn_sink: ``[h_q]`` or None.
        topk_length: ``[s_q]`` integer or None.
        dtype: what to compute in.

    Returns:
        ``(out, max_logits, lse)`` in `dtype`: ``[s_q, h_q, d_v]``, ``[s_q, h_q]``, ``[s_q, h_q]``.

    Source: DeepSeek-V3.2-Exp report, section 2.1 (sparse attention over selected tokens, MQA form of MLA).
    """
    s_q, h_q, d_qk = q.shape
    s_kv = kv.shape[0]
    topk = indices.shape[-1]
    out = torch.zeros(s_q, h_q, d_v, dtype=dtype, device=q.device)
    max_logits = torch.full((s_q, h_q), float("-inf"), dtype=dtype, device=q.device)
    lse = torch.full((s_q, h_q), float("inf"), dtype=dtype, device=q.device)
    if s_kv == 0:
        return out, max_logits, lse
    slots = torch.arange(topk, device=q.device)
    chunk = max(1, _GATHER_ELEMENTS // (topk * d_qk))
    for start in range(0, s_q, chunk):
        rows = slice(start, start + chunk)
        selected = indices[rows, 0]
        valid = (selected >= 0) & (selected < s_kv)
        if topk_length is not None:
            valid &= slots < topk_length[rows].unsqueeze(-1)
        gathered = kv[selected.masked_fill(~valid, 0).long(), 0].to(dtype)
        # Rows that are masked must not count, not even as 0 * NaN.
        gathered = gathered.masked_fill(~valid.unsqueeze(-1), 0.0)
        scores = torch.einsum("qhd,qkd->qhk", q[rows].to(dtype), gathered) * sm_scale
        scores = scores.masked_fill(~valid.unsqueeze(1), float("-inf"))
        weights, max_logits[rows], lse[rows] = _softmax_statistics(scores)
        result = torch.einsum("qhk,qkd->qhd", weights, gathered[..., :d_v])
        if attn_sink is not None:
            # exp(lse) / (exp(lse) + exp(sink)); a row with nothing valid stays 0 whatever the sink.
            result *= torch.sigmoid(lse[rows] - attn_sink.to(dtype)).unsqueeze(-1)
            result = result.masked_fill((max_logits[rows] == float("-inf")).unsqueeze(-1), 0.0)
        out[rows] = result
    return out, max_logits, lse


def dense_fwd(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Define `flash_attn_varlen_func`.

    Args:
        q: ``[tot_q, h_q, d_qk]``, any floating dtype.
        k: ``[tot_kv, h_kv, d_qk]``, h_q a multiple of h_kv.
        v: ``[tot_kv, h_kv, d_v]``.
        cu_seqlens_qo, cu_seqlens_kv: ``[batch + 1]`` integer.
        softmax_scale: factor of the scores; ``d_qk ** -0.5`` when None.
        causal: query i of a sequence sees keys ``j <= i + s_kv - s_q``.
        dtype: what to compute in.

    Returns:
        ``(out, lse)`` in `dtype`: ``[tot_q, h_q, d_v]``, ``[tot_q, h_q]``.

    Source: scaled dot-product attention (arXiv 1706.03762, section 3.2.1), per packed sequence.
    """
    tot_q, h_q, d_qk = q.shape
    group = h_q // k.shape[1]
    scale = d_qk**-0.5 if softmax_scale is None else softmax_scale
    out = torch.zeros(tot_q, h_q, v.shape[2], dtype=dtype, device=q.device)
    lse = torch.full((tot_q, h_q), float("inf"), dtype=dtype, device=q.device)
    starts_q, starts_kv = cu_seqlens_qo.tolist(), cu_seqlens_kv.tolist()
    for batch in range(len(starts_q) - 1):
        rows = slice(starts_q[batch], starts_q[batch + 1])
        keys = slice(starts_kv[batch], starts_kv[batch + 1])
        s_q, s_kv = rows.stop - rows.start, keys.stop - keys.start
        if s_q == 0 or s_kv == 0:
            continue
        hidden = None
        if causal:
            last_seen = torch.arange(s_q, device=q.device) + s_kv - s_q
            hidden = torch.arange(s_kv, device=q.device) > last_seen.unsqueeze(-1)
        for head in range(h_q):
            scores = q[rows, head].to(dtype) @ k[keys, head // group].to(dtype).T * scale
            if hidden is not None:
                scores = scores.masked_fill(hidden, float("-inf"))
            weights, max_logits, lse[rows, head] = _softmax_statistics(scores)
            result = weights @ v[keys, head // group].to(dtype)
            out[rows, head] = result.masked_fill((max_logits == float("-inf")).unsqueeze(-1), 0.0)
    return out, lse
