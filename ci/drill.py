"""Drills: whether the judge finds slowdowns that are planted, and stays quiet when nothing changed.

A drill builds HEAD twice, the second time with a delay that its kernels spin for (`kernels/planted.h`): no number is
edited. Every run is appended to a tracked file, so that counts grow over several sessions on a machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci import pull_request, results
from ci.policy import Policy
from ci.pull_request import Options
from ci.verdict import Verdict

UNCHANGED = 0.0  # the plant of an A/A run
PLANTS = (UNCHANGED, 0.01, 0.02, 0.03, 0.05, 0.10)
LOCAL = Path("ci/drills/local.jsonl")  # ignored by git
CONFIDENCE_Z = 1.96  # of the intervals of counts: 95 %


@dataclass(frozen=True)
class Counted:
    """How often cases of a plant and a class of kernels were called regressed.

    Args:
        plant: relative delay; 0 is A/A. kernels: the policy's class. flagged: called regressed, or of A/A also
        improved. judged: with a verdict from numbers. inconclusive, failed: of the others and of judged.
    """

    plant: float
    kernels: str
    flagged: int
    judged: int
    inconclusive: int
    failed: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the share flagged.

        Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
        """
        return wilson(self.flagged, self.judged)


def run(
    root: Path, plants: Sequence[float], repeat: int, record: Path, policy: Policy, say: Callable[[str], None] = print
) -> None:
    """Makes drills and appends each to a file as soon as it is done; killed half-way, those that were done stay.

    Args:
        root: of the repository. plants: relative delays. repeat: runs of each. record: JSON lines. policy: thresholds.
        say: told after each.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    for number in range(repeat):
        for plant in plants:
            begun = time.monotonic()
            switch = f"delay:{plant:g}" if plant else ""
            options = Options(root, "HEAD", "HEAD", measure_same_code=True, plant=switch)
            found = pull_request.run(options, policy)
            line = _line(found, plant, time.monotonic() - begun, options, policy)
            with record.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line, allow_nan=False) + "\n")
            moved = sum(case.verdict in (Verdict.REGRESSED, Verdict.IMPROVED) for case in found.cases)
            say(f"run {number + 1} of {repeat}, planted {plant:.1%}: {moved} of {len(found.cases)} cases moved")


def _line(found: results.Verdicts, plant: float, seconds: float, options: Options, policy: Policy) -> dict[str, Any]:
    output = pull_request.output_of(options, found.base, found.head)
    base = results.read_run(output / "base.json")
    cases = []
    for case in found.cases:
        measured = base.cases.get(case.id)
        medians = [burst.median() for _, burst in measured.bursts.values()] if measured else []
        known = sorted(value for value in medians if value is not None)
        kernel = policy.class_of(measured.device, known[len(known) // 2]) if measured and known else None
        values = {"id": case.id, "verdict": case.verdict.value, "kernels": kernel.name if kernel else None}
        cases.append({**values, "ratio": case.ratio, "low": case.low, "high": case.high, "blocks": len(medians)})
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    return {
        "timestamp": stamp,
        "commit": found.head,
        "machine": found.machine,
        "protocol": found.protocol,
        "plant": plant,
        "seconds": round(seconds, 1),
        "cases": cases,
    }


def read(record: Path) -> list[dict[str, Any]]:
    """The drills of a file.

    Raises:
        results.Unreadable: when a line is none.
    """
    try:
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
        count(lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise results.Unreadable(f"{record}: {type(error).__name__}: {error}") from error
    return lines


def count(lines: Iterable[dict[str, Any]]) -> list[Counted]:
    """Counts by plant and class of kernels, in the order of plants."""
    groups: dict[tuple[float, str], list[str]] = {}
    for line in lines:
        for case in line["cases"]:
            groups.setdefault((line["plant"], case["kernels"] or "not measured"), []).append(case["verdict"])
    counted = []
    for (plant, kernels), verdicts in sorted(groups.items()):
        wanted = {"regressed", "improved"} if plant == UNCHANGED else {"regressed"}
        failed = sum(verdict in ("failed", "missing", "new") for verdict in verdicts)
        flagged = sum(verdict in wanted for verdict in verdicts)
        counted.append(Counted(plant, kernels, flagged, len(verdicts) - failed, verdicts.count("inconclusive"), failed))
    return counted


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The interval of a share; from 0 to 1 without trials."""
    if not trials:
        return 0.0, 1.0
    share, z2 = successes / trials, CONFIDENCE_Z**2
    centre = share + z2 / (2 * trials)
    half = CONFIDENCE_Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def table(counted: Sequence[Counted]) -> str:
    """Markdown: what was planted, how often it was found, with the interval of that share."""
    titles = ("planted", "kernels", "flagged", "of", "share, 95 % interval", "inconclusive", "failed")
    rows = ["| " + " | ".join(titles) + " |", "|---|---|---:|---:|---|---:|---:|"]
    for one in counted:
        low, high = one.interval
        planted = f"{one.plant:.0%}" if one.plant else "nothing"
        cells = (
            planted,
            one.kernels,
            one.flagged,
            one.judged,
            f"{low:.1%} to {high:.1%}",
            one.inconclusive,
            one.failed,
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)
