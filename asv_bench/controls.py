"""Controls: work that no commit can change. Where its times move, the machine moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from asv_bench import sampling, telemetry
from asv_bench.clocks import Clock
from asv_bench.errors import error_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Work:
    """What the controls do.

    Args:
        copy_bytes: copied in the device's memory. gemm_size: rows and columns of a bfloat16 product.
    """

    copy_bytes: int
    gemm_size: int


WORK = {"cuda": Work(1 << 30, 8192), "cpu": Work(1 << 26, 1024)}  # by type of device


def _copy(device: torch.device, work: Work) -> Callable[[], Any]:
    import torch

    source = torch.ones(work.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _gemm(device: torch.device, work: Work) -> Callable[[], Any]:
    import torch

    n = work.gemm_size
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=product)


_MAKERS = {"copy": _copy, "gemm": _gemm}
NAMES = tuple(_MAKERS)


def measure(
    device: torch.device, work: Work, protocol: sampling.SamplingProtocol, clock: Clock
) -> dict[str, sampling.Samples]:
    """Measures the controls in turns.

    Args:
        device: where. work: what they do. protocol, clock: how time is taken.
    Returns:
        Samples by name; one that fails, for want of memory perhaps, leaves the other alone.
    Raises:
        DeviceLost: when the device does not answer.
    """

    def when_first_launched(make: Callable[[torch.device, Work], Callable[[], Any]]) -> Callable[[], Any]:
        made = cache(partial(make, device, work))
        return lambda: made()()

    calls = {name: when_first_launched(make) for name, make in _MAKERS.items()}
    results = sampling.measure(calls, protocol, clock, conditions=telemetry.conditions_of(device))
    for result in results.values():
        result.output = None  # its memory may be needed
    return results


def brief(protocol: sampling.SamplingProtocol) -> sampling.SamplingProtocol:
    """A protocol with the fewest bursts that make an interval, a quarter of a second of launches for each control."""
    return replace(protocol, bursts=sampling.SAMPLES_MIN, budget_seconds=0.25)


def facts(result: sampling.Samples) -> dict[str, Any]:
    """What a record's telemetry keeps of a control, under a record's own keys."""
    interval = None if result.error else result.interval
    return {
        "seconds_median": interval and interval.median,
        "seconds_low": interval and interval.low,
        "seconds_high": interval and interval.high,
        "cycles_median": interval and result.cycles_median,
        "error": None if result.error is None else error_of(result.error),
    }
