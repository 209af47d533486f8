"""`teachllama models`: lists local model files, and those that can be downloaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from teachllama import hub
from teachllama.cli.terminal import printable, width_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no arguments."""


def run(args: argparse.Namespace) -> int:
    """Prints three tables: shipped, downloaded and available models."""
    root, models = hub.cache_dir(), hub.list_models()
    shipped = [(m.name, f"{m.nbytes / 1e6:,.1f} MB", m.licence) for m in models if m.state == "shipped"]
    print("Shipped with teachllama:")
    print(_table(("name", "size", "licence"), shipped) if shipped else "  none is left: reinstall the package")
    here = [
        (m.name, f"{m.nbytes / 1e6:,.1f} MB", m.state, m.licence, str(m.path.relative_to(root)))
        for m in models
        if m.path and m.path.is_relative_to(root)
    ]
    print(f"\nModels in {printable(str(root))}:")
    print(_table(("name", "size", "checksum", "licence", "file"), here) if here else "  none yet")
    fetchable = [row[0] for row in here if row[0] in hub.KNOWN or row[0].startswith("hf:")]
    if doubtful := [m.name for m in models if m.name in fetchable and m.state != "verified"]:
        print(f"  `teachllama fetch {printable(doubtful[0])}` verifies that file, and replaces it if it is damaged.")
    print("\nCan be downloaded:")
    rest = [
        (f"teachllama fetch {m.name}", f"{m.nbytes / 1e6:,.1f} MB", m.licence)
        for m in models
        if not m.path and not hub.KNOWN[m.name].shipped
    ]
    rest += [("teachllama fetch hf:OWNER/REPO/FILE.gguf", "", "see its page on the Hugging Face Hub")]
    print(_table(("command", "size", "licence"), rest))
    return 0


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [heads, *(tuple(map(printable, row)) for row in rows)]  # a file's name may contain any character
    widths = [max(map(width_of, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell + " " * (width - width_of(cell)) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(f"  {line}".rstrip() for line in lines)
