"""Work in a process of its own: what takes much memory, changes a library, or may not react to Ctrl-C."""

from __future__ import annotations

import json
import subprocess
import sys

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
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, start_new_session=not group, creationflags=group
        )
    except OSError as e:
        raise TeachLlamaError(f"{purpose} failed: {sys.executable or 'Python'} could not be started ({e})") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"its process ended with status {done.returncode}"
        raise TeachLlamaError(f"{purpose} failed: {said}")
    return done.stdout
