"""GitHub, asked by its own command `gh`: which token it uses, and of whom, is the workflow's affair."""

from __future__ import annotations

import json
import subprocess
from typing import Any

AUTHOR = "github-actions[bot]"  # of what workflows write


class GitHubError(RuntimeError):
    """GitHub did not answer, or refused. Exit code 3."""


def call(path: str, *options: str, content: bytes = b"") -> bytes:
    """What `gh api` answers.

    Args:
        path: of the interface, such as `repos/owner/name/pulls`. options: of `gh api`. content: its standard input.
    Raises:
        GitHubError: when gh is missing or fails.
    """
    try:
        done = subprocess.run(["gh", "api", path, *options], input=content, capture_output=True)
    except OSError as error:
        raise GitHubError(f"gh: {error}") from error
    if done.returncode:
        raise GitHubError(f"gh api {path}: {done.stderr.decode(errors='replace')[:300].strip()}")
    return done.stdout


def ask(path: str, *options: str) -> Any:
    """The same, as JSON."""
    return json.loads(call(path, *options))


def ask_all(path: str) -> list[Any]:
    """The items of all pages of a list."""
    return [one for page in ask(path, "--paginate", "--slurp") for one in page]


def write(path: str, content: Any, method: str) -> Any:
    """Sends a document; `method` is POST to make something and PATCH to change it."""
    return json.loads(call(path, "--method", method, "--input", "-", content=json.dumps(content).encode()) or b"null")
