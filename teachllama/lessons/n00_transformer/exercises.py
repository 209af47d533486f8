"""The exercises of lesson 00: counting a Llama's weights, RMSNorm, the causal mask, RoPE.

The learner's function runs on arrays chosen so that each common mistake gives a different result.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Any, NamedTuple

import numpy as np

from teachllama.errors import ParameterError
from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson
from teachllama.lessons.common.judge import near, one_number

# ---- 1. how many numbers a Llama has ----


class Shape(NamedTuple):
    """The sizes that determine how many weights a Llama has."""

    n_layers: int
    dim: int
    hidden_dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool  # the output matrix is the embedding itself

    def count(
        self,
        kv_heads: int | None = None,
        ffn: int = 3,
        norms: bool = True,
        tables: int | None = None,
        n: int | None = None,
        v: bool = True,
        output: bool = True,
        layer_norms: int = 2,
    ) -> int:
        """The number of weights. Arguments replace parts of the count to reproduce mistakes."""
        kv_heads = self.n_kv_heads if kv_heads is None else kv_heads
        tables = (1 if self.tied else 2) if tables is None else tables
        heads = (1 + output) * self.n_heads + (1 + v) * kv_heads
        layer = heads * self.head_dim * self.dim + ffn * self.dim * self.hidden_dim + layer_norms * self.dim * norms
        return tables * self.vocab_size * self.dim + (self.n_layers if n is None else n) * layer + self.dim * norms


def shape_of(source: Any) -> Shape:
    """A `Shape` from a dictionary or an object that has its fields.

    Raises:
        ParameterError: a field is missing, a size is not a whole number above 0, or `tied` is not a bool.
    """
    get = source.get if isinstance(source, dict) else lambda name: getattr(source, name, None)
    values: list[Any] = [get(name) for name in Shape._fields]
    if any(type(v) is not int or v < 1 for v in values[:-1]) or not isinstance(values[-1], bool):
        raise ParameterError(
            f"expected a shape with {', '.join(Shape._fields)}; found {dict(zip(Shape._fields, values))}"
        )
    return Shape(*values)


def _miscount(name: str, text: str, **changes: Any) -> Fault:
    return Fault(name, lambda source: shape_of(source).count(**changes), text)


TINY = {
    "n_layers": 22,
    "dim": 2048,
    "hidden_dim": 5632,
    "n_heads": 32,
    "n_kv_heads": 4,
    "head_dim": 64,
    "vocab_size": 32_000,
    "tied": False,
}


def _hidden_shapes(rng: np.random.Generator, model: Any) -> list[Case]:
    made = []
    for i, tied in enumerate((True, False, bool(rng.integers(2)))):
        n_kv_heads = int(rng.integers(1, 9))
        made.append(
            Case(
                f"shape {i}",
                (
                    {
                        "n_layers": int(rng.integers(3, 50)),
                        "dim": int(rng.integers(100, 3000)),
                        "hidden_dim": int(rng.integers(300, 9000)),
                        "n_heads": n_kv_heads * int(rng.integers(2, 6)),
                        "n_kv_heads": n_kv_heads,
                        "head_dim": int(rng.integers(20, 200)),
                        "vocab_size": int(rng.integers(1000, 200_000)),
                        "tied": tied,
                    },
                ),
            )
        )
    return made


WEIGHTS = Exercise(
    check="weights_of_a_llama",
    names=("weights",),
    signature="weights(tiny)",
    points=(2, 2),
    shows="count the weights of a Llama from its shape",
    usual="`query_heads`: keys and values for every query head; `no_v`, `no_output`; `tables`, `no_table`: the "
    "vocabulary's table once, twice or not at all; `ffn_two`: two feed-forward matrices for three; `no_norms`, "
    "`one_norm`, `last_norm`; `one_layer`; `bytes`",
    mistake=(
        "query_heads",
        cleandoc("""
        def weights(tiny):
            s = SimpleNamespace(**tiny)
            layer = 4 * s.dim * s.n_heads * s.head_dim + 3 * s.dim * s.hidden_dim + 2 * s.dim
            return (1 if s.tied else 2) * s.vocab_size * s.dim + s.n_layers * layer + s.dim
    """),
    ),
    right=lambda source: shape_of(source).count(),
    cases=(Case("", (TINY,)),),
    hidden_cases=_hidden_shapes,
    faults=(
        Fault(
            "query_heads",
            lambda s: shape_of(s).count(kv_heads=shape_of(s).n_heads),
            "This gives every query head a "
            "key and a value of its own. The matrices that make keys and values are smaller: they have n_kv_heads "
            "heads.",
        ),
        Fault(
            "tables",
            lambda s: shape_of(s).count(tables=2 if shape_of(s).tied else 1),
            "Look at the table of the vocabulary: is it in the file once or twice? `tied` says which.",
        ),
        _miscount(
            "no_table", "The layers are all there. The table that turns token ids into vectors is missing.", tables=0
        ),
        _miscount(
            "ffn_two", "This gives the feed-forward network two matrices; a Llama's has gate, up and down.", ffn=2
        ),
        _miscount(
            "no_v", "A layer makes queries, keys and values. One of the three matrices is missing here.", v=False
        ),
        _miscount(
            "no_output",
            "What the heads have gathered goes through one more matrix before it is added. It is missing here.",
            output=False,
        ),
        _miscount(
            "no_norms",
            "The matrices are all there. The norms have weights too: two vectors per layer, and one at the end.",
            norms=False,
        ),
        _miscount(
            "one_norm",
            "This gives a layer one norm. There is one before attention, and one before the feed-forward network.",
            layer_norms=1,
        ),
        Fault(
            "last_norm",
            lambda s: shape_of(s).count() - shape_of(s).dim,
            "Nearly: one more norm stands between the last layer and the logits.",
        ),
        _miscount("one_layer", "This counts one layer, and there are n_layers of them.", n=1),
        Fault("bytes", lambda s: 4 * shape_of(s).count(), "These are bytes in float32. How many numbers is that?"),
    ),
    praise="Tables, layers and norms: every number of the file.",
    otherwise="It is none of the usual mistakes. Go through the file's tensors one by one.",
    more="The vocabulary's table (once or twice); in each layer q, k, v, output, gate, up, down and two norms; and the "
    "last norm.",
    read=one_number,
    same=near(0),
)

# ---- 2. RMSNorm ----


def _rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x * weight / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def _root(x: np.ndarray, weight: np.ndarray, mean_square: Any) -> np.ndarray:
    return x * weight / np.sqrt(mean_square)


_NORM_CASES = (
    Case("one token", (np.array([[1.0, 5.0, 7.0]]), np.ones(3), 0.0)),
    Case("two tokens and a weight", (np.array([[1.0, 5.0, 7.0], [0.3, -0.1, 0.2]]), np.array([2.0, 1.0, -1.0]), 0.0)),
    Case(
        "small numbers and a large eps",
        (np.array([[0.02, -0.01, 0.03], [4.0, 5.0, 6.0]]), np.array([2.0, 1.0, 0.5]), 1e-3),
    ),
    Case("zeros", (np.zeros((2, 3)), np.ones(3), 1e-5)),
    Case("three tokens of two numbers", (np.array([[1.0, -2.0], [3.0, 0.5], [0.1, 4.0]]), np.array([1.5, -1.0]), 0.01)),
)


def _layer_norm(x: np.ndarray, w: np.ndarray, e: float) -> np.ndarray:
    return _rmsnorm(x - x.mean(axis=-1, keepdims=True), w, e)


def _mean_square(x: np.ndarray) -> np.ndarray:
    return np.asarray((x * x).mean(axis=-1, keepdims=True))


def _hidden_norms(rng: np.random.Generator, model: Any) -> list[Case]:
    made = [
        (rng.normal(size=(n, d)), rng.normal(size=d), eps) for n, d, eps in ((1, 4, 1e-5), (3, 7, 0.1), (5, 16, 1e-6))
    ]
    return [Case("rows", arguments) for arguments in [*made, (np.zeros((2, 5)), np.ones(5), 1e-6)]]


RMSNORM = Exercise(
    check="rmsnorm",
    names=("my_rmsnorm",),
    points=(2, 1),
    shows="write RMSNorm",
    usual="`mean_subtracted`: LayerNorm; `no_eps`, `eps_outside`; `sum` for mean, `l2_norm`; `no_root`; `whole_array`: "
    "one mean over all tokens; `wrong_axis`; `no_weight`; `in_place`",
    mistake=(
        "mean_subtracted",
        cleandoc("""
        def my_rmsnorm(x, weight, eps):
            x = x - x.mean(axis=-1, keepdims=True)
            return x * weight / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    """),
    ),
    right=_rmsnorm,
    cases=_NORM_CASES,
    hidden_cases=_hidden_norms,
    faults=(
        Fault("mean_subtracted", _layer_norm, "This subtracts the mean first: that is LayerNorm. RMSNorm only scales."),
        Fault(
            "no_eps", lambda x, w, e: _root(x, w, _mean_square(x)), "Without eps, a vector of zeros divides by zero."
        ),
        Fault(
            "eps_outside",
            lambda x, w, e: x * w / (np.sqrt(_mean_square(x)) + e),
            "eps belongs under the root, added to the mean of the squares.",
        ),
        Fault(
            "sum",
            lambda x, w, e: _root(x, w, (x * x).sum(axis=-1, keepdims=True) + e),
            "This divides by the vector's length: the root of the sum of squares. The M in RMS is for mean.",
        ),
        Fault(
            "l2_norm",
            lambda x, w, e: x * w / np.linalg.norm(x, axis=-1, keepdims=True),
            "This divides by the "
            "vector's length, the root of the *sum* of squares, and has no eps. The M in RMS is for mean.",
        ),
        Fault(
            "l2_norm",
            lambda x, w, e: x * w / (np.linalg.norm(x, axis=-1, keepdims=True) + e),
            "This divides by the vector's length, the root of the *sum* of squares. The M in RMS is for mean.",
        ),
        Fault(
            "no_root",
            lambda x, w, e: x * w / (_mean_square(x) + e),
            "The root is missing: the mean of squares grows four times as large when x doubles.",
        ),
        Fault(
            "whole_array",
            lambda x, w, e: _root(x, w, (x * x).mean() + e),
            "This takes one mean over all tokens. Each row is a token of its own.",
        ),
        Fault(
            "wrong_axis",
            lambda x, w, e: _root(x, w, (x * x).mean(axis=0, keepdims=True) + e),
            "This takes the mean down the columns, over different tokens. Each row is a token of its own.",
        ),
        Fault(
            "no_weight",
            lambda x, w, e: _rmsnorm(x, np.ones(x.shape[-1]), e),
            "The scaling is right; the learned weight is not used.",
        ),
    ),
    praise="Five trials, among them a vector of zeros.",
)


# ---- 3. the causal mask ----

_MASK_CASES = tuple(
    Case(f"n = {n} and n_past = {n_past}", (n, n_past)) for n, n_past in ((3, 0), (1, 0), (2, 4), (1, 5))
)


def _hidden(n: int, n_past: int) -> np.ndarray:
    return np.arange(n_past + n)[None, :] > n_past + np.arange(n)[:, None]


def _padded(n: int, n_past: int) -> np.ndarray:  # the new tokens see no cached position
    return np.arange(n_past + n)[None, :] > np.arange(n)[:, None]


def _strict(n: int, n_past: int) -> np.ndarray:
    return np.arange(n_past + n)[None, :] >= n_past + np.arange(n)[:, None]


def _hidden_masks(rng: np.random.Generator, model: Any) -> list[Case]:
    return [Case("tokens", (int(rng.integers(1, 9)), past)) for past in (0, *map(int, rng.integers(1, 12, 3)))]


MASK = Exercise(
    check="hidden",
    names=("my_hidden",),
    points=(2, 1),
    shows="say who may look where, with a cache",
    usual="`past`: new tokens counted from 0; `inverted`, `inverted_itself`; `itself`: hidden from itself; `square`: "
    "cached columns missing; `transposed`; `additive`; `nothing_hidden`",
    mistake=(
        "past",
        cleandoc("""
        def my_hidden(n, n_past):
            return np.arange(n_past + n)[None, :] > np.arange(n)[:, None]
    """),
    ),
    right=_hidden,
    cases=_MASK_CASES,
    hidden_cases=_hidden_masks,
    faults=(
        Fault("inverted", lambda n, p: ~_hidden(n, p), "This is True where a token may look. Hidden is the opposite."),
        Fault("itself", _strict, "A token may look at itself; this hides it."),
        Fault(
            "inverted_itself",
            lambda n, p: ~_strict(n, p),
            "This is True for what came before. Those are the ones a token may look at, and at itself.",
        ),
        Fault("past", _padded, "This counts the new tokens from position 0. The first of them is at n_past."),
        Fault(
            "square",
            lambda n, p: _hidden(n, 0),
            "This is for the new tokens alone. There are n_past columns more: "
            "the cached positions, which all of them may see.",
        ),
        Fault(
            "transposed",
            lambda n, p: _hidden(n, p).T,
            "Rows and columns are exchanged: a row per new token, a column per position it might look at.",
        ),
        Fault(
            "additive",
            lambda n, p: np.where(_hidden(n, p), -np.inf, 0.0),
            "These are numbers to add to the scores, "
            "and they would do. Here booleans are wanted: True where a token must not look.",
        ),
        Fault(
            "nothing_hidden",
            lambda n, p: np.zeros((n, p + n), bool),
            "This hides nothing: in a prompt, each token could read the one that it is to predict.",
        ),
    ),
    praise="Also with tokens in the cache, where a single new one sees everything.",
)


# ---- 4. RoPE ----


def _angles(positions: np.ndarray, d: int, base: float) -> np.ndarray:
    return positions[:, None] * base ** (-np.arange(0, d, 2) / d)  # (n, d/2)


def _turn(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    out, a, b = np.empty_like(x), x[..., 0::2], x[..., 1::2]
    out[..., 0::2] = a * np.cos(angles) - b * np.sin(angles)
    out[..., 1::2] = a * np.sin(angles) + b * np.cos(angles)
    return out


def _rope(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    return _turn(x, _angles(positions, x.shape[-1], base))


_ROPE_CASES = tuple(
    Case(
        f"{n} rows of {d}, positions from {start}, base {base:g}",
        (np.random.default_rng(seed).standard_normal((n, d)).round(2), np.arange(start, start + n), base),
    )
    for seed, n, d, start, base in ((1, 2, 4, 1, 100.0), (2, 3, 8, 0, 10_000.0), (3, 1, 6, 7, 1000.0))
)


def _overwritten(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    out, angles = x.copy(), _angles(positions, x.shape[-1], base)
    out[..., ::2] = out[..., ::2] * np.cos(angles) - out[..., 1::2] * np.sin(angles)
    out[..., 1::2] = out[..., ::2] * np.sin(angles) + out[..., 1::2] * np.cos(angles)
    return out


def _hidden_rope(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case("rows", (rng.normal(size=(n, d)), int(rng.integers(1, 90)) + np.arange(n), base))
        for n, d, base in ((1, 2, 10.0), (4, 8, 500_000.0), (3, 6, 10_000.0))
    ]


def _too_fast(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    d = x.shape[-1]
    return _turn(x, positions[:, None] * base ** (-np.arange(d // 2) / d))


def _doubled(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    d = x.shape[-1]
    return _turn(x, positions[:, None] * base ** (-2 * np.arange(0, d, 2) / d))


def _faster(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    d = x.shape[-1]
    return _turn(x, positions[:, None] * base ** (np.arange(0, d, 2) / d))


def _half_pairs(turned: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Callable[..., np.ndarray]:
    """`turned`, with pairs i and i + d/2 instead of adjacent ones."""

    def function(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
        d = x.shape[-1]
        order = np.arange(d).reshape(2, d // 2).T.reshape(-1)  # 0, d/2, 1, d/2 + 1, ...
        out = np.empty_like(x)
        out[:, order] = turned(x[:, order], positions, base)
        return out

    return function


ROPE = Exercise(
    check="rope",
    names=("my_rope",),
    points=(3, 1),
    shows="write rotary positions",
    usual="`halves`: other families' pairs; `backwards`; `exponent`, `exponent_doubled`, `exponent_sign`; `degrees`; "
    "`from_zero`: positions ignored; `one_speed`; `overwritten`: the turned value used for its partner",
    mistake=(
        "halves",
        cleandoc("""
        def my_rope(x, positions, base):
            d = x.shape[-1]
            angles = positions[:, None] * base ** (-np.arange(0, d, 2) / d)
            a, b = x[:, : d // 2], x[:, d // 2 :]
            cos, sin = np.cos(angles), np.sin(angles)
            return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    """),
    ),
    right=_rope,
    cases=_ROPE_CASES,
    hidden_cases=_hidden_rope,
    faults=(
        Fault(
            "halves",
            _half_pairs(_rope),
            "This pairs number i with number i + d/2, as other families do. In this "
            "file a Llama's pairs are neighbours: 0 and 1, 2 and 3.",
        ),
        Fault(
            "backwards",
            lambda x, p, b: _rope(x, -p, b),
            "This turns the other way: look at the two signs in front of the sines.",
        ),
        Fault(
            "exponent", _too_fast, "The exponent of pair i is -2i/d; here the 2 is missing, so the pairs turn too fast."
        ),
        Fault(
            "exponent_doubled",
            _doubled,
            "The exponent of pair i is -2i/d; here the 2 is in it twice, so the pairs "
            "turn too slowly. Does your i count pairs, or numbers?",
        ),
        Fault(
            "exponent_sign",
            _faster,
            "The pairs turn faster and faster; later pairs should be slower. The exponent is negative.",
        ),
        Fault(
            "degrees",
            lambda x, p, b: _rope(x, np.deg2rad(p), b),
            "The angles are radians already; this converts them once more.",
        ),
        Fault(
            "from_zero",
            lambda x, p, b: _rope(x, np.arange(len(x)), b),
            "This counts positions from 0 in every "
            "call. With a cache the first new token is further on: use `positions`.",
        ),
        Fault("one_speed", lambda x, p, b: _rope(x, p, 1.0), "All pairs turn at the same speed. Pair i has its own."),
        Fault(
            "overwritten",
            _overwritten,
            "The second number of each pair is made from the first after it was turned. "
            "Keep the old values until both are done.",
        ),
        Fault(
            "halves and exponent",
            _half_pairs(_too_fast),
            "Two things at once: pairs are neighbours here, and not "
            "half a vector apart; and in the exponent a 2 is missing.",
        ),
        Fault(
            "halves and backwards",
            _half_pairs(lambda x, p, b: _rope(x, -p, b)),
            "Two things at once: pairs are neighbours here, and not half a vector apart; and this turns the other way.",
        ),
        Fault("not_turned", lambda x, p, b: x, "Nothing was turned."),
    ),
    praise="Three trials, at positions from 0 to 7.",
)

LESSON = Lesson(
    "00_a_transformer",
    cleandoc("""
        from types import SimpleNamespace

        import numpy as np

        from teachllama.check import notebook00 as check
        from teachllama.check.core import assert_right
    """),
    (WEIGHTS, RMSNORM, MASK, ROPE),
)
