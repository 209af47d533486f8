"""A load test: what many clients get from one model, next to llama.cpp with the same trace. `make bench-serve`.

Four questions, each with requests made from a seed; lengths and pauses are drawn from the distributions in `WORK`:

- 8 clients, each sending its next request when its answer has ended: how many times the throughput of one at a time?
- Requests that arrive at random (a Poisson process), half of them with a shared beginning: how long until the first
  token, how long between tokens, with prefixes and without?
- A prompt of 1,000 tokens arrives while 7 others generate: how long do they wait, if it is read whole or in pieces?
- A prompt of which 500 tokens are already cached: how much sooner is its first token?

llama.cpp runs with flash attention on and off, and with one cache for all sequences or one per sequence. The setting
that serves 8 clients fastest is used for everything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from compare import MAX_LOAD, Engine, other_load, processor

HERE = Path(__file__).parent
SETTINGS = [(f"flash={flash}", f"cache={cache}") for flash in ("off", "on") for cache in ("each", "one")]
CLIENTS, SEQ_LEN, BUDGET = 8, 1280, 256
BUDGETS = (16, 40, 72, 264, 1280)  # rows per step while a long prompt arrives: 8 plus 8, 32, 64, 256, or enough for all
Answers = list[dict[str, Any]]
WORK = {  # lengths in tokens: the median of a log-normal distribution, its sigma, minimum and maximum
    "clients": {"own": (32, 0.5, 8, 128), "new": (96, 0.4, 32, 160), "shared": (0, 0)},
    "arrivals": {"own": (64, 0.7, 8, 400), "new": (32, 0.5, 8, 96), "shared": (3, 192)},  # texts, tokens per text
}
LOAD = 0.7  # rate of arrivals, as a fraction of the rate that the slower engine can serve


@dataclass(frozen=True, slots=True)
class Size:
    """The amount of work to measure."""

    clients: int = 24  # number of requests from the 8 clients
    turns: int = 3
    arrivals: int = 36  # number of requests that arrive at random
    longest: int = 1000  # maximum tokens of an answer
    budgets: tuple[int, ...] = BUDGETS
    repeats: int = 2


QUICK = Size(clients=8, turns=1, arrivals=8, longest=8, budgets=BUDGETS[3:], repeats=1)


class Texts:
    """Token ids of this project's documentation, from which prompts are taken."""

    def __init__(self, ids: list[int], seed: int, longest: int):
        self.ids, self.rng, self.longest = ids, np.random.default_rng(seed), longest

    def cut(self, n: int) -> list[int]:
        """n consecutive tokens from a random position."""
        at = int(self.rng.integers(len(self.ids) - n))
        return self.ids[at : at + n]

    def length(self, median: int, sigma: float, least: int, most: int) -> int:
        return int(np.clip(round(self.rng.lognormal(np.log(median), sigma)), least, most))

    def trace(self, kind: str, n: int, rate: float = 1.0) -> Answers:
        """n requests of a kind. Pauses are exponential, with `rate` requests per second on average."""
        work, at, asked = WORK[kind], 0.0, []
        n_shared, n_common = work["shared"]
        common = [self.cut(int(n_common)) for _ in range(int(n_shared))]
        for i in range(n):
            at += float(self.rng.exponential(1 / rate))
            beginning = common[int(self.rng.integers(len(common)))] if common and i % 2 else []
            own, new = self.cut(self.length(*work["own"])), min(self.longest, self.length(*work["new"]))
            asked.append({"at": at, "prompt": beginning + own, "n": new})
        return asked


def percentiles(values: list[float]) -> list[float]:
    """The 50th, 95th and 99th percentiles."""
    return [float(p) for p in np.percentile(values, [50, 95, 99])]


def gaps_of(request: dict[str, Any], begin: float = 0.0, end: float = np.inf) -> list[float]:
    """Seconds between tokens, for tokens generated after `begin` and up to `end`."""
    return [b - a for a, b in pairwise(request["times"]) if begin < b <= end]


def summary(played: dict[str, Any]) -> dict[str, Any]:
    """Throughput and delays of a played trace."""
    requests = played["requests"]
    made = sum(len(r["ids"]) for r in requests)
    return {
        "n_requests": len(requests),
        "n_tokens": made,
        "tokens_s": made / played["seconds"],
        "requests_s": len(requests) / played["seconds"],
        "first_s": percentiles([r["times"][0] - r["arrived"] for r in requests]),
        "between_s": percentiles([gap for r in requests for gap in gaps_of(r)]),
        "reused": sum(r["reused"] for r in requests),
    }


def play(
    engine: Engine, trace: Answers, clients: int = 0, *, slots: int = CLIENTS, budget: int = BUDGET,
    prefixes: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Plays a trace with an empty cache."""
    engine.ask({"task": "open", "slots": slots, "seq_len": SEQ_LEN, "budget": budget, "prefixes": prefixes})
    return engine.ask({"task": "play", "trace": trace, "clients": clients})


def agreement(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The fraction of requests whose first 8 tokens are the same in two runs of a trace."""
    return statistics.mean(x["ids"][:8] == y["ids"][:8] for x, y in zip(a["requests"], b["requests"], strict=True))


def closed(ours: Engine, peer: Engine, trace: Answers, turns: int) -> dict[str, Any]:
    """Compares 8 clients with one, and with the peer's 8, in turns."""
    found: dict[str, Any] = {"one": [], "eight": [], "peer_one": [], "peer": []}
    for _ in range(turns):
        mine = play(ours, trace, CLIENTS)
        theirs = play(peer, trace, CLIENTS)
        alone = play(ours, trace, 1, slots=1)
        found["eight"].append(summary(mine))
        found["peer"].append(summary(theirs))
        found["one"].append(summary(alone))
    found["peer_one"].append(summary(play(peer, trace, 1, slots=1)))
    found["same_as_alone"], found["same_as_peer"] = agreement(mine, alone), agreement(mine, theirs)
    paces = {who: [row["tokens_s"] for row in found[who]] for who in ("one", "eight", "peer")}
    found["gains"] = sorted(a / b for a, b in zip(paces["eight"], paces["one"], strict=True))
    found["ratios"] = sorted(a / b for a, b in zip(paces["eight"], paces["peer"], strict=True))
    print(
        f"8 clients: {statistics.median(found['gains']):.2f}x one, {statistics.median(found['ratios']):.2f}x the peer"
    )
    return found


def arrivals(ours: Engine, peer: Engine, texts: Texts, n: int) -> dict[str, Any]:
    """Requests that arrive at random, at 70 % of the rate that the slower engine can serve."""
    probe = texts.trace("arrivals", max(CLIENTS, n // 4))
    rates = [summary(play(engine, probe, CLIENTS, prefixes=True))["requests_s"] for engine in (ours, peer)]
    rate = LOAD * min(rates)
    trace = texts.trace("arrivals", n, rate)
    found: dict[str, Any] = {"rate": rate, "n_requests": n, "n_prompt": sum(len(asked["prompt"]) for asked in trace)}
    for name, engine, prefixes in (("prefixes", ours, True), ("none", ours, False), ("peer", peer, True)):
        found[name] = summary(play(engine, trace, prefixes=prefixes))
        first = found[name]["first_s"]
        print(f"arrivals, {name:9} first token {first[0]:.2f} s, 99th percentile {first[2]:.2f} s", flush=True)
    return found


def long_prompt(engine: Engine, texts: Texts, size: Size) -> Answers:
    """For each step budget: how long 7 others wait for tokens before and while a prompt of 1,000 tokens is read."""
    prompts = [([texts.cut(16) for _ in range(CLIENTS - 1)], texts.cut(1000)) for _ in range(size.repeats)]
    rows = []
    for budget in size.budgets:
        before, during, first = [], [], []
        n = min(60 + 1000 // (budget - CLIENTS + 1), 2 * size.longest)  # the others still generate at the end
        for short, prompt in prompts:
            trace = [{"at": 0.0, "prompt": p, "n": n} for p in short] + [{"after": n // 4, "prompt": prompt, "n": 2}]
            *others, long = play(engine, trace, budget=budget)["requests"]
            ready = max(r["times"][1] for r in others)  # from then on, all of them generate
            for r in others:
                before += gaps_of(r, ready, long["arrived"])
                during += gaps_of(r, long["arrived"], long["times"][0])
            first.append(long["times"][0] - long["arrived"])
        median, worst = statistics.median(before), percentiles(during)
        row = {"budget": budget, "median_s": median, "during_s": worst, "ratio": worst[2] / median}
        rows.append(row | {"first_s": statistics.median(first)})
        print(f"1,000 tokens arrive, {budget:5} rows: 99th percentile {row['ratio']:.1f}x the median", flush=True)
    return rows


def shared_prefix(engine: Engine, texts: Texts, n_common: int, repeats: int) -> dict[str, Any]:
    """Time to the first token of prompts with a common prefix, with and without reuse of that prefix."""
    common = texts.cut(n_common)
    trace = [{"prompt": common + texts.cut(12), "n": 2} for _ in range(repeats + 1)]
    row: dict[str, Any] = {"n_common": n_common}
    for name, prefixes in (("with", True), ("without", False)):
        requests = play(engine, trace, 1, prefixes=prefixes)["requests"][1:]
        row[name] = statistics.median(r["times"][0] - r["arrived"] for r in requests)
        row["reused"] = requests[-1]["reused"] if prefixes else row["reused"]
    row["ratio"] = row["without"] / row["with"]
    print(f"{n_common} tokens shared: the first token {row['ratio']:.1f}x sooner", flush=True)
    return row


def measure(args: argparse.Namespace, model: Path, ids: list[int], threads: int) -> dict[str, Any]:
    """Measures everything, in about six minutes or, with --quick, in seconds."""
    size = QUICK if args.quick else Size()
    texts = Texts(ids, args.seed, size.longest)

    def start(python: str, name: str, *how: str) -> Engine:
        return Engine(python, name, model, threads, *how, script="serve_worker.py")

    loads, trace = [other_load()], texts.trace("clients", size.clients)
    ours = start(sys.executable, "teachllama")
    play(ours, trace[:2], 2)  # warm up, because the first run is slow
    settings: dict[str, float] = {}
    for how in SETTINGS:
        peer = start(args.peer, "llama.cpp", *how)
        play(peer, trace[:2], 2)
        settings[" ".join(how)] = summary(play(peer, trace[: size.clients // 2], CLIENTS))["tokens_s"]
        peer.close()
    best = max(settings, key=lambda how: settings[how])
    print("llama.cpp, tokens a second: " + ", ".join(f"{k}: {v:.0f}" for k, v in settings.items()), flush=True)
    peer = start(args.peer, "llama.cpp", *best.split())
    play(peer, trace[:2], 2)
    result: dict[str, Any] = {"settings": settings, "best": best}
    loads.append(other_load())
    result["clients"] = closed(ours, peer, trace, size.turns)
    loads.append(other_load())
    result["arrivals"] = arrivals(ours, peer, texts, size.arrivals)
    loads.append(other_load())
    result["long"] = {"ours": long_prompt(ours, texts, size), "peer": long_prompt(peer, texts, size)}
    result["shared"] = [
        {who: shared_prefix(engine, texts, n, 2 * size.repeats) for who, engine in (("ours", ours), ("peer", peer))}
        for n in (500, 512)
    ]
    ours.close()
    peer.close()
    return result | {"other_load": max([*loads, other_load()])}


def main() -> None:
    """Measures, prints, and saves the results as JSON and as the tables of docs/serving.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=0, help="default: physical cores")
    parser.add_argument("--seed", type=int, default=1, help="of lengths, texts and pauses")
    parser.add_argument("--quick", action="store_true", help="a few requests of each kind, to see that it works")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine, too")
    parser.add_argument("--save", default="", metavar="FILE", help="default: docs/measured/serve.json; --quick: none")
    args = parser.parse_args()

    import page

    import teachllama as tl
    from teachllama import hub
    from teachllama.kernels.machine_code import host_machine
    from teachllama.kernels.shapes import shape_for
    from teachllama.threads import get_num_threads

    threads, before = args.threads or get_num_threads(), other_load()
    if before > MAX_LOAD and not args.busy:
        raise SystemExit(f"other programs keep {before} processors busy; wait for an idle machine, or say --busy")
    path = hub.find("smollm2-135m")
    docs = [(HERE.parent / "docs" / name).read_text(encoding="utf-8") for name in ("engine.md", "glossary.md")]
    with tl.load_model(path) as model:
        ids = model.encode("\n".join(docs))
    flags = Path(args.peer).parent.parent / "build-flags"
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": processor(), "kind": shape_for(host_machine()).kind, "threads": threads},
        "model": "SmolLM2-135M Q4_1 (as published)",
        "peer_build": flags.read_text().strip() if flags.exists() else "unknown",
        "seed": args.seed,
        "work": WORK,
    } | measure(args, path, ids, threads)
    if result["other_load"] > MAX_LOAD and not args.busy:
        raise SystemExit(f"not saved: other programs kept up to {result['other_load']} processors busy meanwhile")
    tables = page.serve_tables(result)
    print("\n" + tables)
    if args.quick and not args.save:
        return
    save = Path(args.save or HERE.parent / "docs" / "measured" / "serve.json")
    save.parent.mkdir(parents=True, exist_ok=True)
    save.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save.with_suffix(".inc").write_text(tables, encoding="utf-8")
    print(f"saved: {save}, {save.with_suffix('.inc')}")


if __name__ == "__main__":
    main()
