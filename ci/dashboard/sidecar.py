"""What the suites wrote beside asv's results: `<machine>/<commit>.telemetry.jsonl`, a line per measurement.

Lines that are read: `machine` (facts), `fingerprint` (see `codegen`), `control` (a name) or `view` (a point of a suite)
with the problem's fields, `cycles_median` and `error`, and `error` alone: why no point of this commit has a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ci.changepoint import Values
from ci.codegen import Fingerprint
from ci.results import Unreadable, read_text

Key = tuple[str, ...]  # of a point: the view's name and its parameters
ALL: Key = ()  # stands for all points of a commit

_END = ".telemetry.jsonl"
_PROBLEM = ("op", "s_q", "s_kv", "h_q", "h_kv", "d_qk", "d_v", "topk", "causal", "indices", "features")


@dataclass(frozen=True)
class Sidecars:
    """The sidecars of a machine.

    Args:
        places: of commits in what has one number for each. facts: of the machine, by commit. fingerprints: by commit.
        cycles: by point, one for each commit, NaN where unknown. problems: fields by point.
        reasons: why a point has no value, by point and commit.
    """

    places: Mapping[str, int]
    facts: dict[str, Mapping[str, Any]]
    fingerprints: dict[str, Fingerprint]
    cycles: dict[Key, Values]
    reasons: dict[Key, dict[str, str]]
    problems: dict[Key, Mapping[str, Any]]


def read(folder: Path) -> Sidecars:
    """The sidecars in a machine's folder.

    Raises:
        results.Unreadable: for a line that is damaged, naming the file.
    """
    paths = {path.name.removesuffix(_END): path for path in sorted(folder.glob(f"*{_END}"))}
    places = {commit: place for place, commit in enumerate(paths)}
    found = Sidecars(places, {}, {}, {}, {}, {})
    for commit, path in paths.items():
        try:
            lines = read_text(path).splitlines()
            told = json.loads(f"[{','.join(lines)}]")  # in one go, which takes half as long
            if len(told) != len(lines):
                raise ValueError(f"expected {len(lines)} tables, one a line, got {len(told)}")
            for said in told:
                _take(said, commit, found)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise Unreadable(f"{path}: {type(error).__name__}: {error}") from error
    return found


def _take(said: Mapping[str, Any], commit: str, found: Sidecars) -> None:
    """Puts what a line says where it belongs; equal facts and fingerprints of many commits are kept once."""
    for name, kept in (("machine", found.facts), ("fingerprint", found.fingerprints)):
        if isinstance(said.get(name), dict):
            last = next(reversed(kept.values()), said[name])
            kept[commit] = last if last == said[name] else said[name]
    key = _key(said)
    if key is None:
        return
    if isinstance(said.get("cycles_median"), (int, float)):
        if key not in found.cycles:
            found.cycles[key] = np.full(len(found.places), math.nan)
        found.cycles[key][found.places[commit]] = said["cycles_median"]
    if said.get("error"):
        found.reasons.setdefault(key, {})[commit] = str(said["error"])
    if "op" in said and key not in found.problems:
        found.problems[key] = {name: said.get(name) for name in _PROBLEM}


def _key(said: Mapping[str, Any]) -> Key | None:
    if isinstance(said.get("view"), list):
        return tuple(map(str, said["view"]))
    if "control" in said:
        return ("control", str(said["control"]))
    return ALL if said.keys() == {"timestamp", "error"} else None
