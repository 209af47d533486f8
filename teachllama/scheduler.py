"""`Scheduler`: runs many requests on one pool; decides which are evaluated next, and with how many tokens.

Each step evaluates one batch (https://www.usenix.org/conference/osdi22/presentation/yu, "continuous batching"): one
token of every request that is generating, and pieces of prompts with the rest of the step's budget, so that a long
prompt doesn't stall the others (https://arxiv.org/abs/2308.16369). Requests are admitted in order of arrival, when the
pool has pages for their tokens. When pages run out, the youngest request gives up its pages and waits. Its tokens are
kept, and are evaluated again.

All requests that are not done are in one list, in order of arrival, and each has its own state. So an error at any
point of a step cannot leave a request in two places.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from teachllama.batching import eval_batch
from teachllama.errors import ClosedError, ContextFullError, ParameterError, PoolFullError
from teachllama.generate import Token
from teachllama.kv.stored import PAGE
from teachllama.pool import Pool
from teachllama.request import Request
from teachllama.sampling import GREEDY, SamplingParams
from teachllama.whole_numbers import whole

PIECE = 32  # prompts are cut at multiples of this, a tile of the kernels: then the logits are those of uncut prompts
REST = 16  # a prompt's last piece has at least this many tokens: the kernels compute fewer differently
MOST_EVENTS = 10_000  # events that wait for a reader


@dataclass(frozen=True, slots=True)
class Event:
    """One decision of the scheduler.

    Attributes:
        step: the number of the step; 0 before the first.
        what: "submitted", "admitted", "prefill", "token", "preempted", "finished", "cancelled" or "failed".
        request: the request's number.
        n: how many tokens: of the prompt, reused from prefixes, evaluated, generated so far, or given up.
        why: why the request ended; empty for other events.
    """

    step: int
    what: str
    request: int
    n: int = 0
    why: str = ""


class Scheduler:
    """Runs requests on the sessions of a pool.

    Any thread may submit and cancel. One thread at a time runs a step.

    Args:
        pool: the pool of the sessions; it may have other sessions, too.
        max_tokens_per_step: rows of one batch, 1 or more; prompts are cut to fit.
        max_running: how many requests may have pages at a time; by default half of max_tokens_per_step, which leaves
            half of each step to prompts.
        seq_len: the most positions of a request; by default the model's `config.seq_len`.
        prefixes: look up prompts in `pool.prefixes`, and donate sessions that end to it.
    """

    def __init__(
        self, pool: Pool, *, max_tokens_per_step: int = 256, max_running: int | None = None,
        seq_len: int | None = None, prefixes: bool = True,
    ):  # fmt: skip
        if not isinstance(pool, Pool):
            raise ParameterError(f"pool is {pool!r}; expected a pool, from model.create_pool()")
        self.pool, self.prefixes, limit = pool, prefixes, 2**31
        self.max_tokens_per_step = whole("max_tokens_per_step", max_tokens_per_step, 1, limit)
        most = max(1, self.max_tokens_per_step // 2) if max_running is None else max_running
        self.max_running = min(whole("max_running", most, 1, limit), self.max_tokens_per_step)
        self.seq_len = whole("seq_len", pool.model.config.seq_len if seq_len is None else seq_len, 1, limit)
        # A session cannot outgrow the pool, so a shorter table of pages is enough. But LongRoPE's frequencies depend on
        # the requested length.
        shorter = min(self.seq_len, pool.longest + PAGE)
        is_same = pool.prefixes.root_for(shorter) is pool.prefixes.root_for(self.seq_len)
        self._session_len = shorter if is_same else self.seq_len
        self.n_steps, self.closed = 0, False
        self._requests: list[Request] = []  # in order of arrival; those that are done stay until `step` ends
        self._n_submitted = 0
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._lock, self._turn = threading.Lock(), threading.Lock()  # for data that any thread may touch; for a step

    # ---- submitting ----

    def submit(
        self, prompt: str | Iterable[int], params: SamplingParams = GREEDY, *, max_new_tokens: int = 128,
        seed: int | None = None, stop: str | Sequence[str] = (),
    ) -> Request:  # fmt: skip
        """Queues a request, which begins at a later step. Arguments: see `Session.generate`.

        Raises:
            ParameterError, TokenError: something is out of range. ContextFullError: the prompt is longer than seq_len.
            PoolFullError: it is longer than the whole pool. ClosedError: the scheduler was closed.
        """
        request = Request(self.pool.model, prompt, params, max_new_tokens, seed, stop)
        n, needed = len(request.prompt), self._pages_for(len(request.prompt))
        if n > self.seq_len:
            raise ContextFullError(f"the prompt has {n} tokens, and a request at most seq_len {self.seq_len}")
        if needed > self.pool.n_pages:
            raise PoolFullError(
                f"the prompt's {n} tokens need {needed} pages, and the whole pool has {self.pool.n_pages}; shorten it, "
                "or create a larger pool"
            )
        with self._lock:
            if self.closed or self.pool.closed:
                raise ClosedError("the scheduler or its pool was closed; create another")
            self._n_submitted += 1
            request.number = self._n_submitted
            self._note("submitted", request, n)
            self._requests.append(request)
        return request

    def _note(self, what: str, request: Request, n: int = 0, why: str = "") -> None:
        self._events.append(Event(self.n_steps, what, request.number, n, why))

    @property
    def requests(self) -> list[Request]:
        """The requests that are not done, the oldest first."""
        return self._in("running", "waiting")

    def _in(self, *states: str) -> list[Request]:
        with self._lock:
            return [request for request in self._requests if request.state in states]

    # ---- running ----

    def run(self) -> None:
        """Steps until every request is done."""
        while self.requests:
            self.step()

    def events(self) -> Iterator[Event]:
        """Yields every decision in order; runs a step when there is none left, until every request is done.

        Only the last 10,000 unread events are kept.
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
        continues where this one stopped.
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
                if len(ids) > 1 or not request.n_generated:
                    self._note("prefill", request, len(ids))
            for request in self._in("running"):
                if request.choose():
                    self._note("token", request, request.n_generated)
                self._settle(request)
            with self._lock:
                ready = [(request, token) for request in self._requests for token in request.take()]
                self._requests = [request for request in self._requests if not request.done]
            return ready

    def close(self) -> None:
        """Cancels the requests that are not done, releases their pages, and accepts no more."""
        with self._turn:
            with self._lock:
                self.closed = True
            for request in self.requests:
                request.end("cancelled", "closed")
                self._settle(request)

    def _repair(self) -> None:
        """Ends cancelled requests, and repairs the state after an interrupted step."""
        if self.pool.closed:
            raise ClosedError("the pool was closed, and its sessions with it; create another, and submit again")
        for request in self.requests:
            if request.session is None or request.session.closed:
                request.session, request.state = None, "waiting"
            self._settle(request)

    def _admit(self) -> None:
        """Gives waiting requests a session, in order, as long as the pool has pages for their tokens."""
        for request in self._in("waiting"):
            running = self._in("running")
            if len(running) >= self.max_running:
                return
            tokens = request.prompt + request.tokens
            needed = self._pages_for(len(tokens) + 1)
            if self.prefixes:  # reused pages need not be free, but idle ones are no longer available
                matched = self._pages_for(self.pool.prefixes.match(tokens, self._session_len))
                needed -= matched - self.pool.prefixes.n_idle_of(tokens, self._session_len)
            if running and needed > self._spare(running):
                return
            if request.session is None:
                request.session = self.pool.create_session(seq_len=self._session_len)
            if self.prefixes and not request.session.n_past:
                reused = self.pool.prefixes.attach(request.session, tokens)
                if not request.n_preempted:  # after a preemption it may reuse its own tokens
                    request.n_reused = reused
            request.timings.admitted = request.timings.admitted or time.perf_counter()
            request.state = "running"
            self._note("admitted", request, request.session.n_past)

    def _pages_for(self, n: int) -> int:
        return self.pool.pages_for(n, self.max_tokens_per_step)

    def _spare(self, running: list[Request]) -> int:
        """Number of available pages that are not promised to running requests."""
        promised = sum(
            self._pages_for(r.n_tokens + 1) - self._pages_for(r.session.n_past if r.session else 0) for r in running
        )
        return self.pool.n_available - max(0, promised)

    def _plan(self) -> list[tuple[Request, list[int]]]:
        """The tokens that this step evaluates: one per generating request, then pieces of prompts, oldest first."""
        while running := self._in("running"):
            plan: list[tuple[Request, list[int]]] = []
            left = self.max_tokens_per_step
            pending = [(request, request.lacking()) for request in running]
            for request, tokens in sorted(pending, key=lambda p: len(p[1]) > 1):  # stable: keeps the order of age
                n = self._piece(len(tokens), left)
                if n:
                    plan.append((request, tokens[:n]))
                    left -= n
            needed = sum(len(r.session._cache.lacking(r.session.n_past, r.session.n_past + len(ids))[0])  # type: ignore
                         for r, ids in plan)  # fmt: skip
            if not needed or needed <= self.pool.n_available:
                return plan
            if len(running) > 1:
                self._preempt(running[-1])
            else:
                running[0].end("finished", "pool full")
                self._settle(running[0])
        return []

    def _piece(self, n: int, left: int) -> int:
        """How many of n tokens to evaluate in the rest of a step."""
        if n <= left:
            return n
        piece = left // PIECE * PIECE
        if 0 < n - piece < REST:
            piece -= PIECE
        return piece if piece > 0 else left if self.max_tokens_per_step < 2 * PIECE else 0

    def _preempt(self, request: Request) -> None:
        """Takes away the pages of a request, which then waits again, ahead of all others."""
        given_up = self._give_up_session(request)
        request.n_preempted += 1
        request.state = "waiting"
        self._note("preempted", request, given_up)

    def _give_up_session(self, request: Request) -> int:
        """Closes a request's session, if it has one. Returns how many tokens were evaluated in it."""
        session, n = request.session, 0
        if session is not None and not session.closed:
            n = session.n_past
            if self.prefixes:
                self.pool.prefixes.donate(session)
            session.close()
        request.session = None
        return n

    def _settle(self, request: Request) -> None:
        """Ends the request if it has reached its end."""
        if not request.done and request.ending(self.seq_len):
            self._give_up_session(request)
            request.finish()
            self._note(request.state, request, request.n_generated, request.stop_reason)
