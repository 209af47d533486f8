"""`teachllama kv hf:...`: headers read over the network, from a server that imitates the Hugging Face Hub."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from teachllama.errors import FetchError, GGUFError
from teachllama.gguf_file import open_gguf
from teachllama.gguf_remote import read_header
from teachllama.hub import find
from tests.hub_server import Hub, serving
from tests.test_gguf_file import split_model, write_part
from tests.tools import tiny_metadata, tiny_model

pytest.importorskip("huggingface_hub")
Kv = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A repository with a model, a split model, and a large file with a small header."""
    folder = tmp_path / "repo"
    split_model(folder)
    large = tiny_model(folder / "large.gguf", **{"tokenizer.chat_template": "x" * 400_000})
    with large.open("ab") as f:  # stands for gigabytes of weights
        f.truncate(large.stat().st_size + 5_000_000)
    (folder / "page.gguf").write_text("<html>not found</html>" * 3)
    return Hub("owner/repo", folder)


@pytest.fixture
def kv(hub: Hub, tmp_path: Path) -> Iterator[Kv]:
    """Runs `teachllama kv` against the server; huggingface_hub reads the address once per process."""
    with serving(hub) as address:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
            "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1",
            "TEACHLLAMA_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip

        def run(*argv: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "teachllama", "kv", *argv]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        yield run


def test_a_header_is_read_without_the_weights(kv: Kv, hub: Hub) -> None:
    done = kv("hf:owner/repo/large.gguf", "--json")
    answer = json.loads(done.stdout)
    with open_gguf(hub.folder / "large.gguf") as file:
        assert answer["weights_nbytes"] == sum(t.nbytes for t in file.tensors.values())
    assert answer["file"] == "hf:owner/repo/large.gguf"
    assert (answer["arch"], answer["n_layers"]) == ("llama", 2)
    assert hub.whole == []
    assert 400_000 < hub.sent < 800_000 < 5_000_000
    assert f"read from the Hugging Face Hub: {hub.sent:,} of " in answer["notes"][-1]
    ranges = [(start, end) for _, start, end in hub.ranges]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))  # no byte twice


@pytest.mark.parametrize("no", [1, 2, 3])
def test_a_split_model_is_read_whole_from_any_of_its_parts(no: int, kv: Kv, hub: Hub) -> None:
    answer = json.loads(kv(f"hf:owner/repo/big-0000{no}-of-00003.gguf@main", "--json").stdout)
    with open_gguf(hub.folder / "big-00001-of-00003.gguf") as file:
        assert answer["weights_nbytes"] == sum(t.nbytes for t in file.tensors.values())
    assert "in 3 files" in answer["notes"][-1]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:owner/repo/absent.gguf", "owner/repo has no file absent.gguf at revision 'main'"),
        ("hf:owner/other/large.gguf", "there is no repository owner/other there"),
        ("hf:owner/repo/large.gguf@nowhere", "owner/repo has no revision 'nowhere'"),
        ("hf:owner/repo/page.gguf", "not a GGUF file"),
        ("hf:owner/repo/../large.gguf", "is written hf:OWNER/REPO/FILE.gguf"),
        ("hf:owner/repo/big-00001-of-00002.gguf", "has no file big-00001-of-00002.gguf"),
    ],
)
def test_what_cannot_be_read_is_one_line(spec: str, words: str, kv: Kv) -> None:
    done = kv(spec)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kv]:
    """Runs `teachllama fetch` against the server."""
    with serving(hub) as address:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
            "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1",
            "TEACHLLAMA_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip
        monkeypatch.setenv("TEACHLLAMA_CACHE", str(tmp_path / "cache"))

        def run(*argv: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "teachllama", "fetch", *argv]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        yield run


def test_a_split_model_is_fetched_whole_from_any_of_its_parts(fetch: Kv, hub: Hub) -> None:
    names = [f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    done = fetch(f"hf:owner/repo/{names[1]}")
    assert done.returncode == 0, done.stderr
    assert "one of 3 parts, which are all here" in done.stderr
    path = Path(done.stdout.strip())
    assert path.name == names[1]
    assert sorted(p.name for p in path.parent.glob("*.gguf")) == names
    assert sorted(hub.whole) == names
    with open_gguf(path) as file, open_gguf(hub.folder / names[0]) as whole:
        assert file.tensors.keys() == whole.tensors.keys()
    assert find(f"hf:owner/repo/{names[2]}").name == names[2]
    # Existing parts are not downloaded again; a missing part is.
    path.unlink()
    with pytest.raises(FetchError, match=r"1 of its 3 parts are missing .*: run `teachllama fetch hf:owner/repo/big-"):
        find(f"hf:owner/repo/{names[2]}")
    assert fetch(f"hf:owner/repo/{names[2]}").returncode == 0
    assert hub.whole[3:] == [names[1]]


def test_a_part_that_the_repository_lacks_stops_the_fetch_and_the_others_stay(fetch: Kv, hub: Hub) -> None:
    (hub.folder / "big-00003-of-00003.gguf").unlink()
    done = fetch("hf:owner/repo/big-00001-of-00003.gguf")
    assert done.returncode == 1
    assert "owner/repo has no file big-00003-of-00003.gguf" in done.stderr
    assert sorted(hub.whole) == ["big-00001-of-00003.gguf", "big-00002-of-00003.gguf"]


def test_parts_that_do_not_belong_together_are_one_line(kv: Kv, hub: Hub) -> None:
    part = hub.folder / "big-00002-of-00003.gguf"
    write_part(part, {"split.no": 2, "split.count": 3, "split.tensors.count": 20}, {})
    assert "expected part 2 of 3, found split.no 2 of 3" in kv("hf:owner/repo/big-00001-of-00003.gguf").stderr
    part.unlink()
    assert "has no file" in kv("hf:owner/repo/big-00001-of-00003.gguf").stderr
    write_part(hub.folder / "alone.gguf", tiny_metadata() | {"split.no": 0, "split.count": 2}, {})
    assert "says that it is part of a model in 2 parts" in kv("hf:owner/repo/alone.gguf").stderr


def test_no_network_is_one_line(tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", "HF_HOME": str(tmp_path),
        "TEACHLLAMA_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-m", "teachllama", "kv", "hf:owner/repo/model.gguf"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "the Hub could not be reached" in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


# Reading a header in parts, without a network


@pytest.mark.parametrize("first", [24, 100, 4096, 2**20])
def test_a_header_read_in_parts_is_the_header(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachllama.gguf_remote.FIRST_FETCH", first)
    path = tiny_model(tmp_path / "t.gguf", **{"some.words": [f"word {i}" * 20 for i in range(300)]})
    data, asked = path.read_bytes(), [0]

    def fetch(start: int, end: int) -> bytes:
        assert start == asked[-1] < end
        asked.append(end)
        return data[start:end]

    metadata, tensors = read_header("t.gguf", len(data), fetch)
    with open_gguf(path) as file:
        assert tensors == file.tensors
        assert metadata.keys() == file.metadata.keys()
        assert list(metadata["some.words"]) == list(file.metadata["some.words"])
    assert len(asked) < 40


def test_a_header_cut_anywhere_is_a_clear_error(tmp_path: Path) -> None:
    data = tiny_model(tmp_path / "t.gguf").read_bytes()
    for cut in [*range(0, 3000, 13), len(data) - 40]:
        with pytest.raises(GGUFError):
            read_header("t.gguf", cut, lambda start, end: data[start:end])


def test_a_server_that_sends_too_little_is_a_clear_error(tmp_path: Path) -> None:
    data = tiny_model(tmp_path / "t.gguf").read_bytes()
    with pytest.raises(GGUFError, match="got 5"):
        read_header("t.gguf", len(data), lambda start, end: data[start : start + 5])
