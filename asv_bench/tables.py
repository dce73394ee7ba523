"""Tables and number formats: seconds and bytes are formatted here, once, at the edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "–"  # noqa: RUF001 (an en dash, as in print)


@dataclass(frozen=True)
class Table:
    """Cells as text. A column whose title starts with `<` is aligned left, others right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """Column titles without the alignment mark."""
        return tuple(column.removeprefix("<") for column in self.columns)

    @property
    def left(self) -> tuple[bool, ...]:
        """Whether each column is aligned left."""
        return tuple(column.startswith("<") for column in self.columns)

    def text(self) -> str:
        """For a terminal."""
        lines = [self.titles, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

        def render(line: Sequence[str]) -> str:
            cells = zip(line, widths, self.left, strict=True)
            return "  ".join(cell.ljust(width) if left else cell.rjust(width) for cell, width, left in cells).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, render(self.titles), rule, *(render(row) for row in self.rows)])

    def markdown(self) -> str:
        """A GitHub table, without the title."""

        def render(line: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"

        rule = "|" + "|".join("---" if left else "---:" for left in self.left) + "|"
        return "\n".join([render(self.titles), rule, *(render(row) for row in self.rows)])


def digits(value: float | None, count: int = 3) -> str:
    """A number with at least this many significant digits and no exponent: 0.291, 3.54, 29.9, 1,261."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, count - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, three significant digits."""
    return digits(None if seconds is None else seconds * 1e3)


def times(ratio: float | None) -> str:
    """A ratio, such as 2.96x."""
    return MISSING if ratio is None else f"{digits(ratio)}x"


def percent(share: float | None) -> str:
    """A share as per cent."""
    return MISSING if share is None else f"{digits(share * 100)} %"


def byte_count(count: float | None) -> str:
    """Bytes with a decimal unit, such as 36.5 GB."""
    if count is None:
        return MISSING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{digits(count / size)} {unit}"
    return f"{count:.0f} B"


def small(value: float | None) -> str:
    """An error, such as 2.4e-05."""
    return MISSING if value is None else f"{value:.1e}"
