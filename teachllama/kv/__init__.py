"""How large a KV cache is, and where a session's own is.

`formula` has the rule, `catalogue` what each architecture changes about it, `engines` what each engine adds, and
`explain` the mistakes that give other people's numbers. `pages` is memory that goes back to the system when told,
`cache` a session's keys and values in it.
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
