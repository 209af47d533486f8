"""Writes a tiny model of any family from a seed, with random weights and deliberately odd sizes.

Ragged head counts, heads whose length is not dim / n_heads, windows shorter than the prompt, tied and untied output,
experts that tie in score, layers that differ. Weights are scaled so that every part moves the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from tests.kernel_tools import model_blocks
from tests.tools import MERGES, byte_alphabet, write_gguf

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Variant:
    """One tiny model."""

    arch: str
    sizes: dict[str, Any]  # metadata keys without the architecture prefix; the rest come from `PLAIN`
    about: str = ""
    tied: bool = True  # the output matrix is the embedding
    edit: Callable[[Tensors, np.random.Generator, dict[str, Any]], None] = lambda t, rng, m: None
    types: dict[str, T] = field(default_factory=dict)  # endings of tensor names -> types other than F32
    gelu: bool = False  # llama.cpp rounds GELU to float16
    peer: bool = True  # llama.cpp loads it


PLAIN = {
    "block_count": 3,
    "context_length": 2048,
    "embedding_length": 96,
    "feed_forward_length": 160,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
EXPERTS = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 64}


def rope_factors(t: Tensors, rng: np.random.Generator, m: dict[str, Any]) -> None:
    """Llama 3's RoPE factors: from 1 for fast pairs to 8 for slow ones."""
    t["rope_freqs.weight"] = np.linspace(1, 8, m["rope.dimension_count"] // 2).astype(np.float32)


def long_rope(t: Tensors, rng: np.random.Generator, m: dict[str, Any]) -> None:
    """LongRoPE's two sets of factors, and phi3's fused matrices."""
    half = m["rope.dimension_count"] // 2
    t["rope_factors_short.weight"] = np.linspace(1, 1.5, half).astype(np.float32)
    t["rope_factors_long.weight"] = np.linspace(1.1, 16, half).astype(np.float32)
    fuse(t, rng, m)


def fuse(t: Tensors, rng: np.random.Generator, m: dict[str, Any]) -> None:
    """Fuses q, k and v into one matrix, and gate and up into another."""
    for i in range(m["block_count"]):
        p = f"blk.{i}."
        t[p + "attn_qkv.weight"] = np.concatenate([t.pop(f"{p}attn_{x}.weight") for x in "qkv"])
        t[p + "ffn_up.weight"] = np.concatenate([t.pop(p + "ffn_gate.weight"), t.pop(p + "ffn_up.weight")])


def fused_bias(t: Tensors, rng: np.random.Generator, m: dict[str, Any]) -> None:
    """phi3's fused matrices, the first with a bias."""
    fuse(t, rng, m)
    biases(t, rng, m, ("attn_qkv",))


def tie_experts(t: Tensors, rng: np.random.Generator, m: dict[str, Any]) -> None:
    """Experts 1 and 2 always score the same, and so do 3 and 4."""
    for i in range(m["block_count"]):
        router = t[f"blk.{i}.ffn_gate_inp.weight"]
        router[2], router[4] = router[1], router[3]
        for name in ("gate", "up", "down"):  # the two are also equal, so that either may be chosen
            w = t[f"blk.{i}.ffn_{name}_exps.weight"]
            w[2], w[4] = w[1], w[3]


VARIANTS: dict[str, Variant] = {
    "llama": Variant("llama", {}, "plain"),
    "llama-untied": Variant("llama", {"attention.head_count": 3, "attention.head_count_kv": 3}, "untied", False),
    "llama3-factors": Variant("llama", {}, "Llama 3's frequency factors", edit=rope_factors),
    "llama-linear": Variant("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "linear scaling"),
    "llama-no-type": Variant("llama", {"rope.scaling.factor": 4.0}, "a factor without a type is linear"),
    "llama-old-key": Variant("llama", {"rope.scale_linear": 2.0}, "the older name of the factor"),
    "llama-yarn": Variant(
        "llama",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 256},
        "YaRN",
    ),
    "llama-biases": Variant("llama", {}, "optional biases", edit=lambda t, rng, m: biases(t, rng, m, OPTIONAL)),
    "llama-layers": Variant(
        "llama",
        {"attention.head_count_kv": [2, 6, 1], "feed_forward_length": [160, 96, 224]},
        "layers that differ",
        peer=False,
    ),
    "mixtral": Variant("llama", {"expert_count": 6, "expert_used_count": 2}, "a mixture of experts"),
    "mixtral-ties": Variant("llama", {"expert_count": 6, "expert_used_count": 2}, "experts that tie", edit=tie_experts),
    "qwen2": Variant("qwen2", {}, "biases on q, k, v", False),
    "qwen2moe": Variant(
        "qwen2moe", EXPERTS | {"expert_used_count": 3, "expert_shared_feed_forward_length": 96}, "shared", False
    ),
    "qwen3": Variant("qwen3", {"attention.key_length": 32, "attention.value_length": 32}, "QK norm, long heads"),
    "qwen3-yarn": Variant(
        "qwen3",
        {
            "attention.key_length": 32, "attention.value_length": 32, "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128, "rope.freq_base": 1000000.0,
        },
        "YaRN over halves that rotate",
    ),
    "qwen3moe": Variant("qwen3moe", EXPERTS | {"expert_count": 8, "expert_used_count": 3}, "QK norm", False),
    "phi3": Variant("phi3", {"attention.sliding_window": 64}, "fused, short factors", False, edit=long_rope),
    "phi3-partial": Variant(
        "phi3", {"rope.dimension_count": 12}, "three quarters of a head rotate; a fused bias", edit=fused_bias
    ),
    "phi3-long": Variant(
        "phi3",
        {"rope.scaling.original_context_length": 128, "rope.scaling.attn_factor": 1.19},
        "long factors",
        False,
        edit=long_rope,
    ),
    "gemma2": Variant(
        "gemma2",
        {
            "block_count": 4, "attention.key_length": 32, "attention.value_length": 32, "attention.sliding_window": 48,
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": 12.0,
        },
        "soft caps, windows",
        gelu=True,
    ),
    "gemma3": Variant(
        "gemma3",
        {
            "block_count": 7, "attention.key_length": 32, "attention.value_length": 32, "attention.sliding_window": 48,
            "rope.freq_base": 1000000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
        },
        "windows of two rotations",
        gelu=True,
    ),
    "gemma3-global": Variant(
        "gemma3",
        {
            "block_count": 3, "attention.key_length": 32, "attention.value_length": 32, "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 256, "final_logit_softcapping": 10.0,
        },
        "no window, YaRN, a soft cap",
        False,
        gelu=True,
    ),
    "granite": Variant(
        "granite",
        {"embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 2.5, "attention.scale": 0.2},
        "four multipliers",
    ),
    "granite-still": Variant(
        "granite",
        {"embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 2.5, "rope.scaling.finetuned": False},
        "heads that do not rotate",
        False,
    ),
    "olmo2": Variant("olmo2", {}, "norms after, QK norm over all heads", False),
    "olmo3": Variant(
        "olmo2",
        {
            "block_count": 5, "attention.sliding_window": 48, "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 256,
        },
        "windows, and YaRN where there is none",
        False,
    ),
    "gpt-oss": Variant(
        "gpt-oss",
        EXPERTS | {
            "block_count": 4, "attention.key_length": 32, "attention.value_length": 32, "attention.sliding_window": 48,
            "expert_feed_forward_length": 96, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 256,
        },
        "sinks, biases, clamped experts",
        False,
    ),
    "deepseek2-lite": Variant(
        "deepseek2",
        {
            "block_count": 26, "embedding_length": 64, "attention.head_count": 2, "expert_count": 4,
            "expert_used_count": 2, "leading_dense_block_count": 1, "expert_shared_count": 2,
        },
        "latent attention, q without a rank (known by its 26 layers)",
        False,
    ),
    "deepseek2-yarn": Variant(
        "deepseek2",
        {
            "block_count": 3, "attention.head_count": 3, "expert_count": 6, "expert_used_count": 3,
            "leading_dense_block_count": 1, "expert_shared_count": 1, "attention.q_lora_rank": 64,
            "expert_weights_scale": 1.7,
            "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 256,
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
        "q with a rank, YaRN that sharpens",
        False,
    ),
    "deepseek2-linear": Variant(
        "deepseek2",
        {
            "block_count": 3, "attention.head_count": 3, "expert_count": 6, "expert_used_count": 3,
            "leading_dense_block_count": 1, "expert_shared_count": 1, "attention.q_lora_rank": 64,
            "rope.scaling.factor": 4.0,
            "rope.scaling.yarn_log_multiplier": 0.05,
        },
        "linear scaling, which sharpens scores too",
        False,
    ),
    "deepseek3": Variant(
        "deepseek2",
        {
            "block_count": 3, "attention.head_count": 3, "expert_count": 8, "expert_used_count": 3,
            "leading_dense_block_count": 1, "expert_shared_count": 1, "attention.q_lora_rank": 64,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True, "expert_gating_func": 2, "expert_group_count": 4, "expert_group_used_count": 2,
        },
        "sigmoid routing in groups",
        False,
    ),
}  # fmt: skip
VARIANTS["gpt-oss-mxfp4"] = Variant(
    "gpt-oss",
    VARIANTS["gpt-oss"].sizes,
    "experts in MXFP4",
    False,
    types={"_exps.weight": T.MXFP4},
)
# Seeds for which no router's choice and no two best logits nearly tie, in the prompt and in 50 greedy steps. At a near
# tie either choice is right, and the texts diverge. Found by `make_golden.py --find-seeds`.
SEEDS = {
    "llama": 16, "llama-untied": 2, "llama3-factors": 7, "llama-old-key": 3, "llama-yarn": 6, "llama-biases": 1,
    "mixtral": 2, "mixtral-ties": 1, "qwen2": 3, "qwen2moe": 2, "qwen3": 2, "qwen3moe": 1, "phi3": 13, "phi3-long": 26,
    "gemma2": 2, "gemma3": 2, "gemma3-global": 9, "granite": 2, "granite-still": 7, "olmo2": 5, "olmo3": 2,
    "gpt-oss": 2, "gpt-oss-mxfp4": 5, "deepseek2-lite": 4, "deepseek2-yarn": 22, "deepseek2-linear": 23,
    "deepseek3": 6,
}  # fmt: skip
# Sizes for types whose blocks hold 256 weights.
WIDE = {
    "embedding_length": 256, "feed_forward_length": 512, "attention.head_count": 4, "expert_feed_forward_length": 256,
    "expert_shared_feed_forward_length": 256, "attention.q_lora_rank": 256, "attention.kv_lora_rank": 256,
    "attention.key_length": 64, "attention.value_length": 64,
}  # fmt: skip
OPTIONAL = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def biases(t: Tensors, rng: np.random.Generator, m: dict[str, Any], names: tuple[str, ...]) -> None:
    """Adds biases to the named matrices."""
    for i in range(m["block_count"]):
        for name in names:
            w = t.get(f"blk.{i}.{name}.weight")
            if w is not None:
                t[f"blk.{i}.{name}.bias"] = (0.3 * rng.standard_normal(w.shape[:-1])).astype(np.float32)


def metadata_of(variant: str, **overrides: Any) -> dict[str, Any]:
    """The metadata of a tiny model; an override of None removes its key (given without the architecture prefix)."""
    v = VARIANTS[variant]
    sizes = PLAIN | v.sizes | overrides
    if v.arch in ("mixtral", "qwen2moe", "qwen3moe"):
        sizes["feed_forward_length"] = sizes.get("feed_forward_length", 160)
    if v.arch == "deepseek2":  # heads of 32 + 16, compressed to the rank + 16
        rank = overrides.get("attention.kv_lora_rank", 64)
        sizes |= {
            "attention.head_count_kv": 1, "attention.key_length": rank + 16, "attention.value_length": rank,
            "attention.key_length_mla": 48, "attention.value_length_mla": 32, "attention.kv_lora_rank": rank,
            "rope.dimension_count": 16, "vocab_size": len(vocabulary()),
        }  # fmt: skip
        sizes.setdefault("expert_feed_forward_length", 64)
    if v.arch == "granite":
        sizes["vocab_size"] = len(vocabulary())
    sizes.setdefault(
        "rope.dimension_count", sizes.get("attention.key_length", sizes["embedding_length"] // heads(sizes))
    )
    tokens = vocabulary()
    return {
        "general.architecture": v.arch,
        "general.name": "tiny",
        **{f"{v.arch}.{k}": value for k, value in sizes.items() if value is not None},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }


def wide_sizes(v: Variant) -> dict[str, Any]:
    """A variant's sizes, larger: see `WIDE`."""
    used = PLAIN | v.sizes
    sizes = {key: value for key, value in WIDE.items() if key in used}
    kv_heads, n_heads = used["attention.head_count_kv"], used["attention.head_count"]
    if isinstance(kv_heads, list):
        sizes |= {"attention.head_count_kv": [2, 4, 1], "feed_forward_length": [512, 256, 768]}
    elif kv_heads == n_heads:
        sizes["attention.head_count_kv"] = sizes["attention.head_count"]
    if v.arch == "deepseek2":
        sizes["attention.kv_lora_rank"] = WIDE["attention.kv_lora_rank"]
    return sizes


def vocabulary() -> list[str]:
    """The bytes, a few merges, and two special tokens."""
    return [*byte_alphabet(), *(m.replace(" ", "") for m in MERGES), "<|bos|>", "<|eos|>"]


def heads(sizes: dict[str, Any]) -> int:
    n = sizes["attention.head_count"]
    return n if isinstance(n, int) else n[0]


def tensors_of(variant: str, metadata: dict[str, Any], seed: int = 0) -> Tensors:
    """Random float32 weights for the metadata."""
    v = VARIANTS[variant]
    m = {key.removeprefix(f"{v.arch}."): value for key, value in metadata.items()}
    rng = np.random.default_rng(seed)
    dim, vocab, n = m["embedding_length"], len(m["tokenizer.ggml.tokens"]), m["block_count"]
    n_heads, d = heads(m), m.get("attention.key_length", dim // heads(m))
    dv = m.get("attention.value_length", d)
    per_layer = lambda key, i: m[key] if isinstance(m[key], int) else m[key][i]

    def matrix(*shape: int, gain: float = 1.5) -> np.ndarray:
        return (gain * rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def norm(length: int) -> np.ndarray:
        return (1 + 0.3 * rng.standard_normal(length)).astype(np.float32)

    # Embeddings that the family scales up are made smaller, so that the layers' contributions still matter.
    scale = np.float32(dim**0.5 if v.arch in ("gemma2", "gemma3") else m.get("embedding_scale", 1.0))
    t: Tensors = {
        "token_embd.weight": matrix(vocab, dim, gain=3.0) / scale,
        "output_norm.weight": norm(dim) * (scale if v.tied else np.float32(1)),
    }
    if not v.tied:
        t["output.weight"] = matrix(vocab, dim, gain=2.0)
    for i in range(n):
        p, kv_heads, hidden = f"blk.{i}.", per_layer("attention.head_count_kv", i), per_layer("feed_forward_length", i)
        if v.arch != "olmo2":
            t[p + "attn_norm.weight"] = norm(dim)
            t[p + ("post_attention_norm.weight" if v.arch == "gpt-oss" else "ffn_norm.weight")] = norm(dim)
        if v.arch in ("gemma2", "gemma3", "olmo2"):
            t[p + "post_attention_norm.weight"], t[p + "post_ffw_norm.weight"] = norm(dim), norm(dim)
        if v.arch in ("qwen3", "qwen3moe", "gemma3"):
            t[p + "attn_q_norm.weight"], t[p + "attn_k_norm.weight"] = norm(d), norm(d)
        if v.arch == "olmo2":
            t[p + "attn_q_norm.weight"], t[p + "attn_k_norm.weight"] = norm(n_heads * d), norm(kv_heads * d)
        if v.arch == "deepseek2":
            latent(t, p, m, n_heads, dim, matrix, norm)
        else:
            t[p + "attn_q.weight"], t[p + "attn_k.weight"] = matrix(n_heads * d, dim), matrix(kv_heads * d, dim)
            t[p + "attn_v.weight"], t[p + "attn_output.weight"] = matrix(kv_heads * dv, dim), matrix(dim, n_heads * dv)
        if v.arch == "gpt-oss":
            t[p + "attn_sinks.weight"] = (2 * rng.standard_normal(n_heads)).astype(np.float32)
        experts = m.get("expert_count", 0)
        if not experts or i < m.get("leading_dense_block_count", 0):
            t[p + "ffn_gate.weight"], t[p + "ffn_up.weight"] = matrix(hidden, dim), matrix(hidden, dim)
            t[p + "ffn_down.weight"] = matrix(dim, hidden)
            continue
        length = m.get("expert_feed_forward_length", hidden)
        t[p + "ffn_gate_inp.weight"] = matrix(experts, dim)
        t[p + "ffn_gate_exps.weight"] = matrix(experts, length, dim)
        t[p + "ffn_up_exps.weight"] = matrix(experts, length, dim)
        t[p + "ffn_down_exps.weight"] = matrix(experts, dim, length)
        shared = m.get("expert_shared_feed_forward_length", 0) or length * m.get("expert_shared_count", 0)
        if shared:
            t[p + "ffn_gate_shexp.weight"], t[p + "ffn_up_shexp.weight"] = matrix(shared, dim), matrix(shared, dim)
            t[p + "ffn_down_shexp.weight"] = matrix(dim, shared)
        if v.arch == "qwen2moe":
            t[p + "ffn_gate_inp_shexp.weight"] = matrix(1, dim)[0]
        if m.get("expert_gating_func") == 2:
            t[p + "exp_probs_b.bias"] = (0.2 * rng.standard_normal(experts)).astype(np.float32)
    if v.arch in ("qwen2", "qwen2moe"):
        biases(t, rng, m, ("attn_q", "attn_k", "attn_v"))
    if v.arch == "gpt-oss":
        names = (
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate_inp",
            "ffn_gate_exps",
            "ffn_up_exps",
            "ffn_down_exps",
        )
        biases(t, rng, m, names)
    v.edit(t, rng, m)
    return t


def latent(t: Tensors, p: str, m: dict[str, Any], n_heads: int, dim: int, matrix: Any, norm: Any) -> None:
    """Adds the weights of DeepSeek's latent attention."""
    rank, key, value = m["attention.kv_lora_rank"], m["attention.key_length_mla"], m["attention.value_length_mla"]
    rotating = m["rope.dimension_count"]
    if q_rank := m.get("attention.q_lora_rank", 0):
        t[p + "attn_q_a.weight"], t[p + "attn_q_a_norm.weight"] = matrix(q_rank, dim), norm(q_rank)
        t[p + "attn_q_b.weight"] = matrix(n_heads * key, q_rank)
    else:
        t[p + "attn_q.weight"] = matrix(n_heads * key, dim)
    t[p + "attn_kv_a_mqa.weight"], t[p + "attn_kv_a_norm.weight"] = matrix(rank + rotating, dim), norm(rank)
    t[p + "attn_k_b.weight"], t[p + "attn_v_b.weight"] = (
        matrix(n_heads, rank, key - rotating, gain=0.7),
        matrix(n_heads, value, rank),
    )
    t[p + "attn_output.weight"] = matrix(dim, n_heads * value)


def build(
    variant: str, path: Path, seed: int = 0, kind: T = T.F32, dequantized: bool = False, **overrides: Any
) -> Path:
    """Writes a tiny model's file.

    Args:
        seed: selects another model of the variant, for live comparisons; 0 is the model with golden figures.
        kind: the matrices' type; router, norms and biases stay float32. A type whose blocks hold 256 weights makes the
            model wide and its blocks random; matrices that are still narrower become Q8_0.
        dequantized: write the rounded weights as float32.
        overrides: metadata, keys without the architecture prefix; None removes a key.
    """
    wide, v = GGML_QUANT_SIZES[kind][0] == 256, VARIANTS[variant]
    if wide:
        overrides = wide_sizes(v) | overrides
    metadata = metadata_of(variant, **overrides)
    tensors = tensors_of(variant, metadata, SEEDS.get(variant, 0) + seed)
    types: dict[str, T] = {}
    for name, data in tensors.items():
        small = "ffn_gate_inp" in name or data.ndim < 2 or name.endswith(".bias")
        own = next((other for ending, other in v.types.items() if name.endswith(ending)), None)
        if own is not None:
            types[name] = own
        elif kind != T.F32 and not small:
            types[name] = kind if data.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else T.Q8_0
        if wide and types.get(name) == kind:
            raw = model_blocks(
                kind, data.size // data.shape[-1], data.shape[-1], np.random.default_rng([seed, len(types)])
            )
            tensors[name] = raw.reshape(*data.shape[:-1], -1)
    if wide and v.edit is tie_experts:
        tie_experts(tensors, np.random.default_rng(seed), {"block_count": metadata[f"{v.arch}.block_count"]})
    if dequantized:
        for name, type_ in types.items():
            rows = tensors[name].reshape(-1, tensors[name].shape[-1])
            rounded = gguf.quants.dequantize(gguf.quants.quantize(rows, type_), type_)
            tensors[name] = rounded.reshape(tensors[name].shape).astype(np.float32)
        types = {}
    return write_gguf(path, metadata, tensors, types)
