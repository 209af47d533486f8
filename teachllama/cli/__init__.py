"""The `teachllama` command: one module a subcommand, imported only when it is the one asked for.

A subcommand's module has `add_arguments(parser)` and `run(args) -> int`. Errors of ours become one line on stderr and
exit status 1; Ctrl-C becomes status 130.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from teachllama.errors import TeachLlamaError

# command -> (module, one line of help)
COMMANDS = {
    "fetch": ("teachllama.cli.fetch", "fetch a model file, checksum verified, into the cache folder"),
    "models": ("teachllama.cli.models", "list the models that are here"),
    "inspect": ("teachllama.cli.inspect", "print what is inside a GGUF file"),
    "kv": ("teachllama.cli.kv", "how much memory the KV cache of a model takes"),
    "generate": ("teachllama.cli.generate", "go on with a text, token by token"),
    "chat": ("teachllama.cli.chat", "talk with a model in the terminal"),
    "warmup": ("teachllama.cli.warmup", "compile the kernels for this processor ahead, once"),
    "lab": ("teachllama.cli.lab", "open the course in JupyterLab, on copies of your own without outputs"),
    "run": ("teachllama.cli.run", "run a notebook of the course from the terminal"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser("teachllama", description="Learn how large language models really run.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((a for a in argv if not a.startswith("-")), None)
    for name, (module, help_line) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_line, description=help_line[0].upper() + help_line[1:] + ".")
        if name == chosen:  # the others are only named in --help, and need not be imported
            importlib.import_module(module).add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except TeachLlamaError as e:
        print(f"teachllama {args.command}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `teachllama inspect FILE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
