"""The errors of teachllama, a small tree under `TeachLlamaError`.

Every message says what was found, what was expected, and what to do. Catch `TeachLlamaError` to catch them all.
"""


class TeachLlamaError(Exception):
    """Base of every error this package raises on purpose."""


class GGUFError(TeachLlamaError):
    """The file is not a GGUF file this package can trust: truncated, inconsistent, or not GGUF at all."""


class UnsupportedModelError(TeachLlamaError):
    """The file is sound, but holds a model that this engine does not run; the message names what is missing."""


class ContextFullError(TeachLlamaError):
    """Evaluating these tokens would go past the session's `seq_len`; nothing was changed."""


class PoolFullError(TeachLlamaError):
    """A pool has fewer free pages than were asked for; nothing was changed."""


class TokenError(TeachLlamaError):
    """Token ids that are empty, not integers, or outside the vocabulary."""


class ClosedError(TeachLlamaError):
    """A model, session or file was used after it was closed."""


class ParameterError(TeachLlamaError, ValueError):
    """A setting (seq_len, kv_dtype, a sampling knob, a thread count) is out of its range."""


class FetchError(TeachLlamaError):
    """A model could not be found or fetched: no such name, no network, a full disk, a wrong checksum."""


class ChatError(TeachLlamaError):
    """A conversation that cannot be: malformed messages, roles the model's template refuses, a damaged history file."""


class TemplateError(TeachLlamaError):
    """A chat template that is missing, is not valid, fails, reaches out of its sandbox, or was stopped at a limit."""
