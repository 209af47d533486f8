"""Judging a learner's answer: right, a known mistake, right in some cases, an unknown mistake, not a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.exercise import Case, Exercise, Fault
from teachllama.lessons.common.judge import judge, judge_answer, judge_hidden, same_set


def exercise(**options: Any) -> Exercise:
    options = {
        "right": lambda x, k: x * k,
        "cases": (Case("two numbers", (np.array([1.0, 2.0]), 3)), Case("three", (np.array([1.0, 2.0, -3.0]), 2))),
        "hidden_cases": lambda rng, model: [Case("others", (rng.normal(size=4), 7))],
        "faults": (
            Fault("added", lambda x, k: x + k, "It adds."),
            Fault("total", lambda x, k: x.sum() * k, "It sums."),
            Fault("looped", lambda x, k: 1 / 0, "It fails, and no answer is like it."),
        ),
        "praise": "Well done.",
    } | options
    return Exercise("f", ("f",), (1, 1), "scale", "`added`", ("added", "f = 0"), **options)


SCALE = exercise()


def in_place(x: np.ndarray, k: int) -> np.ndarray:
    x *= k
    return x


@pytest.mark.parametrize(
    ("function", "mistake"),
    [
        (lambda x, k: x * k, None),
        (lambda x, k: [float(v * k) for v in x], None),
        (lambda x, k: (v * k for v in x), None),
        (lambda x, k: ([v * k] for v in x), "shape"),
        (lambda x, k: tuple(np.float32(v * k) for v in x), None),
        (lambda x, k: x * k + 1e-9, None),
        (lambda x, k: x + k, "added"),
        (lambda x, k: x.sum() * k, "total"),
        (lambda x, k: float(x.sum() * k), "total"),
        (lambda x, k: [x.sum() * k], "total"),
        (in_place, "in_place"),
        (lambda x, k: x * 3, "some_cases"),
        (lambda x, k: x > 0, None),
        (lambda x, k: None, "unanswered"),
        (lambda x, k: ..., "unanswered"),
        (lambda x, k: "no", "type"),
        (3, "type"),
    ],
)  # fmt: skip
def test_a_function_is_right_or_its_mistake_is_named(function: Any, mistake: str | None) -> None:
    result = judge(function, SCALE)
    assert result.mistake == mistake, result
    assert result.ok == (result.message == "Well done.")


def test_what_is_not_recognised_says_on_which_case_and_how() -> None:
    message: Callable[[Any], str] = lambda f: judge(f, SCALE).message
    assert message(lambda x, k: x[:1]) == "On two numbers it returns 1 number where 2 numbers should be."
    assert message(lambda x, k: np.float64(5)) == "On two numbers it returns a single number where 2 numbers should be."
    assert "2 x 1 numbers" in message(lambda x, k: x[:, None])
    assert message(lambda x, k: x * 0) == "On two numbers it returns something else than it should."
    assert message(lambda x, k: x > 0) == "On two numbers it returns True and False where numbers should be."
    assert "(Tried on: two numbers.)" in message(lambda x, k: 1 / 0)
    assert "(Tried on: three.)" in message(lambda x, k: x * k if len(x) == 2 else "no")
    assert "(Tried on: two numbers.)" in message(lambda x, k: x + k)


def test_the_second_hint_shows_the_failing_input_what_came_and_what_is_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = judge(lambda x, k: x * 3, SCALE)
    assert "check.hint() says more" in repr(result)
    hint()
    shown = " ".join(capsys.readouterr().out.split())
    assert shown == "Given [ 1., 2., -3.], 2, it returns [ 3., 6., -9.]; right is [ 2., 4., -6.]."
    assert "hint()" not in repr(judge(lambda x, k: x * k, SCALE))
    hint()
    assert "Nothing is open" in capsys.readouterr().out


def test_an_answer_that_fails_on_the_way_is_named_by_what_came_before() -> None:
    assert judge(lambda x, k: x + k if len(x) == 2 else 1 / 0, SCALE).mistake == "added"
    assert judge(lambda x, k: x * k if len(x) == 2 else 1 / 0, SCALE).mistake == "exception"


def test_two_faults_that_an_answer_cannot_tell_apart_are_both_named() -> None:
    twins = exercise(faults=(*SCALE.faults, Fault("plus", lambda x, k: k + x, "It is plus.")))
    result = judge(lambda x, k: x + k, twins)
    assert result.mistake == "added or plus"
    assert "It adds. Or: It is plus." in result.message


def test_the_order_matters_unless_it_is_said_not_to() -> None:
    backwards: Callable[..., Any] = lambda x, k: (x * k)[::-1]
    assert not judge(backwards, SCALE).ok
    assert judge(backwards, exercise(same=same_set)).ok


def test_a_function_gets_copies() -> None:
    judge(in_place, SCALE)
    assert SCALE.visible()[0].arguments[0].tolist() == [1, 2]


def test_a_value_is_judged_in_the_place_of_a_function() -> None:
    assert judge_answer([2.0, 4.0], SCALE, np.array([1.0, 2.0]), 2).ok
    assert judge_answer([3.0, 4.0], SCALE, np.array([1.0, 2.0]), 2).mistake == "added"


@pytest.mark.parametrize(
    ("function", "mistake"),
    [
        (lambda x, k: x + k, "added"),
        (lambda x, k: x * 3, "other_values"),
        (lambda x, k: x[:1], "other_values"),
        (lambda x, k: None, "unanswered"),
        (lambda x, k: 1 / 0, "exception"),
        (in_place, "in_place"),
        (None, "type"),
    ],
)
def test_a_hidden_test_names_the_mistake_and_shows_nothing_of_its_cases(function: Any, mistake: str) -> None:
    result = judge_hidden(function, SCALE, "a seed")
    assert (result.ok, result.mistake, result.more) == (False, mistake, "")
    assert "others" not in result.message
    assert "Tried on" not in result.message


def test_hidden_cases_are_the_same_for_a_seed_and_others_for_another() -> None:
    assert judge_hidden(lambda x, k: x * k, SCALE, "ada").ok
    first, again, other = (SCALE.hidden(seed)[0].arguments[0] for seed in ("ada", "ada", "bob"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_endless_function_is_stopped() -> None:
    def endless(*_: Any) -> CheckResult:
        while True:
            pass

    assert judge(endless, exercise(seconds=0.2)).mistake == "endless"
    assert judge_hidden(endless, exercise(seconds=0.2), "a").mistake == "endless"
