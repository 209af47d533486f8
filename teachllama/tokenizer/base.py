"""Code shared by both tokenizers: special tokens, encoding word by word, decoding. Subclasses split text into words."""

from __future__ import annotations

import codecs
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from teachllama.errors import GGUFError, ParameterError, TokenError
from teachllama.metadata import Metadata
from teachllama.tokenizer.merging import Rank, merge, merge_long
from teachllama.whole_numbers import whole

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type of special tokens; any other is ordinary
MAX_STRINGS = 2**20  # tokens, or merges; the largest vocabularies have a quarter of that

# Tokens that end a generation. Files rarely list them all, so they are recognized by their texts, as in llama.cpp.
END_TEXTS = """<|eot_id|> <|im_end|> <|end|> <|endoftext|> <|end_of_text|> <|eom_id|> <end_of_turn> <end_of_utterance>
    <eos> </s> <EOT> _<EOT> [EOT] [EOS] <｜end▁of▁sentence｜>"""
# The same for fill-in-the-middle tokens, if the file does not name them. The last three end a generation.
FIM_TEXTS = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}

LONG = 40  # number of symbols from which the heap is faster than the plain loop
CACHE_WORDS, CACHE_CHARS = 50_000, 64  # maximum number of words cached with their ids, and the length of each


class Tokenizer(ABC):
    """Base class of both kinds: special tokens, the table of texts, decoding. `tokenizer_from_metadata` creates one.

    Attributes:
        vocab_size: number of tokens; ids are 0 to vocab_size - 1.
        bos_id: the token that begins a text, or None.
        eos_id: the token that ends a text, or None.
        add_bos: whether `encode(..., add_special=True)` begins with bos.
        add_eos: whether `encode(..., add_special=True)` ends with eos.
        eog_ids: the ids that end a generation: eos, end of turn, end of message, determined as in llama.cpp.
    """

    add_space_prefix = _add_bos_default = _whole_words = False
    _default_ids: Mapping[str, int] = {}
    _rank: Rank
    _split: Callable[[str], Iterable[str]]  # splits a text into words that are merged separately

    def __init__(self, metadata: Mapping[str, Any]):
        tokens = strings_of(metadata, "tokens")
        # All texts and their ids. Special and byte tokens are removed below, which leaves the tokens merging can make.
        self._ids = ids = {text or f"[EMPTY_{i}]": i for i, text in enumerate(tokens)}
        self.vocab_size = n = len(tokens)
        if not n or len(ids) != n:
            found = f"{Counter(tokens).most_common(1)[0][0]!r} twice" if n else "none"
            raise GGUFError(f"tokenizer.ggml.tokens: expected tokens that all differ, found {found}")
        self._texts = list(ids)
        types = numbers_of(metadata, "token_type", n, "iu")
        types = np.ones(n, np.int32) if types is None else types.copy()

        known = {name: token_id_of(metadata, name, n) for name in ("bos", "eos", "eot", "eom", *FIM_TEXTS)}
        for name, token_id in self._default_ids.items():
            known[name] = token_id if known[name] is None and token_id < n else known[name]
        ends = {ids[text] for text in END_TEXTS.split() if text in ids}
        types[list(ends)] = CONTROL  # whatever the file says
        for name, texts in FIM_TEXTS.items():
            if known[name] is None and (here := [ids[text] for text in texts.split() if text in ids]):
                known[name] = here[0]
                types[here[0]] = CONTROL
        end_names = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
        self.eog_ids = frozenset(ends) | {end for name in end_names if (end := known[name]) is not None}
        self.bos_id, self.eos_id = known["bos"], known["eos"]
        self.add_bos = flag_of(metadata, "add_bos_token", self._add_bos_default and self.bos_id is not None)
        self.add_eos = flag_of(metadata, "add_eos_token", False)
        for name, wanted in (("bos", self.add_bos), ("eos", self.add_eos)):
            if wanted and known[name] is None:
                raise GGUFError(f"tokenizer.ggml.add_{name}_token is true, but there is no {name}_token_id")

        self._byte_ids: dict[int, int] = {}  # byte -> the token that is only this byte
        self._raw: dict[int, bytes] = {}  # special or byte token -> what it decodes to; others decode to their text
        self._control = set(np.flatnonzero((types == CONTROL) | (types == UNKNOWN)).tolist())
        self._special = self._control | set(np.flatnonzero(types == USER_DEFINED).tolist())
        # The special tokens to search a text for, as (-length in bytes, id, text), grouped by their first characters.
        # Most of Gemma's 6,414 begin with "<unuse", so one search for that replaces a search for each.
        self._find: dict[str, list[tuple[int, int, str]]] = {}
        for i in self._special:
            text = self._texts[i]
            self._raw[i] = raw = text.encode("utf-8", "surrogateescape")
            self._find.setdefault(text[:6], []).append((-len(raw), i, text))
            del ids[text]
        self._cache: dict[str, list[int]] = {}

    @abstractmethod
    def _spell(self, word: str) -> str:
        """Writes a word in the vocabulary's characters."""

    @abstractmethod
    def _unspell(self, symbols: str) -> bytes:
        """The inverse of `_spell`, as UTF-8: the exact bytes that a token's text stands for."""

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False, errors: str = "strict"
    ) -> list[int]:
        """The token ids of a text.

        Args:
            text: any text; the empty one has no tokens.
            add_special: begin with bos and end with eos, if the file requires them (`add_bos`, `add_eos`) and the text
                does not have them already: with `parse_special`, `<s>` at its start counts as bos. (NOTE: llama.cpp
                adds a second one and warns. No model was trained with two.) A text that spells two is encoded
                unchanged, with a warning.
            parse_special: turn `<|im_end|>` and the like in the text into the control tokens they spell. Keep it False
                for untrusted text. User-defined tokens are found either way.
            errors: what to do with a byte that has no token (SmolLM2's vocabulary lacks eight, all rare). "strict"
                raises `TokenError`, so that decoding always restores the text. "drop" omits the byte, as llama.cpp
                does; `unwritable` lists the characters affected.

        Raises:
            TokenError: `text` is not a str; contains a lone surrogate (U+D800 to U+DFFF: half a character), whatever
                `errors` is; or contains a byte that has no token.
            ParameterError: `errors` is neither "strict" nor "drop".
        """
        ids = self._encode(text, parse_special, _dropped_bytes(errors))
        if add_special and self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        self._warn_of_two(ids)
        if add_special and self.add_eos and self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids.append(self.eos_id)
        return ids

    def unwritable(self, text: str) -> str:
        """The characters of a text that contain a byte without a token, each once, in the order of the text.

        `encode(text)` raises for them, and `encode(text, errors="drop")` omits those bytes.

        Raises:
            TokenError: `text` is not a str, or contains a lone surrogate.
        """
        found: list[str] = []
        self._encode(text, False, found)
        return "".join(dict.fromkeys(found))

    def _encode(self, text: str, parse_special: bool, dropped: list[str] | None) -> list[int]:
        """`encode` without bos and eos. `dropped` collects characters of which a byte was omitted; None: raise."""
        if not isinstance(text, str):
            raise TokenError(f"expected text to encode (str), found {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise TokenError(
                f"character {e.start} of the text is {text[e.start]!r}, a lone surrogate, which is no character; "
                "text.encode('utf-8', 'replace').decode() puts '?' in its place"
            ) from None
        ids: list[int] = []
        after_special = True
        for part in self._partition(text, set() if parse_special else self._control):
            if isinstance(part, str):
                ids += self._encode_part(" " + part if self.add_space_prefix and after_special else part, dropped)
            else:
                ids.append(part)
            after_special = not isinstance(part, str)
        return ids

    def encode_parts(self, parts: Iterable[tuple[str, bool]], *, errors: str = "strict") -> list[int]:
        """The ids of a text made of parts, each (text, parse_special).

        Like `encode` of the whole text, but control tokens are recognized only within parts that allow it, never across
        a boundary. Ordinary text merges across boundaries. For `errors` see `encode`.
        """
        ids: list[int] = []
        run, dropped = "", _dropped_bytes(errors)  # run: ordinary text between two control tokens
        for text, parse_special in parts:
            for part in self._partition(text, self._special - self._control) if parse_special else [text]:
                if isinstance(part, str):
                    run += part
                else:
                    ids += [*self._encode(run, False, dropped), part]
                    run = ""
        ids += self._encode(run, False, dropped)
        self._warn_of_two(ids)
        return ids

    def _warn_of_two(self, ids: list[int]) -> None:
        if self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            warnings.warn(
                f"the text begins with two beginning-of-text tokens ({self._texts[self.bos_id]!r}); models are trained "
                "with one: take one out of the text",
                stacklevel=4,
            )

    def _partition(self, text: str, skipped: set[int]) -> list[str | int]:
        """The text split at special tokens, each replaced by its id. The longest are found first, as in llama.cpp."""
        groups = [group for start, group in self._find.items() if start in text]
        found = [entry for group in groups for entry in group if entry[1] not in skipped and entry[2] in text]
        parts: list[str | int] = [text] if text else []
        for _, token_id, special in sorted(found):
            cut: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or special not in part:
                    cut.append(part)
                    continue
                for i, between in enumerate(part.split(special)):
                    cut += ([token_id] if i else []) + ([between] if between else [])
            parts = cut
        return parts

    def _encode_part(self, text: str, dropped: list[str] | None) -> list[int]:
        """The ids of a text between special tokens. Words repeat, so their ids are cached until the cache is full."""
        ids: list[int] = []
        for word in self._split(text):
            known = self._cache.get(word)
            if known is None:
                known, lost = self._encode_word(word, dropped)
                if len(word) <= CACHE_CHARS and not lost:
                    if len(self._cache) >= CACHE_WORDS:
                        self._cache.clear()
                    self._cache[word] = known
            ids += known
        return ids

    def _encode_word(self, word: str, dropped: list[str] | None) -> tuple[list[int], bool]:
        """The ids of a word, and whether a byte of it was omitted."""
        spelled = self._spell(word)
        if self._whole_words and spelled in self._ids:
            return [self._ids[spelled]], False
        ids: list[int] = []
        lost = False
        symbols = (merge if len(spelled) < LONG else merge_long)(list(spelled), self._rank)
        for symbol in symbols:
            if (token_id := self._ids.get(symbol)) is not None:
                ids.append(token_id)
                continue
            raw = self._unspell(symbol)
            here = [self._byte_ids[byte] for byte in raw if byte in self._byte_ids]
            lost = lost or len(here) < len(raw)
            ids += here
        if lost:
            missing = self._missing(word, symbols)
            if dropped is None:
                raise TokenError(
                    f"this vocabulary has no token for byte 0x{missing[0][0]:02X}, which is in {word[:40]!r}; "
                    "leave out the character it belongs to, or encode with errors='drop'"
                )
            dropped += [character for _, character in missing]
        return ids, lost

    def _missing(self, word: str, symbols: Iterable[str]) -> list[tuple[int, str]]:
        """The bytes of a word, given as its symbols, that have no token, each with its character."""
        owners = iter([character for character in word for _ in character.encode()])
        return [
            (byte, owner)
            for symbol in symbols
            for byte, owner in zip(self._unspell(symbol), owners)
            if symbol not in self._ids and byte not in self._byte_ids
        ]

    def _index(self, token_id: int) -> int:
        return whole("token id", token_id, 0, self.vocab_size - 1, error=TokenError)

    def piece_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token; they may be part of a character.

        Raises:
            TokenError: `token_id` is not an integer from 0 to vocab_size - 1 (NumPy integers are accepted, bool and
                float are not).
        """
        i = self._index(token_id)
        return self._unspell(self._texts[i]) if (raw := self._raw.get(i)) is None else raw

    def piece(self, token_id: int) -> str:
        """The text of one token. Incomplete characters appear as U+FFFD; `StreamDecoder` joins them across tokens."""
        return self.piece_bytes(token_id).decode("utf-8", "replace")

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of the ids. Special tokens are included as text; `skip_special` omits control tokens."""
        return StreamDecoder(self, skip_special=skip_special).feed(token_ids, final=True)


class StreamDecoder:
    """Decodes token ids incrementally: text is returned as soon as its characters are complete.

    The results of all calls of `feed`, joined, equal `tokenizer.decode` of all the ids, if the last call has
    `final=True`.

    Args:
        tokenizer: the tokenizer of these ids.
        skip_special: omit control tokens.
        after: the id before the first one, if the ids continue a text (for example a prompt's last). It matters only
            for SentencePiece, which puts a space before a text. Decoding removes that space, but only at the start of
            a text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False, after: int | None = None):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = after is None or tokenizer._index(after) in tokenizer._special

    def feed(self, token_ids: Iterable[int], final: bool = False) -> str:
        """Returns the text that these ids complete. With `final`, an incomplete character becomes U+FFFD."""
        tokenizer, pieces = self._tokenizer, []
        for i in map(tokenizer._index, token_ids):
            piece, special = tokenizer.piece_bytes(i), i in tokenizer._special
            # NOTE: llama.cpp removes the space only from the first token, though it adds one after every special token.
            # So it would return text after a user-defined token with an extra space.
            if self._at_start and not special and tokenizer.add_space_prefix:
                piece = piece.removeprefix(b" ")
            if not (self._skip_special and i in tokenizer._control):
                pieces.append(piece)
            self._at_start = special
        return self._utf8.decode(b"".join(pieces), final)


def _dropped_bytes(errors: str) -> list[str] | None:
    """A list to collect characters that lose a byte, or None if that is an error."""
    if errors not in ("strict", "drop"):
        raise ParameterError(f"errors is {errors!r}; expected 'strict' or 'drop'")
    return [] if errors == "drop" else None


def strings_of(metadata: Mapping[str, Any], name: str) -> Sequence[str]:
    return _keys(metadata).strings(name, MAX_STRINGS)


def numbers_of(metadata: Mapping[str, Any], name: str, n: int, kinds: str) -> np.ndarray | None:
    value: np.ndarray | None = _keys(metadata).array(name, n, kinds)
    return value


def token_id_of(metadata: Mapping[str, Any], name: str, n: int) -> int | None:
    keys, name = _keys(metadata), f"{name}_token_id"
    return keys.number(name, least=0, most=n - 1) if keys.has(name) else None


def flag_of(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    return _keys(metadata).flag(name, default)


def _keys(metadata: Mapping[str, Any]) -> Metadata:
    return Metadata(metadata, "tokenizer.ggml")
