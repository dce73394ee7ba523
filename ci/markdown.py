"""Markdown that names from user code cannot break, and numbers as a reader wants them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ci.stats import Comparison
from ci.verdict import CaseVerdict

TEXT_MAX = 120  # characters of a foreign text that are shown
MISSING = "n/a"
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


def code(text: object, most: int = TEXT_MAX) -> str:
    """A foreign text as a code span: in one, markup, mentions, links and HTML mean nothing.

    Only what would end the span, the line or the table cell is replaced; invisible characters become spaces.

    Args:
        text: anything. most: characters that are kept.
    """
    shown = str(text)[: 4 * most]
    shown = "".join(char if char.isprintable() else " " for char in shown)
    shown = " ".join(shown.replace("`", "'").replace("|", "\u00a6").split())
    if len(shown) > most:
        shown = shown[: most - 3] + "..."
    return f"`{shown}`" if shown else MISSING


def word(text: object) -> str:
    """A foreign value bare if it is a plain name or a size, else as code."""
    if type(text) is int and 0 <= text < 1 << 48:
        return str(text)
    return str(text) if isinstance(text, str) and _WORD.fullmatch(text) else code(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> str:
    """A GitHub table of cells that are markdown already.

    Args:
        columns: titles; one that starts with `<` is aligned left, others right. rows: of cells.
        most: rows that are shown; a line says how many are not.
    """
    titles = [column.removeprefix("<") for column in columns]
    rule = "|".join("---" if column.startswith("<") else "---:" for column in columns)
    lines = [f"| {' | '.join(titles)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows[:most])]
    if len(rows) > most:
        lines += ["", f"and {len(rows) - most} more, in `verdicts.json` and beside it"]
    return "\n".join(lines)


def percent(share: float, decimals: int | None = None) -> str:
    """A share in per cent: 0.52, 4.1, 50.3; the unit is the caller's."""
    value = share * 100
    if decimals is None:
        decimals = 2 if abs(value) < 0.995 else 1
    return f"{value:.{decimals}f}".replace("-0.0", "0.0") if round(value, decimals) == 0 else f"{value:.{decimals}f}"


def change(ratio: float) -> str:
    """A ratio as a signed change: +4.1 %."""
    return f"{'+' if ratio >= 1 else ''}{percent(ratio - 1)} %"


def interval(case: CaseVerdict | Comparison) -> str:
    """The interval of a ratio as changes, in the decimals of the ratio."""
    if case.ratio is None or case.low is None or case.high is None:
        return MISSING
    decimals = 2 if abs(case.ratio - 1) < 0.00995 else 1
    return f"{percent(case.low - 1, decimals)} to {percent(case.high - 1, decimals)} %"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with four significant digits."""
    if seconds is None:
        return MISSING
    return f"{seconds * 1e3:.4g}" if seconds < 1 else f"{seconds * 1e3:.0f}"
