"""The instrument's CUDA side, on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asv_bench import cases, clocks, cycles, implementations, inputs, record, sampling, sweep, telemetry
from asv_bench.cases import Problem

pytestmark = [pytest.mark.gpu, pytest.mark.alone]


@pytest.mark.parametrize("kind", cases.INDICES)
def test_indices_are_the_same_on_the_gpu(kind: str) -> None:
    problem = Problem("sparse_fwd", 50, 30_000, 8, 1, 576, 512, topk=512, indices=kind)
    assert torch.equal(inputs.make_indices(problem, 1, "cuda").cpu(), inputs.make_indices(problem, 1, "cpu"))


def test_the_largest_inputs_are_made_within_seconds_and_without_a_copy() -> None:
    sparse, dense = (case.problem for case in cases.cases_of("seed")[-2:])
    clock = clocks.CpuClock()
    start = clock.read()
    inputs.make_indices(sparse, 0, "cuda")
    torch.cuda.synchronize()
    assert clock.read() - start < 10
    small = Problem(**{**dense.fields, "s_kv": 8192})
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = inputs.make(small, 0, "cuda")
    held = torch.cuda.memory_allocated() - before
    assert torch.cuda.max_memory_allocated() - before < held * 1.01
    assert made.arguments["k"].float().std().item() == pytest.approx(0.1, rel=0.01)


def test_events_time_what_the_gpu_does() -> None:
    protocol, clock = sampling.for_device("cuda")
    tensor = torch.ones(1 << 28, dtype=torch.uint8, device="cuda")
    found = sampling.measure({"copy": tensor.clone, "none": lambda: None}, protocol, clock)
    copy = sampling.median_interval(found["copy"].seconds).median
    assert 2 * tensor.numel() / 10e12 < copy < 2 * tensor.numel() / 0.1e12
    assert copy > 5 * sampling.median_interval(found["none"].seconds).median


def test_stamps_count_the_cycles_of_a_launch() -> None:
    """torch's spin kernel waits for a number of SM cycles: what a stamp before and one after it must find."""
    clock = clocks.CudaClock("cuda")
    spins = 20_000_000
    for _ in range(3):
        clock.forget_stamps()
        clock.stall(0.02)  # a host that is late, loading the kernel for one, leaves no gap between the events
        before, start = clock.stamp(), clock.read()
        torch.cuda._sleep(spins)
        end, after = clock.read(), clock.stamp()
        hertz = clock.hertz(before, after)
        assert hertz is not None and 0.2e9 < hertz < 4e9
        assert (end - start) * hertz == pytest.approx(spins, rel=0.02)
    assert clock.hertz(None, 0) is None


def test_the_timers_step_is_known_and_small_beside_any_kernel() -> None:
    assert 0 < cycles.Stamps("cuda").timer_step() <= 2e-6


def test_stamps_run_out_without_harm() -> None:
    stamps = cycles.Stamps("cuda")
    numbers = [stamps.take() for _ in range(5000)]
    assert numbers[:4096] == list(range(4096)) and numbers[4096:] == [None] * 904
    stamps.clear()
    assert stamps.take() == 0


def test_host_time_is_kept_out_of_the_samples() -> None:
    """A launch whose host needs 2 ms before a short kernel: work queued ahead hides it, or the sample is starved."""
    import time

    tensor = torch.ones(1 << 20, device="cuda")

    def slow_host() -> None:
        time.sleep(0.001)
        tensor.add_(0)

    protocol, clock = sampling.for_device("cuda")
    found = sampling.measure({"slow": slow_host}, protocol, clock)["slow"]
    assert found.error is None
    hidden = sampling.median_interval(found.seconds).median < 0.5e-3
    assert hidden or found.telemetry.get("host_bound") or found.discarded.get("starved")


def test_nvml_knows_this_gpu() -> None:
    gpu = telemetry.Gpu(0)
    facts, state = gpu.facts(), gpu.conditions()
    assert gpu.reason is None and facts["gpu_uuid"].startswith("GPU-") and facts["driver"]
    assert state.sm_clock_mhz and state.temperature_c and state.power_capped is not None


def test_a_small_sweep_on_the_gpu(tmp_path: Path) -> None:
    names = ("flash_dsa", "naive", "sdpa", "flash_mla")
    chosen = (
        cases.sparse_case(256, 4096, 128, h_q=64),
        cases.dense_case(256, 4096, 64, 64, 576, 512),
        cases.dense_case(256, 256, 8, 2, 192, 128, causal=True),
        cases.dense_case(256, 512, 8, 8, 128, 128, causal=True),
    )
    options = sweep.Options(chosen, names, torch.device("cuda", 0), "test", tmp_path)
    sweep.execute(sweep.start(options), show_progress=False)
    for found in record.load(tmp_path):
        label = f"{found['implementation']} {found['op']} {found['d_qk']}: {found['error']}"
        for moment in found["telemetry"]["controls"].values():
            assert [facts["error"] for facts in moment.values()] == [None, None]
            assert all(facts["cycles_median"] for facts in moment.values())
        if found["implementation"] in ("flash_dsa", "naive"):
            assert found["error"] is None, label
        if found["error"] is None:
            assert found["seconds_median"] > 0 and found["peak_bytes"] > 0 and found["gpu"], label
        else:
            assert found["error"].split(":")[0] in ("unsupported", "unavailable", "failed"), label
    absent = implementations.get("flash_mla").unavailable(torch.device("cuda", 0))
    peer = [str(found["error"]) for found in record.load(tmp_path) if found["implementation"] == "flash_mla"]
    assert peer == [f"unavailable: {absent}"] * len(chosen) if absent else "unavailable" not in " ".join(peer)
