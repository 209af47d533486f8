"""Text to token ids and back: byte-level BPE and SentencePiece, from a GGUF file's metadata.

Handles the `tokenizer.ggml.*` keys, text and ids. Independent of models, files and chat templates.

Both kinds use the same algorithm (`merge`): start with single symbols and repeatedly join the best-ranked neighbours
until no pair can be joined. They differ in three ways:

                            byte-level BPE ("gpt2")          SentencePiece ("llama")
    input                   a word, found by a regex         a text, split only where no token can span the split
    starts with             the bytes of its UTF-8           its characters; one that is no token becomes byte tokens
    ranks neighbours by     their line in the merges list    the score of the token that they would make

Two guarantees: the ids are llama.cpp's (rules from its src/llama-vocab.cpp and src/unicode.cpp), and
`decode(encode(text)) == text` for every text that can be encoded. One exception: a SentencePiece vocabulary has the
same token for a space and for U+2581, and decodes it to a space. A NOTE marks each difference from llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teachllama.errors import GGUFError, UnsupportedModelError
from teachllama.tokenizer.base import StreamDecoder, Tokenizer
from teachllama.tokenizer.byte_level import PRE_TOKENIZERS, BytePairTokenizer
from teachllama.tokenizer.sentencepiece import SentencePieceTokenizer

__all__ = [
    "PRE_TOKENIZERS",
    "BytePairTokenizer",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "tokenizer_from_metadata",
]


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata (`GGUFFile.metadata`) describes.

    Raises:
        GGUFError: tokenizer data is missing, of the wrong type, or inconsistent.
        UnsupportedModelError: the kind of tokenizer or pre-tokenizer is not supported; the message names it.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        return BytePairTokenizer(metadata)
    if model == "llama":
        return SentencePieceTokenizer(metadata)
    if model is None:
        raise GGUFError("tokenizer.ggml.model is missing: the file holds no tokenizer")
    raise UnsupportedModelError(f"tokenizer.ggml.model {model!r} is not supported; supported: gpt2, llama")
