"""Byte-pair merging, the core of both tokenizers. Handles symbols and ranks. Independent of bytes and vocabularies."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import pairwise

Rank = Callable[[str, str], float]  # rank of two neighbours; the pair with the lowest is joined first
NEVER = float("inf")


def merge(symbols: list[str], rank: Rank) -> list[str]:
    """Byte-pair encoding: joins the best-ranked neighbours, the leftmost among equals, until no pair can be joined.

    It examines every pair in every round, so n symbols take about n * n steps. `merge_long` needs fewer.
    """
    while len(symbols) > 1:
        ranks = [rank(left, right) for left, right in pairwise(symbols)]
        best = min(ranks)
        if best == NEVER:
            break
        i = ranks.index(best)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return symbols


def merge_long(symbols: list[str], rank: Rank) -> list[str]:
    """The same result as `merge`, in about n * log(n) steps, with a heap of (rank, index of the left neighbour).

    Symbols stay in place, linked to the nearest ones left and right. A symbol joined into another becomes "". If the
    neighbours of a heap entry have changed since it was pushed, its rank is out of date and it is skipped.
    """
    n = len(symbols)
    left_of, right_of = list(range(-1, n - 1)), list(range(1, n + 1))  # -1 and n: no neighbour
    heap = [(r, i) for i, pair in enumerate(pairwise(symbols)) if (r := rank(*pair)) != NEVER]
    heapq.heapify(heap)
    while heap:
        best, i = heapq.heappop(heap)
        j = right_of[i]
        if j == n or not symbols[i] or rank(symbols[i], symbols[j]) != best:
            continue
        symbols[i], symbols[j] = symbols[i] + symbols[j], ""
        right_of[i] = right_of[j]
        if right_of[i] < n:
            left_of[right_of[i]] = i
        for a, b in ((left_of[i], i), (i, right_of[i])):  # the two new pairs
            if a >= 0 and b < n and (r := rank(symbols[a], symbols[b])) != NEVER:
                heapq.heappush(heap, (r, a))
    return [s for s in symbols if s]
