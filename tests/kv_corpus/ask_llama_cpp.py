"""Asks the native llama.cpp what it reserves for the headers of this folder, and keeps its answers.

    python -m tests.kv_corpus.ask_llama_cpp --peer FOLDER/bin/python    (see benchmarks/build_peer.sh)

Each header becomes a model without weights: llama.cpp builds it from the metadata (`llama_model_init_from_user`) with
`no_alloc`, its own way to learn sizes before memory is taken, which its memory fitting uses. So models of any size can
be asked at any context, and every published configuration is asked as it is. With `--allocate` the model is made tiny
(few weights, the same cache), filled with random weights, and everything is reserved for real; both ways agree.

llama_cpp.json keeps the lines of its log that give sizes, and nothing that depends on the machine. A size is printed in
MiB with two digits, next to the number of cells. Together they give the bytes of a cell exactly,
as long as there are more cells than half a hundredth of a MiB has bytes (5,243): the largest context of each entry has.

llama.cpp ends the process where it does not like a model, so each header is asked in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ANSWERS = HERE / "llama_cpp.json"

# Further keys that llama.cpp requires and that have no influence on the cache. Only missing keys are added.
FILLER: dict[str, Any] = {
    "vocab_size": 32000, "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.group_norm_epsilon": 1e-5, "attention.group_norm_groups": 8, "attention.max_alibi_bias": 8.0,
    "attention.clamp_kqv": 1.0, "attention.relative_buckets_count": 32, "logit_scale": 1.0,
    "use_parallel_residual": False, "expert_weights_scale": 1.0, "expert_gating_func": 2,
    "residual_scale": 1.0,
}  # fmt: skip
GLOBAL_FILLER: dict[str, Any] = {  # keys without an architecture prefix
    "tokenizer.ggml.model": "no_vocab", "tokenizer.ggml.token_type_count": 2, "xielu.alpha_n": 1.0,
    "xielu.alpha_p": 1.0, "xielu.beta": 1.0, "xielu.eps": 1.0,
}  # fmt: skip


def settings(arch: str, n_ctx: int) -> list[dict[str, Any]]:
    """The settings asked for each header: contexts and types; then, at one context, the engine's other options."""
    if arch == "t5":  # its attention adds a bias, so no flash attention; and without that, V cannot be quantized
        return [{"n_ctx": n, "type": t, "flash_attn": False} for n in (4096, 32768) for t in ("f16", "f32")]
    contexts = [4096, 32768, max(n_ctx, 8192)]
    asked = [{"n_ctx": n, "type": t} for n in contexts for t in ("f16", "q8_0", "q4_0")]
    return [
        *asked,
        {"n_ctx": 5000, "type": "f32"},
        {"n_ctx": 32768, "type": "f16", "n_seq_max": 4, "kv_unified": False},
        {"n_ctx": 32768, "type": "f16", "n_seq_max": 4, "kv_unified": True},
        {"n_ctx": 32768, "type": "f16", "swa_full": True},
        {"n_ctx": 32768, "type": "f16", "n_ubatch": 2048, "n_batch": 2048},
        {"n_ctx": 32768, "type": "f16", "flash_attn": False},
        {"n_ctx": 32768, "type": "q8_0", "type_v": "q4_0"},
    ]


def main() -> int:
    """Asks for all headers, or for the named ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="headers to ask for (default: all)")
    parser.add_argument("--peer", required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--allocate", action="store_true", help="tiny models, reserved for real; only compared")
    args = parser.parse_args()
    from tests.kv_corpus.models import ENTRIES

    kept = json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
    answers = kept.get("models", {})
    version = kept.get("llama.cpp", "")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for entry in ENTRIES:
            if args.names and entry.name not in args.names:
                continue
            path = Path(folder) / f"{entry.name}.gguf"
            tiny = shrunk(entry.arch, entry.keys) if args.allocate else {}
            write_padded(HERE / "headers" / f"{entry.name}.gguf", path, tiny)
            wanted = settings(entry.arch, entry.keys["context_length"])
            if args.allocate:
                wanted = [{"n_ctx": 512, "type": "f16", "n_ubatch": 64, "allocate": True}]
            found = ask(args.peer, path, wanted)
            if args.allocate:
                pretended = ask(args.peer, path, [w | {"allocate": False} for w in wanted])
                real, dry = (strip(f.get("answers")) for f in (found, pretended))
                print(f"{entry.name}: {found.get('error') or ('the same' if real == dry else f'{real} / {dry}')}")
                failed += real != dry
                continue
            answers[entry.name] = {k: v for k, v in found.items() if k != "version"}
            version = found.get("version", version)
            print(f"{entry.name}: {found.get('error') or len(found['answers'])}", flush=True)
    if not args.allocate:
        answers = {entry.name: answers[entry.name] for entry in ENTRIES if entry.name in answers}
        ANSWERS.write_text(as_text(version, answers))
    return 1 if failed else 0


def as_text(version: str, models: dict[str, Any]) -> str:
    """JSON with one line per setting, so that changing one answer changes one line."""
    lines = []
    for name, found in models.items():
        if "error" in found:
            lines.append(f" {json.dumps(name)}: {json.dumps(found)}")
        else:
            rows = ",\n".join(f"  {json.dumps(answer)}" for answer in found["answers"])
            lines.append(f' {json.dumps(name)}: {{"answers": [\n{rows}]}}')
    body = ",\n".join(lines)
    return f'{{"llama.cpp": {json.dumps(version)}, "models": {{\n{body}\n}}}}\n'


def strip(answers: Any) -> Any:
    """Answers without compute buffers, which a real reservation may round differently."""
    return [[line for line in a["log"] if "compute" not in line] for a in answers] if answers else answers


def shrunk(arch: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Changes that keep the cache and shrink the weights: few channels, few experts, narrow layers."""
    heads = keys["attention.head_count"]
    first = heads[0] if isinstance(heads, list) else heads
    dim = keys["embedding_length"]
    small: dict[str, Any] = {"vocab_size": 64}
    if "attention.key_length" in keys and first and arch not in ("kimi-linear", "rwkv6", "rwkv7", "lfm2"):
        small["embedding_length"] = max(64, first)
    elif first:
        small |= {"attention.key_length": dim // first, "attention.value_length": dim // first}
    ff = keys["feed_forward_length"]
    small["feed_forward_length"] = [min(f, 64) for f in ff] if isinstance(ff, list) else min(ff, 64)
    for key, value in {
        "expert_count": 8, "expert_used_count": 1, "expert_feed_forward_length": 64, "attention.q_lora_rank": 64,
        "expert_shared_feed_forward_length": 64,
    }.items():  # fmt: skip
        if key in keys:
            small[key] = min(value, keys[key])
    return small


def write_padded(header: Path, target: Path, changes: dict[str, Any]) -> None:
    """Writes a copy of a header with `FILLER` added and `changes` applied."""
    import gguf

    from teachllama.gguf_file import open_gguf
    from tests.kv_corpus.make import put

    metadata = open_gguf(header).metadata
    arch = metadata["general.architecture"]
    writer = gguf.GGUFWriter(target, arch)
    for key, value in GLOBAL_FILLER.items():
        put(writer, key, value)
    keys = {k.removeprefix(f"{arch}."): v for k, v in metadata.items() if k.startswith(f"{arch}.")}
    for key, value in (FILLER | keys | changes).items():
        put(writer, f"{arch}.{key}", value.tolist() if hasattr(value, "tolist") else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def ask(peer: str, path: Path, wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """llama.cpp's answers, one per setting, or an error message."""
    done = subprocess.run(
        [peer, str(Path(__file__).with_name("llama_cpp_worker.py")), str(path)],
        input=json.dumps(wanted), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "GGML_ASSERT" in line or "error" in line]
        return {"error": lines[-1].split(": ", 1)[-1] if lines else f"ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
