"""How far two sequences agree: tokens of conversations, characters of texts."""

from __future__ import annotations

from collections.abc import Sequence


def agreeing(a: Sequence[object], b: Sequence[object]) -> int:
    """How many items at their beginnings are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
