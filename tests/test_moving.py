"""A decode step with all its values, the animation of it, and its still picture."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl
from teachllama.ops import rmsnorm
from tests.families import build
from tests.tools import tiny_model

TEXT = "the will of the inn"


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    with tl.load_model(tiny_model(tmp_path_factory.mktemp("m") / "t.gguf", request.param)) as m:
        yield m


@pytest.fixture(scope="module")
def step(model: tl.Model) -> tl.Step:
    return tl.decode_step(model, TEXT)


# ---- the numbers ----


def test_a_step_computes_the_logits_that_the_engine_computes(model: tl.Model, step: tl.Step) -> None:
    with model.create_session() as session:
        np.testing.assert_allclose(step.logits, session.eval(step.ids), atol=1e-4)
        assert step.likeliest == tl.alternatives(model, step.logits, k=5)[0]
    assert step.lens[-1] == step.logits.argmax() == step.likeliest[0].id
    assert step.pieces == [model.piece(i) for i in step.ids]
    assert step.lens_pieces == [model.piece(int(i)) for i in step.lens]
    assert model.sessions == []


def test_each_layer_adds_to_the_residual_stream_what_it_says(model: tl.Model, step: tl.Step) -> None:
    assert len(step.layers) == model.config.n_layers == len(step.lens) - 1
    x = step.embedding
    for layer, weights in zip(step.layers, model.weights.layers, strict=True):
        np.testing.assert_allclose(layer.normed, rmsnorm(x, weights.attn_norm, model.config.norm_eps), rtol=1e-5)
        np.testing.assert_allclose(x + layer.attended + layer.fed, layer.x, rtol=1e-4, atol=1e-5)
        x = layer.x


def test_a_steps_attention_is_the_last_row_of_the_texts(model: tl.Model, step: tl.Step) -> None:
    n = len(step.ids)
    for i, layer in enumerate(step.layers):
        whole = tl.attention_weights(model, step.ids, i)[:, -1]  # (H, n)
        seen = layer.weights.shape[1]
        np.testing.assert_allclose(layer.weights, whole[:, n - seen :], atol=1e-5)
        assert layer.keys.shape[:2] == layer.values.shape[:2] == (model.config.n_kv_heads, seen)
        assert layer.q.shape[0] == model.config.n_heads


def test_the_lens_is_the_last_norm_and_the_output_matrix_after_each_layer(model: tl.Model, step: tl.Step) -> None:
    w = model.weights
    for x, token in zip([step.embedding, *(layer.x for layer in step.layers)], step.lens, strict=True):
        scores = w.output.multiply(rmsnorm(x[None], w.output_norm, model.config.norm_eps))[0]
        assert scores.argmax() == token


@pytest.mark.parametrize("variant", ["deepseek2-lite", "gpt-oss"])
def test_latent_attention_shared_experts_and_sinks_are_recorded_too(variant: str, tmp_path: Path) -> None:
    with tl.load_model(build(variant, tmp_path / "m.gguf"), weights="f32", backend="numpy") as model:
        ids = list(range(5, 17))
        step = tl.decode_step(model, ids)
        with model.create_session(seq_len=64) as session:
            np.testing.assert_allclose(step.logits, session.eval(ids), atol=1e-4)
        x = step.embedding
        for layer in step.layers:
            np.testing.assert_allclose(x + layer.attended + layer.fed, layer.x, rtol=1e-4, atol=1e-4)
            sums = layer.weights.sum(axis=1)
            assert (sums < 0.999).any() if variant == "gpt-oss" else np.allclose(sums, 1)
            x = layer.x


def test_a_text_of_one_token_is_a_step_too(model: tl.Model) -> None:
    step = tl.decode_step(model, [5])
    assert all(layer.weights.shape[1] == 1 for layer in step.layers)
    with model.create_session() as session:
        np.testing.assert_allclose(step.logits, session.eval([5]), atol=1e-4)


def test_a_step_of_no_tokens_or_of_too_many_is_refused(model: tl.Model) -> None:
    with pytest.raises(tl.TokenError, match="no token ids"):
        tl.decode_step(model, [])
    with pytest.raises(tl.TokenError, match="outside the vocabulary"):
        tl.decode_step(model, [3, 10**6])
    with pytest.raises(tl.TokenError, match="too many for a context of"):
        tl.decode_step(model, [3] * (model.config.seq_len + 1))
    assert model.sessions == []


# ---- the picture ----


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    with tl.load_model(tiny_model(tmp_path_factory.mktemp("m") / "t.gguf")) as m:
        yield m


@pytest.fixture(scope="module")
def plain(llama: tl.Model) -> tl.Step:
    return tl.decode_step(llama, TEXT)


@pytest.fixture(scope="module")
def pictures() -> Any:
    pytest.importorskip("matplotlib", reason="the lab extra is not installed")
    pytest.importorskip("ipywidgets", reason="the lab extra is not installed")
    from teachllama.lessons.n01_generation import moving

    return moving


def test_frames_go_from_the_text_through_every_layer_to_the_choice(pictures: Any, plain: tl.Step) -> None:
    frames = pictures.frames(plain)
    assert [f.layer for f in frames] == [-1, -1, 0, 0, 0, 0, *range(1, len(plain.layers)), *[len(plain.layers)] * 2]
    assert str(plain.ids[-1]) in frames[1].text
    assert pictures.visible(plain.likeliest[0].piece) in frames[-1].text


def test_a_frame_shows_what_is_computed_by_then_and_nothing_else(pictures: Any, plain: tl.Step) -> None:
    n, pages = len(plain.ids), [pictures.frame_html(plain, f) for f in pictures.frames(plain)]
    empty = [page.count('class="s none"') for page in pages]
    assert empty[:6] == sorted(empty[:6], reverse=True)
    assert empty[0] > empty[1] > empty[2] > empty[3] > empty[4] > empty[5]
    newest = [page.split('fill="#E69F00"')[0].rsplit('d="', 1)[1].count("M") for page in pages]  # orange cache rows
    assert newest == [0, 0, 0, 1, 1, *range(1, len(plain.layers) + 1), *[len(plain.layers)] * 2]
    older = [page.split('fill="#d9ecf7"')[0].rsplit('d="', 1)[1].count("M") for page in pages]
    assert set(older) == {(n - 1) * len(plain.layers)}
    assert ["next token" in page and "%</td>" in page.split("next token")[1] for page in pages] == [False] * (
        len(pages) - 2
    ) + [True] * 2


def test_a_frame_has_the_numbers_of_the_head_that_is_asked_for(pictures: Any, plain: tl.Step) -> None:
    moment = pictures.frames(plain)[4]
    for head, weights in enumerate(plain.layers[0].weights):
        page = pictures.frame_html(plain, pictures.frames(plain, head)[4], head)
        assert f"query of head {head}" in page
        assert all(pictures._percent(float(w)) in page for w in weights)
    for bad in (-1, len(plain.layers[0].q)):
        with pytest.raises(tl.ParameterError, match="expected 0 to"):
            pictures.frame_html(plain, moment, bad)


def test_vectors_become_png_files_with_a_pixel_a_number(pictures: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    x = np.array([[-9.0, -1.5, 0.0], [1.5, 3.0, 9.0]])
    pixels = np.asarray(image.open(io.BytesIO(pictures.png(pictures.colours(x, 1.0)))))
    assert pixels.shape == (2, 3, 3)
    assert pixels[0, 0].tolist() == [0, 114, 178]  # far below 0: blue
    assert pixels[0, 2].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == pixels[1, 2].tolist() == [213, 94, 0]  # three times the unit and beyond
    assert pictures.colours(np.zeros((1, 2)), 0.0).tolist() == [[[255] * 3] * 2]


def test_the_player_follows_its_controls_and_a_text_of_ones_own(pictures: Any, llama: tl.Model, plain: tl.Step) -> None:
    player = pictures.StepPlayer(lambda text: tl.decode_step(llama, text), TEXT)
    first = player.page.value
    assert player.at.max == player.play.max == len(pictures.frames(plain)) - 1
    player.at.value = player.at.max
    last = player.page.value
    assert "The next token" in last
    assert "The next token" not in first
    player.head.value = player.head.max
    assert f"query of head {player.head.max}" in player.page.value
    player.text.value = "the inn"
    assert player.at.value == 0
    assert player.step.ids == tl.decode_step(llama, "the inn").ids
    player.text.value = "a" * 30
    assert "too many" in player.page.value
    assert player.step.ids == tl.decode_step(llama, "the inn").ids
    assert "moving picture" in repr(player)


def test_markup_in_a_token_is_text(pictures: Any, plain: tl.Step) -> None:
    hostile = replace(plain, pieces=["<b>x</b>"] * len(plain.pieces), lens_pieces=["<u>"] * len(plain.lens_pieces))
    for frame in pictures.frames(hostile):
        page = pictures.frame_html(hostile, frame)
        assert "<b>" not in page
        assert "<u>" not in page
        assert "&lt;b&gt;" in page


def test_the_still_tells_the_same_step_in_words(pictures: Any, plain: tl.Step) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = pictures.step_stages(plain, head=1)
    pixels = np.asarray(image.open(io.BytesIO(picture._repr_png_()[0])).convert("RGB"), int)
    assert (pixels[0, 0] == 255).all()
    for colour in ((0, 158, 115), (213, 94, 0), (230, 159, 0)):  # attention and probability bars; the new row's edge
        assert np.abs(pixels - colour).max(axis=-1).min() <= 12  # the palette of 256 approximates rare colours
    assert pictures._percent(plain.likeliest[0].probability) in picture.alt
    assert f"over {len(plain.layers)} layers" in picture.alt
    assert pictures._percent(float(plain.layers[0].weights[1].max())) in picture.alt
    bars = [bar.get_width() for bar in picture.axes[-1].patches]
    assert np.allclose(bars, [a.probability for a in plain.likeliest])
    with pytest.raises(tl.ParameterError, match="expected 0 to"):
        pictures.step_stages(plain, head=99)
    long = replace(plain, ids=[1] * 25, pieces=["a"] * 25)
    with pytest.raises(tl.ParameterError, match="at most 24"):
        pictures.step_stages(long)
