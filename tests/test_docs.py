"""The documentation: it builds without warnings, shows the notebooks' pictures, and lists every public name."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import teachllama as tl

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_nb", "pydata_sphinx_theme")),
    reason='the documentation needs Sphinx: pip install -e ".[docs]"',
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation; any warning fails the build."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(out / ".doctrees")]
    done = subprocess.run([*command, "docs", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return out


@needs_sphinx
@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(path.stem for path in (ROOT / "docs").glob("*.md")))
def test_every_page_is_built_and_has_a_title(site: Path, page: str) -> None:
    assert "<h1>" in (site / f"{page}.html").read_text(encoding="utf-8")


FROM_ELSEWHERE = re.compile(r"""<(?:script|img)\b[^>]*\bsrc=["']https?://|<link\b[^>]*\bhref=["']https?://""")


@needs_sphinx
@pytest.mark.slow
def test_no_page_needs_a_script_a_style_or_a_picture_from_another_server(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if FROM_ELSEWHERE.search(page.read_text(encoding="utf-8"))] == []


@needs_sphinx
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebooks_page_shows_its_pictures_and_no_dead_widget(site: Path, path: Path) -> None:
    html = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    stored = {
        str(o["data"]["image/png"]) for c in cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})
    }
    shown = set(re.findall(r'src="\.\./(_images/[0-9a-f]+\.png)"', html))
    assert len(shown) == len(stored)
    assert all((site / image).stat().st_size > 1000 for image in shown)
    assert "widget-view+json" not in html


@needs_sphinx
@pytest.mark.slow
def test_the_api_page_has_every_public_name(site: Path) -> None:
    html = (site / "api.html").read_text(encoding="utf-8")
    from teachllama import check, hub

    names = [f"teachllama.{name}" for name in tl.__all__ if name != "memory"]
    names += [
        f"teachllama.memory.{name}"
        for name in ("usage", "Timeline", "resident_of", "who_refers_to", "watch", "forget_history")
    ]
    names += [f"teachllama.hub.{name}" for name in ("fetch", "find", "list_models", "cache_dir") if hasattr(hub, name)]
    missing = [name for name in names if f'id="{name}"' not in html]
    missing += [name for name in check.__all__ if not re.search(rf'id="teachllama\.check\.(\w+\.)?{name}"', html)]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_of_the_repository_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert [link for link in links if link and "://" not in link and not (ROOT / link).exists()] == []


def test_the_path_on_the_front_page_leads_to_every_notebook_here_and_on_binder() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"(notebooks/{path.name})" in text
        assert f"labpath=course%2F{path.name})" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_links_its_words_to_the_glossary(path: Path) -> None:
    linked = re.findall(r"\.\./docs/glossary\.md#([\w-]+)", path.read_text(encoding="utf-8"))
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = {re.sub(r"\W+", "-", word.lower()) for word in re.findall(r"^(\w.*)$", glossary, re.MULTILINE)}
    assert len(linked) >= 3
    assert set(linked) <= words


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_source_files_that_a_page_names_exist(path: Path) -> None:
    named = re.findall(
        r"`((?:teachllama|tests|binder|docs|notebooks|benchmarks)/[\w./]+)`", path.read_text(encoding="utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
