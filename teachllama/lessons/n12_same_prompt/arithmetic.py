"""Other arithmetic for the same model, with which notebook 12 compares the engine.

Each class is the NumPy reference with one change, and runs the forward pass in `forward.py` like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from teachllama.batch import Batch, Run
from teachllama.errors import ParameterError
from teachllama.forward import forward
from teachllama.model import Model
from teachllama.ops import NumpyOps, gelu, silu, softcap, swiglu_oai
from teachllama.spec import Activation, FeedForwardSpec, ModelSpec
from teachllama.weights import Gated, Linear, Weights

BLOCK = 32  # numbers that share a scale


def eight_bits(x: np.ndarray) -> np.ndarray:
    """x (..., d) rounded to whole numbers from -127 to 127 times a scale: one float16 scale for each 32 numbers.

    llama.cpp rounds activations in this way (Q8_0, Q8_1) before it multiplies them with quantized weights.
    """
    if x.shape[-1] % BLOCK:
        raise ParameterError(f"rows of {x.shape[-1]} numbers; expected a multiple of {BLOCK}")
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    whole = np.rint(blocks / np.where(scale > 0, scale, np.float32(1)))
    return (whole * scale.astype(np.float16).astype(np.float32)).reshape(x.shape)


class RoundedActivations(NumpyOps):
    """Rounds every input of a weight matrix to 8 bits, as llama.cpp does for quantized weights."""

    def linear(self, x: np.ndarray, m: Linear) -> np.ndarray:
        """x (n, columns) -> (n, rows)."""
        return m.multiply(eight_bits(x))

    def gated(self, x: np.ndarray, m: Gated, s: FeedForwardSpec) -> np.ndarray:
        """The feed-forward network."""
        x = eight_bits(x)
        gate, up = m.gate.multiply(x), m.up.multiply(x)
        if s.activation == Activation.SWIGLU_OAI:
            return m.down.multiply(eight_bits(swiglu_oai(gate, up)))
        activation = {Activation.SILU: silu, Activation.GELU: gelu}[s.activation]
        return m.down.multiply(eight_bits(activation(gate) * up))

    def logits(self, x: np.ndarray, w: Weights, spec: ModelSpec, batch: Batch) -> np.ndarray:
        """Logits of the wanted rows: (m, vocab_size)."""
        logits = w.output.multiply(eight_bits(self.norm(x[batch.wanted], w.output_norm))) * np.float32(spec.logit_scale)
        return softcap(logits, spec.logit_softcap) if spec.logit_softcap else logits


def half_table(x: np.ndarray) -> np.ndarray:
    """GELU from a table with one entry for each float16 number: x is rounded to float16, and so is the result.

    llama.cpp's processor code does this (`GGML_GELU_FP16` in `ggml/src/ggml-cpu/vec.h`). At -10 and below it gives 0,
    at 10 and above x itself.
    """
    with np.errstate(over="ignore"):
        y = gelu(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)
    return np.where(x <= -10, np.float32(0), np.where(x >= 10, x, y))


class Gates(NumpyOps):
    """The reference with one gate per copy of a text, for several copies in one pass; the first copy gets the first.

    Attributes:
        streams: the residual stream after the embeddings and after each layer, (copies, n, dim) each.
    """

    def __init__(self, spec: ModelSpec, gates: Sequence[tuple[Callable[[np.ndarray], np.ndarray], float]]):
        """`gates`: for each copy its activation, and the relative noise in its embeddings."""
        super().__init__(spec)
        self._gates, self._adds = list(gates), 0
        self.streams: list[np.ndarray] = []

    def _copies(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(self._gates), -1, x.shape[-1])  # (copies, n, d)

    def embed(self, embedding: Linear, batch: Batch, scale: float) -> np.ndarray:
        """Rows of the embedding. Each number of a copy is off by up to the copy's noise, the same in every row."""
        x = self._copies(super().embed(embedding, batch, scale))
        off = np.random.default_rng(0).uniform(-1, 1, x.shape[-1])
        noise = np.array([noise for _, noise in self._gates])[:, None, None]
        x = (x * (1 + noise * off)).astype(np.float32)
        self.streams = [x]
        return x.reshape(-1, x.shape[-1])

    def gated(self, x: np.ndarray, m: Gated, s: FeedForwardSpec) -> np.ndarray:
        """The feed-forward network, with each copy's activation."""
        gate = self._copies(m.gate.multiply(x))
        made = np.stack([activation(g) for (activation, _), g in zip(self._gates, gate, strict=True)])
        return m.down.multiply(made.reshape(len(x), -1) * m.up.multiply(x))

    def add(self, x: np.ndarray, h: np.ndarray, norm: np.ndarray | None = None, scale: float = 1.0) -> np.ndarray:
        """x plus a branch's output. Every second sum ends a layer."""
        out = super().add(x, h, norm, scale)
        self._adds += 1
        if self._adds % 2 == 0:
            self.streams.append(self._copies(out))
        return out


def evaluated(
    model: Model, ops: Any, texts: Sequence[Sequence[int]], *, last: int = 1, kv_dtype: Any = "f32"
) -> np.ndarray:
    """Evaluates texts in one pass, each in its own session, so that every weight is unpacked once for all texts.

    Args:
        model: the model whose weights are used.
        ops: the operations, such as `NumpyOps`.
        texts: the token ids of each text.
        last: the number of tokens at each text's end whose logits are returned.

    Returns:
        float32 (texts, last, vocab_size).

    Raises:
        ParameterError: no text, or one shorter than `last`.
    """
    lengths = [len(ids) for ids in texts]
    if not lengths or not 1 <= last <= min(lengths):
        raise ParameterError(f"the last {last} logits of texts of {lengths} tokens are wanted; expected 1 or more each")
    ends = np.cumsum(lengths)
    with ExitStack() as open_sessions, np.errstate(over="ignore", invalid="ignore"):
        runs = []
        for n, end in zip(lengths, ends.tolist(), strict=True):
            session = open_sessions.enter_context(model.create_session(seq_len=n, kv_dtype=kv_dtype))
            session._cache.prepare(0, n)
            runs.append(Run(session._cache, end - n, end))
        positions = np.concatenate([np.arange(n) for n in lengths])
        wanted = np.concatenate([np.arange(end - last, end) for end in ends])
        batch = Batch(np.concatenate([np.asarray(ids, np.intp) for ids in texts]), positions, tuple(runs), wanted)
        return forward(ops, model.spec, model.weights, batch).reshape(len(texts), last, -1)


def last_hidden(model: Model, ids: Sequence[int]) -> np.ndarray:
    """The final hidden state of the last token, float32 (dim,): the input of the output matrix."""
    with model.create_session(seq_len=len(ids)) as session:
        session._cache.prepare(0, len(ids))
        return model.hidden_states(Batch.of_one(np.asarray(ids), 0, session._cache))[0]
