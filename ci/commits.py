"""Commits as git knows them: their order, which their dates do not tell, and what pages say of them.

asv dates a commit by its author; one that was rebased or picked onto a later one keeps that date, so by it commits
would stand before their own parents.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

Commits = Mapping[str, tuple[float, str]]  # date in seconds and first line of the message, by commit, parents first


def of(repository: Path) -> Commits:
    """All commits of a repository in the order in which asv draws them; none where it is no repository."""
    git = shutil.which("git")
    if git is None:
        return {}
    command = [git, "-C", str(repository), "log", "--all", "HEAD", "--date-order", "--reverse", "-z"]
    done = subprocess.run([*command, "--format=%H %ct %s"], capture_output=True)
    lines = done.stdout.decode(errors="replace").split("\0") if done.returncode == 0 else []
    parted = [line.split(" ", 2) for line in lines if line]
    return {commit: (float(date), "".join(rest)) for commit, date, *rest in parted}
