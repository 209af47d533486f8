"""The checks that notebook 13 calls."""

from __future__ import annotations

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge
from teachllama.lessons.n13_guess.exercises import AFTER_GUESS, BEST_K, LOOK_UP, TOKENS

__all__ = ["CheckResult", "after_guess", "best_k", "hint", "look_up", "tokens_per_pass"]


def tokens_per_pass(function: object) -> CheckResult:
    """Checks a learner's `f(a, k) -> number`: tokens per pass with k guesses, each right with probability a."""
    return judge(function, TOKENS)


def after_guess(function: object) -> CheckResult:
    """Checks a learner's `f(p, q, guess, u) -> array`: the distribution of the next token, given u."""
    return judge(function, AFTER_GUESS)


def look_up(function: object) -> CheckResult:
    """Checks a learner's `f(tokens, n, k) -> list`: at most k tokens after the previous occurrence of the last n."""
    return judge(function, LOOK_UP)


def best_k(function: object) -> CheckResult:
    """Checks a learner's `f(a, seconds) -> k`; seconds[k] is the time of a pass with k guesses."""
    return judge(function, BEST_K)
