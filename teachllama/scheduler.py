"""`Scheduler`: many requests on one pool: who is evaluated next, and with how many tokens.

Each step evaluates one batch (https://www.usenix.org/conference/osdi22/presentation/yu, "continuous batching"): one
token of every request that is generating, and pieces of prompts with what is left of the step's budget, so that a long
prompt doesn't stall the others (https://arxiv.org/abs/2308.16369). Requests are admitted in the order in which they
came, when the pool has pages for their tokens. When it has too few to go on, the youngest request gives its pages up
and waits; its tokens stay, and are evaluated again.

What a request has done is written in one place, its log of tokens, each with the state of its random numbers: an error
in the middle of a step loses nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from teachllama import sampling
from teachllama.batching import eval_batch
from teachllama.errors import ClosedError, ContextFullError, ParameterError, PoolFullError, TeachLlamaError
from teachllama.generate import TextStream, Token
from teachllama.pool import Pool, PooledSession
from teachllama.sampling import GREEDY, SamplingParams
from teachllama.session import checked_ids

PIECE = 32  # prompts are cut at multiples of this, a tile of the kernels: then the logits are those of the whole
REST = 16  # fewer tokens of a prompt than this are not left for a piece of their own: the kernels run them otherwise
MOST_EVENTS = 10_000  # that wait for a reader


@dataclass(frozen=True, slots=True)
class Event:
    """One decision of the scheduler.

    Attributes:
        step: in which step; 0 before the first.
        what: "submitted", "admitted", "prefill", "token", "preempted", "finished", "cancelled" or "failed".
        request: its number.
        n: tokens: of the prompt, reused from prefixes, evaluated, generated so far, or given up.
        why: of what ended.
    """

    step: int
    what: str
    request: int
    n: int = 0
    why: str = ""


@dataclass(slots=True)
class Timings:
    """When things happened to a request, in seconds of `time.perf_counter`; 0: not yet."""

    submitted: float = 0.0
    admitted: float = 0.0
    tokens: list[float] = field(default_factory=list)
    finished: float = 0.0

    @property
    def ttft_s(self) -> float:
        """Time to first token, waiting included."""
        return self.tokens[0] - self.submitted if self.tokens else 0.0


class Request:
    """One prompt and what comes of it. Made by `Scheduler.submit`.

    Attributes:
        number: tells requests apart.
        prompt: its tokens.
        state: "waiting", "running", "finished", "cancelled" or "failed".
        stop_reason: as `session.stats` has it: "length", "end of text", "stop string", "context full"; or "pool full",
            "cancelled", or an error's text.
        n_reused: prompt tokens that were not evaluated, as prefixes had them. n_evaluated: all that were, again and
            again after each preemption. n_preempted: how often its pages were taken.
        timings: when things happened.
    """

    def __init__(
        self, number: int, prompt: list[int], params: SamplingParams, most: int, seed: int | None, stops: list[str]
    ):
        self.number, self.prompt, self.params, self.max_new_tokens = number, prompt, params, most
        self.state, self.stop_reason = "waiting", ""
        self.n_reused = self.n_evaluated = self.n_preempted = 0
        self.timings = Timings(submitted=time.perf_counter())
        self.session: PooledSession | None = None
        self.stops = stops
        self._log: list[tuple[int, dict[str, Any]]] = []  # each token, and the random numbers' state after it
        self._first_state = dict(np.random.default_rng(seed).bit_generator.state)
        # What reads the log and makes text of it: None before the first token, and after an interrupt in the middle.
        self._stream: TextStream | None = None
        self._n_streamed, self._n_given = 0, 0  # tokens of the log in the text; shown tokens that `step` has returned
        self.shown: list[Token] = []  # the text, token by token
        self._cancelled = False

    @property
    def tokens(self) -> list[int]:
        """What was generated, without a token that ended the text."""
        return [token for token, _ in self._log]

    @property
    def text(self) -> str:
        """What can be shown of it: characters that are whole, up to a stop string."""
        return "".join(token.piece for token in self.shown)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens: of the prompt, of them reused, generated, evaluated in all."""
        n = {"n_prompt": len(self.prompt), "n_reused": self.n_reused, "n_generated": len(self._log)}
        return n | {"n_evaluated": self.n_evaluated}

    @property
    def done(self) -> bool:
        """True when nothing will come any more."""
        return self.state in ("finished", "cancelled", "failed")

    def cancel(self) -> None:
        """Ends the request at the next step; of a request that is done this changes nothing. Any thread may call it."""
        self._cancelled = True

    def _wanted(self) -> list[int]:
        """All its tokens so far."""
        return self.prompt + self.tokens

    def __repr__(self) -> str:
        return f"<Request {self.number}: {self.state}, {len(self.prompt)} + {len(self._log)} tokens>"


class Scheduler:
    """Runs requests on the sessions of a pool.

    Any thread may submit and cancel; one at a time steps.

    Args:
        pool: where sessions live; other sessions of it may go on.
        max_tokens_per_step: rows of one batch, 1 or more; prompts are cut to fit.
        max_running: requests with pages at a time; by default so many that prompts keep half of each step.
        seq_len: the most positions of a request; the model's `config.seq_len` if not given.
        prefixes: look for the beginnings of prompts in `pool.prefixes`, and keep there what ends.
    """

    def __init__(
        self, pool: Pool, *, max_tokens_per_step: int = 256, max_running: int | None = None,
        seq_len: int | None = None, prefixes: bool = True,
    ):  # fmt: skip
        most = pool.model.config.seq_len if seq_len is None else seq_len
        running = max(1, max_tokens_per_step // 2) if max_running is None else max_running
        for name, value in (("max_tokens_per_step", max_tokens_per_step), ("max_running", running), ("seq_len", most)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= 2**31:
                raise ParameterError(f"{name} is {value!r}; expected a whole number, 1 or more")
        self.pool, self.max_tokens_per_step, self.seq_len = pool, int(max_tokens_per_step), int(most)
        self.max_running, self.prefixes = min(int(running), self.max_tokens_per_step), prefixes
        self.n_steps, self.closed = 0, False
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # the oldest first
        self._number = 0
        self._ended: list[Request] = []  # whose last tokens `step` has yet to return
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._lock, self._turn = threading.Lock(), threading.Lock()  # of what any thread may touch; of a step

    # ---- asking ----

    def submit(
        self, prompt: str | Iterable[int], params: SamplingParams = GREEDY, *, max_new_tokens: int = 128,
        seed: int | None = None, stop: str | Sequence[str] = (),
    ) -> Request:  # fmt: skip
        """Queues a request, which begins at a later step. Arguments: see `Session.generate`.

        Raises:
            ParameterError, TokenError: something is out of range. ContextFullError: the prompt is longer than seq_len.
            PoolFullError: it is longer than the whole pool. ClosedError: the scheduler was closed.
        """
        model, stops = self.pool.model, [stop] if isinstance(stop, str) else list(stop)
        if any(not isinstance(s, str) or not s for s in stops):
            raise ParameterError(f"stop is {stop!r}; expected text or a list of texts, none empty")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, (int, np.integer)) or max_new_tokens < 0:
            raise ParameterError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number, 0 or more")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0):
            raise ParameterError(f"seed is {seed!r}; expected None or a whole number that is not negative")
        if not isinstance(params, SamplingParams):
            raise ParameterError(f"params is {params!r}; expected SamplingParams")
        ids = model.encode(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else prompt
        ids = checked_ids(ids, model.config.vocab_size).tolist()
        if len(ids) > self.seq_len:
            raise ContextFullError(f"the prompt has {len(ids)} tokens, and a request at most seq_len {self.seq_len}")
        if self._pages_for(len(ids)) > self.pool.n_pages:
            raise PoolFullError(
                f"the prompt's {len(ids)} tokens need {self._pages_for(len(ids))} pages, and the whole pool has "
                f"{self.pool.n_pages}; shorten it, or create a larger pool"
            )
        with self._lock:
            if self.closed or self.pool.closed:
                raise ClosedError("the scheduler or its pool was closed; create another")
            self._number += 1
            request = Request(self._number, ids, params, int(max_new_tokens), seed, stops)
            self._note("submitted", request, len(ids))
            self._waiting.append(request)
        return request

    def _note(self, what: str, request: Request, n: int = 0, why: str = "") -> None:
        self._events.append(Event(self.n_steps, what, request.number, n, why))

    @property
    def requests(self) -> list[Request]:
        """Those that are not done: running ones, then waiting ones."""
        with self._lock:
            running = list(self._running)  # an interrupted step may have left one in both, until the next
            return [*running, *(r for r in self._waiting if r not in running)]

    # ---- running ----

    def run(self) -> None:
        """Steps until every request is done."""
        while self.requests:
            self.step()

    def events(self) -> Iterator[Event]:
        """Every decision in turn; steps when there is none to tell, until every request is done.

        Of those that nobody reads only the last 10,000 are kept.
        """
        while True:
            while self._events:
                yield self._events.popleft()
            if not self.requests:
                return
            self.step()

    def step(self) -> list[tuple[Request, Token]]:
        """Evaluates one batch. Returns the tokens that can now be shown, each with its request.

        An error of one request ends that request alone. After Ctrl-C, or an error that concerns all, the next step
        goes on where this one was.
        """
        with self._turn:
            self.n_steps += 1
            self._repair()
            self._admit()
            plan = self._plan()
            if plan:
                eval_batch([(r.session, ids) for r, ids in plan if r.session is not None])
            for request, ids in plan:
                request.n_evaluated += len(ids)
                if len(ids) > 1 or not request._log:
                    self._note("prefill", request, len(ids))
            for request in list(self._running):
                self._choose(request)
                self._settle(request)
            touched = dict.fromkeys([*self._ended, *self.requests])
            ready = [(r, token) for r in touched for token in r.shown[r._n_given :]]
            for request in touched:
                request._n_given = len(request.shown)
            self._ended = []
            return ready

    def close(self) -> None:
        """Cancels what is not done, gives its pages back, and takes no more requests."""
        with self._turn:
            with self._lock:
                self.closed = True
            for request in self.requests:
                self._end(request, "cancelled", "closed")

    def _repair(self) -> None:
        """Ends what was cancelled, and puts right what a step that was interrupted has left."""
        if self.pool.closed:
            raise ClosedError("the pool was closed, and its sessions with it; create another, and submit again")
        with self._lock:
            self._running = [r for r in self._running if not r.done]
            self._waiting = deque(r for r in self._waiting if not r.done)
            for request in list(self._running):
                if request.session is None or request.session.closed:
                    request.session, request.state = None, "waiting"
                    self._running.remove(request)
                    if request not in self._waiting:
                        self._waiting.appendleft(request)
                elif request in self._waiting:
                    self._waiting.remove(request)
        for request in self.requests:
            self._settle(request)

    def _admit(self) -> None:
        """Gives waiting requests a session, in their order, for as long as the pool has pages for their tokens."""
        while self._waiting and len(self._running) < self.max_running:
            request = self._waiting[0]
            tokens = request._wanted()
            needed = self._pages_for(len(tokens) + 1)
            if self.prefixes:  # what is reused need not be free, but if it is idle, it is so no longer
                matched = self._pages_for(self.pool.prefixes.match(tokens, self.seq_len))
                needed -= matched - self.pool.prefixes.n_idle_of(tokens, self.seq_len)
            if self._running and needed > self._spare():
                return
            if request.session is None:
                request.session = self.pool.create_session(seq_len=self.seq_len)
            if self.prefixes and not request.session.n_past:
                reused = self.pool.prefixes.attach(request.session, tokens)
                if not request.n_preempted:  # later what it gave up itself may come back to it
                    request.n_reused = reused
            request.timings.admitted = request.timings.admitted or time.perf_counter()
            with self._lock:
                request.state = "running"
                self._running.append(request)
                self._waiting.popleft()
            self._note("admitted", request, request.session.n_past)

    def _pages_for(self, n: int) -> int:
        return self.pool.pages_for(n, self.max_tokens_per_step)

    def _spare(self) -> int:
        """Pages that can be had and that no running request has been admitted for."""
        promised = sum(
            self._pages_for(len(r.prompt) + len(r._log) + 1) - self._pages_for(r.session.n_past)
            for r in self._running
            if r.session is not None
        )
        return self.pool.n_available - max(0, promised)

    def _plan(self) -> list[tuple[Request, list[int]]]:
        """What this step evaluates: a token of each that generates, then pieces of prompts, the oldest first."""
        while self._running:
            plan: list[tuple[Request, list[int]]] = []
            left = self.max_tokens_per_step
            pending = [(r, r._wanted()[r.session.n_past :]) for r in self._running if r.session is not None]
            for request, tokens in sorted(pending, key=lambda p: len(p[1]) > 1):  # keeps the order of age in each kind
                n = self._piece(len(tokens), left)
                if n:
                    plan.append((request, tokens[:n]))
                    left -= n
            needed = sum(len(r.session._cache.lacking(r.session.n_past, r.session.n_past + len(ids))[0])  # type: ignore
                         for r, ids in plan)  # fmt: skip
            if not needed or needed <= self.pool.n_available:
                return plan
            if len(self._running) == 1:
                self._end(self._running[0], "finished", "pool full")
            else:
                self._preempt(self._running[-1])
        return []

    def _piece(self, n: int, left: int) -> int:
        """How many of n tokens go into what is left of a step."""
        if n <= left:
            return n
        piece = left // PIECE * PIECE
        if 0 < n - piece < REST:
            piece -= PIECE
        return piece if piece > 0 else left if self.max_tokens_per_step < 2 * PIECE else 0

    def _preempt(self, request: Request) -> None:
        """Takes the pages of a request, which waits again, before all others."""
        given_up = self._give_up_session(request)
        request.n_preempted += 1
        with self._lock:
            request.state = "waiting"
            self._waiting.appendleft(request)
            self._running.remove(request)
        self._note("preempted", request, given_up)

    def _give_up_session(self, request: Request) -> int:
        session, n = request.session, 0
        if session is not None and not session.closed:
            n = session.n_past
            if self.prefixes:
                self.pool.prefixes.donate(session)
            session.close()
        request.session = None
        return n

    def _end(self, request: Request, state: str, why: str) -> None:
        self._read_log(request, to_the_end=True)
        self._give_up_session(request)
        request.stop_reason, request.timings.finished = why, time.perf_counter()
        with self._lock:
            self._ended.append(request)
            request.state = state
            self._running = [r for r in self._running if r is not request]
            self._waiting = deque(r for r in self._waiting if r is not request)
        self._note(state, request, len(request._log), why)

    def _choose(self, request: Request) -> None:
        """Samples a token where all before it are evaluated."""
        session = request.session
        if request._cancelled or session is None or session.n_past < len(request.prompt) + len(request._log):
            return None
        if len(request._log) >= request.max_new_tokens:
            return self._end(request, "finished", "length")
        rng = np.random.default_rng(0)
        rng.bit_generator.state = request._log[-1][1] if request._log else request._first_state
        try:
            token = sampling.sample(session.logits, request.params, session.tokens, rng)
        except TeachLlamaError as e:
            return self._end(request, "failed", str(e))
        if token in self.pool.model.tokenizer.eog_ids:
            return self._end(request, "finished", "end of text")
        request._log.append((token, rng.bit_generator.state))  # both at once: nothing can come between
        request.timings.tokens.append(time.perf_counter())
        self._note("token", request, len(request._log))
        return None

    def _settle(self, request: Request) -> None:
        """Makes text of new tokens, and ends what has come to its end."""
        if request.done:
            return None
        if request._cancelled:
            return self._end(request, "cancelled", "cancelled")
        if request._log and self._read_log(request):
            return self._end(request, "finished", "stop string")
        if len(request.prompt) + len(request._log) > self.seq_len:  # the last token has no place
            return self._end(request, "finished", "context full")
        if request._log and len(request._log) >= request.max_new_tokens:
            return self._end(request, "finished", "length")
        return None

    def _read_log(self, request: Request, to_the_end: bool = False) -> bool:
        """Brings a request's text up to its log; says whether a stop string has come."""
        stream, request._stream = request._stream, None  # None: an interrupt from here on makes all of it again
        if stream is None:
            stream, request._n_streamed, shown = TextStream(self.pool.model.tokenizer, request.stops), 0, []
        else:
            shown = request.shown
        for token, _ in request._log[request._n_streamed :]:
            shown.extend(stream.push(token))
        if to_the_end:
            shown.extend(stream.flush())
        request.shown, request._n_streamed = shown, len(request._log)
        if not to_the_end:  # what was flushed cannot be gone on with
            request._stream = stream
        return stream.stopped
