"""Quantized blocks: how each type of a GGUF file stores 32 weights, and dot products with blocks in place.

A row of a matrix is a string of blocks. For each type one function reads a group of 32 weights of a row: it returns two
vectors of 16 numbers, a scale `d` and an offset `m`, so that weight = d * number + m. (Its third argument is the
memory to which `scales` wrote, in types whose blocks store eight groups' scales together.) All else is the same for all
types. Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, and `gguf.quants`, which the tests
compare with.

Independent of layers and threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from numba import types

from teachllama.kernels.shapes import EIGHT_BY_32
from teachllama.kernels.simd import (
    F32x16,
    RowsType,
    add_vectors,
    address_of,
    bytes_of,
    call_3,
    call_6,
    constants,
    f16_at,
    f16_of_bits,
    f32_at,
    f32_of_bits,
    fma_scalar,
    iota,
    jit,
    load,
    load_bf16,
    load_f16,
    load_i8,
    load_u8,
    look_up,
    n_rows,
    prefetch,
    room_for_16,
    splat,
    splat_int,
    store,
    store_sums,
    tile_shape,
    to_float,
    two_halves,
    u8_at,
    u32_at,
    zeros_1x16,
    zeros_2x16,
    zeros_4x16,
    zeros_8x16,
)  # fmt: skip

GROUP = 32  # weights read at a time
AHEAD = 2048  # prefetch distance, bytes
MINUS_8, MINUS_16 = 0xC800, 0xCC00  # as float16
ZERO, ONE = np.float32(0), np.float32(1)  # a plain 0.0 would be a float64 to Numba


@jit
def no_scales(row: int, i: int, room: int) -> None:
    pass


@jit
def f32(row: int, i: int, room: int) -> Any:
    at = row + 128 * i
    return load(at), load(at + 64), ONE, ZERO


@jit
def f16(row: int, i: int, room: int) -> Any:
    at = row + 64 * i
    return load_f16(at), load_f16(at + 32), ONE, ZERO


@jit
def bf16(row: int, i: int, room: int) -> Any:
    at = row + 64 * i
    return load_bf16(at), load_bf16(at + 32), ONE, ZERO


@jit
def q8_0(row: int, i: int, room: int) -> Any:  # d: f16, then 32 signed bytes
    at = row + 34 * i
    return to_float(load_i8(at + 2)), to_float(load_i8(at + 18)), f16_at(at), ZERO


@jit
def q4_0(row: int, i: int, room: int) -> Any:  # d: f16; 16 bytes: weight l in byte l's low bits, l + 16 in its high
    at = row + 18 * i
    q, d = load_u8(at + 2), f16_at(at)
    return q, q >> 4, d, f16_of_bits(MINUS_8) * d


@jit
def q4_1(row: int, i: int, room: int) -> Any:  # d, m: f16
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
def q5_0(row: int, i: int, room: int) -> Any:  # d: f16, then 32 fifth bits, then as q4_0
    at = row + 22 * i
    d = f16_at(at)
    low, high = fifth_bits(load_u8(at + 6), at + 2)
    return low, high, d, f16_of_bits(MINUS_16) * d


@jit
def q5_1(row: int, i: int, room: int) -> Any:
    at = row + 24 * i
    low, high = fifth_bits(load_u8(at + 8), at + 4)
    return low, high, f16_at(at), f16_at(at + 2)


@jit
def scales_k(block: int, room: int) -> None:
    """d of the eight groups in a Q4_K or Q5_K block of 256, then m of the eight: 6 bits each, packed in 12 bytes."""
    a, b, c = u32_at(block + 4), u32_at(block + 8), u32_at(block + 12)
    scales = a & 0x3F3F3F3F | (c & 0x0F0F0F0F | a >> 2 & 0x30303030) << 32
    offsets = b & 0x3F3F3F3F | (c >> 4 & 0x0F0F0F0F | b >> 2 & 0x30303030) << 32
    store(room, to_float(bytes_of(scales, offsets)) * two_halves(f16_at(block), -f16_at(block + 2)))


@jit
def scales_q4_k(row: int, i: int, room: int) -> None:
    scales_k(row + 144 * (i >> 3), room)


@jit
def q4_k(row: int, i: int, room: int) -> Any:
    block, j = row + 144 * (i >> 3), i & 7
    at, shift = block + 16 + 32 * (j >> 1), 4 * (j & 1)
    low, high = load_u8(at) >> shift & 15, load_u8(at + 16) >> shift & 15
    return to_float(low), to_float(high), f32_at(room + 4 * j), f32_at(room + 4 * j + 32)


@jit
def scales_q5_k(row: int, i: int, room: int) -> None:
    scales_k(row + 176 * (i >> 3), room)


@jit
def q5_k(row: int, i: int, room: int) -> Any:
    block, j = row + 176 * (i >> 3), i & 7
    at, shift = block + 48 + 32 * (j >> 1), 4 * (j & 1)
    low = load_u8(at) >> shift & 15 | (load_u8(block + 16) >> j & 1) << 4
    high = load_u8(at + 16) >> shift & 15 | (load_u8(block + 32) >> j & 1) << 4
    return to_float(low), to_float(high), f32_at(room + 4 * j), f32_at(room + 4 * j + 32)


@jit
def scales_q6_k(row: int, i: int, room: int) -> None:  # one per 16 weights
    block = row + 210 * (i >> 3)
    store(room, to_float(load_i8(block + 192)) * f16_at(block + 208))


@jit
def q6_k(row: int, i: int, room: int) -> Any:  # the vectors are scaled already
    block, half, k = row + 210 * (i >> 3), i >> 2 & 1, i & 3
    low, high = block + 64 * half + 32 * (k & 1), block + 128 + 32 * half
    nibble, two, scales = 4 * (k >> 1), 2 * k, room + 8 * (i & 7)
    a = (load_u8(low) >> nibble & 15 | (load_u8(high) >> two & 3) << 4) - 32
    b = (load_u8(low + 16) >> nibble & 15 | (load_u8(high + 16) >> two & 3) << 4) - 32
    return to_float(a) * f32_at(scales), to_float(b) * f32_at(scales + 4), ONE, ZERO


@jit
def mxfp4(row: int, i: int, room: int) -> Any:
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


@jit
def _ask(at: int, wide: int) -> None:
    prefetch(at + AHEAD)
    if wide:
        prefetch(at + AHEAD + 64)


@jit
def _some(
    step: int, scales: int, stride: int, wide: int, pairs_fit: int, w: int, row_bytes: int, groups: int, x: int,
    x_step: int, out: int, out_step: int, begin: int, end: int, zeros: Any,
) -> None:  # fmt: skip
    """out[t, r] = row r times x[t], for as many vectors as `zeros` has: each row is unpacked once for all.

    Two rows share a read of x, if registers have room for their sums. They are far apart, by half of all rows: a
    processor tracks separate streams of memory well, but not rows that share a page.
    A vector's products are added in the same order however many there are, so its results have the same bits.

    Args:
        step, scales: addresses of one type's functions. The next three are as in `_functions`.
    """
    pairs = tile_shape() == EIGHT_BY_32 or (pairs_fit and n_rows(zeros) == 1)
    part, group_bytes = (end - begin + 1) // 2 if pairs else end - begin, row_bytes // groups
    room0, room1 = room_for_16(), room_for_16()
    for r in range(begin, begin + part):
        other = min(r + part, end - 1)  # past the last row, the last again
        row0, row1, acc0, acc1 = w + r * row_bytes, w + other * row_bytes, zeros, zeros
        for i in range(0, groups, stride):
            if i % 8 == 0:
                call_3(scales, row0, i, room0)
                if pairs:
                    call_3(scales, row1, i, room1)
            acc0 = call_6(step, row0, i, room0, x, x_step, acc0)
            if pairs:
                acc1 = call_6(step, row1, i, room1, x, x_step, acc1)
                _ask(row1 + i * group_bytes, wide)
            _ask(row0 + i * group_bytes, wide)
        store_sums(acc0, out + 4 * r, out_step)
        if pairs:
            store_sums(acc1, out + 4 * other, out_step)


@jit
def _few(
    one: int, two: int, four: int, eight: int, scales: int, stride: int, wide: int, pairs_fit: int, w: int,
    row_bytes: int, groups: int, x: int, x_step: int, out: int, out_step: int, begin: int, end: int, n: int,
) -> None:  # fmt: skip
    """`_some` for 1, 2, 4 or 8 vectors. `one` to `eight` are the addresses of a type's `step` for so many."""
    rest = (stride, wide, pairs_fit, w, row_bytes, groups, x, x_step, out, out_step, begin, end)
    if n == 1:
        _some(one, scales, *rest, zeros_1x16())
    elif n == 2:
        _some(two, scales, *rest, zeros_2x16())
    elif n == 4:
        _some(four, scales, *rest, zeros_4x16())
    elif tile_shape() == EIGHT_BY_32:
        _some(eight, scales, *rest, zeros_8x16())


def _functions(
    group: Any, scaled: bool = True, offset: bool = False, table: Any = None, scales: Any = no_scales,
    wide: bool = False, pairs_fit: bool = True,
) -> tuple[Any, Any]:  # fmt: skip
    """The functions of one type: `few` (rows times one vector or several) and `unpack` (a row as float32).

    Both get the type first, for `_by_type`, and have no use for it.

    Args:
        table: d, m -> the 16 possible weights, where `group` returns integers whose low four bits are the number.
        scales: writes the scales of a block's eight groups to 16 float32 of memory, if they are stored together;
            their address is the third argument of both.
        wide: a group takes 128 bytes.
        pairs_fit: whether 16 registers of eight numbers have room for two rows at a time.
    """
    stride = 1 if scales is no_scales else 2  # groups that a step takes

    @jit
    def weights(v: Any, d: float, m: float) -> Any:
        """16 numbers of a group -> its weights, as float32."""
        if table is not None:
            if tile_shape() == EIGHT_BY_32:
                return look_up(table(d, m), v)
            return fma_scalar(d, to_float(v & 15), splat(m))
        if offset:
            return fma_scalar(d, v, splat(m))
        return v * d if scaled else v

    @jit
    def step(row: int, i: int, room: int, x: int, x_step: int, acc: Any) -> Any:
        """Adds group i's products with each vector to its accumulator; in large blocks also those of group i + 1."""
        v0, v1, d, m = group(row, i, room)
        acc = add_vectors(acc, x + 128 * i, x_step, weights(v0, d, m))
        acc = add_vectors(acc, x + 128 * i + 64, x_step, weights(v1, d, m))
        if stride == 2:  # both are in the same bytes
            i |= 1
            v0, v1, d, m = group(row, i, room)
            acc = add_vectors(acc, x + 128 * i, x_step, weights(v0, d, m))
            acc = add_vectors(acc, x + 128 * i + 64, x_step, weights(v1, d, m))
        return acc

    one, two, four, eight = (address_of(step, *[types.int64] * 5, RowsType(n, F32x16)) for n in (1, 2, 4, 8))
    its_scales = address_of(scales, *[types.int64] * 3)

    @jit
    def few(
        kind: int, w: int, row_bytes: int, groups: int, x: int, x_step: int, out: int, out_step: int, begin: int,
        end: int, n: int,
    ) -> None:  # fmt: skip
        """1, 2, 4 or 8 vectors."""
        _few(
            one(), two(), four(), eight(), its_scales(), np.int64(stride), np.int64(wide), np.int64(pairs_fit),
            w, row_bytes, groups, x, x_step, out, out_step, begin, end, n,
        )  # fmt: skip

    @jit
    def unpack(kind: int, row: int, groups: int, out: int) -> None:
        room = room_for_16()
        for i in range(groups):
            if i % 8 == 0:
                scales(row, i, room)
            v0, v1, d, m = group(row, i, room)
            store(out + 128 * i, weights(v0, d, m))
            store(out + 128 * i + 64, weights(v1, d, m))

    return few, unpack


FORMATS = {  # types whose blocks are used in place
    T.F32: _functions(f32, scaled=False, wide=True),
    T.F16: _functions(f16, scaled=False),
    T.BF16: _functions(bf16, scaled=False),
    T.Q8_0: _functions(q8_0),
    T.Q4_0: _functions(q4_0, offset=True, table=table_q4_0),
    T.Q4_1: _functions(q4_1, offset=True, table=table_q4_1),
    T.Q5_0: _functions(q5_0, offset=True, pairs_fit=False),
    T.Q5_1: _functions(q5_1, offset=True, pairs_fit=False),
    T.Q4_K: _functions(q4_k, offset=True, scales=scales_q4_k),
    T.Q5_K: _functions(q5_k, offset=True, scales=scales_q5_k),
    T.Q6_K: _functions(q6_k, scaled=False, scales=scales_q6_k),
    T.MXFP4: _functions(mxfp4, pairs_fit=False),
}


def _by_type(functions: list[tuple[T, Any]]) -> Any:
    """A function of a block's type and further arguments: it calls that type's function with the arguments."""
    if len(functions) == 1:
        return functions[0][1]
    half = len(functions) // 2  # halves: a chain of twelve would take long to compile
    first, low, high = int(functions[half][0]), _by_type(functions[:half]), _by_type(functions[half:])
    return jit(lambda kind, *args: low(kind, *args) if kind < first else high(kind, *args))


_sizes = {int(kind): 256 * GGML_QUANT_SIZES[kind][1] // GGML_QUANT_SIZES[kind][0] for kind in FORMATS}
_nbytes_of_256 = constants([_sizes.get(kind, 0) for kind in range(max(_sizes) + 1)])  # type -> bytes of 256 weights
_few_of = _by_type([(kind, FORMATS[kind][0]) for kind in sorted(FORMATS)])
_unpack = _by_type([(kind, FORMATS[kind][1]) for kind in sorted(FORMATS)])


@jit
def row_nbytes(kind: int, columns: int) -> int:
    """Bytes of one row of a matrix."""
    return columns * _nbytes_of_256(kind) // 256


@jit
def _multiply(
    kind: int, w: int, columns: int, x: int, x_step: int, out: int, out_step: int, begin: int, end: int, n: int
) -> None:
    _few_of(kind, w, row_nbytes(kind, columns), columns // GROUP, x, x_step, out, out_step, begin, end, n)


@jit
def matvec(kind: int, w: int, columns: int, x: int, out: int, begin: int, end: int) -> None:
    """Rows begin to end of a matrix of any native type, times x: out[r] = row r . x.

    Args:
        w: address of the matrix; x: of `columns` float32; out: of the results.
    """
    _multiply(kind, w, columns, x, np.int64(0), out, np.int64(0), begin, end, np.int64(1))


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
        _multiply(kind, w, columns, x + t * x_step, x_step, out + t * out_step, out_step, begin, end, np.int64(8))
        t += 8
    while t + 4 <= n:
        _multiply(kind, w, columns, x + t * x_step, x_step, out + t * out_step, out_step, begin, end, np.int64(4))
        t += 4
    if t + 2 <= n:
        _multiply(kind, w, columns, x + t * x_step, x_step, out + t * out_step, out_step, begin, end, np.int64(2))
        t += 2
    if t < n:
        matvec(kind, w, columns, x + t * x_step, out + t * out_step, begin, end)


@jit
def unpack(kind: int, w: int, columns: int, row: int, out: int) -> None:
    """Row `row` of a matrix of any native type, as float32 at address `out`."""
    _unpack(kind, w + row * row_nbytes(kind, columns), columns // GROUP, out)
