"""The exercises of lesson 10, sessions in files: size, a fingerprint, what a crash leaves, and a load that refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from inspect import cleandoc
from typing import Any

import numpy as np

from teachllama.lessons.common.check import CheckResult, a_type, run
from teachllama.lessons.common.exercise import Case, Exercise, Fault, Lesson

# ---- 1. the size of a file ----


def _sizes(*of: tuple[int, int, int, int, int]) -> list[Case]:
    return [
        Case(f"{layers} layers, {kv} numbers, {n_past} of {seq_len} positions, {nbytes} bytes a number",
             (np.array([layers, kv, n_past, seq_len, 49_152]), nbytes))
        for layers, kv, n_past, seq_len, nbytes in of
    ]  # fmt: skip


def _other_sizes(rng: np.random.Generator, model: Any) -> list[Case]:
    return _sizes(
        *((int(n), 64 * int(g), int(p), 9000, b) for n, g, p, b in zip(*rng.integers(3, 60, (3, 3)), (2, 4, 2)))
    )


def _exactly(a: Any, b: Any) -> bool:
    return bool(np.size(a) == np.size(b) and np.array_equal(np.ravel(a), np.ravel(b)))


SIZE = Exercise(
    check="file_bytes",
    names=("file_bytes",),
    points=(1, 1),
    shows="count the bytes of a session file",
    usual="`whole_cache`: positions that were never written; `no_v`; `no_tokens`, `no_logits`; `logits_too_small`: in "
    "the cache's type; `logits_each`: of every position; `one_layer`; `numbers`",
    mistake=(
        "whole_cache",
        cleandoc("""
        def file_bytes(shape, nbytes):
            n_layers, kv_dim, n_past, seq_len, vocab_size = shape
            return 2 * n_layers * seq_len * kv_dim * nbytes + 4 * n_past + 4 * vocab_size
    """),
    ),
    right=lambda s, b: 2 * s[0] * s[1] * s[2] * b + 4 * s[2] + 4 * s[4],
    cases=tuple(_sizes((30, 192, 1000, 8192, 4), (30, 192, 1000, 8192, 2), (18, 256, 77, 512, 2))),
    hidden_cases=_other_sizes,
    faults=(
        Fault(
            "whole_cache",
            lambda s, b: 2 * s[0] * s[1] * s[3] * b + 4 * s[2] + 4 * s[4],
            "Every position of the cache is counted. Those that were never written are not in the file.",
        ),
        Fault("no_v", lambda s, b: s[0] * s[1] * s[2] * b + 4 * s[2] + 4 * s[4], "Keys are there, and values are not."),
        Fault(
            "no_tokens",
            lambda s, b: 2 * s[0] * s[1] * s[2] * b + 4 * s[4],
            "The token ids are missing: without them nobody could rebuild it.",
        ),
        Fault(
            "no_logits",
            lambda s, b: 2 * s[0] * s[1] * s[2] * b + 4 * s[2],
            "The logits are missing, without which the next token can't be chosen.",
        ),
        Fault(
            "logits_too_small",
            lambda s, b: 2 * s[0] * s[1] * s[2] * b + 4 * s[2] + b * s[4],
            "The logits take the cache's type here: they are always float32.",
        ),
        Fault(
            "logits_each",
            lambda s, b: 2 * s[0] * s[1] * s[2] * b + 4 * s[2] + 4 * s[4] * s[2],
            "Logits are counted for every position: only the last one's are of use.",
        ),
        Fault("one_layer", lambda s, b: 2 * s[1] * s[2] * b + 4 * s[2] + 4 * s[4], "That is one layer's cache."),
        Fault(
            "numbers",
            lambda s, b: 2 * s[0] * s[1] * s[2] + s[2] + s[4],
            "That is how many numbers; bytes are wanted.",
        ),
    ),
    same=_exactly,
    praise="Keys and values of what was written, the ids, one row of logits. A header of some kilobytes comes on top.",
)

# ---- 2. a fingerprint ----

Tensors = Mapping[str, bytes]
_MODEL: Tensors = {
    "embed": bytes(range(48)),
    "blk.0": b"\x01\x02\x03" * 9,
    "blk.1": b"\x07" * 27,
    "norm": b"\x10\x20\x30\x40",
}


def _changed(at: str, i: int, by: int = 1) -> Tensors:
    data = bytearray(_MODEL[at])
    data[i] ^= by
    return {**_MODEL, at: bytes(data)}


def _fingerprint(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{len(name)}:{name}{len(tensors[name])}:".encode() + tensors[name])
    return digest.hexdigest()


_REORDERED = dict(reversed(list(_MODEL.items())))
_TRADED = {**_MODEL, "blk.0": _MODEL["blk.1"], "blk.1": _MODEL["blk.0"]}
_RENAMED = {("blk.2" if name == "blk.1" else name): data for name, data in _MODEL.items()}
# (name of the mistake, another model, whether it is the same model, the text if the answer disagrees)
_PAIRS: tuple[tuple[str, Tensors, bool, str], ...] = (
    ("unstable", dict(_MODEL), True, "The same model gets two fingerprints: is something random in it, or an address?"),
    ("order", _REORDERED, True, "The same tensors in another order get another fingerprint: files list them in any."),
    ("one_bit", _changed("blk.1", 26), False, "One bit of one weight has changed, at the end of a tensor, and the "
     "fingerprint has not. Every byte must count."),
    ("start_only", _changed("embed", 47), False, "A change at the end of the first tensor goes unnoticed: a part of "
     "the bytes is not enough."),
    ("sums", {**_MODEL, "embed": _MODEL["embed"][::-1]}, False, "The same bytes in another order get the same "
     "fingerprint: a sum can't tell them apart."),
    ("names_ignored", _TRADED, False, "Two layers have traded their weights, and the fingerprint is the same: names "
     "count, too."),
    ("names_ignored", _RENAMED, False, "A tensor has another name, and the fingerprint is the same: names count, too."),
    ("values_only", _changed("norm", 0), False, "A norm has changed, and the fingerprint has not."),
    ("missing_tensor", {k: v for k, v in _MODEL.items() if k != "norm"}, False, "A tensor is missing, and the "
     "fingerprint is the same."),
)  # fmt: skip


def _tried(function: Any, case: Case, model: Any) -> CheckResult:
    """Compares a learner's fingerprints of two models."""
    name, other, same, text = case.arguments
    if not callable(function):
        return CheckResult(
            False, f"A function is wanted; this is {a_type(function)}. Give the function itself, uncalled.", "type"
        )
    found = []
    for tensors in (_MODEL, other):
        outcome = run(lambda t=tensors: _text(function(dict(t))))
        if outcome.failure is not None:
            return outcome.failure
        if isinstance(outcome.value, CheckResult):
            return outcome.value
        found.append(outcome.value)
    if (found[0] == found[1]) is same:
        return CheckResult(
            True, "Every byte and every name counts, and nothing else does. Sorting the names was the trick."
        )
    return CheckResult(False, text, name, f"The first model's tensors: {_shown(_MODEL)}; the other's: {_shown(other)}.")


def _text(value: Any) -> Any:
    if value is None or value is ...:
        return CheckResult(False, "Your function returns nothing (None): does it end in `return`?", "unanswered")
    if not isinstance(value, (str, bytes, int)):
        return CheckResult(
            False, f"Your function returns {a_type(value)}; a text, such as a digest, is wanted.", "type"
        )
    return str(value)


def _shown(tensors: Tensors) -> str:
    return ", ".join(f"{name} {data[:3].hex()}...{data[-3:].hex()}" for name, data in tensors.items())


def _other_models(rng: np.random.Generator, model: Any) -> list[Case]:
    places = [(name, int(rng.integers(len(data)))) for name, data in _MODEL.items()]
    return [
        Case(f"a change in {name}", ("one_bit", _changed(name, i, 1 << int(rng.integers(8))), False, _PAIRS[2][3]))
        for name, i in places
    ] + [Case(name, (name, other, same, text)) for name, other, same, text in _PAIRS[:2]]


FINGERPRINT = Exercise(
    check="fingerprint",
    names=("fingerprint",),
    points=(2, 1),
    shows="identify a model by all of its bytes",
    usual="`order`: depends on how a file lists its tensors; `one_bit`, `start_only`: not every byte counts; `sums`: "
    "bytes may trade places; `names_ignored`: tensors may; `values_only`, `missing_tensor`; `unstable`: Python's own "
    "hash, or an address",
    mistake=(
        "order",
        cleandoc("""
        def fingerprint(tensors):
            digest = hashlib.sha256()
            for name, data in tensors.items():
                digest.update(name.encode() + data)
            return digest.hexdigest()
    """),
    ),
    cases=tuple(Case(text, (name, other, same, text)) for name, other, same, text in _PAIRS),
    hidden_cases=_other_models,
    verdict=_tried,
)

# ---- 3. what a crash leaves ----

_STEPS = (
    ("nothing happened", ()),
    ("it is written in place", (("write", "talk"),)),
    ("it is written in place and flushed", (("write", "talk"), ("flush", "talk"))),
    ("a draft is written", (("write", "draft"),)),
    ("a draft is flushed", (("write", "draft"), ("flush", "draft"))),
    ("a draft is flushed and moved", (("write", "draft"), ("flush", "draft"), ("move", "draft", "talk"))),
    ("a draft is moved unflushed", (("write", "draft"), ("move", "draft", "talk"))),
    ("a draft is moved, then flushed in its place", (("write", "draft"), ("move", "draft", "talk"), ("flush", "talk"))),
    ("another file is flushed", (("write", "talk"), ("write", "draft"), ("flush", "draft"))),
    ("it is moved away", (("move", "talk", "backup"),)),
    ("it is moved away and a draft comes", (("move", "talk", "backup"), ("write", "draft"), ("flush", "draft"),
                                            ("move", "draft", "talk"))),
    ("the old file is flushed once more", (("flush", "talk"),)),
    ("a draft that is not there is moved", (("flush", "draft"), ("move", "draft", "talk"))),
    ("a backup comes back", (("move", "talk", "backup"), ("write", "talk"), ("move", "backup", "talk"))),
)  # fmt: skip


def _crash(steps: Any, *, flush: bool = True, in_place: str = "half", moves: bool = True, away: bool = True) -> str:
    disk = {"talk": "old"}
    for step in steps:
        if step[0] == "write":
            disk[step[1]] = in_place if flush else "new"
        elif step[0] == "flush":
            if disk.get(step[1]) == "half":
                disk[step[1]] = "new"
        elif moves and step[1] in disk:
            disk[step[2]] = disk[step[1]]
            if away:
                del disk[step[1]]
    return disk.get("talk", "missing")


def _other_steps(rng: np.random.Generator, model: Any) -> list[Case]:
    names = ("talk", "draft", "backup")
    cases = []
    for n in (2, 3, 4, 5, 6):
        steps: list[tuple[str, ...]] = []
        there = {"talk"}
        for _ in range(n):
            kind = ("write", "flush", "move")[int(rng.integers(3))]
            a, b = rng.permutation(names)[:2].tolist()
            a = a if kind == "write" or a in there else sorted(there)[0] if there else "draft"
            if kind != "write" and a not in there:
                kind = "write"
            if kind == "move":
                b = b if b != a else next(x for x in names if x != a)
                there = (there - {a}) | {b}
            there |= {a} if kind == "write" else set()
            steps.append((kind, a, b) if kind == "move" else (kind, a))
        cases.append(Case("a series of steps", (steps,)))
    return cases


def _word(*words: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value is None or value is ...:
            return CheckResult(False, "Your function returns nothing (None): does it end in `return`?", "unanswered")
        if not isinstance(value, str):
            return CheckResult(False, f"Your function returns {a_type(value)}; one of {', '.join(words)}.", "type")
        text = value.strip().lower()
        if text not in words:
            return CheckResult(False, f"Your function returns {value[:40]!r}; one of {', '.join(words)}.", "type")
        return text

    return read


CRASH = Exercise(
    check="after_crash",
    names=("after_crash",),
    points=(2, 1),
    shows="say what a crash leaves of a file",
    usual="`always_new`: writing taken for being on the disk; `old_until_flushed`: the old content is gone at once; "
    "`copied`: a move taken for a copy; `never_moved`; `flush_enough`; `last_step`",
    mistake=(
        "always_new",
        cleandoc("""
        def after_crash(steps):
            disk = {"talk": "old"}
            for step in steps:
                if step[0] == "write":
                    disk[step[1]] = "new"
                elif step[0] == "move":
                    disk[step[2]] = disk.pop(step[1])
            return disk.get("talk", "missing")
    """),
    ),
    right=_crash,
    cases=tuple(Case(about, (list(steps),)) for about, steps in _STEPS),
    hidden_cases=_other_steps,
    faults=(
        Fault(
            "always_new",
            lambda s: _crash(s, flush=False),
            "What was written is taken to be on the disk. Until it is flushed, a crash may leave a part of it.",
        ),
        Fault(
            "old_until_flushed",
            lambda s: _crash(s, in_place="old") if ("flush", "talk") not in s else "new",
            "Before the flush the old content is expected. Writing in place destroys it at once.",
        ),
        Fault(
            "copied",
            lambda s: _crash(s, away=False),
            "After a move the file is still under its first name, too: that would be a copy.",
        ),
        Fault("never_moved", lambda s: _crash(s, moves=False), "Moves change nothing here."),
        Fault(
            "flush_enough",
            lambda s: "new" if any(x[0] == "flush" for x in s) else _crash(s),
            "A flush is taken for the end of it: it has to be the flush of the file that ends up under the name.",
        ),
        Fault(
            "last_step",
            lambda s: _crash(s[-1:]),
            "Only the last step is looked at. What the steps before it did decides, too.",
        ),
    ),
    read=_word("old", "new", "half", "missing"),
    same=lambda a, b: bool(a == b),
    praise="Write a draft, flush it, move it: after each of these steps a reader finds the old file or the new one.",
)

# ---- 4. a load that refuses ----

RESTORE, REBUILD, REFUSE = "restore", "rebuild", "refuse"
HERE: Mapping[str, Any] = {"version": 3, "model": "smol", "quantization": "Q4_1", "vocab_size": 100}


def checksum(array: Any) -> str:
    """The same function as in the notebook."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _file(n: int = 6, positions: int | None = None, signed: bool = True, **changes: Any) -> dict[str, Any]:
    """A valid file with `changes`. Its checksums are those after the changes if `signed`, otherwise those before."""
    tokens = np.arange(n, dtype=np.int32) * 7 % 90
    keys = np.linspace(-1, 1, 2 * (n if positions is None else positions) * 4, dtype=np.float32).reshape(2, -1, 4)
    file = {"version": 3, "model": "smol", "quantization": "Q4_1", "tokens": tokens, "keys": keys}
    sums = {"tokens_checksum": checksum(tokens), "keys_checksum": checksum(keys)}
    file |= changes
    if signed:
        sums = {f"{name}_checksum": checksum(file[name]) for name in ("tokens", "keys")}
    return file | sums


def _flipped(name: str, at: int = 5, n: int = 6) -> dict[str, Any]:
    file = _file(n)
    array = np.array(file[name])
    array.reshape(-1).view(np.uint32)[at] ^= 1
    return file | {name: array}


def _files() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("an honest file", _file()),
        ("a version from tomorrow", _file(version=4)),
        ("another model", _file(model="gemma")),
        ("another quantization of this model", _file(quantization="Q8_0")),
        ("one bit of a key flipped", _flipped("keys")),
        ("one bit of a token flipped", _flipped("tokens")),
        ("keys for fewer positions than tokens, checksums right", _file(positions=5)),
        ("keys for more positions than tokens, checksums right", _file(positions=8)),
        ("a token outside the vocabulary, checksums right", _file(tokens=np.array([3, 100, 4, 5, 6, 7], np.int32))),
        ("a token below zero, checksums right", _file(tokens=np.array([3, -1, 4, 5, 6, 7], np.int32))),
        ("an older version", _file(version=2)),
        ("an older version with a flipped token", {**_flipped("tokens"), "version": 2}),
        ("another quantization with a flipped token", {**_flipped("tokens"), "quantization": "Q8_0"}),
        ("another model in an older version", _file(model="gemma", version=1)),
        ("an honest file of one token", _file(1)),
        ("a quantization to half precision", _file(quantization="F16")),
        ("a token far outside the vocabulary, checksums right", _file(tokens=np.array([3, 999, 4, 5, 6, 7], np.int32))),
        *(("another bit of a key flipped", _flipped("keys", at)) for at in (0, 2, 17, 36, 47)),
        *(("another bit of a token flipped", _flipped("tokens", at)) for at in (0, 1, 2, 3)),
    ]


def _decide(
    file: Mapping[str, Any], here: Mapping[str, Any], *, newer: str = REFUSE, older: str = REBUILD, model: str = REFUSE,
    quantization: str = REBUILD, tokens: str = REFUSE, vocabulary: str = REFUSE, keys: str = REBUILD,
    positions: str = REBUILD,
) -> str:  # fmt: skip
    """The right decision. An argument of "" skips its question; another word changes its answer."""
    ids = np.asarray(file["tokens"])
    questions = (
        (newer, file["version"] > here["version"]),
        (model, file["model"] != here["model"]),
        (tokens, checksum(ids) != file["tokens_checksum"]),
        (vocabulary, bool(len(ids)) and not 0 <= int(ids.min()) <= int(ids.max()) < here["vocab_size"]),
        (older, file["version"] < here["version"]),
        (quantization, file["quantization"] != here["quantization"]),
        (keys, checksum(file["keys"]) != file["keys_checksum"]),
        (positions, file["keys"].shape[1] != len(ids)),
    )
    found = [answer for answer, yes in questions if answer and yes]
    return REFUSE if REFUSE in found else REBUILD if REBUILD in found else RESTORE


def _other_files(rng: np.random.Generator, model: Any) -> list[Case]:
    n = int(rng.integers(3, 9))
    files = [
        _file(n), _file(n, version=9), _file(n, model="phi"), _file(n, quantization="F16"), _file(n, version=1),
        _flipped("keys", int(rng.integers(2 * n * 4)), n), _flipped("tokens", int(rng.integers(n)), n),
        _file(n, positions=n - 1), _file(n, positions=n + 2),
        _file(n, tokens=np.append(np.arange(n - 1), 100 + int(rng.integers(9))).astype(np.int32)),
        _file(n, tokens=np.append(np.arange(n - 1), -3).astype(np.int32)),
    ]  # fmt: skip
    return [Case("a file", (file, dict(HERE))) for file in files]


def _fault(name: str, text: str, **answers: str) -> Fault:
    return Fault(name, lambda file, here: _decide(file, here, **answers), text)


DECIDE = Exercise(
    check="decide",
    names=("decide",),
    points=(3, 2),
    shows="write a load that refuses what must not be believed",
    usual="`newer_read`; `model_ignored`, `model_rebuilt`; `quantization_restored`, `quantization_refused`; "
    "`keys_believed`, `keys_refused`; `tokens_believed`, `tokens_rebuilt`; `positions_ignored`; `vocabulary_ignored`; "
    "`older_restored`, `older_refused`; `refuses_all`, `believes_all`",
    mistake=(
        "keys_believed",
        cleandoc("""
        def decide(file, here):
            if file["version"] > here["version"] or file["model"] != here["model"]:
                return "refuse"
            tokens = file["tokens"]
            if checksum(tokens) != file["tokens_checksum"]:
                return "refuse"
            if tokens.min() < 0 or tokens.max() >= here["vocab_size"]:
                return "refuse"
            if file["version"] < here["version"] or file["quantization"] != here["quantization"]:
                return "rebuild"
            return "restore" if file["keys"].shape[1] == len(tokens) else "rebuild"
    """),
    ),
    right=_decide,
    cases=tuple(Case(about, (file, dict(HERE))) for about, file in _files()),
    hidden_cases=_other_files,
    faults=(
        _fault(
            "newer_read",
            "A version from tomorrow is read as if its meaning were known: nobody here can know what it changed.",
            newer="",
        ),
        _fault(
            "newer_rebuilt",
            "A version from tomorrow is rebuilt: even its tokens may mean something else.",
            newer=REBUILD,
        ),
        _fault("model_ignored", "Another model's keys are taken for this one's: that gives fluent nonsense.", model=""),
        _fault(
            "model_rebuilt",
            "Another model's tokens are evaluated with this one: another model may have another vocabulary.",
            model=REBUILD,
        ),
        _fault(
            "quantization_restored",
            "Another quantization's keys are taken as they are: those are keys of slightly other weights.",
            quantization="",
        ),
        _fault(
            "quantization_refused",
            "Another quantization is refused, though its tokens are the same text to this model and can be evaluated.",
            quantization=REFUSE,
        ),
        _fault("keys_believed", "Keys with a flipped bit are restored: compare their checksum.", keys=""),
        _fault(
            "keys_refused", "Damaged keys are no reason to lose the conversation: its tokens are sound.", keys=REFUSE
        ),
        _fault("tokens_believed", "Tokens with a flipped bit are believed: compare their checksum.", tokens=""),
        _fault("tokens_rebuilt", "Damaged tokens are evaluated: that would be another text.", tokens=REBUILD),
        _fault(
            "positions_ignored",
            "Keys for another number of positions than there are tokens are restored. Checksums can be right in a file "
            "that makes no sense.",
            positions="",
        ),
        _fault(
            "positions_refused",
            "Keys that don't fit are no reason to lose the conversation: its tokens are sound.",
            positions=REFUSE,
        ),
        _fault(
            "vocabulary_ignored",
            "A token that the vocabulary does not have is let through. Checksums can be right in a file that makes no "
            "sense.",
            vocabulary="",
        ),
        _fault(
            "older_restored",
            "An older version's keys are taken as they are: who says they are laid out alike?",
            older="",
        ),
        _fault("older_refused", "An older version is refused, though its tokens can be evaluated again.", older=REFUSE),
        Fault("refuses_all", lambda file, here: REFUSE, "It refuses everything, the honest file too."),
        Fault("believes_all", lambda file, here: RESTORE, "It restores everything, whatever is in it."),
    ),
    read=_word(RESTORE, REBUILD, REFUSE),
    same=lambda a, b: bool(a == b),
    given=cleandoc("""
        def checksum(array):
            return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    """),
    praise="What can still be believed is used, and nothing else: the tokens are the conversation, keys only a saving.",
)

LESSON = Lesson(
    "10_a_session_that_survives",
    cleandoc("""
        import hashlib

        import numpy as np

        from teachllama.check import notebook10 as check
        from teachllama.check.core import assert_right
    """),
    (SIZE, FINGERPRINT, CRASH, DECIDE),
)
