"""The puzzle of notebook 04: a session that several references keep alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from teachllama import memory
from teachllama.errors import TeachLlamaError
from teachllama.lessons.common.check import CheckResult

if TYPE_CHECKING:
    from teachllama.model import Model
    from teachllama.session import Session


class Progress:
    """A session's progress. It and the session refer to each other: a reference cycle."""

    def __init__(self, of: Session):
        self.of = of


class LeakPuzzle:
    """Hands over its four objects when unpacked; then it has only weak references to the session."""

    def __init__(self, model: Model):
        session = model.create_session(seq_len=min(256, model.config.seq_len), seed=0)
        session.eval(model.encode("Once upon a time")[: session.seq_len])
        session.progress = Progress(session)  # type: ignore[attr-defined]

        def on_token(piece: str) -> str:
            return f"{session.n_past}: {piece}"

        stories = [("Once upon a time", session)]
        self._things: tuple[Any, ...] = (session, stories, session.k_cache[0], on_token)
        self._session, self._watch = weakref.ref(session), memory.watch(session)
        self._n_collections = _n_collections()

    def __iter__(self) -> Iterator[Any]:
        things, self._things = self._things, ()
        if not things:
            raise TeachLlamaError("this puzzle has handed its things over; check.leak_puzzle(model) makes another")
        return iter(things)

    def __repr__(self) -> str:
        if self._things:
            return f"<puzzle. {_UNPACK}>"
        return f"<puzzle: its session is {'alive' if self._watch.alive else 'gone'}>"


def leak_puzzle(model: Model) -> LeakPuzzle:
    """A session that several references keep alive. Unpack it: `session, stories, picture, on_token = puzzle`.

    `stories` is a list, `picture` a view of the cache, `on_token` a function. The session is part of a reference
    cycle. To solve the puzzle, release every reference, so that the session and its memory are freed, then call
    `leak_released(puzzle)`.
    """
    return LeakPuzzle(model)


def _n_collections() -> int:
    return int(gc.get_stats()[-1]["collections"])


def leak_released(puzzle: object) -> CheckResult:
    """Checks whether the puzzle's session is gone and its memory freed; if not, lists what still refers to it."""
    if type(puzzle) is not LeakPuzzle:
        return CheckResult(False, "Give the puzzle that check.leak_puzzle(model) made.", "type")
    if puzzle._things:
        return CheckResult(False, f"The puzzle itself still holds everything. {_UNPACK}", "packed")
    collected = _n_collections() > puzzle._n_collections
    session = puzzle._session()
    closed = session is not None and session.closed
    del session
    watch = puzzle._watch
    del puzzle  # so that this call's own variables are not among the holders
    collecting = gc.isenabled()
    gc.disable()  # the check itself must not free anything
    try:
        report = watch.holders()
    finally:
        if collecting:
            gc.enable()
    strong = [holder.kind for holder in report if holder.kind not in ("view", "cycle")]
    named = [kind for kind in strong if kind in ("variable", "local")]
    if not report and not watch.alive:
        return CheckResult(True, "The session is gone, and its memory has been given back.")
    if closed:
        mistake = "closed_only"
    elif len(strong) - len(named) >= 2:  # stories and on_token both remain
        mistake = "collected_only" if collected else "untouched" if named else "name_only"
    elif strong:
        mistake = "output" if set(strong) == {"output"} else "still_held"
    else:
        mistake = "cycle" if watch.alive else "view"
    holders = "\n".join(f"- {holder.text}" for holder in report)
    return CheckResult(False, f"{_HELD[mistake]}\nStill holding on:\n{holders}", mistake)


_UNPACK = "Unpack it: session, stories, picture, on_token = puzzle."
_HELD = {
    "untouched": "Nothing has let go of it yet. teachllama.memory.who_refers_to(session) tells who holds it.",
    "name_only": "del removed a name. The object stays for as long as anybody else refers to it, and others do.",
    "collected_only": "The garbage collector has run and had to leave it: it frees only what nobody can reach.",
    "closed_only": "close() gave the cache's memory back at once, whoever refers to it. The session object lives on, "
    "of no more use, until the last reference to it goes.",
    "output": "Only the notebook's memory of what it displayed holds it now.",
    "still_held": "Some have let go, but not all.",
    "cycle": "Nobody can reach it any more, but the session and an object of its own refer to each other. They go when "
    "the garbage collector happens to run, some time later.",
    "view": "The session is gone, and an array that looks into its cache is not: it keeps the cache's place in memory.",
}
