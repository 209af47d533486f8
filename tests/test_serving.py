"""Batches of many sessions, and the scheduler that fills them: the same tokens as each session alone."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama import sampling
from teachllama import scheduler as scheduling
from teachllama.sampling import GREEDY
from tests.test_pool import assert_every_page_is_accounted_for, ids, pool_of, with_fault
from tests.test_pool import model as model  # a fixture: two families on both backends

WARM = tl.SamplingParams(temperature=1.0, top_k=20)


def same_logits(model: tl.Model, got: np.ndarray, expected: np.ndarray) -> None:
    """Compares bit for bit on compiled kernels; NumPy rounds slightly differently for other row counts."""
    if model.backend == "numba":
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def alone(
    model: tl.Model, prompt: list[int], params: tl.SamplingParams = GREEDY, seq_len: int = 400,
    seed: int | None = None, **how: Any,
) -> tuple[list[int], str, str]:  # fmt: skip
    """The result of a separate session: tokens, text, stop reason."""
    with model.create_session(seq_len=seq_len, seed=seed) as session:
        made = list(session.generate(prompt, params, **how))
        tokens = [t.id for t in made]
        return tokens, "".join(t.piece for t in made), session.stats.stop_reason


# ---- a batch of sessions ----


def test_sessions_in_a_batch_get_the_logits_that_each_would_have_alone(model: tl.Model) -> None:
    lengths = (1, 40, 1, 7, 100)
    with pool_of(model, 30) as pool:
        together = [pool.create_session(seq_len=300) for _ in lengths]
        single = [model.create_session(seq_len=300) for _ in lengths]
        for i, (a, b) in enumerate(zip(together, single)):
            for s in (a, b):
                s.eval(ids(20 * i + 1, seed=i))
        for turn in range(3):
            work = [ids(n if turn < 2 else 1, seed=n + turn) for n in lengths]
            got = tl.eval_batch(list(zip(together, work)))
            for i, (session, new) in enumerate(zip(single, work)):
                expected = session.eval(new)
                same_logits(model, got[i], expected)
                same_logits(model, together[i].logits, expected)
                assert together[i].tokens == session.tokens
        every = tl.eval_batch([(together[0], [1, 2, 3]), (together[3], [4])], wanted="all")
        assert [len(rows) for rows in every] == [3, 1]
        same_logits(model, every[0][-1], together[0].logits)


def test_a_batch_that_cannot_be_moves_no_session(model: tl.Model, tmp_path: Path) -> None:
    with pool_of(model, 4) as pool:
        a, b, c = (pool.create_session(seq_len=200) for _ in range(3))
        closed = pool.create_session(seq_len=10)
        closed.close()
        a.eval(ids(60))
        logits, free = a.logits.copy(), pool.n_free
        with tl.load_model(model.path) as other:
            stranger = other.create_session(seq_len=10)
            cases: list[tuple[list[Any], dict[str, Any], type[Exception], str]] = [
                ([], {}, tl.ParameterError, "one or more"),
                ([(a, [1]), (a, [2])], {}, tl.ParameterError, f"session {a.number} is in the batch twice"),
                ([(a, [1]), (stranger, [2])], {}, tl.ParameterError, f"{stranger.number} are of different models"),
                ([(a, [1]), (closed, [2])], {}, tl.ClosedError, f"session {closed.number} was closed"),
                ([(a, [1]), (b, [])], {}, tl.TokenError, "no token ids"),
                ([(a, [1]), (b, [10**6])], {}, tl.TokenError, "outside the vocabulary"),
                ([(b, [1]), (a, [1] * 141)], {}, tl.ContextFullError, f"of session {a.number} do not fit"),
                ([(a, [1] * 100), (b, [1] * 100), (c, [1])], {}, tl.PoolFullError, "Nothing was changed"),
                ([(a, [1])], {"wanted": "first"}, tl.ParameterError, "wanted"),
                ([7], {}, tl.ParameterError, "pairs"),
            ]
            for work, how, error, what in cases:
                with pytest.raises(error, match=what):
                    tl.eval_batch(work, **how)
                assert (a.n_past, b.n_past, c.n_past, pool.n_free) == (60, 0, 0, free)
                np.testing.assert_array_equal(a.logits, logits)
        tl.eval_batch([(a, [1]), (b, [2])])
        assert (a.n_past, b.n_past) == (61, 1)


def test_batches_of_the_same_sessions_in_any_order_do_not_wait_for_each_other_for_ever(model: tl.Model) -> None:
    with pool_of(model, 10) as pool:
        a, b = pool.create_session(seq_len=300), pool.create_session(seq_len=300)

        def work(first: tl.Session, second: tl.Session) -> None:
            for _ in range(20):
                tl.eval_batch([(first, [1]), (second, [2])])

        workers = [threading.Thread(target=work, args=pair, daemon=True) for pair in ((a, b), (b, a))]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join(120)
            assert not thread.is_alive()
        assert (a.n_past, b.n_past) == (40, 40)


# ---- the scheduler ----


def requests_of(scheduler: tl.Scheduler, asked: list[dict[str, Any]]) -> list[tl.Request]:
    return [scheduler.submit(**one) for one in asked]


def assert_as_alone(model: tl.Model, request: tl.Request, asked: dict[str, Any], seq_len: int = 400) -> None:
    how = {k: v for k, v in asked.items() if k not in ("prompt", "params")}
    tokens, text, why = alone(model, asked["prompt"], asked.get("params", GREEDY), seq_len, **how)
    assert (request.text, request.stop_reason) == (text, why)
    if why in ("length", "end of text"):
        assert request.tokens == tokens


def test_every_request_gets_the_tokens_it_would_get_alone(model: tl.Model) -> None:
    asked = [
        {
            "prompt": ids(n, seed=n),
            "params": WARM if n % 2 else GREEDY,
            "seed": n,
            "max_new_tokens": 5 + n % 20,
        }
        for n in (1, 200, 3, 64, 65, 129, 30, 17)
    ]
    with pool_of(model, 30) as pool:
        scheduler = tl.Scheduler(pool, max_tokens_per_step=96, seq_len=400)
        requests = requests_of(scheduler, asked)
        shown: dict[tl.Request, list[tl.Token]] = {r: [] for r in requests}
        while scheduler.requests:
            for request, token in scheduler.step():
                shown[request].append(token)
        for request, one in zip(requests, asked):
            assert_as_alone(model, request, one)
            assert request.state == "finished"
            assert "".join(token.piece for token in shown[request]) == request.text
            assert shown[request] == request.shown
            assert request.usage["n_prompt"] == len(one["prompt"])
            assert request.usage["n_generated"] == len(request.tokens) == len(request.timings.tokens)
            assert 0 < request.timings.ttft_s <= request.timings.finished - request.timings.submitted
        pool.prefixes.clear()
        assert pool.n_free == pool.n_pages


def test_a_stop_string_ends_a_request_as_it_ends_a_session(model: tl.Model) -> None:
    prompt = ids(30, 4)
    _, text, _ = alone(model, prompt, max_new_tokens=30)
    found = next(text[i : i + 2] for i in range(6, len(text)) if "\ufffd" not in text[i : i + 2])
    never = "\x00never\x00"
    with pool_of(model, 10) as pool:
        scheduler = tl.Scheduler(pool, seq_len=400)
        for stop in (found, ["zzzz", found], never, text[-1] + never):
            asked = {"prompt": prompt, "max_new_tokens": 30, "stop": stop}
            request = scheduler.submit(**asked)
            scheduler.run()
            assert_as_alone(model, request, asked)


def test_a_full_context_ends_a_request_as_it_ends_a_session(model: tl.Model) -> None:
    with pool_of(model, 10) as pool:
        scheduler = tl.Scheduler(pool, seq_len=70)
        for n in (60, 69, 70):
            asked = {"prompt": ids(n), "max_new_tokens": 30}
            request = scheduler.submit(**asked)
            scheduler.run()
            assert_as_alone(model, request, asked, seq_len=70)
            assert request.stop_reason == "context full"
        none = scheduler.submit(ids(5), max_new_tokens=0)
        scheduler.run()
        assert (none.tokens, none.stop_reason) == ([], "length")


def test_a_long_prompt_does_not_stall_the_others_and_no_step_exceeds_its_budget(model: tl.Model) -> None:
    with pool_of(model, 30) as pool:
        scheduler = tl.Scheduler(pool, max_tokens_per_step=64, seq_len=900)
        short = scheduler.submit(ids(10), max_new_tokens=40)
        scheduler.step()
        long = scheduler.submit(ids(600, 1), max_new_tokens=3)
        before = len(short.tokens)
        n_steps = 0
        while not long.tokens:
            evaluated = short.n_evaluated + long.n_evaluated
            scheduler.step()
            n_steps += 1
            assert short.n_evaluated + long.n_evaluated - evaluated <= 64
            assert len(short.tokens) == before + n_steps or short.done, "the short one waits for the long one"
        assert n_steps >= 600 // 64
        scheduler.run()
        assert_as_alone(model, long, {"prompt": ids(600, 1), "max_new_tokens": 3}, seq_len=900)


def test_prefixes_that_requests_have_in_common_are_evaluated_once(model: tl.Model) -> None:
    common = ids(192, 9)
    asked = [{"prompt": common + ids(20 + i, i), "max_new_tokens": 4} for i in range(4)]
    evaluated = {}
    for prefixes in (True, False):
        with pool_of(model, 30) as pool:
            scheduler = tl.Scheduler(pool, seq_len=400, prefixes=prefixes)
            requests = []
            for one in asked:
                requests.append(scheduler.submit(**one))
                scheduler.run()
            for request, one in zip(requests, asked):
                assert_as_alone(model, request, one)
            evaluated[prefixes] = sum(r.n_evaluated for r in requests)
            assert [r.n_reused for r in requests] == ([0, 192, 192, 192] if prefixes else [0] * 4)
    assert evaluated[False] - evaluated[True] == 3 * 192


def test_when_pages_run_out_the_youngest_gives_way_and_all_end_as_they_would_alone(model: tl.Model) -> None:
    asked = [{"prompt": ids(50, i), "max_new_tokens": 90} for i in range(6)]
    for prefixes in (False, True):
        with pool_of(model, 5) as pool:  # each needs 3 blocks by its end
            scheduler = tl.Scheduler(pool, seq_len=400, prefixes=prefixes)
            requests = requests_of(scheduler, asked)
            kinds = [event.what for event in scheduler.events()]
            assert "preempted" in kinds
            assert requests[0].n_preempted == 0, "the oldest never gives way"
            for request, one in zip(requests, asked):
                assert request.stop_reason in ("length", "end of text")
                if model.backend == "numba":
                    assert_as_alone(model, request, one)
            pool.prefixes.clear()
            assert pool.n_free == pool.n_pages


def test_a_request_that_gave_way_comes_back_when_it_can_go_on_and_not_before(model: tl.Model) -> None:
    with pool_of(model, 5) as pool:
        scheduler = tl.Scheduler(pool, seq_len=400)
        for i in range(4):
            scheduler.submit(ids(64, i), max_new_tokens=80)
        admitted: dict[int, int] = {}
        for event in scheduler.events():
            if event.what == "admitted":
                admitted[event.request] = scheduler.n_steps
            if event.what == "preempted":
                assert scheduler.n_steps > admitted[event.request], "it was taken in for nothing"


def test_a_request_that_outgrows_the_whole_pool_ends_and_says_so(model: tl.Model) -> None:
    with pool_of(model, 2) as pool:
        scheduler = tl.Scheduler(pool, seq_len=900, prefixes=False)
        request = scheduler.submit(ids(30), max_new_tokens=500)
        after = scheduler.submit(ids(30), max_new_tokens=3)
        scheduler.run()
        assert request.stop_reason in ("pool full", "length" if model.spec.family == "gemma3" else "pool full")
        assert len(request.tokens) >= 98
        assert after.stop_reason == "length"
        with pytest.raises(tl.PoolFullError, match="the whole pool has"):
            scheduler.submit(ids(800))


def test_requests_can_be_cancelled_at_any_time_and_twice(model: tl.Model) -> None:
    with pool_of(model, 10) as pool:
        scheduler = tl.Scheduler(pool, max_tokens_per_step=64, seq_len=400, prefixes=False)
        a, b, c = (scheduler.submit(ids(100, i), max_new_tokens=20) for i in range(3))
        a.cancel()
        scheduler.step()
        scheduler.step()
        b.cancel()
        b.cancel()
        scheduler.run()
        a.cancel()
        c.cancel()
        assert scheduler.step() == []
        assert [r.state for r in (a, b, c)] == ["cancelled", "cancelled", "finished"]
        assert_as_alone(model, c, {"prompt": ids(100, 2), "max_new_tokens": 20})
        assert pool.n_free == pool.n_pages


BAD = [
    ({"prompt": []}, tl.TokenError), ({"prompt": [-1]}, tl.TokenError),
    ({"prompt": [1], "max_new_tokens": -1}, tl.ParameterError),
    ({"prompt": [1], "max_new_tokens": True}, tl.ParameterError), ({"prompt": [1], "seed": -1}, tl.ParameterError),
    ({"prompt": [1], "stop": ""}, tl.ParameterError), ({"prompt": [1], "stop": [1]}, tl.ParameterError),
    ({"prompt": [1], "params": {}}, tl.ParameterError), ({"prompt": [1] * 401}, tl.ContextFullError),
    ({"prompt": [1], "stop": 5}, tl.ParameterError), ({"prompt": [1], "stop": None}, tl.ParameterError),
    ({"prompt": None}, tl.TokenError), ({"prompt": ""}, tl.TokenError), ({"prompt": [2**70]}, tl.TokenError),
    ({"prompt": [1], "seed": "x"}, tl.ParameterError), ({"prompt": [1], "max_new_tokens": None}, tl.ParameterError),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "error"), BAD, ids=lambda x: str(x)[:40])
def test_a_request_that_cannot_be_is_refused_and_the_others_are_unharmed(
    model: tl.Model, asked: dict[str, Any], error: type[Exception]
) -> None:
    with pool_of(model, 10) as pool:
        scheduler = tl.Scheduler(pool, seq_len=400)
        good = scheduler.submit(ids(5), max_new_tokens=3)
        with pytest.raises(error):
            scheduler.submit(**asked)
        scheduler.run()
        assert_as_alone(model, good, {"prompt": ids(5), "max_new_tokens": 3})


def test_limits_out_of_range_are_refused_and_nothing_is_taken_after_close(model: tl.Model) -> None:
    with pool_of(model, 10) as pool:
        for how in ({"max_tokens_per_step": 0}, {"max_running": 0}, {"seq_len": -1}, {"max_tokens_per_step": 1.5}):
            with pytest.raises(tl.ParameterError):
                tl.Scheduler(pool, **how)  # type: ignore[arg-type]
        scheduler = tl.Scheduler(pool, max_tokens_per_step=1, seq_len=400)  # slow, but it works
        request = scheduler.submit(ids(20), max_new_tokens=3)
        scheduler.run()
        assert len(request.tokens) == 3
        waiting = scheduler.submit(ids(5))
        scheduler.close()
        assert (waiting.state, waiting.stop_reason) == ("cancelled", "closed")
        with pytest.raises(tl.ClosedError):
            scheduler.submit(ids(5))
        other = tl.Scheduler(pool)
        other.submit(ids(5))
    with pytest.raises(tl.ClosedError, match="the pool was closed"):
        other.run()


def test_limits_far_above_what_the_pool_holds_cost_nothing_and_others_are_refused_by_name(model: tl.Model) -> None:
    with pool_of(model, 2) as pool:
        for how in ({"seq_len": 10**30}, {"max_running": 2**60}, {"max_tokens_per_step": -(2**40)}):
            with pytest.raises(tl.ParameterError, match=next(iter(how))):
                tl.Scheduler(pool, **how)
        with pytest.raises(tl.ParameterError, match="expected a pool"):
            tl.Scheduler(model)  # type: ignore[arg-type]
        scheduler = tl.Scheduler(pool, max_tokens_per_step=2**31, max_running=2**31, seq_len=10**9)
        request = scheduler.submit(ids(30), max_new_tokens=10**30)
        scheduler.step()
        assert request.session is not None
        assert request.session.seq_len < 1000, "a table for positions that the pool cannot hold"
        scheduler.run()
        assert request.stop_reason in ("pool full", "end of text")


def test_events_that_nobody_reads_are_kept_up_to_a_bound(model: tl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "MOST_EVENTS", 20)
    with pool_of(model, 10) as pool:
        scheduler = tl.Scheduler(pool, seq_len=400)
        request = scheduler.submit(ids(5), max_new_tokens=50)
        scheduler.run()
        events = list(scheduler.events())
        assert len(events) == 20
        assert (events[-1].what, events[-1].request, events[-1].n) == ("finished", request.number, 50)


def test_a_model_that_gives_no_numbers_fails_its_request_alone(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool_of(model, 10) as pool:
        scheduler = tl.Scheduler(pool, seq_len=400)
        good, bad = scheduler.submit(ids(9), max_new_tokens=5), scheduler.submit(ids(8), max_new_tokens=5)
        sample = sampling.sample

        def damaged(logits: np.ndarray, params: Any, seen: list[int], rng: Any) -> int:
            return sample(
                logits * np.float32("nan") if seen[:8] == ids(8) and len(seen) == 8 else logits, params, seen, rng
            )

        monkeypatch.setattr(sampling, "sample", damaged)
        scheduler.run()
        assert bad.state == "failed"
        assert "not finite" in bad.stop_reason
        monkeypatch.undo()
        assert_as_alone(model, good, {"prompt": ids(9), "max_new_tokens": 5})


def test_threads_may_submit_and_cancel_while_another_steps(model: tl.Model) -> None:
    with pool_of(model, 12) as pool:
        scheduler = tl.Scheduler(pool, max_tokens_per_step=64, seq_len=400)
        made: list[tuple[tl.Request, dict[str, Any]]] = []
        stop = threading.Event()

        def client(i: int) -> None:
            for j in range(6):
                asked = {"prompt": ids(20 + 13 * j, 10 * i + j), "max_new_tokens": 6, "seed": j, "params": WARM}
                request = scheduler.submit(**asked)
                if j % 3 == 2:
                    request.cancel()
                made.append((request, asked))

        def serve() -> None:
            while not stop.is_set() or scheduler.requests:
                scheduler.step()

        server = threading.Thread(target=serve, daemon=True)
        clients = [threading.Thread(target=client, args=(i,), daemon=True) for i in range(3)]
        for thread in (server, *clients):
            thread.start()
        for thread in clients:
            thread.join(120)
        stop.set()
        server.join(240)
        assert not server.is_alive()
        assert len({request.number for request, _ in made}) == 18
        for request, asked in made:
            if request.state == "finished" and model.backend == "numba":
                assert_as_alone(model, request, asked)
            assert request.state in ("finished", "cancelled")
        pool.prefixes.clear()
        assert pool.n_free == pool.n_pages


SOAK = max(300, int(os.environ.get("TEACHLLAMA_SOAK", "0")))


@pytest.mark.slow
@pytest.mark.timeout(300 + SOAK)
def test_many_requests_one_after_another_lose_no_page_no_token_and_no_memory(model: tl.Model) -> None:
    """TEACHLLAMA_SOAK sets the number of requests, at least 300; 10,000 take some minutes.

    Requests are cancelled, stopped and forked in a pool that is too small for them, and steps are interrupted anywhere.
    One in 50 is compared with a separate session.
    """
    if model.backend == "numpy":
        pytest.skip("the compiled backend is what serves")
    rng, process, resident = np.random.default_rng(5), psutil.Process(), 0
    common = [ids(150, seed) for seed in (1, 2)]
    waiting: dict[tl.Request, dict[str, Any]] = {}
    forks: list[tl.Session] = []
    seen: Counter[str] = Counter()
    with pool_of(model, 9) as pool:
        scheduler = tl.Scheduler(pool, max_tokens_per_step=96, seq_len=250)
        while seen["submitted"] < SOAK or waiting:
            while seen["submitted"] < SOAK and len(waiting) < 6:
                seed = seen["submitted"] = seen["submitted"] + 1
                prompt = common[rng.integers(2)][: rng.integers(1, 150)] + ids(int(rng.integers(1, 60)), seed)
                asked = {"prompt": prompt, "max_new_tokens": int(rng.integers(0, 30)), "seed": seed}
                asked |= {"params": WARM, "stop": ["e", (), "\x00never"][rng.integers(3)]}
                waiting[scheduler.submit(**asked)] = asked
            if rng.random() < 0.03:
                list(waiting)[rng.integers(len(waiting))].cancel()
            sessions = [r.session for r in scheduler.requests if r.session is not None and r.session.n_past]
            if sessions and rng.random() < 0.03:  # forks outside the scheduler hold pages for a while
                forks.append(sessions[rng.integers(len(sessions))].fork())
                with contextlib.suppress(tl.PoolFullError, tl.ContextFullError):
                    forks[-1].eval(ids(int(rng.integers(1, 100))))
            if forks and (len(forks) > 3 or rng.random() < 0.05):
                forks.pop(0).close()
            del sessions
            fault = int(rng.integers(2000)) if rng.random() < 0.04 else None
            seen["faults"] += not with_fault(fault, scheduler.step)
            seen["steps"] += 1
            assert seen["steps"] < 100 * SOAK + 5000, "some request never ends"
            for request in [r for r in waiting if r.done]:
                asked = waiting.pop(request)
                seen[request.stop_reason] += 1
                seen["preempted"] += request.n_preempted
                if request.number % 50 == 0 and request.stop_reason not in ("cancelled", "pool full"):
                    assert_as_alone(model, request, asked, seq_len=250)
                    seen["compared"] += 1
            if seen["steps"] % 50 == 0:
                assert_every_page_is_accounted_for(pool, [s for s in list(pool._sessions) if not s.closed])
            if not resident and seen["submitted"] > SOAK // 3:
                gc.collect()
                resident = process.memory_info().rss
        for session in forks:
            session.close()
        gc.collect()
        grown = process.memory_info().rss - resident
        print(dict(seen), f"resident memory grew by {grown / 1e6:.2f} MB")
        assert all(seen[kind] for kind in ("compared", "faults", "preempted", "cancelled", "stop string", "length"))
        assert grown < 5_000_000
        pool.prefixes.clear()
        assert pool.n_free == pool.n_pages


asked_for = st.tuples(
    st.integers(1, 150),  # tokens of the prompt
    st.integers(0, 40),  # tokens to generate
    st.booleans(),  # shares its beginning with others
    st.sampled_from(["", "", "", "cancel", "stop"]),
    st.integers(0, 12),  # steps before the request is submitted
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    work=st.lists(asked_for, min_size=1, max_size=8),
    n_blocks=st.integers(4, 12),
    budget=st.sampled_from([1, 33, 64, 96, 256]),
    prefixes=st.booleans(),
    faults=st.lists(st.one_of(st.none(), st.integers(0, 1500)), max_size=8),
)
def test_whatever_comes_and_wherever_a_step_is_interrupted_each_request_ends_as_it_would_alone(
    model: tl.Model, work: list[Any], n_blocks: int, budget: int, prefixes: bool, faults: list[int | None]
) -> None:
    with pool_of(model, n_blocks) as pool:
        scheduler = tl.Scheduler(pool, max_tokens_per_step=budget, seq_len=250, prefixes=prefixes)
        made: list[tuple[tl.Request, dict[str, Any], str]] = []
        todo = sorted(enumerate(work), key=lambda w: w[1][4])
        for n_steps in range(5000):
            while todo and todo[0][1][4] <= n_steps:
                i, (n, most, shared, how, _) = todo.pop(0)
                prompt = (ids(140, 77) + ids(20, i))[:n] if shared else ids(n, i)
                asked = {"prompt": prompt, "max_new_tokens": most, "seed": i, "params": WARM}
                asked["stop"] = "e" if how == "stop" else ()
                made.append((scheduler.submit(**asked), asked, how))
            if not todo and not scheduler.requests:
                break
            for request, _, how in made:
                if how == "cancel" and len(request.tokens) >= 3:
                    request.cancel()
            with_fault(faults.pop() if faults else None, scheduler.step)
            sessions = [c for c in list(pool._sessions) if not c.closed]
            assert_every_page_is_accounted_for(pool, sessions)
            assert len(set(scheduler.requests)) == len(scheduler.requests)
        assert not scheduler.requests, "some request never ends"
        for request, asked, how in made:
            if how == "cancel" and request.state == "cancelled":
                continue
            if request.stop_reason == "pool full":
                assert pool.pages_for(len(request.prompt) + len(request.tokens) + 64) > pool.n_pages
            elif model.backend == "numba" and not request.n_preempted and budget >= 64:
                assert_as_alone(model, request, asked, seq_len=250)
            else:
                assert request.stop_reason in ("length", "stop string", "end of text", "context full")
        pool.prefixes.clear()
        assert pool.n_free == pool.n_pages
