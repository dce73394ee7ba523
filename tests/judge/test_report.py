"""The report: golden text, sentences worked out by hand, and names that try to break it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judge import invented

from ci import __main__ as command
from ci import alerts, codegen, groups, markdown, policy, report, results, verdict
from ci.report import Report
from ci.results import Run, Verdicts
from ci.verdict import CaseVerdict, Reason, Verdict

GOLDEN = Path(__file__).with_name("golden")
POLICY = policy.load()
KERNEL = {"op": "sparse_fwd", "sass": "0123456789abcdef", "registers": 168, "spill_bytes": 0, "shared_bytes": 231424}
FINGERPRINT = {"host": "h", "kernels": {"sm90a/sparse_fwd_k576": KERNEL, "sm100f/sparse_fwd_k576": KERNEL}}


def moved(ratio: float, width: float = 0.003, name: str = "case") -> CaseVerdict:
    found = Verdict.UNCHANGED if ratio == 1 else Verdict.REGRESSED if ratio > 1 else Verdict.IMPROVED
    return CaseVerdict(name, found, None, ratio, ratio - width, ratio + width, 0.007)


def run_of(document: dict[str, Any], folder: Path) -> Run:
    path = folder / "run.json"
    path.write_text(json.dumps(document))
    return results.read_run(path)


def report_of(folder: Path, base: dict[str, Any], head: dict[str, Any]) -> Report:
    sides = run_of(base, folder), run_of(head, folder)
    cases = verdict.judge(results.evidence_of(*sides), POLICY)
    return Report(Verdicts(sides[0].commit, sides[1].commit, "invented", "cuda-burst-v2", tuple(cases)), *sides, POLICY)


def pull_request() -> tuple[dict[str, Any], dict[str, Any]]:
    """A change that costs topk >= 1024 from s_kv 8192 on 4 %, gains 2 % elsewhere, and breaks a case."""
    cases = {}
    for s_kv in (4096, 8192, 16384, 32768):
        for topk in (512, 1024, 2048):
            slower = topk >= 1024 and s_kv >= 8192
            ratio = 1.041 if slower else 1.0
            fields = invented.problem(s_kv=s_kv, topk=topk)
            cases[f"sparse-kv{s_kv}-k{topk}"] = (fields, invented.blocks(ratio))
    cases["dense-kv8192"] = (invented.problem("dense_fwd"), invented.blocks(0.98, seconds=0.04, capped=True))
    cases["dense-kv4096"] = (invented.problem("dense_fwd", 4096), invented.blocks(1.0045))
    head = invented.run_file("head", cases, suite="suite-2")
    head["machine_info"]["flash_dsa"]["environment"] |= {"torch": "2.14.0", "sm_clock_mhz": 1724.0}
    kernels = FINGERPRINT["kernels"] | {
        "sm90a/sparse_fwd_k576": KERNEL | {"sass": "fedcba9876543210", "registers": 170}
    }  # type: ignore[operator]
    head["machine_info"]["flash_dsa"]["fingerprint"] = {"host": "h", "kernels": kernels}
    head["failures"] = {"sparse-kv65536-k2048": {"reason": "wrong_answer", "detail": "out: row 7 is off by 0.3"}}
    return invented.run_file("base", cases, fingerprint=FINGERPRINT), head


def compare_with_golden(name: str, text: str, update: bool = False) -> None:
    """To write them anew, set `update` and look at the difference."""
    path = GOLDEN / f"{name}.md"
    if update:
        path.write_text(text)
    assert text == path.read_text()


def test_golden_pull_request(tmp_path: Path) -> None:
    compare_with_golden("pull_request", report.render(report_of(tmp_path, *pull_request())))


def test_golden_quiet(tmp_path: Path) -> None:
    cases = {"sparse": (invented.problem(), invented.blocks(1.0)), "dense": (invented.problem("dense_fwd"), ())}
    kernels = {"sm90a/dense": KERNEL | {"op": "dense_fwd"}}
    base, head = (
        invented.run_file(side, cases, fingerprint={"host": "h", "kernels": kernels}) for side in ("base", "head")
    )
    compare_with_golden("quiet", report.render(report_of(tmp_path, base, head)))


def test_golden_verdicts_alone() -> None:
    cases = (moved(1.05, name="one"), CaseVerdict("two", Verdict.MISSING), CaseVerdict("three", Verdict.NEW))
    text = report.render(Report(Verdicts("main", "b" * 40, "invented", "p", cases), None, None, POLICY))
    compare_with_golden("verdicts_alone", text)


def control(seconds: float | None) -> dict[str, Any]:
    low, high = (None, None) if seconds is None else (seconds * 0.999, seconds * 1.001)
    return {"gemm": {"seconds_median": seconds, "seconds_low": low, "seconds_high": high, "error": None}}


@pytest.mark.parametrize(
    ("base", "head", "said"),
    [
        ((1.0, 1.03), (1.0, 1.03), "**The machine moved during the check:** the gemm took 3.0 % more at its slowest"),
        ((1.0, 1.002), (1.001, 1.0), "The controls stayed within 1.0 % or their intervals."),
        ((1.0, None), (1.0, 1.0), "The controls stayed within 1.0 % or their intervals."),
        ((), (), None),
    ],
)
def test_drift_of_the_machine_is_said(
    tmp_path: Path, base: tuple[float | None, ...], head: tuple[float | None, ...], said: str | None
) -> None:
    cases = {"sparse": (invented.problem(), invented.blocks(1.0))}
    sides = {"base": base, "head": head}
    documents = [invented.run_file(side, cases, controls=[control(one) for one in sides[side]]) for side in sides]
    text = report.render(report_of(tmp_path, *documents))
    assert said in text if said else "controls" not in text.lower()


def test_no_case_is_not_green() -> None:
    verdicts = Verdicts("a", "b", "m", "p", ())
    assert report.headline(verdicts) == "Inconclusive: there is no case to judge."


def grid(ratios: dict[tuple[int, int], float], **changes: Any) -> tuple[list[CaseVerdict], dict[str, Any]]:
    """Cases by (topk, s_kv), with their problems."""
    cases, problems = [], {}
    for (topk, s_kv), ratio in ratios.items():
        name = f"k{topk}-kv{s_kv}-{sorted(changes.items())}"
        cases.append(moved(ratio, name=name))
        problems[name] = invented.problem(s_kv=s_kv, topk=topk, **changes)
    return cases, problems


TOPKS, LENGTHS = (512, 1024, 2048), (4096, 8192, 16384)


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        ({(t, s) for t in TOPKS for s in LENGTHS}, ["sparse_fwd {by} at s_kv 4096 to 16384"]),
        ({(t, s) for t in TOPKS[1:] for s in LENGTHS[1:]}, ["sparse_fwd topk >= 1024 {by} at s_kv 8192 to 16384"]),
        ({(t, s) for t in TOPKS[:2] for s in LENGTHS[:1]}, ["sparse_fwd topk <= 1024 {by} at s_kv 4096"]),
        ({(1024, 4096), (1024, 16384)}, ["sparse_fwd topk 1024 {by} at s_kv 4096, 16384"]),
        ({(512, 4096), (2048, 4096)}, ["sparse_fwd topk 512, 2048 {by} at s_kv 4096"]),
        (
            {(512, 4096), (1024, 4096), (1024, 8192)},
            ["sparse_fwd topk 512 {by} at s_kv 4096", "sparse_fwd topk 1024 {by} at s_kv 4096 to 8192"],
        ),
        (set(), []),
    ],
)
def test_sentences_over_the_grid(slow: set[tuple[int, int]], expected: list[str]) -> None:
    cases, problems = grid({(t, s): 1.041 if (t, s) in slow else 1.0 for t in TOPKS for s in LENGTHS})
    by = "slower by 4.1 % (3.8 to 4.4 %)"
    assert groups.sentences(cases, problems) == [sentence.format(by=by) for sentence in expected]


def test_families_are_told_apart_by_what_differs() -> None:
    plain, problems = grid({(512, 4096): 1.1, (512, 8192): 1.1})
    sink, more = grid({(512, 4096): 0.9, (512, 8192): 1.0}, features="attn_sink")
    short, most = grid({(512, 4096): 1.02, (512, 8192): 1.02}, h_q=64)
    assert groups.sentences([*plain, *sink, *short], problems | more | most) == [
        "sparse_fwd heads 128/1 attn_sink topk 512 faster by 10.0 % (9.7 to 10.3 %) at s_kv 4096",
        "sparse_fwd heads 128/1 plain topk 512 slower by 10.0 % (9.7 to 10.3 %) at s_kv 4096 to 8192",
        "sparse_fwd heads 64/1 plain topk 512 slower by 2.0 % (1.7 to 2.3 %) at s_kv 4096 to 8192",
    ]


def test_queries_are_said_only_where_they_tell_cases_apart() -> None:
    """The seed's shapes have more queries where they have more keys: that is one family."""
    one, problems = grid({(512, 4096): 1.02}, s_q=1024)
    two, more = grid({(512, 8192): 1.02}, s_q=2048)
    assert groups.sentences([*one, *two], problems | more) == [
        "sparse_fwd topk 512 slower by 2.0 % (1.7 to 2.3 %) at s_kv 4096 to 8192"
    ]
    three, most = grid({(512, 4096): 1.0}, s_q=16)
    assert "s_q 1024" in groups.sentences([*one, *two, *three], problems | more | most)[0]


def test_different_changes_are_said_as_a_range() -> None:
    assert groups.by_how_much([moved(1.02), moved(1.1)]) == "slower by 2.0 to 10.0 % (geometric mean 5.9 %)"
    assert groups.by_how_much([moved(0.98), moved(0.9)]) == "faster by 2.0 to 10.0 % (geometric mean 6.1 %)"
    assert groups.by_how_much([moved(1.006, 0.001)]) == "slower by 0.60 % (0.50 to 0.70 %)"


def test_numbers_as_read() -> None:
    assert [markdown.change(ratio) for ratio in (1.041, 0.96, 1.0, 1.0023, 0.99999)] == [
        "+4.1 %", "-4.0 %", "+0.00 %", "+0.23 %", "0.00 %",
    ]  # fmt: skip
    assert markdown.interval(moved(1.0)) == "-0.30 to 0.30 %"
    assert markdown.interval(CaseVerdict("x", Verdict.NEW)) == "n/a"
    assert [markdown.milliseconds(s) for s in (3.6e-3, 61.234e-6, 1.5, None)] == ["3.6", "0.06123", "1500", "n/a"]


HOSTILE = [
    "`code` | pipe",
    "<script>alert(1)</script>",
    "</details><img src=x onerror=y>",
    "[link](https://example.com) @everyone #1",
    "line\n# heading\r\n| a | b |",
    "``` fence",
    "\u202eesrever\u200b",
    "-->",
    "x" * 1_000_000,
    "",
]


@pytest.mark.parametrize("golden", ["pull_request", "comment", "issue"])
def test_what_is_to_be_added_to_acknowledge_is_read_by_the_judge(golden: str, tmp_path: Path) -> None:
    path, text = tmp_path / "acknowledged.toml", (GOLDEN / f"{golden}.md").read_text()
    (entry,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    path.write_text(entry.replace('commit = ""', f'commit = "{"d" * 40}"').replace('= ""', '= "filled in"'))
    (read,) = alerts.read_acknowledged(path)
    assert (read.benchmarks, read.author) == ("sparse_prefill.*", "filled in")
    path.write_text(entry)
    with pytest.raises(results.Unreadable, match="author and reason"):
        alerts.read_acknowledged(path)


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_in_its_span(text: str) -> None:
    shown = markdown.code(text)
    assert len(shown) <= markdown.TEXT_MAX + 2
    assert shown == "n/a" or re.fullmatch(r"`[^`|\n\r]+`", shown)
    assert shown.isprintable()


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_hostile_names_cannot_break_the_report(tmp_path: Path, text: str) -> None:
    """Outside code there is nothing of them; tables keep their cells, and there is one verdict."""
    fields = invented.problem(features=text, indices=text) | {"op": text}
    cases = {text: (fields, invented.blocks(1.05)), "other": (invented.problem(), invented.blocks(1.05))}
    base, head = (invented.run_file(side, cases) for side in ("base", "head"))
    head["machine_info"]["flash_dsa"]["environment"] |= {text: text, "gpu": text}
    head["machine_info"]["flash_dsa"] |= {"commit": text, "machine": text, "protocol": text}
    kernels = {f"sm90a/{text}": {"sass": text, "registers": text}}
    for side, host in ((base, "a"), (head, text)):
        side["machine_info"]["flash_dsa"]["fingerprint"] = {"host": host, "kernels": kernels if side is head else {}}
    head["failures"] = {f"f{text}": {"reason": "crash", "detail": text}}
    made = report_of(tmp_path, base, head)
    rendered = report.render(replace(made, verdicts=replace(made.verdicts, base=text)))
    assert len(rendered) <= report.LENGTH_MAX
    outside = re.sub(r"```toml\n.*?\n```\n", "", rendered, flags=re.S)
    outside = re.sub(r"`[^`\n]*`", "", outside)
    for markup in ("<script", "<img", "](http", "@everyone", "\u202e", "```"):
        assert markup not in outside
    assert rendered.count("\n**") == 2  # the verdict, and that the sides' environments differ
    assert outside.count("<details>") == outside.count("</details>") == rendered.count("\n</details>")
    assert all(line.startswith("#") is False or line[:3] in ("## ", "###") for line in outside.splitlines())
    for block in re.findall(r"(?:^\|.*\n)+", rendered, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_report_of_thousands_of_cases_fits_a_comment(tmp_path: Path) -> None:
    cases = {f"{i}-" + "n" * 100: (invented.problem() | {"op": f"op_{i}"}, invented.blocks(1.05)) for i in range(400)}
    base, head = (invented.run_file(side, cases) for side in ("base", "head"))
    rendered = report.render(report_of(tmp_path, base, head))
    assert len(rendered) <= report.LENGTH_MAX
    assert "and 350 more" in rendered or "and 390 more" in rendered


def test_differences_of_code_generation() -> None:
    head = {"host": "h", "kernels": {"sm90a/sparse_fwd_k576": KERNEL | {"registers": 170}, "sm80/new": KERNEL}}
    found = codegen.differences(FINGERPRINT, head)
    assert [(one.target, one.kernel, one.change) for one in found] == [
        ("sm100f", "sparse_fwd_k576", "removed"),
        ("sm80", "new", "added"),
        ("sm90a", "sparse_fwd_k576", "changed"),
    ]
    assert found[2].figures["registers"] == (168, 170)
    assert codegen.differences(None, head) == []


def write(folder: Path) -> Path:
    base, head = pull_request()
    made = report_of(folder, base, head)
    for name, document in (("base", base), ("head", head)):
        (folder / f"{name}.json").write_text(json.dumps(document))
    results.write_verdicts(folder / "verdicts.json", made.verdicts)
    return folder / "verdicts.json"


def test_the_command_renders_and_ends_with_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    assert command.main(["report", str(path)]) == 1
    golden = (GOLDEN / "pull_request.md").read_text()
    assert capsys.readouterr().out == golden
    assert command.main(["report", str(path), "--output", str(tmp_path / "report.md")]) == 1
    assert (tmp_path / "report.md").read_text() == golden
    results.write_verdicts(path, Verdicts("a", "b", "m", "p", (moved(1.0),)))
    assert command.main(["report", str(path)]) == 0
    results.write_verdicts(path, Verdicts("a", "b", "m", "p", (CaseVerdict("x", Verdict.INCONCLUSIVE),)))
    assert command.main(["report", str(path)]) == 2


@pytest.mark.parametrize(
    "arguments", [[], ["report"], ["report", "x", "--docs"], ["report", "none.json"], ["judge-it"]]
)
def test_usage_and_unreadable_input_end_with_3(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = command.main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 3
    assert capsys.readouterr().err


def test_a_spoilt_neighbour_is_not_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    (tmp_path / "head.json").write_text("{}")
    assert command.main(["report", str(path)]) == 3
    assert "head.json: machine_info: expected a table" in capsys.readouterr().err


def test_a_failure_names_its_side(tmp_path: Path) -> None:
    base = invented.run_file("base", {})
    base["failures"] = {"x": {"reason": "build", "detail": "nvcc: error"}}
    made = report_of(tmp_path, base, invented.run_file("head", {"x": (invented.problem(), ())}))
    assert made.verdicts.cases == (CaseVerdict("x", Verdict.FAILED, Reason.BUILD),)
    assert "| `x` | failed | build | base | `nvcc: error` |" in report.render(made)
