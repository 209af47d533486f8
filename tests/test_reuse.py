"""Why a conversation is evaluated again: the first token that differs, its place, and the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import teachllama as tl
from teachllama.chat import FORMATS, Chat
from teachllama.chat.reuse import reason_of
from tests.test_chat import tiny_chat_model

TOOLS = '[{"name": "add", "a": 1}, {"name": "sub", "a": 2}]'
SWAPPED = '[{"name": "sub", "a": 2}, {"name": "add", "a": 1}]'


def talk(system: str, *texts: str) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns]


BASE = talk(
    "Be brief. It is 2026-03-04 10:15 now.\n" + TOOLS, "What is two and two?", "<think>Easy.</think>\n\nFour.", "Why?"
)


def changed(i: int, old: str, new: str) -> list[dict[str, str]]:
    assert old in BASE[i]["content"]
    return [{**m, "content": m["content"].replace(old, new)} if j == i else dict(m) for j, m in enumerate(BASE)]


CASES: list[tuple[str, int | None, Any]] = [
    ("clock", 0, changed(0, "10:15", "10:16")),
    ("clock", 0, changed(0, "2026-03-04", "2026-03-05")),
    ("space", 1, changed(1, "two and", "two  and")),
    ("space", 0, changed(0, "brief. ", "brief.")),
    ("order", 0, changed(0, TOOLS, SWAPPED)),
    ("thinking", 2, changed(2, "<think>Easy.</think>\n\n", "")),
    ("text", 1, changed(1, "two?", "three?")),
    ("role", 0, [{**BASE[0], "role": "user"}, *BASE[1:]]),
    ("dropped", 0, [BASE[0], BASE[3]]),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tl.Model]:
    with tiny_chat_model(tmp_path_factory.mktemp("m")) as model:
        yield model


@pytest.mark.parametrize(("reason", "message", "messages"), CASES, ids=[f"{c[0]} {i}" for i, c in enumerate(CASES)])
def test_the_first_token_that_differs_is_found_with_its_message_and_the_reason(
    model: tl.Model, reason: str, message: int | None, messages: list[dict[str, str]]
) -> None:
    with model.create_session(seq_len=400) as session:
        chat = Chat(session)
        chat.replay(BASE)
        ids = chat.encode(messages)
        found = chat.explain_reuse(messages)
        first = next(i for i, (a, b) in enumerate(zip(session.tokens, ids)) if a != b)
        assert found.reason == reason
        assert found.first == found.n_reused == first
        assert found.n_evaluated == len(ids) - first
        assert (found.held, found.wanted) == (model.piece(session.tokens[first]), model.piece(ids[first]))
        if reason not in ("role", "dropped"):
            assert found.message == message
        a_position = tl.kv_cache_bytes(model.config, 1)
        assert found.nbytes == a_position * found.n_evaluated
        assert f"{found.n_evaluated:,} of {len(ids):,} tokens" in str(found)
        assert session.tokens == chat.encode(BASE), "explaining evaluates nothing"
        chat.replay(messages)
        assert session.tokens == ids


def test_what_only_goes_on_differs_nowhere(model: tl.Model) -> None:
    with model.create_session(seq_len=400) as session:
        chat = Chat(session)
        assert chat.explain_reuse(BASE).reason == "empty"
        chat.replay(BASE)
        more = [{"role": "assistant", "content": "Because."}, {"role": "user", "content": "I see."}]
        for after in ([], more):
            found = chat.explain_reuse([*BASE, *after])
            assert (found.first, found.reason) == (None, "nothing")
        assert "nothing differs" in str(found)


def test_another_template_and_another_tokenization_are_told_apart(model: tl.Model) -> None:
    with model.create_session(seq_len=400) as session:
        chat = Chat(session)
        chat.replay(BASE)
        other = FORMATS["chatml"].replace("<|im_start|>", "<|im_start|>!")
        assert other != FORMATS["chatml"]
        found = chat.explain_reuse(BASE, template=other)
        assert found.reason == "template"
        word = model.encode(" a two")  # the tokenizer gives one token here, but a model may write two
        assert len(word) < len(" a two")
        session.reset()
        ids = chat.encode([{"role": "user", "content": "x a two"}])
        where = next(i for i, t in enumerate(ids) if model.piece(t) == " a")
        session.eval([*ids[:where], *model.encode(" "), *model.encode("a"), *ids[where + 1 :]])
        found = chat.explain_reuse([{"role": "user", "content": "x a two"}])
        assert (found.reason, found.first) == ("seam", where)


def test_a_dropped_space_that_changes_the_tokens_before_it_is_not_a_seam() -> None:
    old, new = ([{"role": "user", "content": text}] for text in ("see the bears eat", "see the bearseat"))
    texts = [messages[0]["content"] for messages in (old, new)]
    after_bears = len("see the bears")  # the first difference: " bears" is held, " be" is wanted
    assert reason_of(*texts, after_bears, old, new, True) == "space"
    assert reason_of(texts[0], texts[0], after_bears, old, old, True) == "seam"


def test_a_chat_on_a_pool_begins_where_another_left_off(model: tl.Model) -> None:
    system = "You answer in few words. " * 6
    with model.create_pool(nbytes=4 * 10**6) as pool:
        first, second = (Chat(pool.create_session(seq_len=400), system=system) for _ in range(2))
        alone = Chat(model.create_session(seq_len=400), system=system)
        for chat in (first, alone):
            chat.ask("What is it?", max_new_tokens=5)
        n = pool.prefixes.match(second.encode([*second.history, {"role": "user", "content": "What is it?"}]))
        assert n >= 64
        assert second.explain_reuse([*second.history, {"role": "user", "content": "What is it?"}]).n_reused == n
        assert (
            second.ask("What is it?", max_new_tokens=5) == alone.history[-1]["content"] == first.history[-1]["content"]
        )
        assert second.session.stats.n_prompt == len(alone.encode(alone.history[:-1])) - n
        assert pool.prefixes.statistics.n_reused == n


def test_seconds_are_told_where_a_prompt_was_timed(model: tl.Model) -> None:
    with model.create_session(seq_len=400) as session:
        chat = Chat(session)
        chat.replay(BASE)
        assert chat.explain_reuse(BASE).seconds is None
        chat.ask("And now?", max_new_tokens=2)
        found = chat.explain_reuse(changed(0, "10:15", "10:16"))
        assert found.seconds is not None
        assert found.seconds > 0
        assert " s, " in str(found)


def test_a_window_that_has_moved_on_is_a_reason_of_its_own(tmp_path: Path) -> None:
    sizes = {"gemma3.attention.sliding_window": 16}
    with tiny_chat_model(tmp_path, "gemma3", **sizes) as model, model.create_session(seq_len=400) as session:
        chat = Chat(session)
        chat.replay(talk("Be brief.", "Tell me all. " * 15))
        assert session.can_rewind_to > 0
        found = chat.explain_reuse(talk("Be brief.")[:1])
        assert found.n_reused == 0
        assert found.reason in ("window", "dropped")
