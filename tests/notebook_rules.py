"""Rules for committed notebooks: run top to bottom, outputs kept, no trace of the machine they ran on.

Usage: python tests/notebook_rules.py NOTEBOOK...    (pre-commit calls it; standard library only)
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Folders for users' or a machine's own files. After a letter, a dot, a colon or a slash the match is part of a URL.
_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|Users|root|tmp|private|var/folders|opt|mnt|workspaces?|content)/[\w.]")
_WINDOWS_PATH = re.compile(r"\b[A-Za-z]:\\+(?:Users|Temp|Windows)\b")


def problems(path: str | Path, machine_folders: tuple[str, ...] | None = None) -> list[str]:
    """The problems of a notebook, one line each; empty if there are none.

    Args:
        path: the .ipynb file.
        machine_folders: folders of this machine that must not appear; by default the checkout, the home folder and
            the folder for temporary files.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (OSError, ValueError, KeyError) as e:
        return [f"not a notebook: {type(e).__name__}: {e}"]
    found = [f"{len(cells)} cells, none of them code"] if not any(c["cell_type"] == "code" for c in cells) else []
    found += _order(cells)
    if machine_folders is None:
        machine_folders = tuple(str(f) for f in (ROOT, Path.home(), Path(tempfile.gettempdir())) if len(f.parts) > 1)
    for i, cell in enumerate(cells):
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error" and "raises-exception" not in cell["metadata"].get("tags", ()):
                found.append(
                    f"cell {i}: {output['ename']}; mend it, or tag the cell raises-exception if it is meant to fail"
                )
        if _cut(cell.get("outputs", [])):
            found.append(
                f"cell {i}: one stream in several pieces, which GitHub shows apart: run it with `make notebooks`"
            )
        for text in dict.fromkeys(_texts(cell)):
            found += [
                f"cell {i}: names a path of the machine: {path!r}" for path in _machine_paths(text, machine_folders)
            ]
    kernel = notebook.get("metadata", {}).get("kernelspec", {}).get("name")
    if kernel != "python3":
        found.append(f"its kernel is {kernel!r}; expected 'python3', which every Jupyter has")
    return found


def _order(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Requires execution counts 1, 2, 3, ... over the code cells that are not empty."""
    ran = [(i, c) for i, c in enumerate(cells) if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    for expected, (i, cell) in enumerate(ran, 1):
        count = cell["execution_count"]
        if count != expected:
            was = "was not run" if count is None else f"was run as number {count}"
            yield f"cell {i}: {was}, expected number {expected}: run all cells in a fresh kernel (`make notebooks`)"
            return
    if ran and not any(cell["outputs"] for _, cell in ran):
        yield "no cell has an output: run all cells (`make notebooks`), and commit what they show"


def _cut(outputs: list[dict[str, Any]]) -> bool:
    """Whether two consecutive outputs are text of the same stream."""
    names = [o.get("name") if o["output_type"] == "stream" else None for o in outputs]
    return any(a and a == b for a, b in itertools.pairwise(names))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a cell. Pictures are left out: base64 may contain any word."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from ["".join(value)] if all(isinstance(x, str) for x in value) else (t for x in value for t in _texts(x))
    elif isinstance(value, dict):
        yield from (t for key, x in value.items() if not key.startswith(("image/png", "image/jpeg")) for t in _texts(x))


def _machine_paths(text: str, folders: tuple[str, ...]) -> list[str]:
    hits = [m.start() for pattern in (_PATH, _WINDOWS_PATH) for m in pattern.finditer(text)]
    hits += [m.start() for f in folders for m in re.finditer(rf"(?<![\w.]){re.escape(f)}(?![\w-])", text)]
    return [text[at : at + 60].split("\n")[0] for at in sorted(set(hits))[:3]]


def main(paths: list[str]) -> int:
    """Prints the problems of each notebook; returns 1 if there are any."""
    found = [f"{path}: {problem}" for path in paths for problem in problems(path)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
