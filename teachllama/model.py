"""`load_model`, `Model`, and the forward pass, written once.

A model is read-only and expensive; it creates sessions and knows nothing of sampling.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from teachllama import hub, ops
from teachllama.arch import ARCHS, Arch
from teachllama.config import ModelConfig, config_from_metadata
from teachllama.errors import ClosedError, GGUFError, ParameterError, UnsupportedModelError
from teachllama.gguf_file import GGUFFile, TensorInfo, open_gguf
from teachllama.tokenizer import Tokenizer, tokenizer_from_metadata
from teachllama.weights import BlockStore, F32Store, Matrix

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

    from teachllama.kernels.compiled import CompiledForward
    from teachllama.kv_cache import KVCache
    from teachllama.session import Session

Watch = Callable[[int, np.ndarray, Callable[[], np.ndarray]], None]
MOST_SCORES = 1 << 24  # attention scores of one batch: 64 MB of float32
MOST_BATCH = 512
# Types whose blocks the kernels multiply as they are; kernels/blocks.py has one function for each.
NATIVE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights. Matrices that multiply the same input are stacked, so that one product serves them."""

    qkv: Matrix  # (n_heads * head_dim + n_kv_heads * (head_dim + value_dim), dim)
    attn_output: Matrix  # (dim, n_heads * value_dim)
    gate_up: Matrix  # (2 * hidden_dim, dim)
    ffn_down: Matrix  # (dim, hidden_dim)
    norms: dict[str, np.ndarray]  # by GGUF's names: attn_norm, ffn_norm, ...: (dim,) or (head_dim,)


@dataclass(slots=True)
class Weights:
    """Every weight of a model, and the store that owns their memory."""

    store: F32Store
    embedding: Matrix  # (vocab_size, dim)
    output: Matrix  # (vocab_size, dim); the embedding itself where the file has no other
    output_norm: np.ndarray  # (dim,)
    rope_divisors: np.ndarray | None  # (rope_dim / 2,)
    layers: list[Layer] = field(default_factory=list)


def forward(
    model: Model,
    tokens: np.ndarray,
    start: int,
    cache: KVCache,
    *,
    all_logits: bool = False,
    watch: Watch | None = None,
) -> np.ndarray:
    """The forward pass: tokens (n,) at positions start to start + n -> logits.

    Writes the tokens' keys and values to the cache and attends to what is there before them.

    Args:
        watch: is called after each layer with its number, the residual stream (n, dim), to be copied by who wants to
            keep it, and a function that computes how the heads attended, (n_heads, n, T).

    Returns:
        float32 logits: (n, vocab_size) if `all_logits`, else the last token's (1, vocab_size).
    """
    c, arch, w = model.config, model.arch, model.weights
    n, heads, kv_heads = len(tokens), c.n_heads, c.n_kv_heads
    q_end, k_end = heads * c.head_dim, (heads + kv_heads) * c.head_dim
    activation = ops.silu if arch.activation == "silu" else ops.gelu

    positions = np.arange(start, start + n)
    angles = ops.rope_angles(positions, c.rope_dim, c.rope_base, c.rope_factor, w.rope_divisors)  # (n, 1, rope_dim/2)
    local_angles = angles
    if arch.local_rope_base:
        local_angles = ops.rope_angles(positions, c.rope_dim, arch.local_rope_base, 1.0, None)

    x = w.embedding.rows(tokens)  # (n, dim): the residual stream
    if arch.scale_embeddings:
        x *= np.float32(np.sqrt(c.dim))
    for i, layer in enumerate(w.layers):
        norms, window = layer.norms, c.kv_layout.layers[i].window

        # Attention: every token looks back at the tokens before it.
        h = ops.rmsnorm(x, norms["attn_norm"], c.norm_eps)
        qkv = layer.qkv.multiply(h)
        q = qkv[:, :q_end].reshape(n, heads, c.head_dim)
        k = qkv[:, q_end:k_end].reshape(n, kv_heads, c.head_dim)
        v = qkv[:, k_end:].reshape(n, kv_heads, c.value_dim)
        if arch.qk_norm:
            q, k = ops.rmsnorm(q, norms["attn_q_norm"], c.norm_eps), ops.rmsnorm(k, norms["attn_k_norm"], c.norm_eps)
        turn = angles if window is None else local_angles
        q, k = ops.rope(q, turn, arch.rope_pairs), ops.rope(k, turn, arch.rope_pairs)
        keys, values, n_ahead = cache.extend(i, start, k, v)  # (G, T, head_dim), (G, T, value_dim)
        h = ops.attention(q, keys, values, c.attention_scale, n_ahead, window)  # (n, n_heads * value_dim)
        h = layer.attn_output.multiply(h)  # (n, dim)
        if arch.post_norms:
            h = ops.rmsnorm(h, norms["post_attention_norm"], c.norm_eps)
        x += h

        # The feed-forward network: every token on its own. https://arxiv.org/abs/2002.05202
        h = ops.rmsnorm(x, norms["ffn_norm"], c.norm_eps)
        gate_up = layer.gate_up.multiply(h)  # (n, 2 * hidden_dim)
        h = activation(gate_up[:, : c.hidden_dim]) * gate_up[:, c.hidden_dim :]
        h = layer.ffn_down.multiply(h)  # (n, dim)
        if arch.post_norms:
            h = ops.rmsnorm(h, norms["post_ffw_norm"], c.norm_eps)
        x += h
        if watch is not None:
            watch(i, x, partial(ops.attention_weights, q, keys, c.attention_scale, n_ahead, window))

    if not all_logits:
        x = x[-1:]  # the vocabulary product is the largest of all: only where it is wanted
    logits = w.output.multiply(ops.rmsnorm(x, w.output_norm, c.norm_eps))  # (n or 1, vocab_size)
    if c.logit_softcap:
        logits = np.tanh(logits / np.float32(c.logit_softcap)) * np.float32(c.logit_softcap)
    return logits


class Model:
    """A loaded model: read-only, shared by all its sessions. Make one with `load_model`.

    `config.seq_len` may be lowered before sessions are created. Use `close()`, or a `with` block, to give the weights'
    memory back at once.
    """

    def __init__(self, file: GGUFFile, weights: str = "f32", backend: str | None = "numpy"):
        self.path = file.path
        self.config: ModelConfig = config_from_metadata(file.metadata)
        self.arch: Arch = ARCHS[self.config.arch]
        self.tokenizer: Tokenizer = tokenizer_from_metadata(file.metadata)
        self.chat_template: str | None = file.metadata.get("tokenizer.chat_template")
        self.backend: str = _chosen_backend(backend, self.config)
        native = None
        if weights == "native":
            from gguf import GGMLQuantizationType

            native = {GGMLQuantizationType[name] for name in NATIVE}
        self._weights: Weights | None = _load_weights(file, self.config, self.arch, self.tokenizer.vocab_size, native)
        self._compiled: CompiledForward | None = None
        if self.backend == "numba":
            from teachllama.kernels.compiled import CompiledForward

            self._compiled = CompiledForward(self.config, self.arch, self.weights)
        self.nbytes: int = self.weights.store.nbytes
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    @property
    def weights(self) -> Weights:
        """The weights; raises `ClosedError` after `close`."""
        if self._weights is None:
            raise ClosedError(f"model {self.config.name!r} was closed and its weights given back; load it again")
        return self._weights

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._weights is None

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Text -> token ids.

        Args:
            add_special: put the beginning-of-text token before it, where this model wants one.
            parse_special: read texts like `<|im_start|>` as the special tokens they name; leave it off for text from
                users, who could otherwise end their own turn.
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def decode(self, ids: Iterable[int]) -> str:
        """Token ids -> text. Raises `TokenError` for an id outside the vocabulary."""
        return self.tokenizer.decode(ids)

    def piece(self, token_id: int) -> str:
        """The text of one token; bytes that are not a whole character show as U+FFFD."""
        return self.tokenizer.piece(token_id)

    def create_session(
        self, *, seq_len: int | None = None, kv_dtype: str = "f32", seed: int | None = None, swa_full: bool = False
    ) -> Session:
        """A new session: one generation's state.

        Args:
            seq_len: positions its KV cache holds; `config.seq_len` at this moment if not given. More than the model was
                trained for is allowed, with a warning.
            kv_dtype: "f32", or "f16" for half the memory.
            seed: of its random numbers; None takes a fresh one.
            swa_full: keep all positions of sliding-window layers.

        Raises:
            ParameterError: seq_len is not positive or too large to reserve, or kv_dtype is unknown.
        """
        from teachllama.session import Session

        session = Session(self, self.config.seq_len if seq_len is None else seq_len, kv_dtype, seed, swa_full)
        self._sessions.add(session)
        return session

    @property
    def sessions(self) -> list[Session]:
        """The sessions that are open now, oldest first. The model itself does not keep them alive."""
        while True:
            try:
                return sorted((s for s in self._sessions if not s.closed), key=lambda s: s.number)
            except RuntimeError:  # another thread created one just now, and the set changed while it was read
                continue

    def forward(self, tokens: np.ndarray, start: int, cache: KVCache, *, all_logits: bool = False) -> np.ndarray:
        """The function `forward` for this model, on the backend it was loaded with. Sessions call it."""
        compiled = self._compiled
        self.weights  # raises if the model is closed
        if compiled is not None:
            return compiled(tokens, start, cache, all_logits=all_logits)
        return forward(self, tokens, start, cache, all_logits=all_logits)

    def close(self) -> None:
        """Gives the weights' memory back to the operating system. Its sessions can then no longer evaluate."""
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
        path: a .gguf file, or a known name such as "smollm2-135m" that was fetched before.
        weights: "native": the file's own blocks, memory-mapped, as they are. "f32": every weight made float32.
        backend: "numba": compiled kernels. "numpy": the reference, one page to read, and slow. None: compiled where
            Numba is installed and the model's dimensions allow it.

    Raises:
        FetchError: no such file or name; the message says which command fetches it.
        GGUFError: the file is damaged, or its metadata or tensors contradict each other.
        UnsupportedModelError: the file is sound, but this engine, or the backend asked for, does not run it.
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
        file.close()
    else:  # it stays mapped; its metadata is in the tokenizer and the config now, and would be held twice
        file.metadata.clear()
        file.drop_pages()
    return model


def _chosen_backend(wanted: str | None, config: ModelConfig) -> str:
    if wanted == "numpy":
        return "numpy"
    try:
        from teachllama.kernels.compiled import why_not
    except ImportError as e:
        if wanted is None:
            return "numpy"
        raise UnsupportedModelError(f"backend 'numba' needs Numba, which cannot be imported here: {e}") from None
    reason = why_not(config)
    if reason is None:
        return "numba"
    if wanted is None:
        return "numpy"
    raise UnsupportedModelError(f"backend 'numba' does not run this model: {reason}. Use backend='numpy'")


def _load_weights(
    file: GGUFFile, c: ModelConfig, arch: Arch, n_tokens: int, native: Container[GGMLQuantizationType] | None
) -> Weights:
    """Checks the tensor table against the config, all of it, and only then reserves memory and dequantizes.

    Args:
        native: types whose blocks stay as they are; None dequantizes everything.
    """
    tensors = dict(file.tensors)
    head_norms = ("attn_q_norm", "attn_k_norm")
    used: list[TensorInfo] = []

    def take(name: str, *shape: int) -> TensorInfo:
        info = tensors.pop(name, None)
        if info is None:
            raise GGUFError(f"{file.path}: has no tensor {name!r}, which every {c.arch} model needs")
        if info.shape != shape:
            raise GGUFError(f"{file.path}: tensor {name!r} has shape {info.shape}; the metadata makes it {shape}")
        used.append(info)
        return info

    embedding = take("token_embd.weight", c.vocab_size, c.dim)
    if n_tokens != c.vocab_size:
        raise GGUFError(f"{file.path}: the tokenizer has {n_tokens} tokens and the embedding {c.vocab_size} rows")
    output = take("output.weight", c.vocab_size, c.dim) if "output.weight" in tensors else None
    output_norm = take("output_norm.weight", c.dim)
    divisors = take("rope_freqs.weight", c.rope_dim // 2) if "rope_freqs.weight" in tensors else None
    plan = []
    for i in range(c.n_layers):
        p = f"blk.{i}."
        plan.append(
            (
                take(p + "attn_q.weight", c.n_heads * c.head_dim, c.dim),
                take(p + "attn_k.weight", c.kv_dim, c.dim),
                take(p + "attn_v.weight", c.n_kv_heads * c.value_dim, c.dim),
                take(p + "attn_output.weight", c.dim, c.n_heads * c.value_dim),
                take(p + "ffn_gate.weight", c.hidden_dim, c.dim),
                take(p + "ffn_up.weight", c.hidden_dim, c.dim),
                take(p + "ffn_down.weight", c.dim, c.hidden_dim),
                {
                    name: take(f"{p}{name}.weight", c.head_dim if name in head_norms else c.dim)
                    for name in arch.norm_names()
                },
            )
        )
    if tensors:
        names = ", ".join(sorted(tensors)[:4]) + (", ..." if len(tensors) > 4 else "")
        raise UnsupportedModelError(
            f"{file.path}: holds {len(tensors)} tensor(s) that this engine's {c.arch} does not use: {names}. "
            "Running without them would give wrong results, so it is refused"
        )

    store = F32Store(file, used) if native is None else BlockStore(file, used, native)
    try:
        embed = store.matrix(embedding)
        result = Weights(
            store,
            embed,
            store.matrix(output) if output else embed,
            store.vector(output_norm),
            store.vector(divisors) if divisors else None,
        )
        for q, k, v, attn_output, gate, up, down, norms in plan:
            result.layers.append(
                Layer(
                    store.matrix(q, k, v),
                    store.matrix(attn_output),
                    store.matrix(gate, up),
                    store.matrix(down),
                    {name: store.vector(info) for name, info in norms.items()},
                )
            )
    except BaseException:
        store.close()
        raise
    return result
