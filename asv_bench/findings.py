"""What the records say: rows, ratios and sentences, all computed from the numbers. No rendering beyond text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from asv_bench.cases import Problem, dense_counterpart
from asv_bench.record import Record, problem_of
from asv_bench.tables import Table, byte_count, digits, milliseconds, percent, small, times

OURS = "flash_dsa"
# Candidates for "the fastest dense": what somebody would run instead of sparse attention.
DENSE_CANDIDATES = ("flash_dsa", "sdpa")


@dataclass(frozen=True)
class Ratio:
    """How many times as long one implementation takes as another.

    Args:
        value: ratio of the medians. low, high: from the ends of both intervals, so wider than 95 %.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A sparse problem beside its dense counterpart: one line of the seed's summary.

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
        return dense_counterpart(self.problem).flops / self.problem.flops


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
    def implementations(self) -> list[str]:
        """Names in the records, ours first."""
        return sorted({found["implementation"] for found in self.records}, key=lambda name: (name != OURS, name))

    @property
    def gpu(self) -> str | None:
        """Name of the GPU, or None."""
        return next((found["gpu"] for found in self.records if found["gpu"]), None)

    def newest(self, key: str) -> Any:
        """The value of a key in the newest record that has it."""
        known = [found for found in self.records if found[key] is not None]
        return max(known, key=lambda found: str(found["timestamp"]))[key] if known else None


def has_number(found: Record | None) -> bool:
    """Whether a record holds a measured time."""
    return found is not None and found["seconds_median"] is not None


def ratio(slower: Record | None, faster: Record | None) -> Ratio | None:
    """Time of `slower` over time of `faster`; None unless both have a number and `took_turns`."""
    if slower is None or faster is None or not has_number(slower) or not has_number(faster):
        return None
    if not took_turns(slower, faster):
        return None
    return Ratio(
        slower["seconds_median"] / faster["seconds_median"],
        slower["seconds_low"] / faster["seconds_high"],
        slower["seconds_high"] / faster["seconds_low"],
    )


def took_turns(one: Record, other: Record) -> bool:
    """Whether two records are of one process, protocol and group; old records without a group need the same process."""
    runs, groups = ([found["telemetry"].get(key) for found in (one, other)] for key in ("run", "group"))
    together = None in groups or groups[0] == groups[1]
    return runs[0] is not None and runs[0] == runs[1] and one["protocol"] == other["protocol"] and together


def geometric_mean(values: Iterable[float]) -> float | None:
    """Mean of ratios; None without any."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def why_missing(found: Record | None) -> str:
    """A word or two on why there is no number: `unsupported`, `out of memory`, `not measured`."""
    if found is None:
        return "not measured"
    return (found["error"] or "no number").partition(":")[0].replace("_", " ")


def roofline_share(found: Record | None) -> float | None:
    """Roofline time over measured time, with the machine's ceiling noted in the record."""
    if found is None or not has_number(found) or not found["telemetry"].get("ceiling"):
        return None
    ceiling = found["telemetry"]["ceiling"]
    shortest = problem_of(found).roofline_seconds(ceiling["flops"], ceiling["bytes_per_second"])
    return float(shortest / found["seconds_median"])


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
    lines = []
    for row in sweep.rows:
        problem, ours = row.problem, row.sparse.get(OURS)
        line = [f"{problem.s_q}", f"{problem.s_kv}", f"{problem.topk}", percent((problem.topk or 0) / problem.s_kv)]
        line += [_cell(row.sparse.get("naive")), _cell(row.dense.get("sdpa")), _cell(row.dense.get(OURS))]
        line += [_cell(row.sparse.get(name)) for name in (*peers, OURS)]
        rivals = [row.sparse.get("naive"), row.best_dense, *(row.sparse.get(name) for name in peers)]
        line += [times(_value(ratio(rival, ours))) for rival in rivals]
        line.append(digits(ours["tflops"]) if ours else why_missing(ours))
        lines.append(tuple(line))
    return Table("Performance summary", tuple(columns), tuple(lines))


def complexity_table(sweep: Sweep) -> Table:
    """The seed's computational complexity analysis, with memory and error."""
    columns = "s_kv|topk|dense GFLOP|sparse GFLOP|theoretical|measured|of theoretical|sparse roofline|dense roofline"
    columns += "|dense K+V|sparse KV|sparse peak|naive peak|max error"
    lines = []
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
            percent(roofline_share(ours)),
            percent(roofline_share(row.best_dense)),
            byte_count(dense.kv_bytes),
            byte_count(problem.kv_bytes),
            byte_count(ours["peak_bytes"] if ours else None),
            byte_count(naive["peak_bytes"] if naive else None),
            small(ours["max_abs_err"] if ours else None),
        )
        lines.append(line)
    return Table("Computational complexity analysis", tuple(columns.split("|")), tuple(lines))


def ratios_table(sweep: Sweep) -> Table:
    """How many times as long each other implementation takes as ours, per op and heads: geometric mean over cases."""
    problems = dict.fromkeys(problem_of(found) for found in sweep.records)
    groups: dict[tuple[str, str], list[dict[str, Record]]] = {}
    for problem in sorted(problems, key=lambda problem: problem.op, reverse=True):
        groups.setdefault((problem.op, _heads(problem)), []).append(sweep.of(problem))
    lines = []
    for (op, heads), cases in groups.items():
        for name in (name for name in sweep.implementations if name != OURS):
            found = [ratio(by_name.get(name), by_name.get(OURS)) for by_name in cases]
            values = [value.value for value in found if value]
            if values:
                mean = times(geometric_mean(values))
                lines.append((op, heads, name, mean, times(min(values)), times(max(values)), f"{len(values)}"))
    columns = ("<op", "<heads", "<implementation", f"time over {OURS}'s (geometric mean)", "least", "most", "cases")
    return Table("Ratios between implementations", columns, tuple(lines))


def _heads(problem: Problem) -> str:
    sharing = "MHA" if problem.h_q == problem.h_kv else "MQA" if problem.h_kv == 1 else "GQA"
    return f"{problem.d_qk}/{problem.d_v} {sharing}"


def measurements_table(sweep: Sweep) -> Table:
    """Every number with its interval."""
    columns = "<op|s_q|s_kv|heads|d|topk|<kind|<implementation|<backend|ms|95 % interval|n"
    columns += "|TFLOPS|roofline|peak|max error"
    lines = []
    for found in filter(has_number, sweep.records):
        problem = problem_of(found)
        if problem.op == "sparse_fwd":
            kind = f"{problem.indices}" + ("" if problem.features == "none" else f", {problem.features}")
        else:
            kind = "causal" if problem.causal else "full"
        interval = f"{milliseconds(found['seconds_low'])} to {milliseconds(found['seconds_high'])}"
        capped = " (power cap)" if found["power_capped"] else ""
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
            milliseconds(found["seconds_median"]) + capped,
            interval,
            f"{found['samples']}",
            digits(found["tflops"]),
            percent(roofline_share(found)),
            byte_count(found["peak_bytes"]),
            small(found["max_abs_err"]),
        )
        lines.append(line)
    return Table("All measurements", tuple(columns.split("|")), tuple(lines))


def failures_table(sweep: Sweep) -> Table:
    """Combinations without a number, those with one reason in one line."""
    grouped: dict[tuple[str, str, str], list[Problem]] = {}
    for found in sweep.records:
        if not has_number(found):
            key = (found["implementation"], found["op"], found["error"] or "no number")
            grouped.setdefault(key, []).append(problem_of(found))
    lines = []
    for (name, op, error), problems in grouped.items():
        spans = sorted({problem.s_kv for problem in problems})
        where = f"{spans[0]}" if len(spans) == 1 else f"{spans[0]} to {spans[-1]}"
        lines.append((name, op, f"{len(problems)}", where, error))
    return Table("Without a number", ("<implementation", "<op", "cases", "<s_kv", "<reason"), tuple(lines))


def sentences(sweep: Sweep) -> list[tuple[str, str]]:
    """Findings as (topic, sentence), computed from the numbers; topics: speed, memory, accuracy, coverage."""
    makers: tuple[tuple[str, Callable[[Sweep], list[str]]], ...] = (
        ("speed", _speed),
        ("memory", _memory),
        ("accuracy", _accuracy),
        ("coverage", _coverage),
    )
    return [(topic, text) for topic, make in makers for text in make(sweep)]


def _speed(sweep: Sweep) -> list[str]:
    said = []
    rows = sweep.rows
    for label, rival in (("naive PyTorch", "naive"), ("the peer flash_mla", "flash_mla")):
        found = [ratio(row.sparse.get(rival), row.sparse.get(OURS)) for row in rows]
        values = [value.value for value in found if value]
        if values:
            said.append(_against(f"Sparse attention by {OURS}", label, values))
    against_dense = [(row, ratio(row.best_dense, row.sparse.get(OURS))) for row in rows]
    known = [(row, value.value) for row, value in against_dense if value]
    if known:
        row, value = max(known, key=lambda pair: pair[1])
        best = row.best_dense
        assert best is not None
        said.append(
            f"Against the fastest dense {best['d_qk']}/{best['d_v']} attention over all keys, K and V for each of "
            f"{best['h_kv']} heads, sparse takes {_factor(value)} the time at s_kv {row.problem.s_kv} "
            f"({milliseconds(best['seconds_median'])} ms by {best['implementation']}, "
            f"{milliseconds(row.sparse[OURS]['seconds_median'])} ms sparse); the FLOPs alone would give "
            f"{times(row.theoretical_speedup)}."
        )
        faster = sorted(row.problem.s_kv for row, value in known if value > 1)
        slower = sorted(row.problem.s_kv for row, value in known if value <= 1)
        if faster and not slower:
            said.append(f"Sparse is faster than that dense at every measured s_kv, from {faster[0]} to {faster[-1]}.")
        elif faster:
            said.append(f"Sparse is faster than that dense at s_kv {_list(faster)}, slower at {_list(slower)}.")
        else:
            said.append(f"Sparse is not faster than that dense at any measured s_kv ({_list(slower)}).")
    said += _growth(rows)
    return said


def _growth(rows: Sequence[Row]) -> list[str]:
    """How times grow with s_kv among rows with the same queries and topk."""
    shapes: dict[tuple[int, int | None], list[Row]] = {}
    for row in rows:
        shapes.setdefault((row.problem.s_q, row.problem.topk), []).append(row)
    same = max(shapes.values(), key=len, default=[])
    said = []
    ours = [row.sparse.get(OURS) for row in same]
    for label, found in (("sparse", ours), ("the fastest dense", [row.best_dense for row in same])):
        points = [(f["s_kv"], f["seconds_median"]) for f in found if f is not None and has_number(f)]
        if len(points) >= 2:
            (first, t_first), (last, t_last) = points[0], points[-1]
            said.append(f"{label} takes {times(t_last / t_first)} as long at s_kv {last} as at {first}")
    return [f"At topk {same[0].problem.topk}, {' and '.join(said)}."] if said else []


def _memory(sweep: Sweep) -> list[str]:
    said = []
    rows = sweep.rows
    if rows:
        problem = rows[-1].problem
        dense = dense_counterpart(problem)
        said.append(
            f"At s_kv {problem.s_kv} the shared latent KV takes {byte_count(problem.kv_bytes)}; K and V of "
            f"{dense.h_kv} heads take {byte_count(dense.kv_bytes)}, {times(dense.kv_bytes / problem.kv_bytes)} as much."
        )
    peaks = [(row, row.sparse.get(OURS), row.sparse.get("naive")) for row in rows]
    known = [(row, a, b) for row, a, b in peaks if a and b and a["peak_bytes"] and b["peak_bytes"]]
    if known:
        row, ours, naive = known[-1]
        said.append(
            f"One call at s_kv {row.problem.s_kv} holds {byte_count(ours['peak_bytes'])} beyond its inputs with {OURS} "
            f"and {byte_count(naive['peak_bytes'])} with naive."
        )
    elif rows:
        said.append("Peak memory of a call is not known on this machine: only CUDA's allocator tells it.")
    return said


def _accuracy(sweep: Sweep) -> list[str]:
    said = []
    for op in ("sparse_fwd", "dense_fwd"):
        parts = []
        for name in sweep.implementations:
            errors = [
                found["max_abs_err"]
                for found in sweep.records
                if (found["op"], found["implementation"]) == (op, name) and has_number(found)
            ]
            if errors:
                parts.append(f"{name} {small(max(errors))}")
        if parts:
            said.append(f"Largest error of {op} against the fp64 reference, on rows drawn anew: {', '.join(parts)}.")
    wrong = [found for found in sweep.records if (found["error"] or "").startswith("wrong_answer")]
    for found in wrong:
        where = f"{found['op']} at s_kv {found['s_kv']}"
        reason = (found["error"] or "").removeprefix("wrong_answer: ")
        said.append(f"{found['implementation']} is outside the tolerance in {where} ({reason}); no time is kept.")
    return said


def _coverage(sweep: Sweep) -> list[str]:
    total = len(sweep.records)
    if not total:
        return []
    numbers = sum(has_number(found) for found in sweep.records)
    return [f"{numbers} of {total} combinations have a number; the others are listed with their reason."]


def _against(what: str, rival: str, values: Sequence[float]) -> str:
    mean = geometric_mean(values)
    assert mean is not None
    span = f" ({times(min(values))} to {times(max(values))})" if len(values) > 1 else ""
    cases = "case" if len(values) == 1 else "cases"
    comparison = f"{times(mean)} faster than" if mean > 1 else f"{times(mean)} as fast as"
    return f"{what} is {comparison} {rival}, geometric mean over {len(values)} {cases}{span}."


def _factor(value: float) -> str:
    return f"1/{digits(value)} of" if value >= 1 else times(1 / value)


def _list(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
