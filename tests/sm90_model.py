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
    def __init__(self, slots: int) -> None:
        self.slots, self.use = slots, 0

    @property
    def slot(self) -> int:
        return self.use if self.use < self.slots else self.use - self.slots

    @property
    def full(self) -> int:
        return 0 if self.use < self.slots else 1

    @property
    def empty(self) -> int:
        return 1 - self.full

    def advance(self, by: int = 1) -> None:
        self.use += by
        if self.use >= 2 * self.slots:
            self.use -= 2 * self.slots

    def after(self, by: int) -> Cursor:
        later = Cursor(self.slots)
        later.use = self.use
        later.advance(by)
        return later


class Barrier:
    """An mbarrier: a phase ends with its last arrival; a parity is done when the phase before the current has it."""

    def __init__(self, arrivals: int) -> None:
        self.arrivals, self.left, self.phase = arrivals, arrivals, 0

    def arrive(self, count: int = 1) -> None:
        assert count <= self.left, "more arrivals than a phase has: someone is a round ahead"
        self.left -= count
        if self.left == 0:
            self.left, self.phase = self.arrivals, self.phase + 1

    def done(self, parity: int) -> bool:
        return (self.phase - 1) % 2 == parity


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


class NamedBarrier:
    """bar.sync and bar.arrive, counted in warps."""

    def __init__(self, warps: int) -> None:
        self.warps, self.arrived, self.ended = warps, 0, 0

    def arrive(self) -> int:
        """The number of the phase this arrival is of."""
        phase = self.ended
        self.arrived += 1
        if self.arrived == self.warps:
            self.arrived, self.ended = 0, phase + 1
        return phase


Warp = Iterator[Callable[[], bool]]


class Machine:
    """Runs warps, and lands copies, in random order until all have ended."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.flying: list[Callable[[], None]] = []

    def run(self, warps: dict[str, Warp]) -> None:
        waiting: dict[str, tuple[Warp, Callable[[], bool]]] = {n: (warp, lambda: True) for n, warp in warps.items()}
        while waiting:
            ready = [name for name, (_, condition) in waiting.items() if condition()]
            assert ready or self.flying, f"deadlock: {sorted(waiting)} wait"
            if self.flying and (not ready or self.random.random() < 0.3):
                self.flying.pop(self.random.randrange(len(self.flying)))()
                continue
            name = self.random.choice(ready)
            warp = waiting[name][0]
            try:
                waiting[name] = (warp, next(warp))
            except StopIteration:
                del waiting[name]
        assert not self.flying
