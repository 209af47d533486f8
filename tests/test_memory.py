"""Measuring memory, and finding what holds it: `teachllama.memory` and its staircase plot."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachllama import memory
from teachllama.errors import ParameterError
from teachllama.memory import (
    Snapshot,
    Timeline,
    Usage,
    forget_history,
    holders,
    measuring,
    resident_of,
    usage,
    watch,
    who_refers_to,
)

MB = 1_000_000
PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells this exactly")


def pages(nbytes: int) -> mmap.mmap:
    """An anonymous private mapping without huge pages, like a KV cache's."""
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> Iterator[None]:
    """Excludes pytest's own objects from searches; one test searches a million objects of its own."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# ---- how much ----


@linux
def test_touching_64_mb_raises_private_memory_by_64_mb_and_giving_it_back_lowers_it() -> None:
    mapping = pages(64 * MB)
    reserved = usage()
    np.frombuffer(mapping, np.uint8)[:] = 1
    touched = usage()
    mapping.madvise(mmap.MADV_DONTNEED)
    given_back = usage()
    for field in ("resident", "private", "anonymous"):
        before, most, after = (getattr(now, field) for now in (reserved, touched, given_back))
        assert most - before == pytest.approx(64 * MB, abs=4 * MB)
        assert after - before == pytest.approx(0, abs=4 * MB)
    assert touched.file_backed == pytest.approx(reserved.file_backed, abs=4 * MB)
    assert given_back.peak_resident >= touched.resident - MB  # the kernel updates the peak in batches


@linux
def test_a_mapped_file_is_file_backed_and_a_shared_mapping_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(32 * MB))
    before = usage()
    with path.open("rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    assert np.frombuffer(mapped, np.uint8).sum() == 0
    with_file = usage()
    assert with_file.file_backed - before.file_backed == pytest.approx(32 * MB, abs=2 * MB)
    shared = mmap.mmap(-1, 16 * MB)
    np.frombuffer(shared, np.uint8)[:] = 1
    with_shared = usage()
    assert with_shared.shared - with_file.shared == pytest.approx(16 * MB, abs=2 * MB)
    assert with_shared.file_backed - with_file.file_backed == pytest.approx(0, abs=2 * MB)
    assert with_shared.anonymous + with_shared.file_backed + with_shared.shared == with_shared.resident


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_psutil_measures_and_the_source_says_so(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_on_linux", lambda: False)
    rss = psutil.Process().memory_info().rss
    fake = SimpleNamespace(
        memory_info=lambda: SimpleNamespace(rss=rss, **({"peak_wset": rss + 5} if platform == "win32" else {})),
        memory_full_info=lambda: SimpleNamespace(uss=rss - 7),
    )
    monkeypatch.setattr(measuring.psutil, "Process", lambda: fake)
    monkeypatch.setattr(measuring.sys, "platform", platform)
    now = usage()
    assert (now.resident, now.private) == (rss, rss - 7)
    assert (now.file_backed, now.anonymous, now.shared) == (None, None, None)
    assert now.peak_resident == rss + 5 if platform == "win32" else now.peak_resident >= rss
    assert f"psutil on {platform}" in now.source


def test_where_private_bytes_are_denied_the_source_says_that_they_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: psutil.Process) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(measuring, "_on_linux", lambda: False)
    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    monkeypatch.setattr(psutil.Process, "memory_footprint", denied, raising=False)
    now = usage()
    assert now.private == now.resident
    assert "private is unavailable" in now.source


@linux
def test_a_linux_without_smaps_rollup_is_measured_by_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_linux_usage", lambda: measuring._kilobytes(Path("/proc/self/no such file")))
    assert usage().source.startswith("psutil")


def test_settling_collects_cycles_and_gives_freed_blocks_back() -> None:
    class Node: ...

    node = Node()
    node.itself = node
    gone = weakref.ref(node)
    gc.disable()
    try:
        del node
        Timeline().take("as it is", settled=False)
        assert gone() is not None
        Timeline().take("settled")
        assert gone() is None
    finally:
        gc.enable()


def test_settling_calls_malloc_trim_only_where_the_c_library_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring._malloc_trim.cache_clear()
    monkeypatch.setattr(measuring, "_on_linux", lambda: False)
    assert measuring._malloc_trim() is None
    memory.settle()
    measuring._malloc_trim.cache_clear()
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        monkeypatch.undo()
        assert measuring._malloc_trim() is not None
        memory.settle()


# ---- how much of an array ----


@linux
def test_resident_bytes_follow_the_pages_that_were_written_exactly() -> None:
    array = np.frombuffer(pages(1000 * PAGE), np.uint8)
    assert resident_of(array) == 0
    array[10 * PAGE] = 1
    array[20 * PAGE : 25 * PAGE] = 1
    assert resident_of(array) == 6 * PAGE
    assert resident_of(array[: 20 * PAGE + 100]) == PAGE + 100
    assert resident_of(array[21 * PAGE + 7 : 21 * PAGE + 9]) == 2
    assert resident_of(array[:0]) == 0


@linux
def test_reading_what_was_never_written_makes_nothing_resident() -> None:
    array = np.frombuffer(pages(1000 * PAGE), np.uint8)
    array[:PAGE] = 1
    assert array.sum() == PAGE
    assert resident_of(array) == PAGE


@linux
def test_pages_given_back_are_not_resident() -> None:
    mapping = pages(100 * PAGE)
    np.frombuffer(mapping, np.uint8)[:] = 1
    assert resident_of(mapping) == 100 * PAGE
    mapping.madvise(mmap.MADV_DONTNEED, 0, 60 * PAGE)
    assert resident_of(mapping) == 40 * PAGE


@linux
def test_the_resident_bytes_of_a_cache_are_those_of_the_positions_written() -> None:
    n_layers, n_heads, seq_len, head_dim = 4, 3, 256, 64
    stored = np.frombuffer(pages(n_layers * n_heads * seq_len * head_dim * 4), np.float32)
    stored = stored.reshape(n_layers, n_heads, seq_len, head_dim)
    view = stored.transpose(0, 2, 1, 3)  # (n_layers, seq_len, n_heads, head_dim), as in a session
    view[:, :32] = 1  # 8 kB per head: whole pages
    assert resident_of(view[:, :32]) == resident_of(view) == view[:, :32].nbytes
    assert resident_of(view[:, 32:]) == 0
    assert sum(resident_of(view[layer]) for layer in range(n_layers)) == resident_of(view)
    assert resident_of(view[::-1, ::-1]) == resident_of(view)


@linux
def test_pages_of_a_mapped_file_count_once_this_process_has_touched_them(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1000 * PAGE))
    with path.open("rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    assert resident_of(mapped) == 0  # although all of it is in the system's page cache
    assert np.frombuffer(mapped, np.uint8)[500 * PAGE] >= 0
    assert PAGE <= resident_of(mapped) <= 1000 * PAGE  # the kernel may map any number of neighbours too


@given(st.data())
def test_the_runs_of_an_array_are_its_own_bytes(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    array = np.zeros(shape, data.draw(st.sampled_from([np.uint8, np.float16, np.float64])))
    array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    steps = st.builds(slice, st.none(), st.integers(1, 5), st.sampled_from([1, 2, -1, -2]))
    array = array[tuple(data.draw(steps) for _ in range(array.ndim))]
    if not array.size:
        return
    starts, length = measuring._runs(array)
    offsets = sum(np.multiply.outer(np.arange(n), 1).reshape([-1 if i == j else 1 for j in range(array.ndim)]) * stride
                  for i, (n, stride) in enumerate(zip(array.shape, array.strides, strict=True)))  # fmt: skip
    first = array.__array_interface__["data"][0] + np.unique(offsets)
    mine = {int(address) + byte for address in first for byte in range(array.itemsize)}
    assert {int(start) + byte for start in starts for byte in range(length)} == mine
    assert len(starts) * length == len(mine)


def test_windows_that_overlap_count_each_byte_once() -> None:
    windows = np.lib.stride_tricks.sliding_window_view(np.zeros(100, np.uint8), 10)
    starts, length = measuring._runs(windows)
    assert (len(starts), length) == (1, 100)


def test_where_the_system_does_not_tell_what_is_resident_the_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(first: int, last: int) -> np.ndarray:
        raise FileNotFoundError("/proc/self/pagemap")

    monkeypatch.setattr(measuring, "_pages_in_ram", nothing)
    assert resident_of(np.ones(10)) is None
    assert resident_of(b"") == 0


def test_what_has_no_bytes_of_its_own_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"found object .*expected a NumPy array"):
        resident_of(object())


# ---- how much there is ----


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("0::/", {"sys/fs/cgroup/memory.max": "2000000000\n"}, 2_000_000_000),
        ("0::/a/b", {"sys/fs/cgroup/a/memory.max": "30000000", "sys/fs/cgroup/a/b/memory.max": "max"}, 30_000_000),
        ("0::/../job", {"sys/fs/cgroup/job/memory.max": "70000000"}, 70_000_000),
        ("9:cpu:/\n4:memory:/docker/1", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "40000000"}, 40_000_000),
        ("4:memory:/job\n0::/", {"sys/fs/cgroup/memory/job/memory.limit_in_bytes": "50000000"}, 50_000_000),
        ("0::/", {"sys/fs/cgroup/memory.max": "max"}, None),
        ("4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/", {}, None),
    ],
)
def test_a_containers_limit_counts_as_the_machines_memory(
    cgroup: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.machine_memory(tmp_path) == limit or limit is None
    if limit is None:
        assert memory.machine_memory(tmp_path) == psutil.virtual_memory().total


def test_without_cgroups_the_machines_memory_is_its_ram(tmp_path: Path) -> None:
    assert memory.machine_memory(tmp_path) == psutil.virtual_memory().total
    assert 0 < memory.machine_memory() <= psutil.virtual_memory().total


# ---- snapshots ----


def made_up(*megabytes: float, **fields: Any) -> Timeline:
    """A timeline with these resident sizes, each with 10 MB file-backed and 1 MB shared."""
    names = ["baseline", "model", "three sessions", "close one", "close all"]
    steps = [
        Usage(int(x * MB), int((x - 5) * MB), 10 * MB, int((x - 11) * MB), 1 * MB, int(x * MB), "made up")
        for x in megabytes
    ]
    return Timeline([Snapshot(n, Usage(**{**vars(u), **fields})) for n, u in zip(names, steps, strict=False)])


def test_a_timeline_measures_under_a_name_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    timeline = Timeline()
    first, second = timeline.take("baseline"), timeline.take("again")
    assert timeline.entries == [("baseline", first), ("again", second)]
    assert timeline["again"] is second
    assert timeline.since_first() == {"baseline": 0, "again": second.resident - first.resident}
    assert capsys.readouterr() == ("", "")


def test_a_name_that_was_not_taken_is_an_error_that_lists_those_that_were() -> None:
    with pytest.raises(ParameterError, match=r"'modell'.*\['baseline', 'model'\]"):
        made_up(40, 600)["modell"]


def test_a_timeline_shows_itself_as_a_table() -> None:
    timeline = made_up(40, 1600.25, 1601)
    assert repr(timeline) == textwrap.dedent("""\
        step            resident MB    change  since first  private MB  file-backed MB
        baseline               40.0                               35.0            10.0
        model               1,600.2  +1,560.2     +1,560.2     1,595.2            10.0
        three sessions      1,601.0      +0.8     +1,561.0     1,596.0            10.0""")
    assert timeline._repr_html_().count("<tr>") == 4
    assert timeline._repr_html_().count("<td>") == 3 * 5
    assert repr(made_up(40, file_backed=None)).endswith("not told")
    assert repr(Timeline()).startswith("step")


def test_a_staircase_names_every_step_and_what_changed() -> None:
    pytest.importorskip("matplotlib")
    picture = made_up(40, 600, 661.5, 644, 40).plot()
    texts = [text.get_text() for text in picture.axes[0].texts]
    assert {"40.0 MB", "600 MB", "662 MB", "+560.0", "+61.5", "−17.5", "−604.0", "back at baseline"} <= set(texts)
    assert "anonymous:\narrays, caches" in texts
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()][:3] == [
        "baseline",
        "model",
        "three sessions",
    ]
    assert "three sessions 662 MB (+61.5)" in picture.alt
    assert picture._repr_png_()[0].startswith(b"\x89PNG")


def test_a_staircase_draws_what_is_told_and_where_it_is_told_to() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.add_subplot()
    assert made_up(40, 600, anonymous=None, file_backed=None).plot(ax) is figure
    assert "ends 560 MB\nabove baseline" in [text.get_text() for text in ax.texts]
    assert made_up(40).plot() is not figure
    with pytest.raises(ParameterError, match="no snapshots"):
        Timeline().plot()


def test_measuring_imports_no_matplotlib_and_no_jupyter() -> None:
    code = "import sys, teachllama.memory as m; m.Timeline().take('x'); m.who_refers_to(m); "
    code += "print([n for n in ('matplotlib', 'IPython', 'ipywidgets') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- who still refers to it ----


class Cache:
    """A stand-in for a KV cache: arrays over one anonymous mapping."""

    def __init__(self) -> None:
        self.pages = pages(4 * PAGE)
        self.keys = np.frombuffer(self.pages, np.float32, 2 * 3 * 8).reshape(2, 3, 8, 1)
        self.values = np.frombuffer(self.pages, np.float32, 2 * 2 * 8, PAGE).reshape(2, 2, 8, 1)


class Session:
    """A stand-in for a session."""

    def __init__(self) -> None:
        self.cache = Cache()

    @property
    def k_cache(self) -> np.ndarray:
        return self.cache.keys.transpose(0, 2, 1, 3)

    @property
    def v_cache(self) -> np.ndarray:
        return self.cache.values.transpose(0, 2, 1, 3)

    def generate(self) -> Iterator[int]:
        while True:
            yield len(self.__dict__)


class Story:
    """Something that has a session."""

    def __init__(self, session: Session) -> None:
        self.session: Session | None = session


class Slotted:
    """Like `Story`, but with slots instead of a dictionary."""

    __slots__ = ("empty", "session")

    def __init__(self, session: Session) -> None:
        self.session = session


Lesson = Callable[[str], list[str]]


@pytest.fixture
def lesson() -> Iterator[Lesson]:
    """Runs code in a module `lesson` with a global `session`; returns the holders of it that the code adds."""
    module = types.ModuleType("lesson")
    sys.modules["lesson"] = module
    namespace = vars(module)
    namespace.update(Session=Session, Story=Story, Slotted=Slotted, np=np, memory=memory, session=Session())

    def run(code: str) -> list[str]:
        exec(textwrap.dedent(code), namespace)
        if "session" not in namespace:
            return []
        report = who_refers_to(namespace["session"])
        texts = [holder.text for holder in report]
        texts.remove("the global variable `lesson.session`")
        return texts

    yield run
    del sys.modules["lesson"]
    if "waiting" in namespace:
        namespace["waiting"].close()  # a coroutine that was never awaited
    namespace.clear()
    gc.collect()


HOLDERS = {
    "a second name": ("other = session", "the global variable `lesson.other`"),
    "an item of a list": ("sessions = [0, 1, session]", "item 2 of the list `lesson.sessions` (a global variable)"),
    "two items": ("pair = (session, session)", "items 0 and 1 of the tuple `lesson.pair` (a global variable)"),
    "many items": (
        "many = [session] * 9",
        "items 0, 1, 2 and 6 more of the list `lesson.many` (a global variable)",
    ),
    "a value of a dictionary": (
        "by_name = {'main': session}",
        "the value at key 'main' of the dictionary `lesson.by_name` (a global variable)",
    ),
    "a key of a dictionary": ("n = {session: 1}", "a key of the dictionary `lesson.n` (a global variable)"),
    "a member of a set": ("known = {session}", "a member of the set `lesson.known` (a global variable)"),
    "an attribute": (
        "story = Story(session)",
        "attribute `.session` of the Story object `lesson.story` (a global variable)",
    ),
    "an attribute whose dictionary was looked at": (
        "story = Story(session); vars(story)",
        "attribute `.session` of the Story object `lesson.story` (a global variable)",
    ),
    "a slot": (
        "story = Slotted(session)",
        "attribute `.session` of the Slotted object `lesson.story` (a global variable)",
    ),
    "several steps": (
        "shelf = {'new': [Story(session)]}",
        "attribute `.session` of a Story object, which is item 0 of a list, "
        "which is the value at key 'new' of the dictionary `lesson.shelf` (a global variable)",
    ),
    "two names for one list": (
        "a = b = [session]",
        "item 0 of the list `lesson.a` (a global variable; also `lesson.b`)",
    ),
    "a class attribute": ("class Course: current = session", "the class attribute `Course.current`"),
    "a closure": (
        "def outer(kept):\n    def teller(): return kept\n    return teller\ntell = outer(session)",
        "the variable `kept` in the closure of the function `outer.<locals>.teller`, "
        "held by `lesson.tell` (a global variable)",
    ),
    "a default argument": (
        "def tell(s=session): pass",
        "a default argument of the function `tell`, held by `lesson.tell` (a global variable)",
    ),
    "a keyword's default": (
        "def tell(*, s=session): pass",
        "a default argument of the function `tell`, held by `lesson.tell` (a global variable)",
    ),
    "a bound method": (
        "step = session.generate",
        "the `self` of the bound method `Session.generate`, held by `lesson.step` (a global variable)",
    ),
    "a generator": (
        "story = session.generate(); next(story)",
        "the local variable `self` of the suspended generator `Session.generate`, "
        "held by `lesson.story` (a global variable)",
    ),
    "a coroutine": (
        "async def tell(s): pass\nwaiting = tell(session)",
        "the local variable `s` of the suspended coroutine `tell`, held by `lesson.waiting` (a global variable)",
    ),
    "a cached function": (
        "import functools\n@functools.lru_cache\ndef load(name): return session\nload('x')",
        "a remembered call of the cached function `load`, held by `lesson.load` (a global variable)",
    ),
    "an unbounded cached function": (
        "import functools\n@functools.cache\ndef load(name): return session\nload('x')",
        "a remembered call of the cached function `load`, held by `lesson.load` (a global variable)",
    ),
    "an array of objects": (
        "table = np.array([None, session])",
        "an element of the NumPy array `lesson.table` (a global variable)",
    ),
    "an array of objects in a dictionary": (
        "box = {'t': np.array([session])}",
        "an element of a NumPy array, which is the value at key 't' of the dictionary `lesson.box` (a global variable)",
    ),
    "an exception's traceback": (
        """
        def tell(s): return 1 / 0
        try: tell(session)
        except ZeroDivisionError as e: error = e
        """,
        "the local variable `s` of the function `tell`, in the traceback of a ZeroDivisionError, "
        "held by `lesson.error` (a global variable)",
    ),
    "an exception itself": (
        "try: session.sing\nexcept AttributeError as e: error = e",
        "attribute `.obj` of the AttributeError object `lesson.error` (a global variable)",
    ),
    "a view": (
        "keys = session.k_cache",
        "the global variable `lesson.keys`: a NumPy view of its cache, shape (2, 8, 3, 1)",
    ),
    "a view of a view": (
        "part = session.v_cache[0][3:]",
        "the global variable `lesson.part`: a NumPy view of its cache, shape (5, 2, 1)",
    ),
    "a view in a dictionary of arrays": (
        "import gc\npictures = {'k': session.k_cache}; gc.collect()",
        "the value at key 'k' of the dictionary `lesson.pictures` (a global variable): "
        "a NumPy view of its cache, shape (2, 8, 3, 1)",
    ),
    "a view in tuples of arrays": (
        "import gc\npair = (0, (1, session.v_cache)); gc.collect()",
        "item 1 of a tuple, which is item 1 of the tuple `lesson.pair` (a global variable): "
        "a NumPy view of its cache, shape (2, 8, 2, 1)",
    ),
    "a memoryview": (
        "raw = memoryview(session.k_cache)",
        "the memory of the memoryview `lesson.raw` (a global variable): a NumPy view of its cache, shape (2, 8, 3, 1)",
    ),
    "the cache's mapping": ("raw = session.cache.pages", "the global variable `lesson.raw`: the mapping itself"),
    "a cycle": (
        "session.story = Story(session)",
        "a reference cycle: it is attribute `.session` of a Story object, "
        "which is attribute `.story` of this Session object",
    ),
    "a cycle that nothing else refers to": (
        "import gc; gc.disable(); a = Story(session); a.next = Story(None); a.next.next = a; del a",
        "a reference cycle that nothing else refers to: it is attribute `.session` of a Story object",
    ),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_holder_is_told_in_words(name: str, lesson: Lesson) -> None:
    code, text = HOLDERS[name]
    try:
        assert lesson(code) == [text]
    finally:
        gc.enable()


def test_a_session_that_only_its_name_holds_has_one_holder(lesson: Lesson) -> None:
    assert lesson("") == []


def test_a_weak_reference_is_no_holder(lesson: Lesson) -> None:
    code = "import weakref; ref = weakref.ref(session); s = weakref.WeakSet([session]); p = weakref.proxy(session)"
    assert lesson(code) == []


def test_a_copy_of_the_cache_is_no_holder(lesson: Lesson) -> None:
    assert lesson("keys = session.k_cache.copy(); shape = session.k_cache.shape") == []


def test_a_sessions_own_finalizer_is_no_holder(lesson: Lesson) -> None:
    assert lesson("import weakref; weakref.finalize(session, session.cache.pages.tell)") == []


def test_a_local_variable_of_a_running_call_is_named_with_its_function() -> None:
    def tell(s: Session) -> list[str]:
        return [holder.text for holder in who_refers_to(s)]

    session = Session()
    here = "test_a_local_variable_of_a_running_call_is_named_with_its_function"
    assert tell(session) == [
        f"the local variable `s` of the running function `{here}.<locals>.tell`",
        f"the local variable `session` of the running function `{here}`",
    ]


def test_a_view_in_a_running_call_is_found() -> None:
    session = Session()
    keys = session.k_cache
    report = who_refers_to(session)
    assert report.kinds == {"local", "view"}
    assert "`keys` of the running function" in report.holders[-1].text
    assert keys.base is not None


def test_a_call_in_another_thread_is_named_with_its_thread() -> None:
    started, finish = threading.Event(), threading.Event()

    def work(mine: list[Session]) -> None:
        s = mine.pop()
        started.set()
        finish.wait(60)
        del s

    mine = [Session()]
    w = watch(mine[0])
    thread = threading.Thread(target=work, args=(mine,), name="worker")
    thread.start()
    try:
        assert started.wait(60)
        assert [h.text.partition("`work`")[0] for h in w.holders()] != []
        (text,) = (h.text for h in w.holders())
        assert text.startswith("the local variable `s` of the running function `test_a_call_in_another_thread")
        assert text.endswith("work` in thread worker")
    finally:
        finish.set()
        thread.join()
    assert not w.alive


def test_a_loop_in_progress_is_told_as_running_code(lesson: Lesson) -> None:
    lesson("""
        for s in list((Session(),)):
            found = memory.who_refers_to(s).holders[-1].text
        del s
        """)
    assert vars(sys.modules["lesson"])["found"] == (
        "item 0 of a list, which is a part of a list_iterator object, "
        "which only running code (a loop, a call) or an extension module holds"
    )


def test_the_last_error_is_told_once_however_many_places_keep_it(lesson: Lesson) -> None:
    lesson("""
        def tell(s):
            try: 1 / 0
            except ZeroDivisionError: raise KeyError("story")
        try: tell(session)
        except KeyError as e: error = e
        """)
    error = vars(sys.modules["lesson"]).pop("error")
    sys.last_value, sys.last_traceback = error, error.__traceback__
    sys.last_exc = error  # type: ignore[attr-defined]
    del error
    try:
        assert lesson("") == [
            "the local variable `s` of the function `tell`, in the traceback of a KeyError, "
            "held by `sys.last_value` (the last error)"
        ]
    finally:
        forget_history()
    assert lesson("") == []
    assert not hasattr(sys, "last_value")


def test_each_holder_comes_with_advice_that_works(lesson: Lesson) -> None:
    namespace = vars(sys.modules["lesson"])
    lesson("""
        story = session.generate(); next(story)
        shelf, keys, pair = {'new': [Story(session)]}, session.k_cache, (session,)
        """)
    w = watch(namespace["session"])
    for _ in range(5):
        advice = w.holders().holders[0].advice
        exec(advice.split("`")[1].replace("lesson.", ""), namespace)
    assert not w.alive
    assert repr(w) == "gone: nobody refers to the Session"


def test_a_report_reads_well_in_text_and_in_html(lesson: Lesson) -> None:
    namespace = vars(sys.modules["lesson"])
    lesson("keys = session.k_cache; shelf = {'<new>': session}")
    report, again = (who_refers_to(namespace["session"]) for _ in range(2))
    assert repr(report) == textwrap.dedent("""\
        3 things refer to this Session:
          1. the global variable `lesson.session`
             to let go: `del lesson.session`
          2. the value at key '<new>' of the dictionary `lesson.shelf` (a global variable)
             to let go: `del lesson.shelf['<new>']`, or `del lesson.shelf`
          3. the global variable `lesson.keys`: a NumPy view of its cache, shape (2, 8, 3, 1)
             to let go: `del lesson.keys`, or keep a copy instead: `lesson.keys = lesson.keys.copy()`""")
    assert again == report
    assert report._repr_html_().count("<li>") == len(report) == 3
    assert "<code>del lesson.shelf['&lt;new&gt;']</code>" in report._repr_html_()
    assert report.kinds == {"variable", "item", "view"}
    assert report.complete


def test_an_array_is_held_by_its_names_and_its_memory_by_its_views() -> None:
    array = np.zeros((4, 4))
    row = array[1]
    kinds = [holder.kind for holder in who_refers_to(array)]
    assert kinds == ["local", "view"]
    assert "`row`" in who_refers_to(array).holders[1].text
    assert (
        "a NumPy array that shares its memory, shape (4, 4)"
        in who_refers_to(row).holders[0].text + who_refers_to(row).holders[1].text
    )


def test_asking_about_nothing_is_refused() -> None:
    with pytest.raises(ParameterError, match="found None"):
        who_refers_to(None)
    with pytest.raises(ParameterError, match="found int, which takes no weak references"):
        watch(5)


def test_a_temporary_object_has_no_holder_but_the_call_that_asks() -> None:
    report = who_refers_to(Session())
    assert not report
    assert repr(report) == "Nothing refers to this Session but the call that asks."


# ---- asking later ----


def test_a_watch_tells_who_keeps_a_deleted_session_and_then_that_it_is_gone(lesson: Lesson) -> None:
    namespace = vars(sys.modules["lesson"])
    lesson("shelf = [session]; w = memory.watch(session); del session")
    w = namespace["w"]
    assert w.alive
    assert [holder.text for holder in w.holders()] == ["item 0 of the list `lesson.shelf` (a global variable)"]
    namespace["shelf"].clear()
    assert not w.alive
    assert repr(w) == "gone: nobody refers to the Session"
    assert "gone" in w._repr_html_()


def test_a_watch_tells_who_views_the_memory_of_a_session_that_is_gone(lesson: Lesson) -> None:
    namespace = vars(sys.modules["lesson"])
    lesson("keys = session.k_cache; cache = session.cache; w = memory.watch(session); del session")
    w = namespace["w"]
    assert not w.alive
    assert repr(w.holders()).startswith("The Session is gone, but 2 things refer to its memory:")
    del namespace["cache"]
    (holder,) = w.holders()
    assert holder.text == "the global variable `lesson.keys`: a NumPy view of its cache, shape (2, 8, 3, 1)"
    del namespace["keys"]
    assert repr(w) == "gone: nobody refers to the Session"


def test_a_watch_does_not_mistake_new_memory_at_the_same_address_for_the_old() -> None:
    mapping = pages(64 * PAGE)
    w = watch(mapping)
    address = np.frombuffer(mapping, np.uint8).ctypes.data
    del mapping
    fresh = [np.frombuffer(pages(64 * PAGE), np.uint8) for _ in range(8)]  # the kernel tends to reuse gaps
    assert repr(w) == "gone: nobody refers to the mmap"
    assert any(array.ctypes.data == address for array in fresh) or sys.platform != "linux"


def test_a_closed_session_can_still_be_asked_about() -> None:
    class Closed(Session):
        @property
        def k_cache(self) -> np.ndarray:
            raise ParameterError("closed")

        v_cache = k_cache

    session = Closed()
    assert [holder.kind for holder in who_refers_to(session)] == ["local"]


# ---- the tool itself ----


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turns garbage collection off, so that a reference cycle made by the tool would be detected."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_asking_leaves_nothing_behind_that_refers_to_the_object(no_collector: None) -> None:
    def tell() -> weakref.ref[Session]:
        session = Session()
        story = session.generate()
        next(story)
        views = {"k": session.k_cache}
        try:
            session.sing  # type: ignore[attr-defined]
        except AttributeError as e:
            e.__traceback__ = None
            kept = e
        for _ in range(2):
            assert who_refers_to(session).kinds == {"local", "generator", "attribute", "view"}
        del story, kept, views
        return weakref.ref(session)

    assert tell()() is None
    assert gc.collect() == 0


def test_deleting_a_local_variable_after_asking_frees_it_at_once(no_collector: None) -> None:
    session = Session()
    w = watch(session)
    who_refers_to(session)
    assert w.holders()
    del session
    assert not w.alive
    assert gc.collect() == 0


def test_a_frame_that_was_looked_at_keeps_no_copy_of_its_variables(no_collector: None) -> None:
    def tell(s: Session) -> bool:
        who_refers_to(s)
        ref = weakref.ref(s)
        del s
        return ref() is None

    freed = tell(Session())
    assert freed


def test_what_locals_gave_is_left_as_it_was() -> None:
    session = Session()
    mine = locals()
    texts = [holder.text for holder in who_refers_to(session)]
    assert mine["session"] is session
    assert any("dictionary" in text for text in texts)


def test_an_interrupted_search_holds_nothing(no_collector: None, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    stories = [Story(session)]
    w = watch(session)
    original = holders._Search._is_noise

    def stop(self: Any, referrer: Any) -> bool:
        if type(referrer) is Story:
            raise KeyboardInterrupt
        return original(self, referrer)

    monkeypatch.setattr(holders._Search, "_is_noise", stop)
    with pytest.raises(KeyboardInterrupt) as kept:
        who_refers_to(session)
    del stories, session
    assert kept.value is not None
    assert not w.alive


def test_a_search_that_meets_its_limits_says_so_and_tells_what_it_found() -> None:
    session = Session()
    many = [(session, i) for i in range(5000)]
    report = who_refers_to(session)
    assert not report.complete
    assert "the search met its limits" in repr(report)
    assert any("of the list `many`" in holder.text for holder in report)
    assert not who_refers_to(session, seconds=0).complete
    assert many


def test_more_than_twenty_holders_are_counted_not_listed(lesson: Lesson) -> None:
    namespace = vars(sys.modules["lesson"])
    namespace.update({f"s{i}": namespace["session"] for i in range(30)})
    report = who_refers_to(namespace["session"])
    assert len(report) == 31
    assert repr(report).endswith("(and 11 more, in .holders)")
    texts = [holder.text for holder in report]
    assert texts[2:11:8] == ["the global variable `lesson.s2`", "the global variable `lesson.s10`"]


@pytest.mark.slow
def test_a_heap_of_a_million_objects_is_searched() -> None:
    heap = [[i] for i in range(1_000_000)]
    shelf = [[[Session()]]]
    report = who_refers_to(shelf[0][0][0])
    assert [holder.text.partition(" (")[0] for holder in report] == [
        "item 0 of a list, which is item 0 of a list, which is item 0 of the list `shelf`"
    ]
    assert len(heap) == 1_000_000


# ---- in a notebook ----

CELLS = {
    "set up": "import teachllama.memory as memory, weakref\nclass Session: pass",
    "make": "session = Session(); w = memory.watch(session)",
    "show it": "session",
    "shown": "print(w)",
    "deleted": "del session; print(w)",
    "del Out": "del Out[3], _3; print(w)",
    "reset out": "%reset -f out",
    "still": "print(w)",
    "forgotten": "memory.forget_history(); print(w)",
    "a number": "6 * 7",
    "underscore": "print(_, Out)",
    "make again": "session = Session(); w = memory.watch(session)",
    "list": "[session]",
    "listed": "print(w)",
    "forget the list": "memory.forget_history(); print(w)",
    "fail": "def tell(story):\n    return story.sing\ntell(session)",
    "failed": "del session; print(w)",
    "error forgotten": "memory.forget_history(); print(w)",
    "locals of a cell's function": "def f():\n    s = Session()\n    return memory.who_refers_to(s)\nprint(f())",
}


@pytest.fixture(scope="module")
def notebook() -> dict[str, str]:
    """The output of each of `CELLS` in a real IPython shell, in another process."""
    pytest.importorskip("IPython")
    code = """
import contextlib, io, json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
printed = {}
for name, cell in json.loads(sys.argv[1]).items():
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        shell.run_cell(cell, store_history=True)
    printed[name] = out.getvalue().strip()
sys.__stdout__.write("\\n" + json.dumps(printed))
"""
    result = subprocess.run([sys.executable, "-c", code, json.dumps(CELLS)], capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_in_a_notebook_the_output_history_is_named_with_all_its_names(notebook: dict[str, str]) -> None:
    assert notebook["shown"] == textwrap.dedent("""\
        2 things refer to this Session:
          1. the notebook variable `session`
             to let go: `del session`
          2. `Out[3]`, the output history (also `_`, `_3`, IPython's record of the last cell)
             to let go: `teachllama.memory.forget_history()`""")
    assert "1. `Out[3]`, the output history (also `_`, `_3`)\n" in notebook["deleted"]


def test_in_a_notebook_the_usual_ways_to_forget_an_output_leave_a_hidden_copy(notebook: dict[str, str]) -> None:
    assert "`_`, the last result (also" in notebook["del Out"]
    assert "`_`, the last result, in IPython's own copy\n" in notebook["still"]
    assert notebook["forgotten"] == "gone: nobody refers to the Session"


def test_in_a_notebook_results_go_on_being_kept_after_the_history_was_forgotten(notebook: dict[str, str]) -> None:
    assert notebook["underscore"] == "42 {10: 42}"


def test_in_a_notebook_what_a_shown_list_holds_is_found(notebook: dict[str, str]) -> None:
    assert "item 0 of the list `Out[13]` (the output history; also `_`, `_13`, IPython's record" in notebook["listed"]
    assert notebook["forget the list"].startswith(
        "1 thing refers to this Session:\n  1. the notebook variable `session`"
    )


def test_in_a_notebook_the_last_error_keeps_what_its_calls_held(notebook: dict[str, str]) -> None:
    assert "has no attribute 'sing'" in notebook["fail"]
    assert notebook["failed"] == textwrap.dedent(
        """\
        2 things refer to this Session:
          1. attribute `.obj` of the AttributeError object `sys.last_value` (the last error)
             to let go: `teachllama.memory.forget_history()`
          2. the local variable `story` of the function `tell`, in the traceback of an AttributeError,
             held by `sys.last_value` (the last error)
             to let go: `teachllama.memory.forget_history()`"""
    )
    assert notebook["error forgotten"] == "gone: nobody refers to the Session"


def test_in_a_notebook_a_functions_variable_is_named_with_its_function(notebook: dict[str, str]) -> None:
    text = notebook["locals of a cell's function"]
    assert text.startswith("1 thing refers to this Session:\n  1. the local variable `s` of the running function `f`\n")
