"""Qwen 3: each head's query and key is normalized before rotation. Also the mixture of experts."""

from teachllama.families.common import NORMS, QK_NORMS, Family
from teachllama.spec import RopePairs

PAPER = "https://arxiv.org/abs/2505.09388"
QWEN3 = Family(
    "qwen3", "QK norm; head_dim apart from dim / n_heads", PAPER, pairs=RopePairs.NEOX, norms=NORMS | QK_NORMS
)
QWEN3MOE = Family(
    "qwen3moe",
    "many small experts; QK norm",
    PAPER,
    pairs=RopePairs.NEOX,
    norms=NORMS | QK_NORMS,
    experts_share=True,
)
