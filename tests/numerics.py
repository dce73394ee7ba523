"""Inputs and comparisons that the kernel tests share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch

import flash_dsa
from asv_bench.numerics import TOLERANCES, difference
from flash_dsa import reference

INT_MIN, INT_MAX = -(2**31), 2**31 - 1

# KiB a block may use: SM90 and SM100; SM80; SM86, SM89 and SM120. FLASH_DSA_TEST_SMEM_KB caps a larger GPU to each.
SHARED_MEMORY = (227, 163, 99)

# float32 inputs leave only float32's own rounding.
FLOAT32_TOLERANCE = 2e-5


def generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def normal(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, random: torch.Generator, deviation: float = 0.1
) -> torch.Tensor:
    return (torch.randn(shape, device=device, generator=random) * deviation).to(dtype)


@dataclass
class SparseCall:
    """Arguments of one `flash_mla_sparse_fwd`."""

    q: torch.Tensor
    kv: torch.Tensor
    indices: torch.Tensor
    sm_scale: float
    attn_sink: torch.Tensor | None = None
    topk_length: torch.Tensor | None = None

    def run(self, out: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return flash_dsa.flash_mla_sparse_fwd(
            self.q,
            self.kv,
            self.indices,
            self.sm_scale,
            attn_sink=self.attn_sink,
            topk_length=self.topk_length,
            out=out,
        )

    def expected(self, queries: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = slice(None) if queries is None else queries
        length = None if self.topk_length is None else self.topk_length[rows]
        return reference.sparse_fwd(
            self.q[rows],
            self.kv,
            self.indices[rows],
            self.sm_scale,
            attn_sink=self.attn_sink,
            topk_length=length,
        )

    def check(self, queries: torch.Tensor | None = None) -> None:
        """Run twice; compare with the reference and with the first run."""
        first, second = self.run(), self.run()
        rows = slice(None) if queries is None else queries
        for name, actual, again, expected in zip(
            ("out", "max_logits", "lse"), first, second, self.expected(queries), strict=True
        ):
            assert torch.equal(actual, again), f"{name} differs between two runs"
            assert_right("sparse_fwd", name, actual[rows], expected)


def sparse_call(
    device: torch.device,
    s_q: int,
    s_kv: int,
    h_q: int,
    topk: int,
    d_qk: int = 576,
    *,
    features: str = "",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> SparseCall:
    """A call whose indices are one in five out of range, with the features named: sink, length, strided.

    Scores have deviation 1.5, so that the softmax is far from uniform.
    """
    random = generator(device, seed)
    if "strided" in features:
        q = normal((s_q, h_q + 1, d_qk + 64), device, dtype, random, 5.0)[:, 1:, 64:]
        kv = normal((s_kv, 2, d_qk + 8), device, dtype, random)[:, 1:, 8:]
    else:
        q = normal((s_q, h_q, d_qk), device, dtype, random, 5.0)
        kv = normal((s_kv, 1, d_qk), device, dtype, random)
    margin = max(1, s_kv // 8)
    indices = torch.randint(-margin, s_kv + margin, (s_q, 1, topk), device=device, generator=random, dtype=torch.int32)
    call = SparseCall(q, kv, indices, 3 * d_qk**-0.5)
    if "sink" in features:
        call.attn_sink = torch.randn(h_q, device=device, generator=random)
        call.attn_sink[0] = float("inf")
        call.attn_sink[-1] = float("-inf")
    if "length" in features:
        call.topk_length = torch.randint(-2, topk + 9, (s_q,), device=device, generator=random, dtype=torch.int32)
        call.topk_length[-1] = 0
    return call


@dataclass
class DenseCall:
    """Arguments of one `flash_attn_varlen_func`."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens_qo: torch.Tensor
    cu_seqlens_kv: torch.Tensor
    causal: bool
    max_seqlen_qo: int
    max_seqlen_kv: int
    softmax_scale: float | None = None

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        return flash_dsa.flash_attn_varlen_func(
            self.q,
            self.k,
            self.v,
            self.cu_seqlens_qo,
            self.cu_seqlens_kv,
            self.max_seqlen_qo,
            self.max_seqlen_kv,
            softmax_scale=self.softmax_scale,
            causal=self.causal,
        )

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.dense_fwd(
            self.q,
            self.k,
            self.v,
            self.cu_seqlens_qo,
            self.cu_seqlens_kv,
            softmax_scale=self.softmax_scale,
            causal=self.causal,
        )

    def check(self) -> None:
        """Run twice; compare with the reference and with the first run."""
        for name, actual, again, expected in zip(("out", "lse"), self.run(), self.run(), self.expected(), strict=True):
            assert torch.equal(actual, again), f"{name} differs between two runs"
            assert_right("dense_fwd", name, actual, expected)


def dense_call(
    device: torch.device,
    lengths_q: list[int],
    lengths_kv: list[int],
    h_q: int,
    h_kv: int,
    head_dims: tuple[int, int],
    *,
    causal: bool = False,
    values_in_keys: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> DenseCall:
    """A call on packed sequences whose scores have deviation 1, so that the softmax is far from uniform.

    With `values_in_keys`, V is the first d_v columns of K's own storage.
    """
    random = generator(device, seed)
    d_qk, d_v = head_dims
    deviation = 0.3 if values_in_keys else 1.0
    q = normal((sum(lengths_q), h_q, d_qk), device, dtype, random, 1.0 / deviation)
    k = normal((sum(lengths_kv), h_kv, d_qk), device, dtype, random, deviation)
    v = k[..., :d_v] if values_in_keys else normal((sum(lengths_kv), h_kv, d_v), device, dtype, random)
    starts_q, starts_kv = (
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device) for lengths in (lengths_q, lengths_kv)
    )
    return DenseCall(q, k, v, starts_q, starts_kv, causal, max(lengths_q, default=0), max(lengths_kv, default=0))


def assert_right(op: str, name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within the tolerance of the dtype; infinities and NaN in the same places."""
    if name == "out" and actual.dtype == torch.float32:
        limits = {"rtol": FLOAT32_TOLERANCE, "atol": FLOAT32_TOLERANCE}
        torch.testing.assert_close(actual.double(), expected, **limits, equal_nan=True)
        return
    wrong = difference(actual, expected, TOLERANCES[op][name])
    assert wrong is None, f"{op} {name}: {wrong}"
