"""Reads the headers of a model on the Hugging Face Hub, without its weights: `kv hf:OWNER/REPO/FILE.gguf`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from teachllama import hub
from teachllama.errors import FetchError, GGUFError
from teachllama.gguf_file import TensorInfo, split_paths
from teachllama.gguf_remote import read_header
from teachllama.whole_numbers import is_whole


@dataclass(frozen=True)
class RemoteModel:
    """The contents of a model's headers."""

    metadata: dict[str, Any]
    tensors: list[TensorInfo]  # of all parts
    nbytes: int  # of all files
    fetched_nbytes: int
    n_files: int

    @property
    def weights_nbytes(self) -> int:
        """Bytes of the tensors in the files."""
        return sum(t.nbytes for t in self.tensors)


def is_remote(name: str) -> bool:
    """Whether `name` is an `hf:` spec whose file has not been downloaded."""
    if not name.startswith("hf:"):
        return False
    try:
        hub.find(name)
    except FetchError:
        return True
    return False


def read_remote(spec: str) -> RemoteModel:
    """Reads the headers of all parts of a model by range requests.

    Raises:
        FetchError: bad spec, no such file, a part is missing, no network.
        GGUFError: a header is damaged, or a part belongs to another model.
    """
    first, _, revision = spec.partition("@")
    folder, _, name = first.rpartition("/")
    names = [os.path.basename(p) for p in split_paths(name) or [name]]
    spec = f"{folder}/{names[0]}" + (f"@{revision}" if revision else "")
    metadata, found, nbytes, fetched = _header(spec, None)
    count = metadata.get("split.count", 1)
    if not is_whole(count, 0) or (count > 1) != (len(names) > 1):
        says = f"part of a model in {count} parts" if is_whole(count, 2) else "a whole model"
        raise GGUFError(
            f"{spec}: the file says that it is {says}; expected the name of such a file (of a split model: "
            "NAME-00001-of-0000N.gguf)"
        )
    if count > 1 and count != len(names):
        raise GGUFError(f"{spec}: the name says {len(names)} parts, and the file {count}; the repository mixes models")
    for no, other in enumerate(names[1:], 1):
        more, tensors, n, f = _header(spec, other)
        if more.get("split.no") != no or more.get("split.count") != count:
            raise GGUFError(
                f"{folder}/{other}: expected part {no + 1} of {count}, found split.no {more.get('split.no')!r} of "
                f"{more.get('split.count')!r}; the repository mixes models"
            )
        if twice := found.keys() & tensors.keys():
            raise GGUFError(f"{folder}/{other}: tensor {min(twice)!r} is in an earlier part too")
        found |= tensors
        nbytes, fetched = nbytes + n, fetched + f
    return RemoteModel(metadata, list(found.values()), nbytes, fetched, len(names))


def _header(spec: str, name: str | None) -> tuple[dict[str, Any], dict[str, TensorInfo], int, int]:
    """(metadata, tensors, bytes of the file, bytes fetched)."""
    fetched = 0
    with hub.remote_file(spec, name) as (nbytes, fetch):

        def counted(start: int, end: int) -> bytes:
            nonlocal fetched
            fetched += end - start
            return fetch(start, end)

        metadata, tensors = read_header(name or spec, nbytes, counted)
    return metadata, tensors, nbytes, fetched
