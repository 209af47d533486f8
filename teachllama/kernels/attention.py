"""Attention over a long cache, for one token and for a tile of tokens.

The cache holds one layer's keys and values of one head as (positions, head_dim), float32 or float16. For one token the
positions are taken in chunks that threads share out: each chunk gives its largest score, the sum of its exponentials
and its weighted values, and the chunks are put together afterwards (https://arxiv.org/abs/1805.02867, and "flash
decoding"). Chunks are the same whatever the number of threads, so the result is too.

Knows nothing of layers or threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from teachllama.kernels.layout import BLOCK, CHUNK
from teachllama.kernels.matmul import multiply_tile
from teachllama.kernels.simd import (
    HIDDEN,
    exp,
    f32_at,
    fma,
    fma_scalar,
    jit,
    keep_lanes,
    lanes,
    largest,
    load,
    load_f16,
    load_like,
    peak,
    put_f16,
    put_f32,
    splat,
    splat_like,
    store,
    total,
    zeros16,
    zeros32,
)  # fmt: skip


@jit
def remember(x: int, step: int, n: int, to: int, half: bool) -> None:
    """Writes one head's n numbers of one position into the cache; they lie `step` bytes apart."""
    for i in range(n):
        if half:
            put_f16(to + 2 * i, f32_at(x + i * step))
        else:
            put_f32(to + 4 * i, f32_at(x + i * step))


@jit
def widen(x: int, n: int, out: int) -> None:
    """n float16 as float32, n a multiple of 16."""
    for i in range(0, n, 16):
        store(out + 4 * i, load_f16(x + 2 * i))


@jit
def _scores(q: int, keys: int, dim: int, n: int, factor: float, out: int) -> None:
    """out[j] = factor * q . keys[j] for n positions; four at a time share a read of q."""
    j = 0
    while j + 4 <= n:
        k0 = keys + 4 * j * dim
        k1, k2, k3 = k0 + 4 * dim, k0 + 8 * dim, k0 + 12 * dim
        a0, a1, a2, a3 = zeros16(), zeros16(), zeros16(), zeros16()
        for i in range(0, 4 * dim, 64):
            v = load(q + i)
            a0, a1 = fma(v, load(k0 + i), a0), fma(v, load(k1 + i), a1)
            a2, a3 = fma(v, load(k2 + i), a2), fma(v, load(k3 + i), a3)
        put_f32(out + 4 * j, total(a0) * factor)
        put_f32(out + 4 * j + 4, total(a1) * factor)
        put_f32(out + 4 * j + 8, total(a2) * factor)
        put_f32(out + 4 * j + 12, total(a3) * factor)
        j += 4
    while j < n:
        a0 = zeros16()
        for i in range(0, 4 * dim, 64):
            a0 = fma(load(q + i), load(keys + 4 * j * dim + i), a0)
        put_f32(out + 4 * j, total(a0) * factor)
        j += 1


@jit
def _mix(weights: int, values: int, dim: int, n: int, out: int) -> None:
    """out += sum over n positions of weights[j] * values[j]: (dim,)."""
    for i in range(0, 4 * dim, 64):
        a0, a1, a2, a3 = load(out + i), zeros16(), zeros16(), zeros16()
        at, step = values + i, 4 * dim
        j = 0
        while j + 4 <= n:
            a0 = fma_scalar(f32_at(weights + 4 * j), load(at + j * step), a0)
            a1 = fma_scalar(f32_at(weights + 4 * j + 4), load(at + (j + 1) * step), a1)
            a2 = fma_scalar(f32_at(weights + 4 * j + 8), load(at + (j + 2) * step), a2)
            a3 = fma_scalar(f32_at(weights + 4 * j + 12), load(at + (j + 3) * step), a3)
            j += 4
        while j < n:
            a0 = fma_scalar(f32_at(weights + 4 * j), load(at + j * step), a0)
            j += 1
        store(out + i, (a0 + a1) + (a2 + a3))


@jit
def attend_chunk(
    q: int, heads: int, head_dim: int, keys: int, values: int, value_dim: int, n: int, half: bool, factor: float,
    out: int, out_step: int, scratch: int,
) -> None:  # fmt: skip
    """One token's query heads against n <= CHUNK positions of their common keys and values.

    Args:
        q: (heads, head_dim); keys: (n, head_dim); values: (n, value_dim).
        out: for each head, out_step bytes apart: largest score, sum of exponentials, then 14 unused, then the values.
        scratch: heads * CHUNK + BLOCK * max(head_dim, value_dim) float32.
    """
    wide = scratch + 4 * heads * CHUNK
    for first in range(0, n, BLOCK):
        count = min(BLOCK, n - first)
        k = keys + 4 * first * head_dim
        if half:
            k = wide
            widen(keys + 2 * first * head_dim, count * head_dim, k)
        for h in range(heads):
            _scores(q + 4 * h * head_dim, k, head_dim, count, factor, scratch + 4 * (h * CHUNK + first))
    padded = (n + 15) // 16 * 16
    for h in range(heads):
        s, to = scratch + 4 * h * CHUNK, out + h * out_step
        for j in range(n, padded):
            put_f32(s + 4 * j, HIDDEN)
        top = splat(HIDDEN)
        for j in range(0, 4 * padded, 64):
            top = largest(top, load(s + j))
        highest, sums = peak(top), zeros16()
        for j in range(0, 4 * padded, 64):
            e = exp(load(s + j) - splat(highest))
            sums = sums + e
            store(s + j, e)
        put_f32(to, highest)
        put_f32(to + 4, total(sums))
        for i in range(0, 4 * value_dim, 64):
            store(to + 64 + i, zeros16())
    for first in range(0, n, BLOCK):
        count = min(BLOCK, n - first)
        v = values + 4 * first * value_dim
        if half:
            v = wide
            widen(values + 2 * first * value_dim, count * value_dim, v)
        for h in range(heads):
            _mix(scratch + 4 * (h * CHUNK + first), v, value_dim, count, out + h * out_step + 64)


@jit
def join_chunks(parts: int, chunks: int, step: int, value_dim: int, out: int) -> None:
    """Puts one head's chunks together: parts as `attend_chunk` leaves them, step bytes apart -> out (value_dim,)."""
    highest = np.float32(HIDDEN)
    for c in range(chunks):
        highest = max(highest, f32_at(parts + c * step))
    sums = np.float32(0)
    for i in range(0, 4 * value_dim, 64):
        store(out + i, zeros16())
    for c in range(chunks):
        part = parts + c * step
        weight = peak(exp(splat(f32_at(part) - highest)))
        sums += weight * f32_at(part + 4)
        for i in range(0, 4 * value_dim, 64):
            store(out + i, fma_scalar(weight, load(part + 64 + i), load(out + i)))
    for i in range(0, 4 * value_dim, 64):
        store(out + i, load(out + i) * (np.float32(1) / sums))


@jit
def _softmax_lanes(scores: int, n: int, causal_from: int, window: int, factor: float, zero: Any) -> Any:
    """Each lane's exponentials, in place, of n scores; returns their sums.

    Score j is hidden from lane t where j > causal_from + t, or with a window (not 0)
    where j <= causal_from + t - window.
    """
    step, width = 4 * lanes(zero), lanes(zero)
    top = splat_like(HIDDEN, zero)
    for j in range(n):
        v = load_like(scores + j * step, zero) * factor
        first, end = j - causal_from, width
        if window:
            end = j - causal_from + window
        if first > 0 or end < width:
            v = keep_lanes(v, first, end)
        store(scores + j * step, v)
        top = largest(top, v)
    sums = zero
    for j in range(n):
        e = exp(load_like(scores + j * step, zero) - top)
        store(scores + j * step, e)
        sums = sums + e
    return sums


@jit
def _divide_lanes(x: int, rows: int, by: Any) -> None:
    step, inverse = 4 * lanes(by), splat_like(1.0, by) / by
    for i in range(rows):
        store(x + i * step, load_like(x + i * step, by) * inverse)


@jit
def attend_tile(
    q: int, head_dim: int, keys: int, values: int, value_dim: int, n: int, causal_from: int, window: int, half: bool,
    factor: float, out: int, width: int, scratch: int,
) -> None:  # fmt: skip
    """One query head of a tile of tokens against n positions.

    Args:
        q: (head_dim, width); keys: (n, head_dim); values: (n, value_dim).
        causal_from: the last position, counted from the first of the n, that the tile's first token sees: its own.
        window: how many positions back a token sees, itself included; 0: all.
        out: (value_dim, width).
        scratch: n * width + BLOCK * max(head_dim, value_dim) float32.
    """
    step, wide = 4 * width, scratch + 4 * n * width
    for first in range(0, n, BLOCK):
        count = min(BLOCK, n - first)
        k = keys + 4 * first * head_dim
        if half:
            k = wide
            widen(keys + 2 * first * head_dim, count * head_dim, k)
        multiply_tile(k, 4 * head_dim, 4, count, q, head_dim, scratch + first * step, False, width)
    if width == 32:
        sums = _softmax_lanes(scratch, n, causal_from, window, factor, zeros32())
        for first in range(0, n, BLOCK):
            _values(values, value_dim, first, min(BLOCK, n - first), half, scratch, out, width, wide)
        _divide_lanes(out, value_dim, sums)
    else:
        half_sums = _softmax_lanes(scratch, n, causal_from, window, factor, zeros16())
        for first in range(0, n, BLOCK):
            _values(values, value_dim, first, min(BLOCK, n - first), half, scratch, out, width, wide)
        _divide_lanes(out, value_dim, half_sums)


@jit
def _values(
    values: int, dim: int, first: int, n: int, half: bool, weights: int, out: int, width: int, wide: int
) -> None:
    v = values + 4 * first * dim
    if half:
        v = wide
        widen(values + 2 * first * dim, n * dim, v)
    multiply_tile(v, 4, 4 * dim, dim, weights + 4 * first * width, n, out, first > 0, width)
