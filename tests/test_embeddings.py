"""Embeddings: equal to llama.cpp's, pooled and normalized as documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import teachllama as tl
from teachllama import ops
from teachllama.embeddings import embed, hidden_states
from tests.conftest import golden
from tests.kernel_tools import native_model
from tests.tools import tiny_model

GOLDEN = golden("embeddings")
TEXTS = ["the inn", "the will of the others", "a"]


@pytest.mark.model
@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_embeddings_equal_llama_cpps(
    name: str, pooling: str, backend: str, smollm2_path: str, gemma3_path: str
) -> None:
    expected = GOLDEN[name][pooling]
    with tl.load_model(
        smollm2_path if name.startswith("smol") else gemma3_path, weights="f32", backend=backend
    ) as model:
        ids = [model.encode(text, add_special=True) for text in GOLDEN["texts"]]
        found = embed(model, GOLDEN["texts"], pooling=pooling, normalize=False)
        unit = embed(model, GOLDEN["texts"], pooling=pooling)
    assert ids == GOLDEN[name]["ids"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), expected["norms"], rtol=2e-3)
    scale = np.array(expected["norms"])[:, None]
    np.testing.assert_allclose(found[:, :8] / scale, np.array(expected["first"]) / scale, atol=3e-4)
    cosines = [unit[0] @ unit[1], unit[0] @ unit[2], unit[1] @ unit[2]]
    np.testing.assert_allclose(cosines, expected["cosines"], atol=1e-3)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_the_hidden_states_are_what_the_vocabulary_product_turns_into_logits(tmp_path: Path, arch: str) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf", arch)) as model, model.create_session() as session:
        ids = model.encode("the will of the others")
        logits = session.eval(ids, all_logits=True)
        states = hidden_states(model, ids)
        assert states.shape == (len(ids), model.config.dim)
        np.testing.assert_allclose(model.weights.output.multiply(states), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_the_kernels_hidden_states_are_the_references(tmp_path: Path, arch: str) -> None:
    pytest.importorskip("numba")
    size = {f"{arch}.embedding_length": 64, f"{arch}.feed_forward_length": 96, f"{arch}.context_length": 200}
    path = native_model(tmp_path / "t.gguf", GGMLQuantizationType.Q8_0, arch, **size)
    ids = np.random.default_rng(0).integers(0, 256, 150).tolist()
    with tl.load_model(path, backend="numba") as model, tl.load_model(path, backend="numpy") as reference:
        for n in (1, 2, 3, 40, 150):
            found, expected = hidden_states(model, ids[:n]), hidden_states(reference, ids[:n])
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        with model.create_session() as session, reference.create_session() as beside:  # logits are still right
            np.testing.assert_allclose(session.eval(ids), beside.eval(ids), rtol=0, atol=1e-4)


def test_pooling_is_the_mean_or_the_last_and_normalized_has_length_1(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf")) as model:
        states = [hidden_states(model, model.encode(text, add_special=True)) for text in TEXTS]
        mean = embed(model, TEXTS, normalize=False)
        np.testing.assert_allclose(mean, [s.mean(axis=0) for s in states], rtol=1e-5, atol=1e-6)
        last = embed(model, TEXTS, pooling="last", normalize=False)
        np.testing.assert_allclose(last, [s[-1] for s in states], rtol=1e-5, atol=1e-6)
        unit = embed(model, TEXTS)
        assert unit.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(unit * np.linalg.norm(mean, axis=1, keepdims=True), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(embed(model, TEXTS[1]), unit[1:2])  # a single text is treated as a list of one
        assert embed(model, []).shape == (0, model.config.dim)
        assert model.sessions == []


def test_what_cannot_be_embedded_is_refused(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf")) as model:
        for bad in ("max", None, 1):
            with pytest.raises(tl.ParameterError, match="pooling"):
                embed(model, TEXTS, pooling=bad)  # type: ignore[arg-type]
        with pytest.raises(tl.ParameterError, match="expected texts"):
            embed(model, ["the", 1])  # type: ignore[list-item]
        with pytest.raises(tl.TokenError, match="no token ids"):
            embed(model, "")
        with pytest.raises(tl.TokenError, match="lone surrogate"):
            embed(model, "\ud800")
        with pytest.raises(tl.ContextFullError, match="6 longer than the 64"):
            embed(model, "a" * 70)
    with pytest.raises(tl.ClosedError):
        embed(model, TEXTS)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_a_long_text_is_embedded_in_as_many_parts_as_the_backend_asks_for(
    arch: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {f"{arch}.embedding_length": 64, f"{arch}.feed_forward_length": 96} if backend == "numba" else {}
    with tl.load_model(tiny_model(tmp_path / "t.gguf", arch, **size), backend=backend) as model:
        ids = np.random.default_rng(0).integers(0, 256, 50)
        whole = hidden_states(model, ids)
        monkeypatch.setattr(model, "max_batch", lambda start: 7)
        np.testing.assert_allclose(hidden_states(model, ids), whole, atol=2e-5)


def test_attention_ops_split_in_two_still_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, heads, groups, ahead, d = 5, 4, 2, 7, 8
    q, keys = rng.standard_normal((n, heads, d), np.float32), rng.standard_normal((groups, ahead + n, d), np.float32)
    values = rng.standard_normal((groups, ahead + n, d), np.float32)
    for window in (None, 3):
        weights = ops.attention_weights(q, keys, 0.3, ahead, window)  # (heads, n, T)
        by_hand = np.concatenate([weights[h] @ values[h // 2] for h in range(heads)], axis=1)
        np.testing.assert_allclose(ops.attention(q, keys, values, 0.3, ahead, window), by_hand, rtol=1e-4, atol=1e-5)
