"""Byte-level BPE: a regex splits a text into words, and the bytes of each are merged."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import regex

from teachllama.errors import GGUFError, UnsupportedModelError
from teachllama.tokenizer.base import Tokenizer, strings_of
from teachllama.tokenizer.merging import NEVER

_GPT2 = r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Each digit is a word. The text between digits is split as in GPT-2, so spaces before a digit are handled like spaces
# at the end of the text.
_SMOLLM = r"\p{N}|'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
_LLAMA3 = (
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> (regex that finds words; whether a word in the vocabulary becomes that token without merging;
# whether bos is added by default). llama.cpp has one rule for the names in a row.
PRE_TOKENIZERS = {
    name: rule
    for names, rule in {
        "smollm starcoder refact command-r codeshell exaone minerva-7b": (_SMOLLM, False, False),
        "llama-bpe llama3 llama-v3 falcon3 pixtral": (_LLAMA3, True, True),
        "dbrx smaug-bpe": (_LLAMA3, False, False),
        "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan": (_LLAMA3.replace("{1,3}", ""), False, False),
        "gpt-2 phi-2 mpt olmo jais gigachat trillion exaone4": (_GPT2, False, False),
    }.items()
    for name in names.split()
}
# llama.cpp's "default", for files that name no pre-tokenizer. Each regex in turn splits the pieces of the previous one.
DEFAULT = (
    r"[\p{P}$+<=>^~|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
# GPT-2's alphabet, one letter per byte: the byte itself if printable, otherwise the next letter from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_TO_LETTER = {b: chr(b) for b in _PRINTABLE}
BYTE_TO_LETTER |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in BYTE_TO_LETTER)}
LETTER_TO_BYTE = {letter: bytes([b]) for b, letter in BYTE_TO_LETTER.items()}

MERGE = re.compile("[^ ]+ [^ ]+")  # a line of the merges: two symbols


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE: GPT-2, Llama 3, Qwen 2, SmolLM, and others with the same regexes (`PRE_TOKENIZERS`).

    NOTE: if the file names no bos or eos, there is none; llama.cpp uses token 11, as in Falcon. And `regex` covers
    characters that are missing from llama.cpp's tables, which are from about Unicode 15.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        name = metadata.get("tokenizer.ggml.pre", "")
        default = isinstance(name, str) and name in ("", "default")
        if not isinstance(name, str) or not (default or name in PRE_TOKENIZERS):
            raise UnsupportedModelError(
                f"pre-tokenizer (tokenizer.ggml.pre) {name!r} is not supported; supported: "
                f"{', '.join(PRE_TOKENIZERS)}, default"
            )
        pattern, self._whole_words, self._add_bos_default = PRE_TOKENIZERS.get(name, ("", False, False))
        super().__init__(metadata)
        self._byte_ids = {b: self._ids[letter] for b, letter in BYTE_TO_LETTER.items() if letter in self._ids}
        self._split = _in_turn(*DEFAULT) if default else regex.compile(pattern).findall
        if not name:
            warnings.warn(
                "the file names no pre-tokenizer (tokenizer.ggml.pre); going on with llama.cpp's default, which may "
                "cut words otherwise than the model was trained for: convert the model again with a newer converter",
                stacklevel=2,
            )
        lines = list(strings_of(metadata, "merges"))
        if not all(map(MERGE.fullmatch, lines)):
            i = next(i for i, line in enumerate(lines) if not MERGE.fullmatch(line))
            raise GGUFError(f"tokenizer.ggml.merges[{i}] is {lines[i]!r}; expected two symbols with a space between")
        # "left right" -> line number, of equal lines the first. No letter is a space, so the line can be the key.
        ranks = dict(zip(reversed(lines), reversed(range(len(lines)))))
        self._rank = lambda left, right: ranks.get(f"{left} {right}", NEVER)

    def _spell(self, word: str) -> str:
        return word.encode().decode("latin-1").translate(BYTE_TO_LETTER)

    def _unspell(self, symbols: str) -> bytes:
        return b"".join(LETTER_TO_BYTE.get(c) or c.encode("utf-8", "surrogateescape") for c in symbols)


def _in_turn(*patterns: str) -> Callable[[str], list[str]]:
    """Splits a text by each regex in turn. Each match is a piece, and so is the text between matches."""
    compiled = [regex.compile(f"({pattern})") for pattern in patterns]

    def split(text: str) -> list[str]:
        pieces = [text]
        for one in compiled:
            pieces = [part for piece in pieces for part in one.split(piece) if part]
        return pieces

    return split
