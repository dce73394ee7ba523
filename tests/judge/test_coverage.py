"""Simulations with fixed seeds: the interval holds what it promises, and looking often raises no false alarms.

Why the trimmed mean of each order (Yuen). Coverage of a 95 % interval / its median half width, in block deviations,
from 20,000 simulations each; a disturbed block is off by ten deviations:

| location and error | 8 blocks | 16 | 40 | a tenth of blocks disturbed: 8 | 16 | 40 |
|---|---|---|---|---|---|---|
| mean of ABBA quads, t | 95.1 / 1.00 | 95.0 / 0.56 | 95.3 / 0.33 | 98.0 / 3.40 | 97.9 / 1.78 | 95.6 / 1.06 |
| mean of each order, t | 94.9 / 0.82 | 94.9 / 0.52 | 94.9 / 0.32 | 97.6 / 2.84 | 97.8 / 1.65 | 95.9 / 1.04 |
| **trimmed mean of each order** | 95.2 / 0.81 | 94.8 / 0.56 | 94.8 / 0.34 | 97.6 / 2.82 | 96.5 / 0.69 | 95.4 / 0.40 |
| the same, orders centred first | 93.8 / 0.89 | 94.2 / 0.57 | 94.6 / 0.34 | 94.9 / 1.12 | 94.9 / 0.68 | 95.0 / 0.39 |

Wilcoxon's signed rank on quads has no interval of 99 % below sixteen blocks (2 / 2^quads is its smallest p-value).
Disturbances to one side only are no noise: with a tenth of the blocks slower on head, 40 blocks cover 90 %.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from judge.simulated import Machine, grid, take

from ci import policy, stats, verdict

POLICY = policy.load()
RUNS = 800


def coverage(machine: Machine, blocks: int, seed: int = 1) -> float:
    """Share of intervals that hold the truth, in per cent, for a fixed number of blocks."""
    random_ = random.Random(seed)
    held = 0
    for _ in range(RUNS):
        source = take(machine, 1.01, random_)
        found = stats.estimate([source() for _ in range(blocks)], machine.process_noise)
        held += abs(found.effect - math.log(1.01)) <= found.half_width(0.05)
    return 100 * held / RUNS


# Per cent of 800 intervals of 95 % that hold the truth, after 5, 8, 16 and 40 blocks; chance alone gives 95 +- 1.5.
COVERAGE = [
    (Machine(), (94.5, 94.0, 95.9, 95.6)),
    (Machine(drift=0.003), (94.5, 94.0, 95.9, 95.6)),
    (Machine(outliers=0.1), (96.2, 97.0, 95.9, 94.4)),
    (Machine(process_noise=0.0015), (96.8, 95.8, 95.2, 94.8)),
    (Machine(process_noise=0.0015, outliers=0.1, drift=0.003), (97.0, 97.0, 96.2, 95.5)),
]


@pytest.mark.parametrize(("machine", "expected"), COVERAGE)
def test_intervals_hold_the_truth(machine: Machine, expected: tuple[float, ...]) -> None:
    found = tuple(coverage(machine, blocks) for blocks in (5, 8, 16, 40))
    assert found == pytest.approx(expected, abs=0.1)
    assert min(found) > 93.5


class Rates:
    """What a number of simulated runs came to."""

    def __init__(self, machine: Machine, ratio: float, runs: int = 25, cases: int = 12, name: str = "case") -> None:
        self.counts: Counter[str] = Counter()
        self.blocks = self.held = 0
        for seed in range(runs):
            evidence = grid(machine, [ratio] * cases, POLICY, seed, name)
            found = verdict.judge(evidence, POLICY)
            self.blocks += sum(len(one.blocks) for one in evidence)
            self.counts.update(case.verdict.value for case in found)
            self.held += sum(case.low <= ratio <= case.high for case in found if case.low and case.high)
        self.cases = runs * cases

    def share(self, *verdicts: str) -> float:
        return sum(self.counts[name] for name in verdicts) / self.cases


OFTEN = Machine(process_noise=0.0008)  # as much as the policy allows for, and 0.15 % between blocks
WORST = Machine(process_noise=0.0008, outliers=0.1, drift=0.0005)


@pytest.mark.parametrize("machine", [Machine(), OFTEN, WORST])
def test_equal_sides_stay_quiet_and_one_per_cent_is_found(machine: Machine) -> None:
    """25 runs of 12 cases each, looked at after 8, 12, ... blocks."""
    equal, slower, faster = (Rates(machine, ratio) for ratio in (1.0, 1.01, 1 / 1.01))
    assert equal.share("regressed", "improved") <= 0.01
    assert equal.share("unchanged") >= 0.9
    assert slower.share("regressed") >= 0.95
    assert faster.share("improved") >= 0.95
    limit = POLICY.class_of("cuda", machine.seconds)
    for rates in (equal, slower, faster):
        assert rates.held / rates.cases >= 0.95  # also after stopping where it looked decided
        assert rates.blocks / rates.cases * machine.block_seconds <= limit.budget_seconds


def test_two_per_cent_of_a_short_kernel_is_found() -> None:
    machine = Machine(seconds=1e-4, process_noise=0.0015, block_noise=0.004, block_seconds=0.13)
    assert Rates(machine, 1.02).share("regressed") >= 0.95
    assert Rates(machine, 1.0).share("regressed", "improved") <= 0.01


def test_a_change_at_the_threshold_is_not_called_unchanged() -> None:
    assert Rates(OFTEN, 1.005).share("unchanged") <= 0.05


@pytest.mark.parametrize("block_noise", [0.05, 0.15, 0.3])
def test_on_a_noisy_cpu_half_as_slow_again_is_found_and_equal_is_never_regressed(block_noise: float) -> None:
    machine = Machine(1e-3, block_noise, process_noise=0.05, outliers=0.1, block_seconds=0.02)
    equal = Rates(machine, 1.0, runs=50, cases=4, name="cpu")
    assert equal.share("unchanged", "inconclusive") == 1
    assert Rates(machine, 1.5, runs=50, cases=4, name="cpu").share("regressed") >= 0.95


@pytest.mark.parametrize("clock_noise", [0.002, 0.004, 0.01])
def test_clocks_that_go_up_and_down_hide_nothing_and_alarm_nobody(clock_noise: float) -> None:
    machine = replace(OFTEN, clock_noise=clock_noise)
    equal = Rates(machine, 1.0)
    assert equal.share("regressed", "improved") == 0
    assert equal.share("unchanged") >= 0.95
    assert Rates(machine, 1.01).share("regressed") >= 0.95


@pytest.mark.parametrize(("seconds", "found"), [(0.04, 1.02), (1.0, 1.03)])
def test_long_kernels_under_the_power_cap(seconds: float, found: float) -> None:
    machine = Machine(seconds, 0.002, 0.002, block_seconds=1 + 4 * seconds, clock_noise=0.01, capped=True)
    equal = Rates(machine, 1.0)
    assert equal.share("regressed", "improved") == 0
    assert equal.share("unchanged") >= 0.95
    assert Rates(machine, found).share("regressed") >= 0.95


def test_looking_often_raises_no_false_alarms() -> None:
    """Any difference counts here, however small, so that nothing but the looks protects: at most 5 % may be flagged."""
    random_, looks, runs = random.Random(1), tuple(range(4, 41, 4)), 1000

    def flagged(share: Callable[[int], float]) -> float:
        count = 0
        for _ in range(runs):
            source = take(Machine(), 1.0, random_)
            blocks = [source() for _ in range(looks[-1])]
            found = [stats.estimate(blocks[:look], share=share(look)) for look in looks]
            count += any(abs(one.effect) > one.half_width(0.05) for one in found)
        return count / runs

    assert flagged(lambda look: stats.look_share(look, looks)) <= 0.05
    assert flagged(lambda look: 1.0) > 0.12  # what it would be otherwise
