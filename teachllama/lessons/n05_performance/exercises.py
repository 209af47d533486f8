"""The exercises of lesson 05, performance: predicted speed, where the knee is, a long context, KL divergence, and a
fair comparison. Nothing here is timed: the last one has a simulated clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from inspect import cleandoc
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from teachllama.lessons.common.check import CheckResult
from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson
from teachllama.lessons.common.judge import near, one_number

# ---- 1. predicted decode speed ----


class Question(NamedTuple):
    """A model, a type of weights, and a machine."""

    n_weights: float
    block_weights: int  # weights that share a block
    block_nbytes: int
    bandwidth: float  # bytes per second


def _speed(q: Question) -> float:
    return q.bandwidth / _nbytes(q)


def _nbytes(q: Question) -> float:
    return q.n_weights / q.block_weights * q.block_nbytes


def _whole_bits(q: Question) -> int:
    return round(8 * q.block_nbytes / q.block_weights)


def _data_sheets(rng: np.random.Generator, model: Any) -> list[Case]:
    scale = rng.uniform(0.5, 2)
    made = (Question(1.1e9 * scale, 32, 34, 20e9), Question(70.6e9 * scale, 256, 210, 800e9))
    return [Case("a data sheet", (question,)) for question in made]


DECODE_SPEED = Exercise(
    check="decode_speed",
    names=("at_most",),
    signature="at_most(question)",
    replace={"/ 256 * 144": "/ question.block_weights * question.block_nbytes"},
    points=(1, 1),
    shows="predict decode speed from a data sheet",
    usual="`no_scales`: bits of the numbers alone; `bits`; `upside_down`; `float32`, `float16`, `byte_a_weight`; "
    "`operations`; `block_a_weight`; `binary_units`; `nbytes`: the bytes, and no speed",
    mistake=(
        "no_scales",
        cleandoc("""
        def at_most(question):
            return question.bandwidth / (question.n_weights * 4 / 8)
    """),
    ),
    right=_speed,
    cases=(Case("", (Question(8.03e9, 256, 144, 52e9),)),),
    hidden_cases=_data_sheets,
    faults=(
        Fault(
            "no_scales",
            lambda q: q.bandwidth / (q.n_weights * _whole_bits(q) / 8),
            "This counts the bits of the numbers alone. A block also holds its scales, and they are read too.",
        ),
        Fault(
            "bits",
            lambda q: _speed(q) / 8,
            "This takes bits for bytes somewhere: the bandwidth is in bytes per second.",
        ),
        Fault(
            "bits",
            lambda q: _speed(q) * 8,
            "This takes bytes for bits somewhere: the bandwidth is in bytes per second.",
        ),
        Fault(
            "upside_down",
            lambda q: 1 / _speed(q),
            "These are seconds for a token. How many tokens are made in one second?",
        ),
        Fault("nbytes", _nbytes, "These are the bytes of all the weights. How many times per second can they be read?"),
        Fault(
            "float32",
            lambda q: q.bandwidth / (4 * q.n_weights),
            "This reads every weight as a float32. What is read from memory is the file's blocks, as they are.",
        ),
        Fault(
            "float16",
            lambda q: q.bandwidth / (2 * q.n_weights),
            "This reads two bytes for every weight. How many are in the block?",
        ),
        Fault(
            "byte_a_weight",
            lambda q: q.bandwidth / q.n_weights,
            "This reads one byte for every weight. How many bytes does a block have, and for how many weights?",
        ),
        Fault(
            "operations",
            lambda q: _speed(q) / 2,
            "This counts two for each weight, as for multiplying and adding. Decode waits for bytes, not for those.",
        ),
        Fault(
            "block_a_weight",
            lambda q: q.bandwidth / (q.n_weights * q.block_nbytes),
            "This reads a whole block for every weight. A block serves many.",
        ),
        Fault(
            "binary_units",
            lambda q: _speed(q) * 2**30 / 10**9,
            "Bandwidths are given in powers of ten, 10^9 bytes to a GB, and here one of the two is in powers of two.",
        ),
    ),
    praise="Bytes per second over bytes per token: each weight is read once, with its share of the block's scales.",
    otherwise="It is none of the usual mistakes. First find the bytes of all the weights.",
    more="Weights over weights per block is how many blocks there are; times the bytes of one. How often can so many "
    "bytes be read in a second?",
    read=one_number,
    same=near(0.01),
)

# ---- 2. the knee ----

_KNEE_CASES = tuple(
    Case(about, values)
    for about, values in (
        ("a machine of 40 GB/s and 300 Gflop/s with half-byte weights", (40e9, 300e9, 0.5625)),
        ("a machine of 30 GB/s and 250 Gflop/s with float32 weights", (30e9, 250e9, 4.0)),
        ("one of 40 GB/s and 300 Gflop/s with them", (40e9, 300e9, 4.0)),
        ("a graphics card of 1 TB/s and 80 Tflop/s", (1e12, 80e12, 2.0)),
        ("numbers that divide evenly", (10e9, 100e9, 2.0)),
        ("a machine whose knee is below one token", (100e9, 150e9, 0.5)),
    )
)


def _exact(b: float, f: float, w: float) -> float:
    return f / b * w / 2


def _machines(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case("a machine", (b * scale, f * scale, w))
        for scale, (b, f, w) in zip(
            rng.uniform(0.5, 2, 4),
            ((20e9, 91e9, 0.5625), (64e9, 511e9, 2.0), (3e12, 401e12, 1.0625), (50e9, 73e9, 1.0)),
        )
    ]


KNEE = Exercise(
    check="knee",
    names=("tokens_at_the_knee",),
    points=(2, 1),
    shows="say when arithmetic is the limit",
    usual="`one_operation`; `not_whole`, `rounded_down`, `rounded`, `one_more`; `no_bytes`, `divided`; "
    "`upside_down`; `intensity`",
    mistake=(
        "one_operation",
        cleandoc("""
        def tokens_at_the_knee(bandwidth, flops, bytes_per_weight):
            return int(np.ceil(flops / bandwidth * bytes_per_weight))
    """),
    ),
    right=lambda b, f, w: math.ceil(_exact(b, f, w)),
    cases=_KNEE_CASES,
    hidden_cases=_machines,
    faults=(
        Fault(
            "one_operation",
            lambda b, f, w: math.ceil(f / b * w),
            "A weight makes two operations for each token, one multiplication and one addition.",
        ),
        Fault("not_whole", _exact, "Right but for the rounding: there are no parts of tokens, so round up."),
        Fault(
            "rounded_down",
            lambda b, f, w: math.floor(_exact(b, f, w)),
            "Rounded down, the number of tokens stays on the slope. The first whole number that reaches the knee is "
            "wanted.",
        ),
        Fault(
            "rounded",
            lambda b, f, w: round(_exact(b, f, w)),
            "Rounded to the nearest, it sometimes stays below the knee. Round up.",
        ),
        Fault(
            "one_more",
            lambda b, f, w: math.floor(_exact(b, f, w)) + 1,
            "Where the numbers divide evenly this is one too many: reaching the knee is enough.",
        ),
        Fault(
            "no_bytes",
            lambda b, f, w: math.ceil(f / b / 2),
            "It does not depend on the bytes a weight takes. Smaller weights bring more arithmetic to each byte.",
        ),
        Fault(
            "divided",
            lambda b, f, w: math.ceil(f / b / w / 2),
            "It divides by the bytes of a weight, so that larger weights reach the knee sooner. Which have more "
            "arithmetic to a byte?",
        ),
        Fault(
            "upside_down",
            lambda b, f, w: math.ceil(b / f * w / 2),
            "It divides the bandwidth by the arithmetic. The knee is where both take equally long.",
        ),
        Fault(
            "intensity",
            lambda b, f, w: f / b,
            "This is the knee in operations a byte. How many tokens at once make as many?",
        ),
        Fault(
            "times_two",
            lambda b, f, w: math.ceil(f / b * w * 2),
            "It multiplies by the two operations. They make arithmetic slower, so that fewer tokens are needed.",
        ),
    ),
    praise="From that many tokens on, arithmetic is the limit.",
)

# ---- 3. a long context ----

_CONTEXT_CASES = tuple(
    Case(about, values)
    for about, values in (
        ("an empty cache", (40e9, 100e6, 46_080, 0)),
        ("1,000 positions", (40e9, 100e6, 46_080, 1000)),
        ("8,000 positions", (50e9, 100e6, 46_080, 8000)),
        ("a large model at 100,000 positions", (900e9, 5e9, 131_072, 100_000)),
    )
)


def _contexts(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case("a context", values)
        for values in (
            (30e9, 4e8 * rng.uniform(0.5, 2), 92_160, int(rng.integers(500, 4000))),
            (100e9, 1e9, 18_432, 0),
            (400e9, 16e9, 131_072, int(rng.integers(50_000, 131_072))),
        )
    ]


SPEED_IN_CONTEXT = Exercise(
    check="speed_in_context",
    names=("predicted_tps",),
    points=(1, 1),
    shows="add the cache to the prediction",
    usual="`weights_only`; `one_position`; `weights_each_time`; `half`, `keys_twice`; `speeds_added`, `subtracted`",
    mistake=(
        "weights_only",
        cleandoc("""
        def predicted_tps(bandwidth, weights_nbytes, position_nbytes, n_past):
            return bandwidth / weights_nbytes
    """),
    ),
    right=lambda b, w, k, n: b / (w + k * n),
    cases=_CONTEXT_CASES,
    hidden_cases=_contexts,
    faults=(
        Fault(
            "weights_only",
            lambda b, w, k, n: b / w,
            "It reads the weights and no cache: its speed is the same at every position.",
        ),
        Fault(
            "one_position",
            lambda b, w, k, n: b / (w + k),
            "It reads the cache of one position. A new token looks back at all that are there.",
        ),
        Fault(
            "weights_each_time",
            lambda b, w, k, n: b / ((w + k) * max(1, n)),
            "It reads the weights again for each position. For one new token they are read once.",
        ),
        Fault(
            "one_more",
            lambda b, w, k, n: b / (w + k * (n + 1)),
            "This also reads the new token's own keys and values, which have only just been made. Count the n_past "
            "positions before it.",
        ),
        Fault(
            "half",
            lambda b, w, k, n: b / (w + k * n / 2),
            "This reads half of the cache, its average over a whole generation; or K without V. At position n_past "
            "all of both is read.",
        ),
        Fault(
            "keys_twice",
            lambda b, w, k, n: b / (w + 2 * k * n),
            "This reads the cache twice. The bytes of a position are those of its keys and its values together.",
        ),
        Fault(
            "speeds_added",
            lambda b, w, k, n: b / w + (b / (k * n) if n else 0),
            "It adds two speeds. It is the bytes, or the times, that add up.",
        ),
        Fault(
            "upside_down",
            lambda b, w, k, n: (w + k * n) / b,
            "These are seconds for a token; tokens a second are wanted.",
        ),
        Fault(
            "subtracted",
            lambda b, w, k, n: b / w - (b / (k * n) if n else 0),
            "It subtracts two speeds. It is the bytes, or the times, that add up.",
        ),
        Fault(
            "precedence",
            lambda b, w, k, n: b / w + k * n,
            "It divides by the weights alone and adds the bytes of the cache to a speed: parentheses are missing.",
        ),
    ),
    praise="The weights once, and the keys and values of every position before.",
)

# ---- 4. KL divergence ----


def _log_softmax(l: np.ndarray) -> np.ndarray:
    shifted = l - l.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _softmax(l: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(l))


def _raw(l: np.ndarray) -> np.ndarray:
    return np.exp(l) / np.exp(l).sum()


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((np.exp(_log_softmax(p)) * (_log_softmax(p) - _log_softmax(q))).sum())


_KL_CASES = tuple(
    Case(about, (np.array(p), np.array(q)))
    for about, p, q in (
        ("two like distributions", [2.0, 1.0, 0.0, -1.0], [1.9, 1.2, 0.0, -1.1]),
        ("two unlike ones", [2.0, 1.0, 0.0], [0.0, 1.0, 3.0]),
        ("the same distribution with all logits 3 higher", [1.0, 0.5, -2.0], [4.0, 3.5, 1.0]),
        ("logits of a thousand", [1000.0, 998.0, 990.0], [1001.0, 998.0, 995.0]),
    )
)


def _logits(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case("logits", (rng.normal(0, spread, 30) + shift, rng.normal(0, spread, 30)))
        for spread, shift in ((1, 0), (4, 900), (2, -3000))
    ]


KL = Exercise(
    check="kl_divergence",
    names=("kl_divergence",),
    points=(3, 1),
    shows="measure what quantizing costs",
    usual="`reversed`; `overflow`; `bits`; `no_softmax`, `logits_subtracted`; `cross_entropy`; `unweighted`; "
    "`mean`, `absolute`, `sign`",
    mistake=(
        "reversed",
        cleandoc("""
        def kl_divergence(reference_logits, logits):
            p, q = (l - np.logaddexp.reduce(l) for l in (reference_logits, logits))
            return (np.exp(q) * (q - p)).sum()
    """),
    ),
    right=_kl,
    cases=_KL_CASES,
    hidden_cases=_logits,
    faults=(
        Fault(
            "reversed",
            lambda p, q: _kl(q, p),
            "It weighs by the wrong one of the two: each token counts by how likely the *reference* makes it.",
        ),
        Fault("bits", lambda p, q: _kl(p, q) / math.log(2), "These are bits, by the logarithm to base 2. Use nats."),
        Fault(
            "overflow",
            lambda p, q: (_raw(p) * np.log(_raw(p) / _raw(q))).sum(),
            "Right for small logits, but exp of a thousand is too large for a float. Which amount can you take from "
            "all logits without changing the softmax?",
        ),
        Fault(
            "no_softmax",
            lambda p, q: (p * np.log(p / q)).sum(),
            "It takes logits for probabilities. Softmax first.",
        ),
        Fault(
            "logits_subtracted",
            lambda p, q: (_softmax(p) * (p - q)).sum(),
            "It subtracts logits where logarithms of probabilities are to be subtracted. They differ by a constant "
            "for each of the two, and that does not cancel.",
        ),
        Fault(
            "mean",
            lambda p, q: _kl(p, q) / len(p),
            "It takes a mean over the vocabulary. The probabilities are the weights already: add up.",
        ),
        Fault(
            "cross_entropy",
            lambda p, q: -(_softmax(p) * _log_softmax(q)).sum(),
            "This is the cross-entropy: even the reference with itself does not come to 0. Something of the "
            "reference's own is to be taken off.",
        ),
        Fault("sign", lambda p, q: -_kl(p, q), "The sign is turned round: a KL divergence is never below 0."),
        Fault(
            "unweighted",
            lambda p, q: (_log_softmax(p) - _log_softmax(q)).sum(),
            "It adds up the differences of the logarithms, each as much as the others. A token counts by how likely "
            "it is.",
        ),
        Fault(
            "absolute",
            lambda p, q: np.abs(_softmax(p) - _softmax(q)).sum(),
            "This adds up the differences of the probabilities: another measure, and a good one, but not this one.",
        ),
        Fault(
            "not_summed",
            lambda p, q: np.exp(_log_softmax(p)) * (_log_softmax(p) - _log_softmax(q)),
            "These are the terms, one per token. Add them up.",
        ),
        Fault(
            "symmetric",
            lambda p, q: _kl(p, q) + _kl(q, p),
            "This adds both directions. Only the one that the reference weighs is wanted.",
        ),
        Fault(
            "symmetric",
            lambda p, q: (_kl(p, q) + _kl(q, p)) / 2,
            "This is the mean of both directions. Only the one that the reference weighs is wanted.",
        ),
    ),
    praise="Weighted by the reference, in nats, and safe for logits of a thousand.",
)

# ---- 5. a fair comparison ----


class World:
    """Two tasks and a simulated clock. `ours` and `theirs` take no real time; they advance the clock.

    Args:
        ours, theirs: seconds a call takes on a quiet machine.
        paces: how slow the machine is, one factor per two calls of either task; the last factor stays. Rising factors
            simulate a machine that grows warm.
        hiccup: the index of a call that takes ten times as long, counted from 0 over both tasks; None for no such call.
    """

    def __init__(self, ours: float, theirs: float, paces: Sequence[float], hiccup: int | None):
        self._seconds, self._paces, self._hiccup = {"ours": ours, "theirs": theirs}, paces, hiccup
        self._now, self._calls, self._called = 100.0, 0, set[str]()
        self.looked = 0

    def clock(self) -> float:
        """Stands in for `time.perf_counter`."""
        self.looked += 1
        return self._now

    def ours(self) -> None:
        """The task whose speed is measured."""
        self._run("ours")

    def theirs(self) -> None:
        """The task it is compared with."""
        self._run("theirs")

    def _run(self, name: str) -> None:
        pace = self._paces[min(self._calls // 2, len(self._paces) - 1)]
        first = 1 if name in self._called else (40 if name == "ours" else 15)  # compilation and page mapping
        slow = 10 if self._calls == self._hiccup else 1
        self._now += self._seconds[name] * pace * first * slow
        self._calls += 1
        self._called.add(name)


_STEADY = (1.0,)
_WARMING = (1.0, 1.0, 1.1, 1.25, 1.45, 1.7, 2.0, 2.4)
_Args = tuple[float, float, tuple[float, ...], int | None]
_WORLDS: tuple[tuple[str, _Args, int], ...] = (
    ("a quiet machine", (0.02, 0.05, _STEADY, None), 5),
    ("a machine that another program interrupts once", (0.02, 0.03, _STEADY, 6), 5),
    ("a machine that grows warm and slow", (0.02, 0.024, _WARMING, None), 5),
    ("three pairs only", (0.5, 0.25, _WARMING, 3), 3),
    ("two pairs only", (0.04, 0.05, _STEADY, None), 2),
)
_Task = Callable[[], None]


def _seconds(clock: Callable[[], float], task: _Task) -> float:
    start = clock()
    task()
    return clock() - start


def _pairs(
    ours: _Task, theirs: _Task, clock: Callable[[], float], pairs: int, warm: bool = True
) -> list[tuple[float, float]]:
    if warm:
        ours()
        theirs()
    return [(_seconds(clock, ours), _seconds(clock, theirs)) for _ in range(pairs)]


def _one_after_the_other(ours: _Task, theirs: _Task, clock: Callable[[], float], pairs: int, warm: bool) -> float:
    if warm:
        ours()
        theirs()
    mine = [_seconds(clock, ours) for _ in range(pairs)]
    return median(_seconds(clock, theirs) for _ in range(pairs)) / median(mine)


def _of_sums(times: list[tuple[float, float]], of: Callable[[list[float]], float]) -> float:
    return of([t for _, t in times]) / of([o for o, _ in times])


def _in_world(world: _Args, pairs: int) -> tuple[Any, ...]:
    made = World(*world)
    return made.ours, made.theirs, made.clock, pairs


def _never_looked(calls: Sequence[tuple[Any, ...]]) -> CheckResult | None:
    if any(clock.__self__.looked for _, _, clock, _ in calls):
        return None
    return CheckResult(
        False,
        "It never looked at the clock it was given. Use `clock()` where you would use `time.perf_counter()`.",
        "own_clock",
    )


def _other_worlds(rng: np.random.Generator, model: Any) -> list[Case]:
    made: list[tuple[_Args, int]] = [
        ((0.03 * rng.uniform(0.5, 2), 0.12, (1.0, 1.1, 1.3, 1.6, 2.0), 4), 5),
        ((0.2 * rng.uniform(0.5, 2), 0.1, _WARMING, 2), 7),  # the first measured pair is the outlier
        ((0.5 * rng.uniform(0.5, 2), 0.5, _STEADY, None), 2),
    ]
    return [Case("a machine", arguments) for arguments in made]


FAIR = Exercise(
    check="fair_comparison",
    names=("times_faster",),
    points=(3, 1),
    shows="compare two programs fairly",
    usual="`cold`: the first call timed; `one_side_warmed`; `not_in_turn`; `mean`, `ratio_of_sums`, "
    "`ratio_of_medians`, `best_of_each`; `one_pair`; "
    "`difference`; `own_clock`",
    mistake=(
        "cold",
        cleandoc("""
        def times_faster(ours, theirs, clock, pairs):
            ratios = []
            for _ in range(pairs):
                start = clock()
                ours()
                middle = clock()
                theirs()
                ratios.append((clock() - middle) / (middle - start))
            return statistics.median(ratios)
    """),
    ),
    right=lambda o, t, c, n: median(b / a for a, b in _pairs(o, t, c, n)),
    cases=tuple(Case(about, (world, pairs)) for about, world, pairs in _WORLDS),
    hidden_cases=_other_worlds,
    prepare=_in_world,
    watched=_never_looked,
    faults=(
        Fault(
            "upside_down",
            lambda o, t, c, n: median(a / b for a, b in _pairs(o, t, c, n)),
            "Turned round: where ours takes half the time, it is 2 times as fast.",
        ),
        Fault(
            "cold",
            lambda o, t, c, n: median(b / a for a, b in _pairs(o, t, c, n, warm=False)),
            "It times the first call of each, too. That one compiles and maps pages: call each once before you look "
            "at the clock.",
        ),
        Fault(
            "cold",
            lambda o, t, c, n: fmean(b / a for a, b in _pairs(o, t, c, n, warm=False)),
            "It times the first call of each, too, and a mean takes it in. Call each once before you look at the "
            "clock; and which average does not mind one odd value?",
        ),
        Fault(
            "not_in_turn",
            lambda o, t, c, n: _one_after_the_other(o, t, c, n, True),
            "It measures all of the one and then all of the other. Where the machine changes meanwhile, that is "
            "taken for a difference between the two. Measure them in turn.",
        ),
        Fault(
            "not_in_turn and cold",
            lambda o, t, c, n: _one_after_the_other(o, t, c, n, False),
            "Two things. It measures all of the one and then all of the other, so that a machine that changes "
            "meanwhile decides; and it times the first call of each, which is slow for reasons of its own.",
        ),
        Fault(
            "mean",
            lambda o, t, c, n: fmean(b / a for a, b in _pairs(o, t, c, n)),
            "It takes the mean of the ratios, and one interruption moves a mean as far as it likes. Which average "
            "does not mind?",
        ),
        Fault(
            "ratio_of_sums",
            lambda o, t, c, n: _of_sums(_pairs(o, t, c, n), sum),
            "It adds the times up first. One interruption is then in the sum for good. A ratio for each pair, then "
            "an average that does not mind one odd value.",
        ),
        Fault(
            "best_of_each",
            lambda o, t, c, n: _of_sums(_pairs(o, t, c, n), min),
            "It compares the best of the one with the best of the other, from two different moments. A ratio for each "
            "pair.",
        ),
        Fault(
            "one_pair",
            lambda o, t, c, n: median(b / a for a, b in _pairs(o, t, c, 1)),
            "It measures one pair. When that is the one with the interruption, nothing is left to tell.",
        ),
        Fault(
            "difference",
            lambda o, t, c, n: median(b - a for a, b in _pairs(o, t, c, n)),
            "It subtracts the times. Seconds say nothing on another machine; a ratio does.",
        ),
        Fault(
            "ratio_of_medians",
            lambda o, t, c, n: _of_sums(_pairs(o, t, c, n), median),
            "It takes the median of each side, and then their ratio: from two different moments, of a machine that "
            "changes. A ratio for each pair, then the median of those.",
        ),
        Fault(
            "one_side_warmed",
            lambda o, t, c, n: (o(), median(b / a for a, b in _pairs(o, t, c, n, warm=False)))[1],
            "It warms one of the two. The first call of the other is timed with all that happens only once.",
        ),
        Fault(
            "one_side_warmed",
            lambda o, t, c, n: (t(), median(b / a for a, b in _pairs(o, t, c, n, warm=False)))[1],
            "It warms one of the two. The first call of the other is timed with all that happens only once.",
        ),
    ),
    praise="Warm, in turn, a ratio for each pair, and the median: an odd value or a slow hour changes little.",
)

LESSON = Lesson(
    "05_performance",
    cleandoc("""
        import statistics

        import numpy as np

        from teachllama.check import notebook05 as check
        from teachllama.check.core import assert_right
    """),
    (DECODE_SPEED, KNEE, SPEED_IN_CONTEXT, KL, FAIR),
)
