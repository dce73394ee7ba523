"""Result files: what is written is read again, and anything else is an error that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge import invented

from ci import results, verdict
from ci.results import Unreadable, Verdicts
from ci.verdict import CaseVerdict, Reason, Verdict

VERDICTS = Verdicts(
    "a" * 40,
    "b" * 40,
    "invented",
    "cuda-burst-v2",
    (
        CaseVerdict("one", Verdict.REGRESSED, None, 1.04, 1.03, 1.05, 0.007),
        CaseVerdict("two", Verdict.FAILED, Reason.CRASH),
        CaseVerdict("three", Verdict.UNCHANGED, same_code=True),
    ),
)
KERNEL = {"op": "sparse_fwd", "sass": "s", "registers": 168, "spill_bytes": 0, "shared_bytes": 1024}
FINGERPRINT = {"host": "h", "kernels": {"sm90a/sparse": KERNEL, "sm80/sparse": KERNEL | {"sass": "t"}}}


def test_verdicts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    results.write_verdicts(path, VERDICTS)
    assert results.read_verdicts(path) == VERDICTS
    document = json.loads(path.read_text())
    assert list(document) == ["schema", "base", "head", "machine", "protocol", "verdict", "cases"]
    assert list(document["cases"][0]) == ["id", "verdict", "reason", "ratio", "low", "high", "mde", "same_code"]
    assert document["verdict"] == "failed"
    assert document["cases"][1] == {
        "id": "two", "verdict": "failed", "reason": "crash", "ratio": None, "low": None, "high": None, "mde": None,
        "same_code": False,
    }  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["verdicts.json"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.update(schema=2), "schema: expected 1, got 2"),
        (lambda d: d.pop("cases"), "cases: expected a list, got NoneType"),
        (lambda d: d.update(base=3), "base: expected a text, got int"),
        (lambda d: d.update(verdict="unchanged"), "verdict: expected failed by its cases, got 'unchanged'"),
        (lambda d: d["cases"].append(d["cases"][0]), "expected every id once"),
        (lambda d: d["cases"][0].pop("mde"), r"cases\[0\].mde: expected a value, got none"),
        (lambda d: d["cases"][0].update(ratio=None), "expected ratio, low, high, mde all or none"),
        (lambda d: d["cases"][0].update(ratio=float("nan")), r"cases\[0\].ratio: expected a finite number, got nan"),
        (lambda d: d["cases"][0].update(low=10**400), r"cases\[0\].low: expected a finite number, got 1000"),
        (lambda d: d["cases"][0].update(ratio=-1), "expected positive numbers"),
        (lambda d: d["cases"][0].update(verdict="fine"), "'fine' is not a valid Verdict"),
        (lambda d: d["cases"][0].update(reason="crash"), "reason: expected one exactly for failed"),
        (lambda d: d["cases"][0].update(same_code=1), "same_code: expected true or false, got 1"),
        (lambda d: d["cases"].append(3), r"cases\[3\].: expected a table, got int"),
    ],
)
def test_a_spoilt_verdicts_file_is_an_error(tmp_path: Path, spoil: Callable[[Any], Any], message: str) -> None:
    path = tmp_path / "verdicts.json"
    results.write_verdicts(path, VERDICTS)
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    with pytest.raises(Unreadable, match=message) as caught:
        results.read_verdicts(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "1" * 10_000])
def test_no_json_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "verdicts.json").write_text(content)
    with pytest.raises(Unreadable):
        results.read_verdicts(tmp_path / "verdicts.json")
    with pytest.raises(Unreadable):
        results.read_run(tmp_path / "none.json")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MAX_BYTES", 10)
    (tmp_path / "verdicts.json").write_text(" " * 11)
    with pytest.raises(Unreadable, match="expected at most"):
        results.read_verdicts(tmp_path / "verdicts.json")


def read(folder: Path, side: str, document: dict[str, Any]) -> results.Run:
    (folder / f"{side}.json").write_text(json.dumps(document))
    return results.read_run(folder / f"{side}.json")


def test_two_files_make_evidence(tmp_path: Path) -> None:
    cases = {"one": (invented.problem(), invented.blocks(1.05))}
    base = invented.run_file("base", cases | {"gone": (invented.problem(), ())})
    head = invented.run_file("head", cases | {"added": (invented.problem(), ())})
    head["failures"] = {"broken": {"reason": "wrong_answer", "detail": "row 7"}}
    found = results.evidence_of(read(tmp_path, "base", base), read(tmp_path, "head", head))
    assert [one.id for one in found] == ["one", "gone", "added", "broken"]
    assert found[0].blocks == invented.blocks(1.05)
    assert (found[1].head.present, found[2].base.present) == (False, False)
    assert (found[3].head.failure, found[3].head.detail) == (Reason.WRONG_ANSWER, "row 7")


def test_same_code_by_target_and_op(tmp_path: Path) -> None:
    sparse, dense = invented.problem(), invented.problem("dense_fwd")
    cases = {"sparse": (sparse, ()), "dense": (dense, ())}
    shared = {"sm90a/dense": KERNEL | {"op": "dense_fwd"}}
    base = {"host": "h", "kernels": FINGERPRINT["kernels"] | shared}  # type: ignore[operator]

    def same(changed: dict[str, Any], host: str = "h") -> dict[str, bool]:
        theirs = {"host": host, "kernels": base["kernels"] | changed}
        runs = [
            read(tmp_path, side, invented.run_file(side, cases, fingerprint=one))
            for side, one in (("base", base), ("head", theirs))
        ]
        return {one.id: one.same_code for one in results.evidence_of(*runs)}

    assert same({}) == {"sparse": True, "dense": True}
    assert same({"sm80/sparse": KERNEL}) == {"sparse": True, "dense": True}  # another target than the one that served
    assert same({"sm90a/sparse": KERNEL | {"sass": "other"}}) == {"sparse": False, "dense": True}
    assert same({"sm90a/helper": KERNEL | {"op": None}}) == {"sparse": False, "dense": False}
    assert same({"sm90a/sparse": KERNEL | {"sass": None}}) == {"sparse": False, "dense": True}
    assert same({}, host="i") == {"sparse": False, "dense": False}


def test_without_fingerprints_nothing_is_the_same(tmp_path: Path) -> None:
    cases = {"one": (invented.problem(), ())}
    runs = [read(tmp_path, side, invented.run_file(side, cases)) for side in ("base", "head")]
    assert not results.evidence_of(*runs)[0].same_code


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop("machine_info"), "machine_info: expected a table"),
        (lambda d: d["machine_info"]["flash_dsa"].update(fingerprint=3), "fingerprint: expected a table or null"),
        (lambda d: d["benchmarks"].append(1), r"benchmarks\[1\].: expected a table"),
        (lambda d: d["benchmarks"][0]["extra_info"].pop("case"), r"benchmarks\[0\].case: expected a text"),
        (lambda d: d["benchmarks"][0]["extra_info"].update(device="tpu"), "device: expected cpu or cuda, got 'tpu'"),
        (lambda d: burst(d).update(order="BB"), r"bursts\[0\].: expected block, a number, and order, AB or BA"),
        (lambda d: burst(d).update(seconds=["x"]), r"bursts\[0\].seconds: expected a finite number, got x"),
        (lambda d: burst(d).update(cycles=[1]), r"bursts\[0\].cycles: expected 8, as many as seconds, got 1"),
        (lambda d: burst(d).update(discarded={"a": -1}), "discarded: expected counts by reason"),
        (lambda d: burst(d).update(power_capped="no"), "power_capped: expected true, false or null, got 'no'"),
        (lambda d: d.update(failures={"x": {"reason": "tired"}}), "failures.x: expected a reason of build"),
        (lambda d: d["machine_info"]["flash_dsa"].update(controls=[1]), r"controls\[0\].: expected a table, got int"),
        (
            lambda d: d["machine_info"]["flash_dsa"].update(controls=[{"gemm": {"seconds_median": "x"}}]),
            r"controls\[0\].gemm.seconds_median: expected a finite number, got x",
        ),
    ],
)
def test_a_spoilt_run_is_an_error(tmp_path: Path, spoil: Callable[[Any], Any], message: str) -> None:
    document = json.loads(json.dumps(invented.run_file("base", {"one": (invented.problem(), invented.blocks(1.0))})))
    spoil(document)
    with pytest.raises(Unreadable, match=message):
        read(tmp_path, "base", document)


def burst(document: Any) -> Any:
    return document["benchmarks"][0]["extra_info"]["bursts"][0]


def test_the_judgement_of_two_files(tmp_path: Path) -> None:
    cases = {"one": (invented.problem(), invented.blocks(1.05)), "two": (invented.problem(), invented.blocks(1.0))}
    runs = [read(tmp_path, side, invented.run_file(side, cases)) for side in ("base", "head")]
    from ci import policy

    found = verdict.judge(results.evidence_of(*runs), policy.load())
    assert [case.verdict.value for case in found] == ["regressed", "unchanged"]
