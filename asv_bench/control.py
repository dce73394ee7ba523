"""asv suite: work that no commit of ours can change. Where its series moves, the machine moved."""

from __future__ import annotations

from typing import Any

from asv_bench import suite, views


class Control(views.GpuViews):
    """A copy in device memory and a matrix product of torch."""

    view = "control"
    params = (suite.CONTROLS,)
    param_names = ("work",)

    def track_seconds(self, cache: suite.Cache, work: str) -> dict[str, Any]:
        """Seconds of one copy or product."""
        return self.samples(cache, work)


class ControlSmoke(views.CpuViews):
    """The same, smaller, on the CPU."""

    view = "control"
    params = (suite.CONTROLS,)
    param_names = ("work",)

    def track_seconds(self, cache: suite.Cache, work: str) -> dict[str, Any]:
        """Seconds of one copy or product."""
        return self.samples(cache, work)
