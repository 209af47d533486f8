"""The pictures of notebook 11, fewer bits. Each function takes numbers that the notebook has computed and returns a
`Picture`; its `alt` describes it in words.

Independent of models, sessions and clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from teachllama.errors import ParameterError
from teachllama.lessons.common.style import (
    BLUE,
    DASHED,
    DOTTED,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    SOLID,
    VERMILION,
    Picture,
    bytes_axis,
    count_axis,
    dark,
    drawn,
    format_bytes,
    name_at_edge,
    name_in_gaps,
    note,
    picture,
    power_of_ten,
)
from teachllama.lessons.n11_bits.formats import LAYOUTS, bits_per_weight

LEAST = 1e-13  # nats; smaller values are only rounding
PER_ROW = 16  # bytes of a block drawn side by side


def _needed(what: str, things: Sequence[object] | Mapping[str, object]) -> None:
    if not things:
        raise ParameterError(f"no {what} to draw; expected at least one")


def nats(value: float) -> str:
    """2.3e-4 -> '2.3 × 10⁻⁴'; below `LEAST`, '0'."""
    if value < LEAST:
        return "0"
    return power_of_ten(value)


@drawn
def paper(kind: str) -> Picture:
    """A block of a format, one square per byte, coloured by its field.

    Args:
        kind: one of `LAYOUTS`.
    """
    if kind not in LAYOUTS:
        raise ParameterError(f"kind is {kind!r}; expected one of {', '.join(LAYOUTS)}")
    weights, fields = LAYOUTS[kind]
    n_bytes = sum(f.how_many * f.bits for f in fields) // 8
    rows = -(-n_bytes // PER_ROW)
    fig = picture(0.95 + 0.36 * max(rows, len(fields)))
    ax = fig.add_subplot()
    colours = {"numbers": SKY, "scale": ORANGE, "minimum": GREEN, "scales": PURPLE, "minima": GREEN}
    colours |= {"scale of scales": ORANGE, "scale of minima": VERMILION}
    begin, texts = 0.0, []
    for i, field in enumerate(fields):
        end = begin + field.how_many * field.bits / 8
        for byte in range(int(begin), int(np.ceil(end))):  # a byte that two fields share is drawn in parts
            left, right = max(begin, byte) - byte, min(end, byte + 1) - byte
            xy = (byte % PER_ROW + left, -(byte // PER_ROW) - 1)
            ax.add_patch(Rectangle(xy, right - left, 1, facecolor=colours[field.name], edgecolor="white", linewidth=1))
            if field.name == "numbers" and field.bits == 4:
                ax.plot([xy[0] + 0.5] * 2, [xy[1] + 0.15, xy[1] + 0.85], color="white", linewidth=0.8)
        times = f"{field.how_many} × " if field.how_many > 1 else ""
        at = -rows / 2 - (i - (len(fields) - 1) / 2) * 1.0 - 0.1
        ax.add_patch(Rectangle((PER_ROW + 0.6, at - 0.3), 0.6, 0.6, facecolor=colours[field.name], linewidth=0))
        note(ax, f"{field.name}: {times}{field.bits} bits", (PER_ROW + 1.5, at))
        texts.append(f"{field.name} {times}{field.bits} bits")
        begin = end
    ax.set_xlim(-0.1, PER_ROW + 11)
    ax.set_ylim(min(-rows, -rows / 2 - len(fields) / 2) - 0.2, max(0, -rows / 2 + len(fields) / 2) + 0.2)
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_title(f"{kind}: {weights} weights in {n_bytes} bytes, {bits_per_weight(kind):g} bits per weight")
    fig.alt = f"A block of {kind}, {n_bytes} bytes for {weights} weights: {', '.join(texts)}."
    return fig


@drawn
def marks(x: np.ndarray, rounded: np.ndarray, levels: np.ndarray, kind: str) -> Picture:
    """Weights of a block, the marks of its format, and the mark that each weight gets.

    Args:
        x, rounded: (n,), the weights before and after rounding.
        levels: all marks of the block.
        kind: the format's name.
    """
    if x.ndim != 1 or x.shape != rounded.shape or not len(levels):
        raise ParameterError(f"{x.shape} weights, {rounded.shape} rounded, {len(levels)} marks")
    fig = picture(3.6)
    ax = fig.add_subplot()
    for level in levels:
        ax.axhline(level, color="#cccccc" if len(levels) < 40 else "#e8e8e8", linewidth=0.8)
    places = np.arange(len(x))
    ax.vlines(places, np.minimum(x, rounded), np.maximum(x, rounded), color=VERMILION, linewidth=2)
    ax.plot(places, x, "o", color=BLUE, markersize=6)
    ax.plot(places, rounded, "_", color=INK, markersize=9, markeredgewidth=1.8)
    ax.set_xlim(-1, len(x))
    ax.set_xlabel("weight of the block")
    ax.set_ylabel("value")
    ax.set_title(f"{kind}: {len(levels)} marks; dots are weights, red is the error")
    off = np.abs(rounded - x)
    fig.alt = f"{len(x)} weights and {len(levels)} marks of {kind}; the largest error is {off.max():.4f}."
    return fig


@drawn
def errors(found: Mapping[str, np.ndarray], spread: float) -> Picture:
    """A histogram of rounding errors for each format, one below the other.

    Args:
        found: name -> errors.
        spread: the weights' own root mean square; errors are shown as shares of it.
    """
    _needed("errors", found)
    fig = picture(1.1 + 1.15 * len(found))
    axes = np.atleast_1d(fig.subplots(len(found), 1, sharex=True))
    widest = max(float(np.quantile(np.abs(e), 0.999)) for e in found.values()) / spread
    texts = []
    for ax, (name, e), colour in zip(axes, found.items(), (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY), strict=False):
        ax.hist(e.ravel() / spread, bins=np.linspace(-widest, widest, 121), color=colour)
        rms = float(np.sqrt(np.mean(np.square(e, dtype=np.float64)))) / spread
        note(ax, f"{name}\nerror {rms:.2%}", (0.01, 0.62), xycoords="axes fraction", fontsize=SMALL, color=dark(colour))
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        texts.append(f"{name} {rms:.2%}")
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
    axes[-1].set_xlabel("error, as a share of the weights' root mean square")
    fig.alt = "Histograms of errors; root mean square: " + ", ".join(texts) + "."
    return fig


@drawn
def block_sizes(sizes: Sequence[int], plain: Sequence[float], spoiled: Sequence[float]) -> Picture:
    """Error against the number of weights that share a scale, with and without one outlier.

    Args:
        sizes: weights per block.
        plain, spoiled: root mean square error without and with the outlier, as a share of the weights'.
    """
    _needed("sizes", sizes)
    fig = picture(4.4)
    ax = fig.add_subplot()
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.plot(sizes, spoiled, "s-", color=VERMILION)
    ax.plot(sizes, plain, "o-", color=BLUE)
    ax.set_xlim(min(sizes) / 1.3, max(sizes) * 1.1)
    ax.xaxis.set_major_locator(FixedLocator(list(sizes)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(list(sizes), [f"{n:,}\n{4 + 16 / n:.3g}" for n in sizes], fontsize=SMALL)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1.0]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
    ax.set_ylim(0.6 * min(*plain, *spoiled), 1.7 * max(*plain, *spoiled))
    name_at_edge(ax, [(spoiled[-1], "one weight\n30 times\nas large", VERMILION, True),
                      (plain[-1], "as they are", BLUE, True)], 3.4)  # fmt: skip
    ax.grid(True)
    ax.set_xlabel("weights that share a scale; below, bits per weight")
    ax.set_ylabel("error of the other weights")
    ax.set_title("Four bits, and blocks of another size")
    fig.alt = "Error of four-bit weights: " + "; ".join(
        f"blocks of {n:,}: {a:.1%}, with an outlier {b:.1%}" for n, a, b in zip(sizes, plain, spoiled, strict=True)
    )
    return fig


class Price(NamedTuple):
    """The size of a format and its divergence."""

    name: str
    nbytes: int  # of the weights
    divergence: float  # mean KL divergence from the wide weights, nats
    in_file: bool = True  # False: no file can hold this model in the format; the bytes are hypothetical


@drawn
def price(rows: Sequence[Price]) -> Picture:
    """KL divergence against bytes, one point per format. The best place is at the lower left."""
    _needed("formats", rows)
    fig = picture(5.8)
    ax = fig.add_subplot()
    ax.set_xscale("log")
    ax.set_yscale("log")
    for row in rows:
        y = max(row.divergence, LEAST)
        face = PURPLE if row.in_file else "white"
        ax.plot(row.nbytes, y, "D", color=face, markeredgecolor=INK if row.in_file else PURPLE, markersize=7)
    low, high = (f(r.nbytes for r in rows) for f in (min, max))
    values = [max(r.divergence, LEAST) for r in rows]
    ax.set_xlim(low / 1.25, high * 1.35)
    ax.set_ylim(min(values) / 4, max(values) * 5)
    labels = [((float(r.nbytes), max(r.divergence, LEAST)), r.name, PURPLE, False) for r in rows]
    name_in_gaps(ax, labels, (7.4, 4.4))
    ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: format_bytes(v)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(True)
    ax.set_xlabel("bytes of the weights")
    ax.set_ylabel("mean KL divergence, nats")
    ax.set_title("What fewer bytes cost: farther left is smaller, farther down is nearer")
    fig.alt = "KL divergence against bytes: " + "; ".join(
        f"{r.name} {format_bytes(r.nbytes)}, {nats(r.divergence)}" for r in rows
    )
    return fig


@drawn
def minds(rows: Sequence[tuple[str, float, float]]) -> Picture:
    """The divergence when one kind of matrix alone has four bits, beside the kind's share of the weights.

    Args:
        rows: (name, KL divergence in nats, share of all weights).
    """
    _needed("matrices", rows)
    rows = sorted(rows, key=lambda r: -r[1])
    fig = picture(1.5 + 0.42 * len(rows))
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(rows))
    left.barh(places, [r[1] for r in rows], color=PURPLE, edgecolor=INK, linewidth=0.6, height=0.66)
    right.barh(places, [r[2] for r in rows], color=SKY, edgecolor=INK, linewidth=0.6, height=0.66)
    for i, (_, kl, share) in enumerate(rows):
        note(left, nats(kl), (kl, i), (6, 0), fontsize=SMALL)
        note(right, f"{share:.0%}", (share, i), (6, 0), fontsize=SMALL)
    left.set_yticks(places, [r[0] for r in rows], parse_math=False)
    left.invert_yaxis()
    left.set_xlim(0, 1.35 * rows[0][1])
    right.set_xlim(0, 1.35 * max(r[2] for r in rows))
    for ax, label in ((left, "KL divergence, nats"), (right, "share of the weights")):
        ax.tick_params(axis="y", length=0)
        ax.set_xticks([])
        ax.set_xlabel(label)
    left.set_title("Only this in four bits")
    fig.alt = "Four bits for one kind of matrix: " + "; ".join(f"{n} {nats(k)}, {s:.0%} of weights" for n, k, s in rows)
    return fig


_LINES = ((BLUE, SOLID), (GREEN, DASHED), (ORANGE, SOLID), (VERMILION, DASHED), (PURPLE, DOTTED), (INK, SOLID))


@drawn
def by_position(positions: np.ndarray, found: Mapping[str, np.ndarray], window: int = 16) -> Picture:
    """KL divergence along a text, one line per type of cache. Each point is the mean of some positions.

    Args:
        positions: (n,), the measured positions.
        found: name -> divergences there, in nats.
        window: how many measured positions each point averages.
    """
    _needed("types", found)
    window = max(1, min(window, len(positions) // 4))
    n = len(positions) // window * window
    at = positions[:n].reshape(-1, window).mean(axis=1)
    fig = picture(5.0)
    ax = fig.add_subplot()
    ax.set_yscale("log")
    labels, texts = [], []
    for (name, values), (colour, dash) in zip(found.items(), _LINES, strict=False):
        means = np.maximum(values[:n].reshape(-1, window).mean(axis=1), LEAST)
        ax.plot(at, means, color=colour, linestyle=dash)
        labels.append((float(means[-1]), name, colour, True))
        texts.append(f"{name} {nats(float(values.mean()))} on average")
    ax.set_xlim(at[0], at[-1])
    ax.yaxis.set_minor_locator(NullLocator())
    count_axis(ax.xaxis, "position in the text")
    ax.grid(True)
    ax.set_ylabel("KL divergence from f32, nats")
    name_at_edge(ax, labels, 4.0)
    ax.set_title("What a smaller cache costs along a text")
    fig.alt = "KL divergence by position: " + "; ".join(texts) + "."
    return fig


@drawn
def scores(rows: Sequence[tuple[str, float, float, float]]) -> Picture:
    """Planted sentences found, tokens of lists right, and whole lists right, for each type of cache.

    Args:
        rows: (name, share of sentences, share of tokens, share of lists).
    """
    _needed("types", rows)
    fig = picture(1.5 + 0.85 * len(rows))
    ax = fig.add_subplot()
    names = (("planted sentences found", SKY), ("lookups right", ORANGE), ("whole lists right", PURPLE))
    height = 0.26
    for j, (name, colour) in enumerate(names):
        values = [row[1 + j] for row in rows]
        places = np.arange(len(rows)) + (j - 1) * height
        ax.barh(places, values, height, color=colour, edgecolor=INK, linewidth=0.6)
        for y, v in zip(places, values, strict=True):
            text = f"{100 * v:.3g}%" + (f"  {name}" if y < 0.5 else "")
            note(ax, text, (float(v), float(y)), (6, 0), fontsize=SMALL, color=dark(colour))
    ax.set_yticks(range(len(rows)), [r[0] for r in rows], parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.65)
    ax.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    ax.tick_params(axis="y", length=0)
    fig.alt = "; ".join(f"{n}: {a:.0%} of sentences, {b:.0%} of tokens, {c:.0%} of lists" for n, a, b, c in rows) + "."
    return fig


@drawn
def ladder(rows: Mapping[str, float], label: str = "KL divergence from float32, nats") -> Picture:
    """Divergences of very different sizes, as bars on a logarithmic scale."""
    _needed("rows", rows)
    fig = picture(1.2 + 0.5 * len(rows))
    ax = fig.add_subplot()
    values = [max(v, LEAST) for v in rows.values()]
    ax.set_xscale("log")
    low = min(values) / 10
    ax.barh(range(len(rows)), np.array(values) - low, left=low, color=BLUE, edgecolor=INK, linewidth=0.6, height=0.62)
    for i, v in enumerate(rows.values()):
        note(ax, nats(v), (max(v, LEAST), i), (6, 0), fontsize=SMALL)
    ax.set_yticks(range(len(rows)), list(rows), parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(low, max(values) * 3000)
    ax.xaxis.set_major_locator(LogLocator(1000, numticks=8))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.set_xlabel(label)
    fig.alt = "; ".join(f"{name}: {nats(v)}" for name, v in rows.items()) + "."
    return fig


@drawn
def cache_bytes(rows: Mapping[str, int], weights: int) -> Picture:
    """Bytes of a cache in each type, beside the model's weights."""
    _needed("types", rows)
    fig = picture(1.2 + 0.42 * len(rows))
    ax = fig.add_subplot()
    ax.barh(range(len(rows)), list(rows.values()), color=BLUE, edgecolor=INK, linewidth=0.6, height=0.66)
    for i, v in enumerate(rows.values()):
        note(ax, format_bytes(v), (v, i), (6, 0), fontsize=SMALL)
    ax.axvline(weights, color=dark(VERMILION), linestyle=DASHED, linewidth=1.6)
    note(ax, "the weights", (weights, len(rows) - 0.7), (6, 0), fontsize=SMALL, color=dark(VERMILION))
    ax.set_yticks(range(len(rows)), list(rows), parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.2 * max(*rows.values(), weights))
    ax.tick_params(axis="y", length=0)
    bytes_axis(ax.xaxis, "bytes of one session's cache")
    fig.alt = f"Beside weights of {format_bytes(weights)}: " + ", ".join(f"{n} {v:,} bytes" for n, v in rows.items())
    return fig
