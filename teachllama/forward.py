"""The forward pass, written once: every family, every cache and every backend goes through this page.

`ops` does the arithmetic. `ops.NumpyOps` computes immediately: the reference, tested against llama.cpp.
`kernels.record.RecordingOps` computes nothing: it records each call, and compiled code replays the record.
Shapes: n rows of tokens, H query heads, G key/value heads, d and dv the lengths of a head's key and value.
"""

from __future__ import annotations

from typing import Any

from teachllama.spec import ModelSpec
from teachllama.weights import LayerWeights, Weights


def forward(ops: Any, spec: ModelSpec, w: Weights, batch: Any) -> Any:
    """Tokens in, logits out. https://arxiv.org/abs/1706.03762, https://arxiv.org/abs/2302.13971

    Args:
        ops: the operations. Optional steps, such as a norm, return their input if their weight or setting is None.
        batch: rows of tokens, their positions and caches, and the m rows whose logits are wanted.

    Returns:
        logits, (m, vocab_size).
    """
    x = ops.embed(w.embedding, batch, spec.embedding_scale)  # (n, dim): the residual stream
    for i, (s, l) in enumerate(zip(spec.layers, w.layers, strict=True)):
        h = ops.norm(x, l.attn_norm)
        h = (latent_attention if s.attention.latent else attention)(ops, i, s.attention, l, h, batch)
        x = ops.add(x, h, l.post_attention_norm, spec.residual_scale)
        h = ops.norm(x, l.ffn_norm)
        h = ops.gated(h, l.ffn, s.ffn) if s.ffn.experts is None else mixture(ops, s.ffn, l, h)
        x = ops.add(x, h, l.post_ffn_norm, spec.residual_scale)
    return ops.logits(x, w, spec, batch)


def attention(ops: Any, i: int, s: Any, l: LayerWeights, h: Any, batch: Any) -> Any:
    """Every token looks back at the tokens before it: h (n, dim) -> (n, dim)."""
    q, k, v = ops.linear(h, l.q), ops.linear(h, l.k), ops.linear(h, l.v)  # (n, H * d), (n, G * d), (n, G * dv)
    q, k = ops.norm(q, l.q_norm), ops.norm(k, l.k_norm)  # per head or over all heads, by the weight's length
    q, k = ops.rope(q, s, batch), ops.rope(k, s, batch)
    return ops.linear(ops.attend(i, q, k, v, s, l.sinks, batch), l.output)


def latent_attention(ops: Any, i: int, s: Any, l: LayerWeights, h: Any, batch: Any) -> Any:
    """DeepSeek's attention: one compressed key per position serves all heads. https://arxiv.org/abs/2405.04434"""
    q = ops.linear(h if l.q_a is None else ops.norm(ops.linear(h, l.q_a), l.q_a_norm), l.q)
    q = ops.linear_heads(q, l.k_b, s.n_heads)  # each head's unrotated numbers, mapped into the keys' space
    k = ops.concat(ops.norm(ops.linear(h, l.kv_a), l.kv_a_norm), ops.linear(h, l.k_rope))  # (n, d)
    q, k = ops.rope(q, s, batch), ops.rope(k, s, batch)
    h = ops.attend(i, q, k, None, s, None, batch)  # (n, H * rank)
    return ops.linear(ops.linear_heads(h, l.v_b, s.n_heads), l.output)


def mixture(ops: Any, s: Any, l: LayerWeights, h: Any) -> Any:
    """Each token visits the few experts its router chose, and perhaps a shared one. https://arxiv.org/abs/2401.04088"""
    out = ops.experts(h, l.experts, s)
    if l.shared is not None:
        shared = ops.gated(h, l.shared, s)
        out = ops.add(out, shared if l.shared_gate is None else ops.times_sigmoid(shared, ops.linear(h, l.shared_gate)))
    return out
