"""Where a session's keys and values live.

One anonymous mapping, reserved whole when created, resident as positions are written, given back on `close`. Layers
with a sliding window give the pages of positions that have left their window back as the session moves on.
Knows nothing of tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from teachllama.config import ModelConfig
from teachllama.errors import ClosedError, ParameterError, TeachLlamaError, UnsupportedModelError
from teachllama.kv import kv_cache_bytes
from teachllama.pages import Pages

DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
SLACK = 64  # positions that a session can always go back: windows keep as many more than attention needs
STEP = 32  # positions given back at a time, for fewer system calls


class KVCache:
    """Keys and values of one session.

    Args:
        config: the model's dimensions.
        seq_len: positions to reserve.
        kv_dtype: "f32" or "f16".
        swa_full: keep every position of sliding-window layers too, so that `rewind` can go anywhere.
    """

    def __init__(self, config: ModelConfig, seq_len: int, kv_dtype: str, swa_full: bool = False):
        if kv_dtype not in DTYPES:
            raise ParameterError(f"kv_dtype is {kv_dtype!r}; this engine's caches are {' or '.join(map(repr, DTYPES))}")
        self.seq_len, self.kv_dtype, self.swa_full = seq_len, kv_dtype, swa_full
        self.types = (kv_dtype, kv_dtype)  # of keys, of values
        self.shapes = config.kv_layout.layers
        self.windows = [None if swa_full else layer.window for layer in self.shapes]
        self._longest_window = max((w for w in self.windows if w is not None), default=0)
        # bytes that can stay resident, and bytes of address space: they differ where windows are narrower than seq_len
        self.nbytes = kv_cache_bytes(config, seq_len, kv_dtype, swa_full=swa_full)
        self.reserved_nbytes = kv_cache_bytes(config, seq_len, kv_dtype, swa_full=True)
        self._pages = Pages(self.reserved_nbytes)
        # All layers' keys, then all values; in a layer a head's positions side by side: attention reads them so.
        keys, at = self._laid_out([layer.key_length for layer in self.shapes], 0)
        values, _ = self._laid_out([layer.value_length for layer in self.shapes], at)
        self._owns_values = not config.latent_value_dim
        if config.latent_value_dim:  # the first numbers of each key
            values = [k[..., : config.latent_value_dim] for k in keys]
        self._layers: list[tuple[np.ndarray, np.ndarray]] | None = list(zip(keys, values, strict=True))
        self._addresses = tuple(
            np.array([array.ctypes.data for array in arrays], np.int64) for arrays in (keys, values)
        )
        self.kept_from = 0  # sliding-window layers hold positions from here on; set to 0 by whoever rewinds to 0

    def _laid_out(self, lengths: list[int], at: int) -> tuple[list[np.ndarray], int]:
        """Arrays (n_kv_heads, seq_len, length), one per layer, from `at` on, and where they end."""
        dtype, arrays = DTYPES[self.kv_dtype], []
        for layer, length in zip(self.shapes, lengths, strict=True):
            arrays.append(self._pages.array(at, (layer.n_kv_heads, self.seq_len, length), dtype))
            at += arrays[-1].nbytes
        return arrays, at

    @property
    def layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each layer keys (n_kv_heads, seq_len, head_dim) and values (..., value_dim), as they are stored."""
        if self._layers is None:
            raise ClosedError(
                "this session was closed and its KV cache given back; create another with create_session()"
            )
        return self._layers

    def addresses(self) -> tuple[np.ndarray, ...]:
        """For compiled kernels: where each layer's keys begin, and its values, (n_layers,) int64."""
        self.layers  # raises if closed
        return self._addresses

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """keys (n_layers, n_kv_heads, seq_len, head_dim) and values (..., value_dim), as they are stored.

        A view, except where layers differ in their shapes: then there is no such array.

        Raises:
            UnsupportedModelError: layers differ; `layers` has each.
        """
        layers = self.layers
        if len({(k.shape, v.shape) for k, v in layers}) > 1:
            raise UnsupportedModelError("this model's layers cache different shapes; look at them one by one")
        (k, v), n = layers[0], len(layers)
        keys = self._pages.array(0, (n, *k.shape), k.dtype)
        if np.may_share_memory(k, v):  # latent attention
            return keys, keys[..., : v.shape[-1]]
        return keys, self._pages.array(keys.nbytes, (n, *v.shape), v.dtype)

    def extend(self, layer: int, start: int, k: np.ndarray, v: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
        """Writes k (n, G, d) and v (n, G, dv) at positions start to start + n; returns what the layer attends to.

        Args:
            v: None under latent attention, whose values are part of the keys.

        Returns:
            keys (G, T, d) and values (G, T, dv) in float32, and how many of the T lie before `start`.
        """
        keys, values = self.layers[layer]
        end = start + len(k)
        keys[:, start:end] = k.transpose(1, 0, 2)
        if v is not None:
            values[:, start:end] = v.transpose(1, 0, 2)
        window = self.windows[layer]
        first = 0 if window is None else max(0, start - window + 1)
        visible = slice(first, end)
        return (
            keys[:, visible].astype(np.float32, copy=False),
            values[:, visible].astype(np.float32, copy=False),
            start - first,
        )

    def forget_before(self, n_past: int) -> None:
        """Gives back pages that sliding-window layers need neither from position `n_past - SLACK` on nor later."""
        window = self._longest_window
        keep = n_past - SLACK - window + 1
        if not window or keep - self.kept_from < STEP:
            return
        self.kept_from = keep  # first: an interrupt on the way loses what is promised no longer
        self._give_back_before(keep)

    def _give_back_before(self, keep: int) -> None:
        base = int(self._addresses[0][0])
        for layer, w in zip(self.layers, self.windows, strict=True):
            for array in layer if w is not None else ():
                by_head, by_position = array.strides[:2]
                for head in range(array.shape[0]):
                    self._pages.give_back(array.ctypes.data - base + head * by_head, keep * by_position)

    @property
    def can_rewind_to(self) -> int:
        """The earliest position, apart from 0, whose window is still held, and that of every later one; 0 for all."""
        return self.kept_from + self._longest_window - 1 if self.kept_from else 0

    def check_rewind(self, n_past: int) -> None:
        """Raises where sliding-window layers no longer hold what position `n_past` would attend to."""
        if 0 < n_past < self.can_rewind_to:
            raise TeachLlamaError(
                f"cannot rewind to position {n_past}: sliding-window layers have given back positions that it attends "
                f"to. session.can_rewind_to is {self.can_rewind_to}: that position, any later one, and 0 work. For the "
                "others, evaluate again from 0, or create the session with swa_full=True"
            )

    def copy_from(self, other: KVCache, n_past: int) -> None:
        """Copies another cache's first `n_past` positions."""
        for mine, theirs, window in zip(self.layers, other.layers, self.windows, strict=True):
            kept = slice(0 if window is None else other.kept_from, n_past)
            for to, source in zip(mine, theirs, strict=True):
                to[:, kept] = source[:, kept]
        self.kept_from = other.kept_from

    # Session files read and write positions through the next three, and need to know nothing else of a cache.

    def prepare(self, start: int, end: int) -> None:
        """Makes positions start to end ready to be written: here they always are."""

    def raw(self, layer: int, end: int, begin: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Copies of what a layer stores of positions begin to end, keys and values: uint8 (G, n, bytes a row).

        Under latent attention, whose values are part of the keys, the second is empty.
        """
        keys, values = (np.array(a[:, begin:end], order="C").view(np.uint8) for a in self.layers[layer])
        return keys, values if self._owns_values else values[..., :0]

    def write_raw(self, layer: int, keys: np.ndarray, values: np.ndarray, begin: int = 0) -> None:
        """The reverse of `raw`. The caller makes positions ready first: see `prepare`."""
        for array, rows in zip(self.layers[layer], (keys, values), strict=True):
            if rows.shape[-1]:
                array[:, begin : begin + rows.shape[1]] = rows.view(array.dtype)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._layers is None

    def clear(self) -> None:
        """Gives every page back; the cache is as it was when created."""
        self._pages.give_back(0, self.reserved_nbytes)
        self.kept_from = 0

    def close(self) -> None:
        """Gives the memory back. A view still held reads zeros from now on (see `Pages.close`)."""
        self._layers = None
        self._pages.close()
