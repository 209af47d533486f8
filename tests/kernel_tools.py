"""For tests of the compiled kernels: blocks of every native type, tiles, guarded buffers, and models made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter
from gguf import GGMLQuantizationType as T

from teachllama.kernels.fields import WIDTH
from teachllama.kernels.shapes import provide as set_shape
from tests.tools import _add, tiny_metadata, tiny_tensors

NATIVE = (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K, T.MXFP4)
# Byte offsets of a block's float16 scales; all other bytes may have any value.
SCALES = {T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q4_K: [0, 2], T.Q5_K: [0, 2]}
SCALES[T.Q6_K], SCALES[T.MXFP4] = [208], []
# The ratio of the second scale to the first that centres random blocks on zero.
CENTRED = {T.Q4_1: -7.5, T.Q5_1: -15.5, T.Q4_K: 7.5, T.Q5_K: 15.5}
GUARD = 4096  # float32 values before and after a buffer that must stay unchanged
CANARY = np.float32(-12345.5)


def unit(kind: T) -> int:
    """A matrix has a multiple of this many columns: the type's block size, or the 32 weights kernels read at a time."""
    return max(32, GGML_QUANT_SIZES[kind][0])


def random_blocks(kind: T, rows: int, columns: int, rng: np.random.Generator, halves: np.ndarray) -> np.ndarray:
    """Random raw rows, uint8 (rows, bytes per row). Scales, or plain weights, are drawn from the float16 `halves`."""
    if kind in (T.F32, T.F16, T.BF16):
        values = rng.choice(halves, (rows, columns))
        if kind == T.F16:
            return values.view(np.uint8)
        single = values.astype("<f4")
        if kind == T.F32:  # fill all bits of the mantissa
            return (single * rng.uniform(1, 2, single.shape).astype("<f4")).view(np.uint8)
        return np.ascontiguousarray(single.view("<u2")[:, 1::2]).view(np.uint8)
    weights, nbytes = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows * columns // weights, nbytes), np.uint8)
    for at in SCALES[kind]:
        raw[:, at : at + 2] = rng.choice(halves, len(raw)).view(np.uint8).reshape(-1, 2)
    if kind == T.MXFP4:  # scales are powers of two, here from 2^-8 to 2^7
        raw[:, 0] = rng.integers(120, 136, len(raw))
    return raw.reshape(rows, -1)


def as_f32(kind: T, raw: np.ndarray) -> np.ndarray:
    """The reference: rows of blocks dequantized by the gguf package."""
    return gguf.quants.dequantize(raw, kind)


def model_blocks(kind: T, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Random raw rows whose weights have a mean near 0 and a mean square near 1 / columns, as a model's have."""
    raw = random_blocks(kind, rows, columns, rng, np.float16([1]))
    if kind in (T.F32, T.F16, T.BF16):
        return gguf.quants.quantize((rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32), kind)
    blocks = raw.reshape(-1, GGML_QUANT_SIZES[kind][1])
    if kind == T.MXFP4:
        blocks[:, 0] = 128
        blocks[:, 0] = 128 - round(np.log2(as_f32(kind, raw).std() * np.sqrt(columns)))
        return raw

    def put(scale: float) -> np.ndarray:
        for at, factor in zip(SCALES[kind], (1, CENTRED.get(kind, 0))):
            blocks[:, at : at + 2] = np.float16([scale * factor]).view(np.uint8)
        return as_f32(kind, raw)

    put(1 / (put(1).std() * np.sqrt(columns)))
    return raw


def native_model(path: Path, kind: T, arch: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """A tiny model file whose matrices are all of one type. Dimensions must be multiples of its block size."""
    metadata = tiny_metadata(arch, **overrides)
    writer = GGUFWriter(path, arch, use_temp_file=False)
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    rng = np.random.default_rng(seed)
    for name, data in tiny_tensors(metadata, seed).items():
        if data.ndim == 1:
            writer.add_tensor(name, data)
        else:
            raw = model_blocks(kind, *data.shape, rng)
            writer.add_tensor(name, raw.view(np.float32) if kind == T.F32 else raw.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def callable_from_python(function: Any) -> Any:
    """Compiles a function that calls kernels, which can be called only from compiled code."""
    from numba import njit

    set_shape(0)
    return njit(nogil=True, error_model="numpy")(function)


class Guarded:
    """A float32 buffer between guards that detect writes outside it. Misaligned for vectors, as GGUF allows."""

    def __init__(self, data: np.ndarray | int):
        values = np.full(data, CANARY, np.float32) if isinstance(data, int) else np.float32(data).ravel()
        self._all = np.full(len(values) + 2 * GUARD, CANARY, np.float32)
        self.data = self._all[GUARD : GUARD + len(values)]
        self.data[:] = values

    @property
    def at(self) -> int:
        """The address of the buffer."""
        return self.data.ctypes.data

    def check(self) -> None:
        """Raises AssertionError if the guards were written to."""
        assert (self._all[:GUARD] == CANARY).all(), "written before the buffer"
        assert (self._all[-GUARD:] == CANARY).all(), "written after the buffer"


def widths(n_tokens: int) -> list[int]:
    """The width of each tile of n tokens."""
    return [WIDTH if n_tokens - first > 16 else 16 for first in range(0, n_tokens, WIDTH)]


def tiles_of(x: np.ndarray, filler: float = 0) -> np.ndarray:
    """x (n, rows) -> its tiles, one after another, flat; lanes past the end hold `filler`."""
    n, rows = x.shape
    out = []
    for t, width in enumerate(widths(n)):
        part = x[WIDTH * t : WIDTH * t + width]
        out.append(np.concatenate([part, np.full((width - len(part), rows), filler)]).T.ravel())
    return np.concatenate(out).astype(np.float32)


def from_tiles(flat: np.ndarray, n: int, rows: int) -> np.ndarray:
    """The reverse of `tiles_of`: (n, rows)."""
    parts = [
        flat[WIDTH * t * rows :][: rows * width].reshape(rows, width).T[: n - WIDTH * t]
        for t, width in enumerate(widths(n))
    ]
    return np.concatenate(parts)
