"""The pictures of notebook 00, a transformer in one notebook. Each function takes numbers that the notebook has
computed and returns a `Picture`; its `alt` describes it in words.

Independent of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from teachllama.errors import ParameterError
from teachllama.lessons.common.style import (
    BLUE,
    BODY,
    DASHED,
    FAINT,
    INK,
    ORANGE,
    SKY,
    SMALL,
    VERMILION,
    Picture,
    dark,
    drawn,
    note,
    picture,
    visible,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@drawn
def where_the_numbers_are(parts: Mapping[str, int]) -> Picture:
    """One bar per part of a model: how many of its numbers the part holds. `parts` is name -> count."""
    total = sum(parts.values())
    if total <= 0:
        raise ParameterError("parts is empty or holds no numbers; give name -> count")
    fig = picture(1.5 + 0.62 * len(parts))
    ax = fig.add_subplot()
    ax.barh(list(parts), list(parts.values()), color=SKY, edgecolor=INK, linewidth=0.8)
    for y, n in enumerate(parts.values()):
        note(ax, f"{n:,}  ({_share(n, total)})", (n, y), (6, 0))
    ax.invert_yaxis()
    ax.set_xlim(0, max(parts.values()) * 1.5)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"numbers, of {total:,} in all")
    ax.set_ylabel(" ")
    ax.set_title("Where the model's numbers are")
    fig.alt = "Numbers in each part of the model: " + "; ".join(
        f"{name} {n:,}, {_share(n, total)}" for name, n in parts.items()
    ) + "."  # fmt: skip
    return fig


@drawn
def whole_matrix(matrix: np.ndarray, name: str) -> Picture:
    """Every number of a matrix (rows, columns) as a dot: dark for negative, light for positive."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or not matrix.size:
        raise ParameterError(f"the matrix has shape {matrix.shape}; expected (rows, columns)")
    rows, columns = matrix.shape
    most = float(np.abs(matrix).max()) or 1.0
    fig = picture(float(np.clip(1.6 + 7.0 * rows / columns, 2.6, 7.0)))
    ax = fig.add_subplot()
    # From dark blue to light yellow: the order survives greyscale printing and colour blindness
    image = ax.imshow(matrix, cmap="cividis", vmin=-most, vmax=most, aspect="auto")
    bar = fig.colorbar(image, ax=ax, fraction=0.03, pad=0.02, ticks=[-most, 0, most])
    bar.ax.set_yticklabels([f"{-most:.2f}", "0", f"{most:.2f}"])
    ax.set_xlabel(f"column, 0 to {columns - 1}: a number of what goes in")
    ax.set_ylabel(f"row, 0 to {rows - 1}")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(f"{name}: all {matrix.size:,} numbers")
    spread = float(matrix.std())
    fig.alt = (
        f"The {rows} rows and {columns} columns of {name}, a dot for each number, from {matrix.min():.2f} to "
        f"{matrix.max():.2f}; most are within {spread:.2f} of 0."
    )
    return fig


@drawn
def dot_products(words: Sequence[str], products: np.ndarray) -> Picture:
    """A table of dot products, darker where larger.

    Args:
        words: n labels.
        products: (n, n); row i, column j is the product of words i and j.
    """
    n = len(words)
    if np.shape(products) != (n, n) or not n:
        raise ParameterError(f"products has shape {np.shape(products)}; expected {(n, n)}, one row a word")
    fig = picture(1.6 + 0.46 * n)
    ax = fig.add_subplot()
    low = min(0.0, float(np.min(products)))
    off_diagonal = products[~np.eye(n, dtype=bool)] if n > 1 else products.ravel()
    darkest = max(low + 0.1, 1.25 * float(np.max(off_diagonal)))  # the diagonal, all ones, would wash out the rest
    ax.imshow(products, cmap="Blues", vmin=low, vmax=darkest, aspect="auto")
    for i in range(n):
        for j in range(n):
            colour = "white" if products[i, j] - low > 0.55 * (darkest - low) else INK
            ax.text(j, i, f"{products[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=SMALL)
    labels = [visible(w) for w in words]
    ax.set_xticks(range(n), labels)
    ax.set_yticks(range(n), labels)
    _table(ax)
    ax.set_xlabel("dot product of the two vectors, each of length 1")
    ax.set_ylabel(" ")
    ax.set_title("Words as vectors: which point the same way")
    nearest = (
        [(i, int(np.argmax(np.where(np.arange(n) == i, -np.inf, products[i])))) for i in range(n)] if n > 1 else []
    )
    fig.alt = f"A table of the dot products of {n} words' vectors. Nearest to each: " + "; ".join(
        f"{words[i].strip()} and {words[j].strip()} {products[i, j]:.2f}" for i, j in nearest
    ) + "."  # fmt: skip
    return fig


@drawn
def clocks(vectors: np.ndarray, names: Sequence[str]) -> Picture:
    """RoPE's pairs as clock hands, one clock per pair and one hand per position.

    Args:
        vectors: (n_positions, n_pairs, 2), each hand's end.
        names: the pairs' names, one per clock.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 3 or vectors.shape[1:] != (len(names), 2) or not len(vectors) or not len(names):
        raise ParameterError(f"vectors has shape {vectors.shape}; expected (positions, {len(names)}, 2)")
    fig = picture(3.9)
    axes = fig.subplots(1, len(names), squeeze=False)[0]
    for ax, hands, name in zip(axes, vectors.transpose(1, 0, 2), names, strict=True):
        turn = np.linspace(0, 2 * np.pi, 120)
        ax.plot(np.cos(turn), np.sin(turn), color=FAINT, linewidth=1)
        last = len(hands) - 1
        for position, (x, y) in enumerate(hands):
            colour = VERMILION if position == 0 else BLUE
            ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2,
                        "shrinkA": 0, "shrinkB": 0, "alpha": 1 if position in (0, last) else 0.35})  # fmt: skip
        angles = np.unwrap(np.arctan2(hands[:, 1], hands[:, 0]))
        apart = abs(angles[1] - angles[0]) if last else 0.0
        every = max(1, int(np.ceil(0.32 / max(apart, 1e-9)))) if last else 1
        shown = [p for p in range(0, last, every) if last - p >= every] + [last] if apart * last > 0.3 else [last]
        for position in shown:
            x, y = hands[position]
            text = str(position) if len(shown) > 1 else f"0 to {last}" if last else "0"
            ax.text(1.2 * x + (0.2 * (len(shown) == 1)), 1.2 * y, text, ha="center", va="center", fontsize=SMALL)
        ax.set(xlim=(-1.6, 1.6), ylim=(-1.4, 1.4), aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_xlabel(name)
    fig.suptitle("RoPE turns each pair of numbers at its own speed: hands at positions 0, 1, 2 ...", x=0.01, ha="left")
    full = np.degrees([abs(np.sum(np.diff(np.unwrap(np.arctan2(h[:, 1], h[:, 0])))))
                       for h in vectors.transpose(1, 0, 2)])  # fmt: skip
    fig.alt = f"Clock hands at positions 0 to {len(vectors) - 1}, which turn in all: " + "; ".join(
        f"{' '.join(name.split())} by {angle:.0f} degrees" for name, angle in zip(names, full, strict=True)
    ) + "."  # fmt: skip
    return fig


@drawn
def activation_curve(function: Callable[[np.ndarray], np.ndarray], points: Sequence[float]) -> Picture:
    """The function from -6 to 6 beside ReLU, with the points that were computed by hand marked."""
    x = np.linspace(-6, 6, 481)
    y, marks = np.asarray(function(x)), np.asarray(points, dtype=float)
    fig = picture(4.4)
    ax = fig.add_subplot()
    ax.axhline(0, color=FAINT, linewidth=0.8)
    ax.plot(x, np.maximum(x, 0), color=VERMILION, linestyle=DASHED, linewidth=1.8)
    ax.plot(x, y, color=BLUE)
    ax.plot(marks, function(marks), "o", color=BLUE, markersize=9, markeredgecolor="white", zorder=3)
    note(ax, "SiLU, x · sigmoid(x)", (-3, float(np.interp(-3, x, y))), (0, -24), color=dark(BLUE), ha="center")
    note(ax, "ReLU, max(x, 0)", (3.2, 3.2), (-12, 14), color=dark(VERMILION), ha="right")
    low = int(np.argmin(y))
    ax.set_xlim(-6, 6)
    ax.set_ylim(-1.3, 6)
    ax.set_xlabel("x")
    ax.set_ylabel("what comes out")
    ax.set_title("SiLU: a gate that closes gently")
    fig.alt = (
        f"SiLU against x beside ReLU: near 0 for very negative x, least at {x[low]:.2f} with {y[low]:.2f}, and "
        f"near x for large x. Marked: "
        + ", ".join(f"{m:.2f} gives {v:.2f}" for m, v in zip(marks, function(marks)))
        + "."
    )
    return fig


@drawn
def one_layer(dim: int, hidden_dim: int, n_heads: int, n_kv_heads: int, head_dim: int) -> Picture:
    """One layer of a Llama as two branches off the residual stream, with the shapes of its tensors."""
    if min(dim, hidden_dim, n_heads, n_kv_heads, head_dim) < 1:
        raise ParameterError(
            f"sizes are {dim}, {hidden_dim}, {n_heads}, {n_kv_heads}, {head_dim}; expected 1 or more each"
        )
    qkv = f"q (n, {n_heads}, {head_dim})\nk, v (n, {n_kv_heads}, {head_dim})"
    box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": BLUE, "linewidth": 1.4}
    branches = (
        ("attention", (
            ("RMSNorm", f"(n, {dim})"), ("three\nmatrices", qkv),
            ("RoPE\non q and k", "the same"), ("look back\n(KV cache)", f"(n, {n_heads} · {head_dim})"),
            ("output\nmatrix", f"(n, {dim})"),
        )),
        ("feed-forward", (
            ("RMSNorm", f"(n, {dim})"), ("two\nmatrices", f"gate, up\n(n, {hidden_dim})"),
            ("SiLU(gate)\n× up", f"(n, {hidden_dim})"), ("down\nmatrix", f"(n, {dim})"),
        )),
    )  # fmt: skip
    fig = picture(5.4)
    ax = fig.add_subplot()
    ax.set_xlim(-0.6, 5.85)
    ax.set_ylim(-2.75, 0.95)
    ax.axis("off")
    ax.plot([0, 0], [0.75, -2.6], color=ORANGE, linewidth=7, solid_capstyle="butt", zorder=0)
    note(ax, f"x: the residual stream, one vector per token, (n, {dim})", (0.12, 0.78), va="center", weight="bold")
    arrow = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0}
    for row, (name, boxes) in enumerate(branches):
        y = 0.2 - 1.55 * row
        ends = [0.04, *(1.05 * (i + 1) - 0.43 for i in range(len(boxes)))]
        for i, (text, shape) in enumerate(boxes):
            x = 1.05 * (i + 1)
            ax.annotate("", (x - 0.43, y), (ends[0] if i == 0 else x - 0.62, y), arrowprops=arrow)
            ax.text(x, y, text, ha="center", va="center", fontsize=SMALL, bbox=box)
            note(ax, shape, (x, y - 0.42), ha="center", va="top", fontsize=9.5, color=dark(BLUE))
        last = 1.05 * len(boxes)
        back = y - 0.95
        ax.plot([last + 0.43, last + 0.52, last + 0.52], [y, y, back], color=INK, linewidth=1.2)
        ax.annotate("", (0.13, back), (last + 0.52, back), arrowprops=arrow)
        ax.plot([0], [back], "o", markersize=17, color="white", markeredgecolor=INK, zorder=3)
        ax.text(0, back - 0.01, "+", ha="center", va="center", fontsize=15, zorder=4)
        note(ax, name, (-0.12, y), ha="right", weight="bold", fontsize=9.5, rotation=90, va="center")
    fig.alt = (
        f"One layer. The residual stream x, n vectors of {dim} numbers, runs from top to bottom. Attention reads it: "
        f"RMSNorm; three matrices make queries ({n_heads} heads of {head_dim}), keys and values ({n_kv_heads}); "
        f"RoPE turns queries and keys; each query looks back at the cache; the output matrix gives {dim} numbers, "
        f"which are added to the stream. Then the feed-forward network: RMSNorm; gate and up make {hidden_dim} each; "
        "SiLU of the gate times up; down gives what is added."
    )
    return fig


@drawn
def last_looks(stories: Mapping[str, tuple[Sequence[str], Sequence[float]]]) -> Picture:
    """The attention of each story's last token: one bar per token.

    Args:
        stories: title -> (the n tokens' texts, the last token's n attention weights).
    """
    if not stories or any(len(pieces) != len(weights) or not pieces for pieces, weights in stories.values()):
        raise ParameterError("expected at least one story, with as many weights as tokens")
    fig = picture(0.6 + 1.75 * len(stories))
    for ax, (title, (pieces, weights)) in zip(fig.subplots(len(stories), 1, squeeze=False)[:, 0], stories.items()):
        most = int(np.argmax(weights))
        ax.bar(range(len(pieces)), weights, color=[VERMILION if i == most else SKY for i in range(len(pieces))])
        ax.set_xticks(range(len(pieces)), [visible(p).strip("␣")[:8] or "␣" for p in pieces], rotation=60, ha="right",
                      rotation_mode="anchor", fontsize=9)  # fmt: skip
        ax.set_ylim(0, 1.15)
        ax.set_yticks([0, 1], ["0", "100%"])
        ax.set_title(title, fontsize=BODY, loc="left")
    fig.alt = "Where the last token looks. " + "; ".join(
        f"{title}: {max(weights):.0%} at {pieces[int(np.argmax(weights))].strip()!r}"
        for title, (pieces, weights) in stories.items()
    ) + "."  # fmt: skip
    return fig


@drawn
def answer_by_layer(probabilities: Sequence[float], likeliest: Sequence[str], answer: str) -> Picture:
    """The answer's probability and the likeliest token, with the residual stream decoded after each layer.

    Args:
        probabilities: the final answer's probability, one per layer.
        likeliest: the likeliest token's text, one per layer.
        answer: the final answer's text.
    """
    n = len(probabilities)
    if not n or len(likeliest) != n:
        raise ParameterError(f"{n} probabilities and {len(likeliest)} texts; expected one of each a layer")
    fig = picture(4.8)
    ax = fig.add_subplot()
    layers = np.arange(1, n + 1)
    ax.bar(layers, probabilities, color=[BLUE if t == answer else SKY for t in likeliest], edgecolor=INK, linewidth=0.6)
    for layer, p, text in zip(layers, probabilities, likeliest):
        note(ax, visible(text), (float(layer), p), (0, 5), ha="center", va="bottom", rotation=90, fontsize=SMALL,
             weight="bold" if text == answer else "normal")  # fmt: skip
    ax.set_xlim(0.2, n + 0.8)
    ax.set_ylim(0, 1.3 * max(max(probabilities), 0.01))
    ax.set_xticks([i for i in layers if i == 1 or i % max(1, n // 6) == 0])
    ax.set_xlabel("layers done; above each bar the token that would be likeliest there")
    ax.set_ylabel(f"probability of {visible(answer)}")
    ax.set_title("When the answer appears")
    won = [int(i) for i, t in zip(layers, likeliest) if t == answer]
    fig.alt = (
        f"The probability of {answer.strip()!r} after each of {n} layers: {probabilities[0]:.1%} after the first, "
        f"{probabilities[-1]:.1%} after the last. It is the likeliest token after layers "
        f"{', '.join(map(str, won)) or 'none'}."
    )
    return fig


def _table(ax: Axes) -> None:
    """Removes ticks and frame from an image's axes."""
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _share(n: int, total: int) -> str:
    """A share in percent. A nonzero share below 0.1% is not shown as 0.0%."""
    return "under 0.1%" if 0 < n / total < 0.001 else f"{n / total:.1%}"
