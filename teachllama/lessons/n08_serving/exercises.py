"""The exercises of lesson 08, serving: pages for a length, a fair step, admission, and reading a time line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import cleandoc
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np

from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson

# ---- 1. pages for a length ----


def _request(n_prompt: int, n_new: int, n_layers: int, page: int) -> Case:
    about = f"{n_prompt} tokens of prompt, {n_new} new, {n_layers} layers, pages of {page}"
    return Case(about, (n_prompt, n_new, n_layers, page))


def _other_requests(rng: np.random.Generator, model: Any) -> list[Case]:
    some = [
        _request(int(p), int(n), int(layers), int(page))
        for p, n, layers, page in zip(*rng.integers(3, 400, (2, 6)), rng.integers(2, 50, 6), rng.integers(3, 90, 6))
    ]
    return [*some, _request(60, 4, int(rng.integers(2, 50)), 21), _request(31, 2, int(rng.integers(2, 50)), 32)]


PAGES = Exercise(
    check="pages",
    names=("pages",),
    points=(1, 1),
    shows="count the pages of a request",
    usual="`rounded_down`; `last_token`: it is never evaluated (or always a page more); `prompt_alone`; `one_layer`; "
    "`rounded_once`: over all layers together; `positions`: not pages; `two_caches`: K and V apart; `apart`: prompt "
    "and answer rounded each for itself",
    mistake=(
        "last_token",
        cleandoc("""
        def pages(n_prompt, n_new, n_layers, page):
            return n_layers * math.ceil((n_prompt + n_new) / page)
    """),
    ),
    right=lambda p, n, layers, page: layers * ceil((p + n - 1) / page),
    cases=tuple(
        _request(*numbers)
        for numbers in (
            (100, 20, 30, 64),
            (60, 5, 30, 64),
            (64, 65, 18, 64),
            (1, 1, 12, 16),
            (500, 12, 30, 64),
            (40, 60, 7, 16),
        )
    ),
    hidden_cases=_other_requests,
    faults=(
        Fault(
            "rounded_down",
            lambda p, n, layers, page: layers * ((p + n - 1) // page),
            "The last page is not counted. A page that is begun is held whole.",
        ),
        Fault(
            "last_token",
            lambda p, n, layers, page: layers * ceil((p + n) / page),
            "Every new token is given a position, and one of them is never evaluated: what would come after it? (Or a "
            "page is added where positions fill their pages exactly.)",
        ),
        Fault(
            "prompt_alone",
            lambda p, n, layers, page: layers * ceil(p / page),
            "That is the prompt. Tokens that are generated are evaluated too, and take positions.",
        ),
        Fault("one_layer", lambda p, n, layers, page: ceil((p + n - 1) / page), "That is one layer's share."),
        Fault(
            "rounded_once",
            lambda p, n, layers, page: ceil(layers * (p + n - 1) / page),
            "It is rounded once, for all layers together. A page belongs to one layer, so each layer is rounded.",
        ),
        Fault(
            "positions",
            lambda p, n, layers, page: layers * (p + n - 1),
            "Those are positions of all layers. How many of them share a page?",
        ),
        Fault(
            "two_caches",
            lambda p, n, layers, page: 2 * layers * ceil((p + n - 1) / page),
            "That is twice as many: a page holds the keys and the values of its positions.",
        ),
        Fault(
            "apart",
            lambda p, n, layers, page: layers * (ceil(p / page) + ceil((n - 1) / page)),
            "Prompt and answer are rounded each for itself. The answer goes on in the page where the prompt ended.",
        ),
    ),
    praise="Rounded up for each layer, and the last token needs no place: nothing is computed after it.",
)

# ---- 2. a fair step ----


def _step(*left: int, budget: int) -> Case:
    return Case(f"tokens left {list(left)}, a budget of {budget}", (list(left), budget))


def _other_steps(rng: np.random.Generator, model: Any) -> list[Case]:
    cases = []
    for n in (3, 4, 5, 6, 7, 8):
        left = np.where(rng.random(n) < 0.4, 1, rng.integers(2, 300, n))
        left[:2] = rng.integers(150, 400), rng.integers(20, 90)  # an old long prompt before a short one
        cases.append(_step(*left.tolist(), budget=int(rng.integers(40, 200))))
    return [*cases, _step(400, 1, 90, 1, 30, budget=int(rng.integers(8, 20))), _step(1, 1, 1, 7, 1, budget=3)]


def _share(left: Sequence[int], budget: int, order: Callable[[int, int], Any], whole: bool = False) -> list[int]:
    """How many tokens each gets if requests are served in the order of `order(index, tokens left)`."""
    given = [0] * len(left)
    for i in sorted(range(len(left)), key=lambda i: order(i, left[i])):
        given[i] = min(left[i], budget)
        if whole and given[i] < left[i]:
            given[i] = 0
        budget -= given[i]
    return given


def _equal(left: Sequence[int], budget: int) -> list[int]:
    return [min(n, budget // max(1, len(left))) for n in left]


UNFAIR = cleandoc("""
    def shares(left, budget):
        given = [0] * len(left)
        for i in sorted(range(len(left)), key=lambda i: left[i]):    # the shortest first
            given[i] = min(left[i], budget)
            budget -= given[i]
        return given
""")

SHARES = Exercise(
    check="shares",
    names=("shares",),
    points=(2, 2),
    shows="say who gets how much of a step, so that nobody starves or stalls",
    usual="`shortest_first`: a long prompt starves; `by_age_alone`: a prompt stalls those that write; `prompts_first`; "
    "`longest_first`, `youngest_first`; `whole_prompts`: none is cut; `equal_shares`; `over_budget`; `one_each`",
    mistake=("shortest_first", UNFAIR),
    right=lambda left, budget: _share(left, budget, lambda i, n: (n > 1, i)),
    cases=(
        _step(1, 1, 1, budget=8),
        _step(300, 40, 1, budget=64),
        _step(90, 1, 50, 1, budget=100),
        _step(20, 30, 1, 40, budget=70),
        _step(1, 500, 1, 20, 1, 30, budget=64),
        _step(60, 1, 200, 1, 10, budget=128),
        _step(1, 1, 1, 9, 1, budget=3),
        _step(500, budget=64),
        _step(40, 2, 1, budget=20),
        _step(10, 20, budget=100),
    ),
    hidden_cases=_other_steps,
    faults=(
        Fault(
            "shortest_first",
            lambda left, budget: _share(left, budget, lambda i, n: n),
            "The shortest prompt goes first. While short ones keep coming, an old long one gets nothing: it starves.",
        ),
        Fault(
            "by_age_alone",
            lambda left, budget: _share(left, budget, lambda i, n: i),
            "Age alone decides. Then an old prompt takes the whole step, and those who are writing wait for it.",
        ),
        Fault(
            "prompts_first",
            lambda left, budget: _share(left, budget, lambda i, n: (n == 1, i)),
            "Prompts go before those that write: each of these waits until the last prompt is read.",
        ),
        Fault(
            "longest_first",
            lambda left, budget: _share(left, budget, lambda i, n: (n > 1, -n)),
            "The longest prompt goes first, whoever came before it.",
        ),
        Fault(
            "youngest_first",
            lambda left, budget: _share(left, budget, lambda i, n: (n > 1, -i)),
            "The youngest prompt goes first. While new ones keep coming, the oldest gets nothing.",
        ),
        Fault(
            "whole_prompts",
            lambda left, budget: _share(left, budget, lambda i, n: (n > 1, i), whole=True),
            "A prompt that does not fit whole gets nothing. One that is longer than the budget would never begin.",
        ),
        Fault("equal_shares", _equal, "All get the same share, so what one does not need is lost to the others."),
        Fault("over_budget", lambda left, budget: list(left), "Everyone gets everything. The budget is not kept."),
        Fault(
            "one_each",
            lambda left, budget: [int(i < budget) for i in range(len(left))],
            "Everyone gets one token, prompts too: the rest of the budget is not used.",
        ),
    ),
    praise="Those that write lose no step to a prompt, and the oldest prompt always moves on.",
)

# ---- 3. admission ----


def _queue(*needs: int, free: int, promised: int = 0, places: int = 9) -> Case:
    about = f"needs {list(needs)}, {free} pages free, {promised} of them promised, {places} places"
    return Case(about, (list(needs), free, promised, places))


def _other_queues(rng: np.random.Generator, model: Any) -> list[Case]:
    cases = []
    for n in (4, 5, 6, 7, 8):
        needs = rng.integers(1, 40, n)
        free = int(needs.sum() * rng.uniform(0.5, 1.2))
        cases.append(_queue(*needs.tolist(), free=free, promised=int(free * rng.uniform(0.1, 0.5)), places=n))
    k = int(rng.integers(3, 20))
    return [
        *cases, _queue(k, k, 4 * k, 1, free=3 * k, promised=k), _queue(k, 2, 2, 2, free=9 * k + 9, places=2),
        _queue(5, 6, 7, 50, free=19 + k, promised=k), _queue(9 * k, 2, 3, free=3 * k + 5, promised=k),
        _queue(k, k, 1, free=k, promised=k), _queue(7, 7, 7, 7, free=99, promised=k, places=3),
    ]  # fmt: skip


def _admitted(
    needs: Sequence[int], free: int, promised: int, places: int, *, overtake: bool = False, strict: bool = False,
    each: bool = False, one_more: bool = False,
) -> int:  # fmt: skip
    left, n = free - promised, 0
    for need in needs:
        if n == places:
            break
        if need > left or (strict and need == left):
            if overtake:
                continue
            return n + one_more
        n, left = n + 1, left - need * (not each)
    return n


ADMISSION = Exercise(
    check="admission",
    names=("admission",),
    points=(2, 1),
    shows="decide who is admitted, by pages and in order",
    usual="`promised_ignored`: pages that running requests will still need are given away; `overtaken`: somebody "
    "smaller jumps the queue; `smallest_first`; `each_alone`: what was just promised is not taken off; "
    "`places_ignored`; `must_leave_some`; `one_too_many`; `all_or_none`",
    mistake=(
        "promised_ignored",
        cleandoc("""
        def admission(needs, free, promised, places):
            n = 0
            for need in needs:
                if n == places or need > free:
                    break
                n, free = n + 1, free - need
            return n
    """),
    ),
    right=_admitted,
    cases=(
        _queue(30, 60, 30, free=200),
        _queue(30, 60, 30, free=100),
        _queue(30, 60, 30, free=120),
        _queue(90, 30, 30, free=60),
        _queue(30, 90, 30, free=100),
        _queue(30, 30, 30, free=120, promised=60),
        _queue(30, 30, 30, free=90, promised=60),
        _queue(30, 30, 30, 30, free=400, promised=30, places=2),
        _queue(30, 30, free=400, places=0),
        _queue(free=100),
        _queue(50, 20, 20, 20, free=65, promised=5),
        _queue(30, 60, 30, free=120, promised=5),
        _queue(30, 10, free=20, promised=20),
    ),
    hidden_cases=_other_queues,
    faults=(
        Fault(
            "promised_ignored",
            lambda needs, free, promised, places: _admitted(needs, free, 0, places),
            "Every free page is given away. Some of them are promised: running requests have been admitted for them "
            "and have not taken them yet.",
        ),
        Fault(
            "overtaken",
            lambda *a: _admitted(*a, overtake=True),
            "One that does not fit is passed over for a smaller one behind it. While small ones keep coming, it waits "
            "for ever.",
        ),
        Fault(
            "smallest_first",
            lambda needs, *rest: _admitted(sorted(needs), *rest),
            "The smallest go first, and not those who came first. A large one may wait for ever.",
        ),
        Fault(
            "each_alone",
            lambda *a: _admitted(*a, each=True),
            "Each is compared with the same number of pages. What the one before it was promised is gone.",
        ),
        Fault(
            "places_ignored",
            lambda needs, free, promised, places: _admitted(needs, free, promised, 10**9),
            "Pages alone decide. There are only so many places, too.",
        ),
        Fault(
            "must_leave_some",
            lambda *a: _admitted(*a, strict=True),
            "One that needs exactly what is left is refused. It fits.",
        ),
        Fault("one_too_many", lambda *a: _admitted(*a, one_more=True), "The first that does not fit is admitted, too."),
        Fault(
            "all_or_none",
            lambda needs, free, promised, places: (
                len(needs) if sum(needs) <= free - promised and len(needs) <= places else 0
            ),
            "It is all of them or none. The first of the queue can begin while the others wait.",
        ),
    ),
    praise="In order, by what is really to be had. Whoever is admitted will find the pages for its prompt.",
)

# ---- 4. read a time line ----

Log = list[tuple[float, str, int]]


def _log(*entries: str) -> Log:
    """A log of entries such as "0.5 token 2"."""
    return [(float(at), what, int(request)) for at, what, request in (entry.split() for entry in entries)]


_DAY = _log(
    "0.0 submitted 1", "0.2 admitted 1", "0.4 prefill 1", "0.4 token 1", "0.5 submitted 2", "0.6 token 1",
    "0.7 admitted 2", "0.9 token 1", "1.6 prefill 2", "1.6 token 1", "2.0 prefill 2", "2.0 token 1", "2.0 token 2",
    "2.2 token 1", "2.2 finished 1", "2.3 token 2", "2.35 submitted 3", "2.4 token 2", "3.1 finished 2",
    "3.5 admitted 3", "3.8 prefill 3", "3.8 token 3", "4.9 finished 3",
)  # fmt: skip
_FULL = _log(
    "0.0 submitted 4", "0.1 submitted 5", "0.2 admitted 4", "0.2 admitted 5", "0.5 prefill 4", "0.5 prefill 5",
    "0.5 token 4", "0.5 token 5", "0.7 token 4", "0.7 token 5", "0.9 preempted 5", "0.9 token 4", "1.0 token 4",
    "1.1 finished 4", "1.2 admitted 5", "1.9 prefill 5", "1.9 token 5", "2.1 token 5", "2.2 finished 5",
)  # fmt: skip


def _other_logs(rng: np.random.Generator, model: Any) -> list[Case]:
    entries: Log = []
    for request in (1, 2, 3):
        at = float(rng.uniform(0, 2))
        entries.append((at, "submitted", request))
        entries.append((at := at + float(rng.uniform(0.1, 1)), "admitted", request))
        for _ in range(2):
            entries.append((at := at + float(rng.uniform(0.1, 1)), "prefill", request))
        for i in range(int(rng.integers(3, 7))):
            entries.append((at, "token", request))
            at += float(rng.uniform(0.05, 0.6))
            if i == 1 and request == 2:
                entries.append((at, "preempted", request))
                entries.append((at := at + 1.2, "admitted", request))
        entries.append((at + float(rng.uniform(1, 3)), "finished", request))
    log = sorted(entries)
    return [Case(f"request {n} of a log", (log, n)) for n in (1, 2, 3)]


def _waits(
    log: Log, request: int, *, since: str = "submitted", until: str = "token", whose: bool = True,
    gap: Callable[[list[float]], float] = max, first: bool = False, last: bool = False, nth: int = 0,
) -> list[float]:  # fmt: skip
    at = {w: [t for t, what, r in log if what == w and (r == request or not whose)]
          for w in ("submitted", "admitted", "prefill", "token", "finished")}  # fmt: skip
    began = next(t for t, what, r in log if what == since and r == request)
    times = [began] * first + at["token"] + at["finished"] * last
    gaps = [b - a for a, b in pairwise(times)]
    return [at[until][nth] - began, gap(gaps) if gaps else 0.0]


def _since_preempted(log: Log, request: int) -> list[float]:
    """`_waits` without the gaps in which the request had no pages."""
    runs: list[list[float]] = [[]]
    for t, what, r in log:
        if r == request and what == "token":
            runs[-1].append(t)
        elif r == request and what == "preempted":
            runs.append([])
    gaps = [b - a for run in runs for a, b in pairwise(run)]
    return [_waits(log, request)[0], max(gaps, default=0.0)]


WAITS = Exercise(
    check="waits",
    names=("waits",),
    points=(2, 2),
    shows="read the two numbers that matter off a time line",
    usual="`from_admission`: the wait in the queue is left out; `until_read`: to the first piece of the prompt; "
    "`until_last`; `everyone`: tokens of other requests counted; `first_counted`: the first wait taken for a gap; "
    "`end_counted`: so is the end; `mean`, `median`, `shortest`, `last_gap`; `preemption_left_out`",
    mistake=(
        "from_admission",
        cleandoc("""
        def waits(log, request):
            began = [t for t, what, r in log if what == "admitted" and r == request][0]
            tokens = [t for t, what, r in log if what == "token" and r == request]
            gaps = [b - a for a, b in zip(tokens, tokens[1:])]
            return [tokens[0] - began, max(gaps, default=0)]
    """),
    ),
    right=_waits,
    cases=tuple(
        Case(f"request {request} of {name} log", (log, request))
        for name, log, requests in (("the first", _DAY, (1, 2, 3)), ("the second", _FULL, (4, 5)))
        for request in requests
    ),
    hidden_cases=_other_logs,
    faults=(
        Fault(
            "from_admission",
            lambda log, request: _waits(log, request, since="admitted"),
            "The clock starts when the request is admitted. The person has been waiting since it was submitted.",
        ),
        Fault(
            "until_read",
            lambda log, request: _waits(log, request, until="prefill"),
            "The first number ends with the first piece of the prompt: nothing can be read on the screen then.",
        ),
        Fault(
            "until_last",
            lambda log, request: _waits(log, request, nth=-1),
            "The first number goes to the last token. How long until the first one?",
        ),
        Fault(
            "everyone",
            lambda log, request: _waits(log, request, whose=False),
            "Tokens of all requests are counted. One person sees only their own.",
        ),
        Fault(
            "first_counted",
            lambda log, request: _waits(log, request, first=True),
            "The wait for the first token is counted as a gap between two tokens.",
        ),
        Fault(
            "end_counted",
            lambda log, request: _waits(log, request, last=True),
            "The time from the last token to the end is counted as a gap. No token follows.",
        ),
        Fault(
            "mean",
            lambda log, request: _waits(log, request, gap=lambda gaps: float(np.mean(gaps))),
            "That is the mean gap. A stall of a second disappears in it; the longest is asked for.",
        ),
        Fault(
            "median",
            lambda log, request: _waits(log, request, gap=lambda gaps: float(np.median(gaps))),
            "That is the median gap. The longest is asked for.",
        ),
        Fault("shortest", lambda log, request: _waits(log, request, gap=min), "That is the shortest gap."),
        Fault(
            "last_gap",
            lambda log, request: _waits(log, request, gap=lambda gaps: gaps[-1]),
            "That is the last gap, and not the longest.",
        ),
        Fault(
            "preemption_left_out",
            _since_preempted,
            "While it had no pages the request sent nothing, and that gap is left out. The person waited through it.",
        ),
    ),
    praise="From the asking to the first token, and the longest silence after it: what a person notices.",
)

LESSON = Lesson(
    "08_serving_many",
    cleandoc("""
        import math

        from teachllama.check import notebook08 as check
        from teachllama.check.core import assert_right
    """),
    (PAGES, SHARES, ADMISSION, WAITS),
)
