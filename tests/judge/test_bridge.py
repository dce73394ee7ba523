"""The bridge: what pieces of a campaign say of their machines, written and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci import bridge
from ci.bridge import Comparison, Piece
from ci.results import Unreadable


def piece(**values: float) -> Piece:
    return Piece(1.5, "c" * 40, None, {name: [value, None, None] for name, value in values.items()})


def test_pieces_are_read_as_they_were_noted(tmp_path: Path) -> None:
    assert bridge.read(tmp_path) == []
    pieces = [piece(a=1.0), Piece(2.0, "c" * 40, "GPU-1", {"a": [1.0, 0.9, 1.1]}), piece()]
    for one in pieces:
        bridge.note(tmp_path / "new", one)
    assert bridge.read(tmp_path / "new") == pieces


def test_pieces_are_compared_over_what_both_have() -> None:
    found = bridge.compare(piece(a=2.0, b=0.5, c=9.0), piece(a=1.0, b=1.0, d=1.0))
    assert found == Comparison(pytest.approx(1.0), pytest.approx(0.5), pytest.approx(2.0))
    assert bridge.compare(piece(a=1.0), piece(b=1.0)) is None and bridge.compare(piece(), piece()) is None


WITH = '{"timestamp": 1, "commit": "c", "card": null, "values": {"a": [%s]}}'


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", *(WITH % value for value in ("0", "NaN", "1e999", "-1", "null", ""))]
)
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    bridge.note(tmp_path, piece(a=1.0))
    with (tmp_path / bridge.FILE).open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(Unreadable, match=r"bridge\.jsonl"):
        bridge.read(tmp_path)
