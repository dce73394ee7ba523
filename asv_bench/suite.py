"""What the asv suites share: the grids, the one pass that measures a grid, and how its samples become asv's."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asv_bench import controls, sampling
from asv_bench.cases import Problem, dense_case, sparse_case
from asv_bench.errors import Crashed, DeviceLost, NoNumber, NotInThisVersion, WrongAnswer, error_of
from asv_bench.journal import Journal
from asv_bench.worker import Worker

if TYPE_CHECKING:
    from asv_bench import group

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
    copy_bytes=controls.WORK["cuda"].copy_bytes,
    gemm_size=controls.WORK["cuda"].gemm_size,
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
    copy_bytes=controls.WORK["cpu"].copy_bytes,
    gemm_size=controls.WORK["cpu"].gemm_size,
)
CONTROLS = controls.NAMES


def measure(grid: Grid) -> Cache:
    """Measures a grid, in a process of its own: who ends it or loses the device is left out, and the rest goes on.

    Raises:
        RuntimeError: when the library of this commit does not load; asv then marks every point as failed.
    """
    with Worker() as worker, tempfile.TemporaryDirectory() as folder:
        reason = worker.run(not_here, grid)
        if reason:
            Notebook().write({"grid": grid.device, "error": f"unavailable: {reason}"})
            return {WHOLE_GRID: {"unavailable": reason}}
        cache: Cache = worker.run(_measure_controls, grid)
        for index in range(len(list(grid.groups()))):
            cache |= _measure_group_in(worker, grid, index, Path(folder))
    return cache


def _measure_group_in(worker: Worker, grid: Grid, index: int, folder: Path) -> Cache:
    """Entries of a group's views; once more without a member that cost the worker its device or its life."""
    broken: dict[View, NoNumber] = {}
    while True:
        try:
            entries: Cache = worker.run(_measure_group, grid, index, broken, folder)
            return entries
        except (DeviceLost, Crashed) as ended:
            view = Journal(folder).left
            if view is None or tuple(view) in broken:  # before any launch, or by who was left out: no use trying again
                raise
            broken[tuple(view)] = ended


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

    def write(self, facts: dict[str, Any]) -> None:
        """Appends a line, stamped with the time."""
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"timestamp": round(time.time(), 3), **facts}) + "\n")


def _measure_controls(grid: Grid) -> Cache:
    """Entries of the controls, measured first: in them shows what the machine was like."""
    import torch

    from asv_bench import telemetry

    notebook = Notebook()
    try:
        import flash_dsa  # noqa: F401
    except Exception as error:  # nothing of this commit can be measured
        notebook.write({"error": f"failed: {error}"})
        raise
    notebook.write({"machine": telemetry.machine_facts(grid.device)})
    notebook.write({"fingerprint": _fingerprint(grid.device)})
    work, clock = controls.Work(grid.copy_bytes, grid.gemm_size), sampling.for_device(grid.device)[1]
    results = controls.measure(torch.device(grid.device), work, grid.protocol, clock)
    for name, result in results.items():
        notebook.write({"control": name, **_facts(result)})
    return {("control", name): _control_entry(result) for name, result in results.items()}


def _fingerprint(device: str) -> dict[str, Any] | None:
    """What the build noted of its code, and the target that serves this device; None for a commit without either."""
    import torch

    import flash_dsa

    try:
        noted = json.loads((Path(flash_dsa.__file__).parent / "_fingerprint.json").read_text(encoding="utf-8"))
        return {"target": flash_dsa.target_of(torch.device(device)), **noted}
    except (OSError, ValueError, AttributeError, NotImplementedError):
        return None


def _control_entry(result: sampling.Samples) -> Entry:
    return {"failed": error_of(result.error)} if result.error else {"samples": _rounded(sampling.units(result.bursts))}


def _measure_group(grid: Grid, index: int, broken: dict[View, NoNumber], folder: Path) -> Cache:
    """Measures the members of a group in turns and writes down what asv has no place for.

    Args:
        grid: the grid. index: of the group. broken: members that are not tried again, and why.
        folder: of the journal, which says who was launched last when this process ends.
    """
    import torch

    from asv_bench import group, telemetry

    members = list(grid.groups())[index]
    device, journal, notebook = torch.device(grid.device), Journal(folder), Notebook()
    clock = sampling.for_device(device)[1]
    conditions = telemetry.conditions_of(device)
    bench = group.Bench(device, grid.protocol, clock, INPUT_SEED, time.time_ns(), conditions)
    tried = {view: group.Member(*member) for view, member in members.items() if view not in broken}
    try:
        outcomes = group.measure(bench, tried, journal.note)
    except DeviceLost:
        raise  # the journal says by whom
    except Exception as error:  # nothing that one member did: what they share failed
        outcomes = {view: group.Outcome(sampling.Samples(error=error)) for view in tried}
    journal.close()
    outcomes |= {view: group.Outcome(sampling.Samples(error=error)) for view, error in broken.items()}
    for view, (problem, _) in members.items():
        outcome = outcomes[view]
        notebook.write({"view": view, "backend": outcome.backend, **problem.fields, **_facts(outcome.samples)})
    group.free(device)
    return {view: _entry_of(view, members[view][1], outcomes) for view in members}


def _entry_of(view: View, implementation: str, outcomes: dict[View, group.Outcome]) -> Entry:
    if view[0] == "ratio":
        return _ratio(outcomes[view], outcomes["dense", view[1], view[3], OURS])
    return _entry(implementation, outcomes[view])


def _entry(implementation: str, outcome: group.Outcome) -> Entry:
    """A measurement as asv gets it.

    Ours is n/a only where this machine cannot hold the inputs or this commit has no such call: anything else that
    breaks is a failure, and so is a wrong answer of anybody. Peers that cannot are n/a.
    """
    error = outcome.error
    if error is None:
        return {"samples": _rounded(sampling.units(outcome.samples.bursts))}
    excused = implementation != OURS or isinstance(error, NotInThisVersion) or not outcome.inputs_made
    return {"unavailable" if excused and not isinstance(error, WrongAnswer) else "failed": error_of(error)}


def _ratio(sparse: group.Outcome, dense: group.Outcome) -> Entry:
    """Sparse seconds over dense seconds, one per pair of bursts that took turns; of few pairs one per dense launch."""
    for name, outcome in (("sparse", sparse), ("dense", dense)):
        if outcome.error is not None:
            return {kind: f"{name}: {reason}" for kind, reason in _entry(OURS, outcome).items()}
    pairs = [(s, d) for s, d in zip(sparse.samples.bursts, dense.samples.bursts, strict=False) if s and d]
    if not pairs:
        return {"failed": "no pair of bursts kept samples of both"}
    if len(pairs) >= sampling.SAMPLES_MIN:
        return {"samples": _rounded([statistics.median(s) / statistics.median(d) for s, d in pairs])}
    return {"samples": _rounded([statistics.median(s) / sample for s, d in pairs for sample in d])}


def _rounded(values: Sequence[float]) -> list[float]:
    """To 6 digits: beyond any clock here, and the history in git stays half as large."""
    return [float(f"{value:.6g}") for value in values]


def _facts(result: sampling.Samples) -> dict[str, Any]:
    return {
        "samples": len(result.seconds),
        "cycles_median": result.cycles_median,
        "discarded": result.discarded,
        "power_capped": result.power_capped,
        "telemetry": result.telemetry,
        "error": None if result.error is None else error_of(result.error),
    }
