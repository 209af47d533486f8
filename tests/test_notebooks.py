"""The notebooks, run in fresh kernels: outputs compared, memory bounded, and on a second model."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
FIRST, *REST = NOTEBOOKS  # 00 covers the model in the package, and plain Llamas
# All notebooks on another real model take minutes: run the shortest one that depends on a family, or, with this
# variable, all of them.
ON_GEMMA = [p for p in REST if p.stem[:2] in ("10",) or os.environ.get("TEACHLLAMA_ALL_MODELS")]
# On the model in the package: some notebooks, or, with this variable, all of them.
ON_TINY = REST if os.environ.get("TEACHLLAMA_ALL_MODELS") else [p for p in REST if p.stem[:2] in ("04", "13")]
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"

pytestmark = [pytest.mark.notebook, pytest.mark.model, pytest.mark.timeout(900)]


def run(*command: str, model: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TEACHLLAMA_MODEL": model}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True)


class Peak(threading.Thread):
    """The peak resident memory of any one descendant process, sampled 20 times per second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.nbytes, self._done = 0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    self.nbytes = max(self.nbytes, child.memory_info().rss)

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self.join()


def lax(path: Path, model: str) -> None:
    """Runs a notebook on a model other than its own: its assertions must hold, its outputs may differ."""
    options = ("--nbval-lax", "--nbval-cell-timeout", "300", "-q", "-p", "no:cacheprovider", "--timeout", "0")
    done = run("pytest", *options, str(path), model=model)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_gives_the_outputs_that_are_committed_in_under_1_gb(path: Path, smollm2_path: str) -> None:
    strict = ("--nbval", "--nbval-sanitize-with", str(SANITIZE), "--nbval-cell-timeout", "300")
    model = "tiny-stories" if path == FIRST else smollm2_path
    with Peak() as peak:
        done = run("pytest", *strict, "-q", "-p", "no:cacheprovider", "--timeout", "0", str(path), model=model)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert 50e6 < peak.nbytes < 1e9
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.parametrize("path", ON_GEMMA, ids=lambda p: p.stem)
def test_a_notebook_runs_on_gemma3_too(path: Path, gemma3_path: str) -> None:
    lax(path, gemma3_path)


@pytest.mark.parametrize("path", ON_TINY, ids=lambda p: p.stem)
def test_a_notebook_runs_on_the_model_in_the_package_too(path: Path) -> None:
    lax(path, "tiny-stories")


@pytest.mark.skipif(not os.environ.get("TEACHLLAMA_ALL_MODELS"), reason="TEACHLLAMA_ALL_MODELS is not set")
def test_notebook_00_runs_on_a_larger_llama_too(smollm2_path: str) -> None:
    lax(FIRST, smollm2_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a child process is a Unix figure")
def test_notebook_04_run_from_the_terminal_writes_its_page(tmp_path: Path) -> None:
    page = tmp_path / "04.html"
    done = run("teachllama", "run", "04", "tiny-stories", "--html", str(page), model="")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"at most ([\d,]+) MB resident", done.stdout)
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png") >= 6
    assert "No description has been provided" not in html
