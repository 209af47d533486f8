"""The parts of every check: its result, running a learner's code within limits, recognising a usual mistake.

Independent of any exercise. An answer is never trusted: everything that runs its code (calling, converting, even
comparing it) happens inside `run`.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import io
import linecache
import math
import numbers
import operator
import sys
import sysconfig
import textwrap
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import psutil

MOST_SECONDS = 1.0
MOST_PATIENCE = 10  # factor on the time limit for code that hardly uses the processor
MOST_GROWTH = 300_000_000  # bytes of resident memory that an answer may add; on Binder a notebook has 2 GB in total
MOST_OUTPUT = 1_000  # characters that an answer may print
WIDTH = 100

# Frames from these folders are not the learner's own code.
_LIBRARIES = (
    str(Path(__file__).resolve().parents[2]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<frozen",
)


@dataclass(frozen=True, repr=False)
class CheckResult:
    """The result of a check."""

    ok: bool
    message: str  # for the learner
    mistake: str | None = None  # the name of the mistake recognised; "a or b" if the answer fits both
    more: str = ""  # a second hint, shown on request

    def __repr__(self) -> str:
        _SHOWN.append(self)
        text = f"{'Right.' if self.ok else 'Not yet:'} {self.message}"
        if self.more and not self.ok:
            text += "\nStuck? check.hint() says more."
        return "\n".join(textwrap.fill(line, WIDTH, break_long_words=False) for line in text.split("\n"))


_SHOWN: deque[CheckResult] = deque(maxlen=1)  # the last result shown in a notebook


def hint() -> None:
    """Prints the second hint of the last check shown."""
    last = _SHOWN[-1] if _SHOWN else None
    if last is None or last.ok:
        print("Nothing is open: run a check first.")
    else:
        print(textwrap.fill(last.more or "There is no further hint: read the message above once more.", WIDTH))


# ---- running a learner's code ----


class Outcome(NamedTuple):
    """The outcome of a call: its value, or the reason why there is none."""

    value: Any
    failure: CheckResult | None = None


class Refused(Exception):
    """Raised instead of returning a value, by a function that already has a verdict, such as one in another process."""

    def __init__(self, result: CheckResult):
        super().__init__(result.message)
        self.result = result


class _Stop(SystemExit):
    """Raised inside code that breaks a limit. A SystemExit: `except Exception` misses it, and a thread ends quietly."""


def run(function: Callable[..., Any], *args: Any, seconds: float = MOST_SECONDS) -> Outcome:
    """Calls `function(*args)` within limits of time, memory and output. Never raises because of the function.

    The function runs in a thread. If it breaks a limit, an exception raised in the thread ends it. This works on every
    system, from a notebook's main thread, and with Ctrl-C. No limit can stop a single call into C that neither returns
    nor releases the interpreter's lock, such as `10**10**10`.

    Args:
        function: the learner's function. An exception becomes a failure that gives the error and the learner's line.
        seconds: the time limit.
    """
    done: list[Outcome] = []
    clocks: list[int] = []

    def work() -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
        try:
            done.append(Outcome(function(*args)))
        except Refused as refused:
            done.append(Outcome(None, refused.result))
        except BaseException as error:
            done.append(Outcome(None, _raised(error)))

    # A copy of the context, so that a notebook shows printed text under the right cell.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    with contextlib.redirect_stdout(_FirstCharacters(sys.stdout)):
        thread.start()
        try:
            broken = _wait(thread, seconds, clocks)
        finally:  # also when the learner presses Stop
            ended = _end(thread)
    if not broken:
        return done[0] if done else Outcome(None, CheckResult(False, "Your code ended without an answer.", "exception"))
    if broken == "time":
        message = f"Your code was still running after {seconds:g} s and was stopped: does its loop ever end?"
    else:
        message = "Your code took several hundred megabytes of memory and was stopped: what does it collect?"
    if not ended:
        message += " It could not be interrupted and goes on in the background: restart the kernel to be rid of it."
    return Outcome(None, CheckResult(False, message, "endless" if broken == "time" else "memory"))


def _worked(clocks: list[int], before: float) -> float:
    """Seconds of processor time used by the thread, or by the whole process if the system has no thread clock.

    With a thread clock, other threads do not count: an earlier answer that could not be stopped may still be running.
    """
    try:
        return time.clock_gettime(clocks[0]) if clocks else time.process_time() - before
    except OSError:  # the thread has just ended
        return 0.0


def _wait(thread: threading.Thread, seconds: float, clocks: list[int]) -> str:
    """Waits until the thread ends or breaks a limit. Returns "", "time" or "memory".

    The time limit is reached when both elapsed time and the thread's processor time exceed `seconds`, because on a busy
    machine code may only be waiting for a processor. Code that sleeps uses no processor time and gets `MOST_PATIENCE`
    times as long.
    """
    process, started, before = psutil.Process(), time.monotonic(), time.process_time()
    most = process.memory_info().rss + MOST_GROWTH
    while True:
        thread.join(0.01)  # short, because Windows cannot interrupt it
        if not thread.is_alive():
            return ""
        passed, worked = time.monotonic() - started, _worked(clocks, before)
        if passed > seconds and (worked > seconds or passed > MOST_PATIENCE * seconds):
            return "time"
        if process.memory_info().rss > most:
            return "memory"


def _end(thread: threading.Thread) -> bool:
    """Stops the thread if it still runs. Returns False if it does not react (it sleeps, or catches every exception)."""
    for _ in range(30):
        if not thread.is_alive():
            return True
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stop))
        thread.join(0.01)
    return not thread.is_alive()


def _raised(error: BaseException) -> CheckResult:
    """The result for an exception. Contains only text, because a traceback would keep the learner's variables alive."""
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARIES):
            source = short(linecache.getline(file, line).strip())
            where = f" (line {line}: `{source}`)" if source else f" (line {line})"
    try:
        text = short(" ".join(str(error).split()))
    except Exception:
        text = ""
    traceback.clear_frames(error.__traceback__)
    what = type_name(error) + (f": {text}" if text else "")
    return CheckResult(
        False, f"Your code raised {what}{where}." if where else f"Calling it raised {what}.", "exception"
    )


class _FirstCharacters(io.TextIOBase):
    """Passes the first characters printed on to the original stream, and drops the rest."""

    def __init__(self, target: TextIO):
        self._target, self._left = target, MOST_OUTPUT

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._left > 0:
            self._target.write(text[: self._left])
            self._left -= len(text)
            if self._left <= 0:
                self._target.write("\n(further output is not shown)\n")
        return len(text)

    def flush(self) -> None:
        self._target.flush()


# ---- the type of an answer ----


def type_name(x: object) -> str:
    """The name of x's type, found without running code of that type."""
    return str(type.__dict__["__name__"].__get__(type(x)))


def a_type(x: object) -> str:
    """x's type with an article: "a str", "an ndarray"."""
    name = type_name(x)
    return f"{'an' if name[:1].lower() in 'aeio' or name.startswith('nd') else 'a'} {name}"


def number(answer: object, subject: str = "The answer is") -> int | float | CheckResult:
    """The answer as an int if whole, else as a float. If it is not a number, a `CheckResult` that says what it is."""
    outcome = run(_number, answer)
    if outcome.value is not None:
        return outcome.value
    if outcome.failure is not None and outcome.failure.mistake != "exception":
        return outcome.failure
    if answer is None or answer is ...:
        return CheckResult(
            False, f"{subject} {'None' if answer is None else 'still ...'}, and a number is wanted.", "unanswered"
        )
    kind = type(answer)
    if issubclass(kind, (str, bytes)):
        found = "text, and a number is wanted: leave out the quotes and the unit"
    elif issubclass(kind, bool):
        found = "True or False, and a number is wanted"
    elif issubclass(kind, float):
        found = "not a finite number"
    elif callable(answer):
        found = "something to call, and a number is wanted: call it, and give what it returns"
    else:
        found = f"of type {type_name(answer)}, and a number is wanted"
    return CheckResult(False, f"{subject} {found}.", "type")


def _number(x: Any) -> int | float | None:
    if isinstance(x, np.ndarray) and x.size == 1:
        x = x.reshape(-1)[0]
    if isinstance(x, (bool, np.bool_)):
        return None
    if hasattr(x, "__index__"):
        return int.__int__(operator.index(x))  # a plain int, whatever a subclass does
    value = float(x) if isinstance(x, (numbers.Real, Decimal)) else math.nan
    return None if not math.isfinite(value) else int(value) if value.is_integer() else value


# ---- what was misunderstood ----


class Slip(NamedTuple):
    """A usual mistake, and the value it gives with this exercise's numbers."""

    name: str
    value: Any
    text: str  # explains the misunderstanding in a sentence or two, without the right answer


def recognise(answer: Any, right: Any, slips: Iterable[Slip], praise: str, otherwise: str) -> CheckResult:
    """If right, the result has `praise`; else the first two mistakes that give exactly this answer, or `otherwise`."""
    if answer == right:
        return CheckResult(True, praise)
    found = [slip for slip in slips if slip.value == answer][:2]
    if not found:
        return CheckResult(False, otherwise)
    return CheckResult(False, " Or: ".join(slip.text for slip in found), " or ".join(slip.name for slip in found))


def short(text: str, most: int = 120) -> str:
    """A text, truncated to at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


# ---- graded cells ----


class NotYet(AssertionError):
    """Raised by `assert_right`. IPython shows only the check's message, because a traceback would explain nothing."""

    def __init__(self, result: CheckResult):
        super().__init__(f"[{result.mistake or 'other'}] {result.message}")  # the name is used to count mistakes
        self.result = result

    def _render_traceback_(self) -> list[str]:
        return repr(self.result).split("\n")


def assert_right(result: CheckResult) -> None:
    """Prints a check's praise, or raises `NotYet` with its hint. For graded cells, which pass unless they raise."""
    if not result.ok:
        raise NotYet(result)
    print(result)
