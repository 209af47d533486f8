"""Finds submissions: notebooks in a folder or a zip file, with names as students and learning platforms choose them.

No submission is lost: files that can't be assigned to a student, or can't be graded, are listed with the reason.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_NBYTES = 20_000_000  # of one notebook
_COPY = re.compile(r"(?:\s*\(\d+\)|\s*-?\s*copy(?:\s*\(?\d+\)?)?|\s*-\s*kopie|-\d{1,2})$", re.IGNORECASE)
_MOODLE = re.compile(r"(?P<who>.+?)_\d+_assignsubmission_file(?:_.*)?$")
_CANVAS = re.compile(r"(?P<who>[^_]+?)(?:_LATE)?_\d+_\d+_?$", re.IGNORECASE)
_IGNORED = (".ipynb_checkpoints", "__MACOSX")


@dataclass(frozen=True)
class Submission:
    """One student's notebook."""

    student: str
    name: str  # the file's name as submitted
    text: str
    modified: float


@dataclass(frozen=True)
class Unreachable:
    """A submission that is missing or could not be graded."""

    student: str  # "" if unknown
    name: str
    reason: str


def collect(source: Path, assignment: str, roster: Iterable[str] = ()) -> tuple[list[Submission], list[Unreachable]]:
    """Finds one notebook per student.

    Args:
        source: a folder or a zip file of submissions.
        assignment: the notebook's name without .ipynb, such as "04_sessions_and_memory".
        roster: the names of the class. Those without a submission are listed.

    Raises:
        OSError: `source` can't be read.
    """
    found: dict[str, Submission] = {}
    unreachable: list[Unreachable] = []
    for name, modified, read in _files(source):
        if not name.lower().endswith(".ipynb"):
            if name.lower().endswith((".zip", ".rar", ".7z", ".html", ".pdf", ".py")):
                unreachable.append(Unreachable(_student(name, assignment), name, "no notebook: unpack or convert it"))
            continue
        other = re.match(r"\d\d_\w+", _bare(name))
        try:
            text = read()
        except (OSError, UnicodeError, zipfile.BadZipFile, RuntimeError) as e:
            unreachable.append(Unreachable(_student(name, assignment), name, f"cannot be read: {e}"))
            continue
        if assignment not in name and (other or not _is_of(text, assignment)):
            continue  # belongs to another assignment
        student = _student(name, assignment)
        if not student:
            unreachable.append(Unreachable("", name, "no student's name, neither in the file's nor in a folder's"))
            continue
        new = Submission(student, name, text, modified)
        old = found.get(student)
        if old is not None:
            new, old = (new, old) if new.modified >= old.modified else (old, new)
            unreachable.append(Unreachable(student, old.name, f"an older copy; {new.name} is graded"))
        found[student] = new
    there = {_same(name) for name in found}
    reported = {_same(u.student) for u in unreachable}
    for name in roster:
        if _same(name) not in there | reported:
            unreachable.append(Unreachable(name, "", "nothing was handed in"))
    return [found[name] for name in sorted(found)], unreachable


def _files(source: Path) -> Iterator[tuple[str, float, Callable[[], str]]]:
    """(name, modification time, function that reads it) of each file."""
    if source.is_file():
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                if not info.is_dir() and not set(PurePosixPath(info.filename).parts) & set(_IGNORED):
                    stamp = float("".join(f"{n:02}" for n in info.date_time))

                    def read(info: zipfile.ZipInfo = info) -> str:
                        if info.file_size > MAX_NBYTES:
                            raise OSError(f"it has {info.file_size:,} bytes")
                        return archive.read(info).decode("utf-8")

                    yield info.filename, stamp, read
        return
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink() and not set(path.parts) & set(_IGNORED):

            def read_path(path: Path = path) -> str:
                if path.stat().st_size > MAX_NBYTES:
                    raise OSError(f"it has {path.stat().st_size:,} bytes")
                return path.read_text(encoding="utf-8")

            yield path.relative_to(source).as_posix(), path.stat().st_mtime, read_path


def _bare(name: str) -> str:
    return _COPY.sub("", PurePosixPath(name).stem.strip()).strip()


def _student(name: str, assignment: str) -> str:
    """The student whose file this is; "" if the name does not contain it."""
    path = PurePosixPath(name)
    bare = _bare(name)
    at = bare.find(assignment)
    before = (bare[:at] if at >= 0 else "").strip(" ._-")
    for pattern in (_MOODLE, _CANVAS):
        if found := pattern.match(before):
            return found["who"].strip()
    if before:
        return before
    after = bare[at + len(assignment) :].strip(" ._-") if at >= 0 else ""
    folders = [part for part in path.parts[:-1] if part not in (assignment, "submitted", "submissions")]
    if folders:
        found = _MOODLE.match(folders[-1])
        return found["who"].strip() if found else folders[0]
    return after or ("" if at >= 0 else bare)


def _is_of(text: str, assignment: str) -> bool:
    """Whether a renamed notebook belongs to this assignment: its setup imports the checks of that number."""
    try:
        cells = json.loads(text)["cells"]
        names = {c.get("metadata", {}).get("nbgrader", {}).get("grade_id") for c in cells}
        sources = "".join("".join(c["source"]) for c in cells)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    number = assignment[:2]
    mine = f"import notebook{number} " in sources or (number == "04" and "from teachllama import check" in sources)
    return "exercise-1-answer" in names and mine


def _same(student: str) -> str:
    return re.sub(r"[^\w]+", " ", student).strip().casefold()
