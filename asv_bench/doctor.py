"""The doctor: what can be measured here, and why the rest cannot."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from asv_bench import cases, errors, implementations, record, telemetry
from asv_bench.tables import Table


def default_device() -> torch.device:
    """The first GPU if torch sees one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def facts_table(device: torch.device) -> Table:
    """Machine, versions and target."""
    facts: dict[str, Any] = telemetry.machine_facts(device)
    commit, dirty = record.commit_and_dirty()
    rows = [("device", str(device)), ("target", _target(device)), ("flash_dsa", _version())]
    rows.append(("commit", commit + {True: " with uncommitted changes", False: "", None: " (git cannot tell)"}[dirty]))
    rows.append(("library built from", record.built_commit() or "not noted by its build"))
    rows += [(name.replace("_", " "), str(value)) for name, value in facts.items() if value is not None]
    if device.type == "cpu":
        rows.append(("gpu", "none that torch can use" + ("" if torch.version.cuda else ": this torch has no CUDA")))
    return Table("Machine", ("<fact", "<value"), tuple(rows))


def implementations_table(device: torch.device, names: tuple[str, ...]) -> Table:
    """Which implementations can run on a device, and why the others cannot."""
    rows = []
    for name in names:
        reason = implementations.get(name).unavailable(device)
        rows.append((name, "no" if reason else "yes", reason or _scope(name)))
    return Table("Implementations", ("<implementation", "<available", "<reason or scope"), tuple(rows))


def cases_table() -> Table:
    """All cases by set."""
    rows = [
        (name, case.id, f"{case.problem.flops / 1e9:.1f}")
        for name in cases.set_names()
        for case in cases.cases_of(name)
    ]
    return Table("Cases", ("<set", "<id", "GFLOP"), tuple(rows))


def _scope(name: str) -> str:
    scopes = {"flash_dsa": "both ops", "naive": "both ops", "sdpa": "dense_fwd", "flash_mla": "what it accepts here"}
    return scopes.get(name, "the op whose arguments it takes")


def _target(device: torch.device) -> str:
    try:
        return str(importlib.import_module("flash_dsa").target_of(device))
    except Exception as error:
        return f"none: {errors.reason_of(error)}"


def _version() -> str:
    try:
        module = importlib.import_module("flash_dsa")
        return f"{module.__version__}, compiled targets: {module.compiled_targets()}"
    except Exception as error:
        return f"not importable: {errors.reason_of(error)}"
