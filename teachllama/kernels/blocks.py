"""Quantized blocks: how each type of a GGUF file stores 32 weights, and dot products with blocks in place.

A row of a matrix is a string of blocks. For each type one function reads a group of 32 weights of a row: it returns two
vectors of 16 numbers, a scale `d` and an offset `m`, so that weight = d * number + m. Everything else is the same for
all types. Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, and `gguf.quants`, which the tests
compare with.

Independent of layers and threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from teachllama.kernels.shapes import EIGHT_BY_32
from teachllama.kernels.simd import (
    add_vectors,
    f16_at,
    f32_of_bits,
    fma,
    fma_scalar,
    hsum,
    i8_at,
    iota,
    jit,
    load,
    load_bf16,
    load_f16,
    load_i8,
    load_u8,
    look_up,
    prefetch,
    put_f32,
    splat,
    splat_int,
    store,
    store_sums,
    tile_shape,
    to_float,
    u8_at,
    u32_at,
    zeros16,
    zeros_1x16,
    zeros_2x16,
    zeros_4x16,
    zeros_8x16,
)  # fmt: skip

GROUP = 32  # weights read at a time
AHEAD = 2048  # prefetch distance, bytes
ZERO, ONE = np.float32(0), np.float32(1)  # a plain 0.0 would be a float64 to Numba


@jit
def f32(row: int, i: int) -> Any:
    at = row + 128 * i
    return load(at), load(at + 64), ONE, ZERO


@jit
def f16(row: int, i: int) -> Any:
    at = row + 64 * i
    return load_f16(at), load_f16(at + 32), ONE, ZERO


@jit
def bf16(row: int, i: int) -> Any:
    at = row + 64 * i
    return load_bf16(at), load_bf16(at + 32), ONE, ZERO


@jit
def q8_0(row: int, i: int) -> Any:  # d: f16, then 32 signed bytes
    at = row + 34 * i
    return to_float(load_i8(at + 2)), to_float(load_i8(at + 18)), f16_at(at), ZERO


@jit
def q4_0(row: int, i: int) -> Any:  # d: f16, then 16 bytes: weight l in the low four bits of byte l, l + 16 in the high
    at = row + 18 * i
    q, d = load_u8(at + 2), f16_at(at)
    return q, q >> 4, d, np.float32(-8) * d


@jit
def q4_1(row: int, i: int) -> Any:  # d, m: f16
    at = row + 20 * i
    q = load_u8(at + 4)
    return q, q >> 4, f16_at(at), f16_at(at + 2)


@jit
def table_q4_0(d: float, m: float) -> Any:
    return (to_float(iota()) - np.float32(8)) * d  # m is -8 d: the same bits as d * number + m, and m is not computed


@jit
def table_q4_1(d: float, m: float) -> Any:
    return fma_scalar(d, to_float(iota()), splat(m))


@jit
def fifth_bits(q: Any, at: int) -> Any:
    """The low and high four bits of 16 bytes, each with its fifth bit from the 32 bits at an address."""
    bits = splat_int(u32_at(at)) >> iota()
    return to_float(q & 15 | (bits & 1) << 4), to_float(q >> 4 | (bits >> 16 & 1) << 4)


@jit
def q5_0(row: int, i: int) -> Any:  # d: f16, then 32 fifth bits, then as q4_0
    at = row + 22 * i
    d = f16_at(at)
    low, high = fifth_bits(load_u8(at + 6), at + 2)
    return low, high, d, np.float32(-16) * d


@jit
def q5_1(row: int, i: int) -> Any:
    at = row + 24 * i
    low, high = fifth_bits(load_u8(at + 8), at + 4)
    return low, high, f16_at(at), f16_at(at + 2)


@jit
def scale_and_offset(block: int, j: int) -> Any:
    """d and m of group j of 8 in a Q4_K or Q5_K block of 256: 6 bits each, packed in 12 bytes after the block's own."""
    s = block + 4
    if j < 4:
        scale, offset = u8_at(s + j) & 63, u8_at(s + j + 4) & 63
    else:
        scale = (u8_at(s + j + 4) & 15) | ((u8_at(s + j - 4) >> 6) << 4)
        offset = (u8_at(s + j + 4) >> 4) | ((u8_at(s + j) >> 6) << 4)
    return f16_at(block) * np.float32(scale), -f16_at(block + 2) * np.float32(offset)


@jit
def q4_k(row: int, i: int) -> Any:
    block, j = row + 144 * (i >> 3), i & 7
    at, shift = block + 16 + 32 * (j >> 1), 4 * (j & 1)
    d, m = scale_and_offset(block, j)
    return to_float(load_u8(at) >> shift & 15), to_float(load_u8(at + 16) >> shift & 15), d, m


@jit
def q5_k(row: int, i: int) -> Any:
    block, j = row + 176 * (i >> 3), i & 7
    at, shift = block + 48 + 32 * (j >> 1), 4 * (j & 1)
    d, m = scale_and_offset(block, j)
    low = load_u8(at) >> shift & 15 | (load_u8(block + 16) >> j & 1) << 4
    high = load_u8(at + 16) >> shift & 15 | (load_u8(block + 32) >> j & 1) << 4
    return to_float(low), to_float(high), d, m


@jit
def q6_k(row: int, i: int) -> Any:  # one scale per 16 weights, so the vectors are scaled already
    block, half, k = row + 210 * (i >> 3), i >> 2 & 1, i & 3
    low, high = block + 64 * half + 32 * (k & 1), block + 128 + 32 * half
    scales, d = block + 192 + 8 * half + 2 * k, f16_at(block + 208)
    nibble, two = 4 * (k >> 1), 2 * k
    a = (load_u8(low) >> nibble & 15 | (load_u8(high) >> two & 3) << 4) - 32
    b = (load_u8(low + 16) >> nibble & 15 | (load_u8(high + 16) >> two & 3) << 4) - 32
    return to_float(a) * (d * np.float32(i8_at(scales))), to_float(b) * (d * np.float32(i8_at(scales + 1))), ONE, ZERO


@jit
def mxfp4(row: int, i: int) -> Any:
    """A power of two in one byte, then 16 bytes with two E2M1 numbers each (OCP's microscaling formats)."""
    at = row + 17 * i
    q, e = load_u8(at + 1), u8_at(at)
    d = f32_of_bits((e - 1) << 23 if e > 1 else 0x200000 << e)  # 2^(e - 128), since the numbers are doubled
    return to_float(doubled_e2m1(q & 15)), to_float(doubled_e2m1(q >> 4)), d, ZERO


@jit
def doubled_e2m1(q: Any) -> Any:
    """Twice a float of four bits (a sign, two bits of exponent, one of mantissa): 0, 1, 2, 3, 4, 6, 8, 12."""
    size = ((q & 1 | 2) << (q >> 1 & 3) >> 1) - 1 + ((q & 7) + 7 >> 3)  # the last term: 0 for the number 0, else 1
    return size * ((q >> 3) * -2 + 1)


def _functions(
    group: Any, scaled: bool, offset: bool, wide: bool = False, heavy: bool = False, table: Any = None
) -> tuple[Any, Any]:
    """The functions of one type: `few` (rows times one vector or several) and `unpack` (a row as float32).

    Args:
        table: d, m -> the 16 possible weights, where `group` returns integers whose low four bits are the number.
    """

    @jit
    def weights(row: int, i: int) -> Any:
        """Group i of a row, as float32."""
        v0, v1, d, m = group(row, i)
        if table is not None:
            if tile_shape() == EIGHT_BY_32:
                possible = table(d, m)
                return look_up(possible, v0), look_up(possible, v1)
            return fma_scalar(d, to_float(v0 & 15), splat(m)), fma_scalar(d, to_float(v1 & 15), splat(m))
        if offset:
            return fma_scalar(d, v0, splat(m)), fma_scalar(d, v1, splat(m))
        if scaled:
            return v0 * d, v1 * d
        return v0, v1

    @jit
    def step(row: int, i: int, x0: Any, x1: Any, acc: Any) -> Any:
        """Adds group i's products to a row's accumulator."""
        w0, w1 = weights(row, i)
        return fma(w1, x1, fma(w0, x0, acc))

    @jit
    def some(
        w: int, row_bytes: int, groups: int, x: int, x_step: int, out: int, out_step: int, begin: int, end: int,
        zeros: Any,
    ) -> None:  # fmt: skip
        """out[t, r] = row r times x[t], for as many vectors as `zeros` has rows: a row is unpacked once for all.

        Products are added in the order of `matvec`: each vector's results have the same bits as when it is alone.
        """
        for r in range(begin, end):
            row, acc = w + r * row_bytes, zeros
            for i in range(groups):
                w0, w1 = weights(row, i)
                prefetch(row + i * (row_bytes // groups) + AHEAD)
                acc = add_vectors(add_vectors(acc, x + 128 * i, x_step, w0), x + 128 * i + 64, x_step, w1)
            store_sums(acc, out + 4 * r, out_step)

    @jit
    def matvec(w: int, row_bytes: int, groups: int, x: int, out: int, begin: int, end: int) -> None:
        """out[r] = row r times x, for begin <= r < end.

        Four rows share a read of x. They are far apart, by a quarter of all rows: a processor tracks four separate
        streams of memory well, but not four rows that share a page.
        """
        if heavy and tile_shape() != EIGHT_BY_32:  # with four rows, numbers would not fit in registers
            some(w, row_bytes, groups, x, np.int64(0), out, np.int64(0), begin, end, zeros_1x16())
            return
        quarter, group_bytes = (end - begin) // 4, row_bytes // groups
        far, far_out = quarter * row_bytes, 4 * quarter
        for r in range(begin, begin + quarter):
            row0, to = w + r * row_bytes, out + 4 * r
            row1, row2, row3 = row0 + far, row0 + 2 * far, row0 + 3 * far
            a0, a1, a2, a3 = zeros16(), zeros16(), zeros16(), zeros16()
            for i in range(groups):
                x0, x1 = load(x + 128 * i), load(x + 128 * i + 64)
                ahead = i * group_bytes + AHEAD
                prefetch(row0 + ahead)
                prefetch(row1 + ahead)
                prefetch(row2 + ahead)
                prefetch(row3 + ahead)
                if wide:
                    prefetch(row0 + ahead + 64)
                    prefetch(row1 + ahead + 64)
                    prefetch(row2 + ahead + 64)
                    prefetch(row3 + ahead + 64)
                a0, a1 = step(row0, i, x0, x1, a0), step(row1, i, x0, x1, a1)
                a2, a3 = step(row2, i, x0, x1, a2), step(row3, i, x0, x1, a3)
            put_f32(to, hsum(a0))
            put_f32(to + far_out, hsum(a1))
            put_f32(to + 2 * far_out, hsum(a2))
            put_f32(to + 3 * far_out, hsum(a3))
        some(w, row_bytes, groups, x, np.int64(0), out, np.int64(0), begin + 4 * quarter, end, zeros_1x16())

    @jit
    def few(
        w: int, row_bytes: int, groups: int, x: int, x_step: int, out: int, out_step: int, begin: int, end: int, n: int
    ) -> None:
        """1, 2, 4 or 8 vectors."""
        if n == 1:
            matvec(w, row_bytes, groups, x, out, begin, end)
        elif n == 8:
            some(w, row_bytes, groups, x, x_step, out, out_step, begin, end, zeros_8x16())
        elif n == 4:
            some(w, row_bytes, groups, x, x_step, out, out_step, begin, end, zeros_4x16())
        else:
            some(w, row_bytes, groups, x, x_step, out, out_step, begin, end, zeros_2x16())

    @jit
    def unpack(row: int, groups: int, out: int) -> None:
        for i in range(groups):
            w0, w1 = weights(row, i)
            store(out + 128 * i, w0)
            store(out + 128 * i + 64, w1)

    return few, unpack


NATIVE = {  # types whose blocks are used in place -> (bytes, weights) of a block
    kind: (GGML_QUANT_SIZES[kind][1], GGML_QUANT_SIZES[kind][0])
    for kind in (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K, T.MXFP4)
}
_F32, _F16, _BF16, _Q8_0, _Q4_0, _Q4_1, _Q5_0, _Q5_1, _Q4_K, _Q5_K, _Q6_K, _MXFP4 = (int(kind) for kind in NATIVE)
_few_f32, _unpack_f32 = _functions(f32, False, False, wide=True)
_few_f16, _unpack_f16 = _functions(f16, False, False)
_few_bf16, _unpack_bf16 = _functions(bf16, False, False)
_few_q8_0, _unpack_q8_0 = _functions(q8_0, True, False)
_few_q4_0, _unpack_q4_0 = _functions(q4_0, True, True, heavy=True, table=table_q4_0)
_few_q4_1, _unpack_q4_1 = _functions(q4_1, True, True, heavy=True, table=table_q4_1)
_few_q5_0, _unpack_q5_0 = _functions(q5_0, True, True, heavy=True)
_few_q5_1, _unpack_q5_1 = _functions(q5_1, True, True, heavy=True)
_few_q4_k, _unpack_q4_k = _functions(q4_k, True, True, heavy=True)
_few_q5_k, _unpack_q5_k = _functions(q5_k, True, True, heavy=True)
_few_q6_k, _unpack_q6_k = _functions(q6_k, False, False, heavy=True)
_few_mxfp4, _unpack_mxfp4 = _functions(mxfp4, True, False, heavy=True)


@jit
def row_nbytes(kind: int, columns: int) -> int:
    """Bytes of one row of a matrix."""
    if kind == _F32:
        return 4 * columns
    if kind in (_F16, _BF16):
        return 2 * columns
    groups = columns // GROUP
    if kind == _Q8_0:
        return 34 * groups
    if kind == _Q4_0:
        return 18 * groups
    if kind == _Q4_1:
        return 20 * groups
    if kind == _Q5_0:
        return 22 * groups
    if kind == _Q5_1:
        return 24 * groups
    if kind == _Q4_K:
        return 144 * (groups // 8)
    if kind == _Q5_K:
        return 176 * (groups // 8)
    if kind == _MXFP4:
        return 17 * groups
    return 210 * (groups // 8)


@jit
def _some(
    kind: int, w: int, columns: int, x: int, x_step: int, out: int, out_step: int, begin: int, end: int, n: int
) -> None:
    nbytes, groups = row_nbytes(kind, columns), columns // GROUP
    if kind == _Q8_0:
        _few_q8_0(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _Q4_1:
        _few_q4_1(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _Q4_0:
        _few_q4_0(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _Q5_0:
        _few_q5_0(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _Q5_1:
        _few_q5_1(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _Q4_K:
        _few_q4_k(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _Q5_K:
        _few_q5_k(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _Q6_K:
        _few_q6_k(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _MXFP4:
        _few_mxfp4(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _F16:
        _few_f16(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _BF16:
        _few_bf16(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)
    elif kind == _F32:
        _few_f32(w, nbytes, groups, x, x_step, out, out_step, begin, end, n)


@jit
def matvec(kind: int, w: int, columns: int, x: int, out: int, begin: int, end: int) -> None:
    """Rows begin to end of a matrix of any native type, times x: out[r] = row r . x.

    Args:
        w: address of the matrix; x: of `columns` float32; out: of the results.
    """
    _some(kind, w, columns, x, np.int64(0), out, np.int64(0), begin, end, np.int64(1))


@jit
def multiply_few(
    kind: int, w: int, columns: int, x: int, x_step: int, n: int, out: int, out_step: int, begin: int, end: int
) -> None:
    """Rows begin to end of a matrix of any native type times n vectors: out[t, r] = row r . x[t].

    Args:
        x, out: addresses of the first vectors; the others follow x_step and out_step bytes apart.
    """
    t = 0
    while t + 8 <= n and tile_shape() == EIGHT_BY_32:  # eight sums of 16 fit in the registers only here
        _some(kind, w, columns, x + t * x_step, x_step, out + t * out_step, out_step, begin, end, np.int64(8))
        t += 8
    while t + 4 <= n:
        _some(kind, w, columns, x + t * x_step, x_step, out + t * out_step, out_step, begin, end, np.int64(4))
        t += 4
    if t + 2 <= n:
        _some(kind, w, columns, x + t * x_step, x_step, out + t * out_step, out_step, begin, end, np.int64(2))
        t += 2
    if t < n:
        matvec(kind, w, columns, x + t * x_step, out + t * out_step, begin, end)


@jit
def unpack(kind: int, w: int, columns: int, row: int, out: int) -> None:
    """Row `row` of a matrix of any native type, as float32 at address `out`."""
    at, groups = w + row * row_nbytes(kind, columns), columns // GROUP
    if kind == _Q8_0:
        _unpack_q8_0(at, groups, out)
    elif kind == _Q4_1:
        _unpack_q4_1(at, groups, out)
    elif kind == _Q4_0:
        _unpack_q4_0(at, groups, out)
    elif kind == _Q5_0:
        _unpack_q5_0(at, groups, out)
    elif kind == _Q5_1:
        _unpack_q5_1(at, groups, out)
    elif kind == _Q4_K:
        _unpack_q4_k(at, groups, out)
    elif kind == _Q5_K:
        _unpack_q5_k(at, groups, out)
    elif kind == _Q6_K:
        _unpack_q6_k(at, groups, out)
    elif kind == _MXFP4:
        _unpack_mxfp4(at, groups, out)
    elif kind == _F16:
        _unpack_f16(at, groups, out)
    elif kind == _BF16:
        _unpack_bf16(at, groups, out)
    elif kind == _F32:
        _unpack_f32(at, groups, out)
