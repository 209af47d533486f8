"""What families share: how a file's metadata becomes a `ModelSpec`, and which tensors a layer is made of.

A family is data: a `Family` names the differences from a plain Llama, and `build_spec` reads everything else from the
metadata, with llama.cpp's key names and defaults (`load_hparams` in its src/llama-model.cpp, as vendored in
llama-cpp-python 0.3.36). Knows nothing of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from teachllama.errors import GGUFError, UnsupportedModelError
from teachllama.kv import KVLayout
from teachllama.metadata import Metadata
from teachllama.spec import (
    Activation,
    AttentionSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    Rope,
    RopePairs,
    Routing,
    Scores,
)

Factors = Mapping[str, Sequence[float]]  # names of RoPE factor tensors -> their numbers
NORMS = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm"}  # LayerWeights' field -> GGUF's tensor
POST_NORMS = {"post_attention_norm": "post_attention_norm", "post_ffn_norm": "post_ffw_norm"}
QK_NORMS = {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}

# Keys that say nothing about the arithmetic here: descriptions, and what other programs keep there.
HARMLESS = frozenset((
    "block_count", "context_length", "vocab_size", "rope.scaling.finetuned", "tensor_data_layout",
    "attention.key_length_swa", "attention.value_length_swa", "pooling_type", "attention.layer_norm_epsilon",
    "use_parallel_residual", "interleave_moe_layer_step",
))  # fmt: skip
YARN_USES = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_ext_factor": 1.0}  # its paper's, and llama.cpp's


@dataclass(frozen=True, slots=True)
class Family:
    """One family of models, as the differences from a plain Llama."""

    name: str  # general.architecture
    about: str  # what makes it different, in a line
    paper: str = ""
    pairs: RopePairs = RopePairs.INTERLEAVED
    activation: Activation = Activation.SILU
    norms: Mapping[str, str] = field(default_factory=lambda: dict(NORMS))  # LayerWeights' field -> GGUF's tensor
    required: tuple[str, ...] = ()  # of the optional tensors of a layer, those that every file of the family has
    scores: Scores = Scores.SOFTMAX  # of a router
    normalize_experts: bool = True
    local_rope_base: float | None = None  # of layers with a sliding window; None: that of the others
    local_unscaled: bool = False  # layers with a sliding window rotate without scaling
    default_rope_base: float = 10_000.0
    change: Callable[[Metadata, ModelSpec], ModelSpec] = lambda metadata, spec: spec
    harmless: tuple[str, ...] = ()  # keys that this family's files carry and that change nothing


def build_spec(family: Family, m: Metadata, layout: KVLayout, vocab_size: int, factors: Factors) -> ModelSpec:
    """A model's spec from its metadata.

    Args:
        layout: what each layer caches, from the same metadata.
        factors: the RoPE factor tensors that the file has.

    Raises:
        GGUFError: a key is missing, of the wrong type, or contradicts another; the message names it.
        UnsupportedModelError: a key asks for something that this engine doesn't do.
    """
    n = len(layout.layers)
    m.n_layers, m.n_trunk = n, n
    dim = m.number("embedding_length")
    if not m.flag("attention.causal", True):
        raise UnsupportedModelError(
            f"metadata '{m.arch}.attention.causal' is False: tokens of this model look ahead too, which an engine "
            "that writes one token after another cannot do; supported: True"
        )
    heads = m.per_layer("attention.head_count", ())
    if not heads:
        raise m.fail("attention.head_count", None, "a number of heads")
    hidden = m.per_layer("feed_forward_length", ())
    routing = routing_of(family, m)
    leading_dense = m.number("leading_dense_block_count", 0, least=0)
    layers = []
    ropes: dict[tuple[int, bool], Rope] = {}
    for i, (kv, h) in enumerate(zip(layout.layers, heads, strict=True)):
        if not kv.n_kv_heads or not h or h % kv.n_kv_heads:
            raise GGUFError(
                f"layer {i}: {h} query heads (attention.head_count) cannot share {kv.n_kv_heads} KV heads "
                "(attention.head_count_kv) equally; every layer needs at least one of each"
            )
        key = (kv.key_length, kv.window is not None)
        if key not in ropes:
            ropes[key] = rope_of(family, m, kv.key_length, sliding=kv.window is not None, factors=factors)
        attention = AttentionSpec(
            n_heads=h,
            n_kv_heads=kv.n_kv_heads,
            head_dim=kv.key_length,
            value_dim=kv.value_length,
            scale=m.real("attention.scale", 0.0) or 1 / math.sqrt(kv.key_length),
            rope=ropes[key],
            window=kv.window,
        )
        dense = routing is None or i < leading_dense
        layers.append(LayerSpec(attention, feed_forward_of(family, m, i, hidden, None if dense else routing)))
    spec = ModelSpec(
        family=family.name,
        dim=dim,
        vocab_size=vocab_size,
        norm_eps=m.real("attention.layer_norm_rms_epsilon"),
        layers=tuple(layers),
    )
    return family.change(m, spec)


def feed_forward_of(
    family: Family, m: Metadata, i: int, hidden: Sequence[int], routing: Routing | None
) -> FeedForwardSpec:
    """Layer i's feed-forward network."""
    dense = hidden[i] if hidden else 0
    if routing is None:
        if dense < 1:
            raise m.fail("feed_forward_length", dense or None, f"a length of 1 or more for layer {i}")
        return FeedForwardSpec(dense, family.activation)
    length = m.number("expert_feed_forward_length", dense or None)
    return FeedForwardSpec(length, family.activation, routing)


def routing_of(family: Family, m: Metadata) -> Routing | None:
    """How tokens choose experts; None for a dense model, which may say so with `expert_count` 0."""
    n = m.number("expert_count", 0, least=0, most=1024)
    used = m.number("expert_used_count", 0, least=0, most=1024)
    if n == 0:
        if used:
            raise m.fail("expert_used_count", used, "0, because expert_count is 0")
        return None
    if not 0 < used <= n:
        raise m.fail("expert_used_count", used, f"1 to {n}, the expert_count")
    groups, groups_used = m.number("expert_group_count", 1, least=0), m.number("expert_group_used_count", 1, least=0)
    groups = groups or 1
    if groups > 1 and (n % groups or not 0 < groups_used < groups or groups_used * (n // groups) < used):
        raise m.fail("expert_group_count", groups, f"groups that {n} experts divide into, of which some are used")
    scores, gating = family.scores, m.number("expert_gating_func", 0, least=0, most=64)
    if gating:
        known = {1: Scores.SOFTMAX, 2: Scores.SIGMOID, 3: Scores.SOFTMAX_OF_CHOSEN}
        if gating not in known:
            raise UnsupportedModelError(
                f"metadata '{m.arch}.expert_gating_func' is {gating}; supported: 1 (softmax), 2 (sigmoid), 3 (softmax "
                "of the chosen)"
            )
        scores = known[gating]
    return Routing(
        n_experts=n,
        n_used=used,
        scores=scores,
        normalize=family.normalize_experts,
        scale=m.real("expert_weights_scale", 0.0) or 1.0,
        n_groups=groups,
        n_groups_used=groups_used if groups > 1 else 1,
    )


def rope_of(family: Family, m: Metadata, head_dim: int, *, sliding: bool, factors: Factors, first: int = 0) -> Rope:
    """The rotation of layers with heads of `head_dim`, from llama.cpp's keys, their older names and its defaults.

    Args:
        sliding: of layers with a sliding window, which some families rotate in their own way.
        first: where in a head the rotating numbers begin.
    """
    dim = m.number("rope.dimension_count", head_dim - first)
    if dim % 2 or first + dim > head_dim:
        raise m.fail("rope.dimension_count", dim, f"an even number up to {head_dim - first}")
    if m.number("rope.dimension_count_swa", dim) != dim:
        raise m.fail("rope.dimension_count_swa", m.raw("rope.dimension_count_swa"), f"rope.dimension_count, {dim}")
    base = m.real("rope.freq_base", family.default_rope_base, least=1)
    factor = m.real("rope.scaling.factor", 0.0) or m.real("rope.scale_linear", 0.0) or 1.0
    scaling = m.text("rope.scaling.type", "linear")  # llama.cpp's default, which a factor of 1 makes harmless
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModelError(
            f"metadata '{m.arch}.rope.scaling.type' is {scaling!r}; supported: 'none', 'linear', 'yarn', 'longrope', "
            "and Llama 3.1's frequency factors"
        )
    original = m.number("rope.scaling.original_context_length", m.number("context_length", most=2**40), most=2**40)
    magnitude = m.real("rope.scaling.attn_factor", 1.0)
    for key, used in YARN_USES.items():  # converters copy them from a model's configuration; llama.cpp reads none here
        if m.real(f"rope.scaling.{key}", used) != used:
            raise UnsupportedModelError(
                f"metadata '{m.arch}.rope.scaling.{key}' is {m.raw(f'rope.scaling.{key}')}; supported: {used:g}"
            )
    given = m.real("rope.scaling.yarn_attn_factor", yarn_magnitude(factor))
    if abs(given - yarn_magnitude(factor)) > 1e-4:
        raise m.fail(
            "rope.scaling.yarn_attn_factor", given, f"{yarn_magnitude(factor):.6g}, for a factor of {factor:g}"
        )
    if sliding:
        base = m.real("rope.freq_base_swa", family.local_rope_base or base, least=1)
        if family.local_unscaled:
            factor, scaling, magnitude = 1.0, "none", 1.0
    if scaling == "none":
        factor = 1.0
    frequencies = [base ** (-2 * i / dim) for i in range(dim // 2)]

    def scaled(divisors: Sequence[float] | None) -> tuple[float, ...]:
        if divisors is not None and (
            len(divisors) != dim // 2 or not all(d > 0 and math.isfinite(d) for d in divisors)
        ):
            raise GGUFError(f"the RoPE factors are not {dim // 2} positive numbers, one for each rotating pair")
        divided = [f / d for f, d in zip(frequencies, divisors or [1.0] * (dim // 2), strict=True)]
        if scaling == "yarn":
            return yarn(divided, factor, base, original)
        return tuple(f / factor for f in divided)

    if scaling == "yarn":
        magnitude *= yarn_magnitude(factor)
    divisors, long = factors.get("rope_freqs.weight"), factors.get("rope_factors_long.weight")
    if divisors is not None or long is None:
        return Rope(scaled(divisors), family.pairs, magnitude, first)
    short = scaled(factors.get("rope_factors_short.weight"))
    return Rope(short, family.pairs, magnitude, first, scaled(long), magnitude, original)


def yarn(frequencies: Sequence[float], factor: float, base: float, original: int) -> tuple[float, ...]:
    """Fast pairs turn as trained, slow ones are slowed down by the factor, with a ramp between.

    https://arxiv.org/abs/2309.00071, section 3.2; the details are ggml's `rope_yarn`.
    """
    dim = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(pair_that_turns(YARN_USES["yarn_beta_fast"])))
    high = min(dim - 1.0, math.ceil(pair_that_turns(YARN_USES["yarn_beta_slow"])))
    out = []
    for i, f in enumerate(frequencies):
        ramp = 1 - min(1.0, max(0.0, (i - low) / max(0.001, high - low)))
        out.append(f / factor * (1 - ramp) + f * ramp)
    return tuple(out)


def yarn_magnitude(factor: float) -> float:
    """How much longer YaRN makes queries and keys, so that attention is as sharp over a longer context."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * math.log(factor)


def all_layers(spec: ModelSpec, change: Callable[[LayerSpec], LayerSpec]) -> ModelSpec:
    """A spec with every layer changed."""
    return replace(spec, layers=tuple(map(change, spec.layers)))


def with_attention(spec: ModelSpec, **fields: object) -> ModelSpec:
    """A spec with some fields of every layer's attention changed."""
    return all_layers(spec, lambda l: replace(l, attention=replace(l.attention, **fields)))  # type: ignore[arg-type]
