"""Issues about alerts: golden text, which are opened, updated and closed, and files that try to break it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from judge.test_comment import GH
from judge.test_report import FINGERPRINT, HOSTILE, KERNEL, compare_with_golden

from ci import issues
from ci.github import AUTHOR

GOOD, COMMIT = "a" * 40, "b" * 40
HERE = "repos/owner/flash_dsa/issues"


def alert(number: int = 1, **fields: Any) -> dict[str, Any]:
    series = [
        {
            "benchmark": "sparse_prefill.SparsePrefill.track_seconds",
            "params": [str(s_kv), "2048", "'flash_dsa'"],
            "ratio": ratio,
            "low": ratio - 0.002,
            "high": ratio + 0.002,
            "before": 7.8e-3,
            "after": 7.8e-3 * ratio,
            "commit": COMMIT,
        }
        for s_kv, ratio in ((8192, 1.041), (16384, 1.043))
    ]
    found = {
        "id": f"{number:012x}",
        "machine": "h100-sxm",
        "environment": "existing",
        "verdict": "regressed",
        "cause": "code",
        "status": "open",
        "commit": COMMIT,
        "commits": [COMMIT, "c" * 40],
        "known_good": GOOD,
        "fixed_by": None,
        "acknowledged": None,
        "sentences": ["sparse_fwd topk 2048 slower by 4.2 % (4.0 to 4.4 %) at s_kv 8192 to 16384"],
        "series": series,
    }
    return {**found, **fields}


class Project:
    """A folder with alerts and results, and what `gh` answers and was asked there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "gh"
        program.write_text(GH.format(python=sys.executable))
        program.chmod(0o755)
        self.issues: list[dict[str, Any]] = []
        (folder / "results" / "h100-sxm").mkdir(parents=True)

    def recorded(self, commit: str, driver: str, registers: int) -> None:
        kernels = {"sm90a/sparse_fwd_k576": KERNEL | {"registers": registers, "sass": str(registers)}}
        lines = [
            {"machine": {"gpu": "NVIDIA Invented", "driver": driver}},
            {"fingerprint": FINGERPRINT | {"kernels": kernels}},
        ]
        path = self.folder / "results" / "h100-sxm" / f"{commit}.telemetry.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(self, *alerts: dict[str, Any], more: tuple[str, ...] = ("--repository", "owner/flash_dsa")) -> int:
        (self.folder / "alerts.json").write_text(json.dumps({"schema": 1, "alerts": alerts}))
        (self.folder / "answers").write_text(json.dumps({f"{HERE}?": [self.issues]}))
        return issues.main([str(self.folder / "alerts.json"), "--results", str(self.folder / "results"), *more])

    @property
    def written(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Method, path and content of the calls that write."""
        calls = [json.loads(line) for line in (self.folder / "called").read_text().splitlines()]
        return [
            (arguments[arguments.index("--method") + 1], arguments[1], json.loads(text))
            for arguments, text in calls
            if "--method" in arguments
        ]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    return Project(tmp_path)


def as_issue(one: dict[str, Any], number: int = 7, **fields: Any) -> dict[str, Any]:
    """The issue that an earlier night opened."""
    return {
        "number": number,
        "state": "open",
        "user": {"login": AUTHOR},
        "title": "t",
        "body": f"{issues.mark(one)}\nold",
    } | fields


def test_a_regression_gets_an_issue(project: Project) -> None:
    project.recorded(GOOD, "580.1", 168)
    project.recorded(COMMIT, "590.2", 170)
    assert project.run(alert()) == 0
    ((method, path, content),) = project.written
    assert (method, path, content["labels"]) == ("POST", HERE, ["performance"])
    assert content["title"].startswith("Regressed on h100-sxm since bbbbbbbbbbbb: sparse_fwd topk 2048 slower by 4.2 %")
    compare_with_golden("issue", content["body"])


@pytest.mark.parametrize(
    "fields",
    [
        {"verdict": "improved"},
        {"cause": "environment"},
        {"status": "weak"},
        {"status": "fixed"},
        {"status": "acknowledged"},
    ],
)
def test_what_needs_nobody_gets_none(fields: dict[str, Any], project: Project) -> None:
    assert project.run(alert(**fields)) == 0
    assert project.written == []


@pytest.mark.parametrize("verdict", ["failed", "missing"])
def test_a_loss_gets_one(verdict: str, project: Project) -> None:
    lost = [{**one, "ratio": None, "low": None, "high": None, "after": None} for one in alert()["series"]]
    assert project.run(alert(verdict=verdict, series=lost)) == 0
    ((_, _, content),) = project.written
    assert content["title"].startswith(verdict.capitalize()) and "| n/a | n/a | n/a |" in content["body"]


def test_an_alert_has_one_issue_which_is_updated_and_closed(project: Project) -> None:
    project.issues = [
        as_issue(alert(1)),
        as_issue(alert(2), 8, user={"login": "guest"}),  # somebody copied the mark
        as_issue(alert(3), 9, body=f"{issues.mark(alert(3))}\r\nedited in a browser"),
        as_issue(alert(4), 10, state="closed"),
    ]
    project.run(alert(1), alert(2), alert(3, status="fixed", fixed_by="d" * 40), alert(4, status="fixed"))
    changed = {path: (method, content.get("state")) for method, path, content in project.written}
    assert changed == {
        f"{HERE}/7": ("PATCH", None),
        HERE: ("POST", None),
        f"{HERE}/9": ("PATCH", "closed"),
        f"{HERE}/10": ("PATCH", None),
    }


def test_an_alert_that_is_none_any_more_closes_its_issue_until_it_is_one_again(project: Project) -> None:
    project.issues = [
        as_issue(alert(1)),
        as_issue(alert(2), 8, user={"login": "guest"}),
        as_issue(alert(3), 9, state="closed"),
        as_issue(alert(4), 10, body="Somebody's own text, with the label"),
    ]
    project.run()
    ((method, path, content),) = project.written
    assert (method, path, content["state"], content["state_reason"]) == ("PATCH", f"{HERE}/7", "closed", "not_planned")
    assert content["body"].startswith(f"{issues.mark(alert(1))}\n**No alert any more:**")
    assert content["body"].endswith("\nold")
    project.issues = [as_issue(alert(1), body=content["body"], state="closed")]
    (project.folder / "called").unlink()
    project.run(alert(1))
    ((method, path, content),) = project.written
    assert (method, path, content["state"]) == ("PATCH", f"{HERE}/7", "open")
    assert "No alert any more" not in content["body"]


def test_an_issue_that_says_it_already_is_left_alone(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run(alert())
    ((_, _, content),) = project.written
    project.issues = [as_issue(alert(), title=content["title"], body=content["body"])]
    (project.folder / "called").unlink()
    assert project.run(alert()) == 0
    assert project.written == [] and capsys.readouterr().out.endswith("no issue had to change\n")


def test_a_flood_is_cut_and_said(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run(*(alert(number) for number in range(issues.MOST + 5)))
    assert len(project.written) == issues.MOST
    assert "5 more alerts have no issue yet" in capsys.readouterr().out


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_cannot_break_the_text(hostile: str, project: Project) -> None:
    series = [{**one, "benchmark": hostile, "params": [hostile]} for one in alert()["series"]]
    assert project.run(alert(machine="box", environment=hostile, series=series)) == 0
    ((_, _, content),) = project.written
    outside = re.sub(r"```toml.*?```|`[^`\n]*`", "", content["body"], flags=re.S)
    assert not re.search(r"<(script|img)|@everyone|\[link\]|alert\(1\)|\u202e|xxx", outside)
    assert content["body"].count("```") == 2 and outside.count("-->") == 1
    assert len(content["body"]) < 65_536 and len(content["title"]) <= 200


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"schema": 2, "alerts": []}',
        '{"schema": 1, "alerts": {}}',
        '{"schema": 1, "alerts": [{"id": "../x"}]}',
        '{"schema": 1, "alerts": [{"id": "000000000001"}]}',
    ],
)
def test_another_file_is_an_error_that_names_it(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alerts.json").write_text(content)
    assert issues.main([str(tmp_path / "alerts.json"), "--show"]) == 3
    assert "alerts.json" in capsys.readouterr().err


def test_without_a_repository_nothing_is_written(project: Project) -> None:
    with pytest.raises(SystemExit) as ended:
        project.run(alert(), more=())
    assert ended.value.code == 3
    with pytest.raises(SystemExit):
        project.run(alert(), more=("--repository", "owner/../x y"))
