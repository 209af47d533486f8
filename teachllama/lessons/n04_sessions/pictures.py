"""The pictures of notebook 04, sessions and memory. Each function takes numbers that the notebook has measured or
computed and returns a `Picture`; its `alt` describes it in words.

Uses only the engine's public names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama.errors import ParameterError
from teachllama.kv import kv_cache_bytes
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
    bytes_axis,
    count_axis,
    dark,
    drawn,
    format_bytes,
    name_at_edge,
    name_in_gaps,
    note,
    picture,
    spread,
    visible,
)
from teachllama.lessons.n04_sessions.shapes import BINDER_BYTES, SHAPES, Shape, shape_of

if TYPE_CHECKING:
    from teachllama.config import ModelConfig
    from teachllama.model import Model
    from teachllama.session import Session

# Six models whose lines do not overlap. Mistral 7B's equals Llama 3.1 8B's up to 32,768 tokens.
DRAWN = ("SmolLM2 135M", "Gemma 3 270M", "Gemma 3 4B", "Llama 2 7B", "Llama 3.1 8B", "Llama 3.1 70B")
LINE_COLOURS = (BLUE, GREEN, VERMILION, PURPLE, ORANGE, SKY, FAINT)


@drawn
def kv_against_context(
    shapes: Mapping[str, Shape] | None = None, model: Model | None = None, machine_bytes: int | None = None
) -> Picture:
    """One conversation's KV cache against its length, for several models, in f32 (solid) and f16 (dashed).

    Args:
        shapes: name -> shape; `DRAWN` by default.
        model: a loaded model, drawn thicker, with a level for the size of its file.
        machine_bytes: memory of this machine, drawn as a level beside Binder's 2 GB.
    """
    chosen = dict({name: SHAPES[name] for name in DRAWN} if shapes is None else shapes)
    mine = None if model is None else shape_of(model)
    if mine is not None:
        chosen = {mine.name: mine} | {name: s for name, s in chosen.items() if name != mine.name}
    chosen = {name: s for name, s in chosen.items() if s.layout.groups}
    if not chosen:
        raise ParameterError("none of these models keeps a KV cache; give at least one shape that does")
    fig = picture(6.4)
    ax = fig.add_subplot()
    natives = [s.layout.native_seq_len for s in chosen.values()]
    low, high = max(1, min(512, min(natives) // 4)), max(4096, *natives)
    ends: list[tuple[int, int, str, str, bool]] = []  # (native, bytes, text, colour, bold)
    levels = [(BINDER_BYTES, f"Binder's {format_bytes(BINDER_BYTES)}")]
    if model is not None and Path(model.path).is_file():
        size = Path(model.path).stat().st_size
        levels.append((size, f"this model's file,\n{format_bytes(size)}"))
    if machine_bytes is not None:
        levels.append((machine_bytes, f"this machine, {format_bytes(machine_bytes)}"))
    for nbytes, _ in levels:
        ax.axhline(nbytes, color=INK, linestyle=DOTTED, linewidth=1.5, zorder=1)

    for (name, shape), colour in zip(chosen.items(), cycle(LINE_COLOURS)):
        layout, native = shape.layout, shape.layout.native_seq_len
        own = mine is not None and name == mine.name
        x = np.unique(np.geomspace(min(low, native), native, 120).round().astype(int))
        for dtype, dashes, width, dot in (("f32", SOLID, 2.2, 8), ("f16", DASHED, 1.4, 5)):
            width *= 1.7 if own else 1
            ax.plot(x, [layout.bytes(int(n), dtype) for n in x], color=colour, linestyle=dashes, linewidth=width)
            ax.plot(native, layout.bytes(native, dtype), "o", color=colour, markersize=dot, clip_on=False)
        f32, f16 = (format_bytes(layout.bytes(native, dtype)) for dtype in ("f32", "f16"))
        text = f"{name}\n{f32}, f16 {f16}" if native == high else f"{name}\n{f32}"
        ends.append((native, layout.bytes(native), text, colour, own))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    bytes_axis(ax.yaxis, "KV cache of one conversation, bytes", log=True)
    ax.set_xlim(low, high)
    ax.set_xticks(ticks := [2 * 4**i for i in range(20) if low <= 2 * 4**i <= high], [f"{t:,}" for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("tokens in the conversation, up to each model's native context")
    ax.set_title("One conversation's KV cache: f32 solid, f16 dashed")

    ax.set_ylim(*ax.get_ylim())  # the labels' places depend on it
    at_edge = [(nbytes, text, colour, own) for native, nbytes, text, colour, own in ends if native == high]
    name_at_edge(ax, [*at_edge, *((nbytes, text, INK, False) for nbytes, text in levels)], height=5.1)
    inside = [((native, nbytes), text, colour, own) for native, nbytes, text, colour, own in ends if native != high]
    name_in_gaps(ax, inside, size=(5.9, 5.1))
    sizes = (
        f"{name} at {s.layout.native_seq_len:,} tokens {format_bytes(s.layout.bytes(s.layout.native_seq_len))} in f32, "
        f"{format_bytes(s.layout.bytes(s.layout.native_seq_len, 'f16'))} in f16"
        for name, s in chosen.items()
    )
    fig.alt = (
        "Memory of one conversation's KV cache against its length, on logarithmic axes. At their native contexts: "
        + "; ".join(sizes) + "."
    )  # fmt: skip
    return fig


@drawn
def reserved_and_resident(
    points: Sequence[tuple[int, int]], config: ModelConfig, *, seq_len: int | None = None, kv_dtype: str = "f32"
) -> Picture:
    """A session's cache filling: what the formula predicts, what was measured, and what is reserved.

    Args:
        points: (n_past, resident bytes of the cache), as measured.
        config: the model's config, from which the predicted line is computed.
        seq_len: positions the session reserved; `config.seq_len` by default.
        kv_dtype: the session's KV type.
    """
    if not points:
        raise ParameterError("no points: give at least one (n_past, resident bytes)")
    n_past, resident = [int(n) for n, _ in points], [int(b) for _, b in points]
    seq_len = config.seq_len if seq_len is None else seq_len
    reserved = kv_cache_bytes(config, seq_len, kv_dtype)
    fig = picture(5.2)
    vessel, ax = fig.subplots(1, 2, width_ratios=(1, 2.9))
    last = max(1, *n_past)

    vessel.bar(0, reserved, width=0.8, facecolor="white", edgecolor=INK, linewidth=1.4, linestyle=DASHED)
    vessel.bar(0, resident[-1], width=0.8, facecolor=SKY, edgecolor=INK, linewidth=0.8)
    vessel.axhline(reserved, color=INK, linewidth=2)
    note(
        vessel,
        f"reserved\n{format_bytes(reserved)}",
        (0, max(reserved, resident[-1])),
        (0, 6),
        ha="center",
        va="bottom",
    )
    low = resident[-1] < 0.6 * reserved
    note(
        vessel, f"resident\n{format_bytes(resident[-1])}", (0, min(resident[-1], reserved)), (0, 6 if low else -10),
        ha="center", va="bottom" if low else "top", halo="white" if low else None,
    )  # fmt: skip
    vessel.set_xlim(-0.62, 0.62)
    vessel.set_ylim(0, max(reserved, resident[-1]) * 1.18)
    bytes_axis(vessel.yaxis, "the whole cache, bytes")
    vessel.grid(False)
    vessel.set_xticks([])
    vessel.set_xlabel(f"at n_past {n_past[-1]:,}\nof {seq_len:,}")

    line = np.unique(np.linspace(0, last, 400).astype(int))
    predicted = [kv_cache_bytes(config, int(n), kv_dtype) if n else 0 for n in line]
    ax.plot(line, predicted, color=VERMILION, linewidth=2.4)
    ax.plot(n_past, resident, "o", color=BLUE, markersize=9, markeredgecolor="white", zorder=3)
    rule = "bytes a token × n_past" if config.kv_layout.window is None else "sliding windows counted"
    note(ax, "dots: measured,\npages in memory", (0.04, 0.95), xycoords="axes fraction", color=dark(BLUE), va="top")
    note(
        ax, f"line: the formula,\n{rule}", (0.98, 0.06), xycoords="axes fraction",
        color=dark(VERMILION), ha="right", va="bottom",
    )  # fmt: skip
    ax.set_xlim(-0.02 * last, 1.04 * last)
    ax.set_ylim(0, 1.08 * max(*resident, predicted[-1]))
    count_axis(ax.xaxis, "positions evaluated (n_past)")
    bytes_axis(ax.yaxis, "resident, bytes")
    fig.suptitle("Reserved is not resident", x=0.01, ha="left")
    fig.alt = (
        f"A cache of {seq_len:,} positions reserves {format_bytes(reserved)}. Resident bytes grow with the positions "
        f"evaluated and follow the formula: {format_bytes(resident[-1])} measured after {n_past[-1]:,}, by the formula "
        f"{format_bytes(kv_cache_bytes(config, n_past[-1], kv_dtype) if n_past[-1] else 0)}."
    )
    return fig


@drawn
def session_bars(weights_nbytes: int, session_nbytes: Mapping[str, int] | Sequence[int]) -> Picture:
    """Stacked bars: the weights once and a cache per session, beside a model loaded for each session.

    Args:
        weights_nbytes: bytes of the weights.
        session_nbytes: each session's KV cache, by name or in order.
    """
    if not isinstance(session_nbytes, Mapping):
        session_nbytes = {f"session {i + 1}": nbytes for i, nbytes in enumerate(session_nbytes)}
    n, caches = len(session_nbytes), sum(session_nbytes.values())
    if not n or weights_nbytes <= 0:
        raise ParameterError(f"{weights_nbytes} bytes of weights and {n} sessions; expected at least one of each")
    shared, separate = weights_nbytes + caches, n * weights_nbytes + caches
    weights = "weights", weights_nbytes, False
    sessions = [(name, nbytes, True) for name, nbytes in session_nbytes.items()]
    stacks = [weights, *sessions], [block for session in sessions for block in (weights, session)]
    if n > 8:  # too many to tell apart
        all_caches = f"{n} caches", caches, True
        stacks = [weights, all_caches], [(f"{n} × weights", n * weights_nbytes, False), all_caches]
    fig = picture(5.4)
    ax = fig.add_subplot()
    top, line = separate * 1.12, 0.055 * separate  # line: the height that a line of text takes
    bars = (0, 1.16)
    for x, stack in zip(bars, stacks, strict=True):
        base, beside = 0, []
        for name, nbytes, cache in stack:
            colour, hatch = (ORANGE, "///") if cache else (SKY, "")
            ax.bar(x, nbytes, bottom=base, width=0.5, facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.9)
            name, size, middle = _shortened(name, 14), format_bytes(nbytes), base + nbytes / 2
            if not cache and nbytes >= line:
                text = f"{name}\n{size}" if nbytes >= 2.4 * line else f"{name}: {size}"
                note(ax, text, (x, middle), ha="center", fontsize=SMALL, color="black", halo=None)
            else:
                beside.append((middle, f"{name}: {size}"))
            base += nbytes
        middles = [middle for middle, _ in beside]
        for (middle, text), y in zip(beside, spread(middles, [line] * len(beside), line / 2), strict=True):
            ax.plot([x + 0.255, x + 0.285], [middle, y], color=FAINT, linewidth=1)
            note(ax, text, (x + 0.295, y), fontsize=SMALL)
        note(ax, format_bytes(base), (x, base), (0, 5), ha="center", va="bottom", weight="bold", fontsize=BODY + 2)
    ax.set_xlim(-0.34, 2.12)
    ax.set_ylim(0, top)
    plural = "s" * (n > 1)
    ax.set_xticks(bars, [f"one model, {n} session{plural}", f"{n} model{plural}, a session each"])
    ax.tick_params(axis="x", length=0)
    bytes_axis(ax.yaxis, "memory, bytes")
    ax.set_title("Weights once, a cache each")
    fig.alt = (
        f"Two stacked bars. One model with {n} session{'s' * (n > 1)}: {format_bytes(weights_nbytes)} of weights and "
        f"{format_bytes(caches)} of caches, {format_bytes(shared)} in all. A model loaded for each: "
        f"{format_bytes(separate)}."
    )
    return fig


@drawn
def next_tokens(model: Model, logits: np.ndarray, n: int = 10) -> Picture:
    """The likeliest next tokens as bars.

    Args:
        model: its vocabulary gives the tokens' texts.
        logits: float32 (vocab_size,), as `session.logits` has them.
        n: how many tokens.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 1 or not 1 <= n <= len(logits):
        raise ParameterError(
            f"logits have shape {logits.shape} and n is {n}; expected (vocab_size,) and 1 to vocab_size"
        )
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    ids = np.argsort(-probabilities, kind="stable")[:n]
    shown = probabilities[ids]
    names = [_shortened(visible(model.piece(int(i)))) for i in ids]
    fig = picture(1.6 + 0.38 * n)
    ax = fig.add_subplot()
    ax.barh(range(n), shown, color=BLUE, edgecolor=INK, linewidth=0.6, height=0.72)
    for y, p in enumerate(shown):
        note(ax, _percent(p), (p, y), (6, 0))
    ax.set_yticks(range(n), names, parse_math=False)
    ax.tick_params(axis="y", length=0)
    for y, i in enumerate(ids):
        note(ax, f"{i}", (1, y), xycoords=("axes fraction", "data"), ha="right", color=FAINT, fontsize=SMALL)
    note(ax, "token id", (1, 1), (0, 4), xycoords="axes fraction", ha="right", va="bottom", color=FAINT, fontsize=SMALL)
    ax.set_ylim(n - 0.5, -0.5)
    ax.set_xlim(0, max(shown[0] * 1.32, 1e-6))
    ax.xaxis.set_major_formatter(lambda p, _: f"{100 * p:.3g}%")
    rest = float(probabilities.sum() - shown.sum())
    ax.set_xlabel(f"probability (the other {len(logits) - n:,} tokens together: {_percent(rest)})")
    ax.set_title(f"The {n} likeliest next tokens" if n > 1 else "The likeliest next token")
    fig.alt = (
        "The likeliest next tokens: "
        + ", ".join(f"{name} {_percent(p)}" for name, p in zip(names, shown, strict=True))
        + "."
    )
    return fig


def _percent(p: float) -> str:
    return f"{100 * p:.1f}%" if p >= 0.00995 else f"{100 * p:.2g}%" if p >= 1e-5 else "under 0.001%"


def _shortened(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(frozen=True)
class CacheSnapshot:
    """The contents of a cache at one moment, copied, so that it keeps no session alive."""

    n_past: int
    norms: np.ndarray  # (n_layers, seq_len): length of each key over all KV heads; NaN where empty


def cache_snapshot(session: Session) -> CacheSnapshot:
    """Records how full a session's cache is, for `cache_filling`.

    Only positions before n_past are read, so a snapshot makes no page of the cache resident.
    """
    keys = session.k_cache[:, : session.n_past].astype(np.float32)  # (n_layers, n_past, n_kv_heads, head_dim)
    norms = np.full((session.model.config.n_layers, session.seq_len), np.nan, np.float32)
    filled = np.sqrt(np.einsum("lpgd,lpgd->lp", keys, keys))
    norms[:, : session.n_past] = np.where(filled > 0, filled, np.nan)  # zeros: freed behind a sliding window
    return CacheSnapshot(session.n_past, norms)


@drawn
def cache_filling(cache: Session | CacheSnapshot | Sequence[CacheSnapshot], *, positions: int | None = None) -> Picture:
    """The cache as a picture, layers by positions: dark where a key is short, bright where long, dotted where empty.

    Args:
        cache: a session, or snapshots from `cache_snapshot`, drawn one below the other.
        positions: how many to show, from the first; all by default. A session of 64 positions makes a good picture.
    """
    if isinstance(cache, CacheSnapshot):
        snapshots = [cache]
    else:
        snapshots = [*cache] if isinstance(cache, Sequence) else [cache_snapshot(cache)]
    if not snapshots:
        raise ParameterError("no snapshots: give at least one")
    n = len(snapshots)
    n_layers, seq_len = snapshots[0].norms.shape
    shown = seq_len if positions is None else min(positions, seq_len)
    values = np.concatenate([s.norms[np.isfinite(s.norms)] for s in snapshots])
    vmin, vmax = np.percentile(values, (2, 98)) if len(values) else (0, 1)
    fig = picture(1.7 + (2.9 if n == 1 else 1.65 * n))
    axes = fig.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
    image = None
    for ax, snapshot in zip(axes, snapshots, strict=True):
        ax.set_facecolor("white")
        image = ax.imshow(
            np.ma.masked_invalid(snapshot.norms[:, :shown]), aspect="auto", origin="lower", cmap="cividis", vmin=vmin,
            vmax=max(vmax, vmin + 1e-9), interpolation="nearest", extent=(0, shown, 0, n_layers),
        )  # fmt: skip
        ax.spines[["top", "right"]].set_visible(True)
        if snapshot.n_past < shown:
            ax.axvspan(
                snapshot.n_past, shown, facecolor="white", edgecolor="#cccccc", hatch="..", linewidth=0, zorder=0
            )
        ax.axvline(min(snapshot.n_past, shown), color=VERMILION, linewidth=3, clip_on=False)
        given_back = np.flatnonzero(np.isnan(snapshot.norms[:, 0])) if snapshot.n_past else np.array([], int)
        if len(given_back):
            until = int(np.argmax(np.isfinite(snapshot.norms[given_back[0]])))
            longest = max(np.split(given_back, np.flatnonzero(np.diff(given_back) > 1) + 1), key=len)
            if until > 0.3 * shown:
                text = "given back: outside the window"
                note(ax, text, (until / 2, longest.mean() + 0.5), ha="center", color=FAINT, fontsize=SMALL)
        near_end = snapshot.n_past > 0.75 * shown
        note(
            ax, f"n_past {snapshot.n_past:,}", (min(snapshot.n_past, shown), n_layers / 2), (-8 if near_end else 8, 0),
            ha="right" if near_end else "left", color=dark(VERMILION), weight="bold",
        )  # fmt: skip
        empty = seq_len - snapshot.n_past
        if empty and snapshot.n_past < 0.5 * shown:
            note(ax, f"{empty:,} positions empty", (shown, n_layers / 2), (-10, 0), ha="right", color=FAINT)
        ax.set_yticks(
            [0.5, n_layers - 0.5] if n_layers > 1 else [0.5],
            [f"{i}" for i in ([0, n_layers - 1] if n_layers > 1 else [0])],
        )
        ax.set_ylabel("layer")
    count_axis(axes[-1].xaxis, f"position in the cache (of {seq_len:,})")
    if image is not None:
        bar = fig.colorbar(image, ax=list(axes), pad=0.02, fraction=0.05, extend="both")
        bar.set_label("length of the key")
    axes[0].set_title("The cache fills from left to right, in every layer")
    fig.alt = f"The KV cache as a picture: {n_layers} layers by {shown:,} positions. " + " ".join(
        f"At n_past {s.n_past:,} the first {s.n_past:,} columns are filled and the rest is empty." for s in snapshots
    )
    return fig


@drawn
def with_and_without_cache(
    lengths: Sequence[int], seconds_with: Sequence[float], seconds_without: Sequence[float]
) -> Picture:
    """Two curves of time against length: with a cache, and with everything evaluated again at each step.

    Args:
        lengths: tokens in the session at each measurement.
        seconds_with, seconds_without: seconds, one for each length.
    """
    if not len(lengths) == len(seconds_with) == len(seconds_without) or not len(lengths):
        raise ParameterError(
            f"{len(lengths)} lengths, {len(seconds_with)} times with a cache and {len(seconds_without)} without; "
            "expected as many of each, and at least one"
        )
    step = [1000 * t for t in seconds_without], [1000 * t for t in seconds_with]
    token = [t / n for t, n in zip(step[0], lengths, strict=True)], step[1]
    ratio = step[0][-1] / step[1][-1] if step[1][-1] else float("inf")
    fig = picture(4.6)
    for ax, curves, title in zip(
        fig.subplots(1, 2), (step, token), ("per step", "per token evaluated"), strict=True
    ):  # fmt: skip
        for values, mark, dashes, colour in zip(curves, "os", (DASHED, SOLID), (VERMILION, BLUE), strict=True):
            ax.plot(lengths, values, mark, linestyle=dashes, color=colour, markersize=6)
        high = max(map(max, curves))
        ax.set_ylim(0, high * 1.3 or 1)
        count_axis(ax.xaxis, "length, tokens")
        ax.set_ylabel("milliseconds")
        ax.grid(True, axis="y")
        ax.set_title(title)
    left = fig.axes[0]
    words = f"{ratio:.2g} times as long at the end" if ratio < 100 else f"{ratio:,.0f} times as long at the end"
    lines = ("without a cache: everything again", VERMILION), ("with the cache: only the new token", BLUE), (words, INK)
    for i, (text, colour) in enumerate(lines):
        note(
            left, text, (0.03, 0.96 - 0.075 * i), xycoords="axes fraction", color=dark(colour), va="top", fontsize=SMALL
        )
    fig.alt = (
        f"Milliseconds against length from {lengths[0]:,} to {lengths[-1]:,} tokens. Per step: without a cache it "
        f"rises to {step[0][-1]:.3g}, with the cache to {step[1][-1]:.3g}, {ratio:.1f} times less. Per token: "
        f"{token[0][-1]:.3g} without, {token[1][-1]:.3g} with."
    )
    return fig


@drawn
def wrong_calculators(rows: Sequence[tuple[str, float]]) -> Picture:
    """The right number of bytes and each wrong calculator's, as bars, with the factor in words.

    Args:
        rows: (name, bytes); the first is the right one.
    """
    if not rows or rows[0][1] <= 0:
        raise ParameterError("give the right calculator first, with a size above 0, and the wrong ones after it")
    right = rows[0][1]
    fig = picture(1.7 + 0.62 * len(rows))
    ax = fig.add_subplot()
    words = ["right"] + [factor_words(nbytes / right) for _, nbytes in rows[1:]]
    for y, ((_, nbytes), word) in enumerate(zip(rows, words, strict=True)):
        style: dict[str, Any] = (
            {"facecolor": GREEN} if y == 0 else {"facecolor": "#f3d9c4", "edgecolor": VERMILION, "hatch": "//"}
        )
        ax.barh(y, nbytes, height=0.66, linewidth=1.2, **style)
        text = f"{format_bytes(nbytes)}\n{word}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # the dotted line passes behind the words
        note(ax, text, (nbytes, y), (8, 0), weight="bold" if y == 0 else "normal", bbox=box)
    ax.axvline(right, color=INK, linestyle=DOTTED, linewidth=1.6, zorder=0)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.5, -0.6)
    ax.set_xlim(0, max(nbytes for _, nbytes in rows) * 1.5)
    bytes_axis(ax.xaxis, "KV cache, bytes")
    ax.set_title("How calculators go wrong")
    fig.alt = f"{rows[0][0]}: {format_bytes(right)}. " + " ".join(
        f"{name}: {format_bytes(nbytes)}, {word}." for (name, nbytes), word in zip(rows[1:], words[1:], strict=True)
    )
    return fig


def factor_words(factor: float) -> str:
    """How far off a figure is, in words: 3 -> '3 times too large', 0.5 -> 'half', 1 -> 'right here, by luck'."""
    if abs(factor - 1) < 0.0005:
        return "right here, by luck"
    if factor > 1:
        return f"{factor:.3g} times too large" if factor < 1000 else f"{factor:,.0f} times too large"
    for part, word in ((2, "half"), (3, "a third"), (4, "a quarter"), (8, "an eighth")):
        if abs(factor * part - 1) < 0.0005:
            return f"only {word}"
    return f"only {_percent(factor)} of it"
