"""Predictions: a guess is recorded before the next cell shows the answer, and all guesses are reviewed at the end.

    predict("cache against file", "smaller", "as large", "larger")   # a widget; without one: guess("...", "larger")
    reveal("cache against file", "larger")                            # in the cell that measures
    fared()                                                           # at the end

A question without options asks for a number. Without a guess, `reveal` prints nothing.
"""

from __future__ import annotations

import html
import math
import re
from typing import Any

from teachllama.errors import ParameterError

RIGHT, NEAR = 1.1, 1.5  # factors by which a guessed number may be off
_POWERS = {"": 0, "k": 3, "m": 6, "g": 9, "t": 12}
_NUMBER = re.compile(r"([-+]?[\d.,_]+(?:e[-+]?\d+)?)\s*(?:/\s*([\d.]+))?\s*([kmgt]?)b?\s*%?")
_questions: dict[str, Question] = {}  # the questions asked in this kernel, in order


class Question:
    """One question, its guess and its outcome. Displays as a widget in a notebook, elsewhere as a line of text."""

    def __init__(self, name: str, options: tuple[str, ...], unit: str):
        self.name, self.options, self.unit = name, options, unit
        self.guess: Any = None
        self.outcome: Any = None
        self._widget: Any = None

    def set(self, value: Any) -> None:
        """Records a guess; None withdraws it. Does nothing after the answer was revealed.

        Raises:
            ParameterError: `value` is not one of the options, or not a number.
        """
        if self.outcome is not None:
            return
        if value is not None and self.options and value not in self.options:
            raise ParameterError(f"the guess is {value!r}; expected one of {', '.join(map(repr, self.options))}")
        self.guess = value if self.options or value is None else number_from_text(value)

    def say(self, value: Any) -> str:
        """A guess or an outcome in words."""
        if isinstance(value, str):
            return value
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return f"{text} {self.unit}".strip()

    def verdict(self) -> str:
        """Compares guess and outcome: "right", "near", or how far off; "" if there is no guess or no outcome yet."""
        if self.guess is None or self.outcome is None:
            return ""
        if self.options:
            return "right" if self.guess == self.outcome else "otherwise"
        if self.guess == self.outcome:
            return "right"
        if self.guess * self.outcome <= 0:
            return "far off"
        factor = self.guess / self.outcome
        off = max(factor, 1 / factor)
        if off <= RIGHT:
            return "right"
        return "near" if off <= NEAR else f"{off:.2g} times too {'large' if factor > 1 else 'small'}"

    def _asked(self) -> str:
        return " / ".join(self.options) if self.options else f"a number{', ' + self.unit if self.unit else ''}"

    def __repr__(self) -> str:
        made = f"; yours: {self.say(self.guess)}" if self.guess is not None else ""
        return f"Your guess, before you run the next cell ({self.name}): {self._asked()}{made}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        page = (
            f"<div style='border-left: 4px solid #E69F00; padding: 2px 10px'>Your guess, before you run the next cell "
            f"(<i>{html.escape(self.name)}</i>): <b>{html.escape(self._asked())}</b></div>"
        )
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": page}
        try:
            import ipywidgets as widgets
        except ImportError:
            return bundle
        if self._widget is None:
            self._widget = self._control(widgets)
        view = self._widget._repr_mimebundle_() or {}
        return bundle | {key: value for key, value in view.items() if "widget-view" in key}

    def _control(self, widgets: Any) -> Any:
        about = widgets.HTML(f"Your guess ({html.escape(self.name)}):")
        readout = widgets.HTML()
        if self.options:
            entry = widgets.ToggleButtons(options=list(self.options), value=None, style={"button_width": "auto"})
        else:
            entry = widgets.Text(placeholder="a number, then Enter", continuous_update=False)

        def changed(change: Any) -> None:
            try:
                self.set(change["new"] or None)
            except ParameterError as error:
                readout.value = html.escape(str(error))
                return
            late = self.outcome is not None
            readout.value = "the answer is out already" if late else f"recorded: {html.escape(self.say(self.guess))}"

        entry.observe(changed, "value")
        row = [about, entry] + ([widgets.HTML(html.escape(self.unit))] if self.unit else [])
        line = widgets.Layout(display="flex", flex_flow="row wrap", width="100%")
        return widgets.VBox([widgets.Box(row, layout=line), readout], layout=widgets.Layout(width="100%"))


def number_from_text(text: Any) -> float:
    """Parses a number as people write it: 40, 1.5, 377 M, 3/4, 12 %, 4,096. Also accepts a number.

    Raises:
        ParameterError: `text` is not a number.
    """
    found = _NUMBER.fullmatch(str(text).strip().lower())
    try:
        value = (
            float(re.sub("[,_]", "", found[1])) / float(found[2] or 1) * 10 ** _POWERS[found[3]] if found else math.nan
        )
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise ParameterError(f"the guess is {text!r}; expected a number, such as 40, 1.5, 3/4 or 377 M")
    return value


def predict(name: str, *options: str, unit: str = "") -> Question:
    """Asks for a guess; a notebook shows it as a widget.

    Args:
        name: a few words, under which the last cell lists it.
        options: the choices; without any, a number is asked for.
        unit: the unit of that number.
    """
    _questions[name] = Question(name, options, unit)
    return _questions[name]


def guess(name: str, value: Any) -> None:
    """Records a guess without the widget.

    Raises:
        ParameterError: no such question was asked, or `value` is not a valid answer to it.
    """
    _found(name).set(value)


def reveal(name: str, outcome: Any) -> None:
    """Prints the outcome next to the guess. Prints nothing if no guess was made.

    Args:
        name: as in `predict`.
        outcome: one of the question's options, or a number.

    Raises:
        ParameterError: the question was never asked, or the outcome is not one of its options.
    """
    question = _found(name)
    if question.options and outcome not in question.options:
        raise ParameterError(f"{outcome!r} is none of the options of {name!r}: {', '.join(question.options)}")
    question.outcome = outcome
    if question.guess is not None:
        print(f"you guessed {question.say(question.guess)}; it is {question.say(outcome)}: {question.verdict()}")


def fared() -> None:
    """Prints this notebook's guesses next to their outcomes."""
    made = [q for q in _questions.values() if q.verdict()]
    if not made:
        print(f"{len(_questions)} questions were asked, and no guess was recorded.")
        return
    width = max(len(q.name) for q in made)
    shown = [(q.say(q.guess), q.say(q.outcome), q.verdict()) for q in made]
    columns = [max(map(len, column)) for column in zip(*shown, strict=True)]
    print(f"{'':{width}}  {'your guess':>{max(10, columns[0])}}  {'it is':>{columns[1]}}")
    for q, (mine, real, verdict) in zip(made, shown, strict=True):
        print(f"{q.name:{width}}  {mine:>{max(10, columns[0])}}  {real:>{columns[1]}}  {verdict}")
    good = sum(q.verdict() in ("right", "near") for q in made)
    rest = len(_questions) - len(made)
    print(f"\n{good} of {len(made)} right or near" + (f"; {rest} without a guess" if rest else ""))


def _found(name: str) -> Question:
    if name not in _questions:
        raise ParameterError(f"no question is named {name!r}; run the cell above that asks it first")
    return _questions[name]
