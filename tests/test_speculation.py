"""Speculation: the same tokens, or the same distribution, for any draft and after any interruption."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import teachllama as tl
from teachllama import speculation, threads
from teachllama.kernels.fields import TILE_FROM
from teachllama.sampling import GREEDY, sample
from tests.test_pool import ids, pool_of
from tests.test_pool import model as model  # a fixture: two families, one with windows, on both backends
from tests.tools import tiny_metadata, tiny_model, tiny_tensors, write_gguf

WARM = tl.SamplingParams(temperature=1.0, top_k=20)
SETTINGS = [
    tl.SamplingParams(temperature=1.0),
    tl.SamplingParams(temperature=0.7, top_k=12),
    tl.SamplingParams(temperature=1.5, top_p=0.8),
    tl.SamplingParams(temperature=0.9, min_p=0.2),
    tl.SamplingParams(temperature=1.1, top_k=50, top_p=0.9, min_p=0.02, repeat_penalty=1.3, presence_penalty=0.3),
    tl.SamplingParams(temperature=1e-3, frequency_penalty=0.5, penalty_last_n=-1),
]
PROMPT = [*ids(9), *ids(9)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = threads.get_num_threads()
    tl.set_num_threads(1)
    yield
    tl.set_num_threads(before)


class Fixed(tl.Draft):
    """Guesses from a script of the coming tokens: the right token, except at every n-th position."""

    def __init__(self, script: Sequence[int], wrong_every: int = 3, k: int = 5):
        self.script, self.wrong_every, self.k, self.closed = script, wrong_every, k, 0

    def guess(self, tokens: Sequence[int], params: Any, most: int, rng: Any) -> tl.Guesses:
        at = len(tokens)
        coming = list(self.script[at : at + min(self.k, most)])
        wrong = [(t + 1) % 200 if (at + i) % self.wrong_every == 0 else t for i, t in enumerate(coming)]
        return tl.Guesses(wrong)

    def close(self) -> None:
        self.closed += 1


def told(session: tl.Session, prompt: list[int], params: Any = GREEDY, **how: Any) -> tuple[list[int], str, str]:
    made = list(session.generate(prompt, params, **how))
    return [t.id for t in made], "".join(t.piece for t in made), session.stats.stop_reason


def state(session: tl.Session) -> tuple[Any, ...]:
    """A session's state: tokens, logits, random numbers, how far back it can be rewound."""
    random = None if session.seed is None else session._rng.bit_generator.state
    return list(session.tokens), session._logits, random, session.can_rewind_to


def assert_same_state(a: tl.Session, b: tl.Session) -> None:
    (tokens, logits, *rest), (tokens_b, logits_b, *rest_b) = state(a), state(b)
    assert (tokens, rest) == (tokens_b, rest_b)
    if a.model.backend == "numba":
        np.testing.assert_array_equal(logits, logits_b)
    np.testing.assert_allclose(logits, logits_b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("draft", ["lookup", "itself", "script"])
def test_greedy_tokens_and_the_session_after_them_are_those_without_guesses(model: tl.Model, draft: str) -> None:
    with model.create_session(seq_len=300) as plain, model.create_session(seq_len=300) as session:
        expected = told(plain, PROMPT, max_new_tokens=60)
        guesser = {
            "lookup": tl.PromptLookup(n=2),
            "itself": tl.DraftModel(model, k=4),
            "script": Fixed(plain.tokens),
        }[draft]
        assert told(session, PROMPT, max_new_tokens=60, draft=guesser) == expected
        assert_same_state(session, plain)
        assert 0 < session.stats.accepted <= session.stats.drafted
        assert (plain.stats.drafted, plain.stats.accepted) == (0, 0)


def test_drawn_tokens_after_guesses_without_chance_are_those_of_the_same_seed(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model.backend != "numba":
        pytest.skip("NumPy's logits differ in their last digits, and so might a draw")
    monkeypatch.setattr(model.tokenizer, "eog_ids", frozenset())
    for params in SETTINGS:
        with model.create_session(seq_len=300, seed=5) as plain, model.create_session(seq_len=300, seed=5) as session:
            expected = told(plain, PROMPT, params, max_new_tokens=40)
            assert told(session, PROMPT, params, max_new_tokens=40, draft=Fixed(plain.tokens)) == expected
            assert session.stats.accepted >= 20
            assert_same_state(session, plain)


def test_between_any_two_tokens_the_session_is_as_without_guesses(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model.backend != "numba":
        pytest.skip("see above")
    monkeypatch.setattr(model.tokenizer, "eog_ids", frozenset())
    how, prompt = {"max_new_tokens": 90}, ids(150)  # the window starts to move during generation
    with model.create_session(seq_len=400, seed=1) as plain, model.create_session(seq_len=400, seed=1) as session:
        told(plain, prompt, WARM, **how)
        script = list(plain.tokens)
        plain.reset()
        draft = Fixed(script, wrong_every=7, k=10)
        both = zip(plain.generate(prompt, WARM, **how), session.generate(prompt, WARM, draft=draft, **how), strict=True)
        for i, (a, b) in enumerate(both):
            assert a == b
            assert_same_state(session, plain)
            if i % 8 == 0:
                with plain.fork() as one, session.fork() as other:  # continues as without speculation
                    assert told(one, [], WARM, max_new_tokens=3) == told(other, [], WARM, max_new_tokens=3)
        assert draft.closed == 1
        assert session.stats.accepted > 60


@pytest.mark.parametrize("where", ["alone", "pool"])
def test_a_reader_who_does_something_else_with_the_session_gets_what_follows_from_that(
    model: tl.Model, where: str
) -> None:
    with pool_of(model, 30) as pool:
        plain, session = (
            pool.create_session(seq_len=300) if where == "pool" else model.create_session(seq_len=300) for _ in range(2)
        )
        script = told(plain, PROMPT, max_new_tokens=40)[0]
        plain.reset()
        made = []
        for s, draft in ((plain, None), (session, Fixed([*PROMPT, *script], wrong_every=1000))):
            tokens = []
            for i, token in enumerate(s.generate(PROMPT, max_new_tokens=40, draft=draft)):
                tokens.append(token.id)
                if i == 4:
                    s.eval([7, 8])
                if i == 9:
                    s.rewind(s.n_past - 3)
                    s.eval([11])
                if i == 14:
                    s.reset()
                    s.eval(PROMPT)
            made.append(tokens)
        assert made[0] == made[1]
        assert_same_state(plain, session)


@pytest.mark.parametrize("what", ["eval", "eval_batch"])
def test_an_evaluation_that_fails_between_two_tokens_leaves_no_guess_to_be_taken_over(
    what: str, model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, inner = ids(60), "forward" if what == "eval" else "run"
    real = getattr(tl.Model, inner)

    def interrupted(*args: Any, **how: Any) -> None:  # by then keys and values are written
        real(*args, **how)
        raise KeyboardInterrupt

    with pool_of(model, 8) as pool, pool.create_session(seq_len=300) as session, pool.create_session() as other:
        with model.create_session(seq_len=300) as plain:
            expected = told(plain, prompt, max_new_tokens=30)[0]
        tokens = []
        draft = Fixed([*prompt, *expected], wrong_every=1000)
        for i, token in enumerate(session.generate(prompt, max_new_tokens=30, draft=draft)):
            tokens.append(token.id)
            if i % 4 == 2:  # guesses are pending; at i = 2 they cross the end of a page
                evaluate = {"eval": lambda: session.eval([7, 8])}.get(
                    what, lambda: tl.eval_batch([(session, [7, 8]), (other, [9])])
                )
                monkeypatch.setattr(tl.Model, inner, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    evaluate()
                monkeypatch.undo()
        assert tokens == expected
        assert session.stats.accepted > 5


def test_a_pooled_session_holds_no_page_for_guesses_that_came_to_nothing(model: tl.Model) -> None:
    with pool_of(model, 20) as pool, pool.create_session(seq_len=300) as plain:
        script = [*PROMPT, *told(plain, PROMPT, max_new_tokens=60)[0]]
        plain.reset()
        with pool.create_session(seq_len=300) as session:
            assert told(session, PROMPT, max_new_tokens=60, draft=Fixed(script, 4, 10))[0] == script[len(PROMPT) :]
            held = session.kv_nbytes
            plain.eval(session.tokens)
            assert held <= plain.kv_nbytes  # windowed layers free pages a few at a time
            free = pool.n_free
        assert pool.n_free > free


def test_a_pool_without_room_for_guesses_is_used_to_the_end_as_without_them(model: tl.Model) -> None:
    made = []
    for draft in (None, tl.DraftModel(model, k=10)):
        with pool_of(model, 2) as pool, pool.create_session(seq_len=400) as session:
            tokens: list[int] = []
            with contextlib.suppress(tl.PoolFullError):
                for token in session.generate(ids(100), max_new_tokens=300, draft=draft):
                    tokens.append(token.id)
            made.append((tokens, session.n_past))
    assert made[0] == made[1]


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_max_new_tokens_is_kept_and_no_guess_goes_beyond_it(model: tl.Model, n: int) -> None:
    with model.create_session(seq_len=100) as plain, model.create_session(seq_len=100) as session:
        told(plain, PROMPT, max_new_tokens=20)
        draft = Fixed(plain.tokens, wrong_every=1000, k=10)
        assert len(told(session, PROMPT, max_new_tokens=n, draft=draft)[0]) == n
        assert session.tokens == plain.tokens[: len(PROMPT) + n]
        assert session.stats.accepted == session.stats.drafted == max(0, n - 1)


def test_a_full_context_ends_as_without_guesses(model: tl.Model) -> None:
    for seq_len in (len(PROMPT), len(PROMPT) + 1, len(PROMPT) + 2, len(PROMPT) + 12):
        with model.create_session(seq_len=seq_len) as plain, model.create_session(seq_len=seq_len) as session:
            expected = told(plain, PROMPT)
            assert expected[2] == "context full"
            assert told(session, PROMPT, draft=tl.DraftModel(model, k=10)) == expected
            assert session.n_past == seq_len


def test_a_stop_string_or_a_token_that_ends_the_text_inside_an_accepted_run_ends_it(
    model: tl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model.create_session(seq_len=100) as plain:
        tokens, text, _ = told(plain, PROMPT, max_new_tokens=20)
        script = list(plain.tokens)
    for stop in {text[i : i + 2] for i in range(0, len(text) - 2, 3)} - {""}:
        with model.create_session(seq_len=100) as plain, model.create_session(seq_len=100) as session:
            expected = told(plain, PROMPT, max_new_tokens=20, stop=stop)
            assert told(session, PROMPT, max_new_tokens=20, stop=stop, draft=Fixed(script, 1000, 10)) == expected
            assert expected[2] == "stop string"
            assert_same_state(session, plain)
    for end in {tokens[3], tokens[8], tokens[-1]}:
        monkeypatch.setattr(model.tokenizer, "eog_ids", {end})
        with model.create_session(seq_len=100) as plain, model.create_session(seq_len=100) as session:
            expected = told(plain, PROMPT, max_new_tokens=20)
            assert told(session, PROMPT, max_new_tokens=20, draft=Fixed(script, 1000, 10)) == expected
            assert expected[2] == "end of text"
            assert_same_state(session, plain)


def test_a_reader_who_stops_inside_an_accepted_run_leaves_the_session_as_without_guesses(model: tl.Model) -> None:
    with model.create_session(seq_len=100) as plain:
        told(plain, PROMPT, max_new_tokens=20)
        script = list(plain.tokens)
    for n in range(1, 8):
        draft = Fixed(script, 1000, 10)
        with model.create_session(seq_len=100) as plain, model.create_session(seq_len=100) as session:
            for s, d in ((plain, None), (session, draft)):
                reply = s.generate(PROMPT, max_new_tokens=20, draft=d)
                for _ in range(n):
                    next(reply)
                reply.close()  # type: ignore[attr-defined]
            assert_same_state(session, plain)
            assert draft.closed == 1
            assert told(session, [], max_new_tokens=3) == told(plain, [], max_new_tokens=3)


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_an_interrupt_leaves_the_session_and_frees_the_draft(
    model: tl.Model, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model.create_session(seq_len=100) as session:
        forward, calls = model.forward, iter(range(100))

        def interrupted(*args: Any, **how: Any) -> np.ndarray:
            if next(calls) == at:
                raise KeyboardInterrupt
            return forward(*args, **how)

        monkeypatch.setattr(model, "forward", interrupted)
        before = len(model.sessions)
        tokens: list[int] = []
        with contextlib.suppress(KeyboardInterrupt):
            for token in session.generate(PROMPT, max_new_tokens=20, draft=tl.DraftModel(model, k=3)):
                tokens.append(token.id)
        monkeypatch.undo()
        assert len(tokens) < 20
        assert len(model.sessions) == before
        assert session.tokens == [*PROMPT, *tokens[:-1]]
        with model.create_session(seq_len=100) as replay:
            replay.eval(session.tokens)
            np.testing.assert_allclose(session.logits, replay.logits, rtol=0, atol=1e-4)
        session.eval([3])


def test_the_draft_models_session_is_closed_however_a_generator_ends(model: tl.Model) -> None:
    with model.create_session(seq_len=60) as session:
        count = lambda: len(model.sessions)
        before, draft = count(), tl.DraftModel(model)
        list(session.generate(PROMPT, max_new_tokens=5, draft=draft))
        assert count() == before
        reply = session.generate([], max_new_tokens=5, draft=draft)
        assert count() == before  # not started yet
        next(reply)
        next(reply)
        assert count() == before + 1
        del reply
        gc.collect()
        assert count() == before
        reply = session.generate([], max_new_tokens=5, draft=draft)
        next(reply)
        session.close()
        with pytest.raises(tl.ClosedError):
            list(reply)
        assert count() == before - 1
        assert draft.session is None


def test_a_draft_that_can_go_no_further_leaves_the_rest_to_the_model(model: tl.Model) -> None:
    with model.create_session(seq_len=100) as plain, model.create_session(seq_len=100) as session:
        expected = told(plain, PROMPT, max_new_tokens=40)
        native, model.config.seq_len = model.config.seq_len, len(PROMPT) + 10
        try:
            assert told(session, PROMPT, max_new_tokens=40, draft=tl.DraftModel(model)) == expected
        finally:
            model.config.seq_len = native
        assert 0 < session.stats.accepted <= 12


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tl.Model, tl.Model]]:
    """Two models with one vocabulary that often disagree: the second's weights mix two random sets."""
    folder, metadata = tmp_path_factory.mktemp("pair"), tiny_metadata()
    first, other = tiny_tensors(metadata, 0), tiny_tensors(metadata, 1)
    paths = [
        write_gguf(folder / "a.gguf", metadata, first),
        write_gguf(folder / "b.gguf", metadata, {k: 0.9 * v + 0.1 * other[k] for k, v in first.items()}),
    ]
    with contextlib.ExitStack() as held:
        a, b = (held.enter_context(tl.load_model(path, weights="f32", backend="numpy")) for path in paths)
        yield a, b


def test_a_model_that_disagrees_changes_nothing_when_greedy(pair: tuple[tl.Model, tl.Model]) -> None:
    model, other = pair
    with model.create_session() as plain, model.create_session() as session:
        expected = told(plain, PROMPT, max_new_tokens=30)
        assert told(session, PROMPT, max_new_tokens=30, draft=tl.DraftModel(other, k=3)) == expected
        assert session.stats.accepted < session.stats.drafted
        assert other.sessions == []


# ---- the same distribution ----


def chi_squared(counts: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """The statistic of counts, and the bound exceeded by chance once in a million (Wilson and Hilferty)."""
    expected = p * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    some = expected > 0
    assert not counts[~some].any()
    df = int(some.sum()) - 1
    value = float(((counts[some] - expected[some]) ** 2 / expected[some]).sum())
    return value, df * (1 - 2 / (9 * df) + 4.75 * np.sqrt(2 / (9 * df))) ** 3


def keeps_too_often(p: np.ndarray, q: np.ndarray, guess: int, rng: np.random.Generator) -> int:
    """Wrong: keeps a guess with probability p, ignoring q, and otherwise draws from p itself."""
    return guess if rng.random() < p[guess] else speculation.draw(p, rng)


def asks_the_model_alone(p: np.ndarray, q: np.ndarray, guess: int, rng: np.random.Generator) -> int:
    """Wrong: follows the rule, but replaces a rejected guess by a draw from p."""
    return guess if rng.random() * q[guess] < p[guess] else speculation.draw(p, rng)


def keeps_what_is_likely(p: np.ndarray, q: np.ndarray, guess: int, rng: np.random.Generator) -> int:
    """Wrong: keeps a guess if it is likely enough."""
    return guess if p[guess] > 0.1 else speculation.draw(p, rng)


def test_accept_gives_tokens_with_the_models_probabilities_and_wrong_rules_do_not() -> None:
    rng = np.random.default_rng(0)
    for shape in (0.3, 1.0):
        p, q = rng.dirichlet(np.full(8, shape)), rng.dirichlet(np.full(8, shape))
        p[2], q[3] = 0, 0
        p, q = p / p.sum(), q / q.sum()
        for rule, right in (
            (speculation.accept, True), (keeps_too_often, False), (asks_the_model_alone, False),
            (keeps_what_is_likely, False),
        ):  # fmt: skip
            drawn = [rule(p, q, speculation.draw(q, rng), rng) for _ in range(3500)]
            value, bound = chi_squared(np.bincount(drawn, minlength=8), p)
            assert bool(value < bound) is right, (shape, rule.__name__)


def test_accept_with_equal_or_disjoint_distributions() -> None:
    rng = np.random.default_rng(1)
    p, q = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.25, 0.75])
    assert all(speculation.accept(p, p, guess, rng) == guess for guess in (0, 1) for _ in range(50))
    assert {speculation.accept(p, q, guess, rng) for guess in (2, 3) for _ in range(50)} == {0, 1}
    rounded = p * [1 + 2**-52, 1, 1, 1]  # q is nowhere below p, and the largest random number rejects guess 0
    highest: Any = SimpleNamespace(random=lambda: 1 - 2**-53)
    assert speculation.accept(p, rounded, 0, highest) == 1


@pytest.mark.parametrize("params", SETTINGS, ids=range(len(SETTINGS)))
def test_the_distribution_is_that_of_sample(params: tl.SamplingParams) -> None:
    rng = np.random.default_rng(3)
    logits, seen = rng.normal(0, 2, 60).astype(np.float32), [1, 1, 5, 7]
    p = speculation.distribution(logits, params, seen)
    assert p.sum() == pytest.approx(1)
    counts = np.bincount([sample(logits, params, seen, rng) for _ in range(1500)], minlength=60)
    value, bound = chi_squared(counts, p) if (p > 0).sum() > 1 else (float(counts.max() < 1500), 0.5)
    assert value < bound


def test_a_draft_model_changes_no_probability_and_a_wrong_rule_in_its_place_does(
    pair: tuple[tl.Model, tl.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = pair
    params, n_vocab = tl.SamplingParams(temperature=1.0, top_k=5, repeat_penalty=1.2), model.config.vocab_size
    start = PROMPT[3:4]
    with model.create_session(seed=7) as session:
        exact = np.zeros((n_vocab, n_vocab))  # the probability of each pair of tokens, of which the second is guessed
        first = speculation.distribution(session.eval(start), params, start)
        for a in np.flatnonzero(first).tolist():
            second = speculation.distribution(session.eval([a]), params, session.tokens)
            exact[a] = first[a] * second
            session.rewind(len(start))

        def drawn(n: int) -> np.ndarray:
            counts = np.zeros((n_vocab, n_vocab))
            for _ in range(n):
                session.rewind(0)
                made = told(session, start, params, max_new_tokens=2, draft=tl.DraftModel(other, k=1))[0]
                counts[tuple(made)] += 1
            return counts

        value, bound = chi_squared(drawn(450).ravel(), exact.ravel())
        assert value < bound
        monkeypatch.setattr(speculation, "accept", asks_the_model_alone)
        value, bound = chi_squared(drawn(450).ravel(), exact.ravel())
        assert value > bound


# ---- guesses ----


def test_prompt_lookup_guesses_what_followed_the_last_time() -> None:
    rng, look = np.random.default_rng(0), tl.PromptLookup(n=2, k=4)
    guess = lambda tokens, most=10: look.guess(tokens, GREEDY, most, rng).ids
    assert guess([1, 2, 3, 4, 5, 6, 1, 2]) == [3, 4, 5, 6]
    assert guess([1, 2, 3, 1, 2, 9, 8, 7, 6, 1, 2]) == [9, 8, 7, 6]  # the latest occurrence
    assert guess([1, 2, 3, 4, 5, 6, 1, 2], 2) == [3, 4]
    assert guess([5, 1, 2, 1, 2]) == [1, 2, 1, 2]  # a loop continues
    assert guess([7, 7, 7]) == [7, 7, 7, 7]
    assert guess([1, 2, 3]) == guess([1, 2]) == guess([1]) == []


def test_drafts_that_cannot_be_are_refused_and_say_why(model: tl.Model, tmp_path: Path) -> None:
    tokens = list(tiny_metadata()["tokenizer.ggml.tokens"])
    tokens[7] = "other"
    path = tiny_model(tmp_path / "other.gguf", **{"tokenizer.ggml.tokens": tokens, "general.name": "stranger"})
    with tl.load_model(path, backend="numpy") as other:
        session = model.create_session(seq_len=50)
        with pytest.raises(tl.ParameterError, match=r"'stranger' has another vocabulary.*token 7 is 'other' there"):
            session.generate(PROMPT, draft=tl.DraftModel(other))
    with pytest.raises(tl.ClosedError):
        model.create_session(seq_len=50).generate(PROMPT, draft=tl.DraftModel(other))
    with model.create_session(seq_len=50) as session:
        with pytest.raises(tl.ParameterError, match="expected PromptLookup"):
            session.generate(PROMPT, draft=other)  # type: ignore[arg-type]
        with pytest.raises(tl.TokenError):
            list(session.generate(PROMPT, draft=Fixed([0] * len(PROMPT) + [0, -1, -1])))
        assert session.tokens == PROMPT
    with pytest.raises(tl.ParameterError, match="load_model"):
        tl.DraftModel("model.gguf")  # type: ignore[arg-type]
    for bad in (0, 11, 2.5, True):
        with pytest.raises(tl.ParameterError):
            tl.PromptLookup(k=bad)  # type: ignore[arg-type]
        with pytest.raises(tl.ParameterError):
            tl.DraftModel(model, k=bad)  # type: ignore[arg-type]
    with pytest.raises(tl.ParameterError):
        tl.PromptLookup(n=0)


def test_a_token_and_its_guesses_are_as_many_rows_as_keep_their_bits() -> None:
    assert speculation.MAX_GUESSES + 1 == TILE_FROM - 1
