"""Problems and cases: what is measured. Plain numbers, no tensors, no torch.

A `Problem` is one call's shape and features. A `Case` is a problem with a stable id; ids are only ever added.
Counts are per call: FLOPs, compulsory bytes, bytes of K and V.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

OPS = ("sparse_fwd", "dense_fwd")
INDICES = ("seed", "uniform", "causal_prompt")
FEATURES = {"sparse_fwd": ("attn_sink", "topk_length"), "dense_fwd": ("values_in_keys",)}
ELEMENT_BYTES = 2  # bfloat16

# Fields of a problem, in the order a record has them; with the implementation they identify it.
PROBLEM_FIELDS = ("op", "s_q", "s_kv", "h_q", "h_kv", "d_qk", "d_v", "topk", "causal", "indices", "features")


@dataclass(frozen=True)
class Problem:
    """One call's shape and features. All tensors are bfloat16.

    Args:
        op: `sparse_fwd` or `dense_fwd`.
        s_q: queries. s_kv: keys. h_q: query heads. h_kv: key heads (1 for `sparse_fwd`).
        d_qk: head dimension of q and k, elements. d_v: head dimension of v and out, elements.
        topk: index slots per query; None for `dense_fwd`.
        causal: bottom-right aligned mask; None for `sparse_fwd`.
        indices: how indices are drawn (`seed`, `uniform`, `causal_prompt`); None for `dense_fwd`.
        features: `none`, or sorted names joined by `+`: `attn_sink`, `topk_length` of `sparse_fwd`; `values_in_keys` of
            `dense_fwd`: v is the first d_v columns of k, in the same memory.
    Raises:
        ValueError: for a problem that no call could have, naming the field.
    """

    op: str
    s_q: int
    s_kv: int
    h_q: int
    h_kv: int
    d_qk: int
    d_v: int
    topk: int | None = None
    causal: bool | None = None
    indices: str | None = None
    features: str = "none"

    def __post_init__(self) -> None:
        _expect(self.op in OPS, "op", f"one of {OPS}", self.op)
        for name in ("s_q", "s_kv", "h_q", "h_kv", "d_qk", "d_v"):
            value = getattr(self, name)
            _expect(type(value) is int and value >= 1, name, "an int >= 1", value)
        _expect(self.h_q % self.h_kv == 0, "h_kv", f"a divisor of h_q ({self.h_q})", self.h_kv)
        names = self.feature_names
        _expect(self.features == ("+".join(sorted(set(names))) or "none"), "features", "sorted names", self.features)
        of_op = FEATURES[self.op]
        _expect(all(name in of_op for name in names), "features", f"names of {of_op} for {self.op}", self.features)
        if self.op == "sparse_fwd":
            _expect(type(self.topk) is int and self.topk >= 1, "topk", "an int >= 1", self.topk)
            _expect(self.indices in INDICES, "indices", f"one of {INDICES}", self.indices)
            _expect(self.causal is None, "causal", "None (sparse_fwd has no mask of its own)", self.causal)
            _expect(self.h_kv == 1, "h_kv", "1 (sparse_fwd shares one KV head)", self.h_kv)
            _expect(self.d_v <= self.d_qk, "d_v", f"at most d_qk ({self.d_qk}): V is the head of KV", self.d_v)
            if self.indices == "causal_prompt":
                _expect(self.s_kv >= self.s_q, "s_kv", f"at least s_q ({self.s_q}) for causal_prompt", self.s_kv)
        else:
            _expect(self.topk is None, "topk", "None (dense_fwd has no indices)", self.topk)
            _expect(self.indices is None, "indices", "None (dense_fwd has no indices)", self.indices)
            _expect(type(self.causal) is bool, "causal", "True or False", self.causal)
            if "values_in_keys" in names:
                _expect(self.d_v <= self.d_qk, "d_v", f"at most d_qk ({self.d_qk}) for values_in_keys", self.d_v)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Features as a tuple of names."""
        return () if self.features == "none" else tuple(self.features.split("+"))

    @property
    def fields(self) -> dict[str, Any]:
        """The problem as the keys of a record, in their order there."""
        return asdict(self)

    @property
    def flops(self) -> int:
        """FLOPs: 2 * h_q * (d_qk + d_v) per attended pair of query and key."""
        return 2 * self.h_q * (self.d_qk + self.d_v) * self.pairs

    @property
    def pairs(self) -> int:
        """Pairs of query and key that are counted: index slots for `sparse_fwd`, visible pairs for `dense_fwd`."""
        if self.topk is not None:
            if "topk_length" in self.feature_names:
                return _sum_of_clamped_ramp(self.s_kv - self.s_q + 1, self.s_q, self.topk)
            return self.s_q * self.topk
        if self.causal:
            return _sum_of_clamped_ramp(self.s_kv - self.s_q + 1, self.s_q, self.s_kv)
        return self.s_q * self.s_kv

    @property
    def is_prompt(self) -> bool:
        """Whether it is sparse attention of a whole prompt: every query to tokens up to its own."""
        return self.indices == "causal_prompt" and self.s_q == self.s_kv

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V as the call gets them: what is in the same memory counts once."""
        shared = self.op == "sparse_fwd" or "values_in_keys" in self.feature_names
        per_row = self.d_qk if shared else self.d_qk + self.d_v
        return self.s_kv * self.h_kv * per_row * ELEMENT_BYTES

    @property
    def bytes(self) -> int:
        """Compulsory traffic in bytes: every input read once, every output written once."""
        out = self.s_q * self.h_q * (self.d_v * ELEMENT_BYTES + 4)  # out and lse
        read = self.s_q * self.h_q * self.d_qk * ELEMENT_BYTES + self.kv_bytes
        if self.topk is not None:
            read += self.s_q * self.topk * 4
            out += self.s_q * self.h_q * 4  # max_logits
        return read + out

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOP per byte."""
        return self.flops / self.bytes

    def roofline_seconds(self, peak_flops: float, bandwidth: float, valid_fraction: float | None = None) -> float:
        """Shortest possible time of the call.

        Args:
            peak_flops: FLOP/s of the machine at this precision.
            bandwidth: bytes/s between memory and the machine.
            valid_fraction: of `sparse_fwd`, the share of all index slots that count, if not all of `pairs` do: work
                that a kernel may leave out.
        Returns:
            Seconds: the longer of FLOPs over peak and compulsory bytes over bandwidth.
        Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
        """
        flops: float = self.flops
        if valid_fraction is not None and self.topk is not None:
            flops *= valid_fraction * self.s_q * self.topk / self.pairs
        return max(flops / peak_flops, self.bytes / bandwidth)

    def topk_length(self, query: int) -> int:
        """Slots of `query` that count under the feature `topk_length`: the keys up to its own, at most topk."""
        if self.topk is None:
            raise ValueError("topk_length: expected a sparse_fwd problem, got dense_fwd")
        return max(0, min(query + 1 + self.s_kv - self.s_q, self.topk))


@dataclass(frozen=True)
class Case:
    """A problem with a stable id."""

    id: str
    problem: Problem


def dense_counterpart(problem: Problem) -> Problem:
    """The seed's dense comparator of a sparse problem: the same queries over all keys, MHA with h_q K/V heads."""
    return Problem(
        "dense_fwd", problem.s_q, problem.s_kv, problem.h_q, problem.h_q, problem.d_qk, problem.d_v, causal=False
    )


def prompt_counterpart(problem: Problem) -> Problem:
    """What serving engines run instead of sparse attention for a whole prompt: causal MHA of head sizes 192 and 128."""
    return Problem("dense_fwd", problem.s_q, problem.s_kv, problem.h_q, problem.h_q, 192, 128, causal=True)


def counterpart(problem: Problem) -> Problem:
    """The dense problem that a sparse one is compared with, and takes turns with."""
    return prompt_counterpart(problem) if problem.is_prompt else dense_counterpart(problem)


def sparse_case(
    s_q: int,
    s_kv: int,
    topk: int,
    h_q: int = 128,
    d_qk: int = 576,
    indices: str = "seed",
    features: str = "none",
) -> Case:
    """A sparse_fwd case whose id spells its problem, such as `sparse-q4096-kv65536-k2048-h128-d576-seed`."""
    suffix = "" if features == "none" else f"-{features}"
    name = f"sparse-q{s_q}-kv{s_kv}-k{topk}-h{h_q}-d{d_qk}-{indices}{suffix}"
    problem = Problem("sparse_fwd", s_q, s_kv, h_q, 1, d_qk, 512, topk=topk, indices=indices, features=features)
    return Case(name, problem)


def dense_case(
    s_q: int, s_kv: int, h_q: int, h_kv: int, d_qk: int, d_v: int, causal: bool = False, features: str = "none"
) -> Case:
    """A dense_fwd case whose id spells its problem, such as `dense-q4096-kv65536-h128x128-d576x512-full`."""
    mask = "causal" if causal else "full"
    suffix = "" if features == "none" else f"-{features}"
    name = f"dense-q{s_q}-kv{s_kv}-h{h_q}x{h_kv}-d{d_qk}x{d_v}-{mask}{suffix}"
    return Case(name, Problem("dense_fwd", s_q, s_kv, h_q, h_kv, d_qk, d_v, causal=causal, features=features))


def _with_dense(case: Case) -> tuple[Case, Case]:
    other = dense_counterpart(case.problem)
    return case, dense_case(other.s_q, other.s_kv, other.h_q, other.h_kv, other.d_qk, other.d_v)


def _prompt(tokens: int, topks: Iterable[int], h_q: int = 128) -> tuple[Case, ...]:
    sparse = [sparse_case(tokens, tokens, topk, h_q=h_q, indices="causal_prompt") for topk in topks]
    return (*sparse, dense_case(tokens, tokens, h_q, h_q, 192, 128, causal=True))


def _expect(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def _sum_of_clamped_ramp(first: int, count: int, high: int) -> int:
    """Sum of min(max(first + i, 0), high) for i in range(count), in closed form."""
    below = min(max(-first, 0), count)  # terms clamped to 0
    start = first + below
    rising = max(min(high - start, count - below), 0)
    rest = count - below - rising  # terms clamped to high
    return rising * start + rising * (rising - 1) // 2 + rest * max(high, 0)


_SEED_SHAPES = (
    (1024, 4096, 512),
    (2048, 8192, 1024),
    (4096, 16384, 2048),
    (4096, 32768, 2048),
    (4096, 65536, 2048),
    (4096, 131072, 2048),
)
_SMOKE_SHAPES = ((32, 512, 64), (32, 1024, 128), (32, 2048, 256), (32, 4096, 256), (32, 8192, 256), (32, 16384, 256))

# Cases by set. Append only: an id that was ever published keeps its problem (tests/instrument freezes the list).
_SETS: dict[str, tuple[Case, ...]] = {
    # The notebook's six shapes, each followed by its dense counterpart.
    "seed": tuple(case for shape in _SEED_SHAPES for case in _with_dense(sparse_case(*shape))),
    # The same ladder for two CPU cores: the whole sweep in under 90 s.
    "smoke": tuple(case for shape in _SMOKE_SHAPES for case in _with_dense(sparse_case(*shape, h_q=16))),
    # What serving engines run as dense MLA prefill, and one K/V head for all (MQA).
    "serving": (
        *(dense_case(s, s, 128, 128, 192, 128, causal=True) for s in (4096, 8192, 16384)),
        *(dense_case(4096, s, 128, 128, 192, 128) for s in (16384, 65536)),
        *(dense_case(s, s, 128, 128, 128, 128, causal=True) for s in (8192, 16384)),
        dense_case(4096, 16384, 128, 128, 128, 128),
        *(dense_case(4096, s, 128, 1, 576, 512) for s in (16384, 65536)),
        dense_case(4096, 4096, 128, 1, 576, 512, causal=True),
    ),
    # Sparse shapes beyond the seed: uniform indices past the L2, d_qk 512, fewer heads, features.
    "sparse": (
        *(sparse_case(4096, s, 2048, indices="uniform") for s in (8192, 32768, 65536, 131072)),
        *(sparse_case(4096, s, 512, h_q=64, d_qk=512, indices="uniform") for s in (8192, 65536)),
        *(sparse_case(4096, s, 1024, d_qk=512, indices="uniform") for s in (8192, 65536)),
        sparse_case(4096, 65536, 2048, h_q=64),
        sparse_case(4096, 65536, 2048, features="attn_sink"),
        sparse_case(4096, 4096, 2048, indices="causal_prompt"),
        sparse_case(4096, 4096, 2048, indices="causal_prompt", features="topk_length"),
    ),
    # What a pull request is judged on, within a minute of machine time: both ops, short and long, few and many heads.
    "pull-request-cuda": (
        *(sparse_case(4096, s, k) for s in (8192, 65536) for k in (512, 1024, 2048)),
        sparse_case(64, 65536, 512),
        sparse_case(4096, 65536, 2048, h_q=16),
        dense_case(4096, 4096, 128, 128, 192, 128, causal=True),
        dense_case(8192, 8192, 128, 128, 128, 128, causal=True),
        dense_case(1024, 8192, 128, 1, 576, 512),
        dense_case(512, 4096, 128, 128, 576, 512),
    ),
    "pull-request-cpu": (
        *(sparse_case(128, s, k, h_q=16) for s in (1024, 8192) for k in (128, 256)),
        dense_case(128, 1024, 16, 16, 192, 128, causal=True),
        dense_case(64, 1024, 16, 1, 576, 512),
    ),
    # One small case of each kind, for tests and for trying a kernel.
    "tiny": (
        sparse_case(8, 64, 16, h_q=4),
        dense_case(8, 64, 4, 4, 576, 512),
        sparse_case(8, 64, 16, h_q=4, indices="causal_prompt", features="attn_sink+topk_length"),
        dense_case(8, 64, 4, 2, 192, 128, causal=True),
    ),
    # Whole causal prompts, for the crossover of each topk with dense 192/128. At 7 times topk both have as many FLOPs:
    # lengths are closer there. Beside the longest, 80 GB have room for one topk alone.
    "prompt": (
        *(case for s in (2048, 3072, 4096, 6144, 8192) for case in _prompt(s, (512, 1024, 2048))),
        *(case for s in (12288, 16384, 24576, 32768) for case in _prompt(s, (512, 1024, 2048))),
        *(case for s in (65536, 131072) for case in _prompt(s, (2048,))),
    ),
    # The same for two CPU cores.
    "prompt-smoke": tuple(case for s in (128, 256, 512, 1024, 2048) for case in _prompt(s, (32, 64), h_q=16)),
    # Between and beside those of `sparse`: lengths around the size of the L2, fewer heads, and the full problem that a
    # causal prompt of as many keys is a part of.
    "sparse-lengths": (
        sparse_case(4096, 98304, 2048, indices="uniform"),
        *(sparse_case(4096, s, 512, h_q=64, d_qk=512, indices="uniform") for s in (32768, 49152)),
        *(sparse_case(4096, s, 1024, d_qk=512, indices="uniform") for s in (32768, 49152)),
        *(sparse_case(4096, 65536, 2048, h_q=h_q) for h_q in (16, 32)),
        sparse_case(4096, 131072, 2048, indices="uniform", features="attn_sink"),
        sparse_case(4096, 4096, 2048),
    ),
    # MLA in its absorbed form, where V lies in K, and sparse attention to all of the same keys.
    "absorbed": (
        *(dense_case(4096, s, 128, 1, 576, 512, features="values_in_keys") for s in (16384, 65536)),
        dense_case(4096, 4096, 128, 1, 576, 512, causal=True, features="values_in_keys"),
        sparse_case(4096, 16384, 16384, indices="uniform"),
    ),
}


def set_names() -> tuple[str, ...]:
    """Names of the sets of cases."""
    return tuple(_SETS)


def cases_of(name: str) -> tuple[Case, ...]:
    """Cases of a set.

    Raises:
        ValueError: for an unknown set, naming those that exist.
    """
    if name not in _SETS:
        raise ValueError(f"set: expected one of {', '.join(_SETS)}, got {name!r}")
    return _SETS[name]


def all_cases() -> tuple[Case, ...]:
    """Every case of every set, once."""
    return tuple(dict.fromkeys(case for cases in _SETS.values() for case in cases))


def find(ids: Iterable[str]) -> tuple[Case, ...]:
    """Cases with these ids, in the order given.

    Raises:
        ValueError: for an id that no case has.
    """
    by_id = {case.id: case for case in all_cases()}
    ids = tuple(ids)
    unknown = [name for name in ids if name not in by_id]
    if unknown:
        raise ValueError(f"cases: unknown id {', '.join(unknown)}; `python -m asv_bench doctor --cases` lists them")
    return tuple(by_id[name] for name in ids)


def id_of(problem: Problem) -> str | None:
    """Id of the case with this problem, or None."""
    return next((case.id for case in all_cases() if case.problem == problem), None)
