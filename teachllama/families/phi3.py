"""Phi 3 and 4: q, k and v in one matrix, gate and up in another, and LongRoPE's two sets of factors.

Files specify a sliding window, but it is not used here. Nor is it in llama.cpp, which notes that the converter's value
can't be trusted.
"""

from teachllama.families.common import Family
from teachllama.spec import RopePairs

PHI3 = Family(
    "phi3",
    "fused qkv and gate-up; LongRoPE",
    "https://arxiv.org/abs/2404.14219",
    pairs=RopePairs.NEOX,
)
