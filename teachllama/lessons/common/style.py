"""The style of every picture here: colours, fonts, byte units, and `Picture`, a figure that a notebook displays.

Made for a lecture hall: large type, names next to lines, colours that colour-blind readers can distinguish (Okabe and
Ito, https://jfly.uni-koeln.de/color/), dashes and hatches that remain distinct in black and white. Nothing uses pyplot,
so no figure stays in its global list.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from teachllama.kv import format_nbytes as format_bytes

try:
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.colors import to_hex, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
    from matplotlib.transforms import Affine2D
    from PIL import Image  # also required by matplotlib
except ImportError as e:
    raise ImportError(
        'teachllama.show draws with matplotlib, which is not installed: pip install "teachllama[lab]"'
    ) from e

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"
INK, FAINT = "#333333", "#8a8a8a"  # text; background elements
SOLID, DASHED, DOTTED = "-", (0, (5, 2)), (0, (1, 1.2))

TITLE, BODY, SMALL = 16, 13, 11.5  # points, at 9 inches of width
WIDTH = 9.0  # inches
DPI = 144  # of the PNG: 1.5 times the resolution it is displayed at, for projectors and dense screens

RC: Any = {
    "axes.axisbelow": True, "axes.edgecolor": INK, "axes.facecolor": "white", "axes.grid": False,
    "axes.labelcolor": INK, "axes.labelsize": BODY, "axes.linewidth": 0.8, "axes.spines.right": False,
    "axes.spines.top": False, "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.titlesize": TITLE,
    "axes.titlepad": 12, "axes.unicode_minus": True, "figure.facecolor": "white", "figure.titlesize": TITLE,
    "font.family": ["DejaVu Sans"], "font.size": BODY, "grid.color": "#dddddd", "grid.linewidth": 0.7,
    "hatch.linewidth": 1.2, "lines.linewidth": 2.4, "mathtext.default": "regular", "text.color": INK,
    "text.parse_math": False, "text.usetex": False, "xtick.color": INK, "xtick.labelsize": BODY,
    "ytick.color": INK, "ytick.labelsize": BODY,
}  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


def drawn(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: draws with `RC`, whatever style the notebook uses."""

    @wraps(function)
    def with_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(RC):
            return function(*args, **kwargs)

    return with_style


class Picture(Figure):
    """A matplotlib figure that a notebook displays as a cell's value, with alternative text in `alt`."""

    alt: str = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        drawn_as, file = io.BytesIO(), io.BytesIO()
        self.savefig(drawn_as, format="png", dpi=DPI)
        pixels = Image.open(drawn_as).convert("RGB")
        # A palette reduces the file to a third of the size. MAXCOVERAGE keeps colours that few pixels have.
        palette = pixels.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.save(file, "PNG")
        width, height = self.get_size_inches()
        return file.getvalue(), {"alt": self.alt, "width": round(width * 100), "height": round(height * 100)}


def picture(height: float = 5.0) -> Picture:
    """An empty picture, `WIDTH` by `height` inches."""
    return Picture(figsize=(WIDTH, height), layout="constrained")


def bytes_axis(axis: Axis, label: str, log: bool = False) -> None:
    """Sets ticks at round decimal sizes ('100 MB'), a faint grid, and `label`."""
    axis.set_major_locator(LogLocator(10) if log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda n, _: format_bytes(n) if n else "0"))
    axis.set_label_text(label)
    axis.grid(True)


def count_axis(axis: Axis, label: str) -> None:
    """Sets ticks at whole numbers with thousands separators ('8,192'), and `label`."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axis.set_label_text(label)


def note(ax: Axes, text: str, xy: tuple[float, float], offset: tuple[float, float] = (0, 0), **kwargs: Any) -> None:
    """Writes text at a point of `ax`, moved by `offset` points. `halo` is the colour behind it, None for none.

    The halo separates the letters from lines that pass behind them.
    """
    halo = kwargs.pop("halo", "white")
    kwargs = {"color": INK, "ha": "left", "va": "center", "textcoords": "offset points"} | kwargs
    text_artist = ax.annotate(text, xy, xytext=offset, **kwargs)
    if halo:
        text_artist.set_path_effects([withStroke(linewidth=3, foreground=halo)])


def name_at_edge(ax: Axes, labels: Sequence[tuple[float, str, str, bool]], height: float) -> None:
    """Labels the lines that meet the right edge of `ax`, outside it. Moves labels apart, each with a thin leader line.

    Args:
        labels: (y in data units, text, colour, bold).
        height: approximate height of the axes in inches, used to move the labels apart.
    """
    fractions = [ax.transAxes.inverted().transform(ax.transData.transform((0.5, y)))[1] for y, *_ in labels]
    line = SMALL * 1.3
    heights = [line * (1 + text.count("\n")) for _, text, *_ in labels]
    wanted = [f * height * 72 for f in fractions]
    at = spread(wanted, [h + 4 for h in heights], max(heights, default=0) / 2)
    for (_, text, colour, bold), fraction, y, middle in zip(labels, fractions, at, wanted, strict=True):
        note(
            ax, text, (1, fraction), (20, y - middle), xycoords="axes fraction", color=dark(colour), fontsize=SMALL,
            weight="bold" if bold else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.9, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)},
        )  # fmt: skip


def name_in_gaps(
    ax: Axes, labels: Sequence[tuple[tuple[float, float], str, str, bool]], size: tuple[float, float]
) -> None:
    """Labels points of `ax`, each on the side with the fewest lines and other labels.

    Args:
        labels: (point in data units, text, colour, bold).
        size: approximate width and height of the axes in inches.
    """
    to_points = ax.transAxes.inverted() + Affine2D().scale(72 * size[0], 72 * size[1])
    paths = []
    for line in ax.lines:
        path = to_points.transform(line.get_transform().transform(line.get_xydata()))
        t = np.linspace(0, len(path) - 1, 400)
        paths.append(np.column_stack([np.interp(t, np.arange(len(path)), values) for values in path.T]))
    lines, taken = np.concatenate(paths), list[tuple[float, float, float, float]]()

    def box(at: tuple[float, float], text: str, offset: tuple[float, float]) -> tuple[float, float, float, float]:
        rows = text.split("\n")
        length, half = 0.68 * SMALL * max(map(len, rows)), 0.75 * SMALL * len(rows)
        left, middle = at[0] + offset[0] - length * (offset[0] < 0), at[1] + offset[1]
        return left, left + length, middle - half, middle + half

    def cost(left: float, right: float, low: float, high: float, far: float) -> float:
        x, y = lines.T
        crossed = np.count_nonzero((x > left) & (x < right) & (y > low) & (y < high))
        on_names = sum(left < r and l < right and low < h and b < high for l, r, b, h in taken)
        outside = max(0, -left) + max(0, -low) + max(0, high - 72 * size[1]) + max(0, right - 72 * size[0])
        return crossed + 300 * on_names + 10 * outside + far

    for xy, text, colour, bold in labels:
        x, y = to_points.transform(ax.transData.transform(xy))
        offsets = [(side, dy) for dy in (0, 12, 18, 24, 34, 46, -12, -18, -24, -34, -46) for side in (-8, 8)]
        best = min(offsets, key=lambda o: cost(*box((x, y), text, o), far=abs(o[1])))
        taken.append(box((x, y), text, best))
        note(
            ax, text, xy, best, color=dark(colour), fontsize=SMALL, ha="right" if best[0] < 0 else "left",
            weight="bold" if bold else "normal",
        )  # fmt: skip


def power_of_ten(value: float, digits: int = 1) -> str:
    """2.3e-4 -> '2.3 × 10⁻⁴', with `digits` digits after the point."""
    number, power = f"{value:.{digits}e}".split("e")
    return f"{number} × 10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def dark(colour: str) -> str:
    """A darker shade of a line's colour, for text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.68 * red, 0.68 * green, 0.68 * blue))


def spread(places: Sequence[float], sizes: Sequence[float], low: float = float("-inf")) -> list[float]:
    """Centres of items of `sizes`, as close to `places` as possible without overlap, and none below `low`."""
    groups: list[list[int]] = []  # items that touch, lowest first

    def start(group: list[int]) -> float:
        """The centre of a group's lowest item, chosen so that on average its items are at their wanted places."""
        moves = [places[i] - above for i, above in zip(group, steps(group), strict=True)]
        return max(low, sum(moves) / len(moves))

    def steps(group: list[int]) -> list[float]:
        """Each item's distance above the lowest item of its group."""
        return [0.0, *accumulate((sizes[a] + sizes[b]) / 2 for a, b in pairwise(group))]

    for i in sorted(range(len(places)), key=places.__getitem__):
        group = [i]
        while groups:
            below = groups[-1]
            top = start(below) + steps(below)[-1]
            if top + (sizes[below[-1]] + sizes[group[0]]) / 2 <= start(group):
                break
            group = groups.pop() + group
        groups.append(group)
    return [y for _, y in sorted((i, start(g) + above) for g in groups for i, above in zip(g, steps(g), strict=True))]


SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "‹CR›"}


def visible(text: str) -> str:
    """`text` with spaces, line ends and control characters made visible, and characters the font lacks as code points.

    ' the\\n' -> '␣the⏎'; an empty text -> '(nothing)'.
    """
    return "".join(SIGNS.get(c) or (c if _drawable(c) else f"‹{ord(c):04X}›") for c in text) or "(nothing)"


@lru_cache(maxsize=4096)
def _drawable(character: str) -> bool:
    if unicodedata.category(character)[0] == "C" or unicodedata.category(character) in ("Zs", "Zl", "Zp", "Mn", "Me"):
        return False
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return bool(font.get_char_index(ord(character)))
