"""Why a conversation is evaluated again: `Chat.explain_reuse`.

A session's tokens can be reused up to the first one that differs from the conversation's; everything after it is
evaluated. This file finds that token, its message, and the likeliest reason. It changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teachllama.beginnings import agreeing

if TYPE_CHECKING:
    from teachllama.session import Session

CLOCK = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?|\d{1,2}:\d\d(?::\d\d)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}"
    r"|\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?(?: \d{4})?"
    r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.? \d{1,2}(?:, \d{4})?"
)
THINKING = re.compile(r"<think>.*?(?:</think>\s*|$)", re.DOTALL)
ENOUGH = 12  # characters that must agree after a difference to conclude that nothing else was changed there

REASONS = {
    "nothing": "nothing differs: only what is new is evaluated",
    "empty": "the session holds nothing yet",
    "window": "sliding-window layers no longer hold what that position attends to",
    "clock": "a date or a time has changed",
    "space": "a space or a line break was added or dropped",
    "order": "the same lines or entries (tools, perhaps) stand in another order",
    "thinking": "the thinking of an earlier reply was removed",
    "seam": "the text is the same in other tokens: a model may spell words otherwise than the tokenizer does",
    "template": "another template writes the same messages otherwise",
    "dropped": "an earlier message is no longer there",
    "role": "a message has another role",
    "text": "the text of a message was changed",
}


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much of a conversation a session holds already, and what the rest costs.

    Attributes:
        n_tokens: number of tokens in the conversation.
        n_reused: number of them that need no evaluation.
        first: the position of the first token that differs; None if none does.
        held, wanted: that token's text in the session and in the conversation; empty if no token differs.
        message: the index of the message that contains or precedes that token; None before the first message.
        reason: a key of `REASONS`.
        seconds: estimated evaluation time, at the speed of the session's last prompt; None if that is unknown.
        nbytes: bytes of keys and values to be written, again or for the first time.
    """

    n_tokens: int
    n_reused: int
    first: int | None
    held: str
    wanted: str
    message: int | None
    reason: str
    seconds: float | None
    nbytes: int

    @property
    def n_evaluated(self) -> int:
        """Number of tokens to evaluate."""
        return self.n_tokens - self.n_reused

    def __str__(self) -> str:
        cost = f"{self.n_evaluated:,} of {self.n_tokens:,} tokens are evaluated"
        cost += f", about {self.seconds:.2g} s" if self.seconds is not None else ""
        cost += f", {self.nbytes / 1e6:,.2f} MB of keys and values"
        if self.first is None:
            return f"{REASONS[self.reason]}; {cost}"
        place = "before the first message" if self.message is None else f"in message {self.message}"
        return f"token {self.first}, {place}, is {self.wanted!r} and was {self.held!r}: {REASONS[self.reason]}; {cost}"


def explain(
    session: Session, ids: list[int], old: Sequence[dict[str, str]], new: Sequence[dict[str, str]], same_template: bool
) -> Reuse:
    """Compares a conversation's tokens with those that the session holds.

    Args:
        ids: the conversation's tokens.
        old, new: the messages that the session was evaluated with, and the conversation's messages.
        same_template: whether the same template formatted both.
    """
    held, tokenizer = session.tokens, session.model.tokenizer
    shared = agreeing(held, ids)
    differs = shared < min(len(held), len(ids))
    n_reused, reason = min(shared, len(ids) - 1), "nothing" if held else "empty"
    if differs:
        texts = [b"".join(map(tokenizer.piece_bytes, tokens)).decode("utf-8", "replace") for tokens in (held, ids)]
        ends = [b"".join(map(tokenizer.piece_bytes, tokens[: shared + 1])) for tokens in (held, ids)]
        upto = max(len(end.decode("utf-8", "replace")) for end in ends)
        reason = reason_of(texts[0], texts[1], upto, old, new, same_template)
    if n_reused < session.can_rewind_to:
        n_reused, reason = 0, reason if differs else "window"
    pool: Any = getattr(session, "pool", None)
    if pool is not None:
        n_reused = max(n_reused, pool.prefixes.match(ids, session.seq_len, session._cache.swa_full))
    layout, speed = session.model.config.kv_layout, session.stats.prefill_tps
    nbytes = layout.bytes(len(ids), session.kv_dtype) - (layout.bytes(n_reused, session.kv_dtype) if n_reused else 0)
    piece = lambda tokens: tokenizer.piece(tokens[shared]) if differs else ""
    return Reuse(
        len(ids), n_reused, shared if differs else None, piece(held), piece(ids),
        message_at(tokenizer, ids, shared, new) if differs else None, reason,
        (len(ids) - n_reused) / speed if speed else None, nbytes,
    )  # fmt: skip


def reason_of(
    old: str, new: str, upto: int, before: Sequence[dict[str, str]], now: Sequence[dict[str, str]], same_template: bool
) -> str:
    """Why two texts first differ where they do. `upto` is the end of the first differing tokens, in characters."""
    at = agreeing(old, new)
    if at > upto or at >= min(len(old), len(new)):  # if at == upto, the texts differ right after those tokens
        return "seam"
    pairs = list(zip(before, now))
    i = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    if i == len(pairs) and not same_template:
        return "template"
    if thinks(old) != thinks(new) and agreeing(THINKING.sub("", old), THINKING.sub("", new)) > at:
        return "thinking"
    if any(a.start() <= at < a.end() for a in CLOCK.finditer(old)) and any(
        b.start() <= at < b.end() for b in CLOCK.finditer(new)
    ):
        return "clock"
    if i < len(pairs):
        a, b = pairs[i]
        if a["content"] == b["content"]:
            return "role"
        if "".join(a["content"].split()) == "".join(b["content"].split()):
            return "space"
        if entries(a["content"]) == entries(b["content"]):
            return "order"
        return "dropped" if b in before[i + 1 :] else "text"
    squeezed = "".join(old[at:].split()), "".join(new[at:].split())
    spaces = old[at : at + 1].isspace() or new[at : at + 1].isspace()
    if spaces and agreeing(*squeezed) >= min(ENOUGH, *map(len, squeezed)):
        return "space"
    return "dropped" if len(before) > len(now) else "template"


def thinks(text: str) -> int:
    """Number of `<think>` blocks in the text."""
    return len(THINKING.findall(text))


def entries(text: str) -> list[str]:
    """The lines of the text, or the entries of the JSON list in it, sorted."""
    start, end = text.find("["), text.rfind("]")
    try:
        listed = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list):
        outside = text[:start] + text[end + 1 :]
        return [outside, *sorted(json.dumps(entry, sort_keys=True) for entry in listed)]
    return sorted(text.splitlines())


def message_at(tokenizer: Any, ids: list[int], position: int, messages: Sequence[dict[str, str]]) -> int | None:
    """Index of the message that contains or precedes a token, found by the messages' texts; None before the first."""
    pieces = [tokenizer.piece_bytes(i) for i in ids]
    text = b"".join(pieces).decode("utf-8", "replace")
    at = len(b"".join(pieces[: position + 1]).decode("utf-8", "replace"))
    begin, found = 0, None
    for i, message in enumerate(messages):
        content = message["content"].strip()
        start = text.find(content, begin) if content else begin
        if start < 0:
            continue
        if start >= at:
            break
        found, begin = i, start + len(content)
    return found
