"""Problems: what is counted agrees with counting one by one, and ids keep their problems."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from asv_bench import cases, inputs
from asv_bench.cases import Problem

# Ids are only ever added: this list may grow at its end and never change.
PUBLISHED = [
    "sparse-q1024-kv4096-k512-h128-d576-seed",
    "dense-q1024-kv4096-h128x128-d576x512-full",
    "sparse-q2048-kv8192-k1024-h128-d576-seed",
    "dense-q2048-kv8192-h128x128-d576x512-full",
    "sparse-q4096-kv16384-k2048-h128-d576-seed",
    "dense-q4096-kv16384-h128x128-d576x512-full",
    "sparse-q4096-kv32768-k2048-h128-d576-seed",
    "dense-q4096-kv32768-h128x128-d576x512-full",
    "sparse-q4096-kv65536-k2048-h128-d576-seed",
    "dense-q4096-kv65536-h128x128-d576x512-full",
    "sparse-q4096-kv131072-k2048-h128-d576-seed",
    "dense-q4096-kv131072-h128x128-d576x512-full",
    "sparse-q32-kv512-k64-h16-d576-seed",
    "dense-q32-kv512-h16x16-d576x512-full",
    "sparse-q32-kv1024-k128-h16-d576-seed",
    "dense-q32-kv1024-h16x16-d576x512-full",
    "sparse-q32-kv2048-k256-h16-d576-seed",
    "dense-q32-kv2048-h16x16-d576x512-full",
    "sparse-q32-kv4096-k256-h16-d576-seed",
    "dense-q32-kv4096-h16x16-d576x512-full",
    "sparse-q32-kv8192-k256-h16-d576-seed",
    "dense-q32-kv8192-h16x16-d576x512-full",
    "sparse-q32-kv16384-k256-h16-d576-seed",
    "dense-q32-kv16384-h16x16-d576x512-full",
    "dense-q4096-kv4096-h128x128-d192x128-causal",
    "dense-q8192-kv8192-h128x128-d192x128-causal",
    "dense-q16384-kv16384-h128x128-d192x128-causal",
    "dense-q4096-kv16384-h128x128-d192x128-full",
    "dense-q4096-kv65536-h128x128-d192x128-full",
    "dense-q8192-kv8192-h128x128-d128x128-causal",
    "dense-q16384-kv16384-h128x128-d128x128-causal",
    "dense-q4096-kv16384-h128x128-d128x128-full",
    "dense-q4096-kv16384-h128x1-d576x512-full",
    "dense-q4096-kv65536-h128x1-d576x512-full",
    "dense-q4096-kv4096-h128x1-d576x512-causal",
    "sparse-q4096-kv8192-k2048-h128-d576-uniform",
    "sparse-q4096-kv32768-k2048-h128-d576-uniform",
    "sparse-q4096-kv65536-k2048-h128-d576-uniform",
    "sparse-q4096-kv131072-k2048-h128-d576-uniform",
    "sparse-q4096-kv8192-k512-h64-d512-uniform",
    "sparse-q4096-kv65536-k512-h64-d512-uniform",
    "sparse-q4096-kv8192-k1024-h128-d512-uniform",
    "sparse-q4096-kv65536-k1024-h128-d512-uniform",
    "sparse-q4096-kv65536-k2048-h64-d576-seed",
    "sparse-q4096-kv65536-k2048-h128-d576-seed-attn_sink",
    "sparse-q4096-kv4096-k2048-h128-d576-causal_prompt",
    "sparse-q4096-kv4096-k2048-h128-d576-causal_prompt-topk_length",
    "sparse-q4096-kv8192-k512-h128-d576-seed",
    "sparse-q4096-kv8192-k1024-h128-d576-seed",
    "sparse-q4096-kv8192-k2048-h128-d576-seed",
    "sparse-q4096-kv65536-k512-h128-d576-seed",
    "sparse-q4096-kv65536-k1024-h128-d576-seed",
    "sparse-q64-kv65536-k512-h128-d576-seed",
    "sparse-q4096-kv65536-k2048-h16-d576-seed",
    "dense-q1024-kv8192-h128x1-d576x512-full",
    "dense-q512-kv4096-h128x128-d576x512-full",
    "sparse-q128-kv1024-k128-h16-d576-seed",
    "sparse-q128-kv1024-k256-h16-d576-seed",
    "sparse-q128-kv8192-k128-h16-d576-seed",
    "sparse-q128-kv8192-k256-h16-d576-seed",
    "dense-q128-kv1024-h16x16-d192x128-causal",
    "dense-q64-kv1024-h16x1-d576x512-full",
    "sparse-q8-kv64-k16-h4-d576-seed",
    "dense-q8-kv64-h4x4-d576x512-full",
    "sparse-q8-kv64-k16-h4-d576-causal_prompt-attn_sink+topk_length",
    "dense-q8-kv64-h4x2-d192x128-causal",
    *(
        name
        for s in (2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
        for name in (
            *(f"sparse-q{s}-kv{s}-k{k}-h128-d576-causal_prompt" for k in (512, 1024, 2048)),
            f"dense-q{s}-kv{s}-h128x128-d192x128-causal",
        )
    ),
    "sparse-q65536-kv65536-k2048-h128-d576-causal_prompt",
    "dense-q65536-kv65536-h128x128-d192x128-causal",
    "sparse-q131072-kv131072-k2048-h128-d576-causal_prompt",
    "dense-q131072-kv131072-h128x128-d192x128-causal",
    *(
        name
        for s in (128, 256, 512, 1024, 2048)
        for name in (
            *(f"sparse-q{s}-kv{s}-k{k}-h16-d576-causal_prompt" for k in (32, 64)),
            f"dense-q{s}-kv{s}-h16x16-d192x128-causal",
        )
    ),
    "sparse-q4096-kv98304-k2048-h128-d576-uniform",
    "sparse-q4096-kv32768-k512-h64-d512-uniform",
    "sparse-q4096-kv49152-k512-h64-d512-uniform",
    "sparse-q4096-kv32768-k1024-h128-d512-uniform",
    "sparse-q4096-kv49152-k1024-h128-d512-uniform",
    "sparse-q4096-kv65536-k2048-h32-d576-seed",
    "sparse-q4096-kv131072-k2048-h128-d576-uniform-attn_sink",
    "sparse-q4096-kv4096-k2048-h128-d576-seed",
    "dense-q4096-kv16384-h128x1-d576x512-full-values_in_keys",
    "dense-q4096-kv65536-h128x1-d576x512-full-values_in_keys",
    "dense-q4096-kv4096-h128x1-d576x512-causal-values_in_keys",
    "sparse-q4096-kv16384-k16384-h128-d576-uniform",
]

TINY = Problem("sparse_fwd", 8, 64, 4, 1, 576, 512, topk=16, indices="seed")


def test_published_ids_stay_and_spell_their_problem() -> None:
    by_id = {case.id: case.problem for case in cases.all_cases()}
    assert [name for name in PUBLISHED if name not in by_id] == []
    for name in PUBLISHED:
        p = by_id[name]
        if p.op == "sparse_fwd":
            spelt = f"sparse-q{p.s_q}-kv{p.s_kv}-k{p.topk}-h{p.h_q}-d{p.d_qk}-{p.indices}"
        else:
            mask = "causal" if p.causal else "full"
            spelt = f"dense-q{p.s_q}-kv{p.s_kv}-h{p.h_q}x{p.h_kv}-d{p.d_qk}x{p.d_v}-{mask}"
        spelt += "" if p.features == "none" else f"-{p.features}"
        assert spelt == name


def test_no_two_cases_share_an_id_or_a_problem() -> None:
    everything = cases.all_cases()
    assert len({case.id for case in everything}) == len(everything) == len({case.problem for case in everything})


def test_seed_set_is_the_notebooks_six_shapes_with_their_dense_counterparts() -> None:
    found = [case.problem for case in cases.cases_of("seed")]
    sparse = [(p.s_q, p.s_kv, p.topk, p.h_q, p.d_qk) for p in found[::2]]
    shapes = [(1024, 4096, 512), (2048, 8192, 1024), *((4096, 16384 << i, 2048) for i in range(4))]
    assert sparse == [(*shape, 128, 576) for shape in shapes]
    assert found[1::2] == [cases.dense_counterpart(p) for p in found[::2]]
    assert all(p.h_kv == 128 for p in found[1::2])


@pytest.mark.parametrize("name, topk", [("prompt", 2048), ("prompt-smoke", 64)])
def test_prompts_go_past_where_sparse_and_dense_have_as_many_flops(name: str, topk: int) -> None:
    """On both sides of it, for every topk; and each sparse case has its dense counterpart in the set."""
    found = [case.problem for case in cases.cases_of(name)]
    sparse = [p for p in found if p.op == "sparse_fwd"]
    assert all(p.is_prompt and cases.counterpart(p) in found for p in sparse)
    assert {cases.counterpart(p) for p in sparse} == {p for p in found if p.op == "dense_fwd"}
    assert max(p.topk or 0 for p in sparse) == topk
    for one in {p.topk for p in sparse}:
        shares = [cases.counterpart(p).flops / p.flops for p in sparse if p.topk == one]
        assert len(shares) >= 5 and min(shares) < 0.9 and max(shares) > 2.0


def test_only_whole_prompts_are_compared_with_dense_192_128() -> None:
    whole = cases.find(["sparse-q4096-kv4096-k2048-h128-d576-causal_prompt"])[0].problem
    assert cases.counterpart(whole) == Problem("dense_fwd", 4096, 4096, 128, 128, 192, 128, causal=True)
    for other in (dataclasses.replace(whole, indices="uniform"), dataclasses.replace(whole, s_q=2048)):
        assert cases.counterpart(other) == cases.dense_counterpart(other)


def test_flops_of_the_seed_formula() -> None:
    p = cases.find(["sparse-q4096-kv65536-k2048-h128-d576-seed"])[0].problem
    assert p.flops == 2 * 128 * 4096 * 2048 * (576 + 512)
    assert cases.dense_counterpart(p).flops == 2 * 128 * 4096 * 65536 * (576 + 512)


@pytest.mark.parametrize("s_q, s_kv", list(itertools.product((1, 3, 8), (1, 2, 5, 8, 13))))
def test_flops_against_counting_pairs(s_q: int, s_kv: int) -> None:
    for causal in (False, True):
        p = Problem("dense_fwd", s_q, s_kv, 4, 2, 6, 4, causal=causal)
        pairs = sum(1 for i in range(s_q) for j in range(s_kv) if not causal or j <= i + s_kv - s_q)
        assert p.flops == 2 * 4 * (6 + 4) * pairs
    for topk in (1, 3, 20):
        p = Problem("sparse_fwd", s_q, s_kv, 4, 1, 6, 4, topk=topk, indices="uniform")
        assert p.flops == 2 * 4 * 10 * s_q * topk
        ragged = dataclasses.replace(p, features="topk_length")
        assert ragged.flops == 2 * 4 * 10 * sum(ragged.topk_length(i) for i in range(s_q))
        assert ragged.topk_length(0) == max(0, min(1 + s_kv - s_q, topk))


@pytest.mark.parametrize("case", cases.cases_of("tiny"), ids=lambda case: case.id)
def test_bytes_are_those_of_the_tensors(case: cases.Case) -> None:
    p = case.problem
    made = inputs.make(p, 0, "cpu").arguments
    size = {name: t.numel() * t.element_size() for name, t in made.items() if isinstance(t, torch.Tensor)}
    names = ("q", "kv", "indices") if p.op == "sparse_fwd" else ("q", "k", "v")
    statistics = 2 if p.op == "sparse_fwd" else 1
    assert p.bytes == sum(size[n] for n in names) + p.s_q * p.h_q * (2 * p.d_v + 4 * statistics)
    assert p.kv_bytes == sum(size[n] for n in names if n in ("kv", "k", "v"))


def test_roofline_is_the_longer_of_compute_and_traffic() -> None:
    assert TINY.roofline_seconds(TINY.flops, 1e30) == 1.0
    assert TINY.roofline_seconds(1e30, TINY.bytes / 2) == 2.0
    assert TINY.roofline_seconds(TINY.flops, 1e30, 0.75) == 0.75
    lengths = Problem("sparse_fwd", 3, 3, 1, 1, 576, 512, topk=3, indices="causal_prompt", features="topk_length")
    assert lengths.roofline_seconds(lengths.flops, 1e30, 6 / 9) == 1.0  # its lengths are what is counted
    assert TINY.intensity == TINY.flops / TINY.bytes


@pytest.mark.parametrize(
    "change, field",
    [
        ({"op": "decode"}, "op"),
        ({"s_q": 0}, "s_q"),
        ({"s_kv": 2.0}, "s_kv"),
        ({"h_q": True}, "h_q"),
        ({"h_kv": 2}, "h_kv"),
        ({"topk": None}, "topk"),
        ({"topk": 0}, "topk"),
        ({"causal": False}, "causal"),
        ({"indices": "zipf"}, "indices"),
        ({"indices": "causal_prompt", "s_kv": 4}, "s_kv"),
        ({"features": "topk_length+attn_sink"}, "features"),
        ({"features": "attn_sink+attn_sink"}, "features"),
        ({"features": "rope"}, "features"),
        ({"d_v": 640}, "d_v"),
        ({"op": "dense_fwd", "topk": None, "indices": None}, "causal"),
        ({"op": "dense_fwd", "topk": None, "indices": None, "causal": True, "h_kv": 3}, "h_kv"),
        ({"op": "dense_fwd", "indices": None, "causal": True}, "topk"),
        ({"op": "dense_fwd", "topk": None, "indices": None, "causal": True, "features": "attn_sink"}, "features"),
        (
            {"op": "dense_fwd", "topk": None, "indices": None, "causal": True, "d_v": 640}
            | {"features": "values_in_keys"},
            "d_v",
        ),
        ({"features": "values_in_keys"}, "features"),
    ],
)
def test_an_impossible_problem_names_its_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected .*, got "):
        dataclasses.replace(TINY, **change)  # type: ignore[arg-type]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="set: expected one of seed, smoke"):
        cases.cases_of("everything")
    with pytest.raises(ValueError, match="unknown id sparse-x"):
        cases.find(["sparse-x"])
