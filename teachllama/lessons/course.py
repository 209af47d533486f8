"""Copies the notebooks for a learner, without outputs, so that predictions come before answers.

A learner's files are never overwritten. The glossary becomes a notebook of headings, because JupyterLab can jump to the
headings of a notebook but shows a Markdown file as raw text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from teachllama.errors import TeachLlamaError

SITE = "https://teachllama.readthedocs.io/en/latest"
_TO_GLOSSARY = re.compile(r"\]\(\.\./docs/glossary\.md(?:#([\w-]+))?\)")
_TO_DOCS = re.compile(r"\]\(\.\./docs/(\w+)\.md")


class Copies(NamedTuple):
    """The result of `copy_course`."""

    written: list[Path]
    kept: list[Path]  # existing files, left unchanged


def course_folder() -> Path:
    """The folder of the course's notebooks: inside an installed package, or next to it in a checkout.

    Raises:
        TeachLlamaError: neither folder exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if folder.is_dir():
            return folder
    raise TeachLlamaError(f"the course's notebooks are neither in {package} nor beside it: reinstall teachllama")


def copy_course(target: Path) -> Copies:
    """Writes the notebooks, without outputs, and the glossary into `target`. Existing files are kept.

    Raises:
        TeachLlamaError: `target` is not a folder, is the course's own folder, or can't be written.
    """
    source = course_folder()
    target = target.expanduser()
    if target.resolve() == source:
        raise TeachLlamaError(f"{target} holds the course's own notebooks; name another folder for your copies")
    copies = Copies([], [])
    try:
        target.mkdir(parents=True, exist_ok=True)
        places = (source / "glossary.md", source.parent / "docs" / "glossary.md")
        glossary = next(p for p in places if p.is_file()).read_text(encoding="utf-8")
        anchors = {_slug(term): _anchor(term) for term, _ in entries(glossary)}
        for path in sorted(source.glob("[0-9][0-9]_*.ipynb")):
            notebook = json.loads(path.read_text(encoding="utf-8"))
            _write(target / path.name, fresh(notebook, anchors), copies)
        _write(target / "glossary.ipynb", glossary_notebook(glossary), copies)
    except OSError as e:
        raise TeachLlamaError(f"cannot write the notebooks into {target}: {e.strerror or e}") from None
    return copies


def _write(path: Path, notebook: dict[str, Any], copies: Copies) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:  # never overwrites a learner's work
            file.write(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n")
        copies.written.append(path)
    except FileExistsError:
        copies.kept.append(path)


def fresh(notebook: dict[str, Any], anchors: dict[str, str]) -> dict[str, Any]:
    """Prepares a notebook for a learner: no outputs, solutions folded, links that work from its folder.

    Args:
        notebook: the content of its file, which is changed.
        anchors: a term's anchor in docs/glossary.md -> its anchor in glossary.ipynb.
    """
    for cell in notebook["cells"]:
        source = cell["source"]
        text = source if isinstance(source, str) else "".join(source)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            if "solution" in cell["metadata"].get("tags", ()):
                cell["metadata"]["jupyter"] = {"source_hidden": True}
            cell["source"] = text
        else:
            text = _TO_GLOSSARY.sub(lambda m: f"](glossary.ipynb{f'#{anchors[m[1]]}' if m[1] else ''})", text)
            cell["source"] = _TO_DOCS.sub(rf"]({SITE}/\1.html", text)
    notebook["metadata"].pop("widgets", None)
    return notebook


def entries(page: str) -> list[tuple[str, str]]:
    """The terms of docs/glossary.md, each with its text."""
    block = page.split(":::")[1].split("\n\n", 1)[1].strip("\n")
    parts = (entry.partition("\n") for entry in re.split(r"\n(?=\S)", block))
    return [(term, "\n".join(line.removeprefix("  ") for line in text.split("\n")).strip()) for term, _, text in parts]


def glossary_notebook(page: str) -> dict[str, Any]:
    """docs/glossary.md as a notebook with one heading per term, which JupyterLab can jump to."""
    sources = ["# Glossary\n\nThe words that the notebooks, the code and the field use, in alphabetical order."]
    for term, text in entries(page):
        text = re.sub(r"\{term\}`([^<`]+?)\s*<([^>]+)>`", lambda m: f"[{m[1]}](#{_anchor(m[2])})", text)
        text = re.sub(r"\{term\}`([^`]+)`", lambda m: f"[{m[1]}](#{_anchor(m[1])})", text)
        text = re.sub(r"\]\((\w+)\.md", rf"]({SITE}/\1.html", text)
        sources.append(f"## {term}\n\n{re.sub(r'][(]notebooks/', '](', text)}")
    cells = [
        {"cell_type": "markdown", "id": f"term-{i}", "metadata": {}, "source": text} for i, text in enumerate(sources)
    ]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _slug(term: str) -> str:
    """A term's anchor as written in the notebooks' links."""
    return re.sub(r"\W+", "-", term.lower())


def _anchor(term: str) -> str:
    """The anchor that JupyterLab makes for a heading."""
    return term.replace(" ", "-")
