"""An invented history with known truth, of two machines, for the dashboard: commits in git, results and sidecars."""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci import bridge

COMMITS = 24
SLOWER_AT, FASTER_AT = 8, 16  # ours moves with these, and so does its machine code
HOSTILE = "<img src=x onerror=\"document.body.dataset.hacked='yes'\">"
MACHINES = ("h100-sxm", "<b>h200")
S_KV, TOPK, HEADS = (4096, 8192, 16384), (512, 2048), ("192x128", "576x512")
IMPLEMENTATIONS = ("flash_dsa", "naive", "flash_mla")
FAILED_AT = 5  # ours at the largest s_kv and topk
CARDS = ("GPU-0", "GPU-1", HOSTILE)  # of the pieces in which the first machine was measured
COLUMNS = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b"]


@dataclass(frozen=True)
class Tree:
    """A repository, its commits in order, and a results tree."""

    repository: Path
    results: Path
    commits: tuple[str, ...]


def seconds(machine: int, commit: int, s_kv: int, topk: int, implementation: str) -> float:
    """The truth: ours is 5 % slower from SLOWER_AT on and 20 % faster from FASTER_AT on; others stay."""
    base = topk * 3e-6 * (1 + s_kv / 1e6) / (1 + 0.3 * machine)
    wave = 1 + 0.001 * math.sin(commit * 2.3 + topk + s_kv + len(implementation))
    if implementation != "flash_dsa":
        return base * wave * {"naive": 3.0, "flash_mla": 0.7}[implementation]
    return base * wave * (1.05 if commit >= SLOWER_AT else 1) * (0.8 if commit >= FASTER_AT else 1)


def ratio(machine: int, commit: int, s_kv: int, topk: int, heads: str) -> float:
    """Sparse over dense: 1 at s_kv = 12 topk for 192x128 before anything moved, and always below 1 for 576x512."""
    dense = s_kv * 3e-6 / (12 if heads == "192x128" else 2) * (1 + s_kv / 1e6) / (1 + 0.3 * machine)
    return seconds(machine, commit, s_kv, topk, "flash_dsa") / dense


def write(root: Path, commits: int = COMMITS) -> Tree:
    """Makes the repository and the tree below a folder."""
    repository, results = root / "repository", root / "results"
    repository.mkdir(parents=True)
    git(repository, 0, "init", "--quiet", "--initial-branch=main")
    hashes = []
    for number in range(commits):
        message = HOSTILE if number == SLOWER_AT else f"sparse_fwd: idea number {number}"
        git(repository, number, "commit", "--quiet", "--allow-empty", "--message", message)
        hashes.append(git(repository, number, "rev-parse", "HEAD"))
    for number, commit in enumerate(hashes):
        for machine in range(len(MACHINES)):
            if machine == 0 or number >= commits - 3:  # the second is new
                _write_commit(results / MACHINES[machine], machine, number, commit)
    for number, card in enumerate(CARDS):
        values = {"a": [1.0 + 0.01 * number, None, None], "b": [2.0 - 0.04 * number, None, None]}
        bridge.note(results / MACHINES[0], bridge.Piece(1_790_000_000.5 + 86_400 * number, hashes[0], card, values))
    return Tree(repository, results, tuple(hashes))


def git(repository: Path, number: int, *arguments: str) -> str:
    """Runs git as nobody, at a date of the history."""
    date = f"{1_790_000_000 + number * 86_400} +0000"
    names = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = os.environ | names | {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    done = subprocess.run(["git", *arguments], cwd=repository, env=environ, text=True, capture_output=True, check=True)
    return done.stdout.strip()


def _write_commit(folder: Path, machine: int, number: int, commit: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sparse = [seconds(machine, number, s_kv, topk, name) for s_kv in S_KV for topk in TOPK for name in IMPLEMENTATIONS]
    lines: list[dict[str, Any]] = [{"machine": {"gpu": "NVIDIA H100 80GB HBM3"}}, {"fingerprint": fingerprint(number)}]
    names = [(s_kv, topk, name) for s_kv in S_KV for topk in TOPK for name in IMPLEMENTATIONS]
    for (s_kv, topk, name), value in zip(names, sparse, strict=True):
        lines.append({"view": ["sparse", s_kv, topk, name], **problem(s_kv, topk), "cycles_median": value * 1.7e9})
    values: list[float | None] = list(sparse)
    if number == FAILED_AT:
        values[-3] = None
        lines[-3] |= {"error": f"wrong_answer: {HOSTILE}", "cycles_median": None}
    values[-1] = math.nan
    lines[-1] |= {"error": "unsupported: no room", "cycles_median": None}
    ratios = [ratio(machine, number, s_kv, topk, heads) for s_kv in S_KV for topk in TOPK for heads in HEADS]
    rows = {
        "sparse_prefill.SparsePrefill.track_seconds": _row(values, [S_KV, TOPK, [f"'{n}'" for n in IMPLEMENTATIONS]]),
        "speedup.SparseOverDense.track_ratio": _row(ratios, [S_KV, TOPK, [f"'{heads}'" for heads in HEADS]]),
        "control.Control.track_seconds": _row([1e-3, 2e-3], [["'copy'", "'gemm'"]]),
        "sparse_prefill.SparsePrefillSmoke.track_seconds": _row([math.nan], [["1024"], ["64"], ["'flash_dsa'"]]),
    }
    content = {"commit_hash": commit, "date": (1_790_000_000 + number * 86_400) * 1000, "env_name": "py"}
    content |= {"result_columns": COLUMNS, "results": rows, "version": 2}
    (folder / f"{commit[:8]}-py.json").write_text(json.dumps(content))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{commit}.telemetry.jsonl").write_text(text)


def problem(s_kv: int, topk: int) -> dict[str, Any]:
    """Fields as the suites note them."""
    sizes = {"s_q": 4096, "s_kv": s_kv, "h_q": 128, "h_kv": 1, "d_qk": 576, "d_v": 512, "topk": topk}
    return {"op": "sparse_fwd", **sizes, "causal": None, "indices": "seed", "features": "none"}


def fingerprint(number: int) -> dict[str, Any]:
    """Of two kernels: the first changes with both steps, the second is there from FASTER_AT on."""
    stage = (number >= SLOWER_AT) + (number >= FASTER_AT)
    kernel = {"op": "sparse_fwd", "registers": (222, 230, 168)[stage], "spill_bytes": 0, "shared_bytes": 1024}
    kernels = {"sm80/sparse_kernel<128>": {**kernel, "sass": "abd"[stage] * 32}}
    if number >= FASTER_AT:
        kernels["sm80/combine_kernel"] = {**kernel, "registers": 40, "sass": "c" * 32}
    return {"host": "h" * 32, "target": "sm80", "kernels": kernels}


def _row(values: Any, params: Any) -> list[Any]:
    low = [value * 0.998 if value and math.isfinite(value) else None for value in values]
    high = [value * 1.003 if value and math.isfinite(value) else None for value in values]
    return [list(values), [list(map(str, axis)) for axis in params], "v1", 0, 1.0, low, high]
