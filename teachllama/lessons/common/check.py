"""What every check is made of: its result, running a learner's code within limits, recognising a usual mistake.

Knows nothing of any exercise. An answer is never trusted: whatever runs its code (calling it, converting it, even
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
MOST_PATIENCE = 10  # times as long for code that hardly uses the processor
MOST_GROWTH = 300_000_000  # bytes of resident memory that an answer may add; Binder gives a notebook 2 GB in all
MOST_OUTPUT = 1_000  # characters it may print
WIDTH = 100

# Frames from these folders are not lines that the learner wrote.
_LIBRARIES = (
    str(Path(__file__).resolve().parents[2]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<frozen",
)


@dataclass(frozen=True, repr=False)
class CheckResult:
    """What a check says."""

    ok: bool
    message: str  # for the learner
    mistake: str | None = None  # the name of the mistake recognised; "a or b" where the answer cannot tell which
    more: str = ""  # a second hint, for those who ask

    def __repr__(self) -> str:
        _SHOWN.append(self)
        text = f"{'Right.' if self.ok else 'Not yet:'} {self.message}"
        if self.more and not self.ok:
            text += "\nStuck? check.hint() says more."
        return "\n".join(textwrap.fill(line, WIDTH, break_long_words=False) for line in text.split("\n"))


_SHOWN: deque[CheckResult] = deque(maxlen=1)  # what a notebook showed last


def hint() -> None:
    """Prints the second hint of the check that was shown last."""
    last = _SHOWN[-1] if _SHOWN else None
    if last is None or last.ok:
        print("Nothing is open: run a check first.")
    else:
        print(textwrap.fill(last.more or "There is no further hint: read the message above once more.", WIDTH))


# ---- running what a learner wrote ----


class Outcome(NamedTuple):
    """What a call came to: its value, or why there is none."""

    value: Any
    failure: CheckResult | None = None


class Refused(Exception):
    """Raised in the place of a value, by a function that already has its verdict: one that runs in another process."""

    def __init__(self, result: CheckResult):
        super().__init__(result.message)
        self.result = result


class _Stop(SystemExit):
    """Raised inside code that runs too long. A SystemExit: `except Exception` misses it, and a thread ends quietly."""


def run(function: Callable[..., Any], *args: Any, seconds: float = MOST_SECONDS) -> Outcome:
    """Calls `function(*args)` within limits of time, memory and output; never raises on its account.

    It runs in a thread, and a limit ends it with an exception raised there: that works on every system, from a
    notebook's main thread, and under Ctrl-C. One thing escapes every limit that Python has: a single call into C that
    neither returns nor lets go of the interpreter's lock, such as `10**10**10`.

    Args:
        function: the learner's; whatever it raises becomes a failure that names the error and the learner's own line.
        seconds: how long it may take.
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

    # A copy of the context, so that a notebook shows what is printed under the right cell.
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
    """Seconds of processor time that the thread used, or this whole process where the system does not say.

    Other threads do not count where it does: an answer that could not be ended may still run beside this one.
    """
    try:
        return time.clock_gettime(clocks[0]) if clocks else time.process_time() - before
    except OSError:  # the thread has just ended
        return 0.0


def _wait(thread: threading.Thread, seconds: float, clocks: list[int]) -> str:
    """Until the thread ends (""), or breaks a limit.

    The time is up once both the clock and the thread's own have advanced by `seconds`: on a busy machine code that
    waits for its turn is not endless. Code that sleeps uses no processor and is given `MOST_PATIENCE` times as long.
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
    """Ends the thread if it still runs; False if it does not react (it sleeps, or catches everything)."""
    for _ in range(30):
        if not thread.is_alive():
            return True
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stop))
        thread.join(0.01)
    return not thread.is_alive()


def _raised(error: BaseException) -> CheckResult:
    """What an exception comes to, in words only: a traceback would keep the learner's variables alive."""
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
    """Passes the first characters of what is printed on to where it would have gone, and drops the rest."""

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


# ---- what an answer is ----


def type_name(x: object) -> str:
    """The name of its type, without running code of that type."""
    return str(type.__dict__["__name__"].__get__(type(x)))


def a_type(x: object) -> str:
    """Its type in a sentence: "a str", "an ndarray"."""
    name = type_name(x)
    return f"{'an' if name[:1].lower() in 'aeio' or name.startswith('nd') else 'a'} {name}"


def number(answer: object, subject: str = "The answer is") -> int | float | CheckResult:
    """The answer as an int where it is whole, else as a float; a `CheckResult` that says what else it is."""
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
        return int.__int__(operator.index(x))  # exactly an int, whatever a subclass does
    value = float(x) if isinstance(x, (numbers.Real, Decimal)) else math.nan
    return None if not math.isfinite(value) else int(value) if value.is_integer() else value


# ---- what was misunderstood ----


class Slip(NamedTuple):
    """A usual mistake, and what it makes of this exercise's numbers."""

    name: str
    value: Any
    text: str  # what was misunderstood, in a sentence or two, without the right answer


def recognise(answer: Any, right: Any, slips: Iterable[Slip], praise: str, otherwise: str) -> CheckResult:
    """Right, with `praise`; or the mistakes that lead to just this answer, the likeliest two; or `otherwise`."""
    if answer == right:
        return CheckResult(True, praise)
    found = [slip for slip in slips if slip.value == answer][:2]
    if not found:
        return CheckResult(False, otherwise)
    return CheckResult(False, " Or: ".join(slip.text for slip in found), " or ".join(slip.name for slip in found))


def short(text: str, most: int = 120) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= most else text[: most - 3] + "..."


# ---- where a verdict counts ----


class NotYet(AssertionError):
    """What `assert_right` raises. IPython shows the check's words alone: here a traceback would explain nothing."""

    def __init__(self, result: CheckResult):
        super().__init__(f"[{result.mistake or 'other'}] {result.message}")  # the name, for who counts mistakes
        self.result = result

    def _render_traceback_(self) -> list[str]:
        return repr(self.result).split("\n")


def assert_right(result: CheckResult) -> None:
    """Prints a check's praise, or raises `NotYet` with its hint: for a graded cell, which passes unless it raises."""
    if not result.ok:
        raise NotYet(result)
    print(result)
