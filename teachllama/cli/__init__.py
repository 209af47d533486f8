"""The `teachllama` command: one module per subcommand, imported only when that subcommand is used.

A subcommand's module has `add_arguments(parser)` and `run(args) -> int`. A `TeachLlamaError` becomes one line on stderr
and exit status 1. Ctrl-C gives exit status 130.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from teachllama.cli.terminal import guarded, named_as_options, printable
from teachllama.errors import TeachLlamaError

# command -> (module, one line of help)
COMMANDS = {
    "fetch": ("teachllama.cli.fetch", "download a model file into the cache folder and verify its checksum"),
    "models": ("teachllama.cli.models", "list local models"),
    "inspect": ("teachllama.cli.inspect", "print what is inside a GGUF file"),
    "kv": ("teachllama.cli.kv", "compute how much memory a model's KV cache takes"),
    "generate": ("teachllama.cli.generate", "continue a text, token by token"),
    "chat": ("teachllama.cli.chat", "chat with a model in the terminal"),
    "quantize": ("teachllama.cli.quantize", "copy a model with its weights in another type"),
    "session": ("teachllama.cli.session", "print what is inside a saved session"),
    "warmup": ("teachllama.cli.warmup", "precompile the kernels (once per machine)"),
    "lab": ("teachllama.cli.lab", "copy the course's notebooks, without outputs, and open JupyterLab on them"),
    "grade": ("teachllama.cli.grade", "grade a class's notebooks"),
    "run": ("teachllama.cli.run", "run a notebook of the course from the terminal"),
}
EPILOG = """\
`teachllama COMMAND --help` lists a command's options. To begin: `teachllama chat smollm2-135m` after
`teachllama fetch smollm2-135m`; `teachllama generate tiny-stories "One day"` needs no download."""


class Parser(argparse.ArgumentParser):
    """An argument parser that escapes control characters in its error messages."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and the message, and exits with status 2."""
        super().error(printable(message))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(
        "teachllama",
        description="Learn how large language models really run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    chosen = next((a for a in argv if not a.startswith("-")), None)
    name = f"teachllama {chosen}" if chosen in COMMANDS else "teachllama"
    with guarded(name):
        try:
            for command, (module, help_line) in COMMANDS.items():
                described = help_line[0].upper() + help_line[1:] + "."
                subparser = subparsers.add_parser(command, help=help_line, description=described)
                if command == chosen:  # the others are only listed in --help, and need not be imported
                    importlib.import_module(module).add_arguments(subparser)
            args = parser.parse_args(argv)
            if args.version:
                from teachllama import __version__

                print(f"teachllama {__version__}")
                return 0
            if args.command is None:
                parser.print_help()
                return 0
            return importlib.import_module(COMMANDS[args.command][0]).run(args)
        except TeachLlamaError as e:
            print(f"{name}: {printable(named_as_options(str(e)))}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `teachllama inspect FILE | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as e:
            if not e.filename:
                raise
            print(f"{name}: {printable(os.fsdecode(e.filename))}: {e.strerror}", file=sys.stderr)
            return 1
        except MemoryError:
            print(f"{name}: not enough memory; a smaller --seq-len, model or --sessions needs less", file=sys.stderr)
            return 1
