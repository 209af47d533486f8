"""A model's weights: matrices held in one place, and the layers made of them.

Two forms: `weights="native"` uses the blocks in place, in the mapped file; `weights="f32"` dequantizes all of them to
float32, the reference that the native form is tested against. Dequantizers come from the `gguf` package.

Independent of the forward pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from teachllama.errors import ClosedError, UnsupportedModelError
from teachllama.kv.pages import Pages

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

    from teachllama.gguf_file import GGUFFile, TensorInfo

ALIGNMENT = 64  # bytes: a cache line, and an AVX-512 register
CHUNK = 1 << 20  # elements dequantized at a time: the dequantizers' scratch memory is a few times this


class F32Matrix:
    """Rows of float32: `data` has shape (rows, columns)."""

    def __init__(self, data: np.ndarray):
        self.data = data

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def part(self) -> tuple[int, int]:
        """For compiled kernels: GGUF's number of the type, and the address of the first row."""
        return 0, self.data.ctypes.data

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x (n, columns) -> (n, rows): each row's dot product with each of the n vectors."""
        return x @ self.data.T

    def take(self, ids: np.ndarray) -> np.ndarray:
        """ids (n,) -> a copy of those rows, float32 (n, columns)."""
        return self.data[ids]

    def cut(self, begin: int, end: int) -> F32Matrix:
        """Some of the rows; nothing is copied."""
        return F32Matrix(self.data[begin:end])


class BlockMatrix:
    """Rows of blocks, a view of the mapped file.

    `multiply` dequantizes a few rows at a time: the reference for the compiled kernels, and far slower.

    Args:
        kind: the blocks' type.
        raw: uint8 (rows, bytes per row).
        columns: weights per row.
    """

    def __init__(self, kind: GGMLQuantizationType, raw: np.ndarray, columns: int):
        self.kind, self.raw, self.columns = kind, raw, columns

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.raw), self.columns

    @property
    def part(self) -> tuple[int, int]:
        """For compiled kernels: GGUF's number of the type, and the address of the first row."""
        return int(self.kind), self.raw.ctypes.data

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x (n, columns) -> (n, rows): each row's dot product with each of the n vectors."""
        step = max(1, CHUNK // self.columns)
        pieces = [x @ _as_f32(self.raw[i : i + step], self.kind).T for i in range(0, len(self.raw), step)]
        return np.concatenate(pieces, axis=1)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """ids (n,) -> those rows, float32 (n, columns)."""
        return np.array(_as_f32(self.raw[ids], self.kind))

    def cut(self, begin: int, end: int) -> BlockMatrix:
        """Some of the rows; nothing is copied."""
        return BlockMatrix(self.kind, self.raw[begin:end], self.columns)


Matrix = F32Matrix | BlockMatrix


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A matrix, and the bias that is added to its product: a Linear owns its bias."""

    matrix: Matrix  # (rows, columns)
    bias: np.ndarray | None = None  # (rows,)

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return self.matrix.shape[0]

    @property
    def columns(self) -> int:
        """Number of inputs."""
        return self.matrix.shape[1]

    @property
    def data(self) -> np.ndarray:
        """The rows as float32, (rows, columns): a view with `weights="f32"`, otherwise dequantized now."""
        m = self.matrix
        return m.data if isinstance(m, F32Matrix) else m.take(np.arange(self.rows))

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x (n, columns) -> (n, rows)."""
        y = self.matrix.multiply(x)
        return y if self.bias is None else y + self.bias

    def take(self, ids: np.ndarray) -> np.ndarray:
        """ids (n,) -> those rows of the matrix, float32 (n, columns)."""
        return self.matrix.take(ids)

    def cut(self, begin: int, end: int) -> Linear:
        """Some of the rows, with their part of the bias; nothing is copied."""
        return Linear(self.matrix.cut(begin, end), None if self.bias is None else self.bias[begin:end])


@dataclass(frozen=True, slots=True, eq=False)
class Gated:
    """A feed-forward network: down(activation(gate(h)) * up(h))."""

    gate: Linear  # (hidden_dim, dim)
    up: Linear  # (hidden_dim, dim)
    down: Linear  # (dim, hidden_dim)


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """A mixture of experts; each matrix holds all experts' rows, one expert after another."""

    router: Linear  # (n_experts, dim)
    gate: Linear  # (n_experts * hidden_dim, dim)
    up: Linear  # (n_experts * hidden_dim, dim)
    down: Linear  # (n_experts * dim, hidden_dim)
    selection_bias: np.ndarray | None = None  # (n_experts,): affects only the choice of experts

    def expert(self, e: int) -> Gated:
        """One expert."""
        n = self.router.rows
        parts = (m.cut(e * m.rows // n, (e + 1) * m.rows // n) for m in (self.gate, self.up, self.down))
        return Gated(*parts)


@dataclass(slots=True, eq=False)
class LayerWeights:
    """One layer's weights. Those that the layer lacks are None, and the steps that would use them are skipped."""

    attn_norm: np.ndarray | None = None  # (dim,)
    q: Linear | None = None  # (n_heads * head_dim, dim); latent attention with q_a: (..., its rank)
    k: Linear | None = None  # (n_kv_heads * head_dim, dim)
    v: Linear | None = None  # (n_kv_heads * value_dim, dim)
    q_norm: np.ndarray | None = None  # (head_dim,), or (n_heads * head_dim,) where all heads are normalized together
    k_norm: np.ndarray | None = None
    sinks: np.ndarray | None = None  # (n_heads,)
    output: Linear | None = None  # (dim, n_heads * value_dim)
    post_attention_norm: np.ndarray | None = None  # (dim,)
    ffn_norm: np.ndarray | None = None  # (dim,)
    ffn: Gated | None = None
    experts: Experts | None = None
    shared: Gated | None = None  # the expert that every token visits
    shared_gate: Linear | None = None  # (1, dim)
    post_ffn_norm: np.ndarray | None = None  # (dim,)
    # Latent attention.
    q_a: Linear | None = None  # (rank of queries, dim)
    q_a_norm: np.ndarray | None = None
    kv_a: Linear | None = None  # (rank, dim)
    kv_a_norm: np.ndarray | None = None  # (rank,)
    k_rope: Linear | None = None  # (rotating part of a head, dim)
    k_b: Linear | None = None  # (n_heads * rank, part of a head that doesn't rotate)
    v_b: Linear | None = None  # (n_heads * value length, rank)


@dataclass(slots=True, eq=False)
class Weights:
    """Every weight of a model, and the store that owns their memory."""

    store: F32Store
    embedding: Linear  # (vocab_size, dim)
    output: Linear  # (vocab_size, dim); the embedding if the file has no output matrix
    output_norm: np.ndarray  # (dim,)
    layers: list[LayerWeights] = field(default_factory=list)


class F32Store:
    """All weights of a model as float32, in one anonymous mapping that `close` frees.

    Args:
        infos: every tensor that will be loaded as float32; the mapping is reserved for them at once.
    """

    def __init__(self, file: GGUFFile, infos: Sequence[TensorInfo]):
        self._file, self._used = file, 0
        self._pages = Pages(sum(_aligned(4 * t.n_elements) for t in infos), huge=True)
        self.nbytes = sum(4 * t.n_elements for t in infos)

    def matrix(self, info: TensorInfo) -> Matrix:
        """A tensor as a matrix. A tensor of three dimensions holds experts, which are stacked vertically."""
        return F32Matrix(self.vector(info).reshape(-1, info.shape[-1]))

    def vector(self, info: TensorInfo) -> np.ndarray:
        """A tensor as float32 in its own shape.

        Raises:
            UnsupportedModelError: the tensor's type has no dequantizer.
        """
        if self._pages.closed:
            raise ClosedError("this model was closed; load it again")
        out = self._pages.array(self._used, info.shape, np.float32)
        self._used += _aligned(out.nbytes)
        _dequantize(self._file, info, out)
        out.flags.writeable = False
        return out

    def close(self) -> None:
        """Frees the weights' memory."""
        self._pages.close()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _as_f32(raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Rows of blocks, (rows, bytes per row) -> float32 (rows, columns)."""
    from gguf.quants import dequantize

    if kind.name == "F32":
        return raw.view("<f4")
    if kind.name == "F16":
        return raw.view("<f2").astype(np.float32)
    return dequantize(raw, kind)


def _dequantize(file: GGUFFile, info: TensorInfo, out: np.ndarray) -> None:
    rows = out.reshape(-1, info.shape[-1])
    raw = file.tensor_bytes(info.name).reshape(len(rows), -1)  # (rows, bytes per row)
    step = max(1, CHUNK // info.shape[-1])
    for i in range(0, len(rows), step):
        try:
            rows[i : i + step] = _as_f32(raw[i : i + step], info.type)
        except NotImplementedError:
            raise UnsupportedModelError(
                f"tensor {info.name!r} has type {info.type.name}, which the gguf package cannot dequantize"
            ) from None


class BlockStore(F32Store):
    """All weights of a model in place, in its file, which stays mapped: all processes that open it share its pages.

    Norms, and matrices of a type that has no kernel, are dequantized to float32 as in `F32Store`.

    Args:
        matrices, vectors: every tensor that will be loaded as one or the other.
        native: the types whose blocks are used in place.
    """

    def __init__(
        self,
        file: GGUFFile,
        matrices: Sequence[TensorInfo],
        vectors: Sequence[TensorInfo],
        native: Container[GGMLQuantizationType],
    ):
        self._native = native
        others = [t for t in matrices if not self._stays(t)]
        super().__init__(file, [*others, *vectors])
        self.nbytes += sum(t.nbytes for t in matrices if self._stays(t))
        foreign = {t.type.name for t in others if t.type not in native}
        if foreign:
            warnings.warn(
                f"{file.path}: tensors of type {', '.join(sorted(foreign))} have no kernel here and are held as "
                f"float32, {sum(4 * t.n_elements for t in others) / 1e6:,.0f} MB",
                stacklevel=6,
            )

    def _stays(self, info: TensorInfo) -> bool:
        return info.type in self._native

    def matrix(self, info: TensorInfo) -> Matrix:
        """A tensor as a matrix of its own blocks, if its type is native."""
        if not self._stays(info):
            return super().matrix(info)
        rows = math.prod(info.shape[:-1])
        return BlockMatrix(info.type, self._file.tensor_bytes(info.name).reshape(rows, -1), info.shape[-1])

    def close(self) -> None:
        """Frees the float32 weights and unmaps the file."""
        super().close()
        self._file.close()
