"""`ModelConfig`: a model's dimensions, read from a GGUF file's metadata and checked before anything is allocated.

Knows nothing of arrays. The KV-cache formula is in `kv_layout.py`, for any architecture; this file describes only the
models the engine runs. Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#standardized-key-value-pairs
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from teachllama.arch import arch_named
from teachllama.errors import GGUFError, UnsupportedModelError
from teachllama.kv_layout import KVLayout, kv_layout_from_metadata

MOST = 2**24  # no dimension of a real model comes near; keeps products far from overflow
_REQUIRED = object()


@dataclass(slots=True)
class ModelConfig:
    """A model's dimensions. `seq_len` is yours to lower before sessions are created; leave the rest alone."""

    arch: str
    name: str
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key and value heads; fewer than n_heads under grouped-query attention
    head_dim: int  # length of one head's query and key
    value_dim: int  # length of one head's value; the same as head_dim in almost every model
    dim: int  # length of the residual stream
    hidden_dim: int  # inner length of the feed-forward network
    vocab_size: int
    native_seq_len: int  # the context the model was trained for
    seq_len: int  # the context new sessions get: native_seq_len until you cap it
    norm_eps: float
    attention_scale: float  # multiplies q . k
    rope_dim: int  # how many of head_dim's numbers rotate
    rope_base: float
    rope_factor: float  # linear RoPE scaling: positions are divided by this
    logit_softcap: float  # 0: none
    kv_layout: KVLayout  # per layer: heads, lengths, window

    @property
    def kv_dim(self) -> int:
        """Numbers one position adds to one layer's keys: n_kv_heads * head_dim."""
        return self.n_kv_heads * self.head_dim


class _Reader:
    """Typed look-ups in one architecture's metadata; a wrong or missing value is a GGUFError that names its key."""

    def __init__(self, metadata: Mapping[str, Any], arch: str):
        self.metadata, self.arch = metadata, arch

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        key = f"{self.arch}.{key}"
        value = self.metadata.get(key, default)
        if value is _REQUIRED:
            raise GGUFError(f"the metadata has no {key!r}, which every {self.arch} model needs")
        if value is default:
            return value
        if kind is str and isinstance(value, str):
            return value
        if kind is int and type(value) is int and 0 < value <= MOST:
            return value
        if kind is float and type(value) in (int, float) and math.isfinite(value) and 0 <= value < 1e12:
            return float(value)
        raise GGUFError(
            f"metadata {key!r} is {value!r}; expected {'a positive' if kind is int else 'a'} {kind.__name__}"
        )


def config_from_metadata(metadata: Mapping[str, Any]) -> ModelConfig:
    """Reads and checks a model's dimensions.

    Raises:
        UnsupportedModelError: the architecture, or a feature the file asks for, is not one this engine runs.
        GGUFError: a key is missing, of the wrong type, or contradicts another.
    """
    if "general.architecture" not in metadata:
        raise GGUFError("the metadata has no 'general.architecture': not a model file?")
    arch = arch_named(metadata["general.architecture"])
    read = _Reader(metadata, arch.name)
    if read.get("expert_count", int, 1) > 1:
        raise UnsupportedModelError(f"{arch.name} with a mixture of experts is not supported; only dense models are")
    scaling = read.get("rope.scaling.type", str, "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedModelError(
            f"RoPE scaling {scaling!r} is not supported; supported: 'none', 'linear', and Llama 3.1's frequency factors"
        )
    n_layers, n_heads = read.get("block_count", int), read.get("attention.head_count", int)
    dim, native = read.get("embedding_length", int), read.get("context_length", int)
    layout = kv_layout_from_metadata(metadata)
    first = layout.layers[0]
    if any(
        (l.n_kv_heads, l.key_length, l.value_length) != (first.n_kv_heads, first.key_length, first.value_length)
        for l in layout.layers
    ):
        raise UnsupportedModelError("layers with different numbers or lengths of KV heads are not supported")
    if not first.n_kv_heads or n_heads % first.n_kv_heads:
        raise GGUFError(
            f"{n_heads} query heads cannot share {first.n_kv_heads} KV heads equally; the metadata is wrong"
        )
    rope_dim = read.get("rope.dimension_count", int, first.key_length)
    if rope_dim % 2 or rope_dim > first.key_length:
        raise GGUFError(f"rope.dimension_count is {rope_dim}; expected an even number up to {first.key_length}")
    # Gemma 3's 27B model alone scales by dim / n_heads instead of head_dim; llama.cpp tells it by its 62 layers.
    scaled_dim = dim / n_heads if arch.name == "gemma3" and n_layers == 62 else first.key_length
    rope_base = read.get("rope.freq_base", float, arch.default_rope_base)
    if rope_base < 1:
        raise GGUFError(f"rope.freq_base is {rope_base}; expected 1 or more (10000 is usual)")
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    return ModelConfig(
        arch=arch.name,
        name=str(metadata.get("general.name", "unnamed")),
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=first.n_kv_heads,
        head_dim=first.key_length,
        value_dim=first.value_length,
        dim=dim,
        hidden_dim=read.get("feed_forward_length", int),
        vocab_size=read.get("vocab_size", int, len(tokens)),
        native_seq_len=native,
        seq_len=native,
        norm_eps=read.get("attention.layer_norm_rms_epsilon", float),
        attention_scale=read.get("attention.scale", float, 1 / math.sqrt(scaled_dim)),
        rope_dim=rope_dim,
        rope_base=rope_base,
        rope_factor=(read.get("rope.scaling.factor", float, 1.0) or 1.0) if scaling == "linear" else 1.0,
        logit_softcap=read.get("final_logit_softcapping", float, 0.0),
        kv_layout=layout,
    )
