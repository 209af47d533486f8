"""Notebook 11: its checks on right answers and usual mistakes; its formats bit by bit; its measures; its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import getsource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from teachllama.check import notebook11 as check
from teachllama.check.core import CheckResult
from teachllama.lessons.common.judge import judge_hidden
from teachllama.lessons.n11_bits import formats, measures
from teachllama.lessons.n11_bits.exercises import LESSON
from teachllama.ops import NumpyOps
from teachllama.requantize import requantize
from teachllama.show import notebook11 as pictures

ROOT = Path(__file__).parent.parent
STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"

# ---- exercises ----


@pytest.mark.parametrize("exercise", LESSON.exercises, ids=lambda e: e.check)
def test_right_answers_pass_and_each_usual_mistake_is_named(exercise: Any) -> None:
    judge = getattr(check, exercise.check)
    assert judge(exercise.right).ok
    assert judge_hidden(exercise.right, exercise, "ada").ok
    for fault in exercise.faults:
        result = judge(fault.function)
        assert not result.ok
        assert result.mistake == fault.name
        assert not judge_hidden(fault.function, exercise, "ada").ok


UNUSUAL: list[tuple[Callable[..., CheckResult], Callable[..., Any]]] = [
    (check.q8_0, lambda x: [round(float(v) * 127 / max(abs(x))) if any(x) else 0 for v in x]),
    (check.q8_0, lambda x: quantize(x, GGMLQuantizationType.Q8_0)[2:].view(np.int8)),
    (check.tensor_bytes, lambda s, w, b: np.int64(-1) if s[-1] % w else np.prod(s) * b / w),
    (check.choose, lambda f, n, b: min([(x[2], x[0]) for x in f if x[1] * n <= 8 * b], default=(0, ""))[1]),
    (check.read_q4_1, lambda b: dequantize(b, GGMLQuantizationType.Q4_1)),
    (check.read_q4_1, lambda b: (float(x) for x in dequantize(b, GGMLQuantizationType.Q4_1))),
]


@pytest.mark.parametrize("case", UNUSUAL)
def test_right_answers_in_unusual_form_pass(case: Any) -> None:
    judge, answer = case
    assert judge(answer).ok


# ---- formats ----


@pytest.mark.parametrize("kind", formats.LAYOUTS)
def test_a_layout_has_as_many_bits_as_the_format(kind: str) -> None:
    weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    assert formats.LAYOUTS[kind][0] == weights
    assert formats.bits_per_weight(kind) == 8 * nbytes / weights


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 0.1, 30.0]))
def test_four_bits_by_hand_are_q4_0s_own(seed: int, spread: float) -> None:
    x = np.random.default_rng(seed).normal(0, spread, (3, 64)).astype(np.float32)
    x[1] = 0
    kind = GGMLQuantizationType.Q4_0
    assert np.array_equal(formats.round_trip(x, 4), dequantize(quantize(x, kind), kind))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, -1.0, 5.0]))
def test_a_block_of_q4_k_reads_back_within_a_step_of_its_part(seed: int, middle: float) -> None:
    x = np.random.default_rng(seed).normal(middle, 1, 512).astype(np.float32)
    read = dequantize(formats.pack_q4_k(x), GGMLQuantizationType.Q4_K).ravel()
    parts = x.reshape(-1, 8, 32)
    low = np.minimum(parts.min(axis=2), 0)
    step = (parts.max(axis=2) - low) / 15
    widest = np.repeat(step.max(axis=1), 256) + np.repeat(-low.min(axis=1), 256) / 63  # 6-bit scales round, too
    assert (np.abs(read - x) <= widest).all()


def test_a_block_of_zeros_and_a_constant_one_are_packed_as_q4_k() -> None:
    for value in (0.0, 2.0, -2.0):
        x = np.full(256, value, np.float32)
        read = dequantize(formats.pack_q4_k(x), GGMLQuantizationType.Q4_K).ravel()
        assert np.allclose(read, value, atol=2e-3)


@pytest.mark.parametrize(("bits", "block"), [(1, 32), (4, 0), (4, 48)])
def test_blocks_that_do_not_divide_are_refused(bits: int, block: int) -> None:
    with pytest.raises(tl.ParameterError, match="whole blocks"):
        formats.round_trip(np.ones(64, np.float32), bits, block)


def test_wide_weights_make_the_file_that_they_came_from_and_are_not_its_own(tmp_path: Path) -> None:
    wide = formats.widen(STORIES, tmp_path / "wide.gguf", seed=3)
    assert requantize(wide, tmp_path / "again.gguf", "Q8_0").read_bytes() == STORIES.read_bytes()
    with tl.open_gguf(wide) as file, tl.open_gguf(STORIES) as own:
        name = "blk.0.attn_q.weight"
        x = file.tensor_bytes(name).view(np.float32)
        read = dequantize(own.tensor_bytes(name), GGMLQuantizationType.Q8_0)
        assert (x != read).mean() > 0.9
        with pytest.raises(tl.ParameterError, match="Q8_0"):
            formats.widen(wide, tmp_path / "wider.gguf")


def test_a_rewritten_copy_has_the_changed_matrices_and_the_same_norms(tmp_path: Path) -> None:
    path = formats.rewritten(STORIES, tmp_path / "copy.gguf", lambda name, x: x * 0 + ("attn_q" in name))
    with tl.open_gguf(path) as file, tl.open_gguf(STORIES) as own:
        assert (file.tensor_bytes("blk.2.attn_q.weight").view(np.float32) == 1).all()
        assert (file.tensor_bytes("token_embd.weight").view(np.float32) == 0).all()
        for name, info in own.tensors.items():
            if len(info.shape) == 1:
                assert np.array_equal(file.tensor_bytes(name), own.tensor_bytes(name))


# ---- measures ----


def test_divergence_is_that_of_the_formula_and_zero_for_the_same() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 3, (5, 40)).astype(np.float32) for _ in "ab")
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(axis=1, keepdims=True) for x in (a, b))
    assert np.allclose(measures.divergences(a, b), (p * np.log(p / q)).sum(axis=1))
    assert (measures.divergences(a, a) == 0).all()
    assert (measures.divergences(a + 1000, a) < 1e-6).all()
    with pytest.raises(tl.ParameterError, match="vocab_size"):
        measures.divergences(a, b[:3])


def test_the_cost_of_a_model_beside_itself_is_nothing_and_its_loss_is_its_own() -> None:
    with tl.load_model(STORIES) as model:
        ids = model.encode("One day, a small dog went to the park.", add_special=True)
        logits = measures.logits_along(model, ids)
        cost = measures.cost(model, [ids], [logits])
    assert (cost.divergence, cost.loss_error) == (0, 0)
    p = measures.log_probabilities(logits)
    assert cost.loss == pytest.approx(-np.mean([p[i, t] for i, t in enumerate(ids[1:])]))


def test_caches_of_fewer_bits_diverge_more_and_f32_not_at_all() -> None:
    with tl.load_model(STORIES) as model:
        ids = model.encode("Once upon a time there was a dog. " * 8)[:70]
        positions, found = measures.cache_divergences(
            model, ids, {"same": "f32", "q8_0": "q8_0", "q4_0": "q4_0"}, chunk=32, every=5
        )
    assert positions.tolist() == [*range(0, 32, 5), *range(32, 64, 5), *range(64, 70, 5)]
    assert all(len(values) == len(positions) for values in found.values())
    assert (found["same"] == 0).all()
    assert 0 < found["q8_0"].mean() < found["q4_0"].mean()


def test_tasks_are_the_same_for_a_seed_and_their_answers_are_in_the_context() -> None:
    for seed in range(20):
        sentence, numbers = measures.planted(seed), measures.chained(seed)
        assert sentence == measures.planted(seed)
        who = sentence.context.rsplit("The password of ", 1)[1].removesuffix(" is")
        assert f"The password of {who} is{sentence.answer}. " in sentence.context
        assert numbers.answer.split() == numbers.context.split("Copy: ")[2].split("\n")[0].split()[1:]
        assert len(set(numbers.answer.split())) == 15


def test_lookups_say_which_tokens_a_greedy_model_gets_right() -> None:
    with tl.load_model(STORIES) as model, model.create_session(seq_len=64) as session:
        begin = model.encode("Mia was a shy fox who", add_special=True)
        said = [token.id for token in session.generate(begin, max_new_tokens=6)]
        task = measures.Task(model.decode(begin), model.decode(said))
        if model.encode(task.context) == begin and model.encode(task.context + task.answer) == begin + said:
            assert measures.lookups(model, task, "f32").all()
        assert not measures.lookups(model, measures.Task(task.context, " zzz"), "f32").all()


def test_activations_rounded_to_int8_are_q8_0s_but_for_the_scale() -> None:
    x = np.random.default_rng(1).normal(0, 2, (3, 64)).astype(np.float32)
    x[0, :32] = 0
    kind = GGMLQuantizationType.Q8_0
    assert np.allclose(measures.round_to_int8(x), dequantize(quantize(x, kind), kind), rtol=2e-3, atol=1e-6)
    assert measures.round_to_int8(x[:, :33]) is not None
    assert np.array_equal(measures.round_to_int8(x[:, :33]), x[:, :33])


def test_the_reference_with_int8_activations_differs_and_without_is_the_models_own() -> None:
    with tl.load_model(STORIES, backend="numpy") as model:
        ids = model.encode("One day, a small dog went to the park.", add_special=True)
        exact = measures.logits_with(NumpyOps(model.spec), model, ids)
        assert np.array_equal(exact, measures.logits_along(model, ids))
        ops = measures.Int8Activations(model.spec)
        assert 0 < measures.divergences(exact, measures.logits_with(ops, model, ids)).mean() < 1e-2
        assert len(ops.seen) == 7 * model.config.n_layers + 1  # plus the output matrix


def test_tellings_begin_alike_and_differ() -> None:
    with tl.load_model(STORIES) as model:
        told = measures.tellings(model, 3, most=30)
        first = model.encode("Once", add_special=True)[0]
    assert {ids[0] for ids in told} == {first}
    assert len({tuple(ids) for ids in told}) == 3
    assert all(2 < len(ids) <= 31 for ids in told)


def test_the_stored_figures_are_those_of_the_documentation() -> None:
    notebook = json.loads((ROOT / "notebooks" / "11_fewer_bits.ipynb").read_text(encoding="utf-8"))
    text = next(t for c in notebook["cells"] if (t := "".join(c["source"])).startswith("STORED"))
    namespace: dict[str, Any] = {}
    exec(text.split("\n")[0], namespace)
    measured = json.loads((ROOT / "docs" / "measured" / "fidelity.json").read_text(encoding="utf-8"))["Q4_1"]
    for engine, nats in namespace["STORED"].items():
        assert nats == pytest.approx(measured[engine]["kl_mean"], rel=0.02)


# ---- pictures ----


def test_every_picture_says_in_words_what_it_shows() -> None:
    assert "144 bytes for 256 weights" in pictures.paper("Q4_K").alt
    x = np.linspace(-1, 1, 32)
    assert "largest error is 0.1000" in pictures.marks(x, x + 0.1, np.arange(16.0), "Q4_0").alt
    assert "Q4_0 50.00%" in pictures.errors({"Q4_0": np.full(10, 0.5)}, 1.0).alt
    assert (
        "blocks of 4,096: 20.0%, with an outlier 90.0%" in pictures.block_sizes([32, 4096], [0.1, 0.2], [0.1, 0.9]).alt
    )
    rows = [pictures.Price("Q4_0", 100, 2.5e-3), pictures.Price("as if", 90, 3e-3, in_file=False)]
    assert "Q4_0 100 B, 2.5 × 10⁻³" in pictures.price(rows).alt
    assert pictures.minds([("a", 1e-4, 0.2), ("b", 1e-3, 0.1)]).alt.index("b ") < 60
    assert "q8_0 1.0 × 10⁻³" in pictures.by_position(np.arange(64), {"q8_0": np.full(64, 1e-3)}).alt
    assert "q4_0: 50% of sentences, 90% of tokens, 0% of lists" in pictures.scores([("q4_0", 0.5, 0.9, 0.0)]).alt
    assert "b: 0." in pictures.ladder({"a": 1e-3, "b": 0.0}).alt
    assert "f16 50 bytes" in pictures.cache_bytes({"f16": 50}, 100).alt


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.paper("Q9_9"),
        lambda: pictures.marks(np.ones(3), np.ones(4), np.ones(2), "x"),
        lambda: pictures.errors({}, 1.0),
        lambda: pictures.block_sizes([], [], []),
        lambda: pictures.price([]),
        lambda: pictures.minds([]),
        lambda: pictures.by_position(np.arange(4), {}),
        lambda: pictures.scores([]),
        lambda: pictures.ladder({}),
        lambda: pictures.cache_bytes({}, 1),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError):
        draw()


def test_the_packer_that_the_notebook_shows_fits_on_a_screen() -> None:
    assert len(getsource(formats.pack_q4_k).splitlines()) <= 32
