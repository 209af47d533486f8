"""From logits to a token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import teachllama as tl
from teachllama import sampling

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
