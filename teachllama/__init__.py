"""teachllama: how large language models really run, small enough to read.

import teachllama as tl
with tl.load_model("smollm2-135m") as model, model.create_session(seq_len=256) as session:
    for token in session.generate("Once upon a time", max_new_tokens=40):
        print(token.piece, end="")
"""

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
