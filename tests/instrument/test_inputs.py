"""Inputs: the distributions the words promise, the same for every chunk size, never zeros."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from asv_bench import cases, inputs
from asv_bench.cases import Problem


def sparse(s_q: int, s_kv: int, topk: int, indices: str, features: str = "none") -> Problem:
    return Problem("sparse_fwd", s_q, s_kv, 4, 1, 576, 512, topk=topk, indices=indices, features=features)


def repeats(indices: torch.Tensor) -> int:
    """Valid indices that occur twice in a row."""
    ordered = indices.sort(dim=1).values
    return int(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).sum())


@pytest.mark.parametrize("kind", cases.INDICES)
def test_indices_do_not_depend_on_the_chunk_size(kind: str) -> None:
    problem = sparse(37, 5000, 96, kind)
    whole = inputs.make_indices(problem, 3, "cpu")
    assert all(torch.equal(whole, inputs.make_indices(problem, 3, "cpu", chunk)) for chunk in (1, 1000, 96 * 36))
    assert not torch.equal(whole, inputs.make_indices(problem, 4, "cpu"))
    assert whole.dtype == torch.int32 and whole.shape == (37, 96)
    assert not torch.equal(whole[20], whole[21])


def test_seed_indices_are_31_of_32_in_the_last_20000_tokens() -> None:
    s_kv, topk = 131_072, 2048
    found = inputs.make_indices(sparse(256, s_kv, topk, "seed"), 0, "cpu")
    assert int(found.min()) >= 0 and int(found.max()) < s_kv
    near = (found >= s_kv - 20_000).double().mean().item()
    # 31/32 drawn near, and of the 1/32 others those that fall there; 256 * 2048 draws give a deviation of 2.3e-4.
    assert near == pytest.approx(31 / 32 + 20_000 / s_kv / 32, abs=1.2e-3)
    far = found < s_kv - 20_000
    assert repeats(torch.where(far, found, -1)) == 0  # others come from a permutation
    assert repeats(found) > 0  # near ones are drawn with replacement
    # Shuffled: far ones are spread over the slots rather than gathered at one end.
    halves = far[:, : topk // 2].sum().item(), far[:, topk // 2 :].sum().item()
    assert abs(halves[0] - halves[1]) < 6 * sum(halves) ** 0.5


def test_seed_never_draws_the_last_token_as_near() -> None:
    found = inputs.make_indices(sparse(400, 2000, 64, "seed"), 0, "cpu")
    last = (found == 1999).double().mean().item()
    assert last < 3 / 32 / 2000  # only the 1 in 32 from the permutation can be it
    assert (found == 1998).any() and (found == 0).any()


def test_slots_beyond_s_kv() -> None:
    found = inputs.make_indices(sparse(16, 24, 40, "seed"), 0, "cpu")
    missing = found == inputs.MISSING_INDEX
    assert (missing.sum(dim=1) == 16).all() and missing[:, :24].any()
    assert ((found[~missing] >= 0) & (found[~missing] < 24)).all()
    uniform = inputs.make_indices(sparse(16, 24, 40, "uniform"), 0, "cpu")
    assert torch.equal(uniform[:, :24].sort(dim=1).values, torch.arange(24, dtype=torch.int32).expand(16, -1))
    assert (uniform[:, 24:] == -1).all()
    assert (inputs.make_indices(sparse(4, 1, 3, "seed"), 0, "cpu").min(dim=1).values == 0).all()


@pytest.mark.parametrize("s_kv", [1000, 1024, 1025, 131_071])
def test_uniform_is_without_repeats_and_even(s_kv: int) -> None:
    problem = sparse(300, s_kv, 256, "uniform")
    found = inputs.make_indices(problem, 1, "cpu")
    assert repeats(found) == 0
    assert int(found.min()) >= 0 and int(found.max()) < s_kv
    bins = 50
    for part in (found, found[:, :8], found[:8]):  # all, the first slots of each row, the first rows
        counts = torch.bincount((part.long() * bins // s_kv).flatten(), minlength=bins).double()
        expected = part.numel() / bins
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert chi2 < 49 + 6 * (2 * 49) ** 0.5, f"{chi2} over {bins} bins"


def test_neighbouring_slots_and_rows_are_unrelated() -> None:
    found = inputs.make_indices(sparse(200, 65_536, 512, "uniform"), 1, "cpu").double()
    centred = found - found.mean()
    for other in (centred.roll(1, 0), centred.roll(1, 1), centred.roll(7, 1)):
        assert abs(float((centred * other).mean() / (centred * centred).mean())) < 0.02
    steps = (found[:, 1:] - found[:, :-1]) % 65_536
    assert steps.unique().numel() > 0.5 * min(steps.numel(), 65_536)  # no arithmetic progression


def test_causal_prompt_sees_its_past_only() -> None:
    for s_q, s_kv in ((100, 100), (100, 130)):
        found = inputs.make_indices(sparse(s_q, s_kv, 48, "causal_prompt"), 2, "cpu")
        last = torch.arange(s_q) + s_kv - s_q
        assert repeats(found) == 0
        assert (found.max(dim=1).values <= last).all()
        assert torch.equal((found >= 0).sum(dim=1), (last + 1).clamp(max=48))
        valid = found >= 0
        assert (valid[:, :-1] >= valid[:, 1:]).all()  # the valid ones come first
        assert (found[~valid] == -1).all()


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("kind", cases.INDICES)
def test_memory_is_bounded_by_the_chunk_and_the_result(kind: str) -> None:
    with LargestTensor() as largest:
        found = inputs.make_indices(sparse(128, 131_072, 512, kind), 0, "cpu", chunk_slots=8192)
    assert largest.elements == found.numel()  # nothing of the size of s_kv, let alone s_q * s_kv


def test_tensors_are_as_the_seed_makes_them() -> None:
    made = inputs.make(sparse(64, 512, 32, "seed"), 0, "cpu").arguments
    for name in ("q", "kv"):
        tensor = made[name]
        assert tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
        values = tensor.double()
        assert values.std().item() == pytest.approx(0.1, rel=0.02) and abs(values.mean().item()) < 1e-3
        assert float(values.abs().max()) <= 10 and float((values == 0).double().mean()) < 0.01
    assert made["sm_scale"] == pytest.approx(576**-0.5)
    assert made["indices"].shape == (64, 1, 32)
    assert "attn_sink" not in made and "topk_length" not in made


def test_values_in_keys_are_the_keys_first_columns_in_their_memory() -> None:
    problem = Problem("dense_fwd", 4, 9, 2, 1, 576, 512, causal=True, features="values_in_keys")
    made = inputs.make(problem, 0, "cpu")
    k, v = made.arguments["k"], made.arguments["v"]
    assert v.data_ptr() == k.data_ptr() and v.shape == (9, 1, 512) and v.stride() == k.stride()
    assert problem.kv_bytes == k.nbytes
    before = k.clone()
    inputs.alter(made)
    assert torch.equal(k, -before) and torch.equal(v, -before[..., :512])


def test_making_inputs_again_gives_them_again() -> None:
    problem = cases.cases_of("tiny")[2].problem
    first, again, other = (inputs.make(problem, seed, "cpu").arguments for seed in (5, 5, 6))
    for name, tensor in first.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, again[name])
    assert not torch.equal(first["q"], other["q"]) and not torch.equal(first["attn_sink"], other["attn_sink"])
    assert not torch.equal(first["q"].flatten()[:64], first["kv"].flatten()[:64])


def test_large_tensors_are_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_CHUNK_ELEMENTS", 1000)
    tensor = inputs._normal((64, 2, 96), 7, torch.device("cpu")).double()
    assert tensor.std().item() == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(tensor[:5], tensor[5:10])


def test_valid_fraction_by_counting() -> None:
    for problem in (
        sparse(40, 40, 24, "causal_prompt", "topk_length"),
        sparse(40, 16, 24, "seed"),
        sparse(40, 64, 24, "uniform", "attn_sink+topk_length"),
        sparse(40, 20, 24, "uniform", "topk_length"),
    ):
        made = inputs.make(problem, 0, "cpu")
        indices, length = made.arguments["indices"][:, 0], made.arguments.get("topk_length")
        count = 0
        for i in range(problem.s_q):
            slots = indices[i] if length is None else indices[i, : length[i]]
            count += sum(1 for index in slots.tolist() if 0 <= index < problem.s_kv)
        assert made.valid_fraction == count / (problem.s_q * 24)
    assert inputs.make(cases.cases_of("tiny")[1].problem, 0, "cpu").valid_fraction is None


def test_lengths_are_what_the_flops_count() -> None:
    problem = sparse(40, 20, 24, "uniform", "topk_length")
    length = inputs.make(problem, 0, "cpu").arguments["topk_length"]
    assert length.dtype == torch.int32 and length.tolist() == [problem.topk_length(i) for i in range(40)]
    assert problem.pairs == int(length.sum())
