"""The comment on a pull request: golden text, whose commits it believes, and archives that try to break it."""

from __future__ import annotations

import copy
import io
import json
import os
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge import invented
from judge.test_report import HOSTILE, compare_with_golden

from ci import comment
from ci.github import AUTHOR

ROOT = Path(__file__).resolve().parents[2]
BASE, HEAD = "a" * 40, "b" * 40
EVENT: dict[str, Any] = {
    "repository": {"full_name": "owner/flash_dsa"},
    "workflow_run": {
        "id": 77,
        "event": "pull_request",
        "path": ".github/workflows/bench-pr.yml",
        "head_sha": HEAD,
        "head_branch": "faster; rm -rf $HOME & `x` ?#",
        "head_repository": {"full_name": "guest/fork"},
    },
}
# Answers by the start of the path that is asked for, and notes what was called with which input.
GH = """#!{python}
import json, os, sys
folder = os.path.dirname(os.path.abspath(__file__))
arguments, text = sys.argv[1:], sys.stdin.read()
with open(folder + "/called", "a") as log:
    log.write(json.dumps([arguments, text]) + "\\n")
assert arguments[0] == "api", arguments
if "--method" in arguments:
    sys.exit()
answers = json.load(open(folder + "/answers"))
found = [answer for start, answer in answers.items() if arguments[1].startswith(start)]
if not found:
    sys.exit("gh: Not Found (HTTP 404)")
if arguments[1].endswith("/zip"):
    sys.stdout.buffer.write(open(folder + "/archive", "rb").read())
else:
    print(json.dumps(found[0]))
"""


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


def sides(ratio: float = 1.5, **head: Any) -> dict[str, bytes]:
    """What a check leaves, of a case that is this much slower."""
    cases = {"sparse-kv8192-k1024": (invented.problem(), invented.blocks(ratio))}
    documents = {"base.json": invented.run_file("base", cases), "head.json": invented.run_file("head", cases, **head)}
    return {name: json.dumps(document).encode() for name, document in documents.items()}


class GitHub:
    """What `gh` answers, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "gh"
        program.write_text(GH.format(python=sys.executable))
        program.chmod(0o755)
        base = {"sha": "c" * 40}
        head = {"sha": HEAD, "repo": {"full_name": "guest/fork"}}
        here = "repos/owner/flash_dsa"
        self.pulls: list[dict[str, Any]] = [{"number": 5, "base": base, "head": head}]
        self.compared: dict[str, Any] = {"merge_base_commit": {"sha": BASE}, "files": [{"filename": "kernels/op.h"}]}
        self.artifacts = [{"id": 9, "name": "pr-check", "expired": False, "size_in_bytes": 1000}]
        self.comments: list[dict[str, Any]] = []
        self.paths = {"pulls": f"{here}/pulls?", "compare": f"{here}/compare/{'c' * 40}...{HEAD}"}
        self.paths |= {"artifacts": f"{here}/actions/runs/77/artifacts?", "comments": f"{here}/issues/5/comments"}
        self.paths["zip"] = f"{here}/actions/artifacts/9/zip"
        self.archive = zipped(sides())

    def comment(self, *arguments: str, event: dict[str, Any] = EVENT) -> int:
        return comment.main(["--event", str(self.prepare(event)), *arguments])

    def prepare(self, event: dict[str, Any] = EVENT) -> Path:
        """Writes what `gh` will answer, and the payload of the event."""
        answers = {
            self.paths["pulls"]: self.pulls,
            self.paths["compare"]: self.compared,
            self.paths["artifacts"]: {"artifacts": self.artifacts},
            self.paths["comments"]: [self.comments],
            self.paths["zip"]: None,
        }
        (self.folder / "answers").write_text(json.dumps(answers))
        (self.folder / "archive").write_bytes(self.archive)
        (self.folder / "event.json").write_text(json.dumps(event))
        return self.folder / "event.json"

    @property
    def called(self) -> list[list[Any]]:
        log = self.folder / "called"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def written(self) -> tuple[str, str, str]:
        """Method, path and body of the only call that writes."""
        ((arguments, text),) = (call for call in self.called if "--method" in call[0])
        body = json.loads(text)["body"]
        assert len(body) < 65_536 and body.startswith(comment.MARKER)
        return arguments[arguments.index("--method") + 1], arguments[1], body


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitHub:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("GITHUB_SERVER_URL", raising=False)
    return GitHub(tmp_path)


def test_a_regression_is_commented_on(github: GitHub) -> None:
    github.compared["files"] += [{"filename": "ci/policy.toml"}, {"filename": "setup.py"}]
    assert github.comment() == 0
    method, path, body = github.written
    assert (method, path) == ("POST", "repos/owner/flash_dsa/issues/5/comments")
    compare_with_golden("comment", body)


def test_the_branch_of_a_fork_is_one_word_of_a_query(github: GitHub) -> None:
    assert github.comment() == 0
    asked = github.called[0][0][1]
    assert asked.endswith("&head=guest:faster%3B%20rm%20-rf%20%24HOME%20%26%20%60x%60%20%3F%23")


def test_our_comment_is_updated_and_nobody_elses(github: GitHub) -> None:
    text = f"{comment.MARKER}\nold"
    github.comments = [
        {"id": 1, "user": {"login": "guest"}, "body": text},
        {"id": 2, "user": None, "body": text},
        {"id": 3, "user": {"login": AUTHOR}, "body": "of another job"},
        {"id": 4, "user": {"login": AUTHOR}, "body": text},
    ]
    assert github.comment() == 0
    assert github.written[:2] == ("PATCH", "repos/owner/flash_dsa/issues/comments/4")


def test_shown_is_not_posted(github: GitHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert github.comment("--show") == 0
    assert "**Regressed: of 1 case 1 slower.**" in capsys.readouterr().out
    assert not any("--method" in arguments for arguments, _ in github.called)


def forged_verdicts() -> bytes:
    """Of a slower head, whose author says that it is not."""
    return zipped(
        {**sides(), "verdicts.json": b'{"schema": 1, "verdict": "improved"}', "report.md": b"**Improved** @everyone"}
    )


def test_a_verdict_in_the_archive_is_not_believed(github: GitHub) -> None:
    github.archive = forged_verdicts()
    assert github.comment() == 0
    body = github.written[2]
    assert "**Regressed: of 1 case 1 slower.**" in body and "@everyone" not in body


@pytest.mark.parametrize("side", ["base", "head"])
def test_files_of_another_commit_give_no_verdict(github: GitHub, side: str) -> None:
    """A report of a good commit, offered for a bad one."""
    documents = {name: json.loads(text) for name, text in sides(1.0).items()}
    documents[f"{side}.json"]["machine_info"]["flash_dsa"]["commit"] = "d" * 40
    github.archive = zipped({name: json.dumps(document).encode() for name, document in documents.items()})
    assert github.comment() == 3
    body = github.written[2]
    assert "## No verdict" in body and f"{side}: expected commit" in body and "Unchanged" not in body


def refuse(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    event = copy.deepcopy(EVENT)
    change(event["workflow_run"])
    return event


@pytest.mark.parametrize(
    "event",
    [
        {},
        refuse(lambda run: run.update(path=".github/workflows/other.yml")),
        refuse(lambda run: run.update(event="push")),
        refuse(lambda run: run.update(head_sha="b" * 39 + "?")),
        refuse(lambda run: run.update(id="77/../..")),
        refuse(lambda run: run.update(head_repository={"full_name": "guest/fork/../x"})),
        refuse(lambda run: run.update(head_repository=None)),
    ],
)
def test_an_event_that_is_none_of_ours_asks_nothing_of_github(github: GitHub, event: dict[str, Any]) -> None:
    assert github.comment(event=event) == 3
    assert not github.called


@pytest.mark.parametrize(
    "change",
    [
        lambda pull: pull["head"].update(sha="d" * 40),
        lambda pull: pull["head"]["repo"].update(full_name="other/fork"),
        lambda pull: pull["head"].update(repo=None),
    ],
)
def test_only_an_open_pull_request_with_that_head_is_commented_on(
    github: GitHub, change: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    change(github.pulls[0])
    assert github.comment() == 0
    assert "nothing to comment on" in capsys.readouterr().out and len(github.called) == 1


BOTH = ("base.json", "head.json")


def lying(text: bytes) -> bytes:
    """An archive whose members are larger than it says."""
    honest = zipped({"base.json": text, "head.json": text})
    size = struct.pack("<I", len(text))
    assert honest.count(size) >= 4
    return honest.replace(size, struct.pack("<I", 100))


def twice() -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as archive:
        warnings.simplefilter("ignore")
        for name, text in [*sides(1.0).items(), *sides(1.5).items()]:
            archive.writestr(name, text)
    return content.getvalue()


def with_password() -> bytes:
    content = bytearray(zipped(sides()))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        content[at + offset] |= 1
    return bytes(content)


def link() -> bytes:
    """Members that are links to a file of whoever extracts them."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in BOTH:
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, str(Path(__file__).with_name("golden") / "comment.md"))
    return content.getvalue()


def damaged() -> bytes:
    content = bytearray(zipped(sides()))
    content[120:160] = b"\xff" * 40
    return bytes(content)


def unknown_compression() -> bytes:
    content = bytearray(zipped(sides()))
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.find(signature)
        content[at + offset] = 97
    return bytes(content)


def many(what: str) -> bytes:
    """More than anybody measures."""
    members = {name: json.loads(content) for name, content in sides().items()}
    head = members["head.json"]
    if what == "cases":
        case = head["benchmarks"][0]
        named = [{**case["extra_info"], "case": f"{number}"} for number in range(comment.CASES_MAX + 1)]
        head["benchmarks"] = [{**case, "extra_info": extra} for extra in named]
    else:
        row = dict.fromkeys(("seconds_median", "seconds_low", "seconds_high"), 1.0)
        names = {f"{number}": row for number in range(comment.CASES_MAX)}
        head["machine_info"]["flash_dsa"]["controls"] = [names] if what == "names" else [{}] * (comment.CASES_MAX + 1)
    return zipped({name: json.dumps(document).encode() for name, document in members.items()})


def a_control_of(seconds: float) -> bytes:
    row = {"seconds_median": seconds, "seconds_low": seconds, "seconds_high": seconds}
    return zipped(sides(controls=[{"gemm": row}, {"gemm": dict.fromkeys(row, 1.0)}]))


ARCHIVES: dict[str, bytes] = {
    "nothing": b"",
    "no zip": b"\x1f\x8b tar of another kind",
    "cut off": zipped(sides())[:-30],
    "empty": zipped({}),
    "one side": zipped({"head.json": sides()["head.json"]}),
    "paths": zipped({"../base.json": b"{}", "/etc/head.json": b"{}", "a/../../base.json": b"{}"}),
    "a member twice": twice(),
    "links": link(),
    "with a password": with_password(),
    "damaged": damaged(),
    "unknown compression": unknown_compression(),
    "a bomb": zipped(dict.fromkeys(BOTH, b" " * (comment.MEMBER_BYTES + 1))),
    "a bomb that lies": lying(b" " * 5_000_000),
    "no JSON": zipped(dict.fromkeys(BOTH, b"{'a': 1}")),
    "not UTF-8": zipped(dict.fromkeys(BOTH, b'{"a": "\xff"}')),
    "a list": zipped(dict.fromkeys(BOTH, b"[]")),
    "deep": zipped(dict.fromkeys(BOTH, b"[" * 100_000)),
    "a long number": zipped(dict.fromkeys(BOTH, b"1" * 10_000)),
    "a line of 10 MB": zipped(dict.fromkeys(BOTH, b'{"a": "' + b"x" * 10_000_000 + b'"}')),
    "too many cases": many("cases"),
    "too many controls": many("controls"),
    "too many names of controls": many("names"),
    "a control without time": a_control_of(0),
    "a control before its time": a_control_of(-1),
    "not a number": zipped({name: text.replace(b"0.0036", b"NaN") for name, text in sides().items()}),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_cannot_be_used_gives_no_verdict(github: GitHub, name: str) -> None:
    before = sorted(path.name for path in github.folder.rglob("*"))
    github.archive = ARCHIVES[name]
    assert github.comment() == 3
    body = github.written[2]
    assert "## No verdict for `bbbbbbbbbbbb`" in body and len(body) < 1500 and str(github.folder) not in body
    left = {"answers", "archive", "called", "event.json"}
    assert sorted({path.name for path in github.folder.rglob("*")} - left) == sorted({*before} - left)


def test_a_defect_of_the_judge_leaves_no_older_verdict(
    github: GitHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("never thought of")

    github.archive = zipped(sides())
    monkeypatch.setattr(comment, "judge_sides", fails)
    assert github.comment() == 3
    assert "What the check left cannot be used" in github.written[2] and "ZeroDivisionError" in github.written[2]
    assert "never thought of" in capsys.readouterr().err


def test_an_archive_that_is_too_large_is_not_fetched(github: GitHub) -> None:
    github.artifacts[0]["size_in_bytes"] = comment.ARCHIVE_BYTES + 1
    assert github.comment() == 3
    assert "expected at most 16 MiB" in github.written[2]
    assert not any(arguments[1].endswith("/zip") for arguments, _ in github.called)


@pytest.mark.parametrize("artifacts", [[], [{"id": 9, "name": "pr-check", "expired": True, "size_in_bytes": 1}]])
def test_a_run_that_left_nothing_gives_no_verdict(github: GitHub, artifacts: list[dict[str, Any]]) -> None:
    github.artifacts = artifacts
    assert github.comment() == 3
    assert "the run left no pr-check" in github.written[2]


@pytest.mark.parametrize(
    "text", [*HOSTILE, "y" * 3_000_000, "::set-output name=a::b", "$(reboot)", f"{comment.MARKER}"]
)
def test_hostile_values_make_no_markup(github: GitHub, text: str) -> None:
    facts = {"machine": text, "protocol": text, "environment": {text: text, "gpu": text, "list": [text]}}
    members = {name: json.loads(content) for name, content in sides(**facts).items()}
    members["head.json"]["failures"] = {text: {"reason": "crash", "detail": text}}
    members["head.json"]["benchmarks"][0]["extra_info"]["problem"] = {"op": text, "s_kv": {}, "topk": text, text: []}
    github.archive = zipped({name: json.dumps(document).encode() for name, document in members.items()})
    assert github.comment() == 0
    outside = "".join(part for part in github.written[2].split("```")[::2] for part in part.split("`")[::2])
    for markup in ("<script", "<img", "](http://", "@everyone", "\u202e", "::set-output"):
        assert markup not in outside
    assert outside.count(comment.MARKER) == 1


@pytest.mark.parametrize("where", ["machine", "protocol", "environment", "failure", "problem"])
def test_a_line_of_10_mb_in_files_that_are_otherwise_right_is_cut(github: GitHub, where: str) -> None:
    line = "y" * 10_000_000
    members = {name: json.loads(content) for name, content in sides().items()}
    if where == "failure":
        members["head.json"]["failures"] = {"sparse-kv8192-k512": {"reason": "crash", "detail": line}}
    elif where == "problem":
        members["head.json"]["benchmarks"][0]["extra_info"]["problem"]["indices"] = line
    else:
        changed = {"gpu": line} if where == "environment" else line
        members = {name: json.loads(content) for name, content in sides(**{where: changed}).items()}
    github.archive = zipped({name: json.dumps(document).encode() for name, document in members.items()})
    assert github.comment() == 0
    assert len(github.written[2]) < 10_000 and "slower" in github.written[2]


def test_github_that_does_not_answer_is_an_error(github: GitHub, capsys: pytest.CaptureFixture[str]) -> None:
    github.paths["pulls"] = "elsewhere"
    assert github.comment() == 3
    assert "HTTP 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file",
    [
        {"filename": ".github/workflows/bench-comment.yml"},
        {"filename": "ci/comment.py"},
        {"filename": "asv.conf.json"},
        {"filename": "setup.py"},
        {"filename": "tests/conftest.py"},
        {"filename": "kernels/old.py", "previous_filename": "ci/stats.py"},
    ],
)
def test_who_changes_what_measures_is_named_and_judged_by_this_tree(github: GitHub, file: dict[str, str]) -> None:
    github.compared["files"].append(file)
    assert github.comment() == 0
    body = github.written[2]
    named = file.get("previous_filename", file["filename"])
    assert f"> **This pull request changes what measures it:** `{named}`." in body
    assert "**Regressed: of 1 case 1 slower.**" in body


def test_a_change_of_kernels_and_their_tests_has_no_warning(github: GitHub) -> None:
    github.compared["files"].append({"filename": "tests/kernels/test_sparse_fwd.py"})
    assert github.comment() == 0
    assert "changes what measures it" not in github.written[2]


def test_many_changed_files_are_said(github: GitHub) -> None:
    github.compared["files"] = [{"filename": f"ci/{number}.py"} for number in range(300)]
    assert github.comment() == 0
    assert "`ci/0.py`, `ci/1.py`" in github.written[2]
    assert "`, 290 more, perhaps more, since not all its files are listed." in github.written[2]


def test_the_longest_report_still_fits(github: GitHub) -> None:
    cases = {f"{i}-" + "n" * 100: (invented.problem() | {"op": f"op_{i}"}, invented.blocks(1.05)) for i in range(400)}
    documents = {f"{side}.json": json.dumps(invented.run_file(side, cases)).encode() for side in ("base", "head")}
    github.archive = zipped(documents)
    github.compared["files"] = [{"filename": f"ci/{number}" + "n" * 300} for number in range(300)]
    assert github.comment() == 0
    assert "400 slower" in github.written[2]


@pytest.mark.parametrize("module", ["comment", "issues", "records"])
def test_a_privileged_job_needs_the_standard_library_alone(module: str) -> None:
    """It installs nothing, so nothing that is installed can run in it."""
    code = f"import ci.{module}, sys; assert not any('-packages' in path for path in sys.path)"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)


def test_the_policy_is_that_of_this_tree(github: GitHub) -> None:
    """So a pull request that edits ci/ does not judge itself."""
    github.archive = zipped({**sides(), "policy.toml": b"", "ci/policy.toml": b"relevant_change = 10"})
    assert github.comment() == 0
    assert "**Regressed: of 1 case 1 slower.**" in github.written[2]
