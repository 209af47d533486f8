"""`teachllama session FILE`: prints the contents of a session file, or of a file of prefixes, without a model.

The file is untrusted, so its texts are escaped before they reach a terminal.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from teachllama.cli.inspect import cut, emit, table
from teachllama.cli.terminal import columns, path_of, printable
from teachllama.errors import SessionFileError
from teachllama.fingerprint import TEXTS, Fingerprint
from teachllama.prefix_file import PrefixesInfo, inspect_prefixes
from teachllama.session_file import SessionInfo, inspect_session

FIRST = 12  # number of token ids shown
ENDS = 10  # number of prefixes shown
EPILOG = """\
A damaged file, or one of a newer version, ends with status 1. Anybody who can read the file can read the conversation:
its token ids are the text.

--json prints one object: file, nbytes, version, made_by, model {name, arch, quantization}, n_past, seq_len, kv_dtype,
kv_nbytes, swa_full, can_rewind_to, seed (null: none was given), has_logits, stats, messages (of a chat, or null),
tokens, tensors [{name, dtype, shape, nbytes}], fingerprint {what: sha256}, verified (were all checksums compared?).
Of a file of prefixes (pool.prefixes.save): kind "prefixes", file, nbytes, version, made_by, model, kv_dtype, kv_nbytes,
page, n_blocks, n_pages, tokens [[64 ids]], parents, tensors, fingerprint, verified."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `teachllama session`."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument(
        "file", metavar="FILE", help="a file written by session.save(), /save in chat, or pool.prefixes.save()"
    )
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the checksums of keys and values")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the contents of `args.file`."""
    path, verified = path_of(args.file), not args.no_verify
    info: SessionInfo | PrefixesInfo
    try:
        info = inspect_session(path, verify=verified)
    except SessionFileError as e:
        if e.reason != "not a session file":
            raise
        try:
            info = inspect_prefixes(path, verify=verified)
        except SessionFileError as other:
            raise (e if other.reason == "not a prefix file" else other) from None
    if args.json:
        fields = _as_json(info, verified) if isinstance(info, SessionInfo) else _prefixes_as_json(info, verified)
        emit(json.dumps(fields, indent=1, allow_nan=False))
        return 0
    emit(*(_report(info, verified) if isinstance(info, SessionInfo) else _prefixes_report(info, verified)))
    if args.tensors:
        rows = [(t.name, t.dtype, " x ".join(map(str, t.shape)), f"{t.nbytes:,} B") for t in info.tensors]
        emit("", *table([("tensor", "type", "shape", "bytes"), *[tuple(map(printable, row)) for row in rows]], left=3))
    return 0


def _shown(tokens: Any) -> str:
    return ", ".join(map(str, tokens[:FIRST].tolist())) + (", ..." if len(tokens) > FIRST else "")


def _checks(info: SessionInfo | PrefixesInfo, verified: bool) -> str:
    return f"{len(info.tensors)} tensors, all checksums right" if verified else "not compared"


def _types(info: SessionInfo | PrefixesInfo) -> str:
    return info.kv_dtype if isinstance(info.kv_dtype, str) else " and ".join(info.kv_dtype)


def _lines(rows: list[tuple[str, str]]) -> list[str]:
    return [f"{name:16}{cut(printable(text), columns() - 16)}" for name, text in rows]


def _prefixes_report(info: PrefixesInfo, verified: bool) -> list[str]:
    m, (n, page), ends = info.model, info.tokens.shape, info.ends()
    rows = [
        ("model", f"{m.name} ({m.arch}, {m.quantization})"),
        ("written by", f"{info.made_by}; format version {info.version}"),
        ("blocks", f"{info.n_tokens:,} positions in {n:,} blocks of {page}; {info.n_pages:,} pages"),
        ("keys, values", f"{info.kv_nbytes:,} B as {_types(info)}"),
        ("checksums", _checks(info, verified)),
        ("model's weights", f"sha256 {m.weights[:16]}..."),
        ("ends", f"{len(ends):,} prefixes, the last used first" if ends else "none"),
    ]
    lines = [f"{printable(info.path)}: prefixes, {info.nbytes:,} bytes", "", *_lines(rows)]
    for i, end in enumerate(ends[:ENDS]):
        tokens = info.prefix(end)
        last = ", ".join(map(str, tokens[-FIRST:].tolist()))  # the last tokens, because prefixes share the first ones
        lines.append(cut(f"  {i}: {len(tokens):,} positions, the last: ..., {last}", columns()))
    return lines + ([f"  and {len(ends) - ENDS:,} more"] if len(ends) > ENDS else [])


def _report(info: SessionInfo, verified: bool) -> list[str]:
    m, width = info.model, columns()
    rewind = f"any position from {info.can_rewind_to:,} on, and 0" if info.can_rewind_to else "any position"
    rows = [
        ("model", f"{m.name} ({m.arch}, {m.quantization})"),
        ("written by", f"{info.made_by}; format version {info.version}"),
        ("positions", f"{info.n_past:,} of {info.seq_len:,}"),
        (
            "keys, values",
            f"{info.kv_nbytes:,} B as {_types(info)}" + ("; whole windows (swa_full)" if info.swa_full else ""),
        ),
        ("can go back to", rewind),
        ("logits", "of the last position" if info.has_logits else "none: evaluate a token first"),
        ("seed", "none was given" if info.seed is None else cut(str(info.seed), 40)),
        ("tokens", _shown(info.tokens) or "none"),
        ("checksums", _checks(info, verified)),
        ("model's weights", f"sha256 {m.weights[:16]}..."),
    ]
    if info.messages is not None:
        rows.insert(3, ("chat", f"{len(info.messages)} message{'s' * (len(info.messages) != 1)}"))
    title = f"{printable(info.path)}: a session, {info.nbytes:,} bytes"
    lines = [title, "", *_lines(rows)]
    for message in info.messages or ():
        lines.append(f"  {cut(printable(message['role'] + ': ' + message['content']), width - 2)}")
    return lines


def _prefixes_as_json(info: PrefixesInfo, verified: bool) -> dict[str, Any]:
    return {
        "kind": "prefixes",
        **_common(info),
        "page": info.tokens.shape[1],
        "n_blocks": len(info.tokens),
        "n_pages": info.n_pages,
        "tokens": info.tokens.tolist(),
        "parents": info.parents.tolist(),
        **_proofs(info, verified),
    }


def _common(info: SessionInfo | PrefixesInfo) -> dict[str, Any]:
    return {
        "file": info.path,
        "nbytes": info.nbytes,
        "version": info.version,
        "made_by": info.made_by,
        "model": {name: getattr(info.model, name) for name in TEXTS},
        "kv_dtype": info.kv_dtype,
        "kv_nbytes": info.kv_nbytes,
    }


def _proofs(info: SessionInfo | PrefixesInfo, verified: bool) -> dict[str, Any]:
    names = [name for name in Fingerprint.__dataclass_fields__ if name not in (*TEXTS, "tensors")]
    return {
        "tensors": [dataclasses.asdict(t) for t in info.tensors],
        "fingerprint": {name: getattr(info.model, name) for name in names},
        "verified": verified,
    }


def _as_json(info: SessionInfo, verified: bool) -> dict[str, Any]:
    return {
        **_common(info),
        "n_past": info.n_past,
        "seq_len": info.seq_len,
        "swa_full": info.swa_full,
        "can_rewind_to": info.can_rewind_to,
        "seed": info.seed,
        "has_logits": info.has_logits,
        "stats": dataclasses.asdict(info.stats),
        "messages": info.messages,
        "tokens": info.tokens.tolist(),
        **_proofs(info, verified),
    }
