"""Forked processes: they end, share no helper with their parent, and never wait for a lock held by a lost thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.tools import tiny_model

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

COMMON = """
import os, signal, sys, threading, time, warnings
import numpy as np
import teachllama as tl
from teachllama.chat import sandbox

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads

def rendered(n, length=1):
    return sandbox.render("{{ n * n }} {{ 'x' * length }}", [{"n": n, "length": length}]) == [f"{n * n} {'x' * length}"]

def forked(work):
    "A child that does some work and then ends as programs end: -> its pid."
    pid = os.fork()
    if pid == 0:
        sys.exit(0 if work() else 3)
    return pid

def ended(pids, seconds=60):
    "Exit statuses; 'hangs' for those that had to be killed."
    statuses, deadline = [], time.monotonic() + seconds
    for pid in pids:
        done, status = 0, 0
        while not done and time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0 if done else 0.005)
        if not done:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        statuses.append(os.waitstatus_to_exitcode(status) if done else "hangs")
    return statuses

def in_the_background(work):
    "Repeats work in a thread until the function that is returned is called; that one returns what failed."
    stop, failures = threading.Event(), []
    def repeat():
        try:
            while not stop.is_set():
                if not work():
                    failures.append("a wrong result")
        except BaseException as e:
            failures.append(repr(e))
    thread = threading.Thread(target=repeat)
    thread.start()
    def end():
        stop.set()
        thread.join(60)
        return failures + ["hangs"] * thread.is_alive()
    return end
"""


def script(code: str, *args: object, most: float = 240) -> str:
    """Runs `COMMON` and code in a separate process; returns its output."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", COMMON + textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=most)
    finally:  # kill children too: they would run forever
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{err[-4000:]}"
    assert "Exception ignored" not in err, err[-4000:]
    return out.strip()


def gone(pid: int) -> bool:
    """Waits for a process to end; True if it did."""
    for _ in range(1000):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


# ---- templates ----


def test_a_forked_child_ends_after_its_parent_has_rendered_and_leaves_the_parents_renderer_alone() -> None:
    out = script(
        """
        rendered(3)
        theirs = sandbox._renderer._process
        print(ended([forked(lambda: True) for _ in range(3)]))
        print(sandbox._renderer._process is theirs, theirs.poll(), rendered(4), sandbox._renderer._process is theirs)
        """
    )
    assert out.splitlines() == ["[0, 0, 0]", "True None True True"]


def test_a_forked_child_renders_in_a_process_of_its_own_which_ends_with_it() -> None:
    out = script(
        """
        rendered(3)
        theirs = sandbox._renderer._process.pid
        read, write = os.pipe()

        def work():
            right = rendered(5) and rendered(6)
            os.write(write, b"%d " % sandbox._renderer._process.pid)
            return right and sandbox._renderer._process.pid != theirs

        def ends_without_a_goodbye():
            os._exit(0 if work() else 3)

        print(ended([forked(work), forked(work), forked(ends_without_a_goodbye)]), rendered(7))
        print(os.read(read, 100).decode())
        """
    )
    first, pids = out.splitlines()
    assert first == "[0, 0, 0] True"
    assert len(set(pids.split())) == 3
    assert all(gone(int(pid)) for pid in pids.split())


@pytest.mark.parametrize("length", [1, 300_000])
def test_children_forked_while_a_thread_renders_end_with_right_results(length: int) -> None:
    out = script(
        """
        length = int(sys.argv[1])
        end = in_the_background(lambda: rendered(9, length))
        pids = []
        for i in range(40):
            pids.append(forked(lambda: rendered(i, length) if i % 2 else True))
            time.sleep(0.002 * (i % 5))
        print(set(ended(pids)), end(), rendered(8))
        """,
        length,
    )
    assert out == "{0} [] True"


def test_children_forked_while_a_thread_starts_and_ends_renderers_end_with_right_results() -> None:
    out = script(
        """
        def churn():
            right = rendered(9)
            sandbox._renderer.stop()
            return right

        end = in_the_background(churn)
        print(set(ended([forked(lambda: rendered(i) if i % 4 == 0 else True) for i in range(40)])), end())
        """
    )
    assert out == "{0} []"


def test_a_renderer_ends_with_the_process_that_started_it_although_a_forked_child_lives_on() -> None:
    # A child that holds the other ends of the renderer's pipes would keep it alive.
    code = """
rendered(3)
child = os.fork()
if child == 0:
    time.sleep(100)
print(sandbox._renderer._process.pid, child, flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-u", "-c", COMMON + code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as out:
        renderer, child = map(int, out.readline().split())
    try:
        parent.kill()
        parent.wait()
        assert gone(renderer)
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


# ---- evaluation ----

EVALUATE = """
tl.set_num_threads(2)
model = tl.load_model(sys.argv[1], weights="f32" if sys.argv[2] == "numpy" else "native", backend=sys.argv[2])
session, other = model.create_session(seq_len=200, seed=1), model.create_session(seq_len=200, seed=2)
ids = [int(i) for i in np.random.default_rng(0).integers(0, 256, 60)]
WARM = tl.SamplingParams(temperature=1.0)
other.eval(ids[:40])
expected = other.fork().eval(ids[40:])

def works_in_full():
    "This child can evaluate, go on with a session that nobody used, and with one that a thread was using."
    fresh = model.create_session(seq_len=100)
    fresh.eval(ids[:40])
    right = all(np.allclose(s.eval(ids[40:]), expected, atol=1e-4) for s in (fresh, other))
    tokens = session.tokens[:]
    replay = model.create_session(seq_len=200)
    if tokens:
        found = replay.eval(tokens)
        right &= session._logits is None or np.allclose(session.logits, found, atol=1e-3)
    right &= np.allclose(session.eval([7]), replay.eval([7]), atol=1e-3)
    session.sample(WARM)
    session.fork().close()
    session.reset()
    session.close()
    return bool(right) and rendered(5)
"""


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_children_forked_while_a_thread_evaluates_end_with_right_results(
    tmp_path: Path, backend: str, arch: str
) -> None:
    sizes = {"embedding_length": 64, "feed_forward_length": 96, "context_length": 256}
    sizes |= {"attention.key_length": 16, "attention.value_length": 16}
    out = script(
        EVALUATE
        + textwrap.dedent(
            """
            def work():
                session.eval(ids)
                for token in session.generate([1], WARM, max_new_tokens=5):
                    pass
                session.rewind(session.n_past - 3)
                session.fork().close()
                session.eval(ids[:3])
                session.reset()
                return session.n_past == 0

            rendered(1)
            sys.setswitchinterval(1e-4)
            end = in_the_background(work)
            pids = []
            for i in range(30):
                pids.append(forked(works_in_full))
                time.sleep(0.001 * (i % 7))
            statuses = ended(pids)
            print({s: statuses.count(s) for s in set(statuses)}, end())
            """
        ),
        tiny_model(tmp_path / "t.gguf", arch, **{f"{arch}.{key}": value for key, value in sizes.items()}),
        backend,
    )
    assert out == "{0: 30} []"


def test_a_thread_holds_a_sessions_lock_at_the_fork_and_the_child_uses_the_session(tmp_path: Path) -> None:
    out = script(
        EVALUATE
        + textwrap.dedent(
            """
            session.eval(ids[:3])
            for holds in (session, session._rng.bit_generator):  # our lock, and NumPy's
                ready, go_on = threading.Event(), threading.Event()
                def hold(lock):
                    with session.lock, lock:
                        ready.set()
                        go_on.wait()
                thread = threading.Thread(target=hold, args=(holds.lock,))
                thread.start()
                ready.wait()
                print(ended([forked(works_in_full)], 20))
                go_on.set()
                thread.join()
            with session.lock:  # held by the thread that forks: in the child still
                print(ended([forked(works_in_full)], 20))
            print(session.eval([1]).shape == session.eval([1]).shape)
            """
        ),
        tiny_model(tmp_path / "t.gguf"),
        "numpy",
    )
    assert out.splitlines() == ["[0]"] * 3 + ["True"]


def test_a_fork_waits_for_kernels_that_another_thread_compiles_and_the_child_has_them() -> None:
    out = script(
        """
        from teachllama.kernels import machine_code

        started, finish = threading.Event(), threading.Event()
        compiled = machine_code.serve

        def slow_read(path, read=machine_code._read):
            started.set()
            finish.wait()
            return read(path)

        machine_code.serve()
        machine_code._serve, machine_code._read = None, slow_read
        thread = threading.Thread(target=machine_code.serve)
        thread.start()
        started.wait()
        threading.Timer(0.3, finish.set).start()
        pid = forked(lambda: machine_code._serve is not None and machine_code.serve() is machine_code._serve)
        print(finish.is_set(), ended([pid]))
        thread.join()
        print(ended([forked(lambda: ended([forked(lambda: machine_code.serve() is not None)]) == [0])]))
        """
    )
    assert out.splitlines() == ["True [0]", "[0]"]


# ---- multiprocessing ----


def test_a_pool_of_forked_workers_renders_and_evaluates_beside_its_parent(tmp_path: Path) -> None:
    out = script(
        EVALUATE
        + textwrap.dedent(
            """
            import multiprocessing

            def work(i):
                fresh = model.create_session(seq_len=100)
                fresh.eval(ids[:40])
                right = np.allclose(fresh.eval(ids[40:]), expected, atol=1e-4)
                return bool(right) and rendered(i), sandbox._renderer._process.pid

            rendered(1)
            end = in_the_background(lambda: rendered(2) and session.eval([1]) is not None and session.reset() is None)
            for how in ("close", "terminate"):
                with multiprocessing.get_context("fork").Pool(2) as pool:
                    results = pool.map(work, range(12))
                    if how == "close":
                        pool.close()
                        pool.join()
                pids = {pid for _, pid in results}
                print(all(right for right, _ in results), sandbox._renderer._process.pid not in pids, *pids)
            print(end())
            """
        ),
        tiny_model(tmp_path / "t.gguf"),
        "numpy",
    )
    *pools, last = out.splitlines()
    assert last == "[]"
    assert len(pools) == 2
    for line in pools:
        right, of_their_own, *pids = line.split()
        assert (right, of_their_own) == ("True", "True")
        assert pids
        assert all(gone(int(pid)) for pid in pids)


@pytest.mark.notebook
def test_a_pool_in_a_notebook_ends(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    path = tiny_model(tmp_path / "t.gguf")
    cells = [
        f"""
import multiprocessing, os, sys
import teachllama as tl
from teachllama.chat import Chat
model = tl.load_model({str(path)!r}, backend="numpy")
def answer(text):
    with model.create_session(seed=1) as session:
        return Chat(session, template="chatml").ask(text, max_new_tokens=4)
first = answer("the")
""",
        """
with multiprocessing.get_context("fork").Pool(2) as pool:
    answers = pool.map(answer, ["the"] * 6)
assert answers == [first] * 6
""",
        """
pid = os.fork()
if pid == 0:
    os._exit(0 if answer("the") == first else 3)
assert os.waitpid(pid, 0)[1] == 0
assert answer("the") == first
""",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
