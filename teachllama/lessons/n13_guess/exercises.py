"""The exercises of lesson 13: tokens per pass, the acceptance rule, prompt lookup, and when not to guess."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import cleandoc
from typing import Any

import numpy as np

from teachllama.lessons.common.check import CheckResult, a_type
from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson

# ---- 1. tokens per pass ----


def _tokens(a: float, k: int) -> float:
    return float(sum(a**i for i in range(k + 1)))


def _rates(*of: tuple[float, int]) -> list[Case]:
    return [Case(f"guesses right {a:.0%} of the time, {k} of them", (a, k)) for a, k in of]


TOKENS = Exercise(
    check="tokens_per_pass",
    names=("tokens_per_pass",),
    points=(1, 1),
    shows="count the tokens that a pass with guesses gives",
    usual="`no_bonus`: the model's own token is forgotten; `independent`: guesses after a wrong one are counted; "
    "`all_or_nothing`; `last_missing`: one term too few; `certain`: every guess taken for right; `one_guess`",
    mistake=(
        "independent",
        cleandoc("""
        def tokens_per_pass(a, k):
            return 1 + a * k
    """),
    ),
    right=_tokens,
    cases=tuple(_rates((0.5, 4), (0.8, 4), (0.8, 1), (0.0, 3), (1.0, 5), (0.3, 0))),
    hidden_cases=lambda rng, model: _rates(
        *((round(float(a), 3), int(k)) for a, k in zip(rng.uniform(0.2, 0.9, 3), rng.integers(2, 9, 3), strict=True)),
        (1.0, int(rng.integers(6, 10))),
    ),
    faults=(
        Fault(
            "no_bonus",
            lambda a, k: _tokens(a, k) - 1,
            "Only guesses are counted. A pass also gives the model's own token, after the last guess that was right.",
        ),
        Fault(
            "independent",
            lambda a, k: 1 + a * k,
            "Every guess counts by itself here. A guess after a wrong one is of no use, even if it would be right.",
        ),
        Fault("all_or_nothing", lambda a, k: 1 + k * a**k, "All guesses or none are kept here; some may be."),
        Fault(
            "last_missing",
            lambda a, k: _tokens(a, k - 1) if k else 0,
            "The case in which all guesses are right, and the model adds its own, is missing.",
        ),
        Fault("certain", lambda a, k: k + 1, "Every guess is taken to be right."),
        Fault("one_guess", lambda a, k: 1 + a, "That is right for a single guess."),
    ),
    praise="One token for certain, one more if the first guess is right, one more if the second is, too.",
)

# ---- 2. the acceptance rule ----


def _after(
    p: Any, q: Any, guess: int, u: float, *, kept: str = "ratio", rest: str = "residual", normal: bool = True
) -> Any:
    """The right answer. The keyword arguments make it wrong."""
    p, q = np.asarray(p, float), np.asarray(q, float)
    keeps = {
        "ratio": u * q[guess] < p[guess],
        "p": u < p[guess],
        "inverse": u * p[guess] < q[guess],
        "larger": p[guess] >= q[guess],
        "above": u * q[guess] >= p[guess],
        "always": True,
        "never": False,
    }
    if keeps[kept]:
        return np.eye(len(p))[guess]
    left = {
        "residual": np.maximum(p - q, 0),
        "p": p,
        "q": q,
        "without": np.where(np.arange(len(p)) == guess, 0, p),
        "absolute": np.abs(p - q),
        "swapped": np.maximum(q - p, 0),
        "signed": p - q,
    }[rest]
    total = left.sum()
    return left / total if normal and total else left


_P, _Q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.6, 0.1, 0.1])


def _draws(*of: tuple[Any, Any, int, float]) -> list[Case]:
    return [Case(f"token {guess} guessed, u = {u:.2f}", (p, q, guess, u)) for p, q, guess, u in of]


def _other_draws(rng: np.random.Generator, model: Any) -> list[Case]:
    made = []
    for _ in range(8):
        p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
        guess, other = int(np.argmax(q - p)), int(np.argmax(p - q))
        ratio = p[guess] / q[guess]
        made += [(p, q, guess, 0.3 * ratio), (p, q, guess, 0.5 + 0.5 * ratio), (p, q, other, float(rng.uniform()))]
        made.append((p, q, guess, 0.5 * ratio + 0.5 * min(1.0, p[guess] + 0.5 * ratio)))
    return _draws(*made)


def _rule(name: str, text: str, **how: Any) -> Fault:
    return Fault(name, lambda p, q, guess, u: _after(p, q, guess, u, **how), text)


AFTER_GUESS = Exercise(
    check="after_guess",
    names=("after_guess",),
    points=(3, 2),
    shows="write the acceptance rule of speculative sampling",
    usual="`kept_by_p`, `inverse`, `larger_only`, `upside_down`: when a guess is kept; `always_kept`, `never_kept`; "
    "`drawn_from_p`, `drawn_from_q`, `guess_removed`: what takes its place; `absolute`, `swapped`, `not_clipped`; "
    "`not_normalised`",
    mistake=(
        "drawn_from_p",
        cleandoc("""
        def after_guess(p, q, guess, u):
            taken = np.zeros(len(p))
            taken[guess] = 1
            return taken if u * q[guess] < p[guess] else p
    """),
    ),
    right=_after,
    cases=tuple(
        _draws(
            (_P, _Q, 1, 0.4),
            (_P, _Q, 1, 0.6),
            (_P, _Q, 1, 0.2),
            (_P, _Q, 0, 0.9),
            (_P, _Q, 3, 0.3),
            (_P, _Q, 3, 0.7),
            (_P, np.array([0.0, 0.0, 0.0, 1.0]), 3, 0.5),
            (_P, _P, 2, 0.99),
            (_P[::-1].copy(), _Q, 1, 0.5),
        )
    ),
    hidden_cases=_other_draws,
    faults=(
        _rule(
            "kept_by_p",
            "A guess is kept with probability p here. It was drawn with probability q, so that it comes too rarely.",
            kept="p",
        ),
        _rule("inverse", "The ratio is upside down: q / p keeps what the draft likes too much.", kept="inverse"),
        _rule("upside_down", "Kept and replaced have changed places.", kept="above"),
        _rule(
            "larger_only",
            "A guess that the model likes less than the draft is never kept here; it should be sometimes.",
            kept="larger",
        ),
        _rule("always_kept", "Every guess is kept: that samples from the draft.", kept="always"),
        _rule("never_kept", "No guess is kept.", kept="never"),
        _rule(
            "drawn_from_p",
            "In place of a guess that is not kept, any token is drawn from p. Those that the draft likes too much then "
            "come too often still.",
            rest="p",
        ),
        _rule("drawn_from_q", "In place of a guess that is not kept, the draft is asked again.", rest="q"),
        _rule(
            "guess_removed",
            "The guess alone is removed from p. Other tokens that the draft likes too much must have less, too.",
            rest="without",
        ),
        _rule(
            "absolute", "The difference has lost its sign: what q has too much of must not be drawn.", rest="absolute"
        ),
        _rule("swapped", "What is drawn is what the draft has too much of, not too little.", rest="swapped"),
        _rule("not_clipped", "Some probabilities are below zero.", rest="signed", normal=False),
        _rule("not_normalised", "The probabilities don't add up to 1.", normal=False),
    ),
    praise="min(p, q) comes by way of guesses that are kept, max(0, p - q) by way of those that are not: together p.",
)

# ---- 3. prompt lookup ----


def _look_up(
    tokens: Sequence[int],
    n: int,
    k: int,
    *,
    first: bool = False,
    skip: int = 0,
    itself: bool = False,
    one: bool = False,
) -> list[int]:
    tokens, n = list(tokens), 1 if one else n
    places = [at for at in range(len(tokens) - n + itself) if tokens[at : at + n] == tokens[-n:]]
    if not places:
        return []
    at = (places[0] if first else places[-1]) + n + skip
    return tokens[at : at + k]


def _ids(value: Any) -> Any:
    if value is None or value is ...:
        return CheckResult(False, "Your function returns nothing (None): does it end in `return`?", "unanswered")
    try:
        return [int(v) for v in value]
    except (TypeError, ValueError):
        return CheckResult(False, f"Your function returns {a_type(value)}; a list of token ids is wanted.", "type")


_LONG = [5, 6, 7, 8, 9, 1, 2, 3, 5, 6, 7, 4, 4, 2, 8, 0, 5, 6, 7]


def _texts(*of: tuple[list[int], int, int]) -> list[Case]:
    return [Case(f"{len(tokens)} tokens, n = {n}, k = {k}", (tokens, n, k)) for tokens, n, k in of]


def _other_texts(rng: np.random.Generator, model: Any) -> list[Case]:
    made: list[tuple[list[int], int, int]] = []
    for n in (2, 3, 4):
        tail, noise = rng.permutation(40)[:n].tolist(), (50 + rng.permutation(40)).tolist()
        last = tail[-1:]
        text = [*tail, *noise[:7], *tail, *noise[7:13], *last, *noise[13:17], *tail]
        made += [(text, n, 3), (text, n, 5), ([*noise, *tail], n, 4)]
    return _texts(*made)


LOOK_UP = Exercise(
    check="look_up",
    names=("look_up",),
    points=(2, 1),
    shows="draft by looking up what followed before",
    usual="`itself`: the end of the text is found, which nothing follows; `first`: not the latest place; "
    "`one_token`: only the last token is compared; `match_included`, `one_skipped`; `k_ignored`",
    mistake=(
        "first",
        cleandoc("""
        def look_up(tokens, n, k):
            for at in range(len(tokens) - n):
                if tokens[at:at + n] == tokens[-n:]:
                    return tokens[at + n:at + n + k]
            return []
    """),
    ),
    right=_look_up,
    cases=tuple(
        _texts(
            (_LONG, 3, 4),
            (_LONG, 3, 2),
            (_LONG, 2, 20),
            ([1, 2, 3, 4, 5], 2, 3),
            ([9, 1, 2, 9, 3, 1, 9], 2, 3),
            ([4, 4, 4, 4], 2, 5),
            ([3], 2, 4),
            ([7, 1, 7, 2, 8, 1, 7], 2, 2),
        )
    ),
    hidden_cases=_other_texts,
    faults=(
        Fault(
            "itself",
            lambda t, n, k: _look_up(t, n, k, itself=True),
            "Nothing is ever found. Is it the text's own end that is found first? It equals the last n tokens, and "
            "nothing follows it.",
        ),
        Fault(
            "first",
            lambda t, n, k: _look_up(t, n, k, first=True),
            "The first place is taken. The latest is wanted: what was said last is nearest.",
        ),
        Fault(
            "one_token",
            lambda t, n, k: _look_up(t, n, k, one=True),
            "Only the last token is compared; n of them have to agree, in this order.",
        ),
        Fault(
            "match_included",
            lambda t, n, k: _look_up(t, n, k, skip=-n),
            "What was found is returned itself, and not what followed it.",
        ),
        Fault(
            "one_skipped",
            lambda t, n, k: _look_up(t, n, k, skip=1),
            "The first token that followed is left out.",
        ),
        Fault("k_ignored", lambda t, n, k: _look_up(t, n, 10**6), "More than k guesses are returned."),
    ),
    read=_ids,
    same=lambda a, b: bool(a == b),
    praise="A few comparisons, and no model at all: where a text repeats itself, that is hard to beat.",
)

# ---- 4. when not to guess ----


def _best(a: float, seconds: Any, gain: Any = _tokens, first: int = 0) -> int:
    per_second = [gain(a, k) / seconds[k] for k in range(first, len(seconds))]
    return first + int(np.argmax(per_second))


_FLAT = np.array([10.0, 10.5, 11.0, 11.5, 12.0, 12.5])  # each row costs little
_STEEP = np.array([10.0, 17.0, 24.0, 31.0, 38.0, 45.0])
_STEPS = np.array([10.0, 13.0, 14.0, 19.0, 20.0, 21.0, 31.0])
_SLOW = np.array([10.0, 12.0, 14.5, 17.5, 21.0, 25.0])


def _bills(*of: tuple[float, Any]) -> list[Case]:
    return [Case(f"guesses right {a:.0%} of the time, {len(s) - 1} at most", (a, s)) for a, s in of]


def _other_bills(rng: np.random.Generator, model: Any) -> list[Case]:
    made = []
    for a in (0.15, 0.4, 0.6, 0.75, 0.9):
        steps = rng.uniform(0.5, 3.5, 7)
        made += [(a, np.cumsum([10.0, *steps])), (a, np.cumsum([10.0, *np.sort(steps * 2)]))]
    made += [
        (0.35, np.cumsum([10.0, 5 + rng.uniform(), 6, 7, 8])),
        (0.75, np.cumsum([10.0, 1, 1.5, 2 + rng.uniform(), 7, 7])),
    ]
    return _bills(*made)


BEST_K = Exercise(
    check="best_k",
    names=("best_k",),
    points=(2, 1),
    shows="say how many guesses pay, and when none does",
    usual="`most`: more guesses for more tokens, whatever they cost; `never_none`: at least one guess, though none "
    "would be faster; `one_row_off`: the time of a pass with one row fewer; `accepted_only`, `independent`; `rows`: "
    "rows for guesses; `worst`",
    mistake=(
        "never_none",
        cleandoc("""
        def best_k(a, seconds):
            tokens = lambda k: sum(a**i for i in range(k + 1))
            return max(range(1, len(seconds)), key=lambda k: tokens(k) / seconds[k])
    """),
    ),
    right=_best,
    cases=tuple(
        _bills(
            (0.8, _FLAT),
            (0.8, _STEEP),
            (0.3, _STEEP),
            (0.5, _STEPS),
            (0.75, _STEPS),
            (0.9, _STEPS),
            (0.2, _FLAT),
            (0.6, _SLOW),
            (0.75, _SLOW),
            (0.9, _SLOW),
            (0.1, _SLOW),
        )
    ),
    hidden_cases=_other_bills,
    faults=(
        Fault("most", lambda a, s: len(s) - 1, "As many guesses as possible, whatever a pass takes."),
        Fault(
            "never_none",
            lambda a, s: _best(a, s, first=1),
            "At least one guess is made, even where passes without guesses give more tokens per second.",
        ),
        Fault(
            "one_row_off",
            lambda a, s: _best(a, np.append(s[0], s[:-1])),
            "The time is that of a pass with one guess fewer: seconds[0] is a pass without guesses.",
        ),
        Fault(
            "accepted_only",
            lambda a, s: _best(a, s, lambda a, k: _tokens(a, k) - 1),
            "Only accepted guesses are counted, and the model's own token is not.",
        ),
        Fault(
            "independent",
            lambda a, s: _best(a, s, lambda a, k: 1 + a * k),
            "Guesses after a wrong one are counted as if they were of use.",
        ),
        Fault("rows", lambda a, s: _best(a, s) + 1, "That is the number of rows; guesses are one fewer."),
        Fault(
            "worst",
            lambda a, s: int(np.argmin([_tokens(a, k) / s[k] for k in range(len(s))])),
            "That is the slowest choice: is it seconds per token, or tokens per second, that should be large?",
        ),
    ),
    praise="Tokens per second decide. Where even one guess costs more than it gives, the best number is 0.",
)

LESSON = Lesson(
    "13_guess_and_check",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook13 as check
        from teachllama.check.core import assert_right
    """),
    (TOKENS, AFTER_GUESS, LOOK_UP, BEST_K),
)
