"""The exercises of lesson 06, architectures as data: rotating pairs, a router, latent keys, barriers, weights read."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import numpy as np

from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson

# ---- 1. the order of pairs ----


def _heads(rng: np.random.Generator, model: Any) -> list[Case]:
    return [Case("a head", (rng.normal(size=n),)) for n in (2, 6, 64)]


NEOX = Exercise(
    check="neox_order",
    names=("neox",),
    points=(1, 1),
    shows="put rotating pairs into the other order",
    usual="`unchanged`; `backwards`: the other direction; `odd_first`; `reversed_half`; `halves_swapped`; `pairs`",
    mistake=(
        "backwards",
        cleandoc("""
        def neox(head):
            return head.reshape(2, -1).T.ravel()
    """),
    ),
    right=lambda h: np.concatenate([h[::2], h[1::2]]),
    cases=tuple(Case(f"a head of {n} numbers", (np.arange(1.0, n + 1) * 1.5,)) for n in (4, 8, 10)),
    hidden_cases=_heads,
    faults=(
        Fault("unchanged", lambda h: h, "This is the order it came in: neighbours still stand side by side."),
        Fault(
            "backwards",
            lambda h: h.reshape(2, -1).T.ravel(),
            "This goes the other way: it makes neighbours of numbers that were half a head apart.",
        ),
        Fault(
            "odd_first",
            lambda h: np.concatenate([h[1::2], h[::2]]),
            "The pairs are right, but each is turned round: the first of a pair has to stay the first.",
        ),
        Fault(
            "reversed_half",
            lambda h: np.concatenate([h[::2], h[1::2][::-1]]),
            "The second half runs backwards, so that only the middle pair is half a head apart.",
        ),
        Fault(
            "halves_swapped",
            lambda h: np.concatenate([h[len(h) // 2 :], h[: len(h) // 2]]),
            "This swaps the halves. Which numbers made a pair before, and where should the two stand now?",
        ),
        Fault("pairs", lambda h: h.reshape(-1, 2), "These are the pairs, as a table: one row of numbers is wanted."),
        Fault(
            "pairs",
            lambda h: h.reshape(-1, 2).T,
            "These are the two halves, as a table of two rows: one row of numbers is wanted.",
        ),
    ),
    praise="The first of every pair in the first half, the second in the second: a converter does that to rows of q "
    "and k.",
)

# ---- 2. a router ----


def _weights(scores: np.ndarray, k: int, *, share: bool = True, before: bool = True, sign: int = -1) -> np.ndarray:
    e = np.exp(scores - scores.max())
    p = e / e.sum() if before else scores
    out = np.zeros_like(scores)
    best = np.argsort(sign * scores)[:k]
    out[best] = p[best] / p[best].sum() if share else p[best]
    return out


def _scores(rng: np.random.Generator, model: Any) -> list[Case]:
    return [Case("scores", (rng.normal(size=n), k)) for n, k in ((5, 2), (16, 4), (2, 2))]


ROUTER = Exercise(
    check="route",
    names=("route",),
    points=(2, 1),
    shows="weigh the experts a router chose",
    usual="`not_shared_out`; `everybody`; `chosen_alone`; `worst`; `equal`; `no_exponential`; `best_alone`; `overflow`",
    mistake=(
        "not_shared_out",
        cleandoc("""
        def route(scores, k):
            p = np.exp(scores - scores.max())
            p /= p.sum()
            p[np.argsort(scores)[:-k]] = 0
            return p
    """),
    ),
    right=_weights,
    cases=(
        Case("four experts, of which two are used", (np.array([0.1, 2.0, -1.0, 1.0]), 2)),
        Case("six experts, of which three are used", (np.array([-3.0, 0.5, 0.4, 4.0, -0.2, 1.1]), 3)),
        Case("three experts, of which one is used", (np.array([0.3, 0.2, -5.0]), 1)),
        Case("two experts, of which one is used", (np.array([2.0, 0.5]), 1)),
        Case("three experts, of which all are used", (np.array([0.3, 0.9, -1.0]), 3)),
        Case("three experts with scores near 900", (np.array([900.0, 899.0, 901.5]), 2)),
    ),
    hidden_cases=_scores,
    faults=(
        Fault(
            "not_shared_out",
            lambda s, k: _weights(s, k, share=False),
            "The right experts, with their share among all experts: among the chosen ones the shares should make 1.",
        ),
        Fault(
            "everybody",
            lambda s, k: _weights(s, len(s)),
            "Every expert has a weight: that is softmax. Those that are not among the k best should have 0.",
        ),
        Fault(
            "chosen_alone",
            lambda s, k: np.sort(_weights(s, k))[::-1][:k],
            "The right shares, but of the chosen experts alone: the others are wanted too, in their place, with 0.",
        ),
        Fault(
            "worst",
            lambda s, k: _weights(s, k, sign=1),
            "It takes the k smallest scores. Which end did the sort begin at?",
        ),
        Fault(
            "equal",
            lambda s, k: (_weights(s, k) > 0) / k,
            "The right experts, all with the same weight. A higher score should count more.",
        ),
        Fault(
            "no_exponential",
            lambda s, k: _weights(s, k, before=False),
            "It divides the scores themselves by their sum, and a score may be negative. What made shares of logits?",
        ),
        Fault("best_alone", lambda s, k: _weights(s, 1), "It uses one expert, whatever k is."),
        Fault(
            "overflow",
            lambda s, k: np.where(_weights(s, k) > 0, np.exp(s), 0) / np.where(_weights(s, k) > 0, np.exp(s), 0).sum(),
            "Right for small scores, but exp of a large one is infinite. Which number may be taken from all scores "
            "without changing their shares?",
        ),
    ),
    praise="Chosen by score, weighted by softmax, shared out among the chosen.",
)

# ---- 3. latent keys ----


def _latents(*of: tuple[int, int, int, int, int]) -> list[Case]:
    return [
        Case(
            f"{n} layers, rank {rank}, {rotating} rotating numbers, {heads} heads",
            (np.array([n, rank, rotating, heads]), nbytes),
        )
        for n, rank, rotating, heads, nbytes in of
    ]


def _other_latents(rng: np.random.Generator, model: Any) -> list[Case]:
    return _latents(
        *((int(n), 64 * int(r), 32, 16, b) for n, r, b in zip(rng.integers(5, 90, 2), rng.integers(2, 9, 2), (1, 2)))
    )


LATENT = Exercise(
    check="latent_bytes",
    names=("latent_bytes",),
    points=(1, 1),
    shows="count the bytes of a latent cache",
    usual="`per_head`; `values_too`; `twice`; `no_rotation`; `rotation_per_head`; `one_layer`; `numbers`",
    mistake=(
        "values_too",
        cleandoc("""
        def latent_bytes(shape, nbytes):
            n_layers, rank, rotating, heads = shape
            return n_layers * (2 * rank + rotating) * nbytes
    """),
    ),
    right=lambda s, b: s[0] * (s[1] + s[2]) * b,
    cases=tuple(_latents((60, 512, 64, 128, 2), (27, 512, 64, 16, 4), (3, 64, 16, 3, 2))),
    hidden_cases=_other_latents,
    faults=(
        Fault(
            "per_head",
            lambda s, b: s[0] * (s[1] + s[2]) * s[3] * b,
            "Once for each head: but all heads share the one compressed key.",
        ),
        Fault(
            "values_too",
            lambda s, b: s[0] * (2 * s[1] + s[2]) * b,
            "The values are counted as if they had a cache of their own: they are read out of the key.",
        ),
        Fault(
            "twice",
            lambda s, b: 2 * s[0] * (s[1] + s[2]) * b,
            "Exactly twice as much: keys and values, as for ordinary attention. Here the key holds the value.",
        ),
        Fault(
            "no_rotation",
            lambda s, b: s[0] * s[1] * b,
            "The rotating numbers are missing: they can't be compressed, so they are kept beside the rest.",
        ),
        Fault(
            "rotation_per_head",
            lambda s, b: s[0] * (s[1] + s[2] * s[3]) * b,
            "The rotating numbers are counted once per head: the heads share those, too.",
        ),
        Fault("one_layer", lambda s, b: (s[1] + s[2]) * b, "That is one layer's."),
        Fault("numbers", lambda s, b: s[0] * (s[1] + s[2]), "That is how many numbers; bytes are wanted."),
    ),
    praise="One key per layer, whatever the number of heads.",
)

# ---- 4. barriers ----

# An instruction: (whether it is split among threads, buffers read, buffer written). Buffers are numbers.
_PROGRAMS = (
    ("one thread's work alone", ((0, (1,), 2), (0, (2,), 3), (0, (3,), 4))),
    ("a product, then a norm of it", ((1, (1,), 2), (0, (2,), 3))),
    ("three products of one input, then their use", ((1, (1,), 2), (1, (1,), 3), (1, (1,), 4), (0, (2, 3, 4), 5))),
    ("two products, one after the other", ((1, (1,), 2), (1, (2,), 3), (0, (3,), 4), (1, (4,), 5))),
    ("a layer", ((0, (1,), 2), (1, (2,), 3), (1, (2,), 4), (0, (3,), 5), (1, (5, 4), 6), (1, (6,), 7), (0, (1, 7), 1),
                 (0, (1,), 2), (1, (2,), 8), (1, (8,), 9), (0, (1, 9), 1))),
    ("a result used twice", ((1, (1,), 2), (0, (2,), 3), (0, (2,), 4), (1, (3,), 5), (0, (2, 5), 6))),
    ("an empty program", ()),
)  # fmt: skip


def _program(p: tuple[Any, ...]) -> list[tuple[bool, tuple[int, ...], int]]:
    return [(bool(split), reads, writes) for split, reads, writes in p]


def _barriers(program: Any, *, clear: bool = True, all_writes: bool = False, only_split: bool = False) -> int:
    count, shared = 0, set[int]()
    for split, reads, writes in program:
        if shared & set(reads) and (split or not only_split):
            count += 1
            if clear:
                shared.clear()
        if split or all_writes:
            shared.add(writes)
    return count


def _programs(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case(
            "a program",
            (_program(tuple((rng.integers(2), tuple(rng.integers(0, 6, 2).tolist()), int(rng.integers(0, 6)))
                            for _ in range(n))),),
        )
        for n in (0, 5, 20, 60)
    ]  # fmt: skip


BARRIERS = Exercise(
    check="barriers",
    names=("barriers",),
    points=(2, 2),
    shows="say where threads must meet",
    usual="`before_every_split`; `never_forgotten`; `own_work_too`; `split_readers_alone`; `first_read_alone`; "
    "`everywhere`, `between_all`",
    mistake=(
        "never_forgotten",
        cleandoc("""
        def barriers(program):
            count, in_shares = 0, set()
            for split, reads, writes in program:
                count += bool(in_shares & set(reads))
                if split:
                    in_shares.add(writes)
            return count
    """),
    ),
    right=_barriers,
    cases=tuple(Case(about, (_program(p),)) for about, p in _PROGRAMS),
    hidden_cases=_programs,
    faults=(
        Fault(
            "before_every_split",
            lambda p: sum(split for split, _, _ in p),
            "It meets at every instruction that is split. Three products of one input need no wait between them.",
        ),
        Fault(
            "never_forgotten",
            lambda p: _barriers(p, clear=False),
            "After they have met, everything written before is safe to read: forget it.",
        ),
        Fault(
            "own_work_too",
            lambda p: _barriers(p, all_writes=True),
            "It also waits for what each thread made by itself and for itself. Only shares of others need a wait.",
        ),
        Fault(
            "split_readers_alone",
            lambda p: _barriers(p, only_split=True),
            "A repeated instruction reads what others wrote, too, and has to wait for it.",
        ),
        Fault(
            "first_read_alone",
            lambda p: _barriers([(split, reads[:1], writes) for split, reads, writes in p]),
            "It looks at the first buffer that an instruction reads. Any of them may hold shares of others.",
        ),
        Fault("everywhere", lambda p: len(p), "It meets before every instruction."),
        Fault("between_all", lambda p: max(0, len(p) - 1), "It meets between any two instructions."),
        Fault("between_all", lambda p: len(p) - 1, "It meets between any two instructions."),
    ),
    praise="That is the whole rule by which the engine's barriers are placed.",
)

# ---- 5. weights held, weights read ----


def _mixtures(*of: tuple[int, int, int, int]) -> list[Case]:
    return [Case(f"{n} experts, {k} used, {outside:,} weights outside them", (np.array([n, k, each, outside]),))
            for n, k, each, outside in of]  # fmt: skip


def _other_mixtures(rng: np.random.Generator, model: Any) -> list[Case]:
    return _mixtures(*((int(n), 4, int(each), 1234) for n, each in rng.integers(20, 700, (2, 2))))


SHARE = Exercise(
    check="share_read",
    names=("share_read",),
    points=(1, 1),
    shows="say which share of a mixture a token reads",
    usual="`experts_alone`; `upside_down`; `one_expert`; `read`; `outside_not_held`; `percent`",
    mistake=(
        "experts_alone",
        cleandoc("""
        def share_read(shape):
            return shape[1] / shape[0]
    """),
    ),
    right=lambda s: (s[1] * s[2] + s[3]) / (s[0] * s[2] + s[3]),
    cases=tuple(_mixtures((8, 2, 1000, 500), (128, 8, 50, 900), (4, 4, 10, 10), (16, 1, 300, 0))),
    hidden_cases=_other_mixtures,
    faults=(
        Fault(
            "experts_alone",
            lambda s: s[1] / s[0],
            "That is the share of the experts. Attention and the embeddings are read as well, whole.",
        ),
        Fault(
            "upside_down",
            lambda s: (s[0] * s[2] + s[3]) / (s[1] * s[2] + s[3]),
            "That is how many times as many are held as are read: turn it round.",
        ),
        Fault(
            "one_expert",
            lambda s: (s[2] + s[3]) / (s[0] * s[2] + s[3]),
            "It reads one expert; a token visits as many as are used.",
        ),
        Fault("read", lambda s: s[1] * s[2] + s[3], "That is how many weights are read. The share of all is wanted."),
        Fault(
            "outside_not_held",
            lambda s: (s[1] * s[2] + s[3]) / (s[0] * s[2]),
            "What is held is more than the experts: the weights outside them are held as well.",
        ),
        Fault(
            "percent",
            lambda s: 100 * (s[1] * s[2] + s[3]) / (s[0] * s[2] + s[3]),
            "This is in percent: a share between 0 and 1 is wanted.",
        ),
    ),
    praise="Memory holds all of them, and a token waits for that share alone.",
)

LESSON = Lesson(
    "06_architectures",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook06 as check
        from teachllama.check.core import assert_right
    """),
    (NEOX, ROUTER, LATENT, BARRIERS, SHARE),
)
