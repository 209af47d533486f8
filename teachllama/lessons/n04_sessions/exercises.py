"""The exercises of lesson 04, sessions and memory: how many bytes, how many sessions, four broken calculators,
`generate` by hand, and a session that stays alive.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama.errors import ParameterError, TeachLlamaError
from teachllama.kv import KV_DTYPES, KVLayout, LayerKV, explain, kv_cache_bytes, kv_layout_from_metadata
from teachllama.kv.explain import Cache
from teachllama.lessons.common.check import CheckResult, Slip, a_type, number, recognise, run, short, type_name
from teachllama.lessons.common.exercise import Case, Exercise, Lesson
from teachllama.lessons.n04_sessions.practice import END, PROMPT, SCENES, TURN, PracticeSession, Scene
from teachllama.lessons.n04_sessions.puzzle import leak_released
from teachllama.lessons.n04_sessions.shapes import SHAPES

if TYPE_CHECKING:
    from teachllama.model import Model

# ---- the KV cache's size, and how people get it wrong ----


# The mistakes of `teachllama kv --explain` that can be made in a formula.
_NAMES = (
    "query_heads", "head_dim", "no_v", "value_length", "elements", "counted_f16", "counted_f32", "sliding_window",
    "first_layer", "native_context", "one_position", "one_layer", "twice",
)  # fmt: skip
_KNOWN = {m.name: m for m in (*explain.SHAPE, *explain.LENGTH, *explain.types(None))}
FAULTS = {name: _KNOWN[name] for name in _NAMES}


def _text(name: str, cache: Cache) -> str:
    """A mistake as a sentence."""
    text = FAULTS[name].text.format(native=cache.native_seq_len)
    return f"{text[:1].upper()}{text[1:]}."


def _recognise_cache(
    answer: Sequence[int | float], caches: Sequence[Cache], praise: str, otherwise: str
) -> CheckResult:
    """Finds the fault that gives these bytes, one number per cache, or two faults if the numbers identify them."""
    answer, right = tuple(answer), tuple(c.nbytes for c in caches)
    wrong = {name: [fault.change(c) for c in caches] for name, fault in FAULTS.items()}
    single = [Slip(name, tuple(c.nbytes for c in wrong[name]), _text(name, caches[0])) for name in FAULTS]
    result = recognise(answer, right, single, praise, otherwise)
    if result.ok or result.mistake:
        return result
    pairs = [
        pair
        for pair in itertools.combinations(FAULTS, 2)
        if answer == tuple(FAULTS[pair[1]].change(c).nbytes for c in wrong[pair[0]])
    ]
    sure = [name for name in FAULTS if pairs and all(name in pair for pair in pairs)]
    if not sure:
        return result
    start = "Two things at once." if len(sure) == 2 else "Two things at once, of which one is sure."
    return CheckResult(False, " ".join([start, *(_text(name, caches[0]) for name in sure)]), " and ".join(sure))


# ---- 1. bytes for a model you choose ----

_UNITS = [(f"{k}{i}B", (1024 if i else 1000) ** n) for n, k in ((1, "k"), (2, "M"), (3, "G")) for i in ("", "i")]


def kv_bytes(
    answer: object, config_or_layout: object, seq_len: int | None = None, kv_dtype: str = "f32"
) -> CheckResult:
    """Checks how many bytes of KV cache one session of a model takes.

    Args:
        answer: the learner's number.
        config_or_layout: the model's `config`; or a `KVLayout`, a GGUF file's metadata, or anything with `metadata`
            (an open file, a shape from `teachllama.show`).
        seq_len: as in `teachllama.kv_cache_bytes`, with the same default.
        kv_dtype: as in `teachllama.kv_cache_bytes`.
    """
    try:
        cache = _cache_of(config_or_layout, seq_len, kv_dtype)
    except Exception as e:
        return CheckResult(False, f"The question needs another look before the answer: {e}.", "question")
    found, right = number(answer), cache.nbytes
    if isinstance(found, CheckResult):
        return found
    result = _recognise_cache(
        [found],
        [cache],
        "Layers, positions, KV heads, the lengths of K and V, bytes a number: to the byte.",
        f"It is too {'large' if found > right else 'small'}, and not in one of the usual ways. Go through it factor by "
        "factor: layers, positions, KV heads, the lengths of a key and of a value, bytes a number.",
    )
    if result.ok or result.mistake:
        return result
    for unit, size in _UNITS:
        if found and abs(found - right / size) < min(1, right / size / 20):
            return CheckResult(
                False, f"That looks like {unit}. The answer is wanted in bytes, to the last one.", "units"
            )
    if not cache.n_heads and right and found % right == 0 and 2 < found / right <= 128:
        return CheckResult(False, f"It is the cache several times over. {_text('query_heads', cache)}", "query_heads")
    return result


def _cache_of(source: Any, seq_len: int | None, kv_dtype: str) -> Cache:
    """The cache that the question is about. Raises `TeachLlamaError` if the question is invalid."""
    n_heads = dim = 0
    source = getattr(source, "config", source)  # a model is accepted, too
    metadata = source if isinstance(source, Mapping) else getattr(source, "metadata", None)
    if isinstance(metadata, Mapping) and metadata:
        source = kv_layout_from_metadata(metadata)
        found = (metadata.get(f"{source.arch}.{key}") for key in ("attention.head_count", "embedding_length"))
        n_heads, dim = (x if isinstance(x, int) else 0 for x in found)  # some files have one number per layer
    else:
        n_heads, dim = getattr(source, "n_heads", 0), getattr(source, "dim", 0)
    layout = next((x for x in (source, *(getattr(source, n, None) for n in _LAYOUTS)) if isinstance(x, KVLayout)), None)
    if layout is None:
        raise ParameterError(f"found {type_name(source)}, expected a model's config, or its layout")
    length = getattr(source, "seq_len", layout.native_seq_len) if seq_len is None else seq_len
    kv_cache_bytes(layout, length, kv_dtype)  # raises for settings out of range
    block, block_nbytes = KV_DTYPES[kv_dtype]
    return Cache(layout.layers, length, Fraction(block_nbytes, block), layout.native_seq_len, n_heads, dim)


_LAYOUTS = ("kv_layout", "layout")  # the layout's attribute in a config, and in a published shape


def _cache_verdict(function: Any, case: Case, model: Any) -> CheckResult:
    shape, seq_len = SHAPES[case.arguments[0]], case.arguments[1]
    outcome = run(function, shape, seq_len)
    return outcome.failure or kv_bytes(outcome.value, shape, seq_len, "f16")


def _other_shapes(rng: np.random.Generator, model: Any) -> list[Case]:
    names = ("SmolLM2 135M", "Gemma 3 4B", "Llama 3.1 8B")
    return [Case("a model", (name, int(rng.integers(1100, 8000)))) for name in names]


CACHE = Exercise(
    check="kv_bytes",
    names=("cache_bytes",),
    signature="cache_bytes(shape, seq_len)",
    points=(2, 1),
    shows="compute the bytes of a KV cache",
    usual="`query_heads`; `head_dim`; `no_v`; `elements`; `sliding_window`: every layer at full length, "
    "`first_layer`: none; `counted_f32`; `units`; all below",
    mistake=(
        "sliding_window",
        cleandoc("""
        def cache_bytes(shape, seq_len):
            layer = shape.layout.layers[0]
            numbers = layer.n_kv_heads * (layer.key_length + layer.value_length)
            return shape.get("block_count") * seq_len * numbers * 2
    """),
    ),
    cases=(Case("", ("Gemma 3 270M", 4096)),),
    hidden_cases=_other_shapes,
    verdict=_cache_verdict,
)

# ---- 2. how many sessions fit ----


def sessions_that_fit(
    answer: object, model_nbytes: int, session_nbytes: int, memory: int = 2_000_000_000
) -> CheckResult:
    """Checks how many sessions fit in `memory` bytes beside the model. All sizes are in bytes."""
    sizes = []
    for name, value in (("model_nbytes", model_nbytes), ("session_nbytes", session_nbytes), ("memory", memory)):
        size = number(value, f"{name} is")
        if isinstance(size, CheckResult) or size < (name == "session_nbytes"):
            message = size.message if isinstance(size, CheckResult) else f"{name} cannot be so small."
            return CheckResult(False, f"The question needs another look before the answer: {message}", "question")
        sizes.append(int(size))
    model, session, room = sizes
    found = number(answer)
    if isinstance(found, CheckResult):
        return found
    exact, gib = Fraction(room - model, session), room * 2**30 // 10**9
    right = max(0, math.floor(exact))
    wrong = {
        "forgot_weights": (
            Fraction(room, session),
            "This fills the whole memory with caches; the weights have to fit beside them.",
        ),
        "weights_each": (
            Fraction(room, model + session),
            "This gives every session weights of its own. Sessions of one model share them.",
        ),
        "gib": (
            Fraction(gib - model, session),
            "This counts memory in GiB, powers of 1024. A GB is a thousand million bytes.",
        ),
    }
    if isinstance(found, float):
        text = "Sessions come whole: what would a part of one hold? Give a whole number."
        near = [] if abs(found - exact) < 0.05 else [(n, t) for n, (x, t) in wrong.items() if abs(found - x) < 0.05]
        return CheckResult(False, *(near or [("float", text)])[0][::-1])
    slips = [Slip(name, math.floor(ratio), text) for name, (ratio, text) in wrong.items()]
    slips.append(Slip("rounded_up", math.ceil(exact), "The last of these sessions fits only in part."))
    result = recognise(found, right, slips, "The weights once, then one cache a session, and no half sessions.", "")
    if result.ok or result.mistake:
        return result
    if found > right:
        return CheckResult(False, "So many sessions need more memory than there is.", "too_many")
    return CheckResult(False, "So many do fit; does another one?" if found >= 0 else "That is below zero.", "too_few")


def _sessions_verdict(function: Any, case: Case, model: Any) -> CheckResult:
    outcome = run(function, *case.arguments)
    return outcome.failure or sessions_that_fit(outcome.value, *case.arguments)


def _other_machines(rng: np.random.Generator, model: Any) -> list[Case]:
    sizes = ((96_580_224, 47_185_920), (1_072_000_000, 94_371_840))
    return [Case("sizes", (m + int(rng.integers(9 * 10**7)), c + int(rng.integers(10**6)))) for m, c in sizes]


SESSIONS = Exercise(
    check="sessions_that_fit",
    names=("sessions",),
    signature="sessions(model_nbytes, cache_nbytes)",
    given=cleandoc("""
        model_nbytes, cache_nbytes = 538_060_032, 35_389_440  # SmolLM2 in float32; 768 positions
    """),
    replace={"model.nbytes": "model_nbytes", "ONE_CACHE": "cache_nbytes"},
    points=(1, 1),
    shows="plan memory for many sessions",
    usual="`forgot_weights`; `weights_each`; `gib`; `rounded_up`, `float`",
    mistake=(
        "forgot_weights",
        cleandoc("""
        def sessions(model_nbytes, cache_nbytes):
            return 2_000_000_000 // cache_nbytes
    """),
    ),
    cases=(Case("", (538_060_032, 35_389_440)),),
    hidden_cases=_other_machines,
    verdict=_sessions_verdict,
)

# ---- 3. four broken calculators ----

# The shapes that a calculator gets. They distinguish each fault from every other.
CALCULATOR_SHAPES: dict[str, dict[str, int]] = {
    "SmolLM2 135M, f32": {
        "n_layers": 30, "seq_len": 1024, "n_heads": 9, "n_kv_heads": 3, "dim": 576,
        "key_length": 64, "value_length": 64, "bytes_per_number": 4,
    },
    "Gemma 3 270M, f32, every position kept": {
        "n_layers": 18, "seq_len": 512, "n_heads": 4, "n_kv_heads": 1, "dim": 640,
        "key_length": 256, "value_length": 256, "bytes_per_number": 4,
    },
    "Llama 3 8B, f16": {
        "n_layers": 32, "seq_len": 8192, "n_heads": 32, "n_kv_heads": 8, "dim": 4096,
        "key_length": 128, "value_length": 128, "bytes_per_number": 2,
    },
    "keys longer than values, f16": {
        "n_layers": 27, "seq_len": 777, "n_heads": 16, "n_kv_heads": 4, "dim": 2048,
        "key_length": 192, "value_length": 128, "bytes_per_number": 2,
    },
    "a KV head for every query head, f32": {
        "n_layers": 12, "seq_len": 300, "n_heads": 12, "n_kv_heads": 12, "dim": 768,
        "key_length": 64, "value_length": 64, "bytes_per_number": 4,
    },
}  # fmt: skip
CALCULATOR_FAULTS = ("query_heads", "head_dim", "no_v", "elements")  # one per calculator, in the notebook's order


Shapes = Mapping[str, Mapping[str, int]]


def calculators(functions: object, shapes: Shapes = CALCULATOR_SHAPES) -> CheckResult:
    """Checks the four repaired calculators, a list of `f(shape: dict) -> bytes` in the notebook's order.

    Each runs on all `shapes`. A calculator may look up the keys of a shape.
    """
    given = run(lambda: list(itertools.islice(functions, 5))).value  # type: ignore[call-overload]
    if given is None or len(given) != len(CALCULATOR_FAULTS):
        return CheckResult(False, "Give all four calculators in a list: check.calculators([a, b, c, d]).", "type")
    results = [_calculator(f, fault, shapes) for f, fault in zip(given, CALCULATOR_FAULTS, strict=True)]
    n_right = sum(r.ok for r in results)
    if n_right == len(results):
        return CheckResult(True, "All four agree on every shape, also on those where their old faults did not show.")
    lines = [f"{n_right} of {len(results)} are right."]
    lines += [f"{i}. {'Right.' if r.ok else r.message}" for i, r in enumerate(results, 1)]
    return CheckResult(False, "\n".join(lines), next((r.mistake for r in results if r.mistake), None))


def _calculator(function: Any, fault: str, shapes: Shapes) -> CheckResult:
    if not callable(function):
        return CheckResult(False, "This is not a function.", "type")
    answers = []
    for shape in shapes.values():
        outcome = run(function, dict(shape))
        found = outcome.failure or number(outcome.value, "It returns")
        if isinstance(found, CheckResult):
            return found
        answers.append(found)
    caches = [_shape_cache(shape) for shape in shapes.values()]
    named = zip(shapes, answers, caches, strict=True)
    off = [name for name, answer, cache in named if answer != cache.nbytes]
    if len(off) == len(caches):
        otherwise = "Wrong on every shape, and in none of the usual ways: read it factor by factor."
    else:
        otherwise = f"Right on some shapes, but not on: {'; '.join(off)}."
    result = _recognise_cache(answers, caches, "", otherwise)
    if result.mistake is None and 0 < len(off) < len(caches):
        return replace(result, mistake="some_shapes")
    if result.mistake:
        start = (
            "Still has its fault."
            if fault in result.mistake.split(" and ")
            else "Its fault is gone, and another is in."
        )
        return replace(result, message=f"{start} {result.message}")
    return result


def _shape_cache(s: Mapping[str, int]) -> Cache:
    layers = (LayerKV(s["n_kv_heads"], s["key_length"], s["value_length"], None),) * s["n_layers"]
    return Cache(layers, s["seq_len"], Fraction(s["bytes_per_number"]), s["seq_len"], s["n_heads"], s["dim"])


def _calculators_verdict(functions: Any, case: Case, model: Any) -> CheckResult:
    return calculators(functions, case.arguments[0])


def _made_shapes(rng: np.random.Generator, model: Any) -> list[Case]:
    def made(n_layers: int, n_heads: int, n_kv_heads: int, key: int, value: int, nbytes: int) -> dict[str, int]:
        return {
            "n_layers": n_layers, "seq_len": int(rng.integers(90, 5000)), "n_heads": n_heads, "n_kv_heads": n_kv_heads,
            "dim": 48 * n_heads, "key_length": key, "value_length": value, "bytes_per_number": nbytes,
        }  # fmt: skip

    return [Case("shapes", ({"a shape": made(7, 12, 4, 96, 80, 4), "another": made(64, 40, 8, 128, 128, 2)},))]


CALCULATORS = Exercise(
    check="calculators",
    names=("calculator_a", "calculator_b", "calculator_c", "calculator_d"),
    note="Mend them where they stand.",
    finish="calculator_a = calculator_b = calculator_c = calculator_d = mended",
    points=(2, 1),
    shows="find the fault in somebody else's formula",
    usual="as in 1, one for each calculator",
    mistake=(
        "no_v",
        cleandoc("""
        def calculator_a(m):
            numbers = m["n_kv_heads"] * (m["key_length"] + m["value_length"])
            return m["n_layers"] * m["seq_len"] * numbers * m["bytes_per_number"]


        def calculator_b(m):
            return calculator_a(m)


        def calculator_c(m):
            numbers = m["n_kv_heads"] * m["key_length"]
            return m["n_layers"] * m["seq_len"] * numbers * m["bytes_per_number"]


        def calculator_d(m):
            return calculator_a(m)
    """),
    ),
    cases=(Case("", (CALCULATOR_SHAPES,)),),
    hidden_cases=_made_shapes,
    verdict=_calculators_verdict,
)

# ---- 4. generate, with a stop string ----

_TEXTS = {
    "uses_generate": "Your function calls session.generate; it should do the same itself, from eval and sample.",
    "no_prompt": "Your function samples before anything was evaluated, with no logits yet. The prompt comes first.",
    "same_token": "Your function never evaluates the token that it sampled, so the session stays where it is and says "
    "the same again.",
    "prompt_again": "Your function evaluates the prompt more than once. The session remembers it: what it needs is the "
    "new token.",
    "wrong_tokens": "The session was given something else than the prompt and then, once each, the sampled tokens.",
    "no_limit": "Your function goes on long after max_new_tokens; something has to count.",
    "prompt_in_text": "The prompt is not part of the text: neither return it, nor look for the stop string in it.",
    "past_end": "A token that ends the text was sampled, and your function went on. A model may have several such "
    "tokens: model.tokenizer.eog_ids.",
    "end_kept": "The token that ends the text is a signal, and no part of the text.",
    "off_by_one": "The number of tokens is off by one; max_new_tokens says how many are kept at most.",
    "stop_ignored": "The stop string came, and your function went on.",
    "last_piece": "The stop string came, and your function did not see it. It can begin in one token and end in "
    "another, or stand in the middle of one: which text must be searched?",
    "stop_kept": "Your function stops in the right place, but neither the stop string nor what follows it belongs to "
    "the text.",
    "token_dropped": "Your function drops the whole token in which the stop string ends, and with it some text from "
    "before the stop string.",
    "stop_part_kept": "The beginning of the stop string is still in the text: it came in an earlier token.",
    "stopped_early": "Your function stopped although the text had not ended, nor was the stop string ever whole.",
    "broken_characters": "A character may take several tokens; the piece of each is then no text by itself. Which "
    "function takes several ids at once?",
}  # fmt: skip


def generate_with_stop(function: object, model: Model) -> CheckResult:
    """Checks `function(session, prompt_ids, stop, max_new_tokens) -> str`: greedy text, up to a stop string.

    Runs it on practice sessions, whose model generates a known text, then on a real session of `model`, where the
    result is compared with that of `Session.generate`.
    """
    if not callable(function):
        return CheckResult(False, f"A function is wanted; this is {a_type(function)}.", "type")
    for scene in SCENES:
        session = PracticeSession(scene)
        outcome = run(function, session, list(session.prompt_ids), scene.stop, scene.max_new_tokens)
        text = _as_text(outcome.value)
        mistake = _misuse(session, text == scene.expected)
        if mistake is None and (outcome.failure or text is None):
            return outcome.failure or _no_text(outcome.value)
        mistake = mistake or _wrong_text(scene, text, session.n_past - len(session.prompt_ids))
        if mistake is not None:
            why = _TEXTS.get(mistake, f"It should have returned {scene.expected!r}.")
            shown = "" if text is None else f", returned {short(text, 60)!r}"
            return CheckResult(False, f"{why} (Practice run: {scene.about}; stop={scene.stop!r}{shown}.)", mistake)
    return _on_the_model(function, model)


def _as_text(value: object) -> str | None:
    return str.__str__(value) if issubclass(type(value), str) else None


def _no_text(value: object) -> CheckResult:
    if value is None:
        return CheckResult(False, "Your function returns nothing (None); it should return the text.", "type")
    found = type_name(value)
    hints = {"generator": ": it yields, and one text is wanted", "list": ": decode the ids, or join the pieces, first"}
    return CheckResult(
        False, f"Your function returns {a_type(value)}, and a str is wanted{hints.get(found, '')}.", "type"
    )


def _misuse(session: PracticeSession, text_is_right: bool) -> str | None:
    """The mistake in how the session was used, or None."""
    for mistake in ("uses_generate", "no_prompt"):
        if mistake in session.mistakes:
            return mistake
    n, tokens = len(session.prompt_ids), session.tokens
    if not text_is_right and tokens == session.prompt_ids and session.n_looks > 1:
        return "same_token"
    if session.prompt_ids[0] in tokens[1:]:
        return "prompt_again"
    wanted = session.prompt_ids + session.script + [session.model.tokenizer.vocab_size - 1] * len(tokens)
    if (len(tokens) >= n or text_is_right) and tokens != wanted[: len(tokens)]:
        return "wrong_tokens"
    return "no_limit" if "no_limit" in session.mistakes else None


def _wrong_text(scene: Scene, text: str | None, n_evaluated: int) -> str | None:
    """The mistake in a scene's text, or in how many of its tokens were evaluated; None if both are right."""
    said = [b"".join(scene.pieces[:n]).decode("utf-8", "replace") for n in range(len(scene.pieces) + 1)]
    expected, ends = scene.expected, scene.pieces[-1] in (END, TURN)
    if ends:
        enough = len(scene.pieces)
    else:  # the tokens until the stop string is complete, or the maximum
        enough = next((n for n, so_far in enumerate(said) if scene.stop in so_far), scene.max_new_tokens)
    if text is None or (text == expected and n_evaluated <= enough):
        return None
    if text.startswith(PROMPT.decode()):
        return "prompt_in_text"
    if "\ufffd" in text:
        return "broken_characters"
    if ends:
        if expected.startswith(text) and text != expected:
            return "stopped_early"
        return "end_kept" if text == said[-1] else "past_end" if text.startswith(expected) else "other"
    if scene.stop not in said[-1]:
        return "off_by_one" if text in (expected, said[enough - 1], said[enough + 1]) else "other"
    if text == expected or (text.startswith(said[enough]) and text != said[enough]):
        return "stop_ignored" if scene.stop.encode() in scene.pieces else "last_piece"
    if text.startswith(expected + scene.stop):
        return "stop_kept"
    if text == said[enough - 1]:
        return "token_dropped" if expected.startswith(text) else "stop_part_kept"
    return "other"


def _on_the_model(function: Callable[..., Any], model: Model) -> CheckResult:
    """Compares the same function on a real session with the engine's own generate."""
    try:
        prompt = model.encode("Once upon a time", add_special=True)
        session = model.create_session(seq_len=len(prompt) + 16, seed=0)
    except Exception as e:
        return CheckResult(
            False, f"All practice runs are right. The model cannot be used: {type_name(e)}: {e}.", "question"
        )
    with session:
        pieces = [token.piece for token in session.generate(prompt, max_new_tokens=10)]
        pairs = [a[-1] + b[0] for a, b in itertools.pairwise(pieces[3:]) if a and b and "\ufffd" not in a + b]
        stop = pairs[0] if pairs else "###"  # begins in one token and ends in the next
        expected = "".join(pieces).split(stop)[0]
        session.reset()
        outcome = run(function, session, list(prompt), stop, 10, seconds=60)
    text = _as_text(outcome.value)
    if text == expected:
        return CheckResult(True, f"{len(SCENES)} practice runs, and on the model the same text as session.generate.")
    start = f"All {len(SCENES)} practice runs are right, but on the model"
    if outcome.failure or text is None:
        failure = outcome.failure or _no_text(outcome.value)
        return CheckResult(False, f"{start}: {failure.message}", failure.mistake)
    return CheckResult(
        False,
        f"{start}, with stop={stop!r}, your text is {short(text)!r} and the engine's {short(expected)!r}. Does your "
        "function sample with other settings than the greedy default?",
        "differs_on_model",
    )


def _generate_verdict(function: Any, case: Case, model: Any) -> CheckResult:
    if case.arguments == ("practice",):
        return generate_with_stop(function, model)
    prompt, stop, n = case.arguments
    ids = model.encode(prompt, add_special=True)
    with model.create_session(seq_len=64) as session:
        expected = "".join(t.piece for t in session.generate(ids, max_new_tokens=n)).split(stop)[0]
        session.reset()
        outcome = run(function, session, list(ids), stop, n, seconds=30)
    if outcome.failure or _as_text(outcome.value) == expected:
        return outcome.failure or CheckResult(True, GENERATE.praise)
    return CheckResult(False, "On another prompt your text and the engine's differ.", "differs_on_model")


def _prompts(rng: np.random.Generator, model: Any) -> list[Case]:
    what = str(rng.choice(["sea", "house", "garden", "river"]))
    cases = ((f"The {what} was", ".", 12), ("One, two, three,", "six", 16), (f"My {what} is", "###", 5))
    return [Case("a prompt", values) for values in cases]


GENERATE = Exercise(
    check="generate_with_stop",
    names=("generate_until",),
    points=(4, 1),
    shows="write a generation loop with a stop string",
    usual="`last_piece`: searched in the newest token alone; `token_dropped`, `stop_kept`, `stop_part_kept`; "
    "`same_token`; `prompt_again`; `past_end`, `end_kept`; `broken_characters`",
    mistake=(
        "last_piece",
        cleandoc("""
        def generate_until(session, prompt_ids, stop, max_new_tokens):
            session.eval(prompt_ids)
            ids = []
            while len(ids) < max_new_tokens:
                token = session.sample()
                if token in session.model.tokenizer.eog_ids or session.model.piece(token) == stop:
                    break
                ids.append(token)
                session.eval([token])
            return session.model.decode(ids)
    """),
    ),
    cases=(Case("", ("practice",)),),
    hidden_cases=_prompts,
    verdict=_generate_verdict,
    praise="The same text as the engine's.",
    seconds=30.0,
)

# ---- 5. who keeps a session alive ----


def _leak_verdict(puzzle: Any, case: Case, model: Any) -> CheckResult:
    result = leak_released(puzzle)
    if not result.ok or model is None:
        return result
    try:
        with model.create_session(seq_len=16) as another:
            another.eval(model.encode("Still here"))
    except TeachLlamaError as e:
        return CheckResult(False, f"The session is gone, but the model was closed on the way: {e}.", "model_closed")
    return result


LEAK = Exercise(
    check="leak_released",
    names=("puzzle",),
    points=(3, 1),
    shows="find out what keeps memory alive",
    usual="`name_only`: deleting a name taken for freeing; `closed_only`; `collected_only`; `view`; `cycle`",
    mistake=(
        "name_only",
        cleandoc("""
        puzzle = check.leak_puzzle(model)
        session, stories, picture, on_token = puzzle
        del session
    """),
    ),
    cases=(Case("", ()),),
    verdict=_leak_verdict,
    cell=True,
)

LESSON = Lesson(
    "04_sessions_and_memory",
    cleandoc("""
        import os

        import teachllama as tl
        from teachllama import check, memory, show
        from teachllama.check.core import assert_right

        model = tl.load_model(os.environ.get("TEACHLLAMA_MODEL", "smollm2-135m"))
        model.config.seq_len = min(model.config.seq_len, 768)
        with model.create_session(seq_len=8) as session:
            session.eval([1])  # kernels may be compiled now, and say so: in a graded cell that would count as an error
    """),
    (CACHE, SESSIONS, CALCULATORS, GENERATE, LEAK),
)
