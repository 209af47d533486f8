"""Ctrl-C in every command: status 130, no traceback, and finished work is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from teachllama import cli
from tests.test_chat import tiny_chat_model
from tests.tools import tiny_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix sends them")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command in its own process group, as a shell does, so that Ctrl-C reaches all its processes."""
    processes: list[subprocess.Popen[str]] = []

    def run(*argv: str, code: str = "", **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *(["-c", code] if code else ["-m", "teachllama"]), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | environment,
            # a background job, as this test may be, ignores SIGINT, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Sends Ctrl-C and returns the rest of the command's output."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=90)


def ended_in_order(process: subprocess.Popen[str], err: str) -> None:
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Error" not in err


@pytest.mark.parametrize(
    "command", ["kv", "inspect", "models", "fetch", "generate", "chat", "warmup", "run", "quantize"]
)
def test_ctrl_c_is_status_130_in_every_command(
    command: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    import importlib

    module = importlib.import_module(f"teachllama.cli.{command}")
    monkeypatch.setattr(module, "run", interrupted)
    argv = {"models": [], "warmup": [], "generate": ["x", "y"], "quantize": ["x", "y", "Q8_0"]}.get(command, ["x"])
    assert cli.main([command, *argv]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_generate_keeps_the_text_so_far(start: Start, tmp_path: Path) -> None:
    path = str(tiny_model(tmp_path / "t.gguf"))
    endless = ["--max-new-tokens", "1M", "--seq-len", "1M", "--temperature", "1", "--seed", "3"]
    process = start("generate", path, "the", *endless)
    assert process.stdout is not None
    assert process.stdout.read(20).startswith("the")
    _, err = interrupt(process)
    ended_in_order(process, err)
    assert "written" in err
    assert "stopped by you]" in err


def test_a_chat_that_reads_a_pipe_ends(start: Start, tmp_path: Path) -> None:
    with tiny_chat_model(tmp_path) as model:
        path = str(model.path)
    process = start("chat", path)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("/load nothing\n")
    process.stdin.flush()
    assert "could not be read" in process.stderr.readline()
    _, err = interrupt(process)
    ended_in_order(process, err)
    assert err.endswith("stopped\n")


COMPILER = "import time; time.sleep(600)"


@pytest.mark.parametrize("argv", [["warmup"], ["generate", "tiny-stories", "One"]])
def test_a_compiler_that_runs_for_long_is_stopped_and_leaves_nothing(
    argv: list[str], start: Start, tmp_path: Path
) -> None:
    pytest.importorskip("numba")
    code = f"from teachllama.kernels import machine_code; machine_code._COMPILE = {COMPILER!r}; import sys;"
    code += " from teachllama import cli; sys.exit(cli.main())"
    process = start(*argv, code=code, TEACHLLAMA_KERNEL_CACHE=str(tmp_path))
    until(lambda: psutil.Process(process.pid).children(), process)  # type: ignore[arg-type]
    (compiler,) = psutil.Process(process.pid).children()
    _, err = interrupt(process)
    ended_in_order(process, err)
    assert err.endswith("\nstopped\n")
    compiler.wait(10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_real_compiler_is_stopped_at_any_moment(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    for seconds in (0.0, 1.5, 4.0):
        process = start("warmup", TEACHLLAMA_KERNEL_CACHE=str(tmp_path))
        until(lambda of=process: psutil.Process(of.pid).children(), process)  # type: ignore[misc]
        time.sleep(seconds)
        _, err = interrupt(process)
        assert process.returncode == 130
        assert "Traceback" not in err
    assert not list(tmp_path.glob("*.part"))


# Notebooks


def notebook(path: Path, *cells: str) -> str:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    page = nbformat.v4.new_notebook()
    page.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    page.cells[-1].outputs = [nbformat.v4.new_output("stream", text="an output of long ago\n")]
    nbformat.write(page, path)
    return str(path)


def waits(flag: Path, then: str = "") -> str:
    """A cell that creates the file `flag` and then waits for a long time."""
    return f"import pathlib, time\nprint('waiting')\npathlib.Path({str(flag)!r}).touch()\ntime.sleep(600){then}"


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kernels_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "ipykernel" in " ".join(p.cmdline())]


def test_run_writes_the_page_with_the_cells_run_so_far(start: Start, tmp_path: Path) -> None:
    flag, page = tmp_path / "flag", tmp_path / "p.html"
    path = notebook(tmp_path / "n.ipynb", "print('a' + 'first cell')", waits(flag), "print('a' + 'third cell')")
    process = start("run", path, "tiny-stories", "--html", str(page))
    until(flag.exists, process)
    kernels = kernels_of(process)
    out, err = interrupt(process)
    ended_in_order(process, err)
    assert out.startswith("running n.ipynb with tiny-stories.gguf\n")
    assert "afirst cell" in out
    assert "KeyboardInterrupt" in out
    assert f"stopped in cell 2 of 3; the page with the cells run so far is {page}" in err
    html = page.read_text(encoding="utf-8")
    assert "afirst cell" in html
    assert "waiting" in html
    assert "athird cell" not in html
    assert "an output of long ago" not in html
    assert kernels
    for kernel in kernels:
        kernel.wait(30)


def test_run_stops_after_a_cell_that_catches_the_interrupt(start: Start, tmp_path: Path) -> None:
    flag, page = tmp_path / "flag", tmp_path / "p.html"
    body = textwrap.indent(waits(flag), "    ")
    catches = f"try:\n{body}\nexcept KeyboardInterrupt:\n    print('caught' + ' it')"
    path = notebook(tmp_path / "n.ipynb", catches, "print('a' + 'second cell')")
    process = start("run", path, "tiny-stories", "--html", str(page))
    until(flag.exists, process)
    out, err = interrupt(process)
    ended_in_order(process, err)
    assert "caught it" in out
    assert "caught it" in page.read_text(encoding="utf-8")
    assert "asecond cell" not in out


def test_a_second_ctrl_c_ends_a_cell_that_does_not_stop(start: Start, tmp_path: Path) -> None:
    flag, page = tmp_path / "flag", tmp_path / "p.html"
    stubborn = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{waits(flag)}"
    process = start(
        "run",
        notebook(tmp_path / "n.ipynb", "print('a' + 'first cell')", stubborn),
        "tiny-stories",
        "--html",
        str(page),
    )
    until(flag.exists, process)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    _, err = interrupt(process)
    ended_in_order(process, err)
    assert "afirst cell" in page.read_text(encoding="utf-8")


def test_ctrl_c_before_the_first_cell_runs_none(start: Start, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    process = start(
        "run", notebook(tmp_path / "n.ipynb", "print('a' + 'first cell')"), "tiny-stories", "--html", str(page)
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("running n.ipynb")
    out, err = interrupt(process)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "afirst cell" not in out
    assert "stopped before the first cell" in err
    assert page.exists()


def test_an_interrupt_of_a_kernel_that_has_just_ended_says_nothing() -> None:
    from teachllama.cli import run

    async def interrupt_kernel() -> None:
        raise RuntimeError("Cannot interrupt kernel. No kernel is running!")

    assert asyncio.run(run._if_it_runs(interrupt_kernel())) is None


@pytest.mark.parametrize("dies", [True, False])
def test_what_a_kernel_wrote_to_its_own_stderr_is_shown_if_it_dies_and_only_then(
    dies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nbformat, exceptions = pytest.importorskip("nbformat"), pytest.importorskip("nbclient.exceptions")
    from teachllama.cli import run

    path = Path(notebook(tmp_path / "n.ipynb", "1"))
    execution = run._Execution(nbformat.read(path, as_version=4), path, 60, {})
    error = (
        exceptions.DeadKernelError("died") if dies else exceptions.CellExecutionError("1 / 0", "ZeroDivisionError", "")
    )

    def execute(stderr: Any, **_: object) -> None:
        stderr.write(b"the last words\n")
        raise error

    monkeypatch.setattr(execution._client, "execute", execute)
    with pytest.raises(type(error)):
        execution.wait()
    assert ("the last words" in capsys.readouterr().err) == dies


@pytest.mark.parametrize("begins", ["before the interrupt", "after it"])
def test_an_interrupt_while_the_thread_of_the_cells_starts_leaves_no_kernel_behind(
    begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat")
    from teachllama.cli import run

    path = Path(notebook(tmp_path / "n.ipynb", "1"))
    execution = run._Execution(nbformat.read(path, as_version=4), path, 60, {})
    worker, executed = execution._worker, []
    entered, may_end = threading.Event(), threading.Event()

    def execute(**_: object) -> None:
        entered.set()
        may_end.wait(30)
        executed.append("a kernel that was started, and ended")

    monkeypatch.setattr(execution._client, "execute", execute)
    start = worker.start

    def interrupted() -> None:
        if begins == "before the interrupt":
            start()
            entered.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execution.wait()
    if begins == "after it":
        execution.abandon()
        start()
        worker.join(30)
        assert executed == []
    else:
        threading.Timer(0.2, may_end.set).start()
        execution.abandon()  # returns only when the kernel has ended
        assert executed
    assert execution.stopped
