"""`Request`: one prompt and its result: the tokens, their text, their times, and why it ended.

The only record of a request's progress is its log of tokens, each with the state of its random numbers. So an error in
the middle of a step loses nothing. Independent of other requests, and of the order in which they are evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama import sampling
from teachllama.errors import ParameterError, TeachLlamaError
from teachllama.generate import TextStream, Token, checked_stops
from teachllama.sampling import SamplingParams
from teachllama.session import Session, checked_ids
from teachllama.whole_numbers import is_whole, whole

if TYPE_CHECKING:
    from teachllama.model import Model


@dataclass(slots=True)
class Timings:
    """The times of a request's events, in seconds of `time.perf_counter`; 0: not yet."""

    submitted: float = 0.0
    admitted: float = 0.0
    tokens: list[float] = field(default_factory=list)
    finished: float = 0.0

    @property
    def ttft_s(self) -> float:
        """Time to first token, waiting included."""
        return self.tokens[0] - self.submitted if self.tokens else 0.0


class Request:
    """One prompt and its result. Created by `Scheduler.submit`.

    Attributes:
        number: identifies the request; a later one has a larger number.
        prompt: the prompt's token ids.
        state: "waiting", "running", "finished", "cancelled" or "failed".
        stop_reason: as in `session.stats`: "length", "end of text", "stop string", "context full"; or "pool full",
            "cancelled", or an error's text.
        n_reused: prompt tokens that were not evaluated, because prefixes held them.
        n_evaluated: all tokens that were evaluated, counted again after each preemption.
        n_preempted: how often its pages were taken away.
        timings: the times of its events.
        session: the session that evaluates it; None while it has no pages.
        shown: the text that can be shown, token by token.
    """

    def __init__(
        self, model: Model, prompt: str | Iterable[int], params: SamplingParams, max_new_tokens: int,
        seed: int | None, stop: str | Sequence[str],
    ):  # fmt: skip
        self.stops = checked_stops(stop)
        if seed is not None and not is_whole(seed, 0):
            raise ParameterError(f"seed is {seed!r}; expected None or a whole number that is not negative")
        if not isinstance(params, SamplingParams):
            raise ParameterError(f"params is {params!r}; expected SamplingParams")
        self.max_new_tokens = whole("max_new_tokens", max_new_tokens, 0)
        ids = model.encode(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else prompt
        self.prompt: list[int] = checked_ids(ids, model.config.vocab_size).tolist()
        self.number, self.params, self.state, self.stop_reason = 0, params, "waiting", ""
        self.n_reused = self.n_evaluated = self.n_preempted = 0
        self.timings = Timings(submitted=time.perf_counter())
        self.session: Session | None = None
        self.shown: list[Token] = []
        self._tokenizer = model.tokenizer
        self._ending: tuple[str, str] | None = None  # its final state and reason, once decided
        self._log: list[tuple[int, dict[str, Any]]] = []  # each token, and the random numbers' state after it
        self._first_state = dict(np.random.default_rng(seed).bit_generator.state)
        # Turns the log into text: None before the first token, and after an interrupt in the middle.
        self._stream: TextStream | None = None
        self._n_streamed, self._n_given = 0, 0  # tokens of the log in the text; shown tokens that `take` has returned

    @property
    def tokens(self) -> list[int]:
        """The generated tokens, without one that ended the text."""
        return [token for token, _ in self._log]

    @property
    def n_generated(self) -> int:
        """How many `tokens` there are."""
        return len(self._log)

    @property
    def text(self) -> str:
        """The text that can be shown: whole characters, up to a stop string."""
        return "".join(token.piece for token in self.shown)

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens: in the prompt, reused from prefixes, generated, and evaluated in total."""
        n = {"n_prompt": len(self.prompt), "n_reused": self.n_reused, "n_generated": self.n_generated}
        return n | {"n_evaluated": self.n_evaluated}

    @property
    def done(self) -> bool:
        """True after the request has ended."""
        return self.state in ("finished", "cancelled", "failed")

    def cancel(self) -> None:
        """Ends the request at the next step; has no effect on a request that is done. Any thread may call it."""
        self.end("cancelled", "cancelled")

    # ---- for the scheduler ----

    @property
    def n_tokens(self) -> int:
        """How many tokens it has, in the prompt and generated."""
        return len(self.prompt) + self.n_generated

    def end(self, state: str, why: str) -> None:
        """Decides how the request will end; only the first call counts."""
        self._ending = self._ending or (state, why)

    def lacking(self) -> list[int]:
        """The tokens that its session has yet to evaluate."""
        n = len(self.prompt)
        done = self.session.n_past if self.session else 0
        return self.prompt[done:] + [token for token, _ in self._log[max(0, done - n) :]]

    def choose(self) -> bool:
        """Samples the next token, if all before it are evaluated; returns whether there is one."""
        session = self.session
        if self._ending or session is None or session.n_past < self.n_tokens or len(self._log) >= self.max_new_tokens:
            return False
        rng = np.random.default_rng(0)
        rng.bit_generator.state = self._log[-1][1] if self._log else self._first_state
        try:
            token = sampling.sample(session.logits, self.params, session.tokens, rng)
        except TeachLlamaError as e:
            self.end("failed", str(e))
            return False
        if token in self._tokenizer.eog_ids:
            self.end("finished", "end of text")
            return False
        self._log.append((token, rng.bit_generator.state))  # both in one step: no interrupt can separate them
        self.timings.tokens.append(time.perf_counter())
        return True

    def ending(self, seq_len: int) -> tuple[str, str] | None:
        """The final state and reason, or None before the end; also turns new tokens into text."""
        if not self._ending:
            if self._log and self._read_log():
                self.end("finished", "stop string")
            elif self.n_tokens > seq_len:  # there is no position for the last token
                self.end("finished", "context full")
            elif len(self._log) >= self.max_new_tokens and (self._log or not self.lacking()):
                self.end("finished", "length")
        return self._ending

    def finish(self) -> None:
        """Ends the request: completes the text, and sets the state."""
        assert self._ending is not None
        self._read_log(to_the_end=True)
        state, self.stop_reason = self._ending
        self.timings.finished, self.state = time.perf_counter(), state

    def _read_log(self, to_the_end: bool = False) -> bool:
        """Updates the text from the log; returns whether a stop string was found."""
        stream, self._stream = self._stream, None  # None: after an interrupt from here on, all text is made again
        if stream is None:
            stream, self._n_streamed, shown = TextStream(self._tokenizer, self.stops), 0, []
        else:
            shown = self.shown
        for token, _ in self._log[self._n_streamed :]:
            shown.extend(stream.push(token))
        if to_the_end:
            shown.extend(stream.flush())
        self.shown, self._n_streamed = shown, len(self._log)
        if not to_the_end:  # a flushed stream cannot continue
            self._stream = stream
        return stream.stopped

    def take(self) -> list[Token]:
        """The tokens that can be shown and were not taken before."""
        new = self.shown[self._n_given :]
        self._n_given += len(new)
        return new

    def __repr__(self) -> str:
        return f"<Request {self.number}: {self.state}, {len(self.prompt)} + {len(self._log)} tokens>"
