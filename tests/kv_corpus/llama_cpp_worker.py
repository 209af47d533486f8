"""Runs in llama-cpp-python's environment: loads one header, makes contexts, prints the log's sizes.

Standard input: a list of settings (see `ask_llama_cpp.settings`). Last line of standard output: the answers, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as lib

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
WANTED = re.compile(r"size = +[\d.]+ MiB \( *\d+ cells.*|compute buffer size = .*")


class InitParams(ctypes.Structure):
    """gguf_init_params of ggml/include/gguf.h."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def main() -> None:
    log: list[str] = []

    @lib.llama_log_callback
    def keep(level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        log.append(line)
        if level >= 4:
            print(line, file=sys.stderr)

    lib.llama_log_set(keep, ctypes.c_void_p(0))
    lib.llama_backend_init()
    ggml = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/libggml-base.*"))))
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    settings = json.loads(sys.stdin.read())
    metadata = ggml.gguf_init_from_file(sys.argv[1].encode(), InitParams(True, None))
    if not metadata:
        sys.exit("error: the header was not read")
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.no_alloc = not settings[0].get("allocate", False)
    set_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    fill = set_type(lambda tensor, _: None)  # leave weights uninitialized: their values change no size
    init = lib._lib.llama_model_init_from_user
    init.restype, init.argtypes = ctypes.c_void_p, [ctypes.c_void_p, set_type, ctypes.c_void_p, type(params)]
    model = init(metadata, fill, None, params)
    if not model:
        sys.exit(f"error: {next((x for x in reversed(log) if 'error' in x), 'the model was not made')}")
    answers = []
    for setting in settings:
        p = lib.llama_context_default_params()
        p.n_ctx = setting["n_ctx"]
        p.n_seq_max = setting.get("n_seq_max", 1)
        p.n_batch, p.n_ubatch = setting.get("n_batch", 2048), setting.get("n_ubatch", 512)
        p.type_k = TYPES[setting["type"]]
        p.type_v = TYPES[setting.get("type_v", setting["type"])]
        p.kv_unified, p.swa_full = setting.get("kv_unified", False), setting.get("swa_full", False)
        p.flash_attn_type = 1 if setting.get("flash_attn", True) else 0
        p.n_threads = p.n_threads_batch = 1
        log.clear()
        context = lib.llama_init_from_model(model, p)
        lines = [m[0] for line in log if (m := WANTED.search(line))]
        answer = {"setting": setting, "log": lines}
        if context:
            lib.llama_free(context)
        else:
            answer = {
                "setting": setting,
                "log": [],
                "error": next(
                    (x for x in reversed(log) if "error" in x or "failed" in x or "requires" in x),
                    log[-1] if log else "",
                ),
            }
        answers.append(answer)
    print(json.dumps({"version": f"llama-cpp-python {version('llama_cpp_python')}", "answers": answers}))


if __name__ == "__main__":
    main()
