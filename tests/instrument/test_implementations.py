"""Implementations: each computes the definition or says why it does not."""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from asv_bench import cases, errors, implementations, inputs, naive, verify
from asv_bench.cases import Problem
from asv_bench.errors import Unsupported

CPU = torch.device("cpu")
SPARSE = Problem("sparse_fwd", 9, 40, 4, 1, 576, 512, topk=24, indices="uniform")
SPARSE_ARGUMENTS = ("q", "kv", "indices", "sm_scale", "d_v")
PEERS = Problem("sparse_fwd", 9, 200, 64, 1, 576, 512, topk=128, indices="uniform")  # the peer's limits hold
DENSE = Problem("dense_fwd", 9, 40, 4, 4, 192, 128, causal=False)


def problems() -> list[Problem]:
    fields = SPARSE.fields
    return [
        *(case.problem for case in cases.cases_of("tiny")),
        SPARSE,
        Problem(**{**fields, "s_kv": 12, "indices": "seed"}),  # slots beyond s_kv
        Problem(**{**fields, "d_qk": 512, "h_q": 1}),
        Problem(**{**fields, "features": "attn_sink"}),
        Problem(**{**fields, "s_kv": 4, "features": "attn_sink+topk_length"}),  # rows with nothing valid
        DENSE,
        Problem(**{**DENSE.fields, "causal": True}),
        Problem(**{**DENSE.fields, "causal": True, "h_kv": 2, "d_qk": 128}),
        Problem(**{**DENSE.fields, "causal": True, "s_q": 40}),
        Problem(**{**DENSE.fields, "causal": True, "s_kv": 5}),  # queries that see no key
        Problem(**{**DENSE.fields, "h_kv": 1, "d_qk": 576, "d_v": 512}),
        Problem(**{**DENSE.fields, "h_kv": 1, "d_qk": 576, "d_v": 512, "features": "values_in_keys"}),
    ]


@pytest.mark.parametrize("name", ["flash_dsa", "naive", "sdpa", "instrument.planted:right"])
@pytest.mark.parametrize("problem", problems(), ids=lambda p: repr(tuple(p.fields.values())))
def test_it_computes_the_definition(name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naive, "_CHUNK_BYTES_CPU", 1 << 15)  # several chunks, also of heads
    made = inputs.make(problem, 0, CPU)
    try:
        call = implementations.get(name).bind(problem, made)
    except Unsupported as reason:
        assert name == "sdpa", reason
        assert problem.op == "sparse_fwd" or (problem.causal and problem.s_q > problem.s_kv), reason
        return
    for seed in range(3):
        assert verify.Check(problem, made, seed).verdict(call, call.call()).error is None


def test_sdpa_says_which_backend_serves_and_why_none_does() -> None:
    made = inputs.make(DENSE, 0, CPU)
    assert implementations.get("sdpa").bind(DENSE, made).backend in ("flash", "math")
    with pytest.raises(Unsupported, match="no sparse indices"):
        implementations.get("sdpa").bind(SPARSE, inputs.make(SPARSE, 0, CPU))
    impossible = Problem(**{**DENSE.fields, "causal": True, "s_kv": 5})
    with pytest.raises(Unsupported, match=r"cudnn: no bottom-right.*math: rows without any visible key"):
        implementations.get("sdpa").bind(impossible, inputs.make(impossible, 0, CPU))


def test_naive_dense_has_a_limit_and_says_it() -> None:
    problem = Problem("dense_fwd", 1, naive.DENSE_KEYS_MAX + 1, 1, 1, 192, 128, causal=False)
    with pytest.raises(Unsupported, match="naive dense is timed up to s_kv 16384"):
        implementations.get("naive").bind(problem, inputs.make(problem, 0, CPU))


def test_unavailable_ones_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert implementations.get("naive").unavailable(CPU) is None
    assert implementations.get("flash_mla").unavailable(CPU) == "flash_mla runs on CUDA only"
    monkeypatch.setitem(sys.modules, "flash_mla", None)
    reason = implementations.get("flash_mla").unavailable(torch.device("cuda", 0))
    assert reason and "flash_mla" in reason and "pip install --no-deps sgl-flash-mla" in reason
    monkeypatch.setitem(sys.modules, "flash_dsa", None)
    assert "flash_dsa" in (implementations.get("flash_dsa").unavailable(CPU) or "")


def test_a_device_without_target_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import flash_dsa

    def refuse(device: torch.device) -> str:
        raise NotImplementedError("sm_75 is older than sm80")

    monkeypatch.setattr(flash_dsa, "target_of", refuse)
    assert implementations.get("flash_dsa").unavailable(CPU) == "NotImplementedError: sm_75 is older than sm80"


def fake_flash_mla(**functions: Any) -> ModuleType:
    module = ModuleType("flash_mla")
    vars(module).update(functions, __version__="1.0.0")
    return module


@pytest.mark.parametrize("capability, expected", [((9, 0), True), ((10, 0), False)])
def test_the_peers_legacy_half_serves_sm90_only(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def sparse(q: Any, kv: Any, indices: Any, sm_scale: float, d_v: int = 512, use_legacy: bool = False) -> Any:
        seen["use_legacy"] = use_legacy
        return torch.zeros(9, 4, 512), None, None

    monkeypatch.setitem(sys.modules, "flash_mla", fake_flash_mla(flash_mla_sparse_fwd=sparse))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    call = implementations.get("flash_mla").bind(PEERS, inputs.make(PEERS, 0, CPU))
    assert list(call.outputs(call.call())) == ["out"] and call.backend == "flash_mla 1.0.0"
    assert seen["use_legacy"] is expected
    sink = Problem(**{**PEERS.fields, "features": "attn_sink"})
    with pytest.raises(Unsupported, match="takes no attn_sink"):
        implementations.get("flash_mla").bind(sink, inputs.make(sink, 0, CPU))


def test_an_older_peer_is_called_without_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    def sparse(q: Any, kv: Any, indices: Any, sm_scale: float, d_v: int = 512) -> Any:
        return torch.zeros(9, 4, 512)

    monkeypatch.setitem(sys.modules, "flash_mla", fake_flash_mla(flash_mla_sparse_fwd=sparse))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    implementations.get("flash_mla").bind(PEERS, inputs.make(PEERS, 0, CPU)).call()


@pytest.mark.parametrize("change, reason", [({"h_q": 16}, "64 or 128 heads"), ({"topk": 64}, "multiples of 128")])
def test_what_would_end_the_peers_process_is_refused(
    change: dict[str, int], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flash_mla", fake_flash_mla(flash_mla_sparse_fwd=lambda **_: sys.exit(1)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(implementations.inspect, "signature", lambda _: SimpleNamespace(parameters=SPARSE_ARGUMENTS))
    problem = Problem(**{**PEERS.fields, **change})
    with pytest.raises(Unsupported, match=reason):
        implementations.get("flash_mla").bind(problem, inputs.make(problem, 0, CPU))
    with pytest.raises(Unsupported, match="needs SM100, this GPU is sm_90"):
        implementations.get("flash_mla").bind(DENSE, inputs.make(DENSE, 0, CPU))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("no_such_module:kernel", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("instrument.planted:no_such", "AttributeError: .*no_such"),
        ("instrument.planted:not_callable", "TypeError: .*expected a function, got int"),
    ],
)
def test_a_users_kernel_that_is_none(name: str, reason: str) -> None:
    found = implementations.get(name).unavailable(CPU)
    assert found and re.match(reason, found)


def test_a_users_kernel_serves_the_op_whose_arguments_it_takes() -> None:
    user = implementations.get("instrument.planted:sparse_only")
    made = inputs.make(SPARSE, 0, CPU)
    call = user.bind(SPARSE, made)
    assert verify.Check(SPARSE, made, 0).verdict(call, call.call()).error is None
    with pytest.raises(Unsupported, match="takes no k, v"):
        user.bind(DENSE, inputs.make(DENSE, 0, CPU))
    sink = Problem(**{**SPARSE.fields, "features": "attn_sink"})
    with pytest.raises(Unsupported, match="takes no attn_sink"):
        user.bind(sink, inputs.make(sink, 0, CPU))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of flash_dsa, naive, sdpa, flash_mla or module:function"):
        implementations.get("cudnn")


@pytest.mark.parametrize(
    "error, expected",
    [
        (Unsupported("no"), "unsupported: no"),
        (NotImplementedError("sm70"), "unsupported: NotImplementedError: sm70"),
        (torch.OutOfMemoryError("36 GiB\n\nsee"), "out_of_memory: OutOfMemoryError: 36 GiB see"),
        (RuntimeError(), "failed: RuntimeError"),
        (ValueError("x" * 1000), "failed: ValueError: " + "x" * 297 + "..."),
    ],
)
def test_errors_become_reasons(error: Exception, expected: str) -> None:
    assert errors.error_of(error) == expected
