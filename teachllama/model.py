"""`load_model`, `Model`, and the forward pass, written once.

A model is read-only and expensive; it creates sessions and knows nothing of sampling.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from teachllama import hub, ops
from teachllama.arch import ARCHS, Arch
from teachllama.config import ModelConfig, config_from_metadata
from teachllama.errors import ClosedError, GGUFError, ParameterError, UnsupportedModelError
from teachllama.gguf_file import GGUFFile, TensorInfo, open_gguf
from teachllama.tokenizer import Tokenizer, tokenizer_from_metadata
from teachllama.weights import F32Matrix, F32Store

if TYPE_CHECKING:
    from teachllama.kv_cache import KVCache
    from teachllama.session import Session

MOST_SCORES = 1 << 24  # attention scores of one batch: 64 MB of float32
MOST_BATCH = 512


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights. Matrices that multiply the same input are stacked, so that one product serves them."""

    qkv: F32Matrix  # (n_heads * head_dim + n_kv_heads * (head_dim + value_dim), dim)
    attn_output: F32Matrix  # (dim, n_heads * value_dim)
    gate_up: F32Matrix  # (2 * hidden_dim, dim)
    ffn_down: F32Matrix  # (dim, hidden_dim)
    norms: dict[str, np.ndarray]  # by GGUF's names: attn_norm, ffn_norm, ...: (dim,) or (head_dim,)


@dataclass(slots=True)
class Weights:
    """Every weight of a model, and the store that owns their memory."""

    store: F32Store
    embedding: F32Matrix  # (vocab_size, dim)
    output: F32Matrix  # (vocab_size, dim); the embedding itself where the file has no other
    output_norm: np.ndarray  # (dim,)
    rope_divisors: np.ndarray | None  # (rope_dim / 2,)
    layers: list[Layer] = field(default_factory=list)


def forward(model: Model, tokens: np.ndarray, start: int, cache: KVCache, *, all_logits: bool = False) -> np.ndarray:
    """The forward pass: tokens (n,) at positions start to start + n -> logits.

    Writes the tokens' keys and values to the cache and attends to what is there before them.

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

    def __init__(self, file: GGUFFile):
        self.path = file.path
        self.config: ModelConfig = config_from_metadata(file.metadata)
        self.arch: Arch = ARCHS[self.config.arch]
        self.tokenizer: Tokenizer = tokenizer_from_metadata(file.metadata)
        self.chat_template: str | None = file.metadata.get("tokenizer.chat_template")
        self._weights: Weights | None = _load_weights(file, self.config, self.arch, self.tokenizer.vocab_size)
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
        return sorted((s for s in self._sessions if not s.closed), key=lambda s: s.number)

    def close(self) -> None:
        """Gives the weights' memory back to the operating system. Its sessions can then no longer evaluate."""
        weights, self._weights = self._weights, None
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


def load_model(path: str | os.PathLike[str], *, weights: str = "f32") -> Model:
    """Loads a model from a GGUF file, or by a name that `teachllama models` lists.

    Args:
        path: a .gguf file, or a known name such as "smollm2-135m" that was fetched before.
        weights: "f32": every weight dequantized to float32.

    Raises:
        FetchError: no such file or name; the message says which command fetches it.
        GGUFError: the file is damaged, or its metadata or tensors contradict each other.
        UnsupportedModelError: the file is sound, but this engine does not run it.
    """
    if weights != "f32":
        raise ParameterError(f"weights is {weights!r}; this version holds weights as 'f32'")
    with open_gguf(hub.find(path)) as file:
        return Model(file)


def _load_weights(file: GGUFFile, c: ModelConfig, arch: Arch, n_tokens: int) -> Weights:
    """Checks the tensor table against the config, all of it, and only then reserves memory and dequantizes."""
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

    store = F32Store(file, used)
    try:
        embed = F32Matrix(store.load(embedding))
        result = Weights(
            store,
            embed,
            F32Matrix(store.load(output)) if output else embed,
            store.load(output_norm),
            store.load(divisors) if divisors else None,
        )
        for q, k, v, attn_output, gate, up, down, norms in plan:
            result.layers.append(
                Layer(
                    F32Matrix(store.load(q, k, v)),
                    F32Matrix(store.load(attn_output)),
                    F32Matrix(store.load(gate, up)),
                    F32Matrix(store.load(down)),
                    {name: store.load(info) for name, info in norms.items()},
                )
            )
    except BaseException:
        store.close()
        raise
    return result
