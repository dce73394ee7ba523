"""asv suite: seconds of dense prefill by context length, head dimensions and implementation."""

from __future__ import annotations

from typing import Any

from asv_bench import suite, views


class DensePrefill(views.GpuViews):
    """The GPU grid."""

    view = "dense"
    params = (suite.GPU.s_kv, suite.GPU.head_dims, suite.GPU.dense)
    param_names = ("s_kv", "head_dims", "implementation")

    def track_seconds(self, cache: suite.Cache, s_kv: int, head_dims: str, implementation: str) -> dict[str, Any]:
        """Seconds of one call."""
        return self.samples(cache, s_kv, head_dims, implementation)


class DensePrefillSmoke(views.CpuViews):
    """The CPU grid."""

    view = "dense"
    params = (suite.CPU.s_kv, suite.CPU.head_dims, suite.CPU.dense)
    param_names = ("s_kv", "head_dims", "implementation")

    def track_seconds(self, cache: suite.Cache, s_kv: int, head_dims: str, implementation: str) -> dict[str, Any]:
        """Seconds of one call."""
        return self.samples(cache, s_kv, head_dims, implementation)
