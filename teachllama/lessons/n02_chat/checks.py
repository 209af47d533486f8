"""The checks that notebook 02 calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachllama.lessons.common.check import CheckResult, a_type, hint, short
from teachllama.lessons.common.judge import judge, judge_answer
from teachllama.lessons.n02_chat.exercises import CHATML, EVALUATED, REUSING, TRIMMING

if TYPE_CHECKING:
    from teachllama.chat import Chat

__all__ = ["CheckResult", "chatml", "evaluated", "hint", "reusing", "trimming"]


def evaluated(answer: object, chat: Chat, text: str) -> CheckResult:
    """Checks how many tokens `chat.say(text)` would evaluate before its reply."""
    try:
        return judge_answer(answer, EVALUATED, chat, text)
    except Exception as e:
        return CheckResult(False, f"The question itself is at fault: {a_type(e)}: {short(str(e))}.", "question")


def chatml(function: object) -> CheckResult:
    """Checks `function(messages, add_generation_prompt) -> text`: a conversation as ChatML."""
    return judge(function, CHATML)


def reusing(function: object) -> CheckResult:
    """Checks `function(held, wanted) -> (keep, rest)`: how many held tokens stay, and which remain to evaluate."""
    return judge(function, REUSING)


def trimming(function: object) -> CheckResult:
    """Checks `function(messages, length, budget) -> messages`: the oldest turns dropped until `length` fits."""
    return judge(function, TRIMMING)
