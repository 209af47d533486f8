"""Matrix products of many tokens at once: prefill.

Tokens are held in tiles: a tile is `width` (32, or 16 at the end) tokens, stored (rows, width), so that one vector
holds one number of every token. A weight is then multiplied with 32 tokens by one instruction or two, and no sum across
lanes is ever needed. Tiles of a buffer with `rows` rows follow each other: tile t starts at 32 * t * rows.

Knows nothing of layers or threads.
"""

from __future__ import annotations

from typing import Any

from teachllama.kernels.blocks import unpack
from teachllama.kernels.elementwise import add_bias_tile
from teachllama.kernels.fields import DEPTH, PANEL, ROWS, WIDTH
from teachllama.kernels.simd import (
    f32_at,
    fma_scalar,
    jit,
    lanes,
    load_like,
    store,
    zeros16,
    zeros32,
)  # fmt: skip


@jit
def _eight_rows(w: int, row_step: int, k_step: int, x: int, n: int, out: int, add: bool, like: Any) -> None:
    """out[r] (+)= sum over k < n of w[r, k] * x[k], for 8 rows r; x and out are (., width), w any steps in bytes."""
    width = 4 * lanes(like)
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = like
    w4 = w + 4 * row_step
    for k in range(n):
        v, at, at4 = load_like(x + k * width, like), w + k * k_step, w4 + k * k_step
        a0 = fma_scalar(f32_at(at), v, a0)
        a1 = fma_scalar(f32_at(at + row_step), v, a1)
        a2 = fma_scalar(f32_at(at + 2 * row_step), v, a2)
        a3 = fma_scalar(f32_at(at + 3 * row_step), v, a3)
        a4 = fma_scalar(f32_at(at4), v, a4)
        a5 = fma_scalar(f32_at(at4 + row_step), v, a5)
        a6 = fma_scalar(f32_at(at4 + 2 * row_step), v, a6)
        a7 = fma_scalar(f32_at(at4 + 3 * row_step), v, a7)
    if add:
        a0, a1 = a0 + load_like(out, like), a1 + load_like(out + width, like)
        a2, a3 = a2 + load_like(out + 2 * width, like), a3 + load_like(out + 3 * width, like)
        a4, a5 = a4 + load_like(out + 4 * width, like), a5 + load_like(out + 5 * width, like)
        a6, a7 = a6 + load_like(out + 6 * width, like), a7 + load_like(out + 7 * width, like)
    store(out, a0)
    store(out + width, a1)
    store(out + 2 * width, a2)
    store(out + 3 * width, a3)
    store(out + 4 * width, a4)
    store(out + 5 * width, a5)
    store(out + 6 * width, a6)
    store(out + 7 * width, a7)


@jit
def _one_row(w: int, k_step: int, x: int, n: int, out: int, add: bool, like: Any) -> None:
    width = 4 * lanes(like)
    a = like
    for k in range(n):
        a = fma_scalar(f32_at(w + k * k_step), load_like(x + k * width, like), a)
    store(out, a + load_like(out, like) if add else a)


@jit
def _rows(
    w: int, row_step: int, k_step: int, rows: int, x: int, n: int, out: int, add: bool, width: int, like: Any
) -> None:
    r = 0
    while r + ROWS <= rows:
        _eight_rows(w + r * row_step, row_step, k_step, x, n, out + 4 * width * r, add, like)
        r += ROWS
    while r < rows:
        _one_row(w + r * row_step, k_step, x, n, out + 4 * width * r, add, like)
        r += 1


@jit
def multiply_tile(
    w: int, row_step: int, k_step: int, rows: int, x: int, n: int, out: int, add: bool, width: int
) -> None:
    """out (rows, width) = w (rows, n) times x (n, width), or added to out. w is float32 with any steps, in bytes.

    Sums are made DEPTH products at a time, and those added: a long sum in one register would lose digits, and a part of
    x of this depth stays in the first-level cache for all rows.
    """
    for k in range(0, n, DEPTH):
        to_add, deep, at, x_at = add or k > 0, min(DEPTH, n - k), w + k * k_step, x + 4 * width * k
        if width == WIDTH:
            _rows(at, row_step, k_step, rows, x_at, deep, out, to_add, WIDTH, zeros32())
        else:
            _rows(at, row_step, k_step, rows, x_at, deep, out, to_add, 16, zeros16())


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
