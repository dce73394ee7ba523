"""Code fingerprints: what the compiler made of each kernel, and whether two builds are the same code.

A fingerprint is a plain dict, made at build time:

    {"host": hash, "kernels": {"sm90a/name": {"op": "sparse_fwd", "sass": hash, "registers": 168, "spill_bytes": 0,
                                              "shared_bytes": 231424}}}

`host` is the hash of what surrounds the kernels: host sources, launch configuration, the package's Python. `sass` is
that of the machine code without symbol hashes and line info. `op` is None for a kernel that several ops share. A key
that a target does not know is None. Paths and dates belong in none of it: two folders must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Fingerprint = Mapping[str, Any]
FIGURES = ("registers", "spill_bytes", "shared_bytes")


@dataclass(frozen=True)
class Difference:
    """A kernel that is not the same on both sides.

    Args:
        kernel, target: which. change: `added`, `removed` or `changed`.
        figures: registers, spill bytes and shared memory bytes as (base, head), None where unknown.
        sass: the hashes of the machine code as (base, head), None where unknown.
    """

    kernel: str
    target: str
    change: str
    figures: Mapping[str, tuple[int | None, int | None]]
    sass: tuple[str | None, str | None]


def same_code(base: Fingerprint | None, head: Fingerprint | None, target: str | None, op: str | None) -> bool:
    """Whether both sides run the same code for an op on a target.

    What is not known is never the same: without a fingerprint, a hash or any kernel of that target the answer is no.

    Args:
        base, head: fingerprints. target: what serves the case, such as `sm90a`. op: of the case, such as `sparse_fwd`.
    """
    if base is None or head is None or target is None:
        return False
    if not base.get("host") or base.get("host") != head.get("host"):
        return False
    ours, theirs = _hashes(base, target, op), _hashes(head, target, op)
    return bool(ours) and None not in ours.values() and ours == theirs


def differences(base: Fingerprint | None, head: Fingerprint | None) -> list[Difference]:
    """Kernels of every target that differ, by target and name; none where a side has no fingerprint."""
    if base is None or head is None:
        return []
    ours, theirs = kernels_of(base), kernels_of(head)
    found = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if a is None or b is None or a.get("sass") != b.get("sass") or figures_of(a) != figures_of(b):
            change = "added" if a is None else "removed" if b is None else "changed"
            figures = {name: (figures_of(a)[name], figures_of(b)[name]) for name in FIGURES}
            target, _, kernel = key.partition("/")
            found.append(Difference(kernel, target, change, figures, (sass_of(a), sass_of(b))))
    return found


def count_of_kernels(fingerprint: Fingerprint | None) -> int:
    """How many kernels a fingerprint knows, over all targets."""
    return len(kernels_of(fingerprint)) if fingerprint is not None else 0


def kernels_of(fingerprint: Fingerprint) -> dict[str, Mapping[str, Any]]:
    """The kernels of a fingerprint by target and name; what is damaged is left out."""
    kernels = fingerprint.get("kernels")
    if not isinstance(kernels, Mapping):
        return {}
    return {str(key): kernel for key, kernel in kernels.items() if isinstance(kernel, Mapping)}


def _hashes(fingerprint: Fingerprint, target: str, op: str | None) -> dict[str, Any]:
    return {
        key: sass_of(kernel)
        for key, kernel in kernels_of(fingerprint).items()
        if key.partition("/")[0] == target and (op is None or kernel.get("op") in (op, None))
    }


def sass_of(kernel: Mapping[str, Any] | None) -> str | None:
    """Hash of a kernel's machine code; None where unknown."""
    value = kernel.get("sass") if kernel else None
    return value if isinstance(value, str) and value else None


def figures_of(kernel: Mapping[str, Any] | None) -> dict[str, int | None]:
    """Registers, spill bytes and shared memory bytes of a kernel; None where unknown."""
    values = {name: kernel.get(name) if kernel else None for name in FIGURES}
    return {name: value if type(value) is int and 0 <= value < 1 << 32 else None for name, value in values.items()}
