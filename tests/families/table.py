"""Writes the table of families for the docs: `python -m tests.families.table`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import teachllama as tl
from teachllama.families import FAMILIES
from tests.families import N_PROMPT, VARIANTS, build, columns_of, load_golden, prompt

TARGET = Path(__file__).parent.parent.parent / "docs" / "measured" / "families.inc"


def difference(model: tl.Model, golden: dict) -> tuple[float, int]:
    """The largest difference at any position, and how many greedy steps agree before one is too close to call."""
    ids = prompt(model.config.vocab_size)
    with model.create_session(seq_len=1024) as session:
        logits = session.eval(ids, all_logits=True)
        found = np.take_along_axis(logits, columns_of(logits.shape[1]), axis=1)
        steps = 0
        for expected, gap in zip(golden["greedy"], golden["gap"], strict=True):
            if gap < 0.02 or session.sample() != expected:
                break
            session.eval([expected])
            steps += 1
    assert len(logits) == N_PROMPT
    return float(np.abs(found - golden["logits"]).max()), steps


def main() -> None:
    """Evaluates every variant on both backends and writes the table."""
    rows = [
        "| family | what makes it different | variant | NumPy | compiled | greedy | stock |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, v in VARIANTS.items():
        if not v.peer:
            continue
        golden, cells = load_golden(name), []
        with tempfile.TemporaryDirectory() as folder:
            path = build(name, Path(folder) / "model.gguf")
            for how in ({"backend": "numpy", "weights": "f32"}, {"backend": "numba"}):
                with tl.load_model(path, **how) as model:
                    worst, steps = difference(model, golden)
                    cells.append(f"{worst:.1e}")
        stock = f"{golden['stock_differs_by']:.1e}" if v.gelu else ""
        family = FAMILIES[v.arch]
        rows.append(f"| `{v.arch}` | {family.about} | {v.about} | {' | '.join(cells)} | {steps} | {stock} |")
    TARGET.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
