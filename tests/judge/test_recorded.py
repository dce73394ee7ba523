"""Blocks recorded on an H100, judged again: drawn anew from each A/A case, with and without a slowdown of head's.

Live drills count what the judge said when it was there (docs/judging.md); here the same noise guards every change of
the statistics, without a GPU. What two processes of the same code differ in stays as it was recorded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from judge.simulated import Machine, measure

from ci import docs, drill, policy, verdict
from ci.stats import Block, Burst

POLICY = policy.load()
RECORD = docs.DRILLS / "h100-sxm.jsonl"
DRAWS = 10  # of every recorded run
BLOCK_SECONDS = 0.15


def slower(burst: Burst, factor: float) -> Burst:
    cycles = None if burst.cycles is None else [factor * value for value in burst.cycles]
    return replace(burst, seconds=[factor * value for value in burst.seconds], cycles=cycles)


def drawn(blocks: Sequence[Block], factor: float, random_: random.Random) -> Callable[[], Block]:
    """A source of blocks in ABBA order, each one of those recorded in that order."""
    taken = 0

    def block() -> Block:
        nonlocal taken
        order = ("AB", "BA")[taken % 2]
        taken += 1
        found = random_.choice([block for block in blocks if block.order == order])
        return replace(found, head=slower(found.head, factor))

    return block


def judged(factor: float) -> dict[str, Counter[str]]:
    """Verdicts by class of kernels."""
    counts: dict[str, Counter[str]] = {}
    for line in drill.read(RECORD):
        if line["plant"] != drill.NOTHING or line["times"] != 1:
            continue
        kernels = {case["id"]: case["kernels"] for case in line["cases"] if case["blocks"]}
        cases = {case["id"]: drill.blocks_of(case) for case in line["cases"] if case["blocks"]}
        for seed in range(DRAWS):
            random_ = random.Random(f"{line['timestamp']} {seed}")
            found = [
                measure(name, drawn(blocks, factor, random_), Machine(block_seconds=BLOCK_SECONDS), POLICY, len(cases))
                for name, blocks in cases.items()
            ]
            for said in verdict.judge(found, POLICY):
                counts.setdefault(kernels[said.id], Counter())[said.verdict.value] += 1
    return counts


def share(counts: Counter[str], *verdicts: str) -> float:
    return sum(counts[name] for name in verdicts) / counts.total()


def test_equal_sides_stay_quiet() -> None:
    for name, counts in judged(1.0).items():
        assert share(counts, "regressed", "improved") <= 0.01, name
        assert share(counts, "unchanged") >= 0.9, name


@pytest.mark.parametrize("factor, found", [(1.01, "regressed"), (1 / 1.01, "improved")])
def test_one_per_cent_is_found(factor: float, found: str) -> None:
    assert share(judged(factor)["0.2 to 10 ms"], found) >= 0.95
