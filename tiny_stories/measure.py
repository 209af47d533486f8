"""How good the exported model is: `figures.json`, whose numbers the model card quotes.

Runs the shipped file in teachllama's own engine, so needs no PyTorch. Held-out stories have seeds that training never
reached. Stories are judged by `judge.py`; each is begun with the first sentence of a held-out story.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import teachllama as tl
from tiny_stories.grammar import HELD_OUT, story
from tiny_stories.judge import flaws

MOST_TOKENS = 400


def held_out_loss(model: tl.Model, n: int) -> dict[str, float]:
    """Nats a token of the model on n held-out stories, each judged alone, and of the grammar's own draws.

    The second bounds the first from below, on average: it is at least the entropy of the text.
    """
    nats, drawn, tokens = 0.0, 0.0, 0
    for seed in range(HELD_OUT, HELD_OUT + n):
        told = story(seed)
        ids = model.encode(told.text, add_special=True)
        with model.create_session() as session:
            logits = session.eval(ids, all_logits=True).astype(np.float64)  # (tokens, vocab_size)
        target = [*ids[1:], model.tokenizer.eos_id]
        top = logits.max(axis=1)
        nats += float((top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[range(len(ids)), target]).sum())
        drawn, tokens = drawn + told.nats, tokens + len(ids)
    return {"stories": n, "tokens_a_story": tokens / n, "model_nats": nats / tokens, "grammar_nats": drawn / tokens}


def tell(model: tl.Model, seed: int, temperature: float) -> str:
    """The story that the model makes of the first sentence of a held-out one."""
    told = story(HELD_OUT + seed).text
    opening = told[: told.find(".") + 1]
    with model.create_session(seed=seed) as session:
        params = tl.SamplingParams(temperature=temperature)
        return opening + "".join(t.piece for t in session.generate(opening, params, max_new_tokens=MOST_TOKENS))


def judged(stories: list[str], corpus: set[int]) -> dict[str, Any]:
    """How many are without flaw, how many have which, and how many are, word for word, in the corpus."""
    found = [flaws(text) for text in stories]
    return {
        "stories": len(stories),
        "without_flaw": sum(not f for f in found),
        "recited": sum(hash(text) in corpus for text in stories),
        "flaws": dict(sorted(Counter(name for f in found for name in set(f)).items())),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-stories", help="a name or a .gguf file (default: %(default)s)")
    parser.add_argument("--stories", type=int, default=200)
    parser.add_argument("--corpus", type=int, default=140_000, help="how many stories training saw")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N stories and their flaws")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures.json")
    args = parser.parse_args()
    corpus = {hash(story(seed).text) for seed in range(args.corpus)}
    with tl.load_model(args.model) as model:
        figures: dict[str, Any] = {"held_out": held_out_loss(model, args.stories)}
        for name, temperature in (("greedy", 0.0), ("temperature_0.3", 0.3), ("temperature_0.7", 0.7)):
            told = [tell(model, seed, temperature) for seed in range(args.stories)]
            figures[name] = judged(told, corpus)
            for text in told[: args.show]:
                print(text, flaws(text), sep="\n", end="\n\n")
    args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))
