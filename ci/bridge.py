"""The bridge: one fixed commit that every piece of a campaign measures again.

Pieces come from cards and days that differ. What the same build took in each of them, in `<machine>/bridge.jsonl`, says
whether they can be read as one series.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ci import results
from ci.history import History

FILE = "bridge.jsonl"


@dataclass(frozen=True)
class Piece:
    """What the bridge took in a piece.

    Args:
        timestamp: seconds of the epoch. commit: the bridge. card: the GPU's UUID, where there is one.
        values: by series, with the ends of their intervals where those are known.
    """

    timestamp: float
    commit: str
    card: str | None
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Comparison:
    """Times of a piece over those of another: geometric mean, least and most, over the series that both have."""

    mean: float
    least: float
    most: float


def read(folder: Path) -> list[Piece]:
    """The pieces of a machine, in the order in which they were measured.

    Raises:
        results.Unreadable: for a damaged file.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        return [_piece(json.loads(line)) for line in results.read_text(path).splitlines()]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise results.Unreadable(f"{path}: {type(error).__name__}: {error}") from error


def _piece(said: Mapping[str, Any]) -> Piece:
    values = {str(name): list(row) for name, row in said["values"].items()}
    if not all(0 < float(row[0]) < math.inf for row in values.values()):
        raise ValueError("values: expected times above 0")
    return Piece(float(said["timestamp"]), str(said["commit"]), said["card"] and str(said["card"]), values)


def note(folder: Path, piece: Piece) -> None:
    """Appends a piece."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(piece), allow_nan=False) + "\n")


def values_of(found: Sequence[History]) -> dict[str, list[float | None]]:
    """What was measured of one commit, as a piece has it."""
    return {
        f"{one.benchmark}({', '.join(one.params)})": [
            results.or_none(float(row[0])) for row in (one.values, one.detail.low, one.detail.high)
        ]
        for one in found
        if one.detail and 0 < one.values[0] < math.inf
    }


def compare(piece: Piece, first: Piece) -> Comparison | None:
    """How a piece compares with another; None where they share no series."""
    logs = [
        math.log(float(row[0] or 0) / float(first.values[name][0] or 0))
        for name, row in piece.values.items()
        if name in first.values
    ]
    if not logs:
        return None
    return Comparison(math.exp(math.fsum(logs) / len(logs)), math.exp(min(logs)), math.exp(max(logs)))
