"""Reads files of the Hugging Face Hub, whole or in parts, through huggingface_hub."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from teachllama.errors import FetchError
from teachllama.hub.finding import hub_match, place
from teachllama.hub.progress import FULL, FULL_TEXT, announce, has_bars, need_room


@contextlib.contextmanager
def _hub_errors(spec: str) -> Iterator[None]:
    """Turns errors of huggingface_hub into a FetchError that says which part of the spec was at fault."""
    try:
        yield
    except ImportError as e:
        raise FetchError(f'{spec} needs huggingface_hub, which is not installed: pip install "teachllama[lab]"') from e
    except Exception as e:  # its errors and those of its HTTP library, which depends on the version, share no base
        if isinstance(e, OSError) and (e.errno in FULL or e.filename):  # a local disk error, not a network error
            raise
        if FULL_TEXT.search(str(e)):
            raise OSError(errno.ENOSPC, str(e)) from e
        kinds = {kind.__name__ for kind in type(e).__mro__}
        if "FileNotFoundError" in kinds:  # raised by HfFileSystem, with or without the Hub's own error as its cause
            behind = e.__cause__ or e.__context__
            kinds |= {kind.__name__ for kind in type(behind).__mro__} if behind else {"EntryNotFoundError"}
        repo_id, file, revision = hub_match(spec) or ("", "", "")
        if kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
            reason = "the Hub could not be reached, or HF_HUB_OFFLINE is set"
        elif "GatedRepoError" in kinds:
            reason = f"{repo_id} asks you to accept its terms on its page first, then to log in with `hf auth login`"
        elif "RepositoryNotFoundError" in kinds:
            reason = f"there is no repository {repo_id} there, or it is private: then `hf auth login` first"
        elif "RevisionNotFoundError" in kinds:
            reason = f"{repo_id} has no revision {revision!r}"
        elif "EntryNotFoundError" in kinds:
            reason = f"{repo_id} has no file {file} at revision {revision!r}"
        else:
            reason = "the Hub could not be reached: is there a network?"
        detail = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise FetchError(f"cannot fetch {spec}: {reason} ({detail})") from e


def facts_of(spec: str, commit: str = "") -> tuple[str, int, str]:
    """(sha256, bytes, commit) as published by the Hub; sha256 is "" for small files, which may have none.

    Args:
        spec: an `hf:` spec.
        commit: the commit to use instead of the spec's revision.
    """
    with _hub_errors(spec):
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        repo_id, file, revision = hub_match(spec) or ("", "", "")
        facts = get_hf_file_metadata(hf_hub_url(repo_id, file, revision=commit or revision))
        etag = str(facts.etag or "")
        return etag if re.fullmatch("[0-9a-f]{64}", etag) else "", int(facts.size or 0), str(facts.commit_hash)


def from_hub(spec: str, commit: str, nbytes: int, staging: Path, part: Path, progress: bool) -> None:
    """Downloads to `part`. huggingface_hub keeps an unfinished download in `staging` and resumes it."""
    need_room(staging, nbytes, spec)
    announce(spec, nbytes, progress)
    with _hub_errors(spec):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        repo_id, file, _ = hub_match(spec) or ("", "", "")
        hush = not (progress and has_bars()) and not are_progress_bars_disabled()
        if hush:
            disable_progress_bars()
        try:
            came = hf_hub_download(repo_id, file, revision=commit, local_dir=staging)
        finally:
            if hush:
                enable_progress_bars()
    os.replace(came, part)


@contextlib.contextmanager
def remote_file(spec: str, name: str | None = None) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
    """Opens a file of the Hub for reading in parts. Yields its size and a function that returns its bytes [start, end).

    Each call of the function is one range request, through huggingface_hub's file system.

    Args:
        spec: an `hf:` spec.
        name: another file in the same folder, at the same revision.

    Raises:
        FetchError: bad spec, no such file, no network.
    """
    match = hub_match(spec)
    if match is None:
        place(spec)  # raises an error that explains the syntax of a spec
        raise FetchError(f"{spec!r} is not a file of the Hugging Face Hub")
    repo_id, file, revision = match
    if name is not None:
        file = "/".join([*file.split("/")[:-1], name])
    with _hub_errors(spec):
        from huggingface_hub import HfFileSystem

        handle = HfFileSystem(skip_instance_cache=True).open(
            f"{repo_id}/{file}", "rb", revision=revision, cache_type="none"
        )
        nbytes = int(handle.size)

    def fetch(start: int, end: int) -> bytes:
        with _hub_errors(spec):
            handle.seek(start)
            return bytes(handle.read(end - start))

    try:
        yield nbytes, fetch
    finally:
        handle.close()
