"""A case of the build at hand, measured for as long as somebody asks for another burst."""

from __future__ import annotations

from typing import Any

from asv_bench import controls, implementations, sampling, telemetry, verify
from asv_bench.cases import Problem
from asv_bench.clocks import Clock
from asv_bench.errors import WrongAnswer
from asv_bench.group import free
from asv_bench.inputs import alter, make


class LiveCase:
    """flash_dsa on a problem: tried and its inputs altered; then warmed up, and a burst per call.

    Args:
        problem: what to measure. device: `cpu` or `cuda`. protocol, clock: how time is taken. seed: of inputs and of
            the rows that are checked.
    Raises:
        WrongAnswer: when a launch changes its inputs. Exception: whatever the build raises.
    """

    def __init__(
        self,
        problem: Problem,
        device: str,
        protocol: sampling.SamplingProtocol,
        clock: Clock,
        seed: int = 0,
    ) -> None:
        import torch

        self.problem, self.device = problem, torch.device(device)
        self._inputs = make(problem, seed, self.device)
        unchanged = verify.Unchanged(self._inputs)
        ours = implementations.get("flash_dsa")
        ours.bind(problem, self._inputs).call()
        clock.wait()
        if broken := unchanged.broken():
            raise WrongAnswer(f"changed its input {', '.join(broken)}")
        alter(self._inputs)
        self._check = verify.Check(problem, self._inputs, seed)
        self._unchanged = verify.Unchanged(self._inputs)
        self._bound = ours.bind(problem, self._inputs)
        self.backend = self._bound.backend
        self._subject = sampling.Subject(
            "flash_dsa", self._bound.call, protocol, clock, self._poison, telemetry.conditions_of(self.device)
        )

    def warm_up(self) -> float:
        """Launches twice, while nothing else uses the machine; seconds of one launch."""
        return self._subject.warm_up()

    def adapt(self, seconds: float) -> None:
        """Plans bursts for launches of this length: both sides of a comparison take the same."""
        self._subject.samples.plan = sampling.plan(self._subject.protocol, seconds)

    def burst(self) -> dict[str, Any]:
        """Takes one burst.

        Returns:
            `seconds` and `cycles` (or None) of the kept samples, `discarded` by reason, `power_capped` (or None).
        """
        self._subject.burst()
        self._subject.disregard_disturbed()
        taken = self._subject.samples.taken
        # Where every launch so far waited for its host, that is its time; else those that waited are disturbed ones.
        host_bound = all(launch.reason for burst in taken for launch in burst)
        launches = taken[-1]
        kept = [launch for launch in launches if not launch.reason or (host_bound and launch.reason == "starved")]
        cycles = [launch.cycles for launch in kept if launch.cycles is not None]
        reasons = [launch.reason for launch in launches if launch not in kept]
        seen = self._subject.last_conditions
        return {
            "seconds": [launch.seconds for launch in kept],
            "cycles": cycles if cycles and len(cycles) == len(kept) else None,
            "discarded": {str(reason): reasons.count(reason) for reason in set(reasons)},
            "power_capped": seen.power_capped if seen else None,
        }

    def controls(self) -> dict[str, Any]:
        """The controls as of now, by name, as a record's telemetry keeps them."""
        protocol = controls.brief(self._subject.protocol)
        measured = controls.measure(self.device, controls.WORK[self.device.type], protocol, self._subject.clock)
        free(self.device)
        return {name: controls.facts(result) for name, result in measured.items()}

    def error(self) -> str | None:
        """Why the last launch, or one made now where none was, is no right answer, or None; frees the outputs."""
        output, self._subject.samples.output = self._subject.samples.output, None
        if output is None:  # nothing was timed, as where both sides are the same code
            output = self._bound.call()
            self._subject.clock.wait()
        if broken := self._unchanged.broken():
            return f"input {', '.join(broken)} changed while it was timed"
        found = self._check.verdict(self._bound, output).error
        del output
        free(self.device)
        return found

    def _poison(self, output: Any) -> None:
        verify.poison(output, self._inputs)
