"""The user's cache folder, also for accounts without a home: containers often run under an unknown user id."""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from pathlib import Path

import platformdirs

from teachllama.errors import TeachLlamaError

_said = False


def user_cache_dir() -> Path:
    """The user's cache folder for this package; without a home folder, a per-user temporary folder.

    Raises:
        TeachLlamaError: there is no home folder, and the temporary one cannot be trusted. The message names the
            variables to set.
    """
    try:
        path = Path(platformdirs.user_cache_path("teachllama"))
    except RuntimeError:  # HOME is not set, and the system has no entry for this user id
        return _temporary()
    return path if path.is_absolute() else _temporary()  # older versions of platformdirs do not expand the ~


def _temporary() -> Path:
    """A folder that only this user can write: compiled code is loaded from it."""
    global _said
    uid = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir(), f"teachllama-{uid}")
    advice = (
        "set TEACHLLAMA_CACHE (models) and TEACHLLAMA_KERNEL_CACHE (compiled kernels) to folders of your own, or HOME"
    )
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022
    except OSError:
        ours = False
    if not ours:
        raise TeachLlamaError(
            f"this account (user id {uid}) has no home folder, and {folder} is not a folder that only it can write: "
            f"{advice}"
        )
    if not _said:
        _said = True
        warnings.warn(
            f"this account (user id {uid}) has no home folder, so models and compiled kernels are kept in {folder}; "
            f"{advice}",
            stacklevel=3,
        )
    return folder
