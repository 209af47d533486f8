"""The errors of teachllama, a small tree under `TeachLlamaError`.

Every message says what was found, what was expected, and what to do. Catch `TeachLlamaError` to catch them all.
"""


class TeachLlamaError(Exception):
    """Base of every error this package raises on purpose."""


class GGUFError(TeachLlamaError):
    """The file is not a GGUF file this package can trust: truncated, inconsistent, or not GGUF at all."""


class UnsupportedModelError(TeachLlamaError):
    """The file is valid, but this engine does not run its model; the message names what is missing."""


class ContextFullError(TeachLlamaError):
    """Evaluating these tokens would go past the session's `seq_len`; nothing was changed."""


class PoolFullError(TeachLlamaError):
    """A pool has fewer free pages than requested; nothing was changed."""


class TokenError(TeachLlamaError):
    """Token ids that are empty, not integers, or outside the vocabulary."""


class ClosedError(TeachLlamaError):
    """A model, session or file was used after it was closed."""


class ParameterError(TeachLlamaError, ValueError):
    """A setting (seq_len, kv_dtype, a sampling parameter, a thread count) is out of its range."""


class FetchError(TeachLlamaError):
    """A model could not be found or fetched: no such name, no network, a full disk, a wrong checksum."""


class ChatError(TeachLlamaError):
    """An invalid conversation: malformed messages, roles the model's template rejects, or a damaged history file."""


class TemplateError(TeachLlamaError):
    """A chat template is missing or invalid, fails, tries to leave its sandbox, or was stopped at a limit."""


class SessionFileError(TeachLlamaError):
    """A session file or prefix file could not be written, or was refused. Nothing was changed.

    Attributes:
        reason: the cause, as one of these strings for programs: "missing", "not a file", "not a session file",
            "not a prefix file", "truncated", "damaged", "newer version", "other model", "other quantization",
            "other weights", "other settings", "other tokenizer", "other rope", "other cache type", "other page size",
            "window", "seq_len", "memory", "permission", "symbolic link", "disk full", "too large".
        can_rebuild: True where `load_session(path, rebuild=True)` would evaluate the file's tokens instead.
    """

    def __init__(self, message: str, reason: str = "damaged", can_rebuild: bool = False):
        super().__init__(message)
        self.reason, self.can_rebuild = reason, can_rebuild

    def __reduce__(self) -> tuple[type, tuple[str, str, bool]]:
        """For pickle, which would otherwise restore only the message."""
        return type(self), (str(self), self.reason, self.can_rebuild)
