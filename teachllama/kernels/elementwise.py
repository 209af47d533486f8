"""Normalization, rotation and gating: for one token as a vector, and for a tile of tokens, (rows, width).

Independent of layers and threads. `ops.py` has the same functions in NumPy, with links to their papers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from teachllama.kernels.fields import Act
from teachllama.kernels.simd import (
    exp,
    f32_at,
    fma,
    fma_scalar,
    hmax,
    hsum,
    jit,
    lanes,
    largest,
    load,
    load_like,
    negative,
    put_f32,
    smallest,
    splat,
    splat_like,
    square_root,
    store,
    zeros16,
    zeros32,
)  # fmt: skip

GELU, SWIGLU_OAI = int(Act.GELU), int(Act.SWIGLU_OAI)


@jit
def rmsnorm(x: int, weight: int, n: int, eps: float, out: int) -> None:
    """One vector of n float32, n a multiple of 16: scaled to a root mean square of 1, times weight."""
    squares = zeros16()
    for i in range(0, 4 * n, 64):
        v = load(x + i)
        squares = fma(v, v, squares)
    scale = np.float32(1) / np.float32(math.sqrt(hsum(squares) / np.float32(n) + np.float32(eps)))
    for i in range(0, 4 * n, 64):
        store(out + i, load(x + i) * (load(weight + i) * scale))


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
    """A tile (rows, width): each token is scaled separately."""
    if width == 32:
        _rmsnorm_lanes(x, weight, rows, eps, out, zeros32())
    else:
        _rmsnorm_lanes(x, weight, rows, eps, out, zeros16())


@jit
def rope(x: int, n: int, first: int, angles: int, pairs: int, neox: bool, out: int) -> None:
    """Rotates one head of n numbers, from `first` on; the others are copied. `out` may be x.

    Args:
        angles: the cosines of `pairs` angles, then their sines.
    """
    if out != x:
        for i in range(0, 4 * n, 64):
            store(out + i, load(x + i))
    at = out + 4 * first
    for i in range(pairs):
        a, b = (at + 4 * i, at + 4 * (i + pairs)) if neox else (at + 8 * i, at + 8 * i + 4)
        cos, sin = f32_at(angles + 4 * i), f32_at(angles + 4 * (pairs + i))
        even, odd = f32_at(a), f32_at(b)
        put_f32(a, even * cos - odd * sin)
        put_f32(b, even * sin + odd * cos)


@jit
def _rope_lanes(x: int, n: int, first: int, angles: int, pairs: int, neox: bool, out: int, zero: Any) -> None:
    step = 4 * lanes(zero)
    if out != x:
        for i in range(n):
            store(out + i * step, load_like(x + i * step, zero))
    at = out + first * step
    for i in range(pairs):
        a, b = (at + i * step, at + (i + pairs) * step) if neox else (at + 2 * i * step, at + (2 * i + 1) * step)
        cos, sin = load_like(angles + i * step, zero), load_like(angles + (pairs + i) * step, zero)
        even, odd = load_like(a, zero), load_like(b, zero)
        store(a, even * cos - odd * sin)
        store(b, even * sin + odd * cos)


@jit
def rope_tile(x: int, n: int, first: int, angles: int, pairs: int, neox: bool, out: int, width: int) -> None:
    """Rotates one head of a tile: x and out (n, width), angles (2 * pairs, width)."""
    if width == 32:
        _rope_lanes(x, n, first, angles, pairs, neox, out, zeros32())
    else:
        _rope_lanes(x, n, first, angles, pairs, neox, out, zeros16())


@jit
def gate(gates: int, ups: int, n: int, activation: int, out: int) -> None:
    """out = activation(gates) * ups: n float32, n a multiple of 16. Every activation here is x / (1 + e^-u)."""
    one = splat(1.0)
    for i in range(0, 4 * n, 64):
        x, up = load(gates + i), load(ups + i)
        u = x
        if activation == GELU:  # 0.5 * (1 + tanh(z)) = 1 / (1 + e^-2z)
            u = x * fma_scalar(0.044715, x * x, one) * 1.5957691216
        elif activation == SWIGLU_OAI:
            x = smallest(x, splat(7.0))
            u = x * 1.702
            up = largest(smallest(up, splat(7.0)), splat(-7.0)) + one
        store(out + i, x / (one + exp(negative(u))) * up)


@jit
def add(x: int, y: int, n: int, scale: float, out: int) -> None:
    """out = x + scale * y: n float32, n a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store(out + i, fma_scalar(scale, load(y + i), load(x + i)))


@jit
def add_bias(x: int, bias: int, begin: int, end: int) -> None:
    """x[r] += bias[r] for begin <= r < end."""
    for r in range(begin, end):
        put_f32(x + 4 * r, f32_at(x + 4 * r) + f32_at(bias + 4 * r))


@jit
def add_bias_tile(x: int, bias: int, rows: int, width: int) -> None:
    """A tile (rows, width): each row plus its own bias."""
    for r in range(rows):
        b = splat(f32_at(bias + 4 * r))
        for i in range(0, 4 * width, 64):
            at = x + 4 * r * width + i
            store(at, load(at) + b)


@jit
def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return np.float32(1) / (np.float32(1) + scalar_exp(-x))


@jit
def scalar_exp(x: float) -> float:
    """e^x of one number."""
    return hmax(exp(splat(x)))


@jit
def copy(x: int, n: int, out: int) -> None:
    """out = x: n float32, n a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store(out + i, load(x + i))


@jit
def scale(x: int, n: int, by: float) -> None:
    """x *= by: n float32, n a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store(x + i, load(x + i) * by)
