"""compute-sanitizer over every compiled kernel instance."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("every_instance.py")


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "synccheck", "racecheck"])
def test_no_errors(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(sanitizer, os.X_OK):
        pytest.skip("compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", "--kernel-name", "kernel_substring=flash_dsa"]
    # The caching allocator would hide an access past the end of a tensor in the rest of its block.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run([*command, sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "every instance ran" in result.stdout
    clean = r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards displayed \(0 errors, 0 warnings\)"
    assert re.search(clean, result.stdout), result.stdout[-2000:]
