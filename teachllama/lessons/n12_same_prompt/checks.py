"""The checks that notebook 12 calls."""

from __future__ import annotations

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge
from teachllama.lessons.n12_same_prompt.exercises import LANES, MAY_PART, PROMISE, SAME_BITS

__all__ = ["CheckResult", "hint", "lane_sum", "may_part", "promise", "same_bits"]


def lane_sum(function: object) -> CheckResult:
    """Checks a learner's `f(numbers, lanes) -> sum`: float32, bit for bit as a vector unit with `lanes` lanes adds."""
    return judge(function, LANES)


def may_part(function: object) -> CheckResult:
    """Checks a learner's `f(gaps, noise) -> step`: the first at which two engines may choose different tokens."""
    return judge(function, MAY_PART)


def same_bits(function: object) -> CheckResult:
    """Checks a learner's `f(a, b) -> True or False`: whether the engine promises the same bits for both evaluations."""
    return judge(function, SAME_BITS)


def promise(function: object) -> CheckResult:
    """Checks a learner's `f(promise, seen) -> "kept", "broken" or "open"`; the notebook describes both."""
    return judge(function, PROMISE)
