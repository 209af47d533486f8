"""Qwen 2 and 2.5: biases on queries, keys and values; and its mixture of experts, with one that every token visits."""

from dataclasses import replace

from teachllama.families.common import Family, all_layers
from teachllama.metadata import Metadata
from teachllama.spec import FeedForwardSpec, LayerSpec, ModelSpec, RopePairs

BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
QWEN2 = Family(
    "qwen2", "biases on q, k and v", "https://arxiv.org/abs/2407.10671", pairs=RopePairs.NEOX, required=BIASES
)


def one_shared_expert(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """The shared expert's length, and the experts' where the file gives it for all of them together."""
    dense = m.number("feed_forward_length")
    shared = m.number("expert_shared_feed_forward_length", 0, least=0) or dense

    def change(layer: LayerSpec) -> LayerSpec:
        ffn: FeedForwardSpec = layer.ffn
        if ffn.experts is None:
            return layer
        length = m.number("expert_feed_forward_length", dense // ffn.experts.n_used)
        return replace(layer, ffn=replace(ffn, hidden_dim=length, shared_hidden_dim=shared))

    return all_layers(spec, change)


QWEN2MOE = Family(
    "qwen2moe",
    "experts, and a shared one behind a gate; biases on q, k and v",
    "https://arxiv.org/abs/2407.10671",
    pairs=RopePairs.NEOX,
    required=BIASES,
    normalize_experts=False,
    change=one_shared_expert,
)
