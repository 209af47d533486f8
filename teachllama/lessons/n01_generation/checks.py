"""The checks that notebook 01 calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachllama.lessons.common.check import CheckResult, a_type, hint, short
from teachllama.lessons.common.judge import judge, judge_answer
from teachllama.lessons.n01_generation.exercises import BITS, CHARACTERS, MERGING, SAFE_TURN, turn_marks

if TYPE_CHECKING:
    from teachllama.gguf_file import GGUFFile
    from teachllama.model import Model

__all__ = ["CheckResult", "bits_per_weight", "characters_per_token", "hint", "merging", "safe_turn", "turn_marks"]


def _question(error: Exception) -> CheckResult:
    return CheckResult(False, f"The question itself is at fault: {a_type(error)}: {short(str(error))}.", "question")


def characters_per_token(answer: object, model: Model, text: str) -> CheckResult:
    """Checks how many characters of `text` one token stands for, on average."""
    try:
        return judge_answer(answer, CHARACTERS, model, text)
    except Exception as e:
        return _question(e)


def bits_per_weight(answer: object, file: GGUFFile) -> CheckResult:
    """Checks how many bits of the file one weight takes, on average over all tensors."""
    try:
        return judge_answer(answer, BITS, file)
    except Exception as e:
        return _question(e)


def merging(function: object) -> CheckResult:
    """Checks `function(symbols, ranks) -> list of str`: byte-pair merging until no pair can be joined.

    `symbols` is a list of letters. `ranks` maps (left, right) to a rank; the lowest rank is joined first.
    """
    return judge(function, MERGING)


def safe_turn(function: object, model: Model) -> CheckResult:
    """Checks `function(model, before, text, after) -> token ids`: specials parsed in the marks, not in the text."""
    return judge(function, SAFE_TURN, model)
