"""`teachllama fetch`: downloads a model file into the cache folder and prints only its path on stdout."""

from __future__ import annotations

import argparse
import os
import sys

from teachllama import hub
from teachllama.cli.terminal import is_terminal, printable
from teachllama.errors import FetchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "spec",
        metavar="MODEL",
        nargs="?",
        default="smollm2-135m",
        help=f"{', '.join(hub.KNOWN)}, or hf:OWNER/REPO/FILE.gguf[@REVISION] (default: %(default)s)",
    )
    parser.add_argument("--accept-licence", "--accept-license", action="store_true", help="accept the model's licence")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no progress")


def run(args: argparse.Namespace) -> int:
    """Fetches the model unless it is already downloaded."""
    try:
        path = hub.fetch(args.spec, accept_licence=args.accept_licence or _ask, progress=not args.quiet)
    except KeyboardInterrupt:
        print(f"\nstopped; `teachllama fetch {printable(args.spec)}` will resume", file=sys.stderr)
        return 130
    if not args.quiet:
        listed = next(model for model in hub.list_models() if model.path == path)
        state = "already here, part of teachllama" if listed.state == "shipped" else f"checksum {listed.state}"
        parts = len(hub.parts_of(args.spec))
        more = f", one of {parts} parts, which are all here" if parts > 1 else ""
        print(f"{printable(listed.name)}: {listed.nbytes / 1e6:,.1f} MB, {state}{more}", file=sys.stderr)
    if is_terminal(sys.stdout) or not hasattr(sys.stdout, "buffer"):
        print(printable(str(path)))
    else:  # for a script, byte for byte
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + os.linesep.encode())
        sys.stdout.buffer.flush()
    return 0


def _ask(model: hub.KnownModel) -> bool:
    """Asks for consent on the terminal, if there is one. Refusal is an error that mentions the command-line option."""
    if is_terminal(sys.stdin):
        print(f"{model.title} ({model.nbytes / 1e6:,.0f} MB) is licensed under the {model.licence}:", file=sys.stderr)
        print(f"  {model.licence_url}", file=sys.stderr)
        print("Do you accept these terms? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return True
    raise FetchError(
        f"{model.name} is licensed under the {model.licence} ({model.licence_url}), which was not accepted. "
        f"Read it, then run `teachllama fetch {model.name} --accept-licence`"
    )
