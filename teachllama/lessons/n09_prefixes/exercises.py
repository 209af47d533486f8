"""The exercises of lesson 09, prefixes: what may be kept, which leaf goes, the order of a prompt, bytes of forks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from inspect import cleandoc
from typing import Any

import numpy as np

from teachllama.lessons.common.check import CheckResult
from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson
from teachllama.lessons.common.judge import numbers

PAGE = 64


def _exactly(a: Any, b: Any) -> bool:
    return bool(np.size(a) == np.size(b) and np.array_equal(np.ravel(a), np.ravel(b)))


# ---- 1. what may be kept ----


def _common(held: Any, wanted: Any) -> int:
    return next((i for i, (a, b) in enumerate(zip(held, wanted)) if a != b), min(len(held), len(wanted)))


def _two(about: str, n_same: int, n_held: int, n_wanted: int, again: int | None = None, first: int = 100) -> Case:
    """Two lists that agree in their first `n_same` tokens, and again from position `again` on."""
    held, wanted = np.arange(first, first + n_held), np.arange(first, first + n_wanted)
    wanted[n_same:] += 5000
    if again is not None:
        wanted[again:] -= 5000
    return Case(about, (held, wanted))


def _other_lists(rng: np.random.Generator, model: Any) -> list[Case]:
    one, two, more, rest = (int(rng.integers(*bounds)) for bounds in ((2, 6), (1, 4), (1, 60), (5, 60)))
    first = int(rng.integers(1, 999))
    sizes = (
        (one * PAGE + more, one * PAGE + more + rest, one * PAGE + more + 2 * rest, None),
        (one * PAGE, one * PAGE, one * PAGE, None),
        (two * PAGE, two * PAGE, two * PAGE + rest, None),
        (two * PAGE, two * PAGE + rest, two * PAGE + 2 * rest, None),
        (two * PAGE + 1, one * PAGE + 300, two * PAGE + 1, None),
        (more, more + rest, more + rest, None),
        (more, 5 * PAGE + 9, 6 * PAGE + 9, more + 1),
        (0, rest, rest, None),
    )
    return [_two("two lists of tokens", n, held, wanted, again, first) for n, held, wanted, again in sizes]


REUSABLE = Exercise(
    check="reusable",
    names=("reusable",),
    points=(1, 1),
    shows="say how much of a prompt a prefix cache can spare",
    usual="`every_token`: pages not rounded to; `last_token`: nothing left to evaluate, so no logits; `rounded_up`; "
    "`anywhere`: tokens counted after the first that differs; `last_of_held`; `always_one_less`; `pages`",
    mistake=(
        "last_token",
        cleandoc("""
        def reusable(held, wanted):
            n = 0
            while n < min(len(held), len(wanted)) and held[n] == wanted[n]:
                n += 1
            return n // 64 * 64
    """),
    ),
    right=lambda held, wanted: min(_common(held, wanted), len(wanted) - 1) // PAGE * PAGE,
    cases=(
        _two("150 tokens that agree, then others", 150, 200, 220),
        _two("the same 192 tokens twice", 192, 192, 192),
        _two("a prompt of 129 tokens with which 300 held ones begin", 129, 300, 129),
        _two("a prompt that goes on after 128 held tokens", 128, 128, 200),
        _two("128 tokens that agree, then others", 128, 250, 260),
        _two("a single other token, at position 70", 70, 260, 270, 71),
        _two("two lists that differ at once", 0, 150, 150),
        _two("less than a page that agrees", 40, 200, 200),
        _two("one token less than a page", 63, 63, 150),
        _two("a page and a token, twice", 65, 65, 65),
        _two("a page, twice", 64, 64, 64),
        _two("nothing held", 0, 0, 100),
        _two("a prompt of one token", 1, 200, 1),
    ),
    hidden_cases=_other_lists,
    faults=(
        Fault(
            "every_token",
            lambda held, wanted: min(_common(held, wanted), len(wanted) - 1),
            "Every token that agrees is counted. A page is shared whole or not at all.",
        ),
        Fault("every_token", _common, "Every token that agrees is counted. A page is shared whole or not at all."),
        Fault(
            "last_token",
            lambda held, wanted: _common(held, wanted) // PAGE * PAGE,
            "Where the whole prompt is held, nothing is left to evaluate, and so there are no logits to go on from.",
        ),
        Fault(
            "rounded_up",
            lambda held, wanted: -(-min(_common(held, wanted), len(wanted) - 1) // PAGE) * PAGE,
            "A page that agrees in part is counted as a whole one: some of its keys are another text's.",
        ),
        Fault(
            "anywhere",
            lambda held, wanted: (
                min(sum(a == b for a, b in zip(held, wanted, strict=False)), len(wanted) - 1) // PAGE * PAGE
            ),
            "Tokens count that agree after the first difference. They have the same ids, and keys and values that saw "
            "another text before them.",
        ),
        Fault(
            "last_of_held",
            lambda held, wanted: min(_common(held, wanted), max(len(held) - 1, 0)) // PAGE * PAGE,
            "The last token of what is held is left out; it is another list whose last token is needed.",
        ),
        Fault(
            "always_one_less",
            lambda held, wanted: max(_common(held, wanted) - 1, 0) // PAGE * PAGE,
            "A token is taken off always. Where the prompt goes on after the common part, nothing need be taken off.",
        ),
        Fault(
            "pages",
            lambda held, wanted: min(_common(held, wanted), len(wanted) - 1) // PAGE,
            "That is the number of pages; tokens are wanted.",
        ),
    ),
    same=_exactly,
    praise="Whole pages up to the first token that differs, and the prompt's last token is always evaluated.",
)

# ---- 2. which leaf goes ----

Rows = list[tuple[int, int, int]]


def _leaf(
    tree: Any,
    *,
    leaves: bool = True,
    held: bool = True,
    pick: Callable[[Iterable[int], Any], int] = min,
    none: int = -1,
) -> int:
    """The right leaf. Each keyword argument makes a mistake."""
    rows = [tuple(map(int, row)) for row in tree]
    parents = {row[0] for row in rows}
    idle = [i for i, row in enumerate(rows) if not (leaves and i in parents) and not (held and row[2])]
    return pick(idle, key=lambda i: rows[i][1]) if idle else none  # type: ignore[call-arg]


def _protected(tree: Any) -> int:
    """The mistake of treating a leaf as held because the page above it is held."""
    rows = [tuple(map(int, row)) for row in tree]
    parents = {row[0] for row in rows}
    idle = [i for i, r in enumerate(rows) if i not in parents and not r[2] and not (r[0] >= 0 and rows[r[0]][2])]
    return min(idle, key=lambda i: rows[i][1]) if idle else -1


def _deepest(tree: Any) -> int:
    rows = [tuple(map(int, row)) for row in tree]

    def depth(i: int) -> int:
        return 0 if i < 0 else 1 + depth(rows[i][0])

    parents = {row[0] for row in rows}
    idle = [i for i, row in enumerate(rows) if i not in parents and not row[2]]
    return max(idle, key=depth) if idle else -1


def _place(tree: Any) -> int:
    """The leaf's index among the leaves, instead of its row."""
    rows = [tuple(map(int, row)) for row in tree]
    leaves = [i for i in range(len(rows)) if i not in {row[0] for row in rows}]
    idle = [i for i in leaves if not rows[i][2]]
    return leaves.index(min(idle, key=lambda i: rows[i][1])) if idle else -1


def _tree(about: str, *rows: tuple[int, int, int]) -> Case:
    return Case(about, (np.array(rows, np.int64).reshape(-1, 3),))


def _other_trees(rng: np.random.Generator, model: Any) -> list[Case]:
    cases = []
    for held in (0.0, 0.2, 0.3, 0.4, 0.4, 1.0):
        n = int(rng.integers(6, 12))
        parents = [int(rng.integers(-1, i)) if i else -1 for i in range(n)]
        used = rng.permutation(np.arange(1, 3 * n))[:n]
        holders = [int(rng.random() < held) * int(rng.integers(1, 4)) for _ in range(n)]
        for i in reversed(range(n)):  # holding or using a page holds or uses the pages above it
            if (p := parents[i]) >= 0:
                holders[p] = max(holders[p], holders[i])
                used[p] = max(used[p], used[i])
        cases.append(_tree("a tree", *zip(parents, map(int, used), holders, strict=True)))
    # Always included: an oldest page with pages below it, an old leaf that is held, and a deep leaf.
    a, b, c = (int(x) for x in rng.permutation(np.arange(2, 40))[:3])
    old, middle, new = sorted((a, b, c))
    cases.append(_tree("a tree", (-1, 1, 0), (0, old + 60, 0), (1, new + 90, 0), (0, old, 2), (-1, middle + 41, 0)))
    cases.append(_tree("a tree", (-1, new + 50, 1), (0, old, 0), (-1, middle + 42, 0), (2, new, 0), (3, new - 1, 0)))
    return cases


EVICT = Exercise(
    check="which_leaf",
    names=("which_leaf",),
    points=(2, 1),
    shows="choose the page to let go of",
    usual="`not_a_leaf`: a page goes and those after it stay, without their beginning; `held`: somebody's page goes; "
    "`newest`; `first_leaf`, `last_leaf`; `deepest`; `protected`: a held page above taken to keep the leaf; `when`, "
    "`place`: another number than the row; `none_as_0`",
    mistake=(
        "not_a_leaf",
        cleandoc("""
        def which_leaf(tree):
            idle = [i for i, (parent, used, sessions) in enumerate(tree) if not sessions]
            return min(idle, key=lambda i: tree[i][1]) if idle else -1
    """),
    ),
    right=_leaf,
    cases=(
        _tree("one page", (-1, 5, 0)),
        _tree("two pages, one after the other", (-1, 1, 0), (0, 2, 0)),
        _tree("a beginning and three leaves", (-1, 9, 0), (0, 7, 0), (0, 3, 0), (0, 9, 0)),
        _tree("the oldest leaf is held", (-1, 9, 1), (0, 7, 0), (0, 3, 2), (0, 9, 0)),
        _tree("an old beginning with new leaves", (-1, 2, 0), (0, 8, 0), (0, 6, 0), (1, 7, 0)),
        _tree("the beginning is held, its leaves are not", (-1, 9, 1), (0, 4, 0), (-1, 6, 0), (2, 5, 0)),
        _tree("everything is held", (-1, 9, 2), (0, 9, 1), (0, 8, 1)),
        _tree("nothing is there"),
        _tree("two trees", (-1, 8, 0), (-1, 7, 0), (0, 8, 0), (1, 7, 0), (2, 8, 0), (0, 5, 0), (1, 6, 1)),
        _tree("pages in no special order", (2, 6, 0), (-1, 9, 0), (1, 9, 0), (2, 9, 0), (1, 7, 0)),
        _tree("a leaf at the root is the oldest", (-1, 9, 0), (0, 9, 0), (1, 9, 0), (-1, 3, 0)),
    ),
    hidden_cases=_other_trees,
    faults=(
        Fault(
            "not_a_leaf",
            lambda t: _leaf(t, leaves=False),
            "A page goes that has pages after it. Those can't be used without it: nobody can begin in the middle.",
        ),
        Fault("held", lambda t: _leaf(t, held=False), "A page goes that a session holds and still reads."),
        Fault("newest", lambda t: _leaf(t, pick=max), "The leaf goes that was used last."),
        Fault(
            "first_leaf",
            lambda t: _leaf(t, pick=lambda idle, key: next(iter(idle))),
            "The first leaf goes. When each was used does not matter here.",
        ),
        Fault(
            "last_leaf",
            lambda t: _leaf(t, pick=lambda idle, key: list(idle)[-1]),
            "The last leaf in the list goes. When each was used does not matter here.",
        ),
        Fault("deepest", _deepest, "The leaf goes that is furthest from the root, whenever it was used."),
        Fault(
            "protected",
            _protected,
            "A leaf stays because a session holds the page before it. That session can do without the leaf.",
        ),
        Fault(
            "when",
            lambda t: -1 if (i := _leaf(t)) < 0 else int(t[i][1]),
            "That is when the leaf was used; its row is wanted.",
        ),
        Fault("place", _place, "That is the leaf's place among the leaves; its row in the whole tree is wanted."),
        Fault(
            "none_as_0",
            lambda t: _leaf(t, none=0),
            "Where nothing can be let go of, a row comes back all the same.",
        ),
    ),
    same=_exactly,
    praise="A leaf, held by nobody, unused for the longest: so every page that stays still has its beginning.",
)

# ---- 3. the order of a prompt ----


def _shared(sizes: Any, same: Any, order: Any) -> int:
    """Tokens shared with the previous request, summed over all requests; `same` is (requests - 1, parts)."""
    going_on = np.cumprod(same[:, list(order)], axis=1)
    return int((going_on * np.asarray(sizes)[list(order)]).sum())


def _unchanged(versions: Any) -> Any:
    versions = np.asarray(versions)
    return versions[1:] == versions[:-1]


def _best(sizes: Any, same: Any, pick: Callable[..., Any] = max) -> list[int]:
    orders = itertools.permutations(range(len(sizes)))
    return list(pick(orders, key=lambda order: _shared(sizes, same, order)))


def _by(key: Any) -> list[int]:
    return np.argsort(key, kind="stable").tolist()


def _order(sizes: Any, versions: Any) -> list[int]:
    return _best(sizes, _unchanged(versions))


def _greedy(sizes: Any, same: Any) -> list[int]:
    """Puts the part first that saves most there, then chooses the next in the same way."""
    order: list[int] = []
    while len(order) < len(sizes):
        left = [p for p in range(len(sizes)) if p not in order]
        going_on = same[:, order].all(axis=1)
        order.append(max(left, key=lambda p: (going_on & same[:, p]).sum() * sizes[p]))
    return order


def _only(sizes: Any, versions: Any) -> bool:
    """Whether exactly one order is best."""
    same = _unchanged(versions)
    values = sorted(_shared(sizes, same, order) for order in itertools.permutations(range(len(sizes))))
    return values[-1] > values[-2]


_ORDER_FAULTS = (
    Fault(
        "as_given",
        lambda sizes, versions: list(range(len(sizes))),
        "The parts stay in the order in which they came.",
    ),
    Fault(
        "fewest_changes",
        lambda sizes, versions: _by((~_unchanged(versions)).sum(axis=0)),
        "Parts are sorted by how often they change, and their sizes don't count. A long part that changes now and then "
        "can be worth more in front than a short one that changes less.",
    ),
    Fault(
        "most_changes",
        lambda sizes, versions: _by(_unchanged(versions).sum(axis=0)),
        "What changes most comes first, and then nothing after it can be shared.",
    ),
    Fault(
        "largest_first",
        lambda sizes, versions: _by(-np.asarray(sizes)),
        "The largest part comes first, however often it changes.",
    ),
    Fault(
        "smallest_first",
        lambda sizes, versions: _by(sizes),
        "The smallest part comes first, however often it changes.",
    ),
    Fault(
        "worst",
        lambda sizes, versions: _best(sizes, _unchanged(versions), min),
        "That is the order in which the fewest tokens are shared.",
    ),
    Fault(
        "parts_counted",
        lambda sizes, versions: _best(np.ones(len(sizes)), _unchanged(versions)),
        "Shared parts are counted, whatever their size; tokens are wanted.",
    ),
    Fault(
        "first_request",
        lambda sizes, versions: _best(sizes, np.asarray(versions)[1:] == np.asarray(versions)[0]),
        "Each request is compared with the very first one; what it can share is what the request before left.",
    ),
    Fault(
        "saved_alone",
        lambda sizes, versions: _by(-(_unchanged(versions) * np.asarray(sizes)).sum(axis=0)),
        "Each part is weighed by itself. What it saves depends on the parts before it: they must be unchanged, too.",
    ),
    Fault(
        "one_by_one",
        lambda sizes, versions: _greedy(np.asarray(sizes), _unchanged(versions)),
        "The part that saves most is put in front, then the next, one by one. Two parts that change together can save "
        "more than what looked best alone.",
    ),
    Fault(
        "ranks",
        lambda sizes, versions: _by(_order(sizes, versions)),
        "That is each part's place in the prompt; the parts' numbers are wanted, in the order of the prompt.",
    ),
)


def _changing(rng: np.random.Generator, rates: Any, n: int) -> np.ndarray:
    """Versions of parts that change at these rates, (n, parts)."""
    return np.cumsum(rng.random((n, len(rates))) < np.asarray(rates), axis=0)


def _other_prompts(rng: np.random.Generator, model: Any) -> list[Case]:
    cases: list[Case] = []
    missed = {fault.name for fault in _ORDER_FAULTS}
    while len(cases) < 5 or missed:
        n_parts = int(rng.integers(3, 5))
        sizes = rng.permutation(np.arange(1, 60))[:n_parts] * 10
        versions = _changing(rng, rng.permutation([0.15, 0.35, 0.55, 0.8])[:n_parts], 9)
        right = _order(sizes, versions)
        told = {fault.name for fault in _ORDER_FAULTS if fault.function(sizes, versions) != right}
        if _only(sizes, versions) and (len(cases) < 5 or told & missed):
            cases.append(Case("a prompt of some parts", (sizes, versions)))
            missed -= told
    return cases


def _read_order(value: Any) -> Any:
    order = numbers(value)
    if isinstance(order, CheckResult):
        return order
    if order.ndim != 1 or sorted(order.tolist()) != list(range(order.size)):
        return CheckResult(
            False, "Your function must return the number of each part once, such as [2, 0, 1]; it returns "
            f"{order.tolist() if order.size < 9 else 'more'}.", "not_an_order",
        )  # fmt: skip
    return order


ORDER = Exercise(
    check="order_parts",
    names=("order_parts",),
    points=(3, 1),
    shows="order a prompt so that most of it is shared",
    usual="`fewest_changes`: sizes ignored; `largest_first`, `smallest_first`: changes ignored; `saved_alone`: what "
    "stands before ignored; `one_by_one`; `first_request`: compared with the first and not the one before; "
    "`parts_counted`; `as_given`, `most_changes`, `worst`; `ranks`: places for parts; `not_an_order`",
    mistake=(
        "fewest_changes",
        cleandoc("""
        def order_parts(sizes, versions):
            changes = (versions[1:] != versions[:-1]).sum(axis=0)
            return np.argsort(changes, kind="stable")
    """),
    ),
    right=_order,
    cases=(
        Case("a clock, then rules", (np.array([10, 400]), np.array([[1, 1], [2, 1], [3, 1], [4, 1]]))),
        Case(
            "a short part that changes in one request of five, and a long one that changes in two",
            (np.array([10, 900]), np.array([[1, 1], [1, 2], [1, 2], [2, 2], [2, 3], [2, 3]])),
        ),
        Case(
            "three parts",
            (np.array([50, 200, 30]), np.array([[1, 1, 1], [2, 1, 1], [3, 1, 2], [4, 2, 2], [5, 2, 2], [6, 2, 3]])),
        ),
        Case(
            "a part that comes back to its first version",
            (np.array([100, 120]), np.array([[1, 1], [2, 1], [1, 1], [2, 2], [1, 2], [1, 2]])),
        ),
        Case(
            "two parts that change together, and one of its own",
            (
                np.array([120, 90, 100]),
                np.array([[1, 1, 1], [2, 2, 1], [2, 2, 2], [3, 2, 2], [4, 3, 2], [4, 3, 3], [4, 3, 3]]),
            ),
        ),
        Case(
            "four parts",
            (
                np.array([150, 40, 310, 220]),
                np.array([
                    [1, 1, 1, 1], [1, 2, 1, 2], [2, 3, 1, 3], [2, 4, 2, 4], [2, 5, 2, 4], [2, 5, 2, 5], [3, 6, 3, 6],
                    [3, 7, 3, 6],
                ]),
            ),
        ),
    ),
    hidden_cases=_other_prompts,
    faults=_ORDER_FAULTS,
    read=_read_order,
    same=_exactly,
    praise="What stays goes in front, and how long it is counts, too: a part is worth what is shared up to its end.",
)  # fmt: skip

# ---- 4. the bytes of forks ----


def _forks(p: int, new: int, n: int, shape: Any, **other: Any) -> int:
    layers, page = (int(x) for x in shape)
    first, whole = -(-p // PAGE), p // PAGE
    own = (-(-(p + new) // PAGE) - whole) if new else 0
    return int(layers * page * (other.get("original", first) + n * other.get("own", own)))


def _fork_case(p: int, new: int, n: int, layers: int, page: int) -> Case:
    about = f"{n} forks at position {p}, each of which writes {new}; {layers} layers, pages of {page:,} bytes"
    return Case(about, (p, new, n, np.array([layers, page])))


def _other_forks(rng: np.random.Generator, model: Any) -> list[Case]:
    layers, page, n = int(rng.integers(3, 40)), 1024 * int(rng.integers(3, 90)), int(rng.integers(2, 20))
    k, odd, few = int(rng.integers(1, 9)), int(rng.integers(1, 60)), int(rng.integers(1, 4))
    sizes = ((k * PAGE + odd, few), (k * PAGE, few), (k * PAGE + odd, 0), (k * PAGE + odd, 100 + odd), (odd, 64 - odd))
    return [_fork_case(p, new, n, layers, page) for p, new in sizes]


FORKS = Exercise(
    check="fork_bytes",
    names=("fork_bytes",),
    points=(2, 1),
    shows="count what forks take that share pages",
    usual="`all_copied`: a cache of its own for each; `no_copy`: the shared page written in place; `copied_at_once`: "
    "before anybody has written; `original_missing`; `positions`: less than whole pages; `one_layer`; `one_fork`; "
    "`page_each`; `pages`",
    mistake=(
        "no_copy",
        cleandoc("""
        def fork_bytes(n_past, n_new, n_forks, shape):
            n_layers, page_nbytes = shape
            before = -(-n_past // 64)
            after = -(-(n_past + n_new) // 64)
            return n_layers * page_nbytes * (before + n_forks * (after - before))
    """),
    ),
    right=_forks,
    cases=(
        _fork_case(100, 1, 10, 30, 98_304),
        _fork_case(128, 1, 10, 30, 98_304),
        _fork_case(100, 0, 10, 30, 98_304),
        _fork_case(100, 28, 3, 18, 131_072),
        _fork_case(100, 29, 3, 18, 131_072),
        _fork_case(64, 200, 2, 6, 32_768),
        _fork_case(65, 1, 2, 6, 32_768),
        _fork_case(10, 300, 4, 6, 32_768),
        _fork_case(500, 5, 0, 6, 32_768),
    ),
    hidden_cases=_other_forks,
    faults=(
        Fault(
            "all_copied",
            lambda p, new, n, s: _forks(p, new, n, s, own=-(-(p + new) // PAGE)),
            "Every fork gets a copy of everything: what nobody writes to stays shared.",
        ),
        Fault(
            "no_copy",
            lambda p, new, n, s: _forks(p, new, n, s, own=-(-(p + new) // PAGE) - -(-p // PAGE)),
            "A page that is begun and shared is written to as if it were the fork's own.",
        ),
        Fault(
            "copied_at_once",
            lambda p, new, n, s: _forks(p, new, n, s, own=-(-(p + new) // PAGE) - p // PAGE),
            "A page is copied though its fork has written nothing.",
        ),
        Fault(
            "original_missing",
            lambda p, new, n, s: _forks(p, new, n, s, original=0),
            "The pages of the first session are missing; all forks read them.",
        ),
        Fault(
            "positions",
            lambda p, new, n, s: int(s[0]) * int(s[1]) * (p + n * new) // PAGE,
            "Positions are counted one by one; memory comes in whole pages.",
        ),
        Fault(
            "one_layer",
            lambda p, new, n, s: _forks(p, new, n, (1, s[1])),
            "That is one layer's pages.",
        ),
        Fault("one_fork", lambda p, new, n, s: _forks(p, new, 1, s), "That is the first session and one fork."),
        Fault(
            "page_each",
            lambda p, new, n, s: _forks(p, new, n, s, own=1 if new else 0),
            "Every fork is given one page, however much it writes.",
        ),
        Fault("pages", lambda p, new, n, s: _forks(p, new, n, (s[0], 1)), "That is the number of pages."),
    ),
    same=_exactly,
    praise="What was there before is paid for once; each fork pays for the page that it copies and for what it adds.",
)

LESSON = Lesson(
    "09_the_same_beginning",
    cleandoc("""
        import itertools

        import numpy as np

        from teachllama.check import notebook09 as check
        from teachllama.check.core import assert_right
    """),
    (REUSABLE, EVICT, ORDER, FORKS),
)
