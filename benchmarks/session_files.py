"""What saving and loading a session costs, and evaluating its tokens again: `python benchmarks/session_files.py`.

Writes the table of docs/sessions.md. Each figure is the shortest of several repetitions, taken in turns.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import teachllama as tl
from teachllama import session_file

HERE = Path(__file__).parent
TARGET = HERE.parent / "docs" / "measured" / "sessions.inc"


def shortest(n: int, *works: Callable[[], None]) -> list[float]:
    """The shortest of n times in seconds for each function. The functions are called in turns."""
    best = [float("inf")] * len(works)
    for _ in range(n):
        for i, work in enumerate(works):
            began = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - began)
    return best


def row(model: tl.Model, path: str, n_past: int, kv_dtype: str, repeat: int) -> str:
    """One line of the table."""
    text = (HERE.parent / "docs" / "engine.md").read_text(encoding="utf-8")
    ids = model.encode(text * 9)[:n_past]
    with model.create_session(seq_len=n_past + 64, kv_dtype=kv_dtype, seed=1) as session:
        prefill = shortest(2, session.reset, lambda: (session.eval(ids), None)[1])[1]
        checked = session_file.SessionFile.read

        def load() -> None:
            model.load_session(path).close()

        def load_unverified() -> None:
            session_file.SessionFile.read = lambda self, name: self._file.get_tensor(name)  # type: ignore[method-assign]
            try:
                load()
            finally:
                session_file.SessionFile.read = checked  # type: ignore[method-assign]

        saved, loaded, unverified = shortest(repeat, lambda: session.save(path), load, load_unverified)
        with model.load_session(path) as copy:
            assert copy.restored == n_past
            assert copy.logits.tobytes() == session.logits.tobytes()
    size = os.path.getsize(path)
    return (
        f"| {n_past:,} | {kv_dtype} | {size / 1e6:.1f} MB | {saved * 1e3:.0f} ms | {loaded * 1e3:.0f} ms | "
        f"{unverified * 1e3:.0f} ms | {prefill:.2f} s | {prefill / loaded:.0f} x |"
    )


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeat", type=int, default=12)
    args = parser.parse_args()
    lines = [
        "| positions | cache | file | save | load | of it without checksums | evaluate again | loading is faster by |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    with tl.load_model(args.model) as model, tempfile.TemporaryDirectory(dir=HERE.parent) as folder:
        began = time.perf_counter()
        model.fingerprint
        first = time.perf_counter() - began
        for n_past, kv_dtype in ((1000, "f32"), (1000, "f16"), (4000, "f16")):
            lines.append(row(model, os.path.join(folder, "s"), n_past, kv_dtype, args.repeat))
        lines += [
            "",
            f"{model.config.name}, {model.nbytes / 1e6:,.0f} MB of weights. The first save or load of a process also "
            f"takes the fingerprint of the weights: {first * 1e3:.0f} ms.",
        ]
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
