"""Campaigns over a small project of its own: what is built, measured, skipped, recorded and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judge import invented_site as invented

from ci import __main__ as command
from ci import bridge, campaign, history
from ci.campaign import Done, Options
from ci.dashboard import sidecar
from ci.history import State
from ci.results import Unreadable

pytestmark = pytest.mark.slow

SETUP = """
import os, setuptools
if os.path.exists("flash_dsa/broken.c"):
    raise SystemExit("flash_dsa/broken.c:1:1: error: expected a declaration")
setuptools.setup(name="flash_dsa", version="1", packages=["flash_dsa"])
"""
BENCHMARK = """
import json, os

def track_answer():
    try:
        import flash_dsa
    except ImportError as error:
        with open(os.environ["FLASH_DSA_TELEMETRY"], "a") as lines:
            lines.write(json.dumps({"timestamp": 1, "error": f"failed: {error}"}) + "\\n")
        raise
    return flash_dsa.ANSWER
"""
CONFIG = {"version": 1, "project": "small", "repo": ".", "branches": ["HEAD"], "benchmark_dir": "asv_bench"}
CONFIG |= {"environment_type": "virtualenv", "results_dir": "asv_bench/results"}
MACHINE = "box"


class Project:
    """A repository whose library's answer is what its benchmark tracks, and what campaigns over it said."""

    def __init__(self, root: Path) -> None:
        self.root, self.said, self.number = root, list[str](), 0
        for path, text in {
            "setup.py": SETUP,
            "asv_bench/__init__.py": "",
            "asv_bench/answers.py": BENCHMARK,
            "asv.conf.json": json.dumps(CONFIG),
            ".gitignore": "build/\n",
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        invented.git(root, 0, "init", "--quiet", "--initial-branch=main")

    def commit(self, **files: str | None) -> str:
        """With these files of the package; None removes one."""
        (self.root / "flash_dsa").mkdir(exist_ok=True)
        for name, text in files.items():
            path = self.root / "flash_dsa" / name.replace("_c", ".c").replace("_py", ".py")
            path.unlink(missing_ok=True) if text is None else path.write_text(text)
        self.number += 1
        invented.git(self.root, self.number, "add", "--all", ".", ":!asv_bench/results")
        invented.git(self.root, self.number, "commit", "--quiet", "--allow-empty", "--message", f"commit {self.number}")
        return invented.git(self.root, self.number, "rev-parse", "HEAD")

    def answer(self, value: int) -> str:
        """A commit whose library answers so."""
        return self.commit(__init___py=f"ANSWER = {value}\n")

    def measure(self, range: str, **options: Any) -> Done:
        """A piece of a campaign."""
        self.said.clear()
        return campaign.run(Options(self.root, range, MACHINE, **options), self.said.append)

    def values(self) -> dict[str, float | State]:
        """What the tree has by commit."""
        (one,) = history.read_tree(self.root / "asv_bench" / "results")
        found = zip(one.commits, one.values, one.states, strict=True)
        return {commit: value if state == State.MEASURED else State(state) for commit, value, state in found}

    def builds(self) -> int:
        """How many there are."""
        return len(list((self.root / "build" / "history" / "builds").glob("*/site/built")))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    facts = [part for name in ("arch", "cpu", "num_cpu", "ram") for part in (f"--{name}", "")]
    made = Project(tmp_path / "project")
    describe = [sys.executable, "-m", "asv", "machine", "--machine", MACHINE, "--os", "Linux", *facts]
    subprocess.run(describe, cwd=made.root, check=True, capture_output=True)
    return made


def test_a_range_is_measured_in_pieces(project: Project) -> None:
    first = project.answer(1)
    same = project.commit()  # nothing that a build is made of has changed
    broken = project.commit(broken_c="this does not compile")
    last = project.commit(__init___py="ANSWER = 4\n", broken_c=None)
    assert project.measure(f"{first}..{last}", bridge=first) == Done(measured=3, failed=1)
    assert project.values() == {same: 1.0, broken: State.FAILED, last: 4.0} and project.builds() == 2
    assert "expected a declaration" in "\n".join(project.said)
    reasons = sidecar.read(project.root / "asv_bench" / "results" / MACHINE).reasons[sidecar.ALL]
    reason = "flash_dsa/broken.c:1:1: error: expected a declaration"
    assert reasons == {broken: f"failed: this commit does not build: {reason}"}
    # Another piece: the bridge again, what is measured is not.
    newest = project.answer(5)
    assert project.measure(f"{first}..{newest}") == Done(measured=1, before=3)
    assert project.values()[newest] == 5.0 and project.said[0].startswith(f"bridge {first[:12]}")
    assert "1.000x its time of the first piece (1.000x to 1.000x)" in project.said[1]
    bridges = (project.root / "asv_bench" / "results" / MACHINE / bridge.FILE).read_text().splitlines()
    assert [json.loads(line)["commit"] for line in bridges] == [first, first]
    assert json.loads(bridges[0])["values"] == {"answers.track_answer()": [1.0, None, None]}
    # Nothing is left: nothing is measured, the bridge neither.
    assert project.measure(f"{first}..{newest}") == Done(before=4)
    with pytest.raises(campaign.CheckError, match=f"bridge: expected {first[:12]}, which earlier pieces measured"):
        project.measure(newest, bridge=last, again=True)


def test_what_is_prebuilt_is_measured_later_and_what_time_leaves_in_another_piece(project: Project) -> None:
    commits = [project.answer(number) for number in (1, 2)]
    assert project.measure(commits[0], build_only=True) == Done()
    assert project.builds() == 1 and not (project.root / "asv_bench" / "results").exists()
    assert project.measure(commits[0], minutes=0) == Done(measured=1)  # the bridge
    assert project.measure(f"{commits[0]}..{commits[1]}", minutes=0) == Done(left=1)
    assert project.measure(f"{commits[0]}..{commits[1]}", touching=("flash_dsa",)) == Done(measured=1)


def test_a_build_from_elsewhere_serves_where_none_is_made(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    first, broken, last = project.answer(1), project.commit(broken_c=""), project.commit(broken_c=None)
    other = project.answer(2)
    monkeypatch.setenv("FLASH_DSA_TARGETS", "elsewhere")
    assert project.measure(f"{first}..{last}", build_only=True) == Done(failed=1)
    monkeypatch.delenv("FLASH_DSA_TARGETS")
    assert project.measure(f"{first}..{other}", bridge=last, prebuilt=True) == Done(
        measured=2, failed=1, left=1, lost=1
    )
    assert project.values() == {broken: State.FAILED, last: 1.0} and project.builds() == 1
    assert f"    left: {other[:12]} was not built before" in project.said


def test_results_of_other_benchmarks_are_measured_again(project: Project) -> None:
    commit = project.answer(1)
    assert project.measure(commit) == Done(measured=1) and project.measure(commit) == Done(before=1)
    (path,) = (project.root / "asv_bench" / "results" / MACHINE).glob(f"{commit[:8]}-*.json")
    document = json.loads(path.read_text())
    row = document["results"]["answers.track_answer"]
    row[document["result_columns"].index("version")] = "another"
    path.write_text(json.dumps(document))
    assert project.measure(commit) == Done(measured=1)
    path.write_text('{"results": 5}')
    with pytest.raises(Unreadable, match=path.name):
        project.measure(commit)
    path.write_text("{")
    with pytest.raises(Unreadable, match=path.name):
        project.measure(commit)


def test_a_bridge_that_does_not_build_ends_the_campaign_and_records_nothing(project: Project) -> None:
    broken = project.commit(broken_c="")
    with pytest.raises(campaign.CheckError, match=r"the bridge .* does not build here"):
        project.measure(broken)
    assert not (project.root / "asv_bench" / "results").exists()


def test_a_build_is_made_of_its_sources_compilers_and_targets(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, same = project.answer(1), project.commit()
    other = project.answer(2)
    keys = [campaign.key_of(project.root, commit) for commit in (first, same, other)]
    assert keys[0] == keys[1] and keys[0][0] != keys[2][0] and keys[0][1] == keys[2][1]
    compiler = project.root / "another-compiler"
    compiler.write_text("#!/bin/sh\necho version 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert campaign.key_of(project.root, first)[1] != keys[0][1]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("FLASH_DSA_TARGETS", "another")
    assert campaign.key_of(project.root, first)[1] != keys[0][1]


def test_a_measurement_of_another_build_is_refused(project: Project) -> None:
    commit = project.commit(__init___py="ANSWER = 1\n")
    benchmark = project.root / "asv_bench" / "answers.py"
    note = 'open(os.environ["FLASH_DSA_TELEMETRY"], "a").write(json.dumps({"fingerprint": {"kernels": {"a": 1}}}))'
    benchmark.write_text(BENCHMARK.replace("    return", f"    {note}\n    return"))
    options = Options(project.root, commit, MACHINE)
    site = campaign._provide(options, commit, project.said.append)
    (site / "flash_dsa" / "_fingerprint.json").write_text('{"kernels": {"a": 2}}')
    with pytest.raises(campaign.CheckError, match="another build than that of"):
        project.measure(commit)


def test_commits_can_be_picked(project: Project) -> None:
    commits = [project.answer(number) for number in range(1, 6)]
    picked = f"{commits[4]} {commits[0]}..{commits[2]} {commits[1]}"
    assert project.measure(picked) == Done(measured=3)
    assert project.values() == {commits[1]: 2.0, commits[2]: 3.0, commits[4]: 5.0}
    assert [line.split()[3] for line in project.said if " of 3] " in line] == [
        commits[number][:12] for number in (1, 2, 4)
    ]


def test_the_command_says_what_it_cannot_do(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = project.answer(1)
    monkeypatch.chdir(project.root)
    for range in ("none", f"{commit}..{commit}", "--all", "", f"{commit} none"):
        assert command.main(["history", "--machine", MACHINE, "--", range]) == 3
        assert "range: expected commits" in capsys.readouterr().err
    assert command.main(["history", commit, "--machine", MACHINE, "--build-only"]) == 0
    assert "0 measured, 0 before, 0 do not build, 0 left" in capsys.readouterr().out
    # What its minutes leave is for another piece, and what cannot be measured is a fault of this one.
    first, newest = commit, project.answer(2)
    assert command.main(["history", f"{first} {newest}", "--machine", MACHINE, "--minutes", "0"]) == 0
    assert "1 measured, 0 before, 0 do not build, 1 left" in capsys.readouterr().out
    assert command.main(["history", project.answer(3), "--machine", MACHINE, "--prebuilt"]) == 1
    assert "1 left" in capsys.readouterr().out
