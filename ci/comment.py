"""The comment on a pull request: posted by a job that may write, from files of a job that may not.

The pull request's own code made those files, so nothing in them is believed but the samples: two members of the archive
are read by name and in memory, with limits, and nothing is extracted or run. Repository, pull request and commits come
from the event and from GitHub; files of other commits are refused. The verdicts are made again here, by this tree's
judge and policy. `python -m ci.comment` needs the standard library and `gh` alone, so that job installs nothing.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ci import github, policy, report, results, verdict
from ci.arguments import Parser
from ci.markdown import code
from ci.policy import Policy
from ci.pull_request import judge_sides

WORKFLOW = ".github/workflows/bench-pr.yml"  # whose runs are commented on
ARTIFACT = "pr-check"
ARCHIVE_BYTES = 16 << 20
MEMBER_BYTES = 32 << 20  # unpacked
CASES_MAX = 2000  # of a side; the suites have some 200
MEMBERS = ("base.json", "head.json")
MARKER = "<!-- flash_dsa pr-check -->"  # by which the comment is found again
# What measures and builds: a pull request that changes it may have changed its own numbers.
RULER = (
    ".github/",
    "asv_bench/",
    "ci/",
    "tests/benchmarks/",
    "tests/conftest.py",
    "Makefile",
    "asv.conf.json",
    "pyproject.toml",
    "requirements",
    "setup.py",
)
FILES_MAX = 300  # that GitHub lists of a comparison
_RULER_SHOWN = 10
_SHA = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}")


class CommentError(RuntimeError):
    """No comment can be made: the event is none of ours. Exit code 3."""


class Untrusted(RuntimeError):
    """The archive is not what a check leaves; the comment says so in place of a verdict."""


@dataclass(frozen=True)
class Event:
    """The end of a run, as GitHub tells it.

    Args:
        repository: that is commented in, `owner/name`. run: its number. head: commit that was checked.
        source: repository of that commit, a fork perhaps. branch: its branch there, any text.
    """

    repository: str
    run: int
    head: str
    source: str
    branch: str


@dataclass(frozen=True)
class PullRequest:
    """An open pull request whose head was checked.

    Args:
        number: of it. base: commit that head is compared with. ruler: files it changes that measure or build.
        all_known: whether GitHub listed every file it changes.
    """

    number: int
    base: str
    ruler: tuple[str, ...]
    all_known: bool


def read_event(document: Mapping[str, Any]) -> Event:
    """Reads the payload of `workflow_run`.

    Raises:
        CommentError: when it is not the end of a check of a pull request.
    """
    try:
        run = document["workflow_run"]
        found = Event(
            document["repository"]["full_name"],
            run["id"],
            run["head_sha"],
            run["head_repository"]["full_name"],
            run["head_branch"],
        )
        workflow, trigger = run["path"], run["event"]
    except (KeyError, TypeError) as error:
        raise CommentError(f"event: expected the end of a workflow run, got none with {error}") from error
    if workflow.partition("@")[0] != WORKFLOW or trigger != "pull_request":
        raise CommentError(f"event: expected {WORKFLOW} on pull_request, got {workflow} on {trigger}")
    names = all(_REPOSITORY.fullmatch(name) for name in (found.repository, found.source))
    if not (names and type(found.run) is int and _SHA.fullmatch(found.head)):
        raise CommentError("event: expected names of repositories, the number of a run and a commit")
    return found


def pull_requests(event: Event) -> list[PullRequest]:
    """Open pull requests whose head is still the commit that was checked; no other gets a comment."""
    owner = event.source.partition("/")[0]
    query = f"state=open&per_page=100&head={quote(owner, safe='')}:{quote(event.branch, safe='')}"
    found = []
    for one in github.ask(f"repos/{event.repository}/pulls?{query}"):
        head = one["head"]
        if head["sha"] != event.head or (head["repo"] or {}).get("full_name") != event.source:
            continue
        pair = f"{one['base']['sha']}...{event.head}"
        compared = github.ask(f"repos/{event.repository}/compare/{pair}?per_page=1")
        files = compared["files"]
        # A file that was moved away is no longer there to measure with.
        changed = {name for file in files for name in (file["filename"], file.get("previous_filename", ""))}
        ruler = tuple(sorted(name for name in changed if name.startswith(RULER)))
        base = compared["merge_base_commit"]["sha"]
        found.append(PullRequest(one["number"], base, ruler, len(files) < FILES_MAX))
    return found


def archive_of(event: Event) -> bytes:
    """The newest archive that the run left.

    Raises:
        Untrusted: when there is none, or it is too large.
    """
    listed = github.ask(f"repos/{event.repository}/actions/runs/{event.run}/artifacts?per_page=100&name={ARTIFACT}")
    found = [one for one in listed["artifacts"] if one["name"] == ARTIFACT and not one["expired"]]
    if not found:
        raise Untrusted(f"the run left no {ARTIFACT}")
    newest = max(found, key=lambda one: int(one["id"]))
    if newest["size_in_bytes"] > ARCHIVE_BYTES:
        raise Untrusted(f"{ARTIFACT}: expected at most {ARCHIVE_BYTES >> 20} MiB, got {newest['size_in_bytes'] >> 20}")
    return github.call(f"repos/{event.repository}/actions/artifacts/{int(newest['id'])}/zip")


def read_archive(content: bytes) -> tuple[results.Run, results.Run]:
    """Both sides of a check, out of the bytes of a zip file that may be anything.

    Raises:
        Untrusted: when it is no zip file, lacks a member or has it twice, or a member is too large, damaged or no
            result file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, tempfile.TemporaryDirectory() as folder:
            return _read_side(archive, "base.json", Path(folder)), _read_side(archive, "head.json", Path(folder))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
        raise Untrusted(f"{ARTIFACT}: {error}") from error


def _read_side(archive: zipfile.ZipFile, name: str, folder: Path) -> results.Run:
    members = [member for member in archive.infolist() if member.filename == name]
    if len(members) != 1:
        raise Untrusted(f"{name}: expected once, got {len(members)} times")
    if members[0].flag_bits & 1:
        raise Untrusted(f"{name}: expected no password")
    with archive.open(members[0]) as member:
        text = member.read(MEMBER_BYTES + 1)  # what the archive says of its size may be wrong
    if len(text) > MEMBER_BYTES:
        raise Untrusted(f"{name}: expected at most {MEMBER_BYTES >> 20} MiB")
    path = folder / name
    path.write_bytes(text)
    try:
        run = results.read_run(path)
    except results.Unreadable as error:
        raise Untrusted(str(error).replace(f"{folder}/", "")) from error
    for what, count in (
        ("cases", len(run.cases) + len(run.failures)),
        ("controls", sum(1 + len(one) for one in run.controls)),
    ):
        if count > CASES_MAX:  # sentences about them take time that grows with its square
            raise Untrusted(f"{name}: expected at most {CASES_MAX} {what}, got {count}")
    return run


def render(event: Event, pull: PullRequest, sides: tuple[results.Run, results.Run], thresholds: Policy) -> str:
    """The comment: what a reader must know of its origin, then the report.

    Raises:
        Untrusted: when the files are of other commits.
    """
    # What the files say of the suite is the pull request's word: the list of changed files is GitHub's.
    base, head = (replace(side, suite=None) for side in sides)
    for side, found, expected in (("base", base.commit, pull.base), ("head", head.commit, event.head)):
        if found != expected:
            raise Untrusted(f"{side}: expected commit {expected}, got {found[:40]}")
    text = report.render(report.Report(judge_sides(base, head, thresholds), base, head, thresholds))
    return f"{_origin(event)}{_warning(pull)}\n{text}"


def no_verdict(event: Event, reason: str) -> str:
    """The comment where the files cannot be used."""
    title = f"## No verdict for {code(event.head[:12])}"
    return f"{_origin(event)}\n{title}\n\nWhat the check left cannot be used: {code(reason)}\n"


def _origin(event: Event) -> str:
    run = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{event.repository}/actions/runs/{event.run}"
    return (
        f"{MARKER}\n<sub>Samples by the pull request's own code in [run {event.run}]({run}), judged by the rules of "
        f"the default branch.</sub>\n"
    )


def _warning(pull: PullRequest) -> str:
    if not pull.ruler and pull.all_known:
        return ""
    shown = [code(name) for name in pull.ruler[:_RULER_SHOWN]]
    if len(pull.ruler) > _RULER_SHOWN:
        shown.append(f"{len(pull.ruler) - _RULER_SHOWN} more")
    if not pull.all_known:
        shown.append("perhaps more, since not all its files are listed")
    return f"\n> **This pull request changes what measures it:** {', '.join(shown)}.\n"


def post(event: Event, number: int, body: str) -> None:
    """Updates the comment that an earlier check left on a pull request, or adds one."""
    comments = f"repos/{event.repository}/issues/{number}/comments"
    ours = [
        int(one["id"])
        for one in github.ask_all(f"{comments}?per_page=100")
        if one["user"] and one["user"]["login"] == github.AUTHOR and (one["body"] or "").startswith(MARKER)
    ]
    if ours:
        github.write(f"repos/{event.repository}/issues/comments/{ours[0]}", {"body": body}, "PATCH")
    else:
        github.write(comments, {"body": body}, "POST")


def main(arguments: Sequence[str] | None = None) -> int:
    """Comments on every open pull request whose head the run of the event checked.

    Returns:
        0 done, or nothing to comment on; 3 the event or the archive is unusable, or GitHub did not answer.
    """
    parser = Parser(prog="python -m ci.comment", description="Comments on the pull request that a run checked.")
    given = os.environ.get("GITHUB_EVENT_PATH")
    parser.add_argument("--event", type=Path, default=given, required=not given, help="payload of workflow_run")
    parser.add_argument("--show", action="store_true", help="print the comment, post nothing")
    options = parser.parse_args(arguments)
    try:
        return _comment(read_event(json.loads(Path(options.event).read_text(encoding="utf-8"))), options.show)
    except (CommentError, github.GitHubError, policy.PolicyError, OSError, ValueError) as error:
        print(f"ci.comment: {code(error, 400)}", file=sys.stderr)
        return verdict.USAGE


def _comment(event: Event, show: bool) -> int:
    found = pull_requests(event)
    if not found:
        print(f"no open pull request has {event.head} as its head: nothing to comment on")
        return verdict.NOTHING_TO_REPORT
    thresholds, status = policy.load(), verdict.NOTHING_TO_REPORT
    for pull in found:
        try:
            body = render(event, pull, read_archive(archive_of(event)), thresholds)
        except Untrusted as error:
            body, status = no_verdict(event, str(error)), verdict.USAGE
            print(f"no verdict: {code(error, 400)}", file=sys.stderr)
        except github.GitHubError:
            raise
        except Exception as error:  # a stranger's files found a defect: no older verdict must be left standing
            traceback.print_exc()
            body, status = no_verdict(event, f"{type(error).__name__} in the judge"), verdict.USAGE
        if show:
            print(body)
        else:
            post(event, pull.number, body)
            print(f"commented on pull request {pull.number}")
    return status


if __name__ == "__main__":
    sys.exit(main())
