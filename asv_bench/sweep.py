"""The sweep: measures every combination of case and implementation, and records each, with a number or the reason.

Cases of one shape (a sparse problem and its dense counterpart) form a group whose members take turns in one process, so
that every ratio between them is one of interleaved bursts; a group that was killed half-way is measured again.
Controls are measured before the first group and after each, so that what the machine did in between shows.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from asv_bench import controls, implementations, record, sampling, telemetry
from asv_bench import group as groups
from asv_bench.cases import Case, Problem, counterpart
from asv_bench.clocks import Clock, CpuClock
from asv_bench.errors import Crashed, DeviceLost, NoNumber, Unavailable, error_of
from asv_bench.group import Bench, Member, Outcome
from asv_bench.journal import Journal
from asv_bench.record import Record, Store

Combination = tuple[Problem, str]  # a problem and the name of an implementation

# Combinations that took the device or the process down are not tried again by the same code.
_DEADLY: tuple[type[NoNumber], ...] = (DeviceLost, Crashed)


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
    # The controls around the group under way, by name; its records hold this very object.
    around: dict[str, dict[str, Any] | None] = field(default_factory=lambda: {"before": None, "after": None})

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
        problem = counterpart(case.problem) if case.problem.op == "sparse_fwd" else case.problem
        groups.setdefault((problem.s_q, problem.s_kv, problem.h_q, problem.d_qk, problem.d_v), []).append(case)
    return [tuple(group) for group in groups.values()]


def execute(run: Run, show_progress: bool = True) -> int:
    """Measures what is not done yet, saving after each group.

    Returns:
        How many combinations were measured or failed in this run.
    Raises:
        Restart: when an implementation took the device down, or it was lost after a group.
        DeviceLost: when it was lost before the first: that is nobody's doing, and a new process would be no better off.
        KeyboardInterrupt: what earlier groups found is saved.
    """
    names, done = run.options.implementations, 0
    total = len(run.options.cases) * len(names)
    with tqdm(total=total, unit="combination", disable=not show_progress, dynamic_ncols=True) as bar:
        for group in groups_of(run.options.cases):
            if not is_done(run, group):
                done += _measure_and_save(run, group, bar)
            bar.update(len(group) * len(names))
    return done


def _measure_and_save(run: Run, group: Sequence[Case], bar: tqdm[Any]) -> int:
    ids = {case.problem: case.id for case in group}
    chosen = [(case.problem, name) for case in group for name in run.options.implementations]
    tried = [(problem, name) for problem, name in chosen if not _is_deadly(run, problem, name)]

    def show(key: Combination) -> None:
        bar.set_postfix_str(f"{ids[key[0]]} {key[1]}", refresh=sys.stderr.isatty())  # a log gets a line per group

    run.around = {"before": run.around["after"] or _controls(run), "after": None}
    try:
        for found, bursts in measure_group(run, tried, show):
            run.store.put(found, bursts)
    finally:
        run.store.save()
        groups.free(run.options.device)
    try:
        run.around["after"] = _controls(run)
    except DeviceLost as lost:
        raise Restart(f"the device was lost when the control {lost.name} ran: {lost}") from lost
    run.store.save()
    return len(tried)


def _controls(run: Run) -> dict[str, Any]:
    """The controls as of now, in all about half a second."""
    device = run.options.device
    results = controls.measure(device, controls.WORK[device.type], controls.brief(run.protocol), run.clock)
    groups.free(device)
    return {name: controls.facts(result) for name, result in results.items()}


def is_done(run: Run, group: Sequence[Case]) -> bool:
    """Whether all combinations of a group took turns in an earlier process that this one would repeat.

    That process had the same commit, sources, library, machine and protocol; a changed working tree has another
    fingerprint. An implementation that was unavailable is tried again when it has become available.
    """
    turns = set()
    for case in group:
        for name in run.options.implementations:
            if _is_deadly(run, case.problem, name):
                continue
            found = run.store.get(case.problem, name)
            if found is None or not _same_origin(run, found, name):
                return False
            was_there = not _is(found, Unavailable)
            if not was_there and implementations.get(name).unavailable(run.options.device) is None:
                return False
            turns.add(found["telemetry"].get("group"))
    return len(turns) <= 1


def _is(found: Record, *kinds: type[NoNumber]) -> bool:
    return (found["error"] or "").startswith(tuple(kind.kind + ":" for kind in kinds))


def _same_origin(run: Run, found: Record, name: str) -> bool:
    expected = (run.commit, run.dirty, run.options.machine, run.protocol.label, run.trees[name], run.options.seed)
    noted = found["telemetry"]
    got = (found["commit"], found["dirty"], found["machine"], found["protocol"], noted.get("tree"), noted.get("seed"))
    return got == expected


def _is_deadly(run: Run, problem: Problem, name: str) -> bool:
    found = run.store.get(problem, name)
    if found is None or not _same_origin(run, found, name):
        return False
    return _is(found, *_DEADLY)


def measure_group(
    run: Run, combinations: Sequence[Combination], show: Callable[[Combination], None] | None = None
) -> list[tuple[Record, list[list[float]]]]:
    """Records and samples of combinations that take turns.

    Args:
        run: the run. combinations: all of one group. show: called after each burst of one.
    Raises:
        Restart: when one took the device down; its record is in the store.
    """
    turns = secrets.token_hex(8)
    records = {key: _begin(run, *key, turns) for key in combinations}
    members = {}
    for key in combinations:
        if run.journal.ended_process(_journal_key(run, key)):
            records[key]["error"] = error_of(Crashed("ended the process, twice"))
        else:
            members[key] = Member(*key)
    conditions = telemetry.conditions_of(run.options.device)
    bench = Bench(run.options.device, run.protocol, run.clock, run.options.seed, run.rows_seed, conditions)
    names = {repr(key): key for key in members}
    try:
        outcomes = groups.measure(bench, members, lambda key: run.journal.note(_journal_key(run, key)), show)
    except DeviceLost as lost:
        found = records[names[lost.name]]
        found["error"] = error_of(lost)
        run.store.put(found)
        raise Restart(f"{found['implementation']} took the device down: {lost}") from lost
    except Exception as error:  # nothing that one member did: what they share failed
        outcomes = {}
        for key in members:
            records[key]["error"] = error_of(error)
    finally:
        run.journal.close()
    for key, outcome in outcomes.items():
        _conclude(records[key], outcome)
    return [(found, _bursts(outcomes.get(key))) for key, found in records.items()]


def _journal_key(run: Run, key: Combination) -> tuple[Any, ...]:
    problem, name = key
    return (*problem.fields.values(), name, run.trees[name])


def _bursts(outcome: Outcome | None) -> list[list[float]]:
    return outcome.samples.bursts if outcome and outcome.error is None else []


def _begin(run: Run, problem: Problem, name: str, turns: str) -> Record:
    found = record.blank(problem, name)
    found |= {
        "commit": run.commit,
        "dirty": run.dirty,
        "machine": run.options.machine,
        "gpu": run.gpu_name,
        "protocol": run.protocol.label,
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "telemetry": {
            "run": run.id,
            "group": turns,
            "tree": run.trees[name],
            "seed": run.options.seed,
            "rows_seed": run.rows_seed,
            "controls": run.around,
        }
        | run.facts,
    }
    return found


def _conclude(found: Record, outcome: Outcome) -> None:
    """What was found into a record; a time only if the output was right."""
    samples = outcome.samples
    found |= {
        "valid_fraction": outcome.valid_fraction,
        "backend": outcome.backend,
        "peak_bytes": outcome.peak_bytes,
        "max_abs_err": outcome.max_abs_err,
        "discarded": samples.discarded,
        "power_capped": samples.power_capped,
    }
    found["telemetry"] |= samples.telemetry
    if samples.plan:
        plan = samples.plan
        found["telemetry"]["plan"] = {"bursts": plan.bursts, "launches": plan.launches, "dropped": plan.dropped}
    if outcome.error is not None:
        found["error"] = error_of(outcome.error)
        return
    interval = samples.interval
    found |= {
        "samples": len(samples.seconds),
        "seconds_median": interval.median,
        "seconds_low": interval.low,
        "seconds_high": interval.high,
        "cycles_median": samples.cycles_median,
        "tflops": found["flops"] / interval.median / 1e12,
    }


def restart_command(arguments: Sequence[str]) -> list[str]:
    """The command that goes on after the device was lost; records already forgotten stay forgotten."""
    return ["-m", "asv_bench", "sweep", *(word for word in arguments if word != "--fresh")]


def default_output(machine: str) -> Path:
    """Folder of a machine's records; ASV_BENCH_SWEEPS moves them all."""
    return Path(os.environ.get("ASV_BENCH_SWEEPS", record.SWEEPS)) / machine
