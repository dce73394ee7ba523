"""The decision: every verdict from evidence in round numbers, and when to stop."""

from __future__ import annotations

from dataclasses import replace

import pytest
from judge.invented import blocks, evidence

from ci import policy, verdict
from ci.stats import Block, Burst
from ci.verdict import CaseVerdict, Evidence, Reason, Side, Step, Verdict

POLICY = policy.load()


def decide(case: Evidence) -> Verdict:
    return verdict.decide(case, POLICY).verdict


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.0, "unchanged"), (1.002, "unchanged"), (1.01, "regressed"), (1 / 1.01, "improved"), (1.0045, "inconclusive")],
)
def test_moved_is_significant_and_relevant(ratio: float, expected: str) -> None:
    found = verdict.decide(evidence(ratio), POLICY)
    assert found.verdict.value == expected
    assert found.ratio == pytest.approx(ratio, rel=2e-4)
    assert found.low is not None and found.high is not None and found.mde is not None
    assert found.low < ratio < found.high
    assert 0.005 < found.mde < 0.008


def test_a_relevant_change_in_much_noise_is_inconclusive() -> None:
    noisy = [
        replace(b, head=Burst([s * (1.0 if i % 3 else 1.1) for s in b.head.seconds])) for i, b in enumerate(blocks(1))
    ]
    assert decide(replace(evidence(), blocks=tuple(noisy))) is Verdict.INCONCLUSIVE


def test_two_blocks_and_none_are_inconclusive_without_numbers() -> None:
    for count in (0, 2):
        found = verdict.decide(evidence(2.0, count=count), POLICY)
        assert (found.verdict, found.ratio) == (Verdict.INCONCLUSIVE, None)


def test_failure_missing_and_new_come_before_numbers() -> None:
    case = evidence(1.0)
    for reason in Reason:
        for sides in ({"base": Side(failure=reason)}, {"head": Side(failure=reason)}):
            found = verdict.decide(replace(case, **sides), POLICY)
            assert (found.verdict, found.reason, found.ratio) == (Verdict.FAILED, reason, None)
    assert decide(replace(case, head=Side(present=False))) is Verdict.MISSING
    assert decide(replace(case, base=Side(present=False))) is Verdict.NEW
    same = replace(case, same_code=True, head=Side(failure=Reason.CRASH))
    assert decide(same) is Verdict.FAILED


def test_same_code_needs_no_measurement_and_is_not_judged_by_one() -> None:
    unmeasured = verdict.decide(Evidence("case", "cuda", same_code=True), POLICY)
    assert unmeasured == CaseVerdict("case", Verdict.UNCHANGED, same_code=True)
    measured = verdict.decide(replace(evidence(1.05), same_code=True), POLICY)
    assert (measured.verdict, measured.same_code) == (Verdict.UNCHANGED, True)
    assert measured.ratio == pytest.approx(1.05, rel=1e-3)


def test_too_many_discarded_samples_are_an_invalid_measurement() -> None:
    assert decide(evidence(1.0, discarded=8)) is Verdict.UNCHANGED  # half of them
    found = verdict.decide(evidence(1.0, discarded=9), POLICY)
    assert (found.verdict, found.reason) == (Verdict.FAILED, Reason.INVALID_MEASUREMENT)
    empty = Block(Burst([]), Burst([]), "AB")
    assert verdict.decide(Evidence("case", "cuda", (empty,) * 8), POLICY).reason is Reason.INVALID_MEASUREMENT


@pytest.mark.parametrize(
    ("ratio", "clock", "expected"),
    [
        (1.02, 1.0, "regressed"),
        (1.02, 0.98, "inconclusive"),  # the same cycles, only the clock fell
        (1.0, 0.98, "inconclusive"),  # fewer cycles, but nobody is faster
        (1.03, 0.996, "regressed"),  # most of it is cycles
        (1 / 1.03, 1.004, "improved"),
        (1.0, 1.004, "unchanged"),
    ],
)
def test_where_clocks_are_apart_both_spaces_must_agree(ratio: float, clock: float, expected: str) -> None:
    case = evidence(ratio, clock=clock)
    found = verdict.assess(case, POLICY)
    assert found.verdict.verdict.value == expected
    assert (found.doubt is None) == (clock == 1)


def test_under_the_power_cap_cycles_decide() -> None:
    slow = {"seconds": 0.04, "capped": True}
    found = verdict.assess(evidence(1.03, **slow), POLICY)
    assert (found.verdict.verdict, found.space) == (Verdict.REGRESSED, "cycles")
    assert found.doubt is verdict.Doubt.POWER_CAP
    assert decide(evidence(1.0, **slow)) is Verdict.UNCHANGED
    assert decide(evidence(1.03, cycles=False, **slow)) is Verdict.INCONCLUSIVE
    assert decide(evidence(1.03, capped=None, cycles=False)) is Verdict.REGRESSED  # nothing is known against seconds


def test_one_capped_burst_of_many_is_no_doubt() -> None:
    case = evidence(1.0)
    first = replace(case.blocks[0], base=replace(case.blocks[0].base, power_capped=True))
    assert verdict.assess(replace(case, blocks=(first, *case.blocks[1:])), POLICY).doubt is None


def test_a_grid_asks_for_more_than_a_case() -> None:
    """A change that counts on its own is not enough among five hundred cases of which no other moved."""
    wide = [
        replace(b, head=Burst([b.head.seconds[0] * (1 + 0.006 * (i % 4 - 1.5))])) for i, b in enumerate(blocks(1.021))
    ]
    alone = Evidence("alone", "cuda", tuple(wide))
    assert decide(alone) is Verdict.REGRESSED
    grid = [alone, *(evidence(1.0, name=f"case-{i}") for i in range(500))]
    assert verdict.judge(grid, POLICY)[0].verdict is Verdict.INCONCLUSIVE
    assert (
        verdict.judge([alone, *(evidence(1.05, name=f"case-{i}") for i in range(500))], POLICY)[0].verdict
        == "regressed"
    )


def test_when_to_stop() -> None:
    def step(case: Evidence, seconds: float = 1.0) -> Step:
        return verdict.next_step(case, POLICY, seconds, cases=12)

    assert step(evidence(1.1, count=7)) is Step.GO_ON  # looks cost
    assert step(evidence(1.1, count=8)) is Step.DECIDED
    assert step(evidence(1.0, count=8)) is Step.DECIDED
    assert step(evidence(1.0045, count=8)) is Step.GO_ON
    assert step(evidence(1.0045, count=9)) is Step.GO_ON
    assert step(evidence(1.0045, count=24)) is Step.BUDGET_ENDED
    assert step(evidence(1.0045, count=9), seconds=5.0) is Step.BUDGET_ENDED
    assert step(evidence(1.1, count=9), seconds=5.0) is Step.DECIDED
    assert step(Evidence("case", "cuda")) is Step.GO_ON
    assert step(Evidence("case", "cuda", same_code=True)) is Step.DECIDED
    assert step(Evidence("case", "cuda", head=Side(failure=Reason.CRASH))) is Step.DECIDED
    assert step(Evidence("case", "cuda"), seconds=100.0) is Step.BUDGET_ENDED
    assert step(evidence(1.0, count=8, discarded=20)) is Step.DECIDED


@pytest.mark.parametrize(
    ("verdicts", "expected", "code"),
    [
        ("unchanged", "unchanged", 0),
        ("unchanged new", "new", 0),
        ("unchanged new improved", "improved", 0),
        ("improved inconclusive", "inconclusive", 2),
        ("inconclusive missing", "missing", 1),
        ("missing regressed improved", "regressed", 1),
        ("regressed failed", "failed", 1),
        ("", "inconclusive", 2),
    ],
)
def test_the_run_is_called_by_its_worst_case(verdicts: str, expected: str, code: int) -> None:
    cases = [CaseVerdict(name, Verdict(name)) for name in verdicts.split()]
    assert verdict.overall(cases).value == expected
    assert verdict.exit_code(verdict.overall(cases)) == code
