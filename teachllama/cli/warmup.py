"""`teachllama warmup`: compiles the kernels ahead, so that no first cell of a notebook has to wait for it."""

from __future__ import annotations

import argparse
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes none."""


def run(args: argparse.Namespace) -> int:
    from teachllama.kernels import machine_code as cache

    path = cache.file()
    if cache.is_warm():
        print(f"compiled kernels for this processor are there: {path}")
        return 0
    started = time.perf_counter()
    cache.serve()
    print(f"kernels compiled in {time.perf_counter() - started:.0f} s: {path}")
    return 0
