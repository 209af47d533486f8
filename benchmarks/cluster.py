"""Three ways of routing calls to workers, on one trace: `python benchmarks/cluster.py`. Needs the extra `cluster`.

Conversations of several turns are interleaved, and some begin with the same long text. For each routing it measures the
share of a call's positions that its worker already had, and the time per call. Writes the table of docs/cluster.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

import teachllama as tl
from teachllama.cluster import ROUTINGS

HERE = Path(__file__).parent
TARGET = HERE.parent / "docs" / "measured" / "cluster.inc"


def trace(n_conversations: int, n_turns: int, seed: int) -> list[tuple[int, str]]:
    """Calls as (conversation, user message), in order of arrival."""
    text = (HERE.parent / "docs" / "engine.md").read_text(encoding="utf-8")
    beginnings = [text[at : at + 1500] for at in (0, 6000, 12000)]
    rng = np.random.default_rng(seed)
    left = dict.fromkeys(range(n_conversations), n_turns)
    calls = []
    while left:
        c = int(rng.choice(list(left)))
        first = left[c] == n_turns
        calls.append((c, (beginnings[c % 3] if first else "") + f"\nQuestion {left[c]} of {c}: what is this about?"))
        left[c] -= 1
        if not left[c]:
            del left[c]
    return calls


def row(client: Client, model: str, routing: str, calls: list[tuple[int, str]]) -> str:
    """One line of the table."""
    with tl.Cluster(client, model, routing=routing) as cluster:
        for worker in cluster.workers:  # load the model before measuring
            session = cluster.open_session(seq_len=64)
            session.worker = worker
            session.generate("x", max_new_tokens=1)
            session.close()
        sessions = {c: cluster.open_session(seq_len=1024, kv_dtype="f16", seed=c) for c, _ in calls}
        seconds, reused, needed = [], 0, 0
        for c, text in calls:
            began = time.perf_counter()
            sessions[c].generate(text, max_new_tokens=8)
            seconds.append(time.perf_counter() - began)
            reused += sessions[c].stats.reused
            needed += sessions[c].stats.reused + sessions[c].stats.n_prompt
    half, most = np.percentile(seconds, [50, 95])
    return f"| {routing} | {100 * reused / needed:.0f} % | {half:.2f} s | {most:.2f} s | {sum(seconds):.0f} s |"


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=9)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    calls = trace(args.conversations, args.turns, seed=1)
    lines = ["| routing | positions found done | a call, median | 95th percentile | all |", "|---|---:|---:|---:|---:|"]
    with (
        LocalCluster(n_workers=args.workers, threads_per_worker=1, dashboard_address=None) as local,
        Client(local) as client,
    ):
        client.run(tl.set_num_threads, 1)
        lines += [row(client, args.model, routing, calls) for routing in ROUTINGS]
    lines += [
        "",
        f"{len(calls)} calls in {args.conversations} conversations, which begin with one of three texts of about 400 "
        f"tokens; 8 tokens each; {args.workers} workers with one thread, on one machine; {args.model}.",
    ]
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
