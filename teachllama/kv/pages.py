"""Anonymous memory that can be returned to the operating system.

`malloc` (and so `np.empty`) may keep a freed block for later: each time a large block is freed, glibc raises the size
from which on it maps blocks separately. KV caches and dequantized weights are stored here instead, in one private
anonymous mapping each: reserved when created, resident page by page as it is written, freed on `close`.
"""

from __future__ import annotations

import math
import mmap
import sys

import numpy as np
from numpy.typing import DTypeLike

from teachllama.errors import ClosedError, ParameterError

PAGE = mmap.PAGESIZE
# The advice that returns pages to the operating system. Linux takes them at once, and they then read as zeros. macOS
# takes them when it needs memory (its MADV_DONTNEED does not return them). Windows has no such call.
GIVE_BACK: int | None = getattr(mmap, "MADV_FREE" if sys.platform == "darwin" else "MADV_DONTNEED", None)


class Pages:
    """One anonymous mapping of `nbytes` bytes, zero until written.

    Args:
        nbytes: the size to reserve.
        huge: ask Linux for 2 MB pages: faster for weights, which are written whole. KV caches do not use them, because
            the first byte written makes all 2 MB resident.

    Raises:
        ParameterError: the operating system cannot reserve that much.
    """

    def __init__(self, nbytes: int, *, huge: bool = False):
        self.nbytes = nbytes
        try:
            if sys.platform == "win32":
                mapping = mmap.mmap(-1, max(nbytes, 1))
            else:  # private: only private pages can be returned one by one (Python's default is shared)
                mapping = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as e:
            raise ParameterError(
                f"cannot reserve {nbytes:,} bytes of memory ({getattr(e, 'strerror', None) or e}); "
                "ask for a smaller seq_len, or a smaller model"
            ) from None
        self._mmap: mmap.mmap | None = mapping
        advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
        if advice is not None:
            try:
                mapping.madvise(advice)
            except OSError:  # a kernel built without huge pages: nothing to ask for
                pass

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._mmap is None

    def array(self, offset: int, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """A view of part of the mapping; it keeps the address range valid for as long as it exists."""
        if self._mmap is None:
            raise ClosedError("this memory was freed")
        return np.frombuffer(self._mmap, dtype, count=math.prod(shape), offset=offset).reshape(shape)

    def give_back(self, offset: int, nbytes: int) -> None:
        """Returns the whole pages inside the range to the operating system; their contents are lost."""
        first, last = -(-offset // PAGE) * PAGE, (offset + nbytes) // PAGE * PAGE
        if self._mmap is not None and last > first and GIVE_BACK is not None:
            self._mmap.madvise(GIVE_BACK, first, last - first)

    def close(self) -> None:
        """Frees all memory now.

        While a view is in use, the address range must stay valid, so only its pages are returned. On Linux the view
        then reads zeros. On no system can it read another owner's memory. The range is freed with the last view.
        """
        mapping, self._mmap = self._mmap, None
        if mapping is None:
            return
        try:
            mapping.close()
        except BufferError:
            if GIVE_BACK is not None:
                mapping.madvise(GIVE_BACK)
