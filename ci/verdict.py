"""The decision: from evidence and policy to one verdict of a closed set. docs/judging.md says it in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from ci import stats
from ci.policy import KernelClass, Policy
from ci.stats import Block, Comparison, Estimate, Space


class Verdict(str, Enum):
    """What is said of a case, and of a whole run."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    UNCHANGED = "unchanged"
    INCONCLUSIVE = "inconclusive"
    MISSING = "missing"
    NEW = "new"
    FAILED = "failed"


class Reason(str, Enum):
    """Why a case failed."""

    BUILD = "build"
    WRONG_ANSWER = "wrong_answer"
    CRASH = "crash"
    INVALID_MEASUREMENT = "invalid_measurement"


class Doubt(str, Enum):
    """Why seconds cannot be trusted alone."""

    POWER_CAP = "under the power cap"
    CLOCKS = "the sides' clocks are apart"


class Step(str, Enum):
    """What to do after a block."""

    GO_ON = "go on"
    DECIDED = "decided"
    BUDGET_ENDED = "budget ended"


# What a whole run is called: the first of these that any case is. The first three end with exit code 1.
SEVERITY = (
    Verdict.FAILED,
    Verdict.REGRESSED,
    Verdict.MISSING,
    Verdict.INCONCLUSIVE,
    Verdict.IMPROVED,
    Verdict.NEW,
    Verdict.UNCHANGED,
)
NOTHING_TO_REPORT, FOUND, INCONCLUSIVE, USAGE = 0, 1, 2, 3


@dataclass(frozen=True)
class Side:
    """What is known of base or head beside its samples.

    Args:
        present: whether the side has the case at all.
        failure: why it has no number, or None. detail: more about it, for the reader.
    """

    present: bool = True
    failure: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class Evidence:
    """All that is known of a case.

    Args:
        id: of the case. device: `cpu` or `cuda`.
        blocks: taken so far, in the order taken.
        base, head: the sides.
        same_code: whether both run the same code, see `codegen.same_code`.
    """

    id: str
    device: str
    blocks: Sequence[Block] = ()
    base: Side = Side()
    head: Side = Side()
    same_code: bool = False


@dataclass(frozen=True)
class CaseVerdict:
    """A case in `verdicts.json`.

    Args:
        id: of the case. verdict, reason: the decision; a reason only for `failed`.
        ratio, low, high: head's time over base's with its interval, or None without numbers.
        mde: the least relative change that this measurement would have found, or None.
        same_code: whether both sides run the same code.
    """

    id: str
    verdict: Verdict
    reason: Reason | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    mde: float | None = None
    same_code: bool = False


@dataclass(frozen=True)
class Assessment:
    """A verdict with what led to it.

    Args:
        verdict: the decision. space: in which the ratio is. doubt: why seconds are doubtful, or None.
        p_value: for the correction over the grid; None when the case is decided without numbers.
        kernel_class: whose thresholds held, or None. comparison: the numbers, or None.
    """

    verdict: CaseVerdict
    space: Space = "seconds"
    doubt: Doubt | None = None
    p_value: float | None = None
    kernel_class: KernelClass | None = None
    comparison: Comparison | None = None


def decide(evidence: Evidence, policy: Policy) -> CaseVerdict:
    """The verdict of a case on its own, as if it were the whole grid. For a grid use `judge`."""
    return assess(evidence, policy).verdict


def judge(grid: Iterable[Evidence], policy: Policy) -> list[CaseVerdict]:
    """The verdicts of all cases of a run, corrected for how many there are."""
    return [one.verdict for one in assess_grid(grid, policy)]


def assess_grid(grid: Iterable[Evidence], policy: Policy) -> list[Assessment]:
    """As `judge`, with what led to each verdict."""
    evidence = list(grid)
    first = [assess(one, policy) for one in evidence]
    p_values = [one.p_value for one in first if one.p_value is not None]
    level = stats.benjamini_hochberg(p_values, policy.false_discovery_rate) if p_values else 0.0
    return [assess(one, policy, max(len(p_values), 1), level) for one in evidence]


def next_step(evidence: Evidence, policy: Policy, seconds: float, cases: int) -> Step:
    """Whether another block is needed.

    It is looked only after the numbers of blocks that the policy plans, since each look spends error probability. A
    change ends the measurement when it would count in the grid whatever the other cases say.

    Args:
        evidence: so far. seconds: machine time spent on the case, both sides. cases: measured in this run.
    Returns:
        GO_ON, DECIDED, or BUDGET_ENDED when blocks or seconds are used up and the case is inconclusive.
    """
    if _without_numbers(evidence, policy):
        return Step.DECIDED
    kernel_class = _class_of(evidence, policy)
    taken = len(evidence.blocks)
    if kernel_class is None:  # no block has given a number yet
        limit = min(one.max_blocks for one in policy.classes if one.device == evidence.device)
        spent = seconds >= min(one.budget_seconds for one in policy.classes if one.device == evidence.device)
        return Step.BUDGET_ENDED if taken >= limit or spent else Step.GO_ON
    ended = taken >= kernel_class.max_blocks or seconds >= kernel_class.budget_seconds
    if not ended and taken not in kernel_class.looks:
        return Step.GO_ON
    found = assess(evidence, policy, cases, policy.false_discovery_rate / max(cases, 1))
    if found.verdict.verdict is not Verdict.INCONCLUSIVE:
        return Step.DECIDED
    return Step.BUDGET_ENDED if ended else Step.GO_ON


def assess(evidence: Evidence, policy: Policy, cases: int = 1, level: float | None = None) -> Assessment:
    """The verdict of a case with what led to it.

    Args:
        evidence: of the case. policy: the thresholds. cases: measured in the run, for the detectable effect.
        level: the p-value up to which a change counts; by default as if there were no other case.
    """
    decided = _without_numbers(evidence, policy)
    if decided and decided.verdict is not Verdict.UNCHANGED:
        return Assessment(decided)
    kernel_class = _class_of(evidence, policy)
    if kernel_class is None:
        blank = CaseVerdict(evidence.id, Verdict.INCONCLUSIVE, same_code=evidence.same_code)
        return Assessment(decided or blank)
    doubt = _doubt(evidence.blocks, policy)
    space: Space
    p_value: float | None
    seconds = _estimate(evidence, policy, kernel_class, "seconds")
    cycles = _estimate(evidence, policy, kernel_class, "cycles") if doubt else None
    if seconds is None:
        blank = CaseVerdict(evidence.id, Verdict.INCONCLUSIVE, same_code=evidence.same_code)
        return Assessment(decided or blank, doubt=doubt, kernel_class=kernel_class)
    level = policy.false_discovery_rate if level is None else level
    rule = _Rule(policy, kernel_class, cases, level)
    if doubt is None:
        space, verdict, p_value = "seconds", rule.verdict(seconds), seconds.p_value
    elif cycles is None:
        space, verdict, p_value = "seconds", Verdict.INCONCLUSIVE, 1.0
    else:
        space, verdict, p_value = rule.in_doubt(seconds, cycles, cycles_first=doubt is Doubt.POWER_CAP)
    comparison = rule.comparison(cycles if cycles and space == "cycles" else seconds)
    if evidence.same_code:  # the machine moved, not the code: nor may it use up what chance leaves to the others
        verdict, p_value = Verdict.UNCHANGED, None
    numbers = CaseVerdict(
        evidence.id,
        verdict,
        ratio=comparison.ratio,
        low=comparison.low,
        high=comparison.high,
        mde=comparison.mde,
        same_code=evidence.same_code,
    )
    return Assessment(numbers, space, doubt, p_value, kernel_class, comparison)


def overall(cases: Sequence[CaseVerdict]) -> Verdict:
    """The verdict of a run: the worst of its cases. A run without cases has shown nothing: inconclusive."""
    found = {case.verdict for case in cases}
    return next((verdict for verdict in SEVERITY if verdict in found), Verdict.INCONCLUSIVE)


def exit_code(verdict: Verdict) -> int:
    """What the process ends with: 0 nothing to report, 1 regressed, missing or failed, 2 inconclusive."""
    if verdict in (Verdict.FAILED, Verdict.REGRESSED, Verdict.MISSING):
        return FOUND
    return INCONCLUSIVE if verdict is Verdict.INCONCLUSIVE else NOTHING_TO_REPORT


def _without_numbers(evidence: Evidence, policy: Policy) -> CaseVerdict | None:
    """The verdict of a case that no measurement can change."""
    base, head = evidence.base, evidence.head
    failure = head.failure or base.failure
    if failure:
        return CaseVerdict(evidence.id, Verdict.FAILED, failure, same_code=evidence.same_code)
    if not (base.present and head.present):
        verdict = Verdict.NEW if head.present else Verdict.MISSING
        return CaseVerdict(evidence.id, verdict, same_code=False)
    if evidence.same_code:
        return CaseVerdict(evidence.id, Verdict.UNCHANGED, same_code=True)
    if _is_invalid(evidence, policy):
        return CaseVerdict(evidence.id, Verdict.FAILED, Reason.INVALID_MEASUREMENT)
    return None


def _is_invalid(evidence: Evidence, policy: Policy) -> bool:
    """Whether too many samples were discarded on a side; asked from the first look on, not after one bad burst."""
    kernel_class = _class_of(evidence, policy)
    of_device = [one for one in policy.classes if one.device == evidence.device]
    enough = (kernel_class or min(of_device, key=lambda one: one.first_look)).first_look
    if len(evidence.blocks) < enough:
        return False
    for bursts in ([block.base for block in evidence.blocks], [block.head for block in evidence.blocks]):
        kept = sum(len(burst.seconds) for burst in bursts)
        discarded = sum(sum(burst.discarded.values()) for burst in bursts)
        if discarded > policy.max_discarded_share * (kept + discarded) or not kept:
            return True
    return False


def _class_of(evidence: Evidence, policy: Policy) -> KernelClass | None:
    """The class by base's time per launch; None when no burst of base has a number."""
    medians = [median for block in evidence.blocks if (median := block.base.median())]
    return policy.class_of(evidence.device, statistics.median(medians)) if medians else None


def _estimate(evidence: Evidence, policy: Policy, kernel_class: KernelClass, space: Space) -> Estimate | None:
    share = stats.look_share(len(evidence.blocks), kernel_class.looks)
    try:
        return stats.estimate(evidence.blocks, kernel_class.process_noise, share, policy.trimmed_share, space)
    except stats.TooFewBlocks:
        return None


@dataclass(frozen=True)
class _Rule:
    """The thresholds of a case; `level` is the p-value up to which a change counts."""

    policy: Policy
    kernel_class: KernelClass
    cases: int
    level: float

    @property
    def limit(self) -> float:
        """The relevant change as a log ratio."""
        return math.log1p(self.kernel_class.relevant_change)

    def comparison(self, found: Estimate) -> Comparison:
        """With the effect that this decision would find: significant in the grid, and relevant."""
        significant = found.half_width(self.policy.false_discovery_rate / self.cases)
        mde = stats.factor(max(significant, self.limit) + found.margin(self.policy.power)) - 1
        return replace(found.comparison(self.policy.confidence, self.policy.power), mde=mde)

    def verdict(self, found: Estimate, times: int = 1) -> Verdict:
        """Moved: significant and relevant. Unchanged: the whole interval is irrelevant. Anything else is not known.

        Args:
            found: the estimate. times: how many estimates are asked.
        """
        if abs(found.effect) >= self.limit and times * found.p_value <= self.level:
            return Verdict.REGRESSED if found.effect > 0 else Verdict.IMPROVED
        if abs(found.effect) + found.half_width(1 - self.policy.confidence) < self.limit:
            return Verdict.UNCHANGED
        return Verdict.INCONCLUSIVE

    def in_doubt(self, seconds: Estimate, cycles: Estimate, cycles_first: bool) -> tuple[Space, Verdict, float]:
        """Where seconds are doubtful, both spaces must agree. Cycles are asked first, or the narrower interval.

        Moved is said when one moved and the estimate of the other is relevant the same way: when only the clock
        changed, cycles of a kernel that computes stay, and so do seconds of a kernel that waits for memory. Unchanged
        is said when one shows it and the estimate of the other is irrelevant.

        Returns:
            The space of the numbers, the verdict, and the p-value: two were asked, so the smaller counts twice.
        """
        p_value = min(1.0, 2 * min(seconds.p_value, cycles.p_value))
        spaces: list[tuple[Space, Estimate, Estimate]] = [("cycles", cycles, seconds), ("seconds", seconds, cycles)]
        if not cycles_first:
            spaces.sort(key=lambda one: one[1].half_width(1 - self.policy.confidence))
        for space, asked, other in spaces:
            found = self.verdict(asked, times=2)
            agrees = {
                Verdict.REGRESSED: other.effect >= self.limit,
                Verdict.IMPROVED: other.effect <= -self.limit,
                Verdict.UNCHANGED: abs(other.effect) < self.limit,
            }
            if agrees.get(found):
                return space, found, p_value
        return spaces[0][0], Verdict.INCONCLUSIVE, p_value


def _doubt(blocks: Sequence[Block], policy: Policy) -> Doubt | None:
    """Why seconds cannot be trusted alone."""
    bursts = [burst for block in blocks for burst in (block.base, block.head)]
    capped = sum(burst.power_capped is True for burst in bursts)
    if capped > policy.power_capped_share * len(bursts):
        return Doubt.POWER_CAP
    apart = stats.clock_difference(blocks)
    if apart is not None and apart > policy.clock_tolerance:
        return Doubt.CLOCKS
    return None
