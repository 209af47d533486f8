"""The course: one folder per lesson, with its pictures, checks and exercises.

`common/` contains what lessons share: the style of pictures, the result of a check, the judging of answers. A lesson's
`pictures.py` draws its pictures. `exercises.py` defines the right answers, the cases to try them on, and the usual
mistakes. `checks.py` has the functions that the notebook calls. An exercise is written once, as an `Exercise`, from
which the notebook's check, the graded assignment, its hidden test and its row in the marking guide are derived. The
engine imports nothing from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from teachllama.errors import ParameterError

if TYPE_CHECKING:
    from teachllama.lessons.common.exercise import Lesson

ROOMS = (
    "n00_transformer",
    "n01_generation",
    "n02_chat",
    "n03_sampling",
    "n04_sessions",
    "n05_performance",
    "n06_architectures",
    "n07_embeddings",
    "n08_serving",
    "n09_prefixes",
    "n10_sessions",
    "n11_bits",
    "n12_same_prompt",
    "n13_guess",
)


def lesson(number: str) -> Lesson:
    """A lesson's exercises, by the number or the name of its notebook ("04", "04_sessions_and_memory").

    Raises:
        ParameterError: there is no such lesson.
    """
    for room in ROOMS:
        if room[1:3] == number[:2]:
            found: Lesson = import_module(f"teachllama.lessons.{room}.exercises").LESSON
            if number in (found.number, found.notebook):
                return found
    raise ParameterError(f"no lesson {number!r}; there are {', '.join(room[1:3] for room in ROOMS)}")


def lessons() -> tuple[Lesson, ...]:
    """All lessons that have exercises, in the notebooks' order."""
    return tuple(lesson(room[1:3]) for room in ROOMS)
