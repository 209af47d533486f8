"""Notebook 06: its checks on right answers and usual mistakes; its pictures; a renamed file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from teachllama.check import notebook06 as check
from teachllama.check.core import CheckResult
from teachllama.show import notebook06 as pictures


def soft(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def routed(s: np.ndarray, k: int) -> list[float]:
    best = sorted(range(len(s)), key=lambda e: -s[e])[:k]
    shares = dict(zip(best, soft(s[best]), strict=True))
    return [shares.get(e, 0.0) for e in range(len(s))]


def waits(program: Any, forget: bool = True) -> int:
    count, dirty = 0, set()
    for split, reads, writes in program:
        if dirty & set(reads):
            count += 1
            if forget:
                dirty = set()
        if split:
            dirty.add(writes)
    return count


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.neox_order, lambda h: [*h[::2], *h[1::2]], None),
    (check.neox_order, lambda h: h, "unchanged"),
    (check.neox_order, lambda h: h.reshape(2, -1).T.ravel(), "backwards"),
    (check.neox_order, lambda h: [*h[1::2], *h[::2]], "odd_first"),
    (check.neox_order, lambda h: np.roll(h, len(h) // 2), "halves_swapped"),
    (check.neox_order, lambda h: h.reshape(-1, 2), "pairs"),
    (check.route, routed, None),
    (check.route, lambda s, k: [p if p in sorted(soft(s))[-k:] else 0 for p in soft(s)], "not_shared_out"),
    (check.route, lambda s, k: soft(s), "everybody"),
    (check.route, lambda s, k: [1 / k if x in sorted(s)[-k:] else 0 for x in s], "equal"),
    (check.route, lambda s, k: [float(i == np.argmax(s)) for i in range(len(s))], "best_alone"),
    (check.latent_bytes, lambda s, b: int(s[0]) * (int(s[1]) + int(s[2])) * b, None),
    (check.latent_bytes, lambda s, b: s[0] * (s[1] + s[2]) * s[3] * b, "per_head"),
    (check.latent_bytes, lambda s, b: s[0] * (2 * s[1] + s[2]) * b, "values_too"),
    (check.latent_bytes, lambda s, b: 2 * s[0] * (s[1] + s[2]) * b, "twice"),
    (check.latent_bytes, lambda s, b: s[0] * s[1] * b, "no_rotation"),
    (check.latent_bytes, lambda s, b: (s[1] + s[2]) * b, "one_layer"),
    (check.latent_bytes, lambda s, b: s[0] * (s[1] + s[2]), "numbers"),
    (check.barriers, waits, None),
    (check.barriers, lambda p: sum(s for s, _, _ in p), "before_every_split"),
    (check.barriers, lambda p: waits(p, forget=False), "never_forgotten"),
    (check.barriers, lambda p: waits([(True, r, w) for _, r, w in p]), "own_work_too"),
    (check.barriers, len, "everywhere"),
    (check.barriers, lambda p: len(p) - 1, "between_all"),
    (check.share_read, lambda s: (s[1] * s[2] + s[3]) / (s[0] * s[2] + s[3]), None),
    (check.share_read, lambda s: s[1] / s[0], "experts_alone"),
    (check.share_read, lambda s: (s[0] * s[2] + s[3]) / (s[1] * s[2] + s[3]), "upside_down"),
    (check.share_read, lambda s: (s[2] + s[3]) / (s[0] * s[2] + s[3]), "one_expert"),
    (check.share_read, lambda s: s[1] * s[2] + s[3], "read"),
    (check.share_read, lambda s: (s[1] * s[2] + s[3]) / (s[0] * s[2]), "outside_not_held"),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda c: f"{c[0].__name__}-{c[2]}")
def test_right_answers_pass_and_each_usual_mistake_is_named(case: Any) -> None:
    judge, answer, mistake = case
    result = judge(answer)
    assert result.ok == (mistake is None), result.message
    assert result.mistake == mistake


def test_every_picture_says_in_words_what_it_shows() -> None:
    assert "gate 0.5 nats" in pictures.switches({"gate": 0.5, "pairs": 2.0}).alt
    assert "all 128" in pictures.cache_bytes({"latent": 69_120, "all 128": 4_915_200}).alt
    assert "[2, 1, 1]" in pictures.visits(["a", " b"], np.array([[0, 1], [0, 2]]), 3).alt
    assert "1: 3" in pictures.fewer_experts([3.0, 1.0], 3).alt
    assert "linear (split)" in pictures.stages([[("linear", True)], [("add", False)]]).alt
    assert "gpt-oss" in pictures.Families()._repr_html_()
    assert "deepseek2" in repr(pictures.Families())


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.switches({}),
        lambda: pictures.switches({"a": 0.0}),
        lambda: pictures.cache_bytes({}),
        lambda: pictures.visits(["a"], np.array([[5]]), 3),
        lambda: pictures.fewer_experts([1.0], 3),
        lambda: pictures.stages([]),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError):
        draw()


def test_a_renamed_file_is_the_same_model_by_another_name(tmp_path: Path) -> None:
    source = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"
    path = pictures.rename_architecture(source, tmp_path / "t.gguf", "llama")
    with (
        tl.load_model(source, backend="numpy") as a,
        tl.load_model(path, backend="numpy") as b,
        a.create_session(seq_len=8) as s,
        b.create_session(seq_len=8) as t,
    ):
        np.testing.assert_array_equal(s.eval([1, 2, 3]), t.eval([1, 2, 3]))
    other = pictures.rename_architecture(source, tmp_path / "u.gguf", "mystery")
    with pytest.raises(tl.UnsupportedModelError, match="mystery"):
        tl.load_model(other)
