"""Progress bars, the line printed before a download, and the check for free disk space."""

from __future__ import annotations

import errno
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachllama.errors import FetchError
from teachllama.hub.finding import cache_dir

if TYPE_CHECKING:
    from tqdm import tqdm

CHUNK_BYTES = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk is full, or the user's share of it
FULL_TEXT = re.compile("No space left on device|not enough space on the disk|Disk quota exceeded")


def new_bar(total: int, label: str, progress: bool) -> tqdm[Any]:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit="B", unit_scale=True, leave=False, disable=not (progress and has_bars()))


def has_bars() -> bool:
    """Whether stderr can show a moving bar. In a log file, for example, it would be a thousand lines."""
    ipython = sys.modules.get("IPython")
    in_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def announce(spec: str, nbytes: int, progress: bool) -> None:
    """Prints one line before a download if no bar is shown."""
    if progress and not has_bars():
        print(f"downloading {spec}: {nbytes / 1e6:,.1f} MB", file=sys.stderr, flush=True)


def need_room(folder: Path, nbytes: int, spec: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise FetchError(
            f"fetching {spec} needs {nbytes / 1e6:,.0f} MB free in {cache_dir()}, and {free / 1e6:,.0f} MB are free. "
            "Make room there, or set TEACHLLAMA_CACHE to a folder on another disk"
        )
