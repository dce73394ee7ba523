"""What the suites wrote beside asv's results: `<machine>/<commit>.telemetry.jsonl`, a line per measurement.

Lines that are read: `machine` (facts), `fingerprint` (see `codegen`), `control` (a name) or `view` (a point of a suite)
with the problem's fields, `cycles_median` and `error`, and `grid` with the `error` that no point of it ran.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.results import Unreadable, read_text

Key = tuple[str, ...]  # of a point: the view's name and its parameters


@dataclass(frozen=True)
class Sidecar:
    """The sidecar of a commit.

    Args:
        facts: of the machine. fingerprint: of the code, or None. cycles: by point. reasons: why a point has no value.
        problems: fields by point.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] | None = None
    cycles: Mapping[Key, float] = field(default_factory=dict)
    reasons: Mapping[Key, str] = field(default_factory=dict)
    problems: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)


def read(path: Path) -> Sidecar:
    """The sidecar at a path; an empty one where there is none.

    Raises:
        results.Unreadable: for a line that is damaged, naming the file.
    """
    facts: dict[str, Any] = {}
    fingerprint: Mapping[str, Any] | None = None
    cycles, reasons, problems = {}, {}, {}
    try:
        for line in read_text(path).splitlines() if path.exists() else ():
            said = json.loads(line)
            if isinstance(said.get("machine"), dict):
                facts = said["machine"]
            if isinstance(said.get("fingerprint"), dict):
                fingerprint = said["fingerprint"]
            key = _key(said)
            if key is None:
                continue
            if isinstance(said.get("cycles_median"), (int, float)):
                cycles[key] = float(said["cycles_median"])
            if said.get("error"):
                reasons[key] = str(said["error"])
            if "op" in said:
                problems[key] = {name: said.get(name) for name in _PROBLEM}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise Unreadable(f"{path}: {type(error).__name__}: {error}") from error
    return Sidecar(facts, fingerprint, cycles, reasons, problems)


_PROBLEM = ("op", "s_q", "s_kv", "h_q", "h_kv", "d_qk", "d_v", "topk", "causal", "indices", "features")


def _key(said: Mapping[str, Any]) -> Key | None:
    if isinstance(said.get("view"), list):
        return tuple(map(str, said["view"]))
    return ("control", str(said["control"])) if "control" in said else None
