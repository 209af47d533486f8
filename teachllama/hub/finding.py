"""Finds the file of a name, an `hf:` spec or a path, and its state. Needs no network and reads no model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from teachllama.errors import FetchError, TeachLlamaError
from teachllama.folders import user_cache_dir
from teachllama.gguf_file import split_paths
from teachllama.hub.known import KNOWN, SHIPPED, KnownModel

# The Hub's names are ASCII letters, digits and a few signs. Anything else is rejected before it enters a path or a URL.
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_HUB_SPEC = re.compile(rf"hf:({_NAME}/{_NAME})/((?:{_NAME}/)*{_NAME}\.gguf)(?:@({_NAME}))?")


@dataclass(frozen=True)
class ListedModel:
    """A row of `list_models`. `path` is None for a file that is not downloaded.

    `state` is "shipped" (part of the package), "verified" (its checksum was right when it was downloaded, and it has
    not changed since), "not verified", "changed" (since it was verified), "damaged" (the wrong size) or "not here".
    """

    name: str
    path: Path | None
    nbytes: int
    licence: str
    state: str


def cache_dir() -> Path:
    """The folder of model files: `$TEACHLLAMA_CACHE`, or the user's cache folder for this package.

    Raises:
        FetchError: the account has no home folder, and no other place can be trusted.
    """
    if override := os.environ.get("TEACHLLAMA_CACHE"):
        return Path(os.path.expanduser(override)).absolute()
    try:
        return user_cache_dir() / "models"
    except TeachLlamaError as e:
        raise FetchError(str(e)) from None


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """Finds the file of a known name, of a downloaded `hf:` spec, or of a path, in which `~` is expanded.

    Needs no network and reads no file. For a known model only the size is checked (`fetch` verified the rest).

    Raises:
        FetchError: there is no such file; the message gives the command that downloads it, or what a path needs.
    """
    text = os.fspath(name_or_path)
    if text in KNOWN or text.startswith("hf:"):
        path, known = place(text)
        state = state_of(path, known)
        check_shipped(path, known, state)
        missing = [part for part in parts_of(text) if not place(part)[0].is_file()]
        if state != "not here" and missing:
            raise FetchError(
                f"{text} is not downloaded whole: {len(missing)} of its {len(parts_of(text))} parts are missing "
                f"(expected at {place(missing[0])[0]}): run `teachllama fetch {text}`"
            )
        if state == "damaged":
            raise FetchError(
                f"{path} has {path.stat().st_size:,} bytes where {text} has {known.nbytes if known else 0:,}: "
                f"`teachllama fetch {text}` replaces it"
            )
        if state == "not here":
            raise FetchError(f"{text} is not downloaded (expected at {path}): run `teachllama fetch {text}`")
        return path
    if os.path.isfile(text):
        return Path(text)
    _refuse_address(text)
    expanded = os.path.expanduser(text)
    if os.path.isfile(expanded):
        return Path(expanded)
    what = "is a folder, not a file" if os.path.isdir(expanded) else "is neither a known name nor a file"
    raise FetchError(
        f"{text!r} {what}. Known names: {', '.join(KNOWN)} (`teachllama fetch NAME` downloads one). A path must lead "
        f"to an existing GGUF file; {os.path.abspath(expanded)!r} does not"
    )


def list_models() -> list[ListedModel]:
    """The known models, downloaded or not, then every other GGUF file in the cache folder, by name."""
    root, rows = cache_dir(), []
    for known in KNOWN.values():
        path, _ = place(known.name)
        here = path.is_file()
        nbytes = path.stat().st_size if here else known.nbytes
        rows.append(ListedModel(known.name, path if here else None, nbytes, known.licence, state_of(path, known)))
    for path in sorted(root.rglob("*.gguf")):
        parts = path.relative_to(root).parts
        if parts[0] == ".fetch" or not path.is_file() or any(path == row.path for row in rows):
            continue
        name, licence = "/".join(parts), "unknown"
        if parts[0] == "hf" and len(parts) > 4:  # the layout that `place` uses: hf/OWNER/REPO/REVISION/FILE
            name, licence = f"hf:{'/'.join(parts[1:3] + parts[4:])}", "see its page"
            name += "" if parts[3] == "main" else f"@{parts[3]}"
        rows.append(ListedModel(name, path, path.stat().st_size, licence, state_of(path, None)))
    return rows


def place(spec: str) -> tuple[Path, KnownModel | None]:
    """The path at which the file of a name or an `hf:` spec is stored."""
    if known := KNOWN.get(spec):
        return (SHIPPED if known.shipped else cache_dir()) / known.file_name, known
    if match := hub_match(spec):
        repo_id, file, revision = match
        return cache_dir().joinpath("hf", *repo_id.split("/"), revision, *file.split("/")), None
    _refuse_address(spec)
    raise FetchError(
        f"cannot fetch {spec!r}. Known names: {', '.join(KNOWN)}. A file of the Hugging Face Hub is written "
        "hf:OWNER/REPO/FILE.gguf or hf:OWNER/REPO/FOLDER/FILE.gguf@REVISION (letters, digits and . _ + - only, no ..)"
    )


def hub_match(spec: str) -> tuple[str, str, str] | None:
    """(repo_id, file, revision) of an `hf:` spec."""
    match = _HUB_SPEC.fullmatch(spec)
    return (match[1], match[2], match[3] or "main") if match and ".." not in spec else None


def parts_of(spec: str) -> list[str]:
    """The specs of all parts of a split model (`NAME-00001-of-0000N.gguf`), otherwise only `spec` itself."""
    if match := hub_match(spec):
        folder, slash, name = match[1].rpartition("/")
        at = f"@{match[2]}" if "@" in spec else ""
        return [f"hf:{match[0]}/{folder}{slash}{part}{at}" for part in split_paths(name) or [name]]
    return [spec]


def _refuse_address(text: str) -> None:
    """Raises for a web address. For a Hugging Face Hub file, the message gives its `hf:` spec."""
    if not re.match("[A-Za-z][A-Za-z0-9+.-]*://", text):
        return
    advice = "Download the file and give its path, or fetch one of the Hugging Face Hub by hf:OWNER/REPO/FILE.gguf"
    page = re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]+)", text)
    if page and (parts := re.fullmatch(rf"({_NAME}/{_NAME})/(?:resolve|blob)/({_NAME})/(.+\.gguf)", page[1])):
        spec = f"hf:{parts[1]}/{parts[3]}" + ("" if parts[2] == "main" else f"@{parts[2]}")
        if hub_match(spec):
            advice = f"Run `teachllama fetch {spec}`, and then use {spec} as the model's name"
    raise FetchError(f"{text!r} is a web address, which cannot be opened here. {advice}")


def state_of(path: Path, known: KnownModel | None) -> str:
    """The state of a file, see `ListedModel`. Fast, because it never reads the file itself."""
    try:
        info = path.stat()
    except OSError:
        return "not here"
    if known and info.st_size != known.nbytes:
        return "damaged"
    if known and known.shipped:
        return "shipped"
    marker = marker_of(path)
    try:
        digest = marker.read_text(encoding="ascii").split(" ")[0]
        changed = marker.stat().st_mtime_ns < info.st_mtime_ns
    except (OSError, ValueError):
        return "not verified"
    if not re.fullmatch("[0-9a-f]{64}", digest) or (known and digest != known.sha256):
        return "not verified"
    return "changed" if changed else "verified"


def check_shipped(path: Path, known: KnownModel | None, state: str) -> None:
    if known and known.shipped and state != "shipped":
        raise FetchError(
            f"{path}, which is part of teachllama, is {'missing' if state == 'not here' else 'damaged'}: "
            "`pip install --force-reinstall --no-deps teachllama` restores it"
        )


def marker_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
