"""`ModelSpec`: what one model computes, layer by layer, as data.

A family (`families/`) builds it from a file's metadata. `forward.py`, the cache and the compiled kernels read it. Every
value has the same meaning on every backend, and an unknown value is an error where it is read. Independent of files and
arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Activation(Enum):
    """The function applied to a feed-forward network's gate before it multiplies the other branch."""

    SILU = "silu"  # x * sigmoid(x), https://arxiv.org/abs/1702.03118
    GELU = "gelu"  # the tanh form, https://arxiv.org/abs/1606.08415
    SWIGLU_OAI = "swiglu_oai"  # gpt-oss: both branches clamped at 7; gate * sigmoid(1.702 * gate) * (up + 1)


class RopePairs(Enum):
    """Which two numbers of a head rotate together."""

    INTERLEAVED = "interleaved"  # (2i, 2i + 1), as in RoPE's paper
    NEOX = "neox"  # (i, i + dim / 2), as in GPT-NeoX


class Scores(Enum):
    """How a router's outputs become the weights of the experts it chose."""

    SOFTMAX = "softmax"  # over all experts, then the largest are taken
    SOFTMAX_OF_CHOSEN = "softmax_of_chosen"  # the largest are taken, then softmax over those (gpt-oss)
    SIGMOID = "sigmoid"  # each expert independently (DeepSeek V3)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: pair i of a head rotates by position * frequencies[i] radians.

    All kinds of scaling (linear, Llama 3's factors, YaRN, LongRoPE) reduce to these frequencies and a magnitude.
    https://arxiv.org/abs/2104.09864, https://arxiv.org/abs/2309.00071, https://arxiv.org/abs/2402.13753
    """

    frequencies: tuple[float, ...]  # one per pair, float64
    pairs: RopePairs
    magnitude: float = 1.0  # multiplies cosine and sine
    first: int = 0  # the first number of a head that rotates; those before and after the pairs do not change
    long_frequencies: tuple[float, ...] | None = None  # LongRoPE: for sessions longer than original_seq_len
    long_magnitude: float = 1.0
    original_seq_len: int = 0

    @property
    def dim(self) -> int:
        """How many numbers of a head rotate."""
        return 2 * len(self.frequencies)

    def at_length(self, seq_len: int) -> tuple[tuple[float, ...], float]:
        """Frequencies and magnitude in a session of this length."""
        if self.long_frequencies is not None and seq_len > self.original_seq_len:
            return self.long_frequencies, self.long_magnitude
        return self.frequencies, self.magnitude


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One layer's attention. Latent attention keeps one key per position, and reads values from its first numbers."""

    n_heads: int
    n_kv_heads: int
    head_dim: int  # numbers of one cached key, and of one query; latent: rank + rotating part
    value_dim: int  # numbers of one value; latent: rank
    scale: float  # multiplies q . k
    rope: Rope | None
    window: int | None = None  # positions a token sees, its own included
    softcap: float = 0.0  # scores become softcap * tanh(scores / softcap); 0: no cap
    latent: bool = False  # values are the first value_dim numbers of the keys
    q_rank: int = 0  # latent: length of the compressed query; 0: queries aren't compressed
    still_dim: int = 0  # latent: numbers of a query's head that don't rotate, before they are mapped to the rank
    output_dim: int = 0  # latent: numbers of a head's output, after they are mapped from the rank


@dataclass(frozen=True, slots=True)
class Routing:
    """A mixture of experts: how a token chooses n_used of n_experts."""

    n_experts: int
    n_used: int
    scores: Scores
    normalize: bool  # chosen weights are divided by their sum
    scale: float = 1.0  # multiplies the chosen weights
    n_groups: int = 1  # DeepSeek V3: experts are in groups, and only the best n_groups_used are considered
    n_groups_used: int = 1


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """One layer's feed-forward network: down(activation(gate(h)) * up(h)), once or in a mixture of experts."""

    hidden_dim: int  # of one expert where there are experts
    activation: Activation
    experts: Routing | None = None
    shared_hidden_dim: int = 0  # hidden_dim of the expert that every token visits; 0: none


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer. Its norms and biases are not listed here: those it lacks are None in its weights."""

    attention: AttentionSpec
    ffn: FeedForwardSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything the forward pass needs besides weights and tokens."""

    family: str
    dim: int  # length of the residual stream
    vocab_size: int
    norm_eps: float
    layers: tuple[LayerSpec, ...]
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # multiplies what each branch adds to the residual stream (Granite)
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
