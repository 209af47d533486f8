"""Looking inside: top-k alternatives at every position, and attention weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import teachllama as tl
from teachllama.looking import alternatives, attention_weights
from tests.tools import tiny_model

TEXT = "the will of the others in the inn"


def test_alternatives_are_the_likeliest_tokens_of_every_position(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf")) as model, model.create_session() as session:
        ids = model.encode(TEXT)
        logits = session.eval(ids, all_logits=True)
        found = alternatives(model, logits, k=5)
        assert len(found) == len(ids)
        for row, here in zip(logits.astype(np.float64), found):
            p = np.exp(row) / np.exp(row).sum()
            assert [a.id for a in here] == list(np.argsort(-p)[:5])
            np.testing.assert_allclose([a.probability for a in here], np.sort(p)[::-1][:5], rtol=1e-6)
            assert [a.piece for a in here] == [model.piece(a.id) for a in here]
        assert alternatives(model, session.logits, k=5) == found[-1:]
        assert found[-1][0].id == session.sample()
        everything = alternatives(model, session.logits, k=model.config.vocab_size)[0]
        assert sum(a.probability for a in everything) == pytest.approx(1)
        assert len({a.id for a in everything}) == model.config.vocab_size


def test_alternatives_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf")) as model:
        logits = np.zeros(model.config.vocab_size, np.float32)
        for bad in (0, -1, model.config.vocab_size + 1, 1.5, "3", True, None):
            with pytest.raises(tl.ParameterError, match="k is"):
                alternatives(model, logits, k=bad)  # type: ignore[arg-type]
        for wrong in (np.zeros(3), np.zeros((2, 2, model.config.vocab_size))):
            with pytest.raises(tl.ParameterError, match="logits have shape"):
                alternatives(model, wrong)


def by_hand(model: tl.Model, ids: list[int]) -> np.ndarray:
    """Attention weights of the first layer of a llama with adjacent rotation, one head and one pair at a time."""
    c, layer = model.config, model.weights.layers[0]
    x = model.weights.embedding.take(np.array(ids)).astype(np.float64)
    h = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + c.norm_eps) * layer.attn_norm
    qkv = h @ np.concatenate([layer.q.data, layer.k.data, layer.v.data]).T
    weights = np.zeros((c.n_heads, len(ids), len(ids)))
    turned = lambda v, at: np.array(
        [
            f(v[2 * i], v[2 * i + 1], at * c.rope_base ** (-2 * i / c.head_dim))
            for i in range(c.head_dim // 2)
            for f in (lambda a, b, t: a * np.cos(t) - b * np.sin(t), lambda a, b, t: a * np.sin(t) + b * np.cos(t))
        ]
    )
    for head in range(c.n_heads):
        group = head * c.n_kv_heads // c.n_heads
        q = qkv[:, head * c.head_dim :][:, : c.head_dim]
        k = qkv[:, (c.n_heads + group) * c.head_dim :][:, : c.head_dim]
        for i in range(len(ids)):
            scores = [turned(q[i], i) @ turned(k[j], j) / np.sqrt(c.head_dim) for j in range(i + 1)]
            weights[head, i, : i + 1] = np.exp(scores) / np.exp(scores).sum()
    return weights


def test_attention_weights_equal_a_computation_by_hand(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf")) as model:
        ids = model.encode(TEXT, add_special=True)
        found = attention_weights(model, TEXT, 0)
        assert found.shape == (model.config.n_heads, len(ids), len(ids))
        np.testing.assert_allclose(found, by_hand(model, ids), atol=1e-5)
        np.testing.assert_array_equal(found, attention_weights(model, ids, 0))
        np.testing.assert_array_equal(attention_weights(model, ids, -1), attention_weights(model, ids, 1))
        assert not np.array_equal(attention_weights(model, ids, 1), found)
        assert model.sessions == []


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_rows_sum_to_1_and_nobody_looks_ahead_or_beyond_a_window(tmp_path: Path, arch: str) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf", arch)) as model:
        for layer in range(model.config.n_layers):
            weights = attention_weights(model, TEXT, layer)
            np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
            behind = np.subtract.outer(np.arange(weights.shape[1]), np.arange(weights.shape[1]))
            window = model.config.kv_layout.layers[layer].window or len(behind)
            assert (weights[:, (behind < 0) | (behind >= window)] == 0).all()
            assert (weights[:, (behind >= 0) & (behind < window)] > 0).all()


def test_looking_does_not_change_what_is_computed(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf")) as model, model.create_session() as session:
        before = session.eval(model.encode(TEXT)).copy()
        attention_weights(model, TEXT, 1)
        session.reset()
        np.testing.assert_array_equal(session.eval(model.encode(TEXT)), before)


def test_attention_weights_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf")) as model:
        for bad in (2, -3, 0.5, "0", None, True):
            with pytest.raises(tl.ParameterError, match="layer is"):
                attention_weights(model, TEXT, bad)  # type: ignore[arg-type]
        with pytest.raises(tl.TokenError, match="no token ids"):
            attention_weights(model, [], 0)
        with pytest.raises(tl.TokenError, match="outside the vocabulary"):
            attention_weights(model, [10**6], 0)
        with pytest.raises(tl.TokenError, match="too many for a picture"):
            attention_weights(model, "a" * 100, 0)
