"""Writes a copy of a GGUF file with its matrices in another type: to see what a type costs, and what it saves.

Quantizers come from the `gguf` package. Rows go through them a part at a time, so that memory stays small whatever the
model. A copy is never better than its source: what the source's own quantization lost is not in the file to be copied.

Knows nothing of models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama.errors import ParameterError
from teachllama.gguf_file import GGUFFile, StringArray, TensorInfo, open_gguf

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

CHUNK = 1 << 20  # weights at a time: quantizers' scratch memory is several times this
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # those that gguf quantizes to, in NumPy


def requantize(source: str | os.PathLike[str], target: str | os.PathLike[str], kind: str) -> Path:
    """Writes `target`, a copy of the model `source` with its matrices as `kind`; norms stay as they are.

    A matrix whose rows are not a multiple of the type's block stays as it is too.

    Args:
        source: a .gguf file.
        target: where the copy goes; a file that is there is replaced.
        kind: one of `KINDS`.

    Raises:
        ParameterError: kind is another, or the target is the source.
        GGUFError: the source cannot be read, or is damaged.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    if kind not in KINDS:
        raise ParameterError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    target, wanted = Path(target), GGMLQuantizationType[kind]
    with open_gguf(source) as file:
        if target.exists() and target.samefile(source):
            raise ParameterError(f"{target} is the source itself, which stays as it is; give the copy another name")
        writer = GGUFWriter(target, str(file.metadata.get("general.architecture", "")), use_temp_file=False)
        try:
            for key, value in file.metadata.items():
                # The architecture is written already; the file's type is another now, and is only ever displayed; a
                # copy of a split model is one file.
                if key not in ("general.architecture", "general.file_type") and not key.startswith("split."):
                    _add(writer, key, value)
            types = {name: _type_of(info, wanted) for name, info in file.tensors.items()}
            for name, info in file.tensors.items():
                nbytes = info.n_elements // info.shape[-1] * _row_nbytes(info, types[name])
                writer.add_tensor_info(name, info.shape, np.dtype(np.float32), nbytes, raw_dtype=types[name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, info in file.tensors.items():
                writer.write_tensor_data(_converted(file, info, types[name]))
        finally:
            writer.close()
    return target


def _type_of(info: TensorInfo, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    from gguf import GGML_QUANT_SIZES

    return wanted if len(info.shape) > 1 and info.shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else info.type


def _row_nbytes(info: TensorInfo, kind: GGMLQuantizationType) -> int:
    from gguf import GGML_QUANT_SIZES

    weights, nbytes = GGML_QUANT_SIZES[kind]
    return info.shape[-1] // weights * nbytes


def _converted(file: GGUFFile, info: TensorInfo, kind: GGMLQuantizationType) -> np.ndarray:
    """A tensor's bytes as another type: uint8 (rows, bytes a row)."""
    from gguf.quants import dequantize, quantize

    rows = info.n_elements // info.shape[-1]
    raw = file.tensor_bytes(info.name).reshape(rows, -1)
    if kind == info.type:
        return raw
    out = np.empty((rows, _row_nbytes(info, kind)), np.uint8)
    step = max(1, CHUNK // info.shape[-1])
    for i in range(0, rows, step):
        part = dequantize(raw[i : i + step], info.type)
        out[i : i + step] = quantize(part, kind).view(np.uint8)
    return out


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
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
