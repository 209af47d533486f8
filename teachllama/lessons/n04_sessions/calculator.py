"""The KV-cache calculator: a widget for notebook 04, and the same figures as a table for readers without a kernel.

`teachllama.kv` does the arithmetic. `Answer` combines it with the weights and the available memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from teachllama.errors import ParameterError
from teachllama.kv import KV_DTYPES, longest_seq_len
from teachllama.lessons.common.style import ORANGE, SKY, format_bytes
from teachllama.lessons.n04_sessions.shapes import SHAPES, Shape, shape_of

try:
    import ipywidgets as widgets
except ImportError as e:
    raise ImportError('the calculator needs ipywidgets, which is not installed: pip install "teachllama[lab]"') from e

if TYPE_CHECKING:
    from teachllama.model import Model

WEIGHT_DTYPES = ("f32", "f16", "q8_0", "q4_0")
GB = 10**9


@dataclass(frozen=True)
class Answer:
    """The memory that some sessions of a model need, in bytes.

    Raises:
        ParameterError: on reading a property, if a setting is out of range or the model's heads do not divide into
            `kv_dtype`'s blocks.
    """

    shape: Shape
    seq_len: int
    kv_dtype: str
    n_sessions: int
    weights_dtype: str
    memory_nbytes: int

    @property
    def token_nbytes(self) -> int:
        """KV cache of one token in one session, before any sliding window is full."""
        return self.shape.layout.bytes(1, self.kv_dtype)

    @property
    def session_nbytes(self) -> int:
        """KV cache of one session of `seq_len` tokens."""
        return self.shape.layout.bytes(self.seq_len, self.kv_dtype)

    @property
    def kv_nbytes(self) -> int:
        """KV cache of all sessions."""
        return self.shape.layout.bytes(self.seq_len, self.kv_dtype, self.n_sessions)

    @property
    def weights_nbytes(self) -> int:
        """The weights, which all sessions share."""
        return self.shape.weights_nbytes(self.weights_dtype)

    @property
    def total_nbytes(self) -> int:
        """Weights and all caches."""
        return self.weights_nbytes + self.kv_nbytes

    @property
    def fitting_sessions(self) -> int:
        """How many sessions of `seq_len` tokens fit beside the weights; -1 if the weights alone do not fit."""
        left = self.memory_nbytes - self.weights_nbytes
        return -1 if left < 0 else left // self.session_nbytes

    @property
    def fitting_seq_len(self) -> int:
        """The longest context, at most the native one, for which `n_sessions` sessions fit beside the weights."""
        left = self.memory_nbytes - self.weights_nbytes
        native = self.shape.layout.native_seq_len
        if left <= 0:
            return 0
        longest = longest_seq_len(self.shape.layout, left, self.kv_dtype, self.n_sessions)
        return native if longest is None else min(native, longest)

    def formula(self) -> list[str]:
        """The formula for one session's bytes with its numbers, one line per kind of layer."""
        block, block_nbytes = KV_DTYPES[self.kv_dtype]
        per_number = f"{block_nbytes} bytes" if block == 1 else f"{block_nbytes}/{block} bytes"
        lines = []
        for layer, n in sorted(self.shape.layout.groups.items(), key=lambda g: g[0].window or 2**60, reverse=True):
            positions = layer.positions(self.seq_len)
            nbytes = n * positions * sum(layer.rows) // block * block_nbytes
            window = "" if layer.window is None else f" (window {layer.window:,})"
            numbers = f"({layer.key_length} + {layer.value_length})"
            lines.append(
                f"{n} layer{'s' * (n > 1)} × {positions:,} positions{window} × {layer.n_kv_heads} KV "
                f"head{'s' * (layer.n_kv_heads > 1)} × {numbers} numbers × {per_number} = {nbytes:,} bytes"
            )
        return lines


class KVCalculator(widgets.VBox):
    """The widget that `kv_calculator` makes: controls above, an HTML panel of the answer below.

    Attributes:
        model, context, kv_dtype, sessions, weights, memory: the controls; set their `.value`.
        readout: the panel; its `.value` is HTML.
        answer: the `Answer` shown now; None while the panel shows an error.
    """

    def __init__(self, shapes: Sequence[Shape], seq_len: int, kv_dtype: str, n_sessions: int, weights: str, gb: float):
        self._shapes = {_label(shape): shape for shape in shapes}
        self.answer: Answer | None = None
        look: dict[str, Any] = {
            "layout": widgets.Layout(width="min(100%, 27em)", margin="2px 1.5em 2px 0"),
            "style": {"description_width": "8em"},
        }
        self.model = widgets.Dropdown(
            options=list(self._shapes), description="Model", tooltip="Whose KV cache to compute", **look
        )
        self.context = widgets.SelectionSlider(
            options=[1], description="Context", tooltip="Tokens of each session, up to the model's native context",
            continuous_update=True, **look,
        )  # fmt: skip
        self.kv_dtype = widgets.Dropdown(
            options=list(KV_DTYPES), value=kv_dtype, description="KV type", tooltip="Type of the numbers in the cache",
            **look,
        )  # fmt: skip
        self.sessions = widgets.BoundedIntText(
            value=n_sessions, min=1, max=100_000, description="Sessions", tooltip="Conversations held at once", **look
        )
        self.weights = widgets.Dropdown(
            options=list(WEIGHT_DTYPES), value=weights, description="Weights", tooltip="Type of the weights", **look
        )
        self.memory = widgets.BoundedFloatText(
            value=gb,
            min=0.01,
            max=1e6,
            step=1,
            description="Memory, GB",
            tooltip="Memory there is, in 10⁹ bytes",
            **look,
        )
        self.readout = widgets.HTML()
        controls = [self.model, self.context, self.kv_dtype, self.sessions, self.weights, self.memory]
        box = widgets.Box(controls, layout=widgets.Layout(display="flex", flex_flow="row wrap", width="100%"))
        super().__init__([box, self.readout], layout=widgets.Layout(width="100%"))
        self._offer_contexts(seq_len)
        self.model.observe(self._model_changed, names="value")
        for control in controls[1:]:
            control.observe(self._show, names="value")
        self._show()

    def __repr__(self) -> str:
        return "KV-cache calculator: a widget, alive while the notebook's kernel runs"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        table = kv_calculator_table()  # for readers without a kernel
        bundle = dict(super()._repr_mimebundle_(**kwargs) or {})
        return bundle | {"text/plain": repr(table), "text/html": table._repr_html_()}

    @property
    def shape(self) -> Shape:
        """The selected shape."""
        return self._shapes[self.model.value]

    def _model_changed(self, _change: object) -> None:
        self._offer_contexts(self.context.value)
        self._show()

    def _offer_contexts(self, wanted: int) -> None:
        """Offers powers of two and the native context, and selects the largest that does not exceed `wanted`."""
        native = self.shape.layout.native_seq_len
        lengths = sorted({2**i for i in range(7, 31) if 2**i < native} | {native})
        chosen = lengths[max(0, bisect.bisect_right(lengths, wanted) - 1)]
        self.context.options = [(f"{n:,}", n) for n in lengths]
        self.context.value = chosen

    def _show(self, _change: object = None) -> None:
        shape = self.shape
        self.weights.disabled = shape.loaded_nbytes is not None  # a loaded model's weights have a fixed size
        answer = Answer(
            shape, self.context.value, self.kv_dtype.value, self.sessions.value, self.weights.value,
            round(self.memory.value * GB),
        )  # fmt: skip
        try:
            self.readout.value = _panel(answer)
            self.answer = answer
        except ParameterError as e:
            self.readout.value = f'<p role="alert">{escape(str(e))}</p>'
            self.answer = None


def kv_calculator(
    model: Model | None = None,
    *,
    shape: str | None = None,
    seq_len: int = 8192,
    kv_dtype: str = "f16",
    sessions: int = 1,
    weights: str = "q4_0",
    memory_gb: float = 16.0,
) -> KVCalculator:
    """A widget: choose a model, a context, a type and a number of sessions; it shows the bytes and what fits.

    The bytes of all caches are in the element whose class and data-testid are `teachllama-kv-total`.

    Args:
        model: a loaded model, listed first, with the actual size of its weights.
        shape: the model selected first, a name in `SHAPES`; by default the loaded model, otherwise Llama 3.1 8B.
        seq_len, kv_dtype, sessions, weights, memory_gb: the initial settings.

    Raises:
        ParameterError: no such shape or type.
    """
    for name, value, offered in (("kv_dtype", kv_dtype, KV_DTYPES), ("weights", weights, WEIGHT_DTYPES)):
        if value not in offered:
            raise ParameterError(f"{name} is {value!r}; expected one of {', '.join(offered)}")
    calculator = KVCalculator(_shapes(model), seq_len, kv_dtype, sessions, weights, memory_gb)
    if shape is None and model is None:
        shape = "Llama 3.1 8B"
    if shape is not None:
        if shape not in SHAPES:
            raise ParameterError(f"shape is {shape!r}; expected one of {', '.join(SHAPES)}")
        calculator.model.value = shape
        calculator._offer_contexts(seq_len)
    return calculator


def _shapes(model: Model | None) -> list[Shape]:
    published = [shape for shape in SHAPES.values() if shape.layout.groups]
    return published if model is None else [shape_of(model), *published]


def _label(shape: Shape) -> str:
    return shape.name if shape.loaded_nbytes is None else f"{shape.name} (loaded here)"


# Uses the notebook's own colours, light or dark. Stripes and labels distinguish the parts of the bar without colour.
_PANEL = """
<div class="teachllama-kv" style="line-height:1.55;max-width:66em;overflow-wrap:break-word">
<div style="font-size:1.25em">KV cache of {whose}:
<output class="teachllama-kv-total" data-testid="teachllama-kv-total" style="font-weight:bold">{kv:,}</output> bytes
({kv_short})</div>
<div style="margin:.3em 0"><code style="white-space:normal">{formula}</code></div>
<div>{token:,} bytes a token{late}; {session_short} a session; with {weights_short} of weights,
{total_short} in all.</div>
<div>In {memory_short}: {fits}</div>
<div role="img" aria-label="{alt}" style="display:flex;height:1.6em;margin:.5em 0 .2em;border:1px solid currentColor;
box-sizing:border-box;position:relative">
<div style="width:{weights_part:.2f}%;background:{sky}"></div>
<div style="width:{kv_part:.2f}%;background:repeating-linear-gradient(135deg,{orange} 0 6px,#8a5f00 6px 9px)"></div>
<div style="position:absolute;left:{memory_part:.2f}%;top:-.35em;bottom:-.35em;border-left:3px dashed currentColor">
</div></div>
<div style="font-size:.9em">Bar: weights plain, caches striped; the dashed line is the memory there is.</div>
</div>"""


def _panel(a: Answer) -> str:
    sessions = "session" if a.n_sessions == 1 else "sessions"
    layout = a.shape.layout
    late = ""
    if layout.window is not None and layout.window < layout.native_seq_len:
        more = layout.bytes(layout.window + 1, a.kv_dtype) - layout.bytes(layout.window, a.kv_dtype)
        late = f", {more:,} past {layout.window:,} tokens"
    scale = 100 / max(a.total_nbytes, a.memory_nbytes)
    alt = (
        f"{format_bytes(a.weights_nbytes)} of weights and {format_bytes(a.kv_nbytes)} of caches "
        f"in {format_bytes(a.memory_nbytes)} of memory"
    )
    formula = a.formula()
    if len(formula) > 1:
        formula.append(f"together {a.session_nbytes:,} bytes")
    if a.n_sessions > 1:
        formula.append(f"× {a.n_sessions:,} sessions = {a.kv_nbytes:,} bytes")
    return _PANEL.format(
        whose=f"{a.n_sessions:,} {sessions} of {a.seq_len:,} tokens in {a.kv_dtype}", kv=a.kv_nbytes,
        kv_short=format_bytes(a.kv_nbytes), formula="<br>".join(map(escape, formula)), token=a.token_nbytes, late=late,
        session_short=format_bytes(a.session_nbytes), weights_short=format_bytes(a.weights_nbytes),
        total_short=format_bytes(a.total_nbytes), memory_short=format_bytes(a.memory_nbytes), fits=_fits(a), alt=alt,
        weights_part=scale * a.weights_nbytes, kv_part=scale * a.kv_nbytes,
        memory_part=min(99.6, scale * a.memory_nbytes), sky=SKY, orange=ORANGE,
    )  # fmt: skip


def _fits(a: Answer) -> str:
    if a.fitting_sessions < 0:
        return "<strong>the weights alone do not fit.</strong>"
    does = "it fits" if a.total_nbytes <= a.memory_nbytes else "it does not fit"
    n, longest = a.fitting_sessions, a.fitting_seq_len
    whose = "one session" if a.n_sessions == 1 else f"{a.n_sessions:,} sessions"
    length = "the whole native context" if longest == a.shape.layout.native_seq_len else f"{longest:,} tokens each"
    return (
        f"<strong>{does}.</strong> There is room for {n:,} session{'s' * (n != 1)} of {a.seq_len:,} tokens, or for "
        f"{whose} of {length}."
    )


class Table:
    """Rows of text, displayed as an HTML table in a notebook and as aligned text elsewhere."""

    def __init__(self, caption: str, rows: Sequence[Sequence[str]]):
        self.caption, self.rows = caption, [list(row) for row in rows]

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            first, *rest = (escape(cell) for cell in cells)
            scope = ' scope="col"' if tag == "th" else ""
            right = "".join(f'<{tag}{scope} style="text-align:right">{cell}</{tag}>' for cell in rest)
            kind = "col" if tag == "th" else "row"
            return f'<tr><th scope="{kind}" style="text-align:left">{first}</th>{right}</tr>'

        head, *body = self.rows
        lines = [row(head, "th"), *(row(cells, "td") for cells in body)]
        caption = f'<caption style="text-align:left">{escape(self.caption)}</caption>'
        return f'<table class="teachllama-table">{caption}{"".join(lines)}</table>'

    def __repr__(self) -> str:
        first, *others = (max(map(len, column)) for column in zip(*self.rows, strict=True))
        lines = (
            "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
            for name, *cells in self.rows
        )
        return "\n".join([self.caption, *lines])


def kv_calculator_table(
    model: Model | None = None,
    *,
    seq_len: int | None = None,
    kv_dtype: str = "f16",
    sessions: int = 1,
    weights: str = "q4_0",
    memory_gb: float = 16.0,
) -> Table:
    """The calculator's figures for every model as a table, for readers without a kernel.

    Args:
        model: a loaded model, listed first.
        seq_len: tokens per session, at most the model's native context, which is the default.
        kv_dtype, sessions, weights, memory_gb: as `kv_calculator` takes them.
    """
    rows: list[Sequence[str]] = [
        ("model", "tokens", "bytes a token", "a session", "weights", "together", f"sessions in {memory_gb:g} GB")
    ]
    for shape in _shapes(model):
        native = shape.layout.native_seq_len
        length = native if seq_len is None else min(seq_len, native)
        a = Answer(shape, length, kv_dtype, sessions, weights, round(memory_gb * GB))
        try:
            rows.append((
                _label(shape), f"{length:,}", f"{a.token_nbytes:,}", format_bytes(a.session_nbytes),
                format_bytes(a.weights_nbytes), format_bytes(a.total_nbytes),
                "weights do not fit" if a.fitting_sessions < 0 else f"{a.fitting_sessions:,}",
            ))  # fmt: skip
        except ParameterError:  # heads that do not divide into the type's blocks
            rows.append((_label(shape), f"{length:,}", *["-"] * 5))
    plural = "one session" if sessions == 1 else f"{sessions:,} sessions"
    return Table(f"{plural} with a KV cache in {kv_dtype}, and the weights in {weights}", rows)
