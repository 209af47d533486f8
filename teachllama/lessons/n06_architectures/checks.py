"""The checks that notebook 06 calls."""

from __future__ import annotations

from teachllama.lessons.common.check import CheckResult, hint
from teachllama.lessons.common.judge import judge
from teachllama.lessons.n06_architectures.exercises import BARRIERS, LATENT, NEOX, ROUTER, SHARE

__all__ = ["CheckResult", "barriers", "hint", "latent_bytes", "neox_order", "route", "share_read"]


def neox_order(function: object) -> CheckResult:
    """Checks a learner's `f(head) -> head`: each rotating pair (2i, 2i+1) moved to (i, i + n/2)."""
    return judge(function, NEOX)


def route(function: object) -> CheckResult:
    """Checks a learner's `f(scores, k) -> weights`: one weight per expert, 0 for all but the k best, adding up to 1."""
    return judge(function, ROUTER)


def latent_bytes(function: object) -> CheckResult:
    """Checks a learner's `f(shape, nbytes) -> bytes per token`; shape is (layers, rank, rotating numbers, heads)."""
    return judge(function, LATENT)


def barriers(function: object) -> CheckResult:
    """Checks a learner's `f(program) -> number` of barriers, at which all threads meet.

    A program is a list of instructions (split, reads, writes): whether threads share the work, the buffers that it
    reads, and the buffer that it writes. A barrier is needed before an instruction that reads a buffer that a split
    instruction has written since the last barrier.
    """
    return judge(function, BARRIERS)


def share_read(function: object) -> CheckResult:
    """Checks a learner's `f(shape) -> share` of all weights that a token reads.

    shape is (experts, used, weights of one expert, weights outside the experts).
    """
    return judge(function, SHARE)
