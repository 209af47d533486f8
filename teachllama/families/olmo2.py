"""OLMo 2 and 3: norms after the branches and none before; queries and keys normalized over all heads at once."""

from dataclasses import replace

from teachllama.families.common import POST_NORMS, QK_NORMS, Family, all_layers
from teachllama.metadata import Metadata
from teachllama.spec import LayerSpec, ModelSpec, RopePairs


def plain_windows(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """Rotates layers with a sliding window without any scaling, including that of magnitude."""

    def change(layer: LayerSpec) -> LayerSpec:
        a = layer.attention
        rope = a.rope if a.rope is None or a.window is None else replace(a.rope, magnitude=1.0)
        return replace(layer, attention=replace(a, rope=rope))

    return all_layers(spec, change)


OLMO2 = Family(
    "olmo2",
    "norms after the branches; QK norm over all heads",
    "https://arxiv.org/abs/2501.00656",
    pairs=RopePairs.NEOX,
    norms=POST_NORMS | QK_NORMS,
    slides=True,
    local_unscaled=True,
    change=plain_windows,
)
