"""What a notebook claims about time or memory: a statement that holds on an idle machine, and never stops a reader."""

from __future__ import annotations

import time

import psutil

LOOK_S = 0.25


def claim(holds: bool, that: str) -> None:
    """Prints nothing where a measured statement holds; where it does not, says so, and how busy the machine is.

    Args:
        holds: the comparison, made of figures measured just now.
        that: what was expected, in words: "reading is faster than writing".
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
    """How many of this machine's processors were busy with something other than this process, on average.

    Args:
        seconds: how long to look.
    """
    process = psutil.Process()

    def busy() -> float:
        used, mine = psutil.cpu_times(), process.cpu_times()
        steal = getattr(used, "steal", 0.0)  # taken by other machines on the same host
        return used.user + used.system + getattr(used, "nice", 0.0) + steal - mine.user - mine.system

    before, started = busy(), time.perf_counter()
    time.sleep(seconds)
    return max(0.0, (busy() - before) / (time.perf_counter() - started))
