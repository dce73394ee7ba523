"""The public calls: FlashMLA's names and layouts over the compiled ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

import flash_dsa.fakes  # noqa: F401  registers them
from flash_dsa.library import UNSUPPORTED, compiled_targets, target_of

__all__ = [
    "_flash_attn_varlen_forward",
    "compiled_targets",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_mla_metadata",
    "target_of",
]

_ops = torch.ops.flash_dsa


def _run(op: Callable[..., Any], *arguments: object) -> Any:
    try:
        return op(*arguments)
    except NotImplementedError as error:
        # torch's dispatcher has no kernel for these tensors, and lists everything it has instead of saying which.
        kinds = {f"{t.device.type} ({t.layout})" for t in arguments if isinstance(t, torch.Tensor)}
        raise NotImplementedError(
            f"no target serves tensors on {', '.join(sorted(kinds))}; compiled: {compiled_targets()}"
        ) from error
    except RuntimeError as error:
        reason = str(error)
        if not reason.startswith(UNSUPPORTED):
            raise
        raise NotImplementedError(reason.removeprefix(UNSUPPORTED)) from error


def _forward_only(call: str, *tensors: torch.Tensor | None) -> None:
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise NotImplementedError(f"{call} has no backward: call it under torch.no_grad() or detach its inputs")


def flash_mla_sparse_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse MLA prefill: every query attends to the KV rows its indices name (DeepSeek Sparse Attention, MQA).

    Args:
        q: ``[s_q, h_q, d_qk]`` bfloat16 (the cpu target also takes float32); any h_q >= 1; d_qk 576 or 512.
        kv: ``[s_kv, 1, d_qk]``, the dtype of `q`; its first `d_v` columns are the values.
        indices: ``[s_q, 1, topk]`` int32, any topk >= 1. An index < 0 or >= s_kv is masked and its row never read;
            duplicates count each time.
        sm_scale: factor of the scores before the softmax, finite and > 0.
        d_v: width of the values, 512.
        attn_sink: ``[h_q]`` float32: `out` is multiplied by ``exp(lse) / (exp(lse) + exp(attn_sink))``; -inf has no
            effect, +inf gives 0. `lse` and `max_logits` are not changed.
        topk_length: ``[s_q]`` int32: query i uses only ``indices[i, :, :topk_length[i]]``. 0 is legal; more than topk
            counts as topk.
        out: where to write the output, ``[s_q, h_q, d_v]`` of the dtype of `q`; allocated when None. From its first
            byte to its last it must not meet another argument, nor may two of its elements share memory.

    Returns:
        ``(out, max_logits, lse)``: `out` ``[s_q, h_q, d_v]``; `max_logits` and `lse` ``[s_q, h_q]`` float32, natural
        logarithms of the scaled scores. A query with nothing valid has out 0, lse +inf, max_logits -inf.

    Raises:
        RuntimeError: an argument does not fit; the message names it, what was expected and what came.
        NotImplementedError: an input requires grad, or no compiled target serves the device.

    Source: `flash_dsa.reference.sparse_fwd` is the definition; the signature is FlashMLA's.
    """
    _forward_only("flash_mla_sparse_fwd", q, kv, attn_sink, out)
    arguments = (q, kv, indices, sm_scale, d_v, attn_sink, topk_length)
    if out is None:
        out, max_logits, lse = _run(_ops.sparse_fwd, *arguments)
    else:
        # Sizes of `out`, whose memory exists; the op says so where they are not those of `q`, which may be expanded.
        max_logits = out.new_empty(out.shape[:2], dtype=torch.float32)
        lse = torch.empty_like(max_logits)
        _run(_ops.sparse_fwd_out, *arguments, out, max_logits, lse)
    return out, max_logits, lse


def _flash_attn_varlen_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    causal: bool = False,
    softmax_scale: float | None = None,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense MLA prefill with upstream's argument order; see `flash_attn_varlen_func`.

    Args:
        q, k, v, cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, max_seqlen_kv, causal, softmax_scale, is_varlen: as in
            `flash_attn_varlen_func`.
        out: where to write the output, ``[tot_q, h_q, d_v]``; allocated when None. Neither it nor `lse` may meet
            another argument, from first byte to last, or have two elements that share memory.
        lse: where to write the log-sum-exp, ``[tot_q, h_q]`` float32 with any strides; allocated when None.

    Returns:
        ``(out, lse)``.
    """
    _forward_only("flash_attn_varlen_func", q, k, v, out, lse)
    if softmax_scale is None:
        # A q that has no width is refused by the op, with its name.
        softmax_scale = q.shape[-1] ** -0.5 if q.dim() and q.shape[-1] else 1.0
    arguments = (q, k, v, cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, max_seqlen_kv, softmax_scale, causal)
    if out is None:
        if lse is None:
            out, lse = _run(_ops.dense_fwd, *arguments)
            return out, lse
        out = q.new_empty((*q.shape[:2], *v.shape[-1:]))
    elif lse is None:
        # Sizes of `out`, whose memory exists; the op says so where they are not those of `q`, which may be expanded.
        lse = out.new_empty(out.shape[1::-1], dtype=torch.float32).movedim(0, -1)
    _run(_ops.dense_fwd_out, *arguments, out, lse)
    return out, lse


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense MLA prefill over packed sequences: MHA, GQA or MQA.

    Args:
        q: ``[tot_q, h_q, d_qk]`` bfloat16 (the cpu target also takes float32).
        k: ``[tot_kv, h_kv, d_qk]``, h_q a multiple of h_kv.
        v: ``[tot_kv, h_kv, d_v]``; it may be a view of the first d_v columns of `k`. (d_qk, d_v) is (192, 128),
            (128, 128) or (576, 512).
        cu_seqlens_qo: ``[batch + 1]`` int32, where each sequence starts in `q`: from 0, non-decreasing, to at most
            tot_q. Rows past the last sequence are not written in `out` and `lse`.
        cu_seqlens_kv: ``[batch + 1]`` int32, the same for `k` and `v`, to at most tot_kv. Empty sequences are legal.
            On a GPU the contents of both are not checked, which would have to wait for the device; bounds outside the
            tensors are clamped to them.
        max_seqlen_qo, max_seqlen_kv: longest sequence, as upstream asks; results do not depend on them.
        dropout_p: only 0.
        softmax_scale: factor of the scores before the softmax; ``d_qk ** -0.5`` when None.
        causal: query i of a sequence sees keys ``j <= i + s_kv - s_q`` (bottom-right aligned).
        deterministic: results are bitwise equal either way.
        is_varlen: sequences may differ in length; equal lengths are served alike.

    Returns:
        ``(out, lse)``: `out` ``[tot_q, h_q, d_v]``; `lse` ``[tot_q, h_q]`` float32, natural logarithm, contiguous along
        tot_q. A query that sees no key has out 0 and lse +inf.

    Raises:
        RuntimeError: an argument does not fit; the message names it, what was expected and what came.
        NotImplementedError: dropout, an input that requires grad, or no compiled target serves the device.

    Source: `flash_dsa.reference.dense_fwd` is the definition; the signature is FlashMLA's.
    """
    if dropout_p != 0.0:
        raise NotImplementedError(f"flash_attn_varlen_func has no dropout: dropout_p expected 0.0, got {dropout_p}")
    return _flash_attn_varlen_forward(
        q,
        k,
        v,
        cu_seqlens_qo,
        cu_seqlens_kv,
        max_seqlen_qo,
        max_seqlen_kv,
        causal=causal,
        softmax_scale=softmax_scale,
        is_varlen=is_varlen,
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`flash_attn_varlen_func` with q, k and v packed along the last dimension.

    Args:
        qkv: ``[tot, h, 2 * d_qk + d_v]``: q, then k, then v.
        cu_seqlens: ``[batch + 1]`` int32, sequences of queries and keys alike.
        max_seqlen: longest sequence.
        head_dim_qk: d_qk.

    Returns:
        ``(out, lse)`` as `flash_attn_varlen_func`.
    """
    q, k, v = qkv.tensor_split((head_dim_qk, 2 * head_dim_qk), dim=-1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        deterministic,
        is_varlen,
    )


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`flash_attn_varlen_func` with k and v packed along the last dimension.

    Args:
        q: ``[tot_q, h_q, d_qk]``.
        kv: ``[tot_kv, h_kv, d_qk + d_v]``: k, then v.
        head_dim_qk: d_qk.

    Returns:
        ``(out, lse)`` as `flash_attn_varlen_func`.
    """
    k, v = kv.tensor_split((head_dim_qk,), dim=-1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_qo,
        cu_seqlens_kv,
        max_seqlen_qo,
        max_seqlen_kv,
        dropout_p,
        softmax_scale,
        causal,
        deterministic,
        is_varlen,
    )


def get_mla_metadata(*args: object, **kwargs: object) -> NoReturn:
    """Upstream's decode scheduling: not provided.

    Raises:
        NotImplementedError: always; flash_dsa serves prefill.
    """
    raise NotImplementedError("get_mla_metadata belongs to decode; flash_dsa serves prefill only")


def flash_mla_with_kvcache(*args: object, **kwargs: object) -> NoReturn:
    """Upstream's decode call: not provided.

    Raises:
        NotImplementedError: always; flash_dsa serves prefill.
    """
    raise NotImplementedError("flash_mla_with_kvcache is decode; flash_dsa serves prefill only")
