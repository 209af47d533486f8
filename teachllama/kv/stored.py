"""Converts numbers to a cache's formats and back: f32, f16, bf16, or GGML's blocks of 32 with a scale each.

Rows are strings of bytes, exactly as in a GGUF file: compiled code reads a cache as it reads weights.
Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. Independent of models and positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from teachllama.errors import ParameterError
from teachllama.kv.formula import KV_DTYPES, KVDtype

PAGE = 64  # positions per page of the cache, which attention reads at a time
# Types of this engine's caches -> their numbers in GGML.
ENGINE_DTYPES: dict[str, int] = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}
PLAIN: dict[str, Any] = {"f32": np.float32, "f16": np.float16}  # types that NumPy has


def types_of(kv_dtype: KVDtype) -> tuple[str, str]:
    """The types of keys and of values, from one name for both or a pair.

    Raises:
        ParameterError: not a type, or pair of types, of this engine's caches.
    """
    pair = (kv_dtype, kv_dtype) if isinstance(kv_dtype, str) else kv_dtype
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or any(t not in list(ENGINE_DTYPES) for t in pair):
        raise ParameterError(
            f"kv_dtype is {kv_dtype!r}; this engine's caches are {', '.join(map(repr, ENGINE_DTYPES))}, or a pair of "
            "these, for keys and for values"
        )
    return pair[0], pair[1]


def row_nbytes(length: int, kv_dtype: str) -> int:
    """Bytes of one head's `length` numbers of one position."""
    block, nbytes = KV_DTYPES[kv_dtype]
    return length // block * nbytes


def encode(x: np.ndarray, kv_dtype: str) -> np.ndarray:
    """x (..., length) float32 -> (..., row_nbytes) uint8, rounded as in GGML."""
    if kv_dtype in PLAIN:
        return np.ascontiguousarray(x, PLAIN[kv_dtype]).view(np.uint8)
    from gguf import GGMLQuantizationType, quants

    raw: np.ndarray = quants.quantize(np.ascontiguousarray(x, np.float32), GGMLQuantizationType[kv_dtype.upper()])
    return raw


def decode(raw: np.ndarray, kv_dtype: str) -> np.ndarray:
    """raw (..., row_nbytes) uint8 -> (..., length) float32; for f32 a view."""
    if kv_dtype in PLAIN:
        return raw.view(PLAIN[kv_dtype]).astype(np.float32, copy=False)
    from gguf import GGMLQuantizationType, quants

    x: np.ndarray = quants.dequantize(raw, GGMLQuantizationType[kv_dtype.upper()])
    return x
