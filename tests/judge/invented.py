"""Invented evidence and result files in round numbers."""

from __future__ import annotations

from typing import Any

from ci.stats import Block, Burst
from ci.verdict import Evidence

NOISE = (0.0004, -0.0004, 0.0, 0.0002, -0.0002)  # of log ratios, cycling


def blocks(
    ratio: float,
    count: int = 8,
    seconds: float = 3.6e-3,
    *,
    clock: float = 1.0,
    capped: bool | None = False,
    cycles: bool = True,
    discarded: int = 0,
) -> tuple[Block, ...]:
    """ABBA blocks of a known ratio.

    Args:
        ratio: head's seconds over base's. count: of blocks. seconds: of base.
        clock: head's clock over base's. capped: whether the power cap held. cycles: whether they are known.
        discarded: samples dropped per burst, beside eight kept.
    """

    def burst(time: float, hertz: float) -> Burst:
        lost = {"starved": discarded} if discarded else {}
        return Burst([time] * 8, [time * hertz] * 8 if cycles else None, lost, capped)

    made = []
    for number in range(count):
        head = seconds * ratio * (1 + NOISE[number % len(NOISE)])
        order = "AB" if number % 2 == 0 else "BA"
        made.append(Block(burst(seconds, 1.7e9), burst(head, 1.7e9 * clock), order))  # type: ignore[arg-type]
    return tuple(made)


def evidence(ratio: float = 1.0, name: str = "case", **changes: Any) -> Evidence:
    """A case on a GPU, with eight blocks of this ratio."""
    return Evidence(name, "cuda", blocks(ratio, **changes))


def problem(op: str = "sparse_fwd", s_kv: int = 8192, topk: int | None = 1024, **changes: Any) -> dict[str, Any]:
    """The fields of a problem as a record has them."""
    fields: dict[str, Any] = {"op": op, "s_q": 4096, "s_kv": s_kv, "h_q": 128, "h_kv": 1, "d_qk": 576, "d_v": 512}
    fields |= {"topk": topk, "causal": None, "indices": "seed", "features": "none"}
    if op == "dense_fwd":
        fields |= {"h_kv": 128, "topk": None, "causal": False, "indices": None}
    return fields | changes


def run_file(side: str, cases: dict[str, tuple[dict[str, Any], tuple[Block, ...]]], **info: Any) -> dict[str, Any]:
    """A side's document.

    Args:
        side: `base` or `head`. cases: problem and blocks by id. info: replaces parts of `machine_info.flash_dsa`.
    """
    benchmarks = []
    for name, (fields, taken) in cases.items():
        bursts = []
        for number, block in enumerate(taken):
            burst: Burst = getattr(block, side)
            found = {"block": number, "order": block.order, "seconds": burst.seconds, "cycles": burst.cycles}
            bursts.append(found | {"discarded": dict(burst.discarded), "power_capped": burst.power_capped})
        extra = {"case": name, "problem": fields, "device": "cuda", "backend": "sm90a", "bursts": bursts}
        benchmarks.append({"name": name, "fullname": f"tests/benchmarks::{name}", "stats": {}, "extra_info": extra})
    facts = {
        "commit": {"base": "a" * 40, "head": "b" * 40}[side],
        "machine": "invented",
        "protocol": "cuda-burst-v2",
        "suite": "suite-1",
        "environment": {"gpu": "NVIDIA Invented", "driver": "580.1", "torch": "2.13.0", "sm_clock_mhz": 1725.0},
        "fingerprint": None,
    }
    return {"machine_info": {"flash_dsa": facts | info}, "benchmarks": benchmarks, "version": "5.3.1"}
