"""docs/judging.md: its numbers are the policy's, and it has no others."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ci import __main__ as command
from ci import docs, policy

POLICY = policy.load()


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", "--docs", "--check"]) == 0, "run: python -m ci report --docs"
    assert capsys.readouterr().out == ""


def test_no_number_stands_outside_the_blocks() -> None:
    words = re.sub(r"<!-- policy: .*?<!-- /policy -->", "", docs.PAGE.read_text(), flags=re.S)
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
    ],
)
def test_a_block_that_nothing_fills_is_an_error(text: str, message: str) -> None:
    with pytest.raises(docs.UnknownBlock, match=message):
        docs.fill(text, POLICY)
