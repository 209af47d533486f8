"""The checks that notebook 08 calls."""

from __future__ import annotations

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge
from teachllama.lessons.n08_serving.exercises import ADMISSION, PAGES, SHARES, WAITS

__all__ = ["CheckResult", "admission", "hint", "pages", "shares", "waits"]


def pages(function: object) -> CheckResult:
    """Checks a learner's `f(n_prompt, n_new, n_layers, page) -> pages`: the pages that a request holds at its end."""
    return judge(function, PAGES)


def shares(function: object) -> CheckResult:
    """Checks a learner's `f(left, budget) -> tokens`: how many each running request gets in one step, oldest first."""
    return judge(function, SHARES)


def admission(function: object) -> CheckResult:
    """Checks a learner's `f(needs, free, promised, places) -> n`: how many waiting requests are admitted."""
    return judge(function, ADMISSION)


def waits(function: object) -> CheckResult:
    """Checks a learner's `f(log, request) -> [seconds to the first token, longest time between two tokens]`."""
    return judge(function, WAITS)
