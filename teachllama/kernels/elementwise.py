"""Normalization, rotation and gating: for one token as a vector, and for a tile of tokens, (rows, width).

Knows nothing of layers or threads. `ops.py` has the same in NumPy, with the papers they come from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from teachllama.kernels.simd import (
    exp,
    f32_at,
    fma,
    fma_scalar,
    jit,
    lanes,
    load,
    load_like,
    negative,
    put_f32,
    splat,
    splat_like,
    square_root,
    store,
    total,
    zeros16,
    zeros32,
)  # fmt: skip


@jit
def rmsnorm(x: int, weight: int, n: int, eps: float, out: int) -> None:
    """One vector of n float32, n a multiple of 16: scaled to a root mean square of 1, times weight."""
    squares = zeros16()
    for i in range(0, 4 * n, 64):
        v = load(x + i)
        squares = fma(v, v, squares)
    scale = np.float32(1) / np.float32(math.sqrt(total(squares) / np.float32(n) + np.float32(eps)))
    for i in range(0, 4 * n, 64):
        store(out + i, load(x + i) * (load(weight + i) * scale))


@jit
def group_sums(x: int, n: int, out: int) -> None:
    """The sum of each 32 of n float32: what the offsets of quantized blocks are multiplied with."""
    for i in range(n // 32):
        put_f32(out + 4 * i, total(load(x + 128 * i) + load(x + 128 * i + 64)))


@jit
def _rmsnorm_lanes(x: int, weight: int, rows: int, eps: float, out: int, zero: Any) -> None:
    step, squares = 4 * lanes(zero), zero
    for i in range(rows):
        v = load_like(x + i * step, zero)
        squares = fma(v, v, squares)
    mean = squares / np.float32(rows) + np.float32(eps)
    scale = splat_like(1.0, zero) / square_root(mean)
    for i in range(rows):
        store(out + i * step, load_like(x + i * step, zero) * (scale * f32_at(weight + 4 * i)))


@jit
def rmsnorm_tile(x: int, weight: int, rows: int, eps: float, out: int, width: int) -> None:
    """A tile (rows, width): each token scaled by itself."""
    if width == 32:
        _rmsnorm_lanes(x, weight, rows, eps, out, zeros32())
    else:
        _rmsnorm_lanes(x, weight, rows, eps, out, zeros16())


@jit
def rope(x: int, angles: int, pairs: int, halves: bool) -> None:
    """Rotates one head in place. angles: the cosines of `pairs` angles, then their sines."""
    for i in range(pairs):
        a, b = (x + 4 * i, x + 4 * (i + pairs)) if halves else (x + 8 * i, x + 8 * i + 4)
        cos, sin = f32_at(angles + 4 * i), f32_at(angles + 4 * (pairs + i))
        even, odd = f32_at(a), f32_at(b)
        put_f32(a, even * cos - odd * sin)
        put_f32(b, even * sin + odd * cos)


@jit
def _rope_lanes(x: int, angles: int, pairs: int, halves: bool, zero: Any) -> None:
    step = 4 * lanes(zero)
    for i in range(pairs):
        a, b = (x + i * step, x + (i + pairs) * step) if halves else (x + 2 * i * step, x + (2 * i + 1) * step)
        cos, sin = load_like(angles + i * step, zero), load_like(angles + (pairs + i) * step, zero)
        even, odd = load_like(a, zero), load_like(b, zero)
        store(a, even * cos - odd * sin)
        store(b, even * sin + odd * cos)


@jit
def rope_tile(x: int, angles: int, pairs: int, halves: bool, width: int) -> None:
    """Rotates one head of a tile in place: x (head_dim, width), angles (2 * pairs, width)."""
    if width == 32:
        _rope_lanes(x, angles, pairs, halves, zeros32())
    else:
        _rope_lanes(x, angles, pairs, halves, zeros16())


@jit
def gate(gates: int, ups: int, n: int, gelu: bool, out: int) -> None:
    """out = silu(gates) * ups, or gelu's: n float32, n a multiple of 16. Both are x / (1 + e^-u)."""
    one = splat(1.0)
    for i in range(0, 4 * n, 64):
        x = load(gates + i)
        u = x
        if gelu:  # 0.5 * (1 + tanh(z)) = 1 / (1 + e^-2z)
            u = x * fma_scalar(0.044715, x * x, one) * 1.5957691216
        store(out + i, x / (one + exp(negative(u))) * load(ups + i))


@jit
def add(x: int, y: int, n: int) -> None:
    """x += y: n float32, n a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store(x + i, load(x + i) + load(y + i))


@jit
def scale(x: int, n: int, by: float) -> None:
    """x *= by: n float32, n a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store(x + i, load(x + i) * by)
