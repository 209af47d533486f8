"""The exercises of lesson 07, embeddings: pooling, cosine similarity, the nearest sentence, centring, and the bytes of
an index.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import numpy as np

from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson
from teachllama.lessons.common.judge import near, one_number

# ---- 1. pooling ----

_STATES = np.array([[1.0, -2.0, 4.0], [3.0, 5.0, -1.0], [0.5, 0.0, 9.0], [2.0, 7.0, -6.0]])
_POOLING_CASES = (
    Case("four tokens of three numbers", (_STATES,)),
    Case("a single token", (_STATES[1:2],)),
    Case("three tokens of three numbers", (_STATES[:3],)),
    Case("two tokens of four numbers", (_STATES[:, :2].T.copy(),)),
)


def _states(rng: np.random.Generator, model: Any) -> list[Case]:
    return [Case("states", (rng.normal(size=shape),)) for shape in ((1, 5), (6, 2), (30, 8))]


MEAN_POOL = Exercise(
    check="mean_pool",
    names=("my_mean_pool",),
    points=(1, 1),
    shows="pool token states into one vector",
    usual="`wrong_axis`; `one_number`; `sum`; `last`, `first`, `max`; `normalized` too early; `keepdims`",
    mistake=(
        "wrong_axis",
        cleandoc("""
        def my_mean_pool(states):
            return states.mean(axis=1)
    """),
    ),
    right=lambda h: h.mean(axis=0),
    cases=_POOLING_CASES,
    hidden_cases=_states,
    faults=(
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
        Fault(
            "divided_by_dim",
            lambda h: h.sum(axis=0) / h.shape[1],
            "This divides the sum by how many numbers a state has. A mean over the tokens "
            "divides by how many tokens there are.",
        ),
    ),
    praise="One vector, however many tokens, and as many numbers as a state has.",
)

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


def _vectors(rng: np.random.Generator, model: Any) -> list[Case]:
    return [
        Case("vectors", (scale * rng.normal(size=d), rng.normal(size=d))) for scale, d in ((1, 3), (50, 20), (0.01, 7))
    ]


_length = np.linalg.norm


COSINE = Exercise(
    check="cosine",
    names=("my_cosine",),
    points=(2, 1),
    shows="compare directions",
    usual="`dot`: lengths left in; `one_length`; `no_root`; `lengths_added`; `distance`, `angle`; `no_sign`; "
    "`elementwise`",
    mistake=(
        "dot",
        cleandoc("""
        def my_cosine(a, b):
            return a @ b
    """),
    ),
    right=_cosine,
    cases=_COSINE_CASES,
    hidden_cases=_vectors,
    faults=(
        Fault("dot", lambda a, b: a @ b, "This is the dot product: right for vectors of length 1, but these are not."),
        Fault(
            "one_length",
            lambda a, b: a @ b / _length(a),
            "It divides by the length of one of the two. A vector and twice itself should give 1, in either order.",
        ),
        Fault(
            "one_length",
            lambda a, b: a @ b / _length(b),
            "It divides by the length of one of the two. A vector and twice itself should give 1, in either order.",
        ),
        Fault(
            "no_root",
            lambda a, b: a @ b / ((a @ a) * (b @ b)),
            "It divides by the squares of the lengths: a root is missing.",
        ),
        Fault(
            "lengths_added",
            lambda a, b: a @ b / (_length(a) + _length(b)),
            "It divides by the sum of the lengths. With both vectors three times as long, the dot product is nine "
            "times as large. And the sum of the lengths?",
        ),
        Fault("distance", lambda a, b: 1 - _cosine(a, b), "This is 1 minus the similarity: a distance, 0 for equals."),
        Fault("distance", lambda a, b: _length(a - b), "This is the distance between the ends; an angle has no units."),
        Fault("angle", lambda a, b: np.arccos(np.clip(_cosine(a, b), -1, 1)), "This is the angle; wanted: its cosine."),
        Fault(
            "no_sign",
            lambda a, b: abs(_cosine(a, b)),
            "Opposite vectors come out as equal ones: the sign has been lost.",
        ),
        Fault("elementwise", lambda a, b: a * b, "This multiplies number by number and does not add up."),
        Fault(
            "elementwise",
            lambda a, b: a * b / (_length(a) * _length(b)),
            "This multiplies number by number and does not add up.",
        ),
        Fault(
            "degrees",
            lambda a, b: np.degrees(np.arccos(np.clip(_cosine(a, b), -1, 1))),
            "This is the angle, in degrees; wanted: its cosine.",
        ),
    ),
    praise="Lengths do not matter, the sign does, and a vector with itself gives 1.",
)

# ---- 3. the nearest sentence ----

_ANGLES = np.radians([10.0, 95.0, 30.0, 170.0, 260.0, 88.0])
_RING = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])  # (6, 2), each of length 1


def _unit(v: np.ndarray) -> np.ndarray:
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))


_NEAREST_CASES = tuple(Case(f"vector {i} of six", (_RING, i)) for i in range(len(_RING)))


def _others(vectors: np.ndarray, i: int) -> np.ndarray:
    scores = vectors @ vectors[i]
    scores[i] = -np.inf
    return scores


def _rows(rng: np.random.Generator, model: Any) -> list[Case]:
    rows = _unit(rng.normal(size=(9, 4)))
    return [Case("rows", (rows, i)) for i in range(9)]


NEAREST = Exercise(
    check="nearest",
    names=("my_nearest",),
    points=(2, 1),
    shows="search for the nearest",
    usual="`itself`; `shifted`: the index after deleting a row; `similarity`, `vector`; `least_alike`; `second`; "
    "`all_ranked`",
    mistake=(
        "itself",
        cleandoc("""
        def my_nearest(vectors, i):
            return int(np.argmax(vectors @ vectors[i]))
    """),
    ),
    right=lambda v, i: np.argmax(_others(v, i)),
    cases=_NEAREST_CASES,
    hidden_cases=_rows,
    faults=(
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
    ),
    praise="The nearest of the others, by its own index.",
)

# ---- 4. centring ----

_CENTRING_CASES = (
    Case("five vectors that point the same way", (np.array([[9.0, 1], [8, 2], [9, 3], [7, 1], [8, 5]]),)),
    Case("three vectors of three numbers", (np.array([[5.0, 1, 0], [4, -1, 2], [7, 2, 2]]),)),
    Case("vectors of very different lengths", (np.array([[1.0, 2, 3, 4], [20, 10, 30, 11], [5, 1, 2, 9]]),)),
)


def _clouds(rng: np.random.Generator, model: Any) -> list[Case]:
    return [Case("vectors", (offset + rng.normal(size=shape),)) for offset, shape in ((3, (4, 6)), (-20, (12, 3)))]


CENTRING = Exercise(
    check="centring",
    names=("my_centring",),
    points=(2, 1),
    shows="take away what all share",
    usual="`normalized_before`: the other order; `not_normalized`, `not_centred`; `wrong_axis`; `one_number`; "
    "`whole_table`; `columns`; `standardized`",
    mistake=(
        "normalized_before",
        cleandoc("""
        def my_centring(vectors):
            units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            return units - units.mean(axis=0)
    """),
    ),
    right=lambda v: _unit(v - v.mean(axis=0)),
    cases=_CENTRING_CASES,
    hidden_cases=_clouds,
    faults=(
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
        Fault(
            "normalized_twice",
            lambda v: _unit(_unit(v) - _unit(v).mean(axis=0)),
            "This gives every row length 1 before the mean is taken, too, so that long "
            "vectors count less in it. Centre the vectors as they came.",
        ),
    ),
    praise="What all have in common is gone, and every row has length 1.",
)

# ---- 5. the bytes of an index ----


def _dims(rng: np.random.Generator, model: Any) -> list[Case]:
    return [Case("an index", (int(dim), 1_000_000, 4)) for dim in rng.integers(200, 3000, 2)]


INDEX = Exercise(
    check="index_bytes",
    names=("index_bytes",),
    signature="index_bytes(dim)",
    given=cleandoc("""
        dim = 576  # SmolLM2's
    """),
    replace={"mean.shape[1]": "dim"},
    points=(1, 1),
    shows="say what an index costs",
    usual="`no_element_size`; `float64`; `bits`; `one_vector`; `all_pairs`; `float16`; `megabytes`, "
    "`gigabytes`, `gibibytes`",
    mistake=(
        "float64",
        cleandoc("""
        def index_bytes(dim):
            return 1_000_000 * dim * 8
    """),
    ),
    right=lambda dim, n, each: n * dim * each,
    cases=(Case("", (576, 1_000_000, 4)),),
    hidden_cases=_dims,
    passed=1,
    faults=(
        Fault("no_element_size", lambda dim, n, each: n * dim, "These are numbers. How many bytes has one?"),
        Fault("bits", lambda dim, n, each: 8 * n * dim * each, "These are bits."),
        Fault(
            "float64",
            lambda dim, n, each: n * dim * 8,
            "This takes 8 bytes for a number: Python's own floats, but not these.",
        ),
        Fault(
            "float16",
            lambda dim, n, each: n * dim * 2,
            "This takes 2 bytes for a number, as float16 does. These are float32.",
        ),
        Fault("one_vector", lambda dim, n, each: dim * each, "This is one vector."),
        Fault(
            "all_pairs",
            lambda dim, n, each: n * n * each,
            "This is a table of all pairs' similarities. Only the vectors are kept.",
        ),
        Fault("kilobytes", lambda dim, n, each: n * dim * each / 10**3, "This is in kilobytes; bytes are wanted."),
        Fault("megabytes", lambda dim, n, each: n * dim * each / 10**6, "This is in megabytes; bytes are wanted."),
        Fault("gigabytes", lambda dim, n, each: n * dim * each / 10**9, "This is in gigabytes; bytes are wanted."),
        Fault("mebibytes", lambda dim, n, each: n * dim * each / 2**20, "This is in MiB; bytes are wanted."),
        Fault("gibibytes", lambda dim, n, each: n * dim * each / 2**30, "This is in GiB; bytes are wanted."),
    ),
    praise="Texts, numbers in a vector, bytes in a number. How long the texts were does not matter.",
    otherwise="It is none of the usual mistakes. What is kept for each text, however long it was?",
    more="One vector per text, so many numbers in a vector, so many bytes in a number: three factors.",
    read=one_number,
    same=near(0),
)

LESSON = Lesson(
    "07_embeddings",
    cleandoc("""
        import numpy as np

        from teachllama.check import notebook07 as check
        from teachllama.check.core import assert_right
    """),
    (MEAN_POOL, COSINE, NEAREST, CENTRING, INDEX),
)
