"""The SM90 kernel's layouts and barrier protocol, modelled: what can be checked without a GPU.

The models restate kernels/sparse_fwd/sm90.cuh and kernels/wide_sm90.cuh in Python, one function for each of their
steps; ring sizes and the like come from the headers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sm90_model import TILE, Barrier, Cursor, Warp, a_fragment, accumulator, k_major, mn_major, swizzled

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
HEADER = (KERNELS / "wide_sm90.cuh").read_text()


def constant(pattern: str) -> list[int]:
    found = re.search(pattern, HEADER)
    assert found, pattern
    return [int(group) for group in found.groups()]


RINGS = dict(zip((576, 512), constant(r"kRing = kHasRope \? (\d+) : (\d+);"), strict=True))
(REGISTER_QUARTERS,) = constant(r"kRegisterQuarters = (\d+);")
(MESSAGES,) = constant(r"kMessages = (\d+);")
(SLOTS,) = constant(r"kSlots = (\d+);")
(LANDED,) = constant(r"kLandedQuarter = (\d+);")
SLACK = 8.0
M = N = 64


def first_column(quarter: int) -> int:
    return quarter % 2 * 256 + quarter // 2 * 128


# ---- Layouts.


def gather(memory: torch.Tensor, tile: int, rows: torch.Tensor) -> None:
    """[64, 64] by threads: each copies one chunk of four rows."""
    for thread in range(128):
        row, chunk = thread // 8, thread % 8
        for k in range(4):
            at = tile + swizzled(row, chunk) + k * 16 * 128
            memory[at // 2 : at // 2 + 8] = rows[row + 16 * k, chunk * 8 : chunk * 8 + 8]


def test_copies_lie_where_descriptors_look() -> None:
    keys = torch.arange(N * 128, dtype=torch.float32).reshape(N, 128)
    memory = torch.full((2 * TILE // 2,), -1.0)
    for tile in range(2):
        gather(memory, tile * TILE, keys[:, 64 * tile : 64 * tile + 64])
    for step in range(8):  # K of the scores
        offset = step // 4 * TILE + step % 4 * 32
        assert torch.equal(k_major(memory, offset, N), keys[:, 16 * step : 16 * step + 16])
    for step in range(4):  # V
        assert torch.equal(mn_major(memory, step * 16 * 128, 128), keys[16 * step : 16 * step + 16])


def matrix_rows(lane: int, warp: int) -> int:
    """matrices(): where in a tile this lane's row of four 8 x 8 matrices begins; a step of k16 further is XOR 32."""
    return swizzled(16 * warp + lane % 16, lane // 16)


def test_queries_in_registers_are_the_operand() -> None:
    queries = torch.arange(M * 128, dtype=torch.float32).reshape(M, 128)
    memory = torch.full((2 * TILE // 2,), -1.0)
    for tile in range(2):
        gather(memory, tile * TILE, queries[:, 64 * tile : 64 * tile + 64])
    for step in range(8):
        seen = torch.full((M, 16), -1.0)
        for warp in range(4):
            begins = [(step // 4 * TILE + matrix_rows(lane, warp)) ^ step % 4 * 32 for lane in range(32)]
            for lane in range(32):
                for matrix in range(4):  # ldmatrix: register i of a lane is row lane / 4 of matrix i
                    for i in range(2):
                        at = begins[8 * matrix + lane // 4] // 2 + lane % 4 * 2 + i
                        seen[a_fragment(lane, warp, matrix, i)] = memory[at]
        assert torch.equal(seen, queries[:, 16 * step : 16 * step + 16])


def write_p(memory: torch.Tensor, at: int, p: torch.Tensor) -> None:
    for warp in range(4):
        begins = [at + matrix_rows(lane, warp) for lane in range(32)]
        for j in range(0, 8, 2):
            for lane in range(32):
                for matrix in range(4):  # stmatrix, of words[matrix]
                    h, column = matrix % 2, j + matrix // 2
                    row = (begins[8 * matrix + lane // 4] ^ j * 16) // 2
                    for i in range(2):
                        memory[row + lane % 4 * 2 + i] = p[accumulator(lane, warp, column, h, i)]


def test_probabilities_lie_where_the_descriptor_looks() -> None:
    p = torch.arange(M * N, dtype=torch.float32).reshape(M, N)
    memory = torch.full((TILE // 2,), -1.0)
    write_p(memory, 0, p)
    for step in range(4):
        assert torch.equal(k_major(memory, step * 32, M), p[:, 16 * step : 16 * step + 16])


def transposed(words: list[list[Any]]) -> list[list[Any]]:
    """words[lane][i] after the exchanges of four lanes."""
    for low, high, distance in ((0, 1, 1), (2, 3, 1), (0, 2, 2), (1, 3, 2)):
        sent = [words[lane][low] if lane & distance else words[lane][high] for lane in range(4)]
        for lane in range(4):
            words[lane][low if lane & distance else high] = sent[lane ^ distance]
    return words


def test_lanes_store_whole_chunks() -> None:
    # Word i of lane l begins as columns 8 i + 2 l and the next; chunk c is columns 8 c to 8 c + 7.
    words = transposed([[8 * i + 2 * lane for i in range(4)] for lane in range(4)])
    assert words == [[8 * lane + 2 * i for i in range(4)] for lane in range(4)]


@pytest.mark.parametrize("d_qk", [576, 512])
def test_a_tile_computed_through_the_layouts(d_qk: int) -> None:
    """Two rounds of the ring: every tile by address, the lazy rescale, both halves of the output."""
    torch.manual_seed(0)
    ring, blocks = RINGS[d_qk], 7
    scale_log2 = 1.4426950408889634 / 8
    queries = torch.randn(M, d_qk)
    keys = torch.randn(blocks * N, d_qk) * torch.linspace(0.3, 3.0, blocks).repeat_interleave(N)[:, None]
    counts = torch.rand(M, blocks * N) < 0.8
    counts[:8, :N] = False  # rows that see nothing of the first block
    counts[8] = False  # or nothing at all
    memory = torch.full(((ring + 3) * 2 * TILE // 2,), float("nan"))
    q_at, rope_at, p_at = (ring * 2 * TILE + extra * TILE for extra in (0, 3, 4))
    gather(memory, q_at, queries[:, 384:448])
    gather(memory, q_at + TILE, queries[:, 448:512])
    if d_qk == 576:
        gather(memory, q_at + 2 * TILE, queries[:, 512:])
    out, total = torch.zeros(M, 512), torch.zeros(M)
    reference, limit = torch.zeros(M), torch.full((M,), -torch.inf)
    use = 0
    for block in range(blocks):
        rows = keys[block * N : block * N + N]
        slots = [(use + quarter) % ring for quarter in range(4)]
        score = torch.zeros(M, N)
        for quarter, slot in enumerate(slots):
            first = first_column(quarter)
            for tile in range(2):
                gather(memory, (2 * slot + tile) * TILE, rows[:, first + 64 * tile : first + 64 * tile + 64])
            for step in range(8):
                offset = step // 4 * TILE + step % 4 * 32
                in_registers = queries[:, first + 16 * step : first + 16 * step + 16]
                a = in_registers if quarter < REGISTER_QUARTERS else k_major(memory, q_at + offset, M)
                score += a @ k_major(memory, 2 * slot * TILE + offset, N).T
        if d_qk == 576:
            gather(memory, rope_at, rows[:, 512:])
            for step in range(4):
                score += k_major(memory, q_at + 2 * TILE + 32 * step, M) @ k_major(memory, rope_at + 32 * step, N).T
        score = score.masked_fill(~counts[:, block * N : block * N + N], -torch.inf)
        highest = score.amax(1)
        moves, seen = highest > limit, limit.isfinite()
        before = reference * scale_log2
        reference, limit = (
            torch.where(moves, highest, reference),
            torch.where(moves, highest + SLACK / scale_log2, limit),
        )
        factor = torch.where(moves & seen, torch.exp2(before - reference * scale_log2), torch.ones(M))
        p = torch.exp2((score - reference[:, None]) * scale_log2)
        assert p.max() <= 2.0**SLACK * (1 + 1e-5)
        total = total * factor + p.sum(1)
        write_p(memory, p_at, p)
        out *= factor[:, None]
        for side in range(2):
            for half in range(2):
                slot, column = slots[side + 2 * half], side * 256 + half * 128
                for step in range(4):
                    v = mn_major(memory, 2 * slot * TILE + step * 16 * 128, 128)
                    out[:, column : column + 128] += k_major(memory, p_at + step * 32, M) @ v
        use += 4
    scores = (queries @ keys.T * scale_log2).masked_fill(~counts, -torch.inf)
    expected = torch.softmax(scores * 0.6931471805599453, dim=1) @ keys[:, :512]
    assert total[8] == 0 and not out[8].any() and counts.any(1).sum() == M - 1
    some = counts.any(1)
    assert torch.allclose((out / total[:, None])[some], expected[some], atol=1e-4)
    assert torch.allclose(
        (reference * scale_log2 + total.log2())[some],
        (torch.logsumexp(scores * 0.6931471805599453, 1) / 0.6931471805599453)[some],
    )


# ---- Protocol. Warps are generators that yield when they wait; a scheduler runs them in random order.


class Simulation:
    """A block of threads with tiles of given numbers of blocks; what slots hold is checked by tags."""

    def __init__(self, d_qk: int, tiles: list[int], seed: int, ring: int | None = None, hold: float = 0.5) -> None:
        self.random, self.tiles, self.hold = random.Random(seed), tiles, hold
        self.ring, self.rope = ring or RINGS[d_qk], d_qk == 576
        self.ring_full, self.ring_empty = ([Barrier(n) for _ in range(self.ring)] for n in (128, 4))
        self.rope_full, self.rope_empty = Barrier(128), Barrier(4)
        self.message_full, self.message_empty = ([Barrier(n) for _ in range(MESSAGES)] for n in (4, 4))
        self.q_full, self.q_empty = Barrier(128), Barrier(4)
        self.p_full, self.p_empty = ([Barrier(n) for _ in range(SLOTS)] for n in (4, 8))
        self.keys: list[list[Any]] = [[None] * 4 for _ in range(self.ring)]  # by the producer warp that copied
        self.rope_keys: list[Any] = [None] * 4
        self.last_queries: list[Any] = [None] * 4
        self.messages: list[Any] = [None] * MESSAGES
        self.p: list[list[Any]] = [[None] * 4 for _ in range(2)]  # by the warp of scores that wrote
        self.kinds: list[list[Any]] = [[None] * 4 for _ in range(SLOTS)]  # and factors
        self.copies: list[list[Callable[[], None]]] = [[] for _ in range(4)]  # in flight, in order, by warp

    def run(self) -> None:
        warps: list[tuple[str, Warp]] = [
            *((f"producer {w}", self.producer(w)) for w in range(4)),
            *((f"scores {w}", self.scores(w)) for w in range(4)),
            *((f"{('left', 'right')[side]} {w}", self.values(side, w)) for side in range(2) for w in range(4)),
        ]
        waiting: dict[str, tuple[Warp, Callable[[], bool]]] = {name: (warp, lambda: True) for name, warp in warps}
        while waiting:
            ready = [name for name, (_, condition) in waiting.items() if condition()]
            flying = [w for w in range(4) if self.copies[w]]
            assert ready or flying, f"deadlock: {sorted(waiting)} wait"
            if flying and (not ready or self.random.random() < 0.3):
                self.copies[self.random.choice(flying)].pop(0)()
                continue
            name = self.random.choice(ready)
            warp = waiting[name][0]
            try:
                waiting[name] = (warp, next(warp))
            except StopIteration:
                del waiting[name]
        assert not any(self.copies)

    def pause(self) -> Callable[[], bool]:
        return lambda: True

    def producer(self, warp: int) -> Warp:
        ring, rope, q, message = Cursor(self.ring), Cursor(1), Cursor(1), Cursor(MESSAGES)

        def send(what: Any) -> Warp:
            slot = message.slot
            parity = message.empty
            yield lambda: self.message_empty[slot].done(parity)
            if warp == 0:
                self.messages[slot] = what
            self.message_full[slot].arrive()
            message.advance()

        def fill(pieces: list[Any], full: Barrier, tag: Any) -> None:
            pieces[warp] = "in flight"

            def land() -> None:
                pieces[warp] = tag
                full.arrive(32)

            self.copies[warp].append(land)

        for tile, blocks in enumerate(self.tiles):
            for block in range(blocks):
                yield from send((tile, block))
                queries = [(tile, "queries", quarter) for quarter in range(REGISTER_QUARTERS)] if block == 0 else []
                for tag in [*queries, *((tile, block, quarter) for quarter in range(4))]:
                    slot, parity = ring.slot, ring.empty
                    yield lambda s=slot, p=parity: self.ring_empty[s].done(p)
                    fill(self.keys[slot], self.ring_full[slot], tag)
                    ring.advance()
                if self.rope:
                    parity = rope.empty
                    yield lambda p=parity: self.rope_empty.done(p)
                    fill(self.rope_keys, self.rope_full, (tile, block))
                    rope.advance()
                if block == 0:
                    parity = q.empty
                    yield lambda p=parity: self.q_empty.done(p)
                    fill(self.last_queries, self.q_full, tile)
                    q.advance()
            yield from send("end")

    def scores(self, warp: int) -> Warp:
        ring, rope, q, message, p = Cursor(self.ring), Cursor(1), Cursor(1), Cursor(MESSAGES), Cursor(SLOTS)

        def hand_over() -> None:
            self.p_full[p.after(-1).slot].arrive()

        def sent() -> Callable[[], bool]:
            return lambda s=message.slot, q=message.full: self.message_full[s].done(q)

        def message_read() -> None:
            self.message_empty[message.slot].arrive()
            message.advance()

        def finish(tile: int) -> Warp:
            slot, parity = p.slot, p.empty
            yield lambda s=slot, q=parity: self.p_empty[s].done(q)
            self.kinds[slot][warp] = (tile, "end")
            p.advance()
            hand_over()

        for tile, blocks in enumerate(self.tiles):
            held = landed = False
            yield sent()
            for block in range(blocks):
                assert self.messages[message.slot] == (tile, block)
                if block == 0:
                    for quarter in range(REGISTER_QUARTERS):
                        at, parity = ring.slot, ring.full
                        yield lambda s=at, q=parity: self.ring_full[s].done(q)
                        assert self.keys[at] == [(tile, "queries", quarter)] * 4
                        self.ring_empty[at].arrive()
                        ring.advance()
                slots = []
                for quarter in range(4):
                    if block == 0 and quarter == REGISTER_QUARTERS:
                        parity = q.full
                        yield lambda q=parity: self.q_full.done(q)
                        q.advance()
                    at, parity = ring.slot, ring.full
                    if quarter > LANDED or not (held and landed):
                        yield lambda s=at, q=parity: self.ring_full[s].done(q)
                    assert self.keys[at] == [(tile, block, quarter)] * 4
                    slots.append(at)
                    ring.advance()
                if self.rope:
                    parity = rope.full
                    yield lambda q=parity: self.rope_full.done(q)
                    assert self.rope_keys == [(tile, block)] * 4
                    rope.advance()
                coming = message.after(1)
                ahead = self.message_full[coming.slot].done(coming.full) and self.random.random() < 0.9
                last = ahead and self.messages[coming.slot] == "end"
                if held:
                    hand_over()
                before = p.after(-2)
                yield lambda s=before.slot, q=before.full: self.p_empty[s].done(q)
                yield self.pause()  # the scores are being computed
                assert all(self.keys[at] == [(tile, block, quarter)] * 4 for quarter, at in enumerate(slots))
                assert self.last_queries == [tile] * 4
                if self.rope:
                    assert self.rope_keys == [(tile, block)] * 4
                    self.rope_empty.arrive()
                if last:
                    self.q_empty.arrive()
                assert self.messages[message.slot] == (tile, block)
                message_read()
                self.p[p.slot % 2][warp] = self.kinds[p.slot][warp] = (tile, block)
                next_quarters = [ring.after(quarter) for quarter in range(LANDED + 1)]
                landed = all([self.ring_full[at.slot].done(at.full) for at in next_quarters])
                p.advance()
                held = ahead and not last and (self.hold == 1 or (landed and self.random.random() < self.hold))
                if not held:
                    hand_over()
                if not ahead:
                    yield sent()
                    if self.messages[message.slot] == "end":
                        self.q_empty.arrive()
            assert self.messages[message.slot] == "end"
            message_read()
            yield from finish(tile)

    def values(self, side: int, warp: int) -> Warp:
        ring, p = Cursor(self.ring), Cursor(SLOTS)
        for tile, blocks in enumerate(self.tiles):
            for block in [*range(blocks), "end"]:
                slot, parity = p.slot, p.full
                yield lambda s=slot, q=parity: self.p_full[s].done(q)
                assert self.kinds[slot] == [(tile, block)] * 4
                if block == 0:
                    ring.advance(REGISTER_QUARTERS)
                if block != "end":
                    for quarter in (side, side + 2):
                        at = ring.after(quarter).slot
                        yield self.pause()  # PV is being computed
                        assert self.keys[at] == [(tile, block, quarter)] * 4
                        self.ring_empty[at].arrive()
                    assert self.p[slot % 2] == self.kinds[slot] == [(tile, block)] * 4
                    ring.advance(4)
                self.p_empty[slot].arrive()
                p.advance()


@pytest.mark.parametrize("d_qk", [576, 512])
@pytest.mark.parametrize("hold", [0.0, 0.5, 1.0])
def test_the_barriers_never_deadlock_nor_let_a_slot_be_overwritten(d_qk: int, hold: float) -> None:
    shapes = [[blocks] for blocks in range(14)] + [[32], [3, 0, 0, 0, 0, 0, 1, 2, 0, 5], [1] * 9, [2] * 9, [8, 7, 6, 5]]
    for tiles in shapes:
        for seed in range(6):
            Simulation(d_qk, tiles, seed, hold=hold).run()


def test_the_simulation_sees_a_ring_that_is_too_small() -> None:
    with pytest.raises(AssertionError, match="deadlock"):
        for seed in range(20):
            Simulation(576, [8], seed, ring=7, hold=1.0).run()


def test_the_simulation_sees_p_overwritten() -> None:
    with pytest.raises(AssertionError):
        for seed in range(5):
            broken = Simulation(576, [12], seed)
            broken.p_empty = [Barrier(4) for _ in broken.p_empty]  # left or right alone is taken for both
            broken.run()


def test_the_simulation_sees_a_slot_freed_too_early() -> None:
    broken = Simulation(576, [12], 0)
    broken.ring_empty = [Barrier(3) for _ in range(broken.ring)]  # three of four warps are taken for all
    with pytest.raises(AssertionError):
        broken.run()
