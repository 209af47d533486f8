"""`teachllama lab`: copies the course's notebooks, without outputs, and opens JupyterLab on the copies."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from teachllama import hub
from teachllama.cli.terminal import path_of, printable
from teachllama.cli.warmup import compile_ahead
from teachllama.errors import TeachLlamaError
from teachllama.lessons.course import copy_course

MODEL = "smollm2-135m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "folder",
        nargs="?",
        default="teachllama-course",
        help="where your copies go; existing files are never overwritten (default: ./%(default)s)",
    )
    parser.add_argument("--notebook", default="04", metavar="NUMBER", help="which one to open (default: %(default)s)")
    parser.add_argument("--copy-only", action="store_true", help="write the copies and do not start JupyterLab")


def run(args: argparse.Namespace) -> int:
    """Writes the copies, prepares model and kernels, and runs JupyterLab. Returns its exit status."""
    folder = path_of(args.folder)
    if not args.copy_only and find_spec("jupyterlab") is None:
        raise TeachLlamaError('JupyterLab is not installed: pip install "teachllama[lab]"')
    copies = copy_course(folder)
    kept = f", {len(copies.kept)} kept as they were" if copies.kept else ""
    print(f"{len(copies.written)} notebooks written to {printable(str(folder))}{kept}", flush=True)
    if args.copy_only:
        return 0
    number = args.notebook.zfill(2)
    chosen = sorted(folder.glob(f"{number}_*.ipynb")) if number.isdigit() else []
    if not chosen:
        here = ", ".join(sorted(path.name[:2] for path in folder.glob("[0-9][0-9]_*.ipynb")))
        raise TeachLlamaError(f"no notebook is numbered {args.notebook!r}; there is {here}")
    try:
        hub.find(MODEL)
    except TeachLlamaError:
        print(f"the notebooks use {MODEL} (98 MB), which is downloaded once", file=sys.stderr)
        hub.fetch(MODEL, progress=True)
    compile_ahead()  # otherwise the first cell that evaluates anything would take about 20 s
    try:
        return subprocess.run(jupyter_command(folder.resolve(), chosen[0].name), check=False).returncode
    except KeyboardInterrupt:  # JupyterLab has asked the user, and ends by itself
        return 130


def jupyter_command(folder: Path, notebook: str) -> list[str]:
    """The command that runs JupyterLab with `folder` as its root, opened on a notebook even if it prints a URL."""
    command = [
        sys.executable, "-m", "jupyterlab",
        f"--ServerApp.root_dir={folder}", f"--LabApp.default_url=/lab/tree/{notebook}",
    ]  # fmt: skip
    display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not display:
        command.append("--no-browser")
    if hasattr(os, "getuid") and os.getuid() == 0:  # Jupyter runs as root, as in containers, only with this option
        command.append("--allow-root")
    return command
