"""Threads that run a compiled job in parallel.

A `Team` is the calling thread and n - 1 helpers. Helpers are Python threads that stay inside compiled code, where they
need no interpreter lock. They poll for the next job for about a millisecond, so that they are awake for the next token
of a reply, and then sleep until there is one.

Independent of models.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np

from teachllama.kernels.fields import GENERATION, JOB_AT, N_SYNC

PATIENCE = 100_000  # polls for the next job, about a millisecond, before a helper sleeps


class Team:
    """Runs jobs one at a time: a second Python thread with a job waits its turn.

    Args:
        serve: the compiled `run.serve`.
    """

    def __init__(self, serve: Callable[[int, int, int, int], int]):
        self._serve, self._wake = serve, threading.Condition()
        self.turn = threading.RLock()  # held while a job is prepared and run
        sync = np.zeros(N_SYNC + 8, np.int64)
        self._sync = sync[-sync.ctypes.data % 64 // 8 :]  # aligned to a cache line: no two counters share one
        self._helpers: set[int] = set()  # numbers of the live helpers
        self._n_threads = 0  # of the latest job
        self._running = False  # whether that job runs now
        self._n_asleep = 0

    def run(self, job: int, n_threads: int) -> None:
        """Runs the job at an address on n threads, this one among them, and returns when it is done.

        Ctrl-C takes effect before or after the job, not during it: the job starts inside the compiled call.
        """
        with self.turn:
            self._sync[JOB_AT] = job
            try:
                with self._wake:
                    self._n_threads, self._running = n_threads, True
                    for thread in range(1, n_threads):
                        if thread in self._helpers:
                            continue
                        self._helpers.add(thread)
                        seen = int(self._sync[GENERATION])
                        threading.Thread(target=self._help, args=(thread, seen), name="teachllama", daemon=True).start()
                    if self._n_asleep:
                        self._wake.notify_all()
                self._serve(self._sync.ctypes.data, 0, n_threads, 0)
            finally:
                self._running = False

    def _help(self, thread: int, seen: int) -> None:
        while True:
            seen = self._serve(self._sync.ctypes.data, thread, seen, PATIENCE)
            with self._wake:
                while not self._running and thread < self._n_threads:
                    self._n_asleep += 1
                    self._wake.wait()
                    self._n_asleep -= 1
                if thread >= self._n_threads:  # fewer threads are wanted now: retire it rather than let it spin
                    self._helpers.discard(thread)
                    return


_team: Team | None = None
_lock = threading.Lock()


def team(serve: Callable[[int, int, int, int], int]) -> Team:
    """This process's team."""
    global _team
    with _lock:
        if _team is None:
            _team = Team(serve)
        return _team


def _forget() -> None:
    """After a fork the child has no helpers, and perhaps a lock that will never be released: it makes its own."""
    global _team, _lock
    _team, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
