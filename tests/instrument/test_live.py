"""A live case: bursts for as long as somebody asks, and no number without a right answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from asv_bench import cases, clocks, errors, implementations, sampling
from asv_bench.implementations import BoundCall, Implementation
from asv_bench.live import LiveCase
from asv_bench.sampling import Launch

SPARSE = cases.cases_of("tiny")[0].problem
QUICK = dataclasses.replace(sampling.CPU_TURNS, rest_seconds=0.0)


def live() -> LiveCase:
    case = LiveCase(SPARSE, "cpu", QUICK, clocks.CpuClock())
    assert case.warm_up() > 0
    return case


def be(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
    """Lets `flash_dsa` be another function of its arguments."""

    class Other(Implementation):
        name = "flash_dsa"

        def bind(self, problem: Any, inputs: Any) -> BoundCall:
            return BoundCall(lambda: kernel(**inputs.arguments), "other")

    monkeypatch.setattr(implementations, "get", lambda name: Other())


def test_bursts_follow_the_common_plan_and_the_answer_is_right() -> None:
    case = live()
    case.adapt(1e-4)
    bursts = [case.burst() for _ in range(3)]
    assert all(len(burst["seconds"]) == QUICK.launches_max and min(burst["seconds"]) > 0 for burst in bursts)
    assert all(burst["cycles"] is None and burst["discarded"] == {} for burst in bursts)
    assert case.error() is None and case.backend == "cpu"


def test_controls_of_the_moment() -> None:
    found = live().controls()
    assert all(one["seconds_low"] <= one["seconds_median"] <= one["seconds_high"] for one in found.values())
    assert set(found) == {"copy", "gemm"}


@pytest.mark.parametrize("name, reason", [("remembers_a_copy", "differ|cosine"), ("one_row_wrong", "differ")])
def test_a_wrong_answer_is_said(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    from instrument import planted

    be(monkeypatch, getattr(planted, name))
    case = live()
    case.burst()
    assert re.search(reason, str(case.error()))


def test_an_answer_is_checked_also_where_nothing_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from instrument import planted

    assert LiveCase(SPARSE, "cpu", QUICK, clocks.CpuClock()).error() is None
    be(monkeypatch, planted.one_row_wrong)
    assert LiveCase(SPARSE, "cpu", QUICK, clocks.CpuClock()).error() is not None


def test_a_changed_input_is_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from instrument import planted

    be(monkeypatch, planted.zeroes_its_input)
    with pytest.raises(errors.WrongAnswer, match="changed its input kv"):
        live()


@pytest.mark.parametrize(
    "reasons, kept, discarded",
    [
        ((None, None, "starved"), 2, {"starved": 1}),
        (("starved", "starved", "starved"), 3, {}),
        (("thermal_slowdown", "starved", None), 1, {"thermal_slowdown": 1, "starved": 1}),
    ],
)
def test_starved_launches_count_only_where_there_is_nothing_else(
    reasons: tuple[Any, ...], kept: int, discarded: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = live()
    take(case, monkeypatch, [Launch(1e-3, 1.8e9, reason) for reason in reasons])
    burst = case.burst()
    assert len(burst["seconds"]) == len(burst["cycles"]) == kept and burst["discarded"] == discarded


def test_a_burst_that_waited_for_its_host_is_disturbed_where_others_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    case = live()
    take(case, monkeypatch, [Launch(1e-3, 1.8e9)] * 3, [Launch(3e-3, 1.8e9, "starved")] * 3)
    case.burst()
    burst = case.burst()
    assert burst["seconds"] == [] and burst["cycles"] is None and burst["discarded"] == {"starved": 3}


def take(case: LiveCase, monkeypatch: pytest.MonkeyPatch, *bursts: list[Launch]) -> None:
    """Lets the next bursts of a case be these."""
    coming = iter(bursts)
    monkeypatch.setattr(case._subject, "burst", lambda: case._subject.samples.taken.append(next(coming)))


def test_preempted_launches_and_clock_ramps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the side took so far; a slower side is not slower than itself."""
    case = live()
    steady = [Launch(1e-3, 1.8e9)] * 8
    take(case, monkeypatch, steady, [*steady[:6], Launch(2e-3, 1.8e9), Launch(1.25e-3, 1.44e9)])
    assert len(case.burst()["seconds"]) == 8
    burst = case.burst()
    assert burst["seconds"] == [1e-3] * 6 and burst["discarded"] == {"preempted": 1, "clock_ramp": 1}
