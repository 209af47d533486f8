"""Calls a student's functions, which run in another process within limits."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import psutil

from teachllama.errors import TeachLlamaError
from teachllama.lessons.common.check import CheckResult, Refused, short
from teachllama.lessons.grading.student import MAX_FRAME, decode, encode, send

LESSONS = Path(__file__).resolve().parents[1]
SCRIPT = LESSONS / "grading" / "student.py"
MEMORY = 3_000_000_000  # bytes of address space; NumPy alone reserves more than it uses
RESIDENT = 800_000_000  # bytes of resident memory
START_S = 10.0  # processor seconds for executing the cells
PATIENCE = 6  # factor on elapsed time, for code that sleeps or a busy machine
MAX_ASKED = 2_000_000  # requests during one call

# Attributes of this process's objects that a student's code may use: for reading and evaluating, not saving or closing.
_NAMES = """
encode decode piece piece_bytes tokenizer config eog_ids eos_id bos_id vocab_size seq_len eval sample logits tokens
n_past rewind reset generate history session model tensors metadata values items keys get nbytes n_elements shape
type name layout layers n_kv_heads n_heads key_length value_length head_dim window kv_nbytes native_seq_len id dim
hidden_dim n_layers arch n_weights block_weights block_nbytes bandwidth render
"""
PUBLIC = frozenset(_NAMES.split())


def environment() -> dict[str, str]:
    """Environment variables of a student's process. Excludes the instructor's own, which may have the secret word."""
    kept = {k: os.environ[k] for k in ("PATH", "SYSTEMROOT") if k in os.environ}
    return {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", **kept}


def run_as(user: str | None) -> dict[str, Any]:
    """Options of `subprocess` that run a program as a system user, only in that user's own group."""
    if user is None:
        return {}
    import pwd

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def folder_for(user: str | None) -> tempfile.TemporaryDirectory[str]:
    """An empty temporary folder, owned by that user."""
    folder = tempfile.TemporaryDirectory()
    if user is not None:
        import pwd

        found = pwd.getpwnam(user)
        os.chown(folder.name, found.pw_uid, found.pw_gid)
    return folder


def check_user(user: str) -> None:
    """Raises TeachLlamaError if a system user can't run students' code; the message gives the reason and a fix."""
    import pwd

    if os.geteuid() != 0:
        raise TeachLlamaError("--as-user needs root, which alone can start programs as somebody else: use sudo")
    try:
        found = pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: a NUL character
        raise TeachLlamaError(f"--as-user: there is no system user {user!r} here; add one with useradd") from None
    if found.pw_uid == 0:
        raise TeachLlamaError(f"--as-user {user} is root, who may do anything; choose an ordinary user")
    with folder_for(user) as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", "import sys, numpy; open(sys.argv[1]).close()", str(SCRIPT)],
                capture_output=True, text=True, cwd=folder, env=environment(), timeout=120, check=False, **run_as(user),
            )  # fmt: skip
            problem = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except (OSError, subprocess.SubprocessError) as e:
            problem = [str(e)]
    if problem:
        raise TeachLlamaError(
            f"--as-user {user} can't run {sys.executable} with NumPy and this package ({problem[0]}): install them "
            "where that user may read them, such as below /opt, and not in somebody's home folder"
        )


class Student:
    """A process that holds one exercise's code. A call that breaks a limit ends it; the next call starts a new one.

    Args:
        sources: the code to execute, as (optional, code). A failure of optional code is ignored.
        names: the functions that may be called.
        user: the system user that runs the code; None: the current user.
    """

    def __init__(self, sources: Sequence[tuple[bool, str]], names: Sequence[str], user: str | None = None):
        self._sources, self._names, self._user = list(sources), list(names), user
        self._process: subprocess.Popen[bytes] | None = None
        self._things: list[Any] = []
        self._idle = True
        self._folder = folder_for(user)
        self.failed: CheckResult | None = None  # why the code itself does not run

    def __enter__(self) -> Student:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._folder.cleanup()

    def function(self, name: str) -> Any:
        """A callable that runs the student's function of that name; None if there is none."""
        self._start()
        if self.failed is not None:
            result = self.failed

            def fails(*_: Any) -> Any:
                raise Refused(result)

            return fails
        return (lambda *args: self.call(name, args)) if self._there[self._names.index(name)] else None

    def call(self, name: str, args: Sequence[Any], seconds: float = 2.0) -> Any:
        """Calls a function in the process. Copies its changes to lists, dicts and arrays back into `args`.

        Raises:
            Refused: the function broke a limit or raised.
        """
        if not self._idle:
            self.end()
        self._start()
        self._things, self._idle = [], False
        self._send({"name": name, "args": [encode(a, self._handle) for a in args]})
        try:
            answer = self._wait(seconds)
            self._idle = True
            if "error" in answer:
                raise Refused(_raised(answer))
            for given, changed in zip(args, answer["args"], strict=True):
                _copy_back(given, changed)
            return decode(answer["value"])
        except _MALFORMED:
            self.end()
            raise Refused(_TAMPERED) from None

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(SCRIPT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=self._folder.name,
            env=environment(), **run_as(self._user),
        )  # fmt: skip
        self._idle = True
        forbidden = [str(LESSONS), *(str(p) for p in (LESSONS.parents[1] / "exercises", LESSONS.parents[1] / "tests"))]
        self._send({
            "sources": self._sources, "names": self._names, "memory": MEMORY, "cpu_s": 600, "forbidden": forbidden,
        })  # fmt: skip
        self.failed, self._there = None, [False] * len(self._names)
        try:
            answer = self._wait(START_S)
            there = [bool(answer["ready"][i]) for i in range(len(self._names))]
            # If all functions were defined before the code failed, they can be judged.
            self.failed = _raised(answer["failed"]) if answer["failed"] and not all(there) else None
            self._there = there
        except Refused as refused:
            self.failed = refused.result
        except _MALFORMED:
            self.end()
            self.failed = _TAMPERED

    def end(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None

    def _send(self, message: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            send(cast(BinaryIO, self._process.stdin), message)
        except (BrokenPipeError, OSError):
            pass  # the process has ended; `_wait` reports that

    def _handle(self, thing: Any) -> dict[str, int]:
        self._things.append(thing)
        return {"h": len(self._things) - 1}

    def _wait(self, seconds: float) -> Any:
        """Answers requests until another message arrives, and returns that one.

        Raises:
            Refused: a limit was broken, or the process ended.
        """
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        started = time.monotonic()
        try:
            before = sum(process.cpu_times()[:2])
        except psutil.Error:
            before = 0.0
        for _ in range(MAX_ASKED):
            message = self._read(process, seconds, started, before)
            if "ask" not in message:
                return message
            self._send(self._answered(message))
        self.end()
        raise Refused(_endless(seconds))

    def _answered(self, message: Any) -> dict[str, Any]:
        try:
            thing, args = self._things[message["of"]], decode(message["args"], self._things.__getitem__)
            match message["ask"]:
                case "get":
                    if args[0] not in PUBLIC:
                        raise AttributeError(f"{args[0]!r} is not available here")
                    value = getattr(thing, args[0])
                case "call":
                    if not callable(thing):
                        raise TypeError("this is not a function")
                    value = thing(*args, **decode(message["options"]))
                case "item":
                    value = thing[args[0]]
                case "len":
                    value = len(thing)
                case _:
                    value = list(itertools.islice(thing, 1_000_000))
            return {"value": encode(value, self._handle)}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # includes the error of a practice session that was called too often
            return {"error": str(error), "type": type(error).__name__}

    def _read(self, process: psutil.Process, seconds: float, started: float, before: float) -> Any:
        """Reads one message. Checks the limits while waiting."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd, data, wanted = self._process.stdout.fileno(), b"", 8
        size: int | None = None
        while True:
            if select.select([fd], [], [], 0.05)[0]:
                part = os.read(fd, min(wanted - len(data), 1 << 20))
                if not part:
                    self.end()
                    raise Refused(CheckResult(False, "Your code ended the Python that ran it.", "ended"))
                data += part
                if len(data) == wanted and size is None:
                    size = int.from_bytes(data, "big")
                    if size > MAX_FRAME:
                        self.end()
                        raise Refused(CheckResult(False, "Your function returns more than 64 MB.", "output"))
                    data, wanted = b"", size
                elif len(data) == wanted:
                    return json.loads(data)
            self._look(process, seconds, started, before)

    def _look(self, process: psutil.Process, seconds: float, started: float, before: float) -> None:
        try:
            used, resident = sum(process.cpu_times()[:2]) - before, process.memory_info().rss
        except psutil.Error:
            return  # the process has just ended
        passed = time.monotonic() - started
        if passed > seconds and (used > seconds or passed > PATIENCE * seconds):
            self.end()
            raise Refused(_endless(seconds))
        if resident > RESIDENT:
            self.end()
            raise Refused(_MEMORY)


def _endless(seconds: float) -> CheckResult:
    message = f"Your code was still running after {seconds:g} s and was stopped: does its loop ever end?"
    return CheckResult(False, message, "endless")


# Errors that a message not written by `student` may cause here.
_MALFORMED = KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, MemoryError, OverflowError
_TAMPERED = CheckResult(False, "Your code wrote into the channel on which results come back.", "tampered")
_MEMORY = CheckResult(
    False, "Your code took several hundred megabytes of memory and was stopped: what does it collect?", "memory"
)


def _raised(answer: dict[str, Any]) -> CheckResult:
    if answer["type"] == "MemoryError":
        return _MEMORY
    where = f" (line {answer['line']})" if isinstance(answer.get("line"), int) else ""
    text = f": {short(str(answer['error']))}" if answer["error"] else ""
    return CheckResult(False, f"Your code raised {short(str(answer['type']), 40)}{text}{where}.", "exception")


def _copy_back(given: Any, changed: Any) -> None:
    if isinstance(given, np.ndarray):
        new = decode(changed)
        if isinstance(new, np.ndarray) and new.shape == given.shape and not np.array_equal(new, given):
            given[...] = new
    elif type(given) in (list, dict) and all(not callable(x) for x in given):
        new = decode(changed)
        if type(new) is type(given) and repr(new) != repr(given):
            given.clear()
            given.extend(new) if isinstance(given, list) else given.update(new)
