"""`Session`: one generation's state: its position, its KV cache, its random numbers.

`eval` and `sample` are the whole loop inside `generate`. Knows nothing of files.
"""

from __future__ import annotations

import codecs
import itertools
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from teachllama import sampling
from teachllama.errors import ClosedError, ContextFullError, ParameterError, TeachLlamaError, TokenError
from teachllama.kv_cache import KVCache
from teachllama.sampling import GREEDY, SamplingParams

if TYPE_CHECKING:
    from teachllama.model import Model
    from teachllama.tokenizer import Tokenizer

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    id: int
    piece: str  # the text it adds; empty where it ends inside a character that the next token completes


@dataclass(slots=True)
class GenerationStats:
    """What one call of `generate` did, in tokens and seconds; time spent outside the generator is not counted."""

    n_prompt: int = 0
    n_generated: int = 0
    prefill_s: float = 0.0  # evaluating the prompt
    ttft_s: float = 0.0  # time to first token: the prefill and the first sample
    decode_s: float = 0.0  # everything after the first token
    stop_reason: str = ""  # "length", "end of text", "stop string" or "context full"; empty while running

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens a second."""
        return self.n_prompt / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tps(self) -> float:
        """Generated tokens a second, after the first."""
        return (self.n_generated - 1) / self.decode_s if self.decode_s and self.n_generated > 1 else 0.0


class Session:
    """One generation's state. Make one with `Model.create_session`.

    Attributes:
        n_past: how many positions have been evaluated.
        tokens: their ids, oldest first.
        seq_len: how many positions fit.
        stats: what the last `generate` did.
    """

    def __init__(self, model: Model, seq_len: int, kv_dtype: str, seed: int | None, swa_full: bool):
        if isinstance(seq_len, bool) or not isinstance(seq_len, (int, np.integer)) or seq_len < 1:
            raise ParameterError(f"seq_len is {seq_len!r}; expected a whole number of positions, at least 1")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0):
            raise ParameterError(f"seed is {seed!r}; expected None or a whole number that is not negative")
        model.weights  # raises if the model is closed
        native = model.config.native_seq_len
        if seq_len > native:
            warnings.warn(
                f"seq_len {seq_len} is above the {native} positions this model was trained for: "
                "it runs, but text past that point may make little sense",
                stacklevel=3,
            )
        self.model, self.seq_len, self.seed = model, int(seq_len), seed
        self.number = next(_numbers)  # tells sessions apart in messages
        self._cache = KVCache(model.config, self.seq_len, kv_dtype, swa_full)
        self._rng = np.random.default_rng(seed)
        self._logits: np.ndarray | None = None
        self.tokens: list[int] = []
        self.stats = GenerationStats()

    # ---- looking ----

    @property
    def n_past(self) -> int:
        """How many positions have been evaluated; the next token goes to this position."""
        return len(self.tokens)

    @property
    def logits(self) -> np.ndarray:
        """The last evaluated position's logits, float32 (vocab_size,)."""
        self._check_open()
        if self._logits is None:
            raise TeachLlamaError("no logits yet: eval() at least one token first (rewind() and reset() drop them)")
        return self._logits

    @property
    def kv_dtype(self) -> str:
        """The cache's element type, "f32" or "f16"."""
        return self._cache.kv_dtype

    @property
    def kv_nbytes(self) -> int:
        """Bytes of KV cache this session can make resident: `kv_cache_bytes` to the byte. Stays after `close`."""
        return self._cache.nbytes

    @property
    def k_cache(self) -> np.ndarray:
        """The keys, a read-only view (n_layers, seq_len, n_kv_heads, head_dim); it keeps memory: see `close`."""
        return _looking_at(self._cache.arrays()[0])

    @property
    def v_cache(self) -> np.ndarray:
        """The values, a read-only view (n_layers, seq_len, n_kv_heads, value_dim)."""
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
            ClosedError: the session or its model was closed.
        """
        self._check_open()
        ids = self._checked_ids(token_ids)
        if self.n_past + len(ids) > self.seq_len:
            raise ContextFullError(
                f"{len(ids)} token(s) at position {self.n_past} do not fit in seq_len {self.seq_len}: "
                f"{self.n_past + len(ids) - self.seq_len} too many. Nothing was changed; evaluate fewer, rewind(), "
                "or create a session with a larger seq_len"
            )
        rows: list[np.ndarray] = []
        done = 0
        # exp of a large number in silu is inf, and 1 / inf the right 0; sample() refuses logits that are not numbers
        with np.errstate(over="ignore", invalid="ignore"):
            while done < len(ids):
                start = self.n_past + done
                part = ids[done : done + self.model.max_batch(start)]
                done += len(part)
                if all_logits or done == len(ids):
                    rows.append(self.model.forward(part, start, self._cache, all_logits=all_logits))
                else:
                    self.model.forward(part, start, self._cache)
        logits = rows[0] if len(rows) == 1 else np.concatenate(rows)
        self._logits = logits[-1].copy() if len(logits) > 1 else logits[-1]
        self.tokens.extend(ids.tolist())  # the last step: until here an interrupt changed nothing that counts
        self._cache.forget_before(self.n_past)
        return logits if all_logits else self._logits

    def sample(self, params: SamplingParams = GREEDY) -> int:
        """Chooses the next token from `logits`; greedy by default. Does not evaluate it."""
        return sampling.sample(self.logits, params, self.tokens, self._rng)

    def generate(
        self,
        prompt: str | Iterable[int],
        params: SamplingParams = GREEDY,
        *,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] = (),
    ) -> Iterator[Token]:
        """Evaluates a prompt, then yields tokens as they are made.

        A token is evaluated when the next one is asked for. Generation ends at `max_new_tokens`, at a token that ends
        the text, at a stop string (which is left out of the pieces, though its tokens stay in the session), or when
        the context is full; `stats.stop_reason` says which.

        Args:
            prompt: text (special tokens are parsed; a beginning-of-text token is added in an empty session where the
                model wants one), or token ids. May be empty to go on from the logits that are there.
            params: how to choose.
            max_new_tokens: the most tokens to yield.
            stop: one or several texts to stop at.

        Raises:
            TypeError, ParameterError, TokenError, ContextFullError, ClosedError: before the first token.
        """
        stops = [stop] if isinstance(stop, str) else list(stop)
        if any(not isinstance(s, str) or not s for s in stops):
            raise ParameterError(f"stop is {stop!r}; expected text or a list of texts, none empty")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, (int, np.integer)) or max_new_tokens < 0:
            raise ParameterError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number, 0 or more")
        self._check_open()
        if isinstance(prompt, str):
            ids = self.model.encode(prompt, add_special=self.n_past == 0, parse_special=True)
        else:
            ids = list(prompt)
        return self._generate(ids, params, int(max_new_tokens), stops)

    def _generate(self, ids: list[int], params: SamplingParams, max_new: int, stops: list[str]) -> Iterator[Token]:
        stats = self.stats = GenerationStats(n_prompt=len(ids))
        text = _TextStream(self.model.tokenizer, stops)
        started = time.perf_counter()
        if ids or self._logits is None:
            self.eval(ids)
        stats.prefill_s = time.perf_counter() - started
        stats.stop_reason = "length"
        while stats.n_generated < max_new:
            token = self.sample(params)
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
            self.eval([token])
            if text.stopped:
                break
        yield from text.flush()

    # ---- moving about ----

    def rewind(self, n_past: int) -> None:
        """Goes back to an earlier position and forgets what came after it. The generator of random numbers stays.

        Raises:
            ParameterError: n_past is not between 0 and the current position.
            TeachLlamaError: sliding-window layers no longer hold what that position attends to.
        """
        self._check_open()
        if isinstance(n_past, bool) or not isinstance(n_past, (int, np.integer)) or not 0 <= n_past <= self.n_past:
            raise ParameterError(f"cannot rewind to {n_past!r}; expected a position from 0 to {self.n_past}")
        if n_past < self.n_past:
            self._cache.check_rewind(int(n_past))
            del self.tokens[n_past:]
            self._logits = None

    def reset(self) -> None:
        """Back to how it was created: position 0, the cache's memory given back, the random numbers from their seed."""
        self._check_open()
        self.tokens.clear()
        self._logits = None
        self._cache.clear()
        self._rng = np.random.default_rng(self.seed)

    def fork(self, *, seed: int | None = None) -> Session:
        """A second session in the same state, with a cache of its own.

        Args:
            seed: give the copy its own random numbers; without one it goes on exactly as this session would.
        """
        self._check_open()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a seq_len above the native context was warned of when this one was made
            other = self.model.create_session(
                seq_len=self.seq_len, kv_dtype=self.kv_dtype, seed=seed, swa_full=self._cache.swa_full
            )
        other._cache.copy_from(self._cache, self.n_past)
        other.tokens = self.tokens.copy()
        other._logits = None if self._logits is None else self._logits.copy()
        if seed is None:
            other.seed = self.seed
            other._rng.bit_generator.state = self._rng.bit_generator.state
        return other

    def close(self) -> None:
        """Gives the KV cache back to the operating system, now.

        A view taken from `k_cache` or `v_cache` before reads zeros afterwards on Linux.
        """
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
            raise ClosedError(f"session {self.number} was closed and its KV cache given back; create another")
        self.model.weights  # raises if the model is closed

    def _checked_ids(self, token_ids: Iterable[int]) -> np.ndarray:
        vocab_size = self.model.config.vocab_size
        if isinstance(token_ids, str):
            raise TokenError("expected token ids, found text; use model.encode(text)")
        items = [token_ids] if isinstance(token_ids, (int, np.integer)) else token_ids
        try:
            array = items if isinstance(items, np.ndarray) else np.array(list(items))
        except (TypeError, ValueError, OverflowError):
            raise TokenError(f"expected a sequence of token ids, found {type(token_ids).__name__}") from None
        if array.size == 0:
            raise TokenError("no token ids to evaluate; give at least one")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TokenError(
                f"token ids must be a flat sequence of integers; found {array.dtype} of shape {array.shape}"
            )
        if int(array.min()) < 0 or int(array.max()) >= vocab_size:
            bad = int(array[(array < 0) | (array >= vocab_size)][0])
            raise TokenError(f"token id {bad} is outside the vocabulary, 0 to {vocab_size - 1}")
        return array.astype(np.intp)


def _looking_at(stored: np.ndarray) -> np.ndarray:
    view = stored.transpose(0, 2, 1, 3)  # (n_layers, seq_len, n_kv_heads, head_dim)
    view.flags.writeable = False
    return view


class _TextStream:
    """Turns ids into text for a reader: holds tokens back while a character, or a possible stop string, is open."""

    def __init__(self, tokenizer: Tokenizer, stops: list[str]):
        self._bytes_of, self._stops = tokenizer.piece_bytes, stops
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[Token] = []
        self.stopped = False

    def push(self, token_id: int) -> list[Token]:
        """The tokens that can be shown now that this one is known."""
        self._held.append(Token(token_id, self._utf8.decode(self._bytes_of(token_id))))
        text = "".join(t.piece for t in self._held)
        found = [at for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        open_character = self._utf8.getstate()[0]
        open_stop = any(text.endswith(s[:n]) for s in self._stops for n in range(1, len(s)))
        return [] if open_character or open_stop else self._release()

    def flush(self) -> list[Token]:
        """What was held back when generation ends; bytes of an unfinished character become U+FFFD."""
        rest = self._utf8.decode(b"", final=True)
        if self._held and rest:
            self._held[-1] = Token(self._held[-1].id, self._held[-1].piece + rest)
        return [] if self.stopped else self._release()

    def _release(self, n_characters: int | None = None) -> list[Token]:
        """Everything held, or as much of it as makes up the first n characters."""
        held, self._held = self._held, []
        if n_characters is None:
            return held
        shown = []
        for token in held:
            if n_characters <= 0:
                break
            shown.append(Token(token.id, token.piece[:n_characters]))
            n_characters -= len(token.piece)
        return shown
