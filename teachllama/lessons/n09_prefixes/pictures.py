"""The pictures and the widget of notebook 09, prefixes: what two prompts share, a tree of pages as it grows, forks, the
detective's table, hit rates, and what windows leave.

Pictures take numbers that the notebook has computed and return a `Picture`; its `alt` describes it in words.
`History` records the prefixes of a pool without changing them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from teachllama.chat.reuse import REASONS
from teachllama.errors import ParameterError
from teachllama.kv.stored import PAGE
from teachllama.lessons.common.style import (
    BLUE,
    BODY,
    DASHED,
    DOTTED,
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
    count_axis,
    dark,
    drawn,
    format_bytes,
    name_at_edge,
    note,
    picture,
    visible,
)

try:
    import ipywidgets as widgets
except ImportError as e:
    raise ImportError('the widget needs ipywidgets, which is not installed: pip install "teachllama[lab]"') from e

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from teachllama.chat import Reuse
    from teachllama.model import Model
    from teachllama.prefixes import Node, Prefixes

KEPT = "#dddddd"
COLOURS = {"new": ORANGE, "used": SKY, "kept": KEPT, "gone": "#ffffff"}
MEANING = {"new": "new in this step", "used": "used in this step", "kept": "was there", "gone": "let go of"}
LEGEND = " ".join(
    f'<span style="background:{COLOURS[state]};border:1px {"dashed" if state == "gone" else "solid"} {INK};color:{INK};'
    f'padding:0 .4em;margin:.2em .4em 0 0;display:inline-block">{text}</span>'
    for state, text in MEANING.items()
)


# ---- what two prompts share ----


@drawn
def agreement(n_same: int, n_tokens: int) -> Picture:
    """A prompt's tokens, one row per page: whole pages kept, tokens that agree but are evaluated, and the rest.

    Args:
        n_same: tokens at its beginning that are held.
        n_tokens: tokens of the prompt.
    """
    if not 0 <= n_same <= n_tokens or n_tokens < 1:
        raise ParameterError(
            f"{n_same} of {n_tokens} tokens agree; expected at least one token, and no more that agree"
        )
    n_kept = min(n_same, n_tokens - 1) // PAGE * PAGE
    rows = -(-n_tokens // PAGE)
    grid = np.full(rows * PAGE, np.nan)
    grid[:n_tokens], grid[:n_same], grid[:n_kept] = 2, 1, 0
    fig = picture(1.5 + 0.42 * rows)
    ax = fig.add_subplot()
    colours = (BLUE, SKY, ORANGE)
    ax.pcolormesh(grid.reshape(rows, PAGE), cmap=ListedColormap(colours), vmin=0, vmax=2, edgecolors="white", lw=1.2)
    ax.set_ylim(rows, 0)
    ax.set_yticks(np.arange(rows) + 0.5, [f"page {i}" for i in range(rows)])
    ax.set_xticks([0, 16, 32, 48, 64])
    ax.set_xlabel("tokens of a page")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    counts = {"kept": n_kept, "agree, evaluated": n_same - n_kept, "differ": n_tokens - n_same}
    _legend(ax, {f"{name}: {n}": c for (name, n), c in zip(counts.items(), colours, strict=True)})
    fig.alt = f"{n_tokens} tokens in {rows} pages: " + ", ".join(f"{name} {n}" for name, n in counts.items()) + "."
    return fig


def _legend(ax: Axes, colours: Mapping[str, str]) -> None:
    patches = [Patch(facecolor=c, edgecolor=INK, linewidth=0.6, label=name) for name, c in colours.items()]
    ax.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(patches), frameon=False, fontsize=SMALL,
        handlelength=1.1, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip


@drawn
def bars(values: Mapping[str, float], label: str, say: Callable[[float], str] = "{:,.0f}".format) -> Picture:
    """A bar for each name.

    Args:
        values: name -> value.
        label: the axis label.
        say: value -> the text beside its bar.
    """
    if not values or min(values.values()) < 0:
        raise ParameterError(f"values are {dict(values)}; expected at least one, none below 0")
    fig = picture(1.3 + 0.5 * len(values))
    ax = fig.add_subplot()
    most = max(values.values()) or 1
    colours = [BLUE, ORANGE, GREEN, PURPLE, SKY]
    shades = [colours[i % 5] for i in range(len(values))]
    ax.barh(range(len(values)), list(values.values()), color=shades, edgecolor=INK, linewidth=0.6, height=0.6)
    for i, v in enumerate(values.values()):
        note(ax, say(v), (v, i), (6, 0), fontsize=BODY)
    ax.set_yticks(range(len(values)), list(values), parse_math=False)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1.22 * most)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.set_xlabel(label)
    fig.alt = f"{label}: " + ", ".join(f"{name} {say(v)}" for name, v in values.items()) + "."
    return fig


# ---- a tree as it grows ----


class Snapshot(NamedTuple):
    """The tree after one event."""

    event: str
    states: dict[int, str]  # page number -> a key of MEANING; without pages not yet seen

    def count(self, *states: str) -> int:
        """How many pages are in one of these states."""
        return sum(state in states for state in self.states.values())


class History:
    """The history of a pool's prefixes, look by look. A page gets its number when it is first seen.

    Attributes:
        snapshots: one per look.
        labels: one per page: its owner, and which page of the prompt it is ("B3").
        parents: one number per page; -1 for a first page.
    """

    def __init__(self, prefixes: Prefixes):
        self._prefixes = prefixes
        self._numbers: dict[tuple[tuple[int, ...], ...], int] = {}
        self._used: dict[int, int] = {}
        self.snapshots: list[Snapshot] = []
        self.labels: list[str] = []
        self.parents: list[int] = []

    def look(self, event: str, owner: str) -> Snapshot:
        """Records the current tree.

        Args:
            event: what has just happened, in a few words.
            owner: the owner of the new pages, in a letter or two.
        """
        before, states, used = set(self._used), dict.fromkeys(self._numbers.values(), "gone"), dict[int, int]()
        for path, node in sorted((_path(node), node) for node in self._prefixes.nodes()):
            if path not in self._numbers:
                self._numbers[path] = len(self.labels)
                self.labels.append(f"{owner}{len(path)}")
                self.parents.append(self._numbers[path[:-1]] if len(path) > 1 else -1)
            number = self._numbers[path]
            used[number] = node.used
            new = number not in before
            states[number] = "new" if new else "used" if node.used != self._used[number] else "kept"
        self._used = used
        self.snapshots.append(Snapshot(event, states))
        return self.snapshots[-1]

    def names(self, snapshot: Snapshot, *states: str) -> list[str]:
        """The labels of a snapshot's pages in these states."""
        return [self.labels[i] for i, state in snapshot.states.items() if state in states]

    def places(self) -> list[tuple[int, int]]:
        """(column, row) of every page that was ever seen: columns follow the prompt, and each leaf has its row."""
        children: dict[int, list[int]] = {}
        for i, parent in enumerate(self.parents):
            children.setdefault(parent, []).append(i)
        places, n_rows = [(0, 0)] * len(self.labels), 0
        waiting = [(i, 0) for i in reversed(children.get(-1, []))]
        while waiting:
            i, column = waiting.pop()
            places[i] = (column, n_rows)
            below = children.get(i, [])
            n_rows += not below
            waiting.extend((child, column + 1) for child in reversed(below))
        return places


def _path(node: Node) -> tuple[tuple[int, ...], ...]:
    path: list[tuple[int, ...]] = []
    while node.parent is not None:
        path.append(node.tokens)
        node = node.parent
    return tuple(reversed(path))


def _alt(history: History, snapshot: Snapshot) -> str:
    parts = [f"{MEANING[s]}: {', '.join(names)}" for s in MEANING if (names := history.names(snapshot, s))]
    return f"{snapshot.event}. {'; '.join(parts) or 'no pages'}."


@drawn
def growth(history: History, columns: int = 2) -> Picture:
    """The tree after each event, one panel per look. Columns are pages of a prompt; lines lead to the next pages."""
    if not history.snapshots:
        raise ParameterError("nothing was looked at yet; call history.look() first")
    places = history.places()
    wide, high = (1 + max((p[k] for p in places), default=0) for k in (0, 1))
    n = len(history.snapshots)
    rows = -(-n // columns)
    fig = picture(0.6 + rows * (0.75 + 0.4 * high))
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for i, (ax, snapshot) in enumerate(zip(axes, history.snapshots, strict=False)):
        _draw(ax, history, snapshot, places)
        ax.set_xlim(-0.1, wide)
        ax.set_ylim(high + 0.2, -0.1)
        ax.set_title(f"{i + 1}. {snapshot.event}", fontsize=BODY, pad=4)
    seen = [s for s in MEANING if any(s in shot.states.values() for shot in history.snapshots)]
    handles = [Patch(facecolor=COLOURS[s], edgecolor=INK, linewidth=0.8, label=MEANING[s]) for s in seen]
    if handles:
        fig.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=SMALL)
    fig.alt = " ".join(f"{i}: {_alt(history, s)}" for i, s in enumerate(history.snapshots, 1))
    return fig


def _draw(ax: Axes, history: History, snapshot: Snapshot, places: Sequence[tuple[int, int]]) -> None:
    for i, state in snapshot.states.items():
        (x, y), parent = places[i], history.parents[i]
        gone = state == "gone"
        if parent >= 0:
            px, py = places[parent]
            xs, ys = [px + 0.84, px + 0.92, px + 0.92, x], [py + 0.4, py + 0.4, y + 0.4, y + 0.4]
            ax.plot(xs, ys, color=FAINT, linewidth=1.2, linestyle=DOTTED if gone else SOLID, zorder=0)
        ax.add_patch(
            Rectangle(
                (x, y), 0.84, 0.8, facecolor=COLOURS[state], edgecolor=FAINT if gone else INK, linewidth=0.9,
                linestyle=DOTTED if gone else SOLID,
            )
        )  # fmt: skip
        colour = FAINT if gone else INK
        note(ax, history.labels[i], (x + 0.42, y + 0.4), ha="center", halo=None, color=colour, fontsize=SMALL)


class TreeSlider(widgets.VBox):
    """A widget: move through a tree's history, event by event.

    Attributes:
        step: the slider; set its `.value`, from 1.
        readout: the panel; its `.value` is HTML with a drawing.
    """

    def __init__(self, history: History):
        if not history.snapshots:
            raise ParameterError("nothing was looked at yet; call history.look() first")
        self._history, self._places = history, history.places()
        self.step = widgets.IntSlider(
            value=1, min=1, max=len(history.snapshots), description="After event",
            tooltip="Which event of the history to stop after", style={"description_width": "7em"},
            layout=widgets.Layout(width="min(100%, 34em)"),
        )  # fmt: skip
        self.readout = widgets.HTML()
        super().__init__([self.step, self.readout], layout=widgets.Layout(width="100%"))
        self.step.observe(self._show, names="value")
        self._show()

    def __repr__(self) -> str:
        return "Tree slider: a widget, alive while the notebook's kernel runs"

    def _show(self, _change: object = None) -> None:
        snapshot = self._history.snapshots[self.step.value - 1]
        n = snapshot.count("new", "used", "kept")
        self.readout.value = (
            f"<div><b>{escape(snapshot.event)}</b></div>{self._svg(snapshot)}"
            f'<div><output data-testid="teachllama-tree">{n}</output> pages of {PAGE} tokens are held; new in this '
            f"step {snapshot.count('new')}, used {snapshot.count('used')}, let go of so far {snapshot.count('gone')}."
            f"</div><div>{LEGEND}</div>"
        )

    def _svg(self, snapshot: Snapshot) -> str:
        wide, high = (1 + max((p[k] for p in self._places), default=0) for k in (0, 1))
        parts = []
        for i, state in snapshot.states.items():
            (x, y), parent = self._places[i], self._history.parents[i]
            dashes = ' stroke-dasharray="2 2"' if state == "gone" else ""
            if parent >= 0:
                px, py = self._places[parent]
                points = f"{84 * px + 70},{34 * py + 14} {84 * px + 77},{34 * py + 14} {84 * px + 77},{34 * y + 14}"
                points += f" {84 * x},{34 * y + 14}"
                parts.append(f'<polyline points="{points}" fill="none" stroke="{FAINT}"{dashes}/>')
            parts.append(
                f'<rect x="{84 * x}" y="{34 * y}" width="70" height="28" fill="{COLOURS[state]}" stroke="{INK}"'
                f"{dashes}/>"
                f'<text x="{84 * x + 35}" y="{34 * y + 19}" text-anchor="middle" font-size="14" '
                f'fill="{INK}">{escape(self._history.labels[i])}</text>'
            )
        return (
            f'<svg viewBox="-2 -2 {84 * wide} {34 * high}" style="width:min(100%, {84 * wide}px)" role="img" '
            f'aria-label="{escape(_alt(self._history, snapshot), quote=True)}">{"".join(parts)}</svg>'
        )


# ---- forks ----


@drawn
def pages(tables: Mapping[str, Mapping[str, Sequence[int]]]) -> Picture:
    """Tables of pages side by side: a row per session, a box per page of one layer with its number.

    Args:
        tables: moment -> session -> its pages, from the beginning.
    """
    if not tables or not all(tables.values()):
        raise ParameterError("no sessions to draw; expected at least one table with at least one session")
    n_rows = max(map(len, tables.values()))
    wide = max(len(held) for table in tables.values() for held in table.values())
    fig = picture(1.2 + 0.42 * n_rows)
    axes = fig.subplots(1, len(tables), squeeze=False).ravel()
    texts = []
    for ax, (when, table) in zip(axes, tables.items(), strict=True):
        taken = [p for held in table.values() for p in held]
        for y, held in enumerate(table.values()):
            for x, page in enumerate(held):
                shared = taken.count(page) > 1
                ax.add_patch(
                    Rectangle((x, y), 0.92, 0.8, facecolor=SKY if shared else ORANGE, edgecolor=INK, linewidth=0.8)
                )
                note(ax, str(page), (x + 0.46, y + 0.4), ha="center", halo=None, fontsize=SMALL)
        ax.set_xlim(-0.05, wide)
        ax.set_ylim(n_rows, -0.1)
        ax.set_yticks(np.arange(len(table)) + 0.4, list(table), fontsize=SMALL, parse_math=False)
        ax.set_xticks([])
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.set_title(f"{when}: {len(set(taken))} pages", fontsize=BODY)
        texts.append(f"{when}: {len(table)} sessions hold {len(taken)} pages in all, {len(set(taken))} different ones")
    handles = [
        Patch(facecolor=SKY, edgecolor=INK, label="held by several"),
        Patch(facecolor=ORANGE, edgecolor=INK, label="held by one"),
    ]
    fig.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=SMALL)
    fig.alt = "; ".join(texts) + "."
    return fig


# ---- the detective ----


class Clues:
    """A table of changes to a conversation, with the findings of `explain_reuse`.

    Args:
        found: description of the change -> finding.
    """

    def __init__(self, found: Mapping[str, Reuse]):
        self.found = dict(found)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for what, r in self.found.items():
            differs = "none" if r.first is None else f"{r.first}: {visible(r.held)} → {visible(r.wanted)}"
            place = "" if r.message is None else str(r.message)
            cost = f"{r.n_evaluated:,} of {r.n_tokens:,}"
            rows.append((what, differs, place, REASONS[r.reason], cost, format_bytes(r.nbytes)))
        return rows

    def _repr_html_(self) -> str:
        names = (
            "what was changed",
            "first token that differs",
            "message",
            "why",
            "tokens evaluated",
            "keys and values",
        )
        head = "".join(f"<th style='text-align:left'>{x}</th>" for x in names)
        cell = "<td style='text-align:left'>"
        rows = "".join("<tr>" + "".join(f"{cell}{escape(text)}</td>" for text in row) + "</tr>" for row in self._rows())
        return f"<table><tr>{head}</tr>{rows}</table>"

    def __repr__(self) -> str:
        return "\n".join(": ".join((row[0], ", ".join(x for x in row[1:] if x))) for row in self._rows())


@drawn
def price(found: Mapping[str, Reuse]) -> Picture:
    """A bar for each change: tokens of the conversation that are reused, and those that are evaluated."""
    if not found:
        raise ParameterError("nothing to draw; expected at least one change and what was found")
    fig = picture(1.6 + 0.46 * len(found))
    ax = fig.add_subplot()
    for y, r in enumerate(found.values()):
        ax.barh(y, r.n_reused, color=BLUE, edgecolor=INK, linewidth=0.6, height=0.6)
        ax.barh(y, r.n_evaluated, left=r.n_reused, color=ORANGE, edgecolor=INK, linewidth=0.6, height=0.6, hatch="//")
        note(ax, format_bytes(r.nbytes), (r.n_tokens, y), (6, 0), fontsize=SMALL)
    ax.set_yticks(range(len(found)), list(found), parse_math=False)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1.16 * max(r.n_tokens for r in found.values()))
    count_axis(ax.xaxis, "tokens of the conversation; beside the bar, keys and values to be written")
    handles = [
        Patch(facecolor=BLUE, edgecolor=INK, label="reused"),
        Patch(facecolor=ORANGE, edgecolor=INK, hatch="//", label="evaluated"),
    ]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=SMALL)
    fig.alt = "Tokens evaluated: " + ", ".join(f"{w} {r.n_evaluated} of {r.n_tokens}" for w, r in found.items()) + "."
    return fig


def spelled_otherwise(model: Model, ids: Sequence[int], least: int = 0) -> list[int]:
    """The same text in other tokens, as a model might have written it: the last token that can be cut is cut in two.

    Args:
        ids: a text's tokens.
        least: only a token at this position or later is cut.

    Raises:
        ParameterError: no token can be cut.
    """
    tokenizer = model.tokenizer
    for at in range(len(ids) - 1, least - 1, -1):
        piece = tokenizer.piece(ids[at])
        if len(piece) < 3 or not piece.strip().isalpha():
            continue
        for cut in range(len(piece) - 1, 1, -1):
            pair = [model.encode(piece[:cut]), model.encode(piece[cut:])]
            written = [*ids[:at], *pair[0], *pair[1], *ids[at + 1 :]]
            whole = b"".join(map(tokenizer.piece_bytes, pair[0] + pair[1]))
            if whole == tokenizer.piece_bytes(ids[at]) and len(pair[0]) == len(pair[1]) == 1:
                return written
    raise ParameterError(f"no token from position {least} on can be written as two; give a longer text")


# ---- hit rates, and windows ----


@drawn
def hit_rates(rooms: Sequence[int], rates: Mapping[str, Sequence[float]]) -> Picture:
    """Lines: the share of all tokens that were already evaluated, against the room for pages.

    Args:
        rooms: numbers of pages.
        rates: pattern of traffic -> a share from 0 to 1 for each room.
    """
    if not rates or any(len(values) != len(rooms) for values in rates.values()):
        raise ParameterError(f"expected {len(rooms)} rates for each pattern, one for each room")
    fig = picture(4.6)
    ax = fig.add_subplot()
    styles = ((BLUE, SOLID, "o"), (VERMILION, DASHED, "s"), (GREEN, DOTTED, "D"), (PURPLE, SOLID, "^"))
    for (colour, dashes, mark), values in zip(styles * 3, rates.values(), strict=False):
        ax.plot(rooms, 100 * np.asarray(values), color=colour, linestyle=dashes, marker=mark, markersize=6)
    ax.set_ylim(-3, 103)
    ax.set_xlim(left=0)
    ax.set_ylabel("tokens found done, %")
    count_axis(ax.xaxis, f"room, in pages of {PAGE} tokens")
    ax.grid(True)
    labels = [(100 * v[-1], name, c, False) for (c, *_), (name, v) in zip(styles * 3, rates.items(), strict=False)]
    name_at_edge(ax, labels, 3.7)
    fig.alt = "Hit rate with the least and the most room: " + ", ".join(
        f"{name} {v[0]:.0%} and {v[-1]:.0%}" for name, v in rates.items()
    )
    return fig


@drawn
def usable(lengths: Sequence[int], reused: Mapping[str, Sequence[int]]) -> Picture:
    """Steps: how many tokens of a prompt are reused, by its length. The prompt is the beginning of a held conversation.

    Args:
        lengths: tokens of the prompt.
        reused: name of the line -> tokens reused for each length.
    """
    if not reused or any(len(values) != len(lengths) for values in reused.values()):
        raise ParameterError(f"expected {len(lengths)} numbers for each line, one for each length")
    fig = picture(1.0 + 1.55 * len(reused))
    axes = fig.subplots(len(reused), 1, sharex=True, squeeze=False).ravel()
    for ax, colour, (name, values) in zip(axes, (BLUE, VERMILION, GREEN) * 3, reused.items(), strict=False):
        ax.plot(lengths, lengths, color=FAINT, linewidth=1, linestyle=DOTTED)
        ax.fill_between(lengths, values, step="post", color=colour, alpha=0.25, linewidth=0)
        ax.step(lengths, values, where="post", color=colour)
        ax.set_title(name, fontsize=BODY, color=dark(colour), pad=4)
        ax.set_ylim(0, 1.08 * max(lengths))
        ax.grid(True)
        ax.set_ylabel("reused", fontsize=SMALL)
    count_axis(axes[-1].xaxis, "tokens of the prompt (dotted: all of them)")
    fig.alt = "Tokens reused, on average over the lengths: " + ", ".join(
        f"{name} {np.mean(values):.0f}" for name, values in reused.items()
    )
    return fig


__all__ = [
    "Clues", "History", "Snapshot", "TreeSlider", "agreement", "bars", "growth", "hit_rates", "pages", "price",
    "spelled_otherwise", "usable",
]  # fmt: skip
