"""Exercises that check themselves: each check knows the right answer and the usual wrong ones.

    from teachllama import check
    check.kv_bytes(47_185_920, model.config, 1024, "f32")    # Right. ...
    check.kv_bytes(23_592_960, model.config, 1024, "f32")    # Not yet: ...

A check takes an answer of any type, never raises on its account, and returns a `CheckResult`: `ok`, a `message` for the
learner, and the name of the `mistake` it recognised. One module a notebook; `core.py` has what they share.
"""

from teachllama.check.core import CheckResult
from teachllama.check.notebook04 import (
    calculators,
    generate_with_stop,
    kv_bytes,
    leak_puzzle,
    leak_released,
    sessions_that_fit,
)

__all__ = [
    "CheckResult",
    "calculators",
    "generate_with_stop",
    "kv_bytes",
    "leak_puzzle",
    "leak_released",
    "sessions_that_fit",
]
