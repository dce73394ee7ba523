"""The sweep: measures every combination of case and implementation, and records each, with a number or the reason.

Cases of one shape (a sparse problem and its dense counterpart) form a group that one process measures; a group that a
killed sweep left half done is measured again as a whole, so that every ratio comes from one process.
"""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from asv_bench import implementations, inputs, record, sampling, telemetry, verify
from asv_bench.cases import Case, Problem
from asv_bench.clocks import Clock, CpuClock
from asv_bench.implementations import BoundCall, error_of
from asv_bench.journal import Journal
from asv_bench.record import Record, Store

# Errors that a rerun retries: they are about the environment, not about the combination.
_RETRIED = ("unavailable:",)
# Combinations that took the device or the process down are not tried again by the same code.
_DEVICE_LOST, _CRASHED = "device_lost:", "crashed:"


@dataclass(frozen=True)
class Options:
    """What to sweep.

    Args:
        cases: in order. implementations: names. device: where. machine: name in records. output: folder.
        fresh: forget earlier records of these combinations first. seed: of the inputs.
        rows_seed: draws the rows that are checked; None draws it from the operating system.
    """

    cases: tuple[Case, ...]
    implementations: tuple[str, ...]
    device: torch.device
    machine: str
    output: Path
    fresh: bool = False
    seed: int = 0
    rows_seed: int | None = None


@dataclass
class Run:
    """One process of a sweep: its options, provenance and tools."""

    options: Options
    store: Store
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    rows_seed: int = 0
    commit: str = "unknown"
    dirty: bool | None = None
    gpu_name: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    trees: dict[str, str] = field(default_factory=dict)
    journal: Journal = field(init=False)
    protocol: sampling.SamplingProtocol = sampling.CPU_PROTOCOL
    clock: Clock = field(default_factory=CpuClock)
    gpu: telemetry.Gpu | None = None

    def __post_init__(self) -> None:
        self.journal = Journal(self.options.output)


class Restart(Exception):
    """The device was lost; what was found is saved and a new process can go on."""


def start(options: Options) -> Run:
    """Prepares a run: reads the store, looks at the machine.

    Raises:
        OSError: when the output folder cannot be written; nothing has been measured then.
        record.Unreadable: when it holds a broken sweep.json.
    """
    record.ensure_writable(options.output)
    run = Run(options, Store(options.output))
    run.rows_seed = secrets.randbits(48) if options.rows_seed is None else options.rows_seed
    run.commit, run.dirty = record.commit_and_dirty()
    run.trees = {name: record.fingerprint(name) for name in options.implementations}
    run.protocol, run.clock = sampling.for_device(options.device)
    run.facts = telemetry.machine_facts(options.device)
    run.facts["ceiling"] = telemetry.ceiling(options.device)
    if options.device.type == "cuda":
        run.gpu_name = torch.cuda.get_device_name(options.device)
        run.gpu = telemetry.Gpu(options.device.index or 0)
    if options.fresh:
        for case in options.cases:
            for name in options.implementations:
                run.store.forget(case.problem, name)
        run.store.save()
    return run


def groups_of(cases: Sequence[Case]) -> list[tuple[Case, ...]]:
    """Cases by shape, in order of first appearance: a sparse problem beside its dense counterpart."""
    groups: dict[tuple[int, ...], list[Case]] = {}
    for case in cases:
        problem = case.problem
        groups.setdefault((problem.s_q, problem.s_kv, problem.h_q, problem.d_qk, problem.d_v), []).append(case)
    return [tuple(group) for group in groups.values()]


def execute(run: Run, show_progress: bool = True) -> int:
    """Measures what is not done yet, saving after each case.

    Returns:
        How many combinations were measured or failed in this run.
    Raises:
        Restart: when an implementation took the device down.
        KeyboardInterrupt: after saving what was found.
    """
    names, done = run.options.implementations, 0
    total = len(run.options.cases) * len(names)
    with tqdm(total=total, unit="combination", disable=not show_progress, dynamic_ncols=True) as bar:
        for group in groups_of(run.options.cases):
            if is_done(run, group):
                bar.update(len(group) * len(names))
                continue
            for case in group:
                bar.set_postfix_str(case.id)
                tried = [name for name in names if not _is_deadly(run, case.problem, name)]
                try:
                    for found, bursts in measure_case(run, case.problem, tried):
                        run.store.put(found, bursts)
                        done += 1
                finally:
                    run.store.save()
                    _free(run.options.device)
                bar.update(len(names))
    return done


def is_done(run: Run, group: Sequence[Case]) -> bool:
    """Whether every combination of a group was measured by one earlier process that this one would repeat.

    That process had the same commit, sources, library, machine and protocol; a changed working tree has another
    fingerprint. An implementation that was unavailable is tried again when it has become available.
    """
    runs = set()
    for case in group:
        for name in run.options.implementations:
            if _is_deadly(run, case.problem, name):
                continue
            found = run.store.get(case.problem, name)
            if found is None or not _same_origin(run, found, name):
                return False
            error = found["error"] or ""
            if error.startswith(_RETRIED) and implementations.get(name).unavailable(run.options.device) is None:
                return False
            runs.add(found["telemetry"].get("run"))
    return len(runs) <= 1


def _same_origin(run: Run, found: Record, name: str) -> bool:
    expected = (run.commit, run.dirty, run.options.machine, run.protocol.label, run.trees[name], run.options.seed)
    noted = found["telemetry"]
    got = (found["commit"], found["dirty"], found["machine"], found["protocol"], noted.get("tree"), noted.get("seed"))
    return got == expected


def _is_deadly(run: Run, problem: Problem, name: str) -> bool:
    found = run.store.get(problem, name)
    if found is None or not _same_origin(run, found, name):
        return False
    return (found["error"] or "").startswith((_DEVICE_LOST, _CRASHED))


def measure_case(run: Run, problem: Problem, names: Sequence[str]) -> list[tuple[Record, list[list[float]]]]:
    """Records and samples of one case, for every name.

    Args:
        run: the run. problem: the case's. names: implementations, measured interleaved.
    """
    records = {name: _begin(run, problem, name) for name in names}
    samples: dict[str, sampling.Samples] = {}
    try:
        samples = _measure(run, problem, records)
    except sampling.DeviceLost as lost:
        records[lost.name]["error"] = f"{_DEVICE_LOST} {implementations.reason_of(lost.error)}"
        run.store.put(records[lost.name])
        raise Restart(f"{lost.name} took the device down: {lost.error}") from lost
    except Exception as error:  # making inputs or the reference failed: every combination says so
        for found in records.values():
            found["error"] = found["error"] or error_of(error)
    return [(found, samples[name].bursts if _kept(found, samples.get(name)) else []) for name, found in records.items()]


def _kept(found: Record, samples: sampling.Samples | None) -> bool:
    return samples is not None and found["error"] is None


def _begin(run: Run, problem: Problem, name: str) -> Record:
    found = record.blank(problem, name)
    found |= {
        "commit": run.commit,
        "dirty": run.dirty,
        "machine": run.options.machine,
        "gpu": run.gpu_name,
        "protocol": run.protocol.label,
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "telemetry": {"run": run.id, "tree": run.trees[name], "seed": run.options.seed, "rows_seed": run.rows_seed}
        | run.facts,
    }
    return found


def _measure(run: Run, problem: Problem, records: dict[str, Record]) -> dict[str, sampling.Samples]:
    """Fills records in place."""
    device = run.options.device
    able = {}
    for name, found in records.items():
        implementation = implementations.get(name)
        reason = implementation.unavailable(device)
        if reason:
            found["error"] = f"unavailable: {reason}"
        else:
            able[name] = implementation
    if not able:
        return {}
    made = inputs.make(problem, run.options.seed, device)
    for found in records.values():
        found["valid_fraction"] = made.valid_fraction
    # Before anything runs: what a kernel does to its inputs must not reach the truth it is compared with.
    check, unchanged = verify.Check(problem, made, run.rows_seed), verify.Unchanged(made)
    bound: dict[str, BoundCall] = {}
    for name, implementation in able.items():
        key = (*problem.fields.values(), name, run.trees[name])
        if run.journal.ended_process(key):
            records[name]["error"] = f"{_CRASHED} ended the process, twice"
            continue
        noting = _noting_errors(run, name, records[name])
        with run.journal.running(key), noting, _peak_bytes(device, records[name]):
            bound[name] = implementation.bind(problem, made)
            bound[name].call()
            records[name]["backend"] = bound[name].backend
        broken = unchanged.broken()
        if broken:
            records[name]["error"] = f"wrong_answer: changed its input {', '.join(broken)}"
    bound = {name: call for name, call in bound.items() if records[name]["error"] is None}
    results = sampling.measure(
        {name: call.call for name, call in bound.items()},
        run.protocol,
        run.clock,
        conditions=run.gpu.conditions if run.gpu else None,
        before_burst=dict.fromkeys(bound, partial(verify.poison, inputs=made)),
    )
    for name, result in results.items():
        if result.error:
            records[name]["error"] = error_of(result.error)
    broken = unchanged.broken()
    for name, result in results.items():
        if broken:  # by one of them, in a later launch: no number of this case can be trusted
            records[name]["error"] = f"invalid_measurement: input {', '.join(broken)} changed while it was timed"
        elif result.error is None:
            _conclude(records[name], result, check.verdict(bound[name], result.output))
    return results


def _conclude(found: Record, samples: sampling.Samples, verdict: verify.Verdict) -> None:
    """Numbers into a record, if the output was right."""
    found["max_abs_err"] = verdict.max_abs_err
    found["discarded"] = samples.discarded
    found["power_capped"] = samples.power_capped
    found["telemetry"] |= samples.telemetry
    if samples.plan:
        plan = samples.plan
        found["telemetry"]["plan"] = {"bursts": plan.bursts, "launches": plan.launches, "dropped": plan.dropped}
    if verdict.error:
        found["error"] = verdict.error
        return
    interval = sampling.median_interval(samples.seconds)
    found["samples"] = len(samples.seconds)
    found["seconds_median"], found["seconds_low"], found["seconds_high"] = (
        interval.median,
        interval.low,
        interval.high,
    )
    found["tflops"] = found["flops"] / interval.median / 1e12


@contextmanager
def _noting_errors(run: Run, name: str, found: Record) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found["error"] = error_of(error)
        reason = error.with_traceback(None)
        _free(run.options.device)
        try:
            run.clock.wait()
        except Exception as lost:
            raise sampling.DeviceLost(name, reason) from lost


@contextmanager
def _peak_bytes(device: torch.device, found: Record) -> Iterator[None]:
    """Most bytes that binding and one launch hold beyond the inputs; unknown on a CPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    torch.cuda.synchronize(device)
    found["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            return  # a lost device frees nothing


def restart_command(arguments: Sequence[str]) -> list[str]:
    """The command that goes on after the device was lost; records already forgotten stay forgotten."""
    return ["-m", "asv_bench", "sweep", *(word for word in arguments if word != "--fresh")]


def default_output(machine: str) -> Path:
    """Folder of a machine's records; ASV_BENCH_SWEEPS moves them all."""
    return Path(os.environ.get("ASV_BENCH_SWEEPS", record.SWEEPS)) / machine
