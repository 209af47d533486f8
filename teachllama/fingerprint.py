"""Fingerprints of models, which show whether a saved session belongs to a model.

Keys and values are useless with other weights, yet a model accepts them without an error, and its text is then fluent
and wrong. So a fingerprint covers every byte of every tensor, the tokenizer's rules, and the RoPE settings.
Independent of sessions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from teachllama.errors import TokenError
from teachllama.gguf_file import GGUFFile, StringArray
from teachllama.spec import ModelSpec
from teachllama.tokenizer import Tokenizer

SHORT = 16  # hexadecimal digits of one tensor's digest: 64 bits
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
# Texts in which tokenizers differ: words, case, digits, spaces, lines, punctuation, accents, other scripts, symbols.
PROBE = (
    "The quick brown fox's 12 jumps, over 3,141.59 lazy dogs!", "  two  spaces\tand\n\nlines  ", "can't WON'T I'd",
    "naïve café Zürich", "привет мир", "你好世界 こんにちは", "مرحبا", "🙂🙃 → ≤ ½", "def f(x):\n    return x**2  # ok",
    "<|im_start|>", "▁under_score__", "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Digests of one model, each covering one aspect that can differ. All are hexadecimal SHA-256."""

    name: str  # for display; never compared
    arch: str
    quantization: str  # for display: the type of most weights
    structure: str  # names and shapes of the tensors, and the file's settings except those of RoPE
    config: str  # the model's spec, layer by layer, without RoPE
    rope: str  # each layer's frequencies, magnitudes, pairs
    types: str  # each tensor's type
    vectors: str  # values of the norms and biases: they stay float32, so all quantizations of a model share them
    weights: str  # every byte of every tensor
    tensors: str  # the first 16 digits of each tensor's digest, in the order of names: shows which one differs
    vocabulary: str  # the tokens' texts and types
    merges: str  # the merges, or the scores of SentencePiece
    rules: str  # every other tokenizer key of the file
    probe: str  # the ids of `PROBE`: covers the tokenizer's code


TEXTS = ("name", "arch", "quantization")  # fields of a Fingerprint that are not digests


def metadata_digests(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Digests of a file's metadata: vocabulary, merges and rules of the tokenizer; settings of the architecture."""
    parts = {name: hashlib.sha256() for name in ("vocabulary", "merges", "rules", "settings")}
    places = {"tokens": "vocabulary", "token_type": "vocabulary", "merges": "merges", "scores": "merges"}
    arch = f"{metadata.get('general.architecture')}."
    for key in sorted(metadata):
        if key.startswith("tokenizer.ggml."):
            into = parts[places.get(key.removeprefix("tokenizer.ggml."), "rules")]
        elif key.startswith(arch) and not key.startswith((f"{arch}rope.", f"{arch}context_length")):
            into = parts["settings"]
        else:
            continue
        value = metadata[key]
        into.update(f"{key}\n".encode("utf-8", "surrogateescape"))
        if isinstance(value, StringArray):
            into.update(value.raw)
        elif isinstance(value, np.ndarray):
            into.update(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
        else:
            into.update(repr(value).encode("utf-8", "surrogateescape"))
    return {name: part.hexdigest() for name, part in parts.items()}


def tensor_digests(file: GGUFFile) -> dict[str, str]:
    """Tensor name -> SHA-256 of its bytes. Reads the whole file: about one processor-second per gigabyte."""

    def digest(name: str) -> str:
        return hashlib.sha256(file.tensor_bytes(name).data).hexdigest()

    names = sorted(file.tensors)
    from concurrent.futures import ThreadPoolExecutor  # imported late: loading a model needs no hash

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases Python's lock
        return dict(zip(names, pool.map(digest, names), strict=True))


def fingerprint(
    file: GGUFFile, name: str, spec: ModelSpec, tokenizer: Tokenizer, keys: Mapping[str, str], tensors: dict[str, str]
) -> Fingerprint:
    """The fingerprint of a model.

    Args:
        file: only its tensor table is read, so it may be closed.
        keys, tensors: the results of `metadata_digests` and `tensor_digests`.
    """
    infos = [file.tensors[n] for n in sorted(file.tensors)]
    ropes = [layer.attention.rope for layer in spec.layers]
    still = [
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, rope=None)) for layer in spec.layers
    ]
    size_of: Counter[str] = Counter()
    for t in infos:
        size_of[t.type.name] += t.n_elements
    vectors = [(t.name, tensors[t.name]) for t in infos if len(t.shape) == 1 and t.name not in ROPE_TENSORS]
    return Fingerprint(
        name=name,
        arch=spec.family,
        quantization=size_of.most_common(1)[0][0],
        structure=of([(t.name, t.shape) for t in infos], keys["settings"]),
        config=of(repr(dataclasses.replace(spec, layers=tuple(still)))),
        rope=of(repr(ropes)),
        types=of([(t.name, t.type.name) for t in infos]),
        vectors=of(vectors),
        weights=of(sorted(tensors.items())),
        tensors="".join(tensors[t.name][:SHORT] for t in infos),
        vocabulary=keys["vocabulary"],
        merges=keys["merges"],
        rules=keys["rules"],
        probe=of([_ids(tokenizer, text) for text in PROBE]),
    )


class Identity:
    """The digests of a model's file.

    The metadata is digested at construction, because it is freed after loading. Tensors are read once, on first use.

    Attributes:
        names: the tensors' names, in the order of `Fingerprint.tensors`.
    """

    def __init__(self, file: GGUFFile):
        self._file, self._keys = file, metadata_digests(file.metadata)
        self._tensors: dict[str, str] | None = None
        self._made: Fingerprint | None = None
        self.names = sorted(file.tensors)

    def read(self) -> dict[str, str]:
        """Digests of all tensors; reads them at the first call. Raises ClosedError if the file was closed by then."""
        if self._tensors is None:
            self._tensors = tensor_digests(self._file)
        return self._tensors

    def fingerprint(self, name: str, spec: ModelSpec, tokenizer: Tokenizer) -> Fingerprint:
        """The fingerprint of a model that was loaded from this file."""
        if self._made is None:
            self._made = fingerprint(self._file, name, spec, tokenizer, self._keys, self.read())
        return self._made


def _ids(tokenizer: Tokenizer, text: str) -> list[list[int] | str]:
    """A text's ids, without and with special tokens; "refused" where the vocabulary has no token for some byte."""
    results: list[list[int] | str] = []
    for special in (False, True):
        try:
            results.append(tokenizer.encode(text, add_special=special, parse_special=special))
        except TokenError:
            results.append("refused")
    return results


def of(*things: Any) -> str:
    """SHA-256 of some JSON values, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(things, separators=(",", ":")).encode()).hexdigest()
