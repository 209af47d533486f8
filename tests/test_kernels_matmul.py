"""Matrix products of many tokens, in tiles, equal NumPy's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel_tools import (
    NATIVE,
    Guarded,
    as_f32,
    callable_from_python,
    from_tiles,
    model_blocks,
    set_shape,
    tiles_of,
    unit,
    widths,
)

pytest.importorskip("numba")
pytestmark = pytest.mark.slow

Kernel = Callable[..., int]
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    from teachllama.kernels import matmul

    @callable_from_python
    def run(
        kind: int, w: int, columns: int, begin: int, end: int, x: int, n: int, out: int, out_rows: int, at_row: int,
        add: int, panel: int,
    ) -> int:  # fmt: skip
        if kind < 0:  # any strides: w is float32, `begin` bytes per row and `end` bytes per column
            matmul.multiply_tile(w, begin, end, out_rows, x, columns, out, add != 0, n)
            return 0
        no_bias = np.int64(0)
        matmul.multiply(
            kind, w, columns, begin, end, x, columns, np.int64(0), n, out, out_rows, at_row, add != 0, no_bias, panel
        )
        return matmul.width_of(at_row, n)

    return run


def product(
    kernel: Kernel, kind: T, raw: np.ndarray, x: np.ndarray, begin: int, end: int, before: np.ndarray, at_row: int,
    add: bool,
) -> np.ndarray:  # fmt: skip
    from teachllama.kernels.fields import PANEL

    n, columns = x.shape
    given_x, out = Guarded(tiles_of(x, filler=7)), Guarded(tiles_of(before))
    panel = Guarded(PANEL * columns)
    kernel(
        int(kind), raw.ctypes.data, columns, begin, end, given_x.at, n, out.at, before.shape[1], at_row, int(add),
        panel.at,
    )  # fmt: skip
    out.check()
    panel.check()
    return from_tiles(out.data, n, before.shape[1])


@given(
    kind=st.sampled_from(NATIVE),
    n=st.integers(2, 100),
    rows=st.integers(1, 120),
    blocks=st.integers(1, 3),
    add=st.booleans(),
    shape=st.integers(0, 2),
    seed=st.integers(0, 2**32),
)
@few
def test_a_range_of_rows_times_all_tokens_equals_numpy_and_leaves_other_rows_alone(
    kernel: Kernel, kind: T, n: int, rows: int, blocks: int, add: bool, shape: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    columns = blocks * unit(kind)
    begin, end = sorted(rng.integers(0, rows + 1, 2).tolist())
    at_row, extra = rng.integers(0, 9, 2).tolist()
    raw = model_blocks(kind, rows, columns, rng)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    before = rng.standard_normal((n, at_row + rows + extra)).astype(np.float32)
    expected = before.copy()
    expected[:, at_row + begin : at_row + end] = x.astype(np.float64) @ as_f32(kind, raw)[begin:end].T
    if add:
        expected[:, at_row + begin : at_row + end] += before[:, at_row + begin : at_row + end]
    set_shape(shape)
    try:
        got = product(kernel, kind, raw, x, begin, end, before, at_row, add)
    finally:
        set_shape(0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
def test_every_type_and_every_number_of_tokens_around_the_tiles_edges(kernel: Kernel, kind: T) -> None:
    rng = np.random.default_rng(1)
    raw = model_blocks(kind, 51, unit(kind), rng)  # a panel of 48 rows, and 3 that do not fill 8
    for n in (2, 15, 16, 17, 31, 32, 33, 48, 49, 64, 100):
        x = rng.standard_normal((n, unit(kind))).astype(np.float32)
        got = product(kernel, kind, raw, x, 0, 51, np.zeros((n, 51)), 0, False)
        np.testing.assert_allclose(got, x @ as_f32(kind, raw).T, rtol=0, atol=1e-5)


def test_a_rows_product_has_the_same_bits_whichever_range_of_rows_it_is_in(kernel: Kernel) -> None:
    rng = np.random.default_rng(2)
    raw, x = model_blocks(T.Q4_1, 60, 64, rng), rng.standard_normal((37, 64)).astype(np.float32)
    zeros = np.zeros((37, 60), np.float32)
    whole = product(kernel, T.Q4_1, raw, x, 0, 60, zeros, 0, True)
    for begin, end in ((0, 8), (8, 21), (21, 60)):
        part = product(kernel, T.Q4_1, raw, x, begin, end, zeros, 0, True)
        np.testing.assert_array_equal(part[:, begin:end], whole[:, begin:end])


@given(rows=st.integers(1, 40), columns=st.integers(1, 70), width=st.sampled_from([16, 32]), turned=st.booleans())
@few
def test_a_tile_is_multiplied_by_a_matrix_that_lies_either_way(
    kernel: Kernel, rows: int, columns: int, width: int, turned: bool
) -> None:
    rng = np.random.default_rng(rows * columns)
    w = rng.standard_normal((columns, rows) if turned else (rows, columns)).astype(np.float32)
    x = rng.standard_normal((columns, width)).astype(np.float32)
    out, given_x = Guarded(rows * width), Guarded(x)
    steps = (4, 4 * rows) if turned else (4 * columns, 4)
    kernel(-1, w.ctypes.data, columns, *steps, given_x.at, width, out.at, rows, 0, 0, 0)
    out.check()
    expected = (w.T if turned else w).astype(np.float64) @ x
    np.testing.assert_allclose(out.data.reshape(rows, width), expected, rtol=0, atol=2e-5)


def test_the_last_tile_is_half_as_wide_when_that_is_enough(kernel: Kernel) -> None:
    for n in range(2, 101):
        got = [kernel(0, 0, 32, 0, 0, 0, n, 0, 0, tile, 0, 0) for tile in range((n + 31) // 32)]
        assert got == widths(n)


@pytest.mark.parametrize("width", [16, 32])
def test_a_long_sum_keeps_its_digits(kernel: Kernel, width: int) -> None:
    rng = np.random.default_rng(4)
    columns, rows = 5000, 9
    w, x = rng.random((rows, columns), np.float32), rng.random((columns, width), np.float32)
    out, given_x = Guarded(rows * width), Guarded(x)
    kernel(-1, w.ctypes.data, columns, 4 * columns, 4, given_x.at, width, out.at, rows, 0, 0, 0)
    out.check()
    expected = w.astype(np.float64) @ x
    one_by_one = np.zeros((rows, width), np.float32)
    for k in range(columns):
        one_by_one += w[:, k, None] * x[k]
    error, naive = (np.abs(got.reshape(rows, width) - expected).mean() for got in (out.data, one_by_one))
    assert error < naive / 4
