"""A group: problems and implementations measured taking turns, burst by burst, in one process, and checked.

The sweep and the asv suites measure through it, so both trust a number for the same reasons:
every member is tried once before anything is timed; then the inputs are altered and every member is bound anew, so that
what one remembers of its first launch is wrong by the time it counts; the outputs of the last timed launches are
compared with the reference on rows drawn anew; and inputs that changed meanwhile invalidate what was timed on them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from asv_bench import implementations, sampling, verify
from asv_bench.cases import Problem
from asv_bench.clocks import Clock
from asv_bench.errors import InvalidMeasurement, Unavailable, WrongAnswer
from asv_bench.implementations import BoundCall
from asv_bench.inputs import Inputs, alter, make
from asv_bench.telemetry import Conditions

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Bench:
    """Where and how a group is measured.

    Args:
        device: where. protocol, clock: how time is taken. seed: of the inputs. rows_seed: draws the rows that are
        checked. conditions: reads the device's clocks and slowdown reasons while a burst runs.
    """

    device: torch.device
    protocol: sampling.SamplingProtocol
    clock: Clock
    seed: int
    rows_seed: int
    conditions: Callable[[], Conditions] | None = None


@dataclass(frozen=True)
class Member:
    """An implementation of a problem."""

    problem: Problem
    implementation: str


@dataclass
class Outcome:
    """What was found of a member.

    Args:
        samples: with `error` set where there is no number, whatever the reason.
        inputs_made: False when this machine could not even hold the inputs.
        backend, peak_bytes, valid_fraction, max_abs_err: as in records.
    """

    samples: sampling.Samples = field(default_factory=sampling.Samples)
    inputs_made: bool = True
    backend: str | None = None
    peak_bytes: int | None = None
    valid_fraction: float | None = None
    max_abs_err: float | None = None

    @property
    def error(self) -> BaseException | None:
        """Why there is no number."""
        return self.samples.error


def measure(
    bench: Bench,
    members: Mapping[Key, Member],
    announce: Callable[[Key], None] | None = None,
    progress: Callable[[Key], None] | None = None,
) -> dict[Key, Outcome]:
    """Measures the members of a group taking turns.

    Args:
        bench: where and how. members: by whatever the caller calls them.
        announce: called before anything of a member is launched: what ends the process next, is its doing.
        progress: called after each burst of a member.
    Returns:
        An outcome for every member.
    Raises:
        DeviceLost: when a member took the device down; its name is `repr` of the key.
    """
    outcomes = {key: Outcome() for key in members}
    group = _Group(bench, dict(members), outcomes, announce or (lambda key: None))
    group.find_out_who_is_there()
    group.make_inputs()
    group.try_each()
    group.alter_inputs()
    group.take_turns(progress or (lambda key: None))
    return outcomes


@dataclass
class _Group:
    bench: Bench
    members: dict[Any, Member]
    outcomes: dict[Any, Outcome]
    announce: Callable[[Any], None]
    inputs: dict[Problem, Inputs] = field(default_factory=dict)
    checks: dict[Problem, verify.Check] = field(default_factory=dict)

    def able(self) -> dict[Any, Member]:
        """Members that nothing is known against."""
        return {key: member for key, member in self.members.items() if self.outcomes[key].error is None}

    def fail(self, key: Any, error: BaseException) -> None:
        """Notes the first reason against a member."""
        samples = self.outcomes[key].samples
        samples.error = samples.error or error.with_traceback(None)

    def fail_all_of(self, problem: Problem, error: BaseException) -> None:
        for key, member in self.able().items():
            if member.problem == problem:
                self.fail(key, error)

    def find_out_who_is_there(self) -> None:
        for key, member in self.members.items():
            reason = implementations.get(member.implementation).unavailable(self.bench.device)
            if reason:
                self.fail(key, Unavailable(reason))

    def make_inputs(self) -> None:
        for problem in dict.fromkeys(member.problem for member in self.able().values()):
            try:
                self.inputs[problem] = made = make(problem, self.bench.seed, self.bench.device)
            except Exception as error:
                free(self.bench.device)
                for key, member in self.members.items():
                    self.outcomes[key].inputs_made &= member.problem != problem
                self.fail_all_of(problem, error)
                continue
            for key, member in self.members.items():
                if member.problem == problem:
                    self.outcomes[key].valid_fraction = made.valid_fraction

    def try_each(self) -> None:
        """One launch of each: what it holds at most, whether it works at all and leaves its inputs as they are."""
        unchanged = {problem: verify.Unchanged(made) for problem, made in self.inputs.items()}
        for key, member in self.able().items():
            self.announce(key)
            failure = sampling.guarded(repr(key), self.bench.clock, partial(self._first_launch, key, member))
            if failure:
                self.fail(key, failure)
                free(self.bench.device)
            broken = unchanged[member.problem].broken()
            if broken:
                self.fail(key, WrongAnswer(f"changed its input {', '.join(broken)}"))

    def _first_launch(self, key: Any, member: Member) -> None:
        device, outcome = self.bench.device, self.outcomes[key]
        on_gpu = device.type == "cuda"
        before = 0
        if on_gpu:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        bound = self._bind(member)
        bound.call()
        if on_gpu:
            torch.cuda.synchronize(device)
            outcome.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        outcome.backend = bound.backend

    def _bind(self, member: Member) -> BoundCall:
        return implementations.get(member.implementation).bind(member.problem, self.inputs[member.problem])

    def alter_inputs(self) -> None:
        """From here on other values are right, and the truth is computed before anything else reads them."""
        for problem in dict.fromkeys(member.problem for member in self.able().values()):
            try:
                alter(self.inputs[problem])
                self.checks[problem] = verify.Check(problem, self.inputs[problem], self.bench.rows_seed)
            except Exception as error:
                self.fail_all_of(problem, error)
                free(self.bench.device)

    def take_turns(self, progress: Callable[[Any], None]) -> None:
        calls: dict[Any, BoundCall] = {}
        for key, member in self.able().items():
            self.announce(key)

            def bind(key: Any = key, member: Member = member) -> None:
                calls[key] = self._bind(member)

            failure = sampling.guarded(repr(key), self.bench.clock, bind)
            if failure:
                self.fail(key, failure)
        problems = {self.members[key].problem for key in calls}
        unchanged = {problem: verify.Unchanged(self.inputs[problem]) for problem in problems}
        names = {repr(key): key for key in calls}
        measured = sampling.measure(
            {name: calls[key].call for name, key in names.items()},
            self.bench.protocol,
            self.bench.clock,
            conditions=self.bench.conditions,
            before={name: partial(self._get_ready, key) for name, key in names.items()},
            progress=lambda name: progress(names[name]),
        )
        broken = {problem: ", ".join(sums.broken()) for problem, sums in unchanged.items()}
        for name, key in names.items():
            self.outcomes[key].samples = measured[name]
            problem = self.members[key].problem
            if broken[problem]:  # by one of them: nobody knows what the others were given
                changed = InvalidMeasurement(f"input {broken[problem]} changed while it was timed")
                self.outcomes[key].samples.error = changed
            else:
                self._check(key, calls[key])
            measured[name].output = None  # its memory may be needed

    def _get_ready(self, key: Any, output: Any) -> None:
        self.announce(key)
        verify.poison(output, self.inputs[self.members[key].problem])

    def _check(self, key: Any, call: BoundCall) -> None:
        outcome = self.outcomes[key]
        if outcome.error is None:
            verdict = self.checks[self.members[key].problem].verdict(call, outcome.samples.output)
            outcome.max_abs_err = verdict.max_abs_err
            if verdict.error:
                self.fail(key, WrongAnswer(verdict.error))


def free(device: torch.device) -> None:
    """Gives memory back: what comes next may need nearly all of it in other pieces."""
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            return  # a lost device frees nothing
