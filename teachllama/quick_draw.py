"""The token that a draw from `sampling.candidates` gives, found without ranking the vocabulary.

Ranking Gemma's 262,144 tokens takes longer than computing their logits. A draw needs no ranks. It needs the one token
at which the weights of all likelier tokens, added up, pass a random target. `find` searches for it as quickselect does:
a small sample shows between which logits it lies, the weights above them are added up, and what cannot hold the token
is dropped. Top-p is the same search with another target, and top-k the same with weights of 1.

Sums taken in another order differ in their last digits. Where that could change the result, `Unsure` is raised and the
caller ranks the tokens: at most about once in 4,000 draws from 262,144 tokens, and far more rarely from fewer.
"""

from __future__ import annotations

import math
import threading

import numpy as np

from teachllama.sampling import SamplingParams, drawn, n_kept, probabilities

SMALL = 4096  # this many values are sorted, more are searched
SAMPLED = 1024  # this many are sorted to see where to search
HEAD = 4  # this many of them are larger than the rest
BLOCK = 8192  # numbers that one dot product adds up; BLAS wakes other threads for more


class _Scratch(threading.local):
    """Arrays that each thread keeps. A fresh one costs a page fault for every 4 kB: more than the arithmetic in it."""

    rows = np.empty((3, 0))

    def take(self, n: int) -> np.ndarray:
        """Three float64 rows of n numbers, of any content."""
        if self.rows.shape[1] < n:
            self.rows = np.empty((3, n))
        return self.rows[:, :n]


_scratch = _Scratch()


class Unsure(Exception):
    """The target is so near the border between two tokens that rounding decides."""


def quick_draw(logits: np.ndarray, params: SamplingParams, fraction: float) -> int:
    """The id of the token that lies at `fraction` of the candidates' cumulative probability.

    Args:
        logits: (vocab_size,), none NaN or inf; -inf rules a token out.
        params: temperature above 0.
        fraction: from 0 to below 1.

    Raises:
        Unsure: rank the tokens to find out.
    """
    value, nth = _place(logits, params, fraction)
    return int(np.flatnonzero(logits == value)[nth])


def _place(values: np.ndarray, params: SamplingParams, fraction: float) -> tuple[np.floating, int]:
    """The drawn token's logit, and how many tokens of the same logit have lower ids."""
    if 0 < params.top_k < len(values):
        value, nth = find(values, None, params.top_k - 0.5, len(values))
        values = _with_ties(values, values > value, value, nth + 1)
    best = np.float64(values.max())
    if params.min_p > 0 and params.top_p == 1:
        # Most tokens are far below what min-p keeps, and need no exponential. The margin is wider than rounding.
        least = float(best) + math.log(params.min_p)
        values = _take(values, _indices(values >= least - 1e-4 * (1 + abs(least))))
    if len(values) <= SMALL:
        ranked = np.sort(values)[::-1]
        return _ranked_place(ranked[: n_kept(ranked, params)], params, fraction)

    likelihood, weights, _ = _scratch.take(len(values))
    np.subtract(values, best, out=weights)
    kept = None
    if params.top_p < 1 or params.min_p > 0:
        np.exp(weights, out=likelihood)  # relative to the likeliest
        value, ties = best, 0
        if params.top_p < 1:
            total = likelihood.sum()
            value, nth = find(values, likelihood, params.top_p * total, total)
            kept, ties = values > value, nth + 1
        if np.exp(value - best) < params.min_p or kept is None:
            kept, ties = likelihood >= params.min_p, 0
        if np.count_nonzero(kept) + ties <= SMALL:
            return _ranked_place(np.sort(_with_ties(values, kept, value, ties))[::-1], params, fraction)
    with np.errstate(over="ignore"):  # a tiny temperature: exp(-inf) is 0, and the likeliest remain
        if kept is not None and params.temperature == 1:
            weights = likelihood
        else:
            weights /= params.temperature
            np.exp(weights, out=weights)
        total = kept_total = weights.sum()
        if kept is not None:
            kept_total = _sum(weights, _indices(kept)) + ties * np.exp((value - best) / params.temperature)
    return find(values, weights, fraction * kept_total, total)


def _ranked_place(ranked: np.ndarray, params: SamplingParams, fraction: float) -> tuple[np.floating, int]:
    """`_place` for logits that were cut and ranked."""
    i = drawn(probabilities(ranked, params.temperature), fraction)
    return ranked[i], i - int(np.argmax(ranked == ranked[i]))


def find(values: np.ndarray, weights: np.ndarray | None, target: float, total: float) -> tuple[np.floating, int]:
    """Where the weights, added up from the largest value down, first exceed the target.

    Args:
        values: (n,), in any order.
        weights: (n,), not negative, larger for larger values, equal for equal ones; None: 1 each.
        target: from 0 to below total.
        total: the sum of the weights.

    Returns:
        the value, and how many equal ones come before it.
    """
    # Adding n numbers in turn errs by n / 2 units in the last place of the sum at most; adding them in pairs, by fewer.
    slack = 0.0 if weights is None else 8 * len(values) * np.finfo(np.float64).eps * total

    def is_below(border: float) -> bool:
        if abs(target - border) <= slack:
            raise Unsure
        return target < border

    above, here = 0.0, total  # the sum of the weights of all larger values, and of these
    while len(values) > SMALL:
        step = len(values) // SAMPLED
        order = np.argsort(-values[::step])
        some = values[::step][order]
        its_weights = np.ones(len(some)) if weights is None else weights[::step][order]
        # The largest first: they may weigh as much as all others, and a sample misses most of them.
        part = _indices(values > some[HEAD])
        in_part = _sum(weights, part)
        if not in_part or not is_below(above + in_part):
            share = (target - above - in_part) / (here - in_part)
            low, high = bracket(some[HEAD:], its_weights[HEAD:], share)
            mask = values > high
            part = _indices(mask)
            in_part = _sum(weights, part)
            if not in_part or not is_below(above + in_part):
                above, here = above + in_part, here - in_part
                mask = mask ^ (values >= low)
                part = _indices(mask)
                in_part = _sum(weights, part)
                if is_below(above + in_part):
                    if low == high:  # they are all equal
                        return low, _nth_of(target - above, in_part / np.count_nonzero(mask), slack)
                else:
                    above, in_part = above + in_part, here - in_part
                    part = values < low
        here = in_part
        values, weights = _take(values, part), None if weights is None else _take(weights, part)
    order = np.argsort(-values)
    values = values[order]
    sums = np.arange(1.0, len(values) + 1) if weights is None else np.cumsum(weights[order])
    i = int(np.searchsorted(sums, target - above, side="right"))
    if i == len(sums) or not is_below(above + sums[i]) or (i and is_below(above + sums[i - 1])):
        raise Unsure
    return values[i], i - int(np.argmax(values == values[i]))


def bracket(values: np.ndarray, weights: np.ndarray, share: float) -> tuple[np.floating, np.floating]:
    """Two of the values, (low, high), between which this share of the weights' sum is probably reached.

    Args:
        values: (n,), a sample of more, largest first.
        weights: (n,), theirs.
    """
    sums, squares = np.cumsum(weights), np.cumsum(np.square(weights))
    goal, last = share * sums[-1], len(values) - 1
    middle = min(int(np.searchsorted(sums, goal)), last)
    # Three standard errors of a share that is estimated as a ratio of two sums.
    error = 3 * math.sqrt((1 - share) ** 2 * squares[middle] + share**2 * (squares[-1] - squares[middle]))
    i, j = np.searchsorted(sums, [goal - error, goal + error])
    if values[i] == values[0] and values[min(j, last)] == values[last]:  # that may be all of them: no progress
        i = j = middle
    return values[min(j, last)], values[i]


def _nth_of(target: float, each: float, slack: float) -> int:
    """How many equal weights fit below the target."""
    nth = int(target / each)
    if (nth and target - nth * each <= slack) or (nth + 1) * each - target <= slack:
        raise Unsure
    return nth


def _with_ties(values: np.ndarray, mask: np.ndarray, value: np.floating, ties: int) -> np.ndarray:
    """The values that the mask marks, and a value so many times, in any order."""
    return np.concatenate([_take(values, _indices(mask)), np.full(ties, value, values.dtype)])


# What a mask marks is read fastest by indices where that is little, else by the mask itself.


def _indices(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask) if np.count_nonzero(mask) * 8 < len(mask) else mask


def _take(values: np.ndarray, part: np.ndarray) -> np.ndarray:
    return np.compress(part, values) if part.dtype == bool else values[part]


def _sum(weights: np.ndarray | None, part: np.ndarray) -> float:
    """weights[part].sum(), or how many without weights."""
    if part.dtype != bool:
        return float(len(part) if weights is None else weights[part].sum())
    if weights is None:
        return float(np.count_nonzero(part))
    n = len(part) // BLOCK * BLOCK
    ones = _scratch.take(len(part))[2]
    np.copyto(ones, part)
    blocks = np.vecdot(weights[:n].reshape(-1, BLOCK), ones[:n].reshape(-1, BLOCK))
    return float(blocks.sum() + np.dot(weights[n:], ones[n:]))
