"""Every SIMD level of the cpu target that this machine runs, and what holds for all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numerics import dense_call, sparse_call

pytestmark = pytest.mark.xdist_group("levels")  # in one process: its fixture is made once

LEVELS = ("generic", "avx2", "avx512", "avx512_bf16")
HERE = Path(__file__).parent
ANY_CALL = (
    "import torch, flash_dsa; q = torch.ones(1, 1, 512);"
    "flash_dsa.flash_mla_sparse_fwd(q, q, torch.zeros(1, 1, 1, dtype=torch.int32), 1.0)"
)


def run_at(level: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: the level is chosen once per process."""
    environment = {**os.environ, "FLASH_DSA_CPU_LEVEL": level}
    for name in ("FLASH_DSA_REQUIRE_GPU", "JUNIT_SUMMARY"):  # they are for the run that starts this one
        environment.pop(name, None)
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runnable_levels() -> list[str]:
    """The levels that the library says this CPU runs."""
    refusal = run_at("no_such_level", "-c", ANY_CALL)
    found = re.search(r"RuntimeError: FLASH_DSA_CPU_LEVEL expected .*\((.*)\), got no_such_level", refusal.stderr)
    assert refusal.returncode != 0 and found, refusal.stderr
    return found[1].split(", ")


@pytest.mark.parametrize("level", LEVELS)
def test_level_passes_the_tests_of_both_ops(level: str, runnable_levels: list[str]) -> None:
    if level not in runnable_levels:
        assert "RuntimeError: FLASH_DSA_CPU_LEVEL expected" in run_at(level, "-c", ANY_CALL).stderr
        pytest.skip(f"this CPU does not run {level}")
    if level == runnable_levels[-1]:
        pytest.skip(f"{level} is what the other tests run on here")
    files = [str(HERE / name) for name in ("test_sparse_fwd.py", "test_dense_fwd.py")]
    result = run_at(level, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", *files)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    cpu = torch.device("cpu")
    sparse = sparse_call(cpu, 37, 300, 40, 150, features="sink length", dtype=dtype)
    dense = dense_call(cpu, [20, 90], [100, 150], 4, 2, (192, 128), causal=True, dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append((*sparse.run(), *dense.run()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_attended_may_hold_anything(dtype: torch.dtype, value: float) -> None:
    for h_q, topk in ((5, 3), (64, 97), (17, 200)):
        call = sparse_call(torch.device("cpu"), 4, 60, h_q, topk, features="length", dtype=dtype)
        call.indices[call.indices == 30] = -1
        expected = call.run()
        call.kv[30] = value
        assert all(torch.equal(a, b) for a, b in zip(expected, call.run(), strict=True))
