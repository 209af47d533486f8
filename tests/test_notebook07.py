"""Notebook 07: its checks on right answers, each usual mistake and nonsense; its pictures on made-up vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")
pytest.importorskip("ipywidgets", reason="the lab extra is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from teachllama.check import notebook07 as check
from teachllama.check.core import CheckResult
from teachllama.show import notebook07 as pictures

NONSENSE: list[Any] = [None, ..., "3", b"x", True, [], {}, object(), 1j, float("nan"), 10**5000]
length = np.linalg.norm


def endless(*_: object) -> Any:
    while True:
        pass


def failing(*_: object) -> Any:
    raise ZeroDivisionError("my own fault")


def rows(v: np.ndarray) -> np.ndarray:
    return np.asarray(length(v, axis=1, keepdims=True))


def others(v: np.ndarray, i: int) -> np.ndarray:
    scores = v @ v[i]
    scores[i] = -9
    return scores


def changes_its_input(v: np.ndarray) -> np.ndarray:
    v -= v.mean(axis=0)
    return v / rows(v)


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.mean_pool, lambda h: h.mean(axis=0), None),
    (check.mean_pool, lambda h: [sum(column) / len(h) for column in h.T], None),
    (check.mean_pool, lambda h: h.mean(axis=1), "wrong_axis"),
    (check.mean_pool, lambda h: h.mean(), "one_number"),
    (check.mean_pool, lambda h: h.sum(axis=0), "sum"),
    (check.mean_pool, lambda h: h[-1], "last"),
    (check.mean_pool, lambda h: h[0], "first"),
    (check.mean_pool, lambda h: h.max(axis=0), "max"),
    (check.mean_pool, lambda h: h.mean(axis=0) / length(h.mean(axis=0)), "normalized"),
    (check.mean_pool, lambda h: h.mean(axis=0, keepdims=True), "keepdims"),
    (check.cosine, lambda a, b: a @ b / (length(a) * length(b)), None),
    (check.cosine, lambda a, b: float(a / length(a) @ (b / length(b))), None),
    (check.cosine, lambda a, b: a @ b, "dot"),
    (check.cosine, lambda a, b: a @ b / length(a), "one_length"),
    (check.cosine, lambda a, b: a @ b / length(b), "one_length"),
    (check.cosine, lambda a, b: a @ b / (a @ a * (b @ b)), "no_root"),
    (check.cosine, lambda a, b: a @ b / (length(a) + length(b)), "lengths_added"),
    (check.cosine, lambda a, b: 1 - a @ b / (length(a) * length(b)), "distance"),
    (check.cosine, lambda a, b: length(a - b), "distance"),
    (check.cosine, lambda a, b: np.arccos(np.clip(a @ b / (length(a) * length(b)), -1, 1)), "angle"),
    (check.cosine, lambda a, b: abs(a @ b) / (length(a) * length(b)), "no_sign"),
    (check.cosine, lambda a, b: a * b, "elementwise"),
    (check.cosine, lambda a, b: a * b / (length(a) * length(b)), "elementwise"),
    (check.nearest, lambda v, i: np.argmax(others(v, i)), None),
    (check.nearest, lambda v, i: int(np.argsort(v @ v[i])[-2]), None),
    (check.nearest, lambda v, i: np.argmax(v @ v[i]), "itself"),
    (check.nearest, lambda v, i: np.argmax(np.delete(v @ v[i], i)), "shifted"),
    (check.nearest, lambda v, i: others(v, i).max(), "similarity"),
    (check.nearest, lambda v, i: np.argmin(v @ v[i]), "least_alike"),
    (check.nearest, lambda v, i: np.argsort(-others(v, i))[1], "second"),
    (check.nearest, lambda v, i: np.argsort(-others(v, i)), "all_ranked"),
    (check.nearest, lambda v, i: np.argsort(-(v @ v[i])), "all_ranked"),
    (check.nearest, lambda v, i: v[np.argmax(others(v, i))], "vector"),
    (check.centring, lambda v: (v - v.mean(axis=0)) / rows(v - v.mean(axis=0)), None),
    (check.centring, lambda v: v - v.mean(axis=0), "not_normalized"),
    (check.centring, lambda v: v / rows(v), "not_centred"),
    (check.centring, lambda v: v / rows(v) - (v / rows(v)).mean(axis=0), "normalized_before"),
    (check.centring, lambda v: (v - v.mean(axis=1)[:, None]) / rows(v - v.mean(axis=1)[:, None]), "wrong_axis"),
    (check.centring, lambda v: v - v.mean(axis=1)[:, None], "wrong_axis"),
    (check.centring, lambda v: (v - v.mean()) / rows(v - v.mean()), "one_number"),
    (check.centring, lambda v: (v - v.mean(axis=0)) / length(v - v.mean(axis=0)), "whole_table"),
    (check.centring, lambda v: (v - v.mean(axis=0)) / length(v - v.mean(axis=0), axis=0), "columns"),
    (check.centring, lambda v: (v - v.mean(axis=0)) / v.std(axis=0), "standardized"),
    (check.centring, changes_its_input, "in_place"),
]


@pytest.mark.parametrize(("judge", "function", "mistake"), ANSWERS, ids=lambda x: getattr(x, "__name__", x))
def test_a_function_is_right_or_its_mistake_is_named(
    judge: Callable[..., CheckResult], function: Callable[..., Any], mistake: str | None
) -> None:
    result = judge(function)
    assert (result.ok, result.mistake) == (mistake is None, mistake), result
    assert len(result.message) > 20


JUDGES = [check.mean_pool, check.cosine, check.nearest, check.centring]


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("answer", [*NONSENSE, failing, endless], ids=lambda a: getattr(a, "__name__", str(type(a))))
def test_nonsense_exceptions_and_endless_loops_are_not_right_and_do_not_raise(
    judge: Callable[..., CheckResult], answer: Any
) -> None:
    result = judge(answer)
    assert not result.ok
    assert result.message
    if answer is failing:
        assert "my own fault" in result.message
    if answer is endless:
        assert result.mistake == "endless"


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("value", NONSENSE, ids=lambda v: type(v).__name__)
def test_a_function_may_return_anything(judge: Callable[..., CheckResult], value: Any) -> None:
    assert not judge(lambda *_: value).ok


@pytest.mark.parametrize(
    ("answer", "mistake"),
    [
        (2_304_000_000, None), (2.304e9, None), (np.int64(2_304_000_000), None),
        (576_000_000, "no_element_size"), (18_432_000_000, "bits"), (4_608_000_000, "float64"),
        (2304, "one_vector or megabytes"), (4 * 10**12, "all_pairs"), (2.304, "gigabytes"), (7, None),
    ],
)  # fmt: skip
def test_the_bytes_of_an_index_are_right_or_the_mistake_is_named(answer: Any, mistake: str | None) -> None:
    result = check.index_bytes(answer, 1_000_000, 576)
    assert (result.ok, result.mistake) == (mistake is None and answer != 7, mistake)


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda a: type(a).__name__)
def test_nonsense_is_no_number_of_bytes(answer: Any) -> None:
    result = check.index_bytes(answer, 1_000_000, 576)
    assert not result.ok
    assert result.message


# ---- pictures ----

VECTORS = np.array([[1.0, 0.1, 0], [0.9, -0.2, 0.1], [0.1, 1, 0.2], [0, 0.8, 0.6]])
TABLE = VECTORS @ VECTORS.T / (rows(VECTORS) * rows(VECTORS).T)
NAMES, TOPICS = ["a", "$b$", "中", "d" * 40], ["one", "one", "two", "two"]


def drawn(picture: Any) -> list[str]:
    """Draws a picture and returns its texts."""
    FigureCanvasAgg(picture).draw()
    assert picture.alt
    assert picture._repr_png_()[0].startswith(b"\x89PNG")
    labels = [t for ax in picture.axes for t in (*ax.texts, *ax.get_yticklabels(), *ax.get_xticklabels())]
    return [t.get_text() for t in labels] + [ax.get_title(loc="left") for ax in picture.axes]


def test_the_first_difference_shows_both_texts_and_each_cosine() -> None:
    texts = drawn(pictures.first_difference(([" a", "b", "c"], [" a", "$x$"]), [1.0, -0.25]))
    assert {"1.00", "-0.25", "␣a\n␣a", "b\n$x$"} <= set(texts)


def test_a_heat_map_draws_each_table_as_it_is() -> None:
    picture = pictures.heat({"x": TABLE, "y": -TABLE}, NAMES, TOPICS)
    assert {"x", "y", "$b$"} <= set(drawn(picture))
    assert np.allclose(picture.axes[1].images[0].get_array(), -TABLE)
    same, other = TABLE[0, 1] / 2 + TABLE[2, 3] / 2, TABLE[:2, 2:].mean()
    assert f"x: mean {same:.2f} within a topic, {other:.2f} across" in picture.alt


def test_spreads_draw_every_pair_once() -> None:
    picture = pictures.spreads({"x": TABLE}, TOPICS, {"x": "3 of 4"})
    assert {"x", "3 of 4"} <= set(drawn(picture))
    same, _, other, _ = (sorted(line.get_xdata()) for line in picture.axes[0].lines)
    assert np.allclose(same, sorted([TABLE[0, 1], TABLE[2, 3]]))
    assert np.allclose(other, sorted(TABLE[:2, 2:].ravel()))


def test_a_map_has_a_point_and_a_name_for_each_text() -> None:
    picture = pictures.plane(VECTORS[:, :2], NAMES, TOPICS, 0.5)
    assert {"a", "$b$"} <= set(drawn(picture))
    points = [line.get_xydata()[0].tolist() for line in picture.axes[0].lines[:4]]
    assert points == VECTORS[:, :2].tolist()
    assert "50% of the variance" in picture.alt


def test_a_ranking_starts_with_the_most_alike() -> None:
    picture = pictures.ranking("$q$", ["x", "y", "z"], [0.1, 0.9, -0.3], ["one", "two", "two"])
    texts = drawn(picture)
    assert [t for t in texts if t in "xyz" and t] == ["y", "x", "z"]
    assert "0.90  two" in texts


def test_traps_say_how_many_were_fallen_into() -> None:
    picture = pictures.traps(["k", "l", "m"], [0.5, 0.9, 0.1], [0.8, 0.2, 0.3])
    drawn(picture)
    assert picture.alt.startswith("In 2 of 3 traps")


def test_the_list_of_neighbours_ranks_the_others_and_follows_its_controls() -> None:
    neighbours = pictures.Neighbours(["<b>", "y", "z", "w"], TOPICS, VECTORS)
    centred = VECTORS - VECTORS.mean(axis=0)
    for i in range(4):
        for tick, v in ((True, centred), (False, VECTORS)):
            neighbours.choice.value, neighbours.centred.value = i, tick
            cosines = v @ v[i] / length(v, axis=1)
            assert neighbours.order == [j for j in np.argsort(-cosines, kind="stable") if j != i]
    assert "&lt;b&gt;" in neighbours.readout.value
    assert "✓" in neighbours.readout.value
    assert repr(neighbours) == repr(pictures.Neighbours(["a", "b"], TOPICS[:2], VECTORS[:2]))


def test_equal_vectors_have_neighbours_too() -> None:
    assert pictures.Neighbours(["a", "b"], ["one", "two"], np.ones((2, 3))).order == [1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.first_difference((["a"], ["b"]), []),
        lambda: pictures.first_difference((["a", "b"], ["b"]), [1, 1]),
        lambda: pictures.heat({}, NAMES, TOPICS),
        lambda: pictures.heat({"x": TABLE[:3]}, NAMES, TOPICS),
        lambda: pictures.heat({"x": TABLE}, NAMES, TOPICS[:2]),
        lambda: pictures.spreads({}, TOPICS, {}),
        lambda: pictures.spreads({"x": TABLE}, TOPICS, {"y": ""}),
        lambda: pictures.spreads({"x": TABLE}, ["one"] * 4, {"x": ""}),
        lambda: pictures.spreads({"x": TABLE}, list("abcd"), {"x": ""}),
        lambda: pictures.plane(VECTORS, NAMES, TOPICS, 0.5),
        lambda: pictures.plane(np.zeros((7, 2)), list("abcdefg"), list("abcdefg"), 0.5),
        lambda: pictures.ranking("q", [], [], []),
        lambda: pictures.ranking("q", ["x"], [0.1, 0.2], ["t"]),
        lambda: pictures.traps([], [], []),
        lambda: pictures.traps(["k"], [0.1], []),
        lambda: pictures.Neighbours(["a"], ["t"], np.ones((1, 2))),
        lambda: pictures.Neighbours(["a", "b"], TOPICS[:2], np.ones((3, 2))),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_reason(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError, match="expected"):
        draw()
