"""Times one draw from a model's logits, next to llama.cpp's sampler chain: the same logits and settings, in turns.

    python benchmarks/sampling.py --peer .venv-peer/bin/python

Ours is `teachllama.sampling.sample`. llama.cpp's is a chain of penalties, top-k, top-p, min-p, temperature and draw,
without those that the settings turn off. Its time includes filling the array of candidates, as `llama_sampler_sample`
does for every token. The two use different random numbers, so they draw different tokens.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROMPT = "Once upon a time, there was a"
PENALTIES = {"repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature 0.8": {"temperature": 0.8},
    "temperature 1.5": {"temperature": 1.5},
    "top_k 40": {"temperature": 0.8, "top_k": 40},
    "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_p 0.999": {"temperature": 1.5, "top_p": 0.999},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "top_p 0.95, min_p 0.05": {"temperature": 0.8, "top_p": 0.95, "min_p": 0.05},
    "penalties": {"temperature": 0.8, **PENALTIES},
    "top_k 40, top_p 0.95, min_p 0.05, penalties": {
        "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, **PENALTIES,
    },
    "top_k 30000, top_p 0.95, min_p 0.001, penalties": {
        "temperature": 0.8, "top_k": 30000, "top_p": 0.95, "min_p": 0.001, **PENALTIES,
    },
}  # fmt: skip
SEEN = [*range(100, 150), *range(100, 114)]  # the 64 tokens that the penalties count


def peer_main() -> None:
    """Runs in the peer's Python. Reads lines {"logits": FILE} or {"settings": NAME}, and answers each with seconds."""
    import ctypes

    import llama_cpp as api
    import numpy as np

    quiet = api.llama_log_callback(lambda *_: None)  # must stay alive: the library stores only a pointer
    api.llama_log_set(quiet, None)
    token_data = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

    def chain_of(settings: dict[str, Any], n_vocab: int) -> Any:
        steps = []
        if "repeat_penalty" in settings:
            values = [settings[k] for k in ("repeat_penalty", "frequency_penalty", "presence_penalty")]
            steps.append(api.llama_sampler_init_penalties(n_vocab, len(SEEN), *values))
        if "top_k" in settings:
            steps.append(api.llama_sampler_init_top_k(settings["top_k"]))
        if "top_p" in settings:
            steps.append(api.llama_sampler_init_top_p(settings["top_p"], 1))
        if "min_p" in settings:
            steps.append(api.llama_sampler_init_min_p(settings["min_p"], 1))
        steps += [api.llama_sampler_init_temp(settings["temperature"]), api.llama_sampler_init_dist(1)]
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        for step in steps:
            api.llama_sampler_chain_add(chain, step)
        for token in SEEN:
            api.llama_sampler_accept(chain, token)
        return chain

    chains: dict[str, Any] = {}
    candidates = filled = np.zeros(0, token_data)
    for line in sys.stdin:
        task = json.loads(line)
        if "logits" in task:
            logits = np.load(task["logits"])
            filled = np.zeros(len(logits), token_data)
            filled["id"], filled["logit"] = np.arange(len(logits)), logits
            candidates = filled.copy()
            chains = {name: chain_of(settings, len(logits)) for name, settings in SETTINGS.items()}
            print(json.dumps(0), flush=True)
            continue
        started = time.perf_counter()
        candidates[:] = filled
        data = candidates.ctypes.data_as(ctypes.POINTER(api.llama_token_data))
        array = api.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
        api.llama_sampler_apply(chains[task["settings"]], ctypes.byref(array))
        seconds = time.perf_counter() - started
        assert array.selected >= 0
        print(json.dumps(seconds), flush=True)


def rows() -> dict[str, Any]:
    """Logits by name: those of both models after a prompt, and nearly flat random ones, as many as Gemma's."""
    import numpy as np

    import teachllama as tl

    found: dict[str, Any] = {}
    for label, name in (("SmolLM2", "smollm2-135m"), ("Gemma 3", "gemma3-270m")):
        with tl.load_model(name) as model, model.create_session(seq_len=64) as session:
            logits = session.eval(model.encode(PROMPT, add_special=True)).copy()
        found[f"{label}, {len(logits):,} tokens"] = logits
    flat = np.random.default_rng(0).normal(size=262_144).astype(np.float32)
    found[f"nearly flat, {len(flat):,} tokens"] = flat
    return found


def main() -> None:
    """Measures, prints a table, and saves it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument(
        "--draws", type=int, default=200, help="draws of each, one of ours and one of llama.cpp in turn"
    )
    parser.add_argument("--save", default=str(HERE.parent / "docs" / "measured" / "sampling.json"), metavar="FILE")
    args = parser.parse_args()

    import numpy as np
    from compare import processor

    from teachllama.sampling import SamplingParams, sample

    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import sampling; sampling.peer_main()"
    peer = subprocess.Popen([args.peer, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(task: dict[str, Any]) -> float:
        assert peer.stdin is not None
        assert peer.stdout is not None
        peer.stdin.write(json.dumps(task) + "\n")
        peer.stdin.flush()
        return json.loads(peer.stdout.readline())

    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "processor": processor(), "draws": args.draws, "rows": {},
    }  # fmt: skip
    print(f"{result['processor']}: milliseconds per draw, smallest and median of {args.draws}")
    with tempfile.TemporaryDirectory() as folder:
        for name, logits in rows().items():
            file = Path(folder) / "logits.npy"
            np.save(file, logits)
            ask({"logits": str(file)})
            print(f"\n{name:50} {'teachllama':>15} {'llama.cpp':>15}")
            result["rows"][name] = {}
            for label, settings in SETTINGS.items():
                params, rng = SamplingParams(**settings), np.random.default_rng(0)
                mine, theirs = [], []
                for _ in range(args.draws):
                    started = time.perf_counter()
                    sample(logits, params, SEEN, rng)
                    mine.append(1000 * (time.perf_counter() - started))
                    theirs.append(1000 * ask({"settings": label}))
                row = {
                    who: {"min": min(times), "median": statistics.median(times)}
                    for who, times in (("ours", mine), ("peer", theirs))
                }
                result["rows"][name][label] = row
                cells = [f"{row[who]['min']:>7.2f} {row[who]['median']:>7.2f}" for who in ("ours", "peer")]
                print(f"{label:50} {cells[0]} {cells[1]}", flush=True)
    peer.kill()
    peer.wait()
    save = Path(args.save)
    save.parent.mkdir(parents=True, exist_ok=True)
    save.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nsaved: {save}")


if __name__ == "__main__":
    main()
