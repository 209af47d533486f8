"""Prefix files: saved prefixes are reused bit for bit, and mismatches are refused by name."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama import checked_file
from tests.families import build
from tests.test_pool import assert_every_page_is_accounted_for, pool_of
from tests.test_session_file import REFERENCE, child, ids, posix, refused, resign
from tests.test_session_file_fuzz import MAX_S, N, mutated
from tests.tools import copy_as, tiny_metadata, tiny_model, tiny_tensors, write_gguf

PROMPTS = [ids(330), ids(200) + ids(150, 1), ids(140, 2)]  # the first two have 192 positions in common


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("m") / "llama.gguf", **{"llama.context_length": 512})


@pytest.fixture(scope="module")
def model(llama: Path) -> Iterator[tl.Model]:
    with tl.load_model(llama, **REFERENCE) as m:
        yield m


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    sizes = {"gemma3.context_length": 1000, "gemma3.attention.sliding_window": 40}
    with tl.load_model(tiny_model(tmp_path_factory.mktemp("m") / "g.gguf", "gemma3", **sizes), **REFERENCE) as m:
        yield m


def grow(pool: tl.Pool, prompts: list[list[int]], seq_len: int = 400) -> None:
    """Adds prompts to a pool's prefixes, one after another."""
    for prompt in prompts:
        with pool.create_session(seq_len=seq_len) as session:
            session.eval(prompt[pool.prefixes.attach(session, prompt) :])
            pool.prefixes.donate(session)


def first_logits(pool: tl.Pool, prompt: list[int], seq_len: int = 400) -> tuple[int, bytes]:
    """The number of reused positions of a prompt, and the logits after the whole prompt."""
    with pool.create_session(seq_len=seq_len) as session:
        n = pool.prefixes.attach(session, prompt)
        logits = session.eval(prompt[n:]).tobytes()
        assert session.stats.reused == 0 or session.stats.reused == n
        return n, logits


def contents(pool: tl.Pool) -> dict[tuple[int, ...], list[bytes | None]]:
    """Maps every prefix of a pool, as tokens, to the bytes of each layer's page of its last block."""
    names: dict[Any, tuple[int, ...]] = {root: (i,) for i, root in enumerate(pool.prefixes.roots)}
    found = {}
    for node in pool.prefixes.nodes():
        names[node] = names[node.parent] + node.tokens
        found[names[node]] = [None if p < 0 else pool.memory(p).tobytes() for p in node.pages]
    return found


@pytest.fixture
def saved(model: tl.Model, tmp_path: Path) -> Path:
    """A file with the prefixes of three prompts, nine blocks."""
    with pool_of(model, 20) as pool:
        grow(pool, PROMPTS)
        pool.prefixes.save(tmp_path / "a.prefixes")
    return tmp_path / "a.prefixes"


# Round trips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "kv_dtype"),
    [("gemma3", "q8_0"), ("deepseek2-yarn", "f16"), ("llama", ("q8_0", "f16"))],
)
def test_a_matching_prompt_reuses_pages_and_gives_the_logits_it_gave_before(
    variant: str, kv_dtype: Any, tmp_path: Path
) -> None:
    sizes = {"attention.key_length": 32, "attention.value_length": 32} if variant == "llama" else {}
    with (
        tl.load_model(build(variant, tmp_path / "m.gguf", **sizes), **REFERENCE) as model,
        pool_of(model, 30, kv_dtype) as here,
        pool_of(model, 30, kv_dtype) as there,
    ):
        grow(here, PROMPTS)
        before = [first_logits(here, prompt) for prompt in PROMPTS]
        assert max(n for n, _ in before) == 320
        here.prefixes.save(tmp_path / "p")
        n = there.prefixes.load(tmp_path / "p")
        assert n == here.prefixes.statistics.n_tokens == tl.inspect_prefixes(tmp_path / "p").n_tokens
        assert contents(there) == contents(here)
        assert [first_logits(there, prompt) for prompt in PROMPTS] == before
        assert_every_page_is_accounted_for(there, [])


def test_only_whole_pages_and_tokens_are_in_the_file_and_each_once(
    model: tl.Model, windowed: tl.Model, saved: Path
) -> None:
    info = tl.inspect_prefixes(saved)
    assert (info.tokens.shape, info.n_pages, len(info.ends())) == ((9, 64), 9 * model.config.n_layers, 3)
    assert sorted(t.name for t in info.tensors if not t.name.startswith("layer.")) == ["held", "parents", "tokens"]
    assert info.kv_nbytes == model.config.kv_layout.bytes(9 * 64, "f32")
    assert {tuple(info.prefix(end)) for end in info.ends()} == {tuple(p[: len(p) // 64 * 64]) for p in PROMPTS}
    with pool_of(windowed, 20) as pool:
        grow(pool, [ids(300)])
        pool.prefixes.save(saved)
        info = tl.inspect_prefixes(saved)
        assert info.n_pages == pool.prefixes.statistics.n_pages < info.held.size


def test_statistics_are_true_after_loading(model: tl.Model, saved: Path) -> None:
    with pool_of(model, 20) as pool:
        grow(pool, PROMPTS[:1])
        assert pool.prefixes.load(saved) == 4 * 64  # 5 of the 9 blocks existed already
        s = pool.prefixes.statistics
        assert (s.n_tokens, s.n_pages, s.n_loaded) == (9 * 64, 9 * model.config.n_layers, 4 * 64)
        assert (s.n_lookups, s.n_hits, s.n_reused, s.n_evicted) == (1, 0, 0, 0)
        assert s.n_idle_pages == s.n_pages == pool.n_pages - pool.n_free
        assert pool.prefixes.load(saved) == 0
        assert first_logits(pool, PROMPTS[1])[0] == 320
        assert pool.prefixes.statistics.n_reused == 320


def test_an_empty_tree_saves_and_loads(model: tl.Model, tmp_path: Path) -> None:
    with pool_of(model, 4) as pool:
        pool.prefixes.save(tmp_path / "p")
        assert pool.prefixes.load(tmp_path / "p") == 0
        assert tl.inspect_prefixes(tmp_path / "p").ends() == []


def test_what_was_used_last_goes_last_and_loaded_prefixes_go_first(model: tl.Model, tmp_path: Path) -> None:
    old, new, here = ids(70, 4), ids(70, 5), ids(70, 6)
    with pool_of(model, 3) as pool, pool_of(model, 3) as other:
        grow(pool, [old, new])
        pool.prefixes.save(tmp_path / "p")
        grow(other, [here])
        other.prefixes.load(tmp_path / "p")
        for gone in (old, new, here):
            assert other.prefixes.match(gone) == 64
            other.prefixes.evict(1)
            assert other.prefixes.match(gone) == 0


def test_a_pool_too_small_refuses_or_takes_what_was_used_last(model: tl.Model, saved: Path) -> None:
    with pool_of(model, 7) as pool:
        blocker = pool.create_session(seq_len=400)
        blocker.eval(ids(64, 7))
        text = str(refused(lambda: pool.prefixes.load(saved), "memory", "are free", "partial=True"))
        assert f"needs {9 * model.config.n_layers} pages" in text
        assert f"{6 * model.config.n_layers} of the pool's" in text
        assert pool.prefixes.statistics.n_tokens == 0
        assert pool.prefixes.load(saved, partial=True) == 6 * 64
        assert [pool.prefixes.match([*prompt, 0]) for prompt in PROMPTS] == [192, 256, 128]  # PROMPTS[2] was used last
        assert pool.prefixes.load(saved, partial=True) == 0  # nothing is evicted to make room
        assert_every_page_is_accounted_for(pool, [blocker])


def test_sessions_that_turn_keys_by_other_frequencies_share_no_prefix(tmp_path: Path) -> None:
    prompt = ids(90)
    with (
        tl.load_model(build("phi3-long", tmp_path / "m.gguf"), **REFERENCE) as model,
        pool_of(model, 12) as pool,
        pool_of(model, 12) as other,
    ):
        with model.create_session(seq_len=100) as short, model.create_session(seq_len=200) as long:
            alone = [short.eval(prompt), long.eval(prompt)]
        grow(pool, [prompt], seq_len=100)
        assert (pool.prefixes.match(prompt, 100), pool.prefixes.match(prompt, 200)) == (64, 0)
        grow(pool, [prompt], seq_len=200)
        pool.prefixes.save(tmp_path / "p")
        assert other.prefixes.load(tmp_path / "p") == 128
        for seq_len, expected in zip((100, 200), alone, strict=True):
            n, logits = first_logits(other, prompt, seq_len)
            assert n == 64
            np.testing.assert_allclose(np.frombuffer(logits, np.float32), expected, rtol=0, atol=1e-4)


def test_a_windowed_session_from_a_file_donates_only_pages_that_are_whole(windowed: tl.Model, tmp_path: Path) -> None:
    prompt = ids(260)
    with pool_of(windowed, 40) as pool, pool_of(windowed, 40) as fresh:
        with fresh.create_session(seq_len=1000) as junk:
            junk.eval(ids(300, 9))  # reused pages still hold old data
        with pool.create_session(seq_len=1000) as session:
            session.eval(prompt)
            session.save(tmp_path / "s")
        with fresh.load_session(tmp_path / "s") as loaded:
            fresh.prefixes.donate(loaded)
        reused = set()
        for n in range(65, 261, 64):
            with windowed.create_session(seq_len=1000) as alone, fresh.create_session(seq_len=1000) as session:
                k = fresh.prefixes.attach(session, prompt[:n])
                reused.add(k)
                np.testing.assert_allclose(session.eval(prompt[k:n]), alone.eval(prompt[:n]), rtol=0, atol=1e-4)
        assert reused == {0, 256}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.integers(0, 3), st.integers(65, 300)),
        st.tuples(st.just("evict"), st.integers(1, 12), st.just(0)),
        st.tuples(st.just("load"), st.booleans(), st.just(0)),
        st.tuples(st.just("move"), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(work=OPERATIONS)
def test_whatever_was_done_a_tree_goes_to_a_file_and_comes_back(windowed: tl.Model, work: Any, saved: Path) -> None:
    with pool_of(windowed, 14) as pool:
        pool.prefixes.save(path := saved.with_name("b.prefixes"))
        for kind, value, n in work:
            if kind == "grow":
                grow(pool, [(ids(128) + ids(192, int(value)))[:n]])
            elif kind == "evict":
                pool.prefixes.evict(int(value))
            elif kind == "load":
                try:
                    pool.prefixes.load(path, partial=bool(value))
                except tl.SessionFileError as e:
                    assert e.reason == "memory"
            else:
                pool.prefixes.save(path)
                with pool_of(windowed, 14) as other:
                    assert other.prefixes.load(path) == pool.prefixes.statistics.n_tokens
                    assert contents(other) == contents(pool)
            assert_every_page_is_accounted_for(pool, [])


# Mismatches -----------------------------------------------------------------------------------------------------------


def test_other_models_and_caches_are_refused_by_name(
    llama: Path, model: tl.Model, windowed: tl.Model, saved: Path, tmp_path: Path
) -> None:
    metadata = tiny_metadata(**{"llama.context_length": 512, "tokenizer.ggml.bos_token_id": 5})
    other_texts = write_gguf(tmp_path / "t.gguf", metadata, tiny_tensors(metadata))
    turned = tiny_model(tmp_path / "r.gguf", **{"llama.context_length": 512, "llama.rope.freq_base": 777.0})
    quantized = copy_as(llama, tmp_path / "q.gguf", T.Q8_0)
    for path, reason in ((quantized, "other quantization"), (turned, "other rope"), (other_texts, "other tokenizer")):
        with tl.load_model(path, **REFERENCE) as m, pool_of(m, 20) as pool:
            error = refused(lambda pool=pool: pool.prefixes.load(saved), reason)
            assert "rebuild" not in str(error)
    with pool_of(windowed, 20) as pool:
        refused(lambda: pool.prefixes.load(saved), "other model", "gemma3")
    with pool_of(model, 20, "f16") as pool:
        refused(lambda: pool.prefixes.load(saved), "other cache type", "f32", "'f16'")
    with pool_of(model, 20) as pool:
        larger = resign(saved, lambda t, h, m: (h.update(page=32), t.update(tokens=t["tokens"].reshape(-1, 32)[:9])))
        refused(lambda: pool.prefixes.load(larger), "other page size", "32 positions", "64")
        newer = resign(saved, lambda t, h, m: m.update(version="2"))
        refused(lambda: pool.prefixes.load(newer), "newer version", "pip install")


def test_sessions_and_prefixes_are_not_taken_for_each_other(model: tl.Model, saved: Path, tmp_path: Path) -> None:
    with model.create_session(seq_len=20) as session, pool_of(model, 4) as pool:
        session.eval([1])
        session.save(tmp_path / "s")
        refused(lambda: pool.prefixes.load(tmp_path / "s"), "not a prefix file", "model.load_session()")
    refused(lambda: model.load_session(saved), "not a session file", "pool.prefixes.load()")
    refused(lambda: tl.inspect_session(saved), "not a session file")


def twice(t: dict[str, np.ndarray], h: Any, m: Any) -> None:
    t["tokens"][8], t["parents"][8] = t["tokens"][7], t["parents"][7]


FORGERIES: dict[str, Callable[..., Any]] = {
    "a circle": lambda t, h, m: t["parents"].__setitem__(0, 5),
    "a block that is its own parent": lambda t, h, m: t["parents"].__setitem__(3, 3),
    "a parent that comes later": lambda t, h, m: t["parents"].__setitem__(3, 8),
    "a parent far below": lambda t, h, m: t["parents"].__setitem__(3, -(2**31)),
    "a root of long sessions": lambda t, h, m: t["parents"].__setitem__(0, -2),
    "a block that is there twice": twice,
    "a page that full attention lacks": lambda t, h, m: t["held"].__setitem__((1, 4), 0),
    "pages that are there seven times": lambda t, h, m: t["held"].__setitem__((1, 4), 7),
    "a layer too few": lambda t, h, m: t.update(held=t["held"][:-1]),
    "tokens outside the vocabulary": lambda t, h, m: t["tokens"].__setitem__((3, 3), 10**6),
    "negative tokens": lambda t, h, m: t["tokens"].__setitem__((3, 3), -1),
    "fewer tokens": lambda t, h, m: t.update(tokens=t["tokens"][:-1]),
    "fewer pages": lambda t, h, m: t.update({"layer.0.k": t["layer.0.k"][:-1]}),
    "another shape": lambda t, h, m: t.update({"layer.0.k": t["layer.0.k"].reshape(9, 1, 64, -1)}),
    "another type": lambda t, h, m: t.update({"layer.0.k": t["layer.0.k"].astype(np.float16)}),
    "a missing tensor": lambda t, h, m: t.pop("layer.1.v"),
    "a tensor too many": lambda t, h, m: t.update(x=np.zeros(3, np.float32)),
    "no parents": lambda t, h, m: t.pop("parents"),
    "more blocks than there are": lambda t, h, m: h.update(n_blocks=10),
    "blocks without end": lambda t, h, m: h.update(n_blocks=2**62),
    "blocks that are no number": lambda t, h, m: h.update(n_blocks="9"),
    "a page of no positions": lambda t, h, m: h.update(page=0),
    "a cache type nobody has": lambda t, h, m: h.update(kv_dtype="f8"),
    "a version before the first": lambda t, h, m: m.update(version="0"),
    "no checksums": lambda t, h, m: h.update(checksums={}),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_tree_is_refused_though_its_checksums_are_right(model: tl.Model, saved: Path, forgery: str) -> None:
    forged = resign(saved, FORGERIES[forgery])
    with pool_of(model, 20) as pool:
        with pytest.raises(tl.SessionFileError) as caught:
            pool.prefixes.load(forged)
        assert str(forged) in str(caught.value)
        assert not caught.value.can_rebuild
        assert (pool.n_free, pool.prefixes.statistics.n_tokens) == (pool.n_pages, 0)


def test_a_very_deep_tree_is_read_without_recursion(model: tl.Model, saved: Path) -> None:
    n = 3 * sys.getrecursionlimit()

    def deepen(t: dict[str, np.ndarray], h: Any, m: Any) -> None:
        h["n_blocks"] = n
        t.update(tokens=np.zeros((n, 64), np.int32), parents=np.arange(-1, n - 1, dtype=np.int32))
        t["held"] = np.ones((len(t["held"]), n), np.uint8)
        t.update({name: np.zeros((n, *a.shape[1:]), a.dtype) for name, a in t.items() if name.startswith("layer.")})

    deep = resign(saved, deepen)
    assert len(tl.inspect_prefixes(deep).prefix(n - 1)) == 64 * n
    with pool_of(model, 20) as pool:
        refused(lambda: pool.prefixes.load(deep), "memory")
        assert pool.prefixes.load(deep, partial=True) == 20 * 64
    with pool_of(model, n) as pool:
        assert pool.prefixes.load(deep) == 64 * n
        assert pool.prefixes.match([0] * 500) == 448
        pool.prefixes.clear()
        assert pool.n_free == pool.n_pages


def test_truncation_and_flipped_bits_are_refused(model: tl.Model, saved: Path) -> None:
    raw = saved.read_bytes()
    with pool_of(model, 20) as pool:
        for n in [0, 5, 9, *range(100, len(raw), len(raw) // 7), len(raw) - 1]:
            saved.write_bytes(raw[:n])
            refused(lambda: pool.prefixes.load(saved), "truncated")
        for at in range(40, len(raw), len(raw) // 37):
            flipped = bytearray(raw)
            flipped[at] ^= 4
            saved.write_bytes(flipped)
            with pytest.raises(tl.SessionFileError):
                pool.prefixes.load(saved)
        assert (pool.n_free, pool.prefixes.statistics.n_tokens) == (pool.n_pages, 0)
        saved.write_bytes(raw)
        assert pool.prefixes.load(saved) == 9 * 64


@pytest.mark.parametrize("forged", [False, True])
def test_no_mutated_file_crashes_hangs_or_gives_a_wrong_page(model: tl.Model, saved: Path, forged: bool) -> None:
    raw, target = saved.read_bytes(), saved.with_name("mutant")
    with pool_of(model, 20) as pool:
        pool.prefixes.load(saved)
        honest = contents(pool)
        for seed in range(N // 8):
            rng = np.random.default_rng(seed)
            if forged:
                where = ["tokens", "parents", "held", "layer.0.k"][seed % 4]

                def edit(t: Any, h: Any, m: Any, rng: Any = rng, where: str = where) -> None:
                    flat = t[where].reshape(-1)
                    flat[rng.integers(0, flat.size, 3)] = rng.integers(0, 9, 3)
                    if rng.random() < 0.2:
                        t[where] = t[where][: int(rng.integers(0, 10))]
                        h["n_blocks"] = int(rng.integers(0, 12))

                target = resign(saved, edit)
            else:
                target.write_bytes(mutated(raw, rng))
            pool.prefixes.clear()
            began = time.process_time()
            try:
                pool.prefixes.load(target, partial=bool(seed % 2))
            except tl.TeachLlamaError as e:
                assert isinstance(e, tl.SessionFileError), seed
                assert pool.n_free == pool.n_pages, seed
            else:
                assert forged or contents(pool) == honest, seed
                assert_every_page_is_accounted_for(pool, [])
                first_logits(pool, PROMPTS[0])
            assert time.process_time() - began < MAX_S, seed


# Paths, writers, faults -----------------------------------------------------------------------------------------------


@posix
def test_the_file_is_its_owners_alone_and_links_are_not_replaced(model: tl.Model, saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    (link := saved.with_name("link")).symlink_to(saved)
    with pool_of(model, 20) as pool:
        refused(lambda: pool.prefixes.save(link), "symbolic link")
        refused(lambda: pool.prefixes.save(saved.parent), "not a file")
        refused(lambda: pool.prefixes.load(saved.with_name("none")), "missing")
        assert pool.prefixes.load(link) == 9 * 64


@pytest.mark.parametrize("step", ["mkdtemp", "fsync", "replace"])
def test_an_error_while_saving_leaves_the_old_file_the_tree_and_nothing_else(
    model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    old = saved.read_bytes()
    with pool_of(model, 20) as pool, monkeypatch.context() as m:
        grow(pool, PROMPTS[:1])
        m.setattr(checked_file.tempfile if step == "mkdtemp" else os, step, fails)
        refused(lambda: pool.prefixes.save(saved), "disk full", "as it was")
        assert pool.prefixes.statistics.n_idle_pages == 5 * model.config.n_layers
    assert saved.read_bytes() == old
    assert os.listdir(saved.parent) == [saved.name]


def test_too_little_memory_and_closed_pools_are_refused(
    model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(model, 20)
    grow(pool, PROMPTS[:1])
    with monkeypatch.context() as m:
        m.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 100}))
        refused(lambda: pool.prefixes.save(saved), "memory", "100 are available")
        refused(lambda: pool.prefixes.load(saved), "memory", "100 are available")
    pool.close()
    for call in (pool.prefixes.save, pool.prefixes.load):
        with pytest.raises(tl.ClosedError, match="pool was closed"):
            call(saved)


def test_an_interrupt_in_the_middle_of_loading_loses_no_page(
    model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checked_file.CheckedFile.read

    def interrupted(self: Any, name: str) -> np.ndarray:
        if name == "layer.1.v":
            raise KeyboardInterrupt
        return read(self, name)

    with pool_of(model, 20) as pool:
        with monkeypatch.context() as m:
            m.setattr(checked_file.CheckedFile, "read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.prefixes.load(saved)
        assert (pool.n_free, pool.prefixes.statistics.n_tokens) == (pool.n_pages, 0)
        assert pool.prefixes.load(saved) == 9 * 64


@posix
def test_of_two_writers_the_last_whole_file_wins_and_no_reader_sees_a_mixture(model: tl.Model, saved: Path) -> None:
    with pool_of(model, 20) as one, pool_of(model, 20) as two, pool_of(model, 20) as reader:
        grow(one, PROMPTS[:1])
        grow(two, PROMPTS[1:])
        expected = [contents(one), contents(two)]
        one.prefixes.save(saved)

        def work(pool: tl.Pool) -> None:
            for _ in range(8):
                pool.prefixes.save(saved)

        running = {child(lambda pool=pool: work(pool)) for pool in (one, two)}
        while running:
            reader.prefixes.clear()
            reader.prefixes.load(saved)
            assert contents(reader) in expected
            running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
    assert os.listdir(saved.parent) == [saved.name]


def test_threads_may_save_load_and_serve_at_once(model: tl.Model, saved: Path) -> None:
    errors: list[BaseException] = []
    with pool_of(model, 24) as pool:

        def work() -> None:
            try:
                for _ in range(6):
                    pool.prefixes.save(saved)
                    pool.prefixes.load(saved, partial=True)
                    pool.prefixes.clear()
            except BaseException as e:
                errors.append(e)

        expected = first_logits(pool, PROMPTS[0])[1]
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            np.testing.assert_allclose(
                np.frombuffer(first_logits(pool, PROMPTS[0])[1], np.float32),
                np.frombuffer(expected, np.float32), rtol=0, atol=1e-4,
            )  # fmt: skip
            grow(pool, PROMPTS[:2])
        thread.join()
        assert not errors
        assert_every_page_is_accounted_for(pool, [])


def test_the_command_says_what_is_inside(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from teachllama.cli import main

    assert main(["session", str(saved)]) == 0
    text = capsys.readouterr().out
    for words in (
        "prefixes, ",
        "576 positions in 9 blocks of 64",
        "3 prefixes",
        "all checksums right",
        "0: 128 positions",
    ):
        assert words in text, text
    assert main(["session", str(saved), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_blocks"], found["page"], len(found["tokens"]), len(found["parents"])) == (9, 64, 9, 9)
    saved.write_bytes(saved.read_bytes()[:-1])
    assert main(["session", str(saved)]) == 1
