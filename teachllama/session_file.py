"""Session files: token ids, keys and values layer by layer in the cache's own type, logits.

The header has the position, the random state, and the fingerprints of model and tokenizer. `checked_file.py` has the
container, and the checks that all such files share. Everything else is checked here, before a session is created.
Anyone who can write the file can put words into the conversation, but can't run code or access memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import reprlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama.checked_file import CheckedFile, Fields, Tensor, check_target, dtype_name, write
from teachllama.errors import ParameterError, SessionFileError, TeachLlamaError
from teachllama.fingerprint import SHORT, TEXTS, Fingerprint
from teachllama.generate import GenerationStats
from teachllama.kv import MAX_SEQ_LEN

if TYPE_CHECKING:
    from teachllama.kv.cache import KVCache
    from teachllama.model import Model
    from teachllama.session import Session

MAX_SEED = 2**4096
# A cache's types as NumPy types; other types are stored as bytes.
KINDS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The contents of a session file, without keys and values: the result of `inspect_session`."""

    path: str
    nbytes: int
    version: int
    made_by: str
    model: Fingerprint
    tokens: np.ndarray  # int32 (n_past,)
    seq_len: int
    kv_dtype: str | tuple[str, str]
    swa_full: bool
    can_rewind_to: int
    seed: int | None
    has_logits: bool
    stats: GenerationStats
    messages: list[Message] | None  # of a chat
    tensors: tuple[Tensor, ...]

    @property
    def n_past(self) -> int:
        """How many positions are in the file."""
        return len(self.tokens)

    @property
    def kv_nbytes(self) -> int:
        """Bytes of keys and values in the file."""
        return sum(t.nbytes for t in self.tensors if t.name.startswith("layer."))


# Writing --------------------------------------------------------------------------------------------------------------


def save(session: Session, path: str | os.PathLike[str], messages: list[Message] | None = None) -> None:
    """Writes a session, which must not be used meanwhile; see `Session.save`.

    Args:
        messages: the messages of a chat, stored with it.
    """
    path = os.fsdecode(path)
    check_target(path)
    if session.seed is not None and session.seed >= MAX_SEED:
        raise SessionFileError(f"{path}: the session's seed is above 2**4096; give it a smaller one", "too large")
    texts = {} if messages is None else {"messages": json.dumps(messages)}
    write(SessionFile, path, _arrays_of(session), _header_of(session), texts)


def _arrays_of(session: Session) -> dict[str, np.ndarray]:
    """Copies of everything that becomes a tensor: contiguous, in the cache's own types."""
    arrays = {"tokens": np.array(session.tokens, np.int32)}
    if session._logits is not None:
        arrays["logits"] = np.ascontiguousarray(session._logits, np.float32)
    for layer in range(len(session._cache.shapes)):
        for name, array in held(session._cache, layer, session.n_past).items():
            arrays[f"layer.{layer}.{name}"] = array
    return arrays


def held(cache: KVCache, layer: int, n_past: int) -> dict[str, np.ndarray]:
    """Copies of a layer's first `n_past` positions, as stored: "k", and "v" if it has separate values.

    A sliding-window layer's begin at `kept_from`. Shapes are (n_kv_heads, positions, numbers), or bytes of blocks.
    """
    rows = cache.raw(layer, n_past, first_held(cache, layer))
    pairs = zip("kv", cache.types, rows, strict=True)
    return {name: r.view(KINDS.get(kind, np.uint8)) for name, kind, r in pairs if r.shape[-1]}


def first_held(cache: KVCache, layer: int) -> int:
    """The first position that a layer holds."""
    return 0 if cache.windows[layer] is None else cache.kept_from


def _header_of(session: Session) -> dict[str, Any]:
    from teachllama import __version__

    state = session._rng.bit_generator.state
    return {
        "made_by": f"teachllama {__version__}, {session.model.backend}",
        "model": dataclasses.asdict(session.model.fingerprint),
        "n_past": session.n_past,
        "seq_len": session.seq_len,
        "kv_dtype": session.kv_dtype,
        "swa_full": session._cache.swa_full,
        "kept_from": session._cache.kept_from,
        "can_rewind_to": session._cache.can_rewind_to,
        "seed": None if session.seed is None else hex(session.seed),
        "random": {
            "bit_generator": state["bit_generator"],
            "state": hex(state["state"]["state"]),
            "inc": hex(state["state"]["inc"]),
            "has_uint32": state["has_uint32"],
            "uinteger": state["uinteger"],
        },
        "stats": dataclasses.asdict(session.stats),
    }


# Reading --------------------------------------------------------------------------------------------------------------


class SessionFile(CheckedFile, reader="model.load_session()"):
    """An open session file; `header` has its fields."""

    FORMAT, VERSION, FIELD = "teachllama session", 1, "session"
    NAME, WRITER = "session file", "session.save()"

    header: _Header

    def _check_header(self) -> None:
        self.header = _Header(self)

    def _check_shapes(self) -> None:
        tokens, n = self.table.get("tokens"), self.header.n_past
        if tokens is None or (tokens.dtype, tokens.shape) != ("I32", (n,)):
            found = f"{tokens.dtype} {tokens.shape}" if tokens else "none"
            self.fail(f"n_past is {n}, so tensor 'tokens' must be I32 ({n},); found {found}")


class _Header(Fields):
    """The fields of a session's header."""

    def __init__(self, file: SessionFile):
        super().__init__(file)
        values = self.values
        self.seq_len = self._whole(values.get("seq_len"), "seq_len", 1, MAX_SEQ_LEN)
        self.n_past = self._whole(values.get("n_past"), "n_past", 0, self.seq_len)
        self.kept_from = self._whole(values.get("kept_from"), "kept_from", 0, self.n_past)
        self.can_rewind_to = self._whole(values.get("can_rewind_to"), "can_rewind_to", 0, self.n_past)
        self.swa_full = self._whole(values.get("swa_full"), "swa_full", 0, 1) == 1
        self.seed = None if values.get("seed") is None else self._hex(values["seed"], "seed", MAX_SEED)
        self.random = self._random(values.get("random"))
        self.stats = self._stats(values.get("stats"))
        self.messages: list[Message] | None = None
        if "messages" in file.metadata:
            self.messages = self._messages(self._json("messages", list))

    def _random(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or value.get("bit_generator") != "PCG64":
            self._fail("random", value, "the state of a PCG64 generator")
        numbers = {key: self._hex(value.get(key), f"random.{key}", 2**128) for key in ("state", "inc")}
        return {
            "bit_generator": "PCG64",
            "state": numbers,
            "has_uint32": self._whole(value.get("has_uint32"), "random.has_uint32", 0, 1),
            "uinteger": self._whole(value.get("uinteger"), "random.uinteger", 0, 2**32 - 1),
        }

    def _stats(self, value: Any) -> GenerationStats:
        if not isinstance(value, dict):
            self._fail("stats", value, "figures of the last generation")
        stats = GenerationStats()
        for name in value.keys() & GenerationStats.__dataclass_fields__.keys():
            kind = type(getattr(stats, name))
            if type(value[name]) is not kind or (kind is float and not math.isfinite(value[name])):
                self._fail(f"stats.{name}", value[name], kind.__name__)
            setattr(stats, name, value[name])
        return stats

    def _messages(self, value: list[Any]) -> list[Message]:
        for message in value:
            texts = isinstance(message, dict) and all(isinstance(text, str) for text in message.values())
            if not texts or message.keys() != {"role", "content"}:
                self._fail("messages", message, "role and content")
        return value


def inspect_session(path: str | os.PathLike[str], *, verify: bool = True) -> SessionInfo:
    """Reads a session file; needs no model.

    Args:
        verify: compare all checksums, which reads the whole file; otherwise only the header and the tokens are checked.

    Raises:
        SessionFileError: the file is not a session file, or it is damaged.
    """
    with SessionFile(path) as file:
        h, tokens = file.header, file.read("tokens")
        for name in file.table if verify else ():
            file.read(name)
        return SessionInfo(
            file.path, file.nbytes, file.version, h.made_by, h.model, tokens, h.seq_len, h.kv_dtype, h.swa_full,
            h.can_rewind_to, h.seed, "logits" in file.table, h.stats, h.messages, tuple(file.table.values()),
        )  # fmt: skip


# Loading --------------------------------------------------------------------------------------------------------------


def load(
    model: Model,
    path: str | os.PathLike[str],
    *,
    rebuild: bool = False,
    kv_dtype: Any = None,
    seq_len: int | None = None,
    swa_full: bool | None = None,
    create: Callable[..., Session] | None = None,
) -> Session:
    """Creates a session in the state that a file holds; see `Model.load_session`.

    Args:
        create: creates the session, with the arguments of `Model.create_session`.
    """
    model.weights  # raises if the model is closed
    with SessionFile(path) as file:
        h = file.header
        why = difference(file, model)
        if why is not None and not why.can_rebuild:
            raise why
        tokens = file.read("tokens")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < model.config.vocab_size:
            file.fail(f"it holds token ids outside the vocabulary, 0 to {model.config.vocab_size - 1}")
        why = why or _unlike(file, model, kv_dtype, seq_len, swa_full)
        outdated = file.version < file.VERSION
        if why is not None and not rebuild and not outdated:
            raise why
        seq_len = h.seq_len if seq_len is None else int(seq_len)
        # A cache's tables of pages may take this, whatever is written: 16 bytes per 64 positions of a layer.
        file.check_memory(seq_len // 4 * model.config.n_layers, f"a session of {seq_len:,} positions")
        session = _created(
            file,
            create or model.create_session,
            seq_len=seq_len,
            kv_dtype=h.kv_dtype if kv_dtype is None else kv_dtype,
            seed=h.seed,
            swa_full=h.swa_full if swa_full is None else swa_full,
        )
        try:
            restored = why is None and not outdated
            if restored:
                try:
                    _restore(session, file, tokens)
                except SessionFileError as e:
                    if not (rebuild and e.can_rebuild):
                        raise
                    restored = False
            if not restored:
                session.reset()
                if len(tokens):
                    session.eval(tokens)
                if "logits" not in file.table:
                    session._logits = None
            session._rng.bit_generator.state = h.random
            session.seed, session.stats = h.seed, h.stats
            session.restored = len(tokens) if restored else 0
            session._loaded = (session.restored, len(tokens) - session.restored)
        except BaseException:
            session.close()
            raise
    return session


def restore(session: Session, path: str | os.PathLike[str]) -> None:
    """Puts an existing session into the state that a file holds, whole or not at all. Errors: see `Model.load_session`.

    Its seq_len, kv_dtype and swa_full stay; a file that does not suit them is refused.
    """
    settings = {"kv_dtype": session.kv_dtype, "seq_len": session.seq_len, "swa_full": session._cache.swa_full}
    with session.lock:
        session._check_free()
        twin = lambda *, seed, **_: session._twin(seed)  # a pool's session stays in the pool
        with load(session.model, path, create=twin, **settings) as loaded:  # type: ignore[arg-type]
            # No calls from here on, so an interrupt comes before or after these statements.
            session._cache, loaded._cache = loaded._cache, session._cache
            session.tokens, session._logits = loaded.tokens, loaded._logits
            session._rng, session.seed, session.stats = loaded._rng, loaded.seed, loaded.stats
            session.restored, session._loaded = loaded.restored, loaded._loaded


def difference(file: CheckedFile, model: Model) -> SessionFileError | None:
    """The error for a file whose keys and values are not this model's, with the reason; None if they are."""
    theirs, ours = file.header.model, model.fingerprint
    differ = {f for f in Fingerprint.__dataclass_fields__ if f not in TEXTS and getattr(theirs, f) != getattr(ours, f)}
    if not differ:
        return None
    whose = f"it was saved by {reprlib.repr(theirs.name)} ({theirs.arch}, {theirs.quantization})"
    here = f"this model is {ours.name!r} ({ours.arch}, {ours.quantization})"
    load_that = "load it with the model it was saved by"
    if "structure" in differ:
        return file.refusal(f"{whose}, another model: tensors or settings differ; {here}; {load_that}", "other model")
    if tokenizer := differ & {"vocabulary", "merges", "rules", "probe"}:
        what = {
            "vocabulary": "the texts or types of its tokens",
            "merges": "the order in which pieces are merged (merges or scores)",
            "rules": "its rules (pre-tokenizer, special tokens, what is added)",
            "probe": "the ids it gives to a probe text: the tokenizer's code has changed",
        }
        named = "; ".join(text for name, text in what.items() if name in tokenizer)
        return file.refusal(
            f"it was saved with another tokenizer than this model's. What differs: {named}. The same text would have "
            f"other ids from here on; {load_that}",
            "other tokenizer",
        )
    if "types" in differ and "vectors" not in differ:
        return file.refusal(
            f"{whose}: another quantization of this model, whose keys and values are not quite these weights'; {here}; "
            f"{load_that}",
            "other quantization",
            can_rebuild=True,
        )
    if "weights" in differ:
        return _other_weights(file, model)
    if "rope" in differ:
        return file.refusal(
            "its keys were rotated with other RoPE settings (frequencies, scaling, base) than this model's; "
            f"{load_that}",
            "other rope",
            can_rebuild=True,
        )
    return file.refusal(
        f"{file.header.made_by} computed this model otherwise than the teachllama that is running now (a family "
        "registered differently, or a newer version)",
        "other settings",
        can_rebuild=True,
    )


def _other_weights(file: CheckedFile, model: Model) -> SessionFileError:
    theirs, ours = file.header.model, model.fingerprint
    names = model._identity.names
    pairs = (
        (theirs.tensors[i * SHORT : (i + 1) * SHORT], ours.tensors[i * SHORT : (i + 1) * SHORT])
        for i in range(len(names))
    )
    differ = [name for name, (a, b) in zip(names, pairs, strict=True) if a != b] or names
    first = ", ".join(map(repr, differ[:3])) + (", ..." if len(differ) > 3 else "")
    same_vectors = theirs.vectors == ours.vectors
    return file.refusal(
        f"it was saved by a model of the same shape and other weights: {len(differ)} of {len(names)} tensors differ "
        f"({first}); load it with the model it was saved by",
        "other weights" if same_vectors else "other model",
        can_rebuild=same_vectors,
    )


def _unlike(
    file: SessionFile, model: Model, kv_dtype: Any, seq_len: int | None, swa_full: bool | None
) -> SessionFileError | None:
    """The error for a file that does not hold a session with the requested settings; None if it does."""
    h = file.header
    if seq_len is not None:
        if isinstance(seq_len, bool) or not isinstance(seq_len, (int, np.integer)) or seq_len < max(1, h.n_past):
            file.fail(
                f"it holds {h.n_past:,} positions, and seq_len is {seq_len!r}; expected at least that many", "seq_len"
            )
        ropes = [layer.attention.rope for layer in model.spec.layers]
        if any(rope and rope.at_length(seq_len) != rope.at_length(h.seq_len) for rope in ropes):
            return file.refusal(
                f"a session of {seq_len:,} positions rotates keys by other frequencies than one of {h.seq_len:,}, "
                "which this file's was (LongRoPE); leave seq_len as it is",
                "other rope",
                can_rebuild=True,
            )
    if kv_dtype is not None and kv_dtype != h.kv_dtype:
        return file.refusal(
            f"its cache is of type {h.kv_dtype}, and kv_dtype {kv_dtype!r} was asked for; leave kv_dtype out",
            "other cache type",
            can_rebuild=True,
        )
    if swa_full and not h.swa_full and h.kept_from:
        return file.refusal(
            "swa_full was asked for, and the file's sliding-window layers no longer hold positions before "
            f"{h.kept_from:,}; leave swa_full out",
            "window",
            can_rebuild=True,
        )
    return None


def _created(file: SessionFile, create: Callable[..., Session], **settings: Any) -> Session:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its creation warned of a seq_len above the native context
            return create(**settings)
    except ParameterError as e:
        reason = "other cache type" if "kv_dtype" in str(e) else "memory"
        raise file.refusal(f"no session can be made for it: {e}", reason) from None
    except (TeachLlamaError, MemoryError) as e:  # a pool that is closed
        raise file.refusal(f"no session can be made for it: {e}", "memory") from None


def _restore(session: Session, file: SessionFile, tokens: np.ndarray) -> None:
    """Fills a new session from a file that belongs to its model."""
    h, cache, n_past = file.header, session._cache, len(tokens)
    windows = [w for w in cache.windows if w is not None]
    if h.kept_from and (not windows or h.kept_from > n_past - max(windows) + 1):
        file.fail(
            f"it says that sliding-window layers hold positions from {h.kept_from:,} on, of {n_past:,}; the next token "
            f"attends to {max(windows, default=0):,}, which is more than there are",
            "window",
            can_rebuild=True,
        )
    try:
        cache.prepare(0, n_past)
    except TeachLlamaError as e:  # a pool that is full
        raise file.refusal(f"there is no room for it: {e}", "memory") from None
    cache.kept_from = cache.whole_from = h.kept_from
    if cache.swa_full == h.swa_full and cache.can_rewind_to != h.can_rewind_to:
        file.fail(f"it says can_rewind_to {h.can_rewind_to:,}; expected {cache.can_rewind_to:,}", can_rebuild=True)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"tokens": ("I32", (n_past,))}
    if "logits" in file.table:
        expected["logits"] = ("F32", (session.model.config.vocab_size,))
    for layer in range(len(cache.shapes)):
        for name, none in _none_of(cache, layer).items():
            shape = (none.shape[0], n_past - first_held(cache, layer), none.shape[2])
            expected[f"layer.{layer}.{name}"] = (dtype_name(none.dtype), shape)
    file.check_tensors(expected, every=True, can_rebuild=True)
    file.check_memory(sum(t.nbytes for t in file.table.values()), "this session")

    def put(layer: int) -> None:
        rows = {name: file.read(f"layer.{layer}.{name}").view(np.uint8) for name in _none_of(cache, layer)}
        none = np.empty((0, 0, 0), np.uint8)
        cache.write_raw(layer, rows.get("k", none), rows.get("v", none), first_held(cache, layer))

    with ThreadPoolExecutor(2) as pool:  # reading, hashing and copying release Python's lock
        list(pool.map(put, range(len(cache.shapes))))  # raises the errors of `put`
    if cache.kept_from:
        cache._give_back_before(cache.kept_from)
    session._logits = file.read("logits") if "logits" in file.table else None
    session.tokens = tokens.tolist()
    cache.forget_before(n_past)  # the file may have more positions of sliding-window layers than needed


def _none_of(cache: KVCache, layer: int) -> dict[str, np.ndarray]:
    """`held` for zero positions: it has the names, types and shapes."""
    pairs = zip("kv", cache.types, cache.raw(layer, 0, 0), strict=True)
    return {name: rows.view(KINDS.get(kind, np.uint8)) for name, kind, rows in pairs if rows.shape[-1]}
