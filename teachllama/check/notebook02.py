"""The exercises of notebook 02, chat and templates: what a turn evaluates, ChatML by hand, which tokens can stay, and
trimming a conversation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from teachllama.check.core import CheckResult, Slip, number, recognise, run, short, type_name

if TYPE_CHECKING:
    from teachllama.chat import Chat

Messages = list[dict[str, str]]


def _judge(
    function: object,
    scenes: Mapping[str, tuple[Any, ...]],
    right: Callable[..., Any],
    wrong: Mapping[str, tuple[Callable[..., Any], str]],
    plain: Callable[[Any], Any],
    praise: str,
) -> CheckResult:
    """Runs a learner's function on all scenes; a wrong variant that gives all of its answers names the mistake.

    Args:
        scenes: name -> arguments, copied for each call.
        right, wrong: the reference; variants by the name of their mistake, with what was misunderstood.
        plain: turns what the learner's function returned into something to compare, or says what is wrong with it.
    """
    if not callable(function):
        return CheckResult(False, f"A function is wanted; this is of type {type_name(function)}.", "type")
    answers: dict[str, Any] = {}
    failed: CheckResult | None = None
    for about, args in scenes.items():
        outcome = run(lambda a=args: plain(function(*_copied(a))))
        failed = outcome.failure or (outcome.value if isinstance(outcome.value, CheckResult) else None)
        if failed:
            if failed.mistake != "exception" or not answers:
                return CheckResult(False, f"{failed.message} (Practice run: {about}.)", failed.mistake)
            break  # an exception on the way: what came before it may name the mistake
        answers[about] = outcome.value
    missed = [about for about, found in answers.items() if found != right(*_copied(scenes[about]))]
    for name, (variant, text) in wrong.items():
        if missed and all(found == variant(*_copied(scenes[about])) for about, found in answers.items()):
            return CheckResult(False, f"{text} (Practice run: {missed[0]}.)", name)
    if missed:
        return CheckResult(False, f"It gave {short(repr(answers[missed[0]]))} (practice run: {missed[0]}).")
    if failed:
        return CheckResult(False, f"{failed.message} (Practice run: {list(scenes)[len(answers)]}.)", failed.mistake)
    return CheckResult(True, praise)


def _copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([dict(x) if isinstance(x, dict) else x for x in a] if isinstance(a, list) else a for a in args)


# ---- 1. what a turn evaluates ----


def evaluated(answer: object, chat: Chat, text: str) -> CheckResult:
    """Checks how many tokens `chat.say(text)` would evaluate before its reply."""
    found = number(answer)
    if isinstance(found, CheckResult):
        return found
    try:
        model, held = chat.session.model, list(chat.session.tokens)
        question = [{"role": "user", "content": text}]
        wanted, alone = chat.encode([*chat.history, *question]), chat.encode(question)
        right = len(wanted) - min(_shared(held, wanted), len(wanted) - 1)
        words = len(model.encode(text))
    except Exception as e:
        return CheckResult(False, f"The question itself is at fault: {type_name(e)}: {short(str(e))}.", "question")
    slips = [
        Slip("everything", len(wanted), "This is the whole conversation, and the session holds most of it already."),
        Slip("only_text", words, "These are the tokens of your words alone. What does the template put around them?"),
        Slip("held", len(held), "This is what the session holds now; the question is what comes on top of it."),
        Slip("first_turn", len(alone), "This would be right for the first turn of a new conversation, with all that "
             "the template begins it with."),
        Slip("characters", len(text), "These are characters; a session is counted in tokens."),
        Slip("words", len(text.split()), "These are words; a session is counted in tokens."),
        Slip("after_it", len(wanted) + len(held), "Held tokens are part of the conversation: take away, do not add."),
    ]  # fmt: skip
    praise = "The end of the last reply, your words, and the beginning of the next reply: nothing else is new."
    return recognise(found, right, slips, praise, "How long is the conversation with your words in it, and how much "
                     "of that does the session hold?")  # fmt: skip


def _shared(held: Sequence[int], wanted: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, wanted)))


# ---- 2. ChatML by hand ----

_USER, _REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
_SYSTEM, _MORE = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "  two\nlines "}
CHATML_SCENES: dict[str, tuple[Messages, bool]] = {
    "one question, and a reply is wanted": ([_USER], True),
    "a system message first": ([_SYSTEM, _USER], True),
    "three messages, and a reply is wanted": ([_USER, _REPLY, _MORE], True),
    "a finished conversation": ([_USER, _REPLY], False),
    "no messages": ([], False),
}


def _chatml(
    messages: Messages,
    add_generation_prompt: bool,
    *,
    end: str = "<|im_end|>\n",
    prompt: str = "<|im_start|>assistant\n",
    line: str = "\n",
    clean: Callable[[str], str] = str,
    role: Callable[[str], str] = str,
) -> str:
    turns = [f"<|im_start|>{role(m['role'])}{line}{clean(m['content'])}{end}" for m in messages]
    return "".join(turns) + (prompt if add_generation_prompt else "")


_CHATML_WRONG: dict[str, tuple[Callable[[Messages, bool], str], str]] = {
    "no_generation_prompt": (
        lambda m, g: _chatml(m, False),
        "The messages are right. But where a reply is wanted, the model must be told whose turn it is.",
    ),
    "always_generation_prompt": (
        lambda m, g: _chatml(m, True),
        "You begin a reply in every case. A finished conversation, for training or for keeping, has none open.",
    ),
    "closed_generation_prompt": (
        lambda m, g: _chatml(m, g, prompt="<|im_start|>assistant\n<|im_end|>\n"),
        "You open the reply and end it at once: an empty one. The model is to write it, and to end it.",
    ),
    "no_newline_after_end": (
        lambda m, g: _chatml(m, g, end="<|im_end|>"),
        "After the end mark ChatML has a line break, and the model was trained with it.",
    ),
    "no_newline_after_role": (
        lambda m, g: _chatml(m, g, line=" ", prompt="<|im_start|>assistant "),
        "Between the role and the text is a line break, not a space.",
    ),
    "no_end": (
        lambda m, g: _chatml(m, g, end="\n"),
        "Your turns begin, but nothing ends them: the model would read one long turn.",
    ),
    "stripped": (
        lambda m, g: _chatml(m, g, clean=str.strip),
        "You take the spaces from a message's ends. Some families do; ChatML keeps every character.",
    ),
    "one_role": (
        lambda m, g: _chatml(m, g, role=lambda r: "user"),
        "Every message is written as the user's. Each dict says whose it is.",
    ),
    "last_only": (
        lambda m, g: _chatml(m[-1:], g),
        "Only the last message is there. A model remembers nothing: what it should know must be in the text.",
    ),
}


def chatml(function: object) -> CheckResult:
    """Checks `function(messages, add_generation_prompt) -> text`: a conversation as ChatML."""
    praise = "Character for character what the template writes. There is nothing more to a chat than this text."
    return _judge(function, CHATML_SCENES, _chatml, _CHATML_WRONG, _as_text, praise)


def _as_text(value: Any) -> str | CheckResult:
    if value is None:
        return CheckResult(False, "Your function returns nothing (None); it should return the text.", "unanswered")
    if not isinstance(value, str):
        return CheckResult(False, f"Your function returns a {type_name(value)}; one text is wanted.", "type")
    return str.__str__(value)


# ---- 3. which tokens can stay ----

REUSE_SCENES: dict[str, tuple[list[int], list[int]]] = {
    "a new turn at the end": ([1, 2, 3], [1, 2, 3, 4, 5]),
    "an edited message in the middle": ([1, 2, 3, 4, 5], [1, 2, 9, 4, 5]),
    "an empty session": ([], [7, 8]),
    "nothing in common": ([1, 2, 3], [4, 5]),
    "the session went further": ([1, 2, 3, 4, 5], [1, 2, 3, 6]),
    "exactly what is held": ([1, 2, 3], [1, 2, 3]),
    "a beginning of what is held": ([1, 2, 3, 4], [1, 2]),
    "the same tokens in another order": ([3, 1, 2], [1, 2, 3]),
}
Split = tuple[int, list[int]]


def _reuse(held: list[int], wanted: list[int]) -> Split:
    keep = min(_shared(held, wanted), len(wanted) - 1)
    return keep, wanted[keep:]


def _greedy_reuse(held: list[int], wanted: list[int]) -> Split:
    keep = _shared(held, wanted)
    return keep, wanted[keep:]


def _same_anywhere(held: list[int], wanted: list[int]) -> Split:
    keep = sum(a == b for a, b in zip(held, wanted))
    return keep, wanted[keep:]


_REUSE_WRONG: dict[str, tuple[Callable[[list[int], list[int]], Split], str]] = {
    "nothing_left": (
        _greedy_reuse,
        "Where everything is held already, nothing is left to evaluate; but then there are no scores to choose the "
        "next token by. Leave at least one.",
    ),
    "everything": (
        lambda held, wanted: (0, wanted),
        "This keeps nothing and evaluates everything: right, and slow. The point is what need not be done again.",
    ),
    "assumes_prefix": (
        lambda held, wanted: (len(held), wanted[len(held) :]),
        "This trusts that all that is held is the beginning of what is wanted. After an edit it is not: compare.",
    ),
    "after_a_difference": (
        _same_anywhere,
        "You count equal tokens also after the first difference. But each key and value depends on all tokens before "
        "it: after a difference nothing holds.",
    ),
    "membership": (
        lambda held, wanted: (len([t for t in wanted if t in held]), [t for t in wanted if t not in held]),
        "You ask whether a token is held anywhere. Its place counts, and what stands before it.",
    ),
    "all_or_nothing": (
        lambda held, wanted: _greedy_reuse(held, wanted) if wanted[: len(held)] == held else (0, wanted),
        "You keep all or nothing. If only the end differs, the beginning may stay.",
    ),
}


def reusing(function: object) -> CheckResult:
    """Checks `function(held, wanted) -> (keep, rest)`: how many held tokens stay, and which are left to evaluate."""
    praise = f"{len(REUSE_SCENES)} practice runs. rewind(keep), then eval(rest): that is what Chat does at every turn."
    return _judge(function, REUSE_SCENES, _reuse, _REUSE_WRONG, _as_split, praise)


def _as_split(value: Any) -> Split | CheckResult:
    if value is None:
        return CheckResult(False, "Your function returns nothing (None); return keep and rest.", "unanswered")
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return CheckResult(False, f"Your function returns a {type_name(value)}; two things are wanted.", "type")
    try:
        return operator.index(value[0]), [operator.index(i) for i in value[1]]
    except TypeError:
        return CheckResult(False, "Return a number, and a list of token ids.", "type")


# ---- 4. trimming ----


def _turn(i: int) -> Messages:
    return [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]


def _length(messages: Sequence[Mapping[str, str]]) -> int:
    """Every message counts 10 in these practice runs."""
    return 10 * len(messages)


TRIM_SCENES: dict[str, tuple[Messages, Callable[..., int], int]] = {
    "three turns, room for two": ([*_turn(1), *_turn(2), *_turn(3)], _length, 40),
    "it fits already": ([*_turn(1), *_turn(2)], _length, 40),
    "a system message to keep": ([_SYSTEM, *_turn(1), *_turn(2), *_turn(3)], _length, 50),
    "four turns, room for one": ([_SYSTEM, *_turn(1), *_turn(2), *_turn(3), *_turn(4)], _length, 35),
    "room for one and a half": ([*_turn(1), *_turn(2)], _length, 30),
    "a question that waits for its answer": ([*_turn(1), *_turn(2), _USER], _length, 30),
}


def _trim(
    messages: Messages, length: Callable[[Messages], int], budget: int, *, first: int | None = None, turns: int = 10**6
) -> Messages:
    kept = list(messages)
    start = int(kept[:1] == [_SYSTEM]) if first is None else first
    while length(kept) > budget and len(kept) > start and turns > 0:
        del kept[start : start + 2]
        turns -= 1
    return kept


def _by_message(messages: Messages, length: Callable[[Messages], int], budget: int) -> Messages:
    kept = list(messages)
    start = int(kept[:1] == [_SYSTEM])
    while length(kept) > budget and len(kept) > start:
        del kept[start]
    return kept


def _from_the_end(messages: Messages, length: Callable[[Messages], int], budget: int) -> Messages:
    kept = list(messages)
    while length(kept) > budget and kept:
        del kept[-2:]
    return kept


def _by_message_blindly(messages: Messages, length: Callable[[Messages], int], budget: int) -> Messages:
    kept = list(messages)
    while length(kept) > budget and kept:
        del kept[0]
    return kept


_TRIM_WRONG: dict[str, tuple[Callable[..., Messages], str]] = {
    "unchanged": (lambda m, n, b: list(m), "Your function returns all messages, however many tokens there are."),
    "system_dropped": (
        lambda m, n, b: _trim(m, n, b, first=0),
        "The system message went with the oldest turn. It holds for the whole conversation: it should stay.",
    ),
    "system_dropped_and_half_a_turn": (
        _by_message_blindly,
        "You drop whatever comes first: also the system message, and half a turn. Which message begins a turn?",
    ),
    "half_a_turn": (
        _by_message,
        "You drop single messages, so that the conversation begins with an answer to nothing, which many templates "
        "refuse. Drop a question together with its answer.",
    ),
    "newest_dropped": (_from_the_end, "You drop the newest turns. It is the oldest that matter least."),
    "once": (lambda m, n, b: _trim(m, n, b, turns=1), "You drop one turn, and do not look whether that was enough."),
    "too_much": (
        lambda m, n, b: _trim(m, lambda kept: n(kept) + 1, b),
        "You drop a turn too many: a conversation that has exactly the budget fits.",
    ),
    "everything": (
        lambda m, n, b: list(m) if n(m) <= b else [x for x in m if x == _SYSTEM],
        "Where it does not fit, you drop all turns. Drop only as many as it takes.",
    ),
}


def trimming(function: object) -> CheckResult:
    """Checks `function(messages, length, budget) -> messages`: the oldest turns dropped until `length` fits."""
    praise = "The oldest turns go, whole, and only as many as it takes; what holds for all of them stays."
    return _judge(function, TRIM_SCENES, _trim, _TRIM_WRONG, _as_messages, praise)


def _as_messages(value: Any) -> Messages | CheckResult:
    if value is None:
        return CheckResult(False, "Your function returns nothing (None); return the messages.", "unanswered")
    if not isinstance(value, (list, tuple)) or not all(isinstance(m, dict) for m in value):
        return CheckResult(False, f"Your function returns a {type_name(value)}; a list of dicts is wanted.", "type")
    return [{str(k): str(v) for k, v in m.items()} for m in value]
