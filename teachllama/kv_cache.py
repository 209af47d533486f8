"""Where a session's keys and values live.

One anonymous mapping, reserved whole when created, resident as positions are written, given back on `close`. Layers
with a sliding window give the pages of positions that have left their window back as the session moves on.
Knows nothing of tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from teachllama.config import ModelConfig
from teachllama.errors import ClosedError, ParameterError, TeachLlamaError
from teachllama.kv_layout import kv_cache_bytes
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
        self.windows = [None if swa_full else layer.window for layer in config.kv_layout.layers]
        self._longest_window = max((w for w in self.windows if w is not None), default=0)
        # bytes that can stay resident, and bytes of address space: they differ where windows are narrower than seq_len
        self.nbytes = kv_cache_bytes(config, seq_len, kv_dtype, swa_full=swa_full)
        self.reserved_nbytes = kv_cache_bytes(config, seq_len, kv_dtype, swa_full=True)
        shape = (
            config.n_layers,
            config.n_kv_heads,
            seq_len,
        )  # a head's positions side by side: attention reads them so
        dtype = DTYPES[kv_dtype]
        self._pages = Pages(self.reserved_nbytes)
        self._keys: np.ndarray | None = self._pages.array(0, (*shape, config.head_dim), dtype)
        self._values: np.ndarray | None = self._pages.array(self._keys.nbytes, (*shape, config.value_dim), dtype)
        self.kept_from = 0  # sliding-window layers hold positions from here on; set to 0 by whoever rewinds to 0

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """keys (n_layers, n_kv_heads, seq_len, head_dim) and values (..., value_dim), as they are stored."""
        if self._keys is None or self._values is None:
            raise ClosedError(
                "this session was closed and its KV cache given back; create another with create_session()"
            )
        return self._keys, self._values

    def extend(self, layer: int, start: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Writes k (n, G, d) and v (n, G, dv) at positions start to start + n; returns what the layer attends to.

        Returns:
            keys (G, T, d) and values (G, T, dv) in float32, and how many of the T lie before `start`.
        """
        all_keys, all_values = self.arrays()
        keys, values, end = all_keys[layer], all_values[layer], start + len(k)
        keys[:, start:end], values[:, start:end] = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
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
        keys, values = self.arrays()
        self.kept_from = keep  # first: an interrupt on the way loses what is promised no longer
        for array, offset in ((keys, 0), (values, keys.nbytes)):
            by_layer, by_head, by_position = array.strides[:3]
            for layer, w in enumerate(self.windows):
                for head in range(array.shape[1] if w is not None else 0):
                    row = offset + layer * by_layer + head * by_head
                    self._pages.give_back(row, keep * by_position)

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
        for mine, theirs in zip(self.arrays(), other.arrays()):
            for layer, window in enumerate(self.windows):
                kept = slice(0 if window is None else other.kept_from, n_past)
                mine[layer, :, kept] = theirs[layer, :, kept]
        self.kept_from = other.kept_from

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._keys is None

    def clear(self) -> None:
        """Gives every page back; the cache is as it was when created."""
        self._pages.give_back(0, self.reserved_nbytes)
        self.kept_from = 0

    def close(self) -> None:
        """Gives the memory back. A view still held reads zeros from now on (see `Pages.close`)."""
        self._keys = self._values = None
        self._pages.close()
