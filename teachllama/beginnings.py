"""The common prefix of two sequences: tokens of conversations, or characters of texts."""

from __future__ import annotations

from collections.abc import Sequence


def agreeing(a: Sequence[object], b: Sequence[object]) -> int:
    """The length of their common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
