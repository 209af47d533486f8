"""Work in a process of its own: what takes much memory, changes a library, or may not react to Ctrl-C."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from teachllama.errors import TeachLlamaError

_BEGINNING = "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"


def output_of(code: str, purpose: str) -> bytes:
    """Runs Python code in a new process, with this one's import path; returns what it wrote to stdout.

    Ctrl-C reaches only this process, which then ends the other.

    Args:
        purpose: what the code is for, for the error: "compiling the kernels".

    Raises:
        TeachLlamaError: the code failed, with what it wrote to stderr; or no process could be started.
    """
    command = [sys.executable, "-c", _BEGINNING + code, json.dumps(sys.path)]
    group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # on Windows; elsewhere a new session
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.append(
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=not group, creationflags=group,
            )
        )  # fmt: skip

    with ThreadPoolExecutor(1) as starter:  # Ctrl-C interrupts the main thread only, so each process is one we know of
        try:
            starter.submit(start).result()
            output, errors = started[0].communicate()
        except BaseException as e:
            starter.shutdown()
            for process in started:
                with process:
                    process.kill()
            if isinstance(e, OSError):
                python = sys.executable or "Python"
                raise TeachLlamaError(f"{purpose} failed: {python} could not be started ({e})") from None
            raise
    if status := started[0].returncode:
        said = errors.decode(errors="replace").strip() or f"its process ended with status {status}"
        raise TeachLlamaError(f"{purpose} failed: {said}")
    return output
