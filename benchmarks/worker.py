"""Runs one engine in one process. Reads tasks as JSON lines from stdin, and answers each with a JSON line on stdout.

`python worker.py teachllama MODEL.gguf THREADS` or `python worker.py llama.cpp MODEL.gguf THREADS [flash=on|off]`.
`compare.py` and `fidelity.py` start one of each, the second with the Python that has llama-cpp-python, and give them
the same tasks.

Tasks and answers:
    {"task": "decode", "n": 128, "n_past": 4}    -> {"seconds": ...}
    {"task": "prefill", "n": 512}                -> {"seconds": ...}
    {"task": "batch", "sessions": 8, "n": 16}    -> {"seconds": ...}: n tokens of each session, all in one pass
    {"task": "memory"}                           -> {"resident": bytes, "private": bytes}: loaded, a context of 1024,
                                                    one token evaluated
    {"task": "logits", "ids": [...], "to": FILE} -> {}: saves float32 (n, vocab_size) with NumPy
    {"task": "greedy", "ids": [...], "n": 48}    -> {"ids": [...]}
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEQ_LEN = 8192
TOKENS = [504, 3575, 282, 4649, 314, 260, 216, 33]  # arbitrary, because time does not depend on the ids


class TeachLlama:
    """Our engine. The cache is float16, llama.cpp's default."""

    def __init__(self, path: str, threads: int, **how: str):
        import teachllama as tl

        tl.set_num_threads(threads)
        self.model = tl.load_model(path, **how)  # type: ignore[arg-type]
        self.create(1024)

    def create(self, seq_len: int) -> None:
        self.session = self.model.create_session(seq_len=seq_len, kv_dtype="f16")

    def reset(self) -> None:
        self.session.reset()

    def rewind(self, n_past: int) -> None:
        self.session.rewind(n_past)

    def open_batch(self, n: int) -> None:
        self.many = [self.model.create_session(seq_len=64, kv_dtype="f16") for _ in range(n)]
        self.at = 0

    def step_batch(self, ids: Sequence[int]) -> None:
        import teachllama as tl

        tl.eval_batch([(session, [token]) for session, token in zip(self.many, ids, strict=True)])

    def close_batch(self) -> None:
        for session in self.many:
            session.close()

    def evaluate(self, ids: Sequence[int]) -> int:
        """Evaluates ids. Returns the likeliest next token."""
        self.session.eval(ids)
        return self.session.sample()

    def logits(self, ids: Sequence[int]) -> Any:
        return self.session.eval(ids, all_logits=True)


class LlamaCpp:
    """llama.cpp through its C interface."""

    def __init__(self, path: str, threads: int, flash: str = "auto"):
        import llama_cpp

        self.api, self.threads = llama_cpp, threads
        self.flash = {"auto": -1, "off": 0, "on": 1}[flash]
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)  # must stay alive: the library stores a pointer
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = None
        self.create(1024)

    def create(self, seq_len: int) -> None:
        if self.context is not None:
            self.api.llama_free(self.context)
        self.context = self.new_context(seq_len, 1)

    def new_context(self, seq_len: int, sequences: int) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = seq_len * sequences, 512, sequences
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = self.flash
        return self.api.llama_init_from_model(self.model, params)

    def rewind(self, n_past: int) -> None:
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, n_past, -1)

    def open_batch(self, n: int) -> None:
        self.many, self.at = self.new_context(256, n), 0
        self.batch = self.api.llama_batch_init(n, 0, 1)

    def step_batch(self, ids: Sequence[int]) -> None:
        import numpy as np

        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, self.at, 1, 1
            batch.seq_id[i][0] = i
        if self.api.llama_decode(self.many, batch):
            raise RuntimeError("llama_decode failed")
        self.at += 1
        for i in range(len(ids)):
            np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.many, i), shape=(self.n_vocab,)).argmax()

    def close_batch(self) -> None:
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.many)

    def reset(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def evaluate(self, ids: Sequence[int]) -> int:
        import numpy as np

        for at in range(0, len(ids), 512):
            part = ids[at : at + 512]
            array = (self.api.llama_token * len(part))(*part)  # must stay alive: the batch stores only a pointer
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(part))):
                raise RuntimeError("llama_decode failed")
        logits = self.api.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.n_vocab,)).argmax())

    def logits(self, ids: Sequence[int]) -> Any:
        import numpy as np

        batch, rows = self.api.llama_batch_init(512, 0, 1), []
        for at in range(0, len(ids), 512):
            part = ids[at : at + 512]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, at + i, 1, 1
                batch.seq_id[i][0] = 0
            if self.api.llama_decode(self.context, batch):
                raise RuntimeError("llama_decode failed")
            found = [self.api.llama_get_logits_ith(self.context, i) for i in range(len(part))]
            rows += [np.ctypeslib.as_array(row, shape=(self.n_vocab,)).copy() for row in found]
        self.api.llama_batch_free(batch)
        return np.array(rows)


def memory() -> dict[str, int]:
    """Bytes resident in this process, including mapped files, and those that no other process shares."""
    found = dict(re.findall(r"^(\w+): +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), flags=re.M))
    private = int(found["Private_Clean"]) + int(found["Private_Dirty"])
    return {"resident": int(found["Rss"]) * 1024, "private": private * 1024}


def main() -> None:
    """Answers tasks until stdin ends."""
    name, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    how = dict(pair.split("=") for pair in sys.argv[4:])
    started = time.perf_counter()
    engine = TeachLlama(path, threads, **how) if name == "teachllama" else LlamaCpp(path, threads, **how)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    seq_len, evaluated = 1024, 0  # evaluated: number of positions filled with the tokens of a decode task
    for line in sys.stdin:
        task = json.loads(line)
        if task["task"] == "decode" and 0 < task.get("n_past", 0) == evaluated:
            engine.rewind(evaluated)  # evaluate a long context only once
        else:
            engine.reset()
            evaluated = 0
        if task["task"] == "memory":
            engine.evaluate([1])
            print(json.dumps(memory()), flush=True)
            continue
        if seq_len != SEQ_LEN:
            seq_len = SEQ_LEN
            engine.create(SEQ_LEN)
        answer: dict[str, Any] = {}
        if task["task"] == "logits":
            import numpy as np

            np.save(task["to"], engine.logits(task["ids"]))
        elif task["task"] == "greedy":
            ids = [engine.evaluate(task["ids"])]
            while len(ids) < task["n"]:
                ids.append(engine.evaluate([ids[-1]]))
            answer["ids"] = ids
        else:
            n_past = task.get("n_past", 0)
            if task["task"] == "batch":
                engine.open_batch(task["sessions"])
                row = (TOKENS * task["sessions"])[: task["sessions"]]
                engine.step_batch(row)
                started = time.perf_counter()
                for _ in range(task["n"]):
                    engine.step_batch(row)
                answer["seconds"] = time.perf_counter() - started
                engine.close_batch()
                print(json.dumps(answer), flush=True)
                continue
            ids = (TOKENS * (max(n_past, task["n"]) // len(TOKENS) + 1))[: n_past or task["n"]]
            token = 7
            if task["task"] == "decode" and evaluated != n_past:
                engine.evaluate(ids)
                evaluated = n_past
            started = time.perf_counter()
            if task["task"] == "decode":
                for _ in range(task["n"]):
                    token = engine.evaluate([token])
            else:
                engine.evaluate(ids)
            answer["seconds"] = time.perf_counter() - started
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
