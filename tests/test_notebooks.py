"""The notebooks, run in fresh kernels: outputs compared, memory bounded, and on a second model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
FIRST, *REST = NOTEBOOKS  # 00 is about the model in the package, and about plain Llamas
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"

pytestmark = [pytest.mark.notebook, pytest.mark.model, pytest.mark.timeout(900)]


def run(*command: str, model: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TEACHLLAMA_MODEL": model}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True)


def lax(path: Path, model: str) -> None:
    """Runs a notebook on another model than its own: its assertions must hold, its outputs may differ."""
    options = ("--nbval-lax", "--nbval-cell-timeout", "300", "-q", "-p", "no:cacheprovider", "--timeout", "0")
    done = run("pytest", *options, str(path), model=model)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_gives_the_outputs_that_are_committed(path: Path, smollm2_path: str) -> None:
    strict = ("--nbval", "--nbval-sanitize-with", str(SANITIZE), "--nbval-cell-timeout", "300")
    model = "tiny-stories" if path == FIRST else smollm2_path
    done = run("pytest", *strict, "-q", "-p", "no:cacheprovider", "--timeout", "0", str(path), model=model)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.parametrize("path", REST, ids=lambda p: p.stem)
def test_a_notebook_runs_on_gemma3_too(path: Path, gemma3_path: str) -> None:
    lax(path, gemma3_path)


@pytest.mark.parametrize("path", REST, ids=lambda p: p.stem)
def test_a_notebook_runs_on_the_model_in_the_package_too(path: Path) -> None:
    lax(path, "tiny-stories")


def test_notebook_00_runs_on_a_larger_llama_too(smollm2_path: str) -> None:
    lax(FIRST, smollm2_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a child process is a Unix figure")
def test_notebook_04_stays_under_1_gb_and_its_page_is_written(smollm2_path: str, tmp_path: Path) -> None:
    page = tmp_path / "04.html"
    done = run("teachllama", "run", "04", smollm2_path, "--html", str(page), model=smollm2_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    peak = re.search(r"at most ([\d,]+) MB resident", done.stdout)
    assert peak, done.stdout[-500:]
    assert int(peak[1].replace(",", "")) < 1000
    assert "377,487,360" in done.stdout
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png") >= 6
    assert "No description has been provided" not in html
