"""Qwen 2 and 2.5: biases on queries, keys and values. Also the mixture of experts, with one shared by all tokens."""

from dataclasses import replace

from teachllama.families.common import Family, all_layers
from teachllama.metadata import Metadata
from teachllama.spec import ModelSpec, RopePairs

BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
QWEN2 = Family(
    "qwen2", "biases on q, k and v", "https://arxiv.org/abs/2407.10671", pairs=RopePairs.NEOX, required=BIASES
)


def one_shared_expert(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """Sets the shared expert's length, from its own key or else from that of a dense network."""
    shared = m.number("expert_shared_feed_forward_length", 0, least=0) or m.number("feed_forward_length")
    return all_layers(spec, lambda l: replace(l, ffn=replace(l.ffn, shared_hidden_dim=shared if l.ffn.experts else 0)))


QWEN2MOE = Family(
    "qwen2moe",
    "experts, and a shared one behind a gate; biases on q, k and v",
    "https://arxiv.org/abs/2407.10671",
    pairs=RopePairs.NEOX,
    required=BIASES,
    normalize_experts=False,
    experts_share=True,
    change=one_shared_expert,
)
