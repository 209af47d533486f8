"""The checks of notebook 05, performance: predicted speed, where the knee is, a long context, KL divergence, and a fair
comparison. Nothing here is timed: a check brings its own clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from teachllama.check.core import CheckResult, Slip, number, recognise
from teachllama.check.functions import Case, Fault, compare

# ---- 1. predicted decode speed ----

NEAR = 0.01  # how far an answer may be from a figure to be taken for it


class Question(NamedTuple):
    """A model, a type of weights, and a machine."""

    n_weights: float
    block_weights: int  # weights that share a block
    block_nbytes: int
    bandwidth: float  # bytes a second


def decode_speed(answer: object, question: Question) -> CheckResult:
    """Checks a predicted decode speed, tokens a second, to 1 %.

    Args:
        answer: the learner's number.
        question: what it was asked for.
    """
    found = number(answer)
    if isinstance(found, CheckResult):
        return found
    weights, block_weights, block_nbytes, bandwidth = question
    if not all(isinstance(q, (int, float)) and math.isfinite(q) and q > 0 for q in question):
        return CheckResult(False, "The question needs another look: all four of its numbers are above 0.", "question")
    nbytes = weights / block_weights * block_nbytes
    right = bandwidth / nbytes
    whole_bits = round(8 * block_nbytes / block_weights)
    slips = [
        Slip(
            "no_scales",
            bandwidth / (weights * whole_bits / 8),
            "This counts the bits of the numbers alone. A block also holds its scales, and they are read too.",
        ),
        Slip("bits", right / 8, "This takes bits for bytes somewhere: the bandwidth is in bytes a second."),
        Slip("bits", right * 8, "This takes bytes for bits somewhere: the bandwidth is in bytes a second."),
        Slip("upside_down", 1 / right, "These are seconds for a token. How many tokens are made in one second?"),
        Slip(
            "float32",
            bandwidth / (4 * weights),
            "This reads every weight as a float32. What is read from memory is the file's blocks, as they are.",
        ),
        Slip("float16", bandwidth / (2 * weights), "This reads two bytes for every weight. How many are in the block?"),
        Slip(
            "byte_a_weight",
            bandwidth / weights,
            "This reads one byte for every weight. How many bytes does a block have, and for how many weights?",
        ),
        Slip(
            "operations",
            right / 2,
            "This counts two for each weight, as for multiplying and adding. Decode waits for bytes, not for those.",
        ),
        Slip(
            "block_a_weight",
            bandwidth / (weights * block_nbytes),
            "This reads a whole block for every weight. A block serves many.",
        ),
        Slip(
            "binary_units",
            right * 2**30 / 10**9,
            "Bandwidths are given in powers of ten, 10^9 bytes to a GB, and here one of the two is in powers of two.",
        ),
    ]
    for slip in (Slip("", right, ""), *slips):
        if (1 - NEAR) * slip.value <= found <= (1 + NEAR) * slip.value:
            found = slip.value
            break
    return recognise(
        found,
        right,
        slips,
        "Bytes a second over bytes a token: each weight is read once, with its share of the block's scales.",
        "Not near it. First find the bytes of all the weights, then ask how often a second they can be read.",
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


def knee(function: object) -> CheckResult:
    """Checks a learner's `f(bandwidth, flops, bytes_per_weight)`: the least number of tokens at once past the knee."""

    def exact(b: float, f: float, w: float) -> float:
        return f / b * w / 2

    faults = (
        Fault(
            "one_operation",
            lambda b, f, w: math.ceil(f / b * w),
            "A weight makes two operations for each token, one multiplication and one addition.",
        ),
        Fault("not_whole", exact, "Right but for the rounding: there are no parts of tokens, so round up."),
        Fault(
            "rounded_down",
            lambda b, f, w: math.floor(exact(b, f, w)),
            "Rounded down, the number of tokens stays on the slope. The first whole number that reaches the knee is "
            "wanted.",
        ),
        Fault(
            "rounded",
            lambda b, f, w: round(exact(b, f, w)),
            "Rounded to the nearest, it sometimes stays below the knee. Round up.",
        ),
        Fault(
            "one_more",
            lambda b, f, w: math.floor(exact(b, f, w)) + 1,
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
    )
    return compare(
        function,
        _KNEE_CASES,
        lambda b, f, w: math.ceil(exact(b, f, w)),
        faults,
        "From that many tokens on, arithmetic is the limit.",
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


def speed_in_context(function: object) -> CheckResult:
    """Checks a learner's `f(bandwidth, weights_nbytes, position_nbytes, n_past)`: predicted tokens a second."""
    faults = (
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
    )
    return compare(
        function,
        _CONTEXT_CASES,
        lambda b, w, k, n: b / (w + k * n),
        faults,
        "The weights once, and the keys and values of every position before.",
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


def kl_divergence(function: object) -> CheckResult:
    """Checks a learner's `f(reference_logits, logits)`: the KL divergence from the reference, in nats."""
    faults = (
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
    )
    return compare(
        function,
        _KL_CASES,
        _kl,
        faults,
        "Weighted by the reference, in nats, and safe for logits of a thousand.",
    )


# ---- 5. a fair comparison ----


class World:
    """Two tasks and the clock they run by: `ours` and `theirs` take no time at all and move the clock.

    Args:
        ours, theirs: seconds a call takes on a quiet machine.
        paces: how slow the machine is, one for each two calls of either task, as if it grew warm.
        hiccup: the number of a call that takes ten times as long, counted from 0 over both; None for no such call.
    """

    def __init__(self, ours: float, theirs: float, paces: Sequence[float], hiccup: int | None):
        self._seconds, self._paces, self._hiccup = {"ours": ours, "theirs": theirs}, paces, hiccup
        self._now, self._calls, self._called = 100.0, 0, set[str]()
        self.looked = 0

    def clock(self) -> float:
        """What `time.perf_counter` is elsewhere."""
        self.looked += 1
        return self._now

    def ours(self) -> None:
        """The task whose speed is to be shown."""
        self._run("ours")

    def theirs(self) -> None:
        """The task it is compared with."""
        self._run("theirs")

    def _run(self, name: str) -> None:
        pace = self._paces[min(self._calls // 2, len(self._paces) - 1)]
        first = 1 if name in self._called else (40 if name == "ours" else 15)  # compiling, and pages to be mapped
        slow = 10 if self._calls == self._hiccup else 1
        self._now += self._seconds[name] * pace * first * slow
        self._calls += 1
        self._called.add(name)


_STEADY = (1.0,)
_WARMING = (1.0, 1.0, 1.1, 1.25, 1.45, 1.7, 2.0, 2.4)
_WORLDS = (
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


def fair_comparison(function: object) -> CheckResult:
    """Checks a learner's `f(ours, theirs, clock, pairs)`: how many times faster ours is, measured in turn.

    `ours` and `theirs` are called without arguments; `clock()` gives seconds.
    """
    worlds: list[World] = []

    def on(measure: Callable[..., Any]) -> Callable[[np.ndarray], Any]:
        def play(i: np.ndarray) -> Any:
            _, world, pairs = _WORLDS[int(i[0])]
            worlds.append(World(*world))
            return measure(worlds[-1].ours, worlds[-1].theirs, worlds[-1].clock, pairs)

        return play

    def fault(name: str, measure: Callable[..., Any], text: str) -> Fault:
        return Fault(name, on(measure), text)

    faults = (
        fault(
            "upside_down",
            lambda o, t, c, n: median(a / b for a, b in _pairs(o, t, c, n)),
            "Turned round: where ours takes half the time, it is 2 times as fast.",
        ),
        fault(
            "cold",
            lambda o, t, c, n: median(b / a for a, b in _pairs(o, t, c, n, warm=False)),
            "It times the first call of each, too. That one compiles and maps pages: call each once before you look "
            "at the clock.",
        ),
        fault(
            "cold",
            lambda o, t, c, n: fmean(b / a for a, b in _pairs(o, t, c, n, warm=False)),
            "It times the first call of each, too, and a mean takes it in. Call each once before you look at the "
            "clock; and which average does not mind one odd value?",
        ),
        fault(
            "not_in_turn",
            lambda o, t, c, n: _one_after_the_other(o, t, c, n, True),
            "It measures all of the one and then all of the other. Where the machine changes meanwhile, that is "
            "taken for a difference between the two. Measure them in turn.",
        ),
        fault(
            "not_in_turn and cold",
            lambda o, t, c, n: _one_after_the_other(o, t, c, n, False),
            "Two things. It measures all of the one and then all of the other, so that a machine that changes "
            "meanwhile decides; and it times the first call of each, which is slow for reasons of its own.",
        ),
        fault(
            "mean",
            lambda o, t, c, n: fmean(b / a for a, b in _pairs(o, t, c, n)),
            "It takes the mean of the ratios, and one interruption moves a mean as far as it likes. Which average "
            "does not mind?",
        ),
        fault(
            "ratio_of_sums",
            lambda o, t, c, n: _of_sums(_pairs(o, t, c, n), sum),
            "It adds the times up first. One interruption is then in the sum for good. A ratio for each pair, then "
            "an average that does not mind one odd value.",
        ),
        fault(
            "best_of_each",
            lambda o, t, c, n: _of_sums(_pairs(o, t, c, n), min),
            "It compares the best of the one with the best of the other, from two different moments. A ratio for each "
            "pair.",
        ),
        fault(
            "one_pair",
            lambda o, t, c, n: median(b / a for a, b in _pairs(o, t, c, 1)),
            "It measures one pair. When that is the one with the interruption, nothing is left to tell.",
        ),
        fault(
            "difference",
            lambda o, t, c, n: median(b - a for a, b in _pairs(o, t, c, n)),
            "It subtracts the times. Seconds say nothing on another machine; a ratio does.",
        ),
    )
    cases = [Case(about, (np.array([i]),)) for i, (about, _, _) in enumerate(_WORLDS)]
    result = compare(
        on(function) if callable(function) else function,
        cases,
        on(lambda o, t, c, n: median(b / a for a, b in _pairs(o, t, c, n))),
        faults,
        "Warm, in turn, a ratio for each pair, and the median: an odd value or a slow hour changes little.",
    )
    # The learner's function ran first, in the first worlds.
    if not result.ok and len(worlds) > len(cases) and not any(w.looked for w in worlds[: len(cases)]):
        return CheckResult(
            False,
            "It never looked at the clock it was given. Use `clock()` where you would use `time.perf_counter()`.",
            "own_clock",
        )
    return result
