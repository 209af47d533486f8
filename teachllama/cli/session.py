"""`teachllama session FILE`: what is inside a session file, without a model.

The file may be anybody's, so its texts are escaped before they reach a terminal.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from teachllama.cli.inspect import cut, emit, table
from teachllama.cli.terminal import columns, path_of, printable
from teachllama.fingerprint import TEXTS
from teachllama.session_file import SessionInfo, inspect_session

FIRST = 12  # token ids that are shown
EPILOG = """\
A damaged file, or one of a newer version, ends with status 1. Anybody who can read the file can read the conversation:
its token ids are the text.

--json prints one object: file, nbytes, version, made_by, model {name, arch, quantization}, n_past, seq_len, kv_dtype,
kv_nbytes, swa_full, can_rewind_to, seed (null: none was given), has_logits, stats, messages (of a chat, or null),
tokens, tensors [{name, dtype, shape, nbytes}], fingerprint {what: sha256}, verified (were all checksums compared?)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `teachllama session`."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("file", metavar="FILE", help="a file that session.save() or /save in `teachllama chat` wrote")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the checksums of keys and values")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what is inside `args.file`."""
    info = inspect_session(path_of(args.file), verify=not args.no_verify)
    if args.json:
        emit(json.dumps(_as_json(info, verified=not args.no_verify), indent=1, allow_nan=False))
        return 0
    emit(*_report(info, verified=not args.no_verify))
    if args.tensors:
        rows = [(t.name, t.dtype, " x ".join(map(str, t.shape)), f"{t.nbytes:,} B") for t in info.tensors]
        emit("", *table([("tensor", "type", "shape", "bytes"), *[tuple(map(printable, row)) for row in rows]], left=3))
    return 0


def _report(info: SessionInfo, verified: bool) -> list[str]:
    m, width = info.model, columns()
    shown = ", ".join(map(str, info.tokens[:FIRST].tolist())) + (", ..." if info.n_past > FIRST else "")
    checks = f"{len(info.tensors)} tensors, all checksums right" if verified else "not compared"
    kv_dtype = info.kv_dtype if isinstance(info.kv_dtype, str) else " and ".join(info.kv_dtype)
    rewind = f"any position from {info.can_rewind_to:,} on, and 0" if info.can_rewind_to else "any position"
    rows = [
        ("model", f"{m.name} ({m.arch}, {m.quantization})"),
        ("written by", f"{info.made_by}; format version {info.version}"),
        ("positions", f"{info.n_past:,} of {info.seq_len:,}"),
        (
            "keys, values",
            f"{info.kv_nbytes:,} B as {kv_dtype}" + ("; whole windows (swa_full)" if info.swa_full else ""),
        ),
        ("can go back to", rewind),
        ("logits", "of the last position" if info.has_logits else "none: evaluate a token first"),
        ("seed", "none was given" if info.seed is None else cut(str(info.seed), 40)),
        ("tokens", shown or "none"),
        ("checksums", checks),
        ("model's weights", f"sha256 {m.weights[:16]}..."),
    ]
    if info.messages is not None:
        rows.insert(3, ("chat", f"{len(info.messages)} message{'s' * (len(info.messages) != 1)}"))
    title = f"{printable(info.path)}: a session, {info.nbytes:,} bytes"
    lines = [title, "", *(f"{name:16}{cut(printable(text), width - 16)}" for name, text in rows)]
    for message in info.messages or ():
        lines.append(f"  {cut(printable(message['role'] + ': ' + message['content']), width - 2)}")
    return lines


def _as_json(info: SessionInfo, verified: bool) -> dict[str, Any]:
    model = dataclasses.asdict(info.model)
    return {
        "file": info.path,
        "nbytes": info.nbytes,
        "version": info.version,
        "made_by": info.made_by,
        "model": {name: model[name] for name in TEXTS},
        "n_past": info.n_past,
        "seq_len": info.seq_len,
        "kv_dtype": info.kv_dtype,
        "kv_nbytes": info.kv_nbytes,
        "swa_full": info.swa_full,
        "can_rewind_to": info.can_rewind_to,
        "seed": info.seed,
        "has_logits": info.has_logits,
        "stats": dataclasses.asdict(info.stats),
        "messages": info.messages,
        "tokens": info.tokens.tolist(),
        "tensors": [dataclasses.asdict(t) for t in info.tensors],
        "fingerprint": {name: text for name, text in model.items() if name not in (*TEXTS, "tensors")},
        "verified": verified,
    }
