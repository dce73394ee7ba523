"""The workflows: what may write, what runs foreign code, and that the two never meet; every step is a verb of make."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci import comment

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".github" / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yml"))
# Scopes that a job may write with, and why a job has them: no other has any.
MAY_WRITE = {
    ("gpu", "keep"): {"contents"},
    ("gpu", "publish"): {"pages", "id-token"},
    ("nightly", "gpu"): {"contents", "pages", "id-token"},
    ("nightly", "alerts"): {"issues"},
    ("bench-comment", "comment"): {"pull-requests"},
}
# Who can start a workflow with code that nobody of the project has looked at.
FOREIGN = {"checks": "pull_request", "bench-pr": "pull_request"}
_PINNED = re.compile(r"uses: (?:actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\$/\.github/workflows/[a-z-]+\.yml)")


def workflow(name: str) -> dict[str, Any]:
    found: dict[Any, Any] = yaml.safe_load((FOLDER / f"{name}.yml").read_text())
    found["on"] = found.pop(True)  # YAML 1.1 reads `on` as a truth
    return found


def jobs(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = workflow(name)["jobs"]
    return found


def steps(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for job, described in jobs(name).items():
        for step in described.get("steps", []):
            yield job, step


def triggers(name: str) -> set[str]:
    on = workflow(name)["on"]
    return {on} if isinstance(on, str) else set(on)


def test_all_are_here() -> None:
    assert NAMES == ["bench-comment", "bench-pr", "checks", "gpu", "nightly", "wheels"]
    assert comment.WORKFLOW == ".github/workflows/bench-pr.yml" and workflow("bench-pr")["name"] == "bench-pr"
    assert workflow("bench-comment")["on"]["workflow_run"]["workflows"] == ["bench-pr"]


@pytest.mark.parametrize("name", NAMES)
def test_a_job_writes_only_with_what_it_is_listed_for(name: str) -> None:
    assert workflow(name)["permissions"] == {}
    for job, described in jobs(name).items():
        granted = described["permissions"]
        assert set(granted.values()) <= {"read", "write"}
        assert {scope for scope, grant in granted.items() if grant == "write"} == MAY_WRITE.get((name, job), set())


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_pinned_by_hash_with_their_tag(name: str) -> None:
    lines = [line.strip().removeprefix("- ") for line in (FOLDER / f"{name}.yml").read_text().splitlines()]
    used = [line for line in lines if line.startswith("uses:")]
    assert used and not [line for line in used if not _PINNED.fullmatch(line)]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_foreign_is_pasted_into_a_command(name: str) -> None:
    for _, step in steps(name):
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("name", NAMES)
def test_checkouts_leave_no_token_behind(name: str) -> None:
    for _, step in steps(name):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_who_runs_foreign_code_has_a_token_that_only_reads_and_no_secret() -> None:
    for name in NAMES:
        foreign = bool(triggers(name) & {"pull_request", "pull_request_target", "issue_comment"})
        assert foreign == (name in FOREIGN)
        assert "pull_request_target" not in triggers(name)
        text = (FOLDER / f"{name}.yml").read_text()
        assert "secrets." not in text and "secrets:" not in text
        if foreign:
            assert not any("write" in described["permissions"].values() for described in jobs(name).values())
            assert "github.token" not in text and "GH_TOKEN" not in text


def test_a_persistent_runner_meets_a_fork_only_by_label_and_approval() -> None:
    for name in FOREIGN:
        for described in jobs(name).values():
            if "self-hosted" in str(described["runs-on"]):
                assert workflow(name)["on"]["pull_request"]["types"] == ["labeled"]
                assert described["environment"] == "gpu" and "label.name == 'bench'" in described["if"]


def test_the_job_that_comments_runs_the_default_branch() -> None:
    """It checks out no ref, and gets the archive as bytes: no action unpacks it."""
    used = [step["uses"].partition("@")[0] for _, step in steps("bench-comment") if "uses" in step]
    assert used == ["actions/checkout"]
    assert all("ref" not in step.get("with", {}) for _, step in steps("bench-comment"))
    assert [step["run"] for _, step in steps("bench-comment") if "run" in step] == ["make comment"]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_a_verb_of_make(name: str) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for _, step in steps(name):
        if "run" not in step:
            continue
        command = step["run"].removeprefix("gh auth setup-git && ")
        assert command.startswith("make ") and "\n" not in command
        asked = {word for word in re.sub(r'"[^"]*"', "", command).split()[1:] if "=" not in word}
        assert asked and asked <= verbs


@pytest.mark.parametrize("name", NAMES)
def test_jobs_end_and_share_no_gpu(name: str) -> None:
    for described in jobs(name).values():
        if "uses" in described:
            continue
        assert described["timeout-minutes"] <= 60
        if "self-hosted" in str(described["runs-on"]):
            assert described["concurrency"]["group"].startswith("gpu-")
            assert described["concurrency"]["cancel-in-progress"] is False


@pytest.mark.parametrize(
    ("tool", "content"),
    [
        (
            "actionlint",
            "on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    permissions:\n      contents: wrte\n"
            "    steps:\n      - run: true\n",
        ),
        (
            "zizmor",
            "on: pull_request_target\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n"
            "      - run: echo ${{ github.event.pull_request.title }}\n",
        ),
    ],
)  # fmt: skip
def test_the_linters_of_make_check_find_something(tool: str, content: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name(tool)
    if not program.exists():
        pytest.skip(f"{tool} comes with `make check`")
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (folder / "bad.yml").write_text(content)
    command = [program, folder / "bad.yml"] if tool == "actionlint" else [program, "--offline", "--no-progress", folder]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "bad.yml" in done.stdout + done.stderr
