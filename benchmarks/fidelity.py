"""How much quantized arithmetic changes what a model says: ours and llama.cpp's, against the float32 reference.

Compares next-token distributions over 2,000 tokens of text with those of the same weights in float32 NumPy: the mean
Kullback-Leibler divergence, in nats. Also counts how many tokens of greedy continuations of six prompts agree with the
reference's. `make bench`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from compare import Engine  # noqa: E402  # this folder is not a package

N_TOKENS = 2000
PROMPTS = (
    "Once upon a time, in a village by the sea,",
    "The most important thing about a language model is",
    "def fibonacci(n):",
    "In 1969, the first people on the Moon",
    "To make a good soup you need",
    "Dear teacher, I could not do my homework because",
)


def text() -> str:
    """The text of this project's own pages, which is the same on every machine."""
    pages = ("docs/engine.md", "docs/start.md", "docs/instructors.md", "CONTRIBUTING.md", "docs/glossary.md")
    return "\n".join((HERE.parent / page).read_text(encoding="utf-8") for page in pages)


def divergence(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(reference || other) of each row's softmax, in nats. Both (n, vocab_size)."""
    p, q = (x.astype(np.float64) - x.max(axis=1, keepdims=True) for x in (reference, other))
    p -= np.log(np.exp(p).sum(axis=1, keepdims=True))
    q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
    return (np.exp(p) * (p - q)).sum(axis=1)


def same_start(a: list[int], b: list[int]) -> int:
    """How many tokens two continuations have in common before they diverge."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def main() -> None:
    """Measures, prints a table, and saves it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", default=str(HERE.parent / "docs" / "measured" / "fidelity.json"), metavar="FILE")
    args = parser.parse_args()

    from teachllama import hub, load_model
    from teachllama.requantize import requantize

    smollm2, result = hub.find("smollm2-135m"), {}
    with tempfile.TemporaryDirectory() as folder:
        with load_model(smollm2, weights="f32", backend="numpy") as model:
            ids = model.encode(text())[:N_TOKENS]
            prompts = [model.encode(prompt) for prompt in PROMPTS]
        if len(ids) < N_TOKENS:
            raise SystemExit(f"the text has {len(ids)} tokens; {N_TOKENS} are wanted")
        for kind in ("Q4_1", "Q8_0"):
            path = Path(smollm2)
            if kind != "Q4_1":
                path = requantize(smollm2, Path(folder) / f"{kind}.gguf", kind)
            engines = {
                "reference": (sys.executable, "teachllama", "weights=f32", "backend=numpy"),
                "teachllama": (sys.executable, "teachllama"),
                "llama.cpp": (args.peer, "llama.cpp"),
            }
            logits: dict[str, np.ndarray] = {}
            replies: dict[str, list[list[int]]] = {}
            for name, (python, engine_name, *how) in engines.items():
                engine, to = Engine(python, engine_name, path, args.threads, *how), Path(folder) / f"{name}.npy"
                engine.ask({"task": "logits", "ids": ids, "to": str(to)})
                replies[name] = [engine.ask({"task": "greedy", "ids": p, "n": 48})["ids"] for p in prompts]
                logits[name] = np.load(to)
                engine.close()
            found: dict[str, Any] = {}
            for name in ("teachllama", "llama.cpp"):
                kl = divergence(logits["reference"], logits[name])
                agree = [same_start(a, b) for a, b in zip(replies["reference"], replies[name], strict=True)]
                top = float((logits["reference"].argmax(1) == logits[name].argmax(1)).mean())
                found[name] = {"kl_mean": kl.mean(), "kl_max": kl.max(), "same_top": top, "greedy_agree": agree}
                print(
                    f"SmolLM2-135M {kind:5} {name:11} KL {kl.mean():.2e} (largest {kl.max():.1e}), same likeliest "
                    f"token {100 * top:.2f} %, greedy tokens before parting {agree} of 48",
                    flush=True,
                )
            result[kind] = found
    save = Path(args.save)
    save.parent.mkdir(parents=True, exist_ok=True)
    save.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"saved: {save}")


if __name__ == "__main__":
    main()
