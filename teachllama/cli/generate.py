"""`teachllama generate`: goes on with a text, streaming, and says how fast it was. Its flags are shared with `chat`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator

from teachllama.errors import ParameterError
from teachllama.generate import GenerationStats, Token
from teachllama.model import load_model
from teachllama.sampling import SamplingParams

KNOBS = {
    "temperature": (float, 0.0, "0 takes the likeliest token, 1 the model's own distribution"),
    "top_k": (int, 0, "keep the K likeliest tokens; 0 keeps all"),
    "top_p": (float, 1.0, "keep the likeliest tokens that together reach P"),
    "min_p": (float, 0.0, "keep tokens at least P times as likely as the likeliest"),
    "repeat_penalty": (float, 1.0, "make tokens of the last 64 less likely; 1 does nothing"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("model", help="a .gguf file, or a name that `teachllama models` lists")
    parser.add_argument("prompt", help="the text to go on with; - reads it from standard input")
    add_sampling_arguments(parser, max_new_tokens=128)


def add_sampling_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Adds the flags that `generate` and `chat` share."""
    for name, (kind, default, text) in KNOBS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{text} (default: {default})"
        )
    parser.add_argument("--seed", type=int, help="of the random numbers: the same seed, the same text")
    parser.add_argument("--seq-len", type=int, metavar="N", help="positions (default: the model's own, up to 4096)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, metavar="N", help="at most (default: %(default)s)"
    )


def params_of(args: argparse.Namespace) -> SamplingParams:
    """The sampling flags; raises `ParameterError` for one out of range."""
    return SamplingParams(**{name: getattr(args, name) for name in KNOBS})


def seq_len_of(args: argparse.Namespace, native: int) -> int:
    """How many positions the session gets."""
    return min(native, 4096) if args.seq_len is None else args.seq_len


def stream(tokens: Iterator[Token], stats: Callable[[], GenerationStats]) -> None:
    """Prints a reply as it is made, and its figures on stderr. Ctrl-C ends the reply, not the program."""
    interrupted = False
    try:
        for token in tokens:
            print(printable(token.piece), end="", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    print(flush=True)
    s = stats()
    figures = f"{s.n_prompt} tokens read" + (f" at {s.prefill_tps:.0f}/s" if s.prefill_s else "")
    figures += f", {s.n_generated} written" + (f" at {s.decode_tps:.1f}/s" if s.decode_tps else "")
    print(f"[{figures}; {'stopped by you' if interrupted else s.stop_reason}]", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text without control characters but newline and tab: a model's output may not command the terminal."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def run(args: argparse.Namespace) -> int:
    """Generates; 0 if it began."""
    params = params_of(args)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt:
        raise ParameterError("the prompt is empty; give a text to go on with")
    with (
        load_model(args.model) as model,
        model.create_session(seq_len=seq_len_of(args, model.config.seq_len), seed=args.seed) as session,
    ):
        tokens = session.generate(prompt, params, max_new_tokens=args.max_new_tokens)
        print(printable(prompt), end="", flush=True)
        stream(tokens, lambda: session.stats)
    return 0
