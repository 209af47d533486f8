"""Looking inside: the likeliest tokens at any position, what attention looks at, every value of one decode step.

Written for pictures, not for speed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from teachllama import threads
from teachllama.batch import Batch
from teachllama.errors import ParameterError, TokenError
from teachllama.forward import forward
from teachllama.model import MAX_SCORES, Model
from teachllama.ops import NumpyOps, softmax
from teachllama.ops import attention_weights as attention_weights_of
from teachllama.session import checked_ids
from teachllama.spec import AttentionSpec, ModelSpec
from teachllama.weights import Linear, Weights
from teachllama.whole_numbers import whole


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could come next."""

    id: int
    piece: str
    probability: float  # from 0 to 1, in the model's own distribution: temperature 1, no cuts, no penalties


def alternatives(model: Model, logits: np.ndarray, k: int = 10) -> list[list[Alternative]]:
    """The k likeliest next tokens at each position, likeliest first.

    Args:
        logits: (n, vocab_size), as `session.eval(ids, all_logits=True)` returns them, or (vocab_size,) for one
            position: `session.logits`.
        k: how many; at most the vocabulary.

    Returns:
        a list of k alternatives for each of the n positions.

    Raises:
        ParameterError: k is out of range, or the logits have another shape.
    """
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    if logits.ndim != 2 or logits.shape[1] != model.config.vocab_size:
        raise ParameterError(f"logits have shape {logits.shape}; expected (n, {model.config.vocab_size})")
    k = whole("k", k, 1, logits.shape[1])
    result = []
    for row in logits:
        probabilities = softmax(row.astype(np.float64))
        likeliest = np.argsort(-row, kind="stable")[:k]
        result.append([Alternative(int(i), model.piece(i), float(probabilities[i])) for i in likeliest])
    return result


def attention_weights(model: Model, text: str | Iterable[int], layer: int) -> np.ndarray:
    """How much each token of a text looks at each token before it, in every head of one layer.

    The NumPy reference computes it, whatever the backend. Load the model with `weights="f32"` to avoid dequantizing
    all blocks at each call.

    Args:
        text: text (special tokens are parsed, and a beginning-of-text token is prepended if the model expects one), or
            ids.
        layer: from 0 to n_layers - 1; a negative one counts from the end.

    Returns:
        float32 (n_heads, n, n): row i is token i's; it sums to 1, less what a sink takes, and is 0 for tokens that i
        cannot see.

    Raises:
        ParameterError: there is no such layer. TokenError: no tokens, or too many for a picture.
    """
    n_layers = model.config.n_layers
    layer = whole("layer", layer, -n_layers, n_layers - 1)
    ids = model.encode(text, add_special=True, parse_special=True) if isinstance(text, str) else list(text)
    most = min(model.config.seq_len, int((MAX_SCORES / model.config.n_heads) ** 0.5))
    if len(ids) > most:
        raise TokenError(f"{len(ids)} tokens are too many for a picture of n x n numbers a head; at most {most}")
    watched = _Watched(model.spec, layer % n_layers)
    with model.create_session(seq_len=max(1, len(ids))) as session:
        checked = checked_ids(ids, model.config.vocab_size)
        with threads.products, np.errstate(over="ignore", invalid="ignore"):  # as in Session.eval
            forward(watched, model.spec, model.weights, Batch.of_one(checked, 0, session._cache))
    return watched.weights


@dataclass(frozen=True, slots=True)
class LayerStep:
    """What one layer computed for one token, in float32: H query heads, G key/value heads, T cached positions."""

    normed: np.ndarray  # (dim,): the input of attention, the residual stream after the layer's first norm
    q: np.ndarray  # (H, d): the queries, rotated by RoPE
    keys: np.ndarray  # (G, T, d): all keys that this layer sees; the last is the token's own, just written
    values: np.ndarray  # (G, T, dv): the values at the same positions
    weights: np.ndarray  # (H, T): each head's attention, which sums to 1, less what a sink takes
    attended: np.ndarray  # (dim,): what attention adds to the residual stream
    fed: np.ndarray  # (dim,): what the feed-forward network adds
    x: np.ndarray  # (dim,): the residual stream after the layer


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step from the token's id to the logits, with every value in between: see `decode_step`."""

    ids: list[int]  # the text; the step evaluates its last token, and the tokens before it are in the cache
    pieces: list[str]  # their texts
    embedding: np.ndarray  # (dim,): the residual stream before layer 0
    layers: list[LayerStep]
    lens: np.ndarray  # (n_layers + 1,): the likeliest token if the model ended with the embedding, or after each layer
    logits: np.ndarray  # (vocab_size,)
    likeliest: list[Alternative]  # the likeliest next tokens, at most five
    lens_pieces: list[str]  # the texts of `lens`


def decode_step(model: Model, text: str | Iterable[int]) -> Step:
    """Evaluates a text's last token and keeps every intermediate value; the tokens before it are in the cache.

    The model's own backend evaluates the tokens before, the NumPy reference evaluates the step. `Step.lens` reads the
    residual stream after each layer with the model's output norm and output matrix, which is known as the logit lens.

    Args:
        text: text (special tokens are parsed, and a beginning-of-text token is prepended if the model expects one), or
            ids.

    Raises:
        TokenError: no tokens, or more than the context holds.
    """
    ids = model.encode(text, add_special=True, parse_special=True) if isinstance(text, str) else list(text)
    if len(ids) > model.config.seq_len:
        raise TokenError(f"{len(ids)} tokens are too many for a context of {model.config.seq_len}; shorten the text")
    checked = checked_ids(ids, model.config.vocab_size)
    with model.create_session(seq_len=len(ids)) as session:
        if len(ids) > 1:
            session.eval(checked[:-1])
        ops = _Recorded(model.spec)
        with threads.products, np.errstate(over="ignore", invalid="ignore"):  # as in Session.eval
            last = Batch.of_one(checked[-1:], len(ids) - 1, session._cache)
            logits = forward(ops, model.spec, model.weights, last)[0]
    lens = ops.lens.argmax(axis=1)
    return Step(
        ids=[int(i) for i in ids],
        pieces=[model.piece(int(i)) for i in ids],
        embedding=ops.stream[0],
        layers=[
            LayerStep(
                normed=ops.normed[i],
                **ops.attention[i],
                attended=ops.added[2 * i],
                fed=ops.added[2 * i + 1],
                x=ops.stream[2 * i + 2],
            )
            for i in range(len(model.spec.layers))
        ],
        lens=lens,
        logits=logits,
        likeliest=alternatives(model, logits, min(5, len(logits)))[0],
        lens_pieces=[model.piece(int(i)) for i in lens],
    )


class _Recorded(NumpyOps):
    """The reference forward pass for one token, which also keeps the values of `Step`."""

    lens: np.ndarray  # (n_layers + 1, vocab_size)
    _x: np.ndarray  # the current residual stream

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.stream: list[np.ndarray] = []  # after the embedding, and after each of a layer's two additions: (dim,)
        self.added: list[np.ndarray] = []
        self.normed: list[np.ndarray] = []
        self.attention: list[dict[str, np.ndarray]] = []
        self._layer_begins = False

    def embed(self, embedding: Linear, batch: Batch, scale: float) -> np.ndarray:
        """As `NumpyOps.embed`."""
        self._x = super().embed(embedding, batch, scale)
        self.stream.append(self._x[0].copy())
        self._layer_begins = True
        return self._x

    def norm(self, x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        """As `NumpyOps.norm`; the first in each layer is the one before attention."""
        h = super().norm(x, weight)
        if self._layer_begins:
            self.normed.append(h[0].copy())
            self._layer_begins = False
        return h

    def attend(
        self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray | None, s: AttentionSpec, sinks: Any, batch: Batch
    ) -> np.ndarray:
        """As `NumpyOps.attend`, for one token of one session."""
        out = super().attend(i, q, k, v, s, sinks, batch)
        new_k = k.reshape(1, s.n_kv_heads, s.head_dim)
        new_v = None if v is None else v.reshape(1, s.n_kv_heads, s.value_dim)
        # The second call writes the same keys and values again.
        keys, values, n_ahead = batch.runs[0].cache.extend(i, int(batch.positions[0]), new_k, new_v)
        heads = q.reshape(1, s.n_heads, s.head_dim)
        weights = attention_weights_of(heads, keys, s.scale, n_ahead, s.window, s.softcap, sinks)[:, 0]
        self.attention.append(
            {"q": heads[0].copy(), "keys": np.array(keys), "values": np.array(values), "weights": weights}
        )
        return out

    def add(self, x: np.ndarray, h: np.ndarray, norm: np.ndarray | None = None, scale: float = 1.0) -> np.ndarray:
        """As `NumpyOps.add`. It also adds the shared experts' output, which does not go to the residual stream yet."""
        out = super().add(x, h, norm, scale)
        if x is self._x:
            self._x = out
            self.stream.append(out[0].copy())
            self.added.append((out - x)[0])
            self._layer_begins = len(self.added) % 2 == 0
        return out

    def logits(self, x: np.ndarray, w: Weights, spec: ModelSpec, batch: Batch) -> np.ndarray:
        """As `NumpyOps.logits`; also computes the logits of the stream after each layer, in the same product."""
        self._layer_begins = False
        every = Batch(batch.tokens, batch.positions, batch.runs, np.arange(len(spec.layers) + 1))
        self.lens = super().logits(np.stack(self.stream[::2]), w, spec, every)
        return self.lens[-1:]


class _Watched(NumpyOps):
    """The reference forward pass, which also keeps how the heads of one layer attended."""

    weights: np.ndarray

    def __init__(self, spec: ModelSpec, layer: int):
        super().__init__(spec)
        self.layer = layer

    def attend(
        self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray | None, s: AttentionSpec, sinks: Any, batch: Batch
    ) -> np.ndarray:
        """As `NumpyOps.attend`, for a batch of one session that starts at position 0."""
        if i == self.layer:
            heads, keys = q.reshape(len(q), s.n_heads, -1), k.reshape(len(k), s.n_kv_heads, -1).transpose(1, 0, 2)
            self.weights = attention_weights_of(heads, keys, s.scale, 0, s.window, s.softcap, sinks)
        return super().attend(i, q, k, v, s, sinks, batch)
