"""Output to terminals of any encoding, and `teachllama chat` at a real terminal."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachllama import cli
from teachllama.cli import terminal
from teachllama.cli.terminal import Status, Wrapped, guarded, named_as_options, printable, visible, width_of
from teachllama.folders import user_cache_dir
from tests.test_chat import tiny_chat_model
from tests.tools import tiny_model

COMMAND = [sys.executable, "-m", "teachllama"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07")  # escapes sent by the chat program itself
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp\u2066\x7f"


@pytest.fixture
def path(tmp_path: Path) -> str:
    with tiny_chat_model(tmp_path) as model:
        return str(model.path)


def steering(c: str) -> bool:
    """Whether a character may control a terminal; independent of the code under test."""
    control = unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\t\n"
    return control or unicodedata.bidirectional(c) in (
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    )  # fmt: skip


# Untrusted text


def test_every_character_that_could_steer_a_terminal_is_an_escape_and_no_other() -> None:
    for c in map(chr, range(sys.maxunicode + 1)):
        if steering(c):
            assert visible(f"a{c}b") == f"a{c.encode('unicode_escape').decode()}b"
        elif not "\u2028" <= c <= "\u206f":  # this range has old format characters, which are also escaped
            assert visible(c) == c


@given(st.text())
def test_nothing_that_is_shown_steers(text: str) -> None:
    assert not any(map(steering, visible(text)))
    assert all(c.isprintable() for c in printable(text))


def test_emoji_and_right_to_left_scripts_stay_whole() -> None:
    for text in ("👩‍👩‍👧 ❤️", "שלום\u200f!", "नमस्ते", "a\tb\n    c"):
        assert visible(text) == text
    assert visible("a\r\nb\rc") == "a\nb\\rc"


def test_an_option_takes_the_place_of_a_parameters_name_but_not_in_a_path() -> None:
    assert named_as_options("top_p is 7; expected ...") == "--top-p is 7; expected ..."
    assert named_as_options("ask for a smaller seq_len, or ...") == "ask for a smaller --seq-len, or ..."
    for text in ("/home/seq_len/x.gguf: no", "my_seq_len", "template.jinja is bad", "seq_len=4"):
        assert named_as_options(text) == text


@pytest.mark.parametrize("command", ["inspect", "kv", "generate", "chat", "run", "fetch"])
def test_an_error_shows_a_name_without_obeying_it(command: str, capsys: Any) -> None:
    assert cli.main([command, f"/nowhere/{EVIL}.gguf", *["x"] * (command == "generate")]) == 1
    assert not any(map(steering, capsys.readouterr().err))


def test_a_command_that_does_not_exist_is_shown_without_obeying_it(capsys: Any) -> None:
    for argv in ([EVIL], ["kv", "x", f"--{EVIL}"], ["generate", "x", "y", "--seed", EVIL]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 2
        assert not any(map(steering, capsys.readouterr().err))


@pytest.mark.skipif(sys.platform == "win32", reason="such names are Unix's")
def test_the_list_of_models_shows_names_without_obeying_them(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHLLAMA_CACHE", str(tmp_path / EVIL.replace("/", "")))
    (tmp_path / EVIL).mkdir()
    (tmp_path / EVIL / f"own{EVIL}.gguf").write_bytes(b"GGUF")
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    assert r"own\x1b[2J" in out
    assert not any(map(steering, out))


def test_what_a_model_says_and_is_called_is_shown_without_being_obeyed(tmp_path: Path, capsys: Any) -> None:
    tiny = str(tiny_model(tmp_path / "t.gguf", **{"general.name": EVIL}))
    for argv in (
        ["generate", tiny, f"the{EVIL}", "--max-new-tokens", "0"],
        ["kv", tiny],
        ["inspect", tiny],
        ["chat", tiny],
    ):
        cli.main(argv)
        shown = capsys.readouterr()
        assert not any(map(steering, shown.out + shown.err))
        assert r"\x1b[2J" in shown.out + shown.err


# Encodings


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_the_encoding_cannot_hold_is_escaped_and_ends_nothing(encoding: str, path: str, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    messages = [{"role": "user", "content": "žluť 字 👩‍👧 \x81"}, {"role": "assistant", "content": "ok"}]
    saved.write_text(json.dumps({"teachllama_chat": 1, "messages": messages}), encoding="utf-8")
    named = str(tiny_model(tmp_path / "t.gguf", **{"general.name": "žluť 字"}))
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for argv, status in (
        (["generate", path, "žluť 字", "--max-new-tokens", "2"], 0),
        (["chat", path, "--load", str(saved)], 0),
        (["kv", named], 0),
        (["inspect", named], 0),
        (["kv", "/nowhere/žluť 字.gguf"], 1),
    ):
        done = subprocess.run([*COMMAND, *argv], input=b"/show\n", capture_output=True, env=environment, timeout=120)
        assert done.returncode == status, done.stderr
        said = (done.stdout + done.stderr).decode(encoding)
        assert "Traceback" not in said
        assert "žluť 字" in said if encoding == "utf-8" else rb"\u5b57".decode() in said


def test_the_streams_are_as_before_after_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with guarded("x"):
        print("字")
    assert out.errors == "strict"
    out.flush()
    assert out.buffer.getvalue().strip() == rb"\u5b57"  # type: ignore[attr-defined]


def test_streams_that_cannot_be_set_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with guarded("x"):
        assert terminal.output_width() is None


# Warnings


def test_a_warning_is_one_line_without_a_file_and_a_line_number(path: str, capsys: Any) -> None:
    assert cli.main(["generate", path, "the", "--seq-len", "40000", "--max-new-tokens", "1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("teachllama generate: warning: --seq-len 40000 is above the")
    assert not any(".py:" in line or "UserWarning" in line for line in lines)


def test_a_warning_cannot_steer_the_terminal_and_those_that_are_ignored_stay_so(capsys: Any) -> None:
    with guarded("x"):
        warnings.warn(f"bad {EVIL}\nname", stacklevel=1)
        warnings.simplefilter("ignore")
        warnings.warn("not this", stacklevel=1)
    assert capsys.readouterr().err == f"x: warning: bad {printable(EVIL)} name\n"


# Lines


def wrapped(pieces: list[str], width: int | None) -> str:
    lines = Wrapped(lambda: width)
    return "".join(map(lines.feed, pieces)) + lines.flush()


def test_lines_are_broken_between_words() -> None:
    assert wrapped(["one two th", "ree four"], 9) == "one two\nthree\nfour"
    assert wrapped(["    indented text here"], 14) == "    indented\ntext here"
    assert wrapped(["a\n\n  b c"], 9) == "a\n\n  b c"
    assert wrapped(["x" * 25, " y"], 10).replace("\n", "") in ("x" * 25 + " y", "x" * 25 + "y")


def test_wide_characters_may_be_parted() -> None:
    assert wrapped(["字字字字字"], 6) == "字字字\n字字"
    assert wrapped(["ab 字字字 cd"], 6) == "ab 字\n字字\ncd"


@given(
    st.lists(st.text(st.sampled_from("ab字é\u0301 \n\t"), max_size=12), max_size=12),
    st.integers(20, 40),
)
def test_wrapping_loses_nothing_fits_and_does_not_depend_on_how_the_text_arrived(pieces: list[str], width: int) -> None:
    text = "".join(pieces)
    shown = wrapped(pieces, width)
    assert shown == wrapped([text], width)
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)
    assert wrapped(pieces, None) == text
    if not re.search(rf"[^\s]{{{width},}}|\s{{3}}", text):  # the terminal breaks words longer than a line
        assert all(width_of(line.rstrip().expandtabs(8)) <= width + 8 for line in shown.split("\n"))


def test_words_are_held_back_only_until_they_end() -> None:
    lines = Wrapped(lambda: 40)
    assert lines.feed("one tw") == "one"
    assert lines.feed("o three") == " two"
    assert lines.flush() == " three"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_status_line_is_shown_at_a_terminal_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with Status(lambda: f"doing {EVIL}:", delay_s=0.0) as status:
        while "doing" not in screen.getvalue():
            status._done.wait(0.05)
    shown = screen.getvalue()
    assert re.search(r"doing \\x1b\[2J.*: \d+ s", shown)
    assert shown.endswith("\r\x1b[2K")


def test_nothing_moves_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Status(lambda: "doing", delay_s=0.0) as status:
        status._done.wait(0.5)
    assert log.getvalue() == ""


# A person at a terminal

pexpect = pytest.importorskip("pexpect") if sys.platform != "win32" else None
at_terminal = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the chat history file, in an empty state folder."""
    monkeypatch.setenv("TEACHLLAMA_KERNEL_CACHE", str(user_cache_dir() / "kernels"))  # use the real home's kernels
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))  # on macOS the state folder is below HOME
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")  # this terminal does not answer cursor position requests
    monkeypatch.setenv("TERM", "xterm")
    import platformdirs

    return Path(platformdirs.user_state_path("teachllama")) / "chat_history"


@pytest.fixture
def sit(path: str, state: Path) -> Iterator[Callable[..., Any]]:
    """Starts a chat at a terminal and waits for its prompt."""
    open_ones: list[Any] = []

    def start(*flags: str, model: str = path, columns: int = 200) -> Any:
        child = pexpect.spawn(
            COMMAND[0],
            ["-W", "ignore", *COMMAND[1:], "chat", model, "--max-new-tokens", "3", "--seed", "1", *flags],
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            encoding="utf-8",
            codec_errors="replace",
            timeout=90,
            dimensions=(40, columns),
        )
        open_ones.append(child)
        child.expect("/help lists the commands")
        child.greeting = ESCAPES.sub("", child.before.splitlines()[-1])  # the current line
        prompt(child)
        return child

    yield start
    for child in open_ones:
        child.close(force=True)


def prompt(child: Any) -> None:
    child.expect(r"\x1b\[\?2004h(?s:.*?)\x1b\[\?25h")  # bracketed paste is on, and the cursor is shown


def replied(child: Any) -> None:
    child.expect(r"written.*\]")
    prompt(child)


def leave(child: Any) -> str:
    """Sends Ctrl-D and returns the rest of the output."""
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    return ESCAPES.sub("", child.before)


def messages_of(child: Any, file: Path) -> list[str]:
    """The user's messages so far, obtained with `/save`."""
    child.send(f"/save {file}\r")
    child.expect("saved")
    prompt(child)
    return [m["content"] for m in json.loads(file.read_text(encoding="utf-8"))["messages"] if m["role"] == "user"]


def paste(child: Any, text: str) -> None:
    child.send(f"\x1b[200~{text}\x1b[201~")


@at_terminal
def test_a_pasted_block_is_one_message_with_its_indentation(sit: Callable[..., Any], tmp_path: Path) -> None:
    child = sit()
    paste(child, "for i in range(3):\r\n    print(i)\n\tx")
    child.send("\r")
    replied(child)
    paste(child, "/show\n")  # a pasted line that looks like a command
    child.send("\r")
    child.expect("im_start")
    prompt(child)
    paste(child, "/reset\nthe conversation, please")
    child.send("\r")
    replied(child)
    assert messages_of(child, tmp_path / "talk.json") == [
        "for i in range(3):\n    print(i)\n\tx",
        "/reset\nthe conversation, please",
    ]
    leave(child)


@at_terminal
def test_alt_enter_begins_a_new_line_and_enter_sends(sit: Callable[..., Any], tmp_path: Path) -> None:
    child = sit()
    child.send("  the\x1b\r  inn\r")
    replied(child)
    assert messages_of(child, tmp_path / "talk.json") == ["  the\n  inn"]


@at_terminal
def test_earlier_messages_come_back_in_the_next_run_from_a_file_for_the_user_alone(
    sit: Callable[..., Any], state: Path, tmp_path: Path
) -> None:
    first = sit()
    paste(first, "the\n    inn")
    first.send("\r")
    replied(first)
    leave(first)
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    state.chmod(0o644)  # another program may have changed the mode
    second = sit()
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    second.send("\x1b[A\r")
    replied(second)
    assert messages_of(second, tmp_path / "talk.json") == ["the\n    inn"]


@at_terminal
def test_no_history_neither_reads_nor_writes_the_file(sit: Callable[..., Any], state: Path) -> None:
    child = sit("--no-history")
    child.send("the\r")
    replied(child)
    leave(child)
    assert not state.exists()
    state.parent.mkdir(parents=True)
    state.write_text("\n# 2026-01-01\n+secret\n")
    child = sit("--no-history")
    child.send("\x1b[A\x1b[A/help\r")
    prompt(child)
    assert "/reset" in child.before + child.after
    assert "secret" not in child.before + child.after
    leave(child)
    assert state.read_text() == "\n# 2026-01-01\n+secret\n"


@at_terminal
def test_a_hostile_history_is_shown_without_being_obeyed(sit: Callable[..., Any], state: Path) -> None:
    state.parent.mkdir(parents=True)
    state.write_text("\n# 2026-01-01\n+" + "go \x1b]0;owned\x07 \x9b31m \u202eback" + "\n", encoding="utf-8")
    child = sit()
    child.send("\x1b[A")
    child.expect(re.escape("<202e>"))
    shown = child.before
    assert "\x1b]0;owned" not in shown
    assert "\x9b" not in shown
    assert "\u202e" not in shown
    assert "^[" in ESCAPES.sub("", shown)


@at_terminal
def test_a_history_that_cannot_be_used_ends_nothing(sit: Callable[..., Any], state: Path) -> None:
    state.mkdir(parents=True)  # a folder where the file should be
    child = sit()
    child.send("the\r")
    replied(child)
    leave(child)


@at_terminal
def test_ctrl_d_leaves_the_shells_prompt_on_a_line_of_its_own(sit: Callable[..., Any]) -> None:
    assert leave(sit()).endswith("\n")


@at_terminal
def test_the_greeting_shows_a_models_name_without_obeying_it(sit: Callable[..., Any], tmp_path: Path) -> None:
    from teachllama.chat import FORMATS

    named = {"general.name": EVIL, "tokenizer.chat_template": FORMATS["chatml"]}
    child = sit(model=str(tiny_model(tmp_path / "evil.gguf", **named)))
    assert printable(EVIL) in child.greeting
    assert not any(map(steering, child.greeting))
    leave(child)


@at_terminal
def test_a_reply_is_broken_between_words_at_the_terminals_width() -> None:
    argv = ["generate", "tiny-stories", "One day", "--max-new-tokens", "60", "--seed", "1"]
    plain = subprocess.run([*COMMAND, *argv], capture_output=True, text=True, timeout=120).stdout
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}  # set by readline; they would win
    child = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], *argv], env=env, encoding="utf-8", timeout=120, dimensions=(24, 40)
    )
    child.expect(pexpect.EOF)
    child.close()
    shown = re.sub(r"\r\x1b\[2K[^\r]*(?=\r\x1b\[2K)", "", child.before)  # without a status line, if there was one
    reply = ESCAPES.sub("", shown).replace("\r\n", "\n").rpartition("[")[0].replace("\r", "")
    lines = reply.split("\n")
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40
    assert reply.split() == plain.split()
