"""One session or chat in several threads: calls wait for each other, and results are consistent."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama.chat import Chat
from tests.tools import tiny_model

WARM = tl.SamplingParams(temperature=1.0, top_k=20)
SIZES = {  # dimensions that the compiled kernels also support
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "context_length": 256,
}


@pytest.fixture(scope="module", params=["llama numpy", "gemma3 numpy", "llama numba", "gemma3 numba"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    arch, backend = request.param.split()
    path = tmp_path_factory.mktemp("m") / "t.gguf"
    tiny_model(path, arch, **{f"{arch}.{key}": value for key, value in SIZES.items()})
    with tl.load_model(path, weights="f32" if backend == "numpy" else "native", backend=backend) as m:
        m.create_session(seq_len=8).eval([1])  # compile kernels first, so that no test times out
        yield m


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Switches threads every few microseconds, so that calls overlap at any point."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Runs each call in its own thread, all at once; returns their results or exceptions."""
    results: list[Any] = [None] * len(calls)
    gate = threading.Barrier(len(calls))

    def work(i: int) -> None:
        gate.wait()
        try:
            results[i] = calls[i]()
        except Exception as e:
            results[i] = e

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "threads wait for each other for ever"
    return results


def assert_equals_its_replay(session: tl.Session) -> None:
    """Asserts that keys, values and logits equal those of a session that evaluates the same tokens alone."""
    n = session.n_past
    assert n == len(session.tokens) <= session.seq_len
    if n == 0:
        with pytest.raises(tl.TeachLlamaError, match="no logits yet"):
            session.logits
        return
    with session.model.create_session(seq_len=session.seq_len, swa_full=True) as replay:
        logits = replay.eval(session.tokens)
        for layer, window in enumerate(session._cache.windows):
            held = slice(0 if window is None else session._cache.kept_from, n)
            for mine, right in ((session.k_cache, replay.k_cache), (session.v_cache, replay.v_cache)):
                np.testing.assert_allclose(mine[layer, held], right[layer, held], rtol=0, atol=1e-3)
        if session._logits is not None:
            np.testing.assert_allclose(session.logits, logits, rtol=0, atol=1e-3)
        if n < session.seq_len:
            np.testing.assert_allclose(session.eval([5]), replay.eval([5]), rtol=0, atol=1e-3)


REFUSED = (tl.ContextFullError, tl.ParameterError, tl.TeachLlamaError)  # errors that a thread may get
call = st.one_of(
    st.tuples(st.just("eval"), st.integers(1, 12)),
    st.tuples(st.just("generate"), st.integers(1, 6)),
    st.tuples(st.just("rewind"), st.floats(0, 1)),
    st.tuples(st.just("fork"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["sample", "reset"]), st.none()),
)


@pytest.mark.usefixtures("many_switches")
@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(call, min_size=2, max_size=8), min_size=2, max_size=3))
def test_whatever_threads_do_to_one_session_it_equals_a_replay_of_its_tokens(
    model: tl.Model, work: list[list[tuple[str, Any]]]
) -> None:
    forks: list[tl.Session] = []
    with model.create_session(seq_len=200, seed=1) as session:

        def run(i: int) -> None:
            for n, (name, how) in enumerate(work[i]):
                try:
                    if name == "eval":
                        session.eval(ids(how, 100 * i + n))
                    elif name == "generate":
                        list(session.generate(ids(2, 100 * i + n), WARM, max_new_tokens=how))
                    elif name == "rewind":
                        session.rewind(int(how * session.n_past))
                    elif name == "fork":
                        forks.append(session.fork())
                        forks[-1].eval(ids(how, n))
                    elif name == "sample":
                        session.sample(WARM)
                    else:
                        session.reset()
                except REFUSED:
                    pass

        results = at_once(*(lambda i=i: run(i) for i in range(len(work))))
        assert results == [None] * len(work)
        for one in (session, *forks):
            assert_equals_its_replay(one)
            one.close()


@pytest.mark.usefixtures("many_switches")
def test_three_threads_that_evaluate_one_session_leave_every_token_in_it_once(model: tl.Model) -> None:
    parts = [[ids(5, 10 * i + n) for n in range(10)] for i in range(3)]
    with model.create_session(seq_len=150) as session:
        results = at_once(*(lambda p=p: [session.eval(part).shape for part in p] for p in parts))
        assert results == [[(model.config.vocab_size,)] * 10] * 3
        found = [session.tokens[at : at + 5] for at in range(0, 150, 5)]
        assert sorted(found) == sorted(part for p in parts for part in p)
        for p in parts:  # each thread's parts are in the order of its calls
            assert [part for part in found if part in p] == p
        assert_equals_its_replay(session)


@pytest.mark.usefixtures("many_switches")
def test_threads_that_generate_in_one_session_take_turns(model: tl.Model) -> None:
    with model.create_session(seq_len=200, seed=3) as session:

        def write() -> list[int]:
            return [token.id for token in session.generate(ids(3), WARM, max_new_tokens=20)]

        written = at_once(write, write, write)
        assert all(isinstance(w, list) for w in written), written
        rest = list(session.tokens)
        for token in [t for w in written for t in w] + ids(3) * 3:
            rest.remove(token)  # every yielded token is in the session
        assert rest == []
        assert_equals_its_replay(session)


@pytest.mark.usefixtures("many_switches")
def test_what_eval_returns_is_of_its_own_tokens_though_another_thread_follows_at_once(model: tl.Model) -> None:
    a, b = ids(4, 1), ids(4, 2)
    for _ in range(20):
        with model.create_session(seq_len=8) as session:
            first, second = at_once(lambda s=session: s.eval(a), lambda s=session: s.eval(b))
            mine = {tuple(a): first, tuple(b): second}
            with model.create_session(seq_len=8) as alone:
                for part in (session.tokens[:4], session.tokens[4:]):
                    np.testing.assert_allclose(mine[tuple(part)], alone.eval(part), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("many_switches")
def test_sessions_can_be_listed_while_other_threads_create_them(model: tl.Model) -> None:
    def create() -> None:
        for _ in range(100):
            model.create_session(seq_len=4)

    def look() -> int:
        return sum(len(model.sessions) for _ in range(300))

    results = at_once(create, look, create, look)
    assert not [r for r in results if isinstance(r, Exception)]


# ---- waiting ----


class Held:
    """Makes a session's eval stop inside `model.forward` until `go_on` is set."""

    def __init__(self, model: tl.Model, monkeypatch: pytest.MonkeyPatch):
        self.inside, self.go_on, self.forward = threading.Event(), threading.Event(), model.forward
        monkeypatch.setattr(model, "forward", self._stops)

    def _stops(self, *args: Any, **kwargs: Any) -> Any:
        self.inside.set()
        assert self.go_on.wait(60)
        return self.forward(*args, **kwargs)


def started(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as e:
            result.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, result


CALLS: dict[str, Callable[[tl.Session], Any]] = {
    "eval": lambda s: s.eval([9]),
    "sample": lambda s: s.sample(),
    "generate": lambda s: list(s.generate([9], max_new_tokens=1)),
    "rewind": lambda s: s.rewind(1),
    "reset": lambda s: s.reset(),
    "fork": lambda s: s.fork().n_past,
    "close": lambda s: s.close(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_waits_until_the_first_has_returned(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with model.create_session(seq_len=16) as session:
        session.eval([1, 2])
        held = Held(model, monkeypatch)
        first, logits = started(lambda: session.eval([3, 4]))
        assert held.inside.wait(60)
        second, result = started(lambda: CALLS[name](session))
        second.join(0.05)
        assert second.is_alive()
        assert (session.n_past, session.tokens, session.closed) == (2, [1, 2], False)
        held.go_on.set()
        first.join(60)
        second.join(60)
        assert isinstance(logits[0], np.ndarray)
        assert not isinstance(result[0], Exception)
        if name == "fork":
            assert result[0] == 4
        elif name in ("eval", "generate"):
            assert session.tokens[:5] == [1, 2, 3, 4, 9]


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"close"}))
@pytest.mark.parametrize("closes", ["session", "model"])
def test_a_call_that_waited_while_the_session_or_its_model_was_closed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, closes: str
) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf"), backend="numpy") as model:
        session = model.create_session(seq_len=16)
        session.eval([1, 2])
        with session.lock:
            second, result = started(lambda: CALLS[name](session))
            second.join(0.05)
            assert second.is_alive()
            session.close() if closes == "session" else model.close()
        second.join(60)
        assert isinstance(result[0], tl.ClosedError)


def test_a_model_that_is_closed_in_the_middle_of_an_evaluation_gives_an_error_and_no_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for weights in ("f32", "native"):
        with tl.load_model(tiny_model(tmp_path / "t.gguf"), weights=weights, backend="numpy") as model:
            session = model.create_session(seq_len=16)
            extend, calls = session._cache.extend, []

            def closing(*args: Any, extend: Any = extend, calls: Any = calls, model: tl.Model = model) -> Any:
                calls.append(args)
                if len(calls) == 2:
                    model.close()
                return extend(*args)

            monkeypatch.setattr(session._cache, "extend", closing)
            with pytest.raises(tl.ClosedError, match="closed"):
                session.eval([1, 2, 3])
            assert session.n_past == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot interrupt a thread that waits for a lock")
def test_ctrl_c_ends_the_waiting_and_changes_nothing(model: tl.Model) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    holds, let_go = threading.Event(), threading.Event()

    def hold(session: tl.Session) -> None:
        with session.lock:
            holds.set()
            let_go.wait(60)

    try:
        with model.create_session(seq_len=16) as session:
            session.eval([1, 2])
            for name in sorted(set(CALLS) - {"close"}):
                holder, _ = started(lambda: hold(session))
                assert holds.wait(60)
                timer = threading.Timer(0.05, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
                timer.start()
                with pytest.raises(KeyboardInterrupt):
                    CALLS[name](session)
                assert session.tokens == [1, 2]
                let_go.set()
                holder.join(60)
                holds.clear()
                let_go.clear()
            session.eval([3])
            assert_equals_its_replay(session)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"sample"}))
def test_a_call_from_within_a_call_in_the_same_thread_is_refused_by_name(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with model.create_session(seq_len=16) as session:
        expected = model.create_session(seq_len=16).eval([1, 2, 3])
        forward, found = model.forward, []

        def interrupted(*args: Any, **kwargs: Any) -> Any:  # as if from a signal handler
            with pytest.raises(tl.TeachLlamaError, match=r"in the middle of eval\(\)") as error:
                CALLS[name](session)
            found.append(error)
            return forward(*args, **kwargs)

        session.eval([1])
        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", interrupted)
            logits = session.eval([2, 3])
        assert len(found) == 1
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        assert session.tokens == [1, 2, 3]
        CALLS[name](session)


def test_a_thread_that_holds_the_lock_keeps_the_others_out_for_several_calls(model: tl.Model) -> None:
    with model.create_session(seq_len=200) as session:
        session.eval([1])

        def one_step() -> bool:
            with session.lock:
                n = session.n_past
                token = session.sample()
                session.eval([token])
                return session.tokens[n:] == [token]

        def steps() -> bool:
            return [one_step() for _ in range(20)] == [True] * 20

        assert at_once(steps, steps, steps) == [True] * 3
        with model.create_session(seq_len=200) as alone:
            alone.eval([1])
            assert session.tokens == [1] + [t.id for t in alone.generate([], max_new_tokens=60)]


def test_an_interrupt_while_the_workspace_grows_leaves_a_model_that_still_evaluates(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model.backend != "numba":
        pytest.skip("only compiled kernels have a workspace")
    from teachllama.kernels import compiled

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with model.create_session(seq_len=200) as session:
        session.eval([1])
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "Pages", interrupted)
            patch.setattr(model._compiled._workspace, "nbytes", 1)  # so that it has to grow
            with pytest.raises(KeyboardInterrupt):
                session.eval(ids(100))
        session.eval([2])
        assert_equals_its_replay(session)


# ---- generators, in one thread ----


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the sampled tokens a, b, c, ...: no token waits for the rest of a character."""
    following = itertools.count(ord("a"))
    monkeypatch.setattr("teachllama.sampling.sample", lambda *_: next(following))


@pytest.mark.usefixtures("letters")
def test_two_generators_of_one_session_go_on_from_where_it_is(model: tl.Model) -> None:
    a, b, c = map(ord, "abc")
    with model.create_session(seq_len=64) as session:
        one, two = session.generate([1, 2], max_new_tokens=5), session.generate([3], max_new_tokens=5)
        assert [next(g).id for g in (one, two, one)] == [a, b, c]
        assert session.tokens == [1, 2, 3, a]  # a generator evaluates its token when asked for the next
        assert [len(list(g)) for g in (one, two)] == [3, 4]
        assert_equals_its_replay(session)


@pytest.mark.usefixtures("letters")
def test_who_reads_a_generator_may_use_its_session_in_between(model: tl.Model) -> None:
    with model.create_session(seq_len=64) as session:
        for token in session.generate([1, 2], max_new_tokens=3):
            assert token.piece in "abc"
            session.eval([7])
            with session.fork() as fork:
                assert fork.tokens == session.tokens
        a, b, c = map(ord, "abc")
        assert session.tokens == [1, 2, 7, a, 7, b, 7, c]
        assert_equals_its_replay(session)


def test_a_session_can_evaluate_ids_that_come_from_itself(model: tl.Model) -> None:
    with model.create_session(seq_len=64) as session:
        session.eval(token.id for token in session.generate([1], max_new_tokens=3))
        assert session.tokens[1:4] == session.tokens[4:]
        assert_equals_its_replay(session)


# ---- a chat ----


@pytest.mark.usefixtures("many_switches")
def test_turns_of_one_chat_in_several_threads_are_whole_or_refused_by_name(model: tl.Model) -> None:
    for _ in range(5):
        with model.create_session(seq_len=256, seed=2) as session:
            chat = Chat(session, template="chatml")

            def turn(chat: Chat, text: str) -> str:
                return chat.ask(text, WARM, max_new_tokens=3)

            texts = ["the inner", "on all", "a wall"]
            replies = at_once(*(lambda c=chat, t=t: turn(c, t) for t in texts))
            said = [m["content"] for m in chat.history if m["role"] == "user"]
            assert said
            assert set(said) <= set(texts)
            for text, reply in zip(texts, replies):
                if isinstance(reply, Exception):
                    assert isinstance(reply, tl.ChatError)
                    assert "has gone on" in str(reply)
                elif text in said:
                    assert chat.history[2 * said.index(text) + 1]["content"] == reply
            assert session.tokens == chat.encode()
            assert_equals_its_replay(session)


def test_a_reply_that_was_overtaken_adds_nothing_to_the_turn_that_overtook_it(model: tl.Model) -> None:
    with model.create_session(seq_len=128, seed=1) as session:
        chat = Chat(session, template="chatml")
        stale = chat.say("the", WARM)
        next(stale)
        current = chat.say("on", WARM, max_new_tokens=4)
        next(current)
        held = list(session.tokens)
        with pytest.raises(tl.ChatError, match="has gone on"):
            next(stale)
        assert session.tokens == held
        list(current)
        assert session.tokens == chat.encode()
