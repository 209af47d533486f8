"""Runs one engine that serves many requests. Reads tasks as JSON lines, and answers each with a line.

`python serve_worker.py teachllama MODEL.gguf THREADS`, or `llama.cpp MODEL.gguf THREADS flash=on|off cache=one|each`.
`serve.py` starts one of each. Both run the same loop, generate the likeliest token, and continue after an end-of-text
token, so that a trace is the same work for both.

Tasks and answers:
    {"task": "open", "slots": 8, "seq_len": 1280, "budget": 256, "prefixes": true} -> {}: sets the maximum number of
        concurrent requests, positions per request, and rows per step; frees the memory of an earlier "open"
    {"task": "play", "trace": [...], "clients": 0}  -> {"seconds": ..., "requests": [...]}
A request of a trace: {"prompt": ids, "n": tokens to generate, "at": seconds or "after": tokens}. It arrives after `at`
seconds, or when the first request has generated `after` tokens. With clients, "at" is ignored: each client sends its
next request when the previous one has ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from worker import LlamaCpp


@dataclass(slots=True)
class Answer:
    """The result of a request: token ids, the time of each (`time.perf_counter`), number of prompt tokens reused."""

    ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    reused: int = 0


class OurServer:
    """`tl.Scheduler` on a pool. The cache is float16, llama.cpp's default."""

    def __init__(self, path: str, threads: int):
        import teachllama as tl

        tl.set_num_threads(threads)
        self.tl, self.model, self.pool = tl, tl.load_model(path), None
        self.model.tokenizer.eog_ids = frozenset()

    def open(self, slots: int, seq_len: int, budget: int, prefixes: bool) -> None:
        if self.pool is not None:
            self.pool.close()
        nbytes = slots * self.tl.kv_cache_bytes(self.model.config, seq_len, "f16")
        self.pool = self.model.create_pool(nbytes=nbytes, kv_dtype="f16")
        self.scheduler = self.tl.Scheduler(
            self.pool, max_tokens_per_step=budget, max_running=slots, seq_len=seq_len, prefixes=prefixes
        )

    def submit(self, prompt: list[int], n: int) -> Any:
        return self.scheduler.submit(prompt, max_new_tokens=n)

    def n_open(self) -> int:
        return len(self.scheduler.requests)

    def step(self) -> None:
        self.scheduler.step()

    def answer(self, request: Any) -> Answer:
        return Answer(request.tokens, request.timings.tokens, request.n_reused)


@dataclass(slots=True)
class Job:
    """A request to the peer: tokens of the prompt and those generated, and how many to generate."""

    ids: list[int]
    n: int
    answer: Answer = field(default_factory=Answer)


@dataclass(slots=True)
class Slot:
    """A sequence of the peer's cache: the tokens it holds, and the request that uses it."""

    number: int
    held: list[int] = field(default_factory=list)
    job: Job | None = None

    def common(self, ids: list[int]) -> int:
        """How many of the first tokens the slot holds. Excludes the last one of `ids`, whose logits are needed."""
        n = min(len(self.held), len(ids) - 1)
        return next((i for i in range(n) if self.held[i] != ids[i]), n)


class PeerServer(LlamaCpp):
    """Continuous batching with llama.cpp's `llama_batch`, one sequence per slot.

    As in llama.cpp's own server, a slot keeps its tokens after its request has ended, and a request gets the free slot
    with the longest common prefix.
    """

    def __init__(self, path: str, threads: int, flash: str, cache: str):
        super().__init__(path, threads, flash)
        self.unified, self.serving = cache == "one", None

    def open(self, slots: int, seq_len: int, budget: int, prefixes: bool) -> None:
        if self.serving is not None:
            self.api.llama_batch_free(self.batch)
            self.api.llama_free(self.serving)
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = seq_len * slots, max(512, budget), slots
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type, params.kv_unified = self.flash, self.unified
        self.serving, self.batch = (
            self.api.llama_init_from_model(self.model, params),
            self.api.llama_batch_init(budget, 0, 1),
        )
        self.slots, self.waiting = [Slot(i) for i in range(slots)], deque()
        self.budget, self.prefixes = budget, prefixes

    def submit(self, prompt: list[int], n: int) -> Job:
        self.waiting.append(job := Job(list(prompt), n))
        return job

    def n_open(self) -> int:
        return len(self.waiting) + sum(slot.job is not None for slot in self.slots)

    def answer(self, request: Job) -> Answer:
        return request.answer

    def admit(self) -> None:
        while self.waiting and (free := [slot for slot in self.slots if slot.job is None]):
            job = self.waiting.popleft()
            slot = max(free, key=lambda s: s.common(job.ids)) if self.prefixes else free[0]
            job.answer.reused = slot.common(job.ids) if self.prefixes else 0
            memory = self.api.llama_get_memory(self.serving)
            self.api.llama_memory_seq_rm(memory, slot.number, job.answer.reused, -1)
            del slot.held[job.answer.reused :]
            slot.job = job

    def step(self) -> None:
        import numpy as np

        self.admit()
        batch, n, plan = self.batch, 0, []
        lacking = [(slot, slot.job.ids[len(slot.held) :]) for slot in self.slots if slot.job is not None]
        for slot, ids in sorted(lacking, key=lambda pair: len(pair[1]) > 1):  # generating requests first
            part = ids[: self.budget - n]
            for i, token in enumerate(part):
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, len(slot.held) + i, 1
                batch.seq_id[n][0], batch.logits[n] = slot.number, i == len(ids) - 1
                n += 1
            plan.append((slot, part, n - 1 if part and len(part) == len(ids) else None))
        batch.n_tokens = n
        if self.api.llama_decode(self.serving, batch):
            raise RuntimeError("llama_decode failed")
        for slot, part, row in plan:
            slot.held.extend(part)
            if row is not None and (job := slot.job) is not None:
                logits = np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.serving, row), shape=(self.n_vocab,))
                job.ids.append(int(logits.argmax()))
                job.answer.ids.append(job.ids[-1])
                job.answer.times.append(time.perf_counter())
                if len(job.answer.ids) == job.n:
                    slot.job = None


def play(engine: Any, trace: list[dict[str, Any]], clients: int) -> dict[str, Any]:
    """Runs a trace to its end. Times are in seconds since its start."""
    began = time.perf_counter()
    waiting, made = deque(trace), []

    def comes(asked: dict[str, Any]) -> bool:
        if clients:
            return engine.n_open() < clients
        if "after" in asked:
            return len(engine.answer(made[0][0]).ids) >= asked["after"]
        return time.perf_counter() - began >= asked["at"]

    while waiting or engine.n_open():
        while waiting and comes(waiting[0]):
            asked, now = waiting.popleft(), time.perf_counter() - began
            arrived = asked["at"] if "at" in asked and not clients else now  # "at" even if it waited for a step to end
            made.append((engine.submit(asked["prompt"], asked["n"]), arrived))
        if engine.n_open():
            engine.step()
        elif waiting:
            time.sleep(max(0.0, waiting[0]["at"] - (time.perf_counter() - began)))
    seconds, requests = time.perf_counter() - began, []
    for request, arrived in made:
        answer = engine.answer(request)
        times = [t - began for t in answer.times]
        requests.append({"arrived": arrived, "times": times, "ids": answer.ids, "reused": answer.reused})
    return {"seconds": seconds, "requests": requests}


def main() -> None:
    """Answers tasks until stdin ends."""
    name, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    how = dict(pair.split("=") for pair in sys.argv[4:])
    started = time.perf_counter()
    engine: Any = OurServer(path, threads) if name == "teachllama" else PeerServer(path, threads, **how)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        kind = task.pop("task")
        print(json.dumps(play(engine, **task) if kind == "play" else engine.open(**task) or {}), flush=True)


if __name__ == "__main__":
    main()
