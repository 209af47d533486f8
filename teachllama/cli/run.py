"""`teachllama run`: executes a notebook of the course without a browser, prints its results, writes an HTML page."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from html import escape
from pathlib import Path
from typing import Any

from teachllama import hub
from teachllama.errors import TeachLlamaError
from teachllama.lessons.course import course_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("notebook", help="a notebook's number, such as 04, or the path of one")
    parser.add_argument(
        "model", nargs="?", help="a .gguf file or a name that `teachllama models` lists; default: the notebook's own"
    )
    parser.add_argument("--html", metavar="FILE", help="where to write the page (default: out/NAME.html)")
    parser.add_argument(
        "--timeout", type=int, default=600, metavar="SECONDS", help="the most one cell may take (default: 600)"
    )


def find_notebook(spec: str) -> Path:
    """The path of a notebook, from its number or its path."""
    if spec.endswith(".ipynb"):
        if Path(spec).is_file():
            return Path(spec)
        raise TeachLlamaError(f"{spec}: no such notebook")
    folder = course_folder()
    found = sorted(folder.glob(f"{spec.zfill(2)}_*.ipynb")) if re.fullmatch(r"\d{1,2}", spec) else []
    if not found:
        here = ", ".join(p.stem.split("_")[0] for p in sorted(folder.glob("[0-9][0-9]_*.ipynb")))
        raise TeachLlamaError(f"no notebook is numbered {spec!r}; there is {here}")
    return found[0]


def run(args: argparse.Namespace) -> int:
    """Executes the notebook; 0 if every cell ran, 1 if one failed."""
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
        from nbconvert import HTMLExporter
    except ImportError as e:
        raise TeachLlamaError(f'running notebooks needs {e.name}: pip install "teachllama[lab]"') from None
    path = find_notebook(args.notebook)
    model = hub.find(args.model or os.environ.get("TEACHLLAMA_MODEL") or "smollm2-135m")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=args.timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda cell, cell_index, execute_reply: _show(cell),
        on_cell_start=lambda cell, cell_index: _show_headings(cell),
    )
    started, failure = time.perf_counter(), None
    try:
        client.execute(env={**os.environ, "TEACHLLAMA_MODEL": str(model.absolute())})
    except CellExecutionError as e:
        failure = e
    html = Path(args.html or f"out/{path.stem}.html")
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(_with_alt_text(HTMLExporter().from_notebook_node(notebook)[0], notebook), encoding="utf-8")
    print(f"\n{path.name}: {time.perf_counter() - started:.0f} s{_peak()}; the page is {html}")
    if failure is not None:
        print(f"teachllama run: a cell failed:\n{failure}", file=sys.stderr)
    return 1 if failure else 0


def _with_alt_text(page: str, notebook: Any) -> str:
    """Puts each picture's own description where nbconvert's template writes that there is none."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    for output in outputs:
        if "image/png" in output.get("data", {}):
            alt = output.metadata.get("image/png", {}).get("alt") or "a picture, described in the text below it"
            page = page.replace('alt="No description has been provided for this image"', f'alt="{escape(alt)}"', 1)
    return page


def _peak() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", at most {peak / 1e6:,.0f} MB resident"


def _show_headings(cell: Any) -> None:
    if cell.cell_type == "markdown":
        for line in cell.source.splitlines():
            if re.match(r"#{1,2} ", line):
                print(f"\n{line.lstrip('# ')}\n{'=' * len(line.lstrip('# '))}", flush=True)


def _show(cell: Any) -> None:
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        if output.output_type == "stream":
            print(output.text, end="", flush=True)
        elif output.output_type == "error":
            print(f"{output.ename}: {output.evalue}", flush=True)
        elif "image/png" in data:
            print("(a picture: see the page)", flush=True)
        elif "text/plain" in data:
            print(data["text/plain"], flush=True)
