"""Makes the golden figures of all families again: `make golden`.

    python -m tests.families.make_golden --peer PYTHON [--exact-gelu PYTHON] [--find-seeds] [VARIANT ...]

--peer: a Python with llama-cpp-python, built natively (`benchmarks/build_peer.sh`). --exact-gelu: one whose llama.cpp
was built without its table of GELU (`benchmarks/build_peer.sh FOLDER PYTHON exact-gelu`); variants with GELU are
skipped without it. --find-seeds: writes nothing, and prints for each variant the first seed fit for `SEEDS`.

llama.cpp computes float32 here because the file's weights and the cache are float32, flash attention is off, and
nothing is repacked: repacking is for quantized types. It still rounds GELU, and activations that are multiplied by
MXFP4. For these, the same build, or the same weights, are evaluated without the rounding too, and the difference is
kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import teachllama as tl
from tests.families import CLEAR, FOLDER, N_GREEDY, N_STOCK, SEEDS, VARIANTS, build, columns_of, pack, prompt
from tests.families.generate import vocabulary
from tests.families.ties import tied

HOW = (
    "llama-cpp-python {version}, native build{gelu}, one thread, float32 weights{twin} and cache, no flash attention: "
    "the logits of a prompt of 300 random ids in one batch, then 50 greedy steps and the gap between the two best "
    "logits at each. Arrays are little-endian float32 in base85. Made by tests/families/make_golden.py."
)


def evaluate(peer: str, path: Path, ids: list[int], n_greedy: int = N_GREEDY) -> dict[str, Any]:
    """llama.cpp's results: logits (n, vocab_size), greedy ids, gaps between the two best."""
    with tempfile.TemporaryDirectory() as folder:
        ids_file, out = Path(folder) / "ids.json", Path(folder) / "out.npz"
        ids_file.write_text(json.dumps(ids))
        script = Path(__file__).parent / "peer.py"
        command = [peer, str(script), str(path), str(ids_file), str(out), str(n_greedy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{path.name}: {done.stderr[-1000:]}")
        return dict(np.load(out))


def stored_form(name: str, peer: str, exact_gelu: str | None) -> dict[str, Any]:
    """The content of a variant's golden file."""
    v, vocab_size = VARIANTS[name], len(vocabulary())
    ids, columns = prompt(vocab_size), columns_of(vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        twin = build(name, Path(folder) / "twin.gguf", dequantized=True)
        found = evaluate(exact_gelu if v.gelu and exact_gelu else peer, twin, ids)
        stock = None
        if v.gelu or v.types:
            stock = evaluate(peer, build(name, Path(folder) / "stock.gguf"), ids)["logits"]
    logits = found["logits"].astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    stored = {
        "how": HOW.format(
            version=found["version"],
            gelu=" without its GELU table" if v.gelu else "",
            twin=", as MXFP4 rounds them," if v.types else "",
        ),
        "logits": pack(np.take_along_axis(found["logits"], columns, axis=1)),
        "logsumexp": pack(np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]),
        "greedy": found["greedy"].tolist(),
        "gap": pack(found["gap"]),
    }
    if stock is not None:  # stock llama.cpp, with its rounding
        worst = np.abs(stock - found["logits"]).max(axis=1)
        stored["stock_differs_by"] = float(worst.max())
        stored["stock_logits"] = pack(np.take_along_axis(stock, columns, axis=1)[:N_STOCK])
    print(name, f"spread {logits.std():.2f}, smallest gap {found['gap'].min():.3f}", flush=True)
    return stored


def find_seed(name: str, peer: str) -> int:
    """The first seed without a near tie."""
    ids = prompt(len(vocabulary()))
    for seed in count():
        with tempfile.TemporaryDirectory() as folder:
            path = build(name, Path(folder) / "m.gguf", seed=seed - SEEDS.get(name, 0), dequantized=True)
            found = evaluate(peer, path, ids)
            if found["gap"].min() < 1.5 * CLEAR:
                continue
            with tl.load_model(path, backend="numpy", weights="f32") as model:
                if not tied(model, ids + found["greedy"].tolist()).any():
                    return seed
    raise AssertionError


def main() -> None:
    """Writes one file per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--exact-gelu")
    parser.add_argument("--find-seeds", action="store_true")
    parser.add_argument("variants", nargs="*", default=list(VARIANTS))
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in args.variants:
        v = VARIANTS[name]
        if not v.peer or (v.gelu and not args.exact_gelu):
            print(f"{name}: skipped")
        elif args.find_seeds:
            print(name, find_seed(name, args.exact_gelu if v.gelu else args.peer), flush=True)
        else:
            stored = stored_form(name, args.peer, args.exact_gelu)
            (FOLDER / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
