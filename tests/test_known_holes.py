"""Wrong answers that a check once accepted or misnamed, and right answers that it once refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from teachllama.lessons import lessons
from teachllama.lessons.common.judge import judge

BY_NAME = {e.check: e for l in lessons() for e in l.exercises}


def test_a_trim_that_ignores_the_system_messages_length_is_refused_and_named() -> None:
    def trim(messages: Any, length: Any, budget: int) -> Any:
        system, turns = messages[: messages[0]["role"] == "system"], messages[messages[0]["role"] == "system" :]
        while turns and length(turns) > budget:
            turns = turns[2:]
        return system + turns

    assert judge(trim, BY_NAME["trimming"]).mistake == "system_not_counted"


def test_a_trim_that_never_ends_if_the_system_message_alone_is_too_long_is_stopped() -> None:
    def trim(messages: Any, length: Any, budget: int) -> Any:
        n = messages[0]["role"] == "system"
        while length(messages) > budget:
            messages = messages[:n] + messages[n + 2 :]
        return messages

    assert judge(trim, BY_NAME["trimming"]).mistake == "endless"


def test_one_sweep_over_the_merges_in_the_order_of_their_ranks_is_refused_and_named() -> None:
    def join(symbols: Any, ranks: Any) -> Any:
        symbols = list(symbols)
        for left, right in sorted(ranks, key=ranks.get):
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == (left, right):
                    symbols[i : i + 2] = [left + right]
                i += 1
        return symbols

    assert judge(join, BY_NAME["merging"]).mistake == "one_sweep"


def test_a_temperature_that_is_not_used_is_named_so() -> None:
    def softmax(logits: Any, temperature: float) -> Any:
        e = np.exp(logits - logits.max())
        return e / e.sum()

    # Dividing the probabilities and rescaling them to 1 gives the same result, so both mistakes are named.
    assert judge(softmax, BY_NAME["temperature"]).mistake == "probabilities or ignored"


def test_adding_a_default_system_message_is_refused_with_its_reason() -> None:
    fault = next(f for f in BY_NAME["chatml"].faults if f.name == "default_system")
    result = judge(fault.function, BY_NAME["chatml"])
    assert result.mistake == "default_system"
    assert "default" in result.message


@pytest.mark.parametrize("name", ["rmsnorm", "kl_divergence", "mean_pool", "top_p"])
def test_an_error_names_the_input_on_which_it_came(name: str) -> None:
    exercise = BY_NAME[name]
    result = judge(lambda *a: 1 / 0, exercise)
    assert exercise.visible()[0].about in result.message


def test_a_mask_for_top_p_is_told_that_ids_are_wanted() -> None:
    result = judge(lambda p, mass: p >= 0.2, BY_NAME["top_p"])
    assert not result.ok
    assert "a ndarray" not in result.message
