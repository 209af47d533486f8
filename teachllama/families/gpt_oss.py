"""gpt-oss: a learned sink in every head, biases everywhere, clamped experts, a sliding window in every other layer."""

from teachllama.families.common import Family
from teachllama.metadata import Metadata
from teachllama.spec import Activation, ModelSpec, RopePairs, Scores


def windowed(m: Metadata, spec: ModelSpec) -> ModelSpec:
    """Requires a window: without one, every layer would silently attend to everything."""
    m.number("attention.sliding_window")
    return spec


GPT_OSS = Family(
    "gpt-oss",
    "attention sinks; biases; clamped experts in MXFP4; every other layer slides",
    "https://arxiv.org/abs/2508.10925",
    pairs=RopePairs.NEOX,
    activation=Activation.SWIGLU_OAI,
    norms={"attn_norm": "attn_norm", "ffn_norm": "post_attention_norm"},  # despite its name, applied before the FFN
    required=(
        "attn_sinks.weight",
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "ffn_gate_inp.bias",
        "ffn_gate_exps.bias",
        "ffn_up_exps.bias",
        "ffn_down_exps.bias",
    ),
    scores=Scores.SOFTMAX_OF_CHOSEN,
    normalize_experts=False,
    slides=True,
    change=windowed,
)
