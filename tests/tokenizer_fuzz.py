"""Difficult texts for tokenizers, the same on every machine, and digests of ids. golden/tokenize_fuzz.json has
llama.cpp's."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from teachllama.tokenizer import Tokenizer

N_TEXTS = 400
CHUNK = 64  # texts with special tokens per digest

CONTROLS = [chr(c) for c in (*range(0x20), *range(0x7F, 0xA0), 0xAD)]
INVISIBLE = list("\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202e\u2060\u2064\ufeff\ufff9\ufffb\ufffd")
RARE = ["\ue000", "\ufdd0", "\ufffe", "\uffff", "\U0001fffe", "\U000e0041", "\U00010000", "\U00040000", "\U0010ffff"]
LITERALS = ["\u2581", "\u2581\u2581", " \u2581", "\u2581 ", "\u2581a", "\u0120", "\u010a", "<0x0A>", "<0xE2>"]
LITERALS += ["[EMPTY_3]", "\\udc80", "\\u2581", "%00", "^@"]  # escapes that are plain text
WORDS = [
    "a",
    " the",
    "The",
    " b",
    "ab",
    "x",
    "'s",
    "'LL",
    "1",
    "234",
    " 5",
    "é",
    "e\u0301",
    "中",
    "日本",
    " 😀",
    "٣",
    "²",
    ".",
]
WORDS += ["!?", "><", " (", "\n", "\n\n", "\r\n", "\t", " ", "  ", "    ", "\u00a0", "\u3000", "\u017f"]
KINDS = [CONTROLS, INVISIBLE, RARE, LITERALS, WORDS, WORDS, WORDS]


def pick(options: Sequence, *seed: object) -> object:
    """Picks one of the options, always the same for a seed."""
    return options[zlib.crc32(repr(seed).encode()) % len(options)]


def texts(special: Sequence[str]) -> list[str]:
    """Texts of one to eight pieces: control characters, U+2581, special tokens' texts, and words between them."""
    kinds = [*KINDS, special, special]
    made = [*CONTROLS, *INVISIBLE, *RARE, *LITERALS]
    made += [f"a{c}b {c} {c}{c}" for c in made]
    for i in range(N_TEXTS):
        n = 1 + zlib.crc32(f"n {i}".encode()) % 8
        made.append("".join(str(pick(pick(kinds, i, j, "kind"), i, j)) for j in range(n)))  # type: ignore[arg-type]
    return made


def special_texts(tokenizer: Tokenizer) -> list[str]:
    """The texts of a vocabulary's special tokens, in the order of their ids."""
    return [tokenizer.piece(i) for i in sorted(tokenizer._special)]


def all_texts(tokenizer: Tokenizer) -> list[str]:
    """Every text to try: `texts`, and each special token's text, alone and between words."""
    special = special_texts(tokenizer)
    return [*texts(special), *(t for one in special for t in (one, f"a{one} b {one}"))]


def digests(tokenizer: Tokenizer, ids: Sequence[Sequence[int]]) -> str:
    """Two hex digits for the ids of every text in `texts`, then four for every `CHUNK` of the rest."""
    n = len(texts(special_texts(tokenizer)))
    one_each = [f"{zlib.crc32(repr(list(one)).encode()) & 0xFF:02x}" for one in ids[:n]]
    rest = [f"{zlib.crc32(repr(list(ids[i : i + CHUNK])).encode()) & 0xFFFF:04x}" for i in range(n, len(ids), CHUNK)]
    return "".join(one_each) + " " + "".join(rest)
