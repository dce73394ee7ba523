"""Result files: the judge's only reader and writer. What is not as it should be is an error, never an empty result.

`verdicts.json` is the decision; `base.json` and `head.json`, in pytest-benchmark's schema, are what it was made from. A
side's file holds beside that schema:

- `machine_info.flash_dsa`: `commit`, `machine`, `protocol`, `suite` (hash of asv_bench/ and ci/ of that commit),
  `environment` (name to text or number: gpu, driver, torch, sm_clock_mhz ...), `fingerprint` (see `codegen`) or null,
  `controls` (optional: before the first case and after the last, by name `seconds_median`, `seconds_low`,
  `seconds_high`, null where a control failed);
- per benchmark, `extra_info`: `case` (its id), `problem` (the fields of a record), `device` (`cpu`, `cuda`), `backend`
  (the target that served it) and `bursts`, a list of `block` (number), `order` (`AB`, `BA`), `seconds`, `cycles` (or
  null), `discarded` (count by reason), `power_capped` (or null);
- `failures`: by case id, `reason` (build, wrong_answer, crash, invalid_measurement) and `detail`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci import codegen
from ci.stats import Block, Burst
from ci.verdict import CaseVerdict, Evidence, Reason, Side, Verdict, overall

SCHEMA = 1
CASE_KEYS = ("id", "verdict", "reason", "ratio", "low", "high", "mde", "same_code")
MAX_BYTES = 64 << 20  # of a result file; one of a pull request may be anything
_LEAST = 1e-30  # of a ratio; stats.factor keeps well above
_NUMBERS = ("ratio", "low", "high", "mde")


class Unreadable(RuntimeError):
    """A result file that cannot be used, with its path and what is wrong. Exit code 3."""


@dataclass(frozen=True)
class Verdicts:
    """What `verdicts.json` holds.

    Args:
        base, head: commits. machine, protocol: where and how it was measured. cases: one verdict each.
    """

    base: str
    head: str
    machine: str
    protocol: str
    cases: tuple[CaseVerdict, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the whole run."""
        return overall(self.cases)


@dataclass(frozen=True)
class Measured:
    """A case as one side measured it.

    Args:
        problem: fields of the problem. device, backend: what ran it. bursts: by number of block.
    """

    problem: Mapping[str, Any]
    device: str
    backend: str | None
    bursts: Mapping[int, tuple[str, Burst]]


@dataclass(frozen=True)
class Control:
    """A control as measured once: its median, with the interval, in seconds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Run:
    """One side's file: facts of the process, and its cases by id."""

    commit: str = ""
    machine: str = ""
    protocol: str = ""
    suite: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] | None = None
    controls: Sequence[Mapping[str, Control]] = ()
    cases: Mapping[str, Measured] = field(default_factory=dict)
    failures: Mapping[str, tuple[Reason, str]] = field(default_factory=dict)


def read_text(path: Path) -> str:
    """The text of a regular file; opening a pipe would wait for ever.

    Raises:
        Unreadable: when it is missing, a folder, a pipe or a device, too large, or not UTF-8.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable(f"{path}: expected a regular file, got {stat.filemode(found.st_mode)}")
        if found.st_size > MAX_BYTES:
            raise Unreadable(f"{path}: expected at most {MAX_BYTES >> 20} MiB, got {found.st_size >> 20}")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: {str(error)[:200]}") from error


def load(path: Path) -> dict[str, Any]:
    """The table that a JSON file holds.

    Raises:
        Unreadable: as `read_text`, and when it is no JSON, nested too deeply, or no table.
    """
    text = read_text(path)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path}: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise Unreadable(f"{path}: expected a table, got {type(document).__name__}")
    return document


def or_none(value: float) -> float | None:
    """A number as JSON has it: null for one that is not known."""
    return value if math.isfinite(value) else None


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Writes `verdicts.json`, whole or not at all."""
    cases = []
    for case in verdicts.cases:
        values = {key: getattr(case, key) for key in CASE_KEYS}
        values |= {"verdict": case.verdict.value, "reason": case.reason.value if case.reason else None}
        cases.append(values)
    document = {"schema": SCHEMA, "base": verdicts.base, "head": verdicts.head, "machine": verdicts.machine}
    document |= {"protocol": verdicts.protocol, "verdict": verdicts.verdict.value, "cases": cases}
    write_atomically(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_verdicts(path: Path) -> Verdicts:
    """Reads `verdicts.json`.

    Raises:
        Unreadable: when it is missing, too large, no JSON, of another schema, lacks a key, has a value that is not
            allowed, or a verdict that its cases do not give.
    """
    document = load(path)
    with _naming(path):
        if document.get("schema") != SCHEMA:
            raise Unreadable(f"schema: expected {SCHEMA}, got {document.get('schema')!r}")
        texts = {key: _text(document, key) for key in ("base", "head", "machine", "protocol")}
        cases = tuple(_case_verdict(case, f"cases[{i}].") for i, case in enumerate(_list(document, "cases")))
        ids = [case.id for case in cases]
        if len(set(ids)) != len(ids):
            raise Unreadable("cases: expected every id once, got one twice")
        verdicts = Verdicts(**texts, cases=cases)
        if document.get("verdict") != verdicts.verdict.value:
            raise Unreadable(
                f"verdict: expected {verdicts.verdict.value} by its cases, got {document.get('verdict')!r}"
            )
    return verdicts


def read_run(path: Path) -> Run:
    """Reads `base.json` or `head.json`.

    Raises:
        Unreadable: as `read_verdicts`.
    """
    document = load(path)
    with _naming(path):
        info = _table(_table(document, "machine_info"), "flash_dsa")
        suite, fingerprint = info.get("suite"), info.get("fingerprint")
        if fingerprint is not None and not isinstance(fingerprint, dict):
            raise Unreadable(f"fingerprint: expected a table or null, got {type(fingerprint).__name__}")
        cases: dict[str, Measured] = {}
        for number, benchmark in enumerate(_list(document, "benchmarks")):
            where = f"benchmarks[{number}]."
            if not isinstance(benchmark, dict):
                raise Unreadable(f"{where}: expected a table, got {type(benchmark).__name__}")
            extra = _table(benchmark, "extra_info", where)
            cases[_text(extra, "case", where)] = _measured(extra, where)
        return Run(
            commit=_text(info, "commit"),
            machine=_text(info, "machine"),
            protocol=_text(info, "protocol"),
            suite=suite if isinstance(suite, str) else None,
            environment=_table(info, "environment"),
            fingerprint=fingerprint,
            controls=tuple(_controls(info)),
            cases=cases,
            failures=_failures(document),
        )


def _controls(info: Mapping[str, Any]) -> Iterator[dict[str, Control]]:
    """Controls that have a number, each time they were measured."""
    for number, measured in enumerate(_list(info, "controls") if "controls" in info else ()):
        where = f"controls[{number}]."
        if not isinstance(measured, dict):
            raise Unreadable(f"{where}: expected a table, got {type(measured).__name__}")
        tables = {name: _table(measured, name, where) for name in measured}
        keys = ("seconds_median", "seconds_low", "seconds_high")
        yield {
            name: Control(*(_seconds(table.get(key), f"{where}{name}.{key}") for key in keys))
            for name, table in tables.items()
            if table.get("seconds_median") is not None
        }


def evidence_of(base: Run, head: Run) -> list[Evidence]:
    """The evidence of every case that either side knows, base's cases first."""
    ids = dict.fromkeys([*base.cases, *base.failures, *head.cases, *head.failures])
    return [_evidence(name, base, head) for name in ids]


def write_atomically(path: Path, content: str) -> None:
    """Writes a file whole or not at all: a temporary file beside it, then a rename. A device or pipe is written to."""
    if path.exists() and not path.is_file():
        path.write_text(content, encoding="utf-8")
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _evidence(name: str, base: Run, head: Run) -> Evidence:
    ours, theirs = base.cases.get(name), head.cases.get(name)
    known = theirs or ours
    op = known.problem.get("op") if known else None
    same = codegen.same_code(base.fingerprint, head.fingerprint, known.backend if known else None, op)
    # A case that another target serves on each side runs other code, whatever the fingerprints say of one target.
    same = same and (ours is None or theirs is None or ours.backend == theirs.backend)
    blocks = []
    for number in sorted({*(ours.bursts if ours else ())} & {*(theirs.bursts if theirs else ())}):
        assert ours is not None and theirs is not None
        order, burst = ours.bursts[number]
        blocks.append(Block(burst, theirs.bursts[number][1], "AB" if order == "AB" else "BA"))
    device = known.device if known else "cpu"
    return Evidence(name, device, tuple(blocks), _side(name, base), _side(name, head), same)


def _side(name: str, run: Run) -> Side:
    reason, detail = run.failures.get(name, (None, ""))
    return Side(present=name in run.cases or reason is not None, failure=reason, detail=detail)


def _measured(extra: Mapping[str, Any], where: str) -> Measured:
    device, backend = _text(extra, "device", where), extra.get("backend")
    if device not in ("cpu", "cuda"):
        raise Unreadable(f"{where}device: expected cpu or cuda, got {device!r}")
    bursts: dict[int, tuple[str, Burst]] = {}
    for number, found in enumerate(_list(extra, "bursts", where)):
        at = f"{where}bursts[{number}]."
        if not isinstance(found, dict) or type(found.get("block")) is not int or found.get("order") not in ("AB", "BA"):
            raise Unreadable(f"{at}: expected block, a number, and order, AB or BA")
        bursts[found["block"]] = (found["order"], _burst(found, at))
    return Measured(_table(extra, "problem", where), device, backend if isinstance(backend, str) else None, bursts)


def _burst(found: Mapping[str, Any], where: str) -> Burst:
    seconds = [_number(value, f"{where}seconds") for value in _list(found, "seconds", where)]
    cycles = None
    if found.get("cycles") is not None:
        cycles = [_number(value, f"{where}cycles") for value in _list(found, "cycles", where)]
    discarded = _table(found, "discarded", where)
    if not all(type(count) is int and count >= 0 for count in discarded.values()):
        raise Unreadable(f"{where}discarded: expected counts by reason")
    capped = found.get("power_capped")
    if capped not in (True, False, None):
        raise Unreadable(f"{where}power_capped: expected true, false or null, got {capped!r}")
    try:
        return Burst(seconds, cycles, discarded, capped)
    except ValueError as error:
        raise Unreadable(f"{where}{error}") from error


def _failures(document: Mapping[str, Any]) -> dict[str, tuple[Reason, str]]:
    failures = {}
    for name, failure in _table(document, "failures").items() if "failures" in document else ():
        if not isinstance(failure, dict) or failure.get("reason") not in [reason.value for reason in Reason]:
            raise Unreadable(f"failures.{name[:80]}: expected a reason of {', '.join(r.value for r in Reason)}")
        failures[name] = (Reason(failure["reason"]), str(failure.get("detail") or ""))
    return failures


def _case_verdict(case: Any, where: str) -> CaseVerdict:
    if not isinstance(case, dict):
        raise Unreadable(f"{where}: expected a table, got {type(case).__name__}")
    missing = [key for key in CASE_KEYS if key not in case]
    if missing:
        raise Unreadable(f"{where}{missing[0]}: expected a value, got none")
    numbers = {key: None if case[key] is None else _number(case[key], where + key) for key in _NUMBERS}
    if any((numbers[key] is None) != (numbers["ratio"] is None) for key in _NUMBERS):
        raise Unreadable(f"{where}ratio: expected {', '.join(_NUMBERS)} all or none")
    if any(number is not None and not _LEAST < number < 1 / _LEAST for key, number in numbers.items() if key != "mde"):
        raise Unreadable(f"{where}ratio: expected positive numbers, got {numbers}")
    if not isinstance(case["same_code"], bool):
        raise Unreadable(f"{where}same_code: expected true or false, got {case['same_code']!r}")
    try:
        verdict = Verdict(case["verdict"])
        reason = None if case["reason"] is None else Reason(case["reason"])
    except ValueError as error:
        raise Unreadable(f"{where}verdict or reason: {str(error)[:80]}") from error
    if (verdict is Verdict.FAILED) != (reason is not None):
        raise Unreadable(f"{where}reason: expected one exactly for failed, got {reason} for {verdict.value}")
    return CaseVerdict(_text(case, "id", where), verdict, reason, **numbers, same_code=case["same_code"])


@contextlib.contextmanager
def _naming(path: Path) -> Any:
    """Puts the file's path before the message."""
    try:
        yield
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None


def _text(table: Mapping[str, Any], key: str, where: str = "") -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise Unreadable(f"{where}{key}: expected a text, got {type(value).__name__}")
    return value


def _table(table: Mapping[str, Any], key: str, where: str = "") -> dict[str, Any]:
    value = table.get(key)
    if not isinstance(value, dict):
        raise Unreadable(f"{where}{key}: expected a table, got {type(value).__name__}")
    return value


def _list(table: Mapping[str, Any], key: str, where: str = "") -> Sequence[Any]:
    value = table.get(key)
    if not isinstance(value, list):
        raise Unreadable(f"{where}{key}: expected a list, got {type(value).__name__}")
    return value


def _seconds(value: Any, where: str) -> float:
    seconds = _number(value, where)
    if seconds <= 0:
        raise Unreadable(f"{where}: expected seconds above 0, got {seconds}")
    return seconds


def _number(value: Any, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Unreadable(f"{where}: expected a finite number, got {str(value)[:40]}")
    return number
