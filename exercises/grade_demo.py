"""Grades three made-up submissions with nbgrader, end to end: `make grade-demo`.

    python -m exercises.grade_demo [FOLDER] [--only ASSIGNMENT]...

Ada has everything right, Blank submits the assignment unchanged, and Max makes a usual mistake in every exercise. Each
assignment is generated, released, submitted, collected and graded, and its feedback is returned, all in one folder
(by default out/grade-demo). At the end it prints a table of grades, the mistakes, and the paths of the feedback pages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from exercises import make, mistakes
from teachllama.lessons import lessons
from teachllama.lessons.common.exercise import Lesson

STUDENTS = {"ada": "everything right", "blank": "nothing filled in", "max": "a usual mistake in each"}


def hand_in(student: str, assignment: Lesson, released: NotebookNode) -> NotebookNode:
    """The released notebook, completed by a made-up student."""
    solutions = make.graded_notebook(assignment)
    right = {c.id: c.source for c in solutions.cells}
    usual = {f"exercise-{i}-answer": e.mistake[1] for i, e in enumerate(assignment.exercises, 1)}
    for cell in released.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        if name.endswith("-answer") and student != "blank":
            marks = (make.BEGIN, make.END)
            lines = [line for line in right[name].split("\n") if line.strip() not in marks]
            cell.source = "\n".join(lines) if student == "ada" else usual[name]
    return released


def grade(assignment: Lesson, folder: Path) -> None:
    """Runs one assignment from its source to the release of feedback.

    Raises:
        RuntimeError: a step of nbgrader failed; its log is in the message.
    """
    from nbgrader.apps import NbGraderAPI
    from nbgrader.auth import Authenticator
    from nbgrader.coursedir import CourseDirectory
    from nbgrader.exchange.default import ExchangeSubmit

    name, course, exchange = assignment.notebook, folder / "course", folder / "exchange"
    make.write_sources(course, [assignment])
    exchange.mkdir(exist_ok=True)
    exchange.chmod(0o777)
    config = make.settings(course, exchange)
    api = NbGraderAPI(config=config)
    make.succeeded(api.generate_assignment(name), f"generate_assignment {name}")
    make.succeeded(api.release_assignment(name), f"release_assignment {name}")
    for student in STUDENTS:
        home = folder / "homes" / student / name
        shutil.copytree(exchange / api.course_id / "outbound" / name, home)
        path = home / f"{name}.ipynb"
        nbformat.write(hand_in(student, assignment, nbformat.read(path, as_version=4)), path)
        coursedir = CourseDirectory(config=config, student_id=student, assignment_id=name)
        submit = ExchangeSubmit(coursedir=coursedir, authenticator=Authenticator(config=config), config=config)
        submit.assignment_dir = str(home.parent)
        submit.start()
    make.succeeded(api.collect(name), f"collect {name}")
    for student in STUDENTS:
        make.succeeded(api.autograde(name, student), f"autograde {name} {student}")
        make.succeeded(api.generate_feedback(name, student), f"generate_feedback {name} {student}")
    make.succeeded(api.release_feedback(name), f"release_feedback {name}")


def grades(course: Path, assignments: Sequence[Lesson]) -> dict[str, dict[str, tuple[float, float]]]:
    """Reads nbgrader's gradebook: assignment -> student -> (points, maximum)."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for assignment in assignments:
            submissions = {s.student.id: s for s in book.assignment_submissions(assignment.notebook)}
            found[assignment.notebook] = {
                student: (submissions[student].score, submissions[student].max_score) for student in STUDENTS
            }
    return found


def table(scores: dict[str, dict[str, tuple[float, float]]]) -> str:
    """The grades, one row per assignment."""
    rows = [f"{'assignment':<26}" + "".join(f"{student:>10}" for student in STUDENTS) + f"{'of':>6}"]
    for name, row in scores.items():
        of = next(iter(row.values()))[1]
        rows.append(f"{name:<26}" + "".join(f"{points:>10g}" for points, _ in row.values()) + f"{of:>6g}")
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    """Runs the demonstration. Returns 1 if a grade is wrong or a step failed, otherwise 0."""
    parser = argparse.ArgumentParser(description="Grades three made-up submissions with nbgrader.")
    parser.add_argument("folder", nargs="?", type=Path, default=make.COURSE.parent / "out" / "grade-demo")
    parser.add_argument("--only", action="append", choices=[a.notebook for a in lessons()], help="an assignment")
    options = parser.parse_args(arguments)
    if sys.platform == "win32":
        print("nbgrader's exchange of files needs Linux or macOS (on Windows: WSL)", file=sys.stderr)
        return 1
    if find_spec("nbgrader") is None:
        print('nbgrader is not installed: pip install -e ".[lab,classroom]"', file=sys.stderr)
        return 1
    folder = options.folder.resolve()
    if folder.exists() and not (folder / "course").is_dir() and any(folder.iterdir()):
        print(f"{folder} holds something else; name a folder that is empty, or none yet", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ.setdefault("TEACHLLAMA_MODEL", "smollm2-135m")
    warnings.filterwarnings("ignore", module=r"nbgrader\.")  # warnings of its database library about nbgrader's code
    assignments = [a for a in lessons() if not options.only or a.notebook in options.only]
    for assignment in assignments:
        print(f"grading {assignment.notebook}", flush=True)
        try:
            grade(assignment, folder)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    scores = grades(folder / "course", assignments)
    print("\n".join(["", *(f"{student}: {what}" for student, what in STUDENTS.items()), "", table(scores), ""]))
    print(mistakes.table(mistakes.read(folder / "course")))
    print("\nFeedback pages:")
    for page in sorted((folder / "course" / "feedback").rglob("*.html")):
        print(f"  {os.path.relpath(page)}")
    wrong = [
        f"{name}: {row}"
        for name, row in scores.items()
        if row["ada"][0] != row["ada"][1] or row["blank"][0] != 0 or row["max"][0] != 0
    ]
    print("\n".join(["", "NOT WHAT WAS EXPECTED", *wrong]) if wrong else "", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
