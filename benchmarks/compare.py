"""Measures teachllama beside llama.cpp: the same tasks, in turn (A B A B), in one run. `make bench`.

No figure of ours is given without the peer's from the same run: machines differ, and one machine differs from hour to
hour. What counts is the ratio, the median over pairs measured one right after the other, with its spread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for tests.tools, which writes GGUF files

TASKS = [
    {"task": "decode", "n": 128, "n_past": 4},
    {"task": "decode", "n": 64, "n_past": 1024},
    {"task": "prefill", "n": 32},
    {"task": "prefill", "n": 512},
]


class Engine:
    """A worker process and how to ask it."""

    def __init__(self, python: str, name: str, model: str, threads: int):
        command = [python, str(HERE / "worker.py"), name, model, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_seconds = self._answer()["load_seconds"]

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended without an answer")
        return json.loads(line)

    def seconds(self, task: dict[str, object]) -> float:
        """Runs one task and says how long it took."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]


def main() -> None:
    """Measures, prints a table, and saves it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--model", default="smollm2-135m", help="a .gguf file or a name (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each task, each beside the peer's")
    parser.add_argument("--save", default="out/benchmark.json", metavar="FILE")
    args = parser.parse_args()

    from gguf import GGMLQuantizationType

    from teachllama import hub
    from tests.tools import copy_as

    with tempfile.TemporaryDirectory() as folder:
        # Both get the same float32 weights: ours dequantizes the file itself, the peer reads a float32 copy of it.
        path = hub.find(args.model)
        copy = copy_as(path, Path(folder) / "f32.gguf", GGMLQuantizationType.F32)
        ours = Engine(sys.executable, "teachllama", str(path), args.threads)
        peer = Engine(args.peer, "llama.cpp", str(copy), args.threads)
        for engine in (ours, peer):
            for task in TASKS:
                engine.seconds({**task, "n": 8})  # the first of anything is slow
        rows = []
        for task in TASKS:
            pairs = [(ours.seconds(task), peer.seconds(task)) for _ in range(args.pairs)]
            ratios = sorted(theirs / mine for mine, theirs in pairs)
            mine, theirs = (task["n"] / statistics.median(column) for column in zip(*pairs))  # type: ignore[operator]
            name = f"{task['task']} {task['n']}" + (f" at n_past {task['n_past']}" if "n_past" in task else "")
            ratio = statistics.median(ratios)
            rows.append({"task": name, "ours_tps": mine, "llama_cpp_tps": theirs, "ratio": ratio, "ratios": ratios})

    print(f"{path.name}, float32 weights, {args.threads} threads, medians of {args.pairs} pairs\n")
    print(f"{'':24} {'teachllama':>12} {'llama.cpp':>12} {'ratio':>7}   spread")
    for row in rows:
        spread = f"{row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f}"
        speeds = f"{row['ours_tps']:>6.1f} tok/s {row['llama_cpp_tps']:>6.1f} tok/s"
        print(f"{row['task']:24} {speeds} {row['ratio']:>6.2f}x   {spread}")
    print(f"{'load':24} {ours.load_seconds:>10.2f} s {peer.load_seconds:>10.2f} s")
    save = Path(args.save)
    save.parent.mkdir(parents=True, exist_ok=True)
    save.write_text(json.dumps({"model": path.name, "threads": args.threads, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
