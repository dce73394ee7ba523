"""Alerts: what is one, whose doing it is, what became of it. On invented histories with known truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge.test_history import write

from ci import __main__ as command
from ci import alerts, policy
from ci.alerts import Acknowledgement, Alert, Cause, Moved, Status
from ci.changepoint import ChangePoint
from ci.history import History
from ci.results import Unreadable
from ci.verdict import Verdict

RULE = policy.load().history
COMMITS = tuple(f"{number:02d}" * 20 for number in range(40))
SPARSE = "sparse_prefill.SparsePrefill.track_seconds"


def series(
    *levels: float, benchmark: str = SPARSE, params: tuple[str, ...] = (), noise: float = 0.002, seed: int = 0
) -> History:
    """Levels of equal length over 40 commits."""
    values = np.repeat(np.array(levels), 40 // len(levels))
    name = params or ("8192", "2048", "'flash_dsa'")
    values = values * np.exp(np.random.default_rng([seed, *map(ord, "".join(name))]).normal(0, noise, 40))
    return History(benchmark, name, "box", "py", COMMITS, values, np.zeros(40))


def ours(s_kv: int, topk: int, *levels: float, **more: Any) -> History:
    return series(*levels, params=(str(s_kv), str(topk), "'flash_dsa'"), **more)


def control(*levels: float, work: str = "gemm") -> History:
    return series(*levels, benchmark="control.Control.track_seconds", params=(f"'{work}'",))


QUIET = control(1, 1)


def judged(*histories: History, **more: Any) -> list[Alert]:
    return alerts.judge(histories, RULE, **more)


def test_series_that_moved_together_are_one_alert_in_a_sentence() -> None:
    moved = [ours(s_kv, topk, 1.0, 1.04) for s_kv in (4096, 8192) for topk in (1024, 2048)]
    (alert,) = judged(*moved, ours(4096, 512, 1.0, 1.0), ours(8192, 512, 1.0, 1.0), QUIET)
    assert (alert.verdict, alert.cause, alert.status) == (Verdict.REGRESSED, Cause.CODE, Status.OPEN)
    assert len(alert.moved) == 4 and alert.commits[0] == COMMITS[20] and alert.known_good == COMMITS[19]
    (sentence,) = alert.sentences
    assert sentence.startswith("sparse_fwd topk >= 1024 slower by 4.") and sentence.endswith("at s_kv 4096 to 8192")


def test_a_sentence_knows_what_did_not_move() -> None:
    sizes = (4096, 8192, 16384)
    moved = [ours(s_kv, 2048, 1.0, 1.0 if s_kv == 8192 else 1.04) for s_kv in sizes]
    naive = [series(1.0, 1.04, params=(str(s_kv), "1024", "'naive'")) for s_kv in sizes]
    of_ours, of_naive = sorted(one.sentences[0] for one in judged(*moved, *naive))
    assert of_ours.startswith("sparse_fwd flash_dsa topk 2048 slower") and of_ours.endswith("at s_kv 4096, 16384")
    assert of_naive.startswith("sparse_fwd naive topk 1024 slower") and of_naive.endswith("at s_kv 4096 to 16384")


def test_series_are_named_as_in_a_table_and_other_grids_by_their_class() -> None:
    others = [
        ours(4096, 512, 1.0, 1.04, benchmark=SPARSE.replace("SparsePrefill", "SparsePrefillSmoke")),
        series(1.0, 1.04, benchmark="dense_prefill.DensePrefill.track_seconds", params=("4096", "192x128", "'sdpa'")),
        series(1.0, 1.04, benchmark="speedup.SparseOverDense.track_ratio", params=("4096", "512", "192x128")),
    ]
    alerts_of_all = judged(ours(4096, 512, 1.0, 1.04), *others)
    assert {one.split(" slower")[0] for alert in alerts_of_all for one in alert.sentences} == {
        "sparse_fwd flash_dsa topk 512",
        "sparse_fwd `flash_dsa of SparsePrefillSmoke.track_seconds` topk 512",
        "dense_fwd",
        "sparse_over_dense topk 512",
    }


@pytest.mark.parametrize("scatter, count", [(0.002, 5), (0.03, 0)])
def test_witnesses_say_how_noisy_a_machine_is(scatter: float, count: int) -> None:
    """Where each commit moves something, a series of ours has no quiet stretch to show its noise by."""
    first = {"commits": COMMITS[:6], "noise": np.full(6, 0.001)}
    stairs = replace(ours(4096, 512, 1.0), values=0.94 ** np.arange(6), **first)
    others = [series(1.0, params=("4096", str(topk), "'naive'"), noise=scatter) for topk in range(10)]
    quiet = [replace(one, values=one.values[:6], **first) for one in others]

    def steps(*witnesses: History) -> int:
        moved = [one for alert in judged(stairs, *witnesses) for one in alert.moved]
        return sum(one.history is stairs for one in moved)

    assert steps(*quiet) == count
    assert steps(*quiet[:3]) == 0  # too few say


def test_a_faster_and_a_slower_one_are_two_alerts() -> None:
    faster, slower = judged(ours(4096, 512, 1.0, 0.9), ours(4096, 2048, 1.0, 1.1), QUIET)
    assert {faster.verdict, slower.verdict} == {Verdict.IMPROVED, Verdict.REGRESSED} and faster.id != slower.id


def test_changes_of_different_commits_are_different_alerts() -> None:
    first, second = judged(ours(4096, 512, 1.0, 1.1, 1.1, 1.1), ours(4096, 2048, 1.0, 1.0, 1.1, 1.1), QUIET)
    assert (first.commits[0], second.commits[0]) == (COMMITS[10], COMMITS[20])


@pytest.mark.parametrize("witness", [control(1.0, 1.04), series(1.0, 1.04, params=("8192", "2048", "'naive'"))])
def test_what_the_witnesses_share_is_the_machines(witness: History) -> None:
    found = judged(ours(4096, 512, 1.0, 1.04), witness)
    assert {alert.cause for alert in found} == {Cause.ENVIRONMENT} and len(found) == 2
    assert alerts.exit_code(found) == 0


@pytest.mark.parametrize("witness", [control(1.0, 0.96), control(1.0, 1.01), control(1.0, 1.0, 1.0, 1.04)])
def test_a_witness_that_moved_otherwise_excuses_nothing(witness: History) -> None:
    """The other way, by less than half as much, or at another commit."""
    found = judged(ours(4096, 512, 1.0, 1.06), witness)
    assert Cause.CODE in {alert.cause for alert in found} and alerts.exit_code(found) == 1


def fingerprint(sass: str) -> dict[str, Any]:
    return {"host": "h", "target": "sm80", "kernels": {"sm80/k": {"op": "sparse_fwd", "sass": sass}}}


@pytest.mark.parametrize("after, cause", [("a", Cause.ENVIRONMENT), ("b", Cause.CODE)])
def test_the_fingerprint_decides_where_it_is_known(after: str, cause: Cause) -> None:
    known = {("box", COMMITS[19]): fingerprint("a"), ("box", COMMITS[20]): fingerprint(after)}
    (alert,) = judged(ours(4096, 512, 1.0, 1.04), fingerprints=known)
    assert alert.cause is cause


def at(*indices: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Fingerprints of all commits; the code changes at these."""
    codes = np.cumsum([index in indices for index in range(40)])
    return {("box", commit): fingerprint(str(number)) for commit, number in zip(COMMITS, codes, strict=True)}


@pytest.mark.parametrize("noise, size", [(0.005, 0.01), (0.004, 0.02)])
def test_a_regression_located_off_its_commit_is_never_the_machines(noise: float, size: float) -> None:
    found = 0
    for seed in range(60):
        for alert in judged(ours(4096, 512, 1.0, 1.0 + size, noise=noise, seed=seed), fingerprints=at(20)):
            if alert.verdict is Verdict.REGRESSED and abs(COMMITS.index(alert.commits[0]) - 20) <= 3:
                found += 1
                assert alert.cause is not Cause.ENVIRONMENT
    assert found >= 30


def test_of_a_range_only_commits_that_changed_the_code_are_named() -> None:
    gap = ours(4096, 512, 1.0, 1.06)
    gap.values[18:22] = np.nan  # not measured
    (wide,) = judged(gap, QUIET)
    assert len(wide.commits) > 1
    (alert,) = judged(gap, QUIET, fingerprints=at(5, 30))
    assert alert.cause is Cause.ENVIRONMENT
    (alert,) = judged(gap, fingerprints=at(5, 22))
    assert (alert.cause, alert.commits) == (Cause.CODE, (COMMITS[22],)) and alert.known_good == COMMITS[17]


def test_a_commit_that_was_not_measured_hides_no_fingerprint() -> None:
    hole = ours(4096, 512, 1.0, 1.06)
    hole.values[19] = np.nan
    known = at()
    del known["box", COMMITS[19]]
    (alert,) = judged(hole, fingerprints=known)
    assert alert.cause is Cause.ENVIRONMENT
    del known["box", COMMITS[18]]
    (alert,) = judged(hole, fingerprints=known)
    assert alert.cause is Cause.UNKNOWN


def test_what_the_machine_gives_back_mends_no_code() -> None:
    found = judged(ours(4096, 512, 1.0, 1.05, 1.0, 1.0), control(1.0, 1.0, 0.95, 0.95))
    (broke,) = (alert for alert in found if alert.verdict is Verdict.REGRESSED)
    assert (broke.cause, broke.status) == (Cause.CODE, Status.OPEN) and alerts.exit_code(found) == 1


def ratio(*levels: float, s_kv: int = 8192, topk: int = 2048) -> History:
    params = (str(s_kv), str(topk), "'192x128'")
    return series(*levels, benchmark="speedup.SparseOverDense.track_ratio", params=params)


def dense(*levels: float, name: str = "flash_dsa") -> History:
    params = ("8192", "'192x128'", f"'{name}'")
    return series(*levels, benchmark="dense_prefill.DensePrefill.track_seconds", params=params)


def test_ratios_of_sparse_over_dense_go_together() -> None:
    (alert,) = judged(*(ratio(1.0, 1.06, s_kv=s_kv, topk=topk) for s_kv in (8192, 131072) for topk in (512, 2048)))
    (sentence,) = alert.sentences
    assert sentence.startswith("sparse_over_dense slower by") and sentence.endswith("at s_kv 8192 to 131072")


def test_a_ratio_that_only_dense_moved_is_no_alert_of_its_own() -> None:
    (alert,) = judged(ratio(1.0, 1.1), dense(1.0, 0.9), ours(8192, 2048, 1.0, 1.0), QUIET)
    assert alert.verdict is Verdict.IMPROVED and alerts.exit_code([alert]) == 0
    for other in (dense(1.0, 1.1), dense(1.0, 0.98), dense(1.0, 0.9, name="sdpa"), dense(1.0, 0.9, 0.9, 0.9)):
        moved = [one.history.benchmark for alert in judged(ratio(1.0, 1.1), other) for one in alert.moved]
        assert "speedup.SparseOverDense.track_ratio" in moved


def test_ratios_that_follow_dense_stand_in_no_alert_of_what_else_moved() -> None:
    """Sparse grew slower at the commit that made dense faster: of dense's part a ratio says nothing more."""
    found = judged(ours(8192, 2048, 1.0, 1.05), ratio(1.0, 1.05 / 0.5), dense(1.0, 0.5), QUIET)
    assert [(alert.verdict, len(alert.moved)) for alert in found] == [(Verdict.IMPROVED, 1), (Verdict.REGRESSED, 1)]
    assert found[1].moved[0].history.benchmark == SPARSE
    other = ratio(1.0, 1.05 / 0.5)
    of_128 = History(**{**vars(other), "params": ("8192", "2048", "'128x128'")})  # whose dense did not move
    (regressed,) = (
        alert
        for alert in judged(ours(8192, 2048, 1.0, 1.05), of_128, dense(1.0, 0.5), QUIET)
        if alert.verdict is Verdict.REGRESSED
    )
    assert len(regressed.moved) == 2 and regressed.sentences[0].startswith("sparse_fwd")


def test_a_ratio_that_later_dense_moved_does_not_keep_what_is_mended_open() -> None:
    levels = (1.0, 1.05, 1.0, 1.0)
    faster = [ratio(1.0, 1.05, 1.0 / 0.5, 1.0 / 0.5, topk=topk) for topk in (512, 1024, 2048)]
    found = judged(ours(8192, 2048, *levels), *faster, dense(1.0, 1.0, 0.5, 0.5), QUIET)
    (broke,) = (alert for alert in found if alert.verdict is Verdict.REGRESSED)
    assert len(broke.moved) == 4 and (broke.status, broke.fixed_by) == (Status.FIXED, COMMITS[20])


def test_a_change_is_said_with_those_of_its_own_commit() -> None:
    """A noisy series may have moved at either of two commits; its best guess is the one that most others moved at."""
    at = {number: ours(s_kv, 2048, 1.0, 1.0) for number, s_kv in enumerate((1024, 2048, 4096, 8192, 16384))}
    point = ChangePoint(20, 20, 20, 1.0, 0.9, 0.9, 0.89, 0.91)
    early = replace(point, index=18, earliest=18, latest=18)
    wide = replace(point, earliest=17, latest=22)
    moved = [Moved(at[0], early), Moved(at[1], point), Moved(at[2], point), Moved(at[3], wide)]
    lone = Moved(at[4], replace(point, index=22, earliest=20, latest=23))
    groups = [[one.history.params[0] for one in group] for group in alerts._together([*moved, lone])]
    assert groups == [["1024"], ["2048", "4096", "8192", "16384"]]


def test_without_witnesses_or_fingerprint_the_cause_is_unknown() -> None:
    (alert,) = judged(ours(4096, 512, 1.0, 1.04))
    assert alert.cause is Cause.UNKNOWN and alerts.exit_code([alert]) == 1


def test_a_lone_small_step_in_noise_is_weak_and_shared_it_is_not() -> None:
    noisy = [ours(4096, topk, 1.0, 1.02, noise=0.012, seed=topk) for topk in (512, 1024, 2048)]
    (alone,) = judged(noisy[0], QUIET)
    assert alone.status is Status.WEAK and alerts.exit_code([alone]) == 2
    assert judged(*noisy, QUIET)[0].status is Status.OPEN


def test_what_was_fixed_stays_on_record() -> None:
    broke, fixed = judged(ours(4096, 512, 1.0, 1.05, 1.0, 1.0), QUIET)
    assert (broke.status, broke.fixed_by) == (Status.FIXED, COMMITS[20]) and broke.verdict is Verdict.REGRESSED
    assert fixed.verdict is Verdict.IMPROVED and alerts.exit_code([broke, fixed]) == 0
    assert f"fixed by {COMMITS[20][:12]}" in alerts.text([broke])
    half, _ = judged(ours(4096, 512, 1.0, 1.06, 1.03, 1.03), QUIET)
    assert half.status is Status.OPEN
    beyond, _ = judged(ours(4096, 512, 1.0, 1.06, 0.9, 0.9), QUIET)
    assert beyond.status is Status.FIXED
    lost, _ = judged(ours(4096, 512, 1.0, 0.9, 1.0, 1.0), QUIET)
    assert f"undone by {COMMITS[20][:12]}" in alerts.text([lost])
    entry = Acknowledgement(COMMITS[10][:12], "*", "A. Body", "checks bounds now", "2026-11-22")
    both, _ = judged(ours(4096, 512, 1.0, 1.05, 1.0, 1.0), QUIET, acknowledged=[entry])
    assert (both.status, both.acknowledgement) == (Status.FIXED, entry) and "A. Body" in alerts.text([both])


def test_what_was_fixed_for_most_is_fixed() -> None:
    def status(fixed: int) -> Status:
        levels = [(1.0, 1.05, 1.0, 1.0)] * fixed + [(1.0, 1.05, 1.05, 1.05)] * (4 - fixed)
        found = judged(*(ours(4096, 256 << number, *one) for number, one in enumerate(levels)), QUIET)
        return next(alert.status for alert in found if alert.verdict is Verdict.REGRESSED)

    assert [status(fixed) for fixed in range(5)] == [Status.OPEN] * 3 + [Status.FIXED] * 2


def test_the_commit_that_most_of_them_name_is_the_likeliest() -> None:
    moved = [
        Moved(ours(4096, 512, 1.0, 1.03), ChangePoint(index, 18, 21, 1.0, 1.03, 1.03, 1.02, 1.04))
        for index in (19, 20, 20)
    ]
    assert Alert(tuple(moved), Cause.CODE).commits == tuple(COMMITS[index] for index in (20, 18, 19, 21))


def test_what_was_accepted_is_shown_with_who_and_why() -> None:
    entry = Acknowledgement(COMMITS[20][:12], "sparse_prefill.*", "A. Body", "checks bounds now", "2026-11-22")
    (alert,) = judged(ours(4096, 512, 1.0, 1.05), QUIET, acknowledged=[entry])
    assert alert.status is Status.ACKNOWLEDGED and alerts.exit_code([alert]) == 0
    assert "acknowledged by A. Body: checks bounds now" in alerts.text([alert])
    for other in (replace(entry, commit="f" * 12), replace(entry, benchmarks="dense_prefill.*")):
        assert judged(ours(4096, 512, 1.0, 1.05), QUIET, acknowledged=[other])[0].status is Status.OPEN
    # What was accepted of one op is not accepted of another.
    assert judged(ours(4096, 512, 1.0, 1.05), dense(1.0, 1.05), QUIET, acknowledged=[entry])[0].status is Status.OPEN


def test_an_alert_keeps_its_name_when_history_goes_on() -> None:
    def cut(history: History, length: int) -> History:
        return replace(history, commits=COMMITS[:length], values=history.values[:length], noise=history.noise[:length])

    whole = [ours(4096, 512, 1.0, 1.05), QUIET]
    (early,), (late,) = judged(*(cut(one, 30) for one in whole)), judged(*whole)
    assert early.id == late.id


def without(history: History, *indices: int, failed: bool = True) -> History:
    """The same, with no value at these commits: failed, or with nothing to measure."""
    values = history.values.copy()
    values[list(indices)] = np.nan
    return replace(history, values=values, **{"failed" if failed else "not_applicable": indices})


@pytest.mark.parametrize("failed, verdict", [(True, Verdict.FAILED), (False, Verdict.MISSING)])
def test_a_series_that_ends_without_a_value_is_an_alert(failed: bool, verdict: Verdict) -> None:
    ended = [without(ours(4096, topk, 1.0, 1.0), 37, 38, 39, failed=failed) for topk in (512, 2048)]
    (alert,) = judged(*ended, ours(8192, 512, 1.0, 1.0), QUIET)
    assert (alert.verdict, alert.status, alert.cause) == (verdict, Status.OPEN, Cause.UNKNOWN)
    assert (alert.commits, alert.known_good) == ((COMMITS[37],), COMMITS[36]) and alerts.exit_code([alert]) == 1
    said = "failed" if failed else "had nothing to measure (n/a)"
    assert alert.sentences == [f"sparse_fwd {said} at s_kv 4096"]
    (written,) = alerts.document([alert])["alerts"]
    assert written["series"][0]["ratio"] is None is written["series"][0]["after"]
    assert written["series"][0]["before"] == pytest.approx(1.0, rel=0.01)
    entry = Acknowledgement(COMMITS[37][:12], "*", "A. Body", "not for this head size", "2026-11-22")
    assert alerts.exit_code(judged(*ended, QUIET, acknowledged=[entry])) == 0


@pytest.mark.parametrize("changed, cause", [(38, Cause.CODE), (37, Cause.UNKNOWN), (5, Cause.UNKNOWN)])
def test_a_loss_is_the_codes_where_the_code_changed(changed: int, cause: Cause) -> None:
    ended = without(ours(4096, 512, 1.0, 1.0), 38, 39)
    (alert,) = judged(ended, QUIET, fingerprints=at(changed))
    assert alert.cause is cause and alerts.exit_code([alert]) == 1


def test_a_build_that_failed_left_no_fingerprint() -> None:
    known = {key: one for key, one in at(38).items() if key[1] not in COMMITS[38:]}
    (alert,) = judged(without(ours(4096, 512, 1.0, 1.0), 38, 39), QUIET, fingerprints=known)
    assert alert.cause is Cause.UNKNOWN


def test_what_works_again_is_fixed_and_what_never_worked_is_no_loss() -> None:
    back = without(ours(4096, 512, 1.0, 1.0), 10, 11)
    (alert,) = judged(back, QUIET)
    assert (alert.verdict, alert.status, alert.fixed_by) == (Verdict.FAILED, Status.FIXED, COMMITS[12])
    assert alerts.exit_code([alert]) == 0
    assert judged(without(ours(4096, 512, 1.0, 1.0), 0, 1, 2), QUIET) == []
    assert judged(without(ours(4096, 512, 1.0, 1.0), *range(40)), QUIET) == []


def test_a_peer_that_is_gone_is_the_machines() -> None:
    (alert,) = judged(without(dense(1.0, 1.0, name="cudnn"), 39), dense(1.0, 1.0))
    assert alert.cause is Cause.ENVIRONMENT and alerts.exit_code([alert]) == 0


def test_a_commit_that_does_not_build_is_one_alert() -> None:
    mine, others = ours(4096, 512, 1.0, 1.0), [control(1.0, 1.0), dense(1.0, 1.0, name="cudnn")]
    (alert,) = judged(without(mine, 38), *(without(one, 38) for one in others))
    assert alert.moved[0].history.params[-1] == "'flash_dsa'" and len(alert.moved) == 1
    assert len(judged(without(mine, 38), *(without(one, 30) for one in others))) == 2


def test_ratios_that_end_with_what_they_are_made_of_are_no_alert_of_their_own() -> None:
    gone = without(dense(1.0, 1.0), 38, 39)
    (alert,) = judged(gone, without(ratio(1.0, 1.0), 38, 39), QUIET)
    assert alert.moved[0].history.benchmark.startswith("dense_prefill")
    (alert,) = judged(dense(1.0, 1.0), without(ratio(1.0, 1.0), 38, 39), QUIET)
    assert alert.moved[0].history.benchmark.startswith("speedup")


def test_another_project_gets_a_sentence_for_each_series() -> None:
    (alert,) = judged(series(1.0, 1.1, benchmark="units.Time.time_convert", params=("'a`b'",)))
    (sentence,) = alert.sentences
    assert sentence.startswith("`units.Time.time_convert('a'b')` slower by 9.9 %")


GOOD = '[[acknowledged]]\ncommit = "0123456"\nbenchmarks = "*"\nauthor = "a"\nreason = "r"\ndate = 2026-11-22\n'


def test_acknowledgements_are_read(tmp_path: Path) -> None:
    path = tmp_path / "acknowledged.toml"
    assert alerts.read_acknowledged(path) == ()
    path.write_text(GOOD)
    assert alerts.read_acknowledged(path) == (Acknowledgement("0123456", "*", "a", "r", "2026-11-22"),)


@pytest.mark.parametrize(
    "content",
    ["[[", "other = 1\n", GOOD.replace("reason", "why"), GOOD.replace('"r"', '" "'), GOOD.replace("0123456", "012")],
)
def test_a_damaged_acknowledgement_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "acknowledged.toml").write_text(content)
    with pytest.raises(Unreadable, match=r"acknowledged\.toml"):
        alerts.read_acknowledged(tmp_path / "acknowledged.toml")


def tree(root: Path, histories: list[History]) -> None:
    for number, commit in enumerate(COMMITS):
        results = {one.benchmark: [[one.values[number]], [[param] for param in one.params], "v"] for one in histories}
        write(root, commit, number, results)


def test_the_command_writes_alerts_and_says_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "results", [ours(4096, 512, 1.0, 1.05), QUIET])
    line = json.dumps({"fingerprint": fingerprint("a")}) + "\n"
    (tmp_path / "results" / "box" / f"{COMMITS[19]}.telemetry.jsonl").write_text('{"machine": {}}\n' + line)
    arguments = ["judge", str(tmp_path / "results"), "--output", str(tmp_path / "alerts.json")]
    assert command.main(arguments) == 1
    said = capsys.readouterr().out
    assert f"regressed on box, {COMMITS[19][:12]}..{COMMITS[20][:12]}, the code, open" in said
    assert "    sparse_fwd topk 512 slower by" in said
    written = json.loads((tmp_path / "alerts.json").read_text())
    (alert,) = written["alerts"]
    assert (written["schema"], alert["verdict"], alert["cause"], alert["commit"]) == (
        1,
        "regressed",
        "code",
        COMMITS[20],
    )
    assert alert["series"][0]["ratio"] == pytest.approx(1.05, rel=0.01) and alert["known_good"] == COMMITS[19]
    (tmp_path / "acknowledged.toml").write_text(GOOD.replace("0123456", COMMITS[20][:12]))
    assert command.main([*arguments, "--acknowledged", str(tmp_path / "acknowledged.toml")]) == 0
    capsys.readouterr()
    (tmp_path / "results" / "box" / f"{COMMITS[3]}.telemetry.jsonl").write_text("{\n")
    assert command.main(arguments) == 3 and f"{COMMITS[3]}.telemetry.jsonl" in capsys.readouterr().err
    assert command.main(["judge", str(tmp_path / "nowhere")]) == 3


def test_nothing_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "results", [ours(4096, 512, 1.0, 1.0), QUIET])
    assert command.main(["judge", str(tmp_path / "results"), "--output", str(tmp_path / "alerts.json")]) == 0
    assert capsys.readouterr().out == "nothing moved\n"
    assert json.loads((tmp_path / "alerts.json").read_text()) == {"schema": 1, "alerts": []}
