"""What compiled kernels find by name in this process: a table of float16, and how to let another thread run.

Two blocks in three begin with one or two float16. Converting them takes the same ports of a processor as multiplying;
looking them up takes a load, which is nearly free beside that: Q4_1's product runs half as fast again.
"""

from __future__ import annotations

import ctypes
import sys

import llvmlite.binding as llvm
import numpy as np

F16_TABLE = "teachllama_f16_table"
TABLE = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)  # 256 kB, for the process's life
YIELD = "teachllama_yield"
TILE_SHAPE = "teachllama_tile_shape"  # written into the text for each processor: see `shapes.py`


def add_symbols() -> None:
    """Tells LLVM's linker where they are. On POSIX systems to yield is `sched_yield`, on Windows `SwitchToThread`."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    llvm.add_symbol(YIELD, ctypes.cast(function, ctypes.c_void_p).value)
    llvm.add_symbol(F16_TABLE, TABLE.ctypes.data)


add_symbols()
