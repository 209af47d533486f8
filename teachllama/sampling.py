"""Chooses one token from logits.

The pipeline, in llama.cpp's order: penalties, top-k, top-p, min-p, temperature, draw. Independent of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teachllama.errors import ParameterError, TeachLlamaError
from teachllama.quick_draw import Unsure, quick_draw


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the defaults are greedy.

    Args:
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution; above 1 flattens it.
        top_k: keep the k likeliest tokens; 0 keeps all. https://arxiv.org/abs/1805.04833
        top_p: keep the smallest set whose probabilities reach p; 1 keeps all. https://arxiv.org/abs/1904.09751
        min_p: keep tokens at least min_p times as likely as the likeliest; 0 keeps all. https://arxiv.org/abs/2407.01082
        repeat_penalty: divide a positive logit (multiply a negative one) of tokens already seen; 1 does nothing.
            https://arxiv.org/abs/1909.05858
        presence_penalty: subtract this once from the logit of every token already seen.
        frequency_penalty: subtract this for each time a token was seen.
        penalty_last_n: how many of the last tokens count as seen; 0 none, -1 the whole session.

    Raises:
        ParameterError: a parameter is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64

    def __post_init__(self) -> None:
        for name, low, high, whole in (
            ("temperature", 0, 1000, False),
            ("top_k", 0, 2**31, True),
            ("top_p", 0, 1, False),
            ("min_p", 0, 1, False),
            ("repeat_penalty", 1e-3, 1000, False),
            ("presence_penalty", -1000, 1000, False),
            ("frequency_penalty", -1000, 1000, False),
            ("penalty_last_n", -1, 2**31, True),
        ):
            value = getattr(self, name)
            number = isinstance(value, (int, np.integer) if whole else (int, float, np.integer, np.floating))
            if not number or isinstance(value, bool) or not (math.isfinite(value) and low <= value <= high):
                kind = "a whole number" if whole else "a number"
                raise ParameterError(f"{name} is {value!r}; expected {kind} from {low} to {high}")


GREEDY = SamplingParams()


def penalize(logits: np.ndarray, seen: Sequence[int], params: SamplingParams) -> np.ndarray:
    """logits (vocab_size,) and the tokens seen, oldest first -> a copy with the three penalties applied."""
    last_n = params.penalty_last_n
    ids, counts = np.unique(np.asarray(seen[-last_n:] if last_n > 0 else seen, np.intp), return_counts=True)
    out = logits.copy()
    with np.errstate(over="ignore"):  # sample() refuses logits that are no longer finite
        out[ids] = np.where(out[ids] > 0, out[ids] / params.repeat_penalty, out[ids] * params.repeat_penalty)
    out[ids] -= counts * params.frequency_penalty + params.presence_penalty
    return out


def candidates(logits: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """logits (vocab_size,) -> (ids, probabilities), likeliest first: what top-k, top-p, min-p and temperature leave.

    Temperature must be above 0. Cuts are made on the distribution before temperature, as in llama.cpp's default order.
    """
    ids = np.arange(len(logits))
    if 0 < params.top_k < len(logits):
        # Includes all ties with the k-th largest, so that the stable sort below keeps the lowest ids.
        ids = np.flatnonzero(logits >= np.partition(logits, -params.top_k)[-params.top_k])
    ids = ids[np.argsort(-logits[ids], kind="stable")][: params.top_k or None]
    kept = logits[ids].astype(np.float64)
    likelihood = np.exp(kept - kept[0])  # relative to the likeliest
    n = len(ids)
    if params.top_p < 1:
        reached = np.cumsum(likelihood / likelihood.sum()) >= params.top_p
        n = min(n, int(np.argmax(reached)) + 1 if reached.any() else n)
    if params.min_p > 0:
        n = min(n, max(1, int(np.count_nonzero(likelihood >= params.min_p))))
    with np.errstate(over="ignore"):  # a tiny temperature: exp(-inf) is 0, and the likeliest remain
        weights = np.exp((kept[:n] - kept[0]) / params.temperature)
    return ids[:n], weights / weights.sum()


def drawn(logits: np.ndarray, params: SamplingParams, fraction: float) -> int:
    """The id of the candidate at which the cumulative probability passes `fraction`, from 0 to below 1."""
    ids, chances = candidates(logits, params)
    upto = np.cumsum(chances)
    return int(ids[min(int(np.searchsorted(upto, fraction * upto[-1], side="right")), len(ids) - 1)])


def adjusted(logits: np.ndarray, params: SamplingParams, seen: Sequence[int]) -> tuple[np.ndarray, int]:
    """logits (vocab_size,) -> logits with the penalties of the tokens seen, and the id of the (first) largest.

    Raises if the largest is not a finite number.
    """
    if (
        params.penalty_last_n
        and seen
        and (params.repeat_penalty != 1 or params.presence_penalty or params.frequency_penalty)
    ):
        logits = penalize(logits, seen, params)
    likeliest = int(logits.argmax())  # the first NaN, if there is one
    if not math.isfinite(logits[likeliest]):
        raise TeachLlamaError("the logits are not finite numbers: the model file's weights are damaged; fetch it again")
    return logits, likeliest


def sample(logits: np.ndarray, params: SamplingParams, seen: Sequence[int], rng: np.random.Generator) -> int:
    """Chooses the next token: logits (vocab_size,), the tokens seen so far, and a generator of random numbers."""
    logits, likeliest = adjusted(logits, params, seen)
    if params.temperature == 0:
        return likeliest
    fraction = rng.random()
    try:
        return quick_draw(logits, params, fraction, drawn)  # the same token, without ranking them all
    except Unsure:
        return drawn(logits, params, fraction)
