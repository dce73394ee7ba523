"""dense_fwd on SM90, modelled: layouts, masks, numbering of tiles and barrier protocols, without a GPU.

The models restate kernels/dense_fwd/narrow_sm90.cuh, sm90.cuh and sm90.cu in Python, one function for each of their
steps. What scores and values of 576x512 do beside this is modelled in test_sm90_model.py.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from sm90_model import (
    TILE,
    Barrier,
    ByteBarrier,
    Cursor,
    Machine,
    Warp,
    a_fragment,
    accumulator,
    box,
    k_major,
    mn_major,
    swizzled,
)

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
NARROW, WIDE = ((KERNELS / "dense_fwd" / name).read_text() for name in ("narrow_sm90.cuh", "sm90.cuh"))
LAUNCHER = (KERNELS / "dense_fwd" / "sm90.cu").read_text()
SHARED = (KERNELS / "wide_sm90.cuh").read_text()
STAGES = int(re.findall(r"kStages = (\d+)", NARROW)[0])
PLANS = [  # d_qk, keys of a block: those compiled, and what experiments choose
    *(tuple(map(int, plan)) for plan in re.findall(r"NarrowPlan<(\d+), (\d+)>", LAUNCHER)),
    (128, 128),
]
RING = int(re.findall(r"kRing = kHasRope \? (\d+)", SHARED)[0])
REGISTER_QUARTERS = int(re.findall(r"kRegisterQuarters = (\d+)", SHARED)[0])
LANDED = int(re.findall(r"kLandedQuarter = (\d+)", SHARED)[0])
MESSAGES = int(re.findall(r"kMessages = (\d+)", SHARED)[0])
SLOTS = int(re.findall(r"kSlots = (\d+)", SHARED)[0])
M, SIDE = 128, 64
SLACK = 8.0


def test_the_plans_were_found() -> None:
    assert len(PLANS) >= 3 and {plan[0] for plan in PLANS} == {192, 128}


def test_shared_memory_is_what_the_headers_say() -> None:
    stated = [int(number) for number in re.findall(r"//   sum +\| (\d+) +\| (\d+)", NARROW)[0]]
    for (d_qk, n), sum_stated in zip(PLANS, stated, strict=False):
        tiles = M * d_qk * 2 + STAGES * n * (d_qk + 128) * 2
        barriers = 2 + 4 * STAGES + 4 + 1
        assert tiles + 64 + barriers * 8 == sum_stated <= 227 * 1024
    wide = RING * 2 * TILE + 3 * TILE + TILE + 2 * TILE + SLOTS * (256 + 16) + 32 + (MESSAGES + SLOTS + 1) * 16
    wide += (2 * RING + 2 + 2 * MESSAGES + 2 + 2 * SLOTS + 1) * 8
    assert wide == int(re.findall(r"a barrier: (\d+) in all", WIDE)[0]) <= 227 * 1024


# ---- Layouts.


def test_tma_writes_what_threads_would() -> None:
    rows = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64)
    memory = torch.full((TILE,), -1.0)
    box(memory, TILE, rows)
    for r in range(64):
        for chunk in range(8):
            at = (TILE + swizzled(r, chunk)) // 2
            assert torch.equal(memory[at : at + 8], rows[r, 8 * chunk : 8 * chunk + 8])


@pytest.mark.parametrize("n", sorted({plan[1] for plan in PLANS}))
def test_boxes_lie_where_descriptors_look(n: int) -> None:
    column_bytes = n * 128
    keys = torch.arange(n * 192, dtype=torch.float32).reshape(n, 192)
    memory = torch.full((3 * column_bytes // 2,), -1.0)
    for column in range(3):
        box(memory, column * column_bytes, keys[:, 64 * column : 64 * column + 64])
    for step in range(12):  # K: start_scores()
        offset = step // 4 * column_bytes + step % 4 * 32
        assert torch.equal(k_major(memory, offset, n), keys[:, 16 * step : 16 * step + 16])
    for step in range(n // 16):  # V: start_values()
        values = mn_major(memory, step * 16 * 128, 128, leading=column_bytes)
        assert torch.equal(values, keys[16 * step : 16 * step + 16, :128])


@pytest.mark.parametrize("n", sorted({plan[1] for plan in PLANS}))
def test_p_is_an_operand_as_it_was_an_accumulator(n: int) -> None:
    """pack(): word i of step is scores step * 8 + i * 2 and the next."""
    for warp in range(4):
        for lane in range(32):
            for step in range(n // 16):
                for word in range(4):
                    for half in range(2):
                        at = step * 8 + word * 2 + half
                        row, column = accumulator(lane, warp, at // 4, at // 2 % 2, at % 2)
                        assert (row, column - 16 * step) == a_fragment(lane, warp, word, half)


# ---- Masks.


def keys_seen(query: int, s_q: int, s_kv: int, causal: bool) -> int:
    """By definition."""
    return max(min(s_kv, query + s_kv - s_q + 1), 0) if causal else s_kv


def blocks_of(start: int, rows: int, s_q: int, s_kv: int, causal: bool, n: int) -> int:
    """SequenceTile::blocks."""
    last = min(s_kv, s_kv - s_q + start + rows) if causal else s_kv
    return (max(last, 0) + n - 1) // n


SHAPES = [(1, 1), (5, 70), (130, 257), (300, 300), (300, 100), (100, 300), (129, 64), (64, 0), (257, 1)]


@pytest.mark.parametrize("n", [128, 176])
@pytest.mark.parametrize("causal", [False, True])
def test_narrow_masks_hide_what_a_query_does_not_see(n: int, causal: bool) -> None:
    for s_q, s_kv in SHAPES:
        for start in range(0, s_q, M):
            rows = min(M, s_q - start)
            seen = s_kv - s_q + start + 1 if causal else s_kv  # NarrowWork::seen
            visible = Counter[int]()
            for block in range(blocks_of(start, rows, s_q, s_kv, causal, n)):
                for side in range(2):
                    partial = (block + 1) * n > min(seen + side * 64, s_kv)
                    for row in range(side * 64, side * 64 + 64):
                        for lane in range(4):
                            limit = min(seen + row if causal else s_kv, s_kv) - block * n - lane * 2
                            for j in range(n // 8):
                                for i in range(2):
                                    visible[row] += not (partial and j * 8 + i >= limit)
            assert all(visible[r] == keys_seen(start + r, s_q, s_kv, causal) for r in range(rows)), (s_q, s_kv, start)


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("group", [1, 3, 16, 48, 64, 128])
def test_wide_masks_hide_what_a_query_does_not_see(group: int, causal: bool, cluster: int) -> None:
    launch = WideTiles(group, 1, cluster)
    for s_q, s_kv in SHAPES:
        for start in range(0, s_q, launch.unit_queries):
            rows = min(launch.unit_queries, s_q - start)
            blocks = blocks_of(start, rows, s_q, s_kv, causal, 64)
            for rank in range(cluster):
                further = rank * launch.rank_queries
                unseen = s_q - start - further - 1 if causal else 0
                for row in range(0, 64, 7):
                    query = launch.query_of(row)
                    if further + query >= rows:
                        continue
                    visible = 0
                    for block in range(blocks):
                        keys = s_kv - block * 64
                        seen = keys - unseen
                        limit = 64 if min(seen, keys) >= 64 else min(seen + (query if causal else 0), keys)
                        visible += max(min(limit, 64), 0)
                    assert visible == keys_seen(start + further + query, s_q, s_kv, causal)


# ---- Numbers of tiles.


def find_tile(lengths: list[int], tile: int, rows: int, causal: bool) -> tuple[int, int, int]:
    """Sequence, first query and number of queries; 0 queries where there is no such tile."""
    before = 0
    for sequence, length in enumerate(lengths):
        tiles = (length + rows - 1) // rows
        if tile < before + tiles:
            index = tile - before
            start = (tiles - 1 - index if causal else index) * rows
            return sequence, start, min(rows, length - start)
        before += tiles
    return 0, 0, 0


LENGTHS = [[1], [128], [129, 0, 64, 1], [0, 0, 3], [1] * 40, [1000, 20]]


def most_tiles(lengths: list[int], rows: int) -> int:
    """The host's bound."""
    sequences = min(len(lengths), sum(lengths))
    return (sum(lengths) - sequences) // rows + sequences


@pytest.mark.parametrize("rows", [1, 2, 10, 64, 128])
def test_the_host_counts_no_fewer_tiles_than_there_are(rows: int) -> None:
    for lengths in [*LENGTHS, [127, 128], [255, 0, 2], [1, 130, 259]]:
        assert sum((length + rows - 1) // rows for length in lengths) <= most_tiles(lengths, rows)
    for length in (1, 127, 128, 4096):  # of one sequence: exactly as many
        assert most_tiles([length], rows) == (length + rows - 1) // rows


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("h_q", "heads_at_once"), [(1, 1), (8, 3), (8, 8), (5, 2), (128, 16)])
def test_narrow_tiles_are_all_queries_of_all_heads_once(h_q: int, heads_at_once: int, causal: bool) -> None:
    for lengths in LENGTHS:
        tiles = sum((length + M - 1) // M for length in lengths)
        got = Counter[Any]()
        for number in range(tiles * h_q):
            group, rest = divmod(number, heads_at_once * tiles)
            first = group * heads_at_once
            heads = min(heads_at_once, h_q - first)
            head = first + rest % heads
            sequence, start, rows = find_tile(lengths, rest // heads, M, causal)
            assert rows > 0
            got.update((head, sequence, start + r) for r in range(rows))
        assert got == Counter((h, s, q) for h in range(h_q) for s, n in enumerate(lengths) for q in range(n))


def test_tiles_handed_out_by_a_counter_are_balanced() -> None:
    """Causal 4096 and 8192, 128 heads, 132 SMs: how far the last block of threads is behind the mean."""
    for s, heads in ((4096, 8), (8192, 4)):
        n = s // 128
        order = [n - t for _ in range(0, 128, heads) for t in range(n) for _ in range(heads)]
        counter, ends = iter(order), [0.0] * 132
        for blocks in counter:  # the next goes to who is free first
            first = min(range(132), key=ends.__getitem__)
            ends[first] += blocks + 0.7
        assert max(ends) * 132 / sum(ends) < 1.005


class WideTiles:
    """set_tiles() and DenseProducer::copy_tile."""

    def __init__(self, h_q: int, h_kv: int, cluster: int) -> None:
        self.group, self.h_kv, self.cluster = h_q // h_kv, h_kv, cluster
        self.tile_heads = min(self.group, 64)
        self.tile_queries = 64 // self.tile_heads
        self.reciprocal = 65536 // self.tile_heads + 1
        chunks = (self.group + 63) // 64
        by_heads = cluster == 2 and chunks % 2 == 0
        self.rank_heads = 64 if by_heads else 0
        self.rank_queries = self.tile_queries if cluster == 2 and not by_heads else 0
        self.chunks = chunks // 2 if by_heads else chunks
        self.chunk_heads = 128 if by_heads else 64
        self.unit_queries = self.tile_queries + self.rank_queries

    def query_of(self, row: int) -> int:
        return row * self.reciprocal >> 16

    def tiles_per_head(self, lengths: list[int]) -> int:
        return most_tiles(lengths, self.unit_queries)

    def tiles(self, lengths: list[int]) -> int:
        return self.tiles_per_head(lengths) * self.chunks * self.h_kv * self.cluster

    def unit_of(self, tile: int, lengths: list[int], grid: int) -> int:
        clusters, unit = grid // self.cluster, tile // self.cluster
        lap = unit // clusters
        back = lap % 2 == 1 and (lap + 1) * grid <= self.tiles(lengths)
        return (2 * lap + 1) * clusters - 1 - unit if back else unit

    def rows(self, tile: int, lengths: list[int], causal: bool, grid: int) -> list[tuple[int, int, int]]:
        """Head, sequence and query of the rows that are stored."""
        unit, rank = self.unit_of(tile, lengths, grid), tile % self.cluster
        chunk = unit % self.chunks
        number = unit // self.chunks % self.tiles_per_head(lengths)
        kv_head = unit // self.chunks // self.tiles_per_head(lengths)
        sequence, start, found = find_tile(lengths, number, self.unit_queries, causal)
        first_head = chunk * self.chunk_heads + rank * self.rank_heads
        further = rank * self.rank_queries
        queries = min(max(found - further, 0), self.tile_queries)
        heads = min(self.tile_heads, self.group - first_head)
        stored = []
        for row in range(64):
            query = self.query_of(row)
            head = row - query * self.tile_heads
            if query < queries and head < heads:
                stored.append((kv_head * self.group + first_head + head, sequence, start + further + query))
        return stored


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize(
    ("h_q", "h_kv"), [(1, 1), (4, 4), (6, 2), (16, 1), (48, 1), (64, 1), (65, 1), (96, 1), (128, 1), (200, 2), (320, 1)]
)
def test_wide_tiles_are_all_queries_of_all_heads_once(h_q: int, h_kv: int, cluster: int, causal: bool) -> None:
    launch = WideTiles(h_q, h_kv, cluster)
    assert launch.tile_heads * launch.tile_queries <= 64
    for lengths in ([1], [129, 0, 64, 1], [0, 0, 3], [1] * 5):
        got, tiles = Counter[Any](), launch.tiles(lengths)
        for tile in range(tiles):
            got.update(launch.rows(tile, lengths, causal, min(tiles, 6)))
        assert got == Counter((h, s, q) for h in range(h_q) for s, n in enumerate(lengths) for q in range(n))


@pytest.mark.parametrize("s", [2048, 4096, 8192, 16384, 12288, 8448])
def test_causal_tiles_that_go_there_and_back_are_balanced(s: int) -> None:
    """MHA, 128 heads, 66 clusters: how far the last is behind the mean. In strides alone it was twice the mean at 4096,
    with one tile more a head than there are."""
    launch = WideTiles(128, 128, 2)
    ends = [0.0] * 66
    for unit in range(launch.tiles([s]) // 2):
        number = launch.unit_of(unit * 2, [s], 132) % launch.tiles_per_head([s])
        ends[unit % 66] += 2 * (launch.tiles_per_head([s]) - number) + 1.2  # blocks of 64 keys; results, queries
    assert max(ends) * 66 / sum(ends) < 1.04


def test_rows_divide_by_heads_as_the_reciprocal_says() -> None:
    for heads in range(1, 65):
        assert all(row * (65536 // heads + 1) >> 16 == row // heads for row in range(64))


# ---- A tile, computed through the layouts.


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_narrow_tile_computed_through_the_layouts(plan: tuple[int, int], causal: bool) -> None:
    """Keys of another sequence follow with NaN for values; blocks from the last to the first; the lazy rescale."""
    d_qk, n = plan
    torch.manual_seed(0)
    s_q, s_kv, start, rows = 200, 300, 128, 72
    column_bytes, k_bytes, v_bytes = n * 128, d_qk // 64 * n * 128, 2 * n * 128
    queries = torch.randn(s_q, d_qk)
    keys = torch.randn(s_kv + n, d_qk) * torch.linspace(3.0, 0.3, s_kv + n)[:, None]
    values = torch.randn(s_kv + n, 128)
    keys[s_kv:], values[s_kv:] = float("nan"), float("nan")
    scale_log2 = 1.4426950408889634 / 12
    q_at, k_at = 0, M * d_qk * 2
    v_at = k_at + STAGES * k_bytes
    memory = torch.full(((v_at + STAGES * v_bytes) // 2,), float("nan"))
    padded = torch.cat([queries, torch.zeros(M, d_qk)])
    for piece in range(2 * d_qk // 64):
        side, column = divmod(piece, d_qk // 64)
        first = start + 64 * side
        box(memory, q_at + piece * TILE, padded[first : first + 64, 64 * column : 64 * column + 64])
    seen = s_kv - s_q + start + 1 if causal else s_kv
    blocks = blocks_of(start, rows, s_q, s_kv, causal, n)
    out, total = torch.zeros(2, 64, 128), torch.zeros(2, 64)
    reference = torch.full((2, 64), -torch.inf)
    for use, block in enumerate(range(blocks - 1, -1, -1)):
        k_slot, v_slot = k_at + use % STAGES * k_bytes, v_at + use % STAGES * v_bytes
        first, valid = block * n, min(s_kv - block * n, n)
        for column in range(d_qk // 64):
            box(memory, k_slot + column * column_bytes, keys[first : first + n, 64 * column : 64 * column + 64])
        for column in range(2):
            box(memory, v_slot + column * column_bytes, values[first : first + n, 64 * column : 64 * column + 64])
            cleared = (v_slot + column * column_bytes) // 2
            memory[cleared + valid * 64 : cleared + n * 64] = 0.0
        for side in range(2):
            score = torch.zeros(64, n)
            for step in range(d_qk // 16):
                a = k_major(memory, q_at + (side * d_qk // 64 + step // 4) * TILE + step % 4 * 32, 64)
                score += a @ k_major(memory, k_slot + step // 4 * column_bytes + step % 4 * 32, n).T
            row = torch.arange(64) + 64 * side
            limit = (seen + row).clamp(max=s_kv) if causal else torch.full((64,), s_kv)
            score = score.masked_fill(torch.arange(n)[None] >= limit[:, None] - first, -torch.inf) * scale_log2
            highest = score.amax(1)
            moves = highest > reference[side] + SLACK
            moved = torch.where(moves, highest, reference[side])
            factor = torch.where(moves & reference[side].isfinite(), torch.exp2(reference[side] - moved), 1.0)
            shift = torch.where(moved == -torch.inf, 0.0, moved)
            p = torch.exp2(score - shift[:, None])
            reference[side] = moved
            total[side] = total[side] * factor + p.sum(1)
            out[side] *= factor[:, None]
            for step in range(n // 16):
                v = mn_major(memory, v_slot + step * 16 * 128, 128, leading=column_bytes)
                out[side] += p[:, 16 * step : 16 * step + 16] @ v
    scores = queries[start:] @ keys[:s_kv].T * scale_log2 * 0.6931471805599453
    if causal:
        scores = scores.masked_fill(
            torch.arange(s_kv)[None] > torch.arange(start, s_q)[:, None] + s_kv - s_q, -torch.inf
        )
    got = (out / total[..., None]).reshape(M, 128)[:rows]
    assert torch.allclose(got, torch.softmax(scores, 1) @ values[:s_kv], atol=1e-4)


# ---- Protocol of the narrow kernel.


class NarrowSimulation(Machine):
    """A block of threads: tiles are (blocks, whether the last is cut short); slots are checked by tags."""

    def __init__(self, tiles: list[tuple[int, bool]], seed: int, stages: int, free: int = 8) -> None:
        super().__init__(seed)
        self.tiles, self.stages = tiles, stages
        self.q_full, self.q_empty, self.tail = ByteBarrier(), Barrier(8), ByteBarrier()
        self.full = {name: [ByteBarrier() for _ in range(stages)] for name in "kv"}
        self.empty = {name: [Barrier(free) for _ in range(stages)] for name in "kv"}
        self.work_full, self.work_empty = [ByteBarrier() for _ in range(2)], [Barrier(8) for _ in range(2)]
        self.slots: dict[str, list[Any]] = {"k": [None] * stages, "v": [None] * stages, "q": [None]}
        self.work: list[Any] = [None, None]

    def start(self) -> None:
        consumers = {f"consumer {side} {w}": self.consumer(side) for side in range(2) for w in range(4)}
        self.run({"producer": self.producer(), **consumers})

    def fill(self, name: str, slot: int, barrier: ByteBarrier, pieces: int, tag: Any) -> None:
        barrier.expect(pieces)
        self.slots[name][slot] = [None] * pieces

        def land(piece: int) -> None:
            self.slots[name][slot][piece] = tag
            barrier.land(1)

        self.flying += [lambda p=piece: land(p) for piece in range(pieces)]  # type: ignore[misc]

    def producer(self) -> Warp:
        at = {"k": Cursor(self.stages), "v": Cursor(self.stages), "work": Cursor(2), "q": Cursor(1), "tail": Cursor(1)}

        def copy(name: str, pieces: int, tag: Any, cut: bool = False) -> Warp:
            slot, parity = at[name].slot, at[name].empty
            yield lambda: self.empty[name][slot].done(parity)
            full = self.full[name][slot]
            self.fill(name, slot, self.tail if cut else full, pieces, tag)
            if cut:
                landed = at["tail"].full
                yield lambda: self.tail.done(landed)
                at["tail"].advance()
                assert self.slots[name][slot] == [tag] * pieces
                full.arrive()
            at[name].advance()

        def send(work: Any) -> Warp:
            slot, parity = at["work"].slot, at["work"].empty
            yield lambda: self.work_empty[slot].done(parity)
            self.work[slot] = work
            self.work_full[slot].arrive()
            at["work"].advance()

        for tile, (blocks, cut) in enumerate(self.tiles):
            yield from send((tile, blocks))
            if blocks == 0:
                continue
            yield from copy("k", 3, (tile, blocks - 1))
            parity = at["q"].empty
            yield lambda p=parity: self.q_empty.done(p)
            self.fill("q", 0, self.q_full, 6, tile)
            at["q"].advance()
            for block in range(blocks - 1, -1, -1):
                if block > 0:
                    yield from copy("k", 3, (tile, block - 1))
                yield from copy("v", 2, (tile, block), cut and block == blocks - 1)
        yield from send("end")

    def consumer(self, side: int) -> Warp:
        at = {"k": Cursor(self.stages), "v": Cursor(self.stages), "work": Cursor(2), "q": Cursor(1)}

        def wait(name: str) -> Warp:
            slot, parity = at[name].slot, at[name].full
            yield lambda: self.full[name][slot].done(parity)

        def check(name: str, pieces: int, tag: Any) -> None:
            assert self.slots[name][at[name].slot] == [tag] * pieces

        def done(name: str, pieces: int, tag: Any) -> None:
            check(name, pieces, tag)
            self.empty[name][at[name].slot].arrive()
            at[name].advance()

        while True:
            slot, parity = at["work"].slot, at["work"].full
            yield lambda s=slot, p=parity: self.work_full[s].done(p)
            work = self.work[slot]
            self.work_empty[slot].arrive()
            at["work"].advance()
            if work == "end":
                break
            tile, blocks = work
            if blocks == 0:
                continue
            parity = at["q"].full
            yield lambda p=parity: self.q_full.done(p)
            at["q"].advance()
            yield from wait("k")
            for block in range(blocks - 1, -1, -1):
                first = block == blocks - 1
                check("k", 3, (tile, block))
                if not first:
                    yield from wait("v")
                    check("v", 2, (tile, block + 1))
                yield lambda: True  # S is there
                assert self.slots["q"][0] == [tile] * 6
                done("k", 3, (tile, block))
                if block == 0:
                    self.q_empty.arrive()
                if block > 0:
                    yield from wait("k")
                yield lambda: True  # softmax; O is there
                if not first:
                    done("v", 2, (tile, block + 1))
            yield from wait("v")
            yield lambda: True
            done("v", 2, (tile, 0))


TILES = [
    *([(blocks, False)] for blocks in range(6)),
    [(3, True), (0, False), (1, True), (2, True), (0, False), (5, False)],
    [(1, True)] * 7,
    [(2, False), (1, False)] * 4,
]


@pytest.mark.parametrize("stages", [2, 3])
def test_narrow_barriers_never_deadlock_nor_let_a_slot_be_overwritten(stages: int) -> None:
    for tiles in TILES:
        for seed in range(8):
            NarrowSimulation(tiles, seed, stages).start()


def test_the_narrow_simulation_sees_a_slot_freed_too_early() -> None:
    with pytest.raises(AssertionError):
        for seed in range(20):
            NarrowSimulation([(9, False)], seed, 2, free=7).start()


# ---- Protocol of the wide kernel: a cluster whose blocks copy for each other.


class WideSimulation(Machine):
    """Blocks of threads side by side; tiles are (blocks of keys, whether the last is cut short)."""

    def __init__(
        self,
        tiles: list[tuple[int, bool]],
        seed: int,
        cluster: int,
        separate: bool,
        ring: int = RING,
        free: int = 4,
        hold: float = 0.7,
        plant: str = "",
    ) -> None:
        super().__init__(seed)
        self.hold, self.plant = hold, plant
        self.tiles, self.cluster, self.separate, self.ring = tiles, cluster, separate, ring
        self.each = [WideBlock(self, rank, free) for rank in range(cluster)]

    def value_quarter(self, place: int) -> int:
        return place if self.plant == "values in order" else place ^ place >> 1

    def start(self) -> None:
        self.run({f"{rank} {name}": warp for rank, block in enumerate(self.each) for name, warp in block.warps()})


class WideBlock:
    def __init__(self, simulation: WideSimulation, rank: int, free: int) -> None:
        self.all, self.rank, ring, cluster = simulation, rank, simulation.ring, simulation.cluster
        self.ring_full = [ByteBarrier() for _ in range(ring)]
        self.ring_empty = [Barrier(free * cluster) for _ in range(ring)]
        self.rope_full, self.rope_empty = ByteBarrier(), Barrier(4 * cluster)
        self.q_full, self.q_empty, self.tail = ByteBarrier(), Barrier(4), ByteBarrier()
        self.message_full = [ByteBarrier() for _ in range(MESSAGES)]
        self.message_empty = [Barrier(4) for _ in range(MESSAGES)]
        self.p_full, self.p_empty = ([Barrier(n) for _ in range(SLOTS)] for n in (4, 8))
        self.slots: list[list[Any]] = [[None, None] for _ in range(ring)]
        self.rope: Any = None
        self.last_queries: Any = None
        self.messages: list[Any] = [None] * MESSAGES
        self.p: list[list[Any]] = [[None] * 4 for _ in range(2)]
        self.kinds: list[list[Any]] = [[None] * 4 for _ in range(SLOTS)]
        self.places: list[Any] = [None] * SLOTS

    def warps(self) -> list[tuple[str, Warp]]:
        return [
            ("producer", self.producer()),
            *((f"scores {w}", self.scores(w)) for w in range(4)),
            *((f"{('left', 'right')[side]} {w}", self.values(side)) for side in range(2) for w in range(4)),
        ]

    def release(self, name: str, slot: int | None = None) -> None:
        for block in self.all.each:
            barrier = getattr(block, name)
            (barrier if slot is None else barrier[slot]).arrive()

    def producer(self) -> Warp:
        ring, rope, q, message, tail = Cursor(self.all.ring), Cursor(1), Cursor(1), Cursor(MESSAGES), Cursor(1)
        cluster = self.all.cluster

        def send(what: Any) -> Warp:
            slot, parity = message.slot, message.empty
            yield lambda: self.message_empty[slot].done(parity)
            self.messages[slot] = what
            self.message_full[slot].arrive()
            message.advance()

        def piece(block: WideBlock, slot: int, half: int, barrier: ByteBarrier, tag: Any) -> None:
            def land() -> None:
                block.slots[slot][half] = tag
                barrier.land(1)

            self.all.flying.append(land)

        def quarter(tag: Any, shared: bool, cut: bool = False) -> Warp:
            slot, parity = ring.slot, ring.empty
            yield lambda: self.ring_empty[slot].done(parity)
            full = self.ring_full[slot]
            landed = self.tail if cut else full
            landed.expect(2)
            if cluster == 1 or cut or not shared:
                for half in range(2):
                    piece(self, slot, half, landed, tag)
            else:
                for block in self.all.each:
                    piece(block, slot, self.rank, block.ring_full[slot], tag)
            if cut:
                parity = tail.full
                yield lambda: self.tail.done(parity)
                tail.advance()
                assert self.slots[slot] == [tag] * 2
                full.arrive()
            ring.advance()

        for tile, (blocks, cut_short) in enumerate(self.all.tiles):
            for block in range(blocks):
                cut = cut_short and block == blocks - 1
                yield from send((tile, block))
                if block == 0:
                    for number in range(REGISTER_QUARTERS):
                        yield from quarter((tile, "queries", self.rank, number), False)
                for number in range(4):
                    yield from quarter((tile, block, "k", number), True, cut and not self.all.separate)
                parity = rope.empty
                yield lambda p=parity: self.rope_empty.done(p)
                self.rope_full.expect(1)
                if cluster == 1 or rope.full % 2 == self.rank:
                    for other in self.all.each:

                        def land(other: WideBlock = other, tag: Any = (tile, block)) -> None:
                            other.rope = tag
                            other.rope_full.land(1)

                        self.all.flying.append(land)
                rope.advance()
                if self.all.separate and block > 0:
                    for place in range(4):
                        yield from quarter((tile, block - 1, "v", self.all.value_quarter(place)), True)
                if block == 0:
                    parity = q.empty
                    yield lambda p=parity: self.q_empty.done(p)
                    self.q_full.expect(1)

                    def land_queries(tag: int = tile) -> None:
                        self.last_queries = tag
                        self.q_full.land(1)

                    self.all.flying.append(land_queries)
                    q.advance()
                if self.all.separate and block == blocks - 1:
                    for place in range(4):
                        yield from quarter((tile, block, "v", self.all.value_quarter(place)), True, cut)
            yield from send(("end", tile))

    def scores(self, warp: int) -> Warp:
        ring, rope, q, message, p = Cursor(self.all.ring), Cursor(1), Cursor(1), Cursor(MESSAGES), Cursor(SLOTS)
        place: Any = None  # of the tile that has ended last

        def sent() -> Warp:
            slot, parity = message.slot, message.full
            yield lambda: self.message_full[slot].done(parity)

        def message_read() -> None:
            self.message_empty[message.slot].arrive()
            message.advance()

        def hand_over() -> None:
            self.p_full[p.after(-1).slot].arrive()

        def finish(tile: int) -> Warp:
            slot, parity = p.slot, p.empty
            yield lambda: self.p_empty[slot].done(parity)
            assert place == ("end", tile)
            self.kinds[slot][warp] = (tile, "end")
            if warp == 0:
                self.places[slot] = place
            p.advance()
            hand_over()

        for tile, (blocks, _) in enumerate(self.all.tiles):
            held = landed = False
            yield from sent()
            for block in range(blocks):
                assert self.messages[message.slot] == (tile, block)
                if block == 0:
                    for number in range(REGISTER_QUARTERS):
                        slot, parity = ring.slot, ring.full
                        yield lambda s=slot, x=parity: self.ring_full[s].done(x)
                        assert self.slots[slot] == [(tile, "queries", self.rank, number)] * 2
                        self.release("ring_empty", slot)
                        ring.advance()
                    if self.all.separate and self.all.plant != "unseen values":
                        before = p.after(-2)
                        yield lambda s=before.slot, x=before.full: self.p_empty[s].done(x)
                slots = []
                for number in range(4):
                    if block == 0 and number == REGISTER_QUARTERS:
                        parity = q.full
                        yield lambda x=parity: self.q_full.done(x)
                        q.advance()
                    slot, parity = ring.slot, ring.full
                    if number > LANDED or not (held and landed):
                        yield lambda s=slot, x=parity: self.ring_full[s].done(x)
                    slots.append(slot)
                    ring.advance()
                parity = rope.full
                yield lambda x=parity: self.rope_full.done(x)
                rope.advance()
                coming = message.after(1)
                ahead = self.message_full[coming.slot].done(coming.full) and self.all.random.random() < 0.9
                last = ahead and self.messages[coming.slot][0] == "end"
                if held:
                    hand_over()
                before = p.after(-2)
                yield lambda s=before.slot, x=before.full: self.p_empty[s].done(x)
                yield lambda: True  # S is there
                assert self.rope == (tile, block) and self.last_queries == tile
                for number, slot in enumerate(slots):
                    assert self.slots[slot] == [(tile, block, "k", number)] * 2
                self.release("rope_empty")
                if self.all.separate:
                    for slot in slots:
                        self.release("ring_empty", slot)
                    if block > 0:
                        ring.advance(4)
                if last:
                    self.q_empty.arrive()
                message_read()
                self.p[p.slot % 2][warp] = self.kinds[p.slot][warp] = (tile, block)
                next_quarters = [ring.after(quarter) for quarter in range(LANDED + 1)]
                landed = all([self.ring_full[at.slot].done(at.full) for at in next_quarters])
                p.advance()
                hold = self.all.hold
                held = ahead and not last and (hold == 1 or (landed and self.all.random.random() < hold))
                if not held:
                    hand_over()
                if not ahead:
                    yield from sent()
                    if self.messages[message.slot][0] == "end":
                        self.q_empty.arrive()
            assert self.messages[message.slot] == ("end", tile)
            place = self.messages[message.slot]
            message_read()
            if self.all.separate and blocks:
                ring.advance(4)
            yield from finish(tile)

    def values(self, side: int) -> Warp:
        ring, p = Cursor(self.all.ring), Cursor(SLOTS)
        for tile, (blocks, _) in enumerate(self.all.tiles):
            for block in [*range(blocks), "end"]:
                p_slot, parity = p.slot, p.full
                yield lambda s=p_slot, x=parity: self.p_full[s].done(x)
                assert self.kinds[p_slot] == [(tile, block)] * 4
                assert block == "end" or self.p[p_slot % 2] == self.kinds[p_slot]
                assert block != "end" or self.places[p_slot] == ("end", tile)
                if block == 0:
                    ring.advance(REGISTER_QUARTERS)
                if block != "end":
                    if self.all.separate:
                        ring.advance((4 if block == 0 else 0) + (4 if block != blocks - 1 else 0))
                    places = {
                        number: self.all.value_quarter(number) if self.all.separate else number
                        for number in (side, side + 2)
                    }
                    for place in places.values() if self.all.separate else ():
                        cursor = ring.after(place)
                        yield lambda s=cursor.slot, x=cursor.full: self.ring_full[s].done(x)
                    for number, place in places.items():
                        yield lambda: True  # PV
                        slot = ring.after(place).slot
                        name = "v" if self.all.separate else "k"
                        assert self.slots[slot] == [(tile, block, name, number)] * 2
                        self.release("ring_empty", slot)
                    ring.advance(4)
                    assert self.p[p_slot % 2] == self.kinds[p_slot]
                self.p_empty[p_slot].arrive()
                p.advance()


@pytest.mark.parametrize("hold", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("cluster", [1, 2])
def test_wide_barriers_never_deadlock_nor_let_a_slot_be_overwritten(cluster: int, separate: bool, hold: float) -> None:
    for tiles in [*TILES, [(13, True)], [(0, False)] * 6]:
        for seed in range(3):
            WideSimulation(tiles, seed, cluster, separate, hold=hold).start()


@pytest.mark.parametrize("separate", [False, True])
def test_the_wide_simulation_sees_faults(separate: bool) -> None:
    with pytest.raises(AssertionError):
        for seed in range(20):
            WideSimulation([(12, False)], seed, 2, separate, free=3).start()
    if not separate:
        with pytest.raises(AssertionError, match="deadlock"):
            for seed in range(20):
                WideSimulation([(8, False)], seed, 2, False, ring=7).start()


@pytest.mark.parametrize("plant", ["values in order", "unseen values"])
def test_the_wide_simulation_sees_a_wait_for_what_may_be_two_rounds_away(plant: str) -> None:
    with pytest.raises(AssertionError, match="parity"):
        for seed in range(60):
            WideSimulation([(5, False), (4, False), (3, False)], seed, 2, True, plant=plant).start()


def test_values_of_their_own_are_where_the_sides_look() -> None:
    """copy_block() and Values::multiply(): columns by place in the ring, and the place of half a side."""

    def first_column(quarter: int) -> int:
        return quarter % 2 * 256 + quarter // 2 * 128

    def value_quarter(place: int) -> int:
        return place ^ place >> 1

    columns = [first_column(value_quarter(place)) for place in range(4)]
    for side in range(2):
        for half in range(2):
            assert columns[value_quarter(side + 2 * half)] == side * 256 + half * 128
    assert RING == 11 and columns[0] < 256 and columns[3] < 256  # where the first of the block before was


def test_random_sequences_of_tiles() -> None:
    for seed in range(12):
        chance = random.Random(seed)
        tiles = [(chance.randrange(6), chance.random() < 0.5) for _ in range(5)]
        NarrowSimulation(tiles, seed, chance.choice([2, 3])).start()
        WideSimulation(tiles, seed, chance.choice([1, 2]), chance.random() < 0.5).start()
