"""Sphinx configuration. `make docs` builds docs/_build/html, with warnings as errors.

Notebooks live in ../notebooks. Sphinx reads only what lies below docs/, so they are copied to docs/notebooks (which git
ignores) and rendered from the outputs stored in them: building the documentation runs no model.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import teachllama

HERE = Path(__file__).parent
SOURCE = "https://github.com/teachllama/teachllama"
BINDER = "https://mybinder.org/v2/gh/teachllama/teachllama/main?labpath=course%2F"
WIDGET = "application/vnd.jupyter.widget-view+json"

project = "teachllama"
author = "The teachllama authors"
project_copyright = "the teachllama authors, Apache-2.0"
version = release = teachllama.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # a widget's state, beside the picture that is shown in its place
smartquotes_action = "D"  # dashes in lists of parameters; quotes stay straight

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no widgets without a kernel, so no scripts from elsewhere
nb_render_image_options = {"alt": "A picture drawn by the code above; the text beside it says what it shows"}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
default_role = "code"  # our docstrings quote code with single backticks

html_theme = "pydata_sphinx_theme"
html_title = "teachllama"
html_static_path = ["_static"]
html_css_files = ["teachllama.css"]
html_show_sourcelink = False
html_theme_options = {
    "github_url": SOURCE,
    "header_links_before_dropdown": 8,
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
}
# The bar at the top has all pages, and the width is for code: this shows in a phone's menu alone (see the style sheet).
html_sidebars: dict[str, list[str]] = {"**": ["sidebar-nav-bs"]}
copybutton_prompt_text = r">>> |\.\.\. |\$ |In \[\d*\]: "
copybutton_prompt_is_regexp = True


# ---- notebooks ----


def glossary_terms() -> dict[str, str]:
    """The words of glossary.md, by the anchor that notebooks use for them."""
    block = (HERE / "glossary.md").read_text(encoding="utf-8").split(":::")[1]
    words = re.findall(r"^(?!\{)(\w.*)$", block, re.MULTILINE)
    return {re.sub(r"\W+", "-", word.lower()): word for word in words}


TERMS = glossary_terms()
TO_GLOSSARY = re.compile(r"\[([^\]]+)\]\(\.\./docs/glossary\.md#([\w-]+)\)")


def copy_notebooks() -> None:
    """Makes docs/notebooks what ../notebooks is, leaving files alone that have not changed."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    sources = {path.name: path for path in (HERE.parent / "notebooks").glob("[0-9]*.ipynb")}
    for stale in target.glob("*.ipynb"):
        if stale.name not in sources:
            stale.unlink()
    for name, path in sources.items():
        notebook = for_the_page(json.loads(path.read_text(encoding="utf-8")), name)
        text = json.dumps(notebook, ensure_ascii=False, indent=1)
        page = target / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def for_the_page(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """A notebook as a page that nobody can run: widgets become a note, links lead within the site."""
    notebook = copy.deepcopy(notebook)
    notebook["metadata"].pop("widgets", None)
    fold_answers(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            text = TO_GLOSSARY.sub(lambda m: f"{{term}}`{m[1]} <{TERMS[m[2]]}>`", text)
            cell["source"] = re.sub(r"\]\(\.\./docs/", "](../", text)
        for output in cell.get("outputs", ()):
            without_widget(output, name)
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):  # our pictures describe themselves
                cell["metadata"].setdefault("mystnb", {})["image"] = {"alt": alt}
        folded = cell["metadata"].get("jupyter", {})
        if "solution" in cell["metadata"].get("tags", ()):
            cell["metadata"]["mystnb"] = {
                "code_prompt_show": "Show a solution",
                "code_prompt_hide": "Hide the solution",
            }
        tags = cell["metadata"].setdefault("tags", [])
        fold = (("hide-input", "source_hidden"), ("hide-output", "outputs_hidden"))
        tags += [tag for tag, key in fold if folded.get(key) and tag not in tags]
    where = (
        "This page shows the outputs stored in the notebook. To run it yourself, "
        f"[open it on Binder]({BINDER}{name}) or [start it on your machine](../start.md). "
        f"[The notebook file]({SOURCE}/blob/main/notebooks/{name})."
    )
    note = {"cell_type": "markdown", "id": "on-this-page", "metadata": {}, "source": f":::{{note}}\n{where}\n:::"}
    notebook["cells"].insert(1, note)
    return notebook


def fold_answers(cells: list[dict[str, Any]]) -> None:
    """Folds the outputs from each `predict(...)` to the cell that reveals what came out."""
    waiting: set[str] = set()
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        asks = re.findall(r'(?m)^predict\(\s*"([^"]+)"', source)
        if waiting and not asks:
            cell["metadata"].setdefault("tags", []).append("hide-output")
            cell["metadata"]["mystnb"] = {
                "code_prompt_show": "Guess first, then show what came out",
                "code_prompt_hide": "Hide what came out",
            }
        waiting |= set(asks)
        waiting -= set(re.findall(r'\breveal\(\s*"([^"]+)"', source))


def without_widget(output: dict[str, Any], name: str) -> None:
    """Takes a widget out of an output; one that has nothing else to show says what is missing."""
    data = output.get("data", {})
    if data.pop(WIDGET, None) is None:
        return
    if not set(data) & {"image/png", "image/svg+xml", "text/html"}:
        data.clear()
        data["text/markdown"] = (
            f"*When the notebook runs, an interactive control is here: [try it on Binder]({BINDER}{name}).*"
        )


copy_notebooks()


# ---- dataclasses: the comment beside a field is its documentation ----

FIELD = re.compile(r"^    (\w+): ([^#=]+?)(?: = [^#]*)?(?:  # (.+))?$")


def fields_from_comments(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Adds a dataclass's fields to its docstring, with the comment that stands beside each in the source."""
    if what != "class" or not isinstance(obj, type) or not dataclasses.is_dataclass(obj):
        return
    if any(line.strip() in ("Args:", "Attributes:") for line in lines):
        return
    names = {field.name for field in dataclasses.fields(obj)}
    matches = map(FIELD.match, inspect.getsource(obj).splitlines())
    found = [match for match in matches if match and match[1] in names]
    if any(match[3] for match in found):
        lines += ["", "Attributes:", *(f"    {m[1]} ({m[2].strip()}): {m[3] or ''}".rstrip() for m in found), ""]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", fields_from_comments, priority=400)  # before napoleon, at 500
