"""The pictures and the widget of notebook 02, chat and templates: what each turn evaluates and how long that takes, the
likeliest next tokens of two prompts, one question in five formats. Each function returns a `Picture`; its `alt`
describes it in words.

Independent of models and templates: the widget gets a function that turns a conversation into tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from teachllama.errors import ParameterError, TeachLlamaError
from teachllama.lessons.common.style import (
    BLUE,
    DASHED,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    SMALL,
    VERMILION,
    Picture,
    count_axis,
    dark,
    drawn,
    name_at_edge,
    note,
    picture,
    visible,
)
from teachllama.looking import Alternative

try:
    import ipywidgets as widgets
except ImportError as e:
    raise ImportError('the widget needs ipywidgets, which is not installed: pip install "teachllama[lab]"') from e


@drawn
def turns(rows: Sequence[tuple[str, int, int, int]]) -> Picture:
    """Each turn of a conversation as a bar: tokens held from before, tokens of the question, tokens of the reply.

    Args:
        rows: (question, tokens held, new tokens, tokens of the reply), drawn from the top.
    """
    if not rows or any(min(row[1:]) < 0 for row in rows):
        raise ParameterError("give at least one turn; tokens cannot be fewer than none")
    fig = picture(1.9 + 0.62 * len(rows))
    ax = fig.add_subplot()
    most = max(held + new + reply for _, held, new, reply in rows)
    for y, (_, held, new, reply) in enumerate(rows):
        ax.barh(y, held, height=0.62, facecolor="white", edgecolor=FAINT, hatch="///", linewidth=0.9)
        ax.barh(y, new, left=held, height=0.62, facecolor=ORANGE, edgecolor=INK, linewidth=0.9)
        ax.barh(y, reply, left=held + new, height=0.62, facecolor=BLUE, edgecolor=INK, linewidth=0.9)
        note(ax, f"{new} new of {held + new}", (held + new + reply, y), (8, 0), fontsize=SMALL)
    ax.set_yticks(range(len(rows)), [f"{i}. {short(text)}" for i, (text, *_) in enumerate(rows, 1)], fontsize=SMALL)
    ax.tick_params(axis="y", length=0)
    _, held, new, reply = rows[-1]
    for text, x, side, shown in (
        ("held from before", 0, "left", held),
        ("new", held + new, "right", new),
        ("reply", held + new, "left", reply),
    ):
        if shown:
            offset = (4 if side == "left" else -4, -3)
            note(ax, text, (x, len(rows) - 0.69), offset, ha=side, va="top", fontsize=SMALL, style="italic")
    ax.set_ylim(len(rows) - 0.15, -0.6)
    ax.set_xlim(0, most * 1.3)
    count_axis(ax.xaxis, "tokens")
    ax.grid(True, axis="x")
    ax.set_title("A turn evaluates only what is new in it")
    fig.alt = "Tokens of each turn. " + " ".join(
        f"Turn {i}: {held} held from before, {new} evaluated, {reply} in the reply."
        for i, (_, held, new, reply) in enumerate(rows, 1)
    )
    return fig


def short(text: str, most: int = 26) -> str:
    """A text on one line, cut to at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def percent(p: float) -> str:
    """A probability as a percentage with one decimal; 'below 0.1%' if that would be 0.0%."""
    return f"{100 * p:.1f}%" if p >= 0.0005 else "below 0.1%"


@drawn
def waiting(lengths: Sequence[int], kept_s: Sequence[float], again_s: Sequence[float]) -> Picture:
    """Time until a reply can begin, against the length of the conversation: with the session kept, and without.

    Args:
        lengths: tokens of the conversation at each turn.
        kept_s, again_s: seconds at each turn, with the session kept and with everything evaluated again.
    """
    if not len(lengths) == len(kept_s) == len(again_s) > 0:
        raise ParameterError("lengths, kept_s and again_s must be of one length, and not empty")
    fig = picture(4.4)
    ax = fig.add_subplot()
    ax.plot(lengths, [1000 * s for s in again_s], color=VERMILION, linestyle=DASHED, marker="s", markersize=7)
    ax.plot(lengths, [1000 * s for s in kept_s], color=BLUE, marker="o", markersize=7)
    ax.set_ylim(0, 1000 * max(*again_s, *kept_s) * 1.15)
    count_axis(ax.xaxis, "tokens of the conversation, with the new question")
    ax.set_ylabel("ms until the reply begins")
    ax.grid(True)
    ax.set_title("What keeping the session saves")
    names = [
        (1000 * again_s[-1], "everything again", VERMILION, False),
        (1000 * kept_s[-1], "only what is new", BLUE, True),
    ]
    fig.draw_without_rendering()
    name_at_edge(ax, names, 3.0)
    fig.alt = (
        f"Milliseconds until a reply begins, for conversations of {lengths[0]} to {lengths[-1]} tokens. Everything "
        f"again: {1000 * again_s[0]:.0f} at first, {1000 * again_s[-1]:.0f} in the end. Only what is new: "
        f"{1000 * kept_s[0]:.0f} at first, {1000 * kept_s[-1]:.0f} in the end."
    )
    return fig


@drawn
def likeliest(panels: Mapping[str, Sequence[Alternative]]) -> Picture:
    """The likeliest next tokens of several prompts, side by side as bars on one scale.

    Args:
        panels: name of the prompt -> its alternatives, likeliest first; the same number in each.
    """
    if not panels or any(not alternatives for alternatives in panels.values()):
        raise ParameterError("give at least one prompt, and at least one alternative for each")
    rows = max(map(len, panels.values()))
    most = max(a.probability for alternatives in panels.values() for a in alternatives)
    fig = picture(2.1 + 0.42 * rows)
    fig.suptitle("Which token comes next?", x=0.01, ha="left")
    alt = []
    for ax, (title, alternatives), colour in zip(
        fig.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.1})[0],
        panels.items(),
        (BLUE, ORANGE, GREEN) * len(panels),
    ):
        for y, a in enumerate(alternatives):
            ax.barh(y, a.probability, height=0.66, facecolor=colour, edgecolor=INK, linewidth=0.8)
            note(ax, percent(a.probability), (a.probability, y), (6, 0), fontsize=SMALL)
        ax.set_yticks(range(len(alternatives)), [short(visible(a.piece), 12) for a in alternatives])
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(rows - 0.4, -0.6)
        ax.set_xlim(0, 1.3 * most)
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        ax.set_title(title, fontsize=13.5)
        alt.append(f"{title}: " + ", ".join(f"{visible(a.piece)} {percent(a.probability)}" for a in alternatives))
    fig.alt = "The likeliest next tokens. " + ". ".join(alt) + "."
    return fig


@drawn
def formats(rows: Sequence[tuple[str, int, int, str]]) -> Picture:
    """One question in several formats: how many of its tokens are control tokens for this model, and the reply.

    Args:
        rows: (format, ordinary tokens, control tokens, a few words on the reply), drawn from the top.
    """
    if not rows or any(ordinary + control < 1 for _, ordinary, control, _ in rows):
        raise ParameterError("give at least one format; each needs a token")
    fig = picture(1.7 + 0.62 * len(rows))
    ax = fig.add_subplot()
    most = max(ordinary + control for _, ordinary, control, _ in rows)
    for y, (_, ordinary, control, words) in enumerate(rows):
        ax.barh(y, control, height=0.62, facecolor=GREEN, edgecolor=INK, linewidth=0.9)
        ax.barh(y, ordinary, left=control, height=0.62, facecolor="white", edgecolor=FAINT, hatch="..", linewidth=0.9)
        colour = dark(GREEN) if control else INK
        note(ax, f"{control} control;  {words}", (ordinary + control, y), (8, 0), fontsize=SMALL, color=colour)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, most * 1.75)
    count_axis(ax.xaxis, "tokens of the prompt:   green, control tokens;   dotted, ordinary text")
    ax.set_title("One question, written in five formats")
    fig.alt = "The prompt of one question in each format. " + " ".join(
        f"{name}: control tokens {control}, ordinary tokens {ordinary}; {words}."
        for name, ordinary, control, words in rows
    )
    return fig


Tokens = Sequence[tuple[str, bool]]  # (text of a token, whether it is a control token)


class TemplateExplorer(widgets.VBox):
    """A widget: choose a format, write a system message and a question, and see the tokens that the model would read.

    Args:
        tokens: (format, system message, question) -> the tokens. The message of a `TeachLlamaError` is shown.
        formats: the names of the formats; the first is selected.
        system, text: the initial contents of the fields.

    Attributes:
        format, system, text: the controls; set their `.value`.
        readout: the panel; its `.value` is HTML.
    """

    def __init__(self, tokens: Callable[[str, str, str], Tokens], formats: Sequence[str], system: str, text: str):
        if not formats:
            raise ParameterError("give at least one format")
        self._tokens = tokens
        wide = {"style": {"description_width": "6em"}, "layout": widgets.Layout(width="min(100%, 44em)")}
        self.format = widgets.Dropdown(options=list(formats), description="Format", **wide)
        self.system = widgets.Text(value=system, description="System", continuous_update=False, **wide)
        self.text = widgets.Text(value=text, description="Question", continuous_update=False, **wide)
        self.readout = widgets.HTML()
        controls = [self.format, self.system, self.text]
        super().__init__([*controls, self.readout], layout=widgets.Layout(width="100%"))
        for control in controls:
            control.observe(self._show, names="value")
        self._show()

    def __repr__(self) -> str:
        return "Template explorer: a widget, alive while the notebook's kernel runs"

    def _show(self, _change: object = None) -> None:
        try:
            tokens = self._tokens(self.format.value, self.system.value, self.text.value)
        except TeachLlamaError as error:
            self.readout.value = f'<div role="alert">{escape(str(error))}</div>'
            return
        spans = "".join(
            f'<span style="display:inline-block;white-space:pre;padding:0 .2em;margin:.1em;border-radius:.2em;'
            f'border:{"3px solid" if control else "1px dotted"} currentColor">{escape(visible(piece))}</span>'
            + ("<br>" if piece.endswith("\n") else "")
            for piece, control in tokens
        )
        n_control = sum(control for _, control in tokens)
        self.readout.value = (
            f'<div style="font-family:monospace;line-height:1.9">{spans}</div><div><output '
            f'data-testid="teachllama-template-tokens">{len(tokens)}</output> tokens; {n_control} of them, with a '
            "thick edge, are control tokens.</div>"
        )
