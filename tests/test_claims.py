"""Claims about time and memory in notebooks: silent where they hold, and never an error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from teachllama.check import claims, core
from teachllama.check.claims import claim, cores_used_by_others

ROOT = Path(__file__).parents[1]


def test_a_claim_that_holds_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert claim(True, "one is one") is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("cores", "words"), [(0.0, "nothing else runs"), (1.54, "1.5 of")])
def test_a_claim_that_does_not_hold_says_what_was_expected_and_raises_nothing(
    cores: float, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "cores_used_by_others", lambda: cores)
    assert claim(False, "reading is faster than writing") is None
    out = capsys.readouterr().out
    assert "expected that reading is faster than writing" in out
    assert words in out
    assert all(line.startswith("busy: ") for line in out.splitlines())
    # nbval's comparison of outputs must ignore these lines
    nbval = pytest.importorskip("nbval.plugin")
    config = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    for before, after in (("before\n", "after\n"), ("", "after\n"), ("before\n", "")):
        text = before + out + after
        for pattern, replacement in nbval.get_sanitize_patterns(config):
            text = re.sub(pattern, replacement, text)
        assert text == before + after


def test_what_others_use_leaves_out_what_this_process_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        found = [cores_used_by_others() for _ in range(20)]  # the hog may not be scheduled at once
        assert max(found) > 0.1
        assert max(found) < psutil.cpu_count() + 1
    finally:
        hog.kill()
        hog.wait()

    # a machine on which only this process runs
    class Times:
        user, system, steal = 5.0, 0.0, 0.0

        def __init__(self, seconds: float = 0.0):
            self.user += seconds

    seconds = iter([0.0, 10.0])
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(next(seconds)))
    own = iter([0.0, 10.0])
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda self: Times(next(own)))
    assert cores_used_by_others(0.01) == 0


TIMED = re.compile(r"_tps|_ms\b|seconds|slow\b|fast\b|flops|resident|report\(|given_back|abs\(left\)|before - after")


def test_no_notebook_asserts_a_time_or_a_whole_process_memory() -> None:
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                found += [
                    f"{path.name} {cell['id']}: {line.strip()}"
                    for line in "".join(cell["source"]).splitlines()
                    if line.strip().startswith("assert ") and TIMED.search(line)
                ]
    assert found == []


def test_a_check_waits_for_code_that_a_busy_machine_keeps_waiting_and_ends_what_never_ends() -> None:
    def waits_for_its_turn() -> int:
        time.sleep(0.4)  # as if other processes ran: the clock advances, but this process uses no CPU time
        return 7

    def works() -> None:
        while True:
            pass

    stop = threading.Event()

    def another_answer() -> None:  # an earlier answer's thread that could not be stopped
        while not stop.is_set():
            pass

    beside = threading.Thread(target=another_answer, daemon=True)
    if hasattr(time, "pthread_getcpuclockid"):  # without it, a thread's CPU time cannot be measured
        beside.start()
    try:
        assert core.run(waits_for_its_turn, seconds=0.1).value == 7
    finally:
        stop.set()
    for endless, seconds in ((works, 0.1), (lambda: time.sleep(3), 0.02)):
        failure = core.run(endless, seconds=seconds).failure
        assert failure
        assert failure.mistake == "endless"
