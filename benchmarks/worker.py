"""One engine in one process: reads tasks as JSON lines on stdin, answers each with a JSON line on stdout.

`python worker.py teachllama MODEL.gguf THREADS` or `python worker.py llama.cpp MODEL.gguf THREADS`; `compare.py` starts
one of each, the second with the Python that has llama-cpp-python, and gives them the same tasks in turn.
Tasks: {"task": "decode", "n": 128, "n_past": 4} and {"task": "prefill", "n": 512}; answers: {"seconds": ...}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

SEQ_LEN = 8192
TOKENS = [504, 3575, 282, 4649, 314, 260, 216, 33]  # any ids do: time does not depend on them


def teachllama_engine(path: str, threads: int) -> tuple[Callable[[], None], Callable[[Sequence[int]], int]]:
    """Two functions: forget everything; evaluate ids and return the likeliest next token."""
    import teachllama as tl

    tl.set_num_threads(threads)
    session = tl.load_model(path).create_session(seq_len=SEQ_LEN)

    def evaluate(ids: Sequence[int]) -> int:
        session.eval(ids)
        return session.sample()

    return session.reset, evaluate


def llama_cpp_engine(path: str, threads: int) -> tuple[Callable[[], None], Callable[[Sequence[int]], int]]:
    """The same two functions, over llama.cpp's C interface."""
    import llama_cpp
    import numpy as np

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = SEQ_LEN, 512, threads, threads
    context = llama_cpp.llama_init_from_model(model, params)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    keep: list[Any] = [quiet]

    def evaluate(ids: Sequence[int]) -> int:
        for at in range(0, len(ids), 512):
            part = ids[at : at + 512]
            array = (llama_cpp.llama_token * len(part))(*part)  # named: the batch only points at it
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(part))):
                raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(n_vocab,)).argmax())

    def reset() -> None:
        assert keep
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

    return reset, evaluate


def main() -> None:
    """Answers tasks until stdin ends."""
    name, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    started = time.perf_counter()
    reset, evaluate = {"teachllama": teachllama_engine, "llama.cpp": llama_cpp_engine}[name](path, threads)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        reset()
        if task["task"] == "decode":
            token = evaluate((TOKENS * (task["n_past"] // len(TOKENS) + 1))[: task["n_past"]])
            started = time.perf_counter()
            for _ in range(task["n"]):
                token = evaluate([token])
        else:
            ids = (TOKENS * (task["n"] // len(TOKENS) + 1))[: task["n"]]
            started = time.perf_counter()
            evaluate(ids)
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
