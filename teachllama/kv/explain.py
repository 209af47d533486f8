"""Finds the mistake, or the engine's rule, that gives a number of bytes claimed for a KV cache.

One place for the usual mistakes: each changes one part of the cache (its shape, its type, its length, how often it is
counted, its unit, or what is counted with it). A number is explained by the fewest mistakes that give it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from teachllama.errors import ParameterError
from teachllama.kv import engines
from teachllama.kv.formula import KV_DTYPES, KVLayout, LayerKV, format_nbytes, longest_seq_len

ONE, TWO = 0.02, 0.005  # relative error allowed for a number that one mistake explains, and two at once
EXACT = 0.001  # a number closer than this is right


@dataclass(frozen=True)
class Cache:
    """The parts of a cache's size. A mistake is the same cache with one part wrong."""

    layers: tuple[LayerKV, ...]
    seq_len: int
    element_nbytes: Fraction  # bytes of one number; a fraction if the type stores blocks
    native_seq_len: int
    n_heads: int = 0  # query heads and dim: not in a layout, so not always known
    dim: int = 0
    n_sessions: int = 1
    latent: tuple[int, int, int] | None = None  # query heads, key and value length that a latent key stands for
    extra_nbytes: int = 0  # other bytes counted with it
    unit: Fraction = Fraction(1)

    @property
    def nbytes(self) -> Fraction:
        """The size."""
        numbers = sum(layer.positions(self.seq_len) * sum(layer.rows) for layer in self.layers)
        return (self.n_sessions * self.element_nbytes * numbers + self.extra_nbytes) * self.unit

    def with_layers(self, **changes: int | None) -> Cache:
        """A copy in which every layer that has keys is changed."""
        layers = tuple(replace(x, **changes) if x.n_kv_heads else x for x in self.layers)  # type: ignore[arg-type]
        return replace(self, layers=layers)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One way to be wrong: `change` returns the wrong cache, or the same one if the mistake does not apply."""

    name: str
    part: str  # which part of the cache it changes: two mistakes about one part are never combined
    text: str
    change: Callable[[Cache], Cache]


def _dim_over_heads(c: Cache) -> Cache:
    length = c.dim // c.n_heads if c.n_heads else 0
    return c.with_layers(key_length=length, value_length=length) if length else c


def _first_for_all(c: Cache) -> Cache:
    return replace(c, layers=(c.layers[0],) * len(c.layers)) if c.layers else c


def _all_attend(c: Cache) -> Cache:
    first = next((x for x in c.layers if x.n_kv_heads), None)
    return c if first is None else replace(c, layers=tuple(x if x.n_kv_heads else first for x in c.layers))


def _latent_in_full(c: Cache) -> Cache:
    if c.latent is None:
        return c
    heads, key, value = c.latent
    return c.with_layers(n_kv_heads=heads, key_length=key, value_length=value)


SHAPE: tuple[Mistake, ...] = (
    Mistake(
        "query_heads", "heads", "it counts query heads: under grouped-query attention several of them share one key "
        "and value, and only those are cached",
        lambda c: c.with_layers(n_kv_heads=c.n_heads) if c.n_heads else c,
    ),
    Mistake(
        "head_dim", "lengths", "it takes dim / n_heads for the length of a head: that is a default only, and this file "
        "has lengths of its own",
        _dim_over_heads,
    ),
    Mistake("no_v", "lengths", "it counts K, and V is missing", lambda c: c.with_layers(value_length=0)),
    Mistake(
        "value_length", "lengths", "it gives V the length of K: the file has a number for each, and here they differ",
        lambda c: replace(c, layers=tuple(replace(x, value_length=x.key_length) for x in c.layers)),
    ),
    Mistake(
        "sliding_window", "window", "it lets every layer keep every position: some layers of this model look back no "
        "further than their window",
        lambda c: c.with_layers(window=None),
    ),
    Mistake("first_layer", "layers", "it takes the first layer for all, and here layers differ", _first_for_all),
    Mistake("one_layer", "layers", "it is the cache of one layer, and every layer has its own",
            lambda c: replace(c, layers=tuple(x for x in c.layers if x.n_kv_heads)[:1])),
    Mistake("all_attend", "layers", "it counts keys and values in every layer: some layers of this model keep none "
            "(recurrent, or reading another layer's)", _all_attend),
    Mistake("latent_in_full", "lengths", "it counts full heads: under latent attention one compressed key is cached, "
            "which all of them are computed from", _latent_in_full),
    Mistake("no_index", "index", "it leaves out the index keys of sparse attention",
            lambda c: replace(c, layers=tuple(replace(x, index_length=0) for x in c.layers))),
    Mistake("twice", "layers", "it is exactly twice the cache: K and V are two already", lambda c: replace(
        c, layers=c.layers * 2)),
)  # fmt: skip
LENGTH = (
    Mistake("native_context", "length", "it is a cache for the model's native context of {native:,} tokens",
            lambda c: replace(c, seq_len=c.native_seq_len)),
    Mistake("one_position", "length", "it is what a single token adds; the cache has room for all of them",
            lambda c: replace(c, seq_len=1)),
)  # fmt: skip


def _with(**changes: Any) -> Callable[[Cache], Cache]:
    return lambda c: replace(c, **changes)


def types(kv_dtype: str | None) -> Iterator[Mistake]:
    """Mistakes about the bytes of a number; None: a cache of any type."""
    yield Mistake(
        "elements", "type", "it is how many numbers the cache holds; each of them takes more than one byte (an 8-bit "
        "float would take one)", lambda c: replace(c, element_nbytes=Fraction(1)),
    )  # fmt: skip
    seen = {Fraction(1)}
    if kv_dtype:
        seen.add(Fraction(KV_DTYPES[kv_dtype][1], KV_DTYPES[kv_dtype][0]))
    for name in ("f16", "f32", "q8_0", "q4_0", "q5_1", "q5_0", "q4_1"):
        size = Fraction(KV_DTYPES[name][1], KV_DTYPES[name][0])
        if size not in seen:
            seen.add(size)
            text = f"it is the same cache in {name}" + (
                f", not in {kv_dtype}" if kv_dtype else ", whatever its type is"
            )
            yield Mistake(f"counted_{name}", "type", text, _with(element_nbytes=size))


def times(n_sessions: int) -> Iterator[Mistake]:
    """Mistakes about how often the cache is counted."""
    if n_sessions > 1:
        yield Mistake("one_session", "times", f"it is the cache of one session, and {n_sessions} were asked for",
                      lambda c: replace(c, n_sessions=1))  # fmt: skip
    for n in (2, 3, 4, 5, 6, 8, 10, 12, 16, 32, 64):
        if n != n_sessions:
            text = f"it is the cache of {n} sequences (a server's parallel slots), each with all of the context"
            yield Mistake(f"sequences_{n}", "times", text, _with(n_sessions=n))


def units(unit: str | None) -> Iterator[Mistake]:
    """Mistakes about the unit, if the number has one: 'MB', 'GiB', ..."""
    power = {"K": 1, "M": 2, "G": 3, "T": 4}.get((unit or " ")[0].upper())
    if power is None:
        return
    ratio, letter = Fraction(1024, 1000) ** power, (unit or "")[0].upper()
    if "i" in (unit or "").lower():
        yield Mistake("decimal_for_binary", "unit", f"its unit is {letter}B (powers of 1000), not {unit}",
                      lambda c: replace(c, unit=ratio))  # fmt: skip
    else:
        yield Mistake("binary_for_decimal", "unit", f"its unit is {letter}iB (powers of 1024), not {unit}",
                      lambda c: replace(c, unit=1 / ratio))  # fmt: skip


def extras(weights: int, state: int, compute: int) -> Iterator[Mistake]:
    """Mistakes about memory that is counted with the cache."""
    for name, nbytes, text in (
        ("weights", weights, "the weights are counted with it"),
        ("state", state, "the recurrent state is counted with it: a fixed part, the same at any length"),
        ("compute", compute, "a compute buffer of about {extra} is counted with it: a fixed part"),
        ("weights_and_compute", weights and compute and weights + compute, "weights and compute buffer are counted"),
    ):  # fmt: skip
        if nbytes:
            yield Mistake(
                name, "extra", text.replace("{extra}", format_nbytes(nbytes)),
                _with(extra_nbytes=nbytes),
            )  # fmt: skip
    if weights:
        yield Mistake("only_weights", "all", "it is the weights alone",
                      lambda c: replace(c, layers=(), extra_nbytes=weights))  # fmt: skip
    if state:
        yield Mistake("only_state", "all", "it is the recurrent state alone, which is the same at any length",
                      lambda c: replace(c, layers=(), extra_nbytes=state))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Explanation:
    """One explanation of a number."""

    mistakes: tuple[str, ...]  # names; empty: the number is right
    text: str
    nbytes: int  # the size that these mistakes give
    error: float  # the claimed number divided by that, minus 1


@dataclass(frozen=True, slots=True)
class Question:
    """A claimed number and what it was claimed for."""

    nbytes: int
    seq_len: int
    kv_dtype: str = "f16"
    n_sessions: int = 1
    unit: str | None = None  # as it was written; None: bytes
    weights: int = 0


def cache_of(model: engines.Model, q: Question, metadata: Mapping[str, Any] | None = None) -> Cache:
    """The right cache for a question."""
    layout, block = model.layout, KV_DTYPES[q.kv_dtype]
    return Cache(
        layout.layers, q.seq_len, Fraction(block[1], block[0]), layout.native_seq_len, model.n_heads, model.dim,
        q.n_sessions, _latent(layout, model, metadata or {}),
    )  # fmt: skip


def _latent(layout: KVLayout, model: engines.Model, metadata: Mapping[str, Any]) -> tuple[int, int, int] | None:
    key, value = (metadata.get(f"{layout.arch}.attention.{k}_length_mla") for k in ("key", "value"))
    if isinstance(key, int) and isinstance(value, int) and model.n_heads and 0 < key < 2**24 and 0 < value < 2**24:
        return model.n_heads, key, value
    return None


def explain(model: engines.Model, question: Question, metadata: Mapping[str, Any] | None = None) -> list[Explanation]:
    """Explanations of the claimed number, nearest first; empty if none of the mistakes known here gives it.

    One mistake explains a number within 2 %, two at once a number within 0.5 %: there are so many pairs that with a
    wider limit some pair would explain almost any number.

    Raises:
        ParameterError: the number or a setting is out of range.
    """
    if question.nbytes < 1:
        raise ParameterError(f"the number to explain is {question.nbytes}; expected 1 byte or more")
    right = cache_of(model, question, metadata)
    model.layout.bytes(question.seq_len, question.kv_dtype, question.n_sessions)  # raises for invalid settings
    if found := _match("", (), right.nbytes, question, EXACT):
        return [Explanation((), "it is right: exactly what the rule gives", found.nbytes, found.error)]
    single = list(_mistakes(model, question))
    changed = {m.name: m.change(right) for m in single}
    applying = [m for m in single if changed[m.name].nbytes != right.nbytes]

    def text(m: Mistake) -> str:
        return m.text.format(native=model.layout.native_seq_len)

    one = [
        found
        for m in applying
        if (found := _match(text(m), (m.name,), changed[m.name].nbytes, question, ONE)) is not None
    ]
    one += _by_engines(model, question, right)
    one.sort(key=lambda x: abs(x.error))
    if one and abs(one[0].error) <= EXACT:
        return [x for x in one if abs(x.error) <= TWO]
    if one and abs(one[0].error) <= TWO:
        return one
    two = []
    for a, b in itertools.combinations(applying, 2):
        if a.part == b.part or "all" in (a.part, b.part):
            continue
        both = b.change(changed[a.name]).nbytes
        if both in (changed[a.name].nbytes, changed[b.name].nbytes):
            continue
        if (found := _match(f"{text(a)}; and {text(b)}", (a.name, b.name), both, question, TWO)) is not None:
            two.append(found)
    return one or sorted(two, key=lambda x: abs(x.error))


def _mistakes(model: engines.Model, q: Question) -> Iterator[Mistake]:
    layout = model.layout
    try:
        compute = engines.llama_cpp(model, q.seq_len, q.kv_dtype, q.n_sessions).compute_nbytes
    except ParameterError:
        compute = 0
    yield from SHAPE
    yield from LENGTH
    yield from types(q.kv_dtype)
    yield from times(q.n_sessions)
    yield from units(q.unit)
    yield from extras(q.weights, q.n_sessions * layout.state_nbytes, compute)


def _match(text: str, names: tuple[str, ...], nbytes: Fraction, q: Question, within: float) -> Explanation | None:
    if nbytes <= 0:
        return None
    error = float(q.nbytes / nbytes - 1)
    return Explanation(names, text, round(nbytes), error) if abs(error) <= within else None


def _by_engines(model: engines.Model, q: Question, right: Cache) -> Iterator[Explanation]:
    """Sizes by the engines' own rules, where they differ from the rule, and the sizes of their single buffers."""
    tries: tuple[tuple[str, Callable[..., engines.Reservation], Any], ...] = (
        ("llama.cpp reserves", engines.llama_cpp, engines.LlamaCpp()),
        ("llama.cpp with a unified cache reserves", engines.llama_cpp, engines.LlamaCpp(unified=True)),
        ("llama.cpp without flash attention reserves", engines.llama_cpp, engines.LlamaCpp(flash_attn=False)),
        ("llama.cpp with --swa-full reserves", engines.llama_cpp, engines.LlamaCpp(swa_full=True)),
        ("vLLM needs", engines.vllm, engines.Vllm()),
    )
    seen: set[int] = set()
    for label, engine, options in tries:
        try:
            reservation = engine(model, q.seq_len, q.kv_dtype, q.n_sessions, options)
        except ParameterError:
            continue
        parts: list[tuple[str, int]] = [(f"it is what {label}", reservation.kv_nbytes)]
        parts += [
            (f"it is one buffer of what {label}: {b.name}, {b.n_layers} layers of {b.cells:,} cells", b.nbytes)
            for b in reservation.buffers
            if b.per_token and len(reservation.buffers) > 1
        ]
        for text, nbytes in parts:
            if nbytes in seen or abs(nbytes - right.nbytes) <= EXACT * right.nbytes:
                continue
            seen.add(nbytes)
            name = label.split()[0].lower().replace(".", "_")
            if (found := _match(text, (f"engine_{name}",), Fraction(nbytes), q, ONE)) is not None:
                yield found


def as_seq_len(model: engines.Model, q: Question) -> int | None:
    """The context at which the claimed number would be right; None if no context gives it within 2 %."""
    n = longest_seq_len(model.layout, q.nbytes, q.kv_dtype, q.n_sessions)
    if not n:
        return None
    near = model.layout.bytes(n, q.kv_dtype, q.n_sessions)
    return n if abs(near - q.nbytes) <= ONE * q.nbytes else None
