"""Normalization, rotation and gating equal `ops.py`, for one token and for tiles of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teachllama import ops
from tests.kernel_tools import Guarded, callable_from_python

pytest.importorskip("numba")
pytestmark = pytest.mark.slow

RMSNORM, RMSNORM_TILE, ROPE, ROPE_TILE, GATE, ADD, SCALE, EXP = range(8)
Kernel = Callable[..., int]
few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32)
width_or_one = st.sampled_from([1, 16, 32])


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    from teachllama.kernels import elementwise as e
    from teachllama.kernels.simd import exp, load, store

    @callable_from_python
    def run(op: int, x: int, y: int, n: int, out: int, number: float, flag: int, width: int) -> int:
        if op == 0:
            e.rmsnorm(x, y, n, number, out)
        elif op == 1:
            e.rmsnorm_tile(x, y, n, number, out, width)
        elif op == 2:
            e.rope(x, width, np.int64(0), y, n, flag != 0, x)
        elif op == 3:
            e.rope_tile(x, n, np.int64(0), y, n, flag != 0, x, width)
        elif op == 4:
            e.gate(x, y, n, flag, out)
        elif op == 5:
            e.add(x, y, n, np.float32(number), x)
        elif op == 6:
            e.scale(x, n, number)
        else:
            for i in range(0, 4 * n, 64):
                store(out + i, exp(load(x + i)))
        return 0

    def call(
        op: int, x: Guarded, y: Guarded | None = None, out: Guarded | None = None, *, n: int, number: float = 0,
        flag: bool = False, width: int = 0,
    ) -> None:  # fmt: skip
        buffers = [b for b in (x, y, out) if b is not None]
        run(op, x.at, y.at if y else 0, n, out.at if out else 0, float(number), int(flag), width)
        for buffer in buffers:
            buffer.check()

    return call


@given(width=width_or_one, size=st.integers(1, 70), magnitude=st.sampled_from([1e-12, 1e-3, 1, 1e6]), seed=seeds)
@few
def test_rmsnorm_equals_the_reference(kernel: Kernel, width: int, size: int, magnitude: float, seed: int) -> None:
    n, rng = 16 * size, np.random.default_rng(seed)
    x = (magnitude * rng.standard_normal((width, n))).astype(np.float32)
    weight = rng.standard_normal(n).astype(np.float32)
    given_x, out = Guarded(x.T), Guarded(x.size)
    op = RMSNORM if width == 1 else RMSNORM_TILE
    kernel(op, given_x, Guarded(weight), out, n=n, number=1e-5, width=width)
    got = out.data.reshape(n, width).T
    np.testing.assert_allclose(got, ops.rmsnorm(x.astype(np.float64), weight, 1e-5), rtol=2e-6, atol=1e-30)
    kernel(op, given_x, Guarded(weight), given_x, n=n, number=1e-5, width=width)  # in place
    np.testing.assert_array_equal(given_x.data, out.data)


def test_rmsnorm_of_zeros_is_zeros(kernel: Kernel) -> None:
    for width in (1, 16, 32):
        x = Guarded(np.zeros(64 * width))
        kernel(RMSNORM if width == 1 else RMSNORM_TILE, x, Guarded(np.ones(64)), x, n=64, number=1e-6, width=width)
        assert not x.data.any()


@given(
    width=width_or_one,
    pairs=st.integers(1, 64),
    more=st.integers(0, 20),
    halves=st.booleans(),
    start=st.integers(0, 9999),
)
@few
def test_rope_equals_the_reference_in_both_pairings_and_leaves_the_rest_of_a_head_alone(
    kernel: Kernel, width: int, pairs: int, more: int, halves: bool, start: int
) -> None:
    rng = np.random.default_rng(start)
    x = rng.standard_normal((width, 1, 2 * pairs + more)).astype(np.float32)  # one head of `width` tokens
    angles = ops.rope_angles(np.arange(start, start + width), 2 * pairs, 10000.0, 1.0, None)
    table = np.concatenate([angles.real, angles.imag], axis=2)[:, 0].T  # (2 * pairs, width)
    head = Guarded(x[:, 0].T)
    kernel(ROPE if width == 1 else ROPE_TILE, head, Guarded(table), n=pairs, flag=halves, width=width)
    expected = ops.rope(x, angles, "neox" if halves else "interleaved")[:, 0]
    np.testing.assert_allclose(head.data.reshape(-1, width).T, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gelu", [False, True], ids=["silu", "gelu"])
def test_gates_equal_the_reference_everywhere(kernel: Kernel, gelu: bool) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4000), np.linspace(-300, 300, 2000), [0, -0.0, 1e-30, -1e-30] * 4])
    gates, ups = Guarded(x), Guarded(np.random.default_rng(1).standard_normal(len(x)))
    out = Guarded(len(x))
    kernel(GATE, gates, ups, out, n=len(x), flag=gelu)
    exact = gates.data.astype(np.float64)
    with np.errstate(over="ignore"):
        if gelu:
            exact = 0.5 * exact * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)))
        else:
            exact = ops.silu(exact)
    np.testing.assert_allclose(out.data, exact * ups.data, rtol=3e-5, atol=1e-6)
    assert np.isfinite(out.data).all()
    kernel(GATE, gates, ups, gates, n=len(x), flag=gelu)  # in place
    np.testing.assert_array_equal(gates.data, out.data)


def test_exp_is_right_to_two_units_in_the_last_place_and_stays_finite(kernel: Kernel) -> None:
    x = np.concatenate([np.linspace(-86.9, 87.9, 20000), [0, -0.0, 1e-30, -1e-8] * 4]).astype(np.float32)
    out = Guarded(len(x))
    kernel(EXP, Guarded(x), out=out, n=len(x))
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(out.data - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    kernel(EXP, Guarded(np.float32([-1e30, -np.inf, -104, -88] * 4)), out=out, n=16)
    assert ((out.data[:16] >= 0) & (out.data[:16] < 1e-37)).all()
    kernel(EXP, Guarded(np.float32([89, 1e4, 1e30, np.inf] * 4)), out=out, n=16)
    assert (out.data[:16] > 1e38).all()
    assert np.isfinite(out.data[:16]).all()


@given(size=st.integers(1, 50), seed=seeds)
@few
def test_additions_and_scaling_are_numpys(kernel: Kernel, size: int, seed: int) -> None:
    n, rng = 32 * size, np.random.default_rng(seed)
    a, b = rng.standard_normal((2, n)).astype(np.float32)
    x, y = Guarded(a), Guarded(b)
    kernel(ADD, x, y, n=n, number=1)
    np.testing.assert_array_equal(x.data, a + b)
    kernel(SCALE, y, n=n, number=25.298)
    np.testing.assert_allclose(y.data, b * 25.298, rtol=2e-7)
