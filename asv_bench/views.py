"""Bases of the asv suites. A module of their own, as asv writes the line of `setup_cache` into benchmarks.json.

asv runs `setup_cache` of a base class once for all its subclasses and parameters, then every point in a process of its
own. So everything is measured in one pass, and the points are views of it: they import neither torch nor the library.
"""

from __future__ import annotations

from typing import Any

from asv_bench import suite


class _Views:
    """Base of the suites: `view` names the subclass in the cache."""

    view: str
    type = "time"  # with samples, gives asv's median, interval and Mann-Whitney test; tests/instrument holds it to that
    unit = "seconds"

    def setup(self, cache: suite.Cache, *point: Any) -> None:
        """n/a with its reason."""
        entry = cache.get(suite.WHOLE_GRID) or cache[(self.view, *point)]
        if "unavailable" in entry:
            raise NotImplementedError(entry["unavailable"])

    def samples(self, cache: suite.Cache, *point: Any) -> dict[str, Any]:
        """What a `track_` method returns. Raises RuntimeError: a failed benchmark, never a number."""
        entry = cache[(self.view, *point)]
        if "failed" in entry:
            raise RuntimeError(entry["failed"])
        return {"samples": entry["samples"], "number": 1}


# setup_cache is defined in either class, not in their base: asv tells the passes apart by its source line.
class GpuViews(_Views):
    """Views of the GPU grid."""

    version = suite.GPU.protocol.label

    def setup_cache(self) -> suite.Cache:
        """The one pass."""
        return suite.measure(suite.GPU)

    setup_cache.timeout = 1800  # type: ignore[attr-defined]


class CpuViews(_Views):
    """Views of the CPU grid."""

    version = suite.CPU.protocol.label

    def setup_cache(self) -> suite.Cache:
        """The one pass."""
        return suite.measure(suite.CPU)

    setup_cache.timeout = 600  # type: ignore[attr-defined]
