"""Checks for whole numbers in a range. NumPy's integers count; a bool does not, though it is an int in Python."""

from __future__ import annotations

import operator
import reprlib
from typing import Any

from teachllama.errors import ParameterError, TeachLlamaError


def is_whole(value: Any, least: int, most: int | None = None) -> bool:
    """Whether `value` is an integer, but not a bool, from `least` to `most` (None: no upper limit)."""
    if isinstance(value, bool):
        return False
    try:
        number = operator.index(value)
    except TypeError:
        return False
    return least <= number and (most is None or number <= most)


def whole(
    name: str, value: Any, least: int, most: int | None = None, *, error: type[TeachLlamaError] = ParameterError
) -> int:
    """`value` as an int from `least` to `most`.

    Raises:
        error: `value` is not such a number; the message gives `name`, what was found and what was expected.
    """
    if not is_whole(value, least, most):
        end = "or more" if most is None else f"to {most}"
        begin = f", {least}" if most is None else f" from {least}"
        raise error(f"{name} is {reprlib.repr(value)}; expected a whole number{begin} {end}")
    return operator.index(value)
