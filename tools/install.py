"""Creates a virtual environment and installs this package into it, showing progress. Used by `make`.

    python3 tools/install.py .venv lab,test,docs

pip by itself is either silent for minutes or prints hundreds of lines. Here its output becomes one updating line on a
terminal, or a few lines in a log. If pip fails, its whole output is printed. Uses only the standard library, because
nothing is installed yet.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Progress:
    """Shows progress and elapsed time on stderr: one updating line on a terminal, elsewhere one line per stage."""

    def __init__(self) -> None:
        self._moves, self._text, self._done = sys.stderr.isatty(), "", threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def stage(self, text: str) -> None:
        """Begins a new stage, which is a line of its own in a log."""
        self._text = text
        if not self._moves:
            print(f"{text} ...", file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Sets the current detail of the stage, shown only on a terminal."""
        self._text = text

    def _show(self) -> None:
        while self._moves and not self._done.wait(0.5):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            line = f"{self._text}: {self.seconds:.0f} s"[: columns - 1]
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Stops, and erases the line."""
        self._done.set()
        self._thread.join()
        if self._moves:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def python_of(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stage_of(line: str, n_found: int) -> tuple[str, bool] | None:
    """Interprets a line of pip's output as (text, whether a new stage begins); None if it need not be shown."""
    if match := re.match(r"\s*Downloading (\S+?)(?:-\d\S*)?(?: \((.*)\))?$", line):
        size = f" ({match[2]})" if match[2] else ""
        return f"{n_found} packages found, downloading {match[1].rpartition('/')[2]}{size}", False
    if match := re.match(r"\s*Collecting ([A-Za-z0-9._-]+)", line):
        return f"{n_found} packages found, looking up {match[1]}", False
    if match := re.match(r"Installing collected packages: (.*)", line):
        return f"installing {len(match[1].split(','))} packages", True
    return None


def install(folder: Path, extras: str, progress: Progress) -> int:
    """Runs pip, and returns its exit status."""
    if not (python_of(folder).exists() and [*folder.glob("[Ll]ib*/**/site-packages/pip")]):  # missing or incomplete
        progress.stage(f"making the virtual environment {folder}")
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    progress.stage("looking up and downloading Python packages")
    command = [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar=off", "-e", f"{ROOT}[{extras}]" if extras else str(ROOT)]
    said: list[str] = []
    found: set[str] = set()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said.append(line)
                if match := re.match(r"\s*Collecting ([A-Za-z0-9._-]+)", line):
                    found.add(match[1].lower())
                if stage := stage_of(line, len(found)):
                    (progress.stage if stage[1] else progress.detail)(stage[0])
        except BaseException:
            process.kill()
            raise
    progress.end()
    if process.returncode:
        sys.stderr.write("".join(said))
        print(f"pip failed after {progress.seconds:.0f} s; what it said is above", file=sys.stderr)
        return process.returncode
    print(f"Python packages installed in {progress.seconds:.0f} s", file=sys.stderr)
    return 0


def main() -> int:
    """Installs the package. Returns pip's exit status, 130 after Ctrl-C, or 1 if the environment can't be created."""
    folder, extras = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    progress = Progress()
    try:
        return install(folder, extras, progress)
    except KeyboardInterrupt:
        progress.end()
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except OSError as e:
        progress.end()
        print(f"cannot make {folder}: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
