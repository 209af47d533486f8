"""Matrix products of many tokens at once: prefill.

Tokens are held in tiles: a tile is `width` (32, or 16 at the end) tokens, stored (rows, width), so that one vector
holds one number of every token. A weight is then multiplied with 32 tokens by one instruction or two, and no sum across
lanes is ever needed. Tiles of a buffer with `rows` rows follow each other: tile t starts at 32 * t * rows.

Knows nothing of layers or threads.
"""

from __future__ import annotations

from typing import Any

from teachllama.kernels.blocks import matvec, unpack
from teachllama.kernels.elementwise import add_bias_tile
from teachllama.kernels.fields import DEPTH, PANEL, WIDTH
from teachllama.kernels.shapes import EIGHT_BY_32, FOUR_BY_8, SIX_BY_16
from teachllama.kernels.simd import (
    add_products,
    add_rows,
    add_stored,
    add_vectors,
    jit,
    load_row,
    n_lanes,
    n_rows,
    store_rows,
    store_sums,
    tile_shape,
    zeros_1x8,
    zeros_1x16,
    zeros_1x32,
    zeros_2x8,
    zeros_2x16,
    zeros_4x8,
    zeros_4x16,
    zeros_6x16,
    zeros_8x16,
    zeros_8x32,
)  # fmt: skip


@jit
def _some_rows(
    w: int, row_step: int, k_step: int, x: int, x_step: int, n: int, out: int, out_step: int, add: bool, sums: Any
) -> None:
    """out[r] (+)= sum over k < n of w[r, k] * x[k], for as many rows r and lanes of x as `sums`, zeros, has."""
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
    """All rows, as many at a time as `zeros` has and the last ones alone, for as many of the tile's lanes at a time."""
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

    Sums are made DEPTH products at a time, and those added: a long sum in one register would lose digits, and a part of
    x of this depth stays in the first-level cache for all rows.
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
    """How many tokens wide a tile is: 32, or 16 for a last one of 16 or fewer."""
    return WIDTH if n_tokens - WIDTH * tile > 16 else 16


@jit
def multiply(
    kind: int, w: int, columns: int, begin: int, end: int, x: int, x_rows: int, x_row: int, n_tokens: int, out: int,
    out_rows: int, out_row: int, add: bool, bias: int, panel: int,
) -> None:  # fmt: skip
    """Rows begin to end of a matrix of any native type times all tokens: out[out_row + r] (+)= row r . x + bias[r].

    Args:
        x: address of tiles of `x_rows` rows, of which `columns` from `x_row` on are multiplied.
        out: of tiles of `out_rows` rows.
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


@jit
def _dots(rows: int, columns: int, x: int, x_step: int, out: int, out_step: int, zeros: Any) -> None:
    """Two rows of float32, one behind the other, times as many tokens as `zeros` has rows.

    Where `zeros` has 8 lanes, sums of 16 are made in two halves: each lane's sum is the same, and so is theirs.
    """
    second, half = rows + 4 * columns, n_lanes(zeros) == 8
    a, b, c, d = zeros, zeros, zeros, zeros
    for i in range(0, 4 * columns, 64):
        w0, w1 = load_row(rows + i, zeros), load_row(second + i, zeros)
        a, b = add_vectors(a, x + i, x_step, w0), add_vectors(b, x + i, x_step, w1)
    if half:
        for i in range(32, 4 * columns, 64):
            w0, w1 = load_row(rows + i, zeros), load_row(second + i, zeros)
            c, d = add_vectors(c, x + i, x_step, w0), add_vectors(d, x + i, x_step, w1)
        a, b = add_rows(a, c), add_rows(b, d)
    store_sums(a, out, out_step)
    store_sums(b, out + 4, out_step)


@jit
def _dots_of_all(
    rows: int, columns: int, x: int, x_step: int, n: int, out: int, out_step: int, four: Any, two: Any, one: Any
) -> None:
    t = 0
    while t + 4 <= n:
        _dots(rows, columns, x + t * x_step, x_step, out + t * out_step, out_step, four)
        t += 4
    if t + 2 <= n:
        _dots(rows, columns, x + t * x_step, x_step, out + t * out_step, out_step, two)
        t += 2
    if t < n:
        _dots(rows, columns, x + t * x_step, x_step, out + t * out_step, out_step, one)


@jit
def multiply_few(
    kind: int, w: int, columns: int, x: int, x_step: int, n: int, out: int, out_step: int, begin: int, end: int,
    scratch: int,
) -> None:  # fmt: skip
    """Rows begin to end of a matrix of any native type times a few vectors: out[t, r] = row r . x[t].

    Each row is unpacked once. The products are added in `matvec`'s order: a token's results are its own, bit for bit,
    whoever is evaluated with it.

    Args:
        x, out: addresses of the first vectors; the others follow x_step and out_step bytes apart.
        scratch: 4 * columns float32.
    """
    wide = tile_shape() == EIGHT_BY_32
    for r in range(begin, end - 1, 2):
        unpack(kind, w, columns, r, scratch)
        unpack(kind, w, columns, r + 1, scratch + 4 * columns)
        if wide:
            _dots_of_all(
                scratch, columns, x, x_step, n, out + 4 * r, out_step, zeros_4x16(), zeros_2x16(), zeros_1x16()
            )
        else:
            _dots_of_all(scratch, columns, x, x_step, n, out + 4 * r, out_step, zeros_4x8(), zeros_2x8(), zeros_1x8())
    if (end - begin) % 2:
        for t in range(n):
            matvec(kind, w, columns, x + t * x_step, out + t * out_step, end - 1, end)
