"""`teachllama grade`: marks a class's notebooks, and writes feedback and a report."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from importlib.util import find_spec

from teachllama.cli.numbers import count_from_text
from teachllama.cli.terminal import Status, path_of, printable
from teachllama.errors import TeachLlamaError
from teachllama.lessons import lesson

SEED = "TEACHLLAMA_GRADE_SEED"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("assignment", help="a notebook's number, such as 04, or its name")
    parser.add_argument("submissions", help="a folder or a zip file of submitted notebooks")
    parser.add_argument("--out", default="out/grades", metavar="FOLDER", help="where results go (default: %(default)s)")
    parser.add_argument("--jobs", default=str(os.cpu_count() or 1), metavar="N", help="notebooks at a time")
    parser.add_argument("--cluster", metavar="ADDRESS", help="a Dask scheduler whose workers grade instead")
    parser.add_argument(
        "--seed", help=f"your secret word, which determines the hidden values (default: the variable {SEED})"
    )
    parser.add_argument("--roster", metavar="CSV", help="the class, a name in each first column: lists who is missing")
    parser.add_argument("--as-user", metavar="NAME", help="the system user that runs students' code (needs root)")


def run(args: argparse.Namespace) -> int:
    """Grades the submissions. Returns 0 if all could be graded, 1 if not, 130 after Ctrl-C."""
    if sys.platform == "win32":
        raise TeachLlamaError("grading needs Linux or macOS; on Windows run it in WSL")
    from teachllama.lessons.grading import batch
    from teachllama.lessons.grading.collect import collect
    from teachllama.lessons.grading.remote import check_user

    if args.cluster and find_spec("distributed") is None:
        raise TeachLlamaError('--cluster needs Dask: pip install "teachllama[cluster]"')
    found, source, out = lesson(args.assignment), path_of(args.submissions), path_of(args.out)
    seed = args.seed or os.environ.get(SEED, "")
    jobs = max(1, count_from_text("--jobs", args.jobs))
    roster = _roster(args.roster) if args.roster else []
    if not source.exists():
        raise TeachLlamaError(f"{printable(args.submissions)}: no such folder or zip file")
    try:
        submissions, unreachable = collect(source, found.notebook, roster)
    except (OSError, ValueError) as e:
        raise TeachLlamaError(f"{printable(args.submissions)} cannot be read: {e}") from None
    if not seed:
        print(f"no --seed and no {SEED}: hidden values can be computed by whoever reads the source", file=sys.stderr)
    if args.as_user and not args.cluster:  # workers of a cluster check this themselves
        check_user(args.as_user)
    if not args.as_user:
        print("students' code runs as your own system user, within limits (see --as-user)", file=sys.stderr)
    progress = [0]
    status = Status(lambda: f"graded {progress[0]} of {len(submissions)}:")
    try:
        with status:
            marks, failed = batch.grade_all(
                submissions, found, out, seed, jobs=jobs, user=args.as_user, cluster=args.cluster,
                done=lambda n, of: progress.__setitem__(0, n),
            )  # fmt: skip
    except KeyboardInterrupt:
        print("stopped; the same command will resume", file=sys.stderr)
        return 130
    unreachable += failed
    written = batch.write(found, marks, unreachable, out)
    print(f"{len(marks)} graded, {len(unreachable)} not; written:", *map(str, written), sep="\n  ")
    for u in unreachable:
        print(f"  not graded: {printable(u.student or '(nobody)')} {printable(u.name)}: {printable(u.reason)}")
    return 1 if unreachable else 0


def _roster(path: str) -> list[str]:
    try:
        with path_of(path).open(encoding="utf-8-sig", newline="") as file:
            names = [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
    except (OSError, UnicodeError, csv.Error) as e:
        raise TeachLlamaError(f"{printable(path)} cannot be read: {e}") from None
    return names[1:] if names and names[0].lower() in ("name", "student", "id", "student id") else names
