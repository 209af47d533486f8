"""`Chat`: a conversation with a model: turns, written by the template in the model's file.

Chat is generation over a templated prompt. This file knows messages, templates and tokens, and drives a session; it
knows nothing of how templates are rendered safely (`sandbox.py`).

A chat's state is its messages, and nothing else: after a reply, the session holds exactly the tokens that those
messages are written in. So a conversation can be replayed from a file, and each turn evaluates only what is new in it.
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
SESSION_ENDINGS = (".session", ".safetensors")  # names of files that `save` writes keys and values into
MARKS = [chr(c) for c in range(0xFDD0, 0xFDF0)]  # noncharacters: they mark where a message's text begins and ends


class Chat:
    """A conversation in a session. The session is the chat's own from now on.

    Args:
        session: where it is evaluated; other tokens in it are forgotten at the first turn.
        system: the text of a system message to begin with.
        template: Jinja source, or a name of `FORMATS` ("chatml", "llama2", "llama3", "gemma", "mistral"), in place of
            the file's own template.
        limits: what rendering the template may use.

    Attributes:
        dropped: characters of the last message said, or of all that were replayed, that this vocabulary cannot write
            whole, each once: encoding left a byte of each out (`Tokenizer.encode(..., errors="drop")`). Usually "".

    Raises:
        TemplateError: the model's file has no template, and none was given.
        ChatError: `system` is not a text.
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
        """The messages so far, oldest first, as dicts of role and content: a copy."""
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
        """Says something, and yields the tokens of the reply as they are made.

        Only what is new is evaluated; `session.stats.n_prompt` says how many tokens that was. If you break off, or
        press Ctrl-C, the reply so far is kept as the reply; before its first token, nothing was said.

        Raises:
            ChatError: not a text, or the template refuses it. TemplateError: the template fails.
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
        """Says something, and returns the whole reply. Arguments and errors: see `say`."""
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
            with self.session.lock:  # other threads' turns wait, or find that this one came first
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
        """The conversation so far as one text, special tokens and all."""
        return render(self.template, [self._variables(self._messages, add_generation_prompt)], self.limits)[0]

    def encode(self, messages: Iterable[Mapping[str, str]] | None = None) -> list[int]:
        """The tokens that a conversation is written in; the chat's own if no messages are given.

        They end where the model goes on: at the end of the last reply if that is the last message, else after the
        beginning of a reply. Special tokens come from the template alone: `<|im_end|>` within a message is only text.

        Raises:
            ChatError: a message is malformed; the template refuses it; or it holds the text of a special token, and the
                template changes messages in ways that make it impossible to keep the two apart.
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
            # What closes the reply is written when the next turn comes. Spaces that are its own stay.
            spaces = texts[-1][len(texts[-1].rstrip()) :]
            parts[-1] = (spaces if parts[-1][0].startswith(spaces) else "", False)
        ids = tokenizer.encode_parts(parts, errors="drop")
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]  # some templates write it, some leave it to the tokenizer
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
        """Rewinds the session to what it shares with `ids`; returns what is left to evaluate: at least one token."""
        held = self.session.tokens
        shared = min(agreeing(held, ids), len(ids) - 1)
        pool = getattr(self.session, "pool", None)  # other sessions may have had the same beginning
        if pool is not None and pool.prefixes.match(ids, self.session.seq_len, self.session._cache.swa_full) > shared:
            self.session.rewind(0)
            return ids[pool.prefixes.attach(self.session, ids) :]
        try:
            self.session.rewind(shared)
        except TeachLlamaError:
            if self.session.closed:
                raise
            shared = 0  # sliding-window layers have given back what that position attends to
            self.session.reset()
        return ids[shared:]

    def _settle(self) -> None:
        """Makes the session hold the conversation's own tokens.

        It nearly always does. A model may spell a word in other tokens than the tokenizer would, or begin or end a
        reply with spaces that the template strips: then the reply is evaluated again from there, as a replay would.
        """
        ids = self.encode()
        if ids != self.session.tokens and len(ids) <= self.session.seq_len:
            self.session.eval(self._rewind_to(ids))
        if (pool := getattr(self.session, "pool", None)) is not None:
            pool.prefixes.donate(self.session)

    def explain_reuse(self, messages: Iterable[Mapping[str, str]], *, template: str | None = None) -> Reuse:
        """What of a conversation the session holds already; which token is the first to differ, where, and why.

        Args:
            messages: as for `replay`; nothing is evaluated.
            template: write them by this template, as for `Chat`, in place of the chat's own.

        Returns:
            what it found; print it to read it.

        Raises:
            ChatError, TemplateError, TokenError: as `encode`.
        """
        new = checked(messages)
        writer = self if template is None else Chat(self.session, template=template, limits=self.limits)
        with self.session.lock:
            same = writer.template == self.template
            return explain(self.session, writer.encode(new), self._messages, new, same)

    # ---- beginning again, keeping, trimming ----

    def replay(self, messages: Iterable[Mapping[str, str]]) -> None:
        """Replaces the history by a conversation and evaluates it; positions that the session shares with it are kept.

        A chat into which another's history is replayed is where that one is: the same tokens, the same next token.

        Raises:
            ChatError, TemplateError, ContextFullError: nothing was changed.
        """
        self._replay(checked(messages))

    def _replay(self, taken: list[Message]) -> int:
        """`replay`; returns how many tokens were evaluated."""
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
        """Forgets all but a system message; the session is as it was created."""
        with self.session.lock:
            self._messages = [m for m in self._messages[:1] if m["role"] == "system"]
            self.session.reset()

    def trim(self, room: int | None = None) -> int:
        """Drops the oldest turns until there is room for what comes next; a system message stays.

        What is left is evaluated again at the next turn, from where it differs.

        Args:
            room: positions to leave free; a quarter of the session's if not given.

        Returns:
            how many messages were dropped.
        """
        room = self.session.seq_len // 4 if room is None else room
        room = whole("room", room, 1, self.session.seq_len - 1)
        with self.session.lock:
            kept = list(self._messages)
            first = 1 if kept and kept[0]["role"] == "system" else 0
            while len(kept) > first and len(self.encode(kept)) + room > self.session.seq_len:
                del kept[first]  # a turn: up to the next message of the user
                while len(kept) > first and kept[first]["role"] != "user":
                    del kept[first]
            dropped = len(self._messages) - len(kept)
            self._messages = kept
            return dropped

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation to a file; an existing one is replaced as a whole or not at all.

        A name that ends in .session or .safetensors gets the whole session, messages included: `load` then goes on
        without evaluating anything again. Any other name gets the messages as JSON, for people and other programs.

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

        The form with keys and values is restored as it is. Where they don't fit, though the messages do (another
        quantization of the model, another cache type, a longer session than this one), the messages are evaluated
        again, with a warning that says why.

        Returns:
            how many tokens were evaluated: 0 if all were restored.

        Raises:
            ChatError: no such file, or not such a file: the message says what is wrong with it. See also `replay`.
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
    """The messages of a conversation that `Chat.save` wrote, in either form. Errors: see `Chat.load`."""
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
    """Whether a file has keys and values: as text, the length with which safetensors files begin would be huge."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except (OSError, ValueError):
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**40


def checked(messages: Iterable[Mapping[str, str]]) -> list[Message]:
    """Messages as plain dicts of role and content, copied.

    Raises:
        ChatError: one is not such a dict, has no plausible role, or holds a lone surrogate (half a character).
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
    """The text with marks around it, within its outer spaces: templates may strip those."""
    if not (core := text.strip()):
        return text
    at = text.index(core)
    return text[:at] + opening + core + closing + text[at + len(core) :]


def _parts(marked: str, opening: str, closing: str) -> list[tuple[str, bool]] | None:
    """A rendered text cut at its marks: (text, is it the template's own), in turn. None if marks are in disorder."""
    marks = re.findall(f"[{opening}{closing}]", marked)
    if marks != [opening, closing] * (len(marks) // 2):
        return None
    return [(text, i % 2 == 0) for i, text in enumerate(re.split(f"[{opening}{closing}]", marked))]
