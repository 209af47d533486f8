"""Notebook 10: its checks on right answers and usual mistakes; its pictures; what it forges and reads back."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import teachllama as tl

pytest.importorskip("matplotlib", reason="the lab extra is not installed")

from teachllama.check import notebook10 as check
from teachllama.check.core import CheckResult
from teachllama.lessons.common.judge import judge_hidden
from teachllama.lessons.n10_sessions.exercises import FINGERPRINT
from teachllama.session_file import held
from teachllama.show import notebook10 as pictures

STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"


def good(tensors: Any) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + hashlib.sha256(tensors[name]).digest())
    return digest.hexdigest()


def sha(x: bytes) -> str:
    return hashlib.sha256(x).hexdigest()


def half_simulated(steps: Any) -> str:
    disk = {"talk": "old"}
    for step in steps:
        if step[0] == "write":
            disk[step[1]] = "new"
        elif step[0] == "move" and step[1] in disk:
            disk[step[2]] = disk.pop(step[1])
    return disk.get("talk", "missing")


def trusting(file: Any, here: Any) -> str:
    if file["version"] > here["version"] or file["model"] != here["model"]:
        return "refuse"
    return "rebuild" if file["quantization"] != here["quantization"] else "restore"


ANSWERS: list[tuple[Callable[..., CheckResult], Callable[..., Any], str | None]] = [
    (check.file_bytes, lambda s, b: int(2 * s[0] * s[1] * s[2] * b + 4 * (s[2] + s[4])), None),
    (check.file_bytes, lambda s, b: 2 * s[0] * s[1] * s[3] * b + 4 * (s[2] + s[4]), "whole_cache"),
    (check.file_bytes, lambda s, b: s[0] * s[1] * s[2] * b + 4 * (s[2] + s[4]), "no_v"),
    (check.file_bytes, lambda s, b: 2 * s[0] * s[1] * s[2] * b + 4 * s[4], "no_tokens"),
    (check.file_bytes, lambda s, b: 2 * s[0] * s[1] * s[2] * b + 4 * s[2], "no_logits"),
    (check.fingerprint, good, None),
    (check.fingerprint, lambda t: sorted((k, sha(v)) for k, v in t.items()).__repr__(), None),
    (check.fingerprint, lambda t: sha("".join(k + sha(v) for k, v in t.items()).encode()), "order"),
    (check.fingerprint, lambda t: sha(b"".join(t[k] for k in sorted(t, key=lambda k: t[k]))), "names_ignored"),
    (check.fingerprint, lambda t: sha(repr(sorted((k, v[:8]) for k, v in t.items())).encode()), "one_bit"),
    (check.fingerprint, lambda t: str(sorted((k, sum(v)) for k, v in t.items())), "sums"),
    (check.fingerprint, lambda t: sha(repr(sorted(t.values())).encode()), "names_ignored"),
    (
        check.fingerprint,
        lambda t: sha(repr(sorted((k, v) for k, v in t.items() if k != "norm")).encode()),
        "values_only",
    ),
    (check.fingerprint, lambda t: random.random().hex(), "unstable"),
    (check.fingerprint, lambda t: zlib.crc32(repr(sorted(t.items())).encode()), None),
    (check.after_crash, half_simulated, "always_new"),
    (check.after_crash, lambda steps: "old", "never"),
    (check.decide, trusting, "never"),
    (check.decide, lambda file, here: "refuse", "refuses_all"),
    (check.decide, lambda file, here: "restore", "believes_all"),
    (check.decide, lambda file, here: " Refuse ", "refuses_all"),
    (check.decide, lambda file, here: "maybe", "type"),
    (check.decide, lambda file, here: True, "type"),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda c: f"{c[0].__name__}-{c[2]}")
def test_right_answers_pass_and_each_usual_mistake_is_named(case: Any) -> None:
    judge, answer, mistake = case
    result = judge(answer)
    assert result.ok == (mistake is None), result.message
    if mistake != "never":  # wrong, but not a usual mistake
        assert result.mistake == mistake


def test_hidden_fingerprints_are_judged_on_bits_that_the_learner_has_not_seen() -> None:
    assert judge_hidden(good, FINGERPRINT, "ada").ok
    assert not judge_hidden(lambda t: sha(repr(sorted((k, v[:2]) for k, v in t.items())).encode()), FINGERPRINT, "b").ok


def test_every_picture_says_in_words_what_it_shows() -> None:
    assert "load 0.050 s" in pictures.bill({"read": 3.0, "load": 0.05}).alt
    assert "keys 300 bytes" in pictures.inside({"keys": 300, "header": 20}).alt
    assert "flipping [30]" in pictures.bits([0.0] * 30 + [5.0, 0.0]).alt
    assert "flipping none" in pictures.bits([0.0] * 32).alt
    assert "[0, 1]" in pictures.bits([float("nan"), float("inf")] + [0.0] * 30).alt
    rows = pictures.Refusals([("a <b>", "damaged", "at least one bit")])
    assert "a &lt;b&gt;" in rows._repr_html_()
    assert repr(rows) == "a <b>: damaged: at least one bit"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pictures.bill({}),
        lambda: pictures.bill({"a": 0.0}),
        lambda: pictures.inside({}),
        lambda: pictures.inside({"a": -1}),
        lambda: pictures.bits([0.0] * 31),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], Any]) -> None:
    with pytest.raises(tl.ParameterError):
        draw()


def test_a_copy_with_nothing_changed_has_the_same_fingerprint(tmp_path: Path) -> None:
    path = pictures.copy_with(STORIES, tmp_path / "t.gguf", lambda metadata: None)
    with tl.load_model(STORIES) as a, tl.load_model(path) as b:
        assert a.fingerprint == b.fingerprint


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_text_is_read_from_keys_alone(kv_dtype: str) -> None:
    with tl.load_model(STORIES) as model, model.create_session(seq_len=64, kv_dtype=kv_dtype) as session:
        ids = model.encode("One day, Anna went to the park with her dog.", add_special=True)
        session.eval(ids)
        assert pictures.text_from_keys(model, held(session._cache, 0, len(ids))["k"]) == ids
