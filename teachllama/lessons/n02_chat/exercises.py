"""The exercises of lesson 02, chat and templates: what a turn evaluates, ChatML by hand, which tokens can stay, and
trimming a conversation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from inspect import cleandoc
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama.lessons.common.check import CheckResult, a_type
from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson
from teachllama.lessons.common.judge import near, one_number

if TYPE_CHECKING:
    from teachllama.chat import Chat

Messages = list[dict[str, str]]


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b)


# ---- 1. what a turn evaluates ----


def _shared(held: Sequence[int], wanted: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, wanted)))


def _whole(chat: Chat, text: str) -> list[int]:
    return list(chat.encode([*chat.history, {"role": "user", "content": text}]))


def _new(chat: Chat, text: str) -> int:
    wanted = _whole(chat, text)
    return len(wanted) - min(_shared(list(chat.session.tokens), wanted), len(wanted) - 1)


def conversation(model: Any, *questions: str) -> Chat:
    """A conversation in a new session, with a short reply to each question."""
    from teachllama.chat import Chat

    template = None if model.chat_template else "gemma" if model.config.arch == "gemma3" else "chatml"
    chat = Chat(model.create_session(), template=template)
    for question in questions:
        chat.ask(question, max_new_tokens=16)
    return chat


def _talk(model: Any) -> list[Case]:
    return [Case("", (conversation(model, "What is the capital of France?"), "Why is it famous?"))]


def _other_talks(rng: np.random.Generator, model: Any) -> list[Case]:
    name = str(rng.choice(["Ada", "Emmy", "Sofia", "Hypatia", "Lise"]))
    talk = conversation(model, f"My name is {name}.")
    return [
        Case("a conversation", (talk, f"Is {name} an old name, please?")),
        Case("a conversation", (talk, "Thanks!")),
        Case("a new conversation", (conversation(model), f"Tell me a story of {name}.")),
    ]


EVALUATED = Exercise(
    check="evaluated",
    names=("new_tokens",),
    signature="new_tokens(talk, text)",
    given=cleandoc("""
        talk = tl.Chat(model.create_session(), template=TEMPLATE)
        print(talk.ask("What is the capital of France?", max_new_tokens=16))
    """),
    points=(2, 1),
    shows="say what a turn costs",
    usual="`everything`: the conversation read again; `only_text`: the template's own tokens left out; `held`; "
    "`first_turn`; `end_mark`; `characters`, `words`; `after_it`",
    mistake=(
        "everything",
        cleandoc("""
        def new_tokens(talk, text):
            return len(talk.encode([*talk.history, {"role": "user", "content": text}]))
    """),
    ),
    right=_new,
    cases=_talk,
    hidden_cases=_other_talks,
    faults=(
        Fault(
            "everything",
            lambda chat, text: len(_whole(chat, text)),
            "This is the whole conversation, and the session holds most of it already.",
        ),
        Fault(
            "only_text",
            lambda chat, text: len(chat.session.model.encode(text)),
            "These are the tokens of your words alone. What does the template put around them?",
        ),
        Fault(
            "held",
            lambda chat, text: len(chat.session.tokens),
            "This is what the session holds now; the question is what comes on top of it.",
        ),
        Fault(
            "first_turn",
            lambda chat, text: len(chat.encode([{"role": "user", "content": text}])),
            "This would be right for the first turn of a new conversation, with all that the template begins it with.",
        ),
        Fault(
            "end_mark",
            lambda chat, text: _new(chat, text) - 1,
            "Nearly: something is missing at the seam. The "
            "last reply was written by the model, and what the template puts after it was not evaluated yet.",
        ),
        Fault(
            "end_mark",
            lambda chat, text: _new(chat, text) - 2,
            "Nearly: something is missing at the seam. The "
            "last reply was written by the model, and what the template puts after it was not evaluated yet.",
        ),
        Fault(
            "one_more",
            lambda chat, text: _new(chat, text) + 1,
            "This is one token too many. Which does the session hold already?",
        ),
        Fault("characters", lambda chat, text: len(text), "These are characters; a session is counted in tokens."),
        Fault("words", lambda chat, text: len(text.split()), "These are words; a session is counted in tokens."),
        Fault(
            "after_it",
            lambda chat, text: len(_whole(chat, text)) + len(chat.session.tokens),
            "Held tokens are part of the conversation: take away, do not add.",
        ),
    ),
    praise="The end of the last reply, your words, and the beginning of the next reply: nothing else is new.",
    otherwise="It is none of the usual mistakes. Which tokens does the session hold already?",
    more="How long is the conversation with your words in it, in tokens, and how many of them does the session hold?",
    read=one_number,
    same=near(0),
    seconds=5.0,
)

# ---- 2. ChatML by hand ----

_USER, _REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
_SYSTEM, _MORE = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "  two\nlines "}
CHATML_SCENES: dict[str, tuple[Messages, bool]] = {
    "one question, and a reply is wanted": ([_USER], True),
    "a system message first": ([_SYSTEM, _USER], True),
    "three messages, and a reply is wanted": ([_USER, _REPLY, _MORE], True),
    "a finished conversation": ([_USER, _REPLY], False),
    "no messages": ([], False),
    "no messages, and a reply is wanted": ([], True),
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


def _as_text(value: Any) -> str | CheckResult:
    if value is None or value is ...:
        return CheckResult(False, "Your function returns nothing (None); it should return the text.", "unanswered")
    if not isinstance(value, str):
        return CheckResult(False, f"Your function returns {a_type(value)}; one text is wanted.", "type")
    return str.__str__(value)


_DEFAULT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def _with_default(messages: Messages, add_generation_prompt: bool) -> str:
    text = _chatml(messages, add_generation_prompt)
    return text if messages and messages[0]["role"] == "system" else _DEFAULT + text


def _other_conversations(rng: np.random.Generator, model: Any) -> list[Case]:
    word = str(rng.choice(["A", "Bee", "Sea", "D e", "{x}"]))
    roles = ("system", "user", "assistant", "user")
    talks: list[Messages] = [
        [],
        [{"role": "user", "content": f" {word}\n\nB "}],
        [{"role": role, "content": f"{role} speaks of {word}"} for role in roles],
    ]
    return [Case("a conversation", (talk, reply)) for talk in talks for reply in (True, False)]


CHATML = Exercise(
    check="chatml",
    names=("chatml",),
    note="Mend it where it stands.",
    points=(2, 1),
    shows="write a template to the character",
    usual="`no_generation_prompt`, `always_generation_prompt`, `closed_generation_prompt`; `no_newline_after_end`, "
    "`no_newline_after_role`; `no_end`; `stripped`; `one_role`; `last_only`; `default_system`: a "
    "default of one model's template",
    mistake=(
        "no_newline_after_end",
        cleandoc("""
        def chatml(messages, add_generation_prompt):
            text = "".join(f"<|im_start|>{m['role']}\\n{m['content']}<|im_end|>" for m in messages)
            return text + ("<|im_start|>assistant\\n" if add_generation_prompt else "")
    """),
    ),
    right=_chatml,
    cases=tuple(Case(about, arguments) for about, arguments in CHATML_SCENES.items()),
    hidden_cases=_other_conversations,
    faults=(
        Fault(
            "no_generation_prompt",
            lambda m, g: _chatml(m, False),
            "The messages are right. But where a reply is wanted, the model must be told whose turn it is.",
        ),
        Fault(
            "always_generation_prompt",
            lambda m, g: _chatml(m, True),
            "You begin a reply in every case. A finished conversation, for training or for keeping, has none open.",
        ),
        Fault(
            "closed_generation_prompt",
            lambda m, g: _chatml(m, g, prompt="<|im_start|>assistant\n<|im_end|>\n"),
            "You open the reply and end it at once: an empty one. The model is to write it, and to end it.",
        ),
        Fault(
            "no_newline_after_end",
            lambda m, g: _chatml(m, g, end="<|im_end|>"),
            "After the end mark ChatML has a line break, and the model was trained with it.",
        ),
        Fault(
            "no_newline_after_role",
            lambda m, g: _chatml(m, g, line=" ", prompt="<|im_start|>assistant "),
            "Between the role and the text is a line break, not a space.",
        ),
        Fault(
            "no_end",
            lambda m, g: _chatml(m, g, end="\n"),
            "Your turns begin, but nothing ends them: the model would read one long turn.",
        ),
        Fault(
            "stripped",
            lambda m, g: _chatml(m, g, clean=str.strip),
            "You take the spaces from a message's ends. Some families do; ChatML keeps every character.",
        ),
        Fault(
            "one_role",
            lambda m, g: _chatml(m, g, role=lambda r: "user"),
            "Every message is written as the user's. Each dict says whose it is.",
        ),
        Fault(
            "last_only",
            lambda m, g: _chatml(m[-1:], g),
            "Only the last message is there. A model remembers nothing: what it should know must be in the text.",
        ),
        Fault(
            "default_system",
            _with_default,
            "A system message of the template's own comes first, as SmolLM2's "
            "template has it. That default is this model's, and not part of ChatML: here only the messages given are "
            "wanted.",
        ),
    ),
    praise="ChatML, character for character. SmolLM2's own template puts a default system message before it; there is "
    "nothing more to a chat than this text.",
    read=_as_text,
    same=_equal,
    pure=False,
)

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


def _as_split(value: Any) -> Split | CheckResult:
    if value is None or value is ...:
        return CheckResult(False, "Your function returns nothing (None); return keep and rest.", "unanswered")
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return CheckResult(False, f"Your function returns {a_type(value)}; two things are wanted.", "type")
    try:
        return operator.index(value[0]), [operator.index(i) for i in value[1]]
    except TypeError:
        return CheckResult(False, "Return a number, and a list of token ids.", "type")


def _off_by(n: int) -> Callable[[list[int], list[int]], Split]:
    def function(held: list[int], wanted: list[int]) -> Split:
        keep = min(max(_reuse(held, wanted)[0] + n, 0), len(wanted))
        return keep, wanted[keep:]

    return function


def _token_lists(rng: np.random.Generator, model: Any) -> list[Case]:
    pairs: list[tuple[list[int], list[int]]] = [
        ([5, 6, 7], [5, 6, 7]),
        ([5, 6, 7, 8], [5, 6, 9, 8]),
        ([], [1]),
        ([4, 4], [4, 4, 4]),
        ([1, 2, 3, 4, 5, 6], [1, 2]),
        ([9, 1], [8, 1, 2]),
    ]
    ids = [int(i) for i in rng.permutation(50)]
    return [Case("tokens", ([ids[i] for i in held], [ids[i] for i in wanted])) for held, wanted in pairs]


REUSING = Exercise(
    check="reusing",
    names=("reuse",),
    note="Mend it where it stands.",
    points=(3, 1),
    shows="know what of a cache still holds",
    usual="`nothing_left`: no scores; `assumes_prefix`; `after_a_difference`; `membership`; `all_or_nothing`; "
    "`everything`; `one_too_few`, `one_too_many`",
    mistake=(
        "nothing_left",
        cleandoc("""
        def reuse(held, wanted):
            keep = 0
            while keep < min(len(held), len(wanted)) and held[keep] == wanted[keep]:
                keep += 1
            return keep, wanted[keep:]
    """),
    ),
    right=_reuse,
    cases=tuple(Case(about, arguments) for about, arguments in REUSE_SCENES.items()),
    hidden_cases=_token_lists,
    faults=(
        Fault(
            "nothing_left",
            _greedy_reuse,
            "Where everything is held already, nothing is left to evaluate; but then there are no scores to "
            "choose the next token by. Leave at least one.",
        ),
        Fault(
            "everything",
            lambda held, wanted: (0, wanted),
            "This keeps nothing and evaluates everything: right, and slow. The point is what need not be done again.",
        ),
        Fault(
            "assumes_prefix",
            lambda held, wanted: (len(held), wanted[len(held) :]),
            "This trusts that all that is held is the beginning of what is wanted. After an edit it is not: compare.",
        ),
        Fault(
            "after_a_difference",
            _same_anywhere,
            "You count equal tokens also after the first difference. But each key and value depends on all "
            "tokens before it: after a difference nothing holds.",
        ),
        Fault(
            "membership",
            lambda held, wanted: (len([t for t in wanted if t in held]), [t for t in wanted if t not in held]),
            "You ask whether a token is held anywhere. Its place counts, and what stands before it.",
        ),
        Fault(
            "all_or_nothing",
            lambda held, wanted: _greedy_reuse(held, wanted) if wanted[: len(held)] == held else (0, wanted),
            "You keep all or nothing. If only the end differs, the beginning may stay.",
        ),
        Fault(
            "one_too_few", _off_by(-1), "You keep one token fewer than may stay. Where does the first difference stand?"
        ),
        Fault("one_too_many", _off_by(1), "You keep one token more than may stay: the one that differs."),
    ),
    praise=f"{len(REUSE_SCENES)} practice runs. rewind(keep), then eval(rest): that is what Chat does at every turn.",
    read=_as_split,
    same=_equal,
    pure=False,
)

# ---- 4. trimming ----


def _turn(i: int) -> Messages:
    return [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]


def _length(messages: Sequence[Mapping[str, str]]) -> int:
    """Every message counts 10 in these practice runs."""
    return 10 * len(messages)


def _heavy_system(messages: Sequence[Mapping[str, str]]) -> int:
    """A system message counts 30, any other 10."""
    return sum(30 if m["role"] == "system" else 10 for m in messages)


def _characters(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(len(m["content"]) for m in messages)


TRIM_SCENES: dict[str, tuple[Messages, Callable[..., int], int]] = {
    "three turns, room for two": ([*_turn(1), *_turn(2), *_turn(3)], _length, 40),
    "it fits already": ([*_turn(1), *_turn(2)], _length, 40),
    "a system message to keep": ([_SYSTEM, *_turn(1), *_turn(2), *_turn(3)], _length, 50),
    "four turns, room for one": ([_SYSTEM, *_turn(1), *_turn(2), *_turn(3), *_turn(4)], _length, 35),
    "room for one and a half": ([*_turn(1), *_turn(2)], _length, 30),
    "a system message that takes most of the room": ([_SYSTEM, *_turn(1), *_turn(2)], _heavy_system, 45),
    "a system message that is too long by itself": ([_SYSTEM, *_turn(1), *_turn(2)], _heavy_system, 20),
    "no room at all": ([*_turn(1), *_turn(2)], _length, 0),
    "turns of different lengths": ([*_turn(1), *_turn(2), *_turn(30)], _characters, 45),
    "nothing said yet": ([], _length, 10),
    "a question that waits for its answer": ([*_turn(1), *_turn(2), _USER], _length, 30),
}


def _role(messages: Messages) -> str:
    return messages[0]["role"] if messages else ""


def _trim(
    messages: Messages, length: Callable[[Messages], int], budget: int, *, first: int | None = None, turns: int = 10**6
) -> Messages:
    kept = list(messages)
    start = int(_role(kept) == "system") if first is None else first
    while length(kept) > budget and len(kept) > start and turns > 0:
        del kept[start : start + 2]
        turns -= 1
    return kept


def _by_message(messages: Messages, length: Callable[[Messages], int], budget: int) -> Messages:
    kept = list(messages)
    start = int(_role(kept) == "system")
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


def _as_messages(value: Any) -> Messages | CheckResult:
    if value is None or value is ...:
        return CheckResult(False, "Your function returns nothing (None); return the messages.", "unanswered")
    try:
        value = [*value]
    except TypeError:
        value = [value]
    if not all(isinstance(m, dict) for m in value):
        return CheckResult(False, f"Your function returns {a_type(value)}; a list of dicts is wanted.", "type")
    return [{str(k): str(v) for k, v in m.items()} for m in value]


def _without_the_system(messages: Messages, length: Callable[[Messages], int], budget: int) -> Messages:
    """Measures the length of the turns without the system message."""
    start = int(_role(messages) == "system")
    turns = list(messages[start:])
    while turns and length(turns) > budget:
        del turns[:2]
    return [*messages[:start], *turns]


def _conversations(rng: np.random.Generator, model: Any) -> list[Case]:
    long = int(rng.integers(1, 4))
    turns = [
        {"role": role, "content": f"{role} {i} " + "x" * (i * long)} for i in range(5) for role in ("user", "assistant")
    ]
    system = [{"role": "system", "content": "Short answers."}]
    return [
        Case("a conversation", (start + turns, _characters, budget))
        for start in ([], system)
        for budget in (3, 31, 500, *(_characters(start + turns[n:]) + extra for n in (4, 6) for extra in (-5, 0, 5)))
    ]


TRIMMING = Exercise(
    check="trimming",
    names=("trim",),
    note="Mend it where it stands.",
    points=(3, 1),
    shows="trim a conversation",
    usual="`half_a_turn`; `system_dropped`; `system_not_counted`; `newest_dropped`; `once`; `too_much`; `unchanged`",
    mistake=(
        "half_a_turn",
        cleandoc("""
        def trim(messages, length, budget):
            system = [m for m in messages[:1] if m["role"] == "system"]
            turns = messages[len(system) :]
            while turns and length(system + turns) > budget:
                turns = turns[1:]
            return system + turns
    """),
    ),
    right=_trim,
    cases=tuple(Case(about, arguments) for about, arguments in TRIM_SCENES.items()),
    hidden_cases=_conversations,
    faults=(
        Fault(
            "unchanged", lambda m, n, b: list(m), "Your function returns all messages, however many tokens there are."
        ),
        Fault(
            "system_dropped",
            lambda m, n, b: _trim(m, n, b, first=0),
            "The system message went with the oldest turn. It holds for the whole conversation: it should stay.",
        ),
        Fault(
            "system_dropped_and_half_a_turn",
            _by_message_blindly,
            "You drop whatever comes first: also the system message, and half a turn. Which message begins a turn?",
        ),
        Fault(
            "half_a_turn",
            _by_message,
            "You drop single messages, so that the conversation begins with an answer to nothing, which "
            "many templates refuse. Drop a question together with its answer.",
        ),
        Fault("newest_dropped", _from_the_end, "You drop the newest turns. It is the oldest that matter least."),
        Fault(
            "once",
            lambda m, n, b: _trim(m, n, b, turns=1),
            "You drop one turn, and do not look whether that was enough.",
        ),
        Fault(
            "too_much",
            lambda m, n, b: _trim(m, lambda kept: n(kept) + 1, b),
            "You drop a turn too many: a conversation that has exactly the budget fits.",
        ),
        Fault(
            "everything",
            lambda m, n, b: list(m) if n(m) <= b else [x for x in m if x["role"] == "system"],
            "Where it does not fit, you drop all turns. Drop only as many as it takes.",
        ),
        Fault(
            "system_not_counted",
            _without_the_system,
            "You ask for the length of the turns alone. The system "
            "message stays, and takes room: it has to be counted.",
        ),
    ),
    praise="The oldest turns go, whole, and only as many as it takes; what holds for all of them stays.",
    read=_as_messages,
    same=_equal,
    pure=False,
)

LESSON = Lesson(
    "02_chat_and_templates",
    cleandoc("""
        import os

        import teachllama as tl
        from teachllama.check import notebook02 as check
        from teachllama.check.core import assert_right

        model = tl.load_model(os.environ.get("TEACHLLAMA_MODEL", "smollm2-135m"))
        model.config.seq_len = min(model.config.seq_len, 512)
        TEMPLATE = None if model.chat_template else "gemma" if model.config.arch == "gemma3" else "chatml"
    """),
    (EVALUATED, CHATML, REUSING, TRIMMING),
)
