"""Texts as vectors: the same forward pass, without its last step to logits.

To predict the next token, a model gathers in its last layer what the text is about. The average of that layer's output
over a text's tokens, or the last token's output, is a usable embedding, though models trained for embedding do better.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from teachllama.batch import Batch
from teachllama.errors import ContextFullError, ParameterError
from teachllama.model import Model
from teachllama.session import checked_ids

POOLINGS = ("mean", "last")


def embed(model: Model, texts: str | Iterable[str], *, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
    """Embeds texts, each independently.

    The final hidden states of a text's tokens, after the output norm, are pooled, as in llama.cpp.

    Args:
        texts: one text or several. A beginning-of-text token is prepended to each if the model expects one.
        pooling: "mean" averages all tokens; "last" takes the last token, the only one that has seen the whole text.
        normalize: scale each to length 1, so that dot products are cosines.

    Returns:
        float32 (n_texts, dim).

    Raises:
        ParameterError: pooling is neither of these, or an element of `texts` is not a string.
        TokenError: a text is empty or cannot be encoded.
        ContextFullError: a text is longer than the model's context.
    """
    if pooling not in POOLINGS:
        raise ParameterError(f"pooling is {pooling!r}; expected one of {', '.join(map(repr, POOLINGS))}")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if bad := [text for text in texts if not isinstance(text, str)]:
        raise ParameterError(f"expected texts to embed, found {type(bad[0]).__name__}")
    out = np.zeros((len(texts), model.config.dim), np.float32)
    for row, text in zip(out, texts):
        states = hidden_states(model, model.encode(text, add_special=True))
        row[:] = states.mean(axis=0) if pooling == "mean" else states[-1]
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), np.float32(1e-12)) if normalize else out


def hidden_states(model: Model, token_ids: Iterable[int]) -> np.ndarray:
    """The final hidden state of every token, after the output norm: float32 (n, dim)."""
    ids, most = list(token_ids), model.config.seq_len
    if len(ids) > most:
        raise ContextFullError(
            f"a text of {len(ids)} tokens is {len(ids) - most} longer than the {most} that this model's context holds; "
            "cut it into pieces, and embed or average those"
        )
    rows: list[np.ndarray] = []
    with model.create_session(seq_len=max(1, len(ids))) as session:
        checked, done = checked_ids(ids, model.config.vocab_size), 0
        while done < len(ids) or not rows:
            part = checked[done : done + model.max_batch(done)]
            rows.append(model.hidden_states(Batch.of_one(part, done, session._cache, all_logits=True)))
            done += len(part)
    return np.concatenate(rows)
