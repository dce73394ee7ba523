"""Clocks: the only place where time is read. Readings are objects whose difference is seconds."""

from __future__ import annotations

import time
from typing import Any, Protocol, cast

from asv_bench.cycles import Stamps


class Reading(Protocol):
    """A point in time whose difference to an earlier one is seconds."""

    def __sub__(self, earlier: Any, /) -> float: ...


class Clock(Protocol):
    """Reads time and steers the device around a launch. `read` fits any `timer` slot (timeit, pytest-benchmark)."""

    def read(self) -> Reading:
        """The point in time at which the work issued so far is done."""
        ...

    def passed(self, reading: Reading) -> bool:
        """Whether the device has already reached this reading."""
        ...

    def wait(self) -> None:
        """Returns when all issued work is done; raises what the work raised."""
        ...

    def rest(self, seconds: float) -> None:
        """Leaves the device idle."""
        ...

    def flush(self) -> None:
        """Overwrites the device's last-level cache."""
        ...

    def stall(self, seconds: float) -> None:
        """Keeps the device busy for about this long so that work can be queued behind it."""
        ...

    def host(self) -> float:
        """Host seconds, for the time that issuing takes."""
        ...

    def stamp(self) -> int | None:
        """Queues a stamp of the device's cycle counter; None where there is none."""
        ...

    def hertz(self, first: int | None, second: int | None) -> float | None:
        """Mean clock of the device between two stamps, or None where that is not known."""
        ...

    def forget_stamps(self) -> None:
        """Makes room for new stamps."""
        ...


class CpuReading:
    """A reading of the host's monotonic clock."""

    def __init__(self, nanoseconds: int) -> None:
        self.nanoseconds = nanoseconds

    def __sub__(self, earlier: CpuReading) -> float:
        return (self.nanoseconds - earlier.nanoseconds) * 1e-9


class CpuClock:
    """The host's monotonic clock; calls are synchronous, so there is nothing to wait for."""

    def read(self) -> CpuReading:
        """Now."""
        return CpuReading(time.perf_counter_ns())

    def passed(self, reading: Reading) -> bool:
        """Never, so that no sample counts as starved: the host is the device."""
        return False

    def wait(self) -> None:
        """Nothing is in flight."""

    def rest(self, seconds: float) -> None:
        """Sleeps."""
        if seconds > 0:
            time.sleep(seconds)

    def flush(self) -> None:
        """CPU protocols do not flush."""

    def stall(self, seconds: float) -> None:
        """Nothing to queue ahead of."""

    def host(self) -> float:
        """Host seconds."""
        return time.perf_counter()

    def stamp(self) -> None:
        """The cycle counter of a CPU core says nothing of the other cores."""

    def hertz(self, first: int | None, second: int | None) -> None:
        """Not known."""

    def forget_stamps(self) -> None:
        """There are none."""


class CudaReading:
    """An event on a stream. The difference of two is taken between themselves, so no distant base costs resolution."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def __sub__(self, earlier: CudaReading) -> float:
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) * 1e-3


class CudaClock:
    """CUDA events on the current stream of a device.

    Args:
        device: a CUDA device.
        flush_bytes: size of the buffer that `flush` overwrites; by default four times the L2, at least 256 MiB.
    """

    # Spins per second of torch.cuda._sleep's counter: the SM clock of any current GPU is below this, so a stall is
    # never shorter than asked.
    _SPINS_PER_SECOND = 2.0e9

    def __init__(self, device: Any, flush_bytes: int | None = None) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        properties = torch.cuda.get_device_properties(self._device)
        size = flush_bytes or max(4 * int(getattr(properties, "L2_cache_size", 0)), 1 << 28)
        self._buffer = torch.empty(size // 4, dtype=torch.int32, device=self._device)
        self._stamps = Stamps(self._device)

    def read(self) -> CudaReading:
        """Records an event."""
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._device))
        return CudaReading(event)

    def passed(self, reading: Reading) -> bool:
        """Queries the event without waiting."""
        return bool(cast(CudaReading, reading).event.query())

    def wait(self) -> None:
        """Synchronises the device."""
        self._torch.cuda.synchronize(self._device)

    def rest(self, seconds: float) -> None:
        """Sleeps on the host with the device idle."""
        self.wait()
        time.sleep(seconds)

    def flush(self) -> None:
        """Overwrites a buffer larger than the L2."""
        self._buffer.zero_()

    def stall(self, seconds: float) -> None:
        """Spins one thread on the device."""
        with self._torch.cuda.device(self._device):
            self._torch.cuda._sleep(max(1, int(seconds * self._SPINS_PER_SECOND)))

    def host(self) -> float:
        """Host seconds."""
        return time.perf_counter()

    def stamp(self) -> int | None:
        """Queues a stamp of one SM's cycle counter and the global timer."""
        return self._stamps.take()

    def hertz(self, first: int | None, second: int | None) -> float | None:
        """Mean SM clock between two stamps."""
        return self._stamps.hertz(first, second)

    def forget_stamps(self) -> None:
        """Numbers of earlier stamps mean nothing any more."""
        self._stamps.clear()
