"""The pull-request check with invented sides: turns, verdicts, crashes, silence, foreign builds. No build, no torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ci import __main__ as command
from ci import policy, pull_request, results
from ci.baton import Side
from ci.builds import CheckError
from ci.pull_request import Checked, Options
from ci.verdict import Verdict

FAKE = Path(__file__).with_name("fake_side.py")
CASES = ["one", "two", "three"]


class Repository:
    """Two commits, whose sides are what a test says.

    Args:
        root: of the repository. scripts: by side, as `fake_side.py` takes them.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.log = root / "log"
        self.fingerprint: dict[str, Any] | None = None
        self.scripts: dict[str, dict[str, Any]] = {
            name: {"seconds": 0.004, "cases": CASES} for name in ("base", "head")
        }
        self.git("init", "-q", "-b", "main")
        (root / "asv_bench").mkdir()
        for number in range(2):
            (root / "asv_bench" / "file.py").write_text("same\n")
            (root / "notes").write_text(f"{number}\n")
            self.git("add", "asv_bench", "notes")
            self.git("commit", "-q", "-m", f"commit {number}")
        monkeypatch.setattr(pull_request, "_build", self.build)
        monkeypatch.setattr(pull_request, "_start", self.start)
        monkeypatch.setattr(pull_request, "START_SECONDS", 20.0)

    def git(self, *words: str) -> str:
        names = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", *names, *words], cwd=self.root, check=True, capture_output=True, text=True
        ).stdout.strip()

    def build(self, root: Path, side: Checked) -> None:
        package = side.site / "flash_dsa"
        package.mkdir(parents=True, exist_ok=True)
        (package / "libflash_dsa.so").write_text(side.name)
        if self.fingerprint:
            (package / "_fingerprint.json").write_text(json.dumps(self.fingerprint))

    def start(self, side: Checked, suite: Path, socket: Path, cases: tuple[str, ...]) -> Side:
        package = (side.site / "flash_dsa").resolve()
        library = hashlib.sha256((package / "libflash_dsa.so").read_bytes()).hexdigest()
        build = {"folder": str(package), "library": library}
        # A build is slow or wrong, not a side: what a folder was built as decides.
        script = {"build": build, **self.scripts[(package / "libflash_dsa.so").read_text()]}
        environment = {"FLASH_DSA_SIDE": side.name, "FLASH_DSA_BATON": str(socket), "FLASH_DSA_CASES": ",".join(cases)}
        process = subprocess.Popen(
            [sys.executable, str(FAKE), json.dumps(script)],
            env={**environment, "FAKE_LOG": str(self.log)},
            start_new_session=True,
        )
        return Side(side.name, process)

    def check(self, **more: Any) -> results.Verdicts:
        return pull_request.run(Options(self.root, "HEAD~1", **more), policy.load())

    @property
    def output(self) -> Path:
        (folder,) = (path for path in (self.root / "build" / "pr-check").iterdir() if path.name != "builds")
        return folder


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(tmp_path, monkeypatch)


def verdicts_of(found: results.Verdicts) -> dict[str, str]:
    return {case.id: case.verdict.value for case in found.cases}


def test_an_unchanged_pair_is_unchanged_and_everything_is_written(repository: Repository) -> None:
    found = repository.check()
    assert verdicts_of(found) == dict.fromkeys(CASES, "unchanged") and found.verdict is Verdict.UNCHANGED
    assert found.base == repository.git("rev-parse", "HEAD~1") and found.head == repository.git("rev-parse", "HEAD")
    assert sorted(path.name for path in repository.output.glob("*.*") if path.suffix != ".log") == [
        "base.json",
        "head.json",
        "report.md",
        "verdicts.json",
    ]
    assert results.read_verdicts(repository.output / "verdicts.json") == found
    assert repository.git("status", "--porcelain", "--", "asv_bench", "notes") == ""


def test_controls_are_measured_by_both_sides_before_and_after(repository: Repository) -> None:
    repository.check()
    for side in ("base", "head"):
        found = results.read_run(repository.output / f"{side}.json").controls
        assert [measured["gemm"].median for measured in found] == [1e-3, 1e-3]
    assert "The controls stayed within" in (repository.output / "report.md").read_text()


def test_bursts_take_turns_in_abba_order(repository: Repository) -> None:
    repository.check()
    turns = [line.split() for line in repository.log.read_text().splitlines() if line.startswith("one ")]
    assert [side for _, _, side in turns[:8]] == ["base", "head", "head", "base"] * 2
    assert [int(block) for _, block, _ in turns] == [number // 2 for number in range(len(turns))]
    assert len(turns) % 4 == 0


def test_a_slower_head_is_a_regression_and_swapped_builds_invert_it(repository: Repository) -> None:
    repository.scripts["head"]["seconds"] = 0.008
    found = repository.check()
    assert found.verdict is Verdict.REGRESSED and all(1.9 < (case.ratio or 0) < 2.1 for case in found.cases)
    assert "slower" in (repository.output / "report.md").read_text()
    swapped = repository.check(swap=True)
    assert swapped.verdict is Verdict.IMPROVED and all(0.48 < (case.ratio or 0) < 0.53 for case in swapped.cases)


def test_the_same_code_needs_no_measurement_unless_asked(repository: Repository) -> None:
    kernels = {"cpu/sparse": {"op": "sparse_fwd", "sass": "a" * 8, "registers": None, "spill_bytes": None}}
    repository.fingerprint = {"host": "h", "kernels": kernels}
    found = repository.check()
    assert verdicts_of(found) == dict.fromkeys(CASES, "unchanged") and all(case.same_code for case in found.cases)
    assert not repository.log.exists()
    assert all(case.ratio for case in repository.check(measure_same_code=True).cases)
    repository.scripts["head"]["wrong_in"] = "one"  # the same code, and still no answer is believed
    assert verdicts_of(repository.check())["one"] == "failed"


def test_a_crash_costs_its_case_alone(repository: Repository) -> None:
    repository.scripts["head"]["crash_in"] = "two"
    found = repository.check()
    assert verdicts_of(found) == {"one": "unchanged", "two": "failed", "three": "unchanged"}
    (crashed,) = (case for case in found.cases if case.id == "two")
    assert crashed.reason and crashed.reason.value == "crash"
    assert "exited with 7" in (repository.output / "report.md").read_text()


def test_silence_is_ended(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_request, "BURST_SECONDS", 0.5)
    repository.scripts["base"]["silent_in"] = "one"
    found = repository.check()
    assert verdicts_of(found) == {"one": "failed", "two": "unchanged", "three": "unchanged"}
    assert "said nothing for" in (repository.output / "report.md").read_text()


def test_wrong_answers_fail_and_absent_cases_are_new(repository: Repository) -> None:
    repository.scripts["head"] |= {"wrong_in": "one", "failed_in": "three"}
    repository.scripts["base"]["absent_in"] = "two"
    found = repository.check()
    assert verdicts_of(found) == {"one": "failed", "two": "new", "three": "failed"}
    assert {case.reason.value for case in found.cases if case.reason} == {"wrong_answer"}


def test_a_build_that_fails_is_a_failure_of_its_side(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path, side: Checked) -> None:
        side.folder.mkdir(parents=True, exist_ok=True)
        side.failure = "error: expected ';'" if side.name == "head" else None

    monkeypatch.setattr(pull_request, "_build", fail)
    found = repository.check()
    assert found.verdict is Verdict.FAILED and not repository.log.exists()
    assert "expected ';'" in (repository.output / "report.md").read_text()


def test_a_process_with_another_build_is_no_measurement(repository: Repository) -> None:
    repository.scripts["head"]["build"] = {"folder": "/elsewhere/flash_dsa", "library": "0"}
    with pytest.raises(CheckError, match=r"head runs another build: expected .*-head/site/flash_dsa, got /elsewhere"):
        repository.check()


def test_a_side_that_does_not_start_has_failed(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    start = repository.start

    def dies(side: Checked, *more: Any) -> Side:
        if side.name == "base":
            return start(side, *more)
        side.log.write_text("ImportError: undefined symbol")
        return Side(side.name, subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], start_new_session=True))

    monkeypatch.setattr(pull_request, "_start", dies)
    found = repository.check()
    assert found.verdict is Verdict.FAILED
    said = (repository.output / "report.md").read_text()
    assert "exited with 3" in said and "undefined symbol" in said


def test_a_side_that_does_not_start_again_fails_what_is_left(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = repository.start
    repository.scripts["head"]["crash_in"] = "one"

    def once(side: Checked, suite: Path, socket: Path, cases: tuple[str, ...]) -> Side:
        if not cases or side.name == "base":
            return start(side, suite, socket, cases)
        return Side(side.name, subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], start_new_session=True))

    monkeypatch.setattr(pull_request, "_start", once)
    assert verdicts_of(repository.check()) == dict.fromkeys(CASES, "failed")


def test_a_revision_that_is_none_is_a_usage_error(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository.root)
    assert command.main(["pr", "--base", "no-such-branch"]) == 3
    assert "revision: expected a commit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "code", "of_a_workflow"),
    [
        (Verdict.UNCHANGED, 0, 0),
        (Verdict.INCONCLUSIVE, 2, 0),
        (Verdict.REGRESSED, 1, 1),
        (Verdict.MISSING, 1, 1),
        (Verdict.FAILED, 1, 1),
    ],
)
def test_a_workflow_passes_where_nothing_can_be_said(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, found: Verdict, code: int, of_a_workflow: int
) -> None:
    checked = repository.check()
    verdicts = replace(checked, cases=tuple(replace(case, verdict=found) for case in checked.cases))
    monkeypatch.setattr(pull_request, "run", lambda *_: verdicts)
    monkeypatch.chdir(repository.root)
    assert command.main(["pr", "--base", "HEAD~1"]) == code
    assert command.main(["pr", "--base", "HEAD~1", "--pass-inconclusive"]) == of_a_workflow


def test_a_change_of_the_suite_is_said_first(repository: Repository) -> None:
    (repository.root / "asv_bench" / "file.py").write_text("another\n")
    repository.git("commit", "-qam", "the suite")
    repository.check()
    assert (repository.output / "report.md").read_text().startswith("> The benchmarks or the judge")


def test_what_is_not_committed_is_neither_measured_nor_touched(repository: Repository) -> None:
    (repository.root / "asv_bench" / "file.py").write_text("mine\n")
    repository.check()
    assert (repository.root / "asv_bench" / "file.py").read_text() == "mine\n"
    assert (repository.output / "suite" / "asv_bench" / "file.py").read_text() == "same\n"
