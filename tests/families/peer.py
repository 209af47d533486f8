"""Runs in the Python that has llama-cpp-python: `python peer.py MODEL IDS.json OUT.npz N_GREEDY`.

Evaluates all ids at once in float32 (the cache too, without flash attention), then continues greedily. Saves the
logits of every position and, for each greedy step, the id and the gap to the second best.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp as api
import numpy as np


def main() -> None:
    """Runs the command described above."""
    path, ids_path, out, n_greedy = sys.argv[1:5]
    ids = json.loads(Path(ids_path).read_text())
    said: list[bytes] = []
    log = api.llama_log_callback(lambda level, text, data: said.append(text))  # keep it: the library has only a pointer
    api.llama_log_set(log, None)
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    if not model:
        sys.exit("llama.cpp does not load it: " + b"".join(said[-4:]).decode(errors="replace"))
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 1024, 512, 512, 1, 1
    params.type_k = params.type_v = 0  # GGML_TYPE_F32
    params.flash_attn_type = 0  # off
    params.no_perf = True
    context = api.llama_init_from_model(model, params)
    n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(512, 0, 1)

    def evaluate(part: list[int], at: int) -> np.ndarray:
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, at + i, 1, 1
            batch.seq_id[i][0] = 0
        if api.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        rows = [api.llama_get_logits_ith(context, i) for i in range(len(part))]
        return np.array([np.ctypeslib.as_array(row, shape=(n_vocab,)).copy() for row in rows])

    logits = evaluate(ids, 0)
    last, greedy, gaps = logits[-1], [], []
    for step in range(int(n_greedy)):
        best = np.sort(last)[-2:]
        greedy.append(int(last.argmax()))
        gaps.append(float(best[1] - best[0]))
        last = evaluate([greedy[-1]], len(ids) + step)[0]
    version = getattr(__import__("llama_cpp"), "__version__", "")
    np.savez(out, logits=logits, greedy=np.array(greedy), gap=np.array(gaps, np.float32), version=version)


main()
