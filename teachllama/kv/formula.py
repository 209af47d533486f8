"""The size of a KV cache: one rule for every layer, and the shapes that it is applied to.

The rule: min(seq_len, window) positions x KV heads x (key length + value length) x bytes per number. Independent of
arrays, files, sessions and architectures (`catalogue.py` finds a model's numbers).
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from teachllama.errors import ParameterError
from teachllama.whole_numbers import whole

# kv_dtype -> (numbers per block, bytes per block): the types that llama.cpp offers for its cache. `stored.py` lists
# those of this engine.
KV_DTYPES: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),  # 32 int8 and one f16 scale
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}

KVDtype = str | tuple[str, str]  # one type for keys and values, or (type of keys, type of values)
MAX_SEQ_LEN = 2**40  # positions, and sessions; a context that could be longer counts as unlimited


def format_nbytes(n: float) -> str:
    """`n` bytes in decimal units (1 MB = 10^6 bytes), to three digits or one decimal.

    47185920 -> '47.2 MB', 377487360 -> '377.5 MB', 1756000000 -> '1.76 GB', 2 * 10**9 -> '2 GB'.
    """
    value, units = float(n), iter(("B", "kB", "MB", "GB", "TB", "PB", "EB"))
    unit = next(units)
    while abs(round(value, 1)) >= 1000 and unit != "EB":
        value, unit = value / 1000, next(units)
    if abs(value) >= 1e4:
        return f"{value:.3e} {unit}"
    text = f"{value:,.2f}" if abs(round(value, 2)) < 10 else f"{value:,.1f}"
    return f"{text.rstrip('0').rstrip('.')} {unit}"


@dataclass(frozen=True, slots=True)
class LayerKV:
    """What one layer caches for each position it can still attend to; 0 KV heads: this layer caches nothing."""

    n_kv_heads: int
    key_length: int  # numbers in one head's key
    value_length: int  # numbers in one head's value; 0 under latent attention, which reads the value out of the key
    window: int | None  # most positions attended to; None: all
    index_length: int = 0  # numbers of the index key that sparse attention also caches, one for all heads

    @property
    def rows(self) -> tuple[int, int, int]:
        """Numbers that each position adds: keys, values, index key."""
        return self.n_kv_heads * self.key_length, self.n_kv_heads * self.value_length, self.index_length

    def positions(self, seq_len: int, swa_full: bool = False) -> int:
        """How many positions this layer holds when the session has seen `seq_len`."""
        return seq_len if self.window is None or swa_full else min(seq_len, self.window)


@dataclass(frozen=True)
class KVLayout:
    """The shape of a model's KV cache."""

    arch: str
    layers: tuple[LayerKV, ...]  # one per layer, in order
    native_seq_len: int  # the context the model was trained for
    notes: tuple[str, ...] = ()  # for readers of the figures
    state_nbytes: int = 0  # recurrent state of one session in f32, at any length; `bytes` does not include it
    doubts: tuple[str, ...] = ()  # those of `notes` that mean the figures may be wrong

    @cached_property
    def groups(self) -> Mapping[LayerKV, int]:
        """The different layers that cache something, and how many there are of each."""
        return Counter(layer for layer in self.layers if any(layer.rows))

    @property
    def window(self) -> int | None:
        """The widest sliding window; None if no layer slides."""
        return max((layer.window for layer in self.groups if layer.window is not None), default=None)

    def elements(self, seq_len: int, swa_full: bool = False) -> int:
        """Numbers one session caches at `seq_len` positions; see `bytes`."""
        seq_len = positive("seq_len", seq_len)
        return sum(n * layer.positions(seq_len, swa_full) * sum(layer.rows) for layer, n in self.groups.items())

    def bytes(self, seq_len: int, kv_dtype: KVDtype = "f32", n_sessions: int = 1, swa_full: bool = False) -> int:
        """Bytes of KV cache.

        Args:
            seq_len: positions each session holds.
            kv_dtype: a key of `KV_DTYPES`, or a pair of them for keys and values.
            n_sessions: sessions, each with its own cache.
            swa_full: let sliding-window layers hold every position too, as an engine that rewinds may want
                (llama.cpp's `--swa-full`).

        Raises:
            ParameterError: a setting is not a positive whole number, or the lengths of this model's heads are not
                multiples of the blocks of `kv_dtype`.
        """
        seq_len, n_sessions = positive("seq_len", seq_len), positive("n_sessions", n_sessions)
        keys, values = pair_of(kv_dtype)
        parts, total = [(keys, _block(keys)), (values, _block(values)), (keys, _block(keys))], 0
        for layer, n in self.groups.items():
            lengths = layer.key_length, layer.value_length, layer.index_length
            for (dtype, (block, block_nbytes)), length, row in zip(parts, lengths, layer.rows, strict=True):
                if length % block:
                    raise ParameterError(
                        f"kv_dtype {dtype!r} stores blocks of {block} numbers, and this model's rows of {length} "
                        "do not divide into them; use f16 or f32"
                    )
                total += n * layer.positions(seq_len, swa_full) * (row // block) * block_nbytes
        return n_sessions * total


class HasKVLayout(Protocol):
    """The part of `ModelConfig` that this file needs."""

    kv_layout: KVLayout
    seq_len: int


def kv_cache_bytes(
    config_or_layout: HasKVLayout | KVLayout,
    seq_len: int | None = None,
    kv_dtype: KVDtype = "f32",
    *,
    swa_full: bool = False,
) -> int:
    """Bytes of one session's KV cache: the sum over layers of positions x KV heads x (key + value length) x bytes.

    Args:
        config_or_layout: a model's `config`, or a `KVLayout`.
        seq_len: positions; by default `config.seq_len`, or a layout's native context.
        kv_dtype: a key of `KV_DTYPES`: "f32", "f16", "bf16", "q8_0", ..., or a pair of them for keys and values.
        swa_full: let sliding-window layers hold every position too.

    Raises:
        ParameterError: seq_len is not a positive whole number; kv_dtype is unknown or does not fit the model's heads.
    """
    if isinstance(config_or_layout, KVLayout):
        layout, default = config_or_layout, config_or_layout.native_seq_len
    else:
        layout, default = config_or_layout.kv_layout, config_or_layout.seq_len
    return layout.bytes(default if seq_len is None else seq_len, kv_dtype, swa_full=swa_full)


def pair_of(kv_dtype: KVDtype) -> tuple[str, str]:
    """The types of keys and of values."""
    return (kv_dtype, kv_dtype) if not isinstance(kv_dtype, tuple) or len(kv_dtype) != 2 else kv_dtype


def longest_seq_len(layout: KVLayout, nbytes: int, kv_dtype: str = "f32", n_sessions: int = 1) -> int | None:
    """The most positions that `n_sessions` sessions can each hold in `nbytes`; None if every length fits."""

    def cost(seq_len: int) -> int:
        return layout.bytes(seq_len, kv_dtype, n_sessions)

    return None if cost(MAX_SEQ_LEN) <= nbytes else bisect.bisect_right(range(1, MAX_SEQ_LEN), nbytes, key=cost)


def positive(name: str, value: int) -> int:
    """`value` as an int from 1 to `MAX_SEQ_LEN`; otherwise raises ParameterError, which mentions `name`."""
    return whole(name, value, 1, MAX_SEQ_LEN)


def _block(kv_dtype: str) -> tuple[int, int]:
    if isinstance(kv_dtype, str) and kv_dtype in KV_DTYPES:
        return KV_DTYPES[kv_dtype]
    raise ParameterError(f"kv_dtype is {kv_dtype!r}; expected one of {', '.join(KV_DTYPES)}")
