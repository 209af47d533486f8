"""Opens a GGUF file: metadata, tensor table, tensor bytes.

Handles the file format (versions 2 and 3, little-endian); independent of models. The file is untrusted, so every
count, length, dimension and offset is checked against the file's size before it is used. Element types and block
sizes come from the `gguf` package. The parser is our own because that package makes one Python object per string
(3.5 s for SmolLM2's 98,000 strings), where `StringArray` keeps the raw bytes and decodes on demand.

A large model may be split into several files (llama.cpp's `gguf-split`). Each part is a GGUF file whose metadata says
which part it is: `split.no` (from 0), `split.count`, and `split.tensors.count` (tensors in all parts together). The
first part has the model's metadata, the others only these three keys. Opening any part opens the whole model.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; for parts, `llama_model_loader` in llama.cpp's
`src/llama-model-loader.cpp` (as vendored in llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from teachllama.errors import ClosedError, GGUFError
from teachllama.whole_numbers import is_whole

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_KEY_BYTES = 65_535  # the specification's own limit
MAX_NAME_BYTES = 1_024
# No real file comes near this: Gemma 3's header, with 262,144 tokens, is 6 MB. It bounds what a hostile file can cost.
MAX_HEADER_BYTES = 48 * 1024 * 1024
MAX_COUNT = 65_536  # tensors, and metadata keys; a 400-billion-parameter mixture of experts has about 2,000 tensors

MAX_PARTS = 65_535  # split.count is a uint16
MAX_SEARCHED = 500  # files of a folder that are searched for the parts of a renamed model
PART_NAME = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})(\.gguf)", re.DOTALL)  # gguf-split's names, counted from 1

STRING, ARRAY = 8, 9
# The specification's value types: id -> (name, little-endian NumPy type)
SCALARS = {
    0: ("uint8", "<u1"),
    1: ("int8", "<i1"),
    2: ("uint16", "<u2"),
    3: ("int16", "<i2"),
    4: ("uint32", "<u4"),
    5: ("int32", "<i4"),
    6: ("float32", "<f4"),
    7: ("bool", "<u1"),
    10: ("uint64", "<u8"),
    11: ("int64", "<i8"),
    12: ("float64", "<f8"),
}
BOOL = 7
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class StringArray(Sequence[str]):
    """A GGUF array of strings, kept as the file's bytes and decoded one by one on demand."""

    def __init__(self, raw: bytes, ends: array[int]):
        self._raw, self._ends = raw, ends  # ends[i]: where string i ends in raw; it starts 8 bytes after ends[i - 1]

    def __len__(self) -> int:
        return len(self._ends)

    def bytes_at(self, i: int) -> bytes:
        """String `i` as the file's bytes."""
        i = range(len(self._ends))[i]  # IndexError and negative indices, as for a list
        return self._raw[(self._ends[i - 1] if i else 0) + 8 : self._ends[i]]

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.bytes_at(i).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_list())

    def to_list(self) -> list[str]:
        """All strings: decoded at once, for which the last byte of each length, always 0, separates them."""
        keep = np.ones(len(self._raw), bool)
        starts = np.append(0, np.asarray(self._ends, np.int64)[:-1]) if self._ends else np.empty(0, np.int64)
        for i in range(7):
            keep[starts + i] = False
        text = np.frombuffer(self._raw, np.uint8)[keep].tobytes().decode("utf-8", "surrogateescape")
        strings = text.split("\0")[1:]
        return strings if len(strings) == len(self) else [self[i] for i in range(len(self))]

    @property
    def raw(self) -> bytes:
        """All strings with their lengths, as stored in the file."""
        return self._raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringArray({len(self)} strings)"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]  # NumPy order, outermost first: a matrix is (rows, columns); the file has the reverse
    type: GGMLQuantizationType
    offset: int  # bytes from the start of its file
    nbytes: int
    part: int = 0  # which file of a split model holds it, counted from 0: an index of `GGUFFile.paths`

    @property
    def n_elements(self) -> int:
        """How many weights the tensor holds."""
        return int(np.prod(self.shape, dtype=np.int64))


class GGUFFile:
    """An open GGUF file, or all files of a split model: `metadata`, `tensors`, and the tensors' bytes, memory-mapped.

    Attributes:
        path: the file that has the metadata: for a split model its first part, whichever part was given.
        paths: all files, in the order of their parts.
        nbytes: bytes of all files together.
        metadata: key -> value, of the first part.
        tensors: name -> `TensorInfo`, of all parts; empty with `metadata_only`.

    Args:
        path: the file; for a split model any part, with the other parts in the same folder.
        metadata_only: stop after the metadata; `tensors` stays empty, and a file whose tensor data is incomplete (a
            download in progress, a first part without the others) still opens.
        alone: open this one file, whether or not it is a part of a split model.

    Raises:
        GGUFError: not a GGUF file, truncated, or inconsistent; or parts of a split model are missing or do not belong
            together. The message names the file, and the byte where it is known.
    """

    def __init__(self, path: str | os.PathLike[str], *, metadata_only: bool = False, alone: bool = False):
        given = _Part(os.fspath(path), metadata_only)
        self._parts = [given]
        try:
            split = None if alone else _Split.of(given)
            if split is not None and (not metadata_only or split.no > 0):
                paths = _paths_of_parts(given, split)
                self._parts = []
                for p in paths[:1] if metadata_only else paths:
                    self._parts.append(given if p == given.path else _Part(p, metadata_only))
                if metadata_only:
                    given.close()
                _check_parts(self._parts, split, whole=not metadata_only)
        except BaseException:
            given.close()
            self.close()
            raise
        self.path = self._parts[0].path
        self.paths = tuple(part.path for part in self._parts)
        self.nbytes = sum(part.nbytes for part in self._parts)
        self.metadata: dict[str, Any] = self._parts[0].metadata
        self.tensors: dict[str, TensorInfo] = {}
        for i, part in enumerate(self._parts):
            self.tensors |= {t.name: replace(t, part=i) if i else t for t in part.tensors.values()}

    def tensor_bytes(self, name: str) -> np.ndarray:
        """The raw bytes of a tensor, a read-only uint8 view of the mapped file."""
        info = self.tensors.get(name)
        mapping = self._parts[info.part if info else 0].mmap
        if mapping is None:
            raise ClosedError(f"{self.path}: this GGUF file was closed; open it again to read tensors")
        if info is None:
            raise GGUFError(f"{self.path}: has no tensor {name!r}")
        return np.frombuffer(mapping, np.uint8, count=info.nbytes, offset=info.offset)

    def drop_pages(self) -> None:
        """Lets the operating system drop the files' resident pages; they are read again on access."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for part in self._parts:
                if part.mmap is not None:
                    part.mmap.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmaps the file. Metadata stays. A tensor view still in use keeps the mapping alive until it is deleted."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str], *, metadata_only: bool = False, alone: bool = False) -> GGUFFile:
    """Opens a GGUF file, or all parts of a split model; see `GGUFFile` for arguments and errors."""
    return GGUFFile(path, metadata_only=metadata_only, alone=alone)


class _Part:
    """One file, mapped and parsed."""

    def __init__(self, path: str, metadata_only: bool):
        self.path = path
        try:
            # A FIFO would block open() forever: stat first.
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise GGUFError(f"{self.path}: not a regular file; give the path of a .gguf file")
            with open(self.path, "rb") as f:
                self.nbytes = os.fstat(f.fileno()).st_size
                if self.nbytes < 24 or f.read(4) != MAGIC:
                    raise GGUFError(
                        f"{self.path}: not a GGUF file: expected at least 24 bytes that begin with {MAGIC!r} "
                        f"({self.nbytes} bytes found); was the download an error page?"
                    )
                self.mmap: mmap.mmap | None = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: a NUL character in the path
            raise GGUFError(f"{self.path}: cannot be opened: {getattr(e, 'strerror', None) or e}") from None
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            Parser(self, self.mmap).parse(metadata_only)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        mapping, self.mmap = getattr(self, "mmap", None), None
        if mapping is not None:
            try:
                mapping.close()
            except BufferError:  # a view still points into it: deleting the last view unmaps it
                pass


# Split models ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Split:
    """The split metadata of one part."""

    no: int  # from 0
    count: int
    n_tensors: int | None  # in all parts together

    @classmethod
    def of(cls, part: _Part) -> _Split | None:
        """The part's place in a split model; None for a file that is a whole model."""
        if "split.count" not in part.metadata and "split.no" not in part.metadata:
            return None
        count, no = part.metadata.get("split.count", 1), part.metadata.get("split.no", 0)
        n_tensors = part.metadata.get("split.tensors.count")
        if not is_whole(count, 0, MAX_PARTS) or not is_whole(no, 0, max(count, 1) - 1):
            raise GGUFError(
                f"{part.path}: metadata split.no is {no!r} and split.count {count!r}; expected a part's number from 0, "
                "below the number of parts"
            )
        if n_tensors is not None and not is_whole(n_tensors, 0, MAX_COUNT):
            raise GGUFError(
                f"{part.path}: metadata split.tensors.count is {n_tensors!r}; expected the number of tensors in all "
                f"parts, from 0 to {MAX_COUNT}"
            )
        return cls(no, count, n_tensors) if count > 1 else None


def split_paths(path: str) -> list[str] | None:
    """The files of a split model by gguf-split's naming rule; None if `path` is not named like a part.

    Looks only at the name: `model-00001-of-00003.gguf` gives three paths, whether they exist or not.
    """
    folder, name = os.path.split(path)
    match = PART_NAME.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return None
    return [os.path.join(folder, f"{match[1]}{i:05}-of-{match[3]}{match[4]}") for i in range(1, int(match[3]) + 1)]


def _paths_of_parts(given: _Part, split: _Split) -> list[str]:
    """The files of all parts, in order, found beside the one given.

    Raises:
        GGUFError: a part is missing, or several files could be the same part.
    """
    by_name = split_paths(given.path)
    own_name = os.path.basename(given.path)
    if by_name and len(by_name) == split.count and os.path.basename(by_name[split.no]) == own_name:
        by_name[split.no] = given.path
        missing = [os.path.basename(p) for p in by_name if not os.path.isfile(p)]
        if missing:
            raise _incomplete(given, split, f"{', '.join(missing[:5])}{', ...' * (len(missing) > 5)}")
        return by_name
    found = _search(given, split)
    for no, candidates in sorted(found.items()):
        if len(candidates) > 1:
            names = " and ".join(repr(os.path.basename(p)) for p in candidates[:2])
            raise GGUFError(
                f"{given.path}: this is part {split.no + 1} of {split.count} of a split model, renamed, and "
                f"{names} could each be part {no + 1}; give the parts their names back, NAME-00001-of-"
                f"{split.count:05}.gguf and so on, or put them into a folder of their own"
            )
    missing = [str(no + 1) for no in range(split.count) if no not in found]
    if missing:
        numbers = f"part{'s' * (len(missing) > 1)} {', '.join(missing[:5])}{', ...' * (len(missing) > 5)}"
        raise _incomplete(given, split, f"{numbers}, under any name")
    return [found[no][0] for no in range(split.count)]


def _incomplete(given: _Part, split: _Split, missing: str) -> GGUFError:
    first = "" if split.no == 0 else " (the first part has the model's metadata)"
    return GGUFError(
        f"{given.path}: this is part {split.no + 1} of {split.count} of a split model; the others are expected beside "
        f"it, in the same folder; missing: {missing}{first}"
    )


def _search(given: _Part, split: _Split) -> dict[int, list[str]]:
    """Part number -> files of the folder whose metadata match it; the given part is the only match for its number."""
    found: dict[int, list[str]] = {split.no: [given.path]}
    folder = os.path.dirname(given.path)
    try:
        names = sorted(name for name in os.listdir(folder or ".") if name.lower().endswith(".gguf"))
    except OSError:  # the folder cannot be listed: no part is found, and the error names the missing parts
        names = []
    for name in names[:MAX_SEARCHED]:
        path = os.path.join(folder, name)
        try:
            part = _Part(path, metadata_only=True)
        except GGUFError:
            continue
        part.close()
        try:
            other = _Split.of(part)
        except GGUFError:
            continue
        if other is None or (other.count, other.n_tensors) != (split.count, split.n_tensors) or other.no == split.no:
            continue
        by_name = split_paths(path)  # skip parts of another, correctly named model: it has its own part of our number
        if by_name and len(by_name) == split.count and os.path.isfile(by_name[split.no]):
            continue
        found.setdefault(other.no, []).append(path)
    return found


def _check_parts(parts: Sequence[_Part], split: _Split, whole: bool) -> None:
    """Refuses parts that do not belong together; `whole` is false if only the first was opened."""
    arch = parts[0].metadata.get("general.architecture")
    where: dict[str, str] = {}
    for no, part in enumerate(parts):
        found = _Split.of(part)
        if found is None or (found.no, found.count, found.n_tensors) != (no, split.count, split.n_tensors):
            says = "no part of a split model" if found is None else f"part {found.no + 1} of {found.count}"
            if found is not None and found.n_tensors != split.n_tensors:
                says += f" of a model with {found.n_tensors} tensors"
            raise GGUFError(
                f"{part.path}: expected part {no + 1} of {split.count} of a model with {split.n_tensors} tensors, and "
                f"its metadata say {says}; fetch that part again"
            )
        own = part.metadata.get("general.architecture", arch)
        if not isinstance(own, str) or own != arch:
            raise GGUFError(f"{part.path}: a part of another model: its architecture is {own!r}, the first's {arch!r}")
        for name in part.tensors:
            if name in where:
                raise GGUFError(f"{part.path}: tensor {name!r} is in {os.path.basename(where[name])!r} too")
            where[name] = part.path
    if whole and split.n_tensors is not None and len(where) != split.n_tensors:
        raise GGUFError(
            f"{parts[0].path}: the {split.count} parts hold {len(where)} tensors, and their metadata say "
            f"{split.n_tensors}; a part is damaged or belongs to another model: fetch the parts again"
        )


class Source(Protocol):
    """A file whose header is parsed; the parser fills `metadata` and `tensors`."""

    path: str
    nbytes: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


class Parser:
    """Reads the header front to back; `pos` never passes the end of the file."""

    def __init__(self, file: Source, buf: mmap.mmap | bytes):
        self.file, self.buf, self.pos = file, buf, 4

    def fail(self, message: str) -> GGUFError:
        return GGUFError(f"{self.file.path}: {message} (at byte {self.pos} of {self.file.nbytes})")

    def need(self, n: int, what: str) -> None:
        if n > self.file.nbytes - self.pos:
            raise self.fail(f"truncated: {what} needs {n} bytes, {self.file.nbytes - self.pos} are left")
        if self.pos + n > MAX_HEADER_BYTES:
            raise self.fail(f"header too large: {what} reaches past {MAX_HEADER_BYTES} bytes, the most accepted")

    def u32(self, what: str) -> int:
        self.need(4, what)
        self.pos += 4
        return _U32.unpack_from(self.buf, self.pos - 4)[0]

    def u64(self, what: str) -> int:
        self.need(8, what)
        self.pos += 8
        return _U64.unpack_from(self.buf, self.pos - 8)[0]

    def string(self, what: str, limit: int = MAX_HEADER_BYTES) -> bytes:
        n = self.u64(f"the length of {what}")
        if n > limit:
            raise self.fail(f"{what} claims {n} bytes, more than the {limit} accepted")
        self.need(n, what)
        self.pos += n
        return self.buf[self.pos - n : self.pos]

    def name(self, what: str, limit: int) -> str:
        raw = self.string(what, limit)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not valid UTF-8: {raw[:40]!r}") from None

    def count(self, what: str, min_bytes: int, most: int = MAX_HEADER_BYTES) -> int:
        """Reads a count of items of at least `min_bytes` each; rejects impossible counts before allocating."""
        n = self.u64(f"the number of {what}")
        if n * min_bytes > self.file.nbytes - self.pos:
            raise self.fail(f"claims {n} {what}, more than the rest of the file can hold")
        if n > most:
            raise self.fail(f"claims {n} {what}, more than the {most} accepted")
        return n

    def value(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind][1])
            self.need(dtype.itemsize, f"the value of {key!r}")
            item = np.frombuffer(self.buf[self.pos : self.pos + dtype.itemsize], dtype)[0].item()
            self.pos += dtype.itemsize
            return bool(item) if kind == BOOL else item
        if kind == STRING:
            return self.string(f"the value of {key!r}").decode("utf-8", "surrogateescape")
        if kind != ARRAY:
            raise self.fail(f"key {key!r} has value type {kind}, which GGUF does not define (0 to 12)")
        kind = self.u32(f"the element type of {key!r}")
        if kind == STRING:
            return self.string_array(self.count(f"strings in {key!r}", 8), key)
        if kind not in SCALARS:
            found = "an array of arrays" if kind == ARRAY else f"an array of type {kind}"
            raise self.fail(f"key {key!r} is {found}; expected an array of numbers, booleans or strings")
        dtype = np.dtype(SCALARS[kind][1])
        n = self.count(f"elements in {key!r}", dtype.itemsize)
        self.need(n * dtype.itemsize, f"the array {key!r}")
        self.pos += n * dtype.itemsize
        items = np.frombuffer(self.buf[self.pos - n * dtype.itemsize : self.pos], dtype)
        return items.astype(bool) if kind == BOOL else items

    def string_array(self, n: int, key: str) -> StringArray:
        self.need(8 * n, f"the array {key!r}")  # a string takes at least 8 bytes
        start = pos = self.pos
        ends: array[int] = array("I")
        unpack, buf = _U64.unpack_from, self.buf  # locals: this loop runs a quarter of a million times
        limit = min(self.file.nbytes, MAX_HEADER_BYTES)
        for i in range(n):
            if pos > limit - 8:
                raise self.fail(f"string {i} of {key!r} lies past the end of the file or of the accepted header")
            pos += 8 + unpack(buf, pos)[0]
            if pos > limit:
                raise self.fail(f"string {i} of {key!r} reaches past the end of the file or of the accepted header")
            ends.append(pos - start)
        self.pos = pos
        return StringArray(buf[start:pos], ends)

    def parse(self, metadata_only: bool) -> None:
        version = self.u32("the version")
        if version not in VERSIONS:
            hint = "; this looks like a big-endian file" if version & 0xFFFF == 0 else ""
            raise self.fail(f"GGUF version {version}; this package reads {VERSIONS}{hint}")
        n_tensors = self.count("tensors", 24, MAX_COUNT)
        n_keys = self.count("metadata keys", 13, MAX_COUNT)
        for i in range(n_keys):
            key = self.name(f"metadata key {i}", MAX_KEY_BYTES)
            if not key or key in self.file.metadata:
                raise self.fail(f"metadata key {key!r} is empty or appears twice")
            self.file.metadata[key] = self.value(self.u32(f"the type of {key!r}"), key)
        if not metadata_only:
            self.tensor_table(n_tensors)

    def tensor_table(self, n_tensors: int) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # imported late: half of this package's import time

        table: list[TensorInfo] = []
        for i in range(n_tensors):
            name = self.name(f"the name of tensor {i}", MAX_NAME_BYTES)
            n_dims = self.u32(f"the number of dimensions of {name!r}")
            if not 1 <= n_dims <= MAX_DIMS:
                raise self.fail(f"tensor {name!r} has {n_dims} dimensions; expected 1 to {MAX_DIMS}")
            shape = tuple(self.u64(f"a dimension of {name!r}") for _ in range(n_dims))[::-1]
            kind = self.u32(f"the type of {name!r}")
            offset = self.u64(f"the offset of {name!r}")
            try:
                block, block_bytes = GGML_QUANT_SIZES[ggml_type := GGMLQuantizationType(kind)]
            except (ValueError, KeyError):
                raise self.fail(
                    f"tensor {name!r} has type {kind}, an unknown type; try upgrading the gguf package"
                ) from None
            n_elements = 1
            for d in shape:
                n_elements *= d  # Python integers: the product cannot overflow
            if n_elements == 0 or shape[-1] % block:
                raise self.fail(
                    f"tensor {name!r} has shape {shape}; expected rows that are a positive multiple of {block}, "
                    f"the block size of {ggml_type.name}"
                )
            table.append(TensorInfo(name, shape, ggml_type, offset, n_elements // block * block_bytes))

        alignment = self.file.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {alignment!r}; expected a power of two from 8 to {2**20}")
        start = -(-self.pos // alignment) * alignment
        end = start
        for t in sorted(table, key=lambda t: t.offset):
            here = start + t.offset
            if t.offset % alignment or here + t.nbytes > self.file.nbytes:
                raise self.fail(
                    f"tensor {t.name!r} claims {t.nbytes} bytes at offset {t.offset}; expected a multiple of "
                    f"{alignment} that ends within the file; the file is truncated or damaged: fetch it again"
                )
            if here < end:
                raise self.fail(f"tensor {t.name!r} overlaps the one before it")
            end = here + t.nbytes
        for t in table:  # in the table's order
            if t.name in self.file.tensors:
                raise self.fail(f"two tensors are named {t.name!r}")
            self.file.tensors[t.name] = TensorInfo(t.name, t.shape, t.type, start + t.offset, t.nbytes)
