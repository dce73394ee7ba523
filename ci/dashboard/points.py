"""Where a series stands in the grid of the suites, by its benchmark's name and parameters."""

from __future__ import annotations

from dataclasses import dataclass

from ci.dashboard.sidecar import Key
from ci.history import History

OURS = "flash_dsa"
SPEEDUP = "speedup"
_SUITES = {  # by module: view in the sidecar, op, unit of its values
    "sparse_prefill": ("sparse", "sparse_fwd", "s"),
    "dense_prefill": ("dense", "dense_fwd", "s"),
    "speedup": ("ratio", "sparse over dense", "ratio"),
}


@dataclass(frozen=True)
class Point:
    """A point of a grid.

    Args:
        op: `sparse_fwd`, `dense_fwd`, `sparse over dense`, or the benchmark's name where it is none of our suites'.
        s_kv: keys, or None. variant: what else there is beside the implementation, such as `topk 512` or `192x128`.
        implementation: or an empty text. unit: `s` (seconds) or `ratio`. key: in the sidecar.
        topk, head_dims: as numbers and text, where the suite has them.
    """

    op: str
    s_kv: int | None
    variant: str
    implementation: str
    unit: str
    key: Key
    topk: int | None = None
    head_dims: str | None = None


def point_of(history: History) -> Point:
    """The point of a series; one of its own for a benchmark that is not of our suites."""
    module = history.benchmark.partition(".")[0]
    params = tuple(param.strip("'\"") for param in history.params)
    if module not in _SUITES or not params[:1] or not params[0].isdecimal():
        key = ("control", *params) if module == "control" else (history.benchmark, *params)
        op = "control" if module == "control" else history.benchmark
        return Point(op, None, ", ".join(params), "", "s", key)
    view, op, unit = _SUITES[module]
    key = (view, *params)
    if view == "sparse" and len(params) == 3 and params[1].isdecimal():
        return Point(op, int(params[0]), f"topk {params[1]}", params[2], unit, key, topk=int(params[1]))
    if view == "dense" and len(params) == 3:
        return Point(op, int(params[0]), params[1], params[2], unit, key, head_dims=params[1])
    if view == "ratio" and len(params) == 3 and params[1].isdecimal():
        variant = f"topk {params[1]}, dense {params[2]}"
        return Point(op, int(params[0]), variant, OURS, unit, key, topk=int(params[1]), head_dims=params[2])
    return Point(history.benchmark, None, ", ".join(params), "", unit, key)
