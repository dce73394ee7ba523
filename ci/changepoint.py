"""Change points of a series: where its level moved for good, by how much, and how sure that is.

Everything is computed on logarithms, so that a step is a ratio. Single outliers are pulled to their neighbourhood first
(Hampel). A piece of the series is split where two levels explain it best, if

- the step is significant: t is large, and larger than in nearly all orders of the same values drawn at random, which
  makes no assumption about how they are distributed;
- the step is relevant: of at least the policy's size;
- two levels explain the piece clearly better than a straight line does: what drifts has no change point.

Its parts are split in turn. Pieces longer than a window, and pieces without a split of their own, are searched in
overlapping windows of several lengths, so that neither many changes nor one that was undone hide each other.

Short pieces have too few orders. They are judged point by point, from the points' own intervals. Where all points say
how noisy they are, Student's t tells smaller steps, too, and a line that leaves more than noise is no drift. A step in
two commits has a point of its own between its levels.
Sources: Hampel, "The influence curve and its role in robust estimation", JASA 69, 1974 (outliers); Kovacs et al.,
"Seeded binary segmentation", Biometrika 110, 2023 (windows).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ci import stats
from ci.policy import History

Values = NDArray[np.float64]

_MAD = 1.4826  # median absolute deviation to standard deviation, of a normal distribution
_FEWEST = 5  # points that can be split: two levels of two at least, and one more
_SIDE = 2  # points of a level at least, where levels are told by t
_NEIGHBOURS = 3  # to either side, in which an outlier is one
_LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96)  # of windows; the last is the longest piece looked at whole
_TRIED = 4  # windows of a piece that may fail, the strongest first, until no other is judged
_FIRST_ORDERS = 10  # the part of all orders that is drawn first
_TINY = 1e-18  # a sum of squares below which values are equal
_MANY, _PLAIN = 48, 1e-4  # points, and the share of false_alarms, from which no orders are drawn: none would be as rare
_CHI2 = 3.841  # 95 % of chi-square with one degree of freedom: how far the location may be off


@dataclass(frozen=True)
class ChangePoint:
    """A step between two levels.

    Args:
        index: of the first point of the new level. earliest, latest: first and last point that it may be, with 95 %.
        before, after: the levels, in the unit of the series. ratio, low, high: after over before, with its interval.
    """

    index: int
    earliest: int
    latest: int
    before: float
    after: float
    ratio: float
    low: float
    high: float


def steps_in_noise(values: Values, rule: History, noise: Values) -> Values:
    """Steps from point to point, in standard deviations of what points say and two runs of the same code differ in."""
    there = np.isfinite(values) & (np.asarray(values) > 0) & np.isfinite(noise)
    known = noise[there] ** 2 + rule.process_noise**2
    return np.diff(np.log(values[there])) / np.sqrt(known[1:] + known[:-1])


def noise_of(values: Values) -> float:
    """Standard deviation of a series' logarithms between neighbours, whatever its steps and drift.

    Args:
        values: positive, without gaps.
    Returns:
        1.4826 * MAD of successive log differences / sqrt(2); 0 for fewer than three points.
    """
    return _noise(np.log(values))


def _noise(x: Values) -> float:
    steps = np.diff(x)
    return _MAD * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2) if len(steps) > 1 else 0.0


def detect(
    values: Values, rule: History, noise: Values | None = None, unrest: float | None = None
) -> list[ChangePoint]:
    """The change points of a series.

    Args:
        values: in the order of commits; NaN where nothing was measured.
        rule: thresholds. noise: relative standard deviation of each point by its own samples, NaN where unknown.
        unrest: how many times what points say series of the same machine scatter that no commit changes; None where
            that is unknown, and the series must show it itself.
    Returns:
        Change points in order. Indices count all values, NaN included.
    """
    there = np.flatnonzero(np.isfinite(values) & (np.asarray(values) > 0))
    x = np.log(np.asarray(values, dtype=np.float64)[there])
    own = np.full(len(x), np.nan) if noise is None else np.asarray(noise, dtype=np.float64)[there]
    if len(x) < 2:
        return []
    tamed = _tame(x)
    cuts = _located(tamed, sorted(_cuts(tamed, rule)))
    known = (own**2 + rule.process_noise**2) * (unrest or 1.0) ** 2
    edges = [0, *sorted({*cuts, *_short(x, known, cuts, unrest is not None, rule)}), len(x)]
    for told in (_told_by_noise, _between):
        edges = sorted({*edges, *told(x, known, edges, rule)})
    for start, end in itertools.pairwise(edges):
        if end - start <= _NEIGHBOURS:  # a level of its own, not an outlier of its neighbourhood's
            tamed[start:end] = x[start:end]
    own = np.nan_to_num(own)

    def described(number: int) -> ChangePoint:
        return _described(tamed, own, edges[number], edges[number + 1], edges[number + 2], there, rule)

    found = [described(number) for number in range(len(edges) - 2)]
    # With all cuts known a step may be smaller than where it was found; what counts for nothing is taken back.
    while found:
        sizes = [abs(math.log(point.ratio)) for point in found]
        least = sizes.index(min(sizes))
        if sizes[least] >= rule.relevant_change:
            break
        del found[least], edges[least + 1]
        for number in {max(least - 1, 0), least} & set(range(len(found))):
            found[number] = described(number)
    return found


def _tame(x: Values) -> Values:
    """Outliers, pulled to three deviations from the median of their neighbourhood."""
    width = min(2 * _NEIGHBOURS + 1, len(x))
    first = np.clip(np.arange(len(x)) - _NEIGHBOURS, 0, len(x) - width)
    median = np.median(np.lib.stride_tricks.sliding_window_view(x, width)[first], axis=1)
    reach = 3 * _noise(x)
    return np.clip(x, median - reach, median + reach)


def _two_levels(x: Values, side: int) -> tuple[Values, Values, Values]:
    """Of every cut from `side` to n - `side`, along the last axis: the step, the squares it explains, and the rest."""
    n = x.shape[-1]
    left = np.arange(side, n - side + 1)
    x = x - x.mean(-1, keepdims=True)
    sums = np.cumsum(x, -1)[..., left - 1]
    step = -sums / (n - left) - sums / left
    explained = step**2 * left * (n - left) / n
    return step, explained, np.maximum((x**2).sum(-1, keepdims=True) - explained, _TINY)


def _scan(x: Values) -> tuple[Values, Values]:
    """t and the step at every cut from _SIDE to n - _SIDE, along the last axis."""
    step, explained, rest = _two_levels(x, _SIDE)
    return np.sqrt(explained / rest * (x.shape[-1] - 2)), step


def _cuts(x: Values, rule: History) -> Iterator[int]:
    pieces = [(0, len(x))]
    while pieces:
        start, end = pieces.pop()
        cuts = [start + cut for cut in _cuts_of_piece(x[start:end], rule)]
        yield from cuts
        if cuts:
            pieces += itertools.pairwise([start, *cuts, end])


def _cuts_of_piece(x: Values, rule: History) -> list[int]:
    """Where a piece is best cut in two; where it is not, or is too long to tell, all cuts of its windows."""
    if len(x) < _FEWEST:
        return []
    if len(x) <= _LENGTHS[-1]:
        found = _judged(x, rule, rule.false_alarms)
        if found is not None:
            return [found]
    cuts: list[int] = []
    taken: list[tuple[int, int]] = []
    failures = 0
    for _, start, length in sorted(_windows(x, rule), reverse=True):
        if any(start < last and first < start + length for first, last in taken):
            continue
        found = _judged(x[start : start + length], rule, rule.false_alarms / _TRIED)
        if found is None:
            failures += 1
            if failures == _TRIED:
                break
        else:
            cuts.append(start + found)
            taken.append((start, start + length))
    return sorted(cuts)


def _windows(x: Values, rule: History) -> Iterator[tuple[float, int, int]]:
    """Windows whose best step is too rare to be one of many: how much so, start and length."""
    lengths = [length for length in _LENGTHS if length < len(x)]
    for length in lengths:
        starts = np.append(np.arange(0, len(x) - length, length // 4), len(x) - length)
        t, size = _scan(np.lib.stride_tricks.sliding_window_view(x, length)[starts])
        least = _quantile(rule.false_alarms / (4 * len(x) * len(lengths)), length - 2)
        strength = np.where(np.abs(size) >= rule.relevant_change, t, 0.0).max(-1) / least
        yield from ((float(strength[i]), int(starts[i]), length) for i in np.flatnonzero(strength >= 1))


@functools.cache
def _quantile(alpha: float, freedom: int) -> float:
    return stats.student_quantile(alpha, freedom)


def _judged(x: Values, rule: History, false_alarms: float) -> int | None:
    """Where a piece is cut in two, if it is."""
    t, size = _scan(x)
    best = int(np.argmax(t))
    cut = best + _SIDE
    if t[best] < rule.least_t or abs(size[best]) < rule.relevant_change or _is_drift(x, cut, rule):
        return None
    if len(x) >= _MANY and t[best] > _quantile(_PLAIN * rule.false_alarms, len(x) - 2):
        return cut
    random, as_large, few = np.random.default_rng(0), 0, rule.orders // _FIRST_ORDERS
    for orders in (few, rule.orders - few):  # most that fail do so with the first
        drawn = random.permuted(np.broadcast_to(x, (orders, len(x))), axis=1)
        as_large += int((_scan(drawn)[0].max(-1) >= t[best]).sum())
        if (1 + as_large) / (1 + rule.orders) > false_alarms:
            return None
    return cut


def _is_drift(x: Values, cut: int, rule: History) -> bool:
    """Whether two levels do not explain a piece clearly better than a straight line, by the ratio of likelihoods."""
    return len(x) / 2 * math.log(_line(x) / _two_levels(x, 1)[2][cut - 1]) < math.log(rule.drift_odds)


def _line(x: Values) -> float:
    """The squares that a straight line leaves."""
    time = np.arange(len(x)) - (len(x) - 1) / 2
    rest = x - x.mean()
    rest = rest - time * (time @ rest) / (time @ time)
    return max(float(rest @ rest), _TINY)


def _located(x: Values, cuts: list[int]) -> list[int]:
    """Each cut once more, between its neighbours: where it was found another one may have been in view."""
    for number, cut in enumerate(cuts):
        start = max(cuts[number - 1] if number else 0, cut - _LENGTHS[-1] // 2)
        end = min(cuts[number + 1] if number + 1 < len(cuts) else len(x), cut + _LENGTHS[-1] // 2)
        if end - start >= _FEWEST:
            cuts[number] = start + _SIDE + int(np.argmax(_scan(x[start:end])[0]))
    return cuts


def _short(x: Values, known: Values, cuts: list[int], trusted: bool, rule: History) -> Iterator[int]:
    """Steps between neighbours, of levels too short for t.

    A step counts when it is beyond the noise of both points and of the series, when no point near before it was where
    it leads and none near after it is where it came from, and when it is larger than what such points show: where
    outliers are common, the first or the last point may be one. What points say of their noise is enough where others
    have shown that it can be `trusted`: where every commit moves something, a series has no noise of its own to show.
    Where points do not say how noisy they are, the series must be long enough to.
    """
    series = math.nan
    if len(x) >= _FEWEST:
        others = np.sort(np.abs(np.diff(x)))[:-1]  # without the largest, which may be the step in question
        series = (_MAD * float(np.median(others))) ** 2
    blind = np.nan_to_num(known, nan=rule.process_noise**2)
    said = known[1:] + known[:-1]
    enough = trusted or len(x) < _FEWEST
    noise = np.sqrt(np.where(np.isnan(said), blind[1:] + blind[:-1] + series, said + (0.0 if enough else series)))
    reach = np.maximum(rule.short_step, rule.short_deviations * noise)
    steps = np.abs(np.diff(x))
    large = np.flatnonzero(steps > reach)
    outliers = [
        i
        for i in large
        if (np.abs(x[max(i - _NEIGHBOURS + 1, 0) : i] - x[i + 1]) < reach[i]).any()
        or (np.abs(x[i + 2 : i + 2 + _NEIGHBOURS] - x[i]) < reach[i]).any()
    ]
    largest = steps[outliers].max(initial=0.0)
    for i in large:
        # A cut may be one off, and the point beside it an outlier; what goes on the same way is neither.
        beside = [cut for cut in (i, i + 2) if cut in cuts]
        same_way = trusted and all((x[cut] - x[cut - 1]) * (x[i + 1] - x[i]) > 0 for cut in beside)
        if steps[i] > largest and i + 1 not in cuts and (same_way or not beside):
            yield int(i) + 1


def _told_by_noise(x: Values, known: Values, edges: list[int], rule: History) -> Iterator[int]:
    """Cuts by Student's t where orders cannot tell, since a side is short: all of its points are beyond the middle.

    The noise is no less than what is known of it.
    """
    pieces = list(itertools.pairwise(edges))
    while pieces:
        start, end = pieces.pop()
        n, piece = end - start, x[start:end]
        floor = float(known[start:end].mean())
        if not _FEWEST <= n <= _LENGTHS[-1] or math.isnan(floor):
            continue
        step, explained, rest = _two_levels(piece, _SIDE)
        t = np.sqrt(explained / np.maximum(rest / (n - 2), floor))
        best = int(np.argmax(t))
        cut = best + _SIDE
        if t[best] < _quantile(rule.false_alarms / len(t), n - 2) or abs(step[best]) < rule.relevant_change:
            continue
        fewer, more = (piece[:cut], piece[cut:]) if cut <= n - cut else (piece[cut:], piece[:cut])
        if (np.abs(fewer - more.mean()) < abs(step[best]) / 2).any():
            continue
        if _is_drift(piece, cut, rule) and _line(piece) / floor < stats.chi2_quantile(rule.false_alarms, n - 2):
            continue
        yield start + cut
        pieces += [(start, start + cut), (start + cut, end)]


def _between(x: Values, known: Values, edges: list[int], rule: History) -> Iterator[int]:
    """Second cuts of steps that took two commits.

    The point beside a cut is a level of its own when it lies between both levels, beyond its noise and theirs.
    """
    for start, cut, end in zip(edges, edges[1:], edges[2:], strict=False):
        if np.isnan(known[start:end]).any():
            continue
        for lone, second, rest, other in (
            (cut, cut + 1, x[cut + 1 : end], x[start:cut]),
            (cut - 1, cut - 1, x[start : cut - 1], x[cut:end]),
        ):
            if len(rest) < _NEIGHBOURS:
                continue
            floor = float(known[start:end].mean())
            alone = max(float(known[lone]), float(rest.var(ddof=1)), floor)
            near, far = float(rest.mean() - x[lone]), float(x[lone] - other.mean())
            reach_near, reach_far = (
                rule.short_deviations * math.sqrt(alone + floor / len(level)) for level in (rest, other)
            )
            if near * far > 0 and abs(near) > reach_near and abs(far) > reach_far:
                yield second


def _described(
    x: Values, own: Values, start: int, cut: int, end: int, there: NDArray[np.intp], rule: History
) -> ChangePoint:
    start, end = max(start, cut - _LENGTHS[-1]), min(end, cut + _LENGTHS[-1])
    left, right = x[start:cut], x[cut:end]
    size = float(right.mean() - left.mean())
    freedom = end - start - 2
    rests = _two_levels(x[start:end], 1)[2]
    variance = float(rests[len(left) - 1]) / freedom if freedom > 0 else 0.0
    floor = [float((own[a:b] ** 2).mean()) + rule.process_noise**2 for a, b in ((start, cut), (cut, end))]
    error = math.sqrt(max(variance, floor[0]) / len(left) + max(variance, floor[1]) / len(right))
    half = _quantile(1 - rule.confidence, max(freedom, 1)) * error if freedom >= _FEWEST - 2 else 2.5 * error
    earliest = latest = len(left) - 1
    if end - start >= _FEWEST:
        near = rests <= rests[len(left) - 1] * math.exp(_CHI2 / (end - start))
        while earliest > 0 and near[earliest - 1]:
            earliest -= 1
        while latest + 1 < len(near) and near[latest + 1]:
            latest += 1
    return ChangePoint(
        index=int(there[cut]),
        earliest=int(there[start + 1 + earliest]),
        latest=int(there[start + 1 + latest]),
        before=math.exp(float(left.mean())),
        after=math.exp(float(right.mean())),
        ratio=math.exp(size),
        low=math.exp(size - half),
        high=math.exp(size + half),
    )
