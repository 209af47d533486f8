"""Parses numbers as people write them: 4096, 4,096, 4_096, 32k; 16G, 16GB, 16GiB, 1.5T. Used by all options.

Counts (positions, tokens, sessions): k is 1,024 and M is 1,048,576, as in model cards: a context of 32k is 32,768.
Sizes: k, M, G and T are powers of 1,000; Ki, Mi, Gi and Ti powers of 1,024. A B at the end changes nothing.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from fractions import Fraction

from teachllama.errors import ParameterError

COUNTS = {"": 1, "K": 1 << 10, "KI": 1 << 10, "M": 1 << 20, "MI": 1 << 20}
SIZES = {"": 1} | {p: 1000**i for i, p in enumerate("KMGT", 1)} | {f"{p}I": 1024**i for i, p in enumerate("KMGT", 1)}
SIZES |= {f"{unit}B": n for unit, n in SIZES.items()}
_NUMBER = re.compile(
    r"\s*([+-]?)(\d{1,3}(?:,\d{3})+|\d{1,3}(?:_\d{3})+|\d{1,18})(\.\d{1,9})?\s*([A-Za-z]{0,3})\s*", re.ASCII
)


def number_from_text(text: str, units: Mapping[str, int]) -> Fraction | None:
    """The exact number, multiplied by its unit; None if `text` is not a number."""
    match = _NUMBER.fullmatch(text)
    if match is None or match[4].upper() not in units:
        return None
    digits = match[2].replace(",", "").replace("_", "") + (match[3] or "")
    return Fraction(match[1] + digits) * units[match[4].upper()]


def count_from_text(option: str, text: str, least: int = 1, most: int = 2**40) -> int:
    """A whole number of positions, tokens or sessions from `least` to `most`.

    Raises:
        ParameterError: `text` is not such a number; the message names `option`.
    """
    value = number_from_text(text, COUNTS)
    if value is None or value.denominator != 1 or not least <= value <= most:
        shown = str(value) if value is not None and value.denominator == 1 else reprlib.repr(text)
        raise ParameterError(
            f"{option} is {shown}; expected a whole number from {least:,} to {most:,}, "
            "such as 4096, 4,096 or 32k (32 x 1,024)"
        )
    return int(value)


def nbytes_from_text(text: str, option: str = "--memory") -> int:
    """Bytes from '16GB' (16 * 10^9), '16G', '16GiB' (16 * 2^30), '1.5 TB' or '123456789'.

    Raises:
        ParameterError: `text` is not a size; the message names `option`.
    """
    value = number_from_text(text, SIZES)
    if value is None or value < 1:
        raise ParameterError(
            f"{option} is {reprlib.repr(text)}; expected a size such as 16G or 16GB (16 * 10^9 bytes), "
            "16Gi or 16GiB (16 * 2^30)"
        )
    return int(value)
