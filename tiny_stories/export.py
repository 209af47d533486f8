"""`vocabulary.json` and `model.pt` -> the GGUF file that the package ships.

Matrices become Q8_0: blocks of 32 weights that share one float16 scale, 34 bytes. Norms stay float32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tiny_stories import tokenizer as bpe
from tiny_stories.grammar import HELD_OUT, story
from tiny_stories.model import Llama, Shape

ARCHITECTURE = "llama"
MOST_BYTES = 4_000_000


def load(folder: Path) -> tuple[Llama, bpe.Vocabulary]:
    """What `train.py` wrote."""
    saved = torch.load(folder / "model.pt", weights_only=True)
    model = Llama(Shape(**saved["shape"]))
    model.load_state_dict(saved["weights"])
    return model.eval(), bpe.Vocabulary.load(folder / "vocabulary.json")


def export(model: Llama, vocabulary: bpe.Vocabulary, path: Path) -> None:
    """Writes the file. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""
    s = model.shape
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_name("Tiny Stories")
    writer.add_description(
        "A small Llama that tells short stories for children. Trained from nothing on a corpus that its own repository "
        "generates; made to be looked at, not to be relied on."
    )
    writer.add_author("The teachllama authors")
    writer.add_license("Apache-2.0")
    writer.add_license_link("https://www.apache.org/licenses/LICENSE-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(s.seq_len)
    writer.add_embedding_length(s.dim)
    writer.add_block_count(s.n_layers)
    writer.add_feed_forward_length(s.hidden_dim)
    writer.add_head_count(s.n_heads)
    writer.add_head_count_kv(s.n_kv_heads)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_rope_freq_base(s.rope_base)
    writer.add_layer_norm_rms_eps(s.norm_eps)
    writer.add_vocab_size(s.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    kinds = [gguf.TokenType.NORMAL] * len(vocabulary.tokens)
    kinds[bpe.END_ID] = gguf.TokenType.CONTROL
    writer.add_token_types(kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(bpe.END_ID)
    writer.add_eos_token_id(bpe.END_ID)
    writer.add_add_bos_token(True)
    for name, tensor in model.state_dict().items():
        data = tensor.numpy().astype(np.float32)
        name = name.replace("layers.", "blk.")
        if data.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; the package ships at most {MOST_BYTES:,}")


def as_stored(model: Llama) -> Llama:
    """The same model with each matrix rounded to Q8_0 and back: what the file holds."""
    for p in model.parameters():
        if p.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            rounded = gguf.quants.dequantize(gguf.quants.quantize(p.detach().numpy(), kind), kind)
            p.data = torch.from_numpy(rounded.copy())
    return model


def golden(model: Llama, vocabulary: bpe.Vocabulary) -> dict[str, Any]:
    """PyTorch's logits, for the engine to be tested against: the highest, the mean and the spread after some texts."""
    cases = []
    for text in ("", "Once upon a time", story(HELD_OUT).text):
        ids = [bpe.END_ID, *vocabulary.tokenizer().encode(text).ids]
        with torch.no_grad():
            last = model(torch.tensor([ids]))[0, -1].double()
        top = last.topk(20)
        cases.append({"text": text, "ids": ids, "top_ids": top.indices.tolist(),
                      "top_logits": [round(x, 5) for x in top.values.tolist()],
                      "logit_mean": float(last.mean()), "logit_std": float(last.std(correction=0))})  # fmt: skip
    return {"how": "tiny_stories.export, PyTorch, matrices rounded to Q8_0, float32", "cases": cases}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where train.py wrote")
    parser.add_argument("gguf", type=Path, help="the file to write")
    parser.add_argument("--golden", type=Path, help="where to write PyTorch's logits for the tests")
    args = parser.parse_args()
    model, vocabulary = load(args.folder)
    export(model, vocabulary, args.gguf)
    if args.golden:
        args.golden.write_text(json.dumps(golden(as_stored(model), vocabulary)) + "\n", encoding="utf-8")
    print(f"{args.gguf}: {args.gguf.stat().st_size:,} bytes")
