"""SentencePiece of the BPE kind, with byte fallback: characters are merged by score. Unigram is not supported."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from teachllama.errors import GGUFError
from teachllama.tokenizer.base import Tokenizer, flag_of, numbers_of
from teachllama.tokenizer.merging import NEVER

SPACE = "▁"  # U+2581, how SentencePiece writes a space
BORDER = "\ud800"  # separates the texts of two tokens; a lone surrogate, so it is in none of them


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece of the BPE kind with byte fallback: Llama 2, Mistral, TinyLlama, Gemma. Unigram is not supported.

    A U+2581 in the text is read as a space, as in SentencePiece and llama.cpp. Both characters have the same tokens, so
    decoding returns a space for either.
    """

    _add_bos_default = True
    _default_ids: Mapping[str, int] = {"bos": 1, "eos": 2}

    def __init__(self, metadata: Mapping[str, Any]):
        super().__init__(metadata)
        self.add_space_prefix = flag_of(metadata, "add_space_prefix", True)
        for byte in range(256):
            if (i := self._ids.pop(f"<0x{byte:02X}>", None)) is not None:
                self._byte_ids[byte], self._raw[i] = i, bytes([byte])
        scores = numbers_of(metadata, "scores", self.vocab_size, "iuf")
        scores = np.zeros(self.vocab_size) if scores is None else scores
        if np.isnan(scores).any():
            raise GGUFError("tokenizer.ggml.scores holds NaN; expected numbers")
        ids = self._ids
        costs = array("d", (-scores.astype(np.float64)).tobytes())  # a list would hold an object per score
        self._rank = lambda left, right: NEVER if (i := ids.get(left + right)) is None else costs[i]
        # A new word begins before each space, since no token spans it. Exception: after a character that some token has
        # before a space (Gemma has ">▁</").
        glue = set(re.findall(f"([^{SPACE}{BORDER}]){SPACE}", BORDER.join(self._texts)))
        words = re.compile(f"(?<=[^ {re.escape(''.join(glue))}])(?= )").split
        self._split = lambda text: words(text.replace(SPACE, " "))

    def _spell(self, word: str) -> str:
        return word.replace(" ", SPACE)

    def _unspell(self, symbols: str) -> bytes:
        return symbols.replace(SPACE, " ").encode("utf-8", "surrogateescape")
