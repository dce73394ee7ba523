"""The branch `records`: what GPU runners measured, kept by git without being part of the code.

A runner may not write to the repository. It leaves the results of commits in a folder (`collect`); a job that may
write takes of them what has the name, the form and the commit of a result (`keep`). The branch has the form of
`asv_bench/results`, into which `restore` puts it. The branch that is checked out is never touched. `python -m
ci.records` needs the standard library and git alone, so that job installs nothing.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ci import verdict
from ci.arguments import Parser
from ci.results import Unreadable, load, read_text

BRANCH = "records"
RESULTS = Path("asv_bench/results")
_MACHINE = re.compile(r"(?!local-)[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
_RESULT = re.compile(r"([0-9a-f]{8})-[A-Za-z0-9._-]{1,120}\.json")
_TELEMETRY = re.compile(r"([0-9a-f]{40})\.telemetry\.jsonl")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BRIDGE = "bridge.jsonl"  # that of ci.bridge, which needs more than git
_OF_MACHINE = ("machine.json", _BRIDGE)  # files that are of no commit
_IDENTITY = {f"GIT_{who}_{what}": "flash_dsa" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


class RecordsError(RuntimeError):
    """Nothing can be collected, kept or restored. Exit code 3."""


def collect(results: Path, machine: str, commits: Sequence[str], output: Path) -> list[Path]:
    """Copies what a machine measured of commits, and what asv knows of it, into `output/<machine>/`.

    Raises:
        RecordsError: when there is no result of any of them.
    """
    folder = results / machine
    found: list[Path] = []
    for commit in commits:
        telemetry = folder / f"{commit}.telemetry.jsonl"
        measured = sorted(folder.glob(f"{commit[:8]}-*.json"))
        found += [*measured, telemetry] if measured and telemetry.is_file() else []
    if not found:
        raise RecordsError(f"{folder}: expected results of {', '.join(commits)} with their telemetry, got none")
    shutil.rmtree(output, ignore_errors=True)
    (output / machine).mkdir(parents=True)
    found += [folder / "machine.json", *folder.glob(_BRIDGE)]
    return [Path(shutil.copy(path, output / machine)) for path in found]


def keep(folder: Path, push: bool = False) -> list[str]:
    """Commits the results below a folder to the branch; a folder with `machine.json` is a machine's.

    Args:
        folder: with what runners left, at any depth. push: whether the branch is then pushed to `origin`.
    Returns:
        The paths on the branch.
    Raises:
        RecordsError: when a name or a commit is none of ours. results.Unreadable: when a file is no result.
    """
    found: dict[str, Path] = {}
    pieces: dict[str, list[str]] = {}
    commits: set[str] = set()
    for path in sorted(folder.rglob("machine.json")):
        commits |= _read_machine(path.parent, found, pieces)
    if not commits:
        raise RecordsError(f"{folder}: expected results with a machine.json beside them, got none")
    if push:
        _git("fetch", "--quiet", "origin", f"+refs/heads/{BRANCH}*:refs/remotes/origin/{BRANCH}*")
    parent = _tip()
    message = f"{', '.join(sorted({name.partition('/')[0] for name in found}))} at {', '.join(sorted(commits))}"
    with tempfile.TemporaryDirectory() as merged:
        for number, (name, texts) in enumerate(pieces.items()):
            found[name] = Path(merged) / str(number)
            found[name].write_text(_merged([_on_branch(parent, name), *texts]), encoding="utf-8")
        made = _commit(found, parent, message)
    _git("update-ref", f"refs/heads/{BRANCH}", made)
    if push:
        _git("push", "--quiet", "origin", f"{made}:refs/heads/{BRANCH}")
    return sorted(found)


def restore(results: Path) -> int:
    """Puts the branch's files into a results tree; returns how many. None where there is no branch yet."""
    tip = _tip()
    if tip is None:
        return 0
    with tarfile.open(fileobj=io.BytesIO(_git("archive", tip))) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        for member in members:
            if not _is_ours(member.name):
                raise RecordsError(f"{BRANCH}: expected <machine>/<file of asv>, got {member.name!r}")
            content = archive.extractfile(member)
            assert content is not None  # a regular file
            path = results / member.name
            text = content.read()
            if path.name == _BRIDGE and path.is_file():
                text = _merged([read_text(path), text.decode()]).encode()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
    return len(members)


def _on_branch(tip: str | None, name: str) -> str:
    there = tip and _git("ls-tree", tip, "--", name)
    return _git("cat-file", "blob", f"{tip}:{name}").decode() if there else ""


def _merged(texts: Sequence[str]) -> str:
    """The pieces of all of these, each once and the oldest first: no runner has those of the others."""
    lines = {line for text in texts for line in text.splitlines()}
    return "".join(f"{line}\n" for line in sorted(lines, key=lambda line: (_when(line), line)))


def _when(line: str) -> float:
    """When a piece was measured."""
    time = json.loads(line).get("timestamp")
    return float(time) if isinstance(time, (int, float)) else 0.0


def _is_ours(name: str) -> bool:
    machine, _, file = name.partition("/")
    known = file in _OF_MACHINE or _RESULT.fullmatch(file) or _TELEMETRY.fullmatch(file)
    return bool(_MACHINE.fullmatch(machine) and known)


def _read_machine(folder: Path, found: dict[str, Path], pieces: dict[str, list[str]]) -> set[str]:
    """Reads everything in a machine's folder; puts its files by their paths on the branch, and returns the commits.

    Args:
        folder: of the machine. found: gets the files. pieces: gets the texts of its bridge, which are merged.
    """
    commits = set()
    for path in sorted(folder.iterdir()):
        name = f"{folder.name}/{path.name}"
        if not _is_ours(name) or path.is_symlink():
            raise RecordsError(f"{path}: expected <machine>/<file of asv>, got {name!r}")
        if path.name not in _OF_MACHINE:
            commit = _commit_of(path)
            _git("cat-file", "-e", f"{commit}^{{commit}}")
            commits.add(commit)
        elif path.name == _BRIDGE:
            _read_lines(path)
            pieces.setdefault(name, []).append(read_text(path))
            continue
        else:
            load(path)
        found[name] = path
    return commits


def _commit_of(path: Path) -> str:
    """The commit that a file of results or telemetry is of; its content must be of it, and readable."""
    telemetry = _TELEMETRY.fullmatch(path.name)
    if telemetry:
        _read_lines(path)
        return telemetry[1]
    commit = load(path).get("commit_hash")
    if not (isinstance(commit, str) and _COMMIT.fullmatch(commit) and path.name.startswith(commit[:8])):
        raise Unreadable(f"{path}: commit_hash: expected that of the file's name, got {str(commit)[:40]!r}")
    return commit


def _read_lines(path: Path) -> None:
    try:
        lines = [json.loads(line) for line in read_text(path).splitlines()]
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path}: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise Unreadable(f"{path}: expected a table in each line")


def _range(text: str) -> list[str]:
    found = _git("rev-list", "--end-of-options", text).decode().split()
    if not found:
        raise RecordsError(f"range: expected commits, as in a..b, got {text!r}, which has none")
    return found


def _tip() -> str | None:
    """The branch as it is here or as `origin` has it, whichever holds the other.

    Raises:
        RecordsError: when neither does.
    """
    found = []
    for name in (f"refs/remotes/origin/{BRANCH}", f"refs/heads/{BRANCH}"):
        done = subprocess.run(["git", "rev-parse", "--verify", "--quiet", name], capture_output=True, text=True)
        found += [done.stdout.strip()] if done.returncode == 0 else []
    for one in found:
        if all(int(_git("rev-list", "--count", f"{one}..{other}")) == 0 for other in found):
            return one
    if found:
        raise RecordsError(f"{BRANCH}: here and at origin are commits that the other lacks: push or drop those here")
    return None


def _commit(files: dict[str, Path], parent: str | None, message: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        if parent:
            _git("read-tree", parent, **index)
        for name, path in sorted(files.items()):
            blob = _git("hash-object", "-w", "--no-filters", str(path)).decode().strip()
            _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", **index)
        tree = _git("write-tree", **index).decode().strip()
    parents = ["-p", parent] if parent else []
    return _git("commit-tree", tree, *parents, "-m", message, **_IDENTITY).decode().strip()


def _git(*arguments: str, **environment: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True, env={**os.environ, **environment})
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RecordsError(f"git {arguments[0]}: {' '.join(said) or 'failed'} ({' '.join(arguments[1:3])})")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
        0 done; 3 nothing to collect or keep, or something that is no result.
    """
    parser = Parser(prog="python -m ci.records", description="Keeps what GPU runners measured on a branch of its own.")
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="copy what was measured of commits into a folder")
    collecting.add_argument("--machine", required=True, help="name of its records")
    which = collecting.add_mutually_exclusive_group(required=True)
    which.add_argument("--commit", help="full hash")
    which.add_argument("--range", help="commits as git has them, a..b; those that were not measured are left out")
    collecting.add_argument("--output", type=Path, default=Path("build/measured"), help="(default: build/measured)")
    keeping = commands.add_parser("keep", help="commit what runners left to the branch")
    keeping.add_argument("--from", dest="folder", type=Path, required=True, help="folder with what they left")
    keeping.add_argument("--push", action="store_true", help="and push the branch to origin")
    commands.add_parser("restore", help="put the branch's files into asv_bench/results")
    options = parser.parse_args(arguments)
    try:
        if options.command == "collect":
            commits = [options.commit] if options.commit else _range(options.range)
            found = collect(RESULTS, options.machine, commits, options.output)
            print(f"{len(found)} files in {options.output / options.machine}")
        elif options.command == "keep":
            print("\n".join(keep(options.folder, options.push)))
        else:
            count = restore(RESULTS)
            print(f"{count} files from the branch {BRANCH}" if count else f"no branch {BRANCH} yet")
    except (RecordsError, Unreadable, OSError) as error:
        print(f"ci.records: {error}", file=sys.stderr)
        return verdict.USAGE
    return verdict.NOTHING_TO_REPORT


if __name__ == "__main__":
    sys.exit(main())
