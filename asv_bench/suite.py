"""What the asv suites share: the grids, the one pass that measures a grid, and how its samples become asv's.

asv runs `setup_cache` of a base class once for all its subclasses and parameters, then every point in a process of its
own. So everything is measured in one pass, and the points are views of it: they import neither torch nor the library.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asv_bench import sampling
from asv_bench.cases import Problem, dense_case, sparse_case

if TYPE_CHECKING:
    from asv_bench.implementations import BoundCall
    from asv_bench.inputs import Inputs
    from asv_bench.telemetry import Conditions

OURS = "flash_dsa"
INPUT_SEED = 0  # the same tensors at every commit

View = tuple[Any, ...]  # which point of which class: its `view`, then its parameters
# Of each view one of: `samples` (floats), `unavailable` (why it is n/a), `failed` (why it is a failure).
Entry = dict[str, Any]
Cache = dict[View, Entry]
WHOLE_GRID: View = ()  # the view that stands for all when the grid cannot run here


@dataclass(frozen=True)
class Grid:
    """The points of one kind of machine; the same on all of them.

    Args:
        device: `cpu` or `cuda`. protocol: how samples are taken.
        s_q, h_q: queries and heads of every problem.
        s_kv, topk, head_dims: the axes. Names of head_dims are d_qk and d_v joined by `x`.
        sparse, dense: implementations of either op.
        copy_bytes, gemm_size: the work of the controls.
    """

    device: str
    protocol: sampling.SamplingProtocol
    s_q: int
    h_q: int
    s_kv: tuple[int, ...]
    topk: tuple[int, ...]
    head_dims: tuple[str, ...]
    sparse: tuple[str, ...]
    dense: tuple[str, ...]
    copy_bytes: int
    gemm_size: int

    def sparse_problem(self, s_kv: int, topk: int) -> Problem:
        """The problem of a point of SparsePrefill."""
        return sparse_case(self.s_q, s_kv, topk, self.h_q).problem

    def dense_problem(self, s_kv: int, head_dims: str) -> Problem:
        """The problem of a point of DensePrefill: every head has its own K and V."""
        d_qk, d_v = (int(d) for d in head_dims.split("x"))
        return dense_case(self.s_q, s_kv, self.h_q, self.h_q, d_qk, d_v).problem

    def groups(self) -> Iterator[dict[View, tuple[Problem, str]]]:
        """What is measured interleaved, as problem and implementation by view.

        A ratio needs sparse and dense of one process, taking turns: ours sparse is measured again beside every dense
        problem, under the view of the ratio.
        """
        for s_kv in self.s_kv:
            sparse = {topk: self.sparse_problem(s_kv, topk) for topk in self.topk}
            for topk in self.topk:
                yield {("sparse", s_kv, topk, name): (sparse[topk], name) for name in self.sparse}
            for head_dims in self.head_dims:
                dense = self.dense_problem(s_kv, head_dims)
                yield {
                    **{("dense", s_kv, head_dims, name): (dense, name) for name in self.dense},
                    **{("ratio", s_kv, topk, head_dims): (sparse[topk], OURS) for topk in self.topk},
                }


HEAD_DIMS = ("192x128", "128x128", "576x512")
GPU = Grid(
    device="cuda",
    # Slow kernels get less time than in a sweep: 190 measurements are to take 5 minutes, on the CPU 40 half a minute.
    protocol=replace(sampling.CUDA_PROTOCOL, name="cuda-suite", budget_seconds=1.0),
    s_q=4096,
    h_q=128,
    s_kv=(4096, 8192, 16384, 32768, 65536, 131072),
    topk=(512, 1024, 2048),
    head_dims=HEAD_DIMS,
    sparse=(OURS, "naive", "flash_mla"),
    dense=(OURS, "naive", "sdpa", "flash_mla"),
    copy_bytes=1 << 30,
    gemm_size=8192,
)
CPU = Grid(
    device="cpu",
    protocol=replace(sampling.CPU_PROTOCOL, name="cpu-suite", budget_seconds=0.4),
    s_q=64,
    h_q=16,
    s_kv=(1024, 4096),
    topk=(64, 256),
    head_dims=HEAD_DIMS,
    sparse=(OURS, "naive"),
    dense=(OURS, "naive", "sdpa"),
    copy_bytes=1 << 26,
    gemm_size=1024,
)
CONTROLS = ("copy", "gemm")


class _Views:
    """Base of the suites: `view` names the subclass in the cache."""

    view: str
    type = "time"  # with samples, gives asv's median, interval and Mann-Whitney test; tests/instrument holds it to that
    unit = "seconds"

    def setup(self, cache: Cache, *point: Any) -> None:
        """n/a with its reason."""
        entry = cache.get(WHOLE_GRID) or cache[(self.view, *point)]
        if "unavailable" in entry:
            raise NotImplementedError(entry["unavailable"])

    def samples(self, cache: Cache, *point: Any) -> dict[str, Any]:
        """What a `track_` method returns. Raises RuntimeError: a failed benchmark, never a number."""
        entry = cache[(self.view, *point)]
        if "failed" in entry:
            raise RuntimeError(entry["failed"])
        return {"samples": entry["samples"], "number": 1}


# setup_cache is defined in either class, not in their base: asv tells the passes apart by its source line.
class GpuViews(_Views):
    """Views of the GPU grid."""

    version = GPU.protocol.label

    def setup_cache(self) -> Cache:
        """The one pass."""
        return measure(GPU)

    setup_cache.timeout = 1800  # type: ignore[attr-defined]


class CpuViews(_Views):
    """Views of the CPU grid."""

    version = CPU.protocol.label

    def setup_cache(self) -> Cache:
        """The one pass."""
        return measure(CPU)

    setup_cache.timeout = 600  # type: ignore[attr-defined]


def measure(grid: Grid) -> Cache:
    """Measures a grid, everything in this process.

    Raises:
        ImportError: when the library of this commit does not load; asv then marks every point as failed.
    """
    notebook = Notebook()
    reason = not_here(grid)
    if reason:
        notebook.write({"grid": grid.device, "error": f"unavailable: {reason}"})
        return {WHOLE_GRID: {"unavailable": reason}}
    notebook.open(grid.device)
    try:
        import flash_dsa  # noqa: F401
    except Exception as error:
        notebook.write({"error": f"failed: {error}"})
        raise
    cache = _measure_controls(grid, notebook)
    for members in grid.groups():
        try:
            results = _measure_group(members, grid, notebook)
        except sampling.DeviceLost as lost:
            failure = {"failed": f"the device was lost at {lost}"}
            return {view: failure for group in grid.groups() for view in group} | cache
        for view, result in results.items():
            if view[0] == "ratio":
                cache[view] = _ratio(result, results["dense", view[1], view[3], OURS])
            else:
                cache[view] = _entry(members[view][1], result)
    return cache


def not_here(grid: Grid) -> str | None:
    """Why a grid does not run on this machine, or None."""
    import torch

    if grid.device == "cuda":
        return None if torch.cuda.is_available() else f"no GPU that torch {torch.__version__} can use"
    if torch.cuda.is_available() and os.environ.get("FLASH_DSA_BENCH_CPU") != "1":
        return "the GPU grid runs here; FLASH_DSA_BENCH_CPU=1 adds the CPU grid"
    return None


class Notebook:
    """Telemetry beside asv's results, which have no place for it: one JSON line per measurement."""

    def __init__(self) -> None:
        name = os.environ.get("FLASH_DSA_TELEMETRY")
        self._path = Path(name) if name else None
        self.conditions: Callable[[], Conditions] | None = None

    def open(self, device: str) -> None:
        """Writes down the machine; from now on `conditions` reads the device's, where it has any."""
        from asv_bench import telemetry

        self.conditions = telemetry.Gpu().conditions if device == "cuda" else None
        self.write({"machine": telemetry.machine_facts(device)})

    def write(self, facts: dict[str, Any]) -> None:
        """Appends a line, stamped with the time."""
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"timestamp": round(time.time(), 3), **facts}) + "\n")


def _measure_controls(grid: Grid, notebook: Notebook) -> Cache:
    import torch

    source = torch.ones(grid.copy_bytes, dtype=torch.uint8, device=grid.device)
    target = torch.empty_like(source)
    n = grid.gemm_size
    a, b = (torch.randn(n, n, device=grid.device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    calls = {"copy": lambda: target.copy_(source), "gemm": lambda: torch.mm(a, b, out=product)}
    clock = sampling.for_device(grid.device)[1]
    results = sampling.measure(calls, grid.protocol, clock, conditions=notebook.conditions)
    for name, result in results.items():
        notebook.write({"control": name, **_facts(result)})
    return {("control", name): _entry(OURS, result) for name, result in results.items()}


def _measure_group(
    members: dict[View, tuple[Problem, str]], grid: Grid, notebook: Notebook
) -> dict[View, sampling.Samples]:
    """Measures the members of a group in turns and checks what they computed."""
    from asv_bench import verify

    results: dict[View, sampling.Samples] = {}
    inputs: dict[Problem, Inputs] = {}
    bound: dict[View, BoundCall] = {}
    for view, (problem, implementation) in members.items():
        try:
            bound[view] = _bind(problem, implementation, inputs, grid.device)
        except Exception as error:
            # Without its traceback, which after an out-of-memory error keeps that memory alive.
            results[view] = sampling.Samples(error=error.with_traceback(None))
    names = {str(view): view for view in bound}
    measured = sampling.measure(
        {name: bound[view].call for name, view in names.items()},
        grid.protocol,
        sampling.for_device(grid.device)[1],
        conditions=notebook.conditions,
        before_burst=dict.fromkeys(names, verify.poison),
    )
    results |= {view: measured[name] for name, view in names.items()}
    checks: dict[Problem, verify.Check] = {}
    for view, (problem, _) in members.items():
        result = results[view]
        if result.error is None:
            if problem not in checks:
                checks[problem] = verify.Check(problem, inputs[problem], seed=time.time_ns())
            wrong = checks[problem].verdict(bound[view], result.output).error
            result.error = WrongAnswer(wrong) if wrong else None
        result.output = None  # its memory is needed
        backend = bound[view].backend if view in bound else None
        notebook.write({"view": view, "backend": backend, **problem.fields, **_facts(result)})
    del inputs, bound, measured, checks
    _free(grid.device)
    return results


def _bind(problem: Problem, implementation: str, inputs: dict[Problem, Inputs], device: str) -> BoundCall:
    import torch

    from asv_bench import implementations
    from asv_bench.inputs import make

    chosen = implementations.get(implementation)
    reason = chosen.unavailable(torch.device(device))
    if reason:
        raise implementations.Unsupported(reason)
    if problem not in inputs:
        inputs[problem] = make(problem, INPUT_SEED, device)
    try:
        return chosen.bind(problem, inputs[problem])
    except AttributeError as error:
        raise implementations.Unsupported(f"not in this version of {implementation}: {error}") from None


class WrongAnswer(RuntimeError):
    """What was timed computed something else."""


def _entry(implementation: str, result: sampling.Samples) -> Entry:
    """A measurement as asv gets it. Peers that cannot are n/a; ours that breaks and any wrong answer are failures."""
    if result.error is None:
        return {"samples": _rounded(result.seconds)}
    from asv_bench.implementations import error_of

    reason = error_of(result.error)
    ours_broke = implementation == OURS and not reason.startswith(("unsupported", "out_of_memory"))
    return {"failed" if ours_broke or isinstance(result.error, WrongAnswer) else "unavailable": reason}


def _ratio(sparse: sampling.Samples, dense: sampling.Samples) -> Entry:
    """Sparse seconds over dense seconds, one per pair of bursts that took turns."""
    for name, result in (("sparse", sparse), ("dense", dense)):
        if result.error is not None:
            return {kind: f"{name}: {reason}" for kind, reason in _entry(OURS, result).items()}
    pairs = [(s, d) for s, d in zip(sparse.bursts, dense.bursts, strict=False) if s and d]
    if not pairs:
        return {"unavailable": "no pair of bursts kept samples of both"}
    return {"samples": _rounded([statistics.median(s) / statistics.median(d) for s, d in pairs])}


def _rounded(values: Sequence[float]) -> list[float]:
    """To 6 digits: beyond any clock here, and the history in git stays half as large."""
    return [float(f"{value:.6g}") for value in values]


def _facts(result: sampling.Samples) -> dict[str, Any]:
    return {
        "samples": len(result.seconds),
        "discarded": result.discarded,
        "power_capped": result.power_capped,
        "telemetry": result.telemetry,
        "error": None if result.error is None else str(result.error),
    }


def _free(device: str) -> None:
    """Gives the group's memory back: the next may need nearly all of it in other pieces."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
