"""Notebook 02: its pictures draw their data; its checks recognise right answers and the usual mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import teachllama as tl
from teachllama.chat import FORMATS, Chat
from teachllama.chat.sandbox import render
from teachllama.check import CheckResult
from teachllama.check import notebook02 as check
from tests.test_chat import tiny_chat_model

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from teachllama.lessons.n02_chat import exercises
from teachllama.show import notebook02 as pictures

NONSENSE = [None, ..., True, "4.5", b"x", [], {}, (1, 2), 1j, object(), len, float("nan"), -1, 0, 10**5000, 1e308,
            np.array([1, 2])]  # fmt: skip


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    with tiny_chat_model(tmp_path_factory.mktemp("m")) as model:
        chat = Chat(model.create_session(), system="the will")
        chat.replay([*chat.history, {"role": "user", "content": "the inn"}, {"role": "assistant", "content": "then"}])
        yield chat


def endless(*_: object) -> Any:
    while True:
        pass


def failing(*_: object) -> Any:
    raise ZeroDivisionError("my own fault")


def is_plain_result(result: Any) -> None:
    assert isinstance(result, CheckResult)
    assert repr(result).startswith("Right. " if result.ok else "Not yet: ")
    assert len(result.message) < 1000
    assert result.mistake is None or not result.ok


# ---- 1. what a turn evaluates ----

TEXT = "the other inn"


def lengths(chat: Chat) -> dict[str, int]:
    question = [{"role": "user", "content": TEXT}]
    whole, held = len(chat.encode([*chat.history, *question])), chat.session.n_past
    return {
        "right": whole - held,
        "everything": whole,
        "only_text": len(chat.session.model.encode(TEXT)),
        "held": held,
        "first_turn": len(chat.encode(question)),
        "characters": len(TEXT),
        "words": len(TEXT.split()),
        "after_it": whole + held,
    }


def test_the_check_of_a_turns_cost_knows_right_and_wrong(chat: Chat) -> None:
    answers = lengths(chat)
    assert len(set(answers.values())) == len(answers)
    assert check.evaluated(answers.pop("right"), chat, TEXT).ok
    for name, answer in answers.items():
        assert name in (check.evaluated(answer, chat, TEXT).mistake or "").split(" or ")
    assert check.evaluated(7777, chat, TEXT).mistake is None
    for nonsense in NONSENSE:
        is_plain_result(check.evaluated(nonsense, chat, TEXT))
        assert not check.evaluated(nonsense, chat, TEXT).ok
    assert check.evaluated(1, chat, "\ud800").mistake == "question"


def test_the_right_cost_is_what_say_evaluates(chat: Chat) -> None:
    right = lengths(chat)["right"]
    history = chat.history
    list(chat.say(TEXT, max_new_tokens=1))
    assert chat.session.stats.n_prompt == right
    chat.replay(history)


# ---- the three functions ----

Check = Callable[[object], CheckResult]
FUNCTIONS: dict[str, tuple[Check, Callable[..., Any]]] = {
    "chatml": (check.chatml, exercises._chatml),
    "reusing": (check.reusing, exercises._reuse),
    "trimming": (check.trimming, exercises._trim),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nonsense_exceptions_and_endless_loops_are_told_apart(name: str) -> None:
    judge, right = FUNCTIONS[name]
    for nonsense in NONSENSE:
        is_plain_result(judge(nonsense))
        assert not judge(nonsense).ok
        result = judge(lambda *_, n=nonsense: n)
        is_plain_result(result)
        assert not result.ok
    assert judge(lambda *_: None).mistake == "unanswered"
    assert judge(lambda *_: 3.5).mistake == "type"
    assert judge(failing).mistake == "exception"
    assert judge(lambda: None).mistake == "exception"
    assert judge(endless).mistake == "endless"
    calls: list[int] = []

    def fails_later(*args: Any) -> Any:
        calls.append(1)
        return right(*args) if len(calls) < 3 else failing()

    assert judge(fails_later).mistake == "exception"


def test_changing_the_arguments_does_not_fool_a_check() -> None:
    def destructive(messages: Any, length: Any, budget: Any) -> Any:
        kept = exercises._trim(messages, length, budget)
        messages.clear()
        return kept

    assert check.trimming(destructive).ok
    assert check.trimming(destructive).ok


def test_what_the_chatml_exercise_asks_for_is_what_the_format_writes() -> None:
    for messages, prompt in exercises.CHATML_SCENES.values():
        variables = {"messages": messages, "add_generation_prompt": prompt}
        assert exercises._chatml(messages, prompt) == render(FORMATS["chatml"], [variables])[0]


# ---- pictures ----

ROWS = [("What is it?\nAnd $why$ " + "so " * 30, 0, 37, 7), ("2", 44, 16, 13), ("3", 73, 15, 0)]
ALTERNATIVES = [tl.Alternative(i, p, 0.5 / 2**i) for i, p in enumerate(["\r\n" * 9, "the", "$x$"])]
PICTURES: dict[str, Callable[[], Any]] = {
    "turns": lambda: pictures.turns(ROWS),
    "one turn": lambda: pictures.turns(ROWS[:1]),
    "waiting": lambda: pictures.waiting([10, 20, 30], [0.1, 0.05, 0.06], [0.1, 0.2, 0.3]),
    "waiting once": lambda: pictures.waiting([10], [0.1], [0.1]),
    "likeliest": lambda: pictures.likeliest({"without": ALTERNATIVES, "with": ALTERNATIVES[:2]}),
    "formats": lambda: pictures.formats([("chatml", 13, 3, "stopped by itself"), ("llama3", 55, 0, "went on")]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_draws_within_its_edges_and_says_in_words_what_it_shows(name: str) -> None:
    fig = PICTURES[name]()
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    box, (width, height) = fig.get_tightbbox(canvas.get_renderer()), fig.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01, box
    assert len(fig.alt) > 40
    png, metadata = fig._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert metadata["alt"] == fig.alt


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    bars = [p.get_width() for p in pictures.turns(ROWS).axes[0].findobj(Rectangle) if abs(p.get_height() - 0.62) < 1e-9]
    assert bars == [n for row in ROWS for n in row[1:]]
    fig = pictures.likeliest({"a": ALTERNATIVES, "b": ALTERNATIVES[:2]})
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()


def test_pictures_refuse_what_cannot_be_drawn() -> None:
    for bad in (
        lambda: pictures.turns([]),
        lambda: pictures.turns([("x", 1, -1, 0)]),
        lambda: pictures.waiting([], [], []),
        lambda: pictures.waiting([1], [1.0, 2.0], [1.0]),
        lambda: pictures.likeliest({}),
        lambda: pictures.likeliest({"x": []}),
        lambda: pictures.formats([]),
        lambda: pictures.formats([("x", 0, 0, "")]),
    ):
        with pytest.raises(tl.ParameterError):
            bad()


def test_the_explorer_shows_the_tokens_of_what_its_controls_say_and_refusals_in_their_own_words() -> None:
    asked: list[tuple[str, str, str]] = []

    def tokens(format: str, system: str, text: str) -> list[tuple[str, bool]]:
        asked.append((format, system, text))
        if format == "strict":
            raise tl.ChatError("no <system> here")
        return [("<|x|>", True), ("\n", False), (text, False)]

    widget = pictures.TemplateExplorer(tokens, ["usual", "strict"], "Be brief.", "<b>")
    assert asked == [("usual", "Be brief.", "<b>")]
    assert ">3</output> tokens; 1 of them" in widget.readout.value
    assert "&lt;|x|&gt;" in widget.readout.value
    assert "<b>" not in widget.readout.value
    widget.text.value, widget.system.value = "other", ""
    assert asked[-1] == ("usual", "", "other")
    assert ">other<" in widget.readout.value
    widget.format.value = "strict"
    assert widget.readout.value == '<div role="alert">no &lt;system&gt; here</div>'
    widget.format.value = "usual"
    assert ">other<" in widget.readout.value
    assert repr(widget) == repr(pictures.TemplateExplorer(tokens, ["usual"], "", ""))
    with pytest.raises(tl.ParameterError):
        pictures.TemplateExplorer(tokens, [], "", "")


def test_small_probabilities_are_not_called_zero() -> None:
    assert [pictures.percent(p) for p in (1.0, 0.152, 0.0005, 0.0004, 0.0)] == [
        "100.0%", "15.2%", "0.1%", "below 0.1%", "below 0.1%"]  # fmt: skip
