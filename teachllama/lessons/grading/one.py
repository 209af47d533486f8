"""Grades one notebook: each answer's code runs in a separate process and is judged here.

Run as a program (`python -m teachllama.lessons.grading.one`), so that every notebook is graded by a new Python process.
Reads a request from standard input and writes the marks as JSON to standard output.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from teachllama.lessons import lesson
from teachllama.lessons.common.check import CheckResult, Refused
from teachllama.lessons.common.exercise import Exercise, Lesson
from teachllama.lessons.common.judge import judge, judge_hidden
from teachllama.lessons.grading.puzzle import judge_puzzle
from teachllama.lessons.grading.remote import Student

ANSWER = re.compile(r"exercise-(\d+)-answer")
BROKEN = ("endless", "memory", "output", "ended", "tampered")
NO_ANSWER = CheckResult(False, "The answer's cell is not in your notebook.", "deleted")


class NotANotebook(Exception):
    """A file can't be graded; the error's text gives the reason."""


@dataclass
class Mark:
    """The mark of one exercise."""

    exercise: int
    visible: float
    hidden: float
    of: int
    mistake: str | None
    feedback: str
    answer: str = field(repr=False, default="")


def answers(text: str) -> dict[int, str]:
    """The source of a notebook's answer cells, by exercise number.

    Raises:
        NotANotebook: `text` is not a notebook, or has no answer cells.
    """
    try:
        cells = json.loads(text)["cells"]
        found: dict[int, str] = {}
        for cell in cells:
            name = ANSWER.fullmatch(str(cell.get("metadata", {}).get("nbgrader", {}).get("grade_id", "")))
            if name and cell.get("cell_type") == "code":
                source = cell["source"]
                found[int(name[1])] = source if isinstance(source, str) else "".join(source)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise NotANotebook(f"not a notebook ({type(e).__name__}): damaged, or another kind of file") from None
    if not found:
        raise NotANotebook("no answer cells: no copy of the released assignment (the course's own notebook?)")
    return found


def grade(text: str, found: Lesson, seed: str, user: str | None = None) -> list[Mark]:
    """The marks of one notebook.

    Args:
        text: the notebook's JSON.
        found: its lesson.
        seed: the seed of the hidden values, made of the instructor's secret word and the student's name.
        user: the system user that runs the student's code; None: the current user.

    Raises:
        NotANotebook: see `answers`.
    """
    written = answers(text)
    model = _model() if found.needs_model else None
    try:
        return [_graded(i, e, found.setup, written, model, seed, user) for i, e in enumerate(found.exercises, 1)]
    finally:
        if model is not None:
            model.close()


def _model() -> Any:
    import teachllama as tl

    model = tl.load_model(os.environ.get("TEACHLLAMA_MODEL", "smollm2-135m"))
    model.config.seq_len = min(model.config.seq_len, 768)
    return model


def _graded(
    i: int, exercise: Exercise, setup: str, written: dict[int, str], model: Any, seed: str, user: str | None
) -> Mark:
    if i not in written:
        return Mark(i, 0, 0, sum(exercise.points), NO_ANSWER.mistake, NO_ANSWER.message)
    if exercise.cell:
        result = judge_puzzle(written[i], user)
        shown = unseen = result
    else:
        given = [exercise.given] if exercise.given and "model" not in exercise.given else []
        others = [s for n, source in sorted(written.items()) if n != i for s in _definitions(source)]
        sources = [(True, s) for s in (*_definitions(setup), *given, *others)] + [(False, written[i])]
        with Student(sources, exercise.names, user) as student:
            try:
                functions = [student.function(name) for name in exercise.names]
                function = functions[0] if len(functions) == 1 else functions
                shown = judge(function, exercise, model)
                # Code that broke a limit is not run again.
                unseen = shown if shown.mistake in BROKEN else judge_hidden(function, exercise, seed, model)
            except Refused as refused:
                shown = unseen = refused.result
    feedback = shown.message
    if shown.ok and not unseen.ok:
        feedback = unseen.message
    # The hidden test only confirms the visible one. Alone, it may be too weak to detect a mistake.
    points = (exercise.points[0] * shown.ok, exercise.points[1] * (shown.ok and unseen.ok))
    mistake = (None if shown.ok else shown.mistake or "other") or (None if unseen.ok else unseen.mistake or "other")
    return Mark(i, *points, sum(exercise.points), mistake, feedback, written[i])


def _definitions(source: str) -> list[str]:
    """The imports, functions and classes of another cell, which an answer may use."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    kinds = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef
    found = [ast.get_source_segment(source, node) or "" for node in body if isinstance(node, kinds)]
    return [text for text in found if not re.match(r"(from|import) teachllama", text)]


def main() -> int:
    """Reads a request and writes the marks."""
    request = json.load(sys.stdin)
    try:
        text = Path(request["path"]).read_text(encoding="utf-8")
        marks = grade(text, lesson(request["lesson"]), request["seed"], request["user"])
        answer: dict[str, Any] = {"marks": [asdict(mark) for mark in marks]}
    except (NotANotebook, OSError, UnicodeError) as e:
        answer = {"failed": str(e)}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
