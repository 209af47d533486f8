"""Notebook 13: its checks on right answers and usual mistakes; its pictures; the smaller model it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from teachllama.check import notebook13 as check
from teachllama.check.core import CheckResult
from teachllama.show import notebook13 as pictures

STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"


def rule(p: Any, q: Any, guess: int, u: float) -> Any:
    if u < p[guess] / q[guess]:
        return [float(i == guess) for i in range(len(p))]
    rest = [max(0.0, float(a - b)) for a, b in zip(p, q)]
    return (r / sum(rest) for r in rest)


def by_text(tokens: list[int], n: int, k: int) -> tuple[int, ...]:
    """Searches backwards in a text."""
    text, tail = " " + " ".join(map(str, tokens[:-1])) + " ", " " + " ".join(map(str, tokens[-n:])) + " "
    at = text.rfind(tail)
    return tuple(int(t) for t in [*text[at + len(tail) :].split(), tokens[-1]][:k]) if at >= 0 else ()


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.tokens_per_pass, lambda a, k: k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a), None),
    (check.tokens_per_pass, lambda a, k: np.array([np.polyval([1] * (k + 1), a)]), None),
    (check.tokens_per_pass, lambda a, k: 1 + k * a, "independent"),
    (check.tokens_per_pass, lambda a, k: sum(a**i for i in range(1, k + 1)), "no_bonus"),
    (check.tokens_per_pass, lambda a, k: sum(a**i for i in range(k)), "last_missing"),
    (check.tokens_per_pass, lambda a, k: (1 - a ** (k + 1)) / (1 - a), "exception"),
    (check.after_guess, rule, None),
    (check.after_guess, lambda p, q, guess, u: p, "never"),
    (check.after_guess, lambda p, q, guess, u: np.eye(len(p))[guess], "always_kept"),
    (check.after_guess, lambda p, q, guess, u: np.eye(len(p))[guess] if u < p[guess] / q[guess] else p, "drawn_from_p"),
    (check.look_up, by_text, None),
    (check.look_up, lambda t, n, k: np.array(by_text(t, n, k)), None),
    (check.look_up, lambda t, n, k: [], "itself"),
    (check.look_up, lambda t, n, k: t[-n:], "never"),
    (check.best_k, lambda a, s: int(np.argmax([sum(a**i for i in range(k + 1)) / t for k, t in enumerate(s)])), None),
    (check.best_k, lambda a, s: len(s) - 1, "most"),
    (check.best_k, lambda a, s: 0, "never"),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda c: f"{c[0].__name__}-{c[2]}")
def test_right_answers_pass_and_each_usual_mistake_is_named(case: Any) -> None:
    judge, answer, mistake = case
    result = judge(answer)
    assert result.ok == (mistake is None), result.message
    if mistake != "never":  # wrong, but not a usual mistake
        assert result.mistake == mistake


def test_every_picture_says_in_words_what_it_shows() -> None:
    assert "2 rows 1.5" in pictures.bill([0.01, 0.015]).alt
    assert pictures.passes([(["a", " b", "c"], 1), (["d"], 0)]).alt == "2 passes; 1 of 2 guesses were right."
    assert "prose 0.70 (predicted 0.80)" in pictures.gains({"prose": (0.8, 0.7), "code": (1.5, 1.6)}).alt
    assert "75% of each is in both" in pictures.overlap([0.5, 0.5], [0.25, 0.75], ["a", "b"]).alt
    assert "wrong 20%" in pictures.shares([0.5, 0.5], {"right": [0.5, 0.5], "wrong": [0.6, 0.4]}, ["a", "b"]).alt
    assert "half: acceptance 20%, a guess costs 0.50 passes" in pictures.plane(1.8, 4, {"half": (0.2, 0.5, 0.4)}).alt


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.bill([1.0]),
        lambda: pictures.bill([1.0, 0.0]),
        lambda: pictures.passes([]),
        lambda: pictures.passes([(["a"], 1)]),
        lambda: pictures.gains({}),
        lambda: pictures.overlap([1.0], [0.5, 0.5], ["a"]),
        lambda: pictures.shares([0.0, 1.0], {}, ["a", "b"]),
        lambda: pictures.plane(0.0, 4, {}),
    ],
)
def test_pictures_refuse_what_they_cannot_show(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError):
        draw()


def test_a_model_with_fewer_layers_has_those_and_is_a_draft_for_the_whole(tmp_path: Path) -> None:
    with tl.load_model(STORIES, backend="numpy") as model:
        n, prompt = model.config.n_layers, model.encode("Once upon a time", add_special=True)
        same = pictures.fewer_layers(STORIES, tmp_path / "same.gguf", range(n))
        with tl.load_model(same, backend="numpy") as copy, copy.create_session() as a, model.create_session() as b:
            np.testing.assert_array_equal(a.eval(prompt), b.eval(prompt))
        path = pictures.fewer_layers(STORIES, tmp_path / "half.gguf", range(n // 2))
        with tl.load_model(path, backend="numpy") as half, model.create_session() as a, model.create_session() as b:
            assert half.config.n_layers == n // 2
            draft = tl.DraftModel(half, k=3)
            assert [t.id for t in a.generate(prompt, max_new_tokens=12, draft=draft)] == [
                t.id for t in b.generate(prompt, max_new_tokens=12)
            ]
            assert a.stats.drafted > 0
        for keep in ([], [0, 0], [n], [-1]):
            with pytest.raises(tl.ParameterError, match="different numbers"):
                pictures.fewer_layers(STORIES, tmp_path / "no.gguf", keep)
