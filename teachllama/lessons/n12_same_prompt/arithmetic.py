"""Other arithmetic for the same model: what notebook 12 compares the engine with.

Each class is the NumPy reference with one thing changed. It runs through the page in `forward.py` like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from teachllama.batch import Batch
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
    """Rounds to 8 bits whatever meets a weight matrix, as llama.cpp does where weights are quantized."""

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
        """Of the rows wanted: (m, vocab_size)."""
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


class Gate(NumpyOps):
    """The reference with a gate of one's own in every layer, and with a little noise in the embeddings.

    Attributes:
        streams: the residual stream after each layer, (n, dim); the first is the embeddings.
    """

    def __init__(self, spec: ModelSpec, activation: Callable[[np.ndarray], np.ndarray], noise: float = 0.0):
        super().__init__(spec)
        self._activation, self._noise = activation, noise
        self._adds = 0
        self.streams: list[np.ndarray] = []

    def embed(self, embedding: Linear, batch: Batch, scale: float) -> np.ndarray:
        """Rows of the embedding, each number off by a relative error of up to `noise`."""
        x = super().embed(embedding, batch, scale)
        off = np.random.default_rng(0).uniform(-self._noise, self._noise, x.shape[-1])
        self.streams = [(x * (1 + off)).astype(np.float32)]
        return self.streams[0]

    def gated(self, x: np.ndarray, m: Gated, s: FeedForwardSpec) -> np.ndarray:
        """The feed-forward network, with the activation given."""
        return m.down.multiply(self._activation(m.gate.multiply(x)) * m.up.multiply(x))

    def add(self, x: np.ndarray, h: np.ndarray, norm: np.ndarray | None = None, scale: float = 1.0) -> np.ndarray:
        """x plus what a branch gives; two such sums make a layer."""
        out = super().add(x, h, norm, scale)
        self._adds += 1
        if self._adds % 2 == 0:
            self.streams.append(out)
        return out


def evaluated(model: Model, ops: Any, ids: Sequence[int], *, last: int = 1, kv_dtype: Any = "f32") -> np.ndarray:
    """Token ids through the page, in a session of their own.

    Args:
        model: of which weights are taken; `weights="f32"` spares unpacking them at each call.
        ops: who computes.
        last: of how many tokens at the end logits are wanted.

    Returns:
        float32 (last, vocab_size).
    """
    if not 1 <= last <= len(ids):
        raise ParameterError(f"logits of the last {last} of {len(ids)} tokens are wanted; expected 1 to {len(ids)}")
    with model.create_session(seq_len=len(ids), kv_dtype=kv_dtype) as session:
        session._cache.prepare(0, len(ids))
        batch = Batch.of_one(np.asarray(ids), 0, session._cache)
        rows = np.arange(len(ids) - last, len(ids))
        with np.errstate(over="ignore", invalid="ignore"):
            return forward(ops, model.spec, model.weights, Batch(batch.tokens, batch.positions, batch.runs, rows))
