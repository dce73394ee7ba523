"""Records: whole files, every key, and no broken file read as an empty history."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from instrument import invented

from asv_bench import __main__ as command
from asv_bench import cases, record, report

SPARSE = cases.cases_of("seed")[0].problem
# Every record has these keys, in this order.
KEYS = [
    "op",
    "s_q",
    "s_kv",
    "h_q",
    "h_kv",
    "d_qk",
    "d_v",
    "topk",
    "causal",
    "indices",
    "features",
    "valid_fraction",
    "implementation",
    "backend",
    "seconds_median",
    "seconds_low",
    "seconds_high",
    "cycles_median",
    "samples",
    "discarded",
    "power_capped",
    "flops",
    "bytes",
    "kv_bytes",
    "peak_bytes",
    "tflops",
    "max_abs_err",
    "error",
    "commit",
    "dirty",
    "machine",
    "gpu",
    "protocol",
    "timestamp",
    "telemetry",
]


def test_keys_are_those_of_the_interface() -> None:
    assert list(record.RECORD_KEYS) == KEYS
    assert list(record.blank(SPARSE, "naive")) == KEYS


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = record.Store(tmp_path)
    for found in reversed(invented.seed_sweep()):
        store.put(found, [[0.001, 0.002], [0.003]] if found["seconds_median"] else [])
    store.save()
    again = record.Store(tmp_path)
    assert again.records == store.records == record.load(tmp_path) == invented.seed_sweep()
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert document["schema"] == 1 and all(list(found) == KEYS for found in document["records"])
    lines = [json.loads(line) for line in (tmp_path / "sweep.samples.jsonl").read_text().splitlines()]
    assert len(lines) == 32 and lines[0]["seconds"] == [[0.001, 0.002], [0.003]]
    assert lines[0]["implementation"] == "flash_dsa" and lines[0]["s_kv"] == 4096
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.json", "sweep.samples.jsonl"]


def test_measuring_again_replaces_number_and_samples(tmp_path: Path) -> None:
    store = record.Store(tmp_path)
    store.put(invented.number(SPARSE, "naive", 1.0), [[1.0]])
    store.put(invented.number(SPARSE, "naive", 2.0), [[2.0]])
    store.put(invented.number(SPARSE, "flash_dsa", 3.0), [[3.0]])
    store.put(invented.failure(SPARSE, "flash_dsa", "failed: x"))
    store.save()
    assert [found["seconds_median"] for found in record.load(tmp_path)] == [None, 2.0]
    assert (tmp_path / "sweep.samples.jsonl").read_text().count('"seconds"') == 1
    store.forget(SPARSE, "naive")
    store.save()
    assert [found["implementation"] for found in record.load(tmp_path)] == ["flash_dsa"]
    assert (tmp_path / "sweep.samples.jsonl").read_text() == ""


def test_a_record_without_a_key_is_refused(tmp_path: Path) -> None:
    incomplete = invented.number(SPARSE, "naive", 1.0)
    del incomplete["error"]
    with pytest.raises(ValueError, match="record: expected the keys"):
        record.Store(tmp_path).put(incomplete)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"seconds_median": float("nan")}, "seconds_median: expected a number > 0 or null, got nan"),
        ({"seconds_high": float("inf")}, "seconds_high: expected a number > 0 or null, got inf"),
        ({"error": "failed: x"}, "error: expected null beside seconds_median 1.0, got 'failed: x'"),
        (dict.fromkeys(("seconds_median", "seconds_low", "seconds_high")), "error: expected the reason"),
    ],
)
def test_what_would_not_be_read_again_is_not_put(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    store = record.Store(tmp_path)
    with pytest.raises(ValueError, match=f"record: {reason}"):
        store.put(invented.number(SPARSE, "naive", 1.0, **changes))
    with pytest.raises(ValueError, match=r"record: seconds: expected numbers > 0, got 0\.0"):
        store.put(invented.number(SPARSE, "naive", 1.0), [[1.0], [0.0]])
    assert store.records == []


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "Expecting"),
        ("[]", "expected schema 1, got list"),
        ('{"schema": 2, "records": []}', "expected schema 1, got 2"),
        ('{"schema": 1}', "expected a list of records"),
        ('{"schema": 1, "records": [{"op": "sparse_fwd"}]}', "record 0: lacks s_q"),
        ('{"schema": 1, "records": [null]}', "record 0: expected an object, got None"),
        ('{"schema": 1, "records": [NaN]}', "expected finite numbers, got NaN"),
        ('{"schema": 1, "records": [1e999]}', "expected finite numbers, got 1e999"),
        ('{"schema": 1, "records": [9223372036854775808]}', "expected integers of 64 bits, got '9223372036854775808'"),
        ('{"schema": 1, "records": ["\\ud800"]}', "surrogates not allowed"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_broken_file_is_an_error_and_no_empty_history(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(record.Unreadable, match=reason):
        record.Store(tmp_path)
    assert (tmp_path / "sweep.json").read_text() == content


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder with two records and their samples, the second a newer one."""
    store = record.Store(tmp_path)
    store.put(invented.number(SPARSE, "flash_dsa", 1.0), [[1.0]])
    store.put(invented.number(SPARSE, "naive", 1.0, timestamp="2026-11-22T12:00:01+00:00"), [[1.0]])
    store.save()
    return tmp_path


SECONDS = ("seconds_median", "seconds_low", "seconds_high")
CONTROL = dict.fromkeys(SECONDS, 1.0) | {"cycles_median": None, "error": None}
DAMAGE: list[tuple[str, Any, str]] = [
    ("op", "attention", "op: expected one of sparse_fwd, dense_fwd, got 'attention'"),
    ("op", ["sparse_fwd"], "op: expected one of"),
    ("s_q", "1024", "s_q: expected an int >= 1, got '1024'"),
    ("s_kv", 4096.0, "s_kv: expected an int >= 1, got 4096.0"),
    ("h_q", True, "h_q: expected an int >= 1, got True"),
    ("h_kv", 0, "h_kv: expected an int >= 1, got 0"),
    ("topk", None, "topk: expected an int >= 1, got None"),
    ("causal", True, "causal: expected None"),
    ("indices", {}, "indices: expected one of"),
    ("features", None, "features: expected a text, got None"),
    ("valid_fraction", 1.5, "valid_fraction: expected a share from 0 to 1 or null, got 1.5"),
    ("implementation", "", "implementation: expected a text, got ''"),
    ("backend", 80, "backend: expected a text or null, got 80"),
    ("seconds_median", "1.0", "seconds_median: expected a number > 0 or null, got '1.0'"),
    ("seconds_median", -1.0, "seconds_median: expected a number > 0 or null, got -1.0"),
    ("seconds_median", None, "error: expected the reason why seconds_median is null, got null"),
    ("seconds_low", 1.1, "seconds_low: expected at most the median 1.0, got 1.1"),
    ("seconds_high", 0.9, "seconds_high: expected at least the median 1.0, got 0.9"),
    ("seconds_high", None, "seconds_high: expected a number beside the median, got None"),
    ("samples", 0, "samples: expected at least 1 beside a median, got 0"),
    ("samples", 80.0, "samples: expected an int >= 0, got 80.0"),
    ("discarded", [], "discarded: expected an object of counts, got \\[]"),
    ("discarded", {"starved": "many"}, "discarded: expected an object of counts"),
    ("power_capped", 1, "power_capped: expected true or false or null, got 1"),
    ("flops", None, "flops: expected an int >= 0, got None"),
    ("peak_bytes", "1 GB", "peak_bytes: expected an int >= 0 or null, got '1 GB'"),
    ("tflops", None, "tflops: expected a number beside the median, got None"),
    ("max_abs_err", "small", "max_abs_err: expected a number >= 0 or null, got 'small'"),
    ("error", 7, "error: expected a text or null, got 7"),
    ("error", "failed: x", "error: expected null beside seconds_median 1.0, got 'failed: x'"),
    ("commit", None, "commit: expected a text, got None"),
    ("dirty", "no", "dirty: expected true or false or null, got 'no'"),
    ("gpu", 0, "gpu: expected a text or null, got 0"),
    ("timestamp", "yesterday", "timestamp: expected a time with its zone.* got 'yesterday'"),
    ("timestamp", "2026-11-22T12:00:00", "timestamp: expected a time with its zone"),
    ("telemetry", None, "telemetry: expected an object, got None"),
    ("telemetry", {"run": ["a"]}, "telemetry.run: expected a text, got \\['a']"),
    ("telemetry", {"group": 7}, "telemetry.group: expected a text or null, got 7"),
    ("telemetry", {"ceiling": 1e15}, "telemetry.ceiling: expected flops and bytes_per_second"),
    *(
        ("telemetry", {"controls": value}, "telemetry.controls: expected before and after")
        for value in (
            None,
            {"before": None},
            {"before": None, "after": None, "meanwhile": 7},
            {"before": None, "after": {"copy": {"seconds_median": 1.0}}},
            {"before": None, "after": {"copy": CONTROL | {"seconds_median": "fast"}}},
            {"before": None, "after": {"copy": CONTROL | {"seconds_low": 1.1}}},
            {"before": None, "after": {"copy": CONTROL | {"error": "failed: x"}}},
            {"before": None, "after": {"copy": CONTROL | dict.fromkeys(SECONDS)}},
        )
    ),
]


@pytest.mark.parametrize("key, value, reason", DAMAGE)
def test_a_damaged_record_is_named_and_the_command_ends_with_3(
    key: str, value: Any, reason: str, stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored / "sweep.json"
    document = json.loads(path.read_text())
    document["records"][1][key] = value
    path.write_text(json.dumps(document))
    for read in (record.load, record.Store):
        with pytest.raises(record.Unreadable, match=f"sweep.json: record 1: {reason}"):
            read(stored)
    monkeypatch.setattr(report, "regenerate", lambda check: report.read(stored))
    assert command.main(["report"]) == 3
    said = capsys.readouterr()
    assert f"asv_bench report: {path}: record 1: " in said.err and key in said.err
    assert "Traceback" not in said.err and said.out == ""


def test_two_records_of_one_identity_are_refused(stored: Path) -> None:
    document = json.loads((stored / "sweep.json").read_text())
    document["records"][1]["implementation"] = "flash_dsa"
    (stored / "sweep.json").write_text(json.dumps(document))
    with pytest.raises(record.Unreadable, match="record 1: expected another identity than record 0's, got the same"):
        record.load(stored)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda line: "[1.0]", "line 1: expected an object, got list"),
        (lambda line: line[:-5], "line 1: .*delimiter"),
        (lambda line: "", "line 1: Expecting value"),
        (lambda line: line + "\n" + line, "line 2: expected one line of samples for a record, got a second"),
        (lambda line: line.replace("[[1.0]]", "[[NaN]]"), "line 1: expected finite numbers, got NaN"),
        (lambda line: line.replace("[[1.0]]", "[[-1.0]]"), "line 1: seconds: expected numbers > 0, got -1.0"),
        (lambda line: line.replace("[[1.0]]", "[1.0]"), "line 1: seconds: expected a list of bursts"),
        (lambda line: line.replace('"s_kv": 4096', '"s_kv": "4096"'), "line 1: s_kv: expected an int >= 1, got '4096'"),
        (lambda line: line.replace('"s_kv": 4096', '"s_kv": 4097'), "line 1: .*those of flash_dsa in .* 4097, which"),
        (lambda line: line.replace("c" * 40, "d" * 40), "line 1: commit: expected 'c*' as in the record, got 'd*'"),
        (lambda line: line.replace('"machine"', '"place"'), "line 1: lacks machine"),
    ],
)
def test_damaged_samples_are_named(damage: Callable[[str], str], reason: str, stored: Path) -> None:
    path = stored / "sweep.samples.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{damage(first)}\n{second}\n")
    before = path.read_text()
    for read in (record.load, record.Store):
        with pytest.raises(record.Unreadable, match=f"sweep.samples.jsonl: {reason}"):
            read(stored)
    assert path.read_text() == before


def test_samples_alone_are_damage_and_not_overwritten(stored: Path) -> None:
    (stored / "sweep.json").unlink()
    with pytest.raises(record.Unreadable, match=r"samples.jsonl: expected a sweep.json beside it, got none"):
        record.Store(stored)


@pytest.mark.parametrize("first", [True, False])
def test_killed_between_its_two_files_a_store_is_read_as_it_was(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples newer than every record are those of a record that was not written any more."""
    store = record.Store(tmp_path)
    if not first:
        store.put(invented.number(SPARSE, "flash_dsa", 1.0), [[1.0]])
        store.put(invented.number(SPARSE, "naive", 1.0), [[1.0]])
        store.save()
    before = store.records
    store.put(invented.number(SPARSE, "naive", 2.0, timestamp="2026-11-22T12:00:09+00:00"), [[2.0]])

    write = record.write_atomically

    def killed(path: Path, content: str | bytes) -> None:
        write(path, content)
        if path.name == "sweep.samples.jsonl":
            raise KeyboardInterrupt

    monkeypatch.setattr(record, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save()
    monkeypatch.undo()
    again = record.Store(tmp_path)
    assert again.records == record.load(tmp_path) == before
    again.save()
    assert "[[2.0]]" not in (tmp_path / "sweep.samples.jsonl").read_text()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    record.write_atomically(path, "old")

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        record.write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git tree with one commit that the record module takes for its own."""
    monkeypatch.delenv("FLASH_DSA_COMMIT", raising=False)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    (tmp_path / "asv_bench").mkdir()
    (tmp_path / "asv_bench" / "cases.py").write_text("")
    for arguments in ("init -q", "add .", "-c user.name=n -c user.email=e commit -q -m first"):
        subprocess.run(["git", "-C", str(tmp_path), *arguments.split()], check=True)
    return tmp_path


def test_commit_and_dirty_come_from_git(tree: Path) -> None:
    head = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert record.commit_and_dirty() == (head, False)
    (tree / "asv_bench" / "sweeps").mkdir()
    (tree / "asv_bench" / "sweeps" / "sweep.json").write_text("{}")
    (tree / "README.md").write_text("results and pages make no tree dirty")
    assert record.commit_and_dirty() == (head, False)
    (tree / "asv_bench" / "cases.py").write_text("changed")
    assert record.commit_and_dirty() == (head, True)


def test_a_copy_without_git_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "built_commit", lambda: None)
    monkeypatch.delenv("FLASH_DSA_COMMIT", raising=False)
    assert record.commit_and_dirty() == ("unknown", None)
    monkeypatch.setattr(record, "built_commit", lambda: "b" * 40)
    assert record.commit_and_dirty() == ("b" * 40, None)
    monkeypatch.setenv("FLASH_DSA_COMMIT", "a" * 40)
    assert record.commit_and_dirty() == ("a" * 40, False)


def test_a_git_tree_around_the_project_is_not_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROOT", tree / "asv_bench")
    monkeypatch.setattr(record, "built_commit", lambda: None)
    assert record.commit_and_dirty() == ("unknown", None)


def test_fingerprints_follow_sources_and_the_users_module(
    tree: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path_factory.mktemp("modules")
    (modules / "my_kernel.py").write_text("def run(): pass\n")
    monkeypatch.syspath_prepend(str(modules))
    ours, users = record.fingerprint("flash_dsa"), record.fingerprint("my_kernel:run")
    assert ours == record.fingerprint("naive") != users
    (modules / "my_kernel.py").write_text("def run(): return 1\n")
    assert record.fingerprint("my_kernel:run") != users and record.fingerprint("flash_dsa") == ours
    (tree / "asv_bench" / "cases.py").write_text("changed")
    assert record.fingerprint("flash_dsa") != ours
