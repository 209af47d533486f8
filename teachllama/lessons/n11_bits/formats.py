"""Block formats by hand, as notebook 11 reads them, and copies of a model with changed weights.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from teachllama.errors import ParameterError
from teachllama.gguf_file import open_gguf
from teachllama.requantize import requantize


class Field(NamedTuple):
    """A part of a block."""

    name: str
    how_many: int
    bits: int  # each


# The fields of a block, in the order of its bytes (Q4_K's scales and minima share bytes).
LAYOUTS: dict[str, tuple[int, tuple[Field, ...]]] = {
    "Q8_0": (32, (Field("scale", 1, 16), Field("numbers", 32, 8))),
    "Q4_0": (32, (Field("scale", 1, 16), Field("numbers", 32, 4))),
    "Q4_1": (32, (Field("scale", 1, 16), Field("minimum", 1, 16), Field("numbers", 32, 4))),
    "Q4_K": (
        256,
        (
            Field("scale of scales", 1, 16),
            Field("scale of minima", 1, 16),
            Field("scales", 8, 6),
            Field("minima", 8, 6),
            Field("numbers", 256, 4),
        ),
    ),
}


def bits_per_weight(kind: str) -> float:
    """The bits of a block divided by its number of weights."""
    weights, fields = LAYOUTS[kind]
    return sum(f.how_many * f.bits for f in fields) / weights


def round_trip(x: np.ndarray, bits: int, block: int = 32) -> np.ndarray:
    """Rounds numbers as Q4_0 does, with other bits and blocks: one float16 scale per block, marks on both sides of 0.

    Args:
        x: float32, its size a multiple of `block`.
        bits: bits per number, 2 or more.
        block: how many numbers share a scale.

    Returns:
        float32 of the same shape: the values that a reader of the blocks gets.
    """
    if bits < 2 or block < 1 or x.size % block:
        raise ParameterError(f"{bits} bits, blocks of {block}, {x.size} numbers; expected 2 bits or more, whole blocks")
    rows = x.reshape(-1, block)
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    half = 2 ** (bits - 1)
    scale = largest / -half  # the largest gets the one mark without a counterpart of the other sign
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    marks = np.clip(np.floor(rows * inverse + np.float32(0.5 + half)), 0, 2 * half - 1) - half
    out: np.ndarray = marks * scale.astype(np.float16).astype(np.float32)
    return out.reshape(x.shape).astype(np.float32)


def pack_q4_k(x: np.ndarray) -> np.ndarray:
    """Packs float32 as Q4_K in the simplest way. llama.cpp's own quantizer also searches for the best scales.

    Args:
        x: its size a multiple of 256.

    Returns:
        uint8 (blocks, 144).
    """
    parts = x.reshape(-1, 8, 32)  # eight parts per block
    low = np.minimum(parts.min(axis=2), 0)  # an offset is never above 0
    step = (parts.max(axis=2) - low) / 15
    d = (step.max(axis=1, keepdims=True) / 63).astype(np.float16)  # scale of scales
    d_min = (-low.min(axis=1, keepdims=True) / 63).astype(np.float16)  # scale of minima
    scales, minima = _sixths(step, d), _sixths(-low, d_min)  # (blocks, 8) whole numbers from 0 to 63
    steps, offsets = (d.astype(np.float32) * scales)[..., None], (d_min.astype(np.float32) * minima)[..., None]
    safe = np.where(steps > 0, steps, 1)
    q = np.clip(np.round((parts + offsets) / safe), 0, 15).astype(np.uint8)  # (blocks, 8, 32)
    packed = np.empty((len(parts), 12), np.uint8)  # two times eight numbers of six bits
    packed[:, :4] = scales[:, :4] | scales[:, 4:] >> 4 << 6
    packed[:, 4:8] = minima[:, :4] | minima[:, 4:] >> 4 << 6
    packed[:, 8:] = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    numbers = (q[:, 0::2] | q[:, 1::2] << 4).reshape(len(parts), 128)  # part 0 in the low bits, part 1 in the high, ...
    return np.concatenate([d.view(np.uint8), d_min.view(np.uint8), packed, numbers], axis=1)


def _sixths(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    wide = scale.astype(np.float32)
    rounded: np.ndarray = np.round(np.divide(values, wide, out=np.zeros_like(values), where=wide > 0))
    return np.clip(rounded, 0, 63).astype(np.uint8)


# Copies of a model ----------------------------------------------------------------------------------------------------

Change = Callable[[str, np.ndarray], np.ndarray]


def rewritten(source: str | os.PathLike[str], target: str | os.PathLike[str], change: Change) -> Path:
    """Writes a copy of a model with its matrices in float32, each replaced by `change(name, matrix)`."""
    path = requantize(source, target, "F32")
    with open_gguf(path) as file:
        for info in file.tensors.values():
            if len(info.shape) > 1:
                data = np.memmap(path, np.dtype("<f4"), "r+", info.offset, info.shape)
                data[:] = change(info.name, np.array(data))
                data.flush()
    return path


def widen(source: str | os.PathLike[str], target: str | os.PathLike[str], seed: int = 0) -> Path:
    """Writes float32 weights that quantize to the Q8_0 file `source`, byte for byte.

    A number of a block determines its weight to within half a step; here the weight is drawn from that range. The
    largest weight of a block stays on its mark, because it determines the scale.

    Raises:
        ParameterError: a matrix of the source is of another type.
    """
    rng = np.random.default_rng(seed)
    with open_gguf(source) as file:

        def between_marks(name: str, x: np.ndarray) -> np.ndarray:
            if file.tensors[name].type.name != "Q8_0":
                raise ParameterError(f"{name!r} is {file.tensors[name].type.name}; this reads files of Q8_0")
            blocks = file.tensor_bytes(name).reshape(-1, 34)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            q = blocks[:, 2:].view(np.int8).astype(np.float32)
            off = rng.uniform(-0.499, 0.499, q.shape).astype(np.float32)
            off[np.abs(q) == 127] = 0
            return ((q + off) * scale).reshape(x.shape)

        return rewritten(source, target, between_marks)
