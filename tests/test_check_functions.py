"""Judging a learner's function: right, a known mistake, some cases, an unknown mistake, and what is no function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from teachllama.check.core import CheckResult
from teachllama.check.functions import Case, Fault, compare

CASES = (Case("two numbers", (np.array([1.0, 2.0]), 3)), Case("three", (np.array([1.0, 2.0, -3.0]), 2)))
FAULTS = (Fault("added", lambda x, k: x + k, "It adds."), Fault("total", lambda x, k: x.sum() * k, "It sums."))


def judged(function: Any, **options: Any) -> CheckResult:
    return compare(function, CASES, lambda x, k: x * k, FAULTS, "Well done.", **options)


def in_place(x: np.ndarray, k: int) -> np.ndarray:
    x *= k
    return x


@pytest.mark.parametrize(
    ("function", "mistake"),
    [
        (lambda x, k: x * k, None),
        (lambda x, k: [float(v * k) for v in x], None),
        (lambda x, k: (v * k for v in x), None),
        (lambda x, k: x * k + 1e-9, None),
        (lambda x, k: x + k, "added"),
        (lambda x, k: x.sum() * k, "total"),
        (lambda x, k: float(x.sum() * k), "total"),
        (in_place, "in_place"),
        (lambda x, k: x * 3, "some_cases"),
        (lambda x, k: None, "unanswered"),
        (lambda x, k: "no", "type"),
        (3, "type"),
    ],
)  # fmt: skip
def test_a_function_is_right_or_its_mistake_is_named(function: Any, mistake: str | None) -> None:
    result = judged(function)
    assert (result.ok, result.mistake) == (mistake is None, mistake), result


def test_what_is_not_recognised_says_on_which_case_and_how() -> None:
    assert judged(lambda x, k: x[:1]).message == "On two numbers it returns 1 number where 2 numbers should be."
    assert judged(lambda x, k: 5.0).message == "On two numbers it returns one number where 2 numbers should be."
    assert "2 x 1 numbers" in judged(lambda x, k: x[:, None]).message
    assert judged(lambda x, k: x * 0).message == "On two numbers it returns something else than it should."


def test_the_order_matters_unless_it_is_said_not_to() -> None:
    backwards: Callable[..., Any] = lambda x, k: (x * k)[::-1]
    assert not judged(backwards).ok
    assert judged(backwards, unordered=True).ok


def test_a_function_gets_copies() -> None:
    judged(in_place)
    assert CASES[0].arguments[0].tolist() == [1, 2]
