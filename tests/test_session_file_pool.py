"""Pooled and quantized sessions in files: any cache continues bit for bit, from a pool, into one, or both."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl
from tests.families import build
from tests.session_file_peer import go_on

REFERENCE: dict[str, Any] = {"weights": "f32", "backend": "numpy"}


def ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


@pytest.mark.parametrize("variant", ["llama", "gemma3", "deepseek2-yarn"])
@pytest.mark.parametrize("kv_dtype", ["bf16", "q8_0", "q4_0", ("q8_0", "f16"), "f32"])
@pytest.mark.parametrize(("here", "there"), list(itertools.product(["own", "pool"], ["own", "pool"])))
def test_any_cache_goes_on_bit_for_bit(variant: str, kv_dtype: Any, here: str, there: str, tmp_path: Path) -> None:
    sizes = {"attention.key_length": 32, "attention.value_length": 32} if variant == "llama" else {}
    with tl.load_model(build(variant, tmp_path / "m.gguf", **sizes), **REFERENCE) as model:
        try:
            pool = model.create_pool(nbytes=8_000_000, kv_dtype=kv_dtype)
        except tl.ParameterError as e:
            pytest.skip(str(e))
        make = pool.create_session if here == "pool" else lambda **s: model.create_session(kv_dtype=kv_dtype, **s)
        with make(seq_len=300, seed=3) as session:
            session.eval(ids(200))
            session.sample(tl.SamplingParams(temperature=1.0))
            session.save(tmp_path / "s")
            with (pool if there == "pool" else model).load_session(tmp_path / "s") as loaded:
                assert loaded.restored == 200
                assert go_on(loaded, 30) == go_on(session, 30)
        info = tl.inspect_session(tmp_path / "s")
        assert info.kv_dtype == kv_dtype


def test_a_full_pool_refuses_and_keeps_its_pages(tmp_path: Path) -> None:
    with tl.load_model(build("llama", tmp_path / "m.gguf"), **REFERENCE) as model:
        with model.create_session(seq_len=300) as session:
            session.eval(ids(200))
            session.save(tmp_path / "s")
        pool = model.create_pool(nbytes=1_000_000)
        full = pool.create_session(seq_len=2000)
        with contextlib.suppress(tl.PoolFullError):
            while True:
                full.eval(ids(64))
        before = pool.counts().copy()
        with pytest.raises(tl.SessionFileError, match="there is no room for it") as caught:
            pool.load_session(tmp_path / "s")
        assert caught.value.reason == "memory"
        np.testing.assert_array_equal(pool.counts(), before)
        full.close()
        assert pool.load_session(tmp_path / "s").restored == 200


def test_a_pooled_chat_is_restored_within_its_pool(tmp_path: Path) -> None:
    from tests.test_chat import tiny_chat_model

    with tiny_chat_model(tmp_path) as model:
        pool = model.create_pool(nbytes=4_000_000)
        chat = tl.Chat(pool.create_session(seed=1))
        chat.ask("the inn", max_new_tokens=8)
        chat.save(tmp_path / "talk.session")
        copy = tl.Chat(pool.create_session())
        assert copy.load(tmp_path / "talk.session") == 0
        assert copy.session.tokens == chat.session.tokens
        assert type(copy.session._cache) is type(chat.session._cache)
        assert copy.ask("then", max_new_tokens=8) == chat.ask("then", max_new_tokens=8)
