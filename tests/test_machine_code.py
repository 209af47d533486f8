"""Compiled kernels on disk: kept, found again, and recompiled if the file cannot be written or trusted."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from teachllama.errors import TeachLlamaError
from tests.kernel_tools import native_model

pytest.importorskip("numba")
from teachllama.kernels import machine_code as cache

SIZES = {"llama.embedding_length": 64, "llama.feed_forward_length": 96}
GENERATE = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import teachllama as tl
    model = tl.load_model(sys.argv[1])
    ids = [token.id for token in model.create_session(seq_len=40).generate([1, 2, 3, 4, 5], max_new_tokens=8)]
found = [name for name in ("numba", "llvmlite") if name in sys.modules]
said = [str(w.message) for w in caught]
print(json.dumps({"backend": model.backend, "ids": ids, "modules": found, "warnings": said}))
"""


@pytest.fixture(scope="module")
def code() -> bytes:
    """The kernels' machine code, from the cache if present."""
    cache.serve()
    kept = cache._read(cache.file())
    return cache._compile() if kept is None else kept


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: bytes) -> list[int]:
    """Simulates a process that has compiled nothing, with a new cache folder and a fast compiler; counts its calls."""
    calls: list[int] = []
    monkeypatch.setattr(cache, "_serve", None)
    monkeypatch.setattr(cache, "_compile", lambda: (calls.append(1), code)[1])
    monkeypatch.setenv("TEACHLLAMA_KERNEL_CACHE", str(tmp_path / "kernels"))
    return calls


def served() -> None:
    """Calls the compiled function like a helper that finds no job. Its return shows that it is machine code."""
    from teachllama.kernels.fields import GENERATION, N_SYNC

    sync = np.zeros(N_SYNC, np.int64)
    sync[GENERATION] = 5
    assert cache.serve()(sync.ctypes.data, 1, 5, 10) == 5


def another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_serve", None)


def generate(path: Path, folder: Path | None, **environment: str) -> tuple[dict[str, Any], str]:
    """Loads a model in a new process and generates; returns its results and its stderr."""
    env = os.environ | environment
    if folder is not None:
        env["TEACHLLAMA_KERNEL_CACHE"] = str(folder)
    done = subprocess.run([sys.executable, "-c", GENERATE, str(path)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def test_importing_the_package_imports_neither_numba_nor_llvmlite() -> None:
    code = "import json, sys, teachllama; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert not {name for name in loaded if name.split(".")[0] in ("numba", "llvmlite")}


def test_importing_the_kernels_is_silent() -> None:
    # On arm64 the table of float16 numbers warned of a signalling NaN: `sh tools/on_arm64.sh` shows it.
    code = "import teachllama.kernels.compiled, teachllama.kernels.run"
    done = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_compiled_once_is_found_by_the_next_start(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not cache.is_warm()
    served()
    assert cache.is_warm()
    another_start(monkeypatch)
    assert cache.is_warm()
    served()
    assert compiled == [1]
    assert [path.parent for path in (tmp_path / "kernels").iterdir()] == [cache.file().parent]


def test_the_environment_variable_names_the_folder_and_without_it_the_users_cache_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEACHLLAMA_KERNEL_CACHE", str(tmp_path / "a b" / "c"))
    assert cache.file().parent == tmp_path / "a b" / "c"
    for empty in (True, False):
        if empty:
            monkeypatch.setenv("TEACHLLAMA_KERNEL_CACHE", "")
        else:
            monkeypatch.delenv("TEACHLLAMA_KERNEL_CACHE")
        assert cache.file().parent.name == "kernels"
        assert cache.file().parent.parent.name.lower() == "teachllama"


@pytest.mark.parametrize("what", ["get_host_cpu_name", "get_host_cpu_features"])
def test_another_processors_kernels_are_not_run_but_compiled_anew_and_both_are_kept(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    features = cache.llvm.get_host_cpu_features()
    features["something-new"] = True
    with monkeypatch.context() as patch:
        patch.setattr(cache.llvm, what, lambda: "another" if what.endswith("name") else features)
        theirs = cache.file()
    theirs.parent.mkdir()
    theirs.write_bytes(hashlib.sha256(b"illegal instruction").digest() + b"illegal instruction")
    assert not cache.is_warm()
    served()
    assert compiled == [1]
    assert set((tmp_path / "kernels").iterdir()) == {theirs, cache.file()}


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_another_version_of_the_compiler_has_another_file(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    mine, version = cache.file(), cache.importlib.metadata.version
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "99.1" if name == package else version(name))
    assert cache.file() != mine


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "an empty file": lambda data: b"",
    "a checksum and nothing after it": lambda data: data[:32],
    "half a file": lambda data: data[: len(data) // 2],
    "a file without its last byte": lambda data: data[:-1],
    "one bit turned over": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "a wrong checksum": lambda data: bytes(32) + data[32:],
    "text": lambda data: b"this is not machine code, whoever put it here" * 100,
    "a file twice as long": lambda data: data + data,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_compiled_anew_and_replaced(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    served()
    good = cache.file().read_bytes()
    cache.file().write_bytes(DAMAGE[what](good))
    another_start(monkeypatch)
    assert not cache.is_warm()
    served()
    assert compiled == [1, 1]
    assert cache.file().read_bytes() == good


def test_the_file_is_its_checksum_and_the_code(compiled: list[int], code: bytes) -> None:
    served()
    assert cache.file().read_bytes() == hashlib.sha256(code).digest() + code


def warned_once(folder: Path) -> str:
    """Starts, expecting success and exactly one warning; returns the warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        served()
        served()
    (message,) = [str(w.message) for w in caught if "kernels" in str(w.message)]
    assert str(folder) in message
    assert "TEACHLLAMA_KERNEL_CACHE" in message
    return message


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_written_costs_one_warning_and_leaves_nothing_behind(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    write = Path.write_bytes

    def failing(path: Path, data: bytes) -> int:
        write(path, data[:1000])  # as much as a full disk allows
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", failing)
    assert os.strerror(number) in warned_once(tmp_path / "kernels")
    assert list((tmp_path / "kernels").iterdir()) == []
    assert compiled == [1]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_costs_one_warning(compiled: list[int], tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir(mode=0o555)
    warned_once(tmp_path / "kernels")


@pytest.mark.parametrize("where", ["kernels", "kernels/below"])
def test_a_file_in_the_folders_place_costs_one_warning_and_stays(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    monkeypatch.setenv("TEACHLLAMA_KERNEL_CACHE", str(tmp_path / where))
    (tmp_path / "kernels").write_text("mine")
    warned_once(tmp_path / where)
    assert (tmp_path / "kernels").read_text() == "mine"


def test_a_folder_in_the_files_place_costs_one_warning(compiled: list[int], tmp_path: Path) -> None:
    (cache.file() / "below").mkdir(parents=True)
    warned_once(tmp_path / "kernels")
    assert list((tmp_path / "kernels").iterdir()) == [cache.file()]


def test_without_llvmlite_the_reference_runs_and_numba_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = native_model(tmp_path / "t.gguf", T.Q8_0, **SIZES)
    code = """
import sys
sys.modules["llvmlite"] = sys.modules["numba"] = None
import teachllama as tl
print(tl.load_model(sys.argv[1]).backend)
try:
    tl.load_model(sys.argv[1], backend="numba")
except tl.UnsupportedModelError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    backend, message = done.stdout.splitlines()
    assert backend == "numpy"
    assert "needs Numba" in message


@pytest.mark.slow
def test_the_first_start_compiles_and_says_so_and_the_next_needs_no_compiler(tmp_path: Path) -> None:
    path, folder = native_model(tmp_path / "t.gguf", T.Q8_0, **SIZES), tmp_path / "kernels"
    first, said = generate(path, folder)
    assert first["backend"] == "numba"
    assert first["warnings"] == []
    assert "one-time kernel compilation" in said
    (kept,) = folder.glob("*.o")

    again, said = generate(path, folder)
    assert again["ids"] == first["ids"]
    assert again["modules"] == ["llvmlite"], "Numba takes most of a second to import"
    assert said == ""

    kept.chmod(0o444)
    folder.chmod(0o555)  # a warm cache may be read-only, as in a container's image
    try:
        read_only, said = generate(path, folder)
        assert read_only == again
        assert said == ""
    finally:
        folder.chmod(0o755)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def compiled_slowly(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO) -> str:
    """The output of a compilation that takes a little over a second."""
    monkeypatch.setattr(sys, "stderr", stderr)
    with cache._Progress():
        time.sleep(1.4)
    return stderr.getvalue()


def test_compiling_is_two_lines_in_a_log_and_promises_what_it_took_last_time(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = compiled_slowly(monkeypatch, io.StringIO())
    assert re.fullmatch(r"one-time kernel compilation, for this processor \.\.\.\n.*compilation: \d+ s\n", first)
    kept = tmp_path / "kernels" / "compile_seconds"
    assert float(kept.read_text()) >= 1
    kept.write_text("38.4\n")
    second = compiled_slowly(monkeypatch, io.StringIO())
    assert second.splitlines()[0] == "one-time kernel compilation, for this processor, 38 s last time ..."
    assert float(kept.read_text()) < 38


def test_compiling_moves_at_a_terminal_and_says_about_how_long(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "of about" not in compiled_slowly(monkeypatch, Screen())
    (tmp_path / "kernels" / "compile_seconds").write_text("38.4\n")
    said = compiled_slowly(monkeypatch, Screen())
    assert "\rone-time kernel compilation: 1 s of about 38 " in said
    assert said.endswith("\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("kept", ["", "soon", "nan", "-3", "1e99", "\xff"])
def test_a_damaged_note_of_the_last_time_promises_nothing(
    kept: str, compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "compile_seconds").write_text(kept, encoding="latin-1")
    assert cache._Progress()._usual_of(tmp_path / "kernels" / "compile_seconds") is None


@pytest.mark.slow
def test_kernels_are_compiled_beside_numbas_own_code_and_leave_the_process_as_it_was(tmp_path: Path) -> None:
    """As in a notebook, which may call a kernel from its own compiled function before or after a model is loaded."""
    code = """
import os, sys
from numba import njit
from teachllama.kernels import machine_code, shapes
from teachllama.kernels.simd import f32_of_bits
own = njit(lambda bits: f32_of_bits(bits))
shapes.provide(0)
assert own(0x3F800000) == 1
ways = os.environ.copy()
machine_code.serve()
assert ways == dict(os.environ)
other = njit(lambda bits: f32_of_bits(bits) + own(bits))
assert other(0x40000000) == 4
print(len(machine_code.file().read_bytes()))
"""
    env = os.environ | {"TEACHLLAMA_KERNEL_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 100_000


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('no more memory')", "no more memory"),
        ("import os; os._exit(9)", "ended with status 9"),
        ("print('a greeting of a sitecustomize.py')", "something else than machine code"),
    ],
)
def test_a_compiler_that_fails_is_an_error_with_what_it_said(
    monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.setattr(cache, "_COMPILE", code)
    with pytest.raises(TeachLlamaError, match=f"compiling the kernels .*failed: .*{said}"):
        cache._compile()


def test_a_process_that_cannot_be_started_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("", "/no/python"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(TeachLlamaError, match="could not be started"):
            cache._compile()


INTERRUPTED = """
import os, signal, subprocess, time
from teachllama.apart import output_of
real, processes = subprocess.Popen, []

def popen(*args, **how):
    processes.append(real(*args, **how))
    os.kill(os.getpid(), signal.SIGINT)  # the process runs, and its Popen is not yet returned
    time.sleep(0.3)
    return processes[0]

subprocess.Popen = popen
try:
    output_of("import time; time.sleep(600)", "waiting")
except KeyboardInterrupt:
    print(processes[0].returncode)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_ctrl_c_while_a_process_is_being_started_ends_it() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("-9\n", "")


def test_a_quick_compilation_says_nothing(compiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with cache._Progress():
        pass
    assert log.getvalue() == ""
    assert not cache.file().parent.exists()


@pytest.mark.parametrize("before", ["", " local_unnamed_addr", " unnamed_addr"])
@pytest.mark.parametrize("attributes", ["", " #5"])
def test_what_must_or_must_not_stay_a_function_is_marked_where_llvm_wants_it(before: str, attributes: str) -> None:
    # Numba writes the form with attributes if it has optimized these functions already.
    name = "_ZN10teachllama7kernels6blocks10_functions12_3clocals_3e3fewB2v6"
    body = "{\n  ret i32 0\n}\n"
    text = f"define linkonce_odr i32 @{name}(ptr captures(none) %a, i64 %b){before}{attributes} {body}"
    text += f"define i32 @other(i64 %b){before}{attributes} {body}attributes #5 = {{ nounwind }}\n"
    step = name.replace("3few", "4step")
    text += f"define linkonce_odr i32 @{step}(i64 %b){before}{attributes} {body}"
    module = cache.llvm.parse_assembly(cache._with_inlining(text))
    attributes_of = {f.name: b" ".join(f.attributes) for f in module.functions}
    assert b"alwaysinline" in attributes_of[step]
    assert b"noinline" in attributes_of[name]
    assert b"inline" not in attributes_of["other"]
