"""Every key of a file is read, harmless, or refused by name; files that contradict themselves are refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl
from teachllama import loading
from teachllama.batch import Batch, Run
from teachllama.families import FAMILIES
from teachllama.families.common import EXPERT_KEYS, HARMLESS, NEUTRAL
from teachllama.kv.cache import KVCache
from teachllama.metadata import Metadata
from teachllama.spec import LayerSpec, ModelSpec, RopePairs, Scores
from teachllama.tokenizer import tokenizer_from_metadata
from tests.conftest import golden
from tests.families import SEEDS, VARIANTS
from tests.families.generate import metadata_of, tensors_of
from tests.tools import tiny_metadata, tiny_tensors, write_gguf

F32 = {"backend": "numpy", "weights": "f32"}
# One variant per family: its tensors stay the same while its metadata keys change.
OF_FAMILY = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3", "gemma2": "gemma2", "gemma3": "gemma3",
    "granite": "granite", "olmo2": "olmo3", "qwen2moe": "qwen2moe", "qwen3moe": "qwen3moe", "gpt-oss": "gpt-oss",
    "deepseek2": "deepseek3",
}  # fmt: skip

# All keys in llama.cpp's loader (src/llama-arch.cpp of llama-cpp-python 0.3.36) that any family reads, each with a
# value that would change the arithmetic if read.
LLAMA_CPP_KEYS: dict[str, Any] = {
    "vocab_size": 7, "embedding_length_out": 7, "leading_dense_block_count": 1, "expert_feed_forward_length": 7,
    "expert_shared_feed_forward_length": 7, "expert_chunk_feed_forward_length": 7, "use_parallel_residual": True,
    "tensor_data_layout": "other", "expert_count": 3, "expert_used_count": 2, "expert_shared_count": 5,
    "expert_group_count": 2, "expert_group_used_count": 7, "expert_weights_scale": 1.7, "expert_weights_norm": True,
    "expert_gating_func": 2, "expert_group_scale": 1.7, "experts_per_group": 7, "moe_every_n_layers": 2,
    "moe_latent_size": 7, "nextn_predict_layers": 1, "n_deepstack_layers": 7, "deepstack_mapping": [0, 1, 2],
    "hidden_activation": "relu", "pooling_type": 2, "logit_scale": 1.7, "decoder_start_token_id": 7,
    "attn_logit_softcapping": 1.7, "router_logit_softcapping": 1.7, "final_logit_softcapping": 1.7, "swin_norm": True,
    "rescale_every_n_layers": 7, "residual_scale": 1.7, "embedding_scale": 1.7, "swiglu_clamp_exp": [1.0, 1.0, 1.0],
    "interleave_moe_layer_step": 2, "full_attention_interval": 2, "num_loops": 2, "skip_loop_final_norm": True,
    "attention.head_count": 5, "attention.head_count_kv": 5, "attention.max_alibi_bias": 1.7,
    "attention.clamp_kqv": 1.7, "attention.key_length": 10, "attention.value_length": 10,
    "attention.layer_norm_epsilon": 1.7, "attention.layer_norm_rms_epsilon": 1.7, "attention.group_norm_epsilon": 1.7,
    "attention.group_norm_groups": 7, "attention.causal": False, "attention.q_lora_rank": 7,
    "attention.kv_lora_rank": 7, "attention.relative_buckets_count": 7, "attention.sliding_window": 5,
    "attention.sliding_window_pattern": [True, False, False], "attention.rope_pattern": [True, False, True],
    "attention.scale": 1.7, "attention.output_scale": 1.7, "attention.value_scale": 1.7,
    "attention.temperature_length": 7, "attention.temperature_scale": 1.7, "attention.key_length_mla": 70,
    "attention.value_length_mla": 70, "attention.key_length_swa": 10, "attention.value_length_swa": 10,
    "attention.indexer.head_count": 7, "attention.indexer.key_length": 7, "attention.indexer.top_k": 7,
    "attention.shared_kv_layers": 1, "attention.recurrent_layers": [1, 0, 0], "hyper_connection.count": 7,
    "rope.dimension_count": 8, "rope.dimension_count_swa": 8, "rope.dimension_sections": [4, 4, 4, 4],
    "rope.freq_base": 777.0, "rope.freq_base_swa": 777.0, "rope.scale_linear": 7.0, "rope.scaling.type": "yarn",
    "rope.scaling.factor": 7.0, "rope.scaling.alpha": 1.7, "rope.scaling.attn_factor": 1.7,
    "rope.scaling.original_context_length": 77, "rope.scaling.finetuned": False,
    "rope.scaling.yarn_log_multiplier": 0.3, "rope.scaling.yarn_ext_factor": 0.5, "rope.scaling.yarn_attn_factor": 1.9,
    "rope.scaling.yarn_beta_fast": 64.0, "rope.scaling.yarn_beta_slow": 2.0, "ssm.conv_kernel": 7,
    "classifier.output_labels": ["a", "b"], "norm_before_residual": True,
}  # fmt: skip


def writes(path: Path, variant: str, **changes: Any) -> Path:
    """Writes a variant with changed metadata (two underscores for a dot; None removes a key) and the same tensors."""
    arch, metadata = VARIANTS[variant].arch, metadata_of(variant)
    tensors = tensors_of(variant, metadata, SEEDS.get(variant, 0))
    for key, value in changes.items():
        metadata[f"{arch}.{key.replace('__', '.')}"] = value
    return write_gguf(path, {k: v for k, v in metadata.items() if v is not None}, tensors)


def what_it_computes(path: Path) -> tuple[Any, ...]:
    """The spec, and the cache's layout without its notes."""
    with tl.load_model(path, **F32) as model:
        layout = model.config.kv_layout
        return model.spec, layout.layers, layout.native_seq_len


def is_idle(arch: str, key: str, value: Any, metadata: dict[str, Any]) -> bool:
    """True where a key rightly changes nothing in this file; one line per reason."""
    get = lambda name: metadata.get(f"{arch}.{name}")
    has_windows = FAMILIES[arch].slides and get("attention.sliding_window")
    return (
        (key in HARMLESS and not key.startswith("attention."))
        or (key in ("attention.layer_norm_epsilon",))  # RMSNorm has a key of its own
        or (key in NEUTRAL and value in NEUTRAL[key])
        or (key in EXPERT_KEYS and not get("expert_count"))  # the model is dense
        or (key == "leading_dense_block_count" and not get("expert_count"))
        or (key == "expert_group_used_count" and (get("expert_group_count") or 1) == 1)  # with one group, all are used
        or (key.startswith("rope.scaling.yarn_") and key != "rope.scaling.yarn_log_multiplier"
            and get("rope.scaling.type") != "yarn")
        or (key == "rope.scaling.yarn_log_multiplier" and not get("rope.scaling.factor"))  # the factor's logarithm is 0
        or (key == "rope.scaling.type" and not get("rope.scaling.factor"))  # the factor is 1 for any type
        or (key == "rope.scaling.original_context_length" and get("rope.scaling.type") != "yarn" and arch != "phi3")
        or (key == "rope.scale_linear" and get("rope.scaling.factor"))  # the old name, overridden by the new one
        or (key in ("rope.freq_base_swa", "attention.key_length_swa", "attention.value_length_swa") and not has_windows)
        # llama.cpp doesn't read a window in these families, Phi 3 and Qwen among them
        or (key == "attention.sliding_window" and not FAMILIES[arch].slides)
        or (key == "attention.sliding_window_pattern" and not (get("attention.sliding_window") and arch != "phi3"))
        or (key.startswith("rope.") and get("rope.scaling.finetuned") is False and arch == "granite")  # nothing rotates
        or (key == "expert_weights_norm" and arch in ("llama", "qwen3moe"))  # always normalized
        or (key == "feed_forward_length" and get("expert_count") and get("expert_feed_forward_length")
            and not get("leading_dense_block_count"))  # the file has no dense layers
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metadata")


def ignored(path: Path, before: tuple[Any, ...], arch: str, key: str, value: Any, metadata: dict) -> list[str]:
    """An error message, unless a file with this value computes something else or is refused by name."""
    try:
        if what_it_computes(path) != before or is_idle(arch, key, value, metadata):
            return []
        return [f"{arch}.{key} = {value!r} is silently ignored"]
    except tl.TeachLlamaError as e:
        if key in str(e) or f"metadata '{arch}." in str(e) or any(n in str(e) for n in ("tensor '", "(attention.")):
            return []  # named: the key, one that it contradicts, or a tensor
        return [f"{arch}.{key} = {value!r} is refused without a name: {e}"]


@pytest.mark.parametrize("arch", FAMILIES)
def test_no_key_that_llama_cpp_knows_is_silently_ignored(arch: str, folder: Path) -> None:
    variant = OF_FAMILY[arch]
    before, metadata = what_it_computes(writes(folder / "a.gguf", variant)), metadata_of(variant)
    wrong: list[str] = []
    for key, value in LLAMA_CPP_KEYS.items():
        if metadata.get(f"{arch}.{key}") == value:
            continue
        path = writes(folder / "b.gguf", variant, **{key: value})
        wrong += ignored(path, before, arch, key, value, metadata)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_key_of_the_generator_is_silently_ignored(variant: str, folder: Path) -> None:
    arch, metadata = VARIANTS[variant].arch, metadata_of(variant)
    before, wrong = what_it_computes(writes(folder / "a.gguf", variant)), list[str]()
    for name, value in metadata.items():
        if not name.startswith(f"{arch}.") or isinstance(value, list):
            continue
        key = name.removeprefix(f"{arch}.")
        other = {bool: lambda v: not v, int: lambda v: 2 * v or 1, float: lambda v: 1.5 * v, str: lambda v: "linear"}
        changed = other[type(value)](value)
        if key == "rope.dimension_count":
            changed = value // 2
        if key == "rope.scaling.original_context_length":
            changed = 16 * value  # twice the value may give the same pairs
        if changed == value:
            continue
        path = writes(folder / "b.gguf", variant, **{key: changed})
        wrong += ignored(path, before, arch, key, changed, metadata)
    assert not wrong, "\n".join(wrong)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2_path", "gemma3_path"])
def test_every_key_of_a_real_model_is_read_or_harmless(name: str, request: pytest.FixtureRequest) -> None:
    with tl.open_gguf(request.getfixturevalue(name)) as file:
        spec, _, reader = loading.spec_of(file)
        family = FAMILIES[spec.family]
        for key in file.metadata:
            if key.startswith(f"{spec.family}."):
                short = key.removeprefix(f"{spec.family}.")
                assert key in reader.read or short in HARMLESS or short in family.harmless, key


# Further keys that llama.cpp's converters (conversion/*.py) write besides those a family needs, with real values.
CONVERTED: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 268, "rope.scaling.finetuned": False, "tensor_data_layout": "Meta AI original pth"},
    "mixtral": {"expert_gating_func": 1, "expert_weights_scale": 1.0, "expert_weights_norm": True},
    "qwen2": {"pooling_type": 3, "attention.causal": True},
    "qwen2moe": {"expert_gating_func": 1, "expert_weights_norm": False, "feed_forward_length": 96},
    "qwen3moe": {"expert_gating_func": 1, "expert_group_count": 1, "expert_group_used_count": 1},
    "phi3": {"attention.sliding_window": 0, "rope.scaling.type": "longrope"},
    "gemma3": {"rope.freq_base_swa": 10000.0, "hidden_activation": "gelu_pytorch_tanh"},
    "granite": {"rope.scaling.finetuned": True, "expert_count": 0, "expert_used_count": 0},
    "olmo3": {
        "rope.scaling.yarn_attn_factor": 1.1386294361119891, "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0, "attention.sliding_window_pattern": [True, True, True, False, True],
    },
    "gpt-oss": {
        "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0, "rope.scaling.yarn_ext_factor": 1.0,
        "hidden_activation": "silu",
    },
    "deepseek2-yarn": {
        "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0, "expert_gating_func": 1,
        "expert_group_count": 1, "expert_group_used_count": 1, "expert_weights_norm": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", CONVERTED)
def test_keys_that_a_converter_writes_change_nothing_and_are_accepted(variant: str, folder: Path) -> None:
    plain = what_it_computes(writes(folder / "a.gguf", variant))
    assert what_it_computes(writes(folder / "b.gguf", variant, **CONVERTED[variant])) == plain


# Files that llama.cpp loads with the same meaning: (variant, changes).
SAME = {
    "an expert count of 0": ("llama", {"expert_count": 0, "expert_used_count": 0, "expert_group_count": 0}),
    "expert lengths of a dense model": ("llama", {"expert_count": 0, "expert_feed_forward_length": 0}),
    "a list of equal feed-forward lengths": ("llama", {"feed_forward_length": [160, 160, 160]}),
    "a list of equal expert lengths": ("qwen2moe", {"expert_feed_forward_length": [64, 64, 64]}),
    "experts without a dense length": ("qwen2moe", {"feed_forward_length": None}),
    "a vocabulary size that is wrong": ("llama", {"vocab_size": 999}),
    "YaRN of factor 1": ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0}),
    "a factor, and scaling of type none": ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "a factor's older name beside the newer": ("llama-linear", {"rope.scale_linear": 9.0}),
    "the older name, as no newer is there": ("llama-linear", {"rope.scaling.factor": None, "rope.scale_linear": 4.0}),
    "an attention scale that is the usual one": ("llama", {"attention.scale": 0.25}),
    "a window that llama.cpp does not read": ("llama", {"attention.sliding_window": 32}),
}


@pytest.mark.parametrize("what", SAME)
def test_another_way_to_say_the_same_is_accepted(what: str, folder: Path) -> None:
    variant, changes = SAME[what]
    plain = what_it_computes(writes(folder / "a.gguf", variant))
    assert what_it_computes(writes(folder / "b.gguf", variant, **changes)) == plain


BAD = {
    "bidirectional attention": ("qwen2", {"attention.causal": False}, "attention.causal"),
    "a window of 0": ("gemma3", {"attention.sliding_window": 0}, "sliding_window"),
    "gpt-oss without its window": ("gpt-oss", {"attention.sliding_window": None}, "sliding_window"),
    "a negative window": ("gemma2", {"attention.sliding_window": -1}, "sliding_window"),
    "layers that slide in a family that does not": (
        "llama", {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, True, False]}, "pattern",
    ),
    "a window pattern of the wrong length": (
        "gemma3", {"attention.sliding_window_pattern": [True, False]}, "sliding_window_pattern",
    ),
    "a list of heads of the wrong length": ("llama", {"attention.head_count_kv": [2, 2]}, "head_count_kv"),
    "a layer without heads": ("llama", {"attention.head_count": [6, 0, 6]}, "layer 1"),
    "a layer without a feed-forward length": ("llama", {"feed_forward_length": [160, 0, 160]}, "feed_forward_length"),
    "more experts used than there are": ("mixtral", {"expert_used_count": 7}, "expert_used_count"),
    "more experts than tensors": ("mixtral", {"expert_count": 8}, "ffn_gate_inp"),
    "groups without experts": ("llama", {"expert_count": 0, "expert_group_count": 2}, "expert_group_count"),
    "more groups used than there are": ("deepseek3", {"expert_group_used_count": 5}, "expert_group"),
    "sigmoid scores where the family has softmax": ("qwen3moe", {"expert_gating_func": 2}, "expert_gating_func"),
    "weights that are not normalized": ("mixtral", {"expert_weights_norm": False}, "expert_weights_norm"),
    "a scale of experts": ("mixtral", {"expert_weights_scale": 2.5}, "expert_weights_scale"),
    "more leading dense layers than layers": (
        "deepseek3", {"leading_dense_block_count": 4}, "leading_dense_block_count",
    ),
    "an activation nobody knows": ("llama", {"hidden_activation": "relu"}, "hidden_activation"),
    "another family's activation": ("llama", {"hidden_activation": "gelu"}, "hidden_activation"),
    "an unknown scaling": ("llama", {"rope.scaling.type": "magic"}, "rope.scaling.type"),
    "a scaling that is a number": ("llama", {"rope.scaling.type": 3}, "rope.scaling.type"),
    "a factor below 0": ("llama", {"rope.scaling.factor": -4.0}, "rope.scaling.factor"),
    "YaRN with other bounds": ("llama-yarn", {"rope.scaling.yarn_beta_fast": 64.0}, "yarn_beta_fast"),
    "YaRN with another magnitude": ("llama-yarn", {"rope.scaling.yarn_attn_factor": 1.0}, "yarn_attn_factor"),
    "more rotating numbers than a head has": ("qwen3", {"rope.dimension_count": 34}, "rope.dimension_count"),
    "other rotating numbers where layers slide": ("gemma3", {"rope.dimension_count_swa": 16}, "dimension_count_swa"),
    "a scale of scores": ("llama", {"attention.scale": 0.4}, "attention.scale"),
    "granite without a logit scale": ("granite", {"logit_scale": None}, "logit_scale"),
    "latent attention of two KV heads": ("deepseek3", {"attention.head_count_kv": 3}, "head_count_kv"),
    "latent attention without a rank": ("deepseek3", {"attention.kv_lora_rank": None}, "kv_lora_rank"),
    "a rank that does not fit the key": ("deepseek3", {"attention.kv_lora_rank": 48}, "attention.key_length"),
    "a value that is not the rank": ("deepseek3", {"attention.value_length": 48}, "attention.value_length"),
    "a head that only rotates": ("deepseek3", {"attention.key_length_mla": 16}, "key_length_mla"),
    "a head that its tensors contradict": ("deepseek3", {"attention.key_length_mla": 64}, "attn_q_b"),
    "a value that its tensors contradict": ("deepseek3", {"attention.value_length_mla": 64}, "attn_v_b"),
    "a query's rank that its tensors contradict": ("deepseek3", {"attention.q_lora_rank": 32}, "attn_q_a"),
    "no rank of queries where tensors have one": ("deepseek3", {"attention.q_lora_rank": None}, "attn_q"),
    "latent attention that was not split": ("deepseek3", {"attention.key_length_mla": None}, "key_length_mla"),
    "nothing but layers that draft": ("llama", {"nextn_predict_layers": 3}, "nextn_predict_layers"),
    "a head of 100,000 numbers": (
        "llama", {"attention.key_length": 100_000, "rope.dimension_count": 100_000}, "rope.dimension_count",
    ),
}  # fmt: skip


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if memory for weights is reserved."""

    def fail(*args: object) -> None:
        raise AssertionError("memory was reserved for a file that is refused")

    monkeypatch.setattr(loading, "F32Store", fail)
    monkeypatch.setattr(loading, "BlockStore", fail)


@pytest.mark.parametrize("what", BAD)
def test_bad_metadata_is_refused_by_name_before_memory_is_reserved(what: str, folder: Path, no_memory: None) -> None:
    variant, changes, named = BAD[what]
    path = writes(folder / "b.gguf", variant, **changes)
    for how in (F32, {"backend": "numpy"}):
        with pytest.raises((tl.GGUFError, tl.UnsupportedModelError), match=named):
            tl.load_model(path, **how)


TENSORS = {
    "RoPE factors of the wrong length": ("llama", {"rope_freqs.weight": np.ones(7)}, "rope_freqs"),
    "a RoPE factor of 0": ("llama", {"rope_freqs.weight": np.zeros(8)}, "rope_freqs"),
    "short RoPE factors without long ones": ("phi3", {"rope_factors_long.weight": None}, "rope_factors_short"),
    "two kinds of RoPE factors": ("phi3", {"rope_freqs.weight": np.ones(8)}, "rope_freqs"),
    "qwen2 without its biases": ("qwen2", {"blk.1.attn_k.bias": None}, "blk.1.attn_k.bias"),
    "gpt-oss without its sinks": ("gpt-oss", {"blk.2.attn_sinks.weight": None}, "blk.2.attn_sinks"),
    "a shared expert that nobody counts": ("mixtral", {"blk.0.ffn_up_shexp.weight": np.ones((64, 96))}, "ffn_up_shexp"),
    "a bias of the embedding": ("llama", {"token_embd.bias": np.ones(268)}, "token_embd.bias"),
    "a QK norm in a family without": ("llama", {"blk.0.attn_q_norm.weight": np.ones(16)}, "attn_q_norm"),
    "more rows than tokens": ("llama", {"token_embd.weight": np.ones((272, 96))}, "272 rows"),
    "fewer rows than tokens": ("llama", {"token_embd.weight": np.ones((260, 96))}, "260 rows"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_contradict_the_family_are_refused_by_name(what: str, folder: Path, no_memory: None) -> None:
    variant, changes, named = TENSORS[what]
    metadata = metadata_of(variant)
    tensors = tensors_of(variant, metadata) | {k: None if v is None else np.float32(v) for k, v in changes.items()}
    path = write_gguf(folder / "b.gguf", metadata, {k: v for k, v in tensors.items() if v is not None})
    with pytest.raises((tl.GGUFError, tl.UnsupportedModelError), match=named):
        tl.load_model(path, **F32)


def test_layers_that_only_draft_ahead_are_left_out(folder: Path) -> None:
    metadata = metadata_of("qwen3", block_count=2)
    tensors = tensors_of("qwen3", metadata)
    longer = metadata_of("qwen3", block_count=3)
    longer["qwen3.nextn_predict_layers"] = 1
    drafting = tensors_of("qwen3", longer) | tensors
    drafting["blk.2.nextn.eh_proj.weight"] = np.ones((96, 192), np.float32)
    ids = [3, 1, 4, 1, 5, 9]
    with (
        tl.load_model(write_gguf(folder / "a.gguf", metadata, tensors), **F32) as a,
        tl.load_model(write_gguf(folder / "b.gguf", longer, drafting), **F32) as b,
        a.create_session(seq_len=32) as s,
        b.create_session(seq_len=32) as t,
    ):
        assert b.config.n_layers == 2
        assert s.kv_nbytes == t.kv_nbytes
        np.testing.assert_array_equal(s.eval(ids), t.eval(ids))


def test_a_file_without_a_pre_tokenizer_is_read_with_llama_cpps_default_and_a_warning(folder: Path) -> None:
    texts = {}
    for pre in ("default", None):
        metadata = tiny_metadata() | {"tokenizer.ggml.pre": pre}
        metadata = {k: v for k, v in metadata.items() if v is not None}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = tl.load_model(write_gguf(folder / "t.gguf", metadata, tiny_tensors(metadata)), **F32)
        with model:
            texts[pre] = model.encode("the others' 12345 in~~the, the... ")
        assert [w for w in caught if "tokenizer.ggml.pre" in str(w.message)] == ([] if pre else caught)
        assert bool(caught) == (pre is None)
    assert texts["default"] == texts[None]


@pytest.mark.model
def test_the_default_pre_tokenizer_gives_llama_cpps_ids(smollm2_path: str) -> None:
    with tl.open_gguf(smollm2_path, metadata_only=True) as file:
        tokenizer = tokenizer_from_metadata(file.metadata | {"tokenizer.ggml.pre": "default"})
    for text, ids in golden("tokenize_default")["cases"]:
        assert tokenizer.encode(text) == ids, text


@pytest.mark.parametrize("variant", ["phi3", "gemma3", "deepseek3", "gpt-oss"])
def test_a_batch_of_several_sessions_gives_each_the_logits_it_has_alone(variant: str, folder: Path) -> None:
    # Phi 3 has sessions of both kinds: shorter than its original context, and longer.
    with tl.load_model(writes(folder / "a.gguf", variant, rope__scaling__original_context_length=100), **F32) as model:
        parts = [[7, 1, 8, 2], [8], [1, 8, 2, 8, 4, 5, 9]]
        sizes, ahead = (64, 300, 200), (0, 70, 11)
        caches = [KVCache(model.config, size, "f32") for size in sizes]
        expected = []
        for ids, n, size in zip(parts, ahead, sizes, strict=True):
            before = np.arange(n) % 250
            with model.create_session(seq_len=size) as session:
                if n:
                    session.eval(before)
                    model.forward(before, 0, caches[len(expected)])
                expected.append(session.eval(ids))
        ends = np.cumsum([len(ids) for ids in parts])
        runs = tuple(Run(c, int(e) - len(ids), int(e)) for c, e, ids in zip(caches, ends, parts, strict=True))
        positions = np.concatenate([np.arange(n, n + len(ids)) for n, ids in zip(ahead, parts, strict=True)])
        batch = Batch(np.concatenate(parts), positions, runs, ends - 1)
        # NumPy rounds slightly differently for other row counts; a wrong cache or rotation differs by 0.1 or more
        np.testing.assert_allclose(model.run(batch), expected, rtol=0, atol=1e-4)


# ---- families of one's own ----


def registered(family: tl.Family, path: Path, **changes: Any) -> Path:
    """Writes a llama file with this family's architecture name."""
    metadata = {k.replace("llama.", f"{family.name}."): v for k, v in tiny_metadata().items()}
    metadata |= {"general.architecture": family.name} | {f"{family.name}.{k}": v for k, v in changes.items()}
    return write_gguf(path, metadata, tiny_tensors(metadata))


@pytest.fixture
def own() -> Iterator[None]:
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def windowed(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """Gives layer 0 a sliding window."""
    from dataclasses import replace

    first = spec.layers[0]
    narrow: LayerSpec = replace(first, attention=replace(first.attention, window=8))
    return replace(spec, layers=(narrow, *spec.layers[1:]))


def test_a_family_of_ones_own_may_slide_and_its_cache_follows(folder: Path, own: None) -> None:
    family = tl.register_family(tl.Family("mine", "a window in layer 0", slides=True, change=windowed))
    with tl.load_model(registered(family, folder / "m.gguf"), **F32) as model:
        assert [layer.window for layer in model.config.kv_layout.layers] == [8, None]
        with model.create_session(seq_len=40) as session:
            assert session.kv_nbytes == 4 * 2 * (8 + 8) * (8 + 40)
            session.eval(list(range(40)))
    pattern = {"attention.sliding_window": 8, "attention.sliding_window_pattern": [False, True]}
    plain = tl.register_family(tl.Family("mine2", "as the file says", slides=True))
    with tl.load_model(registered(plain, folder / "m.gguf", **pattern), **F32) as model:
        assert [layer.attention.window for layer in model.spec.layers] == [None, 8]


def test_a_window_is_never_ignored_in_a_family_that_llama_cpp_does_not_have(folder: Path, own: None) -> None:
    family = tl.register_family(tl.Family("mine", "no windows"))
    path = registered(family, folder / "m.gguf", **{"attention.sliding_window": 8})
    with pytest.raises(tl.UnsupportedModelError, match="sliding_window"):
        tl.load_model(path, **F32)


def test_a_family_whose_cache_the_kv_formula_counts_otherwise_is_refused(folder: Path, own: None) -> None:
    tl.register_family(tl.Family("llama", "another llama", slides=True, change=windowed), replace=True)
    with pytest.raises(tl.GGUFError, match="layer 0"):
        tl.load_model(writes(folder / "b.gguf", "llama"), **F32)


def test_a_family_with_fields_of_the_wrong_kind_is_refused_with_what_there_is() -> None:
    for field, value, known in (
        ("activation", "relu", "Activation.GELU"),
        ("pairs", "neox", "RopePairs.NEOX"),
        ("scores", RopePairs.NEOX, "Scores.SIGMOID"),
        ("norms", {"attention_norm": "attn_norm"}, "post_ffn_norm"),
    ):
        with pytest.raises(tl.ParameterError, match=known):
            tl.Family("mine", "", **{field: value})
    assert tl.Family("mine", "", scores=Scores.SIGMOID).scores == Scores.SIGMOID


def test_a_family_whose_change_returns_nothing_is_refused(folder: Path, own: None) -> None:
    family = tl.register_family(tl.Family("mine", "forgot to return", change=lambda m, spec: None))  # type: ignore
    with pytest.raises(tl.ParameterError, match="ModelSpec"):
        tl.load_model(registered(family, folder / "m.gguf"), **F32)
