"""Checks for exercises: each one recognises the right answer and the usual wrong ones.

    from teachllama import check
    check.kv_bytes(47_185_920, model.config, 1024, "f32")    # Right. ...
    check.kv_bytes(23_592_960, model.config, 1024, "f32")    # Not yet: ...

A check accepts an answer of any type, never raises because of it, and returns a `CheckResult`: `ok`, a `message` for
the learner, and the name of the `mistake` it recognised. `check.hint()` prints a second hint for the last one. There is
one module per notebook. The checks are defined in `teachllama.lessons`, one folder per lesson.
"""

from teachllama.lessons.n04_sessions.checks import (
    CheckResult,
    calculators,
    generate_with_stop,
    hint,
    kv_bytes,
    leak_puzzle,
    leak_released,
    sessions_that_fit,
)

__all__ = [
    "CheckResult",
    "calculators",
    "generate_with_stop",
    "hint",
    "kv_bytes",
    "leak_puzzle",
    "leak_released",
    "sessions_that_fit",
]
