"""What the numbers allow to say, as sentences. None claims more than the intervals of its numbers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asv_bench import provenance
from asv_bench.cases import PROBLEM_FIELDS, Problem, dense_counterpart, prompt_counterpart
from asv_bench.findings import (
    OURS,
    Drift,
    Ratio,
    Row,
    Sweep,
    controls_of,
    crossover,
    drifts,
    has_number,
    interval_ratio,
    mean_ratio,
    ratio,
    roofline_share,
    why_missing,
)
from asv_bench.record import Record
from asv_bench.tables import byte_count, digits, milliseconds, percent, small, times


def sentences(sweep: Sweep) -> list[tuple[str, str]]:
    """Findings as (topic, sentence), computed from the numbers; topics: speed, memory, accuracy, machine, coverage.

    Where a sweep has records of several commits, each sentence is about one of them and names it.
    """
    makers: tuple[tuple[str, Callable[[Sweep], list[str]]], ...] = (
        ("speed", _speed),
        ("memory", _memory),
        ("accuracy", _accuracy),
        ("machine", _machine),
    )
    parts = sweep.by_commit
    said = [
        (topic, text if len(parts) == 1 else f"Commit {label}: {text}")
        for topic, make in makers
        for label, part in parts.items()
        for text in make(part)
    ]
    return [*said, *(("coverage", text) for text in _coverage(sweep))]


def _speed(sweep: Sweep) -> list[str]:
    rows, said = sweep.rows, []
    for rival, label in (("naive", "naive PyTorch"), ("flash_mla", "the peer flash_mla")):
        found = [ratio(row.sparse.get(rival), row.sparse.get(OURS)) for row in rows]
        said += _against(f"Sparse attention by {OURS}", label, [value for value in found if value])
    known = [(row, value) for row in rows if (value := ratio(row.best_dense, row.sparse.get(OURS)))]
    if known:
        said += [_against_dense(*max(known, key=lambda pair: pair[1].value)), _where_faster(known, len(rows))]
    return said + _crossovers(sweep.prompts) + _growth(rows)


def _against(what: str, rival: str, ratios: Sequence[Ratio]) -> list[str]:
    """The mean over cases with its spread, and how many cases are on which side of 1."""
    mean = mean_ratio(ratios)
    if mean is None:
        return []
    values, sides = [one.value for one in ratios], [one.side for one in ratios]
    cases = "1 case" if len(values) == 1 else f"{len(values)} cases"
    span = f"{times(min(values))} to {times(max(values))}" if len(values) > 1 else _interval(mean)
    if mean.side > 0:
        comparison = f"{times(mean.value)} faster than {rival}"
    elif mean.side < 0:
        comparison = f"{times(mean.value)} as fast as {rival}"
    else:
        doubt = f" (interval of the mean {_interval(mean)})" if len(values) > 1 else ""
        comparison = f"not distinguishable from {rival}{doubt}: {times(mean.value)}"
    counts = ((sides.count(1), "faster"), (sides.count(-1), "slower"), (sides.count(0), "not distinguishable"))
    tally = provenance.listed(f"{word} in {count}" for count, word in counts if count)
    mixed = f": {tally}" if len(set(sides)) > 1 else ""
    return [f"{what} is {comparison}, geometric mean over {cases} ({span}){mixed}."]


def _against_dense(row: Row, value: Ratio) -> str:
    best, ours = row.best_dense, row.sparse[OURS]
    assert best is not None
    times_taken = f"{milliseconds(best['seconds_median'])} ms by {best['implementation']}, "
    times_taken += f"{milliseconds(ours['seconds_median'])} ms sparse"
    if value.side:
        claim = f"sparse takes {_factor(value.value)} the time at s_kv {row.problem.s_kv}"
        evidence = f"{times_taken}; {_fraction(value.high)} to {_fraction(value.low)}"
    else:
        claim = f"sparse is not distinguishable at s_kv {row.problem.s_kv}"
        evidence = f"{times_taken}; ratio {_interval(value)}"
    return (
        f"Against the fastest dense {best['d_qk']}/{best['d_v']} attention over all keys, K and V for each of "
        f"{best['h_kv']} heads, {claim} ({evidence}); the FLOPs alone would give {times(row.theoretical_speedup)}."
    )


def _where_faster(known: Sequence[tuple[Row, Ratio]], asked: int) -> str:
    """At which s_kv sparse is faster than dense by more than the intervals."""
    at: dict[int, list[int]] = {side: [] for side in (1, -1, 0)}
    for row, value in known:
        at[value.side].append(row.problem.s_kv)
    fast, slow, same = (sorted(set(at[side])) for side in (1, -1, 0))
    measured = "measured s_kv" if len(known) == asked else "s_kv where both have a number of one process"
    if not slow and not same:
        span = f"from {fast[0]} to {fast[-1]}" if len(fast) > 1 else f"{fast[0]}"
        return f"Sparse is faster than that dense at every {measured}, {span}."
    if not fast and not same:
        return f"Sparse is not faster than that dense at any {measured} ({_list(slow)})."
    if not fast and not slow:
        return f"Sparse is not distinguishable from that dense at any {measured} ({_list(same)})."
    words = (("faster than that dense at s_kv", fast), ("slower at", slow), ("not distinguishable from it at", same))
    return f"Sparse is {', '.join(f'{word} {_list(values)}' for word, values in words if values)}."


def _crossovers(rows: Sequence[Row]) -> list[str]:
    """Of whole causal prompts: between which lengths each topk overtakes dense 192/128, and what is not counted."""
    shapes: dict[tuple[int, int | None], dict[int, Ratio]] = {}
    for row in rows:
        found = ratio(row.best_dense, row.sparse.get(OURS))
        if found:
            shapes.setdefault((row.problem.h_q, row.problem.topk), {})[row.problem.s_kv] = found
    said = [
        f"For causal prompts of {min(found)} to {max(found)} tokens with {heads} heads, sparse at topk {topk} "
        f"{_crossing(found)}."
        for (heads, topk), found in shapes.items()
        if len(found) > 1
    ]
    if not said:
        return []
    longest = rows[-1].problem
    more = dense_counterpart(longest).flops / prompt_counterpart(longest).flops
    return [
        *said,
        f"Dense 192/128 is what serving engines run for a prompt; the seed's dense 576/512 over all keys has "
        f"{times(more)} its FLOPs. These are times of attention alone: the projection GEMMs are not counted, and they "
        "differ (dense 192/128 has K and V of every head made from the latent KV, sparse has queries and outputs "
        "carried into the latent space and back); nor is the indexer, which sparse alone needs.",
    ]


def _crossing(ratios: Mapping[int, Ratio]) -> str:
    """Where sparse overtakes dense, with the ratios at both ends of the bracket."""
    rival, found = "the fastest dense 192/128", crossover(ratios)
    if found.upto is None:
        claim, shown = f"does not overtake {rival} at any measured s_kv", [max(ratios)]
    elif found.above is not None:
        claim, shown = f"overtakes {rival} between s_kv {found.above} and {found.upto}", [found.above, found.upto]
    elif found.upto == min(ratios):
        claim, shown = f"is faster than {rival} at every measured s_kv", [found.upto]
    else:
        claim, shown = f"is faster than {rival} from s_kv {found.upto} on, not distinguishable below", [found.upto]
    ends = ", ".join(f"{_interval(ratios[s_kv])} at {s_kv}" for s_kv in shown)
    return f"{claim} (time of dense over that of sparse: {ends})"


def _growth(rows: Sequence[Row]) -> list[str]:
    """How times grow with s_kv among rows that differ in nothing else."""
    shapes: dict[Problem, list[Row]] = {}
    for row in rows:
        shapes.setdefault(replace(row.problem, s_kv=row.problem.s_q), []).append(row)
    longest: list[Row] = max(shapes.values(), key=len, default=[])
    same = sorted(longest, key=lambda row: row.problem.s_kv)
    columns = {
        "sparse": [row.sparse.get(OURS) for row in same],
        "naive": [row.sparse.get("naive") for row in same],
        "the fastest dense": [row.best_dense for row in same],
    }
    said = []
    for label, found in columns.items():
        points = [one for one in found if one is not None and has_number(one)]
        points = [one for one in points if _conditions(one) == _conditions(points[-1])]
        if len(points) >= 2:
            first, last = points[0], points[-1]
            grown = interval_ratio(last, first)
            clear = "" if grown.side else ", so no growth can be told"
            as_long = f"takes {times(grown.value)} as long at s_kv {last['s_kv']} as at {first['s_kv']}"
            said.append(f"{label} {as_long} ({_interval(grown)}{clear})")
    return [f"At topk {same[0].problem.topk}, {provenance.listed(said)}; they did not take turns."] if said else []


def _conditions(found: Record) -> tuple[object, ...]:
    """What must be equal for two times of one implementation that did not take turns to be worth a ratio at all."""
    noted = found["telemetry"]
    return found["protocol"], found["machine"], found["gpu"], noted.get("gpu_uuid"), noted.get("torch")


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
    elif rows and not sweep.gpu:
        said.append("Peak memory of a call is not known on this machine: only CUDA's allocator tells it.")
    return said


def _accuracy(sweep: Sweep) -> list[str]:
    said = []
    for op in ("sparse_fwd", "dense_fwd"):
        errors: dict[str, dict[tuple[Any, ...], float]] = {}  # by implementation, of each problem
        for one in sweep.records:
            if one["op"] == op and has_number(one) and one["max_abs_err"] is not None:
                problem = tuple(one[name] for name in PROBLEM_FIELDS)
                errors.setdefault(one["implementation"], {})[problem] = one["max_abs_err"]
        shared = set.intersection(*map(set, errors.values())) if errors else set()
        names = [name for name in sweep.implementations if name in errors]
        said_of = f"Largest error of {op} against the fp64 reference, on rows drawn anew"
        if shared:
            cases = "case" if len(shared) == 1 else "cases"
            most = ", ".join(f"{name} {small(max(errors[name][problem] for problem in shared))}" for name in names)
            said.append(f"{said_of}, in the same {len(shared)} {cases}: {most}.")
        if any(set(errors[name]) != shared for name in names):
            most = ", ".join(f"{name} {small(max(errors[name].values()))} ({len(errors[name])})" for name in names)
            said.append(f"{said_of}, in all cases that each took (how many): {most}.")
    wrong = [found for found in sweep.records if (found["error"] or "").startswith("wrong_answer")]
    for found in wrong:
        where = f"{found['op']} at s_kv {found['s_kv']}"
        reason = (found["error"] or "").removeprefix("wrong_answer: ")
        said.append(f"{found['implementation']} is outside the tolerance in {where} ({reason}); no time is kept.")
    return said


_CONTROLS = {"copy": "the copy", "gemm": "the GEMM"}  # in a sentence


def _machine(sweep: Sweep) -> list[str]:
    said = []
    for run in sweep.by_run.values():
        moved = {name: drift for name, drift in drifts(run).items() if drift.matters}
        if moved:
            begun = min(found["timestamp"] for found in run)[:16].replace("T", " ")
            cycles = [drift.cycles and drift.cycles - 1 for drift in moved.values()]
            beside = f" (in SM cycles {provenance.listed(map(percent, cycles))})" if any(cycles) else ""
            said.append(
                f"Over the run of {begun} the machine moved: {_each(moved)}{beside}; "
                "numbers of different groups differ by up to that much for its sake alone."
            )
    for name, noted in controls_of(sweep.records).items():
        reasons = dict.fromkeys(why_missing(facts) for facts in noted if not has_number(facts))
        if reasons:
            what = _CONTROLS.get(name, name)
            said.append(f"As a control {what} has no time before or after some groups: {', '.join(reasons)}.")
    return said


def steadiness(sweep: Sweep) -> str:
    """How far the controls moved at most over a run, whether that matters or not; nothing where there are none."""
    most: dict[str, Drift] = {}
    for run in sweep.by_run.values():
        for name, drift in drifts(run).items():
            most[name] = max(most.get(name, drift), drift, key=lambda one: one.seconds.value)
    return f"Measured before and after each group of a run, {_each(most)}." if most else ""


def _each(of: Mapping[str, Drift]) -> str:
    """Controls with their drift: `the copy and the GEMM took 1.20 % and 3.40 % more at the slowest than ...`."""
    names = provenance.listed(_CONTROLS.get(name, name) for name in of)
    more = provenance.listed(percent(drift.seconds.value - 1) for drift in of.values())
    return f"{names} took {more} more at the slowest than at the fastest"


def _coverage(sweep: Sweep) -> list[str]:
    total = len(sweep.records)
    if not total:
        return []
    numbers = sum(has_number(found) for found in sweep.records)
    missing = "" if numbers == total else "; the others are listed with their reason"
    said = [f"{numbers} of {total} combinations have a number{missing}."]
    unlike = provenance.differences(sweep.records)
    if unlike:
        said.append(f"Not all records are of one origin: {'; '.join(unlike)}.")
    return said + _over_the_ceiling(sweep)


def _over_the_ceiling(sweep: Sweep) -> list[str]:
    shares = [(share, found) for found in sweep.records if (share := roofline_share(found)) and share > 1]
    if not shares:
        return []
    share, worst = max(shares, key=lambda pair: pair[0])
    what = "1 number is" if len(shares) == 1 else f"{len(shares)} numbers are"
    where = f"{worst['implementation']} in {worst['op']} at s_kv {worst['s_kv']}"
    source = worst["telemetry"]["ceiling"]["source"]
    return [
        f"{what} above 100 % of the roofline, at most {percent(share)} ({where}), which cannot be: the ceiling in the "
        f"record ({source}) is too low for it, or the timing is wrong."
    ]


def _interval(of: Ratio) -> str:
    """Both ends, with as many digits as it takes to tell them from each other and, if it excludes 1, from 1."""
    for count in range(3, 8):
        ends = [digits(end, count) for end in (of.low, of.high)]
        rounded = {f"{end:.{count - 1}f}" for end in (of.low, of.high)}
        if (ends[0] != ends[1] or of.low == of.high) and not (of.side and f"{1:.{count - 1}f}" in rounded):
            break
    return f"{ends[0]}x to {ends[1]}x"


def _fraction(value: float) -> str:
    """The time of sparse over that of dense, from the ratio the other way round."""
    return f"1/{digits(value)}" if value >= 1 else times(1 / value)


def _factor(value: float) -> str:
    return f"{_fraction(value)} of" if value >= 1 else _fraction(value)


def _list(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
