"""Looking inside: the likeliest next tokens at any position, and what attention looks at. For pictures, not speed."""

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
from teachllama.whole_numbers import whole


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could come next."""

    id: int
    piece: str
    probability: float  # from 0 to 1, of the model's own distribution: temperature 1, no cuts, no penalties


def alternatives(model: Model, logits: np.ndarray, k: int = 10) -> list[list[Alternative]]:
    """The k likeliest next tokens at each position, likeliest first.

    Args:
        logits: (n, vocab_size), as `session.eval(ids, all_logits=True)` returns them, or (vocab_size,) for one
            position: `session.logits`.
        k: how many; at most the vocabulary.

    Returns:
        a list of k for each of the n positions (one list for one position).

    Raises:
        ParameterError: k or the logits' shape is not as above.
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

    The NumPy reference computes it, whatever the backend: a model loaded with `weights="f32"` spares it unpacking all
    blocks at each call.

    Args:
        text: text (special tokens are parsed; begun with a beginning-of-text token where the model wants one), or ids.
        layer: from 0 to n_layers - 1; a negative one counts from the end.

    Returns:
        float32 (n_heads, n, n): row i is token i's; it sums to 1, and is 0 for tokens that i cannot see.

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


class _Watched(NumpyOps):
    """The reference forward pass, which also keeps how the heads of one layer attended."""

    weights: np.ndarray

    def __init__(self, spec: ModelSpec, layer: int):
        super().__init__(spec)
        self.layer = layer

    def attend(
        self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray | None, s: AttentionSpec, sinks: Any, batch: Batch
    ) -> np.ndarray:
        """As `NumpyOps.attend`, for a batch of one session from its beginning."""
        if i == self.layer:
            heads, keys = q.reshape(len(q), s.n_heads, -1), k.reshape(len(k), s.n_kv_heads, -1).transpose(1, 0, 2)
            self.weights = attention_weights_of(heads, keys, s.scale, 0, s.window, s.softcap, sinks)
        return super().attend(i, q, k, v, s, sinks, batch)
