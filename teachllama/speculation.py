"""Speculation: a draft guesses the next tokens, and one pass of the model checks them all.

A pass over a few tokens costs little more than a pass over one. So the new token is evaluated together with guesses for
those after it. If the model then chooses a guessed token, that token needs no pass of its own. Only chosen tokens
become part of the session: between two tokens it is in the same state as without guesses.
https://arxiv.org/abs/2211.17192, https://arxiv.org/abs/2302.01318. Independent of text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from teachllama import sampling
from teachllama.beginnings import agreeing
from teachllama.errors import ParameterError, PoolFullError
from teachllama.kv.formula import KVDtype
from teachllama.sampling import SamplingParams
from teachllama.whole_numbers import whole

if TYPE_CHECKING:
    from teachllama.model import Model
    from teachllama.session import Session

MAX_GUESSES = 10  # with the new token, the most rows that have the same bits together as alone (see docs/serving.md)


@dataclass(frozen=True, slots=True)
class Guesses:
    """Tokens that may come next.

    Args:
        ids: the guesses, in order.
        chances: for each guess, the distribution that it was drawn from, (vocab_size,). Empty for deterministic
            guesses, which have probability 1.
    """

    ids: list[int] = field(default_factory=list)
    chances: list[np.ndarray] = field(default_factory=list)


class Draft:
    """Guesses tokens. To write your own draft, subclass this and define `guess`."""

    def check(self, model: Model) -> None:
        """Raises `ParameterError` if it can't guess for this model."""

    def begin(self, session: Session) -> Draft:
        """Returns the draft for one `generate`, which calls its `close` at the end."""
        return self

    def guess(self, tokens: Sequence[int], params: SamplingParams, most: int, rng: np.random.Generator) -> Guesses:
        """Guesses the next tokens.

        Args:
            tokens: the session's tokens, and the new one.
            params: how the session chooses its tokens.
            most: how many guesses can be used; more are dropped.
            rng: the only source of random numbers to use, so that results depend on the seed alone.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Called at the end of a `generate`, also after an error."""


@dataclass(frozen=True, slots=True)
class PromptLookup(Draft):
    """Guesses that the tokens which followed the last `n` tokens earlier in the text follow them again.

    Useful for text that repeats itself: code, quotations, summaries. Each pass searches the text so far, which costs
    little compared with the pass. https://github.com/apoorvumang/prompt-lookup-decoding

    Args:
        n: how many tokens must match, in order.
        k: how many guesses to make, at most 10. Compiled kernels take 4 or 8 rows at once: with the new token, 3 or 7.
    """

    n: int = 3
    k: int = 3

    def __post_init__(self) -> None:
        whole("n", self.n, 1)
        whole("k", self.k, 1, MAX_GUESSES)

    def guess(self, tokens: Sequence[int], params: SamplingParams, most: int, rng: np.random.Generator) -> Guesses:
        """See `Draft.guess`."""
        ids = np.asarray(tokens)
        if len(ids) <= self.n:
            return Guesses()
        earlier = np.lib.stride_tricks.sliding_window_view(ids[:-1], self.n)
        found = np.flatnonzero((earlier == ids[-self.n :]).all(axis=1))
        if not len(found):
            return Guesses()
        at, most = int(found[-1]) + self.n, min(most, self.k)
        after = list(tokens[at : at + most])  # in a loop this is one round, which is repeated
        return Guesses((after * most)[:most])


@dataclass(frozen=True, slots=True)
class DraftModel(Draft):
    """Guesses the tokens that another model chooses, which should be much faster and often agree.

    Each `generate` creates a session of that model, and closes it at the end. With a temperature, a `top_p` without a
    `top_k` ranks the whole vocabulary for each guess, which may take longer than the guess.

    Args:
        model: the other model, with the same vocabulary.
        k: how many guesses to make, at most 10; see `PromptLookup`.
        kv_dtype: the cache type of its session.
    """

    model: Model
    k: int = 3
    kv_dtype: KVDtype = "f16"
    session: Session | None = field(default=None, repr=False)  # of one `generate`: see `begin`

    def __post_init__(self) -> None:
        whole("k", self.k, 1, MAX_GUESSES)
        if not hasattr(self.model, "create_session"):
            raise ParameterError(f"DraftModel needs a loaded model; found {self.model!r:.60}. Use load_model() first")

    def check(self, model: Model) -> None:
        """See `Draft.check`."""
        self.model.weights  # raises if it is closed
        here, there = model.tokenizer._texts, self.model.tokenizer._texts
        if here != there:
            at = agreeing(here, there)
            texts = [repr(t[at]) if at < len(t) else "missing" for t in (here, there)]
            raise ParameterError(
                f"the draft model {self.model.config.name!r} has another vocabulary than {model.config.name!r}: token "
                f"{at} is {texts[1]} there and {texts[0]} here. Its guesses would be other words; take a model of the "
                "same family"
            )

    def begin(self, session: Session) -> Draft:
        """See `Draft.begin`."""
        seq_len = min(session.seq_len, self.model.config.seq_len)
        return replace(self, session=self.model.create_session(seq_len=seq_len, kv_dtype=self.kv_dtype))

    def guess(self, tokens: Sequence[int], params: SamplingParams, most: int, rng: np.random.Generator) -> Guesses:
        """See `Draft.guess`."""
        own, guesses = self.session, Guesses()
        assert own is not None
        most = min(most, self.k, own.seq_len - len(tokens) + 1)
        if most < 1:  # the text is too long for the draft model
            return guesses
        n = agreeing(own.tokens, tokens[:-1])
        own.rewind(n if n >= own.can_rewind_to else 0)
        logits = own.eval(tokens[own.n_past :])
        while True:
            if params.temperature == 0:
                guesses.ids.append(own.sample(params))
            else:
                guesses.chances.append(distribution(logits, params, own.tokens))
                guesses.ids.append(draw(guesses.chances[-1], rng))
            if len(guesses.ids) == most:
                return guesses
            logits = own.eval(guesses.ids[-1:])

    def close(self) -> None:
        """See `Draft.close`."""
        if self.session is not None:
            self.session.close()


def checked(draft: Draft, model: Model) -> None:
    """Raises `ParameterError` if `draft` is not a `Draft`, or can't guess for this model."""
    if not isinstance(draft, Draft):
        raise ParameterError(f"draft is {draft!r:.60}; expected PromptLookup(), DraftModel(model), or your own Draft")
    draft.check(model)


class Speculation:
    """`sample` and `eval` of a session for one `generate`, with guesses evaluated ahead."""

    def __init__(self, session: Session, draft: Draft, params: SamplingParams, max_new: int):
        self._session, self._stats, self._params, self._max_new = session, session.stats, params, max_new
        self._draft = draft.begin(session)
        self._guesses, self._rows = Guesses(), np.empty((0, 0), np.float32)
        self._at = 0  # the index of the next guess
        # The session's logits while the guesses are valid: any other call on the session replaces them.
        self._logits: np.ndarray | None = None

    def __enter__(self) -> Speculation:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._forget()
        finally:
            self._draft.close()

    def _next(self) -> int | None:
        """The guess for the token that is about to be chosen, or evaluated; None if there is none."""
        of_use = self._at < len(self._guesses.ids) and self._session._logits is self._logits
        return self._guesses.ids[self._at] if of_use else None

    def sample(self, params: SamplingParams) -> int:
        """Chooses the next token, with the same distribution as `Session.sample`."""
        session = self._session
        with session.lock:
            guess = self._next()
            if guess is None or params.temperature == 0 or not self._guesses.chances:
                # For a deterministic guess (q is 1) this is the rule of `accept`: the draw is the guess with
                # probability p, and otherwise one of the other tokens, in proportion to their probabilities.
                token = session.sample(params)
            else:
                p = distribution(session.logits, params, session.tokens)
                token = accept(p, self._guesses.chances[self._at], guess, session._rng)
            self._stats.accepted += token == guess and token not in session.model.tokenizer.eog_ids
            return token

    def eval(self, token_ids: Iterable[int]) -> None:
        """Evaluates a token, with guesses for those after it. A token that was guessed is evaluated already."""
        [token] = token_ids
        session = self._session
        with session.lock:
            session._check_free()
            if self._next() == token:
                self._at += 1
                self._logits = logits = self._rows[self._at].copy()
                session._logits = logits  # as in Session._eval: nothing can interrupt between these two
                session.tokens.append(token)
                session._cache.forget_before(session.n_past)
                return
            self._forget()
            room = session.seq_len - session.n_past - 1
            most, guesses = min(self._max_new - self._stats.n_generated, room, MAX_GUESSES), Guesses()
            if most > 0:
                guesses = self._draft.guess([*session.tokens, token], self._params, most, session._rng)
            ids = guesses.ids[:most]
            try:
                rows = session._guarded([token, *ids], True, 1)
            except PoolFullError:
                if not ids:
                    raise
                ids, rows = [], session._guarded([token], True, 1)
            self._guesses, self._rows, self._at = Guesses(ids, guesses.chances), rows, 0
            self._logits = session._logits
            self._stats.drafted += len(ids)

    def _forget(self) -> None:
        """Drops the remaining guesses; a pooled session releases the pages that hold nothing else."""
        self._guesses = Guesses()
        with self._session.lock:
            self._session._cache.release_from(self._session.n_past)


def distribution(logits: np.ndarray, params: SamplingParams, seen: Sequence[int]) -> np.ndarray:
    """The probability that `sampling.sample` chooses each token, float64 (vocab_size,); temperature above 0."""
    logits, likeliest = sampling.adjusted(logits, params, seen)
    chances, top = np.zeros(len(logits)), logits[likeliest]
    if params.top_k or params.top_p < 1:
        ids, some = sampling.candidates(logits, params)
    else:  # no cut that needs ranking, which is slower
        least = top + math.log(params.min_p) if params.min_p else -np.inf
        ids = np.flatnonzero(logits >= least - 0.01)  # usually few: exponentials are slow too
        gaps = logits[ids].astype(np.float64) - top
        with np.errstate(over="ignore"):
            some = np.exp(gaps / params.temperature)
        some[np.exp(gaps) < params.min_p] = 0
    chances[ids] = some / some.sum()
    return chances


def draw(weights: np.ndarray, rng: np.random.Generator) -> int:
    """A random index, with probabilities in proportion to the weights."""
    upto = np.cumsum(weights)
    at = np.searchsorted(upto, rng.random() * upto[-1], side="right")
    return int(min(at, np.flatnonzero(weights)[-1]))


def accept(p: np.ndarray, q: np.ndarray, guess: int, rng: np.random.Generator) -> int:
    """The guess, or another token in its place, so that the result is distributed as `p`.

    A guess is kept with probability min(1, p / q). A rejected guess is replaced by a token drawn from max(0, p - q),
    which makes up the difference.

    Args:
        p: the model's probabilities, (vocab_size,).
        q: the probabilities that the guess was drawn from.
    """
    if rng.random() * q[guess] < p[guess]:
        return guess
    rest = np.maximum(p - q, 0)
    return draw(rest if rest.any() else p, rng)  # no rest: p and q differ by rounding only
