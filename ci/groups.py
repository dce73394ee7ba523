"""Grouped sentences: what moved together, over s_kv and topk, instead of a row for each case.

Cases of one family differ in s_kv and topk alone. Those of a family that moved the same way are said in as few
sentences as there are sets of s_kv: topk values that moved at the same s_kv go together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ci.markdown import code, percent, word
from ci.verdict import CaseVerdict, Verdict

Problem = Mapping[str, Any]
SUITES = {"sparse_fwd": "sparse_prefill", "dense_fwd": "dense_prefill"}  # asv's modules, by the op that they measure
_MEMBERS_SHOWN = 8  # of a list of sizes
_WITHOUT_NUMBER = {Verdict.FAILED: "failed", Verdict.MISSING: "had nothing to measure (n/a)"}
# What tells families apart; s_q only where one s_kv and topk has several.
_FAMILY = ("op", "h_q", "h_kv", "d_qk", "d_v", "causal", "indices", "features")


@dataclass(frozen=True)
class _Cell:
    case: CaseVerdict
    problem: Problem
    family: tuple[Any, ...]

    @property
    def topk(self) -> int | None:
        return self.problem.get("topk")

    @property
    def s_kv(self) -> int:
        return int(self.problem["s_kv"])


def sentences(
    cases: Sequence[CaseVerdict],
    problems: Mapping[str, Problem],
    verdicts: Sequence[Verdict] = (Verdict.REGRESSED, Verdict.IMPROVED),
) -> list[str]:
    """What is slower and what is faster, the largest change first.

    Args:
        verdicts: of which cases are said.
        cases: all of the run, as the grid says which values exist. problems: fields of the problem by case id; a case
            without them, or with sizes that are no numbers, gets a sentence of its own.
    """
    cells = _cells(cases, problems)
    known = {cell.case.id for cell in cells}
    found: list[tuple[float, str]] = []
    for verdict in verdicts:
        moved = [cell for cell in cells if cell.case.verdict is verdict]
        for family in dict.fromkeys(cell.family for cell in moved):
            grid = [cell for cell in cells if cell.family == family]
            label = _label(family, cells)
            for group in _groups([cell for cell in moved if cell.family == family]):
                text = f"{label}{_topk(group, grid)} {by_how_much([cell.case for cell in group])} {_s_kv(group, grid)}"
                found.append((_size([cell.case for cell in group]), text))
        for case in cases:
            if case.verdict is verdict and case.id not in known:
                found.append((_size([case]), f"{code(case.id)} {by_how_much([case])}"))
    return [text for _, text in sorted(found, key=lambda pair: -pair[0])]


def by_how_much(cases: Sequence[CaseVerdict]) -> str:
    """Cases that moved the same way as `slower by 4.1 % (3.8 to 4.4 %)`, or what became of those without numbers.

    Where one change could be that of all cases, it is their geometric mean with the mean of their intervals, as wide as
    if they all erred together. Otherwise the least and the largest are said, and the mean.
    """
    if cases[0].verdict in _WITHOUT_NUMBER:
        return _WITHOUT_NUMBER[cases[0].verdict]
    known = [(case.ratio, case.low, case.high) for case in cases]
    ratios, lows, highs = (
        [math.log(value) for value in column if value] for column in zip(*known, strict=True)
    )  # fmt: skip
    if not ratios or len(ratios) != len(cases):
        return "moved"
    slower = sum(ratios) > 0

    def share(logs: Sequence[float]) -> float:
        return abs(math.expm1(sum(logs) / len(logs)))

    word_, middle = ("slower" if slower else "faster"), share(ratios)
    decimals = 2 if middle < 0.00995 else 1
    if max(lows) <= min(highs):
        ends = [math.expm1(sum(side) / len(side)) * (1 if slower else -1) for side in (lows, highs)]
        low, high = (percent(end, decimals) for end in sorted(ends))
        return f"{word_} by {percent(middle, decimals)} % ({low} to {high} %)"
    least, most = sorted(share([ratio]) for ratio in (min(ratios), max(ratios)))
    return f"{word_} by {percent(least)} to {percent(most)} % (geometric mean {percent(middle)} %)"


def _cells(cases: Sequence[CaseVerdict], problems: Mapping[str, Problem]) -> list[_Cell]:
    usable = {}
    for case in cases:
        problem = problems.get(case.id, {})
        sizes = [problem.get("s_kv"), *([] if problem.get("topk") is None else [problem["topk"]])]
        if isinstance(problem.get("op"), str) and all(_is_size(size) for size in sizes):
            usable[case.id] = problem
    keys = {name: tuple(_plain(problem.get(field)) for field in _FAMILY) for name, problem in usable.items()}
    queries: dict[tuple[Any, ...], set[Any]] = {}
    for name, problem in usable.items():
        queries.setdefault((keys[name], problem["s_kv"], problem.get("topk")), set()).add(_plain(problem.get("s_q")))
    split = {key[0] for key, found in queries.items() if len(found) > 1}
    cells = []
    for case in cases:
        if case.id in usable:
            key, problem = keys[case.id], usable[case.id]
            s_q = _plain(problem.get("s_q")) if key in split else None
            cells.append(_Cell(case, problem, (*key, s_q)))
    return cells


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 48


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _label(family: tuple[Any, ...], cells: Sequence[_Cell]) -> str:
    """The op, and of the rest what tells this family from others of the op."""
    others = {cell.family for cell in cells if cell.family[0] == family[0]}
    differs = {
        name
        for number, name in enumerate((*_FAMILY, "s_q"))
        if len({other[number] for other in others}) > 1
    }  # fmt: skip
    fields = dict(zip((*_FAMILY, "s_q"), family, strict=True))
    parts = [word(fields["op"])]
    if "s_q" in differs and fields["s_q"] is not None:
        parts.append(f"s_q {word(fields['s_q'])}")
    if differs & {"h_q", "h_kv"}:
        parts.append(f"heads {word(fields['h_q'])}/{word(fields['h_kv'])}")
    if differs & {"d_qk", "d_v"}:
        parts.append(f"d {word(fields['d_qk'])}/{word(fields['d_v'])}")
    if "causal" in differs and fields["causal"] is not None:
        parts.append("causal" if fields["causal"] else "full")
    if "indices" in differs and fields["indices"] is not None:
        parts.append(f"{word(fields['indices'])} indices")
    if "features" in differs and fields["features"] is not None:
        parts.append("plain" if fields["features"] == "none" else word(fields["features"]))
    return " ".join(parts)


def _groups(moved: Sequence[_Cell]) -> list[list[_Cell]]:
    """Cells of one family by the set of s_kv at which their topk moved."""
    by_topk: dict[int | None, list[_Cell]] = {}
    for cell in moved:
        by_topk.setdefault(cell.topk, []).append(cell)
    by_set: dict[frozenset[int], list[_Cell]] = {}
    for cells in by_topk.values():
        by_set.setdefault(frozenset(cell.s_kv for cell in cells), []).extend(cells)
    return list(by_set.values())


def _topk(group: Sequence[_Cell], grid: Sequence[_Cell]) -> str:
    values = sorted({cell.topk for cell in group if cell.topk is not None})
    existing = sorted({cell.topk for cell in grid if cell.topk is not None})
    if not values or (values == existing and len(existing) > 1):
        return ""
    if len(values) > 1 and values == existing[-len(values) :]:
        return f" topk >= {values[0]}"
    if len(values) > 1 and values == existing[: len(values)]:
        return f" topk <= {values[-1]}"
    return f" topk {_listed(values)}"


def _s_kv(group: Sequence[_Cell], grid: Sequence[_Cell]) -> str:
    values = sorted({cell.s_kv for cell in group})
    topks = {cell.topk for cell in group}
    existing = sorted({cell.s_kv for cell in grid if cell.topk in topks})
    first = existing.index(values[0])
    together = len(values) > 1 and existing[first : first + len(values)] == values
    return f"at s_kv {values[0]} to {values[-1]}" if together else f"at s_kv {_listed(values)}"


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(str(value) for value in values[:_MEMBERS_SHOWN])
    return shown if len(values) <= _MEMBERS_SHOWN else f"{shown} and {len(values) - _MEMBERS_SHOWN} more"


def _size(cases: Sequence[CaseVerdict]) -> float:
    return max((abs(math.log(case.ratio)) for case in cases if case.ratio), default=math.inf)
