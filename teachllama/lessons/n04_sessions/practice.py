"""Practice sessions for the exercise about `generate`: they behave like sessions whose model has memorized one
continuation, and record how they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from teachllama.errors import TeachLlamaError, TokenError

END, TURN = b"<|end|>", b"<|turn|>"  # the practice vocabulary's two tokens that end a text
PROMPT = b"Tell me a story"


@dataclass(frozen=True)
class Scene:
    """One practice run: the pieces that the model generates, and the expected text."""

    about: str
    pieces: tuple[bytes, ...]
    expected: str
    stop: str = "###"
    max_new_tokens: int = 20


SCENES = (
    Scene("the model ends its text", (b"Once", b" upon", b" a", b" time", END), "Once upon a time"),
    Scene("the model ends its turn", (b"Hello", b" you", TURN), "Hello you"),
    Scene("three tokens at most", (b"one", b" two", b" three", b" four", b" five"), "one two three", "###", 3),
    Scene("one token at most", (b"one", b" two", b" three"), "one", "###", 1),
    Scene("the stop string is one token", (b"The", b" end", b".", b" More"), "The end", "."),
    Scene("the stop string is inside a token", (b"I say", b" yes!\n\nNo", b" more"), "I say yes!", "\n\n"),
    Scene("the stop string takes three tokens", (b"Hi", b" you", b"\nUs", b"er", b": a", b" b"), "Hi you", "\nUser:"),
    Scene("the stop string only begins", (b"\nUs", b"er", b"s win", END), "\nUsers win", "\nUser:"),
    Scene("characters of two tokens", (b" caf", b"\xc3", b"\xa9 ", b"\xf0\x9f", b"\x98\x80", END), " café \U0001f600"),
)  # fmt: skip


class _RanAway(BaseException):
    """Far too many calls. Not an `Exception`, so that a learner's `except Exception` does not hide it."""


class PracticeTokenizer:
    """A vocabulary of a few pieces, with the members of the real one that generation needs."""

    def __init__(self, pieces: Iterable[bytes]):
        self._pieces = list(dict.fromkeys((END, TURN, *pieces)))
        self.eos_id, self.bos_id, self.eog_ids, self.vocab_size = 0, None, frozenset((0, 1)), len(self._pieces)

    def piece_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise TokenError(f"token id {token_id} is outside the vocabulary, 0 to {self.vocab_size - 1}")
        return self._pieces[token_id]

    def piece(self, token_id: int) -> str:
        return self.piece_bytes(token_id).decode("utf-8", "replace")

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.piece_bytes(i) for i in ids).decode("utf-8", "replace")

    def encode(self, text: str, **_: bool) -> list[int]:
        """Greedy: takes the longest piece that matches, repeatedly. Bytes that match no piece are skipped."""
        rest, ids = text.encode(), []
        while rest:
            best = max((p for p in self._pieces if rest.startswith(p)), key=len, default=b"")
            ids += [self._pieces.index(best)] if best else []
            rest = rest[len(best) or 1 :]
        return ids


class PracticeModel:
    """The model of a practice session."""

    def __init__(self, tokenizer: PracticeTokenizer):
        self.tokenizer = tokenizer
        self.decode, self.piece, self.encode = tokenizer.decode, tokenizer.piece, tokenizer.encode
        self.config = SimpleNamespace(vocab_size=tokenizer.vocab_size, seq_len=4096)


class PracticeSession:
    """Behaves like a session whose model has memorized one continuation, and records how it is used.

    The next token depends only on the position: the scene's pieces in order, then an endless filler.
    """

    def __init__(self, scene: Scene):
        self._prompt_pieces = (PROMPT, scene.stop.encode())  # a stop string in the prompt must not count
        tokenizer = PracticeTokenizer((*self._prompt_pieces, *scene.pieces, b" blah"))
        self.model = PracticeModel(tokenizer)
        index = tokenizer._pieces.index
        self.prompt_ids, self.script = [index(p) for p in self._prompt_pieces], [index(p) for p in scene.pieces]
        self.seq_len, self.tokens = 4096, list[int]()
        self.n_looks = 0  # reads of the same logits
        self.mistakes: set[str] = set()
        self._left = 10 * scene.max_new_tokens + 100

    @property
    def n_past(self) -> int:
        return len(self.tokens)

    @property
    def logits(self) -> np.ndarray:
        if not self.tokens:
            self.mistakes.add("no_prompt")
            raise TeachLlamaError("no logits yet: eval() at least one token first (rewind() and reset() drop them)")
        self._count()
        self.n_looks += 1
        ahead = self.n_past - len(self.prompt_ids)
        token = self.script[ahead] if 0 <= ahead < len(self.script) else self.model.tokenizer.vocab_size - 1
        return np.where(np.arange(self.model.tokenizer.vocab_size) == token, 9, 0).astype(np.float32)

    def sample(self, params: object = None) -> int:
        return int(np.argmax(self.logits))

    def eval(self, token_ids: Any, *, all_logits: bool = False) -> np.ndarray:
        self._count()
        if isinstance(token_ids, str):
            raise TokenError("expected token ids, found text; use model.encode(text)")
        ids = np.atleast_1d(token_ids if isinstance(token_ids, (int, np.integer, np.ndarray)) else list(token_ids))
        if not ids.size or ids.dtype.kind not in "iu":
            raise TokenError("expected one token id or more, as integers")
        for i in ids.tolist():
            self.model.tokenizer.piece_bytes(i)  # raises outside the vocabulary
        self.tokens += ids.tolist()
        self.n_looks = 0
        logits = self.logits
        self.n_looks = 0
        return np.repeat(logits[None], len(ids), 0) if all_logits else logits

    def generate(self, *_: object, **__: object) -> Iterator[Any]:
        self.mistakes.add("uses_generate")
        raise TeachLlamaError("generate() is what you are writing: this practice session leaves it to you")

    def rewind(self, n_past: int) -> None:
        del self.tokens[n_past:]

    def reset(self) -> None:
        self.tokens.clear()

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.mistakes.add("no_limit")
            raise _RanAway
