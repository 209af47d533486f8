"""Makes GGUF files for tests: tiny llama-like and gemma3 models, and copies of a file in other types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from teachllama.gguf_file import StringArray, open_gguf

F32 = GGMLQuantizationType.F32


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in printable else chr(256 + sum(c not in printable for c in range(b))) for b in range(256)]


MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a", "Ġ s", "e r", "o u", "Ġ w", "l l"]


def tiny_metadata(arch: str = "llama", **overrides: Any) -> dict[str, Any]:
    """Metadata of a model of a few thousand weights; an override of None removes the key."""
    tokens = [*byte_alphabet(), *(m.replace(" ", "") for m in MERGES), "<|bos|>", "<|eos|>"]
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": f"tiny {arch}",
        f"{arch}.block_count": 2,
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": 32,
        f"{arch}.feed_forward_length": 64,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    if arch == "gemma3":
        metadata |= {
            "gemma3.attention.key_length": 16,
            "gemma3.attention.value_length": 16,
            "gemma3.attention.sliding_window": 8,
        }
        metadata["gemma3.block_count"] = 7  # layer 5 is global
    metadata |= overrides
    return {k: v for k, v in metadata.items() if v is not None}


def tiny_tensors(metadata: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights for `tiny_metadata`."""
    arch = metadata["general.architecture"]
    get = lambda key, default=None: metadata.get(f"{arch}.{key}", default)
    dim, hidden, heads = get("embedding_length"), get("feed_forward_length"), get("attention.head_count")
    kv_heads, d = get("attention.head_count_kv", heads), get("attention.key_length", dim // heads)
    dv, vocab = get("attention.value_length", d), len(metadata["tokenizer.ggml.tokens"])
    rng = np.random.default_rng(seed)
    matrix = lambda *shape: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    norm = lambda n: (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)
    tensors = {"token_embd.weight": matrix(vocab, dim), "output_norm.weight": norm(dim)}
    for i in range(get("block_count")):
        layer = {
            "attn_norm": norm(dim),
            "attn_q": matrix(heads * d, dim),
            "attn_k": matrix(kv_heads * d, dim),
            "attn_v": matrix(kv_heads * dv, dim),
            "attn_output": matrix(dim, heads * dv),
            "ffn_norm": norm(dim),
            "ffn_gate": matrix(hidden, dim),
            "ffn_up": matrix(hidden, dim),
            "ffn_down": matrix(dim, hidden),
        }
        if arch == "gemma3":
            layer |= {
                "attn_q_norm": norm(d),
                "attn_k_norm": norm(d),
                "post_attention_norm": norm(dim),
                "post_ffw_norm": norm(dim),
            }
        tensors |= {f"blk.{i}.{name}.weight": data for name, data in layer.items()}
    return tensors


def write_gguf(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    types: dict[str, GGMLQuantizationType] | None = None,
) -> Path:
    """Writes a GGUF file; `types` maps tensors to types other than float32; uint8 arrays are already blocks."""
    writer = GGUFWriter(path, metadata.get("general.architecture", "none"), use_temp_file=False)
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for name, data in tensors.items():
        kind = (types or {}).get(name, F32)
        if kind == F32:
            writer.add_tensor(name, data)
        elif data.dtype == np.uint8:
            writer.add_tensor(name, data, raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if 0 <= value < 2**32 else writer.add_int64 if value < 2**63 else writer.add_uint64)(
            key, value
        )
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, (StringArray, np.ndarray)):
        writer.add_array(key, list(value) if isinstance(value, StringArray) else value.tolist())
    else:
        writer.add_array(key, value)


def tiny_model(path: Path, arch: str = "llama", **overrides: Any) -> Path:
    """Writes a complete tiny model file."""
    metadata = tiny_metadata(arch, **overrides)
    return write_gguf(path, metadata, tiny_tensors(metadata))


def copy_as(source: str | Path, target: Path, kind: GGMLQuantizationType) -> Path:
    """Copies a model with its matrices in another type (norms stay float32)."""
    with open_gguf(source) as file:
        tensors, types = {}, {}
        for name, info in file.tensors.items():
            raw = file.tensor_bytes(name).reshape(info.n_elements // info.shape[-1], -1)
            data = raw.view("<f4") if info.type == F32 else gguf.quants.dequantize(raw, info.type)
            tensors[name] = np.array(data, np.float32).reshape(info.shape)
            if len(info.shape) > 1:
                types[name] = kind
        return write_gguf(target, file.metadata, tensors, types)
