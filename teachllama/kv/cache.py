"""Where a session's keys and values live.

One anonymous mapping, reserved whole when created, resident as positions are written, given back on `close`. Layers
with a sliding window give the pages of positions that have left their window back as the session moves on.
Numbers are stored as `kv/stored.py` says. Knows nothing of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from teachllama.errors import ClosedError, TeachLlamaError, UnsupportedModelError
from teachllama.kv.formula import KVDtype, kv_cache_bytes
from teachllama.kv.pages import Pages
from teachllama.kv.stored import ENGINE_DTYPES, PAGE, PLAIN, decode, encode, row_nbytes, types_of

if TYPE_CHECKING:
    from teachllama.config import ModelConfig

SLACK = 64  # positions that a session can always go back: windows keep as many more than attention needs
STEP = 32  # positions given back at a time, for fewer system calls


class KVCache:
    """Keys and values of one session.

    Args:
        config: the model's dimensions.
        seq_len: positions to reserve.
        kv_dtype: "f32", "f16", "bf16", "q8_0" or "q4_0", or a pair of them: keys', values'. Under latent attention
            values are part of the keys, and have their type.
        swa_full: keep every position of sliding-window layers too, so that `rewind` can go anywhere.

    Raises:
        ParameterError: kv_dtype is none of these, or has blocks that the model's heads do not divide into.
    """

    in_one_piece = True  # so that views of it can be had

    def __init__(self, config: ModelConfig, seq_len: int, kv_dtype: KVDtype, swa_full: bool = False):
        keys, values = types_of(kv_dtype)
        self.kv_dtype: KVDtype = keys if keys == values else (keys, values)
        self.seq_len, self.swa_full = seq_len, swa_full
        self.shapes = config.kv_layout.layers
        self.windows = [None if swa_full else layer.window for layer in self.shapes]
        self._longest_window = max((w for w in self.windows if w is not None), default=0)
        self.latent_dim = config.latent_value_dim  # values are the first numbers of each key; 0: they have a place
        self.types = (keys, keys if self.latent_dim else values)
        lengths = [(s.key_length, s.key_length if self.latent_dim else s.value_length) for s in self.shapes]
        self.rows = [tuple(row_nbytes(n, t) for n, t in zip(pair, self.types, strict=True)) for pair in lengths]
        # bytes that can stay resident, and bytes of address space: they differ where windows are narrower than seq_len
        self.nbytes = kv_cache_bytes(config, seq_len, self.kv_dtype, swa_full=swa_full)
        self.reserved_nbytes = kv_cache_bytes(config, seq_len, self.kv_dtype, swa_full=True)
        self.kept_from = 0  # sliding-window layers hold positions from here on; set to 0 by whoever rewinds to 0
        self.whole_from = 0  # earlier positions of sliding-window layers were not in the file that filled them
        # For compiled kernels, of keys and of values, a row a layer: GGML's number of the type, bytes from a head to
        # the next, and the addresses of pages of 64 positions.
        size = (len(self.shapes), 2 + -(-seq_len // PAGE))
        self._tables = [np.full(size, ENGINE_DTYPES[t], np.int64) for t in self.types]
        self.ready_to = seq_len  # positions before this one can be written
        self.closed = False
        self._reserve()

    def _reserve(self) -> None:
        self._pages = Pages(self.reserved_nbytes)
        # All layers' keys, then all values; in a layer a head's positions side by side: attention reads them so.
        self._stored: list[list[np.ndarray]] = []  # of keys and values, for each layer (G, seq_len, bytes a row)
        at = 0
        for which in range(1 if self.latent_dim else 2):
            arrays = []
            for shape, rows in zip(self.shapes, self.rows, strict=True):
                arrays.append(self._pages.array(at, (shape.n_kv_heads, self.seq_len, rows[which]), np.uint8))
                at += arrays[-1].nbytes
            self._stored.append(arrays)
        self._stored = (self._stored * 2)[:2]
        for which, table in enumerate(self._tables):
            for layer, array in enumerate(self._stored[which]):
                pages = np.arange(table.shape[1] - 2) * PAGE * self.rows[layer][which]
                table[layer, 1:] = [self.seq_len * self.rows[layer][which], *(array.ctypes.data + pages)]

    def prepare(self, start: int, end: int) -> None:
        """Makes positions start to end ready to be written: here they always are."""

    def addresses(self) -> list[np.ndarray]:
        """For compiled kernels: the table of keys and that of values, (n_layers, 2 + pages) int64."""
        self.check_open()
        return self._tables

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """keys (n_layers, n_kv_heads, seq_len, head_dim) and values (..., value_dim).

        Views of f32 and f16, as they are stored; of other types copies, in float32.

        Raises:
            UnsupportedModelError: layers differ in their shapes, so that there is no such array.
        """
        self.check_open()
        if len({(s.n_kv_heads, s.key_length, s.value_length) for s in self.shapes}) > 1:
            raise UnsupportedModelError("this model's layers cache different shapes; look at them one by one")
        parts = [self._array(which, kind) for which, kind in enumerate(self.types[: 1 if self.latent_dim else 2])]
        return parts[0], parts[-1][..., : self.latent_dim or None]

    def _array(self, which: int, kind: str) -> np.ndarray:
        if kind in PLAIN and self.in_one_piece:
            at, shape = which * sum(a.nbytes for a in self._stored[0]), self._stored[which][0].shape
            return self._pages.array(at, (len(self.shapes), *shape), np.uint8).view(PLAIN[kind])
        return np.stack([decode(self.read(i, which, 0, self.seq_len), kind) for i in range(len(self.shapes))])

    def read(self, layer: int, which: int, begin: int, end: int) -> np.ndarray:
        """Positions begin to end of a layer's keys (which: 0) or values (1), as stored: uint8 (G, n, bytes a row)."""
        return self._stored[which][layer][:, begin:end]

    def write(self, layer: int, which: int, begin: int, rows: np.ndarray) -> None:
        """The reverse of `read`."""
        self._stored[which][layer][:, begin : begin + rows.shape[1]] = rows

    def raw(self, layer: int, end: int, begin: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Copies of what a layer stores of positions begin to end, keys and values: uint8 (G, n, bytes a row).

        Under latent attention, whose values are part of the keys, the second is empty.
        """
        self.check_open()
        keys, values = (np.array(self.read(layer, which, begin, end)) for which in (0, 1))
        return keys, values[..., :0] if self.latent_dim else values

    def write_raw(self, layer: int, keys: np.ndarray, values: np.ndarray, begin: int = 0) -> None:
        """The reverse of `raw`. The caller makes positions ready first: see `prepare`."""
        self.check_open()
        for which, rows in enumerate((keys, values)):
            if rows.shape[-1]:
                self.write(layer, which, begin, rows)

    def extend(self, layer: int, start: int, k: np.ndarray, v: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
        """Writes k (n, G, d) and v (n, G, dv) at positions start to start + n; returns what the layer attends to.

        Args:
            v: None under latent attention, whose values are part of the keys.

        Returns:
            keys (G, T, d) and values (G, T, dv) in float32, and how many of the T lie before `start`.
        """
        self.check_open()
        end, window = start + len(k), self.windows[layer]
        for which, new in enumerate((k, v)):
            if new is not None:
                self.write(layer, which, start, encode(new.transpose(1, 0, 2), self.types[which]))
        first = 0 if window is None else max(0, start - window + 1)
        keys, values = (decode(self.read(layer, which, first, end), self.types[which]) for which in (0, 1))
        return keys, values[..., : self.latent_dim or None], start - first

    def forget_before(self, n_past: int) -> None:
        """Gives back pages that sliding-window layers need neither from position `n_past - SLACK` on nor later."""
        window = self._longest_window
        keep = n_past - SLACK - window + 1
        if not window or keep - self.kept_from < STEP:
            return
        self.kept_from = keep  # first: an interrupt on the way loses what is promised no longer
        self._give_back_before(keep)

    def _give_back_before(self, keep: int) -> None:
        base = int(self._tables[0][0, 2])
        for layer, window in enumerate(self.windows):
            for stored in self._stored if window is not None else ():
                array = stored[layer]
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

    def release_from(self, n_past: int) -> None:
        """Positions from n_past on are no longer needed: nothing to do where they are reserved."""

    def copy_from(self, other: KVCache, n_past: int) -> None:
        """Copies another cache's first `n_past` positions."""
        for layer, window in enumerate(self.windows):
            first = 0 if window is None else other.kept_from
            for which in (0,) if self.latent_dim else (0, 1):
                self.write(layer, which, first, other.read(layer, which, first, n_past))
        self.kept_from = other.kept_from

    def check_open(self) -> None:
        """Raises `ClosedError` after `close`."""
        if self.closed:
            raise ClosedError("this session was closed and its KV cache freed; create another with create_session()")

    def clear(self) -> None:
        """Gives every page back; the cache is as it was when created."""
        self._pages.give_back(0, self.reserved_nbytes)
        self.kept_from = self.whole_from = 0

    def close(self) -> None:
        """Gives the memory back. A view still held reads zeros from now on (see `Pages.close`)."""
        self.closed, self._stored = True, []
        self._pages.close()
