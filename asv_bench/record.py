"""Records: what a sweep found, in the files of a machine, and where they came from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from asv_bench import schema
from asv_bench.cases import PROBLEM_FIELDS, Problem, all_cases

SCHEMA = 1
Record = dict[str, Any]

# Keys of a record, in order; every record has all of them, and what does not apply is None.
RECORD_KEYS = tuple(schema.RULES)

# What a line of samples repeats of its record.
_SAMPLE_KEYS = (*PROBLEM_FIELDS, "implementation", "commit", "machine", "protocol", "timestamp")

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = ROOT / "asv_bench" / "sweeps"
# What a measurement depends on; results and pages do not make a tree dirty.
_SOURCES = ("kernels", "flash_dsa", "asv_bench", "setup.py", "pyproject.toml")
_NOT_SOURCES = (":!asv_bench/sweeps", ":!asv_bench/results")


class Unreadable(RuntimeError):
    """A file that should hold records does not."""


def identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two records the same measurement at two times."""
    return tuple(record[name] for name in (*PROBLEM_FIELDS, "implementation"))


def problem_of(record: Mapping[str, Any]) -> Problem:
    """The problem of a record."""
    return Problem(**{name: record[name] for name in PROBLEM_FIELDS})


def blank(problem: Problem, implementation: str) -> Record:
    """A record with every key, holding what the problem alone says."""
    record: Record = dict.fromkeys(RECORD_KEYS)
    record |= problem.fields
    record |= {
        "implementation": implementation,
        "samples": 0,
        "discarded": {},
        "flops": problem.flops,
        "bytes": problem.bytes,
        "kv_bytes": problem.kv_bytes,
        "telemetry": {},
    }
    return record


class Store:
    """Records and raw samples of one machine, in a folder.

    Args:
        folder: `asv_bench/sweeps/<machine>` or any other.
    Raises:
        Unreadable: when the folder holds files that no sweep wrote, or samples alone; see `load`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: dict[tuple[Any, ...], Record] = {}
        self._samples: dict[tuple[Any, ...], dict[str, Any]] = {}
        if (folder / "sweep.json").exists():
            self._records = {identity(record): record for record in _load_records(folder)}
        self._samples = _load_samples(folder, self._records)

    @property
    def records(self) -> list[Record]:
        """All records, in the order of cases and implementations."""
        return in_order(self._records.values())

    def get(self, problem: Problem, implementation: str) -> Record | None:
        """The record of a combination, or None."""
        return self._records.get((*problem.fields.values(), implementation))

    def put(self, record: Record, bursts: Sequence[Sequence[float]] = ()) -> None:
        """Replaces the record of the same identity.

        Args:
            record: with all keys. bursts: seconds of its samples, burst by burst.
        Raises:
            ValueError: for what would not be read again, naming the key, expected and got.
        """
        if tuple(record) != RECORD_KEYS:
            raise ValueError(f"record: expected the keys {RECORD_KEYS}, got {tuple(record)}")
        line = {name: record[name] for name in _SAMPLE_KEYS} | {"seconds": [list(burst) for burst in bursts]}
        fault = schema.fault(record) or (schema.sample_fault(line) if bursts else None)
        if fault:
            raise ValueError(f"record: {fault}")
        key = identity(record)
        self._records[key] = record
        self._samples.pop(key, None)
        if bursts:
            self._samples[key] = line

    def forget(self, problem: Problem, implementation: str) -> None:
        """Drops the record of a combination."""
        key = (*problem.fields.values(), implementation)
        self._records.pop(key, None)
        self._samples.pop(key, None)

    def save(self) -> None:
        """Writes both files, each whole or not at all; samples first, so that no record lacks the samples behind it.

        What is killed between the two leaves samples newer than every record, which a reader can tell from damage.
        """
        if not (self.folder / "sweep.json").exists():
            self._write_records([])  # samples alone are damage
        lines = [
            json.dumps(self._samples[identity(record)], allow_nan=False)
            for record in self.records
            if identity(record) in self._samples
        ]
        write_atomically(self.folder / "sweep.samples.jsonl", "".join(line + "\n" for line in lines))
        self._write_records(self.records)

    def _write_records(self, records: list[Record]) -> None:
        document = {"schema": SCHEMA, "records": records}
        write_atomically(self.folder / "sweep.json", json.dumps(document, indent=1, allow_nan=False) + "\n")


def load(folder: Path) -> list[Record]:
    """Records of a folder.

    Raises:
        Unreadable: when sweep.json is missing, or it or the samples beside it hold what no sweep wrote; the message
            names the file, the record or line, the key, what was expected and what is there. Never an empty history.
    """
    records = _load_records(folder)
    _load_samples(folder, {identity(record): record for record in records})
    return records


def _load_records(folder: Path) -> list[Record]:
    path = folder / "sweep.json"
    try:
        document = schema.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise Unreadable(f"{path}: expected schema {SCHEMA}, got {got}")
    records = document.get("records")
    if not isinstance(records, list):
        raise Unreadable(f"{path}: expected a list of records, got {type(records).__name__}")
    seen: dict[tuple[Any, ...], int] = {}
    for number, record in enumerate(records):
        fault = schema.fault(record)
        if fault:
            raise Unreadable(f"{path}: record {number}: {fault}")
        first = seen.setdefault(identity(record), number)
        if first != number:
            raise Unreadable(f"{path}: record {number}: expected another identity than record {first}'s, got the same")
    return in_order({name: record[name] for name in RECORD_KEYS} for record in records)


def _load_samples(folder: Path, records: Mapping[tuple[Any, ...], Record]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Lines of samples by identity, each the line of a record.

    Args:
        folder: of the store. records: by identity.
    """
    path = folder / "sweep.samples.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: {error}") from error
    if lines and not (folder / "sweep.json").exists():
        raise Unreadable(f"{path}: expected a sweep.json beside it, got none: bring it back or remove the samples")
    newest = max((_time(record) for record in records.values()), default=None)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, text in enumerate(lines, start=1):
        try:
            line = _sample_line(text)
            key = identity(line)
            record = records.get(key)
            if record is None or any(line[name] != record[name] for name in _SAMPLE_KEYS):
                if newest is None or _time(line) >= newest:
                    continue  # a kill came between the two files: the record was never written
                raise ValueError(_strange(line, record))
            if key in found:
                raise ValueError("expected one line of samples for a record, got a second")
        except ValueError as error:
            raise Unreadable(f"{path}: line {number}: {error}") from error
        found[key] = line
    return found


def _sample_line(text: str) -> dict[str, Any]:
    line = schema.parse(text)
    if not isinstance(line, dict):
        raise ValueError(f"expected an object, got {type(line).__name__}")
    missing = [key for key in (*_SAMPLE_KEYS, "seconds") if key not in line]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    fault = schema.identity_fault(line) or schema.sample_fault(line)
    if fault:
        raise ValueError(fault)
    return line


def _strange(line: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    """Why a line of samples is that of no record."""
    if record is None:
        what = f"{line['implementation']} in {line['op']} at s_kv {line['s_kv']}"
        return f"expected samples of a record, got those of {what}, which has none"
    name = next(name for name in _SAMPLE_KEYS if line[name] != record[name])
    return f"{name}: expected {record[name]!r} as in the record, got {line[name]!r}"


def _time(record: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(record["timestamp"])


def in_order(records: Iterable[Record]) -> list[Record]:
    """Records in the order of cases, then of implementations; unknown ones last, by their fields."""
    position = {tuple(case.problem.fields.values()): number for number, case in enumerate(all_cases())}
    known = ("flash_dsa", "naive", "sdpa", "flash_mla")

    def key(record: Record) -> tuple[Any, ...]:
        fields = tuple(record[name] for name in PROBLEM_FIELDS)
        name = record["implementation"]
        rank = known.index(name) if name in known else len(known)
        return position.get(fields, len(position)), repr(fields), rank, name

    return sorted(records, key=key)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: a temporary file beside it, then a rename."""
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def ensure_writable(folder: Path) -> None:
    """Makes a folder and tries a file in it.

    Raises:
        OSError: when that is not possible.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    write_atomically(probe, b"")
    probe.unlink()


def commit_and_dirty() -> tuple[str, bool | None]:
    """The commit measured, and whether sources differ from it.

    The variable FLASH_DSA_COMMIT says it first (a copy of the tree without git), then git, then the build's own note.

    Returns:
        The full hash or `unknown`; dirty is None where nothing can tell.
    """
    named = os.environ.get("FLASH_DSA_COMMIT")
    top = _git("rev-parse", "--show-toplevel")
    in_git = top is not None and Path(top).resolve() == ROOT
    status = _git("status", "--porcelain", "--", *_SOURCES, *_NOT_SOURCES) if in_git else None
    head = _git("rev-parse", "--verify", "HEAD") if in_git else None
    if named:
        return named, bool(status) if head == named and status is not None else False
    if head:
        return head, bool(status)
    return built_commit() or "unknown", None


def built_commit() -> str | None:
    """The commit the installed library was built from, as its build noted it."""
    try:
        info = importlib.import_module("flash_dsa._build_info")
    except Exception:  # the library itself may fail to load
        return None
    commit = getattr(info, "commit", None)
    return str(commit) if commit else None


def fingerprint(implementation: str) -> str:
    """A hash of what measures and what is measured: asv_bench, the flash_dsa that is imported, a user's module.

    Args:
        implementation: its name; for `module:function` the module's source file is included.
    """
    folders = [ROOT / "asv_bench"]
    with contextlib.suppress(Exception):
        folders.append(Path(importlib.import_module("flash_dsa").__file__ or "").resolve().parent)
    files = [path for folder in folders for pattern in ("*.py", "*.so") for path in sorted(folder.glob(pattern))]
    if ":" in implementation:
        with contextlib.suppress(Exception):
            source = inspect.getsourcefile(importlib.import_module(implementation.partition(":")[0]))
            files.append(Path(source or ""))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
