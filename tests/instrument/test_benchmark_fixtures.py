"""What a side of a comparison does when it cannot go on; its turns are tested with the judge's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import conftest as side

from asv_bench import cases, errors, sampling


def test_both_sides_tensors_fit_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=8 * 10**9))
    for case in cases.cases_of("pull-request-cuda"):
        side.leave_room_for_both(case)
    with pytest.raises(errors.InvalidMeasurement, match=r"both sides take 1[56]\.\d GB, this card has 8\.0 GB"):
        side.leave_room_for_both(cases.dense_case(4096, 24576, 128, 128, 576, 512))


class Judge:
    """Hears what a side says."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def say(self, event: str, **content: Any) -> None:
        self.said.append({"event": event, **content})


@pytest.mark.parametrize(
    "error, reason, absent",
    [
        (errors.WrongAnswer("nan"), "wrong_answer", False),
        (errors.InvalidMeasurement("too large"), "invalid_measurement", False),
        (errors.NotInThisVersion("no such call"), "crash", True),
        (RuntimeError("misaligned address"), "crash", False),
    ],
)
def test_the_judge_is_told_why(error: Exception, reason: str, absent: bool) -> None:
    judge = Judge()
    live = side.Live(judge, SimpleNamespace())  # type: ignore[arg-type]
    live._give_up(cases.cases_of("tiny")[0], error)
    (said,) = judge.said
    assert (said["event"], said["reason"], said["absent"]) == ("failed", reason, absent)
    assert str(error) in said["detail"]


def test_a_lost_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next case would fail for it too; the judge starts another process for what is left."""

    class Lost:
        def wait(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(sampling, "for_turns", lambda _: (None, Lost()))
    judge = Judge()
    live = side.Live(judge, SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(pytest.exit.Exception, match="took the device down: RuntimeError: an illegal memory access"):
        live._give_up(cases.cases_of("tiny")[0], RuntimeError("an illegal memory access was encountered"))
    assert judge.said == []
