"""The checks that notebook 03 calls."""

from __future__ import annotations

import numpy as np

from teachllama.errors import ParameterError, TeachLlamaError
from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge, judge_answer
from teachllama.lessons.n03_sampling.exercises import MIN_P, REPEAT_PENALTY, TEMPERATURE, TOP_P
from teachllama.sampling import SamplingParams

__all__ = ["CheckResult", "hint", "min_p_count", "repeat_penalty", "temperature", "top_p"]


def min_p_count(answer: object, logits: np.ndarray, min_p: float, temperature: float) -> CheckResult:
    """Checks how many tokens `min_p` keeps when the engine samples at `temperature`.

    Args:
        answer: the learner's number.
        logits: (vocab_size,).
        min_p, temperature: as `SamplingParams` takes them; temperature above 0.
    """
    try:
        SamplingParams(temperature=temperature, min_p=min_p)
        if not temperature:
            raise ParameterError("temperature is 0, which draws nothing; expected a number above 0")
        return judge_answer(answer, MIN_P, np.asarray(logits, np.float64), min_p, temperature)
    except (TeachLlamaError, ValueError, TypeError, ZeroDivisionError) as e:
        return CheckResult(False, f"The question needs another look before the answer: {e}.", "question")


def temperature(function: object) -> CheckResult:
    """Checks a learner's `f(logits, temperature) -> probabilities`, temperature above 0."""
    return judge(function, TEMPERATURE)


def repeat_penalty(function: object) -> CheckResult:
    """Checks a learner's `f(logits, seen, penalty) -> logits`; `seen` is a list of token ids, oldest first."""
    return judge(function, REPEAT_PENALTY)


def top_p(function: object) -> CheckResult:
    """Checks a learner's `f(probabilities, p) -> ids` of the tokens that top-p keeps, in any order."""
    return judge(function, TOP_P)
