"""The whole path on a CPU: in a clone with two commits, `make bench` on both, then what asv makes of the history."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import pytest
import tree

pytestmark = pytest.mark.xdist_group("make")  # one after the other: each runs make

ROOT = Path(__file__).resolve().parents[1]
MACHINE = "local-pipeline"
pytest.importorskip("flash_dsa", reason="the library is not built")


@dataclass
class Clone:
    root: Path
    home: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "HOME": str(self.home), "FLASH_DSA_BENCH_CPU": "1", "FLASH_DSA_TARGETS": "cpu"}
        environ = {name: value for name, value in environ.items() if name not in tree.HANDED_DOWN}
        return subprocess.run(command, cwd=self.root, env=environ, text=True, capture_output=True)

    def git(self, *arguments: str) -> str:
        done = self.run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a commit")
        return self.git("rev-parse", "HEAD")

    def bench(self) -> str:
        """`make bench` of a tiny sweep and grid, on the environment and the build that run this test."""
        done = self.run(
            *["make", "bench", "--old-file=.venv/ready", "--old-file=flash_dsa/libflash_dsa.so"],
            *[f"MACHINE={MACHINE}", f"ASV_VENV={self.home}/venv"],
            *["SWEEP_OPTIONS=--set tiny --device cpu", "ASV_OPTIONS=--bench Smoke"],
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def preview(self) -> Iterator[str]:
        """`asv preview` on a port that was free a moment ago."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "asv", "preview", "--port", str(port)]
        server = subprocess.Popen(command, cwd=self.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while True:
                assert server.poll() is None, f"asv preview ended with {server.returncode}"
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, "asv preview does not listen"
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait(timeout=30)


def fetch(address: str) -> bytes:
    """Over HTTP, past any proxy of the environment."""
    with build_opener(ProxyHandler({})).open(address, timeout=30) as answer:
        content: bytes = answer.read()
    return content


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    made = Clone(tmp_path / "clone", tmp_path)
    for path in tree.project_files():
        copied = made.root / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copied)
    import flash_dsa

    for name in ("libflash_dsa.so", "_build_info.py"):
        shutil.copy2(Path(flash_dsa.__file__).with_name(name), made.root / "flash_dsa" / name)
    (made.root / ".venv").symlink_to(sys.prefix)
    suite = made.root / "asv_bench" / "suite.py"
    shrunk, count = re.subn(
        r"s_kv=\(1024, 4096\),\n(\s+)topk=\(64, 256\)", r"s_kv=(64,),\n\1topk=(16,)", suite.read_text()
    )
    assert count == 1
    suite.write_text(shrunk)
    made.git("init", "--quiet", "--initial-branch=main")
    (made.root / ".git" / "info" / "exclude").write_text(".venv\n")
    return made


def test_from_clone_to_dashboard(clone: Clone) -> None:
    commits = [clone.commit()]
    said = clone.bench()
    assert ".asv/html/index.html" in said and "report.html" in said
    sweep = clone.root / "asv_bench" / "sweeps" / MACHINE
    records = json.loads((sweep / "sweep.json").read_text())["records"]
    assert {record["commit"] for record in records} == set(commits)
    assert all(record["seconds_median"] > 0 for record in records if record["implementation"] == "flash_dsa")
    assert (sweep / "report.html").stat().st_size > 0

    commits.append(clone.commit())  # holds benchmarks.json of the shrunk grid
    clone.bench()
    assert clone.git("status", "--porcelain") == ""
    results = clone.root / "asv_bench" / "results" / MACHINE
    for commit in commits:
        assert list(results.glob(f"{commit[:8]}-existing-*.json"))
        assert len((results / f"{commit}.telemetry.jsonl").read_text().splitlines()) > 1

    compared = clone.run(sys.executable, "-m", "asv", "compare", *commits, "--machine", MACHINE)
    assert compared.returncode == 0, compared.stderr
    assert "SparsePrefillSmoke.track_seconds(64, 16, 'flash_dsa')" in compared.stdout
    graphs = clone.root / ".asv" / "html" / "graphs"
    for benchmark in ("sparse_prefill.SparsePrefillSmoke.track_seconds", "speedup.SparseOverDenseSmoke.track_ratio"):
        (graph,) = (path for path in graphs.rglob(f"{benchmark}.json") if "summary" not in path.parts)
        points = json.loads(graph.read_text())
        assert len(points) == len(commits)
        assert all(value > 0 for _, values in points for value in values)
    check_preview(clone, said, graph.relative_to(graphs.parent))


def check_preview(clone: Clone, said: str, graph: Path) -> None:
    """The site as `asv preview` serves it, and that the page `make bench` names is on it."""
    with clone.preview() as address:
        page = fetch(f"{address}/index.html").decode()
        index = json.loads(fetch(f"{address}/index.json"))
        points = json.loads(fetch(f"{address}/{quote(str(graph))}"))
    assert "<title>airspeed velocity" in page and index["project"] == "flash_dsa" and len(points) == 2
    link = re.search(r"http://127\.0\.0\.1:\d+/#(\S+)\?machine=(\S+)&x-axis=(\S+)$", said, re.M)
    assert link, said
    benchmark, machine, axis = link.groups()
    assert axis in index["benchmarks"][benchmark]["param_names"] and benchmark.split(".")[1] == "SparsePrefillSmoke"
    assert machine == MACHINE and machine in index["params"]["machine"]


@pytest.mark.slow
def test_continuous_builds_both_commits(clone: Clone) -> None:
    """asv's own virtualenvs, with the commands of asv.conf.json; without .venv/packages.pth they would lack torch."""
    commits = [clone.commit(), clone.commit()]
    clone.run(sys.executable, "-m", "asv", "machine", "--yes", "--machine", MACHINE)
    done = clone.run(
        *[sys.executable, "-m", "asv", "continuous", *commits],
        *["--machine", MACHINE, "--bench", "SparsePrefillSmoke", "--factor", "1000", "--show-stderr"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for commit in commits:
        (file,) = (clone.root / "asv_bench" / "results" / MACHINE).glob(f"{commit[:8]}-virtualenv-*.json")
        result = json.loads(file.read_text())
        (row,) = result["results"].values()
        assert all(value > 0 for value in row[0])
