"""`teachllama kv FILE`: how much memory a model's KV cache takes, and what fits in a given amount of memory.

Works from the file's metadata, for any architecture, whether or not the engine runs it. The arithmetic is in
`teachllama.kv`; this file handles options, printing and plotting.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from teachllama.cli import kv_engines
from teachllama.cli.inspect import emit, find_file, table
from teachllama.cli.kv_engines import label, size_of
from teachllama.cli.numbers import count_from_text, nbytes_from_text
from teachllama.cli.terminal import columns, path_of, printable
from teachllama.errors import GGUFError, ParameterError, UnsupportedModelError
from teachllama.gguf_file import open_gguf, split_paths
from teachllama.kv import (
    KV_DTYPES,
    KVLayout,
    LayerKV,
    kv_layout_from_metadata,
)
from teachllama.kv.engines import Model, Teachllama, fit, teachllama
from teachllama.kv.explain import Question
from teachllama.kv.formula import KVDtype, pair_of
from teachllama.threads import get_num_threads

SHOWN = ("f32", "f16", "q8_0", "q4_0")  # the types shown without --kv-dtype
EPILOG = (
    """\
Sizes: 16G and 16GB are 16 * 10^9 bytes, 16Gi and 16GiB are 16 * 2^30; also k, M, T, and fractions (1.5T).
Counts: 32768, 32,768, 32_768 and 32k (k is 1,024) are the same.
For a file that cannot be read completely, a note is printed and the exit status is 1.

--json prints one object:
  file, name, arch   the model
  native_seq_len     the context it was trained for
  seq_len, sessions  what was asked: --seq-len (default: native_seq_len), --sessions
  n_layers, groups   groups: [{n_layers, n_kv_heads, key_length, value_length, window (positions; null: all),
                     index_length}], without the layers that cache nothing
  weights_nbytes     bytes of the file's tensors
  state_nbytes       recurrent state of one session, at any length, beside its KV cache
  memory_nbytes      --memory in bytes, or null
  kv                 {kv_dtype (a pair as keys/values): null where the heads do not divide into its blocks, else {
    token_nbytes       bytes the first token adds, in one session
    late_token_nbytes  bytes a token adds once every sliding window is full
    seq_len_nbytes     KV cache of one session of seq_len tokens
    full_nbytes        the same if no layer had a sliding window
    native_nbytes      KV cache of one session of native_seq_len tokens
    total_nbytes       weights + sessions * (seq_len_nbytes + state_nbytes)
    fits               null without --memory, else {sessions: how many of seq_len tokens,
                       longest_seq_len: for as many as asked}; null where there is no limit.
                       Beside the weights and this engine's scratch memory}}
  fixed_nbytes       what does not grow with the context: weights and every session's recurrent state
  scratch_nbytes     about what this engine computes in, shared by all sessions (0: not known)
  notes              what else to know, in words"""
    + kv_engines.HELP
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `teachllama kv`."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    add = parser.add_argument
    add("file", metavar="FILE", help="path of a .gguf file, name of a local model, or hf:OWNER/REPO/FILE.gguf")
    add("--seq-len", metavar="N", help="context in tokens, such as 4096 or 32k (default: the model's own)")
    add(
        "--kv-dtype",
        metavar="TYPE",
        help=f"one of {', '.join(KV_DTYPES)}, or a pair for keys and values such as q8_0,f16 or q8_0/f16 "
        f"(default: {', '.join(SHOWN)} side by side)",
    )
    add("--sessions", default="1", metavar="K", help="sessions at once, each with its own cache (default: 1)")
    add("--memory", metavar="SIZE", help="memory to fit weights and caches in, such as 16G or 16GiB")
    add("--plot", metavar="PNG", help="draw memory against context into this file (.png, .svg or .pdf)")
    add("--strict", action="store_true", help="refuse a result that may be wrong, with exit status 1")
    add("--json", action="store_true", help="print JSON")
    kv_engines.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the memory that `args.file` needs."""
    seq_len = None if args.seq_len is None else count_from_text("--seq-len", args.seq_len)
    sessions = count_from_text("--sessions", args.sessions)
    memory = None if args.memory is None else nbytes_from_text(args.memory)
    kv_dtype = None if args.kv_dtype is None else kv_dtype_from_text(args.kv_dtype)
    options = kv_engines.options_from(args)
    path, metadata, weights, held, notes, doubts = _read(args.file)
    layout = kv_layout_from_metadata(metadata)
    if args.strict and (layout.doubts or doubts):
        raise UnsupportedModelError(f"--strict: {'; '.join([*layout.doubts, *doubts])}")
    dtypes: tuple[KVDtype, ...] = SHOWN if kv_dtype is None else (kv_dtype,)
    model = Model.from_metadata(layout, metadata)
    answer = kv_answer(model, dtypes, seq_len or layout.native_seq_len, sessions, weights, memory, held)
    if kv_dtype is not None and answer["kv"][label(kv_dtype)] is None:
        layout.bytes(1, kv_dtype)  # raises an error that explains why
    if seq_len is not None and seq_len > layout.native_seq_len:
        notes.append(f"{seq_len:,} tokens are more than the {layout.native_seq_len:,} this model was trained for")
    notes += kv_engines.weight_notes(weights, held)
    if args.engine is not None:
        ours = args.engine == "teachllama"
        answer["engine"] = kv_engines.engine_answer(
            model, args.engine, options, dtypes, answer["seq_len"], sessions, held if ours else weights, memory,
        )  # fmt: skip
        if ours:
            answer["engine"]["notes"] += kv_engines.own_notes(layout.arch)
        if kv_dtype is not None and label(kv_dtype) in answer["engine"]["why_not"]:
            raise ParameterError(answer["engine"]["why_not"][label(kv_dtype)])
    question = None
    if args.explain is not None:
        if isinstance(kv_dtype, tuple):
            raise ParameterError(f"--explain takes one --kv-dtype for keys and values; found {label(kv_dtype)}")
        unit = re.search("[A-Za-z]+", args.explain)
        question = Question(
            nbytes_from_text(args.explain, "--explain"), answer["seq_len"], kv_dtype or "f16", sessions,
            unit[0] if unit else None, weights,
        )  # fmt: skip
        answer["explain"], _ = kv_engines.explain_answer(model, metadata, question)
    name = metadata.get("general.name")
    name = name if isinstance(name, str) and name else os.path.basename(path)
    answer = {"file": path, "name": name, "arch": layout.arch, **answer, "notes": [*layout.notes, *notes]}
    damage = [note for note in answer["notes"] if isinstance(note, Damage)]
    for note in damage:
        print(f"teachllama kv: {printable(note)}", file=sys.stderr, flush=True)
    if args.plot is not None:
        from teachllama.show.kv_plot import save_kv_plot  # loads matplotlib

        save_kv_plot(
            str(path_of(args.plot)), layout, printable(name), weights=weights, memory=memory, sessions=sessions
        )
    if args.json:
        emit(json.dumps(answer, indent=1))
    else:
        emit(_report(layout, answer, metadata, args.memory))
        width = min(columns(), 110)
        if args.engine is not None:
            emit("", *kv_engines.engine_report(answer["engine"], answer["seq_len"], sessions, args.memory, width))
        if question is not None:
            emit("", *kv_engines.explain_report(answer["explain"], args.explain, question, width))
    if args.plot is not None and not args.json:
        emit(f"plot written to {printable(args.plot)}")
    return 1 if damage else 0


def kv_dtype_from_text(text: str) -> KVDtype:
    """Parses a cache's type, or the types of keys and values separated by a comma or a slash.

    Raises:
        ParameterError: there is no such type.
    """
    names = [name.strip() for name in re.split("[,/]", text.lower())]
    if len(names) > 2 or not all(name in KV_DTYPES for name in names):
        raise ParameterError(
            f"--kv-dtype is {text!r}; expected one of {', '.join(KV_DTYPES)}, or a pair of them such as q8_0,f16"
        )
    return names[0] if names[0] == names[-1] else (names[0], names[1])


def _read(name: str) -> tuple[str, dict[str, Any], int, int, list[str], list[str]]:
    """(path, metadata, bytes of weights in the file and as this engine holds them, notes, doubts) of a model.

    Args:
        name: a path, the name of a local model, or an `hf:` spec, for which only the headers are fetched.
    """
    if name.startswith("hf:"):
        from teachllama.cli.remote import is_remote, read_remote  # loads modules needed only for the network

        if is_remote(name):
            remote = read_remote(name)
            note = f"read from the Hugging Face Hub: {remote.fetched_nbytes:,} of {remote.nbytes:,} bytes"
            note += f" in {remote.n_files} files" if remote.n_files > 1 else ""
            return name, remote.metadata, remote.weights_nbytes, kv_engines.held_nbytes(remote.tensors), [note], []
    path = find_file(name)
    with open_gguf(path, metadata_only=True) as file:
        metadata = file.metadata
    weights, held, doubts = weights_nbytes(path)
    return path, metadata, weights, held, list(doubts), doubts


class Damage(str):
    """A note on a file that cannot be read completely. It is printed first, and the exit status is 1."""


def weights_nbytes(path: str) -> tuple[int, int, list[str]]:
    """Bytes of a model's tensors, in the file and as this engine holds them, and notes on inexact counts.

    All parts of a split model are counted.
    """
    try:
        with open_gguf(path) as file:
            return sum(t.nbytes for t in file.tensors.values()), kv_engines.held_nbytes(file.tensors.values()), []
    except GGUFError as e:
        problem = e
    paths = [p for p in split_paths(path) or [path] if os.path.isfile(p)]
    total, exact = 0, True
    for p in paths:
        try:
            with open_gguf(p, alone=True) as file:
                total += sum(t.nbytes for t in file.tensors.values())
        except GGUFError:
            total, exact = total + os.path.getsize(p), False
    counted = f"the {len(paths)} files that are here are" if len(paths) > 1 else "this file alone is"
    counted += " counted" if exact else " counted by size" if len(paths) > 1 else " counted, by its size"
    return total, total, [Damage(f"weights: {counted}, because the model cannot be read whole: {problem}")]


def kv_answer(
    model: Model, dtypes: tuple[KVDtype, ...], seq_len: int, sessions: int, weights: int, memory: int | None, held: int
) -> dict[str, Any]:
    """The figures, with the keys that `--help` documents. `held`: bytes of the weights as this engine holds them."""
    layout, options = model.layout, Teachllama(get_num_threads())
    groups = [
        {"n_layers": n} | {key: getattr(layer, key) for key in LayerKV.__dataclass_fields__}
        for layer, n in layout.groups.items()
    ]
    return {
        "native_seq_len": layout.native_seq_len,
        "seq_len": seq_len,
        "sessions": sessions,
        "n_layers": len(layout.layers),
        "groups": groups,
        "weights_nbytes": weights,
        "state_nbytes": layout.state_nbytes,
        "fixed_nbytes": weights + sessions * layout.state_nbytes,
        "scratch_nbytes": teachllama(model, seq_len, "f32", sessions, options).compute_nbytes,
        "memory_nbytes": memory,
        "kv": {label(d): _figures(model, d, seq_len, sessions, weights, memory, held, options) for d in dtypes},
    }


def _figures(
    model: Model,
    dtype: KVDtype,
    seq_len: int,
    sessions: int,
    weights: int,
    memory: int | None,
    held: int,
    options: Teachllama,
) -> dict[str, Any] | None:
    layout = model.layout
    window, state = layout.window or 1, layout.state_nbytes
    try:
        one = layout.bytes(seq_len, dtype)
    except ParameterError:  # rows that do not divide into this dtype's blocks
        return None
    fits = None
    if memory is not None:
        found = fit(model, "teachllama", memory, held, seq_len, dtype, sessions, options)
        fits = {"sessions": found.sessions, "longest_seq_len": found.longest_seq_len}
    return {
        "token_nbytes": layout.bytes(1, dtype),
        "late_token_nbytes": layout.bytes(window + 1, dtype) - layout.bytes(window, dtype),
        "seq_len_nbytes": one,
        "full_nbytes": layout.bytes(seq_len, dtype, swa_full=True),
        "native_nbytes": layout.bytes(layout.native_seq_len, dtype),
        "total_nbytes": weights + sessions * (one + state),
        "fits": fits,
    }


def _report(layout: KVLayout, answer: Mapping[str, Any], metadata: Mapping[str, Any], memory: str | None) -> str:
    width = min(columns(), 110)
    lines = [
        f"{printable(answer['name'])} ({printable(layout.arch)})",
        textwrap.fill(_sentence(layout, metadata), width),
    ]
    if layout.groups:
        lines += ["", *_figure_table(layout, answer), "", *_sum(layout, answer)]
    if memory is not None:
        lines += ["", *_fit_table(answer, memory, width)]
    weights = size_of(answer["weights_nbytes"])
    lines += ["", *textwrap.wrap(_fixed_and_growing(layout, answer), width)]
    lines += ["", f"Weights: {weights}. MB is 10^6 bytes, GB 10^9."]
    lines += (
        textwrap.fill(f"Note: {printable(note)}.", width, subsequent_indent="  ")
        for note in answer["notes"]
        if not isinstance(note, Damage)
    )
    return "\n".join(lines)


def _sentence(layout: KVLayout, metadata: Mapping[str, Any]) -> str:
    n, cached = len(layout.layers), sum(layout.groups.values())
    if not cached:
        return f"{n} layers, none of which keeps a KV cache."
    text = f"{n} layers" + (f", of which {cached} keep a KV cache" if cached < n else "")
    for window in sorted({layer.window for layer in layout.groups if layer.window is not None}):
        sliding = sum(count for layer, count in layout.groups.items() if layer.window == window)
        text += f", of which {sliding} attend to a sliding window of {window:,} positions"
    query = metadata.get(f"{layout.arch}.attention.head_count")
    shapes = {(layer.n_kv_heads, layer.key_length, layer.value_length) for layer in layout.groups}
    if len(shapes) == 1:
        heads, key, value = shapes.pop()
        text += f"; {heads} KV head{'s' * (heads > 1)}"
        text += f" (for {query} query heads)" if isinstance(query, int) else ""
        text += f", keys of {key} and values of {value} numbers" if value else f", keys of {key} numbers and no values"
    else:
        text += "; heads and lengths differ from layer to layer"
    return f"{text}. Native context: {layout.native_seq_len:,} tokens."


def _fixed_and_growing(layout: KVLayout, answer: Mapping[str, Any]) -> str:
    """Which part of the memory grows with the context."""
    state, sessions = answer["state_nbytes"], answer["sessions"]
    fixed = f"the weights ({size_of(answer['weights_nbytes'])})"
    if state:
        fixed += f", recurrent state ({size_of(sessions * state)})"
    grows = [f"{size_of(f['late_token_nbytes'])} in {d}" for d, f in answer["kv"].items() if f is not None]
    text = f"Fixed, at any context: {fixed}."
    if scratch := answer["scratch_nbytes"]:
        text = f"{text[:-1]}. Scratch memory for computing is one for all sessions: here about {size_of(scratch)}."
    if not layout.groups or not grows:
        return text
    late = " once every window is full" if layout.window is not None else ""
    return f"{text} Each further token{late} adds, to one session: {', '.join(grows)}."


def _cells(answer: Mapping[str, Any], label: str, key: str, times: int = 1) -> tuple[str, ...]:
    return label, *("-" if f is None else size_of(times * f[key]) for f in answer["kv"].values())


def _figure_table(layout: KVLayout, answer: Mapping[str, Any]) -> list[str]:
    seq_len, native, sessions = answer["seq_len"], answer["native_seq_len"], answer["sessions"]
    rows = [("KV cache of one session", *answer["kv"]), _cells(answer, "a token", "token_nbytes")]
    if layout.window is not None and layout.window < max(seq_len, native):
        rows += [_cells(answer, f"a token past {layout.window:,}", "late_token_nbytes")]
    rows += [_cells(answer, f"{seq_len:,} tokens{' (native context)' * (seq_len == native)}", "seq_len_nbytes")]
    if layout.window is not None and layout.window < seq_len:
        rows += [_cells(answer, "  if no layer slid", "full_nbytes")]
    if seq_len != native:
        rows += [_cells(answer, f"{native:,} tokens (native context)", "native_nbytes")]
    if sessions > 1:
        rows += [_cells(answer, f"{sessions:,} sessions of {seq_len:,} tokens", "seq_len_nbytes", sessions)]
    rows += [_cells(answer, f"weights and {sessions:,} x {seq_len:,} tokens", "total_nbytes")]
    lines = table(rows)
    if None in answer["kv"].values():
        lines.append("-: this model's heads do not divide into the blocks of this type")
    return lines


def _sum(layout: KVLayout, answer: Mapping[str, Any]) -> list[str]:
    """The formula with this model's numbers, for the first dtype that applies."""
    seq_len, sessions = answer["seq_len"], answer["sessions"]
    dtype, figures = next((d, f) for d, f in answer["kv"].items() if f is not None)
    pair = pair_of(kv_dtype_from_text(dtype))
    each = [str(nbytes) if block == 1 else f"{nbytes}/{block}" for block, nbytes in (KV_DTYPES[t] for t in pair)]
    rows = []
    for layer, n in sorted(layout.groups.items(), key=lambda item: item[0].window or seq_len, reverse=True)[:12]:
        positions = layer.positions(seq_len)
        heads = f"{layer.n_kv_heads} KV head{'s' * (layer.n_kv_heads > 1)}"
        index = f" + {layer.index_length} index" if layer.index_length else ""
        if each[0] == each[1]:
            numbers = f"{heads} x ({layer.key_length} + {layer.value_length})"
            numbers = (f"({numbers}{index})" if index else numbers) + f" x {each[0]} bytes"
        else:
            index = index and f"{index} x {each[0]}"
            numbers = f"{heads} x ({layer.key_length} x {each[0]} + {layer.value_length} x {each[1]})"
            numbers = f"({numbers}{index})" if index else numbers
        nbytes = n * KVLayout("", (layer,), 1).bytes(seq_len, pair)
        rows.append((str(n), f"{positions:,}", numbers, f"{nbytes:,}"))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for count, held, formula, product in rows:
        layers = f"{count:>{wide[0]}} {'layers' if count != '1' else 'layer' + ' ' * (wide[0] > 1)}"
        lines.append(f"  {layers} x {held:>{wide[1]}} positions x {formula:<{wide[2]}} = {product:>{wide[3]}}")
    if len(layout.groups) > 12:
        lines.append(f"  ... and {len(layout.groups) - 12} more kinds of layer")
    total = f"{figures['seq_len_nbytes']:,} bytes"
    if sessions > 1:
        total += f", x {sessions:,} sessions = {sessions * figures['seq_len_nbytes']:,} bytes"
    return [f"In numbers, {seq_len:,} tokens in {dtype}:", *lines, f"  in all {total}"]


def _fit_table(answer: Mapping[str, Any], asked: str, width: int) -> list[str]:
    memory, weights, sessions = answer["memory_nbytes"], answer["weights_nbytes"], answer["sessions"]
    if memory <= weights:
        return [f"Nothing fits in {asked.strip()} ({memory:,} bytes): the weights alone take {weights:,} bytes."]
    state = answer["state_nbytes"]
    state_too = f", of which a session's recurrent state takes {size_of(state)}" if state else ""

    def cells(label: str, key: str) -> tuple[str, ...]:
        fits = [None if f is None else f["fits"] for f in answer["kv"].values()]
        return label, *("-" if f is None else "any" if f[key] is None else f"{f[key]:,}" for f in fits)

    plural = f"{sessions:,} sessions" if sessions > 1 else "one session"
    rows = [
        (f"What fits in {asked.strip()}", *answer["kv"]),
        cells(f"sessions of {answer['seq_len']:,} tokens", "sessions"),
        cells(f"longest context of {plural}, in tokens", "longest_seq_len"),
    ]
    lead = f"{asked.strip()} is {memory:,} bytes; {memory - weights:,} are left after the weights{state_too}. "
    lead += "Counted for this engine, with its scratch memory; --engine llama.cpp and --engine vllm count for others."
    return [*table(rows), textwrap.fill(lead, width)]
