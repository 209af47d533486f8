"""How many threads the arithmetic uses."""

from __future__ import annotations

from teachllama.errors import ParameterError

_limits: object | None = None  # keeps the limit in force


def set_num_threads(n: int) -> None:
    """Sets the number of threads of NumPy's matrix products, for the whole process.

    Works on OpenBLAS, MKL and BLIS, through threadpoolctl. Apple's Accelerate decides for itself.

    Raises:
        ParameterError: n is not a whole number from 1 to 1024.
    """
    global _limits
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1024:
        raise ParameterError(f"number of threads is {n!r}; expected a whole number from 1 to 1024")
    from threadpoolctl import threadpool_limits

    _limits = threadpool_limits(limits=n, user_api="blas")
