"""`load_model` and `Model`: the read-only, expensive part, which creates sessions. Independent of sampling."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from teachllama import hub, threads
from teachllama.batch import Batch
from teachllama.config import ModelConfig
from teachllama.errors import ClosedError, GGUFError, ParameterError, UnsupportedModelError
from teachllama.fingerprint import Fingerprint, Identity
from teachllama.forward import forward
from teachllama.gguf_file import GGUFFile, open_gguf
from teachllama.kv.formula import KVDtype
from teachllama.loading import NATIVE, load_weights, spec_of
from teachllama.ops import NumpyOps
from teachllama.spec import ModelSpec
from teachllama.tokenizer import Tokenizer, tokenizer_from_metadata
from teachllama.weights import Weights

if TYPE_CHECKING:
    from teachllama.kernels.compiled import CompiledForward
    from teachllama.kv.cache import KVCache
    from teachllama.pool import Pool
    from teachllama.session import Session

MAX_SCORES = 1 << 24  # attention scores of one batch in NumPy: 64 MB of float32
MAX_BATCH = 512  # tokens of one batch


class HiddenStates(NumpyOps):
    """The forward pass up to the output norm."""

    def logits(self, x: np.ndarray, w: Weights, spec: ModelSpec, batch: Batch) -> np.ndarray:
        """Not logits, but the final hidden states of the wanted rows, (m, dim)."""
        return self.norm(x[batch.wanted], w.output_norm)


class Model:
    """A loaded model: read-only, shared by all its sessions. Make one with `load_model`.

    `config.seq_len` may be lowered before sessions are created. Use `close()`, or a `with` block, to free the weights'
    memory at once.
    """

    def __init__(self, file: GGUFFile, weights: str = "f32", backend: str | None = "numpy"):
        self.path = file.path
        self.spec, layout, reader = spec_of(file)
        name = str(file.metadata.get("general.name", "unnamed"))
        self.config = ModelConfig.of(self.spec, layout, name, reader.real("rope.freq_base", 10_000.0))
        self.tokenizer: Tokenizer = tokenizer_from_metadata(file.metadata)
        self.chat_template: str | None = file.metadata.get("tokenizer.chat_template")
        self.backend: str = _chosen_backend(backend, self.spec)
        native = None
        if weights == "native":
            from gguf import GGMLQuantizationType

            native = {GGMLQuantizationType[name] for name in NATIVE}
        if self.tokenizer.vocab_size != self.spec.vocab_size:  # a token without a row, or a row without a text
            raise GGUFError(
                f"{file.path}: the tokenizer has {self.tokenizer.vocab_size} tokens and the embedding "
                f"{self.spec.vocab_size} rows"
            )
        self._weights: Weights | None = load_weights(file, self.spec, native)
        self._compiled: CompiledForward | None = None
        if self.backend == "numba":
            from teachllama.kernels.compiled import CompiledForward

            self._compiled = CompiledForward(self.spec, self.weights)
        self.nbytes: int = self.weights.store.nbytes
        self._identity = Identity(file)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    @property
    def weights(self) -> Weights:
        """The weights; raises `ClosedError` after `close`."""
        if self._weights is None:
            raise ClosedError(f"model {self.config.name!r} was closed and its weights freed; load it again")
        return self._weights

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._weights is None

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False, errors: str = "strict"
    ) -> list[int]:
        """Text -> token ids.

        Args:
            add_special: prepend the beginning-of-text token, if the model expects one and the text does not begin with
                it.
            parse_special: read texts like `<|im_start|>` as the special tokens they name; leave it off for text from
                users, who could otherwise end their own turn.
            errors: "strict" raises `TokenError` for a byte that the vocabulary lacks; "drop" leaves it out.
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special, errors=errors)

    def decode(self, ids: Iterable[int]) -> str:
        """Token ids -> text. Raises `TokenError` for an id outside the vocabulary."""
        return self.tokenizer.decode(ids)

    def piece(self, token_id: int) -> str:
        """The text of one token; bytes that are not a whole character show as U+FFFD."""
        return self.tokenizer.piece(token_id)

    def create_session(
        self, *, seq_len: int | None = None, kv_dtype: KVDtype = "f32", seed: int | None = None, swa_full: bool = False
    ) -> Session:
        """A new session: one generation's state.

        Args:
            seq_len: how many positions its KV cache holds; by default `config.seq_len`. More than the model was trained
                for is allowed, with a warning.
            kv_dtype: "f32"; "f16" or "bf16" for half the memory; "q8_0" or "q4_0" for about a quarter or a seventh, if
                the heads' lengths are multiples of 32; or a pair for keys and values, such as ("q8_0", "f16").
            seed: seed of its random numbers; None draws a fresh one.
            swa_full: keep all positions of sliding-window layers.

        Raises:
            ParameterError: seq_len is not positive or too large to reserve; kv_dtype is unknown; or the heads' lengths
                are not multiples of its blocks.
        """
        from teachllama.session import Session

        session = Session(self, self.config.seq_len if seq_len is None else seq_len, kv_dtype, seed, swa_full)
        self._sessions.add(session)
        return session

    def create_pool(self, *, nbytes: int, kv_dtype: KVDtype = "f32") -> Pool:
        """Memory for many sessions, which take pages of 64 positions from it as they grow.

        Create the sessions with `pool.create_session()`.

        Raises:
            ParameterError: nbytes does not hold one page for each layer, or kv_dtype is not a type of cache.
        """
        from teachllama.pool import Pool

        return Pool(self, nbytes, kv_dtype)

    def load_session(
        self,
        path: str | os.PathLike[str],
        *,
        rebuild: bool = False,
        kv_dtype: str | None = None,
        seq_len: int | None = None,
        swa_full: bool | None = None,
    ) -> Session:
        """Restores a session that `session.save` wrote, with the same positions, logits, and random state.

        Everything in the file is checked first, against itself and against this model. `session.restored` says how many
        positions came from the file: all of them, or none.

        Args:
            rebuild: if the keys and values can't be used, but the tokens can (another quantization of this model, other
                RoPE settings, a damaged cache), evaluate the tokens again instead of refusing.
            kv_dtype, seq_len, swa_full: the settings that the session must have; None takes the file's.

        Raises:
            SessionFileError: the file is refused; `reason` names the cause, and the message explains what to do.
            TeachLlamaError: any error of evaluating the tokens, when rebuilding.
        """
        from teachllama import session_file

        return session_file.load(self, path, rebuild=rebuild, kv_dtype=kv_dtype, seq_len=seq_len, swa_full=swa_full)

    @property
    def fingerprint(self) -> Fingerprint:
        """Digests of weights, configuration and tokenizer: session files are checked against them.

        The first call reads all weights, about one processor-second per gigabyte; later calls return the same object.
        """
        return self._identity.fingerprint(self.config.name, self.spec, self.tokenizer)

    @property
    def sessions(self) -> list[Session]:
        """The sessions that are open now, oldest first. The model itself does not keep them alive."""
        while True:
            try:
                return sorted((s for s in self._sessions if not s.closed), key=lambda s: s.number)
            except RuntimeError:  # another thread created a session, and the set changed while it was read
                continue

    def forward(self, tokens: np.ndarray, start: int, cache: KVCache, *, all_logits: bool = False) -> np.ndarray:
        """One session's next tokens -> logits: (n, vocab_size) if `all_logits`, else (1, vocab_size), the last's."""
        return self.run(Batch.of_one(tokens, start, cache, all_logits=all_logits))

    def run(self, batch: Batch) -> np.ndarray:
        """The forward pass, on the backend the model was loaded with: logits of the wanted rows, (m, vocab_size)."""
        compiled, weights = self._compiled, self.weights  # raises if the model is closed
        if compiled is not None:
            return compiled(batch)
        return self._with_numpy(NumpyOps(self.spec), weights, batch)

    def hidden_states(self, batch: Batch) -> np.ndarray:
        """Final hidden states of the wanted rows, after the output norm, (m, dim)."""
        compiled, weights = self._compiled, self.weights
        if compiled is not None:
            return compiled.hidden_states(batch)
        return self._with_numpy(HiddenStates(self.spec), weights, batch)

    def _with_numpy(self, ops: NumpyOps, weights: Weights, batch: Batch) -> np.ndarray:
        # In silu, exp of a large number is inf, and 1 / inf is the correct 0. sample() refuses logits that are NaN.
        with threads.products, np.errstate(over="ignore", invalid="ignore"):
            return forward(ops, self.spec, weights, batch)

    def max_batch(self, start: int) -> int:
        """How many tokens the backend takes at once, at position `start`: NumPy holds all their scores in memory."""
        if self._compiled is not None:
            return MAX_BATCH
        n_heads = max(layer.attention.n_heads for layer in self.spec.layers)
        return min(MAX_BATCH, max(16, MAX_SCORES // (n_heads * (start + MAX_BATCH))))

    def close(self) -> None:
        """Returns the weights' memory to the operating system. Its sessions can then no longer evaluate."""
        weights, self._weights = self._weights, None
        compiled, self._compiled = self._compiled, None
        if compiled is not None:
            compiled.close()
        if weights is not None:
            weights.store.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        c = self.config
        state = "closed" if self.closed else f"{self.nbytes / 1e6:,.0f} MB of weights"
        return f"<Model {c.name!r}: {c.arch}, {c.n_layers} layers, {state}>"


def load_model(path: str | os.PathLike[str], *, weights: str = "native", backend: str | None = None) -> Model:
    """Loads a model from a GGUF file, or by a name that `teachllama models` lists.

    Args:
        path: a .gguf file, or the name of a downloaded model, such as "smollm2-135m".
        weights: "native" keeps the file's own blocks, memory-mapped. "f32" converts every weight to float32.
        backend: "numba" runs compiled kernels. "numpy" runs the reference, which is easy to read, and slow. None
            chooses "numba" where Numba is installed and the model's dimensions allow it.

    Raises:
        FetchError: no such file or name; the message names the command that downloads it.
        GGUFError: the file is damaged, or its metadata or tensors contradict each other.
        UnsupportedModelError: the file is valid, but this engine, or the requested backend, does not run it.
        ParameterError: weights or backend is not one of those above.
    """
    if weights not in ("native", "f32"):
        raise ParameterError(f"weights is {weights!r}; expected 'native' (the file's blocks) or 'f32'")
    if backend not in (None, "numba", "numpy"):
        raise ParameterError(f"backend is {backend!r}; expected 'numba', 'numpy', or None to choose")
    file = open_gguf(hub.find(path))
    try:
        model = Model(file, weights, backend)
    except BaseException:
        file.close()
        raise
    if weights == "f32":
        model._identity.read()  # while the file is open
        file.close()
    else:  # the file stays mapped; the tokenizer and the config have copies of its metadata
        file.metadata.clear()
        file.drop_pages()
    return model


def _chosen_backend(wanted: str | None, spec: ModelSpec) -> str:
    if wanted == "numpy":
        return "numpy"
    try:
        from teachllama.kernels.compiled import why_not
    except ImportError as e:
        if wanted is None:
            return "numpy"
        raise UnsupportedModelError(f"backend 'numba' needs Numba, which cannot be imported here: {e}") from None
    reason = why_not(spec)
    if reason is None:
        return "numba"
    if wanted is None:
        return "numpy"
    raise UnsupportedModelError(f"backend 'numba' does not run this model: {reason}. Use backend='numpy'")
