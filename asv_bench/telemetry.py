"""Telemetry: what the machine was and did while samples were taken. Absence is a reason, never a crash."""

from __future__ import annotations

import importlib
import os
import platform
import re
import socket
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Bits of NVML's clocks event reasons (nvml.h, nvmlClocksEventReason*).
CLOCK_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
}
# Reasons that discard samples, as a reason of sampling.DISCARD_REASONS. A power cap does not: long kernels cannot
# avoid it, so their samples are kept and marked.
_DISCARDING = {
    "sw_thermal_slowdown": "thermal_slowdown",
    "hw_thermal_slowdown": "thermal_slowdown",
    "hw_slowdown": "hardware_slowdown",
    "hw_power_brake": "hardware_slowdown",
}


@dataclass(frozen=True)
class Conditions:
    """State of the device at one moment; None where it is unknown.

    Args:
        slowdown: why samples of this moment are no measurement (`thermal_slowdown`, `hardware_slowdown`), or None.
        power_capped: whether the power cap lowers the clock.
        sm_clock_mhz, power_w, temperature_c: as NVML reads them.
        reasons: names of CLOCK_REASONS.
    """

    slowdown: str | None = None
    power_capped: bool | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    reasons: tuple[str, ...] = ()


class Gpu:
    """NVML's view of one CUDA device.

    Args:
        index: CUDA device index, found again in NVML by its UUID so that CUDA_VISIBLE_DEVICES does not mislead.
    """

    def __init__(self, index: int = 0) -> None:
        self.reason: str | None = None
        self._nvml: Any = None
        self._handle: Any = None
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._handle = self._find(index)
        except Exception as error:
            self._nvml = None
            self.reason = f"{type(error).__name__}: {error}"

    def _find(self, index: int) -> Any:
        import torch

        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
        if uuid is None:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        text = str(uuid)
        return self._nvml.nvmlDeviceGetHandleByUUID(text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}")

    def _ask(self, name: str, *args: Any) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, name)(self._handle, *args)
        except Exception:  # NVML answers "not supported" per query and per card
            return None

    def conditions(self) -> Conditions:
        """State at this moment; callable while kernels run."""
        if self._nvml is None:
            return Conditions()
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        reasons = reason_names(bits or 0)
        clock = self._ask("nvmlDeviceGetClockInfo", 1)  # NVML_CLOCK_SM
        power = self._ask("nvmlDeviceGetPowerUsage")
        temperature = self._ask("nvmlDeviceGetTemperature", 0)  # NVML_TEMPERATURE_GPU
        return Conditions(
            slowdown=next((_DISCARDING[name] for name in reasons if name in _DISCARDING), None),
            power_capped=None if bits is None else "sw_power_cap" in reasons,
            sm_clock_mhz=None if clock is None else float(clock),
            power_w=None if power is None else power / 1000,
            temperature_c=None if temperature is None else float(temperature),
            reasons=reasons,
        )

    def facts(self) -> dict[str, Any]:
        """Facts that do not change during a run."""
        if self._nvml is None:
            return {"nvml": self.reason}
        limit = self._ask("nvmlDeviceGetPowerManagementLimit")
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        version = self._nvml.nvmlSystemGetDriverVersion
        return {
            "gpu_uuid": _text(self._ask("nvmlDeviceGetUUID")),
            "driver": _text(_quietly(version)),
            "power_limit_w": None if limit is None else limit / 1000,
            "memory_bytes": None if memory is None else int(memory.total),
            "max_sm_clock_mhz": self._ask("nvmlDeviceGetMaxClockInfo", 1),
        }


def conditions_of(device: torch.device) -> Callable[[], Conditions] | None:
    """Reads the state of a GPU; None for a device that has no such state."""
    return Gpu(device.index or 0).conditions if device.type == "cuda" else None


def reason_names(bits: int) -> tuple[str, ...]:
    """Names of the clocks event reasons set in NVML's bit mask."""
    return tuple(name for bit, name in CLOCK_REASONS.items() if bits & bit)


def summarize(seen: Sequence[Conditions]) -> dict[str, Any]:
    """Telemetry of a measurement from the conditions of its bursts; empty when nothing is known."""
    summary: dict[str, Any] = {}
    clocks = [state.sm_clock_mhz for state in seen if state.sm_clock_mhz is not None]
    powers = [state.power_w for state in seen if state.power_w is not None]
    temperatures = [state.temperature_c for state in seen if state.temperature_c is not None]
    if clocks:
        summary["sm_clock_mhz"] = {"min": min(clocks), "median": statistics.median(clocks), "max": max(clocks)}
    if powers:
        summary["power_w_max"] = max(powers)
    if temperatures:
        summary["temperature_c_max"] = max(temperatures)
    reasons = sorted({name for state in seen for name in state.reasons})
    if reasons:
        summary["clock_reasons"] = reasons
    return summary


def machine_facts(device: Any) -> dict[str, Any]:
    """Facts of the machine that go into every record's telemetry.

    Args:
        device: `cpu` or `cuda[:i]`.
    """
    import torch

    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    device = torch.device(device)
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cudnn": torch.backends.cudnn.version()}
        facts |= Gpu(device.index or 0).facts()
    return facts


def cpu_model() -> str:
    """The CPU's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_name(name: str | None = None) -> str:
    """Folder name of this machine's records.

    Args:
        name: a fixed name (`h100-sxm`, `cpu-x86`) or any other; None for `local-<hostname>`, which git ignores.
    Raises:
        ValueError: for a name that is no plain folder name.
    """
    if name is None:
        host = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname()).strip("-")
        return f"local-{host or 'machine'}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"machine: expected letters, digits, '.', '_' and '-', got {name!r}")
    return name


def ceiling(device: Any) -> dict[str, Any]:
    """The machine's peak at bfloat16, for rooflines.

    Returns:
        flops (FLOP/s), bytes_per_second, and source: the datasheet of a known GPU, else a GEMM and a copy timed here.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, flops, bandwidth in _DATASHEETS:
            if known in name:
                return {"flops": flops, "bytes_per_second": bandwidth, "source": f"datasheet of {known}"}
    return _measured_ceiling(device)


# Dense bfloat16 FLOP/s and memory bytes/s, from NVIDIA's datasheets.
_DATASHEETS = (
    ("H100 80GB HBM3", 989.4e12, 3.35e12),
    ("H200", 989.4e12, 4.8e12),
    ("H100 PCIe", 756e12, 2.0e12),
    ("A100-SXM4-80GB", 312e12, 2.04e12),
)


def _measured_ceiling(device: Any) -> dict[str, Any]:
    import torch

    from asv_bench.sampling import for_device

    _, clock = for_device(device)
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(torch.bfloat16)
    b = torch.randn(n, n, device=device).to(torch.bfloat16)
    source = torch.ones(1 << 28 if device.type == "cuda" else 1 << 26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def best(call: Any) -> float:
        seconds = []
        for _ in range(8):
            start = clock.read()
            call()
            end = clock.read()
            clock.wait()
            seconds.append(end - start)
        return min(seconds)

    return {
        "flops": 2 * n**3 / best(lambda: torch.mm(a, b)),
        "bytes_per_second": 2 * source.numel() / best(lambda: target.copy_(source)),
        "source": f"measured: GEMM {n} and copy of {source.numel() >> 20} MiB",
    }


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _quietly(call: Any) -> Any:
    try:
        return call()
    except Exception:
        return None
