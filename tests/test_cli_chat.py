"""`teachllama generate` and `teachllama chat`: streaming, statistics, commands, and Ctrl-C at a real terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from teachllama import cli
from teachllama.chat import FORMATS
from teachllama.cli.terminal import named_as_options, visible
from tests.test_chat import LACKING, tiny_chat_model
from tests.tools import tiny_model

COMMAND = [sys.executable, "-m", "teachllama"]
PROMPT = r"\x1b\[\?2004h(?s:.*?)\x1b\[\?25h"  # bracketed paste is on, and the cursor is shown


@pytest.fixture
def path(tmp_path: Path) -> str:
    with tiny_chat_model(tmp_path) as model:
        return str(model.path)


def talk(path: str, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "chat", path, "--max-new-tokens", "5", "--seed", "1", *flags],
        input=text, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120,
    )  # fmt: skip


def test_generate_goes_on_with_a_text_and_gives_its_figures(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--max-new-tokens", "6", "--seed", "3", "--temperature", "0.9", "--top-k", "40", "--top-p", "0.95"]
    argv = ["generate", path, "the will", *flags, "--min-p", "0.01", "--repeat-penalty", "1.1", "--seq-len", "32"]
    assert cli.main(argv) == 0
    first = capsys.readouterr()
    assert first.out.startswith("the will")
    assert first.err.startswith("[4 tokens read")
    assert "6 written" in first.err
    assert "length]" in first.err
    assert cli.main(argv) == 0
    assert capsys.readouterr().out == first.out  # the same seed, the same text


def test_generate_with_a_draft_gives_the_same_text_and_counts_guesses(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generate", path, "the cat the cat the cat", "--max-new-tokens", "20"]
    texts = []
    for options in ([], ["--draft", "2"]):
        assert cli.main([*given, *options]) == 0
        out, err = capsys.readouterr()
        texts.append(out)
    assert texts[0] == texts[1]
    assert re.search(r"\d+ of \d+ guesses right", err)
    assert cli.main([*given, "--draft", "none"]) == 1
    assert "--draft" in capsys.readouterr().err


def test_generate_reads_a_prompt_from_standard_input(path: str) -> None:
    done = subprocess.run(
        [*COMMAND, "generate", path, "-", "--max-new-tokens", "1"], input="the", capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("the")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generate", "PATH", ""], "the prompt is empty"),
        (["generate", "PATH", "x", "--temperature", "-1"], "--temperature is -1.0"),
        (["generate", "PATH", "x", "--seq-len", "0"], "--seq-len is 0"),
        (["generate", "PATH", "x", "--seed", "-5"], "--seed is -5"),
        (["generate", "PATH", "a" * 40, "--seq-len", "8"], "does not fit in a context of 8 positions: 32 too many"),
        (["generate", "/nowhere.gguf", "x"], "nowhere.gguf"),
        (["chat", "PATH", "--template", "/nowhere.jinja"], "neither one of chatml"),
        (["chat", "PATH", "--load", "/nowhere.json"], "could not be read"),
        (["chat", "PATH", "--top-p", "7"], "--top-p is 7.0"),
    ],
)
def test_an_error_is_one_line(path: str, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([path if a == "PATH" else a for a in argv]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.startswith(f"teachllama {argv[0]}: ")
    assert err.count("\n") == 1


def test_chat_answers_and_obeys_its_commands(path: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    done = talk(
        path, f"the inn\n/show\n/save {file}\n/reset\n/show\n/load {file}\nthen\n/trim\n/help\n/nope\n/save\n/quit\nno"
    )
    out = done.stdout
    assert done.returncode == 0
    assert "<|im_start|>user\nthe inn<|im_end|>" in out
    for words in ("saved 2 messages", "starts over", "nothing was said yet", "loaded 2 messages", "nothing to forget"):
        assert words in out
    assert "no such command: /nope" in out
    assert "/save needs a file name" in out
    assert "no<|im_end|>" not in out
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"]
    assert done.stderr.count("written") == 2


def test_an_error_in_a_chat_is_told_and_the_conversation_goes_on(path: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("[]", encoding="utf-8")
    done = talk(path, f"{'a' * 300}\n/load {bad}\n/load {tmp_path}/none\nthe\n", "--seq-len", "64")
    assert done.returncode == 0
    assert "! the conversation is" in done.stderr
    assert "too many" in done.stderr
    assert "! " + str(bad) in done.stderr
    assert "could not be read" in done.stderr
    assert "written" in done.stderr


def test_a_chat_takes_a_system_message_a_template_and_a_saved_conversation(path: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk(path, f"the\n/save {file}\n", "--system", "Be kind.", "--template", "gemma")
    assert json.loads(file.read_text(encoding="utf-8"))["messages"][0]["content"] == "Be kind."
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}", encoding="utf-8")
    assert "[Be kind.][the][" in talk(path, "/show\n", "--load", str(file), "--template", str(template)).stdout


def test_a_model_without_a_template_says_which_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", str(tiny_model(tmp_path / "t.gguf"))]) == 1
    err = capsys.readouterr().err
    assert all(name in err for name in FORMATS)


def test_what_a_model_writes_cannot_command_the_terminal() -> None:
    assert visible("a\x1b[2Jb\x07\x9b1mc\r\n\tq\u00e9\u4f60") == r"a\x1b[2Jb\x07\x9b1mc" + "\n\tq\u00e9\u4f60"


def test_what_a_file_holds_cannot_command_the_terminal_either(path: str, tmp_path: Path) -> None:
    saved, template = tmp_path / "talk.json", tmp_path / "own.jinja"
    talk(path, f"the\n/save {saved}\n", "--system", "Be \x1b[2J kind.")
    assert "\\u001b" in saved.read_text(encoding="utf-8")
    shown = talk(path, "/show\n", "--load", str(saved)).stdout
    assert r"Be \x1b[2J kind." in shown
    assert "\x1b" not in shown
    template.write_text("{{ raise_exception('no \\x1b]0;mine') }}", encoding="utf-8")
    refused = talk(path, "the\n", "--template", str(template)).stderr
    assert "! " in refused
    assert "\x1b" not in refused


def users_messages(file: Path) -> list[str]:
    return [m["content"] for m in json.loads(file.read_text(encoding="utf-8"))["messages"] if m["role"] == "user"]


def test_a_message_may_begin_with_a_path_or_after_a_space_with_any_slash(path: str, tmp_path: Path) -> None:
    said = ["/etc/hosts is a file", "/usr/bin", " /reset is a word", "//then", "/2 + /3", "    indented"]
    done = talk(path, "".join(f"{line}\n" for line in said) + f"/save {tmp_path / 't.json'}\n")
    assert users_messages(tmp_path / "t.json") == said
    assert "no such command" not in done.stdout


@pytest.mark.parametrize("line", ["/tmp", "/Frobnicate now", "/", "/?"])
def test_a_slash_and_a_word_that_is_no_command_gets_help(line: str, path: str, tmp_path: Path) -> None:
    done = talk(path, f"{line}\n/save {tmp_path / 't.json'}\n")
    assert "put a space first" in done.stdout
    assert users_messages(tmp_path / "t.json") == []


def test_commands_may_be_in_capitals(path: str) -> None:
    assert "nothing was said yet" in talk(path, "/SHOW\n/Quit\nthe\n").stdout


def test_lines_between_two_lines_of_three_quotes_are_one_message(path: str, tmp_path: Path) -> None:
    quotes = '"""'
    talk(path, f"{quotes}\nfor x in y:\n\n    /reset\n{quotes}\nthe\n/save {tmp_path / 't.json'}\n{quotes}\nno end\n")
    assert users_messages(tmp_path / "t.json") == ["for x in y:\n\n    /reset", "the"]


def test_each_line_of_a_pipe_is_a_message_and_blank_lines_are_none(path: str, tmp_path: Path) -> None:
    talk(path, f"the\n\n   \n  inn  \n/save {tmp_path / 't.json'}\n")
    assert users_messages(tmp_path / "t.json") == ["the", "  inn  "]


def test_a_full_context_is_explained_in_the_words_of_the_command_line(path: str, tmp_path: Path) -> None:
    saved = tmp_path / "long.json"
    messages = [{"role": "user", "content": "a" * 300}, {"role": "assistant", "content": "b"}]
    saved.write_text(json.dumps({"teachllama_chat": 1, "messages": messages}), encoding="utf-8")
    done = talk(
        path, f"{'a' * 300}\n/load {saved}\nthe\n", "--seq-len", "64", "--max-new-tokens", "1k", "--temperature", "2"
    )
    first, second, *rest = done.stderr.splitlines()
    assert re.match(
        r"! the conversation is \d+ tokens long, and the context has 64 positions, one of them for the reply", first
    )
    assert "too many. Nothing was changed; /trim forgets the oldest turns; starting with a larger --seq-len" in first
    assert "too many. Nothing was changed; start with a larger --seq-len (this model was trained for" in second
    if "context full" in rest[0]:
        assert rest[1].startswith("! the context is full: /trim forgets")
    assert not re.search(r"trim\(\)|seq_len", done.stderr)
    failed = talk(path, "", "--seq-len", "64", "--load", str(saved))
    assert failed.returncode == 1
    assert "start with a larger --seq-len" in failed.stderr


def test_a_path_with_a_nul_is_refused_and_the_conversation_goes_on(path: str) -> None:
    done = talk(path, "/save a\0b\n/load a\0b\nthe\n")
    assert done.returncode == 0
    assert done.stderr.count("contains a NUL character") == 2
    assert "written" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_at_a_terminal_stops_the_reply_and_keeps_the_conversation(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")  # this terminal does not answer cursor position requests
    monkeypatch.setenv("TERM", "xterm")
    pexpect = pytest.importorskip("pexpect")
    file = tmp_path / "talk.json"
    flags = ["--max-new-tokens", "100000", "--seq-len", "32768", "--seed", "1", "--temperature", "2"]
    terminal = pexpect.spawn(
        COMMAND[0],
        ["-W", "ignore", *COMMAND[1:], "chat", path, "--no-history", *flags],
        # a background job, as this test may be, ignores SIGINT, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        encoding="utf-8",
        codec_errors="replace",
        timeout=60,
    )
    try:
        terminal.expect("/help lists the commands")
        terminal.expect(PROMPT)
        deadline = time.monotonic() + 60
        while True:  # with random weights a reply may end at once
            terminal.send("the inn\r")
            terminal.expect(r"\?2004l")  # the prompt has been submitted
            terminal.expect(r"\S{3}")
            terminal.sendintr()
            if terminal.expect([r"; stopped by you\]", r"; end of text\]"]) == 0:
                break
            assert time.monotonic() < deadline
        terminal.expect(PROMPT)
        terminal.send(f"/save {file}\r")
        terminal.expect(r"saved \d+ messages")
        messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
        assert messages[-2] == {"role": "user", "content": "the inn"}
        assert messages[-1]["role"] == "assistant"
        assert messages[-1]["content"]
        terminal.sendintr()  # at the prompt, Ctrl-C does not quit
        terminal.expect("/quit leaves")
        terminal.send("then\r")
        terminal.expect(r"\?2004l")
        terminal.expect(r"\S{3}")
        terminal.sendintr()
        terminal.expect(r"; (stopped by you|end of text)\]")
        terminal.expect(PROMPT)
        terminal.sendeof()
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 0
    finally:
        terminal.close(force=True)


# ---- characters that the vocabulary lacks, text that is not UTF-8, and advice for a shell ----


@pytest.fixture
def lacking(tmp_path: Path) -> str:
    with tiny_chat_model(tmp_path, **LACKING) as model:
        return str(model.path)


def test_chat_and_generate_say_what_they_left_out(lacking: str, tmp_path: Path) -> None:
    note = "! this model has no token for a byte of U+0004: left out"
    saved = tmp_path / "saved.json"
    done = talk(lacking, f"one\x04two\n/save {saved}\n", "--system", "be\x04")
    assert done.returncode == 0
    assert done.stderr.count(note) == 2  # one for the system message, one for the first user message
    assert talk(lacking, "", "--load", str(saved)).stderr.count(note) == 1
    argv = [*COMMAND, "generate", lacking, "-", "--max-new-tokens", "1"]
    done = subprocess.run(argv, input="a\x04b", capture_output=True, text=True)
    assert done.returncode == 0
    assert note in done.stderr
    assert talk(lacking, "one\n").stderr.count("left out") == 0


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "The model is licensed. Run `fetch X --accept-licence`, or pass accept_licence=True",
            "fetch X --accept-licence`",
        ),
        ("it is not valid Jinja: x. Give another with template=...", "Give another with --template"),
        ("no token for byte 0x04; leave it out, or encode with errors='drop'", "byte 0x04; leave it out"),
    ],
)
def test_advice_to_callers_in_python_is_not_given_in_a_shell(message: str, words: str) -> None:
    said = named_as_options(message)
    assert said.endswith(words)
    assert "=" not in said


def test_messages_of_a_conversation_speak_of_options_and_not_of_python(path: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    saved.write_text('{"teachllama_chat": 1, "messages": [{"role": "user", "content": "\\ud800"}]}', encoding="utf-8")
    template = tmp_path / "bad.jinja"
    template.write_text("{% if %}", encoding="utf-8")
    for flags in (["--load", str(saved)], ["--template", str(template)]):
        done = talk(path, "hi\n", *flags)
        assert done.stderr.startswith(("teachllama chat: ", "! "))
        assert not re.search(r"[a-z_]+=|\(\)|encode", done.stderr), done.stderr


@pytest.mark.parametrize("raw", [b"caf\xe9\n", b"\xff\xfea\x00\n\x00", b"ok \xf0\x9f\n"])
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_standard_input_that_is_not_utf_8_gets_advice_for_a_shell(path: str, command: str, raw: bytes) -> None:
    argv = [*COMMAND, command, path, *(["-"] if command == "generate" else []), "--max-new-tokens", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(argv, input=raw, capture_output=True, env=environment)
    assert done.returncode == (command == "generate")
    assert b"is not UTF-8 text (byte 0x" in done.stderr
    assert b"iconv" in done.stderr
    assert b"decode" not in done.stderr


def test_a_system_message_that_is_not_utf_8_is_refused_without_a_traceback(path: str) -> None:
    done = subprocess.run([*COMMAND, "chat", path, "--system", b"caf\xe9"], input=b"", capture_output=True)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"decode" not in done.stderr
