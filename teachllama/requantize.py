"""Writes a copy of a GGUF file with its matrices in another type: to see what a type costs, and what it saves.

Quantizers come from the `gguf` package. Rows are converted in parts, so that little memory is needed for any model.
Metadata is copied byte for byte, except for the file's type and quantization version, and the keys of a split model.
The copy is written to a file beside the target, and moved into place when it is complete. A copy is never better than
its source: it cannot restore what the source's own quantization lost.

Independent of models. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from teachllama.errors import GGUFError, ParameterError
from teachllama.files import replacing
from teachllama.gguf_file import MAGIC, MAX_KEY_BYTES, GGUFFile, Parser, TensorInfo, open_gguf

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

CHUNK = 1 << 20  # weights at a time: quantizers' scratch memory is several times this
# Types that the gguf package can quantize to, in NumPy, and that this engine reads.
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4")
ENDS = ("token_embd.weight", "output.weight")  # the tensors that get the type `mix`
# Matrices that are not converted, as in llama.cpp's quantizer: a router decides between experts with few weights.
KEPT = ("ffn_gate_inp.weight", "_norm.weight")
OTHER = {"MXFP4": "MOSTLY_MXFP4_MOE"}  # types whose file type has another name
LARGEST = 65504.0  # the largest float16, and so the largest scale of a block
_U32 = 4  # a metadata value's type in GGUF

Progress = Callable[[int, int, str], None]  # (bytes written, bytes in total, the current tensor)


def requantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str,
    *,
    mix: str | None = None,
    replace: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Writes `target`, a copy of the model `source` with its matrices as `kind`; norms and biases are unchanged.

    A matrix is unchanged, too, if its rows are not a multiple of the type's block, or `gguf` cannot dequantize it.

    Args:
        source: a .gguf file, or any part of a split model; the copy is one file.
        target: the path of the copy, which is written whole or not at all.
        kind: one of `KINDS`.
        mix: the type of the embedding and the output matrix, one of `KINDS`; None: `kind`.
        replace: whether an existing file may be replaced.
        progress: called as tensors are written.

    Raises:
        ParameterError: a type can't be written, the target can't be written, or the target is the source.
        GGUFError: the source cannot be read, is damaged, or has values that the type cannot hold.
    """
    target, wanted, ends = Path(target), writable(kind), writable(mix or kind)
    with open_gguf(source) as file:
        _check_target(target, file, replace)
        types = {t.name: _type_of(t, ends if t.name in ENDS else wanted) for t in file.tensors.values()}
        head, offsets, nbytes = _head(file, types, kind)
        _check_room(target, nbytes)
        try:
            with replacing(target) as part:
                with open(part, "wb") as out:
                    _write(out, file, types, head, offsets, nbytes, progress or (lambda *_: None))
                    out.flush()
                    os.fsync(out.fileno())
                _check_target(target, file, replace)  # again: writing took a while
        except OSError as e:
            raise ParameterError(f"{target} could not be written: {e.strerror or e}") from None
    return target


def writable(kind: str) -> GGMLQuantizationType:
    """The type of this name.

    Raises:
        ParameterError: `gguf` can't write it; the message explains what it is.
    """
    from gguf import GGMLQuantizationType, LlamaFileType

    if kind in KINDS:
        return GGMLQuantizationType[kind]
    expected = f"expected one of {', '.join(KINDS)}"
    if kind in GGMLQuantizationType.__members__:
        raise ParameterError(
            f"type {kind} is not among those that the gguf package can write; {expected}. llama.cpp's llama-quantize "
            "writes the others"
        )
    if f"MOSTLY_{kind}" in LlamaFileType.__members__:
        raise ParameterError(
            f"{kind} is a mixture of types, which llama.cpp's llama-quantize makes and the gguf package can't; "
            f"{expected}"
        )
    raise ParameterError(f"type is {kind!r}; {expected}")


def _check_target(target: Path, file: GGUFFile, replace: bool) -> None:
    try:
        if "\0" in str(target) or not target.name:
            raise ParameterError(f"{str(target)!r} is not a path of a file")
        there = os.path.lexists(target)
        if there and target.exists() and any(target.samefile(path) for path in file.paths):
            raise ParameterError(f"{target} is the source itself, which stays as it is; give the copy another name")
        if there and not replace:
            raise ParameterError(f"{target} is there already; give the copy another name, or pass replace=True")
        if there and not target.is_symlink() and not target.is_file():
            raise ParameterError(f"{target} is not a regular file; give the path of a new .gguf file")
        if not target.parent.is_dir():
            raise ParameterError(f"{target}: there is no folder {target.parent}")
    except (OSError, ValueError) as e:
        if isinstance(e, ParameterError):
            raise
        raise ParameterError(f"{target} could not be written: {getattr(e, 'strerror', None) or e}") from None


def _check_room(target: Path, nbytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if nbytes > free:
        raise ParameterError(f"{target} will have {nbytes:,} bytes, and {free:,} are free there")


def is_matrix(info: TensorInfo) -> bool:
    """Whether a tensor is one of those whose type a copy changes."""
    return len(info.shape) > 1 and info.name.endswith("weight") and not info.name.endswith(KEPT)


def _type_of(info: TensorInfo, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import _type_traits  # the types that it can dequantize

    readable = info.type in _type_traits or info.type.name in ("F32", "F16")
    return wanted if is_matrix(info) and readable and info.shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else info.type


def _row_nbytes(info: TensorInfo, kind: GGMLQuantizationType) -> int:
    from gguf import GGML_QUANT_SIZES

    weights, nbytes = GGML_QUANT_SIZES[kind]
    return info.shape[-1] // weights * nbytes


# The header -----------------------------------------------------------------------------------------------------------


def _head(file: GGUFFile, types: dict[str, GGMLQuantizationType], kind: str) -> tuple[bytes, list[int], int]:
    """Everything before the first tensor's bytes, the offset of each tensor, and the size of the file."""
    from gguf import LlamaFileType

    alignment = int(file.metadata.get("general.alignment", 32))
    file_types = LlamaFileType.__members__
    keys = {key: raw for key, raw in _metadata_bytes(file).items() if not key.startswith("split.")}
    changed = {"general.file_type": file_types.get(f"MOSTLY_{kind}", file_types[OTHER.get(kind, "ALL_F32")]).value}
    if kind not in ("F32", "F16", "BF16"):
        changed["general.quantization_version"] = 2
    keys |= {key: _string(key) + struct.pack("<II", _U32, value) for key, value in changed.items()}
    table, at = [], 0
    for name, info in file.tensors.items():
        shape = info.shape[::-1]  # the file has the innermost first
        table.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, types[name], at))
        at += -(-(info.n_elements // info.shape[-1] * _row_nbytes(info, types[name])) // alignment) * alignment
    head = struct.pack("<4sIQQ", MAGIC, 3, len(table), len(keys)) + b"".join([*keys.values(), *table])
    head += bytes(-len(head) % alignment)
    offsets = [len(head) + struct.unpack("<Q", row[-8:])[0] for row in table]
    return head, offsets, len(head) + at


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _metadata_bytes(file: GGUFFile) -> dict[str, bytes]:
    """Each key's bytes in the file: name, type, value."""
    mapping = file._parts[0].mmap
    assert mapping is not None, "the file is open"
    parser = Parser(file, mapping)
    parser.pos = 16  # after magic, version and the number of tensors
    found: dict[str, bytes] = {}
    for _ in range(parser.u64("the number of metadata keys")):
        begin = parser.pos
        key = parser.name("a metadata key", MAX_KEY_BYTES)
        parser.value(parser.u32("a type"), key)
        found[key] = bytes(parser.buf[begin : parser.pos])
    return found


# The tensors ----------------------------------------------------------------------------------------------------------


def _write(
    out: BinaryIO,
    file: GGUFFile,
    types: dict[str, GGMLQuantizationType],
    head: bytes,
    offsets: list[int],
    nbytes: int,
    progress: Progress,
) -> None:
    out.write(head)
    for (name, info), offset in zip(file.tensors.items(), offsets, strict=True):
        out.write(bytes(offset - out.tell()))
        for part in _converted(file, info, types[name]):
            progress(out.tell(), nbytes, name)
            out.write(part)
    out.write(bytes(nbytes - out.tell()))
    progress(nbytes, nbytes, "")


def _converted(file: GGUFFile, info: TensorInfo, kind: GGMLQuantizationType) -> Iterator[memoryview]:
    """A tensor's bytes as another type, some rows at a time."""
    from gguf.quants import dequantize, quantize

    raw = file.tensor_bytes(info.name)
    if kind == info.type:
        yield raw.data
        return
    rows = info.n_elements // info.shape[-1]
    raw = raw.reshape(rows, -1)
    step = max(1, CHUNK // info.shape[-1])
    for i in range(0, rows, step):
        with np.errstate(all="ignore"):  # a damaged file's blocks may hold anything; the result is checked
            part = dequantize(raw[i : i + step], info.type)
        if not np.isfinite(part).all():
            raise GGUFError(f"{file.path}: tensor {info.name!r} has values that are not finite; is the file damaged?")
        if kind.name not in ("F32", "BF16") and max(part.max(), -part.min()) > LARGEST:
            raise GGUFError(
                f"{file.path}: tensor {info.name!r} has values above {LARGEST:,.0f}, the largest float16, and is "
                f"not converted to {kind.name}; BF16 and F32 hold them"
            )
        yield quantize(part, kind).view(np.uint8).data.cast("B")
