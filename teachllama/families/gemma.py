"""Gemma 2 and 3: four norms per layer, GELU, embeddings times sqrt(dim), layers with and without a sliding window."""

import math
from dataclasses import replace

from teachllama.families.common import NORMS, POST_NORMS, QK_NORMS, Family, with_attention
from teachllama.metadata import Metadata
from teachllama.spec import Activation, ModelSpec, RopePairs


def scaled(m: Metadata, spec: ModelSpec, wide_layers: int) -> ModelSpec:
    """Scales embeddings by sqrt(dim) and scores by 1 / sqrt(head_dim), and sets the soft cap of logits.

    The 27B model, recognized by its number of layers (`wide_layers`), scales scores by 1 / sqrt(dim / n_heads).
    """
    spec = replace(
        spec,
        embedding_scale=math.sqrt(spec.dim),
        logit_softcap=m.real("final_logit_softcapping", 0.0 if wide_layers == 62 else 30.0),
    )
    attention = spec.layers[0].attention
    wide = len(spec.layers) == wide_layers
    return with_attention(spec, scale=(spec.dim // attention.n_heads if wide else attention.head_dim) ** -0.5)


def gemma2(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """Applies soft caps to attention scores and logits."""
    return with_attention(scaled(m, spec, 46), softcap=m.real("attn_logit_softcapping", 50.0))


GEMMA2 = Family(
    "gemma2",
    "soft caps on scores and logits; every other layer slides; four norms; GELU",
    "https://arxiv.org/abs/2408.00118",
    pairs=RopePairs.NEOX,
    activation=Activation.GELU,
    norms=NORMS | POST_NORMS,
    slides=True,
    change=gemma2,
)
GEMMA3 = Family(
    "gemma3",
    "five layers in six slide and rotate faster; QK norm; four norms; GELU",
    "https://arxiv.org/abs/2503.19786",
    pairs=RopePairs.NEOX,
    activation=Activation.GELU,
    norms=NORMS | POST_NORMS | QK_NORMS,
    slides=True,
    local_rope_base=10_000.0,
    local_unscaled=True,
    change=lambda m, spec: scaled(m, spec, 62),
)
