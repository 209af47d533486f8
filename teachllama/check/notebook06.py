"""The checks of notebook 06, architectures as data: rotating pairs, a router, latent keys, barriers, weights read."""

from __future__ import annotations

from typing import Any

import numpy as np

from teachllama.check.core import CheckResult
from teachllama.check.functions import Case, Fault, compare

# ---- 1. the order of pairs ----

_HEADS = tuple(Case(f"a head of {n} numbers", (np.arange(1.0, n + 1) * 1.5,)) for n in (4, 8, 10))


def neox_order(function: object) -> CheckResult:
    """Checks a learner's `f(head) -> head`: numbers that rotate in pairs (2i, 2i+1), put so that (i, i + n/2) do."""
    faults = (
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
            "halves_swapped",
            lambda h: np.concatenate([h[len(h) // 2 :], h[: len(h) // 2]]),
            "This swaps the halves. Which numbers made a pair before, and where should the two stand now?",
        ),
        Fault("pairs", lambda h: h.reshape(-1, 2), "These are the pairs, as a table: one row of numbers is wanted."),
    )
    praise = (
        "The first of every pair in the first half, the second in the second: a converter does that to rows of q and k."
    )
    return compare(function, _HEADS, lambda h: np.concatenate([h[::2], h[1::2]]), faults, praise)


# ---- 2. a router ----

_ROUTER_CASES = (
    Case("four experts, of which two are used", (np.array([0.1, 2.0, -1.0, 1.0]), 2)),
    Case("six experts, of which three are used", (np.array([-3.0, 0.5, 0.4, 4.0, -0.2, 1.1]), 3)),
    Case("three experts, of which one is used", (np.array([0.3, 0.2, -5.0]), 1)),
)


def _weights(scores: np.ndarray, k: int, *, share: bool = True, before: bool = True, sign: int = -1) -> np.ndarray:
    e = np.exp(scores - scores.max())
    p = e / e.sum() if before else scores
    out = np.zeros_like(scores)
    best = np.argsort(sign * scores)[:k]
    out[best] = p[best] / p[best].sum() if share else p[best]
    return out


def route(function: object) -> CheckResult:
    """Checks a learner's `f(scores, k) -> weights`: one weight per expert, 0 for all but the k best, together 1."""
    faults = (
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
    )
    praise = "Chosen by score, weighted by softmax, shared out among the chosen."
    return compare(function, _ROUTER_CASES, _weights, faults, praise)


# ---- 3. latent keys ----

_LATENT_CASES = tuple(
    Case(
        f"{n} layers, rank {rank}, {rotating} rotating numbers, {heads} heads",
        (np.array([n, rank, rotating, heads]), b),
    )
    for n, rank, rotating, heads, b in ((60, 512, 64, 128, 2), (27, 512, 64, 16, 4), (3, 64, 16, 3, 2))
)


def latent_bytes(function: object) -> CheckResult:
    """Checks a learner's `f(shape, nbytes) -> bytes a token`; shape is (layers, rank, rotating numbers, heads)."""
    faults = (
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
        Fault("one_layer", lambda s, b: (s[1] + s[2]) * b, "That is one layer's."),
        Fault("numbers", lambda s, b: s[0] * (s[1] + s[2]), "That is how many numbers; bytes are wanted."),
    )
    praise = "One key per layer, whatever the number of heads."
    return compare(function, _LATENT_CASES, lambda s, b: s[0] * (s[1] + s[2]) * b, faults, praise)


# ---- 4. barriers ----

# An instruction: is it split among threads; what it reads; what it writes (numbers stand for buffers).
_PROGRAMS = (
    ("one thread's work alone", ((0, (1,), 2), (0, (2,), 3), (0, (3,), 4))),
    ("a product, then a norm of it", ((1, (1,), 2), (0, (2,), 3))),
    ("three products of one input, then their use", ((1, (1,), 2), (1, (1,), 3), (1, (1,), 4), (0, (2, 3, 4), 5))),
    ("two products, one after the other", ((1, (1,), 2), (1, (2,), 3), (0, (3,), 4), (1, (4,), 5))),
    ("a layer", ((0, (1,), 2), (1, (2,), 3), (1, (2,), 4), (0, (3,), 5), (1, (5, 4), 6), (1, (6,), 7), (0, (1, 7), 1),
                 (0, (1,), 2), (1, (2,), 8), (1, (8,), 9), (0, (1, 9), 1))),
    ("a result used twice", ((1, (1,), 2), (0, (2,), 3), (0, (2,), 4), (1, (3,), 5), (0, (2, 5), 6))),
)  # fmt: skip
_LONGEST = max(len(p) for _, p in _PROGRAMS)


def _program(p: tuple[Any, ...]) -> list[tuple[bool, tuple[int, ...], int]]:
    return [(bool(split), reads, writes) for split, reads, writes in p]


_BARRIER_CASES = tuple(Case(about, (_program(p),)) for about, p in _PROGRAMS)


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


def barriers(function: object) -> CheckResult:
    """Checks a learner's `f(program) -> number` of times that threads must meet.

    A program is a list of (split, reads, writes): whether threads share out the work, the buffers it reads, and the one
    it writes. They must meet before one reads what others wrote a share of, since they last met.
    """
    faults = (
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
        Fault("everywhere", lambda p: len(p), "It meets before every instruction."),
        Fault("between_all", lambda p: len(p) - 1, "It meets between any two instructions."),
    )
    praise = "That is the whole rule by which the engine's barriers are placed."
    return compare(function, _BARRIER_CASES, _barriers, faults, praise)


# ---- 5. weights held, weights read ----

_SHARE_CASES = tuple(
    Case(f"{n} experts, {k} used, {outside:,} weights outside them", (np.array([n, k, each, outside]),))
    for n, k, each, outside in ((8, 2, 1000, 500), (128, 8, 50, 900), (4, 4, 10, 10), (16, 1, 300, 0))
)


def share_read(function: object) -> CheckResult:
    """Checks a learner's `f(shape) -> share` of weights that a token reads.

    shape is (experts, used, weights of one expert, weights outside the experts).
    """
    faults = (
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
    )
    praise = "Memory holds all of them, and a token waits for that share alone."
    return compare(function, _SHARE_CASES, lambda s: (s[1] * s[2] + s[3]) / (s[0] * s[2] + s[3]), faults, praise)
