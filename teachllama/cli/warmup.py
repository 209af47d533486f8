"""`teachllama warmup`: precompiles the kernels, so that the first cell of a notebook need not wait for them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from teachllama.cli.terminal import printable
from teachllama.errors import TeachLlamaError


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
    machine_code.serve()
    print(f"kernels compiled in {time.perf_counter() - started:.0f} s: {path}")
    return 0


def compile_ahead() -> None:
    """Compiles the kernels for other processes, unless they are compiled already.

    Does nothing without Numba, or if compiled kernels cannot be stored. Then loading a model compiles them. A failure
    is only reported: pages that need no kernels can still be read.
    """
    try:
        from teachllama.kernels import machine_code
    except ImportError:
        return
    if not machine_code.is_warm() and _can_write(machine_code.file().parent):
        try:
            machine_code.serve()
        except TeachLlamaError as e:
            print(e, file=sys.stderr)


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
