"""`ModelConfig`: a summary of a model's dimensions, from its spec. Independent of arrays and files."""

from __future__ import annotations

from dataclasses import dataclass

from teachllama.kv import KVLayout
from teachllama.spec import ModelSpec


@dataclass(slots=True)
class ModelConfig:
    """A model's dimensions. `seq_len` may be lowered before sessions are created; do not change the other fields.

    Where layers differ, these describe the first layer's attention and the last layer's feed-forward network: leading
    layers may be dense where all others have experts. `model.spec.layers` has every layer.
    """

    arch: str
    name: str
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key and value heads; fewer than n_heads under grouped-query attention
    head_dim: int  # length of one head's query and key
    value_dim: int  # length of one head's value; the same as head_dim in almost every model
    dim: int  # length of the residual stream
    hidden_dim: int  # inner length of the feed-forward network; of one expert where there are experts
    vocab_size: int
    native_seq_len: int  # the context the model was trained for
    seq_len: int  # default context of new sessions; native_seq_len unless lowered
    norm_eps: float
    attention_scale: float  # multiplies q . k
    rope_dim: int  # how many of head_dim's numbers rotate
    rope_base: float
    kv_layout: KVLayout  # per layer: heads, lengths, window
    n_experts: int = 0  # 0: a dense model
    n_experts_used: int = 0
    latent_value_dim: int = 0  # latent attention: values are this many leading numbers of the keys; 0: separate values

    @property
    def kv_dim(self) -> int:
        """Numbers one position adds to one layer's keys: n_kv_heads * head_dim."""
        return self.n_kv_heads * self.head_dim

    @classmethod
    def of(cls, spec: ModelSpec, layout: KVLayout, name: str, rope_base: float) -> ModelConfig:
        """The dimensions of a model with this spec and cache."""
        a, ffn = spec.layers[0].attention, spec.layers[-1].ffn
        return cls(
            arch=spec.family,
            name=name,
            n_layers=len(spec.layers),
            n_heads=a.n_heads,
            n_kv_heads=a.n_kv_heads,
            head_dim=a.head_dim,
            value_dim=a.value_dim,
            dim=spec.dim,
            hidden_dim=ffn.hidden_dim,
            vocab_size=spec.vocab_size,
            native_seq_len=layout.native_seq_len,
            seq_len=layout.native_seq_len,
            norm_eps=spec.norm_eps,
            attention_scale=a.scale,
            rope_dim=a.rope.dim if a.rope else 0,
            rope_base=rope_base,
            kv_layout=layout,
            n_experts=ffn.experts.n_experts if ffn.experts else 0,
            n_experts_used=ffn.experts.n_used if ffn.experts else 0,
            latent_value_dim=a.value_dim if a.latent else 0,
        )
