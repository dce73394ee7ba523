"""Implementations: what computes an op, to be compared. Each says why when it cannot."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asv_bench import naive
from asv_bench.cases import Problem
from asv_bench.errors import NotInThisVersion, Unsupported, reason_of
from asv_bench.inputs import Inputs


@dataclass(frozen=True)
class BoundCall:
    """An implementation with its inputs: one `call()` issues one launch.

    Args:
        call: returns out, or a tuple that begins with out.
        backend: what serves it: a target, or a library's choice.
        names: what the elements of the returned tuple are, as far as they are checked (`out`, `max_logits`, `lse`).
    """

    call: Callable[[], Any]
    backend: str
    names: tuple[str, ...] = ("out",)

    def outputs(self, result: Any) -> dict[str, torch.Tensor]:
        """The tensors of what `call` returned, by name: out [s_q, h_q, d_v], max_logits and lse [s_q, h_q]."""
        values = result if isinstance(result, (tuple, list)) else (result,)
        named = dict(zip(self.names, values, strict=False))
        wrong = [name for name, value in named.items() if not isinstance(value, torch.Tensor)]
        if wrong or "out" not in named:
            got = type(values[0]).__name__ if values else "nothing"
            raise TypeError(f"{', '.join(wrong) or 'out'}: expected a tensor, got {got}")
        return named


class Implementation(ABC):
    """Something that computes an op.

    Args:
        name: as in records.
    """

    name: str

    def unavailable(self, device: torch.device) -> str | None:
        """Why nothing can be run on this device, or None."""
        return None

    @abstractmethod
    def bind(self, problem: Problem, inputs: Inputs) -> BoundCall:
        """Prepares a call.

        Args:
            problem: what to compute. inputs: its tensors.
        Raises:
            Unsupported: with the reason.
        """


class FlashDsa(Implementation):
    """This project's kernels, through their public calls."""

    name = "flash_dsa"

    def unavailable(self, device: torch.device) -> str | None:
        """Not importable, or no target serves the device."""
        try:
            flash_dsa = importlib.import_module("flash_dsa")
            flash_dsa.target_of(device)
        except Exception as error:
            return reason_of(error)
        return None

    def bind(self, problem: Problem, inputs: Inputs) -> BoundCall:
        """Sparse writes into an `out` made once; dense allocates."""
        flash_dsa = importlib.import_module("flash_dsa")
        backend = flash_dsa.target_of(inputs.device)
        name = "flash_attn_varlen_func" if problem.op == "dense_fwd" else "flash_mla_sparse_fwd"
        function = getattr(flash_dsa, name, None)
        if function is None:
            raise NotInThisVersion(f"flash_dsa {flash_dsa.__version__} has no {name}")
        if problem.op == "dense_fwd":
            return BoundCall(functools.partial(function, **inputs.arguments), backend, ("out", "lse"))
        q = inputs.arguments["q"]
        out = torch.full((problem.s_q, problem.h_q, problem.d_v), float("nan"), dtype=q.dtype, device=q.device)
        return BoundCall(
            functools.partial(function, **inputs.arguments, out=out), backend, ("out", "max_logits", "lse")
        )


class Naive(Implementation):
    """The seed's algorithm in plain torch at the kernel's precision."""

    name = "naive"

    def bind(self, problem: Problem, inputs: Inputs) -> BoundCall:
        """Dense is timed up to naive.DENSE_KEYS_MAX keys."""
        if problem.op == "sparse_fwd":
            return BoundCall(functools.partial(naive.sparse_fwd, **inputs.arguments), "torch")
        if problem.s_kv > naive.DENSE_KEYS_MAX:
            raise Unsupported(f"naive dense is timed up to s_kv {naive.DENSE_KEYS_MAX}")
        args = inputs.arguments
        call = functools.partial(
            naive.dense_fwd, args["q"], args["k"], args["v"], args["softmax_scale"], args["causal"]
        )
        return BoundCall(call, "torch")


class Sdpa(Implementation):
    """torch's scaled_dot_product_attention, dense only, by the best backend that accepts the problem."""

    name = "sdpa"
    _EFFICIENT_ELEMENTS = 2**31 - 1  # of a tensor; the mem-efficient kernel of torch 2.11 counts them in 32 bits
    _BACKENDS = (
        ("cudnn", "CUDNN_ATTENTION"),
        ("flash", "FLASH_ATTENTION"),
        ("efficient", "EFFICIENT_ATTENTION"),
        ("math", "MATH"),
    )

    def bind(self, problem: Problem, inputs: Inputs) -> BoundCall:
        """Tries backends in order on these inputs; the first that runs serves."""
        if problem.op != "dense_fwd":
            raise Unsupported("scaled_dot_product_attention has no sparse indices")
        refused = []
        for name, enum_name in self._BACKENDS:
            call = self._call(problem, inputs, name, enum_name)
            reason = call if isinstance(call, str) else _refusal(call, inputs.device)
            if reason is None and not isinstance(call, str):
                return BoundCall(call, name)
            refused.append(f"{name}: {reason}")
        raise Unsupported("no backend accepts the problem: " + "; ".join(refused))

    def _call(self, problem: Problem, inputs: Inputs, name: str, enum_name: str) -> Callable[[], Any] | str:
        """The launch by one backend, or why it is not tried."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        backend = getattr(SDPBackend, enum_name)
        args = inputs.arguments
        q, k, v = (args[key].transpose(0, 1).unsqueeze(0) for key in ("q", "k", "v"))  # [1, heads, tokens, d]
        if name == "efficient" and max(tensor.numel() for tensor in (q, k, v)) > self._EFFICIENT_ELEMENTS:
            return "wrong answers from 2^31 elements on, then illegal accesses (seen with torch 2.11)"
        options: dict[str, Any] = {"scale": args["softmax_scale"]}
        if problem.h_kv != problem.h_q:
            if name == "efficient":  # takes no enable_gqa: heads are repeated once, before anything is timed
                k, v = (_repeat_heads(tensor, problem.h_q) for tensor in (k, v))
            else:
                options["enable_gqa"] = True
        if problem.causal and problem.s_q == problem.s_kv:
            options["is_causal"] = True
        elif problem.causal:
            # is_causal is aligned top-left. Lower-right alignment is native only in flash and efficient.
            if name == "cudnn":
                return "no bottom-right aligned causal mask"
            if problem.s_q > problem.s_kv:
                return "rows without any visible key give NaN"
            if name == "math":
                rows = torch.arange(problem.s_q, device=q.device).unsqueeze(1) + (problem.s_kv - problem.s_q)
                options["attn_mask"] = torch.arange(problem.s_kv, device=q.device) <= rows
            else:
                from torch.nn.attention.bias import causal_lower_right

                options["attn_mask"] = causal_lower_right(problem.s_q, problem.s_kv)

        def launch() -> torch.Tensor:
            with sdpa_kernel([backend]):
                out: torch.Tensor = scaled_dot_product_attention(q, k, v, **options)
            return out.squeeze(0).transpose(0, 1)  # [s_q, h_q, d_v], a view

        return launch


class FlashMla(Implementation):
    """The optional peer: the wheel `sgl-flash-mla` or upstream, whose module is `flash_mla`."""

    name = "flash_mla"

    def unavailable(self, device: torch.device) -> str | None:
        """Not a CUDA device, or not importable."""
        if device.type != "cuda":
            return "flash_mla runs on CUDA only"
        try:
            importlib.import_module("flash_mla")
        except Exception as error:
            return f"{reason_of(error)} (pip install --no-deps sgl-flash-mla)"
        return None

    def bind(self, problem: Problem, inputs: Inputs) -> BoundCall:
        """Limits it is known to meet with `exit()` or not at all are refused here; others it tells when called."""
        module = importlib.import_module("flash_mla")
        backend = f"flash_mla {getattr(module, '__version__', 'unknown')}"
        major, minor = torch.cuda.get_device_capability(inputs.device)
        if problem.op == "dense_fwd":
            if major != 10:
                raise Unsupported(f"flash_mla's dense prefill needs SM100, this GPU is sm_{major}{minor}")
            return BoundCall(functools.partial(module.flash_attn_varlen_func, **inputs.arguments), backend)
        function = module.flash_mla_sparse_fwd
        accepted = inspect.signature(function).parameters
        missing = [name for name in inputs.arguments if name not in accepted]
        if missing:
            raise Unsupported(f"flash_mla_sparse_fwd takes no {', '.join(missing)}")
        options: dict[str, Any] = {}
        if problem.h_q not in (64, 128) or (problem.topk or 0) % 128:
            raise Unsupported("flash_mla takes 64 or 128 heads and topk in multiples of 128")
        if "use_legacy" in accepted and major == 9:
            options["use_legacy"] = True  # SM90 lives on in the wheel's legacy half only
        return BoundCall(functools.partial(function, **inputs.arguments, **options), backend)


class User(Implementation):
    """A user's kernel, named `module:function`.

    The function receives the keyword arguments of our public call of the op it takes: for `sparse_fwd` q, kv, indices,
    sm_scale, d_v (and attn_sink, topk_length where the case has them); for `dense_fwd` q, k, v, cu_seqlens_qo,
    cu_seqlens_kv, max_seqlen_qo, max_seqlen_kv, softmax_scale, causal. It returns out [s_q, h_q, d_v], or a tuple that
    begins with it; out is checked like ours.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def _load(self) -> Callable[..., Any]:
        module, _, attribute = self.name.partition(":")
        target: Any = importlib.import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
        if not callable(target):
            raise TypeError(f"{self.name}: expected a function, got {type(target).__name__}")
        return target  # type: ignore[no-any-return]

    def unavailable(self, device: torch.device) -> str | None:
        """Not importable, or no function."""
        try:
            self._load()
        except (Exception, SystemExit) as error:
            return reason_of(error)
        return None

    def bind(self, problem: Problem, inputs: Inputs) -> BoundCall:
        """Refuses the op whose argument names the function does not take."""
        function = self._load()
        with contextlib.suppress(ValueError):  # builtins have no signature: then it is simply tried
            parameters = inspect.signature(function).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                missing = [name for name in inputs.arguments if name not in parameters]
                if missing:
                    raise Unsupported(f"{self.name} takes no {', '.join(missing)}")

        return BoundCall(functools.partial(function, **inputs.arguments), "user")


_BUILT_IN: tuple[type[Implementation], ...] = (FlashDsa, Naive, Sdpa, FlashMla)


def names() -> tuple[str, ...]:
    """Names of the built-in implementations."""
    return tuple(kind.name for kind in _BUILT_IN)


def get(name: str) -> Implementation:
    """The implementation with this name.

    Args:
        name: of `names()`, or `module:function`.
    Raises:
        ValueError: for any other.
    """
    for kind in _BUILT_IN:
        if kind.name == name:
            return kind()
    if ":" in name:
        return User(name)
    raise ValueError(f"implementation: expected one of {', '.join(names())} or module:function, got {name!r}")


def _repeat_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    batch, h_kv, tokens, dim = tensor.shape
    repeated = tensor.unsqueeze(2).expand(batch, h_kv, heads // h_kv, tokens, dim)
    return repeated.reshape(batch, heads, tokens, dim)


def _refusal(call: Callable[[], Any], device: torch.device) -> str | None:
    """Why a backend refuses, from its exception and the warnings torch gives as explanation; None if it runs.

    Raises:
        RuntimeError: what the backend raised, when the device does not answer any more: no other can be tried.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
            _synchronize(device)
        except Exception as error:
            try:
                _synchronize(device)
            except RuntimeError:
                raise error from None
            said = [str(warning.message).split(" (Triggered")[0] for warning in caught]
            return _join([reason_of(error), *said[:2]])
    return None


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _join(parts: Sequence[str]) -> str:
    return " / ".join(" ".join(part.split())[:200] for part in parts)
