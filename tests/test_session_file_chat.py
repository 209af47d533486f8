"""Conversations saved with their keys and values: `Chat.save`, `Chat.load`, `/save`, `/load`, and inspection."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import teachllama as tl
from teachllama import cli
from tests.test_chat import HOT, tiny_chat_model
from tests.test_cli_chat import talk
from tests.test_session_file import refused, resign


@pytest.fixture
def model(tmp_path: Path) -> Iterator[tl.Model]:
    with tiny_chat_model(tmp_path) as model:
        yield model


@pytest.fixture
def chat(model: tl.Model) -> tl.Chat:
    chat = tl.Chat(model.create_session(seed=1), system="é \x00 \u2028 \x1b[2J")
    chat.ask("the 你好", HOT, max_new_tokens=10)
    return chat


@pytest.mark.parametrize("name", ["talk.session", "talk.safetensors"])
def test_a_conversation_goes_on_without_evaluating_anything_again(
    model: tl.Model, chat: tl.Chat, tmp_path: Path, name: str
) -> None:
    chat.save(tmp_path / name)
    copy = tl.Chat(model.create_session())
    session, evaluated = copy.session, []
    original = session.eval
    session.eval = lambda ids, **how: evaluated.append(list(ids)) or original(ids, **how)  # type: ignore[method-assign]
    assert copy.load(tmp_path / name) == 0
    assert evaluated == []
    assert copy.session is session
    assert (copy.history, session.tokens) == (chat.history, chat.session.tokens)
    assert session.restored == session.n_past == chat.session.n_past
    assert copy.ask("and", HOT, max_new_tokens=9) == chat.ask("and", HOT, max_new_tokens=9)
    assert session.stats.reused >= chat.session.stats.n_prompt
    assert session.tokens == chat.session.tokens
    assert session.sample(HOT) == chat.session.sample(HOT)
    assert len(model.sessions) == 2  # the temporary session that read the file is closed


def test_any_other_name_gets_messages_alone_for_people(model: tl.Model, chat: tl.Chat, tmp_path: Path) -> None:
    chat.save(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"] == chat.history
    copy = tl.Chat(model.create_session())
    assert copy.load(tmp_path / "talk.json") == chat.session.n_past
    assert copy.session.restored == 0


def test_both_forms_are_told_apart_by_their_content(model: tl.Model, chat: tl.Chat, tmp_path: Path) -> None:
    chat.save(tmp_path / "a.session")
    chat.save(tmp_path / "b.json")
    os.rename(tmp_path / "a.session", tmp_path / "a.json")
    os.rename(tmp_path / "b.json", tmp_path / "b.session")
    for name in ("a.json", "b.session"):
        copy = tl.Chat(model.create_session())
        copy.load(tmp_path / name)
        assert copy.history == chat.history


def test_messages_are_evaluated_again_where_keys_and_values_cannot_be_used(
    model: tl.Model, chat: tl.Chat, tmp_path: Path
) -> None:
    chat.save(tmp_path / "talk.session")
    copy = tl.Chat(model.create_session(kv_dtype="f16"))
    with pytest.warns(UserWarning, match="evaluated again.*its cache is of type f32"):
        assert copy.load(tmp_path / "talk.session") == chat.session.n_past
    assert (copy.history, copy.session.tokens) == (chat.history, chat.session.tokens)
    assert copy.session.restored == 0


def test_a_refused_file_changes_nothing(model: tl.Model, chat: tl.Chat, tmp_path: Path) -> None:
    chat.save(tmp_path / "talk.session")
    with model.create_session() as session:
        session.eval([1, 2])
        session.save(tmp_path / "plain.session")
    copy = tl.Chat(model.create_session(seed=3))
    copy.replay([{"role": "user", "content": "the"}])
    before = (copy.history, list(copy.session.tokens), copy.session.logits.tobytes(), copy.session.seed)
    raw = bytearray((tmp_path / "talk.session").read_bytes())
    raw[200] ^= 1
    (tmp_path / "damaged").write_bytes(raw)
    with pytest.raises(tl.SessionFileError):
        copy.load(tmp_path / "damaged")
    with pytest.raises(tl.ChatError, match="a session without messages"):
        copy.load(tmp_path / "plain.session")
    small = tl.Chat(model.create_session(seq_len=8))
    with pytest.raises(tl.ContextFullError):
        small.load(tmp_path / "talk.session")
    assert small.session.n_past == 0
    forged = resign(tmp_path / "talk.session", lambda t, h, m: m.update(messages='[{"role": "?", "content": ""}]'))
    with pytest.raises(tl.ChatError, match="role"):
        copy.load(forged)
    assert before == (copy.history, copy.session.tokens, copy.session.logits.tobytes(), copy.session.seed)


def test_a_conversation_too_long_for_a_header_is_refused(chat: tl.Chat, tmp_path: Path) -> None:
    chat._messages[-1]["content"] = "x" * 3_000_000
    refused(lambda: chat.save(tmp_path / "talk.session"), "too large", "as JSON")
    assert not (tmp_path / "talk.session").exists()


# The command line -----------------------------------------------------------------------------------------------------


def test_slash_save_and_load_go_on_where_they_were(model: tl.Model, tmp_path: Path) -> None:
    file = tmp_path / "talk.session"
    first = talk(str(model.path), f"the inn\n/save {file}\nthen\n")
    assert "saved 2 messages and " in first.stdout
    second = talk(str(model.path), "then\n", "--load", str(file))
    assert second.returncode == 0
    assert first.stdout.endswith(second.stdout)  # the same reply as without the interruption
    third = talk(str(model.path), f"/load {file}\n")
    assert "0 of them read again" in third.stdout


def test_the_session_command_prints_what_is_inside_without_a_model(
    chat: tl.Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "talk.session")
    chat.save(path)
    assert cli.main(["session", path]) == 0
    out = capsys.readouterr().out
    for words in ("tiny llama (llama, F32)", "3 messages", "all checksums right", f"{chat.session.n_past} of 512"):
        assert words in out
    assert "\x1b" not in out
    assert cli.main(["session", path, "--tensors", "--no-verify"]) == 0
    out = capsys.readouterr().out
    assert "layer.1.v" in out
    assert "not compared" in out
    assert cli.main(["session", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == chat.session.tokens
    assert found["messages"] == chat.history
    assert (found["verified"], found["n_past"]) == (True, chat.session.n_past)
    assert sum(t["nbytes"] for t in found["tensors"]) < os.path.getsize(path) == found["nbytes"]


def test_the_session_command_refuses_with_one_line(
    chat: tl.Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talk.session"
    chat.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    for argv, words in (([str(path)], "do not fit together"), ([str(tmp_path / "none")], "no such file")):
        assert cli.main(["session", *argv]) == 1
        err = capsys.readouterr().err
        assert words in err
        assert err.startswith("teachllama session: ")
        assert err.count("\n") == 1


def test_an_empty_session_and_one_without_logits_can_be_inspected(
    model: tl.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with model.create_session() as session:
        session.save(tmp_path / "empty")
        session.eval(np.arange(5))
        session.rewind(3)
        session.save(tmp_path / "back")
    assert cli.main(["session", str(tmp_path / "empty")]) == 0
    assert cli.main(["session", str(tmp_path / "back")]) == 0
    out = capsys.readouterr().out
    assert "evaluate a token first" in out
    assert "0, 1, 2\n" in out
