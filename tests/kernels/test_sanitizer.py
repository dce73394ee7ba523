"""compute-sanitizer over every compiled kernel instance, and over calls in which it must find something."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def sanitize(tool: str, *script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder under a tool, which looks at our kernels alone."""
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(sanitizer, os.X_OK):
        pytest.skip("compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", "--print-limit", "20"]
    command += ["--kernel-name", "kernel_substring=flash_dsa"]
    # The caching allocator would hide an access past the end of a tensor in the rest of its block.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    name, *arguments = script
    return subprocess.run(
        [*command, sys.executable, str(HERE / name), *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "synccheck", "racecheck"])
def test_no_errors(tool: str) -> None:
    result = sanitize(tool, "every_instance.py")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "every instance ran" in result.stdout
    clean = r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards displayed \(0 errors, 0 warnings\)"
    assert re.search(clean, result.stdout), result.stdout[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        ("sparse_kv", "sparse_fwd_kernel"),
        ("dense_narrow_v", "dense_narrow_kernel"),
        ("dense_wide_k", "dense_wide_kernel"),
    ],
)
def test_memcheck_reports_a_read_past_the_end(case: str, kernel: str) -> None:
    """The same command, so that no errors above means that it looked: at our kernels, at each tensor's own end."""
    result = sanitize("memcheck", "past_the_end.py", case)
    shown = result.stdout[:4000] + result.stderr[-2000:]
    assert "storage cut off, now the kernel" in result.stdout, shown
    assert result.returncode != 0, shown
    # A report names the kernel on one of the lines after its first; it ends the CUDA context, and so the script.
    report = re.search(rf"Invalid __global__ read of size.*\n(?:=+ .*\n){{0,3}}?=+ .*{kernel}", result.stdout)
    assert report, shown
    assert re.search(r"ERROR SUMMARY: [1-9]\d* error", result.stdout), shown
