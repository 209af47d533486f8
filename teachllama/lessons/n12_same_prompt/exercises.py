"""The exercises of lesson 12: a sum as a processor adds it, where two runs part, which bits are promised, and
which promises can be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import cleandoc
from typing import Any

import numpy as np

from teachllama.lessons.common.check import CheckResult, a_type
from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson

# ---- 1. the order of a sum ----


def _halves(sums: np.ndarray) -> Any:
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    return sums[0]


def _in_turn(numbers: np.ndarray, start: Any = None) -> Any:
    total = numbers.dtype.type(0) if start is None else start
    for x in numbers:
        total = total + x
    return total


def _lanes(numbers: np.ndarray, lanes: int, how: str = "strided", end: Callable[[np.ndarray], Any] = _halves) -> Any:
    rows = numbers.reshape(-1, lanes) if how == "strided" else numbers.reshape(lanes, -1).T
    sums = np.zeros(lanes, numbers.dtype)
    for row in rows if how != "backwards" else rows[::-1]:
        sums = sums + row
    return end(sums)


def _pairs(sums: np.ndarray) -> Any:
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    return sums[0]


def _sums(rng: np.random.Generator, *shapes: tuple[int, int]) -> list[Case]:
    def numbers(n: int) -> np.ndarray:
        return (rng.standard_normal(n) * 10.0 ** rng.integers(-2, 4, n)).astype(np.float32)

    return [Case(f"{n} numbers in {lanes} lanes", (numbers(n), lanes)) for n, lanes in shapes]


def _exactly(a: Any, b: Any) -> bool:
    return bool(np.size(a) == np.size(b) == 1 and np.array_equal(np.ravel(a), np.ravel(b)))


LANES = Exercise(
    check="lane_sum",
    names=("lane_sum",),
    points=(2, 1),
    shows="add numbers in the order in which a processor does",
    usual="`in_order`: one sum from left to right; `chunks`: each lane takes neighbours; `left_to_right`: lanes added "
    "one after another; `neighbours`: lanes 0 and 1 first; `double`: in float64; `numpy`: `np.sum`; `backwards`",
    mistake=(
        "chunks",
        cleandoc("""
        def lane_sum(numbers, lanes):
            rows = numbers.reshape(lanes, -1)
            sums = np.zeros(lanes, np.float32)
            for column in rows.T:
                sums = sums + column
            while len(sums) > 1:
                half = len(sums) // 2
                sums = sums[:half] + sums[half:]
            return sums[0]
    """),
    ),
    right=_lanes,
    cases=tuple(_sums(np.random.default_rng(12), (512, 16), (400, 8), (240, 4), (150, 2))),
    hidden_cases=lambda rng, model: _sums(rng, (480, 16), (200, 8), (360, 4), (800, 16), (250, 2), (640, 8), (320, 16)),
    faults=(
        Fault("in_order", lambda x, n: _in_turn(x), "All numbers go into one sum, from left to right. Each lane has a "
              "sum of its own."),
        Fault("chunks", lambda x, n: _lanes(x, n, "chunks"), "Each lane takes a run of neighbours. A vector is loaded "
              "at once: number i goes to lane i % lanes."),
        Fault("left_to_right", lambda x, n: _lanes(x, n, end=_in_turn), "The lanes' sums are added one after another. "
              "A vector is folded: its upper half is added to its lower half."),
        Fault("neighbours", lambda x, n: _lanes(x, n, end=_pairs), "Neighbouring lanes are added first. The exercise "
              "adds the upper half of the lanes to the lower half."),
        Fault("double", lambda x, n: _lanes(x.astype(np.float64), n), "The sums are float64, which rounds elsewhere. "
              "Keep them in float32, as the numbers are."),
        Fault("double", lambda x, n: np.float32(_lanes(x.astype(np.float64), n)), "The sums are float64, and only the "
              "result is float32. Round after each addition."),
        Fault("numpy", lambda x, n: x.sum(), "That is NumPy's own order."),
        Fault("backwards", lambda x, n: _lanes(x[::-1], n), "The numbers are taken from the end."),
    ),
    same=_exactly,
    praise="Bit for bit. Whoever adds in other lanes gets other bits, and neither of you is wrong.",
)  # fmt: skip

# ---- 2. where two runs may part ----


def _first(gaps: Any, bound: float) -> int:
    return next((i for i, gap in enumerate(gaps) if gap <= bound), len(gaps))


_GAPS: tuple[tuple[str, Sequence[float], float], ...] = (
    ("gaps that shrink", (3.0, 1.5, 0.7, 0.3, 0.1, 0.02), 0.05),
    ("a tie at twice the noise", (2.0, 1.0, 0.25, 0.5), 0.125),
    ("gaps that are all large", (4.0, 2.5, 3.1), 0.001),
    ("one small gap, then a smaller one", (5.0, 0.19, 2.0, 0.04, 3.0), 0.1),
    ("a small gap at the first step", (0.01, 4.0, 0.002, 2.0), 0.01),
    ("a gap between once and twice the noise", (3.0, 0.015, 0.9, 0.008, 0.001), 0.01),
    ("three small gaps", (0.5, 0.1, 0.004, 2.0, 0.03), 0.1),
    ("a gap just above twice the noise", (3.0, 0.25, 0.9), 0.1),
    ("a single step", (0.5,), 0.1),
)


def _other_gaps(rng: np.random.Generator, model: Any) -> list[Case]:
    cases = []
    for i, noise in enumerate((0.2, 0.05, 0.01, 0.125, 0.4, 0.002)):
        gaps = rng.exponential(1.0, 12) + 2.2 * noise  # all too large
        if i < 5:
            first, second, third = np.sort(rng.choice(np.arange(1, 12), 3, replace=False))
            gaps[first], gaps[second], gaps[third] = noise * rng.uniform([1.1, 0.1, 0.6], [1.9, 0.4, 0.9])
        cases.append(Case("other gaps", (gaps, float(noise))))
    return cases


MAY_PART = Exercise(
    check="may_part",
    names=("may_part",),
    points=(2, 1),
    shows="predict from gaps where two greedy texts may part",
    usual="`once`: noise counted for one logit of the two; `smallest`: the smallest gap and not the first small one; "
    "`last`; `count`; `minus_one`, `one_based`; `half`; `large`: the comparison turned round",
    mistake=(
        "once",
        cleandoc("""
        def may_part(gaps, noise):
            for step, gap in enumerate(gaps):
                if gap <= noise:
                    return step
            return len(gaps)
    """),
    ),
    right=lambda gaps, noise: _first(gaps, 2 * noise),
    cases=tuple(Case(about, (np.array(gaps), noise)) for about, gaps, noise in _GAPS),
    hidden_cases=_other_gaps,
    faults=(
        Fault("once", lambda g, e: _first(g, e), "A gap is compared with the noise of one logit. Both logits may be "
              "off, one down and the other up."),
        Fault("half", lambda g, e: _first(g, e / 2), "A gap is compared with half of the noise. Both logits may be "
              "off, one down and the other up."),
        Fault("smallest", lambda g, e: int(np.argmin(g)), "That is the step with the smallest gap. The texts may part "
              "at an earlier one that is small enough, or at none."),
        Fault("smallest", lambda g, e: int(np.argmin(g)) if min(g) <= 2 * e else len(g), "That is the step with the "
              "smallest gap. The texts may part at an earlier one that is small enough."),
        Fault("last", lambda g, e: max((i for i, x in enumerate(g) if x <= 2 * e), default=len(g)), "That is the last "
              "step at which they could part. After the first they are two texts, and gaps say nothing any more."),
        Fault("count", lambda g, e: sum(x <= 2 * e for x in g), "That is how many gaps are small. Which is the first?"),
        Fault("minus_one", lambda g, e: _first(g, 2 * e) if min(g) <= 2 * e else -1, "Where no gap is small enough, "
              "give the number of steps: so many tokens are the same."),
        Fault("one_based", lambda g, e: _first(g, 2 * e) + 1, "Steps are counted from 0."),
        Fault("one_based", lambda g, e: min(_first(g, 2 * e) + 1, len(g)), "Steps are counted from 0."),
        Fault("large", lambda g, e: next((i for i, x in enumerate(g) if x > 2 * e), len(g)), "That is the first gap "
              "that is large. Where gaps are large, noise changes nothing."),
    ),
    praise="Up to that step both write the same text. There they may part, and need not.",
)  # fmt: skip

# ---- 3. which changes keep the bits ----

PLAIN: Mapping[str, Any] = {"n": 160, "cuts": (), "threads": 2, "neighbours": 0, "kv": "f32", "backend": "compiled"}


def _way(**changes: Any) -> dict[str, Any]:
    return {**PLAIN, **changes}


_WAYS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("twice the same", _way(), _way()),
    ("one thread, and four", _way(threads=1), _way(threads=4)),
    ("alone, and with seven others in the batch", _way(), _way(neighbours=7)),
    ("whole, and cut at 64", _way(), _way(cuts=(64,))),
    ("cut at 32 and 96, and cut at 128", _way(cuts=(32, 96)), _way(cuts=(128,))),
    ("whole, and cut at 50", _way(), _way(cuts=(50,))),
    ("whole, and cut at 80", _way(), _way(cuts=(80,))),
    ("cut at 50, and whole", _way(cuts=(50,)), _way()),
    ("whole, and cut at 64 and 100", _way(), _way(cuts=(64, 100))),
    ("whole, and cut at 100 and 128", _way(), _way(cuts=(100, 128))),
    ("140 tokens, whole, and cut at 128", _way(n=140), _way(n=140, cuts=(128,))),
    ("160 tokens, whole, and cut at 128: a whole tile is left", _way(), _way(cuts=(96, 128))),
    ("both cut at 50", _way(cuts=(50,)), _way(cuts=(50,), threads=3)),
    ("both cut at 150, with another cache", _way(cuts=(150,)), _way(cuts=(150,), kv="q8_0")),
    ("a cache in float32, and in float16", _way(), _way(kv="f16")),
    ("both caches in 8 bits, other threads", _way(kv="q8_0"), _way(kv="q8_0", threads=1)),
    ("compiled, and NumPy", _way(), _way(backend="numpy")),
    ("cut at 70 and cut at 75", _way(cuts=(70,)), _way(cuts=(75,))),
)


def _harmless(way: Mapping[str, Any], unit: int = 32, rest: int = 32, which: slice = slice(None)) -> bool:
    cuts = way["cuts"]
    return all(cut % unit == 0 for cut in cuts[which]) and (not cuts or way["n"] - cuts[-1] >= rest)


def _same_bits(a: Any, b: Any, *, skip: tuple[str, ...] = (), more: tuple[str, ...] = (), alike: bool = True,
               sides: str = "ab", **harmless: Any) -> bool:  # fmt: skip
    for name in ("kv", "backend", *more):
        if name not in skip and a[name] != b[name]:
            return False
    if "cuts" in skip or (alike and a["cuts"] == b["cuts"]):
        return True
    return all(_harmless(way, **harmless) for side, way in zip("ab", (a, b)) if side in sides)


def _other_ways(rng: np.random.Generator, model: Any) -> list[Case]:
    def cuts(n: int, kind: int) -> tuple[int, ...]:
        tiles = (32 * (1 + rng.choice(n // 32 - 1, 2, replace=False))).tolist()  # a tile or more is left
        odd = int(rng.integers(1, n // 16 - 3)) * 16 + int(rng.choice([0, 1, 7]))
        kinds = ((), tiles[:1], tiles, [tiles[0], odd], [odd], [tiles[0], n - n % 32 - 32 * (n % 32 == 0)])
        return tuple(sorted(set(kinds[kind])))

    cases = []
    for i in range(54):
        n = int(rng.choice([160, 196, 200, 250]))
        a = _way(n=n, cuts=cuts(n, i % 6), threads=int(rng.integers(1, 5)), neighbours=int(rng.integers(3)))
        b = _way(n=n, cuts=cuts(n, int(rng.integers(3))), threads=int(rng.integers(1, 5)))
        if i % 9 in (4, 8):
            b |= {"cuts": a["cuts"]}
        if i % 12 in (6, 7):
            b |= {"kv": "q8_0", "cuts": a["cuts"]} if i % 12 == 6 else {"backend": "numpy", "cuts": a["cuts"]}
        cases.append(Case("two ways", (a, b) if rng.random() < 0.5 else (b, a)))
    return cases


def _way_fault(name: str, text: str, **how: Any) -> Fault:
    return Fault(name, lambda a, b: _same_bits(a, b, **how), text)


SAME_BITS = Exercise(
    check="same_bits",
    names=("same_bits",),
    points=(3, 1),
    shows="say which changes keep the bits",
    usual="`threads`, `neighbours`: taken to change bits; `cuts_ignored`; `rest_ignored`: what is left may be less "
    "than a tile; `first_cut`, `one_side`: not all cuts looked at; `multiple_of_16`; `same_cuts_refused`; "
    "`kv_ignored`, `backend_ignored`; `always`, `never`",
    mistake=(
        "rest_ignored",
        cleandoc("""
        def same_bits(a, b):
            if a["kv"] != b["kv"] or a["backend"] != b["backend"]:
                return False
            if a["cuts"] == b["cuts"]:
                return True
            return all(cut % 32 == 0 for way in (a, b) for cut in way["cuts"])
    """),
    ),
    right=_same_bits,
    cases=tuple(Case(about, (a, b)) for about, a, b in _WAYS),
    hidden_cases=_other_ways,
    faults=(
        _way_fault("threads", "Another number of threads is taken to change bits. The section on threads shows that "
                   "here it does not.", more=("threads",)),
        _way_fault("neighbours", "Neighbours in the batch are taken to change bits. Here they do not.",
                   more=("neighbours",)),
        _way_fault("cuts_ignored", "Where a prompt is cut is not looked at.", skip=("cuts",)),
        _way_fault("rest_ignored", "What is left after the last cut is not looked at: a few tokens are computed by "
                   "other code than a tile.", rest=0),
        _way_fault("first_cut", "Only the first cut is looked at.", which=slice(1)),
        _way_fault("last_cut", "Only the last cut is looked at.", which=slice(-1, None)),
        _way_fault("one_side", "Only the cuts of the second way are looked at.", sides="b"),
        _way_fault("one_side", "Only the cuts of the first way are looked at.", sides="a"),
        _way_fault("multiple_of_16", "A cut at any multiple of 16 is let through. What is promised holds at multiples "
                   "of 32.", unit=16),
        _way_fault("multiple_of_64", "Only cuts at multiples of 64 are let through. What is promised holds at "
                   "multiples of 32.", unit=64),
        _way_fault("same_cuts_refused", "Two evaluations with the very same cuts are taken to differ: they do the same "
                   "sums in the same order.", alike=False),
        Fault("only_equal_cuts", lambda a, b: _same_bits(a, b, skip=("cuts",)) and a["cuts"] == b["cuts"], "Any "
              "difference in the cuts is taken to change bits. Cuts at the edges of tiles do not."),
        _way_fault("kv_ignored", "The cache's type is not looked at: other types hold other numbers.", skip=("kv",)),
        _way_fault("backend_ignored", "Compiled code and NumPy are taken to add in one order.", skip=("backend",)),
        Fault("never", lambda a, b: False, "It is always False: nothing would ever be promised."),
        Fault("always", lambda a, b: True, "It is always True: some of these do change bits."),
    ),
    praise="That is the whole of what this engine promises about bits, and no more.",
)  # fmt: skip

# ---- 4. a promise that can be kept ----

KEPT, BROKEN, OPEN = "kept", "broken", "open"


def _holds(promise: Mapping[str, Any], row: Mapping[str, Any], *, double: bool = True, tokens: str = "gap") -> bool:
    if promise["says"] == "bits":
        return bool(row["difference"] == 0)
    if promise["says"] == "close" or tokens == "within":
        return bool(row["difference"] <= promise["within"])
    return bool((2 if double else 1) * row["difference"] < row["gap"])


def _verdict(promise: Mapping[str, Any], seen: Sequence[Mapping[str, Any]], *, every: bool = True,
             order: str = "broken", unseen: str = OPEN, only: bool = True, quantifier: Any = all,
             **how: Any) -> str:  # fmt: skip
    missing, failed = False, False
    for change in promise["changes"]:
        rows = [row for row in seen if row["change"] == change or not only]
        rows = rows if every else rows[-1:]
        missing |= not rows
        failed |= bool(rows) and not quantifier(_holds(promise, row, **how) for row in rows)
    if failed and (order == "broken" or not missing):
        return BROKEN
    return unseen if missing else KEPT


def _seen(change: str, difference: float, gap: float = 1.0) -> dict[str, Any]:
    return {"change": change, "difference": difference, "gap": gap}


def _says(says: str, *changes: str, within: float = 1e-4) -> dict[str, Any]:
    return {"says": says, "changes": list(changes), "within": within}


_LEDGER = (
    _seen("threads", 0.0, 0.3),
    _seen("threads", 0.0, 0.002),
    _seen("neighbours", 0.0, 0.8),
    _seen("cut anywhere", 2e-5, 0.5),
    _seen("cut anywhere", 0.0, 0.1),
    _seen("numpy", 3e-5, 0.2),
    _seen("numpy", 6e-5, 0.0001),
    _seen("f16 cache", 0.004, 0.7),
    _seen("f16 cache", 0.002, 0.0035),
    _seen("f16 cache", 0.005, 0.9),
    _seen("q8_0 cache", 0.3, 0.25),
    _seen("q8_0 cache", 0.1, 3.0),
    _seen("one at a time", 2e-5, 0.00003),
)
_PROMISES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bits, with other threads", _says("bits", "threads")),
    ("bits, with other threads and neighbours", _says("bits", "threads", "neighbours")),
    ("bits, cut anywhere", _says("bits", "cut anywhere")),
    ("close, cut anywhere", _says("close", "cut anywhere")),
    ("close, with NumPy", _says("close", "numpy", "threads")),
    ("the same tokens, with NumPy", _says("tokens", "numpy")),
    ("the same tokens, with an f16 cache", _says("tokens", "f16 cache")),
    ("the same tokens, with a q8_0 cache", _says("tokens", "q8_0 cache")),
    ("close within 0.01, with an f16 cache", _says("close", "f16 cache", within=0.01)),
    ("close within 0.006, with a q8_0 cache and another model", _says("close", "another model", "q8_0 cache")),
    ("bits, on another processor", _says("bits", "threads", "another processor")),
    ("close, on another processor", _says("close", "another processor")),
    ("the same tokens, one at a time", _says("tokens", "one at a time", within=1e-4)),
    ("close, exactly at the bound", _says("close", "numpy", within=6e-5)),
    ("the same tokens, cut anywhere", _says("tokens", "cut anywhere", within=1e-6)),
)


def _other_promises(rng: np.random.Generator, model: Any) -> list[Case]:
    def measured(change: str, says: str, within: float, state: int) -> list[dict[str, Any]]:
        good = [_seen(change, 0.0 if says == "bits" else float(rng.uniform(0, within / 2)), float(rng.uniform(1, 5)))
                for _ in range(2)]  # fmt: skip
        if says == "tokens":
            good.append(_seen(change, 3 * within, 10 * within))  # far, and far from changing the token
        if state == 0:
            return []
        gap = {1: 9.0, 2: 9.0, 3: 3.0 * within}[state]  # 3: more than one logit's difference, less than two's
        bad = _seen(change, 2 * within if says != "bits" else 1e-7, gap if says == "tokens" and state == 3 else 9.0)
        return good if state == 1 or (says == "tokens" and state == 2) else [good[0], bad, *good[1:]]

    cases = []
    for i in range(36):
        says, within = ("bits", "close", "tokens")[i % 3], float(rng.choice([1e-4, 1e-3, 0.01]))
        names = rng.permutation(["threads", "cuts", "numpy", "cache"]).tolist()
        states = [int(rng.integers(4)) if i % 4 == 1 else (i // 3 + k) % 4 for k in range(2)]
        seen = [row for name, state in zip(names, states, strict=False) for row in measured(name, says, within, state)]
        seen += measured(names[2], says, within, 3)  # rows for a change that is not promised
        changes = names[: 1 + i % 2]
        cases.append(Case("a promise", (_says(says, *changes, within=within), seen)))
    return cases


def _word(value: Any) -> Any:
    if value is None or value is ...:
        return CheckResult(False, "Your function returns nothing (None): does it end in `return`?", "unanswered")
    if not isinstance(value, str):
        return CheckResult(False, f"Your function returns {a_type(value)}; one of kept, broken, open.", "type")
    text = value.strip().lower()
    if text not in (KEPT, BROKEN, OPEN):
        return CheckResult(False, f"Your function returns {value[:40]!r}; one of kept, broken, open.", "type")
    return text


def _promise_fault(name: str, text: str, **how: Any) -> Fault:
    return Fault(name, lambda promise, seen: _verdict(promise, seen, **how), text)


PROMISE = Exercise(
    check="promise",
    names=("verdict",),
    points=(3, 2),
    shows="hold a promise against what was measured",
    usual="`unseen_kept`, `unseen_broken`: what nobody measured taken for shown, or for refuted; `open_first`: one "
    "counterexample is enough; `last_only`; `any_of_them`; `once`: a gap compared with one logit's noise; "
    "`tokens_within`; `all_changes`: changes that the promise does not name; `always_kept`",
    mistake=(
        "unseen_kept",
        cleandoc("""
        def verdict(promise, seen):
            for row in seen:
                if row["change"] in promise["changes"]:
                    if promise["says"] == "bits" and row["difference"] != 0:
                        return "broken"
                    if promise["says"] == "close" and row["difference"] > promise["within"]:
                        return "broken"
                    if promise["says"] == "tokens" and 2 * row["difference"] >= row["gap"]:
                        return "broken"
            return "kept"
    """),
    ),
    right=_verdict,
    cases=(
        *(Case(about, (promise, list(_LEDGER))) for about, promise in _PROMISES),
        Case("bits, of a change that nobody measured", (_says("bits", "cut anywhere"), list(_LEDGER[:3]))),
    ),
    hidden_cases=_other_promises,
    faults=(
        _promise_fault("unseen_kept", "A change that nobody measured counts as shown.", unseen=KEPT),
        _promise_fault("unseen_broken", "A change that nobody measured counts as refuted: nothing speaks against it.",
                       unseen=BROKEN),
        _promise_fault("open_first", "A promise with a counterexample is broken, whatever else was not measured.",
                       order="open"),
        _promise_fault("last_only", "Of several measurements of a change only the last is looked at.", every=False),
        _promise_fault("any_of_them", "One measurement that agrees is taken for enough: a promise has to hold in all.",
                       quantifier=any),
        _promise_fault("once", "A gap is compared with the difference of one logit: both of the two may move.",
                       double=False),
        _promise_fault("tokens_within", "A promise about tokens is held against `within`. What decides is the gap.",
                       tokens="within"),
        _promise_fault("all_changes", "Measurements of changes that the promise does not name are counted.",
                       only=False),
        Fault("always_kept", lambda promise, seen: KEPT, "Every promise is kept, says your function."),
        Fault("always_broken", lambda promise, seen: BROKEN, "Every promise is broken, says your function."),
    ),
    read=_word,
    same=lambda a, b: bool(a == b),
    praise="Three answers, and the third is the one that people forget: nobody has looked.",
)  # fmt: skip

LESSON = Lesson(
    "12_same_prompt_another_answer",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook12 as check
        from teachllama.check.core import assert_right
    """),
    (LANES, MAY_PART, SAME_BITS, PROMISE),
)
