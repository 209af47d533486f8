"""The checks of notebook 00's exercises: counting a Llama's weights, RMSNorm, the causal mask, RoPE.

A function of the learner's is tried on arrays chosen so that every usual mistake gives another result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from teachllama.check.core import CheckResult, Slip, number, recognise, run, type_name
from teachllama.errors import ParameterError

# ---- 1. how many numbers a Llama has ----


class Shape(NamedTuple):
    """What the number of weights of a Llama follows from."""

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
    ) -> int:
        """The numbers; an argument replaces a part with a mistaken one."""
        kv_heads = self.n_kv_heads if kv_heads is None else kv_heads
        tables = (1 if self.tied else 2) if tables is None else tables
        attention = (2 * self.n_heads + 2 * kv_heads) * self.head_dim * self.dim
        layer = attention + ffn * self.dim * self.hidden_dim + 2 * self.dim * norms
        return tables * self.vocab_size * self.dim + (self.n_layers if n is None else n) * layer + self.dim * norms


def weights_of_a_llama(answer: object, shape: Any) -> CheckResult:
    """Checks how many weights a Llama has.

    Args:
        answer: the learner's number.
        shape: a dictionary, or anything with attributes, that has the names of `Shape`.
    """
    get = shape.get if isinstance(shape, dict) else lambda name: getattr(shape, name, None)
    values: list[Any] = [get(name) for name in Shape._fields]
    if any(type(v) is not int or v < 1 for v in values[:-1]) or not isinstance(values[-1], bool):
        raise ParameterError(
            f"expected a shape with {', '.join(Shape._fields)}; found {dict(zip(Shape._fields, values))}"
        )
    s, found = Shape(*values), number(answer)
    if isinstance(found, CheckResult):
        return found
    slips = [
        Slip("query_heads", s.count(kv_heads=s.n_heads), "This gives every query head a key and a value of its own. "
             "The matrices that make keys and values are smaller: they have n_kv_heads heads."),
        Slip("tables", s.count(tables=2 if s.tied else 1), "Look at the table of the vocabulary: is it in the file "
             "once or twice? `tied` tells."),
        Slip("no_table", s.count(tables=0), "The layers are all there. The table that turns token ids into vectors is "
             "missing."),
        Slip("ffn_two", s.count(ffn=2), "This gives the feed-forward network two matrices; a Llama's has gate, up and "
             "down."),
        Slip("no_norms", s.count(norms=False), "The matrices are all there. The norms have weights too: two vectors a "
             "layer, and one at the end."),
        Slip("last_norm", s.count() - s.dim, "Nearly: one more norm stands between the last layer and the logits."),
        Slip("one_layer", s.count(n=1), "This counts one layer, and there are n_layers of them."),
        Slip("bytes", 4 * s.count(), "These are bytes in float32. How many numbers is that?"),
    ]  # fmt: skip
    way = "large" if found > s.count() else "small"
    return recognise(found, s.count(), slips, "Tables, layers and norms: every number of the file.",
                     f"It is too {way}, and not in one of the usual ways. Go through the file's tensors one by one: "
                     "the vocabulary's table, then in a layer q, k, v, output, gate, up, down, two norms.",
                     )  # fmt: skip


# ---- a function of the learner's, tried on arrays ----


class Fault(NamedTuple):
    """A usual mistake as a function that makes it."""

    name: str
    function: Callable[..., np.ndarray]
    text: str


def _try(
    function: object, right: Callable[..., np.ndarray], probes: Sequence[tuple[Any, ...]], faults: Iterable[Fault],
    praise: str, otherwise: str,
) -> CheckResult:  # fmt: skip
    """Calls the function on every probe and compares what comes with what is right, then with each fault's."""
    if not callable(function):
        return CheckResult(False, f"A function is wanted; this is of type {type_name(function)}.", "type")

    def one(probe: tuple[Any, ...]) -> tuple[Any, bool]:
        given = [np.array(a) if isinstance(a, np.ndarray) else a for a in probe]
        with np.errstate(all="ignore"):
            value = function(*given)
        changed = any(isinstance(a, np.ndarray) and not np.array_equal(a, b) for a, b in zip(given, probe))
        if value is None or value is ...:
            return value, changed
        array = np.array(value)
        return (array if array.dtype.kind in "biuf" else type_name(value)), changed

    answers = []
    for probe in probes:
        outcome = run(one, probe)
        if outcome.failure is not None:
            return outcome.failure
        value, changed = outcome.value
        if value is None or value is ...:
            return CheckResult(False, "Your function returns nothing (None); it should return an array.", "unanswered")
        if isinstance(value, str):
            return CheckResult(False, f"Your function returns a {value}; an array of numbers is wanted.", "type")
        if changed:
            return CheckResult(False, "Your function changes the array it is given, which its caller needs again. "
 "Make a new array.", "in_place")  # fmt: skip
        answers.append(value)
    expected = [right(*probe) for probe in probes]
    if _same(answers, expected):
        return CheckResult(True, praise)
    with np.errstate(all="ignore"):
        found = [f for f in faults if _same(answers, [f.function(*probe) for probe in probes])][:2]
    if found:
        return CheckResult(False, " Or: ".join(f.text for f in found), " or ".join(f.name for f in found))
    for answer, wanted in zip(answers, expected):
        if answer.shape != wanted.shape:
            return CheckResult(False, f"It returns shape {answer.shape} where {wanted.shape} is wanted.", "shape")
    n_right = sum(_same([a], [e]) for a, e in zip(answers, expected))
    some = f" {n_right} of {len(probes)} trials come out right." if n_right else ""
    return CheckResult(False, otherwise + some)


def _same(answers: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return all(
        a.shape == e.shape and np.allclose(a.astype(np.float64), e.astype(np.float64), 1e-4, 1e-5, equal_nan=True)
        for a, e in zip(answers, expected)
    )


# ---- 2. RMSNorm ----


def _rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x * weight / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def _root(x: np.ndarray, weight: np.ndarray, mean_square: Any) -> np.ndarray:
    return x * weight / np.sqrt(mean_square)


_NORM_PROBES = (
    (np.array([[1.0, 5.0, 7.0]]), np.ones(3), 0.0),
    (np.array([[1.0, 5.0, 7.0], [0.3, -0.1, 0.2]]), np.array([2.0, 1.0, -1.0]), 0.0),
    (np.array([[0.02, -0.01, 0.03], [4.0, 5.0, 6.0]]), np.array([2.0, 1.0, 0.5]), 1e-3),
    (np.zeros((2, 3)), np.ones(3), 1e-5),
)


def rmsnorm(function: object) -> CheckResult:
    """Checks `rmsnorm(x, weight, eps)`: x (n, d), weight (d,) -> (n, d)."""

    def layer_norm(x: np.ndarray, w: np.ndarray, e: float) -> np.ndarray:
        return _rmsnorm(x - x.mean(axis=-1, keepdims=True), w, e)

    ms: Callable[[np.ndarray], np.ndarray] = lambda x: (x * x).mean(axis=-1, keepdims=True)
    return _try(function, _rmsnorm, _NORM_PROBES, [
        Fault("mean_subtracted", layer_norm, "This subtracts the mean first: that is LayerNorm. RMSNorm only scales."),
        Fault("no_eps", lambda x, w, e: _root(x, w, ms(x)), "Without eps, a vector of zeros divides by zero."),
        Fault("eps_outside", lambda x, w, e: x * w / (np.sqrt(ms(x)) + e), "eps belongs under the root, added to the "
              "mean of the squares."),
        Fault("sum", lambda x, w, e: _root(x, w, (x * x).sum(axis=-1, keepdims=True) + e), "This divides by the "
              "vector's length: the root of the sum of squares. The M in RMS is for mean."),
        Fault("no_root", lambda x, w, e: x * w / (ms(x) + e), "The root is missing: the mean of squares grows four "
              "times as large when x doubles."),
        Fault("whole_array", lambda x, w, e: _root(x, w, (x * x).mean() + e), "This takes one mean over all tokens. "
              "Each row is a token of its own: axis=-1, keepdims=True."),
        Fault("no_weight", lambda x, w, e: _rmsnorm(x, np.ones(3), e), "The scaling is right; the learned weight is "
              "not used."),
    ], "Four trials, among them a vector of zeros.", "Not what RMSNorm gives.")  # fmt: skip


# ---- 3. the causal mask ----

_MASK_PROBES = ((3, 0), (1, 0), (2, 4), (1, 5))


def _hidden(n: int, n_past: int) -> np.ndarray:
    return np.arange(n_past + n)[None, :] > n_past + np.arange(n)[:, None]


def hidden(function: object) -> CheckResult:
    """Checks `hidden(n, n_past)` -> booleans (n, n_past + n), True where token i must not see position j."""

    def padded(n: int, n_past: int) -> np.ndarray:  # the new tokens see no cached position
        return np.arange(n_past + n)[None, :] > np.arange(n)[:, None]

    def strict(n: int, n_past: int) -> np.ndarray:
        return np.arange(n_past + n)[None, :] >= n_past + np.arange(n)[:, None]

    return _try(function, _hidden, _MASK_PROBES, [
        Fault("inverted", lambda n, p: ~_hidden(n, p), "This is True where a token may look. Hidden is the opposite."),
        Fault("itself", strict, "A token may look at itself; this hides it."),
        Fault("inverted_itself", lambda n, p: ~strict(n, p), "This is True for what came before. Those are the ones a "
              "token may look at, and at itself."),
        Fault("past", padded, "This counts the new tokens from position 0. The first of them is at n_past."),
        Fault("square", lambda n, p: _hidden(n, 0), "This is for the new tokens alone. There are n_past columns more: "
              "the cached positions, which all of them may see."),
        Fault("transposed", lambda n, p: _hidden(n, p).T, "Rows and columns are exchanged: a row a new token, a column "
              "a position it might look at."),
        Fault("additive", lambda n, p: np.where(_hidden(n, p), -np.inf, 0.0), "These are numbers to add to the scores, "
              "and they would do. Here booleans are wanted: True where a token must not look."),
        Fault("nothing_hidden", lambda n, p: np.zeros((n, p + n), bool), "This hides nothing: in a prompt, each token "
              "could read the one that it is to predict."),
    ], "Also with tokens in the cache, where a single new one sees everything.", "Not the causal mask.")  # fmt: skip


# ---- 4. RoPE ----


def _angles(positions: np.ndarray, d: int, base: float) -> np.ndarray:
    return positions[:, None] * base ** (-np.arange(0, d, 2) / d)  # (n, d/2)


def _turn(x: np.ndarray, angles: np.ndarray, halves: bool = False) -> np.ndarray:
    r = x.shape[-1] // 2
    first, second = (slice(0, r), slice(r, None)) if halves else (slice(0, None, 2), slice(1, None, 2))
    out, a, b = np.empty_like(x), x[..., first], x[..., second]
    out[..., first] = a * np.cos(angles) - b * np.sin(angles)
    out[..., second] = a * np.sin(angles) + b * np.cos(angles)
    return out


def _rope(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    return _turn(x, _angles(positions, x.shape[-1], base))


_ROPE_PROBES = tuple(
    (np.random.default_rng(seed).standard_normal((n, d)).round(2), np.arange(start, start + n), base)
    for seed, n, d, start, base in ((1, 2, 4, 1, 100.0), (2, 3, 8, 0, 10_000.0), (3, 1, 6, 7, 1000.0))
)


def rope(function: object) -> CheckResult:
    """Checks `rope(x, positions, base)`: x (n, d), positions (n,) -> (n, d), adjacent pairs turned."""
    twice: Callable[..., np.ndarray] = lambda p, d, b: p[:, None] * b ** (-np.arange(d // 2) / d)
    return _try(function, _rope, _ROPE_PROBES, [
        Fault("halves", lambda x, p, b: _turn(x, _angles(p, x.shape[-1], b), True), "This pairs number i with number "
              "i + d/2, as other families do. In this file a Llama's pairs are neighbours: 0 and 1, 2 and 3."),
        Fault("backwards", lambda x, p, b: _turn(x, -_angles(p, x.shape[-1], b)), "This turns the other way: look at "
              "the two signs in front of the sines."),
        Fault("exponent", lambda x, p, b: _turn(x, twice(p, x.shape[-1], b)), "The exponent of pair i is -2i/d; here "
              "the 2 is missing, so the pairs turn too fast."),
        Fault("exponent_sign", lambda x, p, b: _turn(x, p[:, None] * b ** (np.arange(0, x.shape[-1], 2) / x.shape[-1])),
              "The pairs turn faster and faster; later pairs should be slower. The exponent is negative."),
        Fault("degrees", lambda x, p, b: _turn(x, np.deg2rad(_angles(p, x.shape[-1], b))), "The angles are radians "
              "already; this converts them once more."),
        Fault("from_zero", lambda x, p, b: _rope(x, np.arange(len(x)), b), "This counts positions from 0 in every "
              "call. With a cache the first new token is further on: use `positions`."),
        Fault("one_speed", lambda x, p, b: _turn(x, np.repeat(p[:, None], x.shape[-1] // 2, 1)), "All pairs turn at "
              "the same speed. Pair i has its own: base ** (-2i/d)."),
        Fault("overwritten", _overwritten, "The second number of each pair is made from the first after it was turned. "
              "Keep the old values until both are done."),
        Fault("not_turned", lambda x, p, b: x, "Nothing was turned."),
    ], "Three trials, at positions from 0 to 7.", "Not the rotation that is wanted.")  # fmt: skip


def _overwritten(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    out, angles = x.copy(), _angles(positions, x.shape[-1], base)
    out[..., ::2] = out[..., ::2] * np.cos(angles) - out[..., 1::2] * np.sin(angles)
    out[..., 1::2] = out[..., ::2] * np.sin(angles) + out[..., 1::2] * np.cos(angles)
    return out
