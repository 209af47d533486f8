"""Writes the corpus: the headers, corpus.json, and docs/kv-corpus.md.

    python -m tests.kv_corpus.make

llama.cpp's answers come from `ask_llama_cpp.py`.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import gguf

from teachllama.errors import ParameterError
from teachllama.kv import KV_DTYPES, KVLayout, engines, kv_layout_from_metadata
from tests.kv_corpus.answers import as_printed, compute_mib, lines_of, load, reserve
from tests.kv_corpus.models import CHECKED, ENTRIES, Entry

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "kv-corpus.md"
DTYPES = ("f16", "q8_0", "q4_0")


def put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds a value with the type that llama.cpp's converters use for it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_header(entry: Entry, path: Path) -> None:
    """Writes a GGUF file with the metadata of `entry` and no tensors."""
    writer = gguf.GGUFWriter(path, entry.arch)
    writer.add_string("general.name", entry.name)
    for key, value in entry.keys.items():
        put(writer, f"{entry.arch}.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def metadata_of(entry: Entry) -> dict[str, Any]:
    """The header's metadata."""
    return {"general.architecture": entry.arch} | {f"{entry.arch}.{k}": v for k, v in entry.keys.items()}


def contexts_of(entry: Entry) -> list[int]:
    """The three contexts of an entry; llama.cpp was asked at the same ones."""
    return sorted({4096, 32768, max(entry.keys["context_length"], 8192)})


def steps_of(layout: KVLayout, seq_len: int) -> list[str]:
    """The arithmetic of the f16 cache, one line per kind of layer."""
    steps = []
    for layer, n in layout.groups.items():
        held = layer.positions(seq_len)
        numbers = f"{layer.n_kv_heads} x ({layer.key_length} + {layer.value_length})"
        numbers = f"({numbers} + {layer.index_length})" if layer.index_length else numbers
        steps.append(f"{n} layers x {held} positions x {numbers} x 2 bytes = {n * held * sum(layer.rows) * 2}")
    return steps or ["no layer keeps keys and values"]


def proof_of(entry: Entry, model: engines.Model, answers: dict[str, Any]) -> dict[str, Any]:
    """The evidence for the figures: llama.cpp's answers, or arithmetic alone."""
    found = answers.get(entry.name, {"error": "not asked"})
    if "error" in found:
        return {"by": "arithmetic", "why": found["error"]}
    asked = agree = 0
    for answer in found["answers"]:
        if "error" in answer:
            continue
        asked += 1
        ours = [as_printed(b) for b in reserve(model, answer["setting"]).buffers]
        agree += ours == lines_of(answer["log"])
    return {"by": "llama.cpp", "settings": asked, "equal": agree}


def row_of(entry: Entry, answers: dict[str, Any]) -> dict[str, Any]:
    """An entry with its figures."""
    layout = kv_layout_from_metadata(metadata_of(entry))
    model = engines.Model.from_metadata(layout, metadata_of(entry) | {f"{entry.arch}.vocab_size": 32000})
    contexts = contexts_of(entry)

    def sizes(seq_len: int) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for dtype in DTYPES:
            try:
                found[dtype] = layout.bytes(seq_len, dtype)
            except ParameterError:  # rows are not a multiple of this type's block size
                found[dtype] = None
        return found

    def reserved(seq_len: int) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for dtype in DTYPES:
            flash_attn = entry.arch != "t5"
            try:
                options = engines.LlamaCpp(flash_attn=flash_attn)
                found[dtype] = engines.llama_cpp(model, seq_len, dtype, 1, options).kv_nbytes
            except ParameterError:
                found[dtype] = None
        return found

    return {
        "name": entry.name,
        "arch": entry.arch,
        "kind": entry.kind,
        "source": entry.source,
        "checked": CHECKED.get(entry.name, ""),
        "header": f"headers/{entry.name}.gguf",
        "kv_nbytes": {str(n): sizes(n) for n in contexts},
        "llama_cpp_nbytes": {str(n): reserved(n) for n in contexts},
        "state_nbytes": layout.state_nbytes,
        "steps": steps_of(layout, contexts[0]),
        "proof": proof_of(entry, model, answers),
    }


def corpus() -> dict[str, Any]:
    """All of corpus.json."""
    version, answers = load()
    return {
        "about": "Bytes of KV cache by model, context and type: what the rule gives (kv_nbytes), and what llama.cpp "
        "reserves for one sequence with default settings (llama_cpp_nbytes). See docs/kv-corpus.md.",
        "llama.cpp": version,
        "types": {name: list(KV_DTYPES[name]) for name in DTYPES},
        "models": [row_of(entry, answers) for entry in ENTRIES],
    }


def compute_ratios() -> list[float]:
    """Ratios of our estimate of llama.cpp's compute buffer to the printed size, for answers with flash attention."""
    _, answers = load()
    ratios = []
    for entry in ENTRIES:
        metadata = metadata_of(entry) | {f"{entry.arch}.vocab_size": 32000}
        model = engines.Model.from_metadata(kv_layout_from_metadata(metadata), metadata)
        for answer in answers.get(entry.name, {}).get("answers", []):
            printed = compute_mib(answer["log"])
            if printed and answer["setting"].get("flash_attn", True):
                ratios.append(reserve(model, answer["setting"]).compute_nbytes / 2**20 / printed)
    return ratios


INTRODUCTION = """\
# KV caches of many models, with proof

How many bytes the KV cache of a model takes is a question with a wrong answer in many calculators. This page is a
corpus to check one against: {n_models} models of {n_archs} architectures, at three contexts and three types. It is
generated by `python -m tests.kv_corpus.make`.

For other projects, the folder `tests/kv_corpus/` of this repository has:

- `headers/`: a GGUF file per model that holds the metadata which decide about its cache, and no tensor: a few hundred
  bytes each. The metadata are those of published configurations; `source` names the repository on the Hugging Face Hub,
  and `checked` where the numbers were compared ([below](#sources)).
  A source that begins with "made" has no published model behind it.
- `corpus.json`: the figures of this page in bytes, with the arithmetic of each.
- `llama_cpp.json`: the lines of llama.cpp's own log.

## What the columns say

*By the rule*: for every layer, positions it can still attend to x KV heads x (key length + value length) x bytes per
number, for one sequence. *llama.cpp*: what it reserves for one sequence with its defaults: the context in multiples of
256 cells, and windows with room for a batch. *State*: recurrent state of one sequence in f32, the same at any context.

*Proof*: "llama.cpp, 16 of 16" means that the native llama.cpp ({version}) was asked 16 times, at different
contexts, types, numbers of sequences, batch sizes, and with and without flash attention, and that each line of its log
about a cache (cells, sequences, MiB of K, MiB of V) equals what `teachllama kv --engine llama.cpp` gives. It is asked
for the published configuration itself: it builds the model from the header and goes through all allocations without
taking the memory (`no_alloc`), which is how it finds out by itself what fits. The same lines come out when tiny models
with the same caches are reserved for real (`ask_llama_cpp.py --allocate`). A size is printed in MiB with two digits;
with the number of cells beside it, it is known to the byte. "Arithmetic" means that llama.cpp could not be asked;
`corpus.json` has the steps.

## Fixed parts, and a part per token

Weights, recurrent state and compute buffers are fixed (an attention mask in the last grows a little with the context);
only keys and values grow with every token. A log that
says "288 MiB" for 4,096 tokens does not say 72 KiB per token unless all of it grows. The figure per token that comes
from a division of one log line by another changes with the context, though the model does not: the fixed part is spread
over more and more tokens, and a window that is full adds nothing. Two measurements at two contexts have a difference,
and the difference over the tokens between them is the part per token (past every window). `teachllama kv` prints both.

llama.cpp's compute buffer is estimated by `teachllama kv --engine llama.cpp`. Over the {n_ratios:,} answers here the
estimate is between {low:.2f} and {high:.2f} of what llama.cpp printed in nine cases of ten, {median:.2f} in the middle.

## What is not here

DeepSeek V4 (`deepseek4`). Every layer keeps a window of keys; most keep, besides, one compressed key for each 4 or 128
older positions, those with 4 an index key too, and all of these the state of a compression under way. llama.cpp has the
rule in `src/models/deepseek4.cpp` and `src/llama-kv-cache-dsv4.cpp`, in versions newer than the one compared here.
Without a proof it is refused, not guessed; so is any file with `attention.compress_ratios`.

## The models
"""


def page(found: dict[str, Any]) -> str:
    """docs/kv-corpus.md."""
    ratios = compute_ratios()
    twentieths = statistics.quantiles(ratios, n=20)
    text = INTRODUCTION.format(
        n_models=len(found["models"]), n_archs=len({m["arch"] for m in found["models"]}), version=found["llama.cpp"],
        n_ratios=len(ratios), low=twentieths[0], high=twentieths[-1], median=statistics.median(ratios),
    )  # fmt: skip
    lines = [text]
    lines.append(
        "| model | kind of cache | context | by the rule: f16 | q8_0 | q4_0 | llama.cpp: f16 | state | proof |"
    )
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|---|")
    for model in found["models"]:
        proof = model["proof"]
        if proof["by"] == "llama.cpp":
            shown = f"llama.cpp, {proof['equal']} of {proof['settings']}"
        else:
            shown = "arithmetic"
        state = f"{model['state_nbytes']:,}" if model["state_nbytes"] else ""
        for i, (context, sizes) in enumerate(model["kv_nbytes"].items()):
            first = i == 0
            cells = [
                f"{model['name']} (`{model['arch']}`)" if first else "",
                model["kind"] if first else "",
                f"{int(context):,}",
                *("-" if sizes[d] is None else f"{sizes[d]:,}" for d in DTYPES),
                f"{model['llama_cpp_nbytes'][context]['f16'] or 0:,}" if proof["by"] == "llama.cpp" else "",
                state if first else "",
                shown if first else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Sizes are bytes. A dash: the model's heads do not divide into the blocks of that type.", ""]
    published = [m for m in found["models"] if not m["source"].startswith("made")]
    unchecked = [m for m in published if not m["checked"]]
    lines.append("## Sources\n")
    lines.append(
        f"The numbers of {len(published) - len(unchecked)} models were compared with the place named behind "
        '"checked"; where a class of transformers is named, its default values are those of this model. The other '
        f"{len(unchecked)} were written down without one at hand; the *proof* above says that a cache of these numbers "
        "is counted right, not that the published model has them. A published file always decides: run `teachllama kv` "
        "on it.\n"
    )
    for m in found["models"]:
        made = m["source"].startswith("made")
        checked = "" if made else f"; checked: {m['checked']}" if m["checked"] else "; not checked"
        lines.append(f"- {m['name']}: {m['source']}{checked}")
    return "\n".join(lines) + "\n"


def as_json(found: dict[str, Any]) -> str:
    """JSON with a line per model."""
    head = json.dumps({k: v for k, v in found.items() if k != "models"}, indent=1).removesuffix("\n}")
    rows = ",\n".join(f"  {json.dumps(model)}" for model in found["models"])
    return f'{head},\n "models": [\n{rows}\n ]\n}}\n'


def main() -> int:
    """Writes everything."""
    headers = HERE / "headers"
    headers.mkdir(exist_ok=True)
    for path in headers.glob("*.gguf"):
        path.unlink()
    for entry in ENTRIES:
        write_header(entry, headers / f"{entry.name}.gguf")
    found = corpus()
    (HERE / "corpus.json").write_text(as_json(found), encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
