"""What the records say: rows, ratios and tables, all computed from the numbers. No rendering beyond text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from asv_bench import provenance
from asv_bench.cases import Problem, counterpart, dense_counterpart
from asv_bench.record import Record, problem_of
from asv_bench.tables import Table, byte_count, digits, milliseconds, percent, small, times

OURS = "flash_dsa"
# Candidates for "the fastest dense": what somebody would run instead of sparse attention.
DENSE_CANDIDATES = ("flash_dsa", "sdpa")

# Less than this between the slowest and the fastest time of a control changes no reading of three digits.
DRIFT_MIN = 0.01

Line = tuple[str, ...]


@dataclass(frozen=True)
class Ratio:
    """How many times as long one implementation takes as another.

    Args:
        value: ratio of the medians. low, high: from the ends of both intervals, so wider than 95 %.
    """

    value: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """1 when it is above 1 by its whole interval, -1 when below, 0 when the interval holds 1: nobody can tell."""
        return (self.low > 1) - (self.high < 1)


@dataclass(frozen=True)
class Drift:
    """How far a control moved over a run.

    Args:
        seconds: of its slowest time over its fastest. cycles: most over fewest, or None where no clock was read.
    """

    seconds: Ratio
    cycles: float | None

    @property
    def matters(self) -> bool:
        """Whether the machine moved: the intervals of both times do not touch, and the medians are DRIFT_MIN apart."""
        return self.seconds.side > 0 and self.seconds.value > 1 + DRIFT_MIN


@dataclass(frozen=True)
class Row:
    """A sparse problem beside its dense counterpart: one line of the seed's summary, or of that of prompts.

    Args:
        problem: the sparse one. sparse, dense: records by implementation, with or without a number.
    """

    problem: Problem
    sparse: dict[str, Record]
    dense: dict[str, Record]

    @property
    def best_dense(self) -> Record | None:
        """The fastest dense record with a number."""
        numbers = [self.dense[name] for name in DENSE_CANDIDATES if has_number(self.dense.get(name))]
        return min(numbers, key=lambda found: float(found["seconds_median"]), default=None)

    @property
    def theoretical_speedup(self) -> float:
        """Dense FLOPs over sparse FLOPs."""
        return counterpart(self.problem).flops / self.problem.flops


@dataclass(frozen=True)
class Crossover:
    """From which s_kv on sparse is faster than dense: between two that were measured, and nothing beyond them.

    Args:
        above: the largest s_kv at which dense is faster, or None. upto: the smallest from which on sparse is faster at
            all that were measured, or None. Where an interval holds 1 neither is: such s_kv lie between both.
    """

    above: int | None
    upto: int | None


class Sweep:
    """The records of one machine.

    Args:
        machine: its name. records: of `record.load`.
    """

    def __init__(self, machine: str, records: Sequence[Record]) -> None:
        self.machine = machine
        self.records = list(records)
        self._by_problem: dict[Problem, dict[str, Record]] = {}
        for found in records:
            self._by_problem.setdefault(problem_of(found), {})[found["implementation"]] = found

    def of(self, problem: Problem) -> dict[str, Record]:
        """Records of a problem by implementation."""
        return self._by_problem.get(problem, {})

    @property
    def rows(self) -> list[Row]:
        """The seed's comparison: sparse problems with seed indices and no features, in order."""
        problems = [p for p in self._by_problem if p.op == "sparse_fwd" and (p.indices, p.features) == ("seed", "none")]
        with_dense = [p for p in problems if self.of(dense_counterpart(p))]
        return [Row(p, self.of(p), self.of(dense_counterpart(p))) for p in with_dense or problems]

    @property
    def prompts(self) -> list[Row]:
        """Whole causal prompts beside the dense attention that serving engines run for them, by topk and s_kv."""
        problems = [p for p in self._by_problem if p.is_prompt and p.features == "none"]
        problems.sort(key=lambda p: (p.h_q, p.d_qk, p.topk or 0, p.s_kv))
        return [Row(p, self.of(p), self.of(counterpart(p))) for p in problems if self.of(counterpart(p))]

    @property
    def implementations(self) -> list[str]:
        """Names in the records, ours first."""
        return sorted({found["implementation"] for found in self.records}, key=lambda name: (name != OURS, name))

    @property
    def gpu(self) -> str | None:
        """Names of the GPUs, or None."""
        names = dict.fromkeys(found["gpu"] for found in self.records if found["gpu"])
        return provenance.listed(names) if names else None

    @property
    def by_run(self) -> dict[str | None, list[Record]]:
        """The records of each process."""
        runs: dict[str | None, list[Record]] = {}
        for found in self.records:
            runs.setdefault(found["telemetry"].get("run"), []).append(found)
        return runs

    @property
    def by_commit(self) -> dict[str, Sweep]:
        """The records of each commit by its label: what is counted, averaged or compared is always of one."""
        return {label: Sweep(self.machine, part) for label, part in provenance.by_commit(self.records).items()}


def has_number(found: Record | None) -> bool:
    """Whether a record holds a measured time."""
    return found is not None and found["seconds_median"] is not None


def ratio(slower: Record | None, faster: Record | None) -> Ratio | None:
    """Time of `slower` over time of `faster`; None unless both have a number and `took_turns`."""
    if slower is None or faster is None or not has_number(slower) or not has_number(faster):
        return None
    return interval_ratio(slower, faster) if took_turns(slower, faster) else None


def crossover(ratios: Mapping[int, Ratio]) -> Crossover:
    """Between which measured s_kv sparse overtakes dense for good.

    Args:
        ratios: time of dense over that of sparse, by s_kv.
    """
    above = max((s_kv for s_kv, found in ratios.items() if found.side < 0), default=None)
    not_faster = max((s_kv for s_kv, found in ratios.items() if found.side <= 0), default=0)
    return Crossover(above, min((s_kv for s_kv in ratios if s_kv > not_faster), default=None))


def interval_ratio(slower: Record, faster: Record) -> Ratio:
    """Time of one record with a number over that of another, however they were measured."""
    return Ratio(
        slower["seconds_median"] / faster["seconds_median"],
        slower["seconds_low"] / faster["seconds_high"],
        slower["seconds_high"] / faster["seconds_low"],
    )


def controls_of(records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """What records note of each control: its numbers before and after their groups, or why there are none."""
    noted: dict[str, list[dict[str, Any]]] = {}
    for found in records:
        for moment in (found["telemetry"].get("controls") or {}).values():
            for name, facts in (moment or {}).items():
                noted.setdefault(name, []).append(facts)
    return noted


def drifts(run: Sequence[Record]) -> dict[str, Drift]:
    """How far each control with a number moved over a run.

    Args:
        run: records of one process.
    """
    found = {}
    for name, noted in controls_of(run).items():
        numbers = sorted((facts for facts in noted if has_number(facts)), key=lambda facts: facts["seconds_median"])
        cycles = [facts["cycles_median"] for facts in numbers if facts["cycles_median"]]
        if numbers:
            found[name] = Drift(interval_ratio(numbers[-1], numbers[0]), max(cycles) / min(cycles) if cycles else None)
    return found


def took_turns(one: Record, other: Record) -> bool:
    """Whether two records are of one process, protocol and group; old records without a group need the same process."""
    runs, groups = ([found["telemetry"].get(key) for found in (one, other)] for key in ("run", "group"))
    together = None in groups or groups[0] == groups[1]
    return runs[0] is not None and runs[0] == runs[1] and one["protocol"] == other["protocol"] and together


def geometric_mean(values: Iterable[float]) -> float | None:
    """Mean of ratios; None without any."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def mean_ratio(ratios: Sequence[Ratio]) -> Ratio | None:
    """Geometric mean of ratios, its interval from those of all their ends; None without any."""
    value, low, high = (geometric_mean(getattr(one, end) for one in ratios) for end in ("value", "low", "high"))
    return None if value is None or low is None or high is None else Ratio(value, low, high)


def why_missing(found: Record | None) -> str:
    """A word or two on why there is no number: `unsupported`, `out of memory`, `not measured`."""
    if found is None:
        return "not measured"
    return (found["error"] or "no number").partition(":")[0].replace("_", " ")


def roofline_share(found: Record | None) -> float | None:
    """Roofline time of what is attended over measured time, with the machine's ceiling noted in the record."""
    if found is None or not has_number(found) or not found["telemetry"].get("ceiling"):
        return None
    ceiling = found["telemetry"]["ceiling"]
    shortest = problem_of(found).roofline_seconds(
        ceiling["flops"], ceiling["bytes_per_second"], found["valid_fraction"]
    )
    return float(shortest / found["seconds_median"])


def share_cell(share: float | None) -> str:
    """A share of the roofline; more than all of it is called what it is."""
    return percent(share) + (" (impossible)" if share is not None and share > 1 else "")


def _table(sweep: Sweep, title: str, columns: Sequence[str], lines_of: Callable[[Sweep], list[Line]]) -> Table:
    """A table of the lines of each commit, which are named where there are several."""
    parts = sweep.by_commit
    if len(parts) < 2:
        return Table(title, tuple(columns), tuple(lines_of(sweep)))
    lines = [(label, *line) for label, part in parts.items() for line in lines_of(part)]
    return Table(title, ("<commit", *columns), tuple(lines))


def _cell(found: Record | None) -> str:
    return milliseconds(found["seconds_median"]) if found and has_number(found) else why_missing(found)


def _value(of: Ratio | None) -> float | None:
    return of.value if of else None


def summary_table(sweep: Sweep) -> Table:
    """The seed's performance summary."""
    peers = [name for name in sweep.implementations if name not in (OURS, "naive", "sdpa")]
    peers = [name for name in peers if any(has_number(row.sparse.get(name)) for row in sweep.rows)]
    columns = ["s_q", "s_kv", "topk", "attended", "naive ms", "dense sdpa ms", f"dense {OURS} ms"]
    columns += [f"sparse {name} ms" for name in peers] + [f"sparse {OURS} ms"]
    columns += ["vs naive", "vs best dense", *(f"vs {name}" for name in peers), "TFLOPS"]
    return _table(sweep, "Performance summary", columns, partial(_summary_lines, peers=peers))


def _summary_lines(sweep: Sweep, peers: Sequence[str]) -> list[Line]:
    lines: list[Line] = []
    for row in sweep.rows:
        problem, ours = row.problem, row.sparse.get(OURS)
        line = [f"{problem.s_q}", f"{problem.s_kv}", f"{problem.topk}", percent((problem.topk or 0) / problem.s_kv)]
        line += [_cell(row.sparse.get("naive")), _cell(row.dense.get("sdpa")), _cell(row.dense.get(OURS))]
        line += [_cell(row.sparse.get(name)) for name in (*peers, OURS)]
        rivals = [row.sparse.get("naive"), row.best_dense, *(row.sparse.get(name) for name in peers)]
        line += [times(_value(ratio(rival, ours))) for rival in rivals]
        line.append(digits(ours["tflops"]) if ours else why_missing(ours))
        lines.append(tuple(line))
    return lines


def complexity_table(sweep: Sweep) -> Table:
    """The seed's computational complexity analysis, with memory and error."""
    columns = "s_kv|topk|dense GFLOP|sparse GFLOP|theoretical|measured|of theoretical|sparse roofline|dense roofline"
    columns += "|dense K+V|sparse KV|sparse peak|naive peak|max error"
    return _table(sweep, "Computational complexity analysis", columns.split("|"), _complexity_lines)


def _complexity_lines(sweep: Sweep) -> list[Line]:
    lines: list[Line] = []
    for row in sweep.rows:
        problem, dense, ours = row.problem, dense_counterpart(row.problem), row.sparse.get(OURS)
        measured = _value(ratio(row.best_dense, ours))
        naive = row.sparse.get("naive")
        line = (
            f"{problem.s_kv}",
            f"{problem.topk}",
            digits(dense.flops / 1e9, 4),
            digits(problem.flops / 1e9, 4),
            times(row.theoretical_speedup),
            times(measured),
            percent(measured / row.theoretical_speedup if measured else None),
            share_cell(roofline_share(ours)),
            share_cell(roofline_share(row.best_dense)),
            byte_count(dense.kv_bytes),
            byte_count(problem.kv_bytes),
            byte_count(ours["peak_bytes"] if ours else None),
            byte_count(naive["peak_bytes"] if naive else None),
            small(ours["max_abs_err"] if ours else None),
        )
        lines.append(line)
    return lines


def prompts_table(sweep: Sweep) -> Table:
    """Whole causal prompts: sparse beside dense 192/128."""
    columns = ["heads", "topk", "tokens", "dense 192/128 sdpa ms", f"dense 192/128 {OURS} ms", f"sparse {OURS} ms"]
    return _table(sweep, "Causal prompts", [*columns, "vs best dense", "theoretical"], _prompt_lines)


def _prompt_lines(sweep: Sweep) -> list[Line]:
    lines: list[Line] = []
    for row in sweep.prompts:
        problem, ours = row.problem, row.sparse.get(OURS)
        line = [f"{problem.h_q}", f"{problem.topk}", f"{problem.s_kv}"]
        line += [_cell(found) for found in (row.dense.get("sdpa"), row.dense.get(OURS), ours)]
        lines.append((*line, times(_value(ratio(row.best_dense, ours))), times(row.theoretical_speedup)))
    return lines


def ratios_table(sweep: Sweep) -> Table:
    """How many times as long each other implementation takes as ours, per op and heads: geometric mean over cases."""
    columns = ("<op", "<heads", "<implementation", f"time over {OURS}'s (geometric mean)", "least", "most", "cases")
    return _table(sweep, "Ratios between implementations", columns, _ratio_lines)


def _ratio_lines(sweep: Sweep) -> list[Line]:
    problems = dict.fromkeys(problem_of(found) for found in sweep.records)
    groups: dict[tuple[str, str], list[dict[str, Record]]] = {}
    for problem in sorted(problems, key=lambda problem: problem.op, reverse=True):
        groups.setdefault((problem.op, _heads(problem)), []).append(sweep.of(problem))
    lines: list[Line] = []
    for (op, heads), cases in groups.items():
        for name in (name for name in sweep.implementations if name != OURS):
            found = [ratio(by_name.get(name), by_name.get(OURS)) for by_name in cases]
            values = [value.value for value in found if value]
            if values:
                mean = times(geometric_mean(values))
                lines.append((op, heads, name, mean, times(min(values)), times(max(values)), f"{len(values)}"))
    return lines


def _heads(problem: Problem) -> str:
    sharing = "MHA" if problem.h_q == problem.h_kv else "MQA" if problem.h_kv == 1 else "GQA"
    return f"{problem.d_qk}/{problem.d_v} {sharing}"


def measurements_table(sweep: Sweep) -> Table:
    """Every number with its interval, and SM cycles where they were read."""
    columns = "<op|s_q|s_kv|heads|d|topk|<kind|<implementation|<backend|ms|95 % interval|Mcycles|n|<clock"
    columns += "|TFLOPS|roofline|peak|max error"
    return _table(sweep, "All measurements", columns.split("|"), _measurement_lines)


def _measurement_lines(sweep: Sweep) -> list[Line]:
    lines: list[Line] = []
    for found in filter(has_number, sweep.records):
        problem = problem_of(found)
        if problem.op == "sparse_fwd":
            kind = f"{problem.indices}" + ("" if problem.features == "none" else f", {problem.features}")
        else:
            kind = "causal" if problem.causal else "full"
        interval = f"{milliseconds(found['seconds_low'])} to {milliseconds(found['seconds_high'])}"
        line = (
            problem.op,
            f"{problem.s_q}",
            f"{problem.s_kv}",
            f"{problem.h_q}/{problem.h_kv}",
            f"{problem.d_qk}/{problem.d_v}",
            f"{problem.topk}" if problem.topk else "all",
            kind,
            found["implementation"],
            found["backend"] or "",
            milliseconds(found["seconds_median"]),
            interval,
            digits(found["cycles_median"] and found["cycles_median"] / 1e6),
            f"{found['samples']}",
            {True: "power cap", False: "free", None: "unknown"}[found["power_capped"]],
            digits(found["tflops"]),
            share_cell(roofline_share(found)),
            byte_count(found["peak_bytes"]),
            small(found["max_abs_err"]),
        )
        lines.append(line)
    return lines


def failures_table(sweep: Sweep) -> Table:
    """Combinations without a number, those with one reason in one line."""
    columns = ("<implementation", "<op", "cases", "<s_kv", "<reason")
    return _table(sweep, "Without a number", columns, _failure_lines)


def _failure_lines(sweep: Sweep) -> list[Line]:
    grouped: dict[tuple[str, str, str], list[Problem]] = {}
    for found in sweep.records:
        if not has_number(found):
            key = (found["implementation"], found["op"], found["error"] or "no number")
            grouped.setdefault(key, []).append(problem_of(found))
    lines: list[Line] = []
    for (name, op, error), problems in grouped.items():
        spans = sorted({problem.s_kv for problem in problems})
        where = f"{spans[0]}" if len(spans) == 1 else f"{spans[0]} to {spans[-1]}"
        lines.append((name, op, f"{len(problems)}", where, error))
    return lines
