"""The forward pass: equal to llama.cpp on real models, and to a plain reimplementation on tiny ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import teachllama as tl
from teachllama import ops
from tests.conftest import golden
from tests.tools import tiny_metadata, tiny_model, tiny_tensors, write_gguf

GEMMA_PROMPTS = range(3) if os.environ.get("TEACHLLAMA_ALL_MODELS") else range(1)  # slow: one prompt by default


@pytest.fixture(scope="module")
def smollm2(smollm2_path: str) -> Iterator[tl.Model]:
    with tl.load_model(smollm2_path, weights="f32", backend="numpy") as model:
        yield model


@pytest.fixture(scope="module")
def gemma3(gemma3_path: str) -> Iterator[tl.Model]:
    with tl.load_model(gemma3_path, weights="f32", backend="numpy") as model:
        yield model


def check_against(model: tl.Model, case: dict, tolerance: float) -> None:
    with model.create_session(seq_len=256) as session:
        logits = session.eval(case["prompt_ids"])
        np.testing.assert_allclose(logits[case["top_ids"]], case["top_logits"], rtol=0, atol=tolerance)
        assert abs(float(logits.mean()) - case["logit_mean"]) < tolerance
        assert abs(float(logits.std()) - case["logit_std"]) < tolerance
        for i, (expected, gap) in enumerate(zip(case["greedy_ids"], case["gap"], strict=True)):
            if gap < 0.02:  # either token is right, and the texts may diverge here
                break
            assert session.sample() == expected, f"step {i}"
            session.eval([expected])


@pytest.mark.model
@pytest.mark.parametrize("i", range(4))
def test_smollm2_logits_and_greedy_tokens_equal_llama_cpp(smollm2: tl.Model, i: int) -> None:
    check_against(smollm2, golden("smollm2-135m")["generate"][i], tolerance=1e-4)


@pytest.mark.model
@pytest.mark.parametrize("i", GEMMA_PROMPTS)
def test_gemma3_logits_and_greedy_tokens_equal_llama_cpp_with_exact_gelu(gemma3: tl.Model, i: int) -> None:
    check_against(gemma3, golden("gemma3-270m-exact-gelu")["generate"][i], tolerance=1e-4)


@pytest.mark.model
@pytest.mark.parametrize("i", GEMMA_PROMPTS)
def test_gemma3_equals_stock_llama_cpp_up_to_its_half_precision_gelu_table(gemma3: tl.Model, i: int) -> None:
    # llama.cpp looks GELU up in a table of 65,536 float16 values. Its steps amplify float32 noise of 1e-7 to
    # differences of several 1e-3 in the logits; see docs/measured.md.
    check_against(gemma3, golden("gemma3-270m")["generate"][i], tolerance=1e-2)


@pytest.mark.model
def test_text_in_is_ids_out_as_llama_cpp_makes_them(smollm2: tl.Model, gemma3: tl.Model) -> None:
    for model, name in ((smollm2, "smollm2-135m"), (gemma3, "gemma3-270m")):
        for case in golden(name)["generate"]:
            assert model.encode(case["prompt"], add_special=True, parse_special=True) == case["prompt_ids"]
            # llama.cpp's text omits special tokens
            assert model.tokenizer.decode(case["greedy_ids"], skip_special=True) == case["greedy_text"]


@pytest.mark.model
def test_prefill_in_one_call_in_chunks_or_token_by_token_gives_the_same_logits(
    smollm2: tl.Model, gemma3: tl.Model
) -> None:
    for model, n in ((smollm2, 80), (gemma3, 600)):  # 600 exceeds Gemma's window of 512
        ids = (model.encode("The history of the sea is the history of those who sail it. ") * 60)[:n]
        results = []
        for size in (n, 7, 1) if n < 100 else (n, 97, 531):
            with model.create_session(seq_len=n) as session:
                for at in range(0, n, size):
                    logits = session.eval(ids[at : at + size])
                results.append(logits)
        for other in results[1:]:
            np.testing.assert_allclose(other, results[0], rtol=0, atol=1e-4)


def plain_forward(metadata: dict, tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Evaluates all tokens at once in float64, with loops instead of array tricks; returns (n, vocab_size)."""
    arch = metadata["general.architecture"]
    gemma = arch == "gemma3"
    get = lambda key, default=None: metadata.get(f"{arch}.{key}", default)
    t = {name: data.astype(np.float64) for name, data in tensors.items()}
    dim, heads, kv_heads = get("embedding_length"), get("attention.head_count"), get("attention.head_count_kv")
    d = get("attention.key_length", dim // heads)
    dv, eps, n = get("attention.value_length", d), get("attention.layer_norm_rms_epsilon"), len(ids)
    norm = lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    act = gelu if gemma else (lambda x: x / (1 + np.exp(-x)))
    rope_dim = get("rope.dimension_count", d)
    divisors = t.get("rope_freqs.weight", np.ones(rope_dim // 2))

    def rotate(head: np.ndarray, position: int, base: float) -> np.ndarray:
        out = head.copy()
        for i in range(rope_dim // 2):
            angle = position * base ** (-2 * i / rope_dim) / divisors[i]
            a, b = (i, i + rope_dim // 2) if gemma else (2 * i, 2 * i + 1)
            out[a] = head[a] * np.cos(angle) - head[b] * np.sin(angle)
            out[b] = head[a] * np.sin(angle) + head[b] * np.cos(angle)
        return out

    x = t["token_embd.weight"][ids] * (np.sqrt(dim) if gemma else 1)
    for layer in range(get("block_count")):
        w = lambda name: t[f"blk.{layer}.{name}.weight"]  # noqa: B023
        local = gemma and layer % 6 != 5
        base = 10000.0 if local else get("rope.freq_base")
        h = norm(x, w("attn_norm"))
        q, k, v = ((h @ w(f"attn_{p}").T).reshape(n, -1, size) for p, size in (("q", d), ("k", d), ("v", dv)))
        if gemma:
            q, k = norm(q, w("attn_q_norm")), norm(k, w("attn_k_norm"))
        out = np.zeros((n, heads, dv))
        for i in range(n):
            for head in range(heads):
                group = head // (heads // kv_heads)
                first = max(0, i - get("attention.sliding_window") + 1) if local else 0
                scores = np.array(
                    [
                        rotate(q[i, head], i, base) @ rotate(k[j, group], j, base) / np.sqrt(d)
                        for j in range(first, i + 1)
                    ]
                )
                out[i, head] = ops.softmax(scores) @ v[first : i + 1, group]
        h = out.reshape(n, -1) @ w("attn_output").T
        x = x + (norm(h, w("post_attention_norm")) if gemma else h)
        h = norm(x, w("ffn_norm"))
        h = (act(h @ w("ffn_gate").T) * (h @ w("ffn_up").T)) @ w("ffn_down").T
        x = x + (norm(h, w("post_ffw_norm")) if gemma else h)
    return norm(x, t["output_norm.weight"]) @ t.get("output.weight", t["token_embd.weight"]).T


VARIANTS = {
    "plain llama": ("llama", {}),
    "gemma3 past its window": ("gemma3", {}),
    "unequal key and value lengths": ("llama", {"llama.attention.key_length": 12, "llama.attention.value_length": 6}),
    "one KV head": ("llama", {"llama.attention.head_count_kv": 1}),
    "no grouping": ("llama", {"llama.attention.head_count_kv": 4}),
    "half of each head rotates": ("llama", {"llama.rope.dimension_count": 4}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tiny_model_equals_a_plain_restatement_in_float64(variant: str, tmp_path: Path) -> None:
    arch, overrides = VARIANTS[variant]
    metadata = tiny_metadata(arch, **overrides)
    tensors = tiny_tensors(metadata, seed=3)
    ids = np.random.default_rng(5).integers(0, 256, 20).tolist()
    with tl.load_model(write_gguf(tmp_path / "t.gguf", metadata, tensors)) as model, model.create_session() as session:
        logits = session.eval(ids, all_logits=True)
    np.testing.assert_allclose(logits, plain_forward(metadata, tensors, ids), rtol=0, atol=2e-4)


def test_llama_31_frequency_factors_and_an_output_matrix_are_used(tmp_path: Path) -> None:
    metadata = tiny_metadata()
    tensors = tiny_tensors(metadata)
    rng = np.random.default_rng(8)
    tensors["rope_freqs.weight"] = np.array([1, 2, 4, 8], np.float32)
    tensors["output.weight"] = rng.standard_normal(tensors["token_embd.weight"].shape).astype(np.float32) / 6
    ids = rng.integers(0, 256, 12).tolist()
    with tl.load_model(write_gguf(tmp_path / "t.gguf", metadata, tensors)) as model, model.create_session() as session:
        np.testing.assert_allclose(
            session.eval(ids, all_logits=True), plain_forward(metadata, tensors, ids), rtol=0, atol=2e-4
        )


def test_linear_rope_scaling_divides_positions(tmp_path: Path) -> None:
    position, dim = np.array([8.0]), 8
    scaled = ops.rope_angles(position, dim, 10000.0, 4.0, None)
    np.testing.assert_allclose(scaled, ops.rope_angles(position / 4, dim, 10000.0, 1.0, None), rtol=1e-6)
    overrides = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    with tl.load_model(tiny_model(tmp_path / "t.gguf", **overrides)) as model:
        assert model.spec.layers[0].attention.rope.frequencies[0] == 1 / 4


REFUSED = {
    "an unknown architecture": ({"general.architecture": "mamba"}, tl.UnsupportedModelError, "mamba"),
    "experts of which none is used": ({"llama.expert_count": 8}, tl.GGUFError, "expert_used_count"),
    "experts used of none": ({"llama.expert_used_count": 2}, tl.GGUFError, "expert_used_count"),
    "more experts used than there are": (
        {"llama.expert_count": 4, "llama.expert_used_count": 5},
        tl.GGUFError,
        "expert_used_count",
    ),
    "groups that experts do not divide into": (
        {
            "llama.expert_count": 4,
            "llama.expert_used_count": 1,
            "llama.expert_group_count": 3,
            "llama.expert_group_used_count": 1,
        },
        tl.GGUFError,
        "expert_group_count",
    ),
    "an unknown gating": (
        {"llama.expert_count": 4, "llama.expert_used_count": 1, "llama.expert_gating_func": 9},
        tl.UnsupportedModelError,
        "expert_gating_func",
    ),
    "experts without tensors": ({"llama.expert_count": 4, "llama.expert_used_count": 1}, tl.GGUFError, "ffn_gate_inp"),
    "an unknown RoPE scaling": ({"llama.rope.scaling.type": "magic"}, tl.UnsupportedModelError, "scaling.type"),
    "a key that nobody knows": ({"llama.attention.twist": 2.0}, tl.UnsupportedModelError, "attention.twist"),
    "a list of the wrong length": ({"llama.feed_forward_length": [64, 64, 64]}, tl.GGUFError, "feed_forward_length"),
    "more rotating numbers than a head has": ({"llama.rope.dimension_count": 16}, tl.GGUFError, "dimension_count"),
    "no block count": ({"llama.block_count": None}, tl.GGUFError, "block_count"),
    "no head count": ({"llama.attention.head_count": None}, tl.GGUFError, "head_count"),
    "a context length of text": ({"llama.context_length": "long"}, tl.GGUFError, "context_length"),
    "a block count of 2**63": ({"llama.block_count": 2**63}, tl.GGUFError, "block_count"),
    "negative width": ({"llama.embedding_length": -32}, tl.GGUFError, "embedding_length"),
    "heads that do not share equally": ({"llama.attention.head_count_kv": 3}, tl.GGUFError, "head"),
    "more layers than tensors": ({"llama.block_count": 3}, tl.GGUFError, "blk.2"),
    "fewer layers than tensors": ({"llama.block_count": 1}, tl.UnsupportedModelError, "blk.1"),
    "a wrong hidden length": ({"llama.feed_forward_length": 96}, tl.GGUFError, "ffn_"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, tl.GGUFError, "tokenizer"),
    "an unknown pre-tokenizer": ({"tokenizer.ggml.pre": "mystery"}, tl.UnsupportedModelError, "mystery"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, tl.GGUFError, "epsilon"),
    "an infinite epsilon": ({"llama.attention.layer_norm_rms_epsilon": float("inf")}, tl.GGUFError, "epsilon"),
    "a RoPE base of zero": ({"llama.rope.freq_base": 0.0}, tl.GGUFError, "freq_base"),
    "an odd RoPE length": ({"llama.rope.dimension_count": 7}, tl.GGUFError, "dimension_count"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_cannot_be_run_is_refused_with_its_reason(what: str, tmp_path: Path) -> None:
    overrides, error, named = REFUSED[what]
    metadata, tensors = tiny_metadata(), tiny_tensors(tiny_metadata())
    metadata = {k: v for k, v in (metadata | overrides).items() if v is not None}
    path = write_gguf(tmp_path / "t.gguf", metadata, tensors)
    with pytest.raises(error, match=named):
        tl.load_model(path)


def test_a_missing_or_misshapen_or_unused_tensor_is_refused_by_name(tmp_path: Path) -> None:
    metadata = tiny_metadata()
    for change, error in (
        ({"blk.1.attn_v.weight": None}, tl.GGUFError),
        ({"blk.1.attn_v.weight": np.ones((8, 32), np.float32)}, tl.GGUFError),
        ({"output_norm.weight": np.ones((32, 32), np.float32)}, tl.GGUFError),
        ({"blk.0.attn_q.bias": np.ones(31, np.float32)}, tl.GGUFError),
        ({"blk.0.attn_sinkz.weight": np.ones(32, np.float32)}, tl.UnsupportedModelError),
    ):
        tensors = {k: v for k, v in (tiny_tensors(metadata) | change).items() if v is not None}
        with pytest.raises(error, match=next(iter(change)).replace(".", r"\.")):
            tl.load_model(write_gguf(tmp_path / "t.gguf", metadata, tensors))


def test_weights_other_than_f32_are_refused_with_the_choice(tmp_path: Path) -> None:
    with pytest.raises(tl.ParameterError, match="f32"):
        tl.load_model(tiny_model(tmp_path / "t.gguf"), weights="q3_magic")


def test_a_name_that_is_no_file_says_what_to_do() -> None:
    with pytest.raises(tl.FetchError, match="smollm2-135m"):
        tl.load_model("no-such-model")
