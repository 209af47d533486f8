"""Makes the golden figures of all families again: `make golden`.

    python -m tests.families.make_golden --peer PYTHON [--exact-gelu PYTHON] [VARIANT ...]

--peer: a Python with llama-cpp-python, built natively (`benchmarks/build_peer.sh`). --exact-gelu: one whose llama.cpp
was built without `#define GGML_GELU_FP16` in ggml/src/ggml-cpu/vec.h; families with GELU are skipped without it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.families import FOLDER, N_GREEDY, VARIANTS, build, columns_of, pack, prompt
from tests.families.generate import vocabulary

HOW = (
    "llama-cpp-python {version}, native build{gelu}, one thread, float32 weights and cache, no flash attention: the "
    "logits of a prompt of random ids in one batch, then greedy steps. Made by tests/families/make_golden.py."
)


def evaluate(peer: str, path: Path, ids: list[int], n_greedy: int = N_GREEDY) -> dict[str, Any]:
    """What llama.cpp computes: logits (n, vocab_size), greedy ids, gaps between the two best."""
    with tempfile.TemporaryDirectory() as folder:
        ids_file, out = Path(folder) / "ids.json", Path(folder) / "out.npz"
        ids_file.write_text(json.dumps(ids))
        script = Path(__file__).parent / "peer.py"
        command = [peer, str(script), str(path), str(ids_file), str(out), str(n_greedy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{path.name}: {done.stderr[-1000:]}")
        return dict(np.load(out))


def main() -> None:
    """Writes a file for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--exact-gelu")
    parser.add_argument("variants", nargs="*", default=list(VARIANTS))
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    vocab_size = len(vocabulary())
    ids, columns = prompt(vocab_size), columns_of(vocab_size)
    for name in args.variants:
        v = VARIANTS[name]
        if not v.peer or (v.gelu and not args.exact_gelu):
            print(f"{name}: skipped")
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = build(name, Path(folder) / "model.gguf", dequantized=True)
            found = evaluate(args.exact_gelu if v.gelu else args.peer, path, ids)
            stock = np.abs(evaluate(args.peer, path, ids)["logits"] - found["logits"]).max() if v.gelu else 0.0
        logits = found["logits"].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        logsumexp = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        stored = {
            "how": HOW.format(version=found["version"], gelu=" without its GELU table" if v.gelu else ""),
            "logits": pack(np.take_along_axis(found["logits"], columns, axis=1)),
            "logsumexp": pack(logsumexp),
            "greedy": found["greedy"].tolist(),
            "gap": pack(found["gap"]),
        }
        if v.gelu:
            stored["stock_differs_by"] = float(stock)
        (FOLDER / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        print(name, f"spread {logits.std():.2f}", f"stock differs by {stock:.1e}" if v.gelu else "", flush=True)


if __name__ == "__main__":
    main()
