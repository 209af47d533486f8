"""The checks that notebook 09 calls."""

from __future__ import annotations

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge
from teachllama.lessons.n09_prefixes.exercises import EVICT, FORKS, ORDER, REUSABLE

__all__ = ["CheckResult", "fork_bytes", "hint", "order_parts", "reusable", "which_leaf"]


def reusable(function: object) -> CheckResult:
    """Checks a learner's `f(held, wanted) -> number` of tokens that need no evaluation; both are arrays of ids."""
    return judge(function, REUSABLE)


def which_leaf(function: object) -> CheckResult:
    """Checks a learner's `f(tree) -> row`; a row of the tree is (parent, last used, sessions that hold it)."""
    return judge(function, EVICT)


def order_parts(function: object) -> CheckResult:
    """Checks a learner's `f(sizes, versions) -> order`; `versions` is an array (requests, parts)."""
    return judge(function, ORDER)


def fork_bytes(function: object) -> CheckResult:
    """Checks a learner's `f(n_past, n_new, n_forks, shape) -> bytes`; shape is (layers, bytes of a page)."""
    return judge(function, FORKS)
