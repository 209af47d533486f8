"""Numbers and paths as people write them, in every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachllama import cli
from teachllama.cli.numbers import count_from_text, nbytes_from_text
from teachllama.errors import ParameterError
from tests.test_chat import tiny_chat_model
from tests.tools import tiny_model


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("4,096", 4096), ("4_096", 4096), (" 4096 ", 4096), ("+7", 7), ("4k", 4096), ("32K", 32768),
     ("32ki", 32768), ("1M", 1 << 20), ("1.5k", 1536), ("1,024k", 1 << 20), ("1,048,576", 1 << 20)],
)  # fmt: skip
def test_a_count_may_have_separators_and_k_is_1024(text: str, count: int) -> None:
    assert count_from_text("--seq-len", text) == count


@pytest.mark.parametrize(
    "text",
    ["", "k", "0", "-5", "1.5", "4,09", "4096,", ",096", "40,96", "4,096_000", "_4", "1e3", "0x10", "4 096", "32G",
     "32kB", "ten", "nan", "inf", "٤", "2000000M", "9" * 5000],
)  # fmt: skip
def test_other_counts_are_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(ParameterError, match=r"--seq-len is .*expected a whole number from 1 to .*4,096 or 32k"):
        count_from_text("--seq-len", text)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("16GB", 16 * 10**9), ("16G", 16 * 10**9), ("16g", 16 * 10**9), ("16GiB", 16 * 2**30), ("16Gi", 16 * 2**30),
     ("1.5 TB", 1_500_000_000_000), ("1.5T", 1_500_000_000_000), ("8000M", 8 * 10**9), ("8,000M", 8 * 10**9),
     ("0.1GB", 100_000_000), ("512mib", 2**29), ("512 Mi", 2**29), ("32k", 32_000), ("32kB", 32_000),
     ("123456", 123456), ("123,456", 123456), ("123_456", 123456), ("7B", 7), ("1.9", 1)],
)  # fmt: skip
def test_sizes_are_decimal_or_binary_as_their_unit_says(text: str, nbytes: int) -> None:
    assert nbytes_from_text(text) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "-1GB",
        "0",
        "0.4B",
        "1e9",
        "16 GB of RAM",
        "nan",
        "9" * 5000,
        "١٦GB",
        "16,0G",
        "1_6G",
        "16GBi",
        "16bit",
        "1.G",
    ],
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ParameterError, match=r"--memory is .*expected a size such as 16G .*16GiB"):
        nbytes_from_text(text)


@given(st.integers(1, 2**40))
def test_any_number_with_or_without_separators_is_itself(n: int) -> None:
    assert [count_from_text("-n", text) for text in (f"{n}", f"{n:,}", f"{n:_}")] == [n] * 3
    assert [nbytes_from_text(text) for text in (f"{n}", f"{n:,}", f"{n:_}B")] == [n] * 3


def test_every_option_that_takes_a_number_takes_it_as_people_write_it(tmp_path: Path, capsys: Any) -> None:
    path = str(tiny_model(tmp_path / "t.gguf"))
    assert cli.main(["kv", path, "--seq-len", "2,048", "--sessions", "1k", "--memory", "1.5T", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["seq_len"], answer["sessions"], answer["memory_nbytes"]) == (2048, 1024, 1_500_000_000_000)
    numbers = ["--seq-len", "0.0625k", "--max-new-tokens", "0_002", "--top-k", "1,000"]
    assert cli.main(["generate", path, "the", *numbers[:2], "--max-new-tokens", "2", *numbers[4:]]) == 0
    assert "2 written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["kv", "PATH", "--sessions", "many"], "--sessions is 'many'"),
        (["generate", "PATH", "x", "--max-new-tokens", "-1"], "--max-new-tokens is -1"),
        (["generate", "PATH", "x", "--seq-len", "4kB"], "--seq-len is '4kB'"),
        (["generate", "PATH", "x", "--top-k", "-1"], "--top-k is -1"),
        (["run", "04", "PATH", "--timeout", "soon"], "--timeout is 'soon'"),
    ],
)
def test_a_number_that_is_none_is_one_line_with_the_options_name(
    argv: list[str], words: str, tmp_path: Path, capsys: Any
) -> None:
    path = str(tiny_model(tmp_path / "t.gguf"))
    assert cli.main([path if a == "PATH" else a for a in argv]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


# Paths


def test_a_tilde_is_the_home_folder_also_where_the_shell_left_it(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with tiny_chat_model(tmp_path) as model:
        name = Path(model.path).name
    for argv in (
        ["kv", f"~/{name}"],
        ["inspect", f"~/{name}"],
        ["generate", f"~/{name}", "the", "--max-new-tokens", "1"],
    ):
        assert cli.main(argv) == 0, capsys.readouterr().err
    pytest.importorskip("matplotlib")
    assert cli.main(["kv", f"~/{name}", "--plot", "~/plot.png"]) == 0
    assert (tmp_path / "plot.png").exists()


def test_python_expands_a_tilde_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import teachllama as tl

    tiny_model(tmp_path / "t.gguf")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with tl.load_model("~/t.gguf", backend="numpy") as model:
        assert Path(model.path) == tmp_path / "t.gguf"


def test_a_file_whose_name_begins_with_a_tilde_is_itself(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "~").mkdir()
    tiny_model(tmp_path / "~" / "t.gguf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    assert cli.main(["kv", "~/t.gguf"]) == 0
    assert "tiny llama" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["kv", "inspect", "generate", "fetch"])
@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://example.org/x.gguf", "Download the file and give its path"),
        ("https://huggingface.co/a/b/resolve/main/x.gguf?download=true", "Run `teachllama fetch hf:a/b/x.gguf`"),
        ("https://huggingface.co/a/b/blob/v1/sub/x.gguf", "Run `teachllama fetch hf:a/b/sub/x.gguf@v1`"),
        ("https://huggingface.co/a/b", "hf:OWNER/REPO/FILE.gguf"),
    ],
)
def test_a_web_address_is_refused_with_what_is_supported(command: str, address: str, advice: str, capsys: Any) -> None:
    assert cli.main([command, address, *["the"] * (command == "generate")]) == 1
    error = capsys.readouterr().err
    assert "is a web address, which cannot be opened here" in error
    assert advice in error
    assert error.count("\n") == 1
