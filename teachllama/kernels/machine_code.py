"""Compiles the kernels once per machine, and keeps the machine code in the user's cache folder.

The file's name is a hash of the kernels' sources, the processor, and the versions of Numba and llvmlite: when any of
them changes, the kernels are recompiled, and code for another processor is never run. The file's first 32 bytes are a
checksum of the rest, so a damaged file is recompiled, too. Loading it needs only llvmlite, not Numba.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from teachllama.errors import TeachLlamaError
from teachllama.files import replacing
from teachllama.folders import user_cache_dir
from teachllama.kernels import symbols
from teachllama.kernels.shapes import shape_for, with_shape

SYMBOL = "teachllama_serve"
Serve = Callable[[int, int, int, int], int]
_serve: Serve | None = None
_keep: list[Any] = []  # keeps the machine code in memory for the life of the process
_lock = threading.RLock()


def file() -> Path:
    """The file of this machine's compiled kernels. TEACHLLAMA_KERNEL_CACHE sets another folder."""
    parts = [*_processor(), platform.machine(), sys.platform]
    parts += [importlib.metadata.version(package) for package in ("numba", "llvmlite")]
    parts += [p.read_text(encoding="utf-8") for p in sorted(Path(__file__).parent.glob("*.py"))]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    folder = os.environ.get("TEACHLLAMA_KERNEL_CACHE")
    return (Path(folder) if folder else user_cache_dir() / "kernels") / f"{name}.o"


def is_warm() -> bool:
    """True if `serve` has nothing to compile."""
    return _serve is not None or _read(file()) is not None


def serve() -> Serve:
    """The compiled `run.serve`: from the cache, or compiled now, which takes a while and shows its progress."""
    global _serve
    with _lock:
        if _serve is None:
            path = file()
            code = _read(path)
            if code is None:
                with _Progress():
                    code = _compile()
                _keep_file(path, code)
            _serve = linked(code)
        return _serve


def _read(path: Path) -> bytes | None:
    try:
        return _checked(path.read_bytes())
    except OSError:
        return None


def _checked(data: bytes) -> bytes | None:
    """What follows a checksum, if they agree."""
    return data[32:] if len(data) > 32 and hashlib.sha256(data[32:]).digest() == data[:32] else None


def _keep_file(path: Path, code: bytes) -> None:
    """Writes the file whole or not at all; if that fails, the kernels are compiled at each start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(hashlib.sha256(code).digest() + code)
    except OSError as e:
        warnings.warn(
            f"compiled kernels cannot be kept in {path.parent} ({e.strerror or e}), so each start will compile them "
            "again; set TEACHLLAMA_KERNEL_CACHE to a folder that can be written",
            stacklevel=2,
        )


_COMPILE = "from teachllama.kernels.machine_code import write_code; write_code()"


def write_code() -> None:
    """Compiles the kernels, and writes the checksum of their machine code and the code to stdout."""
    code = object_code(llvm_ir(), host_machine())
    sys.stdout.buffer.write(hashlib.sha256(code).digest() + code)


def _compile() -> bytes:
    """Machine code of `run.serve` for this processor, as an object file.

    A process of its own compiles it: Numba takes hundreds of MB, which a process that computes would never give back.
    """
    from teachllama.apart import output_of

    code = _checked(output_of(_COMPILE, "compiling the kernels (backend='numpy' needs none)"))
    if code is None:
        raise TeachLlamaError("compiling the kernels failed: its process wrote something else than machine code")
    return code


def llvm_ir() -> str:
    """`run.serve` and all it calls, as LLVM IR: Numba's translation of the Python, not optimized, for any processor.

    By default Numba links each function with all that it calls, optimizes the whole, and generates machine code for it:
    the same code again at each level. Here the functions are linked once, at the end, and the rest is left to
    `object_code`, which does it once, too. That is also necessary: generating machine code changes the IR into a form
    that must not be optimized again. This changes Numba, so only a process that does nothing else calls it.
    """
    from numba import njit
    from numba.core import codegen, config, cpu

    from teachllama.kernels import run

    for owner, name, new in (
        (config, "OPT", type(getattr(config, "OPT"))(0)),  # noqa: B009  (made at run time)
        (codegen.CPUCodeLibrary, "finalize", lambda self: setattr(self, "_finalized", True)),
        # Numba stores functions under what this returns, which must be a new object each time; it is never called.
        (cpu.CPUContext, "get_executable", lambda self, library, fndesc, env: [].append),
    ):
        setattr(owner, name, new)
    jit: Any = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)  # type: ignore[call-overload]
    compiled = jit(run.serve.py_func)
    compiled.compile("int64(int64, int64, int64, int64)")
    ((_, overload),) = compiled.overloads.items()
    libraries = [overload.library]
    for library in libraries:  # each function's own, and then those of the functions that it calls
        libraries += [other for other in dict.fromkeys(library._linking_libraries) if other not in libraries]
    for library in libraries[1:]:
        overload.library._final_module.link_in(library._get_module_for_linking(), preserve=True)
    text = overload.library.get_llvm_str()
    # Numba's wrappers around the function call into Python and into Numba; without them the code is self-contained.
    text = re.sub(r"^define [^\n]*@(?:cfunc\.|_ZN7cpython)[^\n]*{\n.*?^}\n", "", text, flags=re.M | re.S)
    return _with_inlining(text).replace(overload.fndesc.llvm_func_name, SYMBOL)


def _with_inlining(text: str) -> str:
    """Keeps LLVM from inlining `few`, which exists for each type of block, and has it inline all that `few` calls.

    If all `few` were inlined into one function, the room for their registers would make its stack frame larger than a
    page, and on Windows such frames need a function that may be missing. A step that is called, and not inlined, would
    pass all sums through memory.
    """
    for names, how in (("3few", "noinline"), ("4_few|5_some|4step", "alwaysinline")):
        head = rf"^(define [^\n]*blocks[^\n]*(?:{names})B[^\n]*\)(?: (?:local_)?unnamed_addr)?)([^()\n]*{{)$"
        text = re.sub(head, rf"\1 {how}\2", text, flags=re.M)
    return text


def optimized(ir: str, machine: Any) -> Any:
    """LLVM IR -> a module, optimized for a machine."""
    _initialize()
    module = llvm.parse_assembly(with_shape(ir, shape_for(machine)))
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def object_code(ir: str, machine: Any) -> bytes:
    """LLVM IR -> an object file for a machine."""
    return machine.emit_object(optimized(ir, machine))


def _processor() -> tuple[str, str]:
    """The processor to compile for, and its features: this one, or the LLVM name in TEACHLLAMA_KERNEL_CPU."""
    named = os.environ.get("TEACHLLAMA_KERNEL_CPU")
    return (named, "") if named else (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


def host_machine() -> Any:
    """The target machine for this processor with all its features, or for the one that TEACHLLAMA_KERNEL_CPU names."""
    return machine_of(llvm.get_default_triple(), *_processor())


def machine_of(triple: str, cpu: str, features: str = "") -> Any:
    """The target machine for a processor, by its names in LLVM."""
    _initialize()
    return llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def linked(code: bytes) -> Serve:
    """Links machine code; returns a function with the arguments of `run.serve`."""
    _initialize()
    empty = llvm.parse_assembly("")
    symbols.add_symbols()
    engine = llvm.create_mcjit_compiler(empty, host_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    # Numba's calling convention: the result and an exception are returned through pointers; kernels raise none.
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_void_p), *[ctypes.c_int64] * 4
    )
    function = kind(engine.get_function_address(SYMBOL))  # a call through ctypes releases the interpreter lock
    _keep.append(engine)

    def call(sync: int, thread: int, seen: int, patience: int) -> int:
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        if function(ctypes.byref(result), ctypes.byref(error), sync, thread, seen, patience):
            raise RuntimeError("a compiled kernel failed")
        return result.value

    return call


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # A fork waits for another thread that links: the child could never use an LLVM that stopped halfway.
    os.register_at_fork(
        before=lambda: _lock.acquire(), after_in_parent=lambda: _lock.release(), after_in_child=_after_fork
    )


class _Progress:
    """Reports on stderr that kernels are compiled, and for how long: one updated line in a terminal, else two lines.

    The duration is stored next to the kernels, so that the next compilation on this machine can show an estimate. The
    first one shows none.
    """

    TEXT = "one-time kernel compilation"

    def __enter__(self) -> None:
        self._done, self._started = threading.Event(), time.perf_counter()
        self._moves = sys.stderr is not None and sys.stderr.isatty()
        self._kept = file().parent / "compile_seconds"
        self._usual = self._usual_of(self._kept)
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    @staticmethod
    def _usual_of(path: Path) -> float | None:
        try:
            seconds = float(path.read_text(encoding="ascii")[:20])
        except (OSError, ValueError):
            return None
        return seconds if 1 <= seconds < 10_000 else None

    def _show(self) -> None:
        about = f", {self._usual:.0f} s last time" if self._usual else ""
        while not self._done.wait(1):
            if not self._moves:
                _tell(f"{self.TEXT}, for this processor{about} ...\n")
                return
            seconds = time.perf_counter() - self._started
            left = f" of about {max(self._usual, seconds):.0f}" if self._usual else ""
            _tell(f"\r{self.TEXT}: {seconds:.0f} s{left} ")

    def __exit__(self, kind: object, *rest: object) -> None:
        seconds = time.perf_counter() - self._started
        self._done.set()
        self._thread.join()
        if seconds > 1:
            _tell(("\r" if self._moves else "") + f"{self.TEXT}: {seconds:.0f} s{' ' * 20 * self._moves}\n")
            if kind is None:
                try:
                    self._kept.parent.mkdir(parents=True, exist_ok=True)
                    self._kept.write_text(f"{seconds:.1f}\n", encoding="ascii")
                except OSError:  # then the next compilation shows no estimate
                    pass


def _tell(text: str) -> None:
    if sys.stderr is not None:  # None under pythonw
        print(text, end="", file=sys.stderr, flush=True)
