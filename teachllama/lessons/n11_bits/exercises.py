"""The exercises of lesson 11: a block of Q8_0, a tensor's bytes, a format for a budget, and Q4_1 read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import cleandoc
from typing import Any

import numpy as np

from teachllama.lessons.common.check import CheckResult, a_type
from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson

# ---- 1. a block of Q8_0 ----


def _blocks(seed: int, *spreads: float) -> list[Case]:
    rng = np.random.default_rng(seed)
    made = [Case("weights around 0", (_off_ties(rng.normal(0, s, 32)),)) for s in spreads]
    negative = -np.abs(rng.normal(0, 0.1, 32))
    outlier = rng.normal(0, 0.05, 32)
    outlier[7] = -1.5
    return [
        *made,
        Case("weights that are all negative", (_off_ties(negative),)),
        Case("a block with one large negative weight", (_off_ties(outlier),)),
        Case("a block of zeros", (np.zeros(32, np.float32),)),
    ]


def _off_ties(x: np.ndarray) -> np.ndarray:
    """Moves numbers away from the midpoint between two marks, where rounding rules differ."""
    scale = np.abs(x).max() / 127
    q = x / scale
    near = np.abs(np.abs(q - np.floor(q)) - 0.5) < 0.02
    return np.where(near, x + 0.1 * scale, x).astype(np.float32)


def _q8_0(x: np.ndarray) -> np.ndarray:
    largest = np.abs(x).max()
    return np.round(x / (largest / 127)) if largest else np.zeros(32)


def _by(scale: Callable[[np.ndarray], Any], rounding: Callable[[np.ndarray], np.ndarray] = np.round) -> Any:
    return lambda x: rounding(x / scale(x)) if np.any(x) else np.zeros(32)


Q8_0 = Exercise(
    check="q8_0",
    names=("q8_0",),
    points=(2, 1),
    shows="quantize a block of Q8_0",
    usual="`largest_signed`: the largest, and not the largest by size; `range`: from the lowest to the highest; "
    "`steps_128`, `steps_255`; `truncated`, `floored`; `no_scale`; `multiplied`; `read_back`: weights and not numbers; "
    "`zeros`: divided by a scale of 0; `unsigned`",
    mistake=(
        "largest_signed",
        cleandoc("""
        def q8_0(x):
            largest = x.max()
            return np.round(x / (largest / 127)) if np.any(x) else np.zeros(32)
    """),
    ),
    right=_q8_0,
    cases=tuple(_blocks(3, 0.02, 3.0)),
    hidden_cases=lambda rng, model: _blocks(int(rng.integers(1 << 30)), 0.1, 1.0, 40.0),
    faults=(
        Fault(
            "zeros",
            lambda x: np.round(x / (np.abs(x).max() / 127)),
            "A block of zeros has a scale of 0, and dividing by it gives no numbers.",
        ),
        Fault(
            "largest_signed",
            _by(lambda x: x.max() / 127),
            "The scale is made from the largest weight: a negative weight may be farther from 0.",
        ),
        Fault(
            "range",
            _by(lambda x: (x.max() - x.min()) / 255),
            "The scale is made from the lowest and the highest weight. That belongs to formats with an offset.",
        ),
        Fault(
            "steps_128",
            _by(lambda x: np.abs(x).max() / 128),
            "The largest becomes 128, which one byte cannot hold on the positive side.",
        ),
        Fault(
            "steps_255",
            _by(lambda x: np.abs(x).max() / 255),
            "The largest becomes 255. The numbers have a sign: how many marks are there on each side of 0?",
        ),
        Fault(
            "truncated",
            _by(lambda x: np.abs(x).max() / 127, np.trunc),
            "The part behind the point is cut off. The nearest mark may be the next one.",
        ),
        Fault(
            "floored",
            _by(lambda x: np.abs(x).max() / 127, np.floor),
            "Numbers are rounded down. The nearest mark may be the next one.",
        ),
        Fault("no_scale", np.round, "The weights themselves are rounded: there is no scale."),
        Fault(
            "multiplied",
            lambda x: np.round(x * (np.abs(x).max() / 127)),
            "The weights are multiplied by the scale. That is the way back.",
        ),
        Fault(
            "read_back",
            lambda x: _q8_0(x) * np.abs(x).max() / 127,
            "These are weights again; the whole numbers are wanted, before they are multiplied by the scale.",
        ),
        Fault("unrounded", _by(lambda x: np.abs(x).max() / 127, lambda q: q), "These are not whole numbers."),
        Fault("unsigned", lambda x: _q8_0(x) + 127, "All numbers are moved up, so that 0 is no longer 0."),
        Fault(
            "mean",
            _by(lambda x: np.abs(x).mean() / 127),
            "The scale is made from the mean: larger weights don't fit into a byte then.",
        ),
    ),
    praise="The largest by size gets the last mark, the others the nearest; and a block of zeros stays one.",
)

# ---- 2. a tensor's bytes ----

_KINDS = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144), "Q6_K": (256, 210), "F16": (1, 2)}


def _tensors(*of: tuple[tuple[int, ...], str]) -> list[Case]:
    return [Case(f"{' x '.join(map(str, shape))} weights in {kind}", (shape, *_KINDS[kind])) for shape, kind in of]


def _bytes(shape: Sequence[int], weights: int, nbytes: int) -> int:
    return int(np.prod(shape)) // weights * nbytes if shape[-1] % weights == 0 else -1


def _other_tensors(rng: np.random.Generator, model: Any) -> list[Case]:
    shapes = [(int(r), 256 * int(c)) for r, c in rng.integers(1, 20, (3, 2))]
    odd = [(64, 32 * int(c) + 16) for c in rng.integers(1, 20, 2)]
    return _tensors(
        *((s, k) for s in shapes for k in ("Q8_0", "Q4_K")), *((s, "Q4_1") for s in odd), ((8, 384), "Q6_K")
    )


TENSOR_BYTES = Exercise(
    check="tensor_bytes",
    names=("tensor_bytes",),
    points=(1, 1),
    shows="count the bytes of a tensor in a format",
    usual="`whole_tensor`: blocks across the ends of rows; `rounded_up`: rows filled up; `weights`: how many weights; "
    "`blocks`: how many blocks; `one_row`; `first_dimension`: rows and columns changed; `bits`; `fraction`: what is "
    "over is dropped",
    mistake=(
        "whole_tensor",
        cleandoc("""
        def tensor_bytes(shape, weights, nbytes):
            n = int(np.prod(shape))
            return n // weights * nbytes if n % weights == 0 else -1
    """),
    ),
    right=_bytes,
    cases=tuple(
        _tensors(
            ((576, 576), "Q8_0"),
            ((1536, 576), "Q4_0"),
            ((576, 576), "Q4_K"),
            ((4096, 4096), "Q4_K"),
            ((49152, 576), "F16"),
            ((8, 14336, 4096), "Q6_K"),
            ((32, 80), "Q8_0"),
            ((3, 80), "Q4_0"),
            ((256, 384), "Q4_K"),
            ((384, 256), "Q4_K"),
            ((576,), "Q4_1"),
        )
    ),
    hidden_cases=_other_tensors,
    faults=(
        Fault(
            "whole_tensor",
            lambda s, w, b: int(np.prod(s)) // w * b if np.prod(s) % w == 0 else -1,
            "Blocks go across the ends of rows here. Each row begins a new block, so each row has to divide.",
        ),
        Fault(
            "rounded_up",
            lambda s, w, b: int(np.prod(s[:-1])) * -(-s[-1] // w) * b,
            "Rows that don't divide are filled up. No GGUF file does that: such a matrix can't have this format.",
        ),
        Fault(
            "fraction",
            lambda s, w, b: int(np.prod(s)) // w * b,
            "A row that does not divide into blocks is counted as if it did.",
        ),
        Fault("weights", lambda s, w, b: int(np.prod(s)) if s[-1] % w == 0 else -1, "That is how many weights."),
        Fault("blocks", lambda s, w, b: int(np.prod(s)) // w if s[-1] % w == 0 else -1, "That is how many blocks."),
        Fault("one_row", lambda s, w, b: s[-1] // w * b if s[-1] % w == 0 else -1, "That is one row."),
        Fault(
            "first_dimension",
            lambda s, w, b: int(np.prod(s)) // w * b if s[0] % w == 0 else -1,
            "The first number of the shape is taken for the length of a row. It is the last.",
        ),
        Fault("bits", lambda s, w, b: 8 * _bytes(s, w, b) if s[-1] % w == 0 else -1, "That is bits."),
        Fault(
            "block_each",
            lambda s, w, b: int(np.prod(s)) * b if s[-1] % w == 0 else -1,
            "That is a block for each weight: how many weights share one?",
        ),
    ),
    praise="Whole blocks in every row, or not at all. That is why some files have a matrix in another type.",
)

# ---- 3. a format for a budget ----

# name, bits per weight, KL divergence
_FORMATS = (
    ("F16", 16.0, 2e-8),
    ("Q5_0", 5.5, 9.0e-4),
    ("Q8_0", 8.5, 1.6e-5),
    ("Q4_0", 4.5, 2.8e-3),
    ("Q4_0, ends Q8_0", 4.9, 1.4e-3),
    ("Q4_1", 5.0, 2.2e-3),
    ("MXFP4", 4.25, 7.1e-3),
    ("6 bits, one scale", 6.0, 2.4e-2),
)
Formats = Sequence[tuple[str, float, float]]


def _budgets(n: int, formats: Formats, *budgets: int) -> list[Case]:
    return [Case(f"{n:,} weights, {b:,} bytes", (list(formats), n, b)) for b in budgets]


def _fits(bits: float, n: int, budget: float) -> bool:
    return bits * n / 8 <= budget


def _choose(formats: Formats, n: int, budget: float, best: Callable[[Any], Any] = lambda f: f[2]) -> str:
    fit = [f for f in formats if _fits(f[1], n, budget)]
    return min(fit, key=best)[0] if fit else ""


def _other_budgets(rng: np.random.Generator, model: Any) -> list[Case]:
    cases = []
    for _ in range(4):
        n = 8_000 * int(rng.integers(10, 9_000))
        formats = [_FORMATS[i] for i in rng.permutation(len(_FORMATS))]
        exact = int(formats[0][1] * n / 8)
        cases += _budgets(n, formats, exact, exact - 1, int(n * rng.uniform(0.52, 2.2)), int(0.4 * n))
    return cases


def _name(value: Any) -> Any:
    if value is ...:
        return CheckResult(False, "Your function returns ... and a name is wanted.", "unanswered")
    if value is None:
        return CheckResult(False, "Your function returns nothing (None): does it end in `return`?", "unanswered")
    if not isinstance(value, str):
        return CheckResult(False, f"Your function returns {a_type(value)}; a format's name is wanted.", "type")
    return str(value)


CHOOSE = Exercise(
    check="choose",
    names=("choose",),
    points=(2, 1),
    shows="choose a format for a budget by what it costs, not by its bits",
    usual="`most_bits`: the largest that fits; `smallest`; `first`; `bits_for_bytes`; `exact_refused`; "
    "`budget_ignored`; `worst`: the farthest; `never_empty`",
    mistake=(
        "most_bits",
        cleandoc("""
        def choose(formats, n_weights, budget):
            fit = [f for f in formats if f[1] * n_weights / 8 <= budget]
            return max(fit, key=lambda f: f[1])[0] if fit else ""
    """),
    ),
    right=_choose,
    cases=(
        *_budgets(1_312_000, _FORMATS, 820_000, 738_000, 803_600, 700_000, 697_000, 600_000, 300_000, 3_000_000),
        *_budgets(8_000_000_000, _FORMATS, 4_600_000_000, 5_000_000_000, 8_499_999_999, 8_500_000_000),
    ),
    hidden_cases=_other_budgets,
    faults=(
        Fault(
            "most_bits",
            lambda f, n, b: _choose(f, n, b, lambda x: -x[1]),
            "The format with the most bits is taken. More bits are not always nearer: compare the divergences.",
        ),
        Fault(
            "smallest",
            lambda f, n, b: _choose(f, n, b, lambda x: x[1]),
            "The smallest is taken, though a nearer one fits as well.",
        ),
        Fault(
            "first",
            lambda f, n, b: next((x[0] for x in f if _fits(x[1], n, b)), ""),
            "The first that fits is taken, in the order of the list.",
        ),
        Fault("bits_for_bytes", lambda f, n, b: _choose(f, n, b / 8), "Bits are compared with bytes."),
        Fault(
            "bytes_for_bits",
            lambda f, n, b: _choose(f, n, 8 * b),
            "The budget is taken for more than it is: how many bits are in a byte?",
        ),
        Fault(
            "exact_refused",
            lambda f, n, b: _choose(f, n, b - 1e-3),
            "A format that takes just the budget is refused: it fits.",
        ),
        Fault(
            "budget_ignored",
            lambda f, n, b: min(f, key=lambda x: x[2])[0],
            "The nearest of all is taken, whether or not it fits.",
        ),
        Fault(
            "worst",
            lambda f, n, b: _choose(f, n, b, lambda x: -x[2]),
            "A large divergence is far from the reference: which end of the scale is good?",
        ),
        Fault(
            "never_empty",
            lambda f, n, b: _choose(f, n, b) or min(f, key=lambda x: x[1])[0],
            "Where nothing fits a format is named all the same.",
        ),
    ),
    read=_name,
    same=lambda a, b: bool(a == b),
    praise="The nearest of those that fit. Bits per weight are the price, and not the value.",
)

# ---- 4. Q4_1 read back ----


def _packed(seed: int, *spreads: float) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for spread in spreads:
        head = np.array([spread * rng.uniform(0.05, 0.1), -spread * rng.uniform(0.4, 0.9)], np.float16)
        numbers = rng.integers(0, 256, 16).astype(np.uint8)
        cases.append(Case("a block", (np.concatenate([head.view(np.uint8), numbers]),)))
    return cases


def _q4_1(
    block: np.ndarray, *, order: str = "halves", offset: int = 0, swap: bool = False, minimum: float = 1.0
) -> Any:
    scale, low = block[:4].copy().view(np.float16).astype(np.float32)[:: -1 if swap else 1]
    first, second = block[4:] & 15, block[4:] >> 4
    if order == "high_first":
        first, second = second, first
    q = np.concatenate([first, second]) if order != "pairs" else np.stack([first, second], axis=1).ravel()
    return (q.astype(np.float32) - offset) * scale + minimum * low


def _scaled_sum(block: np.ndarray) -> Any:
    scale, low = block[:4].copy().view(np.float16).astype(np.float32)
    return (np.concatenate([block[4:] & 15, block[4:] >> 4]).astype(np.float32) + low) * scale


def _numbers_alone(block: np.ndarray) -> Any:
    return np.concatenate([block[4:] & 15, block[4:] >> 4]).astype(np.float32)


READ_Q4_1 = Exercise(
    check="read_q4_1",
    names=("read_q4_1",),
    points=(2, 1),
    shows="read a block of Q4_1 back",
    usual="`pairs`: neighbours from one byte; `high_first`; `no_minimum`; `minus_8`: as in Q4_0; `swapped`: scale and "
    "minimum; `minimum_scaled`; `minimum_subtracted`; `numbers`: no scale; `half_the_block`",
    mistake=(
        "pairs",
        cleandoc("""
        def read_q4_1(block):
            scale, minimum = block[:4].view(np.float16).astype(np.float32)
            numbers = np.stack([block[4:] & 15, block[4:] >> 4], axis=1).ravel()
            return scale * numbers + minimum
    """),
    ),
    right=_q4_1,
    cases=tuple(_packed(5, 1.0, 0.02, 30.0)),
    hidden_cases=lambda rng, model: _packed(int(rng.integers(1 << 30)), 0.3, 2.0, 500.0),
    faults=(
        Fault(
            "pairs",
            lambda b: _q4_1(b, order="pairs"),
            "The two halves of a byte are taken for neighbours. Low halves are the first 16 weights, high halves the "
            "other 16.",
        ),
        Fault("high_first", lambda b: _q4_1(b, order="high_first"), "High halves come before low ones here."),
        Fault("no_minimum", lambda b: _q4_1(b, minimum=0), "The minimum is missing."),
        Fault(
            "minus_8",
            lambda b: _q4_1(b, offset=8, minimum=0),
            "8 is subtracted from the numbers: that is Q4_0, which has no minimum.",
        ),
        Fault(
            "minus_8_too",
            lambda b: _q4_1(b, offset=8),
            "8 is subtracted from the numbers: that is Q4_0. Here 0 stands for the minimum.",
        ),
        Fault("swapped", lambda b: _q4_1(b, swap=True), "Scale and minimum have changed places."),
        Fault("minimum_scaled", _scaled_sum, "The minimum is added before the scale, and so is scaled too."),
        Fault("minimum_subtracted", lambda b: _q4_1(b, minimum=-1), "The minimum is subtracted; it has its sign."),
        Fault("numbers", _numbers_alone, "These are the numbers from 0 to 15, and not yet weights."),
        Fault(
            "half_the_block",
            lambda b: _q4_1(b)[:16],
            "16 weights: the other half of each byte is missing.",
        ),
    ),
    praise="Low halves, then high halves, times the scale, plus the minimum: 32 weights from 20 bytes.",
)

LESSON = Lesson(
    "11_fewer_bits",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook11 as check
        from teachllama.check.core import assert_right
    """),
    (Q8_0, TENSOR_BYTES, CHOOSE, READ_Q4_1),
)
