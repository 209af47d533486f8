"""`Session`: one generation's state: its position, its KV cache, its random numbers.

`eval` and `sample` are the whole loop inside `generate`. Independent of files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from teachllama import sampling, speculation
from teachllama.errors import ClosedError, ContextFullError, ParameterError, TeachLlamaError, TokenError
from teachllama.generate import GenerationStats, TextStream, Token, checked_stops
from teachllama.kv.cache import KVCache
from teachllama.kv.formula import KVDtype
from teachllama.sampling import GREEDY, SamplingParams
from teachllama.speculation import Draft, Speculation
from teachllama.whole_numbers import whole

if TYPE_CHECKING:
    from teachllama.model import Model

_numbers = itertools.count(1)
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()  # all sessions of this process, for `_after_fork`


class Session:
    """One generation's state. Make one with `Model.create_session`.

    Any thread may use a session. Calls from several threads wait for each other, and each starts from the state that
    the previous call left. `with session.lock:` keeps other threads out during several calls that belong together. The
    lock is not held between two tokens of `generate`, so tokens evaluated there become part of the session.

    Attributes:
        n_past: how many positions have been evaluated.
        tokens: their ids, oldest first.
        seq_len: how many positions fit.
        stats: statistics of the last `generate`.
        restored: how many positions came from a session file; 0 unless `Model.load_session` made this session.
        lock: held during each call. A thread that holds it can call the session as usual.
    """

    def __init__(self, model: Model, seq_len: int, kv_dtype: KVDtype, seed: int | None, swa_full: bool):
        if isinstance(seq_len, bool) or not isinstance(seq_len, (int, np.integer)) or seq_len < 1:
            raise ParameterError(f"seq_len is {seq_len!r}; expected a whole number of positions, at least 1")
        if seed is not None:
            whole("seed", seed, 0)
        model.weights  # raises if the model is closed
        native = model.config.native_seq_len
        if seq_len > native:
            warnings.warn(
                f"seq_len {seq_len} is above the {native} positions this model was trained for: "
                "it runs, but text past that point may make little sense",
                stacklevel=3,
            )
        self.model, self.seq_len, self.seed = model, int(seq_len), seed
        self.number = next(_numbers)  # identifies the session in messages
        self._cache = self._new_cache(kv_dtype, swa_full)
        self._rng = np.random.default_rng(seed)
        self._logits: np.ndarray | None = None
        self.tokens: list[int] = []
        self.stats = GenerationStats()
        self.restored = 0
        self._loaded: tuple[int, int] | None = None  # positions restored and rebuilt, until an eval has reported them
        self.lock = threading.RLock()
        self._running = ""  # the name of the call in progress, which no other call may interrupt
        _sessions.add(self)

    def _new_cache(self, kv_dtype: KVDtype, swa_full: bool) -> KVCache:
        return KVCache(self.model.config, self.seq_len, kv_dtype, swa_full)

    # ---- state ----

    @property
    def n_past(self) -> int:
        """How many positions have been evaluated; the next token goes to this position."""
        return len(self.tokens)

    @property
    def logits(self) -> np.ndarray:
        """The last evaluated position's logits, float32 (vocab_size,)."""
        self._check_open()
        logits = self._logits
        if logits is None:
            raise TeachLlamaError("no logits yet: eval() at least one token first (rewind() and reset() drop them)")
        return logits

    @property
    def can_rewind_to(self) -> int:
        """The earliest position, apart from 0, that `rewind` can go back to; every later position works too.

        0 if all positions work, which is always the case for a model without sliding windows and for a session with
        `swa_full=True`. Otherwise windows keep `kv.cache.SLACK` positions (64) more than they need, so that this is at
        least 64 positions before the furthest one evaluated since position 0.
        """
        self._check_open()
        return self._cache.can_rewind_to

    @property
    def kv_dtype(self) -> KVDtype:
        """The cache's type, such as "f16", or a pair of types for keys and values."""
        return self._cache.kv_dtype

    @property
    def kv_nbytes(self) -> int:
        """Bytes of KV cache this session needs when full: `kv_cache_bytes` to the byte. `close` does not change it.

        Memory is allocated in pages, and sliding-window layers keep up to 95 positions more (see `can_rewind_to`).
        """
        return self._cache.nbytes

    @property
    def k_cache(self) -> np.ndarray:
        """The keys, read-only (n_layers, seq_len, n_kv_heads, head_dim).

        For f32 and f16 a view, which keeps memory: see `close`. For other types a copy in float32, made at each access.
        """
        return _looking_at(self._cache.arrays()[0])

    @property
    def v_cache(self) -> np.ndarray:
        """The values, read-only (n_layers, seq_len, n_kv_heads, value_dim); a view or a copy, as `k_cache`."""
        return _looking_at(self._cache.arrays()[1])

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._cache.closed

    # ---- the loop: eval, sample ----

    def eval(self, token_ids: Iterable[int], *, all_logits: bool = False) -> np.ndarray:
        """Runs tokens through the model at position n_past, and advances n_past.

        An error, or Ctrl-C, leaves the session where it was before the call.

        Args:
            token_ids: one id or many, as integers.
            all_logits: return logits for every token, not only the last.

        Returns:
            float32 logits: (vocab_size,) of the last token, or (n, vocab_size).

        Raises:
            TokenError: no ids, or one that is not an integer in the vocabulary.
            ContextFullError: they do not fit in seq_len.
            PoolFullError: the session's pool has too few pages.
            ClosedError: the session or its model was closed, perhaps while this call waited or ran.
            TeachLlamaError: called by a signal handler in the middle of another call on this session.
        """
        return self._guarded(token_ids, all_logits)

    def _guarded(self, token_ids: Iterable[int], all_logits: bool, n_new: int | None = None) -> np.ndarray:
        """Evaluates ids, of which the first `n_new` (or all) become part of the session; the others are guesses."""
        self._check_open()
        ids = checked_ids(
            token_ids, self.model.config.vocab_size
        )  # before the lock: the caller's iterator may itself use this session
        with self.lock:
            self._check_free()
            try:
                self._running = "eval()"
                return self._eval(ids, all_logits, len(ids) if n_new is None else n_new)
            except Exception:
                self._check_open()  # if the model was closed meanwhile, report that
                raise
            finally:
                self._running = ""

    def _eval(self, ids: np.ndarray, all_logits: bool, n_new: int) -> np.ndarray:
        if self.n_past + len(ids) > self.seq_len:
            raise ContextFullError(
                f"{len(ids)} token(s) at position {self.n_past} do not fit in seq_len {self.seq_len}: "
                f"{self.n_past + len(ids) - self.seq_len} too many. Nothing was changed; evaluate fewer, rewind(), "
                "or create a session with a larger seq_len"
            )
        self._cache.prepare(self.n_past, self.n_past + len(ids))
        if self._logits is not None:
            self._logits = self._logits.view()  # a new object: guesses are dropped, as this call overwrites them
        rows: list[np.ndarray] = []
        done = 0
        while done < len(ids):
            start = self.n_past + done
            part = ids[done : done + self.model.max_batch(start)]
            done += len(part)
            if all_logits or done == len(ids):
                rows.append(self.model.forward(part, start, self._cache, all_logits=all_logits))
            else:
                self.model.forward(part, start, self._cache)
        self._check_open()  # otherwise these logits may come from freed weights
        logits = rows[0] if len(rows) == 1 else np.concatenate(rows)
        last = logits[n_new - len(ids) - 1].copy() if len(logits) > 1 else logits[-1]
        new = ids[:n_new].tolist()
        if self._loaded is not None:
            (self.stats.reused, self.stats.recomputed), self._loaded = self._reuse(), None
        # The commit: an interrupt before this point changes nothing. Python handles signals, and switches to other
        # threads (one of which may fork), after calls and backward jumps: not between the next two statements.
        self._logits = last
        self.tokens.extend(new)
        self._cache.forget_before(self.n_past)
        return logits if all_logits else last

    def sample(self, params: SamplingParams = GREEDY) -> int:
        """Chooses the next token from `logits`; greedy by default. Does not evaluate it."""
        with self.lock:
            return sampling.sample(self.logits, params, self.tokens, self._rng)

    def generate(
        self,
        prompt: str | Iterable[int],
        params: SamplingParams = GREEDY,
        *,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] = (),
        draft: Draft | None = None,
    ) -> Iterator[Token]:
        """Evaluates a prompt, then yields tokens as they are generated.

        A token is evaluated when the next one is requested. Generation ends at `max_new_tokens`, at a token that ends
        the text, at a stop string (which is left out of the pieces, though its tokens stay in the session), or when
        the context is full; `stats.stop_reason` says which.

        Args:
            prompt: text (special tokens are parsed; in an empty session a beginning-of-text token is added if the model
                expects one), or token ids. May be empty to continue from the current logits.
            params: how tokens are chosen.
            max_new_tokens: the most tokens to yield.
            stop: one or several stop strings.
            draft: guesses tokens, so that several are evaluated in one pass: `PromptLookup` or `DraftModel`. The
                distribution of the tokens does not change; with greedy sampling, or `PromptLookup`, the tokens do not
                either (with NumPy up to its rounding, see docs/serving.md).

        Raises:
            TypeError, ParameterError, TokenError, ContextFullError, ClosedError: before the first token.
        """
        stops = checked_stops(stop)
        max_new_tokens = whole("max_new_tokens", max_new_tokens, 0)
        self._check_open()
        if draft is not None:
            speculation.checked(draft, self.model)
        if isinstance(prompt, str):
            ids = self.model.encode(prompt, add_special=self.n_past == 0, parse_special=True)
        else:
            ids = list(prompt)
        return self._generate(ids, params, max_new_tokens, stops, draft)

    def _generate(
        self, ids: list[int], params: SamplingParams, max_new: int, stops: list[str], draft: Draft | None
    ) -> Iterator[Token]:
        reused, recomputed = self._reuse()
        stats = self.stats = GenerationStats(n_prompt=len(ids), reused=reused, recomputed=recomputed)
        text = TextStream(self.model.tokenizer, stops)
        started = time.perf_counter()
        if ids or self._logits is None:
            self.eval(ids)
        stats.prefill_s = time.perf_counter() - started
        stats.stop_reason = "length"
        with contextlib.nullcontext(self) if draft is None else Speculation(self, draft, params, max_new) as loop:
            while stats.n_generated < max_new:
                token = loop.sample(params)
                if token in self.model.tokenizer.eog_ids:
                    stats.stop_reason = "end of text"
                    break
                stats.n_generated += 1
                ready = text.push(token)
                spent = time.perf_counter() - started
                if stats.n_generated == 1:
                    stats.ttft_s = spent
                else:
                    stats.decode_s += spent
                yield from ready
                started = time.perf_counter()
                if text.stopped:
                    stats.stop_reason = "stop string"
                elif self.n_past == self.seq_len:
                    stats.stop_reason = "context full"
                    break
                (self if text.stopped else loop).eval([token])
                if text.stopped:
                    break
        yield from text.flush()

    # ---- rewinding and copying ----

    def rewind(self, n_past: int) -> None:
        """Goes back to an earlier position and drops everything after it. The random state does not change.

        0 always works, and so does every position from `can_rewind_to` on.

        Raises:
            ParameterError: n_past is not between 0 and the current position.
            TeachLlamaError: sliding-window layers no longer hold the positions that it attends to.
        """
        with self.lock:
            self._check_free()
            whole("the position to rewind to", n_past, 0, self.n_past)
            if n_past < self.n_past:
                self._cache.check_rewind(int(n_past))
                self._move_back(int(n_past))
                self._cache.release_from(int(n_past))

    def _move_back(self, n_past: int) -> None:
        # No calls here: nothing can interrupt between these statements (see _eval).
        self._logits = None
        del self.tokens[n_past:]
        if not n_past:
            self._cache.kept_from = 0

    def reset(self) -> None:
        """Returns to the initial state: position 0, the cache's memory freed, the random numbers seeded again."""
        with self.lock:
            self._check_free()
            self._move_back(0)
            self._cache.clear()
            self._rng = np.random.default_rng(self.seed)
            self.restored, self._loaded = 0, None

    def fork(self, *, seed: int | None = None) -> Session:
        """Creates a second session in the same state, with its own cache.

        Args:
            seed: seed of the copy's random numbers; with None it continues exactly as this session would.
        """
        with self.lock:
            self._check_free()
            try:
                self._running = "fork()"
                return self._fork(seed)
            finally:
                self._running = ""

    def _fork(self, seed: int | None) -> Session:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this session's creation warned of a seq_len above the native context
            other = self._twin(seed)
        other._cache.copy_from(self._cache, self.n_past)
        other.tokens = self.tokens.copy()
        other._logits = None if self._logits is None else self._logits.copy()
        other.restored, other._loaded = self.restored, self._loaded
        if seed is None:
            other.seed = self.seed
            other._rng.bit_generator.state = self._rng.bit_generator.state
        return other

    def _twin(self, seed: int | None) -> Session:
        kv_dtype, swa_full = self.kv_dtype, self._cache.swa_full
        return self.model.create_session(seq_len=self.seq_len, kv_dtype=kv_dtype, seed=seed, swa_full=swa_full)

    def _reuse(self) -> tuple[int, int]:
        """(positions that the next call reuses, positions that were evaluated again instead of read from a file)."""
        restored, rebuilt = (self.n_past, 0) if self._loaded is None else self._loaded
        return min(restored, self.n_past), rebuilt

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the session to a file, whole or not at all; `Model.load_session` restores it.

        The file holds the conversation in readable form; only you can read it (mode 0600). Format: docs/sessions.md.

        Raises:
            SessionFileError: the file could not be written. An existing file is unchanged.
        """
        from teachllama import session_file

        with self.lock:
            self._check_free()
            try:
                self._running = "save()"
                session_file.save(self, path)
            finally:
                self._running = ""

    def close(self) -> None:
        """Returns the KV cache's memory to the operating system at once, after waiting for other threads' calls.

        On Linux, a view taken from `k_cache` or `v_cache` before reads zeros afterwards.
        """
        with self.lock:
            if not self.closed:
                self._check_idle()
            self._cache.close()
            self._logits = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = (
            "closed"
            if self.closed
            else f"n_past {self.n_past} of {self.seq_len}, {self.kv_nbytes / 1e6:,.1f} MB KV cache"
        )
        return f"<Session {self.number}: {state}>"

    # ---- checks ----

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"session {self.number} was closed and its KV cache freed; create another")
        self.model.weights  # raises if the model is closed

    def _check_free(self) -> None:
        """Raises unless a call may begin now. The caller must hold the lock, which keeps other threads out."""
        self._check_open()
        self._check_idle()

    def _check_idle(self) -> None:
        if self._running:  # in this thread, which a signal handler interrupted
            raise TeachLlamaError(
                f"session {self.number} is in the middle of {self._running}, which this call interrupted (from a "
                "signal handler?). Nothing was changed; call it when that has returned"
            )


def checked_ids(token_ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """Token ids as an array, (n,) intp; raises `TokenError` if they are not valid."""
    if isinstance(token_ids, str):
        raise TokenError("expected token ids, found text; use model.encode(text)")
    try:
        if isinstance(token_ids, np.ndarray):
            array = token_ids
        else:
            items = [token_ids] if isinstance(token_ids, (int, np.integer)) else list(token_ids)
            if len(items) == 1 and type(items[0]) is int and 0 <= items[0] < vocab_size:
                return np.array(items, np.intp)  # the next token of a reply, quickly
            array = np.array(items)
    except (TypeError, ValueError, OverflowError):
        raise TokenError(f"expected a sequence of token ids, found {type(token_ids).__name__}") from None
    if array.size == 0:
        raise TokenError("no token ids to evaluate; give at least one")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TokenError(f"token ids must be a flat sequence of integers; found {array.dtype} of shape {array.shape}")
    if int(array.min()) < 0 or int(array.max()) >= vocab_size:
        bad = int(array[(array < 0) | (array >= vocab_size)][0])
        raise TokenError(f"token id {bad} is outside the vocabulary, 0 to {vocab_size - 1}")
    return array.astype(np.intp)


def _after_fork() -> None:
    """Replaces locks in a forked process: a thread that held one does not exist here, and would never release it."""
    for session in list(_sessions):
        if session.lock.acquire(blocking=False):  # free, or held by the thread that forked
            session.lock.release()
            continue
        session.lock, session._running = threading.RLock(), ""
        state = session._rng.bit_generator.state  # NumPy's generator has a lock, too
        session._rng = np.random.default_rng(0)
        session._rng.bit_generator.state = state


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _looking_at(stored: np.ndarray) -> np.ndarray:
    view = stored.transpose(0, 2, 1, 3)  # (n_layers, seq_len, n_kv_heads, head_dim)
    view.flags.writeable = False
    return view
