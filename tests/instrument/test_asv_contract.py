"""One test per behaviour of asv that the suites and the Makefile lean on.

Several of them are conventions of asv 0.6.6 and asv_runner 0.3.2, not documented promises: when an upgrade breaks one,
the name of the failing test says what to look for. The benchmarks here are trivial and need neither torch nor a build.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("asv", reason="asv is not installed")

pytestmark = pytest.mark.xdist_group("asv")  # in one process: its fixture is made once

MACHINE = "contract"
POINTS = ["fast", "noisy", "absent", "wrong"]

CONFIG = """{
    // asv reads its configuration with json5: comments are allowed
    "version": 1, "project": "lib", "repo": ".", "branches": ["HEAD"],
    "benchmark_dir": "bench", "results_dir": "bench/results", "env_dir": ".asv/env", "html_dir": ".asv/html",
    "environment_type": "virtualenv", "launch_method": "forkserver",
}
"""
# The base class lives in its own module, its two subclasses in two others: the layout of asv_bench.
BASE = """
import os
import lib

class _Base:
    version = "protocol-1"
    type = "time"
    unit = "seconds"
    params = [["fast", "noisy", "absent", "wrong"]]
    param_names = ["point"]

    def setup_cache(self):
        with open(os.environ["CONTRACT_LOG"], "a") as log:
            log.write(f"{os.getpid()} {lib.ORIGIN}\\n")
        level = float(os.environ["CONTRACT_LEVEL"])
        spread = {"fast": 0.001, "noisy": 3.0}
        return {p: [level * (1 + s * (i % 5) / 5) for i in range(20)] for p, s in spread.items()}

    def setup(self, cache, point):
        if point == "absent":
            raise NotImplementedError("the reason it is absent")
"""
SUITE = """
import os
from bench.base import _Base

class {name}(_Base):
    def {method}(self, cache, point):
        with open(os.environ["CONTRACT_LOG"], "a") as log:
            log.write(f"{{os.getpid()}} run\\n")
        if point == "wrong":
            raise AssertionError("the answer was wrong")
        return {{"samples": cache[point], "number": 1}}
"""
# The passes of two classes: one longer than its timeout, one longer than the timeout of its benchmark alone.
PASSES = """
import time

class Cut:
    def setup_cache(self):
        time.sleep(60)
    setup_cache.timeout = 1

    def track_seconds(self, cache):
        return 1.0

class Awaited:
    timeout = 3

    def setup_cache(self):
        time.sleep(5)
        return 2.0
    setup_cache.timeout = 60

    def track_seconds(self, cache):
        return cache
"""


@dataclass
class Run:
    commit: str
    code: int
    output: str
    log: list[list[str]]
    benchmarks: bytes
    text: str

    def row(self, benchmark: str) -> dict[str, Any]:
        result = json.loads(self.text)
        return dict(zip(result["result_columns"], result["results"][benchmark], strict=False))


@dataclass
class History:
    root: Path
    python: Path
    runs: list[Run]

    def asv(self, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "HOME": str(self.root.parent), **variables}
        command = [sys.executable, "-m", "asv", *args]
        return subprocess.run(command, cwd=self.root, env=environ, text=True, capture_output=True)

    def git(self, *args: str) -> str:
        identity = ["-c", "user.name=contract", "-c", "user.email=contract@example.org"]
        return subprocess.run(
            ["git", *identity, *args], cwd=self.root, text=True, check=True, capture_output=True
        ).stdout

    def measure(self, level: float) -> Run:
        commit = self.git("rev-parse", "HEAD").strip()
        log = self.root.parent / "log"
        log.unlink(missing_ok=True)
        done = self.asv(
            *["run", "-E", f"existing:{self.python}", "--set-commit-hash", commit, "--machine", MACHINE],
            *["--record-samples", "--show-stderr"],
            CONTRACT_LOG=str(log),
            CONTRACT_LEVEL=str(level),
            ASV_PYTHONPATH=str(self.root.parent / "installed"),
        )
        results = self.root / "bench" / "results"
        (file,) = (results / MACHINE).glob(f"{commit[:8]}-*.json")
        lines = [line.split() for line in log.read_text().splitlines()]
        return Run(
            commit, done.returncode, done.stdout, lines, (results / "benchmarks.json").read_bytes(), file.read_text()
        )


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Two commits, the second 20 % slower, each measured in an existing environment reached through a symlink."""
    home = tmp_path_factory.mktemp("asv")
    root = home / "repo"
    for origin, folder in [("working tree", root), ("environment", home / "installed")]:
        (folder / "lib").mkdir(parents=True)
        (folder / "lib" / "__init__.py").write_text(f"ORIGIN = {origin.split()[0]!r}\n")
    (root / "bench").mkdir()
    (root / "asv.conf.json").write_text(CONFIG)
    (root / "bench" / "__init__.py").write_text("")
    (root / "bench" / "base.py").write_text(BASE)
    (root / "bench" / "first.py").write_text(SUITE.format(name="First", method="track_seconds"))
    (root / "bench" / "second.py").write_text(SUITE.format(name="Second", method="track_ratio"))
    (home / "venv").symlink_to(sys.prefix)  # a symlinked directory keeps the environment's packages, a file would not
    made = History(root, home / "venv" / "bin" / "python", [])
    made.git("init", "-q", "-b", "main")
    made.asv("machine", "--machine", MACHINE, "--os", "", "--arch", "", "--cpu", "", "--num_cpu", "", "--ram", "")
    for number, level in enumerate([1.0, 1.2]):
        made.git("add", "lib", "bench/*.py", "asv.conf.json")
        made.git("commit", "-q", "--allow-empty", "-m", f"commit {number}")
        made.runs.append(made.measure(level))
        with (root / "bench" / "base.py").open("a") as source:
            source.write("\n# an edit of the suite's source\n")
    # A sidecar as the suites write it, there before compare and publish read the folder.
    (root / "bench" / "results" / MACHINE / f"{made.runs[0].commit}.telemetry.jsonl").write_text('{"gpu": null}\n')
    return made


def test_returned_samples_become_asv_statistics(history: History) -> None:
    row = history.runs[0].row("first.First.track_seconds")
    assert row["result"][0] == pytest.approx(1.0004)  # the median of what was returned
    assert row["stats_ci_99_a"][0] <= row["stats_q_25"][0] <= row["stats_q_75"][0] <= row["stats_ci_99_b"][0]
    assert (row["stats_number"][0], row["stats_repeat"][0]) == (1, 20)
    assert len(row["samples"][0]) == 20


def test_type_and_unit_are_class_attributes(history: History) -> None:
    benchmarks = json.loads(history.runs[0].benchmarks)
    for name in ["first.First.track_seconds", "second.Second.track_ratio"]:
        assert (benchmarks[name]["type"], benchmarks[name]["unit"]) == ("time", "seconds")


def test_base_class_with_underscore_is_no_benchmark(history: History) -> None:
    assert sorted(json.loads(history.runs[0].benchmarks)) == [
        "first.First.track_seconds",
        "second.Second.track_ratio",
        "version",
    ]


def test_setup_cache_runs_once_for_all_subclasses_and_parameters(history: History) -> None:
    for run in history.runs:
        assert sum(line[1] != "run" for line in run.log) == 1


def test_every_point_has_a_process_of_its_own(history: History) -> None:
    log = history.runs[0].log
    measured = [point for point in POINTS if point != "absent"]
    assert len(log) == 1 + 2 * len(measured)
    assert len({pid for pid, _ in log}) == len(log)


def test_not_implemented_in_setup_is_na_and_its_reason_is_printed(history: History) -> None:
    row = history.runs[0].row("first.First.track_seconds")
    assert row["result"][2] != row["result"][2]
    assert "the reason it is absent" in history.runs[0].output


def test_result_files_hold_literal_nan(history: History) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    with pytest.raises(ValueError, match="NaN"):
        json.loads(history.runs[0].text, parse_constant=refuse)


def test_exception_in_body_is_a_failure_and_asv_run_says_so(history: History) -> None:
    assert history.runs[0].row("first.First.track_seconds")["result"][3] is None
    assert history.runs[0].code == 2


def test_version_attribute_replaces_the_source_hash(history: History) -> None:
    assert [run.row("second.Second.track_ratio")["version"] for run in history.runs] == ["protocol-1", "protocol-1"]


def test_benchmarks_json_is_byte_identical_for_the_same_source(history: History) -> None:
    # The comment added between the two commits is outside every function, so asv sees the same source.
    assert history.runs[0].benchmarks == history.runs[1].benchmarks


def test_set_commit_hash_makes_an_existing_environment_save(history: History) -> None:
    for run in history.runs:
        assert json.loads(run.text)["commit_hash"] == run.commit


def test_interpreter_path_is_part_of_the_series(history: History) -> None:
    result = json.loads(history.runs[0].text)
    assert result["params"]["python"] == str(history.python)  # as given: the symlink is not resolved
    assert result["env_name"] == "existing-py" + str(history.python).replace("/", "_")


def test_library_comes_from_the_environment_not_the_working_tree(history: History) -> None:
    for run in history.runs:
        assert [line[1] for line in run.log if line[1] != "run"] == ["environment"]


def test_compare_uses_the_samples_and_exits_zero_on_a_regression(history: History) -> None:
    done = history.asv("compare", *[run.commit for run in history.runs], "--machine", MACHINE)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if "First" in line]
    mark_and_ratio = {row[5]: (row[1], row[4]) for row in rows}
    assert mark_and_ratio["first.First.track_seconds('fast')"] == ("+", "1.20")
    assert mark_and_ratio["first.First.track_seconds('noisy')"] == ("", "~1.20")  # the same 20 %, inside the noise


def test_publish_shows_both_commits_on_any_checkout(history: History) -> None:
    history.git("checkout", "-q", "--detach")
    done = history.asv("publish", "--no-pull")
    assert done.returncode == 0, done.stderr
    graphs = history.root / ".asv" / "html" / "graphs"
    (graph,) = (path for path in graphs.rglob("first.First.track_seconds.json") if "summary" not in path.parts)
    points = json.loads(graph.read_text())
    assert [values[0] for _, values in points] == pytest.approx([1.0004, 1.2005], rel=1e-3)


def test_sidecar_beside_the_results_is_not_taken_for_a_result(history: History) -> None:
    assert list((history.root / "bench" / "results" / MACHINE).glob("*.telemetry.jsonl"))
    for command in (["publish", "--no-pull"], ["show", "--machine", MACHINE]):
        done = history.asv(*command)
        assert done.returncode == 0 and "telemetry" not in done.stdout + done.stderr


@pytest.fixture
def passes(tmp_path: Path) -> History:
    """A commit with two suites that differ in `setup_cache.timeout`, discovered and not run."""
    root = tmp_path / "repo"
    (root / "bench").mkdir(parents=True)
    (root / "asv.conf.json").write_text(CONFIG)
    (root / "bench" / "__init__.py").write_text("")
    (root / "bench" / "passes.py").write_text(PASSES)
    made = History(root, Path(sys.executable), [])
    made.git("init", "-q", "-b", "main")
    made.git("add", ".")
    made.git("commit", "-q", "-m", "a commit")
    made.asv("machine", "--machine", MACHINE, "--os", "", "--arch", "", "--cpu", "", "--num_cpu", "", "--ram", "")
    return made


def test_just_discover_writes_benchmarks_json_and_runs_nothing(passes: History) -> None:
    done = passes.asv("run", "--bench", "just-discover", "--environment", "existing", "--machine", MACHINE)
    assert done.returncode == 0, done.stdout + done.stderr
    results = passes.root / "bench" / "results"
    benchmarks = json.loads((results / "benchmarks.json").read_text())
    assert {"passes.Cut.track_seconds", "passes.Awaited.track_seconds"} < set(benchmarks)
    assert [path.name for path in (results / MACHINE).iterdir()] == ["machine.json"]


def test_timeout_of_setup_cache_is_its_own(passes: History) -> None:
    """Neither asv's default of 60 s nor the timeout of the benchmark, which counts for its body alone."""
    environment = f"existing:{passes.python}"
    commit = passes.git("rev-parse", "HEAD").strip()
    started = time.monotonic()
    done = passes.asv("run", "-E", environment, "--set-commit-hash", commit, "--machine", MACHINE, "--show-stderr")
    assert time.monotonic() - started < 45, "the pass of Cut sleeps for 60 s"
    (file,) = (passes.root / "bench" / "results" / MACHINE).glob(f"{commit[:8]}-*.json")
    results = json.loads(file.read_text())["results"]
    assert results["passes.Awaited.track_seconds"][0] == [2.0]
    assert results["passes.Cut.track_seconds"][0] is None and done.returncode == 2
    assert "setup_cache failed" in done.stdout
