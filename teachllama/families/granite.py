"""Granite 3: four multipliers, for embeddings, attention scores, residual branches, and logits."""

from dataclasses import replace

from teachllama.families.common import Family, with_attention
from teachllama.metadata import Metadata
from teachllama.spec import ModelSpec


def multipliers(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """Applies Granite's four multipliers; 0 or a missing one means none.

    Heads rotate unless `rope.scaling.finetuned` is false.
    """
    spec = replace(
        spec,
        embedding_scale=m.real("embedding_scale", 0.0) or 1.0,
        residual_scale=m.real("residual_scale", 0.0) or 1.0,
        logit_scale=1 / (m.real("logit_scale") or 1.0),
    )
    if scale := m.real("attention.scale", 0.0):
        spec = with_attention(spec, scale=scale)
    return spec if m.flag("rope.scaling.finetuned", True) else with_attention(spec, rope=None)


GRANITE = Family(
    "granite",
    "four multipliers",
    "https://arxiv.org/abs/2408.13359",
    change=multipliers,
)
