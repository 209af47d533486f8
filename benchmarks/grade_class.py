"""Measures the time to grade a class: `python benchmarks/grade_class.py [--students 300] [--jobs 2] [--lesson 04]`.

Made-up submissions: most right, a quarter with a usual mistake in each exercise, a twentieth with an endless loop.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from exercises import make  # noqa: E402
from teachllama.lessons import lesson  # noqa: E402
from teachllama.lessons.common.exercise import Lesson  # noqa: E402
from teachllama.lessons.grading.batch import grade_all, write  # noqa: E402
from teachllama.lessons.grading.collect import Submission  # noqa: E402


def submission(found: Lesson, kind: str) -> str:
    """A notebook of one kind: right, mistaken or endless."""
    graded = make.graded_notebook(found)
    for cell in graded.cells:
        name = cell.metadata.nbgrader.grade_id
        if name.endswith("-answer"):
            i = int(name.split("-")[1])
            exercise = found.exercises[i - 1]
            lines = [line for line in cell.source.split("\n") if line.strip() not in (make.BEGIN, make.END)]
            cell.source = "\n".join(lines) if kind != "mistaken" else exercise.mistake[1]
            if kind == "endless" and i == 1:
                cell.source = f"def {exercise.names[0]}(*args):\n    while True:\n        pass"
    return nbformat.writes(graded)


def main() -> None:
    """Grades them and prints the time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--students", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--lesson", default="04")
    options = parser.parse_args()
    found = lesson(options.lesson)
    texts = {kind: submission(found, kind) for kind in ("right", "mistaken", "endless")}
    kinds = ["endless" if i % 20 == 7 else "mistaken" if i % 4 == 1 else "right" for i in range(options.students)]
    # All texts differ, so that no result of an earlier one is reused.
    submissions = [Submission(f"student {i}", f"{i}.ipynb", texts[k] + " " * i, 0) for i, k in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        marks, failed = grade_all(submissions, found, Path(folder), "a word", jobs=options.jobs)
        write(found, marks, failed, Path(folder))
        seconds = time.perf_counter() - started
    totals = Counter(sum(m["visible"] + m["hidden"] for m in each) for each in marks.values())
    print(f"{found.notebook}: {len(marks)} graded, {len(failed)} not, in {seconds:.0f} s with {options.jobs} jobs: "
          f"{seconds / max(1, len(submissions)):.2f} s per notebook")  # fmt: skip
    print("points:", dict(sorted(totals.items())))


if __name__ == "__main__":
    main()
