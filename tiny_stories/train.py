"""Trains the tokenizer and the model: corpus -> `vocabulary.json`, `model.pt`.

Everything is seeded: story i is the story of seed i, and each is seen once. PyTorch's generator is seeded too, but the
order of its sums depends on the processor, so another machine's model is a little different.
"""

from __future__ import annotations

import argparse
import math
import time
from array import array
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from torch.nn import functional as F

from tiny_stories import tokenizer as bpe
from tiny_stories.grammar import story
from tiny_stories.model import Llama, Shape

TOKENIZER_STORIES = 20_000
# Steps, and the highest learning rate: each cycle is a cosine, with the optimizer anew.
CYCLES = ((2600, 3e-3), (1400, 1.5e-3), (1400, 1.5e-3))
FINAL_RATE, WARM_UP = 5e-5, 200
WITHOUT_START = 0.1  # share of windows that begin without <|endoftext|>, as a prompt may


def windows(vocabulary: bpe.Vocabulary, length: int, seeds: Iterator[int]) -> Iterator[list[int]]:
    """Stories one after another, each between <|endoftext|>, cut into windows that begin with a story."""
    encode = vocabulary.tokenizer().encode_batch
    ids, starts = array("H"), torch.Generator().manual_seed(1)
    while True:
        for encoded in encode([story(next(seeds)).text for _ in range(64)]):
            ids.append(bpe.END_ID)
            ids.extend(encoded.ids)
            if len(ids) > length:
                skip = int(torch.rand((), generator=starts) < WITHOUT_START)
                yield list(ids[skip : skip + length])
                del ids[:]


def train(folder: Path, shape: Shape, *, batch: int, bf16: bool) -> None:
    """Writes `vocabulary.json` and, after each cycle, `model.pt`; goes on after the cycles that a `model.pt` has."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = bpe.train((story(i).text for i in range(TOKENIZER_STORIES)), shape.vocab_size)
    vocabulary.save(folder / "vocabulary.json")
    model = Llama(shape)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights", flush=True)
    data = windows(vocabulary, shape.seq_len + 1, count())
    kept = folder / "model.pt"
    done = 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["weights"])
        done = state["cycles"]
        for _ in range(batch * sum(steps for steps, _ in CYCLES[:done])):
            next(data)
    for cycle, (steps, rate) in enumerate(CYCLES[done:], done + 1):
        run_cycle(model, data, steps, rate, batch=batch, bf16=bf16)
        torch.save({"shape": shape.__dict__, "weights": model.state_dict(), "cycles": cycle}, kept)


def run_cycle(model: Llama, data: Iterator[list[int]], steps: int, rate: float, *, batch: int, bf16: bool) -> None:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=rate, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    started = time.perf_counter()
    for step in range(steps):
        cosine = FINAL_RATE + (rate - FINAL_RATE) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = cosine * min(1, (step + 1) / WARM_UP)
        ids = torch.tensor([next(data) for _ in range(batch)])  # (batch, seq_len + 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:5}  loss {loss.item():.3f}  {time.perf_counter() - started:6.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--batch", type=int, default=8, help="windows of 512 tokens a step")
    parser.add_argument("--bf16", action="store_true", help="multiply in bfloat16: faster where the processor has it")
    args = parser.parse_args()
    torch.set_num_threads(2)
    train(args.folder, Shape(), batch=args.batch, bf16=args.bf16)
