"""Attention over a long cache, for one token and for a tile of tokens.

The cache holds a layer's keys, and its values, in pages of BLOCK positions. A table for each has the number of the GGML
type they are stored in, the bytes from one head of a page to the next, and then the address of every page. For one
token the positions are split into chunks, which are distributed among threads: each chunk yields its largest score, the
sum of its exponentials and its weighted values, and the chunks are combined afterwards
(https://arxiv.org/abs/1805.02867, and "flash decoding"). Chunks and pages begin at the same positions for any number of
threads and any addresses of pages, so the result does not depend on them.

Independent of layers and threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as T

from teachllama.kernels.blocks import row_nbytes, unpack
from teachllama.kernels.elementwise import scale
from teachllama.kernels.fields import BLOCK, CHUNK, KV_HEADER
from teachllama.kernels.matmul import multiply_tile
from teachllama.kernels.simd import (
    MASKED,
    add_vectors,
    exp,
    f32_at,
    fma_numbers,
    fma_scalar,
    hmax,
    hsum,
    i64_at,
    jit,
    lanes,
    largest,
    load,
    load_bf16,
    load_f16,
    load_like,
    mask_lanes,
    prefetch,
    put_f16,
    put_f32,
    put_i8,
    put_i16,
    splat,
    splat_like,
    store,
    store_sums,
    u32_at,
    zeros16,
    zeros32,
    zeros_1x16,
    zeros_4x16,
)  # fmt: skip

F32, F16, BF16, Q8_0 = int(T.F32), int(T.F16), int(T.BF16), int(T.Q8_0)


@jit
def kv_address(table: int, head: int, length: int, position: int) -> int:
    """The address of one head's `length` numbers of a position."""
    page = i64_at(table + 8 * (KV_HEADER + position // BLOCK)) + head * i64_at(table + 8)
    return page + position % BLOCK * row_nbytes(i64_at(table), length)


@jit
def read_kv(table: int, head: int, length: int, position: int, n: int, wide: int) -> int:
    """The address of n positions' numbers, all in one page, in float32: in the cache, or unpacked to `wide`."""
    kind, at = i64_at(table), kv_address(table, head, length, position)
    if kind == F32:
        return at
    if kind == F16:
        for i in range(0, n * length, 16):
            store(wide + 4 * i, load_f16(at + 2 * i))
    elif kind == BF16:
        for i in range(0, n * length, 16):
            store(wide + 4 * i, load_bf16(at + 2 * i))
    else:
        unpack(kind, at, n * length, np.int64(0), wide)
    return wide


@jit
def next_page(table: int, head: int, length: int, position: int, end: int, heads: int) -> tuple[int, int]:
    """What to prefetch while a page is used: the address of the next one's numbers, and bytes for each of `heads`.

    The processor cannot predict that address, and asked for at once these bytes would have to be waited for.
    """
    at = kv_address(table, head, length, position if position < end else end - 1)
    return at, row_nbytes(i64_at(table), length) * BLOCK // heads


@jit
def store_kv(x: int, step: int, n: int, to: int, kind: int) -> None:
    """Writes one head's n numbers, `step` bytes apart, of one position into the cache, rounded as GGML does."""
    if kind == F32:
        for i in range(n):
            put_f32(to + 4 * i, f32_at(x + i * step))
    elif kind == F16:
        for i in range(n):
            put_f16(to + 2 * i, f32_at(x + i * step))
    elif kind == BF16:
        for i in range(n):
            bits = u32_at(x + i * step)
            if bits & 0x7FFFFFFF > 0x7F800000:  # NaN stays NaN
                bits = bits & 0xFFFF0000 | 0x400000
            put_i16(to + 2 * i, bits + 0x7FFF + (bits >> 16 & 1) >> 16)
    else:
        for i in range(0, n, 32):
            if kind == Q8_0:
                store_q8_0(x + i * step, step, to + i // 32 * 34)
            else:
                store_q4_0(x + i * step, step, to + i // 32 * 18)


@jit
def store_q8_0(x: int, step: int, to: int) -> None:
    """Stores 32 numbers as a block of Q8_0: d, then each number divided by d, with halves rounded away from 0."""
    top = np.float32(0)
    for i in range(32):
        top = max(top, abs(f32_at(x + i * step)))
    d = top / np.float32(127)
    inverse = np.float32(1) / d if d > 0 else np.float32(0)
    put_f16(to, d)
    for i in range(32):
        v = f32_at(x + i * step) * inverse
        q = int(abs(v))
        q += abs(v) - np.float32(q) >= np.float32(0.5)
        put_i8(to + 2 + i, q if v > 0 else -q)


@jit
def store_q4_0(x: int, step: int, to: int) -> None:
    """Stores 32 numbers as a block of Q4_0: the largest in magnitude becomes -8 d."""
    top = np.float32(0)
    for i in range(32):
        v = f32_at(x + i * step)
        if abs(v) > abs(top):
            top = v
    d = top / np.float32(-8)
    inverse = np.float32(1) / d if d != 0 else np.float32(0)
    put_f16(to, d)
    for i in range(16):
        low = min(15, int(fma_numbers(f32_at(x + i * step), inverse, np.float32(8.5))))
        high = min(15, int(fma_numbers(f32_at(x + (i + 16) * step), inverse, np.float32(8.5))))
        put_i8(to + 2 + i, low | high << 4)


@jit
def _scores(q: int, keys: int, dim: int, n: int, out: int, ahead: int, ahead_nbytes: int) -> None:
    """out[j] = q . keys[j] for n positions; four at a time share a read of q, and the sums of their lanes."""
    j, each = 0, ahead_nbytes * 4 // BLOCK
    while j < n:
        for i in range(0, each, 64):
            prefetch(ahead + i)
        ahead += each
        if j + 4 <= n:
            _some_scores(q, keys + 4 * j * dim, dim, out + 4 * j, zeros_4x16())
            j += 4
        else:
            _some_scores(q, keys + 4 * j * dim, dim, out + 4 * j, zeros_1x16())
            j += 1


@jit
def _some_scores(q: int, keys: int, dim: int, out: int, sums: Any) -> None:
    """out[j] = q . keys[j], for as many positions as `sums` (zeros) has rows."""
    for i in range(0, 4 * dim, 64):
        sums = add_vectors(sums, keys + i, 4 * dim, load(q + i))
    store_sums(sums, out, np.int64(4))


@jit
def _mix(weights: int, values: int, stride: int, dim: int, n: int, out: int, ahead: int, ahead_nbytes: int) -> None:
    """out += sum over n positions of weights[j] * values[j]: (dim,). Values are `stride` float32 apart."""
    each = ahead_nbytes * 16 // dim
    for i in range(0, 4 * dim, 64):
        a0, a1, a2, a3 = load(out + i), zeros16(), zeros16(), zeros16()
        at, step = values + i, 4 * stride
        line, j = 0, 0
        while j + 4 <= n:
            if line < each:
                prefetch(ahead + line)
                prefetch(ahead + line + 64)
                line += 128
            a0 = fma_scalar(f32_at(weights + 4 * j), load(at + j * step), a0)
            a1 = fma_scalar(f32_at(weights + 4 * j + 4), load(at + (j + 1) * step), a1)
            a2 = fma_scalar(f32_at(weights + 4 * j + 8), load(at + (j + 2) * step), a2)
            a3 = fma_scalar(f32_at(weights + 4 * j + 12), load(at + (j + 3) * step), a3)
            j += 4
        while j < n:
            a0 = fma_scalar(f32_at(weights + 4 * j), load(at + j * step), a0)
            j += 1
        ahead += each
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
    q: int, heads: int, head_dim: int, keys: int, values: int, kv_head: int, value_dim: int, value_stride: int,
    begin: int, end: int, factor: float, softcap: float, out: int, out_step: int, scratch: int,
) -> None:  # fmt: skip
    """Attention of one token's query heads to positions begin to end, at most CHUNK, of their shared keys and values.

    Args:
        q: (heads, head_dim); keys, values: tables of the layer; a value is the first value_dim of value_stride numbers.
        softcap: soft cap of the scores; 0: none.
        out: for each head, out_step bytes apart: largest score, sum of exponentials, 14 unused, then the values.
        scratch: heads * CHUNK + BLOCK * max(head_dim, value_stride) float32.
    """
    wide, n, at = scratch + 4 * heads * CHUNK, end - begin, begin
    while at < end:
        count = min(end - at, BLOCK - at % BLOCK)
        k = read_kv(keys, kv_head, head_dim, at, count, wide)
        ahead, part = next_page(keys, kv_head, head_dim, at + count, end, heads)
        for h in range(heads):
            to = scratch + 4 * (h * CHUNK + at - begin)
            _scores(q + 4 * h * head_dim, k, head_dim, count, to, ahead + h * part, part)
        at += count
    padded = (n + 15) // 16 * 16
    for h in range(heads):
        s, to = scratch + 4 * h * CHUNK, out + h * out_step
        scale(s, padded, factor)
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
    at = begin
    while at < end:
        count = min(end - at, BLOCK - at % BLOCK)
        v = read_kv(values, kv_head, value_stride, at, count, wide)
        ahead, part = next_page(values, kv_head, value_stride, at + count, end, heads)
        for h in range(heads):
            to, scores = out + h * out_step + 64, scratch + 4 * (h * CHUNK + at - begin)
            _mix(scores, v, value_stride, value_dim, count, to, ahead + h * part, part)
        at += count


@jit
def join_chunks(parts: int, chunks: int, step: int, value_dim: int, sink: float, out: int) -> None:
    """Combines one head's chunks: parts as `attend_chunk` writes them, step bytes apart -> out (value_dim,).

    Args:
        sink: an extra score, which takes a share of the softmax and adds nothing (gpt-oss); MASKED: none.
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
    """Replaces n scores by their exponentials, lane by lane; returns each lane's sum.

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
    q: int, head_dim: int, keys: int, values: int, kv_head: int, value_dim: int, value_stride: int, begin: int,
    end: int, own: int, window: int, factor: float, softcap: float, sink: float, out: int, width: int, scratch: int,
) -> None:  # fmt: skip
    """Attention of one query head, for a tile of tokens, to positions begin to end.

    Args:
        q: (head_dim, width); keys, values: as for one token.
        own: the last position that the tile's first token sees: its own.
        window: how many positions back a token sees, itself included; 0: all.
        softcap, sink: as for one token.
        out: (value_dim, width).
        scratch: (end - begin) * width + BLOCK * max(head_dim, value_stride) float32.
    """
    step, n, at = 4 * width, end - begin, begin
    wide = scratch + n * step
    while at < end:
        count = min(end - at, BLOCK - at % BLOCK)
        k = read_kv(keys, kv_head, head_dim, at, count, wide)
        multiply_tile(k, 4 * head_dim, 4, count, q, head_dim, scratch + (at - begin) * step, False, width)
        at += count
    if softcap:  # scale first: the cap applies to scaled scores
        scale(scratch, n * width, factor)
        _capped(scratch, n * width, softcap)
        factor = 1.0
    if width == 32:
        sums = _softmax_lanes(scratch, n, own - begin, window, factor, sink, zeros32())
    else:
        sums16 = _softmax_lanes(scratch, n, own - begin, window, factor, sink, zeros16())
    at = begin
    while at < end:
        count = min(end - at, BLOCK - at % BLOCK)
        v = read_kv(values, kv_head, value_stride, at, count, wide)
        weights = scratch + (at - begin) * step
        multiply_tile(v, 4, 4 * value_stride, value_dim, weights, count, out, at > begin, width)
        at += count
    if width == 32:
        _divide_lanes(out, value_dim, sums)
    else:
        _divide_lanes(out, value_dim, sums16)
