"""The package as a whole: import cost, public names, the command line."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import teachllama as tl
from teachllama import cli
from tests.tools import tiny_model

HEAVY = ("matplotlib", "IPython", "ipykernel", "jupyterlab", "ipywidgets", "gguf", "nbformat", "huggingface_hub")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_pulls_in_neither_plotting_nor_jupyter() -> None:
    loaded = json.loads(python("import json, sys, teachllama; print(json.dumps(sorted(sys.modules)))"))
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}


def test_the_engine_imports_nothing_above_it() -> None:
    package = Path(tl.__file__).parent
    for path in package.glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(("import ", "from ")) and path.name not in ("__main__.py",):
                assert not re.search(r"teachllama\.(show|check|cli)\b", line), f"{path.name}: {line}"


def test_importing_the_package_alone_imports_none_of_its_modules() -> None:
    names = "sorted(n for n in sys.modules if n.split('.')[0] in ('teachllama', 'numpy', 'gguf'))"
    assert json.loads(python(f"import json, sys, teachllama; print(json.dumps({names}))")) == ["teachllama"]


def test_a_name_is_found_in_the_module_that_type_checkers_see() -> None:
    tree = ast.parse(Path(tl.__file__).read_text(encoding="utf-8"))
    (seen,) = [node.body for node in tree.body if isinstance(node, ast.If)]
    imported = {(n.module, alias.name) for n in seen if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert imported - {("teachllama", "memory")} == {(f"teachllama.{m}", name) for name, m in tl._MODULE_OF.items()}
    assert sorted(name for _, name in imported) == tl.__all__


def test_modules_and_names_are_attributes_without_an_import_of_their_own_and_others_are_not() -> None:
    names = "tl.hub.find.__name__, tl.memory.__name__, tl.Chat.__name__, hasattr(tl, 'chta')"
    assert python(f"import teachllama as tl; print({names})").split() == ["find", "teachllama.memory", "Chat", "False"]
    assert python("from teachllama import *; print(load_model.__name__, memory.__name__)").split()[0] == "load_model"
    assert set(tl.__all__) <= set(dir(tl))
    with pytest.raises(AttributeError, match="module 'teachllama' has no attribute 'load_modle'"):
        tl.load_modle
    assert not hasattr(tl, "__main__"), "importing it would run the command line"


def test_a_missing_dependency_is_named_and_not_the_module_that_needs_it() -> None:
    code = "import sys; sys.modules['psutil'] = None; import teachllama as tl\n"
    assert "psutil" in python(code + "try: tl.Chat\nexcept ImportError as e: print(e)")


def test_every_public_name_is_there_and_documented() -> None:
    for name in tl.__all__:
        assert getattr(tl, name).__doc__, name


def test_all_errors_are_under_one() -> None:
    from teachllama import errors

    kinds = [e for e in vars(errors).values() if isinstance(e, type)]
    assert len(kinds) >= 8
    assert all(issubclass(e, tl.TeachLlamaError) for e in kinds)


def test_set_num_threads_limits_blas_and_refuses_nonsense() -> None:
    from threadpoolctl import threadpool_info

    before = [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]
    tl.set_num_threads(1)
    assert all(lib["num_threads"] == 1 for lib in threadpool_info() if lib["user_api"] == "blas")
    tl.set_num_threads(max(before, default=1))
    for bad in (0, -1, 1.5, "2", None, True, 10**6):
        with pytest.raises(tl.ParameterError):
            tl.set_num_threads(bad)  # type: ignore[arg-type]


def test_the_command_line_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("command", ["inspect", "kv", "run", "fetch"])
def test_an_error_of_ours_is_one_line_and_status_1(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model")
    argv = {"run": ["run", "99"], "fetch": ["fetch", "no-such-model"]}.get(command, [command, str(bad)])
    assert cli.main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"teachllama {command}: ")
    assert "Traceback" not in err


def test_output_into_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "t.gguf")
    command = f"{sys.executable} -m teachllama inspect {path} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_run_executes_a_notebook_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# A title"),
        nbformat.v4.new_code_cell("import os; print('on', os.path.basename(os.environ['TEACHLLAMA_MODEL']))"),
        nbformat.v4.new_code_cell("6 * 7"),
    ]
    path, page, model = tmp_path / "n.ipynb", tmp_path / "n.html", tiny_model(tmp_path / "tiny.gguf")
    nbformat.write(notebook, path)
    assert cli.main(["run", str(path), str(model), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("A title", "on tiny.gguf", "42"))
    assert "on tiny.gguf" in page.read_text(encoding="utf-8")

    notebook.cells.append(nbformat.v4.new_code_cell("raise ValueError('a broken cell')"))
    nbformat.write(notebook, path)
    assert cli.main(["run", str(path), str(model), "--html", str(page)]) == 1
    assert "a broken cell" in capsys.readouterr().err
