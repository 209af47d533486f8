"""Typed look-ups in a GGUF file's metadata, for the model's spec and the KV formula.

A missing or wrong value is a GGUFError that names its key. A reader records which keys were looked up, so that unread
ones can be reported. Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from teachllama.errors import GGUFError
from teachllama.whole_numbers import is_whole

MAX_LAYERS = 10_000  # llama.cpp stops at 512
MAX_LENGTH = 2**24  # far above the heads, lengths and windows of real models; products cannot overflow


class Metadata:
    """Look-ups in one architecture's metadata; keys are given without the architecture's prefix.

    Args:
        mapping: key -> value, as `GGUFFile.metadata` has it; arrays may be NumPy arrays or lists.
        arch: the architecture; by default the value of `general.architecture`.
    """

    def __init__(self, mapping: Mapping[str, Any], arch: str | None = None):
        found = mapping.get("general.architecture") if arch is None else arch
        if not isinstance(found, str) or not found:
            raise GGUFError(
                f"metadata 'general.architecture' is {reprlib.repr(found)}; expected an architecture's name, such as "
                "'llama'"
            )
        self.mapping, self.arch, self.n_layers, self.n_trunk = mapping, found, 0, 0
        self.read: set[str] = set()

    def raw(self, key: str) -> Any:
        """The value, unchecked; None if the key is absent."""
        key = f"{self.arch}.{key}"
        self.read.add(key)
        return self.mapping.get(key)

    def has(self, key: str) -> bool:
        """Whether the key is present."""
        return self.raw(key) is not None

    def fail(self, key: str, found: object, expected: str) -> GGUFError:
        """The error for a value that isn't what was expected."""
        return GGUFError(f"metadata {f'{self.arch}.{key}'!r} is {reprlib.repr(found)}; expected {expected}")

    def _value(self, key: str, default: object) -> Any:
        value = self.raw(key)
        if value is None and default is None:
            raise GGUFError(f"the metadata has no {f'{self.arch}.{key}'!r}, which every {self.arch} model needs")
        return default if value is None else value

    def number(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_LENGTH) -> int:
        """A whole number; without a default the key is required."""
        value = self._value(key, default)
        if not is_whole(value, least, most):
            raise self.fail(key, value, f"a whole number from {least} to {most}")
        return int(value)

    def real(self, key: str, default: float | None = None, *, least: float = 0.0, most: float = 1e12) -> float:
        """A finite number; without a default the key is required."""
        value = self._value(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not least <= value <= most:
            raise self.fail(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.fail(key, value, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, value, "true or false")
        return value

    def strings(self, key: str, most: int) -> Sequence[str]:
        """An array of at most `most` strings."""
        value = self.raw(key)
        if (
            not isinstance(value, Sequence)
            or isinstance(value, (str, bytes))
            or (value and not isinstance(value[0], str))
        ):
            found = "nothing" if value is None else type(value).__name__
            raise GGUFError(f"metadata {f'{self.arch}.{key}'!r}: expected an array of strings, found {found}")
        if len(value) > most:
            raise GGUFError(f"metadata {f'{self.arch}.{key}'!r} has {len(value)} strings; at most {most} are accepted")
        return value

    def array(self, key: str, n: int, kinds: str) -> Any:
        """A NumPy array of n numbers whose `dtype.kind` is one of `kinds`; None if the key is absent."""
        value = self.raw(key)
        if value is not None and (getattr(value, "shape", ()) != (n,) or value.dtype.kind not in kinds):
            found = f"{value.size} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise GGUFError(f"metadata {f'{self.arch}.{key}'!r}: expected {n} numbers, found {found}")
        return value

    def per_layer(self, key: str, default: Sequence[int], *, most: int = MAX_LENGTH) -> Sequence[int]:
        """One whole number per layer, from a scalar (the same for all) or from an array of one per layer."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, (bool, int, float, str)) or not hasattr(value, "__len__"):
            return [self.number(key, least=0, most=most)] * self.n_layers
        if len(value) not in (self.n_layers, self.n_trunk):
            raise self.fail(key, value, f"{self.n_layers} entries, one per layer; found {len(value)}")
        items = value.tolist() if hasattr(value, "tolist") else list(value)  # a NumPy array, without importing NumPy
        for item in items:
            if not isinstance(item, int) or not 0 <= item <= most:
                raise self.fail(key, item, f"whole numbers from 0 to {most}, one per layer")
        return [int(item) for item in items] + [0] * (self.n_layers - len(items))

    def flags(self, key: str) -> Sequence[int] | None:
        """One 0 or 1 per layer; None if the file has no such array."""
        value = self.raw(key)
        return None if value is None or isinstance(value, int) else self.per_layer(key, (), most=1)
