"""DeepSeek V2 and V3: latent attention, experts in groups, and a shared expert for every token.

One compressed key is cached per position; its first numbers are also the value. Queries are projected into the
compressed space (`k_b`), and the output of attention is projected back (`v_b`). https://arxiv.org/abs/2405.04434
"""

import math
from dataclasses import replace

from teachllama.errors import UnsupportedModelError
from teachllama.families.common import Family, all_layers, scaling_of, yarn_magnitude
from teachllama.metadata import Metadata
from teachllama.spec import LayerSpec, ModelSpec, Rope, Scores


def latent(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """Adds latent attention, shared experts, and YaRN's second factor, which sharpens scores."""
    if not m.has("attention.key_length_mla"):
        raise UnsupportedModelError(
            "metadata has no 'deepseek2.attention.key_length_mla': an older file whose latent attention was not split "
            "(attn_kv_b); convert the model again with a newer llama.cpp"
        )
    first = spec.layers[0].attention
    rope, key, heads = first.rope, first.head_dim, {layer.attention.n_kv_heads for layer in spec.layers}
    assert rope is not None
    rank, head_dim = m.number("attention.kv_lora_rank"), m.number("attention.key_length_mla")
    value_dim, q_rank = m.number("attention.value_length_mla"), m.number("attention.q_lora_rank", 0, least=0)
    if rank + rope.dim != key:
        raise m.fail("attention.key_length", key, f"kv_lora_rank {rank} + rope.dimension_count {rope.dim}")
    if (found := m.number("attention.value_length", rank)) != rank:
        raise m.fail("attention.value_length", found, f"{rank}, the kv_lora_rank")
    if head_dim <= rope.dim:
        raise m.fail("attention.key_length_mla", head_dim, f"more than rope.dimension_count, {rope.dim}")
    if heads != {1}:
        raise m.fail("attention.head_count_kv", max(heads), "1: all heads share one compressed key")
    rope, sharper = turned(m, replace(rope, first=rank))
    n_shared = m.number("expert_shared_count", 0, least=0)
    # The first files of GLM 4.7 Lite don't name their score function. llama.cpp recognizes that model by its size.
    glm = not m.has("expert_gating_func") and len(spec.layers) in (47, 48) and spec.vocab_size == 154_880

    def change(layer: LayerSpec) -> LayerSpec:
        a = replace(layer.attention, value_dim=rank, scale=sharper / math.sqrt(head_dim), rope=rope, latent=True)
        a = replace(a, q_rank=q_rank, still_dim=head_dim - rope.dim, output_dim=value_dim)
        ffn = layer.ffn
        if ffn.experts is not None:
            experts = replace(ffn.experts, scores=Scores.SIGMOID) if glm else ffn.experts
            ffn = replace(ffn, experts=experts, shared_hidden_dim=n_shared * ffn.hidden_dim)
        return LayerSpec(a, ffn)

    return all_layers(spec, change)


def turned(m: Metadata, rope: Rope) -> tuple[Rope, float]:
    """The rotation and the factor for scores, as computed by llama.cpp's deepseek2.cpp and llama-context.cpp."""
    kind, factor = scaling_of(m)
    by_log = m.real("rope.scaling.yarn_log_multiplier", 0.0) * math.log(factor)
    if kind != "yarn":
        return rope, (rope.magnitude * (1 + 0.1 * math.log(factor)) * (1 + by_log)) ** 2
    if by_log:  # mscale and mscale_all_dim cancel each other
        rope = replace(rope, magnitude=rope.magnitude / yarn_magnitude(factor))
    return rope, (rope.magnitude * (1 + by_log)) ** 2


DEEPSEEK2 = Family(
    "deepseek2",
    "latent attention: one compressed key a position; experts in groups; shared experts",
    "https://arxiv.org/abs/2405.04434",
    normalize_experts=False,
    routing_keys=True,
    change=latent,
)
