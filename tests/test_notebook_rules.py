"""The rules for committed notebooks: the notebooks here follow them, and each violation is found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import notebook_rules

NOTEBOOKS = sorted((notebook_rules.ROOT / "notebooks").glob("*.ipynb"))
Cells = list[dict[str, Any]]


def stream(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}


def code(source: str, count: int | None, *outputs: dict[str, Any], tags: tuple[str, ...] = ()) -> dict[str, Any]:
    metadata = {"tags": list(tags)}
    return {
        "cell_type": "code",
        "execution_count": count,
        "metadata": metadata,
        "outputs": list(outputs),
        "source": source,
    }


def good_cells() -> Cells:
    return [
        {"cell_type": "markdown", "metadata": {}, "source": ["# A title\n", "See https://example.org/home/page."]},
        code("print(6 * 7)", 1, stream("42\n")),
        code("# your code here\n", 2),
        code("", None),
    ]


def write(folder: Path, cells: Cells, kernel: str = "python3") -> Path:
    notebook = {"cells": cells, "metadata": {"kernelspec": {"name": kernel}}, "nbformat": 4, "nbformat_minor": 5}
    path = folder / "n.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_committed_notebook_keeps_the_rules(path: Path) -> None:
    assert notebook_rules.problems(path) == []


def test_a_notebook_that_was_run_top_to_bottom_has_no_problems(tmp_path: Path) -> None:
    assert notebook_rules.problems(write(tmp_path, good_cells())) == []


def error(cells: Cells) -> None:
    cells[1]["outputs"] = [{"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}]


def output(text: str) -> Callable[[Cells], None]:
    return lambda cells: cells[1].update(outputs=[stream(text)])


BROKEN: dict[str, tuple[Callable[[Cells], None], str]] = {
    "a cell that was not run": (lambda cells: cells[1].update(execution_count=None), "cell 1: was not run"),
    "cells run out of order": (lambda cells: cells[1].update(execution_count=3), "number 3, expected number 1"),
    "a kernel used before": (lambda cells: cells[2].update(execution_count=5), "number 5, expected number 2"),
    "no outputs": (lambda cells: cells[1].update(outputs=[]), "no cell has an output"),
    "an error": (error, "cell 1: ValueError"),
    "no code": (lambda cells: cells.__delitem__(slice(1, None)), "none of them code"),
    "a home folder": (output("File /home/ann/x.py, line 3"), "'/home/ann/x.py, line 3'"),
    "a Mac's home folder": (output("in /Users/ann/x.gguf"), "/Users/ann"),
    "a Windows home folder": (output("C:\\Users\\ann"), "Users"),
    "a warning's temporary file": (output("/tmp/ipykernel_7/1.py:1: UserWarning"), "ipykernel_7"),
    "this checkout": (output(f"<Model {notebook_rules.ROOT}/x.gguf>"), "names a path of the machine"),
    "a stream in pieces": (lambda cells: cells[1]["outputs"].append(stream("43\n")), "cell 1: one stream in several"),
    "a path in the source": (lambda cells: cells[1].update(source='open("/root/x")'), "/root/x"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_rule_is_found_and_named(what: str, tmp_path: Path) -> None:
    breaks, named = BROKEN[what]
    cells = good_cells()
    breaks(cells)
    found = notebook_rules.problems(write(tmp_path, cells))
    assert len(found) == 1
    assert named in found[0]


def test_two_streams_of_different_names_may_stand_side_by_side(tmp_path: Path) -> None:
    cells = good_cells()
    cells[1]["outputs"].append({**stream("careful\n"), "name": "stderr"})
    assert notebook_rules.problems(write(tmp_path, cells)) == []


def test_running_a_notebook_joins_the_pieces_of_a_stream_and_nothing_else() -> None:
    pytest.importorskip("nbclient", reason="the lab extra is not installed")
    from nbformat.v4 import new_output

    from notebooks.execute import merge_streams

    picture = new_output("display_data", {"text/plain": "a picture"})
    words = [new_output("stream", name="stdout", text=text) for text in "abcd"]
    warning = new_output("stream", name="stderr", text="!")
    merged = merge_streams([words[0], words[1], warning, words[2], picture, words[3]])
    assert [o.get("text", "") for o in merged] == ["ab", "!", "c", "", "d"]
    assert merge_streams([]) == []


def test_an_error_that_is_meant_is_allowed_when_tagged(tmp_path: Path) -> None:
    cells = good_cells()
    error(cells)
    cells[1]["metadata"]["tags"] = ["raises-exception"]
    assert notebook_rules.problems(write(tmp_path, cells)) == []


def test_a_picture_may_spell_anything(tmp_path: Path) -> None:
    cells = good_cells()
    data = {"image/png": "AAA /home/ann/ AAA", "text/plain": "a picture"}
    cells[1]["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
    assert notebook_rules.problems(write(tmp_path, cells)) == []


def test_another_kernel_is_refused(tmp_path: Path) -> None:
    found = notebook_rules.problems(write(tmp_path, good_cells(), kernel="my-env"))
    assert found == ["its kernel is 'my-env'; expected 'python3', which every Jupyter has"]


def test_from_the_command_line_it_says_what_is_wrong_and_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.ipynb").write_text("{}", encoding="utf-8")
    command = [sys.executable, notebook_rules.__file__]
    bad = subprocess.run([*command, str(tmp_path / "bad.ipynb")], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout.count("not a notebook")) == (1, 1)
    good = subprocess.run([*command, str(write(tmp_path, good_cells()))], capture_output=True, text=True)
    assert (good.returncode, good.stdout) == (0, "")
