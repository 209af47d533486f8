"""Grading: right answers get their points, mistakes are named, cheats get no points, and no student is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nbformat", reason="the lab extra is not installed")
if sys.platform == "win32":
    pytest.skip("grading needs Linux or macOS", allow_module_level=True)

import nbformat

import teachllama as tl
from exercises import make
from teachllama import cli
from teachllama.lessons import lesson, lessons
from teachllama.lessons.common.check import Refused
from teachllama.lessons.common.exercise import Lesson
from teachllama.lessons.grading import batch
from teachllama.lessons.grading.collect import Submission, Unreachable, collect
from teachllama.lessons.grading.one import Mark, NotANotebook, answers, grade
from teachllama.lessons.grading.puzzle import judge_puzzle
from teachllama.lessons.grading.remote import Student, check_user, run_as
from teachllama.lessons.grading.student import decode, encode

ALL = lessons()
SOURCE = Path(__file__).parents[1] / "teachllama" / "lessons" / "n06_architectures" / "exercises.py"


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHLLAMA_MODEL", "tiny-stories")


def notebook(found: Lesson, of: Any) -> str:
    """The text of a submission; `of(i, exercise, solution)` returns the source of answer i."""
    graded = make.graded_notebook(found)
    for cell in graded.cells:
        name = cell.metadata.nbgrader.grade_id
        if name.endswith("-answer"):
            i = int(name.split("-")[1])
            marks = (make.BEGIN, make.END)
            solution = "\n".join(line for line in cell.source.split("\n") if line.strip() not in marks)
            cell.source = of(i, found.exercises[i - 1], solution)
    return nbformat.writes(graded)


def marks_of(found: Lesson, of: Any, seed: str = "secret:ada") -> list[Mark]:
    return grade(notebook(found, of), found, seed)


def dummy(exercise: Any) -> str:
    if exercise.cell:
        return "puzzle = check.leak_puzzle(model)"
    return "\n".join(f"def {name}(*args):\n    return 0" for name in exercise.names)


@pytest.mark.parametrize("found", ALL, ids=lambda l: l.notebook)
def test_right_answers_get_all_points_and_usual_mistakes_none_and_a_name(found: Lesson) -> None:
    right = marks_of(found, lambda i, e, solution: solution)
    assert [(m.visible, m.hidden) for m in right] == [e.points for e in found.exercises]
    assert [m.mistake for m in right] == [None] * len(right)
    wrong = marks_of(found, lambda i, e, solution: e.mistake[1])
    assert [m.visible + m.hidden for m in wrong] == [0] * len(wrong)
    for mark, exercise in zip(wrong, found.exercises, strict=True):
        assert exercise.mistake[0] in (mark.mistake or "").split(" or ")


# ---- what a student would try in the notebook: for every exercise ----

CHEATS = {
    "replaces the checker": "import teachllama.check.core as core\ncore.assert_right = lambda result: None",
    "rebinds names": "assert_right = lambda *a: None\nclass C:\n    def __getattr__(self, n): return id\ncheck = C()",
    "patches the judge": "import sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('judge', 'judge_hidden', 'run', 'close'):\n"
    "        if hasattr(m, n) and (getattr(m, '__name__', '') or '').startswith('teachllama'):\n"
    "            setattr(m, n, lambda *a, **k: True)",
    "asks the lesson": "from teachllama.lessons import lesson\nEXERCISE = lesson('06').exercises[0]",
    "exits": "import sys\nsys.exit(0)",
    "ends the process": "import os\nos._exit(0)",
    "reads the sources": f"text = open({str(SOURCE)!r}).read()",
    "forges a reply": "import os, json\nfor fd in range(3, 12):\n    try:\n"
    "        d = json.dumps({'ready': [True], 'failed': None}).encode()\n"
    "        os.write(fd, len(d).to_bytes(8, 'big') + d)\n    except OSError:\n        pass",
    "starts a program": "import subprocess\nsubprocess.run(['true'])",
    "forks": "import os\nwhile os.fork() == 0:\n    pass",
    "floods the output": "print('x' * 30_000_000)",
    "is not Python": "def (",
}
WAYS_TO_LIE = {
    "equal to everything": "class E(float):\n    def __eq__(self, o): return True\n"
    "    def __float__(self): return 1.0\n    __hash__ = None",
}


def lies(exercise: Any) -> str:
    if exercise.cell:
        return "puzzle = E(1)"
    return "\n".join(f"def {name}(*args):\n    return E(1)" for name in exercise.names)


def pairs_of(ways: Iterable[str], share: int) -> list[Any]:
    """Pairs each way with some lessons, in turn, so that every lesson has some; with TEACHLLAMA_ALL_CHEATS with all.

    All pairs take twenty minutes.
    """
    every = bool(os.environ.get("TEACHLLAMA_ALL_CHEATS"))
    chosen = [
        (way, lesson)
        for i, way in enumerate(ways)
        for j, lesson in enumerate(ALL)
        if every or (i + j) % (len(ALL) // share) == 0
    ]
    return [pytest.param(way, lesson, id=f"{lesson.notebook}-{way}") for way, lesson in chosen]


@pytest.mark.slow
@pytest.mark.parametrize(("cheat", "found"), pairs_of([*CHEATS, *WAYS_TO_LIE], 1))
def test_a_cheat_gets_no_points_in_any_exercise(found: Lesson, cheat: str) -> None:
    if cheat in CHEATS:
        marks = marks_of(found, lambda i, e, _: f"{CHEATS[cheat]}\n{dummy(e)}")
    else:
        marks = marks_of(found, lambda i, e, _: f"{WAYS_TO_LIE[cheat]}\n{lies(e)}")
    assert [(m.exercise, m.visible + m.hidden) for m in marks] == [(m.exercise, 0) for m in marks]
    assert all(m.mistake for m in marks)


BREAKS = {
    "endless": "while True:\n        pass",
    "memory": "x = []\n    while True:\n        x.append(bytearray(10_000_000))",
    "ended": "import os\n    os._exit(3)",
}


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "found"), pairs_of(BREAKS, 1))
def test_a_function_that_breaks_a_limit_is_stopped_in_every_exercise_and_the_rest_is_graded(
    found: Lesson, limit: str
) -> None:
    def answer(i: int, exercise: Any, solution: str) -> str:
        if exercise.cell or i == 2:
            return solution
        return "\n".join(f"def {name}(*args):\n    {BREAKS[limit]}" for name in exercise.names)

    for mark, exercise in zip(marks_of(found, answer), found.exercises, strict=True):
        if exercise.cell or mark.exercise == 2:
            assert (mark.visible, mark.hidden) == exercise.points
        else:
            assert mark.visible + mark.hidden == 0
            # On a busy machine the time limit may apply before memory is full.
            assert mark.mistake in (limit, "endless" if limit == "memory" else limit)


@pytest.mark.parametrize(
    "code",
    [
        f"open({str(SOURCE)!r})", f"import io; io.FileIO({str(SOURCE)!r})", f"import os; os.open({str(SOURCE)!r}, 0)",
        f"import os; os.open({str(SOURCE.parent.parent / '..' / 'lessons' / SOURCE.name)!r}, 0)",
        f"np.fromfile({str(SOURCE)!r}, 'u1')", f"np.memmap({str(SOURCE)!r}, 'u1')", "open('x', 'w')",
        "open('/proc/self/environ')", "import os; os.system('true')", "import socket",
        "import ctypes; ctypes.CDLL(None)",
        "import ctypes; ctypes.pythonapi.PyErr_Clear", "import ctypes; ctypes.string_at(id(np), 8)",
        "import ctypes; ctypes.c_int.from_address(id(np))",
        "import gc; gc.get_objects()", "from teachllama.lessons import lesson", "import exercises.make",
        "import os; os.chdir('/')", "import os; os.kill(os.getppid(), 9)",
    ],
)  # fmt: skip
def test_graded_code_is_refused_what_no_answer_needs(code: str) -> None:
    with Student([(False, f"{code}\ndef f():\n    return 1")], ["f"]) as student, pytest.raises(Refused) as raised:
        student.function("f")()
    assert "PermissionError" in str(raised.value) or "ImportError" in str(raised.value) or "not" in str(raised.value)
    assert raised.value.result.mistake == "exception"


def test_the_watchman_uses_nothing_that_watched_code_can_replace() -> None:
    code = (
        "import os, posixpath\nposixpath.realpath = posixpath.join = posixpath.normpath = lambda *a, **k: '/x'\n"
        "os.fspath = os.path.abspath = lambda *a: '/x'\nclass S(str):\n"
        "    def split(self, *a): return ['x']\n    def encode(self, *a): return b'x'\n"
        f"text = open(S({str(SOURCE)!r})).read()\ndef f():\n    return text[:10]"
    )
    with Student([(False, code)], ["f"]) as student, pytest.raises(Refused, match="PermissionError"):
        student.function("f")()


def test_values_and_what_was_changed_travel_and_foreign_objects_do_not() -> None:
    values = [None, True, 2**70, 1.5, float("inf"), "é", b"x", [1, (2, {3})], {"a": np.arange(3.0)}, np.float32(2)]
    for value in values:
        assert repr(decode(json.loads(json.dumps(encode(value))))) == repr(value)
    assert type(decode(encode(object()))).__name__ == "object"
    assert encode(np.array([object()])) == {"x": "ndarray"}
    with Student([(False, "def f(x, l):\n    x += 1\n    l.append(3)\n    return (v for v in x)")], ["f"]) as student:
        x, l = np.zeros(2), [1]
        assert student.function("f")(x, l) == [1, 1]
        assert x.tolist() == [1, 1]
        assert l == [1, 3]


def test_things_that_stay_here_can_be_asked_and_no_more() -> None:
    class Box:
        name, secret = "box", "s"

        def get(self, i: int) -> int:
            return 2 * i

    with Student([(False, "def f(b):\n    return b.name, b.get(4)\ndef g(b):\n    return b.secret")], ["f", "g"]) as s:
        assert s.function("f")(Box()) == ("box", 8)
        with pytest.raises(Refused, match="not available"):
            s.function("g")(Box())


def test_forged_and_broken_messages_are_refused_by_name() -> None:
    code = (
        "import os\ndef f():\n    for fd in range(3, 12):\n"
        "        try: os.write(fd, {!r})\n        except OSError: pass"
    )
    frames = (b"\0" * 7 + b"\2{}", b"\0" * 7 + b"\4true", b"\xff" * 8, b"\0" * 7 + b"\3xyz", b"\0" * 7 + b"\2[]")
    for frame in frames:
        with Student([(False, code.format(frame))], ["f"]) as student, pytest.raises(Refused) as raised:
            student.function("f")()
        assert raised.value.result.mistake in ("tampered", "output")


# ---- what a notebook may lack ----


def test_a_deleted_answer_is_said_to_be_missing_and_what_is_no_copy_is_refused() -> None:
    found = lesson("06")
    text = json.loads(notebook(found, lambda i, e, solution: solution))
    text["cells"] = [c for c in text["cells"] if c["metadata"]["nbgrader"]["grade_id"] != "exercise-2-answer"]
    marks = grade(json.dumps(text), found, "s")
    assert [m.mistake for m in marks] == [None, "deleted", None, None, None]
    for bad, word in (("", "not a notebook"), ("[]", "not a notebook"), ('{"cells": []}', "no answer cells")):
        with pytest.raises(NotANotebook, match=word):
            answers(bad)


def test_helpers_of_other_answers_may_be_used() -> None:
    def answer(i: int, exercise: Any, solution: str) -> str:
        if i == 1:
            return f"def helper(h):\n    return np.concatenate([h[::2], h[1::2]])\n{solution}"
        return "def route(scores, k):\n    return helper(scores)" if i == 2 else solution

    assert marks_of(lesson("06"), answer)[1].mistake != "exception"


# ---- collecting ----

NAMES = {
    "maria.garcia.06_architectures.ipynb": "maria.garcia",
    "bob.06_architectures (1).ipynb": "bob",
    "06_architectures_carla.ipynb": "carla",
    "dora/06_architectures/06_architectures.ipynb": "dora",
    "emil/06_architectures.ipynb": "emil",
    "submitted/fay/06_architectures/06_architectures.ipynb": "fay",
    "Gus Muster_4711_assignsubmission_file_/06_architectures.ipynb": "Gus Muster",
    "Hal Muster_4712_assignsubmission_file_06_architectures.ipynb": "Hal Muster",
    "ingrid_LATE_123_456_06_architectures-1.ipynb": "ingrid",
    "jo - 06_architectures - Copy.ipynb": "jo",
    "kim/my work.ipynb": "kim",
}


@pytest.fixture(scope="module")
def right() -> str:
    return notebook(lesson("06"), lambda i, e, solution: solution)


def test_every_usual_name_is_given_to_its_student_in_folders_and_zip_files(tmp_path: Path, right: str) -> None:
    folder = tmp_path / "in"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(right, "utf-8")
    (folder / "maria.garcia.04_sessions_and_memory.ipynb").write_text("{}")
    (folder / "emil" / ".ipynb_checkpoints").mkdir()
    (folder / "emil" / ".ipynb_checkpoints" / "06_architectures-checkpoint.ipynb").write_text("{}")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in folder.rglob("*.ipynb"):
            archive.write(path, path.relative_to(folder))
    for source in (folder, tmp_path / "in.zip"):
        found, unreachable = collect(source, "06_architectures")
        assert {s.name: s.student for s in found} == NAMES
        assert unreachable == []


def test_nobody_vanishes(tmp_path: Path, right: str) -> None:
    (tmp_path / "06_architectures.ipynb").write_text(right)
    (tmp_path / "ann.06_architectures.ipynb").write_text(right)
    (tmp_path / "ann.06_architectures (1).ipynb").write_text(right)
    os.utime(tmp_path / "ann.06_architectures.ipynb", (1, 1))
    (tmp_path / "bea.06_architectures.ipynb").write_bytes(b"\xff\xfe")
    (tmp_path / "cy.06_architectures.zip").write_bytes(b"PK")
    found, unreachable = collect(tmp_path, "06_architectures", ["ann", "bea", "cy", "dan"])
    assert [(s.student, s.name) for s in found] == [("ann", "ann.06_architectures (1).ipynb")]
    assert {u.student: u.reason.split(":")[0] for u in unreachable} == {
        "": "no student's name, neither in the file's nor in a folder's",
        "ann": "an older copy; ann.06_architectures (1).ipynb is graded",
        "bea": "cannot be read",
        "cy": "no notebook",
        "dan": "nothing was handed in",
    }


# ---- a class ----


def test_a_class_is_graded_resumed_and_reported_and_feedback_shows_no_hidden_value(
    tmp_path: Path, right: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lesson("06")
    wrong = notebook(found, lambda i, e, solution: e.mistake[1])
    given = tmp_path / "in"
    given.mkdir()
    for name, text in (("=ann", right), ("bob", wrong), ("cat", wrong), ("dud", "{")):
        (given / f"{name}.06_architectures.ipynb").write_text(text)
    arguments = ["grade", "06", str(given), "--out", str(tmp_path / "out"), "--seed", "word", "--jobs", "2"]
    assert cli.main(arguments) == 1
    out = capsys.readouterr().out
    assert "3 graded, 1 not" in out
    assert "not graded: dud dud.06_architectures.ipynb: not a notebook" in out
    book = (tmp_path / "out" / "06_architectures.csv").read_text()
    assert "'=ann,06_architectures,2,3,2,4,2,13,13" in book
    assert 'dud,06_architectures,,,,,,,13,"not a notebook' in book
    report = (tmp_path / "out" / "06_architectures-report.md").read_text()
    assert "**backwards** (2): bob, cat" in report
    page = (tmp_path / "out" / "feedback" / "06_architectures" / "bob.html").read_text()
    assert "This goes the other way" in page
    for secret in ("judge_hidden", "hidden_cases", "a program", "rng"):
        assert secret not in page
    # A second run grades nothing twice.
    monkeypatch.setattr(batch, "grade_text", lambda *_: pytest.fail("graded twice"))
    assert cli.main(arguments) == 1


def test_a_notebook_that_ends_its_grading_process_does_not_stop_the_batch(
    tmp_path: Path, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "WORKER", [sys.executable, "-c", "raise SystemExit(9)"])
    submissions = [Submission("ann", "a.ipynb", right, 0)]
    marks, failed = batch.grade_all(submissions, lesson("06"), tmp_path, "s")
    assert marks == {}
    assert failed == [Unreachable("ann", "a.ipynb", "the grading process ended (9): ")]


# ---- on a cluster, and as another user ----


def test_the_workers_of_a_cluster_grade_and_what_they_cannot_do_is_said(
    tmp_path: Path, right: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="the cluster extra is not installed")
    given = tmp_path / "in"
    given.mkdir()
    wrong = notebook(lesson("06"), lambda i, e, solution: dummy(e))
    for name, text in (("ann", right), ("bob", wrong), ("dud", "{")):
        (given / f"{name}.06_architectures.ipynb").write_text(text)
    arguments = ["grade", "06", str(given), "--seed", "word", "--jobs", "1", "--out"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
            address = cluster.scheduler_address
            assert cli.main([*arguments, str(tmp_path / "there"), "--cluster", address]) == 1
            assert cli.main([*arguments, str(tmp_path / "user"), "--cluster", address, "--as-user", "no-such"]) == 1
            assert not list((tmp_path / "user").rglob("*.json"))
            monkeypatch.setattr(batch, "__version__", "9.9")
            assert cli.main([*arguments, str(tmp_path / "other"), "--cluster", address]) == 1
    said = capsys.readouterr()
    assert "2 graded, 1 not" in said.out
    assert ("no system user 'no-such'" if os.geteuid() == 0 else "needs root") in said.err
    assert "and this machine 9.9" in said.err
    book = (tmp_path / "there" / "06_architectures.csv").read_text()
    for line in ("ann,06_architectures,2,3,2,4,2,13,13,", "bob,06_architectures,0,0,0,0,0,0,13,", "dud,06_arch"):
        assert line in book


def test_a_cluster_that_cannot_grade_is_named_and_nothing_is_kept_of_it(
    tmp_path: Path, right: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="the cluster extra is not installed")
    monkeypatch.setattr(batch, "CONNECT_S", 1)
    (tmp_path / "ann.06_architectures.ipynb").write_text(right)
    arguments = ["grade", "06", str(tmp_path), "--out", str(tmp_path / "out"), "--cluster"]
    assert cli.main([*arguments, "tcp://127.0.0.1:9"]) == 1
    assert cli.main([*arguments, "nonsense://1"]) == 1
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        assert cli.main([*arguments, cluster.scheduler_address]) == 1
    said = capsys.readouterr().err
    for words in ("no Dask scheduler answers at tcp://127.0.0.1:9", "answers at nonsense://1", "has no workers"):
        assert words in said, said
    assert "Traceback" not in said
    # A worker's death is not the notebook's fault: the next run tries again.
    answer = {"failed": "the cluster could not grade it: KilledWorker()", "again": True}
    monkeypatch.setattr(batch, "_here", lambda jobs: lambda waiting, *_: ((s, answer) for s in waiting))
    submissions = [Submission("ann", "a.ipynb", right, 0)]
    assert batch.grade_all(submissions, lesson("06"), tmp_path / "out", "s")[1][0].reason == answer["failed"]
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can run programs as somebody else")
def test_another_user_has_a_group_of_its_own_and_not_roots() -> None:
    done = subprocess.run(["id"], capture_output=True, text=True, check=True, **run_as("nobody"))
    assert done.stdout.startswith("uid=65534")
    assert "root" not in done.stdout
    for user, words in (
        ("no-such-user", "no system user"),
        ("root", "who may do anything"),
        ("a\0b", "no system user"),
    ):
        with pytest.raises(tl.TeachLlamaError, match=words):
            check_user(user)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can run programs as somebody else")
def test_students_code_runs_as_the_user_that_was_asked_for() -> None:
    try:
        check_user("nobody")
    except tl.TeachLlamaError as e:
        assert "may read them" in str(e)
        pytest.skip(str(e))
    found = lesson("04")
    right = grade(notebook(found, lambda i, e, solution: solution), found, "s", "nobody")
    assert [(m.visible, m.hidden) for m in right] == [e.points for e in found.exercises]
    peep = "import os\nraise ValueError(f'{os.getuid()} {os.getgid()} {os.getgroups()}')"
    for mark in grade(notebook(found, lambda i, e, solution: peep), found, "s", "nobody"):
        assert "65534 65534 []" in mark.feedback


def test_the_puzzles_process_knows_nothing_of_the_instructors_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHLLAMA_GRADE_SEED", "secret")
    result = judge_puzzle("import os\nraise ValueError(sorted(k for k in os.environ if k.startswith('TEACH')))")
    assert "ValueError: []" in result.message
