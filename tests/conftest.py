"""GPU tests, side by side or alone, and the summary of a run.

A test marked `gpu` is skipped with the reason where no GPU is usable. FLASH_DSA_REQUIRE_GPU=1 (`make test GPU=1`) turns
every skip of such a test, and their absence, into a failure. JUNIT_SUMMARY names a markdown file for the summary.
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

GPU_REQUIRED = bool(os.environ.get("FLASH_DSA_REQUIRE_GPU"))
ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


@functools.cache
def missing_gpu() -> str | None:
    """Why GPU tests cannot run here, or None."""
    try:
        import torch
    except ImportError as error:
        return f"torch is not importable: {error}"
    if not torch.cuda.is_available():
        return f"no GPU that torch {torch.__version__} can use"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and missing_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=str(missing_gpu())))
    elif gpu_items:
        # One GPU is no reason to fail `make test GPU=1`: what needs two is left out, and counted as deselected.
        import torch

        needs_two = [item for item in items if item.get_closest_marker("two_gpus")]
        if needs_two and torch.cuda.device_count() < 2:
            items[:] = [item for item in items if item not in needs_two]
            config.hook.pytest_deselected(items=needs_two)


@pytest.fixture(autouse=True)
def turn_on_the_gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """GPU tests of several processes share the GPU, except those that take times on it."""
    if not request.node.get_closest_marker("gpu"):
        yield
        return
    folder = tmp_path_factory.getbasetemp()
    # With xdist every worker has a folder of its own in that of the run.
    folder = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    with (folder / "gpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if GPU_REQUIRED and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"a GPU test must not be skipped here: {reason_of(report)}"
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    if GPU_REQUIRED and not any(item.get_closest_marker("gpu") for item in session.items):
        pytest.exit("GPU tests are required, but none was collected", returncode=1)


def reason_of(report: pytest.TestReport) -> str:
    longrepr: Any = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")


def skip_reasons(terminalreporter: pytest.TerminalReporter) -> dict[str, int]:
    return dict(sorted(Counter(reason_of(report) for report in terminalreporter.getreports("skipped")).items()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, number in skip_reasons(terminalreporter).items():
        terminalreporter.write_line(f"skipped {number}: {reason}")
    path = os.environ.get("JUNIT_SUMMARY")
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(summary(terminalreporter))
        terminalreporter.write_line(f"summary: {path}")


def summary(terminalreporter: pytest.TerminalReporter) -> str:
    """The run as markdown: counts in all and by folder, where it ran, what did not pass and why."""
    reports = {outcome: terminalreporter.getreports(outcome) for outcome in OUTCOMES}
    counts = {outcome: len(reports[outcome]) for outcome in OUTCOMES if reports[outcome]}
    folders = Counter((r.nodeid.split("::")[0].rpartition("/")[0], o) for o in counts for r in reports[o])
    lines = [f"# Tests: {', '.join(f'{n} {outcome}' for outcome, n in counts.items()) or 'none ran'}", ""]
    lines += [f"- {name}: {value}" for name, value in surroundings().items()]
    lines += ["", f"| folder | {' | '.join(counts)} |", "|---|" + "---|" * len(counts)]
    for folder in sorted({folder for folder, _ in folders}):
        lines.append(f"| {folder} | {' | '.join(str(folders[folder, outcome]) for outcome in counts)} |")
    lines += ["", *(f"- skipped {number}: {reason}" for reason, number in skip_reasons(terminalreporter).items())]
    lines += [f"- {outcome}: {report.nodeid}" for outcome in ("failed", "error") for report in reports[outcome]]
    return "\n".join(lines) + "\n"


def surroundings() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=ROOT, text=True, capture_output=True
    )
    found = {
        "commit": commit.stdout.strip() or "none",
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    try:
        import torch

        found["torch"] = torch.__version__
        found["gpu"] = missing_gpu() or torch.cuda.get_device_name()
        import flash_dsa

        found["flash_dsa"] = f"{flash_dsa.__version__}, targets {flash_dsa.compiled_targets()}"
    except ImportError as error:
        found["not importable"] = str(error).splitlines()[0]
    return found
