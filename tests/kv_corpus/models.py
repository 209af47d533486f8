"""The models of the corpus: the metadata that determines their caches, and where it was published.

Entries were written from memory and then compared with available sources. `CHECKED` names the source that confirmed
each entry; entries without one are listed as not checked in docs/kv-corpus.md.

An entry's `keys` are GGUF keys without the architecture's prefix, as llama.cpp's converters (`conversion/` in its
repository) write them from the model's `config.json`. `source` names that file by its repository on the Hugging Face
Hub. An entry whose source begins with "made" is not a published model: it covers a kind of cache that no published
model small enough to describe shows alone. Keys that have no influence on the cache are left out; `ask_llama_cpp.py`
adds those that llama.cpp requires.
"""

# ruff: noqa: E501  (a table: a row per model)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One model of the corpus."""

    name: str  # also the header's file name
    arch: str
    kind: str  # the kind of cache it represents
    source: str
    keys: dict[str, Any]


ENTRIES: list[Entry] = []


def add(
    name: str, arch: str, kind: str, source: str, n_layers: int, heads: Any, kv_heads: Any, dim: int, context: int,
    ff: Any, **more: Any,
) -> None:  # fmt: skip
    """Adds an entry; `more` has further keys, with `__` for a dot and `att_` for `attention.`."""
    keys: dict[str, Any] = {
        "block_count": n_layers, "context_length": context, "embedding_length": dim, "feed_forward_length": ff,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads,
    }  # fmt: skip
    keys |= {k.replace("att_", "attention.", 1).replace("__", "."): v for k, v in more.items()}
    ENTRIES.append(Entry(name, arch, kind, source, {k: v for k, v in keys.items() if v is not None}))


def head(length: int, value: int | None = None) -> dict[str, int]:
    """Head lengths, where they are not dim / heads."""
    return {"att_key_length": length, "att_value_length": length if value is None else value}


def every(n: int, layers: int, first: bool = False) -> list[bool]:
    """Flags of sliding layers: True for every layer but the last (or first) of each n."""
    return [i % n != (0 if first else n - 1) for i in range(layers)]


def at(layers: int, indices: list[int], value: int) -> list[int]:
    """`value` in these layers, 0 in the others."""
    return [value if i in indices else 0 for i in range(layers)]


# Plain: every head has its own keys and values ------------------------------------------------------------------------
add("gpt-2", "gpt2", "plain", "openai-community/gpt2", 12, 12, None, 768, 1024, 3072)
add("llama-2-7b", "llama", "plain", "meta-llama/Llama-2-7b-hf", 32, 32, 32, 4096, 4096, 11008)
add("pythia-1.4b", "gptneox", "plain", "EleutherAI/pythia-1.4b", 24, 16, None, 2048, 2048, 8192)
add("bloom-7b1", "bloom", "plain", "bigscience/bloom-7b1", 30, 32, None, 4096, 2048, 16384)
add("mpt-7b", "mpt", "plain", "mosaicml/mpt-7b", 32, 32, None, 4096, 2048, 16384)
add("baichuan2-7b", "baichuan", "plain", "baichuan-inc/Baichuan2-7B-Base", 32, 32, 32, 4096, 4096, 11008)
add("qwen1.5-moe-a2.7b", "qwen2moe", "plain, mixture of experts", "Qwen/Qwen1.5-MoE-A2.7B", 24, 16, 16, 2048, 8192,
    5632, expert_count=60, expert_used_count=4, expert_feed_forward_length=1408,
    expert_shared_feed_forward_length=5632)  # fmt: skip
add("phi-2", "phi2", "plain, heads of 80 that q4_0 does not divide", "microsoft/phi-2", 32, 32, 32, 2560, 2048, 10240)
add("stablelm-2-1.6b", "stablelm", "plain", "stabilityai/stablelm-2-1_6b", 24, 32, 32, 2048, 4096, 5632,
    rope__dimension_count=16)  # fmt: skip
add("olmo-2-7b", "olmo2", "plain", "allenai/OLMo-2-1124-7B", 32, 32, 32, 4096, 4096, 11008)
add("dots.llm1", "dots1", "plain, mixture of experts", "rednote-hilab/dots.llm1.base", 62, 32, 32, 4096, 32768, 10944,
    **head(128), expert_count=128, expert_used_count=6, expert_feed_forward_length=1408, expert_shared_count=2,
    leading_dense_block_count=1)  # fmt: skip

# Grouped: several query heads share a KV head -------------------------------------------------------------------------
add("llama-3.1-8b", "llama", "grouped", "meta-llama/Llama-3.1-8B", 32, 32, 8, 4096, 131072, 14336)
add("llama-3.1-405b", "llama", "grouped", "meta-llama/Llama-3.1-405B", 126, 128, 8, 16384, 131072, 53248)
add("llama-3.2-1b", "llama", "grouped", "meta-llama/Llama-3.2-1B", 16, 32, 8, 2048, 131072, 8192)
add("smollm2-135m", "llama", "grouped", "HuggingFaceTB/SmolLM2-135M-Instruct", 30, 9, 3, 576, 8192, 1536)
add("mistral-7b-v0.3", "llama", "grouped", "mistralai/Mistral-7B-v0.3", 32, 32, 8, 4096, 32768, 14336)
add("mixtral-8x7b", "llama", "grouped, mixture of experts", "mistralai/Mixtral-8x7B-v0.1", 32, 32, 8, 4096, 32768,
    14336, expert_count=8, expert_used_count=2)  # fmt: skip
add("qwen2.5-0.5b", "qwen2", "grouped", "Qwen/Qwen2.5-0.5B", 24, 14, 2, 896, 32768, 4864)
add("qwen2.5-7b", "qwen2", "grouped", "Qwen/Qwen2.5-7B", 28, 28, 4, 3584, 131072, 18944)
add("glm-4-9b", "chatglm", "grouped", "THUDM/glm-4-9b-chat", 40, 32, 2, 4096, 131072, 13696,
    rope__dimension_count=64)  # fmt: skip
add("glm-4-9b-0414", "glm4", "grouped", "THUDM/GLM-4-9B-0414", 40, 32, 2, 4096, 32768, 13696,
    rope__dimension_count=64)  # fmt: skip
add("internlm2.5-7b", "internlm2", "grouped", "internlm/internlm2_5-7b", 32, 32, 8, 4096, 32768, 14336)
add("command-r-plus", "command-r", "grouped", "CohereForAI/c4ai-command-r-plus", 64, 96, 8, 12288, 131072, 33792)
add("falcon-40b", "falcon", "grouped", "tiiuae/falcon-40b", 60, 128, 8, 8192, 2048, 32768)
add("starcoder2-3b", "starcoder2", "grouped", "bigcode/starcoder2-3b", 30, 24, 2, 3072, 16384, 12288)
add("granite-3.3-8b", "granite", "grouped", "ibm-granite/granite-3.3-8b-base", 40, 32, 8, 4096, 131072, 12800)
add("smollm3-3b", "smollm3", "grouped", "HuggingFaceTB/SmolLM3-3B", 36, 16, 4, 2048, 65536, 11008)
add("apertus-8b", "apertus", "grouped", "swiss-ai/Apertus-8B-2509", 32, 32, 8, 4096, 65536, 21504)
add("dbrx", "dbrx", "grouped, mixture of experts", "databricks/dbrx-base", 40, 48, 8, 6144, 32768, 10752,
    expert_count=16, expert_used_count=4)  # fmt: skip

# One KV head for all query heads --------------------------------------------------------------------------------------
add("falcon-7b", "falcon", "multi-query", "tiiuae/falcon-7b", 32, 71, 1, 4544, 2048, 18176)
add("starcoder", "starcoder", "multi-query", "bigcode/starcoder", 40, 48, 1, 6144, 8192, 24576)
add("gemma-2b", "gemma", "multi-query, heads of a length of their own", "google/gemma-2b", 18, 8, 1, 2048, 8192, 16384,
    **head(256))  # fmt: skip

# Head lengths other than dim / heads ----------------------------------------------------------------------------------
add("mistral-nemo-12b", "llama", "heads of a length of their own", "mistralai/Mistral-Nemo-Base-2407", 40, 32, 8, 5120,
    131072, 14336, **head(128), rope__dimension_count=128)  # fmt: skip
add("qwen3-0.6b", "qwen3", "heads of a length of their own", "Qwen/Qwen3-0.6B", 28, 16, 8, 1024, 40960, 3072,
    **head(128))  # fmt: skip
add("qwen3-235b-a22b", "qwen3moe", "heads of a length of their own, mixture of experts", "Qwen/Qwen3-235B-A22B", 94, 64,
    4, 4096, 40960, 12288, **head(128), expert_count=128, expert_used_count=8, expert_feed_forward_length=1536)  # fmt: skip
add("ernie-4.5-0.3b", "ernie4_5", "heads of a length of their own", "baidu/ERNIE-4.5-0.3B-PT", 18, 16, 2, 1024, 131072,
    3072, **head(128))  # fmt: skip
add("seed-oss-36b", "seed_oss", "heads of a length of their own", "ByteDance-Seed/Seed-OSS-36B-Base", 64, 80, 8, 5120,
    524288, 27648, **head(128))  # fmt: skip
add("minimax-m2", "minimax-m2", "heads of a length of their own, mixture of experts", "MiniMaxAI/MiniMax-M2", 62, 48, 8,
    3072, 196608, 1536, **head(128), rope__dimension_count=64, expert_count=256, expert_used_count=8,
    expert_feed_forward_length=1536, expert_gating_func=2)  # fmt: skip

# Layers that draft; they cache nothing in an ordinary context ---------------------------------------------------------
add("glm-4.5-air", "glm4moe", "multi-token prediction, mixture of experts", "zai-org/GLM-4.5-Air", 47, 96, 8, 4096,
    131072, 10944, **head(128), rope__dimension_count=64, nextn_predict_layers=1, expert_count=128,
    expert_used_count=8, expert_feed_forward_length=1408, expert_shared_count=1, leading_dense_block_count=1)  # fmt: skip

# Head counts that differ by layer, and layers without attention -------------------------------------------------------
OPENELM_HEADS, OPENELM_KV = [12] * 5 + [16] * 7 + [20] * 4, [3] * 5 + [4] * 7 + [5] * 4
add("openelm-270m", "openelm", "another head count in each layer", "apple/OpenELM-270M", 16, OPENELM_HEADS, OPENELM_KV,
    1280, 2048, [768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120],
    **head(64))  # fmt: skip
add("deci-made", "deci", "layers without attention", "made after nvidia/Llama-3_1-Nemotron-51B-Instruct", 16,
    [64] * 10 + [0] * 3 + [64] * 3, [8, 8, 4, 4, 2, 8, 8, 8, 1, 8, 0, 0, 0, 8, 8, 8], 8192, 131072, 28672,
    **head(128), rope__dimension_count=128)  # fmt: skip

# Sliding windows: the period is built into the engine -----------------------------------------------------------------
add("gemma-2-9b", "gemma2", "window, every 2nd layer full", "google/gemma-2-9b", 42, 16, 8, 3584, 8192, 14336,
    **head(256), att_sliding_window=4096)  # fmt: skip
add("gemma-2-27b", "gemma2", "window, every 2nd layer full", "google/gemma-2-27b", 46, 32, 16, 4608, 8192, 36864,
    **head(128), att_sliding_window=4096)  # fmt: skip
add("gemma-3-270m", "gemma3", "window, every 6th layer full", "google/gemma-3-270m", 18, 4, 1, 640, 32768, 2048,
    **head(256), att_sliding_window=512)  # fmt: skip
add("gemma-3-1b", "gemma3", "window, every 6th layer full", "google/gemma-3-1b-it", 26, 4, 1, 1152, 32768, 6912,
    **head(256), att_sliding_window=512)  # fmt: skip
add("gemma-3-27b", "gemma3", "window, every 6th layer full", "google/gemma-3-27b-it", 62, 32, 16, 5376, 131072, 21504,
    **head(128), att_sliding_window=1024)  # fmt: skip
add("command-r7b", "cohere2", "window, every 4th layer full", "CohereForAI/c4ai-command-r7b-12-2024", 32, 32, 8, 4096,
    131072, 14336, att_sliding_window=4096, rope__dimension_count=128, logit_scale=0.25)  # fmt: skip
add("exaone-4.0-32b", "exaone4", "window, every 4th layer full", "LGAI-EXAONE/EXAONE-4.0-32B", 64, 40, 8, 5120, 131072,
    27392, att_sliding_window=4096)  # fmt: skip
add("olmo-3-7b", "olmo2", "window, every 4th layer full", "allenai/Olmo-3-1025-7B", 32, 32, 32, 4096, 65536, 11008,
    att_sliding_window=4096)  # fmt: skip
add("smallthinker-21b", "smallthinker", "window, every 4th layer full, the first one first",
    "PowerInfer/SmallThinker-21BA3B-Instruct", 52, 28, 4, 2560, 16384, 768, **head(128), att_sliding_window=4096,
    expert_count=64, expert_used_count=6, expert_feed_forward_length=768, expert_gating_func=2)  # fmt: skip
add("trinity-mini", "afmoe", "window, every 4th layer full", "arcee-ai/Trinity-Mini", 32, 32, 4, 2048, 131072, 6144,
    **head(128), att_sliding_window=2048, expert_count=128, expert_used_count=8, expert_feed_forward_length=1024,
    expert_shared_count=1, leading_dense_block_count=2)  # fmt: skip

# Sliding windows with attention sinks --------------------------------------------------------------------------------
add("gpt-oss-20b", "gpt-oss", "window and attention sinks, every 2nd layer full", "openai/gpt-oss-20b", 24, 64, 8, 2880,
    131072, 2880, **head(64), att_sliding_window=128, expert_count=32, expert_used_count=4,
    expert_feed_forward_length=2880)  # fmt: skip
add("gpt-oss-120b", "gpt-oss", "window and attention sinks, every 2nd layer full", "openai/gpt-oss-120b", 36, 64, 8,
    2880, 131072, 2880, **head(64), att_sliding_window=128, expert_count=128, expert_used_count=4,
    expert_feed_forward_length=2880)  # fmt: skip

# Sliding windows: flags, and a period in the file --------------------------------------------------------------------
MIMO = [i > 0 and i % 6 != 5 for i in range(48)]  # the first layer attends to all, then every 6th
add("mimo-v2-flash", "mimo2", "window by flags, another head count in each layer, K and V of different length",
    "XiaomiMiMo/MiMo-V2-Flash", 48, 64, [8 if slides else 4 for slides in MIMO], 4096, 262144, 16384,
    **head(192, 128), att_sliding_window=128, att_sliding_window_pattern=MIMO, expert_count=256, expert_used_count=8,
    expert_feed_forward_length=2048)  # fmt: skip
add("gemma-3-made-period", "gemma3", "window, the period in the file", "made after google/gemma-3-1b-it", 26, 4, 1,
    1152, 32768, 6912, **head(256), att_sliding_window=512, att_sliding_window_pattern=2)  # fmt: skip
add("phi-3-mini-4k", "phi3", "a window in the file that engines do not apply", "microsoft/Phi-3-mini-4k-instruct", 32,
    32, 32, 3072, 4096, 8192, rope__dimension_count=96, att_sliding_window=2047)  # fmt: skip

# Layers that read an earlier layer's cache ---------------------------------------------------------------------------
add("gemma-3n-e2b", "gemma3n", "shared KV layers, window by flags", "google/gemma-3n-E2B-it", 30, 8, 2, 2048, 32768,
    8192, **head(256), att_sliding_window=512, att_shared_kv_layers=10, att_sliding_window_pattern=every(5, 30))  # fmt: skip
add("gemma-3n-e4b", "gemma3n", "shared KV layers, window by flags", "google/gemma-3n-E4B-it", 35, 8, 2, 2048, 32768,
    16384, **head(256), att_sliding_window=512, att_shared_kv_layers=15, att_sliding_window_pattern=every(5, 35))  # fmt: skip
add("gemma-4-made", "gemma4", "shared KV layers, other heads and lengths in windows",
    "made after google/gemma-4-E2B-it", 35, 8, 1, 1536, 131072, 6144, **head(512), att_key_length_swa=256,
    att_value_length_swa=256, att_sliding_window=512, att_shared_kv_layers=20,
    att_sliding_window_pattern=every(5, 35), embedding_length_per_layer_input=256)  # fmt: skip
add("gemma-4-made-dense", "gemma4", "other heads and lengths in windows", "made after google/gemma-4-31B-it", 60, 32,
    [4 if i % 6 == 5 else 16 for i in range(60)], 5376, 262144, 21504, **head(512), att_key_length_swa=256,
    att_value_length_swa=256, att_sliding_window=1024, att_sliding_window_pattern=every(6, 60),
    embedding_length_per_layer_input=0)  # fmt: skip

# Chunked attention ---------------------------------------------------------------------------------------------------
add("llama-4-scout", "llama4", "chunked attention, every 4th layer full", "meta-llama/Llama-4-Scout-17B-16E", 48, 40, 8,
    5120, 10485760, 16384, **head(128), rope__dimension_count=128, expert_count=16, expert_used_count=1,
    expert_feed_forward_length=8192, interleave_moe_layer_step=1)  # fmt: skip

# Latent attention ----------------------------------------------------------------------------------------------------
MOE_V3 = {
    "expert_count": 256, "expert_used_count": 8, "expert_feed_forward_length": 2048, "expert_shared_count": 1,
    "leading_dense_block_count": 3,
}  # fmt: skip
MLA = {
    **head(576, 512), "att_key_length_mla": 192, "att_value_length_mla": 128, "att_kv_lora_rank": 512,
    "rope__dimension_count": 64,
}  # fmt: skip
add("deepseek-v2-lite", "deepseek2", "latent attention", "deepseek-ai/DeepSeek-V2-Lite", 27, 16, 1, 2048, 163840, 10944,
    **MLA, expert_count=64, expert_used_count=6, expert_feed_forward_length=1408, expert_shared_count=2,
    leading_dense_block_count=1)  # fmt: skip
add("deepseek-v3", "deepseek2", "latent attention", "deepseek-ai/DeepSeek-V3", 61, 128, 1, 7168, 163840, 18432, **MLA,
    att_q_lora_rank=1536, **MOE_V3)  # fmt: skip
add("deepseek-v3-old", "deepseek2", "latent attention, a file from before April 2025: stored in full",
    "deepseek-ai/DeepSeek-V3", 61, 128, 128, 7168, 163840, 18432, **head(192, 128), att_kv_lora_rank=512,
    rope__dimension_count=64, att_q_lora_rank=1536, **MOE_V3)  # fmt: skip
add("kimi-k2", "deepseek2", "latent attention", "moonshotai/Kimi-K2-Instruct", 61, 64, 1, 7168, 131072, 18432, **MLA,
    att_q_lora_rank=1536, **(MOE_V3 | {"expert_count": 384, "leading_dense_block_count": 1}))  # fmt: skip
add("minicpm3-4b", "minicpm3", "latent attention that engines store in full", "openbmb/MiniCPM3-4B", 62, 40, 40, 2560,
    32768, 6400, **head(96, 64), att_q_lora_rank=768, att_kv_lora_rank=256, rope__dimension_count=32)  # fmt: skip
add("plm-1.8b", "plm", "latent attention that engines store in full", "PLM-Team/PLM-1.8B-Base", 32, 16, 16, 2048, 4096,
    8192, **head(192, 128), att_kv_lora_rank=512, rope__dimension_count=64)  # fmt: skip

# Sparse attention: an additional index key ----------------------------------------------------------------------------
add("deepseek-v3.2", "deepseek32", "latent attention and an index key", "deepseek-ai/DeepSeek-V3.2-Exp", 61, 128, 1,
    7168, 163840, 18432, **MLA, att_q_lora_rank=1536, att_indexer__head_count=64, att_indexer__key_length=128,
    att_indexer__top_k=2048, **MOE_V3)  # fmt: skip

# Recurrent: no keys and values at all --------------------------------------------------------------------------------
add("mamba-130m", "mamba", "recurrent", "state-spaces/mamba-130m-hf", 24, 0, None, 768, 1048576, 0,
    ssm__conv_kernel=4, ssm__inner_size=1536, ssm__state_size=16, ssm__time_step_rank=48)  # fmt: skip
add("codestral-mamba-7b", "mamba2", "recurrent", "mistralai/Mamba-Codestral-7B-v0.1", 64, 0, None, 4096, 1048576, 0,
    ssm__conv_kernel=4, ssm__inner_size=8192, ssm__state_size=128, ssm__time_step_rank=128, ssm__group_count=8)  # fmt: skip
add("rwkv-6-1.6b", "rwkv6", "recurrent", "RWKV/rwkv-6-world-1b6", 24, 0, None, 2048, 1048576, 7168, wkv__head_size=64,
    time_mix_extra_dim=32, time_decay_extra_dim=64)  # fmt: skip
add("rwkv-7-0.4b", "rwkv7", "recurrent", "fla-hub/rwkv7-0.4B-world", 24, 0, None, 1024, 1048576, 4096,
    wkv__head_size=64, att_decay_lora_rank=64, att_iclr_lora_rank=64, att_value_residual_mix_lora_rank=32,
    att_gate_lora_rank=128)  # fmt: skip

# Hybrid: some layers recurrent, some with keys and values ------------------------------------------------------------
add("jamba-v0.1", "jamba", "hybrid: Mamba", "ai21labs/Jamba-v0.1", 32, 32, at(32, [4, 12, 20, 28], 8), 4096, 262144,
    14336, ssm__conv_kernel=4, ssm__inner_size=8192, ssm__state_size=16, ssm__time_step_rank=256, expert_count=16,
    expert_used_count=2)  # fmt: skip
add("lfm2-1.2b", "lfm2", "hybrid: short convolutions", "LiquidAI/LFM2-1.2B", 16, 32, at(16, [2, 5, 8, 10, 12, 14], 8),
    2048, 128000, 8192, shortconv__l_cache=3)  # fmt: skip
add("lfm2-8b-a1b", "lfm2moe", "hybrid: short convolutions", "LiquidAI/LFM2-8B-A1B", 24, 32,
    at(24, [2, 6, 10, 14, 18, 21], 8), 2048, 128000, 7168, shortconv__l_cache=3, expert_count=32, expert_used_count=4,
    expert_feed_forward_length=1792, leading_dense_block_count=2, expert_gating_func=2)  # fmt: skip
add("granite-4.0-h-tiny", "granitehybrid", "hybrid: Mamba 2", "ibm-granite/granite-4.0-h-tiny", 40, 12,
    at(40, [5, 15, 25, 35], 4), 1536, 131072, 512, ssm__conv_kernel=4, ssm__inner_size=3072, ssm__state_size=128,
    ssm__time_step_rank=48, ssm__group_count=1, expert_count=64, expert_used_count=6,
    expert_feed_forward_length=512, expert_shared_feed_forward_length=1024)  # fmt: skip
NEMOTRON = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
add("nemotron-h-8b", "nemotron_h", "hybrid: Mamba 2, layers that do one thing each", "nvidia/Nemotron-H-8B-Base-8K", 52,
    32, [8 * (c == "*") for c in NEMOTRON], 4096, 8192, [21504 * (c == "-") for c in NEMOTRON], **head(128),
    ssm__conv_kernel=4, ssm__inner_size=8192, ssm__state_size=128, ssm__time_step_rank=128, ssm__group_count=8)  # fmt: skip
add("falcon-h1-0.5b", "falcon-h1", "hybrid: Mamba 2 beside attention in every layer", "tiiuae/Falcon-H1-0.5B-Base", 36,
    8, 2, 1024, 16384, 2048, **head(64), ssm__conv_kernel=4, ssm__inner_size=1536, ssm__state_size=128,
    ssm__time_step_rank=24, ssm__group_count=1)  # fmt: skip
DELTA = {"ssm__conv_kernel": 4, "ssm__state_size": 128, "ssm__group_count": 16}
add("qwen3-next-80b-a3b", "qwen3next", "hybrid: DeltaNet, every 4th layer attends", "Qwen/Qwen3-Next-80B-A3B-Instruct",
    48, 16, 2, 2048, 262144, 5120, **head(256), **DELTA, ssm__inner_size=4096, ssm__time_step_rank=32, expert_count=512,
    expert_used_count=10, expert_feed_forward_length=512, expert_shared_feed_forward_length=512,
    rope__dimension_count=64)  # fmt: skip
add("qwen3.5-27b", "qwen35", "hybrid: DeltaNet, every 4th layer attends", "Qwen/Qwen3.5-27B", 64, 24, 4, 5120, 262144,
    17408, **head(256), **DELTA, ssm__inner_size=6144, ssm__time_step_rank=48, full_attention_interval=4,
    rope__dimension_count=64, rope__dimension_sections=[11, 11, 10, 0])  # fmt: skip
KIMI = at(27, [3, 7, 11, 15, 19, 23, 26], 1)
add("kimi-linear-48b-a3b", "kimi-linear", "hybrid: delta attention and latent attention",
    "moonshotai/Kimi-Linear-48B-A3B-Instruct", 27, 32, KIMI, 2304, 1048576, 9216, **MLA, kda__head_dim=128,
    ssm__conv_kernel=4, expert_count=256, expert_used_count=8, expert_feed_forward_length=1024, expert_shared_count=1,
    leading_dense_block_count=1, expert_gating_func=2)  # fmt: skip
add("minimax-text-01", "minimax-01", "hybrid: linear attention, every 8th layer attends", "MiniMaxAI/MiniMax-Text-01",
    80, 64, 8, 6144, 10240000, 9216, **head(128), rope__dimension_count=64, expert_count=32, expert_used_count=2,
    residual_scale=1.0)  # fmt: skip

# Encoders, diffusion, encoder-decoders -------------------------------------------------------------------------------
add("bert-base", "bert", "encoder", "google-bert/bert-base-uncased", 12, 12, None, 768, 512, 3072, att_causal=False)
add("embeddinggemma-300m", "gemma-embedding", "encoder with a window", "google/embeddinggemma-300m", 24, 3, 1, 768, 2048,
    1152, **head(256), att_sliding_window=512, att_causal=False)  # fmt: skip
add("dream-7b", "dream", "diffusion", "Dream-org/Dream-v0-Base-7B", 28, 28, 4, 3584, 131072, 18944)
add("flan-t5-base", "t5", "encoder-decoder", "google/flan-t5-base", 12, 12, 12, 768, 512, 2048, **head(64),
    decoder_block_count=12, att_relative_buckets_count=32, decoder_start_token_id=0)  # fmt: skip

# Unknown architectures ------------------------------------------------------------------------------------------------
add("unknown-ordinary", "unheard-of", "unknown: counted as ordinary attention", "made", 24, 16, 4, 2048, 65536, 8192)
add("unknown-hybrid", "unheard-of-too", "unknown: the file says which layers attend", "made", 24, 16, 4, 2048, 65536,
    8192, **DELTA, ssm__inner_size=4096, full_attention_interval=4)  # fmt: skip

# Sources that confirm the numbers that determine a cache (layers, KV heads, head lengths, windows, kinds of layers,
# ranks, state sizes). "Default" means the default values of a model's configuration class.
_HF = "transformers 5.24.0, default of {}"
_LIT = "litgpt 0.5.13, litgpt/config.py"
_COPY = "a copy of its config.json in public source code"
CHECKED: dict[str, str] = {
    **dict.fromkeys(
        ["pythia-1.4b", "llama-2-7b", "phi-2", "olmo-2-7b", "llama-3.1-8b", "llama-3.1-405b", "llama-3.2-1b",
         "mistral-7b-v0.3", "mixtral-8x7b", "qwen2.5-0.5b", "qwen2.5-7b", "falcon-7b", "falcon-40b", "gemma-2b",
         "qwen3-0.6b", "qwen3-235b-a22b", "gemma-2-9b", "gemma-2-27b", "gemma-3-1b", "gemma-3-27b", "phi-3-mini-4k"],
        _LIT,
    ),
    "smollm2-135m": "the GGUF file that `teachllama fetch smollm2-135m` downloads",
    "gemma-3-270m": "the GGUF file that `teachllama fetch gemma3-270m` downloads",
    **{
        name: _HF.format(cls)
        for name, cls in {
            "gpt-2": "GPT2Config", "qwen1.5-moe-a2.7b": "Qwen2MoeConfig", "dots.llm1": "Dots1Config",
            "glm-4-9b": "GlmConfig", "glm-4-9b-0414": "Glm4Config", "starcoder2-3b": "Starcoder2Config",
            "smollm3-3b": "SmolLM3Config", "ernie-4.5-0.3b": "Ernie4_5Config", "seed-oss-36b": "SeedOssConfig",
            "minimax-m2": "MiniMaxM2Config", "glm-4.5-air": "Glm4MoeConfig (46 layers, and the one that drafts)",
            "olmo-3-7b": "Olmo3Config", "gpt-oss-120b": "GptOssConfig", "gemma-3n-e4b": "Gemma3nTextConfig",
            "llama-4-scout": "Llama4TextConfig", "deepseek-v3": "DeepseekV3Config", "deepseek-v3-old":
            "DeepseekV3Config", "minicpm3-4b": "MiniCPM3Config", "deepseek-v3.2": "DeepseekV32Config",
            "codestral-mamba-7b": "Mamba2Config", "jamba-v0.1": "JambaConfig", "qwen3-next-80b-a3b": "Qwen3NextConfig",
            "bert-base": "BertConfig",
        }.items()
    },
    **dict.fromkeys(
        ["kimi-k2", "mimo-v2-flash", "falcon-h1-0.5b", "command-r7b", "qwen3.5-27b", "lfm2-1.2b", "lfm2-8b-a1b",
         "nemotron-h-8b", "kimi-linear-48b-a3b", "gemma-3n-e2b", "granite-4.0-h-tiny", "openelm-270m", "dbrx",
         "apertus-8b"],
        _COPY,
    ),
    "gpt-oss-20b": _HF.format("GptOssConfig, with 24 layers"),
    "exaone-4.0-32b": "its model card",
}  # fmt: skip
