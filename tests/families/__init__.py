"""Tiny models of every family, made from a seed, and llama.cpp's results for them.

`build(variant, path)` writes the GGUF file; `load_golden(variant)` returns llama.cpp's figures for it, made
by `make golden` (`make_golden.py`). The files themselves are never stored: the same seed makes the same weights.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.families.generate import SEEDS, VARIANTS, build

FOLDER = Path(__file__).parent.parent / "golden" / "families"
N_PROMPT, N_GREEDY = 300, 50
COLUMNS = 3  # logits stored at each position of the prompt
N_STOCK = 20  # positions for which the logits of stock llama.cpp, with its rounding, are stored
CLEAR = 0.02  # a greedy step whose two best logits are closer than this may go either way

__all__ = [
    "CLEAR", "COLUMNS", "FOLDER", "N_GREEDY", "N_PROMPT", "N_STOCK", "SEEDS", "VARIANTS", "build", "columns_of",
    "load_golden", "prompt",
]  # fmt: skip


def prompt(vocab_size: int, seed: int = 0) -> list[int]:
    """The prompt: random ids, none of them special."""
    return np.random.default_rng(1000 + seed).integers(0, vocab_size - 2, N_PROMPT).tolist()


def columns_of(vocab_size: int, seed: int = 0) -> np.ndarray:
    """The logits stored at each position, (N_PROMPT, COLUMNS): different ones per position, to cover them all."""
    return np.random.default_rng(2000 + seed).integers(0, vocab_size, (N_PROMPT, COLUMNS))


def pack(array: np.ndarray) -> str:
    """Float32 numbers as text."""
    return base64.b85encode(np.asarray(array, "<f4").tobytes()).decode("ascii")


def unpack(text: str) -> np.ndarray:
    """The reverse of `pack`, flat."""
    return np.frombuffer(base64.b85decode(text), "<f4")


def load_golden(variant: str) -> dict[str, Any]:
    """llama.cpp's figures: `logits` (N_PROMPT, COLUMNS), `logsumexp` (N_PROMPT,), `greedy` ids and their `gap`.

    Where llama.cpp rounds something: `stock_differs_by`, the largest difference this makes, and `stock_logits`
    (N_STOCK, COLUMNS), its logits with that rounding at the first positions.
    """
    stored = json.loads((FOLDER / f"{variant}.json").read_text(encoding="utf-8"))
    stored["logits"] = unpack(stored["logits"]).reshape(N_PROMPT, COLUMNS)
    stored["logsumexp"], stored["gap"] = unpack(stored["logsumexp"]), unpack(stored["gap"])
    if "stock_logits" in stored:
        stored["stock_logits"] = unpack(stored["stock_logits"]).reshape(N_STOCK, COLUMNS)
    return stored
