"""Qwen 3: every head's query and key is normalized before it turns; and its mixture of experts."""

from dataclasses import replace

from teachllama.families.common import NORMS, QK_NORMS, Family, all_layers
from teachllama.metadata import Metadata
from teachllama.spec import LayerSpec, ModelSpec, RopePairs

PAPER = "https://arxiv.org/abs/2505.09388"
QWEN3 = Family(
    "qwen3", "QK norm; head_dim apart from dim / n_heads", PAPER, pairs=RopePairs.NEOX, norms=NORMS | QK_NORMS
)


def expert_length(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """The experts' length, where the file gives it for all of them together."""
    dense = m.number("feed_forward_length", 0, least=0)

    def change(layer: LayerSpec) -> LayerSpec:
        routing = layer.ffn.experts
        length = m.number("expert_feed_forward_length", dense // routing.n_used or None if routing else 1)
        return replace(layer, ffn=replace(layer.ffn, hidden_dim=length)) if routing else layer

    return all_layers(spec, change)


QWEN3MOE = Family(
    "qwen3moe",
    "many small experts; QK norm",
    PAPER,
    pairs=RopePairs.NEOX,
    norms=NORMS | QK_NORMS,
    change=expert_length,
)
