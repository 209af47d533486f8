"""The checks of notebook 04: right answers, each usual mistake, nonsense, exceptions and endless loops."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama import check
from teachllama.lessons.common import check as core
from teachllama.lessons.n04_sessions import exercises as notebook04
from teachllama.lessons.n04_sessions.exercises import CALCULATOR_SHAPES
from teachllama.show.shapes import SHAPES
from tests.tools import tiny_metadata, tiny_model

SMOLLM2 = tiny_metadata() | {
    "llama.block_count": 30, "llama.context_length": 8192, "llama.embedding_length": 576,
    "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3,
}  # fmt: skip
GEMMA3 = tiny_metadata("gemma3") | {
    "gemma3.block_count": 18, "gemma3.context_length": 32768, "gemma3.embedding_length": 640,
    "gemma3.attention.head_count": 4, "gemma3.attention.head_count_kv": 1, "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256, "gemma3.attention.sliding_window": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    with tl.load_model(tiny_model(tmp_path_factory.mktemp("m") / "t.gguf")) as m:
        yield m


class Loops:
    """Every operation on it loops forever."""

    def _loop(self, *_: object) -> Any:
        while True:
            pass

    __index__ = __int__ = __float__ = __eq__ = __repr__ = __str__ = __len__ = __iter__ = __bool__ = _loop  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Raises:
    """Every operation on it raises an error."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("boo")

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("boo")

    __index__ = __int__ = __float__ = __eq__ = __repr__ = __str__ = __len__ = __iter__ = __bool__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def endless(*_: object) -> Any:
    while True:
        pass


def failing(*_: object) -> Any:
    raise ZeroDivisionError("my own fault")


NONSENSE = [
    None, ..., NotImplemented, True, np.True_, "47185920", b"x", "", [], {}, set(), (1, 2), range(3), iter([]), 1j,
    object(), object, int, print, len, lambda: 0, failing, ValueError("no"), threading.Lock(), sys, Raises(),
    -1, 0, 10**5000, -(10**5000), 1e308, float("nan"), float("inf"), np.nan, Decimal("NaN"), Decimal(3), Fraction(1, 3),
    np.array([]), np.array([1, 2]), np.zeros((2, 2)), np.datetime64("2024-01-01"),
]  # fmt: skip


def is_plain_result(result: Any) -> None:
    assert isinstance(result, check.CheckResult)
    assert repr(result).startswith("Right. " if result.ok else "Not yet: ")
    assert not hasattr(result, "_repr_html_")
    assert len(result.message) < 1500
    assert (result.mistake is None) or not result.ok


# ---- 1. bytes for a model you choose ----

WRONG_BYTES = [  # the question (model, seq_len, kv_dtype), a wrong answer, the mistake's name
    (SMOLLM2, 1024, "f32", 2 * 30 * 1024 * 9 * 64 * 4, "query_heads"),
    (GEMMA3, 256, "f32", 2 * 18 * 256 * 1 * 160 * 4, "head_dim"),
    (SMOLLM2, 1024, "f32", 30 * 1024 * 3 * 64 * 4, "no_v"),
    (SMOLLM2, 1024, "f32", 2 * 30 * 1024 * 3 * 64, "elements"),
    (SMOLLM2, 1024, "f32", 2 * 2 * 30 * 1024 * 3 * 64 * 4, "twice"),
    (SMOLLM2, 1024, "f32", 2 * 30 * 1024 * 3 * 64 * 2, "counted_f16"),
    (SMOLLM2, 1024, "f16", 2 * 30 * 1024 * 3 * 64 * 4, "counted_f32"),
    (SMOLLM2, 1024, "f32", 2 * 30 * 8192 * 3 * 64 * 4, "native_context"),
    (SMOLLM2, 1024, "f32", 2 * 1024 * 3 * 64 * 4, "one_layer"),
    (SMOLLM2, 1024, "f32", 2 * 30 * 3 * 64 * 4, "one_position"),
    (SMOLLM2, 1024, "f32", 47, "units"),
    (SMOLLM2, 1024, "f32", 47.2, "units"),
    (SMOLLM2, 1024, "f32", 45.0, "units"),
    (SMOLLM2, 8192, "f32", 0.377, "units"),
    (GEMMA3, 4096, "f32", 2 * 18 * 4096 * 256 * 4, "sliding_window"),
    (GEMMA3, 4096, "f32", 2 * 18 * 4096 * 160 * 4, "head_dim and sliding_window"),
    (SMOLLM2, 1024, "f32", 30 * 1024 * 9 * 64 * 4, "query_heads"),  # and either no V, or f16
    (SMOLLM2 | {"llama.attention.value_length": 32}, 64, "f32", 2 * 30 * 64 * 3 * 64 * 4, "value_length"),
]


@pytest.mark.parametrize(("metadata", "seq_len", "kv_dtype", "answer", "mistake"), WRONG_BYTES)
def test_each_usual_mistake_about_the_bytes_is_recognised(
    metadata: dict[str, Any], seq_len: int, kv_dtype: str, answer: float, mistake: str
) -> None:
    result = check.kv_bytes(answer, metadata, seq_len, kv_dtype)
    is_plain_result(result)
    assert not result.ok
    assert mistake in [result.mistake, *str(result.mistake).split(" or ")]
    right = tl.kv_cache_bytes(tl.kv_layout_from_metadata(metadata), seq_len, kv_dtype)
    assert str(right) not in repr(result)
    assert f"{right:,}" not in repr(result)


def test_the_right_bytes_are_right_for_a_model_its_config_its_layout_and_its_metadata(model: tl.Model) -> None:
    for seq_len, kv_dtype in itertools.product((None, 1, 20, 64), ("f32", "f16")):
        right = tl.kv_cache_bytes(model.config, seq_len, kv_dtype)
        for source in (model, model.config, model.config.kv_layout, tiny_metadata()):
            result = check.kv_bytes(right, source, seq_len, kv_dtype)
            is_plain_result(result)
            assert result.ok
    assert check.kv_bytes(model.create_session(seq_len=20).kv_nbytes, model.config, 20).ok


@pytest.mark.parametrize("name", SHAPES)
def test_the_notebooks_solution_for_the_bytes_is_right_for_every_published_shape(name: str) -> None:
    shape, seq_len = SHAPES[name], 4096
    answer = 0
    for layer in shape.layout.layers:
        positions = min(seq_len, layer.window) if layer.window else seq_len
        answer += positions * layer.n_kv_heads * (layer.key_length + layer.value_length) * 2
    assert check.kv_bytes(answer, shape, seq_len, "f16").ok


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("metadata", [SMOLLM2, GEMMA3])
@given(seq_len=st.integers(1, 100_000), off=st.integers(-(10**12), 10**12).filter(bool))
def test_only_the_formulas_own_bytes_are_right(metadata: dict[str, Any], kv_dtype: str, seq_len: int, off: int) -> None:
    layout = tl.kv_layout_from_metadata(metadata)
    right = tl.kv_cache_bytes(layout, seq_len, kv_dtype)
    assert check.kv_bytes(right, layout, seq_len, kv_dtype).ok
    result = check.kv_bytes(right + off, metadata, seq_len, kv_dtype)
    is_plain_result(result)
    assert not result.ok
    assert str(right) not in result.message


def test_a_layout_alone_is_enough_to_suspect_query_heads() -> None:
    layout = tl.kv_layout_from_metadata(SMOLLM2)
    assert check.kv_bytes(3 * tl.kv_cache_bytes(layout, 1024), layout, 1024).mistake == "query_heads"


def test_numbers_of_other_types_count_if_they_are_whole(model: tl.Model) -> None:
    right = tl.kv_cache_bytes(model.config)
    for same in (float(right), np.int64(right), np.float64(right), Fraction(right), Decimal(right), np.array(right)):
        assert check.kv_bytes(same, model.config).ok
    assert check.kv_bytes(str(right), model.config).mistake == "type"
    assert check.kv_bytes(None, model.config).mistake == "unanswered"
    assert "call it" in check.kv_bytes(lambda: right, model.config).message


@pytest.mark.parametrize(
    "question",
    [
        (None,),
        (3,),
        ("config",),
        ({},),
        (SMOLLM2, 0),
        (SMOLLM2, "x"),
        (SMOLLM2, 8, "f13"),
        (SMOLLM2, 8, []),
    ],
)
def test_a_question_that_makes_no_sense_is_said_to_be_one(question: tuple[Any, ...]) -> None:
    assert check.kv_bytes(1, Raises()).mistake == "question"
    result = check.kv_bytes(1, *question)
    is_plain_result(result)
    assert result.mistake == "question"


# ---- 2. how many sessions fit ----

MODEL, SESSION = 538_091_520, 47_185_920  # SmolLM2 in f32, and a session of 1024 positions


@pytest.mark.parametrize(
    ("answer", "mistake"),
    [
        (2_000_000_000 // SESSION, "forgot_weights"),
        (2_000_000_000 / SESSION, "forgot_weights"),
        (31, "rounded_up"),
        (2_000_000_000 // (MODEL + SESSION), "weights_each"),
        ((2**31 - MODEL) // SESSION, "gib"),
        ((2_000_000_000 - MODEL) / SESSION, "float"),
        (30.5, "float"),
        (35, "too_many"),
        (29, "too_few"),
        (-30, "too_few"),
    ],
)
def test_each_usual_mistake_about_sessions_is_recognised(answer: float, mistake: str) -> None:
    result = check.sessions_that_fit(answer, MODEL, SESSION)
    is_plain_result(result)
    assert (result.ok, result.mistake) == (False, mistake)
    assert "30" not in result.message


@given(
    model=st.integers(0, 10**10), session=st.integers(1, 10**9), room=st.integers(0, 10**10), off=st.integers(-99, 99)
)
def test_only_the_whole_number_of_sessions_that_fit_is_right(model: int, session: int, room: int, off: int) -> None:
    right = max(0, (room - model) // session)
    result = check.sessions_that_fit(right + off, model, session, room)
    is_plain_result(result)
    assert result.ok == (off == 0)


def test_the_notebooks_solution_for_the_sessions_is_right(model: tl.Model) -> None:
    with model.create_session(seq_len=64) as session:
        answer = (2_000_000_000 - model.nbytes) // session.kv_nbytes
        assert check.sessions_that_fit(answer, model.nbytes, session.kv_nbytes).ok


def test_sizes_that_make_no_sense_are_said_to_be_so() -> None:
    for sizes in ((1, 0), (-1, 5), (1, None), (1, 5, "2 GB")):
        assert check.sessions_that_fit(3, *sizes).mistake == "question"  # type: ignore[arg-type]
    assert check.sessions_that_fit(1, 1e9, 1e9, 2e9).ok  # type: ignore[arg-type]


# ---- 3. four broken calculators: the notebook's, and the solution ----


def calculator_a(m: dict[str, int]) -> int:
    per_position = m["n_heads"] * (m["key_length"] + m["value_length"])
    return m["n_layers"] * m["seq_len"] * per_position * m["bytes_per_number"]


def calculator_b(m: dict[str, int]) -> int:
    head_dim = m["dim"] // m["n_heads"]
    return m["n_layers"] * m["seq_len"] * m["n_kv_heads"] * 2 * head_dim * m["bytes_per_number"]


def calculator_c(m: dict[str, int]) -> int:
    return m["n_layers"] * m["seq_len"] * m["n_kv_heads"] * m["key_length"] * m["bytes_per_number"]


def calculator_d(m: dict[str, int]) -> int:
    return m["n_layers"] * m["seq_len"] * m["n_kv_heads"] * (m["key_length"] + m["value_length"])


def mended(m: dict[str, int]) -> int:
    per_position = m["n_kv_heads"] * (m["key_length"] + m["value_length"])
    return m["n_layers"] * m["seq_len"] * per_position * m["bytes_per_number"]


def test_four_mended_calculators_are_right() -> None:
    assert check.calculators([mended] * 4).ok
    assert check.calculators({"a": mended, "b": mended, "c": mended, "d": mended}.values()).ok
    assert check.calculators([lambda m: float(mended(m)), lambda m: np.int64(mended(m)), mended, mended]).ok


def test_four_broken_calculators_still_have_their_faults() -> None:
    result = check.calculators([calculator_a, calculator_b, calculator_c, calculator_d])
    is_plain_result(result)
    lines = result.message.split("\n")
    assert lines[0] == "0 of 4 are right."
    for line, word in zip(lines[1:], ("query heads", "dim / n_heads", "V is missing", "how many numbers"), strict=True):
        assert "Still has its fault" in line
        assert word in line
    for i, name in enumerate(("query_heads", "head_dim", "no_v", "elements")):
        broken = [mended] * 4
        broken[i] = (calculator_a, calculator_b, calculator_c, calculator_d)[i]
        one = check.calculators(broken)
        assert one.mistake == name
        assert "3 of 4" in one.message


def test_a_calculator_with_another_fault_than_its_own_is_told_so() -> None:
    others: dict[str, Callable[[dict[str, int]], Any]] = {
        "value_length": lambda m: (
            m["n_layers"] * m["seq_len"] * m["n_kv_heads"] * 2 * m["key_length"] * m["bytes_per_number"]
        ),
        "counted_f32": lambda m: 4 * calculator_d(m),
        "counted_f16": lambda m: 2 * calculator_d(m),
        "twice": lambda m: 2 * mended(m),
        "one_layer": lambda m: mended(m | {"n_layers": 1}),
        "one_position": lambda m: mended(m | {"seq_len": 1}),
        "query_heads": calculator_a,
        "some_shapes": lambda m: mended(m) if m["dim"] != 640 else 7,
        "head_dim and elements": lambda m: calculator_b(m) // m["bytes_per_number"],
    }
    for name, function in others.items():
        result = check.calculators([mended, mended, function, mended])
        is_plain_result(result)
        assert result.mistake == name
        assert "Still" not in result.message
    assert "Gemma" in check.calculators([mended, others["some_shapes"], mended, mended]).message


def test_calculators_of_no_use_are_told_so() -> None:
    for bad, word in (
        (lambda m: None, "returns None"), (lambda m: "5", "text"), (lambda m: m, "dict"), (7, "not a function"),
        (lambda m: m["head_dim"], "KeyError"), (lambda: 1, "TypeError"), (lambda m: m.clear() or 5, "every shape"),
        (lambda m: 10**5000, "every shape"),
    ):  # fmt: skip
        result = check.calculators([mended, bad, mended, mended])
        is_plain_result(result)
        assert not result.ok
        assert word in result.message
        right = [str(mended(shape)) for shape in CALCULATOR_SHAPES.values()]
        assert not any(number in result.message for number in right)
    for what in (mended, [mended], [mended] * 5, itertools.repeat(mended), None, {}):
        assert check.calculators(what).mistake == "type"


# ---- 4. generate, with a stop string ----


def generate_until(session: Any, prompt_ids: list[int], stop: str, max_new_tokens: int) -> str:
    """The notebook's solution."""
    model, ids = session.model, []
    session.eval(prompt_ids)
    while len(ids) < max_new_tokens:
        token = session.sample()
        if token in model.tokenizer.eog_ids:
            break
        ids.append(token)
        if stop in model.decode(ids):
            break
        session.eval([token])
    return str(model.decode(ids).split(stop)[0])


def by_argmax_and_one_id_at_a_time(session: Any, prompt_ids: list[int], stop: str, max_new_tokens: int) -> str:
    for i in prompt_ids:
        logits = session.eval(i)
    text, ids = "", []
    for _ in range(max_new_tokens):
        token = int(np.argmax(logits))
        if token in session.model.tokenizer.eog_ids:
            return text
        ids += [token]
        text = session.model.decode(ids)
        if (at := text.find(stop)) >= 0:
            return text[:at]
        logits = session.eval(np.array([token]))
    return text


def variant(
    *, extra: int = 0, evaluate: str = "session.eval([token])", ends: str = "token in model.tokenizer.eog_ids",
    keep_end: bool = False, seen: str = "stop in model.decode(ids)", text: str = "model.decode(ids).split(stop)[0]",
    start: str = "session.eval(prompt_ids)",
) -> Callable[..., Any]:  # fmt: skip
    """The solution with one part changed, as learners change it."""
    source = f"""
def f(session, prompt_ids, stop, max_new_tokens):
    model, ids = session.model, []
    {start}
    while len(ids) < max_new_tokens + {extra}:
        token = session.sample()
        if {keep_end} and {ends}:
            ids.append(token)
        if {ends}:
            break
        ids.append(token)
        if {seen}:
            break
        {evaluate}
    return {text}
"""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace["f"]  # type: ignore[no-any-return]


def drops_the_last_token(session: Any, prompt_ids: list[int], stop: str, max_new_tokens: int) -> str:
    model, ids = session.model, []
    session.eval(prompt_ids)
    while len(ids) < max_new_tokens:
        token = session.sample()
        if token in model.tokenizer.eog_ids or stop in model.decode([*ids, token]):
            break
        ids.append(token)
        session.eval([token])
    return str(model.decode(ids))


CUTS_THE_LAST_PIECE = """(
    model.decode(ids).split(stop)[0] if stop in model.piece(ids[-1])
    else model.decode(ids[:-1]) if stop in model.decode(ids)
    else model.decode(ids)
)"""
MISTAKEN = {
    "stop_kept": variant(text="model.decode(ids)"),
    "last_piece": variant(seen="stop in model.piece(token)"),
    "stop_ignored": variant(seen="False"),
    "same_token": variant(evaluate="pass"),
    "prompt_again": variant(evaluate="session.eval(prompt_ids + ids)"),
    "past_end": variant(ends="False"),
    "end_kept": variant(keep_end=True),
    "off_by_one": variant(extra=1),
    "no_limit": variant(extra=10**9),
    "broken_characters": variant(text="''.join(model.piece(i) for i in ids).split(stop)[0]"),
    "no_prompt": variant(start="pass"),
    "wrong_tokens": variant(evaluate="session.eval([token]); session.eval([token])"),
    "prompt_in_text": variant(text="model.decode(session.tokens).split(stop)[0]"),
    "token_dropped": drops_the_last_token,
    "uses_generate": lambda s, p, stop, n: "".join(t.piece for t in s.generate(p, stop=stop, max_new_tokens=n)),
    "stopped_early": variant(seen="stop[0] in model.decode(ids)", text="model.decode(ids).split(stop[0])[0]"),
    "endless": endless,
    "exception": failing,
}


@pytest.mark.parametrize("mistake", MISTAKEN)
def test_each_usual_mistake_in_generate_is_recognised(model: tl.Model, mistake: str) -> None:
    result = check.generate_with_stop(MISTAKEN[mistake], model)
    is_plain_result(result)
    assert (result.ok, result.mistake) == (False, mistake)


def test_more_ways_to_make_the_same_mistakes_are_recognised(model: tl.Model) -> None:
    for function, mistake in (
        (variant(extra=-1), "off_by_one"),
        (variant(ends="token == model.tokenizer.eos_id"), "past_end"),
        (variant(evaluate="session.eval([ids[0]])"), "wrong_tokens"),
        (variant(start="session.eval(prompt_ids); session.eval(prompt_ids)"), "prompt_again"),
        (variant(seen="token == model.encode(stop)[-1]", text="model.decode(ids).split(stop)[0]"), "last_piece"),
        (variant(seen="stop == model.piece(token)"), "last_piece"),
        (variant(seen="model.decode(ids).endswith(stop)"), "last_piece"),
        (variant(text="model.decode(ids[:-1]) if stop in model.decode(ids) else model.decode(ids)"), "token_dropped"),
        (variant(text=CUTS_THE_LAST_PIECE), "stop_part_kept"),
        (variant(evaluate="session.eval(model.piece(token))"), "exception"),
        (variant(text="ids"), "type"),
        (variant(text="None"), "type"),
        (variant(text="(yield)"), "type"),
        (lambda session, prompt_ids: "", "exception"),
        (lambda *_: "anything", None),
    ):
        result = check.generate_with_stop(function, model)
        is_plain_result(result)
        assert not result.ok
        assert result.mistake == mistake or mistake is None, result


def test_solutions_are_right_on_tiny_models(tmp_path: Path, model: tl.Model) -> None:
    with tl.load_model(tiny_model(tmp_path / "g.gguf", "gemma3")) as gemma:
        for function in (generate_until, by_argmax_and_one_id_at_a_time):
            for m in (model, gemma):
                result = check.generate_with_stop(function, m)
                is_plain_result(result)
                assert result.ok, result


@pytest.mark.model
def test_the_solution_is_right_on_a_real_model(smollm2_path: str) -> None:
    with tl.load_model(smollm2_path) as m:
        assert check.generate_with_stop(generate_until, m).ok


def test_what_goes_wrong_only_on_the_model_is_told_apart(model: tl.Model) -> None:
    def random(session: Any, *args: Any) -> str:
        real = isinstance(session, tl.Session)
        return "something else" if real else generate_until(session, *args)

    def breaks(session: Any, *args: Any) -> str:
        return session.model.config.n_layers / 0 if isinstance(session, tl.Session) else generate_until(session, *args)

    assert check.generate_with_stop(random, model).mistake == "differs_on_model"
    assert "on the model: Your code raised ZeroDivisionError" in check.generate_with_stop(breaks, model).message
    for unusable in (None, "smollm2", 3):
        assert check.generate_with_stop(generate_until, unusable).mistake == "question"  # type: ignore[arg-type]


def test_the_check_leaves_no_session_open(model: tl.Model) -> None:
    before = model.sessions
    check.generate_with_stop(generate_until, model)
    check.generate_with_stop(failing, model)
    assert model.sessions == before


# ---- 5. who keeps a session alive ----


def test_letting_go_of_everything_is_right(model: tl.Model) -> None:
    puzzle = check.leak_puzzle(model)
    session, stories, picture, on_token = puzzle
    assert (session.n_past > 0, picture.size > 0, callable(on_token), len(stories)) == (True, True, True, 1)
    del session, picture, on_token
    stories.clear()
    gc.collect()
    result = check.leak_released(puzzle)
    is_plain_result(result)
    assert result.ok, result
    assert "gone" in repr(puzzle)


def test_closing_and_breaking_the_cycle_by_hand_is_right_too(model: tl.Model) -> None:
    puzzle = check.leak_puzzle(model)
    session, stories, picture, on_token = puzzle
    session.close()
    del session.progress, session, stories, picture, on_token
    result = check.leak_released(puzzle)
    assert result.ok, result


def test_each_wrong_turn_with_the_leak_is_recognised(model: tl.Model) -> None:
    def state(puzzle: Any, mistake: str, *words: str) -> None:
        result = check.leak_released(puzzle)
        is_plain_result(result)
        assert (result.ok, result.mistake) == (False, mistake), result
        assert all(word in result.message for word in words), result

    gc.disable()  # so that garbage is collected only when the learner calls gc.collect()
    try:
        puzzle = check.leak_puzzle(model)
        state(puzzle, "packed", "session, stories, picture, on_token = puzzle")
        session, stories, picture, on_token = puzzle
        state(puzzle, "untouched", "`session`", "`stories`", "`picture`", "on_token", "cycle")
        del session
        state(puzzle, "name_only", "`stories`", "`picture`", "on_token", "cycle")
        gc.collect()
        state(puzzle, "collected_only", "`stories`", "`picture`", "on_token", "cycle")
        stories.clear()
        state(puzzle, "still_held", "`picture`", "on_token", "cycle")
        del on_token
        state(puzzle, "cycle", "`picture`", "cycle")
        gc.collect()
        state(puzzle, "view", "`picture`")
        del picture
        assert check.leak_released(puzzle).ok

        puzzle = check.leak_puzzle(model)
        session, stories, picture, on_token = puzzle
        gc.collect()
        state(puzzle, "collected_only", "`session`")
        session.close()
        state(puzzle, "closed_only", "`session`", "`stories`", "`picture`")
        del session, picture
        state(puzzle, "closed_only", "`stories`", "on_token")
        del stories, on_token
        state(puzzle, "closed_only", "cycle")
        gc.collect()
        assert check.leak_released(puzzle).ok
    finally:
        gc.enable()


def test_a_puzzle_hands_its_things_over_once_and_other_things_are_no_puzzle(model: tl.Model) -> None:
    puzzle = check.leak_puzzle(model)
    assert "Unpack" in repr(puzzle)
    things = tuple(puzzle)
    assert "alive" in repr(puzzle)
    with pytest.raises(tl.TeachLlamaError, match="handed"):
        iter(puzzle)
    assert check.leak_released(things).mistake == "type"


# ---- any answer whatever, and the runner ----


@pytest.mark.parametrize("i", range(len(NONSENSE)))  # by index: pytest would inspect the answers themselves
def test_nonsense_of_any_type_is_never_right_and_never_breaks_a_check(i: int, model: tl.Model) -> None:
    answer: Any = NONSENSE[i]
    for result in (
        check.kv_bytes(answer, model.config),
        check.sessions_that_fit(answer, MODEL, SESSION),
        check.calculators(answer),
        check.calculators([answer] * 4),
        check.generate_with_stop(answer, model),
        check.generate_with_stop(lambda *_: answer, model),
        check.leak_released(answer),
    ):
        is_plain_result(result)
        assert not result.ok


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: check.kv_bytes(Loops(), model.config),
        lambda model: check.sessions_that_fit(Loops(), MODEL, SESSION),
        lambda model: check.calculators([endless, mended, mended, mended]),
        lambda model: check.generate_with_stop(endless, model),
        lambda model: check.generate_with_stop(lambda *_: print_for_ever(), model),
    ],
)
def test_endless_loops_are_stopped(ask: Callable[[tl.Model], check.CheckResult], model: tl.Model) -> None:
    threads = threading.active_count()
    result = ask(model)
    is_plain_result(result)
    assert result.mistake == "endless"
    assert threading.active_count() == threads


def print_for_ever() -> None:
    while True:
        print("for ever")


def test_what_a_learner_prints_is_shown_up_to_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    core.run(print, "hello")
    assert capsys.readouterr().out == "hello\n"
    core.run(print_for_ever, seconds=0.1)
    out = capsys.readouterr().out
    assert "not shown" in out
    assert len(out) < 2 * core.MOST_OUTPUT
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_a_function_that_catches_everything_is_left_behind_with_a_word_about_it() -> None:
    free = threading.Event()

    def stubborn() -> None:
        while not free.is_set():
            try:
                while not free.is_set():
                    pass
            except BaseException:
                pass

    outcome = core.run(stubborn, seconds=0.1)
    free.set()
    assert outcome.failure is not None
    assert outcome.failure.mistake == "endless"
    assert "restart the kernel" in outcome.failure.message


def test_a_memory_hog_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MOST_GROWTH", 30_000_000)

    def hog() -> None:
        kept = []
        while True:
            kept.append(os.urandom(100_000))

    outcome = core.run(hog, seconds=60)
    assert outcome.failure is not None
    assert outcome.failure.mistake == "memory"
    failure = core.run(lambda: [0] * 10**15).failure
    assert failure is not None
    assert "MemoryError" in failure.message


def test_an_exception_is_told_with_the_learners_own_line(model: tl.Model) -> None:
    def learner() -> object:
        return model.create_session(seq_len=-7)  # the learner's own line

    failure = core.run(learner).failure
    assert failure is not None
    assert failure.mistake == "exception"
    assert "ParameterError" in failure.message
    assert "`return model.create_session(seq_len=-7)  # the learner's own line`" in failure.message
    failure = core.run(lambda: 0, 1, 2).failure
    assert failure is not None
    assert failure.message.startswith("Calling it raised TypeError")


def test_every_kind_of_exception_becomes_words() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    for error in (
        Nasty(),
        SystemExit(3),
        KeyboardInterrupt(),
        RecursionError(),
        GeneratorExit(),
        ValueError("x" * 10**6),
    ):

        def learner(error: BaseException = error) -> None:
            raise error

        failure = core.run(learner).failure
        assert failure is not None
        assert type(error).__name__ in failure.message
        assert len(failure.message) < 500


def test_a_learners_variables_do_not_outlive_its_exception(model: tl.Model) -> None:
    def learner() -> None:
        session = model.create_session(seq_len=8)
        session.eval([10**9])

    gc.disable()
    try:
        before = len(model.sessions)
        failure = core.run(learner).failure
        assert failure is not None
        assert "TokenError" in failure.message
        assert len(model.sessions) == before
    finally:
        gc.enable()


def test_a_stop_pressed_during_a_check_stops_the_learners_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    threads = threading.active_count()
    monkeypatch.setattr(core, "_wait", pressed)
    with pytest.raises(KeyboardInterrupt):
        core.run(endless)
    for _ in range(100):
        if threading.active_count() == threads:
            break
        time.sleep(0.01)
    assert threading.active_count() == threads


@settings(max_examples=50)
@given(
    st.one_of(
        st.integers(), st.floats(), st.text(), st.none(), st.binary(), st.lists(st.integers()), st.complex_numbers()
    )
)
def test_an_answer_is_a_whole_number_another_number_or_explained(answer: Any) -> None:
    found = core.number(answer)
    if isinstance(found, check.CheckResult):
        is_plain_result(found)
    else:
        assert found == answer
        assert type(found) is int or not found.is_integer()


def test_long_messages_are_wrapped_and_the_same_every_time(model: tl.Model) -> None:
    first, second = (repr(check.generate_with_stop(MISTAKEN["past_end"], model)) for _ in range(2))
    assert first == second
    assert all(len(line) <= core.WIDTH for line in first.split("\n"))


def test_the_checks_need_neither_matplotlib_nor_jupyter() -> None:
    import subprocess

    code = (
        "import sys, teachllama.check; sys.exit(any(m in sys.modules for m in ('matplotlib', 'IPython', 'ipywidgets')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_mistake_that_generate_can_make_has_its_words() -> None:
    assert set(notebook04._TEXTS) == {*MISTAKEN, "stop_part_kept"} - {"endless", "exception"}
