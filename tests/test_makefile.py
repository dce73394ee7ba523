"""The Makefile by itself: what it refuses, and in which order it does things. A stub stands for the environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tree import project_files

pytestmark = pytest.mark.xdist_group("make")  # one after the other: each runs make

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789" * 4
# Notes how it was called; `asv run` waits while there is a file `wait` beside it.
STUB = """#!/bin/sh
echo "$@" >> .venv/called
case "$*" in
  "-m asv run"*)
    mkdir -p "$(dirname "$FLASH_DSA_TELEMETRY")" && echo '{"error": "failed: planted"}' > "$FLASH_DSA_TELEMETRY"
    while [ -e .venv/wait ]; do sleep 0.05; done ;;
esac
"""
# What a make that runs these tests hands down.
MAKE = (
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "MACHINE",
    "FLASH_DSA_COMMIT",
    "PYTHON",
    "TORCH",
    "ASV_VENV",
)


@dataclass
class Tree:
    root: Path
    variables: dict[str, str]
    made: tuple[str, ...] = ()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if name not in MAKE} | self.variables
        return subprocess.Popen(
            ["make", *[f"--old-file={name}" for name in self.made], *arguments],
            cwd=self.root,
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def make(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def called(self) -> list[str]:
        log = self.root / ".venv" / "called"
        return log.read_text().splitlines() if log.exists() else []

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=self.root, text=True, check=True, capture_output=True).stdout.strip()

    def commit(self) -> str:
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a commit")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def new_tree(tmp_path: Path) -> Callable[[str], Tree]:
    def make(name: str) -> Tree:
        root = tmp_path / name
        for folder in ("kernels", "flash_dsa", ".venv/bin"):
            (root / folder).mkdir(parents=True)
        for file in ("Makefile", ".gitignore", "requirements-dev.txt"):
            shutil.copy2(ROOT / file, root / file)
        for made in ("flash_dsa/libflash_dsa.so", ".venv/ready", "setup.py", "pyproject.toml"):
            (root / made).touch()
        (root / ".venv" / "bin" / "python").write_text(STUB)
        (root / ".venv" / "bin" / "python").chmod(0o755)
        return Tree(root, {}, (".venv/ready", "flash_dsa/libflash_dsa.so"))

    return make


@pytest.fixture
def tree(new_tree: Callable[[str], Tree]) -> Tree:
    return new_tree("tree")


def test_bench_without_a_commit_is_refused_before_anything_is_done(tree: Tree) -> None:
    for _ in range(2):  # neither without git nor in a repository without a commit
        status, said = tree.make("bench")
        assert status != 0 and "no git checkout with one: FLASH_DSA_COMMIT can name it" in said
        assert tree.called() == []
        tree.git("init", "--quiet")


def test_a_repository_around_the_tree_is_not_its_own(new_tree: Callable[[str], Tree]) -> None:
    outer, inner = new_tree("outer"), new_tree("outer/inner")
    outer.commit()
    status, said = inner.make("bench")
    assert status != 0 and "FLASH_DSA_COMMIT can name it" in said


def test_a_copy_without_git_is_swept_under_the_commit_it_is_told(tree: Tree) -> None:
    status, said = tree.make("bench", f"FLASH_DSA_COMMIT={COMMIT}", "MACHINE=local-copy")
    assert status == 0, said
    assert tree.called() == ["-m asv_bench sweep --machine local-copy"]
    assert "no asv run: asv keeps its history by git" in said and "sweeps/local-copy/report.html" in said


def test_a_commit_must_be_a_whole_one_and_head(tree: Tree) -> None:
    for wrong in ("HEAD", COMMIT[:39], COMMIT + "0", "'"):
        status, said = tree.make("bench", f"FLASH_DSA_COMMIT={wrong}")
        assert status != 0 and f"FLASH_DSA_COMMIT expected the 40 hexadecimal digits of a commit, got {wrong}" in said
    head = tree.commit()
    status, said = tree.make("bench", f"FLASH_DSA_COMMIT={COMMIT}")
    assert status != 0 and f"FLASH_DSA_COMMIT expected HEAD, {head}, got {COMMIT}" in said
    assert tree.called() == []


def test_a_machine_name_that_git_would_neither_track_nor_ignore_is_refused(tree: Tree) -> None:
    tree.commit()
    for wrong in ("laptop", "h100", "local-", "locale-x"):
        status, said = tree.make("bench", f"MACHINE={wrong}")
        expected = "MACHINE expected local-* or one of FIXED_MACHINES (cpu-x86 h100-sxm h200-sxm), got"
        assert status != 0 and f"{expected} {wrong}\n" in said
    assert tree.called() == []


def test_a_fixed_machine_refuses_a_changed_tree_before_anything_is_done(tree: Tree) -> None:
    tree.commit()
    (tree.root / "kernels" / "new.cu").touch()
    status, said = tree.make("bench", "MACHINE=cpu-x86", f"ASV_VENV={tree.root.parent}/link")
    assert status != 0 and "cpu-x86 keeps a history: commit or stash first" in said
    assert tree.called() == []
    (tree.root / "kernels" / "new.cu").unlink()
    status, said = tree.make("bench", "MACHINE=cpu-x86", f"ASV_VENV={tree.root.parent}/link")
    assert status == 0, said


def test_every_tracked_machine_is_a_fixed_one() -> None:
    listed = re.search(r"^FIXED_MACHINES := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert listed
    folders = [path.parts for path in (file.relative_to(ROOT) for file in project_files())]
    tracked = {
        parts[2] for parts in folders if parts[:2] in (("asv_bench", "sweeps"), ("asv_bench", "results")) and parts[3:]
    }
    assert tracked <= set(listed[1].split())


def test_the_default_machine_is_the_one_the_sweep_would_choose(tree: Tree) -> None:
    from asv_bench import telemetry

    tree.commit()
    assert tree.make("bench")[0] == 0
    assert tree.called()[0] == f"-m asv_bench sweep --machine {telemetry.machine_name()}"


def test_history_needs_a_range_and_hands_it_on(tree: Tree) -> None:
    tree.commit()
    status, said = tree.make("history")
    assert status != 0 and "make history: RANGE expected commits" in said and tree.called() == []
    status, said = tree.make("history", "RANGE=a..b", "MACHINE=local-box", "HISTORY_OPTIONS=--build-only")
    assert status == 0, said
    python = f"{tree.root}/.venv/bin/python"
    assert tree.called()[-1] == f"-m ci history a..b --machine local-box --python {python} --build-only"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("machine", ["cpu-x86", "local-box"])
def test_one_bench_at_a_time_where_they_would_share(new_tree: Callable[[str], Tree], machine: str) -> None:
    """Two clones and the link of a fixed machine; one clone twice and its results."""
    first = new_tree("first")
    second = new_tree("second") if machine == "cpu-x86" else first
    link = first.root.parent / "link"
    options = [f"MACHINE={machine}", *([f"ASV_VENV={link}"] if machine == "cpu-x86" else [])]
    for tree in (first, second):
        if not (tree.root / ".git").exists():
            tree.commit()
    (first.root / ".venv" / "wait").touch()
    running = first.start("bench", *options)
    try:
        wait_for(lambda: any(line.startswith("-m asv run") for line in first.called()))
        before = first.called()
        status, said = second.make("bench", *options)
        assert status != 0 and "make bench: another bench is running" in said
        assert first.called() == before and (second is first or second.called() == [])
        assert machine != "cpu-x86" or link.resolve() == first.root / ".venv"
    finally:
        (first.root / ".venv" / "wait").unlink()
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert second.make("bench", *options)[0] == 0
    assert machine != "cpu-x86" or link.resolve() == second.root / ".venv"


def test_verbs_do_not_run_beside_each_other(tree: Tree) -> None:
    """Tests while a bench measures would be measured too."""
    tree.commit()
    (tree.root / ".venv" / "wait").touch()
    running = tree.start("-j2", "bench", "test", "MACHINE=local-box")
    try:
        wait_for(lambda: any(line.startswith("-m asv run") for line in tree.called()))
        time.sleep(0.3)
        assert not any(line.startswith("-m pytest") for line in tree.called())
    finally:
        (tree.root / ".venv" / "wait").unlink()
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert tree.called()[-1].startswith("-m pytest")


def test_a_dry_run_measures_nothing(tree: Tree) -> None:
    tree.commit()
    status, said = tree.make("--dry-run", "bench", "MACHINE=local-box")
    assert status == 0 and "-m asv run" in said and tree.called() == []


def test_a_path_with_a_space_is_refused(new_tree: Callable[[str], Tree]) -> None:
    status, said = new_tree("a tree").make("help")
    assert status != 0 and "path has a space in it" in said


def test_what_a_killed_sweep_leaves_is_ignored_by_git(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    from asv_bench import record

    folder = tree.root / "asv_bench" / "sweeps" / "cpu-x86"
    folder.mkdir(parents=True)
    (folder / "sweep.json").touch()
    tree.commit()

    def killed(*paths: object) -> None:
        raise SystemExit("killed")

    monkeypatch.setattr(record.os, "replace", killed)
    monkeypatch.setattr(record.os, "unlink", lambda path: None)
    written = ["sweep.json", "sweep.samples.jsonl", "report.html", ".sweep.running", ".writable"]
    for path in [*(folder / name for name in written), tree.root / "README.md"]:
        with pytest.raises(SystemExit):
            record.write_atomically(path, "half")
    (folder / ".sweep.running").touch()
    assert len(list(folder.iterdir())) == 2 + len(written)
    assert tree.git("status", "--porcelain", "--untracked-files=all") == ""
    (folder / "sweep.csv").touch()
    assert tree.git("status", "--porcelain", "--untracked-files=all") != ""


@pytest.fixture
def bare(tmp_path: Path) -> Tree:
    """A tree without an environment, whose one requirement is torch."""
    root = tmp_path / "bare"
    root.mkdir()
    shutil.copy2(ROOT / "Makefile", root)
    (root / "requirements-dev.txt").write_text("torch>=2.10\n")
    return Tree(root, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""})


def python_with_torch(folder: Path, version: str) -> Path:
    """An interpreter that imports a torch of ours, which pip takes for installed."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "torch.py").write_text(f"__version__ = {version!r}\n")
    facts = packages / f"torch-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return folder / "bin" / "python"


def torch_of(environment: Path) -> tuple[str, Path]:
    code = "import torch; print(torch.__version__, torch.__file__)"
    said = subprocess.run([environment / "bin" / "python", "-c", code], text=True, check=True, capture_output=True)
    version, file = said.stdout.split()
    return version, Path(file)


def test_a_torch_that_is_installed_is_used_and_not_replaced(bare: Tree, tmp_path: Path) -> None:
    python = python_with_torch(tmp_path / "base", "2.99.1+here")
    status, said = bare.make("env", f"PYTHON={python}")
    assert status == 0 and f"using the torch of {python}" in said, said
    version, file = torch_of(bare.root / ".venv")
    assert version == "2.99.1+here" and file.is_relative_to(tmp_path / "base")
    assert not list((bare.root / ".venv").glob("lib/python*/site-packages/torch*"))
    assert (bare.root / ".venv" / "constraints.txt").read_text() == "torch==2.99.1+here\n"
    # A requirement that does not agree with it is an error; pip does not help itself to another torch.
    (bare.root / "requirements-dev.txt").write_text("torch>=3\n")
    os.utime(bare.root / "requirements-dev.txt", (time.time() + 5, time.time() + 5))
    status, said = bare.make("env", f"PYTHON={python}")
    assert status != 0 and "torch" in said


def test_an_environment_left_half_made_is_made_anew(bare: Tree, tmp_path: Path) -> None:
    old, new = (python_with_torch(tmp_path / version, version) for version in ("2.9.1", "2.99.1"))
    (bare.root / ".venv").mkdir()
    (bare.root / ".venv" / "mine").touch()
    status, said = bare.make("env", f"PYTHON={old}", "TORCH=torch==2.13.0")
    assert status != 0 and "installing torch==2.13.0" in said, "a torch that is too old is not used"
    assert (bare.root / ".venv" / "mine").exists(), "nor is cleared what make did not begin"
    assert not (bare.root / ".venv" / "ready").exists()
    (pip,) = (bare.root / ".venv").glob("lib/python*/site-packages/pip/__init__.py")
    pip.write_text("raise ImportError('half a pip')")
    status, said = bare.make("env", f"PYTHON={new}")
    assert status == 0, said
    assert torch_of(bare.root / ".venv")[0] == "2.99.1"
    assert (bare.root / ".venv" / "ready").exists() and not (bare.root / ".venv" / "unfinished").exists()


def test_an_environment_that_is_a_link_is_left_as_it_is(bare: Tree, tmp_path: Path) -> None:
    """It is another clone's: making it anew would take it from under that one."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "unfinished").touch()
    (bare.root / ".venv").symlink_to(tmp_path / "other")
    status, said = bare.make("env", f"PYTHON={python_with_torch(tmp_path / 'base', '2.99.1')}")
    assert status != 0 and "is a link to an environment" in said, said
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["unfinished"]
