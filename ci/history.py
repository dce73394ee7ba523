"""Histories: one value per commit, from asv's results trees, ours or anybody's.

Format of a tree (asv, results version 2): `<root>/<machine>/<commit>-<environment>.json` with `commit_hash`, `date` in
milliseconds, `result_columns` and `results`: by benchmark a row of these columns, trailing ones left out. `result` has
a value per combination of `params`, NaN for n/a and null for a failure; NaN stands there literally, which is no JSON.
What is not so, of another type above all, is an error that names the file: it would be judged as something it is not.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ci.changepoint import Values
from ci.results import Unreadable, load

_CI99 = 2 * 2.576  # width of a 99 % interval of a normal distribution, in standard deviations
NO_RESULTS = {"machine.json", "benchmarks.json"}
_VERSION = 2  # of asv's result files
_INTERVAL = ("stats_ci_99_a", "stats_ci_99_b")
_WORDS = {"str": "text", "list": "list", "dict": "table"}

_T = TypeVar("_T")


class State(IntEnum):
    """What a tree holds of a commit in a series."""

    NOT_MEASURED = 0
    MEASURED = 1
    NOT_APPLICABLE = 2  # NaN: the machine or the commit cannot do it
    FAILED = 3


@dataclass(frozen=True)
class Detail:
    """What a tree says of a series' points beside their values.

    Args:
        version: of the benchmark. dates: of the commits, in milliseconds since 1970.
        low, high: the 99 % interval of each value, NaN where unknown.
    """

    version: str
    dates: tuple[float, ...]
    low: Values
    high: Values


@dataclass(frozen=True)
class History:
    """The values of one series.

    Args:
        benchmark: its name. params: a value for each of its parameters. machine, environment: where it was measured.
        commits: in their order. values: one each, NaN where there is none.
        noise: relative standard deviation of each by its own samples, NaN where unknown.
        failed, not_applicable: commits, by index, at which it gave no value: it failed, or had nothing to measure.
        detail: of the points, for pages; None of a series that comes from no tree.
    """

    benchmark: str
    params: tuple[str, ...]
    machine: str
    environment: str
    commits: tuple[str, ...]
    values: Values
    noise: Values
    failed: tuple[int, ...] = ()
    not_applicable: tuple[int, ...] = ()
    detail: Detail | None = None

    @property
    def states(self) -> NDArray[np.int8]:
        """A `State` for each commit; infinity, which asv's files may hold, is no value."""
        states = np.where(np.isfinite(self.values), State.MEASURED, State.NOT_MEASURED).astype(np.int8)
        states[np.isinf(self.values)] = State.NOT_APPLICABLE
        states[list(self.not_applicable)] = State.NOT_APPLICABLE
        states[list(self.failed)] = State.FAILED
        return states


_Key = tuple[str, tuple[str, ...], str]  # benchmark, params, version


@dataclass(frozen=True)
class _Result:
    """A file: of each of its series the number that the tree gave it, whether it failed, and four rows of numbers.

    Args:
        rows: value, noise, and both ends of the value's 99 % interval.
    """

    commit: str
    date: float
    environment: str
    series: NDArray[np.int32]
    failed: NDArray[np.bool_]
    rows: Values


def below(folder: Path) -> list[Path]:
    """A folder and all that is in it, in order of their names.

    Raises:
        results.Unreadable: when one cannot be listed; Path.rglob takes it for an empty one.
    """
    found = [folder]
    for path, is_folder in _listed(folder):
        found += below(path) if is_folder and not path.is_symlink() else [path]
    return found


def is_tree(path: Path) -> bool:
    """Whether this is the root of a results tree of asv, which holds `benchmarks.json`."""
    return path.is_dir() and (path / "benchmarks.json").exists()


def tree_of(folder: Path) -> Path:
    """The root of the only results tree in a folder; the folder itself where there is no `benchmarks.json` at all.

    Raises:
        results.Unreadable: when there are several, naming them, or a folder that cannot be listed.
    """
    if is_tree(folder):
        return folder
    found = [path for path in below(folder) if is_tree(path)]
    if len(found) > 1:
        raise Unreadable(f"{folder}: expected one results tree of asv, got {', '.join(map(str, found))}")
    return found[0] if found else folder


def read_tree(root: Path, known: Collection[str] = ()) -> list[History]:
    """All series of a results tree.

    A series has a value for every commit that was measured on its machine in its environment; one whose benchmark
    changed its version is another series from there on.

    Args:
        root: of the tree. known: commits in their order, such as `commits.of` a repository; the tree's others stand
            among them by asv's date.
    Raises:
        results.Unreadable: for a file that is damaged or no result and for a folder that cannot be listed, naming it;
            for two files of one commit in one environment; for a tree without results.
    """
    found: list[History] = []
    numbers: dict[_Key, int] = {}
    positions = {commit: position for position, commit in enumerate(known)}
    for machine, is_folder in _listed(root):
        if not is_folder:
            continue
        by_environment: dict[str, dict[str, tuple[Path, _Result]]] = {}
        for path, _ in _listed(machine):
            if path.suffix != ".json" or path.name in NO_RESULTS:
                continue
            result = _read(path, numbers)
            known = by_environment.setdefault(result.environment, {})
            other, _ = known.setdefault(result.commit, (path, result))
            if other != path:
                raise Unreadable(f"{path}: commit {result.commit} in this environment was read from {other.name}")
        for environment, read in by_environment.items():
            results = _ordered([result for _, result in read.values()], positions)
            found += _series(machine.name, environment, results, list(numbers))
    if not found:
        raise Unreadable(f"{root}: expected asv's results, in a folder per machine, got none")
    return found


def _listed(folder: Path) -> list[tuple[Path, bool]]:
    """What a folder holds, and whether it is a folder. Path.glob takes one that cannot be read for an empty one."""
    try:
        with os.scandir(folder) as entries:
            return sorted((Path(entry), entry.is_dir()) for entry in entries)
    except OSError as error:
        raise Unreadable(f"{folder}: {error.strerror}") from error


def _ordered(results: list[_Result], positions: Mapping[str, int]) -> list[_Result]:
    """Results by their commits' positions; one without stands before the first that no earlier date reaches."""
    keys: dict[str, tuple[float, float, str]] = {}
    latest = -math.inf
    for result in sorted(results, key=lambda result: positions.get(result.commit, math.inf)):
        position = positions.get(result.commit, math.inf)
        latest = max(latest, result.date) if position < math.inf else result.date
        keys[result.commit] = (latest, position, result.commit)
    return sorted(results, key=lambda result: keys[result.commit])


def _series(machine: str, environment: str, results: list[_Result], keys: list[_Key]) -> Iterator[History]:
    commits = tuple(result.commit for result in results)
    dates = tuple(result.date for result in results)
    values, noise, low, high = np.full((4, len(keys), len(results)), math.nan)
    failed = np.zeros(values.shape, dtype=np.bool_)
    not_applicable = failed.copy()
    for column, result in enumerate(results):
        for table, row in zip((values, noise, low, high), result.rows, strict=True):
            table[result.series, column] = row
        failed[result.series, column] = result.failed
        not_applicable[result.series, column] = np.isnan(result.rows[0]) & ~result.failed
    for number in sorted({int(number) for result in results for number in result.series}):
        benchmark, params, version = keys[number]
        lost, lacking = (tuple(map(int, np.flatnonzero(where[number]))) for where in (failed, not_applicable))
        detail = Detail(version, dates, low[number], high[number])
        numbers = values[number], noise[number]
        yield History(benchmark, params, machine, environment, commits, *numbers, lost, lacking, detail)


def _read(path: Path, numbers: dict[_Key, int]) -> _Result:
    document = load(path)
    try:
        if document.get("version") != _VERSION:
            raise ValueError(f"version: expected {_VERSION}, got {document.get('version')!r}")
        numbered: list[int] = []
        failed: list[bool] = []
        rows: list[tuple[float, ...]] = []
        columns = _texts(document["result_columns"], "result_columns")
        for benchmark, row in _typed(document["results"], dict, "results").items():
            _typed(benchmark, str, "results")
            if len(_typed(row, list, benchmark)) > len(columns):
                raise ValueError(f"{benchmark}: {len(row)} cells of {len(columns)} columns")
            for (params, version), *found in _values(benchmark, dict(zip(columns, row, strict=False))):
                value, low, high = map(_number, found)
                numbered.append(numbers.setdefault((benchmark, params, version), len(numbers)))
                failed.append(found[0] is None)
                rows.append((value, _noise(value, low, high), low, high))
        return _Result(
            _typed(document["commit_hash"], str, "commit_hash"),
            _date(document["date"]),
            _typed(document["env_name"], str, "env_name"),
            np.array(numbered, dtype=np.int32),
            np.array(failed, dtype=np.bool_),
            np.array(rows, dtype=np.float64).reshape(-1, 4).T,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{path}: {type(error).__name__}: {str(error)[:200]}") from error


def _values(benchmark: str, cells: dict[str, Any]) -> Iterator[tuple[tuple[tuple[str, ...], str], Any, Any, Any]]:
    """Of each combination of parameters: these and the version, the value and its interval."""
    params, version = cells.get("params"), cells.get("version")
    params = [] if params is None else _typed(params, list, f"{benchmark}: params")
    combinations = list(itertools.product(*(_texts(one, f"{benchmark}: params") for one in params)))
    version = str(version if version is None else _typed(version, str, f"{benchmark}: version"))
    lists = []
    for name, cell in (("result", cells["result"]), *((name, cells.get(name)) for name in _INTERVAL)):
        found = [None] * len(combinations) if cell is None else _numbers(cell, f"{benchmark}: {name}")
        if len(found) != len(combinations):
            raise ValueError(f"{benchmark}: {len(found)} values of {len(combinations)} combinations of parameters")
        lists.append(found)
    for combination, value, low, high in zip(combinations, *lists, strict=True):
        yield (combination, version), value, low, high


def _typed(value: Any, expected: type[_T], where: str) -> _T:
    if not isinstance(value, expected):
        raise TypeError(f"{where}: expected a {_WORDS[expected.__name__]}, got {type(value).__name__}")
    if isinstance(value, str):
        value.encode()  # half a surrogate pair could not be printed
    return value


def _texts(value: Any, where: str) -> list[str]:
    return [_typed(one, str, where) for one in _typed(value, list, where)]


def _numbers(value: Any, where: str) -> list[Any]:
    """A list of numbers and nulls; NaN and infinity, as asv has them of intervals, are numbers."""
    for one in _typed(value, list, where):
        if one is not None and (isinstance(one, bool) or not isinstance(one, (int, float))):
            raise TypeError(f"{where}: expected numbers or null, got {type(one).__name__}")
        if isinstance(one, int) and abs(one) > sys.float_info.max:
            raise ValueError(f"{where}: expected numbers up to {sys.float_info.max:.0e}, got a larger one")
    return list(value)


def _date(value: Any) -> float:
    (date,) = _numbers([value], "date")
    if date is None or not math.isfinite(date):
        raise ValueError(f"date: expected milliseconds, got {date}")
    return float(date)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _noise(value: float, low: float, high: float) -> float:
    if not all(map(math.isfinite, (value, low, high))) or value <= 0:
        return math.nan
    return max(high - low, 0.0) / _CI99 / value
