"""Grades a class: several notebooks in parallel, each in a new process. Writes marks, feedback pages and a report."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

from teachllama import __version__
from teachllama.errors import TeachLlamaError
from teachllama.lessons.common.exercise import Lesson
from teachllama.lessons.grading.collect import Submission, Unreachable
from teachllama.lessons.grading.remote import check_user

TIMEOUT_S = 300  # elapsed time for one notebook
CONNECT_S = 20  # time for a cluster to answer
WORKER = [sys.executable, "-m", "teachllama.lessons.grading.one"]


def grade_text(text: str, number: str, seed: str, user: str | None = None) -> dict[str, Any]:
    """Grades one notebook in a separate process. Also called on the workers of a cluster.

    Returns:
        {"marks": [...]} or {"failed": reason}.
    """
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "submission.ipynb"
        file.write_text(text, encoding="utf-8")
        request = json.dumps({"path": str(file), "lesson": number, "seed": seed, "user": user})
        try:
            done = subprocess.run(
                WORKER, input=request, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer
        except subprocess.TimeoutExpired:
            return {"failed": f"it took more than {TIMEOUT_S} s"}
        except ValueError:
            return {"failed": f"the grading process ended ({done.returncode}): {done.stderr.strip()[-300:]}"}


def grade_all(
    submissions: Sequence[Submission],
    lesson: Lesson,
    folder: Path,
    seed: str,
    *,
    jobs: int = 1,
    user: str | None = None,
    cluster: str | None = None,
    done: Callable[[int, int], None] = lambda n, of: None,
) -> tuple[dict[str, list[dict[str, Any]]], list[Unreachable]]:
    """Grades all submissions. Earlier results with the same seed and version are taken from `folder`.

    Args:
        folder: stores each result, so that an interrupted batch can resume.
        seed: the instructor's secret word. With the student's name, it determines the hidden values.
        jobs: number of notebooks graded in parallel on this machine.
        user: the system user that runs students' code.
        cluster: the address of a Dask scheduler, whose workers grade instead of this machine.
        done: called with (number graded so far, total).

    Returns:
        the marks by student, and the submissions that could not be graded.
    """
    kept = folder / "results" / lesson.notebook
    kept.mkdir(parents=True, exist_ok=True)
    marks: dict[str, list[dict[str, Any]]] = {}
    failed: list[Unreachable] = []

    def place(s: Submission) -> Path:
        content = "\0".join((s.student, s.text, seed, __version__, lesson.notebook))
        return kept / f"{hashlib.sha256(content.encode('utf-8', 'replace')).hexdigest()[:24]}.json"

    def record(s: Submission, answer: dict[str, Any]) -> None:
        if "marks" in answer:
            marks[s.student] = answer["marks"]
        else:
            failed.append(Unreachable(s.student, s.name, answer["failed"]))
        if not answer.get("again") and not place(s).exists():  # "again": the cluster failed, so retry next time
            partial = place(s).with_suffix(".partial")
            partial.write_text(json.dumps(answer), encoding="utf-8")
            partial.replace(place(s))
        done(len(marks) + len(failed), len(submissions))

    waiting = []
    for s in submissions:
        try:
            record(s, json.loads(place(s).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            waiting.append(s)
    grader = _on_cluster(cluster) if cluster else _here(jobs)
    for s, answer in grader(waiting, lesson.number, seed, user):
        record(s, answer)
    return dict(sorted(marks.items())), failed


def _here(jobs: int) -> Callable[..., Any]:
    def run(waiting: Sequence[Submission], number: str, seed: str, user: str | None) -> Any:
        with ThreadPoolExecutor(jobs) as pool:
            try:
                tasks = [(s, pool.submit(grade_text, s.text, number, f"{seed}:{s.student}", user)) for s in waiting]
                for s, task in tasks:
                    yield s, task.result()
            except BaseException:  # Ctrl-C: running tasks finish, waiting ones are not started
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    return run


def _on_cluster(address: str) -> Callable[..., Any]:
    def run(waiting: Sequence[Submission], number: str, seed: str, user: str | None) -> Any:
        from distributed import Client, as_completed

        try:
            client = Client(address, timeout=CONNECT_S)
        except (OSError, ValueError) as e:
            raise TeachLlamaError(f"no Dask scheduler answers at {address} ({e}); start one, or check it") from None
        with client:
            _check_workers(client, address, user)
            tasks = {
                client.submit(grade_text, s.text, number, f"{seed}:{s.student}", user, pure=False, retries=2): s
                for s in waiting
            }
            for task in as_completed(tasks):
                if task.status == "finished":
                    yield tasks[task], task.result()
                else:
                    reason = repr(task.exception()) if task.status == "error" else task.status
                    yield tasks[task], {"failed": f"the cluster could not grade it: {reason}", "again": True}

    return run


def _check_workers(client: Any, address: str, user: str | None) -> None:
    """Raises TeachLlamaError if the workers can't grade as this machine would."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError:
        raise TeachLlamaError(
            f"the scheduler at {address} has no workers; start some (dask worker {address})"
        ) from None
    try:
        found = client.run(_ready, user)
    except TeachLlamaError:
        raise
    except Exception as e:  # any error of a worker without this package
        raise TeachLlamaError(f"the workers of {address} can't grade: {e}; install this package there") from None
    for worker, version in found.items():
        if version != __version__:
            raise TeachLlamaError(f"worker {worker} has teachllama {version}, and this machine {__version__}")


def _ready(user: str | None) -> str:
    """Runs on a worker: checks that it can grade, and returns its version."""
    if user is not None:
        check_user(user)
    return __version__


# ---- results ----


def write(
    lesson: Lesson, marks: dict[str, list[dict[str, Any]]], unreachable: Sequence[Unreachable], folder: Path
) -> list[Path]:
    """Writes the gradebook (CSV), a class report, and one feedback page per student."""
    folder.mkdir(parents=True, exist_ok=True)
    book, report = folder / f"{lesson.notebook}.csv", folder / f"{lesson.notebook}-report.md"
    with book.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        n = len(lesson.exercises)
        rows.writerow(["student", "assignment", *(f"exercise {i}" for i in range(1, n + 1)), "total", "of", "note"])
        for student, found in marks.items():
            points = [m["visible"] + m["hidden"] for m in found]
            rows.writerow(
                [_cell(student), lesson.notebook, *map(_number, points), _number(sum(points)), lesson.points, ""]
            )
        for u in unreachable:
            if u.student and u.student not in marks:
                rows.writerow([_cell(u.student), lesson.notebook, *[""] * n, "", lesson.points, _cell(u.reason)])
    report.write_text(class_report(lesson, marks, unreachable), encoding="utf-8")
    pages = folder / "feedback" / lesson.notebook
    pages.mkdir(parents=True, exist_ok=True)
    for student, found in marks.items():
        safe = "".join(c if c.isalnum() or c in " ._-" else "_" for c in student).strip(". ")[:100] or "student"
        (pages / f"{safe}.html").write_text(feedback(lesson, student, found), encoding="utf-8")
    return [book, report, pages]


def class_report(lesson: Lesson, marks: dict[str, list[dict[str, Any]]], unreachable: Sequence[Unreachable]) -> str:
    """A report of mistakes by exercise and student, and of submissions that could not be graded, with the reasons."""
    totals = [sum(m["visible"] + m["hidden"] for m in found) for found in marks.values()]
    mean = sum(totals) / len(totals) if totals else 0
    lines = [f"# {lesson.notebook}", "", f"{len(marks)} graded; on average {mean:.1f} of {lesson.points} points.", ""]
    for i, exercise in enumerate(lesson.exercises, 1):
        by_mistake: dict[str, list[str]] = defaultdict(list)
        for student, found in marks.items():
            mark = found[i - 1]
            if mark["mistake"]:
                by_mistake[mark["mistake"]].append(student)
        right = len(marks) - sum(map(len, by_mistake.values()))
        lines += [f"## Exercise {i}: {exercise.shows}", "", f"{right} of {len(marks)} have it right.", ""]
        texts = {f.name: f.text for f in exercise.faults}
        for name, who in sorted(by_mistake.items(), key=lambda item: (-len(item[1]), item[0])):
            text = texts.get(name.split(" or ")[0], "")
            lines.append(f"- **{name}** ({len(who)}): {', '.join(map(_plain, who))}" + (f". {text}" if text else ""))
        lines.append("")
    lines += ["## Not graded", ""]
    lines += [
        f"- {_plain(u.student or '(nobody)')}: {_plain(u.name)} {_plain(u.reason)}".replace("  ", " ")
        for u in unreachable
    ]
    lines += [] if unreachable else ["Nobody."]
    counts = Counter(u.reason.split(":")[0].split(";")[0] for u in unreachable)
    return "\n".join(lines) + (f"\n\n{len(unreachable)} in all: {dict(counts)}\n" if unreachable else "\n")


def feedback(lesson: Lesson, student: str, found: Sequence[dict[str, Any]]) -> str:
    """A student's feedback page: points, an explanation of each mistake, and the answers. Never shows hidden values."""
    total = _number(sum(m["visible"] + m["hidden"] for m in found))
    parts = [
        "<!doctype html><meta charset='utf-8'><title>Feedback</title>",
        "<style>body{font-family:sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
        "pre{background:#f4f4f4;padding:.7em;overflow-x:auto}</style>",
        f"<h1>{escape(lesson.notebook)}</h1>",
        f"<p>{escape(student)}: {total} of {lesson.points} points</p>",
    ]
    for mark in found:
        points = f"{_number(mark['visible'] + mark['hidden'])} of {mark['of']}"
        parts.append(f"<h2>Exercise {mark['exercise']}: {points} points</h2><p>{escape(mark['feedback'])}</p>")
        parts.append(f"<pre>{escape(mark['answer'])}</pre>" if mark["answer"] else "")
    return "\n".join(parts) + "\n"


def _number(x: float) -> str:
    return f"{x:g}"


def _plain(text: str) -> str:
    """An untrusted name, made safe for one line of Markdown."""
    return "".join(c if c.isprintable() and c not in "[]<>`*_#|" else " " for c in text)


def _cell(text: str) -> str:
    """Text for a spreadsheet cell, escaped so that it is not taken for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
