"""pytest-benchmark under the judge: one round is one burst of `asv_bench.sampling`, and the judge says how many.

With FLASH_DSA_BATON set this process is one side of `python -m ci pr`; FLASH_DSA_SIDE says which, and FLASH_DSA_CASES
which cases. Without it the smallest cases are measured for a few bursts, so that the path is tested and
`pytest tests/benchmarks` shows numbers.
"""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_benchmark
import torch

import flash_dsa
from asv_bench import cases, errors, record, relay, sampling, telemetry
from asv_bench.live import LiveCase

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALONE_BURSTS = 3
MEMORY_SHARE = 0.9  # of the card, for both sides' tensors; contexts, flush buffers and checks take the rest


def chosen() -> tuple[cases.Case, ...]:
    """The grid of this machine; alone, the smallest cases."""
    if not os.environ.get("FLASH_DSA_BATON"):
        return cases.cases_of("tiny")
    named = os.environ.get("FLASH_DSA_CASES")
    return cases.find(named.split(",")) if named else cases.cases_of(f"pull-request-{DEVICE}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", chosen(), ids=lambda case: case.id)


def build() -> dict[str, str]:
    """Where the library of this process comes from: the judge holds it to its side."""
    package = Path(flash_dsa.__file__).resolve().parent
    library = package / "libflash_dsa.so"
    return {"folder": str(package), "library": hashlib.sha256(library.read_bytes()).hexdigest()}


def leave_room_for_both(case: cases.Case) -> None:
    """Refuses what two processes could not hold at once: they would fail half-way, or page.

    Raises:
        InvalidMeasurement: with the sizes.
    """
    memory = torch.cuda.get_device_properties(0).total_memory if DEVICE == "cuda" else None
    both = 2 * case.problem.bytes
    if memory is not None and both > MEMORY_SHARE * memory:
        raise errors.InvalidMeasurement(
            f"inputs and outputs of both sides take {both / 1e9:.1f} GB, this card has {memory / 1e9:.1f} GB"
        )


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest) -> Iterator[relay.Relay | None]:
    """The connection to the judge, introduced; None when this process is alone."""
    connection = relay.relay()
    if connection is None:
        yield None
        return
    session = request.config._benchmarksession
    facts = telemetry.machine_facts(DEVICE)
    connection.say(
        "hello",
        side=os.environ["FLASH_DSA_SIDE"],
        build=build(),
        commit=record.built_commit() or "unknown",
        device=DEVICE,
        protocol=sampling.for_turns(DEVICE)[0].label,
        environment={name: value for name, value in facts.items() if isinstance(value, (str, int, float))},
        machine_info=session.get_machine_info(),
        version=pytest_benchmark.__version__,
        cases={case.id: {**case.problem.fields} for case in chosen()},
    )
    yield connection
    connection.say("bye")
    connection.close()


@pytest.fixture
def live(judge: relay.Relay | None, benchmark: Any) -> Iterator[Live]:
    """Measures a case for as long as the judge asks for bursts."""
    yield Live(judge, benchmark)


class Live:
    """A case under the judge, recorded as a benchmark.

    Args:
        judge: the connection, or None. benchmark: pytest-benchmark's fixture, whose rounds stay open.
    """

    def __init__(self, judge: relay.Relay | None, benchmark: Any) -> None:
        self._judge = judge
        self._benchmark = benchmark
        self._bursts: list[dict[str, Any]] = []

    def measure(self, case: cases.Case) -> None:
        """Takes bursts until the judge has enough; fails when the answer was wrong."""
        protocol, clock = sampling.for_turns(DEVICE)
        self._benchmark._mode = "bursts"  # its own modes fix the number of rounds
        self._benchmark._timer = clock.read
        stats = self._benchmark._make_stats(iterations=1)
        try:
            leave_room_for_both(case)
            found = LiveCase(case.problem, DEVICE, protocol, clock)
        except Exception as error:
            self._give_up(case, error)
            raise
        self._benchmark.extra_info |= {
            "case": case.id,
            "problem": {**case.problem.fields},
            "device": DEVICE,
            "backend": found.backend,
            "bursts": self._bursts,
        }
        orders = self._orders(case, found)
        try:
            for order in orders:
                burst = found.burst()
                if burst["seconds"]:
                    stats.update(statistics.median(burst["seconds"]))
                self._bursts.append({"block": order["block"], "order": order["order"], **burst})
            wrong = found.error()
        except Exception as error:
            self._give_up(case, error)
            raise
        entry = stats.as_dict(include_data=True, stats=bool(stats)) | {"params": {"case": case.id}}
        if self._judge:
            self._judge.say("verdict", case=case.id, error=wrong, benchmark=entry)
        assert wrong is None, wrong

    def _orders(self, case: cases.Case, found: LiveCase) -> Iterator[dict[str, Any]]:
        if self._judge is None:
            found.warm_up()
            yield from ({"block": number, "order": "AB"} for number in range(ALONE_BURSTS))
            return
        self._judge.say("ready", case=case.id, backend=found.backend)
        while (order := self._judge.hear())["do"] != "done":
            if order["do"] == "warm":
                self._judge.say("warm", case=case.id, seconds=found.warm_up())
                continue
            if order["do"] == "controls":
                self._judge.say("controls", case=case.id, controls=found.controls())
                continue
            if order["do"] == "adapt":
                found.adapt(order["seconds"])
                continue
            yield order
            self._judge.say("burst", case=case.id, **self._bursts[-1])

    def _give_up(self, case: cases.Case, error: Exception) -> None:
        self._benchmark.has_error = True
        if not self._judge:
            return
        try:
            sampling.for_turns(DEVICE)[1].wait()
        except Exception as lost:  # the judge sees the process end, and starts another for the cases that are left
            pytest.exit(f"{case.id} took the device down: {errors.reason_of(lost)}", returncode=1)
        reasons = {errors.WrongAnswer: "wrong_answer", errors.InvalidMeasurement: "invalid_measurement"}
        absent = isinstance(error, errors.NotInThisVersion)
        detail = errors.reason_of(error)
        self._judge.say("failed", case=case.id, reason=reasons.get(type(error), "crash"), detail=detail, absent=absent)
