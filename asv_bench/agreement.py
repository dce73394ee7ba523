"""Agreement: how far two processes differ in the time of an unchanged kernel, for several ways of sampling.

It is what a protocol is chosen by. Each way is a `SamplingProtocol`; fresh processes take every way on kernels from
microseconds to many milliseconds, and what counts is how far the medians of two processes lie apart in 95 % of pairs,
in seconds and in SM cycles, and the machine time that costs.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asv_bench import record, sampling, schema
from asv_bench.cases import Problem, dense_case, sparse_case
from asv_bench.sampling import CPU_PROTOCOL, CUDA_PROTOCOL, SamplingProtocol
from asv_bench.tables import Table

SCHEMA = 1
FILE = "agreement.json"
_UNFINISHED = ".agreement.running"
_CHILD_SECONDS = 300


def _bursts(milliseconds: float, rest: float, bursts: int, **changes: Any) -> SamplingProtocol:
    """Bursts of a length in time, with as many launches as fit."""
    long = {"launches_max": 300, "dropped_max": 2, "settle_seconds": 0.030, "budget_seconds": 1.2}
    return replace(
        CUDA_PROTOCOL,
        **{**long, "burst_seconds": milliseconds / 1e3, "rest_seconds": rest / 1e3, "bursts": bursts, **changes},
    )


def _counted(launches: int, dropped: int, rest: float, bursts: int, **changes: Any) -> SamplingProtocol:
    """Bursts of a number of launches, however long those take."""
    counts = {"launches_min": launches, "launches_max": launches, "dropped_min": dropped, "dropped_max": dropped}
    return _bursts(1e6, rest, bursts, **counts, **changes)


CUDA_WAYS: dict[str, SamplingProtocol] = {
    "hot, no rest": _bursts(900, 0, 1, dropped_max=20, settle_seconds=0.2),
    "single launches, 20 ms rest": _counted(1, 0, 20, 24),
    "4 launches after 1, 20 ms rest": _counted(4, 1, 20, 16),
    "8 launches after 2, 60 ms rest": _counted(8, 2, 60, 10),
    "8 launches after 2, 60 ms rest, warm L2": _counted(8, 2, 60, 10, flush=False),
    "bursts of 15 ms, 30 ms rest": _bursts(15, 30, 14),
    "bursts of 30 ms, 30 ms rest": _bursts(30, 30, 12),
    "bursts of 30 ms, 30 ms rest, warm L2": _bursts(30, 30, 12, flush=False),
    "bursts of 30 ms, 60 ms rest": _bursts(30, 60, 10),
    "bursts of 60 ms, 20 ms rest": _bursts(60, 20, 10),
    "bursts of 60 ms, 120 ms rest": _bursts(60, 120, 6),
    CUDA_PROTOCOL.label: CUDA_PROTOCOL,
}
CPU_WAYS: dict[str, SamplingProtocol] = {
    "single launches": replace(CPU_PROTOCOL, launches_max=1, dropped_max=0, bursts=20),
    "5 launches after 1": replace(CPU_PROTOCOL, launches_max=5, burst_seconds=1.0),
    "2 launches after 1, 20 ms rest": replace(CPU_PROTOCOL, rest_seconds=0.020),
    CPU_PROTOCOL.label: CPU_PROTOCOL,
}
# Chosen for their times on an H100 and on two CPU cores: about 0.05, 0.4, 4 and 40 ms; 1, 10 and 100 ms.
CUDA_KERNELS: tuple[Problem, ...] = (
    sparse_case(64, 65536, 512).problem,
    sparse_case(160, 65536, 2048).problem,
    sparse_case(2112, 65536, 2048).problem,
    dense_case(4096, 10240, 128, 128, 576, 512).problem,
)
CPU_KERNELS: tuple[Problem, ...] = (
    sparse_case(32, 4096, 256, h_q=16).problem,
    sparse_case(320, 4096, 256, h_q=16).problem,
    dense_case(32, 16384, 16, 16, 576, 512).problem,
)


def measure_here(device: str) -> list[dict[str, Any]]:
    """Takes every way on every kernel in this process, in an order of its own.

    Args:
        device: `cpu` or `cuda`.
    Returns:
        A row per kernel and way: `kernel` (its number), `way`, `seconds`, `cycles` (or None), `machine_seconds`,
        `power_capped`, `discarded`.
    """
    import torch

    from asv_bench import implementations, inputs, telemetry

    clock = sampling.for_device(device)[1]
    conditions = telemetry.conditions_of(torch.device(device))
    rows = []
    for number, problem in enumerate(CUDA_KERNELS if device == "cuda" else CPU_KERNELS):
        made = inputs.make(problem, 0, torch.device(device))
        call = implementations.get("flash_dsa").bind(problem, made).call
        ways = list((CUDA_WAYS if device == "cuda" else CPU_WAYS).items())
        random.shuffle(ways)
        for way, protocol in ways:
            subject = sampling.Subject(way, call, protocol, clock, conditions=conditions)
            begin = time.perf_counter()
            subject.warm_up()
            while not subject.finished:
                subject.burst()
            found = subject.conclude()
            rows.append(
                {
                    "kernel": number,
                    "way": way,
                    "seconds": found.interval.median if found.error is None else None,
                    "cycles": found.cycles_median if found.error is None else None,
                    "machine_seconds": round(time.perf_counter() - begin, 3),
                    "power_capped": found.power_capped,
                    "discarded": found.discarded,
                }
            )
        del made, call
    return rows


def measure(folder: Path, device: str, processes: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Runs fresh processes one after the other and writes what they found.

    What a run that was ended has found is kept and counted, if the machine and the commit are the same and nothing in
    it was uncommitted.

    Args:
        folder: of the machine. device: `cpu` or `cuda`. processes: how many. progress: told after each.
    Returns:
        The document in `agreement.json`: schema, commit, dirty, device facts, kernels, rows with their `process`.
    Raises:
        RuntimeError: when a process fails; what those before it found is kept for the next run.
    """
    from asv_bench import telemetry

    commit, dirty = record.commit_and_dirty()
    kernels = CUDA_KERNELS if device == "cuda" else CPU_KERNELS
    document = {
        "schema": SCHEMA,
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "facts": telemetry.machine_facts(device),
        "kernels": [problem.fields for problem in kernels],
    }
    unfinished = folder / _UNFINISHED
    rows = _kept(unfinished, document, processes) if dirty is False else []
    done = 1 + max((row["process"] for row in rows), default=-1)
    if done:
        progress(f"processes 1 to {done} of {processes} were measured before")
    for number in range(done, processes):
        rows += [{"process": number, **row} for row in _of_fresh_process(number, device)]
        record.ensure_writable(folder)
        record.write_atomically(unfinished, json.dumps({**document, "rows": rows}, allow_nan=False))
        progress(f"process {number + 1} of {processes}")
    document |= {"timer_step": _timer_step(device), "rows": rows}
    record.ensure_writable(folder)
    record.write_atomically(folder / FILE, json.dumps(document, indent=1, allow_nan=False) + "\n")
    unfinished.unlink(missing_ok=True)
    return document


def _of_fresh_process(number: int, device: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "asv_bench", "agree", "--child", "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, cwd=record.ROOT)
    if done.returncode:
        raise RuntimeError(f"process {number} of the agreement failed: {done.stderr.strip()[-500:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def _kept(path: Path, document: dict[str, Any], processes: int) -> list[dict[str, Any]]:
    """Rows of an ended run that has the same `document`; of more processes than these, the first."""
    try:
        kept = schema.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    same = all(kept.get(name) == value for name, value in document.items())
    return [row for row in kept["rows"] if row["process"] < processes] if same else []


def _timer_step(device: str) -> float | None:
    from asv_bench.cycles import Stamps

    return Stamps(device).timer_step() if device == "cuda" else None


def read(folder: Path) -> dict[str, Any]:
    """The document of a folder.

    Raises:
        record.Unreadable: when there is none, or none that can be read.
    """
    path = folder / FILE
    try:
        document: dict[str, Any] = schema.parse(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {document['schema']}")
        table(document)
        measured_on(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise record.Unreadable(f"{path}: {type(error).__name__}: {error}") from error
    return document


def measured_on(document: dict[str, Any]) -> str:
    """Hardware, torch, commit and number of processes, in a sentence."""
    facts = document["facts"]
    hardware = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads"
    commit = document["commit"][:12] + (" with uncommitted changes" if document["dirty"] else "")
    processes = len({row["process"] for row in document["rows"]})
    return f"{processes} fresh processes on {hardware}; torch {facts['torch']}; commit {commit}."


def spread(values: Sequence[float]) -> float | None:
    """How far apart two of these lie in 95 % of pairs, as a share of them; None of fewer than two."""
    apart = sorted(abs(math.log(a / b)) for a, b in itertools.combinations(values, 2))
    return math.expm1(apart[min(len(apart) - 1, math.ceil(0.95 * len(apart)) - 1)]) if apart else None


def table(document: dict[str, Any]) -> Table:
    """A row per way: the spread of each kernel in seconds and in cycles, and the machine time."""
    rows = document["rows"]
    kernels = range(len(document["kernels"]))
    ways = list(dict.fromkeys(CUDA_WAYS if document["device"] == "cuda" else CPU_WAYS))
    lines = []
    for way in [way for way in ways if any(row["way"] == way for row in rows)]:
        line = [way]
        for kernel in kernels:
            found = [row for row in rows if (row["way"], row["kernel"]) == (way, kernel)]
            line.append(" / ".join(_share([row[unit] for row in found]) for unit in _units(document)))
        of_way = [row["machine_seconds"] for row in rows if row["way"] == way]
        lines.append((*line, f"{sum(of_way) / len(of_way):.2f}"))
    columns = ["<way", *(f"{_typical(rows, kernel)} ms" for kernel in kernels), "machine seconds"]
    return Table("Agreement of fresh processes", tuple(columns), tuple(lines))


def _units(document: dict[str, Any]) -> tuple[str, ...]:
    return ("seconds", "cycles") if document["device"] == "cuda" else ("seconds",)


def _share(values: list[float | None]) -> str:
    found = spread([value for value in values if value is not None])
    return "none" if found is None else f"{100 * found:.2f} %"


def _typical(rows: list[dict[str, Any]], kernel: int) -> str:
    known = sorted(row["seconds"] for row in rows if row["kernel"] == kernel and row["seconds"] is not None)
    return f"{known[len(known) // 2] * 1e3:.2g}" if known else "?"


def child_main(device: str) -> None:
    """What a fresh process does: measures and prints its rows as one line of JSON."""
    print(json.dumps(measure_here(device)))
