"""Reads the header of a remote GGUF file from as few bytes as possible.

Uses the parser of `gguf_file.py` and a function that returns bytes. Independent of networks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from teachllama.errors import GGUFError
from teachllama.gguf_file import MAGIC, MAX_HEADER_BYTES, Parser, StringArray, TensorInfo

FIRST_FETCH = 256 * 1024  # bytes of the first request


def read_header(
    name: str, nbytes: int, fetch: Callable[[int, int], bytes], *, metadata_only: bool = False
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Metadata and tensor table of a remote file, from as few of its bytes as possible.

    Args:
        name: the file's name in error messages.
        nbytes: the file's size.
        fetch: returns bytes [start, end) of the file; called with consecutive ranges, from 0.
        metadata_only: stop before the tensor table.

    Raises:
        GGUFError: as for a local file. Errors that `fetch` raises are passed on.
    """
    remote = _Remote(name, nbytes, fetch)
    if nbytes < 24 or remote.fill(24)[:4] != MAGIC:
        raise GGUFError(f"{name}: not a GGUF file: expected at least 24 bytes that begin with {MAGIC!r}")
    _FetchingParser(remote, remote.buf).parse(metadata_only)
    return remote.metadata, remote.tensors


class _Remote:
    """A remote file, and the bytes of it that have been fetched."""

    def __init__(self, name: str, nbytes: int, fetch: Callable[[int, int], bytes]):
        self.path, self.nbytes, self._fetch = name, nbytes, fetch
        self.buf = b""
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}

    def fill(self, end: int) -> bytes:
        """At least the first `end` bytes. Each fetch extends the buffer by half or more, to keep the requests few."""
        have, end = len(self.buf), min(end, self.nbytes)
        if have < end:
            wanted = min(self.nbytes, max(end, FIRST_FETCH if not have else have * 3 // 2))
            more = self._fetch(have, wanted)
            if len(more) != wanted - have:
                raise GGUFError(f"{self.path}: asked for {wanted - have} bytes at byte {have}, got {len(more)}")
            self.buf += more
        return self.buf


class _FetchingParser(Parser):
    """A parser that fetches bytes before it reads them."""

    def need(self, n: int, what: str) -> None:
        super().need(n, what)
        assert isinstance(self.file, _Remote)
        self.buf = self.file.fill(self.pos + n)

    def string_array(self, n: int, key: str) -> StringArray:
        start = self.pos
        while True:  # the end of the array is known only after reading it
            wanted = min(len(self.buf) * 3 // 2, self.file.nbytes, MAX_HEADER_BYTES)
            try:
                strings = super().string_array(n, key)
                if self.pos <= len(self.buf):
                    return strings
                wanted = self.pos
            except struct.error:  # beyond the fetched bytes
                pass
            self.pos = start
            self.need(wanted - start, f"the array {key!r}")
