"""`teachllama generate`: continues a text, streaming it, and prints the speed. Shares its options with `chat`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from teachllama import hub
from teachllama.cli.numbers import count_from_text
from teachllama.cli.terminal import Status, Wrapped, output_width, visible
from teachllama.errors import ContextFullError, ParameterError
from teachllama.generate import GenerationStats, Token
from teachllama.model import Model, load_model
from teachllama.sampling import SamplingParams
from teachllama.speculation import PromptLookup

# option -> (type, or None for a count; default; help)
KNOBS = {
    "temperature": (float, 0.0, "0 takes the likeliest token, 1 the model's own distribution"),
    "top_k": (None, 0, "keep the K likeliest tokens; 0 keeps all"),
    "top_p": (float, 1.0, "keep the likeliest tokens that together reach P"),
    "min_p": (float, 0.0, "keep tokens at least P times as likely as the likeliest"),
    "repeat_penalty": (float, 1.0, "make tokens of the last 64 less likely; 1 does nothing"),
}
NUMBERS = "Numbers may be written 4096, 4,096, 4_096 or 4k (k is 1,024)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.epilog = NUMBERS
    parser.add_argument("model", help="a .gguf file, or a name that `teachllama models` lists")
    parser.add_argument("prompt", help="the text to continue; - reads it from standard input")
    add_sampling_arguments(parser, max_new_tokens=128)
    parser.add_argument(
        "--draft", metavar="N", help="guess that what followed the last N tokens follows again, and check several "
        "guesses at once: the same text, faster where it repeats itself (3 is a good N)"
    )  # fmt: skip


def add_sampling_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Adds the options that `generate` and `chat` share."""
    for name, (kind, default, text) in KNOBS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind or str, default=default, help=f"{text} (default: {default})"
        )
    parser.add_argument("--seed", type=int, help="random seed: the same seed gives the same text")
    parser.add_argument("--seq-len", metavar="N", help="context in positions (default: the model's own, up to 4096)")
    parser.add_argument(
        "--max-new-tokens", default=max_new_tokens, metavar="N", help="at most this many tokens (default: %(default)s)"
    )


def params_of(args: argparse.Namespace) -> SamplingParams:
    """The sampling options. Converts the counts in `args` to numbers. Raises `ParameterError` for one out of range."""
    args.max_new_tokens = count_from_text("--max-new-tokens", str(args.max_new_tokens), least=0)
    args.top_k = count_from_text("--top-k", str(args.top_k), least=0, most=2**31)
    if args.seq_len is not None:
        args.seq_len = count_from_text("--seq-len", args.seq_len)
    if args.seed is not None and args.seed < 0:
        raise ParameterError(f"--seed is {args.seed}; expected a whole number, 0 or more")
    return SamplingParams(**{name: getattr(args, name) for name in KNOBS})


def seq_len_of(args: argparse.Namespace, native: int) -> int:
    """The number of positions of the session."""
    return min(native, 4096) if args.seq_len is None else args.seq_len


def open_model(name: str) -> Model:
    """Loads a model by name or path."""
    return load_model(hub.find(name))


def stream(tokens: Iterator[Token], stats: Callable[[], GenerationStats], text: str = "", n_prompt: int = 0) -> str:
    """Prints a reply as it is generated, and its statistics on stderr. Ctrl-C ends the reply, not the program.

    Args:
        tokens: the reply.
        stats: returns the statistics at the end.
        text: text to print before the reply.
        n_prompt: number of prompt tokens, for the status line shown if reading takes long; 0 if unknown.

    Returns:
        why the reply ended: "stopped by you", or the session's `stop_reason`.
    """
    interrupted, lines = False, Wrapped(output_width)
    reading = Status(lambda: f"reading {n_prompt:,} tokens:" if n_prompt else "reading:")
    before = visible(text)  # written with the first token; until then the status line may be shown
    try:
        with reading:
            for token in tokens:
                reading.end()
                _write(lines.feed(before + visible(token.piece)))
                before = ""
    except KeyboardInterrupt:
        interrupted = True
    _write(f"{lines.feed(before)}{lines.flush()}\n")
    s = stats()
    reason = "stopped by you" if interrupted else s.stop_reason
    figures = f"{s.n_prompt} tokens read" + (f" at {s.prefill_tps:.0f}/s" if s.prefill_s else "")
    figures += f", {s.n_generated} written" + (f" at {s.decode_tps:.1f}/s" if s.decode_tps else "")
    figures += f", {s.accepted} of {s.drafted} guesses right" if s.drafted else ""
    print(f"[{figures}; {reason}]", file=sys.stderr, flush=True)
    return reason


def _write(text: str) -> None:
    print(text, end="", flush=True)


def decoded(data: bytes, what: str) -> str:
    """Decodes text from a pipe or a file as UTF-8, or else in the terminal's encoding.

    Raises:
        ParameterError: both fail.
    """
    for encoding in ("utf-8", getattr(sys.stdin, "encoding", None) or "utf-8"):
        try:
            return data.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
        except (UnicodeDecodeError, LookupError) as e:
            error = e
    at = error.start if isinstance(error, UnicodeDecodeError) else 0
    raise ParameterError(
        f"{what} is not UTF-8 text (byte 0x{data[at]:02X} at offset {at:,}). Convert it first, for example with "
        "`iconv -f latin1 -t utf-8 FILE`, or save the file as UTF-8"
    )


def prompt_of(text: str) -> str:
    """The prompt from the command line, or from standard input for "-".

    Raises:
        ParameterError: the prompt is empty, or not UTF-8.
    """
    if text == "-":
        buffer = getattr(sys.stdin, "buffer", None)
        text = decoded(buffer.read(), "standard input") if buffer else sys.stdin.read()
    else:
        try:
            text.encode()
        except UnicodeEncodeError:
            decoded(text.encode("utf-8", "surrogateescape"), "the prompt")  # raises an error that names the byte
    if not text:
        raise ParameterError("the prompt is empty; give a text to continue")
    return text


def tell_dropped(characters: str) -> None:
    """Prints on stderr the characters that the vocabulary cannot encode, if there are any."""
    if characters:
        codes = " ".join(f"U+{ord(c):04X}" for c in characters[:8])
        others = f" and {len(characters) - 8} others" if characters[8:] else ""
        print(f"! this model has no token for a byte of {codes}{others}: left out", file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> int:
    """Generates text. Returns 0, or 130 if Ctrl-C ended it."""
    params = params_of(args)
    draft = None if args.draft is None else PromptLookup(n=count_from_text("--draft", args.draft))
    prompt = prompt_of(args.prompt)
    with open_model(args.model) as model:
        native = model.config.native_seq_len
        seq_len = seq_len_of(args, model.config.seq_len)
        ids = model.encode(prompt, add_special=True, parse_special=True, errors="drop")
        tell_dropped(model.tokenizer.unwritable(prompt))
        if len(ids) > seq_len:
            more = f"--seq-len (this model was trained for {native:,})" if seq_len < native else "--seq-len"
            raise ContextFullError(
                f"the prompt is {len(ids):,} tokens long and does not fit in a context of {seq_len:,} positions: "
                f"{len(ids) - seq_len:,} too many. Shorten it, or choose a larger {more}"
            )
        with model.create_session(seq_len=seq_len, seed=args.seed) as session:
            tokens = session.generate(ids, params, max_new_tokens=args.max_new_tokens, draft=draft)
            reason = stream(tokens, lambda: session.stats, prompt, len(ids))
    return 130 if reason == "stopped by you" else 0
