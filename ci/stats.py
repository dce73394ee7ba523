"""From blocks of bursts to a ratio with its interval. Numbers only, no opinion.

A block is a burst of base and a burst of head beside each other, and its number is the logarithm of the ratio of their
medians. Blocks come in both orders, AB (base first) and BA. A drift that grows steadily adds to one order what it takes
from the other, so the mean of the two orders' locations is free of it. The location of an order is its trimmed mean:
blocks in which something else happened on the machine do not reach it.

Two things make the estimate uncertain, and the interval has both: blocks differ from each other, which more blocks
average out, and two processes differ although nothing changed, which they do not (`process_noise`).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Space = Literal["seconds", "cycles"]
Order = Literal["AB", "BA"]

TRIM = 0.2  # share of an order's blocks left out at each end
_NORMAL = statistics.NormalDist()
_LOG_MAX = 50.0
_P_MIN = 1e-12  # below, the tail of t is lost in rounding; nobody decides on it


class TooFewBlocks(ValueError):
    """Not enough blocks for an interval: both orders and three blocks are needed."""


@dataclass(frozen=True)
class Burst:
    """Samples taken back to back by one side.

    Args:
        seconds: kept samples.
        cycles: SM cycles of the same samples, or None where they cannot be read.
        discarded: how many samples were dropped, by reason.
        power_capped: whether the power cap lowered the clock; None when that cannot be known.
    Raises:
        ValueError: when cycles are not as many as seconds.
    """

    seconds: Sequence[float]
    cycles: Sequence[float] | None = None
    discarded: Mapping[str, int] = field(default_factory=dict)
    power_capped: bool | None = None

    def __post_init__(self) -> None:
        if self.cycles is not None and len(self.cycles) != len(self.seconds):
            raise ValueError(f"cycles: expected {len(self.seconds)}, as many as seconds, got {len(self.cycles)}")

    def median(self, space: Space = "seconds") -> float | None:
        """The burst's one number: the median of its samples, or None without positive samples."""
        samples = self.seconds if space == "seconds" else self.cycles
        if not samples:
            return None
        median = statistics.median(samples)
        return median if median > 0 and math.isfinite(median) else None


@dataclass(frozen=True)
class Block:
    """A burst of base and a burst of head beside each other.

    Args:
        base, head: the bursts. order: `AB` when base came first, `BA` when head did.
    """

    base: Burst
    head: Burst
    order: Order

    def log_ratio(self, space: Space = "seconds") -> float | None:
        """Logarithm of head over base, or None when either has no number."""
        base, head = self.base.median(space), self.head.median(space)
        return math.log(head) - math.log(base) if base and head else None


@dataclass(frozen=True)
class Comparison:
    """Head over base.

    Args:
        ratio: head's time over base's. low, high: the interval that holds it.
        p_value: probability of a ratio this far from 1 when the sides are equal, adjusted for the share of this look.
        mde: minimum detectable effect, the least relative change that is found with the asked power.
        blocks: how many were used.
    """

    ratio: float
    low: float
    high: float
    p_value: float
    mde: float
    blocks: int


@dataclass(frozen=True)
class Estimate:
    """A logarithm of a ratio and how uncertain it is.

    Args:
        effect: log of head over base.
        error: standard error from the blocks. freedom: its degrees of freedom.
        process_noise: standard deviation of the log ratio of two processes of the same code.
        share: of the error probability that this look may spend.
        blocks: how many were used.
    """

    effect: float
    error: float
    freedom: int
    process_noise: float
    share: float
    blocks: int

    def half_width(self, alpha: float) -> float:
        """Half of the interval that misses the truth with probability alpha.

        The parts are joined as the sides of a right angle. Looking again and again draws new blocks, not new processes:
        only the part of the blocks has its alpha cut by the share of this look.
        """
        blocks = student_quantile(alpha * self.share, self.freedom) * self.error
        return math.hypot(blocks, normal_quantile(alpha) * self.process_noise)

    @property
    def p_value(self) -> float:
        """The alpha at which the interval just reaches 1."""
        size = abs(self.effect)
        if size == 0:
            return 1.0
        low, high = _P_MIN, 1.0
        if self.half_width(high) >= size:
            return 1.0
        if self.half_width(low) <= size:
            return _P_MIN
        for _ in range(50):  # bisection on a logarithmic scale: half_width falls with alpha
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.half_width(middle) < size else (middle, high)
        return high

    def comparison(self, confidence: float, power: float) -> Comparison:
        """The estimate as a ratio with its interval.

        Args:
            confidence: of the interval. power: probability with which an effect as large as `mde` is found.
        """
        half = self.half_width(1 - confidence)
        low, ratio, high = (factor(self.effect + side * half) for side in (-1, 0, 1))
        mde = factor(half + self.margin(power)) - 1
        return Comparison(ratio, low, high, self.p_value, mde, self.blocks)

    def margin(self, power: float) -> float:
        """How far below the truth the estimate stays with probability `power` at most; only chance, no looks."""
        alpha = 2 * (1 - power)
        blocks = student_quantile(alpha, self.freedom) * self.error
        return math.hypot(blocks, normal_quantile(alpha) * self.process_noise)


def compare(
    blocks: Sequence[Block],
    confidence: float,
    *,
    process_noise: float = 0.0,
    share: float = 1.0,
    power: float = 0.95,
    trim: float = TRIM,
    space: Space = "seconds",
) -> Comparison:
    """Compares head with base.

    Args:
        blocks: in any order; those without a number on a side are left out.
        confidence: of the interval, such as 0.95.
        process_noise: standard deviation of the log ratio of two processes of the same code.
        share: of the error probability that this look may spend, see `look_share`; 1 when it is the only look.
        power: with which an effect of `mde` is found.
        trim: share of an order's blocks left out at each end.
        space: `seconds` or `cycles`.
    Raises:
        TooFewBlocks: without both orders or with fewer than three blocks.
    """
    return estimate(blocks, process_noise, share, trim, space).comparison(confidence, power)


def estimate(
    blocks: Sequence[Block],
    process_noise: float = 0.0,
    share: float = 1.0,
    trim: float = TRIM,
    space: Space = "seconds",
) -> Estimate:
    """Location and error of the log ratio, as in `compare`.

    The location is the mean of the trimmed means of the two orders. Its error is that of Yuen's test: the winsorised
    deviations of both orders pooled, over the degrees of freedom that trimming leaves.

    Source: Yuen, "The two-sample trimmed t for unequal population variances", Biometrika 61(1), 1974, with the pooled
        variance of Yuen and Dixon, "The approximate behaviour and performance of the two-sample trimmed t",
        Biometrika 60(2), 1973: both orders are the same bursts.
    Raises:
        TooFewBlocks: without both orders or with fewer than three blocks.
    """
    values: dict[Order, list[float]] = {"AB": [], "BA": []}
    for block in blocks:
        value = block.log_ratio(space)
        if value is not None:
            values[block.order].append(value)
    count = len(values["AB"]) + len(values["BA"])
    if count < 3 or not all(values.values()):
        raise TooFewBlocks(f"blocks: expected three with a number, in both orders, got {count}")
    (first, first_squares, first_kept), (second, second_squares, second_kept) = (
        _trimmed(order, trim) for order in values.values()
    )
    freedom = first_kept + second_kept - 2
    variance = (first_squares + second_squares) / freedom
    error = math.sqrt(variance * (1 / first_kept + 1 / second_kept)) / 2
    return Estimate((first + second) / 2, error, freedom, process_noise, share, count)


def _trimmed(values: list[float], trim: float) -> tuple[float, float, int]:
    """Trimmed mean, sum of squares of the winsorised values around their mean, and how many were kept."""
    ordered = sorted(values)
    cut = int(trim * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    winsorised = [min(max(value, kept[0]), kept[-1]) for value in ordered]
    centre = statistics.fmean(winsorised)
    return statistics.fmean(kept), sum((value - centre) ** 2 for value in winsorised), len(kept)


def look_share(blocks: int, looks: Sequence[int]) -> float:
    """The share of the error probability that a look after so many blocks may spend.

    It is spent in proportion to blocks: a look has what came since the look before it. The shares of all looks add up
    to 1, so by Bonferroni the chance of any false alarm stays below alpha, whatever the noise, the trimming and the
    dependence between looks.

    Args:
        blocks: taken so far. looks: numbers of blocks at which is looked, rising; the last is the most that are taken.
            Ending between two looks is a look with what came since. Beyond the last, its share holds.
    Source: Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70(3), 1983, with the
        spending function alpha * t and Bonferroni's bound in place of the joint distribution.
    """
    blocks = min(blocks, looks[-1])
    before = max((look for look in looks if look < blocks), default=0)
    return (blocks - before) / looks[-1]


def benjamini_hochberg(p_values: Sequence[float], rate: float) -> float:
    """The level up to which p-values of a grid count, so that at most `rate` of what is found is found by chance.

    Args:
        p_values: of all cases of the grid. rate: false discovery rate.
    Returns:
        The largest p-value that counts times none or more: every p-value at most this level counts; 0 when none does.
    Source: Benjamini and Hochberg, "Controlling the false discovery rate", JRSS B 57(1), 1995; it holds for cases that
        depend positively on each other (Benjamini and Yekutieli, Annals of Statistics 29(4), 2001), as those of one
        pair of processes do.
    """
    count = len(p_values)
    passed = [p for rank, p in enumerate(sorted(p_values), 1) if p <= rate * rank / count]
    return passed[-1] if passed else 0.0


def factor(log: float) -> float:
    """What a log ratio stands for; the interval of three wild blocks may reach beyond what a float holds."""
    return math.exp(min(max(log, -_LOG_MAX), _LOG_MAX))


def clock_difference(blocks: Sequence[Block]) -> float | None:
    """How far the sides' clocks, cycles over seconds, are apart in a block, relatively: the median over blocks.

    Both show in it: one side's clock is lower throughout, or clocks go up and down from burst to burst. None without
    cycles.
    """
    apart = []
    for block in blocks:
        seconds, cycles = block.log_ratio("seconds"), block.log_ratio("cycles")
        if seconds is not None and cycles is not None:
            apart.append(abs(cycles - seconds))
    return factor(statistics.median(apart)) - 1 if apart else None


def student_tail(t: float, freedom: int) -> float:
    """Probability that |T| exceeds t, for Student's T with whole degrees of freedom.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4: finite sums, exact.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    odd = freedom % 2 == 1
    term = total = math.cos(angle) if odd else 1.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    if not odd:
        return 1 - math.sin(angle) * total
    return 1 - 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))


@functools.lru_cache(maxsize=4096)
def student_quantile(alpha: float, freedom: int) -> float:
    """The t that |T| exceeds with probability alpha, by bisection."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > alpha and high < 1e15:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > alpha else (low, middle)
    return high


def chi2_quantile(alpha: float, freedom: int) -> float:
    """What chi-square exceeds with probability alpha, within 2 % from three degrees of freedom on.

    Source: Wilson and Hilferty, "The distribution of chi-square", PNAS 17, 1931.
    """
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + _NORMAL.inv_cdf(1 - alpha) * math.sqrt(spread)) ** 3)


def normal_quantile(alpha: float) -> float:
    """What the size of a standard normal variable exceeds with probability alpha."""
    return -_NORMAL.inv_cdf(alpha / 2) if alpha < 1 else 0.0
