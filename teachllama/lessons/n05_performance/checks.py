"""The checks that notebook 05 calls."""

from __future__ import annotations

import math

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge, judge_answer
from teachllama.lessons.n05_performance.exercises import DECODE_SPEED, FAIR, KL, KNEE, SPEED_IN_CONTEXT, Question, World

__all__ = [
    "CheckResult",
    "Question",
    "World",
    "decode_speed",
    "fair_comparison",
    "hint",
    "kl_divergence",
    "knee",
    "speed_in_context",
]


def decode_speed(answer: object, question: Question) -> CheckResult:
    """Checks a predicted decode speed, tokens per second, to 1 %.

    Args:
        answer: the learner's number.
        question: the model, the type of weights and the machine.
    """
    if not all(isinstance(q, (int, float)) and math.isfinite(q) and q > 0 for q in question):
        return CheckResult(False, "The question needs another look: all four of its numbers are above 0.", "question")
    return judge_answer(answer, DECODE_SPEED, question)


def knee(function: object) -> CheckResult:
    """Checks a learner's `f(bandwidth, flops, bytes_per_weight)`: the fewest tokens at once past the knee."""
    return judge(function, KNEE)


def speed_in_context(function: object) -> CheckResult:
    """Checks a learner's `f(bandwidth, weights_nbytes, position_nbytes, n_past)`: predicted tokens per second."""
    return judge(function, SPEED_IN_CONTEXT)


def kl_divergence(function: object) -> CheckResult:
    """Checks a learner's `f(reference_logits, logits)`: the KL divergence from the reference, in nats."""
    return judge(function, KL)


def fair_comparison(function: object) -> CheckResult:
    """Checks a learner's `f(ours, theirs, clock, pairs)`: how many times faster `ours` is, measured in alternation.

    `ours` and `theirs` are called without arguments; `clock()` gives seconds.
    """
    return judge(function, FAIR)
