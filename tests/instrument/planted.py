"""Kernels planted as `instrument.planted:<function>`: right, wrong and broken ones, and one that waits to be killed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from flash_dsa import reference


def right(**arguments: Any) -> torch.Tensor:
    """The definition itself, whichever op is asked for."""
    if "indices" in arguments:
        out = reference.sparse_fwd(**arguments, dtype=torch.float32)[0]
    else:
        kept = {name: value for name, value in arguments.items() if not name.startswith("max_seqlen")}
        out = reference.dense_fwd(**kept, dtype=torch.float32)[0]
    return out.to(torch.bfloat16)


def scaled(**arguments: Any) -> torch.Tensor:
    """One per cent too large: inside the elementwise tolerances, caught by the cosine difference."""
    return (right(**arguments).float() * 1.01).to(torch.bfloat16)


def one_row_wrong(**arguments: Any) -> torch.Tensor:
    """Right but for the last query."""
    out = right(**arguments)
    out[-1] = out[-1].flip(-1)
    return out


def not_written(**arguments: Any) -> torch.Tensor:
    """Returns fresh memory in which the last query was forgotten."""
    out = torch.full_like(right(**arguments), float("nan"))
    out[:-1] = right(**arguments)[:-1]
    return out


_computed: dict[int, torch.Tensor] = {}


def computed_once(**arguments: Any) -> torch.Tensor:
    """Computes its first launch and hands that result out ever after: fast, and right unless somebody poisons it."""
    key = id(arguments["q"])
    if key not in _computed:
        _computed.clear()
        _computed[key] = right(**arguments)
    return _computed[key]


_remembered: dict[tuple[object, ...], torch.Tensor] = {}


def remembered(what: str, arguments: dict[str, Any], value: Any) -> torch.Tensor:
    """The tensor that `value()` was when it was first asked for with these very arguments, by their addresses."""
    shapes = [(tensor.data_ptr(), tensor.shape) for tensor in arguments.values() if isinstance(tensor, torch.Tensor)]
    return _remembered.setdefault((what, *shapes), value().clone())


def remembers_a_copy(**arguments: Any) -> torch.Tensor:
    """Computes its first launch and hands out copies of it, which poisoning does not reach."""
    return remembered("out", arguments, lambda: right(**arguments)).clone()


def remembers_its_keys(**arguments: Any) -> torch.Tensor:
    """As if keys were converted once and the conversion kept: right for any queries over the keys it saw first."""
    return right(**{**arguments, "kv": remembered("kv", arguments, lambda: arguments["kv"])})


def remembers_its_indices(**arguments: Any) -> torch.Tensor:
    """As if indices were sorted once and the order kept."""
    return right(**{**arguments, "indices": remembered("indices", arguments, lambda: arguments["indices"])})


def sorts_its_input(**arguments: Any) -> torch.Tensor:
    """Puts its keys in another order: no sum of them changes."""
    arguments["kv"].copy_(arguments["kv"].flip(0))
    return right(**arguments)


def zeroes_its_input(**arguments: Any) -> torch.Tensor:
    """Right for what it made of its input, which the others are given too."""
    arguments["kv"].zero_()
    return right(**arguments)


def empty_tuple(**arguments: Any) -> tuple[()]:
    return ()


def on_the_meta_device(**arguments: Any) -> torch.Tensor:
    return right(**arguments).to("meta")


def complex_numbers(**arguments: Any) -> torch.Tensor:
    return right(**arguments).to(torch.complex64)


def view_of_input(**arguments: Any) -> torch.Tensor:
    """Returns memory of its own input, which poisoning must not touch."""
    return arguments["q"][:, :, : arguments.get("d_v", 128)]


def wrong_shape(**arguments: Any) -> torch.Tensor:
    """Forgets the last query altogether."""
    return right(**arguments)[:-1]


def nothing(**arguments: Any) -> None:
    """Returns no tensor."""


def out_of_memory(**arguments: Any) -> torch.Tensor:
    """Fails as CUDA's allocator does."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 36.50 GiB.\nSee documentation")


def broken(**arguments: Any) -> torch.Tensor:
    """Fails in a way of its own."""
    raise RuntimeError("tile <b>expected</b> 64, got 63")


def sparse_only(q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, sm_scale: float, d_v: int) -> torch.Tensor:
    """Takes the arguments of sparse_fwd without features."""
    return right(q=q, kv=kv, indices=indices, sm_scale=sm_scale, d_v=d_v)


def hangs_on_dense(**arguments: Any) -> torch.Tensor:
    """Right, but the first dense call of a test waits, so that the test can kill the process in it."""
    if "k" in arguments and os.environ.get("PLANTED_HANG"):
        Path(os.environ["PLANTED_HANG"]).write_text("waiting")
        time.sleep(60)
    return right(**arguments)


def interrupts_on_dense(**arguments: Any) -> torch.Tensor:
    """Right, but a dense call behaves as if Ctrl-C had been pressed in it."""
    if "k" in arguments:
        raise KeyboardInterrupt
    return right(**arguments)


not_callable = 3


def exits(**arguments: Any) -> torch.Tensor:
    """Asks for the end of the process."""
    raise SystemExit(0)


_launches = iter(range(1_000_000))


def ends_the_process_late(**arguments: Any) -> torch.Tensor:
    """Right in its first launches; then the process is gone without a word, as after exit() in C."""
    if next(_launches) == 6:
        os._exit(0)
    return right(**arguments)
