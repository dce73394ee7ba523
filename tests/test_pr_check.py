"""`make pr-check` for real, on the CPU: a planted slowdown is found, an unchanged pair is never called regressed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from tree import HANDED_DOWN

from ci import comment, drill, policy, results
from ci.verdict import Verdict

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "bench-pr.yml"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("make")]


def environment(**more: str) -> dict[str, str]:
    """For a build and a check without a GPU."""
    known = {name: value for name, value in os.environ.items() if name not in HANDED_DOWN}
    return {**known, "FLASH_DSA_TARGETS": "cpu", "CUDA_VISIBLE_DEVICES": "", **more}


class Clone:
    """A clone of this repository's HEAD with this environment."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "clone"
        self.run("git", "clone", "-q", str(ROOT), str(self.root), folder=folder)

    def run(self, *words: str, folder: Path | None = None, expect: int = 0) -> str:
        done = subprocess.run(words, cwd=folder or self.root, env=environment(), capture_output=True, text=True)
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def commit(self, message: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        self.run("git", *identity, "commit", "-q", "--allow-empty", "-am", message)

    def check(self, base: str, expect: tuple[int, ...], *more: str) -> results.Verdicts:
        done = subprocess.run(
            [sys.executable, "-m", "ci", "pr", "--base", base, *more],
            cwd=self.root,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode in expect, done.stdout[-3000:] + done.stderr[-3000:]
        return results.read_verdicts(self.newest / "verdicts.json")

    def check_as_the_workflow(self, base: str) -> results.Verdicts:
        """By the command of `bench-pr`, on the environment that runs this test. make's status for any is 2."""
        steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["measure"]["steps"]
        (command,) = (step["run"] for step in steps if "pr-check" in step.get("run", ""))
        (self.root / ".venv").symlink_to(sys.prefix)
        done = subprocess.run(
            ["bash", "-c", f"{command} --old-file=.venv/ready"],
            cwd=self.root,
            env=environment(BASE=base),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
        return results.read_verdicts(self.sides / "verdicts.json")

    @property
    def sides(self) -> Path:
        """What the workflow uploads."""
        return self.root / "build" / "pr-check" / "sides"

    @property
    def newest(self) -> Path:
        """The folder of the newest check."""
        found = (self.root / "build" / "pr-check").glob("*/verdicts.json")
        return max(found, key=lambda path: path.stat().st_mtime).parent


HEADER = "void for_each_tile(int64_t tiles, const std::function<void(int64_t, int64_t, CpuScratch&)>& body)"
PLANTED = """
%s {
  const auto begun = std::chrono::steady_clock::now();
  for_each_tile_of_before(tiles, body);
  const auto spent = std::chrono::steady_clock::now() - begun;
  while (std::chrono::steady_clock::now() - begun < spent * 3 / 2) {
  }
}
"""


def slower(source: str) -> str:
    """The driver of the cpu kernels, followed by a wait of half its time."""
    assert HEADER in source
    source = source.replace(HEADER, HEADER.replace("for_each_tile", "for_each_tile_of_before"))
    end = source.rindex("}  // namespace flash_dsa")
    return "#include <chrono>\n" + source[:end] + PLANTED % HEADER + source[end:]


def test_a_planted_slowdown_is_found_and_an_unchanged_pair_is_quiet(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    clone.commit("nothing changed")
    same = clone.check("HEAD~1", (0,))
    assert same.cases and all(case.same_code and case.ratio is None for case in same.cases)
    quiet = clone.check("HEAD~1", (0, 2), "--measure-same-code")
    assert {case.verdict for case in quiet.cases} <= {Verdict.UNCHANGED, Verdict.INCONCLUSIVE}
    assert all(case.ratio for case in quiet.cases)
    driver = clone.root / "kernels" / "cpu.cpp"
    driver.write_text(slower(driver.read_text()))
    clone.commit("half as fast again")
    assert clone.check("HEAD~1", (1,)).verdict is Verdict.REGRESSED
    found = clone.check_as_the_workflow("HEAD~1")
    assert found.verdict is Verdict.REGRESSED
    ratios = [case.ratio for case in found.cases if case.verdict is Verdict.REGRESSED]
    assert len(ratios) >= len(found.cases) / 2 and all(ratio and 1.2 < ratio < 2 for ratio in ratios)
    said = comment_on(clone.sides, found)
    assert "**Regressed: of " in said and "sparse_fwd" in said and "### Reproduce" in said


def comment_on(folder: Path, found: results.Verdicts) -> str:
    """What a pull request is told, of the archive that the workflow would upload."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in comment.MEMBERS:
            archive.write(folder / name, name)
    event = comment.Event("owner/flash_dsa", 1, found.head, "guest/fork", "slower")
    pull = comment.PullRequest(1, found.base, (), True)
    return comment.render(event, pull, comment.read_archive(content.getvalue()), policy.load())


def test_a_drill_finds_what_it_plants(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    said = clone.run(
        sys.executable, "-m", "ci", "drill", "--plants", "nothing,delay:0.6", "--record", str(tmp_path / "drills.jsonl")
    )
    quiet, found = drill.count(drill.read(tmp_path / "drills.jsonl"))
    assert quiet.plant == "nothing" and quiet.flagged == 0 and quiet.judged > 0
    assert found.plant == "delay:0.6" and found.flagged >= found.judged / 2, said
