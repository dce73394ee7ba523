"""Statistics by hand: quantiles from printed tables, drift that cancels, shares that add up."""

from __future__ import annotations

import math

import pytest

from ci import stats
from ci.stats import Block, Burst, Order


def blocks_of(logs: list[float], drift: float = 0.0, cycles: bool = False) -> list[Block]:
    """ABBA blocks with these log ratios, on a machine whose times grow by `drift` per burst."""
    made = []
    for number, log in enumerate(logs):
        first, second = (math.exp(drift * (2 * number + i)) for i in (0, 1))
        order: Order = "AB" if number % 2 == 0 else "BA"
        base, head = (first, second) if order == "AB" else (second, first)
        head *= math.exp(log)
        made.append(Block(_burst(base, cycles), _burst(head, cycles), order))
    return made


def _burst(seconds: float, cycles: bool) -> Burst:
    return Burst([seconds * 0.9, seconds, seconds * 2], [1e6, 1e6, 1e6] if cycles else None)


@pytest.mark.parametrize(
    ("alpha", "freedom", "printed"),
    [(0.05, 1, 12.706), (0.05, 2, 4.303), (0.05, 5, 2.571), (0.01, 7, 3.499), (0.05, 30, 2.042), (0.001, 4, 8.610)],
)
def test_student_quantile_as_printed(alpha: float, freedom: int, printed: float) -> None:
    """Source of the numbers: Abramowitz and Stegun, table 26.10."""
    assert stats.student_quantile(alpha, freedom) == pytest.approx(printed, abs=6e-4)
    assert stats.student_tail(stats.student_quantile(alpha, freedom), freedom) == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("alpha", "freedom", "printed"), [(0.05, 3, 7.815), (0.01, 3, 11.345), (0.001, 5, 20.515), (0.01, 10, 23.209)]
)
def test_chi2_quantile_as_printed(alpha: float, freedom: int, printed: float) -> None:
    """Source of the numbers: Abramowitz and Stegun, table 26.8."""
    assert stats.chi2_quantile(alpha, freedom) == pytest.approx(printed, rel=0.02)


def test_a_burst_is_its_median() -> None:
    burst = Burst([1.0, 5.0, 2.0], [10.0, 50.0, 20.0])
    assert (burst.median(), burst.median("cycles")) == (2.0, 20.0)
    assert Burst([]).median() is None
    assert Burst([1.0]).median("cycles") is None
    assert Burst([-1.0]).median() is None


def test_cycles_are_as_many_as_seconds() -> None:
    with pytest.raises(ValueError, match="cycles: expected 2, as many as seconds, got 1"):
        Burst([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", [4, 8, 20])
def test_linear_drift_cancels(count: int) -> None:
    """5 % per burst, far more than the 1 % between the sides."""
    found = stats.compare(blocks_of([0.01] * count, drift=0.05), 0.95)
    assert found.ratio == pytest.approx(math.exp(0.01))
    assert found.low == pytest.approx(found.ratio)
    assert found.blocks == count


def test_interval_by_hand() -> None:
    """Without trimming: orders (1, 3) and (2, 6) have means 2 and 4 and squares 2 and 8, over 2 degrees of freedom."""
    found = stats.estimate(blocks_of([0.01, 0.02, 0.03, 0.06]))
    assert found.effect == pytest.approx(0.03)
    assert found.freedom == 2
    assert found.error == pytest.approx(math.sqrt(0.0010 / 2 * (1 / 2 + 1 / 2)) / 2)
    assert found.half_width(0.05) == pytest.approx(4.3027 * found.error, rel=1e-4)


def test_two_of_ten_disturbed_blocks_do_not_reach_the_estimate() -> None:
    logs = [0.01, 0.011, 0.009, 0.0105, 0.0095] * 2
    disturbed = [*logs[:3], 1.0, *logs[4:6], 1.0, *logs[7:]]
    assert stats.compare(blocks_of(disturbed), 0.95).ratio == pytest.approx(math.exp(0.01), rel=1e-3)


def test_process_noise_is_a_floor_that_blocks_do_not_lower() -> None:
    found = stats.compare(blocks_of([0.0] * 40), 0.95, process_noise=0.01)
    assert math.log(found.high) == pytest.approx(1.96 * 0.01, rel=1e-3)
    assert found.low == pytest.approx(1 / found.high)
    assert found.mde == pytest.approx(math.expm1((1.96 + 1.645) * 0.01), rel=1e-3)


def test_p_value_is_where_the_interval_reaches_one() -> None:
    found = stats.estimate(blocks_of([0.01, 0.02, 0.03, 0.06] * 2), process_noise=0.003, share=0.25)
    assert found.half_width(found.p_value) == pytest.approx(found.effect)
    assert stats.estimate(blocks_of([0.0] * 8)).p_value == 1
    assert stats.estimate(blocks_of([0.5] * 8)).p_value < 1e-9


def test_cycles_are_compared_in_the_same_way() -> None:
    blocks = blocks_of([0.05] * 8, cycles=True)
    assert stats.compare(blocks, 0.95, space="cycles").ratio == 1
    assert stats.clock_difference(blocks) == pytest.approx(math.expm1(0.05))
    assert stats.clock_difference(blocks_of([0.05, -0.05] * 4, cycles=True)) == pytest.approx(math.expm1(0.05))
    assert stats.clock_difference(blocks_of([0.05] * 8)) is None


@pytest.mark.parametrize("blocks", [[], blocks_of([0.0, 0.0]), blocks_of([0.0] * 8)[::2]])
def test_too_few_blocks(blocks: list[Block]) -> None:
    with pytest.raises(stats.TooFewBlocks, match="expected three with a number, in both orders"):
        stats.compare(blocks, 0.95)


def test_blocks_without_a_number_are_left_out() -> None:
    empty = Block(Burst([]), Burst([1.0]), "AB")
    assert stats.compare([*blocks_of([0.1] * 4), empty], 0.95).blocks == 4


def test_shares_of_all_looks_add_up_to_one() -> None:
    looks = (8, 12, 16, 20, 24)
    assert sum(stats.look_share(look, looks) for look in looks) == pytest.approx(1)
    assert stats.look_share(8, looks) == pytest.approx(1 / 3)
    assert stats.look_share(10, looks) == pytest.approx(2 / 24)
    assert stats.look_share(5, looks) == pytest.approx(5 / 24)
    assert stats.look_share(100, looks) == stats.look_share(24, looks)


def test_benjamini_hochberg_by_hand() -> None:
    """The example of the paper's section 3.2: the four smallest of fifteen p-values count at 0.05."""
    paper = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    paper += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert stats.benjamini_hochberg(paper[::-1], 0.05) == 0.0095
    assert stats.benjamini_hochberg([0.5, 0.9], 0.05) == 0
