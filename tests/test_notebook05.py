"""Notebook 05: its checks on right answers, each usual mistake and nonsense; its pictures on made-up numbers; copies of
a model in other types. Nothing is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

import teachllama as tl
from teachllama.gguf_file import open_gguf
from teachllama.requantize import KINDS, requantize
from tests.tools import tiny_metadata, tiny_model, tiny_tensors, write_gguf

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from teachllama.check import notebook05 as check
from teachllama.check.core import CheckResult
from teachllama.show import notebook05 as pictures
from teachllama.show.notebook05 import Curve, Speed, Step

QUESTION = check.Question(8.03e9, 256, 144, 50e9)
NONSENSE: list[Any] = [None, ..., "3", b"x", True, [], {}, object(), 1j, float("nan"), lambda: 0, print, 10**5000]
FUNCTION_CHECKS = [check.knee, check.speed_in_context, check.kl_divergence, check.fair_comparison]


def endless(*_: object) -> Any:
    while True:
        pass


def failing(*_: object) -> Any:
    raise ZeroDivisionError("my own fault")


def log_softmax(l: np.ndarray) -> np.ndarray:
    shifted = l - l.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def careless(l: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(l) / np.exp(l).sum())


def kl(p: np.ndarray, q: np.ndarray) -> Any:
    return (np.exp(log_softmax(p)) * (log_softmax(p) - log_softmax(q))).sum()


# ---- predicted decode speed ----


@pytest.mark.parametrize(
    ("answer", "mistake"),
    [
        (50e9 / (8.03e9 * 144 / 256), None), (11.1, None), (np.float32(11.07), None),
        (12.45, "no_scales"), (1.384, "bits"), (88.6, "bits"), (0.0903, "upside_down"), (1.557, "float32"),
        (3.113, "float16"), (6.227, "byte_a_weight"), (5.535, "operations"), (0.04324, "block_a_weight"),
        (11.886, "binary_units"), (20, None),
    ],
)  # fmt: skip
def test_decode_speed_knows_the_right_figure_and_the_usual_wrong_ones(answer: Any, mistake: str | None) -> None:
    result = check.decode_speed(answer, QUESTION)
    assert result.mistake == mistake
    assert result.ok == (mistake is None and answer != 20)


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda a: type(a).__name__)
def test_nonsense_for_a_speed_is_refused_with_words(answer: Any) -> None:
    result = check.decode_speed(answer, QUESTION)
    assert not result.ok
    assert result.message


@pytest.mark.parametrize(
    "question", [(0, 256, 144, 50e9), (8e9, 256, -1, 50e9), (8e9, 256, 144, math.inf), ("8", 1, 1, 1)]
)
def test_a_question_that_makes_no_sense_is_named(question: Any) -> None:
    assert check.decode_speed(1, check.Question(*question)).mistake == "question"


# ---- functions of numbers ----


def exact_knee(b: float, f: float, w: float) -> float:
    return f / b * w / 2


KNEES: list[tuple[Callable[..., Any], str | None]] = [
    (lambda b, f, w: math.ceil(f / b * w / 2), None),
    (lambda b, f, w: float(np.ceil(w / 2 / (b / f))), None),
    (exact_knee, "not_whole"),
    (lambda b, f, w: int(exact_knee(b, f, w)), "rounded_down"),
    (lambda b, f, w: round(exact_knee(b, f, w)), "rounded"),
    (lambda b, f, w: int(exact_knee(b, f, w)) + 1, "one_more"),
    (lambda b, f, w: math.ceil(f / b * w), "one_operation"),
    (lambda b, f, w: math.ceil(f / b / 2), "no_bytes"),
    (lambda b, f, w: math.ceil(f / b / w / 2), "divided"),
    (lambda b, f, w: math.ceil(b / f * w / 2), "upside_down"),
    (lambda b, f, w: f / b, "intensity"),
]


@pytest.mark.parametrize(("function", "mistake"), KNEES, ids=range(len(KNEES)))
def test_knee_knows_the_right_function_and_the_usual_wrong_ones(function: Any, mistake: str | None) -> None:
    result = check.knee(function)
    assert (result.ok, result.mistake) == (mistake is None, mistake)


CONTEXTS: list[tuple[Callable[..., Any], str | None]] = [
    (lambda b, w, k, n: b / (w + k * n), None),
    (lambda b, w, k, n: 1 / (w / b + k * n / b), None),
    (lambda b, w, k, n: b / w, "weights_only"),
    (lambda b, w, k, n: b / (w + k), "one_position"),
    (lambda b, w, k, n: b / ((w + k) * max(1, n)), "weights_each_time"),
    (lambda b, w, k, n: b / (w + k * (n + 1)), "one_more"),
    (lambda b, w, k, n: b / (w + k * n / 2), "half"),
    (lambda b, w, k, n: b / (w + 2 * k * n), "keys_twice"),
    (lambda b, w, k, n: b / w + (b / (k * n) if n else 0), "speeds_added"),
    (lambda b, w, k, n: (w + k * n) / b, "upside_down"),
]


@pytest.mark.parametrize(("function", "mistake"), CONTEXTS, ids=range(len(CONTEXTS)))
def test_speed_in_context_knows_the_right_function_and_the_usual_wrong_ones(function: Any, mistake: str | None) -> None:
    result = check.speed_in_context(function)
    assert (result.ok, result.mistake) == (mistake is None, mistake)


KLS: list[tuple[Callable[..., Any], str | None]] = [
    (kl, None),
    (lambda p, q: sum(math.exp(a) * (a - b) for a, b in zip(log_softmax(p), log_softmax(q))), None),
    (lambda p, q: kl(q, p), "reversed"),
    (lambda p, q: kl(p, q) / np.log(2), "bits"),
    (lambda p, q: (careless(p) * np.log(careless(p) / careless(q))).sum(), "overflow"),
    (lambda p, q: (p * np.log(p / q)).sum(), "no_softmax"),
    (lambda p, q: (np.exp(log_softmax(p)) * (p - q)).sum(), "logits_subtracted"),
    (lambda p, q: (np.exp(log_softmax(p)) * (log_softmax(p) - log_softmax(q))).mean(), "mean"),
    (lambda p, q: -(np.exp(log_softmax(p)) * log_softmax(q)).sum(), "cross_entropy"),
    (lambda p, q: -kl(p, q), "sign"),
    (lambda p, q: (log_softmax(p) - log_softmax(q)).sum(), "unweighted"),
    (lambda p, q: np.abs(np.exp(log_softmax(p)) - np.exp(log_softmax(q))).sum(), "absolute"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "mistake"), KLS, ids=range(len(KLS)))
def test_kl_divergence_knows_the_right_function_and_the_usual_wrong_ones(function: Any, mistake: str | None) -> None:
    result = check.kl_divergence(function)
    assert (result.ok, result.mistake) == (mistake is None, mistake)


def test_a_divergence_that_changes_the_logits_it_was_given_is_told_so() -> None:
    def in_place(p: np.ndarray, q: np.ndarray) -> Any:
        p -= p.max()
        return kl(p, q)

    assert check.kl_divergence(in_place).mistake == "in_place"


# ---- a fair comparison ----


def timed(clock: Callable[[], float], task: Callable[[], None]) -> float:
    start = clock()
    task()
    return clock() - start


def pairs_of(ours: Any, theirs: Any, clock: Any, pairs: int) -> list[tuple[float, float]]:
    return [(timed(clock, ours), timed(clock, theirs)) for _ in range(pairs)]


def warmed(finish: Callable[[list[tuple[float, float]]], Any]) -> Callable[..., Any]:
    def measure(ours: Any, theirs: Any, clock: Any, pairs: int) -> Any:
        ours()
        theirs()
        return finish(pairs_of(ours, theirs, clock, pairs))

    return measure


def theirs_first(ours: Any, theirs: Any, clock: Any, pairs: int) -> Any:
    theirs()
    ours()
    swapped = pairs_of(theirs, ours, clock, pairs)
    return np.median([t / o for t, o in swapped])


def block_by_block(ours: Any, theirs: Any, clock: Any, pairs: int) -> Any:
    ours()
    theirs()
    mine = [timed(clock, ours) for _ in range(pairs)]
    return median([timed(clock, theirs) for _ in range(pairs)]) / median(mine)


def cold_blocks(ours: Any, theirs: Any, clock: Any, pairs: int) -> Any:
    mine = [timed(clock, ours) for _ in range(pairs)]
    return median([timed(clock, theirs) for _ in range(pairs)]) / median(mine)


def one_pair(ours: Any, theirs: Any, clock: Any, pairs: int) -> Any:
    return warmed(lambda times: times[0][1] / times[0][0])(ours, theirs, clock, 1)


def by_the_wall(ours: Any, theirs: Any, clock: Any, pairs: int) -> Any:
    return median(t / o for o, t in pairs_of(ours, theirs, time.perf_counter, pairs))


COMPARISONS: list[tuple[Callable[..., Any], str | None]] = [
    (warmed(lambda times: median(t / o for o, t in times)), None),
    (theirs_first, None),
    (warmed(lambda times: median(o / t for o, t in times)), "upside_down"),
    (lambda o, t, c, n: median(b / a for a, b in pairs_of(o, t, c, n)), "cold"),
    (lambda o, t, c, n: fmean(b / a for a, b in pairs_of(o, t, c, n)), "cold"),
    (block_by_block, "not_in_turn"),
    (cold_blocks, "not_in_turn and cold"),
    (warmed(lambda times: fmean(t / o for o, t in times)), "mean"),
    (warmed(lambda times: sum(t for _, t in times) / sum(o for o, _ in times)), "ratio_of_sums"),
    (warmed(lambda times: min(t for _, t in times) / min(o for o, _ in times)), "best_of_each"),
    (warmed(lambda times: median(t - o for o, t in times)), "difference"),
    (one_pair, "one_pair"),
    (by_the_wall, "own_clock"),
]


@pytest.mark.parametrize(("function", "mistake"), COMPARISONS, ids=range(len(COMPARISONS)))
def test_fair_comparison_knows_the_right_way_and_the_usual_wrong_ones(function: Any, mistake: str | None) -> None:
    result = check.fair_comparison(function)
    assert (result.ok, result.mistake) == (mistake is None, mistake)


def test_no_check_of_a_fair_comparison_waits_for_the_tasks() -> None:
    world = check.World(1000.0, 2000.0, (1.0,), None)
    world.ours()
    before = world.clock()
    world.ours()
    assert world.clock() - before == 1000


# ---- any function check ----


@pytest.mark.parametrize("judge", FUNCTION_CHECKS, ids=lambda j: j.__name__)
@pytest.mark.parametrize(
    "answer", [*NONSENSE, *(lambda *_, a=a: a for a in NONSENSE[:9])], ids=range(len(NONSENSE) + 9)
)
def test_nonsense_for_a_function_is_refused_with_words(judge: Any, answer: Any) -> None:
    result = judge(answer)
    assert isinstance(result, CheckResult)
    assert not result.ok
    assert result.message


@pytest.mark.parametrize("judge", FUNCTION_CHECKS, ids=lambda j: j.__name__)
def test_a_function_that_fails_or_never_ends_is_told_so(judge: Any) -> None:
    result = judge(failing)
    assert result.mistake == "exception"
    assert "my own fault" in result.message
    assert judge(endless).mistake == "endless"


# ---- the divergence the notebook measures ----


def test_the_divergence_is_the_mean_of_kl_over_positions() -> None:
    rng = np.random.default_rng(3)
    p, q = rng.normal(size=(2, 5, 40)).astype(np.float32)
    assert pictures.divergence(p, p + 3) == pytest.approx(0, abs=1e-9)
    assert pictures.divergence(p, q) == pytest.approx(np.mean([kl(a, b) for a, b in zip(p, q)]), rel=1e-5)
    assert pictures.divergence(1000 * p, q) > 0  # without overflow
    with pytest.raises(tl.ParameterError, match="expected the same"):
        pictures.divergence(p, q[:2])


# ---- pictures ----

ROWS = [
    Speed("f32", 538_000_000, 80.0, 900.0),
    Speed("Q8_0", 143_000_000, 200.0, 1000.0, 2.3e-4),
    Speed("the file", 98_000_000, 231.0, 980.0, 2e-13),
    Speed("Q4_0", 76_000_000, 7.25, 1010.0, 0.08),
]
STEPS = [Step(1, 270e6, 98e6, 1 / 220), Step(256, 256 * 230e6, 98e6, 0.25)]
CURVE = Curve("f16 cache", [16, 512, 2048], [300.0, 250.0, 150.0], [290.0, 222.0, 111.0])


def texts(picture: Any) -> str:
    FigureCanvasAgg(picture).draw()
    return "\n".join(t.get_text() for t in picture.findobj(lambda a: hasattr(a, "get_text")))


def test_the_roofline_names_both_limits_the_knee_and_each_step() -> None:
    picture = pictures.roofline(40e9, 280e9, STEPS)
    shown = texts(picture)
    for word in ("40 GB/s", "280 Gflop/s", "7 flop a byte", "decode: 1", "prefill: 256"):
        assert word in shown
    assert "256 tokens at once" in picture.alt


def test_the_dials_show_each_setting_with_both_speeds() -> None:
    picture = pictures.dials(ROWS)
    shown = texts(picture)
    for word in ("f32", "80", "900", "7.2", "1,010", "decode", "prefill"):
        assert word in shown
    assert "Q4_0: 7.2 and 1,010" in picture.alt


def test_bytes_and_speed_shows_how_much_of_the_prediction_was_reached() -> None:
    picture = pictures.bytes_and_speed(43e9, ROWS)
    shown = texts(picture)
    assert "f32\n80 tok/s\n100%" in shown
    assert "43 GB/s" in shown
    assert "143 MB: 200 tokens a second, 67% of the prediction" in picture.alt


def test_fidelity_is_shown_in_powers_of_ten_and_rounding_as_such() -> None:
    shown = texts(pictures.fidelity_and_speed(ROWS[1:]))
    assert "KL 2 × 10⁻⁴" in shown
    assert "KL below 10⁻¹²" in shown
    assert "KL 8 × 10⁻²" in shown


def test_the_context_picture_shows_predictions_beside_what_was_measured() -> None:
    picture = pictures.context_and_speed([CURVE, CURVE._replace(name="f32 cache")])
    shown = texts(picture)
    assert "f16 cache, predicted" in shown
    assert "f32 cache, measured" in shown
    assert "111 at 2,048; predicted 300 and 150" in picture.alt


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.roofline(0, 1e9, STEPS),
        lambda: pictures.roofline(1e9, math.nan, STEPS),
        lambda: pictures.roofline(1e9, 1e9, []),
        lambda: pictures.dials([]),
        lambda: pictures.bytes_and_speed(-1, ROWS),
        lambda: pictures.bytes_and_speed(1e9, []),
        lambda: pictures.fidelity_and_speed([]),
        lambda: pictures.context_and_speed([]),
    ],
)
def test_a_picture_without_numbers_is_refused(draw: Callable[[], object]) -> None:
    with pytest.raises(tl.ParameterError, match="expected"):
        draw()


# ---- copies in other types ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_holds_what_quantizing_each_matrix_gives_and_the_rest_unchanged(kind: str, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source.gguf", "gemma3")
    copy = requantize(source, tmp_path / "copy.gguf", kind)
    with open_gguf(source) as before, open_gguf(copy) as after:
        assert list(after.tensors) == list(before.tensors)
        for name, info in before.tensors.items():
            raw, new = before.tensor_bytes(name), after.tensor_bytes(name)
            assert after.tensors[name].shape == info.shape
            if len(info.shape) == 1:
                assert np.array_equal(raw, new)
            else:
                expected = quantize(raw.view("<f4").reshape(info.shape), GGMLQuantizationType[kind])
                assert np.array_equal(new, expected.view(np.uint8).ravel())
                assert after.tensors[name].type.name == kind
        for key, value in before.metadata.items():
            copied = after.metadata[key]
            assert list(value) == list(copied) if hasattr(value, "__len__") else value == copied, key


def test_a_copy_in_the_same_or_a_wider_type_gives_the_same_logits(tmp_path: Path) -> None:
    metadata = tiny_metadata()
    tensors = tiny_tensors(metadata)
    kinds = {n: GGMLQuantizationType.Q8_0 for n, t in tensors.items() if t.ndim > 1}
    source = write_gguf(tmp_path / "source.gguf", metadata, tensors, kinds)
    logits = []
    copies = [requantize(source, tmp_path / f"{kind}.gguf", kind) for kind in ("Q8_0", "F32")]
    for path in (source, *copies):
        with tl.load_model(path, weights="f32", backend="numpy") as model, model.create_session() as session:
            logits.append(session.eval([1, 2, 3]))
    assert np.allclose(logits[0], logits[1], atol=1e-3)
    assert np.array_equal(logits[0], logits[2])


def test_rows_that_no_block_fits_stay_as_they_are_and_odd_metadata_survives(tmp_path: Path) -> None:
    metadata = {"general.architecture": "llama", "a.big": 2**63, "a.negative": -5, "a.flag": True, "a.third": 1 / 3}
    metadata |= {"a.text": "ü", "a.numbers": np.arange(3, dtype=np.int32), "general.file_type": 0}
    tensors = {"odd.weight": np.ones((3, 33)), "even.weight": np.arange(64).reshape(2, 32)}
    source = write_gguf(tmp_path / "source.gguf", metadata, {n: t.astype(np.float32) for n, t in tensors.items()})
    with open_gguf(requantize(source, tmp_path / "copy.gguf", "Q8_0")) as copy:
        assert {name: t.type.name for name, t in copy.tensors.items()} == {"odd.weight": "F32", "even.weight": "Q8_0"}
        values = dequantize(copy.tensor_bytes("even.weight").reshape(2, -1), GGMLQuantizationType.Q8_0)
        assert np.allclose(values.ravel(), np.arange(64), atol=0.3)
        assert (copy.metadata["a.big"], copy.metadata["a.negative"], copy.metadata["a.flag"]) == (2**63, -5, True)
        assert copy.metadata["a.third"] == pytest.approx(1 / 3, rel=1e-7)
        assert copy.metadata["a.text"] == "ü"
        assert copy.metadata["a.numbers"].tolist() == [0, 1, 2]
        assert copy.metadata["general.file_type"] == 7  # Q8_0: the source's type would be wrong


def test_an_unknown_type_a_missing_file_and_the_source_itself_are_refused(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source.gguf")
    before = source.read_bytes()
    with pytest.raises(tl.ParameterError, match="expected one of F32, F16"):
        requantize(source, tmp_path / "copy.gguf", "Q4_K")
    with pytest.raises(tl.ParameterError, match="the source itself"):
        requantize(source, tmp_path / "source.gguf", "Q8_0")
    with pytest.raises(tl.GGUFError):
        requantize(tmp_path / "nothing.gguf", tmp_path / "copy.gguf", "Q8_0")
    assert source.read_bytes() == before
    assert not (tmp_path / "copy.gguf").exists()
