"""Notebook 08: its checks on right answers and usual mistakes; its recording of a scheduler; its pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from teachllama.check import notebook08 as check
from teachllama.check.core import CheckResult
from teachllama.lessons.n08_serving import watching
from teachllama.lessons.n08_serving.exercises import LESSON
from teachllama.scheduler import Event
from teachllama.show import notebook08 as pictures

STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"


@pytest.fixture(scope="module")
def model() -> Iterator[tl.Model]:
    with tl.load_model(STORIES) as loaded:
        yield loaded


def pool_of(model: tl.Model, blocks: int) -> Any:
    return model.create_pool(nbytes=blocks * tl.kv_cache_bytes(model.config, 64, "f16"), kv_dtype="f16")


@pytest.fixture(scope="module")
def frames(model: tl.Model) -> list[watching.Frame]:
    with pool_of(model, 5) as pool:
        scheduler = tl.Scheduler(pool, max_tokens_per_step=128, prefixes=False)
        for i in range(4):
            scheduler.submit(list(range(100, 150 + 4 * i)), max_new_tokens=24 + i)
        return watching.watch(scheduler)


# ---- the checks ----


def fair(left: Any, budget: int) -> list[int]:
    given = [0] * len(left)
    for writing in (True, False):
        for i, n in enumerate(left):
            if (n == 1) is writing:
                given[i] = min(n, budget)
                budget -= given[i]
    return given


def in_order(needs: Any, free: int, promised: int, places: int) -> int:
    total, n = promised, 0
    while n < min(len(needs), places) and total + needs[n] <= free:
        total, n = total + needs[n], n + 1
    return n


def felt(log: Any, request: int, what: str = "submitted") -> Any:
    began = min(t for t, w, r in log if (w, r) == (what, request))
    tokens = sorted(t for t, w, r in log if (w, r) == ("token", request))
    return np.array([tokens[0] - began, max((b - a for a, b in pairwise(tokens)), default=0)])


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.pages, lambda p, n, layers, page: layers * math.ceil((p + n - 1) / page), None),
    (check.pages, lambda p, n, layers, page: np.array([layers * -((1 - p - n) // page)]), None),
    (check.pages, lambda p, n, layers, page: layers * -(-(p + n) // page), "last_token"),
    (check.pages, lambda p, n, layers, page: layers * ((p + n - 1) // page), "rounded_down"),
    (check.pages, lambda p, n, layers, page: layers * ((p + n - 1) // page + 1), "last_token"),
    (check.pages, lambda p, n, layers, page: -(-(layers * (p + n - 1)) // page), "rounded_once"),
    (check.pages, lambda p, n, layers, page: -(-(p + n - 1) // page), "one_layer"),
    (check.shares, fair, None),
    (check.shares, lambda left, budget: tuple(fair(left, budget)), None),
    (check.shares, lambda left, budget: [min(n, budget) for n in left], "never"),
    (check.shares, lambda left, budget: list(left), "over_budget"),
    (check.admission, in_order, None),
    (check.admission, lambda needs, free, promised, places: in_order(needs, free, 0, places), "promised_ignored"),
    (check.admission, lambda needs, free, promised, places: in_order(needs, free, promised, 99), "places_ignored"),
    (check.admission, lambda needs, *rest: in_order(sorted(needs), *rest), "smallest_first"),
    (check.waits, felt, None),
    (check.waits, lambda log, r: felt(log, r, "admitted"), "from_admission"),
    (check.waits, lambda log, r: felt(log, r)[::-1], "never"),
    (check.waits, lambda log, r: felt(log, r)[0], "type"),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda c: f"{c[0].__name__}-{c[2]}")
def test_right_answers_pass_and_each_usual_mistake_is_named(case: Any) -> None:
    judge, answer, mistake = case
    result = judge(answer)
    assert result.ok == (mistake is None), result.message
    if mistake not in ("never", "type"):  # wrong, but not a usual mistake
        assert result.mistake == mistake


def test_the_pages_of_the_exercise_are_those_that_a_request_holds_at_its_end(model: tl.Model) -> None:
    right: Any = LESSON.exercises[0].right
    for n_prompt, n_new in ((60, 5), (60, 6), (64, 1), (65, 64)):
        with pool_of(model, 8) as pool:
            scheduler = tl.Scheduler(pool, prefixes=False)
            request = scheduler.submit([100] * n_prompt, max_new_tokens=n_new)
            scheduler.run()
            with pool.create_session() as session:  # with the positions that the request had evaluated at its end
                session.eval([100] * request.n_evaluated)
                assert session.kv_nbytes == right(n_prompt, n_new, model.config.n_layers, 64) * pool.page_nbytes


# ---- what is written down ----


def test_frames_show_every_page_with_its_holder_and_every_request_to_its_end(frames: list[watching.Frame]) -> None:
    assert [frame.step for frame in frames] == list(range(len(frames)))
    assert not frames[0].owners.any()
    assert not frames[-1].owners.any()  # all pages are free again
    for frame in frames:
        held = {row.number: int((frame.owners == row.number).sum()) for row in frame.rows}
        for row in frame.rows:
            assert held[row.number] == frame.columns * -(-row.n_past // 64) or row.state != "running"
    assert [row.state for row in frames[-1].rows] == ["finished"] * 4
    assert [row.n_new for row in frames[-1].rows] == [24, 25, 26, 27]
    assert any(event.what == "preempted" for frame in frames for event in frame.events)


def test_bars_have_every_token_every_wait_and_what_was_read_again(frames: list[watching.Frame]) -> None:
    log = [(frame.step, event) for frame in frames for event in frame.events]
    found = watching.bars(log)
    assert [bar.number for bar in found] == [1, 2, 3, 4]
    assert [len(bar.writes) for bar in found] == [24, 25, 26, 27]
    for bar in found:
        assert all(0 <= begin <= until for begin, until in bar.waits)
        assert all(until - begin == 1 for begin, until, *_ in bar.reads)
        assert any(again for *_, again in bar.reads) == bool(bar.gave_way)
        assert len(bar.waits) == 1 + len(bar.gave_way)
        assert bar.ended == bar.writes[-1]
    assert found[3].gave_way
    assert not found[0].gave_way  # the oldest is never preempted


def test_a_bar_in_seconds_begins_where_the_step_before_ended() -> None:
    log = [
        (0.5, Event(0, "submitted", 1)), (1.0, Event(1, "admitted", 1)), (1.0, Event(1, "prefill", 1, 9)),
        (1.0, Event(1, "token", 1, 1)), (1.0, Event(1, "submitted", 2)), (3.0, Event(2, "token", 1, 2)),
        (3.0, Event(2, "finished", 1, 2)), (3.5, Event(3, "cancelled", 2)),
    ]  # fmt: skip
    first, second = watching.bars(log)
    assert first.reads == [(0.5, 1.0, 9, False)]
    assert (first.writes, first.ended, first.waits) == ([1.0, 3.0], 3.0, [(0.5, 0.5)])
    assert (second.waits, second.ended, second.writes) == ([(1.0, 3.5)], 3.5, [])


def test_passes_by_hand_become_the_same_time_line_as_a_scheduler_would_give() -> None:
    first, second = watching.bars(watching.passes_log([[1], [1, 2], [2]]))
    assert (first.writes, second.writes) == ([1, 2], [2, 3])
    assert (first.waits, second.waits) == ([(0, 0)], [(0, 1)])
    assert (first.ended, second.ended) == (2, 3)


def test_pages_of_another_pool_are_refused(model: tl.Model) -> None:
    with pool_of(model, 2) as a, pool_of(model, 2) as b, b.create_session() as session:
        with pytest.raises(tl.ParameterError, match="another pool"):
            watching.page_owners(a, [session])
        session.eval([100])
        assert (watching.page_owners(b, [session]) == 1).sum() == b.pages_for(1)


def test_decode_work_counts_every_matrix_once_and_two_operations_a_weight() -> None:
    operations, nbytes = watching.decode_work(STORIES)
    with tl.load_model(STORIES) as model:
        c = model.config
        layer = 2 * c.dim * c.n_heads * c.head_dim + 2 * c.dim * c.n_kv_heads * c.head_dim + 3 * c.dim * c.hidden_dim
        assert operations == 2 * (c.n_layers * layer + c.dim * c.vocab_size)
    assert operations / 2 / 4 < nbytes < 4 * operations / 2


# ---- pictures ----

LOADS = [
    pictures.Load("one at a time", 80.0, [1.0, 2.0, 30.0], [0.01] * 9, [(0.0, 1), (2.0, 3), (4.0, 0)]),
    pictures.Load("batching", 240.0, [0.1, 0.2, 0.3], [0.02] * 9, [(0.0, 1), (1.0, 0)]),
]


def test_every_picture_says_in_words_what_it_shows(frames: list[watching.Frame]) -> None:
    assert "2: 200, 10" in pictures.batch_sizes([1, 2], [0.008, 0.01]).alt
    held = pictures.reserved_and_written([pictures.Held("session 1", 4_000_000, 2_000_000, 1_000_000)])
    assert "1 sessions: 4 MB reserved, 2 MB in pages, 1 MB written" in held.alt
    squares = pictures.pool_squares({"now": np.array([1, 1, 2, 0, 0, 0])}, 3)
    assert squares.alt == "now: 6 pages: 1 holds 2, 2 holds 1, 3 free"
    assert "after step 0" in pictures.filmstrip(frames, [0, frames[-1].step]).alt
    log = [(frame.step, event) for frame in frames for event in frame.events]
    assert "request 4, first token after" in pictures.time_line({"a run": log}).alt
    assert "gave way 1 times" in pictures.time_line({"a run": log}).alt
    text = pictures.percentiles(LOADS).alt
    assert "one at a time: 80 tokens a second; to the first token 2.0 s (50th percentile) and 30 s (99th)" in text
    assert "batching: at most 1, the last one ended after 1.0 s" in pictures.in_the_system(LOADS).alt
    step = pictures.Step(1, 100.0, 50.0, 1.0)
    assert any(t.get_text() == "1 session" for t in pictures.roofline(9.0, 200.0, [step], ["1 session"]).axes[0].texts)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert [pictures.percentile([3.0, 1.0, 2.0, 4.0], p) for p in (0, 50, 75, 99, 100)] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.batch_sizes([], []),
        lambda: pictures.batch_sizes([1], [0.0]),
        lambda: pictures.batch_sizes([1, 2], [0.1]),
        lambda: pictures.reserved_and_written([]),
        lambda: pictures.pool_squares({}, 3),
        lambda: pictures.pool_squares({"x": np.zeros((2, 2), int)}, 3),
        lambda: pictures.pool_squares({"x": np.zeros(4, int)}, 0),
        lambda: pictures.filmstrip([], [1]),
        lambda: pictures.time_line({}),
        lambda: pictures.time_line({"x": []}),
        lambda: pictures.percentiles([]),
        lambda: pictures.percentile([], 50),
        lambda: pictures.percentile([1.0], 101),
        lambda: pictures.in_the_system([]),
        lambda: pictures.in_the_system([LOADS[0]._replace(present=[])]),
        lambda: pictures.Stepper([]),
        lambda: pictures.roofline(1.0, 1.0, [pictures.Step(1, 1.0, 1.0, 1.0)], ["a", "b"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError):
        draw()


def test_the_stepper_shows_pages_requests_and_what_was_decided(frames: list[watching.Frame]) -> None:
    stepper = pictures.Stepper(frames)
    taken = next(frame for frame in frames if any(e.what == "preempted" for e in frame.events))
    for frame in (frames[0], taken, frames[-1]):
        stepper.at.value = frame.step
        assert f"<b>Step {frame.step}.</b>" in stepper.readout.value
        assert stepper.readout.value.count("aspect-ratio") == len(frame.owners)
    assert "request 4 ends with 27 tokens (length)" in stepper.readout.value
    stepper.at.value = taken.step
    assert "request 4 gives way" in stepper.readout.value
    assert repr(stepper) == repr(pictures.Stepper(frames[:1]))
