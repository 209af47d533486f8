"""Notebook 03: its checks on right answers, each usual mistake and nonsense; its pictures on made-up numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import teachllama as tl
from teachllama.sampling import SamplingParams, candidates, penalize

pytest.importorskip("matplotlib", reason="the lab extra is not installed")
pytest.importorskip("ipywidgets", reason="the lab extra is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from teachllama.check import notebook03 as check
from teachllama.check.core import CheckResult
from teachllama.show import notebook03 as pictures

LOGITS = np.log(np.array([0.02, 0.4, 0.2, 0.15, 0.08, 0.05, 0.04, 0.03, 0.02, 0.01]))
NONSENSE: list[Any] = [None, ..., "3", b"x", True, [], {}, object(), 1j, float("nan"), lambda: 0, print, 10**5000]


def softmax(l: np.ndarray) -> np.ndarray:
    e = np.exp(l - l.max())
    return e / e.sum()


def endless(*_: object) -> Any:
    while True:
        pass


def failing(*_: object) -> Any:
    raise ZeroDivisionError("my own fault")


def ranked(q: np.ndarray) -> np.ndarray:
    return np.argsort(-q, kind="stable")


# ---- how many tokens min-p keeps ----


@pytest.mark.parametrize(
    ("answer", "mistake"),
    [
        (5, None), (5.0, None), (np.int64(5), None),
        (9, "temperature_first"), (3, "multiplied or absolute"), (1, "top_p"), (10, "all"),
    ],
)  # fmt: skip
def test_min_p_knows_the_right_count_and_the_usual_wrong_ones(answer: Any, mistake: str | None) -> None:
    result = check.min_p_count(answer, LOGITS, 0.125, 1.5)
    assert (result.ok, result.mistake) == (mistake is None, mistake)


def test_min_p_tells_the_tokens_thrown_away_from_those_kept() -> None:
    kept = len(candidates(LOGITS, SamplingParams(temperature=1, min_p=0.3))[0])
    assert check.min_p_count(10 - kept, LOGITS, 0.3, 1.0).mistake == "cut_off"


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda a: type(a).__name__)
def test_nonsense_is_no_count(answer: Any) -> None:
    result = check.min_p_count(answer, LOGITS, 0.125, 2.0)
    assert isinstance(result, CheckResult)
    assert not result.ok
    assert result.message


@pytest.mark.parametrize(("min_p", "temperature"), [(2, 1), (0.1, -1), (0.1, 0), ("x", 1)])
def test_a_question_that_makes_no_sense_says_so(min_p: Any, temperature: Any) -> None:
    assert check.min_p_count(3, LOGITS, min_p, temperature).mistake == "question"


# ---- functions of a learner's ----


def changes_its_input(l: np.ndarray, seen: list[int], penalty: float) -> np.ndarray:
    for i in set(seen):
        l[i] = l[i] / penalty if l[i] > 0 else l[i] * penalty
    return l


def each_time(l: np.ndarray, seen: list[int], penalty: float) -> np.ndarray:
    out = l.copy()
    for i in seen:
        out[i] = out[i] / penalty if out[i] > 0 else out[i] * penalty
    return out


def divided(l: np.ndarray, seen: list[int], penalty: float) -> np.ndarray:
    out = l.copy()
    for i in set(seen):
        out[i] /= penalty
    return out


def each_time_divided(l: np.ndarray, seen: list[int], penalty: float) -> np.ndarray:
    out = l.copy()
    for i in seen:
        out[i] /= penalty
    return out


def subtracted(l: np.ndarray, seen: list[int], penalty: float) -> np.ndarray:
    out = l.copy()
    for i in set(seen):
        out[i] -= penalty
    return out


def top_p_by_loop(q: np.ndarray, p: float) -> list[int]:
    kept, total = [], 0.0
    for i in ranked(q):
        kept.append(int(i))
        total += q[i]
        if total >= p:
            break
    return kept


def leaves_out_the_crossing_token(q: np.ndarray, p: float) -> np.ndarray:
    order = ranked(q)
    return order[np.cumsum(q[order]) <= p]


def right_penalty(l: np.ndarray, seen: list[int], penalty: float) -> np.ndarray:
    return penalize(l, seen, SamplingParams(repeat_penalty=penalty, penalty_last_n=-1))


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.temperature, lambda l, t: softmax(l / t), None),
    (check.temperature, lambda l, t: softmax(l / t).tolist(), None),
    (check.temperature, lambda l, t: softmax(l * t), "multiplied"),
    (check.temperature, lambda l, t: (softmax(l) / t) / (softmax(l) / t).sum(), "probabilities or ignored"),
    (check.temperature, lambda l, t: np.exp(l / t) / np.exp(l / t).sum(), "overflow"),
    (check.temperature, lambda l, t: np.exp((l - l.max()) / t), "not_normalized"),
    (check.temperature, lambda l, t: np.exp(l / t), "not_normalized"),
    (check.temperature, lambda l, t: l / t, "logits"),
    (check.temperature, lambda l, t: softmax(l), "probabilities or ignored"),
    (check.repeat_penalty, right_penalty, None),
    (check.repeat_penalty, divided, "negative_logits"),
    (check.repeat_penalty, each_time, "each_time"),
    (check.repeat_penalty, each_time_divided, "each_time and negative_logits"),
    (check.repeat_penalty, subtracted, "subtracted"),
    (check.repeat_penalty, lambda l, s, p: right_penalty(l, s, 1 / p), "reversed"),
    (check.repeat_penalty, lambda l, s, p: l, "unchanged"),
    (check.repeat_penalty, lambda l, s, p: np.where(l > 0, l / p, l * p), "every_token"),
    (check.repeat_penalty, changes_its_input, "in_place"),
    (check.top_p, top_p_by_loop, None),
    (check.top_p, lambda q, p: top_p_by_loop(q, p)[::-1], None),
    (check.top_p, leaves_out_the_crossing_token, "crossing_token"),
    (check.top_p, lambda q, p: ranked(q)[np.cumsum(q[ranked(q)]) < p], "crossing_token"),
    (check.top_p, lambda q, p: ranked(q)[: np.count_nonzero(np.cumsum(q[ranked(q)]) <= p) + 1], "one_too_many"),
    (check.top_p, lambda q, p: np.arange(min(len(q), np.count_nonzero(np.cumsum(q) < p) + 1)), "unsorted"),
    (check.top_p, lambda q, p: np.arange(len(top_p_by_loop(q, p))), "ranks"),
    (check.top_p, lambda q, p: q[top_p_by_loop(q, p)], "probabilities"),
    (check.top_p, lambda q, p: np.flatnonzero(q >= p * q.max()), "min_p"),
]


@pytest.mark.parametrize(("judge", "function", "mistake"), ANSWERS, ids=lambda x: getattr(x, "__name__", x))
def test_a_function_is_right_or_its_mistake_is_named(
    judge: Callable[..., CheckResult], function: Callable[..., Any], mistake: str | None
) -> None:
    result = judge(function)
    assert (result.ok, result.mistake) == (mistake is None, mistake), result
    assert len(result.message) > 20


JUDGES = [check.temperature, check.repeat_penalty, check.top_p]


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
@pytest.mark.parametrize(
    "value", [None, ..., "abc", 3, 1j, object(), [[1, 2], [3]], [[1.0]], {}, [None], np.array([True]), [10**400]],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_a_function_may_return_anything(judge: Callable[..., CheckResult], value: Any) -> None:
    assert not judge(lambda *_: value).ok


def test_the_top_p_answer_is_the_engines() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.83)
    assert top_p_by_loop(np.exp(LOGITS), 0.83) == candidates(LOGITS, params)[0].tolist()


# ---- pictures ----

WORDS = {1: " the", 2: "\n", 3: "$x$", 4: "中", 0: "a" * 60}
PROBABILITIES = softmax(LOGITS)


def drawn(picture: Any) -> list[str]:
    """Draws a picture and returns its texts."""
    FigureCanvasAgg(picture).draw()
    texts = [t.get_text() for ax in picture.axes for t in (*ax.texts, *ax.get_yticklabels())]
    texts += [ax.get_title(loc="left") for ax in picture.axes]
    assert picture.alt
    assert picture._repr_png_()[0].startswith(b"\x89PNG")
    return texts


def test_a_greedy_path_draws_every_probability_with_and_without_a_loop() -> None:
    pieces = [" a", "\n", "$x$"] * 4
    values = list(np.linspace(0.1, 0.9, 12))
    for period in (None, 3, 5):
        picture = pictures.greedy_path(pieces, values, period)
        drawn(picture)
        assert picture.axes[0].lines[0].get_ydata().tolist() == values
    assert "every 5 tokens" in picture.alt


def test_temperatures_are_drawn_as_the_engine_has_them() -> None:
    picture = pictures.temperatures(LOGITS, WORDS, (0.5, 2.0))
    texts = drawn(picture)
    for ax, t in zip(picture.axes, (0.5, 2.0), strict=True):
        ids, p = candidates(LOGITS, SamplingParams(temperature=t))
        by_id = dict(zip(ids.tolist(), p.tolist(), strict=True))
        assert np.allclose([bar.get_width() for bar in ax.patches], [by_id[i] for i in WORDS])
    assert "temperature 0.5" in texts
    assert "␣the" in texts


def test_the_slider_follows_its_value_and_has_a_constant_text() -> None:
    slider = pictures.TemperatureSlider(LOGITS, WORDS)
    assert np.allclose(slider.probabilities, PROBABILITIES)
    for t in (pictures.COOLEST, 2.0, pictures.HOTTEST):
        slider.temperature.value = t
        assert np.allclose(slider.probabilities, softmax(LOGITS / t))
        assert f">{pictures.entropy(slider.probabilities):.2f}</output>" in slider.readout.value
    assert "The other 5 tokens" in slider.readout.value
    assert repr(slider) == repr(pictures.TemperatureSlider(LOGITS, {0: "<b>"}, 0.3))
    assert "&lt;b&gt;" in pictures.TemperatureSlider(LOGITS, {0: "<b>"}).readout.value


def test_entropy_counts_bits() -> None:
    assert pictures.entropy(np.full(8, 1 / 8)) == pytest.approx(3)
    assert pictures.entropy(np.array([1.0, 0.0])) == 0


def test_cuts_say_how_many_tokens_each_rule_keeps() -> None:
    flat = np.full(2000, 1 / 2000)
    picture = pictures.cuts({"a": PROBABILITIES, "$b$": flat}, {"a": {"k": 1}, "$b$": {"k": 1234, "p": 20}})
    assert "k: 1,234 tokens, 61.7% of the probability" in drawn(picture)
    assert "k: 1 token, 40.0% of the probability" in picture.alt


def test_penalty_arrows_go_from_before_to_after() -> None:
    picture = pictures.penalty_arrows(["a", "$b$"], [3.0, 2.0], {"x": [1.0, 2.0], "y": [2.5, 2.0]})
    drawn(picture)
    assert [list(ax.lines[1].get_xdata()) for ax in picture.axes] == [[1.0, 2.0], [2.5, 2.0]]
    assert "x: highest is $b$; y: highest is a" in picture.alt


def test_the_ruler_says_which_token_each_number_draws() -> None:
    picture = pictures.ruler(["a", "b", "c"], [0.5, 0.49, 0.01], [0.0, 0.5, 0.999])
    drawn(picture)
    assert "fall on a, b, c" in picture.alt


def test_knobs_draws_a_row_a_setting() -> None:
    picture = pictures.knobs({"greedy": (1 / 3, [2.0]), "hot": (1.0, [8.0, 12.0])})
    texts = drawn(picture)
    assert {"33%", "100%", "2.0", "10.0", "greedy", "hot"} <= set(texts)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.greedy_path([], []),
        lambda: pictures.greedy_path(["a"], [0.1, 0.2]),
        lambda: pictures.distribution(LOGITS, 0),
        lambda: pictures.distribution(LOGITS, math.nan),
        lambda: pictures.distribution(np.zeros((2, 2))),
        lambda: pictures.temperatures(LOGITS, {}),
        lambda: pictures.TemperatureSlider(LOGITS, {99: "x"}),
        lambda: pictures.cuts({"a": PROBABILITIES}, {}),
        lambda: pictures.penalty_arrows(["a"], [1.0], {}),
        lambda: pictures.ruler(["a"], [0.5], []),
        lambda: pictures.knobs({}),
        lambda: pictures.knobs({"a": (0.5, [])}),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_reason(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError, match="expected"):
        draw()
