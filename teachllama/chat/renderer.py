"""Renders chat templates in a separate process, started by `sandbox.py`. Imports nothing from teachllama.

A request is a line of JSON: {"template": text, "calls": [variables, ...], and the limits "characters", "megabytes",
"seconds"}. The answer is a line of JSON: {"texts": [...]} or
{"error": "syntax" | "refused" | "failed" | "limit", "message": ...}.

The environment matches the one that Hugging Face's `apply_chat_template` makes, including the names of functions:
https://github.com/huggingface/transformers/blob/main/src/transformers/utils/chat_template_utils.py
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

sys.path[:] = json.loads(sys.argv[1])  # started with -I -S; only the paths of the calling process are used

# ruff: noqa: E402
from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MESSAGE = 300  # characters of an error message


class Refused(TemplateError):
    """The template called `raise_exception`."""


class TooLong(Exception):
    """The rendered text exceeds the limit."""


class Generation(Extension):
    """`{% generation %}`, which marks replies for training. Here its body is rendered without further effect."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Returns the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: object) -> None:
    """Called by templates to refuse a conversation."""
    raise Refused(str(message))


def tojson(
    x: object,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Unescaped JSON. Jinja's own filter would escape it for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(text: str) -> Template:
    """The compiled template, not optimized: optimizing would evaluate a hostile file's constants during compilation."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], optimized=False
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(text)


def render(text: str, variables: dict[str, Any], most: int) -> str:
    """Renders once. Raises `TooLong` after `most` characters."""
    pieces, length = [], 0
    for piece in compiled(text).generate(variables):
        length += len(piece)
        if length > most:
            raise TooLong
        pieces.append(piece)
    return "".join(pieces)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answers one request."""
    try:
        return {"texts": [render(request["template"], call, request["characters"]) for call in request["calls"]]}
    except Refused as e:
        return {"error": "refused", "message": str(e)[:MAX_MESSAGE]}
    except TemplateSyntaxError as e:
        return {"error": "syntax", "message": f"line {e.lineno}: {e.message}"[:MAX_MESSAGE]}
    except TooLong:
        return {"error": "limit", "message": f"more than {request['characters']:,} characters"}
    except MemoryError:
        return {"error": "limit", "message": f"more than {request['megabytes']} MB of memory"}
    except RecursionError:
        return {"error": "limit", "message": "deeper nesting than Python allows"}
    except SyntaxError as e:  # from Python, compiling the code that Jinja generated: blocks nested too deep
        return {"error": "syntax", "message": str(e)[:MAX_MESSAGE]}
    except Exception as e:
        return {"error": "failed", "message": f"{type(e).__name__}: {e}"[:MAX_MESSAGE]}


def limit_memory(megabytes: int) -> None:
    """Limits this process's address space, where the system supports it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, ValueError, OSError):  # on Windows and macOS only the calling process enforces the limit
        pass


def main() -> None:
    """Answers requests until standard input closes."""
    replies, silence = os.fdopen(os.dup(1), "wb"), open(os.devnull, "w")  # noqa: SIM115
    sys.stdout = sys.stderr = silence
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit_memory(request["megabytes"])
        # If the caller dies, nothing else stops this process. The watchdog is a thread that needs no interpreter lock.
        faulthandler.dump_traceback_later(20 * request["seconds"] + 10, exit=True, file=silence)
        reply = json.dumps(answer(request)).encode() + b"\n"
        faulthandler.cancel_dump_traceback_later()
        replies.write(reply)
        replies.flush()


if __name__ == "__main__":
    main()
