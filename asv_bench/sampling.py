"""Sampling: how seconds are taken. One replaceable piece.

A protocol says how samples are taken and has a version: changing what it does changes its version and so the series.
`measure` runs several implementations burst by burst in turn and reads time only through a `Clock`, so a fake clock
tests it without time passing. docs/measuring.md says why the protocol is as it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from asv_bench.clocks import Clock, CpuClock, CudaClock, Reading
from asv_bench.errors import DeviceLost, InvalidMeasurement, reason_of
from asv_bench.telemetry import Conditions, summarize

CONFIDENCE = 0.95
SAMPLES_MIN = 6  # the fewest samples whose extremes hold the median with 95 % (1 - 2 * 0.5^6 = 96.9 %)

# Why a sample is dropped; a closed set, also the keys of `discarded` in a record.
DISCARD_REASONS = ("thermal_slowdown", "hardware_slowdown", "starved", "not_positive", "clock_ramp", "preempted")
# A launch below this share of the measurement's clock was taken while the clock came up; above the power cap nothing
# else lowers it that far.
RAMP_BELOW = 0.9
# A launch of this many times the usual cycles did something else meanwhile.
PREEMPTED_ABOVE = 1.5
DISCARDED_MAX = 0.5  # beyond this share, what is left is no measurement of an undisturbed machine


@dataclass(frozen=True)
class SamplingProtocol:
    """How samples are taken.

    Args:
        name, version: the series' identity, as `name-vN` in records.
        burst_seconds: a burst gets as many launches as fit.
        launches_min, launches_max: timed launches of a burst, whatever fits.
        dropped_min, dropped_max: launches before them that are not counted: as many as settle_seconds hold.
        bursts: bursts per implementation. rest_seconds: idle time before each burst.
        flush: whether the L2 cache is overwritten before each launch.
        budget_seconds: launches of one implementation may take about this long; slower kernels get fewer bursts, never
            fewer than SAMPLES_MIN samples.
    """

    name: str
    version: int
    burst_seconds: float
    launches_min: int
    launches_max: int
    dropped_min: int
    dropped_max: int
    settle_seconds: float
    bursts: int
    rest_seconds: float
    flush: bool
    budget_seconds: float

    @property
    def label(self) -> str:
        """What a record's `protocol` holds, such as `cuda-burst-v2`."""
        return f"{self.name}-v{self.version}"


# docs/measuring.md says why; `python -m asv_bench agree` compares it with other ways.
CUDA_PROTOCOL = SamplingProtocol(
    "cuda-burst",
    2,
    burst_seconds=0.030,
    launches_min=3,
    launches_max=14,
    dropped_min=1,
    dropped_max=2,
    settle_seconds=0.030,
    bursts=12,
    rest_seconds=0.030,
    flush=True,
    budget_seconds=2.5,
)
# A CPU has no enqueue gap and no burst-length effect: a few short rounds.
CPU_PROTOCOL = SamplingProtocol(
    "cpu-rounds",
    1,
    burst_seconds=0.100,
    launches_min=1,
    launches_max=2,
    dropped_min=0,
    dropped_max=1,
    settle_seconds=0.100,
    bursts=10,
    rest_seconds=0.0,
    flush=False,
    budget_seconds=1.0,
)


# Two processes in turns: what disturbs a busy CPU lasts a good part of a second, so bursts lie that far apart, or one
# disturbance would meet one side in every block.
CPU_TURNS = replace(CPU_PROTOCOL, name="cpu-turns", launches_max=5, rest_seconds=0.060)


@dataclass(frozen=True)
class Plan:
    """A protocol adapted to how long one launch takes."""

    bursts: int
    launches: int
    dropped: int


def plan(protocol: SamplingProtocol, seconds: float) -> Plan:
    """Adapts a protocol to how long one launch takes.

    Args:
        protocol: the protocol.
        seconds: one launch, as first seen.
    """
    fit = int(min(protocol.settle_seconds / seconds, protocol.dropped_max))
    dropped = max(fit, protocol.dropped_min)
    fit = int(min(protocol.burst_seconds / seconds, 1_000_000)) - dropped
    launches = min(max(fit, protocol.launches_min), protocol.launches_max)
    affordable = int(min(protocol.budget_seconds / (seconds * (launches + dropped)), protocol.bursts))
    return Plan(max(affordable, math.ceil(SAMPLES_MIN / launches)), launches, dropped)


@dataclass(frozen=True)
class Launch:
    """What was seen of one launch.

    Args:
        seconds: by the clock. hertz: of an SM meanwhile, or None. reason: why it is not kept, or None.
    """

    seconds: float
    hertz: float | None = None
    reason: str | None = None

    @property
    def cycles(self) -> float | None:
        """SM cycles: seconds without what the clock's frequency does."""
        return None if self.hertz is None else self.seconds * self.hertz


@dataclass
class Samples:
    """What was found for one implementation.

    Args:
        taken: the timed launches, burst by burst, kept or not.
        power_capped: whether the power cap lowered the clock during any burst; None when that cannot be known.
        plan: the protocol as adapted; None when the first launch failed.
        telemetry: clocks, power and temperature over the bursts.
        output: what the last timed launch returned.
        error: why there is no number, or None.
    """

    taken: list[list[Launch]] = field(default_factory=list)
    power_capped: bool | None = None
    plan: Plan | None = None
    telemetry: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    error: BaseException | None = None

    @property
    def bursts(self) -> list[list[float]]:
        """Seconds of the kept samples, burst by burst."""
        return [[launch.seconds for launch in burst if not launch.reason] for burst in self.taken]

    @property
    def cycles(self) -> list[list[float]]:
        """SM cycles of the kept samples, burst by burst; empty where no clock was read."""
        kept = [[launch.cycles for launch in burst if not launch.reason] for burst in self.taken]
        return [[cycles for cycles in burst if cycles is not None] for burst in kept]

    @property
    def seconds(self) -> list[float]:
        """All kept samples, in the order taken."""
        return [sample for burst in self.bursts for sample in burst]

    @property
    def discarded(self) -> dict[str, int]:
        """How many samples are not kept, by reason."""
        reasons = [launch.reason for burst in self.taken for launch in burst if launch.reason]
        return {reason: reasons.count(reason) for reason in DISCARD_REASONS if reason in reasons}

    @property
    def interval(self) -> Interval:
        """Seconds of one launch."""
        return interval_of(self.bursts)

    @property
    def cycles_median(self) -> float | None:
        """SM cycles of one launch, or None where no clock was read."""
        return interval_of(self.cycles).median if any(self.cycles) else None


@dataclass(frozen=True)
class Interval:
    """A median and the interval that holds it."""

    median: float
    low: float
    high: float


def units(bursts: Sequence[Sequence[float]]) -> list[float]:
    """What counts as independent: the medians of bursts, or of too few bursts their samples."""
    medians = [statistics.median(burst) for burst in bursts if burst]
    return medians if len(medians) >= SAMPLES_MIN else [sample for burst in bursts for sample in burst]


def interval_of(bursts: Sequence[Sequence[float]]) -> Interval:
    """The median of bursts with its interval; launches of one burst share its clock and count as one."""
    return median_interval(units(bursts))


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Median and the order statistics that hold it with at least this confidence.

    The number of samples below the median is binomial(n, 1/2) whatever the distribution. Below 6 samples not even the
    extremes reach 95 %; they are returned all the same. It is the interval of this process: two processes may differ
    by more.

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


# A stall long enough to queue a burst behind it, but not so long that the clocks fall.
_STALL_LIMIT_SECONDS = 0.020
_HOST_SECONDS_PER_FLUSH = 80e-6  # issuing the flush, two stamps and two events beside each launch


def _nothing(output: Any) -> None:
    """Nobody wants to know."""


class Subject:
    """One implementation under a protocol: warmed up, then launched burst by burst.

    Args:
        name: for messages. call: issues one launch. protocol: how samples are taken. clock: where time comes from.
        ready: called untimed, with the last output or None, before anything is launched: before the warm-up and before
            each burst.
        conditions: called while a burst runs; its slowdown reasons discard the burst's samples.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[], Any],
        protocol: SamplingProtocol,
        clock: Clock,
        ready: Callable[[Any], None] = _nothing,
        conditions: Callable[[], Conditions] | None = None,
    ) -> None:
        self.name, self.call, self.protocol, self.clock = name, call, protocol, clock
        self.samples = Samples()
        self._ready, self._conditions = ready, conditions
        self._seen: list[Conditions] = []
        self._host_seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether no burst is left to do."""
        made = self.samples.plan
        return bool(self.samples.error) or made is None or len(self.samples.taken) >= made.bursts

    def warm_up(self) -> float:
        """Launches twice, untimed and timed, and adapts the protocol.

        Returns:
            Seconds of one launch.
        """
        clock, result = self.clock, self.samples
        self._ready(None)
        result.output = self.call()
        clock.wait()
        result.output = None
        issued = clock.host()
        start = clock.read()
        result.output = self.call()
        end = clock.read()
        self._host_seconds = clock.host() - issued
        clock.wait()
        seconds = max(end - start, 1e-9)
        result.plan = plan(self.protocol, seconds)
        return seconds

    @property
    def last_conditions(self) -> Conditions | None:
        """What the device was like in the last burst, where that is known."""
        return self._seen[-1] if self._seen else None

    def burst(self) -> list[Launch]:
        """Rests, then launches one burst and adds it to the samples."""
        assert self.samples.plan is not None
        clock, result, made = self.clock, self.samples, self.samples.plan
        clock.rest(self.protocol.rest_seconds)
        self._ready(result.output)
        launches = made.dropped + made.launches
        readings: list[tuple[Reading, Reading, Any, Any, bool]] = []
        clock.forget_stamps()
        clock.stall(min(1.5 * launches * (self._host_seconds + _HOST_SECONDS_PER_FLUSH), _STALL_LIMIT_SECONDS))
        for _ in range(launches):
            result.output = None  # frees the last launch's output, so that an allocating call needs one at a time
            if self.protocol.flush:
                clock.flush()
            before = clock.stamp()
            start = clock.read()
            result.output = self.call()
            # Reached before the launch was fully issued: the device waited for the host inside the timed span.
            starved = clock.passed(start)
            readings.append((start, clock.read(), before, clock.stamp(), starved))
        state = self._conditions() if self._conditions else None
        clock.wait()
        slowdown = state.slowdown if state else None
        if state:
            self._seen.append(state)
        result.taken.append(
            [
                _launch(end - start, clock.hertz(before, after), slowdown, starved)
                for start, end, before, after, starved in readings[made.dropped :]
            ]
        )
        return result.taken[-1]

    def disregard_disturbed(self) -> None:
        """Discards launches that were preempted or taken on a clock ramp, beside all that was taken so far."""
        known = [state.power_capped for state in self._seen if state.power_capped is not None]
        self.samples.power_capped = any(known) if known else None
        _disregard_disturbed(self.samples)

    def conclude(self) -> Samples:
        """Decides what is kept once all bursts are known, and whether that is a measurement."""
        result = self.samples
        result.telemetry |= summarize(self._seen)
        self.disregard_disturbed()
        kept, taken = len(result.seconds), sum(map(len, result.taken))
        starved = result.discarded.get("starved", 0)
        if starved and kept < SAMPLES_MIN:
            # This implementation waits for its host in nearly every launch: that is its time, and `host_bound` says so.
            _change(result, "starved", None)
            result.telemetry["host_bound"] = True
            kept += starved
        if result.error is None and kept < max(taken - starved, 1) * (1 - DISCARDED_MAX):
            reasons = ", ".join(f"{count} {reason}" for reason, count in result.discarded.items())
            result.error = InvalidMeasurement(f"of {taken} samples too many were discarded: {reasons or 'none taken'}")
        return result


def _launch(seconds: float, hertz: float | None, slowdown: str | None, starved: bool) -> Launch:
    if not (seconds > 0 and math.isfinite(seconds)):
        return Launch(seconds, hertz, "not_positive")
    return Launch(seconds, hertz, slowdown or ("starved" if starved else None))


def _disregard_disturbed(result: Samples) -> None:
    """Discards launches beside the measurement's own clock and cycles."""
    kept = [launch for burst in result.taken for launch in burst if not launch.reason and launch.hertz]
    if len(kept) < SAMPLES_MIN:
        return
    hertz = statistics.median(launch.hertz or 0.0 for launch in kept)
    cycles = statistics.median(launch.cycles or 0.0 for launch in kept)

    def judged(launch: Launch) -> Launch:
        if launch.reason or launch.hertz is None or launch.cycles is None:
            return launch
        if launch.cycles > PREEMPTED_ABOVE * cycles:
            return Launch(launch.seconds, launch.hertz, "preempted")
        if launch.hertz < RAMP_BELOW * hertz and not result.power_capped:
            return Launch(launch.seconds, launch.hertz, "clock_ramp")
        return launch

    result.taken = [[judged(launch) for launch in burst] for burst in result.taken]


def _change(result: Samples, old: str, new: str | None) -> None:
    result.taken = [
        [Launch(launch.seconds, launch.hertz, new) if launch.reason == old else launch for launch in burst]
        for burst in result.taken
    ]


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

    Bursts go round in turn, every second round backwards. One that raises keeps its exception in `error` and leaves the
    others alone.

    Args:
        callables: what to launch, by name of implementation. protocol, clock, conditions: as of a Subject.
        before: the `ready` of each Subject, by name.
        progress: called with the implementation's name after each of its bursts.
    Returns:
        Samples by name, for every name in `callables`.
    Raises:
        DeviceLost: when the device does not answer after an implementation failed.
    """
    ready = before or dict.fromkeys(callables, _nothing)
    subjects = [Subject(name, call, protocol, clock, ready[name], conditions) for name, call in callables.items()]
    for subject in subjects:
        _attempt(subject, subject.warm_up)
    turn = 0
    while any(not subject.finished for subject in subjects):
        for subject in subjects[:: 1 if turn % 2 == 0 else -1]:
            if not subject.finished:
                _attempt(subject, subject.burst)
                if progress:
                    progress(subject.name)
        turn += 1
    return {subject.name: subject.conclude() for subject in subjects}


def _attempt(subject: Subject, action: Callable[[], object]) -> None:
    failure = guarded(subject.name, subject.clock, action)
    if failure:
        subject.samples.error, subject.samples.output = failure, None


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
            raise DeviceLost(name, reason_of(reason)) from lost
        return reason
    return None


def for_turns(device: Any) -> tuple[SamplingProtocol, Clock]:
    """As `for_device`, where two live processes hand a baton to each other."""
    protocol, clock = for_device(device)
    return CPU_TURNS if protocol is CPU_PROTOCOL else protocol, clock


def for_device(device: Any) -> tuple[SamplingProtocol, Clock]:
    """The protocol and the clock of a device (`cpu` or `cuda[:i]`)."""
    if str(device).startswith("cuda"):
        return CUDA_PROTOCOL, CudaClock(device)
    return CPU_PROTOCOL, CpuClock()
