"""Records: whole files, every key, and no broken file read as an empty history."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from instrument import invented

from asv_bench import cases, record

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


def test_what_is_no_number_in_json_is_not_written(tmp_path: Path) -> None:
    store = record.Store(tmp_path)
    store.put(invented.number(SPARSE, "naive", 1.0))
    store.save()
    before = (tmp_path / "sweep.json").read_text()
    store.put(invented.number(SPARSE, "naive", float("nan")))
    with pytest.raises(ValueError):
        store.save()
    assert (tmp_path / "sweep.json").read_text() == before


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "Expecting"),
        ("[]", "expected schema 1, got list"),
        ('{"schema": 2, "records": []}', "expected schema 1, got 2"),
        ('{"schema": 1}', "expected a list of records"),
        ('{"schema": 1, "records": [{"op": "sparse_fwd"}]}', "record 0 lacks s_q"),
    ],
)
def test_a_broken_file_is_an_error_and_no_empty_history(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(record.Unreadable, match=reason):
        record.Store(tmp_path)
    assert (tmp_path / "sweep.json").read_text() == content


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
    for command in ("init -q", "add .", "-c user.name=n -c user.email=e commit -q -m first"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
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
