"""Renders chat templates: runs as a process of its own, started by `sandbox.py`, and imports nothing of teachllama.

A line of JSON in, {"template": text, "calls": [variables, ...], and the limits "characters", "megabytes", "seconds"};
a line out, {"texts": [...]} or {"error": "syntax" | "refused" | "failed" | "limit", "message": ...}.

The environment is the one that Hugging Face's `apply_chat_template` makes, down to the name of each function:
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

sys.path[:] = json.loads(sys.argv[1])  # started with -I -S: the paths of the process that asks, and nothing else

# ruff: noqa: E402
from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MESSAGE = 300  # characters of an error


class Refused(TemplateError):
    """The template called `raise_exception`."""


class TooLong(Exception):
    """The text is longer than was asked for."""


class Generation(Extension):
    """`{% generation %}`, which marks a reply for those who train on it; here its body is rendered, and that is all."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: object) -> None:
    """What templates call to refuse a conversation."""
    raise Refused(str(message))


def tojson(
    x: object,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter would escape it for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(text: str) -> Template:
    """The template, ready to render. Not optimized: that would evaluate a hostile file's constants here and now."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], optimized=False
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(text)


def render(text: str, variables: dict[str, Any], most: int) -> str:
    """One rendering; raises `TooLong` past `most` characters."""
    pieces, length = [], 0
    for piece in compiled(text).generate(variables):
        length += len(piece)
        if length > most:
            raise TooLong
        pieces.append(piece)
    return "".join(pieces)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """A request's answer."""
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
    except SyntaxError as e:  # Python's own, of what Jinja compiled the template to: blocks nested too deep
        return {"error": "syntax", "message": str(e)[:MAX_MESSAGE]}
    except Exception as e:
        return {"error": "failed", "message": f"{type(e).__name__}: {e}"[:MAX_MESSAGE]}


def limit_memory(megabytes: int) -> None:
    """No more address space than this for the process, where the system can do that."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, ValueError, OSError):  # Windows, macOS: there only the asker watches
        pass


def main() -> None:
    """Answers requests until the asker is gone."""
    replies, silence = os.fdopen(os.dup(1), "wb"), open(os.devnull, "w")  # noqa: SIM115
    sys.stdout = sys.stderr = silence
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit_memory(request["megabytes"])
        # Should the asker die, nobody would stop this process. The watchdog is a thread that needs no interpreter lock.
        faulthandler.dump_traceback_later(20 * request["seconds"] + 10, exit=True, file=silence)
        reply = json.dumps(answer(request)).encode() + b"\n"
        faulthandler.cancel_dump_traceback_later()
        replies.write(reply)
        replies.flush()


if __name__ == "__main__":
    main()
