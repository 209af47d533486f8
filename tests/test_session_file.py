"""Session files: saved sessions continue bit for bit, and mismatches are refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import teachllama as tl
from teachllama import checked_file, session_file
from teachllama.gguf_file import open_gguf
from teachllama.kv.cache import KVCache
from teachllama.session_file import SessionFile
from tests.families import build
from tests.session_file_peer import WARM, go_on
from tests.tools import copy_as, tiny_metadata, tiny_model, tiny_tensors, write_gguf

REFERENCE: dict[str, Any] = {"weights": "f32", "backend": "numpy"}
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, signals or modes")


def ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("m") / "llama.gguf", **{"llama.context_length": 512})


@pytest.fixture(scope="module")
def model(llama: Path) -> Iterator[tl.Model]:
    with tl.load_model(llama, **REFERENCE) as m:
        yield m


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    path = tiny_model(tmp_path_factory.mktemp("m") / "gemma3.gguf", "gemma3", **{"gemma3.context_length": 512})
    with tl.load_model(path, **REFERENCE) as m:
        yield m


@pytest.fixture
def saved(model: tl.Model, tmp_path: Path) -> Path:
    """A file with a session of 40 positions."""
    with model.create_session(seq_len=64, seed=5) as session:
        session.eval(ids(40))
        session.sample(WARM)
        session.save(tmp_path / "a.session")
    return tmp_path / "a.session"


def resign(path: Path, edit: Callable[[dict[str, np.ndarray], dict[str, Any], dict[str, str]], None]) -> Path:
    """Changes a session or prefix file and recomputes all its checksums, as an attacker would.

    Args:
        edit: changes tensors, the header and the metadata in place.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
    field = "session" if "session" in metadata else "prefixes"
    tensors, header = load_file(path), json.loads(metadata[field])
    edit(tensors, header, metadata)
    if header.get("checksums"):
        header["checksums"] = {name: checked_file.checksum(a) for name, a in tensors.items()}
    metadata[field] = json.dumps(header)
    table = [
        checked_file.Tensor(n, checked_file.dtype_name(a.dtype), a.shape, a.nbytes)
        if a.dtype in list(map(np.dtype, checked_file.NAMES.values()))
        else checked_file.Tensor(n, str(a.dtype), a.shape, a.nbytes)
        for n, a in tensors.items()
    ]
    metadata["digest"] = checked_file.digest(metadata, table)
    target = path.with_name("edited.session")
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, target, metadata)
    return target


def refused(load: Callable[[], Any], reason: str, *words: str, can_rebuild: bool = False) -> tl.SessionFileError:
    with pytest.raises(tl.SessionFileError) as caught:
        load()
    assert caught.value.reason == reason, caught.value
    assert caught.value.can_rebuild == can_rebuild, caught.value
    for word in words:
        assert word in str(caught.value), caught.value
    return caught.value


# Round trips ----------------------------------------------------------------------------------------------------------

VARIANTS = ("llama", "gemma3", "deepseek2-yarn", "llama-layers", "phi3-long")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("eval"), st.integers(1, 40)),
        st.tuples(st.just("sample"), st.integers(1, 3)),
        st.tuples(st.just("rewind"), st.floats(0, 1)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=10,
)


@pytest.fixture(scope="module", params=[*VARIANTS, "llama-kernels"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ...]]:
    """A model, and a function that asks another process to load a session file of it and continue."""
    how = dict(REFERENCE)
    if request.param == "llama-kernels":
        pytest.importorskip("numba")
        how = {"weights": "native", "backend": "numba"}
    folder = tmp_path_factory.mktemp("peer")
    path = build(request.param.removesuffix("-kernels"), folder / "m.gguf")
    command = [sys.executable, "-m", "tests.session_file_peer", str(path), how["backend"], how["weights"]]
    peer = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    assert peer.stdin is not None
    assert peer.stdout is not None

    def ask(file: Path, steps: int) -> dict[str, Any]:
        assert peer.stdin is not None
        assert peer.stdout is not None
        print(json.dumps({"path": str(file), "steps": steps}), file=peer.stdin, flush=True)
        return json.loads(peer.stdout.readline())

    with tl.load_model(path, **how) as model:
        yield model, ask, folder
    peer.stdin.close()
    peer.stdout.close()
    peer.wait()


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, kv_dtype=st.sampled_from(["f32", "f16"]), swa_full=st.booleans(), seed=st.integers(0, 2**70))
def test_another_process_goes_on_bit_for_bit(
    both: tuple[Any, ...], steps: list[tuple[str, Any]], kv_dtype: str, swa_full: bool, seed: int
) -> None:
    model, ask, folder = both
    with model.create_session(seq_len=300, kv_dtype=kv_dtype, swa_full=swa_full, seed=seed) as session:
        for what, n in steps:
            if what == "eval":
                session.eval(ids(min(n, 280 - session.n_past) or 1, session.n_past))
            elif what == "sample":
                for _ in range(n if session._logits is not None else 0):
                    session.sample(WARM)
            elif what == "rewind":
                lowest = session.can_rewind_to
                session.rewind(0 if n < 0.1 else lowest + int(n * (session.n_past - lowest)))
            else:
                session.reset()
        session.save(folder / "s.session")
        n_past = session.n_past
        answer = ask(folder / "s.session", 12)
        assert answer.pop("restored") == n_past
        assert answer == go_on(session, 12)  # saving did not change the session


def test_a_loaded_session_has_everything_the_saved_one_had(model: tl.Model, saved: Path) -> None:
    with model.create_session(seq_len=64, seed=5) as session, model.load_session(saved) as loaded:
        session.eval(ids(40))
        assert (loaded.n_past, loaded.seq_len, loaded.seed, loaded.kv_dtype) == (40, 64, 5, "f32")
        assert loaded.tokens == session.tokens
        np.testing.assert_array_equal(loaded.logits, session.logits)
        np.testing.assert_array_equal(loaded.k_cache, session.k_cache)
        np.testing.assert_array_equal(loaded.v_cache, session.v_cache)
        assert loaded in model.sessions
        loaded.reset()
        session.reset()
        assert loaded.eval([1]).tobytes() == session.eval([1]).tobytes()
        assert [loaded.sample(WARM) for _ in range(9)] == [session.sample(WARM) for _ in range(9)]


def test_only_written_positions_are_in_the_file(windowed: tl.Model, tmp_path: Path) -> None:
    window = 8
    with windowed.create_session(seq_len=512, kv_dtype="f16") as session:
        session.eval(ids(400))
        session.save(tmp_path / "s")
        kept_from = session._cache.kept_from
        assert kept_from > 300
        info = tl.inspect_session(tmp_path / "s")
    shapes = {t.name: (t.dtype, t.shape) for t in info.tensors}
    assert shapes["layer.5.k"] == ("F16", (2, 400, 16))  # the only layer without a window
    assert shapes["layer.0.v"] == ("F16", (2, 400 - kept_from, 16))
    assert info.kv_nbytes == 2 * 2 * 2 * 16 * (400 + 6 * (400 - kept_from))
    assert info.can_rewind_to == kept_from + window - 1
    with windowed.create_session(seq_len=512) as empty:
        empty.save(tmp_path / "e")
    assert (tl.inspect_session(tmp_path / "e").n_past, windowed.load_session(tmp_path / "e").n_past) == (0, 0)


def test_latent_attention_saves_one_tensor_per_layer(tmp_path: Path) -> None:
    with tl.load_model(build("deepseek2-yarn", tmp_path / "m.gguf"), **REFERENCE) as m:
        with m.create_session(seq_len=32) as session:
            session.eval(ids(9))
            session.save(tmp_path / "s")
        names = {t.name for t in tl.inspect_session(tmp_path / "s").tensors}
    assert names == {"tokens", "logits", "layer.0.k", "layer.1.k", "layer.2.k"}


def test_restored_reused_and_recomputed_are_true(model: tl.Model, saved: Path) -> None:
    with model.load_session(saved) as loaded:
        assert loaded.restored == loaded.n_past == 40
        loaded.eval([1, 2])
        assert (loaded.stats.reused, loaded.stats.recomputed) == (40, 0)
        list(loaded.generate([5], max_new_tokens=2))
        assert (loaded.stats.reused, loaded.stats.recomputed) == (42, 0)
        assert loaded.fork().restored == 40
        loaded.reset()
        assert loaded.restored == 0
        list(loaded.generate([5], max_new_tokens=2))
        assert loaded.stats.reused == 0
    with model.load_session(saved) as loaded:
        loaded.rewind(10)
        list(loaded.generate([5], max_new_tokens=2))
        assert (loaded.stats.reused, loaded.stats.recomputed) == (10, 0)
    with model.load_session(saved, kv_dtype="f16", rebuild=True) as rebuilt:
        assert (rebuilt.restored, rebuilt.n_past) == (0, 40)
        list(rebuilt.generate([5], max_new_tokens=2))
        assert (rebuilt.stats.reused, rebuilt.stats.recomputed) == (0, 40)


def test_what_the_last_generation_did_is_kept(model: tl.Model, tmp_path: Path) -> None:
    with model.create_session(seq_len=64) as session:
        list(session.generate(ids(5), max_new_tokens=7))
        session.save(tmp_path / "s")
        with model.load_session(tmp_path / "s") as loaded:
            assert loaded.stats == session.stats


def test_a_file_is_the_same_whoever_saves_the_same_session(model: tl.Model, saved: Path, tmp_path: Path) -> None:
    with model.load_session(saved) as loaded:
        loaded.save(tmp_path / "b.session")
    a, b = tl.inspect_session(saved), tl.inspect_session(tmp_path / "b.session")
    assert dataclasses.replace(a, path="", tokens=None) == dataclasses.replace(b, path="", tokens=None)


def test_forked_rewound_and_half_filled_sessions_save(model: tl.Model, tmp_path: Path) -> None:
    with model.create_session(seq_len=64, seed=1) as session:
        session.eval(ids(30))
        with session.fork(seed=9) as fork:
            fork.rewind(20)
            fork.save(tmp_path / "fork")
            with model.load_session(tmp_path / "fork") as loaded:
                assert (loaded.n_past, loaded.seed) == (20, 9)
                with pytest.raises(tl.TeachLlamaError, match="no logits yet"):
                    loaded.logits
                assert loaded.eval([7]).tobytes() == fork.eval([7]).tobytes()


def test_both_backends_and_forms_of_the_weights_share_session_files(llama: Path, saved: Path) -> None:
    pytest.importorskip("numba")
    with tl.load_model(llama) as compiled, tl.load_model(llama, **REFERENCE) as reference:
        assert compiled.fingerprint == reference.fingerprint
        with compiled.load_session(saved) as a, reference.load_session(saved) as b:
            np.testing.assert_allclose(a.eval([4]), b.eval([4]), atol=1e-4)


def test_a_longer_or_shorter_session_may_be_asked_for(model: tl.Model, saved: Path) -> None:
    with model.load_session(saved, seq_len=200) as longer, model.load_session(saved) as same:
        assert longer.seq_len == 200
        assert longer.eval([4]).tobytes() == same.eval([4]).tobytes()
    assert model.load_session(saved, seq_len=40).n_past == 40
    refused(lambda: model.load_session(saved, seq_len=39), "seq_len", "40 positions", "39")
    refused(lambda: model.load_session(saved, seq_len=0), "seq_len")


def test_a_file_with_whole_windows_may_be_loaded_without(windowed: tl.Model, tmp_path: Path) -> None:
    with windowed.create_session(seq_len=512, swa_full=True) as session:
        session.eval(ids(300))
        session.save(tmp_path / "s")
        with windowed.load_session(tmp_path / "s", swa_full=False) as loaded:
            assert loaded.can_rewind_to > 200
            np.testing.assert_allclose(loaded.eval([4]), session.eval([4]), atol=1e-5)  # summed in another order
        with windowed.load_session(tmp_path / "s") as loaded:
            assert loaded.can_rewind_to == 0


# Refusals -------------------------------------------------------------------------------------------------------------


def changed(
    source: Path, target: Path, tensors: Callable[[dict[str, np.ndarray]], None] = lambda t: None, **metadata: Any
) -> tl.Model:
    """Loads a changed copy of the tiny model."""
    with open_gguf(source) as file:
        values = dict(file.metadata) | metadata
        arrays = {n: np.array(file.tensor_bytes(n).view("<f4")).reshape(t.shape) for n, t in file.tensors.items()}
    tensors(arrays)
    return tl.load_model(write_gguf(target, values, arrays), **REFERENCE)


def test_another_model_is_refused(saved: Path, windowed: tl.Model, tmp_path: Path) -> None:
    for rebuild in (False, True):
        refused(lambda r=rebuild: windowed.load_session(saved, rebuild=r), "other model", "tiny llama", "tiny gemma3")
    metadata = tiny_metadata(**{"llama.context_length": 512})
    with tl.load_model(write_gguf(tmp_path / "m", metadata, tiny_tensors(metadata, seed=1)), **REFERENCE) as same_shape:
        refused(lambda: same_shape.load_session(saved, rebuild=True), "other model", "20 of 20 tensors differ")


def test_another_setting_of_the_model_is_refused(llama: Path, saved: Path, tmp_path: Path) -> None:
    with changed(llama, tmp_path / "m", **{"llama.attention.layer_norm_rms_epsilon": 1e-4}) as other:
        refused(lambda: other.load_session(saved), "other model", "settings differ")


def test_another_quantization_is_refused_or_rebuilt(llama: Path, saved: Path, tmp_path: Path) -> None:
    with tl.load_model(copy_as(llama, tmp_path / "q.gguf", T.Q8_0), **REFERENCE) as quantized:
        refused(
            lambda: quantized.load_session(saved), "other quantization", "F32", "Q8_0", "rebuild=True", can_rebuild=True
        )
        with (
            quantized.load_session(saved, rebuild=True) as loaded,
            quantized.create_session(seq_len=64, seed=5) as expected,
        ):
            assert loaded.restored == 0
            assert loaded.tokens == ids(40)
            np.testing.assert_array_equal(loaded.logits, expected.eval(ids(40)))
            expected.sample(WARM)
            assert loaded.sample(WARM) == expected.sample(WARM)  # the random numbers continue, too


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "token_embd.weight", "blk.0.attn_q.weight"])
def test_one_changed_weight_is_refused(llama: Path, saved: Path, tmp_path: Path, name: str) -> None:
    def one_bit(t: dict[str, np.ndarray]) -> None:
        t[name].reshape(-1).view(np.uint32)[-1] ^= 1

    with changed(llama, tmp_path / "m", one_bit) as other:
        refused(lambda: other.load_session(saved), "other weights", "1 of 20 tensors", name, can_rebuild=True)
        assert other.load_session(saved, rebuild=True).restored == 0


def test_one_changed_norm_is_another_model(llama: Path, saved: Path, tmp_path: Path) -> None:
    def one_bit(t: dict[str, np.ndarray]) -> None:
        t["output_norm.weight"].view(np.uint32)[3] ^= 1

    with changed(llama, tmp_path / "m", one_bit) as other:
        refused(lambda: other.load_session(saved, rebuild=True), "other model", "1 of 20 tensors", "output_norm.weight")


MERGES = tiny_metadata()["tokenizer.ggml.merges"]


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("merges", [*MERGES[:-2], MERGES[-1], MERGES[-2]], "merges"),
        ("merges", MERGES[:-1], "merges"),
        ("pre", "smollm", "rules"),
        ("add_bos_token", True, "rules"),
        ("eos_token_id", 3, "rules"),
        ("tokens", [*tiny_metadata()["tokenizer.ggml.tokens"][:-1], "<|end|>"], "texts or types"),
    ],
)
def test_another_tokenizer_is_refused(
    llama: Path, saved: Path, tmp_path: Path, key: str, value: Any, word: str
) -> None:
    with changed(llama, tmp_path / "m", **{f"tokenizer.ggml.{key}": value}) as other:
        for rebuild in (False, True):
            refused(lambda r=rebuild: other.load_session(saved, rebuild=r), "other tokenizer", word)


def test_a_tokenizer_whose_code_changed_is_refused(llama: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tl.load_model(llama, **REFERENCE) as other:
        other.tokenizer._split = lambda text: list(text)  # no merges across characters
        refused(lambda: other.load_session(saved), "other tokenizer", "probe text")


def test_other_rope_settings_are_refused_or_rebuilt(llama: Path, saved: Path, tmp_path: Path) -> None:
    for i, settings_ in enumerate(
        ({"llama.rope.freq_base": 10001.0}, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0})
    ):
        with changed(llama, tmp_path / f"{i}", **settings_) as other:
            refused(lambda: other.load_session(saved), "other rope", "RoPE", can_rebuild=True)
            with other.load_session(saved, rebuild=True) as a, other.create_session(seq_len=64) as b:
                np.testing.assert_array_equal(a.logits, b.eval(ids(40)))


def test_a_length_that_changes_the_rotation_is_refused(tmp_path: Path) -> None:
    with tl.load_model(build("phi3-long", tmp_path / "m.gguf"), **REFERENCE) as m:
        with m.create_session(seq_len=100) as session:
            session.eval(ids(9))
            session.save(tmp_path / "s")
        refused(lambda: m.load_session(tmp_path / "s", seq_len=200), "other rope", "LongRoPE", can_rebuild=True)
        assert m.load_session(tmp_path / "s", seq_len=120).restored == 9
        assert m.load_session(tmp_path / "s", seq_len=200, rebuild=True).restored == 0


def test_a_family_that_computes_otherwise_is_refused(saved: Path, llama: Path) -> None:
    with tl.load_model(llama, **REFERENCE) as other:
        other.spec = dataclasses.replace(other.spec, residual_scale=0.5)
        refused(lambda: other.load_session(saved), "other settings", "computed this model otherwise", can_rebuild=True)


def test_another_cache_type_than_asked_for_is_refused_or_rebuilt(model: tl.Model, saved: Path) -> None:
    refused(lambda: model.load_session(saved, kv_dtype="f16"), "other cache type", "f32", "'f16'", can_rebuild=True)
    assert model.load_session(saved, kv_dtype="f32").restored == 40
    with model.load_session(saved, kv_dtype="f16", rebuild=True) as loaded:
        assert (loaded.kv_dtype, loaded.restored) == ("f16", 0)
    refused(lambda: model.load_session(saved, kv_dtype="f17", rebuild=True), "other cache type", "f17")


def test_a_window_that_was_rolled_past_is_refused(windowed: tl.Model, tmp_path: Path) -> None:
    with windowed.create_session(seq_len=512) as session:
        session.eval(ids(300))
        session.save(tmp_path / "s")
        with windowed.load_session(tmp_path / "s") as loaded:
            assert loaded.can_rewind_to == session.can_rewind_to
            with pytest.raises(tl.TeachLlamaError, match="cannot rewind to position 100"):
                loaded.rewind(100)
            loaded.rewind(loaded.can_rewind_to)
            session.rewind(session.can_rewind_to)
            assert loaded.eval([4]).tobytes() == session.eval([4]).tobytes()
    refused(lambda: windowed.load_session(tmp_path / "s", swa_full=True), "window", "no longer hold", can_rebuild=True)
    with windowed.load_session(tmp_path / "s", swa_full=True, rebuild=True) as rebuilt:
        assert (rebuilt.can_rewind_to, rebuilt.restored, rebuilt.n_past) == (0, 0, 300)

    def later(tensors: dict[str, np.ndarray], header: dict[str, Any], metadata: dict[str, str]) -> None:
        gone = 297 - header["kept_from"]
        header["kept_from"], header["can_rewind_to"] = 297, 300
        for name, array in tensors.items():
            if name.startswith("layer.") and not name.startswith("layer.5."):
                tensors[name] = array[:, gone:]

    forged = resign(tmp_path / "s", later)
    refused(lambda: windowed.load_session(forged), "window", "attends to 8", can_rebuild=True)


def test_a_newer_version_is_refused_and_an_older_one_rebuilt(
    model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = resign(saved, lambda tensors, header, metadata: metadata.update(version="2"))
    refused(lambda: model.load_session(newer, rebuild=True), "newer version", "version 2", "up to 1", "pip install")
    refused(lambda: tl.inspect_session(newer), "newer version")
    monkeypatch.setattr(SessionFile, "VERSION", 2)
    with model.load_session(saved) as loaded:
        assert (loaded.restored, loaded.n_past) == (0, 40)
        np.testing.assert_allclose(loaded.logits, model.create_session(seq_len=64).eval(ids(40)))


def test_truncation_anywhere_is_refused(model: tl.Model, saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    cut = tmp_path / "cut"
    reasons = set()
    for n in [*range(12), *range(12, len(whole), 997), len(whole) - 1]:
        cut.write_bytes(whole[:n])
        with pytest.raises(tl.SessionFileError) as caught:
            model.load_session(cut)
        reasons.add(caught.value.reason)
    assert reasons == {"truncated"}
    cut.write_bytes(whole + b"\0")
    refused(lambda: model.load_session(cut), "truncated", "do not fit together")


def test_a_cache_damaged_on_the_disk_can_be_rebuilt_but_damaged_tokens_cannot(model: tl.Model, saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    at = whole.index(load_file(saved)["layer.1.v"].tobytes()) + 100
    whole[at] ^= 0x10
    saved.write_bytes(whole)
    refused(lambda: model.load_session(saved), "damaged", "layer.1.v", "at least one bit", can_rebuild=True)
    refused(lambda: tl.inspect_session(saved), "damaged", "layer.1.v", can_rebuild=True)
    assert tl.inspect_session(saved, verify=False).n_past == 40
    with model.load_session(saved, rebuild=True) as rebuilt:
        assert (rebuilt.restored, rebuilt.stats.recomputed) == (0, 0)
        rebuilt.eval([1])
        assert (rebuilt.stats.reused, rebuilt.stats.recomputed) == (0, 40)
    whole[at] ^= 0x10
    whole[whole.index(np.array(ids(40), np.int32).tobytes()) + 4] ^= 1
    saved.write_bytes(whole)
    refused(lambda: model.load_session(saved, rebuild=True), "damaged", "'tokens'")


FORGERIES: dict[str, Callable[..., None]] = {
    "a missing tensor": lambda t, h, m: t.pop("layer.0.k"),
    "no tokens": lambda t, h, m: t.pop("tokens"),
    "a tensor too many": lambda t, h, m: t.update(x=np.zeros(3, np.float32)),
    "a misnamed tensor": lambda t, h, m: t.update({"layer.00.k": t.pop("layer.0.k")}),
    "another shape": lambda t, h, m: t.update({"layer.0.k": t["layer.0.k"].reshape(1, -1, 8)}),
    "a transposed tensor": lambda t, h, m: t.update({"layer.0.k": t["layer.0.k"].transpose(1, 0, 2)}),
    "more positions than n_past": lambda t, h, m: t.update({"layer.0.k": np.repeat(t["layer.0.k"], 2, axis=1)}),
    "another type": lambda t, h, m: t.update({"layer.0.k": t["layer.0.k"].astype(np.float16)}),
    "a type no session has": lambda t, h, m: t.update({"layer.0.k": t["layer.0.k"].astype(np.float64)}),
    "integers for logits": lambda t, h, m: t.update(logits=np.zeros(len(t["logits"]), np.int32)),
    "fewer logits": lambda t, h, m: t.update(logits=t["logits"][:-1]),
    "tokens outside the vocabulary": lambda t, h, m: t["tokens"].__setitem__(3, 10**6),
    "negative tokens": lambda t, h, m: t["tokens"].__setitem__(3, -1),
    "n_past above the tokens": lambda t, h, m: h.update(n_past=41),
    "n_past below the tokens": lambda t, h, m: h.update(n_past=39),
    "n_past above seq_len": lambda t, h, m: h.update(n_past=65),
    "n_past that is no number": lambda t, h, m: h.update(n_past="40"),
    "n_past that is a fraction": lambda t, h, m: h.update(n_past=40.0),
    "a negative seq_len": lambda t, h, m: h.update(seq_len=-64),
    "an endless seq_len": lambda t, h, m: h.update(seq_len=2**62),
    "kept_from in a model without windows": lambda t, h, m: h.update(kept_from=5),
    "can_rewind_to that is not so": lambda t, h, m: h.update(can_rewind_to=5),
    "a cache type nobody has": lambda t, h, m: h.update(kv_dtype="f8"),
    "a cache type that is a list": lambda t, h, m: h.update(kv_dtype=["f32"]),
    "another cache type": lambda t, h, m: h.update(kv_dtype="f16"),
    "no random state": lambda t, h, m: h.pop("random"),
    "another generator": lambda t, h, m: h["random"].update(bit_generator="MT19937"),
    "a random state too large": lambda t, h, m: h["random"].update(state=hex(2**128)),
    "a random state in words": lambda t, h, m: h["random"].update(state="zero"),
    "a seed that is negative": lambda t, h, m: h.update(seed="-0x5"),
    "statistics of another type": lambda t, h, m: h["stats"].update(n_prompt=[]),
    "a fingerprint without a field": lambda t, h, m: h["model"].pop("weights"),
    "a fingerprint with short digests": lambda t, h, m: h["model"].update(tensors="", weights="0"),
    "no checksums": lambda t, h, m: h.update(checksums={}),
    "checksums of another type": lambda t, h, m: h.update(checksums=[]),
    "messages that are none": lambda t, h, m: m.update(messages='[{"role": 3}]'),
    "messages that are no JSON": lambda t, h, m: m.update(messages="{"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_file_is_refused_though_its_checksums_are_right(model: tl.Model, saved: Path, forgery: str) -> None:
    forged = resign(saved, FORGERIES[forgery])
    before = model.sessions
    with pytest.raises(tl.SessionFileError) as caught:
        model.load_session(forged)
    assert str(forged) in str(caught.value)
    assert model.sessions == before  # no session is left open


def test_the_honest_file_passes_through_the_forgers_hands(model: tl.Model, saved: Path) -> None:
    assert model.load_session(resign(saved, lambda t, h, m: None)).restored == 40


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"{}", "truncated"),
        (b'{"teachllama_chat": 1}', "not a session file"),
        ((2**40).to_bytes(8, "little") + b"{" + b" " * 100, "truncated"),
        ((2**64 - 1).to_bytes(8, "little") + b"{}" + b" " * 100, "truncated"),
        ((2).to_bytes(8, "little") + b"{}", "not a session file"),
        ((9).to_bytes(8, "little") + b'{"a":{}}}', "damaged"),
        (b"GGUF" + b"\0" * 200, "not a session file"),
    ],
)
def test_what_is_no_session_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x").write_bytes(content)
    refused(lambda: tl.inspect_session(tmp_path / "x"), reason)


def test_a_header_of_gigabytes_is_refused_before_it_is_read(model: tl.Model, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write((2**32).to_bytes(8, "little") + b"{")
        file.truncate(2**32 + 100)  # sparse: uses no disk space
    refused(lambda: model.load_session(path), "too large", "4,294,967,296")


def test_tensors_that_overlap_or_leave_holes_are_refused(model: tl.Model, saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    for change in (lambda a, b: [a - 4, b], lambda a, b: [a, b - 4], lambda a, b: [a + 4, b + 4], lambda a, b: [b, a]):
        header = json.loads(raw[8 : 8 + n])
        header["layer.1.k"]["data_offsets"] = change(*header["layer.1.k"]["data_offsets"])
        text = json.dumps(header).encode()
        (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])
        with pytest.raises(tl.SessionFileError, match="do not fit together"):
            model.load_session(tmp_path / "x")


def test_another_safetensors_file_is_refused(model: tl.Model, tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "x.safetensors", {"format": "pt"})
    refused(lambda: model.load_session(tmp_path / "x.safetensors"), "not a session file", "safetensors file, but not")


def test_too_little_memory_is_refused(model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 100}))
    refused(lambda: model.load_session(saved), "memory", "100 are available")


def test_an_address_space_too_small_is_refused(model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = resign(saved, lambda t, h, m: h.update(seq_len=2**40))
    refused(lambda: model.load_session(forged), "memory", "a session of 1,099,511,627,776 positions")
    monkeypatch.setattr(SessionFile, "check_memory", lambda *args: None)
    refused(lambda: model.load_session(forged), "memory", "no session can be made for it")


def test_a_pool_that_is_full_is_refused_by_its_own_words(model: tl.Model, saved: Path) -> None:
    def full(**settings: Any) -> tl.Session:
        raise tl.TeachLlamaError("the pool is full")

    refused(lambda: session_file.load(model, saved, create=full), "memory", "the pool is full")


def test_closed_and_busy_sessions_are_not_saved(model: tl.Model, tmp_path: Path) -> None:
    session = model.create_session(seq_len=8)
    session.eval([1])
    session.close()
    with pytest.raises(tl.ClosedError):
        session.save(tmp_path / "s")
    assert os.listdir(tmp_path) == []


# Paths ----------------------------------------------------------------------------------------------------------------


@posix
def test_the_file_is_its_owners_alone(model: tl.Model, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with model.create_session(seq_len=8) as session:
            session.eval([1])
            session.save(tmp_path / "s")
            (tmp_path / "s").chmod(0o644)
            session.save(tmp_path / "s")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


@posix
def test_a_symbolic_link_is_not_saved_through_but_is_loaded_through(model: tl.Model, saved: Path) -> None:
    link, target = saved.with_name("link"), saved.with_name("precious")
    target.write_text("mine")
    link.symlink_to(target)
    with model.create_session(seq_len=8) as session:
        session.eval([1])
        refused(lambda: session.save(link), "symbolic link", str(target))
        assert target.read_text() == "mine"
        assert link.is_symlink()
        link.unlink()
        link.symlink_to(saved.with_name("nowhere"))
        refused(lambda: session.save(link), "symbolic link")
    link.unlink()
    link.symlink_to(saved)
    assert model.load_session(link).restored == 40


@posix
def test_another_users_file_is_not_replaced(model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with model.load_session(saved) as session:
        refused(lambda: session.save(saved), "permission", "another user", str(uid))


@posix
def test_folders_pipes_and_missing_places_are_refused(model: tl.Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with model.create_session(seq_len=8) as session:
        session.eval([1])
        refused(lambda: session.save(tmp_path), "not a file")
        refused(lambda: session.save(tmp_path / "fifo"), "not a file")
        refused(lambda: session.save(tmp_path / "no" / "s"), "missing")
        refused(lambda: session.save("a\0b"), "not a file")
    refused(lambda: model.load_session(tmp_path), "not a file")
    refused(lambda: model.load_session(tmp_path / "fifo"), "not a file")
    refused(lambda: model.load_session(tmp_path / "none"), "missing")
    refused(lambda: model.load_session("a\0b"), "not a file")


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read and write everything")
def test_what_this_user_may_not_read_or_write_is_refused(model: tl.Model, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    with model.load_session(saved) as session:
        refused(lambda: session.save(folder / "s"), "permission", "Permission denied")
    saved.chmod(0)
    refused(lambda: model.load_session(saved), "permission")


def test_permission_errors_are_named(model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with model.load_session(saved) as session, monkeypatch.context() as m:
        m.setattr(checked_file.tempfile, "mkdtemp", denied)
        refused(lambda: session.save(saved), "permission", "as it was")
    assert model.load_session(saved).restored == 40


@posix
def test_a_full_disk_leaves_the_old_file_and_nothing_else(model: tl.Model, saved: Path) -> None:
    import resource

    old = saved.read_bytes()
    with model.create_session(seq_len=512) as session:
        session.eval(ids(500))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # larger writes fail, as on a full disk
        try:
            refused(lambda: session.save(saved), "disk full", "as it was")
            refused(lambda: session.save(saved.with_name("new")), "disk full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert session.n_past == 500
    assert saved.read_bytes() == old
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("step", ["mkdtemp", "chmod", "fsync", "replace"])
def test_an_error_at_any_step_leaves_the_old_file_and_nothing_else(
    model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    old = saved.read_bytes()
    for failure, error in ((fails, tl.SessionFileError), (interrupted, KeyboardInterrupt)):
        with model.create_session(seq_len=8) as session, monkeypatch.context() as m:
            session.eval([1])
            m.setattr(checked_file.tempfile if step == "mkdtemp" else os, step, failure)
            with pytest.raises(error):
                session.save(saved)
            assert session.eval([2]) is not None
        assert saved.read_bytes() == old
        assert os.listdir(saved.parent) == [saved.name]


def test_what_a_killed_save_left_behind_is_removed_by_a_later_one(model: tl.Model, saved: Path) -> None:
    folder = saved.parent
    old, fresh, others = (folder / f".{name}.saving" for name in ("a.session.x1", "a.session.x2", "b.session.x3"))
    for left in (old, fresh, others):
        left.mkdir()
        (left / "session").write_text("half")
    for left in (old, others):
        os.utime(left, (0, 0))
    with model.load_session(saved) as session:
        session.save(saved)
    assert sorted(os.listdir(folder)) == sorted([saved.name, fresh.name, others.name])


def test_another_writers_folder_may_go_while_stale_ones_are_looked_for(
    model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved.parent / ".a.session.x1.saving").mkdir()
    original = os.scandir

    def scandir(folder: str) -> Any:
        entries = original(folder)
        listed = list(entries)
        entries.close()
        for entry in listed:
            if entry.name.endswith(".saving"):
                os.rmdir(entry.path)
        return contextlib.nullcontext(listed)

    with model.load_session(saved) as session, monkeypatch.context() as m:
        m.setattr(os, "scandir", scandir)
        session.save(saved)
    assert os.listdir(saved.parent) == [saved.name]


# Concurrent saves and loads -------------------------------------------------------------------------------------------


def states(model: tl.Model) -> list[tl.Session]:
    sessions = []
    for i in range(2):
        sessions.append(model.create_session(seq_len=512, seed=i))
        sessions[-1].eval(ids(300 + 100 * i, i))
    return sessions


def child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process that then exits; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


@posix
def test_a_process_killed_while_saving_leaves_the_old_file_or_the_new(model: tl.Model, tmp_path: Path) -> None:
    sessions, path = states(model), tmp_path / "s"
    model.fingerprint
    expected = [session.tokens for session in sessions]
    sessions[0].save(path)

    def save_for_ever() -> None:
        while True:
            for session in sessions:
                session.save(path)

    rng, seen = np.random.default_rng(0), set()
    for _ in range(50):
        pid = child(save_for_ever)
        time.sleep(rng.uniform(0.002, 0.04))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        tokens = tl.inspect_session(path).tokens.tolist()
        assert tokens in expected
        seen.add(len(tokens))
        with model.load_session(path) as loaded:
            assert loaded.tokens == tokens
    assert all(name == "s" or name.startswith(".s.") for name in os.listdir(tmp_path))


@posix
def test_of_two_writers_the_last_whole_file_wins_and_no_reader_sees_a_mixture(model: tl.Model, tmp_path: Path) -> None:
    sessions, path = states(model), tmp_path / "s"
    logits = {session.n_past: session.logits.tobytes() for session in sessions}
    model.fingerprint
    sessions[0].save(path)

    def save_often(session: tl.Session) -> Callable[[], None]:
        def work() -> None:
            for _ in range(40):
                session.save(path)

        return work

    pids = [child(save_often(session)) for session in sessions * 2]
    running = set(pids)
    while running:
        with model.load_session(path) as loaded:
            assert loaded.logits.tobytes() == logits[loaded.n_past]
        running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
    assert os.listdir(tmp_path) == ["s"]


def test_threads_that_save_and_evaluate_take_turns(model: tl.Model, tmp_path: Path) -> None:
    with model.create_session(seq_len=512) as session:
        session.eval([1])
        errors: list[BaseException] = []

        def save() -> None:
            try:
                for _ in range(20):
                    session.save(tmp_path / "s")
                    with model.load_session(tmp_path / "s") as loaded:
                        assert loaded.restored == loaded.n_past
            except BaseException as e:
                errors.append(e)

        thread = threading.Thread(target=save)
        thread.start()
        for i in range(200):
            session.eval([i % 250])
        thread.join()
        assert not errors


def test_a_file_cut_off_while_it_is_read_is_an_error_and_not_a_crash(
    model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = session_file._restore

    def cut_first(*args: Any) -> None:
        os.truncate(saved, saved.stat().st_size // 2)
        original(*args)

    monkeypatch.setattr(session_file, "_restore", cut_first)
    refused(lambda: model.load_session(saved), "truncated", "could not be read", can_rebuild=True)


def test_an_error_keeps_its_reason_when_it_is_pickled() -> None:
    e = pickle.loads(pickle.dumps(tl.SessionFileError("text", "window", True)))
    assert (str(e), e.reason, e.can_rebuild) == ("text", "window", True)


# Fingerprints ---------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_made_once_and_needs_the_weights(llama: Path) -> None:
    pytest.importorskip("numba")
    with tl.load_model(llama) as m:
        assert m.fingerprint is m.fingerprint
    m = tl.load_model(llama)
    m.close()
    with pytest.raises(tl.ClosedError):
        m.fingerprint


def test_every_byte_of_every_tensor_counts(llama: Path, model: tl.Model, tmp_path: Path) -> None:
    with open_gguf(llama) as file:
        places = [(t.name, t.offset + i) for t in file.tensors.values() for i in (0, t.nbytes // 2, t.nbytes - 1)]
    raw, seen = llama.read_bytes(), {model.fingerprint.weights}
    for _, at in places[::5]:
        changed_file = bytearray(raw)
        changed_file[at] ^= 1
        (tmp_path / "m.gguf").write_bytes(changed_file)
        with tl.load_model(tmp_path / "m.gguf", **REFERENCE) as other:
            assert other.fingerprint.weights not in seen
            seen.add(other.fingerprint.weights)


def test_a_name_a_template_or_a_longer_context_changes_no_digest(llama: Path, model: tl.Model, tmp_path: Path) -> None:
    with changed(
        llama,
        tmp_path / "m",
        **{"general.name": "renamed", "tokenizer.chat_template": "x", "llama.context_length": 600},
    ) as other:
        assert dataclasses.replace(other.fingerprint, name="") == dataclasses.replace(model.fingerprint, name="")


def test_quantizations_of_a_model_share_its_vectors(model: tl.Model, llama: Path, tmp_path: Path) -> None:
    with tl.load_model(copy_as(llama, tmp_path / "q", gguf.GGMLQuantizationType.Q4_0), **REFERENCE) as other:
        a, b = model.fingerprint, other.fingerprint
    assert (a.structure, a.vectors, a.rope, a.merges) == (b.structure, b.vectors, b.rope, b.merges)
    assert a.types != b.types
    assert a.weights != b.weights
    assert (a.quantization, b.quantization) == ("F32", "Q4_0")


def test_a_cache_without_room_is_refused_by_its_own_words(
    model: tl.Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, start: int, end: int) -> None:
        raise tl.TeachLlamaError("12 pages are needed")

    monkeypatch.setattr(KVCache, "prepare", full)
    refused(lambda: model.load_session(saved), "memory", "12 pages are needed")
