"""Finds positions where a router's choice depends on rounding: two engines may differ there, and both are right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import teachllama as tl
from teachllama.batch import Batch
from teachllama.forward import forward
from teachllama.ops import NumpyOps
from teachllama.weights import Experts

NOISE = 2e-5  # router outputs of two engines differ by a tenth of this
DRAWS = 8  # the chance of missing a tie is 1 in 2^DRAWS
CHANGED = 1e-2  # relative to the largest output: another expert changes more, the noise alone far less


@dataclass(frozen=True)
class _Noisy:
    """A router with a little noise added to its outputs."""

    router: Any
    rng: np.random.Generator

    @property
    def rows(self) -> int:
        return self.router.rows

    def multiply(self, x: np.ndarray) -> np.ndarray:
        scores = self.router.multiply(x)
        return scores + self.rng.uniform(-NOISE, NOISE, scores.shape).astype(np.float32)


class _Watching(NumpyOps):
    """Records the rows whose experts give another result under a noisy router."""

    def __init__(self, spec: tl.ModelSpec, n: int):
        super().__init__(spec)
        self.tied, self.rng = np.zeros(n, bool), np.random.default_rng(0)

    def experts(self, x: np.ndarray, m: Experts, s: Any) -> np.ndarray:
        out = super().experts(x, m, s)
        for _ in range(DRAWS):
            other = super().experts(x, replace(m, router=_Noisy(m.router, self.rng)), s)  # type: ignore[arg-type]
            self.tied |= np.abs(other - out).max(axis=1) > CHANGED * np.abs(out).max(axis=1)
        return out


def tied(model: tl.Model, ids: list[int]) -> np.ndarray:
    """Marks positions of ids where, in any layer, experts nearly tie and give different results: bool (n,).

    Args:
        model: loaded with `weights="f32"`.
    """
    ops = _Watching(model.spec, len(ids))
    if any(layer.ffn.experts for layer in model.spec.layers):
        with model.create_session(seq_len=1024) as session:
            batch = Batch.of_one(np.array(ids), 0, session._cache, all_logits=True)
            forward(ops, model.spec, model.weights, batch)
    return ops.tied
