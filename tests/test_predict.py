"""Predictions: what counts as a guess, how it is judged, and that nothing is revealed before the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teachllama.errors import ParameterError
from teachllama.lessons import predict as module
from teachllama.lessons.predict import fared, guess, number_from_text, predict, reveal

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0[0-7]_*.ipynb"))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    module._questions.clear()
    yield
    module._questions.clear()


@pytest.mark.parametrize(
    ("text", "value"),
    [("40", 40), ("1.5", 1.5), ("377 M", 377e6), ("3/4", 0.75), ("12 %", 12), ("4,096", 4096), ("2k", 2000), (7, 7)],
)
def test_numbers_are_read_as_people_write_them(text: Any, value: float) -> None:
    assert number_from_text(text) == value


@pytest.mark.parametrize("text", ["", "many", "1/0", "1e999", "4 5", None])
def test_what_is_no_number_is_refused(text: Any) -> None:
    with pytest.raises(ParameterError, match="expected a number"):
        number_from_text(text)


@pytest.mark.parametrize(
    ("mine", "real", "verdict"),
    [(100, 105, "right"), (100, 140, "near"), (100, 400, "4 times too small"), (90, 30, "3 times too large"),
     (0, 5, "far off"), (0, 0, "right"), (-1, 1, "far off")],
)  # fmt: skip
def test_a_guessed_number_is_judged_by_the_factor_it_is_off(mine: float, real: float, verdict: str) -> None:
    predict("n")
    guess("n", mine)
    reveal("n", real)
    assert module._questions["n"].verdict() == verdict


def test_a_guess_is_shown_with_its_answer_and_summed_up_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    predict("size", "smaller", "larger")
    predict("speed", unit="tokens per second")
    predict("third")
    guess("size", "larger")
    guess("speed", "30")
    reveal("size", "larger")
    reveal("speed", 100)
    assert capsys.readouterr().out == (
        "you guessed larger; it is larger: right\n"
        "you guessed 30 tokens per second; it is 100 tokens per second: 3.3 times too small\n"
    )
    fared()
    shown = capsys.readouterr().out
    assert "1 of 2 right or near; 1 without a guess" in shown


def test_who_guesses_nothing_sees_nothing_and_outputs_stay_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    predict("size", "smaller", "larger")
    reveal("size", "larger")
    assert capsys.readouterr().out == ""
    fared()
    assert capsys.readouterr().out == "1 questions were asked, and no guess was recorded.\n"


def test_a_guess_after_the_answer_does_not_count() -> None:
    predict("size", "smaller", "larger")
    reveal("size", "larger")
    guess("size", "larger")
    assert module._questions["size"].guess is None
    predict("size", "smaller", "larger")  # the cell was run again
    guess("size", "larger")
    assert module._questions["size"].guess == "larger"


def test_what_is_no_option_and_what_was_never_asked_is_refused() -> None:
    predict("size", "smaller", "larger")
    for wrong in (lambda: guess("size", "huge"), lambda: reveal("size", "huge"), lambda: reveal("?", 1)):
        with pytest.raises(ParameterError):
            wrong()


def test_the_widget_records_and_has_a_static_twin_that_gives_nothing_away() -> None:
    pytest.importorskip("ipywidgets", reason="the lab extra is not installed")
    question = predict("a < b", "yes", "no")
    bundle = question._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "a &lt; b" in bundle["text/html"]
    entry = question._widget.children[0].children[1]
    entry.value = "yes"
    assert question.guess == "yes"
    number = predict("n", unit="ms")
    number._repr_mimebundle_()
    entry, readout = number._widget.children[0].children[1], number._widget.children[1]
    entry.value = "lots"
    assert number.guess is None
    assert "expected a number" in readout.value
    entry.value = "40"
    assert number.guess == 40


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_prediction_of_a_notebook_is_recorded_revealed_once_and_summed_up(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [("".join(c["source"]), c["cell_type"]) for c in cells]
    asked: list[str] = []
    told: list[str] = []
    for i, (source, kind) in enumerate(sources):
        if kind == "markdown":
            if "**Predict.**" in source:
                assert re.match(r"predict\(", sources[i + 1][0]), (path.name, i, "no predict(...) below it")
            continue
        asked += re.findall(r'(?m)^predict\(\s*"([^"]+)"', source)
        found = re.findall(r'\breveal\(\s*"([^"]+)"', source)
        assert all(name in asked for name in found), (path.name, found)
        told += found
    assert len(asked) == len(set(asked)) >= 4
    assert sorted(asked) == sorted(told)
    assert sum(bool(re.search(r"(?m)^fared\(\)$", source)) for source, _ in sources) == 1
