"""The checks of notebook 07, embeddings: pooling, cosine similarity, the nearest sentence, centring, and an index's
bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from teachllama.check.core import CheckResult, Slip, number, recognise
from teachllama.check.functions import Case, Fault, compare

# ---- 1. pooling ----

_STATES = np.array([[1.0, -2.0, 4.0], [3.0, 5.0, -1.0], [0.5, 0.0, 9.0], [2.0, 7.0, -6.0]])
_POOLING_CASES = (
    Case("four tokens of three numbers", (_STATES,)),
    Case("a single token", (_STATES[1:2],)),
    Case("three tokens of three numbers", (_STATES[:3],)),
    Case("two tokens of four numbers", (_STATES[:, :2].T.copy(),)),
)


def mean_pool(function: object) -> CheckResult:
    """Checks a learner's `f(states) -> vector`: (n_tokens, dim) -> (dim,), the mean over the tokens."""
    faults = (
        Fault(
            "wrong_axis",
            lambda h: h.mean(axis=1),
            "This is one number for each token: the mean ran along the vector. Which axis counts the tokens?",
        ),
        Fault("one_number", lambda h: h.mean(), "This is the mean of everything, one number. A vector is wanted."),
        Fault("sum", lambda h: h.sum(axis=0), "This is the sum, so that a longer sentence gets a longer vector."),
        Fault("last", lambda h: h[-1], "This is the last token's state: last pooling. All tokens should count."),
        Fault("first", lambda h: h[0], "This is the first token's state, which knows nothing of those after it."),
        Fault("max", lambda h: h.max(axis=0), "This takes the largest of each number, not the mean."),
        Fault(
            "normalized",
            lambda h: h.mean(axis=0) / np.linalg.norm(h.mean(axis=0)),
            "This is the mean, divided by its length. That comes afterwards; here only the mean is wanted.",
        ),
        Fault(
            "keepdims",
            lambda h: h.mean(axis=0, keepdims=True),
            "The numbers are right, but it is a table of one row: the shape should be (dim,).",
        ),
    )
    praise = "One vector, however many tokens, and as many numbers as a state has."
    return compare(function, _POOLING_CASES, lambda h: h.mean(axis=0), faults, praise)


# ---- 2. cosine similarity ----

_COSINE_CASES = tuple(
    Case(about, (np.array(a), np.array(b)))
    for about, a, b in (
        ("vectors of different lengths", [3.0, 4.0], [8.0, 6.0]),
        ("a vector and twice itself", [1.0, 2.0, 2.0], [2.0, 4.0, 4.0]),
        ("opposite vectors", [1.0, -2.0, 0.5], [-3.0, 6.0, -1.5]),
        ("vectors at a right angle", [0.0, 2.0], [5.0, 0.0]),
        ("long vectors", [1.0, 2.0, 3.0, 4.0], [4.0, -3.0, 2.0, 0.5]),
    )
)


def _cosine(a: np.ndarray, b: np.ndarray) -> Any:
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def cosine(function: object) -> CheckResult:
    """Checks a learner's `f(a, b) -> number`: the cosine of the angle between two vectors of any length."""
    length = np.linalg.norm
    faults = (
        Fault("dot", lambda a, b: a @ b, "This is the dot product: right for vectors of length 1, but these are not."),
        Fault(
            "one_length",
            lambda a, b: a @ b / length(a),
            "It divides by the length of one of the two. A vector and twice itself should give 1, in either order.",
        ),
        Fault(
            "one_length",
            lambda a, b: a @ b / length(b),
            "It divides by the length of one of the two. A vector and twice itself should give 1, in either order.",
        ),
        Fault(
            "no_root",
            lambda a, b: a @ b / ((a @ a) * (b @ b)),
            "It divides by the squares of the lengths: a root is missing.",
        ),
        Fault(
            "lengths_added",
            lambda a, b: a @ b / (length(a) + length(b)),
            "It divides by the sum of the lengths. With both vectors three times as long, the dot product is nine "
            "times as large. And the sum of the lengths?",
        ),
        Fault("distance", lambda a, b: 1 - _cosine(a, b), "This is 1 minus the similarity: a distance, 0 for equals."),
        Fault("distance", lambda a, b: length(a - b), "This is the distance between the ends; an angle has no units."),
        Fault("angle", lambda a, b: np.arccos(np.clip(_cosine(a, b), -1, 1)), "This is the angle; wanted: its cosine."),
        Fault(
            "no_sign",
            lambda a, b: abs(_cosine(a, b)),
            "Opposite vectors come out as equal ones: the sign has been lost.",
        ),
        Fault("elementwise", lambda a, b: a * b, "This multiplies number by number and does not add up."),
        Fault(
            "elementwise",
            lambda a, b: a * b / (length(a) * length(b)),
            "This multiplies number by number and does not add up.",
        ),
    )
    praise = "Lengths do not matter, the sign does, and a vector with itself gives 1."
    return compare(function, _COSINE_CASES, _cosine, faults, praise)


# ---- 3. the nearest sentence ----

_ANGLES = np.radians([10.0, 95.0, 30.0, 170.0, 260.0, 88.0])
_RING = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])  # (6, 2), each of length 1
_NEAREST_CASES = tuple(Case(f"vector {i} of six", (_RING, i)) for i in range(len(_RING)))


def _others(vectors: np.ndarray, i: int) -> np.ndarray:
    scores = vectors @ vectors[i]
    scores[i] = -np.inf
    return scores


def nearest(function: object) -> CheckResult:
    """Checks a learner's `f(vectors, i) -> index` of the row most like row i, other than itself; rows have length 1."""
    faults = (
        Fault(
            "itself",
            lambda v, i: i,
            "Each sentence finds itself: nothing is more like it. Leave it out, or make its score too low to win.",
        ),
        Fault(
            "shifted",
            lambda v, i: np.argmax(np.delete(v @ v[i], i)),
            "Nearly: after row i is taken out, every row behind it has moved up by one, and its index with it.",
        ),
        Fault(
            "similarity",
            lambda v, i: _others(v, i).max(),
            "This is how alike they are. Which row is it?",
        ),
        Fault(
            "least_alike",
            lambda v, i: np.argmin(v @ v[i]),
            "This is the row that is least like it. Is a large cosine near or far?",
        ),
        Fault(
            "second",
            lambda v, i: np.argsort(-_others(v, i))[1],
            "This is the second nearest: was the sentence itself left out twice?",
        ),
        Fault(
            "all_ranked",
            lambda v, i: np.argsort(-_others(v, i)),
            "These are all rows, ranked. Only the first is wanted.",
        ),
        Fault(
            "all_ranked",
            lambda v, i: np.argsort(-(v @ v[i])),
            "These are all rows, ranked, with itself in front. Only the nearest other one is wanted.",
        ),
        Fault("vector", lambda v, i: v[np.argmax(_others(v, i))], "This is the vector itself; its index is wanted."),
    )
    praise = "The nearest of the others, by its own index."
    return compare(function, _NEAREST_CASES, lambda v, i: np.argmax(_others(v, i)), faults, praise)


# ---- 4. centring ----

_CENTRING_CASES = (
    Case("five vectors that point the same way", (np.array([[9.0, 1], [8, 2], [9, 3], [7, 1], [8, 5]]),)),
    Case("three vectors of three numbers", (np.array([[5.0, 1, 0], [4, -1, 2], [7, 2, 2]]),)),
    Case("vectors of very different lengths", (np.array([[1.0, 2, 3, 4], [20, 10, 30, 11], [5, 1, 2, 9]]),)),
)


def _unit(v: np.ndarray) -> np.ndarray:
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))


def centring(function: object) -> CheckResult:
    """Checks a learner's `f(vectors) -> vectors`: the mean vector taken away, then every row made length 1."""
    faults = (
        Fault(
            "not_normalized",
            lambda v: v - v.mean(axis=0),
            "Centred, yes. Now give every row length 1, so that dot products are cosines.",
        ),
        Fault("not_centred", _unit, "The rows have length 1, but what they all have in common is still in them."),
        Fault(
            "normalized_before",
            lambda v: _unit(v) - _unit(v).mean(axis=0),
            "Both are there, but in the other order: after taking the mean away the lengths are no longer 1.",
        ),
        Fault(
            "wrong_axis",
            lambda v: _unit(v - v.mean(axis=1, keepdims=True)),
            "This takes each row's own mean from it. The mean wanted is a vector: the mean of all rows.",
        ),
        Fault(
            "wrong_axis",
            lambda v: v - v.mean(axis=1, keepdims=True),
            "This takes each row's own mean from it. The mean wanted is a vector: the mean of all rows.",
        ),
        Fault(
            "one_number",
            lambda v: _unit(v - v.mean()),
            "This takes one number from everything. The mean wanted is a vector: the mean of all rows.",
        ),
        Fault(
            "whole_table",
            lambda v: (v - v.mean(axis=0)) / np.linalg.norm(v - v.mean(axis=0)),
            "It divides by one length for the whole table. Every row has its own.",
        ),
        Fault(
            "columns",
            lambda v: (v - v.mean(axis=0)) / np.linalg.norm(v - v.mean(axis=0), axis=0),
            "It gives the columns length 1. Which axis runs along a row?",
        ),
        Fault(
            "standardized",
            lambda v: (v - v.mean(axis=0)) / v.std(axis=0),
            "This divides each column by its standard deviation. Wanted: each row by its length.",
        ),
    )
    praise = "What all have in common is gone, and every row has length 1."
    return compare(function, _CENTRING_CASES, lambda v: _unit(v - v.mean(axis=0)), faults, praise)


# ---- 5. the bytes of an index ----


def index_bytes(answer: object, n_texts: int, dim: int, bytes_per_number: int = 4) -> CheckResult:
    """Checks how many bytes the vectors of `n_texts` texts take.

    Args:
        answer: the learner's number.
        n_texts: one vector each.
        dim: numbers in a vector.
        bytes_per_number: 4 for float32.
    """
    found = number(answer)
    if isinstance(found, CheckResult):
        return found
    right = n_texts * dim * bytes_per_number
    slips = [
        Slip("no_element_size", n_texts * dim, "These are numbers. How many bytes has one?"),
        Slip("bits", 8 * right, "These are bits."),
        Slip("float64", n_texts * dim * 8, "This takes 8 bytes for a number: Python's own floats, but not these."),
        Slip("one_vector", dim * bytes_per_number, "This is one vector."),
        Slip("all_pairs", n_texts * n_texts * bytes_per_number, "This is a table of all pairs' similarities. Only "
             "the vectors are kept."),
        Slip("megabytes", right / 10**6, "This is in megabytes; bytes are wanted."),
        Slip("gigabytes", right / 10**9, "This is in gigabytes; bytes are wanted."),
    ]  # fmt: skip
    way = "large" if found > right else "small"
    return recognise(
        found,
        right,
        slips,
        "Texts, numbers in a vector, bytes in a number. How long the texts were does not matter.",
        f"It is too {way}, and not in one of the usual ways. What is kept for each text, however long it was?",
    )
