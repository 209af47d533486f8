"""The size of a KV cache, and its storage.

`formula` has the rule, `catalogue` the changes that each architecture makes to it, `engines` the additions of each
engine, and `explain` the mistakes that lead to wrong figures. `pages` is memory that can be returned to the operating
system, `stored` the formats of numbers, and `cache` a session's keys and values.
"""

from teachllama.kv.catalogue import kv_layout_from_metadata
from teachllama.kv.formula import (
    KV_DTYPES,
    MAX_SEQ_LEN,
    KVLayout,
    LayerKV,
    format_nbytes,
    kv_cache_bytes,
    longest_seq_len,
    positive,
)

__all__ = [
    "KV_DTYPES",
    "MAX_SEQ_LEN",
    "KVLayout",
    "LayerKV",
    "format_nbytes",
    "kv_cache_bytes",
    "kv_layout_from_metadata",
    "longest_seq_len",
    "positive",
]
