"""Inputs: tensors made from (problem, seed, device).

Indices come from integer hashes of (seed, row, slot), so they are the same on every device and for every chunk size.
Sampling without repeats is a keyed bijection of [0, n), so nothing of size s_q * s_kv is ever made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from asv_bench.cases import Problem

NEAR_TOKENS = 20_000  # the seed draws 31 of 32 indices from this many last tokens
MISSING_INDEX = 2_147_480_000  # what the seed writes into slots beyond s_kv
_CHUNK_SLOTS = 1 << 22  # index slots per chunk: 32 MiB per temporary
_CHUNK_ELEMENTS = 1 << 28  # elements per random fill
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call.

    Args:
        problem: what they were made for. seed: what they were made from.
        arguments: keyword arguments of the public call of the op (`flash_mla_sparse_fwd` or `flash_attn_varlen_func`);
            `attn_sink` and `topk_length` are there only when the problem has the feature.
        valid_fraction: share of index slots that count and are in range; None for `dense_fwd`.
    """

    problem: Problem
    seed: int
    arguments: dict[str, Any]
    valid_fraction: float | None

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        device: torch.device = self.arguments["q"].device
        return device

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The arguments that are tensors."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, torch.Tensor)}


def make(problem: Problem, seed: int, device: torch.device | str) -> Inputs:
    """Tensors of one call, deterministic in (problem, seed) on one kind of device.

    Args:
        problem: shape and features.
        seed: any int.
        device: where the tensors live.
    Returns:
        Inputs with q [s_q, h_q, d_qk], and either kv [s_kv, 1, d_qk] with indices [s_q, 1, topk] int32 or
        k [s_kv, h_kv, d_qk] with v [s_kv, h_kv, d_v] (of k's memory under `values_in_keys`) and cu_seqlens; bfloat16,
        normal with deviation 0.1, clamped to +-10 as in the seed.
    """
    device = torch.device(device)
    scale = problem.d_qk**-0.5

    def normal(name: str, *shape: int) -> torch.Tensor:
        return _normal(shape, _key(problem, seed, name), device)

    q = normal("q", problem.s_q, problem.h_q, problem.d_qk)
    if problem.op == "dense_fwd":
        k = normal("k", problem.s_kv, problem.h_kv, problem.d_qk)
        in_keys = "values_in_keys" in problem.feature_names
        arguments: dict[str, Any] = {
            "q": q,
            "k": k,
            "v": k[..., : problem.d_v] if in_keys else normal("v", problem.s_kv, problem.h_kv, problem.d_v),
            "cu_seqlens_qo": torch.tensor([0, problem.s_q], dtype=torch.int32, device=device),
            "cu_seqlens_kv": torch.tensor([0, problem.s_kv], dtype=torch.int32, device=device),
            "max_seqlen_qo": problem.s_q,
            "max_seqlen_kv": problem.s_kv,
            "softmax_scale": scale,
            "causal": problem.causal,
        }
        return Inputs(problem, seed, arguments, None)
    assert problem.topk is not None
    indices = make_indices(problem, seed, device)
    arguments = {
        "q": q,
        "kv": normal("kv", problem.s_kv, 1, problem.d_qk),
        "indices": indices.unsqueeze(1),
        "sm_scale": scale,
        "d_v": problem.d_v,
    }
    valid = (indices >= 0) & (indices < problem.s_kv)
    if "attn_sink" in problem.feature_names:
        generator = torch.Generator(device).manual_seed(_key(problem, seed, "attn_sink"))
        arguments["attn_sink"] = torch.randn(problem.h_q, generator=generator, device=device, dtype=torch.float32)
    if "topk_length" in problem.feature_names:
        length = torch.arange(problem.s_q, device=device) + (1 + problem.s_kv - problem.s_q)
        length = length.clamp(0, problem.topk)
        arguments["topk_length"] = length.to(torch.int32)
        valid &= torch.arange(problem.topk, device=device) < length.unsqueeze(1)
    return Inputs(problem, seed, arguments, valid.sum().item() / valid.numel())


def alter(inputs: Inputs) -> None:
    """Changes the values of all tensors in place, and nothing that time depends on.

    Floating-point tensors change sign and rows of indices move on by one query, so that no result of the tensors as
    they were is right, and neither is one of some tensors as they were and the others as they are. Altered once more,
    signs are back and rows are not.

    Args:
        inputs: of `make`.
    """
    negated = set()
    for name in ("q", "kv", "k", "v", "attn_sink"):
        tensor = inputs.arguments.get(name)
        if tensor is not None and tensor.untyped_storage().data_ptr() not in negated:
            negated.add(tensor.untyped_storage().data_ptr())
            tensor.neg_()
    for name in ("indices", "topk_length"):
        if name in inputs.arguments:
            inputs.arguments[name].copy_(inputs.arguments[name].roll(1, 0))


def make_indices(
    problem: Problem, seed: int, device: torch.device | str, chunk_slots: int = _CHUNK_SLOTS
) -> torch.Tensor:
    """Indices of a sparse problem, the same for every device and chunk size.

    Args:
        problem: a `sparse_fwd` problem; its `indices` names the distribution.
            `seed`: each of min(topk, s_kv) slots is, with probability 31/32, drawn with replacement from
            [max(0, s_kv - 20000), s_kv - 1), as the notebook does; the others come from a permutation of s_kv; slots
            beyond s_kv hold 2147480000; each row is shuffled.
            `uniform`: without repeats from [0, s_kv); slots beyond s_kv hold -1.
            `causal_prompt`: query i has min(i + 1 + s_kv - s_q, topk) indices without repeats from the tokens up to its
            own, then -1.
        seed: any int.
        device: where to make them.
        chunk_slots: slots made at a time; bounds the memory of temporaries.
    Returns:
        [s_q, topk] int32
    """
    if problem.topk is None:
        raise ValueError("indices: expected a sparse_fwd problem, got dense_fwd")
    device = torch.device(device)
    fill: Callable[..., torch.Tensor] = _seed_rows if problem.indices == "seed" else _distinct_rows
    key = _key(problem, seed, "indices") & _WORD
    indices = torch.empty(problem.s_q, problem.topk, dtype=torch.int32, device=device)
    rows_per_chunk = max(1, chunk_slots // problem.topk)
    for first in range(0, problem.s_q, rows_per_chunk):
        rows = torch.arange(first, min(first + rows_per_chunk, problem.s_q), device=device).unsqueeze(1)
        indices[first : first + rows_per_chunk] = fill(problem, key, rows)
    return indices


def _seed_rows(problem: Problem, key: int, rows: torch.Tensor) -> torch.Tensor:
    s_kv, topk = problem.s_kv, problem.topk
    assert topk is not None
    slots = torch.arange(topk, device=rows.device).unsqueeze(0)
    low = max(0, s_kv - NEAR_TOKENS)
    span = max(1, s_kv - 1 - low)  # the last token is never drawn as near: torch.randint excludes its upper end
    near = low + _hash(key, 1, rows, slots) % span
    far = torch.full_like(near, MISSING_INDEX)
    drawn = min(topk, s_kv)
    sizes = torch.full_like(rows, s_kv)
    far[:, :drawn] = _permute(key + 2, rows, slots[:, :drawn].expand(rows.shape[0], -1), sizes)
    is_near = ((_hash(key, 3, rows, slots) & 31) < 31) & (slots < drawn)
    ordered = torch.where(is_near, near, far)
    shuffle = _permute(key + 4, rows, slots.expand(rows.shape[0], -1), torch.full_like(rows, topk))
    return ordered.gather(1, shuffle).to(torch.int32)


def _distinct_rows(problem: Problem, key: int, rows: torch.Tensor) -> torch.Tensor:
    assert problem.topk is not None
    sizes = torch.full_like(rows, problem.s_kv)
    if problem.indices == "causal_prompt":
        sizes = rows + (1 + problem.s_kv - problem.s_q)
    slots = torch.arange(problem.topk, device=rows.device).unsqueeze(0)
    valid = slots < sizes
    drawn = _permute(key + 5, rows, torch.where(valid, slots, 0), sizes)
    return torch.where(valid, drawn, -1).to(torch.int32)


def _permute(key: int, rows: torch.Tensor, values: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """A keyed bijection of [0, size) for each row, applied to values.

    Rounds of multiply-add by an odd number modulo a power of two and xor-shift are bijections of [0, 2^bits); values
    that land outside [0, size) walk on until they are inside, which keeps it a bijection of [0, size).
    Source: cycle walking, Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.

    Args:
        key: which permutation. rows: [n, 1] int64. values: [n, m] int64, below sizes. sizes: [n, 1] int64, >= 1.
    Returns:
        [n, m] int64
    """
    bits = torch.ones_like(sizes)
    while bool((too_small := (1 << bits) < sizes).any()):
        bits += too_small
    mask, shift = (1 << bits) - 1, (bits + 1) // 2
    rounds = [(_hash(key, 11 + i, rows, 0) | 1, _hash(key, 21 + i, rows, 1)) for i in range(4)]

    def step(x: torch.Tensor, at: torch.Tensor | None) -> torch.Tensor:
        def pick(constant: torch.Tensor) -> torch.Tensor:
            return constant if at is None else constant.squeeze(1)[at]

        for multiplier, addend in rounds:
            # Both factors are below 2^31 and x below 2^bits, so nothing overflows 63 bits.
            x = (x * (pick(multiplier) & pick(mask)) + pick(addend)) & pick(mask)
            x = x ^ (x >> pick(shift))
        return x

    result = step(values, None)
    outside = (result >= sizes).nonzero(as_tuple=True)
    while outside[0].numel():
        walked = step(result[outside], outside[0])
        result[outside] = walked
        still = walked >= sizes.squeeze(1)[outside[0]]
        outside = (outside[0][still], outside[1][still])
    return result


def _hash(key: int, stream: int, rows: torch.Tensor, slots: torch.Tensor | int) -> torch.Tensor:
    """31 random-looking bits for each (row, slot) in int64: two chained 32-bit finalisers."""
    row = _mix(rows * 0x9E3779B1 + ((key * 0x85EBCA77 + stream * 0xC2B2AE3D) & _WORD))
    return _mix(row + slots * 0x27D4EB2F) & 0x7FFFFFFF


def _mix(x: torch.Tensor) -> torch.Tensor:
    """32-bit finaliser of two xor-multiply rounds; multipliers below 2^31 keep products inside int64."""
    x = x & _WORD
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _WORD
    return x ^ (x >> 15)


def _normal(shape: tuple[int, ...], key: int, device: torch.device) -> torch.Tensor:
    """bfloat16 normal numbers of deviation 0.1, made in place and in chunks: no fp32 copy of a 19 GB tensor."""
    tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
    generator = torch.Generator(device).manual_seed(key)
    rows = max(1, _CHUNK_ELEMENTS // max(1, tensor[0].numel()))
    for chunk in tensor.split(rows):
        chunk.normal_(0.0, 0.1, generator=generator).clamp_(-10.0, 10.0)
    return tensor


def _key(problem: Problem, seed: int, name: str) -> int:
    """63 bits that depend on the problem, the seed and the tensor's name."""
    text = repr((sorted(problem.fields.items(), key=lambda item: item[0]), seed, name))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") & (2**63 - 1)
