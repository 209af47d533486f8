"""Writes modified copies of model files for lessons: other metadata, other tensor names, fewer tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama.gguf_file import StringArray, open_gguf

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    change: Callable[[dict[str, Any]], None] = lambda metadata: None,
    rename: Callable[[str], str | None] = str,
) -> Path:
    """Writes a copy of a model file.

    Args:
        change: takes the metadata as a dict and modifies it.
        rename: a tensor's name -> its name in the copy, or None to omit it.
    """
    from gguf import GGUFWriter

    with open_gguf(source) as file:
        metadata = dict(file.metadata.items())
        change(metadata)
        writer = GGUFWriter(os.fspath(target), str(metadata.pop("general.architecture")), use_temp_file=False)
        try:
            for key, value in metadata.items():
                _add(writer, key, value)
            for info in file.tensors.values():
                if (name := rename(info.name)) is not None:
                    data = file.tensor_bytes(info.name).reshape(*info.shape[:-1], -1)
                    writer.add_tensor(name, np.array(data), raw_dtype=info.type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return Path(target)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Adds one key, with a type that can hold its value: a value of `GGUFFile.metadata`, or a list."""
    if key == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, StringArray):
        writer.add_array(key, [value.bytes_at(i) for i in range(len(value))])
    elif isinstance(value, np.ndarray | list):
        writer.add_array(key, list(value) if isinstance(value, list) else value.tolist())
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        kinds = (writer.add_uint32, 0, 2**32), (writer.add_int64, -(2**63), 2**63), (writer.add_uint64, 0, 2**64)
        next(add for add, low, end in kinds if low <= value < end)(key, value)
    elif isinstance(value, float):
        writer.add_float64(key, value) if np.float32(value) != value else writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
