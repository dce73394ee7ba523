"""docs/judging.md: its numbers are the policy's, and it has no others."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ci import __main__ as command
from ci import docs, policy, results

POLICY = policy.load()


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", "--docs", "--check"]) == 0, "run: python -m ci report --docs"
    assert capsys.readouterr().out == ""


def test_no_number_stands_outside_the_blocks() -> None:
    words = re.sub(r"<!-- (policy|drills|qualified): .*?<!-- /\1 -->", "", docs.PAGE.read_text(), flags=re.S)
    assert not re.findall(r"\d", words)


def test_a_changed_policy_changes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "judging.md"
    page.write_text(docs.PAGE.read_text())
    changed = replace(POLICY, false_discovery_rate=0.07, trimmed_share=0.125)
    difference = docs.update(changed, page, check=True)
    assert difference is not None and "+  so in the whole run, at most 7 % is so by chance;" in difference
    assert page.read_text() == docs.PAGE.read_text()
    docs.update(changed, page)
    assert "12.5 % at each end" in page.read_text()
    assert docs.update(changed, page) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- policy: nonsense -->\n<!-- /policy -->\n", "block: expected one of classes, rule, .*, got nonsense"),
        ("<!-- policy: rule -->\n", "malformed or does not end"),
        ("<!-- policy: rule -->\n<!-- /drills -->\n", "malformed or does not end"),
    ],
)
def test_a_block_that_nothing_fills_is_an_error(text: str, message: str) -> None:
    with pytest.raises(docs.UnknownBlock, match=message):
        docs.fill(text, POLICY)


def test_drills_are_counted_from_their_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(plant: str, verdict: str, times: int = 1) -> str:
        case = {"id": "a", "verdict": verdict, "kernels": "0.2 to 10 ms", "ratio": 1.02, "low": 1.01, "high": 1.03}
        facts = {"machine": "a card", "commit": "0123456789abcdef", "seconds": 31.2, "times": times, "plant": plant}
        return json.dumps({**facts, "cases": [{**case, "blocks": []}]})

    record = tmp_path / "box.jsonl"
    monkeypatch.setattr(docs, "DRILLS", tmp_path)
    page = "<!-- drills: box -->\n<!-- /drills -->\n"
    record.write_text(line("nothing", "unchanged") + "\n")
    filled = docs.fill(page, POLICY)
    assert "1 checks on a card at 0123456789ab, 31 s each" in filled and "| nothing | 0.2 to 10 ms | 0 | 1 |" in filled
    assert "Real slowdowns" not in filled
    record.write_text(line("stage", "regressed") + "\n" + line("stage", "regressed", times=10) + "\n")
    assert "| stage | a | regressed | 1.0100 to 1.0300 | 1.0200 | yes |" in docs.fill(page, POLICY)
    record.write_text("{}\n")
    with pytest.raises(results.Unreadable, match=r"box\.jsonl"):
        docs.fill(page, POLICY)


def test_a_qualification_by_other_thresholds_is_out_of_date() -> None:
    page = "<!-- qualified: histories -->\n<!-- /qualified -->\n"
    assert "| flash_dsa |" in docs.fill(page, POLICY)
    changed = replace(POLICY, history=replace(POLICY.history, least_t=3.0))
    with pytest.raises(docs.UnknownBlock, match=r"\[history\] has changed since `python -m ci qualify --record`"):
        docs.fill(page, changed)
