"""The pictures of notebook 05, performance. Each function takes numbers that the notebook has measured or predicted and
returns a `Picture`; its `alt` describes it in words.

Independent of models, sessions and clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from teachllama.errors import ParameterError
from teachllama.lessons.common.style import (
    BLUE,
    DASHED,
    DOTTED,
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
    format_bytes,
    name_at_edge,
    note,
    picture,
    power_of_ten,
)  # fmt: skip


class Step(NamedTuple):
    """One call of the model, as a point in a roofline."""

    n_tokens: int  # evaluated at once
    flops: float  # multiplications and additions
    nbytes: float  # read from memory
    seconds: float


class Speed(NamedTuple):
    """The measurements of a model with its weights in one form."""

    name: str
    nbytes: int  # read from memory for one token
    decode_tps: float
    prefill_tps: float
    divergence: float = 0.0  # from the reference, in nats


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """The mean KL divergence of next-token distributions from a reference's, in nats: 0 if they are the same.

    Args:
        reference, logits: (n, vocab_size), after the same n tokens.
    """
    if reference.ndim != 2 or reference.shape != logits.shape or not reference.size:
        raise ParameterError(
            f"shapes are {reference.shape} and {logits.shape}; expected the same (n, vocab_size) twice"
        )
    found = []
    for rows in zip(reference, logits, strict=True):  # row by row, because all rows in float64 would take much memory
        shifted = [row.astype(np.float64) - row.max() for row in rows]
        p, q = (row - np.log(np.exp(row).sum()) for row in shifted)
        found.append(float((np.exp(p) * (p - q)).sum()))
    return max(0.0, float(np.mean(found)))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not np.isfinite(value) or not value > 0:
            raise ParameterError(f"{name} is {value!r}; expected a number above 0")


def _some(what: str, things: Sequence[object]) -> None:
    if not things:
        raise ParameterError(f"no {what} to draw; expected at least one")


def _tps(value: float) -> str:
    """Tokens per second: 7.25 -> '7.2', 1234.5 -> '1,234'."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _rate(value: float) -> str:
    """In units of 10**9 per second, to two digits or whole: 41.2e9 -> '41', 5.31e9 -> '5.3'."""
    return f"{value / 1e9:.2g}" if value < 99.5e9 else f"{value / 1e9:,.0f}"


@drawn
def roofline(bandwidth: float, peak: float, steps: Sequence[Step], names: Sequence[str] = ()) -> Picture:
    """The speed that memory and arithmetic allow, against operations per byte, with the model's measured speeds.

    Args:
        bandwidth: bytes per second.
        peak: floating-point operations per second.
        steps: the measured calls, fewest tokens first.
        names: the steps' labels; by default a step of one token is decode, and the last step is prefill.
    """
    _positive(bandwidth=bandwidth, peak=peak)
    _some("steps", steps)
    if names and len(names) != len(steps):
        raise ParameterError(f"{len(names)} names for {len(steps)} steps; expected as many, or none")
    intensities = [s.flops / s.nbytes for s in steps]
    rates = [s.flops / s.seconds for s in steps]
    knee = peak / bandwidth
    low, high = min(0.25, *intensities, knee) / 2, 10 * max(*intensities, knee)
    fig = picture(5.6)
    ax = fig.add_subplot()
    ax.set_xscale("log")
    ax.set_yscale("log")
    x = np.geomspace(low, high, 200)
    roof = np.minimum(peak, bandwidth * x)
    ax.fill_between(x, roof, 4 * peak, color="#eeeeee", linewidth=0)
    ax.plot([low, knee], [bandwidth * low, peak], color=BLUE)
    ax.plot([knee, high], [peak, peak], color=VERMILION)
    ax.plot([knee, knee], [min(bandwidth * low, *rates) / 2, peak], color=FAINT, linewidth=1, linestyle=DOTTED)
    ax.set_xlim(low, high)
    ax.set_ylim(min(bandwidth * low, *rates) / 2, 4 * peak)
    text = f"memory: {_rate(bandwidth)} GB/s"
    note(ax, text, (2 * low, 2 * bandwidth * low), (14, -8), color=dark(BLUE), weight="bold")
    note(
        ax, f"arithmetic: {_rate(peak)} Gflop/s", (high, peak), (-6, 13), color=dark(VERMILION), weight="bold",
        ha="right",
    )  # fmt: skip
    note(ax, f" the knee: {knee:.2g} flop a byte", (knee, ax.get_ylim()[0]), (4, 12), color=FAINT, fontsize=SMALL)
    ax.plot(intensities, rates, color=GREEN, linewidth=1, linestyle=DASHED)
    ax.plot(intensities, rates, "o", color=GREEN, markeredgecolor=INK, markersize=9)
    for i, (step, at, rate) in enumerate(zip(steps, intensities, rates, strict=True)):
        text = "decode: 1" if step.n_tokens == 1 else str(step.n_tokens)
        if step is steps[-1] and step.n_tokens > 1:
            text = f"prefill: {text} tokens"
        text = names[i] if names else text
        if step.n_tokens == 1:  # centred, between the slope and the next point
            note(ax, text, (at, rate), (0, -22), color=dark(GREEN), fontsize=SMALL, weight="bold", ha="center")
        else:
            note(ax, text, (at, rate), (4, -17), color=dark(GREEN), fontsize=SMALL, weight="bold")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(10))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1e9:g}"))
    ax.grid(True)
    ax.set_xlabel("operations for each byte read from memory (flop/byte)")
    ax.set_ylabel("Gflop/s")
    ax.set_title("This machine's roofline, and how high the model gets below it")
    fig.alt = (
        f"A roofline: speed of arithmetic rises with operations a byte at {_rate(bandwidth)} GB/s up to the knee at "
        f"{knee:.2g} operations a byte, and is level at {_rate(peak)} Gflop/s beyond. "
        + "; ".join(
            f"{s.n_tokens} token{'s' * (s.n_tokens != 1)} at once: {i:.3g} operations a byte, {_rate(r)} Gflop/s"
            for s, i, r in zip(steps, intensities, rates, strict=True)
        )
        + "."
    )
    return fig


@drawn
def dials(rows: Sequence[Speed]) -> Picture:
    """Decode and prefill as bars, one pair for each setting.

    Args:
        rows: the settings, in reading order.
    """
    _some("rows", rows)
    fig = picture(1.9 + 0.5 * len(rows))
    axes = fig.subplots(1, 2, sharey=True)
    for ax, title, values, colour, hatch in (
        (axes[0], "decode", [r.decode_tps for r in rows], BLUE, ""),
        (axes[1], "prefill", [r.prefill_tps for r in rows], ORANGE, "//"),
    ):
        ax.barh(range(len(rows)), values, color=colour, edgecolor="white", hatch=hatch, height=0.66)
        ax.barh(range(len(rows)), values, color="none", edgecolor=INK, linewidth=0.7, height=0.66)
        for y, value in enumerate(values):
            note(ax, _tps(value), (value, y), (6, 0), fontsize=SMALL)
        ax.set_xlim(0, 1.32 * max(values))
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.set_title(title, color=dark(colour))
        ax.set_xlabel("tokens a second")
    axes[0].set_yticks(range(len(rows)), [r.name for r in rows])
    axes[0].invert_yaxis()
    fig.alt = (
        "Tokens a second, decode and prefill. "
        + "; ".join(f"{r.name}: {_tps(r.decode_tps)} and {_tps(r.prefill_tps)}" for r in rows)
        + "."
    )
    return fig


@drawn
def bytes_and_speed(bandwidth: float, rows: Sequence[Speed]) -> Picture:
    """Decode speed against the bytes read per token: the prediction as a curve, the measurements as points.

    Args:
        bandwidth: bytes per second.
        rows: the measurements.
    """
    _positive(bandwidth=bandwidth)
    _some("rows", rows)
    sizes, speeds = [r.nbytes for r in rows], [r.decode_tps for r in rows]
    fig = picture(5.6)
    ax = fig.add_subplot()
    ax.set_xscale("log")
    ax.set_yscale("log")
    ends = np.array([min(sizes) / 1.3, max(sizes) * 1.3])
    ax.plot(ends, bandwidth / ends, color=BLUE)
    for size, speed in zip(sizes, speeds, strict=True):
        ax.plot([size, size], [speed, bandwidth / size], color=FAINT, linewidth=1.2, linestyle=DOTTED)
    ax.plot(sizes, speeds, "o", color=VERMILION, markeredgecolor=INK, markersize=10)
    ax.set_xlim(*ends)
    ax.set_ylim(min(*speeds, bandwidth / ends[1]) / 2.6, 1.2 * max(bandwidth / ends[0], *speeds))
    below, before = 12.0, 0.0
    for row in sorted(rows, key=lambda r: r.nbytes):
        below = 62 if below == 12 and row.nbytes < 1.4 * before else 12  # keeps clear of the label to the left
        before = row.nbytes
        text = f"{row.name}\n{_tps(row.decode_tps)} tok/s\n{row.decode_tps * row.nbytes / bandwidth:.0%}"
        if below > 12:
            ax.annotate(
                "", (row.nbytes, row.decode_tps), (0, -below), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.9, "shrinkB": 6},
            )  # fmt: skip
        note(
            ax, text, (row.nbytes, row.decode_tps), (0, -below), color=dark(VERMILION), fontsize=SMALL, ha="center",
            va="top",
        )  # fmt: skip
    at = ends[0] ** 0.6 * ends[1] ** 0.4
    note(
        ax, f"predicted: {_rate(bandwidth)} GB/s divided by the bytes", (at, bandwidth / at), (12, 12),
        color=dark(BLUE), weight="bold",
    )  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: format_bytes(v)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.4g}"))
    ax.grid(True)
    ax.set_xlabel("bytes of weights read for each token")
    ax.set_ylabel("tokens a second, decode")
    ax.set_title("Fewer bytes, more tokens; and how near the prediction")
    fig.alt = (
        f"A falling line, {_rate(bandwidth)} GB/s divided by bytes a token, and measured points: "
        + "; ".join(
            f"{r.name}, {format_bytes(r.nbytes)}: {_tps(r.decode_tps)} tokens a second, "
            f"{r.decode_tps * r.nbytes / bandwidth:.0%} of the prediction"
            for r in rows
        )
        + "."
    )
    return fig


LEAST = 1e-12  # nats; smaller values are only float32 rounding


def _nats(value: float) -> str:
    """2.3e-4 -> '2 × 10⁻⁴'; below `LEAST`, 'below 10⁻¹²'."""
    if value < LEAST:
        return "below 10⁻¹²"
    return power_of_ten(value, 0)


@drawn
def fidelity_and_speed(rows: Sequence[Speed]) -> Picture:
    """Each form's divergence from the reference against decode speed. The best place is at the lower right.

    Args:
        rows: the measurements. A divergence below `LEAST` is drawn at `LEAST`.
    """
    _some("rows", rows)
    fig = picture(5.2)
    ax = fig.add_subplot()
    y = [max(LEAST, r.divergence) for r in rows]
    ax.set_yscale("log")
    ax.plot([r.decode_tps for r in rows], y, "D", color=PURPLE, markeredgecolor=INK, markersize=10)
    fastest = max(r.decode_tps for r in rows)
    ax.set_xlim(0, 1.15 * fastest)
    ax.set_ylim(min(y) / 20, max(y) * 20)
    for row, at in zip(rows, y, strict=True):
        right = row.decode_tps > 0.7 * fastest
        text = f"{row.name}\n{format_bytes(row.nbytes)}, KL {_nats(row.divergence)}"
        note(ax, text, (row.decode_tps, at), (-10 if right else 10, 0), ha="right" if right else "left", fontsize=SMALL)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(True)
    ax.set_xlabel("tokens a second, decode")
    ax.set_ylabel("mean KL divergence from f32, nats")
    ax.set_title("Farther right is faster, farther down is more faithful")
    fig.alt = (
        "Points, decode speed against KL divergence from f32. "
        + "; ".join(f"{r.name}: {_tps(r.decode_tps)} tokens a second, {_nats(r.divergence)} nats" for r in rows)
        + "."
    )
    return fig


class Curve(NamedTuple):
    """Decode speed at several positions of a context."""

    name: str
    positions: Sequence[int]
    predicted: Sequence[float]  # tokens per second
    measured: Sequence[float]


@drawn
def context_and_speed(curves: Sequence[Curve]) -> Picture:
    """Decode speed against the tokens already in the cache, predicted as lines and measured as points.

    Args:
        curves: one for each type of cache, at most three.
    """
    _some("curves", curves)
    fig = picture(5.2)
    ax = fig.add_subplot()
    labels, texts = [], []
    styles = ((BLUE, "o", DASHED), (VERMILION, "s", DOTTED), (GREEN, "^", DASHED))
    for curve, (colour, marker, dash) in zip(curves, styles, strict=False):
        ax.plot(curve.positions, curve.predicted, color=colour, linewidth=1.8, linestyle=dash)
        ax.plot(curve.positions, curve.measured, marker, color=colour, markeredgecolor=INK, markersize=9)
        ax.plot(curve.positions, curve.measured, color=colour, linewidth=1.2)
        labels.append((curve.predicted[-1], f"{curve.name}, predicted", colour, False))
        labels.append((curve.measured[-1], f"{curve.name}, measured", colour, True))
        texts.append(
            f"{curve.name}: measured {_tps(curve.measured[0])} tokens a second at position {curve.positions[0]:,}, "
            f"{_tps(curve.measured[-1])} at {curve.positions[-1]:,}; predicted {_tps(curve.predicted[0])} and "
            f"{_tps(curve.predicted[-1])}"
        )
    ax.set_ylim(0, None)
    ax.set_xlim(0, None)
    count_axis(ax.xaxis, "tokens in the cache (n_past)")
    ax.grid(True)
    ax.set_ylabel("tokens a second, decode")
    name_at_edge(ax, labels, 4.2)
    ax.set_title("A longer context is more to read for each token")
    fig.alt = "Decode speed against context. " + "; ".join(texts) + "."
    return fig
