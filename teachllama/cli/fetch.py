"""`teachllama fetch`: brings a model file into the cache folder and prints its path, alone, on stdout."""

from __future__ import annotations

import argparse
import sys

from teachllama import hub


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "spec",
        metavar="MODEL",
        nargs="?",
        default="smollm2-135m",
        help=f"{', '.join(hub.KNOWN)}, or hf:OWNER/REPO/FILE.gguf[@REVISION] (default: %(default)s)",
    )
    parser.add_argument("--accept-licence", "--accept-license", action="store_true", help="accept the model's licence")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    path = hub.fetch(args.spec, accept_licence=args.accept_licence or _ask, progress=not args.quiet)
    if not args.quiet:
        listed = next(model for model in hub.list_models() if model.path == path)
        state = "already here: it came with teachllama" if listed.state == "shipped" else f"checksum {listed.state}"
        print(f"{listed.name}: {listed.nbytes / 1e6:,.1f} MB, {state}", file=sys.stderr)
    print(path)
    return 0


def _ask(model: hub.KnownModel) -> bool:
    """Asks on the terminal, where there is one; the answer is no unless it is yes."""
    if not sys.stdin.isatty():
        return False
    print(f"{model.title} ({model.nbytes / 1e6:,.0f} MB) comes under the {model.licence}:", file=sys.stderr)
    print(f"  {model.licence_url}", file=sys.stderr)
    print("Do you accept these terms? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
