"""Llama 1 to 3, Mistral, Mixtral, TinyLlama, SmolLM2: the plain case, dense or with experts."""

from teachllama.families.common import Family

LLAMA = Family("llama", "the plain case; Mixtral adds experts", "https://arxiv.org/abs/2302.13971")
