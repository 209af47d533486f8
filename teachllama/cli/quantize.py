"""`teachllama quantize SRC DST TYPE`: copies a model with its matrices in another type."""

from __future__ import annotations

import argparse
from collections import Counter

from teachllama.cli.inspect import emit, find_file, table
from teachllama.cli.terminal import Status, path_of, printable
from teachllama.gguf_file import GGUFFile, open_gguf
from teachllama.requantize import ENDS, KINDS, is_matrix, requantize

WIDE = ("F32", "F16", "BF16")
EPILOG = f"""\
TYPE is one of {", ".join(KINDS)}. K-quants (Q4_K, Q6_K, ...) and mixtures (Q4_K_M) are read by
teachllama and cannot be written; llama.cpp's llama-quantize writes them. Norms, biases and the routers of experts stay
as they are, and so do matrices whose rows are not a multiple of the type's block.

A copy has lost what its source had lost already: start from F32, F16 or BF16 where you can. DST is there whole or not
at all; Ctrl-C leaves nothing behind."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `teachllama quantize`."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("source", metavar="SRC", help="path of a .gguf file, or the name of a local model")
    parser.add_argument("target", metavar="DST", help="path of the file to write")
    parser.add_argument("kind", metavar="TYPE", type=str.upper, help="type of the matrices, such as Q8_0 or Q4_0")
    parser.add_argument(
        "--mix",
        metavar="TYPE",
        type=str.upper,
        help="type of the embedding and the output matrix, where it is to be another (often Q8_0)",
    )
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")


def run(args: argparse.Namespace) -> int:
    """Writes the copy and prints the sizes before and after."""
    source, target = find_file(args.source), path_of(args.target)
    now = ["reading"]

    def progress(done: int, nbytes: int, name: str) -> None:
        now[0] = f"{100 * done // max(1, nbytes)} %, {name}"

    with Status(lambda: f"quantizing: {now[0]}"):
        requantize(source, target, args.kind, mix=args.mix, replace=args.force, progress=progress)
    with open_gguf(source) as before, open_gguf(target) as after:
        emit(*_report(before, after, args.kind, args.mix or args.kind))
    return 0


def _report(before: GGUFFile, after: GGUFFile, kind: str, mix: str) -> list[str]:
    rows = [("file", "bytes", "bits per weight"), _row(before), _row(after)]
    lines = table(rows)
    changed = Counter(t.type.name for name, t in after.tensors.items() if t.type != before.tensors[name].type)
    matrices = {name: t for name, t in after.tensors.items() if is_matrix(t)}
    as_they_were = [n for n, t in matrices.items() if t.type.name not in (kind, mix if n in ENDS else kind)]
    same = len(after.tensors) - sum(changed.values())
    told = ", ".join(f"{n:,} as {name}" for name, n in sorted(changed.items())) or "none changed"
    lines += [
        "",
        f"{len(matrices):,} matrices: {told}; {same:,} tensors as they were",
    ]
    if as_they_were:
        names = ", ".join(printable(n) for n in as_they_were[:3]) + (", ..." if len(as_they_were) > 3 else "")
        lines.append(f"note: {len(as_they_were):,} matrices could not be {kind}, and stay as they are: {names}")
    lossy = sorted({before.tensors[n].type.name for n in matrices} - set(WIDE))
    if lossy and kind not in WIDE:
        lines.append(f"note: the source is quantized already ({', '.join(lossy)}); what that has lost is lost here too")
    elif lossy:
        lines.append(f"note: the source is quantized ({', '.join(lossy)}); a wider type restores nothing")
    return lines


def _row(file: GGUFFile) -> tuple[str, str, str]:
    weights = sum(t.n_elements for t in file.tensors.values())
    held = sum(t.nbytes for t in file.tensors.values())
    return printable(file.path), f"{file.nbytes:,}", f"{8 * held / max(1, weights):.2f}"
