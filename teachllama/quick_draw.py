"""The token that ranking the whole vocabulary would draw, found without ranking it.

Ranking Gemma's 262,144 tokens takes longer than computing their logits. A draw needs no ranks. It needs the one token
at which the weights of all likelier tokens, added up, pass a random target. So tokens are put into a few thousand
buckets by their logits, the weights of each bucket are added up, and only the bucket in which the target lies is
ranked. Top-p is the same search with another target, and top-k the same with weights of 1.

Sums taken in another order differ in their last digits. Where that could change the result, `Unsure` is raised and the
caller ranks the tokens: at most about once in 4,000 draws from 262,144 tokens, and far more rarely from fewer. Knows
nothing of how ranked tokens are cut and drawn: `sampling.drawn` is the definition.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from teachllama.sampling import SamplingParams

    Draw = Callable[[np.ndarray, SamplingParams, float], int]

SMALL = 4096  # so many tokens are ranked, more are searched
BUCKETS = 4096
EPS = np.finfo(np.float64).eps


class Unsure(Exception):
    """The target is so near the border between two tokens that rounding decides."""


class Scratch(threading.local):
    """Arrays of n numbers, kept by each thread: fresh ones cost a page fault for every 4 kB, more than the arithmetic.

    Attributes:
        gaps: float64 (n,): how far values are below the largest, negative.
        weights: float64 (n,).
        keys: the integers that NumPy counts fastest (n,).
        small_keys: the same, in a type that it compares fastest (n,).
    """

    def __init__(self) -> None:
        self.reserve(0)

    def reserve(self, n: int) -> None:
        self.gaps, self.weights = np.empty(n), np.empty(n)
        self.keys, self.small_keys = np.empty(n, np.intp), np.empty(n, np.uint16)

    def first(self, n: int) -> Scratch:
        """Itself, with room for n numbers at least."""
        if len(self.weights) < n:
            self.reserve(n)
        return self


_scratch = Scratch()


class Place:
    """A token of a row of logits, and with it all that are likelier: larger, or equal with a lower id.

    Args:
        value: its logit.
        ties: how many tokens of this logit there are up to it, itself included; 0: only the larger ones count.
        near: where ties are counted, the ids in its bucket (see `Buckets`), lowest first.
    """

    def __init__(self, value: np.floating, ties: int, near: np.ndarray):
        self.value, self.ties, self.near = value, ties, near

    def tied(self, logits: np.ndarray) -> np.ndarray:
        """The ids of this logit up to its own."""
        return self.near[logits[self.near] == self.value][: self.ties]

    def count(self, logits: np.ndarray) -> int:
        return np.count_nonzero(logits > self.value) + self.ties

    def ids(self, logits: np.ndarray) -> np.ndarray:
        """All the ids, lowest first."""
        mask = logits > self.value
        mask[self.tied(logits)] = True
        return np.flatnonzero(mask)


def quick_draw(logits: np.ndarray, params: SamplingParams, fraction: float, draw: Draw) -> int:
    """The id of the token that lies at `fraction` of the candidates' cumulative probability.

    Args:
        logits: (vocab_size,), none NaN or inf; -inf rules a token out.
        params: temperature above 0.
        fraction: from 0 to below 1.
        draw: the definition, for few tokens: logits (n,), params, fraction -> an index.

    Raises:
        Unsure: rank all tokens to find out.
    """
    n = len(logits)
    if n <= SMALL:
        return draw(logits, params, fraction)
    few = max(SMALL, n // 8)
    best = np.float64(logits.max())
    if params.min_p > 0 and params.top_p == 1 and not 0 < params.top_k < n:
        cut = _at_least(logits, best, params.min_p)  # most tokens are far below, and need no exponential
        if cut.count(logits) <= few:
            return _among(cut.ids(logits), logits, replace(params, min_p=0.0), fraction, draw)
    buckets = Buckets(logits, best, _scratch.first(n))
    cut = None  # the last token that is kept, if not all are
    if 0 < params.top_k < n:
        cut = buckets.find(buckets.weigh(None), params.top_k - 0.5)
        params = replace(params, top_k=0)
        if cut.count(logits) <= few:
            return _among(cut.ids(logits), logits, params, fraction, draw)
    sums = None
    if params.top_p < 1:
        sums = buckets.weigh(1.0)
        cut = buckets.find(sums, params.top_p * buckets.upto(cut, sums))
    if params.min_p > 0 and (cut is None or np.exp(cut.value - best) < params.min_p):
        cut = _at_least(logits, best, params.min_p)
    if cut is not None and cut.count(logits) <= (SMALL if params.temperature == 1 else few):
        params = replace(params, top_p=1.0, min_p=0.0)
        return _among(cut.ids(logits), logits, params, fraction, draw)
    if sums is None or params.temperature != 1:
        sums = buckets.weigh(params.temperature)
    return int(buckets.find(sums, fraction * buckets.upto(cut, sums)).tied(logits)[-1])


def _among(ids: np.ndarray, logits: np.ndarray, params: SamplingParams, fraction: float, draw: Draw) -> int:
    return int(ids[quick_draw(logits[ids], params, fraction, draw)])


def _at_least(logits: np.ndarray, best: np.float64, min_p: float) -> Place:
    """All tokens at least `min_p` times as likely as the best, as a place."""
    border = float(best) + math.log(min_p)
    margin = 1e-4 * (1 + abs(border))  # wider than rounding
    low = logits.dtype.type(border - margin)
    near = np.flatnonzero((logits > low) & (logits < border + margin))
    return Place(max([low, *logits[near[np.exp(logits[near] - best) < min_p]]]), 0, near[:0])


def _exponential(gaps: np.ndarray, temperature: float, out: np.ndarray | None = None) -> np.ndarray:
    """exp(gaps / temperature)."""
    if temperature == 1:
        return np.exp(gaps, out=out)
    if temperature > 1e-3:  # the quotient itself but for its last digit, in half the time
        out = np.multiply(gaps, 1 / temperature, out=out)
    else:
        with np.errstate(over="ignore"):  # a tiny one: exp(-inf) is 0, and the likeliest remain
            out = np.divide(gaps, temperature, out=out)
    return np.exp(out, out=out)


class Sums:
    """The weights of every bucket's values, added up from the largest values down.

    Args:
        each: (BUCKETS,): the sum of each bucket.
        weigh: values (n,) -> their weights, float64 (n,).
        slack: by how much sums may be wrong.
    """

    def __init__(self, each: np.ndarray, weigh: Callable[[np.ndarray], np.ndarray], slack: float):
        self.upto, self.weigh, self.slack = np.cumsum(each), weigh, slack


class Buckets:
    """Values in buckets by their size, the largest in the first.

    Args:
        values: (n,), in any order.
        best: the largest, finite.
        scratch: with room for n.
    """

    def __init__(self, values: np.ndarray, best: np.float64, scratch: Scratch):
        n = len(values)
        self.values, self.best = values, best
        self._gaps: np.ndarray | None = None
        self._room = scratch.gaps[:n], scratch.weights[:n]
        self.keys, self.small_keys = scratch.keys[:n], scratch.small_keys[:n]
        some = np.sort(values[:: max(1, n // 256)])
        some = some[np.isfinite(some)]
        # All but the smallest fiftieth share the buckets evenly. They may be far below, and go into the last.
        least = some[len(some) // 50] if len(some) else best
        if least == best:
            least = values[np.isfinite(values)].min()
        self._scale = values.dtype.type((BUCKETS - 2) / (float(best - least) or 1))
        keys = self._keys_of(values, scratch.weights.view(values.dtype)[:n])
        np.copyto(self.small_keys, keys, casting="unsafe")
        np.copyto(self.keys, self.small_keys)

    def _keys_of(self, values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """values (n,) -> their buckets, as floats: the larger the value, the lower. Rounding keeps that order."""
        with np.errstate(over="ignore"):
            keys = np.subtract(values.dtype.type(self.best), values, out=out)
            keys *= self._scale
            return np.minimum(keys, BUCKETS - 1, out=keys)

    def weigh(self, temperature: float | None) -> Sums:
        """Adds up exp((value - best) / temperature), or 1 for each value."""
        if temperature is None:
            return Sums(np.bincount(self.keys, minlength=BUCKETS), np.ones_like, 0.0)
        gaps, weights = self._room
        if self._gaps is None:
            self._gaps = np.subtract(self.values, self.best, out=gaps)
        _exponential(gaps, temperature, weights)
        each = np.bincount(self.keys, weights, BUCKETS)
        # Adding n numbers in turn errs by n / 2 units in the last place of the sum at most.
        slack = 8 * len(gaps) * EPS * float(each.sum())
        return Sums(each, lambda values: _exponential(values - self.best, temperature), slack)

    def find(self, sums: Sums, target: float) -> Place:
        """Where the weights, added up from the largest value down, first exceed the target."""
        return self._find(sums, target, 0.0)

    def _find(self, sums: Sums, target: float, above: float) -> Place:
        """`find` for values below others whose weights add up to `above`."""

        def is_below(border: float) -> bool:
            if abs(target - border) <= sums.slack:
                raise Unsure
            return target < border

        upto = sums.upto + above
        bucket = int(np.searchsorted(upto, target, side="right"))
        if bucket == BUCKETS or not is_below(upto[bucket]):
            raise Unsure
        if bucket and sums.upto[bucket - 1]:
            is_below(upto[bucket - 1])
            above = upto[bucket - 1]
        near = np.flatnonzero(self.small_keys == bucket)
        values = self.values[near]
        if len(values) > SMALL:
            if values.min() == values.max():
                each = float(sums.weigh(values[:1])[0])
                ties = int((target - above) / each) + 1
                if (ties > 1 and is_below(above + (ties - 1) * each)) or not is_below(above + ties * each):
                    raise Unsure
                return Place(values[0], ties, near)
            if len(values) == len(self.values):  # too near one another to part
                raise Unsure
            scratch = Scratch()
            scratch.reserve(len(values))
            finer = Buckets(values, values.max().astype(np.float64), scratch)
            each = np.bincount(finer.keys, sums.weigh(values), BUCKETS)
            place = finer._find(Sums(each, sums.weigh, sums.slack), target, above)
            return Place(place.value, place.ties, near)
        values = np.sort(values)[::-1]
        ranked = above + np.cumsum(sums.weigh(values))
        i = int(np.searchsorted(ranked, target, side="right"))
        if i == len(ranked) or not is_below(ranked[i]) or (i and is_below(ranked[i - 1])):
            raise Unsure
        return Place(values[i], i + 1 - int(np.argmax(values == values[i])), near)

    def upto(self, place: Place | None, sums: Sums) -> float:
        """The sum of the weights up to a place, or of all."""
        if place is None:
            return float(sums.upto[-1])
        value = np.array([place.value], self.values.dtype)
        bucket = int(self._keys_of(value)[0])
        near = place.near if place.ties else np.flatnonzero(self.small_keys == bucket)
        values = self.values[near]
        above = float(sums.upto[bucket - 1]) if bucket else 0.0
        return above + sums.weigh(values[values > place.value]).sum() + place.ties * float(sums.weigh(value)[0])
