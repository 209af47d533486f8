"""Terminal output. Text from a file, a model or a history can neither control the terminal nor fail to be printed.

Untrusted text goes through `visible` (several lines) or `printable` (one line). `Wrapped` wraps streamed text between
words, `Status` shows how long an operation has been running, and `guarded` prepares the streams for a command.
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

# C0 and C1 controls (escape sequences begin with one) except tab and newline; DEL; line and paragraph separators;
# bidirectional embeddings, overrides and isolates; lone surrogates. Joiners are kept: emoji and many scripts need them.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
COLOURS = re.compile("\x1b\\[[0-9;:]*m")


def visible(text: str) -> str:
    r"""A text of several lines in which characters that could control a terminal are escaped, such as \x1b."""
    return STEERING.sub(lambda match: _escape(match[0]), text.replace("\r\n", "\n"))


def printable(text: str) -> str:
    r"""`text` as one line: newlines, tabs and all other non-printable characters are escaped."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def width_of(text: str) -> int:
    """Number of terminal columns that `text` takes. Wide East Asian characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    kinds = ("Mn", "Me", "Cf")  # marks above and below, joiners, variation selectors
    return sum(
        0 if unicodedata.category(c) in kinds else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def columns() -> int:
    """Maximum length of a line: the terminal's width, at least 60, or 120 if the output is not a terminal."""
    return max(60, shutil.get_terminal_size((120, 24)).columns)


def path_of(text: str) -> Path:
    """The path that a user typed, with `~` expanded, which the shell does only for unquoted paths.

    Raises:
        ParameterError: `text` contains a NUL character, which is not allowed in a path.
    """
    if "\0" in text:
        raise ParameterError(f"{printable(text)!r} is not a path: it contains a NUL character")
    return Path(text if os.path.lexists(text) else os.path.expanduser(text))


@contextlib.contextmanager
def guarded(command: str) -> Iterator[None]:
    """While a command runs, escapes characters that an encoding lacks, and prints each warning as one line."""
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
            with contextlib.suppress(ValueError):  # the stream was closed meanwhile
                stream.reconfigure(errors=errors)


OPTIONS = "temperature|top_k|top_p|min_p|repeat_penalty|seq_len|kv_dtype|seed|max_new_tokens|template"


# Advice to Python callers in the engine's messages -> its replacement for shell users.
FOR_CALLERS = {
    ", or pass accept_licence=True": "",
    ", or pass replace=True": ", or use --force",
    "; text.encode('utf-8', 'replace').decode() puts '?' in its place": "",
    ", or encode with errors='drop'": "",
    "with template=...": "with --template",
    "Give one: template= Jinja source, or a name": "Choose one: --template with a Jinja file, or a name",
}


def named_as_options(message: str) -> str:
    """Replaces parameter names in a message of the engine by option names: at its start, and seq_len anywhere."""
    for advice, in_a_shell in FOR_CALLERS.items():
        message = message.replace(advice, in_a_shell)
    option = rf"^(?:{OPTIONS})(?= )|(?<![\w/\\.='\"-])seq_len(?![\w/\\.='\"-])"
    return re.sub(option, lambda match: f"--{match[0].replace('_', '-')}", message)


class Wrapped:
    """Wraps streamed text between words. A word is held back until its end is known.

    Args:
        width: returns the width of a line in columns, or None to leave lines unwrapped.
    """

    def __init__(self, width: Callable[[], int | None]):
        self._width, self._column, self._gap, self._word = width, 0, "", ""

    def feed(self, text: str) -> str:
        """Adds text, and returns as much as can be written now."""
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
                if width_of(self._word) >= width:  # longer than a line: the terminal wraps it
                    ready.append(self._placed(width))
        return "".join(ready)

    def flush(self) -> str:
        """Returns the text held back."""
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
    """The width to wrap at: the terminal's, or None if standard output is not a terminal."""
    if not is_terminal(sys.stdout):
        return None
    return max(20, shutil.get_terminal_size((80, 24)).columns)


def is_terminal(stream: Any) -> bool:
    """Whether this stream is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no stream at all, as under pythonw, or a closed one
        return False


class Status:
    """A status line on stderr with the time elapsed. Shown only on a terminal, and erased at the end.

    Args:
        text: returns the current status.
        delay_s: the line is shown only after this time.
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
        """Restarts the clock. Erases the line until the delay has passed again."""
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
        """Erases the line and stops. May be called more than once."""
        self._done.set()
        with self._lock:
            self._erase()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def __exit__(self, *exc: object) -> None:
        self.end()
