"""The exercises of lesson 03, sampling: how many tokens min-p keeps, temperature, a repetition penalty, and top-p."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import cleandoc
from typing import Any

import numpy as np

from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson
from teachllama.lessons.common.judge import near, one_number, same_set
from teachllama.sampling import SamplingParams, candidates, penalize

# ---- 1. how many tokens min-p keeps ----


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _kept(logits: np.ndarray, min_p: float, temperature: float) -> int:
    return len(candidates(logits, SamplingParams(temperature=temperature, min_p=min_p))[0])


def _count(p: np.ndarray, least: float) -> int:
    return int(np.count_nonzero(p >= least))


def _top_p_count(logits: np.ndarray, mass: float) -> int:
    return int(np.count_nonzero(np.cumsum(-np.sort(-_softmax(logits))) < mass)) + 1


def _many_logits(rng: np.random.Generator, model: Any) -> list[Case]:
    return [Case("logits", (rng.normal(0, spread, 3000), 0.2, 2.0)) for spread in (2.0, 4.0)]


MIN_P = Exercise(
    check="min_p_count",
    names=("left",),
    signature="left(logits)",
    given=cleandoc("""
        logits = np.random.default_rng(3).normal(0, 2.5, 1000)
    """),
    note="Here `logits` are a thousand made-up ones, so that no model is needed.",
    replace={"open_": "logits"},
    points=(1, 1),
    shows="apply a cut, in the engine's order",
    usual="`temperature_first`; `absolute`: min-p not taken as a share; `top_p`: added up; `cut_off`: the others "
    "counted",
    mistake=(
        "temperature_first",
        cleandoc("""
        def left(logits):
            p = softmax(logits / 2)
            return np.count_nonzero(p >= 0.2 * p.max())
    """),
    ),
    right=_kept,
    cases=(Case("", (np.random.default_rng(3).normal(0, 2.5, 1000), 0.2, 2.0)),),
    hidden_cases=_many_logits,
    passed=1,
    faults=(
        Fault(
            "temperature_first",
            lambda l, m, t: _count(_softmax(l / t), m * _softmax(l / t).max()),
            "This warms the distribution first and cuts it then. Which comes first in this engine?",
        ),
        Fault(
            "multiplied",
            lambda l, m, t: _count(_softmax(l * t), m * _softmax(l * t).max()),
            "This multiplies the logits by the temperature, and cuts then. Which comes first in this engine?",
        ),
        Fault(
            "absolute",
            lambda l, m, t: _count(_softmax(l), m),
            "This counts tokens whose probability itself reaches min_p. What is min_p a share of?",
        ),
        Fault(
            "logit_share",
            lambda l, m, t: _count(l, m * l.max()),
            "This takes a share of the largest logit. Min-p is about probabilities: softmax first.",
        ),
        Fault(
            "top_p",
            lambda l, m, t: _top_p_count(l, m),
            "This adds up probabilities until they reach the number, as top-p does. Min-p looks at each token alone.",
        ),
        Fault("cut_off", lambda l, m, t: len(l) - _kept(l, m, t), "These are the tokens that are thrown away."),
        Fault("all", lambda l, m, t: len(l), "This is the whole vocabulary: nothing was cut."),
    ),
    praise="A share of the likeliest token's probability, before any temperature.",
    otherwise="It is none of the usual mistakes. What is min_p a share of?",
    more="Compare each token's probability with the likeliest token's, at temperature 1.",
    read=one_number,
    same=near(0),
)

# ---- 2. temperature ----

_TEMPERATURE_CASES = tuple(
    Case(f"{about} at temperature {t}", (np.array(logits), t))
    for about, logits in (
        ("three logits", [2.0, 1.0, -1.0]),
        ("logits below zero", [-3.0, -1.5, -1.0, -8.0]),
        ("logits of a thousand", [1000.0, 999.0, 997.0]),
        ("logits far apart", [900.0, -900.0, 899.0]),
    )
    for t in (0.5, 1.0, 2.0)
)


def _weighted(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / x.sum())


def _hot_and_cold(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case("logits", (rng.normal(0, spread, 50), t)) for spread, t in ((1, 0.3), (5, 1.7), (3000, 0.9), (2, 10.0))
    ]


TEMPERATURE = Exercise(
    check="temperature",
    names=("my_temperature",),
    points=(2, 1),
    shows="reshape a distribution",
    usual="`multiplied`; `probabilities`: divided after the softmax; `overflow`; `not_normalized`",
    mistake=(
        "multiplied",
        cleandoc("""
        def my_temperature(logits, temperature):
            return softmax(logits * temperature)
    """),
    ),
    right=lambda l, t: _softmax(l / t),
    cases=_TEMPERATURE_CASES,
    hidden_cases=_hot_and_cold,
    faults=(
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
    ),
    praise="Scaled before the softmax, added up to 1, and safe for logits of a thousand.",
)

# ---- 3. a repetition penalty ----

_PENALTY_CASES = tuple(
    Case(about, (np.array([2.0, -1.0, 3.0, 0.5, -4.0, -0.5]), seen, penalty))
    for about, seen, penalty in (
        ("a token seen once", [0], 1.3),
        ("a token with a logit below zero", [1], 1.5),
        ("a token seen three times", [2, 0, 2, 2, 4], 1.3),
        ("small logits on both sides of zero", [3, 5], 1.4),
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


def _right_penalty(l: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    return penalize(l, seen, SamplingParams(repeat_penalty=penalty, penalty_last_n=-1))


def _skips_negatives(l: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    out = l.copy()
    for i in set(seen):
        out[i] = out[i] / penalty if out[i] > 0 else out[i]
    return out


def _penalties(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case("logits", (rng.normal(0, 3, 20), rng.integers(0, 20, n).tolist(), penalty))
        for n, penalty in ((3, 1.1), (40, 1.5), (0, 2.0))
    ]


REPEAT_PENALTY = Exercise(
    check="repeat_penalty",
    names=("my_repeat_penalty",),
    points=(2, 1),
    shows="apply a penalty as models expect it",
    usual="`negative_logits`: a reward below zero; `each_time`; `subtracted`; `reversed`; `every_token`; `in_place`",
    mistake=(
        "negative_logits",
        cleandoc("""
        def my_repeat_penalty(logits, seen, penalty):
            out = logits.copy()
            for token in set(seen):
                out[token] = out[token] / penalty
            return out
    """),
    ),
    right=_right_penalty,
    cases=_PENALTY_CASES,
    hidden_cases=_penalties,
    faults=(
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
        Fault(
            "negatives_skipped",
            _skips_negatives,
            "It leaves logits below zero as they are. A token seen with such a logit should become less likely, too.",
        ),
    ),
    praise="Positive logits shrink, negative ones sink, each seen token once, and the original is untouched.",
)

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


def _right_top_p(q: np.ndarray, p: float) -> np.ndarray:  # the practice cases' sums are exact, unlike softmax's
    return _sorted_cut(q, _reached(-np.sort(-q), p))


def _mask(q: np.ndarray, p: float) -> np.ndarray:
    out = np.zeros(len(q), bool)
    out[_right_top_p(q, p)] = True
    return out


def _distributions(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case("probabilities", (_softmax(rng.normal(0, spread, 40)), p))
        for spread, p in ((1, 0.9), (3, 0.6), (6, 0.3), (0.1, 0.99))
    ]


TOP_P = Exercise(
    check="top_p",
    names=("my_top_p",),
    points=(3, 1),
    shows="cut by accumulated probability",
    usual="`crossing_token` left out; `one_too_many`; `unsorted`; `ranks` for ids; `min_p`; `least_likely_first`",
    mistake=(
        "crossing_token",
        cleandoc("""
        def my_top_p(probabilities, p):
            order = np.argsort(-probabilities)
            return order[np.cumsum(probabilities[order]) <= p]
    """),
    ),
    right=_right_top_p,
    cases=_TOP_P_CASES,
    hidden_cases=_distributions,
    faults=(
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
        Fault("mask", _mask, "These are True and False, one per token. Which ids are True?"),
        Fault(
            "the_rest",
            lambda q, p: _sorted_cut(q, None)[np.cumsum(-np.sort(-q)) >= p],
            "These are the tokens from where the sum has reached p: the tail. Wanted are those until then.",
        ),
    ),
    praise="The smallest set that reaches p, with the token that crosses it, and never empty.",
    same=same_set,
)

LESSON = Lesson(
    "03_sampling",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook03 as check
        from teachllama.check.core import assert_right


        def softmax(logits):
            e = np.exp(logits.astype(np.float64) - logits.max())
            return e / e.sum()
    """),
    (MIN_P, TEMPERATURE, REPEAT_PENALTY, TOP_P),
)
