"""Tolerances, each once, and the comparison that applies them. The instrument and the tests of the kernels share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """What an output may differ from the fp64 reference.

    Args:
        absolute, relative: an element is right when its error is below one of them.
        cosine: limit of 1 - 2 x.y / (x.x + y.y) over all compared elements.
    """

    absolute: float
    relative: float
    cosine: float


_STATISTICS = Tolerance(1e-6, 2.01 / 65536, 1e-7)

# Source: the tolerances of upstream FlashMLA's own suite.
TOLERANCES: dict[str, dict[str, Tolerance]] = {
    "sparse_fwd": {
        "out": Tolerance(8e-4, 3.01 / 128, 7e-6),
        "max_logits": _STATISTICS,
        "lse": _STATISTICS,
    },
    "dense_fwd": {
        "out": Tolerance(1e-3, 8.01 / 128, 7e-6),
        "lse": _STATISTICS,
    },
}


def difference(actual: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance) -> str | None:
    """Why `actual` is not `expected`, or None.

    Args:
        actual: an output. expected: the reference, of the same shape, in float64.
        tolerance: of this output.
    """
    if actual.shape != expected.shape:
        return f"shape expected {list(expected.shape)}, got {list(actual.shape)}"
    actual, expected = actual.to(torch.float64), expected.to(torch.float64)
    for name, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        if not torch.equal(test(actual), test(expected)):
            return f"{int(test(actual).sum())} {name}, expected {int(test(expected).sum())} in given places"
    finite = torch.isfinite(expected)
    x, y = actual[finite], expected[finite]
    error = (x - y).abs()
    wrong = (error >= tolerance.absolute) & (error >= tolerance.relative * y.abs())
    if bool(wrong.any()):
        return f"{int(wrong.sum())} of {x.numel()} elements differ, by up to {float(error.max()):.3g}"
    cosine = cosine_difference(x, y)
    if cosine > tolerance.cosine:
        return f"cosine difference {cosine:.3g}, allowed {tolerance.cosine:.3g}"
    return None


def cosine_difference(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2 x.y / (x.x + y.y): 0 for equal tensors, and it sees a wrong norm as well as a wrong direction."""
    norms = float((x * x + y * y).sum())
    return 1.0 - 2.0 * float((x * y).sum()) / norms if norms > 0 else 0.0


def max_abs_error(actual: torch.Tensor, expected: torch.Tensor) -> float | None:
    """Largest absolute error over finite elements; None if shapes differ or `actual` is not finite where it should."""
    if actual.shape != expected.shape:
        return None
    finite = torch.isfinite(expected)
    error = (actual.to(torch.float64)[finite] - expected.to(torch.float64)[finite]).abs()
    largest = float(error.max()) if error.numel() else 0.0
    return largest if largest < float("inf") else None
