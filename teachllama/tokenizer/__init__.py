"""Text to token ids and back: byte-level BPE and SentencePiece, from a GGUF file's metadata.

Knows the `tokenizer.ggml.*` keys, text and ids; knows nothing of models, files, or chat templates.

Both kinds do the same thing (`merge`): begin with single symbols, and join the neighbours that rank best, again and
again, until no neighbours are left that may be joined. They differ in three ways:

                            byte-level BPE ("gpt2")          SentencePiece ("llama")
    is given                a word, cut out by a regex       a text, cut only where no token can reach across
    begins with             the bytes of its UTF-8           its characters; one that is no token becomes byte tokens
    ranks neighbours by     their line in the merges list    the score of the token that they would make

Two promises: the ids are llama.cpp's (rules from its src/llama-vocab.cpp and src/unicode.cpp), and
`decode(encode(text)) == text` for every text that can be encoded; only that a SentencePiece vocabulary has one token
for a space and U+2581, and gives back a space. Where we differ from llama.cpp, a NOTE says so.
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
        GGUFError: tokenizer data that is missing, of the wrong type, or inconsistent.
        UnsupportedModelError: a kind of tokenizer, or a pre-tokenizer, that this package lacks; the message names it.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        return BytePairTokenizer(metadata)
    if model == "llama":
        return SentencePieceTokenizer(metadata)
    if model is None:
        raise GGUFError("tokenizer.ggml.model is missing: the file holds no tokenizer")
    raise UnsupportedModelError(f"tokenizer.ggml.model {model!r} is not supported; supported: gpt2, llama")
