"""Renders untrusted chat templates safely.

There are two layers of protection. Jinja's sandbox blocks the attributes through which a template could take over
Python. It does not limit memory or time: `{{ 'x' * 10**11 }}` is one call into C that nothing inside Python can
interrupt, and about a dozen filters can do the same. So templates are rendered in a separate process (`renderer.py`),
which is monitored from here and killed when it exceeds its limit of processor time or memory. Starting it takes about a
tenth of a second; each rendering then takes about a millisecond. After it was killed, the next call starts a new one.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from teachllama.errors import ChatError, TemplateError

MAX_TEMPLATE = 1 << 18  # characters; the longest in use have about 20,000
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of rendering.

    Args:
        seconds: processor time for all renderings of one call, so that a busy machine makes no difference.
        megabytes: memory of the rendering process, which needs about 25 for itself.
        characters: length of one rendered text.
    """

    seconds: float = 3.0
    megabytes: int = 400
    characters: int = 1 << 22


DEFAULT = Limits()


class _Renderer:
    """The rendering process. All threads share one, which is started when first needed.

    After `os.fork` the child has none, because it must not write to its parent's process or kill it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held by the thread whose request is being answered
        self._starting = threading.RLock()  # held while the process and its pipes are opened or closed; forks wait
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=lambda: self._starting.acquire(),
                after_in_parent=lambda: self._starting.release(),
                after_in_child=self._forked,
            )

    def ask(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """Sends one request and waits for its answer. Thread-safe: threads take turns."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._start()
            process, done, found = self._process, threading.Event(), list[str]()
            assert process is not None
            watcher = threading.Thread(target=_watch, args=(process, limits, done, found), daemon=True)
            watcher.start()
            answer: dict[str, Any] | None = None
            try:
                _write(process, json.dumps(request).encode() + b"\n")
                answer = json.loads(_read_line(process))
            except (OSError, ValueError):  # the process ended before or in the middle of a line
                pass
            finally:
                done.set()
                watcher.join()
                if answer is None or answer.get("error") == "limit":  # after Ctrl-C, an answer may still arrive
                    self._end()
            return answer or {"error": "limit" if found else "ended", "message": "".join(found)}

    def stop(self) -> None:
        """Ends the process; the next request starts another."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        script = str(Path(__file__).with_name("renderer.py"))
        try:
            with self._starting:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", script, json.dumps(sys.path)],
                    bufsize=0,  # a forked child must inherit neither buffered bytes nor a file's lock
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C at the terminal must not reach it
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # the same on Windows
                )
        except OSError as e:
            raise TemplateError(
                f"chat templates are rendered in a process of their own, and {sys.executable!r} did not start: {e}"
            ) from e

    def _end(self) -> None:
        with self._starting:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()

    def _forked(self) -> None:
        """In a forked child, releases the parent's process without touching it. The child starts its own."""
        process, self._process = self._process, None
        self._lock, self._starting = threading.Lock(), threading.RLock()
        if process is None:
            return
        process.returncode = 0  # not this process's child: nothing to wait for
        # Redirect the pipes to the null device. If the child kept copies of their ends, the parent would not notice
        # that the renderer ended, nor the renderer that the parent did.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                os.dup2(nowhere, pipe.fileno(), inheritable=False)
        os.close(nowhere)


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(process.stdin.fileno(), rest) :]


def _read_line(process: subprocess.Popen[bytes]) -> bytes:
    """Reads one line, or part of one if the process ends."""
    assert process.stdout is not None
    pieces: list[bytes] = []
    while not pieces or not pieces[-1].endswith(b"\n"):  # an answer is exactly one line
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def _watch(process: subprocess.Popen[bytes], limits: Limits, done: threading.Event, found: list[str]) -> None:
    """Kills a process that exceeds a limit before `done`, and records the limit in `found`."""
    try:
        watched = psutil.Process(process.pid)
        used = lambda: sum(watched.cpu_times()[:2])
        before = used()
        while not done.wait(POLL_S):
            if watched.memory_info().rss > limits.megabytes << 20:
                found.append(f"more than {limits.megabytes} MB of memory")
            elif used() - before > limits.seconds:
                found.append(f"more than {limits.seconds:g} s")
            if found:
                process.kill()
                return
    except psutil.Error:  # the process ended by itself
        pass


_renderer = _Renderer()


def render(template: str, calls: Sequence[Mapping[str, Any]], limits: Limits = DEFAULT) -> list[str]:
    """Renders a template once for each set of variables, exactly as Hugging Face's `apply_chat_template` would.

    Args:
        template: Jinja source, untrusted.
        calls: the variables of each rendering (messages, add_generation_prompt, bos_token, ...), which JSON can
            represent.
        limits: the resources that rendering may use.

    Raises:
        ChatError: the template refuses these messages; the text is the template's own.
        TemplateError: the template is not valid Jinja, fails, tries to leave its sandbox, or exceeds a limit.
    """
    if len(template) > MAX_TEMPLATE:
        raise TemplateError(
            f"the chat template has {len(template):,} characters; at most {MAX_TEMPLATE:,} are accepted. "
            "Real ones have a few thousand: the file is damaged or hostile"
        )
    request = {
        "template": template,
        "calls": [dict(call) for call in calls],
        "characters": limits.characters,
        "megabytes": limits.megabytes,
        "seconds": limits.seconds,
    }
    answer = _renderer.ask(request, limits)
    if "texts" in answer:
        return answer["texts"]
    kind, message = answer["error"], answer["message"]
    if not message.endswith(".."):  # a full stop, not an ellipsis
        message = message.removesuffix(".")
    if kind == "refused":
        raise ChatError(f"the model's chat template refuses this conversation: {message}")
    raise TemplateError(
        {
            "ended": "the process that renders chat templates ended without an answer: is jinja2 installed?",
            "syntax": f"the chat template is not valid Jinja: {message}. Give another with template=...",
            "failed": f"the chat template failed on this conversation: {message}. Give another with template=...",
            "limit": f"the chat template was stopped: it used {message}. Real ones take a thousandth of that: "
            "do not trust this file, or give another template with template=...",
        }[kind]
    )
