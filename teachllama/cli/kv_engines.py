"""The parts of `teachllama kv` for engines' own rules (`--engine`) and for explaining a given number (`--explain`)."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from teachllama.cli.inspect import table
from teachllama.cli.numbers import count_from_text
from teachllama.cli.terminal import printable
from teachllama.errors import ParameterError
from teachllama.families import FAMILIES
from teachllama.gguf_file import TensorInfo
from teachllama.kv import KV_DTYPES, engines, format_nbytes
from teachllama.kv.explain import Explanation, Question, as_seq_len, explain
from teachllama.kv.formula import KVDtype
from teachllama.loading import NATIVE
from teachllama.threads import get_num_threads

HELP = """\

--engine adds, to what is printed and as the key "engine":
  name               llama.cpp, teachllama or vllm
  rules              [{text, source}]: what this engine does, and where that was read
  kv                 {kv_dtype: null where the engine refuses it, else {
    buffers            [{name, n_layers, cells, n_sequences, k_nbytes, v_nbytes, per_token}]
    kv_nbytes, state_nbytes, compute_nbytes (about), total_nbytes (these and the weights)
    fits               null without --memory, else {sessions, longest_seq_len}}}
  why_not            {kv_dtype: the reason} for those that are null
  notes              what else to know, in words
--explain adds "explain":
  nbytes             the number
  right_nbytes       what the rule gives
  explanations       [{mistakes, text, nbytes, error}], nearest first; empty: none of those known
  as_seq_len         the context at which the number would be right, or null"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this file."""
    add = parser.add_argument_group("what an engine reserves").add_argument
    add("--engine", metavar="NAME", help=f"add this engine's own rules: {', '.join(engines.ENGINES)}")
    add("--unified", action="store_true", help="llama.cpp: --kv-unified, one buffer of cells for all sequences")
    add("--swa-full", action="store_true", help="llama.cpp: --swa-full, windows keep every position")
    add("--no-flash-attn", action="store_true", help="llama.cpp: --flash-attn off")
    add("--ubatch", metavar="N", help="llama.cpp: --ubatch-size (default: 512)")
    add("--v-dtype", metavar="TYPE", help="llama.cpp: --cache-type-v (default: that of K)")
    add("--block-size", metavar="N", help="vllm: tokens per block (default: 16)")
    add(
        "--gpu-memory-utilization",
        type=float,
        metavar="X",
        help=f"vllm: its share of --memory (default: {engines.GPU_SHARE})",
    )
    add = parser.add_argument_group("somebody else's number").add_argument
    add(
        "--explain",
        metavar="NUMBER",
        help="find the mistake or the engine's rule that gives this size, such as '15 GB' or 288MiB",
    )


PROCESS = "Python, NumPy and compiled code take some 100 MB besides, whatever the model"
OWN = {
    "llama.cpp": ("unified", "swa_full", "no_flash_attn", "ubatch", "v_dtype"),
    "vllm": ("block_size", "gpu_memory_utilization"),
}


def options_from(args: argparse.Namespace) -> Any:
    """The options of the engine given by --engine; None without one.

    Raises:
        ParameterError: unknown engine, an option of another engine, or an option out of range.
    """
    if args.engine not in (None, *engines.ENGINES):
        raise ParameterError(f"--engine is {args.engine!r}; expected one of {', '.join(engines.ENGINES)}")
    for engine, names in OWN.items():
        for name in names:
            given = getattr(args, name)
            if given is not None and given is not False and args.engine != engine:
                raise ParameterError(f"--{name.replace('_', '-')} is an option of --engine {engine}")
    if args.engine == "llama.cpp":
        v_dtype = None if args.v_dtype is None else args.v_dtype.lower()
        if v_dtype not in (None, *KV_DTYPES):
            raise ParameterError(f"--v-dtype is {args.v_dtype!r}; expected one of {', '.join(KV_DTYPES)}")
        ubatch = 512 if args.ubatch is None else count_from_text("--ubatch", args.ubatch)
        return engines.LlamaCpp(args.unified, args.swa_full, max(2048, ubatch), ubatch, not args.no_flash_attn, v_dtype)
    if args.engine == "vllm":
        share = engines.GPU_SHARE if args.gpu_memory_utilization is None else args.gpu_memory_utilization
        if not 0 < share <= 1:
            raise ParameterError(f"--gpu-memory-utilization is {share}; expected more than 0, and at most 1")
        return engines.Vllm(16 if args.block_size is None else count_from_text("--block-size", args.block_size), share)
    return engines.Teachllama(get_num_threads()) if args.engine == "teachllama" else None


def label(kv_dtype: KVDtype) -> str:
    """A cache's type in tables and as a JSON key: "f16", or "q8_0/f16" if keys and values differ."""
    return kv_dtype if isinstance(kv_dtype, str) else "/".join(kv_dtype)


def held_nbytes(tensors: Iterable[TensorInfo]) -> int:
    """Bytes of tensors in this engine's memory: blocks as in the file, or float32 for types without a kernel."""
    return sum(t.nbytes if t.type.name in NATIVE or len(t.shape) < 2 else 4 * t.n_elements for t in tensors)


def weight_notes(weights: int, held: int) -> list[str]:
    """Notes on the weights' size, as text."""
    if not weights:
        return ["the file holds no tensors, so weights are not counted"]
    if held == weights:
        return []
    return [
        f"this engine has no kernel for the type of some tensors and holds those as float32: {size_of(held)} of "
        f"weights in memory, {size_of(weights)} in the file; what fits in it is counted so"
    ]


def own_notes(arch: str) -> list[str]:
    """Further notes on this engine, as text."""
    other = [] if arch in FAMILIES else [f"teachllama does not run {arch}; this is what its rules would give"]
    return [*other, PROCESS]


def engine_answer(
    model: engines.Model, name: str, options: Any, dtypes: Sequence[KVDtype], seq_len: int, sessions: int, weights: int,
    memory: int | None,
) -> dict[str, Any]:  # fmt: skip
    """The figures, with the keys that `--help` documents."""
    kv: dict[str, Any] = {}
    why_not: dict[str, str] = {}
    rules: dict[str, engines.Rule] = {}
    notes: dict[str, None] = {}
    for dtype in dtypes:
        try:
            r = engines.ENGINES[name](model, seq_len, dtype, sessions, options)
        except ParameterError as e:
            kv[label(dtype)], why_not[label(dtype)] = None, str(e)
            continue
        rules |= {rule.text: rule for rule in r.rules}
        notes |= dict.fromkeys(r.notes)
        if r.compute_nbytes == 0:
            notes[f"compute buffers are not in these figures: {r.compute_source}"] = None
        fits = None
        if memory is not None:
            found = engines.fit(model, name, memory, weights, seq_len, dtype, sessions, options)
            fits = {"sessions": found.sessions, "longest_seq_len": found.longest_seq_len}
        kv[label(dtype)] = {
            "buffers": [{f: getattr(b, f) for f in engines.Buffer.__dataclass_fields__} for b in r.buffers],
            "kv_nbytes": r.kv_nbytes,
            "state_nbytes": r.state_nbytes,
            "compute_nbytes": r.compute_nbytes,
            "total_nbytes": weights + r.nbytes + r.compute_nbytes,
            "fits": fits,
        }
    return {
        "name": name,
        "rules": [{"text": rule.text, "source": rule.source} for rule in rules.values()],
        "kv": kv,
        "why_not": why_not,
        "notes": list(notes),
    }


def engine_report(answer: Mapping[str, Any], seq_len: int, sessions: int, memory: str | None, width: int) -> list[str]:
    """The same as lines of text."""
    dtypes = [d for d, f in answer["kv"].items() if f is not None]
    lines = []
    if dtypes:
        first = answer["kv"][dtypes[0]]
        rows = [(f"What {answer['name']} reserves, {sessions:,} x {seq_len:,} tokens", *dtypes)]
        for i, b in enumerate(first["buffers"]):
            where = f"{b['name']}, {b['n_layers']} layers x {b['cells']:,} cells" if b["per_token"] else b["name"]
            where += f" x {b['n_sequences']:,}" if b["n_sequences"] > 1 else ""
            nbytes = [
                answer["kv"][d]["buffers"][i]["k_nbytes"] + answer["kv"][d]["buffers"][i]["v_nbytes"] for d in dtypes
            ]
            rows.append((f"  {where}", *map(size_of, nbytes)))
        rows.append(("  cache and state", *(size_of(_reserved(answer["kv"][d])) for d in dtypes)))
        if first["compute_nbytes"]:
            rows.append(("  compute buffer, about", *(size_of(answer["kv"][d]["compute_nbytes"]) for d in dtypes)))
        rows.append(("  with the weights", *(size_of(answer["kv"][d]["total_nbytes"]) for d in dtypes)))
        if memory is not None:
            fits = [answer["kv"][d]["fits"] for d in dtypes]
            rows.append((f"  sessions of {seq_len:,} tokens in {memory}", *(_count(f["sessions"]) for f in fits)))
            of = f" of each of {sessions:,}" if sessions > 1 else ""
            rows.append((f"  longest context{of} in {memory}", *(_count(f["longest_seq_len"]) for f in fits)))
        lines += table(rows)
    for dtype, reason in answer["why_not"].items():
        lines += textwrap.wrap(f"{dtype}: {reason}.", width, subsequent_indent="  ")
    for rule in answer["rules"]:
        lines += textwrap.wrap(f"- {rule['text']} [{rule['source']}]", width, subsequent_indent="  ")
    for note in answer["notes"]:
        lines += textwrap.wrap(f"Note: {note}.", width, subsequent_indent="  ")
    return lines


def explain_answer(
    model: engines.Model, metadata: Mapping[str, Any], question: Question
) -> tuple[dict[str, Any], list[Explanation]]:
    """The explanations of a number, as a JSON object and as `Explanation`s."""
    found = explain(model, question, metadata)
    right = model.layout.bytes(question.seq_len, question.kv_dtype, question.n_sessions)
    return {
        "nbytes": question.nbytes,
        "right_nbytes": right,
        "explanations": [
            {"mistakes": list(e.mistakes), "text": e.text, "nbytes": e.nbytes, "error": round(e.error, 6)}
            for e in found
        ],
        "as_seq_len": as_seq_len(model, question),
    }, found


def explain_report(answer: Mapping[str, Any], written: str, question: Question, width: int) -> list[str]:
    """The same as lines of text."""
    right, n = answer["right_nbytes"], question.nbytes
    over = f", {n / right - 1:+.0%} against that" if right else ""
    what = f"{question.n_sessions:,} x {question.seq_len:,}" if question.n_sessions > 1 else f"{question.seq_len:,}"
    lines = textwrap.wrap(
        f"{printable(written.strip())} is {n:,} bytes. The rule gives {right:,} bytes ({format_nbytes(right)}) for "
        f"{what} tokens in {question.kv_dtype}{over if abs(n - right) > 0.001 * right else ''}.",
        width,
    )
    for e in answer["explanations"][:5]:
        off = "" if abs(e["error"]) < 0.0005 else f" ({e['error']:+.1%} off)"
        text = f"- {e['text']}" + (f": {e['nbytes']:,} bytes{off}" if e["mistakes"] else "")
        lines += textwrap.wrap(text, width, subsequent_indent="  ")
    if not answer["explanations"]:
        lines.append("- none of the mistakes known here gives that number")
    if answer["as_seq_len"] is not None and not any(not e["mistakes"] for e in answer["explanations"]):
        lines.append(f"- it would be right for {answer['as_seq_len']:,} tokens")
    return lines


def _reserved(figures: Mapping[str, Any]) -> int:
    return int(figures["kv_nbytes"] + figures["state_nbytes"])


def _count(n: int | None) -> str:
    return "any" if n is None else f"{n:,}"


def size_of(nbytes: int) -> str:
    """Exact bytes below a million, otherwise MB, GB and so on."""
    return f"{nbytes:,} B" if nbytes < 1_000_000 else format_nbytes(nbytes)
