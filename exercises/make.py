"""Makes the graded notebooks from the course's notebooks, and the students' versions from those: `make assignments`.

    python -m exercises.make            # source/ from ../notebooks, then release/ with nbgrader
    python -m exercises.make --source   # source/ only; --course FOLDER for another folder than this one
    python -m exercises.make --guide    # the marking guide in ../docs/instructors.md

An exercise's text, the cell that begins the answer and the folded cell tagged `solution` are in the course's notebook.
Points and hidden cases are in the `Exercise` of its lesson (`teachllama/lessons`). nbgrader's cells are made from both.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from teachllama.lessons import lessons
from teachllama.lessons.common.exercise import Exercise, Lesson

COURSE = Path(__file__).resolve().parent
NOTEBOOKS = COURSE.parent / "notebooks"
SITE = "https://teachllama.readthedocs.io/en/latest"
SEED = "TEACHLLAMA_GRADE_SEED"  # the instructor's secret word, which determines the hidden values
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
_TITLE = re.compile(r"\*\*Exercise (\d+)\. ")


class OutOfStepError(Exception):
    """A course notebook and its lesson's exercises do not match."""


# ---- reading a course notebook ----


@dataclass(frozen=True)
class Written:
    """An exercise in the course's notebook."""

    text: str
    start: str  # the code that the answer begins with, without the check
    solution: str
    test: str  # source code of the check's call


def written(notebook: NotebookNode, name: str) -> list[Written]:
    """The exercises of a course notebook, in order.

    Raises:
        OutOfStepError: an exercise does not consist of a text, a code cell that ends in a check, and a code cell
            tagged `solution`.
    """
    found: list[Written] = []
    cells = notebook.cells
    for i, cell in enumerate(cells):
        title = _TITLE.search(cell.source) if cell.cell_type == "markdown" else None
        if title is None:
            continue
        where = f"{name}, exercise {title[1]}"
        after = cells[i + 1 : i + 3]
        if [c.cell_type for c in after] != ["code", "code"] or "solution" not in after[1].metadata.get("tags", ()):
            raise OutOfStepError(
                f"{where}: expected its text, then a cell that begins the answer, then one tagged 'solution'"
            )
        if int(title[1]) != len(found) + 1:
            raise OutOfStepError(f"{where}: expected number {len(found) + 1} here")
        start, test = _split(after[0].source, where)
        solution, _ = _split(after[1].source, where)
        solution = re.sub(r"\A# Solution \d+", "", solution).strip("\n")
        found.append(Written(cell.source[title.start() :], start, solution, test))
    return found


def _split(source: str, where: str) -> tuple[str, str]:
    """Splits a cell into its code and the final call of the check."""
    last = ast.parse(source).body[-1]
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        call = ast.get_source_segment(source, last) or ""
        if call.startswith("check."):
            return "\n".join(source.split("\n")[: last.lineno - 1]).strip("\n"), call
    raise OutOfStepError(f"{where}: expected its cells to end in a call of `check.`, found `{ast.unparse(last)}`")


# ---- making a graded notebook ----


def graded_notebook(assignment: Lesson) -> NotebookNode:
    """nbgrader's source notebook, with solutions between marks, visible and hidden tests, and points.

    Raises:
        OutOfStepError: the notebook's exercises do not match those of the assignment.
    """
    name = assignment.notebook
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    exercises = written(notebook, name)
    if len(exercises) != len(assignment.exercises):
        raise OutOfStepError(
            f"{name} has {len(exercises)} exercises, and its lesson grades {len(assignment.exercises)} of them"
        )
    title = notebook.cells[0].source.split("\n")[0]
    cells = [
        _cell("intro", f"{title}: exercises\n\n" + _intro(assignment), markdown=True),
        _cell("setup", assignment.setup),
    ]
    for i, (exercise, text) in enumerate(zip(assignment.exercises, exercises, strict=True), 1):
        cells += _exercise_cells(i, exercise, text, assignment)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def _intro(assignment: Lesson) -> str:
    return dedent(f"""\
        The exercises of [this notebook]({SITE}/notebooks/{assignment.notebook}.html), {assignment.points}
        points in all.

        Write where it says `...  # your code here`. The cell below says whether the answer is right, and if not, what
        may have been misunderstood. When your work is graded, more tests are run, with other values: so compute, and
        leave nothing written in that should come from the arguments. Before you hand in, restart the kernel and run
        all cells.""")


def _exercise_cells(number: int, exercise: Exercise, text: Written, assignment: Lesson) -> list[NotebookNode]:
    name = f"exercise-{number}"
    prose, start, solution, test = (
        _replaced(part, exercise) for part in (text.text, text.start, text.solution, text.test)
    )
    # Links relative to the notebook's folder do not work from an assignment's folder.
    prose = re.sub(r"\]\(\.\./docs/(\w+)\.md", rf"]({SITE}/\1.html", prose)
    prose = re.sub(r"\]\((\d\d_\w+)\.ipynb", rf"]({SITE}/notebooks/\1.html", prose)
    given = exercise.given
    if exercise.signature:
        lines = [line for line in start.split("\n") if not re.match(r"answer = \.\.\.", line)]
        given = "\n".join(part for part in (given, "\n".join(lines).strip("\n")) if part)
        body = f"{BEGIN}\n{solution}\nreturn answer\n{END}"
        answer = f"def {exercise.signature}:\n{indent(body, '    ')}"
        test = re.sub(r"\banswer\b", lambda _: exercise.signature, test)
        prose += f" Write it as a function: `{exercise.signature}` returns the answer, also for other arguments."
    else:
        finish = ["", "", exercise.finish] if exercise.finish else []
        answer = _filled_in(start, solution) or "\n".join([start, "", "", BEGIN, solution, *finish, END])
    answers = exercise.names[0] if len(exercise.names) == 1 else f"[{', '.join(exercise.names)}]"
    hidden = [
        "# More tests run here when your work is graded: the same question, other values.",
        "### BEGIN HIDDEN TESTS",
        "import os",
        "",
        "from teachllama.check.core import assert_right",
        "from teachllama.lessons import lesson",
        "from teachllama.lessons.common.judge import judge_hidden",
        "",
        f'exercise, seed = lesson("{assignment.number}").exercises[{number - 1}], os.environ.get("{SEED}", "")',
        f"assert_right(judge_hidden({answers}, exercise, seed{', model' * assignment.needs_model}))",
        "### END HIDDEN TESTS",
    ]
    points = exercise.points
    return [
        _cell(name, " ".join([prose, exercise.note]).strip() + f" *({sum(points)} points)*", markdown=True),
        *([_cell(f"{name}-given", given)] if given else []),
        _cell(f"{name}-answer", answer, solution=True),
        _cell(f"{name}-test", f"assert_right({test})", points=points[0]),
        _cell(f"{name}-hidden", "\n".join(hidden), points=points[1]),
    ]


def _replaced(text: str, exercise: Exercise) -> str:
    for old, new in exercise.replace.items():
        text = text.replace(old, new)
    return text.strip("\n")


def _filled_in(start: str, solution: str) -> str:
    """The starting function with its body replaced by the solution; "" unless `start` is a single function to complete.

    Code before the solution's function (a comment, a helper, an import) is moved into the function.
    """
    begun, solved = ast.parse(start).body, ast.parse(solution).body
    a, b = begun[-1], solved[-1]
    if len(begun) != 1 or not (isinstance(a, ast.FunctionDef) and isinstance(b, ast.FunctionDef)):
        return ""
    if ast.unparse(a.body) != "..." or (a.name, ast.unparse(a.args)) != (b.name, ast.unparse(b.args)):  # type: ignore[arg-type]
        return ""
    lines = solution.split("\n")
    before, body = indent("\n".join(lines[: b.lineno - 1]).rstrip(), "    "), lines[b.body[0].lineno - 1 :]
    if len(solved) > 1:
        before += "\n"  # a blank line after helpers
    head = start.split("\n")[: a.body[0].lineno - 1]
    return "\n".join([*head, f"    {BEGIN}", *([before] if before else []), *body, f"    {END}"])


def _cell(name: str, source: str, *, markdown: bool = False, solution: bool = False, points: int = 0) -> NotebookNode:
    """A cell with nbgrader's metadata. All cells except answers are locked, and restored before grading."""
    meta: dict[str, Any] = {
        "schema_version": 3,
        "grade_id": name,
        "grade": bool(points),
        "solution": solution,
        "locked": not solution,
        "task": False,
    }
    if points:
        meta["points"] = points
    make = new_markdown_cell if markdown else new_code_cell
    return make(source=source, id=name, metadata={"nbgrader": meta})


# ---- files ----


def source_path(assignment: Lesson, course: Path = COURSE) -> Path:
    """The path of an assignment's source notebook."""
    return course / "source" / assignment.notebook / f"{assignment.notebook}.ipynb"


def as_text(notebook: NotebookNode) -> str:
    """A notebook as the text of its file."""
    return nbformat.writes(notebook, version=4) + "\n"


def write_sources(course: Path = COURSE, of: Sequence[Lesson] = ()) -> None:
    """Writes `course`/source, for the lessons `of`, or for all."""
    for assignment in of or lessons():
        path = source_path(assignment, course)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(graded_notebook(assignment)), encoding="utf-8")


def settings(course: Path, exchange: Path | None = None) -> Any:
    """The settings of `nbgrader_config.py` for a course in another folder, as a `Config` for nbgrader's classes."""
    from traitlets.config import PyFileConfigLoader

    # nbgrader calls programs that were installed with it, which must also work if the environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    config = PyFileConfigLoader("nbgrader_config.py", path=str(COURSE)).load_config()
    config.CourseDirectory.root = str(course)
    if exchange:
        config.Exchange.root, config.Exchange.cache = str(exchange), str(exchange / "cache")
    return config


def release(course: Path) -> list[Path]:
    """Makes `course`/release from `course`/source with nbgrader. Returns the paths of the students' notebooks.

    Raises:
        RuntimeError: nbgrader failed; its log is in the message.
    """
    from nbgrader.apps import NbGraderAPI

    api = NbGraderAPI(config=settings(course))
    for assignment in lessons():
        succeeded(api.generate_assignment(assignment.notebook), f"generate_assignment {assignment.notebook}")
    return [course / "release" / a.notebook / f"{a.notebook}.ipynb" for a in lessons()]


def succeeded(result: dict[str, Any], what: str) -> None:
    """Raises RuntimeError with nbgrader's error and log unless a call of its API succeeded."""
    if not result["success"]:
        raise RuntimeError(f"nbgrader {what}: {result.get('error') or ''}\n{result.get('log') or ''}")


GUIDE = NOTEBOOKS.parent / "docs" / "instructors.md"
_GUIDE_MARKS = "<!-- marking guide: begin -->", "<!-- marking guide: end -->"


def marking_guide() -> str:
    """The points and the table of the marking guide in docs/instructors.md, made from the lessons' exercises."""
    points = ", ".join(f"{l.number}: {l.points} points" for l in lessons())
    rows = [
        f"| {l.number} | {i} | {e.points[0]} + {e.points[1]} | {e.shows} | {e.usual} |"
        for l in lessons()
        for i, e in enumerate(l.exercises, 1)
    ]
    head = "| notebook | exercise | points | it shows that a student can | usual mistakes, as the check names them |"
    return "\n".join([f"{points}.", "", head, "|---|---|---|---|---|", *rows])


def with_guide(page: str) -> str:
    """The page with its marking guide updated from the lessons."""
    begin, end = _GUIDE_MARKS
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{marking_guide()}\n\n{end}{rest.split(end)[1]}"


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns 1 if nbgrader is missing, otherwise 0."""
    parser = argparse.ArgumentParser(description="Makes the graded notebooks and the students' versions of them.")
    parser.add_argument("--source", action="store_true", help="only write source/")
    parser.add_argument("--guide", action="store_true", help="only write the marking guide into docs/instructors.md")
    parser.add_argument("--course", type=Path, default=COURSE, help="where source/ and release/ go")
    options = parser.parse_args(arguments)
    if options.guide:
        GUIDE.write_text(with_guide(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    course = options.course.resolve()
    write_sources(course)
    for assignment in lessons():
        print(f"{assignment.notebook}: {len(assignment.exercises)} exercises, {assignment.points} points")
    if not options.source:
        if find_spec("nbgrader") is None:
            print('nbgrader is not installed: pip install -e ".[lab,classroom]"', file=sys.stderr)
            return 1
        for path in release(course):
            print(os.path.relpath(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
