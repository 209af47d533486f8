"""`teachllama chat`: a conversation in the terminal. Ctrl-C stops a reply; the conversation goes on."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from teachllama.chat import FORMATS, Chat
from teachllama.cli.generate import add_sampling_arguments, params_of, printable, seq_len_of, stream
from teachllama.errors import ClosedError, TeachLlamaError, TemplateError
from teachllama.model import load_model

HELP = """/reset        begin again (a system message stays)
/save FILE    write the conversation to a JSON file
/load FILE    go on with one
/trim         forget the oldest turns, when the context is full
/show         the conversation as the model reads it
/quit         leave (so does Ctrl-D)
Ctrl-C        stop a reply; what was said so far stays"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("model", help="a .gguf file, or a name that `teachllama models` lists")
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument(
        "--template", metavar="T", help=f"in place of the file's own: a Jinja file, or {', '.join(FORMATS)}"
    )
    parser.add_argument("--load", metavar="FILE", help="go on with a saved conversation")
    add_sampling_arguments(parser, max_new_tokens=1024)


def run(args: argparse.Namespace) -> int:
    """Talks until the user leaves."""
    params = params_of(args)
    with contextlib.suppress(ImportError):  # Windows has none, and edits lines without it
        import readline  # noqa: F401  (its import alone gives input() arrow keys and a history)
    with (
        load_model(args.model) as model,
        model.create_session(seq_len=seq_len_of(args, model.config.seq_len), seed=args.seed) as session,
    ):
        chat = Chat(session, system=args.system, template=_template(args.template))
        if args.load:
            chat.load(args.load)
        if sys.stdin.isatty():
            print(f"{printable(model.config.name)}, {session.seq_len} positions of context. /help lists the commands.")
        while (line := _read()) is not None:
            try:
                if line.startswith("/"):
                    if line.split()[0] in ("/quit", "/exit"):
                        return 0
                    print(printable(_command(chat, line)), flush=True)
                elif line:
                    reply = chat.say(line, params, max_new_tokens=args.max_new_tokens)
                    if chat.dropped:
                        print(f"! {_dropped(chat.dropped)}", file=sys.stderr, flush=True)
                    stream(reply, lambda: session.stats)
            except ClosedError:
                raise
            except TeachLlamaError as e:
                print(f"! {printable(str(e))}", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                print()
    return 0


def _read() -> str | None:
    """The next line; None at the end. Ctrl-C clears the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)", flush=True)


def _dropped(characters: str) -> str:
    codes = " ".join(f"U+{ord(c):04X}" for c in characters[:8])
    return f"this model has no token for a part of {codes}{' and others' if characters[8:] else ''}: left out"


def _template(spec: str | None) -> str | None:
    if spec is None or spec in FORMATS:
        return spec
    try:
        return Path(spec).read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise TemplateError(
            f"--template {spec}: neither one of {', '.join(FORMATS)} nor a readable file: {e}"
        ) from None


def _command(chat: Chat, line: str) -> str:
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in ("/save", "/load") and not rest:
        return f"{name} needs a file name"
    if name == "/reset":
        chat.reset()
        return "the conversation begins again"
    if name == "/save":
        chat.save(rest)
        return f"saved {len(chat.history)} messages to {rest}"
    if name == "/load":
        chat.load(rest)
        return f"loaded {len(chat.history)} messages, {chat.session.n_past} tokens"
    if name == "/trim":
        return f"forgot the {chat.trim()} oldest messages"
    if name == "/show":
        return chat.render() if chat.history else "nothing was said yet"
    return HELP if name == "/help" else f"no such command: {name}\n{HELP}"
