"""`teachllama lab`: your own copies of the course's notebooks, without outputs, and JupyterLab on them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from teachllama import hub
from teachllama.errors import TeachLlamaError
from teachllama.lessons.course import copy_course


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("teachllama-course"),
        help="where your copies go; what is there already is kept as it is (default: ./%(default)s)",
    )
    parser.add_argument("--notebook", default="04", metavar="NUMBER", help="which one to open (default: %(default)s)")
    parser.add_argument("--copy-only", action="store_true", help="write the copies and do not start JupyterLab")


def run(args: argparse.Namespace) -> int:
    """Writes the copies, then becomes JupyterLab; its exit status."""
    copies = copy_course(args.folder)
    print(f"{len(copies.written)} notebooks written to {args.folder}", end="")
    print(f", {len(copies.kept)} kept as they were" if copies.kept else "")
    if args.copy_only:
        return 0
    if find_spec("jupyterlab") is None:
        raise TeachLlamaError('JupyterLab is not installed: pip install "teachllama[lab]"')
    chosen = sorted(args.folder.glob(f"{args.notebook.zfill(2)}_*.ipynb"))
    if not chosen:
        raise TeachLlamaError(f"{args.folder} has no notebook numbered {args.notebook!r}")
    try:
        hub.find("smollm2-135m")
    except TeachLlamaError:
        print("the notebooks use a model of 98 MB; it is downloaded first, once", file=sys.stderr)
        hub.fetch("smollm2-135m")
    return subprocess.run(jupyter_command(args.folder.resolve(), chosen[0].name)).returncode


def jupyter_command(folder: Path, notebook: str) -> list[str]:
    """JupyterLab with `folder` as its root, opened on a notebook also where it prints an address."""
    command = [
        sys.executable, "-m", "jupyterlab",
        f"--ServerApp.root_dir={folder}", f"--LabApp.default_url=/lab/tree/{notebook}",
    ]  # fmt: skip
    display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not display:
        command.append("--no-browser")
    if hasattr(os, "getuid") and os.getuid() == 0:  # Jupyter refuses to run as root unless told, which containers need
        command.append("--allow-root")
    return command
