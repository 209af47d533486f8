"""Storage for a session's keys and values.

One anonymous mapping: reserved whole when created, resident as positions are written, freed on `close`. Layers with a
sliding window release the pages of positions that have left their window as the session advances. `kv/stored.py`
defines how numbers are stored. Independent of tokens.
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

SLACK = 64  # positions that a session can always rewind: windows keep this many more than attention needs
STEP = 32  # positions released at a time, for fewer system calls


class KVCache:
    """Keys and values of one session.

    Args:
        config: the model's dimensions.
        seq_len: positions to reserve.
        kv_dtype: "f32", "f16", "bf16", "q8_0" or "q4_0", or a pair of them for keys and values. Under latent attention
            values are part of the keys, and have their type.
        swa_full: keep every position of sliding-window layers too, so that `rewind` can go to any position.

    Raises:
        ParameterError: kv_dtype is none of these, or the heads' lengths are not multiples of its blocks.
    """

    in_one_piece = True  # so views of it are possible

    def __init__(self, config: ModelConfig, seq_len: int, kv_dtype: KVDtype, swa_full: bool = False):
        keys, values = types_of(kv_dtype)
        self.kv_dtype: KVDtype = keys if keys == values else (keys, values)
        self.seq_len, self.swa_full = seq_len, swa_full
        self.shapes = config.kv_layout.layers
        self.windows = [None if swa_full else layer.window for layer in self.shapes]
        self._longest_window = max((w for w in self.windows if w is not None), default=0)
        self.latent_dim = config.latent_value_dim  # values are this many first numbers of each key; 0: separate
        self.types = (keys, keys if self.latent_dim else values)
        lengths = [(s.key_length, s.key_length if self.latent_dim else s.value_length) for s in self.shapes]
        self.rows = [tuple(row_nbytes(n, t) for n, t in zip(pair, self.types, strict=True)) for pair in lengths]
        # bytes that can stay resident, and bytes of address space: they differ where windows are narrower than seq_len
        self.nbytes = kv_cache_bytes(config, seq_len, self.kv_dtype, swa_full=swa_full)
        self.reserved_nbytes = kv_cache_bytes(config, seq_len, self.kv_dtype, swa_full=True)
        self.kept_from = 0  # sliding-window layers hold positions from here on; the session's rewind to 0 sets it to 0
        self.whole_from = 0  # sliding-window layers lack earlier positions: the session file did not have them
        # For compiled kernels, a table for keys and one for values. Each has one row per layer: GGML's number of the
        # type, bytes from one head to the next, and the addresses of pages of 64 positions.
        size = (len(self.shapes), 2 + -(-seq_len // PAGE))
        self._tables = [np.full(size, ENGINE_DTYPES[t], np.int64) for t in self.types]
        self._tables_at = [table.ctypes.data for table in self._tables]
        self.ready_to = seq_len  # positions before this one can be written
        self.closed = False
        self._reserve()

    def _reserve(self) -> None:
        self._pages = Pages(self.reserved_nbytes)
        # All layers' keys, then all values. In a layer a head's positions are contiguous, as attention reads them.
        self._stored: list[list[np.ndarray]] = []  # keys, values; for each layer (G, seq_len, bytes per row)
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
        """Makes positions start to end ready to be written. In this class they always are."""

    def addresses(self) -> list[int]:
        """For compiled kernels: where the table of keys and that of values are, (n_layers, 2 + pages) int64 each."""
        self.check_open()
        return self._tables_at

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """keys (n_layers, n_kv_heads, seq_len, head_dim) and values (..., value_dim).

        For f32 and f16 these are views of the cache; for other types, copies in float32.

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
        """Positions begin to end of a layer's keys (which: 0) or values (1), as stored: uint8 (G, n, bytes per row)."""
        return self._stored[which][layer][:, begin:end]

    def write(self, layer: int, which: int, begin: int, rows: np.ndarray) -> None:
        """The reverse of `read`."""
        self._stored[which][layer][:, begin : begin + rows.shape[1]] = rows

    def raw(self, layer: int, end: int, begin: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Copies of a layer's keys and values at positions begin to end, as stored: uint8 (G, n, bytes per row).

        Under latent attention, whose values are part of the keys, the second is empty.
        """
        self.check_open()
        keys, values = (np.array(self.read(layer, which, begin, end)) for which in (0, 1))
        return keys, values[..., :0] if self.latent_dim else values

    def write_raw(self, layer: int, keys: np.ndarray, values: np.ndarray, begin: int = 0) -> None:
        """The reverse of `raw`. The caller must call `prepare` first."""
        self.check_open()
        for which, rows in enumerate((keys, values)):
            if rows.shape[-1]:
                self.write(layer, which, begin, rows)

    def extend(self, layer: int, start: int, k: np.ndarray, v: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
        """Writes k (n, G, d) and v (n, G, dv) at positions start to start + n; returns all that the layer attends to.

        Args:
            v: None under latent attention, whose values are part of the keys.

        Returns:
            keys (G, T, d) and values (G, T, dv) in float32, and how many of the T positions are before `start`.
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
        """Releases pages that sliding-window layers do not need at position `n_past - SLACK` or later."""
        window = self._longest_window
        keep = n_past - SLACK - window + 1
        if not window or keep - self.kept_from < STEP:
            return
        self.kept_from = keep  # first: an interrupt below loses only positions that are no longer promised
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
        """The earliest position, apart from 0, from which on every position's window is held; 0 if all are."""
        return self.kept_from + self._longest_window - 1 if self.kept_from else 0

    def check_rewind(self, n_past: int) -> None:
        """Raises if sliding-window layers no longer hold the positions that `n_past` would attend to."""
        if 0 < n_past < self.can_rewind_to:
            raise TeachLlamaError(
                f"cannot rewind to position {n_past}: sliding-window layers have given back positions that it attends "
                f"to. session.can_rewind_to is {self.can_rewind_to}: that position, any later one, and 0 work. For the "
                "others, evaluate again from 0, or create the session with swa_full=True"
            )

    def release_from(self, n_past: int) -> None:
        """Releases positions from n_past on. Nothing to do in this class: their memory stays reserved."""

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
        """Releases every page; the cache is as it was when created."""
        self._pages.give_back(0, self.reserved_nbytes)
        self.kept_from = self.whole_from = 0

    def close(self) -> None:
        """Frees the memory. A view that is still in use reads zeros from now on (see `Pages.close`)."""
        self.closed, self._stored = True, []
        self._pages.close()
