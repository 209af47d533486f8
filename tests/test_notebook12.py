"""Notebook 12: its checks on right answers and usual mistakes; its stored figures; other arithmetic; its pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from teachllama.check import notebook12 as check
from teachllama.check.core import CheckResult
from teachllama.lessons.common.judge import judge_hidden
from teachllama.lessons.n12_same_prompt import arithmetic, figures
from teachllama.lessons.n12_same_prompt.exercises import LESSON
from teachllama.ops import NumpyOps, gelu
from teachllama.show import notebook12 as pictures
from teachllama.show.notebook12 import Change

STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"
GOLDEN = Path(__file__).parent / "golden"


def folded(numbers: Any, lanes: int) -> Any:
    sums = [np.float32(0)] * lanes
    for i, x in enumerate(numbers):
        sums[i % lanes] += x
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums, sums[len(sums) // 2 :], strict=False)]
    return sums[0]


def kept_bits(a: Any, b: Any) -> bool:
    if (a["kv"], a["backend"]) != (b["kv"], b["backend"]):
        return False
    ends = [(way["n"] - way["cuts"][-1] if way["cuts"] else way["n"], way["cuts"]) for way in (a, b)]
    return a["cuts"] == b["cuts"] or all(rest >= 32 and not any(c % 32 for c in cuts) for rest, cuts in ends)


def judged(promise: Any, seen: Any) -> str:
    answer = "kept"
    for change in promise["changes"]:
        rows = [r for r in seen if r["change"] == change]
        for r in rows:
            bound = {"bits": 0, "close": promise["within"], "tokens": math.nextafter(r["gap"] / 2, 0)}[promise["says"]]
            if r["difference"] > bound:
                return "broken"
        answer = answer if rows else "open"
    return answer


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.lane_sum, folded, None),
    (check.lane_sum, lambda x, n: np.array([folded(x, n)]), None),
    (check.lane_sum, lambda x, n: sum(x, np.float32(0)), "in_order"),
    (check.lane_sum, lambda x, n: folded(x.astype(float), n), "double"),
    (check.lane_sum, lambda x, n: np.float32(folded(x.astype(float), n)), "double"),
    (check.lane_sum, lambda x, n: np.sum(x), "numpy"),
    (check.lane_sum, lambda x, n: folded(x[::-1], n), "backwards"),
    (check.lane_sum, lambda x, n: folded(x.reshape(n, -1).T.ravel(), n), "chunks"),
    (check.lane_sum, lambda x, n: sum((sum(x[i::n], np.float32(0)) for i in range(n)), np.float32(0)), "left_to_right"),
    (check.may_part, lambda g, e: next((i for i, x in enumerate(g) if x <= 2 * e), len(g)), None),
    (check.may_part, lambda g, e: int(np.argmax(np.append(g, 0) <= 2 * e)), None),
    (check.may_part, lambda g, e: int(np.argmax(np.append(g, 0) <= e)), "once"),
    (check.may_part, lambda g, e: int(np.argmin(g)), "smallest"),
    (check.may_part, lambda g, e: int((g <= 2 * e).sum()), "count"),
    (check.may_part, lambda g, e: int(np.argmax(np.append(g, 0) <= 2 * e)) + 1, "one_based"),
    (check.may_part, lambda g, e: next((i for i, x in enumerate(g) if x <= 2 * e), -1), "minus_one"),
    (check.same_bits, kept_bits, None),
    (check.same_bits, lambda a, b: np.bool_(kept_bits(a, b)), None),
    (check.same_bits, lambda a, b: True, "always"),
    (check.same_bits, lambda a, b: False, "never"),
    (check.same_bits, lambda a, b: a["threads"] == b["threads"] and kept_bits(a, b), "threads"),
    (check.same_bits, lambda a, b: kept_bits({**a, "kv": 0}, {**b, "kv": 0}), "kv_ignored"),
    (check.same_bits, lambda a, b: kept_bits({**a, "cuts": ()}, {**b, "cuts": ()}), "cuts_ignored"),
    (check.same_bits, lambda a, b: kept_bits({**a, "n": 999}, {**b, "n": 999}), "rest_ignored"),
    (check.same_bits, lambda a, b: a == b, "never"),
    (check.promise, judged, None),
    (check.promise, lambda p, seen: judged(p, seen).upper() + " ", None),
    (check.promise, lambda p, seen: "kept", "always_kept"),
    (check.promise, lambda p, seen: "kept" if judged(p, seen) == "open" else judged(p, seen), "unseen_kept"),
    (check.promise, lambda p, seen: judged(p, [{**r, "gap": 2 * r["gap"]} for r in seen]), "once"),
    (check.promise, lambda p, seen: judged(p, list({r["change"]: r for r in seen}.values())), "last_only"),
    (check.promise, lambda p, seen: "perhaps", "type"),
    (check.promise, lambda p, seen: True, "type"),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda c: f"{c[0].__name__}-{c[2]}")
def test_right_answers_pass_and_each_usual_mistake_is_named(case: Any) -> None:
    judge, answer, mistake = case
    result = judge(answer)
    assert result.ok == (mistake is None), result.message
    if mistake == "never" and answer is not None and judge is check.same_bits:
        return  # wrong in one of two ways: refusing everything, or all but equal ones
    assert mistake is None or mistake in (result.mistake or "").split(" or "), (result.mistake, result.message)


@pytest.mark.parametrize("exercise", LESSON.exercises, ids=lambda e: e.check)
def test_the_faults_of_an_exercise_are_all_refused_and_told_apart(exercise: Any) -> None:
    for fault in exercise.faults:
        result = getattr(check, exercise.check)(fault.function)
        assert not result.ok, fault.name
        assert fault.name in (result.mistake or "").split(" or "), (fault.name, result.mistake)
        assert " or " not in (result.mistake or ""), (fault.name, result.mistake)


@pytest.mark.parametrize("exercise", LESSON.exercises, ids=lambda e: e.check)
def test_the_mistake_of_the_marking_guide_is_named(exercise: Any) -> None:
    name, source = exercise.mistake
    namespace: dict[str, Any] = {"np": np}
    exec(source, namespace)
    result = getattr(check, exercise.check)(namespace[exercise.names[0]])
    assert not result.ok
    assert result.mistake == name
    assert not judge_hidden(namespace[exercise.names[0]], exercise, "ada").ok
    assert judge_hidden(exercise.right, exercise, "ada").ok


@pytest.mark.parametrize("judge", [check.lane_sum, check.may_part, check.same_bits, check.promise])
@pytest.mark.parametrize("nonsense", [None, 3, "x", lambda *a: None, lambda *a: [], lambda *a: 1 / 0])
def test_nonsense_is_answered_and_never_raises(judge: Callable[..., CheckResult], nonsense: Any) -> None:
    result = judge(nonsense)
    assert not result.ok
    assert result.message
