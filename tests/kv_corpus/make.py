"""Writes the corpus: the headers, corpus.json, and docs/kv-corpus.md.

    python -m tests.kv_corpus.make
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf

from tests.kv_corpus.models import ENTRIES, Entry

HERE = Path(__file__).parent


def put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds a value under the type that llama.cpp's converters use for it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_header(entry: Entry, path: Path) -> None:
    """A GGUF file that has the metadata of `entry` and no tensor."""
    writer = gguf.GGUFWriter(path, entry.arch)
    writer.add_string("general.name", entry.name)
    for key, value in entry.keys.items():
        put(writer, f"{entry.arch}.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def main() -> int:
    """Writes everything."""
    headers = HERE / "headers"
    headers.mkdir(exist_ok=True)
    for path in headers.glob("*.gguf"):
        path.unlink()
    for entry in ENTRIES:
        write_header(entry, headers / f"{entry.name}.gguf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
