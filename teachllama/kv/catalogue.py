"""What each architecture caches, from the metadata of a GGUF file alone: the numbers that the rule needs.

Most of the work is to find numbers: which layers slide, which keep no cache, which share one, how long keys and values
are. Tables hold what the files of an architecture leave out.

Keys and defaults: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's `load_hparams`. What each
architecture changes: llama.cpp's `src/models/*.cpp` (`load_arch_hparams`) and `create_memory` in `src/llama-model.cpp`,
as vendored in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from teachllama.errors import GGUFError, UnsupportedModelError
from teachllama.kv.formula import MAX_SEQ_LEN, KVLayout, LayerKV, format_nbytes
from teachllama.metadata import MAX_LAYERS, Metadata

# The tables below hold what files leave out.

# Which layers slide if the file gives the window but no list: of every n layers the last attends to everything (0: none
# does). Files may have another n, or one flag per layer, in attention.sliding_window_pattern, which takes precedence.
SWA_PERIOD = {
    "afmoe": 4, "cohere2": 4, "cohere2moe": 4, "exaone-moe": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gemma3n": 5,
    "gpt-oss": 2, "laguna": 4, "lfm2": 0, "llama4": 4, "mellum": 4, "muse-glimmer": 4, "olmo2": 4, "plamo3": 8,
    "smallthinker": 4,
}  # fmt: skip
SWA_FULL_FIRST = {"cohere2moe", "laguna", "smallthinker"}  # here the first of every n attends to everything
SWA_DEFAULT_WINDOW = {"gemma2": 4096, "llama4": 8192}  # for files without attention.sliding_window
SWA_IGNORED = {"deepseek2-ocr", "phi3", "phimoe"}  # files have the key, but llama.cpp attends to everything

RECURRENT = {"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"}
# Hybrids mark a recurrent layer by 0 KV heads. These do not: every n-th layer attends, unless the file lists
# attention.recurrent_layers or gives another n in full_attention_interval.
FULL_ATTENTION_INTERVAL = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
HYBRID = {
    "bailingmoe3", "falcon-h1", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe",
    "nemotron_h", "nemotron_h_moe", "plamo2", *FULL_ATTENTION_INTERVAL,
}  # fmt: skip
ENCODERS = {
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert",
    "nomic-bert-moe", "t5encoder", "wavtokenizer-dec",
}  # fmt: skip
DIFFUSION = {"dream", "llada", "llada-moe", "rnd1"}
# Multi-head latent attention that llama.cpp always caches as full heads.
MLA_UNCOMPRESSED = {"minicpm3", "plm"}
# Ordinary attention, without a special rule. An architecture in none of these tables is counted likewise, with a note.
ORDINARY = {
    "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chameleon",
    "chatglm", "codeshell", "cogvlm", "command-r", "dbrx", "deci", "deepseek", "deepseek2", "deepseek32", "dflash",
    "dots1", "dots3note", "eagle3", "ernie4_5", "ernie4_5-moe", "exaone", "falcon", "gemma", "gemma4",
    "gemma4-assistant", "glm-dsa", "glm4", "glm4moe", "gpt2", "gptj", "gptneox", "granite", "granite_swa",
    "granitemoe", "graniteswitch", "grok", "grovemoe", "hrm_text", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl",
    "hy_v3", "hy_v4", "internlm2", "jais", "jais2", "llama", "llama-embed", "maincoder", "maple", "mimo2",
    "minicpm", "minimax-m2", "minimax-m3", "mistral3", "mistral4", "mpt", "nanbeige", "nemotron", "olmo", "olmoe",
    "openelm", "orion", "paddleocr", "pangu-embedded", "phi2", "plamo", "pockettts", "qwen", "qwen2", "qwen2moe",
    "qwen2vl", "qwen3", "qwen3moe", "qwen3tts", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smollm3",
    "spark2_5", "stablelm", "starcoder", "starcoder2", "step35", "t5", "talkie", "xverse",
}  # fmt: skip
OTHER_FILES = {  # by general.architecture or general.type
    "clip": "a multimodal projector", "mmproj": "a multimodal projector", "adapter": "an adapter (LoRA)",
    "imatrix": "an importance matrix",
}  # fmt: skip
# Keys that a file has only if some of its layers keep a recurrent state.
STATE_KEYS = ("ssm.inner_size", "ssm.state_size", "wkv.head_size", "kda.head_dim", "shortconv.l_cache")
KNOWN = ORDINARY | SWA_PERIOD.keys() | SWA_IGNORED | RECURRENT | HYBRID | ENCODERS | DIFFUSION | MLA_UNCOMPRESSED


def kv_layout_from_metadata(metadata: Mapping[str, Any], keys: Metadata | None = None) -> KVLayout:
    """Reads the shape of the KV cache from a GGUF file's metadata.

    Args:
        metadata: key -> value, as `GGUFFile.metadata` has it; arrays may be NumPy arrays or lists.
        keys: a reader of the same metadata, which then records what was read here.

    Raises:
        GGUFError: a key is missing, of the wrong type or size, or contradicts another.
        UnsupportedModelError: not a language model, or one whose cache follows none of the rules known here.
    """
    arch = _language_model(metadata)
    keys, notes = keys or Metadata(metadata, arch), _Notes()
    keys.n_layers = n = keys.number("block_count", most=MAX_LAYERS)
    native = keys.number("context_length", most=MAX_SEQ_LEN)
    n_nextn = keys.number("nextn_predict_layers", 0, least=0, most=n)
    keys.n_trunk = trunk = n if n_nextn == n else n - n_nextn
    if arch not in KNOWN:
        notes.doubt(
            f"{arch!r} is not an architecture known here: counted as what its metadata say of themselves, and as "
            "ordinary attention in all else"
        )

    heads = _kv_heads(keys, notes)
    lengths, swa_lengths = _lengths(keys, heads, notes)
    window, slides = _windows(keys, notes)
    index = _index_lengths(keys, heads, notes)
    layers = [
        LayerKV(heads[i], *(swa_lengths if slides[i] else lengths), window if slides[i] else None, index[i])
        for i in range(n)
    ]
    if trunk < n:
        layers[trunk:] = [LayerKV(0, *lengths, None)] * (n - trunk)
        notes.append(f"{n - trunk} of {n} layers only draft tokens ahead (multi-token prediction); not counted")
    if arch == "t5":
        layers = layers[:1] * keys.number("decoder_block_count", n, most=MAX_LAYERS)
        notes.append(
            "an encoder-decoder: the decoder's own cache is counted; an engine that also keeps the keys and values of "
            "cross-attention needs as many bytes again for each token of the encoded text"
        )
    if arch == "nanbeige":  # runs its layers several times over, each time with a cache of its own
        layers *= keys.number("num_loops", 1, most=MAX_LAYERS // n)
    if arch == "graniteswitch":  # one head more, which keeps the choice of adapter for each token
        layers.append(LayerKV(1, *lengths, None))
    state_nbytes = _state_nbytes(keys, heads, notes)
    return KVLayout(arch, tuple(layers), native, tuple(notes), state_nbytes, tuple(notes.doubts))


class _Notes(list[str]):
    """Notes for readers of the figures; `doubts` are those notes that mean the figures may be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.doubts: list[str] = []

    def doubt(self, note: str) -> None:
        """Adds a note that is a doubt."""
        self.append(note)
        self.doubts.append(note)


def _language_model(metadata: Mapping[str, Any]) -> str:
    """The architecture; raises for files that hold something other than a language model."""
    arch, kind, part = (metadata.get(key) for key in ("general.architecture", "general.type", "split.no"))
    if isinstance(part, int) and part > 0:
        raise UnsupportedModelError("this is a later part of a split model; give its first, which has the metadata")
    for found in (arch, kind):
        if isinstance(found, str) and found in OTHER_FILES:
            raise UnsupportedModelError(f"{OTHER_FILES[found]} has no KV cache; give the language model's file")
    if not isinstance(arch, str) or not arch:
        raise GGUFError(
            f"metadata 'general.architecture' is {reprlib.repr(arch)}; expected an architecture's name, such as 'llama'"
        )
    if arch == "deepseek4" or f"{arch}.attention.compress_ratios" in metadata:
        # llama.cpp's src/models/deepseek4.cpp and src/llama-kv-cache-dsv4.cpp. Its reservation could not be measured:
        # the version that the corpus is compared with does not load these models. A layout has one row per position;
        # this needs two.
        raise UnsupportedModelError(
            f"{arch} compresses older positions by a ratio per layer (attention.compress_ratios). DeepSeek V4 keeps a "
            "window of keys in every layer, one compressed key for each 4 or 128 older positions, index keys, and the "
            "compression's state. None of it is counted here, because it could not be compared with an engine: run a "
            "llama.cpp that loads the file, and read the cache sizes that it prints"
        )
    return arch


def _kv_heads(keys: Metadata, notes: _Notes) -> list[int]:
    """KV heads of every layer; 0 where a layer keeps no cache of its own."""
    arch, n, trunk = keys.arch, keys.n_layers, keys.n_trunk
    if arch in RECURRENT:
        return [0] * n
    if arch in ENCODERS or arch in DIFFUSION:
        notes.append(f"{'an encoder' if arch in ENCODERS else 'a diffusion model'}: it keeps no KV cache")
        return [0] * n
    if arch not in KNOWN and keys.raw("attention.causal") is False:
        notes.doubt("the file says that its attention is not causal: counted as an encoder, which keeps no KV cache")
        return [0] * n
    query = keys.per_layer("attention.head_count", ())
    heads = list(keys.per_layer("attention.head_count_kv", query))
    if not heads:
        keys.number("attention.head_count")  # raises: neither key is present
    if not any(heads) and arch in KNOWN and arch not in HYBRID:
        raise keys.fail("attention.head_count_kv", 0, "1 or more in some layer")
    for i, q in enumerate(query):
        if heads[i] > q > 0:
            raise keys.fail("attention.head_count_kv", heads[i], f"at most the {q} query heads of layer {i}")

    recurrent = keys.flags("attention.recurrent_layers")
    # A known architecture's interval is read if llama.cpp reads it; an unknown one's if the file has it.
    by_interval = arch in FULL_ATTENTION_INTERVAL or (arch not in KNOWN and keys.has("full_attention_interval"))
    if recurrent is None and by_interval:
        every = keys.number("full_attention_interval", FULL_ATTENTION_INTERVAL.get(arch))
        recurrent = [int(i < trunk and (i + 1) % every != 0) for i in range(n)]
    state_keys = [key for key in STATE_KEYS if keys.has(key)]
    if arch not in KNOWN and state_keys and recurrent is None and all(heads):
        notes.doubt(
            f"the file describes a recurrent state ({arch}.{state_keys[0]}), but not which layers keep it: every layer "
            "is counted as attention, so the true figure may be lower"
        )
    if recurrent is not None:
        heads = [0 if r else kv for kv, r in zip(heads, recurrent, strict=True)]

    # Later layers that read the cache of an earlier one. gemma3n: llama.cpp has the 20 as a constant.
    shared = keys.number("attention.shared_kv_layers", max(0, n - 20) if arch == "gemma3n" else 0, least=0, most=n)
    if arch == "gemma4-assistant":
        shared = n
        notes.append("a drafting model: it reads the cache of the model it drafts for, and keeps none")
    elif shared:
        notes.append(f"the last {shared} of {n} layers read the cache of earlier layers and add nothing")
    return heads[: n - shared] + [0] * shared


def _lengths(keys: Metadata, heads: Sequence[int], notes: _Notes) -> tuple[tuple[int, int], tuple[int, int]]:
    """(key length, value length) for ordinary layers, and for sliding-window layers."""
    if not any(heads):
        return (0, 0), (0, 0)
    query_heads = next((q for q in keys.per_layer("attention.head_count", ()) if q), 0)
    default: int | None = None
    if query_heads and keys.has("embedding_length"):
        default = keys.number("embedding_length") // query_heads or None
    key = keys.number("attention.key_length", default)
    key_swa = keys.number("attention.key_length_swa", key)
    if keys.has("attention.key_length_mla") and keys.has("attention.value_length_mla"):
        notes.append(f"latent attention: each layer caches one compressed key of {key} numbers, which holds the values")
        return (key, 0), (key_swa, 0)
    value = keys.number("attention.value_length", default)
    if keys.has("attention.kv_lora_rank"):
        if keys.arch in MLA_UNCOMPRESSED:
            notes.append("latent attention, which engines cache uncompressed for this architecture, as counted here")
        else:
            rank, rope = keys.number("attention.kv_lora_rank"), keys.number("rope.dimension_count", 0, least=0)
            notes.append(
                "latent attention in an older file, without attention.key_length_mla: engines cache it uncompressed, "
                f"as counted here; a newer conversion needs {rank + rope} numbers a token and layer in place of "
                f"{max(heads) * (key + value)}"
            )
    return (key, value), (key_swa, keys.number("attention.value_length_swa", value))


def _windows(keys: Metadata, notes: _Notes) -> tuple[int | None, Sequence[int]]:
    """The sliding window, and whether each layer slides."""
    arch, n, trunk = keys.arch, keys.n_layers, keys.n_trunk
    window = keys.number("attention.sliding_window", SWA_DEFAULT_WINDOW.get(arch, 0), least=0, most=2**32)
    if not window or arch in ENCODERS:
        return None, [0] * n
    if arch in SWA_IGNORED:
        notes.append(f"the file gives a sliding window of {window}, which engines do not apply to {arch} models")
        return None, [0] * n
    flags = keys.flags("attention.sliding_window_pattern")
    if flags is not None:
        return window, flags
    if arch not in SWA_PERIOD and not keys.has("attention.sliding_window_pattern"):
        notes.doubt(
            f"the file gives a sliding window of {window}, but not which layers slide: every layer is counted as if it "
            "attended to everything, so the true figure may be lower"
        )
        return None, [0] * n
    period = keys.number("attention.sliding_window_pattern", SWA_PERIOD.get(arch), least=0)
    full = 0 if arch in SWA_FULL_FIRST else period - 1
    return window, [int(i < trunk and (period == 0 or i % period != full)) for i in range(n)]


def _index_lengths(keys: Metadata, heads: Sequence[int], notes: _Notes) -> list[int]:
    """The index key of sparse attention (DeepSeek 3.2 and after) in every layer; 0 for layers without one."""
    length = keys.number("attention.indexer.key_length", 0, least=0)
    if keys.arch == "glm5-next":
        length *= 3  # caches key, gate and pooled key
    if not length:
        return [0] * keys.n_layers
    first = keys.number("leading_dense_block_count", 0, least=0) if keys.arch == "minimax-m3" else 0
    owns = keys.flags("attention.indexer.types") or [1] * keys.n_layers
    lengths = [length if heads[i] and owns[i] and first <= i < keys.n_trunk else 0 for i in range(keys.n_layers)]
    notes.append(f"sparse attention: {sum(map(bool, lengths))} layers also cache an index key of {length} numbers")
    return lengths


def _state_nbytes(keys: Metadata, heads: Sequence[int], notes: _Notes) -> int:
    """Bytes of recurrent state per session, at any length: llama.cpp's `n_embd_r` and `n_embd_s`, in f32."""
    arch, trunk = keys.arch, keys.n_trunk
    unknown = arch not in KNOWN and any(map(keys.has, (*STATE_KEYS, "full_attention_interval")))
    if arch not in RECURRENT and arch not in HYBRID and not unknown:
        return 0
    if unknown:  # the last layers may share the cache of earlier ones, which is not a state
        trunk -= keys.number("attention.shared_kv_layers", 0, least=0, most=trunk)
    feed_forward = keys.per_layer("feed_forward_length", ()) if arch.startswith("nemotron_h") else ()
    recurrent = [i for i in range(trunk) if arch == "falcon-h1" or not heads[i]]
    recurrent = [i for i in recurrent if not (feed_forward and feed_forward[i])]  # Nemotron's layers do one thing each
    if not recurrent:
        return 0

    def get(key: str, default: int = 0) -> int:
        return keys.number(key, default, least=0)

    dim, n_heads = get("embedding_length"), max(keys.per_layer("attention.head_count", (0,)))
    conv = max(0, get("ssm.conv_kernel") - 1)
    if head_size := get("wkv.head_size"):
        numbers = get("token_shift_count", 2) * dim + dim * head_size
    elif l_cache := get("shortconv.l_cache"):
        numbers = dim * (l_cache - 1)
    elif head_dim := get("kda.head_dim"):
        numbers = 3 * (conv or 3) * n_heads * head_dim + n_heads * head_dim**2
    elif arch == "minimax-01":
        numbers = n_heads * get("attention.key_length", dim // n_heads if n_heads else 0) ** 2
    else:
        inner, state = get("ssm.inner_size"), get("ssm.state_size")
        numbers = conv * (inner + 2 * get("ssm.group_count") * state) + state * inner
    nbytes = 4 * numbers * len(recurrent)
    size = f"{format_nbytes(nbytes)} a session in f32" if nbytes else "of a size the metadata does not give"
    beside = "beside" if arch == "falcon-h1" else "instead of"
    notes.append(
        f"{len(recurrent)} of {trunk} layers keep a recurrent state {beside} a KV cache: {size}, the same at any "
        "length, on top of the figures for the KV cache"
    )
    return nbytes
