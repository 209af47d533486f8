"""teachllama: how large language models really run, small enough to read.

import teachllama as tl
with tl.load_model("smollm2-135m") as model, model.create_session(seq_len=256) as session:
    for token in session.generate("Once upon a time", max_new_tokens=40):
        print(token.piece, end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachllama import memory
    from teachllama.batching import eval_batch
    from teachllama.chat import Chat
    from teachllama.cluster import Cluster
    from teachllama.config import ModelConfig
    from teachllama.embeddings import embed
    from teachllama.errors import (
        ChatError,
        ClosedError,
        ContextFullError,
        FetchError,
        GGUFError,
        ParameterError,
        PoolFullError,
        SessionFileError,
        TeachLlamaError,
        TemplateError,
        TokenError,
        UnsupportedModelError,
    )
    from teachllama.families import Family, register_family
    from teachllama.generate import GenerationStats, Token
    from teachllama.gguf_file import GGUFFile, open_gguf
    from teachllama.kv import KVLayout, kv_cache_bytes, kv_layout_from_metadata
    from teachllama.looking import Alternative, LayerStep, Step, alternatives, attention_weights, decode_step
    from teachllama.model import Model, load_model
    from teachllama.pool import Pool
    from teachllama.prefix_file import PrefixesInfo, inspect_prefixes
    from teachllama.prefixes import Prefixes
    from teachllama.request import Request
    from teachllama.sampling import SamplingParams
    from teachllama.scheduler import Event, Scheduler
    from teachllama.session import Session
    from teachllama.session_file import SessionInfo, inspect_session
    from teachllama.spec import ModelSpec
    from teachllama.speculation import Draft, DraftModel, Guesses, PromptLookup
    from teachllama.threads import set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Alternative",
    "Chat",
    "ChatError",
    "ClosedError",
    "Cluster",
    "ContextFullError",
    "Draft",
    "DraftModel",
    "Event",
    "Family",
    "FetchError",
    "GGUFError",
    "GGUFFile",
    "GenerationStats",
    "Guesses",
    "KVLayout",
    "LayerStep",
    "Model",
    "ModelConfig",
    "ModelSpec",
    "ParameterError",
    "Pool",
    "PoolFullError",
    "Prefixes",
    "PrefixesInfo",
    "PromptLookup",
    "Request",
    "SamplingParams",
    "Scheduler",
    "Session",
    "SessionFileError",
    "SessionInfo",
    "Step",
    "TeachLlamaError",
    "TemplateError",
    "Token",
    "TokenError",
    "UnsupportedModelError",
    "alternatives",
    "attention_weights",
    "decode_step",
    "embed",
    "eval_batch",
    "inspect_prefixes",
    "inspect_session",
    "kv_cache_bytes",
    "kv_layout_from_metadata",
    "load_model",
    "memory",
    "open_gguf",
    "register_family",
    "set_num_threads",
]

# A module is imported when a name of it is used first: a program that only generates needs half of them.
_MODULES = {
    "batching": "eval_batch",
    "chat": "Chat",
    "cluster": "Cluster",
    "config": "ModelConfig",
    "embeddings": "embed",
    "errors": "ChatError ClosedError ContextFullError FetchError GGUFError ParameterError "
    "PoolFullError SessionFileError TeachLlamaError TemplateError TokenError UnsupportedModelError",
    "families": "Family register_family",
    "generate": "GenerationStats Token",
    "gguf_file": "GGUFFile open_gguf",
    "kv": "KVLayout kv_cache_bytes kv_layout_from_metadata",
    "looking": "Alternative LayerStep Step alternatives attention_weights decode_step",
    "model": "Model load_model",
    "pool": "Pool",
    "prefix_file": "PrefixesInfo inspect_prefixes",
    "prefixes": "Prefixes",
    "request": "Request",
    "sampling": "SamplingParams",
    "scheduler": "Event Scheduler",
    "session": "Session",
    "session_file": "SessionInfo inspect_session",
    "spec": "ModelSpec",
    "speculation": "Draft DraftModel Guesses PromptLookup",
    "threads": "set_num_threads",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """https://peps.python.org/pep-0562/"""
    if name.startswith("_"):  # __main__ would run
        raise AttributeError(f"module 'teachllama' has no attribute {name!r}")
    try:
        module = import_module(f"teachllama.{_MODULE_OF.get(name, name)}")
    except ModuleNotFoundError as e:
        if e.name != f"teachllama.{name}":
            raise
        raise AttributeError(f"module 'teachllama' has no attribute {name!r}") from None
    value = getattr(module, name) if name in _MODULE_OF else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
