"""What models of the SM90 kernels share: operand layouts of wgmma, TMA's boxes, barriers and cursors.

Layouts are restated from the PTX ISA, independently of what writes them. Memory is a tensor of bf16 by address / 2;
addresses are bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch

TILE = 64 * 128  # bytes


def swizzled(row: int, chunk: int) -> int:
    """As the copies and the softmax place 16-byte chunks."""
    return row * 128 + ((chunk ^ (row & 7)) << 4)


def as_wgmma_reads(address: int) -> int:
    """The 128-byte swizzle of a descriptor: address bits 4 to 6 are XORed with bits 7 to 9."""
    return address ^ ((address >> 7 & 7) << 4)


def k_major(memory: torch.Tensor, start: int, rows: int) -> torch.Tensor:
    """[rows, 16]: eight-row groups 1024 bytes apart, rows 128 bytes apart within."""
    at = [[as_wgmma_reads(start + r // 8 * 1024 + r % 8 * 128 + 2 * k) // 2 for k in range(16)] for r in range(rows)]
    return memory[torch.tensor(at)]


def mn_major(memory: torch.Tensor, start: int, columns: int, leading: int = TILE) -> torch.Tensor:
    """[16, columns]: 64 columns further is `leading`, eight k further `stride`, a k within is 128 bytes."""
    stride = 1024
    at = [
        [
            as_wgmma_reads(start + n // 64 * leading + k // 8 * stride + k % 8 * 128 + n % 64 * 2) // 2
            for n in range(columns)
        ]
        for k in range(16)
    ]
    return memory[torch.tensor(at)]


def accumulator(lane: int, warp: int, j: int, h: int, i: int) -> tuple[int, int]:
    """Row and column of d[4 j + 2 h + i] of an m64 accumulator."""
    return 16 * warp + lane // 4 + 8 * h, 8 * j + 2 * (lane % 4) + i


def a_fragment(lane: int, warp: int, register: int, i: int) -> tuple[int, int]:
    """Row and k of half i of register 0..3 of an m64k16 operand in registers."""
    return 16 * warp + lane // 4 + 8 * (register % 2), 2 * (lane % 4) + 8 * (register // 2) + i


def box(memory: torch.Tensor, start: int, rows: torch.Tensor) -> None:
    """[rows, 64] by TMA: 128 bytes a row, swizzled by address."""
    for r in range(rows.shape[0]):
        for chunk in range(8):
            at = as_wgmma_reads(start + r * 128 + chunk * 16) // 2
            memory[at : at + 8] = rows[r, chunk * 8 : chunk * 8 + 8]


# ---- Protocol. Warps are generators that yield when they wait; a scheduler runs them in random order.


class Cursor:
    """Where a role stands in a ring. What the kernel tests is the parity of `full` or `empty`: Barrier.done() makes
    sure that a parity says as much as the round."""

    def __init__(self, slots: int) -> None:
        self.slots, self.use = slots, 0

    @property
    def slot(self) -> int:
        return self.use % self.slots

    @property
    def full(self) -> int:
        return self.use // self.slots

    @property
    def empty(self) -> int:
        return self.full - 1

    def advance(self, by: int = 1) -> None:
        self.use += by

    def after(self, by: int) -> Cursor:
        later = Cursor(self.slots)
        later.use = self.use + by
        return later


class Barrier:
    """An mbarrier: a phase ends with its last arrival. It can be asked for a phase only while that or the one before
    is the last to have ended: of others its parity says the wrong thing."""

    def __init__(self, arrivals: int) -> None:
        self.arrivals, self.left, self.phase = arrivals, arrivals, 0

    def arrive(self, count: int = 1) -> None:
        assert count <= self.left, "more arrivals than a phase has: someone is a round ahead"
        self.left -= count
        if self.left == 0:
            self.left, self.phase = self.arrivals, self.phase + 1

    def done(self, phase: int) -> bool:
        assert phase <= self.phase <= phase + 1, "the parity is that of another round"
        return self.phase == phase + 1


class ByteBarrier(Barrier):
    """One arrival, which says how many bytes the phase waits for; bytes may come before it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.bytes = 0

    def expect(self, count: int) -> None:
        assert self.left == 1, "the producer is a round ahead"
        self.left, self.bytes = 0, self.bytes + count
        self.end()

    def arrive(self, count: int = 1) -> None:
        assert count == 1
        self.expect(0)

    def land(self, count: int) -> None:
        self.bytes -= count
        self.end()

    def end(self) -> None:
        if self.left == 0 and self.bytes == 0:
            self.left, self.phase = 1, self.phase + 1


Warp = Iterator[Callable[[], bool]]


class Machine:
    """Runs warps, and lands copies, in random order until all have ended. Some copies are late: they land only when
    nothing else can happen."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.flying: list[Callable[[], None]] = []
        self.late: list[Callable[[], None]] = []
        self.lateness = self.random.choice([0.0, 0.1, 0.5])

    def land(self) -> None:
        """The next copy: of those that are in flight one by chance, and of the late ones the newest."""
        if self.flying and self.random.random() < self.lateness:
            self.late.append(self.flying.pop(self.random.randrange(len(self.flying))))
        if self.flying:
            self.flying.pop(self.random.randrange(len(self.flying)))()

    def run(self, warps: dict[str, Warp]) -> None:
        waiting: dict[str, tuple[Warp, Callable[[], bool]]] = {n: (warp, lambda: True) for n, warp in warps.items()}
        while waiting:
            ready = [name for name, (_, condition) in waiting.items() if condition()]
            assert ready or self.flying or self.late, f"deadlock: {sorted(waiting)} wait"
            if self.flying and (not ready or self.random.random() < 0.3):
                self.land()
                continue
            if not ready:
                self.late.pop()()
                continue
            name = self.random.choice(ready)
            warp = waiting[name][0]
            try:
                waiting[name] = (warp, next(warp))
            except StopIteration:
                del waiting[name]
        assert not self.flying and not self.late
