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

from teachllama.kernels.elementwise import scale
from teachllama.kernels.fields import BLOCK, CHUNK
from teachllama.kernels.matmul import multiply_tile
from teachllama.kernels.simd import (
    MASKED,
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
    load_f16,
    load_like,
    mask_lanes,
    put_f16,
    put_f32,
    splat,
    splat_like,
    store,
    zeros16,
    zeros32,
)  # fmt: skip


@jit
def store_kv(x: int, step: int, n: int, to: int, f16: bool) -> None:
    """Writes one head's n numbers of one position into the cache; they lie `step` bytes apart."""
    for i in range(n):
        if f16:
            put_f16(to + 2 * i, f32_at(x + i * step))
        else:
            put_f32(to + 4 * i, f32_at(x + i * step))


@jit
def f16_to_f32(x: int, n: int, out: int) -> None:
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
        put_f32(out + 4 * j, hsum(a0) * factor)
        put_f32(out + 4 * j + 4, hsum(a1) * factor)
        put_f32(out + 4 * j + 8, hsum(a2) * factor)
        put_f32(out + 4 * j + 12, hsum(a3) * factor)
        j += 4
    while j < n:
        a0 = zeros16()
        for i in range(0, 4 * dim, 64):
            a0 = fma(load(q + i), load(keys + 4 * j * dim + i), a0)
        put_f32(out + 4 * j, hsum(a0) * factor)
        j += 1


@jit
def _mix(weights: int, values: int, stride: int, dim: int, n: int, out: int) -> None:
    """out += sum over n positions of weights[j] * values[j]: (dim,). Values lie `stride` float32 apart."""
    for i in range(0, 4 * dim, 64):
        a0, a1, a2, a3 = load(out + i), zeros16(), zeros16(), zeros16()
        at, step = values + i, 4 * stride
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
def _capped(scores: int, n: int, softcap: float) -> None:
    """scores = softcap * tanh(scores / softcap), for n float32, n a multiple of 16. https://arxiv.org/abs/2408.00118"""
    one, double = splat(1.0), np.float32(2) / softcap
    for i in range(0, 4 * n, 64):
        e = exp(load(scores + i) * double)  # tanh(z) = 1 - 2 / (1 + e^2z)
        store(scores + i, (one - splat(2.0) / (one + e)) * softcap)


@jit
def attend_chunk(
    q: int, heads: int, head_dim: int, keys: int, values: int, value_dim: int, value_stride: int, n: int, f16: bool,
    factor: float, softcap: float, out: int, out_step: int, scratch: int,
) -> None:  # fmt: skip
    """One token's query heads against n <= CHUNK positions of their common keys and values.

    Args:
        q: (heads, head_dim); keys: (n, head_dim); values: n times value_dim numbers, value_stride numbers apart.
        softcap: of the scores; 0: none.
        out: for each head, out_step bytes apart: largest score, sum of exponentials, then 14 unused, then the values.
        scratch: heads * CHUNK + BLOCK * max(head_dim, value_stride) float32.
    """
    wide = scratch + 4 * heads * CHUNK
    for first in range(0, n, BLOCK):
        count = min(BLOCK, n - first)
        k = keys + 4 * first * head_dim
        if f16:
            k = wide
            f16_to_f32(keys + 2 * first * head_dim, count * head_dim, k)
        for h in range(heads):
            _scores(q + 4 * h * head_dim, k, head_dim, count, factor, scratch + 4 * (h * CHUNK + first))
    padded = (n + 15) // 16 * 16
    for h in range(heads):
        s, to = scratch + 4 * h * CHUNK, out + h * out_step
        if softcap:
            _capped(s, padded, softcap)
        for j in range(n, padded):
            put_f32(s + 4 * j, MASKED)
        top = splat(MASKED)
        for j in range(0, 4 * padded, 64):
            top = largest(top, load(s + j))
        highest, sums = hmax(top), zeros16()
        for j in range(0, 4 * padded, 64):
            e = exp(load(s + j) - splat(highest))
            sums = sums + e
            store(s + j, e)
        put_f32(to, highest)
        put_f32(to + 4, hsum(sums))
        for i in range(0, 4 * value_dim, 64):
            store(to + 64 + i, zeros16())
    for first in range(0, n, BLOCK):
        count = min(BLOCK, n - first)
        v = values + 4 * first * value_stride
        if f16:
            v = wide
            f16_to_f32(values + 2 * first * value_stride, count * value_stride, v)
        for h in range(heads):
            _mix(scratch + 4 * (h * CHUNK + first), v, value_stride, value_dim, count, out + h * out_step + 64)


@jit
def join_chunks(parts: int, chunks: int, step: int, value_dim: int, sink: float, out: int) -> None:
    """Puts one head's chunks together: parts as `attend_chunk` leaves them, step bytes apart -> out (value_dim,).

    Args:
        sink: one more score, which takes its share of the softmax and gives nothing (gpt-oss); MASKED: none.
    """
    highest = np.float32(sink)
    for c in range(chunks):
        highest = max(highest, f32_at(parts + c * step))
    sums = hmax(exp(splat(np.float32(sink) - highest)))
    for i in range(0, 4 * value_dim, 64):
        store(out + i, zeros16())
    for c in range(chunks):
        part = parts + c * step
        weight = hmax(exp(splat(f32_at(part) - highest)))
        sums += weight * f32_at(part + 4)
        for i in range(0, 4 * value_dim, 64):
            store(out + i, fma_scalar(weight, load(part + 64 + i), load(out + i)))
    for i in range(0, 4 * value_dim, 64):
        store(out + i, load(out + i) * (np.float32(1) / sums))


@jit
def _softmax_lanes(scores: int, n: int, causal_from: int, window: int, factor: float, sink: float, zero: Any) -> Any:
    """Each lane's exponentials, in place, of n scores; returns their sums.

    Score j is masked for lane t where j > causal_from + t, or with a window (not 0)
    where j <= causal_from + t - window.
    """
    step, width = 4 * lanes(zero), lanes(zero)
    top = splat_like(sink, zero)
    for j in range(n):
        v = load_like(scores + j * step, zero) * factor
        first, end = j - causal_from, width
        if window:
            end = j - causal_from + window
        if first > 0 or end < width:
            v = mask_lanes(v, first, end)
        store(scores + j * step, v)
        top = largest(top, v)
    sums = exp(splat_like(sink, zero) - top)
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
    q: int, head_dim: int, keys: int, values: int, value_dim: int, value_stride: int, n: int, causal_from: int,
    window: int, f16: bool, factor: float, softcap: float, sink: float, out: int, width: int, scratch: int,
) -> None:  # fmt: skip
    """One query head of a tile of tokens against n positions.

    Args:
        q: (head_dim, width); keys: (n, head_dim); values: n times value_dim numbers, value_stride numbers apart.
        causal_from: the last position, counted from the first of the n, that the tile's first token sees: its own.
        window: how many positions back a token sees, itself included; 0: all.
        softcap, sink: as for one token.
        out: (value_dim, width).
        scratch: n * width + BLOCK * max(head_dim, value_stride) float32.
    """
    step, wide = 4 * width, scratch + 4 * n * width
    for first in range(0, n, BLOCK):
        count = min(BLOCK, n - first)
        k = keys + 4 * first * head_dim
        if f16:
            k = wide
            f16_to_f32(keys + 2 * first * head_dim, count * head_dim, k)
        multiply_tile(k, 4 * head_dim, 4, count, q, head_dim, scratch + first * step, False, width)
    if softcap:  # the scale first: what is capped is the scaled score
        scale(scratch, n * width, factor)
        _capped(scratch, n * width, softcap)
        factor = 1.0
    if width == 32:
        sums = _softmax_lanes(scratch, n, causal_from, window, factor, sink, zeros32())
    else:
        sums16 = _softmax_lanes(scratch, n, causal_from, window, factor, sink, zeros16())
    for first in range(0, n, BLOCK):
        count = min(BLOCK, n - first)
        v = values + 4 * first * value_stride
        if f16:
            v = wide
            f16_to_f32(values + 2 * first * value_stride, count * value_stride, v)
        weights = scratch + first * step
        multiply_tile(v, 4, 4 * value_stride, value_dim, weights, count, out, first > 0, width)
    if width == 32:
        _divide_lanes(out, value_dim, sums)
    else:
        _divide_lanes(out, value_dim, sums16)
