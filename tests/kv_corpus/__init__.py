"""A corpus of KV caches: headers, exact bytes, and what llama.cpp reserves for them. See docs/kv-corpus.md."""
