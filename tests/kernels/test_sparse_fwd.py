"""sparse_fwd against its definition."""

from __future__ import annotations

import pytest
import torch
from numerics import INT_MAX, INT_MIN, SparseCall, assert_right, normal, sparse_call

import flash_dsa
from asv_bench.numerics import TOLERANCES
from flash_dsa import reference

# s_q, s_kv, h_q, topk, d_qk, features: each row was chosen for an edge of tiles, heads or indices.
SHAPES = [
    (4, 512, 128, 64, 576, ""),
    (5, 200, 64, 130, 512, "sink"),
    (3, 77, 96, 1, 576, "sink length"),
    (9, 500, 8, 192, 576, "sink length"),
    (3, 400, 16, 1152, 512, "length"),
    (2, 50, 1, 2176, 576, ""),
    (3, 1000, 130, 333, 576, "sink length"),
    (2, 100, 33, 70, 512, "sink"),
    (4, 999, 128, 200, 576, "sink length strided"),
    (2, 5, 3, 300, 512, "strided"),
    (1, 1, 1, 1, 576, ""),
    (1, 4096, 65, 2048, 576, "sink"),
]


@pytest.mark.parametrize(("s_q", "s_kv", "h_q", "topk", "d_qk", "features"), SHAPES)
def test_matches_the_reference(
    device: torch.device, s_q: int, s_kv: int, h_q: int, topk: int, d_qk: int, features: str
) -> None:
    sparse_call(device, s_q, s_kv, h_q, topk, d_qk, features=features).check()


@pytest.mark.parametrize("d_qk", [576, 512])
@pytest.mark.parametrize("features", ["", "sink", "length", "sink length strided"])
def test_every_feature_on_every_tile(device: torch.device, d_qk: int, features: str) -> None:
    for h_q in (16, 80):
        sparse_call(device, 6, 300, h_q, 150, d_qk, features=features, seed=h_q).check()


@pytest.mark.parametrize(("h_q", "d_qk"), [(16, 576), (128, 512), (7, 576)])
def test_float32_on_the_cpu(h_q: int, d_qk: int) -> None:
    cpu = torch.device("cpu")
    sparse_call(cpu, 5, 300, h_q, 100, d_qk, features="sink length", dtype=torch.float32).check()


def test_indices_at_the_ends_of_int32_are_masked(device: torch.device) -> None:
    call = sparse_call(device, 8, 300, 40, 100)
    call.indices[::2, :, ::3] = INT_MIN
    call.indices[1::2, :, 1::4] = INT_MAX
    call.indices[:, :, 7] = 2147480000
    call.check()


def test_a_row_with_nothing_valid_is_empty_whatever_the_sink(device: torch.device) -> None:
    call = sparse_call(device, 6, 128, 64, 100, features="sink")
    call.indices[::2] = -1
    out, max_logits, lse = call.run()
    assert torch.all(out[::2] == 0)
    assert torch.all(max_logits[::2] == float("-inf"))
    assert torch.all(lse[::2] == float("inf"))
    call.check()


def test_topk_length_clamps_to_topk_and_below_zero(device: torch.device) -> None:
    call = sparse_call(device, 5, 200, 16, 64)
    call.topk_length = torch.tensor([INT_MIN, 0, 1, 64, INT_MAX], dtype=torch.int32, device=device)
    call.check()
    out, _, lse = call.run()
    assert torch.all(out[:2] == 0) and torch.all(lse[:2] == float("inf"))


def test_duplicates_count_each_time(device: torch.device) -> None:
    call = sparse_call(device, 3, 50, 16, 64)
    call.indices[:] = 7
    _, max_logits, lse = call.run()
    torch.testing.assert_close(lse - max_logits, torch.full_like(lse, 64.0).log())
    call.check()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poison_in_rows_not_attended_stays_there(device: torch.device, poison: float) -> None:
    call = sparse_call(device, 6, 400, 66, 150, features="sink length")
    clean = call.run()
    attended = torch.zeros(400, dtype=torch.bool, device=device)
    assert call.topk_length is not None
    slots = torch.arange(150, device=device) < call.topk_length.unsqueeze(-1)
    used = call.indices[:, 0][slots]
    attended[used[(used >= 0) & (used < 400)].long()] = True
    assert not attended.all()
    call.kv[~attended] = poison
    for before, after in zip(clean, call.run(), strict=True):
        assert torch.equal(before, after)


def test_sink_scales_out_and_nothing_else(device: torch.device) -> None:
    call = sparse_call(device, 4, 200, 12, 64)
    out, max_logits, lse = call.run()
    sink = torch.linspace(-3, 8, 12, device=device)
    call.attn_sink = sink
    scaled, same_max, same_lse = call.run()
    assert torch.equal(max_logits, same_max) and torch.equal(lse, same_lse)
    expected = out.double() * torch.sigmoid(lse.double() - sink.double()).unsqueeze(-1)
    torch.testing.assert_close(scaled.double(), expected, rtol=2**-7, atol=1e-6)
    call.attn_sink = torch.full_like(sink, float("-inf"))
    assert torch.equal(call.run()[0], out)
    call.attn_sink = torch.full_like(sink, float("inf"))
    assert torch.all(call.run()[0] == 0)


# quiet, signalling, with all bits set (what CUDA's arithmetic gives), and each with the sign bit
NANS = [bits | sign for bits in (0x7FC00000, 0x7F800001, 0x7FFFFFFF) for sign in (0, -(2**31))]


@pytest.mark.parametrize("bits", NANS, ids=lambda bits: f"{bits & 0xFFFFFFFF:08x}")
def test_a_sink_that_is_nan_makes_its_head_nan(device: torch.device, bits: int) -> None:
    """Positive NaN on every target; nothing else changes, and a row with nothing valid stays +0."""
    for dtype in (torch.bfloat16, torch.float32) if device.type == "cpu" else (torch.bfloat16,):
        call = sparse_call(device, 4, 200, 40, 64, dtype=dtype)
        call.indices[2] = -1
        call.attn_sink = torch.zeros(40, device=device)
        without, *statistics = call.run()
        call.attn_sink.view(torch.int32)[7] = bits
        out, *same = call.run()
        for one, other in zip(statistics, same, strict=True):
            assert torch.equal(one, other)
        expected = without.clone()
        expected[:, 7] = float("nan")
        expected[2] = 0.0
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
        assert not out[:, 7].signbit().any() and not out[2].signbit().any()
        assert_right("sparse_fwd", "out", out, call.expected()[0])


def test_sinks_at_the_ends_of_float32(device: torch.device) -> None:
    """-0 is 0; what outweighs every score leaves +0, not -0; what weighs nothing changes nothing."""
    call = sparse_call(device, 3, 200, 40, 64)
    none = call.run()[0]
    largest = torch.finfo(torch.float32).max
    outs = {}
    for sink in (0.0, -0.0, largest, float("inf"), -largest, float("-inf")):
        call.attn_sink = torch.full((40,), sink, device=device)
        outs[str(sink)] = call.run()[0].view(torch.int16)
    assert torch.equal(outs["0.0"], outs["-0.0"])
    assert not outs[str(largest)].any() and not outs["inf"].any()
    assert torch.equal(outs[str(-largest)], none.view(torch.int16))
    assert torch.equal(outs["-inf"], none.view(torch.int16))


def test_nan_scores_are_nan_in_everything(device: torch.device) -> None:
    call = sparse_call(device, 4, 300, 40, 100)
    call.q[1, 7] = float("nan")
    for tensor in call.run():
        assert torch.all(tensor[1, 7].isnan())
        assert not tensor[1, :7].isnan().any() and not tensor[2].isnan().any()


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    call = sparse_call(device, 3, 300, 20, 150)
    call.sm_scale = 4.0
    call.check()


def test_empty_inputs_give_empty_results(device: torch.device) -> None:
    out, max_logits, lse = sparse_call(device, 0, 10, 8, 16).run()
    assert out.shape == (0, 8, 512) and max_logits.shape == lse.shape == (0, 8)
    out, max_logits, lse = sparse_call(device, 3, 0, 8, 16, features="sink").run()
    assert torch.all(out == 0) and torch.all(lse == float("inf")) and torch.all(max_logits == float("-inf"))


def test_out_is_written_where_asked(device: torch.device) -> None:
    call = sparse_call(device, 5, 100, 24, 40, features="sink")
    storage = torch.full((5, 26, 520), 9.0, dtype=torch.bfloat16, device=device)
    target = storage[:, 1:25, 8:]
    out, max_logits, lse = call.run(out=target)
    assert out.data_ptr() == target.data_ptr()
    expected, expected_max, expected_lse = call.run()
    assert torch.equal(target, expected) and torch.equal(max_logits, expected_max) and torch.equal(lse, expected_lse)
    target.fill_(9.0)
    assert torch.all(storage == 9.0), "something was written beside `out`"


def test_error_is_at_most_twice_that_of_plain_torch(device: torch.device) -> None:
    call = sparse_call(device, 8, 2000, 64, 512)
    call.indices.clamp_(0, 1999)
    expected = call.expected()[0]
    gathered = call.kv[call.indices[:, 0].long(), 0]
    scores = torch.matmul(call.q, gathered.transpose(1, 2)).float() * call.sm_scale
    plain = torch.matmul(torch.softmax(scores, -1).bfloat16(), gathered[..., :512])
    plain_error = (plain.double() - expected).abs().max()
    assert (call.run()[0].double() - expected).abs().max() <= 2 * plain_error


@pytest.mark.not_emulated
def test_more_heads_than_an_axis_of_a_launch_grid_holds(device: torch.device) -> None:
    call = sparse_call(device, 1, 20, 70_001, 5, 512)
    out = call.run()[0]
    heads = [0, 65_534, 65_535, 65_536, 70_000]
    call.q = call.q[:, heads].contiguous()
    assert_right("sparse_fwd", "out", out[:, heads], call.expected()[0])


@pytest.mark.gpu
def test_seventy_thousand_queries() -> None:
    call = sparse_call(torch.device("cuda"), 70_000, 500, 16, 70, features="sink length")
    call.check(torch.randint(0, 70_000, (50,), device="cuda"))


@pytest.mark.gpu
def test_offsets_past_two_to_the_31_elements() -> None:
    cuda = torch.device("cuda")
    rows = 2**31 // 576 + 5000
    random = torch.Generator(cuda).manual_seed(1)
    kv = torch.zeros(rows, 1, 576, dtype=torch.bfloat16, device=cuda)
    last = torch.arange(rows - 3000, rows, device=cuda)
    kv[last] = normal((3000, 1, 576), cuda, torch.bfloat16, random)
    indices = last[torch.randint(0, 3000, (6, 1, 200), device=cuda, generator=random)].int()
    SparseCall(normal((6, 64, 576), cuda, torch.bfloat16, random), kv, indices, 0.05).check()


@pytest.mark.gpu
def test_row_strides_past_two_to_the_31_elements() -> None:
    cuda = torch.device("cuda")
    random = torch.Generator(cuda).manual_seed(2)
    storage = torch.empty(3 * 2**30 + 4096, dtype=torch.bfloat16, device=cuda)
    kv = storage.as_strided((3, 1, 576), (3 * 2**29, 576, 1))
    q = storage.as_strided((2, 8, 576), (3 * 2**29, 640, 1), 2048)
    kv.copy_(normal((3, 1, 576), cuda, torch.bfloat16, random))
    q.copy_(normal((2, 8, 576), cuda, torch.bfloat16, random))
    indices = torch.tensor([[[2, 1, 0]], [[2, 2, -1]]], dtype=torch.int32, device=cuda)
    SparseCall(q, kv, indices, 0.05).check()


def test_the_reference_is_the_formula_written_out() -> None:
    """Loops over queries, heads and slots, on a problem small enough for that."""
    call = sparse_call(torch.device("cpu"), 2, 6, 2, 5, 512, features="sink")
    call.topk_length = torch.tensor([5, 3], dtype=torch.int32)
    out, max_logits, lse = call.expected()
    assert call.attn_sink is not None
    call.attn_sink[:] = torch.tensor([0.3, -0.2])
    out, max_logits, lse = call.expected()
    for query in range(2):
        length = int(call.topk_length[query])
        keys = [int(i) for i in call.indices[query, 0, :length] if 0 <= int(i) < 6]
        for head in range(2):
            if not keys:
                assert lse[query, head] == float("inf")
                continue
            rows = call.kv[keys, 0].double()
            scores = rows @ call.q[query, head].double() * call.sm_scale
            weights = scores.exp() / scores.exp().sum()
            sink = float(call.attn_sink[head].exp())
            total = float(scores.exp().sum())
            expected = weights @ rows[:, :512] * total / (total + sink)
            torch.testing.assert_close(out[query, head], expected)
            torch.testing.assert_close(float(lse[query, head]), float(scores.exp().sum().log()))
            torch.testing.assert_close(float(max_logits[query, head]), float(scores.max()))


def test_a_wrong_answer_is_seen() -> None:
    """The comparison itself: an error just over the tolerance must not pass."""
    expected = torch.full((4, 512), 0.01, dtype=torch.float64)
    wrong = expected.clone()
    wrong[2, 100] += 1.1 * TOLERANCES["sparse_fwd"]["out"].absolute
    with pytest.raises(AssertionError, match="1 of 2048"):
        assert_right("sparse_fwd", "out", wrong, expected)


def test_the_reference_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    call = sparse_call(torch.device("cpu"), 7, 60, 3, 20, 512, features="sink length")
    whole = call.expected()
    monkeypatch.setattr(reference, "_GATHER_ELEMENTS", 1)
    for one, other in zip(whole, call.expected(), strict=True):
        torch.testing.assert_close(one, other)


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert flash_dsa.__version__ == version("flash_dsa")
