"""Caches of every type and pair: both backends agree, sizes match the formula, and all session operations work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import teachllama as tl
from teachllama.kv.formula import KV_DTYPES
from teachllama.kv.stored import ENGINE_DTYPES, PAGE, decode, encode, row_nbytes
from tests.families.generate import build, metadata_of, tensors_of
from tests.tools import tiny_model, write_gguf

TYPES = list(ENGINE_DTYPES)
PAIRS: list[Any] = [*TYPES, ("q8_0", "f16"), ("f16", "q4_0"), ("q4_0", "q8_0"), ("f32", "bf16")]
# Tolerance of logits against an f32 cache, relative to the largest. Random keys lose much in blocks.
FIDELITY = {"f32": 1e-5, "f16": 5e-3, "bf16": 3e-2, "q8_0": 5e-2, "q4_0": 0.6}
SIZES = {"embedding_length": 128, "feed_forward_length": 96, "context_length": 600}
SIZES |= {"attention.key_length": 32, "attention.value_length": 64}

LATENT = {"rope.dimension_count": 32, "attention.key_length": 96, "attention.key_length_mla": 64}  # value length 64


def ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = {"attention.sliding_window": 100} if request.param == "gemma3" else {}
    sizes = {f"{request.param}.{k}": v for k, v in (SIZES | more).items()}
    return tiny_model(tmp_path_factory.mktemp("m") / "t.gguf", request.param, **sizes)


@pytest.fixture(scope="module")
def numpy_model(path: Path) -> Iterator[tl.Model]:
    with tl.load_model(path, weights="f32", backend="numpy") as model:
        yield model


@pytest.fixture(scope="module")
def numba_model(path: Path) -> Iterator[tl.Model]:
    pytest.importorskip("numba")
    with tl.load_model(path, backend="numba") as model:
        yield model


def test_compiled_code_and_the_cache_agree_on_the_size_of_a_page() -> None:
    from teachllama.kernels import fields

    assert fields.BLOCK == PAGE


def test_the_types_are_numbered_as_ggml_numbers_them() -> None:
    assert {t: int(gguf.GGMLQuantizationType[t.upper()]) for t in TYPES} == ENGINE_DTYPES
    for kind in TYPES:
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
        assert KV_DTYPES[kind] == (block, nbytes)


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_are_stored_and_read_as_the_gguf_package_does(kind: str) -> None:
    x = np.random.default_rng(1).standard_normal((3, 5, 64)).astype(np.float32)
    x[0, 0], x[0, 1, :32] = 0, np.arange(-16, 16)
    raw, number = encode(x, kind), gguf.GGMLQuantizationType[kind.upper()]
    assert raw.dtype == np.uint8
    assert raw.shape == (3, 5, row_nbytes(64, kind))
    np.testing.assert_array_equal(raw, gguf.quants.quantize(x, number).view(np.uint8))
    np.testing.assert_array_equal(
        decode(raw, kind), gguf.quants.dequantize(raw.reshape(15, -1), number).reshape(x.shape)
    )
    np.testing.assert_allclose(decode(raw, kind), x, atol={"q8_0": 0.07, "q4_0": 1.2}.get(kind, 0.05))


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", PAIRS, ids=str)
def test_both_backends_agree_on_every_type_and_pair(
    numpy_model: tl.Model, numba_model: tl.Model, kv_dtype: Any
) -> None:
    tokens = ids(170)
    with (
        numpy_model.create_session(seq_len=200, kv_dtype=kv_dtype) as a,
        numba_model.create_session(seq_len=200, kv_dtype=kv_dtype) as b,
        numpy_model.create_session(seq_len=200) as exact,
    ):
        assert a.kv_dtype == b.kv_dtype == kv_dtype
        for part in (tokens[:100], tokens[100:101], tokens[101:103], tokens[103:]):
            expected, got, best = a.eval(part), b.eval(part), exact.eval(part)
            # a number that rounds the other way moves logits by one step of the type
            kinds = (kv_dtype,) if isinstance(kv_dtype, str) else kv_dtype
            worst = max(FIDELITY[k] for k in kinds)
            assert np.abs(got - expected).max() <= max(1e-4, worst / 3) * np.abs(expected).max()
            assert np.abs(got - best).max() <= max(1e-4, worst) * np.abs(best).max()
        for mine, theirs in ((a.k_cache, b.k_cache), (a.v_cache, b.v_cache)):
            assert mine.shape == theirs.shape
            close = np.isclose(mine[:, 110:160], theirs[:, 110:160], rtol=0, atol=0.02 * np.abs(mine).max())
            assert close.mean() > 0.98


@pytest.mark.filterwarnings("ignore:seq_len")
@pytest.mark.parametrize("kv_dtype", PAIRS, ids=str)
def test_bytes_are_those_of_the_formula_and_of_what_is_stored(numpy_model: tl.Model, kv_dtype: Any) -> None:
    layout = numpy_model.config.kv_layout
    k, v = (kv_dtype, kv_dtype) if isinstance(kv_dtype, str) else kv_dtype
    for n in (1, 64, 100, 599):
        with numpy_model.create_session(seq_len=n, kv_dtype=kv_dtype, swa_full=True) as session:
            stored = sum(array.nbytes for arrays in session._cache._stored for array in arrays)
            by_hand = sum(n * s.n_kv_heads * (row_nbytes(32, k) + row_nbytes(64, v)) for s in layout.layers)
            assert session.kv_nbytes == stored == by_hand == tl.kv_cache_bytes(layout, n, kv_dtype, swa_full=True)
        with numpy_model.create_session(seq_len=n, kv_dtype=kv_dtype) as session:
            assert session.kv_nbytes == tl.kv_cache_bytes(layout, n, kv_dtype)


@pytest.mark.parametrize("kv_dtype", ["bf16", "q8_0", "q4_0", ("q8_0", "f16")], ids=str)
def test_rewind_fork_and_reset_work_with_every_type(numpy_model: tl.Model, kv_dtype: Any) -> None:
    tokens = ids(300)
    session = numpy_model.create_session(seq_len=400, kv_dtype=kv_dtype)
    session.eval(tokens[:250])
    expected = session.eval(tokens[250:])
    session.rewind(250)
    other = session.fork()
    assert other.kv_dtype == session.kv_dtype
    np.testing.assert_array_equal(other.eval(tokens[250:]), expected)
    np.testing.assert_array_equal(session.eval(tokens[250:]), expected)
    np.testing.assert_array_equal(session.k_cache[:, 200:300], other.k_cache[:, 200:300])
    session.reset()
    assert not session.k_cache.any()
    session.eval(tokens[:250])
    np.testing.assert_array_equal(session.eval(tokens[250:]), expected)


def test_looking_at_blocks_gives_read_only_copies_and_at_plain_numbers_views(numpy_model: tl.Model) -> None:
    with numpy_model.create_session(seq_len=80, kv_dtype=("q8_0", "f16")) as session:
        session.eval(ids(70))
        keys, values = session.k_cache, session.v_cache
        assert (keys.dtype, values.dtype) == (np.float32, np.float16)
        assert keys.shape == (numpy_model.config.n_layers, 80, 2, 32)
        assert not keys.flags.writeable
        assert not values.flags.writeable
        assert keys[:, :70].any(axis=(2, 3)).all()
        assert values[:, :70].any(axis=(2, 3)).all()
        session.eval([1])
        assert values[:, 70].any()
        assert not keys[:, 70].any()
        assert session.k_cache[:, 70].any()


@pytest.mark.parametrize("bad", ["q5_0", "Q8_0", None, 8, ("f16",), ("f16", "f16", "f16"), ("f16", "x"), [["f16"], 1]])
def test_a_type_that_no_cache_here_can_be_is_refused_and_the_others_named(numpy_model: tl.Model, bad: Any) -> None:
    with pytest.raises(tl.ParameterError, match=r"kv_dtype is .*'f32', 'f16', 'bf16', 'q8_0', 'q4_0'"):
        numpy_model.create_session(seq_len=8, kv_dtype=bad)


@pytest.mark.parametrize("kv_dtype", ["q8_0", "q4_0", ("q8_0", "f16"), ("f16", "q4_0")], ids=str)
def test_heads_that_do_not_divide_into_blocks_are_refused_by_name(tmp_path: Path, kv_dtype: Any) -> None:
    sizes = {"llama.attention.key_length": 16, "llama.attention.value_length": 48}
    with tl.load_model(tiny_model(tmp_path / "t.gguf", **sizes)) as model:
        with pytest.raises(tl.ParameterError, match=r"q[48]_0' stores blocks of 32 numbers, and this model's rows of "):
            model.create_session(seq_len=8, kv_dtype=kv_dtype)
        model.create_session(seq_len=8, kv_dtype=("f16", "bf16")).eval([1, 2])


def test_stored_bytes_can_be_taken_out_and_put_into_another_cache(numpy_model: tl.Model) -> None:
    tokens = ids(90)
    for kv_dtype in ("f32", ("q8_0", "q4_0")):
        a, b = (numpy_model.create_session(seq_len=n, kv_dtype=kv_dtype, swa_full=True) for n in (200, 100))
        a.eval(tokens)
        for layer in range(numpy_model.config.n_layers):
            keys, values = a._cache.raw(layer, 90)
            b._cache.write_raw(layer, keys, values)
        b.tokens = list(tokens)
        np.testing.assert_array_equal(a.eval([5]), b.eval([5]))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_under_latent_attention_values_are_part_of_the_keys_blocks(tmp_path: Path, backend: str) -> None:
    metadata = metadata_of("deepseek3", **{"attention.head_count": 4})
    metadata |= {f"deepseek2.{k}": n for k, n in LATENT.items()}
    path = write_gguf(tmp_path / "t.gguf", metadata, tensors_of("deepseek3", metadata, 6))
    with tl.load_model(path, weights="f32", backend=backend) as model:
        for kv_dtype in ("bf16", "q8_0", ("q8_0", "f16")):
            with model.create_session(seq_len=100, kv_dtype=kv_dtype) as session, model.create_session() as exact:
                got, expected = session.eval(ids(80)), exact.eval(ids(80))
                assert 0 < np.abs(got - expected).max() <= 0.1 * np.abs(expected).max()
                np.testing.assert_array_equal(session.v_cache, session.k_cache[..., :64])
                assert session.kv_nbytes == tl.kv_cache_bytes(model.config, 100, kv_dtype)


@pytest.mark.slow
def test_a_rank_that_the_kernels_do_not_divide_is_run_by_the_reference(tmp_path: Path) -> None:
    build("deepseek3", tmp_path / "t.gguf", **{"attention.kv_lora_rank": 48, "attention.head_count": 4})
    with pytest.raises(tl.UnsupportedModelError, match="kv_lora_rank is 48; the kernels need a multiple of 32"):
        tl.load_model(tmp_path / "t.gguf", backend="numba")


# ---- a real model ----


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """The KL divergence of q from p in nats, averaged over rows of logits."""
    p, q = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), axis=-1, keepdims=True) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.model
@pytest.mark.slow
def test_what_each_type_costs_on_smollm2_is_bounded_at_100_and_1000_positions(smollm2_path: str) -> None:
    bounds = {"f16": 1e-4, "bf16": 1e-3, "q8_0": 2e-3, "q4_0": 1.0}
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    with tl.load_model(smollm2_path) as model:
        tokens = (model.encode(text) * 3)[:1016]
        for n in (100, 1000):
            rows = {}
            for kv_dtype in ("f32", *bounds):
                with model.create_session(seq_len=1100, kv_dtype=kv_dtype) as session:
                    session.eval(tokens[:n])
                    rows[kv_dtype] = session.eval(tokens[n : n + 16], all_logits=True)
            for kv_dtype, bound in bounds.items():
                assert 0 <= kl(rows["f32"], rows[kv_dtype]) < bound, (n, kv_dtype)
