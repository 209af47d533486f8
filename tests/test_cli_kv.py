"""`teachllama kv` and `teachllama inspect`, on files made here and on the real models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from teachllama.cli import main
from teachllama.cli.inspect import cut, printable, width_of
from teachllama.gguf_file import open_gguf
from teachllama.kv import kv_layout_from_metadata
from tests.test_gguf_file import split_model


@pytest.fixture
def gpt_oss(tmp_path: Path) -> str:
    """A gpt-oss file with metadata and two small tensors: 4 layers, 2 of them sliding; 4096 bytes of weights."""
    return write(tmp_path / "oss.gguf", "gpt-oss", {
        "block_count": 4, "context_length": 4096, "embedding_length": 512, "attention.head_count": 8,
        "attention.head_count_kv": 2, "attention.key_length": 64, "attention.value_length": 64,
        "attention.sliding_window": 128,
    })  # fmt: skip


def write(path: Path, arch: str, numbers: dict[str, int | list[int]], **strings: str) -> str:
    writer = gguf.GGUFWriter(str(path), arch)
    for key, number in numbers.items():
        (writer.add_array if isinstance(number, list) else writer.add_uint32)(f"{arch}.{key}", number)  # type: ignore[operator]
    for key, text in strings.items():
        writer.add_string(key.replace("__", "."), text)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(40)])
    writer.add_array("tokenizer.ggml.scores", [-1e6 * i for i in range(40)])
    writer.add_tensor("token_embd.weight", np.zeros((64, 12), np.float32))
    writer.add_tensor("output.weight", np.zeros((64, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(run(capsys, *argv, "--json"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def damaged_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """The JSON for a file that cannot be read completely: the figures, with exit status 1."""
    assert main([*argv, "--json"]) == 1
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"teachllama {argv[0]}: ")
    assert error.count("\n") == 1
    return error


# kv


def test_the_figures_of_a_file_the_engine_does_not_run(gpt_oss: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_json(capsys, "kv", gpt_oss)
    f16 = out["kv"]["f16"]
    assert f16["token_nbytes"] == 4 * 2 * (64 + 64) * 2
    assert f16["late_token_nbytes"] == f16["token_nbytes"] // 2
    assert f16["seq_len_nbytes"] == f16["native_nbytes"] == 2 * (4096 + 128) * 2 * 128 * 2
    assert f16["full_nbytes"] == 4 * 4096 * 2 * 128 * 2
    assert f16["total_nbytes"] == 4096 + f16["seq_len_nbytes"]
    assert out["weights_nbytes"] == 64 * 12 * 4 + 64 * 8 * 2 == 4096


def test_the_json_has_the_documented_keys(gpt_oss: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_json(capsys, "kv", gpt_oss, "--memory", "1GB", "--seq-len", "100", "--sessions", "3")
    assert out.keys() == {
        "file", "name", "arch", "native_seq_len", "seq_len", "sessions", "n_layers", "groups", "weights_nbytes",
        "state_nbytes", "scratch_nbytes", "fixed_nbytes", "memory_nbytes", "kv", "notes",
    }  # fmt: skip
    assert (out["arch"], out["native_seq_len"], out["seq_len"], out["sessions"]) == ("gpt-oss", 4096, 100, 3)
    shape = {"n_layers": 2, "n_kv_heads": 2, "key_length": 64, "value_length": 64, "index_length": 0}
    assert out["groups"] == [shape | {"window": 128}, shape | {"window": None}]
    assert list(out["kv"]) == ["f32", "f16", "q8_0", "q4_0"]
    for figures in out["kv"].values():
        assert figures.keys() == {
            "token_nbytes", "late_token_nbytes", "seq_len_nbytes", "full_nbytes", "native_nbytes", "total_nbytes",
            "fits",
        }  # fmt: skip
        assert figures["fits"].keys() == {"sessions", "longest_seq_len"}
    with pytest.raises(SystemExit):
        main(["kv", "--help"])
    help_text = capsys.readouterr().out
    assert all(key in help_text for key in [*out, *out["kv"]["f32"], *out["kv"]["f32"]["fits"], *out["groups"][0]])


def test_what_fits_in_memory_is_what_a_hand_calculation_gives(gpt_oss: str, capsys: pytest.CaptureFixture[str]) -> None:
    # f32: 2 layers x 2 heads x 128 x 4 = 2048 bytes per token; with the 2 sliding layers, 4096 until windows fill.
    # One session of 1000 tokens: 2 x (1000 + 128) x 256 x 4 = 2,310,144. In 10 MB less 4096 of weights: 4.32 of them.
    out = run_json(capsys, "kv", gpt_oss, "--seq-len", "1000", "--memory", "10MB", "--kv-dtype", "f32")
    assert out["memory_nbytes"] == 10_000_000
    assert out["kv"]["f32"]["seq_len_nbytes"] == 2_310_144
    # All sessions share scratch memory: with 1000 tokens it takes about 5 MB, so that 2 sessions fit in 10 MB.
    assert out["kv"]["f32"]["fits"]["sessions"] == (10_000_000 - 4096 - out["scratch_nbytes"]) // 2_310_144 == 2
    # The longest context is the last whose caches and scratch memory fit: one more token exceeds what is left.
    for sessions in (1, 3):
        argv = ["kv", gpt_oss, "--memory", "10MB", "--kv-dtype", "f32", "--sessions", str(sessions)]
        longest = run_json(capsys, *argv)["kv"]["f32"]["fits"]["longest_seq_len"]
        for seq_len in (longest, longest + 1):
            out = run_json(capsys, *argv, "--seq-len", str(seq_len))
            cache = 128 * 4096 + (seq_len - 128) * 2048
            assert out["kv"]["f32"]["seq_len_nbytes"] == cache
            needed = 4096 + sessions * cache + out["scratch_nbytes"]
            assert (needed <= 10_000_000) == (seq_len == longest)


def test_memory_smaller_than_the_weights_holds_nothing(gpt_oss: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_json(capsys, "kv", gpt_oss, "--memory", "4kB")
    assert out["kv"]["f16"]["fits"] == {"sessions": 0, "longest_seq_len": 0}
    assert "the weights alone take 4,096 bytes" in run(capsys, "kv", gpt_oss, "--memory", "4kB")


def test_the_report_names_the_layout_and_sums_up_its_formula(gpt_oss: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "kv", gpt_oss, "--sessions", "2", "--memory", "1GiB")
    assert (
        "4 layers, of which 2 attend to a sliding window of 128 positions; 2 KV heads (for 8 query heads)"
        in " ".join(out.split())
    )
    assert "2 layers x 4,096 positions x 2 KV heads x (64 + 64) x 4 bytes = 8,388,608" in out
    assert "2 layers x   128 positions x 2 KV heads x (64 + 64) x 4 bytes =   262,144" in out
    assert "in all 8,650,752 bytes, x 2 sessions = 17,301,504 bytes" in out
    assert "weights and 2 x 4,096 tokens" in out
    assert "1GiB is 1,073,741,824 bytes; 1,073,737,728 are left after the weights." in out
    assert max(map(len, out.splitlines())) <= 120


def test_one_kv_dtype_may_be_asked_for_and_its_blocks_are_counted(
    gpt_oss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "x 34/32 bytes" in run(capsys, "kv", gpt_oss, "--kv-dtype", "q8_0")
    out = run_json(capsys, "kv", gpt_oss, "--kv-dtype", "q8_0")
    assert list(out["kv"]) == ["q8_0"]
    assert out["kv"]["q8_0"]["token_nbytes"] == 4 * 2 * 128 * 34 // 32


@pytest.mark.parametrize("written", ["q8_0,f16", "Q8_0/F16", "q8_0, f16"])
def test_keys_and_values_may_have_types_of_their_own(written: str, gpt_oss: str, capsys: Any) -> None:
    argv = ["kv", gpt_oss, "--seq-len", "1000", "--memory", "20MB", "--kv-dtype", written]
    out = run_json(capsys, *argv)
    assert list(out["kv"]) == ["q8_0/f16"]
    with open_gguf(gpt_oss, metadata_only=True) as file:
        layout = kv_layout_from_metadata(file.metadata)
    pair = layout.bytes(1000, ("q8_0", "f16"))
    assert out["kv"]["q8_0/f16"]["seq_len_nbytes"] == pair
    assert layout.bytes(1000, "q8_0") < pair < layout.bytes(1000, "f16")
    free = 20_000_000 - out["weights_nbytes"] - out["scratch_nbytes"]
    assert out["kv"]["q8_0/f16"]["fits"]["sessions"] == free // pair
    text = run(capsys, *argv)
    assert "in q8_0/f16:" in text
    assert "x 34/32 + " in text
    assert f"in all {pair:,} bytes" in text
    products = [int(line.rsplit("=", 1)[1].replace(",", "")) for line in text.splitlines() if " positions x " in line]
    assert sum(products) == pair


def test_engines_count_pairs_or_say_why_they_have_none(gpt_oss: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["kv", gpt_oss, "--seq-len", "1000", "--engine"]
    with_v = run_json(capsys, *argv, "llama.cpp", "--kv-dtype", "q8_0", "--v-dtype", "f16")["engine"]["kv"]["q8_0"]
    assert run_json(capsys, *argv, "llama.cpp", "--kv-dtype", "q8_0,f16")["engine"]["kv"]["q8_0/f16"] == with_v
    own = run_json(capsys, *argv, "teachllama", "--kv-dtype", "q8_0,f16")
    assert own["engine"]["kv"]["q8_0/f16"]["kv_nbytes"] == own["kv"]["q8_0/f16"]["seq_len_nbytes"]
    assert "one type for keys and values" in fails(capsys, *argv, "vllm", "--kv-dtype", "q8_0,f16")
    twice = fails(capsys, *argv, "llama.cpp", "--kv-dtype", "q8_0,f16", "--v-dtype", "f32")
    assert "given twice" in twice
    assert "takes one --kv-dtype" in fails(capsys, *argv[:4], "--kv-dtype", "q8_0,f16", "--explain", "1MB")
    assert list(run_json(capsys, *argv[:4], "--kv-dtype", "f16,f16")["kv"]) == ["f16"]


def test_a_type_whose_blocks_do_not_fit_is_a_dash_or_an_error(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "phi.gguf", "phi2", {"block_count": 2, "context_length": 64, "embedding_length": 240,
                                                 "attention.head_count": 3})  # fmt: skip
    assert run_json(capsys, "kv", path)["kv"]["q8_0"] is None
    assert "-: this model's heads" in run(capsys, "kv", path, "--memory", "1GB")
    assert "blocks of 32" in fails(capsys, "kv", path, "--kv-dtype", "q8_0")


def test_a_hybrid_s_state_is_counted_for_each_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "lfm.gguf", "lfm2", {
        "block_count": 3, "context_length": 100, "embedding_length": 250, "attention.head_count": 2,
        "attention.head_count_kv": [0, 1, 0], "shortconv.l_cache": 3,
    })  # fmt: skip
    out = run_json(capsys, "kv", path, "--kv-dtype", "f16", "--sessions", "2", "--memory", "1MB")
    state, cache = 2 * 250 * 2 * 4, 100 * 250 * 2  # conv state of two layers in f32; one layer of keys and values
    assert out["state_nbytes"] == state == 4000
    assert out["kv"]["f16"]["total_nbytes"] == 4096 + 2 * (state + cache)
    left = 1_000_000 - 4096 - out["scratch_nbytes"]
    assert out["kv"]["f16"]["fits"]["sessions"] == max(0, left) // (state + cache)
    assert "2 of 3 layers keep a recurrent state" in run(capsys, "kv", path)


def test_a_model_without_a_kv_cache_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "bert.gguf", "bert", {"block_count": 2, "context_length": 512, "embedding_length": 64,
                                                  "attention.head_count": 2})  # fmt: skip
    out = run(capsys, "kv", path, "--memory", "1GB")
    assert "none of which keeps a KV cache" in out
    assert "any" in out
    assert "nothing to plot" in fails(capsys, "kv", path, "--plot", str(tmp_path / "p.png"))


def test_a_context_beyond_the_native_one_is_answered_with_a_note(gpt_oss: str, capsys: Any) -> None:
    assert "more than the 4,096 this model was trained for" in " ".join(
        run(capsys, "kv", gpt_oss, "--seq-len", "5000").split()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seq-len", "0"], "--seq-len is 0"),
        (["--seq-len=-5"], "--seq-len is -5"),
        (["--seq-len", "9" * 4000], "--seq-len is '999"),
        (["--sessions", "0"], "--sessions is 0"),
        (["--kv-dtype", "q9"], "f32, f16, bf16"),
        (["--kv-dtype", "f16,q9"], "q8_0,f16"),
        (["--kv-dtype", "f16,f16,f16"], "q8_0,f16"),
        (["--kv-dtype", ","], "q8_0,f16"),
        (["--memory", "lots"], "--memory is 'lots'"),
    ],
)
def test_bad_options_are_one_line_that_says_what_was_expected(
    gpt_oss: str, options: Any, words: str, capsys: Any
) -> None:
    assert words in fails(capsys, "kv", gpt_oss, *options)


def test_files_that_are_not_models_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "page.gguf"
    text.write_text("<html>not found</html> " * 10)
    for command in ("kv", "inspect"):
        assert "not a GGUF file" in fails(capsys, command, str(text))
        assert "cannot be opened" in fails(capsys, command, str(tmp_path / "absent.gguf"))
    assert "projector" in fails(capsys, "kv", write(tmp_path / "mmproj.gguf", "clip", {"block_count": 2}))
    assert "context_length" in fails(capsys, "kv", write(tmp_path / "short.gguf", "llama", {"block_count": 2}))


def test_a_name_is_looked_up_among_the_models(gpt_oss: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from teachllama import hub

    monkeypatch.setattr(hub, "find", lambda name: Path(gpt_oss) if name == "my-model" else pytest.fail(name))
    assert run_json(capsys, "kv", "my-model")["arch"] == "gpt-oss"


def test_the_weights_of_an_unfinished_download_are_the_files_size_with_a_note_first_and_status_1(
    gpt_oss: str, capsys: Any
) -> None:
    os.truncate(gpt_oss, os.path.getsize(gpt_oss) - 100)
    assert main(["kv", gpt_oss, "--json"]) == 1
    out = json.loads(capsys.readouterr().out)
    assert out["weights_nbytes"] == os.path.getsize(gpt_oss)
    assert "this file alone is counted, by its size" in out["notes"][-1]
    done = subprocess.run(
        [sys.executable, "-m", "teachllama", "kv", gpt_oss], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 1
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith("teachllama kv: weights: this file alone is counted, by its size")
    assert second.endswith("(gpt-oss)")
    assert done.stdout.count("this file alone is counted") == 1


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "Q4_0"])
def test_the_worked_sum_is_in_the_dtype_that_was_asked_for(gpt_oss: str, dtype: str, capsys: Any) -> None:
    out = run(capsys, "kv", gpt_oss, "--kv-dtype", dtype)
    assert f"In numbers, 4,096 tokens in {dtype.lower()}:" in out
    figures = run_json(capsys, "kv", gpt_oss, "--kv-dtype", dtype)["kv"][dtype.lower()]
    assert f"in all {figures['seq_len_nbytes']:,} bytes" in out


def test_a_split_model_is_counted_whole_whatever_its_files_are_called(tmp_path: Path, capsys: Any) -> None:
    parts = split_model(tmp_path / "parts")
    with open_gguf(parts[0]) as file:
        whole = sum(t.nbytes for t in file.tensors.values())
    for given in parts:
        out = run_json(capsys, "kv", str(given))
        assert (out["weights_nbytes"], out["notes"], out["n_layers"]) == (whole, [], 2)
        assert len(run_json(capsys, "inspect", str(given))["tensors"]) == 20
    assert f"{sum(p.stat().st_size for p in parts):,} bytes in 3 files: " in run(capsys, "inspect", str(parts[0]))
    renamed = [p.rename(p.with_name(f"{letter}.gguf")) for letter, p in zip("xyz", parts, strict=True)]
    for given in renamed:
        out = run_json(capsys, "kv", str(given))
        assert (out["weights_nbytes"], out["notes"]) == (whole, [])


def test_a_part_without_the_others_is_named_as_such(tmp_path: Path, capsys: Any) -> None:
    parts = split_model(tmp_path / "parts")
    os.remove(parts[1])
    with open_gguf(parts[0], alone=True) as first, open_gguf(parts[2], alone=True) as last:
        here = sum(t.nbytes for file in (first, last) for t in file.tensors.values())
    out = damaged_json(capsys, "kv", str(parts[0]))
    assert out["weights_nbytes"] == here
    assert "the 2 files that are here are counted, because" in out["notes"][-1]
    assert "part 1 of 3" in out["notes"][-1]
    assert "missing: big-00002-of-00003.gguf" in out["notes"][-1]
    alone = parts[0].rename(tmp_path / "alone.gguf")
    assert "this file alone is counted, because" in damaged_json(capsys, "kv", str(alone))["notes"][-1]
    os.remove(parts[2])
    assert "part 1 of 3" in damaged_json(capsys, "kv", str(alone))["notes"][-1]
    assert main(["inspect", str(alone)]) == 1
    shown = capsys.readouterr()
    assert "llama.block_count" in shown.out
    assert "part 1 of 3" in shown.err


def test_the_plot_is_written_and_a_place_it_cannot_go_is_an_error(gpt_oss: str, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    out = run(capsys, "kv", gpt_oss, "--plot", str(tmp_path / "p.png"), "--memory", "100MB", "--sessions", "2")
    assert f"plot written to {tmp_path / 'p.png'}" in out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    json.loads(run(capsys, "kv", gpt_oss, "--plot", str(tmp_path / "p.svg"), "--json"))
    assert "cannot be written" in fails(capsys, "kv", gpt_oss, "--plot", str(tmp_path / "no" / "p.png"))
    assert "cannot be written" in fails(capsys, "kv", gpt_oss, "--plot", str(tmp_path / "p.nothing"))


def test_the_plot_draws_both_dtypes_and_labels_every_line(gpt_oss: str) -> None:
    pytest.importorskip("matplotlib")
    from teachllama.gguf_file import open_gguf
    from teachllama.kv import kv_layout_from_metadata
    from teachllama.show.kv_plot import plot_kv

    with open_gguf(gpt_oss, metadata_only=True) as file:
        layout = kv_layout_from_metadata(file.metadata)
    ax = plot_kv(layout, r"$\frac costs", weights=4096, memory=10_000_000).axes[0]
    texts = {text.get_text() for text in ax.texts}
    assert {"f32", "f16", "f32, no windows", "weights 4.1 kB", "10 MB less the weights"} <= texts
    assert {"8.65 MB", "4.33 MB"} <= texts  # at the native context
    ax.figure.canvas.draw()  # a dollar sign in a name must not start math text


def test_a_plot_without_matplotlib_names_the_extra(gpt_oss: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'teachllama[lab]'" in fails(capsys, "kv", gpt_oss, "--plot", "p.png")


def test_neither_command_loads_matplotlib_unless_it_plots(gpt_oss: str) -> None:
    code = (
        "import sys; from teachllama.cli import main; main(['kv', sys.argv[1]]); main(['inspect', sys.argv[1]]);"
        "assert 'matplotlib' not in sys.modules and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, gpt_oss], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.model
def test_the_real_models_take_what_llama_cpp_takes(smollm2_path: str, gemma3_path: str, capsys: Any) -> None:
    # llama.cpp, n_ctx 4096, f16: SmolLM2 90.00 MiB; Gemma 3 12.00 MiB in 3 layers of 4096 cells and 11.25 MiB in 15
    # of 768, of which a window of 512 needs 7.50
    smollm2 = run_json(capsys, "kv", smollm2_path, "--seq-len", "4096")
    assert smollm2["kv"]["f16"]["seq_len_nbytes"] == 90 * 2**20
    assert smollm2["kv"]["f32"]["native_nbytes"] == 377_487_360
    gemma3 = run_json(capsys, "kv", gemma3_path, "--seq-len", "4096")
    assert gemma3["kv"]["f16"]["seq_len_nbytes"] == (12.0 + 11.25 * 512 / 768) * 2**20
    assert "18 layers, of which 15 attend to a sliding window of 512" in run(capsys, "kv", gemma3_path)


# inspect


def test_inspect_shows_header_metadata_tensors_and_totals(gpt_oss: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "inspect", gpt_oss)
    assert (
        f"GGUF version 3, {os.path.getsize(gpt_oss):,} bytes: 11 metadata keys, 2 tensors, 1,280 weights, 25.60 bits"
        in out
    )
    assert 'general.architecture              string     "gpt-oss"' in out
    assert '[40 strings] "token 0", "token 1", ' in out
    rows = [line.split() for line in out.splitlines()]
    assert ["token_embd.weight", "64", "x", "12", "F32", "3,072"] in [row[:6] for row in rows]
    assert ["F16", "1", "512", "1,024", "25.0%", "16.00"] in rows
    assert ["all", "2", "1,280", "4,096", "100.0%", "25.60"] in rows


def test_inspect_shows_only_what_is_asked_for(gpt_oss: str, capsys: pytest.CaptureFixture[str]) -> None:
    only_metadata, only_tensors = (
        run(capsys, "inspect", gpt_oss, "--metadata"),
        run(capsys, "inspect", gpt_oss, "--tensors"),
    )
    assert "gpt-oss.block_count" in only_metadata
    assert "gpt-oss.block_count" not in only_tensors
    assert "token_embd.weight" in only_tensors
    assert "token_embd.weight" not in only_metadata
    assert run_json(capsys, "inspect", gpt_oss, "--metadata").keys() == {"file", "version", "nbytes", "metadata"}


def test_inspects_json_has_the_documented_keys_and_no_infinities(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "a.gguf", "llama", {"block_count": 2}, general__name="x")
    data = Path(path).read_bytes().replace(np.float32(-1e6).tobytes(), np.float32(-np.inf).tobytes())
    Path(path).write_bytes(data)
    out = run_json(capsys, "inspect", path)
    assert out.keys() == {
        "file", "version", "nbytes", "metadata", "tensors", "totals", "weights", "tensors_nbytes", "bits_per_weight",
    }  # fmt: skip
    assert out["metadata"]["general.name"] == {"type": "string", "value": "x"}
    assert out["metadata"]["llama.block_count"] == {"type": "int", "value": 2}
    assert out["metadata"]["tokenizer.ggml.scores"]["first"][:2] == [0.0, "-inf"]
    assert out["metadata"]["tokenizer.ggml.tokens"]["count"] == 40
    assert out["tensors"][1]["shape"] == [64, 8]
    assert out["totals"]["F16"] == {"tensors": 1, "weights": 512, "nbytes": 1024}
    assert (out["weights"], out["tensors_nbytes"], out["bits_per_weight"]) == (1280, 4096, 25.6)


def test_lines_keep_to_the_terminals_width(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "a.gguf", "llama", {"block_count": 2}, general__name="字" * 500, general__description="x" * 500
    )
    for width in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        out = run(capsys, "inspect", path, "--metadata").splitlines()[3:]
        assert all(width_of(line) <= width for line in out)
        assert any(line.endswith("...") for line in out)


def test_no_string_of_a_hostile_file_steers_the_terminal(tmp_path: Path, capsys: Any) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\r\n\u202eabc\u200b\x9b31m"
    path = write(tmp_path / "evil.gguf", "llama", {
        "block_count": 1, "context_length": 64, "embedding_length": 64, "attention.head_count": 1,
    }, general__name=evil, **{"key\x1b[1m": evil})  # fmt: skip
    data = (
        Path(path).read_bytes().replace(b"token 1", b"\xff\x1b[31m\xfe").replace(b"output.weight", b"out\x1b[7m.weigt")
    )
    Path(path).write_bytes(data)
    for argv in (["inspect"], ["inspect", "--json"], ["kv"], ["kv", "--json"]):
        assert main([argv[0], path, *argv[1:]]) == 0
        out = capsys.readouterr().out
        assert all(c.isprintable() or c == "\n" for c in out)
        assert "x1b" in out or "u001b" in out


def test_an_unfinished_download_shows_its_metadata_and_then_the_error(gpt_oss: str, capsys: Any) -> None:
    os.truncate(gpt_oss, os.path.getsize(gpt_oss) - 100)
    assert main(["inspect", gpt_oss]) == 1
    printed = capsys.readouterr()
    assert "gpt-oss.block_count" in printed.out
    assert printed.err.startswith("teachllama inspect: ")
    assert "truncated or damaged" in printed.err
    done = subprocess.run(
        [sys.executable, "-m", "teachllama", "inspect", gpt_oss],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert "truncated or damaged" in done.stdout.splitlines()[0]
    assert done.returncode == 1
    assert "truncated or damaged" in fails(capsys, "inspect", gpt_oss, "--tensors")
    assert run_json(capsys, "inspect", gpt_oss, "--metadata")["version"] == 3


def test_a_file_without_tensors_or_metadata_is_inspected_all_the_same(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    assert "no tensors" in run(capsys, "inspect", str(path))
    assert run_json(capsys, "inspect", str(path))["bits_per_weight"] is None


def test_a_terminal_that_knows_only_ascii_gets_escapes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", "llama", {"block_count": 2}, general__name="žluťoučký 字")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "teachllama", "inspect", path], capture_output=True, env=environment)
    assert done.returncode == 0
    assert rb"\u017elu\u0165ou" in done.stdout


@pytest.mark.parametrize(
    ("text", "safe"),
    [("plain text", "plain text"), ("a\tb\n", r"a\tb\n"), ("\x1b[0m", r"\x1b[0m"), ("\udcff", r"\udcff"),
     ("字é", "字é"), ("\u202e", r"\u202e")],
)  # fmt: skip
def test_printable_escapes_what_is_not(text: str, safe: str) -> None:
    assert printable(text) == safe


def test_cut_counts_columns_not_characters() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abc..."
    assert cut("字字字字", 7) == "字字..."
    assert width_of(cut("e\u0301" * 100, 20)) == 20


@pytest.mark.model
def test_inspect_on_the_real_models(smollm2_path: str, gemma3_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "[49152 strings]" in run(capsys, "inspect", smollm2_path)
    out = run_json(capsys, "inspect", gemma3_path)
    assert (out["nbytes"], len(out["tensors"]), out["weights"]) == (253_113_024, 236, 268_098_176)
