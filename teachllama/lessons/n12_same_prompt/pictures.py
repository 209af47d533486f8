"""The pictures of notebook 12, same prompt, another answer.

Pictures take numbers that the notebook has computed and return a `Picture`; its `alt` describes it in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, NullLocator

from teachllama.errors import ParameterError
from teachllama.lessons.common.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SMALL,
    VERMILION,
    Picture,
    count_axis,
    dark,
    drawn,
    name_at_edge,
    note,
    picture,
    visible,
)


class Change(NamedTuple):
    """One change while the prompt stayed the same, and the difference in the logits."""

    what: str
    kind: str  # "promised": the same bits promised; "order": the same sums in another order; "numbers": other numbers
    difference: float  # the largest among the logits; 0: bit for bit the same


KINDS = {"promised": (GREEN, "o"), "order": (BLUE, "s"), "numbers": (VERMILION, "D")}
_MEANINGS = {"promised": "promised: the same bits", "order": "sums in another order", "numbers": "other numbers"}


class Changes:
    """A table of changes and whether they alter bits; `draw` makes a picture of it."""

    def __init__(self, rows: Sequence[Change]):
        if not rows or any(r.kind not in KINDS or not 0 <= r.difference < np.inf for r in rows):
            raise ParameterError(f"rows are {list(rows)!r:.200}; expected changes with a kind of {', '.join(KINDS)}")
        self.rows = list(rows)

    def _cells(self) -> list[tuple[str, str, str, str]]:
        return [
            (r.what, _MEANINGS[r.kind], "no" if r.difference else "yes", f"{r.difference:.1e}" if r.difference else "0")
            for r in self.rows
        ]

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left'>"
        head = "".join(
            f"<th style='text-align:left'>{x}</th>" for x in ("what is changed", "", "same bits", "largest difference")
        )
        body = "".join(f"<tr>{''.join(cell + escape(x) + '</td>' for x in row)}</tr>" for row in self._cells())
        return f"<table><tr>{head}</tr>{body}</table>"

    def __repr__(self) -> str:
        return "\n".join(f"{what} ({kind}): same bits: {same}; {by}" for what, kind, same, by in self._cells())

    @drawn
    def draw(self, gap: float) -> Picture:
        """Each change's largest difference on a logarithmic scale; changes that altered no bit are at the left.

        Args:
            gap: the gap between the two highest logits. A difference beyond half of it can change the next word.
        """
        if not 0 < gap < np.inf:
            raise ParameterError(f"the gap is {gap}; expected a number above 0")
        fig = picture(1.5 + 0.36 * len(self.rows))
        ax = fig.add_subplot()
        rows = sorted(self.rows, key=lambda r: list(KINDS).index(r.kind))
        moved = [r.difference for r in rows if r.difference] or [1e-5]
        low, high = min(1e-6, min(moved) / 3), max(100.0, 30 * max(moved), 30 * gap)
        zero = low / 30
        for i, r in enumerate(rows):
            colour, mark = KINDS[r.kind]
            x = r.difference or zero
            ax.plot([zero, x], [i, i], color=colour, linewidth=1.6, alpha=0.6)
            ax.plot([x], [i], marker=mark, color=colour, markersize=8, markeredgecolor=INK, markeredgewidth=0.6)
            text = f"{r.difference:.1g}" if r.difference else "the same bits"
            note(ax, text, (x, i), (9, 0), fontsize=SMALL, color=dark(colour))
        ax.axvspan(gap / 2, high, color=ORANGE, alpha=0.18, linewidth=0)
        ax.set_xscale("log")
        ax.set_xlim(zero / 2, high)
        ax.set_ylim(len(rows) - 0.4, -1.3)
        note(ax, "could change\nthe word", (high, -0.7), (-4, 0), ha="right", fontsize=SMALL, color=dark(ORANGE))
        ax.set_yticks(range(len(rows)), [r.what for r in rows], fontsize=SMALL, parse_math=False)
        ax.tick_params(axis="y", length=0)
        first = int(np.ceil(np.log10(low)))
        ax.set_xticks([10.0**e for e in range(first, int(np.floor(np.log10(high))) + 1, 2)])
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("largest difference of a logit")
        ax.grid(True, axis="x")
        same = [r.what for r in self.rows if not r.difference]
        rest = [f"{r.what} {r.difference:.0e}" for r in self.rows if r.difference]
        fig.alt = f"The same bits: {', '.join(same) or 'none'}. Largest differences: {', '.join(rest) or 'none'}."
        return fig


@drawn
def orders(sums: Sequence[float], exact: float) -> Picture:
    """How often each result occurred when the same numbers were added in many orders, in float32.

    Args:
        sums: one result for each order.
        exact: the sum without rounding.
    """
    values, counts = np.unique(np.asarray(sums, np.float32), return_counts=True)
    if not len(values) or not np.isfinite(values).all():
        raise ParameterError("no sums, or one that is not a number")
    fig = picture(3.4)
    ax = fig.add_subplot()
    off = (values.astype(np.float64) - exact) / np.spacing(np.float32(abs(exact)))
    ax.vlines(off, 0, counts, color=BLUE, linewidth=4 if len(values) < 60 else 2)
    ax.axvline(0, color=dark(VERMILION), linewidth=1.6)
    note(ax, "the exact sum", (0, counts.max() * 1.13), (6, 0), fontsize=SMALL, color=dark(VERMILION))
    ax.set_ylim(0, counts.max() * 1.22)
    ax.set_xlabel("result, in steps of float32 from the exact sum")
    ax.set_ylabel("how many orders")
    fig.alt = (
        f"{len(sums):,} orders gave {len(values)} results, from {off.min():+.0f} to {off.max():+.0f} steps of float32."
    )
    return fig


@drawn
def where_they_part(chances: Mapping[str, np.ndarray], parted: Mapping[str, int]) -> Picture:
    """One strip per text, one cell per step: dark where the two best logits are close, a cross where the runs parted.

    Args:
        chances: text -> the chance at each step that another engine chooses another token, (n,) from 0 to 0.5.
        parted: text -> the step at which the runs parted; n or more: never.
    """
    if not chances or chances.keys() != parted.keys() or len({len(c) for c in chances.values()}) != 1:
        raise ParameterError("expected strips of one length, and for each where they parted")
    table = np.array(list(chances.values()))
    n = table.shape[1]
    fig = picture(1.7 + 0.5 * len(table))
    ax = fig.add_subplot()
    shown = ax.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=0.5, interpolation="nearest")
    for i, (row, step) in enumerate(zip(table, parted.values(), strict=True)):
        likeliest = int(row.argmax())
        ax.plot(
            [likeliest],
            [i],
            marker="o",
            markersize=16,
            markerfacecolor="none",
            markeredgecolor=ORANGE,
            mew=2,
            clip_on=False,
        )
        if step < n:
            ax.plot([step], [i], marker="x", markersize=10, markeredgecolor=VERMILION, mew=3, clip_on=False)
        else:
            note(ax, "never", (n - 1, i), (16, 0), fontsize=SMALL, annotation_clip=False, color=dark(VERMILION))
    names = [visible(x).replace("␣", " ") for x in chances]
    names = [x if len(x) <= 22 else x[:21] + "…" for x in names]
    ax.set_yticks(range(len(table)), names, fontsize=SMALL, parse_math=False)
    ax.set_yticks(np.arange(0.5, len(table) - 1), minor=True)
    ax.grid(True, axis="y", which="minor", color="white", linewidth=3)
    ax.tick_params(axis="y", which="both", length=0, pad=10)
    count_axis(ax.xaxis, "step of the text")
    bar = fig.colorbar(shown, ax=ax, pad=0.08, ticks=[0, 0.25, 0.5])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    bar.set_label("chance to part here", fontsize=SMALL)
    parts = [f"{name!r} at {step}" if step < n else f"{name!r} never" for name, step in parted.items()]
    guesses = [f"{name!r} {int(row.argmax())}" for name, row in chances.items()]
    fig.alt = f"They parted: {', '.join(parts)}. Likeliest step: {', '.join(guesses)}."
    return fig


@drawn
def gelu_table(x: np.ndarray, exact: np.ndarray, table: np.ndarray, near: float = 1.0) -> Picture:
    """GELU computed and looked up: a small part magnified, and the error of the table over the whole range.

    Args:
        x, exact, table: (n,) each, x ascending.
        near: the middle of the magnified part.
    """
    if not (len(x) == len(exact) == len(table) and len(x) > 10 and x[0] < near < x[-1]):
        raise ParameterError("x, exact and table are of several lengths, or do not reach around the piece to look at")
    fig = picture(3.9)
    left, right = fig.subplots(1, 2)
    part = np.abs(x - near) < 0.003
    left.plot(x[part], exact[part], color=BLUE)
    left.step(x[part], table[part], where="mid", color=VERMILION, linewidth=1.8)
    left.set_xticks([near - 0.002, near, near + 0.002])
    left.tick_params(labelsize=SMALL)
    note(left, "the table", (0.55, 0.12), xycoords="axes fraction", color=dark(VERMILION), fontsize=SMALL)
    note(left, "GELU", (0.1, 0.6), xycoords="axes fraction", color=dark(BLUE), fontsize=SMALL)
    left.set_xlabel("x")
    right.plot(x, (table - exact) * 1000, color=VERMILION, linewidth=0.7)
    right.set_xlabel("x")
    right.set_ylabel("error of the table, thousandths", fontsize=SMALL)
    right.tick_params(labelsize=SMALL)
    right.grid(True, axis="y")
    worst = float(np.abs(table - exact).max())
    fig.alt = f"Around {near:g} the table is a staircase beside a smooth curve; its error is at most {worst:.1e}."
    return fig


@drawn
def growth(curves: Mapping[str, Sequence[float]]) -> Picture:
    """How far two passes are apart after each layer: one line per pair of passes, on a logarithmic scale.

    Args:
        curves: name -> the difference after the embeddings, after layer 0, after layer 1, ...; zeros are left out.
    """
    if not curves or len({len(c) for c in curves.values()}) != 1 or not any(any(c) for c in curves.values()):
        raise ParameterError("expected curves of one length, not all zero")
    fig = picture(4.2)
    ax = fig.add_subplot()
    colours = (VERMILION, PURPLE, BLUE, GREEN)
    ax.set_yscale("log")
    labels, n = [], 0
    for i, (name, curve) in enumerate(curves.items()):
        y, n = np.array(curve, float), len(curve)
        y[y <= 0] = np.nan
        ax.plot(range(n), y, color=colours[i % len(colours)], marker="o", markersize=4)
        if np.isfinite(y).any():
            labels.append((float(y[np.isfinite(y)][-1]), name, colours[i % len(colours)], False))
    ax.set_xlim(-0.3, n - 0.7)
    count_axis(ax.xaxis, "layers passed")
    ax.set_ylabel("largest difference / typical size")
    ax.grid(True, axis="y", color=FAINT, alpha=0.3)
    name_at_edge(ax, labels, 3.3)
    ends = ", ".join(f"{name.replace(chr(10), ' ')} {curve[-1]:.0e}" for name, curve in curves.items())
    fig.alt = f"Differences after the last layer: {ends}."
    return fig


class Promises:
    """A table of promises, each with the section that shows it and the measured figure."""

    def __init__(self, rows: Sequence[tuple[str, str, str]]):
        self.rows = list(rows)  # (promise, section, figure)

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left'>"
        head = "".join(f"<th style='text-align:left'>{x}</th>" for x in ("promise", "shown in", "measured here"))
        body = "".join(f"<tr>{''.join(cell + escape(x) + '</td>' for x in row)}</tr>" for row in self.rows)
        return f"<table><tr>{head}</tr>{body}</table>"

    def __repr__(self) -> str:
        return "\n".join(f"{promise} ({section}): {figure}" for promise, section, figure in self.rows)
