"""`Batch`: rows of tokens, from one session or many, that pass through the model together.

Independent of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from teachllama.kv.cache import KVCache


@dataclass(frozen=True, slots=True)
class Run:
    """Rows begin to end of a batch: consecutive positions of one session, whose keys and values live in `cache`."""

    cache: KVCache
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass."""

    tokens: np.ndarray  # (n,) intp
    positions: np.ndarray  # (n,) intp: each token's position in its session
    runs: tuple[Run, ...]
    wanted: np.ndarray  # (m,) intp: the rows whose logits are computed

    @classmethod
    def of_one(cls, tokens: np.ndarray, start: int, cache: KVCache, *, all_logits: bool = False) -> Batch:
        """One session's next tokens, at positions start, start + 1, ..."""
        n = len(tokens)
        wanted = np.arange(n) if all_logits else np.array([n - 1])
        return cls(np.asarray(tokens, np.intp), np.arange(start, start + n), (Run(cache, 0, n),), wanted)
