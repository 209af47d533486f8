"""llama.cpp's figures that notebook 12 predicts, stored because llama.cpp is not installed where the notebook runs.

The figures are those of `tests/golden` and `docs/measured`. `how` describes how each was obtained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from teachllama.model import Model


@dataclass(frozen=True, eq=False)
class Text:
    """One prompt, continued greedily by llama.cpp in float32."""

    prompt: str
    prompt_ids: list[int]
    top_ids: np.ndarray  # (20,): the likeliest tokens after the prompt
    top_logits: np.ndarray  # (20,): their logits
    greedy_ids: list[int]
    gap: np.ndarray  # the highest logit minus the second, per step


@dataclass(frozen=True, eq=False)
class Figures:
    """The stored figures for one model's weights. A list is empty if nothing is stored."""

    float32: list[Text]
    as_shipped: list[tuple[str, int]]  # (prompt, how many of 48 greedy tokens come before the first that differs)


@lru_cache(maxsize=1)
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((files(__package__) / "llama_cpp.json").read_text(encoding="utf-8"))
    return stored


def how() -> dict[str, str]:
    """How each kind of figure was obtained: "float32", "as_shipped", "exact_gelu"."""
    return dict(_stored()["how"])


def of(model: Model) -> Figures:
    """The figures of a model with exactly these weights."""
    for entry in _stored()["models"].values():
        if entry["weights"] == model.fingerprint.weights:
            texts = [_text(t) for t in entry["float32"]]
            return Figures(texts, [(t["prompt"], t["same"]) for t in entry.get("as_shipped", ())])
    return Figures([], [])


def two_builds() -> list[tuple[str, float]]:
    """Gemma 3 270M in two builds of llama.cpp, with its GELU table and without.

    Returns:
        Per prompt, the largest difference between the builds' logits, over the tokens that are among the likeliest in
        both.
    """
    found = []
    for stock, exact in zip(_stored()["models"]["gemma3-270m"]["float32"], _stored()["exact_gelu"], strict=True):
        a, b = (dict(zip(t["top_ids"], t["top_logits"], strict=True)) for t in (stock, exact))
        found.append((stock["prompt"], max(abs(a[i] - b[i]) for i in a.keys() & b.keys())))
    return found


def _text(t: dict[str, Any]) -> Text:
    return Text(
        t["prompt"], t["prompt_ids"], np.array(t["top_ids"]), np.array(t["top_logits"]), t["greedy_ids"],
        np.array(t["gap"]),
    )  # fmt: skip
