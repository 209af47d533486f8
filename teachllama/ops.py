"""The arithmetic of a transformer in NumPy, float32: the reference that compiled kernels are tested against.

Knows nothing of sessions or files. Shapes: n tokens, T cached positions, H query heads, G key/value heads.
"""

from __future__ import annotations

import numpy as np


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


def softmax(x: np.ndarray) -> np.ndarray:
    """(..., d) -> (..., d): positive, summing to 1 along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rope_angles(positions: np.ndarray, dim: int, base: float, factor: float, divisors: np.ndarray | None) -> np.ndarray:
    """positions (n,) -> rotations (n, 1, dim/2) complex64, e^(i * angle), to broadcast over heads.

    Pair i turns by position / factor * base^(-2i/dim) radians, divided by `divisors[i]` where a file has them
    (Llama 3.1's long context). https://arxiv.org/abs/2104.09864
    """
    frequencies = base ** (
        -np.arange(0, dim, 2) / dim
    )  # float64 here: a large position times a rounded frequency drifts
    if divisors is not None:
        frequencies = frequencies / divisors
    angles = positions[:, None] / factor * frequencies  # (n, dim/2)
    return np.exp(1j * angles).astype(np.complex64)[:, None, :]


def rope(x: np.ndarray, rotations: np.ndarray, pairs: str) -> np.ndarray:
    """x (n, heads, head_dim), rotations (n, 1, r) complex -> x with its first 2r numbers rotated, pair by pair."""
    r = rotations.shape[-1]
    out = x.copy()
    if pairs == "adjacent":  # (2i, 2i+1) is one complex number, and rotating is multiplying by e^(i * angle)
        pair = np.ascontiguousarray(x[..., : 2 * r]).view(np.complex64)  # (n, heads, r)
        out[..., : 2 * r] = (pair * rotations).view(np.float32)
    else:  # "halves": (i, i + r)
        a, b, cos, sin = x[..., :r], x[..., r : 2 * r], rotations.real, rotations.imag
        out[..., :r] = a * cos - b * sin
        out[..., r : 2 * r] = a * sin + b * cos
    return out


def attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float, n_ahead: int, window: int | None
) -> np.ndarray:
    """q (n, H, d), keys (G, T, d), values (G, T, dv) -> (n, H * dv). https://arxiv.org/abs/1706.03762

    Key j is visible to token i where j <= n_ahead + i and, with a window, j > n_ahead + i - window: `n_ahead` keys lie
    before the first token. Each of the G heads serves H / G query heads (https://arxiv.org/abs/2305.13245), which are
    stacked as rows, so keys are never copied.
    """
    (n, n_heads, _), (groups, total, dv) = q.shape, values.shape
    scores = _scores(q, keys, scale, n_ahead, window)  # (G, H/G, n, T)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    sums = scores.sum(axis=-1, keepdims=True)  # (G, H/G, n, 1)
    out = (scores.reshape(groups, -1, total) @ values).reshape(
        groups, -1, n, dv
    ) / sums  # dividing here: dv < T numbers
    return out.transpose(2, 0, 1, 3).reshape(n, n_heads * dv)


def attention_weights(q: np.ndarray, keys: np.ndarray, scale: float, n_ahead: int, window: int | None) -> np.ndarray:
    """How much each token looks at each key: (n_heads, n, T), every row summing to 1. For pictures; see `attention`."""
    n, n_heads, _ = q.shape
    return softmax(_scores(q, keys, scale, n_ahead, window)).reshape(n_heads, n, -1)


def _scores(q: np.ndarray, keys: np.ndarray, scale: float, n_ahead: int, window: int | None) -> np.ndarray:
    """q . k, scaled, with what a token may not see at -inf: (G, H/G, n, T)."""
    (n, _, d), (groups, total, _) = q.shape, keys.shape
    rows = (
        (q * np.float32(scale)).reshape(n, groups, -1, d).transpose(1, 2, 0, 3).reshape(groups, -1, d)
    )  # (G, H/G*n, d)
    scores = (rows @ keys.transpose(0, 2, 1)).reshape(groups, -1, n, total)  # (G, H/G, n, T)
    if n > 1 or window is not None:
        token, key = n_ahead + np.arange(n)[:, None], np.arange(total)[None, :]
        hidden = key > token
        if window is not None:
            hidden |= key <= token - window
        first = int(np.argmax(hidden.any(axis=0))) if hidden.any() else total  # only these columns need the mask
        np.copyto(scores[..., first:], -np.inf, where=hidden[:, first:])
    return scores
