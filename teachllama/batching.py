"""`eval_batch`: several sessions' next tokens in one pass over the weights. The caller chooses the tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import numpy as np

from teachllama.batch import Batch, Run
from teachllama.errors import ContextFullError, ParameterError
from teachllama.session import Session, checked_ids


def eval_batch(work: Iterable[tuple[Session, Iterable[int]]], *, wanted: str = "last") -> list[np.ndarray]:
    """Runs tokens of several sessions through their model together, and advances each.

    An error, or Ctrl-C, leaves every session where it was before the call.

    Args:
        work: (session, token ids) pairs; the sessions must be distinct, and of the same model.
        wanted: "last" for the logits of each session's last token, "all" for those of every token.

    Returns:
        float32 logits for each session: (vocab_size,), or (n, vocab_size) if `wanted` is "all".

    Raises:
        ParameterError: there are no sessions, one is given twice, they are of several models, or `wanted` is unknown.
        TokenError, ContextFullError, PoolFullError, ClosedError: raised for one session, which the message names.
    """
    pairs = list(work)
    if wanted not in ("last", "all"):
        raise ParameterError(f"wanted is {wanted!r}; expected 'last' or 'all'")
    if not pairs or any(not isinstance(p, tuple) or len(p) != 2 or not isinstance(p[0], Session) for p in pairs):
        raise ParameterError(f"expected (session, token ids) pairs, one or more; found {pairs!r:.100}")
    sessions = [session for session, _ in pairs]
    for i, session in enumerate(sessions):
        if session in sessions[:i]:
            raise ParameterError(f"session {session.number} is in the batch twice; give all its tokens at once")
        if session.model is not sessions[0].model:
            raise ParameterError(
                f"sessions {sessions[0].number} and {session.number} are of different models; make a batch for each"
            )
        session._check_open()
    ids = [checked_ids(tokens, session.model.config.vocab_size) for session, tokens in pairs]
    with contextlib.ExitStack() as held:
        for session in sorted(sessions, key=lambda s: s.number):  # always in this order, to avoid deadlock
            held.enter_context(session.lock)
        for session, new in zip(sessions, ids, strict=True):
            session._check_free()
            if session.n_past + len(new) > session.seq_len:
                raise ContextFullError(
                    f"{len(new)} token(s) at position {session.n_past} of session {session.number} do not fit in its "
                    f"seq_len {session.seq_len}. No session was changed"
                )
        for session in sessions:
            held.callback(setattr, session, "_running", "")  # resets each one, even after an interrupt in this loop
            session._running = "eval_batch()"
        return _eval(sessions, ids, wanted == "all")


def _eval(sessions: Sequence[Session], ids: Sequence[np.ndarray], every: bool) -> list[np.ndarray]:
    """Evaluates the tokens. The sessions must be locked, and their tokens must fit."""
    model, before = sessions[0].model, [(s.n_past, s._logits) for s in sessions]
    rows: list[list[np.ndarray]] = [[] for _ in ids]
    done = [0] * len(ids)
    try:
        for session, new in zip(sessions, ids, strict=True):
            session._cache.prepare(session.n_past, session.n_past + len(new))
        while batch := _next_batch(sessions, ids, done, every):
            for row, i in zip(model.run(batch[0]), batch[1], strict=False):  # a batch without wanted rows returns one
                rows[i].append(row)
        for session in sessions:
            session._check_open()  # otherwise these logits may come from freed memory
        out = [np.stack(r) if every else r[-1].copy() for r in rows]
        for session, row, new in zip(sessions, rows, ids, strict=True):
            session._logits = row[-1].copy()
            session.tokens.extend(new.tolist())
    except BaseException:
        for session, (n_past, last) in zip(sessions, before, strict=True):
            session._logits = None if last is None else last.view()  # a new object, as in Session._eval: drops guesses
            del session.tokens[n_past:]
            if not session.closed:
                session._cache.release_from(n_past)
        raise
    for session in sessions:
        session._cache.forget_before(session.n_past)
    return out


def _next_batch(
    sessions: Sequence[Session], ids: Sequence[np.ndarray], done: list[int], every: bool
) -> tuple[Batch, list[int]] | None:
    """The next batch that the backend takes, and the session index of each wanted row; None when all are done."""
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    runs: list[Run] = []
    wanted: list[int] = []
    whose: list[int] = []
    n, most = 0, min(session.model.max_batch(session.n_past + len(new)) for session, new in zip(sessions, ids))
    for i, (session, new) in enumerate(zip(sessions, ids, strict=True)):
        part = new[done[i] : done[i] + most - n]
        if len(part):
            start = session.n_past + done[i]
            tokens.append(part)
            positions.append(np.arange(start, start + len(part)))
            runs.append(Run(session._cache, n, n + len(part)))
            done[i] += len(part)
            if every or done[i] == len(new):
                first = n if every else n + len(part) - 1
                wanted.extend(range(first, n + len(part)))
                whose.extend([i] * (n + len(part) - first))
            n += len(part)
    if not n:
        return None
    rows = np.array(wanted or [n - 1], np.intp)
    batch = Batch(np.concatenate(tokens), np.concatenate(positions), tuple(runs), rows)
    return batch, whose
