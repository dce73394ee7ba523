"""The implementation `naive`: the seed notebook's attention in plain torch, made right and chunked to fit.

Matmuls in the inputs' precision, softmax in fp32, P cast back for the second matmul. Timed, so it returns only out, as
the seed's does; the definition of the ops is flash_dsa.reference.
"""

from __future__ import annotations

import torch

DENSE_KEYS_MAX = 16_384  # beyond, its time says nothing new and costs seconds per launch
_CHUNK_QUERIES = 256  # at topk 2048 and 128 heads: 0.6 GB of gathered rows, 0.3 GB of scores
_CHUNK_BYTES = 1 << 30  # of temporaries
_CHUNK_BYTES_CPU = 1 << 26


def sparse_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gathers the indexed rows of a chunk of queries and attends to them.

    Args:
        q: [s_q, h_q, d_qk]. kv: [s_kv, 1, d_qk]. indices: [s_q, 1, topk] int32. sm_scale: of the scores.
        attn_sink: [h_q] float32. topk_length: [s_q] int32.
    Returns:
        out [s_q, h_q, d_v] in q's dtype.
    """
    s_q, h_q, d_qk = q.shape
    topk = indices.shape[-1]
    out = torch.empty(s_q, h_q, d_v, dtype=q.dtype, device=q.device)
    slots = torch.arange(topk, device=q.device)
    row_bytes = topk * (d_qk * q.element_size() + h_q * 8)
    rows = max(1, min(_CHUNK_QUERIES, _chunk_bytes(q) // row_bytes))
    for first in range(0, s_q, rows):
        part = slice(first, first + rows)
        chosen = indices[part, 0]
        masked = (chosen < 0) | (chosen >= kv.shape[0])
        if topk_length is not None:
            masked |= slots >= topk_length[part].unsqueeze(1)
        gathered = kv[chosen.masked_fill(masked, 0).flatten(), 0].view(-1, topk, d_qk)
        scores = torch.matmul(q[part], gathered.transpose(1, 2)).float()
        scores = scores.masked_fill_(masked.unsqueeze(1), float("-inf")).mul_(sm_scale)
        weights = torch.softmax(scores, dim=-1).to(q.dtype)
        result = torch.matmul(weights, gathered[:, :, :d_v])
        if attn_sink is not None:
            share = torch.sigmoid(torch.logsumexp(scores, dim=-1) - attn_sink)
            result = (result * share.unsqueeze(-1)).to(q.dtype)
        # A row without any valid index is 0, not the NaN of an empty softmax.
        out[part] = result.masked_fill_(masked.all(1)[:, None, None], 0.0)
    return out


def dense_fwd(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float, causal: bool | None = False
) -> torch.Tensor:
    """Materialises the scores of a few heads and queries at a time.

    Args:
        q: [s_q, h_q, d_qk]. k: [s_kv, h_kv, d_qk]. v: [s_kv, h_kv, d_v]. causal: bottom-right aligned.
    Returns:
        out [s_q, h_q, d_v] in q's dtype.
    """
    (s_q, h_q, _), (s_kv, h_kv, _), d_v = q.shape, k.shape, v.shape[-1]
    group = h_q // h_kv
    out = torch.empty(s_q, h_q, d_v, dtype=q.dtype, device=q.device)
    per_row = group * s_kv * (4 + 4 + q.element_size() * 2)
    heads = max(1, min(h_kv, _chunk_bytes(q) // (per_row * min(s_q, _CHUNK_QUERIES))))
    rows = max(1, min(s_q, _chunk_bytes(q) // (per_row * heads)))
    keys = torch.arange(s_kv, device=q.device)
    for head in range(0, h_kv, heads):
        k_part = k[:, head : head + heads].permute(1, 2, 0)  # [heads, d_qk, s_kv]
        v_part = v[:, head : head + heads].transpose(0, 1)  # [heads, s_kv, d_v]
        n = k_part.shape[0]
        for first in range(0, s_q, rows):
            q_part = q[first : first + rows, head * group : (head + n) * group]  # [rows, n * group, d_qk]
            m = q_part.shape[0]
            stacked = q_part.reshape(m, n, group, -1).transpose(0, 1).reshape(n, m * group, -1)
            scores = torch.matmul(stacked, k_part).float().mul_(softmax_scale)
            if causal:
                last = torch.arange(first, first + m, device=q.device) + (s_kv - s_q)
                hidden = keys > last.repeat_interleave(group).unsqueeze(1)  # [m * group, s_kv]
                scores.masked_fill_(hidden, float("-inf"))
            weights = torch.softmax(scores, dim=-1).to(q.dtype)
            if causal and s_q > s_kv:
                weights.masked_fill_(hidden.all(1)[:, None], 0.0)
            result = torch.matmul(weights, v_part).view(n, m, group, d_v).transpose(0, 1)
            out[first : first + m, head * group : (head + n) * group] = result.reshape(m, n * group, d_v)
    return out


def _chunk_bytes(tensor: torch.Tensor) -> int:
    return _CHUNK_BYTES if tensor.device.type == "cuda" else _CHUNK_BYTES_CPU
