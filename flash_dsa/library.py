"""Loads the compiled library, registers its ops with torch and says what it holds."""

from __future__ import annotations

import ctypes
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
    library = ctypes.CDLL(str(path))
    library.flash_dsa_target_of.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.flash_dsa_compiled_targets.restype = ctypes.c_char_p
    return library


_library = _load(LIBRARY_PATH)


def compiled_targets() -> str:
    """Name the targets in this library, with the GPU architectures each was compiled for.

    Returns:
        For example ``"cpu, sm80 (80 90 100 120)"``.
    """
    text: bytes = _library.flash_dsa_compiled_targets()
    return text.decode()


def target_of(device: torch.device | str) -> str:
    """Name the target that serves tensors on `device`.

    Args:
        device: a CPU or CUDA device; a CUDA device without an index means the current one.

    Returns:
        ``"cpu"`` or ``"sm80"``.

    Raises:
        NotImplementedError: nothing compiled serves the device; says what it is and what was compiled.
    """
    device = torch.device(device)
    if device.type == "cpu":
        index = -1
    elif device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
    else:
        raise NotImplementedError(f"no target serves {device.type} devices; compiled: {compiled_targets()}")
    text = ctypes.create_string_buffer(512)
    if _library.flash_dsa_target_of(index, text, len(text)) != 0:
        raise NotImplementedError(text.value.decode().removeprefix(UNSUPPORTED))
    return text.value.decode()
