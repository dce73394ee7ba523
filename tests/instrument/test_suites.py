"""The asv suites: what becomes a number, what n/a and what a failure. On a grid of one point per class."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from asv_bench import controls, errors, group, implementations, sampling, suite, worker
from asv_bench.errors import Unsupported
from asv_bench.implementations import BoundCall, Implementation
from asv_bench.sparse_prefill import SparsePrefillSmoke

TINY = dataclasses.replace(
    suite.CPU,
    protocol=dataclasses.replace(suite.CPU.protocol, bursts=3, budget_seconds=0.1),
    s_q=8,
    h_q=4,
    s_kv=(64,),
    topk=(16,),
    head_dims=("192x128",),
    copy_bytes=1 << 10,
    gemm_size=16,
)
SPARSE = ("sparse", 64, 16)
DENSE = ("dense", 64, "192x128")
RATIO = ("ratio", 64, 16, "192x128")


class Here(worker.Worker):
    """Runs everything in this process, where tests can plant what is measured."""

    def run(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


@pytest.fixture(autouse=True)
def cpu_grid_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASH_DSA_BENCH_CPU", "1")
    monkeypatch.setattr(suite, "Worker", Here)


def replace_ours(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    """Lets `flash_dsa` be another function of its inputs."""

    class Other(Implementation):
        name = "flash_dsa"

        def bind(self, problem: Any, inputs: Any) -> BoundCall:
            return BoundCall(lambda: call(problem, inputs), "other")

    original = implementations.get
    monkeypatch.setattr(implementations, "get", lambda name: Other() if name == "flash_dsa" else original(name))


def test_every_view_of_a_grid_has_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sidecar = tmp_path / "machine" / "commit.telemetry.jsonl"
    monkeypatch.setenv("FLASH_DSA_TELEMETRY", str(sidecar))
    cache = suite.measure(TINY)
    expected = [(*SPARSE, name) for name in TINY.sparse] + [(*DENSE, name) for name in TINY.dense] + [RATIO]
    assert set(cache) == {*expected, *(("control", work) for work in suite.CONTROLS)}
    assert all(sample > 0 for entry in cache.values() for sample in entry["samples"])
    machine, code, *lines = [json.loads(line) for line in sidecar.read_text().splitlines()]
    assert code["fingerprint"]["target"] == "cpu" and code["fingerprint"]["host"] and code["fingerprint"]["kernels"]
    assert machine["machine"]["torch"] == torch.__version__
    assert [tuple(line["view"]) for line in lines if "view" in line] == expected


def test_wrong_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_ours(monkeypatch, lambda problem, inputs: torch.zeros(problem.s_q, problem.h_q, problem.d_v))
    cache = suite.measure(TINY)
    for view in ((*SPARSE, "flash_dsa"), (*DENSE, "flash_dsa"), RATIO):
        assert "wrong_answer" in cache[view]["failed"]
    assert cache[(*SPARSE, "naive")]["samples"]


def test_ours_crashing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(problem: Any, inputs: Any) -> None:
        raise RuntimeError("misaligned address")

    replace_ours(monkeypatch, crash)
    assert "misaligned address" in suite.measure(TINY)[(*SPARSE, "flash_dsa")]["failed"]


def refuse_by(error: Exception) -> Any:
    def refuse(*_: Any) -> BoundCall:
        raise error

    return refuse


def test_a_control_that_fails_is_a_failure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(controls._MAKERS, "gemm", refuse_by(torch.OutOfMemoryError("0.4 GB")))
    cache = suite.measure(dataclasses.replace(TINY, sparse=(), dense=(), head_dims=()))
    assert cache["control", "gemm"] == {"failed": "out_of_memory: OutOfMemoryError: 0.4 GB"}
    assert cache["control", "copy"]["samples"]


def test_what_an_old_commit_lacks_is_na(monkeypatch: pytest.MonkeyPatch) -> None:
    import flash_dsa

    monkeypatch.delattr(flash_dsa, "flash_attn_varlen_func")
    cache = suite.measure(TINY)
    for view in ((*DENSE, "flash_dsa"), RATIO):
        assert "has no flash_attn_varlen_func" in cache[view]["unavailable"]
    assert cache[(*SPARSE, "flash_dsa")]["samples"]


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("module has no attribute target_of"),
        Unsupported("d_qk 192"),
        NotImplementedError("no kernel of this build runs on sm_90"),
        torch.OutOfMemoryError("beyond the inputs"),
        SystemExit(3),
    ],
)
def test_ours_refusing_is_a_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What worked at another commit may have stopped working at this one: n/a would hide it."""
    monkeypatch.setattr(implementations.FlashDsa, "bind", refuse_by(error))
    cache = suite.measure(TINY)
    for view in ((*SPARSE, "flash_dsa"), (*DENSE, "flash_dsa"), RATIO):
        assert str(error) in cache[view]["failed"]
    assert cache[(*SPARSE, "naive")]["samples"]


def test_no_target_for_the_device_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations.FlashDsa, "unavailable", lambda self, device: "no target for sm_90")
    assert suite.measure(TINY)[(*SPARSE, "flash_dsa")]["failed"] == "unavailable: no target for sm_90"


def test_a_peer_that_refuses_is_na(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations.Sdpa, "bind", refuse_by(RuntimeError("CUDNN_STATUS_BAD_PARAM")))
    assert "BAD_PARAM" in suite.measure(TINY)[(*DENSE, "sdpa")]["unavailable"]


def test_inputs_too_large_for_the_machine_are_na(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "make", refuse_by(torch.OutOfMemoryError("36.5 GB")))
    cache = suite.measure(TINY)
    assert all("36.5 GB" in cache[view]["unavailable"] for view in ((*SPARSE, "flash_dsa"), (*DENSE, "naive"), RATIO))


def test_a_kernel_that_remembers_or_changes_its_inputs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from instrument import planted

    for kernel in (planted.remembers_a_copy, planted.zeroes_its_input):
        with monkeypatch.context() as planting:
            replace_ours(planting, lambda problem, inputs, kernel=kernel: kernel(**inputs.arguments))
            assert "wrong_answer" in suite.measure(TINY)[(*SPARSE, "flash_dsa")]["failed"]


def test_a_lost_device_costs_its_member_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = implementations.Sdpa.bind

    def lose(*args: Any) -> BoundCall:
        bind(*args)
        raise errors.DeviceLost("sdpa", "RuntimeError: illegal memory access")

    monkeypatch.setattr(implementations.Sdpa, "bind", lose)
    cache = suite.measure(TINY)
    assert cache[(*DENSE, "sdpa")] == {"unavailable": "device_lost: RuntimeError: illegal memory access"}
    assert all(cache[view]["samples"] for view in ((*SPARSE, "flash_dsa"), (*DENSE, "flash_dsa"), RATIO))


def test_a_device_lost_by_what_the_members_share_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody to leave out: measuring again and again would not end."""
    monkeypatch.setattr(group.verify, "Unchanged", refuse_by(errors.DeviceLost("", "RuntimeError: fell off the bus")))
    with pytest.raises(errors.DeviceLost, match="fell off the bus"):
        suite.measure(TINY)


def test_what_the_members_share_failing_fails_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group.verify, "Unchanged", refuse_by(RuntimeError("out of checksums")))
    cache = suite.measure(TINY)
    assert "out of checksums" in cache[(*SPARSE, "flash_dsa")]["failed"]
    assert "out of checksums" in cache[RATIO]["failed"]
    assert cache["control", "copy"]["samples"]


def test_a_library_that_does_not_load_fails_every_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "flash_dsa", None)
    monkeypatch.setenv("FLASH_DSA_TELEMETRY", str(tmp_path / "notes.jsonl"))
    with pytest.raises(ImportError, match="flash_dsa"):
        suite.measure(TINY)
    assert '"error": "failed: import of flash_dsa halted' in (tmp_path / "notes.jsonl").read_text()


def test_grid_of_the_other_kind_of_machine_is_na(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASH_DSA_BENCH_CPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cache = suite.measure(suite.GPU)
    with pytest.raises(NotImplementedError, match="no GPU"):
        SparsePrefillSmoke().setup(cache, 1024, 64, "flash_dsa")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "FLASH_DSA_BENCH_CPU=1" in suite.measure(suite.CPU)[suite.WHOLE_GRID]["unavailable"]


def test_a_point_is_a_view_of_the_cache() -> None:
    point = SparsePrefillSmoke()
    cache: suite.Cache = {
        ("sparse", 1024, 64, "flash_dsa"): {"samples": [1.0, 2.0]},
        ("sparse", 1024, 64, "naive"): {"failed": "wrong_answer: out"},
    }
    point.setup(cache, 1024, 64, "naive")
    assert point.track_seconds(cache, 1024, 64, "flash_dsa") == {"samples": [1.0, 2.0], "number": 1}
    with pytest.raises(RuntimeError, match="wrong_answer"):
        point.track_seconds(cache, 1024, 64, "naive")


def test_ratio_pairs_bursts_that_took_turns() -> None:
    def outcome(bursts: list[list[float]]) -> group.Outcome:
        return group.Outcome(sampling.Samples([[sampling.Launch(seconds) for seconds in burst] for burst in bursts]))

    sparse = outcome([[1.0, 3.0], [], [4.0]])
    dense = outcome([[4.0, 5.0], [5.0], [8.0], [9.0]])
    assert suite._ratio(sparse, dense) == {"samples": [0.5, 0.4, 0.5]}  # of few pairs one per dense launch
    many = outcome([[2.0, 4.0, 3.0]] * 6), outcome([[6.0, 6.0]] * 6)
    assert suite._ratio(*many) == {"samples": [0.5] * 6}


def test_the_grids_are_what_history_was_measured_on() -> None:
    """A point that changes its problem, inputs or protocol is another series: give it another class or version."""
    fields = {
        grid.device: (
            *(getattr(grid, name) for name in ("s_q", "h_q", "s_kv", "topk", "head_dims", "sparse", "dense")),
            *(grid.copy_bytes, grid.gemm_size, dataclasses.astuple(grid.protocol)),
        )
        for grid in (suite.GPU, suite.CPU)
    }
    dims = ("192x128", "128x128", "576x512")
    tokens = (4096, 8192, 16384, 32768, 65536, 131072)
    assert fields == {
        "cuda": (
            *(4096, 128, tokens, (512, 1024, 2048), dims),
            *(("flash_dsa", "naive", "flash_mla"), ("flash_dsa", "naive", "sdpa", "flash_mla"), 1 << 30, 8192),
            ("cuda-suite", 2, 0.03, 3, 14, 1, 2, 0.03, 12, 0.03, True, 1.0),
        ),
        "cpu": (
            *(64, 16, (1024, 4096), (64, 256), dims),
            *(("flash_dsa", "naive"), ("flash_dsa", "naive", "sdpa"), 1 << 26, 1024),
            ("cpu-suite", 1, 0.1, 1, 2, 0, 1, 0.1, 10, 0.0, False, 0.4),
        ),
    }
    sparse, dense = suite.GPU.sparse_problem(8192, 512), suite.GPU.dense_problem(8192, "192x128")
    assert (sparse.indices, sparse.features, sparse.d_qk, sparse.d_v) == ("seed", "none", 576, 512)
    assert (dense.h_kv, dense.causal, dense.d_qk, dense.d_v) == (128, False, 192, 128)
    assert suite.INPUT_SEED == 0
