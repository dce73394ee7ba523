"""A long history is judged in a minute: 10,000 commits of 200 series."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SERIES = 200


def judge(root: Path, commits: int) -> tuple[float, float]:
    """Seconds and gigabytes of `ci judge` over an invented history in which all series move every 500 commits."""
    values = np.exp(np.random.default_rng(0).normal(0, 0.004, (commits, SERIES)))
    values *= (1 + 0.03 * (np.arange(commits) // 500))[:, None]
    names = [str(topk) for topk in range(SERIES)]
    machine = root / str(commits) / "box"
    machine.mkdir(parents=True)
    for number, row in enumerate(values.round(6).tolist()):
        commit = f"{number:040x}"
        results = {"sparse_prefill.SparsePrefill.track_seconds": [row, [["4096"], names, ["'flash_dsa'"]], "v"]}
        content = {"commit_hash": commit, "date": number, "env_name": "py", "results": results}
        content |= {"version": 2, "result_columns": ["result", "params", "version"]}
        (machine / f"{commit}-py.json").write_text(json.dumps(content))
    begin = time.monotonic()
    command = [sys.executable, "-m", "ci", "judge", str(machine.parent), "--output", str(root / "alerts.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    assert done.returncode == 1, done.stderr
    found = json.loads((root / "alerts.json").read_text())["alerts"]
    assert {alert["commit"] for alert in found if len(alert["series"]) > SERIES / 2} == {
        f"{number:040x}" for number in range(500, commits, 500)
    }
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


@pytest.mark.slow
def test_a_long_history_takes_a_minute_and_grows_with_its_length(tmp_path: Path) -> None:
    short, _ = judge(tmp_path, 2500)
    long, gigabytes = judge(tmp_path, 10_000)
    print(f"2,500 commits: {short:.1f} s; 10,000: {long:.1f} s, {gigabytes:.2f} GB")
    assert long < 60 and gigabytes < 2
    assert long < 6 * short
