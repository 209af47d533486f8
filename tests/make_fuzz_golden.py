"""Makes golden/tokenize_fuzz.json: digests of llama.cpp's ids for the texts of `tokenizer_fuzz`.

    python -m tests.make_fuzz_golden --peer .venv-peer/bin/python

The peer is a Python that has llama-cpp-python. Real vocabularies come from downloaded models. Made-up ones are written
to files without weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

PEER = """
import json, sys
import llama_cpp
quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, None)
task = json.load(sys.stdin)
model = llama_cpp.Llama(task["path"], vocab_only=True, verbose=False)
ids = [[model.tokenize(t.encode(), add_bos=False, special=s) for t in task["texts"]] for s in (False, True)]
print(json.dumps(ids))
"""


def write(metadata: dict[str, Any], path: Path) -> None:
    """Writes a GGUF file with this metadata and no tensors."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main() -> None:
    """Asks the peer, and writes the file."""
    from teachllama import hub
    from teachllama.gguf_file import open_gguf
    from teachllama.tokenizer import tokenizer_from_metadata
    from tests.conftest import GOLDEN
    from tests.test_tokenizer import FUZZED
    from tests.tokenizer_fuzz import all_texts, digests

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="a Python that has llama-cpp-python")
    peer = parser.parse_args().peer
    found: dict[str, Any] = {
        "how": "llama.cpp (llama-cpp-python 0.3.36) in vocab_only mode, without bos and eos. Digests of the ids of "
        "tests/tokenizer_fuzz.py's texts, `parse_special` off and on; see tests/make_fuzz_golden.py"
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, metadata in FUZZED.items():
            if metadata is None:
                path = Path(hub.find(name))
                tokenizer = tokenizer_from_metadata(open_gguf(path, metadata_only=True).metadata)
            else:
                path = Path(folder) / "vocabulary.gguf"
                write(metadata(), path)
                tokenizer = tokenizer_from_metadata(metadata())
            task = {"path": str(path), "texts": all_texts(tokenizer)}
            done = subprocess.run(
                [peer, "-c", PEER], input=json.dumps(task), capture_output=True, text=True, check=True
            )
            found[name] = [digests(tokenizer, ids) for ids in json.loads(done.stdout)]
            print(name, len(task["texts"]), "texts", file=sys.stderr)
    (GOLDEN / "tokenize_fuzz.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
