"""The picture of `teachllama kv --plot`: KV-cache bytes against context, on logarithmic axes.

Needs matplotlib (the `lab` extra), imported only when something is drawn. Colours are Okabe and Ito's, which
colour-blind readers can distinguish; line styles differ in black and white too. Independent of model files and the
engine.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Any

from teachllama.errors import ParameterError, TeachLlamaError
from teachllama.kv import MAX_SEQ_LEN, KVLayout, format_nbytes, longest_seq_len

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES: dict[str, tuple[str, Any]] = {"f32": ("#0072B2", "-"), "f16": ("#D55E00", (0, (6, 2)))}  # blue, vermilion
WEIGHTS, MEMORY, INK = ("#009E73", "-."), ("#CC79A7", (0, (1, 1))), "#333333"  # green, purple, text
WIDTH, HEIGHT = 8.0, 5.0  # inches


def save_kv_plot(
    path: str, layout: KVLayout, name: str, *, weights: int = 0, memory: int | None = None, sessions: int = 1
) -> None:
    """Draws `plot_kv` into a file, in the format of its suffix.

    Raises:
        TeachLlamaError: matplotlib is missing, or the file cannot be written.
        ParameterError: the model keeps no KV cache.
    """
    figure = plot_kv(layout, name, weights=weights, memory=memory, sessions=sessions)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as e:  # ValueError: a suffix that matplotlib does not know
        raise TeachLlamaError(f"the plot cannot be written to {path!r}: {e}") from None


def plot_kv(layout: KVLayout, name: str, *, weights: int = 0, memory: int | None = None, sessions: int = 1) -> Figure:
    """KV-cache bytes of `sessions` sessions against tokens of context, in f32 and f16.

    Args:
        layout: the model's KV layout.
        name: the model's name, for the title.
        weights: bytes of the weights, drawn as a horizontal line; 0 for none.
        memory: bytes of memory, drawn as the part of it that the weights (and recurrent state) leave free.
        sessions: number of concurrent sessions, each with its own cache.

    Raises:
        TeachLlamaError: matplotlib is missing.
        ParameterError: the model keeps no KV cache.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patheffects import withStroke
    except ImportError:
        raise TeachLlamaError(
            "a plot needs matplotlib, which is not installed: pip install 'teachllama[lab]'"
        ) from None
    if not layout.groups:
        raise ParameterError(f"{layout.arch!r} models keep no KV cache: there is nothing to plot")

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    ax = figure.add_subplot()
    halo: dict[str, Any] = {
        "path_effects": [withStroke(linewidth=3, foreground="white")],
        "textcoords": "offset points",
    }
    native, window = layout.native_seq_len, layout.window
    low, high = max(1, native // 256), min(native * 4, MAX_SEQ_LEN)
    contexts = sorted({round(low * (high / low) ** (i / 200)) for i in range(201)} | {window or low})
    room = None if memory is None else memory - weights - sessions * layout.state_nbytes
    holds: list[str] = []
    ends: list[tuple[float, str, str]] = []  # (bytes, text, colour) of the lines that leave the axes at the right
    for dtype, (colour, dashes) in STYLES.items():

        def nbytes(n: int, swa_full: bool = False, dtype: str = dtype) -> int:
            return layout.bytes(n, dtype, sessions, swa_full)

        ax.plot(contexts, [nbytes(n) for n in contexts], color=colour, linestyle=dashes, linewidth=2.4, zorder=4)
        ends.append((nbytes(high), dtype, colour))
        if window is not None and window < high:
            beyond = [n for n in contexts if n >= window]
            ax.plot(beyond, [nbytes(n, True) for n in beyond], color=colour, linestyle=":", linewidth=1.5, zorder=3)
            ends.append((nbytes(high, True), f"{dtype}, no windows", colour))
        upper = dtype == "f32"  # figures of f32 go above and to the left of the line, of f16 below and to the right
        place: dict[str, Any] = {"xytext": (-7, 4), "ha": "right", "va": "bottom"}
        if not upper:
            place = {"xytext": (7, -4), "ha": "left", "va": "top"}
        ax.plot(native, nbytes(native), "o", color=colour, markersize=6, zorder=6)
        ax.annotate(format_nbytes(nbytes(native)), (native, nbytes(native)), color=colour, zorder=7, **place, **halo)
        longest = longest_seq_len(layout, room, dtype, sessions) if room and room > 0 else None
        if room and longest:
            holds.append(f"{longest:,} in {dtype}")
            if low < longest < high:
                ax.plot(longest, room, "D", color=colour, markersize=6, markeredgecolor="white", zorder=6)

    for level, text, (colour, dashes) in (
        (weights, f"weights {format_nbytes(weights)}", WEIGHTS),
        (room or 0, f"{format_nbytes(memory or 0)} less the weights", MEMORY),
    ):
        if level > 0:
            ax.axhline(level, color=colour, linestyle=dashes, linewidth=1.8, zorder=2)
            ends.append((level, text, colour))
    ax.axvline(native, color=INK, linewidth=0.8, alpha=0.6, zorder=1)
    ax.annotate(
        f"native context {native:,}", (native, 0), xycoords=("data", "axes fraction"), xytext=(-5, 6), rotation=90,
        ha="right", va="bottom", color=INK, fontsize=9, **halo,
    )  # fmt: skip
    _dress(ax, low, high)
    _name_lines(ax, ends)
    whose = "one session" if sessions == 1 else f"{sessions:,} sessions"
    name = (name if len(name) <= 50 else f"{name[:47]}...").replace("$", r"\$")  # matplotlib reads $ as mathematics
    title = f"KV cache of {whose}: {name}"
    ax.set_title(title, loc="left", color=INK, pad=24 if holds else 8)
    if holds:
        text = f"{format_nbytes(memory or 0)} hold the weights and, in tokens of context, {' or '.join(holds)}"
        ax.annotate(text, (0, 1), xycoords="axes fraction", xytext=(0, 8), color=INK, fontsize=9, **halo)
    return figure


def _dress(ax: Axes, low: int, high: int) -> None:
    """Sets logarithmic axes with ticks in tokens (a factor of four apart) and in bytes, a faint grid, and no box."""
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    tokens = [4**i for i in range(30) if low <= 4**i <= high]
    ax.set_xticks(tokens, [f"{t:,}" for t in tokens])
    bottom, top = ax.get_ylim()
    powers = [10**i for i in range(25) if bottom <= 10**i <= top]
    ax.set_yticks(powers, [format_nbytes(p) for p in powers])
    ax.minorticks_off()
    ax.set_xlabel("context, tokens", color=INK)
    ax.set_ylabel("memory (1 MB = 10⁶ bytes)", color=INK)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _name_lines(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Writes each line's name where it leaves the axes, and moves names apart that are too close."""
    bottom, top = ax.get_ylim()
    ends = sorted(ends)
    heights = [log(nbytes / bottom) / log(top / bottom) for nbytes, _, _ in ends]  # as fractions of the axes
    apart = 14 / (72 * HEIGHT * 0.8)  # 14 points; the axes take about four fifths of the figure
    for _ in range(100):
        for i in range(len(heights) - 1):
            if (overlap := apart - (heights[i + 1] - heights[i])) > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    for height, (_, text, colour) in zip(heights, ends, strict=True):
        ax.annotate(
            text, (1, height), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points", va="center",
            color=colour,
        )  # fmt: skip
