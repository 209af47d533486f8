"""The arithmetic of a transformer in NumPy, float32: the reference that compiled kernels are tested against.

First the functions, each an equation; then `NumpyOps`, which gives them the interface that `forward.py` calls.
Independent of files. Shapes: n tokens, T cached positions, H query heads, G key/value heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from teachllama.batch import Batch
from teachllama.spec import Activation, AttentionSpec, FeedForwardSpec, ModelSpec, Rope, RopePairs, Routing, Scores
from teachllama.weights import Experts, Gated, Linear, Weights


def rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x (..., d), weight (d,) -> (..., d): scaled to a root mean square of 1. https://arxiv.org/abs/1910.07467"""
    mean_square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    return x * (weight / np.sqrt(mean_square + np.float32(eps)))


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x). https://arxiv.org/abs/1702.03118"""
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form of GELU. https://arxiv.org/abs/1606.08415"""
    return 0.5 * x * (1 + np.tanh(np.float32(0.7978845608) * x * (1 + np.float32(0.044715) * x * x)))


def swiglu_oai(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gpt-oss's gate: both branches clamped at 7, and 1 added to the up branch. https://arxiv.org/abs/2508.10925"""
    gate = np.minimum(gate, np.float32(7))
    return gate / (1 + np.exp(np.float32(-1.702) * gate)) * (np.clip(up, -7, 7) + np.float32(1))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def softcap(x: np.ndarray, cap: float) -> np.ndarray:
    """cap * tanh(x / cap): nearly x for small x, never beyond the cap. https://arxiv.org/abs/2408.00118"""
    return np.tanh(x / np.float32(cap)) * np.float32(cap)


def softmax(x: np.ndarray) -> np.ndarray:
    """(..., d) -> (..., d): positive, summing to 1 along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rope_angles(positions: np.ndarray, dim: int, base: float, factor: float, divisors: np.ndarray | None) -> np.ndarray:
    """positions (n,) -> rotations (n, 1, dim/2) complex64, e^(i * angle), to broadcast over heads.

    Pair i rotates by position / factor * base^(-2i/dim) radians, divided by `divisors[i]` where a file has them
    (Llama 3.1's long context). https://arxiv.org/abs/2104.09864
    """
    frequencies = base ** (
        -np.arange(0, dim, 2) / dim
    )  # float64 here: a large position times a rounded frequency drifts
    if divisors is not None:
        frequencies = frequencies / divisors
    angles = positions[:, None] / factor * frequencies  # (n, dim/2)
    return np.exp(1j * angles).astype(np.complex64)[:, None, :]


def rope(x: np.ndarray, rotations: np.ndarray, pairs: RopePairs | str) -> np.ndarray:
    """x (n, heads, head_dim), rotations (n, 1, r) complex -> x with its first 2r numbers rotated, pair by pair."""
    r = rotations.shape[-1]
    out = x.copy()
    if (
        RopePairs(pairs) == RopePairs.INTERLEAVED
    ):  # (2i, 2i+1) is one complex number, and rotating is multiplying by e^(i * angle)
        pair = np.ascontiguousarray(x[..., : 2 * r]).view(np.complex64)  # (n, heads, r)
        out[..., : 2 * r] = (pair * rotations).view(np.float32)
    else:  # NeoX: (i, i + r)
        a, b, cos, sin = x[..., :r], x[..., r : 2 * r], rotations.real, rotations.imag
        out[..., :r] = a * cos - b * sin
        out[..., r : 2 * r] = a * sin + b * cos
    return out


def attention(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    scale: float,
    n_ahead: int,
    window: int | None,
    cap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """q (n, H, d), keys (G, T, d), values (G, T, dv) -> (n, H * dv). https://arxiv.org/abs/1706.03762

    `n_ahead` keys precede the first token: key j is visible to token i if j <= n_ahead + i and, with a window,
    j > n_ahead + i - window. Each of the G heads serves H / G query heads (https://arxiv.org/abs/2305.13245), which are
    stacked as rows, so keys are never copied.

    Args:
        cap: soft cap of the scores; 0 for none.
        sinks: (H,), one extra score per head, which takes a share of the softmax and adds nothing to the output.
    """
    (n, n_heads, _), (groups, total, dv) = q.shape, values.shape
    scores = _scores(q, keys, scale, n_ahead, window, cap)  # (G, H/G, n, T)
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        sink = sinks.reshape(groups, -1, 1, 1)
        top = np.maximum(top, sink)
    scores -= top
    np.exp(scores, out=scores)
    sums = scores.sum(axis=-1, keepdims=True)  # (G, H/G, n, 1)
    if sinks is not None:
        sums += np.exp(sink - top)
    out = (scores.reshape(groups, -1, total) @ values).reshape(
        groups, -1, n, dv
    ) / sums  # dividing here: dv < T numbers
    return out.transpose(2, 0, 1, 3).reshape(n, n_heads * dv)


def attention_weights(
    q: np.ndarray,
    keys: np.ndarray,
    scale: float,
    n_ahead: int,
    window: int | None,
    cap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """How much each token attends to each key: (n_heads, n, T), for pictures; see `attention`.

    Every row sums to 1, less what a sink takes.
    """
    n, n_heads, _ = q.shape
    scores = _scores(q, keys, scale, n_ahead, window, cap).reshape(n_heads, n, -1)
    if sinks is None:
        return softmax(scores)
    with_sink = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (n_heads, n, 1))], axis=-1)
    return softmax(with_sink)[..., :-1]


def _scores(q: np.ndarray, keys: np.ndarray, scale: float, n_ahead: int, window: int | None, cap: float) -> np.ndarray:
    """q . k, scaled and capped, with -inf for the keys that a token may not see: (G, H/G, n, T)."""
    (n, _, d), (groups, total, _) = q.shape, keys.shape
    rows = (
        (q * np.float32(scale)).reshape(n, groups, -1, d).transpose(1, 2, 0, 3).reshape(groups, -1, d)
    )  # (G, H/G*n, d)
    scores = (rows @ keys.transpose(0, 2, 1)).reshape(groups, -1, n, total)  # (G, H/G, n, T)
    if cap:
        scores = softcap(scores, cap)
    if n > 1 or window is not None:
        token, key = n_ahead + np.arange(n)[:, None], np.arange(total)[None, :]
        hidden = key > token
        if window is not None:
            hidden |= key <= token - window
        first = int(np.argmax(hidden.any(axis=0))) if hidden.any() else total  # only these columns need the mask
        np.copyto(scores[..., first:], -np.inf, where=hidden[:, first:])
    return scores


def choose_experts(scores: np.ndarray, s: Routing, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """A router's outputs (n, n_experts) -> the experts each token visits, (n, n_used), and their weights.

    Ties go to the first expert. https://arxiv.org/abs/2401.04088; groups: https://arxiv.org/abs/2412.19437
    """
    made = {Scores.SOFTMAX: softmax, Scores.SIGMOID: sigmoid, Scores.SOFTMAX_OF_CHOSEN: lambda x: x}
    weights = made[s.scores](scores)
    choice = weights if bias is None else weights + bias
    if s.n_groups > 1:  # keep only the groups with the best sums of their two best experts
        groups = choice.reshape(len(choice), s.n_groups, -1)
        best_two = np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)  # (n, n_groups)
        kept = np.argsort(-best_two, axis=-1, kind="stable")[:, : s.n_groups_used]
        mask = np.zeros(best_two.shape, bool)
        np.put_along_axis(mask, kept, True, axis=-1)
        choice = np.where(mask[..., None], groups, -np.inf).reshape(choice.shape)
    chosen = np.argsort(-choice, axis=-1, kind="stable")[:, : s.n_used]
    weights = np.take_along_axis(weights, chosen, axis=-1)
    if s.scores == Scores.SOFTMAX_OF_CHOSEN:
        weights = softmax(weights)
    elif s.normalize:  # the bound is llama.cpp's: float16's smallest normal number
        weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(2**-14))
    return chosen, weights * np.float32(s.scale)


class NumpyOps:
    """The operations of `forward`, computed immediately in float32."""

    def __init__(self, spec: ModelSpec):
        self.eps = spec.norm_eps
        self._rotations: dict[int, np.ndarray] = {}

    def embed(self, embedding: Linear, batch: Batch, scale: float) -> np.ndarray:
        """Rows of the embedding: (n, dim)."""
        x = embedding.take(batch.tokens)
        return x * np.float32(scale) if scale != 1 else x

    def norm(self, x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        """RMSNorm of every len(weight) numbers of a row; x itself without a weight."""
        if weight is None:
            return x
        return rmsnorm(x.reshape(len(x), -1, len(weight)), weight, self.eps).reshape(x.shape)

    def linear(self, x: np.ndarray, m: Linear) -> np.ndarray:
        """x (n, columns) -> (n, rows)."""
        return m.multiply(x)

    def linear_heads(self, x: np.ndarray, m: Linear, n_heads: int) -> np.ndarray:
        """Multiplies each head's first numbers by its own rows of m; the head's other numbers follow unchanged."""
        heads = x.reshape(len(x), n_heads, -1)
        rows, columns = m.rows // n_heads, m.columns
        out = np.empty((len(x), n_heads, rows + heads.shape[-1] - columns), np.float32)
        for h in range(n_heads):
            out[:, h, :rows] = m.cut(h * rows, (h + 1) * rows).multiply(heads[:, h, :columns])
        out[:, :, rows:] = heads[:, :, columns:]
        return out.reshape(len(x), -1)

    def concat(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Joins each row of a and the same row of b."""
        return np.concatenate([a, b], axis=1)

    def rope(self, x: np.ndarray, s: AttentionSpec, batch: Batch) -> np.ndarray:
        """Every head of x (n, heads * head_dim), rotated by its token's position."""
        if s.rope is None:
            return x
        if id(s.rope) not in self._rotations:
            self._rotations[id(s.rope)] = self._rotations_of(s.rope, batch)
        heads = x.reshape(len(x), -1, s.head_dim)
        out = heads.copy()
        out[..., s.rope.first :] = rope(heads[..., s.rope.first :], self._rotations[id(s.rope)], s.rope.pairs)
        return out.reshape(x.shape)

    @staticmethod
    def _rotations_of(r: Rope, batch: Batch) -> np.ndarray:
        """(n, 1, pairs) complex64."""
        out = np.empty((len(batch.tokens), 1, len(r.frequencies)), np.complex64)
        for run in batch.runs:
            frequencies, magnitude = r.at_length(run.cache.seq_len)
            positions = batch.positions[run.begin : run.end]  # float64 below: float32 would drift at large positions
            out[run.begin : run.end, 0] = magnitude * np.exp(1j * positions[:, None] * np.asarray(frequencies))
        return out

    def attend(
        self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray | None, s: AttentionSpec, sinks: Any, batch: Batch
    ) -> np.ndarray:
        """Writes keys and values to each session's cache, and attends to the cache: (n, H * dv)."""
        out = np.empty((len(q), s.n_heads * s.value_dim), np.float32)
        for run in batch.runs:
            rows, start = slice(run.begin, run.end), int(batch.positions[run.begin])
            new_k = k[rows].reshape(-1, s.n_kv_heads, s.head_dim)
            new_v = None if v is None else v[rows].reshape(-1, s.n_kv_heads, s.value_dim)
            keys, values, n_ahead = run.cache.extend(i, start, new_k, new_v)  # (G, T, d), (G, T, dv)
            heads = q[rows].reshape(-1, s.n_heads, s.head_dim)
            out[rows] = attention(heads, keys, values, s.scale, n_ahead, s.window, s.softcap, sinks)
        return out

    def add(self, x: np.ndarray, h: np.ndarray, norm: np.ndarray | None = None, scale: float = 1.0) -> np.ndarray:
        """x plus a branch's output, normalized and scaled."""
        h = self.norm(h, norm)
        return x + (h * np.float32(scale) if scale != 1 else h)

    def times_sigmoid(self, x: np.ndarray, gate: np.ndarray) -> np.ndarray:
        """x (n, d) times the sigmoid of gate (n, 1)."""
        return x * sigmoid(gate)

    def gated(self, x: np.ndarray, m: Gated, s: FeedForwardSpec) -> np.ndarray:
        """The feed-forward network, applied to each token alone. https://arxiv.org/abs/2002.05202"""
        gate, up = m.gate.multiply(x), m.up.multiply(x)
        if s.activation == Activation.SWIGLU_OAI:
            return m.down.multiply(swiglu_oai(gate, up))
        activation = {Activation.SILU: silu, Activation.GELU: gelu}[s.activation]
        return m.down.multiply(activation(gate) * up)

    def experts(self, x: np.ndarray, m: Experts, s: FeedForwardSpec) -> np.ndarray:
        """The weighted sum of the outputs of each token's experts."""
        assert s.experts is not None
        chosen, weights = choose_experts(m.router.multiply(x), s.experts, m.selection_bias)
        out = np.zeros_like(x)
        for e in np.unique(chosen):
            rows, slots = np.nonzero(chosen == e)
            out[rows] += weights[rows, slots][:, None] * self.gated(x[rows], m.expert(int(e)), s)
        return out

    def logits(self, x: np.ndarray, w: Weights, spec: ModelSpec, batch: Batch) -> np.ndarray:
        """Logits of the wanted rows only, since this product is the largest of all: (m, vocab_size)."""
        logits = w.output.multiply(self.norm(x[batch.wanted], w.output_norm))
        if spec.logit_scale != 1:
            logits *= np.float32(spec.logit_scale)
        return softcap(logits, spec.logit_softcap) if spec.logit_softcap else logits
