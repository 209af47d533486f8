"""The pictures and the list of neighbours of notebook 07, embeddings. Each function takes vectors or similarities that
the notebook has computed and returns a `Picture`; its `alt` describes it in words.

Works on vectors and texts; independent of models.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

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
    dark,
    drawn,
    name_in_gaps,
    note,
    picture,
    visible,
)

try:
    import ipywidgets as widgets
except ImportError as e:
    raise ImportError(
        'the list of neighbours needs ipywidgets, which is not installed: pip install "teachllama[lab]"'
    ) from e

MARKS = (("o", BLUE), ("s", VERMILION), ("^", GREEN), ("D", PURPLE), ("P", ORANGE), ("v", SKY))  # one shape per topic


def _square(table: np.ndarray, n: int, what: str) -> np.ndarray:
    array = np.asarray(table, np.float64)
    if n < 2 or array.shape != (n, n):
        raise ParameterError(f"{what} have shape {array.shape}; expected ({n}, {n}), for at least 2 texts")
    return array


@drawn
def first_difference(pieces: tuple[Sequence[str], Sequence[str]], similarities: Sequence[float]) -> Picture:
    """Two texts one below the other, token by token, with the similarity of their states above each pair.

    Args:
        pieces: the texts' tokens.
        similarities: cosine of the two states at each position, as many as the shorter text has tokens.
    """
    n = len(similarities)
    if not n or n != min(map(len, pieces)):
        raise ParameterError(f"{n} similarities for {[len(p) for p in pieces]} tokens; expected one for each pair")
    fig = picture(4.2)
    ax = fig.add_subplot()
    ax.bar(range(n), similarities, color=SKY, edgecolor=INK, linewidth=0.6, width=0.62)
    for i, value in enumerate(similarities):
        note(ax, f"{value:.2f}", (i, max(0.0, value)), (0, 8), ha="center", fontsize=SMALL)
    names = ["\n".join(_short(visible(p[i]), 12) for p in pieces) for i in range(n)]
    ax.set_xticks(range(n), names, parse_math=False, fontsize=SMALL)
    ax.tick_params(axis="x", length=0)
    ax.axhline(1, color=FAINT, linewidth=1, linestyle=DASHED, zorder=0)
    ax.set_ylim(min(0.0, *similarities), 1.15)
    ax.set_ylabel("cosine of the two states")
    ax.set_title("Equal until the texts differ: a state knows only what came before")
    fig.alt = "Cosines of two texts' states, token by token: " + "; ".join(
        f"{name.replace(chr(10), ' and ')}: {value:.2f}" for name, value in zip(names, similarities, strict=True)
    )
    return fig


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _plain(text: str) -> str:
    """A text with spaces unchanged, and characters that the font lacks as code points."""
    return visible(text).replace("␣", " ")


@drawn
def heat(tables: Mapping[str, np.ndarray], names: Sequence[str], topics: Sequence[str]) -> Picture:
    """Tables of all texts' similarities side by side, on one scale from -1 to 1, with frames around the topics.

    Args:
        tables: title -> cosines (n, n).
        names: one word per text.
        topics: the texts' topics; texts of one topic are adjacent.
    """
    n = len(names)
    if not tables or len(topics) != n:
        raise ParameterError(f"{n} names, {len(topics)} topics, {len(tables)} tables; expected a topic a name, a table")
    fig = picture(0.5 + 8.6 / max(2, len(tables)))
    axes = np.atleast_1d(fig.subplots(1, len(tables), sharey=True))
    # White at 0, where two texts have nothing in common.
    colours = LinearSegmentedColormap.from_list("cosines", [VERMILION, "white", BLUE])
    texts, image = [], None
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        table = _square(table, n, "similarities")
        image = ax.imshow(table, vmin=-1, vmax=1, cmap=colours, interpolation="nearest")
        for topic in dict.fromkeys(topics):
            rows = [i for i, t in enumerate(topics) if t == topic]
            low, high = rows[0] - 0.5, rows[-1] + 0.5
            ax.plot([low, high, high, low, low], [low, low, high, high, low], color=INK, linewidth=1.6)
        ax.set_title(title)
        ax.set_xticks([])
        ax.tick_params(axis="y", length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        same, other = _same_and_other(table, topics)
        texts.append(f"{title}: mean {same.mean():.2f} within a topic, {other.mean():.2f} across")
    axes[0].set_yticks(range(n), [_plain(name) for name in names], fontsize=SMALL, parse_math=False)
    if image is not None:
        bar = fig.colorbar(image, ax=axes, orientation="horizontal", shrink=0.6, aspect=40, pad=0.03)
        bar.set_label("cosine similarity (frames: one topic)")
        bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    fig.alt = f"Similarities of {n} texts with one another. {'; '.join(texts)}."
    return fig


def _same_and_other(table: np.ndarray, topics: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of pairs within a topic, and of pairs across topics; each pair once."""
    pairs = list(combinations(range(len(topics)), 2))
    alike = np.array([topics[i] == topics[j] for i, j in pairs], bool)
    values = np.array([table[pair] for pair in pairs])
    return values[alike], values[~alike]


@drawn
def spreads(tables: Mapping[str, np.ndarray], topics: Sequence[str], scores: Mapping[str, str]) -> Picture:
    """One row per way to make vectors: every pair's cosine, pairs of one topic above pairs of two topics.

    Args:
        tables: the way's name -> cosines (n, n).
        topics: the texts' topics.
        scores: the way's name -> the text at the right.
    """
    if not tables or set(tables) != set(scores):
        raise ParameterError(f"tables of {list(tables)} and scores of {list(scores)}; expected the same, at least one")
    fig = picture(1.3 + 0.62 * len(tables))
    ax = fig.add_subplot()
    texts = []
    for row, (name, table) in enumerate(tables.items()):
        same, other = _same_and_other(_square(table, len(topics), "similarities"), topics)
        if not len(same) or not len(other):
            raise ParameterError(f"topics are {sorted(set(topics))}; expected two, and two texts of one of them")
        for values, dy, colour, marker in ((same, -0.17, BLUE, "o"), (other, 0.17, VERMILION, "|")):
            ax.plot(values, [row + dy] * len(values), marker, color=colour, markersize=7, alpha=0.45, clip_on=False)
            ax.plot([values.mean()] * 2, [row + dy - 0.16, row + dy + 0.16], color=INK, linewidth=2.6)
        note(ax, scores[name], (1.04, row), annotation_clip=False, fontsize=SMALL)
        texts.append(f"{name}: {same.mean():.2f} within, {other.mean():.2f} across, {scores[name]}")
    ax.set_yticks(range(len(tables)), list(tables), parse_math=False)
    ax.set_ylim(len(tables) - 0.45, -0.75)
    ax.set_xlim(-0.75, 1.02)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.set_xlabel("cosine similarity of a pair (thick mark: the mean)")
    note(ax, "● pairs of one topic", (0, 1), (0, 4), xycoords="axes fraction", color=dark(BLUE), fontsize=SMALL)
    note(
        ax, "|  pairs of two topics", (0.3, 1), (0, 4), xycoords="axes fraction", color=dark(VERMILION), fontsize=SMALL
    )
    fig.alt = f"Cosines of pairs of texts. {'; '.join(texts)}."
    return fig


@drawn
def plane(points: np.ndarray, names: Sequence[str], topics: Sequence[str], share: float) -> Picture:
    """A map of texts: texts with similar vectors are close to each other.

    Args:
        points: (n, 2).
        names: one word per text.
        topics: the texts' topics: a shape and a colour each.
        share: the share of the vectors' variance that the two directions show, 0 to 1.
    """
    points = np.asarray(points, np.float64)
    kinds = list(dict.fromkeys(topics))
    if points.shape != (len(names), 2) or len(topics) != len(names) or not 0 < len(kinds) <= len(MARKS):
        raise ParameterError(
            f"points have shape {points.shape}, for {len(names)} names and {len(kinds)} topics; "
            f"expected ({len(names)}, 2), and 1 to {len(MARKS)} topics"
        )
    fig = picture(7.0)
    ax = fig.add_subplot()
    labels = []
    for (x, y), name, topic in zip(points, names, topics, strict=True):
        marker, colour = MARKS[kinds.index(topic)]
        ax.plot(x, y, marker, color=colour, markeredgecolor=INK, markersize=10)
        labels.append(((x, y), _plain(name), colour, False))
    ax.margins(0.09, 0.07)
    ax.autoscale_view()
    name_in_gaps(ax, labels, (8.7, 6.0))
    for i, kind in enumerate(kinds):
        marker, colour = MARKS[i]
        ax.plot([], [], marker, color=colour, markeredgecolor=INK, markersize=9, label=kind)
    fig.legend(loc="outside upper left", ncols=len(kinds), frameon=False, handletextpad=0.1, columnspacing=1.2)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(f"the two directions that differ most: {share:.0%} of all differences")
    fig.alt = f"A map of {len(names)} texts; two directions, {share:.0%} of the variance. " + "; ".join(
        f"{kind}: {', '.join(n for n, t in zip(names, topics, strict=True) if t == kind)}" for kind in kinds
    )
    return fig


@drawn
def ranking(query: str, texts: Sequence[str], similarities: Sequence[float], topics: Sequence[str]) -> Picture:
    """Texts ranked by similarity to a query, most similar first: a still version of the list of neighbours.

    Args:
        query: the text that the others are compared with.
        texts: the texts to rank.
        similarities: one cosine per text.
        topics: one topic per text.
    """
    if not len(texts) == len(similarities) == len(topics) or not texts:
        raise ParameterError(
            f"{len(texts)} texts, {len(similarities)} similarities, {len(topics)} topics; expected as many of each"
        )
    kinds = list(dict.fromkeys(topics))
    order = np.argsort(-np.asarray(similarities), kind="stable")
    fig = picture(1.2 + 0.3 * len(order))
    ax = fig.add_subplot()
    for row, i in enumerate(order):
        marker, colour = MARKS[kinds.index(topics[i]) % len(MARKS)]
        ax.hlines(row, 0, similarities[i], color=colour, linewidth=1.4)
        ax.plot(similarities[i], row, marker, color=colour, markeredgecolor=INK, markersize=8)
        note(ax, f"{similarities[i]:.2f}  {topics[i]}", (max(similarities[i], 0.0), row), (9, 0), fontsize=SMALL)
    ax.axvline(0, color=FAINT, linewidth=1)
    ax.set_yticks(range(len(order)), [_plain(texts[i]) for i in order], fontsize=SMALL, parse_math=False)
    ax.set_ylim(len(order) - 0.4, -0.6)
    low, high = min(0.0, *similarities), max(similarities)
    ax.set_xlim(low - 0.02 * (high - low), high + 0.3 * (high - low) + 1e-3)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("cosine similarity")
    fig.suptitle("\n".join(textwrap.wrap(f"Most like: {_plain(query)}", 70)), x=0.01, ha="left", parse_math=False)
    best = [f"{texts[i]} ({topics[i]}, {similarities[i]:.2f})" for i in order[:4]]
    fig.alt = f"{len(order)} texts ranked by likeness to {query!r}; most alike: {'; '.join(best)}."
    return fig


@drawn
def traps(kinds: Sequence[str], paraphrase: Sequence[float], lookalike: Sequence[float]) -> Picture:
    """For each trap, the sentence's similarity to its paraphrase (circle) and to a look-alike (square).

    Args:
        kinds: what each trap is about.
        paraphrase: cosine with other words of the same meaning.
        lookalike: cosine with nearly the same words of another meaning.
    """
    n = len(kinds)
    if not n or not n == len(paraphrase) == len(lookalike):
        raise ParameterError(f"{n} traps, {len(paraphrase)} and {len(lookalike)} cosines; expected as many of each")
    fig = picture(1.9 + 0.42 * n)
    ax = fig.add_subplot()
    y = np.arange(n)
    ax.hlines(y, paraphrase, lookalike, color=FAINT, linewidth=1.4)
    ax.plot(paraphrase, y, "o", color=BLUE, markeredgecolor=INK, markersize=10)
    ax.plot(lookalike, y, "s", color=VERMILION, markeredgecolor=INK, markersize=9)
    ax.set_yticks(y, list(kinds), parse_math=False)
    ax.set_ylim(n - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.set_xlabel("cosine similarity with the sentence")
    note(ax, "● the same meaning in other words", (0, 1), (0, 12), xycoords="axes fraction", color=dark(BLUE))
    note(
        ax, "■ another meaning in nearly the same words", (1, 1), (0, 12), xycoords="axes fraction",
        color=dark(VERMILION), ha="right",
    )  # fmt: skip
    fooled = sum(b > a for a, b in zip(paraphrase, lookalike, strict=True))
    fig.alt = f"In {fooled} of {n} traps the look-alike is nearer than the paraphrase: " + "; ".join(
        f"{kind}: paraphrase {a:.2f}, look-alike {b:.2f}"
        for kind, a, b in zip(kinds, paraphrase, lookalike, strict=True)
    )
    return fig


class Neighbours(widgets.VBox):
    """Choose a sentence to see the others ranked by similarity. A tick box centres the vectors first.

    Attributes:
        choice: the list of sentences; set its `.value` to an index.
        centred: the tick box.
        readout: the panel; its `.value` is HTML.
        order: indices of the others, most similar first, as currently shown.
    """

    def __init__(self, texts: Sequence[str], topics: Sequence[str], vectors: np.ndarray):
        vectors = np.asarray(vectors, np.float64)
        if len(texts) < 2 or len(topics) != len(texts) or vectors.ndim != 2 or len(vectors) != len(texts):
            raise ParameterError(
                f"{len(texts)} texts, {len(topics)} topics, vectors of shape {vectors.shape}; "
                "expected as many of each, at least 2"
            )
        self._texts, self._topics = list(texts), list(topics)
        self._vectors = {False: _unit(vectors), True: _unit(vectors - vectors.mean(axis=0))}
        self.order: list[int] = []
        self.choice = widgets.Dropdown(
            options=[(text, i) for i, text in enumerate(texts)], value=0, description="Sentence",
            layout=widgets.Layout(width="min(100%, 34em)"),
        )  # fmt: skip
        self.centred = widgets.Checkbox(value=True, description="take the mean away first", indent=False)
        self.readout = widgets.HTML()
        super().__init__([self.choice, self.centred, self.readout], layout=widgets.Layout(width="100%"))
        self.choice.observe(self._show, names="value")
        self.centred.observe(self._show, names="value")
        self._show()

    def __repr__(self) -> str:
        return "List of neighbours: a widget, alive while the notebook's kernel runs"

    def _show(self, _change: object = None) -> None:
        vectors, i = self._vectors[self.centred.value], self.choice.value
        scores = vectors @ vectors[i]
        self.order = [int(j) for j in np.argsort(-scores, kind="stable") if j != i]
        rows = "".join(
            f'<tr><td style="text-align:right;padding-right:.6em">{scores[j]:.2f}</td><td>{escape(self._texts[j])}</td>'
            f'<td style="padding-left:.6em">{"<b>" if (same := self._topics[j] == self._topics[i]) else ""}'
            f"{escape(self._topics[j])}{' ✓</b>' if same else ''}</td></tr>"
            for j in self.order
        )
        self.readout.value = (
            '<table class="teachllama-neighbours"><tr><th scope="col">cosine</th><th scope="col">sentence</th>'
            f'<th scope="col">topic</th></tr>{rows}</table>'
        )


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))
