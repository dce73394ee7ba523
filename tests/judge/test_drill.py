"""Drills: what is built, what is counted, with what interval. Sides are invented, as in test_pull_request.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judge.test_pull_request import CASES, Repository

from ci import __main__ as command
from ci import drill, policy, pull_request, results
from ci.baton import Side
from ci.drill import Drills
from ci.pull_request import Checked
from ci.verdict import Evidence, judge

POLICY = policy.load()


class Planted(Repository):
    """A repository whose head takes as much longer as is planted in it."""

    def start(self, side: Checked, suite: Path, socket: Path, cases: tuple[str, ...]) -> Side:
        delay = {"": 0.0, "stage": 0.4}.get(side.plant) or float(side.plant.removeprefix("delay:") or 0)
        self.scripts[side.name]["seconds"] = 0.004 * (1 + delay)
        return super().start(side, suite, socket, cases)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Planted(tmp_path, monkeypatch)


def test_runs_are_kept_and_counted(repository: Repository) -> None:
    record = repository.root / "drills" / "box.jsonl"
    said: list[str] = []
    for _ in range(2):
        drill.run(repository.root, Drills(("nothing", "delay:1"), repeat=2), record, POLICY, said.append)
    lines = drill.read(record)
    assert [line["plant"] for line in lines] == ["nothing", "delay:1"] * 4
    assert all(line["commit"] == repository.git("rev-parse", "HEAD") and len(line["cases"]) == 3 for line in lines)
    quiet, found = drill.count(lines)
    assert (quiet.plant, quiet.flagged, quiet.judged) == ("nothing", 0, 12) and (found.flagged, found.judged) == (
        12,
        12,
    )
    assert found.interval[0] > 0.75 and quiet.interval[1] < 0.25
    assert said[1] == "run 1 of 2, planted delay:1: 3 of 3 cases moved"
    builds = sorted(
        path.name for path in (repository.root / "build" / "pr-check" / "builds").iterdir() if path.is_dir()
    )
    head = repository.git("rev-parse", "HEAD")[:12]
    assert builds == [f"{head}-{name}" for name in ("base", "base-delay-0", "head", "head-delay-1")]


def test_recorded_blocks_are_judged_as_they_were(repository: Repository, tmp_path: Path) -> None:
    record = tmp_path / "box.jsonl"
    drill.run(repository.root, Drills(("delay:1",)), record, POLICY, lambda said: None)
    (line,) = drill.read(record)
    for case in line["cases"]:
        evidence = Evidence(case["id"], "cpu", drill.blocks_of(case))
        (again,) = judge([evidence], POLICY)
        assert (again.verdict.value, again.ratio) == (case["verdict"], pytest.approx(case["ratio"], rel=1e-5))


def test_a_longer_measurement_says_what_a_real_slowdown_costs(repository: Repository, tmp_path: Path) -> None:
    record = tmp_path / "box.jsonl"
    drill.run(repository.root, Drills(("stage",)), record, POLICY, lambda said: None)
    drill.run(repository.root, Drills(("stage",), cases=CASES[:1], times=2), record, POLICY, lambda said: None)
    check, longer = drill.read(record)
    assert [case["id"] for case in longer["cases"]] == CASES[:1] and len(check["cases"]) == 3
    assert len(longer["cases"][0]["blocks"]) == 2 * POLICY.class_of("cpu", 0.004).max_blocks
    (counted,) = drill.count([check, longer])
    assert (counted.plant, counted.judged) == ("stage", 3)
    (row,) = drill.longer_table([check, longer]).splitlines()[2:]
    assert row.startswith("| stage | one | regressed | 1.") and row.endswith("| yes |")


def test_failed_cases_are_no_proof_of_silence(repository: Repository, tmp_path: Path) -> None:
    repository.scripts["head"]["wrong_in"] = CASES[0]
    record = tmp_path / "box.jsonl"
    drill.run(repository.root, Drills(("nothing",)), record, POLICY, lambda said: None)
    counted = {one.kernels: one for one in drill.count(drill.read(record))}
    assert sum(one.failed for one in counted.values()) == 1 and sum(one.judged for one in counted.values()) == 2


@pytest.mark.parametrize(
    "successes, trials, low, high",
    [(0, 0, 0.0, 1.0), (0, 300, 0.0, 0.0126), (95, 100, 0.888, 0.978), (5, 5, 0.566, 1.0)],
)
def test_wilsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert drill.wilson(successes, trials) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_table() -> None:
    counted = [
        drill.Counted("nothing", "0.2 to 10 ms", 1, 300, 4, 0),
        drill.Counted("delay:0.01", "0.2 to 10 ms", 58, 60, 2, 1),
    ]
    assert drill.table(counted).splitlines()[2:] == [
        "| nothing | 0.2 to 10 ms | 1 | 300 | 0.1% to 1.9% | 4 | 0 |",
        "| delay:0.01 | 0.2 to 10 ms | 58 | 60 | 88.6% to 99.1% | 2 | 1 |",
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"plant": 0}'])
def test_a_damaged_record_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "box.jsonl").write_text(content + "\n")
    with pytest.raises(results.Unreadable, match=r"box\.jsonl"):
        drill.read(tmp_path / "box.jsonl")


@pytest.mark.parametrize("more", [["--plants", "half"], ["--plants", "delay:2"], ["--repeat", "0"], ["--times", "0"]])
def test_arguments_that_make_no_sense(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["drill", *more]) == 3 and "expected" in capsys.readouterr().err


def test_show_counts_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(pull_request, "run", lambda *_: pytest.fail("measured"))
    case = {"id": "a", "verdict": "unchanged", "kernels": "0.2 to 10 ms"}
    (tmp_path / "box.jsonl").write_text(json.dumps({"plant": "nothing", "times": 1, "cases": [case]}) + "\n")
    assert command.main(["drill", "--show", "--record", str(tmp_path / "box.jsonl")]) == 0
    assert "| nothing | 0.2 to 10 ms | 0 | 1 |" in capsys.readouterr().out
