"""Measures how much memory this process holds, and how much is resident. Sizes are in bytes; 1 MB is 10^6 bytes."""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from teachllama.errors import ParameterError


@dataclass(frozen=True)
class Usage:
    """Memory of this process at one moment, in bytes; None where the system does not report it.

    `resident` is in RAM now. It equals `anonymous + file_backed + shared` where these are known. `private` divides the
    same bytes another way: it is what the system would regain if this process ended now.
    """

    resident: int
    private: int  # pages that only this process maps, including those of files ("unique set size")
    file_backed: int | None  # pages of mapped files: the system can drop them and read them again
    anonymous: int | None  # pages not backed by a file: arrays, Python objects, KV caches
    shared: int | None  # shared memory (tmpfs, shared anonymous mappings)
    peak_resident: int | None  # the highest `resident` since the process started
    source: str  # the source of these figures, and which of them are exact


def usage() -> Usage:
    """Measures this process now: on Linux exactly, from the page tables; elsewhere with psutil (see `source`)."""
    if _on_linux():
        try:
            return _linux_usage()
        except (OSError, KeyError):  # no /proc, or a sandbox with an incomplete /proc
            pass
    return _psutil_usage()


def _on_linux() -> bool:
    return sys.platform == "linux"


def _linux_usage(proc: Path = Path("/proc/self")) -> Usage:
    # smaps_rollup walks the page tables. The counters in status are kept per CPU and may lag by some pages (Linux 6.2
    # and later); only shared memory and the peak must come from there.
    rollup, status = _kilobytes(proc / "smaps_rollup"), _kilobytes(proc / "status")
    resident, anonymous, shared = rollup["Rss"], rollup["Anonymous"], status.get("RssShmem", 0)
    return Usage(
        resident=resident,
        private=rollup["Private_Clean"] + rollup["Private_Dirty"],
        file_backed=max(0, resident - anonymous - shared),
        anonymous=anonymous,
        shared=shared,
        peak_resident=max(status["VmHWM"], resident),
        source="Linux /proc/self/smaps_rollup, exact to the page; shared and peak_resident, within some pages",
    )


def _kilobytes(path: Path) -> dict[str, int]:
    """The `Name: 123 kB` lines of a /proc file, in bytes."""
    return {name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB$", path.read_text(), re.MULTILINE)}


def _psutil_usage() -> Usage:
    process = psutil.Process()
    basic = process.memory_info()
    peak = getattr(basic, "peak_wset", None)  # Windows
    if peak is None:
        import resource  # not available on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    source = f"psutil on {sys.platform}: resident and private as the system counts them; other fields unavailable"
    try:
        measure = (
            getattr(process, "memory_footprint", None) or process.memory_full_info
        )  # the newer psutil's name first
        private = measure().uss
    except (psutil.AccessDenied, AttributeError):
        private, source = (
            basic.rss,
            f"psutil on {sys.platform}: resident only; private is unavailable and shown as resident",
        )
    return Usage(basic.rss, private, None, None, None, max(peak, basic.rss), source)


def settle() -> None:
    """Frees memory that is no longer in use, so that the next measurement shows only what is held.

    Two things are freed: reference cycles, by the garbage collector; and freed blocks that the C library keeps for the
    next `malloc` (glibc returns them on `malloc_trim`; elsewhere there is no such call). This also hides leaks caused
    by reference cycles: to see those, measure without settling.
    """
    gc.collect()
    if (trim := _malloc_trim()) is not None:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _on_linux() else None  # musl has none
    if trim is not None:
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


def resident_of(buffer: Any) -> int | None:
    """How many of an array's own bytes are in RAM now; None where the system does not report it (only Linux does).

    Of each page, only the bytes that belong to the array count, so parts add up and the result never exceeds `nbytes`.
    Exact, from /proc/self/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst), except that pages still shared
    with a child of `os.fork` do not count. Nor do pages that were read but never written: all of them map the system's
    page of zeros.

    Args:
        buffer: a NumPy array of any strides, or an object with a contiguous buffer (mmap, bytearray, memoryview).

    Raises:
        ParameterError: `buffer` is neither.
    """
    array = as_array(buffer)
    if not array.nbytes:
        return 0
    starts, length = _runs(array)
    page = mmap.PAGESIZE
    first, last = int(starts[0]) // page, (int(starts[-1]) + length - 1) // page + 1
    try:
        in_ram = _pages_in_ram(first, last)
    except OSError:
        return None
    # bytes of the array below each page boundary; its runs are disjoint, ascending and equally long
    edges = np.arange(first, last + 1, dtype=np.int64) * page
    begun = np.searchsorted(starts, edges)
    in_last_run = np.minimum(edges - starts[np.maximum(begun, 1) - 1], length)
    below = np.where(begun > 0, (begun - 1) * length + in_last_run, 0)
    return int(np.diff(below)[in_ram].sum())


def _runs(array: np.ndarray) -> tuple[np.ndarray, int]:
    """The array's bytes as disjoint runs of equal length: (start addresses, ascending; length)."""
    length = array.itemsize
    starts = np.array([np.lib.array_utils.byte_bounds(array)[0]], np.int64)
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if s and n > 1):
        if stride == length and starts.size == 1:
            length *= n
        else:
            starts = (starts[:, None] + stride * np.arange(n)).reshape(-1)
    starts.sort()
    if starts.size > 1 and np.diff(starts).min() < length:  # windows that overlap (as_strided): count their span once
        starts, length = starts[:1], int(starts[-1] - starts[0]) + length
    return starts, length


def _pages_in_ram(first: int, last: int) -> np.ndarray:
    """Which of this process's pages `first` to `last - 1` count as resident: booleans (last - first,).

    Raises:
        OSError: the kernel does not report it.
    """
    with open("/proc/self/pagemap", "rb", buffering=0) as f:
        f.seek(first * 8)
        entries = np.frombuffer(f.read((last - first) * 8), np.uint64)
    if entries.size != last - first:
        raise OSError("/proc/self/pagemap ended early")
    present, exclusive = (entries >> np.uint64(bit) & np.uint64(1) == 1 for bit in (63, 56))
    # In private anonymous memory, a page that is present but not exclusive to this process is the page of zeros. In a
    # mapped file, another process maps it too, and it counts.
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        span, flags, _, _, inode = line.split(maxsplit=5)[:5]
        low, high = (int(x, 16) // mmap.PAGESIZE for x in span.split("-"))
        if low < last and high > first and flags[3] == "p" and inode == "0":
            part = slice(max(low, first) - first, min(high, last) - first)
            present[part] &= exclusive[part]
    return present


def machine_memory(root: Path = Path("/")) -> int:
    """The most bytes this process may use: the machine's RAM or, in a container (Binder), its cgroup limit if smaller.

    Reads cgroup v2 memory.max and v1 memory.limit_in_bytes.

    Args:
        root: the parent folder of /proc and /sys; only tests change it.
    """
    return min([psutil.virtual_memory().total, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, controllers, group = line.split(":", 2)
        if hierarchy == "0":
            bases, name = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max"
        elif "memory" in controllers.split(","):
            bases, name = ["sys/fs/cgroup/memory"], "memory.limit_in_bytes"
        else:
            continue
        # A limit of any ancestor applies. In a container, the listed path is often the host's and does not exist here.
        # Then the mount point itself is the container's own group, and the walk starts there.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for base in bases:
            for depth in range(len(parts) + 1):
                try:
                    text = root.joinpath(base, *parts[:depth], name).read_text().strip()
                except OSError:
                    continue
                if text.isdigit():  # or "max"
                    yield int(text)


def as_array(buffer: Any) -> np.ndarray:
    """An array of a buffer's bytes, or the array itself. Raises ParameterError for other objects."""
    if isinstance(buffer, np.ndarray):
        return buffer
    try:
        view = memoryview(buffer)
        return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
    except (TypeError, ValueError, BufferError) as e:
        raise ParameterError(
            f"found {type(buffer).__name__} ({e}); expected a NumPy array, or a contiguous buffer such as an mmap"
        ) from None
