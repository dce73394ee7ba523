"""Sampling: how seconds are taken. One replaceable piece.

A protocol says how samples are taken and has a version: changing what it does changes its version and so the series.
`measure` runs several implementations burst by burst in turn and reads time only through a `Clock`, so a fake clock
tests it without time passing. docs/measuring.md says why the protocol is as it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from asv_bench.clocks import Clock, CpuClock, CudaClock, Reading
from asv_bench.errors import DeviceLost, InvalidMeasurement
from asv_bench.telemetry import Conditions, summarize

CONFIDENCE = 0.95
SAMPLES_MIN = 6  # the fewest samples whose extremes hold the median with 95 % (1 - 2 * 0.5^6 = 96.9 %)

# Why a sample is dropped; a closed set, also the keys of `discarded` in a record.
DISCARD_REASONS = ("thermal_slowdown", "hardware_slowdown", "starved", "not_positive")


@dataclass(frozen=True)
class SamplingProtocol:
    """How samples are taken.

    Args:
        name, version: the series' identity, as `name-vN` in records.
        launches: timed launches of a burst. dropped: launches before them that are not counted.
        bursts: bursts per implementation. rest_seconds: idle time before each burst.
        flush: whether the L2 cache is overwritten before each launch.
        budget_seconds: launches of one implementation may take about this long; slower kernels get shorter and fewer
            bursts, never fewer than SAMPLES_MIN samples.
        settle_seconds: dropped launches need not take longer than this altogether.
    """

    name: str
    version: int
    launches: int
    dropped: int
    bursts: int
    rest_seconds: float
    flush: bool
    budget_seconds: float
    settle_seconds: float

    @property
    def label(self) -> str:
        """What a record's `protocol` holds, such as `cuda-burst-v1`."""
        return f"{self.name}-v{self.version}"


# Long enough to have the clock up, short enough to stay under the power cap: docs/measuring.md.
CUDA_PROTOCOL = SamplingProtocol("cuda-burst", 1, 8, 2, 10, 0.060, True, 2.5, 0.060)
# A CPU has no enqueue gap and no burst-length effect: a few short rounds.
CPU_PROTOCOL = SamplingProtocol("cpu-rounds", 1, 2, 1, 10, 0.0, False, 1.0, 0.100)


@dataclass(frozen=True)
class Plan:
    """A protocol adapted to how long one launch takes."""

    bursts: int
    launches: int
    dropped: int


@dataclass
class Samples:
    """What `measure` found for one implementation.

    Args:
        bursts: seconds of the kept samples, burst by burst.
        starved: seconds of samples that waited for the host, burst by burst; used only if hardly any other is left.
        discarded: how many samples were dropped, by reason.
        power_capped: whether the power cap lowered the clock during any burst; None when that cannot be known.
        plan: the protocol as adapted; None when the first launch failed.
        telemetry: clocks, power and temperature over the bursts.
        output: what the last timed launch returned.
        error: why there is no number, or None.
    """

    bursts: list[list[float]] = field(default_factory=list)
    starved: list[list[float]] = field(default_factory=list)
    discarded: dict[str, int] = field(default_factory=dict)
    power_capped: bool | None = None
    plan: Plan | None = None
    telemetry: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    error: BaseException | None = None

    @property
    def seconds(self) -> list[float]:
        """All kept samples, in the order taken."""
        return [sample for burst in self.bursts for sample in burst]

    def discard(self, reason: str, count: int = 1) -> None:
        """Counts samples that are not kept."""
        if reason not in DISCARD_REASONS:
            raise ValueError(f"reason: expected one of {DISCARD_REASONS}, got {reason!r}")
        if count:
            self.discarded[reason] = self.discarded.get(reason, 0) + count


@dataclass(frozen=True)
class Interval:
    """A median and the interval that holds it."""

    median: float
    low: float
    high: float


def plan(protocol: SamplingProtocol, seconds: float) -> Plan:
    """Adapts a protocol to how long one launch takes.

    Within `budget_seconds` the protocol is used as it is. Beyond, a burst keeps to its share of the budget: fewer
    dropped launches once they exceed `settle_seconds`, then fewer timed ones, then fewer bursts; SAMPLES_MIN samples
    are taken however long that is.

    Args:
        protocol: the protocol.
        seconds: one launch, as first seen.
    """
    per_burst = protocol.launches + protocol.dropped
    if seconds * per_burst * protocol.bursts <= protocol.budget_seconds:
        return Plan(protocol.bursts, protocol.launches, protocol.dropped)
    dropped = min(protocol.dropped, int(protocol.settle_seconds / seconds))
    share = protocol.budget_seconds / protocol.bursts
    launches = min(max(int(share / seconds) - dropped, 1), protocol.launches)
    bursts = int(protocol.budget_seconds / (seconds * (launches + dropped)))
    return Plan(min(max(bursts, math.ceil(SAMPLES_MIN / launches)), protocol.bursts), launches, dropped)


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Median and the order statistics that hold it with at least this confidence.

    The number of samples below the median is binomial(n, 1/2) whatever the distribution. Below 6 samples not even the
    extremes reach 95 %; they are returned all the same. It is the interval of this process: samples of one process
    are not independent of each other, so two processes may differ by more.

    Args:
        samples: at least one number.
        confidence: of the interval.
    Source: David and Nagaraja, "Order Statistics", 3rd ed. 2003, section 7.1.
    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    ordered = sorted(samples)
    n = len(ordered)
    # Whole numbers, since 0.5^n underflows: below / 2^n is the probability that at most `rank` samples lie below the
    # median, and the interval misses it with twice that.
    allowed, one = round((1 - confidence) * 10**9) << n, 10**9
    below, rank = 1, 0
    while rank < (n - 1) // 2:
        grown = below + math.comb(n, rank + 1)
        if 2 * grown * one > allowed:
            break
        below, rank = grown, rank + 1
    return Interval(statistics.median(ordered), ordered[rank], ordered[n - 1 - rank])


def measure(
    callables: Mapping[str, Callable[[], Any]],
    protocol: SamplingProtocol,
    clock: Clock,
    *,
    conditions: Callable[[], Conditions] | None = None,
    before: Mapping[str, Callable[[Any], None]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Samples]:
    """Measures implementations interleaved, burst by burst, in this process.

    Each is first launched twice, untimed and timed, to adapt the protocol; then bursts go round in turn, every second
    round backwards. One that raises keeps its exception in `error` and leaves the others alone.

    Args:
        callables: what to launch, by name of implementation; each call issues one launch.
        protocol: how samples are taken.
        clock: where time comes from.
        conditions: called while a burst runs; its slowdown reasons discard the burst's samples.
        before: called untimed, with the implementation's last output or None, before anything of it is launched: before
            it is warmed up and before each of its bursts.
        progress: called with the implementation's name after each of its bursts.
    Returns:
        Samples by name, for every name in `callables`.
    Raises:
        DeviceLost: when the device does not answer after an implementation failed.
    """
    results = {name: Samples() for name in callables}
    ready = {name: before[name] if before else _nothing for name in callables}
    host_seconds: dict[str, float] = {}
    for name, call in callables.items():
        warm_up = partial(_warm_up, name, call, protocol, clock, results[name], host_seconds)
        _note_failure(results[name], guarded(name, clock, partial(warm_up, ready[name])))
    seen: dict[str, list[Conditions]] = {name: [] for name in callables}
    rounds = max((sample.plan.bursts for sample in results.values() if sample.plan), default=0)
    for turn in range(rounds):
        for name in list(callables)[:: 1 if turn % 2 == 0 else -1]:
            result = results[name]
            if result.error or result.plan is None or turn >= result.plan.bursts:
                continue
            burst = partial(_burst, callables[name], protocol, clock, result, host_seconds[name])
            _note_failure(result, guarded(name, clock, partial(burst, ready[name], conditions, seen[name])))
            if progress:
                progress(name)
    for name, result in results.items():
        _conclude(result, seen[name])
    return results


def guarded(name: str, clock: Clock, action: Callable[[], object]) -> BaseException | None:
    """Does something that may fail in any way but Ctrl-C, and says how it failed.

    Args:
        name: what is tried, for the message. clock: of the device. action: what to do.
    Returns:
        What was raised, or None.
    Raises:
        DeviceLost: when the device does not answer after the failure.
    """
    try:
        action()
    except (Exception, SystemExit) as error:
        # The traceback keeps the failed call's tensors alive, which after an out-of-memory error is the memory itself.
        reason = error.with_traceback(None)
        try:
            clock.wait()
        except Exception as lost:
            raise DeviceLost(name, reason) from lost
        return reason
    return None


def _note_failure(result: Samples, failure: BaseException | None) -> None:
    if failure:
        result.error, result.output = failure, None


def _nothing(output: Any) -> None:
    """Nobody wants to know."""


def _warm_up(
    name: str,
    call: Callable[[], Any],
    protocol: SamplingProtocol,
    clock: Clock,
    result: Samples,
    host_seconds: dict[str, float],
    ready: Callable[[Any], None],
) -> None:
    ready(None)
    result.output = call()
    clock.wait()
    result.output = None
    issued = clock.host()
    start = clock.read()
    result.output = call()
    end = clock.read()
    host_seconds[name] = clock.host() - issued
    clock.wait()
    result.plan = plan(protocol, max(end - start, 1e-9))


# A stall long enough to queue a burst behind it, but not so long that the clocks fall.
_STALL_LIMIT_SECONDS = 0.020
_HOST_SECONDS_PER_FLUSH = 50e-6  # issuing the flush and two events beside each launch


def _burst(
    call: Callable[[], Any],
    protocol: SamplingProtocol,
    clock: Clock,
    result: Samples,
    host_seconds: float,
    ready: Callable[[Any], None],
    conditions: Callable[[], Conditions] | None,
    seen: list[Conditions],
) -> None:
    assert result.plan is not None
    clock.rest(protocol.rest_seconds)
    ready(result.output)
    launches = result.plan.dropped + result.plan.launches
    readings: list[tuple[Reading, Reading]] = []
    starved: list[bool] = []
    clock.stall(min(1.5 * launches * (host_seconds + _HOST_SECONDS_PER_FLUSH), _STALL_LIMIT_SECONDS))
    for _ in range(launches):
        result.output = None  # frees the last launch's output, so that an allocating call needs one at a time
        if protocol.flush:
            clock.flush()
        start = clock.read()
        result.output = call()
        # Reached before the launch was fully issued: the device waited for the host inside the timed span.
        starved.append(clock.passed(start))
        readings.append((start, clock.read()))
    state = conditions() if conditions else None
    clock.wait()
    kept: list[float] = []
    held_back: list[float] = []
    for (start, end), was_starved in list(zip(readings, starved, strict=True))[result.plan.dropped :]:
        seconds = end - start
        if not (seconds > 0 and math.isfinite(seconds)):
            result.discard("not_positive")
        elif state is not None and state.slowdown:
            result.discard(state.slowdown)
        elif was_starved:
            held_back.append(seconds)
        else:
            kept.append(seconds)
    result.bursts.append(kept)
    result.starved.append(held_back)
    if state is not None:
        seen.append(state)


def _conclude(result: Samples, seen: list[Conditions]) -> None:
    result.telemetry |= summarize(seen)
    known = [state.power_capped for state in seen if state.power_capped is not None]
    result.power_capped = any(known) if known else None
    if len(result.seconds) < SAMPLES_MIN and any(result.starved):
        # This implementation waits for its host in nearly every launch: that is its time, and `host_bound` says so.
        result.bursts = [kept + late for kept, late in zip(result.bursts, result.starved, strict=True)]
        result.telemetry["host_bound"] = True
    else:
        for late in result.starved:
            result.discard("starved", len(late))
    if result.error is None and not result.seconds:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.discarded.items()))
        result.error = InvalidMeasurement(f"every sample was discarded: {reasons or 'none was taken'}")


def for_device(device: Any) -> tuple[SamplingProtocol, Clock]:
    """The protocol and the clock of a device (`cpu` or `cuda[:i]`)."""
    if str(device).startswith("cuda"):
        return CUDA_PROTOCOL, CudaClock(device)
    return CPU_PROTOCOL, CpuClock()
