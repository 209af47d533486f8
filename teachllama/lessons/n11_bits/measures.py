"""The cost of fewer bits: divergence and loss by position, lookups in a context, and int8 activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from teachllama.batch import Batch
from teachllama.errors import ParameterError
from teachllama.forward import forward
from teachllama.kv.formula import KVDtype
from teachllama.model import Model
from teachllama.ops import NumpyOps
from teachllama.sampling import SamplingParams
from teachllama.scheduler import Scheduler
from teachllama.spec import FeedForwardSpec, ModelSpec
from teachllama.weights import Gated, Linear, Weights


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of each row's tokens, in float64: (n, vocab_size)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergences(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL divergence of each row's distribution from the reference's, in nats: (n,).

    Args:
        reference, logits: (n, vocab_size), after the same tokens.
    """
    if reference.ndim != 2 or reference.shape != logits.shape:
        raise ParameterError(f"shapes are {reference.shape} and {logits.shape}; expected (n, vocab_size) twice")
    p, q = log_probabilities(reference), log_probabilities(logits)
    out: np.ndarray = np.maximum(0, (np.exp(p) * (p - q)).sum(axis=1))
    return out


def logits_along(model: Model, ids: Sequence[int]) -> np.ndarray:
    """The logits after each token of a text: (n, vocab_size)."""
    with model.create_session(seq_len=len(ids)) as session:
        return session.eval(ids, all_logits=True)


class Cost(NamedTuple):
    """How far a model is from a reference, over some texts."""

    divergence: float  # mean KL divergence from the reference, nats
    error: float  # the standard error of that mean
    loss: float  # mean nats per next token; the perplexity is its exponential
    loss_error: float  # the standard error of the difference to the reference's loss


def cost(model: Model, texts: Sequence[Sequence[int]], references: Sequence[np.ndarray]) -> Cost:
    """A model's divergence and loss over texts, compared with a reference's logits of the same texts."""
    kl, losses, off = [], [], []
    for ids, reference in zip(texts, references, strict=True):
        logits = logits_along(model, ids)
        kl.append(divergences(reference, logits))
        mine, theirs = (
            -log_probabilities(x[:-1])[np.arange(len(ids) - 1), np.asarray(ids[1:])] for x in (logits, reference)
        )
        losses.append(mine)
        off.append(mine - theirs)
    d, n, o = (np.concatenate(x) for x in (kl, losses, off))
    return Cost(float(d.mean()), _standard_error(d), float(n.mean()), _standard_error(o))


def _standard_error(x: np.ndarray) -> float:
    return float(x.std() / np.sqrt(len(x)))


# The cache ------------------------------------------------------------------------------------------------------------


def cache_divergences(
    model: Model, ids: Sequence[int], kv_dtypes: Mapping[str, KVDtype], chunk: int = 64, every: int = 4
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """KL divergence from an f32 cache along a text, for caches of other types, evaluated side by side.

    Args:
        chunk: tokens evaluated at a time; the logits of that many positions are in memory at once.
        every: the distance between measured positions.

    Returns:
        The positions, and for each name its divergences there.
    """
    names = {"f32": "f32", **kv_dtypes}
    sessions = {name: model.create_session(seq_len=len(ids), kv_dtype=kind) for name, kind in names.items()}
    found: dict[str, list[np.ndarray]] = {name: [] for name in kv_dtypes}
    positions: list[int] = []
    try:
        for begin in range(0, len(ids), chunk):
            part = list(ids[begin : begin + chunk])
            logits = {name: s.eval(part, all_logits=True)[::every] for name, s in sessions.items()}
            positions += range(begin, begin + len(part), every)
            for name, rows in found.items():
                rows.append(divergences(logits["f32"], logits[name]))
    finally:
        for s in sessions.values():
            s.close()
    return np.array(positions), {name: np.concatenate(rows) for name, rows in found.items()}


class Task(NamedTuple):
    """A context, and its expected continuation."""

    context: str
    answer: str


NAMES = ("Anna", "Paul", "Maria", "John", "Laura", "Peter", "Susan", "David", "Helen", "Mark")
WORDS = (
    "apple", "river", "stone", "cloud", "tiger", "piano", "garden", "silver", "winter", "bridge", "candle", "forest",
    "hammer", "island", "jacket", "lemon", "mirror", "needle", "orange", "pencil", "rabbit", "window", "camera",
)  # fmt: skip
FILLING = (
    "The grass is green and the sky is blue. ", "People walk along the road in the morning. ",
    "Rain falls on the roof of the old house. ", "A man sells bread and fruit at the market. ",
    "Children play near the school until the evening. ",
)  # fmt: skip


def planted(seed: int, n: int = 18) -> Task:
    """One sentence with a password, somewhere among n others, and the beginning of that sentence again."""
    rng = np.random.default_rng(seed)
    who, word = NAMES[rng.integers(len(NAMES))], WORDS[rng.integers(len(WORDS))]
    sentences = [FILLING[i] for i in rng.integers(len(FILLING), size=n)]
    sentences.insert(int(rng.integers(n)), f"The password of {who} is {word}. ")
    return Task("".join(sentences) + f"\nThe password of {who} is", f" {word}")


def chained(seed: int, n: int = 16) -> Task:
    """A list of n numbers to be repeated: each number has to be looked up by the one before it."""
    rng = np.random.default_rng(seed)
    numbers = [str(x) for x in rng.permutation(90)[:n] + 10]
    first = f"Copy: 31 75 28 64\nCopied: 31 75 28 64\nCopy: {' '.join(numbers)}\nCopied: {numbers[0]}"
    return Task(first, "".join(f" {x}" for x in numbers[1:]))


def lookups(model: Model, task: Task, kv_dtype: KVDtype) -> np.ndarray:
    """Whether each token of a task's answer is the model's likeliest, given the right tokens before it: bool (n,).

    Greedy decoding generates the answer up to the first False.
    """
    before, answer = model.encode(task.context), model.encode(task.answer)
    with model.create_session(seq_len=len(before) + len(answer), kv_dtype=kv_dtype) as session:
        logits = session.eval(before + answer, all_logits=True)[len(before) - 1 : -1]
        out: np.ndarray = logits.argmax(axis=1) == np.array(answer)
        return out


# Activations ----------------------------------------------------------------------------------------------------------


def round_to_int8(x: np.ndarray) -> np.ndarray:
    """Rounds each 32 numbers of a row to whole numbers from -127 to 127 times a scale, as Q8_0 does, but with a
    float32 scale.

    Rows whose length is not a multiple of 32 are returned unchanged.
    """
    if x.shape[-1] % 32:
        return x
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    rounded = np.round(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)) * scale
    out: np.ndarray = rounded.astype(np.float32).reshape(x.shape)
    return out


class Int8Activations(NumpyOps):
    """The reference's operations with the input of every matrix product rounded to int8, as llama.cpp does."""

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.seen: list[np.ndarray] = []  # the inputs, before rounding

    def linear(self, x: np.ndarray, m: Linear) -> np.ndarray:
        """x (n, columns) -> (n, rows)."""
        self.seen.append(x)
        return m.multiply(round_to_int8(x))

    def gated(self, x: np.ndarray, m: Gated, s: FeedForwardSpec) -> np.ndarray:
        """The feed-forward network."""
        rounded: Any = [_Rounding(self, part) for part in (m.gate, m.up, m.down)]
        return super().gated(x, Gated(*rounded), s)

    def logits(self, x: np.ndarray, w: Weights, spec: ModelSpec, batch: Batch) -> np.ndarray:
        """Logits of the wanted rows, (m, vocab_size)."""
        rounded: Any = SimpleNamespace(output=_Rounding(self, w.output), output_norm=w.output_norm)
        return super().logits(x, rounded, spec, batch)


class _Rounding:
    """A matrix that rounds the input of its products."""

    def __init__(self, ops: Int8Activations, m: Linear):
        self._ops, self._m = ops, m

    def multiply(self, x: np.ndarray) -> np.ndarray:
        return self._ops.linear(x, self._m)


def logits_with(ops: NumpyOps, model: Model, ids: Sequence[int]) -> np.ndarray:
    """The logits after each token of a short text, computed with these operations: (n, vocab_size)."""
    with model.create_session(seq_len=len(ids)) as session:
        batch = Batch.of_one(np.asarray(ids), 0, session._cache, all_logits=True)
        return forward(ops, model.spec, model.weights, batch)


def tellings(model: Model, n: int, temperature: float = 1.0, most: int = 240) -> list[list[int]]:
    """Texts that a model generates from their first token alone, as ids; all in one batch."""
    begin = model.encode("Once", add_special=True)[:1]
    with model.create_pool(nbytes=n * model.config.kv_layout.bytes(most + 64, "f32")) as pool:
        scheduler = Scheduler(pool)
        told = [scheduler.submit(begin, SamplingParams(temperature), max_new_tokens=most, seed=i) for i in range(n)]
        scheduler.run()
        return [begin + list(request.tokens) for request in told]
