"""Sessions on many machines, with `dask.distributed` (extra `cluster`).

Workers load the model once, memory-mapped, so that all processes of a machine share one copy. A worker holds the
sessions it has evaluated. The client keeps enough of each (token ids and random state, a few kilobytes) to recreate it,
so no conversation is lost when a worker dies: another one evaluates the tokens and returns the reply that the first one
would have returned. `move` and `drain` send sessions as session files, with their keys and values.

Dask starts processes, passes messages and detects lost workers. Nothing of that is reimplemented here.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from teachllama import hub, session_file
from teachllama.beginnings import agreeing
from teachllama.errors import ParameterError, SessionFileError, TeachLlamaError
from teachllama.generate import GenerationStats, Token
from teachllama.model import Model, load_model
from teachllama.sampling import GREEDY, SamplingParams
from teachllama.session import Session

if TYPE_CHECKING:
    from distributed import Client

    from teachllama.tokenizer import Tokenizer

ROUTINGS = ("prefix", "sticky", "round robin")
MIN_SHARED = 16  # common tokens from which on reusing another conversation's cache pays
LOOK_S = 0.5  # how often a waiting client checks that the worker is alive
PATIENCE_S = 60.0  # how long it waits for a worker while there is none


@dataclass(frozen=True, slots=True)
class Setup:
    """A worker's settings: which model to load and how, and how many sessions to hold."""

    path: str
    weights: str = "native"
    backend: str | None = None
    max_sessions: int = 16


@dataclass(frozen=True, slots=True)
class State:
    """Everything the client keeps of a session: enough to recreate it on any worker."""

    key: str
    seq_len: int | None
    kv_dtype: str
    seed: int | None
    tokens: tuple[int, ...] = ()
    random: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one call on a worker."""

    tokens: list[Token]
    state: State
    stats: GenerationStats


# On a worker ----------------------------------------------------------------------------------------------------------

_models: dict[tuple[str, str, str | None], Model] = {}
_held: OrderedDict[str, Session] = OrderedDict()  # in order of use, the most recent last
_lock = threading.RLock()


def _model(setup: Setup) -> Model:
    """This process's model; the first call loads it."""
    with _lock:
        key = (setup.path, setup.weights, setup.backend)
        if key not in _models:
            _models[key] = load_model(setup.path, weights=setup.weights, backend=setup.backend)
        return _models[key]


def _generate(
    setup: Setup, state: State, prompt: str | list[int], params: SamplingParams, max_new: int, stop: Sequence[str]
) -> Reply:
    """Continues from a state, whether or not this worker holds the session. The same state gives the same reply."""
    model = _model(setup)
    past = list(state.tokens)
    ids = model.encode(prompt, add_special=not past, parse_special=True) if isinstance(prompt, str) else list(prompt)
    session, reused = _session(setup, model, state, past + ids, exactly=not ids)
    try:
        if state.random is not None:
            session._rng.bit_generator.state = state.random
        tokens = list(session.generate((past + ids)[session.n_past :], params, max_new_tokens=max_new, stop=stop))
        stats = replace(session.stats, reused=reused, recomputed=max(0, len(past) - reused))
    finally:  # after an error, too: the next call rewinds to the prefix it shares
        with _lock:
            _held[state.key] = session
            while len(_held) > setup.max_sessions:
                _held.popitem(last=False)[1].close()
    after = replace(
        state, tokens=tuple(session.tokens), random=session._rng.bit_generator.state, seq_len=session.seq_len
    )
    return Reply(tokens, after, stats)


def _session(setup: Setup, model: Model, state: State, wanted: list[int], exactly: bool) -> tuple[Session, int]:
    """A session that holds a prefix of `wanted`, reused from a session on this worker, and the prefix's length."""
    with _lock:
        own = _held.pop(state.key, None)
        others = list(_held.values())
    if own is not None and exactly and own.tokens == wanted and own._logits is not None:
        return own, own.n_past
    most = max(0, len(wanted) - 1)  # at least one token is evaluated, for its logits
    if own is not None:
        reused = _back_to(own, min(agreeing(own.tokens, wanted), most))
        return own, reused
    session = model.create_session(seq_len=state.seq_len, kv_dtype=state.kv_dtype, seed=state.seed)
    donor = max(others, key=lambda s: agreeing(s.tokens, wanted), default=None)
    n = 0 if donor is None else min(agreeing(donor.tokens, wanted), most)
    alike = donor is not None and (donor.seq_len, donor.kv_dtype) == (session.seq_len, session.kv_dtype)
    if donor is None or n < MIN_SHARED or not alike:
        return session, 0
    copy = donor.fork(seed=state.seed)
    session.close()
    return copy, _back_to(copy, n)


def _back_to(session: Session, n_past: int) -> int:
    """Rewinds to `n_past`, or to 0 where sliding windows do not allow it; returns the position reached."""
    try:
        session.rewind(n_past)
    except TeachLlamaError:
        session.reset()
    return session.n_past


def _export(setup: Setup, key: str) -> bytes | None:
    """A session's file, as bytes; None if this worker does not hold the session."""
    with _lock:
        session = _held.get(key)
    if session is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "session")
        session.save(path)
        with open(path, "rb") as file:
            return file.read()


def _import(setup: Setup, key: str, data: bytes | None) -> int:
    """Loads a session from its file's bytes; returns how many positions were restored."""
    if data is None:
        return 0
    model = _model(setup)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "session")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        try:
            session = session_file.load(model, path)
        except SessionFileError:  # for example, too little memory: the next call evaluates the tokens
            return 0
    with _lock:
        _held[key] = session
    return session.restored


def _close(key: str) -> None:
    with _lock:
        session = _held.pop(key, None)
    if session is not None:
        session.close()


def _forget() -> None:
    """Closes all sessions and models of a worker."""
    with _lock:
        for session in _held.values():
            session.close()
        for model in _models.values():
            model.close()
        _held.clear()
        _models.clear()


# At the client --------------------------------------------------------------------------------------------------------


class WorkerLostError(TeachLlamaError):
    """The worker is gone. The cluster retries on another one, if there is one."""


class Cluster:
    """Sessions of one model on the workers of a Dask cluster.

    Args:
        client: a `distributed.Client`.
        model_path: a .gguf file or a name, as for `load_model`; every worker must find it there.
        routing: which worker runs a call. "prefix": a session stays on its worker, and a new one goes to the worker
            that holds the longest prefix of its text. "sticky": a session stays on its worker, and a new one goes to
            the worker with the fewest. "round robin": each call goes to the next worker, which has to evaluate the
            tokens it does not hold.
        weights, backend: as for `load_model`.
        max_sessions: how many sessions a worker holds. The least recently used one is closed, and recreated when it is
            used again.

    Raises:
        ParameterError: routing is none of those above, or max_sessions is not a whole number of at least 1.
    """

    def __init__(
        self,
        client: Client,
        model_path: str | os.PathLike[str],
        *,
        routing: str = "prefix",
        weights: str = "native",
        backend: str | None = None,
        max_sessions: int = 16,
    ):
        if routing not in ROUTINGS:
            raise ParameterError(f"routing is {routing!r}; expected one of {', '.join(map(repr, ROUTINGS))}")
        if isinstance(max_sessions, bool) or not isinstance(max_sessions, int) or max_sessions < 1:
            raise ParameterError(f"max_sessions is {max_sessions!r}; expected a whole number, at least 1")
        self.client, self.routing = client, routing
        self.setup = Setup(os.fspath(model_path), weights, backend, max_sessions)
        self.sessions: list[ClusterSession] = []
        self._drained: set[str] = set()
        self._turns = itertools.count()
        self._lock = threading.RLock()
        self._tokenizer: Tokenizer | None = None

    @property
    def workers(self) -> list[str]:
        """Addresses of the workers that accept sessions."""
        return sorted(address for address in self.client.nthreads() if address not in self._drained)

    def open_session(
        self, *, seq_len: int | None = None, kv_dtype: str = "f32", seed: int | None = None
    ) -> ClusterSession:
        """A new session; nothing is sent until it is used. Arguments: as for `Model.create_session`."""
        session = ClusterSession(self, State(uuid.uuid4().hex, seq_len, kv_dtype, seed))
        with self._lock:
            self.sessions.append(session)
        return session

    def move(self, session: ClusterSession, worker: str) -> int:
        """Moves a session to another worker, keys and values included.

        Returns:
            how many positions were restored: 0 if its worker no longer held it. The next call then evaluates its
            tokens.

        Raises:
            ParameterError: no such worker.
        """
        if worker not in self.workers:
            raise ParameterError(f"there is no worker {worker!r}; there are {', '.join(self.workers) or 'none'}")
        with session.lock:
            before, restored = session.worker, 0
            if before == worker:
                return len(session.state.tokens)
            if before is not None:
                try:
                    data = self._start(_export, self.setup, session.state.key, worker=before)
                    restored = self._wait(
                        self._start(_import, self.setup, session.state.key, data, worker=worker), worker
                    )
                    self._wait(self._start(_close, session.state.key, worker=before), before)
                except WorkerLostError:
                    restored = 0
            session.worker = worker
            return restored

    def drain(self, worker: str) -> int:
        """Moves all sessions off a worker, which then accepts no more; returns how many were moved."""
        if worker not in self.client.nthreads():
            raise ParameterError(f"there is no worker {worker!r}; there are {', '.join(self.workers) or 'none'}")
        self._drained.add(worker)
        if not self.workers:
            self._drained.discard(worker)
            raise TeachLlamaError(
                f"{worker} is the last worker: its sessions cannot be moved. Add another worker first"
            )
        with self._lock:
            here = [s for s in self.sessions if s.worker == worker]
        for session in here:
            self.move(session, self._least_loaded(self.workers))
        return len(here)

    def close(self) -> None:
        """Closes all sessions and the models on all workers; the Dask cluster stays as it is."""
        with self._lock:
            for session in list(self.sessions):
                session.state = replace(session.state, tokens=(), random=None)
            self.sessions.clear()
        self.client.run(_forget)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Cluster: {len(self.sessions)} sessions on {len(self.workers)} workers, {self.routing}>"

    def encode(self, prompt: str | Iterable[int], add_special: bool) -> list[int]:
        """Encodes a prompt with the model file's tokenizer, which is loaded in this process."""
        if not isinstance(prompt, str):
            return [int(i) for i in prompt]
        if self._tokenizer is None:
            from teachllama.gguf_file import open_gguf
            from teachllama.tokenizer import tokenizer_from_metadata

            with open_gguf(hub.find(self.setup.path), metadata_only=True) as file:
                self._tokenizer = tokenizer_from_metadata(file.metadata)
        return self._tokenizer.encode(prompt, add_special=add_special, parse_special=True)

    # ---- routing ----

    def _choose(self, session: ClusterSession, wanted: list[int]) -> str:
        alive = self._alive()
        if self.routing == "round robin":
            return alive[next(self._turns) % len(alive)]
        if session.worker in alive:
            return str(session.worker)
        if self.routing == "prefix":
            with self._lock:
                others = [s for s in self.sessions if s is not session and s.worker in alive]
            best = max(others, key=lambda s: agreeing(s.state.tokens, wanted), default=None)
            if best is not None and best.worker and agreeing(best.state.tokens, wanted) >= MIN_SHARED:
                return best.worker
        return self._least_loaded(alive)

    def _alive(self) -> list[str]:
        """The workers. Waits for one if there is none, since a killed process may be restarted."""
        until = time.monotonic() + PATIENCE_S
        while not (alive := self.workers):
            if time.monotonic() > until:
                raise TeachLlamaError(
                    f"no worker came back in {PATIENCE_S:g} s; start one, and call again: nothing was lost"
                )
            time.sleep(LOOK_S)
        return alive

    def _least_loaded(self, alive: list[str]) -> str:
        with self._lock:
            counts = {worker: sum(s.worker == worker for s in self.sessions) for worker in alive}
        return min(alive, key=lambda worker: (counts[worker], worker))

    def _start(self, work: Callable[..., Any], *args: Any, worker: str) -> Any:
        return self.client.submit(work, *args, workers=[worker], allow_other_workers=False, pure=False)

    def _wait(self, future: Any, worker: str) -> Any:
        """The result of a call; raises WorkerLostError if the worker is lost first."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker, TimeoutError

        while True:
            try:
                return future.result(timeout=LOOK_S)
            except TimeoutError:
                if worker in self.client.nthreads():
                    continue
            except (KilledWorker, CancelledError):
                pass
            future.cancel()
            raise WorkerLostError(f"worker {worker} is gone")


class ClusterSession:
    """A session somewhere on a cluster. Make one with `Cluster.open_session`.

    Attributes:
        worker: address of the worker that holds it; None until it is used.
        stats: statistics of the last `generate`. `reused` counts the positions that its worker already held,
            `recomputed` those that had to be evaluated again.
        lost: how many times its worker died during a call.
    """

    def __init__(self, cluster: Cluster, state: State):
        self.cluster, self.state = cluster, state
        self.worker: str | None = None
        self.stats = GenerationStats()
        self.lost = 0
        self.lock = threading.RLock()

    @property
    def tokens(self) -> list[int]:
        """All token ids so far."""
        return list(self.state.tokens)

    @property
    def n_past(self) -> int:
        """How many positions have been evaluated."""
        return len(self.state.tokens)

    def generate(
        self,
        prompt: str | Iterable[int],
        params: SamplingParams = GREEDY,
        *,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] = (),
    ) -> list[Token]:
        """Evaluates a prompt and returns the whole reply; see `Session.generate`.

        If the worker dies during the call, another one returns the same reply.

        Raises:
            TeachLlamaError: any error that `Session.generate` raises on the worker, or no worker is left.
        """
        with self.lock:
            ids = self.cluster.encode(prompt, add_special=not self.state.tokens)
            stops = [stop] if isinstance(stop, str) else list(stop)
            while True:
                worker = self.cluster._choose(self, [*self.state.tokens, *ids])
                call = self.cluster._start(
                    _generate, self.cluster.setup, self.state, ids, params, max_new_tokens, stops, worker=worker
                )
                self.worker = worker
                try:
                    reply: Reply = self.cluster._wait(call, worker)
                except WorkerLostError:
                    self.worker, self.lost = None, self.lost + 1
                    continue
                self.state, self.stats = reply.state, reply.stats
                return reply.tokens

    def close(self) -> None:
        """Closes the session, here and on its worker."""
        with self.lock, self.cluster._lock:
            if self in self.cluster.sessions:
                self.cluster.sessions.remove(self)
            worker, self.worker = self.worker, None
        if worker is not None and worker in self.cluster.client.nthreads():
            try:
                self.cluster._wait(self.cluster._start(_close, self.state.key, worker=worker), worker)
            except WorkerLostError:
                pass

    def __enter__(self) -> ClusterSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ClusterSession: n_past {self.n_past}, on {self.worker or 'no worker yet'}>"
