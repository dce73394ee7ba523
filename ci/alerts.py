"""Alerts: what moved in a history, said once for all series that moved with it, and whether code or machine did it.

A change point shared by several series of a machine is one alert, and so is a commit from which on several give no
value any more, because they fail or have nothing to measure. Two kinds of witnesses speak for the machine: controls,
whose work no commit changes, and implementations that are not ours. Where the code's fingerprint was recorded all
around a change and never differs, nothing else is asked.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ci import changepoint, codegen, groups, stats
from ci.changepoint import ChangePoint
from ci.history import History
from ci.markdown import code
from ci.policy import History as Rule
from ci.results import Unreadable, or_none
from ci.verdict import FOUND, INCONCLUSIVE, NOTHING_TO_REPORT, CaseVerdict, Verdict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = 1
ACKNOWLEDGED = Path(__file__).with_name("acknowledged.toml")
OURS = "flash_dsa"
_OPS = {module: op for op, module in groups.SUITES.items()}
_CONTROLS = "control"
# Classes of the GPU's grid, by which alone a series is not named.
_SUITES = {"SparsePrefill.track_seconds", "DensePrefill.track_seconds", "SparseOverDense.track_ratio"}
_RATIOS = "speedup"  # of sparse over dense, derived from what the other modules measure
_RATIO = "sparse_over_dense"  # how sentences call them
# Measured commits on each side of an alert's range in which the code must not have changed either, where it was
# recorded, to speak for the machine: small steps are sometimes located a few commits off.
_MARGIN = 3
_WITNESSED = 30  # steps of witnesses from which on they say how noisy the machine is
_LOST = (Verdict.FAILED, Verdict.MISSING)
_BAD = (Verdict.REGRESSED, *_LOST)

Fingerprints = Mapping[tuple[str, str], codegen.Fingerprint]  # by machine and commit


class Cause(str, Enum):
    """What moved."""

    CODE = "code"
    ENVIRONMENT = "environment"
    UNKNOWN = "unknown"


class Status(str, Enum):
    """What became of an alert."""

    OPEN = "open"
    WEAK = "weak"  # one noisy series alone, by less than would convince
    FIXED = "fixed"
    ACKNOWLEDGED = "acknowledged"


@dataclass(frozen=True)
class Moved:
    """A change point of a series, or where it lost its value.

    Args:
        history, point: the series and where; the level after a loss is NaN.
        loss: failed or missing where it lost its value, else None. back: the commit, by index, that has a value again.
    """

    history: History
    point: ChangePoint
    loss: Verdict | None = None
    back: int | None = None

    @property
    def verdict(self) -> Verdict:
        """What a reader calls it; all of ours and all of asv's are better when they are small."""
        return self.loss or (Verdict.REGRESSED if self.slower else Verdict.IMPROVED)

    @property
    def slower(self) -> bool:
        """Whether the value grew."""
        return self.point.ratio > 1

    @property
    def size(self) -> float:
        """Logarithm of after over before; NaN for a loss, with which no comparison is true."""
        return math.log(self.point.ratio)


@dataclass(frozen=True)
class Acknowledgement:
    """An entry of `ci/acknowledged.toml`.

    Args:
        commit: a full hash or the beginning of one, in the alert's range. benchmarks: a pattern that all of the alert's
            benchmarks fit, such as `sparse_prefill.*`. author, reason, date: shown with the alert.
    """

    commit: str
    benchmarks: str
    author: str
    reason: str
    date: str


@dataclass(frozen=True)
class Alert:
    """What moved together.

    Args:
        moved: the change points, of one machine and environment. cause, status: see there.
        fixed_by: the commit that undid it, or None. acknowledgement: who accepted it, or None.
        changed: which commits of the range changed the code, by its fingerprints; empty where they do not tell.
        grid: all series of the place, so that sentences can say "all" where it is all.
    """

    moved: tuple[Moved, ...]
    cause: Cause
    status: Status = Status.OPEN
    fixed_by: str | None = None
    acknowledgement: Acknowledgement | None = None
    changed: tuple[int, ...] = ()
    grid: tuple[History, ...] = field(default=(), compare=False, repr=False)

    @property
    def verdict(self) -> Verdict:
        """Regressed, improved, failed or missing."""
        return self.moved[0].verdict

    @cached_property
    def commits(self) -> tuple[str, ...]:
        """The commits that may have done it, the likeliest of them first, then in their order."""
        commits = self.moved[0].history.commits
        first, last = _range(self.moved)
        likely = _likeliest(self.moved)
        possible = self.changed or (likely, *range(first, last + 1))
        nearest = min(possible, key=lambda index: (abs(index - likely), index))
        return (commits[nearest], *(commits[i] for i in sorted(set(possible)) if i != nearest))

    @property
    def known_good(self) -> str:
        """The last commit that was measured before any of them."""
        commits = self.moved[0].history.commits
        first = min(commits.index(commit) for commit in self.commits)
        return commits[_last_before(self.moved, first)]

    @property
    def id(self) -> str:
        """The same for the same change, as long as later history does not move where it is seen."""
        history = self.moved[0].history
        names = sorted({one.history.benchmark for one in self.moved})
        text = "\n".join([history.machine, history.environment, self.commits[0], self.verdict.value, *names])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def sentences(self) -> list[str]:
        """A sentence for each group over s_kv and topk, or for each series of another project."""
        known: dict[str, dict[str, Any]] = {}
        cases, other = [], []
        for one in self.moved:
            problem = _problem(one.history)
            if problem is None:
                other.append(f"{code(_name(one.history))} {groups.by_how_much([_case(one)])}")
            else:
                known[_name(one.history)] = problem
                cases.append(_case(one))
        for history in self.grid:
            problem, name = _problem(history), _name(history)
            if problem is not None and name not in known:
                known[name] = problem
                cases.append(CaseVerdict(name, Verdict.UNCHANGED))
        said = groups.sentences(cases, known, [self.verdict])
        said.sort(key=lambda sentence: sentence.startswith(_RATIO))  # after what they are made of
        return said + sorted(other)


def judge(
    histories: Iterable[History],
    rule: Rule,
    fingerprints: Fingerprints | None = None,
    acknowledged: Sequence[Acknowledgement] = (),
) -> list[Alert]:
    """The alerts of histories, by machine and environment, in the order of commits.

    Args:
        histories: series. rule: thresholds. fingerprints: of the code of commits, where they were recorded.
        acknowledged: what somebody accepted.
    """
    by_place: dict[tuple[str, str], list[History]] = {}
    for history in histories:
        by_place.setdefault((history.machine, history.environment), []).append(history)
    found = []
    for place in by_place.values():
        unrest = _unrest(place, rule)
        moved = [
            Moved(history, point)
            for history in place
            for point in changepoint.detect(history.values, rule, history.noise, unrest)
        ]
        moved += itertools.chain.from_iterable(map(_losses, place))
        moved = [one for one in moved if not _follows_dense(one, moved)]
        together = [group for group in _together(moved) if not _follows_from(group, moved)]
        changes = [_code_changes(group, fingerprints or {}) for group in together]
        causes = [_cause(group, moved, place, change) for group, change in zip(together, changes, strict=True)]
        later: dict[int, list[tuple[Moved, Cause]]] = {}  # by series
        for group, cause in zip(together, causes, strict=True):
            for one in group:
                later.setdefault(id(one.history), []).append((one, cause))
        for group, cause, change in zip(together, causes, changes, strict=True):
            status = Status.WEAK if _is_weak(group, rule) else Status.OPEN
            changed = _in_range(group, change) or tuple(change or ())
            changed = changed if cause is Cause.CODE else ()
            alert = Alert(group, cause, status, changed=changed, grid=tuple(place))
            found.append(_followed_up(alert, later, rule, acknowledged))
    return found


def exit_code(alerts: Sequence[Alert]) -> int:
    """1 when something got worse and is neither fixed, acknowledged nor the machine's; 2 when only weak ones did."""
    ours = [one for one in alerts if one.verdict in _BAD and one.cause is not Cause.ENVIRONMENT]
    if any(one.status is Status.OPEN for one in ours):
        return FOUND
    return INCONCLUSIVE if any(one.status is Status.WEAK for one in ours) else NOTHING_TO_REPORT


def _losses(history: History) -> Iterator[Moved]:
    """Where a series that had a value failed or had nothing to measure, each until it has a value again."""
    measured = np.flatnonzero(history.values > 0)
    without = sorted({*history.failed, *history.not_applicable})
    for number, found in itertools.groupby(without, key=lambda index: int(np.searchsorted(measured, index))):
        if number == 0:  # it never had a value before
            continue
        indices = list(found)
        first, before = indices[0], float(history.values[measured[number - 1]])
        point = ChangePoint(first, first, first, before, math.nan, math.nan, math.nan, math.nan)
        loss = Verdict.MISSING if set(history.failed).isdisjoint(indices) else Verdict.FAILED
        yield Moved(history, point, loss, int(measured[number]) if number < len(measured) else None)


def _together(moved: Sequence[Moved]) -> list[tuple[Moved, ...]]:
    """What went the same way and may be the same commit's, as ranges have one in common; witnesses apart.

    What most have at one commit comes first: another whose own commit is near and whose range is wide joins it.
    """
    at_commits: dict[tuple[Verdict, bool, int], list[Moved]] = {}
    for one in sorted(moved, key=lambda one: (one.history.benchmark, one.history.params)):
        at_commits.setdefault((one.verdict, _is_witness(one.history), one.point.index), []).append(one)
    found: dict[tuple[Verdict, bool], list[list[Moved]]] = {}
    for (verdict, witness, _), group in sorted(at_commits.items(), key=lambda item: (-len(item[1]), item[0][2])):
        kind = found.setdefault((verdict, witness), [])
        for larger in kind:
            if _may_be_one(larger + group):
                larger += group
                break
        else:
            kind.append(group)
    groups_found = [tuple(group) for kind in found.values() for group in kind]
    return sorted(groups_found, key=lambda group: group[0].point.index)


def _may_be_one(moved: Sequence[Moved]) -> bool:
    return max(one.point.earliest for one in moved) <= min(one.point.latest for one in moved)


def _range(moved: Sequence[Moved]) -> tuple[int, int]:
    """The first and the last commit that may have done it, by all of them; one that was not measured may, too."""
    first = max(one.point.earliest for one in moved)
    last = max(first, min(one.point.latest for one in moved))
    return _last_before(moved, first) + 1, last


def _in_range(moved: Sequence[Moved], changes: Sequence[int] | None) -> tuple[int, ...]:
    first, last = _range(moved)
    return tuple(index for index in changes or () if first <= index <= last)


def _measured(moved: Sequence[Moved]) -> NDArray[np.intp]:
    """Indices of the commits at which any of them was measured, or lost its value."""
    there = np.logical_or.reduce([one.history.values > 0 for one in moved])
    there[[one.point.index for one in moved]] = True
    return np.flatnonzero(there)


def _last_before(moved: Sequence[Moved], index: int) -> int:
    """The last commit measured before one that a change point leaves possible; there always is one."""
    measured = _measured(moved)
    return int(measured[np.searchsorted(measured, index) - 1])


def _follows_dense(one: Moved, others: Sequence[Moved]) -> bool:
    """Whether this is a ratio of sparse over dense that moved because our dense did, the other way round."""
    if not _is_ratio(one.history) or one.loss:
        return False
    return any(
        other.history.benchmark.startswith("dense_prefill.")
        and not _is_witness(other.history)
        and other.history.params[1:2] == one.history.params[2:3]  # of the same head sizes
        and other.slower != one.slower
        and abs(other.size) >= abs(one.size) / 2
        and _may_be_one([one, other])
        for other in others
    )


def _follows_from(moved: Sequence[Moved], others: Sequence[Moved]) -> bool:
    """Whether these lost their value because others did, which have an alert of their own.

    Ratios do where sparse or dense did; witnesses do where ours did, as all do at a commit that does not build.
    """
    if not moved[0].loss:
        return False
    first, last = _range(moved)
    lost = [one for one in others if one.loss is moved[0].loss and not _is_witness(one.history)]
    if _is_witness(moved[0].history):
        return any(one.point.index == last for one in lost)
    if not all(_is_ratio(one.history) for one in moved):
        return False
    ops = [one for one in lost if one.history.benchmark.partition(".")[0] in _OPS]
    return any(one.point.earliest <= last and one.point.latest >= first for one in ops)


def _is_ratio(history: History) -> bool:
    return history.benchmark.partition(".")[0] == _RATIOS


def _likeliest(moved: Sequence[Moved]) -> int:
    """The first point of the new level that most of them have."""
    votes = [one.point.index for one in moved]
    return max(sorted(set(votes)), key=votes.count)


def _is_witness(history: History) -> bool:
    """Whether no commit of ours changes what it measures."""
    module = history.benchmark.partition(".")[0]
    if module == _CONTROLS:
        return True
    return module in _OPS and bool(history.params) and _plain(history.params[-1]) != OURS


def _unrest(place: Sequence[History], rule: Rule) -> float | None:
    """How many times their known noise the witnesses scatter; None where too few say."""
    steps = [changepoint.steps_in_noise(one.values, rule, one.noise) for one in place if _is_witness(one)]
    size = np.abs(np.concatenate(steps)) if steps else np.empty(0)
    if len(size) < _WITNESSED:
        return None
    return max(1.0, float(np.quantile(size, 0.75)) / stats.normal_quantile(0.25))


def _is_weak(moved: Sequence[Moved], rule: Rule) -> bool:
    one = moved[0]
    if len(moved) > 1 or one.loss:
        return False
    values = one.history.values
    noise = changepoint.noise_of(values[values > 0])
    return abs(one.size) < rule.lone_deviations * noise


def _code_changes(moved: Sequence[Moved], known: Fingerprints) -> list[int] | None:
    """The commits from the last good one on that changed the code, and those near them; None where it is not recorded.

    It has to be recorded for every measured commit from the last before the range to the last of the range.
    """
    history, (first, last) = moved[0].history, _range(moved)
    op = _OPS.get(history.benchmark.partition(".")[0])
    measured = _measured(moved)
    start, stop = np.searchsorted(measured, [first, last + 1])
    start -= 1  # the last good one
    recorded = [int(i) for i in measured[max(start - _MARGIN, 0) : stop + _MARGIN]]
    recorded = [i for i in recorded if (history.machine, history.commits[i]) in known]
    if not set(map(int, measured[start:stop])) <= set(recorded):
        return None
    found = []
    for before, after in itertools.pairwise(recorded):
        base, head = (known[history.machine, history.commits[i]] for i in (before, after))
        if not codegen.same_code(base, head, _target_of(head), op):
            found.append(after)
    return found


def _cause(
    moved: Sequence[Moved], others: Sequence[Moved], place: Sequence[History], changes: Sequence[int] | None
) -> Cause:
    if _is_witness(moved[0].history) or (changes == [] and not moved[0].loss):
        return Cause.ENVIRONMENT
    # Code that did not change does not excuse a loss: what measures it may have changed.
    if moved[0].loss or not any(_is_witness(one) for one in place):
        return Cause.CODE if _in_range(moved, changes) else Cause.UNKNOWN
    size = math.exp(sum(abs(one.size) for one in moved) / len(moved)) - 1
    likely = _likeliest(moved)
    witnesses = [
        one
        for one in others
        if _is_witness(one.history)
        and one.slower == moved[0].slower
        and one.point.earliest <= likely <= one.point.latest
        and abs(math.expm1(one.size)) >= size / 2
    ]
    return Cause.ENVIRONMENT if witnesses else Cause.CODE


def _target_of(fingerprint: codegen.Fingerprint | None) -> str | None:
    """Which target served the commit, as was recorded beside its fingerprint."""
    target = None if fingerprint is None else fingerprint.get("target")
    return target if isinstance(target, str) else None


def _followed_up(
    alert: Alert,
    moved: Mapping[int, Sequence[tuple[Moved, Cause]]],
    rule: Rule,
    acknowledged: Sequence[Acknowledgement],
) -> Alert:
    """With what became of it: undone by a later commit, which gave back what was lost, or accepted by somebody."""
    for entry in acknowledged:
        fits = all(fnmatch.fnmatchcase(one.history.benchmark, entry.benchmarks) for one in alert.moved)
        if fits and any(commit.startswith(entry.commit) for commit in alert.commits):
            alert = replace(alert, status=Status.ACKNOWLEDGED, acknowledgement=entry)
            break
    # A ratio is not back when sparse is, if dense has moved since.
    counting = [one for one in alert.moved if not _is_ratio(one.history)] or alert.moved
    undone = []
    for one in counting:
        # What the machine gives back does not mend the code.
        later = [
            other
            for other, cause in moved[id(one.history)]
            if alert.cause is Cause.ENVIRONMENT or cause is not Cause.ENVIRONMENT
        ]
        commit = _undone_by(one, later, rule)
        undone += [commit] if commit else []
    if len(undone) > len(counting) / 2:
        return replace(alert, status=Status.FIXED, fixed_by=max(sorted(set(undone)), key=undone.count))
    return alert


def _undone_by(one: Moved, moved: Sequence[Moved], rule: Rule) -> str | None:
    """The commit after which the series is back, or beyond, within the smallest step that counts."""
    if one.loss:
        return None if one.back is None else one.history.commits[one.back]
    for later in sorted(moved, key=lambda other: other.point.index):
        if later.point.index <= one.point.index or later.slower == one.slower:
            continue
        back = math.log(later.point.after / one.point.before)
        if (back if one.slower else -back) <= rule.relevant_change:
            return one.history.commits[later.point.index]
    return None


def _plain(param: str) -> str:
    return param.strip("'\"")


def _name(history: History) -> str:
    return f"{history.benchmark}({', '.join(history.params)})" if history.params else history.benchmark


def _problem(history: History) -> dict[str, Any] | None:
    """The fields by which `groups` tells families apart, of a point of our prefill suites."""
    module, _, rest = history.benchmark.partition(".")
    params = [_plain(param) for param in history.params]
    if len(params) != 3 or not params[0].isdecimal():
        return None
    s_kv, other = int(params[0]), [] if rest in _SUITES else [rest]  # the smoke grid's are families of their own
    if module == _RATIOS and params[1].isdecimal():
        problem = {"op": _RATIO, "topk": int(params[1]), **_head_dims(params[2])}
    elif module == "sparse_prefill" and params[1].isdecimal():
        problem, other = {"op": _OPS[module], "topk": int(params[1])}, [params[2], *other]
    elif module == "dense_prefill":
        problem, other = {"op": _OPS[module], **_head_dims(params[1])}, [params[2], *other]
    else:
        return None
    return {**problem, "s_kv": s_kv, "features": " of ".join(other) or None}


def _head_dims(text: str) -> dict[str, Any]:
    d_qk, _, d_v = text.partition("x")
    return {"d_qk": int(d_qk), "d_v": int(d_v)} if d_qk.isdecimal() and d_v.isdecimal() else {"d_qk": text}


def _case(one: Moved) -> CaseVerdict:
    if one.loss:
        return CaseVerdict(_name(one.history), one.loss)
    return CaseVerdict(_name(one.history), one.verdict, ratio=one.point.ratio, low=one.point.low, high=one.point.high)


def read_acknowledged(path: Path = ACKNOWLEDGED) -> tuple[Acknowledgement, ...]:
    """Entries of a file; none when there is no file.

    Raises:
        results.Unreadable: when it is no TOML, or an entry lacks a key or has another one.
    """
    if not path.exists():
        return ()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        entries = document.pop("acknowledged", [])
        if document:
            raise ValueError(f"expected [[acknowledged]] tables, got {', '.join(document)}")
        found = tuple(Acknowledgement(**{key: str(value) for key, value in entry.items()}) for entry in entries)
        for entry in found:
            if len(entry.commit) < 7 or not entry.author.strip() or not entry.reason.strip():
                raise ValueError(f"expected a commit of at least 7 digits, author and reason, got {entry}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Unreadable(f"{path}: {error}") from error
    return found


def read_fingerprints(root: Path) -> dict[tuple[str, str], codegen.Fingerprint]:
    """Fingerprints from the telemetry beside a tree's results, `<machine>/<commit>.telemetry.jsonl`.

    Raises:
        results.Unreadable: for a line that is damaged, naming the file.
    """
    found: dict[tuple[str, str], codegen.Fingerprint] = {}
    for path in sorted(root.glob("*/*.telemetry.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                fingerprint = json.loads(line).get("fingerprint")
            except (ValueError, AttributeError) as error:
                raise Unreadable(f"{path}: {error}") from error
            if isinstance(fingerprint, dict):
                found[path.parent.name, path.name.partition(".")[0]] = fingerprint
    return found


def document(alerts: Sequence[Alert]) -> dict[str, Any]:
    """What `alerts.json` holds."""
    return {"schema": SCHEMA, "alerts": [_document(alert) for alert in alerts]}


def _document(alert: Alert) -> dict[str, Any]:
    history, said = alert.moved[0].history, alert.acknowledgement
    return {
        "id": alert.id,
        "machine": history.machine,
        "environment": history.environment,
        "verdict": alert.verdict.value,
        "cause": alert.cause.value,
        "status": alert.status.value,
        "commit": alert.commits[0],
        "commits": list(alert.commits),
        "known_good": alert.known_good,
        "fixed_by": alert.fixed_by,
        "acknowledged": None if said is None else {"author": said.author, "reason": said.reason, "date": said.date},
        "sentences": alert.sentences,
        "series": [
            {
                "benchmark": one.history.benchmark,
                "params": list(one.history.params),
                **{name: or_none(getattr(one.point, name)) for name in ("ratio", "low", "high", "before", "after")},
                "commit": one.history.commits[one.point.index],
            }
            for one in alert.moved
        ],
    }


def text(alerts: Sequence[Alert]) -> str:
    """The alerts for a terminal: what is open first, what is settled last."""
    order = {Status.OPEN: 0, Status.WEAK: 1, Status.ACKNOWLEDGED: 2, Status.FIXED: 3}
    lines = []
    for alert in sorted(alerts, key=lambda one: (order[one.status], one.verdict not in _BAD)):
        history = alert.moved[0].history
        where = f"{alert.known_good[:12]}..{alert.commits[0][:12]}"
        if len(alert.commits) > 1:
            where += f" (or {len(alert.commits) - 1} near it)"
        lines.append(f"{alert.id} {alert.verdict.value} on {history.machine}, {where}, {_fate(alert)}")
        lines += [f"    {sentence}" for sentence in alert.sentences]
    return "\n".join(lines) if lines else "nothing moved"


def _fate(alert: Alert) -> str:
    """Who moved it, and what became of it; an improvement that stands needs no word for that."""
    found = [{Cause.CODE: "the code", Cause.ENVIRONMENT: "the machine", Cause.UNKNOWN: "cause unknown"}[alert.cause]]
    if alert.status is Status.FIXED:
        found.append(f"{'fixed' if alert.verdict in _BAD else 'undone'} by {str(alert.fixed_by)[:12]}")
    elif alert.status is Status.WEAK or (alert.status is Status.OPEN and alert.verdict in _BAD):
        found.append(alert.status.value)
    if said := alert.acknowledgement:
        found.append(f"acknowledged by {said.author}: {said.reason}")
    return ", ".join(found)
