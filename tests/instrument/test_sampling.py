"""Sampling with a clock that does not tick: what is launched, what is kept, what is said about the rest."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from instrument.fakes import FakeClock

from asv_bench import clocks, errors, sampling
from asv_bench.sampling import CPU_PROTOCOL, CUDA_PROTOCOL, Plan, measure, median_interval, plan
from asv_bench.telemetry import Conditions

SHORT = dataclasses.replace(CUDA_PROTOCOL, bursts=3, launches_min=2, launches_max=2, dropped_min=1, dropped_max=1)


def test_a_protocol_that_changes_gets_another_version() -> None:
    """Whoever changes a number here changes the version too, or old and new samples meet in one series."""
    assert dataclasses.astuple(CUDA_PROTOCOL) == (*("cuda-burst", 2, 0.030, 3, 14, 1, 2, 0.030, 12, 0.030, True, 2.5),)
    assert dataclasses.astuple(CPU_PROTOCOL) == (*("cpu-rounds", 1, 0.100, 1, 2, 0, 1, 0.100, 10, 0.0, False, 1.0),)
    assert CUDA_PROTOCOL.label == "cuda-burst-v2" and sampling.for_device("cpu")[0] is CPU_PROTOCOL


def test_implementations_take_turns_burst_by_burst() -> None:
    clock = FakeClock()
    measure({"a": clock.kernel("a", 1e-3), "b": clock.kernel("b", 1e-3)}, SHORT, clock)
    burst = {name: ["rest", *(["flush", name] * 3), "wait"] for name in "ab"}
    warm_up = ["a", "wait", "a", "wait", "b", "wait", "b", "wait"]
    turns = [*burst["a"], *burst["b"], *burst["b"], *burst["a"], *burst["a"], *burst["b"]]
    assert clock.log == warm_up + turns
    assert clock.rested == pytest.approx(6 * 0.030)


def test_no_flush_where_the_protocol_has_none() -> None:
    clock = FakeClock()
    measure({"a": clock.kernel("a", 1e-3)}, CPU_PROTOCOL, clock)
    assert "flush" not in clock.log


def test_dropped_launches_are_not_counted() -> None:
    clock = FakeClock()
    warm_up, burst = [9.0, 0.001], [7.0, 0.002, 0.004]  # the first of a burst is slow and dropped
    found = measure({"a": clock.kernel("a", *warm_up, *burst * 3, 1.0)}, SHORT, clock)["a"]
    assert found.bursts == [[pytest.approx(0.002), pytest.approx(0.004)]] * 3
    assert found.discarded == {} and found.plan == Plan(3, 2, 1)


def test_the_slow_first_call_does_not_shorten_the_protocol() -> None:
    clock = FakeClock()
    found = measure({"a": clock.kernel("a", 30.0, 0.001)}, CUDA_PROTOCOL, clock)["a"]
    assert len(found.seconds) == 12 * 14


def test_the_last_output_is_kept_and_handed_over_before_each_burst() -> None:
    clock, seen = FakeClock(), []
    found = measure({"a": clock.kernel("a", 1e-3)}, SHORT, clock, before={"a": seen.append})["a"]
    assert found.output == "output of a" and seen == [None] + ["output of a"] * 3


def test_work_is_queued_ahead_in_proportion_to_the_hosts_time() -> None:
    clock = FakeClock()
    measure({"a": clock.kernel("a", 1e-4)}, SHORT, clock)  # the fake's host is as slow as its device
    assert clock.stalled == [pytest.approx(1.5 * 3 * (1e-4 + 80e-6))] * 3
    clock = FakeClock()
    measure({"a": clock.kernel("a", 0.01)}, SHORT, clock)
    assert max(clock.stalled) == 0.020


@pytest.mark.parametrize(
    "seconds, expected",
    [
        (60e-6, Plan(12, 14, 2)),
        (1.8e-3, Plan(12, 14, 2)),
        (4e-3, Plan(12, 5, 2)),  # 30 ms hold 7 launches
        (9e-3, Plan(12, 3, 2)),
        (20e-3, Plan(12, 3, 1)),  # settled within one launch
        (40e-3, Plan(12, 3, 1)),
        (100e-3, Plan(6, 3, 1)),  # what the budget holds
        (1.6, Plan(2, 3, 1)),  # never fewer than 6 samples
    ],
)
def test_slow_kernels_get_shorter_and_fewer_bursts(seconds: float, expected: Plan) -> None:
    assert plan(CUDA_PROTOCOL, seconds) == expected


def test_plans_keep_their_promises() -> None:
    for protocol in (CUDA_PROTOCOL, CPU_PROTOCOL):
        for exponent in range(-60, 20):
            seconds = 10 ** (exponent / 10)
            made = plan(protocol, seconds)
            assert made.bursts * made.launches >= sampling.SAMPLES_MIN
            assert made.bursts <= protocol.bursts
            assert protocol.launches_min <= made.launches <= protocol.launches_max
            assert protocol.dropped_min <= made.dropped <= protocol.dropped_max
            burst = seconds * (made.launches + made.dropped)
            assert burst <= protocol.burst_seconds * 1.0001 or made.launches == protocol.launches_min
            fewest = math.ceil(sampling.SAMPLES_MIN / made.launches) * burst
            assert burst * made.bursts <= max(protocol.budget_seconds, fewest) * 1.0001


def failing(clock: FakeClock, after: int, error: Exception) -> Callable[[], str]:
    calls = iter(range(10**9))

    def launch() -> str:
        clock.now += 1e-3
        if next(calls) >= after:
            raise error
        return "output"

    return launch


@pytest.mark.parametrize("after", [0, 1, 4])
def test_one_that_fails_leaves_the_others_alone(after: int) -> None:
    clock, error = FakeClock(), RuntimeError("no")
    found = measure({"bad": failing(clock, after, error), "good": clock.kernel("good", 1e-3)}, SHORT, clock)
    assert found["bad"].error is error and found["bad"].output is None
    assert error.__traceback__ is None  # which would hold the failed call's memory
    assert found["good"].error is None and len(found["good"].seconds) == 6


def test_a_lost_device_names_who_lost_it() -> None:
    clock = FakeClock()

    def launch() -> None:
        clock.lost = True
        raise RuntimeError("illegal memory access")

    with pytest.raises(errors.DeviceLost, match="RuntimeError: illegal memory access") as lost:
        measure({"good": clock.kernel("good", 1e-3), "bad": launch}, SHORT, clock)
    assert lost.value.name == "bad"


def test_interrupting_is_no_failure_of_the_implementation() -> None:
    def launch() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"a": launch}, SHORT, FakeClock())


def states(*found: Conditions) -> Callable[[], Conditions]:
    left = list(found)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_slowed_bursts_are_discarded_and_counted() -> None:
    clock = FakeClock()
    hot, fine = Conditions(slowdown="thermal_slowdown", power_capped=False), Conditions(power_capped=False)
    found = measure({"a": clock.kernel("a", 1e-3)}, SHORT, clock, conditions=states(fine, hot, fine))["a"]
    assert [len(burst) for burst in found.bursts] == [2, 0, 2]
    assert found.discarded == {"thermal_slowdown": 2} and found.power_capped is False


def test_capped_samples_are_kept_and_marked() -> None:
    clock = FakeClock()
    capped = Conditions(power_capped=True, sm_clock_mhz=1500.0, power_w=699.0, reasons=("sw_power_cap",))
    fine = Conditions(power_capped=False, sm_clock_mhz=1725.0, power_w=500.0)
    found = measure({"a": clock.kernel("a", 1e-3)}, SHORT, clock, conditions=states(fine, capped, fine))["a"]
    assert found.power_capped is True and len(found.seconds) == 6
    assert found.telemetry["sm_clock_mhz"] == {"min": 1500.0, "median": 1725.0, "max": 1725.0}
    assert found.telemetry["power_w_max"] == 699.0 and found.telemetry["clock_reasons"] == ["sw_power_cap"]


def test_without_telemetry_the_cap_is_unknown() -> None:
    clock = FakeClock()
    assert measure({"a": clock.kernel("a", 1e-3)}, SHORT, clock)["a"].power_capped is None
    found = measure({"a": clock.kernel("a", 1e-3)}, SHORT, clock, conditions=Conditions)["a"]
    assert found.power_capped is None and found.telemetry == {}


def test_when_every_sample_is_discarded_there_is_no_number() -> None:
    clock = FakeClock()
    hot = Conditions(slowdown="hardware_slowdown")
    found = measure({"a": clock.kernel("a", 1e-3)}, SHORT, clock, conditions=lambda: hot)["a"]
    assert isinstance(found.error, errors.InvalidMeasurement)
    assert str(found.error) == "of 6 samples too many were discarded: 6 hardware_slowdown"


def test_times_that_are_none_are_discarded() -> None:
    clock = FakeClock()
    warm_up = [1e-3, 1e-3]
    bad = [1e-3, 0.0, math.nan]
    found = measure({"a": clock.kernel("a", *warm_up, *bad)}, dataclasses.replace(SHORT, bursts=1), clock)["a"]
    assert found.discarded == {"not_positive": 6} and found.error is not None


def test_starved_samples_are_discarded_while_enough_others_remain() -> None:
    clock = FakeClock()
    protocol = dataclasses.replace(SHORT, bursts=5)
    waits = iter([False] * 2 + [False] * 9 + [True] * 3 + [False] * 3)

    def launch() -> None:
        clock.now += 1e-3
        clock.starved = next(waits)

    found = measure({"a": launch}, protocol, clock)["a"]
    assert [len(burst) for burst in found.bursts] == [2, 2, 2, 0, 2]
    assert found.discarded == {"starved": 2} and "host_bound" not in found.telemetry


def test_an_implementation_that_always_waits_for_its_host_is_timed_and_marked() -> None:
    clock = FakeClock()
    clock.starved = True
    found = measure({"a": clock.kernel("a", 1e-3)}, SHORT, clock)["a"]
    assert len(found.seconds) == 6 and found.discarded == {} and found.telemetry == {"host_bound": True}


def measured_at(*hertz: float | None, seconds: Any = 1e-3, **changes: Any) -> sampling.Samples:
    """Four bursts of two launches with these clocks; `seconds` of each may be a list."""
    clock = FakeClock()
    clock.clock_hertz = list(hertz)  # asked for kept launches alone
    times = seconds if isinstance(seconds, list) else [seconds] * 8
    launches = [time for pair in zip(times[::2], times[1::2], strict=True) for time in (1e-3, *pair)]
    protocol = dataclasses.replace(SHORT, bursts=4)
    return measure({"a": clock.kernel("a", 1e-3, 1e-3, *launches)}, protocol, clock, **changes)["a"]


def test_cycles_stand_beside_seconds() -> None:
    found = measured_at(1.8e9, 1.8e9, 1.8e9, 1.9e9, *[1.8e9] * 4)
    assert found.cycles[1] == pytest.approx([1.8e6, 1.9e6]) and found.cycles_median == pytest.approx(1.8e6)
    assert measured_at(*[None] * 8).cycles_median is None and measured_at(*[None] * 8).error is None


def test_launches_while_the_clock_comes_up_are_discarded() -> None:
    ramp = [1.2e9, 1.8e9, 1.55e9, 1.8e9, *[1.8e9] * 4]
    found = measured_at(*ramp)
    assert found.discarded == {"clock_ramp": 2} and [len(burst) for burst in found.bursts] == [1, 1, 2, 2]
    capped = measured_at(*ramp, conditions=lambda: Conditions(power_capped=True))
    assert capped.discarded == {} and capped.power_capped is True  # the cap lowers clocks: kept, marked


def test_launches_that_did_something_else_meanwhile_are_discarded() -> None:
    found = measured_at(*[1.8e9] * 8, seconds=[1e-3, 1e-3, 1.6e-3, 1e-3, 1.4e-3, 1e-3, 1e-3, 1e-3])
    assert found.discarded == {"preempted": 1} and found.interval.high == pytest.approx(1.4e-3)


def test_too_many_discarded_samples_are_no_measurement() -> None:
    slow = Conditions(slowdown="thermal_slowdown")
    found = measured_at(*[1.8e9] * 8, conditions=states(slow, slow, slow, Conditions()))
    assert str(found.error) == "of 8 samples too many were discarded: 6 thermal_slowdown"
    assert isinstance(found.error, errors.InvalidMeasurement)


def test_discard_reasons_are_a_closed_set() -> None:
    samples = sampling.Samples([[sampling.Launch(1.0, None, reason) for reason in sampling.DISCARD_REASONS]])
    assert tuple(samples.discarded) == sampling.DISCARD_REASONS and samples.seconds == []


def test_the_burst_is_the_unit_of_the_interval() -> None:
    """Launches of one burst share its clock: a hundred of them know no more than one."""
    bursts = [[1.0 + number / 100] * 50 for number in range(12)]
    found = sampling.interval_of(bursts)
    assert found == median_interval([1.0 + number / 100 for number in range(12)])
    assert found.high - found.low > 0.04 > median_interval([x for burst in bursts for x in burst]).high - found.median
    assert sampling.units([[1.0, 2.0], [], [3.0]]) == [1.0, 2.0, 3.0]  # too few bursts


def test_interval_by_enumeration() -> None:
    """For each n: the narrowest pair of order statistics whose binomial coverage reaches 95 %."""
    for n in range(6, 90):
        found = median_interval([float(i) for i in range(n)])
        low, high = int(found.low), int(found.high)
        assert low + high == n - 1 and found.median == (n - 1) / 2

        def missed(rank: int, n: int = n) -> float:
            return 2 * sum(math.comb(n, k) for k in range(rank + 1)) / 2**n

        assert missed(low) <= 0.05
        assert low + 1 > (n - 1) // 2 or missed(low + 1) > 0.05


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    """Skewed times, as real ones are: 95 % holds whatever the distribution."""
    generator = random.Random(1)
    covered = dict.fromkeys((6, 20, 80), 0)
    rounds = 2000
    for n in covered:
        for _ in range(rounds):
            found = median_interval([generator.lognormvariate(0.0, 1.0) for _ in range(n)])
            covered[n] += found.low <= 1.0 <= found.high
    assert all(0.945 <= count / rounds <= 0.985 for count in covered.values()), covered


def test_interval_of_few_and_of_many() -> None:
    assert median_interval([3.0]) == sampling.Interval(3.0, 3.0, 3.0)
    assert median_interval([3.0, 1.0, 2.0]) == sampling.Interval(2.0, 1.0, 3.0)
    many = median_interval([float(i) for i in range(3000)])
    assert 1440 < many.low < many.median < many.high < 1560
    with pytest.raises(ValueError, match="at least one"):
        median_interval([])


class FakeEvent:
    """A CUDA event: milliseconds as float32, like cudaEventElapsedTime."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds
        self.synchronized = False

    def synchronize(self) -> None:
        self.synchronized = True

    def elapsed_time(self, end: FakeEvent) -> float:
        import struct

        return float(struct.unpack("f", struct.pack("f", end.milliseconds - self.milliseconds))[0])


def test_cuda_readings_keep_their_resolution_long_after_the_start() -> None:
    base = 3_600_000.0  # an hour: float32 milliseconds from there resolve 250 us
    start, end = clocks.CudaReading(FakeEvent(base)), clocks.CudaReading(FakeEvent(base + 0.0625))
    assert end - start == pytest.approx(62.5e-6, rel=1e-6)
    assert end.event.synchronized


def test_cpu_clock_reads_forward_and_fits_a_timer() -> None:
    import timeit

    clock = clocks.CpuClock()
    assert clock.read() - clock.read() < 0 < -(clock.read() - clock.read())
    timer: Any = clock.read
    assert timeit.Timer("pass", timer=timer).timeit(10) >= 0
