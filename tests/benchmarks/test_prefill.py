"""What a pull request is measured by: flash_dsa on the grid of this machine, burst by burst."""

from __future__ import annotations

from typing import Any

from asv_bench.cases import Case


def test_prefill(case: Case, live: Any) -> None:
    live.measure(case)
