"""Notebook 09: its checks on right answers and usual mistakes; its pictures; a tree's history; a word cut in two."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")
pytest.importorskip("ipywidgets", reason="the lab extra is not installed")

from teachllama.chat import Chat, Reuse
from teachllama.check import notebook09 as check
from teachllama.check.core import CheckResult
from teachllama.lessons.n09_prefixes.exercises import ORDER
from teachllama.show import notebook09 as pictures

STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"


def start(held: Any, wanted: Any) -> int:
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(held, wanted))))


def leaf(tree: Any) -> Any:
    rows = tree.tolist()
    idle = [(used, i) for i, (_, used, held) in enumerate(rows) if not held and all(r[0] != i for r in rows)]
    return np.array([min(idle)[1]]) if idle else -1.0


def greedy(sizes: Any, versions: Any) -> list[int]:
    """A plausible answer that isn't always right: repeatedly puts the part that saves most next."""
    same, left, order = versions[1:] == versions[:-1], list(range(len(sizes))), list[int]()
    while left:
        going_on = same[:, order].all(axis=1)
        best = max(left, key=lambda p: (going_on & same[:, p]).sum() * sizes[p])
        order.append(best)
        left.remove(best)
    return order


def by_hand(sizes: Any, versions: Any) -> Iterator[int]:
    def shared(order: tuple[int, ...]) -> int:
        total = 0
        for before, now in itertools.pairwise(versions):
            for p in order:
                if before[p] != now[p]:
                    break
                total += int(sizes[p])
        return total

    return iter(max(itertools.permutations(range(len(sizes))), key=shared))


def forks(p: int, new: int, n: int, shape: Any) -> int:
    held = {(0, b) for b in range(-(-p // 64))}
    held |= {(1 + f, (p + t) // 64) for f in range(n) for t in range(new)}
    return int(np.prod(shape)) * len(held)


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.reusable, lambda h, w: np.int64(min(start(h, w), len(w) - 1) // 64 * 64), None),
    (check.reusable, start, "every_token"),
    (check.reusable, lambda h, w: start(h, w) // 64 * 64, "last_token"),
    (check.reusable, lambda h, w: min(start(h, w), len(w) - 1) // 64, "pages"),
    (check.reusable, lambda h, w: min(start(h, w), len(w) - 1), "every_token"),
    (check.reusable, lambda h, w: max(start(h, w) - 1, 0) // 64 * 64, "always_one_less"),
    (check.reusable, lambda h, w: "128", "type"),
    (check.which_leaf, leaf, None),
    (check.which_leaf, lambda t: int(np.argmin(t[:, 1])) if len(t) else -1, "never"),
    (check.which_leaf, lambda t: -1, "never"),
    (check.order_parts, by_hand, None),
    (check.order_parts, greedy, "one_by_one"),
    (check.order_parts, lambda sizes, versions: np.argsort(-sizes), "largest_first"),
    (check.order_parts, lambda sizes, versions: [1, 2], "not_an_order"),
    (check.order_parts, lambda sizes, versions: [0, 0], "not_an_order"),
    (check.order_parts, lambda sizes, versions: 0, "not_an_order"),
    (check.fork_bytes, forks, None),
    (check.fork_bytes, lambda p, new, n, s: int(np.prod(s)) * (1 + n) * -(-(p + new) // 64), "never"),
    (check.fork_bytes, lambda p, new, n, s: forks(p, new, n, s) / 1e6, "never"),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda c: f"{c[0].__name__}-{c[2]}")
def test_right_answers_pass_and_each_usual_mistake_is_named(case: Any) -> None:
    judge, answer, mistake = case
    result = judge(answer)
    assert result.ok == (mistake is None), result.message
    if mistake != "never":  # wrong, but not a usual mistake
        assert mistake is None or mistake in (result.mistake or "").split(" or ")


def test_every_case_of_the_third_exercise_has_one_best_order() -> None:
    for case in (*ORDER.visible(), *ORDER.hidden("ada"), *ORDER.hidden("bob")):
        sizes, versions = case.arguments
        same = versions[1:] == versions[:-1]
        orders = [list(order) for order in itertools.permutations(range(len(sizes)))]
        shared = sorted((np.cumprod(same[:, order], axis=1) * sizes[order]).sum() for order in orders)
        assert shared[-1] > shared[-2]


# ---- pictures ----


@pytest.fixture(scope="module")
def model() -> Iterator[tl.Model]:
    with tl.load_model(STORIES) as model:
        yield model


@pytest.fixture(scope="module")
def history(model: tl.Model) -> pictures.History:
    """A and B share a page; A is evicted when C needs pages."""
    with model.create_pool(nbytes=4 * tl.kv_cache_bytes(model.config, 64)) as pool:
        history = pictures.History(pool.prefixes)
        for owner, tokens in (("A", [1] * 64 + [2] * 64), ("B", [1] * 64 + [3] * 64), ("C", [4] * 128)):
            with pool.create_session() as session:
                n = pool.prefixes.attach(session, tokens)
                session.eval(tokens[n:])
                pool.prefixes.donate(session)
            history.look(f"<{owner}>", owner)
    return history


def test_a_history_says_of_every_page_whether_it_is_new_used_kept_or_gone(history: pictures.History) -> None:
    states = [{history.labels[i]: state for i, state in s.states.items()} for s in history.snapshots]
    assert states[0] == {"A1": "new", "A2": "new"}
    assert states[1] == {"A1": "used", "A2": "kept", "B2": "new"}
    assert states[2] == {"A1": "kept", "A2": "gone", "B2": "kept", "C1": "new", "C2": "new"}
    assert history.names(history.snapshots[2], "gone") == ["A2"]
    places = dict(zip(history.labels, history.places(), strict=True))
    assert places == {"A1": (0, 0), "A2": (1, 0), "B2": (1, 1), "C1": (0, 2), "C2": (1, 2)}


def test_the_slider_shows_what_the_picture_shows(history: pictures.History) -> None:
    assert "3: <C>. new in this step: C1, C2; was there: A1, B2; let go of: A2." in pictures.growth(history).alt
    widget = pictures.TreeSlider(history)
    assert (widget.step.min, widget.step.max) == (1, 3)
    assert ">2</output> pages" in widget.readout.value
    assert "&lt;A&gt;" in widget.readout.value
    widget.step.value = 3
    assert ">4</output> pages" in widget.readout.value
    assert widget.readout.value.count("<rect") == 5
    assert widget.readout.value.count("stroke-dasharray") == 2  # A2 and the line to it
    assert "<C>" not in widget.readout.value
    assert repr(widget) == repr(pictures.TreeSlider(history))
    assert widget.step.tooltip


def reuse(**changes: Any) -> Reuse:
    given: dict[str, Any] = {
        "n_tokens": 100, "n_reused": 21, "first": 21, "held": " <5", "wanted": "6", "message": 0, "reason": "clock",
        "seconds": None, "nbytes": 1000,
    }  # fmt: skip
    return Reuse(**{**given, **changes})


def test_every_picture_says_in_words_what_it_shows() -> None:
    assert "100 tokens in 2 pages: kept 64, agree, evaluated 6, differ 30." in pictures.agreement(70, 100).alt
    assert "kept 0, agree, evaluated 64, differ 0" in pictures.agreement(64, 64).alt
    assert pictures.bars({"a": 3, "b": 0}, "tokens").alt == "tokens: a 3, b 0."
    table = {"before": {"x": [1, 2], "y": [1, 2]}, "after": {"x": [1, 2], "y": [1, 3]}}
    assert "after: 2 sessions hold 4 pages in all, 3 different ones" in pictures.pages(table).alt
    assert "the clock 79 of 100" in pictures.price({"the clock": reuse()}).alt
    assert "a 10% and 50%" in pictures.hit_rates([1, 2], {"a": [0.1, 0.5]}).alt
    assert "a 32" in pictures.usable([0, 64], {"a": [0, 64]}).alt


def test_clues_show_text_from_a_conversation_as_text() -> None:
    clues = pictures.Clues({"the <clock>": reuse(), "nothing": reuse(first=None, message=None, reason="nothing")})
    page = clues._repr_html_()
    assert "the &lt;clock&gt;" in page
    assert "21: ␣&lt;5 → 6" in page
    assert "<5" not in page
    assert "79 of 100, 1 kB" in repr(clues)
    assert "nothing: none" in repr(clues)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.agreement(5, 4),
        lambda: pictures.agreement(0, 0),
        lambda: pictures.bars({}, "x"),
        lambda: pictures.bars({"a": -1}, "x"),
        lambda: pictures.pages({}),
        lambda: pictures.pages({"before": {}}),
        lambda: pictures.price({}),
        lambda: pictures.hit_rates([1, 2], {"a": [0.5]}),
        lambda: pictures.hit_rates([1, 2], {}),
        lambda: pictures.usable([1, 2], {"a": [1]}),
        lambda: pictures.usable([], {}),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError):
        draw()


def test_a_history_without_a_look_is_refused(model: tl.Model) -> None:
    with model.create_pool(nbytes=4_000_000) as pool:
        history = pictures.History(pool.prefixes)
        for draw in (pictures.growth, pictures.TreeSlider):
            with pytest.raises(tl.ParameterError, match="look"):
                draw(history)


def test_a_word_cut_in_two_is_the_same_text_in_other_tokens_and_is_found_as_a_seam(model: tl.Model) -> None:
    messages = [{"role": "user", "content": "We sat in the garden in the afternoon."}]
    with model.create_session() as session:
        chat = Chat(session, template="chatml")
        ids = chat.encode(messages)
        cut = pictures.spelled_otherwise(model, ids)
        assert cut != ids
        assert model.decode(cut) == model.decode(ids)
        session.eval(cut)
        found = chat.explain_reuse(messages)
        assert (found.reason, cut[: found.first]) == ("seam", ids[: found.first])
    with pytest.raises(tl.ParameterError, match="longer text"):
        pictures.spelled_otherwise(model, ids, len(ids))
