"""A campaign: the asv suites over a range of commits, each built apart, on the machine at hand.

Benchmarks are those of the working tree, the library is each commit's. What is done is in asv's results tree, so a
campaign that was ended goes on where it was; a commit that does not build is recorded there as failed. Measuring comes
in pieces, on cards that differ: each piece measures one fixed commit, the bridge, again, and what came out is appended
to `<machine>/bridge.jsonl`, so that the pieces of a history can be compared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci import bridge, builds, history, results
from ci.bridge import Piece
from ci.builds import CheckError
from ci.history import History

_END = ".telemetry.jsonl"
_BUILT = "built"  # file beside a package that is whole
# What a build is made of: trees and files of the commit, packages beside the compilers.
_SOURCES = ("kernels", "flash_dsa", "setup.py", "pyproject.toml")
_PACKAGES = ("torch", "nvidia-cutlass", "nvidia-cuda-nvcc", "setuptools")
_STUB = '''"""A commit that does not build, so that the suites record it as failed."""

raise ImportError({reason!r})
'''


@dataclass(frozen=True)
class Options:
    """What to measure.

    Args:
        root: of the repository. range: of commits, `a..b`, or one commit, or several of either with spaces between.
        machine: its name in the results tree.
        python: interpreter of asv's environment, by the path that names its series.
        touching: only commits that changed one of these paths. bridge: a revision; by default that of earlier pieces,
            else the first commit.
        build_only: whether nothing is measured. again: also what was measured before.
        prebuilt: build nothing, and take a build of the same sources whatever compiled it.
        minutes: after which no other commit is begun. bench: which benchmarks, as `asv run --bench`.
    """

    root: Path
    range: str
    machine: str
    python: str = sys.executable
    touching: tuple[str, ...] = ()
    bridge: str = ""
    build_only: bool = False
    again: bool = False
    prebuilt: bool = False
    minutes: float = math.inf
    bench: str = ""

    @property
    def results(self) -> Path:
        """The machine's folder in the results tree."""
        return self.root / "asv_bench" / "results" / self.machine

    @property
    def folder(self) -> Path:
        """Of builds and of what is measured just now."""
        return self.root / "build" / "history"


@dataclass(frozen=True)
class Done:
    """What a piece of a campaign did, in commits.

    Args:
        measured: now. before: earlier. failed: do not build. left: for another piece, the lost among them. lost: tried,
            and asv gave no results of them.
    """

    measured: int = 0
    before: int = 0
    failed: int = 0
    left: int = 0
    lost: int = 0


def run(options: Options, say: Callable[[str], None] = print) -> Done:
    """Measures what is not measured yet, and says how far it is.

    Raises:
        CheckError: for a range without commits, a bridge that does not build, or another bridge than in earlier pieces.
        results.Unreadable: for a results tree that cannot be read.
    """
    commits = _commits(options)
    known = _measured(options.results)
    options.folder.mkdir(parents=True, exist_ok=True)
    with builds.alone(options.folder / "lock", "another campaign is running"):
        begun, count = time.monotonic(), {"measured": 0, "before": 0, "failed": 0, "lost": 0}
        wanted = [commit for commit in commits if options.again or commit not in known]
        if wanted and not options.build_only:
            fixed = _bridge_of(options, commits)
            say(f"bridge {fixed[:12]}: measured in every piece")
            found = _measure(options, fixed, _provide(options, fixed, say, must=True))
            say(_note_bridge(options, fixed, found))
            if fixed in wanted:
                _keep(options, fixed)
                wanted.remove(fixed)
                count["measured"] += 1
        for number, (commit, subject) in enumerate(commits.items(), 1):
            head = f"[{number} of {len(commits)}] {commit[:12]} {subject[:60]}"
            minutes = (time.monotonic() - begun) / 60
            if commit not in wanted:
                count["before"] += commit in known and not options.again
                say(f"{head}: measured")
            elif minutes < options.minutes:
                rest = f", about {minutes / count['measured'] * len(wanted):.0f} left" if count["measured"] else ""
                say(f"{head}: {minutes:.0f} min so far{rest}")
                try:
                    site = _provide(options, commit, say)
                    if not options.build_only:
                        _measure(options, commit, site)
                        _keep(options, commit)
                        count["measured"] += 1
                except CheckError as error:  # of this commit: the next may do
                    say(f"    left: {error}")
                    count["lost"] += 1
                    continue
                count["failed"] += not _is_built(site)
                wanted.remove(commit)
        return Done(**count, left=len(wanted))


def _commits(options: Options) -> dict[str, str]:
    """Hash and subject of the commits, oldest first."""
    found: dict[str, tuple[int, str]] = {}
    for one in options.range.split() or [""]:
        walk = [] if ".." in one else ["--no-walk"]
        command = ["git", "-C", str(options.root), "log", "--reverse", "--format=%H %ct %s", *walk, "--end-of-options"]
        done = subprocess.run([*command, one, "--", *options.touching], capture_output=True, text=True)
        if done.returncode or not done.stdout:
            why = done.stderr.strip() or "there are none"
            raise CheckError(f"range: expected commits, as in a..b, got {one!r}: {why}")
        for line in done.stdout.splitlines():
            commit, time_, subject = line.split(" ", 2)
            found[commit] = int(time_), subject
    return {commit: subject for commit, (_, subject) in sorted(found.items(), key=lambda item: item[1][0])}


def _measured(folder: Path) -> set[str]:
    """The commits that a machine's folder has results of, by the benchmarks of today."""
    if not folder.is_dir():
        return set()
    described = results.load(folder.parent / "benchmarks.json")
    versions = {name: one["version"] for name, one in described.items() if isinstance(one, dict)}
    found = set()
    for path in folder.glob("*.json"):
        if path.name in history.NO_RESULTS:
            continue
        try:
            document = results.load(path)
            if _is_of(document, versions):
                found.add(str(document["commit_hash"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise results.Unreadable(f"{path}: {type(error).__name__}: {error}") from error
    return found


def _is_of(document: Mapping[str, Any], versions: Mapping[str, str]) -> bool:
    """Whether what ran, and so is not all n/a, is of these versions."""
    ran = {}
    for name, cells in document["results"].items():
        row = dict(zip(document["result_columns"], cells, strict=False))
        if any(value is None or not math.isnan(value) for value in row["result"] or [None]):
            ran[name] = row["version"]
    return bool(ran) and all(versions.get(name) == version for name, version in ran.items())


# --- building


def key_of(root: Path, commit: str) -> tuple[str, str]:
    """Hashes of what a build of a commit is made of: of its sources, and of the compilers, headers and targets here."""
    command = ["git", "-C", str(root), "ls-tree", commit, "--", *_SOURCES]
    listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    asked = os.environ.get("FLASH_DSA_TARGETS", "native")
    tools = [asked, _version(os.environ.get("CXX", "c++")), _version(_nvcc())]
    tools += [_capabilities()] if asked == "native" else []
    tools += [f"{name} {_package(name)}" for name in _PACKAGES]
    sources, here = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (listed, "\0".join(tools)))
    return sources, here


def _version(program: str) -> str:
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return f"no {program}"


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    return str(Path(home) / "bin" / "nvcc") if home else "nvcc"


def _capabilities() -> str:
    """Of the GPUs here, which the target `native` compiles for."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return "no GPU"


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _is_built(site: Path) -> bool:
    return (site / _BUILT).exists()


def _provide(options: Options, commit: str, say: Callable[[str], None], must: bool = False) -> Path:
    """The folder of a commit's build, made if its inputs were not built before; of a stub where it fails.

    Raises:
        CheckError: when it must be built and is not, or there is no build and none is to be made.
    """
    sources, here = key_of(options.root, commit)
    folder = options.folder / "builds" / f"{sources}-{here}"
    if options.prebuilt:
        sites = sorted(
            folder.parent.glob(f"{sources}-*/site"), key=lambda path: (_is_built(path), path.stat().st_mtime)
        )
        if not sites or (must and not _is_built(sites[-1])):
            raise CheckError(f"{commit[:12]} was not built before")
        return sites[-1]
    site, log = folder / "site", folder / "log"
    if _is_built(site):
        return site
    begun = time.monotonic()
    builds.export(options.root, commit, folder / "source")
    if builds.install(folder / "source", site, log, {"FLASH_DSA_COMMIT": commit}):
        (site / _BUILT).touch()
        say(f"    built in {time.monotonic() - begun:.0f} s")
        return site
    reason = _reason(log).replace(f"{folder / 'source'}/", "")
    if must:
        raise CheckError(f"the bridge {commit[:12]} does not build here, so nothing is recorded: {reason}")
    say(f"    does not build: {reason}")
    shutil.rmtree(site, ignore_errors=True)
    (site / "flash_dsa").mkdir(parents=True)
    (site / "flash_dsa" / "__init__.py").write_text(_STUB.format(reason=f"this commit does not build: {reason}"))
    return site


def _reason(log: Path) -> str:
    """The first error of a compiler in a log, or its end where there is none."""
    text = builds.tail(log, results.MAX_BYTES)
    found = re.search(r"^.*\S: (?:fatal )?error:? .*$", text, re.MULTILINE)
    return found[0].strip() if found else text[-300:]


# --- measuring


def _suite(options: Options) -> Path:
    """A folder from which asv runs: the working tree's benchmarks without its package, which would hide the build."""
    suite = options.folder / "suite"
    shutil.rmtree(suite, ignore_errors=True)
    left_out = shutil.ignore_patterns("results", "sweeps", "__pycache__")
    shutil.copytree(options.root / "asv_bench", suite / "asv_bench", ignore=left_out)
    shutil.copyfile(options.root / "asv.conf.json", suite / "asv.conf.json")
    (suite / ".git").symlink_to(options.root / ".git")
    return suite


def _measure(options: Options, commit: str, site: Path) -> list[History]:
    """Runs asv on a build; its results are in a folder of their own until they are whole.

    Raises:
        CheckError: when asv gave no results, or measured another build.
    """
    suite = _suite(options)
    telemetry = suite / f"{commit}{_END}"
    paths = {"PYTHONPATH": str(site), "ASV_PYTHONPATH": str(site), "FLASH_DSA_TELEMETRY": str(telemetry)}
    command = [sys.executable, "-m", "asv", "run", "--environment", f"existing:{options.python}", "--record-samples"]
    command += ["--set-commit-hash", commit, "--machine", options.machine]
    command += ["--bench", options.bench] if options.bench else []
    log = options.folder / f"{commit[:12]}.log"
    with log.open("wb") as lines:
        subprocess.run(command, cwd=suite, env=os.environ | paths, stdout=lines, stderr=subprocess.STDOUT)
    if not list(_made(suite, options.machine)):
        raise CheckError(f"asv gave no results of {commit[:12]}: {builds.tail(log)}")
    _verify(site, telemetry)
    return history.read_tree(suite / "asv_bench" / "results")


def _made(suite: Path, machine: str) -> Iterator[Path]:
    """asv's result files."""
    folder = suite / "asv_bench" / "results" / machine
    return (path for path in folder.glob("*.json") if path.name not in history.NO_RESULTS)


def _verify(site: Path, telemetry: Path) -> None:
    """Holds what was measured to its build, where both noted a fingerprint."""
    noted = site / "flash_dsa" / "_fingerprint.json"
    said = [line["fingerprint"] for line in _lines(telemetry) if line.get("fingerprint")]
    if noted.exists() and said and said[-1].get("kernels") != results.load(noted).get("kernels"):
        raise CheckError(f"another build than that of {site} was measured")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text(path).splitlines()] if path.exists() else []


def _keep(options: Options, commit: str) -> None:
    """Puts what was just measured into the results tree; asv's file last, which says that the commit is measured."""
    suite = options.folder / "suite"
    options.results.mkdir(parents=True, exist_ok=True)
    made = suite / "asv_bench" / "results"
    for path in [suite / f"{commit}{_END}", made / options.machine / "machine.json", *_made(suite, options.machine)]:
        if path.exists():
            results.write_atomically(options.results / path.name, results.read_text(path))
    if not (options.results.parent / "benchmarks.json").exists():
        shutil.copyfile(made / "benchmarks.json", options.results.parent / "benchmarks.json")


# --- the bridge


def _bridge_of(options: Options, commits: Mapping[str, str]) -> str:
    """The commit that every piece measures; once there is one, it stays."""
    pieces = bridge.read(options.results)
    asked = builds.commit_of(options.root, options.bridge) if options.bridge else ""
    before = pieces[0].commit if pieces else ""
    if asked and before and asked != before:
        raise CheckError(f"bridge: expected {before[:12]}, which earlier pieces measured, got {asked[:12]}")
    return before or asked or next(iter(commits))


def _note_bridge(options: Options, commit: str, found: Sequence[History]) -> str:
    """Appends what the bridge took in this piece.

    Returns:
        How it compares with the first piece, as a sentence.
    """
    first = next(iter(bridge.read(options.results)), None)
    sidecar = _lines(options.folder / "suite" / f"{commit}{_END}")
    card = next((line["machine"].get("gpu_uuid") for line in sidecar if isinstance(line.get("machine"), dict)), None)
    piece = Piece(round(time.time(), 3), commit, card, bridge.values_of(found))
    bridge.note(options.results, piece)
    compared = bridge.compare(piece, first) if first else None
    if compared is None:
        return f"    the first piece: {len(piece.values)} series of the bridge are noted"
    mean, least, most = compared.mean, compared.least, compared.most
    return f"    the bridge took {mean:.3f}x its time of the first piece ({least:.3f}x to {most:.3f}x)"
