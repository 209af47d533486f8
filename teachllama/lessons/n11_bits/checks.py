"""The checks that notebook 11 calls."""

from __future__ import annotations

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge
from teachllama.lessons.n11_bits.exercises import CHOOSE, Q8_0, READ_Q4_1, TENSOR_BYTES

__all__ = ["CheckResult", "choose", "hint", "q8_0", "read_q4_1", "tensor_bytes"]


def q8_0(function: object) -> CheckResult:
    """Checks a learner's `f(x) -> the 32 whole numbers of a block of Q8_0`; `x` is float32 (32,)."""
    return judge(function, Q8_0)


def tensor_bytes(function: object) -> CheckResult:
    """Checks a learner's `f(shape, weights, nbytes) -> bytes` of a tensor, or -1 if its rows aren't whole blocks."""
    return judge(function, TENSOR_BYTES)


def choose(function: object) -> CheckResult:
    """Checks a learner's `f(formats, n_weights, budget) -> name`; a format is (name, bits per weight, divergence)."""
    return judge(function, CHOOSE)


def read_q4_1(function: object) -> CheckResult:
    """Checks a learner's `f(block) -> 32 weights`; block is uint8 (20,)."""
    return judge(function, READ_Q4_1)
