"""asv suite: seconds of sparse prefill by context length, topk and implementation."""

from __future__ import annotations

from typing import Any

from asv_bench import suite, views


class SparsePrefill(views.GpuViews):
    """The GPU grid."""

    view = "sparse"
    params = (suite.GPU.s_kv, suite.GPU.topk, suite.GPU.sparse)
    param_names = ("s_kv", "topk", "implementation")

    def track_seconds(self, cache: suite.Cache, s_kv: int, topk: int, implementation: str) -> dict[str, Any]:
        """Seconds of one call."""
        return self.samples(cache, s_kv, topk, implementation)


class SparsePrefillSmoke(views.CpuViews):
    """The CPU grid."""

    view = "sparse"
    params = (suite.CPU.s_kv, suite.CPU.topk, suite.CPU.sparse)
    param_names = ("s_kv", "topk", "implementation")

    def track_seconds(self, cache: suite.Cache, s_kv: int, topk: int, implementation: str) -> dict[str, Any]:
        """Seconds of one call."""
        return self.samples(cache, s_kv, topk, implementation)
