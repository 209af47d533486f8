"""The kernels' source names no processor: it also compiles to AVX2 and ARM64 code, with the same results."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from gguf import GGMLQuantizationType

import teachllama as tl
from teachllama.apart import output_of
from teachllama.kernels import machine_code as cache
from teachllama.kernels import symbols, team
from teachllama.kernels.shapes import shape_for
from tests.tools import copy_as, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ir() -> str:
    # In a process of its own: parts that another test has compiled with Numba alone would be optimized already.
    return output_of("from teachllama.kernels.machine_code import llvm_ir; print(llvm_ir())", "compiling").decode()


def test_no_processors_instruction_is_named_in_the_kernels(ir: str) -> None:
    assert not re.findall(r"@llvm\.(?:x86|aarch64|arm)\.[\w.]+", ir)


@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="needs a processor with AVX2")
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "F16"])
def test_code_for_a_processor_with_avx2_alone_gives_the_same_logits(
    ir: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = cache.machine_of(llvm.get_default_triple(), "haswell")
    serve = cache.linked(cache.object_code(ir, machine))
    size = {"llama.embedding_length": 64, "llama.feed_forward_length": 96}
    path = copy_as(tiny_model(tmp_path / "t.gguf", **size), tmp_path / "q.gguf", GGMLQuantizationType[kind])
    ids = np.random.default_rng(0).integers(0, 256, 45)
    with tl.load_model(path, backend="numpy") as model, model.create_session() as session:
        expected = session.eval(ids, all_logits=True)
        one_more = session.eval([7])
    monkeypatch.setattr(cache, "serve", lambda: serve)
    monkeypatch.setattr(team, "_team", None)
    with tl.load_model(path, backend="numba") as model, model.create_session() as session:
        np.testing.assert_allclose(session.eval(ids, all_logits=True), expected, atol=1e-4)
        np.testing.assert_allclose(session.eval([7]), one_more, atol=1e-4)


def test_the_kernels_become_arm64_vector_code(ir: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        machine = cache.machine_of("aarch64-linux-gnu", "neoverse-n1")
    except RuntimeError as e:
        pytest.skip(f"this LLVM has no ARM64: {e}")
    module = llvm.parse_assembly(re.sub(r"^target (?:triple|datalayout).*\n", "", ir, flags=re.M))
    module.triple, module.data_layout = "aarch64-linux-gnu", str(machine.target_data)
    assembly = machine.emit_assembly(module)
    assert assembly.count("fmla") > 500  # fused multiply-add on vectors of four
    assert "fmaf" not in assembly, "a fused multiply-add that the processor does not do itself would be a slow call"


CODE_FOR = {  # LLVM's names for the target, and the expected tile shape
    "AVX-512": ("x86_64-unknown-linux-gnu", "x86-64-v4", (8, 32)),
    "AVX2": ("x86_64-unknown-linux-gnu", "haswell", (6, 16)),
    "NEON": ("aarch64-unknown-linux-gnu", "neoverse-n1", (6, 16)),
}


def loops(assembly: str) -> list[list[str]]:
    """The instructions of each innermost loop, that is, each block that jumps back to its own beginning."""
    found, label, block = [], "", []
    for line in assembly.splitlines():
        begins = re.match(r"^(\.L\w+):", line)
        if begins:
            label, block = begins[1], []
        elif re.match(r"\t[a-z]", line):
            block.append(line.split("#")[0].split("//")[0].strip())
            if label and re.search(rf"^(?:j|b\.|cb|tb).*{re.escape(label)}$", block[-1]):
                found.append(block)
    return found


def test_a_processor_without_fused_vectors_gets_the_smallest_tiles() -> None:
    shape = shape_for(cache.machine_of("x86_64-unknown-linux-gnu", "x86-64"))
    assert (shape.rows, shape.lanes) == (4, 8)


@pytest.mark.parametrize("kind", CODE_FOR)
def test_the_sums_of_a_tile_stay_in_registers_on_every_kind_of_processor(ir: str, kind: str) -> None:
    triple, cpu, size = CODE_FOR[kind]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        machine = cache.machine_of(triple, cpu)
    except RuntimeError as e:
        pytest.skip(f"this LLVM lacks it: {e}")
    shape = shape_for(machine)
    assert (shape.kind, shape.rows, shape.lanes) == (kind, *size)
    text = re.sub(r"^target (?:triple|datalayout).*\n", "", ir, flags=re.M)
    text = f'target datalayout = "{machine.target_data}"\ntarget triple = "{triple}"\n{text}'
    module = cache.optimized(text, machine)
    assembly = machine.emit_assembly(module)
    n_registers = {"AVX-512": 16, "AVX2": 12, "NEON": 24}[kind]  # registers that hold sums
    # A tile's loop reads float32 weights one at a time, without conversions or prefetches.
    tiles = [
        block
        for block in loops(assembly)
        if (n := sum(bool(re.search(r"^(?:vfmadd\w*ps|fmla)\s", line)) for line in block)) and n % n_registers == 0
        if not any(re.search(r"cvt|pmov|shll|max|sqrt|div|prf|prefetch", line) for line in block)
    ]
    assert tiles
    for block in tiles:
        spilled = [line for line in block if re.search(r"[xyz]mm\d|\b[qv]\d", line) and re.search(r"%rsp|\bsp\b", line)]
        assert not spilled, (len(block), spilled)
        assert not [line for line in block if re.match(r"vmulps|fmul\s", line)], "not fused"
    # Rows of blocks are prefetched. A block's 16 possible weights are looked up by one instruction, or not at all.
    blocks = [block for block in loops(assembly) if any(re.match(r"prefetch|prfm", line) for line in block)]
    assert blocks
    assert any(re.match(r"vperm(?:d|ps)\s", line) for block in blocks for line in block) == (kind == "AVX-512")
    assert not [line for block in blocks for line in block if re.match(r"vpextr|vpinsr|umov", line)]


def undefined_in(elf: bytes) -> set[str]:
    """The names that an ELF object file leaves to the linker."""
    sections = {section.name(): section.data() for section in llvm.ObjectFileRef.from_data(elf).sections()}
    entries = struct.iter_unpack("<IBBHQQ", sections[b".symtab"])  # name, kind, visibility, section, value, size
    names = {
        sections[b".strtab"][at:].split(b"\0", 1)[0].decode() for at, _, _, section, _, _ in entries if not section
    }
    return names - {""}


@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64-v4"])
def test_on_windows_the_kernels_need_nothing_but_our_two_symbols(ir: str, processor: str) -> None:
    triple = "x86_64-pc-windows-msvc-elf"  # -elf, as llvmlite uses on Windows: its linker reads only ELF
    machine = cache.machine_of(triple, processor)
    head = f'target datalayout = "{machine.target_data}"\ntarget triple = "{triple}"\n'
    code = cache.object_code(head + re.sub(r"^target (?:triple|datalayout).*\n", "", ir, flags=re.M), machine)
    # Not sched_yield, which Windows lacks, nor __chkstk, expf or memcpy, which a process there may not export.
    assert undefined_in(code) == {symbols.YIELD, symbols.F16_TABLE}


def test_on_windows_another_thread_is_let_run_by_switch_to_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    switch, added = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1), {}
    kernel32 = types.SimpleNamespace(SwitchToThread=switch)
    monkeypatch.setattr(symbols.sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=kernel32), raising=False)
    monkeypatch.setattr(ctypes, "CDLL", None)  # there is no sched_yield on Windows
    monkeypatch.setattr(llvm, "add_symbol", added.__setitem__)
    symbols.add_symbols()
    assert added == {
        symbols.YIELD: ctypes.cast(switch, ctypes.c_void_p).value,
        symbols.F16_TABLE: symbols.TABLE.ctypes.data,
    }


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_share_one_copy_of_the_weights(smollm2_path: str) -> None:
    code = (
        "import sys, re, teachllama as tl\n"
        "model = tl.load_model(sys.argv[1]); session = model.create_session(seq_len=64); session.eval([1, 2, 3])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "text = open('/proc/self/smaps').read()\n"
        "part = next(p for p in re.split(r'\\n(?=[0-9a-f]+-)', text) if sys.argv[1] in p)\n"
        "print(*(re.search(rf'\\n{key}: +(\\d+)', part)[1] for key in ('Rss', 'Pss')), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", code, str(Path(smollm2_path).resolve())]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipe) for _ in range(2)]  # type: ignore[call-overload]
    try:
        for process in processes:
            assert process.stdout.readline().strip() == "ready"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
            resident, proportional = map(int, process.stdout.readline().split())
            assert resident > 80_000  # kB: the matrices were read
            assert proportional < 0.6 * resident  # each shared page counts half in each process
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
