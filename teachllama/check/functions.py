"""Judging a function that a learner wrote: run on cases that tell every usual mistake apart, and compared with what is
right and with functions that make those mistakes.

Knows nothing of any exercise; a notebook's checks give the cases, the right function and the faulty ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from teachllama.check.core import CheckResult, run, type_name


class Case(NamedTuple):
    """Arguments to try a function on."""

    about: str  # as in "On {about} it returns ..."
    arguments: tuple[Any, ...]  # the first is an array or a list, which the function may not change


class Fault(NamedTuple):
    """A usual mistake."""

    name: str
    function: Callable[..., Any]  # makes it
    text: str  # what was misunderstood, without the right answer


def compare(
    function: Any,
    cases: Sequence[Case],
    right: Callable[..., Any],
    faults: Sequence[Fault],
    praise: str,
    *,
    unordered: bool = False,
) -> CheckResult:
    """Runs a learner's function on every case; names the fault that gives the same answers on all of them.

    Args:
        function: the learner's; it gets copies, and returns a number or numbers in any nesting.
        cases: what to try it on.
        right: takes the same arguments.
        faults: the likeliest first.
        praise: what to say when it is right.
        unordered: the numbers are a set: their order does not matter.
    """
    if not callable(function):
        return CheckResult(False, "Give the function itself, without calling it.", "type")
    answers: list[np.ndarray] = []
    changed = False
    for case in cases:
        given = tuple(
            a.copy() if isinstance(a, np.ndarray) else list(a) if isinstance(a, list) else a for a in case.arguments
        )
        outcome = run(_answer, function, given)
        if outcome.failure:
            return outcome.failure
        if isinstance(outcome.value, CheckResult):
            return outcome.value
        answers.append(outcome.value)
        first = case.arguments[0]
        changed |= not (given[0] == first if isinstance(first, list) else np.array_equal(given[0], first))
    expected = [_quietly(right, case) for case in cases]
    off = [not _same(a, e, unordered) for a, e in zip(answers, expected, strict=True)]
    if not any(off):
        if changed:
            return CheckResult(
                False, "The numbers are right, but the array it was given has changed: work on a copy.", "in_place"
            )
        return CheckResult(True, praise)
    for fault in faults:
        if all(_same(a, _quietly(fault.function, case), unordered) for a, case in zip(answers, cases, strict=True)):
            return CheckResult(False, fault.text, fault.name)
    i = off.index(True)
    if answers[i].shape != expected[i].shape:
        what = f"{_size(answers[i])} where {_size(expected[i])} should be"
    else:
        what = "something else than it should"
    return CheckResult(False, f"On {cases[i].about} it returns {what}.", None if all(off) else "some_cases")


def _size(array: np.ndarray) -> str:
    """As a learner would say it: one number, 3 numbers, 2 x 3 numbers."""
    if array.ndim == 0:
        return "one number"
    return f"{' x '.join(map(str, array.shape))} number{'s' * (array.shape != (1,))}"


def _quietly(function: Callable[..., Any], case: Case) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(function(*case.arguments), np.float64)


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> np.ndarray | CheckResult:
    with np.errstate(all="ignore"):  # an overflow is recognised by its result; a warning would come before the hint
        return _as_array(function(*arguments))


def _as_array(value: Any) -> np.ndarray | CheckResult:
    if value is None or value is ...:
        return CheckResult(False, "Your function returns nothing (None): does it end in `return`?", "unanswered")
    try:
        plain = isinstance(value, (np.ndarray, np.generic, int, float))
        array = np.array(value if plain else list(value))
    except (TypeError, ValueError):  # not a sequence, or one of unequal lengths
        array = np.array(None)
    if array.size and array.dtype.kind not in "iuf":
        return CheckResult(
            False, f"Your function returns a {type_name(value)}; a number, or an array of numbers, is wanted.", "type"
        )
    return array.astype(np.float64)


def _same(a: np.ndarray, b: np.ndarray, unordered: bool) -> bool:
    if a.shape != b.shape:
        return False
    if unordered:
        return bool(np.array_equal(np.sort(a), np.sort(b)))
    return bool(np.allclose(a, b, 1e-4, 1e-7, equal_nan=True))
