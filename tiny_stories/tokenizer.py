"""The byte-level BPE of the stories, in the two lists that GGUF wants: tokens and merges.

Token 0 is <|endoftext|>, which begins and ends every story; then the 256 bytes; then one token a merge. Words are cut
as GPT-2 cuts them (`tokenizer.ggml.pre` "gpt-2"), so that a token never reaches across two words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
END_ID = 0


@dataclass(frozen=True)
class Vocabulary:
    """tokens: text of each id, in GPT-2's alphabet for bytes; merges: "left right", best first."""

    tokens: list[str]
    merges: list[str]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"tokens": self.tokens, "merges": self.merges}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def tokenizer(self) -> Tokenizer:
        """The same vocabulary as a `tokenizers.Tokenizer`, which encodes a corpus quickly."""
        merges = [(left, right) for left, right in (line.split(" ") for line in self.merges)]
        tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(self.tokens)}, merges))
        _like_gpt2(tokenizer)
        tokenizer.add_special_tokens([END])
        return tokenizer


def train(texts: Iterable[str], size: int) -> Vocabulary:
    """Learns `size` tokens; the same texts give the same tokens."""
    tokenizer = Tokenizer(models.BPE())
    _like_gpt2(tokenizer)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].get)
    if len(tokens) != size or tokens[END_ID] != END:
        raise ValueError(f"the corpus gave {len(tokens)} tokens and not {size}; train on more stories")
    return Vocabulary(tokens, [" ".join(m) if isinstance(m, list) else m for m in learned["merges"]])


def _like_gpt2(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
