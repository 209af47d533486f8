"""A model's weight matrices: held in one place, with one operation, multiply.

Knows nothing of layers. `weights="f32"` dequantizes every block to float32: the reference the other forms are tested
against. Dequantizers come from the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from teachllama.errors import ClosedError, UnsupportedModelError
from teachllama.pages import Pages

if TYPE_CHECKING:
    from teachllama.gguf_file import GGUFFile, TensorInfo

ALIGNMENT = 64  # bytes: a cache line, and an AVX-512 register
CHUNK = 1 << 20  # elements dequantized at a time: the dequantizers' scratch memory is a few times this


class F32Matrix:
    """Rows of float32; `data` has shape (rows, columns)."""

    def __init__(self, data: np.ndarray):
        self.data = data

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x (n, columns) -> (n, rows): each row's dot product with each of the n vectors."""
        return x @ self.data.T

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """ids (n,) -> a copy of those rows, float32 (n, columns)."""
        return self.data[ids]


class F32Store:
    """All weights of a model as float32, in one anonymous mapping that `close` gives back.

    Args:
        infos: every tensor that will be loaded; the mapping is reserved for them at once.
    """

    def __init__(self, file: GGUFFile, infos: Sequence[TensorInfo]):
        self._file, self._used = file, 0
        self._pages = Pages(sum(_aligned(4 * t.n_elements) for t in infos), huge=True)
        self.nbytes = sum(4 * t.n_elements for t in infos)

    def load(self, *infos: TensorInfo) -> np.ndarray:
        """Dequantizes tensors, one below the other, into one float32 array: q, k and v become a single matrix.

        Raises:
            UnsupportedModelError: a tensor's type has no dequantizer.
        """
        if self._pages.closed:
            raise ClosedError("this model was closed; load it again")
        shape = (sum(t.shape[0] for t in infos), *infos[0].shape[1:])
        out = self._pages.array(self._used, shape, np.float32)
        self._used += _aligned(out.nbytes)
        row = 0
        for t in infos:
            _dequantize(self._file, t, out[row : row + t.shape[0]])
            row += t.shape[0]
        out.flags.writeable = False
        return out

    def close(self) -> None:
        """Gives the weights' memory back."""
        self._pages.close()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _dequantize(file: GGUFFile, info: TensorInfo, out: np.ndarray) -> None:
    from gguf.quants import dequantize

    rows = out.reshape(-1, info.shape[-1])
    raw = file.tensor_bytes(info.name).reshape(len(rows), -1)  # (rows, bytes a row)
    step = max(1, CHUNK // info.shape[-1])
    for i in range(0, len(rows), step):
        part = raw[i : i + step]
        if info.type.name == "F32":
            rows[i : i + step] = part.view("<f4")
        elif info.type.name == "F16":
            rows[i : i + step] = part.view("<f2")
        else:
            try:
                rows[i : i + step] = dequantize(part, info.type)
            except NotImplementedError:
                raise UnsupportedModelError(
                    f"tensor {info.name!r} has type {info.type.name}, which the gguf package cannot dequantize"
                ) from None
