"""Lists who made which mistake, from the mistakes that the checks recognised in graded notebooks.

    python -m exercises.mistakes [COURSE]      # the folder with autograded/; by default this one

A failed check raises `NotYet` with the mistake's name, which nbgrader stores in the graded notebook.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import nbformat


class Mistake(NamedTuple):
    """One test that one student did not pass."""

    assignment: str
    exercise: str
    student: str
    name: str  # the mistake's name in the check, or the exception's name if the test failed otherwise
    hidden: bool  # whether the test was hidden


def read(course: Path) -> list[Mistake]:
    """All failed tests in `course`/autograded, in nbgrader's layout: student/assignment/notebook."""
    found = []
    for path in sorted((course / "autograded").glob("*/*/*.ipynb")):
        student, assignment = path.parts[-3:-1]
        for cell in nbformat.read(path, as_version=4).cells:
            meta = cell.metadata.get("nbgrader", {})
            errors = [o for o in cell.get("outputs", ()) if o.output_type == "error"]
            if meta.get("grade") and errors:
                named = re.match(r"\[([\w ]+)\]", errors[0].evalue) if errors[0].ename == "NotYet" else None
                exercise, _, kind = meta["grade_id"].rpartition("-")
                name = named[1] if named else errors[0].ename
                found.append(Mistake(assignment, exercise, student, name, kind == "hidden"))
    return found


def table(mistakes: Iterable[Mistake]) -> str:
    """One line per mistake, with the number and names of students. A hidden test counts if the visible one passed."""
    mistakes = list(mistakes)
    seen = {m[:3] for m in mistakes if not m.hidden}
    who: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for m in mistakes:
        if not m.hidden or m[:3] not in seen:
            who[m.assignment, m.exercise, m.name + (" (hidden test)" if m.hidden else "")].append(m.student)
    rows, last, width = [], ("", ""), max((len(name) for *_, name in who), default=0) + 2
    for (assignment, exercise, name), students in sorted(who.items(), key=lambda row: (row[0][:2], -len(row[1]))):
        if (assignment, exercise) != last:
            rows.append(f"{assignment}, {exercise}")
            last = assignment, exercise
        rows.append(f"  {len(students):>3}  {name:<{width}}{', '.join(students)}")
    return "\n".join(rows) or "No test failed."


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))))
