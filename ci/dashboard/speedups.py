"""Speedups of sparse attention as histories with intervals, and the s_kv from which it overtakes dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ci.changepoint import Values
from ci.history import State


@dataclass(frozen=True)
class Track:
    """Values of a series with their intervals.

    Args:
        values, low, high: NaN where there is none. states: a `history.State` each.
    """

    values: Values
    low: Values
    high: Values
    states: NDArray[np.int8]


def inverse(ratio: Track) -> Track:
    """One over a ratio: its interval's ends change places."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return Track(1 / ratio.values, 1 / ratio.high, 1 / ratio.low, ratio.states)


def over(base: Track, ours: Track) -> Track:
    """How many times as long base takes as ours.

    The interval is that of independent errors: the distances of both ends on a logarithmic scale are joined as the
    sides of a right angle. A point that one of them lacks is not measured, failed or n/a, in this order.

    Args:
        base, ours: seconds of the same commits, measured in turns.
    """
    both = (base.states == State.MEASURED) & (ours.states == State.MEASURED)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = base.values / ours.values
        down = np.hypot(np.log(base.values / base.low), np.log(ours.high / ours.values))
        up = np.hypot(np.log(base.high / base.values), np.log(ours.values / ours.low))
    states = np.where(both, State.MEASURED, State.NOT_MEASURED).astype(np.int8)
    for state in (State.NOT_APPLICABLE, State.FAILED):
        states[(base.states == state) | (ours.states == state)] = state
    states[(base.states == State.NOT_MEASURED) | (ours.states == State.NOT_MEASURED)] = State.NOT_MEASURED
    ratio[~both] = np.nan
    return Track(ratio, ratio * np.exp(-down), ratio * np.exp(up), states)


@dataclass(frozen=True)
class Crossover:
    """Where sparse overtakes dense, at one commit.

    Args:
        above: the largest measured s_kv at which dense is faster; None if it is at none.
        upto: the smallest measured s_kv from which on sparse is faster; None if it is not at the largest.
    """

    above: int | None
    upto: int | None


def crossover(ratios: Mapping[int, tuple[float, float]]) -> Crossover | None:
    """Between which measured s_kv sparse overtakes dense for good; nothing is said beyond what was measured.

    Where the interval of a ratio holds 1, neither is faster: such s_kv lie between both ends.

    Args:
        ratios: the interval of sparse seconds over dense seconds by s_kv; NaN where there is none.
    Returns:
        None where nothing was measured.
    """
    known = {s_kv: ends for s_kv, ends in ratios.items() if np.isfinite(ends).all()}
    if not known:
        return None
    above = max((s_kv for s_kv, (low, _) in known.items() if low > 1), default=None)
    not_faster = max((s_kv for s_kv, (_, high) in known.items() if high >= 1), default=0)
    return Crossover(above, min((s_kv for s_kv in known if s_kv > not_faster), default=None))
