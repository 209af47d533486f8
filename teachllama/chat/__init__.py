"""`Chat`: a conversation with a model, in turns that the template in the model's file formats.

Chat is generation over a templated prompt. This file handles messages, templates and tokens, and drives a session.
`sandbox.py` renders templates safely.

A chat's only state is its messages. After a reply, the session holds exactly the tokens that encode those messages. So
a conversation can be replayed from a file, and each turn evaluates only its new tokens.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from teachllama import session_file
from teachllama.beginnings import agreeing
from teachllama.chat.formats import FORMATS
from teachllama.chat.reuse import Reuse, explain
from teachllama.chat.sandbox import DEFAULT, Limits, render
from teachllama.errors import (
    ChatError,
    ContextFullError,
    SessionFileError,
    TeachLlamaError,
    TemplateError,
)
from teachllama.files import replacing
from teachllama.generate import Token
from teachllama.sampling import GREEDY, SamplingParams
from teachllama.session import Session
from teachllama.whole_numbers import whole

__all__ = ["FORMATS", "Chat", "Limits", "Reuse"]

Message = dict[str, str]  # {"role": "user", "content": "Hello"}

MOST_FILE = 1 << 26  # bytes of a saved conversation
SESSION_ENDINGS = (".session", ".safetensors")  # file name suffixes for which `save` includes keys and values
MARKS = [chr(c) for c in range(0xFDD0, 0xFDF0)]  # noncharacters, used to mark where a message's text begins and ends


class Chat:
    """A conversation in a session, which the chat owns from then on.

    Args:
        session: evaluates the conversation. Other tokens in it are discarded at the first turn.
        system: the text of an initial system message.
        template: Jinja source, or a name from `FORMATS` ("chatml", "llama2", "llama3", "gemma", "mistral"), instead of
            the template in the model's file.
        limits: the resources that rendering the template may use.

    Attributes:
        dropped: characters that this vocabulary cannot encode completely, each listed once. They are from the last
            message said, or from all replayed messages. Encoding omits a byte of each
            (`Tokenizer.encode(..., errors="drop")`). Usually "".

    Raises:
        TemplateError: the model's file has no template, and none was given.
        ChatError: `system` is not a string.
    """

    def __init__(
        self, session: Session, *, system: str | None = None, template: str | None = None, limits: Limits = DEFAULT
    ):
        model = session.model
        if template is None and model.chat_template is None:
            raise TemplateError(
                f"the file of {model.config.name!r} has no chat template; it may not be trained for chat. "
                f"Give one: template= Jinja source, or a name: {', '.join(FORMATS)}"
            )
        self.session = session
        self.template: str = FORMATS.get(template, template) if template is not None else str(model.chat_template)
        self.limits = limits
        self._messages = checked([] if system is None else [{"role": "system", "content": system}])
        self.dropped = self._unwritable(self._messages)

    @property
    def history(self) -> list[Message]:
        """A copy of the messages so far, oldest first, as dicts with role and content."""
        return [dict(message) for message in self._messages]

    # ---- talking ----

    def say(
        self,
        text: str,
        params: SamplingParams = GREEDY,
        *,
        max_new_tokens: int = 512,
        stop: str | Sequence[str] = (),
    ) -> Iterator[Token]:
        """Adds a user message and yields the tokens of the reply as they are generated.

        Only new tokens are evaluated; `session.stats.n_prompt` is their number. If you stop iterating or press Ctrl-C,
        the partial reply is kept as the reply. Before its first token, the conversation is unchanged.

        Raises:
            ChatError: `text` is not a string, or the template refuses it.
            TemplateError: the template fails.
            ContextFullError: the conversation does not fit; the message says by how many tokens. Nothing was changed.
        """
        before = self._messages
        said = [*before, *checked([{"role": "user", "content": text}])]
        ids = self._fitting(self.encode(said))
        self.dropped = self._unwritable(said[-1:])
        self.session.generate(
            ids, params, max_new_tokens=max_new_tokens, stop=stop
        )  # validates arguments; this generator is discarded
        return self._reply(before, said, ids, params, max_new_tokens, stop)

    def ask(self, text: str, params: SamplingParams = GREEDY, **options: Any) -> str:
        """Adds a user message and returns the whole reply. For arguments and errors see `say`."""
        return "".join(token.piece for token in self.say(text, params, **options))

    def _reply(
        self,
        before: list[Message],
        said: list[Message],
        ids: list[int],
        params: SamplingParams,
        max_new_tokens: int,
        stop: str | Sequence[str],
    ) -> Iterator[Token]:
        reply: Message = {"role": "assistant", "content": ""}
        now = [*said, reply]
        tokens: Iterator[Token] | None = None
        while True:
            with self.session.lock:  # turns of other threads wait here, then fail because the messages have changed
                if tokens is None:
                    if self._messages is not before:
                        raise ChatError("the conversation has gone on since this say(); say it again")
                    new = self._rewind_to(ids)
                    tokens = self.session.generate(new, params, max_new_tokens=max_new_tokens, stop=stop)
                elif self._messages is not now:
                    raise ChatError("the conversation has gone on since this reply began")
                token = next(tokens, None)
                self._messages = now  # an empty reply still counts
                if token is None:
                    self._settle()
                    return
                reply["content"] += token.piece
            yield token

    # ---- what the session holds ----

    def render(self, *, add_generation_prompt: bool = False) -> str:
        """The conversation so far as one text, including special tokens."""
        return render(self.template, [self._variables(self._messages, add_generation_prompt)], self.limits)[0]

    def encode(self, messages: Iterable[Mapping[str, str]] | None = None) -> list[int]:
        """The tokens of a conversation. Without `messages`, those of the chat's own.

        They end where generation continues: at the end of the last reply if that is the last message, otherwise after
        the template's opening of a reply. Special tokens come only from the template: `<|im_end|>` within a message is
        ordinary text.

        Raises:
            ChatError: a message is malformed; the template refuses it; or it contains the text of a special token and
                the template changes messages in a way that makes the two indistinguishable.
            TemplateError: the template fails.
        """
        checked_messages = self._messages if messages is None else checked(messages)
        tokenizer, to_reply = self.session.model.tokenizer, _last_role(checked_messages) != "assistant"
        texts = [message["content"] for message in checked_messages]
        opening, closing = [mark for mark in MARKS if not any(mark in text for text in texts)][:2]
        marked = [{**m, "content": _marked(m["content"], opening, closing)} for m in checked_messages]
        plain_text, marked_text = render(
            self.template,
            [self._variables(checked_messages, to_reply), self._variables(marked, to_reply)],
            self.limits,
        )
        parts = _parts(marked_text, opening, closing)
        if parts is None or "".join(text for text, _ in parts) != plain_text:
            parts = [(plain_text, True)]
            for i, text in enumerate(texts):
                if tokenizer.encode(text, parse_special=True, errors="drop") != tokenizer.encode(text, errors="drop"):
                    raise ChatError(
                        f"message {i} holds the text of a special token, {text[:60]!r}, and this template changes "
                        "messages so that it cannot be told from the template's own; take it out of the message"
                    )
        elif not to_reply and len(parts) > 1 and texts[-1].strip():
            # The tokens that close the reply are added with the next turn. The reply's own trailing spaces stay.
            spaces = texts[-1][len(texts[-1].rstrip()) :]
            parts[-1] = (spaces if parts[-1][0].startswith(spaces) else "", False)
        ids = tokenizer.encode_parts(parts, errors="drop")
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]  # some templates write BOS, others leave it to the tokenizer
        return ids

    def _variables(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> dict[str, Any]:
        tokenizer = self.session.model.tokenizer
        text = lambda i: "" if i is None else tokenizer.piece_bytes(i).decode("utf-8", "replace")
        return {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "bos_token": text(tokenizer.bos_id),
            "eos_token": text(tokenizer.eos_id),
            "tools": None,
            "documents": None,
        }

    def _unwritable(self, messages: Iterable[Message]) -> str:
        return self.session.model.tokenizer.unwritable("\n".join(message["content"] for message in messages))

    def _fitting(self, ids: list[int]) -> list[int]:
        most = self.session.seq_len - 1  # a position for the reply
        if len(ids) > most:
            raise ContextFullError(
                f"the conversation is {len(ids)} tokens long and the session holds {self.session.seq_len}, one of them "
                f"for the reply: {len(ids) - most} too many. Nothing was changed; trim() drops the oldest turns, and a "
                "session with a larger seq_len holds more"
            )
        return ids

    def _rewind_to(self, ids: list[int]) -> list[int]:
        """Rewinds the session to the prefix it shares with `ids`. Returns the ids left to evaluate, at least one."""
        held = self.session.tokens
        shared = min(agreeing(held, ids), len(ids) - 1)
        pool = getattr(self.session, "pool", None)  # other sessions may have evaluated the same prefix
        if pool is not None and pool.prefixes.match(ids, self.session.seq_len, self.session._cache.swa_full) > shared:
            self.session.rewind(0)
            return ids[pool.prefixes.attach(self.session, ids) :]
        try:
            self.session.rewind(shared)
        except TeachLlamaError:
            if self.session.closed:
                raise
            shared = 0  # sliding-window layers have freed positions that this one attends to
            self.session.reset()
        return ids[shared:]

    def _settle(self) -> None:
        """Makes the session hold exactly the tokens that encode the conversation.

        It nearly always does already. But a model may spell a word in other tokens than the tokenizer would, or begin
        or end a reply with spaces that the template strips. Then the reply is evaluated again from the first token that
        differs, as a replay would.
        """
        ids = self.encode()
        if ids != self.session.tokens and len(ids) <= self.session.seq_len:
            self.session.eval(self._rewind_to(ids))
        if (pool := getattr(self.session, "pool", None)) is not None:
            pool.prefixes.donate(self.session)

    def explain_reuse(self, messages: Iterable[Mapping[str, str]], *, template: str | None = None) -> Reuse:
        """Reports how much of a conversation the session holds already, and where and why the first token differs.

        Nothing is evaluated.

        Args:
            messages: as for `replay`.
            template: format them with this template, given as for `Chat`, instead of the chat's own.

        Returns:
            the report; print it to read it.

        Raises:
            ChatError, TemplateError, TokenError: as `encode`.
        """
        new = checked(messages)
        writer = self if template is None else Chat(self.session, template=template, limits=self.limits)
        with self.session.lock:
            same = writer.template == self.template
            return explain(self.session, writer.encode(new), self._messages, new, same)

    # ---- replaying, saving, trimming ----

    def replay(self, messages: Iterable[Mapping[str, str]]) -> None:
        """Replaces the history with a conversation and evaluates it. The prefix that the session shares is kept.

        After replaying another chat's history, both chats hold the same tokens and predict the same next token.

        Raises:
            ChatError, TemplateError, ContextFullError: nothing was changed.
        """
        self._replay(checked(messages))

    def _replay(self, taken: list[Message]) -> int:
        """As `replay`. Returns the number of tokens evaluated."""
        new: list[int] = []
        with self.session.lock:
            if taken:
                ids = self.encode(taken)
                self._fitting(ids)
                if ids != self.session.tokens:
                    new = self._rewind_to(ids)
                    self.session.eval(new)
            self._messages, self.dropped = taken, self._unwritable(taken)
        return len(new)

    def reset(self) -> None:
        """Discards all messages except a system message, and resets the session to its initial state."""
        with self.session.lock:
            self._messages = [m for m in self._messages[:1] if m["role"] == "system"]
            self.session.reset()

    def trim(self, room: int | None = None) -> int:
        """Drops the oldest turns until there is room for the next ones. A system message stays.

        At the next turn, the remaining messages are evaluated again from the first token that differs.

        Args:
            room: number of positions to leave free (default: a quarter of the session's).

        Returns:
            the number of messages dropped.
        """
        room = self.session.seq_len // 4 if room is None else room
        room = whole("room", room, 1, self.session.seq_len - 1)
        with self.session.lock:
            kept = list(self._messages)
            first = 1 if kept and kept[0]["role"] == "system" else 0
            while len(kept) > first and len(self.encode(kept)) + room > self.session.seq_len:
                del kept[first]  # a turn ends before the next user message
                while len(kept) > first and kept[first]["role"] != "user":
                    del kept[first]
            dropped = len(self._messages) - len(kept)
            self._messages = kept
            return dropped

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation to a file. An existing file is replaced atomically.

        If the name ends in .session or .safetensors, the file holds the whole session, including the messages, and
        `load` restores it without evaluating anything. Otherwise it holds the messages as JSON, for people and other
        programs.

        Raises:
            ChatError, SessionFileError: it could not be written.
        """
        path = Path(path)
        if path.suffix in SESSION_ENDINGS:
            with self.session.lock:
                self.session._check_free()
                session_file.save(self.session, path, self._messages)
            return
        data = {"teachllama_chat": 1, "model": self.session.model.config.name, "messages": self._messages}
        try:
            with replacing(path) as part:
                part.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as e:
            raise ChatError(f"{path}: the conversation could not be saved: {e.strerror or e}") from None

    def load(self, path: str | os.PathLike[str]) -> int:
        """Restores a conversation that `save` wrote, in either form.

        A file with keys and values is restored without evaluation. If they don't fit but the messages do (another
        quantization of the model, another cache type, a longer session than this one), the messages are evaluated
        again, with a warning that gives the reason.

        Returns:
            the number of tokens evaluated; 0 if all were restored.

        Raises:
            ChatError: the file does not exist or is not a saved conversation; the message gives the reason. See also
                `replay`.
            SessionFileError: a file with keys and values is refused.
        """
        with self.session.lock:
            messages = messages_in(path)
            if not _is_session(path):
                try:
                    return self._replay(messages)
                except ChatError as e:
                    raise ChatError(f"{path}: {e}") from None
            try:
                session_file.restore(self.session, path)
            except SessionFileError as e:
                if not (e.can_rebuild or e.reason == "seq_len"):
                    raise
                n = self._replay(messages)
                warnings.warn(f"the conversation was evaluated again: {e}", stacklevel=2)
                return n
            self._messages = messages
            return 0

    def __repr__(self) -> str:
        return f"<Chat: {len(self._messages)} messages in {self.session!r}>"


def messages_in(path: str | os.PathLike[str]) -> list[Message]:
    """The messages of a conversation that `Chat.save` wrote, in either form. For errors see `Chat.load`."""
    if _is_session(path):
        messages = session_file.inspect_session(path, verify=False).messages
        if messages is None:
            raise ChatError(f"{path}: a session without messages; load it with model.load_session()")
        return checked(messages)
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_FILE + 1)
        if len(raw) > MOST_FILE:
            raise ChatError(f"{path}: larger than {MOST_FILE >> 20} MB, too large for a conversation")
        data = json.loads(raw)
    except OSError as e:
        raise ChatError(f"{path}: the conversation could not be read: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise ChatError(f"{path}: not a saved conversation: {e}") from None
    if not isinstance(data, dict) or data.get("teachllama_chat") != 1 or not isinstance(data.get("messages"), list):
        raise ChatError(f"{path}: not a saved conversation: expected an object with teachllama_chat 1 and messages")
    try:
        return checked(data["messages"])
    except ChatError as e:
        raise ChatError(f"{path}: {e}") from None


def _is_session(path: str | os.PathLike[str]) -> bool:
    """Whether a file has keys and values. A safetensors file begins with a length; read from text it would be huge."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except (OSError, ValueError):
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**40


def checked(messages: Iterable[Mapping[str, str]]) -> list[Message]:
    """Copies messages as plain dicts with role and content.

    Raises:
        ChatError: a message is not such a dict, has no plausible role, or contains a lone surrogate (half a character).
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise ChatError(f"expected a list of messages, found {type(messages).__name__}")
    result = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
            raise ChatError(f"message {i}: expected a dict with 'role' and 'content', found {found}")
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,31}", role):
            raise ChatError(f"message {i}: role is {role!r}; expected a word such as 'system', 'user' or 'assistant'")
        if not isinstance(content, str):
            raise ChatError(f"message {i}: content is {type(content).__name__}; expected text")
        if half := re.search("[\ud800-\udfff]", content):
            raise ChatError(
                f"message {i}: character {half.start()} is {half[0]!r}, a lone surrogate, which is no character; "
                "text.encode('utf-8', 'replace').decode() puts '?' in its place"
            )
        result.append({"role": role, "content": content})
    return result


def _last_role(messages: Sequence[Message]) -> str | None:
    return messages[-1]["role"] if messages else None


def _marked(text: str, opening: str, closing: str) -> str:
    """The text with marks around it. The marks are inside its outer spaces, because templates may strip those."""
    if not (core := text.strip()):
        return text
    at = text.index(core)
    return text[:at] + opening + core + closing + text[at + len(core) :]


def _parts(marked: str, opening: str, closing: str) -> list[tuple[str, bool]] | None:
    """A rendered text split at its marks, as (text, whether the template wrote it). None if marks are out of order."""
    marks = re.findall(f"[{opening}{closing}]", marked)
    if marks != [opening, closing] * (len(marks) // 2):
        return None
    return [(text, i % 2 == 0) for i, text in enumerate(re.split(f"[{opening}{closing}]", marked))]
