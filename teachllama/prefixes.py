"""`Prefixes`: pages that a pool keeps from earlier sessions, for others that begin with the same tokens.

A radix tree whose edges are 64 token ids, the positions of a page. A node holds one page per layer. Nodes are looked up
by the ids themselves, not by a hash alone. https://arxiv.org/abs/2312.07104 (RadixAttention)

`prefix_file.py` writes and reads it. Independent of arithmetic: a page is a number.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from teachllama import prefix_file
from teachllama.errors import ClosedError, ParameterError
from teachllama.kv.stored import PAGE

if TYPE_CHECKING:
    from teachllama.pool import PagedCache, Pool
    from teachllama.session import Session

_turns = itertools.count(1)


@dataclass(eq=False, slots=True)
class Node:
    """64 positions that follow those of the parent.

    Attributes:
        tokens: their token ids.
        pages: the page of each layer, (n_layers,); -1 where a sliding window had released it.
        used: when it was last used; larger is later.
    """

    tokens: tuple[int, ...]
    pages: np.ndarray
    parent: Node | None
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    used: int = 0


@dataclass(frozen=True, slots=True)
class PrefixStatistics:
    """What the tree holds now, and how much it has saved so far."""

    n_tokens: int  # positions held
    n_pages: int  # pages held, whether or not sessions hold them too
    n_idle_pages: int  # pages that no session holds, which can be evicted
    n_lookups: int
    n_hits: int
    n_reused: int  # tokens that were not evaluated again
    n_evicted: int  # tokens that were evicted because pages ran out
    n_loaded: int = 0  # tokens that were loaded from files


class Prefixes:
    """The tree of one pool: `pool.prefixes`.

    Attributes:
        pool: the pool that owns the pages.
        roots: the tree's root; a model with LongRoPE has a second one, for its long sessions.
    """

    def __init__(self, pool: Pool):
        self.pool = pool
        # LongRoPE rotates keys by other frequencies in sessions longer than this, which can't share with shorter ones.
        ropes = [layer.attention.rope for layer in pool.model.spec.layers]
        self._long_above = min(
            (r.original_seq_len for r in ropes if r and r.long_frequencies is not None), default=None
        )
        self.roots = [Node((), np.empty(0, np.int64), None) for _ in range(1 if self._long_above is None else 2)]
        self._n_lookups = self._n_hits = self._n_reused = self._n_evicted = self._n_loaded = 0

    def root_for(self, seq_len: int | None) -> Node:
        """The root of the tree that sessions of this length share. None: the model's `config.seq_len`."""
        seq_len = self.pool.model.config.seq_len if seq_len is None else seq_len
        return self.roots[self._long_above is not None and seq_len > self._long_above]

    # ---- look-up ----

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents before their children."""
        waiting = [child for root in self.roots for child in root.children.values()]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    def pages(self) -> np.ndarray:
        """Numbers of the pages that the tree holds, each once; -1 for those it lacks."""
        held = [node.pages for node in self.nodes()]
        return np.concatenate(held) if held else np.empty(0, np.int64)

    def match(self, tokens: Sequence[int], seq_len: int | None = None, swa_full: bool = False) -> int:
        """How many of the tokens need no evaluation: whole pages, and never the last token, whose logits are wanted.

        Args:
            seq_len, swa_full: settings of the session that will evaluate them, as in `Pool.create_session`.
        """
        with self.pool.lock:
            return PAGE * len(self._path(tokens, seq_len, swa_full))

    def n_idle_of(self, tokens: Sequence[int], seq_len: int | None = None) -> int:
        """How many of the pages that `match` finds are held by no session."""
        with self.pool.lock:
            counts, held = self.pool.counts(), [node.pages for node in self._path(tokens, seq_len)]
            return sum(int((counts[pages[pages >= 0]] < 2).sum()) for pages in held)

    def _path(self, tokens: Sequence[int], seq_len: int | None, swa_full: bool = False) -> list[Node]:
        path: list[Node] = []
        node: Node | None = self.root_for(seq_len)
        most = len(tokens) if seq_len is None else min(len(tokens), seq_len)
        for at in range(0, (most - 1) // PAGE * PAGE, PAGE):
            node = node.children.get(tuple(tokens[at : at + PAGE])) if node is not None else None
            if node is None:
                break
            path.append(node)
        while path and ((kept_from := self._kept_from(path)) is None or (kept_from and swa_full)):
            path.pop()
        return path

    def _kept_from(self, path: list[Node]) -> int | None:
        """The position from which sliding windows are complete; None if the next position attends further back."""
        windows = self.pool.windows
        sliding = [layer for layer, window in enumerate(windows) if window is not None]
        if not sliding or not path:
            return 0
        first = len(path)
        while first and (path[first - 1].pages[sliding] >= 0).all():
            first -= 1
        longest = max(w for w in windows if w is not None)
        return None if first and PAGE * first > PAGE * len(path) - longest + 1 else PAGE * first

    @property
    def statistics(self) -> PrefixStatistics:
        """What the tree holds now, and how much it has saved so far."""
        with self.pool.lock:
            pages = self.pages()
            idle = sum(int((node.pages >= 0).sum()) for node in self._idle())
            n_tokens = PAGE * sum(1 for _ in self.nodes())
            return PrefixStatistics(
                n_tokens, int((pages >= 0).sum()), idle, self._n_lookups, self._n_hits, self._n_reused, self._n_evicted,
                self._n_loaded,
            )  # fmt: skip

    # ---- attaching and donating ----

    def attach(self, session: Session, tokens: Sequence[int]) -> int:
        """Gives an empty session of the pool the pages of the longest prefix of `tokens` in the tree.

        Returns:
            the length of that prefix: evaluate the tokens after it.

        Raises:
            ParameterError: the session belongs to another pool, or is not empty.
        """
        cache = self._cache_of(session)
        with session.lock, self.pool.lock:
            cache.check_open()
            if session.n_past:
                raise ParameterError(f"{session!r} is not empty; reset() it, or create another")
            path = self._path(tokens, session.seq_len, cache.swa_full)
            kept_from = self._kept_from(path)
            self._n_lookups += 1
            if not path or kept_from is None:
                return 0
            now = next(_turns)
            for node in path:
                node.used = now
            self._n_hits, self._n_reused = self._n_hits + 1, self._n_reused + PAGE * len(path)
            cache.hold(np.stack([node.pages for node in path], axis=1))
            cache.kept_from = kept_from
            session.tokens.extend(itertools.chain.from_iterable(node.tokens for node in path))
            return PAGE * len(path)

    def donate(self, session: Session) -> int:
        """Adds the session's whole pages to the tree; the session itself is unchanged.

        Returns:
            how many positions are new to the tree.

        Raises:
            ParameterError: the session belongs to another pool.
        """
        cache, new, now = self._cache_of(session), 0, next(_turns)
        with session.lock, self.pool.lock:
            cache.check_open()
            node = self.root_for(session.seq_len)
            sliding = [layer for layer, window in enumerate(self.pool.windows) if window is not None]
            for block in range(session.n_past // PAGE):
                tokens, pages = tuple(session.tokens[block * PAGE : (block + 1) * PAGE]), cache.held[:, block].copy()
                if block * PAGE < cache.whole_from:
                    pages[sliding] = -1
                child = node.children.get(tokens)
                self.pool.changed()
                if child is None:
                    child = Node(tokens, pages, node)
                    node.children[tokens] = child
                    new += PAGE
                else:
                    child.pages = np.where(child.pages < 0, pages, child.pages)
                child.used, node = now, child
        return new

    def _cache_of(self, session: Session) -> PagedCache:
        cache = session._cache
        if getattr(cache, "pool", None) is not self.pool:
            raise ParameterError(f"{session!r} is not of this pool; create it with pool.create_session()")
        return cache  # type: ignore[return-value]

    # ---- files ----

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tree to a file, whole or not at all; `load` reads it. Format: docs/sessions.md.

        The file holds the tokens in readable form; only you can read it (mode 0600).

        Raises:
            SessionFileError: the file could not be written. An existing file is unchanged.
            ClosedError: the pool or its model was closed.
        """
        self._check_open()
        prefix_file.save(self, path)

    def load(self, path: str | os.PathLike[str], *, partial: bool = False) -> int:
        """Adds a file's prefixes to the tree. Prefixes already in the tree stay, and nothing is evicted.

        Everything is checked before the tree changes. Loaded prefixes count as the least recently used: when pages run
        out later, they are evicted first.

        Args:
            partial: if the pool has too few free pages, load what fits, the last used first, instead of refusing the
                file.

        Returns:
            how many positions are new to the tree.

        Raises:
            SessionFileError: the file is refused, and the tree is unchanged. `reason` is one of those for session
                files, "not a prefix file", "other page size", or "memory" if the pool has too few free pages.
            ClosedError: the pool or its model was closed.
        """
        self._check_open()
        return prefix_file.load(self, path, partial)

    def in_order(self) -> list[Node]:
        """All nodes, the last used first, and parents before their children."""
        depth: dict[Node, int] = {}
        for node in (nodes := list(self.nodes())):
            depth[node] = 1 + depth.get(node.parent, 0) if node.parent is not None else 0
        return sorted(nodes, key=lambda node: (-node.used, depth[node]))

    def adopt(self, tokens: np.ndarray, parents: np.ndarray, pages: np.ndarray) -> int:
        """Adds blocks, some of which may be in the tree. The caller must hold the pool's lock, and the pages.

        Args:
            tokens: (n, 64), of distinct blocks, the last used first.
            parents: (n,), each block's parent: an earlier block, or -1 - i for root i.
            pages: (n_layers, n); -1 for none.

        Returns:
            how many positions are new.
        """
        places: list[Node] = []
        new: list[tuple[Node, Node]] = []
        self.pool.changed()
        for i, (ids, parent) in enumerate(zip(map(tuple, tokens.tolist()), parents.tolist(), strict=True)):
            above, used = places[parent] if parent >= 0 else self.roots[-1 - parent], -1 - i
            node = above.children.get(ids)
            if node is None:
                node = Node(ids, pages[:, i].copy(), above, used=used)
                new.append((above, node))
            else:
                node.pages, node.used = np.where(node.pages < 0, pages[:, i], node.pages), max(node.used, used)
            places.append(node)
        for above, node in reversed(new):  # children first: branches reachable from the roots are complete
            above.children[node.tokens] = node
        self._n_loaded += PAGE * len(new)
        return PAGE * len(new)

    def _check_open(self) -> None:
        if self.pool.closed:
            raise ClosedError("this pool was closed, and its prefixes with it; create another with create_pool()")
        self.pool.model.weights  # raises if the model is closed

    # ---- eviction ----

    def _idle(self) -> list[Node]:
        """Nodes that no session holds, and whose descendants no session holds; children before parents."""
        counts, idle = self.pool.counts(), set()
        order = list(self.nodes())[::-1]
        for node in order:
            alone = (counts[node.pages[node.pages >= 0]] < 2).all()
            if alone and all(child in idle for child in node.children.values()):
                idle.add(node)
        return [node for node in order if node in idle]

    def n_idle_pages(self) -> int:
        """Number of pages that `evict` could free."""
        return sum(int((node.pages >= 0).sum()) for node in self._idle())

    def evict(self, n_pages: int) -> None:
        """Evicts leaves that no session holds, the least recently used first, until `n_pages` are freed."""
        with self.pool.lock:
            idle = self._idle()
            while n_pages > 0 and idle:
                leaf = min((node for node in idle if not node.children), key=lambda node: node.used)
                idle.remove(leaf)
                assert leaf.parent is not None
                self.pool.changed()
                del leaf.parent.children[leaf.tokens]
                n_pages -= int((leaf.pages >= 0).sum())
                self._n_evicted += PAGE

    def clear(self) -> None:
        """Empties the tree; sessions keep the pages they hold."""
        with self.pool.lock:
            self.pool.changed()
            for root in self.roots:
                root.children.clear()
