"""The pictures and the slider of notebook 03, sampling. Each function takes numbers that the notebook has computed and
returns a `Picture`; its `alt` describes it in words.

Works on logits and the texts of tokens; independent of models and sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from teachllama.errors import ParameterError
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
    count_axis,
    dark,
    drawn,
    note,
    picture,
    visible,
)

try:
    import ipywidgets as widgets
except ImportError as e:
    raise ImportError('the slider needs ipywidgets, which is not installed: pip install "teachllama[lab]"') from e

COOLEST, HOTTEST = 0.1, 3.0  # the slider's ends


def distribution(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """logits (vocab_size,) -> probabilities (vocab_size,) at a temperature above 0, float64."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 1 or not len(logits) or not temperature > 0:
        raise ParameterError(
            f"logits have shape {logits.shape} and temperature is {temperature!r}; "
            "expected (vocab_size,) and a number above 0"
        )
    weights = np.exp((logits - logits.max()) / temperature)
    return np.asarray(weights / weights.sum())


def entropy(probabilities: np.ndarray) -> float:
    """The entropy of a distribution, in bits: the mean surprise of a draw."""
    p = probabilities[probabilities > 0]
    return max(0.0, float(-(p * np.log2(p)).sum()))


def _percent(p: float) -> str:
    return f"{100 * p:.1f}%" if p >= 0.00995 else f"{100 * p:.2g}%" if p >= 1e-5 else "~0%"


def _name(piece: str, most: int = 14) -> str:
    text = visible(piece)
    return text if len(text) <= most else text[: most - 1] + "…"


@drawn
def greedy_path(pieces: Sequence[str], probabilities: Sequence[float], period: int | None = None) -> Picture:
    """The probability of each token that greedy decoding took, with its text below.

    Args:
        pieces: the tokens' texts, in order.
        probabilities: the probability that the model gave each, 0 to 1.
        period: the length of the loop at the end, whose rounds are shaded alternately; None for no loop.
    """
    n = len(pieces)
    if not n or n != len(probabilities):
        raise ParameterError(f"{n} pieces and {len(probabilities)} probabilities; expected as many of each, at least 1")
    fig = picture(4.9)
    ax = fig.add_subplot()
    if period:
        for i, end in enumerate(range(n, 0, -period)):
            if i % 2 == 0:
                ax.axvspan(max(0, end - period) - 0.5, end - 0.5, color="#eeeeee", linewidth=0)
    ax.plot(range(n), probabilities, "o-", color=BLUE, linewidth=1.6, markersize=5)
    ax.set_xticks(range(n), [_name(p, 10) for p in pieces], rotation=90, fontsize=min(SMALL, 430 / n), parse_math=False)
    ax.set_xlim(-0.6, n - 0.4)
    ax.set_ylim(0, 1.04)
    ax.yaxis.set_major_formatter(lambda p, _: f"{100 * p:.3g}%")
    ax.grid(True, axis="y")
    ax.set_ylabel("probability when it was chosen")
    ax.set_title("Each round of the loop makes the next one surer" if period else "What greedy decoding took")
    fig.alt = (
        f"The probabilities of {n} tokens chosen greedily, from {_percent(probabilities[0])} for the first "
        f"to {_percent(probabilities[-1])} for the last"
        + (f"; the text repeats every {period} tokens, shaded in turn." if period else ".")
    )
    return fig


@drawn
def temperatures(logits: np.ndarray, pieces: Mapping[int, str], values: Sequence[float] = (0.5, 1.0, 2.0)) -> Picture:
    """The same logits as probabilities at several temperatures, side by side: a still version of the slider.

    Args:
        logits: (vocab_size,).
        pieces: token id -> its text; these tokens are drawn, in this order.
        values: the temperatures, above 0.
    """
    tables = [distribution(logits, t) for t in values]
    ids = _known(pieces, len(logits))
    fig = picture(1.9 + 0.34 * len(ids))
    axes = np.atleast_1d(fig.subplots(1, len(values), sharey=True))
    texts = []
    for ax, t, p, colour in zip(axes, values, tables, (BLUE, INK, VERMILION, PURPLE, GREEN, ORANGE) * len(values)):
        shown = p[ids]
        ax.barh(range(len(ids)), shown, color=colour, edgecolor=INK, linewidth=0.6, height=0.72)
        for y, value in enumerate(shown):
            note(ax, _percent(value), (value, y), (5, 0), fontsize=SMALL)
        ax.set_xlim(0, 1.5 * max(float(q[ids].max()) for q in tables))  # one scale for all
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"all others {_percent(max(0.0, 1 - shown.sum()))}\nentropy {entropy(p):.1f} bits")
        ax.set_title(f"temperature {t:g}", color=dark(colour))
        texts.append(f"at {t:g} the likeliest has {_percent(shown.max())} and entropy is {entropy(p):.1f} bits")
    axes[0].set_yticks(range(len(ids)), [_name(pieces[i]) for i in ids], parse_math=False)
    axes[0].set_ylim(len(ids) - 0.5, -0.5)
    fig.alt = f"The same {len(ids)} tokens at {len(values)} temperatures: {'; '.join(texts)}."
    return fig


def _known(pieces: Mapping[int, str], vocab_size: int) -> list[int]:
    ids = [int(i) for i in pieces]
    if not ids or not all(0 <= i < vocab_size for i in ids):
        raise ParameterError(f"pieces name the tokens {ids[:5]}; expected at least one, from 0 to {vocab_size - 1}")
    return ids


class TemperatureSlider(widgets.VBox):
    """A slider for the temperature above bars of the likeliest tokens' probabilities.

    Attributes:
        temperature: the slider; set its `.value`.
        readout: the panel; its `.value` is HTML.
        probabilities: (vocab_size,), the current ones.
    """

    def __init__(self, logits: np.ndarray, pieces: Mapping[int, str], temperature: float = 1.0):
        self._logits, self._ids = np.array(logits, np.float32), _known(pieces, len(logits))
        self._names = [escape(_name(pieces[i])) for i in self._ids]
        self.probabilities = distribution(self._logits, temperature)
        self.temperature = widgets.FloatSlider(
            value=temperature, min=COOLEST, max=HOTTEST, step=0.1, description="Temperature", readout_format=".1f",
            tooltip="Below 1 sharper, above 1 flatter", style={"description_width": "8em"},
            layout=widgets.Layout(width="min(100%, 34em)"),
        )  # fmt: skip
        self.readout = widgets.HTML()
        super().__init__([self.temperature, self.readout], layout=widgets.Layout(width="100%"))
        self.temperature.observe(self._show, names="value")
        self._show()

    def __repr__(self) -> str:
        return "Temperature slider: a widget, alive while the notebook's kernel runs"

    def _show(self, _change: object = None) -> None:
        p = self.probabilities = distribution(self._logits, self.temperature.value)
        rows = "".join(
            f'<tr><th scope="row" style="text-align:right;padding-right:.6em"><code>{name}</code></th>'
            f'<td style="width:24em"><div style="width:{100 * p[i]:.2f}%;height:1em;background:{SKY};'
            f'border:1px solid currentColor;box-sizing:border-box"></div></td>'
            f'<td style="text-align:right">{_percent(p[i])}</td></tr>'
            for i, name in zip(self._ids, self._names, strict=True)
        )
        others = max(0.0, 1 - float(p[self._ids].sum()))
        self.readout.value = (
            f'<table class="teachllama-temperature">{rows}</table><div>The other {len(p) - len(self._ids):,} tokens '
            f"together: {_percent(others)}. Entropy: "
            f'<output data-testid="teachllama-entropy">{entropy(p):.2f}</output> bits.</div>'
        )


@drawn
def cuts(distributions: Mapping[str, np.ndarray], kept: Mapping[str, Mapping[str, int]], shown: int = 30) -> Picture:
    """The likeliest tokens of each distribution as bars, with a line per rule over the tokens that it keeps.

    Args:
        distributions: prompt -> probabilities (vocab_size,).
        kept: prompt -> the rule's name -> how many of the likeliest tokens it keeps.
        shown: how many bars.
    """
    if not distributions or set(distributions) != set(kept):
        raise ParameterError(f"distributions are of {list(distributions)} and cuts of {list(kept)}; expected the same")
    fig = picture(3.1 * len(distributions) + 0.4)
    axes = np.atleast_1d(fig.subplots(len(distributions), 1, sharex=True))
    texts = []
    for ax, (prompt, p) in zip(axes, distributions.items(), strict=True):
        ranked = np.sort(np.asarray(p, np.float64))[::-1]
        bars = ranked[:shown]
        ax.bar(np.arange(1, len(bars) + 1), bars, color=SKY, edgecolor=INK, linewidth=0.6, width=0.8)
        top = float(bars[0])
        for row, ((rule, n), colour) in enumerate(zip(kept[prompt].items(), (BLUE, VERMILION, GREEN, PURPLE) * 9)):
            y, beyond = top * (1.0 - 0.17 * row), n > shown
            end = shown + 0.9 if beyond else n + 0.5
            ax.plot([0.5, end], [y, y], color=colour, linewidth=2.4)
            ax.plot(end, y, ">" if beyond else "|", color=colour, markersize=9, markeredgewidth=2.4, clip_on=False)
            text = f"{rule}: {n:,} token{'s' * (n != 1)}, {_percent(float(ranked[:n].sum()))} of the probability"
            inside = end < 0.5 * shown
            note(
                ax, text, (end if inside else end - 0.6, y), (8, 0) if inside else (0, 9), color=dark(colour),
                fontsize=SMALL, ha="left" if inside else "right",
            )  # fmt: skip
            texts.append(f"after {visible(prompt)!r}, {text}")
        ax.set_ylim(0, top * 1.14)
        ax.set_xlim(0.2, shown + 1.2)
        ax.yaxis.set_major_formatter(lambda q, _: f"{100 * q:.3g}%")
        ax.set_ylabel("probability")
        ax.set_title(f"{prompt} …", parse_math=False)
    count_axis(axes[-1].xaxis, "rank of the token, likeliest first")
    fig.alt = f"How many tokens each cut keeps: {'; '.join(texts)}."
    return fig


@drawn
def penalty_arrows(names: Sequence[str], before: Sequence[float], after: Mapping[str, Sequence[float]]) -> Picture:
    """Logits of some tokens before (hollow) and after (filled) each penalty, one panel per penalty.

    Args:
        names: the tokens' labels.
        before: their logits.
        after: the penalty's name -> their logits under it.
    """
    if not after or any(len(values) != len(names) for values in (before, *after.values())):
        raise ParameterError(f"{len(names)} names; expected as many logits before, and after at least one penalty")
    fig = picture(1.7 + 0.34 * len(names))
    axes = np.atleast_1d(fig.subplots(1, len(after), sharey=True, sharex=True))
    y = np.arange(len(names))
    winners = []
    for ax, (penalty, values), colour in zip(axes, after.items(), (BLUE, VERMILION, GREEN, PURPLE) * len(after)):
        ax.hlines(y, before, values, color=colour, linewidth=1.6)
        ax.plot(before, y, "o", markerfacecolor="white", markeredgecolor=FAINT, markersize=7)
        ax.plot(values, y, "o", color=colour, markersize=7)
        ax.axvline(max(values), color=colour, linewidth=1, linestyle=DASHED, zorder=0)
        ax.set_title(penalty, fontsize=SMALL + 1, color=dark(colour))
        ax.set_xlabel("logit")
        ax.grid(True, axis="y")
        ax.tick_params(axis="y", length=0)
        winners.append(f"{penalty}: highest is {names[int(np.argmax(values))]}")
    axes[0].set_yticks(y, names, parse_math=False)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    fig.alt = f"Logits before and after penalties. Before, highest is {names[int(np.argmax(before))]}. " + (
        "; ".join(winners) + "."
    )
    return fig


@drawn
def ruler(pieces: Sequence[str], probabilities: Sequence[float], numbers: Sequence[float]) -> Picture:
    """Drawing as a ruler from 0 to 1, cut into the tokens' probabilities; each random number falls on one token.

    Args:
        pieces: the texts of the tokens that may be drawn.
        probabilities: the tokens' probabilities, which add up to 1.
        numbers: random numbers from 0 to below 1, first drawn at the top.
    """
    edges = np.cumsum(probabilities)
    if len(pieces) != len(edges) or not len(edges) or abs(edges[-1] - 1) > 1e-6:
        raise ParameterError(f"{len(pieces)} pieces, {len(edges)} probabilities; expected as many, adding up to 1")
    fig = picture(2.6 + 0.16 * len(numbers))
    ax = fig.add_subplot()
    n = len(numbers)
    for i, (right, p) in enumerate(zip(edges, probabilities, strict=True)):
        colour = (SKY, ORANGE)[i % 2]
        ax.barh(0, p, left=right - p, height=1.6, color=colour, edgecolor=INK, linewidth=0.8)
        room = 9.0 * 72 * 0.85 * p  # points across
        name = _name(pieces[i])
        if room > 11:
            across = room > 0.68 * SMALL * max(len(name), 5)
            note(
                ax, f"{name}\n{_percent(p)}" if across else name, (right - p / 2, 0), ha="center", fontsize=SMALL,
                rotation=0 if across else 90, halo=None,
            )  # fmt: skip
        ax.axvline(right, color="#dddddd", linewidth=0.8, zorder=0)
    ax.plot(numbers, np.arange(n) * 0.45 + 1.4, "o", color=INK, markersize=5)
    ax.set_ylim(1.4 + 0.45 * n, -0.8)
    ax.set_xlim(0, 1)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("the random number, 0 to 1")
    ax.set_title(f"{n} draws: each number falls on one token")
    drawn_pieces = [visible(pieces[min(int(np.searchsorted(edges, u, side="right")), len(edges) - 1)]) for u in numbers]
    fig.alt = f"A ruler from 0 to 1 cut into {len(edges)} tokens; the draws fall on {', '.join(drawn_pieces)}."
    return fig


@drawn
def knobs(results: Mapping[str, tuple[float, Sequence[float]]]) -> Picture:
    """The effect of each setting, one row per setting: variety on the left, surprise on the right.

    Args:
        results: the setting's name -> (distinct n-grams as a share of all, 0 to 1; mean surprise in bits per token,
            one number per seed).
    """
    if not results or not all(len(surprises) for _, surprises in results.values()):
        raise ParameterError("expected at least one setting, and for each the mean surprise of at least one seed")
    fig = picture(1.5 + 0.46 * len(results))
    left, right = fig.subplots(1, 2, sharey=True)
    y = np.arange(len(results))
    distinct = [d for d, _ in results.values()]
    means = [float(np.mean(surprises)) for _, surprises in results.values()]
    left.barh(y, distinct, color=SKY, edgecolor=INK, linewidth=0.6, height=0.66)
    right.barh(y, means, color=ORANGE, edgecolor=INK, linewidth=0.6, height=0.66)
    most = max(max(surprises) for _, surprises in results.values())
    for row, (share, (_, surprises), mean) in enumerate(zip(distinct, results.values(), means, strict=True)):
        note(left, f"{share:.0%}", (share, row), (5, 0), fontsize=SMALL)
        right.plot(surprises, [row] * len(surprises), "o", markerfacecolor="white", markeredgecolor=INK, markersize=6)
        note(right, f"{mean:.1f}", (max(surprises), row), (8, 0), fontsize=SMALL)
    left.set_yticks(y, list(results), parse_math=False)
    left.set_ylim(len(results) - 0.5, -0.5)
    left.set_xlim(0, 1.2)
    left.set_xticks([0, 0.5, 1])
    left.xaxis.set_major_formatter(lambda p, _: f"{100 * p:.3g}%")
    left.set_xlabel("distinct pairs of tokens")
    right.set_xlim(0, most * 1.2 + 0.1)
    right.set_xlabel("mean surprise, bits a token\n(a circle for each seed)")
    left.set_title("Variety")
    right.set_title("Surprise")
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
    fig.alt = "Variety and surprise: " + "; ".join(
        f"{name}: {share:.0%} distinct, {mean:.1f} bits"
        for name, share, mean in zip(results, distinct, means, strict=True)
    )
    return fig
