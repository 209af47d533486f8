"""Every family equals llama.cpp on a tiny random model: whole, in chunks, greedily, on every backend."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

import teachllama as tl
from teachllama.batch import Batch
from teachllama.kernels.record import record, replay
from teachllama.ops import NumpyOps
from tests.families import N_PROMPT, VARIANTS, build, columns_of, load_golden, prompt

TOLERANCE = 1e-3
LIKE_THE_PEER = [name for name, v in VARIANTS.items() if v.peer]
PEER = os.environ.get("TEACHLLAMA_PEER", ".venv-peer/bin/python")
CHUNKS = (37, 1, 63, 2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(params=["numpy", "numba"])
def loaded(request: pytest.FixtureRequest) -> Any:
    """How a backend is asked for: the reference in float32, or kernels on the file's own weights."""
    if request.param == "numba":
        pytest.importorskip("numba")
        return {"backend": "numba", "weights": "native"}
    return {"backend": "numpy", "weights": "f32"}


def evaluated(model: tl.Model, ids: list[int], sizes: tuple[int, ...]) -> np.ndarray:
    """All logits of ids, evaluated in calls of these sizes again and again."""
    rows, at, turn = [], 0, 0
    with model.create_session(seq_len=1024) as session:
        while at < len(ids):
            part = ids[at : at + sizes[turn % len(sizes)]]
            rows.append(np.atleast_2d(session.eval(part, all_logits=True)))
            at, turn = at + len(part), turn + 1
    return np.concatenate(rows)


def assert_close(logits: np.ndarray, golden: dict[str, Any]) -> float:
    """Compares what is stored; returns the largest difference."""
    vocab_size = logits.shape[1]
    found = np.take_along_axis(logits, columns_of(vocab_size), axis=1)
    wide = logits.astype(np.float64)
    sums = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
    worst = max(np.abs(found - golden["logits"]).max(), np.abs(sums - golden["logsumexp"]).max())
    assert worst < TOLERANCE
    return float(worst)


@pytest.mark.parametrize("variant", LIKE_THE_PEER)
def test_logits_and_greedy_tokens_equal_llama_cpps(variant: str, folder: Path, loaded: dict[str, str]) -> None:
    golden = load_golden(variant)
    with tl.load_model(build(variant, folder / f"{variant}.gguf"), **loaded) as model:
        ids = prompt(model.config.vocab_size)
        assert_close(evaluated(model, ids, (N_PROMPT,)), golden)
        assert_close(evaluated(model, ids, CHUNKS), golden)
        with model.create_session(seq_len=1024) as session:
            session.eval(ids)
            for step, (expected, gap) in enumerate(zip(golden["greedy"], golden["gap"], strict=True)):
                if gap < 0.02:  # either token is right, and the texts may part here
                    break
                assert session.sample() == expected, f"step {step}"
                session.eval([expected])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [T.Q8_0, T.Q4_1, T.F16], ids=lambda k: k.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_quantized_weights_on_the_kernels_equal_the_reference_on_the_same_file(
    variant: str, kind: T, folder: Path
) -> None:
    pytest.importorskip("numba")
    path = build(variant, folder / f"{variant}-{kind.name}.gguf", kind=kind)
    with tl.load_model(path, weights="f32", backend="numpy") as reference, tl.load_model(path) as model:
        assert model.backend == "numba"
        ids = prompt(model.config.vocab_size)[:70]
        expected = evaluated(reference, ids, (70,))
        for sizes in ((70,), (1,), (33, 4)):
            np.testing.assert_allclose(evaluated(model, ids, sizes), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replayed_program_gives_the_pages_own_logits(variant: str, folder: Path) -> None:
    with tl.load_model(build(variant, folder / f"{variant}.gguf"), weights="f32", backend="numpy") as model:
        ids = np.array(prompt(model.config.vocab_size)[:9])
        with model.create_session(seq_len=32) as a, model.create_session(seq_len=32) as b:
            expected = a.eval(ids, all_logits=True)
            batch = Batch.of_one(ids, 0, b._cache, all_logits=True)
            program = record(model.spec, model.weights)
            np.testing.assert_array_equal(replay(program, NumpyOps(model.spec), batch), expected)


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.gelu])
def test_stock_llama_cpps_gelu_table_explains_what_it_differs_by(name: str) -> None:
    # The stored figures are those of a build without the table; what the stock build differs by is stored beside them.
    assert 1e-4 < load_golden(name)["stock_differs_by"] < 2e-2


@pytest.fixture
def peer() -> str:
    if not Path(PEER).exists():
        pytest.skip(f"no llama.cpp here: {PEER} (see benchmarks/build_peer.sh, or set TEACHLLAMA_PEER)")
    return PEER


@pytest.mark.llamacpp
@pytest.mark.slow
@pytest.mark.parametrize("variant", [n for n in LIKE_THE_PEER if not VARIANTS[n].gelu])
def test_a_fresh_seed_equals_llama_cpp_live(variant: str, folder: Path, peer: str, loaded: dict[str, str]) -> None:
    from tests.families.make_golden import evaluate

    seed = int.from_bytes(os.urandom(4), "little")
    path = build(variant, folder / f"{variant}-{seed}.gguf", seed=seed, dequantized=True)
    with tl.load_model(path, **loaded) as model:
        ids = prompt(model.config.vocab_size, seed)[:100]
        try:
            expected = evaluate(peer, path, ids, 1)["logits"]
        except subprocess.TimeoutExpired:
            pytest.skip("llama.cpp took too long")
        found = evaluated(model, ids, (100,))
    # Where experts nearly tie, either choice is right: then a few positions differ, and those that look at them.
    differs = np.abs(found - expected).max(axis=1) > TOLERANCE
    assert differs.mean() < (0.5 if VARIANTS[variant].sizes.get("expert_count") else 0.001), f"seed {seed}"
