"""Reads messages for `teachllama chat`: on a terminal with prompt_toolkit, otherwise line by line.

On a terminal, a pasted block is one message (bracketed paste), Alt-Enter begins a new line, and the arrow keys recall
earlier messages, including those of earlier runs. The history is private to the user: a file of mode 0600.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from teachllama.cli.generate import decoded
from teachllama.cli.terminal import STEERING, is_terminal
from teachllama.files import replacing

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

BLOCK = '"""'  # a line with only this begins and ends a message of several lines
MAX_HISTORY = 1000  # messages
MAX_HISTORY_NBYTES = 1 << 20  # a longer file is shortened to the newest messages


class Stdin:
    """Messages from a pipe or a file: each line is one, and so are the lines between two lines of three quotes."""

    def read(self) -> str | None:
        """The next message, unchanged but without its line end; None at the end of the input.

        Raises:
            ParameterError: a line is not UTF-8.
        """
        line = self._line()
        if line is None or line.strip() != BLOCK:
            return line
        lines = []
        while (line := self._line()) is not None and line.strip() != BLOCK:
            lines.append(line)
        return "\n".join(lines)

    def _line(self) -> str | None:
        buffer = getattr(sys.stdin, "buffer", None)
        line = decoded(buffer.readline(), "this line of standard input") if buffer else sys.stdin.readline()
        return line.removesuffix("\n") if line else None


class Terminal:
    """Messages typed or pasted by a person.

    Args:
        history: the file of earlier messages; with None, no history is kept.
    """

    def __init__(self, history: Path | None):
        self._session = _session(history)

    def read(self) -> str | None:
        """The next message; None after Ctrl-D. Ctrl-C clears the line."""
        while True:
            try:
                return self._session.prompt("> ", prompt_continuation="  ")
            except EOFError:
                return None
            except KeyboardInterrupt:
                print("(Ctrl-D or /quit leaves)", flush=True)


def reader(history: bool = True) -> Stdin | Terminal:
    """The reader that suits standard input and output."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        return Stdin()
    try:
        return Terminal(history_file() if history else None)
    except Exception:
        if sys.platform != "win32":  # Windows does not recognize some terminals, such as Git's
            raise
        return Stdin()


def history_file() -> Path | None:
    """The file of earlier messages, in the user's state folder; None if the user has no home folder."""
    import platformdirs

    with contextlib.suppress(RuntimeError):
        path = Path(platformdirs.user_state_path("teachllama"))
        return path / "chat_history" if path.is_absolute() else None
    return None


def _session(path: Path | None) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.layout.screen import Char

    # The library shows control characters as ^[ and <9b>. Show other characters that could reorder a line similarly.
    others = [chr(c) for c in (*range(0x2028, 0x202F), *range(0x2066, 0x2070)) if STEERING.match(chr(c))]
    Char.display_mappings.update({c: f"<{ord(c):04x}>" for c in others})
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(history=_history(path), key_bindings=keys)


def _history(path: Path | None) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is None or not _prepared(path):
        return InMemoryHistory()

    class Kept(FileHistory):
        """A history file whose read and write errors are ignored."""

        def load_history_strings(self) -> Iterable[str]:
            try:
                return list(super().load_history_strings())[:MAX_HISTORY]
            except OSError:
                return []

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string)

    return Kept(str(path))


def _prepared(path: Path) -> bool:
    """Creates the file, readable only by the user, and shortens it if it is too long. False if it can't be used."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        if path.stat().st_size > MAX_HISTORY_NBYTES:
            _shorten(path)
    except OSError:
        return False
    return True


def _shorten(path: Path) -> None:
    """Keeps the newest messages, up to half of the file's limit. Each begins with a line `# TIME`."""
    with open(path, "rb") as file:
        file.seek(-MAX_HISTORY_NBYTES // 2, os.SEEK_END)
        kept = file.read()
    with replacing(path, private=True) as part:
        part.write_bytes(kept[kept.find(b"\n# ") + 1 :])
