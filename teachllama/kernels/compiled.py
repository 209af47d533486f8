"""A model's forward pass on compiled kernels: checks everything, writes the tables `layout.py` reads, and calls it.

Compiled code trusts every number it is given, so this is the only way in.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from teachllama import ops, threads
from teachllama.errors import ClosedError
from teachllama.kernels import cache as compiled_cache
from teachllama.kernels import layout
from teachllama.kernels.layout import BLOCK, CHUNK, PANEL, WIDTH
from teachllama.kernels.team import team
from teachllama.pages import Pages

if TYPE_CHECKING:
    from teachllama.arch import Arch
    from teachllama.config import ModelConfig
    from teachllama.kv_cache import KVCache
    from teachllama.model import Weights

NORMS = {  # a layer's fields -> their names in a file
    layout.ATTN_NORM: "attn_norm",
    layout.FFN_NORM: "ffn_norm",
    layout.Q_NORM: "attn_q_norm",
    layout.K_NORM: "attn_k_norm",
    layout.POST_ATTENTION_NORM: "post_attention_norm",
    layout.POST_FFW_NORM: "post_ffw_norm",
}


def why_not(c: ModelConfig) -> str | None:
    """What keeps a model from running on these kernels, in words; None if nothing does."""
    if sys.byteorder != "little":
        return "the kernels read GGUF's little-endian numbers as they are, and this processor is big-endian"
    for name, size, unit in (
        ("embedding_length", c.dim, 32),
        ("feed_forward_length", c.hidden_dim, 32),
        ("attention.key_length", c.head_dim, 16),
        ("attention.value_length", c.value_dim, 16),
        ("attention.head_count times value_length", c.n_heads * c.value_dim, 32),
    ):
        if size % unit:
            return f"{name} is {size}; the kernels need a multiple of {unit}"
    return None


class CompiledForward:
    """`forward` for one model. It holds addresses into the weights, and so the weights themselves."""

    def __init__(self, config: ModelConfig, arch: Arch, weights: Weights):
        self._config, self._arch, self._weights = config, arch, weights
        self._serve = compiled_cache.serve()
        self._plan = self._written_plan()
        self._workspace: Pages | None = None
        self._closed = False

    def _written_plan(self) -> np.ndarray:
        c, arch, w = self._config, self._arch, self._weights
        plan = np.zeros(layout.N_PLAN + c.n_layers * layout.N_LAYER, np.int64)
        numbers = plan.view(np.float32)[::2]  # the low half of each
        plan[layout.N_LAYERS], plan[layout.DIM], plan[layout.HIDDEN_DIM] = c.n_layers, c.dim, c.hidden_dim
        plan[layout.HEADS], plan[layout.KV_HEADS] = c.n_heads, c.n_kv_heads
        plan[layout.HEAD_DIM], plan[layout.VALUE_DIM], plan[layout.VOCAB] = c.head_dim, c.value_dim, c.vocab_size
        plan[layout.GELU], plan[layout.QK_NORM] = arch.activation == "gelu", arch.qk_norm
        plan[layout.POST_NORMS] = arch.post_norms
        plan[layout.ROPE_PAIRS], plan[layout.ROPE_HALVES] = c.rope_dim // 2, arch.rope_pairs == "halves"
        numbers[layout.EPS], numbers[layout.ATTENTION_SCALE] = c.norm_eps, c.attention_scale
        numbers[layout.EMBEDDING_SCALE] = np.sqrt(c.dim) if arch.scale_embeddings else 1
        ((plan[layout.EMBEDDING_TYPE], plan[layout.EMBEDDING], _),) = w.embedding.parts()
        ((plan[layout.OUTPUT_TYPE], plan[layout.OUTPUT], _),) = w.output.parts()
        plan[layout.OUTPUT_NORM] = w.output_norm.ctypes.data
        for i, weights in enumerate(w.layers):
            layer = plan[layout.N_PLAN + i * layout.N_LAYER :][: layout.N_LAYER]
            matrices = (weights.qkv, weights.attn_output, weights.gate_up, weights.ffn_down)
            parts = [part for matrix in matrices for part in matrix.parts()]
            for at, (kind, address, _) in zip(range(0, 14, 2), parts, strict=True):
                layer[at], layer[at + 1] = address, kind
            for field, name in NORMS.items():
                layer[field] = weights.norms[name].ctypes.data if name in weights.norms else 0
            window = c.kv_layout.layers[i].window
            layer[layout.WINDOW], layer[layout.LOCAL_ANGLES] = window or 0, window is not None
        return plan

    def __call__(self, tokens: np.ndarray, start: int, cache: KVCache, *, all_logits: bool = False) -> np.ndarray:
        """As `model.forward`: tokens (n,) intp, checked by the session -> logits (n or 1, vocab_size)."""
        n, softcap = len(tokens), self._config.logit_softcap
        if 1 < n < FEW and not all_logits:  # too few to fill a tile: one by one is faster
            for i in range(n - 1):
                self(tokens[i : i + 1], start + i, cache)
            return self(tokens[-1:], start + n - 1, cache)
        logits = self._run(self._plan, self._config.vocab_size, tokens, start, cache, all_logits)
        return np.tanh(logits / np.float32(softcap)) * np.float32(softcap) if softcap else logits

    def hidden_states(self, tokens: np.ndarray, cache: KVCache) -> np.ndarray:
        """tokens (n,) intp at position 0 -> their final hidden states, after the output norm, (n, dim)."""
        dim = self._config.dim
        unit = np.eye(dim, dtype=np.float32)  # in place of the output matrix: what it is given comes out
        plan = self._plan.copy()
        plan[layout.OUTPUT_TYPE], plan[layout.OUTPUT], plan[layout.VOCAB] = 0, unit.ctypes.data, dim
        return self._run(plan, dim, tokens, 0, cache, True)

    def _run(
        self, plan: np.ndarray, n_outputs: int, tokens: np.ndarray, start: int, cache: KVCache, all_logits: bool
    ) -> np.ndarray:
        c, arch, n = self._config, self._arch, len(tokens)
        keys, values = cache.arrays()
        tokens = np.ascontiguousarray(tokens, np.int64)
        if not n or start < 0 or start + n > keys.shape[2] or tokens.min() < 0 or tokens.max() >= c.vocab_size:
            raise ValueError("tokens or positions out of range")  # a mistake of ours: sessions check before
        n_threads = threads.get_num_threads()
        positions = np.arange(start, start + n)
        angles = ops.rope_angles(positions, c.rope_dim, c.rope_base, c.rope_factor, self._weights.rope_divisors)
        tables = [_angle_table(angles[:, 0], n)]
        if arch.local_rope_base:
            local = ops.rope_angles(positions, c.rope_dim, arch.local_rope_base, 1.0, None)
            tables.append(_angle_table(local[:, 0], n))
        logits = np.empty((n if all_logits else 1, n_outputs), np.float32)

        job = np.zeros(layout.N_JOB, np.int64)
        job[layout.N_TOKENS], job[layout.START], job[layout.TOKENS] = n, start, tokens.ctypes.data
        job[layout.KEYS], job[layout.VALUES], job[layout.SEQ_LEN] = keys.ctypes.data, values.ctypes.data, keys.shape[2]
        job[layout.HALF] = keys.dtype == np.float16
        job[layout.ANGLES], job[layout.ANGLES_LOCAL] = tables[0].ctypes.data, tables[-1].ctypes.data
        job[layout.ALL_LOGITS], job[layout.LOGITS] = all_logits and n > 1, logits.ctypes.data
        crew = team(self._serve)
        with crew.turn:
            if self._closed:  # while this call waited: the addresses lead nowhere now
                raise ClosedError("the model was closed while this evaluation waited; load it again")
            self._reserve(job, n, start, n_threads)
            crew.run(plan, job, n_threads)
            if n > 1 and self._workspace is not None:  # a prefill's is large; what is measured later is caches alone
                self._workspace.give_back(0, self._workspace.nbytes)
        return logits

    def _reserve(self, job: np.ndarray, n: int, start: int, n_threads: int) -> None:
        """Lays the call's buffers out in the workspace, one mapping that grows when a call needs more."""
        c = self._config
        q_rows, mixed_rows = c.n_heads * c.head_dim, c.n_heads * c.value_dim
        qkv_rows = q_rows + c.n_kv_heads * (c.head_dim + c.value_dim)
        longest = max(c.dim, c.hidden_dim, mixed_rows)
        wide = BLOCK * max(c.head_dim, c.value_dim)
        if n == 1:
            parts = c.n_heads * ((start + CHUNK) // CHUNK) * (c.value_dim + 16)
            sizes = {
                layout.X: 0,
                layout.H: c.dim,
                layout.QKV: qkv_rows,
                layout.MIXED: parts,
                layout.GATES: 2 * c.hidden_dim,
            }
            heads = c.n_heads // c.n_kv_heads
            private = 2 * c.dim + q_rows + c.head_dim + mixed_rows + longest + heads * CHUNK + wide
        else:
            m = -(-n // WIDTH) * WIDTH
            sizes = {layout.X: m * c.dim, layout.H: m * c.dim, layout.QKV: m * qkv_rows, layout.MIXED: m * mixed_rows}
            sizes[layout.GATES] = 2 * m * c.hidden_dim
            private = max(PANEL * (longest + WIDTH), (start + n + WIDTH) * WIDTH + wide)
        private = _aligned(4 * private)
        total = sum(_aligned(4 * size) for size in sizes.values()) + n_threads * private
        if self._workspace is None or self._workspace.closed or self._workspace.nbytes < total:
            if self._workspace is not None:
                self._workspace.close()  # an interrupt may come after this
            self._workspace = Pages(total + total // 4)
        at = self._workspace.array(0, (1,), np.uint8).ctypes.data
        for field, size in sizes.items():
            job[field] = at
            at += _aligned(4 * size)
        job[layout.PRIVATE], job[layout.PRIVATE_NBYTES] = at, private

    def close(self) -> None:
        """Gives the workspace back. Waits for a call that is still running."""
        with team(self._serve).turn:
            self._closed = True
            if self._workspace is not None:
                self._workspace.close()


FEW = 4  # tokens


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def _angle_table(rotations: np.ndarray, n: int) -> np.ndarray:
    """rotations (n, pairs) complex -> cosines, then sines: (2 * pairs,) of one token, or tiles (2 * pairs, width)."""
    both = np.concatenate([rotations.real, rotations.imag], axis=1)  # (n, 2 * pairs)
    if n == 1:
        return np.ascontiguousarray(both)
    tiles = []
    for first in range(0, n, WIDTH):
        part = both[first : first + WIDTH]
        width = WIDTH if n - first > 16 else 16
        tiles.append(np.pad(part, ((0, width - len(part)), (0, 0))).T.ravel())
    return np.concatenate(tiles)
