"""What an exercise is: one description from which its check, its graded form and its row in the marking guide come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from teachllama.lessons.common.check import CheckResult


class Case(NamedTuple):
    """Arguments to try a function on."""

    about: str  # as in "On {about} it returns ..."
    arguments: tuple[Any, ...]


class Fault(NamedTuple):
    """A usual mistake, as a function that makes it."""

    name: str
    function: Callable[..., Any]  # takes the exercise's arguments
    text: str  # what was misunderstood, in a sentence or two, without the right answer


Cases = Sequence[Case] | Callable[[Any], Sequence[Case]]  # a callable takes the model


@dataclass(frozen=True)
class Exercise:
    """An exercise: what is right, on which cases, and what the usual mistakes give.

    `right`, `cases`, `faults` and `praise` suffice where an answer is compared with the right one. An exercise that is
    judged in its own way (by watching a practice session, say) has a `verdict` in their place.
    """

    check: str  # the check's name in checks.py
    names: tuple[str, ...]  # what the learner defines: a function, or several
    points: tuple[int, int]  # for the visible test, for the hidden one
    shows: str  # "it shows that a student can ..."
    usual: str  # the usual mistakes, by name, as the marking guide explains them
    mistake: tuple[str, str]  # the name of a usual mistake, and source code that makes it
    right: Callable[..., Any] | None = None
    cases: Cases = ()
    hidden_cases: Callable[[np.random.Generator, Any], Sequence[Case]] | None = None  # seeded per student
    faults: tuple[Fault, ...] = ()
    praise: str = ""
    otherwise: str = ""  # a wrong answer that is none of the faults
    more: str = ""  # the second level of hint for it
    read: Callable[[Any], Any] | None = None  # what an answer is: a value to compare, or a CheckResult; None: numbers
    same: Callable[[Any, Any], bool] | None = None  # whether two read answers are the same; None: numbers, closely
    pure: bool = True  # an array that was given may not be changed
    seconds: float = 1.0  # that one call may take
    passed: int | None = None  # how many of a case's arguments the learner's function takes; None: all
    prepare: Callable[..., tuple[Any, ...]] | None = None  # makes a call's arguments of a case's: things with state
    # Looks at what `prepare` made once the learner's function has run, where the answers are wrong.
    watched: Callable[[Sequence[tuple[Any, ...]]], CheckResult | None] | None = None
    # Judges by itself: (function, case, model) -> result; for the cases of `cases` and `hidden_cases` in turn.
    verdict: Callable[[Any, Case, Any], CheckResult] | None = None

    # How it becomes a graded assignment, beside what the notebook says.
    signature: str = ""  # where the notebook says `answer = ...`: the function to write here
    given: str = ""  # code before the answer, where the notebook got it from an earlier cell
    note: str = ""  # follows the exercise's text
    finish: str = ""  # code that follows the notebook's solution
    replace: Mapping[str, str] = field(default_factory=dict)  # in text and code taken from the notebook
    cell: bool = False  # what is judged is the answer's cell and not a function

    def visible(self, model: Any = None) -> Sequence[Case]:
        """The cases of the visible test."""
        return self.cases(model) if callable(self.cases) else self.cases

    def hidden(self, seed: str, model: Any = None) -> Sequence[Case]:
        """The cases of the hidden test: the same for the same seed, and others for another."""
        if self.hidden_cases is None:
            return self.visible(model)
        digits = int.from_bytes(seed.encode() + self.check.encode(), "big")
        return self.hidden_cases(np.random.default_rng(digits), model)


@dataclass(frozen=True)
class Lesson:
    """The exercises of one notebook, in its order."""

    notebook: str  # its file name, without .ipynb; the assignment's name, too
    setup: str  # the graded notebook's first cell
    exercises: tuple[Exercise, ...]

    @property
    def number(self) -> str:
        """As in the notebook's name: "04"."""
        return self.notebook[:2]

    @property
    def points(self) -> int:
        return sum(sum(e.points) for e in self.exercises)

    @property
    def needs_model(self) -> bool:
        """Whether its graded form loads a model."""
        return "load_model" in self.setup
