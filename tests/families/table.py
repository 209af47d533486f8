"""Writes the table of families for the docs: `python -m tests.families.table`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import teachllama as tl
from teachllama.families import FAMILIES
from tests.families import CLEAR, VARIANTS, build, columns_of, load_golden, prompt

TARGET = Path(__file__).parent.parent.parent / "docs" / "measured" / "families.inc"


def difference(model: tl.Model, golden: dict[str, Any]) -> tuple[float, int]:
    """The largest difference of logits and logsumexp at any position, and the number of greedy steps that agree."""
    ids = prompt(model.config.vocab_size)
    with model.create_session(seq_len=1024) as session:
        logits = session.eval(ids, all_logits=True)
        wide = logits.astype(np.float64)
        found = np.take_along_axis(logits, columns_of(logits.shape[1]), axis=1)
        sums = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
        steps = 0
        for expected, gap in zip(golden["greedy"], golden["gap"], strict=True):
            if gap < CLEAR or session.sample() != expected:
                break
            session.eval([expected])
            steps += 1
    return float(max(np.abs(found - golden["logits"]).max(), np.abs(sums - golden["logsumexp"]).max())), steps


def main() -> None:
    """Evaluates every variant on both backends and writes the table."""
    rows = [
        "| family | what makes it different | variant | NumPy | compiled | greedy, of 50 | stock |",
        "|---|---|---|---|---|---|---|",
    ]
    named: set[str] = set()
    for name, v in sorted(VARIANTS.items(), key=lambda item: list(FAMILIES).index(item[1].arch)):
        if not v.peer:
            continue
        golden, cells, greedy = load_golden(name), [], []
        with tempfile.TemporaryDirectory() as folder:
            path = build(name, Path(folder) / "model.gguf")
            for how in ({"backend": "numpy", "weights": "f32"}, {"backend": "numba"}):
                with tl.load_model(path, **how) as model:  # type: ignore[arg-type]
                    worst, steps = difference(model, golden)
                    cells.append(f"{worst:.1e}")
                    greedy.append(steps)
        stock = f"{golden['stock_differs_by']:.1e}" if "stock_differs_by" in golden else ""
        family = FAMILIES[v.arch]
        first = f"`{v.arch}` | {family.about}" if v.arch not in named else " | "
        named.add(v.arch)
        rows.append(f"| {first} | {v.about} | {' | '.join(cells)} | {min(greedy)} | {stock} |")
    TARGET.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
