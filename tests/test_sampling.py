"""Sampling: from logits to a token."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import teachllama as tl
from teachllama import quick_draw, sampling, speculation
from tests.conftest import golden
from tests.sampling_rows import made_up, rows

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
shuffled = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-20, 20, width=32))


def ids_left(logits: np.ndarray, **knobs: float) -> list[int]:
    return sampling.candidates(logits, tl.SamplingParams(temperature=1.0, **knobs))[0].tolist()  # type: ignore[arg-type]


def test_greedy_takes_the_likeliest() -> None:
    assert sampling.sample(LOGITS[::-1], tl.SamplingParams(), [], np.random.default_rng(0)) == 4


def test_each_cut_keeps_what_its_definition_says() -> None:
    assert ids_left(LOGITS, top_k=2) == [0, 1]
    assert ids_left(LOGITS, top_p=0.7) == [0, 1]
    assert ids_left(LOGITS, top_p=0.76) == [0, 1, 2]
    assert ids_left(LOGITS, min_p=0.2) == [0, 1, 2]
    assert ids_left(LOGITS, top_k=4, min_p=0.01) == [0, 1, 2, 3]
    assert ids_left(LOGITS) == [0, 1, 2, 3, 4]
    assert ids_left(LOGITS, top_p=0.0) == [0]
    assert ids_left(LOGITS, min_p=1.0) == [0]


def test_temperature_reshapes_the_distribution() -> None:
    for t in (0.5, 1.0, 2.0):
        _, p = sampling.candidates(LOGITS, tl.SamplingParams(temperature=t))
        expected = np.exp(LOGITS.astype(np.float64) / t)
        np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(shuffled, st.integers(0, 70), st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 5))
def test_candidates_are_sorted_distinct_never_empty_and_sum_to_one(
    logits: np.ndarray, k: int, p: float, m: float, t: float
) -> None:
    ids, probabilities = sampling.candidates(logits, tl.SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m))
    assert 1 <= len(ids) == len(set(ids.tolist())) == len(probabilities)
    assert len(ids) <= (k or len(logits))
    assert abs(probabilities.sum() - 1) < 1e-9
    assert (np.diff(logits[ids]) <= 0).all()
    assert logits[ids[0]] == logits.max()
    assert logits[ids].min() >= np.delete(logits, ids).max(initial=-np.inf)


@settings(max_examples=100, deadline=None)
@given(shuffled, st.integers(1, 70))
def test_top_k_takes_the_lowest_ids_among_equals(logits: np.ndarray, k: int) -> None:
    rounded = np.round(logits / 8)
    expected = sorted(range(len(rounded)), key=lambda i: (-rounded[i], i))[:k]
    assert ids_left(rounded, top_k=k) == expected


def test_draws_follow_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount(
        [sampling.sample(LOGITS, tl.SamplingParams(temperature=1.0), [], rng) for _ in range(20000)], minlength=5
    )
    np.testing.assert_allclose(counts / 20000, np.exp(LOGITS), atol=0.015)


def test_penalties_do_what_llama_cpp_documents() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.0], np.float32)
    seen = [0, 1, 0]
    out = sampling.penalize(
        logits, seen, tl.SamplingParams(repeat_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    )
    np.testing.assert_allclose(out, [2 / 2 - 0.5 - 2 * 0.25, -2 * 2 - 0.5 - 0.25, 1.0, 0.0])
    assert logits[0] == 2.0, "the session's own logits stay as they are"
    last = sampling.penalize(logits, [0, 1], tl.SamplingParams(repeat_penalty=2.0, penalty_last_n=1))
    np.testing.assert_allclose(last, [2.0, -4.0, 1.0, 0.0])


def test_penalty_last_n_of_zero_turns_penalties_off_and_minus_one_counts_all() -> None:
    logits, rng = np.array([3.0, 2.9], np.float32), np.random.default_rng(0)
    strong = {"repeat_penalty": 10.0}
    assert sampling.sample(logits, tl.SamplingParams(**strong, penalty_last_n=0), [0], rng) == 0
    assert sampling.sample(logits, tl.SamplingParams(**strong, penalty_last_n=-1), [0] + [5] * 0, rng) == 1


BAD_KNOBS = [
    {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": "hot"},
    {"top_k": -1}, {"top_k": 1.5}, {"top_k": True}, {"top_p": 1.1}, {"top_p": -0.1}, {"min_p": 2},
    {"repeat_penalty": 0}, {"repeat_penalty": -1}, {"penalty_last_n": -2}, {"presence_penalty": float("nan")},
    {"frequency_penalty": None},
]  # fmt: skip


@pytest.mark.parametrize("knobs", BAD_KNOBS, ids=str)
def test_a_knob_out_of_range_is_refused_by_name(knobs: dict) -> None:
    with pytest.raises(tl.ParameterError, match=next(iter(knobs))):
        tl.SamplingParams(**knobs)


def test_logits_that_are_not_numbers_are_refused() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(tl.TeachLlamaError, match="finite"):
            sampling.sample(np.array([0, bad], np.float32), tl.SamplingParams(), [], np.random.default_rng(0))
        with pytest.raises(tl.TeachLlamaError, match="finite"):
            speculation.distribution(np.array([0, bad], np.float32), tl.SamplingParams(temperature=1.0), [])


# ---- the quick way draws what ranking draws ----


ROWS = rows()


def seen_of(logits: np.ndarray) -> list[int]:
    likely = np.argsort(-logits, kind="stable")[:90].tolist()
    return [*likely, *likely[:30], 5, 6, 7]


@pytest.mark.parametrize("name", ROWS)
def test_draws_equal_those_of_the_release_that_ranked_the_whole_vocabulary(name: str) -> None:
    stored, logits = golden("sampling"), ROWS[name]
    seen = seen_of(logits)
    for i, (knobs, drawn) in enumerate(zip(stored["combos"], stored["draws"][name], strict=True)):
        rng, params = np.random.default_rng(1000 + i), tl.SamplingParams(**knobs)
        assert [sampling.sample(logits, params, seen, rng) for _ in range(4)] == drawn, knobs


@st.composite
def logit_rows(draw: st.DrawFn) -> np.ndarray:
    """Rows of logits, realistic or not: flat, peaked, with few values, with tokens ruled out."""
    n, rng = draw(st.integers(1, 400)), np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(size=n) * draw(st.sampled_from([0.0, 1e-6, 0.3, 3.0, 30.0]))
    if draw(st.booleans()):
        logits = np.round(logits)
    if draw(st.booleans()):
        logits[rng.random(n) < 0.7] = -np.inf
    for at in draw(st.lists(st.integers(0, n - 1), max_size=3)):
        logits[at] += draw(st.sampled_from([5.0, 20.0, 50.0]))
    logits[draw(st.integers(0, n - 1))] = 1.5
    return logits.astype(draw(st.sampled_from([np.float32, np.float64])))


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the search use several blocks for few values."""
    for name, value in {"SMALL": 12, "BUCKETS": 12, "BLOCK": 16}.items():
        monkeypatch.setattr(quick_draw, name, value)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    logit_rows(),
    st.sampled_from([0, 0, 1, 7, 100, 300]),
    st.sampled_from([1, 1, 0, 0.3, 0.5, 0.9, 0.999, 1 - 1e-12]),
    st.sampled_from([0, 0, 1, 0.5, 0.05, 1e-5, 1e-12]),
    st.sampled_from([5e-324, 1e-3, 0.5, 1, 1.7, 1000]),
    st.floats(0, 1, exclude_max=True),
)
def test_the_quick_way_draws_what_ranking_draws_or_is_unsure(
    small_steps: None, logits: np.ndarray, k: int, p: float, m: float, t: float, fraction: float
) -> None:
    params = tl.SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = quick_draw.quick_draw(logits, params, fraction, sampling.drawn)
        except quick_draw.Unsure:
            return
    assert found == sampling.drawn(logits, params, fraction)


def test_the_quick_way_is_hardly_ever_unsure() -> None:
    knobs: list[dict[str, Any]] = [
        {},
        {"top_p": 0.95},
        {"top_k": 20000},
        {"min_p": 1e-4},
        {"top_p": 0.9, "top_k": 9000},
    ]
    for logits in (*made_up(20_000).values(), made_up()["flat"]):
        if (logits == logits[0]).all():
            continue  # with equal weights, any target may fall on a border
        for more in knobs:
            for fraction in np.linspace(0.001, 0.999, 20):
                quick_draw.quick_draw(logits, tl.SamplingParams(temperature=0.8, **more), fraction, sampling.drawn)


def test_a_target_at_a_border_is_left_to_ranking() -> None:
    logits = np.zeros(2**16, np.float32)
    half = tl.SamplingParams(temperature=1.0, top_p=0.5)
    with pytest.raises(quick_draw.Unsure):
        quick_draw.quick_draw(logits, half, 0.7, sampling.drawn)
    for seed in range(5):
        drawn = sampling.sample(logits, half, [], np.random.default_rng(seed))
        assert drawn == sampling.drawn(logits, half, np.random.default_rng(seed).random()) < 2**15


@pytest.mark.parametrize("n", [5, 20_000])
@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-40])
def test_a_tiny_temperature_takes_the_likeliest_without_a_warning(n: int, temperature: float) -> None:
    logits = np.linspace(-3, 3, n, dtype=np.float32)
    logits[0] = logits[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = {
            sampling.sample(logits, tl.SamplingParams(temperature=temperature, **more), [], np.random.default_rng(seed))
            for seed in range(20)
            for more in ({}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 3})
        }
    assert drawn == {0, n - 1}, "equally likely ones stay equally likely"


def test_a_penalty_that_leaves_the_range_of_float32_is_refused_without_a_warning() -> None:
    logits = np.array([1e38, 2.0], np.float32)
    strong = tl.SamplingParams(temperature=1.0, repeat_penalty=0.001)
    warnings.simplefilter("error")  # pytest restores the filters after the test
    with pytest.raises(tl.TeachLlamaError, match="finite"):
        sampling.sample(logits, strong, [0], np.random.default_rng(0))
