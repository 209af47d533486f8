"""What engines reserve beyond the formula, and which mistakes explain published numbers."""

from __future__ import annotations

import json
import random
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

import teachllama as tl
from teachllama import hub, threads
from teachllama.cli import kv_engines, main
from teachllama.errors import ParameterError
from teachllama.gguf_file import TensorInfo, open_gguf
from teachllama.kernels.compiled import CompiledForward
from teachllama.kv import engines, kv_layout_from_metadata
from teachllama.kv.engines import LlamaCpp
from teachllama.kv.explain import SHAPE, Question, as_seq_len, cache_of, explain
from tests.kv_corpus import make
from tests.kv_corpus.models import ENTRIES

BY_NAME = {entry.name: entry for entry in ENTRIES}


def metadata_of(name: str) -> dict[str, Any]:
    return make.metadata_of(BY_NAME[name])


def model_of(name: str) -> engines.Model:
    metadata = metadata_of(name)
    return engines.Model.from_metadata(kv_layout_from_metadata(metadata), metadata)


# llama.cpp


def test_llama_cpp_pads_contexts_and_windows() -> None:
    # 5,000 tokens in 5,120 cells; a window of 512 and a batch of 512 in 1,024
    full, sliding = engines.llama_cpp(model_of("gemma-3-270m"), 5000).buffers
    assert (full.cells, full.n_layers, full.nbytes) == (5120, 3, 3 * 5120 * 512 * 2)
    assert (sliding.cells, sliding.n_layers, sliding.nbytes) == (1024, 15, 15 * 1024 * 512 * 2)


def test_llama_cpps_sequences_share_cells_or_have_their_own() -> None:
    model = model_of("gemma-3-270m")
    split = engines.llama_cpp(model, 1000, "f16", 4)
    unified = engines.llama_cpp(model, 1000, "f16", 4, LlamaCpp(unified=True))
    assert [(b.cells, b.n_sequences) for b in split.buffers] == [(1024, 4), (1024, 4)]
    assert [(b.cells, b.n_sequences) for b in unified.buffers] == [(4096, 1), (2560, 1)]
    assert any("split" in rule.text for rule in split.rules)
    assert any("unified" in rule.text for rule in unified.rules)


def test_what_llama_cpp_refuses_is_refused_in_words() -> None:
    with pytest.raises(ParameterError, match="with flash attention only"):
        engines.llama_cpp(model_of("llama-3.1-8b"), 4096, "q8_0", 1, LlamaCpp(flash_attn=False))
    with pytest.raises(ParameterError, match="K holds V"):
        engines.llama_cpp(model_of("deepseek-v3"), 4096, "q8_0", 1, LlamaCpp(v_dtype="f16"))
    with pytest.raises(ParameterError, match="blocks of 32"):
        engines.llama_cpp(model_of("phi-2"), 4096, "q8_0")
    with pytest.raises(ParameterError, match="n_ubatch"):
        engines.llama_cpp(model_of("llama-3.1-8b"), 4096, "f16", 1, LlamaCpp(n_ubatch=0))


@given(st.sampled_from([e.name for e in ENTRIES]), st.integers(1, 200_000), st.integers(1, 8))
def test_llama_cpp_never_reserves_less_than_the_rule(name: str, seq_len: int, n_sessions: int) -> None:
    model = model_of(name)
    reserved = engines.llama_cpp(model, seq_len, "f16", n_sessions)
    assert reserved.kv_nbytes >= model.layout.bytes(seq_len, "f16", n_sessions)
    assert reserved.state_nbytes == n_sessions * model.layout.state_nbytes


# vLLM: figures computed by hand from its rules


def test_vllm_fills_whole_blocks() -> None:
    # 1,001 tokens are 63 blocks of 16, in 32 layers of 8 x (128 + 128) numbers of 2 bytes
    reserved = engines.vllm(model_of("llama-3.1-8b"), 1001)
    assert reserved.kv_nbytes == 63 * 16 * 32 * 8 * 256 * 2


def test_vllm_groups_layers_of_different_windows() -> None:
    # gpt-oss-20b: 12 full layers and 12 with a window of 128: two groups of 12. 32,768 tokens: 2,048 blocks and, with
    # 2,048 tokens of one step besides the window, ceil(2,175 / 16) + 1 = 137.
    reserved = engines.vllm(model_of("gpt-oss-20b"), 32768)
    page = 16 * 8 * 128 * 2
    assert [b.nbytes for b in reserved.buffers] == [2048 * 12 * page, 137 * 12 * page]
    # Gemma 3 1B: 4 full and 22 sliding: groups of 4, the last padded with 2
    groups = engines.vllm(model_of("gemma-3-1b"), 32768)
    assert len(groups.buffers) == 1 + 6
    assert any("2 layers are padding" in rule.text for rule in groups.rules)


def test_vllm_pads_to_the_larger_group_where_they_are_nearly_equal() -> None:
    layers = model_of("gemma-2-9b").layout.layers  # 21 and 21; one more full layer makes 22 and 21
    from dataclasses import replace

    layout = replace(model_of("gemma-2-9b").layout, layers=(*layers, replace(layers[1], window=None)))
    reserved = engines.vllm(engines.Model(layout), 8192)
    assert [b.n_layers for b in reserved.buffers] == [22, 22]


def test_vllms_blocks_are_its_share_of_the_gpu_less_the_weights() -> None:
    model = model_of("llama-3.1-8b")
    assert engines.vllm_blocks(model, 24 * 10**9, 16 * 10**9) == int(24e9 * 0.92 - 16e9) // (16 * 131072)
    assert engines.vllm_blocks(model, 10**9, 16 * 10**9) == 0


def test_vllm_makes_a_block_as_large_as_a_recurrent_state() -> None:
    reserved = engines.vllm(model_of("qwen3-next-80b-a3b"), 32768)
    assert {b.name for b in reserved.buffers} == {"full attention", "recurrent state"}
    assert any("a block grows" in rule.text for rule in reserved.rules)


def test_vllm_has_no_four_bit_cache() -> None:
    with pytest.raises(ParameterError, match="no cache of type q4_0"):
        engines.vllm(model_of("llama-3.1-8b"), 4096, "q4_0")


# teachllama


def test_our_own_sessions_hold_what_the_rule_gives(tmp_path: Any) -> None:
    import teachllama as tl
    from tests.tools import tiny_model

    with tl.load_model(tiny_model(tmp_path / "g.gguf", "gemma3"), backend="numpy") as model:
        engine = engines.Model(model.config.kv_layout)
        for kv_dtype in ("f32", "f16"):
            with model.create_session(seq_len=40, kv_dtype=kv_dtype) as session:
                assert engines.teachllama(engine, 40, kv_dtype).nbytes == session.kv_nbytes


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_scratch_memory_of_this_engine_is_about_what_it_takes(n_threads: int) -> None:
    n_before = threads.get_num_threads()
    with tl.load_model("tiny-stories") as model:
        if model.backend != "numba":
            pytest.skip("compiled kernels do not run here")
        with open_gguf(hub.find("tiny-stories")) as file:
            engine = engines.Model.from_metadata(kv_layout_from_metadata(file.metadata), file.metadata)
        try:
            tl.set_num_threads(n_threads)
            with model.create_session(seq_len=256) as session:
                session.eval([5] * 250)
                (forward,) = (v for v in vars(model).values() if isinstance(v, CompiledForward))
                workspace = forward._workspace
                assert workspace is not None
        finally:
            tl.set_num_threads(n_before)
        estimate = engines.teachllama(engine, 256, "f32", 1, engines.Teachllama(n_threads)).compute_nbytes
        assert workspace.nbytes / 2 < estimate < 2 * workspace.nbytes


def test_tensors_without_a_kernel_are_counted_as_float32() -> None:
    types = gguf.GGMLQuantizationType
    native = TensorInfo("a.weight", (4, 256), types.Q4_K, 0, 4 * 144)
    other = TensorInfo("b.weight", (4, 256), types.Q2_K, 0, 4 * 84)
    vector = TensorInfo("c.weight", (256,), types.F32, 0, 1024)
    assert kv_engines.held_nbytes([native, other, vector]) == 4 * 144 + 4 * 256 * 4 + 1024
    assert "holds those as float32: 4,608 B of weights in memory, 912 B in" in kv_engines.weight_notes(912, 4608)[0]


def test_an_engine_that_refuses_the_only_type_asked_for_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["kv", header("smollm2-135m"), "--kv-dtype", "f16", "--engine", "llama.cpp"]
    assert main([*argv, "--no-flash-attn", "--v-dtype", "q8_0"]) == 1
    assert "llama.cpp stores V as q8_0 with flash attention only" in capsys.readouterr().err


def test_a_file_without_tensors_says_that_weights_are_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Note: the file holds no tensors, so weights are not counted." in out_of(capsys, header("smollm2-135m"))


# What fits


@given(st.sampled_from(["llama-3.1-8b", "gemma-3-27b", "qwen3.5-27b", "gpt-oss-20b"]), st.integers(1, 40),
       st.sampled_from(sorted(engines.ENGINES)))  # fmt: skip
def test_what_fits_fits_and_one_more_does_not(name: str, gigabytes: int, engine: str) -> None:
    model, memory, weights = model_of(name), gigabytes * 10**9, 10**9
    found = engines.fit(model, engine, memory, weights, 8192, "f16", 1)
    share = 0.92 if engine == "vllm" else 1

    def cost(seq_len: int, n: int) -> int:
        reserved = engines.ENGINES[engine](model, seq_len, "f16", n, None)
        return weights + reserved.nbytes + reserved.compute_nbytes

    assert found.sessions is not None
    assert found.longest_seq_len is not None
    if found.sessions:
        assert cost(8192, found.sessions) <= memory * share
    assert cost(8192, found.sessions + 1) > memory * share
    if found.longest_seq_len:
        assert cost(found.longest_seq_len, 1) <= memory * share
    assert cost(found.longest_seq_len + 1, 1) > memory * share


# Explaining a number


def names(model: str, nbytes: int, seq_len: int, **more: Any) -> list[tuple[str, ...]]:
    return [e.mistakes for e in explain(model_of(model), Question(nbytes, seq_len, **more), metadata_of(model))]


@pytest.mark.parametrize(
    ("model", "nbytes", "seq_len", "more", "expected"),
    [
        # a calculator's 87.4 GB for Gemma 3 27B, +682 %: dim / n_heads is 168, and no layer slides
        ("gemma-3-27b", 62 * 131072 * 16 * 168 * 2 * 2, 131072, {}, ("head_dim", "sliding_window")),
        # DeepSeek V3, -81 %: 7,168 / 128 = 56 numbers each for K and V, where a compressed key has 576
        ("deepseek-v3", 61 * 163840 * 56 * 2 * 2, 163840, {}, ("head_dim",)),
        ("deepseek-v3", 61 * 163840 * 128 * 320 * 2, 163840, {}, ("latent_in_full",)),
        ("gemma-3-27b", 62 * 131072 * 16 * 256 * 2, 131072, {}, ("sliding_window",)),
        ("llama-3.1-8b", 64 * 2**30, 131072, {}, ("query_heads",)),
        ("qwen3-0.6b", 28 * 40960 * 8 * 64 * 2 * 2, 40960, {}, ("head_dim",)),
        ("llama-3.1-8b", 8 * 2**30, 131072, {}, ("no_v",)),
        ("mimo-v2-flash", 32768 * 9 * 4 * 384 * 2 + 128 * 39 * 8 * 384 * 2, 32768, {}, ("value_length",)),
        ("lfm2-1.2b", 16 * 32768 * 8 * 128 * 2, 32768, {}, ("all_attend",)),
        ("gemma-3-270m", 18 * 512 * 512 * 2, 4096, {}, ("first_layer",)),
        ("deepseek-v3.2", 61 * 4096 * 576 * 2, 4096, {}, ("no_index",)),
        ("llama-3.1-8b", 2**29, 131072, {}, ("one_layer",)),
        ("llama-3.1-8b", 2**33, 131072, {"kv_dtype": "f32"}, ("elements",)),
        ("llama-3.1-8b", 2**34, 131072, {"kv_dtype": "f32"}, ("counted_f16",)),
        ("llama-3.1-8b", 2**34, 8192, {}, ("native_context",)),
        ("llama-3.1-8b", 131072, 8192, {}, ("one_position",)),
        ("llama-3.1-8b", 3 * 2**30, 8192, {}, ("sequences_3",)),
        ("llama-3.1-8b", 2**30, 8192, {"n_sessions": 4}, ("one_session",)),
        ("llama-3.1-8b", 16 * 10**9, 131072, {"unit": "GB"}, ("binary_for_decimal",)),
        ("llama-3.1-8b", 17_179_869_184 * 2**30 // 10**9, 131072, {"unit": "GiB"}, ("decimal_for_binary",)),
        ("llama-3.1-8b", 2**30 + 4_920_000_000, 8192, {"weights": 4_920_000_000}, ("weights",)),
        ("llama-3.1-8b", 4_920_000_000, 8192, {"weights": 4_920_000_000}, ("only_weights",)),
        ("qwen3.5-27b", 65536 * 4096 + 156_893_184, 4096, {}, ("state",)),
        ("qwen3.5-27b", 156_893_184, 4096, {}, ("only_state",)),
        # llama.cpp's log for Gemma 3 270M at 4,096: 27 MiB in all, 15 of them for windows
        ("gemma-3-270m", 27 * 2**20, 4096, {"unit": "MiB"}, ("engine_llama_cpp",)),
        ("gemma-3-270m", 15 * 2**20, 4096, {"unit": "MiB"}, ("engine_llama_cpp",)),
        ("gpt-oss-20b", (2048 + 137) * 12 * 16 * 8 * 128 * 2, 32768, {}, ("engine_vllm",)),
        ("llama-3.1-8b", 2**30, 8192, {}, ()),
    ],
)  # fmt: skip
def test_a_number_is_explained_by_its_mistake(
    model: str, nbytes: int, seq_len: int, more: dict[str, Any], expected: tuple[str, ...]
) -> None:
    found = names(model, nbytes, seq_len, **more)
    assert expected in found
    assert all(len(mistakes) == len(found[0]) for mistakes in found)


def test_every_explanation_has_the_size_that_it_names_within_two_percent() -> None:
    for entry in ENTRIES:
        model, metadata = model_of(entry.name), metadata_of(entry.name)
        right = cache_of(model, Question(1, 8192), metadata)
        for mistake in SHAPE:
            nbytes = round(mistake.change(right).nbytes)
            if not nbytes or nbytes == right.nbytes:
                continue
            found = explain(model, Question(nbytes, 8192), metadata)
            assert found, (entry.name, mistake.name)
            assert all(abs(nbytes / e.nbytes - 1) <= 0.0201 for e in found)


def test_most_numbers_are_explained_by_nothing() -> None:
    rng, none = random.Random(1), 0
    for _ in range(100):
        model = rng.choice(["llama-3.1-8b", "gemma-3-27b", "qwen3-0.6b", "deepseek-v3"])
        nbytes = int(model_of(model).layout.bytes(8192, "f16") * 10 ** rng.uniform(-1, 1))
        none += not names(model, nbytes, 8192)
    assert none > 50


def test_the_context_at_which_a_number_would_be_right_is_found() -> None:
    model = model_of("llama-3.1-8b")
    assert as_seq_len(model, Question(131072 * 37_200, 8192)) == 37_200
    assert as_seq_len(model, Question(1000, 8192)) is None


@pytest.mark.parametrize("nbytes", [0, -5])
def test_a_number_below_one_byte_is_refused(nbytes: int) -> None:
    with pytest.raises(ParameterError, match="1 byte or more"):
        explain(model_of("llama-3.1-8b"), Question(nbytes, 8192))


# The command line


def header(name: str) -> str:
    return str(make.HERE / "headers" / f"{name}.gguf")


def out_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["kv", *argv]) == 0
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["kv", *argv]) == 1
    return capsys.readouterr().err


def test_the_command_says_what_an_engine_reserves_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    out = out_of(capsys, header("gemma-3-270m"), "--seq-len", "4096", "--engine", "llama.cpp", "--memory", "1GB")
    assert "What llama.cpp reserves, 1 x 4,096 tokens" in out
    assert "sliding window, 15 layers x 1,024 cells" in out
    assert "a window of 512 gets room for a batch besides (512)" in " ".join(out.split())
    assert "longest context in 1GB" in out
    out = out_of(capsys, header("gemma-3-270m"), "--engine", "llama.cpp", "--swa-full", "--ubatch", "64", "--unified")
    assert "--swa-full: windows keep every position" in out
    assert "What vllm reserves" in out_of(capsys, header("gpt-oss-20b"), "--engine", "vllm", "--block-size", "32")
    assert "What teachllama reserves" in out_of(capsys, header("llama-3.1-8b"), "--engine", "teachllama")


def test_the_json_of_an_engine_and_of_an_explanation_has_the_documented_keys(capsys: Any) -> None:
    argv = [header("qwen3.5-27b"), "--engine", "vllm", "--memory", "40GB", "--explain", "15 GB", "--json"]
    answer = json.loads(out_of(capsys, *argv))
    assert answer["engine"].keys() == {"name", "rules", "kv", "why_not", "notes"}
    figures = answer["engine"]["kv"]["f16"]
    assert figures.keys() == {"buffers", "kv_nbytes", "state_nbytes", "compute_nbytes", "total_nbytes", "fits"}
    assert answer["engine"]["kv"]["q4_0"] is None
    assert "no cache of type q4_0" in answer["engine"]["why_not"]["q4_0"]
    assert answer["explain"].keys() == {"nbytes", "right_nbytes", "explanations", "as_seq_len"}
    with pytest.raises(SystemExit):
        main(["kv", "--help"])
    help_text = capsys.readouterr().out
    keys = [*answer["engine"], *figures, *figures["buffers"][0], *answer["explain"]]
    assert all(key in help_text for key in keys)


def test_the_command_explains_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    out = " ".join(out_of(capsys, header("gemma-3-27b"), "--explain", "87.4 GB").split())
    assert "87.4 GB is 87,400,000,000 bytes. The rule gives 11,173,625,856 bytes (11.2 GB)" in out
    assert "+682%" in out
    assert "it takes dim / n_heads for the length of a head" in out
    assert "none of the mistakes known here gives that number" in " ".join(
        out_of(capsys, header("gemma-3-27b"), "--explain", "2.9 GB").split()
    )


def test_fixed_and_growing_parts_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    out = " ".join(out_of(capsys, header("qwen3.5-27b"), "--sessions", "2").split())
    assert "Fixed, at any context: the weights (0 B), recurrent state (313.8 MB). Scratch memory for" in out
    assert "is one for all sessions: here about " in out
    assert "Each further token adds, to one session: 131,072 B in f32, 65,536 B in f16" in out
    answer = json.loads(out_of(capsys, header("qwen3.5-27b"), "--sessions", "2", "--json"))
    assert answer["fixed_nbytes"] == 2 * 156_893_184


def test_strict_refuses_what_is_counted_with_a_doubt(capsys: pytest.CaptureFixture[str]) -> None:
    assert "not an architecture known here" in out_of(capsys, header("unknown-hybrid")).replace("\n  ", " ")
    assert "not an architecture known here" in error_of(capsys, header("unknown-hybrid"), "--strict")
    assert "KV cache of one session" in out_of(capsys, header("llama-3.1-8b"), "--strict")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "ollama"], "expected one of llama.cpp, teachllama, vllm"),
        (["--unified"], "--unified is an option of --engine llama.cpp"),
        (["--engine", "vllm", "--swa-full"], "--swa-full is an option of --engine llama.cpp"),
        (["--engine", "llama.cpp", "--block-size", "16"], "--block-size is an option of --engine vllm"),
        (["--engine", "llama.cpp", "--v-dtype", "q9"], "--v-dtype is 'q9'"),
        (["--engine", "vllm", "--gpu-memory-utilization", "1.5"], "expected more than 0, and at most 1"),
        (["--engine", "vllm", "--gpu-memory-utilization", "nan"], "expected more than 0, and at most 1"),
        (["--explain", "lots"], "--explain is 'lots'"),
        (["--explain", "0"], "--explain is '0'"),
    ],
)
def test_bad_options_are_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, header("llama-3.1-8b"), *options)
    assert words in error
    assert error.count("\n") == 1


@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_headers_are_errors_of_ours_or_answers(noise: bytes, at: int) -> None:
    from teachllama.errors import TeachLlamaError
    from teachllama.gguf_remote import read_header

    data = bytearray((make.HERE / "headers" / "qwen3.5-27b.gguf").read_bytes())
    data[at : at + len(noise)] = noise
    raw = bytes(data)
    try:
        metadata, _ = read_header("x.gguf", len(raw), lambda start, end: raw[start:end])
        model = engines.Model.from_metadata(kv_layout_from_metadata(metadata), metadata)
        engines.llama_cpp(model, 4096)
        explain(model, Question(10**9, 4096), metadata)
    except TeachLlamaError as e:
        assert str(e)
