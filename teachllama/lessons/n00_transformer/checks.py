"""The checks that notebook 00 calls."""

from __future__ import annotations

from typing import Any

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge, judge_answer
from teachllama.lessons.n00_transformer.exercises import MASK, RMSNORM, ROPE, WEIGHTS, shape_of

__all__ = ["CheckResult", "hidden", "hint", "rmsnorm", "rope", "weights_of_a_llama"]


def weights_of_a_llama(answer: object, shape: Any) -> CheckResult:
    """Checks how many weights a Llama has.

    Args:
        answer: the learner's number.
        shape: a dictionary or an object that has the fields of `exercises.Shape`.

    Raises:
        ParameterError: a field is missing or has an invalid value.
    """
    return judge_answer(answer, WEIGHTS, shape_of(shape)._asdict())


def rmsnorm(function: object) -> CheckResult:
    """Checks `rmsnorm(x, weight, eps)`: x (n, d), weight (d,) -> (n, d)."""
    return judge(function, RMSNORM)


def hidden(function: object) -> CheckResult:
    """Checks `hidden(n, n_past)` -> booleans (n, n_past + n), True where token i must not see position j."""
    return judge(function, MASK)


def rope(function: object) -> CheckResult:
    """Checks `rope(x, positions, base)`: x (n, d), positions (n,) -> (n, d), with adjacent pairs rotated."""
    return judge(function, ROPE)
