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
    ("nightly", "issues"): {"issues"},
    ("bench-comment", "comment"): {"pull-requests"},
}
# Who can start a workflow with code that nobody of the project has looked at.
FOREIGN = {"checks": "pull_request", "bench-pr": "pull_request"}
# Each hash as its tag had it in the action's own repository; who changes one looks there first.
PINNED = {
    "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1",
    "actions/deploy-pages@cd2ce8fcbc39b97be8ca5fce6e763baed58fa128 # v5.0.0",
    "actions/download-artifact@3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c # v8.0.1",
    "actions/setup-python@5fda3b95a4ea91299a34e894583c3862153e4b97 # v7.0.0",
    "actions/upload-artifact@bbbca2ddaa5d8feaa63e36b76fdaad77386f024f # v7.0.0",
    "actions/upload-pages-artifact@fc324d3547104276b827a68afc52ff2a11cc49c9 # v5.0.0",
}
_OURS = re.compile(r"\$/\.github/workflows/[a-z-]+\.yml")


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
    used = [line.removeprefix("uses: ") for line in lines if line.startswith("uses:")]
    assert used and not [one for one in used if one not in PINNED and not _OURS.fullmatch(one)]


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
                assert "vars." not in str(described)  # a fork's run sees none


def test_a_runner_has_nothing_that_registers_another() -> None:
    """A registration token in its environment would be every job's for an hour."""
    image = (ROOT / "ci" / "runner" / "Dockerfile").read_text()
    assert "config.sh" not in image and "TOKEN" not in image and 'CMD ["./run.sh"]' in image
    assert "generate-jitconfig" in (ROOT / "ci" / "README.md").read_text()


def test_the_job_that_comments_runs_the_default_branch() -> None:
    """It checks out no ref, and gets the archive as bytes: no action unpacks it."""
    used = [step["uses"].partition("@")[0] for _, step in steps("bench-comment") if "uses" in step]
    assert used == ["actions/checkout"]
    assert all("ref" not in step.get("with", {}) for _, step in steps("bench-comment"))
    assert [step["run"] for _, step in steps("bench-comment") if "run" in step] == ["make comment"]


def verbs_of(step: dict[str, Any]) -> set[str]:
    """What a step asks of make; nothing where it runs no command."""
    command = step.get("run", "make").removeprefix("gh auth setup-git && ")
    assert command.partition(" ")[0] == "make" and "\n" not in command
    return {word for word in re.sub(r'"[^"]*"', "", command).split()[1:] if "=" not in word}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_a_verb_of_make(name: str) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for _, step in steps(name):
        asked = verbs_of(step)
        assert asked <= verbs and bool(asked) == ("run" in step)


@pytest.mark.parametrize(("name", "job"), MAY_WRITE)
def test_who_may_write_installs_nothing(name: str, job: str) -> None:
    """Its verbs need neither an environment nor another verb, and run the interpreter that is there."""
    described, makefile = jobs(name)[job], (ROOT / "Makefile").read_text()
    for step in described.get("steps", []):
        assert "setup-" not in step.get("uses", "")
        for verb in verbs_of(step):
            rule = re.search(rf"^{verb}:([^\n#]*)##[^\n]*\n((?:\t.*\n)+)", makefile, re.M)
            assert rule and not rule[1].strip() and "$(PYTHON)" in rule[2] and "$(PY)" not in rule[2]


@pytest.mark.parametrize("name", NAMES)
def test_jobs_end(name: str) -> None:
    assert all(described["timeout-minutes"] <= 60 for described in jobs(name).values() if "uses" not in described)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_twice_at_once(name: str) -> None:
    """A workflow or its jobs have a group; `gpu` is called by another, and its jobs have theirs."""
    shared = workflow(name).get("concurrency")
    needed = [job for job in jobs(name).values() if "needs" not in job or "write" in job["permissions"].values()]
    assert shared or all("concurrency" in job for job in needed)


def test_what_waits_for_a_gpu_or_the_records_is_not_dropped() -> None:
    """By default the third of a group ends the second, and a commit would never be measured."""
    for job in ("measure", "keep"):
        assert jobs("gpu")[job]["concurrency"]["queue"] == "max"
    for name, job in (("wheels", "gpu"), ("nightly", "history")):
        assert jobs(name)[job]["concurrency"] == jobs("gpu")["measure"]["concurrency"]
    assert workflow("bench-comment")["concurrency"]["queue"] == "max"


def test_a_leg_that_fails_hides_nothing_of_the_others() -> None:
    """Without a condition of its own a job is skipped when any job before it failed, not its `needs` alone."""
    for name, job in (("gpu", "pages"), ("gpu", "publish"), ("nightly", "issues")):
        described = jobs(name)[job]
        assert described["if"] == f"${{{{ !cancelled() && needs.{described['needs']}.result == 'success' }}}}"


def test_only_runs_that_measured_are_commented_on() -> None:
    """A verdict stands where a later run was cancelled, skipped, or waits for approval."""
    condition = jobs("bench-comment")["comment"]["if"]
    assert (
        """contains(fromJSON('["success", "failure", "timed_out"]'), github.event.workflow_run.conclusion)"""
        in condition
    )


@pytest.mark.parametrize(("name", "job"), [("gpu", "keep"), ("nightly", "alerts")])
def test_history_and_issues_are_of_main(name: str, job: str) -> None:
    """Both can be started by hand from any branch."""
    described = jobs(name)[job]
    skipped = f"needs.{described['needs']}.result != 'skipped'"
    assert described["if"] == f"${{{{ !cancelled() && {skipped} && github.ref == 'refs/heads/main' }}}}"


def test_who_waits_for_approval_holds_up_no_other() -> None:
    assert {"event.pull_request.number", "event.label.name"} <= set(
        re.findall(r"github\.([a-z._]+)", jobs("bench-pr")["measure"]["concurrency"]["group"])
    )


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
