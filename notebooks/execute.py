"""Runs notebooks from top to bottom in new kernels and saves their outputs.

    python notebooks/execute.py [--busy] [FILE ...]    # default: all, as `make notebooks` does

Use it before each commit that changes a notebook, so that the committed outputs are up to date.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent


def execute(path: Path) -> None:
    """Runs one notebook with its default model and writes it back, without metadata that differs from run to run."""
    notebook = nbformat.read(path, as_version=4)
    env = {name: value for name, value in os.environ.items() if name != "TEACHLLAMA_MODEL"}
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute(env=env)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Joins neighbouring texts of one stream, because the kernel splits them at random and GitHub shows every split."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


if __name__ == "__main__":
    named = [Path(p) for p in sys.argv[1:] if p != "--busy"]
    if missing := [path for path in named if not path.is_file()]:
        raise SystemExit(f"{missing[0]} is not a file\n\n{__doc__}")
    busy = psutil.cpu_percent(1) / 100 * (psutil.cpu_count() or 1)
    if busy > 0.7 and "--busy" not in sys.argv:  # the stored times would be too long for this machine
        raise SystemExit(f"other programs keep {busy:.1f} processors busy; wait for an idle machine, or say --busy")
    for path in named or sorted(HERE.glob("[0-9][0-9]_*.ipynb")):
        print(f"running {path.name}", flush=True)
        execute(path)
