"""Matrix products of many tokens at once: prefill.

Tokens are held in tiles: a tile is `width` (32, or 16 at the end) tokens, stored (rows, width), so that one vector
holds one number of every token. One or two instructions then multiply a weight with 32 tokens, and no sum across lanes
is needed. Tiles of a buffer with `rows` rows follow each other: tile t starts at 32 * t * rows.

Independent of layers and threads.
"""

from __future__ import annotations

from typing import Any

from teachllama.kernels.blocks import unpack
from teachllama.kernels.elementwise import add_bias_tile
from teachllama.kernels.fields import DEPTH, PANEL, WIDTH
from teachllama.kernels.shapes import FOUR_BY_8, SIX_BY_16
from teachllama.kernels.simd import (
    add_products,
    add_stored,
    jit,
    load_row,
    n_lanes,
    n_rows,
    store_rows,
    tile_shape,
    zeros_1x8,
    zeros_1x16,
    zeros_1x32,
    zeros_4x8,
    zeros_6x16,
    zeros_8x16,
    zeros_8x32,
)  # fmt: skip


@jit
def _some_rows(
    w: int, row_step: int, k_step: int, x: int, x_step: int, n: int, out: int, out_step: int, add: bool, sums: Any
) -> None:
    """out[r] (+)= sum over k < n of w[r, k] * x[k], for as many rows r and lanes of x as `sums` (zeros) has."""
    for k in range(n):
        sums = add_products(sums, w + k * k_step, row_step, load_row(x + k * x_step, sums))
    if add:
        sums = add_stored(sums, out, out_step)
    store_rows(sums, out, out_step)


@jit
def _rows(
    w: int, row_step: int, k_step: int, rows: int, x: int, n: int, out: int, add: bool, width: int, zeros: Any,
    one: Any,
) -> None:  # fmt: skip
    """All rows and lanes of a tile: as many at a time as `zeros` has, and the last rows one by one."""
    step, many = 4 * width, n_rows(zeros)
    for lane in range(0, step, 4 * n_lanes(zeros)):
        r = 0
        while r + many <= rows:
            _some_rows(w + r * row_step, row_step, k_step, x + lane, step, n, out + r * step + lane, step, add, zeros)
            r += many
        while r < rows:
            _some_rows(w + r * row_step, row_step, k_step, x + lane, step, n, out + r * step + lane, step, add, one)
            r += 1


@jit
def multiply_tile(
    w: int, row_step: int, k_step: int, rows: int, x: int, n: int, out: int, add: bool, width: int
) -> None:
    """out (rows, width) = w (rows, n) times x (n, width), or added to out. w is float32 with any steps, in bytes.

    Sums of DEPTH products are computed and then added: one long sum in a register would lose digits, and a part of x of
    this depth stays in the first-level cache for all rows.
    """
    shape = tile_shape()
    for k in range(0, n, DEPTH):
        to_add, deep, at, x_at = add or k > 0, min(DEPTH, n - k), w + k * k_step, x + 4 * width * k
        if shape == SIX_BY_16:
            _rows(at, row_step, k_step, rows, x_at, deep, out, to_add, width, zeros_6x16(), zeros_1x16())
        elif shape == FOUR_BY_8:
            _rows(at, row_step, k_step, rows, x_at, deep, out, to_add, width, zeros_4x8(), zeros_1x8())
        elif width == WIDTH:
            _rows(at, row_step, k_step, rows, x_at, deep, out, to_add, width, zeros_8x32(), zeros_1x32())
        else:
            _rows(at, row_step, k_step, rows, x_at, deep, out, to_add, width, zeros_8x16(), zeros_1x16())


@jit
def width_of(tile: int, n_tokens: int) -> int:
    """The width of a tile in tokens: 32, or 16 for a last tile of 16 or fewer."""
    return WIDTH if n_tokens - WIDTH * tile > 16 else 16


@jit
def multiply(
    kind: int, w: int, columns: int, begin: int, end: int, x: int, x_rows: int, x_row: int, n_tokens: int, out: int,
    out_rows: int, out_row: int, add: bool, bias: int, panel: int,
) -> None:  # fmt: skip
    """Rows begin to end of a matrix of any native type times all tokens: out[out_row + r] (+)= row r . x + bias[r].

    Args:
        x: address of tiles of `x_rows` rows, of which `columns` from `x_row` on are multiplied.
        out: address of tiles of `out_rows` rows.
        bias: address of float32, one for each row of w; 0: none.
        panel: room for PANEL * columns float32, where rows are unpacked once for all tiles.
    """
    for first in range(begin, end, PANEL):
        rows = min(PANEL, end - first)
        for r in range(rows):
            unpack(kind, w, columns, first + r, panel + 4 * r * columns)
        for tile in range((n_tokens + WIDTH - 1) // WIDTH):
            width = width_of(tile, n_tokens)
            to = out + 4 * (WIDTH * tile * out_rows + (out_row + first) * width)
            at = x + 4 * (WIDTH * tile * x_rows + x_row * width)
            multiply_tile(panel, 4 * columns, 4, rows, at, columns, to, add, width)
            if bias:
                add_bias_tile(to, bias + 4 * first, rows, width)
