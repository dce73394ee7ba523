"""The JSON files of our pages, from a results tree.

`index.json` lists places (a machine with an environment) and series; `overview.json` says what moved. What grows with
the history is in files that a page loads when it needs them:

- `commits/<place>.json`: hash, date and subject of the place's commits, in order;
- `series/<series>.json`: one series over them;
- `at/<place>/<hash>.json`: one commit over all of the place's series;
- `crossovers/<place>.json`, `code/<place>.json`: the s_kv from which sparse is faster, and the code's fingerprints.

Points are written as columns: `at` (positions of those that have a value), `value`, `low`, `high` (the 99 % interval,
null where unknown), `cycles`, `na` and `failed` (positions), `reasons` and `reason` (position to place in `reasons`).
Positions count commits in a series, and series in a commit. What is not listed was not measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ci import bridge, codegen
from ci.alerts import Alert, Cause, Status
from ci.bridge import Piece
from ci.changepoint import ChangePoint, Values
from ci.commits import Commits
from ci.dashboard import sidecar, speedups, work
from ci.dashboard.points import OURS, SPEEDUP, Point, point_of
from ci.dashboard.sidecar import Sidecars
from ci.dashboard.speedups import Track
from ci.history import History, State
from ci.results import or_none
from ci.verdict import Verdict

_FEW = 5  # commits below which a history says nothing about a level
_ALERTS = 200  # shown of a history, the newest
_SUBJECT = 160  # letters kept of a commit's first line
_TRIED = (State.MEASURED, State.FAILED)
_DIGITS = 6  # of a number, as the suites store it
_Name = tuple[str, str, str, sidecar.Key]  # place, benchmark, version, point: of a series that was measured


@dataclass(frozen=True)
class Series:
    """A line of a page.

    Args:
        point: in the grid. benchmark, version: where it is from. track: its values. problem: fields, where recorded.
        changes: its change points with the alert that each belongs to; a speedup over a peer has those of our seconds.
    """

    point: Point
    benchmark: str
    version: str
    track: Track
    changes: Sequence[tuple[ChangePoint, Alert]] = ()
    problem: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """A machine with an environment: its commits in order, its series, and the machine's sidecars."""

    id: str
    machine: str
    environment: str
    label: str
    commits: Sequence[str]
    dates: Sequence[float]
    series: Sequence[Series]
    sidecars: Sidecars
    left_out: int


def places_of(
    histories: Sequence[History], alerts: Sequence[Alert], sidecars: Mapping[str, Sidecars]
) -> Iterator[Place]:
    """The places of a tree with their series.

    Series of a benchmark of which every point is n/a are counted, not shown: the grid of another kind of machine.

    Args:
        histories: from `history.read_tree`. alerts: what `alerts.judge` made of them. sidecars: by machine.
    """
    changes: dict[int, list[tuple[ChangePoint, Alert]]] = {}
    for alert in alerts:
        for moved in alert.moved:
            changes.setdefault(id(moved.history), []).append((moved.point, alert))
    by_place: dict[tuple[str, str], list[History]] = {}
    for one in histories:
        by_place.setdefault((one.machine, one.environment), []).append(one)
    machines = [machine for machine, _ in by_place]
    for number, ((machine, environment), found) in enumerate(by_place.items()):
        detail = found[0].detail
        series = list(_measured(found, changes, sidecars[machine].problems))
        yield Place(
            id=f"p{number}",
            machine=machine,
            environment=environment,
            label=machine if machines.count(machine) == 1 else f"{machine}, {environment}",
            commits=found[0].commits,
            dates=detail.dates if detail else (),
            series=[*series, *_speedups(series)],
            sidecars=sidecars[machine],
            left_out=len(found) - len(series),
        )


def _measured(
    histories: Sequence[History],
    changes: Mapping[int, Sequence[tuple[ChangePoint, Alert]]],
    problems: Mapping[sidecar.Key, Mapping[str, Any]],
) -> Iterator[Series]:
    ran = {one.benchmark for one in histories if np.isin(one.states, _TRIED).any()}
    for one in histories:
        if one.detail is None or one.benchmark not in ran:
            continue
        point = point_of(one)
        track = Track(one.values, one.detail.low, one.detail.high, one.states)
        found = sorted(changes.get(id(one), []), key=lambda pair: pair[0].index)
        yield Series(point, one.benchmark, one.detail.version, track, found, problems.get(point.key, {}))


def _speedups(series: Sequence[Series]) -> Iterator[Series]:
    """Sparse by us against every other implementation of the same points, and against our dense."""
    ours = {(one.point.s_kv, one.point.variant, one.version): one for one in series if _is_sparse(one, OURS)}
    for one in series:
        point = one.point
        mine = ours.get((point.s_kv, point.variant, one.version))
        if point.op == "sparse_fwd" and point.implementation != OURS and mine is not None:
            made = Point(SPEEDUP, point.s_kv, point.variant, point.implementation, "x", (), topk=point.topk)
            yield Series(made, one.benchmark, one.version, speedups.over(one.track, mine.track), mine.changes)
        if point.unit == "ratio":
            against = f"dense {point.head_dims}"
            variant = f"topk {point.topk}"
            made = Point(SPEEDUP, point.s_kv, variant, against, "x", point.key, point.topk, point.head_dims)
            yield Series(made, one.benchmark, one.version, speedups.inverse(one.track), one.changes)


def _is_sparse(series: Series, implementation: str) -> bool:
    return series.point.op == "sparse_fwd" and series.point.implementation == implementation


def write(
    folder: Path,
    places: Sequence[Place],
    alerts: Sequence[Alert],
    pieces: Mapping[str, Sequence[Piece]],
    known: Commits,
    facts: Any,
) -> None:
    """Writes the files.

    Args:
        folder: for them. places: with their series. alerts: of all places. pieces: of campaigns, by machine.
        known: commits that git knows, for their dates and subjects.
        facts: for the pages, such as the address of a commit; put into `index.json` as they are.
    """
    numbers: dict[_Name, str] = {}
    listed = []
    for place in places:
        matrices = _Matrices.of(place)
        for number, one in enumerate(place.series):
            name = f"{place.id}s{number}"
            if one.point.unit != "x":
                numbers[place.id, one.benchmark, one.version, one.point.key] = name
            listed.append(_listed(name, place, one))
            content = matrices.of_series(number) | {"changes": [_change(*pair) for pair in one.changes]}
            _write(folder / "series" / f"{name}.json", content)
        for number, commit in enumerate(place.commits):
            _write(folder / "at" / place.id / f"{_plain(commit)}.json", matrices.of_commit(number))
        dates = [_date(known, commit, place.dates[number]) for number, commit in enumerate(place.commits)]
        texts = [known.get(commit, (0.0, ""))[1][:_SUBJECT] for commit in place.commits]
        commits = {"hash": list(map(_plain, place.commits)), "date": dates, "subject": texts}
        _write(folder / "commits" / f"{place.id}.json", commits)
        _write(folder / "crossovers" / f"{place.id}.json", _crossovers(place))
        _write(folder / "code" / f"{place.id}.json", _code(place))
    _write(folder / "overview.json", _overview(places, alerts, pieces, numbers))
    described = [_place(place) for place in places]
    _write(folder / "index.json", {**facts, "places": described, "series": listed})


def _place(place: Place) -> dict[str, Any]:
    known_facts = place.sidecars.facts
    newest = next((known_facts[commit] for commit in reversed(place.commits) if commit in known_facts), {})
    gpu = newest.get("gpu")
    peak = work.peak_of(gpu)
    known = None
    if peak is not None:
        names = {"flops_per_cycle": peak.flops_per_cycle, "bytes_per_second": peak.bytes_per_second}
        known = {**names, "source": peak.source}
    return {
        "id": place.id,
        "machine": place.machine,
        "environment": place.environment,
        "label": place.label,
        "device": gpu or newest.get("cpu"),
        "commits": len(place.commits),
        "left_out": place.left_out,
        "peak": known,
    }


def _listed(name: str, place: Place, series: Series) -> dict[str, Any]:
    point = series.point
    return {
        "id": name,
        "place": place.id,
        "op": point.op,
        "s_kv": point.s_kv,
        "variant": point.variant,
        "topk": point.topk,
        "head_dims": point.head_dims,
        "implementation": point.implementation,
        "unit": point.unit,
        "benchmark": series.benchmark,
        "version": series.version,
        "flops": work.flops_of(series.problem) if point.unit == "s" else None,
        "bytes": work.bytes_of(series.problem) if point.unit == "s" else None,
    }


def _change(point: ChangePoint, alert: Alert) -> dict[str, Any]:
    places = {name: getattr(point, name) for name in ("index", "earliest", "latest")}
    levels = {name: or_none(getattr(point, name)) for name in ("before", "after", "ratio", "low", "high")}
    settled = {"verdict": alert.verdict.value, "cause": alert.cause.value, "status": alert.status.value}
    return {**places, **levels, **settled, "alert": alert.id}


@dataclass(frozen=True)
class _Matrices:
    """All points of a place, series by commits.

    Args:
        tables: values, low, high and cycles. states: a `history.State` each.
        by_series, by_commit: why a point has no value, by row and column or by column and row.
    """

    tables: tuple[Values, ...]
    states: NDArray[np.int8]
    by_series: Mapping[int, Mapping[int, str]]
    by_commit: Mapping[int, Mapping[int, str]]

    @staticmethod
    def of(place: Place) -> _Matrices:
        tracks = [one.track for one in place.series]
        values, low, high = (np.array([getattr(track, name) for track in tracks]) for name in ("values", "low", "high"))
        cycles = np.full(values.shape, np.nan)
        by_series: dict[int, dict[int, str]] = {}
        by_commit: dict[int, dict[int, str]] = {}
        beside = place.sidecars
        columns = {commit: column for column, commit in enumerate(place.commits)}
        recorded = [commit for commit in beside.places if commit in columns]
        to, taken = [columns[commit] for commit in recorded], [beside.places[commit] for commit in recorded]
        for row, one in enumerate(place.series):
            if one.point.unit == "s" and one.point.key in beside.cycles:
                cycles[row, to] = beside.cycles[one.point.key][taken]
            reasons = beside.reasons.get(sidecar.ALL, {}) | beside.reasons.get(one.point.key, {})
            for commit, reason in reasons.items():
                if commit in columns:
                    by_series.setdefault(row, {})[columns[commit]] = reason
                    by_commit.setdefault(columns[commit], {})[row] = reason
        tables = tuple(map(_rounded, (values, low, high, cycles)))
        return _Matrices(tables, np.array([track.states for track in tracks]), by_series, by_commit)

    def of_series(self, row: int) -> dict[str, Any]:
        return _columns(self.states[row], [table[row] for table in self.tables], self.by_series.get(row, {}))

    def of_commit(self, column: int) -> dict[str, Any]:
        tables = [table[:, column] for table in self.tables]
        return _columns(self.states[:, column], tables, self.by_commit.get(column, {}))


def _columns(states: NDArray[np.int8], tables: Sequence[Values], reasons: Mapping[int, str]) -> dict[str, Any]:
    there = np.flatnonzero(states == State.MEASURED)
    values, low, high, cycles = (table[there] for table in tables)
    texts = sorted(set(reasons.values()))
    return {
        "at": there.tolist(),
        "value": values.tolist(),
        "low": _known(low),
        "high": _known(high),
        "cycles": _known(cycles) if np.isfinite(cycles).any() else [],
        "na": np.flatnonzero(states == State.NOT_APPLICABLE).tolist(),
        "failed": np.flatnonzero(states == State.FAILED).tolist(),
        "reasons": texts,
        "reason": {str(at): texts.index(text) for at, text in reasons.items()},
    }


def _known(values: Values) -> list[float | None]:
    """As JSON has them: null for what is not known."""
    return values.tolist() if np.isfinite(values).all() else [or_none(value) for value in values.tolist()]


def _rounded(values: Values) -> Values:
    """To so many significant digits, as floats whose shortest text has no more."""
    with np.errstate(divide="ignore", invalid="ignore"):
        places = _DIGITS - 1 - np.floor(np.log10(np.abs(values)))
        places = np.where(np.isfinite(places), np.clip(places, -22, 22), 0)
        up, down = 10.0 ** np.maximum(places, 0), 10.0 ** np.maximum(-places, 0)
        rounded: Values = np.round(values * up / down) / up * down
    return rounded


def _crossovers(place: Place) -> list[dict[str, Any]]:
    """Of every topk and dense head size, the bracket at each commit, or null."""
    families: dict[tuple[int, str, str], list[Series]] = {}
    for one in place.series:
        if one.point.unit == "ratio" and one.point.s_kv and one.point.topk and one.point.head_dims:
            families.setdefault((one.point.topk, one.point.head_dims, one.version), []).append(one)
    found = []
    for (topk, head_dims, version), series in families.items():
        sizes = {one.point.s_kv: _ends(one.track) for one in series if one.point.s_kv}
        brackets: list[list[int | None] | None] = []
        for number in range(len(place.commits)):
            bracket = speedups.crossover({s_kv: (low[number], high[number]) for s_kv, (low, high) in sizes.items()})
            brackets.append(None if bracket is None else [bracket.above, bracket.upto])
        names = {"topk": topk, "head_dims": head_dims, "version": version}
        found.append({**names, "s_kv": sorted(sizes), "brackets": brackets})
    return found


def _ends(track: Track) -> tuple[list[float], list[float]]:
    """Both ends of the intervals; the value itself where its interval is unknown."""
    ends = (np.where(np.isfinite(end), end, track.values) for end in (track.low, track.high))
    low, high = (end.tolist() for end in ends)
    return low, high


def _code(place: Place) -> dict[str, Any]:
    """Fingerprints: of every kernel the figures where they changed, null from where on it is not there."""
    recorded = place.sidecars.fingerprints
    known = [(at, recorded[commit]) for at, commit in enumerate(place.commits) if commit in recorded]
    kernels: dict[str, list[Any]] = {}
    host = [[at, fingerprint.get("host")] for at, fingerprint in known]
    for at, fingerprint in known:
        now = codegen.kernels_of(fingerprint)
        for name in sorted({*kernels, *now}):
            steps = kernels.setdefault(name, [])
            kernel = now.get(name)
            row = None if kernel is None else [*codegen.figures_of(kernel).values(), codegen.sass_of(kernel)]
            if not steps or steps[-1][1] != row:
                steps.append([at, row])
    return {"recorded": [at for at, _ in known], "host": host, "figures": list(codegen.FIGURES), "kernels": kernels}


def _overview(
    places: Sequence[Place],
    alerts: Sequence[Alert],
    pieces: Mapping[str, Sequence[Piece]],
    numbers: Mapping[_Name, str],
) -> dict[str, Any]:
    by_place = {(place.machine, place.environment): place for place in places}
    told, shown = [], {place.id: 0 for place in places}
    for alert in sorted(alerts, key=lambda one: -one.moved[0].point.index):
        place = by_place[alert.moved[0].history.machine, alert.moved[0].history.environment]
        if shown[place.id] < _ALERTS:
            shown[place.id] += 1
            told.append(_alert(alert, place, numbers))
    totals = [
        sum((one.moved[0].history.machine, one.moved[0].history.environment) == key for one in alerts)
        for key in by_place
    ]
    machines = []
    for place, total in zip(places, totals, strict=True):
        mine = [one for one in alerts if one.moved[0].history.machine == place.machine]
        mine = [one for one in mine if one.moved[0].history.environment == place.environment]
        told_of = _pieces(pieces.get(place.machine, ()))
        machines.append(_newest(place, mine) | {"pieces": told_of, "alerts": total, "alerts_shown": shown[place.id]})
    return {"machines": machines, "alerts": told}


def _alert(alert: Alert, place: Place, numbers: Mapping[_Name, str]) -> dict[str, Any]:
    said = alert.acknowledgement
    return {
        "id": alert.id,
        "place": place.id,
        "verdict": alert.verdict.value,
        "cause": alert.cause.value,
        "status": alert.status.value,
        "commits": list(map(_plain, alert.commits)),
        "known_good": _plain(alert.known_good),
        "fixed_by": alert.fixed_by,
        "acknowledged": None if said is None else {"author": said.author, "reason": said.reason, "date": said.date},
        "sentences": alert.sentences,
        "series": [numbers[(place.id, *_named(one.history))] for one in alert.moved],
    }


def _pieces(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """When each was measured, on which card, and the bridge's time over that in the first."""
    told = []
    for piece in pieces:
        over = bridge.compare(piece, pieces[0])
        ratio = None if over is None else [round(one, _DIGITS) for one in (over.mean, over.least, over.most)]
        named = {"date": int(piece.timestamp), "card": piece.card, "commit": _plain(piece.commit)}
        told.append({**named, "series": len(piece.values), "ratio": ratio})
    return told


def _named(history: History) -> tuple[str, str, sidecar.Key]:
    return history.benchmark, history.detail.version if history.detail else "", point_of(history).key


def _newest(place: Place, alerts: Sequence[Alert]) -> dict[str, Any]:
    """What is known of a place's newest commit, as one verdict with its reason."""
    states = np.array([one.track.states for one in place.series if one.point.unit != "x"])
    now = states[:, -1]
    counts = {
        "measured": int((now == State.MEASURED).sum()),
        "na": int((now == State.NOT_APPLICABLE).sum()),
        "failed": int((now == State.FAILED).sum()),
        "missing": int(((now == State.NOT_MEASURED) & (states[:, -2:-1] == State.MEASURED).any(1)).sum()),
    }
    verdict, reason = _verdict(counts, alerts, len(place.commits))
    newest = _plain(place.commits[-1])
    return {"place": place.id, "commit": newest, "verdict": verdict.value, "reason": reason, "counts": counts}


def _verdict(counts: Mapping[str, int], alerts: Sequence[Alert], commits: int) -> tuple[Verdict, str]:
    ours = [one for one in alerts if one.cause is not Cause.ENVIRONMENT]
    slower = [one for one in ours if one.verdict is Verdict.REGRESSED]
    standing = [one for one in slower if one.status is Status.OPEN]
    weak = [one for one in slower if one.status is Status.WEAK]
    lost = [one for one in ours if one.verdict is Verdict.MISSING and one.status is Status.OPEN]
    if counts["failed"]:
        return Verdict.FAILED, f"{counts['failed']} points failed at the newest commit"
    if standing:
        return Verdict.REGRESSED, f"{len(standing)} regressions stand open"
    if counts["missing"]:
        return Verdict.MISSING, f"{counts['missing']} points were measured at the commit before, not at the newest"
    if lost:
        return Verdict.MISSING, f"{sum(len(one.moved) for one in lost)} points that had a value are n/a since"
    if commits < 2:
        return Verdict.NEW, "one commit measured: nothing to compare with"
    if weak:
        return Verdict.INCONCLUSIVE, f"{len(weak)} weak signs of a regression, each in one noisy series"
    if commits < _FEW:
        return Verdict.INCONCLUSIVE, f"{commits} commits measured: too few to tell a small step from noise"
    if any(one.verdict is Verdict.IMPROVED for one in ours):
        return Verdict.IMPROVED, "no regression stands open, and something became faster"
    return Verdict.UNCHANGED, "nothing of ours moved"


def _plain(commit: str) -> str:
    """A commit as a file's name: a damaged tree may hold anything."""
    return "".join(letter for letter in commit if letter.isalnum()) or "none"


def _date(known: Commits, commit: str, milliseconds: float) -> int:
    return int(known[commit][0] if commit in known else milliseconds / 1000)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":"), allow_nan=False), encoding="utf-8")
