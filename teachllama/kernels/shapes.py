"""How many sums a processor can hold in registers while it multiplies a tile, and the shape that follows from this.

A tile's product keeps the sums of some rows of weights times some tokens. Sums that don't fit in registers are written
to memory and read again at each step: one shape for all processors would cost those with few registers more than half
their speed. The kernels are written once, with every shape. The choice is a number inserted into their LLVM IR before
LLVM optimizes it, which then removes the other shapes.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm

from teachllama.kernels.symbols import TILE_SHAPE

EIGHT_BY_32, SIX_BY_16, FOUR_BY_8 = range(3)


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of vector unit."""

    kind: str  # its common name
    sign: str  # a pattern of LLVM's assembly for a fused multiply-add of 16 float32
    number: int
    rows: int  # rows of weights at a time
    lanes: int  # tokens at a time
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: tiles of {self.rows} rows x {self.lanes} tokens"


SHAPES = (
    Shape("AVX-512", r"vfmadd\w+\s.*%zmm", EIGHT_BY_32, 8, 32, "32 registers of 16: 16 sums, 2 of tokens"),
    Shape("AVX2", r"vfmadd\w+\s.*%ymm", SIX_BY_16, 6, 16, "16 registers of 8: 12 sums, 2 of tokens, 1 weight"),
    Shape("NEON", r"fmla\s+v\d+\.4s", SIX_BY_16, 6, 16, "32 registers of 4: 24 sums, 4 of tokens, 1 weight"),
    Shape("no fused vectors", r"", FOUR_BY_8, 4, 8, "16 registers of 4 (SSE2): 8 sums, 2 of tokens, 1 weight"),
)
_provided = [EIGHT_BY_32]
_tile_shape = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: _provided[0])
_PROBE = """
define <16 x float> @probe(<16 x float> %a, <16 x float> %b, <16 x float> %c) {
  %d = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %c)
  ret <16 x float> %d
}
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""


def shape_for(machine: Any) -> Shape:
    """The shape for a target machine of llvmlite, found from the code that LLVM generates for it."""
    assembly = machine.emit_assembly(llvm.parse_assembly(_PROBE))
    return next(shape for shape in SHAPES if re.search(shape.sign, assembly))


def provide(number: int) -> None:
    """Sets the shape for kernels that Numba alone compiles, as in tests and benchmarks: those read it at each call."""
    _provided[0] = number
    llvm.add_symbol(TILE_SHAPE, ctypes.cast(_tile_shape, ctypes.c_void_p).value)


def with_shape(ir: str, shape: Shape) -> str:
    """The kernels' LLVM IR, with the choice inserted."""
    defined = f"define i64 @{TILE_SHAPE}() alwaysinline {{\n  ret i64 {shape.number}\n}}\n"
    return re.sub(rf"^declare i64 @{TILE_SHAPE}\(\).*$", lambda _: defined, ir, flags=re.M)
