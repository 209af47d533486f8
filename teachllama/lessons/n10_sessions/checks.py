"""The checks that notebook 10 calls."""

from __future__ import annotations

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge
from teachllama.lessons.n10_sessions.exercises import CRASH, DECIDE, FINGERPRINT, SIZE

__all__ = ["CheckResult", "after_crash", "decide", "file_bytes", "fingerprint", "hint"]


def file_bytes(function: object) -> CheckResult:
    """Checks a learner's `f(shape, nbytes) -> bytes`; shape is (layers, kv_dim, n_past, seq_len, vocab_size)."""
    return judge(function, SIZE)


def fingerprint(function: object) -> CheckResult:
    """Checks a learner's `f(tensors) -> text`; `tensors` maps names to bytes.

    Two models may have the same text only if they have the same names with the same bytes, in any order.
    """
    return judge(function, FINGERPRINT)


def after_crash(function: object) -> CheckResult:
    """Checks a learner's `f(steps) -> "old", "new", "half" or "missing"`: the state of file "talk" after a crash.

    A step is ("write", name), ("flush", name) or ("move", from, to); the crash comes after the last one.
    """
    return judge(function, CRASH)


def decide(function: object) -> CheckResult:
    """Checks a learner's `f(file, here) -> "restore", "rebuild" or "refuse"`; the notebook describes both dicts."""
    return judge(function, DECIDE)
