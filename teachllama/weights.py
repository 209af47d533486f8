"""A model's weight matrices: held in one place, with one operation, multiply.

Two forms: `weights="native"` leaves the blocks where and as they are, in the mapped file; `weights="f32"` dequantizes
all of them to float32: the reference the other is tested against. Dequantizers come from the `gguf` package.

Knows nothing of layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

import numpy as np

from teachllama.errors import ClosedError, UnsupportedModelError
from teachllama.pages import Pages

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

    from teachllama.gguf_file import GGUFFile, TensorInfo

ALIGNMENT = 64  # bytes: a cache line, and an AVX-512 register
CHUNK = 1 << 20  # elements dequantized at a time: the dequantizers' scratch memory is a few times this


Part = tuple[int, int, int]  # for compiled kernels: GGUF's number of a type, address of the first row, rows


class F32Matrix:
    """Rows of float32; `data` has shape (rows, columns).

    Args:
        splits: how many rows each tensor that was stacked here has.
    """

    def __init__(self, data: np.ndarray, splits: Sequence[int]):
        self.data, self.splits = data, splits

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x (n, columns) -> (n, rows): each row's dot product with each of the n vectors."""
        return x @ self.data.T

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """ids (n,) -> a copy of those rows, float32 (n, columns)."""
        return self.data[ids]

    def parts(self) -> list[Part]:
        """The tensors stacked here, by their addresses."""
        starts = np.cumsum([0, *self.splits[:-1]])
        return [(0, self.data[row:].ctypes.data, n) for row, n in zip(starts, self.splits)]


class BlockMatrix:
    """Rows as the blocks they are in the file: a view of it, for each tensor stacked here.

    `multiply` makes float32 of a few rows at a time: the reference for the compiled kernels, and far slower.

    Args:
        tensors: type and raw bytes, (rows, bytes a row), of each.
    """

    def __init__(self, tensors: Sequence[tuple[GGMLQuantizationType, np.ndarray]]):
        self.tensors = tensors

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x (n, columns) -> (n, rows): each row's dot product with each of the n vectors."""
        step = max(1, CHUNK // x.shape[-1])
        return np.concatenate(
            [x @ _as_f32(raw[i : i + step], kind).T for kind, raw in self.tensors for i in range(0, len(raw), step)],
            axis=1,
        )

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """ids (n,) -> those rows, float32 (n, columns)."""
        ((kind, raw),) = self.tensors
        return np.array(_as_f32(raw[ids], kind))

    def parts(self) -> list[Part]:
        """The tensors stacked here, by their addresses."""
        return [(int(kind), raw.ctypes.data, len(raw)) for kind, raw in self.tensors]


Matrix = F32Matrix | BlockMatrix


class F32Store:
    """All weights of a model as float32, in one anonymous mapping that `close` gives back.

    Args:
        infos: every tensor that will be loaded; the mapping is reserved for them at once.
    """

    def __init__(self, file: GGUFFile, infos: Sequence[TensorInfo]):
        self._file, self._used = file, 0
        self._pages = Pages(sum(_aligned(4 * t.n_elements) for t in infos), huge=True)
        self.nbytes = sum(4 * t.n_elements for t in infos)

    def matrix(self, *infos: TensorInfo) -> Matrix:
        """Tensors one below the other as one matrix: q, k and v together."""
        return F32Matrix(self.vector(*infos), [t.shape[0] for t in infos])

    def vector(self, *infos: TensorInfo) -> np.ndarray:
        """Dequantizes tensors, one below the other, into one float32 array.

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


def _as_f32(raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Rows of blocks, (rows, bytes a row) -> float32 (rows, columns)."""
    from gguf.quants import dequantize

    if kind.name == "F32":
        return raw.view("<f4")
    if kind.name == "F16":
        return raw.view("<f2").astype(np.float32)
    return dequantize(raw, kind)


def _dequantize(file: GGUFFile, info: TensorInfo, out: np.ndarray) -> None:
    rows = out.reshape(-1, info.shape[-1])
    raw = file.tensor_bytes(info.name).reshape(len(rows), -1)  # (rows, bytes a row)
    step = max(1, CHUNK // info.shape[-1])
    for i in range(0, len(rows), step):
        try:
            rows[i : i + step] = _as_f32(raw[i : i + step], info.type)
        except NotImplementedError:
            raise UnsupportedModelError(
                f"tensor {info.name!r} has type {info.type.name}, which the gguf package cannot dequantize"
            ) from None


class BlockStore(F32Store):
    """All weights of a model as they are in its file, which stays mapped: every process that opens it shares its pages.

    Norms, and matrices of a type that has no kernel, are dequantized to float32 as in `F32Store`.

    Args:
        infos: every tensor that will be loaded.
        native: the types whose blocks are used as they are.
    """

    def __init__(self, file: GGUFFile, infos: Sequence[TensorInfo], native: Container[GGMLQuantizationType]):
        self._native = native
        others = [t for t in infos if not self._stays(t)]
        super().__init__(file, others)
        self.nbytes += sum(t.nbytes for t in infos if self._stays(t))
        foreign = {t.type.name for t in others if len(t.shape) > 1}
        if foreign:
            warnings.warn(
                f"{file.path}: tensors of type {', '.join(sorted(foreign))} have no kernel here and are held as "
                f"float32, {sum(4 * t.n_elements for t in others if len(t.shape) > 1) / 1e6:,.0f} MB",
                stacklevel=5,
            )

    def _stays(self, info: TensorInfo) -> bool:
        return len(info.shape) > 1 and info.type in self._native

    def matrix(self, *infos: TensorInfo) -> Matrix:
        """Tensors one below the other as one matrix: q, k and v together."""
        from gguf import GGMLQuantizationType

        return BlockMatrix(
            [
                (t.type, self._file.tensor_bytes(t.name).reshape(t.shape[0], -1))
                if self._stays(t)
                else (GGMLQuantizationType.F32, self.vector(t).view(np.uint8))
                for t in infos
            ]
        )

    def close(self) -> None:
        """Gives float32 weights back and unmaps the file."""
        super().close()
        self._file.close()
