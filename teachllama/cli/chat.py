"""`teachllama chat`: a conversation in the terminal. Ctrl-C stops a reply, but not the conversation."""

from __future__ import annotations

import argparse
import re
import sys

from teachllama.chat import FORMATS, SESSION_ENDINGS, Chat, messages_in
from teachllama.cli.generate import (
    NUMBERS,
    add_sampling_arguments,
    open_model,
    params_of,
    seq_len_of,
    stream,
    tell_dropped,
)
from teachllama.cli.prompt import Stdin, Terminal, reader
from teachllama.cli.terminal import named_as_options, path_of, printable, visible
from teachllama.errors import ChatError, ClosedError, ContextFullError, TeachLlamaError, TemplateError
from teachllama.sampling import SamplingParams

HELP = """/reset        start over (a system message stays)
/save FILE    write the conversation: NAME.session can go on without reading it all again, other names get JSON
/load FILE    continue a saved conversation
/trim         forget the oldest turns, to make room in the context
/show         print the conversation as the model reads it
/quit         leave (so does Ctrl-D)
Ctrl-C        stop a reply; what was said so far stays
Alt-Enter     begin a new line in a message; a pasted block is one message
A message may begin with a path, such as /etc/hosts. To begin one with a slash and a word, put a space first."""
EPILOG = f"""\
{NUMBERS}
Standard input that is not a terminal is read line by line: each line is a message or a command. Lines between two lines
of three double quotes are one message. Messages typed at a terminal are kept for the arrow keys of the next run, in a
file that only you can read; --no-history leaves that file alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("model", help="a .gguf file, or a name that `teachllama models` lists")
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument(
        "--template",
        metavar="T",
        help=f"a template to use instead of the file's own: a Jinja file, or {', '.join(FORMATS)}",
    )
    parser.add_argument("--load", metavar="FILE", help="continue a saved conversation")
    parser.add_argument("--no-history", action="store_true", help="neither read nor write the history of messages")
    add_sampling_arguments(parser, max_new_tokens=1024)


def run(args: argparse.Namespace) -> int:
    """Runs the conversation until the user quits."""
    params, template = params_of(args), _template(args.template)
    with open_model(args.model) as model:
        if template is None and model.chat_template is None:
            raise TemplateError(
                f"the file of {model.config.name!r} has no chat template; it may not be trained for chat. Choose one: "
                f"--template with {', '.join(FORMATS)}, or a Jinja file"
            )
        with model.create_session(seq_len=seq_len_of(args, model.config.seq_len), seed=args.seed) as session:
            chat = Chat(session, system=args.system, template=template)
            tell_dropped(chat.dropped)
            if args.load:
                _load(chat, args.load)
            messages = reader(history=not args.no_history)
            if isinstance(messages, Terminal):
                name = printable(model.config.name)
                print(f"{name}, {session.seq_len:,} positions of context. /help lists the commands.")
            return _talk(chat, messages, params, args.max_new_tokens)


def _talk(chat: Chat, messages: Stdin | Terminal, params: SamplingParams, max_new_tokens: int) -> int:
    """Answers messages and runs commands until the input ends. Returns the exit status."""
    at_terminal = isinstance(messages, Terminal)
    while True:
        try:
            if (message := messages.read()) is None:
                return 0
            if command := _command_in(message):
                if command in ("/quit", "/exit"):
                    return 0
                print(visible(_obey(chat, command, message.strip()[len(command) :].strip())), flush=True)
            elif message.strip():
                reason = _say(chat, message, params, max_new_tokens)
                if reason == "stopped by you" and not at_terminal:
                    return 130
        except ClosedError:
            raise
        except TeachLlamaError as e:
            print(f"! {printable(named_as_options(str(e)))}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            print()


def _command_in(message: str) -> str:
    """The command's name, or "" for a message, such as `/etc/passwd is ...` or any text of several lines."""
    match = re.match(r"/[A-Za-z?]*(?=\s|$)", message)
    return match[0].lower() if match and "\n" not in message.strip() else ""


def _say(chat: Chat, message: str, params: SamplingParams, max_new_tokens: int) -> str:
    """Sends a message and prints the reply. Returns why the reply ended."""
    if re.search("[\ud800-\udfff]", message):
        raise ChatError("the message contains bytes that are not UTF-8; it was not sent")
    try:
        reply = chat.say(message, params, max_new_tokens=max_new_tokens)
    except ContextFullError:
        raise _too_long(chat, [*chat.history, {"role": "user", "content": message}], _advice(chat)) from None
    tell_dropped(chat.dropped)
    reason = stream(reply, lambda: chat.session.stats)
    if reason == "context full":
        print(f"! the context is full: {_advice(chat)}", file=sys.stderr, flush=True)
    return reason


def _load(chat: Chat, name: str) -> int:
    path = path_of(name)
    try:
        n_new = chat.load(path)
        tell_dropped(chat.dropped)
        return n_new
    except ContextFullError:
        raise _too_long(chat, messages_in(path), f"start with {_larger(chat)}") from None


def _too_long(chat: Chat, messages: list[dict[str, str]], advice: str) -> ContextFullError:
    n, most = len(chat.encode(messages)), chat.session.seq_len
    return ContextFullError(
        f"the conversation is {n:,} tokens long, and the context has {most:,} positions, one of them for the reply: "
        f"{n - most + 1:,} too many. Nothing was changed; {advice}"
    )


def _advice(chat: Chat) -> str:
    return f"/trim forgets the oldest turns; starting with {_larger(chat)} makes more room"


def _larger(chat: Chat) -> str:
    native = chat.session.model.config.native_seq_len
    return "a larger --seq-len" + (f" (this model was trained for {native:,})" if chat.session.seq_len < native else "")


def _template(spec: str | None) -> str | None:
    if spec is None or spec in FORMATS:
        return spec
    try:
        return path_of(spec).read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise TemplateError(
            f"--template {spec}: neither one of {', '.join(FORMATS)} nor a readable file: {e}"
        ) from None


def _obey(chat: Chat, name: str, rest: str) -> str:
    """Runs a command and returns the text to print."""
    if name in ("/save", "/load") and not rest:
        return f"{name} needs a file name"
    if name == "/reset":
        chat.reset()
        return "the conversation starts over"
    if name == "/save":
        chat.save(path_of(rest))
        n = len(chat.history)
        held = f" and {chat.session.n_past:,} positions" if path_of(rest).suffix in SESSION_ENDINGS else ""
        return f"saved {n} message{'s' * (n != 1)}{held} to {printable(rest)}"
    if name == "/load":
        n = _load(chat, rest)
        return f"loaded {len(chat.history)} messages, {chat.session.n_past:,} tokens, {n:,} of them read again"
    if name == "/trim":
        n = chat.trim()
        return f"forgot the {n} oldest message{'s' * (n != 1)}" if n else "nothing to forget: there is room for a reply"
    if name == "/show":
        return chat.render() if chat.history else "nothing was said yet"
    return HELP if name in ("/help", "/?") else f"no such command: {name}\n{HELP}"
