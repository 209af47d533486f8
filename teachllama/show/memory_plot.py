"""The staircase: measured memory, step by step, from a `teachllama.memory.Timeline`."""

from __future__ import annotations

import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from matplotlib.patheffects import withStroke

from teachllama.errors import ParameterError
from teachllama.lessons.common.style import BLUE, BODY, GREEN, INK, SKY, SMALL, VERMILION, dark, drawn, note, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from teachllama.memory import Timeline

ROOM = 0.08  # height of a line of text, about, as a fraction of the tallest tread


@drawn
def staircase(timeline: Timeline, ax: Axes | None = None) -> Figure:
    """Draws resident memory as one tread per named snapshot, labelled with its height and its change in MB.

    Where the system reports what backs the pages (Linux), treads are stacked: pages of mapped files and shared memory
    below, anonymous memory (arrays, Python objects, KV caches) above. The dashed line is the first snapshot.

    Args:
        timeline: the snapshots, at least one.
        ax: the axes to draw on (default: those of a new `Picture`).

    Returns:
        The figure drawn on.

    Raises:
        ParameterError: there is no snapshot yet.
    """
    if not timeline.entries:
        raise ParameterError("this timeline has no snapshots to draw: take() at least one, better two")
    names, usages = zip(*timeline.entries, strict=True)
    n, total = len(names), [now.resident / 1e6 for now in usages]
    fig = None if ax is not None else picture(5.2)
    ax = fig.add_subplot() if fig is not None else cast("Axes", ax)
    edges = range(n + 1)
    size, unit = (BODY, " MB") if n <= 7 else (SMALL if n <= 9 else 9.5, "")

    light: dict[str, Any] = {"facecolor": SKY, "alpha": 0.55, "edgecolor": "none", "linewidth": 0}
    if all(now.anonymous is not None for now in usages):
        files = [(now.resident - now.anonymous) / 1e6 for now in usages]
        ax.stairs(total, edges, baseline=files, fill=True, **light)
        ax.stairs(files, edges, fill=True, facecolor=BLUE, edgecolor="none", linewidth=0)
        for high, low, colour, text in (
            (total, files, INK, "anonymous:\narrays, caches"),
            (files, [0.0] * n, "white", "mapped files"),
        ):
            heights = [round((h - l) / (ROOM * max(total)), 1) for h, l in zip(high, low, strict=True)]
            # Label the tallest tread; among equals the middle one, because a label at the edge would be cut off.
            at = max(range(n), key=lambda i: (heights[i], -abs(i - n // 2)))
            if high[at] - low[at] > ROOM * max(total) * (text.count("\n") + 1):
                middle = (at + 0.5, (high[at] + low[at]) / 2)
                note(ax, text, middle, color=colour, halo=None, ha="center", fontsize=SMALL)
    else:
        ax.stairs(total, edges, fill=True, **light)
    ax.stairs(total, edges, baseline=None, color=INK, linewidth=1.8)

    changes = [after - before for before, after in pairwise(total)]
    over: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": size}
    for i, height in enumerate(total):
        note(ax, f"{_mb(height)}{unit}", (i + 0.5, height), (0, 4), weight="bold", **over)
        if i:
            colour = dark(VERMILION if changes[i - 1] > 0 else GREEN)
            note(ax, _change(changes[i - 1]), (i + 0.5, height), (0, 7 + 1.2 * size), color=colour, **over)
    halo = [withStroke(linewidth=3.5, foreground="white")]
    ax.axhline(total[0], color=INK, linewidth=1.3, linestyle=(0, (5, 3)), zorder=3, path_effects=halo)
    gap = total[-1] - total[0]
    end = f"ends {_mb(abs(gap))} MB\n{'above' if gap > 0 else 'below'} {names[0]}"
    if n > 1:
        end = end if abs(gap) >= 0.05 else f"back at {names[0]}"
        note(ax, end, (n, total[0]), (7, 0), fontsize=SMALL, annotation_clip=False)
    labels = [textwrap.fill(name, max(8, 72 // n), break_long_words=False) for name in names]
    ax.set_xticks([i + 0.5 for i in range(n)], labels, fontsize=size)
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(0, n)
    ax.set_ylim(0, max(total) * 1.16)
    ax.set_ylabel("MB")
    ax.set_title("Resident memory, measured after each step")
    if fig is None:
        return cast("Figure", ax.figure)
    steps = zip(names[1:], total[1:], changes, strict=True)
    words = [f"{names[0]} {_mb(total[0])} MB", *(f"{name} {_mb(x)} MB ({_change(d)})" for name, x, d in steps)]
    fig.alt = f"A staircase of resident memory: {'; '.join(words)}."
    return fig


def _mb(megabytes: float) -> str:
    return f"{megabytes:,.0f}" if megabytes >= 100 else f"{megabytes:,.1f}"


def _change(megabytes: float) -> str:
    return f"{megabytes:+,.1f}".replace("-", "\N{MINUS SIGN}")
