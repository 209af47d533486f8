"""Notebook 04 in JupyterLab in a real browser: every cell is run, and the slider is moved.

Drives Debian's Chromium through Playwright; skipped with a reason where either is missing. Screenshots are written to
`out/screenshots` (or to the folder in TEACHLLAMA_SCREENSHOTS), for people to inspect.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NAME = "04_sessions_and_memory.ipynb"
TOKEN = "browser-test"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def screenshots() -> Path:
    folder = Path(os.environ.get("TEACHLLAMA_SCREENSHOTS", ROOT / "out" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def lab(smollm2_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Runs a JupyterLab on a copy of the notebook without outputs; yields its address."""
    nbformat = pytest.importorskip("nbformat")
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(ROOT / "notebooks" / NAME, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / NAME)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    config = tmp_path_factory.mktemp("config")
    quiet = config / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # otherwise a news popup covers the corner
    env = {
        **os.environ,
        "TEACHLLAMA_MODEL": smollm2_path,
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTERLAB_SETTINGS_DIR": str(config),
    }
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()[-3000:]
                time.sleep(0.25)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture(scope="module")
def page(lab: str) -> Iterator[Any]:
    """The notebook, open in JupyterLab."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        # Taller than any screen, so that JupyterLab keeps the whole notebook in the page.
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(f"{lab}/lab/tree/{NAME}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
        yield page
        browser.close()


def evaluate_in_lab(page: Any, script: str) -> Any:
    return page.evaluate(f"async () => {{ const app = window.jupyterapp; {script} }}")


CELLS = """
    const model = app.shell.currentWidget.content.model.sharedModel.toJSON();
    return model.cells.filter(c => c.cell_type === 'code' && c.source.length).map(c => ({
        count: c.execution_count, tags: c.metadata.tags || [],
        errors: c.outputs.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue),
        stderr: c.outputs.filter(o => o.name === 'stderr').map(o => o.text.toString()),
    }));
"""


def test_all_cells_run_and_the_slider_changes_the_number(page: Any, screenshots: Path) -> None:
    page.wait_for_function(
        "() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.sessionContext?.isReady", timeout=90_000
    )
    page.screenshot(path=screenshots / "04_opened.png")
    evaluate_in_lab(page, "await app.commands.execute('notebook:run-all-cells');")
    # The command returns at the cell that fails on purpose, while later cells are still queued.
    for _ in range(600):
        cells = evaluate_in_lab(page, CELLS)
        if cells[-1]["count"] is not None:
            break
        page.wait_for_timeout(500)

    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [c["errors"] for c in cells if c["errors"] and "raises-exception" not in c["tags"]] == []
    assert [c["stderr"] for c in cells if c["stderr"]] == []

    total = page.locator('[data-testid="teachllama-kv-total"], .teachllama-kv-total').first
    total.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=screenshots / "04_calculator.png")
    before = total.inner_text()
    assert re.search(r"\d", before)
    handle = page.locator(".jp-OutputArea .noUi-handle").first
    handle.focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "([e, before]) => e.isConnected ? e.innerText !== before : true", arg=[total.element_handle(), before]
    )
    after = page.locator('[data-testid="teachllama-kv-total"], .teachllama-kv-total').first.inner_text()
    assert re.search(r"\d", after)
    assert after != before, "moving the slider must change the number of bytes"
    page.screenshot(path=screenshots / "04_calculator_moved.png")
    # For the README: the picture and the calculator, without the side bar.
    evaluate_in_lab(page, "app.shell.collapseLeft();")
    page.set_viewport_size({"width": 1180, "height": 1480})
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollBy(0, -520)")
    page.wait_for_timeout(700)
    page.screenshot(path=screenshots / "04_readme.png")
    page.set_viewport_size({"width": 1280, "height": 1000})

    # Screenshots of the whole notebook, for inspection.
    headings = page.locator(".jp-Notebook .jp-MarkdownOutput h2")
    assert headings.count() >= 8
    box = page.locator(".jp-WindowedPanel-outer").first
    for i in range(60):
        top = box.evaluate("(e, top) => (e.scrollTop = top)", i * 860)
        page.wait_for_timeout(250)
        page.screenshot(path=screenshots / f"04_screen_{i:02}.png")
        if box.evaluate("(e, top) => top + e.clientHeight >= e.scrollHeight", top):  # grows as cells scroll into view
            break
