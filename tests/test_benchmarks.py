"""Parts of the benchmarks: parsing other programs' output, and the C loop's product."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def compare() -> Any:
    spec = importlib.util.spec_from_file_location("compare", BENCHMARKS / "compare.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A program that prints what llama-bench prints: a list with the fields common to ik_llama.cpp and llama.cpp.
FAKE = """
import json, sys
def after(flag):
    return sys.argv[sys.argv.index(flag) + 1].split(",")
rows = []
for flash in after("-fa"):
    for n in after("-p"):
        rows.append(dict(n_prompt=int(n), n_gen=0, flash_attn=flash == "1", avg_ts=1000.0 + int(n) + int(flash)))
    rows.append(dict(n_prompt=0, n_gen=int(after("-n")[0]), flash_attn=flash == "1", avg_ts=100.0 - int(flash)))
print(json.dumps(rows))
"""


def test_a_second_engine_is_measured_by_its_own_program_with_both_settings(compare: Any, tmp_path: Path) -> None:
    program = tmp_path / "llama-bench.py"
    program.write_text(FAKE)
    second = compare.LlamaBench(f"'{sys.executable}' '{program}' -rtr 1", Path("model.gguf"), 2)
    assert second.command[2:6] == ["-rtr", "1", "-m", "model.gguf"]
    assert second.turn() == {
        "decode 128 at n_past 4": {"off": 100.0, "on": 99.0},
        "prefill 32": {"off": 1032.0, "on": 1033.0},
        "prefill 512": {"off": 1512.0, "on": 1513.0},
    }


def test_ratios_to_a_second_engine_are_to_its_better_setting(compare: Any) -> None:
    class Ours:
        def ask(self, task: dict[str, Any]) -> dict[str, float]:
            return {"seconds": task["n"] / 200}

    class Second:
        command = ("/somewhere/llama-bench",)

        def turn(self) -> dict[str, dict[str, float]]:
            return {"prefill 512": {"off": 100.0, "on": 160.0}}

    found = compare.measure_second(Ours(), Second(), 3)
    assert found["command"] == "llama-bench"
    assert found["rows"]["prefill 512"]["ratio"] == pytest.approx(200 / 160)


@pytest.mark.parametrize("text", ["", "| model | t/s |", "[1]", '[{"n_prompt": 7, "n_gen": 0}]', json.dumps({"a": 1})])
def test_what_llama_bench_does_not_print_is_refused_by_name(text: str, compare: Any) -> None:
    with pytest.raises(SystemExit, match="not what llama-bench prints"):
        compare.paces_of(text)


def test_a_second_engine_that_fails_shows_its_own_words(compare: Any) -> None:
    second = compare.LlamaBench(f"'{sys.executable}' -c 'import sys; sys.exit(\"no such model\")'", Path("m.gguf"), 1)
    with pytest.raises(SystemExit, match="no such model"):
        second.turn()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_c_loop_makes_the_product_that_the_kernels_make(compare: Any) -> None:
    pytest.importorskip("numba")
    products = compare.compiled_c()
    if products is None:
        pytest.skip("no C loop for this kind of processor")
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((48, 256), np.float32), rng.standard_normal((256, 32), np.float32)
    out = np.zeros((48, 32), np.float32)
    products(w.ctypes.data, x.ctypes.data, out.ctypes.data, 1)
    np.testing.assert_allclose(out, w @ x, rtol=0, atol=1e-4)
