"""Controls of a sweep: measured around each group, and where they moved, the report says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from instrument.fakes import FakeClock

from asv_bench import __main__ as command
from asv_bench import cases, controls, errors, record, report, sampling, sentences, sweep, telemetry
from asv_bench.findings import Drift, Ratio, Sweep, drifts
from asv_bench.record import Record

FIRST, OTHER = cases.cases_of("tiny")[1], cases.cases_of("tiny")[3]  # of two groups
LAUNCHES = 2 + 3 * sampling.SAMPLES_MIN  # of a control at a time: two to warm up, then bursts of one dropped and two


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(sampling, "for_device", lambda device: (sampling.CPU_PROTOCOL, fake))
    monkeypatch.setattr(telemetry, "ceiling", lambda device: None)
    monkeypatch.setenv("FLASH_DSA_COMMIT", "a" * 40)
    return fake


Plant = Callable[..., None]


@pytest.fixture
def plant(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Lets a control take these seconds at each of its times; the last for ever."""
    monkeypatch.setattr(controls, "_MAKERS", {})

    def planted(name: str, *seconds: float) -> None:
        launch = clock.kernel(name, *(second for second in seconds for _ in range(LAUNCHES)))
        controls._MAKERS[name] = lambda device, work: launch

    yield planted


def swept(folder: Path) -> list[Record]:
    chosen = sweep.Options((FIRST, OTHER), ("naive",), torch.device("cpu"), "test", folder)
    sweep.execute(sweep.start(chosen), show_progress=False)
    return record.load(folder)


def around(found: Record, name: str) -> list[float]:
    noted = found["telemetry"]["controls"]
    return [noted[moment][name]["seconds_median"] for moment in ("before", "after")]


def test_groups_have_the_controls_before_and_after_them(tmp_path: Path, clock: FakeClock, plant: Plant) -> None:
    plant("copy", 0.001, 0.002, 0.003)
    plant("gemm", 0.004)
    first, other = swept(tmp_path)
    assert around(first, "copy") == pytest.approx([0.001, 0.002]) and around(first, "gemm") == pytest.approx(
        [0.004] * 2
    )
    assert around(other, "copy") == pytest.approx([0.002, 0.003])
    noted = first["telemetry"]["controls"]["before"]["copy"]
    assert noted == {
        "seconds_median": pytest.approx(0.001),
        "seconds_low": pytest.approx(0.001),
        "seconds_high": pytest.approx(0.001),
        "cycles_median": pytest.approx(0.001 * 1.8e9),
        "error": None,
    }
    assert clock.log.count("copy") == clock.log.count("gemm") == 3 * LAUNCHES


def test_what_is_done_needs_no_controls(tmp_path: Path, clock: FakeClock, plant: Plant) -> None:
    plant("copy", 0.001)
    found = swept(tmp_path)
    measured = clock.log.count("copy")
    assert swept(tmp_path) == found and clock.log.count("copy") == measured


def test_a_control_that_fails_is_missing_with_its_reason(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*arguments: Any, **options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room for the matrices")

    monkeypatch.setitem(controls.WORK, "cpu", controls.Work(1 << 10, 16))
    monkeypatch.setattr(torch, "randn", no_room)
    found = swept(tmp_path)
    assert len(found) == 2
    for one in found:
        for moment in ("before", "after"):
            gemm = one["telemetry"]["controls"][moment]["gemm"]
            assert gemm["error"] == "out_of_memory: OutOfMemoryError: no room for the matrices"
            assert gemm["seconds_median"] is gemm["seconds_low"] is gemm["cycles_median"] is None
    said = sentences.sentences(Sweep("test", found))
    assert ("machine", "As a control the GEMM has no time before or after some groups: out of memory.") in said


def test_a_device_lost_between_groups_is_nobodys_fault(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant("copy", 0.001)
    real, times = sweep._controls, iter(range(100))

    def lost(run: sweep.Run) -> Any:
        if next(times) == 1:
            raise errors.DeviceLost("copy", "RuntimeError: fell off the bus")
        return real(run)

    monkeypatch.setattr(sweep, "_controls", lost)
    with pytest.raises(sweep.Restart, match="when the control copy ran: RuntimeError: fell off the bus"):
        swept(tmp_path)
    (saved,) = record.load(tmp_path)
    assert saved["telemetry"]["controls"]["after"] is None and "device_lost" not in saved["error"]
    assert swept(tmp_path)[0] == saved  # a new process goes on with the other group


def test_a_device_lost_before_anything_was_measured_ends_the_sweep(
    tmp_path: Path, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever came first would be blamed for it, and a new process might lose it again, without end."""
    clock.lost = True
    words = ["--device", "cpu", "--machine", "test", "--cases", FIRST.id, "--implementations", "naive"]
    assert command.main(["sweep", *words, "--output", str(tmp_path)]) == command.FAILED
    assert "the device was lost before anything was measured" in capsys.readouterr().err
    assert not (tmp_path / "sweep.json").exists()


def test_the_brief_protocol_still_makes_an_interval() -> None:
    for protocol in (sampling.CPU_PROTOCOL, sampling.CUDA_PROTOCOL):
        brief = controls.brief(protocol)
        for seconds in (1e-4, 1e-3, 3e-3):
            plan = sampling.plan(brief, seconds)
            assert plan.bursts == sampling.SAMPLES_MIN
            assert plan.bursts * (plan.launches + plan.dropped) * seconds < 0.25


def test_drift_is_of_the_slowest_over_the_fastest_time_of_a_run(tmp_path: Path, plant: Plant) -> None:
    plant("copy", 0.001, 0.00102, 0.001)
    plant("gemm", 0.004, 0.00405, 0.0042)
    found = Sweep("test", swept(tmp_path))
    moved = drifts(found.records)
    assert moved["copy"].seconds.value == pytest.approx(1.02) and moved["gemm"].seconds.value == pytest.approx(1.05)
    assert moved["gemm"].cycles == pytest.approx(1.05)
    begun = found.records[0]["timestamp"][:16].replace("T", " ")
    expected = (
        f"Over the run of {begun} the machine moved: the copy and the GEMM took 2.00 % and 5.00 % more at the slowest "
        "than at the fastest (in SM cycles 2.00 % and 5.00 %); numbers of different groups differ by up to that much "
        "for its sake alone."
    )
    assert ("machine", expected) in sentences.sentences(found)
    assert f"machine: {expected}" in report.console(found)
    assert expected in report.BLOCKS["findings"](report.Machine("test", found))
    page = str(report.render(found, draw=False)["report.html"])
    assert expected in page
    assert "Measured before and after each group of a run, the copy and the GEMM took 2.00 % and 5.00 % more" in page


def test_a_machine_that_stays_as_it_is_is_said_in_the_page_alone(
    tmp_path: Path, clock: FakeClock, plant: Plant
) -> None:
    clock.clock_hertz = [None]
    plant("copy", 0.001, 0.001004)
    plant("gemm", 0.004)
    found = Sweep("test", swept(tmp_path))
    assert drifts(found.records)["copy"].cycles is None
    assert all(topic != "machine" for topic, _ in sentences.sentences(found))
    assert sentences.steadiness(found) == (
        "Measured before and after each group of a run, the copy and the GEMM took 0.400 % and 0 % more at the "
        "slowest than at the fastest."
    )


def test_runs_are_not_compared_and_old_records_say_nothing(tmp_path: Path, plant: Plant) -> None:
    plant("copy", 0.001)
    found = swept(tmp_path)
    slower = {"seconds_median": 2.0, "seconds_low": 2.0, "seconds_high": 2.0, "cycles_median": None, "error": None}
    noted = found[1]["telemetry"]
    noted |= {"run": "another", "controls": {"before": {"copy": slower}, "after": None}}
    assert all(topic != "machine" for topic, _ in sentences.sentences(Sweep("test", found)))
    for one in found:
        del one["telemetry"]["controls"]
    assert drifts(found) == {} and sentences.steadiness(Sweep("test", found)) == ""


@pytest.mark.parametrize(
    "seconds, matters",
    [
        (Ratio(1.05, 1.02, 1.08), True),
        (Ratio(1.05, 0.99, 1.11), False),  # its own intervals touch
        (Ratio(1.004, 1.003, 1.005), False),  # told apart, and too little to matter
    ],
)
def test_drift_matters_beyond_its_intervals_and_one_per_cent(seconds: Ratio, matters: bool) -> None:
    assert Drift(seconds, None).matters is matters
