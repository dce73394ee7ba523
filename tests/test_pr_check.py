"""`make pr-check` for real, on the CPU: a planted slowdown is found, an unchanged pair is never called regressed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ci import results
from ci.verdict import Verdict

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("make")]


class Clone:
    """A clone of this repository's HEAD with this environment."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "clone"
        self.run("git", "clone", "-q", str(ROOT), str(self.root), folder=folder)

    def run(self, *words: str, folder: Path | None = None, expect: int = 0) -> str:
        environment = {**os.environ, "FLASH_DSA_TARGETS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(words, cwd=folder or self.root, env=environment, capture_output=True, text=True)
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def commit(self, message: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        self.run("git", *identity, "commit", "-q", "--allow-empty", "-am", message)

    def check(self, base: str, expect: tuple[int, ...]) -> results.Verdicts:
        import sys

        done = subprocess.run(
            [sys.executable, "-m", "ci", "pr", "--base", base],
            cwd=self.root,
            env={**os.environ, "FLASH_DSA_TARGETS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode in expect, done.stdout[-3000:] + done.stderr[-3000:]
        newest = max((self.root / "build" / "pr-check").iterdir(), key=lambda path: path.stat().st_mtime)
        return results.read_verdicts(newest / "verdicts.json")


def slower(source: str, call: str) -> str:
    """The source with `call` followed by a wait of half its time."""
    assert call in source
    spin = (
        "  const auto begun = std::chrono::steady_clock::now();\n"
        f"{call}"
        "  const auto spent = std::chrono::steady_clock::now() - begun;\n"
        "  while (std::chrono::steady_clock::now() - begun < spent * 3 / 2) {\n  }\n"
    )
    return "#include <chrono>\n" + source.replace(call, spin)


def test_a_planted_slowdown_is_found_and_an_unchanged_pair_is_quiet(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    clone.commit("nothing changed")
    quiet = clone.check("HEAD~1", expect=(0, 2))
    assert {case.verdict for case in quiet.cases} <= {Verdict.UNCHANGED, Verdict.INCONCLUSIVE} and quiet.cases
    for op in ("sparse_fwd", "dense_fwd"):
        path = clone.root / "kernels" / op / "cpu.cpp"
        (call,) = (line + "\n" for line in path.read_text().splitlines() if line.startswith("  for_each_tile("))
        path.write_text(slower(path.read_text(), call))
    clone.commit("half as fast again")
    found = clone.check("HEAD~1", expect=(1,))
    assert found.verdict is Verdict.REGRESSED
    ratios = [case.ratio for case in found.cases if case.verdict is Verdict.REGRESSED]
    assert len(ratios) >= len(found.cases) / 2 and all(ratio and 1.2 < ratio < 2 for ratio in ratios)
