"""Rows of logits to sample from, the same on every machine: two of SmolLM2, and made-up ones of Gemma's vocabulary."""

from __future__ import annotations

import lzma

import numpy as np

from tests.conftest import GOLDEN

ROWS_FILE = GOLDEN / "sampling_rows.npz"
N_GEMMA = 262_144


def bell(scale: float, n: int = N_GEMMA) -> np.ndarray:
    """Nearly normal logits of standard deviation 209 * scale, float32 (n,): sums of eight bytes plus a fraction."""
    raw = np.random.PCG64(8).random_raw(n)
    whole = raw.view(np.uint8).reshape(n, 8).sum(axis=1, dtype=np.int64) - 1020
    fraction = (raw >> np.uint64(40)).astype(np.int64) & 0x3FFF
    return ((whole * 2**14 + fraction) * (scale / 2**14)).astype(np.float32)


def made_up(n: int = N_GEMMA) -> dict[str, np.ndarray]:
    """Made-up rows (n,): a model's spread, nearly flat, few values, one value, one likely token, most ruled out."""
    wide = bell(1 / 64, n)
    ruled_out = np.where(np.arange(n) % 10 == 3, wide, np.float32(-np.inf))
    one = bell(1 / 256, n)
    one[n // 3] += 14
    return {
        "wide": wide,
        "flat": bell(1 / 256, n),
        "few values": np.round(wide),
        "one value": np.full(n, np.float32(-2.5)),
        "one likely": one,
        "most ruled out": ruled_out,
    }


def rows() -> dict[str, np.ndarray]:
    """Every row by name, float32 (vocab_size,)."""
    with np.load(ROWS_FILE) as stored:
        real = {
            name: np.frombuffer(lzma.decompress(stored[name].tobytes()), "<i2").astype(np.float32) / 16
            for name in stored.files
        }
    return real | made_up()
