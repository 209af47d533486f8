"""`teachllama inspect FILE`: prints the contents of a GGUF file, as tables or as JSON.

The file is untrusted, so its strings are escaped before they reach a terminal, and long values are truncated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from teachllama.cli.terminal import columns, path_of, printable, width_of
from teachllama.errors import GGUFError
from teachllama.gguf_file import GGUFFile, StringArray, TensorInfo, open_gguf

FIRST = 8  # number of array items shown in tables and JSON

JSON_HELP = """\
--json prints one object: file, version, nbytes, metadata {key: {type, value} or, for arrays, {type, count, first}},
tensors [{name, shape, type, nbytes, offset}] (shape outermost first, offset from the start of the file),
totals {type: {tensors, weights, nbytes}}, weights, tensors_nbytes, bits_per_weight."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `teachllama inspect`."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, JSON_HELP
    parser.add_argument("file", metavar="FILE", help="path of a .gguf file, or the name of a local model")
    parser.add_argument("--metadata", action="store_true", help="only the metadata")
    parser.add_argument("--tensors", action="store_true", help="only the tensors and their totals")
    parser.add_argument("--program", action="store_true", help="the recorded forward pass, and where threads meet")
    parser.add_argument("--json", action="store_true", help="print JSON; only arrays are shortened")


def run(args: argparse.Namespace) -> int:
    """Prints the contents of `args.file`."""
    path = find_file(args.file)
    if args.program:
        return show_program(path)
    want_metadata, want_tensors = args.metadata or not args.tensors, args.tensors or not args.metadata
    problem: GGUFError | None = None
    try:
        file = open_gguf(path, metadata_only=not want_tensors)
    except GGUFError as e:  # a partial download may have its metadata already, so show that after the error
        if not want_metadata or args.json:
            raise
        problem, file = e, open_gguf(path, metadata_only=True, alone=True)
        print(f"teachllama inspect: {printable(str(e))}; only its metadata can be shown", file=sys.stderr, flush=True)
    with file:
        if args.json:
            print(
                json.dumps(_as_json(file, want_metadata, want_tensors and problem is None), indent=1, allow_nan=False)
            )
            return 0
        emit(_header(file), "")
        if want_metadata:
            emit(*_metadata_table(file.metadata, columns()))
        if want_tensors and problem is None:
            emit(*([""] if want_metadata else []), *_tensor_table(file.tensors.values(), columns()))
    return 0 if problem is None else 1


def show_program(path: str) -> int:
    """Prints a model's recorded forward pass as the steps of `forward`, and a summary of the compiled form."""
    from teachllama.kernels.program import lower
    from teachllama.kernels.record import record
    from teachllama.model import load_model

    with load_model(path, backend="numpy") as model:
        program = record(model.spec, model.weights)
        emit(*map(str, program.steps), "")
        for what, few in (("a few tokens", True), ("many tokens", False)):
            made = lower(program, model.spec, few=few)
            emit(f"{what}: {made.summary()}")
    return 0


def find_file(name: str) -> str:
    """The path of a model file: `name` itself if it looks like a path, otherwise that of the model with this name.

    Raises:
        FetchError: there is no local model of that name, or it is a web address.
    """
    path = str(path_of(name))
    looks_like_path = name.endswith(".gguf") or os.sep in name or "/" in name
    if os.path.isfile(path) or (looks_like_path and not re.match("hf:|[A-Za-z][A-Za-z0-9+.-]*://", name)):
        return path
    from teachllama import hub  # only a name needs it

    return str(hub.find(name))


def emit(*lines: str) -> None:
    """Prints lines. Characters that the terminal's encoding lacks are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        print(line.encode(encoding, "backslashreplace").decode(encoding).rstrip())


def cut(text: str, width: int) -> str:
    """`text`, truncated with '...' if it is wider than `width` columns."""
    if len(text) <= 4 * width and width_of(text) <= width:
        return text
    room, kept = width - 3, 0
    while (room := room - width_of(text[kept])) >= 0:
        kept += 1
    return f"{text[:kept]}..."


def table(rows: Sequence[Sequence[str]], left: int = 1, indent: str = "") -> list[str]:
    """Rows of cells as aligned lines. The first `left` columns are left-aligned, the others right-aligned."""
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        pads = [" " * (width - width_of(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = (cell + pad if i < left else pad + cell for i, (cell, pad) in enumerate(zip(row, pads, strict=True)))
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def _header(file: GGUFFile) -> str:
    counts = f"{len(file.metadata):,} metadata keys"
    if file.tensors:
        weights, nbytes = _totals(file.tensors.values())["all"][1:]
        counts += f", {len(file.tensors):,} tensors, {weights:,} weights, {8 * nbytes / weights:.2f} bits per weight"
    in_files = f" in {len(file.paths)} files" if len(file.paths) > 1 else ""
    return f"{printable(file.path)}\nGGUF version {_version(file.path)}, {file.nbytes:,} bytes{in_files}: {counts}"


def _version(path: str) -> int:
    with open(path, "rb") as f:
        return struct.unpack("<4xI", f.read(8))[0]


def _kind(value: Any) -> str:
    if isinstance(value, StringArray):
        return "string[]"
    if hasattr(value, "dtype"):
        return f"{value.dtype}[]"
    return "string" if isinstance(value, str) else type(value).__name__


def _metadata_table(metadata: dict[str, Any], width: int) -> list[str]:
    keys = [cut(printable(key[:200]), width // 2) for key in metadata]
    room = max(
        20, width - max(map(width_of, keys), default=0) - max(map(len, map(_kind, metadata.values())), default=0) - 4
    )
    rows = [
        (key, _kind(value), cut(_short(value, room), room)) for key, value in zip(keys, metadata.values(), strict=True)
    ]
    return table([("key", "type", "value"), *rows], left=3)


def _short(value: Any, width: int) -> str:
    if isinstance(value, str):
        return f'"{printable(value[:width])}{"..." if len(value) > width else ""}"'
    if isinstance(value, float):
        return f"{value:.7g}"  # most are float32 in the file: more digits would be noise
    if isinstance(value, (bool, int)):
        return str(value)
    text = f"[{len(value)} {'strings' if isinstance(value, StringArray) else 'values'}]"
    for i, item in enumerate(_first(value)):
        longer = f"{text}{', ' if i else ' '}{_short(item, width)}"
        if width_of(longer) > width - len(", ..."):  # whole items only: a truncated number would be another number
            return f"{text}{', ' if i else ' '}..."
        text = longer
    return text if len(value) <= FIRST else f"{text}, ..."


def _first(array: Any) -> list[Any]:
    head = array[:FIRST]
    return head.tolist() if hasattr(head, "tolist") else list(head)


def _totals(tensors: Iterable[TensorInfo]) -> dict[str, tuple[int, int, int]]:
    """type name -> (tensors, weights, bytes), largest first, then "all"."""
    by_type: dict[str, tuple[int, int, int]] = {"all": (0, 0, 0)}
    for t in tensors:
        for name in (t.type.name, "all"):
            n, weights, nbytes = by_type.get(name, (0, 0, 0))
            by_type[name] = (n + 1, weights + t.n_elements, nbytes + t.nbytes)
    return dict(sorted(by_type.items(), key=lambda item: (item[0] == "all", -item[1][2])))


def _tensor_table(tensors: Iterable[TensorInfo], width: int) -> list[str]:
    tensors = list(tensors)
    if not tensors:
        return ["no tensors"]
    rows = [("shape", "type", "bytes", "offset")]
    rows += [(" x ".join(map(str, t.shape)), t.type.name, f"{t.nbytes:,}", f"{t.offset:,}") for t in tensors]
    room = max(20, width - max(map(len, table(rows, left=0))) - 2)
    names = ["tensor", *(cut(printable(t.name[:500]), room) for t in tensors)]
    totals = _totals(tensors)
    whole = totals["all"][2]
    sums = [
        (name, f"{n:,}", f"{weights:,}", f"{nbytes:,}", f"{100 * nbytes / whole:.1f}%", f"{8 * nbytes / weights:.2f}")
        for name, (n, weights, nbytes) in totals.items()
    ]
    return [
        *table([(name, *row) for name, row in zip(names, rows, strict=True)]),
        "",
        *table([("type", "tensors", "weights", "bytes", "share", "bits per weight"), *sums]),
    ]


def _as_json(file: GGUFFile, want_metadata: bool, want_tensors: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"file": file.path, "version": _version(file.path), "nbytes": file.nbytes}
    if want_metadata:
        out["metadata"] = {key: _json_value(value) for key, value in file.metadata.items()}
    if want_tensors:
        out["tensors"] = [
            {"name": t.name, "shape": t.shape, "type": t.type.name, "nbytes": t.nbytes, "offset": t.offset}
            for t in file.tensors.values()
        ]
        totals, names = _totals(file.tensors.values()), ("tensors", "weights", "nbytes")
        _, out["weights"], out["tensors_nbytes"] = totals.pop("all")
        out["totals"] = {name: dict(zip(names, sums, strict=True)) for name, sums in totals.items()}
        out["bits_per_weight"] = 8 * out["tensors_nbytes"] / out["weights"] if out["weights"] else None
    return out


def _json_value(value: Any) -> dict[str, Any]:
    def plain(item: Any) -> Any:  # JSON has no infinities and no not-a-number
        return str(item) if isinstance(item, float) and not math.isfinite(item) else item

    if isinstance(value, (bool, int, float, str)):
        return {"type": _kind(value), "value": plain(value)}
    return {"type": _kind(value), "count": len(value), "first": [plain(item) for item in _first(value)]}
