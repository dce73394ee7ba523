"""What a call has to do, and what a GPU can do at most: the two sides of a roofline.

Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BYTES = 2  # of an element, bfloat16


@dataclass(frozen=True)
class Peak:
    """What a GPU can do at most, at bfloat16 without sparsity.

    Args:
        flops_per_cycle: of all multiprocessors together. bytes_per_second: between its memory and them.
        source: what both are from.
    """

    flops_per_cycle: int
    bytes_per_second: float
    source: str


# By a part of the GPU's name: multiprocessors, FLOP per cycle of each, bytes/s, and the clock at which their product is
# the FLOP/s of NVIDIA's datasheet.
_GPUS = (
    ("H100 80GB HBM3", 132, 4096, 3.35e12, 1830),
    ("H200", 132, 4096, 4.8e12, 1830),
    ("H100 PCIe", 114, 4096, 2.0e12, 1620),
    ("A100-SXM4-80GB", 108, 2048, 2.04e12, 1410),
)


def peak_of(gpu: str | None) -> Peak | None:
    """The peak of a GPU by its name; None where it is not known."""
    for known, multiprocessors, flops, bandwidth, clock in _GPUS:
        if gpu and known in gpu:
            at = multiprocessors * flops * clock * 1e6
            source = f"{multiprocessors} multiprocessors x {flops} FLOP a cycle: {at / 1e12:.4g} TFLOPS at {clock} MHz"
            return Peak(multiprocessors * flops, bandwidth, f"{source}; {bandwidth / 1e12:g} TB/s")
    return None


def flops_of(problem: Mapping[str, Any]) -> int | None:
    """FLOPs of a call: 2 * h_q * (d_qk + d_v) for each pair of query and key that counts.

    Args:
        problem: the fields of a record.
    Returns:
        None where fields lack, or a feature makes the pairs depend on more than these fields say.
    """
    pairs = _pairs(problem)
    if pairs is None:
        return None
    return int(2 * problem["h_q"] * (problem["d_qk"] + problem["d_v"]) * pairs)


def bytes_of(problem: Mapping[str, Any]) -> int | None:
    """Compulsory traffic of a call in bytes: inputs read once, outputs written once; None as for `flops_of`."""
    if _pairs(problem) is None:
        return None
    rows = problem["s_q"] * problem["h_q"]
    shared = problem["op"] == "sparse_fwd" or problem["features"] == "values_in_keys"  # V in K's memory
    per_key = problem["d_qk"] if shared else problem["d_qk"] + problem["d_v"]
    total = rows * (problem["d_qk"] + problem["d_v"]) * _BYTES + rows * 4  # q, out, lse
    total += problem["s_kv"] * problem["h_kv"] * per_key * _BYTES
    if problem["op"] == "sparse_fwd":
        total += problem["s_q"] * problem["topk"] * 4 + rows * 4  # indices, max_logits
    return int(total)


def _pairs(problem: Mapping[str, Any]) -> int | None:
    sizes = [problem.get(name) for name in ("s_q", "s_kv", "h_q", "h_kv", "d_qk", "d_v")]
    known = ("none", "attn_sink", "values_in_keys")
    if any(type(size) is not int or size < 1 for size in sizes) or problem.get("features") not in known:
        return None
    s_q, s_kv = int(problem["s_q"]), int(problem["s_kv"])
    if problem.get("op") == "sparse_fwd":
        topk = problem.get("topk")
        return s_q * topk if type(topk) is int and topk > 0 else None
    if problem.get("op") != "dense_fwd":
        return None
    if problem.get("causal"):
        return sum(max(0, s_kv - s_q + 1 + query) for query in range(s_q))
    return s_q * s_kv
