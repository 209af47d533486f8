"""The checks of notebook 03, sampling: how many tokens min-p keeps, temperature, a repetition penalty, and top-p."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from teachllama.check.core import CheckResult, Slip, number, recognise
from teachllama.check.functions import Case, Fault, compare
from teachllama.errors import ParameterError, TeachLlamaError
from teachllama.sampling import SamplingParams, candidates, penalize

# ---- 1. how many tokens min-p keeps ----


def min_p_count(answer: object, logits: np.ndarray, min_p: float, temperature: float) -> CheckResult:
    """Checks how many tokens `min_p` keeps where the engine samples at `temperature`.

    Args:
        answer: the learner's number.
        logits: (vocab_size,).
        min_p, temperature: as `SamplingParams` takes them; temperature above 0.
    """
    found = number(answer)
    if isinstance(found, CheckResult):
        return found
    try:
        params = SamplingParams(temperature=temperature, min_p=min_p)
        if not temperature:
            raise ParameterError("temperature is 0, which draws nothing; expected a number above 0")
        logits = np.asarray(logits, np.float64)
        right = len(candidates(logits, params)[0])
        probabilities, hot = _softmax(logits), _softmax(logits / temperature)
    except (TeachLlamaError, ValueError, TypeError, ZeroDivisionError) as e:
        return CheckResult(False, f"The question needs another look before the answer: {e}.", "question")
    ranked = -np.sort(-probabilities)
    slips = [
        Slip(
            "temperature_first",
            int(np.count_nonzero(hot >= min_p * hot.max())),
            "This warms the distribution first and cuts it then. Which comes first in this engine?",
        ),
        Slip(
            "absolute",
            int(np.count_nonzero(probabilities >= min_p)),
            "This counts tokens whose probability itself reaches min_p. What is min_p a share of?",
        ),
        Slip(
            "top_p",
            int(np.count_nonzero(np.cumsum(ranked) < min_p)) + 1,
            "This adds up probabilities until they reach the number, as top-p does. Min-p looks at each token alone.",
        ),
        Slip(
            "cut_off",
            len(logits) - right,
            "These are the tokens that are thrown away.",
        ),
        Slip("all", len(logits), "This is the whole vocabulary: nothing was cut."),
    ]
    off = "few" if found < right else "many"
    return recognise(
        found,
        right,
        slips,
        "A share of the likeliest token's probability, before any temperature.",
        f"Too {off}, and not in one of the usual ways. Compare each token with the likeliest.",
    )


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


# ---- 2. temperature ----

_TEMPERATURE_CASES = tuple(
    Case(f"{about} at temperature {t}", (np.array(logits), t))
    for about, logits in (
        ("three logits", [2.0, 1.0, -1.0]),
        ("logits below zero", [-3.0, -1.5, -1.0, -8.0]),
        ("logits of a thousand", [1000.0, 999.0, 997.0]),
    )
    for t in (0.5, 1.0, 2.0)
)


def _weighted(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / x.sum())


def temperature(function: object) -> CheckResult:
    """Checks a learner's `f(logits, temperature) -> probabilities`, temperature above 0."""
    faults = (
        Fault(
            "multiplied",
            lambda l, t: _softmax(l * t),
            "It multiplies by the temperature, so that 2 sharpens and 0.5 flattens.",
        ),
        Fault(
            "probabilities",
            lambda l, t: _weighted(_softmax(l) / t),
            "It divides the probabilities. Making them add up to 1 again undoes that: every temperature gives the "
            "same. Divide something earlier.",
        ),
        Fault("ignored", lambda l, t: _softmax(l), "The temperature makes no difference to what it returns."),
        Fault(
            "overflow",
            lambda l, t: _weighted(np.exp(l / t)),
            "Right for small logits, but exp of a large one is too large for a float, and infinity over infinity is "
            "not a number. Which amount can you take from all logits without changing the result?",
        ),
        Fault(
            "not_normalized",
            lambda l, t: np.exp((l - l.max()) / t),
            "The proportions are right, but they do not add up to 1.",
        ),
        Fault("not_normalized", lambda l, t: np.exp(l / t), "Probabilities add up to 1; these do not."),
        Fault("logits", lambda l, t: l / t, "These are logits still, though scaled ones; probabilities are wanted."),
    )
    return compare(
        function,
        _TEMPERATURE_CASES,
        lambda l, t: _softmax(l / t),
        faults,
        "Scaled before the softmax, added up to 1, and safe for logits of a thousand.",
    )


# ---- 3. a repetition penalty ----

_PENALTY_CASES = tuple(
    Case(about, (np.array([2.0, -1.0, 3.0, 0.5, -4.0]), seen, penalty))
    for about, seen, penalty in (
        ("a token seen once", [0], 1.3),
        ("a token with a logit below zero", [1], 1.5),
        ("a token seen three times", [2, 0, 2, 2, 4], 1.3),
        ("no tokens seen", [], 1.3),
        ("a penalty of 1", [0, 1], 1.0),
    )
)


def _divided(l: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    out = l.copy()
    out[list(set(seen))] /= penalty
    return out


def _each_time(l: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    out = l.copy()
    for i in seen:
        out[i] = out[i] / penalty if out[i] > 0 else out[i] * penalty
    return out


def _each_time_divided(l: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    out = l.copy()
    for i in seen:
        out[i] /= penalty
    return out


def _subtracted(l: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    out = l.copy()
    out[list(set(seen))] -= penalty
    return out


def _rewarded(l: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    out = l.copy()
    for i in set(seen):
        out[i] = out[i] * penalty if out[i] > 0 else out[i] / penalty
    return out


def repeat_penalty(function: object) -> CheckResult:
    """Checks a learner's `f(logits, seen, penalty) -> logits`, seen being a list of token ids, oldest first."""
    faults = (
        Fault(
            "negative_logits",
            _divided,
            "It divides every logit. Dividing one below zero brings it nearer to zero: a reward for repeating.",
        ),
        Fault(
            "each_time",
            _each_time,
            "It applies the penalty again for each time a token was seen. This one asks only whether it was.",
        ),
        Fault(
            "each_time and negative_logits",
            _each_time_divided,
            "Two things at once. It applies the penalty for each time a token was seen, where once is wanted; and "
            "dividing a logit below zero is a reward.",
        ),
        Fault("subtracted", _subtracted, "It subtracts the penalty, which is what a presence penalty does."),
        Fault("reversed", _rewarded, "It makes tokens that were seen likelier, not less likely."),
        Fault("unchanged", lambda l, s, p: l, "It returns the logits as they were."),
        Fault(
            "every_token",
            lambda l, s, p: np.where(l > 0, l / p, l * p),
            "It changes the logits of all tokens, also of those that were not seen.",
        ),
    )

    def right(l: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
        return penalize(l, seen, SamplingParams(repeat_penalty=penalty, penalty_last_n=-1))

    praise = "Positive logits shrink, negative ones sink, each seen token once, and the original is untouched."
    return compare(function, _PENALTY_CASES, right, faults, praise)


# ---- 4. top-p ----

_TOP_P_CASES = tuple(
    Case(about, (np.array(probabilities), p))
    for about, probabilities, p in (
        ("sorted probabilities", [0.5, 0.25, 0.125, 0.0625, 0.0625], 0.7),
        ("probabilities in no order", [0.0625, 0.25, 0.125, 0.5, 0.0625], 0.8),
        ("a first token that is enough alone", [0.0625, 0.875, 0.0625], 0.5),
        ("probabilities that reach p exactly", [0.25, 0.5, 0.125, 0.125], 0.75),
        ("p = 1", [0.25, 0.5, 0.25], 1.0),
    )
)


def _sorted_cut(p: np.ndarray, n: Any) -> np.ndarray:
    return np.argsort(-p, kind="stable")[:n]


def _reached(ranked: np.ndarray, mass: float) -> int:
    return min(len(ranked), int(np.count_nonzero(np.cumsum(ranked) < mass)) + 1)


def top_p(function: object) -> CheckResult:
    """Checks a learner's `f(probabilities, p) -> ids` of the tokens that top-p keeps, in any order."""
    faults = (
        Fault(
            "crossing_token",
            lambda q, p: _sorted_cut(q, np.count_nonzero(np.cumsum(-np.sort(-q)) < p)),
            "It leaves out the token that makes the sum reach p. Where the first token is enough alone, nothing is "
            "left.",
        ),
        Fault(
            "crossing_token",
            lambda q, p: _sorted_cut(q, np.count_nonzero(np.cumsum(-np.sort(-q)) <= p)),
            "It keeps tokens while the sum is not above p, and leaves out the one that makes it reach p. Where the "
            "first token is enough alone, nothing is left.",
        ),
        Fault(
            "one_too_many",
            lambda q, p: _sorted_cut(q, np.count_nonzero(np.cumsum(-np.sort(-q)) <= p) + 1),
            "Where the sum reaches p exactly it takes one token more. Reached is enough.",
        ),
        Fault(
            "unsorted",
            lambda q, p: np.arange(_reached(q, p)),
            "It adds up the tokens in the order of their ids. Likeliest first.",
        ),
        Fault(
            "ranks",
            lambda q, p: np.arange(_reached(-np.sort(-q), p)),
            "The number of tokens is right, but these are their ranks, 0, 1, 2, and not their ids.",
        ),
        Fault(
            "probabilities",
            lambda q, p: (-np.sort(-q))[: _reached(-np.sort(-q), p)],
            "These are the probabilities of the tokens kept; their ids are wanted.",
        ),
        Fault(
            "min_p",
            lambda q, p: np.flatnonzero(q >= p * q.max()),
            "It compares each token with the likeliest, as min-p does. Top-p adds up.",
        ),
        Fault(
            "least_likely_first",
            lambda q, p: np.argsort(q, kind="stable")[: _reached(np.sort(q), p)],
            "It adds up from the least likely token. Likeliest first.",
        ),
    )

    def right(q: np.ndarray, p: float) -> np.ndarray:  # on sums that are exact, unlike those of softmax
        return _sorted_cut(q, _reached(-np.sort(-q), p))

    praise = "The smallest set that reaches p, with the token that crosses it, and never empty."
    return compare(function, _TOP_P_CASES, right, faults, praise, unordered=True)
