"""An invented history of any length: a repository and asv's tree of 200 series with its sidecars."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from judge import invented_site as invented

SERIES = 200
LEVEL = 500  # commits of one level; each is 3 % above the one before
_S_KV, _TOPK = [4096 << i for i in range(6)], [256 * i for i in range(1, 12)]
_IMPLEMENTATIONS, _CONTROLS = ("flash_dsa", "naive", "flash_mla"), ("copy", "gemm")
_POINTS = [(s_kv, topk, name) for s_kv in _S_KV for topk in _TOPK for name in _IMPLEMENTATIONS]
_GRIDS: dict[str, dict[str, Sequence[object]]] = {
    "sparse_prefill.SparsePrefill.track_seconds": {"s_kv": _S_KV, "topk": _TOPK, "implementation": _IMPLEMENTATIONS},
    "control.Control.track_seconds": {"work": _CONTROLS},
}
_CONFIG = {"version": 1, "project": "long", "repo": ".", "branches": ["HEAD"], "benchmark_dir": "asv_bench"}
_CONFIG |= {"results_dir": "results", "html_dir": "html", "environment_type": "virtualenv"}


def write(root: Path, commits: int) -> invented.Tree:
    """Makes both in a folder, from which asv can publish."""
    hashes = _commit(root, commits)
    values = 1e-3 * np.exp(np.random.default_rng(0).normal(0, 0.004, (commits, SERIES)))
    values *= (1 + 0.03 * (np.arange(commits) // LEVEL))[:, None]
    machine = root / "results" / "box"
    machine.mkdir(parents=True)
    (machine / "machine.json").write_text(json.dumps({"machine": "box", "version": 1}))
    (root / "results" / "benchmarks.json").write_text(json.dumps(dict(map(_described, _GRIDS), version=2)))
    (root / "asv.conf.json").write_text(json.dumps(_CONFIG))
    for number, (commit, row) in enumerate(zip(hashes, values.round(9).tolist(), strict=True)):
        _write_commit(machine, number, commit, row)
    return invented.Tree(root, root / "results", tuple(hashes))


def _params(name: str) -> list[list[str]]:
    return [list(map(repr, axis)) for axis in _GRIDS[name].values()]


def _described(name: str) -> tuple[str, Any]:
    fields = {"name": name, "code": "", "type": "track", "unit": "seconds", "version": "v"}
    return name, {**fields, "param_names": list(_GRIDS[name]), "params": _params(name)}


def _commit(root: Path, commits: int) -> list[str]:
    """Empty commits, an hour apart; their hashes in order."""
    root.mkdir(parents=True, exist_ok=True)
    invented.git(root, 0, "init", "--quiet", "--initial-branch=main")
    who = "committer test <test>"
    told = (f"commit refs/heads/main\n{who} {1_790_000_000 + n * 3600} +0000\ndata 4\nidea\n" for n in range(commits))
    subprocess.run(["git", "fast-import", "--quiet"], cwd=root, input="".join(told), text=True, check=True)
    return invented.git(root, 0, "rev-list", "--reverse", "main").split()


def _write_commit(machine: Path, number: int, commit: str, row: list[float]) -> None:
    results = {}
    sparse = len(row) - len(_CONTROLS)
    for name, values in zip(_GRIDS, (row[:sparse], row[sparse:]), strict=True):
        low, high = ([value * factor for value in values] for factor in (0.998, 1.002))
        results[name] = [values, _params(name), "v", 0, 1.0, low, high]
    content = {"commit_hash": commit, "date": (1_790_000_000 + number * 3600) * 1000, "env_name": "py", "version": 2}
    content |= {"params": {"machine": "box"}, "requirements": {}, "env_vars": {}, "python": "py", "profiles": {}}
    content |= {"result_columns": invented.COLUMNS, "results": results, "durations": {}}
    (machine / f"{commit[:8]}-py.json").write_text(json.dumps(content))
    lines: list[dict[str, Any]] = [{"machine": {"gpu": "NVIDIA H100 80GB HBM3"}}]
    lines.append({"fingerprint": invented.fingerprint(number // LEVEL)})
    for (s_kv, topk, name), value in zip(_POINTS, row, strict=False):  # without the controls
        view = {"view": ["sparse", s_kv, topk, name], "cycles_median": value * 1.7e9}
        lines.append(invented.problem(s_kv, topk) | view)
    (machine / f"{commit}.telemetry.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
