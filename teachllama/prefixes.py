"""`Prefixes`: what a pool keeps of sessions that have ended, for others that begin with the same tokens.

A radix tree whose edges are 64 token ids: a page's positions. A node holds the page of each layer, and is found by the
ids themselves, which are compared one by one. https://arxiv.org/abs/2312.07104 (RadixAttention)

Knows nothing of arithmetic: a page is a number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from teachllama.errors import ParameterError
from teachllama.kv.stored import PAGE

if TYPE_CHECKING:
    from teachllama.pool import PagedCache, Pool
    from teachllama.session import Session

_turns = itertools.count(1)


@dataclass(eq=False, slots=True)
class Node:
    """64 positions that follow those of the parents.

    Attributes:
        tokens: their ids.
        pages: the page of each layer, (n_layers,); -1 where a sliding window had let go of it.
        used: larger the later it was last used.
    """

    tokens: tuple[int, ...]
    pages: np.ndarray
    parent: Node | None
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    used: int = 0


@dataclass(frozen=True, slots=True)
class PrefixStatistics:
    """What the tree holds now, and what it was good for so far."""

    n_tokens: int  # positions held
    n_pages: int  # pages held, by sessions too or not
    n_idle_pages: int  # pages that no session holds: they can be had back
    n_lookups: int
    n_hits: int
    n_reused: int  # tokens that were not evaluated again
    n_evicted: int  # tokens that were let go of for want of pages


class Prefixes:
    """The tree of one pool: `pool.prefixes`."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._root = Node((), np.empty(0, np.int64), None)
        self._n_lookups = self._n_hits = self._n_reused = self._n_evicted = 0

    # ---- looking ----

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents before their children."""
        waiting = list(self._root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    def pages(self) -> np.ndarray:
        """Numbers of the pages that the tree holds, each once; -1 for those it lacks."""
        held = [node.pages for node in self.nodes()]
        return np.concatenate(held) if held else np.empty(0, np.int64)

    def match(self, tokens: Sequence[int]) -> int:
        """How many of the tokens need no evaluation: whole pages, and never the last token, whose logits are wanted."""
        with self._pool.lock:
            return PAGE * len(self._path(tokens))

    def n_idle_of(self, tokens: Sequence[int]) -> int:
        """How many of the pages that `match` finds no session holds."""
        with self._pool.lock:
            counts, held = self._pool.counts(), [node.pages for node in self._path(tokens)]
            return sum(int((counts[pages[pages >= 0]] < 2).sum()) for pages in held)

    def _path(self, tokens: Sequence[int]) -> list[Node]:
        path: list[Node] = []
        node: Node | None = self._root
        for at in range(0, (len(tokens) - 1) // PAGE * PAGE, PAGE):
            node = node.children.get(tuple(tokens[at : at + PAGE])) if node is not None else None
            if node is None:
                break
            path.append(node)
        while path and self._kept_from(path) is None:
            path.pop()
        return path

    def _kept_from(self, path: list[Node]) -> int | None:
        """The position from which windows are held whole; None if the next position would attend to more."""
        windows = self._pool.windows
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
        """What the tree holds now, and what it was good for so far."""
        with self._pool.lock:
            pages = self.pages()
            idle = sum(int((node.pages >= 0).sum()) for node in self._idle())
            n_tokens = PAGE * sum(1 for _ in self.nodes())
            return PrefixStatistics(
                n_tokens, int((pages >= 0).sum()), idle, self._n_lookups, self._n_hits, self._n_reused, self._n_evicted
            )

    # ---- taking and giving ----

    def attach(self, session: Session, tokens: Sequence[int]) -> int:
        """Gives an empty session of the pool the pages of the longest prefix of `tokens` that is here.

        Returns:
            how many tokens that was: evaluate the others.

        Raises:
            ParameterError: the session is of another pool, or not empty.
        """
        cache = self._cache_of(session)
        with session.lock, self._pool.lock:
            cache.check_open()
            if session.n_past:
                raise ParameterError(f"{session!r} is not empty; reset() it, or create another")
            path = self._path(tokens)[: (session.seq_len - 1) // PAGE]
            kept_from = self._kept_from(path)
            self._n_lookups += 1
            if not path or kept_from is None or (kept_from and cache.swa_full):
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
        """Keeps the session's whole pages for others; the session goes on as it was.

        Returns:
            how many positions are new to the tree.

        Raises:
            ParameterError: the session is of another pool.
        """
        cache, new, now = self._cache_of(session), 0, next(_turns)
        with session.lock, self._pool.lock:
            cache.check_open()
            node = self._root
            for block in range(session.n_past // PAGE):
                tokens, pages = tuple(session.tokens[block * PAGE : (block + 1) * PAGE]), cache.held[:, block].copy()
                child = node.children.get(tokens)
                self._pool.changed()
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
        if getattr(cache, "pool", None) is not self._pool:
            raise ParameterError(f"{session!r} is not of this pool; create it with pool.create_session()")
        return cache  # type: ignore[return-value]

    # ---- making room ----

    def _idle(self) -> list[Node]:
        """Nodes that no session holds, nor any node below them: children before parents."""
        counts, idle = self._pool.counts(), set()
        order = list(self.nodes())[::-1]
        for node in order:
            alone = (counts[node.pages[node.pages >= 0]] < 2).all()
            if alone and all(child in idle for child in node.children.values()):
                idle.add(node)
        return [node for node in order if node in idle]

    def n_idle_pages(self) -> int:
        """Pages that `evict` could give back."""
        return sum(int((node.pages >= 0).sum()) for node in self._idle())

    def evict(self, n_pages: int) -> None:
        """Lets go of leaves that no session holds, the longest unused first, until so many pages are free."""
        with self._pool.lock:
            idle = self._idle()
            while n_pages > 0 and idle:
                leaf = min((node for node in idle if not node.children), key=lambda node: node.used)
                idle.remove(leaf)
                assert leaf.parent is not None
                self._pool.changed()
                del leaf.parent.children[leaf.tokens]
                n_pages -= int((leaf.pages >= 0).sum())
                self._n_evicted += PAGE

    def clear(self) -> None:
        """Lets go of everything; pages that sessions hold stay theirs."""
        with self._pool.lock:
            self._pool.changed()
            self._root.children.clear()
