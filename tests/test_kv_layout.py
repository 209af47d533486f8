"""KV-cache sizes from metadata: known models' figures, llama.cpp's figures, properties, and false metadata."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachllama.errors import GGUFError, ParameterError, TeachLlamaError, UnsupportedModelError
from teachllama.kv import (
    KV_DTYPES,
    MAX_SEQ_LEN,
    KVLayout,
    LayerKV,
    format_nbytes,
    kv_cache_bytes,
    kv_layout_from_metadata,
    longest_seq_len,
)


def metadata(
    arch: str, n_layers: int, heads: Any, kv_heads: Any, dim: int, context: int, **more: Any
) -> dict[str, Any]:
    """A model's metadata; `more` has further keys, with `__` for a dot: attention__key_length=64."""
    keys = {
        "block_count": n_layers, "attention.head_count": heads, "attention.head_count_kv": kv_heads,
        "embedding_length": dim, "context_length": context, **{k.replace("__", "."): v for k, v in more.items()},
    }  # fmt: skip
    return {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in keys.items() if v is not None}


SMOLLM2 = metadata("llama", 30, 9, 3, 576, 8192)
GEMMA3 = metadata(
    "gemma3",
    18,
    4,
    1,
    640,
    32768,
    attention__key_length=256,
    attention__value_length=256,
    attention__sliding_window=512,
)
JAMBA = metadata(
    "jamba", 32, 32, np.array([8 if i % 8 == 4 else 0 for i in range(32)], np.int32), 4096, 262144,
    ssm__conv_kernel=4, ssm__inner_size=8192, ssm__state_size=16,
)  # fmt: skip
DEEPSEEK_V3 = metadata(
    "deepseek2", 61, 128, 1, 7168, 163840, attention__key_length=576, attention__value_length=512,
    attention__key_length_mla=192, attention__value_length_mla=128, attention__kv_lora_rank=512,
    rope__dimension_count=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "seq_len", "kv_dtype", "expected"),
    [
        # Llama 3.1 8B: 32 x 131072 x 8 x (128 + 128) x 2; 16 GiB exactly
        (metadata("llama", 32, 32, 8, 4096, 131072), 131072, "f16", 17_179_869_184),
        (metadata("llama", 32, 32, 8, 4096, 131072), 131072, "q8_0", 17_179_869_184 * 34 // 64),
        # SmolLM2 135M: 30 x 8192 x 3 x (64 + 64) x 4
        (SMOLLM2, 8192, "f32", 377_487_360),
        (SMOLLM2, 1024, "f32", 47_185_920),
        # Llama 2 7B has no head_count_kv: every query head has its own keys and values; half a MiB per token
        (metadata("llama", 32, 32, None, 4096, 4096), 1, "f16", 524_288),
        # Mistral 7B: 32 x 32768 x 8 x 256 x 2
        (metadata("llama", 32, 32, 8, 4096, 32768), 32768, "f16", 4_294_967_296),
        # Qwen2.5 7B and 0.5B: 28 x 4 x 256 x 2 and 24 x 2 x 128 x 2 per token
        (metadata("qwen2", 28, 28, 4, 3584, 32768), 32768, "f16", 32768 * 57_344),
        (metadata("qwen2", 24, 14, 2, 896, 32768), 1, "f16", 12_288),
        # Gemma 3 270M at 4096: (3 x 4096 + 15 x 512) x 1 x 512 x 2
        (GEMMA3, 4096, "f16", 20_447_232),
        (GEMMA3, 512, "f16", 18 * 512 * 512 * 2),
        # gpt-oss-20b: every second of 24 layers has a window of 128
        (
            metadata("gpt-oss", 24, 64, 8, 2880, 131072, attention__key_length=64, attention__value_length=64,
                     attention__sliding_window=128),
            131072, "f16", 12 * (131072 + 128) * 8 * 128 * 2,
        ),
        # DeepSeek V3: one compressed key of 512 + 64 numbers, 70272 bytes per token where full heads would need 5 MB
        (DEEPSEEK_V3, 1, "f16", 70_272),
        # DeepSeek V2 Lite, converted before llama.cpp cached the compressed key
        (
            metadata("deepseek2", 27, 16, 16, 2048, 163840, attention__key_length=192, attention__value_length=128,
                     attention__kv_lora_rank=512, rope__dimension_count=64),
            1, "f16", 27 * 16 * 320 * 2,
        ),
        # Jamba: 4 of 32 layers attend
        (JAMBA, 1, "f16", 4 * 8 * 256 * 2),
        # Qwen3-Next 80B: every 4th of 48 layers attends
        (metadata("qwen3next", 48, 16, 2, 2048, 262144, attention__key_length=256, attention__value_length=256),
         1, "f16", 12 * 2 * 512 * 2),
        # Phi-2: heads of 80
        (metadata("phi2", 32, 32, 32, 2560, 2048), 2048, "f16", 32 * 2048 * 32 * 160 * 2),
        # A file with head counts by layer (OpenELM 270M's first four)
        (metadata("openelm", 4, [12, 12, 12, 12], [3, 3, 3, 4], 1280, 2048, attention__key_length=64,
                  attention__value_length=64), 2048, "f32", 2048 * 13 * 128 * 4),
    ],
)  # fmt: skip
def test_known_models_take_these_bytes(model: dict[str, Any], seq_len: int, kv_dtype: str, expected: int) -> None:
    assert kv_cache_bytes(kv_layout_from_metadata(model), seq_len, kv_dtype) == expected


# MiB of f16 that llama.cpp (llama-cpp-python 0.3.36) reserved for such metadata with random weights, at n_ctx 4096 and
# n_ubatch 256: for all full layers, and for all sliding-window layers, which get 768 cells where the window is 512
# (window and n_ubatch, padded to 256) and 4096 where it is 8192.
BY_LAYER = [2 if i % 4 == 3 or i == 0 else 0 for i in range(12)]
NEMOTRON = [2 if i % 3 == 0 else 0 for i in range(12)]
MLA = {
    "attention__key_length": 576, "attention__value_length": 512, "attention__key_length_mla": 192,
    "attention__value_length_mla": 128, "attention__kv_lora_rank": 512,
}  # fmt: skip
W = {"attention__sliding_window": 512}


@pytest.mark.parametrize(
    ("model", "full", "sliding"),
    [
        (metadata("afmoe", 12, 4, 2, 256, 4096, **W), 6.0, 3.375),
        (metadata("cohere2", 12, 4, 2, 256, 4096, **W), 6.0, 3.375),
        (metadata("cohere2moe", 12, 4, 2, 256, 4096, **W), 6.0, 3.375),
        (metadata("exaone4", 64, 4, 2, 256, 4096, **W), 32.0, 18.0),
        (metadata("gemma2", 12, 4, 2, 256, 4096, **W), 12.0, 2.25),
        (metadata("gemma3", 12, 4, 2, 256, 4096, **W), 4.0, 3.75),
        (metadata("gemma3", 12, 4, 2, 256, 4096, attention__sliding_window_pattern=3, **W), 8.0, 3.0),
        (
            metadata("gemma3", 12, 4, 2, 256, 4096, attention__sliding_window_pattern=[True, False, False] * 4, **W),
            16.0, 1.5,
        ),
        (metadata("gemma3n", 30, 1, 1, 64, 4096, **W), 4.0, 3.0),
        (
            metadata("gemma4", 12, 4, 2, 256, 4096, attention__key_length=128, attention__value_length=128,
                     attention__key_length_swa=64, attention__value_length_swa=64, attention__shared_kv_layers=4,
                     attention__sliding_window_pattern=[int(i % 3 != 1) for i in range(12)], **W),
            12.0, 1.875,
        ),
        (metadata("gpt-oss", 12, 4, 2, 256, 4096, **W), 12.0, 2.25),
        (metadata("laguna", 12, 4, 2, 320, 4096, **W), 7.5, 4.21875),
        (metadata("lfm2", 12, 4, BY_LAYER, 256, 4096, **W), 0.0, 1.5),
        (metadata("llama4", 12, 4, 2, 256, 4096), 6.0, 18.0),
        (metadata("mimo2", 12, 4, 2, 256, 4096, attention__sliding_window_pattern=np.arange(12) % 3 != 1, **W),
         8.0, 3.0),
        (metadata("olmo2", 12, 4, 2, 256, 4096, **W), 6.0, 3.375),
        (metadata("phi3", 12, 4, 2, 256, 4096, **W), 24.0, 0.0),
        (metadata("plamo3", 12, 4, 2, 256, 4096, **W), 2.0, 4.125),
        (metadata("deepseek2", 12, 1, 1, 128, 4096, **MLA), 54.0, 0.0),
        (metadata("deepseek32", 12, 1, 1, 128, 4096, attention__indexer__key_length=128, **MLA), 54.0 + 12.0, 0.0),
        (metadata("falcon-h1", 12, 4, 2, 256, 4096), 24.0, 0.0),
        (metadata("graniteswitch", 12, 4, 2, 256, 4096), 25.0, 0.0),
        (metadata("jamba", 12, 4, BY_LAYER, 256, 4096), 8.0, 0.0),
        (metadata("kimi-linear", 12, 1, [bool(h) for h in BY_LAYER], 128, 4096, **MLA), 18.0, 0.0),
        (metadata("minicpm3", 12, 4, 4, 256, 4096, attention__kv_lora_rank=512), 48.0, 0.0),
        (metadata("minimax-01", 12, 4, 2, 256, 4096), 2.0, 0.0),
        (metadata("nanbeige", 12, 4, 2, 256, 4096, num_loops=3), 72.0, 0.0),
        (metadata("nemotron_h", 12, 4, NEMOTRON, 256, 4096), 8.0, 0.0),
        (metadata("qwen3next", 12, 4, 2, 256, 4096, full_attention_interval=3), 8.0, 0.0),
        (metadata("t5", 12, 4, 4, 256, 4096), 48.0, 0.0),
    ],
    ids=lambda value: value["general.architecture"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_the_layout_reserves_what_llama_cpp_reserves(model: dict[str, Any], full: float, sliding: float) -> None:
    layout = kv_layout_from_metadata(model)
    cells = {None: None, 512: 768, 8192: 4096}
    as_llama_cpp = [dataclasses.replace(layer, window=cells[layer.window]) for layer in layout.layers]
    for wanted, windowed in ((full, False), (sliding, True)):
        layers = tuple(layer for layer in as_llama_cpp if (layer.window is not None) == windowed)
        assert KVLayout("test", layers, 4096).bytes(4096, "f16") == wanted * 2**20


@pytest.mark.parametrize(
    ("model", "expected_mib"),  # llama.cpp's "RS buffer size", to the two printed digits
    [
        (metadata("jamba", 12, 4, BY_LAYER, 256, 4096, ssm__inner_size=512, ssm__conv_kernel=4, ssm__state_size=128),
         2.05),
        (metadata("mamba2", 12, 0, None, 256, 4096, ssm__inner_size=512, ssm__conv_kernel=4, ssm__state_size=128,
                  ssm__group_count=2), 3.14),
        (metadata("rwkv7", 12, 0, None, 256, 4096, wkv__head_size=64), 0.77),
        (metadata("lfm2", 12, 4, BY_LAYER, 256, 4096, shortconv__l_cache=3), 0.02),
        (metadata("minimax-01", 12, 4, 2, 256, 4096), 0.69),
        (metadata("kimi-linear", 12, 1, [bool(h) for h in BY_LAYER], 128, 4096, ssm__conv_kernel=4, kda__head_dim=128,
                  **MLA), 0.54),
        (metadata("nemotron_h", 12, 4, NEMOTRON, 256, 4096, feed_forward_length=[384 * (i % 3 == 2) for i in range(12)],
                  ssm__inner_size=512, ssm__conv_kernel=4, ssm__state_size=128, ssm__group_count=2), 1.05),
    ],
    ids=lambda value: value["general.architecture"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_the_recurrent_state_is_as_large_as_llama_cpps_and_is_named_in_a_note(model: Any, expected_mib: float) -> None:
    layout = kv_layout_from_metadata(model)
    assert layout.state_nbytes / 2**20 == pytest.approx(expected_mib, abs=0.006)
    assert any("recurrent state" in note for note in layout.notes)


def test_every_sixth_layer_of_gemma_3_attends_to_everything() -> None:
    layers = kv_layout_from_metadata(GEMMA3).layers
    assert [i for i, layer in enumerate(layers) if layer.window is None] == [5, 11, 17]
    assert layers[0] == LayerKV(n_kv_heads=1, key_length=256, value_length=256, window=512)


def test_llama_cpps_buffers_for_gemma_3_270m_follow_from_the_layout() -> None:
    # n_ctx 4096, n_ubatch 32, f16: llama.cpp prints 12.00 MiB for 3 layers of 4096 cells, 11.25 MiB for 15 of 768
    layers = kv_layout_from_metadata(GEMMA3).layers
    full = sum(4096 * sum(layer.rows) * 2 for layer in layers if layer.window is None)
    sliding = sum(768 * sum(layer.rows) * 2 for layer in layers if layer.window is not None)
    assert (full / 2**20, sliding / 2**20) == (12.00, 11.25)


@pytest.mark.parametrize("arch", ["smallthinker", "laguna", "cohere2moe"])
def test_these_families_begin_with_a_layer_that_attends_to_everything(arch: str) -> None:
    layers = kv_layout_from_metadata(metadata(arch, 10, 4, 2, 256, 4096, **W)).layers
    assert [i for i, layer in enumerate(layers) if layer.window is None] == [0, 4, 8]


def test_swa_full_counts_every_position_in_every_layer() -> None:
    layout = kv_layout_from_metadata(GEMMA3)
    assert layout.bytes(32768, "f32", swa_full=True) == 18 * 32768 * 512 * 4
    assert kv_cache_bytes(layout, 32768, swa_full=True) == layout.bytes(32768, swa_full=True)
    assert layout.elements(32768) * 4 == layout.bytes(32768)


def test_a_config_answers_for_its_own_seq_len() -> None:
    @dataclasses.dataclass
    class Config:
        kv_layout: KVLayout
        seq_len: int

    layout = kv_layout_from_metadata(SMOLLM2)
    assert kv_cache_bytes(Config(layout, 1024)) == 47_185_920
    assert kv_cache_bytes(Config(layout, 1024), 8192) == kv_cache_bytes(layout) == 377_487_360


def test_every_kv_dtype_has_the_block_size_of_the_gguf_package() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    assert {name: GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]] for name in KV_DTYPES} == KV_DTYPES


def test_a_layout_whose_rows_do_not_divide_into_blocks_refuses_that_dtype() -> None:
    layout = kv_layout_from_metadata(metadata("phi2", 32, 32, 32, 2576, 2048, attention__key_length=80))
    assert layout.bytes(1, "f16")
    with pytest.raises(ParameterError, match="blocks of 32"):
        layout.bytes(1, "q8_0")


@pytest.mark.parametrize("seq_len", [0, -1, 1.5, "8", None, True, float("nan"), MAX_SEQ_LEN + 1])
def test_a_seq_len_that_is_not_a_positive_whole_number_is_refused(seq_len: Any) -> None:
    layout = kv_layout_from_metadata(SMOLLM2)
    with pytest.raises(ParameterError, match="seq_len"):
        layout.bytes(seq_len)
    with pytest.raises(ParameterError, match="seq_len"):
        layout.elements(seq_len)


def test_numpy_integers_are_whole_numbers() -> None:
    assert kv_cache_bytes(kv_layout_from_metadata(SMOLLM2), np.int32(1024)) == 47_185_920  # type: ignore[arg-type]


@pytest.mark.parametrize("kv_dtype", ["f64", "", None, 16, ["f32"], "Q8_0"])
def test_an_unknown_kv_dtype_is_refused_and_the_known_ones_listed(kv_dtype: Any) -> None:
    with pytest.raises(ParameterError, match="f32, f16, bf16, q8_0"):
        kv_cache_bytes(kv_layout_from_metadata(SMOLLM2), 1, kv_dtype)


# Notes on questions that the metadata leaves open


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (metadata("brand-new", 4, 4, 2, 256, 4096), "not an architecture known here"),
        (metadata("llama", 4, 4, 2, 256, 4096, **W), "not which layers slide"),
        (metadata("phi3", 4, 4, 2, 256, 4096, **W), "do not apply to phi3"),
        (DEEPSEEK_V3, "compressed key of 576"),
        (metadata("deepseek2", 4, 16, 16, 2048, 4096, attention__key_length=192, attention__value_length=128,
                  attention__kv_lora_rank=512, rope__dimension_count=64),
         "576 numbers a token and layer in place of 5120"),
        (metadata("glm4moe", 4, 4, 2, 256, 4096, nextn_predict_layers=1), "1 of 4 layers only draft"),
        (metadata("gemma3n", 30, 8, 2, 2048, 32768, attention__shared_kv_layers=10, **W), "last 10 of 30 layers"),
        (metadata("t5", 4, 4, None, 256, 512, decoder_block_count=2), "cross-attention"),
        (metadata("bert", 12, 12, None, 768, 512), "an encoder"),
        (metadata("dream", 12, 12, None, 768, 512), "diffusion"),
        (metadata("deepseek32", 4, 1, 1, 128, 4096, attention__indexer__key_length=128, **MLA), "index key of 128"),
        (metadata("gemma4-assistant", 4, 4, 2, 256, 4096), "keeps none"),
        (metadata("mamba", 4, 0, None, 256, 4096), "of a size the metadata does not give"),
    ],
)  # fmt: skip
def test_a_note_says(model: dict[str, Any], words: str) -> None:
    assert words in " / ".join(kv_layout_from_metadata(model).notes)


def test_a_plain_model_has_no_notes() -> None:
    assert kv_layout_from_metadata(SMOLLM2).notes == kv_layout_from_metadata(GEMMA3).notes == ()


def test_doubts_are_the_notes_after_which_the_figures_may_be_wrong() -> None:
    assert kv_layout_from_metadata(DEEPSEEK_V3).doubts == kv_layout_from_metadata(JAMBA).doubts == ()
    for model in (metadata("new", 4, 4, 2, 256, 4096), metadata("llama", 4, 4, 2, 256, 4096, **W)):
        layout = kv_layout_from_metadata(model)
        assert len(layout.doubts) == 1
        assert set(layout.doubts) <= set(layout.notes)


DELTA = {"ssm__conv_kernel": 4, "ssm__inner_size": 512, "ssm__state_size": 128, "ssm__group_count": 2}


def test_an_unknown_architecture_is_read_by_what_its_file_says_of_itself() -> None:
    def layout(**more: Any) -> KVLayout:
        return kv_layout_from_metadata(metadata("brand-new", 8, 4, more.pop("kv", 2), 256, 4096, **more))

    attends = [0, 0, 0, 2, 0, 0, 0, 2]  # KV heads by layer
    for hybrid in (
        layout(full_attention_interval=4, **DELTA),
        layout(attention__recurrent_layers=[not h for h in attends], **DELTA),
        layout(kv=attends, **DELTA),
    ):
        assert [layer.n_kv_heads for layer in hybrid.layers] == attends
        assert hybrid.bytes(100, "f16") == 2 * 100 * 2 * (64 + 64) * 2
        assert hybrid.state_nbytes == 6 * 4 * (3 * (512 + 2 * 2 * 128) + 128 * 512)
    assert layout(full_attention_interval=4).state_nbytes == 0  # the file does not give its size
    assert layout(full_attention_interval=4).elements(1) == 2 * 2 * 128
    encoder = layout(attention__causal=False)
    assert encoder.bytes(4096) == 0
    assert "not causal" in encoder.doubts[1]
    unsaid = layout(**DELTA)
    assert unsaid.layers == layout().layers
    assert "describes a recurrent state (brand-new.ssm.inner_size), but not which layers" in unsaid.doubts[1]
    with pytest.raises(UnsupportedModelError, match="brand-new compresses older positions"):
        layout(attention__compress_ratios=[4] * 8)


def test_layers_that_share_a_cache_are_no_recurrent_layers_of_an_unknown_architecture() -> None:
    model = metadata("brand-new", 8, 4, 2, 256, 4096, full_attention_interval=2, attention__shared_kv_layers=4, **DELTA)
    layout = kv_layout_from_metadata(model)
    assert [layer.n_kv_heads for layer in layout.layers] == [0, 2, 0, 2, 0, 0, 0, 0]
    assert any("2 of 4 layers keep a recurrent state" in note for note in layout.notes)


def test_a_known_architecture_does_not_read_keys_that_llama_cpp_does_not_read_for_it() -> None:
    model = metadata("llama", 8, 4, 2, 256, 4096, full_attention_interval=4)
    assert all(layer.n_kv_heads == 2 for layer in kv_layout_from_metadata(model).layers)


def test_a_window_whose_layers_are_unknown_is_counted_in_full() -> None:
    windowed = kv_layout_from_metadata(metadata("llama", 4, 4, 2, 256, 4096, **W))
    assert windowed.layers == kv_layout_from_metadata(metadata("llama", 4, 4, 2, 256, 4096)).layers


def test_a_window_listed_layer_by_layer_applies_to_any_architecture() -> None:
    flags = [True, True, False, True]
    layers = kv_layout_from_metadata(
        metadata("new", 4, 4, 2, 256, 4096, attention__sliding_window_pattern=flags, **W)
    ).layers
    assert [layer.window for layer in layers] == [512, 512, None, 512]


@pytest.mark.parametrize("arch", ["mamba", "rwkv7", "bert", "t5encoder", "llada"])
def test_models_without_attention_over_the_past_take_no_kv_bytes(arch: str) -> None:
    layout = kv_layout_from_metadata(metadata(arch, 12, 0 if arch in ("mamba", "rwkv7") else 12, None, 768, 4096))
    assert layout.bytes(4096) == layout.elements(4096) == 0
    assert longest_seq_len(layout, 1000) is None
    assert layout.notes


def test_layers_of_multi_token_prediction_are_not_counted_and_keep_their_place() -> None:
    layout = kv_layout_from_metadata(metadata("glm4moe", 47, 96, 8, 4096, 131072, nextn_predict_layers=1,
                                              attention__key_length=128, attention__value_length=128))  # fmt: skip
    assert len(layout.layers) == 47
    assert layout.bytes(1, "f16") == 46 * 8 * 256 * 2


def test_an_array_may_leave_out_the_multi_token_prediction_layers() -> None:
    flags = [1, 0, 1]
    layers = kv_layout_from_metadata(metadata("step35", 4, 4, 2, 256, 4096, nextn_predict_layers=1,
                                              attention__sliding_window_pattern=flags, **W)).layers  # fmt: skip
    assert [layer.window for layer in layers] == [512, None, 512, None]


# False metadata


@pytest.mark.parametrize("key", ["block_count", "context_length", "attention.head_count_kv", "attention.key_length"])
@pytest.mark.parametrize("value", [2**63, -1, 1.5, float("nan"), "12", True, [], [1, 2], np.zeros(3), [[1]], b"12"])
def test_a_value_of_the_wrong_kind_is_an_error_that_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(GGUFError, match=key):
        kv_layout_from_metadata(SMOLLM2 | {f"llama.{key}": value})


@pytest.mark.parametrize("key", ["block_count", "context_length"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(GGUFError, match=key):
        kv_layout_from_metadata({k: v for k, v in SMOLLM2.items() if not k.endswith(key)})


def test_a_model_without_heads_is_an_error() -> None:
    with pytest.raises(GGUFError, match="head_count"):
        kv_layout_from_metadata(metadata("llama", 4, None, None, 256, 4096))
    with pytest.raises(GGUFError, match="head_count_kv"):
        kv_layout_from_metadata(metadata("llama", 4, 4, 0, 256, 4096))
    with pytest.raises(GGUFError, match="at most the 4 query heads"):
        kv_layout_from_metadata(metadata("llama", 4, 4, 8, 256, 4096))
    with pytest.raises(GGUFError, match="key_length"):
        kv_layout_from_metadata(metadata("llama", 4, 4, 2, None, 4096))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        "attention.head_count",
        "attention.head_count_kv",
        "attention.sliding_window_pattern",
        "attention.recurrent_layers",
    ],
)
@pytest.mark.parametrize(
    "value", [np.zeros(29, np.int32), np.zeros(10**6, np.uint8), ["x"] * 30, np.full(30, -1), [0.5] * 30]
)
def test_an_array_of_the_wrong_length_or_kind_is_an_error_that_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(GGUFError, match=key):
        kv_layout_from_metadata(SMOLLM2 | {f"llama.{key}": value, "llama.attention.sliding_window": 16})


def test_more_drafting_layers_than_layers_are_refused() -> None:
    with pytest.raises(GGUFError, match="nextn_predict_layers"):
        kv_layout_from_metadata(SMOLLM2 | {"llama.nextn_predict_layers": 31})


@pytest.mark.parametrize("arch", [None, 7, "", b"llama", np.array([1, 2]), ["llama"]])
def test_a_file_without_an_architecture_is_an_error(arch: Any) -> None:
    with pytest.raises(GGUFError, match=r"general\.architecture"):
        kv_layout_from_metadata({"general.architecture": arch, "general.type": np.zeros(2), "split.no": np.zeros(2)})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"general.architecture": "clip"}, "projector"),
        (SMOLLM2 | {"general.type": "adapter"}, "LoRA"),
        ({"general.type": "imatrix"}, "importance"),
        ({"split.no": 1, "split.count": 3}, "later part"),
        (metadata("deepseek4", 43, 64, 1, 4096, 2**20), "deepseek4"),
    ],
)
def test_files_that_no_rule_here_covers_are_refused_in_words(model: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        kv_layout_from_metadata(model)


def test_lies_are_found_before_anything_is_allocated() -> None:
    tracemalloc.start()
    try:
        for value in (2**63, 2**31, 10_001):
            with pytest.raises(GGUFError):
                kv_layout_from_metadata(SMOLLM2 | {"llama.block_count": value})
        kv_layout_from_metadata(SMOLLM2 | {"llama.block_count": 10_000})
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


ANYTHING = st.one_of(
    st.integers(-(2**64), 2**64), st.integers(0, 64), st.floats(), st.text(max_size=5), st.booleans(), st.none(),
    st.lists(st.one_of(st.integers(-2, 8), st.booleans(), st.text(max_size=2)), max_size=12),
    st.lists(st.integers(-1, 2**31 - 1), min_size=8, max_size=8).map(lambda x: np.array(x, np.int64)),
)  # fmt: skip


@given(
    st.data(), st.sampled_from(["llama", "gemma3", "qwen3next", "deepseek2", "lfm2", "jamba", "nemotron_h", "t5", "x"])
)
def test_any_metadata_gives_a_layout_or_one_of_our_errors(data: st.DataObject, arch: str) -> None:
    keys = [
        "block_count", "context_length", "embedding_length", "attention.head_count", "attention.head_count_kv",
        "attention.key_length", "attention.value_length", "attention.sliding_window", "decoder_block_count",
        "attention.recurrent_layers", "full_attention_interval", "attention.shared_kv_layers", "nextn_predict_layers",
        "attention.key_length_mla", "attention.value_length_mla", "attention.kv_lora_rank", "feed_forward_length",
        "attention.indexer.types", "attention.indexer.key_length", "attention.key_length_swa", "ssm.inner_size",
        "attention.sliding_window_pattern", "shortconv.l_cache", "ssm.conv_kernel",
    ]  # fmt: skip
    lies = data.draw(st.dictionaries(st.sampled_from(keys), ANYTHING, max_size=4))
    model = metadata(arch, 8, 4, 2, 256, 4096) | {f"{arch}.{k}": v for k, v in lies.items()}
    try:
        layout = kv_layout_from_metadata(model)
    except TeachLlamaError as e:
        assert str(e)
    else:
        assert 0 <= layout.bytes(1) <= layout.bytes(100, swa_full=True)


# Properties


def layouts(windows: bool = True) -> st.SearchStrategy[KVLayout]:
    layer = st.builds(
        LayerKV, st.integers(0, 16), st.integers(1, 8).map(lambda n: 32 * n), st.integers(0, 8).map(lambda n: 32 * n),
        st.one_of(st.none(), st.integers(1, 5000)) if windows else st.none(), st.sampled_from([0, 0, 128]),
    )  # fmt: skip
    return st.lists(layer, min_size=1, max_size=40).map(lambda layers: KVLayout("test", tuple(layers), 4096))


LENGTHS, DTYPES = st.integers(1, 10**6), st.sampled_from(sorted(KV_DTYPES))


@given(layouts(windows=False), LENGTHS, DTYPES)
def test_without_windows_the_bytes_are_linear_in_seq_len(layout: KVLayout, seq_len: int, kv_dtype: str) -> None:
    assert layout.bytes(seq_len, kv_dtype) == seq_len * layout.bytes(1, kv_dtype)


@given(layouts(), LENGTHS, DTYPES)
def test_windows_never_cost_more_than_holding_everything(layout: KVLayout, seq_len: int, kv_dtype: str) -> None:
    assert layout.bytes(seq_len, kv_dtype) <= layout.bytes(seq_len, kv_dtype, swa_full=True)


@given(layouts(), LENGTHS, LENGTHS, DTYPES)
def test_a_longer_context_never_takes_fewer_bytes(layout: KVLayout, a: int, b: int, kv_dtype: str) -> None:
    assert layout.bytes(min(a, b), kv_dtype) <= layout.bytes(max(a, b), kv_dtype)


@given(layouts(), LENGTHS, DTYPES, st.integers(1, 100))
def test_sessions_share_nothing(layout: KVLayout, seq_len: int, kv_dtype: str, n: int) -> None:
    assert layout.bytes(seq_len, kv_dtype, n) == n * layout.bytes(seq_len, kv_dtype)


@given(layouts(), LENGTHS)
def test_the_total_is_the_sum_over_layers_of_the_rule(layout: KVLayout, seq_len: int) -> None:
    total = 0
    for layer in layout.layers:
        positions = seq_len if layer.window is None else min(seq_len, layer.window)
        total += positions * (layer.n_kv_heads * (layer.key_length + layer.value_length) + layer.index_length)
    assert layout.elements(seq_len) == total
    assert layout.bytes(seq_len, "f16") == 2 * total
    assert layout.bytes(seq_len, "q8_0") == total // 32 * 34


@given(layouts(), st.integers(0, 2**45), DTYPES, st.integers(1, 9))
def test_the_longest_context_fits_and_one_token_more_does_not(
    layout: KVLayout, nbytes: int, kv_dtype: str, n_sessions: int
) -> None:
    longest = longest_seq_len(layout, nbytes, kv_dtype, n_sessions)
    if longest is None:
        assert layout.bytes(MAX_SEQ_LEN, kv_dtype, n_sessions) <= nbytes
    else:
        assert longest == 0 or layout.bytes(longest, kv_dtype, n_sessions) <= nbytes
        assert layout.bytes(longest + 1, kv_dtype, n_sessions) > nbytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_999, "1 MB"), (377_487_360, "377.5 MB"),
     (17_179_869_184, "17.2 GB"), (1_756_000_000, "1.76 GB"), (10**22, "1.000e+04 EB")],
)  # fmt: skip
def test_bytes_are_written_in_decimal_units(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text


def test_the_arithmetic_needs_no_numpy() -> None:
    code = (
        "import sys, types; package = types.ModuleType('teachllama'); package.__path__ = [sys.argv[1]];"
        "sys.modules['teachllama'] = package; import teachllama.kv; assert 'numpy' not in sys.modules"
    )
    import teachllama

    subprocess.run([sys.executable, "-c", code, next(iter(teachllama.__path__))], check=True)


@pytest.mark.model
def test_the_real_files_have_the_layouts_of_their_models(smollm2_path: str, gemma3_path: str) -> None:
    from teachllama.gguf_file import open_gguf

    for path, expected in ((smollm2_path, SMOLLM2), (gemma3_path, GEMMA3)):
        with open_gguf(path, metadata_only=True) as file:
            assert kv_layout_from_metadata(file.metadata) == kv_layout_from_metadata(expected)
