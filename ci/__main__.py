"""`python -m ci report | pr | drill | judge | qualify | dashboard | history`."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ci import alerts, builds, campaign, commits, docs, history, policy, pull_request, qualify, report, results, verdict
from ci import drill as drills
from ci.arguments import Parser
from ci.dashboard import libraries, site


class UsageError(Exception):
    """Arguments that make no sense together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
        0 nothing to report; 1 regressed, missing or failed, or a page that `--check` found out of date; 2 inconclusive;
        3 usage or unreadable input.
    """
    options = _parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except (
        UsageError,
        builds.CheckError,
        results.Unreadable,
        libraries.LibraryError,
        policy.PolicyError,
        docs.UnknownBlock,
        OSError,
    ) as error:
        print(f"ci {options.command}: {error}", file=sys.stderr)
        return verdict.USAGE


def _command(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    """A command whose own --help begins with what the list of commands says of it."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    return made


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ci",
        description="Judges measurements: of two commits, or of a history. Each command has its own --help.",
        epilog="Exit status: 0 nothing to report, 1 regressed, missing or failed, 2 inconclusive, 3 usage or input.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    report = _command(commands, "report", "render a verdicts.json as markdown, or the numbers of docs/judging.md")
    report.add_argument("file", type=Path, nargs="?", help="verdicts.json; base.json and head.json beside it are used")
    report.add_argument("--output", type=Path, help="where to write the markdown (default: print it)")
    report.add_argument("--docs", action="store_true", help="write docs/judging.md again from the policy")
    report.add_argument("--check", action="store_true", help="with --docs: write nothing; exit 1 with a diff")
    pr = _command(commands, "pr", "measure two commits in turns and judge the second")
    pr.add_argument("--base", required=True, help="revision to compare with")
    pr.add_argument(
        "--head", default="HEAD", help="revision to judge (default: HEAD); what is not committed is left out"
    )
    pr.add_argument("--output", type=Path, help="folder (default: build/pr-check/<base>-<head>)")
    pr.add_argument("--measure-same-code", action="store_true", help="also where both builds hold the same code")
    green = "end with 0 where nothing can be said, too: for a workflow, whose checks are red or green"
    pr.add_argument("--pass-inconclusive", action="store_true", help=green)
    pr.add_argument("--swap", action="store_true", help="give each side the other's build: ratios must invert")
    drill = _command(commands, "drill", "plant slowdowns in HEAD's kernels and see whether they are found")
    drill.add_argument(
        "--plants",
        default=",".join(drills.PLANTS),
        help=f"what to plant: nothing, delay:SHARE, {', '.join(drills.REAL)} (default: nothing and delays)",
    )
    drill.add_argument("--cases", default="", help="ids of cases (default: the grid of this machine)")
    drill.add_argument("--times", type=int, default=1, help="take this many times the blocks of a check (default: 1)")
    drill.add_argument("--repeat", type=int, default=1, help="runs of each (default: 1)")
    drill.add_argument("--record", type=Path, help="file to append to (default: ci/drills/local.jsonl)")
    drill.add_argument("--show", action="store_true", help="only count what the file holds")
    judge = _command(commands, "judge", "what moved in a history, since when, and why")
    judge.add_argument(
        "results", type=Path, help="results tree of asv, such as asv_bench/results, or a folder with one"
    )
    judge.add_argument(
        "--output", type=Path, default=Path("alerts.json"), help="file to write, removed first (default: alerts.json)"
    )
    judge.add_argument("--acknowledged", type=Path, default=alerts.ACKNOWLEDGED, help="what was accepted, by whom")
    qualified = _command(commands, "qualify", "plant steps into real histories and see which detector finds them")
    qualified.add_argument("--data", type=Path, required=True, help="folder of .csv files and results trees of asv")
    qualified.add_argument("--otava", type=Path, help="interpreter that has apache-otava, to compare with")
    qualified.add_argument("--record", action="store_true", help="keep the result for docs/judging.md")
    dashboard = _command(commands, "dashboard", "our pages, and local libraries, for the site of `asv publish`")
    dashboard.add_argument("html", type=Path, help="the site, such as .asv/html")
    dashboard.add_argument("--results", type=Path, default=Path("asv_bench/results"), help="results tree of asv")
    dashboard.add_argument(
        "--libraries", type=Path, default=Path("build/libraries"), help="folder that keeps libraries"
    )
    dashboard.add_argument("--commit-address", default="", help="to which a commit's hash is appended (default: none)")
    dashboard.add_argument("--may-lack-libraries", action="store_true", help="say what is missing instead of failing")
    _add_history(commands)
    return parser


def _add_history(commands: Any) -> None:
    measured = _command(commands, "history", "run the asv suites over a range of commits, each built once")
    which = "commits as git has them, a..b or one, or several as 'a..b c'; what was measured before is left out"
    measured.add_argument("range", help=which)
    measured.add_argument("--machine", required=True, help="name of this machine in the results tree")
    measured.add_argument("--python", default=sys.executable, help="interpreter of asv's environment (default: this)")
    touching = "only commits that changed one of these, as in kernels,setup.py"
    measured.add_argument("--touching", default="", metavar="PATHS", help=touching)
    measured.add_argument("--bridge", default="", help="commit that every piece measures again (default: the first)")
    measured.add_argument("--build-only", action="store_true", help="build what is not built yet, measure nothing")
    measured.add_argument("--prebuilt", action="store_true", help="build nothing: take what --build-only made anywhere")
    measured.add_argument("--again", action="store_true", help="also what was measured before")
    measured.add_argument("--minutes", type=float, default=math.inf, help="begin no other commit after so long")
    measured.add_argument("--bench", default="", help="which benchmarks, as `asv run --bench`")


def _dashboard(options: argparse.Namespace) -> int:
    address = str(options.commit_address)
    if address and not address.startswith(("https://", "http://")):
        raise UsageError(f"--commit-address: expected https://, got {address}")
    if not options.results.is_dir():
        raise UsageError(f"--results: expected a folder, got {options.results}")
    tree = history.tree_of(options.results)
    asked = site.Options(options.html, tree, Path.cwd(), options.libraries, commit_address=address)
    missing = site.make(replace(asked, may_lack_libraries=options.may_lack_libraries))
    if missing:
        print(f"ci dashboard: {missing}", file=sys.stderr)
    return verdict.NOTHING_TO_REPORT


def _history(options: argparse.Namespace) -> int:
    names = ("range", "machine", "python", "bridge", "build_only", "prebuilt", "again", "minutes", "bench")
    touching = tuple(filter(None, options.touching.split(",")))
    chosen = campaign.Options(Path.cwd(), touching=touching, **{name: getattr(options, name) for name in names})
    done = campaign.run(chosen)
    print(f"{done.measured} measured, {done.before} before, {done.failed} do not build, {done.left} left")
    # What the minutes left is for another piece, and what does not build is recorded: neither is a fault of this one.
    return verdict.FOUND if done.lost else verdict.NOTHING_TO_REPORT


def _judge(options: argparse.Namespace) -> int:
    # Whoever reads the file after a run that ends in an error must not take the run before for its result.
    if options.output.is_file():
        options.output.unlink()
    if not options.results.is_dir():
        raise UsageError(f"results: expected a folder, got {options.results}")
    acknowledged = alerts.read_acknowledged(options.acknowledged)
    tree = history.tree_of(options.results)
    fingerprints = alerts.read_fingerprints(tree)
    found = alerts.judge(
        history.read_tree(tree, commits.of(Path.cwd())), policy.load().history, fingerprints, acknowledged
    )
    results.write_atomically(options.output, json.dumps(alerts.document(found), indent=1) + "\n")
    print(alerts.text(found))
    return alerts.exit_code(found)


def _qualify(options: argparse.Namespace) -> int:
    try:
        found = qualify.run(options.data, policy.load().history, options.otava)
    except ImportError as error:  # of pandas or asv, which no other command needs
        raise UsageError(f"expected what requirements-dev.txt lists: {error}") from error
    print(f"\n{qualify.table(found)}")
    if options.record:
        results.write_atomically(qualify.RECORD, json.dumps(found, indent=1) + "\n")
    return verdict.NOTHING_TO_REPORT


def _drill(options: argparse.Namespace) -> int:
    plants = tuple(options.plants.split(","))
    for plant in plants:
        if plant not in (drills.NOTHING, *drills.REAL) and not re.fullmatch(r"delay:(0\.\d+|1)", plant):
            names = ", ".join(drills.REAL)
            raise UsageError(f"--plants: expected nothing, delay:SHARE with a share up to 1, {names}, got {plant!r}")
    for name, value in (("--repeat", options.repeat), ("--times", options.times)):
        if value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}")
    cases = tuple(filter(None, options.cases.split(",")))
    record = options.record or drills.LOCAL
    if not options.show:
        chosen = drills.Drills(plants, options.repeat, cases, options.times)
        drills.run(Path.cwd(), chosen, record, policy.load())
    found = drills.read(record)
    print(drills.table(drills.count(found)))
    if any(line["times"] > 1 for line in found):
        print("", drills.longer_table(found), sep="\n")
    return verdict.NOTHING_TO_REPORT


def _pr(options: argparse.Namespace) -> int:
    asked = pull_request.Options(
        Path.cwd(), options.base, options.head, options.output, options.measure_same_code, options.swap
    )
    verdicts = pull_request.run(asked, policy.load())
    output = pull_request.output_of(asked, verdicts.base, verdicts.head)
    print(f"\n{report.headline(verdicts)}\n\nReport: {output / 'report.md'}")
    code = verdict.exit_code(verdicts.verdict)
    return verdict.NOTHING_TO_REPORT if options.pass_inconclusive and code == verdict.INCONCLUSIVE else code


def _report(options: argparse.Namespace) -> int:
    if options.docs == (options.file is not None):
        raise UsageError("expected either FILE or --docs")
    if (options.check and not options.docs) or (options.output and options.docs):
        raise UsageError("--check goes with --docs, --output with FILE")
    thresholds = policy.load()
    if options.docs:
        difference = docs.update(thresholds, check=options.check)
        if difference:
            print(difference if options.check else f"{docs.PAGE}: written")
        return verdict.FOUND if difference and options.check else verdict.NOTHING_TO_REPORT
    verdicts = results.read_verdicts(options.file)
    base, head = (_beside(options.file, f"{side}.json") for side in ("base", "head"))
    text = report.render(report.Report(verdicts, base, head, thresholds))
    if options.output:
        results.write_atomically(options.output, text)
    else:
        print(text, end="")
    return verdict.exit_code(verdicts.verdict)


def _beside(path: Path, name: str) -> results.Run | None:
    """A side's file; None where there is none, which the report says."""
    neighbour = path.with_name(name)
    return results.read_run(neighbour) if neighbour.exists() else None


_COMMANDS = {
    "report": _report,
    "pr": _pr,
    "drill": _drill,
    "judge": _judge,
    "qualify": _qualify,
    "dashboard": _dashboard,
    "history": _history,
}


if __name__ == "__main__":
    sys.exit(main())
