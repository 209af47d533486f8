"""Notebook 12: its checks on right answers and usual mistakes; its stored figures; other arithmetic; its pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from teachllama.check import notebook12 as check
from teachllama.check.core import CheckResult
from teachllama.lessons.n12_same_prompt import arithmetic, figures
from teachllama.lessons.n12_same_prompt.exercises import LESSON
from teachllama.ops import NumpyOps, gelu
from teachllama.show import notebook12 as pictures
from teachllama.show.notebook12 import Change

STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"
GOLDEN = Path(__file__).parent / "golden"


def folded(numbers: Any, lanes: int) -> Any:
    sums = [np.float32(0)] * lanes
    for i, x in enumerate(numbers):
        sums[i % lanes] += x
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums, sums[len(sums) // 2 :], strict=False)]
    return sums[0]


def kept_bits(a: Any, b: Any) -> bool:
    if (a["kv"], a["backend"]) != (b["kv"], b["backend"]):
        return False
    ends = [(way["n"] - way["cuts"][-1] if way["cuts"] else way["n"], way["cuts"]) for way in (a, b)]
    return a["cuts"] == b["cuts"] or all(rest >= 32 and not any(c % 32 for c in cuts) for rest, cuts in ends)


def judged(promise: Any, seen: Any) -> str:
    answer = "kept"
    for change in promise["changes"]:
        rows = [r for r in seen if r["change"] == change]
        for r in rows:
            bound = {"bits": 0, "close": promise["within"], "tokens": math.nextafter(r["gap"] / 2, 0)}[promise["says"]]
            if r["difference"] > bound:
                return "broken"
        answer = answer if rows else "open"
    return answer


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.lane_sum, folded, None),
    (check.lane_sum, lambda x, n: np.array([folded(x, n)]), None),
    (check.lane_sum, lambda x, n: sum(x, np.float32(0)), "in_order"),
    (check.lane_sum, lambda x, n: folded(x.astype(float), n), "double"),
    (check.lane_sum, lambda x, n: np.float32(folded(x.astype(float), n)), "double"),
    (check.lane_sum, lambda x, n: np.sum(x), "numpy"),
    (check.lane_sum, lambda x, n: folded(x[::-1], n), "backwards"),
    (check.lane_sum, lambda x, n: folded(x.reshape(n, -1).T.ravel(), n), "chunks"),
    (check.lane_sum, lambda x, n: sum((sum(x[i::n], np.float32(0)) for i in range(n)), np.float32(0)), "left_to_right"),
    (check.may_part, lambda g, e: next((i for i, x in enumerate(g) if x <= 2 * e), len(g)), None),
    (check.may_part, lambda g, e: int(np.argmax(np.append(g, 0) <= 2 * e)), None),
    (check.may_part, lambda g, e: int(np.argmax(np.append(g, 0) <= e)), "once"),
    (check.may_part, lambda g, e: int(np.argmin(g)), "smallest"),
    (check.may_part, lambda g, e: int((g <= 2 * e).sum()), "count"),
    (check.may_part, lambda g, e: int(np.argmax(np.append(g, 0) <= 2 * e)) + 1, "one_based"),
    (check.may_part, lambda g, e: next((i for i, x in enumerate(g) if x <= 2 * e), -1), "minus_one"),
    (check.same_bits, kept_bits, None),
    (check.same_bits, lambda a, b: np.bool_(kept_bits(a, b)), None),
    (check.same_bits, lambda a, b: True, "always"),
    (check.same_bits, lambda a, b: False, "never"),
    (check.same_bits, lambda a, b: a["threads"] == b["threads"] and kept_bits(a, b), "threads"),
    (check.same_bits, lambda a, b: kept_bits({**a, "kv": 0}, {**b, "kv": 0}), "kv_ignored"),
    (check.same_bits, lambda a, b: kept_bits({**a, "cuts": ()}, {**b, "cuts": ()}), "cuts_ignored"),
    (check.same_bits, lambda a, b: kept_bits({**a, "n": 999}, {**b, "n": 999}), "rest_ignored"),
    (check.same_bits, lambda a, b: a == b, "never"),
    (check.promise, judged, None),
    (check.promise, lambda p, seen: judged(p, seen).upper() + " ", None),
    (check.promise, lambda p, seen: "kept", "always_kept"),
    (check.promise, lambda p, seen: "kept" if judged(p, seen) == "open" else judged(p, seen), "unseen_kept"),
    (check.promise, lambda p, seen: judged(p, [{**r, "gap": 2 * r["gap"]} for r in seen]), "once"),
    (check.promise, lambda p, seen: judged(p, list({r["change"]: r for r in seen}.values())), "last_only"),
    (check.promise, lambda p, seen: "perhaps", "type"),
    (check.promise, lambda p, seen: True, "type"),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda c: f"{c[0].__name__}-{c[2]}")
def test_right_answers_pass_and_each_usual_mistake_is_named(case: Any) -> None:
    judge, answer, mistake = case
    result = judge(answer)
    assert result.ok == (mistake is None), result.message
    if mistake == "never" and answer is not None and judge is check.same_bits:
        return  # wrong in one of two ways: refuses everything, or everything that is not equal
    assert mistake is None or mistake in (result.mistake or "").split(" or "), (result.mistake, result.message)


@pytest.mark.parametrize("exercise", LESSON.exercises, ids=lambda e: e.check)
def test_the_faults_of_an_exercise_are_all_refused_and_told_apart(exercise: Any) -> None:
    for fault in exercise.faults:
        result = getattr(check, exercise.check)(fault.function)
        assert not result.ok, fault.name
        assert fault.name in (result.mistake or "").split(" or "), (fault.name, result.mistake)
        assert " or " not in (result.mistake or ""), (fault.name, result.mistake)


# ---- stored figures ----


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "tiny-stories"])
def test_the_lessons_figures_are_those_of_the_golden_files(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["generate"]
    stored = figures._stored()["models"][name]["float32"]
    assert [{key: case[key] for key in stored[0]} for case in golden] == stored


def test_where_llama_cpp_parts_is_what_the_benchmark_saved() -> None:
    from benchmarks import fidelity

    saved = json.loads((GOLDEN.parents[1] / "docs" / "measured" / "fidelity.json").read_text(encoding="utf-8"))
    stored = figures._stored()["models"]["smollm2-135m"]["as_shipped"]
    assert [t["prompt"] for t in stored] == list(fidelity.PROMPTS)
    assert [t["same"] for t in stored] == saved["Q4_1"]["llama.cpp"]["greedy_agree"]


def test_two_builds_differ_as_the_documentation_says() -> None:
    found = [f"{difference:.1e}" for _, difference in figures.two_builds()]
    assert found == ["3.8e-03", "2.4e-03", "5.9e-03"]
    assert f"by {found[0].replace('e-03', 'e-3')}, 2.4e-3 and 5.9e-3" in (
        (GOLDEN.parents[1] / "docs" / "measured.md").read_text(encoding="utf-8").replace("\n", " ")
    )


def test_figures_belong_to_exactly_these_weights(stories: tl.Model, tmp_path: Path) -> None:
    assert [len(t.gap) for t in figures.of(stories).float32] == [96] * 4
    changed = bytearray(STORIES.read_bytes())
    changed[-1000] ^= 1
    (tmp_path / "other.gguf").write_bytes(changed)
    with tl.load_model(tmp_path / "other.gguf") as other:
        assert not figures.of(other).float32
        assert not figures.of(other).as_shipped
    assert set(figures.how()) == {"float32", "as_shipped", "exact_gelu"}


# ---- other arithmetic ----


@pytest.fixture(scope="module")
def stories() -> Any:
    with tl.load_model(STORIES) as model:
        yield model


def test_eight_bits_are_whole_steps_of_a_scale_per_block() -> None:
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    x[1, 32:64] = 0
    rounded = arithmetic.eight_bits(x)
    scale = np.abs(x).reshape(3, 3, 32).max(axis=-1) / 127
    steps = rounded.reshape(3, 3, 32) / np.where(scale > 0, scale, 1)[..., None]
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.1)  # the scale itself is a float16
    assert np.abs(rounded - x).max() <= 0.55 * scale.max()
    assert not rounded[1, 32:64].any()
    with pytest.raises(tl.ParameterError, match="multiple of 32"):
        arithmetic.eight_bits(x[:, :50])


def test_the_table_of_gelu_holds_float16_numbers_of_float16_numbers() -> None:
    x = np.array([-11, -10, -1.00003, -0.0, 0.3, 1.00003, 9.99, 10, 12.34], np.float32)
    got = arithmetic.half_table(x)
    assert got[0] == got[1] == 0
    assert got[-2:].tolist() == [10, np.float32(12.34)]
    middle = gelu(x[2:7].astype(np.float16).astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(got[2:7], middle.astype(np.float32))


def test_texts_in_one_pass_get_the_logits_of_sessions_of_their_own(stories: tl.Model) -> None:
    texts = [stories.encode("Once upon a time there was"), stories.encode("The dog")]
    got = arithmetic.evaluated(stories, NumpyOps(stories.spec), texts, last=2)
    for ids, logits in zip(texts, got, strict=True):
        with stories.create_session(seq_len=32) as session:
            np.testing.assert_allclose(logits, session.eval(ids, all_logits=True)[-2:], atol=1e-4)
    for bad in ([], [[1, 2], [3]], [[1, 2], []]):
        with pytest.raises(tl.ParameterError, match="last 2 logits"):
            arithmetic.evaluated(stories, NumpyOps(stories.spec), bad, last=2)
    hidden = arithmetic.last_hidden(stories, texts[0])
    np.testing.assert_allclose(stories.weights.output.multiply(hidden[None])[0], got[0, -1], atol=1e-4)


def test_rounded_activations_move_logits_a_little_and_far_more_than_another_order(stories: tl.Model) -> None:
    ids = stories.encode("Once upon a time there was a brave girl")
    plain, rounded = (
        arithmetic.evaluated(stories, kind(stories.spec), [ids])[0, 0]
        for kind in (NumpyOps, arithmetic.RoundedActivations)
    )
    assert 1e-3 < np.abs(plain - rounded).max() < 1


def test_copies_with_the_same_gate_are_the_same_and_a_table_lifts_noise(stories: tl.Model) -> None:
    ids = stories.encode("Once upon a time there was a brave girl")[:8]
    gates = arithmetic.Gates(
        stories.spec, [(gelu, 0), (gelu, 0), (gelu, 1e-7), (arithmetic.half_table, 0), (arithmetic.half_table, 1e-7)]
    )
    logits = arithmetic.evaluated(stories, gates, [ids] * 5)[:, 0]
    assert [x.shape for x in gates.streams] == [(5, len(ids), stories.spec.dim)] * (len(stories.spec.layers) + 1)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    np.testing.assert_array_equal(gates.streams[0][0], gates.streams[0][3])
    noise, table, lifted = (np.abs(logits[a] - logits[b]).max() for a, b in ((0, 2), (0, 3), (3, 4)))
    assert 0 < noise < 1e-4 < table
    assert noise < lifted


# ---- pictures ----


def test_every_picture_says_in_words_what_it_shows() -> None:
    changes = pictures.Changes(
        [Change("a <b>", "promised", 0.0), Change("c", "order", 2e-5), Change("d", "numbers", 3.0)]
    )
    assert "a &lt;b&gt;" in changes._repr_html_()
    assert repr(changes).split("\n")[1] == "c (sums in another order): same bits: no; 2.0e-05"
    assert "The same bits: a <b>. Largest differences: c 2e-05, d 3e+00." in changes.draw(0.5).alt
    sums = [1 - 2**-23, 1 + 2**-23] * 2
    assert pictures.orders(sums, 1.0).alt == "4 orders gave 2 results, from -1 to +1 steps of float32."
    alt = pictures.where_they_part({"x": np.array([0.0, 0.4]), "y": np.array([0.1, 0.0])}, {"x": 1, "y": 2}).alt
    assert alt == "They parted: 'x' at 1, 'y' never. Likeliest step: 'x' 1, 'y' 0."
    x = np.linspace(-3, 3, 4001).astype(np.float32)
    assert "staircase" in pictures.gelu_table(x, gelu(x), arithmetic.half_table(x)).alt
    assert "a 2e-03, b 1e-05" in pictures.growth({"a": [0, 1e-3, 2e-3], "b": [1e-7, 1e-6, 1e-5]}).alt
    assert "&lt;i&gt;" in pictures.Promises([("<i>", "2", "0")])._repr_html_()
    assert repr(pictures.Promises([("bits", "2", "0")])) == "bits (2): 0"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.Changes([]),
        lambda: pictures.Changes([Change("a", "maybe", 0.0)]),
        lambda: pictures.Changes([Change("a", "order", float("nan"))]),
        lambda: pictures.Changes([Change("a", "order", 0.0)]).draw(0.0),
        lambda: pictures.orders([], 1.0),
        lambda: pictures.orders([float("inf")], 1.0),
        lambda: pictures.where_they_part({}, {}),
        lambda: pictures.where_they_part({"a": np.zeros(3)}, {"b": 1}),
        lambda: pictures.where_they_part({"a": np.zeros(3), "b": np.zeros(2)}, {"a": 1, "b": 1}),
        lambda: pictures.gelu_table(np.zeros(3), np.zeros(3), np.zeros(3)),
        lambda: pictures.growth({}),
        lambda: pictures.growth({"a": [0.0, 0.0]}),
        lambda: pictures.growth({"a": [1.0], "b": [1.0, 2.0]}),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError):
        draw()
