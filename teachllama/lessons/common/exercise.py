"""Describes an exercise. Its check, its graded form and its row in the marking guide are derived from this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from teachllama.lessons.common.check import CheckResult


class Case(NamedTuple):
    """Arguments to try a function on."""

    about: str  # used in "On {about} it returns ..."
    arguments: tuple[Any, ...]


class Fault(NamedTuple):
    """A usual mistake, as a function that makes it."""

    name: str
    function: Callable[..., Any]  # takes the exercise's arguments
    text: str  # explains the misunderstanding in a sentence or two, without the right answer


Cases = Sequence[Case] | Callable[[Any], Sequence[Case]]  # a callable takes the model


@dataclass(frozen=True)
class Exercise:
    """An exercise: the right answer, the cases to try, and the usual mistakes.

    `right`, `cases`, `faults` and `praise` are enough if an answer is compared with the right one. An exercise that is
    judged in its own way (for example by watching a practice session) has a `verdict` instead.
    """

    check: str  # the check's name in checks.py
    names: tuple[str, ...]  # the functions that the learner defines, one or more
    points: tuple[int, int]  # for the visible test, for the hidden one
    shows: str  # completes "it shows that a student can ..."
    usual: str  # the usual mistakes by name, explained for the marking guide
    mistake: tuple[str, str]  # the name of a usual mistake, and source code that makes it
    right: Callable[..., Any] | None = None
    cases: Cases = ()
    hidden_cases: Callable[[np.random.Generator, Any], Sequence[Case]] | None = None  # seeded per student
    faults: tuple[Fault, ...] = ()
    praise: str = ""
    otherwise: str = ""  # the message for a wrong answer that matches no fault
    more: str = ""  # the second hint for it
    read: Callable[[Any], Any] | None = None  # makes an answer a value to compare, or a CheckResult; None: numbers
    same: Callable[[Any, Any], bool] | None = None  # whether two read answers are equal; None: `close`
    pure: bool = True  # the function must not change arrays, lists and dicts it is given
    seconds: float = 1.0  # time limit of one call
    passed: int | None = None  # how many of a case's arguments the learner's function takes; None: all
    prepare: Callable[..., tuple[Any, ...]] | None = None  # makes a call's arguments from a case's: objects with state
    # Examines the objects that `prepare` made after the learner's function has run, if the answers are wrong.
    watched: Callable[[Sequence[tuple[Any, ...]]], CheckResult | None] | None = None
    # Judges on its own: (function, case, model) -> result. Called for each case of `cases` and `hidden_cases` in turn.
    verdict: Callable[[Any, Case, Any], CheckResult] | None = None

    # Changes that turn the notebook's exercise into a graded assignment.
    signature: str = ""  # the function to write instead of the notebook's `answer = ...`
    given: str = ""  # code before the answer that the notebook has in an earlier cell
    note: str = ""  # added after the exercise's text
    finish: str = ""  # code added after the notebook's solution
    replace: Mapping[str, str] = field(default_factory=dict)  # replacements in text and code from the notebook
    cell: bool = False  # the answer's cell is judged, not a function

    def visible(self, model: Any = None) -> Sequence[Case]:
        """The cases of the visible test."""
        return self.cases(model) if callable(self.cases) else self.cases

    def hidden(self, seed: str, model: Any = None) -> Sequence[Case]:
        """The cases of the hidden test. The same seed gives the same cases."""
        if self.hidden_cases is None:
            return self.visible(model)
        digits = int.from_bytes(seed.encode() + self.check.encode(), "big")
        return self.hidden_cases(np.random.default_rng(digits), model)


@dataclass(frozen=True)
class Lesson:
    """The exercises of one notebook, in its order."""

    notebook: str  # its file name without .ipynb; also the assignment's name
    setup: str  # the graded notebook's first cell
    exercises: tuple[Exercise, ...]

    @property
    def number(self) -> str:
        """The number in the notebook's name, such as "04"."""
        return self.notebook[:2]

    @property
    def points(self) -> int:
        return sum(sum(e.points) for e in self.exercises)

    @property
    def needs_model(self) -> bool:
        """Whether its graded form loads a model."""
        return "load_model" in self.setup
