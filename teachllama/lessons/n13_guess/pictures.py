"""The pictures of notebook 13, guess and check, and the smaller model that it makes.

Pictures take numbers that the notebook has computed and return a `Picture`; its `alt` describes it in words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachllama.errors import ParameterError
from teachllama.lessons.common.gguf_copies import write_copy
from teachllama.lessons.common.style import (
    BLUE,
    DASHED,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
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

__all__ = ["bill", "fewer_layers", "gains", "overlap", "passes", "plane", "shares"]


@drawn
def bill(seconds: Sequence[float]) -> Picture:
    """The time of a pass of 1, 2, ... rows, as a multiple of a pass of one row.

    Args:
        seconds: the times of passes of 1, 2, ... rows.
    """
    if len(seconds) < 2 or min(seconds) <= 0:
        raise ParameterError(f"seconds are {list(seconds)}; expected two or more, each above 0")
    rows, times = np.arange(1, len(seconds) + 1), np.asarray(seconds) / seconds[0]
    fig = picture(4.2)
    ax = fig.add_subplot()
    ax.bar(rows, times, color=BLUE, edgecolor=INK, linewidth=0.6, width=0.65)
    for n, t in zip(rows.tolist(), times.tolist(), strict=True):
        note(ax, f"{t:.1f}", (n, t), (0, 9), ha="center", fontsize=SMALL)
    ax.plot(rows, rows, color=dark(VERMILION), linestyle=DASHED)
    note(
        ax, "one at a time", (len(rows) - 1, len(rows) - 1), (-10, 6), ha="right", color=dark(VERMILION), fontsize=SMALL
    )
    ax.set_xticks(rows)
    ax.set_ylim(0, max(len(rows), times.max()) * 1.08)
    ax.set_xlabel("rows of one pass: the new token and its guesses")
    ax.set_ylabel("time, passes of one row")
    ax.grid(True, axis="y")
    fig.alt = "A pass of n rows takes as long as so many passes of one: " + ", ".join(
        f"{n} rows {t:.1f}" for n, t in zip(rows, times, strict=True)
    ) + "."  # fmt: skip
    return fig


@drawn
def passes(rows: Sequence[tuple[Sequence[str], int]]) -> Picture:
    """The tokens that each pass evaluated: the new token, guesses that were right, guesses that were wrong.

    Args:
        rows: for each pass the texts of its tokens, the new one first, and how many guesses were right.
    """
    if not rows or any(not 0 <= right < len(texts) for texts, right in rows):
        raise ParameterError("expected for each pass its texts, and fewer right guesses than texts")
    fig = picture(0.9 + 0.42 * len(rows))
    ax = fig.add_subplot()
    widest = max(len(texts) for texts, _ in rows)
    for y, (texts, right) in enumerate(rows):
        for x, text in enumerate(texts):
            colour = SKY if x == 0 else "#9fdcc8" if x <= right else "white"
            ax.barh(
                y, 0.94, left=x, height=0.8, color=colour, edgecolor=INK if x <= right else FAINT, linewidth=0.8,
                linestyle="-" if x <= right else (0, (3, 2)),
            )  # fmt: skip
            shown = visible(text)
            shown = shown if len(shown) < 12 else shown[:10] + "…"
            ink = INK if x <= right else FAINT
            note(ax, shown, (x + 0.47, y), ha="center", halo=None, color=ink, fontsize=SMALL)
    for x, text, colour in ((0, "new token", SKY), (1, "guess, right", GREEN), (2, "guess, wrong", FAINT)):
        note(ax, text, (x + 0.47, -0.85), ha="center", halo=None, color=dark(colour), fontsize=SMALL)
    ax.set_xlim(-0.05, max(widest, 3))
    ax.set_ylim(len(rows) - 0.5, -1.25)
    ax.set_xticks([])
    ax.set_yticks(range(len(rows)), [f"{n + 1}" for n in range(len(rows))])
    ax.set_ylabel("pass")
    ax.tick_params(axis="y", length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    n_right, n_guessed = sum(r for _, r in rows), sum(len(t) - 1 for t, _ in rows)
    fig.alt = f"{len(rows)} passes; {n_right} of {n_guessed} guesses were right."
    return fig


@drawn
def gains(rows: Mapping[str, tuple[float, float]]) -> Picture:
    """The speed relative to decoding without guesses: measured, and predicted from the bill.

    Args:
        rows: name -> (predicted, measured).
    """
    if not rows:
        raise ParameterError("no gains to show; expected at least one")
    names = list(rows)
    predicted, measured = np.array(list(rows.values())).T
    fig = picture(1.5 + 0.55 * len(names))
    ax = fig.add_subplot()
    y = np.arange(len(names))
    colours = [BLUE if m >= 1 else ORANGE for m in measured]
    ax.barh(y, measured, color=colours, edgecolor=INK, linewidth=0.6, height=0.55)
    ax.scatter(predicted, y, marker="D", s=52, color="white", edgecolor=INK, linewidth=1.4, zorder=3)
    ax.axvline(1, color=INK, linewidth=1.4)
    for i, (p, m) in enumerate(zip(predicted, measured, strict=True)):
        note(ax, f"{m:.2f}", (max(p, m), i), (12, 0), fontsize=SMALL)
    ax.set_yticks(y, names, parse_math=False)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, max(predicted.max(), measured.max()) * 1.15)
    ax.set_xlabel("times as fast as without guesses (bar: measured, diamond: predicted)")
    ax.grid(True, axis="x")
    fig.alt = "Times as fast as without guesses: " + ", ".join(
        f"{name} {m:.2f} (predicted {p:.2f})" for name, (p, m) in rows.items()
    ) + "."  # fmt: skip
    return fig


@drawn
def overlap(p: Sequence[float], q: Sequence[float], names: Sequence[str]) -> Picture:
    """Two distributions side by side: the part that guesses can cover, and the rest."""
    if not len(p) == len(q) == len(names):
        raise ParameterError(f"{len(p)}, {len(q)} and {len(names)} values; expected as many of each")
    model, draft, x = np.asarray(p, float), np.asarray(q, float), np.arange(len(p))
    both = np.minimum(model, draft)
    fig = picture(4.4)
    ax = fig.add_subplot()
    style: Any = {"edgecolor": INK, "linewidth": 0.6, "width": 0.36}
    ax.bar(x - 0.19, both, color=GREEN, **style)
    ax.bar(x - 0.19, model - both, bottom=both, color=SKY, **style)
    ax.bar(x + 0.19, both, color="#bfe5da", **style)
    ax.bar(x + 0.19, draft - both, bottom=both, color="white", hatch="//", **style)
    for i in x:
        note(ax, "p", (i - 0.19, model[i]), (0, 9), ha="center", fontsize=SMALL)
        note(ax, "q", (i + 0.19, draft[i]), (0, 9), ha="center", fontsize=SMALL)
    ax.set_xticks(x, names, parse_math=False)
    ax.set_ylabel("probability")
    ax.set_ylim(0, max(model.max(), draft.max()) * 1.3)
    for at, text, colour in (
        (0.98, "in both: guesses that are kept", GREEN),
        (0.90, "missing: drawn when a guess is not kept", SKY),
        (0.82, "too much: guesses that are not kept", FAINT),
    ):
        ax.text(0.99, at, text, transform=ax.transAxes, ha="right", va="top", color=dark(colour), fontsize=SMALL)
    fig.alt = f"Two distributions over {', '.join(names)}; {both.sum():.0%} of each is in both."
    return fig


@drawn
def shares(p: Sequence[float], drawn_shares: Mapping[str, Sequence[float]], names: Sequence[str]) -> Picture:
    """How often each token was drawn by each rule, as a multiple of its probability.

    Args:
        p: the right probabilities, none 0.
        drawn_shares: a rule's name -> how often each token came.
        names: the tokens' names.
    """
    right, x = np.asarray(p, float), np.arange(len(p))
    if not len(right) or right.min() <= 0:
        raise ParameterError(f"probabilities are {list(p)}; expected each above 0")
    fig = picture(4.4)
    ax = fig.add_subplot()
    colours, markers, most = (BLUE, VERMILION, PURPLE, ORANGE), "osD^", 1.5
    for i, (name, share) in enumerate(drawn_shares.items()):
        ratio = np.asarray(share) / right
        most = max(most, float(ratio.max()))
        place = x + 0.16 * (i - (len(drawn_shares) - 1) / 2)
        ax.scatter(
            place, ratio, color=colours[i % 4], marker=markers[i % 4], s=70, edgecolor=INK, linewidth=0.6, zorder=3
        )
        ax.text(
            0.99, 0.98 - 0.08 * i, f"{'●■◆▲'[i % 4]} {name}", transform=ax.transAxes, ha="right", va="top",
            color=dark(colours[i % 4]), fontsize=SMALL,
        )  # fmt: skip
    ax.axhline(1, color=INK, linewidth=1.2)
    ax.set_ylim(0, most * (1.1 + 0.1 * len(drawn_shares)))
    ax.set_xticks(x, names, parse_math=False)
    ax.set_ylabel("drawn / right")
    ax.grid(True, axis="y")
    off = {name: float(np.abs(np.asarray(s) / right - 1).max()) for name, s in drawn_shares.items()}
    fig.alt = "Furthest from the right share of a token: " + ", ".join(f"{n} {v:.0%}" for n, v in off.items()) + "."
    return fig


@drawn
def plane(pass_cost: float, k: int, drafts: Mapping[str, tuple[float, float, float]]) -> Picture:
    """The gain of k guesses against their acceptance, for drafts that cost more or less.

    Args:
        pass_cost: the cost of a pass of k + 1 rows, in passes of one row.
        k: how many guesses.
        drafts: name -> (acceptance, cost of one guess in passes of one row, measured gain).
    """
    if pass_cost <= 0 or k < 1:
        raise ParameterError(f"a pass costs {pass_cost} with {k} guesses; expected a cost above 0, and a guess")
    a = np.linspace(0, 1, 101)
    tokens = np.sum([a**i for i in range(k + 1)], axis=0)
    fig = picture(5.2)
    ax = fig.add_subplot()
    for cost, colour in ((0.0, BLUE), (0.1, SKY), (0.3, GREEN), (0.8, PURPLE)):
        gain = tokens / (pass_cost + k * cost)
        ax.plot(a, gain, color=colour)
        text = "guesses cost nothing" if not cost else f"each costs {cost:g} passes"
        note(ax, text, (1, float(gain[-1])), (8, 0), color=dark(colour), fontsize=SMALL)
    ax.plot([0, 1], [1, 1], color=INK, linewidth=1.4)
    for i, (name, (share, cost, gain)) in enumerate(drafts.items()):
        ax.scatter([share], [gain], color=ORANGE, s=90, edgecolor=INK, linewidth=1, zorder=4)
        side = -1 if share > 0.6 else 1
        place = "right" if side < 0 else "left"
        note(ax, f"{name} ({cost:.2f})", (share, gain), (10 * side, 10 if i % 2 else -10), ha=place, fontsize=SMALL)
    ax.set_xlim(0, 1.32)  # leaves room for the curves' names
    ax.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    ax.set_ylim(0, (k + 1) / pass_cost * 1.05)
    ax.set_xlabel("acceptance: how often a guess is right, if those before it were")
    ax.set_ylabel(f"times as fast, {k} guesses")
    ax.grid(True)
    fig.alt = "Measured: " + ", ".join(
        f"{name}: acceptance {share:.0%}, a guess costs {cost:.2f} passes, {gain:.2f} times as fast"
        for name, (share, cost, gain) in drafts.items()
    ) + "."  # fmt: skip
    return fig


# The smaller model ----------------------------------------------------------------------------------------------------


def fewer_layers(source: str | os.PathLike[str], target: str | os.PathLike[str], keep: Sequence[int]) -> Path:
    """Writes a copy of a model file with only some of its layers.

    Args:
        keep: numbers of the layers, in their new order.

    Raises:
        ParameterError: a layer does not exist or is listed twice, or none is kept.
    """
    new = {old: i for i, old in enumerate(keep)}

    def change(metadata: dict[str, Any]) -> None:
        key = f"{metadata['general.architecture']}.block_count"
        if not keep or not all(0 <= i < metadata[key] for i in keep) or len(new) < len(keep):
            raise ParameterError(f"keep is {list(keep)}; expected different numbers from 0 to {metadata[key] - 1}")
        metadata[key] = len(keep)

    def rename(name: str) -> str | None:
        of_layer = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
        if of_layer is None:
            return name
        at = new.get(int(of_layer[1]))
        return None if at is None else f"blk.{at}.{of_layer[2]}"

    return write_copy(source, target, change, rename)
