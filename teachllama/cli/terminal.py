"""What reaches a terminal: nothing that comes from a file, a model or a history may steer it, or fail to be written.

Text of others goes through `visible` (several lines) or `printable` (one line). `Wrapped` breaks a growing text between
words, `Status` says how long something has been going on, and `guarded` prepares the streams for a command.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from teachllama.errors import ParameterError

# C0 and C1 controls (escape sequences begin with one) except tab and newline, DEL, line and paragraph separators,
# bidirectional embeddings, overrides and isolates, and lone surrogates. Joiners stay: emoji and many scripts need them.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
COLOURS = re.compile("\x1b\\[[0-9;:]*m")


def visible(text: str) -> str:
    r"""A text of several lines with what could steer a terminal written as escapes, such as \x1b."""
    return STEERING.sub(lambda match: _escape(match[0]), text.replace("\r\n", "\n"))


def printable(text: str) -> str:
    r"""`text` as one line: newlines, tabs and every other character without a shape of its own are escapes."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def width_of(text: str) -> int:
    """Columns that `text` takes in a terminal: wide East Asian characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    kinds = ("Mn", "Me", "Cf")  # marks above and below, joiners, variation selectors
    return sum(
        0 if unicodedata.category(c) in kinds else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def columns() -> int:
    """How many characters a line may take: the terminal's width, or 120 when the output is no terminal."""
    return max(60, shutil.get_terminal_size((120, 24)).columns)


def path_of(text: str) -> Path:
    """The path that a user wrote, `~` expanded, as the shell does only where it isn't quoted.

    Raises:
        ParameterError: it holds a NUL character, which no path can.
    """
    if "\0" in text:
        raise ParameterError(f"{printable(text)!r} is not a path: it contains a NUL character")
    return Path(text if os.path.lexists(text) else os.path.expanduser(text))


@contextlib.contextmanager
def guarded(command: str) -> Iterator[None]:
    """For the time of a command: what an encoding cannot hold is escaped, and a warning is one line."""
    changed: list[tuple[Any, str]] = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and getattr(stream, "errors", None):
            changed.append((stream, str(stream.errors)))
            stream.reconfigure(errors="backslashreplace")

    def show(message: Warning | str, *_: object, **__: object) -> None:
        text = named_as_options(" ".join(str(message).split()))
        print(f"{command}: warning: {printable(text)}", file=sys.stderr, flush=True)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(ValueError):  # closed meanwhile
                stream.reconfigure(errors=errors)


OPTIONS = "temperature|top_k|top_p|min_p|repeat_penalty|seq_len|kv_dtype|seed|max_new_tokens|template"


# Advice to callers in Python, in messages of the engine, and what to say of it in a shell.
FOR_CALLERS = {
    ", or pass accept_licence=True": "",
    ", or pass replace=True": ", or use --force",
    "; text.encode('utf-8', 'replace').decode() puts '?' in its place": "",
    ", or encode with errors='drop'": "",
    "with template=...": "with --template",
    "Give one: template= Jinja source, or a name": "Choose one: --template with a Jinja file, or a name",
}


def named_as_options(message: str) -> str:
    """A message of the engine with options' names for parameters': at its beginning, and for seq_len anywhere."""
    for advice, in_a_shell in FOR_CALLERS.items():
        message = message.replace(advice, in_a_shell)
    option = rf"^(?:{OPTIONS})(?= )|(?<![\w/\\.='\"-])seq_len(?![\w/\\.='\"-])"
    return re.sub(option, lambda match: f"--{match[0].replace('_', '-')}", message)


class Wrapped:
    """Breaks a text that grows piece by piece between words. A word is held back until its end is known.

    Args:
        width: gives the width of a line in columns, or None where lines are to stay as they are.
    """

    def __init__(self, width: Callable[[], int | None]):
        self._width, self._column, self._gap, self._word = width, 0, "", ""

    def feed(self, text: str) -> str:
        """As much of the text as can be written now."""
        width = self._width()
        if width is None:
            return self.flush() + text
        ready = []
        for c in text:
            if c == "\n":
                ready.append(self._placed(width) + self._gap + c)
                self._column, self._gap = 0, ""
            elif c in " \t":
                ready.append(self._placed(width))
                self._gap += c
            elif width_of(c) == 2:  # lines may break before and after these
                ready.append(self._placed(width))
                self._word = c
            else:
                if self._word and width_of(self._word[-1]) == 2 and width_of(c):
                    ready.append(self._placed(width))
                self._word += c
                if width_of(self._word) >= width:  # longer than a line: the terminal breaks it
                    ready.append(self._placed(width))
        return "".join(ready)

    def flush(self) -> str:
        """What was held back."""
        text = self._placed(self._width() or 1 << 30) + self._gap
        self._gap = ""
        return text

    def _placed(self, width: int) -> str:
        word, gap = self._word, self._gap
        if not word:
            return ""
        self._word = self._gap = ""
        room = width - self._column - width_of(gap.expandtabs(8))
        if self._column and width_of(word) > room:
            self._column = width_of(word)
            return f"\n{word}"
        self._column = (self._column + width_of(gap.expandtabs(8)) + width_of(word) - 1) % width + 1
        return gap + word


def output_width() -> int | None:
    """The width to wrap at: the terminal's, or None where standard output is no terminal."""
    if not is_terminal(sys.stdout):
        return None
    return max(20, shutil.get_terminal_size((80, 24)).columns)


def is_terminal(stream: Any) -> bool:
    """Whether somebody is looking at this stream."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no stream at all, as under pythonw; a closed one
        return False


class Status:
    """A line on stderr that says what is going on and for how long. At a terminal only; erased at the end.

    Args:
        text: gives what is going on, now.
        delay_s: shown only if it takes longer than this.
    """

    def __init__(self, text: Callable[[], str], delay_s: float = 1.0):
        self._text, self._delay_s, self._done = text, delay_s, threading.Event()
        self._thread: threading.Thread | None = None
        self._lock, self._shown, self._since = threading.Lock(), "", time.monotonic()

    def __enter__(self) -> Status:
        if is_terminal(sys.stderr):
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def restart(self) -> None:
        """Counts from now; the line is erased until it has taken long again."""
        with self._lock:
            self._erase()
            self._since = time.monotonic()

    def _show(self) -> None:
        while not self._done.wait(0.2):
            with self._lock:
                took = time.monotonic() - self._since
                if took > self._delay_s and not self._done.is_set():
                    line = printable(f"{self._text()} {took:.0f} s")[: columns() - 1]
                    if line != self._shown:
                        print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
                        self._shown = line

    def _erase(self) -> None:
        if self._shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._shown = ""

    def end(self) -> None:
        """Erases the line and stops. May be called again."""
        self._done.set()
        with self._lock:
            self._erase()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def __exit__(self, *exc: object) -> None:
        self.end()
