"""Steps of the workflows by hand, through make: what runners measured is kept, judged and said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from judge.test_comment import HEAD, GitHub
from judge.test_comment import github as github  # a fixture
from judge.test_history import write

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = "sparse_prefill.SparsePrefill.track_seconds"
pytestmark = pytest.mark.xdist_group("make")


class Clone:
    """A repository with this tree's Makefile and judge, or a clone of one, and this interpreter."""

    def __init__(self, root: Path, origin: Path | None = None) -> None:
        self.root = root
        if origin:
            subprocess.run(["git", "clone", "--quiet", str(origin), str(root)], check=True)
        (root / ".venv" / "bin").mkdir(parents=True)
        (root / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (root / ".venv" / "bin" / "python").chmod(0o755)
        (root / ".venv" / "ready").touch()
        if origin:
            return
        for name in ("Makefile", ".gitignore", "requirements-dev.txt", "asv.conf.json"):
            shutil.copy2(ROOT / name, root / name)
        shutil.copytree(ROOT / "ci", root / "ci", ignore=shutil.ignore_patterns("__pycache__"))
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def make(self, *arguments: str) -> str:
        handed_down = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MACHINE", "FLASH_DSA_COMMIT")
        environment = {name: value for name, value in os.environ.items() if name not in handed_down}
        command = ["make", "--old-file=.venv/ready", f"PYTHON={sys.executable}", *arguments]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def test_a_night(tmp_path: Path) -> None:
    """Twelve commits are measured, the last six of them slower: an issue says so, and a dashboard made elsewhere."""
    origin = tmp_path / "origin"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(origin)], check=True)
    runner = Clone(tmp_path / "runner")
    runner.git("remote", "add", "origin", str(origin))
    (runner.root / ".git" / "info" / "exclude").write_text("asv_bench/results/box/\n")
    tree = runner.root / "asv_bench" / "results"
    tree.mkdir(parents=True)
    grid = {"param_names": ["s_kv", "topk", "implementation"], "params": [["8192"], ["2048"], ["'flash_dsa'"]]}
    known = {"name": BENCHMARK, "code": "", "type": "track", "unit": "seconds", "version": "v", **grid}
    (tree / "benchmarks.json").write_text(json.dumps({BENCHMARK: known, "version": 2}))
    commits = []
    for number in range(12):
        commits.append(runner.commit(f"commit {number}"))
        seconds = (7e-3 if number < 6 else 9e-3) * (1 + 1e-4 * (number % 3))
        row = [[seconds], grid["params"], "v", 0, 1.0, [seconds * 0.999], [seconds * 1.001]]
        write(tree, commits[-1], number, {BENCHMARK: row}, "box")
        (tree / "box" / f"{commits[-1]}.telemetry.jsonl").write_text('{"machine": {"driver": "580.1"}}\n')
        (tree / "box" / "machine.json").write_text('{"machine": "box", "version": 1}')
        assert "3 files" in runner.make("measured", "MACHINE=box")
        runner.make("keep", "FROM=build/measured", "PUSH=1")
    runner.git("push", "--quiet", "origin", "HEAD")
    elsewhere = Clone(tmp_path / "elsewhere", origin)
    said = elsewhere.make("records", "alerts", "issues", "ISSUES_OPTIONS=--show")
    assert "25 files from the branch records" in said
    assert f"# Regressed on box since {commits[6][:12]}: sparse_fwd" in said
    assert f"make pr-check BASE={commits[5]}" in said and "driver `580.1`" in said
    assert elsewhere.git("status", "--porcelain", "--", "ci", "Makefile") == ""
    elsewhere.make("records", "publish", "PAGES_OPTIONS=--may-lack-libraries")
    html = elsewhere.root / ".asv" / "html"
    (shown,) = (json.loads(path.read_text()) for path in (html / "dashboard" / "data" / "commits").iterdir())
    assert (
        shown["hash"] == commits
        and shown["subject"][6] == "commit 6"
        and "Dashboard" in (html / "index.html").read_text()
    )


def test_a_comment(github: GitHub) -> None:
    event = github.prepare()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "comment", f"PYTHON={sys.executable}", f"COMMENT_OPTIONS=--event {event} --show"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"## Performance of `{HEAD[:12]}`" in done.stdout and "**Regressed: of 1 case 1 slower.**" in done.stdout
