"""DeepSeek V2 and V3: latent attention, experts in groups, and one more that every token visits.

What is cached of a position is one compressed key, of which the first numbers are also the value; queries are brought
into the same terms (`k_b`), and what attention gives is taken out of them (`v_b`). https://arxiv.org/abs/2405.04434
"""

import math
from dataclasses import replace

from teachllama.errors import UnsupportedModelError
from teachllama.families.common import Family, all_layers, rope_of, yarn_magnitude
from teachllama.metadata import Metadata
from teachllama.spec import LayerSpec, ModelSpec, Scores


def latent(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """Latent attention, shared experts, and YaRN's second factor, which sharpens scores."""
    if not m.has("attention.key_length_mla"):
        raise UnsupportedModelError(
            "metadata has no 'deepseek2.attention.key_length_mla': an older file whose latent attention was not split "
            "(attn_kv_b); convert the model again with a newer llama.cpp"
        )
    rank, head_dim = m.number("attention.kv_lora_rank"), m.number("attention.key_length_mla")
    m.number("attention.value_length_mla")
    m.number("attention.value_length", 0, least=0)  # the same as the rank, which counts
    m.number("attention.q_lora_rank", 0, least=0)
    key = spec.layers[0].attention.head_dim
    rope = rope_of(DEEPSEEK2, m, key, sliding=False, factors={}, first=rank)
    if rank + rope.dim != key:
        raise m.fail("attention.key_length", key, f"kv_lora_rank {rank} + rope.dimension_count {rope.dim}")
    multiplier, factor = m.real("rope.scaling.yarn_log_multiplier", 0.0), m.real("rope.scaling.factor", 0.0) or 1.0
    sharper = rope.magnitude**2
    scaling = m.text("rope.scaling.type", "linear")
    if scaling == "yarn":
        if multiplier:  # mscale and mscale_all_dim cancel each other in the rotation, and act on scores alone
            rope = replace(rope, magnitude=rope.magnitude / yarn_magnitude(factor))
            sharper = (rope.magnitude * (1 + multiplier * math.log(factor))) ** 2
    elif scaling != "none" and factor != 1:
        raise m.fail("rope.scaling.type", scaling, "'yarn', the one scaling that DeepSeek's files use")
    n_shared = m.number("expert_shared_count", 0, least=0)
    normalize = m.flag("expert_weights_norm", False)
    # GLM 4.7 Flash is this architecture too; its first files don't say how their routers score.
    glm = len(spec.layers) in (47, 48) and spec.vocab_size == 154_880 and not m.number("expert_gating_func", 0, least=0)

    def change(layer: LayerSpec) -> LayerSpec:
        a, ffn = layer.attention, layer.ffn
        a = replace(a, value_dim=rank, scale=sharper / math.sqrt(head_dim), rope=rope, latent=True)
        if ffn.experts is not None:
            scores = Scores.SIGMOID if glm else ffn.experts.scores
            ffn = replace(ffn, experts=replace(ffn.experts, normalize=normalize, scores=scores))
            ffn = replace(ffn, shared_hidden_dim=n_shared * ffn.hidden_dim)
        return LayerSpec(a, ffn)

    return all_layers(spec, change)


DEEPSEEK2 = Family(
    "deepseek2",
    "latent attention: one compressed key a position; experts in groups; shared experts",
    "https://arxiv.org/abs/2405.04434",
    change=latent,
)
