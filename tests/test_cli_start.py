"""First use: help, version, an account without a home folder, progress, and the output of running a notebook."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import stat
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import platformdirs
import pytest

import teachllama as tl
from teachllama import cli, folders, hub
from teachllama.cli import prompt
from teachllama.cli.generate import decoded
from teachllama.cli.run import _for_offline
from teachllama.errors import FetchError, ParameterError, TeachLlamaError
from tests.test_chat import tiny_chat_model
from tests.tools import tiny_model

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "teachllama"]


def test_without_a_command_it_prints_a_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    assert len(out.splitlines()) < 30


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"teachllama {tl.__version__}\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help_in_the_words_of_the_command_line(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert not re.search(r"accept_licence|template=|trim\(\)|max_new_tokens", out)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: Any) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "n.ipynb")
    (tmp_path / "file").write_text("")
    argv = ["run", str(tmp_path / "n.ipynb"), "tiny-stories", "--html", str(tmp_path / "file" / "p.html")]
    assert cli.main(argv) == 1
    assert re.fullmatch(r"teachllama run: .*file.*: (Not a directory|File exists)\n", capsys.readouterr().err)


# An account without a home folder


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Removes the home folder; returns the path of the temporary replacement."""
    for name in ("TEACHLLAMA_CACHE", "TEACHLLAMA_KERNEL_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def fails(*_: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(platformdirs, "user_cache_path", fails)
    monkeypatch.setattr(platformdirs, "user_state_path", fails)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(folders, "_said", False)
    return tmp_path / f"teachllama-{os.getuid() if hasattr(os, 'getuid') else 0}"


def test_without_a_home_there_is_a_private_temporary_folder_and_one_warning(homeless: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert folders.user_cache_dir() == homeless
        assert hub.cache_dir() == homeless / "models"
    (message,) = [str(w.message) for w in caught]
    assert str(homeless) in message
    assert "TEACHLLAMA_CACHE" in message
    assert "TEACHLLAMA_KERNEL_CACHE" in message
    if sys.platform != "win32":
        assert stat.S_IMODE(homeless.stat().st_mode) == 0o700
    assert prompt.history_file() is None


def test_a_home_that_is_only_a_tilde_is_none(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: Path("~/.cache/teachllama"))
    monkeypatch.setattr(platformdirs, "user_state_path", lambda *_: Path("~/.local/state/teachllama"))
    with pytest.warns(UserWarning, match="no home folder"):
        assert folders.user_cache_dir() == homeless
    assert prompt.history_file() is None


@pytest.mark.skipif(sys.platform == "win32", reason="modes are Unix's")
@pytest.mark.parametrize("what", ["writable by others", "a link", "a file", "somebody else's"])
def test_a_temporary_folder_that_others_may_have_made_is_refused_with_the_variables_that_help(
    what: str, homeless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    if what == "writable by others":
        homeless.mkdir()
        homeless.chmod(0o777)
    elif what == "a link":
        homeless.symlink_to(tmp_path / "other")
    elif what == "a file":
        homeless.write_text("")
    else:
        homeless.mkdir(mode=0o700)
        (tmp_path / "teachllama-4711").mkdir(mode=0o700)
        monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(TeachLlamaError, match=r"set TEACHLLAMA_CACHE .* and TEACHLLAMA_KERNEL_CACHE .* or HOME"):
        folders.user_cache_dir()
    with pytest.raises(FetchError, match="no home folder"):
        hub.find("smollm2-135m")


def test_with_both_variables_no_home_is_needed(
    homeless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TEACHLLAMA_CACHE", str(tmp_path / "m"))
    assert cli.main(["models"]) == 0
    assert "none yet" in capsys.readouterr().out
    assert not homeless.exists()


def test_a_command_works_without_a_home_and_says_so_in_one_line(homeless: Path, capsys: Any) -> None:
    assert cli.main(["models"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("teachllama models: warning: this account")
    assert err.count("\n") == 1


# Text on standard input


def test_text_that_is_not_utf_8_gets_advice_for_a_shell(tmp_path: Path) -> None:
    with tiny_chat_model(tmp_path) as model:
        path = str(model.path)
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    run = lambda *argv, data: subprocess.run([*COMMAND, *argv], input=data, capture_output=True, env=environment)
    done = run("generate", path, "-", data="caf\u00e9 au lait".encode("latin-1"))
    assert done.returncode == 1
    error = done.stderr.decode()
    assert "standard input is not UTF-8 text (byte 0xE9 at offset 3)" in error
    assert "iconv -f latin1 -t utf-8" in error
    assert ".encode(" not in error
    done = run("chat", path, "--max-new-tokens", "1", data=b"caf\xe9\nthe\n")
    assert done.returncode == 0
    assert b"! this line of standard input is not UTF-8 text" in done.stderr
    assert b"written" in done.stderr  # the next line is answered


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are bytes on Unix")
def test_an_argument_that_is_not_utf_8_gets_advice_too(tmp_path: Path) -> None:
    path = str(tiny_model(tmp_path / "t.gguf"))
    done = subprocess.run([*COMMAND, "generate", path, b"caf\xe9"], capture_output=True)
    assert done.returncode == 1
    assert b"the prompt is not UTF-8 text (byte 0xE9 at offset 3)" in done.stderr


def test_utf_8_with_a_mark_or_in_windows_lines_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoded("\ufeffa\r\nb".encode(), "x") == "a\nb"
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(encoding="cp1252"))
    assert decoded(b"caf\xe9", "x") == "caf\u00e9"
    with pytest.raises(ParameterError, match="0x81"):
        decoded(b"\x81", "x")  # cp1252 has no such character


# Running a notebook


def test_errors_that_a_notebook_shows_on_purpose_are_marked(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    cell = nbformat.v4.new_code_cell
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        cell("print('on we go\\nClosedError: it was closed\\n  TokenError: within a line')"),
        cell("raise ValueError('shown')", metadata={"tags": ["raises-exception"]}),
        cell("print('\\x1b[31mred\\x1b[0m \\x1b[2J \\u202e')\nprint('10%\\r50%\\r100%')"),
        cell("print('KeyError: of a cell that fails')\nraise ValueError('not meant')"),
    ]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    argv = ["run", str(tmp_path / "n.ipynb"), "tiny-stories", "--html", str(tmp_path / "p.html")]
    done = subprocess.run([*COMMAND, *argv], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0] == "running n.ipynb with tiny-stories.gguf"  # printed before the slow start of Jupyter
    assert "(intended) ClosedError: it was closed" in lines
    assert "  TokenError: within a line" in lines
    assert "(intended) ValueError: shown" in lines
    assert r"red \x1b[2J \u202e" in lines
    assert "100%" in lines
    assert "KeyError: of a cell that fails" in lines
    assert "ValueError: not meant" in lines
    assert done.returncode == 1
    assert "teachllama run: a cell failed" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "WARNING" not in done.stderr


def test_a_cell_that_takes_too_long_is_named(tmp_path: Path, capsys: Any) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("import time; time.sleep(600)")]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    page = tmp_path / "p.html"
    assert cli.main(["run", str(tmp_path / "n.ipynb"), "tiny-stories", "--timeout", "1", "--html", str(page)]) == 1
    assert "cell 1 ran longer than 1 s (--timeout)" in capsys.readouterr().err
    assert 'src="http' not in page.read_text("utf-8")  # a page without formulas loads no scripts from other servers


def test_a_page_with_formulas_keeps_the_script_that_draws_them() -> None:
    nbformat, nbconvert = pytest.importorskip("nbformat"), pytest.importorskip("nbconvert")
    for text, fetched in ((r"so $a^2$", True), ("plain", False)):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
        page = nbconvert.HTMLExporter().from_notebook_node(notebook)[0]
        assert ('src="https://' in _for_offline(page, notebook)) == fetched


def test_a_kernel_that_dies_is_named(tmp_path: Path, capsys: Any) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("import os; os._exit(1)")]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    assert cli.main(["run", str(tmp_path / "n.ipynb"), "tiny-stories", "--html", str(tmp_path / "p.html")]) == 1
    assert "died in cell 1" in capsys.readouterr().err


# The installation by `make`


def installer() -> Any:
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_installer_reads_what_pip_says() -> None:
    stage_of = installer().stage_of
    assert stage_of("Collecting numpy>=2.0 (from teachllama==0.1.0)\n", 3) == (
        "3 packages found, looking up numpy",
        False,
    )
    assert stage_of("  Downloading numba-0.61.2-cp311-cp311-manylinux2014_x86_64.whl (3.8 MB)\n", 9) == (
        "9 packages found, downloading numba (3.8 MB)",
        False,
    )
    assert stage_of("Installing collected packages: a, b-c, d\n", 3) == ("installing 3 packages", True)
    assert stage_of("Requirement already satisfied: pip in ...\n", 3) is None


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands in for Python")
@pytest.mark.parametrize("status", [0, 3])
def test_the_installer_is_brief_and_shows_all_that_pip_said_only_if_it_fails(status: int, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "lib" / "python3" / "site-packages" / "pip").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(
        "#!/bin/sh\necho Collecting numpy\necho 'Installing collected packages: a, b'\n"
        f"echo 'ERROR: the reason' >&2\nexit {status}\n"
    )
    python.chmod(0o755)
    command = [sys.executable, str(ROOT / "tools" / "install.py"), str(venv), "lab"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    lines = done.stderr.splitlines()
    assert lines[:2] == ["looking up and downloading Python packages ...", "installing 2 packages ..."]
    if status:
        assert "ERROR: the reason" in lines
        assert lines[-1].startswith("pip failed after")
    else:
        assert re.fullmatch(r"Python packages installed in \d+ s", lines[2])
        assert len(lines) == 3


def test_the_installers_line_moves_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 1

    module, screen = installer(), Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module.os, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    progress = module.Progress()
    progress.stage("looking")
    progress.detail("3 packages found")
    while "3 packages" not in screen.getvalue():
        progress._done.wait(0.1)
    progress.end()
    assert re.search(r"\r\x1b\[2K3 packages found: \d+ s", screen.getvalue())
    assert screen.getvalue().endswith("\r\x1b[2K")
