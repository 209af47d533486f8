"""Code shared by all families: builds a `ModelSpec` from a file's metadata, and lists the tensors of a layer.

A family is data: a `Family` lists the differences from a plain Llama, and `build_spec` reads everything else from the
metadata, with llama.cpp's key names and defaults (`load_hparams` in its src/llama-model.cpp, as vendored in
llama-cpp-python 0.3.36). Independent of arrays.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from teachllama.errors import GGUFError, ParameterError, UnsupportedModelError
from teachllama.kv import KVLayout, LayerKV
from teachllama.kv.catalogue import KNOWN
from teachllama.metadata import MAX_LAYERS, Metadata
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
FREQS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
NORMS = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm"}  # LayerWeights' field -> GGUF's tensor
POST_NORMS = {"post_attention_norm": "post_attention_norm", "post_ffn_norm": "post_ffw_norm"}
QK_NORMS = {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}

NORM_FIELDS = frozenset(NORMS | POST_NORMS | QK_NORMS)

# Keys that do not affect the arithmetic: descriptions, and keys that the KV formula has read (`layout`).
HARMLESS = frozenset((
    "vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "pooling_type", "attention.layer_norm_epsilon",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.key_length_swa",
    "attention.value_length_swa", "attention.sliding_window", "attention.sliding_window_pattern",
))  # fmt: skip
# Keys that change nothing with one of these values, which some converters write. Files with other values are refused.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,), "use_parallel_residual": (False,),
    "attention.clamp_kqv": (0.0,), "attention.max_alibi_bias": (0.0,), "attention.temperature_scale": (0.0,),
    "attention.output_scale": (0.0, 1.0), "attention.value_scale": (0.0, 1.0), "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0), "logit_scale": (0.0, 1.0), "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,), "router_logit_softcapping": (0.0,), "rope.scaling.alpha": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,), "expert_shared_count": (0,), "expert_shared_feed_forward_length": (0,),
    "attention.q_lora_rank": (0,), "attention.kv_lora_rank": (0,),
}  # fmt: skip
EXPERT_KEYS = (  # have no meaning in a dense model
    "expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_shared_count", "expert_group_used_count",
    "expert_weights_scale", "expert_weights_norm", "expert_gating_func",
)  # fmt: skip
ACTIVATION_NAMES = {  # their names in files
    Activation.SILU: ("silu", "swish"),
    Activation.GELU: ("gelu", "gelu_pytorch_tanh"),
    Activation.SWIGLU_OAI: ("silu", "swiglu_oai"),
}
MAX_ROTATING = 2**16  # rotating dimensions of a head; a hostile file could otherwise ask for a table of millions


@dataclass(frozen=True, slots=True)
class Family:
    """One family of models, as the differences from a plain Llama."""

    name: str  # general.architecture
    about: str  # its differences, in one line
    paper: str = ""
    pairs: RopePairs = RopePairs.INTERLEAVED
    activation: Activation = Activation.SILU
    norms: Mapping[str, str] = field(default_factory=lambda: dict(NORMS))  # LayerWeights' field -> GGUF's tensor
    required: tuple[str, ...] = ()  # a layer's optional tensors that every file of the family has
    scores: Scores = Scores.SOFTMAX  # the router's score function
    normalize_experts: bool = True  # the weights of the chosen experts are divided by their sum
    routing_keys: bool = False  # metadata may set the router's scores, weights and normalization
    experts_share: bool = False  # without expert_feed_forward_length, feed_forward_length is divided by experts used
    slides: bool = False  # layers may have a sliding window
    local_rope_base: float | None = None  # RoPE base of sliding-window layers; None: the same as in other layers
    local_unscaled: bool = False  # layers with a sliding window rotate without scaling
    change: Callable[[Metadata, ModelSpec], ModelSpec] = lambda metadata, spec: spec
    harmless: tuple[str, ...] = ()  # keys in this family's files that change nothing

    def __post_init__(self) -> None:
        """Raises ParameterError if a field has a value that the engine does not support."""
        kinds: dict[str, type[Enum]] = {"pairs": RopePairs, "activation": Activation, "scores": Scores}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(self, name), kind):
                known = ", ".join(map(str, kind))
                raise ParameterError(f"family {self.name!r}: {name} is {value!r}; expected one of {known}")
        if unknown := sorted(set(self.norms) - NORM_FIELDS):
            raise ParameterError(
                f"family {self.name!r}: norms has {unknown[0]!r}; a layer's norms are {', '.join(sorted(NORM_FIELDS))}"
            )


def build_spec(family: Family, m: Metadata, layout: KVLayout, vocab_size: int, factors: Factors) -> ModelSpec:
    """A model's spec from its metadata.

    Args:
        layout: what each layer caches, from the same metadata.
        factors: the file's RoPE factor tensors.

    Raises:
        GGUFError: a key is missing, has the wrong type, or contradicts another; the message names it.
        UnsupportedModelError: a key requires something that this engine doesn't support.
        ParameterError: a registered family's `change` doesn't return a spec.
    """
    m.n_layers = n = m.number("block_count", most=MAX_LAYERS)
    m.n_trunk = n - m.number("nextn_predict_layers", 0, least=0, most=n - 1)  # draft-only layers are last
    dim = m.number("embedding_length")
    heads = m.per_layer("attention.head_count", ())
    if not heads:
        raise m.fail("attention.head_count", None, "a number of heads")
    for name in ("attention.shared_kv_layers", "attention.recurrent_layers"):  # supported by the KV formula only
        if (value := m.raw(name)) is not None and not (isinstance(value, int) and value == 0):
            raise _fixed(m, name, value, "no such key")
    _check_windows(family, m, layout)
    lengths = m.per_layer("feed_forward_length", ()), m.per_layer("expert_feed_forward_length", ())
    routing = routing_of(family, m)
    leading_dense = m.number("leading_dense_block_count", 0, least=0, most=n)
    layers = []
    ropes: dict[tuple[int, bool], Rope] = {}
    for i, (kv, h) in enumerate(zip(layout.layers[: m.n_trunk], heads, strict=False)):
        if not kv.n_kv_heads or not h or h % kv.n_kv_heads:
            raise GGUFError(
                f"layer {i}: {h} query heads (attention.head_count) cannot share {kv.n_kv_heads} KV heads "
                "(attention.head_count_kv) equally; every layer needs at least one of each"
            )
        key = (kv.key_length, kv.window is not None)
        if key not in ropes:
            ropes[key] = rope_of(family, m, kv.key_length, sliding=kv.window is not None, factors=factors)
        scale = 1 / math.sqrt(kv.key_length)
        attention = AttentionSpec(h, kv.n_kv_heads, kv.key_length, kv.value_length, scale, ropes[key], kv.window)
        dense = routing is None or i < leading_dense
        layers.append(LayerSpec(attention, feed_forward_of(family, m, i, lengths, None if dense else routing)))
    eps = m.real("attention.layer_norm_rms_epsilon")
    spec = family.change(m, ModelSpec(family.name, dim, vocab_size, eps, tuple(layers)))
    if not isinstance(spec, ModelSpec):
        raise ParameterError(f"family {family.name!r}: change returned {type(spec).__name__}; expected a ModelSpec")
    activation = m.text("hidden_activation", ACTIVATION_NAMES[family.activation][0])
    if activation not in ACTIVATION_NAMES[family.activation]:
        raise _fixed(m, "hidden_activation", activation, family.activation.value)
    wanted = m.real("attention.scale", 0.0)
    for layer in spec.layers if wanted else ():
        if not math.isclose(wanted, layer.attention.scale, rel_tol=1e-6):
            raise _fixed(m, "attention.scale", wanted, layer.attention.scale)
    return spec


def cache_layout(spec: ModelSpec, layout: KVLayout) -> KVLayout:
    """What the layers of `spec` cache. For families that the KV formula covers, both must agree.

    Raises:
        GGUFError: they do not agree; the message names the layer.
    """
    attentions = [layer.attention for layer in spec.layers]
    layers = tuple(LayerKV(a.n_kv_heads, a.head_dim, 0 if a.latent else a.value_dim, a.window) for a in attentions)
    for i, (made, counted) in enumerate(zip(layers, layout.layers, strict=False)):
        if made != counted and spec.family in KNOWN:
            raise GGUFError(
                f"layer {i} of this {spec.family} caches {made}, and the KV formula makes it {counted}; the metadata "
                "contradicts itself, or the registered family does"
            )
    return replace(layout, layers=layers)


def _fixed(m: Metadata, key: str, found: object, usual: object) -> UnsupportedModelError:
    """The error for a key whose value differs from what the family does, here and in llama.cpp."""
    return UnsupportedModelError(
        f"metadata '{m.arch}.{key}' is {reprlib.repr(found)}; supported for {m.arch}: {usual}. Another value changes "
        "the arithmetic, so the file is refused rather than run with wrong results"
    )


def _check_windows(family: Family, m: Metadata, layout: KVLayout) -> None:
    """Checks that the family applies a sliding window, or is known to ignore it, as llama.cpp does."""
    window, slide = m.raw("attention.sliding_window"), any(layer.window for layer in layout.layers)
    if family.slides and window == 0:
        raise m.fail("attention.sliding_window", 0, "a window of 1 position or more, or no such key")
    if slide and not family.slides:
        raise _fixed(m, "attention.sliding_window_pattern", m.raw("attention.sliding_window_pattern"), "no such key")
    if window and not slide and family.name not in KNOWN and "attention.sliding_window" not in family.harmless:
        raise UnsupportedModelError(
            f"metadata '{m.arch}.attention.sliding_window' is {window}, but not which layers slide: supported is "
            "attention.sliding_window_pattern beside it, in a family registered with slides=True"
        )


def feed_forward_of(
    family: Family, m: Metadata, i: int, lengths: tuple[Sequence[int], Sequence[int]], routing: Routing | None
) -> FeedForwardSpec:
    """Layer i's feed-forward network. `lengths`: feed_forward_length and expert_feed_forward_length, or empty."""
    dense, expert = (of_layer[i] if of_layer else 0 for of_layer in lengths)
    if routing is None:
        if dense < 1:
            raise m.fail("feed_forward_length", dense or None, f"a length of 1 or more for layer {i}")
        return FeedForwardSpec(dense, family.activation)
    length = expert or (dense // routing.n_used if family.experts_share else dense)
    if length < 1:
        raise m.fail("expert_feed_forward_length", expert or None, f"a length of 1 or more for layer {i}")
    return FeedForwardSpec(length, family.activation, routing)


def routing_of(family: Family, m: Metadata) -> Routing | None:
    """How tokens choose experts. None for a dense model, whose `expert_count` is missing or 0."""
    n = m.number("expert_count", 0, least=0, most=1024)
    used = m.number("expert_used_count", 0, least=0, most=1024)
    groups = m.number("expert_group_count", 1, least=0) or 1
    if n == 0:
        for key, count in (("expert_used_count", used), ("expert_group_count", groups - 1)):
            if count:
                raise m.fail(key, m.raw(key), "0, because expert_count is 0")
        for key in EXPERT_KEYS:
            m.raw(key)
        return None
    if not 0 < used <= n:
        raise m.fail("expert_used_count", used, f"1 to {n}, the expert_count")
    groups_used = m.number("expert_group_used_count", 1, least=0)
    if groups > 1 and (n % groups or not 0 < groups_used < groups or groups_used * (n // groups) < used):
        raise m.fail("expert_group_count", groups, f"groups that {n} experts divide into, of which some are used")
    known = {0: family.scores, 1: Scores.SOFTMAX, 2: Scores.SIGMOID, 3: Scores.SOFTMAX_OF_CHOSEN}
    gating = m.number("expert_gating_func", 0, least=0, most=64)
    if gating not in known:
        raise UnsupportedModelError(
            f"metadata '{m.arch}.expert_gating_func' is {gating}; supported: 1 (softmax), 2 (sigmoid), 3 (softmax "
            "of the chosen)"
        )
    scores, scale = known[gating], m.real("expert_weights_scale", 0.0) or 1.0
    normalize = m.flag("expert_weights_norm", family.normalize_experts)
    for key, found, usual in (
        ("expert_gating_func", scores.value, family.scores.value),
        ("expert_weights_norm", normalize, family.normalize_experts),
        ("expert_weights_scale", scale, 1.0),
    ):
        if found != usual and not family.routing_keys:
            raise _fixed(m, key, found, usual)
    return Routing(n, used, scores, normalize, scale, groups, groups_used if groups > 1 else 1)


def scaling_of(m: Metadata) -> tuple[str, float]:
    """The kind of RoPE scaling and its factor, from llama.cpp's keys, their older name and its defaults."""
    kind = m.text("rope.scaling.type", "linear")  # llama.cpp's default, which a factor of 1 makes harmless
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModelError(
            f"metadata '{m.arch}.rope.scaling.type' is {kind!r}; supported: 'none', 'linear', 'yarn', 'longrope', "
            "and Llama 3.1's frequency factors"
        )
    old = m.real("rope.scale_linear", 0.0)
    factor = (m.real("rope.scaling.factor") if m.has("rope.scaling.factor") else old) or 1.0
    factor = 1.0 if kind == "none" else factor
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "ext_factor": 1.0, "attn_factor": yarn_magnitude(factor)}
    for name, value in usual.items():  # llama.cpp uses these for all families here, whatever the file says
        key = f"rope.scaling.yarn_{name}"
        if not math.isclose(found := m.real(key, value), value, rel_tol=1e-4) and kind == "yarn":
            raise _fixed(m, key, found, value)
    return kind, factor


def rope_of(family: Family, m: Metadata, head_dim: int, *, sliding: bool, factors: Factors) -> Rope:
    """The rotation of layers with heads of `head_dim`.

    Args:
        sliding: whether these layers have a sliding window. Some families rotate them differently.
    """
    dim = m.number("rope.dimension_count", head_dim)
    if dim % 2 or not dim <= min(head_dim, MAX_ROTATING):
        raise m.fail("rope.dimension_count", dim, f"an even number up to {min(head_dim, MAX_ROTATING)}")
    if (local_dim := m.number("rope.dimension_count_swa", dim)) != dim:
        raise _fixed(m, "rope.dimension_count_swa", local_dim, dim)
    base = m.real("rope.freq_base", 10_000.0, least=1)
    local_base = m.real("rope.freq_base_swa", family.local_rope_base or base, least=1)
    kind, factor = scaling_of(m)
    original = m.number("rope.scaling.original_context_length", m.number("context_length", most=2**40), most=2**40)
    magnitude = m.real("rope.scaling.attn_factor", 1.0)
    if sliding:
        base = local_base
        kind, factor = ("none", 1.0) if family.local_unscaled else (kind, factor)
    frequencies = [base ** (-2 * i / dim) for i in range(dim // 2)]

    def scaled(name: str) -> tuple[float, ...]:
        divisors = factors.get(name, [1.0] * (dim // 2))
        if len(divisors) != dim // 2 or not all(d > 0 and math.isfinite(d) for d in divisors):
            raise GGUFError(f"tensor {name!r} does not hold {dim // 2} positive numbers, one for each rotating pair")
        divided = [f / d for f, d in zip(frequencies, divisors, strict=True)]
        return yarn(divided, factor, base, original) if kind == "yarn" else tuple(f / factor for f in divided)

    magnitude *= yarn_magnitude(factor) if kind == "yarn" else 1.0
    if not factors:
        return Rope(scaled(""), family.pairs, magnitude)
    if set(factors) == {FREQS}:
        return Rope(scaled(FREQS), family.pairs, magnitude)
    if set(factors) != {SHORT, LONG}:
        raise GGUFError(f"the file has {' and '.join(sorted(factors))}; expected {FREQS} alone, or {SHORT} and {LONG}")
    return Rope(scaled(SHORT), family.pairs, magnitude, 0, scaled(LONG), magnitude, original)


def yarn(frequencies: Sequence[float], factor: float, base: float, original: int) -> tuple[float, ...]:
    """YaRN: fast pairs rotate as trained, slow ones are slowed by the factor, with a ramp between.

    https://arxiv.org/abs/2309.00071, section 3.2, with its beta of 32 and 1; the details are ggml's `rope_yarn`.
    """
    dim = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(pair_that_turns(32.0)))
    high = min(dim - 1.0, math.ceil(pair_that_turns(1.0)))
    out = []
    for i, f in enumerate(frequencies):
        ramp = 1 - min(1.0, max(0.0, (i - low) / max(0.001, high - low)))
        out.append(f / factor * (1 - ramp) + f * ramp)
    return tuple(out)


def yarn_magnitude(factor: float) -> float:
    """The factor by which YaRN scales queries and keys, to keep attention as sharp over a longer context."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * math.log(factor)


def all_layers(spec: ModelSpec, change: Callable[[LayerSpec], LayerSpec]) -> ModelSpec:
    """A spec with every layer changed."""
    return replace(spec, layers=tuple(map(change, spec.layers)))


def with_attention(spec: ModelSpec, **fields: object) -> ModelSpec:
    """A spec with some fields of every layer's attention changed."""
    return all_layers(spec, lambda l: replace(l, attention=replace(l.attention, **fields)))  # type: ignore[arg-type]
