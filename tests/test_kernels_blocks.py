"""Quantized blocks: unpacking and direct multiplication agree with the gguf package's dequantization."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel_tools import NATIVE, SCALES, Guarded, as_f32, callable_from_python, random_blocks, set_shape, unit

pytest.importorskip("numba")
pytestmark = pytest.mark.slow

DOTS, UNPACK, FEW, NBYTES = range(4)
ORDINARY = np.float16(np.random.default_rng(0).uniform(-2, 2, 1000))
SUBNORMAL = np.arange(1, 1024, dtype=np.uint16).view(np.float16)
EXTREME = np.float16([65504, -65504, 6.104e-5, -6.104e-5, 5.96e-8, -5.96e-8, 0, -0.0, 1, -1])
Kernel = Callable[..., int]
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    from teachllama.kernels import blocks

    @callable_from_python
    def run(op: int, kind: int, w: int, columns: int, x: int, n: int, out: int, begin: int, end: int) -> Any:
        if op == 0:
            blocks.matvec(kind, w, columns, x, out, begin, end)
        elif op == 2:  # vectors are adjacent; each one's results begin `end` + 3 float32 after the previous one's
            blocks.multiply_few(kind, w, columns, x, 4 * columns, n, out, 4 * (end + 3), begin, end)
        elif op == 1:
            for row in range(begin, end):
                blocks.unpack(kind, w, columns, row, out + 4 * columns * (row - begin))
        return blocks.row_nbytes(kind, columns)

    return run


def unpacked(kernel: Kernel, kind: T, raw: np.ndarray, columns: int, begin: int = 0) -> np.ndarray:
    out = Guarded((len(raw) - begin) * columns)
    kernel(UNPACK, int(kind), raw.ctypes.data, columns, 0, 0, out.at, begin, len(raw))
    out.check()
    return out.data.reshape(-1, columns)


def multiplied(kernel: Kernel, kind: T, raw: np.ndarray, x: np.ndarray, begin: int, end: int) -> np.ndarray:
    given_x, out = Guarded(x), Guarded(len(raw))
    kernel(DOTS, int(kind), raw.ctypes.data, len(x), given_x.at, 1, out.at, begin, end)
    out.check()
    untouched = np.r_[out.data[:begin], out.data[end:]]
    assert (untouched == Guarded(1).data[0]).all(), "a row outside begin to end was written"
    return out.data[begin:end]


def check_dots(kernel: Kernel, kind: T, raw: np.ndarray, x: np.ndarray, begin: int, end: int) -> None:
    weights = as_f32(kind, raw).astype(np.float64)[begin:end]
    # Float32 rounding, carried through a block's scale and offset; no term exceeds 32 times a row's largest weight.
    bound = 32 * 6e-8 * np.abs(weights).max(axis=1, initial=0) * np.abs(x).sum() + 1e-37
    error = np.abs(multiplied(kernel, kind, raw, x, begin, end) - weights @ x.astype(np.float64))
    assert (error <= bound).all(), f"{(error / bound).max()} of the error allowed"


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
def test_a_row_has_as_many_bytes_as_gguf_says(kernel: Kernel, kind: T) -> None:
    for columns in (unit(kind), 768, 2304):
        raw = random_blocks(kind, 1, columns, np.random.default_rng(0), ORDINARY)
        assert kernel(3, int(kind), 0, columns, 0, 0, 0, 0, 0) == raw.nbytes


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
@given(rows=st.integers(1, 9), blocks=st.integers(1, 9), seed=st.integers(0, 2**32))
@few
def test_unpacking_gives_the_bits_that_gguf_gives(kernel: Kernel, kind: T, rows: int, blocks: int, seed: int) -> None:
    columns, rng = blocks * unit(kind), np.random.default_rng(seed)
    raw = random_blocks(kind, rows, columns, rng, ORDINARY)
    begin = int(rng.integers(rows))
    np.testing.assert_array_equal(unpacked(kernel, kind, raw, columns, begin), as_f32(kind, raw)[begin:])


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
@given(rows=st.integers(1, 70), blocks=st.integers(1, 7), seed=st.integers(0, 2**32))
@few
def test_dot_products_over_ragged_rows_equal_the_reference(
    kernel: Kernel, kind: T, rows: int, blocks: int, seed: int
) -> None:
    columns, rng = blocks * unit(kind), np.random.default_rng(seed)
    raw = random_blocks(kind, rows, columns, rng, ORDINARY)
    begin, end = sorted(rng.integers(0, rows + 1, 2).tolist())
    x = rng.standard_normal(columns).astype(np.float32)
    check_dots(kernel, kind, raw, x, begin, end)
    check_dots(kernel, kind, raw, x, 0, rows)


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
@given(
    n=st.integers(1, 17),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 4),
    shape=st.integers(0, 2),
    seed=st.integers(0, 2**32),
)
@few
def test_a_few_vectors_get_the_bits_that_each_gets_alone(
    kernel: Kernel, kind: T, n: int, rows: int, blocks: int, shape: int, seed: int
) -> None:
    columns, rng = blocks * unit(kind), np.random.default_rng(seed)
    raw = random_blocks(kind, rows, columns, rng, ORDINARY)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    begin, end = sorted(rng.integers(0, rows + 1, 2).tolist())
    given_x, out = Guarded(x), Guarded(n * (end + 3))
    set_shape(shape)
    try:
        kernel(FEW, int(kind), raw.ctypes.data, columns, given_x.at, n, out.at, begin, end)
    finally:
        set_shape(0)
    out.check()
    found = out.data.reshape(n, end + 3)
    alone = np.array([multiplied(kernel, kind, raw, one, begin, end) for one in x]).reshape(n, end - begin)
    np.testing.assert_array_equal(found[:, begin:end].view(np.uint32), alone.view(np.uint32))
    assert (np.delete(found, np.s_[begin:end], axis=1) == Guarded(1).data[0]).all(), "another row was written"


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
def test_a_rows_dot_product_has_the_same_bits_whichever_range_of_rows_it_is_in(kernel: Kernel, kind: T) -> None:
    # This makes logits independent of the number of threads.
    rng = np.random.default_rng(1)
    raw = random_blocks(kind, 23, 2 * unit(kind), rng, ORDINARY)
    x = rng.standard_normal(2 * unit(kind)).astype(np.float32)
    whole = multiplied(kernel, kind, raw, x, 0, 23)
    for begin, end in ((0, 4), (4, 11), (11, 12), (12, 23)):
        np.testing.assert_array_equal(multiplied(kernel, kind, raw, x, begin, end), whole[begin:end])


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
@pytest.mark.parametrize("halves", [SUBNORMAL, -SUBNORMAL, EXTREME], ids=["subnormal", "-subnormal", "extreme"])
def test_scales_that_are_negative_subnormal_zero_or_largest_are_read_right(
    kernel: Kernel, kind: T, halves: np.ndarray
) -> None:
    rng = np.random.default_rng(2)
    raw = random_blocks(kind, 13, 3 * unit(kind), rng, halves)
    np.testing.assert_array_equal(unpacked(kernel, kind, raw, 3 * unit(kind)), as_f32(kind, raw))
    check_dots(kernel, kind, raw, rng.standard_normal(3 * unit(kind)).astype(np.float32), 0, 13)


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x0F, 0xF0, 0x80, 0x7F, 0x55, 0xAA])
def test_blocks_whose_bytes_are_all_the_same_are_read_right(kernel: Kernel, kind: T, byte: int) -> None:
    raw = random_blocks(kind, 5, unit(kind), np.random.default_rng(3), np.float16([0.25, -3]))
    whole = random_blocks(kind, 5, unit(kind), np.random.default_rng(3), np.float16([0.25, -3]))
    if kind in SCALES and (kind, byte) != (
        T.MXFP4,
        0xFF,
    ):  # for the other types all bytes are weights, and 0xFF gives NaN
        raw[:] = byte
        for at in SCALES[kind]:
            raw[:, at : at + 2] = whole[:, at : at + 2]
    elif byte not in (0x7F, 0xFF):
        raw[:] = byte
    np.testing.assert_array_equal(unpacked(kernel, kind, raw, unit(kind)), as_f32(kind, raw))
    if kind not in (T.F32, T.BF16):  # 0xAAAAAAAA and similar are too small for the relative error bound
        check_dots(kernel, kind, raw, np.random.default_rng(4).standard_normal(unit(kind)).astype(np.float32), 0, 5)


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
def test_blocks_of_zeros_are_zeros(kernel: Kernel, kind: T) -> None:
    raw = np.zeros_like(random_blocks(kind, 7, unit(kind), np.random.default_rng(0), ORDINARY))
    assert not unpacked(kernel, kind, raw, unit(kind)).any()
    assert not multiplied(kernel, kind, raw, np.full(unit(kind), 1e30, np.float32), 0, 7).any()


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
def test_nothing_is_read_past_the_last_block_where_a_files_last_page_may_end(kernel: Kernel, kind: T) -> None:
    raw = random_blocks(kind, 5, unit(kind), np.random.default_rng(5), ORDINARY)
    size = -(-raw.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    mapping = mmap.mmap(-1, size + mmap.PAGESIZE)
    pages = np.frombuffer(mapping, np.uint8)
    placed = pages[size - raw.nbytes : size]
    placed[:] = raw.ravel()
    library = ctypes.CDLL(None)
    assert library.mprotect(ctypes.c_void_p(pages.ctypes.data + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    placed = placed.reshape(5, -1)
    np.testing.assert_array_equal(unpacked(kernel, kind, placed, unit(kind)), as_f32(kind, raw))
    check_dots(kernel, kind, placed, np.ones(unit(kind), np.float32), 0, 5)
