"""Qualification of a change-point detector, on real histories that nobody here could tune.

Recall: steps of known size are planted into the beginning of every series, after ten of its points. False alarms: the
same points in random order, in which no change point is true. The natural order is counted beside it; what is found
there may be true. Detectors are ours, asv's own step detection, and a windowed t-test (apache-otava), which runs in an
interpreter of its own.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
import subprocess
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ci import changepoint, history, markdown, results
from ci.changepoint import Values
from ci.policy import History as Rule

if TYPE_CHECKING:
    import pandas

STEPS = (0.01, 0.02, 0.05, 0.10)
BEFORE, AFTER = 10, (5, 12)
LEAST = BEFORE + min(AFTER)  # values of a series that is used
ORDERS = 20
NEAR = 2  # points from where a step was planted, within which it counts as found
QUIET = 0.006  # noise below which recall is asked for
RECORD = Path(__file__).with_name("qualification.json")

Found = list[list[tuple[int, float]]]  # of each series: index and log size of its change points
Detector = Callable[[Sequence[Values]], Found]


@dataclass(frozen=True)
class CsvFormat:
    """What the columns of a table mean; those not named tell series apart.

    Args:
        value: the measured one. order: sorts points. ignored: neither. keep: values of a column whose rows are read.
        first_point: of each series that is used, from 1; before it machines changed.
    """

    value: str
    order: str
    ignored: tuple[str, ...] = ()
    keep: tuple[str, tuple[str, ...]] | None = None
    first_point: int = 1


# Providers that the commits of this set do not change; before point 9 its machines changed.
_LIGER = CsvFormat(
    "p50_ms",
    "timestamp",
    ("commit", "p20_ms", "p80_ms"),
    ("provider", ("torch", "huggingface", "torch_compile")),
    first_point=9,
)
_KNOWN = {"liger_h100_speed.csv": _LIGER}


def read(data: Path) -> dict[str, list[Values]]:
    """The sets of a folder: every table and every results tree of asv in it, by name.

    A table that is not known has a column `value`, one of `order`, `timestamp` or `date`, and others that tell series
    apart.

    Raises:
        results.Unreadable: for a file that is damaged or has other columns, and for a folder without any or that is
            not there.
    """
    if not data.exists():
        raise results.Unreadable(f"{data}: expected a folder, got nothing of that name")
    sets: dict[str, list[Values]] = {}
    for path in history.below(data) if data.is_dir() else [data]:
        name = path.name.removesuffix(".gz")
        if path.is_file() and name.endswith(".csv"):
            sets[name] = _read_csv(path, _KNOWN.get(name))
        elif history.is_tree(path):
            series = history.read_tree(path)
            label = path.parent.name if path.name == "results" else path.name
            sets[label] = [one.values[np.isfinite(one.values)] for one in series]
    if not sets:
        raise results.Unreadable(f"{data}: expected .csv files or results trees of asv, got neither")
    return sets


def _positive(values: Values) -> Values:
    return values[np.isfinite(values) & (values > 0)]


def _used(series: Sequence[Values]) -> list[Values]:
    """The values of series that are long enough."""
    return [values for values in map(_positive, series) if len(values) >= LEAST]


def _read_csv(path: Path, form: CsvFormat | None) -> list[Values]:
    import pandas  # here, as no other command needs it

    try:
        table = pandas.read_csv(path)
        form = form or _guessed(table)
        if form.keep:
            table = table[table[form.keep[0]].isin(form.keep[1])]
        names = [name for name in table.columns if name not in (form.value, form.order, *form.ignored)]
        table = table.sort_values(form.order, kind="stable")
        groups = table.groupby(names, sort=True, dropna=False) if names else [((), table)]
        return [group[form.value].to_numpy(dtype=np.float64)[form.first_point - 1 :] for _, group in groups]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error) as error:
        raise results.Unreadable(f"{path}: {type(error).__name__}: {error}") from error


def _guessed(table: pandas.DataFrame) -> CsvFormat:
    order = next((name for name in ("order", "timestamp", "date") if name in table.columns), None)
    if order is None or "value" not in table.columns:
        raise ValueError(f"expected columns value, and order, timestamp or date, got {', '.join(table.columns)}")
    return CsvFormat("value", order, tuple(name for name in ("commit",) if name in table.columns))


def ours(rule: Rule) -> Detector:
    """`ci.changepoint` with a policy's thresholds."""

    def detect(series: Sequence[Values]) -> Found:
        return [[(p.index, math.log(p.ratio)) for p in changepoint.detect(values, rule)] for values in series]

    return detect


def asv_steps(series: Sequence[Values], least: float = 0.0) -> Found:
    """asv's step detection; with `least`, steps of at least that relative size."""
    from asv.step_detect import detect_steps

    found = []
    for values in series:
        steps = detect_steps(values.tolist())
        sizes = [(b[0], math.log(b[2] / a[2])) for a, b in itertools.pairwise(steps)]
        found.append([(index, size) for index, size in sizes if abs(size) >= math.log1p(least)])
    return found


_OTAVA = """
import json, math, sys
from otava.analysis import compute_change_points
found = []
for values in json.load(sys.stdin):
    points = compute_change_points(values, window_len=50, max_pvalue=0.001)[0]
    edges = [0, *(int(point.index) for point in points), len(values)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:])]
    found.append([(cut, math.log(b / a)) for cut, a, b in zip(edges[1:], means, means[1:])])
json.dump(found, sys.stdout)
"""


def otava(python: Path) -> Detector:
    """The windowed t-test of apache-otava, with its own defaults.

    Args:
        python: an interpreter that has it.
    """

    def detect(series: Sequence[Values]) -> Found:
        given = json.dumps([values.tolist() for values in series])
        done = subprocess.run([str(python), "-c", _OTAVA], input=given, capture_output=True, text=True)
        if done.returncode:
            raise results.Unreadable(f"{python}: apache-otava: {done.stderr.strip().splitlines()[-1:]}")
        return [[(int(cut), float(size)) for cut, size in one] for one in json.loads(done.stdout)]

    return detect


def qualify(series: Sequence[Values], detect: Detector, seed: int = 0, orders: int = ORDERS) -> dict[str, Any]:
    """What a detector finds in a set.

    Args:
        series: values in order. detect: the detector. seed: of the orders. orders: drawn of each series.
    Returns:
        `series` and `points` used; `points_per_alarm` of drawn orders and `points_per_change` of the natural one (null
        where nothing was found); `steps`, for each size and number of points after it: `planted`, `found` and, of
        those, `located` within a point, for quiet series and for all.
    """
    used = _used(series)
    random = np.random.default_rng(seed)
    drawn = [random.permutation(values) for _ in range(orders) for values in used]
    points = sum(map(len, used))
    steps = [_recall(used, step, after, detect) for step in STEPS for after in AFTER]
    return {
        "series": len(used),
        "points": points,
        "points_per_alarm": _per(points * orders, detect(drawn)),
        "points_per_change": _per(points, detect(used)),
        "steps": steps,
    }


def _per(points: int, found: Found) -> float | None:
    count = sum(map(len, found))
    return round(points / count, 1) if count else None


def _recall(used: Sequence[Values], step: float, after: int, detect: Detector) -> dict[str, Any]:
    planted, quiet = [], []
    for values in used:
        # A point fewer than asked for is still a history of that length, as many series here end one short.
        if len(values) >= BEFORE + after - 1:
            piece = values[: BEFORE + after].copy()
            quiet.append(changepoint.noise_of(piece) < QUIET)
            piece[BEFORE:] *= 1 + step
            planted.append(piece)
    distances = [
        min((abs(index - BEFORE) for index, size in found if size > 0), default=None) for found in detect(planted)
    ]
    found = [distance is not None and distance <= NEAR for distance in distances]
    located = [distance is not None and distance <= 1 for distance in distances]
    counts: dict[str, Any] = {"step": step, "after": after}
    for name, chosen in (("quiet", quiet), ("all", [True] * len(planted))):
        counts[name] = {
            "planted": sum(chosen),
            "found": sum(one and is_chosen for one, is_chosen in zip(found, chosen, strict=True)),
            "located": sum(one and is_chosen for one, is_chosen in zip(located, chosen, strict=True)),
        }
    return counts


def noise_of_set(series: Sequence[Values]) -> float:
    """The median noise of a set's series."""
    return statistics.median(changepoint.noise_of(values) for values in map(_positive, series) if len(values) > BEFORE)


def run(data: Path, rule: Rule, otava_python: Path | None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Qualifies every detector on every set of a folder.

    Args:
        data: the folder. rule: thresholds of ours. otava_python: interpreter with apache-otava, or None without.
        say: told before each.
    Returns:
        What `table` shows, to be written as RECORD.
    Raises:
        results.Unreadable: as `read`, and for a set in which no series is long enough, before anything is qualified.
    """
    detectors: dict[str, Detector] = {
        "flash_dsa": ours(rule),
        "asv": asv_steps,
        "asv, 5 %": functools.partial(asv_steps, least=0.05),
    }
    if otava_python:
        detectors["otava"] = otava(otava_python)
    given = read(data)
    for name, series in given.items():
        if not _used(series):
            longest = max((len(_positive(values)) for values in series), default=0)
            raise results.Unreadable(
                f"{data}: {name}: no series is long enough: expected {LEAST} values above zero, got {longest} at most"
            )
    sets = {}
    for name, series in given.items():
        found = {}
        for detector, detect in detectors.items():
            say(f"{name}: {detector} on {len(series)} series")
            found[detector] = qualify(series, detect)
        sets[name] = {"noise": float(f"{noise_of_set(series):.3g}"), "detectors": found}
    return {"rule": vars(rule), "sets": sets}


def read_record(path: Path = RECORD) -> dict[str, Any]:
    """What `run` returned when it was kept.

    Raises:
        results.Unreadable: when it cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        table(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise results.Unreadable(f"{path}: {type(error).__name__}: {error}") from error
    return record


def table(record: dict[str, Any]) -> str:
    """Markdown: a table for each set."""
    parts = []
    for name, one in record["sets"].items():
        first = next(iter(one["detectors"].values()))
        quiet = ", ".join(
            f"{step['quiet']['planted']} with {step['after']} after" for step in first["steps"][: len(AFTER)]
        )
        parts.append(
            f"`{name}`: {first['series']} series, {first['points']} points, noise {one['noise']:.2%} in the median; "
            f"quiet are {quiet}"
        )
        steps = [f"{step['step']:.0%}, {step['after']} after" for step in first["steps"]]
        titles = ["<detector", "points per false alarm", "per change in natural order", *steps]
        rows = []
        for detector, found in one["detectors"].items():
            alarms = [_count(found[key]) for key in ("points_per_alarm", "points_per_change")]
            shares = [_shares(step["quiet"]) for step in found["steps"]]
            rows.append([detector, *alarms, *shares])
        parts.append(markdown.table(titles, rows, len(rows)))
    return "\n\n".join(parts)


def _count(points: float | None) -> str:
    return "none" if points is None else f"{points:,.0f}"


def _shares(counts: dict[str, int]) -> str:
    if not counts["planted"]:
        return "none planted"
    located = f", {counts['located'] / counts['found']:.0%}" if counts["found"] else ""
    return f"{counts['found'] / counts['planted']:.0%}{located}"
