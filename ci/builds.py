"""Builds of commits in trees of their own. Nothing of the working tree is read or written but `build/`."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class CheckError(RuntimeError):
    """What was asked for cannot be made at all; exit code 3."""


def commit_of(root: Path, revision: str) -> str:
    """The full hash of a commit.

    Raises:
        CheckError: when the revision is none, or this is no repository.
    """
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CheckError(f"revision: expected a commit of {root}, got {revision!r}")
    return done.stdout.strip()


@contextmanager
def alone(path: Path, message: str) -> Iterator[None]:
    """Holds a lock, and says so when it has to wait for it."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{message}: waiting for it to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def export(root: Path, commit: str, folder: Path, names: tuple[str, ...] = ()) -> None:
    """The files of a commit, without touching the working tree, the index or git's list of worktrees."""
    there = subprocess.run(
        ["git", "-C", str(root), "ls-tree", "--name-only", commit, *names], capture_output=True, text=True, check=True
    ).stdout.split()
    archive = subprocess.run(
        ["git", "-C", str(root), "archive", commit, "--", *(there if names else ())], capture_output=True, check=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


def install(source: Path, site: Path, log: Path, environment: Mapping[str, str]) -> bool:
    """Compiles a tree into a folder, by this interpreter's pip.

    Args:
        source: the tree. site: where the package goes; made anew. log: of pip. environment: beside this process's.
    Returns:
        Whether it was built.
    """
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
    command += ["--no-deps", "--target", str(site), str(source)]
    everything = {**os.environ, **environment}
    everything.setdefault("FLASH_DSA_TARGETS", "native")
    with log.open("wb") as lines:
        return subprocess.run(command, env=everything, stdout=lines, stderr=subprocess.STDOUT).returncode == 0


def tail(log: Path, most: int = 2000) -> str:
    """The end of a log, or why it cannot be read."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-most:].strip()
    except OSError as error:
        return str(error)
