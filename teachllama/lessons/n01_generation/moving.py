"""A whole decode step of notebook 01 as one moving picture, and the same stages as a still.

`StepPlayer` is the widget: a text field, Play, and an HTML page that fills in as the token passes through the model.
`step_stages` is the still. Both draw a `teachllama.Step`, whose numbers the model computed. Independent of models.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle

from teachllama.errors import ParameterError, TeachLlamaError
from teachllama.lessons.common.style import (
    BLUE,
    DASHED,
    GREEN,
    INK,
    ORANGE,
    SKY,
    VERMILION,
    Picture,
    dark,
    drawn,
    note,
    visible,
)
from teachllama.lessons.n01_generation.pictures import text_width
from teachllama.looking import LayerStep, Step

try:
    import ipywidgets as widgets
except ImportError as e:
    raise ImportError(
        'the moving picture needs ipywidgets, which is not installed: pip install "teachllama[lab]"'
    ) from e

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TOKENS = 24  # rows of the table of keys and values that fit a screen
FULL = 3.0  # in units of a vector's root mean square: numbers at least this large get full colour
NEW, OLD = "#fdebc8", "#d9ecf7"  # the token of this step; the tokens already in the cache
_RAMP = np.array([[0, 114, 178], [255, 255, 255], [213, 94, 0]], float)  # BLUE below 0, VERMILION above


# ---- vectors as stripes of colour ----


def rms(x: np.ndarray) -> float:
    """Root mean square, the "size" of a vector here: 1 after a norm, before its weights."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def colours(x: np.ndarray, unit: float) -> np.ndarray:
    """Numbers (rows, columns) -> uint8 (rows, columns, 3): blue below 0, red above, full at `FULL * unit`."""
    t = np.clip(np.nan_to_num(x) / (FULL * unit or 1.0), -1, 1)[..., None]
    return np.asarray(
        np.where(t < 0, _RAMP[1] + (_RAMP[1] - _RAMP[0]) * t, _RAMP[1] + (_RAMP[2] - _RAMP[1]) * t), np.uint8
    )


def png(pixels: np.ndarray) -> bytes:
    """uint8 (rows, columns, 3) -> a PNG file, one pixel per number. https://www.w3.org/TR/png/"""
    rows, columns, _ = pixels.shape
    raw = np.zeros((rows, 1 + 3 * columns), np.uint8)  # each row begins with its filter type: 0, none
    raw[:, 1:] = pixels.reshape(rows, -1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw.tobytes(), 6)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _stripes(x: np.ndarray | None, unit: float | None = None, css: str = "") -> str:
    """A vector as an image one number high, or an empty frame if it is not computed yet."""
    if x is None:
        return f'<div class="s none" style="{css}"></div>'
    data = base64.b64encode(png(colours(np.atleast_2d(x), unit or rms(x)))).decode()
    return f'<img class="s" style="{css}" alt="{x.size} numbers as colours" src="data:image/png;base64,{data}">'


def _numbers(x: np.ndarray, n: int = 3) -> str:
    return ", ".join(f"{v:.2f}".replace("-", "−") for v in x[:n]) + (", …" if len(x) > n else "")


def _size(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _percent(p: float) -> str:
    if 0.9995 <= p < 1:
        return "~100%"
    return f"{100 * p:.1f}%" if p >= 0.0995 else f"{100 * p:.2g}%" if p >= 1e-5 else "~0%"


def _name(piece: str, most: int = 12) -> str:
    text = visible(piece)
    return text if len(text) <= most else text[: most - 1] + "…"


# ---- the frames ----


@dataclass(frozen=True, slots=True)
class Frame:
    """One moment of the step: the active layer, how much of it is done, and the text shown with it."""

    layer: int  # -1 before layer 0; the number of layers after the last
    done: int  # the layer's last finished part: 1 norm, 2 query, key and value, 3 attention, 4 feed-forward
    title: str
    text: str


def frames(step: Step, head: int = 0) -> list[Frame]:
    """The moments of a step: text, embedding, layer 0 in four parts, every other layer in one, logits, the choice."""
    n, last, depth = len(step.ids), _name(step.pieces[-1]), len(step.layers)
    first, best = step.layers[0], step.likeliest[0]
    (n_heads, d), groups = first.q.shape, len(first.keys)
    most = int(first.weights[head].argmax())
    seen, share = _name(step.pieces[n - first.weights.shape[1] + most]), _percent(float(first.weights[head, most]))
    before = f"the cache has the keys and values of the {n - 1} before" if n > 1 else "nothing comes before"
    said = [_name(piece) for piece in step.lens_pieces]
    texts = [
        (-1, 0, "The text", f"{n} token{'s' * (n > 1)}. This step evaluates the last one, {last}; {before}."),
        (-1, 1, "Embedding", f"Row {step.ids[-1]} of the embedding: {len(step.embedding):,} numbers. "
         f"This vector, x, is all that goes on of {last}."),
        (0, 1, "Layer 0: norm", "Attention reads a copy of x, brought to size 1 and then weighted number by number: "
         f"{_size(rms(step.embedding))} before, {_size(rms(first.normed))} after."),
        (0, 2, "Layer 0: query, key, value", f"The layer's matrices make {n_heads} queries of {d} numbers, {groups} "
         f"key{'s' * (groups > 1)} and {groups} value{'s' * (groups > 1)}. Key and value fill a new row of the cache."),
        (0, 3, f"Layer 0: attention, head {head}", "The query meets every key, and each token gets a share: most for "
         f"{seen}, {share}. The values of all heads, mixed by such shares, go through a matrix and are added to x."),
        (0, 4, "Layer 0: feed-forward", "This network works on the one token alone, and adds its answer to x. "
         "The layer is done."),
    ]  # fmt: skip
    for i in range(1, depth):
        text = f"Its own weights, its own cache. x now has the size {_size(rms(step.layers[i].x))}. "
        text += f"Were this the last layer, the likeliest token would be {said[i + 1]}."
        texts.append((i, 4, f"Layer {i}: the same again", text))
    text = f"A last norm, then one score for each of the {len(step.logits):,} tokens of the vocabulary. "
    text += f"Softmax makes them probabilities: {_percent(best.probability)} for {_name(best.piece)}."
    texts.append((depth, 0, "Logits", text))
    text = f"Greedy decoding takes {_name(best.piece)}. Every layer's cache has one row more. "
    text += "The next step begins at the bottom, with that one token."
    texts.append((depth, 1, "The next token", text))
    return [Frame(*line) for line in texts]


def _checked(step: Step, head: int) -> None:
    n_heads = len(step.layers[0].q)
    if not 0 <= head < n_heads:
        raise ParameterError(f"the head is {head}; expected 0 to {n_heads - 1}")
    if len(step.ids) > MOST_TOKENS:
        raise ParameterError(
            f"{len(step.ids)} tokens are too many for the picture; expected at most {MOST_TOKENS}: shorten the text"
        )


STYLE = """<style>
.tl-step{background:#fff;color:#333;font:14px/1.4 "DejaVu Sans",Verdana,sans-serif;padding:10px;max-width:900px;
  box-sizing:border-box}
.tl-step .t{font-weight:bold;font-size:17px;color:#005279}
.tl-step .c{min-height:5.9em}
.tl-step .k{display:inline-block;border:1px solid #333;border-radius:4px;padding:0 5px;margin:2px;text-align:center;
  background:#d9ecf7}
.tl-step .k small{display:block;color:#555;font-size:11px}
.tl-step .n{background:#fdebc8;border-width:2px}
.tl-step .g{display:flex;flex-wrap:wrap;gap:8px 22px;margin-top:8px}
.tl-step .g>div{flex:1 1 330px;min-width:0}
.tl-step .s{display:block;width:100%;max-width:none;height:13px;margin:0;image-rendering:pixelated;
  border:1px solid #999;box-sizing:border-box}
.tl-step .none{background:#f4f4f4;border:1px dashed #bbb}
.tl-step .r{display:flex;justify-content:space-between;font-size:12.5px;margin-top:5px;white-space:nowrap;
  overflow:hidden}
.tl-step .r i{color:#666;font-style:normal}
.tl-step .on{background:#fff3dc;box-shadow:-4px 0 0 #E69F00}
.tl-step .on,.tl-step .go{animation:tl-step .45s ease-out}
@keyframes tl-step{from{opacity:.15}}
@media (prefers-reduced-motion:reduce){.tl-step .on,.tl-step .go{animation:none}}
.tl-step .h{font-weight:bold;font-size:13px;margin-bottom:2px}
.tl-step table{border-collapse:collapse;width:100%;table-layout:fixed;margin:6px 0 2px}
.tl-step table td,.tl-step table th{padding:0 2px!important;font-size:12px;line-height:15px;text-align:left!important;
  white-space:nowrap;overflow:hidden;background:none;color:#333;border:0}
.tl-step .b{display:inline-block;height:11px;background:#009E73;border:1px solid #333;box-sizing:border-box;
  vertical-align:middle}
.tl-step .w{overflow-x:auto}
.tl-step svg{display:block;width:100%;height:auto;max-width:470px;min-width:320px}
@media (min-width:600px){.tl-step .c{min-height:4.2em}}
</style>"""


def frame_html(step: Step, frame: Frame, head: int = 0) -> str:
    """One moment as an HTML page, from the step's own numbers, in two columns, or one on a narrow screen.

    Raises:
        ParameterError: there is no such head, or the text has more than `MOST_TOKENS` tokens.
    """
    _checked(step, head)
    n = len(step.ids)
    chips = "".join(
        f'<span class="k{" n" * (j == n - 1)}">{escape(_name(p))}<small>{i}</small></span>'
        for j, (p, i) in enumerate(zip(step.pieces, step.ids, strict=True))
    )
    if frame.layer == len(step.layers) and frame.done:
        best = step.likeliest[0]
        chips += f' → <span class="k n" style="border-style:dashed">{escape(_name(best.piece))}'
        chips += f"<small>{best.id}</small></span>"
    return (
        f'{STYLE}<div class="tl-step"><div class="c"><div class="t">{escape(frame.title)}</div>{escape(frame.text)}'
        f'</div><div>{chips}</div><div class="g"><div>{_inside(step, frame, head)}'
        f"{_likeliest(step, frame.layer == len(step.layers))}</div><div>{_tower(step, frame)}</div></div></div>"
    )


def _row(name: str, x: np.ndarray | None, on: bool) -> str:
    """A vector: its name, its first numbers and its size above its stripes."""
    about = "" if x is None else f"{_numbers(x)} &nbsp;size {_size(rms(x))}"
    return (
        f'<div class="{"on" if on else ""}"><div class="r"><span>{name}</span><i>{about}</i></div>{_stripes(x)}</div>'
    )


def _inside(step: Step, frame: Frame, head: int) -> str:
    """The left column: one layer, filled in as far as it is computed."""
    i = min(max(frame.layer, 0), len(step.layers) - 1)
    layer, done = step.layers[i], 4 if frame.layer == len(step.layers) else frame.done if frame.layer >= 0 else 0
    x = step.embedding if i == 0 else step.layers[i - 1].x
    started = frame.layer >= 0 or frame.done > 0
    single = i == 0 and frame.layer == 0  # layer 0 is shown part by part, with the current part marked
    shown = lambda v, part: v if done >= part else None
    at = lambda part: single and done == part
    return "".join(
        [
            f'<div class="h">Inside layer {i}</div>',
            _row("x, into the layer" if i else "x, the embedding", x if started else None, frame.layer < 0 and started),
            _row("x after the norm", shown(layer.normed, 1), at(1)),
            _row(f"query of head {head}", shown(layer.q[head], 2), at(2)),
            _cache(step, layer, head, done, at(2) or at(3)),
            _row("attention adds", shown(layer.attended, 3), at(3)),
            _row("feed-forward adds", shown(layer.fed, 4), at(4)),
            _row("x, out of the layer", shown(layer.x, 4), at(4)),
        ]
    )


def _group(layer: LayerStep, head: int) -> int:
    """The key/value head that a query head reads."""
    return head * len(layer.keys) // len(layer.q)


def _cache(step: Step, layer: LayerStep, head: int, done: int, on: bool) -> str:
    """The layer's cache as a table, one row per token: key, share of attention, value."""
    g, seen = _group(layer, head), layer.weights.shape[1]
    keys, values, weights = layer.keys[g], layer.values[g], layer.weights[head]
    units = rms(keys), rms(values)
    rows = []
    for j, piece in enumerate(step.pieces):
        at = j - (len(step.ids) - seen)  # a sliding window no longer holds the first tokens
        new = j == len(step.ids) - 1
        there = at >= 0 and (not new or done >= 2)
        share = ""
        if at >= 0 and done >= 3:
            share = f'<span class="b" style="width:{44 * weights[at]:.1f}%"></span> {_percent(float(weights[at]))}'
        k, v = (
            _stripes(a[at] if there else None, u, "height:12px") for a, u in zip((keys, values), units, strict=True)
        )
        edge = f' style="background:{NEW}"' if new else ""
        rows.append(f"<tr{edge}><td>{escape(_name(piece, 9))}</td><td>{k}</td><td>{share}</td><td>{v}</td></tr>")
    widths = "".join(f'<col style="width:{w}%">' for w in (20, 25, 30, 25))
    return (
        f'<div class="{"on" if on else ""}"><table><colgroup>{widths}</colgroup><tr><th>cache</th><th>key</th>'
        f"<th>attention</th><th>value</th></tr>{''.join(rows)}</table></div>"
    )


def _tower(step: Step, frame: Frame) -> str:
    """The right column: every layer, layer 0 at the bottom: its rows of the cache, the size of x, the lens."""
    n, depth = len(step.ids), len(step.layers)
    row, cell = 15, min(11.0, 104 / n)
    left, word = 48, 352  # where columns begin, of a width of 470
    bar = left + cell * n + 12
    sizes = [rms(step.embedding), *(rms(layer.x) for layer in step.layers)]
    low, high = np.log(min(sizes)), np.log(max(sizes))
    finished = frame.layer if frame.done < 4 else frame.layer + 1  # layers that are done
    parts, old, new = [], "", ""
    for x, title in ((0, "layer"), (left, "cache"), (bar, "size of x (log scale)"), (word, "would say")):
        parts.append(f'<text x="{x}" y="12" font-weight="bold">{title}</text>')
    for i in range(-1, depth):
        y = row * (depth - i) + 4
        middle, here = y + 12, i == frame.layer
        if here:
            parts.append(f'<rect x="0" y="{y}" width="470" height="{row}" fill="#fff3dc"/>')
        parts.append(f'<text x="0" y="{middle}">{"in" if i < 0 else i}</text>')
        for j in range(n if i >= 0 else 0):
            square = f"M{left + cell * j:.1f} {y + 2}h{cell - 1:.1f}v{row - 4}h{1 - cell:.1f}z"
            if j < n - 1:
                old += square
            elif i < finished or (here and frame.done >= 2):
                new += square
        if i < finished or (here and i < 0 and frame.done):
            width = 6 + (word - bar - 60) * (np.log(sizes[i + 1]) - low) / (high - low or 1)
            said = escape(_name(step.lens_pieces[i + 1], 12))
            at = f'x="{bar:.1f}" y="{y + 2}" width="{width:.1f}" height="{row - 4}"'
            parts.append(
                f'<g{" class=go" * here}><rect {at} fill="{SKY}" stroke="{INK}" stroke-width=".6"/>'
                f'<text x="{bar + width + 4:.1f}" y="{middle}">{_size(sizes[i + 1])}</text>'
                f'<text x="{word}" y="{middle}">‘{said}’</text></g>'
            )
    parts.append(
        f'<path d="{old}" fill="{OLD}" stroke="#777" stroke-width=".5"/>'
        f'<path d="{new}" fill="{ORANGE}" stroke="{INK}" stroke-width=".5"/>'
    )
    box = f'viewBox="0 0 470 {row * (depth + 2) + 6}" font-size="12.5" fill="#333" role="img"'
    return (
        f'<div class="h">All {depth} layers, from the bottom up</div><div class="w"><svg {box} '
        f'aria-label="{max(0, finished)} of {depth} layers are done">{"".join(parts)}</svg></div>'
    )


def _likeliest(step: Step, known: bool) -> str:
    """The likeliest next tokens; empty rows until the logits are known."""
    rows = []
    for a in step.likeliest:
        if known:
            style = f"background:{VERMILION};width:{66 * a.probability:.1f}%"
            bar = f'<span class="b" style="{style}"></span> {_percent(a.probability)}'
            rows.append(f"<tr><td>{escape(_name(a.piece, 14))}</td><td>{step.logits[a.id]:.2f}</td><td>{bar}</td></tr>")
        else:
            rows.append("<tr><td>&nbsp;</td><td></td><td></td></tr>")
    widths = "".join(f'<col style="width:{w}%">' for w in (30, 16, 54))
    return (
        f'<table class="{"on" if known else ""}"><colgroup>{widths}</colgroup><tr><th>next token</th><th>logit</th>'
        f"<th>probability</th></tr>{''.join(rows)}</table>"
    )


# ---- the still ----

_LEFT, _RIGHT, _ACROSS = 1.25, 0.95, 6.2  # inches: names, sizes, total width; narrow enough for a phone held upright


@drawn
def step_stages(step: Step, head: int = 0) -> Picture:
    """The stages of a decode step, one below the other: a still version of the player.

    Args:
        head: the query head of layer 0 whose query, keys and attention are drawn.

    Raises:
        ParameterError: there is no such head, or the text has more than `MOST_TOKENS` tokens.
    """
    _checked(step, head)
    n, layer, last, g = len(step.ids), step.layers[0], _name(step.pieces[-1]), _group(step.layers[0], head)
    best, lines = step.likeliest[0], _wrapped(step)
    room = 0.3 + 0.095 * max(len(_name(p)) for p in step.lens_pieces)  # inches, for words written vertically
    heights = [0.36 * len(lines), 0.34, 0.94, 0.25 * n, 2.0 + room]
    stills = _Stills([*heights, 0.3 * len(step.likeliest)])
    ax = stills.add(f"1  The text: {last} is new" + ", the rest is in the cache" * (n > 1), left=0.12, right=0.12)
    ax.axis("off")
    ax.set(xlim=(0, 72 * (_ACROSS - 0.24)), ylim=(len(lines), 0))
    for y, line in enumerate(lines):
        for x, width, text, new in line:
            ax.add_patch(
                Rectangle((x, y + 0.1), width, 0.8, facecolor=NEW if new else OLD, edgecolor=INK, linewidth=1 + new)
            )
            ax.text(x + width / 2, y + 0.5, text, ha="center", va="center", fontsize=13)
    ax = stills.add(f"2  Embedding: row {step.ids[-1]}, {len(step.embedding):,} numbers")
    _barcode(ax, step.embedding, "x")
    ax = stills.add(f"3  Layer 0, head {head}: a query, and a new key and value")
    ax.axis("off")
    parts = (("query", layer.q[head]), ("key", layer.keys[g, -1]), ("value", layer.values[g, -1]))
    for i, (name, vector) in enumerate(parts):
        _barcode(ax.inset_axes((0, 0.68 - 0.34 * i, 1, 0.29)), vector, name)
    ax = stills.add("4  The cache: its keys, the last one new, and attention")
    ax.axis("off")
    _attended(ax.inset_axes((0, 0, 0.5, 1)), ax.inset_axes((0.51, 0, 0.49, 1)), step, head)
    _growth(stills.add(f"5  {len(step.layers)} layers: each adds to x", left=1.0, right=0.1, below=room), step)
    ax = stills.add(f"6  Logits: the likeliest of {len(step.logits):,} tokens")
    for y, a in enumerate(step.likeliest):
        ax.barh(y, a.probability, height=0.7, facecolor=VERMILION, edgecolor=INK, linewidth=0.6)
        text = f"{_percent(a.probability)}   (logit {step.logits[a.id]:.1f})"
        note(ax, text, (a.probability, y), (6, 0), fontsize=12, annotation_clip=False)
    _names(ax, [_name(a.piece) for a in step.likeliest])
    ax.set_xlim(0, 1.45 * best.probability)
    most = int(layer.weights[head].argmax())
    seen = _name(step.pieces[n - layer.weights.shape[1] + most])
    stills.picture.alt = (
        f"One decode step in six stages. The text has {n} tokens, and {last} is evaluated. Its embedding has "
        f"{len(step.embedding)} numbers. In layer 0, head {head} attends most to {seen}, with "
        f"{_percent(float(layer.weights[head, most]))}. The size of x goes from {_size(rms(step.embedding))} to "
        f"{_size(rms(step.layers[-1].x))} over {len(step.layers)} layers. The likeliest next token is "
        f"{_name(best.piece)}, with {_percent(best.probability)}."
    )
    return stills.picture


class _Stills:
    """Axes one below the other, each under its title, in a picture tall enough for all."""

    def __init__(self, heights: Sequence[float]):
        self._heights, self._title, self._gap = list(heights), 0.36, 0.16  # inches
        self._tall = sum(heights) + (self._title + self._gap) * len(heights)
        self.picture = Picture(figsize=(_ACROSS, self._tall))
        self._y = self._tall

    def add(self, title: str, left: float = _LEFT, right: float = _RIGHT, below: float = 0.0) -> Axes:
        """The next axes. `below` inches of their height stay free for text under them."""
        height = self._heights.pop(0)
        self._y -= self._title
        where = 0.12 / _ACROSS, (self._y + 0.1) / self._tall
        self.picture.text(*where, title, fontsize=14, weight="bold", color=dark(BLUE), parse_math=False)
        self._y -= height
        low, high = (self._y + below) / self._tall, (self._y + height) / self._tall
        self._y -= self._gap
        return self.picture.add_axes((left / _ACROSS, low, 1 - (left + right) / _ACROSS, high - low))


def _names(ax: Axes, names: Sequence[str]) -> None:
    """A name beside each row, from the top, and no axis below."""
    ax.set_yticks(range(len(names)), names, fontsize=12, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)


def _wrapped(step: Step) -> list[list[tuple[float, float, str, bool]]]:
    """The tokens in lines, each as (left, width, text, whether it is the new one); left and width are in points."""
    lines: list[list[tuple[float, float, str, bool]]] = [[]]
    x, across = 1.0, 72 * (_ACROSS - 0.26)
    for j, piece in enumerate(step.pieces):
        width = text_width(_name(piece), 13) + 12
        if x + width > across:
            lines.append([])
            x = 1.0
        lines[-1].append((x, width, _name(piece), j == len(step.pieces) - 1))
        x += width + 5
    return lines


def _barcode(ax: Axes, x: np.ndarray, name: str) -> None:
    """A vector as stripes, with its name at the left and its size at the right."""
    ax.imshow(colours(x[None], rms(x)), aspect="auto", interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([0], [name], fontsize=12)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(True)
    note(ax, f"size {_size(rms(x))}", (1, 0.5), (5, 0), xycoords="axes fraction", fontsize=11, annotation_clip=False)


def _attended(left: Axes, right: Axes, step: Step, head: int) -> None:
    """The cached keys of layer 0, one row per token, and beside them each token's share of attention."""
    layer = step.layers[0]
    weights, keys = layer.weights[head], layer.keys[_group(layer, head)]
    n = len(weights)
    left.imshow(colours(keys, rms(keys)), aspect="auto", interpolation="nearest")
    _names(left, [_name(p) for p in step.pieces[-n:]])
    row = Rectangle((-0.5, n - 1.5), keys.shape[1], 1, facecolor="none", edgecolor=ORANGE, linewidth=3, zorder=5)
    left.add_patch(row).set_clip_on(False)
    right.barh(range(n), weights, height=0.7, facecolor=GREEN, edgecolor=INK, linewidth=0.6)
    for y, share in enumerate(weights):
        note(right, _percent(float(share)), (float(share), y), (5, 0), fontsize=12, annotation_clip=False)
    _names(right, [""] * n)
    right.set_xlim(0, 1.05 * float(weights.max()))


def _growth(ax: Axes, step: Step) -> None:
    """The size of the residual stream over the layers. Below: the likeliest token so far, where it changes."""
    sizes = [rms(step.embedding), *(rms(layer.x) for layer in step.layers)]
    ax.semilogy(range(len(sizes)), sizes, "o-", color=BLUE, linewidth=1.6, markersize=4)
    ax.minorticks_off()
    ax.set_yticks([min(sizes), max(sizes)], [_size(min(sizes)), _size(max(sizes))], fontsize=12)
    ax.set_ylabel("size of x (log scale)", fontsize=12)
    names = [_name(p) for p in step.lens_pieces]
    changes = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    size = min(12.0, 72 * (_ACROSS - 1.1) / len(sizes))
    ax.set_xticks(changes, [f"‘{names[i]}’" for i in changes], rotation=90, fontsize=size, parse_math=False)
    ax.set_xlim(-0.6, len(sizes) - 0.4)
    ax.grid(True, axis="x", linestyle=DASHED, color="#dddddd")
    text = "below: what it would say if it\nended there, where that changes"
    note(ax, text, (0.98, 0.2), xycoords="axes fraction", ha="right", fontsize=11.5)


# ---- the player ----


class StepPlayer(widgets.VBox):
    """A decode step as an animation: a text field, a choice of head, Play, and the picture below.

    Args:
        compute: text -> its `Step`. If it raises a `TeachLlamaError` for a new text, the message is shown.
        text: the first text.

    Attributes:
        text, head, at: the controls; set their `.value`. `at` is the index of the frame.
        play: advances `at`.
        page: the picture; its `.value` is HTML.
        step: the `Step` that is shown.
    """

    def __init__(self, compute: Callable[[str], Step], text: str):
        self._compute = compute
        wide = {"style": {"description_width": "5em"}, "layout": widgets.Layout(width="min(100%, 44em)")}
        self.text = widgets.Text(value=text, description="Text", continuous_update=False, **wide)
        self.step = compute(text)
        _checked(self.step, 0)
        self.head = widgets.IntSlider(value=0, min=0, max=len(self.step.layers[0].q) - 1, description="Head", **wide)
        self.at = widgets.IntSlider(value=0, min=0, description="Moment", **wide)
        self.play = widgets.Play(value=0, min=0, interval=700, step=1)
        widgets.jslink((self.play, "value"), (self.at, "value"))
        self.page = widgets.HTML()
        line = widgets.Layout(display="flex", flex_flow="row wrap", width="100%")
        super().__init__(
            [self.text, widgets.Box([self.play, self.at], layout=line), self.head, self.page],
            layout=widgets.Layout(width="100%"),
        )
        self._new_frames()
        self.text.observe(self._read, names="value")
        self.head.observe(self._show, names="value")
        self.at.observe(self._show, names="value")
        self._show()

    def __repr__(self) -> str:
        return "A decode step as a moving picture: a widget, alive while the notebook's kernel runs"

    def _new_frames(self) -> None:
        self.play.max = self.at.max = len(frames(self.step)) - 1

    def _read(self, _change: object = None) -> None:
        try:
            step = self._compute(self.text.value)
            _checked(step, 0)
        except TeachLlamaError as error:
            self.page.value = f'<div role="alert">{escape(str(error))}</div>'
            return
        self.step = step
        self._new_frames()
        self.at.value = 0
        self._show()

    def _show(self, _change: object = None) -> None:
        at = frames(self.step, self.head.value)
        self.page.value = frame_html(self.step, at[min(self.at.value, len(at) - 1)], self.head.value)
