"""SM cycles beside seconds: what clock a GPU really ran at while a sample was taken.

A stamp is a kernel of one block per SM that writes the SM's cycle counter and the GPU's global timer, read one after
the other. Two stamps around a launch give cycles and time between them on one and the same SM, and so its mean clock.
NVML's clock is polled and cannot be tied to a launch of microseconds. The kernel is a few lines of PTX handed to the
driver, so that the instrument needs neither a compiler nor anything of the library it measures.
Source: PTX ISA, special registers %clock64, %globaltimer and %smid.
"""

from __future__ import annotations

import ctypes
from typing import Any

_PTX = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry stamp(.param .u64 to, .param .u32 sms)
{
    .reg .pred %ignored;
    .reg .u32 %sm, %limit;
    .reg .u64 %at, %offset, %cycles, %nanoseconds;
    ld.param.u64 %at, [to];
    ld.param.u32 %limit, [sms];
    mov.u32 %sm, %smid;
    setp.ge.u32 %ignored, %sm, %limit;
    @%ignored ret;
    cvta.to.global.u64 %at, %at;
    mul.wide.u32 %offset, %sm, 16;
    add.u64 %at, %at, %offset;
    mov.u64 %cycles, %clock64;
    mov.u64 %nanoseconds, %globaltimer;
    st.global.v2.u64 [%at], {%cycles, %nanoseconds};
    ret;
}
.visible .entry ticks(.param .u64 to, .param .u32 count)
{
    .reg .pred %again;
    .reg .u32 %left;
    .reg .u64 %at, %now, %last;
    ld.param.u64 %at, [to];
    ld.param.u32 %left, [count];
    cvta.to.global.u64 %at, %at;
    mov.u64 %last, %globaltimer;
wait:
    mov.u64 %now, %globaltimer;
    setp.eq.u64 %again, %now, %last;
    @%again bra wait;
    st.global.u64 [%at], %now;
    mov.u64 %last, %now;
    add.u64 %at, %at, 8;
    sub.u32 %left, %left, 1;
    setp.ne.u32 %again, %left, 0;
    @%again bra wait;
    ret;
}
\0"""

_SMS_MAX = 256  # slots of a stamp; SM numbers need not be dense
_CAPACITY = 4096  # stamps between two calls of `clear`: 16 MiB


class DriverError(RuntimeError):
    """The driver refused; the message holds its code."""


class Stamps:
    """Stamps on a device.

    Args:
        device: a CUDA device.
    Raises:
        DriverError, OSError: when the driver cannot load the kernel.
    """

    def __init__(self, device: Any) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._blocks = int(torch.cuda.get_device_properties(self._device).multi_processor_count)
        self._slots = torch.zeros(_CAPACITY, _SMS_MAX, 2, dtype=torch.int64, device=self._device)
        self._used = 0
        self._host: Any = None
        self._module = ctypes.c_void_p()
        with torch.cuda.device(self._device):
            self._do("cuModuleLoadData", ctypes.byref(self._module), _PTX)
        self._stamp = self._function(b"stamp")

    def clear(self) -> None:
        """Forgets all stamps; their numbers begin at 0 again."""
        self._slots[: self._used].zero_()
        self._used, self._host = 0, None

    def take(self) -> int | None:
        """Queues a stamp on the current stream.

        Returns:
            Its number, or None when there is no room for another.
        """
        if self._used == _CAPACITY:
            return None
        number, self._used = self._used, self._used + 1
        to = self._slots.data_ptr() + number * _SMS_MAX * 16
        self._launch(self._stamp, self._blocks, to, _SMS_MAX)
        return number

    def hertz(self, first: int | None, second: int | None) -> float | None:
        """Mean SM clock between two stamps, or None when one is missing. Waits for the device.

        Args:
            first, second: numbers of `take`.
        """
        if first is None or second is None:
            return None
        if self._host is None:
            self._host = self._slots[: self._used].cpu()
        start, end = self._host[first], self._host[second]
        both = ((start[:, 1] > 0) & (end[:, 1] > start[:, 1])).nonzero()
        if not len(both):
            return None
        cycles, nanoseconds = (end[both[:, 0]] - start[both[:, 0]]).sum(0).tolist()
        return float(cycles) / float(nanoseconds) * 1e9

    def timer_step(self, count: int = 64) -> float:
        """Seconds between two values of the global timer: how finely it counts.

        Args:
            count: of values to watch.
        """
        values = self._torch.zeros(count, dtype=self._torch.int64, device=self._device)
        self._launch(self._function(b"ticks"), 1, values.data_ptr(), count)
        steps = values.cpu().diff()
        return float(steps.min()) * 1e-9

    def _function(self, name: bytes) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self._do("cuModuleGetFunction", ctypes.byref(function), self._module, name)
        return function

    def _launch(self, function: ctypes.c_void_p, blocks: int, address: int, number: int) -> None:
        values = (ctypes.c_uint64(address), ctypes.c_uint32(number))
        pointers = (ctypes.c_void_p * 2)(*(ctypes.addressof(value) for value in values))
        stream = ctypes.c_void_p(self._torch.cuda.current_stream(self._device).cuda_stream)
        with self._torch.cuda.device(self._device):
            self._do("cuLaunchKernel", function, blocks, 1, 1, 1, 1, 1, 0, stream, pointers, None)

    def _do(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise DriverError(f"{name}: error {code} of the CUDA driver")
