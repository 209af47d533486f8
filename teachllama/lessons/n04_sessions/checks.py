"""The checks that notebook 04 calls."""

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.n04_sessions.exercises import calculators, generate_with_stop, kv_bytes, sessions_that_fit
from teachllama.lessons.n04_sessions.puzzle import leak_puzzle, leak_released

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
