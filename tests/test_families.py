"""Every family equals llama.cpp on a tiny random model: whole, in chunks, greedily, on every backend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

import teachllama as tl
from teachllama import ops
from teachllama.batch import Batch
from teachllama.kernels.record import record, replay
from teachllama.ops import NumpyOps
from tests.families import CLEAR, FOLDER, N_GREEDY, N_PROMPT, VARIANTS, build, columns_of, load_golden, prompt
from tests.families.generate import SEEDS, metadata_of, tensors_of
from tests.families.ties import tied
from tests.tools import write_gguf

TOLERANCE = 1e-3
LIKE_THE_PEER = [name for name, v in VARIANTS.items() if v.peer]
PEER = os.environ.get("TEACHLLAMA_PEER", ".venv-peer/bin/python")
CHUNKS = (37, 1, 63, 2, 4)
# All variants and types take minutes: by default one variant per family is changed tensor by tensor, and two types of
# blocks are tried (tests/test_kernels_blocks.py tries every type).
ALL = bool(os.environ.get("TEACHLLAMA_ALL_MODELS"))
MOVED = list(VARIANTS) if ALL else list({variant.arch: name for name, variant in reversed(VARIANTS.items())}.values())
KINDS = [T.Q8_0, T.Q4_1, T.F16, T.Q4_K, T.Q6_K] if ALL else [T.Q8_0, T.Q4_K]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(params=["numpy", "numba"])
def loaded(request: pytest.FixtureRequest) -> Any:
    """Arguments that select a backend: the reference in float32, or kernels on the file's own weights."""
    if request.param == "numba":
        pytest.importorskip("numba")
        return {"backend": "numba", "weights": "native"}
    return {"backend": "numpy", "weights": "f32"}


def evaluated(model: tl.Model, ids: list[int], sizes: tuple[int, ...]) -> np.ndarray:
    """All logits of ids, evaluated in calls of these sizes, repeated as needed."""
    rows, at, turn = [], 0, 0
    with model.create_session(seq_len=1024) as session:
        while at < len(ids):
            part = ids[at : at + sizes[turn % len(sizes)]]
            rows.append(np.atleast_2d(session.eval(part, all_logits=True)))
            at, turn = at + len(part), turn + 1
    return np.concatenate(rows)


def assert_close(logits: np.ndarray, golden: dict[str, Any]) -> float:
    """Compares logits with the stored figures; returns the largest difference."""
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
                if gap < CLEAR:  # either token is right, and the texts may diverge here
                    break
                assert session.sample() == expected, f"step {step}"
                session.eval([expected])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
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


@pytest.mark.parametrize("variant", LIKE_THE_PEER)
def test_golden_figures_are_of_today_and_end_nowhere_early(variant: str) -> None:
    golden = load_golden(variant)
    assert len(golden["greedy"]) == len(golden["gap"]) == N_GREEDY
    assert golden["gap"].min() > CLEAR  # otherwise the comparison would end before the 50th step
    assert len(set(golden["greedy"])) > 1  # a text that repeats one token would prove little


def test_every_golden_file_has_its_variant() -> None:
    assert sorted(LIKE_THE_PEER) == sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", MOVED)
def test_every_tensor_and_every_multiplier_moves_the_logits(variant: str, folder: Path) -> None:
    # Comparing with llama.cpp proves nothing about a weight or key that does not change the logits.
    metadata = metadata_of(variant)
    tensors, arch = tensors_of(variant, metadata, SEEDS.get(variant, 0)), VARIANTS[variant].arch
    ids = prompt(len(metadata["tokenizer.ggml.tokens"]))[:150]

    def logits(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> np.ndarray:
        path = write_gguf(folder / f"moved-{variant}.gguf", metadata, tensors)
        with tl.load_model(path, weights="f32", backend="numpy") as model:
            return evaluated(model, ids, (len(ids),))

    plain, still = logits(metadata, tensors), set()
    for name, data in tensors.items():
        if name.startswith("blk.") and not name.startswith("blk.1."):
            continue
        if name == "rope_factors_short.weight" and f"{arch}.rope.scaling.original_context_length" in metadata:
            continue  # the session is longer than this, so the long factors apply
        if name == "rope_factors_long.weight" and f"{arch}.rope.scaling.original_context_length" not in metadata:
            continue
        moved = data * np.linspace(0.9, 1.2, data.size, dtype=np.float32).reshape(data.shape)
        if np.abs(logits(metadata, tensors | {name: moved}) - plain).max() < 10 * TOLERANCE:
            still.add(name)
    harmless = ("context_length", "rope.scaling.original_context_length")
    for key, value in metadata.items():
        number = isinstance(value, float) and not key.endswith(harmless)
        if number and np.abs(logits(metadata | {key: value * 1.1}, tensors) - plain).max() < TOLERANCE:
            still.add(key)
    expected = {f"{arch}.attention.layer_norm_rms_epsilon"}  # 1e-5 matters only where a row is nearly 0
    if metadata.get("granite.rope.scaling.finetuned") is False:
        expected.add("granite.rope.freq_base")
    assert still <= expected


KEYS_REFUSED = {
    "attention that looks ahead": ("llama", {"attention.causal": False}, "attention.causal"),
    "YaRN with another beta": ("llama-yarn", {"rope.scaling.yarn_beta_fast": 16.0}, "yarn_beta_fast"),
    "YaRN with another magnitude": ("olmo3", {"rope.scaling.yarn_attn_factor": 1.5}, "yarn_attn_factor.*1.1386"),
    "windowed layers that rotate otherwise": ("gemma3", {"rope.dimension_count_swa": 16}, "dimension_count_swa"),
}


@pytest.mark.parametrize("case", KEYS_REFUSED)
def test_a_key_that_would_change_the_arithmetic_is_refused_by_name(case: str, folder: Path) -> None:
    variant, overrides, named = KEYS_REFUSED[case]
    path = build(variant, folder / "refused.gguf", **overrides)
    with pytest.raises((tl.GGUFError, tl.UnsupportedModelError), match=named):
        tl.load_model(path)


KEYS_THAT_CHANGE_NOTHING = {
    "YaRN's constants, as converters copy them": (
        "gpt-oss",
        {"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0},
    ),
    "YaRN's magnitude, as converters copy it": ("olmo3", {"rope.scaling.yarn_attn_factor": 1.1386294361}),
    "attention that doesn't look ahead": ("llama", {"attention.causal": True}),
    "a factor with type none": ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "no experts": ("llama", {"expert_count": 0, "expert_used_count": 0}),
    "equal lists": ("llama", {"attention.head_count_kv": [2, 2, 2], "feed_forward_length": [160, 160, 160]}),
    "one group": ("qwen3moe", {"expert_group_count": 1, "expert_group_used_count": 1}),
}


@pytest.mark.parametrize("case", KEYS_THAT_CHANGE_NOTHING)
def test_keys_that_change_nothing_change_nothing(case: str, folder: Path) -> None:
    variant, overrides = KEYS_THAT_CHANGE_NOTHING[case]
    with tl.load_model(build(variant, folder / "same.gguf", **overrides), weights="f32", backend="numpy") as model:
        assert_close(evaluated(model, prompt(model.config.vocab_size), (N_PROMPT,)), load_golden(variant))


def test_fused_biases_stand_for_those_of_q_k_and_v(folder: Path) -> None:
    metadata = metadata_of("qwen2")
    tensors = tensors_of("qwen2", metadata, SEEDS["qwen2"])
    for i in range(metadata["qwen2.block_count"]):
        for end in ("weight", "bias"):
            parts = [tensors.pop(f"blk.{i}.attn_{x}.{end}") for x in "qkv"]
            tensors[f"blk.{i}.attn_qkv.{end}"] = np.concatenate(parts)
    path = write_gguf(folder / "fused.gguf", metadata, tensors)
    with tl.load_model(path, weights="f32", backend="numpy") as model:
        assert_close(evaluated(model, prompt(model.config.vocab_size), (N_PROMPT,)), load_golden("qwen2"))


# Where llama.cpp rounds: each test adds the rounding to the engine, and the difference disappears.


@pytest.mark.parametrize("variant", [n for n, v in VARIANTS.items() if v.gelu])
def test_llama_cpps_table_of_gelu_explains_what_its_stock_build_differs_by(
    variant: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, exact = load_golden(variant), ops.gelu

    def table(x: np.ndarray) -> np.ndarray:
        y = exact(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)
        return np.where(x <= -10, np.float32(0), np.where(x >= 10, x, y))

    assert 1e-3 < golden["stock_differs_by"] < 5e-2
    with tl.load_model(build(variant, folder / f"{variant}.gguf"), weights="f32", backend="numpy") as model:
        ids = prompt(model.config.vocab_size)[: len(golden["stock_logits"])]
        columns = columns_of(model.config.vocab_size)[: len(ids)]
        differs = {}
        for gelu in (exact, table):
            monkeypatch.setattr(ops, "gelu", gelu)
            found = np.take_along_axis(evaluated(model, ids, (len(ids),)), columns, axis=1)
            differs[gelu is table] = np.median(np.abs(found - golden["stock_logits"]).max(axis=1))
    assert differs[True] < differs[False] / 2


def test_activations_rounded_to_8_bits_explain_what_llama_cpp_differs_by_with_mxfp4(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden("gpt-oss-mxfp4")

    def rounded(x: np.ndarray) -> np.ndarray:
        return gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(x), T.Q8_0), T.Q8_0)

    def gated(self: NumpyOps, x: np.ndarray, m: Any, s: Any) -> np.ndarray:
        gate, up = m.gate.multiply(rounded(x)), m.up.multiply(rounded(x))
        return m.down.multiply(rounded(ops.swiglu_oai(gate, up)))

    path = build("gpt-oss-mxfp4", folder / "mxfp4.gguf")
    with tl.load_model(path, weights="f32", backend="numpy") as model:
        ids = prompt(model.config.vocab_size)[:5]  # later, an activation is too close to a rounding step
        columns = columns_of(model.config.vocab_size)[: len(ids)]
        differs = []
        for _ in range(2):
            found = np.take_along_axis(evaluated(model, ids, (len(ids),)), columns, axis=1)
            differs.append(np.abs(found - golden["stock_logits"][: len(ids)]).max())
            monkeypatch.setattr(NumpyOps, "gated", gated)
    assert differs[0] > 0.05
    assert differs[1] < TOLERANCE


@pytest.mark.parametrize("variant", ["phi3-long", "gpt-oss", "llama-yarn"])
def test_angles_multiplied_up_in_float32_explain_most_of_what_rotations_differ_by(
    variant: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, f4 = VARIANTS[variant].sizes, np.float32
    by = f4(1 / sizes["rope.scaling.factor"]) if sizes.get("rope.scaling.type") == "yarn" else None

    def rotations(r: Any, batch: Batch) -> np.ndarray:
        """Rotations as ggml computes them: from pair to pair the angle is multiplied by base^(-2 / dim) and rounded."""
        frequencies, magnitude = r.at_length(batch.runs[0].cache.seq_len)
        n = len(frequencies)
        theta, out = batch.positions.astype(f4), np.empty((len(batch.tokens), 1, n), np.complex64)
        for i, frequency in enumerate(frequencies):
            scaled = frequency / 10000.0 ** (-i / n)  # scaled by YaRN, or by a factor in the file
            if by is None:
                angle = theta / f4(1 / scaled)
            else:
                kept = f4((scaled - by) / (1 - by))
                angle = by * theta * (1 - kept) + theta * kept
            out[:, 0, i] = f4(magnitude) * (np.cos(angle) + 1j * np.sin(angle))
            theta = theta * f4(10000.0) ** f4(-1 / n)
        return out

    golden, differs = load_golden(variant), []
    with tl.load_model(build(variant, folder / f"{variant}.gguf"), weights="f32", backend="numpy") as model:
        ids = prompt(model.config.vocab_size)
        for _ in range(2):
            differs.append(assert_close(evaluated(model, ids, (N_PROMPT,)), golden))
            monkeypatch.setattr(NumpyOps, "_rotations_of", staticmethod(rotations))
    assert differs[1] < 0.7 * differs[0]


@pytest.fixture
def peer() -> str:
    if not Path(PEER).exists():
        pytest.skip(f"no llama.cpp here: {PEER} (see benchmarks/build_peer.sh, or set TEACHLLAMA_PEER)")
    return PEER


@pytest.mark.llamacpp
@pytest.mark.slow
@pytest.mark.parametrize("variant", LIKE_THE_PEER)
def test_a_fresh_seed_equals_llama_cpp_live(variant: str, folder: Path, peer: str, loaded: dict[str, str]) -> None:
    from tests.families.make_golden import evaluate

    seed = int.from_bytes(os.urandom(4), "little")
    path = build(variant, folder / f"{variant}-{seed}.gguf", seed=seed, dequantized=True)
    with tl.load_model(path, weights="f32", backend="numpy") as reference:
        ids = prompt(reference.config.vocab_size, seed)[:100]
        unsure = tied(reference, ids)
    # Where experts nearly tie, either choice is right, and all later positions attend to the result.
    n = int(unsure.argmax()) if unsure.any() else len(ids)
    expected = evaluate(peer, path, ids, 0)["logits"]
    with tl.load_model(path, **loaded) as model:
        found = evaluated(model, ids, (100,))
    tolerance = 0.1 if VARIANTS[variant].gelu else TOLERANCE  # the peer uses the GELU table
    np.testing.assert_allclose(found[:n], expected[:n], rtol=0, atol=tolerance, err_msg=f"seed {seed}")
