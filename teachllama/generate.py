"""The output of generation: tokens as text, cut at stop strings, and statistics. Independent of models."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teachllama.errors import ParameterError

if TYPE_CHECKING:
    from teachllama.tokenizer import Tokenizer


def checked_stops(stop: object) -> list[str]:
    """One stop string or several, as a list; raises `ParameterError` for anything else."""
    stops: list[Any] = [stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else list(stop)
    if any(not isinstance(s, str) or not s for s in stops):
        raise ParameterError(f"stop is {stop!r}; expected text or a list of texts, none empty")
    return stops


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    id: int
    piece: str  # the text it adds; empty where it ends inside a character that the next token completes


@dataclass(slots=True)
class GenerationStats:
    """Statistics of one call of `generate`, in tokens and seconds; time outside the generator is not counted."""

    n_prompt: int = 0
    n_generated: int = 0
    prefill_s: float = 0.0  # evaluating the prompt
    ttft_s: float = 0.0  # time to first token: the prefill and the first sample
    decode_s: float = 0.0  # everything after the first token
    stop_reason: str = ""  # "length", "end of text", "stop string" or "context full"; empty while running
    reused: int = 0  # positions that were already in the cache
    recomputed: int = 0  # positions of a loaded session or lost worker that were evaluated again
    drafted: int = 0  # guesses that were evaluated: see `speculation.py`
    accepted: int = 0  # guesses that became tokens

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens per second."""
        return self.n_prompt / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tps(self) -> float:
        """Generated tokens per second, after the first."""
        return (self.n_generated - 1) / self.decode_s if self.decode_s and self.n_generated > 1 else 0.0


class TextStream:
    """Turns ids into text; holds tokens back while a character, or a possible stop string, is incomplete."""

    def __init__(self, tokenizer: Tokenizer, stops: list[str]):
        self._bytes_of, self._stops = tokenizer.piece_bytes, stops
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[Token] = []
        self.stopped = False

    def push(self, token_id: int) -> list[Token]:
        """The tokens that can be shown now that this one is known."""
        self._held.append(Token(token_id, self._utf8.decode(self._bytes_of(token_id))))
        text = "".join(t.piece for t in self._held)
        found = [at for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        open_character = self._utf8.getstate()[0]
        open_stop = any(text.endswith(s[:n]) for s in self._stops for n in range(1, len(s)))
        return [] if open_character or open_stop else self._release()

    def flush(self) -> list[Token]:
        """The tokens still held back when generation ends; bytes of an unfinished character become U+FFFD."""
        rest = self._utf8.decode(b"", final=True)
        if self._held and rest:
            self._held[-1] = Token(self._held[-1].id, self._held[-1].piece + rest)
        return [] if self.stopped else self._release()

    def _release(self, n_characters: int | None = None) -> list[Token]:
        """Everything held, or as much of it as makes up the first n characters."""
        held, self._held = self._held, []
        if n_characters is None:
            return held
        shown = []
        for token in held:
            if n_characters <= 0:
                break
            shown.append(Token(token.id, token.piece[:n_characters]))
            n_characters -= len(token.piece)
        return shown
