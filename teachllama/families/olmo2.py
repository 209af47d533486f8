"""OLMo 2 and 3: norms after the branches and none before, and queries and keys normalized over all heads at once."""

from teachllama.families.common import POST_NORMS, QK_NORMS, Family
from teachllama.spec import RopePairs

OLMO2 = Family(
    "olmo2",
    "norms after the branches; QK norm over all heads",
    "https://arxiv.org/abs/2501.00656",
    pairs=RopePairs.NEOX,
    norms=POST_NORMS | QK_NORMS,
    local_unscaled=True,
)
