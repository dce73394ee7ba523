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
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", "--print-limit", "1000"]
    command += ["--kernel-name", "kernel_substring=flash_dsa"]
    # The caching allocator would hide an access past the end of a tensor in the rest of its block.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    name, *arguments = script
    return subprocess.run(
        [*command, sys.executable, str(HERE / name), *arguments], env=environment, capture_output=True, text=True
    )


# What racecheck reports of the kernels of SM90 where d_v is 512, each with the barriers that order it. There one lane
# arrives for a warp that has written or read and has synchronised itself, which racecheck seems not to follow;
# docs/kernels/dense_fwd_sm90.md goes through them.
ORDERED = {
    ("Scores::finish", "Values::factor"): "p full, p empty",
    ("Scores::finish", "Values::next"): "p full, p empty",
    ("Scores::softmax", "Values::next"): "p full, p empty",
    ("Scores::move_references", "Values::factor"): "p full, p empty",
    ("DenseProducer::clear", "load_matrix_x4"): "ring full, ring empty",
    ("DenseProducer::send", "Scores::mask"): "message full, message empty",
}


def function(symbol: str) -> str:
    """`Scores::finish` of `void flash_dsa::sm90::Scores<flash_dsa::sm90::Plan<(int)576>>::finish(unsigned int)`."""
    while (shorter := re.sub(r"<[^<>]*>", "", symbol)) != symbol:
        symbol = shorter
    return re.sub(r"^flash_dsa::(sm\d+::)?", "", symbol.split("(")[0].split()[-1])


def races(output: str) -> set[tuple[str, str]]:
    """Who writes and who reads (or writes, too), of each report."""
    found = set()
    for report in re.findall(r"Race reported between .*\n(?:=+ +and .*\n)+", output):
        accesses = [(kind, function(name)) for kind, name in re.findall(r"(Write|Read) access at (.*?)\+0x", report)]
        writers = [name for kind, name in accesses if kind == "Write"]
        others = [name for kind, name in accesses if kind == "Read"] or writers[1:]
        found |= {(writer, other) for writer in writers for other in others}
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "synccheck"])
def test_no_errors(tool: str) -> None:
    result = sanitize(tool, "every_instance.py")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "every instance ran" in result.stdout
    assert "ERROR SUMMARY: 0 errors" in result.stdout, result.stdout[-2000:]


@pytest.mark.gpu
def test_no_races_but_those_that_barriers_order() -> None:
    result = sanitize("racecheck", "every_instance.py")
    assert "every instance ran" in result.stdout, result.stdout[-4000:] + result.stderr[-2000:]
    summary = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, 0 warnings\)", result.stdout)
    assert summary and summary[1] == summary[2], result.stdout[-2000:]
    assert result.stdout.count("Race reported between") == int(summary[1]), "not all are shown"
    assert races(result.stdout) <= set(ORDERED), sorted(races(result.stdout) - set(ORDERED))


def test_reports_of_races_are_read() -> None:
    values = "flash_dsa::sm90::Values<flash_dsa::sm90::Plan<(int)576>, (int)0>"
    output = (
        "========= Error: Race reported between Write access at flash_dsa::sm90::Scores<flash_dsa::sm90::DensePlan<"
        "(bool)0, (int)2>>::finish(unsigned int)+0xe900 in wide_sm90.cuh:427\n"
        f"=========     and Read access at {values}::factor(int) const+0x54c0 in wide_sm90.cuh:494 [280 hazards]\n"
        "=========     and Read access at flash_dsa::sm80::load_matrix_x4(unsigned int (&)[4], unsigned int)+0xb980 in "
        "sm80.cuh:1 [12 hazards]\n"
        "========= \n"
        "========= Error: Race reported between Read access at void flash_dsa::kernel(int)+0x10 in a.cuh:1\n"
        "=========     and Write access at flash_dsa::sm90::send(unsigned int)+0x20 in a.cuh:2 [4 hazards]\n"
    )
    finish = "Scores::finish"
    assert races(output) == {(finish, "Values::factor"), (finish, "load_matrix_x4"), ("send", "kernel")}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("case", "target", "kernel"),
    [
        ("sparse_kv", None, "sparse_fwd_kernel"),
        ("sparse_kv", "sm80", "sparse_fwd_kernel"),
        # Copies by TMA, as dense_fwd of SM90 has them, end where their tensor maps end, and memcheck does not see them.
        ("dense_narrow_v", "sm80", "dense_narrow_kernel"),
        ("dense_wide_k", "sm80", "dense_wide_kernel"),
    ],
)
def test_memcheck_reports_a_read_past_the_end(
    case: str, target: str | None, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command, so that no errors above means that it looked: at our kernels, at each tensor's own end."""
    if target:
        monkeypatch.setenv("FLASH_DSA_TEST_TARGET", target)
    result = sanitize("memcheck", "past_the_end.py", case)
    shown = result.stdout[:4000] + result.stderr[-2000:]
    assert "storage cut off, now the kernel" in result.stdout, shown
    assert result.returncode != 0, shown
    # A report names the function, and the kernel it is inlined in; it ends the CUDA context, and so the script.
    report = re.search(rf"Invalid __global__ read of size.*\n(?:=+ {{2,}}.*\n)*?=+ {{2,}}.*{kernel}", result.stdout)
    assert report, shown
    assert re.search(r"ERROR SUMMARY: [1-9]\d* error", result.stdout), shown
