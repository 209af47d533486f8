"""The records of notebook 08 while a scheduler runs: the holder of each page, and a bar for each request.

This module draws nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from teachllama.errors import ParameterError
from teachllama.gguf_file import open_gguf
from teachllama.kv.stored import PAGE
from teachllama.pool import Pool
from teachllama.scheduler import Event, Scheduler
from teachllama.session import Session

Log = Sequence[tuple[float, Event]]  # when an event was read, in seconds or in steps, and the event


class RequestRow(NamedTuple):
    """The state of a request."""

    number: int
    state: str
    n_prompt: int
    n_past: int  # positions evaluated
    n_new: int  # tokens generated


@dataclass
class Frame:
    """A scheduler and its pool after one step.

    Attributes:
        step: the step's number; 0 is before the first step.
        owners: the request that holds each page, 0 for none: (n_pages,).
        columns: the number of pages for `PAGE` positions of a session: one row of the picture.
        rows: one per request so far, by number.
        events: the step's events.
    """

    step: int
    owners: np.ndarray
    columns: int
    rows: list[RequestRow]
    events: list[Event] = field(default_factory=list)


def page_owners(pool: Pool, sessions: Sequence[Session]) -> np.ndarray:
    """The holder of each page of a pool, (n_pages,): 0 for none, n for the n-th of `sessions`, counted from 1."""
    owners = np.zeros(pool.n_pages, np.int64)
    for i, session in enumerate(sessions, 1):
        if getattr(session, "pool", None) is not pool:
            raise ParameterError(f"session {session.number} is of another pool; expected sessions of this one")
        held = session._cache.held.ravel()  # type: ignore[attr-defined]  # a cache in pages
        owners[held[held >= 0]] = i
    return owners


def watch(scheduler: Scheduler) -> list[Frame]:
    """Runs a scheduler until every request is done. Returns one frame before the first step and one after each step."""
    frames: list[Frame] = []
    known: dict[int, RequestRow] = {}
    for event in scheduler.events():
        if not frames or frames[-1].step != event.step:  # the first event that is read after a step
            frames.append(_frame(scheduler, event.step, known))
        frames[-1].events.append(event)
        if event.what in ("finished", "cancelled", "failed"):
            known[event.request] = known[event.request]._replace(state=event.what, n_new=event.n)
            frames[-1].rows = list(known.values())
    return frames


def _frame(scheduler: Scheduler, step: int, known: dict[int, RequestRow]) -> Frame:
    pool = scheduler.pool
    owners = np.zeros(pool.n_pages, np.int64)
    for r in sorted(scheduler.requests, key=lambda r: r.number):
        n_past = 0
        if r.session is not None and not r.session.closed:
            owners[page_owners(pool, [r.session]) > 0] = r.number
            n_past = r.session.n_past
        known[r.number] = RequestRow(r.number, r.state, len(r.prompt), n_past, len(r.tokens))
    return Frame(step, owners, pool.pages_for(PAGE), list(known.values()))


@dataclass
class Bar:
    """One request on a time line. Times are those of its log.

    Attributes:
        waits: (from, to) spans in which it waited for pages or a place.
        reads: (from, to, tokens, again) steps in which a piece of its prompt was evaluated; again: after a preemption.
        writes: the time of each of its tokens.
        gave_way: the times at which its pages were taken.
    """

    number: int
    waits: list[tuple[float, float]] = field(default_factory=list)
    reads: list[tuple[float, float, int, bool]] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    gave_way: list[float] = field(default_factory=list)
    submitted: float = 0.0
    ended: float | None = None


def bars(log: Log) -> list[Bar]:
    """A bar for each request of a log, by number.

    Args:
        log: (time, event) pairs in the order of `Scheduler.events`, with the time at which each event was read;
            or (event.step, event) for a time line in steps.
    """
    found: dict[int, Bar] = {}
    since: dict[int, float] = {}  # waiting request -> since when
    step, began, last = 0, 0.0, 0.0
    for at, event in log:
        if event.step != step:  # events are read at a step's end; it began at the previous event
            step, began = event.step, last
        last = at
        bar = found.setdefault(event.request, Bar(event.request, submitted=at))
        if event.what == "submitted":
            since[event.request] = at
        elif event.what == "admitted":
            bar.waits.append((since.pop(event.request), max(began, bar.submitted)))
        elif event.what == "prefill":
            bar.reads.append((began, at, event.n, bool(bar.gave_way)))
        elif event.what == "token":
            bar.writes.append(at)
        elif event.what == "preempted":
            bar.gave_way.append(began)
            since[event.request] = began
        else:  # finished, cancelled, failed
            bar.ended = at
            if event.request in since:
                bar.waits.append((since.pop(event.request), at))
    return [found[number] for number in sorted(found)]


def passes_log(passes: Sequence[Sequence[int]]) -> list[tuple[float, Event]]:
    """The log of a schedule made by hand. All requests arrive at the beginning, and each writes in every pass it is in.

    Args:
        passes: for each pass of the model, the numbers of the requests in it.
    """
    numbers = sorted({n for members in passes for n in members})
    events = [Event(0, "submitted", n) for n in numbers]
    written = dict.fromkeys(numbers, 0)
    for step, members in enumerate(passes, 1):
        for n in members:
            if not written[n]:
                events += [Event(step, "admitted", n), Event(step, "prefill", n)]
            written[n] += 1
            events.append(Event(step, "token", n, written[n]))
            if not any(n in later for later in passes[step:]):
                events.append(Event(step, "finished", n, written[n], "length"))
    return [(event.step, event) for event in events]


def decode_work(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Operations per token, including its logits, and bytes of weights that a step reads, counted as in notebook 05."""
    with open_gguf(path) as file:
        matrices = {name: t for name, t in file.tensors.items() if len(t.shape) == 2}
        table = matrices.pop("token_embd.weight")  # only one row is read; most small models use it as output, too
        matrices.setdefault("output.weight", table)
        return 2 * sum(t.n_elements for t in matrices.values()), sum(t.nbytes for t in matrices.values())
