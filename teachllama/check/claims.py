"""A notebook's claims about time or memory, which hold on an idle machine. A failed claim never stops a notebook."""

from __future__ import annotations

import time

import psutil

LOOK_S = 0.25


def claim(holds: bool, that: str) -> None:
    """Prints nothing if a measured claim holds. If it does not, prints that, and how busy the machine is.

    Args:
        holds: the comparison of figures measured just now.
        that: the claim in words, such as "reading is faster than writing".
    """
    if holds:
        return
    cores = cores_used_by_others()
    others = (
        f"other programs use {cores:.1f} of {psutil.cpu_count()} cores" if cores >= 0.1 else "nothing else runs now"
    )
    print(f"busy: expected that {that}; this run measured otherwise.")
    print(f"busy: {others}. Run this cell again when the machine is idle.")


def cores_used_by_others(seconds: float = LOOK_S) -> float:
    """The average number of this machine's processors that were busy with something other than this process.

    Args:
        seconds: how long to measure.
    """
    process = psutil.Process()

    def busy() -> float:
        used, mine = psutil.cpu_times(), process.cpu_times()
        steal = getattr(used, "steal", 0.0)  # taken by other machines on the same host
        return used.user + used.system + getattr(used, "nice", 0.0) + steal - mine.user - mine.system

    before, started = busy(), time.perf_counter()
    time.sleep(seconds)
    return max(0.0, (busy() - before) / (time.perf_counter() - started))
