"""Every exercise of every lesson: right answers pass, each usual mistake is named, hidden cases distinguish them, and
mutants of the right solution are refused.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachllama.errors import ParameterError
from teachllama.lessons import lesson, lessons
from teachllama.lessons.common.exercise import Exercise
from teachllama.lessons.common.judge import judge, judge_hidden
from tests.mutants import NOTEBOOKS

ROOT = Path(__file__).parents[1]

PLAIN = [  # judged by cases, no model needed
    pytest.param(e, id=f"{l.number}-{e.check}")
    for l in lessons()
    for e in l.exercises
    if e.right is not None and not callable(e.cases)
]


def called(exercise: Exercise, function: Any) -> Any:
    """The function as a learner writes it: it takes the arguments passed, and the others are fixed."""
    rest = exercise.visible()[0].arguments[exercise.passed :] if exercise.passed else ()
    return (lambda *args: function(*args, *rest)) if rest else function


@pytest.mark.parametrize("exercise", PLAIN)
def test_what_is_right_is_right_also_on_hidden_cases(exercise: Exercise) -> None:
    right = called(exercise, exercise.right)
    assert judge(right, exercise).ok
    for seed in ("", "ada", "bob"):
        assert judge_hidden(right, exercise, seed).ok


@pytest.mark.parametrize("exercise", PLAIN)
def test_each_usual_mistake_is_refused_and_named(exercise: Exercise) -> None:
    assert len(exercise.faults) >= 3
    for fault in exercise.faults:
        result = judge(called(exercise, fault.function), exercise)
        assert not result.ok, fault.name
        assert fault.name in (result.mistake or "").split(" or "), (fault.name, result)


@pytest.mark.parametrize("exercise", PLAIN)
def test_each_usual_mistake_is_refused_by_the_hidden_cases_too(exercise: Exercise) -> None:
    accepted = {f.name for f in exercise.faults if judge_hidden(called(exercise, f.function), exercise, "ada").ok}
    # The visible cases refuse these; randomly drawn values rarely show the difference.
    assert accepted <= {"no_eps", "one_more", "overflow", "rounded", "one_too_many", "no_generation_prompt"}, accepted


@pytest.mark.parametrize("exercise", PLAIN)
@pytest.mark.parametrize("nonsense", [None, 3, "x", lambda *a: None, lambda *a: [], lambda *a: "no", lambda *a: 1 / 0])
def test_nonsense_is_answered_and_never_raises(nonsense: Any, exercise: Exercise) -> None:
    result = judge(nonsense, exercise)
    assert not result.ok
    assert result.message


@pytest.mark.parametrize("exercise", PLAIN)
def test_the_mistake_of_the_marking_guide_is_named(exercise: Exercise) -> None:
    name, source = exercise.mistake
    number = next(l for l in lessons() if exercise in l.exercises)
    names: dict[str, Any] = {}
    exec(f"{number.setup}\n{exercise.given}\n{source}", names)
    mistaken = names[exercise.names[0]]
    result = judge(mistaken, exercise)
    assert not result.ok
    assert name in (result.mistake or "").split(" or ")
    assert not judge_hidden(mistaken, exercise, "ada").ok


@pytest.mark.parametrize("exercise", PLAIN)
def test_hidden_cases_differ_from_the_visible_ones_and_from_another_students(exercise: Exercise) -> None:
    seen, ada, bob = (
        {repr(c.arguments) for c in cases}
        for cases in (exercise.visible(), exercise.hidden("ada"), exercise.hidden("bob"))
    )
    assert not ada <= seen
    if exercise.check not in ("hidden", "chatml", "trimming", "reusing", "temperature"):
        assert ada != bob


def test_a_lesson_is_found_by_its_number_and_its_name() -> None:
    assert lesson("04") is lesson("04_sessions_and_memory")
    with pytest.raises(ParameterError, match="there are 00, 01"):
        lesson("42")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="there is no bound on memory to set")
@pytest.mark.parametrize("number", NOTEBOOKS)
def test_mutants_of_the_right_solutions_are_refused(number: str) -> None:
    # A separate process with a memory limit: a mutant may allocate any amount. The variable selects all mutants; the
    # table in docs/instructors.md counts all.
    every = "--every=1" if os.environ.get("TEACHLLAMA_ALL_MUTANTS") else "--every=10"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.mutants", every, number],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, total = map(int, re.findall(r"(\d+) of (\d+) refused", done.stdout)[0])
    assert total > 5
    assert refused == total, done.stdout


def test_numbers_come_as_numpy_numbers_generators_and_arrays_of_one_element() -> None:
    by_name = {e.check: e for l in lessons() for e in l.exercises}
    nearest, cosine, knee = (by_name[name] for name in ("nearest", "cosine", "knee"))
    assert judge(lambda v, i: np.array([nearest.right(v, i)]), nearest).ok  # type: ignore[misc]
    assert judge(lambda a, b: np.array([[cosine.right(a, b)]]), cosine).ok  # type: ignore[misc]
    assert judge(lambda *a: np.array([knee.right(*a)]), knee).ok  # type: ignore[misc]
    pool = by_name["mean_pool"]
    assert judge(lambda h: (x for x in pool.right(h)), pool).ok  # type: ignore[misc]
    weights = by_name["weights_of_a_llama"]
    assert judge(lambda s: np.array([weights.right(s)]), weights).ok  # type: ignore[misc]
    join = by_name["merging"]
    assert judge(lambda s, r: iter(join.right(s, r)), join).ok  # type: ignore[misc]
