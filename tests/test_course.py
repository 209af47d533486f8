"""A learner's copies of the notebooks, the command that opens them, and the wheel that contains them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from teachllama import cli
from teachllama.cli import lab
from teachllama.errors import TeachLlamaError
from teachllama.lessons.course import SITE, copy_course, course_folder, entries

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my course")
    copy_course(folder)
    return folder


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["cells"]
    return found


def test_copies_have_no_outputs_and_the_courses_notebooks_keep_theirs(course: Path) -> None:
    copied = sorted(course.glob("[0-9]*.ipynb"))
    assert [p.name for p in copied] == [p.name for p in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    for path in copied:
        code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
        assert len(code) > 10
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
        assert any(cell.get("outputs") for cell in cells(ROOT / "notebooks" / path.name))


def test_solutions_are_folded_and_their_first_line_gives_nothing_away(course: Path) -> None:
    for path in sorted(course.glob("[0-9]*.ipynb")):
        solutions = [cell for cell in cells(path) if "solution" in cell["metadata"].get("tags", ())]
        assert len(solutions) >= 4
        for cell in solutions:
            assert cell["metadata"]["jupyter"] == {"source_hidden": True}
            assert re.fullmatch(r"# Solution \d+", cell["source"].split("\n")[0]), cell["source"]


def test_what_a_learner_has_is_never_overwritten(course: Path) -> None:
    mine = course / "04_sessions_and_memory.ipynb"
    before = mine.read_text("utf-8")
    mine.write_text("my own work", "utf-8")
    (course / "03_sampling.ipynb").unlink()
    copies = copy_course(course)
    assert mine.read_text("utf-8") == "my own work"
    assert [path.name for path in copies.written] == ["03_sampling.ipynb"]
    assert mine in copies.kept
    mine.write_text(before, "utf-8")


def test_every_link_of_a_copy_leads_to_a_file_beside_it_a_heading_or_the_site(course: Path) -> None:
    headings = {
        cell["source"].split("\n")[0].removeprefix("## ").replace(" ", "-") for cell in cells(course / "glossary.ipynb")
    }
    n_glossary = 0
    for path in course.glob("*.ipynb"):
        text = "\n".join(
            cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            for cell in cells(path)
            if cell["cell_type"] == "markdown"
        )
        assert "{term}" not in text
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith(("https://", "http://")):
                continue
            name, _, anchor = link.partition("#")
            assert not name or (course / name).is_file(), (path.name, link)
            if name == "glossary.ipynb" or (path.name == "glossary.ipynb" and not name):
                assert not anchor or anchor in headings, (path.name, link)
                n_glossary += 1
    assert n_glossary > 50


def test_the_glossary_has_every_term_as_a_heading(course: Path) -> None:
    terms = entries((ROOT / "docs" / "glossary.md").read_text("utf-8"))
    assert len(terms) > 40
    assert len(cells(course / "glossary.ipynb")) == len(terms) + 1
    assert all(text for _, text in terms)


def test_the_courses_own_folder_and_what_is_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TeachLlamaError, match="the course's own notebooks"):
        copy_course(course_folder())
    (tmp_path / "file").write_text("")
    with pytest.raises(TeachLlamaError, match="cannot write"):
        copy_course(tmp_path / "file")


def test_the_command_says_what_it_wrote_and_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = len(list((ROOT / "notebooks").glob("[0-9]*.ipynb"))) + 1  # plus the glossary
    for shown in (f"{n} notebooks written", "0 notebooks written"):
        assert cli.main(["lab", str(tmp_path / "a"), "--copy-only"]) == 0
        assert shown in capsys.readouterr().out
    if importlib.util.find_spec("jupyterlab"):
        assert cli.main(["lab", str(tmp_path / "a"), "--notebook", "42"]) == 1
        assert "no notebook is numbered '42'; there is 00, 01" in capsys.readouterr().err


def test_jupyterlab_opens_on_the_notebook_also_where_it_prints_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    command = lab.jupyter_command(Path("/c"), "04_x.ipynb")
    assert "--LabApp.default_url=/lab/tree/04_x.ipynb" in command
    assert "--no-browser" not in command
    monkeypatch.delenv("DISPLAY")
    assert "--no-browser" in lab.jupyter_command(Path("/c"), "04_x.ipynb")


@pytest.mark.slow
def test_the_wheel_carries_the_notebooks_without_outputs(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="building needs hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = [n for n in wheel.namelist() if n.startswith("teachllama/notebooks/")]
        assert len([n for n in names if n.endswith(".ipynb")]) == len(list((ROOT / "notebooks").glob("[0-9]*.ipynb")))
        assert "teachllama/notebooks/glossary.md" in names
        for name in names:
            assert b'"output_type"' not in wheel.read(name)
    assert SITE.startswith("https://")
