"""Metadata for the copies of small models that lessons forge: a value gets a type that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama.gguf_file import StringArray

if TYPE_CHECKING:
    from gguf import GGUFWriter


def add_metadata(writer: GGUFWriter, key: str, value: Any) -> None:
    """Adds one key, as `GGUFFile.metadata` has it, to a file that is being written."""
    if key == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, StringArray):
        writer.add_array(key, [value.bytes_at(i) for i in range(len(value))])
    elif isinstance(value, np.ndarray):
        writer.add_array(key, value.tolist())
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        kinds = (writer.add_uint32, 0, 2**32), (writer.add_int64, -(2**63), 2**63), (writer.add_uint64, 0, 2**64)
        next(add for add, low, end in kinds if low <= value < end)(key, value)
    elif isinstance(value, float):
        writer.add_float64(key, value) if np.float32(value) != value else writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
