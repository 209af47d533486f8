"""The corpus of KV caches: our figures, llama.cpp's figures, and the page that shows them."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from teachllama.cli import main
from teachllama.errors import ParameterError
from teachllama.gguf_file import open_gguf
from teachllama.kv import KV_DTYPES, engines, kv_layout_from_metadata
from tests.kv_corpus import make
from tests.kv_corpus.answers import as_printed, lines_of, load, reserve
from tests.kv_corpus.models import ENTRIES, Entry

VERSION, ANSWERS = load()
ASKED = [entry for entry in ENTRIES if "answers" in ANSWERS[entry.name]]
CORPUS = json.loads((make.HERE / "corpus.json").read_text())


def model_of(entry: Entry) -> engines.Model:
    metadata = make.metadata_of(entry) | {f"{entry.arch}.vocab_size": 32000}
    return engines.Model.from_metadata(kv_layout_from_metadata(metadata), metadata)


def name_of(entry: Any) -> str:
    return entry.name if isinstance(entry, Entry) else str(entry)


@pytest.mark.parametrize("entry", ASKED, ids=name_of)
def test_llama_cpp_reserves_what_our_rules_say_to_the_byte(entry: Entry) -> None:
    model = model_of(entry)
    for answer in ANSWERS[entry.name]["answers"]:
        if "error" in answer:  # settings that llama.cpp refuses are refused here too
            with pytest.raises(ParameterError):
                reserve(model, answer["setting"])
            continue
        ours = [as_printed(buffer) for buffer in reserve(model, answer["setting"]).buffers]
        assert ours == lines_of(answer["log"]), answer["setting"]


@pytest.mark.parametrize("entry", ASKED, ids=name_of)
def test_the_log_is_exact_enough_to_give_every_byte(entry: Entry) -> None:
    # The log prints MiB with two digits, from a float32, and the number of cells. Bytes per cell are a whole number, so
    # they are known exactly where the figure's error is less than half a byte per cell.
    caches = [line for a in ANSWERS[entry.name]["answers"] for line in lines_of(a["log"]) if line.v is not None]
    sharp = [x for x in caches if max(0.005, float(x.k) / 2**24) * 2**20 < 0.5 * x.cells * x.sequences]
    assert bool(sharp) == bool(caches)


def test_nearly_every_model_was_asked() -> None:
    reasons = {name: found["error"] for name, found in ANSWERS.items() if "error" in found}
    assert set(reasons) <= {"glm-4.5-air", "plm-1.8b", "unknown-ordinary", "unknown-hybrid"}
    assert len(ENTRIES) >= 60
    assert len({entry.arch for entry in ASKED}) >= 60
    assert sum(len(found.get("answers", ())) for found in ANSWERS.values()) > 1200


@pytest.mark.parametrize("entry", ENTRIES, ids=name_of)
def test_the_header_holds_what_its_entry_says_and_no_more_than_a_few_hundred_bytes(entry: Entry) -> None:
    path = make.HERE / "headers" / f"{entry.name}.gguf"
    assert path.stat().st_size < 1500
    with open_gguf(path) as file:
        assert file.tensors == {}
        read = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in file.metadata.items() if k != "general.name"}
    assert read == make.metadata_of(entry)


@pytest.mark.parametrize("row", CORPUS["models"], ids=lambda row: row["name"])
def test_the_committed_bytes_are_those_of_the_rule_applied_by_hand(row: dict[str, Any]) -> None:
    entry = next(e for e in ENTRIES if e.name == row["name"])
    layout = kv_layout_from_metadata(make.metadata_of(entry))
    for context, sizes in row["kv_nbytes"].items():
        for dtype, nbytes in sizes.items():
            block, block_nbytes = KV_DTYPES[dtype]
            by_hand = 0
            for layer in layout.layers:
                held = int(context) if layer.window is None else min(int(context), layer.window)
                numbers = layer.n_kv_heads * (layer.key_length + layer.value_length) + layer.index_length
                by_hand += held * numbers * block_nbytes // block
            if nbytes is not None:
                assert nbytes == by_hand, (context, dtype)
    total = sum(int(step.split("= ")[1]) for step in row["steps"] if "= " in step)
    assert total == row["kv_nbytes"]["4096"]["f16"]


def test_the_files_of_the_corpus_are_what_the_script_writes() -> None:
    found = make.corpus()
    assert make.as_json(found) == (make.HERE / "corpus.json").read_text(), "run: python -m tests.kv_corpus.make"
    assert make.page(found) == make.PAGE.read_text(), "run: python -m tests.kv_corpus.make"
    assert all(m["proof"].get("equal") == m["proof"].get("settings") for m in found["models"])


def test_the_estimate_of_the_compute_buffer_is_near_what_llama_cpp_prints() -> None:
    ratios = make.compute_ratios()
    twentieths = statistics.quantiles(ratios, n=20)
    assert twentieths[0] > 0.5
    assert twentieths[-1] < 2
    assert 0.9 < statistics.median(ratios) < 1.1


def test_a_header_is_answered_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(make.HERE / "headers" / "gemma-3-27b.gguf")
    options = ["--engine", "llama.cpp", "--kv-dtype", "f16", "--seq-len", "32768", "--json"]
    assert main(["kv", path, *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    logged = next(
        a for a in ANSWERS["gemma-3-27b"]["answers"] if a["setting"] == {"n_ctx": 32768, "type": "f16"}
    )  # fmt: skip
    assert answer["engine"]["kv"]["f16"]["kv_nbytes"] == sum(line.nbytes for line in lines_of(logged["log"]))
