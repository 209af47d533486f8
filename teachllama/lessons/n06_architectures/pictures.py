"""The pictures of notebook 06, architectures as data. Each takes numbers that the notebook has computed and returns a
`Picture`; its `alt` describes it in words. Also the table of families, made from the engine's own registry.

Independent of models; only `rename_architecture` works on GGUF files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from teachllama.errors import ParameterError
from teachllama.families import FAMILIES
from teachllama.lessons.common.gguf_copies import write_copy
from teachllama.lessons.common.style import (
    BLUE,
    INK,
    SKY,
    SMALL,
    VERMILION,
    Picture,
    dark,
    drawn,
    note,
    picture,
    visible,
)


@drawn
def switches(divergences: Mapping[str, float]) -> Picture:
    """A bar for each flipped switch: how far the next-token distributions moved.

    Args:
        divergences: the switch's name -> mean KL divergence in nats, above 0.
    """
    if not divergences or min(divergences.values()) <= 0:
        raise ParameterError(f"divergences are {dict(divergences)}; expected at least one, each above 0")
    names, values = list(divergences), np.array(list(divergences.values()))
    fig = picture(1.2 + 0.5 * len(names))
    ax = fig.add_subplot()
    ax.barh(range(len(names)), values, color=SKY, edgecolor=INK, linewidth=0.6, height=0.62)
    low = values.min() / 4
    for i, v in enumerate(values):
        note(ax, f"{v:.2g}", (v, i), (6, 0), va="center", fontsize=SMALL)
    ax.set_xscale("log")
    ax.set_xlim(low, values.max() * 4)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("mean KL divergence from the model as it is, nats a token")
    ax.grid(True, axis="x")
    fig.alt = "How far each switch moves the predictions: " + ", ".join(
        f"{n} {v:.2g} nats" for n, v in zip(names, values, strict=True)
    ) + "."  # fmt: skip
    return fig


@drawn
def cache_bytes(per_token: Mapping[str, int]) -> Picture:
    """A bar for each kind of attention: bytes that one token adds to the cache."""
    if not per_token:
        raise ParameterError("no kinds of attention to draw")
    names, values = list(per_token), np.array(list(per_token.values()), float)
    fig = picture(1.3 + 0.55 * len(names))
    ax = fig.add_subplot()
    ax.barh(range(len(names)), values / 1000, color=BLUE, edgecolor=INK, linewidth=0.6, height=0.6)
    for i, v in enumerate(values):
        note(ax, f"{v / 1000:,.1f} kB", (v / 1000, i), (6, 0), va="center", fontsize=SMALL)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_xlim(0, values.max() / 1000 * 1.18)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.set_xlabel("what one token adds to the cache, float16, kB")
    fig.alt = "Bytes a token in the cache: " + ", ".join(f"{n} {v:,.0f}" for n, v in per_token.items()) + "."
    return fig


@drawn
def visits(pieces: Sequence[str], chosen: np.ndarray, n_experts: int, title: str = "") -> Picture:
    """Which experts each token of a text visits.

    Args:
        pieces: the tokens' texts.
        chosen: (n_tokens, n_used) numbers of experts.
    """
    chosen = np.asarray(chosen)
    if chosen.ndim != 2 or len(chosen) != len(pieces) or not len(pieces) or chosen.max() >= n_experts:
        raise ParameterError(f"choices have shape {chosen.shape}; expected a row for each of {len(pieces)} tokens")
    fig = picture(1.6 + 0.34 * n_experts)
    ax = fig.add_subplot()
    for t, row in enumerate(chosen):
        ax.plot([t] * n_experts, range(n_experts), "s", color="#e2e2e2", markersize=11, zorder=1)
        ax.plot([t] * len(row), row, "s", color=dark(BLUE), markersize=11, zorder=2)
    ax.set_xticks(
        range(len(pieces)), [visible(p) for p in pieces], rotation=55, ha="right", fontsize=SMALL, parse_math=False
    )
    ax.set_yticks(range(n_experts), [str(e) for e in range(n_experts)])
    ax.set_ylabel("expert")
    ax.set_ylim(n_experts - 0.4, -0.6)
    ax.set_xlim(-0.7, len(pieces) - 0.3)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, parse_math=False)
    counts = np.bincount(chosen.ravel(), minlength=n_experts)
    fig.alt = (
        f"{len(pieces)} tokens, {chosen.shape[1]} of {n_experts} experts each; visits by expert: {counts.tolist()}."
    )
    return fig


@drawn
def fewer_experts(divergence: Sequence[float], n_experts: int) -> Picture:
    """How far predictions move when only the best k of the experts are visited.

    Args:
        divergence: mean KL divergence from visiting all experts, in nats, for k = 1, 2, ..., n_experts - 1.
    """
    if len(divergence) != n_experts - 1:
        raise ParameterError(f"{len(divergence)} divergences for {n_experts} experts; expected {n_experts - 1}")
    fig = picture(3.6)
    ax = fig.add_subplot()
    k = np.arange(1, n_experts)
    ax.plot(k, divergence, "o-", color=dark(VERMILION), markersize=7)
    for x, y in zip(k.tolist(), divergence, strict=True):
        note(ax, f"{y:.2g}", (x, y), (0, 9), ha="center", fontsize=SMALL)
    ax.set_yscale("log")
    ax.set_ylim(min(divergence) / 3, max(divergence) * 4)
    ax.set_xticks(k)
    ax.set_xlabel(f"experts visited, of {n_experts} slices")
    ax.set_ylabel("KL, nats a token")
    ax.grid(True, axis="y")
    fig.alt = "KL divergence by experts visited: " + ", ".join(f"{x}: {y:.2g}" for x, y in zip(k, divergence)) + "."
    return fig


@drawn
def stages(names: Sequence[Sequence[tuple[str, bool]]]) -> Picture:
    """One layer's instructions between barriers: a column for each stage.

    Args:
        names: for each stage, its instructions' names and whether threads share the work.
    """
    if not names:
        raise ParameterError("no stages to draw")
    height = max(map(len, names))
    fig = picture(1.1 + 0.5 * height)
    ax = fig.add_subplot()
    for x, stage in enumerate(names):
        for y, (name, split) in enumerate(stage):
            face = SKY if split else "white"
            ax.text(
                x, y, name, ha="center", va="center", fontsize=SMALL,
                bbox={"boxstyle": "round,pad=0.35", "facecolor": face, "edgecolor": INK, "linewidth": 0.7},
            )  # fmt: skip
        ax.axvline(x + 0.5, color=dark(VERMILION), linewidth=2.2)
    ax.set_xlim(-0.5, len(names) - 0.45)
    ax.set_ylim(height - 0.4, -0.6)
    ax.axis("off")
    ax.set_title("filled: threads share the work out; white: each repeats it; red: all meet", fontsize=SMALL)
    parts = [", ".join(n + (" (split)" if s else "") for n, s in stage) for stage in names]
    fig.alt = "Between barriers: " + "; then ".join(parts) + "."
    return fig


class Families:
    """The families that the engine runs, as a table. It comes from the registry, so it includes families you add."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{escape(f.name)}</code></td><td style='text-align:left'>{escape(f.about)}</td>"
            f"<td>{f.pairs.value}</td><td>{f.activation.value}</td></tr>"
            for f in FAMILIES.values()
        )
        head = "<th>family</th><th style='text-align:left'>what makes it different</th><th>pairs</th><th>gate</th>"
        return f"<table><tr>{head}</tr>{rows}</table>"

    def __repr__(self) -> str:
        return "\n".join(f"{f.name:10} {f.about}" for f in FAMILIES.values())


def rename_architecture(source: str | os.PathLike[str], target: str | os.PathLike[str], name: str, **more: Any) -> Path:
    """Writes a copy of a small model under another architecture's name, to see how an engine reacts to it.

    Args:
        more: metadata to add. A key has no architecture prefix, and underscores stand for dots.
    """

    def change(metadata: dict[str, Any]) -> None:
        old = metadata.pop("general.architecture")
        renamed = {k.replace(f"{old}.", f"{name}.", 1): v for k, v in metadata.items()}
        metadata.clear()
        metadata |= {"general.architecture": name, **renamed}
        metadata |= {f"{name}.{key.replace('_', '.')}": value for key, value in more.items()}

    return write_copy(source, target, change)
