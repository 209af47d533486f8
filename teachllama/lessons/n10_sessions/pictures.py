"""The pictures of notebook 10, sessions in files, and helpers that spoil, forge and read back what a file holds.

Pictures take numbers that the notebook has computed and return a `Picture`; its `alt` describes it in words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from teachllama.batch import Batch
from teachllama.errors import ParameterError
from teachllama.gguf_file import StringArray
from teachllama.lessons.common.gguf_copies import write_copy
from teachllama.lessons.common.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    Picture,
    bytes_axis,
    dark,
    drawn,
    format_bytes,
    note,
    picture,
)
from teachllama.model import Model
from teachllama.ops import NumpyOps, rope

LEAST = 1e-13  # nats; smaller values are only rounding


@drawn
def bill(seconds: Mapping[str, float]) -> Picture:
    """One bar per way to get a conversation into the cache: its time, on a logarithmic scale."""
    if not seconds or min(seconds.values()) <= 0:
        raise ParameterError(f"seconds are {dict(seconds)}; expected at least one, each above 0")
    names, values = list(seconds), np.array(list(seconds.values()))
    fig = picture(1.3 + 0.55 * len(names))
    ax = fig.add_subplot()
    ax.barh(range(len(names)), values * 1000, color=BLUE, edgecolor=INK, linewidth=0.6, height=0.6)
    for i, v in enumerate(values):
        note(ax, f"{v:.1f} s" if v >= 1 else f"{v * 1000:.0f} ms", (v * 1000, i), (6, 0), fontsize=SMALL)
    ax.set_xscale("log")
    ax.set_xlim(values.min() * 1000 / 4, values.max() * 1000 * 4)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"))
    ax.set_xlabel("time")
    fig.alt = "How long it takes: " + ", ".join(f"{n} {v:.3f} s" for n, v in zip(names, values, strict=True)) + "."
    return fig


@drawn
def inside(parts: Mapping[str, int]) -> Picture:
    """The parts of a session file in bytes, as one divided bar.

    Args:
        parts: name -> bytes, in the order of the bar.
    """
    if not parts or min(parts.values()) < 0 or not sum(parts.values()):
        raise ParameterError(f"parts are {dict(parts)}; expected bytes")
    fig = picture(2.9)
    ax = fig.add_subplot()
    at, total = 0, sum(parts.values())
    colours = (BLUE, SKY, ORANGE, GREEN, PURPLE)
    for i, (name, n) in enumerate(parts.items()):
        ax.barh(0, n, left=at, color=colours[i % len(colours)], edgecolor=INK, linewidth=0.6, height=0.5)
        if n > total / 6:
            note(
                ax,
                f"{name}\n{format_bytes(n)}",
                (at + n / 2, 0),
                ha="center",
                halo=None,
                color="white" if i == 0 else INK,
            )
        at += n
    small = [f"{name} {format_bytes(n)}" for name, n in parts.items() if n <= total / 6]
    if small:
        note(ax, "too thin to see: " + ", ".join(small), (total, 0.42), ha="right", fontsize=SMALL)
    ax.set_ylim(-0.4, 0.6)
    ax.set_yticks([])
    ax.set_xlim(0, total)
    bytes_axis(ax.xaxis, "bytes of the file")
    fig.alt = "A session file: " + ", ".join(f"{name} {n:,} bytes" for name, n in parts.items()) + "."
    return fig


@drawn
def bits(moved: Sequence[float]) -> Picture:
    """For each bit of one float32 number in the cache: how far flipping it moves the next token's distribution.

    Args:
        moved: 32 divergences in nats, the lowest bit first; infinity or NaN if there is no distribution left.
    """
    if len(moved) != 32:
        raise ParameterError(f"{len(moved)} divergences; a float32 has 32 bits")
    values = np.nan_to_num(np.asarray(moved, float), nan=1e2, posinf=1e2)
    fig = picture(3.8)
    ax = fig.add_subplot()
    colours = [SKY] * 23 + [ORANGE] * 8 + [PURPLE]
    ax.bar(range(32), np.maximum(values, LEAST) - LEAST, bottom=LEAST, color=colours, edgecolor=INK, linewidth=0.4)
    ax.axhline(0.1, color=dark(VERMILION), linewidth=1.6)
    note(ax, "from here on one would notice", (0, 0.1), (0, 9), fontsize=SMALL, color=dark(VERMILION))
    ax.set_yscale("log")
    ax.set_ylim(LEAST / 2, 1e3)
    ax.set_xlim(-0.7, 31.7)
    ax.set_xticks([0, 5, 10, 15, 20, 25, 30])
    for x, name, colour in ((11, "fraction", SKY), (26, "exponent", ORANGE), (31.6, "sign", PURPLE)):
        place = "right" if name == "sign" else "center"
        note(ax, name, (x, 1e-6), (0, 0 if name != "sign" else 16), ha=place, color=dark(colour), fontsize=SMALL)
    ax.set_xlabel("which bit is flipped")
    ax.set_ylabel("KL divergence, nats")
    ax.grid(True, axis="y")
    loud = [i for i, v in enumerate(values) if v > 0.1]
    fig.alt = f"Of 32 bits, flipping {loud or 'none'} moves the next token's distribution by more than 0.1 nats."
    return fig


class Refusals:
    """A table of changes to a file or a model, and the results of loading it."""

    def __init__(self, rows: Sequence[tuple[str, str, str]]):
        self.rows = list(rows)  # (what was done, reason, message)

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left'>"
        rows = "".join(
            f"<tr>{cell}{escape(done)}</td>{cell}<code>{escape(reason)}</code></td>{cell}{escape(text)}</td></tr>"
            for done, reason, text in self.rows
        )
        head = "".join(f"<th style='text-align:left'>{x}</th>" for x in ("what was done", "reason", "in words"))
        return f"<table><tr>{head}</tr>{rows}</table>"

    def __repr__(self) -> str:
        return "\n".join(f"{done}: {reason}: {text}" for done, reason, text in self.rows)


# What the notebook spoils and forges ----------------------------------------------------------------------------------


def copy_with(
    source: str | os.PathLike[str], target: str | os.PathLike[str], change: Callable[[dict[str, Any]], None]
) -> Path:
    """Writes a copy of a small model with other metadata.

    Args:
        change: gets the metadata as a dict, strings as lists, and changes it.
    """

    def listed(metadata: dict[str, Any]) -> None:
        metadata |= {key: list(value) for key, value in metadata.items() if isinstance(value, StringArray)}
        change(metadata)

    return write_copy(source, target, listed)


def text_from_keys(model: Model, keys: np.ndarray) -> list[int]:
    """The token ids of a conversation, from the first layer's keys alone.

    A key of the first layer depends only on its token and position. Each key is therefore rotated back by its
    position and compared with the keys of all tokens in the vocabulary.

    Args:
        keys: (n_kv_heads, n, head_dim), as in a session file's `layer.0.k`.
    """
    spec, weights = model.spec, model.weights
    ops, layer, a = NumpyOps(spec), weights.layers[0], spec.layers[0].attention
    if a.latent or layer.k is None:
        raise ParameterError("latent attention mixes all heads into one key: this reads ordinary keys alone")
    n = keys.shape[1]
    turned = keys.transpose(1, 0, 2).astype(np.float32)  # (n, G, d)
    if a.rope is not None:
        angles = -np.arange(n)[:, None] * np.asarray(a.rope.frequencies)  # rotates back
        turned[..., a.rope.first :] = rope(
            turned[..., a.rope.first :], np.exp(1j * angles).astype(np.complex64)[:, None, :], a.rope.pairs
        )
    flat = turned.reshape(n, -1)
    best, ids = np.full(n, np.inf, np.float32), np.zeros(n, np.intp)
    nowhere: Any = None  # no cache is needed
    for first in range(0, spec.vocab_size, 8192):
        tokens = np.arange(first, min(first + 8192, spec.vocab_size))
        batch = Batch.of_one(tokens, 0, nowhere)
        h = ops.norm(ops.embed(weights.embedding, batch, spec.embedding_scale), layer.attn_norm)
        k = ops.norm(ops.linear(h, layer.k), layer.k_norm)  # (tokens, G * d)
        far = (k * k).sum(axis=1) - 2 * flat @ k.T  # (n, tokens): the squared distance, minus a constant per row
        nearest = far.argmin(axis=1)
        distance = far[np.arange(n), nearest]
        ids = np.where(distance < best, first + nearest, ids)
        best = np.minimum(best, distance)
    return ids.tolist()
