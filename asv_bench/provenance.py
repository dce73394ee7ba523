"""Where records come from, said so that no number passes for that of another commit, card, torch or day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from asv_bench.record import Record
from asv_bench.tables import digits


def listed(words: Iterable[str]) -> str:
    """Words as a list in a sentence: `a`, `a and b`, `a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def by_commit(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the state of the sources they measured, such as `7b1204e88e85` or one `with uncommitted changes`."""
    unlike = len({found["dirty"] for found in records}) > 1
    words = {True: " with uncommitted changes", False: "", None: " perhaps with uncommitted changes" if unlike else ""}
    parts: dict[str, list[Record]] = {}
    for found in records:
        parts.setdefault(f"{str(found['commit'])[:12]}{words[found['dirty']]}", []).append(found)
    return parts


def where(records: Sequence[Record]) -> str:
    """Hardware, torch, commit and date of records; where they differ, each with the number of its records."""
    return "; ".join(text for text, _ in _origins(records)) + "."


def differences(records: Sequence[Record]) -> list[str]:
    """In what records differ by origin, such as `commits a and b: 48 and 22 records`."""
    return [text for text, several in _origins(records) if several]


def ceilings(records: Sequence[Record]) -> str:
    """The ceilings that records note for their rooflines; a measured one differs from process to process."""
    counts = Counter(_ceiling(found) for found in records)
    if len(counts) == 1:
        return next(iter(counts))
    if not counts:
        return _NO_CEILING
    return "; ".join(f"for {count} records {text}" for text, count in counts.items())


_NO_CEILING = "no ceiling: none is known for this machine"


def _ceiling(found: Record) -> str:
    facts = found["telemetry"].get("ceiling")
    if not facts:
        return _NO_CEILING
    speed, bandwidth = digits(facts["flops"] / 1e12), digits(facts["bytes_per_second"] / 1e9)
    return f"{speed} TFLOP/s and {bandwidth} GB/s ({facts['source']})"


def _origins(records: Sequence[Record]) -> list[tuple[str, bool]]:
    """What is to be said of each kind of origin, and whether records differ in it."""
    notes = [found["telemetry"] for found in records]
    hardware = [
        found["gpu"] or f"{noted.get('cpu', 'unknown CPU')}, {noted.get('threads', '?')} threads"
        for found, noted in zip(records, notes, strict=True)
    ]
    commits = [label for label, part in by_commit(records).items() for _ in part]
    cards = [str(noted.get("gpu_uuid") or "unknown")[:12] for noted in notes]
    several_cards = len(set(cards)) > 1
    return [
        _said(hardware, "", ""),
        *([_said(cards, "", "cards ")] if several_cards else []),
        _said([str(noted.get("torch", "unknown")) for noted in notes], "torch ", "torch "),
        _said(commits, "commit ", "commits "),
        _said([str(found["timestamp"] or "no time")[:10] for found in records], "", ""),
    ]


def _said(words: Sequence[str], one: str, many: str) -> tuple[str, bool]:
    counts = Counter(words)
    if len(counts) < 2:
        return one + next(iter(counts), "unknown"), False
    return f"{many}{listed(counts)}: {listed(str(count) for count in counts.values())} records", True
