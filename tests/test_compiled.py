"""The compiled forward pass: equal to `forward.py` for any file, any number of threads, and after interruptions."""

from __future__ import annotations

import _thread
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama import threads
from tests.conftest import golden
from tests.kernel_tools import NATIVE, native_model
from tests.tools import tiny_metadata, tiny_model, tiny_tensors, write_gguf

pytest.importorskip("numba")
pytestmark = pytest.mark.slow

few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def llama(**more: Any) -> dict[str, Any]:
    """Dimensions that the kernels support, otherwise small and uneven."""
    sizes = {"embedding_length": 64, "feed_forward_length": 96, "context_length": 1200}
    return {f"llama.{k}": v for k, v in (sizes | more).items()}


def gemma(**more: Any) -> dict[str, Any]:
    sizes = {"embedding_length": 96, "feed_forward_length": 160, "context_length": 1200}
    sizes |= {"attention.head_count": 2, "attention.head_count_kv": 1}
    return {f"gemma3.{k}": v for k, v in (sizes | more).items()}


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", llama()),
    "llama of one KV head": ("llama", llama(**{"attention.head_count_kv": 1})),
    "llama without grouping": ("llama", llama(**{"attention.head_count_kv": 4})),
    "llama of three heads": (
        "llama",
        llama(embedding_length=96, **{"attention.head_count": 6, "attention.head_count_kv": 2}),
    ),
    "unequal key and value lengths": (
        "llama",
        llama(**{"attention.key_length": 48, "attention.value_length": 16}),
    ),
    "half of each head rotates": ("llama", llama(**{"rope.dimension_count": 8})),
    "gemma3 past its window of 8": ("gemma3", gemma()),
    "gemma3 with a window over tiles": ("gemma3", gemma(**{"attention.sliding_window": 40})),
    "gemma3 of 300 positions a window": ("gemma3", gemma(**{"attention.sliding_window": 300})),
}


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    """Compiles the kernels before any test, so that no test times out."""
    from teachllama.kernels import machine_code as cache

    cache.serve()


def make(folder: Path, shape: str, kind: T = T.F32) -> Path:
    arch, overrides = SHAPES[shape]
    return native_model(folder / f"{kind.name}.gguf", kind, arch, **overrides)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[tl.Model, tl.Model]]]:
    """Per shape, a model on the compiled backend and the reference: all float32, in NumPy."""
    folder = tmp_path_factory.mktemp("models")
    pairs = {}
    for i, shape in enumerate(SHAPES):
        (folder / str(i)).mkdir()
        kind = (T.F32, T.Q8_0, T.Q4_1, T.F16)[i % 4]
        path = make(folder / str(i), shape, kind)
        pairs[shape] = (tl.load_model(path), tl.load_model(path, weights="f32", backend="numpy"))
        assert pairs[shape][0].backend == "numba"
    yield pairs
    for pair in pairs.values():
        for model in pair:
            model.close()


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 268, n).tolist()


def evaluated(model: tl.Model, ids: list[int], sizes: list[int], all_logits: bool = True, **how: Any) -> np.ndarray:
    """Evaluates ids in calls of these sizes, repeated as needed; returns the logits of all calls, stacked."""
    rows, at, turn = [], 0, 0
    with model.create_session(seq_len=len(ids), **how) as session:
        while at < len(ids):
            part = ids[at : at + sizes[turn % len(sizes)]]
            rows.append(np.atleast_2d(session.eval(part, all_logits=all_logits)))
            at, turn = at + len(part), turn + 1
    return np.concatenate(rows)


def assert_equal(got: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=relative * np.abs(expected).max())


# ---- equal to the reference ----


@pytest.mark.parametrize("shape", SHAPES)
def test_token_by_token_in_chunks_and_at_once_equal_the_reference(
    pairs: dict[str, tuple[tl.Model, tl.Model]], shape: str
) -> None:
    model, reference = pairs[shape]
    ids = tokens(75)
    expected = evaluated(reference, ids, [75])
    for sizes in ([75], [1], [33, 1, 17], [16, 2, 3]):
        assert_equal(evaluated(model, ids, sizes), expected)


@pytest.mark.parametrize("shape", ["llama", "gemma3 with a window over tiles", "gemma3 of 300 positions a window"])
@given(sizes=st.lists(st.integers(1, 130), min_size=1, max_size=5), n=st.integers(1, 400), seed=st.integers(0, 99))
@few
def test_calls_of_any_sizes_equal_the_reference(
    pairs: dict[str, tuple[tl.Model, tl.Model]], shape: str, sizes: list[int], n: int, seed: int
) -> None:
    model, reference = pairs[shape]
    ids = tokens(n, seed)
    sizes.append(max(sizes) + 20)
    assert_equal(evaluated(model, ids, sizes), evaluated(reference, ids, [n]))


@pytest.mark.parametrize("kind", NATIVE, ids=lambda k: k.name)
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_every_native_type_equals_the_reference_as_blocks_and_as_f32(tmp_path: Path, kind: T, arch: str) -> None:
    columns = 256 if kind in (T.Q4_K, T.Q5_K, T.Q6_K) else 64
    sizes = {"embedding_length": columns, "feed_forward_length": columns, "block_count": 2}
    sizes |= {"attention.head_count": columns // 16, "attention.key_length": 16, "attention.value_length": 16}
    path = native_model(tmp_path / "t.gguf", kind, arch, **{f"{arch}.{k}": v for k, v in sizes.items()})
    ids = tokens(41)
    with tl.load_model(path, weights="f32", backend="numpy") as reference:
        expected = evaluated(reference, ids, [41])
    for weights in ("native", "f32"):
        with tl.load_model(path, weights=weights, backend="numba") as model:
            assert_equal(evaluated(model, ids, [41]), expected)
            assert_equal(evaluated(model, ids, [1]), expected)
    with tl.load_model(path, weights="native", backend="numpy") as model:
        assert_equal(evaluated(model, ids, [41]), expected)


@pytest.mark.parametrize("shape", ["llama", "gemma3 of 300 positions a window"])
def test_far_into_the_cache_over_several_chunks_equals_the_reference(
    pairs: dict[str, tuple[tl.Model, tl.Model]], shape: str
) -> None:
    model, reference = pairs[shape]
    ids = tokens(1100)
    for how in ({}, {"kv_dtype": "f16"}):
        with model.create_session(seq_len=1100, **how) as a, reference.create_session(seq_len=1100, **how) as b:
            for part in (ids[:1000], ids[1000:1001], ids[1001:1002], ids[1002:1060], *([i] for i in ids[1060:])):
                # a key may round to the other float16 neighbour, which moves logits by more than float32 rounding
                assert_equal(a.eval(part), b.eval(part), 2e-3 if how else 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision_caches_equal_the_references_own(
    pairs: dict[str, tuple[tl.Model, tl.Model]], shape: str
) -> None:
    model, reference = pairs[shape]
    ids = tokens(60, seed=1)
    expected = evaluated(reference, ids, [60], kv_dtype="f16")
    for sizes in ([60], [1], [20]):
        assert_equal(evaluated(model, ids, sizes, kv_dtype="f16"), expected, 2e-3)


def test_windows_are_the_same_when_the_whole_cache_is_kept(pairs: dict[str, tuple[tl.Model, tl.Model]]) -> None:
    model, _ = pairs["gemma3 past its window of 8"]
    ids = tokens(200)
    for sizes in ([200], [1], [50]):
        whole = evaluated(model, ids, sizes, all_logits=False, swa_full=True)
        np.testing.assert_array_equal(whole, evaluated(model, ids, sizes, all_logits=False))


def test_all_logits_and_the_last_tokens_are_the_same_row(pairs: dict[str, tuple[tl.Model, tl.Model]]) -> None:
    for model, _ in pairs.values():
        for n in (1, 2, 3, 4, 16, 17, 40, 64):
            every, last = evaluated(model, tokens(n), [n]), evaluated(model, tokens(n), [n], all_logits=False)
            assert every.shape == (n, 268)
            assert_equal(last, every[-1:])


def test_keys_and_values_land_where_the_reference_puts_them(pairs: dict[str, tuple[tl.Model, tl.Model]]) -> None:
    for model, reference in pairs.values():
        with model.create_session(seq_len=50) as a, reference.create_session(seq_len=50) as b:
            for part in (tokens(37), [5], [7]):
                a.eval(part)
                b.eval(part)
            first = max(0, 39 - 8)  # windowed layers may have released earlier positions
            for mine, theirs in ((a.k_cache, b.k_cache), (a.v_cache, b.v_cache)):
                assert_equal(np.array(mine[:, first:39]), np.array(theirs[:, first:39]))
                assert not mine[:, 39:].any(), "positions that are still to come were written"


def test_an_output_matrix_frequency_factors_and_a_softcap_are_used(tmp_path: Path) -> None:
    metadata = tiny_metadata("gemma3", **gemma(), **{"gemma3.final_logit_softcapping": 2.0})
    tensors, rng = tiny_tensors(metadata), np.random.default_rng(8)
    tensors["rope_freqs.weight"] = np.arange(1, 9, dtype=np.float32)
    tensors["output.weight"] = rng.standard_normal((268, 96)).astype(np.float32) / 6
    path = write_gguf(tmp_path / "t.gguf", metadata, tensors)
    with tl.load_model(path, weights="f32", backend="numpy") as a, tl.load_model(path, backend="numba") as b:
        for sizes in ([45], [1]):
            assert_equal(evaluated(b, tokens(45), sizes), evaluated(a, tokens(45), sizes))


def test_a_files_matrices_may_each_have_another_type(tmp_path: Path) -> None:
    metadata = tiny_metadata("llama", **llama())
    tensors = tiny_tensors(metadata)
    kinds = [T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.F16, T.BF16, T.F32]
    matrices = [name for name, data in tensors.items() if data.ndim == 2]
    types = {name: kinds[i % len(kinds)] for i, name in enumerate(matrices)}
    path = write_gguf(tmp_path / "t.gguf", metadata, tensors, types)
    with tl.load_model(path, weights="f32", backend="numpy") as a, tl.load_model(path) as b:
        for sizes in ([45], [1]):
            assert_equal(evaluated(b, tokens(45), sizes), evaluated(a, tokens(45), sizes))


def test_a_type_without_a_kernel_runs_as_f32_and_says_so(tmp_path: Path) -> None:
    metadata = tiny_metadata("llama", **llama(embedding_length=256, feed_forward_length=256))
    tensors = tiny_tensors(metadata)
    names = [name for name in tensors if "ffn_up" in name]
    path = write_gguf(tmp_path / "t.gguf", metadata, tensors, dict.fromkeys(names, T.TQ1_0))
    with pytest.warns(UserWarning, match="TQ1_0"):
        b = tl.load_model(path)
    with tl.load_model(path, weights="f32", backend="numpy") as a, b:
        assert b.backend == "numba"
        assert_equal(evaluated(b, tokens(20), [20]), evaluated(a, tokens(20), [20]))


# ---- threads ----


@pytest.mark.parametrize("shape", ["llama of three heads", "gemma3 past its window of 8"])
def test_any_number_of_threads_gives_the_same_bits(
    pairs: dict[str, tuple[tl.Model, tl.Model]], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = pairs[shape]
    results = []
    for n_threads in (1, 2, 3, 5, 2, 1):  # 5 may exceed the processors; then fewer again
        monkeypatch.setattr(threads, "_n_threads", n_threads)
        results.append(np.concatenate([evaluated(model, tokens(45), [45]), evaluated(model, tokens(20), [1])]))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_set_num_threads_is_what_the_kernels_use_and_refuses_nonsense(
    pairs: dict[str, tuple[tl.Model, tl.Model]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from teachllama.kernels.team import Team

    before = threads.get_num_threads()
    used = []
    run = Team.run
    monkeypatch.setattr(Team, "run", lambda self, job, n: (used.append(n), run(self, job, n))[1])
    try:
        tl.set_num_threads(3)
        for bad in (0, -1, 1025, 10**9, 1.5, 2.0, "2", None, True):
            with pytest.raises(tl.ParameterError, match="1 to 1024"):
                tl.set_num_threads(bad)  # type: ignore[arg-type]
        evaluated(pairs["llama"][0], tokens(3), [1])
    finally:
        tl.set_num_threads(before)
    assert used == [3, 3, 3]


def test_threads_that_are_no_longer_wanted_leave(pairs: dict[str, tuple[tl.Model, tl.Model]]) -> None:
    model, _ = pairs["llama"]
    before = threads.get_num_threads()

    def helpers() -> int:
        return sum(thread.name == "teachllama" for thread in threading.enumerate())

    try:
        with model.create_session(seq_len=600) as session:
            for n in (6, 2, 4, 1):
                tl.set_num_threads(n)
                session.eval([1])
                assert helpers() >= n - 1
                until = time.monotonic() + 60  # on a busy machine a helper gets its turn late
                while helpers() > n - 1 and time.monotonic() < until:
                    time.sleep(0.01)
                    session.eval([1])  # sleeping helpers notice when a job wakes them
                assert helpers() == n - 1
    finally:
        tl.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "n"), [("1", 1), ("0", 1), ("100000", None), ("", None), ("two", None), ("-1", None)]
)
def test_omp_num_threads_limits_the_default_and_nonsense_in_it_is_ignored(
    monkeypatch: pytest.MonkeyPatch, asked: str, n: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    unlimited = threads._default.__wrapped__()
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads._default.__wrapped__() == (n or unlimited)


def test_two_python_threads_with_a_session_each_equal_each_alone(
    pairs: dict[str, tuple[tl.Model, tl.Model]],
) -> None:
    work = [("llama", [1]), ("llama", [20, 1]), ("gemma3 past its window of 8", [7])]
    alone = [evaluated(pairs[shape][0], tokens(60, i), sizes) for i, (shape, sizes) in enumerate(work)]
    together: dict[int, list[np.ndarray]] = {i: [] for i in range(len(work))}
    start = threading.Barrier(len(work))

    def run(i: int) -> None:
        start.wait()
        shape, sizes = work[i]
        for _ in range(3):
            together[i].append(evaluated(pairs[shape][0], tokens(60, i), sizes))

    crew = [threading.Thread(target=run, args=(i,)) for i in together]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(120)
        assert not thread.is_alive()
    for i, results in together.items():
        assert len(results) == 3
        for result in results:
            np.testing.assert_array_equal(result, alone[i])


def evaluate_for_ever(session: tl.Session, ids: list[int]) -> None:
    while True:
        session.eval(ids[:100])
        for token in ids[100:200]:
            session.eval([token])
        session.rewind(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt even in a background job, which ignores it by default."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_the_session_where_it_was_and_usable(pairs: dict[str, tuple[tl.Model, tl.Model]]) -> None:
    model, _ = pairs["gemma3 of 300 positions a window"]
    ids = tokens(500)
    expected = evaluated(model, ids, [500], all_logits=False)
    for delay in (0.01, 0.03, 0.05, 0.1):
        with model.create_session(seq_len=501) as session:
            timer = threading.Timer(delay, _thread.interrupt_main)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                evaluate_for_ever(session, ids)
            timer.join()
            n_past = session.n_past
            assert session.tokens == ids[:n_past]
            np.testing.assert_allclose(session.eval(ids[n_past:]), expected[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("stage", ["before", "after"])
def test_an_interrupt_on_either_side_of_the_compiled_call_changes_nothing(
    pairs: dict[str, tuple[tl.Model, tl.Model]], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from teachllama.kernels.team import Team

    model, _ = pairs["llama"]
    ids, run = tokens(30), Team.run
    expected = evaluated(model, ids, [20, 10], all_logits=False)

    def interrupted(self: Team, *job: Any) -> None:
        if stage == "after":
            run(self, *job)
        raise KeyboardInterrupt

    with model.create_session(seq_len=30) as session:
        session.eval(ids[:20])
        logits = session.logits.copy()
        with monkeypatch.context() as patch:
            patch.setattr(Team, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.eval(ids[20:])
        assert session.n_past == 20
        np.testing.assert_array_equal(session.logits, logits)
        np.testing.assert_array_equal(session.eval(ids[20:]), expected[1])


def script(code: str, *args: object) -> str:
    """Runs Python code in a separate process, which may crash; returns its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_and_its_parent_both_go_on_evaluating(tmp_path: Path) -> None:
    out = script(
        """
        import os, sys, threading, warnings
        import numpy as np
        import teachllama as tl
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
        tl.set_num_threads(3)
        model = tl.load_model(sys.argv[1], backend="numba")
        session = model.create_session(seq_len=100)
        ids = [int(i) for i in np.random.default_rng(0).integers(0, 268, 60)]
        session.eval(ids[:40])
        expected = session.fork().eval(ids[40:])
        children = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                same = np.array_equal(session.eval(ids[40:]), expected)
                fresh = model.create_session(seq_len=100)
                fresh.eval(ids[:40])
                os._exit(0 if same and np.array_equal(fresh.eval(ids[40:]), expected) else 3)
            children.append(pid)
        assert np.array_equal(session.eval(ids[40:]), expected)
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        """,
        make(tmp_path, "llama", T.Q4_1),
    )
    assert out.strip() == "[0, 0, 0]"


def test_closing_a_model_while_another_thread_evaluates_ends_in_an_error_and_no_crash(tmp_path: Path) -> None:
    out = script(
        """
        import sys, threading, time
        import numpy as np
        import teachllama as tl
        ids, ended = list(range(120)), []

        def work(session, delay, ready):
            try:
                while True:
                    session.eval(ids)
                    ready.set()
                    for token in ids[:20]:
                        session.eval([token])
                    session.reset()
            except tl.ClosedError:
                ended.append("closed")
            except BaseException as e:
                ended.append(repr(e))

        for i in range(30):
            model = tl.load_model(sys.argv[1], backend="numba")
            ready = threading.Event()
            crew = [threading.Thread(target=work, args=(model.create_session(seq_len=200), i, ready)) for _ in range(2)]
            for thread in crew:
                thread.start()
            if i % 2:
                ready.wait()
            time.sleep(i / 1000)
            model.close()
            for thread in crew:
                thread.join()
        print(sorted(set(ended)), len(ended))
        """,
        make(tmp_path, "llama", T.Q8_0),
    )
    assert out.strip() == "['closed'] 60"


def test_an_evaluation_that_waited_while_its_model_was_closed_is_refused(tmp_path: Path) -> None:
    from teachllama.kernels import machine_code as cache
    from teachllama.kernels.team import team

    for warm in (False, True):
        model = tl.load_model(make(tmp_path, "llama", T.Q8_0), backend="numba")
        session, outcome = model.create_session(seq_len=200), []
        if warm:
            session.eval([1])

        def work(session: tl.Session = session, outcome: list[Any] = outcome) -> None:
            try:
                outcome.append(session.eval(tokens(150)))
            except tl.ClosedError as e:
                outcome.append(e)

        waiting = threading.Thread(target=work)
        with team(cache.serve()).turn:  # held as by another session's long evaluation
            waiting.start()
            waiting.join(0.5)
            assert waiting.is_alive()
            model.close()
        waiting.join(60)
        assert isinstance(outcome[0], tl.ClosedError), "logits were made from weights that were given back"


# ---- what the kernels do not take ----


def test_a_model_the_kernels_refuse_runs_on_numpy_unless_numba_was_asked_for(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "t.gguf")  # heads of 8
    with tl.load_model(path) as model:
        assert model.backend == "numpy"
        assert np.isfinite(evaluated(model, tokens(5), [5])).all()
    with pytest.raises(tl.UnsupportedModelError, match=r"key_length is 8.*multiple of 16.*backend='numpy'"):
        tl.load_model(path, backend="numba")


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"embedding_length": 48, "attention.key_length": 16, "attention.value_length": 16}, "embedding_length is 48"),
        ({"feed_forward_length": 40}, "feed_forward_length is 40"),
        ({"attention.value_length": 24}, "value_length is 24"),
        (
            {"attention.head_count": 3, "attention.head_count_kv": 3}
            | {"attention.key_length": 16, "attention.value_length": 16},
            "is 48",
        ),
    ],
)
def test_a_dimension_the_kernels_do_not_take_is_named(tmp_path: Path, sizes: dict[str, int], named: str) -> None:
    path = tiny_model(tmp_path / "t.gguf", "llama", **llama(**sizes))
    with pytest.raises(tl.UnsupportedModelError, match=named):
        tl.load_model(path, backend="numba")
    with tl.load_model(path) as model:
        assert model.backend == "numpy"


def test_tokens_and_positions_out_of_range_never_reach_a_kernel(
    pairs: dict[str, tuple[tl.Model, tl.Model]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from teachllama.kernels.team import Team

    def never(self: Team, *job: Any) -> None:
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(Team, "run", never)
    model, _ = pairs["llama"]
    with model.create_session(seq_len=20) as session:
        for ids, start in (([-1], 0), ([268], 0), ([2**40], 0), ([], 0), ([1], -1), ([1], 20), ([1] * 5, 16)):
            with pytest.raises(ValueError, match="out of range"):
                model.forward(np.array(ids, np.intp), start, session._cache)
        for bad in ([], [268], [-1], [1.5], [[1]]):
            with pytest.raises(tl.TokenError):
                session.eval(bad)
        with pytest.raises(tl.ContextFullError):
            session.eval([1] * 21)
        assert session.n_past == 0


# ---- real models ----


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_real_models_logits_equal_the_reference_and_greedy_tokens_equal_llama_cpp(
    name: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue({"smollm2-135m": "smollm2_path", "gemma3-270m": "gemma3_path"}[name])
    cases = golden(name)["generate"]
    with tl.load_model(path, weights="f32", backend="numpy") as reference:
        expected = []
        for case in cases:
            with reference.create_session(seq_len=64) as session:
                expected.append(session.eval(case["prompt_ids"] + case["greedy_ids"][:20], all_logits=True))
    with tl.load_model(path, weights="native", backend="numba") as model:
        for case, logits in zip(cases, expected):
            ids = case["prompt_ids"] + case["greedy_ids"][:20]
            for sizes in ([len(ids)], [1]):
                np.testing.assert_allclose(evaluated(model, ids, sizes), logits, rtol=0, atol=1e-3)
            with model.create_session(seq_len=64) as session:
                session.eval(case["prompt_ids"])
                for i, (token, gap) in enumerate(zip(case["greedy_ids"], case["gap"], strict=True)):
                    if gap < 0.02:  # either token is right, and the texts may diverge here
                        break
                    assert session.sample() == token, f"step {i}"
                    session.eval([token])


def test_logits_too_large_for_float32_give_no_warning_and_are_refused_when_sampled(tmp_path: Path) -> None:
    with tl.load_model(tiny_model(tmp_path / "t.gguf", **llama()), backend="numba") as model:
        compiled = model._compiled
        assert compiled is not None
        compiled._spec = dataclasses.replace(compiled._spec, logit_scale=3e38)
        with model.create_session(seq_len=8) as session, warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isinf(session.eval([1, 2])).any()
            with pytest.raises(tl.TeachLlamaError, match="finite"):
                session.sample()
