"""Files that are written whole or not at all, and checked before their contents are used.

Each is a safetensors file, read and written by that library, with a JSON header in its metadata, a checksum per tensor,
and a digest of everything else. `session_file.py` and `prefix_file.py` define the contents. `docs/sessions.md`
describes both formats to the byte. Every refusal is a `SessionFileError` that names what was found, what was expected,
and what to do.

The file is untrusted. Sizes are checked before the library sees it. Checksums detect accidents, not malice: anyone who
can write the file can also write matching checksums.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import reprlib
import shutil
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import psutil

from teachllama.errors import SessionFileError
from teachllama.fingerprint import Fingerprint

MAX_HEADER_BYTES = 4 * 1024 * 1024  # a conversation of 128,000 tokens is a fifth of that as text
LARGE_NBYTES = 64_000_000  # above this size, available memory is checked before a tensor is read
STALE_S = 3600  # a save that was killed leaves a folder behind; later saves of that name remove it once it is this old
NAMES = {"F32": np.float32, "F16": np.float16, "U16": np.uint16, "U8": np.uint8, "I32": np.int32}  # types we write
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", -1), 112)  # 112: ERROR_DISK_FULL on Windows


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a session file."""

    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    nbytes: int


# Writing --------------------------------------------------------------------------------------------------------------


def write(
    kind: type[CheckedFile], path: str, arrays: dict[str, np.ndarray], header: dict[str, Any], texts: Mapping[str, str]
) -> None:
    """Writes a file of one kind, whole or not at all.

    Args:
        arrays: contiguous, of types in `NAMES`.
        header: the fields stored as JSON; checksums are added to it.
        texts: further metadata.

    Raises:
        SessionFileError: the file could not be written. An existing file is unchanged.
    """
    with ThreadPoolExecutor(2) as pool:  # hashing releases Python's lock
        header["checksums"] = dict(zip(arrays, pool.map(checksum, arrays.values()), strict=True))
    metadata = {"format": kind.FORMAT, "version": str(kind.VERSION), kind.FIELD: json.dumps(header), **texts}
    table = [Tensor(name, dtype_name(a.dtype), a.shape, a.nbytes) for name, a in arrays.items()]
    metadata["digest"] = digest(metadata, table)
    if (n := sum(map(len, metadata.values()))) > MAX_HEADER_BYTES // 2:
        advice = "; save the conversation's messages by themselves, as JSON" if texts else ""
        raise SessionFileError(
            f"{path}: its header would be {n:,} bytes, and that of a {kind.NAME} has at most "
            f"{MAX_HEADER_BYTES // 2:,}{advice}",
            "too large",
        )
    _write(path, arrays, metadata)


def check_target(path: str) -> None:
    """Refuses to replace anything but a regular file that belongs to this user."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as e:
        refuse_path(path, e, "written")
    if stat.S_ISLNK(found.st_mode):
        raise SessionFileError(
            f"{path} is a symbolic link (to {os.path.realpath(path)}); saving would replace the link, not the file it "
            "leads to. Nothing was changed; save to that path itself, or remove the link",
            "symbolic link",
        )
    if not stat.S_ISREG(found.st_mode):
        raise SessionFileError(f"{path} is not a regular file; give the name of a file to write", "not a file")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise SessionFileError(
            f"{path} belongs to another user (user id {found.st_uid}; you are {os.geteuid()}). Nothing was changed; "
            "choose another name",
            "permission",
        )


def _write(path: str, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes the file in a private folder beside `path`, and moves it into place in one step once it is on disk."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder, name = os.path.split(path)
    start, end = f".{name[:40]}.", ".saving"
    private = None
    try:
        _remove_stale(folder or ".", start, end)
        private = tempfile.mkdtemp(prefix=start, suffix=end, dir=folder or ".")  # only this user can open it
        draft = os.path.join(private, "session")
        save_file(arrays, draft, metadata)
        os.chmod(draft, 0o600)
        _flush(draft)
        os.replace(draft, path)
        if os.name == "posix":
            _flush(folder or ".")
    except SafetensorError as e:
        code = re.search(r"\(os error (\d+)\)", str(e))
        refuse_path(path, OSError(int(code[1]), os.strerror(int(code[1]))) if code else e, "written")
    except (OSError, ValueError) as e:  # ValueError: a NUL character in the path
        refuse_path(path, e, "written")
    finally:
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)


def _flush(path: str) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_stale(folder: str, start: str, end: str) -> None:
    with os.scandir(folder) as entries:
        names = [entry.path for entry in entries if entry.name.startswith(start) and entry.name.endswith(end)]
    for path in names:
        try:
            found = os.lstat(path)
        except FileNotFoundError:  # another writer's folder, which it has removed
            continue
        if stat.S_ISDIR(found.st_mode) and time.time() - found.st_mtime > STALE_S:
            shutil.rmtree(path, ignore_errors=True)


def refuse_path(path: str, e: Exception, done: str) -> NoReturn:
    """Raises SessionFileError for a path that the operating system or the library could not read or write."""
    code, said = getattr(e, "errno", None), getattr(e, "strerror", None) or str(e)
    unchanged = "; a file that was there is as it was" if done == "written" else ""
    if code in _FULL:
        raise SessionFileError(
            f"{path} could not be written: {said}. Nothing was left behind{unchanged}; make room, or save elsewhere",
            "disk full",
        ) from None
    if code == errno.ENOENT:
        raise SessionFileError(f"{path}: no such file or folder; check the path", "missing") from None
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise SessionFileError(
            f"{path} could not be {done}: {said}{unchanged}. Such files are their owner's alone (mode 0600); check "
            "who owns it and its folder",
            "permission",
        ) from None
    raise SessionFileError(f"{path} could not be {done}: {said}{unchanged}", "not a file") from None


# Reading --------------------------------------------------------------------------------------------------------------


class CheckedFile(ABC):
    """An open file whose header was checked; tensors are checked as they are read.

    Attributes:
        metadata: the text entries of the file's header.
        header: the fields of the JSON among them.
        table: name -> `Tensor`.
    """

    FORMAT: ClassVar[str]  # the value of "format" in its metadata
    VERSION: ClassVar[int]  # the latest version that can be read
    FIELD: ClassVar[str]  # the metadata key of the JSON
    NAME: ClassVar[str]  # for messages
    WRITER: ClassVar[str]  # the call that writes one, for messages
    READERS: ClassVar[dict[str, str]] = {}  # format -> the call that reads it, for all kinds of file
    header: Fields

    def __init_subclass__(cls, reader: str) -> None:
        CheckedFile.READERS[cls.FORMAT] = reader

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fsdecode(path)
        self.nbytes = self._check_size()
        self._open()
        try:
            self.metadata: dict[str, str] = self._file.metadata() or {}
            self._check_kind()
            self.table = {name: self._tensor(name) for name in self._file.offset_keys()}
            found = self.metadata.get("digest", "")
            if digest(self.metadata, list(self.table.values())) != found:
                self.fail("its header doesn't have the digest that was written with it: it was damaged, or changed")
            self._check_header()
            missing = self.table.keys() ^ self.header.checksums.keys()
            if missing:
                self.fail(f"tensor {min(missing)!r} is not both in the file and in its list of checksums")
            self._check_shapes()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _check_header(self) -> None:
        """Sets `header`."""

    @abstractmethod
    def _check_shapes(self) -> None:
        """Raises if the table of tensors does not match the header."""

    def _check_size(self) -> int:
        """The file's size in bytes. Rejects header lengths that no session file has, but the library would accept."""
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):  # a FIFO would block open() forever
                raise SessionFileError(f"{self.path} is not a regular file; give a {self.NAME}", "not a file")
            with open(self.path, "rb") as file:
                nbytes, start = os.fstat(file.fileno()).st_size, file.read(9)
        except (OSError, ValueError) as e:  # ValueError: a NUL character in the path
            refuse_path(self.path, e, "read")
        length = int.from_bytes(start[:8], "little")
        if nbytes < 10 or start[8:] != b"{":
            self.fail(
                f"{nbytes:,} bytes that do not begin as a safetensors file does; expected a file that {self.WRITER} "
                "wrote",
                "truncated" if nbytes < 10 else f"not a {self.NAME}",
            )
        if length > nbytes - 8:
            self.fail(
                f"the file is {nbytes:,} bytes long, and its header alone would be {length:,}: it is truncated, or its "
                "first bytes are damaged",
                "truncated",
            )
        if length > MAX_HEADER_BYTES:
            self.fail(
                f"its header would be {length:,} bytes; {self.NAME}s have at most {MAX_HEADER_BYTES:,}", "too large"
            )
        return nbytes

    def _open(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:  # not memory-mapped: truncating a mapped file would kill the process
            self._file = safe_open(self.path, framework="np", backend="pread").__enter__()
        except SafetensorError as e:
            reason = "truncated" if "fully covered" in str(e) else "damaged"
            self.fail(f"its table of tensors and its {self.nbytes:,} bytes do not fit together ({e})", reason)
        except OSError as e:
            refuse_path(self.path, e, "read")

    def _check_kind(self) -> None:
        version, found = self.metadata.get("version", ""), self.metadata.get("format", "")
        if found != self.FORMAT and found in self.READERS:
            self.fail(f"a {found} file, not a {self.NAME}; read it with {self.READERS[found]}", f"not a {self.NAME}")
        if found != self.FORMAT or not re.fullmatch(r"[0-9]{1,6}", version):
            self.fail(
                f"a safetensors file, but not a {self.NAME}: its metadata has no "
                f"format {self.FORMAT!r} with a version; expected a file that {self.WRITER} wrote",
                f"not a {self.NAME}",
            )
        self.version = int(version)
        if self.version > self.VERSION:
            self.fail(
                f"written in format version {self.version}; this teachllama reads up to {self.VERSION}. Upgrade it "
                "with: pip install --upgrade teachllama",
                "newer version",
            )

    def _tensor(self, name: str) -> Tensor:
        part = self._file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
        if dtype not in NAMES:
            self.fail(f"tensor {name!r} has type {dtype}; {self.NAME}s have {', '.join(NAMES)}")
        return Tensor(name, dtype, shape, math.prod(shape) * np.dtype(NAMES[dtype]).itemsize)

    def check_tensors(
        self, expected: dict[str, tuple[str, tuple[int, ...]]], *, every: bool = False, can_rebuild: bool = False
    ) -> None:
        """Raises if a tensor is missing, or has another type or shape; with `every`, also if there are others."""
        for name in sorted(expected.keys() | (self.table.keys() if every else set())):
            wanted, tensor = expected.get(name), self.table.get(name)
            found = None if tensor is None else (tensor.dtype, tensor.shape)
            if found != wanted:
                say = lambda x: f"{x[0]} {x[1]}" if x else "none"
                self.fail(f"tensor {name!r} is {say(found)}; expected {say(wanted)}", can_rebuild=can_rebuild)

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor and verifies its checksum.

        Raises:
            SessionFileError: the checksum is wrong, the file was truncated meanwhile, or there is too little memory.
        """
        from safetensors import SafetensorError

        tensor = self.table[name]
        if tensor.nbytes > LARGE_NBYTES:
            self.check_memory(tensor.nbytes, f"tensor {name!r}")
        can_rebuild = name != "tokens"
        try:
            array = self._file.get_tensor(name)
        except (SafetensorError, OSError) as e:
            self.fail(f"tensor {name!r} could not be read: {e}", "truncated", can_rebuild)
        if checksum(array) != self.header.checksums[name]:
            self.fail(
                f"tensor {name!r} doesn't have the checksum that was written with it: at least one bit has changed",
                can_rebuild=can_rebuild,
            )
        return array

    def check_memory(self, nbytes: int, what: str) -> None:
        """Raises if less than `nbytes` of memory is available."""
        if nbytes > (available := psutil.virtual_memory().available):
            self.fail(
                f"{what} takes {nbytes:,} bytes of memory, and {available:,} are available; close sessions or models, "
                "or load it where there is more",
                "memory",
            )

    def fail(self, problem: str, reason: str = "damaged", can_rebuild: bool = False) -> NoReturn:
        """Raises SessionFileError. The message explains how to rebuild, where that is possible."""
        raise self.refusal(problem, reason, can_rebuild)

    def refusal(self, problem: str, reason: str, can_rebuild: bool = False) -> SessionFileError:
        """The error that `fail` raises."""
        advice = "; load_session(path, rebuild=True) evaluates its tokens again" if can_rebuild else ""
        return SessionFileError(f"{self.path}: {problem}{advice}", reason, can_rebuild)

    def close(self) -> None:
        """Closes the file."""
        self._file.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Fields:
    """A header's fields, each checked for type and range."""

    def __init__(self, file: CheckedFile):
        self._file = file
        self.values = self._json(file.FIELD, dict)
        self.made_by = self._text(self.values.get("made_by"), "made_by")
        self.model = Fingerprint(**self._strings(self.values.get("model"), "model"))
        self.kv_dtype = self._kv_dtype(self.values.get("kv_dtype"))
        self.checksums: dict[str, str] = self.values.get("checksums", {})
        if not isinstance(self.checksums, dict) or not all(isinstance(c, str) for c in self.checksums.values()):
            self._fail("checksums", self.checksums, "a checksum per tensor")

    def _fail(self, name: str, found: Any, expected: str) -> NoReturn:
        self._file.fail(f"its header has {name} {reprlib.repr(found)}; expected {expected}")

    def _json(self, name: str, kind: type) -> Any:
        text = self._file.metadata.get(name, "")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, kind):
            self._fail(name, text, f"JSON, {kind.__name__}")
        return value

    def _text(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or len(value) > 1000:
            self._fail(name, value, "a short text")
        return value

    def _kv_dtype(self, value: Any) -> Any:
        """One type name, or a pair for keys and values."""
        if isinstance(value, list) and len(value) == 2:
            return tuple(self._text(v, "kv_dtype") for v in value)
        return self._text(value, "kv_dtype")

    def _whole(self, value: Any, name: str, least: int, most: int) -> int:
        if not isinstance(value, int) or not least <= value <= most:
            self._fail(name, value, f"a whole number from {least} to {most}")
        return int(value)

    def _hex(self, value: Any, name: str, above: int) -> int:
        if not isinstance(value, str) or not re.fullmatch(r"0x[0-9a-f]{1,1024}", value) or int(value, 16) >= above:
            self._fail(name, value, "a hexadecimal number, 0x...")
        return int(value, 16)

    def _strings(self, value: Any, name: str) -> dict[str, str]:
        fields = Fingerprint.__dataclass_fields__.keys()
        whole = isinstance(value, dict) and value.keys() == fields and all(isinstance(v, str) for v in value.values())
        if not whole:
            self._fail(name, value, f"texts named {', '.join(fields)}")
        return value


def digest(metadata: Mapping[str, str], table: list[Tensor]) -> str:
    """SHA-256 of everything in a header except this digest, in sorted order: the library's order may differ."""
    texts = sorted((key, value) for key, value in metadata.items() if key != "digest")
    rows = sorted((t.name, t.dtype, t.shape) for t in table)
    return hashlib.sha256(json.dumps([texts, rows]).encode()).hexdigest()


def checksum(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def dtype_name(dtype: np.dtype[Any]) -> str:
    return next(name for name, kind in NAMES.items() if dtype == kind)
