"""Finds or downloads a model file: by a known name, by its path, or from the Hugging Face Hub. One is shipped.

Handles names, licences, checksums, the cache folder and its locks. Independent of a GGUF file's contents.
"""

from teachllama.hub.fetching import fetch
from teachllama.hub.finding import ListedModel, cache_dir, find, list_models, parts_of
from teachllama.hub.known import KNOWN, SHIPPED, KnownModel, Wheel
from teachllama.hub.remote import remote_file

__all__ = [
    "KNOWN",
    "SHIPPED",
    "KnownModel",
    "ListedModel",
    "Wheel",
    "cache_dir",
    "fetch",
    "find",
    "list_models",
    "parts_of",
    "remote_file",
]
