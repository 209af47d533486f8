"""The checks that notebook 07 calls."""

from __future__ import annotations

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge, judge_answer
from teachllama.lessons.n07_embeddings.exercises import CENTRING, COSINE, INDEX, MEAN_POOL, NEAREST

__all__ = ["CheckResult", "centring", "cosine", "hint", "index_bytes", "mean_pool", "nearest"]


def mean_pool(function: object) -> CheckResult:
    """Checks a learner's `f(states) -> vector`: (n_tokens, dim) -> (dim,), the mean over the tokens."""
    return judge(function, MEAN_POOL)


def cosine(function: object) -> CheckResult:
    """Checks a learner's `f(a, b) -> number`: the cosine of the angle between two vectors of any length."""
    return judge(function, COSINE)


def nearest(function: object) -> CheckResult:
    """Checks a learner's `f(vectors, i) -> index` of the row most similar to row i, except i; rows have length 1."""
    return judge(function, NEAREST)


def centring(function: object) -> CheckResult:
    """Checks a learner's `f(vectors) -> vectors`: the mean vector subtracted, then every row scaled to length 1."""
    return judge(function, CENTRING)


def index_bytes(answer: object, n_texts: int, dim: int, bytes_per_number: int = 4) -> CheckResult:
    """Checks how many bytes the vectors of `n_texts` texts take.

    Args:
        answer: the learner's number.
        n_texts: the number of texts, one vector each.
        dim: numbers in a vector.
        bytes_per_number: 4 for float32.
    """
    return judge_answer(answer, INDEX, dim, n_texts, bytes_per_number)
