"""Telemetry: what NVML says is passed on, what it does not say is no crash."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from asv_bench import sampling, telemetry


def fake_nvml(**answers: Any) -> ModuleType:
    module = ModuleType("pynvml")

    def refuses(*_: Any) -> Any:
        raise RuntimeError("Not Supported")

    defaults: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlSystemGetDriverVersion": lambda: b"580.1",
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0x4,
        "nvmlDeviceGetClockInfo": lambda _, kind: {1: 1725}[kind],
        "nvmlDeviceGetPowerUsage": lambda _: 650_500,
        "nvmlDeviceGetTemperature": lambda _, sensor: {0: 60}[sensor],
        "nvmlDeviceGetPowerManagementLimit": refuses,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80),
        "nvmlDeviceGetMaxClockInfo": refuses,
    }
    vars(module).update(defaults | answers)
    return module


@pytest.fixture
def gpu_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))

    def make(**answers: Any) -> telemetry.Gpu:
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**answers))
        return telemetry.Gpu(0)

    return make


def test_conditions_of_a_capped_gpu(gpu_with: Any) -> None:
    gpu = gpu_with()
    assert gpu.conditions() == telemetry.Conditions(None, True, 1725.0, 650.5, 60.0, ("sw_power_cap",))
    assert gpu.facts() == {
        "gpu_uuid": "GPU-1234",
        "driver": "580.1",
        "power_limit_w": None,
        "memory_bytes": 80,
        "max_sm_clock_mhz": None,
    }


@pytest.mark.parametrize(
    "bits, slowdown",
    [
        (0x0, None),
        (0x1, None),
        (0x4, None),
        (0x8, "hardware_slowdown"),
        (0x20, "thermal_slowdown"),
        (0x44, "thermal_slowdown"),
        (0x80, "hardware_slowdown"),
    ],
)
def test_which_reasons_discard(gpu_with: Any, bits: int, slowdown: str | None) -> None:
    state = gpu_with(nvmlDeviceGetCurrentClocksEventReasons=lambda _: bits).conditions()
    assert state.slowdown == slowdown and state.power_capped == bool(bits & 0x4)
    assert slowdown is None or slowdown in sampling.DISCARD_REASONS


def test_an_older_driver_names_the_reasons_otherwise(gpu_with: Any) -> None:
    def missing(_: Any) -> int:
        raise AttributeError("nvmlDeviceGetCurrentClocksEventReasons")

    old = {"nvmlDeviceGetCurrentClocksEventReasons": missing}
    assert gpu_with(**old, nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 0x8).conditions().reasons == (
        "hw_slowdown",
    )
    assert gpu_with(**old).conditions().power_capped is None


def test_without_nvml_there_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu = telemetry.Gpu(0)
    assert gpu.conditions() == telemetry.Conditions()
    assert "pynvml" in gpu.facts()["nvml"]


def test_without_a_driver_there_is_a_reason(gpu_with: Any) -> None:
    def fails() -> None:
        raise OSError("libnvidia-ml.so.1 not found")

    assert gpu_with(nvmlInit=fails).facts() == {"nvml": "OSError: libnvidia-ml.so.1 not found"}


def test_machine_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry.socket, "gethostname", lambda: "my box.example/1")
    assert telemetry.machine_name() == "local-my-box-example-1"
    assert telemetry.machine_name("h100-sxm") == "h100-sxm"
    for bad in ("", "../up", "a/b", ".hidden", "a b"):
        with pytest.raises(ValueError, match="machine: expected"):
            telemetry.machine_name(bad)


def test_facts_and_ceiling_of_this_cpu() -> None:
    facts = telemetry.machine_facts("cpu")
    assert facts["torch"] == torch.__version__ and facts["threads"] == torch.get_num_threads() and facts["cpu"]
    ceiling = telemetry.ceiling("cpu")
    assert ceiling["flops"] > 1e8 and ceiling["bytes_per_second"] > 1e7 and ceiling["source"].startswith("measured")


def test_ceiling_of_a_known_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    found = telemetry.ceiling("cuda:0")
    assert found == {"flops": 989.4e12, "bytes_per_second": 3.35e12, "source": "datasheet of H100 80GB HBM3"}
