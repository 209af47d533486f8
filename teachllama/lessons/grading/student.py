"""The process that runs a student's code. It calls functions with data from a pipe, and sends results back.

Run as a script, with Python's `-I`, by `remote.Student`. Contains no exercises and no right answers. An audit hook
refuses what no answer needs: reading the course's own sources, writing files, running programs, opening sockets. That
stops the usual attempts from a notebook. For protection against attacks on Python itself, run it as another user or in
a container.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

MAX_ITEMS = 1_000_000  # of a generator
MAX_DIGITS = 5000
MAX_FRAME = 64_000_000  # bytes of one message


def encode(x: Any, handle: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """A value as JSON: data directly, NumPy arrays by their bytes, anything else by `handle` or its type's name."""
    kind = type(x)
    if x is None or kind in (bool, str):
        return x
    if kind is int:
        return x if -(2**53) < x < 2**53 else {"i": hex(x)} if x.bit_length() < 4 * MAX_DIGITS else {"x": "int"}
    if kind is float:
        return {"f": repr(x)}
    if kind is bytes:
        return {"y": base64.b64encode(x).decode()}
    if depth < 20:
        if kind in (list, tuple, set, frozenset):
            return {"s" if kind is frozenset else kind.__name__[0]: [encode(v, handle, depth + 1) for v in x]}
        if kind is dict:
            return {"d": [[encode(k, handle, depth + 1), encode(v, handle, depth + 1)] for k, v in x.items()]}
        if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "biuf" and kind.__module__.startswith("numpy"):
            array = np.ascontiguousarray(x)
            data = base64.b64encode(array.tobytes()).decode()
            return {"a": [array.dtype.str, list(np.shape(x)), data, isinstance(x, np.generic)]}
    return handle(x) if handle is not None else {"x": kind.__name__}


def decode(x: Any, handle: Callable[[int], Any] | None = None) -> Any:
    """The inverse of `encode`. A type that can't be sent becomes an empty object of a class with its name."""
    if not isinstance(x, dict):
        return x
    ((tag, value),) = x.items()
    if tag in "lts":
        items = [decode(v, handle) for v in value]
        return items if tag == "l" else tuple(items) if tag == "t" else set(items)
    if tag == "d":
        return {decode(k, handle): decode(v, handle) for k, v in value}
    if tag == "a":
        dtype, shape, data, scalar = value
        if np.dtype(dtype).kind not in "biuf":
            raise ValueError(dtype)
        array = np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape).copy()
        return array[()] if scalar else array
    if tag == "h" and handle is not None:
        return handle(value)
    if tag in ("i", "f", "y"):
        return int(value, 16) if tag == "i" else float(value) if tag == "f" else base64.b64decode(value)
    return type(str(value)[:40], (), {})()


def send(stream: BinaryIO, message: Any) -> None:
    """Writes one message."""
    data = json.dumps(message).encode()
    stream.write(len(data).to_bytes(8, "big") + data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Reads one message.

    Raises:
        EOFError: the other side has closed the pipe.
    """
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    return json.loads(stream.read(int.from_bytes(head, "big")))


class Thing:
    """A proxy for an object in the other process, which handles attributes, calls and items."""

    def __init__(self, link: Link, number: int):
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("get", self._number, [name])

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} cannot be set")

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._link.ask("call", self._number, args, options)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self._number, [key])

    def __len__(self) -> int:
        return int(self._link.ask("len", self._number))

    def __iter__(self) -> Any:
        return iter(self._link.ask("list", self._number))

    def __contains__(self, value: Any) -> bool:
        return value in self._link.ask("list", self._number)

    def __enter__(self) -> Thing:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Link:
    """Both directions of the pipe, on the student's side."""

    def __init__(self, source: BinaryIO, target: BinaryIO):
        self._in, self._out = source, target

    def ask(self, what: str, number: int, args: Any = (), options: Any = None) -> Any:
        send(self._out, {"ask": what, "of": number, "args": encode(list(args)), "options": encode(options or {})})
        answer = receive(self._in)
        if "error" in answer:
            import builtins

            kind: Any = getattr(builtins, answer["type"], None)
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                kind = type(answer["type"], (RuntimeError,), {})
            raise kind(answer["error"])
        return self.value(answer["value"])

    def value(self, x: Any) -> Any:
        return decode(x, lambda number: Thing(self, number))


class _Nothing:
    """Replaces the course's checks, which judge elsewhere, and other modules. Every attribute is a no-op function."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _plain(value: Any) -> Any:
    """A result as data: generators and other iterators become lists."""
    if hasattr(value, "__next__"):
        return list(itertools.islice(value, MAX_ITEMS))
    return value


def _described(error: BaseException) -> dict[str, Any]:
    line = next(
        (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == "<answer>"), None
    )
    if isinstance(error, SyntaxError):
        line = error.lineno
    return {"error": " ".join(str(error).split())[:200], "type": type(error).__name__, "line": line}


def refuse(forbidden: list[str]) -> None:
    """From now on, refuses operations that no answer needs.

    Args:
        forbidden: folders whose files may not be read.
    """
    no = (
        "socket.", "subprocess.", "ctypes.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.kill",
        "os.putenv", "os.chdir", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.link", "os.symlink",
        "os.truncate", "shutil.", "pty.", "gc.", "sys.setprofile", "sys.settrace", "winreg.", "mmap.", "sqlite3.",
    )  # fmt: skip
    modules = (
        "exercises", "tests", "ctypes", "_ctypes", "cffi", "_cffi_backend", "numba", "llvmlite", "subprocess", "socket",
        "_posixsubprocess", "_socket", "multiprocessing", "mmap",
    )  # fmt: skip
    folders = [[part for part in os.path.realpath(f).split(os.sep) if part] for f in (*forbidden, "/proc")]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC

    # The hook uses nothing that the watched code could replace: no function written in Python, and no method of the
    # student's own classes.
    def hook(event: str, args: tuple[Any, ...], *, fspath: Any = os.fspath, sep: str = os.sep) -> None:
        if event == "open":
            path, mode, flags = args
            if path is None or type(path) is int:
                return
            path = fspath(path)
            text = bytes.decode(path, "utf-8", "replace") if isinstance(path, bytes) else str.encode(path).decode()
            parts = [part for part in text.split(sep) if part not in ("", ".")]
            inside = ".." in parts or any(parts[: len(f)] == f for f in folders)
            if inside or (type(mode) is str and set(mode) & set("wax+")) or (type(flags) is int and flags & writing):
                raise PermissionError(f"graded code may not open {parts[-1] if parts else text!r}")
        elif event == "import":
            name = str.encode(args[0]).decode()
            if name.split(".")[0] in modules or name.startswith(("teachllama.lessons", "teachllama.check")):
                raise ImportError(f"graded code may not import {name}")
        elif event.startswith(no):
            raise PermissionError(f"graded code may not use {event}")

    sys.addaudithook(hook)


def limit(memory: int, cpu_s: int) -> None:
    """Limits memory, processor time and file sizes, where the system supports it."""
    try:
        import resource
    except ImportError:  # on Windows only the other process enforces limits
        return
    for name, value in (("RLIMIT_AS", memory), ("RLIMIT_CPU", cpu_s), ("RLIMIT_FSIZE", 1_000_000), ("RLIMIT_CORE", 0)):
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (value, value))


def main() -> None:
    """Serves one student's code until the pipe closes."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for n in (0, 1, 2):
        os.dup2(nowhere, n)
    link = Link(source, target)
    order = receive(source)
    import collections  # noqa: F401
    import math  # noqa: F401 - modules that answers usually import
    import types

    sys.stdout = sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.dup(nowhere), "w")))
    limit(order["memory"], order["cpu_s"])
    refuse(order["forbidden"])
    names: dict[str, Any] = {"__name__": "__main__", "np": np, "check": _Nothing(), "assert_right": lambda *_: None}
    names |= {"tl": _Nothing(), "memory": _Nothing(), "show": _Nothing(), "SimpleNamespace": types.SimpleNamespace}
    failed = None
    for optional, text in order["sources"]:
        try:
            exec(compile(text, "<answer>", "exec"), names)
        except MemoryError:
            failed = {"error": "", "type": "MemoryError", "line": None}
        except BaseException as error:
            failed = failed if optional else _described(error)
    send(target, {"ready": [callable(names.get(n)) for n in order["names"]], "failed": failed})
    while True:
        try:
            call = receive(source)
        except EOFError:
            os._exit(0)
        args = [link.value(a) for a in call["args"]]
        try:
            with np.errstate(all="ignore"):
                value = encode(_plain(names[call["name"]](*args)))
        except BaseException as error:
            send(target, _described(error))
            continue
        send(target, {"value": value, "args": [None if isinstance(a, Thing) else encode(a) for a in args]})


if __name__ == "__main__":
    main()
