"""Sessions: eval, sample, generate, rewind, fork, reset, close, and errors."""

from __future__ import annotations

import itertools
import mmap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama import memory
from teachllama.kv.cache import SLACK, STEP
from tests.tools import tiny_model

WARM = tl.SamplingParams(temperature=1.0, top_k=20)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    with tl.load_model(
        tiny_model(tmp_path_factory.mktemp("m") / "t.gguf", request.param, **{f"{request.param}.context_length": 256}),
        weights="f32",
        backend="numpy",
    ) as m:
        yield m


def ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


def test_eval_advances_and_returns_the_last_logits(model: tl.Model) -> None:
    session = model.create_session(seq_len=32)
    assert (session.n_past, session.seq_len, session.tokens) == (0, 32, [])
    logits = session.eval(ids(5))
    assert logits.shape == (model.config.vocab_size,)
    assert logits.dtype == np.float32
    assert session.logits is logits
    every = model.create_session(seq_len=32).eval(ids(5), all_logits=True)
    assert every.shape == (5, model.config.vocab_size)
    np.testing.assert_allclose(every[-1], logits, atol=1e-5)
    assert (session.n_past, session.tokens) == (5, ids(5))


def test_ids_may_be_a_list_an_array_a_tuple_an_iterator_or_one_integer(model: tl.Model) -> None:
    forms = ([3, 4], (3, 4), np.array([3, 4]), np.array([3, 4], np.uint8), iter([3, 4]), [np.int64(3), 4])
    results = [model.create_session(seq_len=8).eval(form) for form in forms]
    assert all(np.array_equal(r, results[0]) for r in results)
    session = model.create_session(seq_len=8)
    session.eval(3)
    np.testing.assert_allclose(session.eval(np.int32(4)), results[0], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_any_way_of_cutting_a_prompt_gives_the_same_logits(model: tl.Model, sizes: list[int]) -> None:
    whole = model.create_session(seq_len=80)
    parts = model.create_session(seq_len=80)
    tokens = ids(sum(sizes))
    expected = whole.eval(tokens)
    for end, size in zip(itertools.accumulate(sizes), sizes):
        got = parts.eval(tokens[end - size : end])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_a_long_prompt_is_run_in_batches_with_the_same_result(model: tl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.create_session(seq_len=128).eval(ids(100), all_logits=True)
    assert model.max_batch(0) > 100
    monkeypatch.setattr(model, "max_batch", lambda start: 16)
    got = model.create_session(seq_len=128).eval(ids(100), all_logits=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


BAD_IDS = [
    [],
    [-1],
    [10**6],
    [1.5],
    ["a"],
    "text",
    None,
    [True],
    [[1, 2]],
    [2**70],
    np.array([1.0]),
    3.5,
    [None],
    np.zeros((2, 2), int),
]


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_bad_token_ids_are_refused_and_change_nothing(model: tl.Model, bad: object) -> None:
    session = model.create_session(seq_len=32)
    before = session.eval(ids(3)).copy()
    with pytest.raises(tl.TokenError):
        session.eval(bad)  # type: ignore[arg-type]
    assert session.n_past == 3
    assert np.array_equal(session.logits, before)


def test_past_the_context_is_an_error_that_changes_nothing(model: tl.Model) -> None:
    session = model.create_session(seq_len=8)
    session.eval(ids(6))
    before = session.logits.copy()
    with pytest.raises(tl.ContextFullError, match="1 too many"):
        session.eval(ids(3))
    assert session.n_past == 6
    assert np.array_equal(session.logits, before)
    session.eval(ids(2))
    with pytest.raises(tl.ContextFullError):
        session.eval([1])


@pytest.mark.parametrize("seq_len", [0, -1, 1.5, "8", True, 2**60])
def test_a_seq_len_out_of_range_is_refused(model: tl.Model, seq_len: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 2**60 is also above the native context, which warns
        with pytest.raises(tl.ParameterError):
            model.create_session(seq_len=seq_len)  # type: ignore[arg-type]


def test_config_seq_len_is_checked_when_a_session_is_created(model: tl.Model) -> None:
    native = model.config.seq_len
    try:
        model.config.seq_len = 48
        assert model.create_session().seq_len == 48
        model.config.seq_len = 0
        with pytest.raises(tl.ParameterError):
            model.create_session()
    finally:
        model.config.seq_len = native


def test_a_seq_len_above_the_native_context_warns_and_works(model: tl.Model) -> None:
    with pytest.warns(UserWarning, match="256 positions"):
        session = model.create_session(seq_len=300)
    session.eval(ids(5))


def test_bad_kv_dtype_and_seed_are_refused(model: tl.Model) -> None:
    for options in ({"kv_dtype": "q8_1"}, {"kv_dtype": None}, {"seed": -1}, {"seed": 1.5}, {"seed": "x"}):
        with pytest.raises(tl.ParameterError):
            model.create_session(seq_len=8, **options)


@pytest.mark.filterwarnings("ignore:seq_len")
def test_the_formula_equals_the_arrays_to_the_byte(model: tl.Model, tmp_path: Path) -> None:
    unequal = tl.load_model(
        tiny_model(tmp_path / "u.gguf", **{"llama.attention.key_length": 12, "llama.attention.value_length": 6})
    )
    for m, dtype, seq_len in itertools.product((model, unequal), ("f32", "f16"), (1, 7, 100)):
        with m.create_session(seq_len=seq_len, kv_dtype=dtype, swa_full=True) as s:
            assert (
                s.k_cache.nbytes + s.v_cache.nbytes
                == s.kv_nbytes
                == tl.kv_cache_bytes(m.config, seq_len, dtype, swa_full=True)
            )
            assert s.k_cache.shape == (m.config.n_layers, seq_len, m.config.n_kv_heads, m.config.head_dim)
            assert s.v_cache.shape == (m.config.n_layers, seq_len, m.config.n_kv_heads, m.config.value_dim)
        with m.create_session(seq_len=seq_len, kv_dtype=dtype) as s:
            assert s.kv_nbytes == tl.kv_cache_bytes(m.config, seq_len, dtype)


def test_the_cache_holds_what_was_evaluated_and_nothing_after(model: tl.Model) -> None:
    session = model.create_session(seq_len=16)
    session.eval(ids(5))
    assert session.k_cache[:, :5].any(axis=(2, 3)).all()
    assert not session.k_cache[:, 5:].any()
    assert not session.v_cache[:, 5:].any()
    with pytest.raises(ValueError, match="read-only"):
        session.k_cache[0, 0, 0, 0] = 1


def test_an_f16_cache_is_half_the_bytes_and_nearly_the_same_logits(model: tl.Model) -> None:
    full, half = model.create_session(seq_len=40), model.create_session(seq_len=40, kv_dtype="f16")
    assert half.kv_nbytes * 2 == full.kv_nbytes
    np.testing.assert_allclose(half.eval(ids(30)), full.eval(ids(30)), rtol=0, atol=2e-2)
    assert half.k_cache.dtype == np.float16


def test_two_sessions_interleaved_equal_two_sessions_alone(model: tl.Model) -> None:
    def story(session: tl.Session) -> Iterator[int]:
        session.eval(ids(4, seed=session.seed or 0))
        while True:
            token = session.sample(WARM)
            yield token
            session.eval([token])

    alone = [list(itertools.islice(story(model.create_session(seq_len=64, seed=s)), 20)) for s in (1, 2)]
    turns = zip(*(story(model.create_session(seq_len=64, seed=s)) for s in (1, 2)))
    together = list(zip(*itertools.islice(turns, 20)))
    assert [list(t) for t in together] == alone
    assert alone[0] != alone[1]


def test_two_threads_with_a_session_each_work_at_once(model: tl.Model) -> None:
    expected = [model.create_session(seq_len=64).eval(ids(30, seed=i)) for i in range(2)]
    failures: list[str] = []

    def work(i: int) -> None:
        for _ in range(10):
            with model.create_session(seq_len=64) as session:
                session.eval(ids(10, seed=99))
                session.reset()
                if not np.allclose(session.eval(ids(30, seed=i)), expected[i], atol=1e-5):
                    failures.append(f"thread {i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


def test_the_same_seed_gives_the_same_tokens_and_reset_begins_again(model: tl.Model) -> None:
    def run(session: tl.Session) -> list[int]:
        return [t.id for t in session.generate(ids(4), WARM, max_new_tokens=12)]

    a, b, c = (model.create_session(seq_len=64, seed=s) for s in (7, 7, 8))
    first = run(a)
    assert run(b) == first
    assert run(c) != first
    a.reset()
    assert (a.n_past, a.tokens) == (0, [])
    assert not a.k_cache.any()
    assert run(a) == first


def test_rewind_then_eval_gives_the_same_logits(model: tl.Model) -> None:
    session = model.create_session(seq_len=64)
    expected = session.eval(ids(10))
    session.eval(ids(20, seed=1))
    session.rewind(9)
    assert (session.n_past, session.tokens) == (9, ids(10)[:9])
    with pytest.raises(tl.TeachLlamaError, match="eval"):
        session.logits
    np.testing.assert_allclose(session.eval(ids(10)[9:]), expected, rtol=0, atol=1e-4)
    for bad in (-1, 11, 1.5, True, None):
        with pytest.raises(tl.ParameterError):
            session.rewind(bad)  # type: ignore[arg-type]
    session.rewind(session.n_past)
    assert session.logits is not None


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    """A model with Gemma's layers, a window of 100 positions and a context of 1,000."""
    sizes = {"gemma3.context_length": 1000, "gemma3.attention.sliding_window": 100}
    path = tiny_model(tmp_path_factory.mktemp("m") / "w.gguf", "gemma3", **sizes)
    with tl.load_model(path, weights="f32", backend="numpy") as m:
        yield m


def replayed(model: tl.Model, tokens: list[int]) -> np.ndarray:
    with model.create_session(seq_len=1000, swa_full=True) as whole:
        return whole.eval(tokens)


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_every_position_from_can_rewind_to_on_works_and_none_before_but_0(windowed: tl.Model, kv_dtype: str) -> None:
    tokens = ids(700)
    expected = windowed.create_session(seq_len=1000, swa_full=True, kv_dtype=kv_dtype).eval(tokens, all_logits=True)
    for n, call in ((80, 80), (164, 1), (300, 37), (700, 700)):
        session = windowed.create_session(seq_len=1000, kv_dtype=kv_dtype)
        for start in range(0, n, call):
            session.eval(tokens[start : min(n, start + call)])
        first = session.can_rewind_to
        assert first <= max(0, n - SLACK)
        for back_to in {1, 2, first - 1, n // 3} & set(range(1, first)):
            with pytest.raises(tl.TeachLlamaError, match=f"can_rewind_to is {first}: .*swa_full"):
                session.rewind(back_to)
        assert session.tokens == tokens[:n]
        for back_to in sorted({n - 1, n - 10, n - SLACK, (n + first) // 2, first + 1, first}, reverse=True):
            session.rewind(back_to)
            assert session.can_rewind_to == first
            got = session.fork().eval([tokens[back_to]])
            np.testing.assert_allclose(got, expected[back_to], rtol=0, atol=2e-2 if kv_dtype == "f16" else 1e-4)
        session.rewind(0)
        assert (session.n_past, session.can_rewind_to) == (0, 0)
        np.testing.assert_allclose(session.eval(tokens[:n]), expected[n - 1], rtol=0, atol=2e-2)


def test_a_short_way_back_always_works_however_the_tokens_came(windowed: tl.Model) -> None:
    session, tokens = windowed.create_session(seq_len=1000), ids(900)
    for n in range(1, 900, 7):
        session.eval(tokens[session.n_past : n])
        assert session.can_rewind_to <= max(0, n - SLACK)
    session.reset()
    assert session.can_rewind_to == 0
    session.eval(tokens[:700])
    session.rewind(690)  # once refused at 700, when windows kept no more than they needed
    np.testing.assert_allclose(session.eval(tokens[690:700]), replayed(windowed, tokens[:700]), rtol=0, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1), st.booleans()), min_size=1, max_size=6))
def test_after_any_rewinds_and_forks_a_windowed_session_equals_its_replay(
    windowed: tl.Model, steps: list[tuple[int, float, bool]]
) -> None:
    session = windowed.create_session(seq_len=1000)
    for i, (n, where, forks) in enumerate(steps):
        session.eval(ids(min(n, 1000 - session.n_past), seed=i))
        furthest, first = session.n_past, session.can_rewind_to
        session.rewind(0 if where < 0.2 else round(first + where * (furthest - first)))
        session = session.fork() if forks else session
        assert session.can_rewind_to in (0, first)
    got = session.eval([1])
    np.testing.assert_allclose(got, replayed(windowed, session.tokens), rtol=0, atol=1e-4)


def test_a_fork_can_go_back_as_far_as_its_original(windowed: tl.Model) -> None:
    session = windowed.create_session(seq_len=1000)
    session.eval(ids(500))
    fork = session.fork()
    assert fork.can_rewind_to == session.can_rewind_to > 0
    fork.rewind(fork.can_rewind_to)
    expected = replayed(windowed, [*fork.tokens, 9])
    np.testing.assert_allclose(fork.eval([9]), expected, rtol=0, atol=1e-4)
    with pytest.raises(tl.TeachLlamaError, match="can_rewind_to"):
        fork.rewind(fork.can_rewind_to - 1)
    fork.rewind(0)
    np.testing.assert_allclose(fork.eval(ids(50)), replayed(windowed, ids(50)), rtol=0, atol=1e-4)
    assert session.n_past == 500


def test_without_windows_or_with_swa_full_every_position_works(model: tl.Model, windowed: tl.Model) -> None:
    sessions = [windowed.create_session(seq_len=1000, swa_full=True)]
    if model.config.arch == "llama":
        sessions.append(model.create_session(seq_len=256))
    for session in sessions:
        session.eval(ids(250))
        assert session.can_rewind_to == 0
        for n in (249, 120, 3, 1, 0):
            session.rewind(n)
    sessions[0].close()
    with pytest.raises(tl.ClosedError):
        sessions[0].can_rewind_to


def test_a_windowed_session_keeps_its_window_and_little_more_resident(windowed: tl.Model) -> None:
    session = windowed.create_session(seq_len=1000)
    session.eval(ids(900))
    layer = next(i for i, window in enumerate(session._cache.windows) if window is not None)
    kept = memory.resident_of(session.k_cache[layer])
    if kept is None:
        pytest.skip("this system does not tell what is resident")
    a_position = session.k_cache[layer, 0].nbytes
    n_heads = windowed.config.n_kv_heads  # each head's positions may begin and end inside a page
    assert kept <= (100 + SLACK + STEP) * a_position + 2 * n_heads * mmap.PAGESIZE


def test_an_interrupt_in_the_middle_of_a_rewind_or_reset_leaves_a_session_that_equals_its_replay(
    windowed: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for name, call in (
        ("check_rewind", lambda s: s.rewind(0)),
        ("check_rewind", lambda s: s.rewind(590)),
        ("clear", lambda s: s.reset()),
    ):
        session = windowed.create_session(seq_len=1000)
        session.eval(ids(600))
        with monkeypatch.context() as patch:
            patch.setattr(session._cache, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                call(session)
        fork = session.fork()
        for one in (session, fork):
            one.eval([7])
            np.testing.assert_allclose(one.logits, replayed(windowed, one.tokens), rtol=0, atol=1e-4)


def test_a_fork_goes_on_as_the_original_would_and_on_its_own(model: tl.Model) -> None:
    session = model.create_session(seq_len=128, seed=3)
    session.eval(ids(100))
    twin, other = session.fork(), session.fork(seed=4)
    assert (twin.n_past, twin.tokens) == (100, session.tokens)
    a = [t.id for t in session.generate([], WARM, max_new_tokens=15)]
    b = [t.id for t in twin.generate([], WARM, max_new_tokens=15)]
    c = [t.id for t in other.generate([], WARM, max_new_tokens=15)]
    assert a == b != c
    session.close()
    twin.eval([1])


def test_generate_is_eval_and_sample_in_a_loop(model: tl.Model) -> None:
    by_hand, made = model.create_session(seq_len=64, seed=5), model.create_session(seq_len=64, seed=5)
    by_hand.eval(ids(6))
    expected = []
    for _ in range(16):
        token = by_hand.sample(WARM)
        expected.append(token)
        by_hand.eval([token])
    tokens = list(made.generate(ids(6), WARM, max_new_tokens=16))
    assert [t.id for t in tokens] == expected
    assert (made.n_past, made.tokens) == (by_hand.n_past, by_hand.tokens)
    assert np.array_equal(made.logits, by_hand.logits)
    stats = made.stats
    assert (stats.n_prompt, stats.n_generated, stats.stop_reason) == (6, 16, "length")
    assert stats.ttft_s >= stats.prefill_s > 0
    assert stats.prefill_tps > 0
    assert stats.decode_tps > 0


def scripted(session: tl.Session, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the next samples these tokens, then end of text."""
    script = itertools.chain(tokens, itertools.repeat(next(iter(session.model.tokenizer.eog_ids))))
    monkeypatch.setattr("teachllama.sampling.sample", lambda *_: next(script))


def test_pieces_join_to_the_decoded_text_and_never_split_a_character(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.create_session(seq_len=128)
    tokens = model.encode("naïve 😀 日本 wall")
    assert len(tokens) > 12
    scripted(session, tokens, monkeypatch)
    out = list(session.generate([1], max_new_tokens=100))
    assert [t.id for t in out] == tokens
    assert "".join(t.piece for t in out) == "naïve 😀 日本 wall"
    assert all("\ufffd" not in t.piece for t in out)
    assert session.stats.stop_reason == "end of text"


def test_a_character_left_unfinished_shows_as_a_replacement_character(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.create_session(seq_len=128)
    tokens = model.encode("ab😀")[:-1]
    scripted(session, tokens, monkeypatch)
    assert "".join(t.piece for t in session.generate([1])) == "ab\ufffd" == model.decode(tokens)


@settings(max_examples=60, deadline=None)
@given(st.text("ab \n", min_size=1, max_size=12), st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3))
def test_generation_stops_exactly_before_the_first_stop_string(model: tl.Model, text: str, stops: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, model.create_session(seq_len=128) as session:
        tokens = model.encode(text)
        scripted(session, tokens, patch)
        shown = "".join(t.piece for t in session.generate([1], stop=stops))
        # The stop string that completes first ends the text; the cut is at the earliest beginning of a complete one.
        expected = text
        for end in range(1, len(tokens) + 1):
            so_far = model.decode(tokens[:end])
            found = [so_far.find(s) for s in stops if s in so_far]
            if found:
                expected = so_far[: min(found)]
                break
        assert shown == expected
        assert session.stats.stop_reason == (
            "stop string" if expected != text or any(s in text for s in stops) else "end of text"
        )


def test_generate_fills_the_context_and_says_so(model: tl.Model) -> None:
    session = model.create_session(seq_len=10)
    assert len(list(session.generate(ids(6), max_new_tokens=100))) == 5
    assert (session.n_past, session.stats.stop_reason) == (10, "context full")
    with pytest.raises(tl.ContextFullError):
        next(model.create_session(seq_len=4).generate(ids(6)))


def test_generate_refuses_bad_options_at_once(model: tl.Model) -> None:
    session = model.create_session(seq_len=16)
    for options in ({"stop": ""}, {"stop": ["a", ""]}, {"stop": [1]}, {"max_new_tokens": -1}, {"max_new_tokens": 1.5}):
        with pytest.raises(tl.ParameterError):
            session.generate("hi", **options)
    with pytest.raises(tl.TokenError):
        list(session.generate([]))
    assert list(session.generate("hi", max_new_tokens=0)) == []
    assert session.n_past == len(model.encode("hi", add_special=True))


def test_a_reader_who_stops_early_leaves_a_usable_session(model: tl.Model) -> None:
    session = model.create_session(seq_len=64, seed=1)
    for _ in zip(range(3), session.generate(ids(4), WARM, max_new_tokens=30)):
        pass
    n = session.n_past
    session.eval([1])
    assert session.n_past == n + 1


def test_an_interrupt_inside_eval_leaves_the_session_where_it_was(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.create_session(seq_len=256)
    session.eval(ids(90))
    expected = session.fork().eval(ids(60, seed=2))
    before = session.logits.copy()
    calls = itertools.count()
    extend = session._cache.extend

    def interrupted(*args: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return extend(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(session._cache, "extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.eval(ids(60, seed=2))
    assert session.n_past == 90
    assert np.array_equal(session.logits, before)
    np.testing.assert_allclose(session.eval(ids(60, seed=2)), expected, rtol=0, atol=1e-4)


def test_anything_closed_raises_closed_error(tmp_path: Path) -> None:
    model = tl.load_model(tiny_model(tmp_path / "t.gguf"))
    session, orphan = model.create_session(), model.create_session()
    for s in (session, orphan):
        s.eval([1])
    session.close()
    session.close()
    uses = [
        lambda s: s.eval([1]),
        lambda s: s.sample(),
        lambda s: s.logits,
        lambda s: s.k_cache,
        lambda s: s.v_cache,
        lambda s: next(s.generate([1])),
        lambda s: s.rewind(0),
        lambda s: s.fork(),
        lambda s: s.reset(),
    ]
    for use in uses:
        with pytest.raises(tl.ClosedError):
            use(session)
    assert "closed" in repr(session)
    assert model.sessions == [orphan]
    model.close()
    model.close()
    for use in (lambda s: s.eval([1]), lambda s: next(s.generate([1])), lambda s: s.fork()):
        with pytest.raises(tl.ClosedError):
            use(orphan)
    with pytest.raises(tl.ClosedError):
        model.create_session()
    assert model.encode("still here")  # close() does not release the tokenizer


def test_a_view_outliving_close_reads_zeros_not_freed_memory(model: tl.Model) -> None:
    session = model.create_session(seq_len=256, swa_full=True)
    session.eval(ids(100))
    view = session.k_cache
    assert view[0, :100].any()
    session.close()
    assert memory.resident_of(view) in (0, None)
    assert not view[0, 40:60].any()


def test_del_frees_a_session_and_its_model_knows(model: tl.Model) -> None:
    session = model.create_session(seq_len=16)
    assert session in model.sessions
    number = session.number
    del session
    assert number not in [s.number for s in model.sessions]


def test_with_blocks_close(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf")) as model, model.create_session() as session:
        assert not session.closed
    assert session.closed
    assert model.closed
