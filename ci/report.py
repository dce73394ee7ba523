"""The report of a run in markdown, for a pull request, an issue or a terminal: the verdict first, then its evidence."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ci import codegen, groups, results, verdict
from ci.markdown import MISSING, TEXT_MAX, change, code, interval, milliseconds, percent, table, word
from ci.policy import Policy
from ci.results import Run, Verdicts
from ci.verdict import Assessment, CaseVerdict, Verdict

LENGTH_MAX = 60_000  # characters; GitHub refuses a comment of more than 65,536
_ROWS = (50, 10, 3)  # of a table; the next is tried where the report would be too long
_WORDS = {
    Verdict.FAILED: "failed",
    Verdict.REGRESSED: "slower",
    Verdict.MISSING: "missing",
    Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.IMPROVED: "faster",
    Verdict.NEW: "new",
    Verdict.UNCHANGED: "unchanged",
}
_MOVED = (Verdict.REGRESSED, Verdict.IMPROVED)
_TITLE_MAX = 200  # characters
_STATUS = {"open": "Open", "weak": "Weak", "fixed": "Fixed", "acknowledged": "Acknowledged"}
_CAUSE = {"code": "the code's doing", "environment": "the machine's doing", "unknown": "cause unknown"}


@dataclass(frozen=True)
class Report:
    """What is reported.

    Args:
        verdicts: the decisions. base, head: the sides' files, or None where they are not at hand: then the report has
            neither times nor environment. policy: whose thresholds held.
    """

    verdicts: Verdicts
    base: Run | None
    head: Run | None
    policy: Policy

    @property
    def problems(self) -> dict[str, Mapping[str, Any]]:
        """Fields of the problem, by case id."""
        sides = [side for side in (self.base, self.head) if side]
        return {name: measured.problem for side in sides for name, measured in side.cases.items()}

    @property
    def assessments(self) -> dict[str, Assessment]:
        """What led to each verdict, made again from the sides' files."""
        if not (self.base and self.head):
            return {}
        found = verdict.assess_grid(results.evidence_of(self.base, self.head), self.policy)
        return {one.verdict.id: one for one in found}

    def of(self, *verdicts: Verdict) -> list[CaseVerdict]:
        """Cases with one of these verdicts, the largest change first, then by id."""
        cases = [case for case in self.verdicts.cases if case.verdict in verdicts]
        return sorted(cases, key=lambda case: (-abs((case.ratio or 1) - 1), case.id))


def render(report: Report) -> str:
    """The report as markdown, short enough for a comment."""
    assessments, problems = report.assessments, report.problems
    text = ""
    for rows in _ROWS:
        parts = [
            _suites(report),
            f"## Performance of {_commit(report.verdicts.head)} against {_commit(report.verdicts.base)}",
            f"**{headline(report.verdicts)}**",
            _findings(report, problems, rows),
            _moved(report, assessments, rows),
            _inconclusive(report, assessments, rows),
            _failed(report, rows),
            _rest(report, rows),
            _environment(report, rows),
            _code_generation(report, rows),
            _how_to(report),
        ]
        text = "\n\n".join(part for part in parts if part) + "\n"
        if len(text) <= LENGTH_MAX:
            break
    return text


@dataclass(frozen=True)
class Recorded:
    """What was recorded beside a commit's results: facts of the machine, and the code's fingerprint or None."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: codegen.Fingerprint | None = None


def render_alert(alert: Mapping[str, Any], before: Recorded, after: Recorded, policy: Policy) -> tuple[str, str]:
    """Title and text of an issue about an alert.

    Args:
        alert: an entry of `alerts.json`. before, after: of the last good commit and of the one that is named.
        policy: whose tolerance holds for clocks.
    """
    name, machine = Verdict(alert["verdict"]).value.capitalize(), alert["machine"]
    good, commit = alert["known_good"], alert["commit"]
    said = alert["sentences"]
    title = f"{name} on {machine} since {commit[:12]}: {said[0] if said else ''}".replace("`", "")
    text, sides = "", ("last good", "named")
    for rows in _ROWS:
        near = len(alert["commits"]) - 1
        where = f"Between {_commit(good)}, the last good one, and {_commit(commit)}"
        where += (f", or one of {near} commits near it" if near > 1 else ", or the one near it") * bool(near) + "."
        shared, differing = _facts(before.facts, after.facts, policy.clock_tolerance, sides, rows)
        parts = [
            f"## {name} on {code(machine)}",
            f"**{_STATUS[alert['status']]}, {_CAUSE[alert['cause']]}.** {where}",
            "\n".join(f"- {sentence}" for sentence in said[:rows]),
            f"- and {len(said) - rows} more" if len(said) > rows else "",
            _series(alert["series"], rows),
            f"### Environment\n\nMachine {code(machine)}, environment {code(alert['environment'])}.{shared}{differing}",
            _compiled(before.fingerprint, after.fingerprint, sides, rows),
            _how_to_settle(alert),
        ]
        text = "\n\n".join(part for part in parts if part) + "\n"
        if len(text) <= LENGTH_MAX:
            break
    return title[:_TITLE_MAX], text


def _series(series: Sequence[Mapping[str, Any]], rows: int) -> str:
    lines = []
    for one in sorted(series, key=lambda one: -abs(math.log(one["ratio"] or 1))):
        in_seconds = one["benchmark"].endswith("seconds")
        levels = [_level(one[name], in_seconds) for name in ("before", "after")]
        name = f"{one['benchmark']}({', '.join(one['params'])})" if one["params"] else one["benchmark"]
        ratio = CaseVerdict("", Verdict.UNCHANGED, None, one["ratio"], one["low"], one["high"])
        changed = change(one["ratio"]) if one["ratio"] else MISSING
        lines.append([code(name), *levels, changed, interval(ratio), _commit(one["commit"])])
    return "### Series\n\n" + table(("<series", "before", "after", "change", "interval", "<at"), lines, rows)


def _level(value: float | None, in_seconds: bool) -> str:
    if value is None:
        return MISSING
    return f"{milliseconds(value)} ms" if in_seconds else f"{value:.4g}"


def _how_to_settle(alert: Mapping[str, Any]) -> str:
    good, commit = alert["known_good"], alert["commit"]
    modules = {one["benchmark"].partition(".")[0] for one in alert["series"]}
    module = modules.pop() if len(modules) == 1 else ""
    pattern = f"{module}.*" if module.isidentifier() and len(module) <= TEXT_MAX else "*"
    reproduce = f"### Reproduce\n\n`make pr-check BASE={good[:40]}` on a checkout of {_commit(commit)}."
    how = "Add to `ci/acknowledged.toml`, with author, reason and date:"
    return f"{reproduce}\n\n{_acknowledge(how, commit, [pattern])}"


def _acknowledge(text: str, commit: str, patterns: Sequence[str]) -> str:
    """Entries as `alerts.read_acknowledged` reads them, to be filled in."""
    entries = [
        f"[[acknowledged]]\ncommit = {json.dumps(commit)}\nbenchmarks = {json.dumps(pattern)}\n"
        'author = ""\nreason = ""\ndate = ""'
        for pattern in patterns
    ]
    return (
        f"<details><summary>Acknowledge: if it is meant to be so</summary>\n\n{text}\n\n"
        "```toml\n" + "\n\n".join(entries) + "\n```\n\n</details>"
    )


def headline(verdicts: Verdicts) -> str:
    """The verdict in one sentence: `Regressed: of 24 cases 6 slower, 18 unchanged.`"""
    counts = Counter(case.verdict for case in verdicts.cases)
    name = verdicts.verdict.value.capitalize()
    if not counts:
        return f"{name}: there is no case to judge."
    said = ", ".join(f"{counts[one]} {_WORDS[one]}" for one in verdict.SEVERITY if counts[one])
    same = sum(case.same_code for case in verdicts.cases)
    note = f" ({same} of them the same code)" if same else ""
    total = len(verdicts.cases)
    return f"{name}: of {total} {'case' if total == 1 else 'cases'} {said}{note}."


def _commit(name: str) -> str:
    return code(name[:12])


def _suites(report: Report) -> str:
    if not (report.base and report.head) or report.base.suite == report.head.suite:
        return ""
    return (
        "> The benchmarks or the judge (`asv_bench/`, `ci/`) differ between base and head: both sides were measured "
        "and judged with head's."
    )


def _findings(report: Report, problems: Mapping[str, Mapping[str, Any]], rows: int) -> str:
    said = groups.sentences(report.verdicts.cases, problems)
    lines = [f"- {sentence}" for sentence in said[:rows]]
    if len(said) > rows:
        lines.append(f"- and {len(said) - rows} more")
    reasons = Counter(case.reason.value for case in report.of(Verdict.FAILED) if case.reason)
    if reasons:
        lines.append(
            "- without a number: " + ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        )
    missing = len(report.of(Verdict.MISSING))
    if missing:
        lines.append(f"- {missing} that base has and head has not")
    return "\n".join(lines)


def _seconds(run: Run | None, name: str) -> str:
    """The median of a side's bursts, in ms."""
    measured = run.cases.get(name) if run else None
    medians = [burst.median() for _, burst in measured.bursts.values()] if measured else []
    known = [median for median in medians if median]
    return milliseconds(statistics.median(known) if known else None)


def _detectable(case: CaseVerdict) -> str:
    return MISSING if case.mde is None else f"{percent(case.mde)} %"


def _numbers(case: CaseVerdict) -> list[str]:
    return [change(case.ratio) if case.ratio else MISSING, interval(case), _detectable(case)]


def _moved(report: Report, assessments: Mapping[str, Assessment], rows: int) -> str:
    cases = report.of(*_MOVED)
    if not cases:
        return ""
    lines = []
    for case in cases:
        found = assessments.get(case.id)
        times = [_seconds(report.base, case.id), _seconds(report.head, case.id)]
        judged = (found.space + (f": {found.doubt.value}" if found.doubt else "")) if found else MISSING
        lines.append([code(case.id), _WORDS[case.verdict], *times, *_numbers(case), judged])
    columns = ("<case", "<", "base ms", "head ms", "change", "interval", "detectable", "<judged in")
    return "### Moved\n\n" + table(columns, lines, rows)


def _inconclusive(report: Report, assessments: Mapping[str, Assessment], rows: int) -> str:
    cases = report.of(Verdict.INCONCLUSIVE)
    if not cases:
        return ""
    lines = []
    for case in cases:
        found = assessments.get(case.id)
        limit = found.kernel_class.relevant_change if found and found.kernel_class else None
        if case.ratio is None:
            why = "too few blocks for an interval"
        elif found and found.doubt:
            why = f"seconds are doubtful, and cycles do not settle it: {found.doubt.value}"
        elif limit is None:
            why = MISSING
        elif abs(math.log(case.ratio)) >= math.log1p(limit):
            why = "may be chance in a run of so many cases"
        else:
            why = f"the interval reaches beyond {percent(limit)} %"
        lines.append([code(case.id), *_numbers(case), why])
    return "### Inconclusive\n\n" + table(("<case", "change", "interval", "detectable", "<why"), lines, rows)


def _failed(report: Report, rows: int) -> str:
    cases = report.of(Verdict.FAILED, Verdict.MISSING)
    if not cases:
        return ""
    lines = []
    for case in cases:
        details, sides = [], []
        for side, run in (("base", report.base), ("head", report.head)):
            if run and case.id in run.failures:
                sides.append(side)
                details.append(run.failures[case.id][1])
        if case.verdict is Verdict.MISSING:
            sides = ["head"]
        reason = case.reason.value if case.reason else "not there"
        detail = code("; ".join(detail for detail in details if detail))
        lines.append([code(case.id), case.verdict.value, reason, ", ".join(sides) or MISSING, detail])
    return "### Failed or missing\n\n" + table(("<case", "<", "<reason", "<side", "<detail"), lines, rows)


def _rest(report: Report, rows: int) -> str:
    cases = report.of(Verdict.UNCHANGED, Verdict.NEW)
    if not cases:
        return ""
    lines = []
    for case in cases:
        times = [_seconds(report.base, case.id), _seconds(report.head, case.id)]
        kind = f"{case.verdict.value}, same code" if case.same_code else case.verdict.value
        lines.append([code(case.id), kind, *times, *_numbers(case)])
    shown = table(("<case", "<", "base ms", "head ms", "change", "interval", "detectable"), lines, rows)
    counts = Counter(case.verdict for case in cases)
    summary = ", ".join(f"{counts[one]} {one.value}" for one in (Verdict.UNCHANGED, Verdict.NEW) if counts[one])
    return f"<details><summary>{summary}</summary>\n\n{shown}\n\n</details>"


def _environment(report: Report, rows: int) -> str:
    where = f"Machine {code(report.verdicts.machine)}, protocol {code(report.verdicts.protocol)}."
    if not (report.base and report.head):
        return f"### Environment\n\n{where} The sides' files are not at hand: times and environment are not known."
    same, differing = _facts(
        report.base.environment, report.head.environment, report.policy.clock_tolerance, ("base", "head"), rows
    )
    text = f"### Environment\n\n{where}{same}"
    drift = _drift(report.base, report.head, report.policy)
    if drift:
        text += f"\n\n{drift}"
    return text + differing


def _facts(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float, sides: tuple[str, str], rows: int
) -> tuple[str, str]:
    """A sentence on the facts that both sides share, and a table of those in which they differ."""
    differing, same = [], []
    for name in sorted({*ours, *theirs}):
        a, b = ours.get(name), theirs.get(name)
        if _alike(a, b, tolerance):
            same.append(f"{word(name)} {code(b)}")
        else:
            differing.append([word(name), code(MISSING if a is None else a), code(MISSING if b is None else b)])
    shared = f" The same on both sides: {', '.join(same[:rows])}." if same else ""
    columns = ("<", *(f"<{side}" for side in sides))
    return shared, f"\n\n**The sides differ:**\n\n{table(columns, differing, rows)}" if differing else ""


def _drift(base: Run, head: Run, policy: Policy) -> str:
    """What the controls say of the machine: their slowest against their fastest, of both sides and at both ends."""
    found = [measured for run in (base, head) for measured in run.controls]
    moved = []
    for name in sorted({name for measured in found for name in measured}):
        times = [measured[name] for measured in found if name in measured]
        slowest, fastest = max(times, key=lambda one: one.median), min(times, key=lambda one: one.median)
        share = slowest.median / fastest.median - 1
        if slowest.low > fastest.high and share > policy.machine_drift:
            moved.append(f"the {word(name)} took {percent(share)} % more at its slowest than at its fastest")
    if moved:
        return (
            f"**The machine moved during the check:** {' and '.join(moved)}. Both sides met it alike, as their bursts "
            "alternate; times of this check and of others do not compare."
        )
    return f"The controls stayed within {percent(policy.machine_drift)} % or their intervals." if found else ""


def _alike(a: Any, b: Any, tolerance: float) -> bool:
    """Equal, or two clocks of one card."""
    if isinstance(a, float) and isinstance(b, float) and a and b:
        return abs(b / a - 1) <= tolerance
    return bool(a == b)


def _code_generation(report: Report, rows: int) -> str:
    if not (report.base and report.head):
        return ""
    return _compiled(report.base.fingerprint, report.head.fingerprint, ("base", "head"), rows)


def _compiled(
    base: codegen.Fingerprint | None, head: codegen.Fingerprint | None, sides: tuple[str, str], rows: int
) -> str:
    if base is None or head is None:
        lacking = [name for name, one in zip(sides, (base, head), strict=True) if one is None]
        have = "has" if len(lacking) == 1 else "have"
        return f"### Code generation\n\nNot compared: {' and '.join(lacking)} {have} no fingerprint."
    host = "the same" if base.get("host") == head.get("host") else "different"
    found = codegen.differences(base, head)
    total = codegen.count_of_kernels(head)
    if not found:
        return f"### Code generation\n\nThe machine code of every kernel ({total}) is the same; host code is {host}."
    lines = []
    for one in found:
        figures = [_from_to(*one.figures[name]) for name in codegen.FIGURES]
        lines.append([code(one.kernel), code(one.target, 20), one.change, *figures, _hashes(one)])
    columns = ("<kernel", "<target", "<", "registers", "spills, bytes", "shared memory, bytes", "<machine code")
    text = f"{len(found)} of {total} kernels differ; host code is {host}."
    return f"### Code generation\n\n{text}\n\n" + table(columns, lines, rows)


def _from_to(a: int | None, b: int | None) -> str:
    texts = [MISSING if value is None else str(value) for value in (a, b)]
    return texts[0] if a == b else " to ".join(texts)


def _hashes(found: codegen.Difference) -> str:
    shown = [MISSING if text is None else code(text[:12]) for text in found.sass]
    return shown[0] if found.sass[0] == found.sass[1] else " to ".join(shown)


def _how_to(report: Report) -> str:
    base = report.verdicts.base
    revision = base if re.fullmatch(r"[0-9a-f]{7,64}", base) else "<base>"
    text = f"### Reproduce\n\n`make pr-check BASE={revision}` on a checkout of {_commit(report.verdicts.head)}."
    cases = report.of(Verdict.FAILED, Verdict.REGRESSED, Verdict.MISSING)
    if not cases:
        return text
    problems = report.problems
    ops = {str(problems[case.id].get("op")) for case in cases if case.id in problems}
    patterns = sorted(f"{groups.SUITES[op]}.*" for op in ops & groups.SUITES.keys()) or ["*"]
    how = (
        "This verdict stays; say in the pull request why. Once merged, the history will show it: add to "
        "`ci/acknowledged.toml`, with the commit on the default branch that brought it, author, reason and date:"
    )
    return f"{text}\n\n{_acknowledge(how, '', patterns)}"
