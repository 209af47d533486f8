"""Judges an answer: runs a function on cases that distinguish every usual mistake, and compares its results with the
right ones and with those of each mistake.

Independent of any exercise: an `Exercise` has the cases, the right function and the faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from teachllama.lessons.common.check import CheckResult, a_type, number, run, short
from teachllama.lessons.common.exercise import Case, Exercise, Fault

__all__ = ["Case", "Exercise", "Fault", "judge", "judge_answer", "judge_hidden", "numbers"]

OTHER_VALUES = (
    "On values that the visible test does not use, it gives something else than it should. If the visible test is "
    "content: is something written into your code that should come from its arguments?"
)


def judge(function: Any, exercise: Exercise, model: Any = None, *, cases: Sequence[Case] | None = None) -> CheckResult:
    """Runs a learner's function on every case, and names the faults that give the same answers on all of them.

    Args:
        function: the learner's function. It gets copies of the arguments.
        exercise: the exercise.
        model: the model, if the exercise's cases need one.
        cases: the cases to use instead of the exercise's visible ones.
    """
    cases = exercise.visible(model) if cases is None else cases
    if exercise.verdict is not None:
        return _in_turn(function, exercise, cases, model)
    if not callable(function):
        return CheckResult(
            False, f"A function is wanted; this is {a_type(function)}. Give the function itself, uncalled.", "type"
        )
    read = exercise.read or numbers
    answers: list[Any] = []
    calls: list[tuple[Any, ...]] = []
    changed = False
    for case in cases:
        given = _given(exercise, case)
        calls.append(given)
        outcome = run(_read, read, function, given[: exercise.passed], seconds=exercise.seconds)
        failed = outcome.failure or (outcome.value if isinstance(outcome.value, CheckResult) else None)
        if failed is not None:
            failed = _at(failed, case)
            if failed.mistake != "exception" or not answers:
                return failed
            # It failed after some cases, whose answers may already identify the mistake.
            return _fault(answers, exercise, cases[: len(answers)], failed) or failed
        answers.append(outcome.value)
        if exercise.prepare is None:
            changed |= any(_changed(new, old) for new, old in zip(given, case.arguments, strict=True))
    wrong = _fault(answers, exercise, cases, None)
    if wrong is not None and exercise.watched is not None:
        wrong = exercise.watched(calls) or wrong
    return wrong or _done(changed, exercise)


def _changed(new: Any, old: Any) -> bool:
    if isinstance(old, np.ndarray):
        return not np.array_equal(new, old, equal_nan=old.dtype.kind == "f")
    return isinstance(old, (list, dict)) and bool(new != old)


def _in_turn(function: Any, exercise: Exercise, cases: Sequence[Case], model: Any) -> CheckResult:
    """Judges all cases. Returns the first verdict that isn't right, else the last."""
    assert exercise.verdict is not None
    result = CheckResult(True, exercise.praise)
    for case in cases:
        result = exercise.verdict(function, case, model)
        if not result.ok:
            return result
    return result


def _done(changed: bool, exercise: Exercise) -> CheckResult:
    if changed and exercise.pure:
        return CheckResult(
            False,
            "The numbers are right, but your function changes what it is given, which its caller needs again. "
            "Work on a copy.",
            "in_place",
        )
    return CheckResult(True, exercise.praise)


def _fault(
    answers: Sequence[Any], exercise: Exercise, cases: Sequence[Case], failed: CheckResult | None
) -> CheckResult | None:
    """What is wrong with the answers; None if they are right."""
    assert exercise.right is not None
    same = exercise.same or close
    expected = [_expected(exercise, exercise.right, case) for case in cases]
    off = [i for i, (a, e) in enumerate(zip(answers, expected, strict=True)) if not same(a, e)]
    if not off:
        return None
    first = off[0]
    about = f" (Tried on: {cases[first].about}.)" if cases[first].about else ""
    more = _detail(cases[first], answers[first], expected[first])
    found: dict[str, str] = {}
    for fault in exercise.faults:
        if fault.name not in found and all(
            same(a, _expected(exercise, fault.function, case)) for a, case in zip(answers, cases, strict=True)
        ):
            found[fault.name] = fault.text
    if found:
        names = list(found)[:2]
        return CheckResult(False, " Or: ".join(found[n] for n in names) + about, " or ".join(names), more)
    if failed is not None:
        return None
    if exercise.otherwise:
        size = _too(answers[first], expected[first])
        return CheckResult(False, f"{size}{exercise.otherwise}{about}", None, exercise.more or more)
    a, e = answers[first], expected[first]
    shaped = isinstance(a, np.ndarray) and isinstance(e, np.ndarray)
    name = "some_cases" if len(off) < len(cases) else None
    if shaped and a.shape != e.shape:
        what, name = f"{_size(a)} where {_size(e)} should be", name or "shape"
    elif shaped and a.dtype.kind == "b" != e.dtype.kind:
        what = "True and False where numbers should be"
    elif shaped:
        what = "something else than it should"
    else:
        what = short(repr(a))
    where = f"On {cases[first].about}" if cases[first].about else "Here"
    some = f" {len(cases) - len(off)} of {len(cases)} trials come out right." if len(off) < len(cases) else ""
    return CheckResult(False, f"{where} it returns {what}.{some}", name, more)


def judge_answer(answer: Any, exercise: Exercise, *arguments: Any) -> CheckResult:
    """Judges a value instead of a function: the result that the exercise's function should have for these arguments."""
    return judge(lambda *_: answer, exercise, cases=[Case("", arguments)])


def judge_hidden(function: Any, exercise: Exercise, seed: str, model: Any = None) -> CheckResult:
    """Judges on cases that the learner has not seen. Names a misconception without revealing the cases."""
    cases = exercise.hidden(seed, model)
    result = judge(function, exercise, model, cases=cases)
    if result.ok:
        return CheckResult(True, f"Also on {len(cases)} cases that you had not seen." if exercise.hidden_cases else
                           "Judged once more when graded.")  # fmt: skip
    texts = [f.text for f in exercise.faults if f.name in (result.mistake or "").split(" or ")]
    if exercise.verdict is None and result.mistake in (None, "some_cases", "shape"):
        return CheckResult(False, OTHER_VALUES, "other_values")
    if result.mistake in ("endless", "memory", "output", "exception", "unanswered", "type", "ended"):
        return CheckResult(False, "On a case that the visible test does not use, your code did not get to an answer "
                           f"({result.mistake}).", result.mistake)  # fmt: skip
    return CheckResult(False, f"{OTHER_VALUES} {' Or: '.join(dict.fromkeys(texts))}".strip(), result.mistake)


# ---- values ----


def _given(exercise: Exercise, case: Case) -> tuple[Any, ...]:
    copies = _copied(case.arguments)
    return exercise.prepare(*copies) if exercise.prepare else copies


def _copied(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Copies arguments, as deep as a learner's function may change them."""
    return tuple(
        a.copy()
        if isinstance(a, np.ndarray)
        else [dict(x) if isinstance(x, dict) else x for x in a]
        if isinstance(a, list)
        else dict(a)
        if type(a) is dict
        else a
        for a in arguments
    )


def _read(read: Callable[[Any], Any], function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    with np.errstate(all="ignore"):  # an overflow is recognised by its result; a warning would come before the hint
        return read(function(*given))


def _expected(exercise: Exercise, function: Callable[..., Any], case: Case) -> Any:
    """The result of the right function, or of a faulty one, for a case. None for a fault that raises."""
    with np.errstate(all="ignore"):
        try:
            value = function(*_given(exercise, case))
        except Exception:
            if function is exercise.right:
                raise
            return None
        return (exercise.read or numbers)(value)


def _at(failed: CheckResult, case: Case) -> CheckResult:
    where = f" (Tried on: {case.about}.)" if case.about else ""
    return CheckResult(False, failed.message + where, failed.mistake, failed.more)


def _detail(case: Case, answer: Any, expected: Any) -> str:
    """The second hint: the failing input, the answer and the right result. "" if a single number was judged."""
    if not case.about:
        return ""
    inputs = ", ".join(_shown(a) for a in case.arguments)
    return f"Given {inputs}, it returns {_shown(answer)}; right is {_shown(expected)}."


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        text = np.array2string(value, precision=4, suppress_small=True, separator=", ", threshold=30)
        return short(" ".join(text.split()), 100)
    return short(" ".join(repr(value).split()), 100)


def _too(found: Any, right: Any) -> str:
    try:
        return "Too large. " if found > right else "Too small. "
    except (TypeError, ValueError):
        return ""


def _size(array: np.ndarray) -> str:
    """An array's size in words: a single number, 3 numbers, 2 x 3 numbers."""
    if array.ndim == 0:
        return "a single number"
    return f"{' x '.join(map(str, array.shape))} number{'s' * (array.shape != (1,))}"


def numbers(value: Any) -> np.ndarray | CheckResult:
    """A function's result (a number, or nested numbers, also from generators) as an array. Booleans stay booleans."""
    if value is None or value is ...:
        return CheckResult(False, "Your function returns nothing (None): does it end in `return`?", "unanswered")
    try:
        plain = isinstance(value, (np.ndarray, np.generic, bool, int, float))
        array = np.array(value if plain else [x if np.isscalar(x) else np.asarray(x) for x in value])
    except (TypeError, ValueError):  # not a sequence, or one of unequal lengths
        array = np.array(None)
    if array.size and array.dtype.kind not in "biuf":
        return CheckResult(
            False, f"Your function returns {a_type(value)}; a number, or an array of numbers, is wanted.", "type"
        )
    return array if array.dtype.kind == "b" else array.astype(np.float64)


def close(a: Any, b: Any) -> bool:
    """Whether two arrays hold the same numbers, to four digits. A single number may be in an array of one element."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return False
    if b.ndim == 0 and a.size == 1:
        a = a.reshape(())
    if a.shape != b.shape or (a.dtype.kind == "b" and b.dtype.kind != "b"):
        return False
    return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), 1e-4, 1e-7, equal_nan=True))


def same_set(a: Any, b: Any) -> bool:
    """As `close`, for numbers whose order does not matter."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(np.array_equal(np.sort(a, axis=None), np.sort(b, axis=None)))


def near(tolerance: float) -> Callable[[Any, Any], bool]:
    """A function that tests whether two numbers differ by at most this relative tolerance. For measured ratios."""

    def same(a: Any, b: Any) -> bool:
        try:
            return abs(a - b) <= tolerance * abs(b)
        except (TypeError, OverflowError):
            return False

    return same


def one_number(value: Any) -> Any:
    """The answer as a number. If it is not one, a `CheckResult` that says what it is."""
    return number(value)
