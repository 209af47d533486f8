"""The two limits of a machine, measured by two kernels of a few lines: bytes per second, operations per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from teachllama.kernels.simd import fma, hsum, load, splat, zeros16


@njit(nogil=True)
def read(address: int, nbytes: int) -> float:
    """Sums float32 numbers, 16 at a time: little arithmetic, so that memory is the limit."""
    a = b = c = d = zeros16()
    for at in range(address, address + nbytes, 256):
        a, b = a + load(at), b + load(at + 64)
        c, d = c + load(at + 128), d + load(at + 192)
    return hsum((a + b) + (c + d))


@njit(nogil=True)
def multiply_add(rounds: int) -> float:
    """Reads no memory: eight independent chains of a * x + y on 16 numbers each, so that no chain waits for another."""
    x, y = splat(0.999), splat(0.001)
    a = b = c = d = e = f = g = h = zeros16()
    for _ in range(rounds):
        a, b, c, d = fma(a, x, y), fma(b, x, y), fma(c, x, y), fma(d, x, y)
        e, f, g, h = fma(e, x, y), fma(f, x, y), fma(g, x, y), fma(h, x, y)
    return hsum(((a + b) + (c + d)) + ((e + f) + (g + h)))


def best_seconds(kernel: Callable[..., Any], arguments: Sequence[tuple[int, ...]], repeats: int = 7) -> float:
    """The best time in which all threads run the kernel. Not the median, because a limit is the best possible."""
    with ThreadPoolExecutor(len(arguments)) as pool:

        def run() -> None:
            list(pool.map(lambda a: kernel(*a), arguments))

        run()  # compiles
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return min(times)


def measure_limits(n_threads: int, nbytes: int = 1 << 28, rounds: int = 1 << 20) -> tuple[float, float]:
    """Bytes per second from memory, and floating-point operations per second, with `n_threads` threads."""
    memory = np.ones(nbytes // 4, np.float32)
    share = nbytes // n_threads // 256 * 256
    parts = [(memory.ctypes.data + i * share, share) for i in range(n_threads)]
    bandwidth = share * n_threads / best_seconds(read, parts)
    operations = 8 * 16 * 2 * rounds * n_threads  # 8 chains of 16 numbers, a multiplication and an addition each
    flops = operations / best_seconds(multiply_add, [(rounds,)] * n_threads)
    assert read(memory.ctypes.data, 1024) == 256  # 256 ones: the kernel does read memory
    return bandwidth, flops
