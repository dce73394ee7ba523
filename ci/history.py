"""Histories: one value per commit, from asv's results trees, ours or anybody's.

Format of a tree (asv, results version 2): `<root>/<machine>/<commit>-<environment>.json` with `commit_hash`, `date` in
milliseconds, `result_columns` and `results`: by benchmark a row of these columns, trailing ones left out. `result` has
a value per combination of `params`, NaN for n/a and null for a failure; NaN stands there literally, which is no JSON.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ci.changepoint import Values
from ci.results import Unreadable

_CI99 = 2 * 2.576  # width of a 99 % interval of a normal distribution, in standard deviations
_NO_RESULTS = {"machine.json", "benchmarks.json"}


@dataclass(frozen=True)
class History:
    """The values of one series.

    Args:
        benchmark: its name. params: a value for each of its parameters. machine, environment: where it was measured.
        commits: in order of their dates. values: one each, NaN where there is none.
        noise: relative standard deviation of each by its own samples, 0 where unknown.
    """

    benchmark: str
    params: tuple[str, ...]
    machine: str
    environment: str
    commits: tuple[str, ...]
    values: Values
    noise: Values


_Key = tuple[str, tuple[str, ...], str]  # benchmark, params, version


@dataclass(frozen=True)
class _Result:
    """A file: of each of its series the number that the tree gave it, the value and the noise."""

    commit: str
    date: float
    environment: str
    series: NDArray[np.int32]
    values: Values
    noise: Values


def read_tree(root: Path) -> list[History]:
    """All series of a results tree.

    Commits are ordered by date. A series has a value for every commit that was measured on its machine in its
    environment; one whose benchmark changed its version is another series from there on.

    Raises:
        results.Unreadable: for a file that is damaged or no result, naming it; for a tree without results.
    """
    found: list[History] = []
    numbers: dict[_Key, int] = {}
    for machine in sorted(path for path in root.iterdir() if path.is_dir()):
        by_environment: dict[str, list[_Result]] = {}
        for path in sorted(path for path in machine.glob("*.json") if path.name not in _NO_RESULTS):
            result = _read(path, numbers)
            by_environment.setdefault(result.environment, []).append(result)
        for environment, results in by_environment.items():
            found += _series(machine.name, environment, results, list(numbers))
    if not found:
        raise Unreadable(f"{root}: expected asv's results, in a folder per machine, got none")
    return found


def _series(machine: str, environment: str, results: list[_Result], keys: list[_Key]) -> Iterator[History]:
    results.sort(key=lambda result: (result.date, result.commit))
    commits = tuple(result.commit for result in results)
    values = np.full((len(keys), len(results)), math.nan)
    noise = np.zeros_like(values)
    for column, result in enumerate(results):
        values[result.series, column] = result.values
        noise[result.series, column] = result.noise
    for number in sorted({int(number) for result in results for number in result.series}):
        benchmark, params, _ = keys[number]
        yield History(benchmark, params, machine, environment, commits, values[number], noise[number])


def _read(path: Path, numbers: dict[_Key, int]) -> _Result:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows: list[tuple[int, float, float]] = []
        columns = document["result_columns"]
        for benchmark, row in document["results"].items():
            cells = dict(zip(columns, row, strict=False))
            combinations = list(itertools.product(*(cells.get("params") or [])))
            values = cells["result"] if cells["result"] is not None else [None] * len(combinations)
            if len(values) != len(combinations):
                raise ValueError(f"{benchmark}: {len(values)} values of {len(combinations)} combinations of parameters")
            lows, highs = (cells.get(f"stats_ci_99_{side}") or [None] * len(values) for side in "ab")
            for combination, value, low, high in zip(combinations, values, lows, highs, strict=True):
                key = (benchmark, tuple(map(str, combination)), str(cells.get("version")))
                rows.append((numbers.setdefault(key, len(numbers)), _number(value), _noise(value, low, high)))
        series, found, noise = zip(*rows, strict=True) if rows else ((), (), ())
        return _Result(
            str(document["commit_hash"]),
            float(document["date"]),
            str(document["env_name"]),
            np.array(series, dtype=np.int32),
            np.array(found, dtype=np.float64),
            np.array(noise, dtype=np.float64),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{path}: {type(error).__name__}: {error}") from error


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _noise(value: Any, low: Any, high: Any) -> float:
    numbers = [_number(one) for one in (value, low, high)]
    if not all(map(math.isfinite, numbers)) or numbers[0] <= 0:
        return 0.0
    return max(numbers[2] - numbers[1], 0.0) / _CI99 / numbers[0]
