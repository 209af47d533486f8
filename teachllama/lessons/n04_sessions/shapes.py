"""The shapes of some published models: the sizes that determine their KV cache, in the form of GGUF metadata.

The numbers are from each model's own config.json (`Shape.source`). Independent of plots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from teachllama.errors import ParameterError
from teachllama.kv import KV_DTYPES, KVLayout, kv_layout_from_metadata

if TYPE_CHECKING:
    from teachllama.model import Model

BINDER_BYTES = 2 * 10**9  # mybinder.org's memory limit; it guarantees 1 GB


@dataclass(frozen=True)
class Shape:
    """The properties of a model that determine its memory use."""

    name: str
    layout: KVLayout
    n_weights: int | None  # parameters; an embedding that is also the output matrix counts once. None: unknown
    source: str  # where the numbers come from
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    loaded_nbytes: int | None = None  # bytes of the weights in this process, for a loaded model

    def get(self, key: str) -> Any:
        """A metadata value without its architecture's prefix: `get("attention.head_count")`."""
        return self.metadata[f"{self.layout.arch}.{key}"]

    def weights_nbytes(self, dtype: str = "f16") -> int:
        """Bytes of the weights in a type of `KV_DTYPES`; for a loaded model, their actual bytes."""
        if self.loaded_nbytes is not None:
            return self.loaded_nbytes
        if self.n_weights is None:
            raise ParameterError(
                f"the number of weights of {self.name!r} is not known; give n_weights or loaded_nbytes"
            )
        block, block_nbytes = KV_DTYPES[dtype]
        return -(-self.n_weights // block) * block_nbytes


def _shape(
    name: str,
    repo: str,
    n_weights: int,
    *,
    arch: str = "llama",
    layers: int,
    dim: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocab: int,
    context: int,
    window: int | None = None,
) -> Shape:
    metadata: dict[str, Any] = {"general.architecture": arch, "general.name": name}
    values = {
        "block_count": layers, "context_length": context, "embedding_length": dim, "feed_forward_length": hidden,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": head_dim,
        "attention.value_length": head_dim, "vocab_size": vocab,
    }  # fmt: skip
    if window is not None:
        values["attention.sliding_window"] = window
    metadata |= {f"{arch}.{key}": value for key, value in values.items()}
    source = f"https://huggingface.co/{repo}/blob/main/config.json"
    return Shape(name, kv_layout_from_metadata(metadata), n_weights, source, metadata)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _shape(
            "SmolLM2 135M", "HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008,
            layers=30, dim=576, hidden=1536, heads=9, kv_heads=3, head_dim=64, vocab=49_152, context=8192,
        ),
        _shape(
            "Gemma 3 270M", "google/gemma-3-270m", 268_098_176, arch="gemma3",
            layers=18, dim=640, hidden=2048, heads=4, kv_heads=1, head_dim=256, vocab=262_144,
            context=32_768, window=512,
        ),
        _shape(
            "TinyLlama 1.1B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384,
            layers=22, dim=2048, hidden=5632, heads=32, kv_heads=4, head_dim=64, vocab=32_000, context=2048,
        ),
        _shape(  # the language model alone, without the image encoder
            "Gemma 3 4B", "google/gemma-3-4b-it", 3_880_099_328, arch="gemma3",
            layers=34, dim=2560, hidden=10_240, heads=8, kv_heads=4, head_dim=256, vocab=262_144,
            context=131_072, window=1024,
        ),
        _shape(  # from before grouped-query attention: every query head has keys and values of its own
            "Llama 2 7B", "meta-llama/Llama-2-7b-hf", 6_738_415_616,
            layers=32, dim=4096, hidden=11_008, heads=32, kv_heads=32, head_dim=128, vocab=32_000, context=4096,
        ),
        _shape(
            "Mistral 7B v0.3", "mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552,
            layers=32, dim=4096, hidden=14_336, heads=32, kv_heads=8, head_dim=128, vocab=32_768, context=32_768,
        ),
        _shape(
            "Qwen2.5 7B", "Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, arch="qwen2",
            layers=28, dim=3584, hidden=18_944, heads=28, kv_heads=4, head_dim=128, vocab=152_064, context=32_768,
        ),
        _shape(
            "Llama 3.1 8B", "meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248,
            layers=32, dim=4096, hidden=14_336, heads=32, kv_heads=8, head_dim=128, vocab=128_256, context=131_072,
        ),
        _shape(
            "Llama 3.1 70B", "meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496,
            layers=80, dim=8192, hidden=28_672, heads=64, kv_heads=8, head_dim=128, vocab=128_256, context=131_072,
        ),
    )
}  # fmt: skip
"""Published models by name, smallest first. Llama 3.1 8B is what people mean by Llama 3 8B at 131,072 tokens."""


def shape_of(model: Model) -> Shape:
    """The shape of a loaded model: named as in `SHAPES` if it is one of those, otherwise as in its file."""
    c = model.config
    for known in SHAPES.values():
        if (known.layout.arch, known.layout.layers, known.layout.native_seq_len) == (
            c.arch, c.kv_layout.layers, c.native_seq_len,
        ) and [known.get(key) for key in ("embedding_length", "feed_forward_length", "vocab_size")] == [
            c.dim, c.hidden_dim, c.vocab_size,
        ]:  # fmt: skip
            return replace(known, loaded_nbytes=model.nbytes)
    return Shape(c.name, c.kv_layout, None, str(model.path), loaded_nbytes=model.nbytes)
