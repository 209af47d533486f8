"""The Llama that is trained: PyTorch's half of what `teachllama.model.forward` does. Knows nothing of text or files.

Names are GGUF's with dots for the layers (`layers.0.attn_q`), so that export is a loop. RoPE turns adjacent pairs of
numbers, as GGUF's `llama` expects; models published by Hugging Face turn halves, and are reordered when converted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The dimensions; every row is a multiple of 32 long, which is a block of Q8_0."""

    vocab_size: int = 1024
    n_layers: int = 6
    dim: int = 128
    hidden_dim: int = 384
    n_heads: int = 4
    n_kv_heads: int = 2
    seq_len: int = 512
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        kv_dim = s.n_kv_heads * s.head_dim
        self.attn_norm, self.ffn_norm = RMSNorm(s.dim, s.norm_eps), RMSNorm(s.dim, s.norm_eps)
        self.attn_q = nn.Linear(s.dim, s.dim, bias=False)
        self.attn_k = nn.Linear(s.dim, kv_dim, bias=False)
        self.attn_v = nn.Linear(s.dim, kv_dim, bias=False)
        self.attn_output = nn.Linear(s.dim, s.dim, bias=False)
        self.ffn_gate = nn.Linear(s.dim, s.hidden_dim, bias=False)
        self.ffn_up = nn.Linear(s.dim, s.hidden_dim, bias=False)
        self.ffn_down = nn.Linear(s.hidden_dim, s.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (batch, n, dim), cos and sin (n, head_dim / 2) -> (batch, n, dim)."""
        b, n, _ = x.shape
        s = self.shape
        h = self.attn_norm(x)
        q = rope(self.attn_q(h).view(b, n, s.n_heads, s.head_dim).transpose(1, 2), cos, sin)
        k = rope(self.attn_k(h).view(b, n, s.n_kv_heads, s.head_dim).transpose(1, 2), cos, sin)
        v = self.attn_v(h).view(b, n, s.n_kv_heads, s.head_dim).transpose(1, 2)
        share = s.n_heads // s.n_kv_heads  # query heads that share a KV head
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (b, heads, n, head_dim)
        x = x + self.attn_output(h.transpose(1, 2).reshape(b, n, s.dim))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    """ids (batch, n) -> logits (batch, n, vocab_size). The table of tokens is also the output matrix."""

    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.token_embd = nn.Embedding(s.vocab_size, s.dim)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.n_layers))
        self.output_norm = RMSNorm(s.dim, s.norm_eps)
        frequencies = s.rope_base ** (-torch.arange(0, s.head_dim, 2, dtype=torch.float64) / s.head_dim)
        angles = torch.arange(s.seq_len, dtype=torch.float64)[:, None] * frequencies  # (seq_len, head_dim / 2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                into_stream = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * s.n_layers) if into_stream else 0.05)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embd(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output_norm(x) @ self.token_embd.weight.T


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., n, head_dim): numbers 2i and 2i+1 turned by position times frequency i."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
