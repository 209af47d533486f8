"""The classroom: graded notebooks match the course's, nbgrader grades them end to end, JupyterHub serves them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbformat", reason="the lab extra is not installed")

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from exercises import grade_demo, make, mistakes
from teachllama import hub
from teachllama.lessons import lessons
from teachllama.lessons.common.check import CheckResult, NotYet, assert_right
from teachllama.lessons.common.exercise import Lesson

ROOT = Path(__file__).parents[1]
ASSIGNMENTS = lessons()
WITHOUT_MODEL = [a for a in ASSIGNMENTS if not a.needs_model]
WITH_MODEL = [a for a in ASSIGNMENTS if a not in WITHOUT_MODEL]
MOST = None if os.environ.get("TEACHLLAMA_ALL_LESSONS") else 1
DEMO = {True: WITH_MODEL[:MOST], False: WITHOUT_MODEL[:MOST]}
needs_nbgrader = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("nbgrader") is None,
        reason='nbgrader is not installed: pip install -e ".[classroom]"',
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="nbgrader's exchange needs Linux or macOS"),
]


def cells_of(assignment: Lesson) -> dict[str, Any]:
    return {cell.id: cell for cell in make.graded_notebook(assignment).cells}


# ---- verdicts that count ----


def test_a_right_answer_passes_with_its_praise_and_a_wrong_one_raises_with_its_hint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_right(CheckResult(True, "Well counted."))
    assert capsys.readouterr().out == "Right. Well counted.\n"
    with pytest.raises(NotYet) as raised:
        assert_right(CheckResult(False, "V is missing.", "no_v"))
    assert str(raised.value) == "[no_v] V is missing."
    assert raised.value._render_traceback_() == ["Not yet: V is missing."]


# ---- the graded notebooks and the course's ----


def test_every_exercise_of_the_course_is_graded() -> None:
    with_exercises = [
        path.stem
        for path in sorted(make.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
        if "**Exercise 1. " in path.read_text(encoding="utf-8")
    ]
    assert [a.notebook for a in ASSIGNMENTS] == with_exercises


def test_the_marking_guide_is_what_the_exercises_say() -> None:
    page = make.GUIDE.read_text(encoding="utf-8")
    assert page == make.with_guide(page), "run python -m exercises.make --guide"


def test_the_mistakes_that_the_marking_guide_names_are_those_of_the_checks() -> None:
    folder = ROOT / "teachllama" / "lessons"
    sources = "\n".join(path.read_text("utf-8") for path in folder.rglob("*.py"))
    named = {name for l in ASSIGNMENTS for e in l.exercises for name in re.findall("`(\\w+)`", e.usual)}
    assert len(named) > 100
    assert [name for name in sorted(named) if f'"{name}"' not in sources] == []


@pytest.mark.parametrize("assignment", ASSIGNMENTS, ids=lambda a: a.notebook)
def test_a_graded_notebook_has_answer_visible_and_hidden_tests_for_each_exercise(assignment: Lesson) -> None:
    cells = cells_of(assignment)
    for i, exercise in enumerate(assignment.exercises, 1):
        answer, visible, hidden = (cells[f"exercise-{i}-{kind}"] for kind in ("answer", "test", "hidden"))
        assert answer.metadata.nbgrader.solution
        assert not answer.metadata.nbgrader.locked
        assert answer.source.count(make.BEGIN) == answer.source.count(make.END) == 1
        assert (visible.metadata.nbgrader.points, hidden.metadata.nbgrader.points) == exercise.points
        assert visible.source.startswith("assert_right(check.")
        assert "answer" not in visible.source.replace("-answer", "")
        assert "assert_right(" in hidden.source
        for cell in (answer, visible, hidden):
            compile(cell.source, cell.id, "exec")
    assert all(c.metadata.nbgrader.locked for c in cells.values() if not c.metadata.nbgrader.solution)
    links = [
        link for c in cells.values() for link in re.findall(r"\]\(([^)]+)\)", c.source) if c.cell_type == "markdown"
    ]
    assert all(link.startswith("https://") for link in links)  # an assignment has no course folders next to it


@pytest.mark.parametrize(
    ("assignment", "number"),
    [
        (a, i)
        for a in WITHOUT_MODEL
        for i in range(1, len(a.exercises) + 1)
        if a.exercises[i - 1].prepare is None  # `prepare` passes functions, which differ each time
    ],
    ids=lambda x: x.notebook if isinstance(x, Lesson) else str(x),
)
def test_an_answer_that_knows_the_visible_values_by_heart_fails_the_hidden_tests(
    assignment: Lesson, number: int
) -> None:
    cells = cells_of(assignment)
    names: dict[str, Any] = {}
    for cell in ("setup", f"exercise-{number}-given", f"exercise-{number}-answer"):
        exec(cells[cell].source if cell in cells else "", names)
    function = re.match(r"def (\w+)", cells[f"exercise-{number}-answer"].source)
    assert function
    right: Callable[..., Any] = names[function[1]]
    learned: dict[str, Any] = {}

    def learn(*args: Any) -> Any:
        return learned.setdefault(repr(args), right(*args))

    names[function[1]] = learn
    exec(cells[f"exercise-{number}-test"].source, names)
    names[function[1]] = lambda *args: learned.get(repr(args))
    exec(cells[f"exercise-{number}-test"].source, names)
    with pytest.raises(NotYet):
        exec(cells[f"exercise-{number}-hidden"].source, names)
    names[function[1]] = right
    exec(cells[f"exercise-{number}-hidden"].source, names)


@pytest.mark.parametrize("assignment", WITHOUT_MODEL, ids=lambda a: a.notebook)
def test_a_usual_mistake_gets_no_points_and_the_visible_test_knows_its_name(assignment: Lesson) -> None:
    cells = cells_of(assignment)
    names: dict[str, Any] = {}
    exec(cells["setup"].source, names)
    for i, exercise in enumerate(assignment.exercises, 1):
        exec(cells[f"exercise-{i}-given"].source if f"exercise-{i}-given" in cells else "", names)
        exec(exercise.mistake[1], names)
        with pytest.raises(NotYet) as raised:
            exec(cells[f"exercise-{i}-test"].source, names)
        assert exercise.mistake[0] in (raised.value.result.mistake or "").split(" or ")
        with pytest.raises(NotYet):
            exec(cells[f"exercise-{i}-hidden"].source, names)


TEXT, START = new_markdown_cell("**Exercise 1. Add.** Do."), new_code_cell("answer = ...\ncheck.add(answer)")
SOLUTION = new_code_cell("# Solution 1\nanswer = 2\ncheck.add(answer)", metadata={"tags": ["solution"]})


def test_an_exercise_is_taken_from_its_three_cells() -> None:
    notebook = new_notebook(cells=[new_markdown_cell("# A title"), TEXT, START, SOLUTION])
    assert make.written(notebook, "n") == [
        make.Written("**Exercise 1. Add.** Do.", "answer = ...", "answer = 2", "check.add(answer)")
    ]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([TEXT, START], "exercise 1: expected its text"),
        ([TEXT, SOLUTION, START], "exercise 1: expected its text"),
        ([TEXT, new_code_cell("answer = ..."), SOLUTION], r"end in a call of `check.`, found `answer = ...`"),
        ([new_markdown_cell("**Exercise 2. Add.** Do."), START, SOLUTION], "expected number 1"),
    ],
)
def test_an_exercise_that_cannot_be_graded_says_what_is_expected(cells: list[Any], message: str) -> None:
    with pytest.raises(make.OutOfStepError, match=message):
        make.written(new_notebook(cells=cells), "n")


def test_a_notebook_with_more_exercises_than_are_graded_says_so() -> None:
    first = ASSIGNMENTS[0]
    with pytest.raises(make.OutOfStepError, match=r"has 4 exercises, and its lesson grades 1"):
        make.graded_notebook(Lesson(first.notebook, first.setup, first.exercises[:1]))


# ---- nbgrader ----


Demos = dict[bool, tuple[Path, Future[str]] | None]  # whether it needs a model -> its folder and its output


def run(*command: object, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


class TestAssignments:
    """`make assignments`."""

    pytestmark = needs_nbgrader

    def test_the_students_versions_hold_the_question_and_neither_solution_nor_hidden_test(self, tmp_path: Path) -> None:
        run("exercises.make", "--course", tmp_path)
        for assignment in ASSIGNMENTS:
            name = assignment.notebook
            released = nbformat.read(tmp_path / "release" / name / f"{name}.ipynb", as_version=4)
            nbformat.validate(released)
            text = "\n".join(cell.source for cell in released.cells)
            assert "SOLUTION" not in text
            assert "HIDDEN" not in text
            assert text.count("...  # your code here\n") + text.endswith("your code here") >= len(assignment.exercises)
            for exercise, written in zip(
                assignment.exercises,
                make.written(nbformat.read(make.NOTEBOOKS / f"{name}.ipynb", as_version=4), name),
                strict=True,
            ):
                assert exercise.check in text
                assert "judge_hidden" not in text
                assert written.solution not in text
                assert written.text.split("](")[0][:40] in text
            for cell in released.cells:
                if cell.cell_type == "code":
                    compile(cell.source, name, "exec")


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Demos]:
    """Runs both demos in parallel: starting kernels takes most of the time.

    Each has one lesson, or all with TEACHLLAMA_ALL_LESSONS. tests/test_grading.py grades every lesson's answers.
    """
    env = {}
    with contextlib.suppress(pytest.skip.Exception):
        env = {"TEACHLLAMA_MODEL": request.getfixturevalue("smollm2_path")}
    with ThreadPoolExecutor() as pool:

        def begin(assignments: list[Lesson]) -> tuple[Path, Future[str]]:
            folder = tmp_path_factory.mktemp("demo")
            only = [part for a in assignments for part in ("--only", a.notebook)]
            return folder, pool.submit(run, "exercises.grade_demo", folder, *only, **env)

        yield {True: begin(DEMO[True]) if env else None, False: begin(DEMO[False])}


class TestGradeDemo:
    """`make grade-demo`, with assignments that need a model and with those that do not."""

    pytestmark = needs_nbgrader

    def graded(self, assignments: list[Lesson], folder: Path, shown: str) -> None:
        course = folder / "course"
        found = {m[:4] for m in mistakes.read(course) if not m.hidden}
        for assignment in assignments:
            name, of = assignment.notebook, assignment.points
            assert re.search(rf"^{name}\s+{of}\s+0\s+0\s+{of}$", shown, re.MULTILINE)
            usual = [(name, f"exercise-{i}", "max", e.mistake[0]) for i, e in enumerate(assignment.exercises, 1)]
            assert set(usual) <= found
            assert all(row[3] in shown for row in usual)
            pages = {
                student: (course / "feedback" / student / name / f"{name}.html").read_text(encoding="utf-8")
                for student in grade_demo.STUDENTS
            }
            n = len(assignment.exercises)
            assert pages["ada"].count("Right. ") >= 2 * n
            assert "Not yet: " not in pages["ada"]
            for student in ("blank", "max"):
                assert len(re.findall("Not yet: ", pages[student])) >= n
            assert "most recent call last" not in pages["max"]  # feedback is a sentence, not a traceback
            released = (folder / "exchange" / "teachllama" / "feedback").glob("*.html")
            assert len([page for page in released if name in page.read_text(encoding="utf-8")]) >= 3
        assert not [m for m in mistakes.read(course) if m.student == "ada"]

    def test_three_submissions_are_graded_from_end_to_end(self, demos: Demos) -> None:
        demo = demos[False]
        assert demo
        self.graded(DEMO[False], demo[0], demo[1].result())

    @pytest.mark.model
    def test_three_submissions_with_a_model_are_graded_from_end_to_end(self, demos: Demos) -> None:
        if not (demo := demos[True]):
            pytest.skip("needs SmolLM2: teachllama fetch smollm2-135m")
        self.graded(DEMO[True], demo[0], demo[1].result())

    def test_notebooks_that_came_by_mail_are_collected_by_their_names(self, tmp_path: Path) -> None:
        name = WITHOUT_MODEL[0].notebook
        archive = tmp_path / "downloaded" / name / "archive"
        archive.mkdir(parents=True)
        make.write_sources(tmp_path)
        shutil.copy(make.COURSE / "nbgrader_config.py", tmp_path)
        for student in ("ada", "b-1"):
            shutil.copy(make.source_path(WITHOUT_MODEL[0], tmp_path), archive / f"{student}.{name}.ipynb")
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", "zip_collect", name], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for student in ("ada", "b-1"):
            assert (tmp_path / "submitted" / student / name / f"{name}.ipynb").is_file()

    def test_a_folder_that_holds_something_else_is_left_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "thesis.txt").write_text("ten years of work")
        assert grade_demo.main([str(tmp_path)]) == 1
        assert "holds something else" in capsys.readouterr().err
        assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


def test_the_table_of_mistakes_counts_students_and_a_hidden_test_only_where_the_visible_was_passed(
    tmp_path: Path,
) -> None:
    def graded(student: str, **outcomes: str) -> None:
        cells = []
        for grade_id, evalue in outcomes.items():
            error = nbformat.v4.new_output("error", ename="NotYet", evalue=evalue, traceback=[])
            meta = {"grade": True, "grade_id": f"exercise-1-{grade_id}"}
            cells.append(new_code_cell("", outputs=[error] if evalue else [], metadata={"nbgrader": meta}))
        path = tmp_path / "autograded" / student / "01_a" / "01_a.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(new_notebook(cells=cells), path)

    graded("ada", test="", hidden="")
    graded("bea", test="[no_v] V is missing.", hidden="[other_values] No.")
    graded("cem", test="[no_v] V is missing.", hidden="[no_v] V is missing.")
    graded("dan", test="", hidden="[other_values] No.")
    assert mistakes.table(mistakes.read(tmp_path)).split("\n") == [
        "01_a, exercise-1",
        "    2  no_v                        bea, cem",
        "    1  other_values (hidden test)  dan",
    ]
    assert mistakes.table([]) == "No test failed."


# ---- JupyterHub ----

PASSWORD = "a-password-for-tests"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Hub:
    """Runs a JupyterHub with the unchanged exercises/jupyterhub_config.py."""

    def __init__(self, shared: Path):
        import requests

        self.requests, self.shared, self.log = requests, shared, shared / "hub.log"
        self.address = f"http://127.0.0.1:{free_port()}"
        (shared / "models").mkdir(parents=True)
        known = hub.KNOWN["smollm2-135m"]
        with (shared / "models" / known.file_name).open("wb") as file:
            file.truncate(known.nbytes)  # a file of the right size is enough to be found
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TEACHLLAMA_", "JUPYTER"))}
        command = [
            sys.executable, "-m", "jupyterhub", "-f", str(ROOT / "exercises" / "jupyterhub_config.py"),
            f"--JupyterHub.bind_url={self.address}", f"--JupyterHub.hub_port={free_port()}",
            f"--ConfigurableHTTPProxy.api_url=http://127.0.0.1:{free_port()}",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            cwd=shared,
            env={
                **env,
                "TEACHLLAMA_HUB_TRIAL": PASSWORD,
                "TEACHLLAMA_SHARED": str(shared),
                "TEACHLLAMA_COURSE": str(shared / "course"),
            },
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        self.wait_for(lambda: self.requests.get(f"{self.address}/hub/api", timeout=5).ok, "the Hub")

    def wait_for(self, ready: Callable[[], Any], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                if ready():
                    return
            except self.requests.ConnectionError:
                pass
            time.sleep(0.3)
        raise AssertionError(f"{what} is not there: {self.log.read_text()[-4000:]}")

    def log_in(self, user: str, password: str) -> Any:
        """Returns a logged-in session for the Hub's REST API; fails with 403 for a wrong password."""
        session = self.requests.Session()
        session.get(f"{self.address}/hub/login", timeout=30)
        xsrf = session.cookies.get("_xsrf", path="/hub/")
        form = {"username": user, "password": password, "_xsrf": xsrf}
        session.post(f"{self.address}/hub/login?next=/hub/home", data=form, timeout=30).raise_for_status()
        return session

    def start_server(self, user: str) -> Callable[..., Any]:
        """Logs a user in and starts their server; returns a function that calls its REST API."""
        session = self.log_in(user, PASSWORD)
        headers = {"X-XSRFToken": session.cookies.get("_xsrf", path="/hub/"), "Referer": f"{self.address}/hub/home"}
        made = session.post(f"{self.address}/hub/api/users/{user}/tokens", headers=headers, json={}, timeout=30)
        made.raise_for_status()
        token = {"Authorization": f"token {made.json()['token']}"}
        at = f"{self.address}/hub/api/users/{user}"
        self.requests.post(f"{at}/server", headers=token, timeout=120).raise_for_status()
        self.wait_for(
            lambda: self.requests.get(at, headers=token, timeout=30).json()["servers"].get("", {}).get("ready"),
            f"{user}'s server",
        )

        def call(method: str, path: str, **options: Any) -> Any:
            options.setdefault("timeout", 60)
            return self.requests.request(
                method, f"{self.address}/user/{user}/{path}", headers=token, allow_redirects=False, **options
            )

        return call

    def stop(self) -> None:
        self.process.terminate()  # this also stops the proxy and all users' servers
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="module")
def class_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    for name in ("jupyterhub", "nbgrader", "requests"):
        pytest.importorskip(name, reason=f'{name} is not installed: pip install -e ".[classroom]"')
    if shutil.which("configurable-http-proxy") is None:
        pytest.skip("JupyterHub's proxy is not installed: npm install -g configurable-http-proxy")
    if sys.platform == "win32":
        pytest.skip("JupyterHub needs Linux or macOS")
    served = Hub(tmp_path_factory.mktemp("shared"))
    try:
        yield served
    finally:
        served.stop()


def execute(call: Callable[..., Any], code: str) -> str:
    """Runs code in a kernel of a user's server and returns its output."""
    import asyncio

    from tornado.httpclient import HTTPRequest
    from tornado.websocket import websocket_connect

    kernel = call("POST", "api/kernels", json={"name": "python3"}).json()["id"]
    probe = call("GET", f"api/kernels/{kernel}")

    async def talk() -> str:
        address = probe.url.replace("http://", "ws://") + "/channels"
        socket = await websocket_connect(HTTPRequest(address, headers=dict(probe.request.headers), request_timeout=60))
        header = {"msg_id": uuid.uuid4().hex, "username": "", "session": uuid.uuid4().hex, "version": "5.3"}
        message = {
            "header": {**header, "msg_type": "execute_request"}, "parent_header": {}, "metadata": {},
            "content": {"code": code, "silent": False, "store_history": False, "allow_stdin": False},
            "channel": "shell",
        }  # fmt: skip
        await socket.write_message(json.dumps(message))
        printed = ""
        while (text := await socket.read_message()) is not None:
            got = json.loads(text)
            if got["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            if got["msg_type"] in ("stream", "error"):
                printed += got["content"].get("text") or "\n".join(got["content"]["traceback"])
            if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
                break
        socket.close()
        return printed

    printed = asyncio.run(asyncio.wait_for(talk(), 120))
    call("DELETE", f"api/kernels/{kernel}")
    return printed


@pytest.fixture(scope="module")
def released(class_hub: Hub) -> str:
    """The name of an assignment that the instructor has released to the class's exchange."""
    name = WITHOUT_MODEL[0].notebook
    code = f"""
        import sys
        from pathlib import Path
        from exercises import make
        from nbgrader.apps import NbGraderAPI

        course, exchange = map(Path, sys.argv[1:])
        make.write_sources(course)
        api = NbGraderAPI(config=make.settings(course, exchange))
        make.succeeded(api.generate_assignment({name!r}), "generate")
        make.succeeded(api.release_assignment({name!r}), "release")
    """
    paths = [str(class_hub.shared / "course"), str(class_hub.shared / "exchange")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *paths], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return name


@pytest.fixture(scope="module")
def ada(class_hub: Hub) -> Callable[..., Any]:
    return class_hub.start_server("ada")


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestJupyterHub:
    """exercises/jupyterhub_config.py, from a student's and an instructor's side."""

    def test_a_students_server_has_nbgrader_and_no_grading_pages(self, ada: Callable[..., Any]) -> None:
        extensions = {e["name"]: e for e in ada("GET", "lab/api/extensions").json()}
        assert extensions["jupyter-nbgrader"]["enabled"]
        assert ada("GET", "nbgrader_version", params={"version": version("nbgrader")}).json()["success"]
        assert ada("GET", "formgrader/api/assignments").status_code == 404

    def test_a_student_fetches_the_assignment(self, ada: Callable[..., Any], released: str) -> None:
        listed = ada("GET", "assignments", params={"course_id": "teachllama"}).json()
        assert [(a["assignment_id"], a["status"]) for a in listed["value"]] == [(released, "released")]
        fetched = ada("POST", "assignments/fetch", data={"course_id": "teachllama", "assignment_id": released})
        assert fetched.json()["success"], fetched.text
        notebook = ada("GET", f"api/contents/{released}/{released}.ipynb").json()["content"]
        assert "your code here" in json.dumps(notebook)

    def test_a_students_kernel_finds_the_shared_model_file_and_the_shared_compiled_kernels(
        self, ada: Callable[..., Any], class_hub: Hub
    ) -> None:
        printed = execute(
            ada,
            "from teachllama import hub; from teachllama.kernels import machine_code as cache\n"
            "print(hub.find('smollm2-135m'), cache.file().parent, sep='\\n')",
        )
        model = class_hub.shared / "models" / hub.KNOWN["smollm2-135m"].file_name
        assert printed.split() == [str(model), str(class_hub.shared / "kernels")]

    def test_an_instructors_server_has_the_grading_pages_with_the_courses_assignments(
        self, class_hub: Hub, released: str
    ) -> None:
        call = class_hub.start_server("instructor")
        listed = call("GET", "formgrader/api/assignments")
        assert listed.ok, listed.text
        status = {a["name"]: a["status"] for a in listed.json()}
        assert status == {a.notebook: "released" if a.notebook == released else "draft" for a in ASSIGNMENTS}

    def test_nobody_comes_in_without_the_password(self, class_hub: Hub) -> None:
        with pytest.raises(class_hub.requests.HTTPError, match="403"):
            class_hub.log_in("ada", "wrong-password")
