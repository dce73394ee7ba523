"""Verification: rows drawn anew each run, of the very outputs that were timed, against the fp64 reference."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from asv_bench.cases import Problem
from asv_bench.implementations import BoundCall
from asv_bench.inputs import Inputs, alter, make
from asv_bench.numerics import TOLERANCES, difference, max_abs_error

QUERIES = 8  # drawn besides the first and the last
HEADS = 4  # drawn of a dense problem; a sparse one is checked in all heads


@dataclass(frozen=True)
class Verdict:
    """Whether an output is right.

    Args:
        max_abs_err: of out on the checked rows; None where out is not finite.
        error: why it is wrong, or None.
    """

    max_abs_err: float | None
    error: str | None


class Check:
    """The reference on a few rows of a problem, computed once for all implementations.

    Args:
        problem: what was computed. inputs: from what. seed: draws the rows; recorded, new in each run.
    """

    def __init__(self, problem: Problem, inputs: Inputs, seed: int) -> None:
        self.problem = problem
        digest = hashlib.sha256(repr((problem.fields, seed)).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        drawn = torch.randint(0, problem.s_q, (QUERIES,), generator=generator).tolist()
        self.queries: list[int] = sorted({0, problem.s_q - 1, *drawn})
        self.heads: list[int] = list(range(problem.h_q))
        if problem.op == "dense_fwd":
            self.heads = sorted(torch.randperm(problem.h_q, generator=generator)[:HEADS].tolist())
        self._expected = _sparse(problem, inputs, self) if problem.op == "sparse_fwd" else _dense(inputs, self)

    def verdict(self, call: BoundCall, result: Any) -> Verdict:
        """Compares what a call returned, as far as it names its outputs.

        Args:
            call: the call. result: what it returned in the last timed launch.
        """
        try:
            return self._compare(call.outputs(result))
        except Exception as error:  # whatever a kernel returned that cannot even be compared
            return Verdict(None, f"{error}")

    def _compare(self, outputs: dict[str, torch.Tensor]) -> Verdict:
        worst = None
        for name, output in outputs.items():
            tolerance = TOLERANCES[self.problem.op][name]
            tail = [self.problem.d_v] if name == "out" else []
            shape = [self.problem.s_q, self.problem.h_q, *tail]
            if list(output.shape) != shape:
                return Verdict(None, f"{name}: shape expected {shape}, got {list(output.shape)}")
            if not output.is_floating_point():
                return Verdict(None, f"{name}: expected floating point, got {output.dtype}")
            rows = self._rows(output)
            if name == "out":
                worst = max_abs_error(rows, self._expected[name])
            reason = difference(rows, self._expected[name], tolerance)
            if reason:
                return Verdict(worst, f"{name}: {reason}")
        return Verdict(worst, None)

    def _rows(self, output: torch.Tensor) -> torch.Tensor:
        """[queries, heads, ...] of an output [s_q, h_q, ...]."""
        return output[_index(self.queries, output)][:, _index(self.heads, output)]


class Unchanged:
    """Notices a kernel that writes into its inputs, and puts them back.

    Args:
        inputs: what all implementations of a problem are given, as `make` made them or altered once.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._sums = {name: _checksum(tensor) for name, tensor in inputs.tensors.items()}

    def broken(self) -> list[str]:
        """Names of the inputs that have changed since; they are as they were again."""
        changed = [name for name, tensor in self._inputs.tensors.items() if _checksum(tensor) != self._sums[name]]
        if changed:
            fresh = make(self._inputs.problem, self._inputs.seed, self._inputs.device)
            if any(_checksum(fresh.tensors[name]) != self._sums[name] for name in self._sums):
                alter(fresh)
            for name in changed:
                self._inputs.tensors[name].copy_(fresh.tensors[name])
        return changed


_CHECKSUM_CHUNK = 1 << 26  # elements at a time: torch sums 16-bit integers in a 64-bit copy of all of them


def _checksum(tensor: torch.Tensor) -> tuple[int, int]:
    """Sums of the elements' bits by row and by column, weighted by position: elements that trade places change it."""
    words = tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
    words = words.flatten(0, -2) if words.dim() > 1 else words.unsqueeze(0)
    rows, columns = 0, torch.zeros(words.shape[1], dtype=torch.int64, device=words.device)
    for number, chunk in enumerate(words.split(max(1, _CHECKSUM_CHUNK // max(1, words.shape[1])))):
        rows ^= _weighted(chunk.sum(-1)) * (2 * number + 1)
        columns += chunk.sum(0)
    return rows, _weighted(columns)


def _weighted(sums: torch.Tensor) -> int:
    flat = sums.flatten().to(torch.int64)
    # Odd multiples that wrap around: every difference of two weights and of two sums leaves a trace in 64 bits.
    return int((flat * (torch.arange(flat.numel(), device=flat.device) * 0x9E3779B97F4A7C1 | 1)).sum())


def poison(result: Any, inputs: Inputs | None = None) -> None:
    """Fills what a call returned with NaN, so that the next launch must write all of it to be right.

    Outputs an allocating call returned go back to the allocator poisoned, which hands their memory out again.

    Args:
        result: of the last launch.
        inputs: of the calls; a result that shares memory with them, as a user's kernel may return, is left alone.
    """
    tensors = inputs.arguments.values() if inputs else ()
    taboo = {value.untyped_storage().data_ptr() for value in tensors if isinstance(value, torch.Tensor)}
    for value in result if isinstance(result, (tuple, list)) else (result,):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if value.untyped_storage().data_ptr() not in taboo:
            value.fill_(float("nan"))


def _index(values: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _sparse(problem: Problem, inputs: Inputs, check: Check) -> dict[str, torch.Tensor]:
    from flash_dsa import reference

    arguments = dict(inputs.arguments)
    rows = _index(check.queries, arguments["q"])
    for name in ("q", "indices", "topk_length"):
        if name in arguments:
            arguments[name] = arguments[name][rows]
    out, max_logits, lse = reference.sparse_fwd(**arguments, dtype=torch.float64)
    return {"out": out, "max_logits": max_logits, "lse": lse}


def _dense(inputs: Inputs, check: Check) -> dict[str, torch.Tensor]:
    """Query i of a causal problem is a one-query problem over the keys it sees."""
    from flash_dsa import reference

    problem, args = check.problem, inputs.arguments
    group = problem.h_q // problem.h_kv
    spans = [(check.queries, problem.s_kv)]
    if problem.causal:
        spans = [([query], max(0, query + 1 + problem.s_kv - problem.s_q)) for query in check.queries]
    outs, lses = [], []
    for head in check.heads:
        parts = []
        k, v = (args[name][:, head // group : head // group + 1] for name in ("k", "v"))
        for queries, keys in spans:
            q = args["q"][_index(queries, args["q"]), head : head + 1]
            ends = [torch.tensor([0, n], dtype=torch.int32, device=q.device) for n in (len(queries), keys)]
            parts.append(
                reference.dense_fwd(
                    q, k[:keys], v[:keys], ends[0], ends[1], args["softmax_scale"], causal=False, dtype=torch.float64
                )
            )
        outs.append(torch.cat([out for out, _ in parts]))
        lses.append(torch.cat([lse for _, lse in parts]))
    return {"out": torch.cat(outs, dim=1), "lse": torch.cat(lses, dim=1)}
