"""The architecture registry: what each family changes in the one forward pass, as data.

Knows nothing of how the forward pass uses these flags. To add a family, add an entry here, compare it with llama.cpp's
logits in `tests/`, and say in `docs/` where the figures came from.
"""

from __future__ import annotations

from dataclasses import dataclass

from teachllama.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Arch:
    """One family of models, as the differences from a plain Llama."""

    name: str
    rope_pairs: str = "adjacent"  # which two numbers of a head rotate together: "adjacent" (2i, 2i+1) or "halves"
    activation: str = "silu"  # of the gate in the feed-forward network: "silu" or "gelu" (tanh form)
    qk_norm: bool = False  # RMSNorm on each head of q and k, before RoPE
    post_norms: bool = False  # a second RMSNorm, after attention and after the feed-forward network
    scale_embeddings: bool = False  # multiply token embeddings by sqrt(dim)
    local_rope_base: float | None = None  # sliding-window layers rotate with this base and without scaling
    default_rope_base: float = 10_000.0

    def norm_names(self) -> tuple[str, ...]:
        """The one-dimensional tensors of a layer, as GGUF names them."""
        names: tuple[str, ...] = ("attn_norm", "ffn_norm")
        names += ("attn_q_norm", "attn_k_norm") if self.qk_norm else ()
        return names + (("post_attention_norm", "post_ffw_norm") if self.post_norms else ())


ARCHS = {
    # Llama 1 to 3, Mistral, TinyLlama, SmolLM2. https://arxiv.org/abs/2302.13971
    "llama": Arch("llama"),
    # Gemma 3, text. https://arxiv.org/abs/2503.19786; window and pattern of its layers are in kv_layout.py
    "gemma3": Arch(
        "gemma3",
        rope_pairs="halves",
        activation="gelu",
        qk_norm=True,
        post_norms=True,
        scale_embeddings=True,
        local_rope_base=10_000.0,
        default_rope_base=1_000_000.0,
    ),
}


def arch_named(name: object) -> Arch:
    """The entry for `general.architecture`.

    Raises:
        UnsupportedModelError: this engine does not run the architecture; the message lists those it does.
    """
    if not isinstance(name, str) or name not in ARCHS:
        raise UnsupportedModelError(
            f"architecture {name!r} is not supported; this engine runs {', '.join(sorted(ARCHS))}. "
            "`teachllama kv` and `teachllama inspect` work for any GGUF file"
        )
    return ARCHS[name]
