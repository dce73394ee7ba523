"""Loads the compiled library, registers its ops with torch and says what it holds."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path

import torch

# Marks the one kind of C++ error that means "not on this machine or build" rather than "wrong argument".
UNSUPPORTED = "unsupported here: "

LIBRARY_PATH = Path(__file__).with_name("libflash_dsa.so")


def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise ImportError(
            f"the compiled library {path} is missing: this is flash_dsa's source tree, not an installed package. "
            "Build it in place with `pip install --no-build-isolation -e .`, or leave this folder to use an "
            "installed flash_dsa"
        )
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


_library = _load(LIBRARY_PATH)
# Written by the build beside the library, so it is looked for after it.
__version__: str = importlib.import_module("flash_dsa._build_info").version


def _ask(question: Callable[..., int], *arguments: object) -> str:
    """The text that a C function of the library answers with.

    Raises:
        NotImplementedError, RuntimeError: with the reason, when it has none.
    """
    text = ctypes.create_string_buffer(1024)
    status = question(*arguments, text, len(text))
    answer = text.value.decode()
    if status == 0:
        return answer
    if answer.startswith(UNSUPPORTED):
        raise NotImplementedError(answer.removeprefix(UNSUPPORTED))
    raise RuntimeError(answer)


def compiled_targets() -> str:
    """Name the targets in this library, with the GPU architectures each was compiled for.

    Returns:
        For example ``"cpu, sm80 (80 90 100 120)"``.
    """
    return _ask(_library.flash_dsa_compiled_targets)


def cpu_level() -> str:
    """Name the SIMD level that the cpu target uses in this process.

    Returns:
        ``"generic"``, ``"avx2"``, ``"avx512"`` or ``"avx512_bf16"``.

    Raises:
        RuntimeError: FLASH_DSA_CPU_LEVEL names no level, or one that this CPU lacks.
    """
    return _ask(_library.flash_dsa_cpu_level)


def target_of(device: torch.device | str) -> str:
    """Name the target that serves tensors on `device`.

    Args:
        device: a CPU or CUDA device; a CUDA device without an index means the current one.

    Returns:
        ``"cpu"``, ``"sm80"`` or ``"sm90a"``: the best one; calls it has no kernel for run on ``"sm80"``.

    Raises:
        NotImplementedError: nothing compiled serves the device, or torch does not reach it; says why, and what was
            compiled.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        raise NotImplementedError(f"no target serves {device.type} devices; compiled: {compiled_targets()}")
    if torch.version.cuda is None:
        raise NotImplementedError(
            f"{device} needs a torch built for CUDA, this is {torch.__version__}; compiled: {compiled_targets()}"
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise NotImplementedError(
            f"{device} is not here: torch {torch.__version__} sees {count} CUDA devices; compiled: {compiled_targets()}"
        )
    return _ask(_library.flash_dsa_cuda_target, torch.cuda.current_device() if device.index is None else device.index)
