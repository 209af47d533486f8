"""`Pool`: memory for many sessions, in pages of 64 positions of one layer.

A session takes pages as it grows. A fork shares them, and a shared page is copied before it is written. The tables of
the caches, and the tree of prefixes, are the only record of the pages in use. How many hold a page, and which pages are
free, is counted from them, so an error or Ctrl-C at any point cannot leak a page. https://arxiv.org/abs/2309.06180

Independent of arithmetic.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np

from teachllama import session_file
from teachllama.errors import ClosedError, ParameterError, PoolFullError
from teachllama.kv.cache import SLACK, STEP, KVCache
from teachllama.kv.formula import KVDtype, positive
from teachllama.kv.pages import Pages
from teachllama.kv.stored import PAGE
from teachllama.prefixes import Prefixes
from teachllama.session import Session

if TYPE_CHECKING:
    from teachllama.model import Model


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()  # all pools of this process, for `_after_fork`


class PagedCache(KVCache):
    """The keys and values of one session of a pool.

    Attributes:
        held: (n_layers, blocks), the page of each layer and block of 64 positions; -1 for none. The only record of the
            pages this cache holds.
    """

    in_one_piece = False

    def __init__(self, pool: Pool, seq_len: int, swa_full: bool):
        self.pool = pool
        super().__init__(pool.model.config, seq_len, pool.kv_dtype, swa_full)

    def _reserve(self) -> None:
        self.held = np.full((len(self.shapes), self._tables[0].shape[1] - 2), -1, np.int64)
        self.ready_to = 0
        rows, heads = np.array(self.rows), np.array([s.n_kv_heads for s in self.shapes])
        self._caching = heads > 0
        self._values_at = np.zeros(len(heads), np.int64) if self.latent_dim else PAGE * heads * rows[:, 0]
        for which, table in enumerate(self._tables):
            table[:, 1] = PAGE * rows[:, which]
        with self.pool.lock:
            self.pool.caches.add(self)

    def lacking(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(layers, blocks) that need a new page before positions start to end are written: missing, or shared."""
        blocks = slice(start // PAGE, -(-end // PAGE))
        held = self.held[:, blocks]
        lacks = (held < 0) | (self.pool.counts()[held] > 1)  # the count at [-1] does not matter
        layers, at = np.nonzero(lacks & self._caching[:, None])
        return layers, at + blocks.start

    def prepare(self, start: int, end: int) -> None:
        """Takes the pages that positions start to end need, and copies shared ones.

        Raises:
            PoolFullError: there are too few. Nothing was changed.
        """
        self.check_open()
        with self.pool.lock:
            layers, blocks = self.lacking(start, end)
            if len(layers):
                pages = self.pool.take(len(layers))
                for old, new in zip(self.held[layers, blocks], pages, strict=True):
                    if old >= 0:
                        self.pool.memory(new)[:] = self.pool.memory(old)
                self.pool.changed()
                self.held[layers, blocks] = pages
            self.ready_to = end

    def hold(self, pages: np.ndarray) -> None:
        """Uses shared pages, (n_layers, n), for the first positions."""
        self.pool.changed()
        self.held[:, : pages.shape[1]] = pages

    def addresses(self) -> list[int]:
        """For compiled kernels; see `KVCache.addresses`."""
        self.check_open()
        at = np.where(self.held < 0, 0, self.pool.address + self.held * self.pool.page_nbytes)
        self._tables[0][:, 2:] = at
        self._tables[1][:, 2:] = at + self._values_at[:, None]
        return self._tables_at

    def page(self, layer: int, which: int, block: int) -> np.ndarray | None:
        """One page's keys or values, (G, 64, bytes per row); None if no page is held."""
        page = int(self.held[layer, block])
        if page < 0:
            return None
        at, shape = which * int(self._values_at[layer]), (self.shapes[layer].n_kv_heads, PAGE, self.rows[layer][which])
        return self.pool.memory(page)[at : at + shape[0] * shape[1] * shape[2]].reshape(shape)

    def read(self, layer: int, which: int, begin: int, end: int) -> np.ndarray:
        """A copy, gathered from pages; zeros where no page is held."""
        out = np.zeros((self.shapes[layer].n_kv_heads, max(0, end - begin), self.rows[layer][which]), np.uint8)
        for block in range(begin // PAGE, -(-end // PAGE)):
            page, first = self.page(layer, which, block), max(begin, block * PAGE)
            last = min(end, (block + 1) * PAGE)
            if page is not None:
                out[:, first - begin : last - begin] = page[:, first - block * PAGE : last - block * PAGE]
        return out

    def write(self, layer: int, which: int, begin: int, rows: np.ndarray) -> None:
        """The reverse of `read`, where pages are held."""
        end = begin + rows.shape[1]
        for block in range(begin // PAGE, -(-end // PAGE)):
            page, first, last = self.page(layer, which, block), max(begin, block * PAGE), min(end, (block + 1) * PAGE)
            if page is not None:
                page[:, first - block * PAGE : last - block * PAGE] = rows[:, first - begin : last - begin]

    def _let_go(self, layers: np.ndarray | slice, blocks: slice) -> None:
        if (self.held[layers, blocks] >= 0).any():
            with self.pool.lock:
                self.pool.changed()
                self.held[layers, blocks] = -1

    def _give_back_before(self, keep: int) -> None:
        sliding = np.array([window is not None for window in self.windows])
        self._let_go(np.flatnonzero(sliding), slice(keep // PAGE))

    def release_from(self, n_past: int) -> None:
        """Releases the pages that hold no position before n_past."""
        if not n_past:
            self.whole_from = 0
        self._let_go(slice(None), slice(-(-n_past // PAGE), None))
        self.ready_to = min(self.ready_to, n_past)

    def copy_from(self, other: KVCache, n_past: int) -> None:
        """Shares the pages of another cache's first `n_past` positions."""
        if not isinstance(other, PagedCache) or other.pool is not self.pool:
            raise ParameterError("a session of a pool can only be forked within that pool")
        with self.pool.lock:
            self.hold(other.held[:, : -(-n_past // PAGE)])
        self.kept_from, self.whole_from = other.kept_from, other.whole_from

    @property
    def held_nbytes(self) -> int:
        """Bytes of the pages it holds, shared ones included."""
        return int((self.held >= 0).sum()) * self.pool.page_nbytes

    def clear(self) -> None:
        """Releases every page."""
        self.release_from(0)
        self.kept_from = self.whole_from = 0

    def close(self) -> None:
        """Returns every page to the pool."""
        self.closed = True  # from here on its table is not counted, even if an interrupt comes before the next line
        self.release_from(0)


class PooledSession(Session):
    """A session whose keys and values live in a pool. `k_cache` and `v_cache` are copies, gathered from pages."""

    def __init__(self, pool: Pool, seq_len: int, seed: int | None, swa_full: bool):
        self.pool = pool
        super().__init__(pool.model, seq_len, pool.kv_dtype, seed, swa_full)

    def _new_cache(self, kv_dtype: KVDtype, swa_full: bool) -> KVCache:
        return PagedCache(self.pool, self.seq_len, swa_full)

    def _twin(self, seed: int | None) -> Session:
        return self.pool.create_session(seq_len=self.seq_len, seed=seed, swa_full=self._cache.swa_full)

    @property
    def kv_nbytes(self) -> int:
        """Bytes of the pages this session holds now; a shared page is counted for every session that holds it."""
        cache = self._cache
        assert isinstance(cache, PagedCache)
        return cache.held_nbytes


class Pool:
    """Memory that many sessions of one model share. Make one with `Model.create_pool`.

    Attributes:
        model: the model of all its sessions.
        kv_dtype: the cache type of all its sessions.
        n_pages, page_nbytes: the pool's size.
        prefixes: the pages it keeps for prompts that begin alike: see `Prefixes`.
        lock: held during each change. A thread that also needs a session's lock must take that one first.
    """

    def __init__(self, model: Model, nbytes: int, kv_dtype: KVDtype = "f32"):
        self.model, self.lock = model, threading.RLock()
        self.caches: weakref.WeakSet[PagedCache] = weakref.WeakSet()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        model.weights  # raises if the model is closed
        layout, nbytes = model.config.kv_layout, positive("nbytes", nbytes)
        self.windows = [layer.window for layer in layout.layers]
        shape = KVCache(model.config, PAGE, kv_dtype, True)  # checks the type, and gives the lengths of rows
        sizes = [
            PAGE * s.n_kv_heads * (rows[0] if shape.latent_dim else sum(rows))
            for s, rows in zip(shape.shapes, shape.rows, strict=True)
        ]
        shape.close()
        self.kv_dtype = shape.kv_dtype
        self.page_nbytes = -(-max(sizes) // 64) * 64
        self.n_pages = nbytes // self.page_nbytes
        # The windows of the layers that have a cache.
        self._windows_cached = [w for w, size in zip(self.windows, sizes, strict=True) if size]
        if self.n_pages < self.pages_for(1):
            raise ParameterError(
                f"nbytes is {nbytes:,}; a session's first {PAGE} positions need {self.pages_for(1)} pages of "
                f"{self.page_nbytes:,} bytes: {self.pages_for(1) * self.page_nbytes:,}"
            )
        self.nbytes = self.n_pages * self.page_nbytes
        self._pages = Pages(self.nbytes, huge=True)
        self._memory = self._pages.array(0, (self.n_pages, self.page_nbytes), np.uint8)
        self.address: int = self._memory.ctypes.data
        self._counts: np.ndarray | None = None
        self.closed = False
        self.prefixes = Prefixes(self)
        _pools.add(self)

    def create_session(
        self, *, seq_len: int | None = None, seed: int | None = None, swa_full: bool = False
    ) -> PooledSession:
        """A new session, which holds no page yet. Arguments: see `Model.create_session`."""
        if self.closed:
            raise ClosedError("this pool was closed and its memory freed; create another with create_pool()")
        session = PooledSession(self, self.model.config.seq_len if seq_len is None else seq_len, seed, swa_full)
        self.model._sessions.add(session)
        self._sessions.add(session)
        return session

    def load_session(
        self, path: str | os.PathLike[str], *, rebuild: bool = False, seq_len: int | None = None
    ) -> Session:
        """A session of this pool in the state that a file holds; see `Model.load_session`.

        Raises:
            SessionFileError: the file is refused, with reason "memory" if the pool has no room for it.
        """
        create = lambda *, kv_dtype, **settings: self.create_session(**settings)
        return session_file.load(
            self.model, path, rebuild=rebuild, kv_dtype=self.kv_dtype, seq_len=seq_len, create=create
        )

    # ---- counting ----

    def changed(self) -> None:
        """Must be called before any table changes: the pages are then counted again."""
        self._counts = None

    def counts(self) -> np.ndarray:
        """How many caches and prefixes hold each page: (n_pages,)."""
        if self._counts is None:
            with self.lock:
                held = [cache.held.ravel() for cache in list(self.caches) if not cache.closed]
                pages = np.concatenate([*held, self.prefixes.pages()])
                self._counts = np.bincount(pages[pages >= 0], minlength=self.n_pages)
        return self._counts

    @property
    def n_free(self) -> int:
        """Number of pages that no cache or prefix holds."""
        with self.lock:
            self.changed()  # a session may have been collected meanwhile
            return int((self.counts() == 0).sum())

    @property
    def n_available(self) -> int:
        """Number of pages that sessions can take: free ones, and those that `prefixes` can evict."""
        with self.lock:
            return self.n_free + self.prefixes.n_idle_pages()

    def pages_for(self, n: int, step: int | None = None) -> int:
        """The most pages that n positions of a session take.

        Args:
            step: the most tokens evaluated at a time; sliding windows release pages after each. None: all at once.
        """
        total = 0
        for window in self._windows_cached:
            most = n if window is None or step is None else min(n, window + SLACK + STEP + step + PAGE)
            total += -(-most // PAGE)
        return total

    @property
    def longest(self) -> int:
        """The most positions that one session can have in the whole pool; only layers without a window limit it."""
        n_whole = self._windows_cached.count(None)
        return PAGE * (self.n_pages // n_whole) if n_whole else sys.maxsize

    def take(self, n: int) -> np.ndarray:
        """Numbers of n free pages. Evicts prefixes if there are too few.

        The caller must hold the lock, and write the pages into a table before releasing it.

        Raises:
            PoolFullError: there are too few pages, even with eviction. Nothing was changed.
        """
        free = np.flatnonzero(self.counts() == 0)
        if len(free) < n:
            available = self.n_available
            if available < n:
                raise PoolFullError(
                    f"{n} pages of {self.page_nbytes:,} bytes are needed, and {available} of the pool's "
                    f"{self.n_pages} can be had. Nothing was changed; close or rewind sessions, or create a larger pool"
                )
            self.prefixes.evict(n - self.n_free)
            free = np.flatnonzero(self.counts() == 0)
        return free[:n]

    def pin(self, pages: np.ndarray) -> PagedCache:
        """Holds pages, (n_layers, n), so that no one else can take them until the result is closed or collected.

        Their contents are read as in a cache of n times 64 positions: see `PagedCache.page`.
        """
        with self.lock:
            pin = PagedCache(self, PAGE * max(1, pages.shape[1]), swa_full=True)
            pin.hold(pages)
        return pin

    def memory(self, page: int) -> np.ndarray:
        """One page, uint8 (page_nbytes,). Raises `ClosedError` after `close`."""
        memory = self._memory
        if self.closed:
            raise ClosedError("the pool was closed, and its pages given back; create another")
        row: np.ndarray = memory[page]
        return row

    # ---- closing ----

    def close(self) -> None:
        """Closes its sessions, and returns the memory to the operating system."""
        self.closed = True
        for session in list(self._sessions):
            session.close()
        self.prefixes.clear()
        self._memory = np.empty((0, 0), np.uint8)
        self._pages.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Pool: closed>"
        return f"<Pool: {self.n_pages - self.n_free} of {self.n_pages} pages in use, {self.nbytes / 1e6:,.1f} MB>"


def _after_fork() -> None:
    """Replaces locks in a forked process: a thread that held one does not exist here, and would never release it."""
    for pool in list(_pools):
        pool.lock = threading.RLock()
        pool.changed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
