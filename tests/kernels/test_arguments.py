"""Every check names the argument, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import flash_dsa


def sparse_arguments(device: torch.device) -> dict[str, Any]:
    return {
        "q": torch.zeros(4, 8, 576, dtype=torch.bfloat16, device=device),
        "kv": torch.zeros(20, 1, 576, dtype=torch.bfloat16, device=device),
        "indices": torch.zeros(4, 1, 16, dtype=torch.int32, device=device),
        "sm_scale": 0.1,
        "attn_sink": torch.zeros(8, device=device),
        "topk_length": torch.zeros(4, dtype=torch.int32, device=device),
        "out": torch.empty(4, 8, 512, dtype=torch.bfloat16, device=device),
    }


def dense_arguments(device: torch.device) -> dict[str, Any]:
    starts = torch.tensor([0, 6], dtype=torch.int32, device=device)
    return {
        "q": torch.zeros(6, 4, 192, dtype=torch.bfloat16, device=device),
        "k": torch.zeros(6, 2, 192, dtype=torch.bfloat16, device=device),
        "v": torch.zeros(6, 2, 128, dtype=torch.bfloat16, device=device),
        "cu_seqlens_qo": starts,
        "cu_seqlens_kv": starts,
        "max_seqlen_qo": 6,
        "max_seqlen_kv": 6,
    }


def sparse_out_arguments(device: torch.device) -> dict[str, Any]:
    given = sparse_arguments(device)
    out = given.pop("out")
    given["d_v"] = 512
    order = ("q", "kv", "indices", "sm_scale", "d_v", "attn_sink", "topk_length")
    places = {"out": out, **{name: torch.empty(4, 8, device=device) for name in ("max_logits", "lse")}}
    return {name: given[name] for name in order} | places


def dense_out_arguments(device: torch.device) -> dict[str, Any]:
    given = dense_arguments(device) | {"softmax_scale": 0.1, "causal": False}
    given["cu_seqlens_kv"] = given["cu_seqlens_kv"].clone()
    out = torch.empty(6, 4, 128, dtype=torch.bfloat16, device=device)
    return given | {"out": out, "lse": torch.empty(6, 4, device=device)}


OUT_VARIANTS = [
    ("sparse_fwd", sparse_out_arguments, ("out", "max_logits", "lse")),
    ("dense_fwd", dense_out_arguments, ("out", "lse")),
]


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape, one element past a 16-byte boundary."""
    flat = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return flat[1:].view(tensor.shape)


def odd_stride(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1, dtype=tensor.dtype, device=tensor.device)
    return wide[..., :-1]


def scattered(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


Change = Callable[[torch.Tensor], Any]


def stretched(dim: int, size: int) -> Change:
    """More elements than any memory holds: a dimension that does not move."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.narrow(dim, 0, 1).expand(*(size if i == dim else -1 for i in range(tensor.dim())))

    return change


SPARSE: list[tuple[str, Change, str]] = [
    ("q", lambda t: t[0], r"`q` expected shape \[s_q, h_q, d_qk\], got \[8, 576\]"),
    ("q", lambda t: t[..., :448], r"`q` expected d_qk 576 or 512, got 448"),
    ("q", lambda t: t[:, :0], r"`q` expected h_q >= 1, got shape \[4, 0, 576\]"),
    ("q", lambda t: t.half(), r"`q` expected dtype bfloat16.*, got float16"),
    ("q", misaligned, r"`q` expected data aligned to 16 bytes, got an address 2 bytes past"),
    ("q", odd_stride, r"`q` expected strides that are multiples of 8 elements \(16 bytes\), got stride 577"),
    ("q", scattered, r"`q` expected stride 1 in its last dimension, got 2"),
    ("kv", lambda t: t[:, 0], r"`kv` expected shape \[s_kv, h_kv, d_qk\], got \[20, 576\]"),
    ("kv", lambda t: t.expand(-1, 2, -1), r"`kv` expected h_kv = 1 in dimension 1, got shape \[20, 2, 576\]"),
    ("kv", lambda t: t[..., :512], r"`kv` expected d_qk = 576 in dimension 2, got shape \[20, 1, 512\]"),
    ("kv", lambda t: t.float(), r"`kv` expected dtype bfloat16, got float32"),
    ("kv", misaligned, r"`kv` expected data aligned to 16 bytes"),
    ("kv", odd_stride, r"`kv` expected strides that are multiples of 8 elements"),
    ("indices", lambda t: t[:, 0], r"`indices` expected shape \[s_q, h_kv, topk\], got \[4, 16\]"),
    ("indices", lambda t: t[:3], r"`indices` expected s_q = 4 in dimension 0, got shape \[3, 1, 16\]"),
    ("indices", lambda t: t.expand(-1, 2, -1), r"`indices` expected h_kv = 1 in dimension 1"),
    ("indices", lambda t: t[..., :0], r"`indices` expected topk >= 1, got shape \[4, 1, 0\]"),
    ("indices", lambda t: t.long(), r"`indices` expected dtype int32, got int64"),
    ("indices", scattered, r"`indices` expected stride 1 in its last dimension, got 2"),
    ("sm_scale", lambda _: 0.0, r"`sm_scale` expected a finite number > 0, got 0"),
    ("sm_scale", lambda _: -1.0, r"`sm_scale` expected a finite number > 0, got -1"),
    ("sm_scale", lambda _: float("nan"), r"`sm_scale` expected a finite number > 0, got -?nan"),
    ("sm_scale", lambda _: float("inf"), r"`sm_scale` expected a finite number > 0, got inf"),
    ("sm_scale", lambda _: 1e300, r"`sm_scale` expected a finite number > 0, got 1e\+300"),
    ("d_v", lambda _: 256, r"`d_v` expected 512, got 256"),
    ("attn_sink", lambda t: t[:7], r"`attn_sink` expected shape \[h_q\] = \[8\], got \[7\]"),
    ("attn_sink", lambda t: t.bfloat16(), r"`attn_sink` expected dtype float32, got bfloat16"),
    ("attn_sink", scattered, r"`attn_sink` expected a contiguous tensor"),
    ("topk_length", lambda t: t[:3], r"`topk_length` expected shape \[s_q\] = \[4\], got \[3\]"),
    ("topk_length", lambda t: t.long(), r"`topk_length` expected dtype int32, got int64"),
    ("out", lambda t: t[:3], r"`out` expected shape \[s_q, h_q, d_v\] = \[4, 8, 512\], got \[3, 8, 512\]"),
    ("out", lambda t: t.float(), r"`out` expected dtype bfloat16, got float32"),
    ("out", lambda t: t[:1].expand(4, -1, -1), r"`out` expected memory of its own .*with strides \[0, 512, 1\]"),
    ("out", lambda t: t.as_strided(t.shape, (2048, 256, 1)), r"`out` expected memory of its own for every element"),
    ("out", lambda t: t.as_strided(t.shape, (2048, 512, 1)), r"`out` expected memory .*, got shape \[4, 8, 512\] with"),
    ("out", odd_stride, r"`out` expected strides that are multiples of 8 elements"),
    ("out", misaligned, r"`out` expected data aligned to 16 bytes"),
    ("out", scattered, r"`out` expected stride 1 in its last dimension, got 2"),
    ("kv", scattered, r"`kv` expected stride 1 in its last dimension, got 2"),
    ("topk_length", scattered, r"`topk_length` expected a contiguous tensor"),
    ("q", stretched(1, 2**30 + 1), r"`q` expected h_q <= 1073741824 in dimension 1, got shape \[4, 1073741825, 576\]"),
    ("q", stretched(1, 2**32 + 8), r"`q` expected h_q <= 1073741824 in dimension 1, got shape \[4, 4294967304, 576\]"),
    ("indices", stretched(2, 2**30 + 1), r"`indices` expected topk <= 1073741824 in dimension 2"),
    ("indices", stretched(2, 2**32 + 16), r"`indices` expected topk <= 1073741824 in dimension 2"),
    ("indices", stretched(0, 2**32 + 4), r"`indices` expected s_q = 4 in dimension 0, got shape \[4294967300, 1, 16\]"),
]

DENSE: list[tuple[str, Change, str]] = [
    ("q", lambda t: t[0], r"`q` expected shape \[tot_q, h_q, d_qk\], got \[4, 192\]"),
    ("q", lambda t: t[:, :3], r"`q` expected h_q to be a multiple of h_kv, both >= 1, got h_q = 3, h_kv = 2"),
    ("q", lambda t: t[..., :64], r"expected \(d_qk, d_v\) = \(192, 128\), .* got \(64, 128\)"),
    ("q", lambda t: t.half(), r"`q` expected dtype bfloat16.*, got float16"),
    ("q", misaligned, r"`q` expected data aligned to 16 bytes"),
    ("k", lambda t: t[0], r"`k` expected shape \[tot_kv, h_kv, d_qk\], got \[2, 192\]"),
    ("k", lambda t: t[..., :128], r"`k` expected d_qk = 192 in dimension 2"),
    ("k", lambda t: t.float(), r"`k` expected dtype bfloat16, got float32"),
    ("k", odd_stride, r"`k` expected strides that are multiples of 8 elements"),
    ("v", lambda t: t[:5], r"`v` expected tot_kv = 6 in dimension 0, got shape \[5, 2, 128\]"),
    ("v", lambda t: t[:, :1], r"`v` expected h_kv = 2 in dimension 1"),
    ("v", scattered, r"`v` expected stride 1 in its last dimension, got 2"),
    ("cu_seqlens_qo", lambda t: t.long(), r"`cu_seqlens_qo` expected dtype int32, got int64"),
    ("cu_seqlens_qo", lambda t: t[:0], r"`cu_seqlens_qo` expected shape \[batch \+ 1\], got \[0\]"),
    ("cu_seqlens_qo", lambda t: t[None], r"`cu_seqlens_qo` expected shape \[batch \+ 1\], got \[1, 2\]"),
    ("cu_seqlens_kv", lambda t: t[:1], r"`cu_seqlens_kv` expected batch \+ 1 = 2 in dimension 0, got shape \[1\]"),
    ("cu_seqlens_kv", scattered, r"`cu_seqlens_kv` expected a contiguous tensor"),
    ("max_seqlen_qo", lambda _: -1, r"`max_seqlen_qo` expected a number >= 0, got -1"),
    ("max_seqlen_kv", lambda _: -2, r"`max_seqlen_kv` expected a number >= 0, got -2"),
    ("k", misaligned, r"`k` expected data aligned to 16 bytes"),
    ("v", misaligned, r"`v` expected data aligned to 16 bytes"),
    ("k", lambda t: t[:, :0], r"`v` expected h_kv = 0 in dimension 1, got shape \[6, 2, 128\]"),
    ("cu_seqlens_kv", lambda t: t.long(), r"`cu_seqlens_kv` expected dtype int32, got int64"),
    ("q", stretched(0, 2**32 + 6), r"`q` expected tot_q <= 1073741824 in dimension 0"),
    ("q", stretched(1, 2**32 + 4), r"`q` expected h_q <= 1073741824 in dimension 1"),
    ("k", stretched(0, 2**31), r"`k` expected tot_kv <= 1073741824 in dimension 0, got shape \[2147483648, 2, 192\]"),
    ("k", stretched(1, 2**32 + 2), r"`k` expected h_kv <= 1073741824 in dimension 1"),
    ("v", stretched(1, 2**32 + 2), r"`v` expected h_kv = 2 in dimension 1"),
    ("cu_seqlens_qo", stretched(0, 2**32 + 2), r"`cu_seqlens_qo` expected batch \+ 1 <= 1073741824 in dimension 0"),
    ("cu_seqlens_kv", stretched(0, 2**32 + 2), r"`cu_seqlens_kv` expected batch \+ 1 <= 1073741824 in dimension 0"),
    ("softmax_scale", lambda _: -0.5, r"`softmax_scale` expected a finite number > 0, got -0.5"),
]


@pytest.mark.parametrize(("name", "change", "message"), SPARSE)
def test_sparse_fwd_says_what_is_wrong(plain_device: torch.device, name: str, change: Change, message: str) -> None:
    arguments = sparse_arguments(plain_device)
    arguments[name] = change(arguments.get(name))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="sparse_fwd: .*" + message):
        flash_dsa.flash_mla_sparse_fwd(**arguments)


@pytest.mark.parametrize(("name", "change", "message"), DENSE)
def test_dense_fwd_says_what_is_wrong(plain_device: torch.device, name: str, change: Change, message: str) -> None:
    arguments = dense_arguments(plain_device)
    arguments[name] = change(arguments.get(name))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="dense_fwd: .*" + message):
        flash_dsa.flash_attn_varlen_func(**arguments)


@pytest.mark.parametrize("name", ["out", "lse"])
def test_dense_fwd_checks_where_it_writes(plain_device: torch.device, name: str) -> None:
    arguments = dense_arguments(plain_device)
    wrong = torch.empty(5, 4, device=plain_device, dtype=torch.bfloat16 if name == "out" else torch.float32)
    with pytest.raises(RuntimeError, match=f"dense_fwd: `{name}` expected shape"):
        flash_dsa._flash_attn_varlen_forward(**arguments, **{name: wrong})


OUTPUTS: list[tuple[str, Change, str]] = [
    ("out", lambda t: t.float(), "expected dtype bfloat16, got float32"),
    ("out", misaligned, "expected data aligned to 16 bytes"),
    ("out", lambda t: t[:1].expand(6, -1, -1), "expected memory of its own for every element"),
    ("lse", lambda t: t.double(), "expected dtype float32, got float64"),
    ("out", lambda t: t.as_strided(t.shape, (512, 64, 1)), "expected memory of its own for every element"),
    ("lse", lambda t: t[:1].expand(6, -1), "expected memory of its own for every element"),
    ("lse", lambda t: t.as_strided(t.shape, (1, 1)), "expected memory of its own for every element"),
    ("lse", lambda t: t.as_strided(t.shape, (3, 1)), "expected memory of its own for every element"),
]


@pytest.mark.parametrize(("name", "change", "message"), OUTPUTS)
def test_dense_fwd_out_says_what_is_wrong(plain_device: torch.device, name: str, change: Change, message: str) -> None:
    arguments = dense_arguments(plain_device)
    places = {
        "out": torch.empty(6, 4, 128, dtype=torch.bfloat16, device=plain_device),
        "lse": torch.empty(6, 4, device=plain_device),
    }
    places[name] = change(places[name])
    with pytest.raises(RuntimeError, match=f"dense_fwd: `{name}` {message}"):
        flash_dsa._flash_attn_varlen_forward(**arguments, **places)


STATISTICS: list[tuple[Change, str]] = [
    (lambda t: t[:3], r"expected shape \[s_q, h_q\] = \[4, 8\], got \[3, 8\]"),
    (lambda t: t.double(), "expected dtype float32, got float64"),
    (scattered, "expected a contiguous tensor"),
]


@pytest.mark.parametrize("name", ["max_logits", "lse"])
@pytest.mark.parametrize(("change", "message"), STATISTICS)
def test_sparse_fwd_out_says_what_is_wrong(plain_device: torch.device, name: str, change: Change, message: str) -> None:
    given = sparse_arguments(plain_device)
    places = {key: torch.empty(4, 8, device=plain_device) for key in ("max_logits", "lse")}
    places[name] = change(places[name])
    leading = [given[key] for key in ("q", "kv", "indices", "sm_scale")]
    with pytest.raises(RuntimeError, match=f"sparse_fwd: `{name}` {message}"):
        torch.ops.flash_dsa.sparse_fwd_out(*leading, 512, None, None, given["out"], places["max_logits"], places["lse"])


# What the fake kernels leave to the ops themselves.
NOT_A_SHAPE = re.compile("dtype|aligned|stride|contiguous|finite|memory|number >= 0")
WRONG_CALLS = [
    pytest.param(call, make, name, change, id=f"{call.__name__}-{name}-{message}")
    for call, make, table in (
        (flash_dsa.flash_mla_sparse_fwd, sparse_arguments, SPARSE),
        (flash_dsa.flash_attn_varlen_func, dense_arguments, DENSE),
    )
    for name, change, message in table
]


def same_on(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The tensors among them on the meta device, or as fakes of themselves."""
    mode = FakeTensorMode()
    moved = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            value = value.to("meta") if kind == "meta" else mode.from_tensor(value)
        moved[name] = value
    return moved


def refusal(call: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    try:
        call(**arguments)
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize(("call", "make", "name", "change"), WRONG_CALLS)
def test_fakes_speak_of_shapes_as_the_ops_do(
    call: Callable[..., Any], make: Callable[[torch.device], dict[str, Any]], name: str, change: Change, kind: str
) -> None:
    """The whole message where a shape is wrong; no objection where it is something else."""
    arguments = make(torch.device("cpu"))
    arguments[name] = change(arguments.get(name))  # type: ignore[arg-type]
    message = refusal(call, arguments)
    assert message is not None
    assert refusal(call, same_on(kind, arguments)) == (None if NOT_A_SHAPE.search(message) else message)


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_fakes_check_the_shapes_of_results(kind: str) -> None:
    cpu = torch.device("cpu")
    for op, make, outputs in OUT_VARIANTS:
        run = getattr(torch.ops.flash_dsa, op + "_out")
        call = lambda run=run, **arguments: run(*arguments.values())  # noqa: E731
        assert refusal(call, same_on(kind, make(cpu))) is None
        for name in outputs:
            for change in (lambda t: t[:3], lambda t: t[0], lambda t: t[..., :2]):
                arguments = make(cpu)
                arguments[name] = change(arguments[name])
                message = refusal(call, arguments)
                assert message is not None and f"{op}: `{name}` expected shape" in message
                assert refusal(call, same_on(kind, arguments)) == message


def in_one_storage(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors one after the other in one storage, each from a 16-byte boundary on."""
    places, end = {}, 0
    for name, tensor in tensors.items():
        places[name] = end
        end = -(-(end + tensor.numel() * tensor.element_size()) // 16) * 16
    storage = torch.zeros(end, dtype=torch.uint8, device=next(iter(tensors.values())).device)
    moved = {}
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        moved[name] = storage[places[name] : places[name] + size].view(tensor.dtype).view(tensor.shape)
        moved[name].copy_(tensor)
    return moved


@pytest.mark.parametrize(("op", "make", "outputs"), OUT_VARIANTS)
def test_results_may_share_no_memory_with_another_argument(
    plain_device: torch.device, op: str, make: Callable[[torch.device], dict[str, Any]], outputs: tuple[str, ...]
) -> None:
    run = getattr(torch.ops.flash_dsa, op + "_out")
    arguments = make(plain_device)
    tensors = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    for output in outputs:
        for other in tensors[: tensors.index(output)] + tensors[tensors.index(output) + 1 :]:
            changed, size = dict(arguments), arguments[other].nbytes
            # The output starts at the last 16 bytes of the other tensor, or where there are not as many, at its first.
            last = (size - 1) // 16 * 16
            storage = torch.zeros(last + 16 + arguments[output].nbytes, dtype=torch.uint8, device=plain_device)
            changed[other] = storage[:size].view(arguments[other].dtype).view(arguments[other].shape)
            changed[other].copy_(arguments[other])
            place = storage[last : last + arguments[output].nbytes]
            changed[output] = place.view(arguments[output].dtype).view(arguments[output].shape)
            either = f"`({output}|{other})`"
            message = f"{op}: {either} expected memory outside the span of {either}, got {size - last} bytes within it"
            with pytest.raises(RuntimeError, match=message):
                run(*changed.values())


@pytest.mark.parametrize(("op", "make", "outputs"), OUT_VARIANTS)
def test_results_may_be_neighbours_of_the_other_arguments(
    plain_device: torch.device, op: str, make: Callable[[torch.device], dict[str, Any]], outputs: tuple[str, ...]
) -> None:
    """All arguments in one storage, without a gap where alignment needs none."""
    arguments = make(plain_device)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    getattr(torch.ops.flash_dsa, op + "_out")(*(arguments | in_one_storage(tensors)).values())


def test_the_arguments_above_are_right_before_they_are_changed(plain_device: torch.device) -> None:
    flash_dsa.flash_mla_sparse_fwd(**sparse_arguments(plain_device))
    flash_dsa.flash_attn_varlen_func(**dense_arguments(plain_device))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["kv", "indices", "attn_sink", "topk_length", "out"])
def test_all_tensors_must_be_on_the_device_of_q(name: str) -> None:
    arguments = sparse_arguments(torch.device("cuda"))
    arguments[name] = arguments[name].cpu()
    with pytest.raises(RuntimeError, match=f"`{name}` expected on the device of `q`, cuda:0, got cpu"):
        flash_dsa.flash_mla_sparse_fwd(**arguments)


@pytest.mark.gpu
def test_float32_is_for_the_cpu_alone() -> None:
    arguments = sparse_arguments(torch.device("cuda"))
    arguments["q"], arguments["kv"] = arguments["q"].float(), arguments["kv"].float()
    with pytest.raises(RuntimeError, match="`q` expected dtype bfloat16, got float32"):
        flash_dsa.flash_mla_sparse_fwd(**arguments)


def test_stride_of_a_dimension_of_one_does_not_matter(plain_device: torch.device) -> None:
    arguments = sparse_arguments(plain_device)
    kv = arguments["kv"]
    arguments["kv"] = kv.as_strided(kv.shape, (kv.stride(0), 3, 1))
    flash_dsa.flash_mla_sparse_fwd(**arguments)


def test_what_is_not_provided_says_so() -> None:
    cpu = torch.device("cpu")
    sparse, dense = sparse_arguments(cpu), dense_arguments(cpu)
    sparse["q"].requires_grad_()
    with pytest.raises(NotImplementedError, match="flash_mla_sparse_fwd has no backward"):
        flash_dsa.flash_mla_sparse_fwd(**sparse)
    with torch.no_grad():
        flash_dsa.flash_mla_sparse_fwd(**sparse)
    dense["v"].requires_grad_()
    with pytest.raises(NotImplementedError, match="flash_attn_varlen_func has no backward"):
        flash_dsa.flash_attn_varlen_func(**dense)
    with pytest.raises(NotImplementedError, match=r"dropout_p expected 0\.0, got 0\.1"):
        flash_dsa.flash_attn_varlen_func(**dense_arguments(cpu), dropout_p=0.1)
    with pytest.raises(NotImplementedError, match="get_mla_metadata belongs to decode"):
        flash_dsa.get_mla_metadata()
    with pytest.raises(NotImplementedError, match="flash_mla_with_kvcache is decode"):
        flash_dsa.flash_mla_with_kvcache()


@pytest.mark.parametrize("name", ["kv", "attn_sink", "out"])
def test_no_input_silently_goes_without_its_gradient(name: str) -> None:
    arguments = sparse_arguments(torch.device("cpu"))
    arguments[name].requires_grad_()
    with pytest.raises(NotImplementedError, match="flash_mla_sparse_fwd has no backward"):
        flash_dsa.flash_mla_sparse_fwd(**arguments)


def test_target_of_names_what_serves_a_device() -> None:
    assert flash_dsa.target_of("cpu") == "cpu"
    with pytest.raises(NotImplementedError, match="no target serves mps devices; compiled: cpu"):
        flash_dsa.target_of("mps")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_target_of_a_gpu_with_a_torch_for_the_cpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    message = f"{device} needs a torch built for CUDA, this is {re.escape(torch.__version__)}; compiled: cpu"
    with pytest.raises(NotImplementedError, match=message):
        flash_dsa.target_of(device)


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_target_of_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, device: str, count: int) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(
        NotImplementedError, match=f"{device} is not here: torch .* sees {count} CUDA devices; compiled: "
    ):
        flash_dsa.target_of(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_no_internal_error_of_torch() -> None:
    for device in ("cuda", "cuda:0"):
        with pytest.raises(NotImplementedError, match=f"{device} (needs a torch built for CUDA|is not here: torch)"):
            flash_dsa.target_of(device)


def test_tensors_that_no_target_serves() -> None:
    arguments = sparse_arguments(torch.device("cpu"))
    arguments["q"] = arguments["q"].to_sparse()
    message = r"no target serves tensors on cpu \(torch.sparse_coo\), cpu \(torch.strided\); compiled: cpu"
    with pytest.raises(NotImplementedError, match=message):
        flash_dsa.flash_mla_sparse_fwd(**arguments)
    dense = dense_arguments(torch.device("cpu"))
    dense["k"] = dense["k"].to_sparse()
    with pytest.raises(NotImplementedError, match=message):
        flash_dsa.flash_attn_varlen_func(**dense)


@pytest.mark.gpu
def test_target_of_a_gpu() -> None:
    hopper = torch.cuda.get_device_capability() == (9, 0) and "sm90a" in flash_dsa.compiled_targets()
    assert flash_dsa.target_of("cuda") == ("sm90a" if hopper else "sm80")


@pytest.mark.gpu
@pytest.mark.parametrize("text", ["many", "-1", "0", "98", "99k", "-9223372036854775808"])
def test_a_shared_memory_cap_that_no_tile_fits(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """It used to be ignored below the smallest tile, which ran all the same."""
    monkeypatch.setenv("FLASH_DSA_TEST_SMEM_KB", text)
    cuda = torch.device("cuda")
    message = f"FLASH_DSA_TEST_SMEM_KB expected a number of KiB >= 99, got '{text}'"
    with pytest.raises(RuntimeError, match=message):
        flash_dsa.flash_mla_sparse_fwd(**sparse_arguments(cuda))
    with pytest.raises(RuntimeError, match=message):
        flash_dsa.flash_attn_varlen_func(**dense_arguments(cuda))


@pytest.mark.gpu
@pytest.mark.parametrize("text", ["", "99", "228", "9223372036854775807"])
def test_shared_memory_caps_that_some_tile_fits(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FLASH_DSA_TEST_SMEM_KB", text)
    flash_dsa.flash_mla_sparse_fwd(**sparse_arguments(torch.device("cuda")))
