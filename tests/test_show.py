"""Pictures and the calculator widget, on made-up numbers and a tiny model."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import teachllama as tl
from tests.tools import tiny_model

pytest.importorskip("matplotlib", reason="the lab extra is not installed")
pytest.importorskip("ipywidgets", reason="the lab extra is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from teachllama import show
from teachllama.show.notebook04 import factor_words
from teachllama.show.style import spread

PIECES = [" the", "\n", "\t\x1b", "$x$ $y$", "中", "\u202eabc", "", "é" * 60, "\ufffd", " a", "<|im_end|>", "🎉"]
ODD_WORDS = SimpleNamespace(piece=lambda i: PIECES[i])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    with tl.load_model(tiny_model(tmp_path_factory.mktemp("show") / "tiny.gguf")) as model:
        yield model


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    path = tmp_path_factory.mktemp("show") / "sliding.gguf"
    with tl.load_model(tiny_model(path, "gemma3", **{"gemma3.context_length": 512})) as model:
        yield model


def filled(model: tl.Model, n_past: int, seq_len: int = 64) -> tl.Session:
    session = model.create_session(seq_len=seq_len)
    session.eval([i % 200 for i in range(n_past)])
    return session


def points(config: tl.ModelConfig, *lengths: int) -> list[tuple[int, int]]:
    return [(n, tl.kv_cache_bytes(config, n) + 4096 if n else 0) for n in lengths]


def snapshots(model: tl.Model) -> list[Any]:
    return [show.cache_snapshot(filled(model, n)) for n in (1, 20, 64)]


Draw = Callable[[tl.Model, tl.Model], Any]
PICTURES: dict[str, Draw] = {
    "context": lambda m, g: show.kv_against_context(),
    "context of a loaded model": lambda m, g: show.kv_against_context(model=m, machine_bytes=16 * 10**9),
    "context of a sliding model": lambda m, g: show.kv_against_context(model=g, machine_bytes=10**12),
    "context of every shape": lambda m, g: show.kv_against_context({"one": show.SHAPES["TinyLlama 1.1B"]}),
    "reserved": lambda m, g: show.reserved_and_resident(points(m.config, 0, 8, 32), m.config),
    "reserved and full": lambda m, g: show.reserved_and_resident(points(m.config, 64), m.config, kv_dtype="f32"),
    "reserved, sliding": lambda m, g: show.reserved_and_resident(points(g.config, 0, 4, 16), g.config, seq_len=128),
    "nothing resident": lambda m, g: show.reserved_and_resident([(0, 0)], m.config),
    "bars": lambda m, g: show.session_bars(538_060_032, [47_185_920] * 3),
    "bars by name": lambda m, g: show.session_bars(10**9, {"a rather long name for a story": 10**9, "my weights": 5}),
    "many bars": lambda m, g: show.session_bars(538_060_032, [47_185_920] * 12),
    "one bar": lambda m, g: show.session_bars(1000, [10**8]),
    "tokens": lambda m, g: show.next_tokens(ODD_WORDS, np.linspace(3, 0, 12, dtype=np.float32), n=12),
    "a sure token": lambda m, g: show.next_tokens(m, np.eye(m.config.vocab_size, dtype=np.float32)[3] * 90, n=1),
    "filling": lambda m, g: show.cache_filling(filled(m, 20)),
    "filling in steps": lambda m, g: show.cache_filling(snapshots(m)),
    "an empty cache": lambda m, g: show.cache_filling(show.cache_snapshot(m.create_session())),
    "a sliding cache": lambda m, g: show.cache_filling(filled(g, 300, 512), positions=320),
    "times": lambda m, g: show.with_and_without_cache([16, 64, 256], [0.01, 0.01, 0.012], [0.03, 0.1, 0.42]),
    "times that hardly differ": lambda m, g: show.with_and_without_cache([1, 2], [0.01, 0.01], [0.01, 0.0101]),
    "wrong": lambda m, g: show.wrong_calculators(
        [("right", 377_487_360), ("query heads for KV heads", 3 * 377_487_360), ("dim / n_heads", 377_487_360),
         ("forgets V", 377_487_360 / 2), ("counts in bits", 8 * 377_487_360), ("forgets nearly everything", 2000)]
    ),
}  # fmt: skip


def texts_of(figure: Any) -> list[Text]:
    """Every text drawn; tick labels outside the axes' limits are not drawn."""
    unseen = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                outside = not low - 1e-9 <= tick.get_loc() <= high + 1e-9
                unseen |= {id(label) for label in (tick.label1, tick.label2) if outside or not label.get_visible()}
    return [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible() and id(t) not in unseen]


def words(figure: Any) -> str:
    return "\n".join(t.get_text() for t in texts_of(figure))


@pytest.mark.filterwarnings("error")  # a missing glyph is a warning
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_draws_with_labels_inside_its_edges_and_clear_of_each_other(
    name: str, model: tl.Model, sliding: tl.Model
) -> None:
    figure = PICTURES[name](model, sliding)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    assert 8 <= figure.get_figwidth() <= 9
    boxes = [(t.get_text(), Text.get_window_extent(t, canvas.get_renderer())) for t in texts_of(figure)]
    for text, box in boxes:
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= width + 0.5, text
        assert box.y1 <= height + 0.5, text
    for (one, a), (other, b) in combinations(boxes, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 2 or down < 3, f"{one!r} and {other!r} overlap by {across:.0f} x {down:.0f} pixels"
    labels = [ax.get_xlabel() + ax.get_ylabel() for ax in figure.axes]
    assert all(labels)
    assert len(figure.alt) > 20
    assert figure.alt.endswith(".")


def test_a_picture_shows_itself_as_png_with_its_text_for_readers_who_cannot_see_it() -> None:
    from IPython.core.formatters import DisplayFormatter

    figure = show.session_bars(1000, [10])
    data, metadata = DisplayFormatter().format(figure)
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata["image/png"] == {"alt": figure.alt, "width": 900, "height": 540}
    assert figure._repr_png_() == figure._repr_png_()  # the same bytes, so that notebooks do not change needlessly


def test_pictures_ignore_the_notebooks_own_style() -> None:
    import matplotlib

    plain = show.session_bars(1000, [10])._repr_png_()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "text.color": "red"}):
        assert show.session_bars(1000, [10])._repr_png_() == plain


def test_context_lines_are_the_formula_and_the_loaded_model_is_thicker(model: tl.Model) -> None:
    figure = show.kv_against_context(model=model, machine_bytes=16 * 10**9)
    llama = show.SHAPES["Llama 3.1 8B"].layout
    found = [
        line for line in figure.axes[0].lines if len(line.get_xdata()) > 2 and line.get_ydata()[-1] == 34_359_738_368
    ]
    assert [llama.bytes(int(n)) for n in found[0].get_xdata()] == list(found[0].get_ydata())
    widths = {line.get_linewidth() for line in figure.axes[0].lines if len(line.get_xdata()) > 2}
    assert len(widths) == 4  # f32 and f16, both thicker for the loaded model
    assert "34.4 GB, f16 17.2 GB" in words(figure)
    assert "this machine, 16 GB" in words(figure)
    assert "Binder's 2 GB" in words(figure)
    assert "tiny llama" in words(figure)
    levels = {line.get_ydata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 2}
    assert levels == {2 * 10**9, 16 * 10**9, Path(model.path).stat().st_size}


def test_reserved_and_resident_draws_what_was_measured_and_what_the_formula_gives(model: tl.Model) -> None:
    measured = points(model.config, 0, 8, 32)
    vessel, ax = show.reserved_and_resident(measured, model.config).axes
    line, dots = ax.lines
    assert list(zip(*dots.get_data(), strict=True)) == measured
    assert [tl.kv_cache_bytes(model.config, int(n)) if n else 0 for n in line.get_xdata()] == list(line.get_ydata())
    assert [bar.get_height() for bar in vessel.patches] == [tl.kv_cache_bytes(model.config, 64), measured[-1][1]]


def test_session_bars_stack_the_weights_once_or_for_every_session() -> None:
    figure = show.session_bars(500, [20, 30])
    tops = [(bar.get_x(), bar.get_y() + bar.get_height()) for bar in figure.axes[0].patches]
    left, right = sorted({x for x, _ in tops})
    assert [top for x, top in tops if x == left] == [500, 520, 550]
    assert [top for x, top in tops if x == right] == [500, 520, 1020, 1050]
    assert "550 B" in words(figure)
    assert "1.05 kB" in words(figure)


def test_next_tokens_are_the_likeliest_with_their_probabilities_and_visible_spaces() -> None:
    figure = show.next_tokens(ODD_WORDS, np.log(np.array([0.5, 0.25, 0.125, 0.125])), n=2)
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([0.5, 0.25])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["␣the", "⏎"]
    assert "the other 2 tokens together: 25.0%" in words(figure)
    assert [show.visible(piece) for piece in ("a b", "\t", "", "\x1b", "中")] == [
        "a␣b",
        "⇥",
        "(nothing)",
        "‹001B›",
        "‹4E2D›",
    ]


def test_cache_filling_shows_the_keys_lengths_and_nothing_where_nothing_is(model: tl.Model, sliding: tl.Model) -> None:
    session = filled(model, 20)
    image = show.cache_filling(session).axes[0].images[0].get_array()
    assert image.shape == (2, 64)
    expected = np.linalg.norm(session.k_cache[:, :20].reshape(2, 20, -1), axis=2)
    np.testing.assert_allclose(image[:, :20], expected, rtol=1e-6)
    assert image.mask[:, 20:].all()
    assert not image.mask[:, :20].any()
    kept = np.isfinite(show.cache_snapshot(filled(sliding, 300, 512)).norms)
    assert kept[5, :300].all()  # the layer without a window
    assert kept[0, 292:300].all()
    if sys.platform == "linux":
        assert not kept[0].all()


def test_looking_at_a_cache_makes_no_page_resident_and_keeps_no_session_alive(model: tl.Model) -> None:
    session = filled(model, 3)
    before = tl.memory.resident_of(session.k_cache)
    figure = show.cache_filling(session)
    assert tl.memory.resident_of(session.k_cache) == before
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None
    assert figure._repr_png_()[0]


def test_times_and_wrong_sizes_are_drawn_as_given() -> None:
    step, token = show.with_and_without_cache([1, 2], [0.1, 0.2], [0.3, 0.8]).axes
    assert [list(line.get_ydata()) for line in step.lines] == [[300, 800], [100, 200]]
    assert [list(line.get_ydata()) for line in token.lines] == [[300, 400], [100, 200]]
    assert "4 times as long" in words(step.figure)
    ax = show.wrong_calculators([("ours", 100), ("no V", 50), ("query heads", 300)]).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [100, 50, 300]
    assert "only half" in words(ax.figure)
    assert "3 times too large" in words(ax.figure)


def test_factors_read_as_words() -> None:
    factors = {1: "right here, by luck", 3: "3 times too large", 1.6: "1.6 times too large", 0.5: "only half"}
    factors |= {1 / 3: "only a third", 0.25: "only a quarter", 0.625: "only 62.5% of it", 4096: "4,096 times too large"}
    assert {f: factor_words(f) for f in factors} == factors


def test_what_cannot_be_drawn_is_refused_in_words(model: tl.Model) -> None:
    for draw in (
        lambda: show.reserved_and_resident([], model.config),
        lambda: show.session_bars(10, []),
        lambda: show.next_tokens(model, np.zeros((2, 3))),
        lambda: show.next_tokens(model, np.zeros(3), n=4),
        lambda: show.cache_filling([]),
        lambda: show.with_and_without_cache([1, 2], [1.0], [1.0, 2.0]),
        lambda: show.wrong_calculators([]),
        lambda: show.kv_against_context({}),
        lambda: show.kv_calculator(shape="no such model"),
        lambda: show.kv_calculator(kv_dtype="f8"),
    ):
        with pytest.raises(tl.ParameterError, match=r"expected|give at least|give the right"):
            draw()


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (512, "512 B"), (4096, "4.1 kB"), (47_185_920, "47.2 MB"), (377_487_360, "377.5 MB"),
     (999_960_000, "1 GB"), (1_756_000_000, "1.76 GB"), (2 * 10**9, "2 GB"), (34_359_738_368, "34.4 GB")],
)  # fmt: skip
def test_bytes_read_as_decimal_units(n: int, text: str) -> None:
    assert show.format_bytes(n) == text


def test_spread_keeps_the_order_and_the_distances() -> None:
    assert spread([0, 1, 10], [4, 4, 4]) == [-1.5, 2.5, 10]
    assert spread([10, 1, 0], [4, 4, 4], 0) == [10, 4, 0]
    rng = np.random.default_rng(0)
    for _ in range(200):
        places, sizes = rng.uniform(0, 50, 6), rng.uniform(1, 9, 6)
        order = np.argsort(places)
        moved = np.array(spread(list(places), list(sizes), 3))[order]
        gaps = (sizes[order][1:] + sizes[order][:-1]) / 2
        assert (np.diff(moved) >= gaps - 1e-9).all()
        assert moved[0] >= 3 - 1e-9


# ---- shapes ----


def test_published_shapes_have_their_known_sizes() -> None:
    sizes = {name: (s.layout.bytes(s.layout.native_seq_len), s.layout.bytes(s.layout.native_seq_len, "f16"))
             for name, s in show.SHAPES.items()}  # fmt: skip
    assert sizes["Llama 3.1 8B"] == (34_359_738_368, 17_179_869_184)
    assert sizes["SmolLM2 135M"] == (377_487_360, 188_743_680)
    assert sizes["Gemma 3 270M"][0] == 2 * 4 * 256 * (3 * 32_768 + 15 * 512)
    assert show.SHAPES["Mistral 7B v0.3"].layout.bytes(1000) == show.SHAPES["Llama 3.1 8B"].layout.bytes(1000)


@pytest.mark.parametrize("shape", show.SHAPES.values(), ids=lambda s: s.name)
def test_a_shapes_number_of_weights_follows_from_its_dimensions(shape: Any) -> None:
    dim, hidden, layers = map(shape.get, ("embedding_length", "feed_forward_length", "block_count"))
    heads, kv_heads, head_dim = map(
        shape.get, ("attention.head_count", "attention.head_count_kv", "attention.key_length")
    )
    gemma, qwen = shape.layout.arch == "gemma3", shape.layout.arch == "qwen2"
    tied = gemma or shape.name == "SmolLM2 135M"
    attention = 2 * dim * heads * head_dim + 2 * dim * kv_heads * head_dim + qwen * (heads + 2 * kv_heads) * head_dim
    norms = 4 * dim + 2 * head_dim if gemma else 2 * dim
    embeddings = shape.get("vocab_size") * dim * (1 if tied else 2)
    assert shape.n_weights == embeddings + dim + layers * (attention + 3 * dim * hidden + norms)
    assert shape.source.startswith("https://huggingface.co/")
    assert shape.source.endswith("/config.json")


def test_a_loaded_model_has_its_own_name_and_weight(model: tl.Model) -> None:
    shape = show.shape_of(model)
    assert (shape.name, shape.layout, shape.weights_nbytes("q4_0")) == (
        "tiny llama",
        model.config.kv_layout,
        model.nbytes,
    )
    assert show.SHAPES["Llama 3.1 8B"].weights_nbytes("f16") == 2 * 8_030_261_248
    assert show.SHAPES["Llama 3.1 8B"].weights_nbytes("q8_0") == 8_030_261_248 // 32 * 34
    with pytest.raises(tl.ParameterError, match="not known"):
        show.Shape("unknown", model.config.kv_layout, None, "").weights_nbytes()


@pytest.mark.model
def test_the_real_files_are_recognised_as_published_shapes(smollm2_path: str, gemma3_path: str) -> None:
    for path, name in ((smollm2_path, "SmolLM2 135M"), (gemma3_path, "Gemma 3 270M")):
        with tl.open_gguf(path, metadata_only=True) as file:
            layout = tl.kv_layout_from_metadata(file.metadata)
        assert (layout.layers, layout.native_seq_len) == (
            show.SHAPES[name].layout.layers,
            show.SHAPES[name].layout.native_seq_len,
        )
    with tl.load_model(smollm2_path, weights="f32") as model:
        assert show.shape_of(model).name == "SmolLM2 135M"
        assert show.SHAPES["SmolLM2 135M"].weights_nbytes("f32") == model.nbytes


# ---- the calculator ----


def total(calculator: Any) -> int:
    """The readout's total, parsed as in the browser test."""
    found = re.search(r'data-testid="teachllama-kv-total"[^>]*>([\d,]+)<', calculator.readout.value)
    assert found, calculator.readout.value
    return int(found[1].replace(",", ""))


def test_the_readout_follows_every_control() -> None:
    calculator = show.kv_calculator(shape="Llama 3.1 8B", seq_len=1024, kv_dtype="f32")
    layout = show.SHAPES["Llama 3.1 8B"].layout
    assert total(calculator) == tl.kv_cache_bytes(layout, 1024, "f32")
    calculator.context.value = 131_072
    assert total(calculator) == tl.kv_cache_bytes(layout, 131_072, "f32") == 34_359_738_368
    calculator.kv_dtype.value = "f16"
    assert total(calculator) == 17_179_869_184
    calculator.sessions.value = 3
    assert total(calculator) == 3 * 17_179_869_184 == calculator.answer.kv_nbytes
    assert "32 layers × 131,072 positions × 8 KV heads × (128 + 128) numbers × 2 bytes" in calculator.readout.value
    assert "it does not fit" in calculator.readout.value
    calculator.memory.value = 400
    assert "it fits" in calculator.readout.value
    calculator.weights.value = "f32"
    calculator.memory.value = 16
    assert "the weights alone do not fit" in calculator.readout.value
    calculator.model.value = "SmolLM2 135M"
    assert calculator.context.value == 8192  # the native context is the longest choice
    assert total(calculator) == 3 * 188_743_680


def test_the_slider_offers_powers_of_two_up_to_the_native_context(model: tl.Model) -> None:
    calculator = show.kv_calculator(model)
    assert [n for _, n in calculator.context.options] == [64]
    calculator.model.value = "TinyLlama 1.1B"
    assert [label for label, _ in calculator.context.options] == ["128", "256", "512", "1,024", "2,048"]


def test_a_loaded_model_is_offered_first_with_its_weights_as_they_are(model: tl.Model) -> None:
    calculator = show.kv_calculator(model, kv_dtype="f32")
    assert calculator.model.value == "tiny llama (loaded here)"
    assert calculator.weights.disabled
    assert total(calculator) == tl.kv_cache_bytes(model.config)
    assert calculator.answer.total_nbytes == model.nbytes + tl.kv_cache_bytes(model.config)
    calculator.kv_dtype.value = "q8_0"  # heads of 8 numbers do not fill blocks of 32
    assert calculator.answer is None
    assert 'role="alert"' in calculator.readout.value
    calculator.kv_dtype.value = "f16"
    assert total(calculator) == tl.kv_cache_bytes(model.config, kv_dtype="f16")


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
@pytest.mark.parametrize("shape", show.SHAPES.values(), ids=lambda s: s.name)
def test_the_formulas_lines_add_up_and_what_fits_fits_exactly(shape: Any, dtype: str) -> None:
    calculator = show.kv_calculator(shape=shape.name, seq_len=131_072, kv_dtype=dtype, sessions=2, memory_gb=64)
    answer = calculator.answer
    lines = answer.formula()
    assert (
        sum(int(re.search(r"= ([\d,]+) bytes$", line)[1].replace(",", "")) for line in lines) == answer.session_nbytes
    )
    left = answer.memory_nbytes - answer.weights_nbytes
    assert (
        answer.fitting_sessions * answer.session_nbytes <= left < (answer.fitting_sessions + 1) * answer.session_nbytes
    )
    longest, native = answer.fitting_seq_len, shape.layout.native_seq_len
    assert shape.layout.bytes(longest, dtype, 2) <= left
    assert longest == native or shape.layout.bytes(longest + 1, dtype, 2) > left


def test_every_control_has_a_name_and_a_tooltip_and_the_widget_a_stable_text() -> None:
    calculator = show.kv_calculator()
    controls = calculator.children[0].children
    assert len(controls) == 6
    assert all(c.description and c.tooltip for c in controls)
    assert repr(calculator) == repr(show.kv_calculator(shape="Gemma 3 4B"))
    still = calculator._repr_mimebundle_()  # without a kernel, the table is shown instead
    assert still["text/plain"] == repr(show.kv_calculator_table())
    assert "<table" in still["text/html"]


def test_the_table_says_what_the_widget_says(model: tl.Model) -> None:
    table = show.kv_calculator_table(model, seq_len=8192, weights="f16", memory_gb=24)
    rows = {row[0]: row[1:] for row in table.rows}
    assert len(rows) == 2 + len(show.SHAPES)
    assert rows["Llama 3.1 8B"] == ["8,192", "131,072", "1.07 GB", "16.1 GB", "17.1 GB", "7"]
    assert rows["TinyLlama 1.1B"][0] == "2,048"
    assert rows["Llama 3.1 70B"][-1] == "weights do not fit"
    answer = show.kv_calculator(shape="Llama 3.1 8B", seq_len=8192, weights="f16", memory_gb=24).answer
    assert rows["Llama 3.1 8B"][-1] == str(answer.fitting_sessions)
    assert table._repr_html_().count("<tr>") == 2 + len(show.SHAPES)
    assert "Llama 3.1 8B" in repr(table)
    assert show.kv_calculator_table(model, kv_dtype="q8_0").rows[1][2:] == ["-"] * 5


# ---- imports ----


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_or_show_loads_neither_matplotlib_nor_ipywidgets() -> None:
    heavy = "[m for m in ('matplotlib', 'ipywidgets', 'IPython', 'jupyterlab') if m in sys.modules]"
    out = run(f"import sys, teachllama; from teachllama import show; show.SHAPES; dir(show); print({heavy})")
    assert out == "[]\n"


def test_drawing_does_not_load_pyplot() -> None:
    code = "import sys; from teachllama import show; show.session_bars(10, [1])._repr_png_(); "
    assert run(code + "print('matplotlib.pyplot' in sys.modules)") == "False\n"


@pytest.mark.parametrize(("missing", "name"), [("matplotlib", "session_bars"), ("ipywidgets", "kv_calculator")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(missing: str, name: str) -> None:
    out = run(
        f"import sys; sys.modules['{missing}'] = None\nfrom teachllama import show\n"
        f"try: show.{name}\nexcept ImportError as e: print(e)"
    )
    assert missing in out
    assert 'pip install "teachllama[lab]"' in out


def test_a_name_that_is_not_there_is_an_attribute_error_that_lists_what_is() -> None:
    with pytest.raises(AttributeError, match="kv_calculator"):
        show.no_such_picture
    assert all(hasattr(show, name) for name in dir(show))
