"""`teachllama run`: executes a course notebook without a browser, prints its results, and writes an HTML page."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable
from html import escape
from pathlib import Path
from typing import Any

from teachllama import hub
from teachllama.cli.numbers import count_from_text
from teachllama.cli.terminal import COLOURS, Status, path_of, printable, visible, width_of
from teachllama.errors import TeachLlamaError
from teachllama.lessons.course import course_folder

WIDGET = "application/vnd.jupyter.widget-view+json"
INTENDED = "(intended) "  # printed before an error that a cell is meant to show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("notebook", help="a notebook's number, such as 04, or the path of one")
    parser.add_argument(
        "model", nargs="?", help="a .gguf file or a name that `teachllama models` lists; default: the notebook's own"
    )
    parser.add_argument("--html", metavar="FILE", help="where to write the page (default: out/NAME.html)")
    parser.add_argument(
        "--timeout", default="600", metavar="SECONDS", help="the longest one cell may take (default: 600)"
    )


def find_notebook(spec: str) -> Path:
    """The path of a notebook, from its number or its path."""
    if spec.endswith(".ipynb"):
        if (path := path_of(spec)).is_file():
            return path
        raise TeachLlamaError(f"{spec}: no such notebook")
    folder = course_folder()
    found = sorted(folder.glob(f"{spec.zfill(2)}_*.ipynb")) if re.fullmatch(r"\d{1,2}", spec) else []
    if not found:
        here = ", ".join(p.stem.split("_")[0] for p in sorted(folder.glob("[0-9][0-9]_*.ipynb")))
        raise TeachLlamaError(f"no notebook is numbered {spec!r}; there is {here}")
    return found[0]


def run(args: argparse.Namespace) -> int:
    """Executes the notebook and writes its page. Returns 0 if every cell ran, 1 if one failed, 130 after Ctrl-C."""
    try:
        import IPython.lib.lexers  # noqa: F401  for the page; imported here because two threads could load it in part
        import nbformat
        from nbclient.exceptions import CellControlSignal, DeadKernelError
        from nbconvert import HTMLExporter
    except ImportError as e:
        raise TeachLlamaError(f'running notebooks needs {e.name}: pip install "teachllama[lab]"') from None
    path = find_notebook(args.notebook)
    timeout_s = count_from_text("--timeout", args.timeout)
    model = hub.find(args.model or os.environ.get("TEACHLLAMA_MODEL") or "smollm2-135m")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # the page shows only results of this run
            cell.outputs, cell.execution_count = [], None
    started, failure = time.perf_counter(), ""
    execution = _Execution(notebook, path, timeout_s, {**os.environ, "TEACHLLAMA_MODEL": str(model.absolute())})
    try:
        print(f"running {printable(path.name)} with {printable(model.name)}", flush=True)
        execution.wait()
    except KeyboardInterrupt:  # before or after `wait` handles it
        execution.abandon()
    except DeadKernelError:
        failure = f"the Python that runs the cells died in cell {execution.cell}: it may have run out of memory"
    except (CellControlSignal, TimeoutError) as e:
        slow = isinstance(e, TimeoutError)
        failure = (
            f"cell {execution.cell} ran longer than {timeout_s:,} s (--timeout)" if slow else f"a cell failed:\n{e}"
        )
    for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
        if {WIDGET, "text/html"} <= set(output.get("data", {})):
            del output["data"][WIDGET]  # a page has no kernel, so show the static HTML instead
    html = path_of(args.html or f"out/{path.stem}.html")
    html.parent.mkdir(parents=True, exist_ok=True)
    page = _for_offline(HTMLExporter().from_notebook_node(notebook)[0], notebook)
    html.write_text(_with_alt_text(page, notebook), encoding="utf-8")
    shown = printable(str(html))
    if execution.stopped:
        where = f"in cell {execution.cell} of {len(notebook.cells)}" if execution.cell else "before the first cell"
        print(f"\nstopped {where}; the page with the cells run so far is {shown}", file=sys.stderr)
        return 130
    print(f"\n{printable(path.name)}: {time.perf_counter() - started:.0f} s{_peak()}; the page is {shown}")
    if failure:
        print(f"teachllama run: {visible(COLOURS.sub('', failure))}", file=sys.stderr)
    return 1 if failure else 0


class _Stopped(Exception):
    """Ctrl-C was pressed."""


class _Execution:
    """Executes a notebook in a thread, so that the main thread receives Ctrl-C and can stop the execution cleanly.

    Ctrl-C interrupts the running cell, as Jupyter's stop button does, and no further cell is started. A second Ctrl-C
    ends the Python that runs the cells.
    """

    def __init__(self, notebook: Any, path: Path, timeout_s: int, environment: dict[str, str]):
        from nbclient import NotebookClient

        self.notebook, self.stopped, self.cell = notebook, False, 0  # cells are counted from 1; 0: none was started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._last_words = ""  # what the kernel wrote to its own stderr; a cell's output is not there
        self._done, self._lock, self._begun = threading.Event(), threading.Lock(), False
        self._environment, self._worker = environment, threading.Thread(target=self._execute, daemon=True)
        self._status = Status(
            lambda: f"cell {self.cell} of {len(notebook.cells)}:" if self.cell else "starting Python:"
        )
        self._client = NotebookClient(
            notebook,
            timeout=timeout_s,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_start=self._begin,
            on_cell_executed=self._end,
        )

    def wait(self) -> None:
        """Executes the notebook. Raises nbclient's errors. After Ctrl-C, returns when the kernel has ended."""
        with self._status:
            self._worker.start()
            while not self._done.is_set():  # an interrupted join() may treat a running thread as ended
                try:
                    self._done.wait(0.2)
                except KeyboardInterrupt:
                    self._stop()
        if self._error is not None and not self.stopped:
            from nbclient.exceptions import DeadKernelError

            if isinstance(self._error, DeadKernelError):
                print(self._last_words, end="", file=sys.stderr)
            raise self._error

    def abandon(self) -> None:
        """Starts no further cell. Returns when the executing thread has ended.

        An interrupted `Thread.start` may or may not have started the thread, so the thread records its own start.
        """
        with self._lock:
            self.stopped, begun = True, self._begun
        if begun:
            self._done.wait(60)

    def _execute(self) -> None:
        with self._lock:
            self._begun = not self.stopped
        if not self._begun:  # nothing waits for a kernel any more, and nothing would end it
            return
        try:
            with (
                tempfile.TemporaryDirectory(prefix="teachllama-", ignore_cleanup_errors=True) as folder,
                open(os.path.join(folder, "stderr"), "w+b") as said,  # a kernel that is stopped as it starts complains
            ):
                manager = self._client.create_kernel_manager()
                if hasattr(socket, "AF_UNIX") and len(folder) < 80:  # the length of Unix socket paths is limited
                    manager.transport, manager.ip = "ipc", os.path.join(folder, "kernel")
                try:
                    self._client.execute(env=self._environment, cleanup_kc=True, stderr=said)
                finally:
                    said.seek(max(0, said.seek(0, os.SEEK_END) - 10_000))
                    self._last_words = said.read().decode(errors="replace")
        except BaseException as e:
            self._error = e
        self._done.set()

    def _stop(self) -> None:
        again, self.stopped = self.stopped, True
        if self._loop is None:  # the kernel is still starting: the first cell will not be run
            return
        manager: Any = self._client.km
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            action = manager.shutdown_kernel(now=True) if again else manager.interrupt_kernel()
            asyncio.run_coroutine_threadsafe(_if_it_runs(action), self._loop)

    def _begin(self, cell: Any, cell_index: int) -> None:
        self._loop = asyncio.get_running_loop()
        if self.stopped:
            raise _Stopped
        self.cell = cell_index + 1
        self._status.restart()
        _show_headings(cell)

    def _end(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        self._status.restart()
        _show(cell)
        if self.stopped:
            raise _Stopped


async def _if_it_runs(action: Awaitable[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the kernel has just ended
        await action


def _with_alt_text(page: str, notebook: Any) -> str:
    """Inserts each picture's description where nbconvert's template says that there is none."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    for output in outputs:
        if "image/png" in output.get("data", {}):
            alt = output.metadata.get("image/png", {}).get("alt") or "a picture, described in the text below it"
            page = page.replace('alt="No description has been provided for this image"', f'alt="{escape(alt)}"', 1)
    return page


_FROM_ELSEWHERE = re.compile(r'<script[^>]*\bsrc="https?://[^"]*"[^>]*>\s*</script>')  # MathJax and the widget loader


def _for_offline(page: str, notebook: Any) -> str:
    """Removes scripts from other servers, unless the notebook has a formula or a script of its own."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    texts += [str(data.get("text/markdown", "")) for data in outputs]
    pages = [*texts, *(str(data.get("text/html", "")) for data in outputs)]
    scripts = any("<script" in text for text in pages) or any("application/javascript" in data for data in outputs)
    formulas = any("text/latex" in data for data in outputs) or any(
        sign in text for text in texts for sign in ("$", "\\(", "\\begin")
    )
    return page if formulas or scripts else _FROM_ELSEWHERE.sub("", page)


def _peak() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", at most {peak / 1e6:,.0f} MB resident"


def _show_headings(cell: Any) -> None:
    if cell.cell_type == "markdown":
        for line in cell.source.splitlines():
            if re.match(r"#{1,2} ", line):
                heading = printable(line.lstrip("# "))
                print(f"\n{heading}\n{'=' * width_of(heading)}", flush=True)


def _show(cell: Any) -> None:
    """Prints a cell's outputs. Marks errors that the cell is meant to show, unless the cell failed."""
    outputs = cell.get("outputs", ())
    meant = "raises-exception" in cell.metadata.get("tags", ())
    failed = not meant and any(output.output_type == "error" for output in outputs)
    shown = ""
    for output in outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            text = _as_shown(output.text)
            shown += text if failed else re.sub(r"^(?=\w+Error:)", INTENDED, text, flags=re.M)
            continue
        shown = _line_ended(shown)
        if output.output_type == "error":
            shown += visible(f"{INTENDED * meant}{output.ename}: {output.evalue}\n")
        elif "image/png" in data:
            shown += "(a picture: see the page)\n"
        elif "text/plain" in data:
            shown += _as_shown(data["text/plain"]) + "\n"
    print(_line_ended(shown), end="", flush=True)


def _as_shown(text: str) -> str:
    """A stream's text without colours. Of an overwritten line, such as a progress bar, only the last state."""
    lines = COLOURS.sub("", text).replace("\r\n", "\n").split("\n")
    return visible("\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines))


def _line_ended(text: str) -> str:
    """The text with its last line ended, because a status line may be written next."""
    return text if text.endswith("\n") or not text else f"{text}\n"
