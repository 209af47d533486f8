"""Writes a file whole or not at all: readers see the old one or the new one, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """Yields an empty file beside `path` to write in the block; it replaces `path` at the end of the block.

    If the block raises, the new file is deleted, and `path` is unchanged.

    Args:
        path: the file to write or replace; its folder must exist.
        private: only the user may read and write it (mode 0600), from the first byte on.

    Raises:
        OSError: the file cannot be written here.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
