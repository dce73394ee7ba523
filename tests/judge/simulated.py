"""Simulated evidence: blocks of two processes with known truth, noise, drift and disturbances, from fixed seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ci.policy import Policy
from ci.stats import Block, Burst
from ci.verdict import Evidence, Step, next_step


@dataclass(frozen=True)
class Machine:
    """What the simulated machine does to a block.

    Args:
        seconds: of one launch. block_noise: standard deviation of a block's log ratio.
        process_noise: standard deviation of the log ratio of two processes of the same code.
        drift: log growth per burst. outliers: share of disturbed blocks, each by ten times the block noise.
        block_seconds: machine time of a block.
        clock_noise: standard deviation of a burst's log clock; cycles are known where it is not zero.
        capped: whether every burst is under the power cap.
    """

    seconds: float = 3.6e-3
    block_noise: float = 0.0015
    process_noise: float = 0.0
    drift: float = 0.0
    outliers: float = 0.0
    block_seconds: float = 0.2
    clock_noise: float = 0.0
    capped: bool = False


def take(machine: Machine, ratio: float, random_: random.Random) -> Callable[[], Block]:
    """A source of blocks in ABBA order, of one pair of processes.

    Args:
        machine: what it does. ratio: head over base, the truth. random_: where noise comes from.
    """
    truth = math.log(ratio) + random_.gauss(0, machine.process_noise)
    taken = 0

    def burst(factor: float) -> Burst:
        seconds = [machine.seconds * factor] * 3
        if not machine.clock_noise:
            return Burst(seconds)
        clock = math.exp(random_.gauss(0, machine.clock_noise))
        return Burst([s / clock for s in seconds], [1.7e9 * s for s in seconds], {}, machine.capped)

    def block() -> Block:
        nonlocal taken
        first, second = (math.exp(machine.drift * (2 * taken + i)) for i in (0, 1))
        in_order = taken % 2 == 0
        base, head = (first, second) if in_order else (second, first)
        taken += 1
        noise = random_.gauss(0, machine.block_noise)
        if random_.random() < machine.outliers:
            noise += random_.choice((-10, 10)) * machine.block_noise
        head *= math.exp(truth + noise)
        return Block(burst(base), burst(head), "AB" if in_order else "BA")

    return block


def measure(name: str, source: Callable[[], Block], machine: Machine, policy: Policy, cases: int) -> Evidence:
    """Takes blocks as a runner would: one, and then what the judge says."""
    evidence = Evidence(name, "cpu" if "cpu" in name else "cuda")
    blocks: list[Block] = []
    step = Step.GO_ON
    while step is Step.GO_ON:
        blocks.append(source())
        evidence = replace(evidence, blocks=tuple(blocks))
        step = next_step(evidence, policy, len(blocks) * machine.block_seconds, cases)
    return evidence


def grid(machine: Machine, ratios: Sequence[float], policy: Policy, seed: int, name: str = "case") -> list[Evidence]:
    """A whole run: one case for each true ratio."""
    random_ = random.Random(seed)
    return [
        measure(f"{name}-{i}", take(machine, ratio, random_), machine, policy, len(ratios))
        for i, ratio in enumerate(ratios)
    ]
