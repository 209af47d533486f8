"""Sessions that share a pool: the same logits as with their own memory, and no page is ever lost."""

from __future__ import annotations

import gc
import linecache
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama.kv.stored import PAGE
from tests.tools import tiny_model

PACKAGE = str(Path(tl.__file__).parent)
SIZES = {
    "embedding_length": 64, "feed_forward_length": 96, "context_length": 1000, "attention.key_length": 32,
    "attention.value_length": 32,
}  # fmt: skip


def ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


@pytest.fixture(scope="module", params=["llama numpy", "gemma3 numpy", "llama numba", "gemma3 numba"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    arch, backend = request.param.split()
    if backend == "numba":
        pytest.importorskip("numba")
    sizes = {f"{arch}.{k}": v for k, v in SIZES.items()}
    if arch == "gemma3":
        sizes["gemma3.attention.sliding_window"] = 100
    path = tiny_model(tmp_path_factory.mktemp("m") / "t.gguf", arch, **sizes)
    with tl.load_model(path, weights="f32" if backend == "numpy" else "native", backend=backend) as m:
        yield m


def pool_of(model: tl.Model, n_blocks: int, kv_dtype: Any = "f32") -> tl.Pool:
    """A pool with room for n_blocks * 64 positions."""
    with model.create_pool(nbytes=10**7, kv_dtype=kv_dtype) as other:
        size = other.page_nbytes
    return model.create_pool(nbytes=n_blocks * model.config.n_layers * size + size // 2, kv_dtype=kv_dtype)


def assert_every_page_is_accounted_for(pool: tl.Pool, sessions: list[tl.Session]) -> None:
    """Asserts that held and free pages together make up the pool, and that no free page is held."""
    held: set[int] = set()
    for session in sessions:
        pages = session._cache.held  # type: ignore[attr-defined]
        mine = pages[pages >= 0].tolist()
        assert len(mine) == len(set(mine)), "one page in two places of a session"
        held |= set(mine)
    held |= {int(p) for p in pool.prefixes.pages() if p >= 0}
    assert pool.n_free + len(held) == pool.n_pages
    assert all(0 <= page < pool.n_pages for page in held)
    assert pool.prefixes.statistics.n_pages >= pool.prefixes.statistics.n_idle_pages
    assert pool.n_available == pool.n_free + pool.prefixes.n_idle_pages() <= pool.n_pages


def assert_equals_its_replay(session: tl.Session) -> None:
    with session.model.create_session(seq_len=session.seq_len, swa_full=True) as replay:
        n = session.n_past
        if n:
            replay.eval(session.tokens)
        for layer, window in enumerate(session._cache.windows):
            first = 0 if window is None else session._cache.kept_from
            for mine, right in zip(session._cache.raw(layer, n, first), replay._cache.raw(layer, n, first)):
                np.testing.assert_allclose(mine.view(np.float32), right.view(np.float32), rtol=0, atol=1e-3)


# ---- the same as alone ----


@pytest.mark.parametrize("kv_dtype", ["f32", ("q8_0", "f16")], ids=str)
def test_a_pooled_sessions_logits_are_bit_for_bit_those_of_a_session_of_its_own(model: tl.Model, kv_dtype: Any) -> None:
    with pool_of(model, 20, kv_dtype) as pool:
        others = [pool.create_session(seq_len=500) for _ in range(2)]
        pooled, alone = pool.create_session(seq_len=700), model.create_session(seq_len=700, kv_dtype=kv_dtype)
        tokens, at = ids(600), 0
        for n in (1, 70, 5, 64, 130, 1, 1, 200, 1, 1, 40):
            others[n % 2].eval(ids(20, seed=at))  # sessions allocate in turns, so pages are not adjacent
            np.testing.assert_array_equal(pooled.eval(tokens[at : at + n]), alone.eval(tokens[at : at + n]))
            at += n
        assert pooled.can_rewind_to == alone.can_rewind_to
        for session in (pooled, alone):
            session.rewind(at - 50)
        np.testing.assert_array_equal(pooled.eval(ids(20, 3)), alone.eval(ids(20, 3)))
        copies = [session.fork() for session in (pooled, alone)]
        for a, b in ((pooled, alone), copies, (pooled, alone)):
            new = ids(9, a.n_past)
            np.testing.assert_array_equal(a.eval(new), b.eval(new))
        for layer in range(model.config.n_layers):
            first = pooled._cache.kept_from
            for x, y in zip(pooled._cache.raw(layer, at - 40, first), alone._cache.raw(layer, at - 40, first)):
                np.testing.assert_array_equal(x, y)


def test_looking_at_a_pooled_cache_gives_a_copy_of_what_it_holds(model: tl.Model) -> None:
    with pool_of(model, 6) as pool:
        session, alone = pool.create_session(seq_len=200), model.create_session(seq_len=200)
        for s in (session, alone):
            s.eval(ids(80))
        np.testing.assert_array_equal(session.k_cache, alone.k_cache)
        np.testing.assert_array_equal(session.v_cache, alone.v_cache)
        assert not session.k_cache.flags.writeable
        assert session.kv_nbytes == 2 * model.config.n_layers * pool.page_nbytes


# ---- pages ----


def test_sessions_take_pages_as_they_grow_and_give_them_back(model: tl.Model) -> None:
    layers = model.config.n_layers
    with pool_of(model, 10) as pool:
        session = pool.create_session(seq_len=640)
        assert pool.n_free == pool.n_pages == 10 * layers
        session.eval(ids(64))
        assert pool.n_free == 9 * layers
        session.eval([1])
        assert pool.n_free == 8 * layers
        session.rewind(64)
        assert pool.n_free == 9 * layers
        session.reset()
        assert pool.n_free == 10 * layers
        session.eval(ids(100))
        other = pool.create_session(seq_len=640)
        other.eval(ids(10))
        assert pool.n_free == 7 * layers
        session.close()
        del other
        gc.collect()
        assert pool.n_free == 10 * layers
        assert "0 of" in repr(pool)


def test_a_fork_shares_pages_until_one_of_the_two_writes(model: tl.Model) -> None:
    layers = model.config.n_layers
    with pool_of(model, 10) as pool:
        session = pool.create_session(seq_len=300, seed=1)
        session.eval(ids(100))
        other = session.fork()
        assert pool.n_free == 8 * layers
        expected = session.eval([7])  # copies the second page before writing
        assert pool.n_free == 7 * layers
        np.testing.assert_array_equal(other.eval([7]), expected)  # now the only holder of the original page
        assert pool.n_free == 7 * layers
        session.close()
        assert pool.n_free == 8 * layers
        assert_equals_its_replay(other)


def test_windowed_layers_let_go_of_pages_that_no_later_position_sees(model: tl.Model) -> None:
    sliding = sum(window is not None for window in model.create_pool(nbytes=10**7).windows)
    with pool_of(model, 10) as pool:
        session = pool.create_session(seq_len=640)
        for _ in range(30):
            session.eval(ids(20))
        full = -(-600 // PAGE)
        kept = full - session._cache.kept_from // PAGE
        assert pool.n_pages - pool.n_free == (model.config.n_layers - sliding) * full + sliding * kept
        assert kept <= 5 or not sliding
        assert_equals_its_replay(session)


def test_a_full_pool_is_an_error_that_changes_nothing(model: tl.Model) -> None:
    with pool_of(model, 3) as pool:
        a, b = pool.create_session(seq_len=500, seed=3), pool.create_session(seq_len=500)
        a.eval(ids(100))
        logits, free = a.logits.copy(), pool.n_free
        with pytest.raises(tl.PoolFullError, match=r"pages of .* bytes are needed, .* Nothing was changed"):
            b.eval(ids(65))
        with pytest.raises(tl.PoolFullError):
            a.eval(ids(100))
        assert (a.n_past, b.n_past, pool.n_free) == (100, 0, free)
        np.testing.assert_array_equal(a.logits, logits)
        b.eval(ids(64))
        c = a.fork()
        with pytest.raises(tl.PoolFullError):  # its last page is shared, and no page is free for a copy
            c.eval([1])
        b.close()
        c.eval([1])
        assert_equals_its_replay(c)
        assert_equals_its_replay(a)


@pytest.mark.parametrize(
    ("how", "what"),
    [({"nbytes": 0}, "nbytes is 0"), ({"nbytes": -5}, "nbytes"), ({"nbytes": 1.5}, "nbytes"),
     ({"nbytes": 100}, "pages of"), ({"nbytes": 10**7, "kv_dtype": "q9"}, "kv_dtype"), ({"nbytes": 2**60}, "nbytes")],
)  # fmt: skip
def test_a_pool_that_cannot_be_is_refused(model: tl.Model, how: dict[str, Any], what: str) -> None:
    with pytest.raises(tl.ParameterError, match=what):
        model.create_pool(**how)


def test_closing_a_pool_closes_its_sessions(model: tl.Model) -> None:
    pool = pool_of(model, 3)
    session = pool.create_session(seq_len=100)
    session.eval(ids(5))
    pool.close()
    pool.close()
    assert session.closed
    for use in (lambda: session.eval([1]), lambda: pool.create_session(), lambda: session.k_cache):
        with pytest.raises(tl.ClosedError):
            use()
    assert "closed" in repr(pool)
    other = pool_of(model, 3)
    with pytest.raises(tl.ParameterError, match="not of this pool"):
        other.prefixes.donate(model.create_session(seq_len=10))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_goes_on_with_its_pool_though_a_thread_held_the_lock(model: tl.Model) -> None:
    if model.backend == "numba":
        pytest.skip("forks with compiled kernels are tested in test_fork.py")
    with pool_of(model, 5) as pool:
        session = pool.create_session(seq_len=200)
        session.eval(ids(60))
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with pool.lock:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        held.wait(60)
        pid = os.fork()
        if not pid:
            try:
                signal.alarm(60)
                session.eval(ids(10))  # allocates pages
                os._exit(0 if pool.n_free == 3 * model.config.n_layers else 1)
            finally:
                os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        done.set()
        thread.join(60)
        assert status == 0
        assert session.n_past == 60


# ---- prefixes ----


def test_a_reused_prefix_gives_the_logits_of_evaluating_everything(model: tl.Model) -> None:
    tokens = ids(64 * 5 + 20)
    with pool_of(model, 30) as pool:
        whole, first = pool.create_session(seq_len=500), pool.create_session(seq_len=500)
        expected = whole.eval(tokens)
        first.eval(tokens[:300])
        assert pool.prefixes.match(tokens) == 0
        assert pool.prefixes.donate(whole) == 320
        assert pool.prefixes.donate(first) == 0
        for end, n in ((340, 320), (321, 320), (320, 256), (300, 256), (65, 64), (64, 0), (1, 0)):
            # windowed layers no longer hold early pages: continuing works only near whole.n_past
            assert pool.prefixes.match(tokens[:end]) in ({n} if model.spec.family == "llama" else {n, 0})
        reused = pool.create_session(seq_len=500)
        n = pool.prefixes.attach(reused, tokens)
        assert n == reused.n_past == 320
        assert reused.tokens == tokens[:320]
        logits = reused.eval(tokens[320:])
        if model.backend == "numba":
            np.testing.assert_array_equal(logits, expected)  # the same tiles of 32 tokens
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        assert_equals_its_replay(reused)
        statistics = pool.prefixes.statistics
        assert (statistics.n_lookups, statistics.n_hits, statistics.n_reused) == (1, 1, 320)
        other = list(tokens)
        other[70] += 1
        assert pool.prefixes.match(other) in (64, 0)
        with pytest.raises(tl.ParameterError, match="not empty"):
            pool.prefixes.attach(reused, tokens)


def test_writing_after_a_shared_prefix_leaves_the_prefix_as_it_was(model: tl.Model) -> None:
    tokens = ids(200)
    with pool_of(model, 30) as pool:
        session = pool.create_session(seq_len=300)
        session.eval(tokens)
        pool.prefixes.donate(session)
        session.rewind(150)
        session.eval(ids(100, 9))  # the tree also holds the page of positions 128 to 191
        other = pool.create_session(seq_len=300)
        assert pool.prefixes.attach(other, tokens) == 192
        assert_equals_its_replay(other)
        assert_equals_its_replay(session)


def test_prefixes_are_evicted_by_least_recent_use_when_pages_are_wanted_and_never_while_held(model: tl.Model) -> None:
    layers = model.config.n_layers
    with pool_of(model, 4) as pool:
        for seed in (1, 2, 3):
            with pool.create_session(seq_len=200) as session:
                session.eval(ids(65, seed))
                pool.prefixes.donate(session)
        assert pool.n_free == layers
        held = pool.create_session(seq_len=200)
        assert pool.prefixes.attach(held, ids(65, 1)) == 64
        new = pool.create_session(seq_len=200)
        new.eval(ids(128, 5))
        assert [pool.prefixes.match(ids(65, seed)) for seed in (1, 2, 3)] == [64, 0, 64]
        new.eval([1])
        assert [pool.prefixes.match(ids(65, seed)) for seed in (1, 2, 3)] == [64, 0, 0]
        with pytest.raises(tl.PoolFullError):
            new.eval(ids(64))
        assert pool.prefixes.match(ids(65, 1)) == 64
        assert_equals_its_replay(held)
        assert pool.prefixes.statistics.n_evicted == 128
        pool.prefixes.clear()
        held.close()
        new.close()
        assert pool.n_free == pool.n_pages


# ---- whatever happens ----

step = st.tuples(
    st.sampled_from(["eval", "eval", "eval", "fork", "rewind", "reset", "close", "donate", "attach", "drop"]),
    st.integers(0, 3),  # index of the session
    st.integers(1, 150),  # number of tokens, or the position to rewind to
    st.one_of(st.none(), st.none(), st.integers(0, 120)),  # lines of the package until the fault
)


class Fault(BaseException):
    """Stands for Ctrl-C."""


def with_fault(after: int | None, call: Any) -> bool:
    """Makes a call, with a fault raised after so many lines of the package; True if the call completed."""
    left = [after]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE) or "kernels" in frame.f_code.co_filename:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        # At its block's end Python returns to the `with` line. No signal arrives there; a fault would skip the exit.
        if event == "line" and left[0] is not None and not line.lstrip().startswith("with "):
            left[0] -= 1
            if left[0] < 0:
                left[0] = None
                raise Fault
        return trace

    before = sys.gettrace()
    try:
        if after is not None:
            sys.settrace(trace)
        call()
        return True
    except (Fault, tl.PoolFullError, tl.ContextFullError):
        return False
    except tl.TeachLlamaError as e:
        assert "cannot rewind" in str(e)
        return False
    finally:
        sys.settrace(before)


def test_a_session_whose_close_is_interrupted_anywhere_is_open_or_holds_no_page(model: tl.Model) -> None:
    with pool_of(model, 4) as pool:
        for after in range(100):
            session = pool.create_session(seq_len=200)
            session.eval(ids(70))
            held = pool.n_pages - pool.n_free
            ended = with_fault(after, session.close)
            assert pool.n_free == pool.n_pages - (0 if session.closed else held)
            if ended:
                return
            session.close()
        pytest.fail("closing takes more than 100 lines")


@pytest.mark.slow
@settings(
    max_examples=40 if os.environ.get("TEACHLLAMA_FUZZ") else 8, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(st.lists(step, min_size=3, max_size=25))
def test_whatever_is_done_and_wherever_it_is_interrupted_no_page_is_lost_and_no_number_wrong(
    model: tl.Model, work: list[tuple[str, int, int, int | None]]
) -> None:
    with pool_of(model, 8) as pool:
        sessions: list[tl.Session] = []
        for name, which, n, fault in work:
            if not sessions:
                sessions.append(pool.create_session(seq_len=400))
            session = sessions[which % len(sessions)]
            common = ids(200, seed=n % 2)

            def act(name: str = name, session: tl.Session = session, n: int = n, common: list[int] = common) -> None:
                if name == "eval":  # mostly tokens that others evaluate too
                    session.eval(common[session.n_past : session.n_past + n] or ids(n))
                elif name == "fork":
                    sessions.append(session.fork())
                elif name == "rewind":
                    session.rewind(session.n_past * n // 151)
                elif name == "reset":
                    session.reset()
                elif name == "donate":
                    pool.prefixes.donate(session)
                elif name == "attach":
                    sessions.append(pool.create_session(seq_len=400))
                    pool.prefixes.attach(sessions[-1], common)
                elif name == "close":
                    session.close()

            with_fault(fault, act)
            if session.closed or name == "drop":
                sessions.remove(session)
            del session, act
            gc.collect() if name == "drop" or fault is not None else None
            assert_every_page_is_accounted_for(pool, sessions)
        for session in sessions:
            assert_equals_its_replay(session)
            session.close()
        pool.prefixes.clear()
        gc.collect()
        assert pool.n_free == pool.n_pages
