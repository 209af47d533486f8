"""Draws the token that ranking the whole vocabulary would draw, without ranking it.

Ranking Gemma's 262,144 tokens takes longer than computing their logits. A draw needs no ranks. It needs the one token
at which the weights of all likelier tokens, added up, pass a random target. So tokens are put into a few thousand
buckets by their logits, the weights of each bucket are added up, and only the bucket in which the target lies is
ranked. Top-p is the same search with another target, and top-k the same with weights of 1.

Sums taken in another order differ in their last digits. Where that could change the result, `Unsure` is raised and the
caller ranks the tokens. That is rare: not once in 22,500 draws from two models' logits with five settings.

`sampling.drawn` defines how ranked tokens are cut and drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from teachllama.sampling import SamplingParams

    Draw = Callable[[np.ndarray, SamplingParams, float], int]

SMALL = 2048  # up to this many tokens are ranked, more are searched
BUCKETS = 4096
BLOCK = 2**16  # numbers that stay in a core's cache from one step to the next
EPS = np.finfo(np.float64).eps


class Unsure(Exception):
    """The target is so close to the border between two tokens that rounding would decide."""


@dataclass(frozen=True, slots=True)
class Place:
    """A token in a row of logits, and all likelier ones: those with a larger logit, or an equal one and a lower id.

    Args:
        value: its logit.
        ties: how many tokens of this logit are included, up to and with the token itself; 0: only larger logits.
        doubtful: the logits of tokens at its end that rounding may or may not have included.
    """

    value: np.floating
    ties: int
    doubtful: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def count(self, logits: np.ndarray) -> int:
        return int(np.count_nonzero(logits > self.value)) + self.ties

    def tied(self, logits: np.ndarray) -> np.ndarray:
        """The ids of tokens with this logit, up to its own."""
        return np.flatnonzero(logits == self.value)[: self.ties]

    def ids(self, logits: np.ndarray) -> np.ndarray:
        """The ids of all its tokens, lowest first."""
        mask = logits > self.value
        mask[self.tied(logits)] = True
        return np.flatnonzero(mask)


class Buckets:
    """Logits in buckets by value, the largest in the first bucket.

    Args:
        logits: (n,), in any order.
        best: the largest, finite.
        border: only logits of at least this value are put into buckets.
    """

    def __init__(self, logits: np.ndarray, best: np.float64, border: np.floating | float = -np.inf):
        self.logits, self.best, self.border = logits, best, border
        self.values = logits if border == -np.inf else logits[np.flatnonzero(logits >= border)]
        some = np.sort(self.values[:: max(1, len(self.values) // 256)])
        some = some[np.searchsorted(some, -np.inf, side="right") :]
        # The buckets divide the range evenly, but for the smallest fiftieth: those may be far below, and go into the
        # last bucket.
        self._scale = logits.dtype.type(
            (BUCKETS - 2) / max(float(best - some[len(some) // 50]) if len(some) else 0.0, 1e-3)
        )
        self._known: dict[float, np.ndarray] = {}  # temperature -> sums
        self._keys = np.empty(len(self.values), np.uint16)
        for at in blocks(self.values):
            self._keys[at] = self._keys_of(self.values[at])

    @classmethod
    def likeliest(cls, logits: np.ndarray, best: np.float64, temperature: float, rare: float) -> Buckets:
        """Buckets of only the largest logits, such that few draws are below them; of all if that skips too few."""
        step = max(1, len(logits) // 1024)
        some = np.sort(logits[::step])
        sums = step * np.cumsum(np.exp((some - best) / max(temperature, 0.1)))
        n_below = int(np.searchsorted(sums, rare * (1 + sums[-1])))  # 1: the best, which the sample may lack
        n_below = min(n_below, len(some) - 5)
        return cls(logits, best, some[n_below] if n_below > len(some) * 2 // 3 else -np.inf)

    def _keys_of(self, values: np.ndarray) -> np.ndarray:
        """values (n,) -> their buckets, as floats: larger values have lower buckets. Rounding keeps that order."""
        with np.errstate(over="ignore"):
            keys = values.dtype.type(self.best) - values
            keys *= self._scale
            return np.minimum(keys, BUCKETS - 1, out=keys)

    def weights(self, values: np.ndarray, temperature: float) -> np.ndarray:
        """values (n,) -> exp((value - best) / temperature), float64."""
        gaps = values - self.best
        if temperature > 1e-3:  # the same quotient, except for its last digit, in half the time
            gaps *= 1 / temperature
        else:
            with np.errstate(over="ignore"):  # a tiny temperature: exp(-inf) is 0, and the likeliest remain
                gaps /= temperature
        return np.exp(gaps, out=gaps)

    def find(self, temperature: float, fraction: float, within: Place | None = None, tolerant: bool = False) -> Place:
        """The place where the weights, summed from the largest value down, exceed a fraction of their total.

        Args:
            temperature: see `weights`.
            fraction: from 0 to 1.
            within: sum only the tokens up to this place.
            tolerant: let rounding decide between tokens of one bucket, which the place lists as doubtful.

        Raises:
            Unsure: rounding would decide.
        """
        sums = self._sums(temperature)
        total = float(sums[-1])
        if within is not None and within.value >= self.border:
            bucket = int(self._keys_of(np.array([within.value], self.logits.dtype))[0])
            values = self._values(bucket)
            larger = np.append(values[values > within.value], np.repeat(within.value, within.ties))
            total = float(sums[bucket] + self.weights(larger, temperature).sum())
        elif self.border > -np.inf:
            total = self.total(temperature, within)
            if fraction * total >= sums[-1]:
                return Buckets(self.logits, self.best).find(temperature, fraction, within, tolerant)
        target = fraction * total
        bucket = min(int(np.searchsorted(sums, target, side="right")) - 1, BUCKETS - 1)
        values = self._values(bucket)
        ranked = sums[bucket] + np.cumsum(self.weights(values, temperature))
        # The error of adding n numbers in turn is at most n / 2 units in the last place of the sum.
        slack = 2 * len(self.logits) * EPS * max(total, float(sums[-1]))
        if within is not None:
            slack += float(self.weights(within.doubtful, temperature).sum())
        first, i = np.searchsorted(ranked, [target - slack, target + slack], side="right").tolist()
        if i == len(ranked) or (sums[bucket] and target - sums[bucket] <= slack) or (i > first and not tolerant):
            raise Unsure
        return Place(values[i], i + 1 - int(np.argmax(values == values[i])), values[first:i])

    def _sums(self, temperature: float) -> np.ndarray:
        """The sum of the weights of all values before each bucket, (BUCKETS + 1,)."""
        if temperature not in self._known:
            each = np.zeros(BUCKETS)
            for at in blocks(self.values):
                each += np.bincount(self._keys[at], self.weights(self.values[at], temperature), BUCKETS)
            self._known[temperature] = np.append(0.0, np.cumsum(each))
        return self._known[temperature]

    def total(self, temperature: float, within: Place | None) -> float:
        """The sum of the weights of all logits, or of those up to a place."""
        total = 0.0
        for at in blocks(self.logits):
            weights = self.weights(self.logits[at], temperature)
            if within is not None:
                weights *= self.logits[at] > within.value
            total += float(weights.sum())
        if within is not None and within.ties:
            total += within.ties * float(self.weights(np.array([within.value]), temperature)[0])
        return total

    def _values(self, bucket: int) -> np.ndarray:
        """The values of a bucket, largest first."""
        return np.sort(self.values[np.flatnonzero(self._keys == bucket)])[::-1]


def blocks(values: np.ndarray) -> list[slice]:
    """Consecutive slices that fit in a core's cache."""
    return [slice(start, start + BLOCK) for start in range(0, len(values), BLOCK)]


def quick_draw(logits: np.ndarray, params: SamplingParams, fraction: float, draw: Draw) -> int:
    """The id of the token that lies at `fraction` of the candidates' cumulative probability.

    Args:
        logits: (vocab_size,), none NaN or inf; -inf rules a token out.
        params: temperature above 0.
        fraction: from 0 to below 1.
        draw: the definition, used on few tokens: logits (n,), params, fraction -> an index.

    Raises:
        Unsure: rounding would decide; rank all tokens instead.
    """
    n = len(logits)
    if n <= SMALL:
        return draw(logits, params, fraction)

    def among(ids: np.ndarray, params: SamplingParams) -> int:
        return int(ids[quick_draw(logits[ids], params, fraction, draw)])

    if np.count_nonzero(logits > -np.inf) <= n // 2:
        return among(np.flatnonzero(logits > -np.inf), params)
    best, cut = np.float64(logits.max()), None  # cut: the last token that is kept, if not all are
    if params.min_p > 0 and params.top_p == 1 and not 0 < params.top_k < n:
        cut, params = _at_least(logits, best, params.min_p), replace(params, min_p=0.0)
        if cut.count(logits) <= n // 8:
            return among(cut.ids(logits), params)  # the others are far below, and need no exponential
    if 0 < params.top_k < n:
        cut = _kth(logits, params.top_k)
        if params.top_k <= n // 8:
            return among(cut.ids(logits), replace(params, top_k=0))
    if params.top_p < 1:
        buckets = Buckets.likeliest(logits, best, 1.0, (1 - params.top_p) / 3)
        cut = buckets.find(1.0, params.top_p, cut, tolerant=True)
    else:
        buckets = Buckets.likeliest(logits, best, params.temperature, 0.02)
    if params.min_p > 0 and (cut is None or np.exp(cut.value - best) < params.min_p):
        cut = replace(_at_least(logits, best, params.min_p), doubtful=np.zeros(0) if cut is None else cut.doubtful)
    if cut is not None and not len(cut.doubtful) and buckets.border == -np.inf and cut.count(logits) <= n // 4:
        return among(cut.ids(logits), replace(params, top_k=0, top_p=1.0, min_p=0.0))
    return int(buckets.find(params.temperature, fraction, cut).tied(logits)[-1])


def _kth(logits: np.ndarray, k: int) -> Place:
    """The k-th likeliest token. A sample estimates its logit, so that few values are left to select from."""
    some = np.sort(logits[:: max(1, len(logits) // 1024)])[::-1]
    at = k * len(some) // len(logits)
    high = some[at - 48] if at >= 48 else some.dtype.type(np.inf)
    low = some[at + 48] if at + 48 < len(some) else some.dtype.type(-np.inf)
    near, above = logits[np.flatnonzero((logits <= high) & (logits >= low))], int(np.count_nonzero(logits > high))
    if not above < k <= above + len(near):
        near, above = logits, 0
    value = np.partition(near, above - k)[above - k]
    return Place(value, k - int(np.count_nonzero(logits > value)))


def _at_least(logits: np.ndarray, best: np.float64, min_p: float) -> Place:
    """All tokens at least `min_p` times as likely as the best, as a place."""
    border = float(best) + math.log(min_p)
    margin = 1e-4 * (1 + abs(border))  # wider than rounding
    low = logits.dtype.type(border - margin)
    near = logits[np.flatnonzero((logits > low) & (logits < border + margin))]
    return Place(max([low, *near[np.exp(near - best) < min_p]]), 0)
