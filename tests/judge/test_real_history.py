"""The project's own history on an H100: what its commits did to the kernels is known from their log of experiments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ci import alerts, commits, history, policy
from ci.alerts import Alert, Cause, Status
from ci.history import History
from ci.verdict import Verdict

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "asv_bench" / "results"
# In git's order, which their authors' dates are not in: edd6ded and b9fd05c were rebased.
MEASURED = """30c3bb1 edd6ded 9f6e82c b716d51 b9fd05c 508c365 22fe2d6 7b2d3a8 944ed19 29797d3 71e2610 491155b 98b7dc1"""


@pytest.fixture(scope="module")
def found() -> list[Alert]:
    known = commits.of(ROOT)
    wanted = MEASURED.split()
    if not all(any(commit.startswith(short) for commit in known) for short in wanted):
        pytest.skip("needs the commits of a full clone")
    at_hand = [one for one in history.read_tree(RESULTS, known) if one.machine == "h100-sxm"]
    return alerts.judge([_of(one, wanted) for one in at_hand], policy.load().history, alerts.read_fingerprints(RESULTS))


def _of(one: History, wanted: list[str]) -> History:
    """The series at these commits alone, so that what is measured later changes no answer here."""
    kept = [index for index, commit in enumerate(one.commits) if commit[:7] in wanted]
    assert [one.commits[index][:7] for index in kept] == wanted
    failed, without = (tuple(map(kept.index, set(where) & set(kept))) for where in (one.failed, one.not_applicable))
    names = tuple(one.commits[index] for index in kept)
    values, noise = np.asarray(one.values)[kept], np.asarray(one.noise)[kept]
    return replace(one, commits=names, values=values, noise=noise, failed=failed, not_applicable=without, detail=None)


def _said(found: list[Alert], verdict: Verdict) -> dict[str, str]:
    """Sentences of ops, without ratios, by the commit that did it."""
    chosen = [alert for alert in found if alert.verdict is verdict]
    assert len({alert.commits[0] for alert in chosen}) == len(chosen)
    return {
        alert.commits[0][:7]: "; ".join(one for one in alert.sentences if not one.startswith("sparse_over_dense"))
        for alert in chosen
    }


def test_every_improvement_is_found_at_its_commit(found: list[Alert]) -> None:
    said = _said(found, Verdict.IMPROVED)
    assert list(said) == ["9f6e82c", "b9fd05c", "508c365", "7b2d3a8", "944ed19", "29797d3", "71e2610"]
    assert said["9f6e82c"].startswith("sparse_fwd flash_dsa faster by 46.0 to 53.6 %")  # SM90's kernel
    assert "192/128" in said["b9fd05c"] and "128/128" in said["b9fd05c"]  # SM90's dense kernels
    assert said["7b2d3a8"].startswith("dense_fwd d 576/512 flash_dsa faster by 47.0 to 54.1 %")
    assert said["944ed19"].startswith("dense_fwd d 128/128 flash_dsa faster by 2.5 %")
    assert said["29797d3"].startswith("sparse_fwd flash_dsa faster by 6.2 to 11.6 %")
    assert said["71e2610"].startswith("sparse_fwd flash_dsa topk 2048 faster by 2.5 %")


def test_what_grew_slower_is_found_and_mended(found: list[Alert]) -> None:
    said = _said(found, Verdict.REGRESSED)
    assert list(said) == ["b716d51", "b9fd05c"]
    assert "sparse_fwd flash_dsa topk 512 slower by 7.8 %" in said["b716d51"]
    assert "dense_fwd d 576/512 flash_dsa slower by 23.4 to 31.3 %" in said["b9fd05c"]
    (wrong,) = (alert for alert in found if alert.verdict is Verdict.FAILED)
    assert wrong.commits[0].startswith("edd6ded") and len(wrong.moved) == 72
    assert {alert.status for alert in found if alert.verdict is not Verdict.IMPROVED} == {Status.FIXED}
    assert {alert.cause for alert in found if alert is not wrong} == {Cause.CODE} and alerts.exit_code(found) == 0
