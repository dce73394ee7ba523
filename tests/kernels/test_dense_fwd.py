"""dense_fwd against its definition."""

from __future__ import annotations

import pytest
import torch
from numerics import DenseCall, assert_right, dense_call, normal

import flash_dsa

HEAD_DIMS = [(192, 128), (128, 128), (576, 512)]

# Lengths of queries and keys per sequence, h_q, h_kv: empty sequences, s_q != s_kv both ways, tile edges.
SEQUENCES = [
    ([5, 0, 64, 129, 1], [70, 33, 64, 200, 1], 4, 2),
    ([100, 1, 0, 77], [10, 300, 0, 77], 3, 1),
    ([130], [257], 2, 2),
    ([0, 0, 3], [0, 5, 0], 2, 1),
    ([1] * 70, [33] * 70, 2, 1),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dims", HEAD_DIMS)
@pytest.mark.parametrize(("lengths_q", "lengths_kv", "h_q", "h_kv"), SEQUENCES)
def test_matches_the_reference(
    device: torch.device,
    lengths_q: list[int],
    lengths_kv: list[int],
    h_q: int,
    h_kv: int,
    head_dims: tuple[int, int],
    causal: bool,
) -> None:
    dense_call(device, lengths_q, lengths_kv, h_q, h_kv, head_dims, causal=causal).check()


@pytest.mark.parametrize("causal", [False, True])
def test_values_may_live_in_the_keys(device: torch.device, causal: bool) -> None:
    """The absorbed form: MQA, V is the first 512 columns of K."""
    dense_call(device, [40, 30], [90, 133], 16, 1, (576, 512), causal=causal, values_in_keys=True).check()


@pytest.mark.parametrize("values_in_keys", [False, True])
@pytest.mark.parametrize(("h_q", "h_kv"), [(3, 3), (12, 4), (48, 1), (65, 1), (96, 1), (128, 1), (192, 1), (200, 2)])
def test_any_number_of_heads_per_key_head(device: torch.device, h_q: int, h_kv: int, values_in_keys: bool) -> None:
    call = dense_call(
        device, [9, 0, 3, 40], [30, 5, 70, 40], h_q, h_kv, (576, 512), causal=True, values_in_keys=values_in_keys
    )
    if values_in_keys:  # in place: V of the usual deviation, and the same scores
        call.k.mul_(1 / 3)
        call.q.mul_(3)
    call.check()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_nan_of_another_sequence_stays_there(device: torch.device, head_dims: tuple[int, int], causal: bool) -> None:
    """A tile that ends within a block of keys reads, or could read, those of the next sequence."""
    for values_in_keys in (False, True) if head_dims == (576, 512) else (False,):
        call = dense_call(
            device, [40, 6, 150], [75, 9, 150], 4, 2, head_dims, causal=causal, values_in_keys=values_in_keys
        )
        tensor = call.k if values_in_keys else call.v
        tensor[75:84] = float("nan")
        rows = torch.tensor([*range(40), *range(46, 196)], device=device)
        for name, actual, expected in zip(("out", "lse"), call.run(), call.expected(), strict=True):
            assert not actual[rows].isnan().any()
            assert_right("dense_fwd", name, actual[rows], expected[rows])


@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_keys_of_one_head_may_be_expanded(device: torch.device, head_dims: tuple[int, int]) -> None:
    call = dense_call(device, [70, 9], [50, 80], 4, 4, head_dims, causal=True)
    call.k, call.v = call.k[:, :1].expand_as(call.k), call.v[:, :1].expand_as(call.v)
    call.check()


@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_float32_on_the_cpu(head_dims: tuple[int, int]) -> None:
    cpu = torch.device("cpu")
    dense_call(cpu, [40, 3], [61, 9], 4, 2, head_dims, causal=True, dtype=torch.float32).check()


@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_inputs_with_strides(device: torch.device, head_dims: tuple[int, int]) -> None:
    call = dense_call(device, [70, 9], [50, 80], 4, 2, head_dims, causal=True)
    for name in ("q", "k", "v"):
        tensor = getattr(call, name)
        wide = torch.full(
            (tensor.shape[0], tensor.shape[1] + 1, tensor.shape[2] + 16),
            float("nan"),
            dtype=tensor.dtype,
            device=device,
        )
        view = wide[:, 1:, 8:-8]
        view.copy_(tensor)
        setattr(call, name, view)
    call.check()


@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_softmax_scale_is_the_one_given(device: torch.device, head_dims: tuple[int, int]) -> None:
    call = dense_call(device, [40], [150], 2, 1, head_dims)
    call.softmax_scale = 2.5 * head_dims[0] ** -0.5
    call.check()


@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_a_maximum_that_rises_with_every_key(device: torch.device, head_dims: tuple[int, int]) -> None:
    """Every block rescales what was summed before it."""
    call = dense_call(device, [20], [300], 2, 1, head_dims)
    call.q = call.q.abs()
    call.k = (call.k.abs() * torch.linspace(0.1, 3.0, 300, device=device).reshape(-1, 1, 1)).to(call.k.dtype)
    call.softmax_scale = 0.05
    call.check()


@pytest.mark.gpu
@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_error_does_not_grow_over_many_blocks(head_dims: tuple[int, int]) -> None:
    """An unchanged maximum must leave the sum as it is: scores of deviation 10 over 131072 keys."""
    call = dense_call(torch.device("cuda"), [64], [131072], 1, 1, head_dims)
    call.softmax_scale = 10 * head_dims[0] ** -0.5
    call.check()


@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_nan_in_rows_a_query_does_not_see_stays_there(device: torch.device, head_dims: tuple[int, int]) -> None:
    """Queries before the first key are 0 and inf, whatever the keys they do not see hold."""
    call = dense_call(device, [6], [2], 2, 1, head_dims, causal=True)
    call.v.fill_(float("nan"))
    out, lse = call.run()
    assert torch.all(out[:4] == 0) and torch.all(lse[:4] == float("inf"))
    expected_out, expected_lse = call.expected()
    assert torch.all(expected_out[4:].isnan())
    assert_right("dense_fwd", "out", out, expected_out)
    assert_right("dense_fwd", "lse", lse, expected_lse)


def test_nan_scores_are_nan_in_everything(device: torch.device) -> None:
    for head_dims in HEAD_DIMS:
        call = dense_call(device, [10], [70], 2, 1, head_dims)
        call.q[3] = float("nan")
        out, lse = call.run()
        assert torch.all(out[3].isnan()) and torch.all(lse[3].isnan())
        assert not out[4:].isnan().any() and not lse[4:].isnan().any()


def test_rows_past_the_last_sequence_are_not_written(plain_device: torch.device) -> None:
    call = dense_call(plain_device, [10], [20], 2, 1, (192, 128))
    q = torch.cat([call.q, call.q[:5]])
    out = torch.full((15, 2, 128), 7.0, dtype=torch.bfloat16, device=plain_device)
    lse = torch.full((15, 2), 7.0, device=plain_device)
    flash_dsa._flash_attn_varlen_forward(
        q, call.k, call.v, call.cu_seqlens_qo, call.cu_seqlens_kv, 10, 20, out=out, lse=lse
    )
    assert torch.all(out[10:] == 7.0) and torch.all(lse[10:] == 7.0)
    assert_right("dense_fwd", "out", out[:10], call.expected()[0])


def test_rows_that_see_nothing_are_zero(device: torch.device) -> None:
    call = dense_call(device, [6], [2], 2, 1, (128, 128), causal=True)
    out, lse = call.run()
    assert torch.all(out[:4] == 0) and torch.all(lse[:4] == float("inf"))
    assert torch.all(torch.isfinite(lse[4:]))
    call.check()


def test_lse_is_contiguous_along_the_queries(plain_device: torch.device) -> None:
    _, lse = dense_call(plain_device, [10], [20], 4, 2, (192, 128)).run()
    assert lse.shape == (10, 4) and lse.stride() == (1, 10)


def test_wrong_maximal_lengths_do_not_matter(device: torch.device) -> None:
    call = dense_call(device, [70, 200], [90, 33], 2, 1, (192, 128), causal=True)
    call.max_seqlen_qo = call.max_seqlen_kv = 1
    call.check()


def test_poison_past_the_sequence_stays_there(device: torch.device) -> None:
    for head_dims in HEAD_DIMS:
        call = dense_call(device, [9, 20], [21, 40], 2, 1, head_dims)
        expected = call.expected()
        call.cu_seqlens_kv = torch.tensor([0, 21, 61], dtype=torch.int32, device=device)
        wide_k = torch.cat([call.k, torch.full_like(call.k, float("nan"))])
        wide_v = torch.cat([call.v, torch.full_like(call.v, float("nan"))])
        call.k, call.v = wide_k[:61], wide_v[:61]
        for name, actual, right in zip(("out", "lse"), call.run(), expected, strict=True):
            assert_right("dense_fwd", name, actual, right)


def test_upstream_forward_writes_where_asked(plain_device: torch.device) -> None:
    call = dense_call(plain_device, [30, 7], [30, 50], 4, 2, (192, 128), causal=True)
    out = torch.empty(37, 4, 128, dtype=torch.bfloat16, device=plain_device)
    lse = torch.empty(37, 4, device=plain_device)  # not upstream's layout: any strides will do
    given_out, given_lse = flash_dsa._flash_attn_varlen_forward(
        call.q, call.k, call.v, call.cu_seqlens_qo, call.cu_seqlens_kv, 30, 50, out=out, lse=lse, causal=True
    )
    assert given_out is out and given_lse is lse
    expected_out, expected_lse = call.run()
    assert torch.equal(out, expected_out) and torch.equal(lse, expected_lse)


@pytest.mark.parametrize("given", ["out", "lse"])
def test_upstream_forward_allocates_what_is_not_given(plain_device: torch.device, given: str) -> None:
    call = dense_call(plain_device, [30, 7], [30, 50], 4, 2, (192, 128), causal=True)
    expected = call.run()
    place = torch.empty_like(expected[given == "lse"])
    arguments = (call.q, call.k, call.v, call.cu_seqlens_qo, call.cu_seqlens_kv, 30, 50)
    results = flash_dsa._flash_attn_varlen_forward(*arguments, causal=True, **{given: place})
    assert results[given == "lse"] is place
    for one, other in zip(expected, results, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_packed_forms_are_the_same_call(plain_device: torch.device, head_dims: tuple[int, int]) -> None:
    call = dense_call(plain_device, [20, 13], [20, 13], 4, 4, head_dims, causal=True)
    expected = call.run()
    kv = torch.cat([call.k, call.v], dim=-1)
    packed_kv = flash_dsa.flash_attn_varlen_kvpacked_func(
        call.q, kv, call.cu_seqlens_qo, call.cu_seqlens_kv, 20, 20, head_dims[0], causal=True
    )
    qkv = torch.cat([call.q, call.k, call.v], dim=-1)
    packed_qkv = flash_dsa.flash_attn_varlen_qkvpacked_func(qkv, call.cu_seqlens_qo, 20, head_dims[0], causal=True)
    for packed in (packed_kv, packed_qkv):
        for one, other in zip(expected, packed, strict=True):
            assert torch.equal(one, other)


def test_cu_seqlens_that_lie_are_an_error_on_the_cpu() -> None:
    cpu = torch.device("cpu")
    lies = {
        (0, 40): "expected to end at or before {} = 30, got 40",
        (5, 30): "expected to start at 0, got 5",
        (0, -1): "expected non-decreasing entries, got 0 at 0 before -1",
    }
    for name, total in (("cu_seqlens_qo", "tot_q"), ("cu_seqlens_kv", "tot_kv")):
        for lie, message in lies.items():
            call = dense_call(cpu, [30], [30], 2, 1, (128, 128))
            setattr(call, name, torch.tensor(lie, dtype=torch.int32))
            with pytest.raises(RuntimeError, match=f"dense_fwd: `{name}` {message.format(total)}"):
                call.run()


@pytest.mark.gpu
def test_cu_seqlens_that_lie_read_nothing_outside_on_a_gpu() -> None:
    cuda = torch.device("cuda")
    for lie in ([0, 1_000_000], [-5, 30], [20, 10]):
        call = dense_call(cuda, [30], [30], 2, 1, (128, 128))
        call.cu_seqlens_qo = torch.tensor(lie, dtype=torch.int32, device=cuda)
        call.cu_seqlens_kv = torch.tensor(lie, dtype=torch.int32, device=cuda)
        call.run()
        torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_offsets_past_two_to_the_31_elements(head_dims: tuple[int, int]) -> None:
    """A head whose keys begin past 2^31 elements of K, checked on its own."""
    cuda = torch.device("cuda")
    d_qk, d_v = head_dims
    random = torch.Generator(cuda).manual_seed(3)
    heads = 2**31 // (300 * d_qk) + 2
    k = torch.zeros(heads, 300, d_qk, dtype=torch.bfloat16, device=cuda).transpose(0, 1)
    v = torch.zeros(heads, 300, d_v, dtype=torch.bfloat16, device=cuda).transpose(0, 1)
    k[:, -1] = normal((300, d_qk), cuda, torch.bfloat16, random)
    v[:, -1] = normal((300, d_v), cuda, torch.bfloat16, random)
    q = normal((90, heads, d_qk), cuda, torch.bfloat16, random)
    starts_q = torch.tensor([0, 90], dtype=torch.int32, device=cuda)
    starts_kv = torch.tensor([0, 300], dtype=torch.int32, device=cuda)
    out, lse = flash_dsa.flash_attn_varlen_func(q, k, v, starts_q, starts_kv, 90, 300, causal=True)
    one = DenseCall(q[:, -1:], k[:, -1:], v[:, -1:], starts_q, starts_kv, True, 90, 300)
    expected_out, expected_lse = one.expected()
    assert_right("dense_fwd", "out", out[:, -1:], expected_out)
    assert_right("dense_fwd", "lse", lse[:, -1:], expected_lse)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_long_ragged_batches(head_dims: tuple[int, int]) -> None:
    call = dense_call(torch.device("cuda"), [3000, 1, 0, 700], [5000, 4097, 300, 700], 2, 1, head_dims, causal=True)
    call.check()


@pytest.mark.not_emulated
@pytest.mark.parametrize("head_dims", HEAD_DIMS)
def test_more_heads_than_an_axis_of_a_launch_grid_holds(device: torch.device, head_dims: tuple[int, int]) -> None:
    """CUDA's limit is 65535 blocks; heads on both sides of the joint are compared with calls on them alone."""
    call = dense_call(device, [1, 2], [2, 1], 70_001, 1, head_dims, causal=True)
    results = call.run()
    heads = [0, 1, 35_000, 35_001, 65_534, 65_535, 65_536, 70_000]
    call.q = call.q[:, heads].contiguous()
    for name, actual, expected in zip(("out", "lse"), results, call.expected(), strict=True):
        assert_right("dense_fwd", name, actual[:, heads], expected)
    for actual, alone in zip(results, call.run(), strict=True):
        assert torch.equal(actual[:, heads], alone)


def test_the_reference_is_the_formula_written_out() -> None:
    call = dense_call(torch.device("cpu"), [3], [5], 2, 1, (128, 128), causal=True)
    out, lse = call.expected()
    for query in range(3):
        for head in range(2):
            keys = call.k[: query + 3, 0].double()
            scores = keys @ call.q[query, head].double() * 128**-0.5
            expected = scores.exp() @ call.v[: query + 3, 0].double() / scores.exp().sum()
            torch.testing.assert_close(out[query, head], expected)
            torch.testing.assert_close(float(lse[query, head]), float(scores.exp().sum().log()))
