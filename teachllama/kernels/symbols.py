"""Symbols that compiled kernels find in this process: a table of float16, and a function that lets other threads run.

Two thirds of the block types begin with one or two float16. Converting them uses the same ports of a processor as
multiplying. Looking them up uses a load, which is nearly free here: Q4_1's product becomes 1.5 times as fast.
"""

from __future__ import annotations

import ctypes
import sys

import llvmlite.binding as llvm
import numpy as np

F16_TABLE = "teachllama_f16_table"
with np.errstate(invalid="ignore"):  # on arm64, converting a signalling NaN would be worth a warning
    TABLE = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)  # 256 kB, for the process's life
YIELD = "teachllama_yield"
TILE_SHAPE = "teachllama_tile_shape"  # inserted into the LLVM IR for each processor: see `shapes.py`


def add_symbols() -> None:
    """Registers them with LLVM's linker. Yielding is `sched_yield` on POSIX systems, `SwitchToThread` on Windows."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    llvm.add_symbol(YIELD, ctypes.cast(function, ctypes.c_void_p).value)
    llvm.add_symbol(F16_TABLE, TABLE.ctypes.data)


add_symbols()
