"""How many threads the arithmetic uses."""

from __future__ import annotations

import functools
import os

import psutil

from teachllama.errors import ParameterError

_limits: object | None = None  # keeps the limit in force
_n_threads: int | None = None


def get_num_threads() -> int:
    """How many threads compiled kernels use: what was set, or the physical cores this process may run on.

    `OMP_NUM_THREADS`, which other libraries heed too, is an upper limit of the latter: servers set it for each user.
    """
    if _n_threads is not None:
        return _n_threads
    return _default()


@functools.cache
def _default() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (most := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        allowed = min(allowed, int(most))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def set_num_threads(n: int) -> None:
    """Sets the number of threads of compiled kernels and of NumPy's matrix products, for the whole process.

    For NumPy this works on OpenBLAS, MKL and BLIS, through threadpoolctl. Apple's Accelerate decides for itself.

    Raises:
        ParameterError: n is not a whole number from 1 to 1024.
    """
    global _limits, _n_threads
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1024:
        raise ParameterError(f"number of threads is {n!r}; expected a whole number from 1 to 1024")
    from threadpoolctl import threadpool_limits

    _n_threads = n
    _limits = threadpool_limits(limits=n, user_api="blas")
