"""The files of the project, as git would list them, and what it makes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a make that runs tests hands down, and does not hold for a clone.
HANDED_DOWN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "FLASH_DSA_COMMIT")


def made(pattern: str) -> Path:
    """The one file of that name in dist/, where `make wheel` leaves what it makes."""
    found = sorted((ROOT / "dist").glob(pattern))
    assert len(found) == 1, f"dist/{pattern}: expected one file, got {len(found)}: run `make wheel`"
    return found[0]


def project_files(root: Path = ROOT) -> list[Path]:
    """Files git has or would take. Where the tree is a copy without git, an empty repository elsewhere applies its
    .gitignore to it."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed: it says which files belong to the project")
    with tempfile.TemporaryDirectory() as empty:
        own = []
        if not (root / ".git").exists():
            subprocess.run(["git", "init", "--quiet", empty], check=True)
            own = [f"--git-dir={empty}/.git", f"--work-tree={root}"]
        command = ["git", *own, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=root, text=True, check=True, capture_output=True).stdout
    paths = [root / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]
