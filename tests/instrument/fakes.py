"""A clock without time: launches advance it by what the test says, and it writes down what it was asked to do."""

from __future__ import annotations

from collections.abc import Callable


class FakeReading:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __sub__(self, earlier: FakeReading) -> float:
        return self.seconds - earlier.seconds


class FakeClock:
    """A clock that launches advance.

    Args:
        clock_hertz: of the next launches, the last of them for ever; None where no clock can be read.
        starved: whether the device waits for the host in the next launch. lost: whether `wait` fails.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.rested = 0.0
        self.stalled: list[float] = []
        self.starved = False
        self.lost = False
        self.stamps: list[float] = []
        self.clock_hertz: list[float | None] = [1.8e9]

    def read(self) -> FakeReading:
        return FakeReading(self.now)

    def passed(self, reading: FakeReading) -> bool:
        return self.starved

    def wait(self) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.log.append("wait")

    def rest(self, seconds: float) -> None:
        self.rested += seconds
        self.log.append("rest")

    def flush(self) -> None:
        self.log.append("flush")

    def stall(self, seconds: float) -> None:
        self.stalled.append(seconds)

    def host(self) -> float:
        return self.now

    def stamp(self) -> int | None:
        self.stamps.append(self.now)
        return len(self.stamps) - 1

    def hertz(self, first: int | None, second: int | None) -> float | None:
        return self.clock_hertz.pop(0) if len(self.clock_hertz) > 1 else self.clock_hertz[0]

    def forget_stamps(self) -> None:
        self.stamps.clear()

    def kernel(self, name: str, *seconds: float) -> Callable[[], str]:
        """A launch that takes these times in turn, the last of them for ever."""
        times = list(seconds)

        def launch() -> str:
            self.now += times.pop(0) if len(times) > 1 else times[0]
            self.log.append(name)
            return f"output of {name}"

        return launch
