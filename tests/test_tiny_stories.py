"""The model in the package: its file, its stories, the grammar it was trained on, and the judge of both."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import teachllama as tl
from teachllama import cli, hub
from teachllama.errors import FetchError
from tests.conftest import golden
from tiny_stories import words
from tiny_stories.grammar import HELD_OUT, PLOTS, story
from tiny_stories.judge import flaws

ROOT = Path(__file__).parents[1]
CARD = hub.SHIPPED / "MODEL_CARD.md"


@pytest.fixture(scope="module")
def model() -> Iterator[tl.Model]:
    with tl.load_model("tiny-stories", weights="f32") as loaded:
        yield loaded


# ---- the file ----


def test_the_shipped_file_is_small_and_is_the_one_that_hub_names() -> None:
    path, known = hub.find("tiny-stories"), hub.KNOWN["tiny-stories"]
    assert path.parent == hub.SHIPPED
    assert path.stat().st_size == known.nbytes <= 4_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256


def test_it_is_a_plain_llama_with_grouped_queries_and_one_table_for_both_ends(model: tl.Model) -> None:
    with tl.open_gguf(model.path) as file:
        assert file.metadata["general.name"] == "Tiny Stories"
        assert file.metadata["general.license"] == "Apache-2.0"
        assert "tokenizer.chat_template" not in file.metadata
        assert "output.weight" not in file.tensors
        types = {len(info.shape): info.type.name for info in file.tensors.values()}
    assert types == {1: "F32", 2: "Q8_0"}
    assert model.config.arch == "llama"
    assert model.config.n_kv_heads < model.config.n_heads


def test_it_needs_no_cache_folder_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEACHLLAMA_CACHE", str(tmp_path / "nothing"))
    assert hub.fetch("tiny-stories") == hub.find("tiny-stories")
    assert cli.main(["fetch", "tiny-stories"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{hub.find('tiny-stories')}\n"
    assert "already here" in err
    assert cli.main(["models"]) == 0
    here, rest = capsys.readouterr().out.split("\n\n", 1)
    assert "tiny-stories" in here
    assert "tiny-stories" not in rest
    assert not (tmp_path / "nothing").exists()


def test_a_shipped_file_that_is_missing_or_damaged_says_how_to_get_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub.finding, "SHIPPED", tmp_path)
    for what in ("missing", "damaged"):
        with pytest.raises(FetchError, match=rf"is {what}: `pip install --force-reinstall --no-deps"):
            hub.find("tiny-stories")
        with pytest.raises(FetchError, match=rf"is {what}"):
            hub.fetch("tiny-stories")
        assert cli.main(["models"]) == 0
        assert "reinstall the package" in capsys.readouterr().out
        (tmp_path / hub.KNOWN["tiny-stories"].file_name).write_bytes(b"GGUF")


# ---- the arithmetic ----


@pytest.mark.parametrize("i", range(3))
def test_the_engines_logits_are_those_of_the_model_that_was_trained(model: tl.Model, i: int) -> None:
    case = golden("tiny-stories-pytorch")["cases"][i]
    assert model.encode(case["text"], add_special=True) == case["ids"]
    with model.create_session() as session:
        logits = session.eval(case["ids"])
    np.testing.assert_allclose(logits[case["top_ids"]], case["top_logits"], rtol=0, atol=1e-4)
    assert abs(float(logits.mean()) - case["logit_mean"]) < 1e-4
    assert abs(float(logits.std()) - case["logit_std"]) < 1e-4


@pytest.mark.parametrize("i", range(4))
def test_logits_and_greedy_tokens_equal_llama_cpp(model: tl.Model, i: int) -> None:
    case = golden("tiny-stories")["generate"][i]
    assert model.encode(case["prompt"], add_special=True, parse_special=True) == case["prompt_ids"]
    with model.create_session() as session:
        logits = session.eval(case["prompt_ids"])
        np.testing.assert_allclose(logits[case["top_ids"]], case["top_logits"], rtol=0, atol=1e-4)
        for expected, gap in zip(case["greedy_ids"], case["gap"], strict=True):
            if gap < 0.02:  # either token is right, and the texts may diverge here
                break
            assert session.sample() == expected
            session.eval([expected])


def test_text_in_is_ids_out_as_llama_cpp_makes_them(model: tl.Model) -> None:
    for case in golden("tiny-stories")["tokenize"]:
        assert model.encode(case["text"]) == case["ids"], case["text"]
        assert model.decode(case["ids"]) == case["text"]


# ---- the stories it tells ----


def test_it_tells_stories_that_end_and_mostly_have_no_flaw(model: tl.Model) -> None:
    told = []
    for seed in range(12):
        text = story(HELD_OUT + seed).text
        opening = text[: text.find(".") + 1]
        with model.create_session(seed=seed) as session:
            tokens = list(session.generate(opening, tl.SamplingParams(temperature=0.3), max_new_tokens=400))
            assert session.stats.stop_reason == "end of text", opening
        told.append(opening + "".join(token.piece for token in tokens))
    assert len(set(told)) == len(told)
    assert sum(not flaws(text) for text in told) >= 8, [(flaws(text), text) for text in told if flaws(text)]


def test_the_model_card_quotes_the_measured_figures() -> None:
    figures = json.loads((ROOT / "tiny_stories" / "figures.json").read_text(encoding="utf-8"))
    card = " ".join(CARD.read_text(encoding="utf-8").split())
    held_out = figures["held_out"]
    assert f"**{held_out['model_nats']:.3f}** nats a token" in card
    assert f"**{held_out['grammar_nats']:.3f}**" in card
    for how, least in (("greedy", 0.9), ("temperature_0.3", 0.75), ("temperature_0.7", 0.5)):
        n, good = figures[how]["stories"], figures[how]["without_flaw"]
        assert f"**{good / n:.1%}**" in card, how
        assert good > least * n
        assert figures[how]["recited"] == 0
    known = hub.KNOWN["tiny-stories"]
    assert f"{known.nbytes:,} bytes" in card
    assert known.sha256 in card


# ---- the grammar and its judge ----


def test_a_story_follows_from_its_seed_alone() -> None:
    assert story(5) == story(5)
    assert len({story(seed).text for seed in range(500)}) == 500


def test_every_plot_is_told_and_no_story_of_the_grammar_has_a_flaw() -> None:
    stories = [story(seed) for seed in range(1500)]
    assert {s.plot for s in stories} == set(PLOTS)
    for s in stories:
        assert flaws(s.text) == [], s.text
        assert not re.search(r"[{}()|]|  |\b[Aa] [aeiou]| [.,!?]|\.\.", s.text), s.text


def first_of(plot: str) -> str:
    return next(s.text for s in map(story, range(10_000)) if s.plot == plot)


def swap(text: str, pattern: str, to: str) -> str:
    assert re.search(pattern, text), (pattern, text)
    return re.sub(pattern, to, text, count=1)


def test_each_kind_of_mistake_is_found() -> None:
    lost, share, stuck = first_of("lost"), first_of("share"), first_of("stuck")
    assert "broken off" in flaws(lost[:-20])
    assert "broken off" in flaws(lost.replace('"', "", 1))
    assert "repeats" in flaws(lost + " It was a sunny day." * 3)
    assert "names" in flaws(lost + " And then Wilma, who was there, told Wilma.")
    assert "pronouns" in flaws(swap(lost, r" (She|He) (took|loved|never)", " He and she took"))
    colour = re.search(rf"the ({'|'.join(words.COLOURS)}) ", lost)
    assert colour
    assert "colour" in flaws(lost.replace(colour[0], "the red " if colour[1] != "red" else "the blue "))
    assert "thing" in flaws(swap(stuck, r"My \w+ is", "My flute is"))
    assert "numbers" in flaws(swap(share, r"(Now \w+ had|still had) \w+", r"\1 no"))
    assert "helper" in flaws(swap(stuck, r"\w+ [\w ]+ and (got|brought back|took hold of)", r"wished and \1"))
    assert "helper" in flaws(swap(first_of("learn"), r"(met|saw) a \w+ \w+", "met a kind snail"))
    assert "kind" in flaws(swap(first_of("alone"), r"said the \w+", "said the ant"))
    assert "house" in flaws(swap(first_of("storm"), r"had a new [a-z ]+", "had a new castle"))
    assert "plant" in flaws(swap(first_of("seed"), r"The [a-z ]+ grew and grew", "The tulip grew and grew"))


@pytest.mark.parametrize("text", ["", "x", '"', "The. The. The.", "🦙" * 50, "named named named", "Tom " * 1000])
def test_any_text_can_be_judged(text: str) -> None:
    assert flaws(text)
