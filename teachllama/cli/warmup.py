"""`teachllama warmup`: precompiles the kernels, so that the first cell of a notebook need not wait for them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from teachllama.cli.terminal import printable

# Run in a separate process, which Ctrl-C can kill. The compiler runs for half a minute and may not react to Ctrl-C.
COMPILE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from teachllama.kernels import machine_code
machine_code.serve()
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no arguments."""


def run(args: argparse.Namespace) -> int:
    """Compiles the kernels unless they are compiled already."""
    from teachllama.kernels import machine_code
    from teachllama.kernels.shapes import shape_for

    path = printable(str(machine_code.file()))
    print(shape_for(machine_code.host_machine()))
    if machine_code.is_warm():
        print(f"the kernels for this processor are compiled already: {path}")
        return 0
    started = time.perf_counter()
    compile_ahead()
    machine_code.serve()
    print(f"kernels compiled in {time.perf_counter() - started:.0f} s: {path}")
    return 0


def compile_ahead() -> None:
    """Compiles the kernels, unless they are compiled already, in a process that Ctrl-C ends at once.

    Does nothing without Numba, or if compiled kernels cannot be stored. Then loading a model compiles them.
    """
    try:
        from teachllama.kernels import machine_code
    except ImportError:
        return
    folder = machine_code.file().parent
    if machine_code.is_warm() or not _can_write(folder):
        return
    sys.stdout.flush()
    environment = {**os.environ, "TEACHLLAMA_KERNEL_CACHE": str(folder)}
    command = [sys.executable, "-c", COMPILE, json.dumps(sys.path)]
    # In a separate process group, so that Ctrl-C reaches only this process, which then ends the other.
    apart = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=not apart,
        creationflags=apart,
        check=False,
    )


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
