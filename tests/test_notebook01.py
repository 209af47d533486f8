"""Notebook 01: its pictures draw their data; its checks recognise right answers and the usual mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import teachllama as tl
from teachllama.check import CheckResult
from teachllama.check import notebook01 as check
from tests.tools import tiny_model

pytest.importorskip("matplotlib", reason="the lab extra is not installed")
pytest.importorskip("ipywidgets", reason="the lab extra is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch, Rectangle

from teachllama.lessons.n01_generation import exercises
from teachllama.show import notebook01 as pictures

TEXT = "the man in the hat: où? \U0001f642\n  42"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("m") / "t.gguf"))


@pytest.fixture(scope="module")
def model(path: str) -> Iterator[tl.Model]:
    with tl.load_model(path) as m:
        yield m


@pytest.fixture(scope="module")
def file(path: str) -> Iterator[tl.GGUFFile]:
    with tl.open_gguf(path) as f:
        yield f


def endless(*_: object) -> Any:
    while True:
        pass


def failing(*_: object) -> Any:
    raise ZeroDivisionError("my own fault")


class Raises:
    """Every operation on it raises an error."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("boo")

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("boo")

    __index__ = __float__ = __eq__ = __repr__ = __len__ = __iter__ = __bool__ = _raise
    __hash__ = None  # type: ignore[assignment]


class Loops:
    """Converting it to a number loops forever."""

    __index__ = __float__ = endless


NONSENSE = [None, ..., True, "4.5", b"x", [], {}, (1, 2), 1j, object(), len, float("nan"), -1, 0, 10**5000, 1e308,
            np.array([1, 2]), Raises()]  # fmt: skip


def is_plain_result(result: Any) -> None:
    assert isinstance(result, CheckResult)
    assert repr(result).startswith("Right. " if result.ok else "Not yet: ")
    assert len(result.message) < 1000
    assert result.mistake is None or not result.ok


# ---- pictures ----

STEPS: list[tuple[list[str], int | None, str]] = [
    (["h", "e", "r", "s"], None, ""),
    (["h", "er", "s"], 1, "e + r: rank 3"),
    (["h", "ers"], 1, "er + s: rank 40,000, best of 2"),
]
ROWS = [("English", 63, 13), ("Japanese", 42, 72), ("emoji", 1, 4)]
SECTIONS = [("header", 180), ("token_embd", 3000), ("blk.0", 2000), ("blk.1", 2000), ("output_norm", 2)]
KINDS = {"token_embd": 3000, "ffn_up": 2500, "attn_q": 1500, "header": 180, "norms": 2}

PICTURES: dict[str, Callable[[tl.Model], Any]] = {
    "boxes": lambda m: pictures.token_boxes(m, {"one": TEXT, "$x_1$": "a" * 200}, title="Boxes"),
    "boxes of ids": lambda m: pictures.token_boxes(m, {"ids": [m.tokenizer.eos_id or 0, 3]}, special=[3]),
    "boxes of nothing": lambda m: pictures.token_boxes(m, {"nothing": ""}),
    "steps": lambda m: pictures.merge_steps(STEPS),
    "counts": lambda m: pictures.characters_and_tokens(ROWS),
    "one count": lambda m: pictures.characters_and_tokens(ROWS[:1]),
    "file": lambda m: pictures.file_bytes(SECTIONS, KINDS),
    "a file of one layer": lambda m: pictures.file_bytes([("output_norm", 9), ("blk.0", 90)], {"norms": 99}),
}


@pytest.mark.filterwarnings("error")  # a missing glyph is a warning
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_draws_with_its_texts_inside_its_edges_and_clear_of_each_other(name: str, model: tl.Model) -> None:
    figure = PICTURES[name](model)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    texts = [t for ax in figure.axes for t in [*ax.texts, ax.title, ax._left_title] if t.get_text()]
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts]
    for text, box in boxes:
        assert min(box.x0, box.y0) >= -0.5, text
        assert box.x1 <= width + 0.5, text
        assert box.y1 <= height + 0.5, text
    for (one, a), (other, b) in combinations(boxes, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 2 or down < 3, f"{one!r} and {other!r} overlap by {across:.0f} x {down:.0f} pixels"
    assert len(figure.alt) > 20
    assert figure.alt.endswith(".")
    assert PICTURES[name](model)._repr_png_() == PICTURES[name](model)._repr_png_()  # the same bytes each time


def test_boxes_hold_every_token_with_its_id_and_mark_parts_of_characters(model: tl.Model) -> None:
    ids = model.encode("the \U0001f642")
    ax = pictures.token_boxes(model, {"mine": "the \U0001f642"}, special=ids[:1]).axes[0]
    words = [t.get_text() for t in ax.texts]
    assert words[0] == f"mine: {len(ids)} tokens"
    assert words[1:] == [w for i, p in zip(ids, ["the", "␣", "F0", "9F", "99", "82"], strict=True) for w in (p, f"{i}")]
    edges = [(p.get_linestyle() != "solid", p.get_linewidth() > 2) for p in ax.patches]
    assert edges == [(False, True), (False, False)] + [(True, False)] * 4


def test_a_long_row_of_tokens_is_wrapped_inside_the_picture(model: tl.Model) -> None:
    ax = pictures.token_boxes(model, {"long": "q" * 100}).axes[0]
    boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) == 100
    assert len({b.get_y() for b in boxes}) > 3
    assert max(b.get_x() + b.get_width() for b in boxes) <= pictures.ROOM


def test_steps_keep_every_letter_in_its_place_and_mark_what_was_joined() -> None:
    ax = pictures.merge_steps(STEPS).axes[0]
    boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
    assert [len([b for b in boxes if b.get_y() == y]) for y in sorted({b.get_y() for b in boxes})] == [4, 3, 2]
    thick = [b for b in boxes if b.get_linewidth() > 2]
    assert [b.get_x() for b in thick] == [boxes[1].get_x(), boxes[1].get_x()]
    assert "rank 40,000" in " ".join(t.get_text() for t in ax.texts)


def test_bars_are_as_long_as_the_numbers_they_are_given() -> None:
    ax = pictures.characters_and_tokens(ROWS).axes[0]
    assert [p.get_width() for p in ax.patches if isinstance(p, Rectangle)] == [63, 13, 42, 72, 1, 4]
    strip, bars = pictures.file_bytes(SECTIONS, KINDS).axes
    assert [p.get_width() for p in strip.patches if isinstance(p, Rectangle)] == [n for _, n in SECTIONS]
    assert [p.get_width() for p in bars.patches if isinstance(p, Rectangle)] == list(KINDS.values())
    assert any("2 layers" in t.get_text() for t in strip.texts)


def test_pictures_of_nothing_say_what_is_missing(model: tl.Model) -> None:
    for draw in (
        lambda: pictures.token_boxes(model, {}),
        lambda: pictures.merge_steps([]),
        lambda: pictures.merge_steps([([], None, "")]),
        lambda: pictures.merge_steps([(["a"], None, ""), (["b"], None, "")]),
        lambda: pictures.characters_and_tokens([]),
        lambda: pictures.characters_and_tokens([("none", 0, 1)]),
        lambda: pictures.file_bytes([], {}),
    ):
        with pytest.raises(tl.ParameterError):
            draw()


# ---- 1. characters a token ----


def test_each_usual_mistake_about_characters_a_token_is_recognised(model: tl.Model) -> None:
    text = "in there the thin über winner wins"
    n, words = len(model.encode(text)), len(text.split())
    assert check.characters_per_token(len(text) / n, model, text).ok
    assert check.characters_per_token(np.float32(len(text) / n), model, text).ok
    for answer, mistake in (
        (n / len(text), "inverted"), (len(text.encode()) / n, "bytes"), (n / words, "words"),
        (len(text) / words, "characters_per_word"), (len(text.replace(" ", "")) / n, "no_spaces"),
        (len(text) // n, "floor_division"), (len(text), "only_characters"), (n, "only_tokens"),
    ):  # fmt: skip
        result = check.characters_per_token(answer, model, text)
        is_plain_result(result)
        assert mistake in (result.mistake or "").split(" or ")
    assert check.characters_per_token(77, model, text).mistake is None
    assert check.characters_per_token(1, model, "").mistake == "question"
    assert check.characters_per_token(1, model, 5).mistake == "question"  # type: ignore[arg-type]
    assert check.characters_per_token(1, None, "x").mistake == "question"  # type: ignore[arg-type]


# ---- 2. bits a weight ----


def test_each_usual_mistake_about_bits_a_weight_is_recognised() -> None:
    tensors = {"a": SimpleNamespace(nbytes=340, n_elements=320), "b": SimpleNamespace(nbytes=400, n_elements=640)}
    file: Any = SimpleNamespace(tensors=tensors, nbytes=1000)
    assert check.bits_per_weight(8 * 740 / 960, file).ok
    for answer, mistake in (
        (740 / 960, "bytes"), (8 * 1000 / 960, "whole_file"), (960 / 740 / 8, "inverted"), (6.75, "mean_of_means"),
        (8 * 740 / 2, "per_tensor"), (8.5, "one_tensor"), (32, "float32"), (7, None),
    ):  # fmt: skip
        result = check.bits_per_weight(answer, file)
        is_plain_result(result)
        assert (result.ok, result.mistake) == (False, mistake)


def test_bits_of_a_real_file_of_float32_are_32(file: tl.GGUFFile) -> None:
    assert check.bits_per_weight(32, file).ok
    assert check.bits_per_weight(4, file).mistake == "bytes"
    for nothing in (None, SimpleNamespace(tensors={}, nbytes=0)):
        assert check.bits_per_weight(4, nothing).mistake == "question"  # type: ignore[arg-type]


@pytest.mark.parametrize("number", range(len(NONSENSE)))
def test_nonsense_is_no_answer_to_anything(number: int, model: tl.Model, file: tl.GGUFFile) -> None:
    answer = NONSENSE[number]
    for result in (check.characters_per_token(answer, model, TEXT), check.bits_per_weight(answer, file)):
        is_plain_result(result)
        assert not result.ok
    for result in (check.merging(answer), check.safe_turn(answer, model)):
        is_plain_result(result)
        assert not result.ok


def test_a_number_that_never_comes_is_stopped(model: tl.Model) -> None:
    assert check.characters_per_token(Loops(), model, TEXT).mistake == "endless"


# ---- 3. byte-pair merging ----


def join(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """The notebook's solution."""
    symbols = list(symbols)
    while True:
        pairs = [(ranks[p], i) for i, p in enumerate(pairwise(symbols)) if p in ranks]
        if not pairs:
            return symbols
        i = min(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def every_place_at_once(symbols: list[str], ranks: dict[tuple[str, str], int]) -> tuple[str, ...]:
    """As in the paper: merges all places of the best pair in one round."""
    row = tuple(symbols)
    while best := min((p for p in pairwise(row) if p in ranks), key=ranks.__getitem__, default=None):
        out, i = [], 0
        while i < len(row):
            hit = row[i : i + 2] == best
            out.append("".join(best) if hit else row[i])
            i += 2 if hit else 1
        row = tuple(out)
    return row


def variant(choose: str = "min(pairs)", more: str = "", give: str = "symbols") -> Callable[..., Any]:
    """The solution with one part changed, as learners change it."""
    source = f"""
def join(symbols, ranks):
    while True:
        pairs = [(ranks[p], i) for i, p in enumerate(zip(symbols, symbols[1:])) if p in ranks]
        if not pairs:
            return {give}
        i = ({choose})[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        {more}
"""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace["join"]


def test_right_merging_is_right_however_it_is_written() -> None:
    for function in (join, every_place_at_once, variant()):
        result = check.merging(function)
        is_plain_result(result)
        assert result.ok, result


MERGING_MISTAKES = {
    "left_to_right": variant("pairs[0]"),
    "highest_rank": variant("max(pairs)"),
    "rightmost": variant("min(pairs, key=lambda p: (p[0], -p[1]))"),
    "one_join": variant(more="return symbols"),
    "unchanged": lambda symbols, ranks: symbols,
    "longest_match": exercises._longest_first,
    "unanswered": lambda symbols, ranks: None,
    "type": variant(give="''.join(symbols)"),
    "exception": failing,
    "endless": endless,
}


@pytest.mark.parametrize("mistake", MERGING_MISTAKES)
def test_each_usual_mistake_in_merging_is_recognised(mistake: str) -> None:
    result = check.merging(MERGING_MISTAKES[mistake])
    is_plain_result(result)
    assert (result.ok, result.mistake) == (False, mistake)


def test_more_that_is_wrong_with_merging_is_told(model: tl.Model) -> None:
    for function, mistake in (
        (lambda s, r: 5, "type"), (lambda s, r: [1, 2], "type"), (lambda s, r: [["a"]], "type"),
        (lambda s: s, "exception"), (lambda s, r: ["x"], None), (variant(give="symbols[0] and symbols"), "exception"),
        (lambda s, r: join(s, r) if s else s[0], "exception"),
    ):  # fmt: skip
        result = check.merging(function)
        is_plain_result(result)
        assert (result.ok, result.mistake) == (False, mistake)


# ---- 4. a turn that its user cannot end ----


def turn(model: Any, before: str, text: str, after: str) -> list[int]:
    """The notebook's solution."""
    parsed = [model.encode(mark, parse_special=True) for mark in (before, after)]
    return parsed[0] + model.encode(text) + parsed[1]


TURN_MISTAKES: dict[str, Callable[..., Any]] = {
    "text_parsed": lambda m, b, t, a: m.encode(b + t + a, parse_special=True),
    "nothing_parsed": lambda m, b, t, a: m.encode(b + t + a),
    "one_mark": lambda m, b, t, a: m.encode(b, parse_special=True) + m.encode(t) + m.encode(a),
    "text_changed": lambda m, b, t, a: m.encode(b + t.replace(a, "").replace(b, "") + a, parse_special=True),
    "no_marks": lambda m, b, t, a: m.encode(t),
    "order": lambda m, b, t, a: turn(m, a, t, b),
    "nested": lambda m, b, t, a: [m.encode(x) for x in (b, t, a)],
    "unanswered": lambda m, b, t, a: None,
    "type": lambda m, b, t, a: b + t + a,
    "exception": failing,
    "endless": endless,
}


def test_a_turn_made_part_by_part_is_right(model: tl.Model) -> None:
    for function in (turn, lambda *args: tuple(turn(*args)), lambda *args: np.array(turn(*args))):
        result = check.safe_turn(function, model)
        is_plain_result(result)
        assert result.ok, result


@pytest.mark.parametrize("mistake", TURN_MISTAKES)
def test_each_usual_mistake_in_a_turn_is_recognised(mistake: str, model: tl.Model, monkeypatch: Any) -> None:
    if mistake == "endless":  # five seconds are the limit for a real model
        monkeypatch.setattr(exercises, "TURN_SECONDS", 0.3)
    result = check.safe_turn(TURN_MISTAKES[mistake], model)
    is_plain_result(result)
    assert (result.ok, result.mistake) == (False, mistake)


def test_more_that_is_no_list_of_ids_is_told(model: tl.Model) -> None:
    for value in (5, [1.5], ["a"], [10**9], [-1], {"a": 1}, object(), Raises()):
        result = check.safe_turn(lambda *_, value=value: value, model)
        is_plain_result(result)
        assert result.mistake in ("type", "exception")
    for unusable in (None, "smollm2", 3):
        assert check.safe_turn(turn, unusable).mistake == "question"  # type: ignore[arg-type]


@pytest.mark.model
def test_turns_are_right_and_wrong_on_real_models(smollm2_path: str, gemma3_path: str) -> None:
    for path, mark in ((smollm2_path, "<|im_start|>user\n"), (gemma3_path, "<start_of_turn>user\n")):
        with tl.load_model(path) as m:
            assert check.turn_marks(m)[0] == mark
            assert check.safe_turn(turn, m).ok
            for mistake in ("text_parsed", "nothing_parsed", "one_mark", "text_changed", "no_marks"):
                assert check.safe_turn(TURN_MISTAKES[mistake], m).mistake == mistake


def test_an_endless_answer_is_stopped() -> None:
    assert check.merging(endless).mistake == "endless"
