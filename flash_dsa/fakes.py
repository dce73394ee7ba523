"""Fake kernels: what torch.compile, FakeTensor and the meta device are told about the ops.

They check shapes alone, with the words and in the order of kernels/check.h and kernels/<op>/op.cpp; dtypes, devices,
strides and values are checked by the op when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import flash_dsa.library  # noqa: F401  defines the ops

_MAX_SIZE = 2**30  # kMaxSize in kernels/check.h


@dataclass(frozen=True)
class _Checker:
    """The shape checks of one op. Sizes may be symbolic: torch._check guards them, or asserts when the program runs."""

    op: str

    def that(self, holds: bool, name: str, expected: str, got: object) -> None:
        torch._check(holds, lambda: f"{self.op}: `{name}` expected {expected}, got {got}")

    def rank(self, name: str, tensor: torch.Tensor, shape: str, dims: int) -> None:
        self.that(tensor.dim() == dims, name, f"shape {shape}", list(tensor.shape))

    def size(self, name: str, tensor: torch.Tensor, dim: int, expected: int, meaning: str) -> None:
        self.that(
            tensor.shape[dim] == expected,
            name,
            f"{meaning} = {expected} in dimension {dim}",
            f"shape {list(tensor.shape)}",
        )

    def at_most_max_size(self, name: str, tensor: torch.Tensor, dim: int, meaning: str) -> None:
        self.that(
            tensor.shape[dim] <= _MAX_SIZE,
            name,
            f"{meaning} <= {_MAX_SIZE} in dimension {dim}",
            f"shape {list(tensor.shape)}",
        )

    def shape(self, name: str, tensor: torch.Tensor, meaning: str, sizes: list[int]) -> None:
        self.rank(name, tensor, meaning, len(sizes))
        for actual, expected in zip(tensor.shape, sizes, strict=True):
            self.that(actual == expected, name, f"shape {meaning} = {sizes}", list(tensor.shape))


def _check_sparse(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    d_v: int,
    attn_sink: torch.Tensor | None,
    topk_length: torch.Tensor | None,
) -> _Checker:
    check = _Checker("sparse_fwd")
    check.rank("q", q, "[s_q, h_q, d_qk]", 3)
    check.rank("kv", kv, "[s_kv, h_kv, d_qk]", 3)
    check.rank("indices", indices, "[s_q, h_kv, topk]", 3)
    s_q, h_q, d_qk = q.shape
    check.that(d_qk == 576 or d_qk == 512, "q", "d_qk 576 or 512", d_qk)
    check.that(d_v == 512, "d_v", "512", d_v)
    check.that(h_q >= 1, "q", "h_q >= 1", f"shape {list(q.shape)}")
    check.that(indices.shape[2] >= 1, "indices", "topk >= 1", f"shape {list(indices.shape)}")
    check.at_most_max_size("q", q, 1, "h_q")
    check.at_most_max_size("indices", indices, 2, "topk")
    check.size("kv", kv, 1, 1, "h_kv")
    check.size("kv", kv, 2, d_qk, "d_qk")
    check.size("indices", indices, 0, s_q, "s_q")
    check.size("indices", indices, 1, 1, "h_kv")
    if attn_sink is not None:
        check.shape("attn_sink", attn_sink, "[h_q]", [h_q])
    if topk_length is not None:
        check.shape("topk_length", topk_length, "[s_q]", [s_q])
    return check


@torch.library.register_fake("flash_dsa::sparse_fwd")
def _sparse_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int,
    attn_sink: torch.Tensor | None,
    topk_length: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_sparse(q, kv, indices, d_v, attn_sink, topk_length)
    s_q, h_q = q.shape[:2]
    max_logits = q.new_empty((s_q, h_q), dtype=torch.float32)
    return q.new_empty((s_q, h_q, d_v)), max_logits, torch.empty_like(max_logits)


@torch.library.register_fake("flash_dsa::sparse_fwd_out")
def _sparse_fwd_out(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int,
    attn_sink: torch.Tensor | None,
    topk_length: torch.Tensor | None,
    out: torch.Tensor,
    max_logits: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    check = _check_sparse(q, kv, indices, d_v, attn_sink, topk_length)
    check.shape("out", out, "[s_q, h_q, d_v]", [*q.shape[:2], d_v])
    check.shape("max_logits", max_logits, "[s_q, h_q]", [*q.shape[:2]])
    check.shape("lse", lse, "[s_q, h_q]", [*q.shape[:2]])


def _check_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
) -> _Checker:
    check = _Checker("dense_fwd")
    check.rank("q", q, "[tot_q, h_q, d_qk]", 3)
    check.rank("k", k, "[tot_kv, h_kv, d_qk]", 3)
    check.rank("v", v, "[tot_kv, h_kv, d_v]", 3)
    (h_q, d_qk), h_kv, d_v = q.shape[1:], k.shape[1], v.shape[2]
    known = (d_qk == 192 and d_v == 128) or (d_qk == 128 and d_v == 128) or (d_qk == 576 and d_v == 512)
    if not known:
        expected = "(d_qk, d_v) = (192, 128), (128, 128) or (576, 512)"
        raise RuntimeError(f"dense_fwd: `q` and `v` expected {expected}, got ({d_qk}, {d_v})")
    check.at_most_max_size("q", q, 0, "tot_q")
    check.at_most_max_size("q", q, 1, "h_q")
    check.at_most_max_size("k", k, 0, "tot_kv")
    check.at_most_max_size("k", k, 1, "h_kv")
    check.size("k", k, 2, d_qk, "d_qk")
    check.size("v", v, 0, k.shape[0], "tot_kv")
    check.size("v", v, 1, h_kv, "h_kv")
    got = f"h_q = {h_q}, h_kv = {h_kv}"
    check.that(h_q >= 1 and h_kv >= 1 and h_q % h_kv == 0, "q", "h_q to be a multiple of h_kv, both >= 1", got)
    for name, starts in (("cu_seqlens_qo", cu_seqlens_qo), ("cu_seqlens_kv", cu_seqlens_kv)):
        check.rank(name, starts, "[batch + 1]", 1)
        check.at_most_max_size(name, starts, 0, "batch + 1")
        check.that(starts.shape[0] >= 1, name, "shape [batch + 1]", "[0]")
    check.size("cu_seqlens_kv", cu_seqlens_kv, 0, cu_seqlens_qo.shape[0], "batch + 1")
    return check


@torch.library.register_fake("flash_dsa::dense_fwd")
def _dense_fwd(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    softmax_scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_dense(q, k, v, cu_seqlens_qo, cu_seqlens_kv)
    tot_q, h_q = q.shape[:2]
    return q.new_empty((tot_q, h_q, v.shape[2])), q.new_empty((h_q, tot_q), dtype=torch.float32).T


@torch.library.register_fake("flash_dsa::dense_fwd_out")
def _dense_fwd_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    softmax_scale: float,
    causal: bool,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    check = _check_dense(q, k, v, cu_seqlens_qo, cu_seqlens_kv)
    check.shape("out", out, "[tot_q, h_q, d_v]", [*q.shape[:2], v.shape[2]])
    check.shape("lse", lse, "[tot_q, h_q]", [*q.shape[:2]])
