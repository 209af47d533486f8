"""The pictures of notebook 08, serving many. Each takes what the notebook has measured or recorded and returns a
`Picture`; its `alt` describes it in words. `Stepper` is a widget.

Independent of models and clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from teachllama.errors import ParameterError
from teachllama.lessons.common.style import (
    BLUE,
    BODY,
    DASHED,
    FAINT,
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
    dark,
    drawn,
    format_bytes,
    note,
    picture,
)
from teachllama.lessons.n05_performance.pictures import Step as Step
from teachllama.lessons.n05_performance.pictures import roofline as roofline
from teachllama.lessons.n08_serving.watching import Bar, Frame, Log, bars

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

try:
    import ipywidgets as widgets
except ImportError as e:
    raise ImportError('the stepper needs ipywidgets, which is not installed: pip install "teachllama[lab]"') from e

COLOURS = (SKY, ORANGE, GREEN, PURPLE, "#F0E442", VERMILION, "#9ecae1", "#bdbdbd")  # of requests, repeating
EMPTY, LIGHT, HATCHED = "#f2f2f2", "#bdbdbd", "//////"


def _colour(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)]


def _some(what: str, things: object) -> None:
    if not things:
        raise ParameterError(f"no {what} to draw; expected at least one")


def _duration(seconds: float) -> str:
    """0.0123 -> '12 ms', 2.34 -> '2.3 s'."""
    if seconds >= 9.95:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 0.995 else f"{seconds * 1000:.0f} ms"


@drawn
def batch_sizes(sizes: Sequence[int], seconds: Sequence[float]) -> Picture:
    """A batch's throughput, tokens per second of all sessions, and each session's milliseconds per token.

    Args:
        sizes: sessions in the batch.
        seconds: the time of one step with each.
    """
    _some("batches", sizes)
    if len(sizes) != len(seconds) or min(seconds) <= 0:
        raise ParameterError(f"sizes are {list(sizes)}, seconds {list(seconds)}; expected as many of each, above 0")
    together = [n / s for n, s in zip(sizes, seconds, strict=True)]
    each = [1000 * s for s in seconds]
    fig = picture(4.0)
    for ax, values, colour, hatch, title, unit in (
        (fig.add_subplot(1, 2, 1), together, BLUE, "", "all together", "tokens a second"),
        (fig.add_subplot(1, 2, 2), each, ORANGE, "//", "each one's wait for a token", "milliseconds"),
    ):
        ax.bar(range(len(sizes)), values, color=colour, edgecolor="white", hatch=hatch, width=0.7)
        ax.bar(range(len(sizes)), values, color="none", edgecolor=INK, linewidth=0.7, width=0.7)
        for x, value in enumerate(values):
            text = f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"
            note(ax, text, (x, value), (0, 9), ha="center", fontsize=SMALL)
        ax.set_xticks(range(len(sizes)), [str(n) for n in sizes])
        ax.set_xlabel("sessions in one pass")
        ax.set_ylabel(unit)
        ax.set_ylim(0, 1.15 * max(values))
        ax.set_title(title, color=dark(colour))
        ax.grid(True, axis="y")
    fig.alt = "Sessions in one pass, tokens a second together, milliseconds for each: " + "; ".join(
        f"{n}: {t:,.0f}, {w:.3g}" for n, t, w in zip(sizes, together, each, strict=True)
    )
    return fig


class Held(NamedTuple):
    """What one session holds, in bytes."""

    name: str
    reserved: int  # for the longest case
    paged: int  # in pages of a pool
    written: int


@drawn
def reserved_and_written(rows: Sequence[Held]) -> Picture:
    """For each session: the bytes reserved for the longest case, the bytes of its pages, and the bytes written."""
    _some("sessions", rows)
    fig = picture(1.8 + 0.46 * len(rows))
    ax = fig.add_subplot()
    at = np.arange(len(rows))
    ax.barh(at, [r.reserved for r in rows], color="white", edgecolor=LIGHT, hatch=HATCHED, linewidth=0.8, height=0.78)
    ax.barh(at, [r.paged for r in rows], color=SKY, edgecolor=INK, linewidth=0.7, height=0.78)
    ax.barh(at, [r.written for r in rows], color=BLUE, edgecolor=INK, linewidth=0.7, height=0.36)
    ax.set_yticks(at, [r.name for r in rows])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    bytes_axis(ax.xaxis, "bytes of keys and values")
    ax.set_xlim(0, max(r.reserved for r in rows))
    totals = [sum(getattr(r, name) for r in rows) for name in ("reserved", "paged", "written")]
    key: list[tuple[str, dict[str, Any]]] = [
        ("reserved", {"facecolor": "white", "edgecolor": LIGHT, "hatch": HATCHED}),
        ("in pages", {"facecolor": SKY}),
        ("written", {"facecolor": BLUE}),
    ]
    handles = [Patch(label=f"{name}: {format_bytes(n)}", **look) for (name, look), n in zip(key, totals, strict=True)]
    fig.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=BODY, handlelength=1.4)
    fig.alt = (
        f"{len(rows)} sessions: {format_bytes(totals[0])} reserved, {format_bytes(totals[1])} in pages, "
        f"{format_bytes(totals[2])} written. "
        + "; ".join(
            f"{r.name}: {format_bytes(r.reserved)}, {format_bytes(r.paged)}, {format_bytes(r.written)}" for r in rows
        )
    )
    return fig


# Pages as squares -----------------------------------------------------------------------------------------------------


def _squares(ax: Axes, owners: np.ndarray, columns: int, size: float) -> None:
    """One square per page, in reading order. The first page of a run in a row shows its holder's number."""
    n_rows = -(-len(owners) // columns)
    for page, owner in enumerate(owners.tolist()):
        x, y = page % columns, page // columns
        colour = _colour(owner) if owner else EMPTY
        ax.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, facecolor=colour, edgecolor="none"))
        if owner and (x == 0 or owners[page - 1] != owner):
            ax.text(x + 0.5, y + 0.52, str(owner), ha="center", va="center", fontsize=size, weight="bold")
    ax.set_xlim(0, columns)
    ax.set_ylim(n_rows, 0)
    ax.set_aspect("equal")
    ax.axis("off")


def _held(owners: np.ndarray) -> str:
    """How many pages each session holds, in words."""
    numbers = [int(n) for n in np.unique(owners) if n]
    parts = [f"{n} holds {int((owners == n).sum())}" for n in numbers]
    return f"{len(owners)} pages: {', '.join([*parts, f'{int((owners == 0).sum())} free'])}"


def _checked(owners: object, columns: int) -> np.ndarray:
    array = np.asarray(owners)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu" or columns < 1:
        raise ParameterError(
            f"owners have shape {array.shape}, columns {columns}; expected a whole number for each page"
        )
    return array


@drawn
def pool_squares(moments: Mapping[str, np.ndarray], columns: int) -> Picture:
    """A pool at several moments: one square per page, a colour and a number for each session.

    Args:
        moments: title -> who holds each page, 0 for none; pools of one size.
        columns: squares in a row.
    """
    _some("moments", moments)
    pages = {title: _checked(owners, columns) for title, owners in moments.items()}
    across = 1 if len(pages) == 1 else 2
    down = -(-len(pages) // across)
    n_rows = max(-(-len(owners) // columns) for owners in pages.values())
    side = 9.0 / across / (columns + 1)
    fig = picture(0.2 + down * (n_rows * side + 0.36))
    for i, (title, owners) in enumerate(pages.items(), 1):
        ax = fig.add_subplot(down, across, i)
        _squares(ax, owners, columns, min(SMALL, max(8.5, 46 * side)))
        ax.set_title(title, fontsize=SMALL + 1, pad=5)
    fig.alt = ". ".join(f"{title}: {_held(owners)}" for title, owners in pages.items())
    return fig


def filmstrip(frames: Sequence[Frame], steps: Sequence[int]) -> Picture:
    """The pool after some steps of a scheduler: a still version of the widget `Stepper`."""
    by_step = {frame.step: frame for frame in frames}
    missing = [step for step in steps if step not in by_step]
    if missing or not steps:
        raise ParameterError(f"no frame of step {missing}; expected steps out of {list(by_step)}")
    return pool_squares({f"after step {s}": by_step[s].owners for s in steps}, by_step[steps[0]].columns)


def _last_row(frame: Frame) -> str:
    words = {
        "submitted": "request {r} arrives with {n} tokens",
        "admitted": "request {r} is admitted",
        "prefill": "request {r} reads {n} tokens",
        "preempted": "request {r} gives way: {n} positions given up",
        "finished": "request {r} ends with {n} tokens ({why})",
        "cancelled": "request {r} is cancelled",
        "failed": "request {r} fails ({why})",
    }
    said = [words[e.what].format(r=e.request, n=e.n, why=e.why) for e in frame.events if e.what in words]
    writers = [str(e.request) for e in frame.events if e.what == "token"]
    if writers:
        said.append(f"a token each for {', '.join(writers)}")
    return "; ".join(said) or "nothing is to be told"


class Stepper(widgets.VBox):
    """Steps through a scheduler's run, forwards and back: pages as squares, and the state of each request.

    Attributes:
        at: the slider; its `.value` is the number of the frame, from 0.
        readout: the panel; its `.value` is HTML.
    """

    def __init__(self, frames: Sequence[Frame]):
        _some("frames", frames)
        self._frames = list(frames)
        self.at = widgets.IntSlider(
            value=0, min=0, max=len(frames) - 1, description="Step", tooltip="Which step of the scheduler to look at",
            layout=widgets.Layout(width="min(100%, 34em)"),
        )  # fmt: skip
        self.play = widgets.Play(min=0, max=len(frames) - 1, interval=700, description="Play the steps")
        widgets.jslink((self.play, "value"), (self.at, "value"))
        self.readout = widgets.HTML()
        super().__init__([self.play, self.at, self.readout], layout=widgets.Layout(width="100%"))
        self.at.observe(self._show, names="value")
        self._show()

    def __repr__(self) -> str:
        return "Stepper of a scheduler: a widget, alive while the notebook's kernel runs"

    def _show(self, _change: object = None) -> None:
        frame = self._frames[self.at.value]
        square = "aspect-ratio:1;text-align:center;overflow:hidden;color:#333;font:bold 10px sans-serif"
        owners = frame.owners.tolist()
        cells = "".join(
            f"<div style='{square};background:{_colour(n) if n else EMPTY}'>"
            f"{n if n and (i % frame.columns == 0 or owners[i - 1] != n) else ''}</div>"
            for i, n in enumerate(owners)
        )
        rows = "".join(
            f"<tr><td><b style='background:{_colour(r.number)};padding:0 .5em'>{r.number}</b></td>"
            f"<td style='padding-right:1em'>{escape(r.state)}</td><td>{r.n_past} of {r.n_prompt + r.n_new}</td>"
            f"<td>{r.n_new}</td></tr>"
            for r in frame.rows
        )
        self.readout.value = (
            f"<div role='img' aria-label='{escape(_held(frame.owners))}' style='display:grid;gap:1px;max-width:44em;"
            f"grid-template-columns:repeat({frame.columns},1fr)'>{cells}</div>"
            f"<p style='min-height:3em'><b>Step {frame.step}.</b> {escape(_last_row(frame))}.</p>"
            "<table class='teachllama-stepper'><tr><th scope='col'>request</th><th scope='col'>state</th>"
            f"<th scope='col'>tokens evaluated</th><th scope='col'>written</th></tr>{rows}</table>"
        )


# Time lines -----------------------------------------------------------------------------------------------------------


def _bar(ax: Axes, y: float, bar: Bar, end: float, width: float) -> None:
    """One request: waits hatched, reading in blue (orange when repeated), a mark for each token."""
    ended = end if bar.ended is None else bar.ended
    ax.barh(y, ended - bar.submitted, left=bar.submitted, color=EMPTY, height=0.62, linewidth=0)
    for begin, until in bar.waits:
        if until > begin:
            ax.barh(
                y, until - begin, left=begin, color="white", edgecolor=FAINT, hatch=HATCHED, height=0.62, linewidth=0
            )
    for begin, until, n, again in bar.reads:
        colour = ORANGE if again else BLUE
        ax.barh(y, until - begin, left=begin, color=colour, edgecolor="white", height=0.62, linewidth=0.8)
        if n and (until - begin) / width > 0.012 * len(str(n)) + 0.004:
            ink = INK if again else "white"
            note(ax, str(n), ((begin + until) / 2, y), ha="center", halo=None, color=ink, fontsize=SMALL - 2)
    ax.plot(bar.writes, [y] * len(bar.writes), "|", color=dark(VERMILION), markersize=13, markeredgewidth=1.8)
    ax.plot(bar.gave_way, [y] * len(bar.gave_way), "X", color=INK, markersize=9, markeredgecolor="white")


def _mark(marker: str, colour: str, label: str) -> Line2D:
    return Line2D(
        [], [], marker=marker, color=colour, linestyle="none", markersize=10, markeredgewidth=1.8, label=label
    )


@drawn
def time_line(logs: Mapping[str, Log], unit: str = "steps") -> Picture:
    """A bar for each request, one panel for each log, on one scale of time.

    Args:
        logs: title -> log, as for `bars`.
        unit: the unit of its times: "steps", "passes" or "seconds".
    """
    _some("logs", logs)
    panels = {title: bars(log) for title, log in logs.items()}
    for title, found in panels.items():
        _some(f"requests in {title!r}", found)
    end = max(at for log in logs.values() for at, _ in log)
    sizes = [len(found) for found in panels.values()]
    fig = picture(1.35 + 0.45 * len(panels) + 0.4 * sum(sizes))
    axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": sizes})[:, 0]
    said = []
    for ax, (title, found) in zip(axes, panels.items(), strict=True):
        for y, bar in enumerate(found):
            _bar(ax, y, bar, end, end or 1)
            longest = max(np.diff(bar.writes), default=0.0)
            first = f"first token after {bar.writes[0] - bar.submitted:.3g}" if bar.writes else "no token"
            said.append(
                f"{title}: request {bar.number}, {first} {unit}, longest gap {longest:.3g}"
                + f", gave way {len(bar.gave_way)} times" * bool(bar.gave_way)
            )
        ax.set_yticks(range(len(found)), [f"request {bar.number}" for bar in found])
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_title(title, fontsize=SMALL + 1.5, pad=5)
    axes[-1].set_xlim(0, end * 1.01 or 1)
    axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=unit != "seconds"))
    axes[-1].set_xlabel(unit)
    key: list[Artist] = [Patch(facecolor=BLUE, label="reads its prompt"), _mark("|", dark(VERMILION), "writes a token")]
    if any(until > begin for found in panels.values() for bar in found for begin, until in bar.waits):
        key.insert(0, Patch(facecolor="white", edgecolor=FAINT, hatch=HATCHED, label="waits"))
    if any(read[3] for found in panels.values() for bar in found for read in bar.reads):
        key += [Patch(facecolor=ORANGE, label="reads again"), _mark("X", INK, "gives way")]
    fig.legend(handles=key, loc="outside upper left", ncols=len(key), frameon=False, fontsize=SMALL, handlelength=1.4)
    fig.alt = ". ".join(said)
    return fig


# A load test ----------------------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """The results of a load test."""

    name: str
    tps: float  # generated tokens per second, of all requests
    first: Sequence[float]  # seconds from each arrival to its first token
    between: Sequence[float]  # seconds between two tokens of a request
    present: Sequence[tuple[float, int]]  # (second, requests that have arrived and not ended)


def percentile(values: Sequence[float], p: float) -> float:
    """The smallest value that at least `p` percent of all values do not exceed."""
    if not len(values) or not 0 <= p <= 100:
        raise ParameterError(f"{len(values)} values, p {p}; expected at least one value, and p from 0 to 100")
    return float(np.percentile(values, p, method="inverted_cdf"))


STYLES = ((ORANGE, "//", DASHED), (BLUE, "", SOLID), (GREEN, "..", DASHED))


@drawn
def percentiles(loads: Sequence[Load]) -> Picture:
    """Throughput, and the 50th and 99th percentile of both waits, one bar per load test."""
    _some("loads", loads)
    fig = picture(1.4 + 1.35 * len(loads))
    axes = fig.subplots(1, 3, sharey=True, gridspec_kw={"width_ratios": (2, 3, 3)})
    at = np.arange(len(loads))
    for ax, title, unit, values in (
        (axes[0], "throughput", "tokens a second", None),
        (axes[1], "to the first token", "seconds", [load.first for load in loads]),
        (axes[2], "between tokens", "seconds", [load.between for load in loads]),
    ):
        ax.set_title(title, fontsize=SMALL + 1.5)
        ax.set_xlabel(unit, fontsize=SMALL)
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        most = 0.0
        for i, load in enumerate(loads):
            colour, hatch, _ = STYLES[i % len(STYLES)]
            rows = (
                [(0.0, load.tps, f"{load.tps:,.0f}")]
                if values is None
                else [
                    (shift, percentile(values[i], p), f"{p}th: {_duration(percentile(values[i], p))}")
                    for shift, p in ((-0.2, 50), (0.2, 99))
                ]
            )
            for shift, value, text in rows:
                height = 0.5 if values is None else 0.36
                ax.barh(at[i] + shift, value, color=colour, hatch=hatch, edgecolor="white", height=height)
                ax.barh(at[i] + shift, value, color="none", edgecolor=INK, linewidth=0.7, height=height)
                note(ax, text, (value, at[i] + shift), (5, 0), fontsize=SMALL - 1)
                most = max(most, value)
        ax.set_xlim(0, most * (1.5 if values is None else 1.75))
    axes[0].set_yticks(at, [load.name for load in loads])
    axes[0].set_ylim(len(loads) - 0.5, -0.5)
    for ax in axes:
        ax.tick_params(axis="y", length=0)
    fig.alt = "; ".join(
        f"{load.name}: {load.tps:,.0f} tokens a second; to the first token {_duration(percentile(load.first, 50))} "
        f"(50th percentile) and {_duration(percentile(load.first, 99))} (99th); between tokens "
        f"{_duration(percentile(load.between, 50))} and {_duration(percentile(load.between, 99))}"
        for load in loads
    )
    return fig


@drawn
def in_the_system(loads: Sequence[Load]) -> Picture:
    """How many requests have arrived and not ended, over time."""
    _some("loads", loads)
    for load in loads:
        _some(f"moments of {load.name!r}", load.present)
    fig = picture(4.2)
    ax = fig.add_subplot()
    end = max(load.present[-1][0] for load in loads)
    most = [max(count for _, count in load.present) for load in loads]
    for load, peak, (colour, _, dash) in zip(loads, most, STYLES, strict=False):
        times, counts = zip(*load.present, strict=True)
        ax.step(times, counts, where="post", color=colour, linestyle=dash, label=f"{load.name}: at most {peak}")
    ax.set_xlim(0, end)
    ax.set_ylim(0, 1.1 * max(most))
    fig.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=BODY, handlelength=2.4)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(True)
    ax.set_xlabel("seconds")
    ax.set_ylabel("requests in the system")
    fig.alt = "Requests in the system over time. " + "; ".join(
        f"{load.name}: at most {peak}, the last one ended after {load.present[-1][0]:.1f} s"
        for load, peak in zip(loads, most, strict=True)
    )
    return fig
