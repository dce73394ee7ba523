"""Invented records: what a sweep might have found, in round numbers, without measuring anything."""

from __future__ import annotations

from asv_bench import cases, record
from asv_bench.cases import Problem
from asv_bench.findings import Sweep
from asv_bench.record import Record

CEILING = {"flops": 1e15, "bytes_per_second": 3e12, "source": "invented"}


def number(
    problem: Problem,
    implementation: str,
    seconds: float,
    run: str | None = "run-a",
    noted: dict[str, object] | None = None,
    **changes: object,
) -> Record:
    """A record with a time and an interval of +-1 %.

    Args:
        run: the process; None leaves it out. noted: more telemetry. changes: other values of keys.
    """
    found = record.blank(problem, implementation)
    found |= {
        "valid_fraction": 1.0 if problem.op == "sparse_fwd" else None,
        "backend": "sm80",
        "seconds_median": seconds,
        "seconds_low": seconds * 0.99,
        "seconds_high": seconds * 1.01,
        "samples": 80,
        "power_capped": False,
        "peak_bytes": 1_000_000_000,
        "tflops": problem.flops / seconds / 1e12,
        "max_abs_err": 2.4e-5,
        "commit": "c" * 40,
        "dirty": False,
        "machine": "invented",
        "gpu": "NVIDIA Invented",
        "protocol": "cuda-burst-v1",
        "timestamp": "2026-11-22T12:00:00+00:00",
        "telemetry": {"tree": "t", "seed": 0, "ceiling": CEILING, "torch": "2.11"} | (noted or {}),
    }
    if run is not None:
        found["telemetry"]["run"] = run
    return found | changes


def failure(problem: Problem, implementation: str, error: str, **changes: object) -> Record:
    """A record without a time."""
    nothing = dict.fromkeys(("seconds_median", "seconds_low", "seconds_high", "tflops", "max_abs_err", "peak_bytes"))
    return number(problem, implementation, 1.0, **({**nothing, "samples": 0, "error": error} | changes))


def seed_sweep() -> list[Record]:
    """The six seed shapes: naive 8 times and the peer half as long as ours, dense as its FLOPs say."""
    records = []
    for case in cases.cases_of("seed"):
        problem = case.problem
        if problem.op == "sparse_fwd":
            ours = problem.flops / 250e12
            records += [
                number(problem, "flash_dsa", ours),
                number(problem, "naive", 8 * ours),
                failure(problem, "sdpa", "unsupported: scaled_dot_product_attention has no sparse indices"),
                number(problem, "flash_mla", ours / 2),
            ]
        else:
            ours = problem.flops / 200e12
            fits, short = problem.s_kv < 131072, problem.s_kv <= 16384
            too_long = failure(problem, "naive", "unsupported: naive dense is timed up to s_kv 16384")
            no_room = failure(problem, "flash_dsa", "out_of_memory: tried to allocate <36> GB")
            records += [
                number(problem, "flash_dsa", ours) if fits else no_room,
                number(problem, "naive", 5 * ours) if short else too_long,
                number(problem, "sdpa", 2 * ours, backend="efficient"),
                failure(problem, "flash_mla", "failed: RuntimeError: dense prefill needs SM100"),
            ]
    return records


def prompt_sweep() -> list[Record]:
    """Causal prompts: both at 500 TFLOPS, and sdpa at half of that; no record for topk 512 at 2048."""
    records = []
    for case in cases.cases_of("prompt"):
        seconds = case.problem.flops / 500e12
        if case.problem.op == "dense_fwd":
            records.append(number(case.problem, "sdpa", 2 * seconds))
        if (case.problem.topk, case.problem.s_kv) != (512, 2048):
            records.append(number(case.problem, "flash_dsa", seconds))
    return records


def sweep_of(*records: Record) -> Sweep:
    """Records as a sweep."""
    return Sweep("invented", record.in_order(records))
