"""The pictures of notebook 01, hello, generation: a text in tokens, byte-pair merging step by step, how many characters
a token stands for, and where a GGUF file's bytes are. Each returns a `Picture`; its `alt` describes it in words.

Uses only the engine's public names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.textpath import TextPath

from teachllama.errors import ParameterError
from teachllama.lessons.common.style import (
    BLUE,
    BODY,
    DASHED,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    SKY,
    SMALL,
    VERMILION,
    WIDTH,
    Picture,
    bytes_axis,
    count_axis,
    dark,
    drawn,
    format_bytes,
    note,
    picture,
    visible,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from teachllama.model import Model

PAPER = ("#d9ecf7", "#fdebc8")  # two alternating light fills; in greyscale, outlines and gaps separate the boxes
ROOM = WIDTH * 72 - 16  # points across a picture
MOST_LETTERS = 48  # shown of one token's text


@drawn
def token_boxes(
    model: Model, texts: Mapping[str, str | Sequence[int]], *, special: Collection[int] = (), title: str = ""
) -> Picture:
    """Texts as boxes, one per token: above, the token's text; below, its id.

    A dashed box begins or ends inside a character; it shows its bytes in hexadecimal. A box with a thick edge is a
    special token.

    Args:
        model: encodes the texts; its vocabulary gives the pieces.
        texts: name -> text, or token ids.
        special: the ids that get a thick edge.
        title: the picture's title.
    """
    if not texts:
        raise ParameterError("no texts: give at least one, by name")
    tall, gap, row, label = 36.0, 4.0, 44.0, 24.0  # points
    y, alt = 0.0, []
    boxes: list[tuple[float, float, float, str, int, bool]] = []  # (left, top, width, text, id, part of a character)
    names: list[tuple[float, str]] = []
    for name, text in texts.items():
        ids = model.encode(text) if isinstance(text, str) else [int(i) for i in text]
        pieces = [_piece(model, i) for i in ids]
        names.append((y, f"{name}: {len(ids)} token{'s' * (len(ids) != 1)}"))
        x, y = 0.0, y + label
        for i, (piece, part) in zip(ids, pieces, strict=True):
            width = min(max(text_width(piece, BODY), text_width(str(i), SMALL - 1)) + 11, ROOM)
            if x + width > ROOM:
                x, y = 0.0, y + row
            boxes.append((x, y, width, piece, i, part))
            x += width + gap
        y += row + 6
        alt.append(f"{name}: " + " | ".join(piece for piece, _ in pieces))
    fig = picture(y / 72 + (0.75 if title else 0.2))
    ax = _points(fig, y)
    for top, text in names:
        ax.text(0, top + label / 2, text, va="center", fontsize=SMALL, weight="bold")
    for number, (left, top, width, text, i, part) in enumerate(boxes):
        edge: dict[str, Any] = {"edgecolor": INK, "linewidth": 3.0 if i in special else 1.0}
        if part:
            edge |= {"linestyle": DASHED, "linewidth": 1.4}
        _box(ax, left, top, width, tall, facecolor=PAPER[number % 2], **edge)
        colour = dark(VERMILION) if part else "black"
        middle = left + width / 2
        ax.text(middle, top + 12, text, ha="center", va="center", fontsize=BODY, color=colour)
        ax.text(middle, top + 27, f"{i}", ha="center", va="center", fontsize=SMALL - 1, color="#555555")
    if title:
        ax.set_title(title)
    fig.alt = "Texts cut into tokens. " + ". ".join(alt) + "."
    return fig


def _piece(model: Model, token_id: int) -> tuple[str, bool]:
    """The text for a token's box, and whether the token is only part of a character."""
    raw = model.tokenizer.piece_bytes(token_id)
    try:
        text = visible(raw.decode())
    except UnicodeDecodeError:
        return raw[:8].hex(" ").upper() + " …" * (len(raw) > 8), True
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…", False


def text_width(text: str, size: float) -> float:
    """The width of a text in points, at a font size of `size` points."""
    return float(TextPath((0, 0), text, size, prop=FontProperties(family="DejaVu Sans")).get_extents().width)


def _points(fig: Picture, height: float) -> Axes:
    """Axes measured in points from the top left corner, without a frame."""
    ax = fig.add_subplot()
    ax.set_xlim(-3, ROOM + 3)
    ax.set_ylim(height, -3)
    ax.set_axis_off()
    return ax


def _box(ax: Axes, left: float, top: float, width: float, height: float, **style: Any) -> None:
    ax.add_patch(FancyBboxPatch((left, top), width, height, boxstyle="round,pad=0,rounding_size=4", **style))


@drawn
def merge_steps(steps: Sequence[tuple[Sequence[str], int | None, str]]) -> Picture:
    """Byte-pair merging, one row per step: every letter keeps its place, and the symbol just made is drawn thick.

    Args:
        steps: (symbols, the index of the symbol just made or None, a few words about why), first to last. The
            symbols of every row spell the same text.
    """
    texts = {"".join(symbols) for symbols, _, _ in steps}
    if len(texts) != 1 or not all(texts):
        raise ParameterError(f"the steps spell {len(texts)} texts; expected one, not empty, in every row")
    n_letters = len(texts.copy().pop())
    row, left, right = 36.0, 64.0, 190.0
    unit = min(40.0, (ROOM - left - right) / n_letters)
    fig = picture(len(steps) * row / 72 + 1.1)
    ax = _points(fig, len(steps) * row + 22)
    ax.text(left + n_letters * unit + 14, 8, "why this pair", fontsize=SMALL, color="#555555", va="center")
    for number, (symbols, joined, why) in enumerate(steps):
        top, x = number * row + 22, left
        ax.text(0, top + 14, "letters" if number == 0 else f"step {number}", va="center", fontsize=SMALL)
        for i, symbol in enumerate(symbols):
            wide = len(symbol) * unit
            new = i == joined
            _box(
                ax, x + 1.5, top, wide - 3, 28, facecolor=ORANGE if new else PAPER[0], edgecolor=INK,
                linewidth=2.6 if new else 0.9,
            )  # fmt: skip
            weight = "bold" if new else "normal"
            ax.text(x + wide / 2, top + 14, visible(symbol), ha="center", va="center", color="black", weight=weight)
            x += wide
        ax.text(x + 14, top + 14, why, va="center", fontsize=SMALL)
    ax.set_title("From letters to tokens, one join at a time")
    last = " | ".join(visible(symbol) for symbol in steps[-1][0])
    fig.alt = f"{len(steps) - 1} joins lead from {n_letters} letters to {len(steps[-1][0])} tokens: {last}."
    return fig


@drawn
def characters_and_tokens(rows: Sequence[tuple[str, int, int]]) -> Picture:
    """Two bars per text, its characters and its tokens, with the number of characters per token.

    Args:
        rows: (name, characters, tokens), drawn from the top.
    """
    if not rows or any(characters < 1 or tokens < 1 for _, characters, tokens in rows):
        raise ParameterError("give at least one text; each needs a character and a token")
    fig = picture(1.7 + 0.56 * len(rows))
    ax = fig.add_subplot()
    most = max(max(characters, tokens) for _, characters, tokens in rows)
    for y, (_, characters, tokens) in enumerate(rows):
        ax.barh(y - 0.2, characters, height=0.36, facecolor="white", edgecolor=FAINT, hatch="///", linewidth=0.9)
        ax.barh(y + 0.2, tokens, height=0.36, facecolor=BLUE, edgecolor=INK, linewidth=0.6)
        text = f"{characters / tokens:.1f} characters a token"
        note(ax, text, (max(characters, tokens), y), (8, 0), fontsize=SMALL)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, most * 1.42)
    count_axis(ax.xaxis, "striped: characters       solid: tokens")
    ax.grid(True, axis="x")
    ax.set_title("A token is not a word, and not a letter")
    fig.alt = "Characters and tokens of each text. " + " ".join(
        f"{name}: {characters} characters, {tokens} tokens, {characters / tokens:.1f} characters a token."
        for name, characters, tokens in rows
    )
    return fig


@drawn
def file_bytes(sections: Sequence[tuple[str, int]], kinds: Mapping[str, int]) -> Picture:
    """A GGUF file as a strip from its first byte to its last, and the bytes of each kind of tensor as bars.

    Args:
        sections: (name, bytes) in the file's order; adjacent names that begin with "blk." share one label, as layers.
        kinds: kind of tensor -> bytes, drawn from the top.
    """
    total = sum(nbytes for _, nbytes in sections)
    if total <= 0 or not kinds:
        raise ParameterError("the sections have no bytes, or there are no kinds; expected some of each")
    fig = picture(3.2 + 0.42 * len(kinds))
    strip, ax = fig.subplots(2, 1, height_ratios=[1.1, 0.5 * len(kinds)])
    at, runs = 0, list[tuple[str, int, int, int]]()  # (name, first byte, bytes, layers)
    for name, nbytes in sections:
        n_layers = runs[-1][3] if runs else 0  # in the run before this section
        layer = name.startswith("blk.")
        colour = (
            (ORANGE, "#f5cf85")[n_layers % 2]
            if layer
            else BLUE
            if "embd" in name
            else GREEN
            if name == "header"
            else SKY
        )
        strip.add_patch(Rectangle((at, 0), nbytes, 1, facecolor=colour, edgecolor=INK, linewidth=0.5))
        if layer and n_layers:
            _, start, so_far, _ = runs.pop()
            runs.append((f"{n_layers + 1} layers", start, so_far + nbytes, n_layers + 1))
        else:
            runs.append(("1 layer" if layer else name, at, nbytes, int(layer)))
        at += nbytes
    for name, start, nbytes, _ in runs:
        text, middle = f"{name}, {format_bytes(nbytes)}", start + nbytes / 2
        if nbytes > 0.2 * total:
            strip.text(
                middle, 0.5, text, ha="center", va="center", color="black", fontsize=SMALL,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
            )  # fmt: skip
        elif nbytes > 0.01 * total:
            end = middle > 0.7 * total
            note(strip, text, (middle, 1.0), (-2, 7), ha="right" if end else "left", va="bottom", fontsize=SMALL)
    strip.set_xlim(0, total)
    strip.set_ylim(0, 1.5)
    strip.set_yticks([])
    strip.spines["left"].set_visible(False)
    bytes_axis(strip.xaxis, "place in the file")
    strip.grid(False)
    strip.set_title("The file, from its first byte to its last")
    for y, (kind, nbytes) in enumerate(kinds.items()):
        hatch = "///" if kind.startswith("attn") else ".." if kind.startswith("ffn") else ""
        colour = "#f5cf85" if hatch else BLUE if "embd" in kind else GREEN if kind == "header" else SKY
        ax.barh(y, nbytes, height=0.7, facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.8)
        share = 100 * nbytes / total
        text = f"{share:.1f}%" if share >= 0.095 else f"{share:.1g}%"
        note(ax, f"{format_bytes(nbytes)}, {text}", (nbytes, y), (7, 0), fontsize=SMALL)
    ax.set_yticks(range(len(kinds)), list(kinds))
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(kinds) - 0.4, -0.6)
    ax.set_xlim(0, max(kinds.values()) * 1.3)
    bytes_axis(ax.xaxis, "bytes, all layers together")
    ax.set_title("By kind of tensor")
    fig.alt = (
        f"A file of {format_bytes(total)}: " + ", ".join(f"{name} {format_bytes(n)}" for name, _, n, _ in runs)
    ) + ". By kind: " + ", ".join(f"{kind} {format_bytes(n)}" for kind, n in kinds.items()) + "."  # fmt: skip
    return fig
