"""Attention over a cache, for one token in chunks and for tiles of tokens, equals `ops.attention`."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teachllama import ops
from teachllama.kernels.fields import BLOCK, CHUNK, WIDTH
from tests.kernel_tools import Guarded, callable_from_python

pytest.importorskip("numba")
pytestmark = pytest.mark.slow

CHUNKS, TILE, REMEMBER = range(3)
Kernel = Callable[..., int]
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
lengths = st.sampled_from([16, 32, 48, 64])


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    from teachllama.kernels import attention

    @callable_from_python
    def run(
        op: int, q: int, heads: int, head_dim: int, keys: int, values: int, value_dim: int, begin: int, n: int,
        factor: float, out: int, parts: int, scratch: int, causal_from: int, window: int, width: int,
    ) -> int:  # fmt: skip
        if op == 2:
            attention.store_kv(q, 4 * width, n, out, begin)
            return 0
        if op == 1:
            attention.attend_tile(
                q, head_dim, keys, values, 0, value_dim, value_dim, begin, n, causal_from, window, factor,
                np.float32(0), np.float32(-1e30), out, width, scratch,
            )  # fmt: skip
            return 0
        chunks = (n + CHUNK - 1) // CHUNK
        step = 4 * (value_dim + 16)
        for c in range(chunks):
            at = c * CHUNK
            attention.attend_chunk(
                q, heads, head_dim, keys, values, 0, value_dim, value_dim, at, min(at + CHUNK, n), factor,
                np.float32(0), parts + c * step, chunks * step, scratch,
            )  # fmt: skip
        for h in range(heads):
            attention.join_chunks(
                parts + h * chunks * step, chunks, step, value_dim, np.float32(-1e30), out + 4 * h * value_dim
            )
        return 0

    return run


def table(rows: np.ndarray, kind: int | None = None) -> np.ndarray:
    """The page table of a cache of one head, with pages that are not adjacent."""
    kinds = {np.dtype(np.float32): T.F32, np.dtype(np.float16): T.F16}
    pages = [rows[at : at + BLOCK].copy() for at in range(0, len(rows), BLOCK)]
    kept.append(pages)
    return np.array([kind or kinds[rows.dtype], 0, *(page.ctypes.data for page in pages)], np.int64)


kept: list[object] = []  # references to pages: an address alone does not keep them alive


def one_token(kernel: Kernel, q: np.ndarray, keys: np.ndarray, values: np.ndarray, factor: float) -> np.ndarray:
    """q (heads, d), keys (n, d), values (n, dv) -> (heads, dv)."""
    (heads, d), (n, dv) = q.shape, values.shape
    out, parts = Guarded(heads * dv), Guarded(heads * -(-n // CHUNK) * (dv + 16))
    scratch, given_q = Guarded(heads * CHUNK + BLOCK * max(d, dv)), Guarded(q)  # named to stay alive
    given_keys, given_values = table(keys), table(values)
    kernel(
        CHUNKS, given_q.at, heads, d, given_keys.ctypes.data, given_values.ctypes.data, dv, 0, n,
        float(factor), out.at, parts.at, scratch.at, 0, 0, 0,
    )  # fmt: skip
    for buffer in (out, parts, scratch, given_q):
        buffer.check()
    return out.data.reshape(heads, dv)


def tile(
    kernel: Kernel, q: np.ndarray, keys: np.ndarray, values: np.ndarray, factor: float, own: int, window: int,
    begin: int = 0,
) -> np.ndarray:  # fmt: skip
    """One head of `width` tokens: q (width, d), keys (n, d), values (n, dv), from `begin` on -> (width, dv)."""
    (width, d), (n, dv) = q.shape, values.shape
    given_q, out, scratch = Guarded(q.T), Guarded(dv * width), Guarded(n * width + BLOCK * max(d, dv))
    given_keys, given_values = table(keys), table(values)
    kernel(
        TILE, given_q.at, 1, d, given_keys.ctypes.data, given_values.ctypes.data, dv, begin, n,
        float(factor), out.at, 0, scratch.at, own, window, width,
    )  # fmt: skip
    for buffer in (given_q, out, scratch):
        buffer.check()
    return out.data.reshape(dv, width).T


def cached(rng: np.random.Generator, n: int, d: int, half: bool) -> np.ndarray:
    return rng.standard_normal((n, d)).astype(np.float16 if half else np.float32)


def reference(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, factor: float, n_ahead: int, window: int | None
) -> np.ndarray:
    """Attention in float64; q is (n, heads, d), all heads of one group."""
    with np.errstate(invalid="ignore"):
        return ops.attention(
            q.astype(np.float64),
            keys[None].astype(np.float64),
            values[None].astype(np.float64),
            factor,
            n_ahead,
            window,
        )


@given(
    n=st.one_of(st.integers(1, 1200), st.sampled_from([63, 64, 65, 255, 256, 257, 511, 512, 513, 1024])),
    heads=st.integers(1, 5),
    d=lengths,
    dv=lengths,
    half=st.booleans(),
    seed=st.integers(0, 2**32),
)
@few
def test_one_token_over_several_chunks_equals_the_reference(
    kernel: Kernel, n: int, heads: int, d: int, dv: int, half: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q, keys, values = cached(rng, heads, d, False), cached(rng, n, d, half), cached(rng, n, dv, half)
    expected = reference(q[None], keys, values, d**-0.5, n - 1, None).reshape(heads, dv)
    np.testing.assert_allclose(one_token(kernel, q, keys, values, d**-0.5), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
def test_one_key_that_outweighs_all_others_is_found_in_whichever_chunk_it_lies(kernel: Kernel, half: bool) -> None:
    rng = np.random.default_rng(1)
    keys, values = cached(rng, 3 * CHUNK + 5, 32, half), cached(rng, 3 * CHUNK + 5, 32, half)
    for at in (0, CHUNK - 1, CHUNK, 2 * CHUNK + 17, 3 * CHUNK + 4):
        for sign in (1, -1):  # scores of several thousand, above or below all others
            q = 500 * sign * keys[at].astype(np.float32)[None]
            got = one_token(kernel, q, keys, values, 1.0)
            expected = reference(q[None], keys, values, 1.0, len(keys) - 1, None)
            np.testing.assert_allclose(got, expected.reshape(1, -1), rtol=0, atol=1e-4)


@given(
    ahead=st.one_of(st.integers(0, 700), st.sampled_from([0, 1, 63, 64, 255, 256, 512])),
    n=st.integers(1, WIDTH),
    window=st.sampled_from([0, 0, 1, 2, 8, 31, 32, 33, 64, 300]),
    d=lengths,
    dv=lengths,
    half=st.booleans(),
    seed=st.integers(0, 2**32),
)
@few
def test_a_tile_of_tokens_sees_what_it_may_and_nothing_else(
    kernel: Kernel, ahead: int, n: int, window: int, d: int, dv: int, half: bool, seed: int
) -> None:
    """n tokens after `ahead` positions, in a tile that may be wider than n, like the last tile of a prompt."""
    rng = np.random.default_rng(seed)
    width = WIDTH if n > 16 else 16
    keys, values = cached(rng, ahead + n, d, half), cached(rng, ahead + n, dv, half)
    q = rng.standard_normal((width, d)).astype(np.float32)
    first = max(0, ahead + 1 - window) if window else 0  # as kernels/run.py skips positions outside the window
    got = tile(kernel, q, keys, values, d**-0.5, ahead, window, first)
    expected = reference(q[:n, None], keys, values, d**-0.5, ahead, window or None)
    np.testing.assert_allclose(got[:n], expected, rtol=0, atol=1e-5)
    assert np.isfinite(got).all(), "lanes past the last token must not turn into NaN, which is slow"


def test_hidden_keys_have_no_influence_however_large_they_are(kernel: Kernel) -> None:
    rng = np.random.default_rng(2)
    q, keys, values = (cached(rng, 32, 16, False) for _ in range(3))
    before = tile(kernel, q, keys, values, 0.25, 0, 8)
    keys[20], values[20] = 1e15, 1e15
    after = tile(kernel, q, keys, values, 0.25, 0, 8)
    np.testing.assert_array_equal(after[:20], before[:20])
    np.testing.assert_array_equal(after[28:], before[28:])


@given(
    n=st.integers(1, 5),
    step=st.sampled_from([1, 16, 32]),
    kind=st.sampled_from([T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0]),
    seed=st.integers(0, 2**32),
)
@few
def test_a_heads_numbers_are_stored_as_the_gguf_package_stores_them(
    kernel: Kernel, n: int, step: int, kind: T, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((32 * n, step)).astype(np.float32) * np.float32(10.0) ** rng.integers(-6, 4)
    x[0] = 1e-7  # a subnormal float16
    if seed % 3 == 0:
        x[:32] = 0
    elif seed % 3 == 1:  # multiples of 0.5, and the largest magnitude with both signs
        x[:32] = rng.integers(-8, 9, (32, step)) / 2
        x[5:7] = [[127], [-127]]
    expected = gguf.quants.quantize(np.ascontiguousarray(x[:, 0]), kind).view(np.uint8)
    out, given_x = Guarded(-(-len(expected) // 4)), Guarded(x)
    kernel(REMEMBER, given_x.at, 0, 0, 0, 0, 0, int(kind), 32 * n, 0.0, out.at, 0, 0, 0, 0, step)
    out.check()
    np.testing.assert_array_equal(out.data.view(np.uint8)[: len(expected)], expected)
