"""Verification: right answers pass, wrong ones do not, and the checked rows are drawn anew."""

from __future__ import annotations

import re

import pytest
import torch
from instrument import planted

from asv_bench import implementations, inputs, numerics, verify
from asv_bench.cases import Problem
from asv_bench.implementations import BoundCall
from flash_dsa import reference

SPARSE = Problem("sparse_fwd", 30, 64, 4, 1, 576, 512, topk=16, indices="seed")
DENSE = Problem("dense_fwd", 30, 64, 8, 2, 192, 128, causal=True)


def verdict_of(problem: Problem, function: str, seed: int = 0) -> verify.Verdict:
    made = inputs.make(problem, 0, "cpu")
    call = implementations.get(f"instrument.planted:{function}").bind(problem, made)
    return verify.Check(problem, made, seed).verdict(call, call.call())


@pytest.mark.parametrize("problem", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_the_right_answer_passes_with_its_error(problem: Problem) -> None:
    found = verdict_of(problem, "right")
    assert found.error is None and found.max_abs_err is not None and 0 < found.max_abs_err < 8e-4


@pytest.mark.parametrize("problem", [SPARSE, DENSE], ids=["sparse", "dense"])
@pytest.mark.parametrize(
    "function, reason",
    [
        ("scaled", "out: cosine difference"),
        ("one_row_wrong", "out: .* differ"),
        ("not_written", "out: .* NaN, expected 0"),
        ("wrong_shape", r"out: shape expected \[30, "),
        ("nothing", "out: expected a tensor, got NoneType"),
    ],
)
def test_wrong_answers_are_caught(problem: Problem, function: str, reason: str) -> None:
    found = verdict_of(problem, function)
    assert found.error is not None and re.match(reason, found.error), found.error


def test_the_cosine_alone_catches_a_small_scale_error() -> None:
    """One per cent is within the elementwise tolerance: this is what the second criterion is for."""
    made = inputs.make(SPARSE, 0, "cpu")
    out = reference.sparse_fwd(**made.arguments)[0]
    tolerance = numerics.TOLERANCES["sparse_fwd"]["out"]
    assert numerics.difference(out * 1.01, out, numerics.Tolerance(tolerance.absolute, tolerance.relative, 1.0)) is None
    assert numerics.difference(out * 1.01, out, tolerance) is not None


def test_rows_are_drawn_anew_with_each_seed_and_hold_both_ends() -> None:
    problem = Problem(**{**SPARSE.fields, "s_q": 5000, "h_q": 1})
    made = inputs.make(problem, 0, "cpu")
    first, again, other = (verify.Check(problem, made, seed).queries for seed in (1, 1, 2))
    assert first == again != other
    assert {0, 4999} <= set(first) & set(other)


def test_heads_of_a_dense_problem_are_drawn_too() -> None:
    made = inputs.make(DENSE, 0, "cpu")
    drawn = {tuple(verify.Check(DENSE, made, seed).heads) for seed in range(8)}
    assert len(drawn) > 1 and all(len(heads) == verify.HEADS for heads in drawn)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("s_q, s_kv", [(30, 30), (7, 40), (40, 7)])
def test_slices_of_the_reference_are_the_reference(causal: bool, s_q: int, s_kv: int) -> None:
    problem = Problem(**{**DENSE.fields, "s_q": s_q, "s_kv": s_kv, "causal": causal})
    made = inputs.make(problem, 0, "cpu")
    args = made.arguments
    out, lse = reference.dense_fwd(
        args["q"], args["k"], args["v"], args["cu_seqlens_qo"], args["cu_seqlens_kv"], args["softmax_scale"], causal
    )
    check = verify.Check(problem, made, 3)
    call = BoundCall(lambda: None, "reference", ("out", "lse"))
    found = check.verdict(call, (out, lse))
    assert found.error is None and found.max_abs_err is not None and found.max_abs_err < 1e-15


def test_statistics_are_checked_where_they_are_named() -> None:
    made = inputs.make(SPARSE, 0, "cpu")
    out, max_logits, lse = reference.sparse_fwd(**made.arguments)
    check = verify.Check(SPARSE, made, 0)
    named = BoundCall(lambda: None, "reference", ("out", "max_logits", "lse"))
    assert check.verdict(named, (out, max_logits, lse)).error is None
    base_two = check.verdict(named, (out, max_logits, lse / 0.6931471805599453))
    assert base_two.error is not None and base_two.error.startswith("lse")
    assert check.verdict(BoundCall(lambda: None, "x"), (out, None, None)).error is None


def test_infinities_must_be_where_they_belong() -> None:
    expected = torch.tensor([1.0, float("inf")], dtype=torch.float64)
    tolerance = numerics.Tolerance(1e-6, 1e-6, 1e-7)
    assert numerics.difference(expected, expected, tolerance) is None
    assert "+inf" in str(numerics.difference(torch.tensor([1.0, 2.0]), expected, tolerance))
    assert "-inf" in str(numerics.difference(torch.tensor([float("-inf"), float("inf")]), expected, tolerance))
    assert numerics.max_abs_error(torch.tensor([float("nan"), float("inf")]), expected) is None


def test_poison_reaches_outputs_and_spares_inputs() -> None:
    made = inputs.make(SPARSE, 0, "cpu")
    out, lse = torch.zeros(3), torch.zeros(3)
    verify.poison((out, lse, None, 3), made)
    assert out.isnan().all() and lse.isnan().all()
    verify.poison(made.arguments["q"][:, :, :512], made)
    assert not made.arguments["q"].isnan().any()


@pytest.mark.parametrize("problem", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_altered_inputs_make_every_earlier_result_wrong(problem: Problem) -> None:
    made, old = inputs.make(problem, 0, "cpu"), inputs.make(problem, 0, "cpu")
    inputs.alter(made)
    call = BoundCall(lambda: None, "x")
    check = verify.Check(problem, made, 0)
    assert check.verdict(call, planted.right(**made.arguments)).error is None
    stale = {name: value for name, value in old.tensors.items() if not name.startswith("cu_seqlens")}
    for name, value in stale.items():  # as if this one tensor had been kept
        assert check.verdict(call, planted.right(**{**made.arguments, name: value})).error is not None, name
    assert check.verdict(call, planted.right(**old.arguments)).error is not None


@pytest.mark.parametrize("altered", [False, True])
def test_a_change_of_any_input_is_seen_and_undone(altered: bool) -> None:
    made = inputs.make(SPARSE, 0, "cpu")
    if altered:
        inputs.alter(made)
    before = {name: tensor.clone() for name, tensor in made.tensors.items()}
    unchanged = verify.Unchanged(made)
    for name, tensor in made.tensors.items():
        for change in (lambda t: t.flip(0), lambda t: t.flip(-1), lambda t: t.roll(1, 0), lambda t: t * 0):
            tensor.copy_(change(tensor))
            assert unchanged.broken() == ([] if torch.equal(tensor, before[name]) and tensor.dim() == 1 else [name])
            assert torch.equal(tensor, before[name]), name
    assert unchanged.broken() == []
