"""asv suite: what sparse costs beside dense. A ratio of seconds, so lower is better, as asv understands."""

from __future__ import annotations

from typing import Any

from asv_bench import suite, views


class SparseOverDense(views.GpuViews):
    """The GPU grid: both by flash_dsa, taking turns in one process."""

    view = "ratio"
    unit = "sparse seconds / dense seconds"
    params = (suite.GPU.s_kv, suite.GPU.topk, suite.GPU.head_dims)
    param_names = ("s_kv", "topk", "head_dims")

    def track_ratio(self, cache: suite.Cache, s_kv: int, topk: int, head_dims: str) -> dict[str, Any]:
        """Sparse seconds over dense seconds."""
        return self.samples(cache, s_kv, topk, head_dims)


class SparseOverDenseSmoke(views.CpuViews):
    """The CPU grid."""

    view = "ratio"
    unit = "sparse seconds / dense seconds"
    params = (suite.CPU.s_kv, suite.CPU.topk, suite.CPU.head_dims)
    param_names = ("s_kv", "topk", "head_dims")

    def track_ratio(self, cache: suite.Cache, s_kv: int, topk: int, head_dims: str) -> dict[str, Any]:
        """Sparse seconds over dense seconds."""
        return self.samples(cache, s_kv, topk, head_dims)
