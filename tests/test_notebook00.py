"""Notebook 00's pictures and checks: what they draw, and every answer that they recognise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from teachllama.check import CheckResult
from teachllama.check import notebook00 as check
from teachllama.errors import ParameterError
from teachllama.lessons.n00_transformer import exercises
from teachllama.show import notebook00 as pictures
from tests.test_show import texts_of

# ---- pictures ----


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def hands(n: int, *speeds: float) -> np.ndarray:
    angles = np.arange(n)[:, None] * np.array(speeds)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def causal(n: int) -> np.ndarray:
    return np.tri(n) / np.arange(1, n + 1)[:, None]


PIECES = ["The", " cat", " $x$", "\n", "中", "", " because", " a_long_token", "."]
PICTURES: dict[str, Callable[[], Any]] = {
    "numbers": lambda: pictures.where_the_numbers_are({"vocabulary: one vector a token": 28, "attention": 0, "b": 9}),
    "one number": lambda: pictures.where_the_numbers_are({"all": 10**11}),
    "matrix": lambda: pictures.whole_matrix(np.linspace(-1, 2, 64 * 128).reshape(64, 128), "blk.0.attn_k.weight"),
    "flat matrix": lambda: pictures.whole_matrix(np.zeros((1, 900)), "a"),
    "tall matrix": lambda: pictures.whole_matrix(np.ones((900, 3)), "a"),
    "words": lambda: pictures.dot_products(["cat", "dog", "Paris"], np.eye(3) * 0.5 + 0.5),
    "opposite words": lambda: pictures.dot_products(["up", "down"], np.array([[1.0, -1.0], [-1.0, 1.0]])),
    "one word": lambda: pictures.dot_products(["alone"], np.ones((1, 1))),
    "clocks": lambda: pictures.clocks(hands(9, 1.0, 0.05, 0.0003), ["pair 0\na", "pair 8\nb", "pair 16\nc"]),
    "one hand": lambda: pictures.clocks(hands(1, 1.0), ["pair 0"]),
    "curve": lambda: pictures.activation_curve(silu, [0.0, 1.1, -1.1]),
    "a drawing of a layer": lambda: pictures.one_layer(128, 384, 4, 2, 32),
    "a drawing of a large layer": lambda: pictures.one_layer(8192, 28_672, 64, 8, 128),
    "one story": lambda: pictures.last_looks({"a red kite": (PIECES, causal(9)[-1])}),
    "three stories": lambda: pictures.last_looks({name: (PIECES, causal(9)[-1]) for name in ("a", "b", "c")}),
    "one token": lambda: pictures.last_looks({"a": (["The"], [1.0])}),
    "layers": lambda: pictures.answer_by_layer([0.0, 0.1, 0.8] * 10, [" a", "\n", " Paris"] * 10, " Paris"),
    "one layer": lambda: pictures.answer_by_layer([0.0], ["x"], " Paris"),
}


@pytest.mark.filterwarnings("error")  # a missing glyph is a warning
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_draws_with_labels_inside_its_edges_and_clear_of_each_other(name: str) -> None:
    figure = PICTURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = [(t.get_text(), Text.get_window_extent(t, canvas.get_renderer())) for t in texts_of(figure)]
    for text, box in boxes:
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= width + 0.5, text
        assert box.y1 <= height + 0.5, text
    for (one, a), (other, b) in combinations(boxes, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 2 or down < 3, f"{one!r} and {other!r} overlap by {across:.0f} x {down:.0f} pixels"
    assert len(figure.alt) > 20
    assert figure.alt.endswith(".")


def test_the_bars_are_as_long_as_the_counts() -> None:
    figure = pictures.where_the_numbers_are({"a": 30, "b": 10})
    assert [bar.get_width() for bar in figure.axes[0].patches] == [30, 10]
    assert "75.0%" in figure.alt
    assert "under 0.1%" in pictures.where_the_numbers_are({"a": 10**6, "b": 1}).alt


def test_the_whole_matrix_is_drawn_as_given_and_zero_lies_in_the_middle_of_its_colours() -> None:
    matrix = np.array([[0.5, -2.0, 0.0], [1.0, 0.25, -0.5]])
    figure = pictures.whole_matrix(matrix, "blk.0.attn_k.weight")
    image = figure.axes[0].images[0]
    assert np.array_equal(np.asarray(image.get_array()), matrix)
    assert image.get_clim() == (-2.0, 2.0)
    assert "2 rows and 3 columns" in figure.alt
    assert "from -2.00 to 1.00" in figure.alt


def test_the_table_of_words_says_each_product_and_each_words_nearest() -> None:
    products = np.array([[1.0, 0.25, 0.5], [0.25, 1.0, 0.75], [0.5, 0.75, 1.0]])
    figure = pictures.dot_products(["x", "y", "z"], products)
    shown = [t.get_text() for t in figure.axes[0].texts]
    assert shown == ["1.00", "0.25", "0.50", "0.25", "1.00", "0.75", "0.50", "0.75", "1.00"]
    assert "x and z 0.50; y and z 0.75; z and y 0.75" in figure.alt


def test_the_clocks_have_a_hand_for_each_position_and_say_how_far_they_turn() -> None:
    figure = pictures.clocks(hands(5, np.pi / 2, 0.01), ["fast", "slow"])
    fast, slow = figure.axes
    ends = [t.xy for t in fast.texts if t.get_text() == ""]
    assert np.allclose(ends, [(1, 0), (0, 1), (-1, 0), (0, -1), (1, 0)])
    assert [t.get_text() for t in slow.texts if t.get_text()] == ["0 to 4"]
    assert "fast by 360 degrees; slow by 2 degrees" in figure.alt


def test_the_curve_is_the_function_that_was_given() -> None:
    _, _, curve, dots = pictures.activation_curve(silu, [0.0, 2.0]).axes[0].lines
    assert np.array_equal(curve.get_ydata(), silu(curve.get_xdata()))
    assert np.array_equal(dots.get_ydata(), silu(np.array([0.0, 2.0])))


def test_looks_are_drawn_as_given_and_the_longest_is_named() -> None:
    figure = pictures.last_looks({"her red": (["The", " kite", " red"], [0.1, 0.7, 0.2])})
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.1, 0.7, 0.2]
    assert "her red: 70% at 'kite'" in figure.alt


def test_the_drawing_of_a_layer_names_every_shape() -> None:
    alt = pictures.one_layer(128, 384, 4, 2, 32).alt
    assert all(word in alt for word in ("128", "384", "4 heads of 32", "keys and values (2)"))


def test_the_answer_by_layer_says_after_which_layers_it_is_likeliest() -> None:
    figure = pictures.answer_by_layer([0.0, 0.4, 0.9], [" a", " Paris", " Paris"], " Paris")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.0, 0.4, 0.9]
    assert "layers 2, 3." in figure.alt
    assert "90.0% after the last" in figure.alt


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.where_the_numbers_are({}),
        lambda: pictures.dot_products(["a"], np.ones((2, 2))),
        lambda: pictures.whole_matrix(np.ones(3), "a"),
        lambda: pictures.whole_matrix(np.ones((0, 3)), "a"),
        lambda: pictures.clocks(np.ones((2, 2)), ["a"]),
        lambda: pictures.last_looks({}),
        lambda: pictures.last_looks({"a": (["a"], [0.5, 0.5])}),
        lambda: pictures.one_layer(0, 1, 1, 1, 1),
        lambda: pictures.answer_by_layer([0.5], [], "a"),
    ],
)
def test_a_picture_of_numbers_that_do_not_fit_together_says_so(draw: Callable[[], Any]) -> None:
    with pytest.raises(ParameterError, match=r"expected|give"):
        draw()


# ---- checks ----

TINY = {"n_layers": 22, "dim": 2048, "hidden_dim": 5632, "n_heads": 32, "n_kv_heads": 4, "head_dim": 64,
        "vocab_size": 32_000, "tied": False}  # fmt: skip
SMOL = {"n_layers": 30, "dim": 576, "hidden_dim": 1536, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64,
        "vocab_size": 49152, "tied": True}  # fmt: skip
RIGHT = {"tiny": 1_100_048_384, "smol": 134_515_008}  # the parameters in the two files


def is_plain(result: object) -> CheckResult:
    assert isinstance(result, CheckResult)
    assert repr(result).startswith("Right. " if result.ok else "Not yet: ")
    assert result.mistake is None or not result.ok
    assert len(result.message) < 1500
    return result


def test_the_weights_of_two_published_models_are_right() -> None:
    assert is_plain(check.weights_of_a_llama(RIGHT["tiny"], TINY)).ok
    assert is_plain(check.weights_of_a_llama(RIGHT["smol"], SMOL)).ok
    assert check.weights_of_a_llama(np.int64(RIGHT["smol"]), SimpleNamespace(**SMOL)).ok


WRONG_COUNTS = {
    "query_heads": RIGHT["tiny"] + 22 * 2 * 28 * 64 * 2048,
    "tables": RIGHT["tiny"] - 32_000 * 2048,
    "no_table": RIGHT["tiny"] - 2 * 32_000 * 2048,
    "ffn_two": RIGHT["tiny"] - 22 * 2048 * 5632,
    "no_norms": RIGHT["tiny"] - 45 * 2048,
    "last_norm": RIGHT["tiny"] - 2048,
    "one_layer": (RIGHT["tiny"] - 2 * 32_000 * 2048 - 2048) // 22 + 2 * 32_000 * 2048 + 2048,
    "bytes": 4 * RIGHT["tiny"],
}


@pytest.mark.parametrize("mistake", WRONG_COUNTS)
def test_each_usual_wrong_count_is_recognised_and_the_right_one_not_given_away(mistake: str) -> None:
    result = is_plain(check.weights_of_a_llama(WRONG_COUNTS[mistake], TINY))
    assert result.mistake == mistake
    assert str(RIGHT["tiny"]) not in repr(result).replace(",", "")


def test_another_wrong_count_is_told_from_the_usual_ones() -> None:
    assert "Too large" in is_plain(check.weights_of_a_llama(10**12, TINY)).message
    assert "Too small" in is_plain(check.weights_of_a_llama(-3, TINY)).message
    with pytest.raises(ParameterError, match="n_layers"):
        check.weights_of_a_llama(1, {"dim": 3})


def rmsnorm(x: Any, w: Any, e: Any) -> Any:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + e) * w


def rms_in_place(x: Any, w: Any, e: Any) -> Any:
    x *= w / np.sqrt(np.mean(x * x, -1, keepdims=True) + e)
    return x


def hidden(n: int, n_past: int) -> Any:
    return ~np.tri(n, n_past + n, n_past, dtype=bool)


def rope(x: Any, p: Any, base: Any) -> Any:
    z = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * np.outer(p, base ** (-np.arange(0, x.shape[1], 2) / x.shape[1])))
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def halves(x: Any, p: Any, base: Any) -> Any:
    order = np.arange(x.shape[1]).reshape(2, -1).T.ravel()
    return rope(x[:, order], p, base)[:, np.argsort(order)]


FUNCTIONS: list[tuple[Callable[[object], CheckResult], Callable[..., Any], str | None]] = [
    (check.rmsnorm, rmsnorm, None),
    (check.rmsnorm, lambda x, w, e: rmsnorm(x, w, e).astype(np.float32), None),
    (check.rmsnorm, lambda x, w, e: rmsnorm(x - x.mean(-1, keepdims=True), w, e), "mean_subtracted"),
    (check.rmsnorm, lambda x, w, e: rmsnorm(x, w, 0), "no_eps"),
    (check.rmsnorm, lambda x, w, e: x * w / (np.sqrt((x**2).mean(-1, keepdims=True)) + e), "eps_outside"),
    (check.rmsnorm, lambda x, w, e: x * w / np.sqrt((x**2).sum(-1, keepdims=True) + e), "sum"),
    (check.rmsnorm, lambda x, w, e: x * w / ((x**2).mean(-1, keepdims=True) + e), "no_root"),
    (check.rmsnorm, lambda x, w, e: x * w / np.sqrt((x**2).mean() + e), "whole_array"),
    (check.rmsnorm, lambda x, w, e: rmsnorm(x, 1, e), "no_weight"),
    (check.rmsnorm, rms_in_place, "in_place"),
    (check.rmsnorm, lambda x, w, e: rmsnorm(x, w, e)[0], "shape"),
    (check.rmsnorm, lambda x, w, e: x + 17, None),
    (check.hidden, hidden, None),
    (check.hidden, lambda n, p: hidden(n, p).tolist(), None),
    (check.hidden, lambda n, p: ~hidden(n, p), "inverted"),
    (check.hidden, lambda n, p: ~np.tri(n, p + n, p - 1, dtype=bool), "itself"),
    (check.hidden, lambda n, p: np.tri(n, p + n, p - 1, dtype=bool), "inverted_itself"),
    (check.hidden, lambda n, p: ~np.tri(n, p + n, dtype=bool), "past"),
    (check.hidden, lambda n, p: hidden(n, 0), "square"),
    (check.hidden, lambda n, p: hidden(n, p).T, "transposed"),
    (check.hidden, lambda n, p: np.zeros((n, p + n), bool), "nothing_hidden"),
    (check.hidden, lambda n, p: np.where(hidden(n, p), -np.inf, 0), "additive"),
    (check.hidden, lambda n, p: np.where(hidden(n, p), -3.0, 0), "some_cases"),
    (check.rope, rope, None),
    (check.rope, halves, "halves"),
    (check.rope, lambda x, p, b: rope(x, -p, b), "backwards"),
    (check.rope, lambda x, p, b: rope(x, p, np.sqrt(b)), "exponent"),
    (check.rope, lambda x, p, b: rope(x, p, 1 / b), "exponent_sign"),
    (check.rope, lambda x, p, b: rope(x, np.deg2rad(p), b), "degrees"),
    (check.rope, lambda x, p, b: rope(x, np.arange(len(x)), b), "from_zero"),
    (check.rope, lambda x, p, b: rope(x, p, 1.0), "one_speed"),
    (check.rope, lambda x, p, b: x, "not_turned"),
    (check.rope, exercises._overwritten, "overwritten"),
]


@pytest.mark.parametrize(("judge", "function", "mistake"), FUNCTIONS)
def test_a_function_is_judged_and_each_usual_mistake_named(
    judge: Callable[[object], CheckResult], function: Callable[..., Any], mistake: str | None
) -> None:
    assert is_plain(judge(function)).mistake == mistake


def test_only_the_right_functions_are_right() -> None:
    right = [function for judge, function, _ in FUNCTIONS if judge(function).ok]
    assert {rmsnorm, hidden, rope} <= set(right)
    assert len(right) == 5


class Raises:
    """Every operation on it raises an error."""

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("boo")

    __array__ = __index__ = __float__ = __len__ = __iter__ = __bool__ = __repr__ = __eq__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def endless(*_: object) -> Any:
    while True:
        pass


NONSENSE = [None, ..., True, "134515008", b"x", [], {}, 1j, object(), float("nan"), float("inf"), np.ones((2, 2)),
            np.array(["a"]), np.datetime64("2024-01-01"), [[1], [2, 3]], Raises(), Raises]  # fmt: skip
JUDGES = [check.rmsnorm, check.hidden, check.rope, lambda answer: check.weights_of_a_llama(answer, SMOL)]


@pytest.mark.parametrize("judge", JUDGES)
def test_nonsense_is_never_right_and_never_raises(judge: Callable[[object], CheckResult]) -> None:
    for answer in NONSENSE:
        assert not is_plain(judge(answer)).ok
        assert not is_plain(judge(lambda *_, answer=answer: answer)).ok


@pytest.mark.parametrize("judge", JUDGES[:3])
def test_an_exception_names_the_line_and_an_endless_loop_is_stopped(judge: Callable[[object], CheckResult]) -> None:
    failed = is_plain(judge(lambda *_: 1 / 0))
    assert failed.mistake == "exception"
    assert "ZeroDivisionError" in failed.message
    assert is_plain(judge(endless)).mistake == "endless"
    assert is_plain(judge(lambda: 0)).mistake == "exception"
    assert is_plain(judge(lambda *_: None)).mistake == "unanswered"
