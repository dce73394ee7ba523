"""Drills: whether the judge finds slowdowns that are planted, and stays quiet when nothing changed.

A drill builds HEAD twice, the second time with a slowdown of its kernels (`kernels/planted.h`): no number is edited.
What a real slowdown costs, a measurement several times as long says (`Drills.times`). Every run is appended to a
tracked file, so that counts grow over several sessions on a machine.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci import markdown, pull_request, results
from ci.policy import Policy
from ci.pull_request import Options
from ci.stats import Block, Burst
from ci.verdict import Verdict

NOTHING = "nothing"  # the plant of an A/A run
PLANTS = (NOTHING, "delay:0.01", "delay:0.02", "delay:0.03", "delay:0.05", "delay:0.1")
REAL = ("stage", "sync", "spill")  # of CUDA kernels; nobody knows what they cost until it is measured
LOCAL = Path("ci/drills/local.jsonl")  # ignored by git
CONFIDENCE_Z = 1.96  # of the intervals of counts: 95 %


@dataclass(frozen=True)
class Counted:
    """How often cases of a plant and a class of kernels were called regressed.

    Args:
        plant: as setup.py's FLASH_DSA_PLANT, or `nothing`. kernels: the policy's class. flagged: called regressed, or
        of A/A also improved. judged: with a verdict from numbers. inconclusive, failed: of the others and of judged.
    """

    plant: str
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


@dataclass(frozen=True)
class Drills:
    """Which drills to make.

    Args:
        plants: names. repeat: runs of each. cases: ids, all of the grid when empty.
        times: how many times the policy's most blocks are taken, without looking before; 1 is a check as it is.
    """

    plants: Sequence[str] = PLANTS
    repeat: int = 1
    cases: Sequence[str] = ()
    times: int = 1


def run(root: Path, drills: Drills, record: Path, policy: Policy, say: Callable[[str], None] = print) -> None:
    """Makes drills and appends each to a file as soon as it is done; killed half-way, those that were done stay.

    Args:
        root: of the repository. drills: which. record: JSON lines. policy: thresholds. say: told after each.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    chosen = policy if drills.times == 1 else policy.longer(drills.times)
    for number in range(drills.repeat):
        for plant in drills.plants:
            begun = time.monotonic()
            options = Options(
                root,
                "HEAD",
                "HEAD",
                measure_same_code=True,
                plant="" if plant == NOTHING else plant,
                base_plant="delay:0" if plant.startswith("delay:") else "",
                cases=tuple(drills.cases),
            )
            found = pull_request.run(options, chosen)
            line = {"plant": plant, "times": drills.times, "seconds": round(time.monotonic() - begun, 1)}
            with record.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line | _facts(found, options, policy), allow_nan=False) + "\n")
            moved = sum(case.verdict in (Verdict.REGRESSED, Verdict.IMPROVED) for case in found.cases)
            say(f"run {number + 1} of {drills.repeat}, planted {plant}: {moved} of {len(found.cases)} cases moved")


def _facts(found: results.Verdicts, options: Options, policy: Policy) -> dict[str, Any]:
    output = pull_request.output_of(options, found.base, found.head)
    base, head = (results.read_run(output / f"{side}.json") for side in pull_request.SIDES)
    known = {one.id: one for one in results.evidence_of(base, head)}
    cases = []
    for case in found.cases:
        evidence = known[case.id]
        medians = sorted(value for block in evidence.blocks if (value := block.base.median()) is not None)
        kernel = policy.class_of(evidence.device, statistics.median(medians)) if medians else None
        values = {"id": case.id, "verdict": case.verdict.value, "kernels": kernel.name if kernel else None}
        numbers = {"ratio": case.ratio, "low": case.low, "high": case.high}
        cases.append({**values, **numbers, "blocks": [_numbers_of(block) for block in evidence.blocks]})
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    facts = {"timestamp": stamp, "commit": found.head, "machine": found.machine, "protocol": found.protocol}
    return {**facts, "cases": cases}


def _numbers_of(block: Block) -> list[Any]:
    """A block to be judged again: its order; of base and of head median seconds, cycles, and the power cap."""
    sides = (block.base, block.head)
    return [
        block.order,
        *([_rounded(side.median()), _rounded(side.median("cycles")), side.power_capped] for side in sides),
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def blocks_of(case: dict[str, Any]) -> tuple[Block, ...]:
    """The blocks of a recorded case, a sample per burst."""

    def burst(seconds: float | None, cycles: float | None, capped: bool | None) -> Burst:
        return Burst([] if seconds is None else [seconds], None if cycles is None else [cycles], {}, capped)

    return tuple(Block(burst(*base), burst(*head), order) for order, base, head in case["blocks"])


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
    """Counts by plant and class of kernels of checks as they are, in the order of plants."""
    groups: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        for case in line["cases"] if line["times"] == 1 else ():
            groups.setdefault((line["plant"], case["kernels"] or "not measured"), []).append(case["verdict"])
    counted = []
    for (plant, kernels), verdicts in sorted(groups.items(), key=lambda group: (_place(group[0][0]), group[0][1])):
        wanted = {"regressed", "improved"} if plant == NOTHING else {"regressed"}
        failed = sum(verdict in ("failed", "missing", "new") for verdict in verdicts)
        flagged = sum(verdict in wanted for verdict in verdicts)
        counted.append(Counted(plant, kernels, flagged, len(verdicts) - failed, verdicts.count("inconclusive"), failed))
    return counted


def _place(plant: str) -> tuple[int, float, str]:
    name, _, share = plant.partition(":")
    return (0 if plant == NOTHING else 1 if share else 2, float(share or 0), name)


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
    rows = []
    for one in counted:
        low, high = one.interval
        counts = [str(number) for number in (one.flagged, one.judged, one.inconclusive, one.failed)]
        rows.append([one.plant, one.kernels, *counts[:2], f"{low:.1%} to {high:.1%}", *counts[2:]])
    titles = ("<planted", "<kernels", "flagged", "of", "<share, 95 % interval", "inconclusive", "failed")
    return markdown.table(titles, rows, len(rows))


def longer_table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: each check of a real plant beside the longer measurements of the same case."""
    longer: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        for case in line["cases"] if line["times"] > 1 else ():
            if case["ratio"] is not None:
                longer.setdefault((line["plant"], case["id"]), []).append(case["ratio"])
    rows = []
    for line in lines:
        for case in line["cases"] if line["times"] == 1 and line["plant"] in REAL else ():
            truths = longer.get((line["plant"], case["id"]), [])
            if truths and case["ratio"] is not None:
                truth = statistics.geometric_mean(truths)
                interval = f"{case['low']:.4f} to {case['high']:.4f}"
                held = "yes" if case["low"] <= truth <= case["high"] else "no"
                rows.append([line["plant"], case["id"], case["verdict"], interval, f"{truth:.4f}", held])
    titles = ("<planted", "<case", "<verdict", "<head over base, interval", "<longer measurement", "<held")
    return markdown.table(titles, sorted(rows), len(rows))
