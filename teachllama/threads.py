"""The number of threads for arithmetic, and the safety of NumPy's matrix products under `os.fork`."""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter

from teachllama.whole_numbers import whole

_limits: object | None = None  # keeps the limit in force
_n_threads: int | None = None


def get_num_threads() -> int:
    """How many threads compiled kernels use: the number set, or the physical cores this process may run on.

    `OMP_NUM_THREADS`, which other libraries use too, is an upper limit for the latter: servers set it for each user.
    """
    if _n_threads is not None:
        return _n_threads
    return _default()


@functools.cache
def _default() -> int:
    import psutil  # imported late, as threadpoolctl below: loading a model needs neither

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
    n = whole("number of threads", n, 1, 1024)
    from threadpoolctl import threadpool_limits

    _n_threads = n
    _limits = threadpool_limits(limits=n, user_api="blas")


MAX_WAIT_S = 60.0


class _Products:
    """For `with products:` around NumPy's matrix products: `os.fork` in another thread waits for running ones.

    OpenBLAS ends its threads when the process forks. In the parent, a product that was using them would never return.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: Counter[int] = Counter()  # number of running products, by thread
        self._n_forking = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._in_child)

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._n_forking and me not in self._running:
                self._changed.wait()
            self._running[me] += 1

    def __exit__(self, *exc: object) -> None:
        me = threading.get_ident()
        with self._changed:
            self._running[me] -= 1
            self._running += Counter()  # drops counts of 0
            self._changed.notify_all()

    def _before(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._n_forking += 1
            self._changed.wait_for(lambda: set(self._running) <= {me}, MAX_WAIT_S)

    def _after(self) -> None:
        with self._changed:
            self._n_forking -= 1
            self._changed.notify_all()

    def _in_child(self) -> None:
        me = threading.get_ident()
        self._changed, self._n_forking = threading.Condition(), 0
        self._running = Counter({me: self._running[me]}) + Counter()


products = _Products()
