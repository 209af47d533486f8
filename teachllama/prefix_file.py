"""Prefix files: a pool's tree of prompt prefixes, with their pages of keys and values.

`checked_file.py` has the container and the checks that all such files share; fingerprints are those of session files.
Only whole pages are stored, each once. Blocks of 64 positions are in the order of their use, the last used first, and
each comes after its parent. So a file cannot contain a cycle, reading needs no recursion, and the first n blocks are a
tree for any n.
"""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from teachllama.checked_file import CheckedFile, Fields, Tensor, check_target, dtype_name, write
from teachllama.errors import SessionFileError
from teachllama.fingerprint import Fingerprint
from teachllama.kv.stored import PAGE
from teachllama.session_file import KINDS, difference

if TYPE_CHECKING:
    from teachllama.pool import PagedCache
    from teachllama.prefixes import Prefixes

MAX_BLOCKS = 2**31 - 1  # parents are int32


@dataclass(frozen=True, slots=True)
class PrefixesInfo:
    """The contents of a prefix file, without keys and values: the result of `inspect_prefixes`."""

    path: str
    nbytes: int
    version: int
    made_by: str
    model: Fingerprint
    kv_dtype: str | tuple[str, str]
    tokens: np.ndarray  # int32 (n_blocks, 64): the last used first, parents before children
    parents: np.ndarray  # int32 (n_blocks,): each block's parent; -1: none; -2: none, for LongRoPE's long sessions
    held: np.ndarray  # uint8 (n_layers, n_blocks): 1 where the file has the layer's page
    tensors: tuple[Tensor, ...]

    @property
    def n_tokens(self) -> int:
        """How many positions are in the file."""
        return self.tokens.size

    @property
    def n_pages(self) -> int:
        """How many pages are in the file: one per block and layer, except those that a sliding window had released."""
        return int(self.held.sum())

    @property
    def kv_nbytes(self) -> int:
        """Bytes of keys and values in the file."""
        return sum(t.nbytes for t in self.tensors if t.name.startswith("layer."))

    def ends(self) -> list[int]:
        """Blocks without children, the last used first: each ends a different prefix."""
        return sorted(set(range(len(self.parents))) - set(self.parents.tolist()))

    def prefix(self, block: int) -> np.ndarray:
        """Token ids from the beginning of a prompt to the end of a block, int32."""
        path = []
        while block >= 0:
            path.append(self.tokens[block])
            block = int(self.parents[block])
        return np.concatenate(path[::-1])


class PrefixFile(CheckedFile, reader="pool.prefixes.load()"):
    """An open prefix file; `header` has its fields."""

    FORMAT, VERSION, FIELD = "teachllama prefixes", 1, "prefixes"
    NAME, WRITER = "prefix file", "pool.prefixes.save()"

    header: _Header

    def _check_header(self) -> None:
        if self.version != self.VERSION:
            self.fail(f"format version {self.version}, which no teachllama wrote; expected {self.VERSION}")
        self.header = _Header(self)

    def _check_shapes(self) -> None:
        n = self.header.n_blocks
        self.check_tensors({"tokens": ("I32", (n, self.header.page)), "parents": ("I32", (n,))})
        held = self.table.get("held")
        if held is None or (held.dtype, held.shape[1:]) != ("U8", (n,)):
            self.fail(f"tensor 'held' must be U8 (layers, {n}); found {held}")

    def tree(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`tokens`, `parents` and `held`, as `PrefixesInfo` has them.

        Raises:
            SessionFileError: they are not a tree: a block comes before its parent, or twice.
        """
        tokens, parents, held = (self.read(name) for name in ("tokens", "parents", "held"))
        seen: set[tuple[int, bytes]] = set()
        for i, parent in enumerate(parents.tolist()):
            if not -2 <= parent < i:
                self.fail(f"block {i} has the parent {parent}; expected an earlier block, or none: -1 or -2")
            if (parent, ids := tokens[i].tobytes()) in seen:
                self.fail(f"block {i} is there twice: the same tokens after the same block")
            seen.add((parent, ids))
        if held.size and int(held.max()) > 1:
            self.fail("tensor 'held' has numbers other than 0 and 1")
        return tokens, parents, held

    def refusal(self, problem: str, reason: str, can_rebuild: bool = False) -> SessionFileError:
        """The error that `fail` raises. Prefixes are never rebuilt: prompts are evaluated when they are needed."""
        return super().refusal(problem, reason, can_rebuild=False)


class _Header(Fields):
    """The fields of a prefix file's header."""

    def __init__(self, file: PrefixFile):
        super().__init__(file)
        self.page = self._whole(self.values.get("page"), "page", 1, 2**20)
        self.n_blocks = self._whole(self.values.get("n_blocks"), "n_blocks", 0, MAX_BLOCKS)


# Writing --------------------------------------------------------------------------------------------------------------


def save(prefixes: Prefixes, path: str | os.PathLike[str]) -> None:
    """Writes a tree; see `Prefixes.save`. The pool is locked while its pages are listed, not while they are read."""
    path = os.fsdecode(path)
    check_target(path)
    pool = prefixes.pool
    with pool.lock:
        nodes = prefixes.in_order()
        pages = np.full((pool.model.config.n_layers, len(nodes)), -1)
        for i, node in enumerate(nodes):
            pages[:, i] = node.pages
        tokens = np.array([node.tokens for node in nodes], np.int32).reshape(len(nodes), PAGE)
        index = {root: -1 - i for i, root in enumerate(prefixes.roots)} | {node: i for i, node in enumerate(nodes)}
        parents = np.array([index[node.parent] for node in nodes if node.parent], np.int32)
        pin = pool.pin(pages)
    try:
        needed, available = int((pages >= 0).sum()) * pool.page_nbytes, psutil.virtual_memory().available
        if needed > available:
            raise SessionFileError(
                f"{path}: the pages are copied before they are written, which takes {needed:,} bytes, and "
                f"{available:,} are available; close sessions or models, or clear() the prefixes",
                "memory",
            )
        arrays: dict[str, np.ndarray] = {"tokens": tokens, "parents": parents, "held": (pages >= 0).astype(np.uint8)}
        for layer, which, name, _ in _tensors_of(pin):
            blocks = np.flatnonzero(pages[layer] >= 0)
            arrays[name] = _gather(pin, layer, which, blocks)
        prefixes._check_open()  # if another thread closed the pool, the last copies may be zeros
    finally:
        pin.close()
    from teachllama import __version__

    header = {
        "made_by": f"teachllama {__version__}, {pool.model.backend}",
        "model": dataclasses.asdict(pool.model.fingerprint),
        "kv_dtype": pool.kv_dtype,
        "page": PAGE,
        "n_blocks": len(nodes),
    }
    write(PrefixFile, path, arrays, header, {})


def _tensors_of(cache: PagedCache) -> list[tuple[int, int, str, Any]]:
    """Layer, keys or values (0, 1), name in the file, and NumPy type of each tensor that a cache stores."""
    found = []
    for layer, shape in enumerate(cache.shapes):
        for which, kind in enumerate(cache.types[: 1 if cache.latent_dim else 2]):
            if shape.n_kv_heads and cache.rows[layer][which]:
                found.append((layer, which, f"layer.{layer}.{'kv'[which]}", np.dtype(KINDS.get(kind, np.uint8))))
    return found


def _gather(cache: PagedCache, layer: int, which: int, blocks: np.ndarray) -> np.ndarray:
    """Copies of a layer's pages, as stored: (pages, n_kv_heads, 64, numbers), or bytes of blocks."""
    heads, nbytes = cache.shapes[layer].n_kv_heads, cache.rows[layer][which]
    rows = np.empty((len(blocks), heads, PAGE, nbytes), np.uint8)
    for row, block in zip(rows, blocks, strict=True):
        page = cache.page(layer, which, int(block))
        assert page is not None
        row[:] = page
    return rows.view(KINDS.get(cache.types[which], np.uint8))


# Reading --------------------------------------------------------------------------------------------------------------


def inspect_prefixes(path: str | os.PathLike[str], *, verify: bool = True) -> PrefixesInfo:
    """Reads a file that `pool.prefixes.save` wrote; needs no model.

    Args:
        verify: compare all checksums, which reads the whole file; otherwise only the header and the tree are checked.

    Raises:
        SessionFileError: the file is not a prefix file, or it is damaged.
    """
    with PrefixFile(path) as file:
        tree = file.tree()
        for name in file.table if verify else ():
            file.read(name)
        h = file.header
        return PrefixesInfo(
            file.path, file.nbytes, file.version, h.made_by, h.model, h.kv_dtype, *tree, tuple(file.table.values())
        )


def load(prefixes: Prefixes, path: str | os.PathLike[str], partial: bool) -> int:
    """Adds a file's prefixes to a tree; see `Prefixes.load`."""
    pool = prefixes.pool
    with PrefixFile(path) as file:
        if (why := difference(file, pool.model)) is not None:
            raise why
        if file.header.page != PAGE:
            file.fail(f"its pages have {file.header.page} positions; those of this pool {PAGE}", "other page size")
        if file.header.kv_dtype != pool.kv_dtype:
            file.fail(
                f"its keys and values are of type {file.header.kv_dtype}, and the pool's of {pool.kv_dtype!r}; load it "
                "into a pool that was created with that kv_dtype",
                "other cache type",
            )
        tokens, parents, held = file.tree()
        _check_for(prefixes, file, tokens, parents, held)
        pin, new = _reserve(prefixes, file, tokens, parents, held, partial)
        try:
            n = new.shape[1]

            def put(tensor: tuple[int, int, str, Any]) -> None:
                layer, which, name, _ = tensor
                rows = file.read(name).view(np.uint8)
                for row, block in zip(rows, np.flatnonzero(held[layer])):
                    if block < n and new[layer, block]:
                        page = pin.page(layer, which, int(block))
                        assert page is not None
                        page[:] = row

            with ThreadPoolExecutor(2) as workers:  # reading, hashing and copying release Python's lock
                list(workers.map(put, _tensors_of(pin)))  # raises the errors of `put`
            with pool.lock:
                prefixes._check_open()
                return prefixes.adopt(tokens[:n], parents[:n], pin.held)
        finally:
            pin.close()


def _check_for(prefixes: Prefixes, file: PrefixFile, tokens: np.ndarray, parents: np.ndarray, held: np.ndarray) -> None:
    """Raises if a tree can't belong to this model."""
    model, n = prefixes.pool.model, len(tokens)
    if n and not 0 <= int(tokens.min()) <= int(tokens.max()) < model.config.vocab_size:
        file.fail(f"it holds token ids outside the vocabulary, 0 to {model.config.vocab_size - 1}")
    if n and int(parents.min()) < -len(prefixes.roots):
        file.fail("it has blocks of long sessions, which in this model turn keys as short ones do (no LongRoPE)")
    if held.shape[0] != model.config.n_layers:
        file.fail(f"it has pages of {held.shape[0]} layers; the model has {model.config.n_layers}")
    cache = prefixes.pool.pin(np.empty((model.config.n_layers, 0), np.int64))
    cache.close()  # only its types and shapes are needed
    tensors = _tensors_of(cache)
    caching = {layer for layer, *_ in tensors}
    for layer, window in enumerate(prefixes.pool.windows):
        some, every = bool(held[layer].any()), bool(held[layer].all())
        if (some and layer not in caching) or (not every and layer in caching and window is None):
            file.fail(f"layer {layer} has {int(held[layer].sum())} pages of {n}; only sliding windows lack some")
    expected = {"tokens": ("I32", (n, PAGE)), "parents": ("I32", (n,)), "held": ("U8", held.shape)}
    for layer, which, name, dtype in tensors:
        row = cache.rows[layer][which] // dtype.itemsize
        expected[name] = (dtype_name(dtype), (int(held[layer].sum()), cache.shapes[layer].n_kv_heads, PAGE, row))
    file.check_tensors(expected, every=True)
    file.check_memory(sum(t.nbytes for t in file.table.values()), "this tree")


def _reserve(
    prefixes: Prefixes, file: PrefixFile, tokens: np.ndarray, parents: np.ndarray, held: np.ndarray, partial: bool
) -> tuple[PagedCache, np.ndarray]:
    """Takes free pages for the blocks that the tree lacks.

    Returns:
        a cache that holds the pages of the first `n` blocks, including those already in the tree; and a bool array,
        (n_layers, n), of the pages to be filled. `n` is how many blocks fit: all of them, unless `partial`.
    """
    pool = prefixes.pool
    with pool.lock:
        pages = np.full(held.shape, -1)
        here: list[Any] = []  # each block's node, or None
        for i, (ids, parent) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
            above = here[parent] if parent >= 0 else prefixes.roots[-1 - parent]
            node = above.children.get(tuple(ids)) if above is not None else None
            here.append(node)
            if node is not None:
                pages[:, i] = node.pages
        new = (held == 1) & (pages < 0)
        needed, free = np.cumsum(new.sum(axis=0)), pool.n_free
        n = int(np.searchsorted(needed, free, side="right"))
        if n < len(tokens) and not partial:
            file.fail(
                f"it needs {int(needed[-1])} pages, and {free} of the pool's {pool.n_pages} are free; close sessions, "
                "clear() the prefixes, create a larger pool, or take what fits: load(path, partial=True)",
                "memory",
            )
        pages, new = pages[:, :n], new[:, :n]
        pages[new] = pool.take(int(new.sum()))
        return pool.pin(pages), new
